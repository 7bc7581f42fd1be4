//! Address handles: a process of the job, or somewhere foreign.
//!
//! The physical handle is made when the first datagram is about to go, because only then the
//! peer's queue pair number says over which of its ports it is reached.

use super::image::AddressHandleImage;
use super::local::{read, write};
use super::pd::PdCore;
use super::peer::{NOWHERE, Peer};
use super::underlay::Underlay;
use crate::abi;
use crate::device::{DeviceAh, DevicePd};
use crate::error::{Error, Result};
use crate::names::{DeviceId, PhysicalEnd};
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, RwLock};

/// Where datagrams with a handle go.
pub(super) enum Destination {
    /// To a process of the job.
    Peer(Arc<Peer>),
    /// Outside: the address was physical already.
    Foreign(Arc<dyn DeviceAh>),
}

impl Destination {
    /// Outside the job: it keeps this process where it is.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Destination::Foreign(_))
    }
}

/// Our device, the number of the peer's end, the physical handle.
type Made = (DeviceId, u8, Arc<dyn DeviceAh>);

/// A virtual address handle. What programs hold points here: C code finds the fields of
/// `struct ibv_ah` at the front.
#[repr(C)]
pub(super) struct AhCore {
    header: abi::Ah,
    /// Its number in the windows of queue pairs: a handle may be gone before its entry is.
    pub(super) number: u32,
    pub(super) destination: Destination,
    attr: abi::AhAttr,
    pd: Arc<PdCore>,
    /// Physical handles, by our device and the number of the peer's end: almost always one.
    made: RwLock<Vec<Made>>,
}

// SAFETY: the pointers of the header are not used here, and null.
unsafe impl Send for AhCore {}
// SAFETY: as above; everything else is `Sync`.
unsafe impl Sync for AhCore {}

/// What physical handles are made from.
#[derive(Clone)]
pub(super) struct AhPd {
    pub(super) underlay: Arc<Underlay>,
    pub(super) pd: Arc<dyn DevicePd>,
}

impl AhPd {
    fn of(pd: &PdCore, underlay: &Arc<Underlay>) -> Result<Self> {
        let physical = pd.physical_on(underlay.id).ok_or_else(|| {
            Error::new(libc::EIO, format!("no protection domain on {}", underlay.device.name()))
        })?;
        Ok(AhPd { underlay: Arc::clone(underlay), pd: physical })
    }

    fn make(&self, wanted: &abi::AhAttr, end: &PhysicalEnd) -> Result<Arc<dyn DeviceAh>> {
        Arc::clone(&self.pd).create_ah(&self.underlay.route(wanted, end)?)
    }

    /// A handle to ourselves, for datagrams to a queue pair that does not exist.
    pub(super) fn nowhere(&self, port: u8) -> Result<Arc<dyn DeviceAh>> {
        let wanted = abi::AhAttr { port_num: port, ..abi::AhAttr::default() };
        self.make(&wanted, &self.underlay.end(port, 0)?)
    }
}

impl AhCore {
    pub(super) fn new(pd: &Arc<PdCore>, attr: &abi::AhAttr) -> Result<Arc<Self>> {
        Self::numbered(pd, attr, None)
    }

    /// The same, under that number, where there is one.
    pub(super) fn numbered(
        pd: &Arc<PdCore>,
        attr: &abi::AhAttr,
        number: Option<u32>,
    ) -> Result<Arc<Self>> {
        let local = pd.context.local();
        let on = AhPd::of(pd, &pd.context.underlay())?;
        let ports = on.underlay.device.query_device()?.phys_port_cnt;
        if !(1..=ports).contains(&attr.port_num) {
            return Err(Error::invalid(format!(
                "an address vector with port {}: the device has ports 1 to {ports}",
                attr.port_num
            )));
        }
        let gid = (attr.is_global != 0).then_some(attr.grh.dgid.0);
        if gid.is_some() && attr.grh.sgid_index != 0 {
            return Err(Error::invalid(format!(
                "an address vector with GID index {}: a virtual port has one GID, index 0",
                attr.grh.sgid_index
            )));
        }
        let destination = match local.process_at(attr.dlid, gid) {
            Some(process) => Destination::Peer(local.peer(process)),
            None => {
                let physical = on.underlay.foreign_route(attr)?;
                tracing::info!("an address handle to {attr:?}, which is outside the job");
                Destination::Foreign(Arc::clone(&on.pd).create_ah(&physical)?)
            }
        };
        let header = abi::Ah { context: ptr::null_mut(), pd: ptr::null_mut(), handle: 0 };
        local.ahs.try_add_as(number, |number| {
            Ok(AhCore {
                header,
                number,
                destination,
                attr: *attr,
                pd: Arc::clone(pd),
                made: RwLock::default(),
            })
        })
    }

    /// The physical handle on our device `on` to the peer's end of that number; `None` where there is
    /// none to be had.
    #[inline]
    pub(super) fn physical(&self, on: DeviceId, end: u8) -> Option<*mut c_void> {
        let made = read(&self.made);
        let ours = |(device, number, _): &&Made| (*device, *number) == (on, end);
        let found = made.iter().find(ours).map(|(_, _, ah)| ah.as_raw());
        drop(made);
        found.or_else(|| self.make(on, end))
    }

    #[cold]
    fn make(&self, on: DeviceId, end: u8) -> Option<*mut c_void> {
        let Destination::Peer(peer) = &self.destination else { return None };
        if end == NOWHERE {
            return None;
        }
        let physical = peer.end(end)?;
        let (underlay, pd) = self.pd.all().into_iter().find(|(it, _)| it.id == on)?;
        match (AhPd { underlay, pd }).make(&self.attr, &physical) {
            Ok(ah) => {
                let raw = ah.as_raw();
                write(&self.made).push((on, end, ah));
                Some(raw)
            }
            Err(error) => {
                tracing::error!("datagrams to {} are dropped: {error}", peer.process);
                None
            }
        }
    }

    /// Writes it down. `pd` is where its domain is in the image.
    pub(super) fn image(&self, pd: u32) -> AddressHandleImage {
        AddressHandleImage { number: self.number, pd, to: (&self.attr).into() }
    }

    /// The domain that it was made in.
    pub(super) fn pd(&self) -> &Arc<PdCore> {
        &self.pd
    }

    /// Has no handle on that device any more.
    pub(super) fn retract(&self, device: DeviceId) {
        write(&self.made).retain(|(on, _, _)| *on != device);
    }
}

impl Drop for AhCore {
    fn drop(&mut self) {
        self.pd.context.local().ahs.remove(self.number);
    }
}

/// What [`DevicePd::create_ah`] of a virtual domain returns.
pub(super) struct VirtualAh(pub(super) Arc<AhCore>);

impl DeviceAh for VirtualAh {
    fn as_raw(&self) -> *mut c_void {
        debug_assert!(self.0.header.context.is_null());
        Arc::as_ptr(&self.0).cast_mut().cast()
    }
}
