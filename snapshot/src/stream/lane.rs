//! One queue pair to a store, used by one thread at a time.

use crate::{Error, Result};
use sojourn_fabric::abi::{QpCap, Sge, Wc};
use sojourn_fabric::virt::{
    CompletionQueue, Op, ProtectionDomain, QpOptions, QueuePair, SendRequest,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Requests outstanding: enough to keep a device busy with single pages.
const DEPTH: u32 = 128;
/// Every so many requests one is signalled …
const SIGNAL_EVERY: u64 = 16;
/// … and each that is so long: what is read is looked at while it is in the cache.
const SIGNAL_BYTES: u32 = 256 << 10;
/// Bytes outstanding. Bounds what a pause has to wait for when it finds a round under way.
const MAX_BYTES: usize = 32 << 20;
const _: () =
    assert!(SIGNAL_EVERY < DEPTH as u64 && SIGNAL_EVERY * SIGNAL_BYTES as u64 <= MAX_BYTES as u64);
/// A queue pair says by itself that its peer is gone; this is for devices that do not.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request that has not completed.
struct Pending<T> {
    number: u64,
    bytes: usize,
    what: T,
}

/// A queue pair, its completion queue, and the requests that are outstanding. `T` says what each one is.
///
/// Not every request is signalled, but the last one has to be. So one that is not is held back until it is known
/// whether it is the last.
pub(crate) struct Lane<T> {
    pub(crate) qp: QueuePair,
    cq: CompletionQueue,
    held: Option<(Op, Sge, T)>,
    pending: VecDeque<Pending<T>>,
    bytes: usize,
    next: u64,
    /// The last request that was signalled.
    signalled: u64,
    /// How long nothing may complete.
    pub(crate) patience: Duration,
}

impl<T> Lane<T> {
    /// A queue pair of `pd`, not connected yet.
    ///
    /// # Errors
    /// Where the device has no more.
    pub(crate) fn new(pd: &ProtectionDomain) -> Result<Lane<T>> {
        let cq = pd.context().create_cq(DEPTH)?;
        let cap = QpCap { max_send_wr: DEPTH, max_recv_wr: 1, max_send_sge: 1, ..QpCap::default() };
        let qp = pd.create_qp(&QpOptions { cap, ..QpOptions::rc(&cq) })?;
        let (held, pending) = (None, VecDeque::new());
        let (bytes, next, signalled, patience) = (0, 1, 0, PATIENCE);
        Ok(Lane { qp, cq, held, pending, bytes, next, signalled, patience })
    }

    /// Hands a request over once there is room for it. What has completed until then goes to `done`.
    ///
    /// # Errors
    /// A request has failed: the lane is of no use any more. What has completed before went to `done`.
    pub(crate) fn post(
        &mut self,
        op: Op,
        local: Sge,
        what: T,
        done: &mut impl FnMut(T),
    ) -> Result<()> {
        if let Some((op, local, what)) = self.held.take() {
            self.hand(op, local, what, false, done)?;
        }
        if self.next - self.signalled >= SIGNAL_EVERY || local.length >= SIGNAL_BYTES {
            self.hand(op, local, what, true, done)?;
            return self.harvest(false, done);
        }
        self.held = Some((op, local, what));
        Ok(())
    }

    /// Waits until all that was handed over has completed.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub(crate) fn drain(&mut self, done: &mut impl FnMut(T)) -> Result<()> {
        if let Some((op, local, what)) = self.held.take() {
            self.hand(op, local, what, true, done)?;
        }
        while !self.pending.is_empty() {
            self.harvest(true, done)?;
        }
        Ok(())
    }

    fn hand(
        &mut self,
        op: Op,
        local: Sge,
        what: T,
        signal: bool,
        done: &mut impl FnMut(T),
    ) -> Result<()> {
        // What fills it has a signalled one among it: it is more than SIGNAL_EVERY, or a long one.
        while self.pending.len() >= DEPTH as usize || self.bytes >= MAX_BYTES {
            self.harvest(true, done)?;
        }
        let number = self.next;
        let request = SendRequest::new(number, op, std::slice::from_ref(&local));
        self.qp.post_send(&if signal { request } else { request.unsignaled() })?;
        self.signalled = if signal { number } else { self.signalled };
        self.next += 1;
        self.bytes += local.length as usize;
        self.pending.push_back(Pending { number, bytes: local.length as usize, what });
        Ok(())
    }

    fn harvest(&mut self, wait: bool, done: &mut impl FnMut(T)) -> Result<()> {
        let mut wcs = [Wc::default(); 16];
        let many = if wait {
            self.cq.wait(&mut wcs, Instant::now() + self.patience)?
        } else {
            self.cq.poll(&mut wcs)?
        };
        if wait && many == 0 {
            let text = format!("nothing has completed for {} s", self.patience.as_secs());
            return Err(Error::new(libc::ETIMEDOUT, text));
        }
        for wc in &wcs[..many] {
            wc.check()?;
            while self.pending.front().is_some_and(|first| first.number <= wc.wr_id) {
                if let Some(first) = self.pending.pop_front() {
                    self.bytes -= first.bytes;
                    done(first.what);
                }
            }
        }
        Ok(())
    }
}
