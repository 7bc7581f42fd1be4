//! Both machines, step by step: every refusal, lost answer, deadline, and step out of order.
//!
//! Here the tests play the driver by hand. What the machines do together, over devices and windows, is
//! the simulator's to try.

mod hold;

use super::*;
use crate::replay::Executed;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const START: Duration = Duration::ZERO;

/// Deadlines that can be told apart.
fn limits() -> MoverLimits {
    MoverLimits {
        prepare: 1000 * MS,
        quiesce: 200 * MS,
        drain: 50 * MS,
        switch: 3000 * MS,
        abort: 300 * MS,
        pause: MS,
        again: 40 * MS,
    }
}

fn offer(qpn: u32) -> Offer<u32> {
    Offer { qpn, mover_qpn: qpn + 100, incarnation: 1, end: qpn + 200, psn: 0 }
}

fn accept(end: u32) -> Option<Accept<u32>> {
    Some(Accept { end, psn: 0 })
}

fn executed(messages: u64) -> Executed {
    Executed { messages, psn: Some(messages as u32), settled: true, recorded: None }
}

fn switched(messages: u64, cuts: Vec<Cut>) -> Answer<u32> {
    Answer::Switched { executed: vec![executed(messages)], cuts }
}

const CUT: Cut = Cut { link: 0, landed: 512 };

/// A mover of groups of one link each, and its clock.
struct Driver {
    mover: Mover<u32>,
    now: Duration,
}

impl Driver {
    fn new(groups: u32) -> Self {
        let groups = (0..groups).map(|at| vec![offer(at)]).collect();
        Driver { mover: Mover::new(groups, START, limits()), now: START }
    }

    fn actions(&mut self) -> Vec<Action<u32>> {
        std::iter::from_fn(|| self.mover.poll(self.now)).collect()
    }

    fn tell(&mut self, event: Event<u32>) -> Vec<Action<u32>> {
        self.mover.event(event, self.now);
        self.actions()
    }

    fn answer(&mut self, at: usize, answer: Answer<u32>) -> Vec<Action<u32>> {
        self.tell(Event::Answer(at, answer))
    }

    fn pass(&mut self, time: Duration) -> Vec<Action<u32>> {
        self.now += time;
        self.actions()
    }

    /// Where every group has prepared, and been asked to be quiet.
    fn quiescing(groups: u32) -> Self {
        let mut driver = Driver::new(groups);
        driver.actions();
        for at in 0..groups as usize {
            driver.answer(at, Answer::Prepared(vec![accept(7)]));
        }
        assert_eq!(driver.mover.stage(), Stage::Quiesce);
        driver
    }

    /// Past the commit point.
    fn down(groups: u32) -> Self {
        let mut driver = Driver::quiescing(groups);
        for at in 0..groups as usize {
            driver.answer(at, Answer::Quiet(true));
        }
        assert_eq!(driver.tell(Event::Drained), [Action::TakeDown]);
        driver
    }

    /// Where every group has been asked to go over.
    fn switching(groups: u32) -> Self {
        let mut driver = Driver::down(groups);
        let asks = driver.tell(Event::Down(vec![vec![executed(3)]; groups as usize]));
        assert_eq!(asks.len(), groups as usize, "{asks:?}");
        driver
    }

    /// Where the one group has gone over, and is asked to forget it all.
    fn finishing(cuts: Vec<Cut>) -> Self {
        let mut driver = Driver::switching(1);
        let attach = driver.answer(0, switched(4, vec![]));
        assert_eq!(attach, [Action::Attach(0, vec![executed(4)], vec![])]);
        let ask = Action::Ask(0, Request::Finish { cuts: cuts.clone() });
        assert_eq!(driver.tell(Event::Attached(0, cuts)), [ask]);
        driver
    }

