//! What is written comes back; increments hold what changed, and stand on what carries them.

use crate::world::{JOB, JOB_NAME, Memory, Process, files, flush, number, read, restored};
use proptest::prelude::*;
use sojourn_snapshot::PAGE;
use sojourn_snapshot::files::{Codec, Directory, Image, Options, Run, jobs, restore, unwatched};
use std::collections::BTreeMap;

fn raw(chain: usize) -> Options {
    Options { codec: Codec::Raw, chain }
}

#[test]
fn an_increment_holds_only_what_changed() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[40 * PAGE, 100]);
    process.noise(0, 0, 30 * PAGE, 1);
    process.noise(1, 0, 100, 2);
    process.memory.windows = b"windows of the first".to_vec();
    let first = flush(&directory, 5, &mut [&mut process], &raw(3)).unwrap();
    assert_eq!((first.base, first.increments, first.stored_chunks), (None, 0, 31));
    let before = process.memory.clone();

    // One chunk changes, one becomes zeros, one is no longer, and one is written as it was.
    process.noise(0, 7 * PAGE + 9, 1, 3);
    process.write(0, 8 * PAGE, &[0; PAGE]);
    process.noise(0, 35 * PAGE, 10, 4);
    let same = process.memory.areas[0].1[9 * PAGE..10 * PAGE].to_vec();
    process.write(0, 9 * PAGE, &same);
    process.memory.windows = b"other windows".to_vec();
    let second = flush(&directory, 6, &mut [&mut process], &raw(3)).unwrap();
    assert_eq!((second.base, second.increments, second.stored_chunks), (Some(5), 1, 3));
    assert!(second.file_bytes < first.file_bytes / 8);

    assert_eq!(restored(&directory, 5, 1).unwrap(), before);
    let mut last = directory.image(6, 1).unwrap();
    assert_eq!(read(&mut last).unwrap(), process.memory);
    // Who goes on from it goes on from its number.
    assert_eq!(last.stamp().epoch, number(6).0);
    let names = [
        "epoch-0000000005.json",
        "epoch-0000000005.process-1.full",
        "epoch-0000000006.json",
        "epoch-0000000006.process-1.inc",
    ];
    assert_eq!(files(&directory), names);
    assert_eq!(directory.last_restorable().unwrap(), 6);

    let diff = directory.diff(5, 6).unwrap();
    assert_eq!((diff.processes[0].chunks, diff.processes[0].of), (3, 41));
    assert!(diff.processes[0].windows);
    let area = &diff.processes[0].areas[..];
    assert_eq!(area.len(), 1);
    assert_eq!(area[0].runs, [Run { first: 7, chunks: 2 }, Run { first: 35, chunks: 1 }]);
    assert!(directory.diff(6, 6).unwrap().processes[0].areas.is_empty());
}

#[test]
fn a_chain_is_bounded_and_compaction_ends_it() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[20 * PAGE]);
    let mut was = BTreeMap::new();
    process.noise(0, 0, 20 * PAGE, 77);
    for epoch in 1..=5 {
        process.noise(0, PAGE * epoch as usize, 8, epoch);
        let flushed = flush(&directory, epoch, &mut [&mut process], &raw(2)).unwrap();
        was.insert(epoch, process.memory.clone());
        // The fourth would be the third on top of the first.
        assert_eq!(flushed.increments, [0, 1, 2, 0, 1][epoch as usize - 1]);
    }
    assert_eq!(directory.manifest(4).unwrap().base, None);
    let compacted = directory.compact(3, Codec::Lz4, &mut unwatched).unwrap();
    assert_eq!((compacted.epoch, compacted.base, compacted.stored_chunks), (3, None, 20));
    assert!(!files(&directory).iter().any(|name| name == "epoch-0000000003.process-1.inc"));
    // One that others stand on, in the middle of a chain.
    process.noise(0, 0, 8, 99);
    flush(&directory, 6, &mut [&mut process], &raw(2)).unwrap();
    was.insert(6, process.memory.clone());
    assert_eq!(directory.show(6).unwrap().members[0].epochs, [6, 5, 4]);
    directory.compact(5, Codec::Raw, &mut unwatched).unwrap();
    assert_eq!(directory.show(6).unwrap().members[0].epochs, [6, 5]);
    for (epoch, memory) in &was {
        assert_eq!(&restored(&directory, *epoch, 1).unwrap(), memory);
        assert!(directory.verify(*epoch, &mut unwatched).unwrap().is_sound());
    }
    // And one that is full stays as it is.
    let before = files(&directory);
    directory.compact(5, Codec::Lz4, &mut unwatched).unwrap();
    assert_eq!(files(&directory), before);
}

