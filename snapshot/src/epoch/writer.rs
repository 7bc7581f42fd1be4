//! The writer's machine: one for each process, for one incarnation of it.

use super::replica::{Replica, Step};
use super::words::{Action, Event, Origin, Policy, Reason, Stage, WriterLimits};
use super::{Answer, Epoch, Incarnation, Open, Order, Report, Request, StoreId, Term, Word};
use crate::PageSet;
use std::collections::VecDeque;
use std::time::Duration;

/// A process that writes epochs.
#[derive(Clone, Debug)]
pub struct Writer {
    policy: Policy,
    limits: WriterLimits,
    chunks: usize,
    /// Of a compartment.
    bytes: u64,
    life: Incarnation,
    /// Of the next connection to a store.
    incarnation: Incarnation,
    replicas: Vec<Replica>,
    stage: Stage,
    /// When the epoch began.
    since: Duration,
    epoch: Epoch,
    /// Heard while the epoch before is still being noted.
    next: Option<Epoch>,
    largest: Epoch,
    committed: Epoch,
    round: u32,
    /// What was stale when the last round of this epoch began.
    before: Option<usize>,
    /// Rounds that were of use, and for how many epochs, with this one, that is taken for granted.
    useful: (u32, u32),
    /// A store has been asked for, and not been named.
    placing: bool,
    /// There is no other, in this epoch.
    exhausted: bool,
    /// Those that were lost in this epoch.
    failed: Vec<StoreId>,
    /// Why the last of them was.
    why: Option<String>,
    /// Answers of tracking that have not come.
    owed: u32,
    /// The slot that memory was equal to, and what has been dirty since.
    origin: Option<(Origin, PageSet)>,
    term: Term,
    serial: u64,
    report_at: Option<Duration>,
    actions: VecDeque<Action>,
}

/// After so many epochs without it a round that was of no use is tried again.
const TRY_AGAIN: u32 = 8;

/// Whether a round was of no use: the program has changed nearly as much of its memory meanwhile as was sent. Another one
/// would do no better, and the pause is as long without any.
fn is_futile(before: usize, after: usize) -> bool {
    8 * after > 7 * before
}

impl Writer {
    /// A writer of `chunks` chunks into compartments of `bytes` bytes. `life` is the first of its incarnations:
    /// larger than all of an earlier life of the process ([`Incarnation::of_life`]). `term` is that of the decider
    /// which takes over as this life begins: an older one may still tell what it told the life before, and is
    /// never listened to. `origin` is what the process was restored from, if it was; tracking has run since then.
    ///
    /// # Panics
    /// Where the policy is contradictory.
    #[must_use]
    pub fn new(
        (chunks, bytes): (usize, u64),
        life: Incarnation,
        term: Term,
        origin: Option<Origin>,
        policy: Policy,
        limits: WriterLimits,
    ) -> Self {
        assert!(
            policy.minimum >= 1 && policy.minimum <= policy.copies,
            "at least {} of {} copies",
            policy.minimum,
            policy.copies
        );
        let committed = origin.map_or(Epoch::NONE, |origin| origin.epoch);
        Writer {
            policy,
            limits,
            chunks,
            bytes,
            life,
            incarnation: life.next(),
            replicas: Vec::new(),
            stage: Stage::Idle,
            since: Duration::ZERO,
            epoch: Epoch::NONE,
            next: None,
            largest: committed,
            committed,
            round: 0,
            before: None,
            useful: (policy.rounds, 0),
            placing: false,
            exhausted: false,
            failed: Vec::new(),
            why: None,
            owed: 0,
            origin: origin.map(|origin| (origin, PageSet::new(chunks))),
            term,
            serial: 0,
            report_at: None,
            actions: VecDeque::new(),
        }
    }

    /// How far the epoch has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The epoch that is under way, or the last one that was.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The last epoch that it knows is committed.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// The stores that it has.
    pub fn stores(&self) -> impl Iterator<Item = StoreId> {
        self.replicas.iter().map(|replica| replica.store)
    }

