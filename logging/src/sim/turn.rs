//! Suspend, attach, replay: what a re-map does to one end.
//!
//! The same steps as `sojourn-fabric`'s virtual queue pair takes, over the same windows and the same
//! judgement.

use super::broken::Broken;
use super::device::{QpState, Source, Status};
use super::end::{Fresh, Wc};
use super::kinds::Kind;
use super::late::Late;
use super::ledger::SendWc;
use super::script::{SIGNALED, answers};
use super::world::World;
use crate::entry::Opcode;
use crate::replay::{Executed, Plan, Replay, Start};

fn is_write(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Write | Opcode::WriteImm)
}

impl World {
    /// A new physical queue pair for an end, connected where the other end is known.
    pub(super) fn make_fresh(&mut self, e: usize, device: u32) -> usize {
        let psn = self.first_psn();
        let mtu = self.mtu_of(e, self.ends[e].incarnation);
        let qp = self.make_qp(e, device, psn, mtu);
        self.ends[e].fresh = Some(Fresh { qp, receives: false });
        qp
    }

    pub(super) fn discard(&mut self, e: usize) {
        if let Some(fresh) = self.ends[e].fresh.take() {
            self.qps[fresh.qp].state = QpState::Gone;
        }
    }

    /// Sends are only appended from here on.
    pub(super) fn stop(&mut self, e: usize) {
        let end = &mut self.ends[e];
        (end.suspended, end.withhold) = (true, Some(end.qp));
        (end.recv_back, end.told) = (false, false);
        (end.recv_flushed, end.late) = (false, Late::default());
        end.withheld.clear();
        if end.blocked {
            self.reach(Kind::MovedWhileBlocked);
        }
        if self.is(Broken::ProofAtEachStop) {
            self.ends[e].proofs.clear();
        }
        self.prove_tail(e);
    }

    /// Behind a tail that no completion would prove goes a request of ours that does, unless an earlier one is out.
    pub(super) fn prove_tail(&mut self, e: usize) {
        let end = &self.ends[e];
        // Behind requests that still wait to be handed again a proof would prove what was not sent.
        let in_place = end.again.is_empty() || self.is(Broken::ProofBeforeReplays);
        let may = end.suspended && !end.failed && end.proofs.is_empty();
        if may && in_place && self.has_unproven_tail(e) {
            self.prove(e, true);
        }
    }

    /// A WRITE is out behind which nothing is signalled.
    fn has_unproven_tail(&self, e: usize) -> bool {
        let send = &self.ends[e].send;
        let comes_back = |seq: &u64| self.comes_back(e, *seq);
        let out = (send.retired()..send.handed()).rev();
        out.take_while(|seq| !comes_back(seq)).any(|seq| is_write(send.entry(seq).opcode))
    }

    fn comes_back(&self, e: usize, seq: u64) -> bool {
        let entry = self.ends[e].send.entry(seq);
        entry.flags & SIGNALED != 0 || answers(entry.opcode)
    }

    /// Nothing that was handed is still to be executed, as far as can be told.
    pub(super) fn is_quiet(&mut self, e: usize) -> bool {
        self.prove_tail(e);
        let end = &self.ends[e];
        if end.failed {
            return true;
        }
        let waits = !end.proofs.is_empty() || !end.replays.is_empty() || !end.again.is_empty();
        !waits
            && (end.send.retired()..end.send.handed())
                .all(|seq| !self.comes_back(e, seq) && !is_write(end.send.entry(seq).opcode))
    }

    /// The old queue pair to ERR. Receives are only appended from here on.
    pub(super) fn take_down(&mut self, e: usize) {
        self.harvest(e);
        let end = &mut self.ends[e];
        end.recv_suspended = true;
        let (retired, handed) = (end.recv.retired(), end.recv.handed());
        end.last_recv = (retired < handed).then(|| handed - 1);
        let qp = end.qp;
        if self.qps[qp].is_amid_send() {
            self.reach(Kind::SendCut);
        }
        if self.is(Broken::Reset) {
            self.ends[e].last_recv = None;
            return self.reset(qp);
        }
        self.expect_lies(e);
        if !self.is(Broken::NoFencing) {
            self.modify_err(qp);
        }
        let end = &self.ends[e];
        let handed = end.send.handed();
        if end.send.retired() < handed && end.proofs.last() != Some(&handed) {
            self.prove(e, false);
        }
    }

