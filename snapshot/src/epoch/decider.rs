//! The decider's machine: one for each job and term.

use super::{Epoch, Incarnation, Member, Order, Report, Term, Word};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long a decider waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeciderLimits {
    /// For all members to be complete. The epoch is given up then.
    pub epoch: Duration,
    /// Between telling again who has not answered.
    pub again: Duration,
}

impl Default for DeciderLimits {
    fn default() -> Self {
        DeciderLimits { epoch: Duration::from_secs(120), again: Duration::from_millis(200) }
    }
}

/// What a decider's driver has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ruling {
    /// Tell a member.
    Tell(Member, Order),
    /// An epoch is decided: committed, or given up.
    Decided {
        /// Which.
        epoch: Epoch,
        /// It is committed.
        committed: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Not all members have said where they stand.
    Asking,
    Idle,
    /// Members write.
    Running(Epoch),
    /// It is decided, and not all know.
    Deciding(Epoch),
}

#[derive(Clone, Debug, Hash)]
struct Seat {
    life: Incarnation,
    report: Option<Report>,
    tell_at: Duration,
    dead: bool,
}

/// Who decides what is committed.
#[derive(Clone, Debug, Hash)]
pub struct Decider {
    term: Term,
    seats: BTreeMap<Member, Seat>,
    stage: Stage,
    since: Duration,
    largest: Epoch,
    committed: Epoch,
    limits: DeciderLimits,
    rulings: VecDeque<Ruling>,
}

impl Decider {
    /// A decider of these members, each in this life of it ([`Incarnation::of_life`]). It begins by asking where
    /// they stand: so a new one that takes the place of another, with a larger term, needs nothing of what that
    /// one knew. It neither tells nor hears another life: where one begins, a new decider does.
    ///
    /// # Panics
    /// Where `term` is 0 or past [`Term::MAX`].
    #[must_use]
    pub fn new(
        term: Term,
        members: impl IntoIterator<Item = (Member, Incarnation)>,
        now: Duration,
        limits: DeciderLimits,
    ) -> Self {
        assert!(term.0 > 0 && term <= Term::MAX, "{term:?} is no term");
        let seat =
            |(member, life)| (member, Seat { life, report: None, tell_at: now, dead: false });
        Decider {
            term,
            seats: members.into_iter().map(seat).collect(),
            stage: Stage::Asking,
            since: now,
            largest: Epoch::NONE,
            committed: Epoch::NONE,
            limits,
            rulings: VecDeque::new(),
        }
    }

