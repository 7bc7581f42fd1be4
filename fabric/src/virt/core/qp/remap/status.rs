//! How a queue pair stands, as far as a re-map is concerned.

use super::FAILURE_LAG;
use crate::abi::{QpAttr, qp_mask, qp_state};
use crate::error::{Error, Result};
use crate::names::{DeviceId, ProcessId};
use crate::virt::core::lock::gate;
use crate::virt::core::lock_mutex;
use crate::virt::core::qp::QpCore;
use crate::virt::core::qp::send::Target;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// How a queue pair stands, as far as a re-map is concerned.
pub(in crate::virt::core) struct Status {
    /// [`qp_state`] of the physical one.
    pub(in crate::virt::core) state: u32,
    /// The process of the job that it is connected to, and the number there.
    pub(in crate::virt::core) peer: Option<(ProcessId, u32)>,
    /// It is connected to somebody outside the job.
    pub(in crate::virt::core) foreign: bool,
}

impl Status {
    /// It may send or receive.
    pub(in crate::virt::core) fn is_connected(&self) -> bool {
        matches!(self.state, qp_state::RTR | qp_state::RTS)
    }
}

impl QpCore {
    /// The state that the program sees.
    pub(in crate::virt::core::qp) fn state(&self) -> Result<u32> {
        // One whose path has failed is at ERR, and goes on elsewhere.
        if self.is_broken() {
            return Ok(qp_state::RTS);
        }
        Ok(self.attachment()?.qp.query(qp_mask::STATE)?.qp_state)
    }

    /// Its path has failed, and it waits for another.
    pub(in crate::virt::core) fn is_broken(&self) -> bool {
        let moving = lock_mutex(&self.moving);
        moving.broken || !moving.early.is_empty()
    }

    /// A device may be at ERR before its completions say why: for so long they are waited for. (Where
    /// nothing is outstanding, none will come.)
    fn fails_just_now(&self) -> bool {
        let mut moving = lock_mutex(&self.moving);
        moving.failing_since.get_or_insert_with(Instant::now).elapsed() < FAILURE_LAG
    }

    /// How it stands.
    ///
    /// # Errors
    /// `EBUSY` where that is about to be known.
    pub(in crate::virt::core) fn status(&self) -> Result<Status> {
        let mut state = self.state()?;
        if state == qp_state::ERR && self.send_side.gate() & gate::ERR == 0 {
            // Nobody has looked yet what it was.
            self.cqs().for_each(|cq| cq.harvest_now());
            state = self.state()?;
            if state == qp_state::ERR
                && self.send_side.gate() & gate::ERR == 0
                && !self.is_ending.load(Ordering::Acquire)
                && self.fails_just_now()
            {
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "queue pair {:#x} has failed, and its completions are yet to come",
                        self.qpn
                    ),
                ));
            }
        }
        let dest = lock_mutex(&self.control).attr.dest_qp_num;
        let side = self.send_side.visit();
        let (peer, foreign) = match &side.target {
            Target::Peer(peer, _) => (Some((peer.process, dest)), false),
            Target::Foreign => (None, true),
            Target::Nobody => (None, false),
        };
        Ok(Status { state, peer, foreign })
    }

    /// How it stands, while neither the program nor a move is changing it: in the middle of a change its
    /// state may be that of a connected one though nobody knows yet to whom.
    ///
    /// # Errors
    /// `EBUSY` where it is being changed, or as [`Self::status`]; `EINVAL` where it is gone.
    pub(in crate::virt::core) fn status_at_rest(&self) -> Result<Status> {
        self.begin_moving()?;
        let status = self.status();
        self.end_moving();
        status
    }

    /// Its attributes, as the program set them.
    pub(in crate::virt::core) fn attributes(&self) -> QpAttr {
        lock_mutex(&self.control).attr
    }

    /// Bytes of the longest request in the window.
    pub(in crate::virt::core) fn longest_message(&self) -> u64 {
        let side = self.send_side.visit();
        let all = self.send.retired()..self.send.appended();
        let longest = all.map(|seq| self.send.length(seq)).max().unwrap_or(0);
        drop(side);
        longest
    }

    /// The device that it is on.
    pub(in crate::virt::core) fn device(&self) -> Option<DeviceId> {
        lock_mutex(&self.attachment).as_ref().map(|attachment| attachment.underlay.id)
    }
}
