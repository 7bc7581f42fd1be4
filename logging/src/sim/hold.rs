//! Holding: the shell around the holder's machine, and the check that nothing lands in a process that is held
//! still.

use super::broken::Broken;
use super::device::Source;
use super::kinds::Kind;
use super::queue::{Event, Time};
use super::shell::{Letter, Party, Word, time};
use super::world::World;
use crate::remap::{
    Answer, GroupId, HeldEnd, HeldLink, HoldAction, HoldAsk, HoldFailure, HoldStage, Holder,
    HolderLimits, Request,
};
use crate::replay::Executed;
use std::time::Duration;

/// A hold that is under way.
#[derive(Clone, Debug, Hash)]
pub(super) struct Hold {
    pub(super) machine: Holder,
    pub(super) parties: Vec<Party>,
    /// Something has landed, or come back, while it was on.
    disturbed: bool,
    /// It is to last so long.
    lasts: Time,
}

impl World {
    fn holder_limits(&self) -> HolderLimits {
        HolderLimits {
            quiesce: self.mover_limits.quiesce,
            drain: Duration::from_micros(6_000),
            finish: self.mover_limits.abort,
            pause: self.mover_limits.pause,
            again: self.mover_limits.again,
            patience: self.follower_limits.patience,
        }
    }

    /// A process wants to stand still, with all of its ends that are well.
    pub(super) fn begin_hold(&mut self, p: usize) {
        let process = &self.procs[p];
        if process.dead || process.holding.is_some() {
            return;
        }
        if process.moving.is_some() || !process.following.is_empty() {
            return self.hold_later(p);
        }
        let ends = (0..self.ends.len()).filter(|e| self.ends[*e].process == p);
        let mut parties: Vec<Party> = Vec::new();
        for e in ends.filter(|e| !self.ends[*e].failed).collect::<Vec<_>>() {
            let peer = self.ends[e ^ 1].process;
            let known = parties.iter().position(|party| party.peer == peer);
            let at = known.unwrap_or_else(|| {
                let id = GroupId(self.procs[p].next_group);
                self.procs[p].next_group += 1;
                parties.push(Party { peer, id, ends: Vec::new() });
                parties.len() - 1
            });
            parties[at].ends.push(e);
        }
        self.note(|| format!("process {p} wants to stand still: {parties:?}"));
        let mut machine = Holder::new(parties.len(), time(self.now), self.holder_limits());
        for (at, party) in parties.iter().enumerate() {
            if self.procs[p].known_dead.contains(&party.peer) {
                machine.lost(at, time(self.now));
            }
        }
        // All links are of some party.
        machine.drained(time(self.now));
        let lasts = self.rng.between(10, 3_000);
        let hold = Hold { machine, parties, disturbed: false, lasts };
        self.procs[p].holding = Some(Box::new(hold));
        self.drive_hold(p);
    }

    fn hold_later(&mut self, p: usize) {
        let later = self.now + self.rng.between(20, 600);
        if later < self.horizon {
            self.queue.push(later, Event::Hold(p));
        }
    }

    pub(super) fn end_hold(&mut self, p: usize) {
        if self.procs[p].dead {
            return;
        }
        if let Some(hold) = &mut self.procs[p].holding {
            hold.machine.end(time(self.now));
        }
        self.drive_hold(p);
    }

    /// Does what the holder's machine wants, as long as there is something.
    pub(super) fn drive_hold(&mut self, p: usize) {
        let Some(mut hold) = self.procs[p].holding.take() else { return };
        while let Some(action) = hold.machine.poll(time(self.now)) {
            self.note(|| format!("process {p}: {action:?}"));
            let all: Vec<usize> = hold.parties.iter().flat_map(|it| it.ends.clone()).collect();
            match action {
                HoldAction::Stop => all.into_iter().for_each(|e| self.stand_still(e)),
                HoldAction::Ask(at, ask) => {
                    let Party { peer, id, ends } = hold.parties[at].clone();
                    let request = ask.plain().unwrap_or_else(|| {
                        let links = ends.into_iter().map(|e| self.held_link(e)).collect();
                        Request::Hold { links }
                    });
                    debug_assert!(ask != HoldAsk::Hold || matches!(request, Request::Hold { .. }));
                    let what = Word::Ask(request);
                    self.send_letter(Letter { from: p, to: peer, id, at, what });
                }
                HoldAction::Held => {
                    self.reach(Kind::Held);
                    self.queue.push(self.now + hold.lasts, Event::EndHold(p));
                }
                HoldAction::GoOn => all.into_iter().for_each(|e| self.go_on_receiving(e)),
                HoldAction::Ended(result) => return self.hold_ended(p, &hold, result),
            }
        }
        let wake = hold.machine.wake_at().map(|at| at.as_micros() as Time);
        self.procs[p].holding = Some(hold);
        if let Some(at) = wake {
            self.tick_at(p, at.max(self.now + 1));
        }
    }

