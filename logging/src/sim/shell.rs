//! A process: it moves, follows, and talks. The shell around the mover's machine is here, that around
//! the follower's in `follow`.

use super::broken::Broken;
use super::follow::Group;
use super::hold::Hold;
use super::kinds::Kind;
use super::queue::{Event, Time};
use super::world::World;
use crate::remap::{Action, Answer, Event as Told, Failure, GroupId, Mover, Offer, Request, Stage};
use crate::replay::Executed;
use std::time::Duration;

/// Time in which a queue pair at ERR gives back what was posted to it; beyond it, its numbers are told
/// as they are.
pub(super) const BARRIER_PATIENCE: Time = 300;

/// A message between processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Letter {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The mover's group, and its place in the move.
    pub(super) id: GroupId,
    pub(super) at: usize,
    pub(super) what: Word,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Word {
    Ask(Request<usize>),
    Answer(Answer<usize>),
}

/// One group of a move.
#[derive(Clone, Debug, Hash)]
pub(super) struct Party {
    pub(super) peer: usize,
    pub(super) id: GroupId,
    pub(super) ends: Vec<usize>,
}

/// A move that is under way.
#[derive(Clone, Debug, Hash)]
pub(super) struct Move {
    pub(super) machine: Mover<usize>,
    pub(super) parties: Vec<Party>,
    device: u32,
    drained: bool,
    /// When its queue pairs were taken down, until that is done.
    down_at: Option<Time>,
}

/// A process.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Process {
    pub(super) dead: bool,
    pub(super) moving: Option<Box<Move>>,
    pub(super) holding: Option<Box<Hold>>,
    pub(super) following: Vec<Group>,
    /// Groups that have ended, and whether by the mover's last word.
    pub(super) ended: Vec<(usize, GroupId, bool)>,
    pub(super) next_group: u64,
    /// Those of whose death it has learnt.
    pub(super) known_dead: Vec<usize>,
    /// The device that it is on, and the last that it opened.
    pub(super) device: u32,
    pub(super) devices: u32,
    /// When the shells look around next.
    tick_at: Option<Time>,
    pub(super) letters_by: Vec<Time>,
}

impl Process {
    /// One of so many.
    pub(super) fn new(processes: usize) -> Self {
        Process { letters_by: vec![0; processes], ..Process::default() }
    }

    /// When its barriers are not waited for any longer.
    pub(super) fn barriers(&self) -> impl Iterator<Item = Time> {
        let moving = self.moving.iter().filter_map(|it| it.down_at);
        let following = self.following.iter().filter_map(Group::down_at);
        moving.chain(following).map(|at| at + BARRIER_PATIENCE)
    }
}

pub(super) fn time(at: Time) -> Duration {
    Duration::from_micros(at)
}

impl World {
    pub(super) fn send_letter(&mut self, letter: Letter) {
        let (from, to) = (letter.from, letter.to);
        if self.procs[from].dead {
            return;
        }
        self.note(|| format!("process {from} to {to}: {:?} {:?}", letter.id, letter.what));
        let faulty = self.now < self.horizon;
        let faults = self.faults;
        if faulty && self.rng.permille(faults.letter_lost) {
            let after = match &letter.what {
                Word::Ask(Request::Switch { .. } | Request::Finish { .. }) => true,
                Word::Answer(it) => matches!(it, Answer::Switched { .. } | Answer::Finished),
                Word::Ask(_) => false,
            };
            self.reach(if after { Kind::LetterLostAfter } else { Kind::LetterLostBefore });
            return self.note(|| "  it is lost".into());
        }
        let mut delay = if self.is_exhaustive() { 0 } else { self.rng.between(2, 30) };
        if faulty && self.rng.permille(faults.letter_late) {
            delay += self.rng.between(100, 2 * faults.latest);
        }
        let overtakes = faulty && self.rng.permille(faults.letter_overtakes);
        let by = &mut self.procs[from].letters_by[to];
        let at = if overtakes { self.now + delay } else { (self.now + delay).max(*by) };
        let overtaken = at < *by;
        *by = at.max(*by);
        if overtaken {
            self.reach(Kind::LetterOvertaken);
        }
        self.queue.push(at, Event::Letter(Box::new(letter)));
    }

    pub(super) fn letter_came(&mut self, letter: Letter) {
        if self.procs[letter.to].dead {
            return;
        }
        let Letter { from, to, id, at, what } = letter;
        match what {
            Word::Ask(request) => {
                let answer = self.answer(to, from, id, request);
                let what = Word::Answer(answer);
                self.send_letter(Letter { from: to, to: from, id, at, what });
                self.tick_soon(to);
            }
            Word::Answer(answer) => {
                if let Some(hold) = &self.procs[to].holding {
                    if hold.parties.get(at).is_some_and(|party| party.id == id) {
                        self.hold_answered(to, at, answer);
                    }
                    return;
                }
                let Some(moving) = &mut self.procs[to].moving else { return };
                if moving.parties.get(at).is_some_and(|party| party.id == id) {
                    moving.machine.event(Told::Answer(at, answer), time(self.now));
                    self.drive(to);
                }
            }
        }
    }

