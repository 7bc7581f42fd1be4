//! The hold: both of its machines, step by step.

use super::*;

const LINK: HeldLink = HeldLink { qpn: 7, holder_qpn: 107, end: END };

pub(super) const END: HeldEnd = HeldEnd {
    failed: false,
    executed: Executed { messages: 3, psn: Some(3), settled: true, recorded: None },
    starved: false,
};

fn still(still: bool) -> Answer<u32> {
    Answer::Still { still, ends: vec![Some(END)] }
}

fn held_limits() -> HolderLimits {
    HolderLimits {
        quiesce: 200 * MS,
        drain: 500 * MS,
        finish: 300 * MS,
        pause: MS,
        again: 40 * MS,
        patience: 4000 * MS,
    }
}

/// A holder of groups, and its clock.
struct Hold {
    holder: Holder,
    now: Duration,
}

impl Hold {
    fn new(groups: usize) -> Self {
        let mut hold = Hold { holder: Holder::new(groups, START, held_limits()), now: START };
        let mut wanted = vec![HoldAction::Stop];
        wanted.extend((0..groups).map(|at| HoldAction::Ask(at, HoldAsk::Hold)));
        assert_eq!(hold.actions(), wanted);
        hold
    }

    /// Where all stand still, asked at the start.
    fn held(groups: usize) -> Self {
        let mut hold = Hold::new(groups);
        hold.holder.drained(START);
        for at in 0..groups {
            hold.holder.answer(at, still(true), START);
        }
        assert_eq!(hold.actions(), [HoldAction::Held]);
        hold
    }

    fn actions(&mut self) -> Vec<HoldAction> {
        std::iter::from_fn(|| self.holder.poll(self.now)).collect()
    }

    fn answer(&mut self, at: usize, answer: Answer<u32>) -> Vec<HoldAction> {
        self.holder.answer(at, answer, self.now);
        self.actions()
    }

    fn pass(&mut self, time: Duration) -> Vec<HoldAction> {
        self.now += time;
        self.actions()
    }

    fn taken_back(&mut self, actions: &[HoldAction], why: HoldFailure) {
        assert_eq!(actions[0], HoldAction::GoOn, "{actions:?}");
        let mut last = Vec::new();
        for action in &actions[1..] {
            let HoldAction::Ask(at, HoldAsk::Abort) = action else { panic!("{action:?}") };
            last = self.answer(*at, Answer::Aborted);
        }
        assert_eq!(last, [HoldAction::Ended(Err(why))]);
    }
}

/// Promise: each step of a hold is taken once, in the order that the module states.
#[test]
fn a_hold_goes_through_its_stages() {
    let mut hold = Hold::new(2);
    assert_eq!(hold.answer(0, still(true)), []);
    assert_eq!(hold.answer(1, still(false)), []);
    hold.holder.drained(hold.now);
    assert_eq!(hold.pass(MS), [HoldAction::Ask(1, HoldAsk::Hold)]);
    assert_eq!(hold.answer(1, still(true)), [HoldAction::Held]);
    assert_eq!(hold.answer(1, still(true)), [], "the second answer");
    hold.holder.end(hold.now);
    let finish = |at| HoldAction::Ask(at, HoldAsk::Finish);
    assert_eq!(hold.actions(), [HoldAction::GoOn, finish(0), finish(1)]);
    assert_eq!(hold.answer(0, still(true)), [], "late, of the stage before");
    assert_eq!(hold.answer(0, Answer::Finished), []);
    assert_eq!(hold.answer(1, Answer::Finished), [HoldAction::Ended(Ok(None))]);
    assert_eq!((hold.holder.stage(), hold.holder.wake_at()), (HoldStage::Ended, None));
}

/// Promise: nobody is held before what the holder itself has handed is executed.
#[test]
fn a_hold_waits_for_its_own_requests() {
    let mut hold = Hold::new(1);
    assert_eq!(hold.answer(0, still(true)), []);
    hold.holder.drained(hold.now);
    assert_eq!(hold.actions(), [HoldAction::Held]);

    let mut hold = Hold::new(1);
    assert_eq!(hold.answer(0, still(true)), []);
    let actions = hold.pass(500 * MS);
    hold.taken_back(&actions, HoldFailure::Undrained);
}

/// Promise: every refusal takes the whole hold back, and names the peer.
#[test]
fn a_refusal_takes_the_hold_back() {
    let reasons = [
        (Answer::Busy, HoldFailure::Busy(1)),
        (Answer::Refused("no".into()), HoldFailure::Refused(1, "no".into())),
        (Answer::Unknown, HoldFailure::Confused(1)),
        (Answer::Finished, HoldFailure::Confused(1)),
    ];
    for (answer, why) in reasons {
        let mut hold = Hold::new(2);
        let actions = hold.answer(1, answer);
        hold.taken_back(&actions, why);
    }
}

