//! What devices write into memory, and no tracker sees.

use crate::job::{Job, Store, device};
use crate::verbs::{Blind, Directory, End, image_of, soon};
use sojourn_fabric::virt::{Op, Process, Remote, SendRequest};
use sojourn_snapshot::epoch::Epoch;
use sojourn_snapshot::host::{Attach, Contexts, Host};
use sojourn_snapshot::session::{Program, Session};
use sojourn_snapshot::{PAGE, Result};
use std::ops::Range;

/// Pages that are snapshot.
const PAGES: usize = 256;
const BYTES: usize = PAGES * PAGE;
/// What is done between two epochs, and epochs.
const DEEDS: usize = 6;
const EPOCHS: u64 = 24;
/// Bytes of an epoch at most: a slot lacks what was done since it was written, which is not longer ago than this; each deed
/// is of one page, or two.
const MOST: u64 = (5 * DEEDS * 2 * PAGE) as u64;

/// Two processes, of which the first is snapshot.
struct Pair {
    own: End,
    peer: End,
    tracker: Blind,
    chance: u64,
}

impl Pair {
    fn new(directory: &Directory, seed: u64) -> (Pair, [Remote; 2]) {
        let own = End::open(&directory.told(0), BYTES);
        let peer = End::open(&directory.told(1), BYTES);
        let remotes = [own.connect(1), peer.connect(0)];
        let tracker = Blind::of(&own.layout());
        (Pair { own, peer, tracker, chance: seed }, remotes)
    }

    fn below(&mut self, n: usize) -> usize {
        self.chance =
            self.chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.chance >> 33) as usize % n
    }

    /// One thing that changes the memory of the first, until it has happened.
    fn deed(&mut self, [theirs, mine]: [Remote; 2]) {
        let (at, long) = (self.below(BYTES - 2 * PAGE), 1 + self.below(PAGE));
        let (kind, value) = (self.below(6), self.below(255) as u8);
        let (word, bytes) = (at / 8 * 8, vec![value; long]);
        self.peer.memory.write(at, &bytes);
        let Pair { own, peer, tracker, .. } = self;
        let (here, there) = (own.memory.slice(at..at + long), peer.memory.slice(at..at + long));
        let result = own.memory.slice(word..word + 8);
        let unwanted = peer.memory.slice(BYTES - 8..BYTES);
        match kind {
            0 => {
                let to = Op::Write(mine.offset(at as u64));
                peer.qp.post_send(&SendRequest::new(0, to, &[there])).unwrap();
                peer.next();
            }
            1 => {
                own.qp.post_recv(0, &[here]).unwrap();
                peer.qp.post_send(&SendRequest::new(0, Op::Send, &[there])).unwrap();
                peer.next();
                own.next();
            }
            2 => {
                let from = Op::Read(theirs.offset(at as u64));
                own.qp.post_send(&SendRequest::new(0, from, &[here])).unwrap();
                own.next();
            }
            3 => {
                let add = Op::FetchAdd(theirs.offset(word as u64), 1);
                own.qp.post_send(&SendRequest::new(0, add, &[result])).unwrap();
                own.next();
            }
            4 => {
                let add = Op::FetchAdd(mine.offset(word as u64), 1 + u64::from(value));
                peer.qp.post_send(&SendRequest::new(0, add, &[unwanted])).unwrap();
                peer.next();
            }
            _ => {
                own.memory.write(at, &bytes);
                let at = own.memory.addr() as usize + at;
                tracker.tell(at..at + long);
            }
        }
    }
}

/// A host of which a suspension can be said to have lapsed.
struct Lapsing {
    host: Host,
    lapses: bool,
}

impl Program for Lapsing {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.host.collect(dirty)
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        self.host.pause()
    }

    fn resume(&mut self) -> Result<()> {
        self.host.resume()?;
        let lapsed = sojourn_snapshot::Error::new(libc::EAGAIN, "a peer went on by itself");
        if self.lapses { Err(lapsed) } else { Ok(()) }
    }

    fn committed(&mut self) {
        self.host.committed();
    }
}

