//! The world of one run: processes, links, devices, and what happens next.

use super::broken::Broken;
use super::device::{Qp, Quirks, Status};
use super::end::End;
use super::kinds::{Kind, Kinds};
use super::ledger::Ledger;
use super::queue::{Event, Queue, Time};
use super::rng::Rng;
use super::script::Wr;
use super::shared::Shared;
use super::shell::Process;
use crate::remap::{FollowerLimits, MoverLimits};
use crate::replay::Start;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// How messages between processes fail, each so many times in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) letter_lost: u32,
    pub(super) letter_late: u32,
    pub(super) letter_overtakes: u32,
    /// Half of the longest that a late one takes.
    pub(super) latest: Time,
    pub(super) refused: u32,
}

/// The deadlines of a mover in virtual time: as far apart as in reality, and shorter.
pub(super) const MOVER: MoverLimits = MoverLimits {
    prepare: Duration::from_micros(10_000),
    quiesce: Duration::from_micros(4_000),
    drain: Duration::from_micros(800),
    switch: Duration::from_micros(20_000),
    abort: Duration::from_micros(3_000),
    pause: Duration::from_micros(30),
    again: Duration::from_micros(1_000),
};

/// Longer than those of a mover together.
pub(super) const FOLLOWER: FollowerLimits =
    FollowerLimits { patience: Duration::from_micros(60_000) };

/// Time after the last fault in which a process leaves a dead device, or tells of it.
const FATAL: Time = 1_000;

/// Everything that there is.
#[derive(Clone)]
pub(super) struct World {
    pub(super) now: Time,
    pub(super) queue: Queue,
    pub(super) rng: Rng,
    pub(super) quirks: Quirks,
    pub(super) faults: Faults,
    /// No fault happens after this time.
    pub(super) horizon: Time,
    /// Most time between two steps of a program.
    pub(super) pace: Time,
    /// Times in a thousand that a one-sided request lacks a name.
    pub(super) missing_names: u32,
    /// First packet numbers are close to where they wrap.
    pub(super) wraps: bool,
    pub(super) mover_limits: MoverLimits,
    pub(super) follower_limits: FollowerLimits,
    /// Followers give up before movers do, as if clocks had gone wrong.
    pub(super) impatient: bool,
    pub(super) exhaustive: bool,
    pub(super) broken: Option<Broken>,
    pub(super) qps: Vec<Qp>,
    /// Physical shared receive queues: the slots that were posted and not taken.
    pub(super) srqs: Vec<VecDeque<u32>>,
    /// The virtual one, in worlds that have it.
    pub(super) shared: Option<Shared>,
    /// Both ends of a link stand side by side.
    pub(super) ends: Vec<End>,
    pub(super) procs: Vec<Process>,
    pub(super) ledger: Ledger,
    pub(super) cut_before: BTreeSet<(usize, u64)>,
    pub(super) reached: Kinds,
    pub(super) violation: Option<String>,
    pub(super) trace: Option<Vec<String>>,
}

/// One link of a world that is to be made: the processes of its ends, their scripts and depths.
pub(super) struct LinkPlan {
    pub(super) processes: [usize; 2],
    pub(super) scripts: [Vec<Wr>; 2],
    pub(super) depths: [u32; 2],
}

impl World {
    /// A world without faults.
    pub(super) fn new(processes: usize, links: Vec<LinkPlan>, rng: Rng) -> Self {
        let process = Process::new(processes);
        let mut world = World {
            now: 0,
            queue: Queue::default(),
            rng,
            quirks: Quirks { exact: true, ..Quirks::default() },
            faults: Faults::default(),
            horizon: 0,
            pace: 1,
            missing_names: 0,
            wraps: false,
            mover_limits: MOVER,
            follower_limits: FOLLOWER,
            impatient: false,
            exhaustive: false,
            broken: None,
            qps: Vec::new(),
            srqs: Vec::new(),
            shared: None,
            ends: Vec::new(),
            procs: vec![process; processes],
            ledger: Ledger::default(),
            cut_before: BTreeSet::new(),
            reached: Kinds::default(),
            violation: None,
            trace: None,
        };
        let mut scripts = Vec::new();
        for link in links {
            let LinkPlan { processes, scripts: own, depths } = link;
            for side in 0..2 {
                let wanted = own[1 - side].iter().filter(|wr| wr.is_message()).count() as u64;
                let end = End::new(processes[side], usize::MAX, depths[side], wanted);
                world.ends.push(end);
            }
            scripts.extend(own);
        }
        world.ledger = Ledger::new(scripts);
        world
    }