#[test]
fn an_increment_stands_only_on_what_carries_it() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[8 * PAGE]);
    process.noise(0, 0, 8 * PAGE, 1);
    flush(&directory, 1, &mut [&mut process], &raw(9)).unwrap();
    // Another history: restored from epoch 1, and epoch 2 is not the one that is in the directory.
    let mut other = process.clone();
    other.noise(0, 0, 8, 5);
    other.slot(2);
    process.noise(0, PAGE, 8, 6);
    flush(&directory, 2, &mut [&mut process], &raw(9)).unwrap();
    other.noise(0, 2 * PAGE, 8, 7);
    let flushed = flush(&directory, 3, &mut [&mut other], &raw(9)).unwrap();
    assert_eq!((flushed.base, flushed.stored_chunks), (None, 8));
    assert_eq!(restored(&directory, 3, 1).unwrap(), other.memory);
    assert_eq!(restored(&directory, 2, 1).unwrap(), process.memory);

    // Other areas.
    let mut third = Process::new(1, &[8 * PAGE, 1]);
    assert_eq!(flush(&directory, 4, &mut [&mut third], &raw(9)).unwrap().base, None);
    // The same areas, but the base is damaged.
    let file = directory.path().join("epoch-0000000004.process-1.full");
    std::fs::write(&file, b"something else").unwrap();
    assert_eq!(flush(&directory, 5, &mut [&mut third], &raw(9)).unwrap().base, None);
    assert_eq!(flush(&directory, 6, &mut [&mut third], &raw(9)).unwrap().base, Some(5));
    assert_eq!(restored(&directory, 6, 1).unwrap(), third.memory);
}

#[test]
fn processes_come_and_go_between_epochs() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut all: Vec<Process> = (1..=3).map(|id| Process::new(id, &[2 * PAGE])).collect();
    let [one, two, three] = &mut all[..] else { unreachable!() };
    for (seed, process) in [&mut *one, &mut *two, &mut *three].into_iter().enumerate() {
        process.noise(0, 0, 2 * PAGE, seed as u64);
    }
    flush(&directory, 1, &mut [&mut *two, &mut *one], &raw(9)).unwrap();
    two.noise(0, 0, 1, 50);
    let flushed = flush(&directory, 2, &mut [&mut *two, &mut *three], &raw(9)).unwrap();
    assert_eq!((flushed.base, flushed.processes, flushed.stored_chunks), (Some(1), 2, 3));
    for process in [(2, two), (3, three)] {
        assert_eq!(restored(&directory, 2, process.0).unwrap(), process.1.memory);
    }
    let error = directory.image(2, 1).unwrap_err();
    assert!(error.to_string().contains("epoch 2 has no process 1"), "{error}");
    let diff = directory.diff(1, 2).unwrap();
    assert_eq!((diff.gone, diff.new), (vec![1], vec![3]));
}

#[test]
fn images_that_are_no_epoch_are_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[PAGE]);
    let refused = |epoch, images: &mut [&mut dyn Image], job: [u8; 16], words: &str| {
        let directory = Directory::create(root.path(), &job).unwrap();
        let error = directory.flush(number(epoch), images, &raw(1), &mut unwatched).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(1, &mut [], JOB, "no process");
    refused(
        2,
        &mut [&mut process.image(1)],
        JOB,
        "process 1 has epoch 1 (term 3), and not epoch 2 (term 3)",
    );
    refused(1, &mut [&mut process.image(1)], [9; 16], "is of job");
    let (mut one, mut two) = (process.image(1), process.image(1));
    refused(1, &mut [&mut one, &mut two], JOB, "twice");
    flush(&directory, 3, &mut [&mut process], &raw(1)).unwrap();
    refused(3, &mut [&mut process.image(3)], JOB, "has epoch 3");
    refused(2, &mut [&mut process.image(2)], JOB, "remove those after it first");
    let long = Options { chain: Options::MAX_CHAIN + 1, ..raw(0) };
    let error = flush(&directory, 4, &mut [&mut process], &long).unwrap_err();
    assert!(error.to_string().contains("at most 63"), "{error}");
    assert_eq!(directory.epochs().unwrap(), [3]);
}

