//! The simulator in `cargo test`: a fixed list of seeds, a fresh one, and the proof that the checks bite.

use super::{Broken, Kind, run};
use sojourn_logging::sim::command::Options;
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds that every run of the tests takes.
const FIXED: u64 = 150;
/// Seeds within which each broken shell must be caught.
const CAUGHT_WITHIN: u64 = 1_500;
/// The rarest, and where its seeds begin: to save time, close to where it was found.
const RARE: [(Broken, u64); 1] = [(Broken::NoBarrier, 285)];

fn check(seed: u64) -> BTreeSet<Kind> {
    let outcome = run(seed, Options::default());
    if let Some(what) = outcome.violation {
        let trace = run(seed, Options { trace: true, ..Options::default() }).trace;
        let tail = &trace[trace.len().saturating_sub(200)..];
        panic!("{}\nseed {seed}: {what}; again: simulate-epochs --seed {seed}", tail.join("\n"));
    }
    outcome.reached
}

/// Promise 6 over a fixed list of worlds.
#[test]
fn the_last_committed_epoch_can_be_restored_over_fixed_seeds() {
    let mut restored = 0;
    for seed in 0..FIXED {
        restored += u64::from(check(seed).contains(&Kind::RestoredWhole));
    }
    assert!(restored > FIXED / 4, "only {restored} of {FIXED} worlds restored anything");
}

/// The same over a world that nobody has seen; its seed is told.
#[test]
fn the_last_committed_epoch_can_be_restored_over_a_fresh_seed() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let seed = since.as_nanos() as u64;
    println!("fresh seed: {seed}");
    check(seed);
}

/// A seed tells a run again, event by event.
#[test]
fn a_seed_tells_a_run_again() {
    let traced = Options { trace: true, ..Options::default() };
    for seed in 0..10 {
        let (once, again) = (run(seed, traced), run(seed, traced));
        assert_eq!(once.trace, again.trace);
        assert_eq!(once.events, run(seed, Options::default()).events, "a trace changes nothing");
    }
}

/// The checks bite: each shell that does one thing wrong is caught.
#[test]
fn every_broken_shell_is_caught() {
    let caught = |broken: Broken| {
        let options = Options { broken: Some(broken), ..Options::default() };
        let rare = RARE.iter().find(|(rare, _)| *rare == broken);
        let first = rare.map_or(0, |(_, first)| *first);
        (first..first + CAUGHT_WITHIN).any(|seed| run(seed, options).violation.is_some())
    };
    let missed: Vec<&Broken> = Broken::ALL.iter().filter(|it| !caught(**it)).collect();
    assert!(missed.is_empty(), "not caught within {CAUGHT_WITHIN} seeds: {missed:?}");
}
