//! Moves of a context to another device, between two processes: how long nothing is handed to a
//! device (the blackout), and how long of it what was outstanding takes (the quiesce).
//!
//! Medians are told, and between what the rounds were: the best of many would say little of a pause.

use crate::report::{Goal, Report};
use sojourn_benches::moves::{LENGTH, Moved, Pair, Scale};
use std::error::Error;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Queue pairs, and moves that are timed: all together in a few seconds.
const BLACKOUTS: [(usize, usize); 4] = [(1, 31), (16, 31), (256, 15), (4096, 9)];
/// The blackout of 16 queue pairs that is to be kept, in milliseconds.
const BLACKOUT_GOAL: (usize, f64) = (16, 2.0);
/// WRITEs of 4 KiB outstanding on each queue pair where there is traffic; one where there are thousands.
const WINDOW: u32 = 4;
/// As fast as the engine is, which does not reach that pace on two cores.
const FAST: &str = "async:seed=7,latency_us=2,gbps=100";
/// A pace at which the engine mostly sleeps: what the processors do beside it counts little.
const PACED: &str = "async:seed=7,latency_us=2,gbps=2";
/// Milliseconds after which a mover waits no longer (`MoverLimits::drain`).
const CUT: f64 = 100.0;
/// Idle queue pairs beside busy ones.
const IDLE: usize = 4032;
/// Moves that a quiesce is timed in.
const QUIESCES: usize = 9;
/// The same with this many bytes outstanding or more, which take a second to go.
const FEW_QUIESCES: usize = 3;
const MUCH: u64 = 1 << 28;
/// What a quiesce may take beside what is outstanding: that much of it more, and milliseconds for
/// each queue pair with something outstanding.
const SLACK: f64 = 1.2;
const EACH: f64 = 0.5e-3;

fn ms(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

fn spread(all: &[f64]) -> String {
    let (least, most) =
        all.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), x| (a.min(*x), b.max(*x)));
    format!("{least:.2} to {most:.2} ms")
}

/// Takes all measures.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    for (qps, rounds) in BLACKOUTS {
        let window = if qps > 1024 { 1 } else { WINDOW };
        let busy = Scale { busy: qps, idle: 0, window, mode: FAST };
        blackout(report, &format!("move: blackout, {qps} QPs, idle"), &Scale::idle(qps), rounds)?;
        let name = format!("move: blackout, {qps} QPs, {window} WRITEs out");
        blackout(report, &name, &busy, rounds)?;
    }
    quiesces(report)
}

fn blackout(report: &mut Report, name: &str, scale: &Scale, rounds: usize) -> Result<()> {
    if !report.wants(name) {
        return Ok(());
    }
    let moves = moves(&mut Pair::start(scale)?, rounds)?;
    let all: Vec<f64> = moves.iter().map(|moved| ms(moved.blackout)).collect();
    let goal = (scale.busy + scale.idle == BLACKOUT_GOAL.0).then_some(BLACKOUT_GOAL.1);
    report.alone(name, "ms", median(all.clone()), goal);
    let share = |name: &str| {
        let took = moves.iter().map(|moved| ms(moved.phase(name))).collect();
        format!("{name} {:.2}", median(took))
    };
    let phases = ["prepare", "quiesce", "down", "switch", "cleanup"].map(share).join(", ");
    report.note(format!("{phases} ms; blackouts of {}", spread(&all)));
    Ok(())
}

fn moves(pair: &mut Pair, rounds: usize) -> Result<Vec<Moved>> {
    // The first opens what the others find open.
    pair.relocate()?;
    Ok((0..rounds).map(|_| pair.relocate()).collect::<sojourn_fabric::Result<_>>()?)
}

/// How long quiesces took, and how long the same took where the program stopped posting by itself:
/// what was posted divided by the rate that the device really has. A quiesce that takes longer than the
/// machine waits (`MoverLimits::drain`) ends there: what is still out is counted, and done again.
fn quiesce(scale: &Scale) -> Result<(Vec<f64>, f64)> {
    let mut pair = Pair::start(scale)?;
    pair.relocate()?;
    let (mut ours, mut drains) = (Vec::new(), Vec::new());
    let rounds = if scale.posted() >= MUCH { FEW_QUIESCES } else { QUIESCES };
    for _ in 0..rounds {
        drains.push(ms(pair.drain()?));
        ours.push(ms(pair.relocate()?.phase("quiesce")));
    }
    Ok((ours, median(drains)))
}

fn quiesces(report: &mut Report) -> Result<()> {
    let scale = |busy, window, idle, mode| Scale { busy, idle, window, mode };
    let kib = LENGTH >> 10;
    let beside = format!("64 QPs × 16 × {kib} KiB, {IDLE} idle ones");
    let plain = |busy, window| format!("{busy} QPs × {window} × {kib} KiB");
    for (what, scale) in [
        (format!("{}, unpaced", plain(256, 16)), scale(256, 16, 0, FAST)),
        (format!("{}, unpaced", plain(4096, 2)), scale(4096, 2, 0, FAST)),
        (format!("{}, unpaced", plain(4096, 64)), scale(4096, 64, 0, FAST)),
        (plain(1024, 2), scale(1024, 2, 0, PACED)),
        (plain(64, 8), scale(64, 8, 0, PACED)),
        (plain(64, 16), scale(64, 16, 0, PACED)),
        (plain(64, 32), scale(64, 32, 0, PACED)),
        (beside, scale(64, 16, IDLE, PACED)),
    ] {
        let name = format!("quiesce: {what}");
        if report.wants(&name) {
            let (ours, all) = quiesce(&scale)?;
            // At the rate at which the device got through all that the program had posted.
            let reference = all * scale.bytes() as f64 / scale.posted() as f64;
            // Where the wait is cut, it says nothing of how what was out got through.
            let cut = reference > CUT;
            let goal = Goal::AtMost(SLACK * reference + EACH * scale.busy as f64);
            let goal = if cut { Goal::None } else { goal };
            report.line(&name, "ms", median(ours.clone()), reference, goal);
            let mib = scale.bytes() as f64 / f64::from(1 << 20);
            let posted = scale.posted() as f64 / f64::from(1 << 20);
            let gbps = if scale.mode == FAST { 100.0 } else { 2.0 };
            let nominal = scale.bytes() as f64 * 8.0 / (gbps * 1e6);
            let cut = if cut { "; cut, the rest done again" } else { "" };
            report.note(format!(
                "{}; {mib} of {posted} MiB outstanding, {nominal:.2} ms at a true {gbps} Gb/s{cut}",
                spread(&ours)
            ));
        }
    }
    Ok(())
}
