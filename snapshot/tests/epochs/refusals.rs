//! One clear error for each thing that cannot be.

use crate::job::Job;
use crate::memory::Memory;
use sojourn_fabric::names::{Conversation, Endpoint, JobKey, Reception};
use sojourn_snapshot::restore::recover;
use sojourn_snapshot::session::Session;
use sojourn_snapshot::store::Client;
use std::time::{Duration, Instant};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn another_key_is_refused_and_named() {
    let job = Job::new();
    let store = job.store("a", "1M");
    let other = JobKey::generate().unwrap();
    let error = Client::connect(&store.at.at, &other, soon()).err().unwrap();
    assert_eq!(error.errno(), libc::EACCES);
    assert!(error.to_string().contains("job key"), "{error}");
}

#[test]
fn another_version_is_refused_by_either_side_and_named() {
    let job = Job::new();
    let store = job.store("a", "1M");
    let mut strange = Conversation::connect(&store.at.at, &job.key, soon()).unwrap();
    strange.send(&[9, 0, 0]).unwrap();
    let answer = strange.receive(soon()).unwrap().unwrap();
    let text = String::from_utf8_lossy(&answer);
    assert!(text.contains("store a: ") && text.contains("speaks version 9"), "{text}");

    let at = Endpoint::Unix(job.dir.path().join("strange"));
    let reception = Reception::listen(&at, &job.key).unwrap();
    let strange = std::thread::spawn(move || {
        let mut there = reception.accept(soon()).unwrap();
        there.receive(soon()).unwrap().unwrap();
        there.send(&[9, 0, 0]).unwrap();
        // Until the other side has read it.
        let _ = there.receive(soon());
    });
    let error = Client::connect(&at, &job.key, soon()).err().unwrap();
    assert_eq!(error.errno(), libc::EPROTONOSUPPORT);
    assert!(error.to_string().contains("speaks version 9"), "{error}");
    strange.join().unwrap();
}

#[test]
fn a_store_that_is_too_small_says_what_is_needed_and_what_is_left() {
    let job = Job::new();
    let store = job.store("a", "1M");
    let mut memory = Memory::new(&[(1, 1 << 20)]);
    // SAFETY: the memory outlives the session.
    let session = unsafe { Session::open(job.options(1, &[&store]), memory.layout(), None) };
    let error = session.unwrap().checkpoint(&mut memory).unwrap_err();
    assert_eq!(error.errno(), libc::ECANCELED);
    assert!(error.to_string().contains("1048576 are left"), "{error}");
}

#[test]
fn memory_that_is_not_that_of_the_snapshot_is_refused_area_by_area_and_the_epoch_stays() {
    let job = Job::new();
    let store = job.store("a", "8M");
    let mut memory = Memory::new(&[(1, 9000), (2, 5000), (3, 4096)]);
    memory.fill(3);
    // SAFETY: the memory outlives the session.
    let session = unsafe { Session::open(job.options(1, &[&store]), memory.layout(), None) };
    session.unwrap().checkpoint(&mut memory).unwrap();

    let other = Memory::new(&[(1, 9001), (3, 4096), (4, 1)]);
    let place = other.layout();
    // SAFETY: memory that nobody else uses.
    let error = unsafe { recover(&job.recover_options(2, &[&store]), |_| Ok(place.clone())) };
    let error = error.unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL);
    for part in [
        "area 1 had 9000 bytes and has 9001",
        "area 2 of 5000 bytes is missing",
        "area 4 of 1 bytes is not in the snapshot",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }

    let same = Memory::new(&[(3, 4096), (2, 5000), (1, 9000)]);
    let place = same.layout();
    // SAFETY: memory that nobody else uses.
    unsafe { recover(&job.recover_options(3, &[&store]), |_| Ok(place.clone())) }.unwrap();
    assert!([1, 2, 3].iter().all(|id| same.bytes_of(*id) == memory.bytes_of(*id)));
}

#[test]
fn a_job_without_a_store_that_lives_is_told_what_is_missing() {
    let job = Job::new();
    let mut store = job.store("a", "8M");
    store.kill();
    let mut options = job.recover_options(1, &[&store]);
    options.limits.answer = Duration::from_millis(300);
    // SAFETY: no memory is named.
    let error = unsafe { recover(&options, |_| unreachable!("there is nothing")) }.unwrap_err();
    assert_eq!(error.errno(), libc::ENODATA);
    assert!(error.to_string().contains("store 1 does not answer"), "{error}");
}

#[test]
fn an_older_life_is_told_that_a_newer_one_writes() {
    let job = Job::new();
    let store = job.store("a", "8M");
    let mut memory = Memory::new(&[(1, 9000)]);
    memory.fill(3);
    let session = |life| {
        // SAFETY: the memory outlives both sessions.
        unsafe { Session::open(job.options(life, &[&store]), memory.layout(), None) }.unwrap()
    };
    let (mut old, mut new) = (session(1), session(2));
    old.checkpoint(&mut memory).unwrap();
    new.checkpoint(&mut memory).unwrap();
    // It has lost its store, and is told why when it asks for it again.
    assert_eq!(old.checkpoint(&mut memory).unwrap_err().errno(), libc::ECANCELED);
    let error = old.checkpoint(&mut memory).unwrap_err();
    assert_eq!(error.errno(), libc::ESTALE);
    assert!(error.to_string().contains("life 2"), "{error}");
    new.checkpoint(&mut memory).unwrap();
}
