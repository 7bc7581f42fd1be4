//! The mover's machine: one for each move of a context, over all of its groups.

use super::message::{Accept, Answer, Cut, MAX_LINKS, Offer, Request};
use crate::replay::Executed;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// How long a mover waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MoverLimits {
    /// For peers to make their new queue pairs. (256 of them take 0.2 s on soft RoCE.)
    pub prepare: Duration,
    /// For a peer to say that it hands nothing more.
    pub quiesce: Duration,
    /// For what is under way to be executed, once all have stopped handing. What is not by then
    /// (a SEND without a receive, say) is decided by counting, so this bounds the blackout.
    pub drain: Duration,
    /// For a peer to go over, after the commit point; and once more for its last word. Its links are lost
    /// then. (Both together are shorter than a follower's patience.)
    pub switch: Duration,
    /// For peers to take note that a move is taken back.
    pub abort: Duration,
    /// Between asking again where the answer was "not yet".
    pub pause: Duration,
    /// Between asking again where there was no answer.
    pub again: Duration,
}

impl Default for MoverLimits {
    fn default() -> Self {
        MoverLimits {
            prepare: Duration::from_secs(10),
            quiesce: Duration::from_secs(2),
            drain: Duration::from_millis(100),
            switch: Duration::from_secs(12),
            abort: Duration::from_secs(2),
            pause: Duration::from_micros(100),
            again: Duration::from_millis(500),
        }
    }
}

/// Why a move was taken back: everything goes on where it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The peer of this group is moving itself.
    Busy(usize),
    /// The peer of this group refused.
    Refused(usize, String),
    /// The peer of this group did not answer in time.
    Silent(usize, Stage),
    /// The peer of this group answered what makes no sense.
    Confused(usize, Stage),
    /// The new queue pairs of this group cannot be connected.
    Unable(usize, String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Busy(_) => f.write_str("the peer is moving itself"),
            Failure::Refused(_, why) => write!(f, "the peer refused: {why}"),
            Failure::Silent(_, stage) => write!(f, "the peer did not answer in time ({stage})"),
            Failure::Confused(_, stage) => {
                write!(f, "the peer answered what was not asked ({stage})")
            }
            Failure::Unable(_, why) => f.write_str(why),
        }
    }
}

/// How far a move has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// New queue pairs are made.
    Prepare,
    /// Nothing more is handed; what is under way is waited for.
    Quiesce,
    /// Past the commit point: the old queue pairs are taken down.
    Down,
    /// Peers go over.
    Switch,
    /// It is taken back.
    Abort,
    /// Nothing more is to be done.
    Ended,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Prepare => "prepare",
            Stage::Quiesce => "quiesce",
            Stage::Down => "down",
            Stage::Switch => "switch",
            Stage::Abort => "abort",
            Stage::Ended => "ended",
        })
    }
}

/// What the driver has to do. Groups are named by their place in the list that the machine was made
/// from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<E> {
    /// Ask this of a group's peer; bring the answer with [`Event::Answer`].
    Ask(usize, Request<E>),
    /// Connect the new queue pairs of a group to these; `None`: the peer has no such queue pair.
    /// Bring [`Event::Unable`] where that fails.
    Connect(usize, Vec<Option<Accept<E>>>),
    /// From here on sends are only appended. Bring [`Event::Drained`] when nothing that was handed is
    /// still to be executed.
    Stop,
    /// The commit point: old queue pairs to ERR, barrier, all completions taken, receives to the
    /// new ones. Bring [`Event::Down`] when that is done.
    TakeDown,
    /// A group's peer has executed this, and goes on from where these were cut: replay, and go on, on
    /// all links but those whose first request was cut. Bring [`Event::Attached`].
    Attach(usize, Vec<Executed>, Vec<Cut>),
    /// Those links go on, too.
    Release(usize),
    /// The peer of this group is gone: its links end as verbs end those of a dead peer.
    Fail(usize),
    /// Go on with the old queue pairs.
    GoOn,
    /// Let go of the new ones.
    Discard,
    /// It has ended.
    Ended(Result<(), Failure>),
}

