//! The follower's machine: one for each group that a peer has begun, of a move or of a hold.

use super::message::{Accept, Answer, Cut, GroupId, HeldEnd, HeldLink, Offer, Request};
use crate::replay::Executed;
use std::time::Duration;

/// The physical side of a group's links at the follower. Calls come in the order of the states.
pub trait Side<E> {
    /// Makes new queue pairs, connected to the mover's ends; where that fails, none is left.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn prepare(&mut self, links: &[Offer<E>]) -> Result<Vec<Option<Accept<E>>>, PrepareError>;
    /// From here on sends are only appended.
    fn stop(&mut self);
    /// Whether nothing that was handed is still to be executed, as far as can be told.
    fn is_drained(&mut self) -> bool;
    /// The old queue pairs to ERR.
    fn take_down(&mut self);
    /// What has been executed here of the mover's requests: the final numbers, all completions of
    /// the old queue pairs having been taken. `None` where the barrier has not been passed yet.
    fn executed(&mut self) -> Option<Vec<Executed>>;
    /// The mover has executed this: posts receives to the new queue pairs, replays on them, and goes
    /// on, on all but the links whose first request was cut, which it returns.
    fn attach(&mut self, mover: &[Executed]) -> Vec<Cut>;
    /// Those go on, too; and these requests of the mover's were cut.
    fn release(&mut self, cuts: &[Cut]);
    /// The mover is not heard of any more, and may not have heard that these requests were cut: their
    /// links end with errors, as those to a dead peer. (A mover that was only late would take the rest of
    /// such a request for the whole.) Called before [`Side::release`].
    fn lose(&mut self, cuts: &[Cut]) {
        let _ = cuts;
    }
    /// Goes on with the old queue pairs.
    fn go_on(&mut self);
    /// Lets go of the new ones.
    fn discard(&mut self);
    /// A holder's links: from here on sends and receives are only appended. Where that fails, nothing has changed.
    ///
    /// # Errors
    /// Why it cannot be done.
    fn hold(&mut self, links: &[HeldLink]) -> Result<(), PrepareError>;
    /// Whether nothing that was handed on these links will still be executed, by what their holder says of
    /// itself: stricter than [`Side::is_drained`], because nothing is taken down that would end the rest. And
    /// how the ends here stand.
    fn is_still(&mut self, links: &[HeldLink]) -> (bool, Vec<Option<HeldEnd>>);
    /// The hold is over.
    fn let_go(&mut self);
}

/// Why new queue pairs cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepareError {
    /// This process is moving itself.
    Busy,
    /// Something else, in a sentence.
    Refused(String),
}

/// How long a follower waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FollowerLimits {
    /// For the next word of a mover, or a holder. Longer than the mover's deadlines before the commit point together,
    /// and than those of its two questions after it: who gives up first must be the mover.
    pub patience: Duration,
}

impl Default for FollowerLimits {
    fn default() -> Self {
        FollowerLimits { patience: Duration::from_secs(30) }
    }
}

#[derive(Clone, Debug, Hash)]
enum State<E> {
    Prepared {
        answer: Vec<Option<Accept<E>>>,
    },
    Stopped,
    /// At ERR; past the commit point.
    Down {
        mover: Vec<Executed>,
    },
    Attached {
        executed: Vec<Executed>,
        cuts: Vec<Cut>,
    },
    /// Stopped for a holder, who will say when to go on.
    Held,
    /// Nothing more is to be done.
    Ended(Ended),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ended {
    Finished,
    Aborted,
    /// Gone over, or on after a hold, without the last word of who began it.
    GaveUp,
}

/// A group at the follower.
#[derive(Clone, Debug, Hash)]
pub struct Follower<E> {
    id: GroupId,
    links: usize,
    state: State<E>,
    /// When the mover was last heard.
    heard: Duration,
    limits: FollowerLimits,
}

impl<E: Clone> Follower<E> {
    /// A mover begins: makes the new queue pairs. `None` beside a refusal: there is nothing to keep.
    pub fn begin(
        id: GroupId,
        offers: &[Offer<E>],
        now: Duration,
        limits: FollowerLimits,
        side: &mut dyn Side<E>,
    ) -> (Option<Self>, Answer<E>) {
        match side.prepare(offers) {
            Ok(answer) => {
                debug_assert_eq!(answer.len(), offers.len());
                let state = State::Prepared { answer: answer.clone() };
                let group = Follower { id, links: offers.len(), state, heard: now, limits };
                (Some(group), Answer::Prepared(answer))
            }
            Err(PrepareError::Busy) => (None, Answer::Busy),
            Err(PrepareError::Refused(why)) => (None, Answer::refused(&why)),
        }
    }

