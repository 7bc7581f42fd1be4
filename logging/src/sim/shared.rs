//! A shared receive queue: all links of one process take their receives from one window.
//!
//! The device takes the oldest that was posted, for whichever queue pair has a message first: for a
//! SEND with its first packet, so that a queue pair which goes to ERR amid one has a receive in hand. That
//! comes back flushed, or vanishes without any completion (Soft RoCE of Linux 6.12 did so in 38 of 38
//! cases). Nothing else of the queue comes back by ERR, so the barrier is an event of the device,
//! which some never raise.
//!
//! What the shell does about it:
//!
//! - A process that moves creates the queue anew, and posts all that was not consumed, in the order of
//!   posting. All its queue pairs are at ERR then: whatever they took and did not complete is unconsumed.
//! - One that follows replaces only the queue pairs of the group. What came back from these is
//!   posted again at once. What may have vanished cannot be told from what another queue pair has
//!   just taken: so if the receives that were out then are not all completed after a while, the process
//!   moves by itself, which creates the queue anew.
//! - Without a barrier the numbers are told after the longest wait, and are not settled: what
//!   only they could decide ends with an error.

use super::broken::Broken;
use super::device::{Cqe, Message, QpState, Status};
use super::end::Wc;
use super::kinds::Kind;
use super::ledger::shared_id;
use super::queue::Event;
use super::rng::Rng;
use super::script::{INLINE, MAX_LENGTH};
use super::world::World;
use crate::entry::Opcode;
use crate::shared::SharedRecvWindow;
use std::collections::{BTreeSet, VecDeque};

/// The virtual shared receive queue of a world.
pub(super) struct Shared {
    process: usize,
    window: SharedRecvWindow,
    /// The physical one, of [`World::srqs`].
    physical: usize,
    /// That of a move, until it goes over.
    fresh: Option<usize>,
    /// Receives that are to be posted in all.
    wanted: u64,
    /// Of receives that may have vanished, the places in the order of posting.
    suspects: BTreeSet<u64>,
    /// The last that was consumed, for a shell that posts it again.
    consumed: Option<u32>,
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Shared { window: self.window.copy(), suspects: self.suspects.clone(), ..*self }
    }
}

impl Shared {
    /// What has not been consumed, in the order of posting.
    fn unconsumed(&self) -> Vec<(u64, u32)> {
        let slots = 0..self.window.depth();
        let mut all: Vec<(u64, u32)> =
            slots.filter_map(|slot| Some((self.window.order(slot)?, slot))).collect();
        all.sort_unstable();
        all
    }
}

/// The device.
impl World {
    /// A queue pair has no receive for the message that has come.
    pub(super) fn lacks_receive(&self, qp: usize) -> bool {
        let it = &self.qps[qp];
        match it.srq {
            Some(srq) => self.srqs[srq].is_empty(),
            None => it.has_no_receive(),
        }
    }

    /// It takes the oldest, where receives are shared.
    pub(super) fn take_shared(&mut self, qp: usize) {
        if let Some(srq) = self.qps[qp].srq {
            self.qps[qp].taken = self.srqs[srq].pop_front();
        }
    }

    /// What a queue pair had in hand when it went to ERR.
    pub(super) fn give_back_taken(&mut self, qp: usize, slot: u32) {
        if self.quirks.vanishes {
            self.note(|| format!("shared receive {slot} vanishes with queue pair {qp}"));
            return self.reach(Kind::SharedReceiveVanished);
        }
        self.complete(qp, Cqe::Recv { seq: slot.into(), message: None });
    }

    /// The only way in: a receive must not be there twice.
    fn post_shared(&mut self, srq: usize, slot: u32) {
        let taken = |qp: &&super::device::Qp| qp.srq == Some(srq) && qp.taken == Some(slot);
        if self.srqs[srq].contains(&slot) || self.qps.iter().any(|qp| taken(&qp)) {
            self.violate(format!("promise 2: shared receive {slot} was posted twice"));
        }
        self.srqs[srq].push_back(slot);
    }
}

/// The shell and its program.
impl World {
    /// From here on all ends of a process share their receives.
    pub(super) fn share_receives(&mut self, process: usize, depth: u32) {
        let own = self.ends.iter().filter(|end| end.process == process);
        self.shared = Some(Shared {
            process,
            window: SharedRecvWindow::new(depth, 1),
            physical: self.srqs.len(),
            fresh: None,
            wanted: own.map(|end| end.recvs_wanted).sum(),
            suspects: BTreeSet::new(),
            consumed: None,
        });
        self.srqs.push(VecDeque::new());
    }

