//! Criterion benchmarks: the hot path over a device that completes at once, and the soft device
//! against the bare system call and bare shared memory, in the same run; and the blackout of a context
//! that goes to another device.

use criterion::{BenchmarkId, Criterion, Throughput};
use sojourn_benches::hot::{Layer, Stage, Threads, Verb};
use sojourn_benches::moves::{self, Pair, Scale};
use sojourn_benches::peer::{self, Peer};
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

fn main() -> sojourn_fabric::Result<()> {
    if moves::serve()? || peer::serve()? {
        return Ok(());
    }
    let mut criterion = Criterion::default().configure_from_args();
    hot_path(&mut criterion)?;
    soft_device(&mut criterion)?;
    moves_of_contexts(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
