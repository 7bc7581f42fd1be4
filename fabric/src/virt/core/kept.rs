//! Asynchronous events of a context that no device holds any more: they were taken from there to be written
//! down, or come from where they were.

use super::lock_mutex;
use crate::device::AsyncEvent;
use crate::error::{Error, Result};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Mutex;

/// The events, in order.
#[derive(Default)]
pub(super) struct KeptEvents(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    events: VecDeque<AsyncEvent>,
    /// Makes the context's descriptor readable while there are some: made for the first.
    bell: Option<EventFd>,
}

impl KeptEvents {
    /// One more, which the program learns of through `epoll`.
    ///
    /// # Errors
    /// Where no file descriptor is left: the event is lost then.
    pub(super) fn push(&self, epoll: &Epoll, event: AsyncEvent) -> Result<()> {
        let mut inner = lock_mutex(&self.0);
        let failed = |errno: nix::errno::Errno| {
            let text = format!("keeping an asynchronous event: {}", errno.desc());
            Error::new(errno as i32, text)
        };
        if inner.bell.is_none() {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let bell = EventFd::from_flags(flags).map_err(failed)?;
            let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
            epoll.add(bell.as_fd(), readable).map_err(failed)?;
            inner.bell = Some(bell);
        }
        inner.events.push_back(event);
        if let Some(bell) = &inner.bell {
            // Cannot fail: the counter is below its limit, for it is reset when the queue is empty.
            let _ = bell.write(1);
        }
        Ok(())
    }

    /// All of them, which stay.
    pub(super) fn all(&self) -> Vec<AsyncEvent> {
        lock_mutex(&self.0).events.iter().copied().collect()
    }

    /// The oldest.
    pub(super) fn take(&self) -> Option<AsyncEvent> {
        let mut inner = lock_mutex(&self.0);
        let event = inner.events.pop_front()?;
        if inner.events.is_empty()
            && let Some(bell) = &inner.bell
        {
            // It is readable; what it holds does not matter.
            let _ = bell.read();
        }
        Some(event)
    }
}
