//! The writer.

use super::super::*;
use super::{NOW, TERM, epoch};
use crate::PageSet;
use std::collections::BTreeMap;
use std::time::Duration;

const CHUNKS: usize = 8;

fn set(pages: &[usize]) -> PageSet {
    let mut set = PageSet::new(CHUNKS);
    pages.iter().for_each(|page| set.insert(*page));
    set
}

fn order(word: Word) -> Event {
    Event::Order(Order { term: TERM, to: Incarnation::of_life(1), word })
}

/// A writer whose stores do what they are asked at once.
struct Rig {
    writer: Writer,
    /// Stores that may be named, in this order.
    spare: Vec<StoreId>,
    at: BTreeMap<Incarnation, StoreId>,
    words: BTreeMap<StoreId, [Epoch; 2]>,
    dirty: PageSet,
    /// What the program changes between any two looks.
    busy: PageSet,
    log: Vec<Action>,
}

impl Rig {
    fn new(policy: Policy, stores: &[u64]) -> Self {
        let life = Incarnation::of_life(1);
        Rig {
            writer: Writer::new((CHUNKS, 64), life, TERM, None, policy, WriterLimits::default()),
            spare: stores.iter().map(|n| StoreId(*n)).collect(),
            at: BTreeMap::new(),
            words: BTreeMap::new(),
            dirty: set(&[]),
            busy: set(&[]),
            log: Vec::new(),
        }
    }

    /// Does what is to be done until it comes to an action that `stop` names, which is not done.
    fn run_until(&mut self, stop: impl Fn(&Action) -> bool) -> Option<Action> {
        while let Some(action) = self.writer.poll(NOW) {
            self.log.push(action.clone());
            if stop(&action) {
                return Some(action);
            }
            self.act(action);
        }
        None
    }

    fn run(&mut self) {
        self.run_until(|_| false);
    }

    fn act(&mut self, action: Action) {
        let event = match action {
            Action::Place(known) => {
                let at = self.spare.iter().position(|store| !known.contains(store));
                Event::Store(at.map(|at| self.spare[at]))
            }
            Action::Ask(by, store, request) => {
                self.at.insert(by, store);
                let words = *self.words.entry(store).or_default();
                let committed = Epoch::NONE;
                let holding = Holding { incarnation: by, bytes: 64, committed, words };
                Event::Answer(
                    by,
                    match request {
                        Request::Grant { .. } => Answer::Granted(holding),
                        Request::Check { epoch, .. } => Answer::Checked(epoch),
                        Request::Note { epoch, .. } => Answer::Noted(epoch),
                        other => panic!("{other:?}"),
                    },
                )
            }
            Action::Invalidate(by, slot) => {
                self.words.get_mut(&self.at[&by]).unwrap()[slot.index()] = Epoch::NONE;
                Event::Done(by)
            }
            Action::Word(by, slot, epoch) => {
                self.words.get_mut(&self.at[&by]).unwrap()[slot.index()] = epoch;
                Event::Done(by)
            }
            Action::Send(by, ..) | Action::Seal(by, ..) => Event::Done(by),
            Action::Collect | Action::Pause => {
                let mut dirty = std::mem::replace(&mut self.dirty, set(&[]));
                dirty.union_with(&self.busy);
                Event::Dirty(dirty)
            }
            Action::Protect(epoch) => Event::Protected(epoch, Ok(())),
            _ => return,
        };
        self.writer.event(event, NOW);
    }

    fn tell(&mut self, word: Word) {
        self.writer.event(order(word), NOW);
    }

    /// A whole epoch, committed.
    fn commit(&mut self, n: u64) {
        self.tell(Word::Begin(epoch(n)));
        self.run();
        assert_eq!(self.writer.stage(), Stage::Complete, "{:?}", self.log);
        self.tell(Word::Commit(epoch(n)));
        self.run();
        assert_eq!(self.writer.committed(), epoch(n));
    }

    fn sent(&self) -> Vec<(StoreId, Slot, Vec<usize>)> {
        let sends = self.log.iter().filter_map(|action| match action {
            Action::Send(by, slot, chunks) => {
                Some((self.at[by], *slot, chunks.runs().flatten().collect()))
            }
            _ => None,
        });
        sends.collect()
    }

    fn incarnation(&self, store: u64) -> Incarnation {
        *self.at.iter().rev().find(|it| *it.1 == StoreId(store)).unwrap().0
    }
}

