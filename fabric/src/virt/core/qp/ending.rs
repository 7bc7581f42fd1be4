//! Completing requests ourselves.
//!
//! Once a queue pair is seen in ERR, or a peer that a request waits for is lost, nothing more is
//! handed: what is in the window beyond the cursor gets its completions from us. Order is kept by
//! one rule: ours come when every handed request is through, which shows by the window, or
//! by the flush of a marker that is posted behind them (a successful request that was not signalled
//! leaves no other trace).

use super::{QpCore, watch};
use crate::abi::{
    QpAttr, SendWr, Wc, qp_mask, qp_state, qp_type, send_flags, wc_opcode, wc_status,
};
use crate::virt::core::cq::Held;
use crate::virt::core::lock::{Guard, gate};
use crate::virt::core::qp::recv::RecvSide;
use crate::virt::core::qp::send::SendSide;
use crate::virt::core::{LOW_31, MARKER};
use sojourn_logging::Opcode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Time in which a device flushes what was handed to it. Beyond it, what has not come is completed
/// by us (rxe of Linux 6.1 never flushes a receive that came to it after ERR).
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// How far completing ourselves has come.
#[derive(Default)]
pub(in crate::virt::core) struct Ending {
    /// The first request that was not handed, and its status; those behind it are flushed.
    first: u64,
    status: u32,
    /// Every handed request is through.
    through: bool,
    /// Requests before this one have their completions.
    flushed: u64,
}

impl Ending {
    /// Of a queue pair all of whose handed requests, those before `first`, are through.
    pub(super) fn through(first: u64, status: u32) -> Self {
        Ending { first, status, through: true, flushed: first }
    }

    /// Of one whose request `first` has failed, and where those from `flushed` on have no completions yet.
    pub(super) fn failed_at(first: u64, status: u32, flushed: u64) -> Self {
        Ending { first, status, through: true, flushed }
    }

    /// Every handed request is through.
    pub(super) fn is_through(&self) -> bool {
        self.through
    }

    /// The request that has failed, and its status.
    pub(super) fn failed(&self) -> (u64, u32) {
        (self.first, self.status)
    }
}

impl QpCore {
    /// A peer is lost: what waits for it ends with `status`, and the queue pair in ERR.
    pub(super) fn fail(&self, status: u32) {
        if let Some(mut side) = self.send_side.enter_shared() {
            self.begin_ending(&mut side, status);
        }
    }

    /// Nothing is handed from here on; the first request beyond the cursor gets `status`.
    #[cold]
    pub(super) fn begin_ending(&self, side: &mut Guard<'_, SendSide>, status: u32) {
        if side.gate() & gate::FAILED != 0 {
            return;
        }
        side.set(gate::FAILED | gate::ERR);
        side.clear(gate::BLOCKED | gate::SUSPENDED);
        side.replays.clear();
        self.watch.fetch_or(watch::ENDING, Ordering::Release);
        self.recv_side.note(gate::ERR);
        let status = self.blamed(status);
        let handed = self.send.handed();
        if !(side.ending.through && side.ending.first == handed) {
            side.ending = Ending { first: handed, status, through: false, flushed: handed };
        }
        if let Some(qp) = side.physical() {
            let err = QpAttr { qp_state: qp_state::ERR, ..QpAttr::default() };
            if let Err(error) = qp.modify(&err, qp_mask::STATE) {
                tracing::warn!("queue pair {:#x}: to ERR: {error}", self.qpn);
            }
        }
        if self.send.retired() < handed {
            self.post_marker(side);
        }
        self.flush_sends(side, false);
        self.look_again_later();
    }

    /// Behind everything that was handed.
    fn post_marker(&self, side: &mut SendSide) {
        let mut wr = SendWr::empty();
        wr.wr_id = MARKER | self.tag | self.send.handed() & LOW_31;
        wr.send_flags = send_flags::SIGNALED;
        if self.qp_type == qp_type::UD {
            wr.wr.ud = side.lost_datagram(0);
        }
        let Some(qp) = side.physical() else { return };
        // SAFETY: one request without elements; a datagram's handle is the side's own.
        if let Err(error) = unsafe { qp.post_send(&raw mut wr) } {
            let error = std::io::Error::from_raw_os_error(error.errno());
            tracing::debug!("queue pair {:#x}: no marker in ERR: {error}", self.qpn);
        }
    }

