//! The decider.

use super::super::*;
use super::{NOW, epoch};

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
    Decider::new(
        Term(term),
        [1, 2].map(|n| (Member(n), Incarnation(1))),
        NOW,
        DeciderLimits::default(),
    )
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
    let ghost = Report { incarnation: Incarnation(0), ..standing(1, 9, Some((1, true)), 0) };
    it.report(Member(2), ghost, NOW); // Told by an earlier life.
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
fn where_nobody_has_to_hear_of_it_the_next_epoch_may_begin_at_once() {
    let mut it = decider(1);
    (1..=2).for_each(|n| it.report(Member(n), standing(1, 1, None, 0), NOW));
    it.start(NOW).unwrap();
    (1..=2).for_each(|n| {
        let gave_up = Report { largest: epoch(1), ..standing(1, 2, None, 0) };
        it.report(Member(n), gave_up, NOW);
    });
    assert_eq!(it.start(NOW), Some(epoch(2)));
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
    assert_eq!(new.known_by([Member(1)]), None);
    (1..=2).for_each(|n| old.report(Member(n), standing(1, 1, None, 0), NOW));
    (1..=2).for_each(|n| new.report(Member(n), standing(2, 1, None, 0), NOW));
    assert_eq!(new.known_by([Member(1), Member(2)]), Some(Epoch::NONE));
    let (one, other) = (old.start(NOW).unwrap(), new.start(NOW).unwrap());
    assert_eq!((one.count(), other.count()), (1, 1));
    assert!(one < other);
}