    /// A party of a hold has answered: it is as still as both sides are.
    pub(super) fn hold_answered(&mut self, p: usize, at: usize, answer: Answer<usize>) {
        let Some(mut hold) = self.procs[p].holding.take() else { return };
        let answer = match answer {
            Answer::Still { still, ends } => {
                let mine = hold.parties[at].ends.clone();
                let own = mine.iter().zip(&ends).all(|(e, end)| match end {
                    Some(end) => self.is_held_still(*e, end),
                    None => true,
                });
                Answer::Still { still: still && own && ends.len() == mine.len(), ends }
            }
            answer => answer,
        };
        hold.machine.answer(at, answer, time(self.now));
        self.procs[p].holding = Some(hold);
        self.drive_hold(p);
    }

    fn hold_ended(&mut self, p: usize, hold: &Hold, result: Result<Option<usize>, HoldFailure>) {
        self.note(|| format!("process {p}: its hold has ended: {result:?}"));
        match result {
            Ok(None) if hold.disturbed => {
                self.violate(format!(
                    "hold: something landed in process {p} while it was held, and nobody says so"
                ));
            }
            Ok(None) => {}
            Ok(Some(_)) => self.reach(Kind::HoldLapsed),
            Err(_) => {
                self.reach(Kind::HoldTakenBack);
                self.hold_later(p);
            }
        }
    }

    /// Nothing is handed from here on, and no receive.
    pub(super) fn stand_still(&mut self, e: usize) {
        self.stop(e);
        self.ends[e].recv_suspended = !self.is_shared(e) && !self.is(Broken::HeldReceives);
    }

    pub(super) fn go_on_receiving(&mut self, e: usize) {
        let end = &mut self.ends[e];
        end.recv_suspended = false;
        if !end.failed && !self.is_shared(e) {
            let (end, qp) = (&self.ends[e], self.ends[e].qp);
            let waiting = end.recv.handed()..end.recv.appended();
            end.recv.mark_handed(end.recv.appended());
            waiting.for_each(|seq| self.post_recv(qp, seq));
        }
        self.go_on(e);
    }

    fn held_link(&mut self, e: usize) -> HeldLink {
        HeldLink { qpn: (e ^ 1) as u32, holder_qpn: e as u32, end: self.held_end(e) }
    }

    /// How an end stands.
    pub(super) fn held_end(&mut self, e: usize) -> HeldEnd {
        self.harvest(e);
        let messages = self.ends[e].delivered;
        let psn = self.query_psn(self.ends[e].qp);
        let recorded = (self.quirks.source == Source::Record).then_some(self.ends[e].word);
        let end = &self.ends[e];
        let starved = !self.is_shared(e) && end.recv.retired() == end.recv.handed();
        HeldEnd {
            executed: Executed { messages, psn, settled: true, recorded },
            starved,
            failed: end.failed,
        }
    }

    /// Whether what an end has handed will not be executed any more, as far as its peer tells.
    pub(super) fn is_held_still(&mut self, e: usize, peer: &HeldEnd) -> bool {
        self.harvest(e);
        if self.is(Broken::HeldWhenQuiet) {
            return self.is_quiet(e);
        }
        self.prove_tail(e);
        let end = &self.ends[e];
        let still = end.failed || end.send.is_still(&peer.executed, peer.starved, false);
        if still && !end.failed && peer.starved && end.send.retired() < end.send.handed() {
            self.reach(Kind::HeldStarved);
        }
        still
    }

    /// A request has landed in the memory of an end's process, or an answer to one has.
    pub(super) fn lands(&mut self, e: usize) {
        let now = time(self.now);
        let p = self.ends[e].process;
        let Some(hold) = &mut self.procs[p].holding else { return };
        if hold.machine.stage() != HoldStage::Held {
            return;
        }
        hold.disturbed = true;
        if hold.machine.lapsed(now).is_none() {
            self.violate(format!("hold: something lands at end {e} of process {p}, which is held"));
        }
    }
}
