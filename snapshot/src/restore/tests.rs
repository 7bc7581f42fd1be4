//! A store that is served by a thread of the test: its memory is vandalised, and its writers change.

use super::copy::Copy;
use super::lazy::Lazy;
use crate::epoch::{Answer, Epoch, Incarnation, Member, Request, Slot};
use crate::image;
use crate::memory::Mapping;
use crate::session::{Options, Program, Session, StoreAt};
use crate::store::{self, Client, Granted, Store, StoreConfig};
use crate::{Area, Layout, PAGE, Result};
use nix::sys::eventfd::EventFd;
use sojourn_fabric::abi::access;
use sojourn_fabric::names::{Endpoint, JobKey, PrivateDir};
use sojourn_fabric::virt::{MemoryRegion, Op, ProtectionDomain, Remote};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MEMBER: Member = Member(1);

/// A store that serves until it is dropped.
struct Served {
    at: StoreAt,
    key: JobKey,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    _dir: PrivateDir,
}

impl Served {
    fn new() -> Served {
        let dir = PrivateDir::create().unwrap();
        let key = JobKey::generate().unwrap();
        let at = Endpoint::Unix(dir.path().join("store"));
        let config = StoreConfig {
            device: "soft0".into(),
            bytes: 16 << 20,
            listen: at.clone(),
            key: key.clone(),
            name: "a".into(),
            domain: "a".into(),
        };
        let mut store = Store::open(config).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || store.serve(&[stopped.as_fd()]).unwrap());
        let at = StoreAt { id: crate::epoch::StoreId(1), at };
        Served { at, key, stop, thread: Some(thread), _dir: dir }
    }

    fn client(&self) -> Client {
        Client::connect(&self.at.at, &self.key, Instant::now() + Duration::from_secs(30)).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

/// One who has been granted what somebody else has written, and who writes single bytes.
struct Vandal {
    granted: Granted<()>,
    room: MemoryRegion,
    _pd: ProtectionDomain,
    _client: Client,
}

impl Vandal {
    fn new(store: &Served, life: u32, bytes: u64) -> Vandal {
        let mut client = store.client();
        let pd = store::device("soft0").unwrap().alloc_pd().unwrap();
        let incarnation = Incarnation::of_life(life);
        let request = Request::Grant { incarnation, bytes, committed: Epoch::NONE };
        let granted = loop {
            match client.grant(&pd, 1, MEMBER, request).unwrap() {
                Ok(granted) => break granted,
                Err(answer) => assert_eq!(answer, Answer::Wait),
            }
        };
        let room = pd.register(PAGE, access::LOCAL_WRITE).unwrap();
        Vandal { granted, room, _pd: pd, _client: client }
    }

    fn remote(&self, slot: Slot, at: usize) -> Remote {
        self.granted.slots[slot.index()].offset(at as u64)
    }

    fn write(&mut self, slot: Slot, at: usize, byte: u8) -> Result<()> {
        self.room.write(0, &[byte]);
        let (to, local) = (Op::Write(self.remote(slot, at)), self.room.slice(0..1));
        self.granted.lanes[0].post(to, local, (), &mut |()| {})?;
        self.granted.lanes[0].drain(&mut |()| {})
    }

    fn read(&mut self, slot: Slot, at: usize) -> u8 {
        let (from, local) = (Op::Read(self.remote(slot, at)), self.room.slice(0..1));
        self.granted.lanes[0].post(from, local, (), &mut |()| {}).unwrap();
        self.granted.lanes[0].drain(&mut |()| {}).unwrap();
        let mut byte = [0];
        self.room.read(0, &mut byte);
        byte[0]
    }
}

/// A program that never changes after its first epoch.
struct Still(Vec<Range<usize>>);

impl Program for Still {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.0.drain(..).for_each(dirty);
        Ok(())
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        Ok(b"the windows".to_vec())
    }

    fn resume(&mut self) -> Result<()> {
        Ok(())
    }
}

fn layout(areas: &[Vec<u8>]) -> Layout {
    let area = |(i, bytes): (usize, &Vec<u8>)| Area {
        id: i as u32 + 1,
        addr: bytes.as_ptr() as usize,
        bytes: bytes.len(),
    };
    Layout::new(areas.iter().enumerate().map(area)).unwrap()
}

