//! What is pruned can be done without.

use crate::world::{JOB, Memory, Process, files, flush, number, read, restored};
use proptest::prelude::*;
use sojourn_snapshot::files::{Codec, Directory, Keep, Options, unwatched};
use std::collections::{BTreeMap, BTreeSet};

/// So many epochs in chains of this length, and what they were.
fn epochs(
    many: u64,
    chain: usize,
) -> (tempfile::TempDir, Directory, Process, BTreeMap<u64, Memory>) {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[9000]);
    let mut was = BTreeMap::new();
    for epoch in 1..=many {
        process.noise(0, epoch as usize * 500 % 8000, 300, epoch);
        let options = Options { codec: Codec::Raw, chain };
        flush(&directory, epoch, &mut [&mut process], &options).unwrap();
        was.insert(epoch, process.memory.clone());
    }
    (root, directory, process, was)
}

#[test]
fn what_a_kept_epoch_stands_on_stays() {
    let (_root, directory, _, was) = epochs(9, 3);
    // 1 ◁ 2 ◁ 3 ◁ 4, 5 ◁ 6 ◁ 7 ◁ 8, 9
    let keep = Keep { last: 2, every: Some(3) };
    let before = files(&directory);
    let trial = directory.prune(&keep, true, &mut unwatched).unwrap();
    assert_eq!(files(&directory), before);
    let pruned = directory.prune(&keep, false, &mut unwatched).unwrap();
    assert_eq!(pruned, trial);
    assert_eq!((&pruned.kept[..], &pruned.needed[..]), (&[3, 6, 8, 9][..], &[1, 2, 5, 7][..]));
    assert_eq!(pruned.removed, [4]);
    assert!(pruned.bytes > 0);
    assert_eq!(files(&directory).len(), before.len() - 2);
    for epoch in directory.epochs().unwrap() {
        assert_eq!(restored(&directory, epoch, 1).unwrap(), was[&epoch]);
    }
    // What was compacted stands on nothing any more.
    directory.compact(8, Codec::Raw, &mut unwatched).unwrap();
    let keep = Keep { last: 2, every: None };
    let pruned = directory.prune(&keep, false, &mut unwatched).unwrap();
    assert_eq!(pruned.removed, [1, 2, 3, 5, 6, 7]);
    assert_eq!(directory.epochs().unwrap(), [8, 9]);
    assert_eq!(restored(&directory, 8, 1).unwrap(), was[&8]);
    let error = directory.prune(&Keep { last: 1, every: Some(0) }, false, &mut unwatched);
    assert!(error.unwrap_err().to_string().contains("every 0th"));
}

#[test]
fn the_last_epoch_that_can_be_restored_is_never_pruned() {
    let (_root, directory, _, was) = epochs(6, 1);
    // 1 ◁ 2, 3 ◁ 4, 5 ◁ 6: without the file of 5 neither 5 nor 6 can be restored.
    std::fs::remove_file(directory.path().join("epoch-0000000005.process-1.full")).unwrap();
    let keep = Keep { last: 0, every: None };
    let pruned = directory.prune(&keep, false, &mut unwatched).unwrap();
    assert_eq!((&pruned.kept[..], &pruned.needed[..]), (&[4][..], &[3][..]));
    assert_eq!(pruned.removed, [1, 2]);
    assert!(pruned.damaged[&6].contains("epoch-0000000005.process-1.full"));
    assert_eq!(directory.epochs().unwrap(), [3, 4, 5, 6]);
    assert_eq!(restored(&directory, 4, 1).unwrap(), was[&4]);
}

#[test]
fn a_job_can_go_on_from_an_earlier_epoch() {
    let (_root, directory, mut process, was) = epochs(6, 2);
    process.memory = was[&3].clone();
    std::fs::write(directory.path().join("epoch-0000000006.json"), b"damaged").unwrap();
    let error = directory.remove_after(7, &mut unwatched).unwrap_err();
    assert!(error.to_string().contains("epoch-0000000007.json"), "{error}");
    assert_eq!(directory.remove_after(3, &mut unwatched).unwrap(), [4, 5, 6]);
    assert_eq!(files(&directory).len(), 6);
    assert_eq!(restored(&directory, 3, 1).unwrap(), was[&3]);
    process.noise(0, 0, 9000, 1);
    flush(&directory, 4, &mut [&mut process], &Options::default()).unwrap();
    assert_eq!(restored(&directory, 4, 1).unwrap(), process.memory);
}

#[test]
fn what_is_open_can_be_read_though_it_is_pruned() {
    let (_root, directory, _, was) = epochs(4, 3);
    let mut image = directory.image(3, 1).unwrap();
    directory.compact(4, Codec::Raw, &mut unwatched).unwrap();
    directory.prune(&Keep { last: 1, every: None }, false, &mut unwatched).unwrap();
    assert_eq!(directory.epochs().unwrap(), [4]);
    assert_eq!(read(&mut image).unwrap(), was[&3]);
}

#[test]
fn who_writes_waits_for_another_and_not_for_ever() {
    let (_root, directory, mut process, _) = epochs(1, 0);
    let hasty = directory.clone().with_patience(std::time::Duration::ZERO);
    let mut other = process.clone();
    let mut image = process.image(2);
    // While an epoch is written.
    let mut tried = false;
    let mut watcher = |_: &sojourn_snapshot::files::Progress<'_>| {
        if !std::mem::replace(&mut tried, true) {
            let error = flush(&hasty, 3, &mut [&mut other], &Options::default()).unwrap_err();
            assert_eq!(error.errno(), libc::EWOULDBLOCK);
            assert!(error.to_string().contains("another process writes to"), "{error}");
            // Who reads does not wait.
            hasty.probe(1).unwrap();
        }
        Ok(())
    };
    directory.flush(number(2), &mut [&mut image], &Options::default(), &mut watcher).unwrap();
    assert!(tried);
    flush(&hasty, 3, &mut [&mut other], &Options::default()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    /// The rule keeps what it says, the last, and what these stand on; and nothing else.
    #[test]
    fn the_rule_is_what_it_says(
        many in 1u64..14,
        chain in 0usize..4,
        last in 0usize..5,
        every in prop::option::of(1u64..6),
        compact in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let (_root, directory, _, was) = epochs(many, chain);
        for index in compact {
            directory.compact(1 + index.index(many as usize) as u64, Codec::Raw, &mut unwatched).unwrap();
        }
        let mut model: BTreeSet<u64> = (1..=many).rev().take(last.max(1)).collect();
        model.extend((1..=many).filter(|epoch| every.is_some_and(|every| epoch % every == 0)));
        for epoch in model.clone() {
            model.extend(&directory.show(epoch).unwrap().members[0].epochs);
        }
        directory.prune(&Keep { last, every }, false, &mut unwatched).unwrap();
        prop_assert_eq!(directory.epochs().unwrap(), model.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(files(&directory).len(), 2 * model.len());
        for epoch in model {
            prop_assert_eq!(&restored(&directory, epoch, 1).unwrap(), &was[&epoch]);
        }
    }
}