    /// WRITEs of an end, whose peer shares its receives, become long SENDs.
    pub(super) fn send_more(&mut self, e: usize, rng: &mut Rng) {
        for wr in &mut self.ledger.accounts[e].script {
            if wr.opcode == Opcode::Write && wr.flags & INLINE == 0 && rng.permille(700) {
                (wr.opcode, wr.length) =
                    (Opcode::Send, rng.between(MAX_LENGTH / 2, MAX_LENGTH) as u32);
                self.ends[e ^ 1].recvs_wanted += 1;
            }
        }
    }

    pub(super) fn is_shared(&self, e: usize) -> bool {
        self.shared.as_ref().is_some_and(|it| it.process == self.ends[e].process)
    }

    /// The physical queue of a queue pair that is being made.
    pub(super) fn srq_of(&self, e: usize) -> Option<usize> {
        let it = self.shared.as_ref().filter(|it| it.process == self.ends[e].process)?;
        Some(it.fresh.unwrap_or(it.physical))
    }

    /// The program posts a receive to the shared queue.
    pub(super) fn post_next_shared(&mut self) {
        let Some(it) = &self.shared else { return };
        let n = self.ledger.shared.len() as u64;
        if n >= it.wanted {
            return;
        }
        let (physical, posted) = (it.physical, it.window.append(shared_id(n), [].into_iter()));
        if let Ok(slot) = posted {
            self.ledger.shared.push(false);
            self.note(|| format!("shared receive {} is posted in slot {slot}", shared_id(n)));
            self.post_shared(physical, slot);
        }
    }

    /// A completion of a shared receive has come to an end.
    pub(super) fn take_from_shared(
        &mut self,
        e: usize,
        seq: u64,
        message: Option<Message>,
        withhold: bool,
    ) {
        if message.is_none() && withhold {
            // A path that ends has not consumed it.
            let end = &mut self.ends[e];
            end.recv_flushed = true;
            end.withheld.push(Cqe::Recv { seq, message });
            return self.reach(Kind::SharedReceiveReturned);
        }
        let slot = seq as u32;
        let Some(it) = &mut self.shared else { return };
        let oldest = it.unconsumed().first().map(|it| it.1);
        let Some(entry) = it.window.retire(slot) else {
            return self.violate(format!(
                "promise 2: end {e} got slot {slot} of the shared queue, in which there is no receive"
            ));
        };
        it.consumed = Some(slot);
        if oldest != Some(slot) {
            self.reach(Kind::SharedOvertaken);
        }
        let end = &mut self.ends[e];
        let Some(mut message) = message else {
            end.backlog.push_back(Wc::Recv { id: entry.wr_id, message: None });
            if !end.failed {
                let first = end.send.retired();
                self.fail(e, first, Status::Flushed);
            }
            return;
        };
        end.delivered += 1;
        if message.opcode == Opcode::WriteImm {
            message.byte_len += std::mem::take(&mut end.mend);
        }
        end.backlog.push_back(Wc::Recv { id: entry.wr_id, message: Some(message) });
        self.reach(Kind::SharedReceives);
    }

    /// A move begins: a physical queue for where it goes.
    pub(super) fn make_srq(&mut self, p: usize) {
        let new = self.srqs.len();
        if let Some(it) = self.shared.as_mut().filter(|it| it.process == p) {
            it.fresh = Some(new);
            self.srqs.push(VecDeque::new());
        }
    }

    /// A move has ended: if it did not come to go over, the queue is as it was.
    pub(super) fn discard_srq(&mut self, p: usize) {
        if let Some(it) = self.shared.as_mut().filter(|it| it.process == p) {
            it.fresh = None;
        }
    }

    /// All queue pairs of a mover are at ERR: what was not consumed goes over.
    pub(super) fn go_over_shared(&mut self, ends: &[usize]) {
        if !ends.iter().any(|e| self.is_shared(*e)) {
            return;
        }
        // A queue pair that has failed does not move. What it gave back was consumed: taken later, it
        // would name a receive that has been posted anew.
        for e in 0..self.ends.len() {
            if self.is_shared(e) && self.ends[e].failed {
                self.harvest(e);
            }
        }
        let Some(it) = &mut self.shared else { return };
        let Some(new) = it.fresh.take() else { return };
        let old = std::mem::replace(&mut it.physical, new);
        it.suspects.clear();
        let (unconsumed, consumed) = (it.unconsumed(), it.consumed);
        let posted = std::mem::take(&mut self.srqs[old]);
        for (_, slot) in unconsumed {
            let stayed = posted.contains(&slot);
            if !stayed {
                self.reach(Kind::SharedFoundAgain);
            }
            if stayed || !self.is(Broken::SharedVanishedForgotten) {
                self.post_shared(new, slot);
            }
        }
        if let Some(slot) = consumed.filter(|_| self.is(Broken::SharedConsumedAgain)) {
            self.post_shared(new, slot);
        }
        self.reach(Kind::SharedMoved);
    }