/// What the driver tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<E> {
    /// A group's peer has answered.
    Answer(usize, Answer<E>),
    /// A group's peer is dead.
    Lost(usize),
    /// A group's new queue pairs cannot be connected, and why.
    Unable(usize, String),
    /// Nothing that was handed is still to be executed.
    Drained,
    /// The old queue pairs are down: what was executed here, group by group and link by link.
    Down(Vec<Vec<Executed>>),
    /// A group goes on; these of its requests were cut.
    Attached(usize, Vec<Cut>),
}

/// Where a group stands within a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wait {
    /// For an answer.
    Answer,
    /// For the driver.
    Driver,
    /// For the answer to the last request.
    Finish,
    Nothing,
    /// Its peer is dead.
    Lost,
}

#[derive(Clone, Debug, Hash)]
struct Group<E> {
    offers: Vec<Offer<E>>,
    wait: Wait,
    /// When to ask (again).
    ask_at: Duration,
    /// Since when it is asked what it is asked now.
    since: Duration,
    /// It has answered in this stage.
    answered: bool,
    /// Its peer may have made queue pairs.
    begun: bool,
    executed: Vec<Executed>,
    cuts: Vec<Cut>,
}

/// A move.
#[derive(Clone, Debug, Hash)]
pub struct Mover<E> {
    groups: Vec<Group<E>>,
    stage: Stage,
    since: Duration,
    drained: bool,
    failure: Option<Failure>,
    limits: MoverLimits,
    actions: VecDeque<Action<E>>,
}

impl<E: Clone> Mover<E> {
    /// A move of links in groups, whose new queue pairs have been made.
    ///
    /// # Panics
    /// Where a group has more than [`MAX_LINKS`].
    #[must_use]
    pub fn new(groups: Vec<Vec<Offer<E>>>, now: Duration, limits: MoverLimits) -> Self {
        let group = |offers: Vec<Offer<E>>| {
            assert!(offers.len() <= MAX_LINKS, "a group of {} links", offers.len());
            Group {
                offers,
                wait: Wait::Answer,
                ask_at: now,
                since: now,
                answered: false,
                begun: false,
                executed: Vec::new(),
                cuts: Vec::new(),
            }
        };
        let mut mover = Mover {
            groups: groups.into_iter().map(group).collect(),
            stage: Stage::Prepare,
            since: now,
            drained: false,
            failure: None,
            limits,
            actions: VecDeque::new(),
        };
        mover.advance(now);
        mover
    }

    /// How far it has come.
    #[must_use]
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The next thing to do now, if there is one.
    pub fn poll(&mut self, now: Duration) -> Option<Action<E>> {
        if self.actions.is_empty() {
            self.look_at_time(now);
        }
        self.actions.pop_front()
    }

