//! The receive side: appending, and handing at once; and once more, after a re-map.

use super::{Attachment, Ending, PlainWr, QpCore};
use crate::abi::{RecvWr, Sge};
use crate::device::{DeviceQp, PostError, PostRecv};
use crate::virt::core::LOW_31;
use crate::virt::core::direct::Direct;
use crate::virt::core::lock::gate;
use crate::virt::core::qp::send::{element, sge, sges};
use crate::virt::core::tables::KeyTable;
use crate::virt::core::underlay::NO_SUCH_KEY;
use crate::virt::core::written::Look;
use sojourn_logging::{PlainRecvSlot, Refused};
use std::ptr;
use std::sync::Arc;

/// Receives handed in one call.
const CHAIN: usize = 16;

/// What a poster of receives needs, behind the side's lock.
pub(in crate::virt::core) struct RecvSide {
    qp: Option<Direct<dyn DeviceQp>>,
    /// Where receives of one element are put together that come alone.
    plain: PlainWr<RecvWr>,
    /// What the program has posted; a register would have to be saved at every call.
    posting: *mut RecvWr,
    /// Where the others are.
    lowering: RecvLowering,
    pub(super) ending: Ending,
}

// SAFETY: `posting` is looked at by the call that set it alone.
unsafe impl Send for RecvSide {}

impl RecvSide {
    pub(super) fn new(attachment: &Attachment, max_sges: u8) -> Self {
        let (next, sg_list) = (ptr::null_mut(), ptr::null_mut());
        let wr = RecvWr { wr_id: 0, next, sg_list, num_sge: 1 };
        RecvSide {
            qp: Some(Direct::new(Arc::clone(&attachment.qp))),
            plain: PlainWr::new(wr, |wr, sge| wr.sg_list = sge),
            posting: ptr::null_mut(),
            lowering: RecvLowering::new(attachment.underlay.keys.clone(), max_sges),
            ending: Ending::default(),
        }
    }

    pub(super) fn detach(&mut self) {
        self.qp = None;
    }

    /// Goes over to another physical queue pair, which has no receives.
    pub(super) fn go_over(&mut self, attachment: &Attachment) {
        self.qp = Some(Direct::new(Arc::clone(&attachment.qp)));
        self.lowering.keys = attachment.underlay.keys.clone();
    }
}

/// Where physical receives are put together, of queue pairs and of shared receive queues.
pub(in crate::virt::core) struct RecvLowering {
    keys: KeyTable,
    wrs: Box<[RecvWr; CHAIN]>,
    sges: Box<[Sge]>,
    max_sges: usize,
}

// SAFETY: the pointers are to this struct's own boxes, and null otherwise.
unsafe impl Send for RecvLowering {}

impl RecvLowering {
    pub(in crate::virt::core) fn new(keys: KeyTable, max_sges: u8) -> Self {
        let max_sges = usize::from(max_sges).max(1);
        let mut sges = vec![Sge::default(); CHAIN * max_sges].into_boxed_slice();
        let (next, sg_list) = (ptr::null_mut(), ptr::null_mut());
        let mut wrs = Box::new([RecvWr { wr_id: 0, next, sg_list, num_sge: 0 }; CHAIN]);
        for (wr, part) in wrs.iter_mut().zip(sges.chunks_exact_mut(max_sges)) {
            wr.sg_list = part.as_mut_ptr();
        }
        RecvLowering { keys, wrs, sges, max_sges }
    }

    /// Puts the physical receive in place `at`.
    #[inline]
    pub(in crate::virt::core) fn lower(&mut self, at: usize, wr_id: u64, from: &[Sge]) {
        let sges = &mut self.sges[at * self.max_sges..][..self.max_sges];
        for (sge, from) in sges.iter_mut().zip(from) {
            let lkey = self.keys.get(from.lkey).unwrap_or(NO_SUCH_KEY);
            *sge = Sge { lkey, ..*from };
        }
        let wr = &mut self.wrs[at];
        (wr.wr_id, wr.num_sge) = (wr_id, from.len() as i32);
    }

    /// Hands the first `n` with `post`. With an error: how many of them were taken.
    #[inline]
    pub(in crate::virt::core) fn hand(
        &mut self,
        n: usize,
        post: impl FnOnce(*mut RecvWr) -> PostRecv,
    ) -> Result<(), (usize, i32)> {
        let base = self.wrs.as_mut_ptr();
        for i in 1..n {
            self.wrs[i - 1].next = &raw mut self.wrs[i];
        }
        let posted = post(base);
        for wr in &mut self.wrs[..n - 1] {
            wr.next = ptr::null_mut();
        }
        posted.map_err(|error| {
            let taken = (error.bad_wr() as usize).wrapping_sub(base as usize) / size_of::<RecvWr>();
            (taken.min(n - 1), error.errno())
        })
    }
}