fn policy(copies: usize, minimum: usize) -> Policy {
    Policy { copies, minimum, rounds: 2, small: 1, ..Policy::default() }
}

fn names(log: &[Action]) -> Vec<&'static str> {
    let name = |action: &Action| match action {
        Action::Ask(_, _, Request::Grant { .. }) => "grant",
        Action::Ask(_, _, Request::Check { .. }) => "check",
        Action::Ask(_, _, Request::Note { .. }) => "note",
        Action::Ask(..) => "ask",
        Action::Place(_) => "place",
        Action::Invalidate(..) => "invalidate",
        Action::Collect => "collect",
        Action::Send(..) => "send",
        Action::Pause => "pause",
        Action::Resume => "resume",
        Action::Seal(..) => "seal",
        Action::Word(..) => "word",
        Action::Protect(_) => "protect",
        Action::Disconnect(_) => "disconnect",
        Action::Report(_) => "report",
        Action::Committed(..) => "committed",
        Action::GivenUp(..) => "given up",
        Action::Fenced(_) => "fenced",
    };
    log.iter().map(name).filter(|name| *name != "report").collect()
}

#[test]
fn an_epoch_is_written_in_order_and_the_word_is_last() {
    let mut rig = Rig::new(Policy { check: true, protect: true, ..policy(1, 1) }, &[7]);
    rig.dirty = set(&[1, 2, 3]);
    rig.commit(1);
    let expected = [
        "place",
        "grant",
        "invalidate",
        "collect",
        "send",
        "collect",
        "pause",
        "resume",
        "seal",
        "word",
        "check",
        "protect",
        "note",
        "committed",
    ];
    assert_eq!(names(&rig.log), expected);
    assert_eq!(rig.sent(), [(StoreId(7), Slot::A, (0..CHUNKS).collect())]);
}

#[test]
fn the_slot_of_the_committed_epoch_is_not_touched() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.commit(1);
    rig.dirty = set(&[1]);
    rig.commit(2);
    assert_eq!(rig.words[&StoreId(7)], [epoch(1), epoch(2)]);
    // Given up when it is complete: the same slot is written again.
    rig.tell(Word::Begin(epoch(3)));
    rig.run();
    assert_eq!(rig.words[&StoreId(7)], [epoch(3), epoch(2)]);
    rig.tell(Word::Abort(epoch(3)));
    rig.tell(Word::Begin(epoch(4)));
    rig.run();
    assert_eq!(rig.words[&StoreId(7)], [epoch(4), epoch(2)]);
}

#[test]
fn a_slot_needs_what_was_dirty_in_two_epochs() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.commit(1);
    rig.dirty = set(&[1]);
    rig.commit(2);
    rig.dirty = set(&[5]);
    rig.log.clear();
    rig.commit(3);
    assert_eq!(rig.sent(), [(StoreId(7), Slot::A, vec![1, 5])]);
}

/// Rounds are for programs that change less in a round than was sent in it.
#[test]
fn where_a_round_was_of_no_use_there_is_none_in_the_next_epochs() {
    let rounds = |rig: &mut Rig, n: u64| {
        rig.log.clear();
        rig.commit(n);
        rig.sent().len() - 1
    };
    let mut rig = Rig::new(policy(1, 1), &[1]);
    rig.busy = PageSet::full(CHUNKS);
    assert_eq!(rounds(&mut rig, 1), 1, "one of two, as it was of no use");
    for n in 2..9 {
        assert_eq!(rounds(&mut rig, n), 0, "epoch {n}");
    }
    assert_eq!(rounds(&mut rig, 9), 1, "it is tried again");
    for n in 10..17 {
        assert_eq!(rounds(&mut rig, n), 0, "epoch {n}");
    }
    // From here on it changes the same few each time: what it has changed before is sent ahead, then those alone are left.
    rig.busy = set(&[0, 1, 2, 3]);
    assert_eq!([17, 18, 19].map(|n| rounds(&mut rig, n)), [2, 1, 0]);
}

#[test]
fn what_an_epoch_that_was_given_up_has_sent_is_not_sent_again() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.commit(1);
    rig.commit(2);
    rig.dirty = set(&[1, 2, 3]);
    rig.tell(Word::Begin(epoch(3)));
    let seal = rig.run_until(|action| matches!(action, Action::Seal(..))).unwrap();
    rig.tell(Word::Abort(epoch(3)));
    rig.dirty = set(&[3]);
    rig.log.clear();
    // Not before the writer knows what has become of what is under way.
    rig.tell(Word::Begin(epoch(4)));
    rig.run();
    assert_eq!(names(&rig.log), ["given up"]);
    rig.act(seal);
    rig.run();
    assert_eq!(rig.sent(), [(StoreId(7), Slot::A, vec![3])]);
}

