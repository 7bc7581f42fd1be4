//! Retention of payloads, on and off: over the device that completes at once, and over the soft one.
//!
//! Both ends are queue pairs of this process, which is a job of its own. Time is taken of posting and
//! polling alone; epochs are committed in between.

use crate::null::NullDevice;
use sojourn_fabric::abi::{Wc, access};
use sojourn_fabric::device::DeviceContext;
use sojourn_fabric::device::soft::{Mode, Options, Pace, open_with};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Evidence, MemoryRegion, Op, Policy, Process,
    ProtectionDomain, QpOptions, QueuePair, Retention, SendRequest, Spill,
};
use sojourn_fabric::{Error, Result};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Registered memory of each side, used in turn: more than the caches of the second level hold.
const REGION: usize = 4 << 20;
/// Requests outstanding at once and at a pace, and bytes: fewer than a context may have, so that posting never waits for room.
const WINDOW: u64 = 16;
const PACED_WINDOW: u64 = 64;
const WINDOW_BYTES: usize = 4 << 20;
/// Bytes that are sent between two epochs at most: half of the ring.
const BATCH_BYTES: usize = Retention::DEFAULT_BYTES / 2;
/// And messages.
const BATCH: usize = 8192;
/// Between two looks for completions where there were none, over a paced device.
const REST: Duration = Duration::from_micros(20);
/// Longest wait for a completion.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is kept of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Its description.
    Descriptor,
    /// Its payload, and it is sent from the copy up to that many bytes.
    Payload(u32),
}

impl Kept {
    /// As is usual.
    #[must_use]
    pub fn payload() -> Self {
        Kept::Payload(Retention::DEFAULT_FROM_COPY)
    }

    fn policy(&self, spill: Spill) -> Policy {
        let retention = match *self {
            Kept::Descriptor => Retention::Descriptor,
            Kept::Payload(from_copy) => {
                Retention::Payload { bytes: Retention::DEFAULT_BYTES, spill, from_copy }
            }
        };
        // It is not what is measured.
        Policy { retention, evidence: Evidence::Psn, ..Policy::default() }
    }
}

/// Messages of `length` bytes in one batch.
#[must_use]
pub fn batch(length: usize) -> u64 {
    (BATCH_BYTES / length).min(BATCH) as u64
}

/// A context with memory.
struct Place {
    context: Context,
    pd: ProtectionDomain,
    cq: CompletionQueue,
    memory: MemoryRegion,
    process: Process,
    /// The next place of the memory.
    at: usize,
}

impl Place {
    fn new(device: Arc<dyn DeviceContext>, kept: &Kept, spill: Spill) -> Result<Self> {
        let process = Process::standalone()?;
        let context = process.open_with(device, kept.policy(spill))?;
        let (pd, cq) = (context.alloc_pd()?, context.create_cq(256)?);
        let memory = pd.register(REGION, access::LOCAL_WRITE | access::REMOTE_WRITE)?;
        // So that no page is touched for the first time while time is taken.
        memory.write(0, &vec![7; REGION]);
        Ok(Place { context, pd, cq, memory, process, at: 0 })
    }

    /// Posts `n` WRITEs of `length` bytes, `window` outstanding at a time, and sleeps for `rest` where nothing
    /// has completed.
    fn run(
        &mut self,
        qp: &QueuePair,
        length: usize,
        n: u64,
        window: u64,
        rest: Duration,
    ) -> Result<()> {
        let mut wcs = [Wc::default(); PACED_WINDOW as usize];
        let (mut posted, mut done) = (0, 0);
        let mut deadline = None;
        while done < n {
            while posted < n && posted - done < window {
                if self.at + length > REGION {
                    self.at = 0;
                }
                let sge = [self.memory.slice(self.at..self.at + length)];
                let to = Op::Write(self.memory.remote(self.at));
                qp.post_send(&SendRequest::new(posted, to, black_box(&sge)))?;
                self.at += length.next_multiple_of(64);
                posted += 1;
            }
            let got = self.cq.poll(&mut wcs)?;
            for wc in &wcs[..got] {
                wc.check()?;
            }
            done += got as u64;
            if got > 0 {
                deadline = None;
                continue;
            }
            // The engine of a paced device needs a processor, and there may be few.
            if !rest.is_zero() {
                std::thread::sleep(rest);
            }
            if Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + PATIENCE) {
                return Err(Error::new(libc::ETIMEDOUT, "a WRITE does not complete"));
            }
        }
        Ok(())
    }
}

/// Requests over the device that completes at once.
pub struct Posts(Place);

impl Posts {
    /// Sets it up.
    ///
    /// # Errors
    /// Where any of it cannot be created.
    pub fn new(kept: &Kept) -> Result<Self> {
        Ok(Posts(Place::new(NullDevice::open()?, kept, Spill::Drop)?))
    }