    /// When to call [`Self::poll`] again at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        let asks = self.groups.iter().filter(|group| group.asks()).map(|group| group.ask_at);
        asks.chain(self.deadline()).min()
    }

    /// When the stage ends at the latest.
    fn deadline(&self) -> Option<Duration> {
        let limit = match self.stage {
            Stage::Prepare => self.limits.prepare,
            Stage::Quiesce if self.groups.iter().all(|group| group.answered || group.is_lost()) => {
                self.limits.drain
            }
            Stage::Quiesce => self.limits.quiesce,
            // Who has gone over while another was silent has as long to say its last word.
            Stage::Switch => {
                let asked = self.groups.iter().filter(|group| group.asks());
                return asked.map(|group| group.since + self.limits.switch).min();
            }
            Stage::Abort => self.limits.abort,
            // The driver's own barrier has a deadline.
            Stage::Down | Stage::Ended => return None,
        };
        Some(self.since + limit)
    }

    /// Something has happened.
    pub fn event(&mut self, event: Event<E>, now: Duration) {
        match event {
            Event::Answer(at, answer) => self.answer(at, answer, now),
            Event::Lost(at) => self.lost(at),
            Event::Unable(at, why) => self.unable(at, why, now),
            Event::Drained => self.drained = true,
            Event::Down(executed) => self.down(executed, now),
            Event::Attached(at, cuts) => self.attached(at, cuts, now),
        }
        self.advance(now);
    }

    fn answer(&mut self, at: usize, answer: Answer<E>, now: Duration) {
        let Some(group) = self.groups.get_mut(at) else { return };
        if !group.asks() {
            return; // Asked twice, answered twice.
        }
        match (self.stage, answer) {
            (Stage::Prepare, Answer::Prepared(accepts)) if accepts.len() == group.offers.len() => {
                group.done();
                self.actions.push_back(Action::Connect(at, accepts));
            }
            (Stage::Prepare, Answer::Busy) => self.take_back(Failure::Busy(at), now),
            (Stage::Prepare, Answer::Refused(why)) => {
                self.take_back(Failure::Refused(at, why), now);
            }
            (Stage::Quiesce, Answer::Quiet(true)) => group.done(),
            (Stage::Quiesce, Answer::Quiet(false)) => {
                group.answered = true;
                group.ask_at = now + self.limits.pause;
            }
            (Stage::Switch, Answer::Switching) if group.wait == Wait::Answer => {
                group.ask_at = now + self.limits.pause;
            }
            (Stage::Switch, Answer::Switched { executed, cuts })
                if group.wait == Wait::Answer && executed.len() == group.offers.len() =>
            {
                group.wait = Wait::Driver;
                self.actions.push_back(Action::Attach(at, executed, cuts));
            }
            (Stage::Switch, Answer::Finished) if group.wait == Wait::Finish => {
                group.done();
                if !group.cuts.is_empty() {
                    self.actions.push_back(Action::Release(at));
                }
            }
            // A late answer of the stage before says nothing.
            (Stage::Quiesce, Answer::Prepared(_)) | (Stage::Switch, Answer::Quiet(_)) => {}
            (Stage::Switch, Answer::Switched { .. } | Answer::Switching)
                if group.wait == Wait::Finish => {}
            (Stage::Abort, Answer::Aborted | Answer::Unknown) => group.done(),
            (Stage::Prepare | Stage::Quiesce, _) => {
                self.take_back(Failure::Confused(at, self.stage), now);
            }
            // It has given the group up, or does not know what it says: there is no way back.
            (Stage::Switch, _) => self.lost(at),
            (Stage::Down | Stage::Abort | Stage::Ended, _) => {}
        }
    }

    fn lost(&mut self, at: usize) {
        let Some(group) = self.groups.get_mut(at) else { return };
        if group.is_lost() {
            return;
        }
        group.wait = Wait::Lost;
        // Before, its links are told when all others know where they stand.
        if self.stage == Stage::Switch {
            self.actions.push_back(Action::Fail(at));
        }
    }

    fn unable(&mut self, at: usize, why: String, now: Duration) {
        if matches!(self.stage, Stage::Prepare | Stage::Quiesce) {
            self.take_back(Failure::Unable(at, why), now);
        }
    }

    fn down(&mut self, executed: Vec<Vec<Executed>>, now: Duration) {
        if self.stage != Stage::Down {
            return;
        }
        debug_assert_eq!(executed.len(), self.groups.len());
        for (group, executed) in self.groups.iter_mut().zip(executed) {
            group.executed = executed;
        }
        self.enter(Stage::Switch, now);
        for at in 0..self.groups.len() {
            if self.groups[at].is_lost() {
                self.actions.push_back(Action::Fail(at));
            }
        }
    }

    fn attached(&mut self, at: usize, cuts: Vec<Cut>, now: Duration) {
        let Some(group) = self.groups.get_mut(at) else { return };
        if self.stage == Stage::Switch && group.wait == Wait::Driver {
            (group.wait, group.cuts) = (Wait::Finish, cuts);
            (group.since, group.ask_at) = (now, now);
        }
    }

    /// Goes on to the next stage where this one is complete.
    fn advance(&mut self, now: Duration) {
        let waits =
            self.groups.iter().any(|group| !matches!(group.wait, Wait::Nothing | Wait::Lost));
        match self.stage {
            Stage::Prepare if !waits => {
                self.actions.push_back(Action::Stop);
                self.enter(Stage::Quiesce, now);
            }
            Stage::Quiesce if !waits && self.drained => self.commit(now),
            Stage::Switch if !waits => self.end(Ok(())),
            Stage::Abort if !waits => {
                let failure = self.failure.take();
                self.end(failure.map_or(Ok(()), Err));
            }
            _ => {}
        }
    }

    fn commit(&mut self, now: Duration) {
        self.actions.push_back(Action::TakeDown);
        self.stage = Stage::Down;
        self.since = now;
    }

    fn end(&mut self, result: Result<(), Failure>) {
        self.stage = Stage::Ended;
        self.actions.push_back(Action::Ended(result));
    }

    /// Every group is asked something new.
    fn enter(&mut self, stage: Stage, now: Duration) {
        (self.stage, self.since) = (stage, now);
        for group in self.groups.iter_mut().filter(|group| !group.is_lost()) {
            (group.wait, group.ask_at, group.answered) = (Wait::Answer, now, false);
            group.since = now;
        }
    }

    fn take_back(&mut self, failure: Failure, now: Duration) {
        if self.stage == Stage::Quiesce {
            self.actions.push_back(Action::GoOn);
        }
        self.actions.push_back(Action::Discard);
        self.failure = Some(failure);
        self.enter(Stage::Abort, now);
        for group in &mut self.groups {
            if !group.begun {
                group.done();
            }
        }
    }

    fn look_at_time(&mut self, now: Duration) {
        if self.deadline().is_some_and(|at| now >= at) {
            self.too_late(now);
            self.advance(now);
        }
        let (stage, again) = (self.stage, self.limits.again);
        for (at, group) in self.groups.iter_mut().enumerate() {
            if group.asks()
                && now >= group.ask_at
                && let Some(request) = group.request(stage)
            {
                group.ask_at = now + again;
                group.begun = true;
                self.actions.push_back(Action::Ask(at, request));
            }
        }
    }

    /// The stage has taken as long as it may.
    fn too_late(&mut self, now: Duration) {
        let silent = self.groups.iter().position(|group| group.asks() && !group.answered);
        match (self.stage, silent) {
            (Stage::Prepare | Stage::Quiesce, Some(at)) => {
                self.take_back(Failure::Silent(at, self.stage), now);
            }
            // All have stopped handing: what is still out is decided by counting.
            (Stage::Quiesce, None) => self.commit(now),
            (Stage::Switch, _) => {
                for at in 0..self.groups.len() {
                    let group = &self.groups[at];
                    if group.asks() && now >= group.since + self.limits.switch {
                        self.lost(at);
                    }
                }
            }
            (Stage::Abort, _) => self.groups.iter_mut().for_each(Group::done),
            (Stage::Prepare | Stage::Down | Stage::Ended, _) => {}
        }
    }
}

impl<E: Clone> Group<E> {
    fn asks(&self) -> bool {
        matches!(self.wait, Wait::Answer | Wait::Finish)
    }

    fn is_lost(&self) -> bool {
        self.wait == Wait::Lost
    }

    fn done(&mut self) {
        if !self.is_lost() {
            (self.wait, self.answered) = (Wait::Nothing, true);
        }
    }

    fn request(&self, stage: Stage) -> Option<Request<E>> {
        Some(match (stage, self.wait) {
            (Stage::Prepare, _) => Request::Prepare { links: self.offers.clone() },
            (Stage::Quiesce, _) => Request::Quiesce,
            (Stage::Switch, Wait::Finish) => Request::Finish { cuts: self.cuts.clone() },
            (Stage::Switch, _) => Request::Switch { executed: self.executed.clone() },
            (Stage::Abort, _) => Request::Abort,
            (Stage::Down | Stage::Ended, _) => return None,
        })
    }
}
