//! Epochs between operating system processes: a store is the program `sojourn-store`, a writer or a reader is this
//! test program again, in the part that a test names. `SOJOURN_TEST_DEVICE` names another device than the soft one.

mod deaths;
mod history;
mod inbound;
mod job;
mod lives;
mod memory;
mod refusals;
mod torn;
mod verbs;

use job::Job;
use memory::Memory;
use sojourn_snapshot::restore::recover;
use sojourn_snapshot::session::Session;

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn part() {
    match std::env::var(job::PART).as_deref() {
        Ok("writer") => deaths::writer(),
        Ok("flood") => torn::flood(),
        Ok("life") => lives::life(),
        Ok(other) => panic!("{}={other} is no part", job::PART),
        Err(_) => println!("skipped: {} is not set, so no test has started this", job::PART),
    }
}

#[test]
fn an_epoch_is_restored_bit_for_bit_in_another_life_and_goes_on_from_there() {
    let job = Job::new();
    let store = job.store("a", "64M");
    let mut memory = Memory::new(&[(7, 3 << 20), (2, 5000), (9, 1 << 20)]);
    memory.fill(1);
    // SAFETY: the memory outlives the session.
    let mut session =
        unsafe { Session::open(job.options(1, &[&store]), memory.layout(), None) }.unwrap();
    let one = session.checkpoint(&mut memory).unwrap();
    assert_eq!((one.copies, one.epoch.count()), (1, 1));
    assert_eq!(one.bytes as usize, memory.layout().bytes());

    // Only what has changed goes a second and a third time: into either slot what changed since it was written.
    memory.change(7, 5 * 4096 + 17, 0xEE);
    let two = session.checkpoint(&mut memory).unwrap();
    assert_eq!(two.bytes as usize, memory.layout().bytes(), "the other slot has nothing yet");
    memory.change(9, 4096, 0xEF);
    let three = session.checkpoint(&mut memory).unwrap();
    assert_eq!((three.epoch.count(), three.bytes), (3, 2 * 4096));
    assert_eq!(memory.windows_at_pause, 3);
    drop(session);

    let fresh = Memory::new(&[(9, 1 << 20), (7, 3 << 20), (2, 5000)]);
    let place = fresh.layout();
    // SAFETY: memory that nobody else uses.
    let recovered =
        unsafe { recover(&job.recover_options(2, &[&store]), |_| Ok(place.clone())) }.unwrap();
    assert_eq!(recovered.restored.origin.epoch, three.epoch);
    assert_eq!(recovered.windows, memory.windows());
    assert_eq!(fresh.bytes_of(7), memory.bytes_of(7));
    assert_eq!(fresh.bytes_of(2), memory.bytes_of(2));
    assert_eq!(fresh.bytes_of(9), memory.bytes_of(9));
}