    /// It is taken back for that reason, once the peers know.
    fn taken_back(&mut self, actions: &[Action<u32>], why: Failure, after_stop: bool) {
        let on: &[_] = if after_stop { &[Action::GoOn] } else { &[] };
        let mut wanted = on.to_vec();
        wanted.push(Action::Discard);
        assert_eq!(actions[..wanted.len()], wanted);
        assert!(
            actions[wanted.len()..].iter().all(|it| matches!(it, Action::Ask(_, Request::Abort)))
        );
        assert_eq!(self.mover.stage(), Stage::Abort);
        let asked: Vec<usize> = actions.iter().filter_map(asked).collect();
        let mut last = Vec::new();
        for at in asked {
            last = self.answer(at, Answer::Aborted);
        }
        assert_eq!(last, [Action::Ended(Err(why))]);
    }
}

fn asked(action: &Action<u32>) -> Option<usize> {
    if let Action::Ask(at, _) = action { Some(*at) } else { None }
}

const ENDED: [Action<u32>; 1] = [Action::Ended(Ok(()))];

/// Promise 1 of a move: each step is taken once, in the order that the module states.
#[test]
fn a_move_goes_through_its_stages() {
    let mut driver = Driver::new(1);
    assert_eq!(driver.actions(), [Action::Ask(0, Request::Prepare { links: vec![offer(0)] })]);
    let accepts = vec![accept(9)];
    assert_eq!(
        driver.answer(0, Answer::Prepared(accepts.clone())),
        [Action::Connect(0, accepts), Action::Stop, Action::Ask(0, Request::Quiesce)]
    );
    assert_eq!(driver.answer(0, Answer::Quiet(true)), []);
    assert_eq!(driver.tell(Event::Drained), [Action::TakeDown]);
    let numbers = vec![executed(3)];
    let ask = Action::Ask(0, Request::Switch { executed: numbers.clone() });
    assert_eq!(driver.tell(Event::Down(vec![numbers])), [ask]);
    let attach = Action::Attach(0, vec![executed(5)], vec![CUT]);
    assert_eq!(driver.answer(0, switched(5, vec![CUT])), [attach]);
    let ask = Action::Ask(0, Request::Finish { cuts: vec![] });
    assert_eq!(driver.tell(Event::Attached(0, vec![])), [ask]);
    assert_eq!(driver.answer(0, Answer::Finished), ENDED);
    assert_eq!((driver.mover.stage(), driver.mover.wake_at()), (Stage::Ended, None));
}

/// Promise: a move with nobody at the other end needs no conversation.
#[test]
fn a_move_without_groups_takes_down_and_ends() {
    let mut driver = Driver::new(0);
    assert_eq!(driver.actions(), [Action::Stop]);
    assert_eq!(driver.tell(Event::Drained), [Action::TakeDown]);
    assert_eq!(driver.tell(Event::Down(vec![])), ENDED);
}

/// Promise: whoever cut a request hands it again only when the receiver knows.
#[test]
fn links_that_were_cut_are_released_by_the_last_answer() {
    let mut driver = Driver::finishing(vec![CUT]);
    assert_eq!(driver.answer(0, Answer::Finished), [Action::Release(0), ENDED[0].clone()]);
}

/// Promise: what got no answer is asked again; and what is answered twice has happened once.
#[test]
fn lost_and_repeated_answers_change_nothing() {
    for stage in [Stage::Prepare, Stage::Quiesce, Stage::Switch, Stage::Ended] {
        let mut driver = match stage {
            Stage::Prepare => Driver::new(1),
            Stage::Quiesce => Driver::quiescing(1),
            Stage::Switch => Driver::switching(1),
            _ => Driver::finishing(vec![]),
        };
        driver.actions();
        assert_eq!(driver.pass(39 * MS), [], "{stage}: too early");
        let again = driver.pass(MS);
        assert!(matches!(again[..], [Action::Ask(0, _)]), "{stage}: {again:?}");
        let (answer, more) = match stage {
            Stage::Prepare => (Answer::Prepared(vec![accept(1)]), 3),
            Stage::Quiesce => (Answer::Quiet(true), 0),
            Stage::Switch => (switched(3, vec![]), 1),
            _ => (Answer::Finished, 1),
        };
        assert_eq!(driver.answer(0, answer.clone()).len(), more, "{stage}");
        assert_eq!(driver.answer(0, answer), [], "{stage}: the second answer");
    }
}

