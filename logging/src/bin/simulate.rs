//! Runs the simulator: many seeds, or one of them again with its trace.
//!
//! ```text
//! simulate [--seeds N] [--first N] [--json]    seeds one after the other (by default 10000 from 0)
//! simulate --seed N [--broken NAME]            one seed, with its trace
//! simulate --exhaustive [--first N] [--seeds N] [--json]
//!                                              everything that can happen in small worlds: all of them,
//!                                              or so many from the N-th on
//! simulate --broken all                        the first seed that catches each broken shell
//! ```
//!
//! It ends with 1 where a promise was broken (the seed is told, and what happened), or where enough
//! seeds were run and a kind of fault or interleaving was never met; with 2 where it was asked for what
//! it does not know.

use sojourn_logging::sim::{Broken, Kind, Options, Outcome, Small, run};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

/// Runs after which every kind must have been met. The rarest comes once in some hundred.
const ENOUGH: u64 = 2_000;
/// Between two reports of progress, in seeds.
const PROGRESS: u64 = 1_000;
/// Lines of a trace that are shown beside a failure; all of them with `--seed`.
const TAIL: usize = 60;

struct Arguments {
    seeds: u64,
    first: u64,
    seed: Option<u64>,
    json: bool,
    broken: Option<String>,
    exhaustive: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut given = Arguments {
        seeds: 10_000,
        first: 0,
        seed: None,
        json: false,
        broken: None,
        exhaustive: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let value = words.next().unwrap_or_default();
            let plain = value.replace('_', "");
            plain.parse().map_err(|_| format!("{word} {value:?}: expected a number"))
        };
        match word.as_str() {
            "--seeds" => given.seeds = number()?,
            "--first" => given.first = number()?,
            "--seed" => given.seed = Some(number()?),
            "--broken" => given.broken = Some(words.next().unwrap_or_default()),
            "--exhaustive" => given.exhaustive = true,
            "--json" => given.json = true,
            _ => {
                return Err(format!(
                    "{word}: expected --seeds N, --first N, --seed N, --broken NAME, --exhaustive or \
                     --json"
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
            eprintln!("simulate: {why}");
            return ExitCode::from(2);
        }
    };
    let broken = match given.broken.as_deref() {
        None => None,
        Some("all") => return catch_all(given.seeds),
        Some(name) => match Broken::ALL.iter().find(|it| format!("{it:?}") == name) {
            Some(broken) => Some(*broken),
            None => {
                eprintln!(
                    "simulate: --broken {name:?}: expected \"all\", or one of {:?}",
                    Broken::ALL
                );
                return ExitCode::from(2);
            }
        },
    };
    if given.exhaustive {
        return exhaust(&given);
    }
    match given.seed {
        Some(seed) => replay(seed, broken),
        None => many(&given, broken),
    }
}

/// All small worlds, one after the other.
fn exhaust(given: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let progress = std::io::stderr().is_terminal();
    let mut all = Small::all();
    all.drain(..all.len().min(given.first as usize));
    all.truncate(given.seeds as usize);
    let (mut states, mut steps, mut largest) = (0, 0, 0);
    for (n, small) in all.iter().enumerate() {
        let explored = small.explore();
        if let Some(what) = explored.violation {
            println!("{what}");
            return ExitCode::FAILURE;
        }
        states += explored.states;
        steps += explored.steps;
        largest = largest.max(explored.states);
        if progress {
            eprint!("\r{n} of {} worlds, {states} states", all.len());
            let _ = std::io::stderr().flush();
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    let (worlds, seconds) = (all.len(), begun.elapsed().as_secs_f64());
    if given.json {
        println!(
            "{{\"worlds\":{worlds},\"states\":{states},\"steps\":{steps},\"largest\":{largest},\
             \"seconds\":{seconds:.3}}}"
        );
    } else {
        println!(
            "{worlds} worlds, {states} states (at most {largest} in one), {steps} steps, \
             {seconds:.1} s: no promise was broken, and every state has a way to the end"
        );
    }
    ExitCode::SUCCESS
}

/// Which seed catches each broken shell.
fn catch_all(seeds: u64) -> ExitCode {
    let mut all = true;
    for broken in Broken::ALL {
        let options = Options { broken: Some(*broken), ..Options::default() };
        let caught = (0..seeds).map(|seed| run(seed, options)).find(|it| it.violation.is_some());
        all &= caught.is_some();
        match caught {
            None => println!("{broken:?}: not within {seeds} seeds"),
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

fn many(given: &Arguments, broken: Option<Broken>) -> ExitCode {
    let begun = Instant::now();
    let mut counts = vec![0u64; Kind::ALL.len()];
    let mut events = 0;
    let progress = std::io::stderr().is_terminal();
    for n in 0..given.seeds {
        let seed = given.first.wrapping_add(n);
        let outcome = run(seed, Options { broken, trace: false });
        if outcome.violation.is_some() {
            return failed(&outcome, broken, given.json);
        }
        events += outcome.events;
        for (count, kind) in counts.iter_mut().zip(Kind::ALL) {
            *count += u64::from(outcome.reached.has(*kind));
        }
        if progress && n % PROGRESS == 0 {
            eprint!("\r{n} of {} seeds", given.seeds);
            let _ = std::io::stderr().flush();
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    let met = |kind: &Kind| counts[*kind as usize];
    let missing: Vec<&str> =
        Kind::ALL.iter().filter(|kind| met(kind) == 0).map(|kind| kind.name()).collect();
    let seconds = begun.elapsed().as_secs_f64();
    if given.json {
        let kinds: Vec<String> =
            Kind::ALL.iter().map(|kind| format!("\"{}\":{}", kind.name(), met(kind))).collect();
        println!(
            "{{\"seeds\":{},\"first\":{},\"events\":{events},\"seconds\":{seconds:.3},\"kinds\":{{{}}}}}",
            given.seeds,
            given.first,
            kinds.join(",")
        );
    } else {
        for kind in Kind::ALL {
            println!("{:>9}  {}", met(kind), kind.name());
        }
        println!("{} seeds, {events} events, {seconds:.1} s: no promise was broken", given.seeds);
    }
    if given.seeds >= ENOUGH && !missing.is_empty() {
        eprintln!("simulate: never met: {}", missing.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn failed(outcome: &Outcome, broken: Option<Broken>, json: bool) -> ExitCode {
    let seed = outcome.seed;
    let what = outcome.violation.as_deref().unwrap_or_default();
    if json {
        println!("{{\"failed\":{seed},\"what\":{what:?}}}");
        return ExitCode::FAILURE;
    }
    let trace = run(seed, Options { trace: true, broken }).trace;
    for line in &trace[trace.len().saturating_sub(TAIL)..] {
        println!("{line}");
    }
    println!("seed {seed}: {what}");
    println!("all of it: simulate --seed {seed}");
    ExitCode::FAILURE
}
