//! Worlds so small that everything that can happen in them is tried.
//!
//! Two processes, one link, up to three requests, one move, and at most one fault. Time stands still,
//! so nothing is ordered by delays: from each state, the checker goes on with the first event of every
//! channel, with every poll and every look of a shell, and with the fault wherever it can strike.
//! States are told apart by a hash of 64 bits; a breadth-first search, so that what it finds is found by
//! a shortest path.
//!
//! Time passes only where nothing else can happen: a message that was lost is asked for again, a peer
//! that is silent given up. (One kind of fault lets it pass at any state: [`Fault::Hurry`].) What was out
//! at the commit point is whatever can be, since the time to drain is 0.
//!
//! Beside the promises, which are checked at every step, the end must be reachable from every state:
//! so that there is neither a dead end nor a circle without a way out.

use super::broken::Broken;
use super::device::{Quirks, Source};
use super::queue::{Channel, Event, Time};
use super::rng::Rng;
use super::script::Wr;
use super::shell::Process;
use super::world::{LinkPlan, World};
use crate::entry::Opcode;
use crate::remap::{FollowerLimits, MoverLimits};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Entries of each window: more than there are requests, so that posts never wait.
const DEPTH: u32 = 4;
/// Length of requests of several packets. On the first path two, on the second one or what is left.
const LONG: u32 = 512;
/// States after which a search is given up, as too large to be called exhaustive.
const MAX_STATES: usize = 20_000_000;

/// What goes wrong, once, at any state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nothing.
    None,
    /// A message between the processes is lost.
    LetterLost,
    /// The process that moves dies.
    MoverDies,
    /// The other does.
    FollowerDies,
    /// The mover's old device dies.
    DeviceDies,
    /// The other process begins to move as well.
    BothMove,
    /// Somebody's patience ends.
    Hurry,
}

impl Fault {
    /// All of them.
    pub const ALL: &[Fault] = &[
        Fault::None,
        Fault::LetterLost,
        Fault::MoverDies,
        Fault::FollowerDies,
        Fault::DeviceDies,
        Fault::BothMove,
        Fault::Hurry,
    ];
}

/// A small world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Small {
    /// What the first process posts: each opcode, and whether it takes two packets.
    pub requests: Vec<(Opcode, bool)>,
    /// What the other one posts.
    pub back: Vec<(Opcode, bool)>,
    /// Both have posted one receive more than there are messages before anything happens. Without,
    /// receives are posted at any time, the responder may not be ready, and there may be no barrier.
    pub spare: bool,
    /// The one that moves.
    pub mover: usize,
    /// What goes wrong.
    pub fault: Fault,
    /// Responders keep a record, and their numbers are not live.
    pub records: bool,
    /// With a shell that is broken on purpose.
    pub broken: Option<Broken>,
}

/// What a search has found.
#[derive(Clone, Debug, Default)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// States in which everything has come to its end.
    pub ends: usize,
    /// The promise that was broken, and how: one choice a line, and what happened.
    pub violation: Option<String>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Take(Channel),
    Poll(usize),
    Look(usize),
    /// Nothing happens for so long that somebody does something.
    Wait,
    /// A barrier is not waited for any longer: the shells only talk of it, again and again.
    Barrier,
    Lose(Channel),
    Strike,
}

/// One state of a search.
#[derive(Clone)]
struct State {
    world: World,
    /// The fault has not struck.
    whole: bool,
}

/// A hash of 64 bits, fast on words.
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n.into());
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

impl State {
    fn digest(&self) -> u64 {
        let mut state = Mix(u64::from(self.whole));
        let world = &self.world;
        world.now.hash(&mut state);
        world.queue.sorted().hash(&mut state);
        world.qps.hash(&mut state);
        world.procs.hash(&mut state);
        world.ledger.hash(&mut state);
        for end in &world.ends {
            end.digest(&mut state);
        }
        state.finish()
    }

    fn choices(&self, small: &Small, into: &mut Vec<Choice>) {
        into.clear();
        let world = &self.world;
        let channels = world.queue.channels();
        into.extend(channels.iter().map(|channel| Choice::Take(*channel)));
        into.extend((0..world.ends.len()).filter(|e| world.has_completions(*e)).map(Choice::Poll));
        let still = into.is_empty();
        let busy = |p: &usize| world.is_busy(*p);
        into.extend((0..world.procs.len()).filter(busy).map(Choice::Look));
        if world.next_wake().is_some() && (still || self.whole && small.fault == Fault::Hurry) {
            into.push(Choice::Wait);
        }
        let talk = channels.iter().all(Event::is_letter) && world.is_taken();
        if talk && world.next_barrier().is_some() {
            into.push(Choice::Barrier);
        }
        if !self.whole {
            return;
        }
        match small.fault {
            Fault::LetterLost => {
                let letters = channels.iter().filter(|channel| Event::is_letter(channel));
                into.extend(letters.map(|channel| Choice::Lose(*channel)));
            }
            Fault::MoverDies | Fault::FollowerDies | Fault::DeviceDies => into.push(Choice::Strike),
            Fault::None | Fault::BothMove | Fault::Hurry => {}
        }
    }