/// Promise: late answers of an earlier stage do not end a move.
#[test]
fn late_answers_of_the_stage_before_say_nothing() {
    let mut driver = Driver::quiescing(1);
    assert_eq!(driver.answer(0, Answer::Prepared(vec![accept(7)])), []);
    assert_eq!(driver.mover.stage(), Stage::Quiesce);
    let mut driver = Driver::switching(1);
    assert_eq!(driver.answer(0, Answer::Quiet(false)), []);
    assert_eq!(driver.answer(0, Answer::Quiet(true)), []);
    assert_eq!(driver.answer(0, switched(4, vec![])).len(), 1);
    let mut driver = Driver::finishing(vec![]);
    assert_eq!(driver.answer(0, switched(4, vec![])), []);
    assert_eq!(driver.answer(0, Answer::Switching), []);
    assert_eq!(driver.answer(0, Answer::Finished), ENDED);
}

/// Promise: "not yet" is asked again after a pause, and not before.
#[test]
fn not_yet_is_asked_again_after_a_pause() {
    let mut driver = Driver::quiescing(1);
    assert_eq!(driver.answer(0, Answer::Quiet(false)), []);
    assert_eq!(driver.mover.wake_at(), Some(driver.now + MS));
    assert_eq!(driver.pass(MS), [Action::Ask(0, Request::Quiesce)]);
    let mut driver = Driver::switching(1);
    assert_eq!(driver.answer(0, Answer::Switching), []);
    assert!(matches!(driver.pass(MS)[..], [Action::Ask(0, Request::Switch { .. })]));
}

/// Promise 5: every refusal takes the whole move back, and names the peer.
#[test]
fn a_refusal_takes_the_move_back() {
    let reasons = [
        (Answer::Busy, Failure::Busy(1)),
        (Answer::Refused("full".into()), Failure::Refused(1, "full".into())),
        (Answer::Unknown, Failure::Confused(1, Stage::Prepare)),
        (Answer::Finished, Failure::Confused(1, Stage::Prepare)),
        (Answer::Prepared(vec![]), Failure::Confused(1, Stage::Prepare)),
    ];
    for (answer, why) in reasons {
        let mut driver = Driver::new(2);
        driver.actions();
        driver.answer(0, Answer::Prepared(vec![accept(1)]));
        let actions = driver.answer(1, answer);
        assert_eq!(actions.iter().filter_map(asked).count(), 2, "both may have begun");
        driver.taken_back(&actions, why, false);
    }
}

/// Promise 5: a peer that has given up before the commit point takes the move back.
#[test]
fn a_peer_that_forgot_takes_the_move_back() {
    for answer in [Answer::Unknown, Answer::Aborted, Answer::Busy, Answer::Switching] {
        let mut driver = Driver::quiescing(2);
        let actions = driver.answer(1, answer);
        driver.taken_back(&actions, Failure::Confused(1, Stage::Quiesce), true);
    }
}

/// Promise 5: each stage before the commit point has a deadline; the error names stage and peer.
#[test]
fn a_silent_peer_takes_the_move_back_in_time() {
    let mut driver = Driver::new(2);
    driver.actions();
    driver.answer(0, Answer::Prepared(vec![accept(1)]));
    driver.pass(999 * MS);
    assert_eq!(driver.mover.stage(), Stage::Prepare);
    let actions = driver.pass(MS);
    driver.taken_back(&actions, Failure::Silent(1, Stage::Prepare), false);

    let mut driver = Driver::quiescing(2);
    driver.answer(0, Answer::Quiet(false));
    driver.pass(199 * MS);
    assert_eq!(driver.mover.stage(), Stage::Quiesce, "one has not answered: no drain deadline yet");
    let actions = driver.pass(MS);
    driver.taken_back(&actions, Failure::Silent(1, Stage::Quiesce), true);
}

/// Promise 5: taking back ends, whether or not peers take note.
#[test]
fn taking_back_has_a_deadline() {
    let mut driver = Driver::new(1);
    driver.actions();
    driver.answer(0, Answer::Busy);
    assert_eq!(driver.pass(40 * MS), [Action::Ask(0, Request::Abort)]);
    assert_eq!(driver.answer(0, Answer::Prepared(vec![accept(1)])), [], "a late answer");
    assert_eq!(driver.pass(260 * MS), [Action::Ended(Err(Failure::Busy(0)))]);
}