/// Promise: a hold has deadlines; the error tells silence from what is not executed.
#[test]
fn silence_and_unrest_take_the_hold_back_in_time() {
    let mut hold = Hold::new(2);
    hold.answer(0, still(false));
    hold.pass(199 * MS);
    assert_eq!(hold.holder.stage(), HoldStage::Quiesce);
    let actions = hold.pass(MS);
    hold.taken_back(&actions, HoldFailure::Silent(1));

    let mut hold = Hold::new(2);
    hold.holder.drained(hold.now);
    hold.answer(0, still(true));
    hold.answer(1, still(false));
    hold.pass(499 * MS);
    assert_eq!(hold.holder.stage(), HoldStage::Quiesce);
    let actions = hold.pass(MS);
    hold.taken_back(&actions, HoldFailure::Restless(1));
}

/// Promise: who waits for everybody to become quiet does not outlast the patience of the first.
#[test]
fn nobody_loses_patience_before_the_last_is_quiet() {
    let limits = HolderLimits { drain: 9000 * MS, ..held_limits() };
    let mut holder = Holder::new(1, START, limits);
    while holder.poll(START).is_some() {}
    holder.answer(0, still(true), START);
    assert_eq!(holder.wake_at(), Some(2000 * MS));
}

/// Promise: a dead peer is waited for no longer, at any stage.
#[test]
fn a_dead_peer_holds_nobody_up() {
    let mut hold = Hold::new(1);
    hold.holder.drained(hold.now);
    hold.holder.lost(0, hold.now);
    assert_eq!(hold.actions(), [HoldAction::Held]);
    assert_eq!(hold.holder.lapsed(9000 * MS), None, "it went on with nothing");
    hold.holder.end(hold.now);
    assert_eq!(hold.actions(), [HoldAction::GoOn, HoldAction::Ended(Ok(None))]);
}

/// Promise: a peer that lost patience, and died later, has held nobody.
#[test]
fn a_peer_that_died_after_its_patience_is_named() {
    for (after, lapsed) in [(3999 * MS, None), (4000 * MS, Some(0))] {
        let mut hold = Hold::held(1);
        hold.now += after;
        hold.holder.lost(0, hold.now);
        hold.now += 9000 * MS;
        assert_eq!(hold.holder.lapsed(hold.now), lapsed);
        hold.holder.end(hold.now);
        assert_eq!(hold.actions(), [HoldAction::GoOn, HoldAction::Ended(Ok(lapsed))]);
    }
}

/// Promise: the holder asks again in time, and knows until when its peers stand still for certain.
#[test]
fn a_hold_that_nobody_renews_lapses() {
    let mut hold = Hold::held(1);
    assert_eq!(hold.pass(999 * MS), []);
    assert_eq!(hold.pass(MS), [HoldAction::Ask(0, HoldAsk::Hold)]);
    assert_eq!(hold.answer(0, still(true)), []);
    // Its patience has begun at 1 s at the earliest.
    hold.pass(3999 * MS);
    assert_eq!(hold.holder.lapsed(hold.now), None);
    hold.pass(MS);
    assert_eq!(hold.holder.lapsed(hold.now), Some(0));
    hold.holder.end(hold.now);
    hold.actions();
    assert_eq!(hold.answer(0, Answer::Finished), [HoldAction::Ended(Ok(Some(0)))]);
}

/// Promise: answers to questions that were asked before prolong no hold.
#[test]
fn a_late_answer_prolongs_nothing() {
    let mut hold = Hold::new(1);
    hold.holder.drained(hold.now);
    // Asked again; both answers come, the second of them late.
    assert_eq!(hold.pass(40 * MS), [HoldAction::Ask(0, HoldAsk::Hold)]);
    assert_eq!(hold.answer(0, still(true)), [HoldAction::Held]);
    assert_eq!(hold.pass(1000 * MS), [HoldAction::Ask(0, HoldAsk::Hold)]);
    hold.answer(0, still(true));
    hold.pass(3000 * MS);
    assert_eq!(hold.holder.lapsed(hold.now), Some(0), "4 s after the second question");
}

