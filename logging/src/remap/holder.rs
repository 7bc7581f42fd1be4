//! The holder's machine: one for each hold of a context, over all of its groups. A hold is the quiesce of a
//! move without the move: see the [module](super).

use super::message::{Answer, Request};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// How long a holder waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HolderLimits {
    /// For a peer to say that it hands nothing more.
    pub quiesce: Duration,
    /// For everything that is under way to be executed, from the beginning; at most half a patience.
    pub drain: Duration,
    /// For peers to take note that the hold is over, or is taken back.
    pub finish: Duration,
    /// Between asking again where the answer was "not yet".
    pub pause: Duration,
    /// Between asking again where there was no answer.
    pub again: Duration,
    /// A follower's patience: so long after it was asked last a peer stands still for certain.
    pub patience: Duration,
}

/// A peer is asked again when it has been left alone for so large a part of its patience.
const KEEP: u32 = 4;

impl Default for HolderLimits {
    fn default() -> Self {
        HolderLimits {
            quiesce: Duration::from_secs(2),
            drain: Duration::from_secs(10),
            finish: Duration::from_secs(2),
            pause: Duration::from_micros(100),
            again: Duration::from_millis(500),
            patience: super::FollowerLimits::default().patience,
        }
    }
}

/// Why a hold was taken back: everything goes on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HoldFailure {
    /// The peer of this group is moving, or holding, itself.
    Busy(usize),
    /// The peer of this group refused.
    Refused(usize, String),
    /// The peer of this group did not answer in time.
    Silent(usize),
    /// The peer of this group answered what makes no sense.
    Confused(usize),
    /// What was handed on the links of this group, on either side, was not all executed in time.
    Restless(usize),
    /// What was handed elsewhere was not.
    Undrained,
    /// Its driver gave way.
    GaveWay,
}

impl fmt::Display for HoldFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HoldFailure::Busy(_) => "the peer moves, or holds others, itself",
            HoldFailure::Refused(_, why) => return write!(f, "the peer refused: {why}"),
            HoldFailure::Silent(_) => "the peer did not answer in time (quiesce)",
            HoldFailure::Confused(_) => "the peer answered what was not asked (quiesce)",
            HoldFailure::Restless(_) => {
                "requests between this process and it were not executed in time (drain)"
            }
            HoldFailure::Undrained => {
                "requests that were handed here were not executed in time (drain)"
            }
            HoldFailure::GaveWay => "it gives way to another",
        })
    }
}

/// How far a hold has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldStage {
    /// Nothing more is handed; what is under way is waited for.
    Quiesce,
    /// Both sides stand still.
    Held,
    /// It is over, and peers are told.
    Finish,
    /// It is taken back.
    Abort,
    /// Nothing more is to be done.
    Ended,
}

/// What is asked of a group's peer: the driver adds the numbers of the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldAsk {
    /// [`Request::Hold`].
    Hold,
    /// [`Request::Finish`], with nothing cut.
    Finish,
    /// [`Request::Abort`].
    Abort,
}

impl HoldAsk {
    /// What is asked, where it takes no numbers.
    #[must_use]
    pub fn plain<E>(self) -> Option<Request<E>> {
        match self {
            HoldAsk::Hold => None,
            HoldAsk::Finish => Some(Request::Finish { cuts: Vec::new() }),
            HoldAsk::Abort => Some(Request::Abort),
        }
    }
}

/// What the driver has to do. Groups are named by their number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HoldAction {
    /// From here on sends are only appended, and receives too. Call [`Holder::drained`] when nothing is under way
    /// that no group's answers tell of.
    Stop,
    /// Ask this of a group's peer; bring the answer with [`Holder::answer`].
    Ask(usize, HoldAsk),
    /// Both sides stand still.
    Held,
    /// Go on.
    GoOn,
    /// It has ended. After a hold: whose peer went on by itself before it was told to, if one did.
    Ended(Result<Option<usize>, HoldFailure>),
}

/// Where a group stands within a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wait {
    Answer,
    Nothing,
    /// Its peer is dead: it hands nothing more.
    Lost,
}

#[derive(Clone, Debug, Hash)]
struct Group {
    wait: Wait,
    /// When to ask (again).
    ask_at: Duration,
    /// It has answered in this stage.
    answered: bool,
    /// Its peer may have stopped.
    begun: bool,
    /// When it was asked what it has not answered, oldest first. However answers are lost or overtaken: of so many
    /// that came, the last was to no older question than the last of as many.
    asked: VecDeque<Duration>,
    /// Its patience began no earlier.
    heard: Duration,
}

