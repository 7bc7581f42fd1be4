//! Receive queues: posted receives, in the arena of the public region.
//!
//! A connected QP's receives are taken by its peer, in order, by count alone; they end here, in
//! the same order, as the peer's records are read from the ring. Those of UD queue pairs and
//! SRQs are taken and ended by their owner in one step.

use super::super::core::Core;
use super::super::limits::{MAX_SGE, MAX_WR};
use super::super::region::{QpEntry, RECEIVE, RecvRing, Region, recv_stride};
use crate::abi::{RecvWr, Sge};
use crate::{Error, Result};
use std::sync::atomic::Ordering;

/// See the module's documentation.
pub(in super::super) struct RecvQueue {
    pub(in super::super) ring: RecvRing,
    ids: Box<[u64]>,
    max_wr: u64,
    max_sge: u32,
    arena: (usize, usize),
    /// Receives posted since RESET.
    pub(in super::super) posted: u64,
    /// Receives ended since RESET.
    pub(in super::super) done: u64,
    /// What peers are told of those between ([`QpEntry::fits`]).
    fits: u32,
    /// Bytes of a message that has come in part.
    pub(in super::super) filled: u32,
    /// The receive of the SRQ that a message from another machine is filling.
    pub(in super::super) held: Option<Held>,
    /// The parts that have come of a message to an SRQ (where copies are forbidden).
    pub(in super::super) parts: Vec<u8>,
    /// The QP is at ERR: receives end as they are posted.
    pub(in super::super) flushing: bool,
}

/// A receive that was taken from its queue.
#[derive(Clone, Copy)]
pub(in super::super) struct Taken {
    pub(in super::super) number: u64,
    pub(in super::super) wr_id: u64,
}

impl RecvQueue {
    pub(in super::super) fn new(core: &Core, max_wr: u32, max_sge: u32) -> Result<RecvQueue> {
        if max_wr > MAX_WR || max_sge > MAX_SGE as u32 {
            return Err(Error::invalid(format!(
                "{max_wr} receives of {max_sge} elements: {} has at most {MAX_WR} of {MAX_SGE}",
                core.name
            )));
        }
        let entries = max_wr.max(1).next_power_of_two();
        let stride = recv_stride(max_sge);
        let bytes = entries as usize * stride as usize;
        let at = core.numbers.lock().memory(bytes)?;
        Ok(RecvQueue {
            ring: RecvRing::new(at, entries, stride),
            ids: vec![0; entries as usize].into(),
            max_wr: max_wr.into(),
            max_sge,
            arena: (at, bytes),
            posted: 0,
            done: 0,
            fits: 0,
            filled: 0,
            held: None,
            parts: Vec::new(),
            flushing: false,
        })
    }

    /// Gives the memory back; the queue is of no further use.
    pub(in super::super) fn free(&mut self, core: &Core) {
        let (at, bytes) = std::mem::take(&mut self.arena);
        if bytes > 0 {
            core.numbers.lock().free_memory(&core.region, at, bytes);
        }
    }

    pub(in super::super) fn reset(&mut self) {
        (self.posted, self.done, self.filled, self.flushing) = (0, 0, 0, false);
        self.fits = 0;
        self.parts = Vec::new();
        self.held = None;
    }

    /// Receives that are posted and have not ended.
    pub(in super::super) fn len(&self) -> u64 {
        self.posted - self.done
    }

