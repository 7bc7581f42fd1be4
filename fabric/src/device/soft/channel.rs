//! Events: completion channels, and the asynchronous events of a context.

use super::core::Core;
use super::lock::Lock;
use super::shm;
use crate::Result;
use crate::device::DeviceChannel;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A queue with a descriptor that is readable while it holds something.
pub(super) struct Events<T> {
    queue: Lock<VecDeque<T>>,
    /// A semaphore: counts what is in the queue.
    fd: OwnedFd,
}

impl<T> Events<T> {
    pub(super) fn new() -> Result<Self> {
        Ok(Events { queue: Lock::default(), fd: shm::eventfd(libc::EFD_SEMAPHORE)? })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn push(&self, event: T) {
        let mut queue = self.queue.lock();
        queue.push_back(event);
        shm::ring_eventfd(self.fd.as_fd());
    }

    pub(super) fn pop(&self) -> Option<T> {
        let mut queue = self.queue.lock();
        let event = queue.pop_front()?;
        shm::take_eventfd(self.fd.as_fd());
        Some(event)
    }

    /// Drops the events that `of_it` chooses: the object that they are about is gone.
    pub(super) fn forget(&self, of_it: impl Fn(&T) -> bool) {
        let mut queue = self.queue.lock();
        let before = queue.len();
        queue.retain(|event| !of_it(event));
        for _ in queue.len()..before {
            shm::take_eventfd(self.fd.as_fd());
        }
    }
}

/// An event of a CQ: its index in the context, and its `user` value.
#[derive(Clone, Copy)]
pub(super) struct CqEvent {
    pub(super) index: u32,
    pub(super) user: u64,
}

/// A completion channel.
pub(super) struct Channel {
    pub(super) core: Arc<Core>,
    pub(super) events: Events<CqEvent>,
}

/// What the program holds.
pub(super) struct ChannelHandle {
    pub(super) channel: Arc<Channel>,
    pub(super) _context: Arc<super::context::Context>,
}

impl DeviceChannel for ChannelHandle {
    fn fd(&self) -> BorrowedFd<'_> {
        self.channel.events.fd()
    }

    fn get_event(&self) -> Result<Option<u64>> {
        Ok(self.channel.events.pop().map(|event| event.user))
    }
}
