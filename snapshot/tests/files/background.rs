//! The thread that drains epochs while the program goes on.

use crate::world::{JOB, Process, number, restored};
use sojourn_snapshot::epoch::Epoch;
use sojourn_snapshot::files::{
    Codec, Directory, Drained, Flusher, Image, Keep, Options, Plan, SlotImage,
};
use sojourn_snapshot::image::{Source, WORD_AT};
use sojourn_snapshot::{PAGE, Result};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Far above what anything takes; reached only by failures.
const LONG: Duration = Duration::from_secs(60);

fn plan(every: u64, chain: usize, keep: Option<Keep>) -> Plan {
    Plan { every, options: Options { codec: Codec::Raw, chain }, keep }
}

fn sound(drained: &Drained) {
    drained.flushed.as_ref().unwrap();
    assert!(drained.compacted.as_ref().is_none_or(|it| it.is_ok()));
    assert!(drained.pruned.as_ref().is_none_or(|it| it.is_ok()));
}

#[test]
fn each_nth_epoch_is_drained_compacted_and_pruned() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let keep = Keep { last: 2, every: None };
    let flusher = Flusher::start(directory.clone(), plan(3, 2, Some(keep))).unwrap();
    let mut process = Process::new(1, &[9 * PAGE]);
    let mut was = BTreeMap::new();
    let mut outcomes = Vec::new();
    for epoch in 1..=18u64 {
        process.noise(0, 400 * epoch as usize, 300, epoch);
        let image = process.image(epoch);
        if flusher.wants(number(epoch)) {
            assert!(flusher.offer(number(epoch), vec![Box::new(image)]));
            was.insert(epoch, process.memory.clone());
            assert!(flusher.drained(Instant::now() + LONG));
        }
        // It compacts and prunes by itself; here it is waited for, so that it is idle for the next.
        let deadline = Instant::now() + LONG;
        while epoch % 3 == 0 && outcomes.len() < epoch as usize / 3 {
            assert!(Instant::now() < deadline);
            outcomes.extend(flusher.outcomes());
            std::thread::yield_now();
        }
        while !flusher.wants(Epoch(0)) {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
    assert!(flusher.finish(LONG).is_empty());
    outcomes.iter().for_each(sound);
    let which = |so: fn(&Drained) -> bool| -> Vec<u64> {
        outcomes.iter().filter(|it| so(it)).map(|it| it.epoch.count()).collect()
    };
    assert_eq!(which(|_| true), [3, 6, 9, 12, 15, 18]);
    // 3 ◁ 6 ◁ 9, which is made full; ◁ 12 ◁ 15, which is made full; ◁ 18
    assert_eq!(which(|it| it.compacted.is_some()), [9, 15]);
    assert!(outcomes[1..].iter().all(|it| it.flushed.as_ref().unwrap().base.is_some()));
    assert_eq!(directory.epochs().unwrap(), [15, 18]);
    for epoch in directory.epochs().unwrap() {
        assert_eq!(restored(&directory, epoch, 1).unwrap(), was[&epoch]);
    }
}

/// A slot whose bytes are given out only when the test says so.
struct Gate {
    slot: Arc<Mutex<Vec<u8>>>,
    asked: Sender<usize>,
    go: Mutex<Receiver<()>>,
}

impl Source for Gate {
    fn bytes(&self) -> usize {
        self.slot.lock().unwrap().len()
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        let _ = self.asked.send(at);
        let _ = self.go.lock().unwrap().recv_timeout(LONG);
        self.slot.lock().unwrap().as_slice().read(at, into)
    }
}

/// An image of epoch 1 whose chunks are read when the second of these is sent to.
fn gated(slot: &Arc<Mutex<Vec<u8>>>) -> (SlotImage<Gate>, Receiver<usize>, Sender<()>) {
    let ((asked, hear), (say, go)) = (channel(), channel());
    // The header, the three tables.
    (0..4).for_each(|_| say.send(()).unwrap());
    let gate = Gate { slot: slot.clone(), asked, go: Mutex::new(go) };
    let image = SlotImage::open(gate).unwrap();
    assert_eq!(hear.try_iter().count(), 4);
    (image, hear, say)
}

#[test]
fn a_slot_that_is_begun_anew_while_it_is_drained_is_given_up() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[PAGE]);
    process.noise(0, 0, PAGE, 1);
    let slot = Arc::new(Mutex::new(process.slot(1)));
    let (image, asked, go) = gated(&slot);
    let flusher = Flusher::start(directory.clone(), plan(1, 0, None)).unwrap();
    assert!(flusher.wants(number(1)) && flusher.draining().is_none());
    assert!(flusher.offer(number(1), vec![Box::new(image)]));
    asked.recv_timeout(LONG).unwrap();
    // Meanwhile it is busy, and says with what.
    assert!(!flusher.wants(number(2)));
    assert_eq!(flusher.draining(), Some(number(1)));
    let other: Vec<Box<dyn Image + Send>> = vec![Box::new(process.image(2))];
    assert!(!flusher.offer(number(2), other));
    assert!(!flusher.drained(Instant::now()));
    // The chunk is read as it was, and then the word is gone.
    go.send(()).unwrap();
    assert_eq!(asked.recv_timeout(LONG).unwrap(), WORD_AT);
    slot.lock().unwrap()[WORD_AT..WORD_AT + 8].fill(0);
    go.send(()).unwrap();
    assert!(flusher.drained(Instant::now() + LONG));
    let outcomes = flusher.finish(LONG);
    assert_eq!(outcomes.len(), 1);
    assert_eq!(outcomes[0].flushed.as_ref().unwrap_err().errno(), libc::ENODATA);
    assert!(directory.epochs().unwrap().is_empty());
}

#[test]
fn a_flush_can_be_ended_before_it_is_done() {
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &JOB).unwrap();
    let mut process = Process::new(1, &[PAGE]);
    process.noise(0, 0, PAGE, 1);
    let slot = Arc::new(Mutex::new(process.slot(1)));
    let (image, asked, go) = gated(&slot);
    let flusher = Flusher::start(directory.clone(), plan(1, 0, None)).unwrap();
    assert!(flusher.offer(number(1), vec![Box::new(image)]));
    asked.recv_timeout(LONG).unwrap();
    let ended = std::thread::spawn(move || flusher.finish(Duration::ZERO));
    // Its read comes back at last. (Whether it is told to end before or after that, it ends; and reads no more then.)
    go.send(()).unwrap();
    for _ in 0..3 {
        let _ = go.send(());
    }
    let outcomes = ended.join().unwrap();
    assert_eq!(outcomes.len(), 1);
    match &outcomes[0].flushed {
        Ok(_) => assert_eq!(directory.epochs().unwrap(), [1]),
        Err(error) => {
            assert_eq!(error.errno(), libc::ECANCELED);
            assert!(directory.epochs().unwrap().is_empty());
        }
    }
    let refused = |plan| Flusher::start(directory.clone(), plan).err().unwrap().to_string();
    assert!(refused(plan(0, 0, None)).contains("every 0th"));
    assert!(refused(plan(1, 64, None)).contains("at most 63"));
}