    /// The shells of a process look around, at the latest then.
    pub(super) fn tick_at(&mut self, p: usize, at: Time) {
        let at = at.max(self.now);
        if self.is_exhaustive() {
            return; // Shells look around at any time.
        }
        if self.procs[p].tick_at.is_none_or(|known| known > at || known < self.now) {
            self.procs[p].tick_at = Some(at);
            self.queue.push(at, Event::Tick(p));
        }
    }

    pub(super) fn tick_soon(&mut self, p: usize) {
        let at = self.now + self.rng.between(5, 40);
        self.tick_at(p, at);
    }

    pub(super) fn tick_came(&mut self, p: usize) {
        if self.procs[p].tick_at.is_some_and(|at| at <= self.now) {
            self.procs[p].tick_at = None;
        }
        if self.procs[p].dead {
            return;
        }
        self.drive(p);
        self.drive_hold(p);
        self.wake_followers(p);
    }

    /// A process begins to move all of its ends that are well.
    pub(super) fn begin_move(&mut self, p: usize) {
        let process = &self.procs[p];
        if process.dead || process.moving.is_some() {
            return;
        }
        let follows = !process.following.is_empty() && !self.is(Broken::BusyIgnored);
        if follows || process.holding.is_some() {
            let later = self.now + self.rng.between(20, 400);
            if later < self.horizon {
                self.queue.push(later, Event::Move(p));
            }
            return;
        }
        let ends: Vec<usize> = (0..self.ends.len())
            .filter(|e| self.ends[*e].process == p && !self.ends[*e].failed)
            .collect();
        self.procs[p].devices += 1;
        let device = self.procs[p].devices;
        let mut parties: Vec<Party> = Vec::new();
        let mut offers: Vec<Vec<Offer<usize>>> = Vec::new();
        let split = !self.is_exhaustive() && self.rng.permille(200);
        self.make_srq(p);
        for e in ends {
            self.ends[e].incarnation += 1;
            let qp = self.make_fresh(e, device);
            let peer = self.ends[e ^ 1].process;
            let known = parties.iter().position(|party| party.peer == peer);
            let at = known.filter(|_| !split).unwrap_or_else(|| {
                let id = GroupId(self.procs[p].next_group);
                self.procs[p].next_group += 1;
                parties.push(Party { peer, id, ends: Vec::new() });
                offers.push(Vec::new());
                parties.len() - 1
            });
            if known.is_some() && split {
                self.reach(Kind::SplitGroups);
            }
            parties[at].ends.push(e);
            offers[at].push(Offer {
                qpn: (e ^ 1) as u32,
                mover_qpn: e as u32,
                incarnation: self.ends[e].incarnation,
                end: qp,
                psn: self.qps[qp].psn,
            });
        }
        self.note(|| format!("process {p} moves to device {device}: {parties:?}"));
        let mut machine = Mover::new(offers, time(self.now), self.mover_limits);
        for (at, party) in parties.iter().enumerate() {
            if self.procs[p].known_dead.contains(&party.peer) {
                machine.event(Told::Lost(at), time(self.now));
            }
        }
        let (drained, down_at) = (false, None);
        self.procs[p].moving = Some(Box::new(Move { machine, parties, device, drained, down_at }));
        self.drive(p);
    }

    /// Does what the mover's machine wants, as long as there is something.
    pub(super) fn drive(&mut self, p: usize) {
        let Some(mut moving) = self.procs[p].moving.take() else { return };
        loop {
            let stage = moving.machine.stage();
            let Some(action) = moving.machine.poll(time(self.now)) else {
                if self.look_around(&mut moving) {
                    continue;
                }
                break;
            };
            if stage == Stage::Quiesce && moving.machine.stage() == Stage::Down && !moving.drained {
                self.reach(Kind::DrainDeadline);
            }
            if let Action::Ended(result) = action {
                self.procs[p].moving = None;
                return self.end_move(p, &moving, result);
            }
            // Sides of a group look at the process, and see that it moves.
            self.act(p, &mut moving, action);
        }
        let wake = moving.machine.wake_at().map(|at| at.as_micros() as Time);
        let busy = matches!(moving.machine.stage(), Stage::Quiesce | Stage::Down);
        self.procs[p].moving = Some(moving);
        if let Some(at) = wake {
            self.tick_at(p, at.max(self.now + 1));
        }
        if busy {
            self.tick_soon(p);
        }
    }

