//! Completion channels.

use super::context::{HcaContext, set_nonblocking};
use super::raw::{self, Handle};
use crate::abi;
use crate::device::DeviceChannel;
use crate::{Error, Result};
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;

pub(super) struct HcaChannel {
    pub(super) context: Arc<HcaContext>,
    pub(super) raw: Handle<abi::CompChannel>,
}

impl HcaChannel {
    pub(super) fn create(context: Arc<HcaContext>) -> Result<Self> {
        // SAFETY: the context is open.
        let created = unsafe { (context.verbs.ibv_create_comp_channel)(context.raw.ptr()) };
        let raw = raw::created(created).map_err(|errno| {
            raw::error(errno, format_args!("creating a completion channel on {}", context.name))
        })?;
        let channel = HcaChannel { context, raw };
        set_nonblocking(channel.fd())?;
        Ok(channel)
    }

    fn failed(&self, errno: i32) -> Error {
        raw::error(errno, format_args!("taking a completion event of {}", self.context.name))
    }
}

impl Drop for HcaChannel {
    fn drop(&mut self) {
        // SAFETY: the channel exists, and all CQs on it held it and are gone.
        let answer = unsafe { (self.context.verbs.ibv_destroy_comp_channel)(self.raw.ptr()) };
        raw::log_undestroyed(answer, format_args!("a channel of {}", self.context.name));
    }
}

impl DeviceChannel for HcaChannel {
    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel exists; the kernel made its descriptor, which is open until the
        // channel is destroyed.
        unsafe { BorrowedFd::borrow_raw((*self.raw.ptr()).fd) }
    }

    fn get_event(&self) -> Result<Option<u64>> {
        let (mut cq, mut user) = (ptr::null_mut(), ptr::null_mut());
        loop {
            // SAFETY: the channel exists, and the pointers are where the answers go.
            let answer = unsafe {
                (self.context.verbs.ibv_get_cq_event)(self.raw.ptr(), &raw mut cq, &raw mut user)
            };
            match raw::status(answer) {
                Ok(()) => break,
                Err(libc::EAGAIN) => return Ok(None),
                Err(libc::EINTR) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        // SAFETY: the CQ's destruction waits until this event is acknowledged, so it exists.
        unsafe { (self.context.verbs.ibv_ack_cq_events)(cq, 1) };
        Ok(Some(user as u64))
    }
}
