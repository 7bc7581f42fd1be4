//! The machine of a recovery: what is restored, and from where.

use super::{Answer, Epoch, Holding, Incarnation, Member, Origin, Request, Slot, StoreId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

/// How long a recovery waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecoveryLimits {
    /// For the stores' answers. Who is silent by then counts as lost.
    pub answer: Duration,
    /// Between asking again where the answer was "not yet".
    pub pause: Duration,
    /// Between asking again where nothing came.
    pub again: Duration,
}

impl Default for RecoveryLimits {
    fn default() -> Self {
        RecoveryLimits {
            answer: Duration::from_secs(10),
            pause: Duration::from_millis(1),
            again: Duration::from_millis(500),
        }
    }
}

/// What a recovery's driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask a store; bring [`Found::Answer`].
    Ask(StoreId, Member, Request),
    /// Read a member's memory from there, and hold it against its checksums: [`Found::Read`]. A read for this
    /// member that was begun before, if there is one, is of no use: it must have ended before this begins.
    Read(Member, Origin),
    /// All members have their memory. The machine has ended.
    Restored(Epoch, Vec<(Member, Origin)>),
    /// Nothing can be restored. The machine has ended.
    Impossible(Missing),
}

/// What the driver tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A store has answered.
    Answer(StoreId, Member, Answer),
    /// A store is dead, or cannot be reached.
    Lost(StoreId),
    /// A member's memory was read from there, and is sound, or what is wrong.
    Read(Member, Origin, Result<(), String>),
}

/// Why nothing can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The last epoch that is known to be committed.
    pub committed: Epoch,
    /// For each member, which epochs were seen where. Copies that are damaged are in [`Self::damaged`].
    pub seen: Vec<(Member, Vec<(StoreId, Epoch)>)>,
    /// Copies that failed their checks, and why.
    pub damaged: Vec<(Member, StoreId, Epoch, String)>,
    /// Stores that did not answer.
    pub silent: Vec<StoreId>,
}

impl Missing {
    /// Members without a copy of the committed epoch.
    pub fn lacking(&self) -> impl Iterator<Item = Member> {
        let lacks = |copies: &[(StoreId, Epoch)]| copies.iter().all(|it| it.1 != self.committed);
        self.seen.iter().filter(move |(_, copies)| lacks(copies)).map(|it| it.0)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no epoch can be restored for all processes")?;
        if self.committed.is_some() {
            write!(f, "; {} was committed, and is missing for", self.committed)?;
            for (n, member) in self.lacking().enumerate() {
                write!(f, "{} {member}", if n == 0 { " process" } else { "," })?;
            }
        }
        for (member, copies) in &self.seen {
            write!(f, "; process {member}:")?;
            if copies.is_empty() {
                f.write_str(" nothing")?;
            }
            for (n, (store, epoch)) in copies.iter().enumerate() {
                let comma = if n == 0 { "" } else { "," };
                write!(f, "{comma} {epoch} on store {store}")?;
            }
        }
        for (member, store, epoch, why) in &self.damaged {
            write!(f, "; process {member}, {epoch} on store {store} is damaged: {why}")?;
        }
        for store in &self.silent {
            write!(f, "; store {store} does not answer")?;
        }
        Ok(())
    }
}

/// How far a question to a store has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Asked {
    /// It is asked, next at this time.
    At(Duration),
    Told(Option<Holding>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reading {
    origin: Origin,
    done: bool,
}

/// Who is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All processes of the job.
    Whole,
    /// Some; the others live, compute on from where they are, and know this epoch to be committed, as they
    /// have told a new decider ([`super::Decider::known_by`]). Then it is the last committed epoch or none:
    /// the others would not go with them to another.
    Part(Epoch),
}

/// A recovery of processes that have died, or that go back together with one that has.
#[derive(Clone, Debug)]
pub struct Recovery {
    members: BTreeMap<Member, Incarnation>,
    asked: BTreeMap<(StoreId, Member), Asked>,
    silent: BTreeSet<StoreId>,
    damaged: BTreeMap<(Member, StoreId, Epoch), String>,
    scope: Scope,
    reading: BTreeMap<Member, Reading>,
    /// Stores are still asked.
    asking: bool,
    ended: bool,
    deadline: Duration,
    limits: RecoveryLimits,
    steps: VecDeque<Step>,
}

