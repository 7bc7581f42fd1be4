//! Runs the simulator of epochs: many seeds, or one of them again with its trace.
//!
//! ```text
//! simulate-epochs [--seeds N] [--first N]           seeds one after the other (by default 5000 from 0)
//! simulate-epochs --seed N [--broken NAME]          one seed, with its trace
//! simulate-epochs --broken all [--seeds N]          the first seed that catches each broken shell
//! ```
//!
//! It ends with 1 where a promise was broken (the seed is told, and what happened), or where enough seeds were run
//! and a kind of fault or interleaving was never met; with 2 where it was asked for what it does not know.

use sojourn_snapshot::epoch::sim::{Broken, Kind, Options, run};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

/// Runs after which every kind must have been met.
const ENOUGH: u64 = 3_000;
/// Lines of a trace that are shown beside a failure; all of them with `--seed`.
const TAIL: usize = 80;

#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    first: u64,
    seed: Option<u64>,
    broken: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut given = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let number = |value: String| {
            let plain = value.replace('_', "");
            plain.parse().map_err(|_| format!("{word} {value:?}: expected a number"))
        };
        match word.as_str() {
            "--seeds" => given.seeds = Some(number(value())?),
            "--first" => given.first = number(value())?,
            "--seed" => given.seed = Some(number(value())?),
            "--broken" => given.broken = Some(value()),
            _ => {
                return Err(format!(
                    "{word}: expected --seeds N, --first N, --seed N or --broken NAME"
                ));
            }
        }
    }
    Ok(given)
}

fn main() -> ExitCode {
    let given = match arguments() {
        Ok(given) => given,
        Err(why) => {
            eprintln!("simulate-epochs: {why}");
            return ExitCode::from(2);
        }
    };
    let seeds = given.seeds.unwrap_or(5_000);
    let broken = match given.broken.as_deref() {
        None => None,
        Some("all") => return catch_all(given.first, seeds),
        Some(name) => match Broken::ALL.iter().find(|it| format!("{it:?}") == name) {
            Some(broken) => Some(*broken),
            None => {
                let all = Broken::ALL;
                eprintln!(
                    "simulate-epochs: --broken {name:?}: expected \"all\", or one of {all:?}"
                );
                return ExitCode::from(2);
            }
        },
    };
    match given.seed {
        Some(seed) => replay(seed, broken),
        None => many(given.first, seeds, broken),
    }
}

/// Which seed catches each broken shell.
fn catch_all(first: u64, seeds: u64) -> ExitCode {
    let mut all = true;
    for broken in Broken::ALL {
        let options = Options { broken: Some(*broken), ..Options::default() };
        let mut runs = (first..first + seeds).map(|seed| run(seed, options));
        match runs.find(|it| it.violation.is_some()) {
            None => {
                all = false;
                println!("{broken:?}: not within {seeds} seeds");
            }
            Some(it) => {
                println!("{broken:?}: seed {}, {}", it.seed, it.violation.unwrap_or_default());
            }
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, with all that happens.
fn replay(seed: u64, broken: Option<Broken>) -> ExitCode {
    let outcome = run(seed, Options { trace: true, broken });
    for line in &outcome.trace {
        println!("{line}");
    }
    match outcome.violation {
        None => {
            println!("seed {seed}: ok after {} events", outcome.events);
            ExitCode::SUCCESS
        }
        Some(what) => {
            println!("seed {seed}: {what}");
            ExitCode::FAILURE
        }
    }
}

fn many(first: u64, seeds: u64, broken: Option<Broken>) -> ExitCode {
    let begun = Instant::now();
    let mut counts: BTreeMap<Kind, u64> = Kind::ALL.iter().map(|kind| (*kind, 0)).collect();
    let mut events = 0;
    for seed in first..first + seeds {
        let outcome = run(seed, Options { broken, trace: false });
        if let Some(what) = outcome.violation {
            let trace = run(seed, Options { trace: true, broken }).trace;
            for line in &trace[trace.len().saturating_sub(TAIL)..] {
                println!("{line}");
            }
            println!("seed {seed}: {what}");
            println!("all of it: simulate-epochs --seed {seed}");
            return ExitCode::FAILURE;
        }
        events += outcome.events;
        for kind in outcome.reached {
            *counts.entry(kind).or_default() += 1;
        }
    }
    for (kind, count) in &counts {
        println!("{count:>9}  {kind:?}");
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{seeds} seeds, {events} events, {seconds:.1} s: no promise was broken");
    let missing: Vec<&Kind> = counts.iter().filter(|it| *it.1 == 0).map(|it| it.0).collect();
    if seeds >= ENOUGH && !missing.is_empty() {
        eprintln!("simulate-epochs: never met: {missing:?}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