/// Promise: who does not know of the group has forgotten it as well.
#[test]
fn an_unknown_group_counts_as_taken_back() {
    let mut driver = Driver::new(1);
    driver.actions();
    driver.answer(0, Answer::Refused("no".into()));
    let ended = Action::Ended(Err(Failure::Refused(0, "no".into())));
    assert_eq!(driver.answer(0, Answer::Unknown), [ended]);
}

/// Promise: only peers that may have begun are asked to forget.
#[test]
fn who_was_never_asked_need_not_forget() {
    let mut driver = Driver::new(2);
    assert!(driver.mover.poll(driver.now).is_some(), "group 0 is asked; group 1's turn is queued");
    driver.actions();
    let actions = driver.tell(Event::Lost(0));
    assert_eq!(actions, []);
    let actions = driver.answer(1, Answer::Busy);
    assert_eq!(actions.iter().filter_map(asked).collect::<Vec<_>>(), [1], "the dead are not asked");
    driver.taken_back(&actions, Failure::Busy(1), false);
}

/// Promise: what does not drain is decided by counting once the deadline has passed, and never while a
/// peer may still be handing.
#[test]
fn the_drain_deadline_commits() {
    let mut driver = Driver::quiescing(2);
    driver.answer(0, Answer::Quiet(false));
    driver.answer(1, Answer::Quiet(false));
    driver.pass(49 * MS);
    assert_eq!(driver.mover.stage(), Stage::Quiesce);
    assert_eq!(driver.pass(MS), [Action::TakeDown]);

    // Its own requests are the ones that are late.
    let mut driver = Driver::quiescing(1);
    driver.answer(0, Answer::Quiet(true));
    assert_eq!(driver.pass(50 * MS), [Action::TakeDown]);
}

/// Promise: after the commit point a peer that is silent, or does not know what it is asked, is lost;
/// the others go on.
#[test]
fn after_the_commit_point_there_is_only_forward() {
    for answer in [Answer::Unknown, Answer::Aborted, Answer::Busy, Answer::Finished] {
        let mut driver = Driver::switching(2);
        assert_eq!(driver.answer(0, answer), [Action::Fail(0)]);
        driver.answer(1, switched(1, vec![]));
        driver.tell(Event::Attached(1, vec![]));
        assert_eq!(driver.answer(1, Answer::Finished), ENDED);
    }
    let mut driver = Driver::switching(2);
    driver.answer(1, switched(1, vec![]));
    driver.tell(Event::Attached(1, vec![]));
    driver.answer(1, Answer::Finished);
    driver.pass(2999 * MS);
    assert_eq!(driver.mover.stage(), Stage::Switch);
    assert_eq!(driver.pass(MS), [Action::Fail(0), ENDED[0].clone()]);
}

/// Promise: the deadline for going over is not that of the last word. A peer that has gone over while
/// another was silent, or while the driver was at work, is not lost with it.
#[test]
fn who_has_gone_over_is_not_lost_with_the_silent() {
    let mut driver = Driver::switching(2);
    driver.pass(2990 * MS);
    driver.answer(1, switched(1, vec![]));
    assert_eq!(driver.pass(10 * MS), [Action::Fail(0)]);
    let ask = Action::Ask(1, Request::Finish { cuts: vec![CUT] });
    assert_eq!(driver.tell(Event::Attached(1, vec![CUT])), [ask]);
    driver.pass(2999 * MS);
    assert_eq!(driver.mover.stage(), Stage::Switch);
    assert_eq!(driver.pass(MS), [Action::Fail(1), ENDED[0].clone()], "its last word is late, too");
}

/// Promise: a wrong number of links is no answer that one could go on with.
#[test]
fn numbers_for_other_links_are_not_believed() {
    let mut driver = Driver::switching(1);
    let answer = Answer::Switched { executed: vec![executed(1); 2], cuts: vec![] };
    assert_eq!(driver.answer(0, answer), [Action::Fail(0), ENDED[0].clone()]);
}

