//! Virtual protection domains: where objects with virtual names are created.

use super::ah::{AhCore, VirtualAh};
use super::context::VirtualContext;
use super::cq::{CqCore, VirtualCq, sends};
use super::image::PdImage;
use super::local::{read, write};
use super::lock_mutex;
use super::mr::VirtualMr;
use super::qp::{Attachment, PhysicalParts, QpParts, VirtualQp, most_sends, physical_sends};
use super::record::Records;
use super::retain::{Retention, Ring};
use super::srq::{SrqCore, VirtualSrq};
use super::underlay::Underlay;
use crate::abi::{self, QpCap, qp_type};
use crate::device::{
    DeviceAh, DeviceCq, DeviceMr, DevicePd, DeviceQp, DeviceSrq, PdInit, QpInit, SrqInit,
};
use crate::error::{Error, Result};
use crate::names::DeviceId;
use std::any::Any;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, RwLock};

/// A device, and the domain on it.
type OnDevice = (Arc<Underlay>, Arc<dyn DevicePd>);

/// A protection domain, as all that was made from it shares it.
pub(super) struct PdCore {
    pub(super) context: Arc<VirtualContext>,
    single_threaded: bool,
    /// The physical one on each device in use.
    on: RwLock<Vec<OnDevice>>,
    /// Words of its queue pairs.
    pub(super) records: Records,
}

impl PdCore {
    pub(super) fn new(context: Arc<VirtualContext>, single_threaded: bool) -> Result<Arc<Self>> {
        let (on, records) = (RwLock::default(), Records::default());
        let pd = PdCore { context, single_threaded, on, records };
        for underlay in pd.context.underlays() {
            pd.extend(&underlay)?;
        }
        Ok(Arc::new(pd))
    }

    /// Writes it down.
    pub(super) fn image(&self) -> PdImage {
        PdImage { single_threaded: self.single_threaded }
    }

    /// What tells it apart from others as long as it is there.
    pub(super) fn identity(pd: &Arc<Self>) -> usize {
        Arc::as_ptr(pd) as usize
    }

    /// Is on that device, too.
    pub(super) fn extend(&self, underlay: &Arc<Underlay>) -> Result<()> {
        // Our locks are the only ones.
        let physical = PdInit { single_threaded: true };
        let pd = Arc::clone(&underlay.device).alloc_pd(physical)?;
        write(&self.on).push((Arc::clone(underlay), pd));
        Ok(())
    }

    /// Is not on that device any more.
    pub(super) fn retract(&self, device: DeviceId) {
        self.records.retract(device);
        write(&self.on).retain(|(underlay, _)| underlay.id != device);
    }

    /// The physical one on a device.
    pub(super) fn physical_on(&self, device: DeviceId) -> Option<Arc<dyn DevicePd>> {
        let on = read(&self.on);
        on.iter().find(|(underlay, _)| underlay.id == device).map(|(_, pd)| Arc::clone(pd))
    }

    /// All of them, with their devices.
    pub(super) fn all(&self) -> Vec<OnDevice> {
        read(&self.on).clone()
    }
}

/// The protection domain that a program holds.
pub(super) struct VirtualPd(pub(super) Arc<PdCore>, Mutex<Option<Arc<Ring>>>);

impl VirtualPd {
    pub(super) fn new(core: Arc<PdCore>) -> Self {
        VirtualPd(core, Mutex::default())
    }

    /// The message log of its reliable queue pairs, where there is to be one: made for the first.
    fn ring(&self) -> Result<Option<Arc<Ring>>> {
        let context = &self.0.context;
        let retention = context.retention();
        if *retention == Retention::Descriptor {
            return Ok(None);
        }
        let mut ring = lock_mutex(&self.1);
        if ring.is_none() {
            let new = Ring::new(&self.0, retention)?;
            context.add_store(&new.store);
            *ring = Some(Arc::new(new));
        }
        Ok(ring.clone())
    }
}

/// The sizes that a physical queue pair must have on a device; an error that names the limit where
/// one is beyond the device's.
pub(super) fn physical_cap(
    underlay: &Underlay,
    qp_type: u32,
    cap: &QpCap,
    srq: bool,
) -> Result<QpCap> {
    let attr = underlay.device.query_device()?;
    let name = underlay.device.name();
    let check = |what: &str, wanted: u32, limit: u32| {
        if wanted <= limit {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "a queue pair with {what} of {wanted}: virtual verbs over {name} have {limit} at most"
        )))
    };
    let wrs = most_sends(qp_type, attr.max_qp_wr.max(0) as u32);
    let sges = (attr.max_sge.max(0) as u32).min(u32::from(u8::MAX));
    check("max_send_wr", cap.max_send_wr, wrs)?;
    check("max_send_sge", cap.max_send_sge, sges)?;
    if !srq {
        check("max_recv_wr", cap.max_recv_wr, wrs)?;
        check("max_recv_sge", cap.max_recv_sge, sges)?;
    }
    Ok(QpCap { max_send_wr: physical_sends(qp_type, cap.max_send_wr), ..*cap })
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