#[test]
fn a_program_whose_regions_differ_is_refused_before_a_byte_is_written() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[PAGE, 50]);
    process.noise(0, 0, PAGE, 1);
    flush(&directory, 1, &mut [&mut process], &raw(1)).unwrap();
    let refused = |sizes: &[(u32, usize)], words: &str| {
        let mut memory: Vec<(u32, Vec<u8>)> =
            sizes.iter().map(|(id, bytes)| (*id, vec![0x55; *bytes])).collect();
        let rooms = memory.iter_mut().map(|(id, room)| (*id, room.as_mut_slice())).collect();
        let mut image = directory.image(1, 1).unwrap();
        let error = restore(&mut image, rooms, &mut |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(memory.iter().all(|(_, room)| room.iter().all(|byte| *byte == 0x55)));
    };
    refused(&[(20, PAGE)], "area 21 is in the snapshot, and not in this program");
    refused(&[(20, PAGE), (21, 51)], "area 21 has 50 bytes in the snapshot, and 51");
    refused(&[(20, PAGE), (21, 50), (22, 1)], "area 22 is in this program");
    refused(&[(20, PAGE), (21, 50), (20, PAGE)], "two rooms for area 20");
    // Work that is told to end ends.
    let mut room = vec![0; PAGE];
    let mut other = [0; 50];
    let rooms = vec![(20, &mut room[..]), (21, &mut other[..])];
    let mut stop = |_, _| Err(sojourn_snapshot::Error::new(libc::ECANCELED, "enough"));
    let error = restore(&mut directory.image(1, 1).unwrap(), rooms, &mut stop).unwrap_err();
    assert_eq!(error.errno(), libc::ECANCELED);
}

