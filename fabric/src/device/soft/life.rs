//! The life word: how peers learn that a process no longer runs the program they connected to.
//!
//! A pid names a process, not a program: after exec the same pid, and the same pidfd, stand for
//! other memory; after a death and a reap the pid may stand for a stranger. So a word in the
//! public region goes on the *robust futex list* of the context's service thread. The kernel
//! walks that list when the thread ends: at exit of the process before it becomes a zombie, and
//! at exec before the old memory is given up (exec first ends all other threads). It sets
//! `FUTEX_OWNER_DIED` in the word, which peers check right before each copy, once their slot is
//! published.
//!
//! What remains: between an initiator's look at the word and the kernel's look-up of the pid the
//! target might exec (or die, be reaped, and its pid be dealt anew), if the initiator is
//! preempted or stopped right there. Against a reused pid the launcher helps: it reaps no rank
//! before the job has ended, so that no pid of a rank is dealt anew while a peer lives. Against
//! exec nothing at user level helps; a program that replaces itself destroys its queue pairs
//! first, which fences it (`inflight`).

use super::region::{Header, Region};
use std::sync::atomic::Ordering;

/// `struct robust_list_head` of the kernel.
#[repr(C)]
struct Head {
    list: *mut libc::c_void,
    futex_offset: libc::c_long,
    pending: *mut libc::c_void,
}

/// Puts the region's life word on this thread's robust list and marks it alive. Called once, by
/// the service thread; the region must outlive the thread, which the caller sees to.
///
/// Returns whether the kernel took it; without it the word only dies with an orderly end.
pub(super) fn begin(region: &Region) -> bool {
    let header = region.header();
    // SAFETY: plain system call.
    let tid = unsafe { libc::gettid() } as u32;
    let next = std::ptr::from_ref(&header.robust_next).cast_mut().cast::<libc::c_void>();
    // The head lives as long as the process: the kernel reads it at the thread's very end, when
    // the thread's own memory may be gone.
    let head: *mut Head = Box::leak(Box::new(Head {
        list: next,
        futex_offset: std::mem::offset_of!(Header, life) as libc::c_long
            - std::mem::offset_of!(Header, robust_next) as libc::c_long,
        pending: std::ptr::null_mut(),
    }));
    // A list of one: the entry points back to the head.
    header.robust_next.store(head as u64, Ordering::Release);
    header.life.store(tid & libc::FUTEX_TID_MASK, Ordering::SeqCst);
    // SAFETY: the head and the entry are valid until the thread ends. The C library's own list of
    // this thread, which this replaces, is empty: nothing here locks robust mutexes.
    unsafe { libc::syscall(libc::SYS_set_robust_list, head, size_of::<Head>()) == 0 }
}

/// Marks the word dead and takes it off the list: the context closes while the process lives.
pub(super) fn end(region: &Region) {
    region.header().life.store(libc::FUTEX_OWNER_DIED, Ordering::SeqCst);
    // SAFETY: an empty list is always valid: the head points to itself.
    unsafe {
        let head: *mut Head = Box::leak(Box::new(Head {
            list: std::ptr::null_mut(),
            futex_offset: 0,
            pending: std::ptr::null_mut(),
        }));
        (*head).list = head.cast();
        libc::syscall(libc::SYS_set_robust_list, head, size_of::<Head>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn dies(region: &Region) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while region.alive() {
            assert!(Instant::now() < deadline, "the word still lives");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A process that begins and then does `end`; the word lives until it does.
    fn child(region: &Region, end: fn()) {
        let mut pipe = [0i32; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        // SAFETY: the child calls little, and ends by exec or _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            begin(region);
            let mut byte = [0u8];
            // SAFETY: one writable byte; returns when the parent closes its end, or writes.
            unsafe { libc::read(pipe[0], byte.as_mut_ptr().cast(), 1) };
            end();
            // SAFETY: ends the child without running the test harness.
            unsafe { libc::_exit(1) };
        }
        assert!(pid > 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        while !region.alive() {
            assert!(Instant::now() < deadline, "the word never lives");
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: one readable byte; our descriptors, closed once.
        unsafe {
            libc::write(pipe[1], [0u8].as_ptr().cast(), 1);
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
        dies(region);
        // SAFETY: our own child.
        unsafe {
            libc::kill(pid, libc::SIGKILL);
            libc::waitpid(pid, std::ptr::null_mut(), 0);
        }
    }

    /// The word dies when the process exits, is killed, and when it execs while it lives on.
    #[test]
    fn the_word_dies_with_the_program() {
        let fresh = || Region::create().unwrap().1;
        // SAFETY: each ends the child, or replaces its program.
        child(&fresh(), || unsafe { libc::_exit(0) });
        // SAFETY: as above.
        child(&fresh(), || unsafe {
            libc::raise(libc::SIGKILL);
        });
        // SAFETY: as above.
        child(&fresh(), || unsafe {
            let arguments = [c"sleep".as_ptr(), c"60".as_ptr(), std::ptr::null()];
            libc::execv(c"/bin/sleep".as_ptr(), arguments.as_ptr());
        });
    }

    /// It dies with an orderly end of the thread as well, which leaves the thread's list empty.
    #[test]
    fn the_word_dies_with_the_context() {
        let (_, region) = Region::create().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(begin(&region));
                assert!(region.alive());
                end(&region);
            });
        });
        assert!(!region.alive());
    }
}
