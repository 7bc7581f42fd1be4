//! Criterion benchmarks of snapshots, of memory that is small enough for many rounds: what tracking costs the stores of
//! a program, epochs into a store in another process against the device's own WRITEs, and restoring against a copy.

use criterion::{BenchmarkId, Criterion, Throughput};
use sojourn_benches::epochs::field::Field;
use sojourn_benches::epochs::raw::Raw;
use sojourn_benches::epochs::restoring::Restoring;
use sojourn_benches::epochs::serve;
use sojourn_benches::epochs::session::{Epochs, Known};
use sojourn_fabric::Result;
use sojourn_snapshot::track::{self, Kind};
use std::time::{Duration, Instant};

/// Bytes of a program.
const BYTES: usize = 64 << 20;

fn tracking(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("tracking, one store to each page of 64 MiB");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    let mut field = Field::new(BYTES)?;
    group.throughput(Throughput::Elements(field.pages() as u64));
    group.bench_function("untracked", |b| b.iter(|| field.change_all()));
    for kind in Kind::ALL {
        let Ok(mut tracker) = track::open(Some(kind)) else { continue };
        tracker.add(field.range())?;
        // The clean pages of a round are made by the collect before it, which is timed by itself.
        let mut clean = || tracker.collect_at_rest(&mut |_| ()).expect("the tracker tells");
        group.bench_function(BenchmarkId::new("first", kind), |b| {
            b.iter_custom(|n| {
                let mut round = || {
                    clean();
                    let start = Instant::now();
                    field.change_all();
                    start.elapsed()
                };
                (0..n).map(|_| round()).sum()
            });
        });
        group.bench_function(BenchmarkId::new("later", kind), |b| b.iter(|| field.change_all()));
        group.bench_function(BenchmarkId::new("collect, all dirty", kind), |b| {
            b.iter_custom(|n| {
                let mut round = || {
                    field.change_all();
                    let start = Instant::now();
                    clean();
                    start.elapsed()
                };
                (0..n).map(|_| round()).sum()
            });
        });
    }
    group.finish();
    Ok(())
}

fn writing(c: &mut Criterion) -> Result<()> {
    for (share, known) in [(1.0, Known::All), (0.01, Known::Tracked(Kind::Scan))] {
        let percent = 100.0 * share;
        let mut group = c.benchmark_group(format!("an epoch of 64 MiB, {percent} % dirty"));
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        // A kernel without that tracker.
        let Ok(mut epochs) = Epochs::start(Field::new(BYTES)?, 1, &known) else { continue };
        // The slots were filled with all of it: the second from here has no more than two shares.
        epochs.share(share)?;
        let union = epochs.share(share)?.union;
        group.bench_function("epoch", |b| {
            b.iter_custom(|n| {
                let took = |_| epochs.share(share).expect("the epoch is committed").took;
                (0..n).map(took).sum()
            });
        });
        let field = Field::new(BYTES)?;
        // SAFETY: the field stands before it.
        let mut raw = unsafe { Raw::start(&field, 1) }?;
        group.bench_function("the device's own WRITEs of as many pages", |b| {
            b.iter_custom(|n| (0..n).map(|_| raw.write(&union, 1).expect("WRITEs")).sum());
        });
        group.finish();
    }
    Ok(())
}

fn restoring(c: &mut Criterion) -> Result<()> {
    let mut group = c.benchmark_group("restoring 64 MiB");
    group.sample_size(10).measurement_time(Duration::from_secs(2));
    group.throughput(Throughput::Bytes(BYTES as u64));
    let mut restoring = Restoring::new(Epochs::start(Field::new(BYTES)?, 1, &Known::All)?.end());
    group.bench_function("a copy into fresh memory", |b| {
        b.iter_custom(|n| (0..n).map(|_| restoring.copy(1).expect("memory")).sum());
    });
    group.bench_function("all of it", |b| {
        b.iter_custom(|n| (0..n).map(|_| restoring.all(1).expect("an epoch")).sum());
    });
    // A kernel without userfaultfd.
    if restoring.lazily().is_ok() {
        group.bench_function("lazily, to first use", |b| {
            b.iter_custom(|n| {
                let first = |_| restoring.lazily().expect("an epoch").first;
                (0..n).map(first).sum()
            });
        });
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    if serve()? {
        return Ok(());
    }
    let mut criterion = Criterion::default().configure_from_args();
    tracking(&mut criterion)?;
    writing(&mut criterion)?;
    restoring(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
