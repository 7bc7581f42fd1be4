//! Virtual completion channels: a descriptor of our own in front of the physical one.
//!
//! Programs keep the descriptor in their event loops, so it stays the same whatever it stands for:
//! an epoll instance with the physical channel's descriptor in it, and an eventfd for the
//! events of the backlog.

use super::cq::CqCore;
use super::lock_mutex;
use crate::device::DeviceChannel;
use crate::error::{Error, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, Weak};

/// An epoll instance that is readable when any of some descriptors is.
pub(super) fn readable_with(fds: &[BorrowedFd<'_>], what: &str) -> Result<Epoll> {
    let failed = |errno: nix::errno::Errno| {
        let hint = if errno == nix::errno::Errno::EMFILE {
            ": no file descriptors left (raise the limit with ulimit -n)"
        } else {
            ""
        };
        Error::new(errno as i32, format!("{what}: {}{hint}", errno.desc()))
    };
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
    for fd in fds {
        match epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
            // What cannot be waited for announces nothing (a device without events).
            Ok(()) | Err(nix::errno::Errno::EPERM) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(epoll)
}

/// A channel, as its CQs and the program share it.
pub(super) struct ChannelCore {
    epoll: Epoll,
    physical: Arc<dyn DeviceChannel>,
    ours: EventFd,
    /// Events of the backlog: the `user` values of their CQs.
    ready: Mutex<VecDeque<u64>>,
    cqs: Mutex<HashMap<u32, Weak<CqCore>>>,
}

impl ChannelCore {
    pub(super) fn new(physical: Arc<dyn DeviceChannel>) -> Result<Arc<Self>> {
        let what = "creating a completion channel";
        let ours = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::new(errno as i32, format!("{what}: {}", errno.desc())))?;
        let epoll = readable_with(&[physical.fd(), ours.as_fd()], what)?;
        let (ready, cqs) = (Mutex::default(), Mutex::default());
        Ok(Arc::new(ChannelCore { epoll, physical, ours, ready, cqs }))
    }

    pub(super) fn physical(&self) -> &Arc<dyn DeviceChannel> {
        &self.physical
    }

    /// Events of this CQ come here.
    pub(super) fn add(&self, cq: &Arc<CqCore>) {
        lock_mutex(&self.cqs).insert(cq.number(), Arc::downgrade(cq));
    }

    pub(super) fn forget(&self, number: u32) {
        lock_mutex(&self.cqs).remove(&number);
    }

    /// Raises an event of the CQ whose `user` value this is.
    pub(super) fn announce(&self, user: u64) {
        let mut ready = lock_mutex(&self.ready);
        ready.push_back(user);
        // Cannot fail: the counter is below its limit, for it is reset when the queue is empty.
        let _ = self.ours.write(1);
    }

    fn own_event(&self) -> Option<u64> {
        let mut ready = lock_mutex(&self.ready);
        let user = ready.pop_front()?;
        if ready.is_empty() {
            // It is readable; what it holds does not matter.
            let _ = self.ours.read();
        }
        Some(user)
    }
}

/// The channel that a program holds.
pub(super) struct VirtualChannel(pub(super) Arc<ChannelCore>);

impl DeviceChannel for VirtualChannel {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.epoll.0.as_fd()
    }

    fn get_event(&self) -> Result<Option<u64>> {
        if let Some(user) = self.0.own_event() {
            return Ok(Some(user));
        }
        while let Some(number) = self.0.physical.get_event()? {
            let cq = lock_mutex(&self.0.cqs).get(&(number as u32)).and_then(Weak::upgrade);
            // One whose CQ has been destroyed is nobody's.
            if let Some(cq) = cq {
                cq.event_came();
                return Ok(Some(cq.user()));
            }
        }
        Ok(None)
    }
}