    fn take(&mut self, small: &Small, choice: Choice) {
        let world = &mut self.world;
        match choice {
            Choice::Take(channel) => {
                if let Some(event) = world.queue.take(channel) {
                    world.happen(event);
                }
            }
            Choice::Poll(e) => world.poll(e, u64::MAX),
            Choice::Look(p) => world.happen(Event::Tick(p)),
            Choice::Wait => {
                let still = world.queue.channels().is_empty();
                self.whole &= still;
                world.now = world.next_wake().unwrap_or(world.now).max(world.now);
            }
            Choice::Barrier => world.now = world.next_barrier().unwrap_or(world.now),
            Choice::Lose(channel) => {
                world.queue.take(channel);
                self.whole = false;
            }
            Choice::Strike => {
                self.whole = false;
                match small.fault {
                    Fault::MoverDies => world.die(small.mover),
                    Fault::FollowerDies => world.die(1 - small.mover),
                    _ => world.lose_device(small.mover),
                }
            }
        }
    }

    /// Everything has come to its end, as far as it can: of a dead peer or device nothing does.
    fn is_end(&self) -> bool {
        let world = &self.world;
        let struck = world.ledger.accounts.iter().any(|it| it.excuse.is_some());
        let idle = (0..world.procs.len()).all(|p| !world.is_busy(p));
        let quiet = world.queue.channels().is_empty() && world.is_taken();
        idle && quiet && (struck || world.unfinished().is_none())
    }
}

impl Small {
    fn state(&self) -> State {
        let script = |requests: &[(Opcode, bool)]| -> Vec<Wr> {
            let wr =
                |(opcode, long): &(Opcode, bool)| Wr::new(*opcode, if *long { LONG } else { 8 });
            requests.iter().map(wr).collect()
        };
        let scripts = [script(&self.requests), script(&self.back)];
        let posts = [self.requests.len(), self.back.len()];
        let link = LinkPlan { processes: [0, 1], scripts, depths: [DEPTH; 2] };
        let mut world = World::new(2, vec![link], Rng::new(0));
        world.exhaustive = true;
        world.broken = self.broken;
        let source = if self.records { Source::Record } else { Source::Psn };
        world.quirks = Quirks { edge: true, source, ..Quirks::default() };
        world.mover_limits = MOVER;
        world.follower_limits = FOLLOWER;
        world.connect_all();
        for (e, posts) in posts.into_iter().enumerate() {
            (0..posts).for_each(|_| world.queue.push(0, Event::PostSend(e)));
            world.ends[e].recvs_wanted += u64::from(self.spare);
            for _ in 0..world.ends[e].recvs_wanted {
                if self.spare {
                    world.post_next_recv(e);
                } else {
                    world.queue.push(0, Event::PostRecv(e));
                }
            }
        }
        world.queue.push(0, Event::Move(self.mover));
        if self.fault == Fault::BothMove {
            world.queue.push(0, Event::Move(1 - self.mover));
        }
        State { world, whole: true }
    }

    /// Tries everything.
    #[must_use]
    pub fn explore(&self) -> Explored {
        let first = self.state();
        let mut seen: HashMap<u64, u32> = HashMap::from([(first.digest(), 0)]);
        // How each state was first reached; and from which states each was.
        let mut from: Vec<(u32, Choice)> = vec![(0, Choice::Wait)];
        let mut steps: Vec<(u32, u32)> = Vec::new();
        let mut ends = Vec::new();
        let mut layer = vec![(0u32, first)];
        let mut choices = Vec::new();
        while !layer.is_empty() {
            let mut next = Vec::new();
            for (number, state) in layer {
                if state.is_end() {
                    ends.push(number);
                }
                state.choices(self, &mut choices);
                for choice in &choices {
                    let mut after = state.clone();
                    after.take(self, *choice);
                    if after.world.violation.is_some() {
                        let path = self.path(&from, number, Some(*choice));
                        let states = from.len();
                        return Explored { states, violation: Some(path), ..Explored::default() };
                    }
                    let new = from.len() as u32;
                    let at = *seen.entry(after.digest()).or_insert(new);
                    steps.push((number, at));
                    if at == new {
                        from.push((number, *choice));
                        next.push((new, after));
                    }
                }
                assert!(from.len() < MAX_STATES, "{self:?} has more than {MAX_STATES} states");
            }
            layer = next;
        }
        let stuck = stuck(from.len(), &steps, &ends);
        let violation = stuck.map(|number| {
            let path = self.path(&from, number, None);
            format!("{path}\nliveness: from here the end is never reached")
        });
        Explored { states: from.len(), steps: steps.len(), ends: ends.len(), violation }
    }

