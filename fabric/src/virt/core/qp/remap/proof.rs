//! Proofs: requests of ours whose completions prove what the program has not had signalled.
//!
//! A WRITE of no bytes, signalled, behind all that was handed; to a peer that wants records it is one. Who stops a
//! queue pair posts one where its tail needs it. It comes back when all before it has, which may be much later: a SEND
//! that finds no receive keeps it, over any number of holds. So there is one of these at most, and another where the
//! queue pair is taken down: their slots are reserved ([`super::super::physical_sends`]). What is handed behind one that
//! is out is proven by the next, once that has come back.

use super::super::recording::{point_at, record_sge};
use super::super::send::SendSide;
use super::super::{QpCore, watch};
use super::Moving;
use crate::abi::{self, SendWr, Wc, qp_type, send_flags, wc_status, wr_opcode};
use crate::names::DeviceId;
use crate::virt::core::lock::{Guard, gate};
use crate::virt::core::underlay::NO_SUCH_KEY;
use crate::virt::core::{LOW_31, PROOF, lock_mutex};
use sojourn_logging::Opcode;
use std::sync::atomic::Ordering;

/// Those that are out, and what has become of others.
#[derive(Default)]
pub(super) struct Proofs {
    out: Vec<Proof>,
    /// One has come back in error, with this status, though nothing of the program's did.
    failed: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Proof {
    /// The physical queue pair that has it.
    on: (DeviceId, u32),
    /// It stands behind all requests before this one.
    upto: u64,
}

impl Proofs {
    /// A move or a hold of that physical queue pair begins.
    pub(super) fn begin(&mut self, on: (DeviceId, u32)) {
        self.failed = None;
        self.out.retain(|proof| proof.on == on);
    }

    /// Whether any is to come back.
    pub(super) fn are_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Requests before this one are proven by those that are to come back.
    pub(super) fn upto(&self) -> u64 {
        self.out.iter().map(|proof| proof.upto).max().unwrap_or_default()
    }

    /// The status that one has failed with, of itself or flushed.
    pub(super) fn failed(&self) -> Option<u32> {
        self.failed
    }

    /// The same, once.
    pub(super) fn take_failed(&mut self) -> Option<u32> {
        self.failed.take()
    }
}

impl QpCore {
    /// Behind a tail that no completion would prove goes a request of ours that does. Sends are only appended by now.
    pub(super) fn prove_tail(&self, side: &mut Guard<'_, SendSide>) {
        if side.gate() & gate::SUSPENDED != 0
            && side.gate() & (gate::FAILED | gate::ERR) == 0
            && self.qp_type == qp_type::RC
            // Behind what still waits to be handed again it would be counted, and is not.
            && side.replays.is_empty()
            && !lock_mutex(&self.moving).proofs.are_out()
            && self.has_unproven_tail()
        {
            self.prove(side, true);
        }
    }

    /// A WRITE is out behind which nothing is signalled. (Of SENDs the receiver tells, by count.)
    fn has_unproven_tail(&self) -> bool {
        let out = self.send.retired()..self.send.handed();
        out.rev()
            .take_while(|seq| !self.comes_back(*seq))
            .any(|seq| matches!(self.send.entry(seq).opcode, Opcode::Write | Opcode::WriteImm))
    }

    /// Its completion comes in any case.
    pub(super) fn comes_back(&self, seq: u64) -> bool {
        let entry = self.send.entry(seq);
        self.send.is_signaled(seq) || entry.opcode == Opcode::Read || entry.opcode.is_atomic()
    }

    /// Posts a request of no bytes behind all that were handed. The peer allows it: it is posted
    /// behind WRITEs alone, or to a queue pair at ERR.
    pub(super) fn prove(&self, side: &mut Guard<'_, SendSide>, counts: bool) {
        let Ok(attachment) = self.attachment() else { return };
        let upto = self.send.handed();
        let mut wr = SendWr::empty();
        wr.wr_id = PROOF | self.tag | upto.wrapping_sub(1) & LOW_31;
        wr.opcode = wr_opcode::RDMA_WRITE;
        wr.send_flags = send_flags::SIGNALED;
        wr.wr.rdma = abi::RdmaWr { remote_addr: 0, rkey: NO_SUCH_KEY };
        // To a peer that wants records it is one.
        let recorded = side.record.filter(|_| counts);
        let number = self.send.next_record().to_le_bytes();
        let mut sge = record_sge(&number);
        if let Some(word) = recorded {
            point_at(&mut wr, word, &mut sge);
        }
        if self.qp_type == qp_type::UD {
            wr.opcode = wr_opcode::SEND;
            wr.wr.ud = side.lost_datagram(0);
        }
        let Some(qp) = side.physical() else { return };
        let proof = Proof { on: (attachment.underlay.id, attachment.qp.qp_num()), upto };
        // First: it may come back before the call does.
        lock_mutex(&self.moving).proofs.out.push(proof);
        // SAFETY: one request without elements, or with one of bytes that are copied during the call; a
        // datagram's handle is the side's own.
        if unsafe { qp.post_send(&raw mut wr) }.is_ok() {
            match recorded {
                Some(_) => self.send.note_record(),
                None if counts => self.send.hide(),
                None => {}
            }
        } else {
            lock_mutex(&self.moving).proofs.out.retain(|out| *out != proof);
        }
    }

    /// RESET has discarded them.
    pub(in crate::virt::core::qp) fn forget_proofs(&self) {
        lock_mutex(&self.moving).proofs = Proofs::default();
    }

    /// One has come back. Where nobody moves or holds its queue pair, one that failed is to be treated as a request of
    /// the program's that did: true then. Called by pollers.
    #[cold]
    pub(in crate::virt::core) fn proof_came(&self, device: DeviceId, wc: &Wc) -> bool {
        let fails = wc.status != wc_status::SUCCESS;
        let withholds = self.watch.load(Ordering::Acquire) & watch::WITHHOLD != 0;
        {
            let Moving { proofs, .. } = &mut *lock_mutex(&self.moving);
            proofs.out.retain(|out| {
                let is_it = out.on == (device, wc.qp_num)
                    && out.upto.wrapping_sub(1) & LOW_31 == wc.wr_id & LOW_31;
                !is_it
            });
            if fails && withholds {
                proofs.failed = proofs.failed.or(Some(wc.status));
            }
        }
        if !fails && let Some(seq) = self.send.expand((wc.wr_id & LOW_31) as u32) {
            self.send.retire(seq);
        }
        fails && !withholds
    }
}