    /// Posts one receive; a queue pair's `entry` shows it to the peer, and vouches for memory
    /// under its `pd`.
    ///
    /// # Safety
    /// As `ibv_post_recv(3)`: the request's pointers are valid.
    #[inline]
    pub(in super::super) unsafe fn post(
        &mut self,
        region: &Region,
        entry: Option<(&QpEntry, u32)>,
        wr: &RecvWr,
    ) -> std::result::Result<(), i32> {
        if wr.num_sge < 0 || wr.num_sge as u32 > self.max_sge {
            return Err(libc::EINVAL);
        }
        if self.len() >= self.max_wr {
            return Err(libc::ENOMEM);
        }
        let sges: &[Sge] = match wr.num_sge {
            0 => &[],
            _ if wr.sg_list.is_null() => return Err(libc::EINVAL),
            // SAFETY: the caller's promise; not null and within the limit.
            count => unsafe { std::slice::from_raw_parts(wr.sg_list, count as usize) },
        };
        let total = self.ring.put(region, self.posted, sges);
        let at = self.posted as usize & (self.ids.len() - 1);
        self.ids[at] = wr.wr_id;
        if let Some((entry, pd)) = entry {
            self.vouch(region, entry, pd, sges, total);
            entry.posted.0.store(self.posted + 1, Ordering::Release);
        }
        self.posted += 1;
        Ok(())
    }

    /// Tells peers what holds for all receives, with the one that is being posted.
    #[inline]
    fn vouch(&mut self, region: &Region, entry: &QpEntry, pd: u32, sges: &[Sge], total: u32) {
        let sound = sges.iter().all(|sge| {
            sge.length == 0 || region.vouch(sge.lkey, pd, sge.addr, sge.length.into(), RECEIVE)
        });
        let holds = if sound { total } else { 0 };
        // Whoever waits for a receive looks for the number posted first, and here then.
        let fits = if self.len() == 0 { holds } else { self.fits.min(holds) };
        if fits != self.fits {
            self.fits = fits;
            entry.fits.store(fits, Ordering::Relaxed);
        }
    }

    /// Memory behind `key` is no longer registered.
    pub(in super::super) fn disavow(&mut self, region: &Region, entry: &QpEntry, key: u32) {
        let named = |number: u64| {
            let sges = self.ring.sges(region, number);
            sges.into_iter().flatten().any(|sge| sge.lkey == key)
        };
        if self.fits > 0 && (self.done..self.posted).any(named) {
            self.fits = 0;
            entry.fits.store(0, Ordering::SeqCst);
        }
    }

    /// The receive whose turn it is has ended.
    #[inline]
    pub(in super::super) fn end(&mut self) {
        self.done += 1;
        self.filled = 0;
    }

    /// The receive whose turn it is, if one is posted.
    #[inline]
    pub(in super::super) fn front(&self) -> Option<Taken> {
        (self.done < self.posted).then(|| Taken {
            number: self.done,
            wr_id: self.ids[self.done as usize & (self.ids.len() - 1)],
        })
    }

    /// Bytes that receive `number` holds.
    pub(in super::super) fn capacity(&self, region: &Region, number: u64) -> u64 {
        self.ring.total(region, number).unwrap_or(0)
    }

    /// The pieces of receive `number` that hold the bytes `skip .. skip + len` of its message, as
    /// addresses and lengths, if all of them may be written under `pd`.
    pub(in super::super) fn pieces(
        &self,
        region: &Region,
        number: u64,
        pd: u32,
        skip: u32,
        len: u32,
    ) -> Option<Pieces> {
        pieces(region, &self.ring, number, pd, skip, len)
    }

    /// Copies bytes into receive `number`, behind the first `skip`. `None` where its memory is
    /// not registered (any more), or too short.
    #[inline]
    pub(in super::super) fn scatter(
        &self,
        region: &Region,
        number: u64,
        pd: u32,
        skip: u32,
        bytes: &[u8],
    ) -> Option<()> {
        let sges = self.ring.sges(region, number)?;
        // `dereg` waits for the ring's lock, which the caller holds.
        scatter(region, sges, pd, skip, bytes)
    }
}

/// A receive that was taken from an SRQ, and is filled part by part.
pub(in super::super) struct Held {
    pub(in super::super) wr_id: u64,
    sges: Vec<Sge>,
    /// Bytes that have come.
    pub(in super::super) filled: u32,
}

