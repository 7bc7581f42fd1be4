//! Events: which object each is about, waiting for one, and acknowledgements.
//!
//! Devices name an object by a number that is never used again; [`Live`] says which object of the
//! program has it. An object that is being destroyed is taken out first, and then waits in
//! [`Acks::settle`] until the program has acknowledged what it was given, as the man pages of
//! `ibv_destroy_cq` and the others say: so no event ever points to one that is gone.

use sojourn_fabric::abi;
use std::collections::HashMap;
use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks; nothing here is left half changed, so a panic elsewhere is no reason not to.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer to an object of the program's, which any thread may use.
pub(crate) struct Shared<T>(pub(crate) *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: the verbs allow any thread to use an object; it is only ever read through `object::body`.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

/// The objects of a context that events can be about.
#[derive(Default)]
pub(crate) struct Live {
    last: u64,
    pub(crate) cqs: HashMap<u64, Shared<abi::Cq>>,
    pub(crate) srqs: HashMap<u64, Shared<abi::Srq>>,
    /// By queue pair number.
    pub(crate) qps: HashMap<u32, Shared<abi::Qp>>,
}

impl Live {
    /// A number for a CQ or an SRQ.
    pub(crate) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

/// Events of one object that the program was given and has not acknowledged.
#[derive(Default)]
pub(crate) struct Acks {
    owed: Mutex<u64>,
    none: Condvar,
}

impl Acks {
    /// The program is given one.
    pub(crate) fn give(&self) {
        *lock(&self.owed) += 1;
    }

    /// The program acknowledges some.
    pub(crate) fn acknowledge(&self, events: u64) {
        let mut owed = lock(&self.owed);
        *owed = owed.saturating_sub(events);
        if *owed == 0 {
            self.none.notify_all();
        }
    }

    /// Returns once all are acknowledged. Without a deadline, since the man pages promise just that:
    /// a program that never acknowledges waits for ever here, as it does with libibverbs.
    pub(crate) fn settle(&self) {
        let mut owed = lock(&self.owed);
        while *owed != 0 {
            owed = self.none.wait(owed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Waits until `fd` is readable, without a deadline: `ibv_get_cq_event(3)` blocks until an event
/// comes, and a program that wants it otherwise sets `O_NONBLOCK` on the descriptor.
///
/// # Errors
/// `EAGAIN` where the program has done that, `EINTR` where a signal came.
pub(crate) fn wait(fd: BorrowedFd<'_>) -> Result<(), c_int> {
    let fd = fd.as_raw_fd();
    let errno = || std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    // SAFETY: F_GETFL takes no argument and changes nothing.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return Err(errno());
    }
    if flags & libc::O_NONBLOCK != 0 {
        return Err(libc::EAGAIN);
    }
    let mut readable = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    const FOR_EVER: c_int = -1;
    // SAFETY: one valid pollfd.
    match unsafe { libc::poll(&raw mut readable, 1, FOR_EVER) } {
        0.. => Ok(()),
        _ => Err(errno()),
    }
}
