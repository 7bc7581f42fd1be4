//! The store.

use super::super::*;
use super::epoch;
use std::collections::BTreeSet;

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
fn who_was_claimed_where_there_was_nothing_is_not_let_in_later() {
    let (mut store, mut shelf) = (Compartments::new(100), Shelf::default());
    let claim = Request::Claim { incarnation: Incarnation(2) };
    assert_eq!(store.handle(ONE, claim, &mut shelf), Answer::Told(None));
    assert_eq!(store.handle(ONE, grant(1), &mut shelf), Answer::Stale(Incarnation(2)));
    assert!(matches!(store.handle(ONE, grant(2), &mut shelf), Answer::Granted(_)));
    let release = Request::Release { incarnation: Incarnation(3) };
    assert_eq!(store.handle(ONE, release, &mut shelf), Answer::Released);
    assert_eq!(store.handle(ONE, grant(2), &mut shelf), Answer::Stale(Incarnation(3)));
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