    /// How far the old queue pair has come as a responder; `None` where something is still to come back
    /// from it, unless this is the last look.
    pub(super) fn executed(&mut self, e: usize, last_look: bool) -> Option<Executed> {
        self.harvest(e);
        let end = &self.ends[e];
        let exact = self.quirks.exact;
        let no_barrier = [Broken::NoBarrier, Broken::Reset, Broken::NoFencing];
        let barrier = match self.qps[end.qp].srq {
            // The event says nothing of completions that are still on their way.
            Some(_) => {
                let last = self.qps[end.qp].last_told && !self.has_cqes(end.qp);
                last || end.recv_flushed || self.is(Broken::SharedNotAwaited)
            }
            None => end.last_recv.is_none() || end.recv_back,
        };
        let waits = !barrier || !end.proofs.is_empty();
        let told_anyway = no_barrier.iter().any(|it| self.is(*it));
        if !exact && !last_look && !told_anyway && waits {
            return None;
        }
        // At ERR these execute nothing, but what they have completed is still on its way.
        if exact && !last_look && !told_anyway && self.has_cqes(end.qp) {
            return None;
        }
        let passed = match self.qps[end.qp].srq {
            Some(_) => barrier && !self.is(Broken::SharedNotAwaited),
            None => end.last_recv.is_some() && end.recv_back,
        };
        let settled = exact || told_anyway || passed;
        let qp = end.qp;
        if !settled && self.qps[qp].srq.is_some() {
            self.reach(Kind::SharedNoBarrier);
        }
        if last_look && waits {
            self.reach(Kind::NoBarrier);
        }
        let psn = self.query_psn(qp);
        self.settle_late(e, psn);
        let end = &self.ends[e];
        let flushed_too = self.is(Broken::FlushedCounted) && !self.is_shared(e);
        let messages = if flushed_too { end.recv.retired() } else { end.delivered };
        let recorded = (self.quirks.source == Source::Record).then_some(self.ends[e].word);
        Some(Executed { messages, psn, settled, recorded })
    }

    /// All ends of a group have been asked: what comes later from the old queue pairs is forgotten.
    pub(super) fn numbers_told(&mut self, e: usize, executed: &Executed) {
        let qp = self.ends[e].qp;
        self.ends[e].told = true;
        self.qps[qp].told |= executed.settled && self.qps[qp].state != QpState::Init;
    }

    /// Hands all receives to the new queue pair.
    pub(super) fn receive_on(&mut self, e: usize) {
        let Some(fresh) = &mut self.ends[e].fresh else { return };
        fresh.receives = true;
        let qp = fresh.qp;
        let end = &mut self.ends[e];
        end.recv_suspended = false;
        if self.is_shared(e) {
            return self.post_returned(e, qp);
        }
        let end = &self.ends[e];
        if end.failed {
            return;
        }
        if !self.is(Broken::ReceivesLost) {
            self.ends[e].recv.unhand(self.ends[e].recv.retired());
        }
        let recv = &self.ends[e].recv;
        let waiting = recv.handed()..recv.appended();
        recv.mark_handed(recv.appended());
        for seq in waiting {
            self.post_recv(qp, seq);
        }
    }