/// Promise: a peer may die at any stage. Its links are told once, and only when all others know
/// where they stand.
#[test]
fn a_dead_peer_is_told_of_after_the_commit_point() {
    // Before: the move goes on without it.
    let mut driver = Driver::new(2);
    driver.actions();
    assert_eq!(driver.tell(Event::Lost(0)), []);
    driver.answer(1, Answer::Prepared(vec![accept(1)]));
    driver.answer(1, Answer::Quiet(true));
    assert_eq!(driver.tell(Event::Drained), [Action::TakeDown]);
    let actions = driver.tell(Event::Down(vec![vec![executed(0)]; 2]));
    assert_eq!(actions[0], Action::Fail(0));
    assert_eq!(actions[1..].iter().filter_map(asked).collect::<Vec<_>>(), [1]);
    assert_eq!(driver.tell(Event::Lost(0)), [], "once");

    // While it is being taken down.
    let mut driver = Driver::down(1);
    assert_eq!(driver.tell(Event::Lost(0)), []);
    assert_eq!(
        driver.tell(Event::Down(vec![vec![executed(0)]])),
        [Action::Fail(0), ENDED[0].clone()]
    );

    // While the driver attaches: the driver's word then comes too late.
    let mut driver = Driver::switching(1);
    driver.answer(0, switched(1, vec![]));
    assert_eq!(driver.tell(Event::Lost(0)), [Action::Fail(0), ENDED[0].clone()]);
    assert_eq!(driver.tell(Event::Attached(0, vec![CUT])), []);

    // While it is taken back: nothing is to be told, the old path says so itself.
    let mut driver = Driver::quiescing(1);
    driver.answer(0, Answer::Unknown);
    let ended = Action::Ended(Err(Failure::Confused(0, Stage::Quiesce)));
    assert_eq!(driver.tell(Event::Lost(0)), [ended]);
}

/// Promise: events that nobody waits for, and groups that do not exist, change nothing.
#[test]
fn events_out_of_order_change_nothing() {
    let mut driver = Driver::new(1);
    driver.actions();
    for event in [
        Event::Down(vec![vec![executed(0)]]),
        Event::Attached(0, vec![]),
        Event::Answer(5, Answer::Busy),
        Event::Lost(5),
        Event::Attached(5, vec![]),
    ] {
        assert_eq!(driver.tell(event), []);
        assert_eq!(driver.mover.stage(), Stage::Prepare);
    }
    let mut driver = Driver::down(1);
    assert_eq!(driver.answer(0, Answer::Quiet(true)), [], "nothing is asked while it goes down");
    assert_eq!(driver.mover.wake_at(), None, "the barrier has the driver's deadline");
    let mut driver = Driver::switching(1);
    assert_eq!(driver.tell(Event::Attached(0, vec![])), [], "nothing was to be attached");
    assert_eq!(driver.answer(0, switched(1, vec![])).len(), 1);
}

/// A side that writes down what it is told.
#[derive(Default)]
struct Log {
    calls: Vec<&'static str>,
    prepared: Option<PrepareError>,
    drained: bool,
    barrier: bool,
    cuts: Vec<Cut>,
    released: Vec<Cut>,
    lost: Vec<Cut>,
}

impl Side<u32> for Log {
    fn prepare(&mut self, links: &[Offer<u32>]) -> Result<Vec<Option<Accept<u32>>>, PrepareError> {
        self.calls.push("prepare");
        match self.prepared.take() {
            None => Ok(links.iter().map(|offer| accept(offer.qpn)).collect()),
            Some(why) => Err(why),
        }
    }
    fn stop(&mut self) {
        self.calls.push("stop");
    }
    fn is_drained(&mut self) -> bool {
        self.drained
    }
    fn take_down(&mut self) {
        self.calls.push("take_down");
    }
    fn executed(&mut self) -> Option<Vec<Executed>> {
        self.barrier.then(|| vec![executed(8)])
    }
    fn attach(&mut self, mover: &[Executed]) -> Vec<Cut> {
        assert_eq!(mover, [executed(3)]);
        self.calls.push("attach");
        self.cuts.clone()
    }
    fn release(&mut self, cuts: &[Cut]) {
        self.calls.push("release");
        self.released = cuts.to_vec();
    }
    fn lose(&mut self, cuts: &[Cut]) {
        assert!(!self.calls.contains(&"release"), "what was let go cannot be held back");
        self.lost = cuts.to_vec();
    }
    fn go_on(&mut self) {
        self.calls.push("go_on");
    }
    fn discard(&mut self) {
        self.calls.push("discard");
    }
    fn hold(&mut self, _links: &[HeldLink]) -> Result<(), PrepareError> {
        self.calls.push("hold");
        self.prepared.take().map_or(Ok(()), Err)
    }
    fn is_still(&mut self, _links: &[HeldLink]) -> (bool, Vec<Option<HeldEnd>>) {
        (self.drained, vec![Some(hold::END)])
    }
    fn let_go(&mut self) {
        self.calls.push("let_go");
    }
}

