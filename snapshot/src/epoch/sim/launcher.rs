//! Who notices deaths, starts deciders, and restores.

use super::process::{BYTES, Process, WRITER};
use super::store::Image;
use super::world::{Happening, World};
use super::{Broken, Kind};
use crate::epoch::{
    Answer, Decider, DeciderLimits, Epoch, Found, Holding, Incarnation, Member, Missing, Open,
    Order, Origin, Recovery, RecoveryLimits, Report, Request, Ruling, Scope, Step, StoreId, Term,
    Word, Writer,
};
use sojourn_logging::sim::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Deadlines in virtual time. A decider waits longer than a writer: it is not the first to give up.
const DECIDER: DeciderLimits =
    DeciderLimits { epoch: Duration::from_micros(12_000), again: Duration::from_micros(400) };
pub(super) const RECOVERY: RecoveryLimits = RecoveryLimits {
    answer: Duration::from_micros(3_000),
    pause: Duration::from_micros(60),
    again: Duration::from_micros(400),
};

/// Longest time until a death is noticed, until a copy is read, and until a launcher begins anew.
const NOTICED: Time = 600;
const READ: Time = 200;
const ANEW: Time = 800;
/// Of a thousand processes that are to die, so many are out of reach, and do not.
const GHOSTS: u32 = 300;
/// Deciders that are left alive beside the newest.
const OLD_RULERS: usize = 2;

/// A decider.
pub(super) struct Ruler {
    pub(super) term: Term,
    job: u64,
    pub(super) machine: Decider,
}

/// A recovery.
pub(super) struct Restoring {
    pub(super) id: u64,
    /// The process that is restored alone.
    part: Option<usize>,
    /// None while those that live have not told the new decider where they stand.
    pub(super) machine: Option<Recovery>,
    /// What each is read from.
    reading: BTreeMap<Member, Origin>,
    images: BTreeMap<Member, Image>,
    /// Who has told what it holds.
    told: BTreeSet<(StoreId, Member)>,
}

impl Restoring {
    /// It has told all that it was asked, and counts.
    fn counts(&self, store: StoreId, members: usize) -> bool {
        let asked = if self.part.is_some() { 1 } else { members };
        self.told.iter().filter(|(id, _)| *id == store).count() == asked
    }
}

fn map_order(word: Word, map: impl Fn(Epoch) -> Epoch) -> Word {
    match word {
        Word::Ask => Word::Ask,
        Word::Begin(epoch) => Word::Begin(map(epoch)),
        Word::Commit(epoch) => Word::Commit(map(epoch)),
        Word::Abort(epoch) => Word::Abort(map(epoch)),
    }
}

/// As a shell says it that knows no terms in numbers.
pub(super) fn without_term(order: Order) -> Order {
    Order { word: map_order(order.word, |epoch| Epoch(epoch.count())), ..order }
}

fn with_term(report: Report) -> Report {
    let own = |epoch: Epoch| {
        if epoch.is_some() { Epoch(epoch.count() - 1).after(report.term) } else { epoch }
    };
    let open = report.open.map(|open| Open { epoch: own(open.epoch), ..open });
    Report { largest: own(report.largest), committed: own(report.committed), open, ..report }
}

impl World {
    fn members(&self) -> Vec<(Member, Incarnation)> {
        let life = |p: usize| Incarnation::of_life(self.processes[p].life);
        (0..self.ranks).map(|p| (self.member(p), life(p))).collect()
    }

    /// A decider of the next term.
    pub(super) fn new_ruler(&mut self) {
        let term = Term(self.newest_term().0 + 1);
        let machine = Decider::new(term, self.members(), self.time(), DECIDER);
        self.rulers.push(Ruler { term, job: self.job, machine });
        let old = if self.calm { 0 } else { OLD_RULERS };
        let many = self.rulers.len().saturating_sub(old + 1);
        self.rulers.drain(..many);
        self.note(|| format!("a decider of {term:?}"));
    }

    fn newest_term(&self) -> Term {
        self.rulers.last().map(|ruler| ruler.term).unwrap_or_default()
    }