/// Writes one epoch of two areas, of which one page is zeros, and returns what is in them and the session's bytes.
fn one_epoch(store: &Served) -> (Vec<Vec<u8>>, u64) {
    let noise = |bytes: usize| (0..bytes).map(|i| (i * i % 251) as u8 | 1).collect::<Vec<u8>>();
    let mut areas = vec![noise(PAGE + 100), noise(PAGE)];
    areas.push(vec![0; PAGE]);
    let layout = layout(&areas);
    let mut options = Options::new(store.key.clone(), MEMBER, 1, vec![store.at.clone()]);
    options.windows = 64;
    let bytes = 2 * image::Geometry::of(&layout, options.windows).unwrap().bytes() as u64;
    let mut program = Still(layout.areas().iter().map(Area::range).collect());
    // SAFETY: the memory outlives the session.
    let mut session = unsafe { Session::open(options, layout, None) }.unwrap();
    session.checkpoint(&mut program).unwrap();
    (areas, bytes)
}

#[test]
fn no_byte_of_an_epoch_can_be_changed_so_that_something_else_is_restored() {
    let store = Served::new();
    let (areas, bytes) = one_epoch(&store);
    let mut vandal = Vandal::new(&store, 2, bytes);
    let holding = vandal.granted.holding;
    let slot = holding.slot_of(holding.words[0].max(holding.words[1])).unwrap();
    let mut copy = Copy::open("soft0", &store.key, &store.at, MEMBER, slot, 1).unwrap();
    let (stamp, windows) = (*copy.slot().stamp(), copy.slot().windows().to_vec());
    let fresh: Vec<Vec<u8>> = areas.iter().map(|area| vec![0; area.len()]).collect();
    let to = layout(&fresh);
    let (mut refused, mut same) = (0, 0);
    for at in 0..bytes as usize / 2 {
        let was = vandal.read(slot, at);
        vandal.write(slot, at, was ^ (1 << (at % 8))).unwrap();
        // SAFETY: memory that nobody else uses.
        match copy.again().and_then(|()| unsafe { copy.read(&to, false) }) {
            Err(_) => refused += 1,
            Ok(_) => {
                same += 1;
                assert!(fresh == areas, "byte {at:#x}");
                assert_eq!((copy.slot().stamp(), copy.slot().windows()), (&stamp, &windows[..]));
            }
        }
        vandal.write(slot, at, was).unwrap();
    }
    // Header, entries, windows and data; the rest is between them and belongs to nothing.
    assert!(refused > PAGE + 2 * PAGE + 100 && same > 2 * PAGE, "{refused} refused, {same} same");
    copy.again().unwrap();
    // SAFETY: as above.
    unsafe { copy.read(&to, false) }.unwrap();
    assert!(fresh == areas);
}

#[test]
fn nothing_of_an_older_life_lands_once_a_newer_one_is_granted() {
    let store = Served::new();
    let bytes = 8 * PAGE as u64;
    let mut old = Vandal::new(&store, 1, bytes);
    old.write(Slot::A, 5, 11).unwrap();
    let mut new = Vandal::new(&store, 2, bytes);
    assert_eq!(new.read(Slot::A, 5), 11, "what was there stays");
    let key = |vandal: &Vandal| vandal.granted.slots[0].rkey;
    assert_ne!(key(&old), key(&new));
    assert!(old.write(Slot::A, 5, 12).is_err());
    assert_eq!(new.read(Slot::A, 5), 11);

    // Nor does a newer one that claims it for reading leave it to the one before.
    let mut client = store.client();
    let incarnation = Incarnation::of_life(3);
    while client.request(MEMBER, Request::Claim { incarnation }).unwrap() == Answer::Wait {}
    assert!(new.write(Slot::A, 5, 13).is_err());
}