    /// A holder begins: stops. `None` beside a refusal: there is nothing to keep.
    pub fn begin_hold(
        id: GroupId,
        links: &[HeldLink],
        now: Duration,
        limits: FollowerLimits,
        side: &mut dyn Side<E>,
    ) -> (Option<Self>, Answer<E>) {
        match side.hold(links) {
            Ok(()) => {
                let (state, n) = (State::Held, links.len());
                let group = Follower { id, links: n, state, heard: now, limits };
                let (still, ends) = side.is_still(links);
                (Some(group), Answer::Still { still, ends })
            }
            Err(PrepareError::Busy) => (None, Answer::Busy),
            Err(PrepareError::Refused(why)) => (None, Answer::refused(&why)),
        }
    }

    /// Which group this is.
    #[must_use]
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Whether nothing more is to be done: it can be forgotten (its number must not).
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended(_))
    }

    /// Whether it has ended by the mover's last word: it is to be told so where it asks once more.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        matches!(self.state, State::Ended(Ended::Finished))
    }

    /// Answers a request. One that does not fit changes nothing.
    pub fn handle(
        &mut self,
        request: Request<E>,
        now: Duration,
        side: &mut dyn Side<E>,
    ) -> Answer<E> {
        self.heard = now;
        match (&mut self.state, request) {
            (State::Prepared { answer }, Request::Prepare { .. }) => {
                Answer::Prepared(answer.clone())
            }
            (State::Prepared { .. } | State::Stopped, Request::Quiesce) => {
                if matches!(self.state, State::Prepared { .. }) {
                    side.stop();
                    self.state = State::Stopped;
                }
                Answer::Quiet(side.is_drained())
            }
            (State::Stopped, Request::Switch { executed }) if executed.len() == self.links => {
                side.take_down();
                self.state = State::Down { mover: executed };
                self.go_over(side)
            }
            (State::Down { .. }, Request::Switch { .. }) => self.go_over(side),
            (State::Attached { executed, cuts }, Request::Switch { .. }) => {
                Answer::Switched { executed: executed.clone(), cuts: cuts.clone() }
            }
            (State::Attached { .. }, Request::Finish { cuts }) => {
                side.release(&cuts);
                self.state = State::Ended(Ended::Finished);
                Answer::Finished
            }
            (State::Ended(Ended::Finished), Request::Finish { .. }) => Answer::Finished,
            (State::Prepared { .. } | State::Stopped, Request::Abort) => {
                self.abort(side);
                Answer::Aborted
            }
            (State::Ended(Ended::Aborted), Request::Abort) => Answer::Aborted,
            (State::Held, Request::Hold { links }) if links.len() == self.links => {
                let (still, ends) = side.is_still(&links);
                Answer::Still { still, ends }
            }
            (State::Held, Request::Finish { .. }) => {
                side.let_go();
                self.state = State::Ended(Ended::Finished);
                Answer::Finished
            }
            (State::Held, Request::Abort) => {
                side.let_go();
                self.state = State::Ended(Ended::Aborted);
                Answer::Aborted
            }
            _ => Answer::Unknown,
        }
    }

    fn go_over(&mut self, side: &mut dyn Side<E>) -> Answer<E> {
        let State::Down { mover } = &self.state else { return Answer::Unknown };
        let Some(executed) = side.executed() else { return Answer::Switching };
        let cuts = side.attach(mover);
        self.state = State::Attached { executed: executed.clone(), cuts: cuts.clone() };
        Answer::Switched { executed, cuts }
    }

    fn abort(&mut self, side: &mut dyn Side<E>) {
        if matches!(self.state, State::Stopped) {
            side.go_on();
        }
        side.discard();
        self.state = State::Ended(Ended::Aborted);
    }

    /// When to call [`Self::wake`] at the latest; `None` where nothing is waited for.
    #[must_use]
    pub fn wake_at(&self) -> Option<Duration> {
        match self.state {
            State::Ended(_) => None,
            _ => Some(self.heard + self.limits.patience),
        }
    }

    /// Time has passed. A mover that is not heard of any more before the commit point is given up, and so is a
    /// holder.
    /// After it, its links are as verbs have them with a peer that is gone: what was waiting for its last
    /// word is let go, but for requests that were cut.
    pub fn wake(&mut self, now: Duration, side: &mut dyn Side<E>) {
        if self.wake_at().is_some_and(|at| now >= at) {
            self.give_up(side);
        }
    }

    /// The mover is dead.
    pub fn give_up(&mut self, side: &mut dyn Side<E>) {
        match &self.state {
            State::Prepared { .. } | State::Stopped => self.abort(side),
            // Its holder, if it lives, is told so when it says its last word.
            State::Held => {
                side.let_go();
                self.state = State::Ended(Ended::GaveUp);
            }
            // The new queue pairs lead to nobody, and say so in their own time; or to a mover that is late.
            State::Down { mover } => {
                let mover = mover.clone();
                let cuts = side.attach(&mover);
                side.lose(&cuts);
                side.release(&[]);
                self.state = State::Ended(Ended::GaveUp);
            }
            State::Attached { cuts, .. } => {
                side.lose(cuts);
                side.release(&[]);
                self.state = State::Ended(Ended::GaveUp);
            }
            State::Ended(_) => {}
        }
    }
}
