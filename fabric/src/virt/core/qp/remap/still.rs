//! What a hold does to one queue pair: stop, and go on, with nothing in between.
//!
//! Both ends of a connection get no receive either meanwhile: a message that finds none waits, whoever posts.

use super::super::QpCore;
use super::DRAIN_PATIENCE;
use crate::abi::{qp_mask, qp_type};
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::virt::core::lock::gate;
use crate::virt::core::lock_mutex;
use crate::virt::core::policy::Source;
use crate::virt::core::record::Word;
use sojourn_logging::remap::HeldEnd;
use sojourn_logging::{Executed, Opcode};

impl QpCore {
    /// A peer holds this one: sends and receives are only appended from here on, and the program's changes wait.
    ///
    /// # Errors
    /// `EBUSY` where it is being changed, moved, held, or about to be moved; `EINVAL` where it is gone.
    pub(in crate::virt::core) fn be_held(&self) -> Result<()> {
        self.begin_moving()?;
        if self.is_broken() || lock_mutex(&self.moving).old.is_some() {
            self.end_moving();
            return Err(Error::new(
                libc::EBUSY,
                format!(
                    "the path of queue pair {:#x} has failed, and is not replaced yet",
                    self.qpn
                ),
            ));
        }
        self.stop();
        if self.srq.is_none() {
            self.recv_side.visit().set(gate::SUSPENDED);
        }
        Ok(())
    }

    /// It is held no longer.
    pub(in crate::virt::core) fn be_let_go(&self) {
        self.hear_of_peer(false);
        {
            let mut side = self.recv_side.visit();
            if side.gate() & gate::SUSPENDED != 0 {
                if side.gate() & (gate::FAILED | gate::ERR) != 0 {
                    self.end_recvs(&mut side, false);
                } else if let Err(errno) = self.hand_waiting_recvs(&mut side) {
                    let error = std::io::Error::from_raw_os_error(errno);
                    tracing::error!("queue pair {:#x}: a receive is lost: {error}", self.qpn);
                }
                side.clear(gate::SUSPENDED);
            }
        }
        self.go_on();
        self.end_moving();
    }

    /// It holds its peer, and stands as still itself. The program may destroy it meanwhile.
    ///
    /// # Errors
    /// As [`Self::be_held`].
    pub(in crate::virt::core) fn stand_still(&self) -> Result<()> {
        self.be_held()?;
        // It need not go on once it is destroyed.
        self.end_moving();
        Ok(())
    }

    /// It holds nobody any longer.
    pub(in crate::virt::core) fn stand_still_no_more(&self) {
        if self.begin_moving().is_ok() {
            self.be_let_go();
        }
    }

    /// How it stands, as its peer is told. After a harvest.
    pub(in crate::virt::core) fn held_end(&self) -> HeldEnd {
        let messages = self.received();
        let (mut psn, mut recorded) = (None, None);
        // After the count: numbers that are later say no less.
        if let Ok(attachment) = self.attachment() {
            match attachment.underlay.source {
                Source::Psn => {
                    psn = attachment.qp.query(qp_mask::RQ_PSN).ok().map(|attr| attr.rq_psn);
                }
                Source::Record => recorded = self.word.get().map(Word::recorded),
                Source::Counts => {}
            }
        }
        // Nobody posts any: what is out is consumed, or stays.
        let starved = self.srq.is_none() && self.recv.retired() == self.recv.handed();
        let executed = Executed { messages, psn, settled: true, recorded };
        HeldEnd { executed, starved, failed: self.may_have_failed() }
    }

    /// What its peer has sent has come as a whole, as far as it has come: while both stand still.
    pub(in crate::virt::core) fn hear_of_peer(&self, is_well: bool) {
        lock_mutex(&self.moving).peer_is_well = is_well;
    }

    /// Whether the first receive that is out may hold a part of a message.
    pub(in crate::virt::core) fn may_be_filled_in_part(&self) -> bool {
        !lock_mutex(&self.moving).peer_is_well
    }

    /// Whether nothing that it has handed will be executed any more, as far as its peer tells. After a harvest.
    pub(in crate::virt::core) fn is_still(&self, peer: &HeldEnd) -> bool {
        if self.goes_no_further() {
            return true;
        }
        match self.qp_type {
            qp_type::RC => {
                let settled = self.nothing_lands();
                let mut nobody_hands = self.send_side.visit();
                self.prove_tail(&mut nobody_hands);
                self.send.is_still(&peer.executed, peer.starved, settled)
            }
            // Nothing tells what has arrived: it is given time.
            _ => self.was_given_time() && self.is_quiet(),
        }
    }

    fn was_given_time(&self) -> bool {
        let since = lock_mutex(&self.moving).stopped.map(|since| since.elapsed());
        since.is_none_or(|since| since >= DRAIN_PATIENCE)
    }

    /// Nothing lands any more of a message without a receive: of a soft one nothing ever does.
    pub(super) fn nothing_lands(&self) -> bool {
        self.was_given_time()
            || self.attachment().is_ok_and(|it| it.underlay.device.kind() == Kind::Soft)
    }

    /// Whether it has failed, or its path has, as far as completions have come: it executes nothing any more, and
    /// nothing of its own is executed. What that is to mean to the program may be open still.
    pub(super) fn goes_no_further(&self) -> bool {
        self.send_side.gate() & (gate::FAILED | gate::ERR) != 0
            || self.is_broken()
            || self.qp_type == qp_type::RC && lock_mutex(&self.moving).has_failed()
    }

    /// Whether a message may have come in part, and its queue pair have failed.
    pub(in crate::virt::core) fn may_have_failed(&self) -> bool {
        self.goes_no_further() || self.recv_side.gate() & (gate::FAILED | gate::ERR) != 0
    }

    /// Whether what it has handed is through, as far as can be told, and no answer is to come. After a harvest.
    pub(in crate::virt::core) fn has_drained(&self) -> bool {
        if self.goes_no_further() {
            return true;
        }
        let answers = |seq| {
            let opcode = self.send.entry(seq).opcode;
            opcode == Opcode::Read || opcode.is_atomic()
        };
        self.is_quiet() && !(self.send.retired()..self.send.handed()).any(answers)
    }
}