    /// Goes over to the new queue pair. Returns how many bytes of a WRITE with immediate data had
    /// landed, where one was cut: the end then waits to be released.
    pub(super) fn attach(&mut self, e: usize, peer: &Executed) -> Option<u32> {
        let Fresh { qp, .. } = self.ends[e].fresh?;
        let plan = self.judged(e, peer);
        self.note(|| format!("end {e} attaches {qp}: {peer:?} gives {plan:?}"));
        let end = &mut self.ends[e];
        end.fresh = None;
        let old = std::mem::replace(&mut end.qp, qp);
        end.left.push(old);
        end.moves += 1;
        let moves = end.moves;
        end.told = false;
        end.proofs.clear();
        if moves > 1 {
            self.reach(Kind::MovedAgain);
        }
        let (psn, mtu) = (self.qps[qp].psn, self.qps[qp].mtu);
        if mtu != self.qps[old].mtu {
            self.reach(Kind::MtuChanged);
        }
        if self.ends[e].failed {
            self.ends[e].suspended = false;
            self.modify_err(qp);
            return None;
        }
        let plan = match plan {
            Ok(plan) if plan.undecided.is_none() => plan,
            Ok(plan) => {
                self.excuse_undecided(e, &plan, peer);
                self.give_up(e, Some(plan));
                return None;
            }
            Err(()) => {
                self.give_up(e, None);
                return None;
            }
        };
        let end = &mut self.ends[e];
        end.send.attach(Start { psn, mtu }, &plan);
        end.executed = plan.executed.iter().copied().collect();
        end.replays = plan.replays.iter().map(|it| it.seq).collect();
        end.again = plan.replays.iter().copied().collect();
        let cut = plan
            .replays
            .iter()
            .find(|it| it.skip > 0 && end.send.entry(it.seq).opcode == Opcode::WriteImm);
        let cut = cut.map(|it| it.skip);
        self.reach_plan(e, &plan);
        if self.is(Broken::SynthesisedTwice) {
            let end = &mut self.ends[e];
            for seq in plan.executed.iter().filter(|seq| end.send.is_signaled(**seq)) {
                let (wr_id, status) = (end.send.wr_id(*seq), Status::Success);
                end.backlog.push_back(Wc::Send(SendWc { wr_id, status, result: None }));
            }
        }
        self.take_due(e);
        if cut.is_some() && !self.is(Broken::CutNotAwaited) {
            return cut;
        }
        self.ends[e].suspended = false;
        self.push(e, false);
        cut
    }

    /// What is to be done with what was handed. An error where it cannot be told.
    fn judged(&mut self, e: usize, peer: &Executed) -> Result<Plan, ()> {
        let end = &self.ends[e];
        let (retired, handed) = (end.send.retired(), end.send.handed());
        let told = *peer;
        if self.is(Broken::NoDuplicateCheck) {
            let replays = (retired..handed).map(|seq| Replay { seq, skip: 0 }).collect();
            return Ok(Plan { replays, ..Plan::default() });
        }
        let told =
            if self.is(Broken::NumberIgnored) { Executed { psn: None, ..told } } else { told };
        let without = end.send.judge(&Executed { recorded: None, ..told }, retired);
        let mut plan = match end.send.judge(&told, retired) {
            Ok(plan) => {
                let undecided = |plan: &Plan| plan.undecided.unwrap_or(u64::MAX);
                if without.is_ok_and(|without| undecided(&without) < undecided(&plan)) {
                    self.reach(Kind::RecordProved);
                }
                plan
            }
            Err(error) => {
                self.note(|| format!("end {e}: {error}"));
                if !self.ends[e].failed && self.ledger.accounts[e].excuse.is_none() {
                    self.violate(format!("end {e}: its peer's true numbers were refused: {error}"));
                }
                return Err(());
            }
        };
        let goes_on = self.is(Broken::AtomicsReplayed)
            && plan.undecided.is_some_and(|seq| self.ends[e].send.entry(seq).opcode.is_atomic());
        let as_not_executed =
            self.is(Broken::NumberIgnored) || self.is(Broken::BeyondRecordReplayed) || goes_on;
        if let Some(first) = plan.undecided.filter(|_| as_not_executed) {
            plan.replays.extend((first..handed).map(|seq| Replay { seq, skip: 0 }));
            plan.undecided = None;
        }
        if self.is(Broken::Suffix)
            && let Some(first) = plan.replays.first().map(|it| it.seq)
        {
            plan.executed.retain(|seq| *seq < first);
            plan.replays = (first..handed).map(|seq| Replay { seq, skip: 0 }).collect();
        }
        Ok(plan)
    }