    /// The last epoch that is known to be committed.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.committed
    }

    /// Whether [`Self::start`] can deal a number now.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle
    }

    /// Begins an epoch: the number, or `None` while another is under way, members have not answered, or one
    /// is dead.
    pub fn start(&mut self, now: Duration) -> Option<Epoch> {
        if self.stage != Stage::Idle || self.seats.values().any(|seat| seat.dead) {
            return None;
        }
        let epoch = self.largest.after(self.term);
        self.largest = epoch;
        self.enter(Stage::Running(epoch), now);
        Some(epoch)
    }

    /// The next thing to do now, if there is one.
    pub fn poll(&mut self, now: Duration) -> Option<Ruling> {
        if self.rulings.is_empty() {
            if self.deadline().is_some_and(|at| now >= at) {
                self.give_up(now);
                self.advance(now);
            }
            self.tell(now);
        }
        self.rulings.pop_front()
    }

    /// When to call [`Self::poll`] again at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let waiting = self.seats.values().filter(|seat| self.word_for(seat).is_some());
        waiting.map(|seat| seat.tell_at).chain(self.deadline()).min()
    }

    fn deadline(&self) -> Option<Duration> {
        matches!(self.stage, Stage::Running(_)).then(|| self.since + self.limits.epoch)
    }

    /// A member tells where it stands.
    pub fn report(&mut self, member: Member, report: Report, now: Duration) {
        let Some(seat) = self.seats.get_mut(&member) else { return };
        let ours = report.term == self.term && report.incarnation == seat.life && !seat.dead;
        let older = seat.report.is_some_and(|it| it.serial >= report.serial);
        if !ours || older || report.check().is_err() {
            return;
        }
        (seat.report, seat.tell_at) = (Some(report), now);
        self.largest = self.largest.max(report.largest);
        self.advance(now);
    }

    /// A member is dead: what it has not said counts for nothing any more. When it has been restored, a
    /// decider of a new term takes over.
    pub fn lost(&mut self, member: Member, now: Duration) {
        if let Some(seat) = self.seats.get_mut(&member) {
            seat.dead = true;
            self.give_up(now);
            self.advance(now);
        }
    }

    /// The last epoch that one of these members knows to be committed; `None` while one has not answered. They
    /// do not listen to an older decider any more, so nothing is added to it but by this one.
    #[must_use]
    pub fn known_by(&self, members: impl IntoIterator<Item = Member>) -> Option<Epoch> {
        let committed = |member| Some(self.seats.get(&member)?.report?.committed);
        members
            .into_iter()
            .try_fold(Epoch::NONE, |known, member| Some(known.max(committed(member)?)))
    }

    fn give_up(&mut self, now: Duration) {
        if let Stage::Running(epoch) = self.stage {
            self.decide(epoch, false, now);
        }
    }

    fn decide(&mut self, epoch: Epoch, committed: bool, now: Duration) {
        if committed {
            self.committed = epoch;
        }
        self.rulings.push_back(Ruling::Decided { epoch, committed });
        self.enter(Stage::Deciding(epoch), now);
    }

    fn enter(&mut self, stage: Stage, now: Duration) {
        (self.stage, self.since) = (stage, now);
        self.seats.values_mut().for_each(|seat| seat.tell_at = now);
    }

    /// Goes on, through stages in which there is nothing to wait for.
    fn advance(&mut self, now: Duration) {
        loop {
            let stage = self.stage;
            self.next_stage(now);
            if self.stage == stage {
                return;
            }
        }
    }

    fn next_stage(&mut self, now: Duration) {
        let reports = || self.seats.values().map(|seat| seat.report);
        let all_complete = |epoch: Epoch| {
            let complete = |report: Option<Report>| {
                let open = report.and_then(|it| it.open);
                open.is_some_and(|it| it.epoch == epoch && it.complete)
            };
            !self.seats.is_empty() && reports().all(complete)
        };
        match self.stage {
            Stage::Asking if reports().all(|report| report.is_some()) => {
                let known = reports().flatten().map(|report| report.committed).max();
                self.committed = known.unwrap_or_default();
                let open = reports().flatten().filter_map(|it| it.open).map(|it| it.epoch).max();
                match open {
                    None => self.enter(Stage::Idle, now),
                    // Somebody has been told; or nobody can have heard that it is given up.
                    Some(epoch) => {
                        let committed = epoch <= self.committed || all_complete(epoch);
                        self.decide(epoch, committed, now);
                    }
                }
            }
            Stage::Running(epoch) if all_complete(epoch) => self.decide(epoch, true, now),
            Stage::Running(epoch) => {
                let never = |report: Report| {
                    report.largest >= epoch && report.open.is_none_or(|it| it.epoch != epoch)
                };
                if reports().flatten().any(never) {
                    self.decide(epoch, false, now);
                }
            }
            Stage::Deciding(_) if self.seats.values().all(|seat| self.word_for(seat).is_none()) => {
                self.enter(Stage::Idle, now);
            }
            _ => {}
        }
    }

    /// What a member has to be told.
    fn word_for(&self, seat: &Seat) -> Option<Word> {
        if seat.dead {
            return None;
        }
        let Some(report) = seat.report else { return Some(Word::Ask) };
        match (report.open, self.stage) {
            (_, Stage::Asking) => None,
            (Some(open), Stage::Running(epoch)) if open.epoch == epoch => None,
            (Some(open), _) if open.epoch <= self.committed => Some(Word::Commit(open.epoch)),
            (Some(open), _) => Some(Word::Abort(open.epoch)),
            (None, Stage::Running(epoch)) if report.largest < epoch => Some(Word::Begin(epoch)),
            // So that a late word to begin does not begin it.
            (None, Stage::Deciding(epoch)) if report.largest < epoch && epoch > self.committed => {
                Some(Word::Abort(epoch))
            }
            _ => None,
        }
    }

    fn tell(&mut self, now: Duration) {
        let term = self.term;
        let due: Vec<(Member, Incarnation, Word)> = self
            .seats
            .iter()
            .filter(|(_, seat)| seat.tell_at <= now)
            .filter_map(|(member, seat)| Some((*member, seat.life, self.word_for(seat)?)))
            .collect();
        for (member, to, word) in due {
            if let Some(seat) = self.seats.get_mut(&member) {
                seat.tell_at = now + self.limits.again;
            }
            self.rulings.push_back(Ruling::Tell(member, Order { term, to, word }));
        }
    }
}