    pub(super) fn start_epoch(&mut self) {
        let most = self.every;
        self.after(most, Happening::Start);
        let many = self.rulers.len() as u64;
        let newest = self.rulers.len() - 1;
        let at = if self.rng.permille(100) { self.rng.below(many) as usize } else { newest };
        let now = self.time();
        if let Some(epoch) = self.rulers[at].machine.start(now) {
            self.note(|| format!("{epoch} begins"));
        }
    }

    pub(super) fn report(&mut self, member: Member, mut report: Report) {
        if self.broken == Some(Broken::NumberReused) {
            report = with_term(report);
        }
        if self.rulers.last().is_some_and(|ruler| ruler.term > report.term) {
            self.reach(Kind::OldTermIgnored);
        }
        let now = self.time();
        let all = self.members();
        let Some(ruler) = self.rulers.iter_mut().find(|ruler| ruler.term == report.term) else {
            return;
        };
        ruler.machine.report(member, report, now);
        let complete = report.open.is_some_and(|open| open.complete);
        if complete && self.broken == Some(Broken::CommittedAtFirst) {
            for (other, incarnation) in all {
                ruler.machine.report(other, Report { incarnation, ..report }, now);
            }
        }
    }

    pub(super) fn run_rulers(&mut self) {
        let now = self.time();
        for at in 0..self.rulers.len() {
            while let Some(ruling) = self.rulers[at].machine.poll(now) {
                let term = self.rulers[at].term;
                self.note(|| format!("decider of {term:?}: {ruling:?}"));
                match ruling {
                    Ruling::Tell(member, order) => self.post(Happening::Order { member, order }),
                    Ruling::Decided { epoch, committed } => {
                        if committed && self.rulers[at].job == self.job {
                            self.check_decided(epoch);
                        }
                        if epoch.term() < term {
                            self.reach(if committed {
                                Kind::CommittedBySuccessor
                            } else {
                                Kind::AbortedBySuccessor
                            });
                        }
                    }
                }
            }
        }
    }

    /// A process dies.
    pub(super) fn kill(&mut self, p: usize) {
        let Process { rank, life, .. } = self.processes[p];
        self.processes[p].alive = false;
        for c in 0..self.connections.len() {
            let connection = &mut self.connections[c];
            if connection.p == rank && connection.life == life {
                connection.cut(None);
                connection.open = false;
                self.hold(c);
            }
        }
        self.note(|| format!("process {p} is dead"));
        if p < self.ranks {
            self.notice(p, life);
        }
    }

    pub(super) fn notice(&mut self, p: usize, life: u32) {
        self.after(NOTICED, Happening::Noticed { p, life });
    }

    /// A process is taken for dead, and lives.
    pub(super) fn make_ghost(&mut self, p: usize) {
        let dead = Process::new(p, self.processes[p].life, self.chunks);
        let ghost = std::mem::replace(&mut self.processes[p], dead);
        let at = self.processes.len();
        self.note(|| format!("process {p} is taken for dead, and goes on as {at}"));
        self.processes.push(ghost);
        self.after(NOTICED, Happening::Program(at));
        self.reach(Kind::Ghost);
    }

    pub(super) fn noticed(&mut self, p: usize, life: u32) {
        if self.processes[p].life != life || self.processes[p].alive {
            return;
        }
        let others_live = (0..self.ranks).all(|it| it == p || self.processes[it].alive);
        let several = self.ranks > 1;
        match &self.restoring {
            Some(it) if it.part.is_none_or(|part| part == p) => {}
            None if several && others_live && self.rng.permille(self.alone) => self.restore_one(p),
            _ => self.restore_all(),
        }
    }

    /// Where nobody restores what is dead.
    pub(super) fn launch(&mut self) {
        if self.restoring.is_none() && self.processes[..self.ranks].iter().any(|it| !it.alive) {
            self.restore_all();
        }
    }

    fn restore_all(&mut self) {
        self.note(|| "all processes are restored".to_owned());
        for p in 0..self.ranks {
            if self.processes[p].alive && !self.calm && self.rng.permille(GHOSTS) {
                self.make_ghost(p);
            } else if self.processes[p].alive {
                self.kill(p);
            }
            self.processes[p].life += 1;
        }
        let members: Vec<usize> = (0..self.ranks).collect();
        self.restoring = Some(self.new_restoring(None));
        self.new_recovery(&members, Scope::Whole);
    }