    /// A new queue pair receives. Where the shared queue stays, it gets again what came back from the
    /// old one.
    pub(super) fn post_returned(&mut self, e: usize, fresh: usize) {
        let Some(srq) = self.qps[fresh].srq else { return };
        let stays = self.qps[self.ends[e].qp].srq == Some(srq);
        let (returned, rest): (Vec<Cqe>, Vec<Cqe>) = std::mem::take(&mut self.ends[e].withheld)
            .into_iter()
            .partition(|cqe| matches!(cqe, Cqe::Recv { .. }));
        self.ends[e].withheld = rest;
        for cqe in returned {
            if let Cqe::Recv { seq, .. } = cqe
                && stays
            {
                self.post_shared(srq, seq as u32);
            }
        }
    }

    /// Ends of a process have followed, and their shared queue stays.
    pub(super) fn followed_shared(&mut self, p: usize, ends: &[usize]) {
        if !ends.iter().any(|e| self.is_shared(*e)) {
            return;
        }
        self.reach(Kind::SharedFollowed);
        let Some(it) = &mut self.shared else { return };
        let out = it.unconsumed();
        it.suspects.extend(out.iter().map(|it| it.0));
        if !out.is_empty() && !self.is(Broken::SharedNeverAnew) {
            self.look_again_at_shared(p);
        }
    }

    fn look_again_at_shared(&mut self, p: usize) {
        if !self.queue.has(&Event::Anew(p)) {
            let at = self.now + self.rng.between(500, 3_000);
            self.queue.push(at, Event::Anew(p));
        }
    }

    /// Creates a shared queue anew, if receives have not come back that may have vanished.
    pub(super) fn create_anew(&mut self, p: usize) {
        let Some(it) = &mut self.shared else { return };
        let out: BTreeSet<u64> = it.unconsumed().iter().map(|it| it.0).collect();
        it.suspects.retain(|order| out.contains(order));
        let none = it.suspects.is_empty() || self.procs[p].dead;
        let is_well = |e: usize| self.ends[e].process == p && !self.ends[e].failed;
        if none || !(0..self.ends.len()).any(is_well) {
            return;
        }
        // Until a move has gone over.
        self.look_again_at_shared(p);
        let process = &self.procs[p];
        if process.moving.is_none() && process.following.is_empty() {
            self.reach(Kind::SharedAnew);
            self.begin_move(p);
        }
    }

    /// In the end each shared receive was consumed once, or is where a message can still take it.
    pub(super) fn account_for_shared(&self) -> Result<(), String> {
        let Some(it) = &self.shared else { return Ok(()) };
        let p = &self.procs[it.process];
        let own: Vec<usize> = (0..self.ends.len()).filter(|e| self.is_shared(*e)).collect();
        // Nothing may tell the program that one has failed which has sent nothing.
        let excused = |e: &&usize| self.ledger.accounts[**e].excuse.is_some();
        if let Some(e) = own.iter().find(|e| self.ends[**e].failed && !excused(e)) {
            return Err(format!("promise 1: end {e} failed for no reason"));
        }
        // With a queue pair that failed may go what it had in hand, as verbs have it.
        if p.dead || own.iter().any(|e| self.ends[*e].failed) {
            return Ok(());
        }
        let unconsumed = it.unconsumed();
        let open = self.ledger.shared.iter().filter(|seen| !**seen).count();
        let backlog = own.iter().flat_map(|e| &self.ends[*e].backlog);
        let coming = backlog.filter(|wc| matches!(wc, Wc::Recv { .. })).count();
        if open != coming + unconsumed.len() {
            return Err(format!(
                "promise 2: {open} shared receives have no completion; {coming} are on their way, and \
                 the window holds {}",
                unconsumed.len()
            ));
        }
        for (_, slot) in unconsumed {
            let posted = self.srqs[it.physical].iter().filter(|it| **it == slot).count();
            let in_hand = |e: &&usize| {
                let qp = &self.qps[self.ends[**e].qp];
                let comes = |cqe: &Cqe| matches!(cqe, Cqe::Recv { seq, .. } if *seq == slot.into());
                qp.state == QpState::Ready && qp.taken == Some(slot)
                    || qp.cq.iter().any(|(_, cqe)| comes(cqe))
            };
            let places = posted + own.iter().filter(in_hand).count();
            if places != 1 {
                return Err(format!(
                    "promise 2: the shared receive in slot {slot} is in {places} places, not in 1"
                ));
            }
        }
        Ok(())
    }
}
