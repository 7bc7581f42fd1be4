//! Parity over a group against the library that computes Reed–Solomon codes, called alone on the same stripes.

use crate::report::{Goal, Report};
use reed_solomon_simd::ReedSolomonEncoder;
use sojourn_benches::parity::{Group, IMAGE, SCHEMES, read};
use sojourn_snapshot::redundancy::Code;
use sojourn_snapshot::redundancy::code::STRIPE;
use std::time::Instant;

const ROUNDS: usize = 7;
/// Bandwidth that is to be left.
const LEFT: f64 = 0.9;

/// Takes all measures.
pub(super) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for text in SCHEMES {
        let name = format!("epochs: {text} over the library alone");
        if report.wants(&name) {
            one(report, &name, text)?;
        }
    }
    Ok(())
}

fn one(
    report: &mut Report,
    name: &str,
    text: &str,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut group = Group::new(text)?;
    let (members, shares) = (group.images.len(), group.scheme.parity());
    let mut code = Code::new(group.scheme, members)?;
    let mut alone = ReedSolomonEncoder::new(members, shares, STRIPE)?;
    let seconds = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    let (mut ours, mut library, mut reading) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        library = seconds(&mut || group.encode_alone(&mut alone, true)).min(library);
        ours = seconds(&mut || group.encode(&mut code, |_| true)).min(ours);
        reading = seconds(&mut || _ = std::hint::black_box(read(&group.images))).min(reading);
    }
    let rate = |seconds: f64| (members * IMAGE) as f64 / 1e9 / seconds;
    report.line(name, "GB/s", rate(ours), rate(library), Goal::RatioAtLeast(LEFT));
    report.note(format!("reading the images alone: {:.2} GB/s", rate(reading)));
    Ok(())
}
