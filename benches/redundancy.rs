//! Parity over the images of a group: XOR against reading the same memory, and Reed–Solomon against the
//! library that computes it, called alone on the same stripes. GB/s are of the images' bytes.

use criterion::{BenchmarkId, Criterion, Throughput};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use sojourn_benches::parity::{Group, IMAGE, SCHEMES, read};
use sojourn_snapshot::redundancy::code::STRIPE;
use sojourn_snapshot::redundancy::{Code, Scheme};
use std::time::Duration;

fn parity(c: &mut Criterion) -> sojourn_fabric::Result<()> {
    let mut whole = vec![1; IMAGE];
    for text in SCHEMES {
        let mut group = Group::new(text)?;
        let (members, shares) = (group.images.len(), group.scheme.parity());
        let mut code = Code::new(group.scheme, members)?;
        let mut bench = c.benchmark_group(format!("parity, {text}"));
        bench.throughput(Throughput::Bytes((members * IMAGE) as u64));
        bench.sample_size(10).measurement_time(Duration::from_secs(1));
        bench.warm_up_time(Duration::from_millis(300));
        let id = |what: &str| BenchmarkId::new(what, text);
        bench.bench_function(id("encode"), |b| b.iter(|| group.encode(&mut code, |_| true)));
        bench
            .bench_function(id("rebuild one"), |b| b.iter(|| group.rebuild(&mut code, &mut whole)));
        assert!(whole == group.images[0], "what was rebuilt is what was lost");
        if let Scheme::Xor { .. } = group.scheme {
            bench.bench_function(id("reading alone"), |b| b.iter(|| read(&group.images)));
        } else {
            let new = || ReedSolomonEncoder::new(members, shares, STRIPE);
            let mut alone = new().expect("a code");
            bench.bench_function(id("encode, library alone"), |b| {
                b.iter(|| group.encode_alone(&mut alone, true));
            });
            bench.bench_function(id("encode one share"), |b| {
                b.iter(|| group.encode(&mut code, |i| i == 0));
            });
            bench.bench_function(id("encode, library alone, put nowhere"), |b| {
                b.iter(|| group.encode_alone(&mut alone, false));
            });
            let new = || ReedSolomonDecoder::new(members, shares, STRIPE);
            let mut alone = new().expect("a code");
            bench.bench_function(id("rebuild one, library alone"), |b| {
                b.iter(|| group.rebuild_alone(&mut alone, &mut whole));
            });
        }
        bench.finish();
    }
    Ok(())
}

fn main() -> sojourn_fabric::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    parity(&mut criterion)?;
    criterion.final_summary();
    Ok(())
}
