//! Snapshots: epochs into a store in another process, tracking, restoring, parity, and a program with an epoch each
//! second.

mod heat;
mod parity;
mod restoring;
mod tracking;
mod writing;

use crate::report::Report;
use std::error::Error;

/// Bytes of a program.
const GIB: usize = 1 << 30;
/// Takes less than a GiB, for a trial: so many MiB.
const TRIAL: &str = "COMPARE_EPOCHS_MIB";

/// Bytes of a program in this run.
fn bytes() -> usize {
    let trial = std::env::var(TRIAL).ok().and_then(|mib| mib.parse::<usize>().ok());
    trial.map_or(GIB, |mib| (mib << 20).clamp(1 << 20, GIB))
}

/// So many, in words.
fn threads(many: usize) -> String {
    format!("{many} thread{}", if many == 1 { "" } else { "s" })
}

/// Takes all measures.
pub(crate) fn measure(report: &mut Report) -> Result<(), Box<dyn Error>> {
    writing::measure(report)?;
    tracking::measure(report)?;
    restoring::measure(report)?;
    parity::measure(report)?;
    heat::measure(report)
}
