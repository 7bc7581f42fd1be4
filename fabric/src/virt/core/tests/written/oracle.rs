//! An oracle that compares bytes: whatever two processes do to each other, every byte that has changed between two
//! committed reports is in the second of them.

use super::*;
use crate::device::{self, DeviceContext, soft};
use std::sync::Arc;

/// Bytes of the memory that only devices write.
const TARGET: usize = 256 << 10;
/// Receives that a queue pair may have out.
const DEPTH: usize = 8;
/// Longest request but for a few.
const MOST: u64 = 9_000;

/// A stream of numbers that a seed tells again.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    fn is(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// One side, and what it knew at its last committed report.
struct Side {
    process: Process,
    cq: CompletionQueue,
    source: MemoryRegion,
    target: MemoryRegion,
    base: Vec<u8>,
    /// A region that comes and goes, and what it held at the last committed report, or when it came.
    visitor: Option<(MemoryRegion, Vec<u8>)>,
    /// Pages of such that are gone, and had changed.
    changed: Vec<usize>,
    /// A report that is not committed yet, with what there was at its moment.
    open: Option<(Written, Vec<u8>)>,
}

/// Where two differ, page by page.
fn differing(now: &[u8], then: &[u8], addr: u64) -> Vec<usize> {
    let pages = now.chunks(PAGE).zip(then.chunks(PAGE)).enumerate();
    let differing = pages.filter(|(_, (now, then))| now != then);
    differing
        .flat_map(|(at, (now, then))| {
            let bytes = now.iter().zip(then).enumerate().filter(|(_, (now, then))| now != then);
            bytes.map(move |(byte, _)| addr as usize + at * PAGE + byte)
        })
        .collect()
}

impl Side {
    fn new(job: &Job, number: u32, device: Arc<dyn DeviceContext>) -> Self {
        let core = job.join(number);
        let context = Context::over(core.open_over(device, tracking()).unwrap());
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(256).unwrap();
        let small = context.create_cq(4).unwrap();
        let memory = pd.register(PAGE, ALL).unwrap();
        let (source, target) =
            (pd.register(64 << 10, ALL).unwrap(), pd.register(TARGET, ALL).unwrap());
        let base = all_of(&target);
        let process = Process { _core: core, context, pd, cq: small, memory };
        let (visitor, changed, open) = (None, Vec::new(), None);
        Side { process, cq, source, target, base, visitor, changed, open }
    }

    fn qp(&self, chance: &mut Chance) -> QueuePair {
        let mut options = QpOptions::rc(&self.cq);
        options.cap.max_recv_wr = DEPTH as u32;
        options.cap.max_send_wr = 4 + chance.below(12) as u32;
        self.process.pd.create_qp(&options).unwrap()
    }

    /// What has changed is reported.
    fn check(&mut self, chance: &mut Chance, seed: u64) {
        let held = self.process.context.suspend(late()).unwrap();
        let written = self.process.context.written(late()).unwrap();
        let now = all_of(&self.target);
        let mut changed = differing(&now, &self.base, self.target.addr());
        if let Some((visitor, then)) = &self.visitor {
            changed.extend(differing(&all_of(visitor), then, visitor.addr()));
        }
        changed.extend(&self.changed);
        assert_eq!(written.unknown(), []);
        for at in changed {
            assert!(
                written.ranges().iter().any(|range| range.contains(&at)),
                "seed {seed}: byte {at:#x} has changed, and is not in {:x?}",
                written.ranges()
            );
        }
        let visited = self.visitor.as_ref().map(|(visitor, _)| all_of(visitor));
        held.end().unwrap();
        match chance.below(3) {
            // An epoch that fails.
            0 => drop(written),
            1 => {
                written.commit(late()).unwrap();
                self.base = now;
                self.changed.clear();
                if let (Some((_, then)), Some(visited)) = (&mut self.visitor, visited) {
                    *then = visited;
                }
            }
            // It is committed later, while the program goes on: to keep the books simple, without visitors.
            _ if self.visitor.is_none() && self.changed.is_empty() => {
                self.open = Some((written, now));
            }
            _ => drop(written),
        }
    }

