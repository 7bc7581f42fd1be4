//! Receives that come back as filled once a queue pair has been taken to ERR, and may not be.
//!
//! rxe of Linux 6.12 before 6.12.111 gives back all receives with success where ERR meets a SEND. There a
//! success that comes after `take_down` is therefore held until the number of the queue pair is
//! read for the last time. A message takes one packet at least: as many of those that are held can be
//! deliveries as the number has moved since just before ERR. The others are none: their receives
//! stay in the window, and are posted to the next queue pair. Where the number cannot be read any more
//! nobody can tell, and the queue pair ends with an error. Where one receive was flushed, all
//! successes are true. (The simulator has both: `sojourn_logging::sim`, file `late`.)
//!
//! What is still told wrong, one way or the other, contradicts the count that the sender keeps, and ends
//! the connection with an error.

use super::super::QpCore;
use super::is_recv;
use crate::abi::{MASK_24, Wc, qp_mask, qp_type, wc_status};
use crate::names::DeviceId;
use crate::virt::core::lock_mutex;
use crate::virt::core::policy::Source;
use std::time::Duration;

/// Time between the moment at which a number covers a message, and that at which its completion can be
/// seen: some microseconds, where the thread of the device is not kept from running.
const LAG: Duration = Duration::from_millis(1);

/// What is known of a queue pair that was taken down.
#[derive(Default)]
pub(super) struct Late {
    /// Its number just before ERR. `None`: what it says is believed.
    psn: Option<u32>,
    /// Successes since, of receives.
    held: Vec<Wc>,
}

impl Late {
    /// Whether a completion is held; then it has been kept. Called by pollers.
    pub(super) fn holds(&mut self, wc: &Wc) -> bool {
        let holds = self.psn.is_some() && wc.status == wc_status::SUCCESS && is_recv(wc);
        if holds {
            self.held.push(*wc);
        }
        holds
    }

    /// Those that are deliveries, in order; the rest is forgotten. Nothing is held any more.
    fn settle(&mut self, psn: Option<u32>, flushed: bool) -> Vec<Wc> {
        let mut held = std::mem::take(&mut self.held);
        if let Some(before) = self.psn.take()
            && !flushed
        {
            let moved = psn.map_or(0, |psn| psn.wrapping_sub(before) & MASK_24);
            held.truncate(moved as usize);
        }
        held
    }
}

impl QpCore {
    /// It is about to be taken to ERR. Successes of receives are held from here on, where the device may
    /// lie.
    pub(super) fn expect_lies(&self) {
        let Ok(attachment) = self.attachment() else { return };
        if !attachment.underlay.may_lie_at_err()
            || self.qp_type != qp_type::RC
            || attachment.underlay.source != Source::Psn
        {
            return;
        }
        let psn = attachment.qp.query(qp_mask::RQ_PSN).ok().map(|attr| attr.rq_psn);
        // What it covers is true, and comes to the program: it must not be counted among what comes later.
        std::thread::sleep(LAG);
        self.cqs().for_each(|cq| cq.harvest_now());
        lock_mutex(&self.moving).late = Late { psn, held: Vec::new() };
    }

    /// The number has been read for the last time: what was held comes to the program, as far as it is true.
    pub(super) fn settle_late(&self, device: DeviceId, psn: Option<u32>) {
        // Keeping pollers out has its price, in the dark.
        if lock_mutex(&self.moving).late.psn.is_none() {
            return;
        }
        let give_back = || {
            let mut moving = lock_mutex(&self.moving);
            let flushed = moving.flushed;
            moving.late.settle(psn, flushed)
        };
        let (unsure, held) = {
            let moving = lock_mutex(&self.moving);
            (psn.is_none() && !moving.flushed, !moving.late.held.is_empty())
        };
        if unsure && held {
            // Nobody can tell: what was delivered after all must not be sent again.
            tracing::warn!(
                "queue pair {:#x} ends: its device does not say what it received",
                self.qpn
            );
            self.fail(wc_status::RETRY_EXC_ERR);
        }
        match self.recv_cq.upgrade() {
            Some(cq) => cq.give_back(device, give_back),
            None => drop(give_back()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virt::core::RECV;

    /// Promise 2: of successes at ERR as many are deliveries as the number has moved, unless the device
    /// flushes, and so tells the truth.
    #[test]
    fn as_many_are_deliveries_as_the_number_has_moved() {
        let cases = [
            // (before, after, flushed, deliveries of 3)
            (Some(7), Some(7), false, 0),
            (Some(7), Some(9), false, 2),
            (Some(MASK_24), Some(1), false, 2),
            (Some(7), Some(7), true, 3),
            (Some(7), Some(50), false, 3),
            (Some(7), None, false, 0),
        ];
        for (before, after, flushed, deliveries) in cases {
            let mut late = Late { psn: before, held: Vec::new() };
            for seq in 0..3 {
                let success = Wc { wr_id: RECV | seq, ..Wc::default() };
                assert!(late.holds(&success));
                assert!(!late.holds(&Wc { wr_id: seq, ..Wc::default() }), "a send");
                let flush = Wc { status: wc_status::WR_FLUSH_ERR, ..success };
                assert!(!late.holds(&flush));
            }
            let settled = late.settle(after, flushed);
            assert_eq!(settled.len(), deliveries, "{before:?} {after:?} {flushed}");
            assert!(settled.iter().enumerate().all(|(i, wc)| wc.wr_id == RECV | i as u64));
            assert!(!late.holds(&Wc { wr_id: RECV, ..Wc::default() }), "it is over");
        }
        assert!(!Late::default().holds(&Wc { wr_id: RECV, ..Wc::default() }), "believed");
    }
}
