//! A process: its program, tracking, and the shell of its writer.

use super::store::Image;
use super::wire::{Sender, What, Write};
use super::world::{Happening, World};
use super::{Broken, Kind};
use crate::PageSet;
use crate::epoch::{
    Action, Epoch, Event, Incarnation, Member, Order, Reason, Request, Slot, Stage, StoreId,
    Writer, WriterLimits,
};
use sojourn_logging::sim::Time;
use std::collections::BTreeSet;
use std::time::Duration;

/// A writer's deadlines in virtual time: as far apart as in reality, and shorter.
pub(super) const WRITER: WriterLimits = WriterLimits {
    epoch: Duration::from_micros(9_000),
    answer: Duration::from_micros(2_500),
    pause: Duration::from_micros(60),
    again: Duration::from_micros(400),
};

/// Longest time that tracking takes, and that anything else does which a driver is asked for.
const TRACKING: Time = 40;
const DRIVER: Time = 80;
/// Of a thousand times so many take longer than an epoch may.
const SLOW: u32 = 2;
/// And so many pauses are none, which is told when they end.
const MOVES: u32 = 5;
/// Bytes of a compartment; stores have room.
pub(super) const BYTES: u64 = 1;

/// A life of a process.
pub(super) struct Process {
    /// Its place in the job.
    pub(super) rank: usize,
    pub(super) member: Member,
    pub(super) life: u32,
    pub(super) alive: bool,
    pub(super) memory: Image,
    /// What tracking has found since it started afresh.
    pub(super) dirty: PageSet,
    /// It has begun to track. (Only a broken shell has it begin late.)
    pub(super) tracking: bool,
    pub(super) paused: bool,
    /// In this pause its memory is written all the same, as by a peer whose hold has lapsed.
    pub(super) moves: bool,
    pub(super) writer: Option<Writer>,
    /// Memory as it was in the pause.
    sealed: Image,
    /// What was dirty in this epoch; and which slots have had everything once.
    recent: PageSet,
    recent_of: Epoch,
    filled: BTreeSet<(Incarnation, Slot)>,
    /// Tracking is asked, and answers, in order.
    collect_at: Time,
    dirty_at: Time,
}

impl Process {
    pub(super) fn new(rank: usize, life: u32, chunks: usize) -> Self {
        Process {
            rank,
            member: Member(0),
            life,
            alive: false,
            memory: vec![[0; 2]; chunks],
            dirty: PageSet::new(chunks),
            tracking: true,
            paused: false,
            moves: false,
            writer: None,
            sealed: Vec::new(),
            recent: PageSet::new(chunks),
            recent_of: Epoch::NONE,
            filled: BTreeSet::new(),
            collect_at: 0,
            dirty_at: 0,
        }
    }

    /// It begins a life with this memory.
    pub(super) fn begin(&mut self, member: Member, memory: Image, writer: Writer) {
        let new = Process::new(self.rank, self.life, memory.len());
        *self = Process { member, alive: true, memory, writer: Some(writer), ..new };
    }
}

impl World {
    /// Where this life of a process is, if it lives.
    pub(super) fn find(&self, rank: usize, life: u32) -> Option<usize> {
        self.processes.iter().position(|it| it.alive && it.rank == rank && it.life == life)
    }

    pub(super) fn event(&mut self, p: usize, event: Event) {
        let now = self.time();
        if let Some(writer) = &mut self.processes[p].writer {
            writer.event(event, now);
        }
    }

    /// A program writes a chunk, or a half of one.
    pub(super) fn program(&mut self, p: usize) {
        if p >= self.ranks && !self.processes[p].alive {
            return;
        }
        let most = self.pace;
        self.after(most, Happening::Program(p));
        let chunk = self.rng.below(self.chunks as u64) as usize;
        let halves = self.rng.pick(&[0..1, 1..2, 0..2, 0..2].map(|it| (it.start, it.end)));
        let process = &mut self.processes[p];
        if !process.alive || process.paused {
            return;
        }
        for half in halves.0..halves.1 {
            self.value += 1;
            process.memory[chunk][half] = self.value;
        }
        if process.tracking {
            process.dirty.insert(chunk);
        } else if self.rng.permille(200) {
            process.tracking = true;
        }
    }

