//! Virtual shared receive queues.

use super::local::Local;
use super::lock::Side;
use super::qp::RecvLowering;
use super::underlay::Underlay;
use super::{QPN_SHIFT, SHARED};
use crate::abi::{self, RecvWr, SrqAttr};
use crate::device::{DeviceSrq, PostError, PostRecv, SrqInit};
use crate::error::Result;
use sojourn_logging::{Element, Refused, SharedRecvWindow};
use std::sync::Arc;

/// A shared receive queue, as its posters and the pollers of its queue pairs share it.
pub(super) struct SrqCore {
    pub(super) number: u32,
    pub(super) user: u64,
    pub(super) window: SharedRecvWindow,
    max_sge: u32,
    side: Side<RecvLowering>,
    physical: Arc<dyn DeviceSrq>,
    local: Arc<Local>,
}

impl SrqCore {
    pub(super) fn new(
        local: &Arc<Local>,
        underlay: &Arc<Underlay>,
        number: u32,
        init: &SrqInit,
        single_threaded: bool,
        physical: Arc<dyn DeviceSrq>,
    ) -> Self {
        let max_sge = init.attr.max_sge.min(u32::from(u8::MAX)) as u8;
        let lowering = RecvLowering::new(underlay.keys.clone(), max_sge);
        SrqCore {
            number,
            user: init.user,
            window: SharedRecvWindow::new(init.attr.max_wr, max_sge),
            max_sge: u32::from(max_sge),
            side: Side::new(lowering, single_threaded),
            physical,
            local: Arc::clone(local),
        }
    }

    pub(super) fn physical(&self) -> &Arc<dyn DeviceSrq> {
        &self.physical
    }

    /// # Safety
    /// As [`DeviceSrq::post_recv`].
    unsafe fn post(&self, list: *mut RecvWr) -> PostRecv {
        let mut side = self.side.enter();
        let mut next = list;
        // SAFETY: the caller's list is valid during the call.
        while let Some(wr) = unsafe { next.as_ref() } {
            let failed = |errno| Err(PostError::new(errno, next));
            if wr.num_sge as u32 > self.max_sge {
                return failed(libc::EINVAL);
            }
            // SAFETY: the caller's promise.
            let sges = unsafe { super::qp::sges(wr.sg_list, wr.num_sge) };
            let elements = sges.iter().map(|sge| Element {
                addr: sge.addr,
                length: sge.length,
                lkey: sge.lkey,
            });
            let slot = match self.window.append(wr.wr_id, elements) {
                Ok(slot) => slot,
                Err(Refused::Full) => return failed(libc::ENOMEM),
                Err(_) => return failed(libc::EINVAL),
            };
            let wr_id = SHARED | u64::from(self.number) << QPN_SHIFT | u64::from(slot);
            side.lower(0, wr_id, sges);
            // SAFETY: one receive of ours, whose elements name what the program's named.
            if let Err((_, errno)) = side.hand(1, |list| unsafe { self.physical.post_recv(list) }) {
                self.window.retire(slot);
                return failed(errno);
            }
            next = wr.next;
        }
        Ok(())
    }
}

impl Drop for SrqCore {
    fn drop(&mut self) {
        self.local.srqs.remove(self.number);
    }
}

/// The shared receive queue that a program holds.
pub(super) struct VirtualSrq(pub(super) Arc<SrqCore>);

impl DeviceSrq for VirtualSrq {
    unsafe fn post_recv(&self, wr: *mut RecvWr) -> PostRecv {
        // SAFETY: the caller's promise.
        unsafe { self.0.post(wr) }
    }

    fn modify(&self, attr: &SrqAttr, mask: u32) -> Result<()> {
        if mask & abi::srq_mask::MAX_WR != 0 {
            return Err(crate::Error::unsupported(format!(
                "resizing a shared receive queue to {}: a virtual one keeps the size that it was \
                 created with ({})",
                attr.max_wr,
                self.0.window.depth()
            )));
        }
        // The device's may be larger than what was asked for.
        let depth = self.0.window.depth();
        if mask & abi::srq_mask::LIMIT != 0 && attr.srq_limit > depth {
            return Err(crate::Error::invalid(format!(
                "a limit of {} for a shared receive queue of {depth}",
                attr.srq_limit
            )));
        }
        self.0.physical.modify(attr, mask)
    }

    fn query(&self) -> Result<SrqAttr> {
        let physical = self.0.physical.query()?;
        Ok(SrqAttr { max_wr: self.0.window.depth(), max_sge: self.0.max_sge, ..physical })
    }
}