#[test]
fn what_is_told_can_be_written_as_json() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(4, &[10 * PAGE]);
    process.write(0, 0, &[7; 5 * PAGE]);
    let options = Options::default();
    flush(&directory, 1, &mut [&mut process], &options).unwrap();
    process.noise(0, 0, 10, 3);
    let flushed = flush(&directory, 2, &mut [&mut process], &options).unwrap();
    assert_eq!(serde_json::to_value(&flushed).unwrap()["increments"], 1);

    let list = serde_json::to_value(directory.list().unwrap()).unwrap();
    assert_eq!(list[0]["stored_chunks"], 5);
    assert_eq!(list[0]["zero_chunks"], 5);
    assert_eq!(list[1]["base"], 1);
    assert_eq!(list[1]["share"], 0.1);
    assert_eq!(list[1]["damaged"], serde_json::Value::Null);
    let show = serde_json::to_value(directory.show(1).unwrap()).unwrap();
    assert_eq!(show["epoch"], 1);
    let extents = &show["members"][0]["extents"][0];
    assert_eq!(extents["codec"], "lz4");
    assert_eq!(extents["bytes"], 5 * PAGE);
    assert!(extents["stored"].as_u64().unwrap() < PAGE as u64);
    let show = serde_json::to_value(directory.show(2).unwrap()).unwrap();
    assert_eq!(show["members"][0]["files"].as_array().unwrap().len(), 2);
    let mut bytes = 0;
    let mut watcher = |progress: &sojourn_snapshot::files::Progress<'_>| {
        assert!(progress.done <= progress.total);
        bytes = bytes.max(progress.total);
        Ok(())
    };
    let verified = directory.verify(2, &mut watcher).unwrap();
    assert_eq!(bytes, 10 * PAGE as u64);
    let verified = serde_json::to_value(verified).unwrap();
    assert_eq!(verified["problems"], serde_json::json!([]));
    assert_eq!(verified["epochs"], serde_json::json!([1, 2]));
    let diff = serde_json::to_value(directory.diff(1, 2).unwrap()).unwrap();
    assert_eq!(diff["processes"][0]["areas"][0]["runs"][0]["chunks"], 1);
    assert_eq!(jobs(root.path()).unwrap(), [JOB]);
    let manifest = std::fs::read_to_string(directory.path().join("epoch-0000000002.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["job"], JOB_NAME);
}

/// One step of a process between two epochs.
#[derive(Clone, Debug)]
enum Step {
    Noise(usize, usize, usize),
    Zeros(usize, usize, usize),
    Windows(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..6000);
    (0..7, place).prop_map(|(kind, (area, at, bytes))| {
        let (area, at) = (area.index(1 << 20), at.index(1 << 20));
        match kind {
            0 => Step::Windows(bytes % 90),
            1 | 2 => Step::Zeros(area, at, bytes),
            _ => Step::Noise(area, at, bytes),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever changes, however it is stored, compacted and pruned: an epoch that is there is what it was.
    #[test]
    fn every_epoch_comes_back_as_it_was(
        sizes in prop::collection::vec(1usize..8 * PAGE, 1..4),
        epochs in prop::collection::vec(
            (prop::collection::vec(step(), 0..5), any::<bool>(), 1u64..4, 0u8..6),
            1..9,
        ),
        chain in 0usize..4,
    ) {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::create(root.path(), &JOB).unwrap();
        let mut process = Process::new(1, &sizes);
        let mut was: BTreeMap<u64, Memory> = BTreeMap::new();
        let mut epoch = 0;
        for (steps, lz4, gap, also) in epochs {
            for (seed, step) in steps.into_iter().enumerate() {
                let place = |area: usize, at: usize, bytes: usize| {
                    let area = area % sizes.len();
                    let at = at % sizes[area];
                    (area, at, bytes.min(sizes[area] - at))
                };
                match step {
                    Step::Noise(area, at, bytes) => {
                        let (area, at, bytes) = place(area, at, bytes);
                        process.noise(area, at, bytes, epoch * 100 + seed as u64);
                    }
                    Step::Zeros(area, at, bytes) => {
                        let (area, at, bytes) = place(area, at, bytes);
                        process.write(area, at, &vec![0; bytes]);
                    }
                    Step::Windows(bytes) => process.memory.windows = vec![bytes as u8; bytes],
                }
            }
            epoch += gap;
            let codec = if lz4 { Codec::Lz4 } else { Codec::Raw };
            // Not every epoch of a process goes to files.
            if also != 5 {
                let options = Options { codec, chain };
                let flushed = flush(&directory, epoch, &mut [&mut process], &options).unwrap();
                prop_assert!(flushed.increments <= chain);
                was.insert(epoch, process.memory.clone());
            } else {
                process.slot(epoch);
            }
            let there = directory.epochs().unwrap();
            if also == 4 {
                let which = there[there.len() / 2];
                directory.compact(which, codec, &mut unwatched).unwrap();
            }
            if also == 3 {
                let keep = sojourn_snapshot::files::Keep { last: 2, every: None };
                directory.prune(&keep, false, &mut unwatched).unwrap();
            }
            for epoch in directory.epochs().unwrap() {
                let mut image = directory.image(epoch, 1).unwrap();
                prop_assert_eq!(&read(&mut image).unwrap(), &was[&epoch]);
                // Chunk by chunk, from the last one.
                let layout = image.layout().clone();
                for index in 0..layout.areas().len() {
                    let own = layout.chunks_of(index);
                    for chunk in own.clone().rev() {
                        let at = (chunk - own.start) * PAGE;
                        let bytes = &was[&epoch].areas[index].1;
                        let bytes = &bytes[at..bytes.len().min(at + PAGE)];
                        let mut room = vec![1; bytes.len()];
                        image.read(chunk..chunk + 1, &mut room).unwrap();
                        prop_assert_eq!(&room[..], bytes);
                    }
                }
            }
        }
        for epoch in directory.epochs().unwrap() {
            let verified = directory.verify(epoch, &mut unwatched).unwrap();
            prop_assert!(verified.is_sound(), "{:?}", verified.problems);
        }
    }
}
