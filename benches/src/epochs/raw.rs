//! The device's own WRITEs: from the memory of a program into memory of another process as a store has it. No
//! checksums, no tables, nobody who keeps count.

use super::field::{Elsewhere, Field};
use super::part::{DEVICE, Target};
use sojourn_fabric::abi::{QpCap, Sge, Wc};
use sojourn_fabric::device::DeviceMr;
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Op, ProtectionDomain, QpOptions, QueuePair, Remote,
    SendRequest,
};
use sojourn_fabric::{Error, Result};
use sojourn_snapshot::{PAGE, PageSet};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a WRITE at most.
pub const LONGEST: usize = 1 << 20;
/// Requests outstanding.
const DEPTH: u32 = 128;
/// One of so many is signalled.
const SIGNAL_EVERY: u64 = 16;
/// Longest wait for a WRITE.
const PATIENCE: Duration = Duration::from_secs(20);

/// One queue pair.
struct Lane {
    qp: QueuePair,
    cq: CompletionQueue,
}

/// A program's memory, and a process to write it into.
pub struct Raw {
    lanes: Vec<Lane>,
    target: Target,
    mr: Arc<dyn DeviceMr>,
    base: usize,
    elsewhere: Elsewhere,
    _pd: ProtectionDomain,
}

impl Raw {
    /// For so many threads.
    ///
    /// # Safety
    /// `field` lives longer than this value.
    ///
    /// # Errors
    /// Where the second process cannot be started.
    pub unsafe fn start(field: &Field, lanes: usize) -> Result<Self> {
        let pd = Context::open_raw(DEVICE)?.alloc_pd()?;
        let at = field.range().start as *mut c_void;
        // SAFETY: the caller's promise; nobody writes through it.
        let mr = unsafe { Arc::clone(pd.device()).reg_mr(at, field.bytes(), 0) }?;
        let lane = |_| {
            let cq = pd.context().create_cq(DEPTH)?;
            let cap =
                QpCap { max_send_wr: DEPTH, max_recv_wr: 1, max_send_sge: 1, ..QpCap::default() };
            let qp = pd.create_qp(&QpOptions { cap, ..QpOptions::rc(&cq) })?;
            qp.init(&ConnectOptions::default())?;
            Ok(Lane { qp, cq })
        };
        let lanes = (0..lanes).map(lane).collect::<Result<Vec<_>>>()?;
        let qps: Vec<&QueuePair> = lanes.iter().map(|lane| &lane.qp).collect();
        let target = Target::start(field.bytes(), &qps)?;
        Ok(Raw {
            lanes,
            target,
            mr,
            base: field.range().start,
            elsewhere: Elsewhere::new(),
            _pd: pd,
        })
    }

    /// How long it takes to write these pages, consecutive ones together, with `threads` queue pairs, each of a thread
    /// of its own.
    ///
    /// # Errors
    /// Where a WRITE fails.
    pub fn write(&mut self, pages: &PageSet, threads: usize) -> Result<Duration> {
        let pieces = pieces(pages);
        let (lkey, base, remote) = (self.mr.lkey(), self.base, self.target.remote);
        self.elsewhere.visit();
        let start = Instant::now();
        let run = |lane: &Lane, mine: &[Range<usize>]| lane.write(lkey, base, remote, mine);
        let each = pieces.len().div_ceil(threads).max(1);
        std::thread::scope(|scope| {
            let mut jobs = self.lanes.iter().take(threads).zip(pieces.chunks(each));
            let own = jobs.next();
            let others: Vec<_> =
                jobs.map(|(lane, mine)| scope.spawn(move || run(lane, mine))).collect();
            own.map_or(Ok(()), |(lane, mine)| run(lane, mine))?;
            let others = others.into_iter().map(|it| it.join().expect("a write does not panic"));
            others.collect::<Result<()>>()
        })?;
        Ok(start.elapsed())
    }
}

/// Pages as ranges of bytes, none longer than a WRITE.
fn pieces(pages: &PageSet) -> Vec<Range<usize>> {
    let cut = |run: Range<usize>| {
        let (start, end) = (run.start * PAGE, run.end * PAGE);
        (start..end).step_by(LONGEST).map(move |at| at..end.min(at + LONGEST))
    };
    pages.runs().flat_map(cut).collect()
}

impl Lane {
    fn write(&self, lkey: u32, base: usize, remote: Remote, mine: &[Range<usize>]) -> Result<()> {
        let (mut posted, mut done, last) = (0, 0, mine.len() as u64);
        for piece in mine {
            while posted - done >= u64::from(DEPTH) {
                done = self.harvest(done)?;
            }
            let length = piece.len() as u32;
            let local = [Sge { addr: (base + piece.start) as u64, length, lkey }];
            posted += 1;
            let op = Op::Write(remote.offset(piece.start as u64));
            let request = SendRequest::new(posted, op, &local);
            let signal = posted.is_multiple_of(SIGNAL_EVERY) || posted == last;
            self.qp.post_send(&if signal { request } else { request.unsignaled() })?;
        }
        while done < last {
            done = self.harvest(done)?;
        }
        Ok(())
    }

    /// Waits for a completion, and returns how many requests are done.
    fn harvest(&self, done: u64) -> Result<u64> {
        let mut wcs = [Wc::default(); 16];
        let many = self.cq.wait(&mut wcs, Instant::now() + PATIENCE)?;
        if many == 0 {
            return Err(Error::new(libc::ETIMEDOUT, "a WRITE does not complete"));
        }
        wcs[..many].iter().try_for_each(|wc| wc.check())?;
        Ok(wcs[..many].iter().map(|wc| wc.wr_id).fold(done, u64::max))
    }
}
