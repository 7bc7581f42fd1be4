//! Virtual shared receive queues.

use super::image::{ReceiveImage, SrqImage};
use super::lock::Side;
use super::pd::PdCore;
use super::qp::RecvLowering;
use super::underlay::Underlay;
use super::{QPN_SHIFT, SHARED};
use crate::abi::{self, RecvWr, Sge, SrqAttr};
use crate::device::{DeviceSrq, PostError, PostRecv, SrqInit};
use crate::error::{Error, Result};
use sojourn_logging::{Element, Refused, SharedRecvWindow};
use std::sync::Arc;

fn physical(
    pd: &PdCore,
    underlay: &Arc<Underlay>,
    number: u32,
    attr: SrqAttr,
) -> Result<Arc<dyn DeviceSrq>> {
    let physical = pd.physical_on(underlay.id).ok_or_else(|| {
        Error::new(libc::EIO, format!("no protection domain on {}", underlay.device.name()))
    })?;
    physical.create_srq(SrqInit { attr, user: u64::from(number) })
}

/// A shared receive queue, as its posters and the pollers of its queue pairs share it.
pub(super) struct SrqCore {
    pub(super) number: u32,
    pub(super) user: u64,
    pub(super) window: SharedRecvWindow,
    pub(super) pd: Arc<PdCore>,
    max_sge: u32,
    side: Side<SrqSide>,
    single_threaded: bool,
    /// What is received here is recorded.
    pub(super) tracked: bool,
}

/// What a poster needs, behind the lock.
struct SrqSide {
    lowering: RecvLowering,
    physical: Arc<dyn DeviceSrq>,
}

impl SrqCore {
    pub(super) fn new(
        pd: &Arc<PdCore>,
        number: u32,
        init: &SrqInit,
        single_threaded: bool,
    ) -> Result<Self> {
        let max_sge = init.attr.max_sge.min(u32::from(u8::MAX)) as u8;
        let underlay = pd.context.underlay();
        let physical = physical(pd, &underlay, number, init.attr)?;
        let lowering = RecvLowering::new(underlay.keys.clone(), max_sge);
        Ok(SrqCore {
            number,
            user: init.user,
            window: SharedRecvWindow::new(init.attr.max_wr, max_sge),
            pd: Arc::clone(pd),
            max_sge: u32::from(max_sge),
            side: Side::new(SrqSide { lowering, physical }, single_threaded),
            single_threaded,
            tracked: pd.context.tracks(),
        })
    }

    /// The physical one. For the control path.
    pub(super) fn physical(&self) -> Arc<dyn DeviceSrq> {
        // Whoever is the only one to post may be posting now.
        let side = if self.single_threaded { self.side.visit() } else { self.side.enter() };
        Arc::clone(&side.physical)
    }

    /// It has no receive.
    pub(super) fn is_empty(&self) -> bool {
        (0..self.window.depth()).all(|slot| self.window.order(slot).is_none())
    }