#[test]
fn a_writer_reaches_no_compartment_but_its_own_and_a_reader_writes_nowhere() {
    let store = Served::new();
    let bytes = 8 * PAGE as u64;
    let mut one = Vandal::new(&store, 1, bytes);
    let mut client = store.client();
    let pd = store::device("soft0").unwrap().alloc_pd().unwrap();
    let incarnation = Incarnation::of_life(1);
    let request = Request::Grant { incarnation, bytes, committed: Epoch::NONE };
    let other = client.grant::<()>(&pd, 1, Member(2), request).unwrap().ok().unwrap();
    let own = std::mem::replace(&mut one.granted.slots, other.slots);
    assert!(one.write(Slot::A, 0, 1).is_err(), "it has another's address and key");
    one.granted.slots = own;

    let mut reader = client.read::<()>(&pd, 1, MEMBER).unwrap();
    let room = pd.register(PAGE, access::LOCAL_WRITE).unwrap();
    let lane = &mut reader.lanes[0];
    lane.post(Op::Read(reader.slots[0]), room.slice(0..8), (), &mut |()| {}).unwrap();
    lane.drain(&mut |()| {}).unwrap();
    lane.post(Op::Write(reader.slots[0]), room.slice(0..8), (), &mut |()| {}).unwrap();
    assert!(lane.drain(&mut |()| {}).is_err());
}

/// Two areas of which one begins and ends at pages and the other does neither, in one mapping.
fn lazy_layout(mapping: &Mapping) -> Layout {
    let base = mapping.base().as_ptr() as usize;
    Layout::new([
        Area { id: 1, addr: base, bytes: LAZY - 7 },
        Area { id: 2, addr: base + LAZY + 50, bytes: 3 * PAGE },
    ])
    .unwrap()
}

/// Bytes of the first area, almost.
const LAZY: usize = 700 * PAGE;

fn lazy_byte(at: usize) -> u8 {
    // A run of zero pages among the others.
    if (300..310).contains(&(at / PAGE)) { 0 } else { (at / PAGE * 7 + at) as u8 | 1 }
}

fn lazy_epoch(store: &Served) -> u64 {
    let mapping = Mapping::new(LAZY + 5 * PAGE).unwrap();
    let layout = lazy_layout(&mapping);
    for at in 0..mapping.length() {
        // SAFETY: within the mapping, which nobody else uses yet.
        unsafe { mapping.base().as_ptr().add(at).write(lazy_byte(at)) };
    }
    let mut options = Options::new(store.key.clone(), MEMBER, 1, vec![store.at.clone()]);
    options.windows = 64;
    let bytes = 2 * image::Geometry::of(&layout, options.windows).unwrap().bytes() as u64;
    let mut program = Still(layout.areas().iter().map(Area::range).collect());
    // SAFETY: the memory outlives the session.
    unsafe { Session::open(options, layout, None) }.unwrap().checkpoint(&mut program).unwrap();
    bytes
}

/// What is at an offset of the mapping, as a program sees it.
fn touch(mapping: &Mapping, at: usize) -> u8 {
    // SAFETY: within the mapping; filled in, if it has to be, before the load returns.
    unsafe { mapping.base().as_ptr().add(at).read_volatile() }
}

fn begin(
    store: &Served,
    mapping: &Mapping,
    failed: impl FnOnce(&crate::Error) + Send + 'static,
) -> Result<Lazy> {
    let copy = Copy::open("soft0", &store.key, &store.at, MEMBER, Slot::A, 1)?;
    // SAFETY: memory that nobody else uses yet.
    unsafe { Lazy::begin(vec![copy], &lazy_layout(mapping), failed) }
}

#[test]
fn memory_that_is_restored_lazily_is_what_it_was_wherever_it_is_touched_first() {
    let store = Served::new();
    lazy_epoch(&store);
    let mapping = Mapping::new(LAZY + 5 * PAGE).unwrap();
    let lazy = match begin(&store, &mapping, |error| panic!("{error}")) {
        Err(error) if error.errno() == libc::EOPNOTSUPP => {
            println!("skipped: {error}");
            return;
        }
        lazy => lazy.unwrap(),
    };
    for at in [LAZY - 8, 650 * PAGE, 305 * PAGE + 1, 77, LAZY + 50, LAZY + 50 + 3 * PAGE - 1] {
        assert_eq!(touch(&mapping, at), lazy_byte(at), "at {at:#x}");
    }
    let report = lazy.finish().unwrap();
    assert_eq!(report.bytes as usize, (LAZY / PAGE - 1 - 10) * PAGE);
    for at in (0..LAZY - 7).chain(LAZY + 50..LAZY + 50 + 3 * PAGE) {
        assert_eq!(touch(&mapping, at), lazy_byte(at), "at {at:#x}");
    }
}

