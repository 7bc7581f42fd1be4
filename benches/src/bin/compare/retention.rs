//! What it costs to keep payloads: bandwidth with that on over off, a copied payload against a bare copy, and
//! whether it is better to send from the copy.

use crate::report::{Goal, Report, best_in_turns};
use sojourn_benches::retention::{Connection, Copies, Kept, Posts, batch};
use sojourn_fabric::Result;

/// Bytes of messages, with their names.
const SIZES: [(usize, &str); 5] = [
    (64, "64 B"),
    (1 << 10, "1 KiB"),
    (16 << 10, "16 KiB"),
    (256 << 10, "256 KiB"),
    (1 << 20, "1 MiB"),
];
/// Those between which it changes from where it is better to send.
const SHORT: [(usize, &str); 6] = [
    (64, "64 B"),
    (256, "256 B"),
    (1 << 10, "1 KiB"),
    (4 << 10, "4 KiB"),
    (16 << 10, "16 KiB"),
    (64 << 10, "64 KiB"),
];
const ROUNDS: usize = 9;
/// At a pace, where a round is short and the engine often kept from running.
const PACED_ROUNDS: usize = 15;
/// A round of many bytes.
const SPILLED_ROUNDS: usize = 3;
/// Gb/s: that which is the goal's, and one that the engine keeps on two cores.
const PACE: f64 = 25.0;
const SLOW_PACE: f64 = 2.0;
/// Messages of a paced round, and bytes: some hundredths of a second.
const PACED: u64 = 2000;
const PACED_BYTES: usize = 8 << 20;
/// Bandwidth that is to be left: where memory is the bound, and where a wire is.
const LEFT: f64 = 0.45;
const LEFT_PACED: f64 = 0.95;
/// What a copied payload may cost, in copies.
const COPIES: f64 = 1.1;
/// Bytes that are sent in one round where they are spilled: four rings.
const SPILLED: usize = 256 << 20;

/// Takes all measures.
pub(crate) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    for (length, name) in SIZES {
        cost(report, length, &format!("retention: {name} copied, over a memcpy"))?;
    }
    for (length, name) in SHORT {
        let name = format!("retention: {name} from the copy, over the buffer");
        if report.wants(&name) {
            let n = batch(length);
            let (ours, other) =
                in_turns(3 * ROUNDS, &Kept::Payload(u32::MAX), &Kept::Payload(0), None, length, n)?;
            report.line(&name, "ns", ours * 1e9, other * 1e9, Goal::None);
        }
    }
    for (pace, rounds, goal) in [
        (None, ROUNDS, LEFT),
        (Some(PACE), PACED_ROUNDS, LEFT_PACED),
        (Some(SLOW_PACE), PACED_ROUNDS, LEFT_PACED),
    ] {
        for (length, size) in SIZES {
            let name = match pace {
                None => format!("retention: bandwidth, {size}"),
                Some(gbps) => format!("retention: {size} at {gbps} Gb/s"),
            };
            if !report.wants(&name) {
                continue;
            }
            let n = match pace {
                Some(_) => ((PACED_BYTES / length) as u64).min(PACED),
                None => batch(length),
            };
            let (on, off) = in_turns(rounds, &Kept::payload(), &Kept::Descriptor, pace, length, n)?;
            let rate = |seconds: f64| length as f64 / seconds / 1e9;
            report.line(&name, "GB/s", rate(on), rate(off), Goal::RatioAtLeast(goal));
        }
    }
    spilled(report)?;
    Ok(())
}

/// Seconds of one message, kept in one way and in another.
fn in_turns(
    rounds: usize,
    ours: &Kept,
    other: &Kept,
    pace: Option<f64>,
    length: usize,
    n: u64,
) -> Result<(f64, f64)> {
    let (mut ours, mut other) =
        (Connection::new(ours, pace, None)?, Connection::new(other, pace, None)?);
    let each = |connection: &mut Connection| {
        connection.run(length, n).map(|took| took.as_secs_f64() / n as f64)
    };
    // Until every page of the ring has been touched.
    let (mut bytes, warm) = (0, 80 << 20);
    while bytes < warm && pace.is_none() {
        each(&mut ours)?;
        each(&mut other)?;
        bytes += n as usize * length.next_multiple_of(64);
    }
    best_in_turns(rounds, || each(&mut ours), || each(&mut other))
}

/// What a payload costs more than a description, and what one copy does.
fn cost(report: &mut Report, length: usize, name: &str) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let n = batch(length);
    let (mut on, mut off) = (Posts::new(&Kept::payload())?, Posts::new(&Kept::Descriptor)?);
    let mut copies = Copies::new();
    let (mut least, mut bare) = ([f64::INFINITY; 2], f64::INFINITY);
    let each = |took: std::time::Duration| took.as_secs_f64() / n as f64;
    let warm = (80 << 20) / (n as usize * length.next_multiple_of(64));
    for round in 0..warm + 3 * ROUNDS {
        let took = [each(on.run(length, n)?), each(off.run(length, n)?)];
        let copied = each(copies.run(length, n));
        if round >= warm {
            least = [least[0].min(took[0]), least[1].min(took[1])];
            bare = bare.min(copied);
        }
    }
    let more = least[0] - least[1];
    report.line(name, "ns", more * 1e9, bare * 1e9, Goal::RatioAtMost(COPIES));
    report.note(format!("{:.0} ns with it, {:.0} ns without", least[0] * 1e9, least[1] * 1e9));
    Ok(())
}

/// The same where no epoch comes, and four rings go through one.
fn spilled(report: &mut Report) -> Result<()> {
    let dir = std::env::temp_dir();
    for (length, size) in SIZES {
        let name = format!("retention: {size}, all of it spilled");
        if !report.wants(&name) {
            continue;
        }
        let n = ((SPILLED / length) as u64).min(200_000);
        let mut on = Connection::new(&Kept::payload(), None, Some(&dir))?;
        let mut off = Connection::new(&Kept::Descriptor, None, None)?;
        let each = |connection: &mut Connection| {
            connection.run(length, n).map(|took| took.as_secs_f64() / n as f64)
        };
        let (ours, other) = best_in_turns(SPILLED_ROUNDS, || each(&mut on), || each(&mut off))?;
        let rate = |seconds: f64| length as f64 / seconds / 1e9;
        report.line(&name, "GB/s", rate(ours), rate(other), Goal::None);
    }
    Ok(())
}