    fn restore_one(&mut self, p: usize) {
        self.note(|| format!("process {p} is restored alone"));
        self.processes[p].life += 1;
        self.restoring = Some(self.new_restoring(Some(p)));
        self.new_ruler();
    }

    fn new_restoring(&mut self, part: Option<usize>) -> Restoring {
        self.recoveries += 1;
        Restoring {
            id: self.recoveries,
            part,
            machine: None,
            reading: BTreeMap::new(),
            images: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    fn new_recovery(&mut self, members: &[usize], scope: Scope) {
        let life = |p: &usize| Incarnation::of_life(self.processes[*p].life);
        let members: Vec<_> = members.iter().map(|p| (self.member(*p), life(p))).collect();
        // Who is dead is not always known to be.
        let stale = !self.calm && self.rng.permille(100);
        let stores: Vec<StoreId> =
            self.stores.iter().filter(|it| it.alive || stale).map(|it| it.id).collect();
        let machine = Recovery::new(members, stores, scope, self.time(), RECOVERY);
        if let Some(restoring) = &mut self.restoring {
            restoring.machine = Some(machine);
        }
    }

    /// The recovery dies: another begins after a while.
    pub(super) fn kill_recovery(&mut self) {
        if self.restoring.take().is_some() {
            self.reach(Kind::RecoveryDied);
            self.note(|| "the recovery is dead".to_owned());
            self.after(ANEW, Happening::Launch);
        }
    }

    pub(super) fn run_recovery(&mut self) {
        let now = self.time();
        let Some(Restoring { part, machine, id, .. }) = &mut self.restoring else { return };
        let id = *id;
        if let (None, Some(p)) = (machine, *part) {
            let living = (0..self.ranks).filter(|it| *it != p);
            let living: Vec<Member> = living.map(|it| self.member(it)).collect();
            let newest = self.rulers.last().and_then(|ruler| ruler.machine.known_by(living));
            let Some(known) = newest else { return };
            let newer = self.broken == Some(Broken::NewerForOne);
            self.new_recovery(&[p], if newer { Scope::Whole } else { Scope::Part(known) });
        }
        loop {
            let machine = self.restoring.as_mut().and_then(|it| it.machine.as_mut());
            let Some(step) = machine.and_then(|machine| machine.poll(now)) else { return };
            self.note(|| format!("recovery: {step:?}"));
            match step {
                Step::Ask(store, member, request) => {
                    let told = self.broken == Some(Broken::NotClaimed);
                    let request = if told { Request::Tell } else { request };
                    let from = super::wire::Sender::Recovery(id);
                    self.post(Happening::Request { store, member, from, request });
                }
                Step::Read(member, origin) => {
                    if let Some(restoring) = &mut self.restoring {
                        restoring.reading.insert(member, origin);
                    }
                    self.after(READ, Happening::ReadDone { recovery: id, member, origin });
                }
                Step::Restored(epoch, origins) => return self.restored(epoch, origins),
                Step::Impossible(missing) => return self.nothing_left(&missing),
            }
        }
    }

    /// What a shell hands on of what a store tells.
    pub(super) fn as_told(&self, holding: Option<Holding>) -> Option<Holding> {
        if self.broken == Some(Broken::NotesIgnored) {
            return holding.map(|it| Holding { committed: Epoch::NONE, ..it });
        }
        holding
    }

    pub(super) fn recovery_answer(
        &mut self,
        id: u64,
        store: StoreId,
        member: Member,
        answer: Answer,
    ) {
        let now = self.time();
        let answer = match answer {
            Answer::Told(holding) => Answer::Told(self.as_told(holding)),
            answer => answer,
        };
        let Some(restoring) = self.restoring.as_mut().filter(|it| it.id == id) else { return };
        if matches!(answer, Answer::Told(_)) {
            restoring.told.insert((store, member));
        }
        if let Some(machine) = &mut restoring.machine {
            machine.found(Found::Answer(store, member, answer), now);
        }
    }

    pub(super) fn read_done(&mut self, id: u64, member: Member, origin: Origin) {
        let now = self.now;
        let store = self.stores.iter().find(|it| it.id == origin.store && it.reachable(now));
        let slot = store.and_then(|store| store.slot(member, origin.slot));
        let mut read = slot.map(|slot| slot.read(origin.epoch));
        if let (Some(Err(_)), Some(slot)) = (&read, slot) {
            if self.broken == Some(Broken::DamageIgnored) {
                read = Some(Ok(slot.data.clone()));
            } else {
                self.reach(Kind::AnotherCopy);
            }
        }
        let now = self.time();
        let wanted = |it: &&mut Restoring| it.id == id && it.reading.get(&member) == Some(&origin);
        let Some(restoring) = self.restoring.as_mut().filter(wanted) else { return };
        let Some(machine) = &mut restoring.machine else { return };
        match read {
            None => {
                restoring.told.retain(|(store, _)| *store != origin.store);
                machine.found(Found::Lost(origin.store), now);
            }
            Some(Ok(image)) => {
                restoring.images.insert(member, image);
                machine.found(Found::Read(member, origin, Ok(())), now);
            }
            Some(Err(why)) => machine.found(Found::Read(member, origin, Err(why)), now),
        }
    }

    /// The newest epoch of each, wherever it is.
    fn each_its_own(&self, origins: &mut [(Member, Origin)], images: &mut BTreeMap<Member, Image>) {
        for (member, origin) in origins {
            for store in self.stores.iter().filter(|store| store.alive) {
                let Some(slots) = store.shelf.slots.get(member) else { continue };
                for slot in slots {
                    if slot.word > origin.epoch {
                        origin.epoch = slot.word;
                        images.insert(*member, slot.data.clone());
                    }
                }
            }
        }
    }

    fn restored(&mut self, epoch: Epoch, mut origins: Vec<(Member, Origin)>) {
        let Some(mut restoring) = self.restoring.take() else { return };
        if self.broken == Some(Broken::EachItsOwn) {
            self.each_its_own(&mut origins, &mut restoring.images);
        }
        let known = restoring.machine.as_ref().map(Recovery::committed).unwrap_or_default();
        let members = self.ranks;
        let silent =
            |store: &super::store::Store| store.alive && !restoring.counts(store.id, members);
        if self.stores.iter().any(|it| silent(it) && !it.shelf.slots.is_empty()) {
            self.reach(Kind::StoreSilent);
        }
        let counts = |store, member| {
            restoring.counts(store, members) || !origins.iter().any(|it| it.0 == member)
        };
        self.keep_copies(counts);
        self.check_restored(epoch, known, &origins, &restoring.images, restoring.part.is_none());
        self.rebase(epoch, counts);
        if restoring.part.is_none() {
            self.new_ruler();
        }
        let (chunks, term) = (self.chunks, self.newest_term());
        for (member, origin) in &origins {
            let (Some(p), Some(image)) =
                (self.process_of(*member), restoring.images.remove(member))
            else {
                continue;
            };
            let life = Incarnation::of_life(self.processes[p].life);
            let writer =
                Writer::new((chunks, BYTES), life, term, Some(*origin), self.policy, WRITER);
            self.processes[p].begin(*member, image, writer);
            self.processes[p].tracking = self.broken != Some(Broken::TrackedLate);
        }
        if restoring.part.is_none() {
            self.reach(Kind::RestoredWhole);
        } else {
            self.reach(Kind::RestoredAlone);
        }
    }

    fn nothing_left(&mut self, missing: &Missing) {
        let Some(restoring) = self.restoring.take() else { return };
        if restoring.part.is_some() {
            return self.restore_all();
        }
        let members = self.ranks;
        // An answer that came after the recovery had given its store up is none.
        let silent = &missing.silent;
        self.keep_copies(|store, _| restoring.counts(store, members) && !silent.contains(&store));
        self.check_nothing_left(missing);
        self.reach(Kind::NothingLeft);
        self.begin_job();
    }

    /// A job begins from nothing.
    pub(super) fn begin_job(&mut self) {
        self.job += 1;
        self.forget_job();
        self.processes[..self.ranks].iter_mut().for_each(|it| it.life += 1);
        self.new_ruler();
        let (chunks, term) = (self.chunks, self.newest_term());
        for p in 0..self.ranks {
            let life = Incarnation::of_life(self.processes[p].life);
            let writer = Writer::new((chunks, BYTES), life, term, None, self.policy, WRITER);
            let member = self.member(p);
            self.processes[p].begin(member, vec![[0; 2]; chunks], writer);
        }
    }
}
