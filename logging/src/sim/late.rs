//! Receives that succeed falsely: what a device says of a receive after ERR need not be true.
//!
//! Soft RoCE of Linux 6.12 (before 6.12.111) gives back all receives of a queue pair with success where
//! ERR meets a SEND. A success that comes once the queue pair was taken down is therefore held until the
//! number is told. A message takes one packet at least: of those that are held, as many can be
//! deliveries as the number has moved since just before ERR. The others are none, and their receives
//! stay in the window, to be posted to the next queue pair.
//!
//! Where the number is gone with the device, nobody can tell: the end ends with an error.
//!
//! A device that flushes one receive does not lie about the others.

use super::broken::Broken;
use super::device::{Cqe, Message, PSN_MASK, Status};
use super::kinds::Kind;
use super::world::World;
use crate::entry::Opcode;

/// What is known of an end that was taken down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Late {
    /// The number just before ERR, where there is one.
    psn: Option<u32>,
    /// It was taken down, and its numbers have not been told.
    holds: bool,
    /// What came since.
    held: Vec<Cqe>,
    /// Of these, as many were deliveries.
    given: usize,
}

/// What a receive says that was never filled.
pub(super) fn nothing() -> Message {
    Message { seq: u64::MAX, opcode: Opcode::Send, byte_len: 0, imm: 0, good: false }
}

impl World {
    /// The old queue pair of an end is about to be taken to ERR.
    pub(super) fn expect_lies(&mut self, e: usize) {
        let qp = self.ends[e].qp;
        let lies = self.quirks.lies;
        // What the number covers is waited for: it would be counted among what came after it.
        while lies && let Some(cqe) = self.qps[qp].cq.pop_front() {
            self.take(e, cqe.1, qp);
        }
        // Others need not be asked.
        let psn = if lies { self.query_psn(qp) } else { None };
        self.qps[qp].lies = lies;
        self.ends[e].late = Late { psn, holds: psn.is_some(), ..Late::default() };
    }

    /// Whether a success is held until the number is told.
    pub(super) fn holds_late(&mut self, e: usize, cqe: &Cqe, from: usize) -> bool {
        let end = &mut self.ends[e];
        let success = matches!(cqe, Cqe::Recv { message: Some(_), .. });
        let holds = success && end.late.holds && end.withhold == Some(from) && !end.failed;
        if holds && !matches!(self.broken, Some(Broken::FalseSuccessesCounted)) {
            end.late.held.push(cqe.clone());
            return true;
        }
        false
    }

    /// Now it is told.
    pub(super) fn settle_late(&mut self, e: usize, psn: Option<u32>) {
        let end = &mut self.ends[e];
        let from = end.qp;
        let Late { psn: before, held, given, .. } = std::mem::take(&mut end.late);
        let moved = match (before, psn) {
            (Some(before), Some(now)) => (now.wrapping_sub(before) & PSN_MASK as u32) as usize,
            _ => 0,
        };
        let flushed = end.recv_flushed;
        let n = if flushed { held.len() } else { held.len().min(moved - given.min(moved)) };
        if n < held.len() && psn.is_none() && !end.failed {
            // Nobody can tell: what was delivered after all must not be sent again.
            let first = end.send.retired();
            return self.fail(e, first, Status::RetryExceeded);
        }
        for cqe in held.iter().take(n) {
            self.take(e, cqe.clone(), from);
        }
        if n < held.len() {
            self.reach(Kind::FalseSuccess);
        }
        // More may come where it was the last look.
        self.ends[e].late =
            Late { psn: before, holds: before.is_some(), held: Vec::new(), given: given + n };
    }
}