impl QpCore {
    /// # Safety
    /// As [`DeviceQp::post_recv`].
    #[inline]
    pub(super) unsafe fn post_recv(&self, list: *mut RecvWr) -> PostRecv {
        // The shortest way alone is here: what else a function can do costs registers.
        // SAFETY: the caller's list is valid during the call.
        if let Some(wr) = unsafe { list.as_ref() }
            && Self::is_plain_recv(wr)
            && let Some(mut side) = self.recv_side.enter_bare()
            && let Some(slot) = self.recv.claim_known()
        {
            // SAFETY: the caller's promise; it has one element.
            if let Some(posted) = unsafe { self.post_one_recv(&mut side, slot, list, wr) } {
                return posted;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.leave_short_recv(list) }
    }

    /// Cold, so that the compiler lays the shortest way out straight.
    ///
    /// # Safety
    /// As [`DeviceQp::post_recv`].
    #[cold]
    #[inline(never)]
    unsafe fn leave_short_recv(&self, list: *mut RecvWr) -> PostRecv {
        // SAFETY: the caller's promise.
        unsafe { self.post_recv_entering(list) }
    }

    /// The same with the lock, where there is one; and where room has to be looked for.
    ///
    /// # Safety
    /// As [`DeviceQp::post_recv`].
    #[inline(never)]
    unsafe fn post_recv_entering(&self, list: *mut RecvWr) -> PostRecv {
        // SAFETY: the caller's list is valid during the call.
        if let Some(wr) = unsafe { list.as_ref() }
            && Self::is_plain_recv(wr)
        {
            let mut side = self.recv_side.enter();
            if side.is_clear() {
                let Some(slot) = self.recv.claim_plain() else {
                    return Err(PostError::new(libc::ENOMEM, list));
                };
                // SAFETY: the caller's promise; it has one element.
                if let Some(posted) = unsafe { self.post_one_recv(&mut side, slot, list, wr) } {
                    return posted;
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.post_recv_list(list) }
    }

    /// Whether a receive is alone and has one element.
    #[inline]
    fn is_plain_recv(wr: &RecvWr) -> bool {
        wr.next.is_null() && wr.num_sge == 1
    }

    /// What [`Self::post_recv_list`] does, in fewer steps. `None` where nothing has changed, and it
    /// has to go the long way.
    ///
    /// # Safety
    /// As [`DeviceQp::post_recv`], of one receive with one element.
    #[inline(always)]
    unsafe fn post_one_recv(
        &self,
        side: &mut RecvSide,
        slot: PlainRecvSlot<'_>,
        list: *mut RecvWr,
        wr: &RecvWr,
    ) -> Option<PostRecv> {
        let (physical, physical_sge) = side.plain.parts();
        // SAFETY: ours alone while we are inside.
        unsafe { (*physical).wr_id = self.recv_tag | slot.seq() & LOW_31 };
        slot.wr_id(wr.wr_id);
        // SAFETY: the caller's promise.
        let sge = unsafe { *wr.sg_list };
        // One that stands for nothing is handed as such, the long way.
        let lkey = side.lowering.keys.get(sge.lkey)?;
        slot.element(element(&sge));
        self.recv.publish(slot);
        // SAFETY: as above.
        unsafe { *physical_sge = Sge { lkey, ..sge } };
        side.posting = list;
        // SAFETY: the physical queue pair goes with the virtual one, which is being posted to.
        let qp = unsafe { side.qp.as_ref().unwrap_unchecked() };
        // SAFETY: one receive of ours, with one element, which names what the program's named.
        let posted = unsafe { qp.post_recv(physical) };
        Some(posted.or_else(|error| self.refused_recv(side, error.errno())))
    }

    /// The device does not want the receive that was published last.
    #[cold]
    #[inline(never)]
    fn refused_recv(&self, side: &RecvSide, errno: i32) -> PostRecv {
        self.recv.take_back(self.recv.appended() - 1);
        Err(PostError::new(errno, side.posting))
    }

    #[inline]
    fn hand_recvs(&self, side: &mut RecvSide, n: usize) -> Result<(), (usize, i32)> {
        let Some(qp) = &side.qp else { return Err((0, libc::EINVAL)) };
        // SAFETY: a list of ours whose elements name what the program's receives named.
        side.lowering.hand(n, |list| unsafe { qp.post_recv(list) })
    }

    /// Appends a receive, and puts its physical form in place `at`.
    ///
    /// # Safety
    /// As [`DeviceQp::post_recv`].
    #[inline]
    unsafe fn stage_recv(&self, side: &mut RecvSide, at: usize, wr: &RecvWr) -> Result<u64, i32> {
        // SAFETY: the caller's promise.
        let seq = unsafe { self.append_recv(wr) }?;
        let wr_id = self.recv_tag | seq & LOW_31;
        // SAFETY: the caller's promise.
        side.lowering.lower(at, wr_id, unsafe { sges(wr.sg_list, wr.num_sge) });
        Ok(seq)
    }

    /// # Safety
    /// As [`DeviceQp::post_recv`].
    #[inline]
    unsafe fn append_recv(&self, wr: &RecvWr) -> Result<u64, i32> {
        if wr.num_sge as u32 > self.cap.max_recv_sge || self.srq.is_some() {
            return Err(libc::EINVAL);
        }
        if let Some(tracked) = &self.tracked
            && tracked.recvs_are_due(self)
        {
            self.look_through_recvs(tracked, Look::Through);
        }
        // SAFETY: the caller's promise.
        let elements = unsafe { sges(wr.sg_list, wr.num_sge) }.iter().map(element);
        self.recv.append(wr.wr_id, elements).map_err(|refused| match refused {
            Refused::Full => libc::ENOMEM,
            _ => libc::EINVAL,
        })
    }

    /// A list, or a receive while something is in the way.
    ///
    /// # Safety
    /// As [`DeviceQp::post_recv`].
    #[inline(never)]
    unsafe fn post_recv_list(&self, list: *mut RecvWr) -> PostRecv {
        let mut side = self.recv_side.enter();
        let mut next = list;
        while side.gate() == 0 && !next.is_null() {
            let first = self.recv.appended();
            let mut staged = [ptr::null_mut(); CHAIN];
            let (mut n, mut refused) = (0, None);
            while n < CHAIN {
                // SAFETY: the caller's list is valid during the call.
                let Some(wr) = (unsafe { next.as_ref() }) else { break };
                // SAFETY: the caller's promise.
                if let Err(errno) = unsafe { self.stage_recv(&mut side, n, wr) } {
                    refused = Some(errno);
                    break;
                }
                staged[n] = next;
                (n, next) = (n + 1, wr.next);
            }
            if n > 0 {
                if let Err((taken, errno)) = self.hand_recvs(&mut side, n) {
                    self.recv.mark_handed(first + taken as u64);
                    self.recv.take_back(first + taken as u64);
                    return Err(PostError::new(errno, staged[taken]));
                }
                self.recv.mark_handed(first + n as u64);
            }
            if let Some(errno) = refused {
                return Err(PostError::new(errno, next));
            }
        }
        // In ERR: completed by us (a device may never flush what is posted after ERR).
        let mut posted = Ok(());
        let any = !next.is_null();
        // SAFETY: the caller's list is valid during the call.
        while let Some(wr) = unsafe { next.as_ref() } {
            // SAFETY: the caller's promise.
            if let Err(errno) = unsafe { self.append_recv(wr) } {
                posted = Err(PostError::new(errno, next));
                break;
            }
            next = wr.next;
        }
        if any && side.gate() & (gate::ERR | gate::FAILED) != 0 {
            self.end_recvs(&mut side, false);
        }
        posted
    }

    /// Hands all receives that have not been consumed to a physical queue pair that has none.
    ///
    /// # Errors
    /// The errno with which the device refused.
    pub(super) fn hand_recvs_again(&self, side: &mut RecvSide) -> Result<(), i32> {
        self.recv.unhand(self.recv.retired());
        self.hand_waiting_recvs(side)
    }

    /// Hands those that were only appended.
    ///
    /// # Errors
    /// The errno with which the device refused.
    pub(super) fn hand_waiting_recvs(&self, side: &mut RecvSide) -> Result<(), i32> {
        let mut elements = Vec::new();
        loop {
            let first = self.recv.handed();
            let n = (self.recv.appended() - first).min(CHAIN as u64);
            if n == 0 {
                return Ok(());
            }
            for i in 0..n {
                let seq = first + i;
                let entry = self.recv.entry(seq);
                elements.clear();
                elements
                    .extend((0..entry.elements).map(|at| sge(&self.recv.element(seq, at.into()))));
                side.lowering.lower(i as usize, self.recv_tag | seq & LOW_31, &elements);
            }
            let handed = self.hand_recvs(side, n as usize);
            let taken = handed.map_or_else(|(taken, _)| taken as u64, |()| n);
            self.recv.mark_handed(first + taken);
            handed.map_err(|(_, errno)| errno)?;
        }
    }
}