impl Recovery {
    /// Recovers `members`, each for a new incarnation, from `stores`.
    #[must_use]
    pub fn new(
        members: impl IntoIterator<Item = (Member, Incarnation)>,
        stores: impl IntoIterator<Item = StoreId>,
        scope: Scope,
        now: Duration,
        limits: RecoveryLimits,
    ) -> Self {
        let members: BTreeMap<Member, Incarnation> = members.into_iter().collect();
        let ask = |store| members.keys().map(move |member| ((store, *member), Asked::At(now)));
        let asked = stores.into_iter().flat_map(ask).collect();
        let mut recovery = Recovery {
            members,
            asked,
            silent: BTreeSet::new(),
            damaged: BTreeMap::new(),
            scope,
            reading: BTreeMap::new(),
            asking: true,
            ended: false,
            deadline: now + limits.answer,
            limits,
            steps: VecDeque::new(),
        };
        recovery.advance();
        recovery
    }

    /// The next thing to do now, if there is one.
    pub fn poll(&mut self, now: Duration) -> Option<Step> {
        if self.steps.is_empty() && !self.ended {
            self.ask(now);
        }
        self.steps.pop_front()
    }

    /// When to call [`Self::poll`] again at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let at = |asked: &Asked| match asked {
            Asked::At(at) => Some((*at).min(self.deadline)),
            Asked::Told(_) => None,
        };
        if self.ended { None } else { self.asked.values().filter_map(at).min() }
    }

    /// Something has happened.
    pub fn found(&mut self, found: Found, now: Duration) {
        if self.ended {
            return;
        }
        match found {
            Found::Answer(store, member, answer) => self.answer(store, member, answer, now),
            Found::Lost(store) => self.lost(store),
            Found::Read(member, origin, result) => self.read(member, origin, result),
        }
        self.advance();
    }

    fn ask(&mut self, now: Duration) {
        if now >= self.deadline {
            let waits = |asked: &Asked| matches!(asked, Asked::At(_));
            let silent: Vec<StoreId> =
                self.asked.iter().filter(|it| waits(it.1)).map(|it| it.0.0).collect();
            if !silent.is_empty() {
                silent.into_iter().for_each(|store| self.lost(store));
                self.advance();
                return;
            }
        }
        for ((store, member), asked) in &mut self.asked {
            let Asked::At(at) = asked else { continue };
            if *at <= now {
                *at = now + self.limits.again;
                let incarnation = self.members[member];
                self.steps.push_back(Step::Ask(*store, *member, Request::Claim { incarnation }));
            }
        }
    }

    fn answer(&mut self, store: StoreId, member: Member, answer: Answer, now: Duration) {
        let Some(asked) = self.asked.get_mut(&(store, member)) else { return };
        if matches!(asked, Asked::Told(_)) {
            return;
        }
        match answer {
            Answer::Told(holding) => *asked = Asked::Told(holding),
            Answer::Wait => *asked = Asked::At(now + self.limits.pause),
            // A newer recovery has begun: what is there is not ours to read.
            _ => self.lost(store),
        }
    }

    /// Memory that has been read from there stays.
    fn lost(&mut self, store: StoreId) {
        self.silent.insert(store);
        self.asked.retain(|(at, _), _| *at != store);
        self.reading.retain(|_, reading| reading.done || reading.origin.store != store);
    }

    fn read(&mut self, member: Member, origin: Origin, result: Result<(), String>) {
        let Some(reading) = self.reading.get_mut(&member) else { return };
        if reading.done || reading.origin != origin {
            return;
        }
        match result {
            Ok(()) => reading.done = true,
            Err(why) => {
                self.damaged.insert((member, origin.store, origin.epoch), why);
                self.reading.remove(&member);
            }
        }
    }

    fn advance(&mut self) {
        if self.asking {
            if self.asked.values().any(|asked| matches!(asked, Asked::At(_))) {
                return;
            }
            self.asking = false;
        }
        if !self.members.is_empty() && self.reading.len() == self.members.len() {
            if self.reading.values().all(|reading| reading.done) {
                self.end();
            }
            return;
        }
        let Some(epoch) = self.choose() else {
            self.ended = true;
            self.steps.push_back(Step::Impossible(self.missing()));
            return;
        };
        self.reading.retain(|_, reading| reading.origin.epoch == epoch);
        let members: Vec<Member> = self.members.keys().copied().collect();
        for (n, member) in members.into_iter().enumerate() {
            if self.reading.contains_key(&member) {
                continue;
            }
            // Not all from one store.
            let copies = self.copies(member, epoch);
            if let Some((store, slot)) = copies.get(n % copies.len().max(1)) {
                let origin = Origin { epoch, store: *store, slot: *slot };
                self.reading.insert(member, Reading { origin, done: false });
                self.steps.push_back(Step::Read(member, origin));
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        let all: Vec<(Member, Origin)> =
            self.reading.iter().map(|(member, reading)| (*member, reading.origin)).collect();
        let epoch = all.first().map_or(Epoch::NONE, |(_, origin)| origin.epoch);
        self.steps.push_back(Step::Restored(epoch, all));
    }

    /// The last epoch that is known to be committed.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.holdings().map(|(_, _, it)| it.committed).fold(self.known(), Epoch::max)
    }

    fn known(&self) -> Epoch {
        match self.scope {
            Scope::Whole => Epoch::NONE,
            Scope::Part(known) => known,
        }
    }

    fn holdings(&self) -> impl Iterator<Item = (StoreId, Member, &Holding)> {
        self.asked.iter().filter_map(|((store, member), asked)| match asked {
            Asked::Told(Some(holding)) => Some((*store, *member, holding)),
            _ => None,
        })
    }

    /// Sound copies of an epoch of a member.
    fn copies(&self, member: Member, epoch: Epoch) -> Vec<(StoreId, Slot)> {
        let sound = |store| !self.damaged.contains_key(&(member, store, epoch));
        self.holdings()
            .filter(|(store, whose, _)| *whose == member && sound(*store))
            .filter_map(|(store, _, holding)| Some((store, holding.slot_of(epoch)?)))
            .collect()
    }

    /// The rule (see [`super`]).
    fn choose(&self) -> Option<Epoch> {
        let committed = self.committed();
        let words = self.holdings().flat_map(|(_, _, holding)| holding.words);
        let mut seen: Vec<Epoch> = words.filter(|epoch| epoch.is_some()).collect();
        // What has been read is in hand, wherever it came from.
        seen.extend(self.reading.values().filter(|it| it.done).map(|it| it.origin.epoch));
        seen.sort_unstable();
        seen.dedup();
        let in_hand = |member: Member, epoch: Epoch| {
            self.reading.get(&member).is_some_and(|it| it.done && it.origin.epoch == epoch)
        };
        let all_have = |epoch: &Epoch| {
            let has = |member: &Member| {
                in_hand(*member, *epoch) || !self.copies(*member, *epoch).is_empty()
            };
            self.members.keys().all(has)
        };
        let as_safe = |epoch: &Epoch| {
            self.members.keys().all(|member| {
                let stores = self.copies(*member, *epoch);
                let has = |store: StoreId| stores.iter().any(|it| it.0 == store);
                self.copies(*member, committed).iter().all(|(store, _)| has(*store))
            })
        };
        if matches!(self.scope, Scope::Part(_)) {
            return Some(committed).filter(|epoch| epoch.is_some() && all_have(epoch));
        }
        let mut downwards = seen.iter().rev().filter(|epoch| all_have(epoch));
        let newer = downwards.clone().find(|epoch| **epoch > committed && as_safe(epoch));
        let noted = || downwards.clone().find(|epoch| **epoch == committed);
        newer.or_else(noted).or_else(|| downwards.next()).copied()
    }

    fn missing(&self) -> Missing {
        let copies = |member: Member| {
            let of = |store, holding: &Holding| {
                let words = holding.words.into_iter().filter(|epoch| epoch.is_some());
                let sound =
                    move |epoch: &Epoch| !self.damaged.contains_key(&(member, store, *epoch));
                words.filter(sound).map(move |epoch| (store, epoch)).collect::<Vec<_>>()
            };
            let own = self.holdings().filter(|(_, whose, _)| *whose == member);
            own.flat_map(|(store, _, holding)| of(store, holding)).collect()
        };
        let damaged = self.damaged.iter();
        Missing {
            committed: self.committed(),
            seen: self.members.keys().map(|member| (*member, copies(*member))).collect(),
            damaged: damaged.map(|(at, why)| (at.0, at.1, at.2, why.clone())).collect(),
            silent: self.silent.iter().copied().collect(),
        }
    }
}