    /// How a state was reached, told with all that happened.
    fn path(&self, from: &[(u32, Choice)], mut number: u32, last: Option<Choice>) -> String {
        let mut choices: Vec<Choice> = last.into_iter().collect();
        while number != 0 {
            let (before, choice) = from[number as usize];
            choices.push(choice);
            number = before;
        }
        let mut state = self.state();
        state.world.trace = Some(Vec::new());
        for choice in choices.into_iter().rev() {
            state.world.note(|| format!("-- {choice:?}"));
            state.take(self, choice);
        }
        let mut lines = state.world.trace.take().unwrap_or_default();
        lines.push(format!("{self:?}"));
        lines.extend(state.world.violation.take());
        lines.join("\n")
    }

    /// The worlds that are tried by `simulate --exhaustive`: all triples of five kinds of requests, moved
    /// by either process, with nothing wrong or a message lost; and all pairs, with every fault, and with
    /// nothing wrong or a message lost also without a receive to spare.
    #[must_use]
    pub fn all() -> Vec<Small> {
        const EACH: [(Opcode, bool); 5] = [
            (Opcode::Write, true),
            (Opcode::Send, true),
            (Opcode::WriteImm, true),
            (Opcode::Read, false),
            (Opcode::FetchAdd, false),
        ];
        let world = |at: &[usize], spare, mover, fault| {
            let requests = at.iter().map(|at| EACH[*at]).collect();
            Small { requests, back: Vec::new(), spare, mover, fault, records: false, broken: None }
        };
        let mut all = Vec::new();
        for mover in 0..2 {
            for n in 0..25 {
                let pair = [n / 5, n % 5];
                let faults = [Fault::None, Fault::LetterLost];
                all.extend(Fault::ALL.iter().map(|fault| world(&pair, true, mover, *fault)));
                all.extend(faults.map(|fault| world(&pair, false, mover, fault)));
                for third in 0..5 {
                    let triple = [pair[0], pair[1], third];
                    all.extend(faults.map(|fault| world(&triple, true, mover, fault)));
                }
            }
        }
        all
    }
}

/// A state from which no end is reachable.
fn stuck(states: usize, steps: &[(u32, u32)], ends: &[u32]) -> Option<u32> {
    let mut first = vec![0u32; states + 1];
    for (_, to) in steps {
        first[*to as usize + 1] += 1;
    }
    for at in 0..states {
        first[at + 1] += first[at];
    }
    let mut place = first.clone();
    let mut before = vec![0u32; steps.len()];
    for (from, to) in steps {
        before[place[*to as usize] as usize] = *from;
        place[*to as usize] += 1;
    }
    let mut reaches = vec![false; states];
    let mut open: Vec<u32> = ends.to_vec();
    while let Some(at) = open.pop() {
        if !std::mem::replace(&mut reaches[at as usize], true) {
            let range = first[at as usize] as usize..first[at as usize + 1] as usize;
            open.extend(&before[range]);
        }
    }
    reaches.iter().position(|reaches| !reaches).map(|at| at as u32)
}

/// Time stands still, so what is to be asked again at once has no pause.
const MOVER: MoverLimits = MoverLimits {
    prepare: Duration::from_millis(10),
    quiesce: Duration::from_millis(4),
    drain: Duration::ZERO,
    switch: Duration::from_millis(20),
    abort: Duration::from_millis(3),
    pause: Duration::ZERO,
    again: Duration::from_millis(2),
};

const FOLLOWER: FollowerLimits = FollowerLimits { patience: Duration::from_millis(60) };

impl World {
    /// Completions that the program, or a shell, can take.
    fn has_completions(&self, e: usize) -> bool {
        let end = &self.ends[e];
        let fresh = end.fresh.filter(|it| it.receives).map(|it| it.qp);
        !self.procs[end.process].dead
            && (!end.backlog.is_empty()
                || [Some(end.qp), fresh].into_iter().flatten().any(|qp| self.has_cqes(qp)))
    }

    fn is_busy(&self, p: usize) -> bool {
        let process = &self.procs[p];
        !process.dead && (process.moving.is_some() || !process.following.is_empty())
    }

    /// When somebody's patience ends, or something is asked again.
    fn next_wake(&self) -> Option<Time> {
        let alive = self.procs.iter().filter(|it| !it.dead);
        let wakes = alive.flat_map(|process| {
            let mover = process.moving.iter().filter_map(|it| it.machine.wake_at());
            let followers = process.following.iter().filter_map(|it| it.machine.wake_at());
            mover.chain(followers).collect::<Vec<_>>()
        });
        wakes.map(|at| at.as_micros() as Time).min()
    }

    /// When a barrier is not waited for any longer.
    fn next_barrier(&self) -> Option<Time> {
        let barriers = self.procs.iter().filter(|it| !it.dead).flat_map(Process::barriers);
        barriers.filter(|at| *at > self.now).min()
    }

    /// All completions have been taken.
    fn is_taken(&self) -> bool {
        (0..self.ends.len()).all(|e| !self.has_completions(e))
    }
}
