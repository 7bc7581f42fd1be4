//! Completion queues.

use super::channel::HcaChannel;
use super::context::HcaContext;
use super::limits::{self, Ask};
use super::raw::{self, Handle};
use crate::abi::{self, VerbsContext, cq_init_attr_mask, create_cq_flags};
use crate::device::{CqInit, DeviceCq, Polled};
use crate::{Error, Result};
use std::any::Any;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub(super) struct HcaCq {
    pub(super) context: Arc<HcaContext>,
    pub(super) raw: Handle<abi::Cq>,
    channel: Option<Arc<HcaChannel>>,
    cqe: AtomicU32,
    resizing: Mutex<()>,
}

impl HcaCq {
    pub(super) fn create(context: Arc<HcaContext>, init: CqInit) -> Result<Self> {
        let channel = init.channel.map(|channel| own_channel(&context, channel)).transpose()?;
        let channel_ptr = channel.as_ref().map_or(ptr::null_mut(), |channel| channel.raw.ptr());
        if init.cqe == 0 {
            let name = &context.name;
            return Err(Error::invalid(format!(
                "creating a CQ on {name}: it must hold at least 1"
            )));
        }
        let vectors = context.comp_vectors();
        let vector = c_int::try_from(init.comp_vector).ok().filter(|&vector| vector < vectors);
        let Some(vector) = vector else {
            return Err(Error::invalid(format!(
                "creating a CQ on {}: comp_vector {} is not below the device's {vectors}",
                context.name, init.comp_vector
            )));
        };
        let mut attr = abi::CqInitAttrEx {
            cqe: init.cqe,
            cq_context: init.user as *mut c_void,
            channel: channel_ptr,
            comp_vector: init.comp_vector,
            wc_flags: 0,
            comp_mask: cq_init_attr_mask::FLAGS,
            flags: create_cq_flags::SINGLE_THREADED,
            parent_domain: ptr::null_mut(),
        };
        let single = init.single_threaded.then(|| create_single_threaded(&context, &mut attr));
        let raw = match single.flatten() {
            Some(raw) => raw,
            None => {
                let cqe = c_int::try_from(init.cqe).unwrap_or(c_int::MAX);
                // SAFETY: the context is open, the channel is null or one of its own, and the
                // third argument is returned with events and not followed.
                let created = unsafe {
                    (context.verbs.ibv_create_cq)(
                        context.raw.ptr(),
                        cqe,
                        attr.cq_context,
                        channel_ptr,
                        vector,
                    )
                };
                raw::created(created).map_err(|errno| refused(&context, errno, init.cqe))?
            }
        };
        let cqe = AtomicU32::new(granted(&raw));
        Ok(HcaCq { context, raw, channel, cqe, resizing: Mutex::new(()) })
    }
}

/// A CQ without locks, or `None` where the provider has none such (or refuses for any other
/// reason, which then the ordinary creation reports).
fn create_single_threaded(
    context: &HcaContext,
    attr: &mut abi::CqInitAttrEx,
) -> Option<Handle<abi::Cq>> {
    // SAFETY: the context is open.
    let create = unsafe { VerbsContext::op(context.raw.ptr(), VerbsContext::CREATE_CQ_EX) }?;
    // SAFETY: the context is open, and the attributes' pointers are null or of its own objects.
    raw::created(unsafe { create(context.raw.ptr(), attr) }).ok()
}

fn own_channel(
    context: &Arc<HcaContext>,
    channel: Arc<dyn crate::device::DeviceChannel>,
) -> Result<Arc<HcaChannel>> {
    let channel: Arc<dyn Any + Send + Sync> = channel;
    channel
        .downcast::<HcaChannel>()
        .ok()
        .filter(|channel| Arc::ptr_eq(&channel.context, context))
        .ok_or_else(|| {
            Error::invalid(format!(
                "creating a CQ on {}: the completion channel is of another context",
                context.name
            ))
        })
}

fn refused(context: &HcaContext, errno: i32, cqe: u32) -> Error {
    let asks = [Ask {
        what: "cqe",
        asked: u64::from(cqe),
        limit: "max_cqe",
        allowed: |attr| attr.max_cqe,
    }];
    limits::refused(context, errno, "creating a CQ", &asks, ("max_cq", |attr| attr.max_cq))
}

/// How many completions the CQ holds. Nobody may be resizing it.
fn granted(cq: &Handle<abi::Cq>) -> u32 {
    // SAFETY: the CQ exists, and only a resize writes this field.
    u32::try_from(unsafe { (*cq.ptr()).cqe }).unwrap_or(0)
}

impl Drop for HcaCq {
    fn drop(&mut self) {
        // SAFETY: the CQ exists, and all QPs on it held it and are gone. All of its events that
        // were taken are acknowledged, so this does not wait for any.
        let answer = unsafe { (self.context.verbs.ibv_destroy_cq)(self.raw.ptr()) };
        raw::log_undestroyed(answer, format_args!("a CQ of {}", self.context.name));
    }
}

impl DeviceCq for HcaCq {
    fn cqe(&self) -> u32 {
        self.cqe.load(Ordering::Relaxed)
    }

    fn poll(&self, wcs: &mut [abi::Wc]) -> Polled {
        let cq = self.raw.ptr();
        let room = c_int::try_from(wcs.len()).unwrap_or(c_int::MAX);
        // SAFETY: the CQ and its context exist.
        let Some(poll) = (unsafe { (*(*cq).context).ops.poll_cq }) else {
            return Err(libc::ENOSYS);
        };
        // SAFETY: the CQ exists, and there is room for as many completions as is said.
        let polled = unsafe { poll(cq, room, wcs.as_mut_ptr()) };
        // Providers return negative codes of their own, which are no errnos.
        u32::try_from(polled).map_err(|_| libc::EIO)
    }

    fn req_notify(&self, solicited_only: bool) -> Result<()> {
        let name = &self.context.name;
        if self.channel.is_none() {
            return Err(Error::invalid(format!(
                "arming a CQ of {name}: it was created without a completion channel"
            )));
        }
        let cq = self.raw.ptr();
        // SAFETY: the CQ and its context exist.
        let Some(notify) = (unsafe { (*(*cq).context).ops.req_notify_cq }) else {
            return Err(Error::unsupported(format!("{name} cannot arm a CQ")));
        };
        // SAFETY: the CQ exists.
        raw::status(unsafe { notify(cq, c_int::from(solicited_only)) })
            .map_err(|errno| raw::error(errno, format_args!("arming a CQ of {name}")))
    }

    fn resize(&self, cqe: u32) -> Result<()> {
        let _one_at_a_time = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = c_int::try_from(cqe).unwrap_or(c_int::MAX);
        // SAFETY: the CQ exists.
        let answer = unsafe { (self.context.verbs.ibv_resize_cq)(self.raw.ptr(), wanted) };
        raw::status(answer).map_err(|errno| {
            refused(&self.context, errno, cqe).context(format_args!("resizing to {cqe}"))
        })?;
        self.cqe.store(granted(&self.raw), Ordering::Relaxed);
        Ok(())
    }
}