const PATIENCE: Duration = Duration::from_millis(9);

/// A follower, its side, and its clock.
struct Peer {
    follower: Follower<u32>,
    side: Log,
    now: Duration,
}

impl Peer {
    fn new() -> Self {
        let mut side = Log { barrier: true, drained: true, ..Log::default() };
        let limits = FollowerLimits { patience: PATIENCE };
        let (follower, answer) = Follower::begin(GroupId(4), &[offer(0)], START, limits, &mut side);
        assert_eq!(answer, Answer::Prepared(vec![accept(0)]));
        Peer { follower: follower.expect("it was prepared"), side, now: START }
    }

    fn ask(&mut self, request: Request<u32>) -> Answer<u32> {
        self.follower.handle(request, self.now, &mut self.side)
    }

    fn stopped() -> Self {
        let mut peer = Peer::new();
        assert_eq!(peer.ask(Request::Quiesce), Answer::Quiet(true));
        peer
    }

    fn down() -> Self {
        let mut peer = Peer::stopped();
        peer.side.barrier = false;
        assert_eq!(peer.ask(switch()), Answer::Switching);
        peer
    }

    fn attached() -> Self {
        let mut peer = Peer::stopped();
        assert_eq!(peer.ask(switch()), switched(8, vec![]));
        peer
    }

    /// What it has called, beyond making queue pairs.
    fn calls(&self) -> &[&'static str] {
        &self.side.calls[1..]
    }
}

fn switch() -> Request<u32> {
    Request::Switch { executed: vec![executed(3)] }
}

fn finish(cuts: Vec<Cut>) -> Request<u32> {
    Request::Finish { cuts }
}

fn prepare() -> Request<u32> {
    Request::Prepare { links: vec![offer(0)] }
}

/// Promise: a follower does each step once, in order.
#[test]
fn a_follower_goes_over() {
    let mut peer = Peer::new();
    peer.side.drained = false;
    assert_eq!(peer.ask(Request::Quiesce), Answer::Quiet(false));
    peer.side.drained = true;
    assert_eq!(peer.ask(Request::Quiesce), Answer::Quiet(true));
    peer.side.cuts = vec![CUT];
    assert_eq!(peer.ask(switch()), switched(8, vec![CUT]));
    assert_eq!(peer.ask(finish(vec![CUT])), Answer::Finished);
    assert_eq!(peer.calls(), ["stop", "take_down", "attach", "release"]);
    assert_eq!(peer.side.released, [CUT]);
    assert!(peer.follower.is_ended());
    assert_eq!((peer.follower.id(), peer.follower.wake_at()), (GroupId(4), None));
}

/// Promise: every request may be asked twice, with the same answer, and is done once.
#[test]
fn requests_asked_twice_are_done_once() {
    let mut peer = Peer::new();
    peer.side.cuts = vec![CUT];
    for request in [prepare(), Request::Quiesce, switch(), finish(vec![])] {
        let first = peer.ask(request.clone());
        assert_eq!(peer.ask(request), first);
    }
    assert_eq!(peer.calls(), ["stop", "take_down", "attach", "release"]);
    let mut peer = Peer::new();
    assert_eq!(peer.ask(Request::Abort), Answer::Aborted);
    assert_eq!(peer.ask(Request::Abort), Answer::Aborted);
    assert_eq!(peer.calls(), ["discard"]);
}

