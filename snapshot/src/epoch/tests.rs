//! What each machine does, step by step. What they do together is tried by the simulator.

use super::*;
use crate::PageSet;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const NOW: Duration = Duration::from_secs(1);
const CHUNKS: usize = 8;
const TERM: Term = Term(1);

fn set(pages: &[usize]) -> PageSet {
    let mut set = PageSet::new(CHUNKS);
    pages.iter().for_each(|page| set.insert(*page));
    set
}

fn epoch(count: u64) -> Epoch {
    Epoch(count - 1).after(TERM)
}

fn order(word: Word) -> Event {
    Event::Order(Order { term: TERM, word })
}

/// A writer whose stores do what they are asked at once.
struct Rig {
    writer: Writer,
    /// Stores that may be named, in this order.
    spare: Vec<StoreId>,
    at: BTreeMap<Incarnation, StoreId>,
    words: BTreeMap<StoreId, [Epoch; 2]>,
    dirty: PageSet,
    log: Vec<Action>,
}

impl Rig {
    fn new(policy: Policy, stores: &[u64]) -> Self {
        let life = Incarnation::of_life(1);
        Rig {
            writer: Writer::new((CHUNKS, 64), life, None, policy, WriterLimits::default()),
            spare: stores.iter().map(|n| StoreId(*n)).collect(),
            at: BTreeMap::new(),
            words: BTreeMap::new(),
            dirty: set(&[]),
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
                Event::Dirty(std::mem::replace(&mut self.dirty, set(&[])))
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
    let late = NOW + Duration::from_secs(1_000_000);
    assert!(matches!(rig.writer.poll(late), Some(Action::Report(_))));
    rig.writer.event(Event::Lost(rig.incarnation(7)), late);
    assert_eq!(rig.writer.stage(), Stage::Complete);
    rig.writer.event(Event::Order(Order { term: Term(3), word: Word::Ask }), late);
    rig.writer.event(Event::Order(Order { term: Term(2), word: Word::Abort(epoch(1)) }), late);
    assert_eq!(rig.writer.stage(), Stage::Complete);
    rig.writer.event(Event::Order(Order { term: Term(3), word: Word::Commit(epoch(1)) }), late);
    rig.run();
    assert!(rig.log.contains(&Action::Committed(epoch(1), 0)));
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
    let life = Incarnation::of_life(2);
    rig.writer =
        Writer::new((CHUNKS, 64), life, Some(origin), policy(1, 1), WriterLimits::default());
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

/// A store's memory and queue pairs, for one process.
#[derive(Default)]
struct Shelf {
    words: [Epoch; 2],
    slow: BTreeSet<Incarnation>,
    fenced: Vec<Incarnation>,
    made: u32,
    damaged: bool,
}

impl Room for Shelf {
    fn make(&mut self, _: Member, _: u64) -> Result<(), String> {
        self.made += 1;
        Ok(())
    }
    fn fence(&mut self, _: Member, incarnation: Incarnation) {
        self.fenced.push(incarnation);
    }
    fn is_fenced(&mut self, _: Member, incarnation: Incarnation) -> bool {
        !self.slow.contains(&incarnation)
    }
    fn word(&self, _: Member, slot: Slot) -> Epoch {
        self.words[slot.index()]
    }
    fn verify(&mut self, _: Member, _: Slot) -> Option<Result<(), String>> {
        Some(if self.damaged { Err("chunk 3".to_owned()) } else { Ok(()) })
    }
    fn free(&mut self, _: Member) {
        self.made -= 1;
    }
}

const ONE: Member = Member(1);

fn grant(n: u64) -> Request {
    Request::Grant { incarnation: Incarnation(n), bytes: 64, committed: Epoch::NONE }
}

#[test]
fn an_older_incarnation_is_past_its_barrier_before_anybody_else_is_told_or_let_in() {
    let (mut store, mut shelf) = (Compartments::new(100), Shelf::default());
    assert!(matches!(store.handle(ONE, grant(1), &mut shelf), Answer::Granted(_)));
    assert!(matches!(store.handle(ONE, grant(1), &mut shelf), Answer::Granted(_)));
    shelf.slow.insert(Incarnation(1));
    let claim = |n| Request::Claim { incarnation: Incarnation(n) };
    for _ in 0..2 {
        assert_eq!(store.handle(ONE, claim(2), &mut shelf), Answer::Wait);
        assert_eq!(store.handle(ONE, grant(1), &mut shelf), Answer::Stale(Incarnation(2)));
    }
    assert_eq!(store.handle(ONE, grant(3), &mut shelf), Answer::Wait);
    assert_eq!(store.handle(ONE, claim(2), &mut shelf), Answer::Stale(Incarnation(3)));
    shelf.slow.clear();
    assert!(matches!(store.handle(ONE, grant(3), &mut shelf), Answer::Granted(_)));
    assert_eq!(shelf.fenced, [Incarnation(1)]);
    assert!(matches!(store.handle(ONE, claim(4), &mut shelf), Answer::Told(Some(_))));
    assert_eq!(shelf.fenced, [Incarnation(1), Incarnation(3)]);
    assert_eq!((shelf.made, store.used()), (1, 64));
}

#[test]
fn a_store_notes_what_is_complete_and_never_what_is_older() {
    let (mut store, mut shelf) = (Compartments::new(100), Shelf::default());
    let incarnation = Incarnation(1);
    store.handle(ONE, grant(1), &mut shelf);
    shelf.words = [epoch(4), epoch(5)];
    let mut note =
        |n| store.handle(ONE, Request::Note { incarnation, epoch: epoch(n) }, &mut shelf);
    assert_eq!(note(5), Answer::Noted(epoch(5)));
    assert_eq!(note(5), Answer::Noted(epoch(5)));
    assert_eq!(note(4), Answer::Noted(epoch(4)));
    assert!(matches!(note(6), Answer::Refused(why) if why.contains("epoch 6")));
    assert_eq!(store.holding(ONE, &shelf).unwrap().committed, epoch(5));
    let check = Request::Check { incarnation, epoch: epoch(5) };
    assert_eq!(store.handle(ONE, check, &mut shelf), Answer::Checked(epoch(5)));
    shelf.damaged = true;
    assert_eq!(store.handle(ONE, check, &mut shelf), Answer::refused("chunk 3"));
    assert_eq!(store.slots_of(&[ONE], epoch(5), &shelf), Some(vec![Slot::B]));
    assert_eq!(store.slots_of(&[ONE, Member(2)], epoch(5), &shelf), None);
}

#[test]
fn a_store_has_a_budget_and_gets_back_what_is_released() {
    let (mut store, mut shelf) = (Compartments::new(100), Shelf::default());
    store.handle(ONE, grant(1), &mut shelf);
    let two = Member(2);
    let refused = store.handle(two, grant(1), &mut shelf);
    assert_eq!(refused, Answer::refused("64 bytes are asked for, and 36 are left in the store"));
    let larger = Request::Grant { incarnation: Incarnation(1), bytes: 65, committed: Epoch::NONE };
    assert!(matches!(store.handle(ONE, larger, &mut shelf), Answer::Refused(_)));
    shelf.slow.insert(Incarnation(1));
    let release = |n| Request::Release { incarnation: Incarnation(n) };
    assert_eq!(store.handle(ONE, release(0), &mut shelf), Answer::Stale(Incarnation(1)));
    assert_eq!(store.handle(ONE, release(1), &mut shelf), Answer::Wait);
    assert_eq!(store.handle(two, grant(1), &mut shelf), refused, "what lands late lands here");
    shelf.slow.clear();
    assert_eq!(store.handle(ONE, release(1), &mut shelf), Answer::Released);
    assert_eq!(store.handle(ONE, release(1), &mut shelf), Answer::Released);
    assert!(matches!(store.handle(two, grant(1), &mut shelf), Answer::Granted(_)));
    assert_eq!(store.handle(ONE, Request::Tell, &mut shelf), Answer::Told(None));
}

fn standing(term: u32, serial: u64, open: Option<(u64, bool)>, committed: u64) -> Report {
    let number = |n: u64| if n == 0 { Epoch::NONE } else { epoch(n) };
    let open = open.map(|(n, complete)| Open { epoch: number(n), complete });
    let committed = number(committed);
    let largest = committed.max(open.map_or(Epoch::NONE, |it| it.epoch));
    let incarnation = Incarnation(1);
    Report { term: Term(term), incarnation, serial, largest, committed, open }
}

fn told(decider: &mut Decider) -> Vec<(u64, Word)> {
    let mut all = Vec::new();
    while let Some(ruling) = decider.poll(NOW) {
        if let Ruling::Tell(member, order) = ruling {
            all.push((member.0, order.word));
        }
    }
    all
}

fn decider(term: u32) -> Decider {
    Decider::new(Term(term), [Member(1), Member(2)], NOW, DeciderLimits::default())
}

#[test]
fn an_epoch_is_committed_when_all_are_complete() {
    let mut it = decider(1);
    assert_eq!(told(&mut it), [(1, Word::Ask), (2, Word::Ask)]);
    assert_eq!(it.start(NOW), None);
    it.report(Member(1), standing(1, 1, None, 0), NOW);
    it.report(Member(2), standing(1, 1, None, 0), NOW);
    assert_eq!(it.start(NOW), Some(epoch(1)));
    assert_eq!(it.start(NOW), None);
    assert_eq!(told(&mut it), [(1, Word::Begin(epoch(1))), (2, Word::Begin(epoch(1)))]);
    it.report(Member(1), standing(1, 2, Some((1, true)), 0), NOW);
    it.report(Member(2), standing(1, 3, Some((1, false)), 0), NOW);
    it.report(Member(2), standing(1, 2, Some((1, true)), 0), NOW); // Older than the one before.
    it.report(Member(2), standing(2, 4, Some((1, true)), 0), NOW); // Told to another.
    assert_eq!(told(&mut it), []);
    it.report(Member(2), standing(1, 4, Some((1, true)), 0), NOW);
    assert_eq!(told(&mut it), [(1, Word::Commit(epoch(1))), (2, Word::Commit(epoch(1)))]);
    it.report(Member(1), standing(1, 5, None, 1), NOW);
    assert_eq!(it.start(NOW), None, "one has not heard");
    it.report(Member(2), standing(1, 5, None, 1), NOW);
    assert_eq!(it.start(NOW), Some(epoch(2)));
}

#[test]
fn one_that_gives_up_or_dies_or_is_late_ends_an_epoch_for_all() {
    for how in 0..3 {
        let mut it = decider(1);
        (1..=2).for_each(|n| it.report(Member(n), standing(1, 1, None, 0), NOW));
        it.start(NOW).unwrap();
        it.report(Member(1), standing(1, 2, Some((1, true)), 0), NOW);
        match how {
            0 => it.report(Member(2), Report { largest: epoch(1), ..standing(1, 2, None, 0) }, NOW),
            1 => it.lost(Member(2), NOW),
            _ => {
                let late = it.wake_at().unwrap() + DeciderLimits::default().epoch;
                let decided = Ruling::Decided { epoch: epoch(1), committed: false };
                assert_eq!(it.poll(late), Some(decided));
            }
        }
        let words = told(&mut it);
        assert!(how == 2 || words.contains(&(1, Word::Abort(epoch(1)))), "{words:?}");
        assert!(words.iter().all(|(_, word)| *word == Word::Abort(epoch(1))), "{words:?}");
        assert_eq!(it.committed(), Epoch::NONE);
    }
}

#[test]
fn a_new_decider_finds_out_what_the_old_one_may_have_decided() {
    // What each says, and whether the epoch is committed.
    let cases = [
        ([standing(2, 1, Some((1, true)), 0), standing(2, 1, Some((1, true)), 0)], Some(true)),
        ([standing(2, 1, Some((1, true)), 0), standing(2, 1, None, 1)], Some(true)),
        ([standing(2, 1, Some((1, true)), 0), standing(2, 1, Some((1, false)), 0)], Some(false)),
        ([standing(2, 1, Some((1, true)), 0), standing(2, 1, None, 0)], Some(false)),
        ([standing(2, 1, None, 1), standing(2, 1, None, 1)], None),
    ];
    for (says, committed) in cases {
        let mut it = decider(2);
        told(&mut it);
        it.report(Member(1), says[0], NOW);
        it.report(Member(2), says[1], NOW);
        let decided = committed.map(|committed| Ruling::Decided { epoch: epoch(1), committed });
        assert_eq!(it.poll(NOW), decided, "{says:?}");
    }
}

#[test]
fn a_number_is_dealt_once_whatever_the_decider_has_not_heard() {
    let (mut old, mut new) = (decider(1), decider(2));
    (1..=2).for_each(|n| old.report(Member(n), standing(1, 1, None, 0), NOW));
    (1..=2).for_each(|n| new.report(Member(n), standing(2, 1, None, 0), NOW));
    let (one, other) = (old.start(NOW).unwrap(), new.start(NOW).unwrap());
    assert_eq!((one.count(), other.count()), (1, 1));
    assert!(one < other);
}

/// A recovery of two processes, of stores that hold this: store, process, words, what is noted.
fn recovery(held: &[(u64, u64, [u64; 2], u64)]) -> Recovery {
    let stores: BTreeSet<StoreId> = held.iter().map(|it| StoreId(it.0)).collect();
    let members = [1, 2].map(|n| (Member(n), Incarnation::of_life(2)));
    let mut it =
        Recovery::new(members, stores.iter().copied(), Epoch::NONE, NOW, RecoveryLimits::default());
    let number = |n: u64| if n == 0 { Epoch::NONE } else { epoch(n) };
    for _ in 0..2 * stores.len() {
        let step = it.poll(NOW);
        let Some(Step::Ask(store, member, Request::Claim { incarnation })) = step else {
            panic!("{step:?}")
        };
        let found = held.iter().find(|it| (StoreId(it.0), Member(it.1)) == (store, member));
        let holding = found.map(|(_, _, words, committed)| Holding {
            incarnation,
            bytes: 64,
            committed: number(*committed),
            words: words.map(number),
        });
        it.found(Found::Answer(store, member, Answer::Told(holding)), NOW);
    }
    it
}

fn reads(it: &mut Recovery) -> Vec<(u64, u64, u64)> {
    let mut all = Vec::new();
    while let Some(step) = it.poll(NOW) {
        let Step::Read(member, origin) = step else { panic!("{step:?}") };
        all.push((member.0, origin.store.0, origin.epoch.count()));
    }
    all
}

#[test]
fn the_noted_epoch_is_restored_unless_a_newer_one_is_as_safe() {
    // Both have 2 wherever they have 1.
    let mut it = recovery(&[(7, 1, [1, 2], 1), (8, 2, [1, 2], 1)]);
    assert_eq!(reads(&mut it), [(1, 7, 2), (2, 8, 2)]);
    // Process 2 has 2 on one of two stores.
    let mut it = recovery(&[(7, 1, [1, 2], 1), (8, 2, [1, 2], 1), (9, 2, [1, 0], 1)]);
    assert_eq!(reads(&mut it), [(1, 7, 1), (2, 9, 1)]);
    // One has heard that 2 is committed.
    let mut it = recovery(&[(7, 1, [1, 2], 2), (8, 2, [1, 2], 1), (9, 2, [1, 0], 1)]);
    assert_eq!(reads(&mut it), [(1, 7, 2), (2, 8, 2)]);
    // 2 was committed, and is lost; 1 is still there.
    let mut it = recovery(&[(7, 1, [1, 2], 2), (9, 2, [1, 0], 1)]);
    assert_eq!(reads(&mut it), [(1, 7, 1), (2, 9, 1)]);
}

#[test]
fn a_copy_that_is_damaged_is_replaced_by_another_or_by_another_epoch() {
    let held = [(7, 1, [1, 2], 2), (8, 1, [1, 2], 2), (8, 2, [1, 2], 2)];
    let mut it = recovery(&held);
    assert_eq!(reads(&mut it), [(1, 7, 2), (2, 8, 2)]);
    let origin = |count, store, slot| Origin { epoch: epoch(count), store: StoreId(store), slot };
    it.found(Found::Read(Member(2), origin(2, 8, Slot::B), Ok(())), NOW);
    it.found(Found::Read(Member(1), origin(2, 7, Slot::B), Err("chunk 3".into())), NOW);
    assert_eq!(reads(&mut it), [(1, 8, 2)]);
    it.found(Found::Read(Member(1), origin(2, 8, Slot::B), Err("chunk 4".into())), NOW);
    assert_eq!(reads(&mut it), [(1, 7, 1), (2, 8, 1)], "all are read anew");
    it.found(Found::Read(Member(1), origin(1, 7, Slot::A), Ok(())), NOW);
    it.found(Found::Lost(StoreId(7)), NOW);
    it.found(Found::Read(Member(2), origin(1, 8, Slot::A), Ok(())), NOW);
    let restored = vec![(Member(1), origin(1, 7, Slot::A)), (Member(2), origin(1, 8, Slot::A))];
    assert_eq!(it.poll(NOW), Some(Step::Restored(epoch(1), restored)));
    assert_eq!(it.poll(NOW), None);
    assert_eq!(it.wake_at(), None);
}

#[test]
fn what_is_missing_is_told_by_name() {
    let mut it = recovery(&[(7, 1, [1, 2], 2), (8, 2, [3, 0], 1)]);
    let Some(Step::Impossible(missing)) = it.poll(NOW) else { panic!("something is restored") };
    assert_eq!(missing.lacking().collect::<Vec<_>>(), [Member(2)]);
    assert_eq!(
        missing.to_string(),
        "no epoch can be restored for all processes; epoch 2 (term 1) was committed, and is missing for \
         process 2; process 1: epoch 1 (term 1) on store 7, epoch 2 (term 1) on store 7; process 2: \
         epoch 3 (term 1) on store 8"
    );
}

#[test]
fn a_store_that_does_not_answer_in_time_counts_as_lost() {
    let members = [(Member(1), Incarnation::of_life(2))];
    let limits = RecoveryLimits::default();
    let mut it = Recovery::new(members, [StoreId(7)], Epoch::NONE, NOW, limits);
    assert!(matches!(it.poll(NOW), Some(Step::Ask(..))));
    assert_eq!(it.poll(NOW), None);
    it.found(Found::Answer(StoreId(7), Member(1), Answer::Wait), NOW);
    assert_eq!(it.wake_at(), Some(NOW + limits.pause));
    let late = NOW + limits.answer;
    let Some(Step::Impossible(missing)) = it.poll(late) else { panic!("it still waits") };
    assert_eq!(missing.silent, [StoreId(7)]);
}