#[test]
fn a_store_that_is_lost_in_a_round_is_replaced_by_one_that_gets_everything() {
    let mut rig = Rig::new(policy(2, 2), &[7, 8, 9]);
    rig.commit(1);
    rig.dirty = set(&[1, 2, 3]);
    rig.log.clear();
    rig.tell(Word::Begin(epoch(2)));
    rig.run_until(|action| matches!(action, Action::Send(..)));
    let lost = rig.incarnation(7);
    rig.writer.event(Event::Lost(lost), NOW);
    let other = rig.incarnation(8);
    rig.run();
    rig.writer.event(Event::Done(other), NOW);
    rig.run();
    assert_eq!(rig.writer.stage(), Stage::Complete);
    assert_eq!(rig.words[&StoreId(9)], [epoch(2), Epoch::NONE]);
    assert_eq!(rig.sent().last(), Some(&(StoreId(9), Slot::A, (0..CHUNKS).collect())));
}

#[test]
fn a_store_that_is_lost_in_the_pause_is_done_without_or_the_epoch_is_given_up() {
    for minimum in [1, 2] {
        let mut rig = Rig::new(policy(2, minimum), &[7, 8, 9]);
        rig.commit(1);
        rig.tell(Word::Begin(epoch(2)));
        rig.run_until(|action| matches!(action, Action::Pause));
        rig.log.clear();
        rig.writer.event(Event::Lost(rig.incarnation(7)), NOW);
        if minimum == 1 {
            rig.act(Action::Pause);
        }
        rig.run();
        let done = ["disconnect", "resume", "seal", "word"];
        let given_up = ["disconnect", "resume", "given up"];
        assert_eq!(names(&rig.log), if minimum == 1 { &done[..] } else { &given_up });
        assert_eq!(rig.writer.committed(), epoch(1));
    }
}

#[test]
fn an_epoch_in_whose_pause_something_moved_is_never_sealed() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.commit(1);
    rig.tell(Word::Begin(epoch(2)));
    rig.run_until(|action| matches!(action, Action::Resume));
    rig.log.clear();
    rig.writer.event(Event::Moved("a peer went on".to_owned()), NOW);
    rig.run();
    assert!(!rig.log.iter().any(|action| matches!(action, Action::Word(..))), "{:?}", rig.log);
    let reason = Reason::Unable("a peer went on".to_owned());
    assert!(rig.log.contains(&Action::GivenUp(epoch(2), reason)), "{:?}", rig.log);
    assert_eq!(rig.words[&StoreId(7)], [epoch(1), Epoch::NONE]);
    // Of an epoch that was given up in the pause it says nothing to the next one.
    rig.tell(Word::Begin(epoch(3)));
    rig.run_until(|action| matches!(action, Action::Pause));
    rig.tell(Word::Abort(epoch(3)));
    rig.run_until(|action| matches!(action, Action::Resume));
    rig.tell(Word::Begin(epoch(4)));
    rig.writer.event(Event::Moved("a peer went on".to_owned()), NOW);
    rig.writer.event(Event::Dirty(set(&[])), NOW);
    rig.run();
    assert_eq!((rig.writer.epoch(), rig.writer.stage()), (epoch(4), Stage::Complete));
}

#[test]
fn a_store_that_refuses_is_not_asked_again_in_the_same_epoch() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.tell(Word::Begin(epoch(1)));
    let Some(Action::Ask(by, ..)) = rig.run_until(|it| matches!(it, Action::Ask(..))) else {
        panic!("nothing is asked");
    };
    rig.writer.event(Event::Answer(by, Answer::refused("no room")), NOW);
    rig.run();
    let Some(Action::GivenUp(_, reason)) =
        rig.log.iter().find(|action| matches!(action, Action::GivenUp(..)))
    else {
        panic!("{:?}", rig.log);
    };
    assert_eq!(reason.to_string(), "0 stores are left: no room");
}

