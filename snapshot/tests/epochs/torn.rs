//! The torn page: what a peer WRITEs while it is being sent.
//!
//! Another process fills pages of this one's memory, one after the other and round and round, each with the number of
//! that WRITE, as fast as it goes. An image of one moment has whole pages, and they are those of the first so many
//! WRITEs. Protection of pages and standing threads stop no device: only the peers' ends can.

use crate::job::Job;
use crate::verbs::{Blind, Directory, End, image_of, soon};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::virt::{Op, SendRequest};
use sojourn_snapshot::host::{Attach, Contexts, Host};
use sojourn_snapshot::session::{Program, Session};
use sojourn_snapshot::{Layout, PAGE, Result};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Pages that are written, and those that a WRITE is sent from.
const PAGES: u64 = 512;
const BYTES: usize = PAGES as usize * PAGE;
const DEPTH: u64 = 8;
/// Epochs that all have to be of one moment.
const EPOCHS: usize = 16;
/// Epochs without a suspension, in one of which some page is torn, or not of the same moment as the others. It takes a
/// few, where the peer has a core to itself; more, where it is often not running while memory is sent.
const TRIES: usize = 300;

/// The part of the peer: WRITEs until it is killed.
pub(crate) fn flood() {
    let told = JobEnvironment::read().unwrap().expect("started by a test");
    let end = End::open(&told, DEPTH as usize * PAGE);
    let remote = end.connect(0);
    for n in 1.. {
        if n > DEPTH {
            end.next();
        }
        let at = (n % DEPTH) as usize * PAGE;
        end.memory.write(at, &n.to_le_bytes().repeat(PAGE / 8));
        let to = Op::Write(remote.offset(n % PAGES * PAGE as u64));
        end.qp.post_send(&SendRequest::new(n, to, &[end.memory.slice(at..at + PAGE)])).unwrap();
    }
}

/// The number of the last WRITE in an image, or what is wrong with it.
fn judge(image: &[u8]) -> std::result::Result<u64, String> {
    let words = |page: &[u8]| -> Vec<u64> {
        page.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
    };
    let mut numbers = Vec::new();
    for (page, bytes) in image.chunks(PAGE).enumerate() {
        let words = words(bytes);
        if let Some(other) = words.iter().find(|word| **word != words[0]) {
            return Err(format!("page {page} is torn: it has {} and {other}", words[0]));
        }
        numbers.push(words[0]);
    }
    let last = numbers.iter().copied().max().unwrap_or(0);
    for (page, number) in (0..).zip(&numbers) {
        let wanted = (last + PAGES - page) / PAGES * PAGES + page;
        let wanted = wanted.checked_sub(PAGES).filter(|it| *it > 0).unwrap_or(0);
        if *number != wanted {
            return Err(format!(
                "page {page} is of WRITE {number}, where {last} were executed: not {wanted}"
            ));
        }
    }
    Ok(last)
}

/// What others would do: it knows that everything may have changed, and stops its threads. (It has none.)
struct ThreadsOnly(Layout);

impl Program for ThreadsOnly {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.0.areas().iter().for_each(|area| dirty(area.range()));
        Ok(())
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn resume(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Takes epochs under fire, and hands over what the store has of each until `enough`.
fn under_fire(
    program: impl FnOnce(&End) -> Box<dyn Program>,
    mut enough: impl FnMut(Result<Vec<u8>>) -> bool,
) {
    let job = Job::new();
    let directory = Directory::new(&job, 2);
    let store = job.store("a", "8M");
    let end = End::open(&directory.told(0), BYTES);
    let peer = job.part("flood", 1, &[], &directory.variables(1));
    end.connect(1);
    let mut options = job.options(1, &[&store]);
    // So few that there are rounds, too.
    (options.policy.small, options.policy.rounds) = (8, 2);
    let mut program = program(&end);
    // SAFETY: the memory outlives the session.
    let mut session = unsafe { Session::open(options, end.layout(), None) }.unwrap();
    let counter = end.memory.atomic_u64(0);
    loop {
        // It is really under way.
        let (before, until) = (counter.load(Ordering::Acquire), soon());
        while counter.load(Ordering::Acquire) == before {
            assert!(Instant::now() < until, "nobody writes");
            std::thread::yield_now();
        }
        let report = session.checkpoint(&mut *program).unwrap();
        if enough(image_of(&job, &store, report.epoch, BYTES)) {
            break;
        }
    }
    drop(peer);
}

#[test]
fn what_a_peer_writes_at_full_speed_is_of_one_moment_in_every_epoch() {
    let (mut epochs, mut last) = (0, 0);
    let host = |end: &End| -> Box<dyn Program> {
        let contexts = Contexts::default();
        contexts.attach(&end.context, Attach::Memory).unwrap();
        Box::new(Host::new(Box::new(Blind::of(&end.layout())), &contexts))
    };
    under_fire(host, |image| {
        let written = judge(&image.unwrap()).unwrap();
        assert!(written > last, "{written} WRITEs after {last}");
        (last, epochs) = (written, epochs + 1);
        epochs == EPOCHS
    });
    println!("{last} WRITEs in {EPOCHS} epochs");
}

/// Not a promise, but the reason for one: this is what suspending is for.
#[test]
fn where_only_threads_stand_still_some_epoch_is_not_of_one_moment() {
    let (mut tries, mut found) = (0, None);
    under_fire(
        |end| Box::new(ThreadsOnly(end.layout())),
        |image| {
            tries += 1;
            found = match image {
                // It changed between its checksum and its WRITE.
                Err(error) => Some(error.to_string()),
                Ok(image) => judge(&image).err(),
            };
            found.is_some() || tries == TRIES
        },
    );
    let found = found.expect("a torn page, or pages of several moments");
    println!("epoch {tries}: {found}");
}

#[test]
fn the_judge_tells_images_of_one_moment_from_others() {
    let image = |last: u64| -> Vec<u8> {
        let mut image = vec![0; BYTES];
        for n in last.saturating_sub(PAGES - 1).max(1)..=last {
            let at = (n % PAGES) as usize * PAGE;
            image[at..at + PAGE].copy_from_slice(&n.to_le_bytes().repeat(PAGE / 8));
        }
        image
    };
    for last in [0, 1, 5, PAGES - 1, PAGES, PAGES + 1, 3 * PAGES + 17] {
        assert_eq!(judge(&image(last)), Ok(last));
    }
    let mut torn = image(3 * PAGES + 17);
    torn[5 * PAGE + 8] ^= 1;
    assert!(judge(&torn).unwrap_err().contains("torn"));
    let mut old = image(3 * PAGES + 17);
    old[..PAGE].copy_from_slice(&(2 * PAGES).to_le_bytes().repeat(PAGE / 8));
    assert!(judge(&old).unwrap_err().contains("page 0"));
}