    /// Its receives, by the slots that they are in, in the order in which they were posted.
    fn in_order(&self) -> Vec<u32> {
        let mut receives: Vec<(u64, u32)> = (0..self.window.depth())
            .filter_map(|slot| Some((self.window.order(slot)?, slot)))
            .collect();
        receives.sort_unstable();
        receives.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Writes it down. `pd` is where its domain is in the image.
    pub(super) fn image(&self, pd: u32) -> SrqImage {
        let limit = self.physical().query().map_or(0, |attr| attr.srq_limit);
        let receive = |slot: u32| {
            let entry = self.window.entry(slot)?;
            let elements = (0..entry.elements).map(|i| self.window.element(slot, i.into()).into());
            Some(ReceiveImage { wr_id: entry.wr_id, elements: elements.collect() })
        };
        SrqImage {
            pd,
            user: self.user,
            max_wr: self.window.depth(),
            max_sge: self.max_sge,
            limit: limit.min(self.window.depth()),
            receives: self.in_order().into_iter().filter_map(receive).collect(),
        }
    }

    /// Fills one that was just made as that image says.
    ///
    /// # Errors
    /// `EINVAL` where it does not take what the image has; what the device says to the limit.
    pub(super) fn fill(&self, image: &SrqImage) -> Result<()> {
        let mut side = self.side.visit();
        for receive in &image.receives {
            let elements = receive.elements.iter().map(|it| Element::from(*it));
            let slot = self.window.append(receive.wr_id, elements).map_err(|refused| {
                Error::invalid(format!(
                    "a shared receive queue does not take what it had: {refused}"
                ))
            })?;
            self.hand_again(&mut side, slot);
        }
        if image.limit > 0 {
            let attr = SrqAttr { srq_limit: image.limit, ..SrqAttr::default() };
            side.physical.modify(&attr, abi::srq_mask::LIMIT)?;
        }
        Ok(())
    }

    /// One of the same sizes on another device, empty so far.
    pub(super) fn another(&self, underlay: &Arc<Underlay>) -> Result<Arc<dyn DeviceSrq>> {
        let attr = SrqAttr { max_wr: self.window.depth(), max_sge: self.max_sge, srq_limit: 0 };
        physical(&self.pd, underlay, self.number, attr)
    }

    /// Goes over to a physical one of that device, which gets all receives that have not been
    /// consumed. The old one takes nothing any more.
    pub(super) fn go_over(&self, underlay: &Underlay, to: &Arc<dyn DeviceSrq>) {
        let mut side = self.side.visit();
        let limit = side.physical.query().map_or(0, |attr| attr.srq_limit);
        side.physical = Arc::clone(to);
        side.lowering = RecvLowering::new(underlay.keys.clone(), self.max_sge as u8);
        self.in_order().into_iter().for_each(|slot| self.hand_again(&mut side, slot));
        if limit > 0 {
            let attr = SrqAttr { srq_limit: limit, ..SrqAttr::default() };
            if let Err(error) = to.modify(&attr, abi::srq_mask::LIMIT) {
                tracing::error!("shared receive queue {}: its limit: {error}", self.number);
            }
        }
    }

    /// A queue pair that has ended has given back this receive unfilled, and the physical queue stays.
    pub(super) fn post_again(&self, slot: u32) {
        self.hand_again(&mut self.side.visit(), slot);
    }

    /// Posts the receive in `slot`, where there is one.
    fn hand_again(&self, side: &mut SrqSide, slot: u32) {
        let Some(entry) = self.window.entry(slot) else { return };
        let element = |i: u8| super::qp::sge(&self.window.element(slot, i.into()));
        let sges: Vec<Sge> = (0..entry.elements).map(element).collect();
        if let Err(errno) = self.post_slot(side, slot, &sges) {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::error!("shared receive queue {}: a receive is lost: {error}", self.number);
        }
    }

    fn post_slot(
        &self,
        side: &mut SrqSide,
        slot: u32,
        sges: &[Sge],
    ) -> std::result::Result<(), i32> {
        let wr_id = SHARED | u64::from(self.number) << QPN_SHIFT | u64::from(slot);
        let SrqSide { lowering, physical } = side;
        lowering.lower(0, wr_id, sges);
        // SAFETY: one receive of ours, whose elements name what the program's named.
        let posted = lowering.hand(1, |list| unsafe { physical.post_recv(list) });
        posted.map_err(|(_, errno)| errno)
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
            if let Err(errno) = self.post_slot(&mut side, slot, sges) {
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
        self.pd.context.local().srqs.remove(self.number);
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
            return Err(Error::unsupported(format!(
                "resizing a shared receive queue to {}: a virtual one keeps the size that it was \
                 created with ({})",
                attr.max_wr,
                self.0.window.depth()
            )));
        }
        // The device's may be larger than what was asked for.
        let depth = self.0.window.depth();
        if mask & abi::srq_mask::LIMIT != 0 && attr.srq_limit > depth {
            return Err(Error::invalid(format!(
                "a limit of {} for a shared receive queue of {depth}",
                attr.srq_limit
            )));
        }
        let _settled = self.0.pd.context.settled();
        self.0.physical().modify(attr, mask)
    }

    fn query(&self) -> Result<SrqAttr> {
        let physical = self.0.physical().query()?;
        Ok(SrqAttr { max_wr: self.0.window.depth(), max_sge: self.0.max_sge, ..physical })
    }
}