    /// How long `n` requests of `length` bytes take, [`batch`] at most, one at a time. Nobody receives them, so
    /// they are of a connection that is forgotten then.
    ///
    /// # Errors
    /// Where one fails.
    pub fn run(&mut self, length: usize, n: u64) -> Result<Duration> {
        let qp = self.0.pd.create_qp(&QpOptions::rc(&self.0.cq))?;
        qp.connect(&qp.endpoint()?, &ConnectOptions::default())?;
        let start = Instant::now();
        self.0.run(&qp, length, n, 1, Duration::ZERO)?;
        let took = start.elapsed();
        self.0.whole(&qp, n)?;
        self.0.context.forget_peer(self.0.process.grant().process)?;
        Ok(took)
    }
}

impl Place {
    /// Looks that all `n` that `qp` has sent are kept, where they are to be.
    fn whole(&self, qp: &QueuePair, n: u64) -> Result<()> {
        for it in self.context.retained()?.iter().filter(|it| it.qpn == qp.qp_num()) {
            if it.records < n || it.gap.is_some() {
                let text = format!("{} of {n} messages kept, missing {:?}", it.records, it.gap);
                return Err(Error::new(libc::EIO, text));
            }
        }
        Ok(())
    }
}

/// Copies into a ring as large as that of a log.
pub struct Copies {
    from: Vec<u8>,
    ring: Vec<u8>,
    at: (usize, usize),
}

impl Copies {
    /// An empty ring.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "there is nothing default about 64 MiB")]
    pub fn new() -> Self {
        let ring = Vec::with_capacity(Retention::DEFAULT_BYTES);
        let mut copies = Copies { from: vec![7; REGION], ring, at: (0, 0) };
        // On pages as large as the log's.
        let start = copies.ring.as_ptr().addr().next_multiple_of(4096);
        let length = Retention::DEFAULT_BYTES - 4096;
        // SAFETY: advice on memory that was allocated just now.
        unsafe { libc::madvise(start as *mut _, length, libc::MADV_HUGEPAGE) };
        copies.ring.resize(Retention::DEFAULT_BYTES, 1);
        copies
    }

    /// How long `n` copies of `length` bytes take, which the compiler does not know.
    #[inline(never)]
    pub fn run(&mut self, length: usize, n: u64) -> Duration {
        let start = Instant::now();
        for _ in 0..n {
            let length = black_box(length);
            if self.at.0 + length > self.from.len() {
                self.at.0 = 0;
            }
            if self.at.1 + length > self.ring.len() {
                self.at.1 = 0;
            }
            let to = &mut self.ring[self.at.1..self.at.1 + length];
            to.copy_from_slice(black_box(&self.from[self.at.0..self.at.0 + length]));
            black_box(to);
            let step = length.next_multiple_of(64);
            self.at = (self.at.0 + step, self.at.1 + step);
        }
        start.elapsed()
    }
}

/// Two connected queue pairs over the soft device.
pub struct Connection {
    place: Place,
    from: QueuePair,
    to: QueuePair,
    rest: Duration,
    window: u64,
}

impl Connection {
    /// Sets them up, over a device that executes at once or at a pace, in Gb/s.
    ///
    /// # Errors
    /// Where any of it cannot be created.
    pub fn new(kept: &Kept, pace: Option<f64>, spill: Option<&Path>) -> Result<Self> {
        let mode = match pace {
            None => Mode::Sync,
            Some(gbps) => Mode::Async(Pace { seed: 7, latency: Duration::from_micros(2), gbps }),
        };
        let device = open_with("soft0", Options { mode, ..Options::default() })?;
        let spill = spill.map_or(Spill::Drop, |dir| Spill::To(dir.to_owned()));
        let place = Place::new(device, kept, spill)?;
        let options = QpOptions::rc(&place.cq);
        let (from, to) = place.pd.create_pair(&options, &ConnectOptions::default())?;
        let (rest, window) = match pace {
            Some(_) => (REST, PACED_WINDOW),
            None => (Duration::ZERO, WINDOW),
        };
        Ok(Connection { place, from, to, rest, window })
    }

    /// How long `n` WRITEs of `length` bytes take; [`batch`] at most, unless they are spilled. An epoch covers
    /// them then.
    ///
    /// # Errors
    /// Where one fails, or is not kept.
    pub fn run(&mut self, length: usize, n: u64) -> Result<Duration> {
        let start = Instant::now();
        let window = self.window.min((WINDOW_BYTES / length) as u64);
        self.place.run(&self.from, length, n, window, self.rest)?;
        let took = start.elapsed();
        self.place.whole(&self.from, n)?;
        // The message behind them.
        self.to.post_recv(0, &[])?;
        self.from.post_send(&SendRequest::new(0, Op::Send, &[]))?;
        for _ in 0..2 {
            self.place.cq.expect(PATIENCE)?.check()?;
        }
        self.place.context.cut()?.commit(Instant::now() + PATIENCE)?;
        Ok(took)
    }
}
