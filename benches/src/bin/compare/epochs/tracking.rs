//! What tracking costs the stores of a program, and what it takes to ask.

use super::bytes;
use crate::report::{Goal, Report};
use sojourn_benches::epochs::field::{Chance, Field};
use sojourn_benches::epochs::session::ms;
use sojourn_fabric::Result;
use sojourn_snapshot::track::{self, Kind, Tracker};
use std::time::Instant;

/// Bytes that stores go to, one to each page: fewer pages than a process may have mappings, of which `protect` makes
/// one for each.
const BYTES: usize = 64 << 20;
const ROUNDS: usize = 9;
/// The share that is dirty where asking is timed.
const SHARES: [f64; 3] = [0.0, 0.01, 1.0];

/// Takes all measures.
pub(super) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for kind in Kind::ALL {
        let first = format!("epochs: first store to a clean page, {kind}");
        let later = format!("epochs: later stores, {kind}");
        if report.wants(&first) || report.wants(&later) {
            let mut field = Field::new(BYTES)?;
            match open(kind, &field) {
                Ok(tracker) => stores(report, &first, &later, tracker, &mut field)?,
                Err(error) => report.absent(&first, error),
            }
        }
        let name = format!("epochs: collect, 1 % dirty, {kind}");
        if report.wants(&name) {
            let field = Field::new(bytes())?;
            match open(kind, &field) {
                Ok(tracker) => collect(report, &name, tracker, field)?,
                Err(error) => report.absent(&name, error),
            }
        }
    }
    Ok(())
}

fn open(kind: Kind, field: &Field) -> Result<Box<dyn Tracker>> {
    let mut tracker = track::open(Some(kind))?;
    tracker.add(field.range())?;
    Ok(tracker)
}

fn stores(
    report: &mut Report,
    first: &str,
    later: &str,
    mut tracker: Box<dyn Tracker>,
    field: &mut Field,
) -> Result<()> {
    let mut other = Field::new(BYTES)?;
    // The best of both, and of both where the page was stored to just before.
    let (mut ours, mut reference) = ([f64::INFINITY; 2], [f64::INFINITY; 2]);
    let each = |field: &mut Field| {
        let start = Instant::now();
        field.change_all();
        start.elapsed().as_secs_f64() * 1e9 / field.pages() as f64
    };
    for _ in 0..ROUNDS {
        tracker.collect_at_rest(&mut |_| ())?;
        for ours in &mut ours {
            *ours = each(field).min(*ours);
        }
        for reference in &mut reference {
            *reference = each(&mut other).min(*reference);
        }
    }
    for (i, name) in [first, later].into_iter().enumerate() {
        if report.wants(name) {
            report.line(name, "ns", ours[i], reference[i], Goal::None);
        }
    }
    Ok(())
}

fn collect(
    report: &mut Report,
    name: &str,
    mut tracker: Box<dyn Tracker>,
    mut field: Field,
) -> Result<()> {
    let (mut chance, mut least) = (Chance::new(3), [f64::INFINITY; 3]);
    for _ in 0..ROUNDS {
        for (share, least) in SHARES.into_iter().zip(&mut least) {
            if share > 0.0 {
                field.change(&chance.pages(field.pages(), share));
            }
            let start = Instant::now();
            tracker.collect_at_rest(&mut |_| ())?;
            *least = ms(start.elapsed()).min(*least);
        }
    }
    let [none, some, all] = least;
    report.alone(name, "ms", some, None);
    report.note(format!("{none:.2} ms where nothing is dirty, {all:.2} ms where all is"));
    Ok(())
}