impl Group {
    fn asks(&self) -> bool {
        self.wait == Wait::Answer
    }

    fn done(&mut self) {
        if self.wait != Wait::Lost {
            (self.wait, self.answered) = (Wait::Nothing, true);
        }
    }
}

/// A hold.
#[derive(Clone, Debug, Hash)]
pub struct Holder {
    groups: Vec<Group>,
    stage: HoldStage,
    since: Duration,
    drained: bool,
    failure: Option<HoldFailure>,
    /// A group whose peer has gone on by itself.
    lapsed: Option<usize>,
    limits: HolderLimits,
    actions: VecDeque<HoldAction>,
}

impl Holder {
    /// A hold of so many groups.
    #[must_use]
    pub fn new(groups: usize, now: Duration, limits: HolderLimits) -> Self {
        // Who has become quiet first must not lose patience before the last has.
        let drain = limits.drain.min(limits.patience / 2);
        let limits = HolderLimits { drain, ..limits };
        let group = Group {
            wait: Wait::Answer,
            ask_at: now,
            answered: false,
            begun: false,
            asked: VecDeque::new(),
            heard: now,
        };
        Holder {
            groups: vec![group; groups],
            stage: HoldStage::Quiesce,
            since: now,
            drained: false,
            failure: None,
            lapsed: None,
            limits,
            actions: VecDeque::from([HoldAction::Stop]),
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn stage(&self) -> HoldStage {
        self.stage
    }

    /// The group whose peer may be going on by itself now, or has done so, while the hold is on.
    #[must_use]
    pub fn lapsed(&self, now: Duration) -> Option<usize> {
        if self.stage != HoldStage::Held {
            return self.lapsed;
        }
        let patience = self.limits.patience;
        let over = |group: &Group| group.wait != Wait::Lost && now >= group.heard + patience;
        self.lapsed.or_else(|| self.groups.iter().position(over))
    }

    /// The next thing to do now, if there is one.
    pub fn poll(&mut self, now: Duration) -> Option<HoldAction> {
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
            HoldStage::Quiesce if self.silent().is_none() => self.limits.drain,
            HoldStage::Quiesce => self.limits.quiesce.min(self.limits.drain),
            HoldStage::Finish | HoldStage::Abort => self.limits.finish,
            HoldStage::Held | HoldStage::Ended => return None,
        };
        Some(self.since + limit)
    }

    fn silent(&self) -> Option<usize> {
        self.groups.iter().position(|group| group.asks() && !group.answered)
    }

    /// A group's peer has answered. Of [`Answer::Still`] the driver says that it is not, where by what that tells
    /// its own requests to the peer are not.
    pub fn answer<E>(&mut self, at: usize, answer: Answer<E>, now: Duration) {
        let stage = self.stage;
        let Some(group) = self.groups.get_mut(at) else { return };
        if let Some(asked) = group.asked.pop_front() {
            group.heard = asked;
        }
        if !group.asks() {
            return; // Asked twice, answered twice.
        }
        match (stage, answer) {
            (HoldStage::Quiesce, Answer::Still { still: true, .. }) => group.done(),
            (HoldStage::Quiesce, Answer::Still { .. }) => {
                (group.answered, group.ask_at) = (true, now + self.limits.pause);
            }
            (HoldStage::Quiesce, Answer::Busy) => self.take_back(HoldFailure::Busy(at), now),
            (HoldStage::Quiesce, Answer::Refused(why)) => {
                self.take_back(HoldFailure::Refused(at, why), now);
            }
            (HoldStage::Quiesce, _) => self.take_back(HoldFailure::Confused(at), now),
            // It stands still as ever, and its patience has begun anew.
            (HoldStage::Held, Answer::Still { .. }) => {
                group.ask_at = now + self.limits.patience / KEEP;
            }
            (HoldStage::Held, _) => {
                self.lapsed.get_or_insert(at);
                group.done();
            }
            (HoldStage::Finish | HoldStage::Abort, Answer::Still { .. }) => {
                // Of the stage before, and late.
            }
            (HoldStage::Finish, Answer::Finished) => group.done(),
            (HoldStage::Finish, _) => {
                self.lapsed.get_or_insert(at);
                group.done();
            }
            (HoldStage::Abort, Answer::Aborted | Answer::Unknown) => group.done(),
            (HoldStage::Abort | HoldStage::Ended, _) => {}
        }
        self.advance(now);
    }

    /// A group's peer is dead.
    pub fn lost(&mut self, at: usize, now: Duration) {
        let Some(group) = self.groups.get_mut(at) else { return };
        // It may have gone on before it died.
        let went_on = self.stage == HoldStage::Held
            && group.wait != Wait::Lost
            && now >= group.heard + self.limits.patience;
        if went_on {
            self.lapsed.get_or_insert(at);
        }
        group.wait = Wait::Lost;
        self.advance(now);
    }

    /// Nothing is under way that no group's answers tell of.
    pub fn drained(&mut self, now: Duration) {
        self.drained = true;
        self.advance(now);
    }

    /// Somebody else is to go first: takes the hold back, where it is not on yet.
    pub fn give_way(&mut self, now: Duration) {
        if self.stage == HoldStage::Quiesce {
            self.take_back(HoldFailure::GaveWay, now);
            self.advance(now);
        }
    }

    /// The hold is over: both sides go on.
    pub fn end(&mut self, now: Duration) {
        if self.stage == HoldStage::Held {
            self.lapsed = self.lapsed(now);
            self.actions.push_back(HoldAction::GoOn);
            self.enter(HoldStage::Finish, now);
            self.advance(now);
        }
    }

    fn advance(&mut self, now: Duration) {
        let waits = self.groups.iter().any(Group::asks);
        match self.stage {
            HoldStage::Quiesce if !waits && self.drained => {
                self.actions.push_back(HoldAction::Held);
                self.enter(HoldStage::Held, now);
                let patience = self.limits.patience;
                for group in &mut self.groups {
                    group.ask_at = group.heard + patience / KEEP;
                }
            }
            HoldStage::Finish if !waits => self.finish(Ok(self.lapsed)),
            HoldStage::Abort if !waits => {
                let failure = self.failure.take();
                self.finish(failure.map_or(Ok(None), Err));
            }
            _ => {}
        }
    }

    fn finish(&mut self, result: Result<Option<usize>, HoldFailure>) {
        self.stage = HoldStage::Ended;
        self.actions.push_back(HoldAction::Ended(result));
    }

    /// Every group is asked something new.
    fn enter(&mut self, stage: HoldStage, now: Duration) {
        (self.stage, self.since) = (stage, now);
        for group in self.groups.iter_mut().filter(|group| group.wait != Wait::Lost) {
            (group.wait, group.ask_at, group.answered) = (Wait::Answer, now, false);
        }
    }

    fn take_back(&mut self, failure: HoldFailure, now: Duration) {
        self.actions.push_back(HoldAction::GoOn);
        self.failure = Some(failure);
        self.enter(HoldStage::Abort, now);
        for group in self.groups.iter_mut().filter(|group| !group.begun) {
            group.done();
        }
    }

    fn look_at_time(&mut self, now: Duration) {
        if self.deadline().is_some_and(|at| now >= at) {
            self.too_late(now);
            self.advance(now);
        }
        let ask = match self.stage {
            HoldStage::Quiesce | HoldStage::Held => HoldAsk::Hold,
            HoldStage::Finish => HoldAsk::Finish,
            HoldStage::Abort => HoldAsk::Abort,
            HoldStage::Ended => return,
        };
        for (at, group) in self.groups.iter_mut().enumerate() {
            if group.asks() && now >= group.ask_at {
                group.ask_at = now + self.limits.again;
                group.begun = true;
                group.asked.push_back(now);
                self.actions.push_back(HoldAction::Ask(at, ask));
            }
        }
    }

    /// The stage has taken as long as it may.
    fn too_late(&mut self, now: Duration) {
        match self.stage {
            HoldStage::Quiesce => {
                let restless = || self.groups.iter().position(Group::asks);
                let failure = match self.silent() {
                    Some(at) => HoldFailure::Silent(at),
                    None => restless().map_or(HoldFailure::Undrained, HoldFailure::Restless),
                };
                self.take_back(failure, now);
            }
            // Who did not hear that the hold is over goes on when its patience ends: had it done so before,
            // time would have told.
            HoldStage::Finish | HoldStage::Abort => self.groups.iter_mut().for_each(Group::done),
            HoldStage::Held | HoldStage::Ended => {}
        }
    }
}