#[test]
fn a_late_answer_of_tracking_is_marked_and_not_taken_for_that_of_the_pause() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.commit(1);
    rig.tell(Word::Begin(epoch(2)));
    rig.run_until(|action| matches!(action, Action::Collect));
    rig.tell(Word::Abort(epoch(2)));
    rig.tell(Word::Begin(epoch(3)));
    rig.run_until(|action| matches!(action, Action::Collect));
    // The slot has everything to get, so this would begin a round.
    rig.log.clear();
    rig.writer.event(Event::Dirty(set(&[4])), NOW);
    assert_eq!(rig.writer.stage(), Stage::Collect);
    rig.writer.event(Event::Dirty(set(&[])), NOW);
    assert_eq!(rig.writer.stage(), Stage::Round);
    rig.run();
    assert!(rig.sent()[0].2.contains(&4));
}

#[test]
fn who_is_complete_waits_for_a_decision_of_the_newest_decider() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.tell(Word::Begin(epoch(1)));
    rig.run();
    let (late, to) = (NOW + Duration::from_secs(1_000_000), Incarnation::of_life(1));
    assert!(matches!(rig.writer.poll(late), Some(Action::Report(_))));
    rig.writer.event(Event::Lost(rig.incarnation(7)), late);
    assert_eq!(rig.writer.stage(), Stage::Complete);
    rig.writer.event(Event::Order(Order { term: Term(3), to, word: Word::Ask }), late);
    rig.writer.event(Event::Order(Order { term: Term(2), to, word: Word::Abort(epoch(1)) }), late);
    assert_eq!(rig.writer.stage(), Stage::Complete);
    rig.writer.event(Event::Order(Order { term: Term(3), to, word: Word::Commit(epoch(1)) }), late);
    rig.run();
    assert!(rig.log.contains(&Action::Committed(epoch(1), 0)));
}

#[test]
fn a_new_life_does_not_listen_to_what_is_said_to_another_or_by_an_older_decider() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    let (life, limits) = (Incarnation::of_life(2), WriterLimits::default());
    rig.writer = Writer::new((CHUNKS, 64), life, Term(2), None, policy(1, 1), limits);
    let (older, other) = ((Term(1), life), (Term(3), Incarnation::of_life(1)));
    for ((term, to), stage) in
        [(older, Stage::Idle), (other, Stage::Idle), ((Term(3), life), Stage::Gather)]
    {
        let word = Word::Begin(epoch(1));
        rig.writer.event(Event::Order(Order { term, to, word }), NOW);
        assert_eq!(rig.writer.stage(), stage);
    }
}

#[test]
fn an_epoch_that_takes_too_long_is_given_up_and_what_hangs_is_let_go() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.tell(Word::Begin(epoch(1)));
    rig.run_until(|action| matches!(action, Action::Send(..)));
    let at = rig.writer.wake_at().unwrap();
    rig.log.clear();
    while let Some(action) = rig.writer.poll(at + WriterLimits::default().epoch) {
        rig.log.push(action);
    }
    assert_eq!(names(&rig.log), ["disconnect", "given up"]);
    rig.tell(Word::Begin(epoch(1)));
    assert_eq!(rig.writer.stage(), Stage::Idle, "a number is used once");
    rig.commit(2);
}

#[test]
fn what_was_restored_from_a_slot_is_not_sent_to_it() {
    let origin = Origin { epoch: epoch(4), store: StoreId(7), slot: Slot::B };
    let mut rig = Rig::new(policy(1, 1), &[7]);
    let life = Incarnation::of_life(1);
    rig.writer =
        Writer::new((CHUNKS, 64), life, TERM, Some(origin), policy(1, 1), WriterLimits::default());
    rig.words.insert(StoreId(7), [epoch(3), epoch(4)]);
    rig.dirty = set(&[2]);
    rig.commit(5);
    rig.dirty = set(&[6]);
    rig.commit(6);
    let all = (0..CHUNKS).collect();
    assert_eq!(rig.sent(), [(StoreId(7), Slot::A, all), (StoreId(7), Slot::B, vec![2, 6])]);
}

#[test]
fn a_writer_that_was_fenced_does_nothing_more() {
    let mut rig = Rig::new(policy(1, 1), &[7]);
    rig.tell(Word::Begin(epoch(1)));
    let Some(Action::Ask(by, ..)) = rig.run_until(|it| matches!(it, Action::Ask(..))) else {
        panic!("nothing is asked");
    };
    let newer = Incarnation::of_life(2);
    rig.writer.event(Event::Answer(by, Answer::Stale(newer)), NOW);
    assert_eq!(rig.writer.poll(NOW), Some(Action::Fenced(newer)));
    rig.tell(Word::Begin(epoch(2)));
    assert_eq!(rig.writer.poll(NOW), None);
    assert_eq!(rig.writer.wake_at(), None);
}
