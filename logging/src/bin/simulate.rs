//! Runs the simulator of re-maps: many seeds, or one of them again with its trace, as [`command`] says; or
//!
//! ```text
//! simulate --exhaustive [--first N] [--seeds N] [--json]
//! ```
//!
//! everything that can happen in small worlds: in all of them, or in so many from the N-th on.

use sojourn_logging::sim::command::{self, Arguments, Simulator};
use sojourn_logging::sim::{Remaps, Small};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

const EXHAUSTIVE: &str = "--exhaustive";

fn main() -> ExitCode {
    match Arguments::read(&[EXHAUSTIVE]) {
        Ok(given) if given.has(EXHAUSTIVE) => exhaust(&given),
        Ok(given) => command::main::<Remaps>(&given),
        Err(why) => command::refused(Remaps::NAME, &why),
    }
}

/// All small worlds, one after the other.
fn exhaust(given: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let progress = std::io::stderr().is_terminal();
    let mut all = Small::all();
    all.drain(..all.len().min(given.first as usize));
    all.truncate(given.seeds.map_or(usize::MAX, |seeds| seeds as usize));
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
