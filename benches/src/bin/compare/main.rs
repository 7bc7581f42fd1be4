//! `compare`: Sojourn against a reference measured in the same run, one line per measure.
//!
//! ```text
//! MEASURE   OURS   REFERENCE   RATIO   GOAL   ok | short
//! ```
//!
//! Ours and the reference are measured in turns, and the best of each counts: on a machine that
//! does other things too, the best run is the one least disturbed. It ends with 1 where a goal
//! was missed. `compare PART…` runs only those measures whose names contain a PART.

mod callgrind;
mod epochs;
mod hot;
mod memory;
mod programs;
mod relocation;
mod report;
mod retention;
mod soft;

use report::Report;
use sojourn_benches::memory::Counting;
use sojourn_benches::{epochs as snapshots, moves, peer};
use std::process::ExitCode;

#[global_allocator]
static HEAP: Counting = Counting;

type Measure = fn(&mut Report) -> Result<(), Box<dyn std::error::Error>>;

fn run() -> Result<bool, Box<dyn std::error::Error>> {
    if callgrind::serve()? || moves::serve()? || peer::serve()? || snapshots::serve()? {
        return Ok(true);
    }
    let mut report = Report::new(std::env::args().skip(1).collect());
    report.header();
    let parts: [Measure; 8] = [
        hot::measure,
        callgrind::measure,
        memory::measure,
        soft::measure,
        retention::measure,
        relocation::measure,
        programs::measure,
        epochs::measure,
    ];
    for part in parts {
        part(&mut report)?;
    }
    Ok(report.all_met())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}
