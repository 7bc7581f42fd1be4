//! Criterion benchmarks: the hot path over a device that completes at once, and the soft device
//! against the bare system call and bare shared memory, in the same run; bandwidth with payloads kept
//! and without; and the blackout, and the quiesce in it, of a context that goes to another device.

use criterion::{BenchmarkId, Criterion, Throughput};
use sojourn_benches::hot::{Layer, Stage, Threads, Verb};
use sojourn_benches::moves::{self, Pair, Scale};
use sojourn_benches::peer::{self, Peer};
use sojourn_benches::retention::{Connection, Kept, batch};
use std::time::{Duration, Instant};

fn hot_path(c: &mut Criterion) -> sojourn_fabric::Result<()> {
    for threads in [Threads::One, Threads::Many] {
        let mut group = c.benchmark_group(format!("post and poll, 64 B, {threads:?} thread(s)"));
        for layer in [Layer::Raw, Layer::Virtual] {
            let mut stage = Stage::new(layer, threads)?;
            for verb in Verb::ALL {
                let id = BenchmarkId::new(verb.name(), format!("{layer:?}"));
                group.bench_function(id, |b| {
                    b.iter_custom(|n| {
                        let start = Instant::now();
                        stage.run(verb, n);
                        start.elapsed()
                    });
                });
            }
        }
        group.finish();
    }
    Ok(())
}

fn soft_device(c: &mut Criterion) -> sojourn_fabric::Result<()> {
    let mut peer = Peer::start()?;
    let timed = |n: u64, work: &mut dyn FnMut(u64) -> sojourn_fabric::Result<()>| {
        let start = Instant::now();
        work(n).expect("the second process answers");
        start.elapsed()
    };
    for length in [8, 4096, 64 << 10, 1 << 20] {
        let mut group = c.benchmark_group(format!("soft WRITE, {length} B"));
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function("process_vm_writev", |b| {
            b.iter_custom(|n| timed(n, &mut |n| peer.bare_writes(length, n)));
        });
        group.bench_function("verbs", |b| {
            b.iter_custom(|n| timed(n, &mut |n| peer.verbs_writes(length, n)));
        });
        group.finish();
    }
    let mut group = c.benchmark_group("round trip, 64 B");
    group.bench_function("shared memory", |b| {
        b.iter_custom(|n| timed(n, &mut |n| peer.shared_ping_pong(n)));
    });
    group.bench_function("soft SEND and RECV", |b| {
        b.iter_custom(|n| timed(n, &mut |n| peer.verbs_ping_pong(n)));
    });
    group.finish();
    Ok(())
}

/// What is timed is the blackout alone, as the mover tells of it.
fn moves_of_contexts(c: &mut Criterion) -> sojourn_fabric::Result<()> {
    let mut group = c.benchmark_group("blackout of a move, idle");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for qps in [1, 16, 256] {
        let mut pair = Pair::start(&Scale::idle(qps))?;
        group.bench_function(BenchmarkId::new("queue pairs", qps), |b| {
            b.iter_custom(|n| {
                let blackout = |_| pair.relocate().expect("the context moves").blackout;
                (0..n).map(blackout).sum()
            });
        });
    }
    group.finish();
    Ok(())
}

/// What is timed is the quiesce alone: how it grows with what is outstanding, and with idle queue pairs.
fn quiesces(c: &mut Criterion) -> sojourn_fabric::Result<()> {
    const PACED: &str = "async:seed=7,latency_us=2,gbps=2";
    let mut group = c.benchmark_group("quiesce, WRITEs of 4 KiB at 2 Gb/s");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    for (busy, window, idle) in [(64, 4, 0), (64, 8, 0), (64, 16, 0), (64, 4, 1024)] {
        let mut pair = Pair::start(&Scale { busy, idle, window, mode: PACED })?;
        let what = format!("{busy} × {window}, and {idle} idle queue pairs");
        group.bench_function(BenchmarkId::new("outstanding", what), |b| {
            b.iter_custom(|n| {
                let quiesce = |_| pair.relocate().expect("the context moves").phase("quiesce");
                (0..n).map(quiesce).sum()
            });
        });
    }
    group.finish();
    Ok(())
}

fn retention(c: &mut Criterion) -> sojourn_fabric::Result<()> {
    for length in [64, 1 << 10, 16 << 10, 256 << 10, 1 << 20] {
        let mut group = c.benchmark_group(format!("soft WRITE, {length} B, retention"));
        group.throughput(Throughput::Bytes(length as u64));
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        for (name, kept) in [("descriptor", Kept::Descriptor), ("payload", Kept::payload())] {
            let mut connection = Connection::new(&kept, None, None)?;
            let most = batch(length);
            group.bench_function(name, |b| {
                b.iter_custom(|n| {
                    let batches = (0..n).step_by(most as usize).map(|done| most.min(n - done));
                    let run = |n| connection.run(length, n).expect("WRITEs are kept");
                    batches.map(run).sum()
                });
            });
        }
        group.finish();
    }
    Ok(())
}

fn main() -> sojourn_fabric::Result<()> {
    if moves::serve()? || peer::serve()? {
        return Ok(());
    }
    let mut criterion = Criterion::default().configure_from_args();
    hot_path(&mut criterion)?;
    soft_device(&mut criterion)?;
    retention(&mut criterion)?;
    moves_of_contexts(&mut criterion)?;
    quiesces(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