    fn commit(&mut self) {
        if let Some((written, now)) = self.open.take() {
            written.commit(late()).unwrap();
            self.base = now;
        }
    }

    /// Its visitor goes.
    fn see_off(&mut self) {
        if let Some((visitor, then)) = self.visitor.take() {
            let now = all_of(&visitor);
            self.changed.extend(differing(&now, &then, visitor.addr()));
        }
    }

    fn request(&self, other: &Side, chance: &mut Chance, swaps: bool) -> (Op, usize, usize) {
        let length = match chance.below(8) {
            0 => 0,
            1 => chance.below(TARGET as u64 / 4) as usize,
            _ => chance.below(MOST) as usize,
        };
        let aligned = chance.below(TARGET as u64 / 8) as usize * 8;
        let visitor = other.visitor.as_ref().filter(|_| chance.is(3)).map(|(it, _)| it);
        let (to, room) = match visitor {
            Some(visitor) => (visitor.remote(0), visitor.len()),
            None => (other.target.remote(0), TARGET),
        };
        let at = chance.below(room as u64) as usize;
        let length = length.min(room - at).min(64 << 10);
        let remote = to.offset(at as u64);
        let word = other.target.remote(aligned);
        match chance.below(if swaps { 7 } else { 6 }) {
            0 => (Op::Send, length.min(600), 0),
            1 => (Op::SendImm(7), length.min(600), 0),
            2 => (Op::Write(remote), length, 0),
            3 => (Op::WriteImm(remote, 7), length, 0),
            4 => (Op::Read(other.source.remote(0)), length.min(TARGET - aligned), aligned),
            5 => (Op::FetchAdd(word, 1 + chance.below(1 << 40)), 8, aligned),
            _ => (Op::CompareSwap(word, 0, chance.below(1 << 40)), 8, aligned),
        }
    }

    fn post(&self, qp: &QueuePair, other: &Side, chance: &mut Chance, swaps: bool) {
        let (op, length, own) = self.request(other, chance, swaps);
        let comes_back = matches!(op, Op::Read(..) | Op::FetchAdd(..) | Op::CompareSwap(..));
        let memory = if comes_back { &self.target } else { &self.source };
        let at = if comes_back { own } else { 0 };
        let middle = at + length / 3;
        let bytes = u64::to_ne_bytes(chance.below(u64::MAX)).repeat(64);
        self.source.write(chance.below((64 << 10) - 512) as usize, &bytes);
        let sges = match length {
            0 => vec![],
            8 => vec![memory.slice(at..at + 8)],
            _ => vec![memory.slice(at..middle), memory.slice(middle..at + length)],
        };
        let inline = !comes_back && length <= 64 && chance.is(2);
        let payload = vec![chance.below(256) as u8; length];
        let request = match inline {
            true => SendRequest::inline(1, op, &payload),
            false => SendRequest::new(1, op, &sges),
        };
        let quiet = chance.is(3);
        // A window that is full is one of the things that happen.
        let _ = qp.post_send(&if quiet { request.unsignaled() } else { request });
    }

    fn receive(&self, qp: &QueuePair, chance: &mut Chance) {
        let at = chance.below((TARGET - 1024) as u64) as usize;
        let middle = 600 + chance.below(100) as usize;
        let sges = [self.target.slice(at..at + 500), self.target.slice(at + 500..at + middle)];
        let _ = qp.post_recv(2, &sges);
    }

    fn poll(&self) {
        for wc in drain(&self.cq) {
            assert_eq!(wc.status, wc_status::SUCCESS, "{}: {wc:?}", wc_status::name(wc.status));
        }
    }
}

/// No path fails only because a machine has too much to do.
fn connect_patiently(qps: &[QueuePair; 2]) {
    let patient = ConnectOptions { timeout: 20, ..ConnectOptions::default() };
    let ends = qps.each_ref().map(|qp| qp.endpoint().unwrap());
    qps[0].connect(&ends[1], &patient).unwrap();
    qps[1].connect(&ends[0], &patient).unwrap();
}