/// A queue pair that is wanted.
pub(super) struct QpWanted {
    pub(super) qp_type: u32,
    pub(super) cap: QpCap,
    pub(super) sig_all: bool,
    pub(super) send_cq: Arc<CqCore>,
    pub(super) recv_cq: Arc<CqCore>,
    pub(super) srq: Option<Arc<SrqCore>>,
    /// Its number, where that was dealt already.
    pub(super) qpn: Option<u32>,
}

impl VirtualPd {
    /// A queue pair in RESET. While nothing of the context moves.
    pub(super) fn make_qp(&self, wanted: QpWanted) -> Result<VirtualQp> {
        let context = &self.0.context;
        let QpWanted { qp_type, mut cap, sig_all, send_cq, recv_cq, srq, qpn } = wanted;
        if srq.is_some() {
            (cap.max_recv_wr, cap.max_recv_sge) = (0, 0);
        }
        let ring = if qp_type == qp_type::RC { self.ring()? } else { None };
        let underlay = context.underlay();
        let physical_cap = physical_cap(&underlay, qp_type, &cap, srq.is_some())?;
        let room = Room::reserve([
            (Arc::clone(&send_cq), sends(qp_type, &cap), None),
            (Arc::clone(&recv_cq), u64::from(cap.max_recv_wr), srq.clone()),
        ])?;
        let attachment = Attachment::create(
            &self.0,
            &underlay,
            &PhysicalParts {
                qp_type,
                cap: physical_cap,
                send_cq: &send_cq,
                recv_cq: &recv_cq,
                srq: srq.as_ref().map(|srq| srq.physical()),
            },
        )?;
        let parts = QpParts {
            pd: Arc::clone(&self.0),
            attachment,
            qp_type,
            cap,
            sig_all,
            single_threaded: self.0.single_threaded,
            send_cq,
            recv_cq,
            srq,
            ring,
        };
        let qp = match qpn {
            Some(qpn) => VirtualQp::named(&parts, qpn),
            None => VirtualQp::new(&parts),
        }?;
        context.qps.add(qp.core());
        context.lookout.begin(context);
        // From here on the queue pair sees to it.
        room.keep();
        Ok(qp)
    }
}

impl VirtualPd {
    /// A shared receive queue without receives. While nothing of the context moves.
    pub(super) fn make_srq(&self, init: &SrqInit) -> Result<Arc<SrqCore>> {
        let context = &self.0.context;
        let srqs = &context.local().srqs;
        let new = |number| SrqCore::new(&self.0, number, init, self.0.single_threaded);
        let srq = srqs.try_add(new)?;
        context.srqs.add(&srq);
        Ok(srq)
    }
}

impl DevicePd for VirtualPd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        let _settled = self.0.context.settled();
        // SAFETY: the caller's promise.
        let mr = Arc::new(unsafe { VirtualMr::register(&self.0, addr, length, flags) }?);
        self.0.context.mrs.add(&mr);
        Ok(mr)
    }

    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        if !matches!(init.qp_type, qp_type::RC | qp_type::UC | qp_type::UD) {
            return Err(Error::unsupported(format!(
                "a queue pair of type {} ({}): virtual ones are RC, UC or UD",
                abi::qp_type::name(init.qp_type),
                init.qp_type
            )));
        }
        let _settled = self.0.context.settled();
        let srq = match &init.srq {
            Some(srq) => {
                let srq: Arc<dyn Any + Send + Sync> = Arc::clone(srq) as _;
                Some(Arc::clone(&own::<VirtualSrq>(srq, "the SRQ")?.0))
            }
            None => None,
        };
        Ok(Arc::new(self.make_qp(QpWanted {
            qp_type: init.qp_type,
            cap: init.cap,
            sig_all: init.sq_sig_all,
            send_cq: own_cq(&init.send_cq)?,
            recv_cq: own_cq(&init.recv_cq)?,
            srq,
            qpn: None,
        })?))
    }

    fn create_srq(self: Arc<Self>, init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        let _settled = self.0.context.settled();
        Ok(Arc::new(VirtualSrq(self.make_srq(&init)?)))
    }

    fn create_ah(self: Arc<Self>, attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>> {
        let _settled = self.0.context.settled();
        let ah = AhCore::new(&self.0, attr)?;
        self.0.context.ahs.add(&ah);
        Ok(Arc::new(VirtualAh(ah)))
    }
}