impl Held {
    pub(in super::super) fn of(queue: &RecvQueue, region: &Region, receive: Taken) -> Held {
        let sges = queue.ring.sges(region, receive.number).into_iter().flatten().collect();
        Held { wr_id: receive.wr_id, sges, filled: 0 }
    }

    pub(in super::super) fn capacity(&self) -> u64 {
        self.sges.iter().map(|sge| u64::from(sge.length)).sum()
    }

    /// Copies bytes behind those that have come. `None` where the memory is not registered (any
    /// more), or too short.
    pub(in super::super) fn scatter(
        &mut self,
        region: &Region,
        pd: u32,
        bytes: &[u8],
    ) -> Option<()> {
        // `dereg` waits for the connection's lock, which the caller holds.
        scatter(region, self.sges.iter().copied(), pd, self.filled, bytes)?;
        self.filled += bytes.len() as u32;
        Some(())
    }
}

/// Pieces of memory: addresses and lengths.
pub(in super::super) struct Pieces {
    list: [std::mem::MaybeUninit<(u64, u64)>; MAX_SGE],
    len: usize,
}

impl Pieces {
    pub(in super::super) fn new() -> Pieces {
        Pieces { list: [const { std::mem::MaybeUninit::uninit() }; MAX_SGE], len: 0 }
    }

    /// Adds a piece; `false` where there is no room.
    #[inline]
    pub(in super::super) fn push(&mut self, addr: u64, len: u64) -> bool {
        let Some(place) = self.list.get_mut(self.len) else { return false };
        place.write((addr, len));
        self.len += 1;
        true
    }

    #[inline]
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + Clone + '_ {
        // SAFETY: the first `len` are written.
        self.list[..self.len].iter().map(|piece| unsafe { piece.assume_init() })
    }

    pub(in super::super) fn len(&self) -> usize {
        self.len
    }
}

/// See [`RecvQueue::pieces`]; also for the receive of a peer, seen in its region.
#[inline]
pub(in super::super) fn pieces(
    region: &Region,
    ring: &RecvRing,
    number: u64,
    pd: u32,
    skip: u32,
    len: u32,
) -> Option<Pieces> {
    let mut pieces = Pieces::new();
    let sges = ring.sges(region, number)?;
    select(region, sges, pd, skip, len, |addr, len| pieces.push(addr, len)).then_some(pieces)
}

/// Copies `bytes` into a scatter list, behind the first `skip`. The caller holds a lock for which
/// `dereg` waits.
#[inline]
fn scatter(
    region: &Region,
    sges: impl Iterator<Item = Sge>,
    pd: u32,
    skip: u32,
    bytes: &[u8],
) -> Option<()> {
    let mut rest = bytes;
    let whole = select(region, sges, pd, skip, bytes.len() as u32, |addr, len| {
        let (now, later) = rest.split_at(len as usize);
        // SAFETY: in a region that is registered for writing now, and is so until the lock that
        // the caller holds is free; a registered region stays mapped (`DevicePd::reg_mr`). Raw
        // copy, no reference.
        unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), addr as *mut u8, now.len()) };
        rest = later;
        true
    });
    whole.then_some(())
}

/// Walks through the pieces of a scatter list that hold the bytes `skip .. skip + len`; whether
/// all of them are there and may be written, and `each` took them.
#[inline]
fn select(
    region: &Region,
    sges: impl Iterator<Item = Sge>,
    pd: u32,
    skip: u32,
    len: u32,
    mut each: impl FnMut(u64, u64) -> bool,
) -> bool {
    let (mut skip, mut left) = (u64::from(skip), u64::from(len));
    for sge in sges {
        if left == 0 {
            break;
        }
        let size = u64::from(sge.length);
        if skip >= size {
            skip -= size;
            continue;
        }
        let now = (size - skip).min(left);
        let Some(addr) = sge.addr.checked_add(skip) else { return false };
        if !region.permits(sge.lkey, pd, addr, now, RECEIVE) || !each(addr, now) {
            return false;
        }
        skip = 0;
        left -= now;
    }
    left == 0
}