/// Promise 4: what has been executed is said only when the barrier has been passed, and the old path is
/// taken down once.
#[test]
fn the_barrier_is_waited_for() {
    let mut peer = Peer::down();
    assert_eq!(peer.ask(switch()), Answer::Switching);
    assert_eq!(peer.calls(), ["stop", "take_down"]);
    peer.side.barrier = true;
    assert_eq!(peer.ask(switch()), switched(8, vec![]));
    assert_eq!(peer.calls(), ["stop", "take_down", "attach"]);
}

/// Promise 5: who cannot follow keeps nothing, and says why.
#[test]
fn who_cannot_follow_keeps_nothing() {
    let refusals = [
        (PrepareError::Busy, Answer::Busy),
        (PrepareError::Refused("no room".into()), Answer::Refused("no room".into())),
    ];
    for (why, wanted) in refusals {
        let mut side = Log { prepared: Some(why), ..Log::default() };
        let (follower, answer) =
            Follower::begin(GroupId(1), &[offer(0)], START, FollowerLimits::default(), &mut side);
        assert!(follower.is_none());
        assert_eq!((answer, &side.calls[..]), (wanted, &["prepare"][..]));
    }
}

/// Promise 5: before the commit point a follower can go back: it goes on only where it had stopped.
#[test]
fn an_abort_leaves_it_where_it_was() {
    let mut peer = Peer::new();
    assert_eq!(peer.ask(Request::Abort), Answer::Aborted);
    assert_eq!(peer.calls(), ["discard"]);
    let mut peer = Peer::stopped();
    assert_eq!(peer.ask(Request::Abort), Answer::Aborted);
    assert_eq!(peer.calls(), ["stop", "go_on", "discard"]);
    for late in [Request::Quiesce, switch(), finish(vec![]), prepare()] {
        assert_eq!(peer.ask(late), Answer::Unknown);
    }
    assert_eq!(peer.calls(), ["stop", "go_on", "discard"]);
}

/// Promise: a step out of order is not taken.
#[test]
fn steps_out_of_order_are_not_taken() {
    let mut peer = Peer::new();
    assert_eq!(peer.ask(switch()), Answer::Unknown, "nothing was stopped");
    assert_eq!(peer.ask(finish(vec![])), Answer::Unknown);
    let mut peer = Peer::stopped();
    assert_eq!(peer.ask(finish(vec![])), Answer::Unknown);
    let other = Request::Switch { executed: vec![executed(3); 2] };
    assert_eq!(peer.ask(other), Answer::Unknown, "numbers of other links");
    assert_eq!(peer.calls(), ["stop"]);
    let mut peer = Peer::down();
    assert_eq!(peer.ask(finish(vec![])), Answer::Unknown);
    let mut peer = Peer::attached();
    assert_eq!(peer.ask(Request::Abort), Answer::Unknown, "there is no way back");
    let mut peer = Peer::down();
    assert_eq!(peer.ask(Request::Abort), Answer::Unknown, "there is no way back");
    assert_eq!(peer.calls(), ["stop", "take_down"]);
}

/// Promise 5: a mover that is not heard of any more is given up, at every state; each word of its
/// begins the wait anew.
#[test]
fn a_silent_mover_is_given_up() {
    type State = fn() -> Peer;
    let states: [(State, &[&str]); 4] = [
        (Peer::new, &["discard"]),
        (Peer::stopped, &["stop", "go_on", "discard"]),
        (Peer::down, &["stop", "take_down", "attach", "release"]),
        (Peer::attached, &["stop", "take_down", "attach", "release"]),
    ];
    for (state, calls) in states {
        let mut peer = state();
        assert_eq!(peer.follower.wake_at(), Some(PATIENCE));
        peer.follower.wake(PATIENCE - MS, &mut peer.side);
        assert!(!peer.follower.is_ended());
        peer.now = PATIENCE - MS;
        peer.ask(finish(vec![]));
        let heard = peer.follower.is_ended();
        peer.follower.wake(PATIENCE, &mut peer.side);
        assert_eq!(peer.follower.is_ended(), heard, "it was heard of");
        peer.follower.wake(PATIENCE + PATIENCE, &mut peer.side);
        assert!(peer.follower.is_ended());
        assert_eq!(peer.calls(), calls);
        peer.follower.give_up(&mut peer.side);
        peer.follower.wake(PATIENCE * 9, &mut peer.side);
        assert_eq!(peer.calls(), calls, "once");
    }
}