    pub(super) fn order(&mut self, member: Member, mut order: Order) {
        let newest = self.rulers.last().map(|ruler| ruler.term).unwrap_or_default();
        if order.term < newest {
            self.reach(Kind::OldTermIgnored);
        }
        match self.broken {
            Some(Broken::OldTermHeeded) => order.term = newest,
            Some(Broken::NumberReused) => order = super::launcher::without_term(order),
            _ => {}
        }
        // Who is taken for dead hears it, too.
        for p in 0..self.processes.len() {
            if self.processes[p].alive && self.processes[p].member == member {
                self.note(|| format!("process {p}: {order:?}"));
                self.event(p, Event::Order(order));
            }
        }
    }

    /// What the writer has to do now.
    pub(super) fn run_writer(&mut self, p: usize) {
        loop {
            let now = self.time();
            let process = &mut self.processes[p];
            if !process.alive {
                return;
            }
            let Some(action) = process.writer.as_mut().and_then(|writer| writer.poll(now)) else {
                return;
            };
            self.note(|| format!("process {p}: {action:?}"));
            if self.sudden_fault(p) {
                continue;
            }
            self.act(p, action);
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        let Process { rank: p, life, member, .. } = self.processes[at];
        match action {
            Action::Ask(by, store, request) => {
                if let (Some(Broken::NotNoted), Request::Note { epoch, .. }) =
                    (self.broken, request)
                {
                    let answer = crate::epoch::Answer::Noted(epoch);
                    return self.event(at, Event::Answer(by, answer));
                }
                let from = Sender::Writer { p, life, by };
                self.post(Happening::Request { store, member, from, request });
            }
            Action::Place(known) => self.after(DRIVER, Happening::Placed { p, life, known }),
            Action::Invalidate(by, slot) => {
                let writes = if self.broken == Some(Broken::NotInvalidated) {
                    Vec::new()
                } else {
                    vec![self.write_of(slot, What::Word(Epoch::NONE))]
                };
                self.write(p, by, writes);
            }
            Action::Collect => self.ask_tracking(at, false),
            Action::Pause => {
                let moves = self.rng.permille(MOVES);
                self.processes[at].moves = moves;
                self.processes[at].paused = !moves && self.broken != Some(Broken::NotPaused);
                self.ask_tracking(at, true);
            }
            Action::Resume => {
                self.processes[at].paused = false;
                if std::mem::take(&mut self.processes[at].moves) {
                    self.event(at, Event::Moved("a hold has lapsed".to_owned()));
                }
            }
            Action::Send(by, slot, chunks) => self.send(at, by, slot, chunks),
            Action::Seal(by, slot, epoch) => {
                let table = What::Table(self.processes[at].sealed.clone());
                let mut writes =
                    vec![self.write_of(slot, table), self.write_of(slot, What::Header(epoch))];
                if self.broken == Some(Broken::WordFirst) {
                    writes.insert(0, self.write_of(slot, What::Word(epoch)));
                }
                self.write(p, by, writes);
            }
            Action::Word(by, slot, epoch) => {
                let writes = vec![self.write_of(slot, What::Word(epoch))];
                self.write(p, by, writes);
            }
            Action::Protect(epoch) => {
                self.after(DRIVER, Happening::Protected { p, life, epoch });
            }
            Action::Disconnect(by) => {
                let mine = self.connections.iter_mut().filter(|it| it.p == p && it.by == by);
                mine.for_each(|connection| {
                    connection.cut(None);
                    connection.open = false;
                });
            }
            Action::Report(report) => {
                if report.open.is_some_and(|open| open.complete) {
                    self.check_complete(at);
                }
                self.post(Happening::Report { member, report });
            }
            // A life that was taken for dead, and that its stores have shut out: its program is told nothing.
            Action::Committed(_, 0) if at >= self.ranks => {}
            Action::Committed(epoch, copies) => {
                if copies < self.policy.copies {
                    self.reach(Kind::CommittedWithFewer);
                }
                self.reach(Kind::Committed);
                self.check_committed(at, epoch);
            }
            Action::GivenUp(epoch, reason) => self.given_up(at, epoch, &reason),
            Action::Fenced(by) if at < self.ranks => {
                self.violate(format!("process {p} lives, and was fenced by {by}"));
            }
            Action::Fenced(_) => {
                self.reach(Kind::GhostFenced);
                self.processes[at].alive = false;
            }
        }
    }

    fn write_of(&self, slot: Slot, what: What) -> Write {
        let slot = if self.broken == Some(Broken::OneSlot) { Slot::A } else { slot };
        Write { slot, what, last: false }
    }

    fn send(&mut self, p: usize, by: Incarnation, slot: Slot, mut chunks: PageSet) {
        let process = &mut self.processes[p];
        if self.broken == Some(Broken::UnionForgotten) && !process.filled.insert((by, slot)) {
            let mut older = chunks.clone();
            older.subtract(&process.recent);
            chunks.subtract(&older);
        }
        if self.broken == Some(Broken::ResumedEarly) {
            process.paused = false;
        }
        let halves = chunks.runs().flatten().flat_map(|chunk| [(chunk, 0), (chunk, 1)]);
        let writes =
            halves.map(|(chunk, half)| self.write_of(slot, What::Half(chunk, half))).collect();
        let rank = self.processes[p].rank;
        self.write(rank, by, writes);
    }

    fn given_up(&mut self, p: usize, epoch: Epoch, reason: &Reason) {
        self.reach(match reason {
            Reason::TooFew { .. } => Kind::TooFew,
            Reason::Late => Kind::Late,
            Reason::Aborted => Kind::Aborted,
            Reason::Unable(_) => Kind::Moved,
        });
        if *reason == Reason::Aborted {
            self.check_aborted(p, epoch);
        }
    }

    /// In order: what was asked first is collected first.
    fn ask_tracking(&mut self, p: usize, pause: bool) {
        let wait = self.rng.between(1, TRACKING);
        let process = &mut self.processes[p];
        process.collect_at = (self.now + wait).max(process.collect_at);
        let (p, life) = (process.rank, process.life);
        self.queue.push(process.collect_at, Happening::Collect { p, life, pause });
    }

    pub(super) fn collect(&mut self, p: usize, life: u32, pause: bool) {
        let Some(at) = self.find(p, life) else { return };
        let slow = !self.calm && self.rng.permille(SLOW);
        let most = if slow { 2 * WRITER.epoch.as_micros() as Time } else { TRACKING };
        let wait = self.rng.between(1, most);
        let late = self.broken == Some(Broken::CollectedLate);
        let process = &mut self.processes[at];
        let dirty = process.dirty.clone();
        if !late {
            process.dirty.clear();
        }
        let Some(writer) = &process.writer else { return };
        if std::mem::replace(&mut process.recent_of, writer.epoch()) != writer.epoch() {
            process.recent.clear();
        }
        process.recent.union_with(&dirty);
        let (stage, epoch) = (writer.stage(), writer.epoch());
        process.dirty_at = (self.now + wait).max(process.dirty_at);
        self.queue.push(process.dirty_at, Happening::Dirty { p, life, dirty });
        if pause && stage == Stage::Pause {
            process.sealed = process.memory.clone();
            let image = process.memory.clone();
            self.keep_image(at, epoch, image);
        }
    }

    pub(super) fn dirty(&mut self, p: usize, life: u32, dirty: PageSet) {
        if let Some(p) = self.find(p, life) {
            let stage = self.processes[p].writer.as_ref().map(Writer::stage);
            if !matches!(stage, Some(Stage::Collect | Stage::Pause)) {
                self.reach(Kind::LateDirty);
            }
            self.event(p, Event::Dirty(dirty));
        }
    }

    pub(super) fn placed(&mut self, p: usize, life: u32, known: &[StoreId]) {
        let Some(p) = self.find(p, life) else { return };
        // Who is dead is not always known to be.
        let stale = !self.calm && self.rng.permille(50);
        let fits =
            |store: &&super::store::Store| (store.alive || stale) && !known.contains(&store.id);
        let all: Vec<StoreId> = self.stores.iter().filter(fits).map(|it| it.id).collect();
        let store = (!all.is_empty()).then(|| self.rng.pick(&all));
        let writer = self.processes[p].writer.as_ref();
        if store.is_some() && writer.is_some_and(|it| it.committed().is_some()) {
            self.reach(Kind::Joined);
        }
        self.note(|| format!("process {p}: is to go to {store:?}"));
        self.event(p, Event::Store(store));
    }

    pub(super) fn protected(&mut self, p: usize, life: u32, epoch: Epoch) {
        if let Some(p) = self.find(p, life) {
            let fails = !self.calm && self.rng.permille(30);
            let result = if fails { Err("no parity".to_owned()) } else { Ok(()) };
            self.event(p, Event::Protected(epoch, result));
        }
    }
}