/// One world of chance.
fn run(seed: u64, swaps: bool, open: &mut dyn FnMut() -> Arc<dyn DeviceContext>) {
    println!("seed {seed}");
    let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let job = Job::default();
    let mut sides = [Side::new(&job, 1, open()), Side::new(&job, 2, open())];
    let mut qps = sides.each_ref().map(|side| side.qp(&mut chance));
    connect_patiently(&qps);
    for _ in 0..400 {
        let at = chance.below(2) as usize;
        let (this, other) = (&sides[at], &sides[1 - at]);
        match chance.below(100) {
            0..50 => this.post(&qps[at], other, &mut chance, swaps),
            50..75 => this.receive(&qps[at], &mut chance),
            75..88 => this.poll(),
            88..93 => {
                let visitor = this.process.pd.register(8 * PAGE, ALL).unwrap();
                let bytes = all_of(&visitor);
                settle(&sides, &qps, &mut chance);
                sides[at].open = None;
                sides[at].see_off();
                sides[at].visitor = Some((visitor, bytes));
            }
            93..97 => {
                sides[at].open = None;
                sides[at].check(&mut chance, seed);
            }
            97 => sides[at].commit(),
            98 => {
                // Without a receive to spare this device has no barrier, and nobody could tell of an atomic.
                if !swaps {
                    settle(&sides, &qps, &mut chance);
                }
                drop(go(&sides[at].process, open()));
            }
            _ => {
                settle(&sides, &qps, &mut chance);
                for qp in &qps {
                    qp.set_state(qp_state::RESET).unwrap();
                }
                if chance.is(2) {
                    qps = sides.each_ref().map(|side| side.qp(&mut chance));
                }
                connect_patiently(&qps);
            }
        }
    }
    for side in &mut sides {
        side.open = None;
        side.check(&mut chance, seed);
    }
}

/// Everything that was posted comes to its end.
fn settle(sides: &[Side; 2], qps: &[QueuePair; 2], chance: &mut Chance) {
    for _ in 0..16 {
        for (side, qp) in sides.iter().zip(qps) {
            (0..DEPTH).for_each(|_| side.receive(qp, chance));
            side.poll();
        }
        sides.iter().for_each(|side| {
            side.process.context.suspend(late()).unwrap().end().unwrap();
            side.poll();
        });
    }
}

/// Promise 7: every byte that has changed is reported, over the device in memory.
#[test]
fn every_changed_byte_is_reported() {
    for seed in 0..25 {
        let (fabric, mut lid) = (Fabric::default(), 100);
        run(seed, false, &mut || {
            lid += 1;
            fabric.open(Port::infiniband(lid))
        });
        fabric.assert_no_overrun();
    }
}

/// Promise 7: the same over soft, executing at once or taking its time.
#[test]
fn every_changed_byte_is_reported_over_soft() {
    use soft::{Mode, Pace};
    for seed in 0..12 {
        let pace = Pace { seed, latency: Duration::from_micros(20), gbps: 10.0 };
        let mode = if seed % 2 == 0 { Mode::Sync } else { Mode::Async(pace) };
        let options = soft::Options { mode, ..soft::Options::default() };
        let mut n = 0;
        run(1000 + seed, true, &mut || {
            n += 1;
            soft::open_with(&format!("soft{}", n % 2), options).unwrap()
        });
    }
}

/// Promise 7: the same over a NIC, where there is one: `SOJOURN_TEST_DEVICE` names it, and `hw-tests/run` does so.
#[test]
fn every_changed_byte_is_reported_over_a_nic() {
    let Ok(name) = std::env::var("SOJOURN_TEST_DEVICE") else {
        println!("skipped: SOJOURN_TEST_DEVICE names no device");
        return;
    };
    for seed in 2000..2012 {
        run(seed, true, &mut || device::open(&name).unwrap());
        println!("seed {seed}: every byte");
    }
}