/// Promise 2: a follower that gave up has not heard what was cut. It must not tell a mover that is only late
/// to hand the rest of such a request, whose length it would then report short.
#[test]
fn who_gave_up_does_not_say_that_it_has_finished() {
    let mut peer = Peer::attached();
    peer.follower.wake(PATIENCE, &mut peer.side);
    assert_eq!(peer.ask(finish(vec![CUT])), Answer::Unknown);
    assert!(peer.follower.is_ended() && !peer.follower.has_finished());
    let mut peer = Peer::attached();
    assert_eq!(peer.ask(finish(vec![CUT])), Answer::Finished);
    assert!(peer.follower.has_finished());
}

/// Promise 2: a mover that is only late may not know what the follower has cut: that is not handed.
#[test]
fn who_gives_up_does_not_hand_what_was_cut() {
    let mut peer = Peer::stopped();
    peer.side.cuts = vec![CUT];
    peer.ask(switch());
    peer.follower.give_up(&mut peer.side);
    assert_eq!(peer.side.lost, [CUT]);
    let mut peer = Peer::down();
    peer.side.cuts = vec![CUT];
    peer.follower.give_up(&mut peer.side);
    assert_eq!(peer.side.lost, [CUT]);
}

/// Promise 5: who gives up first is the mover: at any stage its deadlines end before a follower that heard
/// their beginning loses patience.
#[test]
fn a_follower_is_more_patient_than_a_mover() {
    let (mover, follower) = (MoverLimits::default(), FollowerLimits::default());
    assert!(mover.prepare + mover.quiesce + mover.drain < follower.patience);
    assert!(
        mover.switch + mover.switch < follower.patience,
        "two questions, each with all its time"
    );
}

/// Promise 5: limits on what is said. One that is past is refused, and named.
#[test]
fn messages_past_a_limit_are_refused() {
    let many = MAX_LINKS + 1;
    let cut = |link| Cut { link, landed: 1 };
    let far = MAX_LINKS as u32;
    let requests = [
        Request::Prepare { links: vec![offer(0); many] },
        Request::Switch { executed: vec![executed(0); many] },
        Request::Finish { cuts: vec![cut(0); many] },
        Request::Finish { cuts: vec![cut(far)] },
    ];
    for request in requests {
        assert!(!request.check().unwrap_err().to_string().is_empty());
    }
    let answers = [
        Answer::<u32>::Prepared(vec![None; many]),
        Answer::Refused("x".repeat(MAX_REASON + 1)),
        Answer::Switched { executed: vec![executed(0); many], cuts: vec![] },
        Answer::Switched { executed: vec![], cuts: vec![cut(far)] },
    ];
    for answer in answers {
        assert!(answer.check().is_err());
    }
    assert!(Request::Prepare { links: vec![offer(0); MAX_LINKS] }.check().is_ok());
    assert!(finish(vec![cut(far - 1)]).check().is_ok());
    assert!(Request::<u32>::Abort.check().is_ok() && Answer::<u32>::Unknown.check().is_ok());
    let long = Answer::<u32>::refused(&"é".repeat(MAX_REASON));
    assert!(long.check().is_ok(), "a refusal is shortened between characters");
}

/// Promise 5: errors say what happened, and at which stage.
#[test]
fn failures_are_sentences() {
    let stages =
        [Stage::Prepare, Stage::Quiesce, Stage::Down, Stage::Switch, Stage::Abort, Stage::Ended];
    for stage in stages {
        let silent = Failure::Silent(0, stage).to_string();
        assert!(silent.contains(&stage.to_string()), "{silent}");
        assert!(Failure::Confused(0, stage).to_string().contains(&stage.to_string()));
    }
    assert!(Failure::Refused(0, "no room".into()).to_string().contains("no room"));
    assert!(!Failure::Busy(0).to_string().is_empty());
}
