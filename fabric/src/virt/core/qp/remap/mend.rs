//! A path that fails around a move: whether another can take its place, what is withheld until that is
//! known, and what comes to the program after all.
//!
//! | when it fails | what becomes of it |
//! | --- | --- |
//! | at any time | `breaks`: withheld from the poller on; the queue pair is *broken*, and help is called |
//! | after `stop`, and the move is carried through | forgotten: all is judged, and done again |
//! | after `stop`, and the move is given up | `go_on`: the queue pair is broken |
//! | on the new path, before the old one is forgotten | withheld as *early*; broken once the move is over |
//!
//! Where no other path can take its place, the program gets what was withheld, before anything that
//! comes later.

use super::super::send::Target;
use super::super::{Attachment, QpCore, watch};
use super::late::Late;
use super::{Moving, is_recv};
use crate::abi::{Wc, qp_type, wc_status};
use crate::names::DeviceId;
use crate::virt::core::lock::gate;
use crate::virt::core::lock_mutex;
use crate::virt::core::remap::Broken;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Moving {
    /// What fails on that physical queue pair is withheld from here on.
    pub(super) fn begin(&mut self, attachment: &Attachment, broken: bool) {
        let on = (attachment.underlay.id, attachment.qp.qp_num());
        self.old = Some(on);
        self.proofs.begin(on);
        self.peer_is_well = false;
        (self.flushed, self.told) = (false, false);
        (self.broken, self.stopped) = (broken, Some(Instant::now()));
        self.failing_since = None;
        self.withheld.clear();
        self.late = Late::default();
        self.returned = [false; 2];
    }

    /// One that has failed.
    pub(super) fn withhold(&mut self, wc: &Wc) {
        self.flushed |= is_recv(wc) && wc.status == wc_status::WR_FLUSH_ERR;
        self.withheld.push(*wc);
    }

    /// Something is withheld, or a request of ours says that the path has failed.
    pub(super) fn has_failed(&self) -> bool {
        !self.withheld.is_empty() || self.proofs.failed().is_some()
    }

    /// The status of the first send that failed of itself, and was not flushed.
    pub(super) fn first_failure(&self) -> Option<u32> {
        let sends = self.withheld.iter().filter(|wc| !is_recv(wc)).map(|wc| wc.status);
        sends.chain(self.proofs.failed()).find(|status| *status != wc_status::WR_FLUSH_ERR)
    }

    /// The path may be to blame: it is, as far as it shows, or it does not show yet.
    fn may_be_mended(&self) -> bool {
        self.first_failure().is_none_or(is_of_path)
            && self.withheld.iter().all(|wc| may_be_of_path(wc) || !is_recv(wc))
    }
}

/// Whether a send ends like that where its path fails: `RETRY_EXC_ERR`, or `LOC_QP_OP_ERR`, which is what
/// rxe says of a request for which its own interface takes no packet.
pub(super) fn is_of_path(status: u32) -> bool {
    matches!(status, wc_status::RETRY_EXC_ERR | wc_status::LOC_QP_OP_ERR)
}

/// Whether a completion is one of those that a path which fails leaves.
pub(super) fn may_be_of_path(wc: &Wc) -> bool {
    // A flush may be seen before its cause is, which is in another CQ.
    wc.status == wc_status::WR_FLUSH_ERR || !is_recv(wc) && is_of_path(wc.status)
}

impl QpCore {
    /// The physical queue pair, where another one may take its place if its path fails.
    pub(super) fn replaceable(&self) -> Option<Attachment> {
        if self.qp_type != qp_type::RC
            || self.send_side.gate() & (gate::FAILED | gate::ERR) != 0
            || self.is_ending.load(Ordering::Acquire)
        {
            return None;
        }
        let attachment = self.attachment().ok()?;
        if !self.pd.context.failover().may_leave(&*attachment.underlay.device) {
            return None;
        }
        // Alone in a process there is no other path; and of strangers we cannot ask anything.
        let has_peer = matches!(&self.send_side.visit().target, Target::Peer(peer, _) if !peer.own);
        has_peer.then_some(attachment)
    }