    /// Completes send requests beyond the cursor, where the handed ones are through; with `force`
    /// also what is still out.
    pub(super) fn flush_sends(&self, side: &mut Guard<'_, SendSide>, force: bool) {
        let (retired, handed) = (self.send.retired(), self.send.handed());
        if !side.ending.through {
            if retired < handed {
                if !force {
                    return;
                }
                side.ending.flushed = retired;
            }
            side.ending.through = true;
        }
        let upto = self.send.appended();
        let Ending { first, status, flushed, .. } = side.ending;
        if flushed < upto
            && let Some(cq) = self.send_cq.upgrade()
        {
            cq.hold((flushed..upto).map(|seq| Held {
                recv: false,
                seq: Some(seq),
                wc: Wc {
                    wr_id: self.send.wr_id(seq),
                    status: if seq == first { status } else { wc_status::WR_FLUSH_ERR },
                    opcode: completion_of(self.send.entry(seq).opcode),
                    qp_num: self.qpn,
                    ..Wc::default()
                },
            }));
        }
        side.ending.flushed = upto;
        self.send.mark_handed(upto);
    }

    /// The same for receives, of which none is handed from here on.
    pub(super) fn end_recvs(&self, side: &mut Guard<'_, RecvSide>, force: bool) {
        if side.gate() & gate::FAILED == 0 {
            side.set(gate::FAILED);
            self.watch.fetch_or(watch::ENDING, Ordering::Release);
            let handed = self.recv.handed();
            side.ending = Ending { first: handed, flushed: handed, ..Ending::default() };
        }
        let (retired, handed) = (self.recv.retired(), self.recv.handed());
        if !side.ending.through {
            if retired < handed {
                if !force {
                    return;
                }
                side.ending.flushed = retired;
            }
            side.ending.through = true;
        }
        let (flushed, upto) = (side.ending.flushed, self.recv.appended());
        if flushed < upto
            && let Some(cq) = self.recv_cq.upgrade()
        {
            cq.hold((flushed..upto).map(|seq| Held {
                recv: true,
                seq: Some(seq),
                wc: Wc {
                    wr_id: self.recv.wr_id(seq),
                    status: wc_status::WR_FLUSH_ERR,
                    opcode: wc_opcode::RECV,
                    qp_num: self.qpn,
                    ..Wc::default()
                },
            }));
        }
        side.ending.flushed = upto;
        self.recv.mark_handed(upto);
    }

    /// The physical queue pair is in ERR.
    pub(super) fn note_err(&self) {
        if self.recv_side.gate() & gate::ERR != 0 && self.send_side.gate() & gate::ERR != 0 {
            return;
        }
        self.recv_side.note(gate::ERR);
        self.send_side.note(gate::ERR);
        // What waits for a name waits in vain.
        if let Some(mut side) = self.send_side.enter_shared()
            && self.send.handed() < self.send.appended()
        {
            self.begin_ending(&mut side, wc_status::WR_FLUSH_ERR);
        }
        self.look_again_later();
    }

    /// A completion that is not a plain success, or one of a queue pair that is ending. False
    /// where the program must not see it. Called by pollers.
    #[cold]
    pub(in crate::virt::core) fn look_closer(&self, wc: &Wc, recv: bool) -> bool {
        let watch = self.watch.load(Ordering::Acquire);
        if watch & watch::DEAD != 0 {
            return false;
        }
        // An unreliable queue pair whose own request failed goes to SQE, and on after that.
        if wc.status != wc_status::SUCCESS && (recv || self.qp_type == qp_type::RC) {
            if self.send_side.gate() & gate::ERR == 0 {
                tracing::debug!(
                    "queue pair {:#x} has failed: {} of a {} (vendor error {:#x})",
                    self.qpn,
                    wc_status::name(wc.status),
                    if recv { "receive" } else { "send" },
                    wc.vendor_err
                );
            }
            self.note_err();
        }
        if watch & watch::ENDING != 0 {
            self.go_on_ending();
        }
        true
    }

