//! Sleeping until a descriptor is ready, another thread calls, or an instant comes.
//!
//! [`Poller`] is epoll with tokens; it has a descriptor itself, so one may watch another.
//! [`Wake`] is how other threads interrupt one; [`spawn`] starts the threads that sleep in one.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::time::TimeSpec;

use super::error::Error;

/// What to wait for on a descriptor, and what came. Errors and hang-ups arrive as both.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready {
    /// Something can be read, or a connection accepted.
    pub read: bool,
    /// Something can be written.
    pub write: bool,
}

impl Ready {
    /// Waits for reading alone.
    pub const READ: Ready = Ready { read: true, write: false };

    fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, self.read);
        flags.set(EpollFlags::EPOLLOUT, self.write);
        flags
    }

    fn came(flags: EpollFlags) -> Ready {
        let over = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        Ready {
            read: over || flags.contains(EpollFlags::EPOLLIN),
            write: over || flags.contains(EpollFlags::EPOLLOUT),
        }
    }
}

/// Descriptors taken in one look; the rest stay ready for the next.
const BATCH: usize = 64;

/// Sleeps are cut to this, so that no deadline however far is one that the kernel refuses.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Level-triggered epoll.
pub(crate) struct Poller {
    epoll: Epoll,
}

impl Poller {
    pub(crate) fn new() -> Result<Poller, Error> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::system("epoll", errno))?;
        Ok(Poller { epoll })
    }

    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, on: Ready) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(on.flags(), token))
    }

    pub(crate) fn modify(&self, fd: BorrowedFd<'_>, token: u64, on: Ready) -> Result<(), Errno> {
        self.epoll.modify(fd, &mut EpollEvent::new(on.flags(), token))
    }

    /// A descriptor that is being closed leaves by itself unless it has been duplicated.
    pub(crate) fn delete(&self, fd: BorrowedFd<'_>) {
        // Fails only where the descriptor is not in the set, which is what is wanted.
        let _ = self.epoll.delete(fd);
    }

    /// What is ready now. Never sleeps.
    pub(crate) fn ready(&self) -> Vec<(u64, Ready)> {
        let mut events = [EpollEvent::empty(); BATCH];
        // The wait itself fails only when interrupted, and then nothing is lost: the next look
        // finds the same.
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        events[..count].iter().map(|e| (e.data(), Ready::came(e.events()))).collect()
    }

    /// Sleeps until something is ready, or until then. By ppoll, since epoll counts milliseconds.
    pub(crate) fn sleep(&self, until: Option<Instant>) {
        let left = until.map(|at| {
            TimeSpec::from(at.saturating_duration_since(Instant::now()).min(LONGEST_SLEEP))
        });
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        // Interrupted, or out of kernel memory: either way the caller looks, and sleeps again.
        let _ = ppoll(&mut fds, left, None);
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// Interrupts a sleep from another thread.
pub(crate) struct Wake {
    event: EventFd,
    /// Set while a wake-up is on its way, so that a burst of commands costs one system call.
    pending: AtomicBool,
}

impl Wake {
    pub(crate) fn new() -> Result<Wake, Error> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system("eventfd", errno))?;
        Ok(Wake { event, pending: AtomicBool::new(false) })
    }

    /// Whatever the caller did before this is seen by the woken thread after [`clear`](Self::clear).
    pub(crate) fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // It fails only when the counter is full, and then it is readable already.
            let _ = self.event.write(1);
        }
    }

    /// Call before looking for what the wake-up was about: one that comes later wakes again.
    pub(crate) fn clear(&self) {
        let _ = self.event.read();
        self.pending.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Starts a thread that no signal of the program's is ever delivered to.
pub(crate) fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    // A thread inherits its mask, so there is no moment at which it could take a signal.
    let before = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|errno| Error::system("signal mask", errno))?;
    let thread = std::thread::Builder::new().name(name.into()).spawn(body);
    before.thread_set_mask().map_err(|errno| Error::system("signal mask", errno))?;
    thread.map_err(|e| Error::io(format!("thread {name}"), &e))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_sleep_ends_by_a_call_from_another_thread_or_at_its_instant() {
        let poller = Poller::new().unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        poller.add(wake.as_fd(), 7, Ready::READ).unwrap();
        let at = Instant::now() + Duration::from_millis(5);
        poller.sleep(Some(at));
        while Instant::now() < at {
            poller.sleep(Some(at));
        }
        assert!(poller.ready().is_empty());
        let other = wake.clone();
        let thread = std::thread::spawn(move || {
            other.wake();
            other.wake();
        });
        poller.sleep(Some(Instant::now() + Duration::from_secs(60)));
        assert_eq!(poller.ready(), [(7, Ready::READ)]);
        thread.join().unwrap();
        wake.clear();
        assert!(poller.ready().is_empty());
        wake.wake();
        assert_eq!(poller.ready(), [(7, Ready::READ)]);
    }

    #[test]
    fn a_spawned_thread_has_every_signal_blocked_and_its_parent_keeps_its_mask() {
        use nix::sys::signal::Signal;
        let before = SigSet::thread_get_mask().unwrap();
        let (tx, rx) = crossbeam_channel::bounded(1);
        let send = move || tx.send(SigSet::thread_get_mask().unwrap()).unwrap();
        spawn("test", send).unwrap().join().unwrap();
        let mask = rx.recv().unwrap();
        assert!(mask.contains(Signal::SIGTERM) && mask.contains(Signal::SIGUSR1));
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