    /// It has requests out, and none has come back since the last time, nor has a message. Called by
    /// the lookout alone.
    pub(in crate::virt::core) fn stands_still(&self) -> bool {
        let retired = self.send.retired();
        let come = retired
            .wrapping_add(self.recv.retired())
            .wrapping_add(self.delivered.load(Ordering::Relaxed));
        let came = self.seen.swap(come, Ordering::Relaxed);
        // Whoever moves it, harvests.
        self.qp_type == qp_type::RC
            && retired < self.send.handed()
            && come == came
            && self.send_side.gate() & gate::SUSPENDED == 0
            && !self.is_dead()
    }

    pub(super) fn call_for_help(&self) {
        self.local().rescue.call(self.local(), Broken::Path(self.weak()));
    }

    /// Whether a completion is a failure of the path that the queue pair has gone over to, though the
    /// move is not over yet. Called by pollers.
    pub(super) fn withholds_early(&self, device: DeviceId, wc: &Wc) -> bool {
        if wc.status == wc_status::SUCCESS {
            return false;
        }
        let fails = may_be_of_path(wc) && self.replaceable().is_some();
        let mut moving = lock_mutex(&self.moving);
        match moving.old {
            Some(old) if old != (device, wc.qp_num) => {
                let early = fails || !moving.early.is_empty();
                if early {
                    moving.early.push(*wc);
                }
                early
            }
            // It is over by now.
            _ => {
                drop(moving);
                self.withholds(device, wc)
            }
        }
    }

    /// Goes on with the physical queue pair that it has, which was not taken down. Where what was withheld
    /// says that its path has failed, and another can take its place, that is looked for instead.
    pub(in crate::virt::core) fn go_on(&self) {
        let (stopped, proof_failed) = loop {
            let failed = {
                let moving = lock_mutex(&self.moving);
                // That goes on with none but a new one.
                if moving.broken {
                    return;
                }
                moving.has_failed()
            };
            let replaceable = failed && self.replaceable().is_some();
            let mut side = self.send_side.visit();
            let mut moving = lock_mutex(&self.moving);
            if moving.has_failed() != failed {
                continue;
            }
            if replaceable && moving.may_be_mended() {
                moving.broken = true;
                drop(moving);
                side.set(gate::SUSPENDED);
                drop(side);
                return self.call_for_help();
            }
            if failed {
                let proof_failed = moving.proofs.failed();
                drop((moving, side));
                if let Some(status) = proof_failed {
                    self.ours_to_blame(status);
                }
                self.return_withheld();
                moving = lock_mutex(&self.moving);
            } else {
                // Under the lock: what comes from here on is no more withheld, and needs no giving back.
                self.watch.fetch_and(!watch::WITHHOLD, Ordering::SeqCst);
            }
            break (moving.old.take().is_some(), moving.proofs.take_failed().is_some());
        };
        if stopped {
            self.cqs().for_each(|cq| cq.end_move());
        }
        if proof_failed {
            self.note_err();
        }
        self.release();
    }

    /// The move is over, and nothing of what was left is in the CQs any more.
    pub(super) fn end_withholding(&self) {
        let attachment = self.attachment();
        let stopped = {
            let mut moving = lock_mutex(&self.moving);
            moving.withheld = Vec::new();
            moving.broken = false;
            let early = std::mem::take(&mut moving.early);
            if !early.is_empty()
                && let Ok(attachment) = attachment
            {
                moving.begin(&attachment, false);
                early.iter().for_each(|wc| moving.withhold(wc));
                drop(moving);
                return self.go_on();
            }
            self.watch.fetch_and(!watch::WITHHOLD, Ordering::SeqCst);
            moving.old.take().is_some()
        };
        if stopped {
            self.cqs().for_each(|cq| cq.end_move());
        }
    }
}