    /// The marker has come back: everything before it is done.
    #[cold]
    pub(in crate::virt::core) fn marker_came(&self, low: u32) {
        let last = low.wrapping_sub(1) & LOW_31 as u32;
        if let Some(seq) = self.send.expand(last) {
            self.send.retire(seq);
        }
        self.go_on_ending();
    }

    fn go_on_ending(&self) {
        if let Some(mut side) = self.send_side.enter_shared()
            && side.gate() & gate::FAILED != 0
        {
            self.flush_sends(&mut side, false);
        }
        if let Some(mut side) = self.recv_side.enter_shared()
            && side.gate() & gate::FAILED != 0
        {
            self.end_recvs(&mut side, false);
        }
    }

    /// In a while nothing may be out any more.
    fn look_again_later(&self) {
        let qp = self.weak();
        let job = Box::new(move || {
            if let Some(qp) = qp.upgrade() {
                qp.end_by_force();
            }
        });
        self.local().resolver().run_later(Instant::now() + FLUSH_PATIENCE, job);
    }

    /// Completes what the device has left lying.
    fn end_by_force(&self) {
        if self.is_dead() || self.send_side.gate() & gate::ERR == 0 {
            return;
        }
        // What the device has completed comes first. Where only the program may poll, it does so
        // in its own time, and sees what the device gives.
        let harvested = |cq: &std::sync::Weak<_>| {
            cq.upgrade().is_some_and(|cq: std::sync::Arc<super::CqCore>| cq.harvest())
        };
        let out = self.send.retired() < self.send.handed();
        if out
            && harvested(&self.send_cq)
            && let Some(mut side) = self.send_side.enter_shared()
            && self.send.retired() < self.send.handed()
        {
            self.begin_ending(&mut side, wc_status::WR_FLUSH_ERR);
            self.flush_sends(&mut side, true);
        }
        let out = self.recv.retired() < self.recv.handed();
        if out
            && harvested(&self.recv_cq)
            && let Some(mut side) = self.recv_side.enter_shared()
            && self.recv.retired() < self.recv.handed()
        {
            self.end_recvs(&mut side, true);
        }
    }

    /// Forgets everything, as RESET does. Called with both CQs held.
    pub(super) fn forget_all(&self) {
        let mut side = self.send_side.enter();
        side.set(0);
        if let Some(last) = self.send.appended().checked_sub(1)
            && self.send.retired() <= last
        {
            self.send.mark_handed(last + 1);
            self.send.retire(last);
        }
        side.ending = Ending::default();
        side.replays.clear();
        self.blame.store(wc_status::SUCCESS, Ordering::Relaxed);
        side.clear(gate::BLOCKED | gate::SUSPENDED | gate::FAILED | gate::ERR);
        drop(side);
        self.forget_replays();
        self.forget_proofs();
        let mut side = self.recv_side.enter();
        side.set(0);
        if let Some(last) = self.recv.appended().checked_sub(1)
            && self.recv.retired() <= last
        {
            self.recv.mark_handed(last + 1);
            self.recv.retire(last);
        }
        side.ending = Ending::default();
        side.clear(gate::BLOCKED | gate::SUSPENDED | gate::FAILED | gate::ERR);
        self.watch.fetch_and(!(watch::ENDING | watch::THROUGH | watch::MEND), Ordering::Release);
    }
}

/// `enum ibv_wc_opcode` of a request's completion.
pub(super) fn completion_of(opcode: Opcode) -> u32 {
    match opcode {
        Opcode::Write | Opcode::WriteImm => wc_opcode::RDMA_WRITE,
        Opcode::Send | Opcode::SendImm | Opcode::SendInv => wc_opcode::SEND,
        Opcode::Read => wc_opcode::RDMA_READ,
        Opcode::CompareSwap => wc_opcode::COMP_SWAP,
        Opcode::FetchAdd => wc_opcode::FETCH_ADD,
    }
}
