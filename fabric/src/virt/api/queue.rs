//! Completion queues and channels, and shared receive queues.

use crate::abi::{self, RecvWr, Sge, Wc};
use crate::device::{DeviceChannel, DeviceCq, DeviceSrq};
use crate::error::{Error, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Empty polls before a waiter lets other processes run: on a machine with more ranks than
/// cores the peer that it waits for may need this very core.
const SPINS_BEFORE_YIELD: u32 = 200;

/// A completion queue.
#[derive(Clone)]
pub struct CompletionQueue {
    cq: Arc<dyn DeviceCq>,
}

impl CompletionQueue {
    pub(super) fn over(cq: Arc<dyn DeviceCq>) -> Self {
        CompletionQueue { cq }
    }

    /// The device's object.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DeviceCq> {
        &self.cq
    }

    /// Takes the completions that are there, at most `wcs.len()`, and returns how many.
    ///
    /// # Errors
    /// The queue was overrun, or the device is gone.
    #[inline]
    pub fn poll(&self, wcs: &mut [Wc]) -> Result<usize> {
        match self.cq.poll(wcs) {
            Ok(n) => Ok(n as usize),
            Err(errno) => Err(Error::new(errno, "polling a completion queue failed")),
        }
    }

    /// Takes at least one completion, waiting for it at most until `deadline`; 0 when it passed.
    /// It polls; use a [`CompletionChannel`] to sleep.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn wait(&self, wcs: &mut [Wc], deadline: Instant) -> Result<usize> {
        let mut spins = 0;
        loop {
            let n = self.poll(wcs)?;
            if n > 0 {
                return Ok(n);
            }
            spins += 1;
            if spins < SPINS_BEFORE_YIELD {
                std::hint::spin_loop();
                continue;
            }
            if Instant::now() >= deadline {
                return Ok(0);
            }
            std::thread::yield_now();
        }
    }

    /// The next completion, which must come within `patience` and be a success.
    ///
    /// # Errors
    /// `ETIMEDOUT` when none came; `EIO` naming the status of one that failed.
    pub fn expect(&self, patience: Duration) -> Result<Wc> {
        let mut wc = [Wc::default()];
        if self.wait(&mut wc, Instant::now() + patience)? == 0 {
            return Err(Error::new(
                libc::ETIMEDOUT,
                format!("no completion within {} ms", patience.as_millis()),
            ));
        }
        wc[0].check()?;
        Ok(wc[0])
    }

    /// Asks for an event on the channel when the next completion is added (with
    /// `solicited_only`: the next solicited or failed one). Poll once more after it.
    ///
    /// # Errors
    /// `EINVAL` where the queue has no channel.
    pub fn req_notify(&self, solicited_only: bool) -> Result<()> {
        self.cq.req_notify(solicited_only)
    }

    /// Changes the number of completions that it holds.
    ///
    /// # Errors
    /// `EINVAL` for a size beyond the device's.
    pub fn resize(&self, cqe: u32) -> Result<()> {
        self.cq.resize(cqe)
    }
}

impl Wc {
    /// An error that names the status, where this completion is not a success.
    ///
    /// # Errors
    /// `EIO` where the status is not SUCCESS.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.status == abi::wc_status::SUCCESS { Ok(()) } else { Err(self.failure()) }
    }

    #[cold]
    fn failure(&self) -> Error {
        Error::new(
            libc::EIO,
            format!(
                "work request {:#x} of queue pair {:#x} ended with {} ({}), vendor error {:#x}",
                self.wr_id,
                self.qp_num,
                abi::wc_status::name(self.status),
                self.status,
                self.vendor_err
            ),
        )
    }
}

/// Where a completion queue announces completions: a pollable descriptor.
#[derive(Clone)]
pub struct CompletionChannel {
    channel: Arc<dyn DeviceChannel>,
}

impl CompletionChannel {
    pub(super) fn over(channel: Arc<dyn DeviceChannel>) -> Self {
        CompletionChannel { channel }
    }

    /// The device's object.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DeviceChannel> {
        &self.channel
    }

    /// Readable when [`Self::wait`] would not wait.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.channel.fd()
    }

    /// The `user` value of the next queue that has an event, or `None` when none comes before
    /// `deadline`.
    ///
    /// # Errors
    /// `EIO` when the device is gone.
    pub fn wait(&self, deadline: Instant) -> Result<Option<u64>> {
        loop {
            if let Some(user) = self.channel.get_event()? {
                return Ok(Some(user));
            }
            if !readable(self.channel.fd(), deadline)? {
                return self.channel.get_event();
            }
        }
    }
}

/// Waits until `fd` is readable; false when `deadline` passed first.
pub(super) fn readable(fd: BorrowedFd<'_>, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a millisecond is not a busy loop.
        let left =
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left) {
            Ok(n) if n > 0 => return Ok(true),
            Ok(_) if Instant::now() >= deadline => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(errno as i32, "waiting for a descriptor")),
        }
    }
}

/// Receives that many queue pairs share.
#[derive(Clone)]
pub struct SharedReceiveQueue {
    srq: Arc<dyn DeviceSrq>,
}

impl SharedReceiveQueue {
    pub(super) fn over(srq: Arc<dyn DeviceSrq>) -> Self {
        SharedReceiveQueue { srq }
    }

    /// The device's object.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DeviceSrq> {
        &self.srq
    }

    /// Posts a receive.
    ///
    /// # Errors
    /// `ENOMEM` where the queue is full, `EINVAL` for too many elements.
    pub fn post_recv(&self, wr_id: u64, sges: &[Sge]) -> Result<()> {
        let mut wr = recv_wr(wr_id, sges)?;
        // SAFETY: one request whose list lives through the call; the device checks every element
        // against the registered regions when it uses it.
        unsafe { self.srq.post_recv(&raw mut wr) }
            .map_err(|error| Error::new(error.errno(), "posting a shared receive was refused"))
    }

    /// Asks for one SRQ_LIMIT_REACHED event when fewer than `limit` receives are left.
    ///
    /// # Errors
    /// `EINVAL` for a limit above the size.
    pub fn arm_limit(&self, limit: u32) -> Result<()> {
        let attr = abi::SrqAttr { srq_limit: limit, ..abi::SrqAttr::default() };
        self.srq.modify(&attr, abi::srq_mask::LIMIT)
    }

    /// Its sizes and its limit.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn query(&self) -> Result<abi::SrqAttr> {
        self.srq.query()
    }
}

/// A receive request over `sges`.
#[inline]
pub(super) fn recv_wr(wr_id: u64, sges: &[Sge]) -> Result<RecvWr> {
    Ok(RecvWr {
        wr_id,
        next: std::ptr::null_mut(),
        sg_list: sges.as_ptr().cast_mut(),
        num_sge: sge_count(sges)?,
    })
}

#[inline]
pub(super) fn sge_count(sges: &[Sge]) -> Result<i32> {
    i32::try_from(sges.len())
        .map_err(|_| Error::invalid(format!("{} elements in one request", sges.len())))
}
