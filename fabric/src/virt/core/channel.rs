//! Virtual completion channels: a descriptor of our own in front of the physical one.
//!
//! Programs keep the descriptor in their event loops, so it stays the same whatever it stands for:
//! an epoll instance with the physical channels' descriptors in it, and an eventfd for the
//! events of the backlog.

use super::cq::CqCore;
use super::local::{read, write};
use super::lock_mutex;
use super::underlay::Underlay;
use crate::device::DeviceChannel;
use crate::error::{Error, Result};
use crate::names::DeviceId;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, RwLock, Weak};

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
    /// The physical one on each device in use.
    on: RwLock<Vec<(DeviceId, Arc<dyn DeviceChannel>)>>,
    ours: EventFd,
    /// Events of the backlog: the `user` values of their CQs.
    ready: Mutex<VecDeque<u64>>,
    cqs: Mutex<HashMap<u32, Weak<CqCore>>>,
}

impl ChannelCore {
    pub(super) fn new(underlays: &[Arc<Underlay>]) -> Result<Arc<Self>> {
        let what = "creating a completion channel";
        let ours = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::new(errno as i32, format!("{what}: {}", errno.desc())))?;
        let epoll = readable_with(&[ours.as_fd()], what)?;
        let (ready, cqs) = (Mutex::default(), Mutex::default());
        let channel = ChannelCore { epoll, on: RwLock::default(), ours, ready, cqs };
        for underlay in underlays {
            channel.extend(underlay)?;
        }
        Ok(Arc::new(channel))
    }

    /// Is on that device, too.
    pub(super) fn extend(&self, underlay: &Underlay) -> Result<()> {
        let physical = Arc::clone(&underlay.device).create_channel()?;
        match self.epoll.add(physical.fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
            // What cannot be waited for announces nothing (a device without events).
            Ok(()) | Err(nix::errno::Errno::EPERM) => {}
            Err(errno) => {
                let what = "waiting for a completion channel";
                return Err(Error::new(errno as i32, format!("{what}: {}", errno.desc())));
            }
        }
        write(&self.on).push((underlay.id, physical));
        Ok(())
    }

    /// Is not on that device any more; events that nobody has taken are ours now.
    pub(super) fn retract(&self, device: DeviceId) {
        let gone = {
            let mut on = write(&self.on);
            let at = on.iter().position(|(id, _)| *id == device);
            at.map(|at| on.remove(at).1)
        };
        let Some(gone) = gone else { return };
        self.take_events(&*gone);
        // Fails where it was never added.
        let _ = self.epoll.delete(gone.fd());
    }

    fn take_events(&self, physical: &dyn DeviceChannel) {
        while let Ok(Some(number)) = physical.get_event() {
            if let Some(user) = self.user_of(number) {
                self.announce(user);
            }
        }
    }

    /// Events that nobody has taken are ours from here on.
    pub(super) fn take_all_events(&self) {
        let on = read(&self.on).clone();
        on.iter().for_each(|(_, physical)| self.take_events(&**physical));
    }

    /// The events that are ours, in order: the `user` values of their CQs.
    pub(super) fn ready(&self) -> Vec<u64> {
        lock_mutex(&self.ready).iter().copied().collect()
    }

    /// The physical one on a device.
    pub(super) fn physical_on(&self, device: DeviceId) -> Option<Arc<dyn DeviceChannel>> {
        read(&self.on).iter().find(|(id, _)| *id == device).map(|(_, it)| Arc::clone(it))
    }

    /// How the program calls the CQ of that number, whose notification has fired; `None` where the
    /// CQ has been destroyed, or its one notification has come already, from another device.
    fn user_of(&self, number: u64) -> Option<u64> {
        let cq = lock_mutex(&self.cqs).get(&(number as u32)).and_then(Weak::upgrade)?;
        cq.event_came().then(|| cq.user())
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
        let on = read(&self.0.on).clone();
        for (_, physical) in on {
            while let Some(number) = physical.get_event()? {
                if let Some(user) = self.0.user_of(number) {
                    return Ok(Some(user));
                }
            }
        }
        Ok(None)
    }
}
