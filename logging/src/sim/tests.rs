//! The simulator in `cargo test`: a fixed list of seeds, a fresh one, and the proof that the checks bite.

use super::command::Options;
use super::{Broken, Fault, Kind, Kinds, Small, run};
use crate::entry::Opcode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seeds that every run of the tests takes.
const FIXED: u64 = 300;
/// Seeds within which each broken shell must be caught.
const CAUGHT_WITHIN: u64 = 2_000;
/// The rarest, and where these seeds begin: to save time, close to where they were found.
const RARE: [(Broken, u64); 9] = [
    (Broken::CutNotAwaited, 1_900),
    (Broken::HeldWhenQuiet, 1_000),
    (Broken::ProofBeforeReplays, 3_500),
    (Broken::AlwaysFinished, 300),
    (Broken::CutHandedAfterAll, 1_700),
    (Broken::FlushedCounted, 1_500),
    (Broken::SynthesisedOutOfOrder, 900),
    (Broken::StaleKept, 5_500),
    (Broken::SharedNotAwaited, 2_500),
];

fn check(seed: u64) -> Kinds {
    let outcome = run(seed, Options::default());
    if let Some(what) = outcome.violation {
        let trace = run(seed, Options { trace: true, ..Options::default() }).trace;
        panic!("{}\nseed {seed}: {what}; again: simulate --seed {seed}", trace.join("\n"));
    }
    outcome.reached
}

/// Promises 1 to 5, as far as re-maps are concerned, over a fixed list of worlds.
#[test]
fn promises_hold_over_fixed_seeds() {
    let mut moved = 0;
    for seed in 0..FIXED {
        moved += u64::from(check(seed).has(Kind::Moved));
    }
    assert!(moved > FIXED / 2, "only {moved} of {FIXED} worlds moved anything");
}

/// The same over a world that nobody has seen; its seed is told.
#[test]
fn promises_hold_over_a_fresh_seed() {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let seed = since.as_nanos() as u64;
    println!("fresh seed: {seed}");
    check(seed);
}

/// A seed tells a run again, event by event.
#[test]
fn a_seed_tells_a_run_again() {
    let traced = Options { trace: true, ..Options::default() };
    for seed in 0..20 {
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
        (first..first + CAUGHT_WITHIN).find(|seed| run(*seed, options).violation.is_some())
    };
    let missed: Vec<&Broken> = Broken::ALL.iter().filter(|it| caught(**it).is_none()).collect();
    assert!(missed.is_empty(), "not caught within {CAUGHT_WITHIN} seeds: {missed:?}");
}

fn small(requests: &[(Opcode, bool)], mover: usize, fault: Fault) -> Small {
    let (requests, back) = (requests.to_vec(), Vec::new());
    Small { requests, back, spare: true, mover, fault, records: false, broken: None }
}

/// Promises 1 to 5, and that the end can be reached, over everything that can happen in small worlds.
/// (`simulate --exhaustive` tries larger ones.)
#[test]
fn promises_hold_whatever_happens_in_small_worlds() {
    let worlds: [(&[(Opcode, bool)], Fault); 5] = [
        (&[(Opcode::Write, true), (Opcode::FetchAdd, false)], Fault::None),
        (&[(Opcode::WriteImm, true)], Fault::LetterLost),
        (&[(Opcode::Send, true)], Fault::DeviceDies),
        (&[(Opcode::Read, false)], Fault::FollowerDies),
        (&[(Opcode::Write, false)], Fault::BothMove),
    ];
    let mut states = 0;
    for (requests, fault) in worlds {
        for mover in 0..2 {
            let explored = small(requests, mover, fault).explore();
            if let Some(what) = explored.violation {
                panic!("{what}");
            }
            assert!(explored.ends > 0);
            println!("{requests:?} {fault:?} {mover}: {} states", explored.states);
            states += explored.states;
        }
    }
    println!("{states} states");
}

/// The same where responders keep records: whatever arrived is known, or an error tells that nobody knows.
#[test]
fn promises_hold_with_records_in_small_worlds() {
    let worlds: [(&[(Opcode, bool)], Fault); 3] = [
        (&[(Opcode::Write, false), (Opcode::Write, false)], Fault::None),
        (&[(Opcode::Write, true), (Opcode::Send, false)], Fault::None),
        (&[(Opcode::Write, false)], Fault::DeviceDies),
    ];
    for (requests, fault) in worlds {
        for mover in 0..2 {
            let explored = Small { records: true, ..small(requests, mover, fault) }.explore();
            if let Some(what) = explored.violation {
                panic!("{what}");
            }
            assert!(explored.ends > 0);
        }
    }
}

/// Small worlds are large enough to catch what is broken.
#[test]
fn broken_shells_are_caught_in_small_worlds() {
    let write = [(Opcode::Write, true)];
    let cases = [
        (Broken::NoDuplicateCheck, &write),
        (Broken::NumberIgnored, &write),
        (Broken::CutFromTheStart, &write),
        (Broken::NoFencing, &write),
        (Broken::CutNotTold, &[(Opcode::WriteImm, true)]),
        (Broken::AtomicsReplayed, &[(Opcode::FetchAdd, false)]),
    ];
    for (broken, requests) in cases {
        let explored = Small { broken: Some(broken), ..small(requests, 0, Fault::None) }.explore();
        assert!(explored.violation.is_some(), "{broken:?} was not caught");
    }
    for broken in [Broken::RecordFirst, Broken::BeyondRecordReplayed] {
        let recorded = Small { records: true, ..small(&[(Opcode::Write, false)], 0, Fault::None) };
        let explored = Small { broken: Some(broken), ..recorded }.explore();
        assert!(explored.violation.is_some(), "{broken:?} was not caught");
    }
}
