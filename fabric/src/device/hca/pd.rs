//! Protection domains, and the thread domain of a single-threaded one.

use super::ah::HcaAh;
use super::context::HcaContext;
use super::mr::HcaMr;
use super::qp::HcaQp;
use super::raw::{self, Handle};
use super::srq::HcaSrq;
use crate::Result;
use crate::abi::{self, VerbsContext};
use crate::device::{DeviceAh, DeviceMr, DevicePd, DeviceQp, DeviceSrq, PdInit, QpInit, SrqInit};
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

pub(super) struct HcaPd {
    pub(super) context: Arc<HcaContext>,
    /// What objects are created from: the parent domain where there is one, else the plain one.
    pub(super) raw: Handle<abi::Pd>,
    single: Option<SingleThreaded>,
}

/// What stands below a parent domain, and outlives it.
struct SingleThreaded {
    plain: Handle<abi::Pd>,
    thread: Handle<abi::Td>,
    dealloc_td: abi::DeallocTd,
}

impl HcaPd {
    pub(super) fn alloc(context: Arc<HcaContext>, init: PdInit) -> Result<Self> {
        // SAFETY: the context is open.
        let allocated = unsafe { (context.verbs.ibv_alloc_pd)(context.raw.ptr()) };
        let raw = raw::created(allocated).map_err(|errno| {
            let most = ("max_pd", (|attr| attr.max_pd) as fn(&abi::DeviceAttr) -> i32);
            super::limits::refused(&context, errno, "allocating a protection domain", &[], most)
        })?;
        let mut pd = HcaPd { context, raw, single: None };
        if init.single_threaded && !pd.make_single_threaded() {
            tracing::debug!(device = pd.context.name, "no thread domain: its locks are taken");
        }
        Ok(pd)
    }

    /// Puts a parent domain with a thread domain over the plain one. Where the library or the
    /// provider has none (rxe), or allows no more, the domain stays plain, with locks: they are
    /// correct in every case, and merely slower.
    fn make_single_threaded(&mut self) -> bool {
        let context = self.context.raw.ptr();
        // SAFETY: the context is open.
        let ops = unsafe {
            (
                VerbsContext::op(context, VerbsContext::ALLOC_TD),
                VerbsContext::op(context, VerbsContext::DEALLOC_TD),
                VerbsContext::op(context, VerbsContext::ALLOC_PARENT_DOMAIN),
            )
        };
        let (Some(alloc_td), Some(dealloc_td), Some(alloc_parent)) = ops else { return false };
        let mut attr = abi::TdInitAttr::default();
        // SAFETY: the context is open, and the attributes are valid.
        let Ok(thread) = raw::created(unsafe { alloc_td(context, &raw mut attr) }) else {
            return false;
        };
        let mut attr = abi::ParentDomainInitAttr {
            pd: self.raw.ptr(),
            td: thread.ptr(),
            comp_mask: 0,
            alloc: None,
            free: None,
            pd_context: ptr::null_mut(),
        };
        // SAFETY: the context is open, and both domains are its own.
        match raw::created(unsafe { alloc_parent(context, &raw mut attr) }) {
            Ok(parent) => {
                let plain = std::mem::replace(&mut self.raw, parent);
                self.single = Some(SingleThreaded { plain, thread, dealloc_td });
                true
            }
            Err(_) => {
                // SAFETY: the thread domain exists, and nothing uses it.
                let answer = unsafe { dealloc_td(thread.ptr()) };
                raw::log_undestroyed(answer, format_args!("a thread domain"));
                false
            }
        }
    }
}

impl Drop for HcaPd {
    fn drop(&mut self) {
        let name = &self.context.name;
        // SAFETY: the domain exists, and all that was created from it held it and is gone.
        let answer = unsafe { (self.context.verbs.ibv_dealloc_pd)(self.raw.ptr()) };
        raw::log_undestroyed(answer, format_args!("a protection domain of {name}"));
        let Some(below) = self.single.take() else { return };
        // SAFETY: the thread domain exists, and the parent domain that used it is gone.
        let answer = unsafe { (below.dealloc_td)(below.thread.ptr()) };
        raw::log_undestroyed(answer, format_args!("a thread domain of {name}"));
        // SAFETY: the plain domain exists, and the parent domain over it is gone.
        let answer = unsafe { (self.context.verbs.ibv_dealloc_pd)(below.plain.ptr()) };
        raw::log_undestroyed(answer, format_args!("a protection domain of {name}"));
    }
}

impl DevicePd for HcaPd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        // SAFETY: the caller's promises are those that this asks for.
        Ok(Arc::new(unsafe { HcaMr::register(self, addr, length, flags) }?))
    }

    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        Ok(Arc::new(HcaQp::create(self, init)?))
    }

    fn create_srq(self: Arc<Self>, init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        Ok(Arc::new(HcaSrq::create(self, init)?))
    }

    fn create_ah(self: Arc<Self>, attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>> {
        Ok(Arc::new(HcaAh::create(self, attr)?))
    }
}