    /// Connects all links for the first time.
    pub(super) fn connect_all(&mut self) {
        for e in 0..self.ends.len() {
            let (psn, mtu) = (self.first_psn(), self.mtu_of(e, 0));
            let qp = self.make_qp(e, 0, psn, mtu);
            self.ends[e].qp = qp;
            self.ends[e].send.connect(Start { psn, mtu });
        }
        for e in 0..self.ends.len() {
            let peer = self.ends[e ^ 1].qp;
            let psn = self.qps[peer].psn;
            self.qps[self.ends[e].qp].connect(Some(peer), psn);
        }
    }

    pub(super) fn make_qp(&mut self, e: usize, device: u32, psn: u32, mtu: u32) -> usize {
        let srq = self.srq_of(e);
        let mut qp = Qp::new(e, self.ends[e].process, device, psn, mtu);
        qp.srq = srq;
        self.qps.push(qp);
        self.qps.len() - 1
    }

    pub(super) fn first_psn(&mut self) -> u32 {
        match (self.is_exhaustive(), self.wraps) {
            (true, _) => 5,
            (false, true) => (1 << 24) - 1 - self.rng.below(12) as u32,
            (false, false) => self.rng.below(1 << 24) as u32,
        }
    }

    /// Both ends find the same.
    pub(super) fn mtu_of(&self, e: usize, incarnation: u32) -> u32 {
        256 << ((e as u32 / 2 + incarnation) % 3)
    }

    pub(super) fn is_exhaustive(&self) -> bool {
        self.exhaustive
    }

    pub(super) fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    /// When something on a wire arrives: not before what was sent before it.
    pub(super) fn arrival(&mut self, after: Time) -> Time {
        if self.is_exhaustive() {
            return self.now;
        }
        (self.now + self.rng.between(2, 12)).max(after)
    }

    pub(super) fn reach(&mut self, kind: Kind) {
        self.reached.add(kind);
    }