    /// The next thing to do now, if there is one.
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        if self.actions.is_empty() {
            self.look_at_time(now);
        }
        self.actions.pop_front()
    }

    /// When to call [`Self::poll`] again at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        if self.stage == Stage::Fenced {
            return None;
        }
        let asks = self.replicas.iter().filter_map(|replica| replica.wake_at(&self.limits));
        asks.chain(self.deadline()).chain(self.report_at).min()
    }

    fn deadline(&self) -> Option<Duration> {
        self.is_writing().then(|| self.since + self.limits.epoch)
    }

    /// There is an epoch that it may still give up by itself.
    fn is_writing(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Complete | Stage::Note | Stage::Fenced)
    }

    /// Something has happened.
    pub fn event(&mut self, event: Event, now: Duration) {
        if self.stage == Stage::Fenced {
            return;
        }
        match event {
            Event::Answer(by, answer) => self.answer(by, answer, now),
            Event::Store(store) => self.store(store, now),
            Event::Done(by) => self.done(by, now),
            Event::Lost(by) => self.lost(by, None),
            Event::Dirty(dirty) => self.dirty(&dirty),
            Event::Unable(why) => {
                self.owed = self.owed.saturating_sub(1);
                if self.collects() {
                    self.give_up(Reason::Unable(why), now);
                }
            }
            // It comes before anything that is done to seal the epoch, or of one that is given up already.
            Event::Moved(why) if self.stage == Stage::Seal => {
                self.give_up(Reason::Unable(why), now);
            }
            Event::Moved(_) => {}
            Event::Protected(epoch, result) => {
                if self.stage == Stage::Protect && epoch == self.epoch {
                    match result {
                        Ok(()) => self.complete(now),
                        Err(why) => self.give_up(Reason::Unable(why), now),
                    }
                }
            }
            Event::Order(order) => self.order(order, now),
        }
        self.advance(now);
    }

    fn replica(&mut self, by: Incarnation) -> Option<&mut Replica> {
        self.replicas.iter_mut().find(|replica| replica.by == by)
    }

    fn order(&mut self, order: Order, now: Duration) {
        if order.term < self.term || order.to != self.life {
            return;
        }
        self.term = order.term;
        match order.word {
            Word::Ask => {}
            Word::Begin(epoch) if epoch > self.largest && self.next.is_none() => {
                self.largest = epoch;
                match self.stage {
                    Stage::Idle => self.begin(epoch, now),
                    Stage::Note => self.next = Some(epoch),
                    // Of one that it does not know to be decided: it is not going to write this one.
                    _ => {}
                }
            }
            Word::Begin(_) => {}
            Word::Commit(epoch) => {
                if self.stage == Stage::Complete && epoch == self.epoch {
                    self.committed = epoch;
                    self.stage = Stage::Note;
                    for replica in &mut self.replicas {
                        if replica.step == Step::Written {
                            replica.note(epoch, now);
                        }
                    }
                }
            }
            Word::Abort(epoch) => {
                self.largest = self.largest.max(epoch);
                self.next = self.next.filter(|next| *next != epoch);
                let decided = self.stage == Stage::Complete;
                if epoch == self.epoch && (self.is_writing() || decided) {
                    self.give_up(Reason::Aborted, now);
                }
            }
        }
        self.report_at = Some(now);
    }

    fn begin(&mut self, epoch: Epoch, now: Duration) {
        (self.epoch, self.stage, self.since) = (epoch, Stage::Gather, now);
        (self.round, self.before, self.exhausted, self.why) = (0, None, false, None);
        let (rounds, epochs) = self.useful;
        self.useful = match epochs {
            0 | 1 => (self.policy.rounds, 0),
            more => (rounds, more - 1),
        };
        self.failed.clear();
    }

    fn store(&mut self, store: Option<StoreId>, now: Duration) {
        if !self.placing {
            return;
        }
        self.placing = false;
        match store {
            Some(store) if self.replicas.iter().all(|replica| replica.store != store) => {
                let by = self.incarnation;
                self.incarnation = by.next();
                let grant = Request::Grant {
                    incarnation: by,
                    bytes: self.bytes,
                    committed: self.committed,
                };
                self.replicas.push(Replica::new(by, store, self.chunks, grant, now));
                (self.round, self.before) = (0, None);
            }
            _ => self.exhausted = true,
        }
    }

    fn answer(&mut self, by: Incarnation, answer: Answer, now: Duration) {
        let (pause, committed, epoch) = (self.limits.pause, self.committed, self.epoch);
        let origin = self.origin.as_ref();
        let Some(replica) = self.replicas.iter_mut().find(|replica| replica.by == by) else {
            return;
        };
        match (replica.step, answer) {
            (Step::Granting | Step::Checking | Step::Noting, Answer::Wait) => {
                replica.ask_later(now + pause, now);
            }
            (Step::Granting, Answer::Granted(holding)) => {
                let store = replica.store;
                let equal = origin.filter(|(origin, _)| {
                    origin.store == store && holding.slot_of(origin.epoch) == Some(origin.slot)
                });
                let known = equal.map(|(origin, dirty)| (origin.slot, dirty.clone()));
                replica.granted(&holding, committed, known);
            }
            (Step::Checking, Answer::Checked(of)) if of == epoch => replica.settle(Step::Written),
            (Step::Noting, Answer::Noted(of)) if of == epoch => replica.settle(Step::Noted),
            // A newer connection of this very machine is not made while there is an older one.
            (_, Answer::Stale(newest)) if newest > by => {
                self.stage = Stage::Fenced;
                self.actions.clear();
                self.actions.push_back(Action::Fenced(newest));
            }
            (Step::Granting | Step::Checking | Step::Noting, Answer::Refused(why)) => {
                self.lost(by, Some(why));
            }
            // Asked twice, answered twice.
            _ => {}
        }
    }

    fn done(&mut self, by: Incarnation, now: Duration) {
        let (epoch, check) = (self.epoch, self.policy.check);
        let Some(replica) = self.replica(by).filter(|replica| replica.busy) else { return };
        replica.busy = false;
        match replica.step {
            Step::Invalidating | Step::Sending => replica.step = Step::Ready,
            Step::Sealing => {
                replica.step = Step::Wording;
                replica.busy = true;
                let word = Action::Word(by, replica.slot, epoch);
                self.actions.push_back(word);
            }
            Step::Wording if check => replica.check(epoch, now),
            Step::Wording => replica.step = Step::Written,
            // It is of an epoch that was given up.
            _ => {}
        }
    }

    /// A store does not count any more. Where that leaves too few, or whether another takes its place,
    /// is looked at in [`Self::advance`].
    fn lost(&mut self, by: Incarnation, why: Option<String>) {
        let Some(at) = self.replicas.iter().position(|replica| replica.by == by) else { return };
        self.failed.push(self.replicas.remove(at).store);
        self.actions.push_back(Action::Disconnect(by));
        self.why = why.or(self.why.take());
    }

    /// What tracking was asked last in this epoch has been answered, or is going to be by the next event.
    fn collects(&self) -> bool {
        self.owed == 0 && matches!(self.stage, Stage::Collect | Stage::Pause)
    }

    fn dirty(&mut self, dirty: &PageSet) {
        self.owed = self.owed.saturating_sub(1);
        // Tracking has started afresh, also where the epoch that had asked is given up.
        self.mark(dirty);
        if !self.collects() {
            return;
        }
        if self.stage == Stage::Pause {
            self.stage = Stage::Last;
            self.send();
            return;
        }
        if self.lacks_a_store() {
            self.stage = Stage::Gather;
            return;
        }
        let stale = self.replicas.iter().map(Replica::stale).max().unwrap_or_default();
        let small = stale <= self.policy.small;
        if !small && self.before.is_some_and(|before| is_futile(before, stale)) {
            self.useful = (self.round - 1, TRY_AGAIN);
        }
        if small || self.round >= self.useful.0 {
            self.stage = Stage::Pause;
            self.owed += 1;
            self.actions.push_back(Action::Pause);
        } else {
            self.round += 1;
            self.before = Some(stale);
            self.stage = Stage::Round;
            self.send();
        }
    }

    fn mark(&mut self, dirty: &PageSet) {
        self.replicas.iter_mut().for_each(|replica| replica.mark(dirty));
        if let Some((_, since)) = &mut self.origin {
            since.union_with(dirty);
        }
    }

    fn send(&mut self) {
        for replica in &mut self.replicas {
            if let Some(chunks) = replica.send() {
                self.actions.push_back(Action::Send(replica.by, replica.slot, chunks));
            }
        }
    }

    fn lacks_a_store(&self) -> bool {
        self.replicas.len() < self.policy.copies && !self.exhausted
    }

    /// Goes on where nothing is waited for any more.
    fn advance(&mut self, now: Duration) {
        if self.is_writing() && self.stage != Stage::Gather {
            let left = self.replicas.len();
            if left < self.policy.minimum && !self.may_gather() {
                let why = self.why.take();
                self.give_up(Reason::TooFew { left, why }, now);
            }
        }
        let all = |step: Step| self.replicas.iter().all(|it| it.step == step && !it.busy);
        match self.stage {
            Stage::Gather => self.gather(now),
            Stage::Round if all(Step::Ready) => {
                self.stage = Stage::Gather;
                self.gather(now);
            }
            Stage::Last if all(Step::Ready) => {
                self.actions.push_back(Action::Resume);
                self.stage = Stage::Seal;
                for replica in &mut self.replicas {
                    (replica.step, replica.busy) = (Step::Sealing, true);
                    self.actions.push_back(Action::Seal(replica.by, replica.slot, self.epoch));
                }
            }
            Stage::Seal if all(Step::Written) => {
                if self.policy.protect {
                    self.stage = Stage::Protect;
                    self.actions.push_back(Action::Protect(self.epoch));
                } else {
                    self.complete(now);
                }
            }
            Stage::Note if all(Step::Noted) => self.noted(now),
            _ => {}
        }
    }

    /// Before the pause a store that was lost is replaced.
    fn may_gather(&self) -> bool {
        matches!(self.stage, Stage::Collect | Stage::Round)
    }

    fn gather(&mut self, now: Duration) {
        for replica in &mut self.replicas {
            if replica.step == Step::Idle && !replica.busy {
                replica.open(self.committed);
                self.actions.push_back(Action::Invalidate(replica.by, replica.slot));
            }
        }
        if self.lacks_a_store() && !self.placing {
            self.placing = true;
            let known = self.stores().chain(self.failed.iter().copied()).collect();
            self.actions.push_back(Action::Place(known));
        }
        if self.placing || self.replicas.iter().any(|it| it.step != Step::Ready || it.busy) {
            return;
        }
        let left = self.replicas.len();
        if left < self.policy.minimum {
            let why = self.why.take();
            self.give_up(Reason::TooFew { left, why }, now);
        } else {
            self.stage = Stage::Collect;
            self.owed += 1;
            self.actions.push_back(Action::Collect);
        }
    }

    fn complete(&mut self, now: Duration) {
        self.stage = Stage::Complete;
        self.report_at = Some(now);
    }

    fn noted(&mut self, now: Duration) {
        self.actions.push_back(Action::Committed(self.epoch, self.replicas.len()));
        self.end(now);
        if let Some(epoch) = self.next.take() {
            self.begin(epoch, now);
            self.gather(now);
        }
    }

    fn give_up(&mut self, reason: Reason, now: Duration) {
        if matches!(self.stage, Stage::Pause | Stage::Last) {
            self.actions.push_back(Action::Resume);
        }
        self.actions.push_back(Action::GivenUp(self.epoch, reason));
        self.end(now);
    }

    fn end(&mut self, now: Duration) {
        self.stage = Stage::Idle;
        self.replicas.iter_mut().for_each(Replica::close);
        self.report_at = Some(now);
    }

    fn look_at_time(&mut self, now: Duration) {
        if self.stage == Stage::Fenced {
            return;
        }
        if self.deadline().is_some_and(|at| now >= at) {
            // What is under way there may never end.
            let busy: Vec<Incarnation> =
                self.replicas.iter().filter(|it| it.is_waited_for()).map(|it| it.by).collect();
            busy.into_iter().for_each(|by| self.lost(by, None));
            self.give_up(Reason::Late, now);
        }
        let limits = self.limits;
        let silent: Vec<(Incarnation, StoreId)> = self
            .replicas
            .iter()
            .filter(|it| it.is_silent(&limits, now))
            .map(|it| (it.by, it.store))
            .collect();
        for (by, store) in &silent {
            self.lost(*by, Some(format!("store {store} does not answer")));
        }
        for replica in &mut self.replicas {
            if let Some(request) = replica.due(now, limits.again) {
                self.actions.push_back(Action::Ask(replica.by, replica.store, request));
            }
        }
        if self.report_at.is_some_and(|at| now >= at) {
            self.report(now);
        }
        if !silent.is_empty() {
            self.advance(now);
        }
    }

    /// Tells the decider where it stands; again and again while it has to hear that.
    fn report(&mut self, now: Duration) {
        let waits = self.stage == Stage::Complete;
        self.report_at = waits.then(|| now + self.limits.again);
        self.serial += 1;
        let open = match self.stage {
            Stage::Idle | Stage::Fenced => None,
            Stage::Note => self.next.map(|epoch| Open { epoch, complete: false }),
            stage => Some(Open { epoch: self.epoch, complete: stage == Stage::Complete }),
        };
        self.actions.push_back(Action::Report(Report {
            term: self.term,
            incarnation: self.life,
            serial: self.serial,
            largest: self.largest,
            committed: self.committed,
            open,
        }));
    }
}