    /// Some things nobody can know: the link may fail for that, and for nothing else.
    fn excuse_undecided(&mut self, e: usize, plan: &Plan, peer: &Executed) {
        let Some(seq) = plan.undecided else { return };
        let opcode = self.ends[e].send.entry(seq).opcode;
        let no_number = peer.psn.is_none() || !peer.settled;
        if opcode.is_atomic() {
            self.reach(Kind::AtomicUndecided);
            self.excuse(e, "an atomic's result was lost");
        } else if is_write(opcode) && peer.recorded.is_some_and(|recorded| seq < recorded) {
            self.violate(format!("promise 3: {opcode:?} {seq} of end {e} was recorded: {peer:?}"));
        } else if no_number {
            self.reach(Kind::WriteUndecided);
            if self.is_shared(e ^ 1) && !peer.settled && self.quirks.source == Source::Psn {
                self.reach(Kind::SharedUndecided);
            }
            self.excuse(e, "there was no number to tell of a WRITE");
        } else {
            self.violate(format!("promise 3: {opcode:?} {seq} of end {e} was decidable: {peer:?}"));
        }
    }

    fn reach_plan(&mut self, e: usize, plan: &Plan) {
        if !plan.replays.is_empty() {
            self.reach(Kind::Replayed);
        }
        for replay in &plan.replays {
            let opcode = self.ends[e].send.entry(replay.seq).opcode;
            match opcode {
                Opcode::Read if plan.executed.iter().any(|seq| *seq > replay.seq) => {
                    self.reach(Kind::ReadAgain);
                }
                Opcode::Write if replay.skip > 0 => self.reach(Kind::WriteCut),
                Opcode::WriteImm if replay.skip > 0 => self.reach(Kind::WriteImmCut),
                _ => {}
            }
            if replay.skip > 0 && !self.cut_before.insert((e, replay.seq)) {
                self.reach(Kind::CutTwice);
            }
        }
    }

    /// The path cannot be gone on with: the first request that was not executed for certain, and all
    /// behind it, end with errors.
    fn give_up(&mut self, e: usize, plan: Option<Plan>) {
        let retired = self.ends[e].send.retired();
        let (first, executed) = match plan {
            Some(plan) => {
                let replay = plan.replays.first().map(|it| it.seq);
                (replay.into_iter().chain(plan.undecided).min().unwrap_or(retired), plan.executed)
            }
            None => (retired, Vec::new()),
        };
        let end = &mut self.ends[e];
        end.suspended = false;
        end.executed = executed.into_iter().filter(|seq| *seq < first).collect();
        self.fail(e, first, Status::RetryExceeded);
    }

    /// The peer is gone: what was handed ends as verbs end it.
    pub(super) fn lose_peer(&mut self, e: usize) {
        if self.ends[e].fresh.is_some_and(|fresh| fresh.receives) {
            self.harvest(e);
        }
        if self.ends[e].failed {
            self.ends[e].suspended = false;
        } else {
            self.give_up(e, None);
        }
    }

    /// Goes on after its first request was cut.
    pub(super) fn release(&mut self, e: usize) {
        if std::mem::take(&mut self.ends[e].suspended) {
            self.push(e, false);
        }
    }

    /// Goes on with the old queue pair.
    pub(super) fn go_on(&mut self, e: usize) {
        let withheld = std::mem::take(&mut self.ends[e].withheld);
        self.ends[e].withhold = None;
        if !self.is(Broken::WithheldForgotten) {
            if !withheld.is_empty() {
                self.reach(Kind::GivenBack);
            }
            for cqe in withheld {
                self.take(e, cqe, self.ends[e].qp);
            }
        }
        self.release(e);
    }

    /// Destroys what was left.
    pub(super) fn leave(&mut self, e: usize) {
        let end = &mut self.ends[e];
        end.withhold = None;
        end.withheld.clear();
        let left = std::mem::take(&mut end.left);
        if !self.is(Broken::NoFencing) {
            for qp in left {
                self.qps[qp].state = QpState::Gone;
            }
        }
    }

    /// The request whose receive comes next was cut: so many bytes of it had landed.
    pub(super) fn expect_cut(&mut self, e: usize, landed: u32) {
        if !self.is(Broken::CutNotTold) {
            self.ends[e].mend = landed;
        }
    }
}
