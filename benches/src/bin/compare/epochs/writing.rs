//! Epochs against the device's own WRITEs of the same pages, from the same memory into memory as a store has it, in
//! another process, too. And how long the program stands still.

use super::{bytes, threads};
use crate::report::{Goal, Report};
use sojourn_benches::epochs::field::Field;
use sojourn_benches::epochs::raw::Raw;
use sojourn_benches::epochs::session::{Epochs, Known, Outcome, ms};
use sojourn_fabric::Result;
use sojourn_snapshot::track::Kind;
use sojourn_snapshot::{PAGE, PageSet};
use std::time::Duration;

/// Full epochs, and as many times all of the memory by the device alone.
const FULL_ROUNDS: usize = 9;
/// Epochs with a share of the pages dirty: many, because they are short; few, where all are.
const ROUNDS: usize = 21;
const FEW_ROUNDS: usize = 7;
/// Bandwidth that is to be left to full epochs, by threads.
const LEFT: [(usize, f64); 2] = [(1, 0.8), (2, 0.9)];
/// Shares of the pages that are dirty, with their names.
const SHARES: [(f64, &str); 4] = [(0.001, "0.1 %"), (0.01, "1 %"), (0.1, "10 %"), (1.0, "100 %")];
/// That which has goals: what an epoch may take in WRITEs of its pages …
const SHARE: f64 = 0.01;
const MORE: f64 = 1.2;
/// … and for how long the program may stand still, in milliseconds.
const PAUSES: [(Kind, f64); 2] = [(Kind::Scan, 5.0), (Kind::SoftDirty, 15.0)];

/// Takes all measures.
pub(super) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for (lanes, goal) in LEFT {
        full(report, lanes, goal)?;
    }
    for (share, name) in SHARES {
        for (lanes, _) in LEFT {
            let name = format!("epochs: {name} dirty, {}, over its WRITEs", threads(lanes));
            dirty(report, share, lanes, &name)?;
        }
    }
    for (kind, goal) in PAUSES {
        for (share, name) in SHARES {
            pause(report, share, kind, goal, &format!("epochs: pause, {name} dirty, {kind}"))?;
        }
    }
    Ok(())
}

/// The best of outcomes.
fn best(all: &[Outcome]) -> Option<&Outcome> {
    all.iter().min_by_key(|outcome| outcome.took)
}

fn full(report: &mut Report, lanes: usize, goal: f64) -> Result<()> {
    let name = format!("epochs: full, {}, over WRITEs of it", threads(lanes));
    if !report.wants(&name) {
        return Ok(());
    }
    let mut epochs = Epochs::start(Field::new(bytes())?, lanes, &Known::All)?;
    let all = PageSet::full(epochs.field().pages());
    // SAFETY: the field goes with `epochs`, which stands before it.
    let mut raw = unsafe { Raw::start(epochs.field(), lanes) }?;
    let mut outcomes = vec![];
    let mut least = vec![Duration::MAX; lanes];
    for _ in 0..FULL_ROUNDS {
        for (i, least) in least.iter_mut().enumerate() {
            *least = raw.write(&all, i + 1)?.min(*least);
        }
        outcomes.push(epochs.take(&all)?);
    }
    let rate = |took: Duration| (all.count() * PAGE) as f64 / 1e9 / took.as_secs_f64();
    let Some(best) = best(&outcomes) else { return Ok(()) };
    let reference = least.iter().min().copied().unwrap_or(Duration::MAX);
    report.line(&name, "GB/s", rate(best.took), rate(reference), Goal::RatioAtLeast(goal));
    if let [one, two] = least[..] {
        report.note(format!(
            "the device alone: {:.2} GB/s with one thread, {:.2} with two",
            rate(one),
            rate(two)
        ));
    }
    report.note(format!("{} ms", best.shares()));
    Ok(())
}

fn rounds(share: f64) -> usize {
    if share > 0.05 { FEW_ROUNDS } else { ROUNDS }
}

fn dirty(report: &mut Report, share: f64, lanes: usize, name: &str) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let Some(mut epochs) = tracked(report, name, lanes, Kind::Scan)? else { return Ok(()) };
    // SAFETY: the field goes with `epochs`, which stands before it.
    let mut raw = unsafe { Raw::start(epochs.field(), lanes) }?;
    // From the third on a slot needs what two epochs have changed.
    for _ in 0..2 {
        epochs.share(share)?;
    }
    let mut outcomes = vec![];
    let mut least = vec![Duration::MAX; lanes];
    for _ in 0..rounds(share) {
        let outcome = epochs.share(share)?;
        for (i, least) in least.iter_mut().enumerate() {
            *least = raw.write(&outcome.union, i + 1)?.min(*least);
        }
        outcomes.push(outcome);
    }
    let reference = least.iter().min().copied().unwrap_or(Duration::MAX);
    let Some(best) = best(&outcomes) else { return Ok(()) };
    #[allow(clippy::float_cmp, reason = "the very constant")]
    let goal = if share == SHARE { Goal::RatioAtMost(MORE) } else { Goal::None };
    report.line(name, "ms", ms(best.took), ms(reference), goal);
    if let [one, two] = least[..] {
        let (one, two) = (ms(one), ms(two));
        report.note(format!("the device alone: {one:.2} ms with one thread, {two:.2} with two"));
    }
    report.note(format!(
        "{} pages of the union, {} looked at, {:.1} MB sent; {} ms",
        best.union.count(),
        best.report.chunks,
        best.report.bytes as f64 / 1e6,
        best.shares()
    ));
    Ok(())
}

/// `None`, and said so, where the kernel has no such tracker.
fn tracked(report: &Report, name: &str, lanes: usize, kind: Kind) -> Result<Option<Epochs>> {
    match Epochs::start(Field::new(bytes())?, lanes, &Known::Tracked(kind)) {
        Ok(epochs) => Ok(Some(epochs)),
        Err(error) if error.errno() == libc::EOPNOTSUPP => {
            report.absent(name, error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Medians: the best of many would say little of a pause.
fn pause(report: &mut Report, share: f64, kind: Kind, goal: f64, name: &str) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let Some(mut epochs) = tracked(report, name, 1, kind)? else { return Ok(()) };
    for _ in 0..2 {
        epochs.share(share)?;
    }
    let (mut computing, mut standing, mut took) = (vec![], vec![], vec![]);
    for _ in 0..rounds(share) {
        standing.push(ms(epochs.share(share)?.still));
        // The slot before is of an epoch with no more than the same share.
        let outcome = epochs.share_computing(share)?;
        computing.push(ms(outcome.report.paused));
        took.push(ms(outcome.took));
    }
    #[allow(clippy::float_cmp, reason = "the very constant")]
    let goal = (share == SHARE).then_some(goal);
    let least = |all: &[f64]| all.iter().copied().fold(f64::INFINITY, f64::min);
    let most = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
    let between = format!("{:.2} to {:.2} ms", least(&computing), most(&computing));
    let (still, epoch) = (median(standing), median(took));
    report.alone(name, "ms", median(computing), goal);
    report.note(format!(
        "{between}, in epochs of {epoch:.1} ms; {still:.1} ms where it stands still from the beginning"
    ));
    Ok(())
}
