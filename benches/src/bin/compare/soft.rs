//! The soft device against the bare system call, and against bare shared memory.

use crate::report::{Goal, Report, best_in_turns};
use sojourn_benches::peer::Peer;
use sojourn_fabric::Result;
use std::cell::RefCell;
use std::time::Instant;

const ROUNDS: usize = 25;
const LATENCY: &str = "soft: WRITE 8 B latency";
const BANDWIDTH: &str = "soft: WRITE 64 KiB bandwidth";
const ROUND_TRIP: &str = "soft: SEND/RECV 64 B half round trip";

/// Seconds of one of `n` operations.
fn each(n: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() / n as f64)
}

pub(crate) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    if ![LATENCY, BANDWIDTH, ROUND_TRIP].into_iter().any(|name| report.wants(name)) {
        return Ok(());
    }
    let peer = RefCell::new(Peer::start()?);
    let writes = |length: usize, n: u64| {
        best_in_turns(
            ROUNDS,
            || each(n, || peer.borrow().verbs_writes(length, n)),
            || each(n, || peer.borrow().bare_writes(length, n)),
        )
    };
    if report.wants(LATENCY) {
        let (ours, bare) = writes(8, 5_000)?;
        report.line(LATENCY, "ns", ours * 1e9, bare * 1e9, Goal::RatioAtMost(1.25));
    }
    if report.wants(BANDWIDTH) {
        const LENGTH: usize = 64 << 10;
        let (ours, bare) = writes(LENGTH, 1_000)?;
        let rate = |seconds: f64| LENGTH as f64 / seconds / 1e9;
        report.line(BANDWIDTH, "GB/s", rate(ours), rate(bare), Goal::RatioAtLeast(0.9));
    }
    if report.wants(ROUND_TRIP) {
        // Long against the start of a round, which goes through a pipe.
        const N: u64 = 50_000;
        let (ours, bare) = best_in_turns(
            ROUNDS,
            || each(2 * N, || peer.borrow_mut().verbs_ping_pong(N)),
            || each(2 * N, || peer.borrow_mut().shared_ping_pong(N)),
        )?;
        report.line(ROUND_TRIP, "ns", ours * 1e9, bare * 1e9, Goal::RatioAtMost(4.0));
    }
    Ok(())
}