#[test]
fn a_chunk_that_is_damaged_is_never_seen_and_the_program_is_told() {
    let store = Served::new();
    let bytes = lazy_epoch(&store);
    let mut vandal = Vandal::new(&store, 2, bytes);
    // The last whole page of the first area.
    let at = bytes as usize / 2 - 5 * PAGE + 9;
    let was = vandal.read(Slot::A, at);
    vandal.write(Slot::A, at, was ^ 4).unwrap();
    let mapping = Mapping::new(LAZY + 5 * PAGE).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let lazy = match begin(&store, &mapping, move |error| tell.send(error.to_string()).unwrap()) {
        Err(error) if error.errno() == libc::EOPNOTSUPP => {
            println!("skipped: {error}");
            return;
        }
        lazy => lazy.unwrap(),
    };
    assert_eq!(touch(&mapping, 5), lazy_byte(5));
    let error = lazy.finish().unwrap_err();
    assert_eq!(error.errno(), libc::EBADMSG);
    assert!(error.to_string().contains("chunk 698 of area 1"), "{error}");
    assert_eq!(told.recv().unwrap(), error.to_string());
}

/// Promise: what is drained from a store by RDMA READ is the committed epoch, and one that is begun anew meanwhile
/// is given up and leaves no epoch in the directory.
#[test]
fn an_epoch_is_drained_from_a_store_whole_or_not_at_all() {
    use crate::files::{Directory, Flusher, Options as Flush, Plan, restore, unwatched};
    let store = Served::new();
    let (areas, bytes) = one_epoch(&store);
    let root = tempfile::tempdir().unwrap();
    let directory = Directory::create(root.path(), &[0; 16]).unwrap();
    let first = Epoch::NONE.after(crate::epoch::Term(1));
    let open = |epoch| {
        super::images("soft0", &store.key, std::slice::from_ref(&store.at), &[MEMBER], epoch)
    };
    // Its writer begins the slot anew once the image is open.
    let mut vandal = Vandal::new(&store, 2, bytes);
    let slot = [Slot::A, Slot::B]
        .into_iter()
        .find(|slot| (0..8).any(|i| vandal.read(*slot, image::WORD_AT + i) != 0))
        .unwrap();
    let mut images = open(first).unwrap();
    let word = vandal.read(slot, image::WORD_AT);
    vandal.write(slot, image::WORD_AT, word ^ 2).unwrap();
    let mut parts: Vec<&mut dyn crate::files::Image> =
        images.iter_mut().map(|image| image.as_mut() as &mut dyn crate::files::Image).collect();
    let flushed = directory.flush(first, &mut parts, &Flush::default(), &mut unwatched);
    assert_eq!(flushed.unwrap_err().errno(), libc::ENODATA);
    assert_eq!(directory.epochs().unwrap(), [0; 0]);
    drop(images);
    vandal.write(slot, image::WORD_AT, word).unwrap();
    // Where no store has it, the process and the store are named.
    let error = open(first.after(crate::epoch::Term(9))).err().unwrap().to_string();
    assert!(error.contains("process 1") && error.contains("store a has epoch 1"), "{error}");

    let plan = Plan { every: 1, options: Flush::default(), keep: None };
    let flusher = Flusher::start(directory.clone(), plan).unwrap();
    let (key, at) = (store.key.clone(), store.at.clone());
    assert!(flusher.offer_with(first, move || super::images(
        "soft0",
        &key,
        &[at],
        &[MEMBER],
        first
    )));
    let drained = flusher.finish(Duration::from_secs(60));
    assert_eq!(drained[0].flushed.as_ref().unwrap().epoch, 1);
    let mut image = directory.image(1, 1).unwrap();
    let mut back: Vec<Vec<u8>> = areas.iter().map(|area| vec![7; area.len()]).collect();
    let rooms = (1..).zip(back.iter_mut().map(Vec::as_mut_slice)).collect();
    restore(&mut image, rooms, &mut |_, _| Ok(())).unwrap();
    assert_eq!(back, areas);
}
