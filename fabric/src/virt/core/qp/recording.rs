//! Records: into the peer's word, behind WRITEs that nothing else would prove.
//!
//! A record is an inline WRITE of eight bytes, which the program does not know of. It is not signalled,
//! so it costs no completion; its slots are reserved ([`super::physical_sends`]); RC executes it behind all
//! that were handed before. Where the peer wants none (its packet number is live) nothing here runs: a
//! queue pair that records takes the long way for life.
//!
//! A record may be the first to find that a path has failed: it is withheld then, and the path mended, as
//! if it were a request of the program's. Where there is no other path, or where the peer has destroyed its
//! queue pair right behind the last WRITE, ours goes to ERR, and the next request of the program's
//! has the status that tells why.

use super::QpCore;
use super::send::SendSide;
use crate::abi::{RdmaWr, SendWr, Sge, Wc, qp_type, send_flags, wc_status, wr_opcode};
use crate::names::RecordWord;
use crate::virt::core::lock::{Guard, gate};
use crate::virt::core::record::RECORD_BYTES;
use crate::virt::core::{LOW_31, RECORD};
use sojourn_logging::record_interval;
use std::sync::atomic::Ordering;

/// The element of a record.
pub(super) fn record_sge(number: &[u8; RECORD_BYTES as usize]) -> Sge {
    Sge { addr: number.as_ptr() as u64, length: RECORD_BYTES, lkey: 0 }
}

/// Makes a WRITE of nothing a record. The element is to live until it is posted.
pub(super) fn point_at(wr: &mut SendWr, word: RecordWord, sge: &mut Sge) {
    wr.wr.rdma = RdmaWr { remote_addr: word.addr, rkey: word.rkey };
    wr.send_flags |= send_flags::INLINE;
    (wr.sg_list, wr.num_sge) = (sge, 1);
}

impl QpCore {
    /// It goes to a peer that wants records there, or wants none.
    pub(super) fn record_to(&self, side: &mut Guard<'_, SendSide>, word: Option<RecordWord>) {
        let inline = side.physical().map_or(0, |qp| qp.init_cap().max_inline_data);
        side.record = word.filter(|_| self.qp_type == qp_type::RC && inline >= RECORD_BYTES);
        side.unrecorded = 0;
        if side.record.is_some() {
            side.set(gate::ODD);
        }
    }

    /// The first `n` physical requests have been handed: a record follows where one is due.
    #[inline]
    pub(super) fn record_behind(&self, side: &mut SendSide, n: usize) {
        if side.record.is_some() {
            self.record_if_due(side, n);
        }
    }

    fn record_if_due(&self, side: &mut SendSide, n: usize) {
        let mut unrecorded = side.unrecorded;
        for opcode in side.opcodes(n) {
            match opcode {
                wr_opcode::RDMA_WRITE => unrecorded += 1,
                // What their completions, or their receives, prove is proven without us.
                wr_opcode::SEND | wr_opcode::SEND_WITH_IMM | wr_opcode::RDMA_WRITE_WITH_IMM => {
                    unrecorded = 0;
                }
                _ => {}
            }
        }
        side.unrecorded = unrecorded;
        // Behind what still waits to be handed again it would say too much.
        if unrecorded >= record_interval(self.cap.max_send_wr) && side.replays.is_empty() {
            self.record(side);
        }
    }

    fn record(&self, side: &mut SendSide) {
        let Some(word) = side.record else { return };
        let Some(qp) = side.physical() else { return };
        let number = self.send.next_record().to_le_bytes();
        let mut sge = record_sge(&number);
        let mut wr = SendWr::empty();
        wr.wr_id = RECORD | self.tag | self.send.handed().wrapping_sub(1) & LOW_31;
        wr.opcode = wr_opcode::RDMA_WRITE;
        point_at(&mut wr, word, &mut sge);
        // SAFETY: one request with one element, whose bytes are copied during the call.
        match unsafe { qp.post_send(&raw mut wr) } {
            Ok(()) => {
                self.send.note_record();
                side.unrecorded = 0;
            }
            // The next WRITE tries again.
            Err(error) => {
                let error = std::io::Error::from_raw_os_error(error.errno());
                tracing::debug!("queue pair {:#x}: no record: {error}", self.qpn);
            }
        }
    }

    /// A record, or a proof, has come back in error. Called by pollers.
    #[cold]
    pub(in crate::virt::core) fn ours_failed(&self, wc: &Wc) {
        if wc.status == wc_status::SUCCESS {
            return;
        }
        self.ours_to_blame(wc.status);
        self.look_closer(wc, false);
    }

    /// A request of ours has ended with that status: where it was not flushed itself, it is why those behind it are.
    pub(super) fn ours_to_blame(&self, status: u32) {
        if status != wc_status::WR_FLUSH_ERR {
            self.blame.store(status, Ordering::Relaxed);
        }
    }

    /// A send completion of the program's has come: where a record failed before it, it is told why it
    /// was flushed, as the first that fails on a path is. Called by pollers.
    #[inline]
    pub(in crate::virt::core) fn blame(&self, wc: &mut Wc) {
        if wc.status == wc_status::WR_FLUSH_ERR {
            wc.status = self.blamed(wc.status);
        }
    }

    /// The status that a record has failed with, in place of `status`: once.
    pub(super) fn blamed(&self, status: u32) -> u32 {
        match self.blame.swap(wc_status::SUCCESS, Ordering::Relaxed) {
            wc_status::SUCCESS => status,
            blamed => blamed,
        }
    }
}
