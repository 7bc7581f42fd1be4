//! The recovery.

use super::super::*;
use super::{NOW, epoch};
use std::collections::BTreeSet;

/// A recovery of two processes, of stores that hold this: store, process, words, what is noted.
fn recovery(held: &[(u64, u64, [u64; 2], u64)]) -> Recovery {
    recovery_of(&[1, 2], Scope::Whole, held)
}

fn recovery_of(members: &[u64], scope: Scope, held: &[(u64, u64, [u64; 2], u64)]) -> Recovery {
    let stores: BTreeSet<StoreId> = held.iter().map(|it| StoreId(it.0)).collect();
    let all = members.iter().map(|n| (Member(*n), Incarnation::of_life(2)));
    let mut it = Recovery::new(all, stores.iter().copied(), scope, NOW, RecoveryLimits::default());
    let number = |n: u64| if n == 0 { Epoch::NONE } else { epoch(n) };
    for _ in 0..members.len() * stores.len() {
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
fn one_process_alone_is_restored_from_the_last_committed_epoch_or_not_at_all() {
    let held = [(7, 1, [1, 2], 1)];
    let part = |known| recovery_of(&[1], Scope::Part(epoch(known)), &held);
    assert_eq!(reads(&mut part(1)), [(1, 7, 1)], "2 is complete here, and not with the others");
    assert_eq!(reads(&mut part(2)), [(1, 7, 2)]);
    assert!(matches!(part(3).poll(NOW), Some(Step::Impossible(_))));
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
    let mut it = Recovery::new(members, [StoreId(7)], Scope::Whole, NOW, limits);
    assert!(matches!(it.poll(NOW), Some(Step::Ask(..))));
    assert_eq!(it.poll(NOW), None);
    it.found(Found::Answer(StoreId(7), Member(1), Answer::Wait), NOW);
    assert_eq!(it.wake_at(), Some(NOW + limits.pause));
    let late = NOW + limits.answer;
    let Some(Step::Impossible(missing)) = it.poll(late) else { panic!("it still waits") };
    assert_eq!(missing.silent, [StoreId(7)]);
}