/// Promise: who is told that its group is unknown when it ends has held nobody.
#[test]
fn a_peer_that_went_on_by_itself_is_named() {
    let mut hold = Hold::held(2);
    hold.holder.end(hold.now);
    hold.actions();
    hold.answer(0, Answer::Finished);
    assert_eq!(hold.answer(1, Answer::Unknown), [HoldAction::Ended(Ok(Some(1)))]);

    let mut hold = Hold::held(1);
    hold.pass(1000 * MS);
    hold.answer(0, Answer::Unknown);
    assert_eq!(hold.holder.lapsed(hold.now), Some(0));
}

/// Promise: a hold that nobody confirms the end of ends all the same.
#[test]
fn the_end_of_a_hold_has_a_deadline() {
    let mut hold = Hold::held(1);
    hold.holder.end(hold.now);
    hold.actions();
    assert_eq!(hold.pass(40 * MS), [HoldAction::Ask(0, HoldAsk::Finish)]);
    assert_eq!(hold.pass(260 * MS), [HoldAction::Ended(Ok(None))]);
}

/// Promise: who gives way goes on, and is not held up by it once the hold is on.
#[test]
fn a_hold_gives_way_until_it_is_on() {
    let mut hold = Hold::new(1);
    hold.holder.give_way(hold.now);
    let actions = hold.actions();
    hold.taken_back(&actions, HoldFailure::GaveWay);
    let mut hold = Hold::held(1);
    hold.holder.give_way(hold.now);
    assert_eq!((hold.actions(), hold.holder.stage()), (vec![], HoldStage::Held));
}

fn held_peer() -> Peer {
    let mut side = Log { drained: true, ..Log::default() };
    let limits = FollowerLimits { patience: PATIENCE };
    let (follower, answer) = Follower::begin_hold(GroupId(4), &[LINK], START, limits, &mut side);
    assert_eq!((answer, &side.calls[..]), (still(true), &["hold"][..]));
    Peer { follower: follower.expect("it is held"), side, now: START }
}

fn hold_again() -> Request<u32> {
    Request::Hold { links: vec![LINK] }
}

/// Promise: a follower that is held goes on when it is told to, once, and says so as often as it is asked.
#[test]
fn a_held_follower_goes_on_when_told() {
    for (last, answer) in
        [(Request::Finish { cuts: vec![] }, Answer::Finished), (Request::Abort, Answer::Aborted)]
    {
        let mut peer = held_peer();
        peer.side.drained = false;
        assert_eq!(peer.ask(hold_again()), still(false));
        for _ in 0..2 {
            assert_eq!(peer.ask(last.clone()), answer);
        }
        assert_eq!(peer.side.calls, ["hold", "let_go"]);
        assert_eq!(peer.ask(hold_again()), Answer::Unknown);
        assert!(peer.follower.is_ended());
    }
}

/// Promise: what does not fit a hold changes nothing.
#[test]
fn a_held_follower_does_nothing_else() {
    let mut peer = held_peer();
    let strange = [
        Request::Prepare { links: vec![offer(7)] },
        Request::Quiesce,
        Request::Switch { executed: vec![executed(3)] },
        Request::Hold { links: vec![] },
    ];
    for request in strange {
        assert_eq!(peer.ask(request), Answer::Unknown);
    }
    assert_eq!(peer.side.calls, ["hold"]);
    assert_eq!(Peer::new().ask(hold_again()), Answer::Unknown, "nor is a move held");
}

/// Promise: a follower whose holder is silent goes on, and says afterwards that it has.
#[test]
fn a_held_follower_goes_on_by_itself() {
    let mut peer = held_peer();
    peer.follower.wake(PATIENCE - MS, &mut peer.side);
    assert_eq!(peer.side.calls, ["hold"]);
    peer.follower.wake(PATIENCE, &mut peer.side);
    assert_eq!(peer.side.calls, ["hold", "let_go"]);
    assert!(peer.follower.is_ended() && !peer.follower.has_finished());
    assert_eq!(peer.ask(Request::Finish { cuts: vec![] }), Answer::Unknown);
    assert_eq!(peer.side.calls, ["hold", "let_go"]);
}

/// Promise: who cannot be held has nothing to keep.
#[test]
fn a_follower_may_refuse_to_be_held() {
    let refusals = [
        (PrepareError::Busy, Answer::Busy),
        (PrepareError::Refused("no".into()), Answer::Refused("no".into())),
    ];
    for (why, answer) in refusals {
        let mut side = Log { prepared: Some(why), ..Log::default() };
        let limits = FollowerLimits { patience: PATIENCE };
        let begun = Follower::begin_hold(GroupId(4), &[LINK], START, limits, &mut side);
        assert!(begun.0.is_none());
        assert_eq!(begun.1, answer);
    }
}
