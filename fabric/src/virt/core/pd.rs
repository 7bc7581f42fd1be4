//! Virtual protection domains: where objects with virtual names are created.

use super::ah::{AhCore, AhPd, VirtualAh};
use super::context::VirtualContext;
use super::cq::{CqCore, VirtualCq, sends};
use super::mr::VirtualMr;
use super::qp::{Attachment, HIDDEN_SENDS, QpParts, VirtualQp};
use super::srq::{SrqCore, VirtualSrq};
use crate::abi::{self, QpCap, qp_type};
use crate::device::{DeviceAh, DeviceCq, DeviceMr, DevicePd, DeviceQp, DeviceSrq, QpInit, SrqInit};
use crate::error::{Error, Result};
use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;

/// A protection domain, with its physical one on the device in use.
pub(super) struct VirtualPd {
    context: Arc<VirtualContext>,
    physical: Arc<dyn DevicePd>,
    single_threaded: bool,
}

impl VirtualPd {
    pub(super) fn new(
        context: Arc<VirtualContext>,
        physical: Arc<dyn DevicePd>,
        single_threaded: bool,
    ) -> Self {
        VirtualPd { context, physical, single_threaded }
    }

    /// The sizes that a physical queue pair must have; an error that names the limit where it is
    /// beyond the device's.
    fn physical_cap(&self, cap: &QpCap, srq: bool) -> Result<QpCap> {
        let attr = self.context.underlay().device.query_device()?;
        let name = self.context.underlay().device.name();
        let check = |what: &str, wanted: u32, limit: u32| {
            if wanted <= limit {
                return Ok(());
            }
            Err(Error::invalid(format!(
                "a queue pair with {what} of {wanted}: virtual verbs over {name} have {limit} at most"
            )))
        };
        let wrs = (attr.max_qp_wr.max(0) as u32).saturating_sub(HIDDEN_SENDS);
        let sges = (attr.max_sge.max(0) as u32).min(u32::from(u8::MAX));
        check("max_send_wr", cap.max_send_wr, wrs)?;
        check("max_send_sge", cap.max_send_sge, sges)?;
        if !srq {
            check("max_recv_wr", cap.max_recv_wr, wrs)?;
            check("max_recv_sge", cap.max_recv_sge, sges)?;
        }
        Ok(QpCap { max_send_wr: cap.max_send_wr + HIDDEN_SENDS, ..*cap })
    }
}

/// The virtual object behind a trait object, or an error that says whose it is not.
fn own<T: Any + Send + Sync>(object: Arc<dyn Any + Send + Sync>, what: &str) -> Result<Arc<T>> {
    object.downcast::<T>().map_err(|_| {
        Error::invalid(format!("{what} of a new queue pair is not one of virtual verbs"))
    })
}

fn own_cq(cq: &Arc<dyn DeviceCq>) -> Result<Arc<CqCore>> {
    let cq: Arc<dyn Any + Send + Sync> = Arc::clone(cq) as _;
    Ok(Arc::clone(own::<VirtualCq>(cq, "the CQ")?.core()))
}

/// A CQ, and what it must hold of a queue pair: completions of its own, and of an SRQ.
type Share = (Arc<CqCore>, u64, Option<Arc<SrqCore>>);

/// Room in the CQs for the completions of a queue pair that is being created: taken back where
/// that fails.
struct Room {
    of: Option<[Share; 2]>,
}

impl Room {
    fn reserve(of: [Share; 2]) -> Result<Self> {
        let [(cq, n, srq), (other, m, shared)] = &of;
        cq.reserve(*n, srq.as_deref())?;
        if let Err(error) = other.reserve(*m, shared.as_deref()) {
            cq.release(*n, srq.as_deref());
            return Err(error);
        }
        Ok(Room { of: Some(of) })
    }

    fn keep(mut self) {
        self.of = None;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (cq, n, srq) in self.of.iter().flatten() {
            cq.release(*n, srq.as_deref());
        }
    }
}

impl DevicePd for VirtualPd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        let underlay = Arc::clone(self.context.underlay());
        let pd = Arc::clone(&self.physical);
        let local = self.context.local();
        // SAFETY: the caller's promise.
        Ok(Arc::new(unsafe { VirtualMr::register(local, underlay, pd, addr, length, flags) }?))
    }

    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        if !matches!(init.qp_type, qp_type::RC | qp_type::UC | qp_type::UD) {
            return Err(Error::unsupported(format!(
                "a queue pair of type {} ({}): virtual ones are RC, UC or UD",
                abi::qp_type::name(init.qp_type),
                init.qp_type
            )));
        }
        let (send_cq, recv_cq) = (own_cq(&init.send_cq)?, own_cq(&init.recv_cq)?);
        let srq = match &init.srq {
            Some(srq) => {
                let srq: Arc<dyn Any + Send + Sync> = Arc::clone(srq) as _;
                Some(Arc::clone(&own::<VirtualSrq>(srq, "the SRQ")?.0))
            }
            None => None,
        };
        let mut cap = init.cap;
        if srq.is_some() {
            (cap.max_recv_wr, cap.max_recv_sge) = (0, 0);
        }
        let physical_cap = self.physical_cap(&cap, srq.is_some())?;
        let underlay = Arc::clone(self.context.underlay());
        let cq = |cq: &CqCore| {
            cq.physical_on(underlay.id).ok_or_else(|| {
                Error::invalid("a queue pair and its CQs must be of the same context")
            })
        };
        let room = Room::reserve([
            (Arc::clone(&send_cq), sends(&cap), None),
            (Arc::clone(&recv_cq), u64::from(cap.max_recv_wr), srq.clone()),
        ])?;
        let qp = Arc::clone(&self.physical).create_qp(&QpInit {
            qp_type: init.qp_type,
            cap: physical_cap,
            // Every request says itself whether it is signalled.
            sq_sig_all: false,
            send_cq: cq(&send_cq)?,
            recv_cq: cq(&recv_cq)?,
            srq: srq.as_ref().map(|srq| Arc::clone(srq.physical())),
        })?;
        let attachment = Attachment { underlay, pd: Arc::clone(&self.physical), qp };
        let qp = VirtualQp::new(&QpParts {
            local: Arc::clone(self.context.local()),
            attachment,
            qp_type: init.qp_type,
            cap,
            sig_all: init.sq_sig_all,
            single_threaded: self.single_threaded,
            send_cq,
            recv_cq,
            srq,
        })?;
        // From here on the queue pair sees to it.
        room.keep();
        Ok(Arc::new(qp))
    }

    fn create_srq(self: Arc<Self>, init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        let local = self.context.local();
        let srq = local.srqs.try_add(|number| {
            let physical = SrqInit { user: u64::from(number), ..init };
            let srq = Arc::clone(&self.physical).create_srq(physical)?;
            let underlay = self.context.underlay();
            Ok(SrqCore::new(local, underlay, number, &init, self.single_threaded, srq))
        })?;
        Ok(Arc::new(VirtualSrq(srq)))
    }

    fn create_ah(self: Arc<Self>, attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>> {
        let on =
            AhPd { underlay: Arc::clone(self.context.underlay()), pd: Arc::clone(&self.physical) };
        Ok(Arc::new(VirtualAh(AhCore::new(self.context.local(), on, attr)?)))
    }
}
