//! Writers and stores that are killed at each step of an epoch, or at any moment.

use crate::history::History;
use crate::job::{Job, Store, told};
use crate::memory::Memory;
use sojourn_snapshot::restore::{Recovered, recover, recover_lazily};
use sojourn_snapshot::session::{STEPS, Session};
use sojourn_snapshot::{Area, Error, Layout, Mapping};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Turns that a writer takes, with an epoch after each.
const TURNS: u64 = 4;

/// Kills who is named when a step is reached for the time that is named: `STEP:TIME:WHO`, with `store`, `writer` or
/// `both`.
fn at_step(step: &'static str) {
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let Ok(plan) = std::env::var("EPOCHS_FAIL") else { return };
    let mut plan = plan.split(':');
    let (at, time, who) = (plan.next().unwrap(), plan.next().unwrap(), plan.next().unwrap());
    if step != at || (SEEN.fetch_add(1, Ordering::Relaxed) + 1).to_string() != time {
        return;
    }
    if who != "writer" {
        let store: i32 = std::env::var("EPOCHS_VICTIM").unwrap().parse().unwrap();
        // SAFETY: a store of the test that has started this process, which has not reaped it.
        assert_eq!(unsafe { libc::kill(store, libc::SIGKILL) }, 0);
        // Its memory is there until it is a zombie.
        let state = || std::fs::read_to_string(format!("/proc/{store}/stat")).unwrap();
        while !state().rsplit_once(") ").unwrap().1.starts_with('Z') {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    if who != "store" {
        // SAFETY: this process itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// The part of a writer: turns and epochs, each told of.
pub(crate) fn writer() {
    let copies: usize = std::env::var("EPOCHS_COPIES").unwrap().parse().unwrap();
    let turns: u64 = std::env::var("EPOCHS_TURNS").map_or(TURNS, |turns| turns.parse().unwrap());
    let mut options = told();
    (options.policy.copies, options.policy.check) = (copies, true);
    // So few that there are rounds.
    options.policy.small = 8;
    options.at_step = at_step;
    let mut history = History::new();
    // SAFETY: the memory outlives the session.
    let mut session = unsafe { Session::open(options, history.layout(), None) }.unwrap();
    for _ in 0..turns {
        history.take_turn();
        match session.checkpoint(&mut history) {
            Ok(report) => println!("epochs: committed {} {}", history.turn, report.copies),
            Err(error) => println!("epochs: {error}"),
        }
    }
}

/// Restores what is there, holds it against what a writer has said, and goes on from it.
fn go_on(job: &Job, stores: &[&Store], said: &[String], life: u32) {
    let committed = said.iter().filter_map(|line| line.strip_prefix("committed "));
    let committed =
        committed.map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap()).max();
    let mut history = History::new();
    let place = history.layout();
    // SAFETY: memory that nobody else uses.
    let outcome = unsafe { recover(&job.recover_options(life, stores), |_| Ok(place.clone())) };
    let Recovered { restored, windows, .. } = match (outcome, committed) {
        (Ok(recovered), _) => recovered,
        (Err(error), None) => {
            assert_eq!(error.errno(), libc::ENODATA, "{error}");
            return;
        }
        (Err(error), Some(turn)) => panic!("turn {turn} was committed: {error}"),
    };
    let turn = u64::from_le_bytes(windows[..].try_into().unwrap());
    assert!(turn >= committed.unwrap_or(0), "turn {turn} of {committed:?}");
    history.is_after(turn);

    let options = job.options(life, stores);
    // SAFETY: the memory outlives the session.
    let session = unsafe { Session::open(options, history.layout(), Some(restored)) };
    let mut session = session.unwrap();
    for _ in 0..2 {
        history.take_turn();
        session.checkpoint(&mut history).unwrap();
    }
    drop(session);
    let mut again = History::new();
    let place = again.layout();
    // SAFETY: memory that nobody else uses.
    let recovered =
        unsafe { recover(&job.recover_options(life + 1, stores), |_| Ok(place.clone())) };
    assert_eq!(recovered.unwrap().windows, (turn + 2).to_le_bytes());
    again.is_after(turn + 2);
}

/// Steps that each copy takes, once in each epoch.
const BY_COPY: [&str; 5] = ["invalidate", "seal", "word", "check", "note"];

/// Runs a writer that dies, or whose store does, at each step of a later epoch, and of the first, which may leave
/// nothing.
fn at_each_step(who: &str, names: &[&str], copies: usize) {
    for step in STEPS {
        let later = match step {
            "grant" => copies,
            step if BY_COPY.contains(&step) => 2 * copies + 1,
            _ => 3,
        };
        for time in [1, later] {
            let job = Job::new();
            let stores: Vec<Store> = names.iter().map(|name| job.store(name, "8M")).collect();
            let all: Vec<&Store> = stores.iter().collect();
            let more = [
                ("EPOCHS_FAIL", format!("{step}:{time}:{who}")),
                ("EPOCHS_VICTIM", stores[0].pid().to_string()),
                ("EPOCHS_COPIES", copies.to_string()),
            ];
            let (well, said) = job.part("writer", 1, &all, &more).ended();
            assert_eq!(well, who == "store", "{step}:{time}: {said:?}");
            let left = if who == "writer" { &all[..] } else { &all[1..] };
            go_on(&job, left, &said, 2);
        }
    }
}

#[test]
fn a_writer_killed_at_any_step_leaves_its_last_committed_epoch() {
    at_each_step("writer", &["a"], 1);
}

#[test]
fn a_store_killed_at_any_step_leaves_the_other_copy() {
    at_each_step("store", &["a", "b"], 2);
}

#[test]
fn a_writer_and_a_store_killed_together_at_any_step_leave_the_other_copy() {
    at_each_step("both", &["a", "b"], 2);
}

#[test]
fn a_writer_killed_at_any_moment_leaves_its_last_committed_epoch() {
    for wait in 0..8 {
        let job = Job::new();
        let store = job.store("a", "8M");
        let more = [("EPOCHS_COPIES", "1".to_owned()), ("EPOCHS_TURNS", "100000".to_owned())];
        let mut writer = job.part("writer", 1, &[&store], &more);
        std::thread::sleep(Duration::from_millis(60 + 23 * wait));
        writer.kill();
        let (_, said) = writer.ended();
        go_on(&job, &[&store], &said, 2);
    }
}

#[test]
fn a_store_that_dies_in_mid_epoch_is_replaced_in_that_epoch() {
    let job = Job::new();
    let stores = ["a", "b", "c"].map(|name| job.store(name, "8M"));
    let all: Vec<&Store> = stores.iter().collect();
    let more = [
        ("EPOCHS_FAIL", "send:3:store".to_owned()),
        ("EPOCHS_VICTIM", stores[0].pid().to_string()),
        ("EPOCHS_COPIES", "2".to_owned()),
    ];
    let (well, said) = job.part("writer", 1, &all, &more).ended();
    assert!(well);
    let expected: Vec<String> = (1..=TURNS).map(|turn| format!("committed {turn} 2")).collect();
    assert_eq!(said, expected);
    // Each of the two is enough.
    for (life, left) in [(2, &all[1..2]), (4, &all[2..])] {
        let mut history = History::new();
        let place = history.layout();
        // SAFETY: memory that nobody else uses.
        let recovered = unsafe { recover(&job.recover_options(life, left), |_| Ok(place.clone())) };
        assert_eq!(recovered.unwrap().windows, TURNS.to_le_bytes());
        history.is_after(TURNS);
    }
}

#[test]
fn memory_that_is_restored_lazily_survives_the_store_that_it_is_read_from() {
    let job = Job::new();
    let mut stores = ["a", "b"].map(|name| job.store(name, "64M"));
    let mut memory = Memory::new(&[(1, 16 << 20)]);
    memory.fill(7);
    let mut options = job.options(1, &[&stores[0], &stores[1]]);
    options.policy.copies = 2;
    // SAFETY: the memory outlives the session.
    let session = unsafe { Session::open(options, memory.layout(), None) };
    session.unwrap().checkpoint(&mut memory).unwrap();

    let mapping = Mapping::new(16 << 20, None).unwrap();
    let area = Area { id: 1, addr: mapping.addr(), bytes: mapping.len() };
    let place = Layout::new([area]).unwrap();
    let options = job.recover_options(2, &[&stores[0], &stores[1]]);
    let failed = |error: &Error| panic!("{error}");
    // SAFETY: fresh memory that nobody else uses.
    let outcome = unsafe { recover_lazily(&options, |_| Ok(place.clone()), failed) };
    let (recovered, lazy) = match outcome {
        Err(error) if error.errno() == libc::EOPNOTSUPP => {
            println!("skipped: {error}");
            return;
        }
        outcome => outcome.unwrap(),
    };
    let from = recovered.restored.origin.store;
    stores.iter_mut().find(|store| store.at.id == from).unwrap().kill();
    let wanted = memory.bytes_of(1);
    for at in (0..wanted.len()).rev().step_by(4096 * 37) {
        // SAFETY: within the mapping, and filled in before the load returns.
        assert_eq!(unsafe { ((mapping.addr() + at) as *const u8).read_volatile() }, wanted[at]);
    }
    lazy.finish().unwrap();
    // SAFETY: all of it is there, and nobody writes it.
    let there = unsafe { std::slice::from_raw_parts(mapping.addr() as *const u8, mapping.len()) };
    assert!(there == wanted);
}
