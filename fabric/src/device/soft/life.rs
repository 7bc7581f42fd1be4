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