    /// What the machine waits for from its driver. True where it was told something.
    fn look_around(&mut self, moving: &mut Move) -> bool {
        let ends: Vec<usize> = moving.parties.iter().flat_map(|it| it.ends.clone()).collect();
        match moving.machine.stage() {
            Stage::Quiesce if !moving.drained => {
                ends.iter().for_each(|e| self.harvest(*e));
                moving.drained = ends.iter().all(|e| self.is_quiet(*e));
                if moving.drained {
                    moving.machine.event(Told::Drained, time(self.now));
                }
                moving.drained
            }
            Stage::Down => {
                let Some(since) = moving.down_at else { return false };
                let last_look = self.now >= since + BARRIER_PATIENCE;
                let numbers: Option<Vec<Executed>> =
                    ends.iter().map(|e| self.executed(*e, last_look)).collect();
                let Some(numbers) = numbers else { return false };
                moving.down_at = None;
                self.go_over_shared(&ends);
                for (e, executed) in ends.iter().zip(&numbers) {
                    self.numbers_told(*e, executed);
                    self.receive_on(*e);
                }
                let mut numbers = numbers.into_iter();
                let grouped = moving
                    .parties
                    .iter()
                    .map(|it| numbers.by_ref().take(it.ends.len()).collect())
                    .collect();
                moving.machine.event(Told::Down(grouped), time(self.now));
                true
            }
            _ => false,
        }
    }

    fn act(&mut self, p: usize, moving: &mut Move, action: Action<usize>) {
        self.note(|| format!("process {p}: {action:?}"));
        let all: Vec<usize> = moving.parties.iter().flat_map(|it| it.ends.clone()).collect();
        let party = |at: usize| moving.parties[at].clone();
        match action {
            Action::Ask(at, request) => {
                let Party { peer, id, .. } = party(at);
                let what = Word::Ask(request);
                self.send_letter(Letter { from: p, to: peer, id, at, what });
            }
            Action::Connect(at, accepts) => {
                for (e, accept) in party(at).ends.into_iter().zip(accepts) {
                    if accept.is_none() {
                        self.reach(Kind::PeerGone);
                    }
                    if let Some(fresh) = self.ends[e].fresh {
                        let psn = accept.map_or(0, |it| it.psn);
                        self.qps[fresh.qp].connect(accept.map(|it| it.end), psn);
                    }
                }
            }
            Action::Stop => all.into_iter().for_each(|e| self.stop(e)),
            Action::TakeDown => {
                all.into_iter().for_each(|e| self.take_down(e));
                moving.down_at = Some(self.now);
            }
            Action::Attach(at, numbers, cuts) => {
                let ends = party(at).ends;
                for cut in cuts {
                    self.expect_cut(ends[cut.link as usize], cut.landed);
                }
                let own = self.attach_all(&ends, &numbers);
                moving.machine.event(Told::Attached(at, own), time(self.now));
            }
            Action::Release(at) => party(at).ends.into_iter().for_each(|e| self.release(e)),
            Action::Fail(at) => {
                let Party { peer, ends, .. } = party(at);
                if !self.procs[peer].dead {
                    self.reach(Kind::LostAfterCommit);
                }
                for e in ends {
                    self.excuse(e, "its peer did not go over");
                    self.lose_peer(e);
                }
            }
            Action::GoOn => all.into_iter().for_each(|e| self.go_on(e)),
            Action::Discard => all.into_iter().for_each(|e| self.discard(e)),
            Action::Ended(_) => {}
        }
    }

    fn end_move(&mut self, p: usize, moving: &Move, result: Result<(), Failure>) {
        self.note(|| format!("process {p}: its move has ended: {result:?}"));
        let again = self.rng.between(50, 600) + self.now;
        self.discard_srq(p);
        match result {
            Ok(()) => {
                for e in moving.parties.iter().flat_map(|it| it.ends.clone()) {
                    self.discard(e);
                    self.leave(e);
                }
                if self
                    .qps
                    .iter()
                    .any(|qp| qp.process == p && qp.device == self.procs[p].device && qp.dead)
                {
                    self.reach(Kind::FailedOver);
                }
                self.procs[p].device = moving.device;
                return self.reach(Kind::Moved);
            }
            Err(Failure::Busy(_)) => self.reach(Kind::BothMoved),
            Err(Failure::Refused(..)) => self.reach(Kind::Refused),
            Err(Failure::Silent(..)) => self.reach(Kind::TakenBackSilent),
            Err(Failure::Confused(..) | Failure::Unable(..)) => {}
        }
        // It tries again, unless that is all that it would do until the end.
        if again < self.horizon {
            self.queue.push(again, Event::Move(p));
        }
    }

    /// A process has learnt that another is dead.
    pub(super) fn notice(&mut self, by: usize, dead: usize) {
        if self.procs[by].dead {
            return;
        }
        self.procs[by].known_dead.push(dead);
        if let Some(moving) = &mut self.procs[by].moving {
            let at: Vec<usize> = moving
                .parties
                .iter()
                .enumerate()
                .filter(|(_, party)| party.peer == dead)
                .map(|it| it.0)
                .collect();
            for at in at {
                moving.machine.event(Told::Lost(at), time(self.now));
                self.reached.add(Kind::FollowerDied);
            }
        }
        if let Some(hold) = &mut self.procs[by].holding {
            let parties = hold.parties.iter().enumerate();
            for at in parties.filter(|(_, it)| it.peer == dead).map(|it| it.0).collect::<Vec<_>>() {
                hold.machine.lost(at, time(self.now));
            }
        }
        self.drive(by);
        self.drive_hold(by);
        self.give_up_mover(by, dead);
    }
}