/// What is wrong with the image of a committed epoch, if anything is.
fn wrong(job: &Job, store: &Store, epoch: Epoch, pair: &Pair) -> Option<String> {
    let image = match image_of(job, store, epoch, BYTES) {
        Ok(image) => image,
        // One slot has the page as it was, and the table of both its checksum as it is.
        Err(error) => return Some(error.to_string()),
    };
    let memory = pair.own.bytes();
    let page = image.chunks(PAGE).zip(memory.chunks(PAGE)).position(|(one, other)| one != other);
    page.map(|page| format!("page {page} is not what it was"))
}

/// Runs epochs, and says how many committed ones are not what memory was.
fn epochs(seed: u64, attached: bool) -> usize {
    let job = Job::new();
    let directory = Directory::new(&job, 2);
    let store = job.store("a", "8M");
    let (mut pair, remotes) = Pair::new(&directory, seed);
    let contexts = Contexts::default();
    if attached {
        contexts.attach(&pair.own.context, Attach::Memory).unwrap();
    }
    let host = Host::new(Box::new(pair.tracker.clone()), &contexts);
    let mut program = Lapsing { host, lapses: false };
    let options = job.options(1, &[&store]);
    // SAFETY: the memory outlives the session.
    let mut session = unsafe { Session::open(options, pair.own.layout(), None) }.unwrap();
    let mut bad = 0;
    for epoch in 0..EPOCHS {
        (0..DEEDS).for_each(|_| pair.deed(remotes));
        // What was told to an epoch that is given up is in the next one.
        program.lapses = epoch % 3 == 2;
        if program.lapses {
            let error = session.checkpoint(&mut program).unwrap_err();
            assert_eq!(error.errno(), libc::ECANCELED, "{error}");
            assert!(error.to_string().contains("a peer went on by itself"), "{error}");
            continue;
        }
        let report = session.checkpoint(&mut program).unwrap();
        // Not because everything is sent each time; nor all that was ever told.
        assert!(epoch < 2 || report.bytes <= MOST, "{report:?}");
        let what = wrong(&job, &store, report.epoch, &pair);
        bad += usize::from(what.is_some());
        assert!(!attached || what.is_none(), "seed {seed}, epoch {epoch}: {what:?}");
    }
    bad
}

#[test]
fn what_devices_write_between_epochs_is_in_the_next_though_no_tracker_sees_it() {
    for seed in 0..4 {
        assert_eq!(epochs(seed, true), 0);
    }
    // And it is the log that brings it.
    assert!(epochs(0, false) > 0, "an epoch without it has all the same");
}

#[test]
fn a_pause_that_fails_stops_nothing_and_names_the_context() {
    let job = Job::new();
    let directory = Directory::new(&job, 2);
    let store = job.store("a", "8M");
    let (mut pair, remotes) = Pair::new(&directory, 1);
    let alone = {
        let policy = sojourn_fabric::virt::Policy { tracking: true, ..Default::default() };
        let device = sojourn_fabric::device::open(&device()).unwrap();
        pair.own.process.open_with(device, policy).unwrap()
    };
    let contexts = Contexts::default();
    contexts.attach(&alone, Attach::Windows).unwrap();
    // Its other end is another process's, which is not captured with it.
    contexts.attach(&pair.own.context, Attach::Windows).unwrap();
    let mut host = Host::new(Box::new(pair.tracker.clone()), &contexts);
    // SAFETY: the memory outlives the session.
    let session = unsafe { Session::open(job.options(1, &[&store]), pair.own.layout(), None) };
    let error = session.unwrap().checkpoint(&mut host).unwrap_err();
    assert!(
        error.to_string().contains("does not stand still: context 1 of this program"),
        "{error}"
    );
    // Both go on.
    (0..20).for_each(|_| pair.deed(remotes));
    for context in [&alone, &pair.own.context] {
        context.suspend(soon()).unwrap().end().unwrap();
    }
}

#[test]
fn a_context_whose_device_writes_are_not_tracked_is_refused() {
    let process = Process::standalone().unwrap();
    let policy = sojourn_fabric::virt::Policy::default();
    let device = sojourn_fabric::device::open(&device()).unwrap();
    let context = process.open_with(device, policy).unwrap();
    let error = Contexts::default().attach(&context, Attach::Memory).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP, "{error}");
    assert!(error.to_string().contains("SOJOURN_TRACK_WRITES=1"), "{error}");
}