    /// A line of the trace, where there is one.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>7} {}", self.now, line()));
        }
    }

    /// A promise was broken. The first that was is told.
    pub(super) fn violate(&mut self, what: String) {
        self.note(|| format!("!! {what}"));
        self.violation.get_or_insert(what);
    }

    pub(super) fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violate(what);
        }
    }

    /// The link of an end may fail from here on.
    pub(super) fn excuse(&mut self, e: usize, why: &'static str) {
        for e in [e, e ^ 1] {
            self.ledger.accounts[e].excuse.get_or_insert(why);
        }
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Program(e) => self.program(e),
            Event::PostSend(e) => self.post_next(e),
            Event::PostRecv(e) => self.post_next_recv(e),
            Event::Packet(packet) => self.packet_came(&packet),
            Event::Response(response) => self.response_came(&response),
            Event::Timer(qp) => self.timer_came(qp),
            Event::Flush(qp) => self.flush_came(qp),
            Event::Named(e) => {
                self.ends[e].blocked = false;
                self.push(e, false);
            }
            Event::Letter(letter) => self.letter_came(*letter),
            Event::Tick(p) => self.tick_came(p),
            Event::Move(p) => self.begin_move(p),
            Event::Anew(p) => self.create_anew(p),
            Event::Hold(p) => self.begin_hold(p),
            Event::EndHold(p) => self.end_hold(p),
            Event::Death(p) => self.die(p),
            Event::DeviceDeath(p) => self.lose_device(p),
            Event::Fatal(p) => self.fatal(p),
            Event::Noticed { by, dead } => self.notice(by, dead),
        }
        self.audit();
    }

    /// One step of a program: it posts, receives, or polls.
    fn program(&mut self, e: usize) {
        if self.procs[self.ends[e].process].dead {
            return;
        }
        match self.rng.below(8) {
            0..=2 => self.post_next(e),
            3 | 4 => self.post_next_recv(e),
            _ => {
                let n = self.rng.between(1, 4);
                self.poll(e, n);
            }
        }
        let at = self.next_step_at(e);
        self.queue.push(at, Event::Program(e));
    }

    pub(super) fn die(&mut self, p: usize) {
        self.note(|| format!("process {p} dies"));
        self.procs[p].dead = true;
        self.kill_device(p, None);
        for e in (0..self.ends.len()).filter(|e| self.ends[*e].process == p).collect::<Vec<_>>() {
            self.excuse(e, "a process died");
        }
        for by in (0..self.procs.len()).filter(|by| *by != p) {
            let after = if self.is_exhaustive() { 0 } else { self.rng.between(20, 3000) };
            self.queue.push(self.now + after, Event::Noticed { by, dead: p });
        }
    }

    pub(super) fn lose_device(&mut self, p: usize) {
        let process = &self.procs[p];
        if process.dead {
            return;
        }
        let (device, is_moving) = (process.device, process.moving.is_some());
        self.note(|| format!("device {device} of process {p} dies"));
        if is_moving {
            self.reach(Kind::DeviceDiedMoving);
        }
        self.kill_device(p, Some(device));
        for e in (0..self.ends.len()).filter(|e| self.ends[*e].process == p).collect::<Vec<_>>() {
            self.excuse(e, "a device died");
        }
        if !self.is_exhaustive() && self.rng.permille(600) {
            let at = self.now + self.rng.between(10, 500);
            self.queue.push(at, Event::Move(p));
        }
        if !self.is_exhaustive() {
            self.queue.push(self.horizon + FATAL, Event::Fatal(p));
        }
    }

    /// As `IBV_EVENT_DEVICE_FATAL`: what is still on the dead device ends with errors.
    fn fatal(&mut self, p: usize) {
        let process = &self.procs[p];
        if process.dead {
            return;
        }
        let moves = process.moving.is_some() || process.holding.is_some();
        if moves || !process.following.is_empty() {
            return self.queue.push(self.now + FATAL, Event::Fatal(p));
        }
        for e in 0..self.ends.len() {
            let end = &self.ends[e];
            if end.process == p && !end.failed && self.qps[end.qp].dead {
                let first = end.send.retired();
                self.fail(e, first, Status::Flushed);
            }
        }
    }

    /// What holds after every step.
    fn audit(&mut self) {
        for e in 0..self.ends.len() {
            let end = &self.ends[e];
            let (send, recv) = (&end.send, &end.recv);
            let in_order = |retired, handed, appended| retired <= handed && handed <= appended;
            if !in_order(send.retired(), send.handed(), send.appended())
                || !in_order(recv.retired(), recv.handed(), recv.appended())
            {
                return self.violate(format!("end {e}: the counters of a window are out of order"));
            }
            let idle = |p: usize| {
                let process = &self.procs[p];
                let moves = process.moving.is_some() || process.holding.is_some();
                !process.dead && !moves && process.following.is_empty()
            };
            let peer = &self.ends[e ^ 1];
            if end.failed || peer.failed || !idle(end.process) || !idle(peer.process) {
                continue;
            }
            if self.qps[end.qp].peer != Some(peer.qp) {
                let qps = (end.qp, peer.qp);
                return self.violate(format!(
                    "promise 5: nothing moves, and the ends of link {} are on different paths: {qps:?}",
                    e / 2
                ));
            }
            if end.suspended || end.withhold.is_some() || end.fresh.is_some() {
                return self.violate(format!("promise 5: nothing moves, and end {e} is held back"));
            }
        }
    }

    /// What is still to come: with no more faults it must.
    pub(super) fn unfinished(&self) -> Option<String> {
        for (p, process) in self.procs.iter().enumerate().filter(|(_, it)| !it.dead) {
            if let Some(moving) = &process.moving {
                return Some(format!("process {p} is moving: {}", moving.machine.stage()));
            }
            if process.holding.is_some() {
                return Some(format!("process {p} stands still"));
            }
            if !process.following.is_empty() {
                return Some(format!("process {p} is following"));
            }
        }
        let is_dead = |e: usize| self.procs[self.ends[e].process].dead;
        let alive = (0..self.ends.len()).filter(|e| !is_dead(*e));
        // Who shares its receives may fail without a completion that tells of it.
        let is_lost = |e: usize| self.ends[e].failed && self.is_shared(e);
        alive.map(|e| self.ledger.unfinished(e, is_dead(e ^ 1) || is_lost(e ^ 1))).find_map(|it| it)
    }

    /// Takes the earliest event. False where there is none.
    pub(super) fn step(&mut self) -> bool {
        let Some((at, event)) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.happen(event);
        true
    }
}
