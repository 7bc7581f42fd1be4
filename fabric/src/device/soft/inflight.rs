//! Revocable slots: how remote access is fenced.
//!
//! The initiator of a copy between processes makes `process_vm_writev`/`readv` take the *remote*
//! half of its arguments from a slot in memory shared with the target:
//!
//! 1. the initiator claims a slot, fills in where it will reach, and publishes it (SeqCst);
//! 2. only then it checks the target's words: region key, QP state, life word;
//! 3. it makes the system call, which reads the slot's iovec at its start;
//! 4. it publishes what else belongs to the operation (ring record, PSN), and frees the slot.
//!
//! A target that deregisters or leaves a state first makes its word say so (SeqCst), then looks
//! at the slots. A slot that is published later finds the word changed in step 2. One that is
//! there already is *revoked*: its lengths become 0, so a call that has not begun moves nothing;
//! then the target waits until the slot is free, or its thread can no longer be inside the
//! copy: the process is dead (pidfd), it has replaced its program (life word), the thread is gone,
//! or it is stopped (`T`/`t` in its `stat`: a thread stops on its way out of the kernel, never
//! inside the copy, and when it goes on it reads a revoked slot). The wait has a deadline.
//!
//! An initiator whose copy came up short looks again from step 2: whoever revoked a slot that
//! was not his to stop (two regions over the same memory) only makes it repeat the copy.
//!
//! What remains: a *target* that replaces its program by exec between an initiator's step 2 and
//! 3 (see `life`).

use super::limits::{FENCE, MAX_SGE};
use super::shm::{Mapping, Shared};
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

/// Slots of a link in one direction: as many threads of one process may copy at a time.
pub(super) const SLOTS: usize = 16;

const FREE: u32 = 0;
const ACTIVE: u32 = 1;
const REVOKED: u32 = 2;

/// A remote piece, laid out as `struct iovec`.
#[repr(C)]
struct Piece {
    base: AtomicU64,
    len: AtomicU64,
}

/// One copy in flight.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// `turn << 2 | state`; the turn grows with each use.
    state: AtomicU64,
    tid: AtomicU32,
    /// The target's queue pair.
    qpn: AtomicU32,
    count: AtomicU32,
    pieces: [Piece; MAX_SGE],
}
// SAFETY: atomics only; padding is never read.
unsafe impl Shared for Slot {}

const _: () = assert!(size_of::<Slot>() == 512);
const _: () = assert!(size_of::<Piece>() == size_of::<libc::iovec>());

/// Bytes of a set of slots.
pub(super) const SLOTS_BYTES: usize = SLOTS * size_of::<Slot>();

/// The slots of one direction of a link.
#[derive(Clone)]
pub(super) struct Slots {
    mapping: Arc<Mapping>,
    at: usize,
}

thread_local! {
    // SAFETY: plain system call.
    static TID: u32 = unsafe { libc::gettid() } as u32;
}

/// A slot that this thread has claimed. Dropping frees it.
pub(super) struct Claimed<'a> {
    slot: &'a Slot,
    busy: &'a AtomicU32,
    index: u32,
    turn: u64,
}

impl Slots {
    pub(super) fn new(mapping: Arc<Mapping>, at: usize) -> Self {
        Slots { mapping, at }
    }

    fn slot(&self, index: usize) -> &Slot {
        self.mapping.at(self.at + index * size_of::<Slot>())
    }

    /// Claims a slot; `busy` is the initiator's own mask of those in use.
    #[inline]
    pub(super) fn claim<'a>(&'a self, busy: &'a AtomicU32) -> Claimed<'a> {
        loop {
            let mask = busy.load(Ordering::Relaxed);
            let index = mask.trailing_ones();
            if index as usize >= SLOTS {
                std::thread::yield_now();
                continue;
            }
            let taken = mask | 1 << index;
            let claim =
                busy.compare_exchange_weak(mask, taken, Ordering::Acquire, Ordering::Relaxed);
            if claim.is_ok() {
                let slot = self.slot(index as usize);
                let turn = (slot.state.load(Ordering::Relaxed) >> 2) + 1;
                return Claimed { slot, busy, index, turn };
            }
        }
    }

    /// Waits until none of the slots published before this call, and chosen by `touches`, can
    /// still move data: the target's half of the protocol.
    ///
    /// # Errors
    /// `EBUSY`, naming the process, when the deadline passes.
    pub(super) fn fence(
        &self,
        touches: impl Fn(&Slot) -> bool,
        peer: &dyn Liveness,
        doing: &str,
    ) -> Result<()> {
        fence(Ordering::SeqCst);
        for index in 0..SLOTS {
            let slot = self.slot(index);
            let seen = slot.state.load(Ordering::SeqCst);
            if seen as u32 & 3 == FREE {
                continue;
            }
            // Revoking zeroes the lengths, so that a slot revoked by somebody else no longer shows
            // what it touches: it counts, whether it was so before or became so while we looked.
            let revoked = seen & !3 | u64::from(REVOKED);
            if touches(slot) || slot.state.load(Ordering::SeqCst) == revoked {
                slot.revoke(seen);
                slot.wait(seen >> 2, peer, doing)?;
            }
        }
        Ok(())
    }
}

impl Slots {
    /// Waits until the copies that this process itself has in flight here have ended. They are
    /// not revoked: they end by themselves.
    ///
    /// # Errors
    /// `EBUSY` when the deadline passes.
    pub(super) fn drain(&self, own: &dyn Liveness, doing: &str) -> Result<()> {
        fence(Ordering::SeqCst);
        for index in 0..SLOTS {
            let slot = self.slot(index);
            let seen = slot.state.load(Ordering::SeqCst);
            if seen as u32 & 3 != FREE {
                slot.wait(seen >> 2, own, doing)?;
            }
        }
        Ok(())
    }
}

/// What a fence must know of the process on the other side.
pub(super) trait Liveness {
    /// Its process id.
    fn pid(&self) -> u32;
    /// It is dead, or runs another program.
    fn gone(&self) -> bool;
}

impl Slot {
    pub(super) fn qpn(&self) -> u32 {
        self.qpn.load(Ordering::Relaxed)
    }

    /// Whether it reaches into `addr .. addr + len`.
    pub(super) fn overlaps(&self, addr: u64, len: u64) -> bool {
        let count = self.count.load(Ordering::Relaxed) as usize;
        self.pieces.iter().take(count).any(|piece| {
            let (base, size) =
                (piece.base.load(Ordering::Relaxed), piece.len.load(Ordering::Relaxed));
            base < addr.saturating_add(len) && addr < base.saturating_add(size)
        })
    }

    fn revoke(&self, seen: u64) {
        let turn = seen & !3;
        let revoked = turn | u64::from(REVOKED);
        let _ = self.state.compare_exchange(
            turn | u64::from(ACTIVE),
            revoked,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        // Zeroed only in the turn just revoked: the initiator does not fill the slot anew until
        // it has freed it, and a length zeroed too late makes a copy short, which it repeats.
        if self.state.load(Ordering::SeqCst) == revoked {
            for piece in &self.pieces {
                piece.len.store(0, Ordering::SeqCst);
            }
        }
    }

    fn wait(&self, turn: u64, peer: &dyn Liveness, doing: &str) -> Result<()> {
        let deadline = Instant::now() + FENCE;
        let mut round = 0u32;
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if state >> 2 != turn || state as u32 & 3 == FREE || peer.gone() {
                return Ok(());
            }
            if round > 200 && outside(peer.pid(), self.tid.load(Ordering::Relaxed)) {
                return Ok(());
            }
            if round < 100 {
                std::hint::spin_loop();
            } else if round < 200 {
                std::thread::yield_now();
            } else if Instant::now() > deadline {
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "{doing}: process {} has not finished a copy that it began; is it \
                         suspended by something else than a signal?",
                        peer.pid()
                    ),
                ));
            } else {
                std::thread::sleep(Duration::from_micros(100));
            }
            round += 1;
        }
    }
}

/// Whether a thread cannot be inside a system call: it is gone, or stopped by a signal.
fn outside(pid: u32, tid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")) {
        // The name may hold anything, so the state stands after the last parenthesis.
        Ok(stat) => stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.trim_start().chars().next())
            .is_some_and(|state| matches!(state, 'T' | 't' | 'Z' | 'X')),
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

impl Claimed<'_> {
    /// Writes down where the copy reaches: at most [`MAX_SGE`] pieces.
    #[inline]
    pub(super) fn fill(&self, qpn: u32, pieces: impl Iterator<Item = (u64, u64)>) {
        self.slot.qpn.store(qpn, Ordering::Relaxed);
        self.slot.tid.store(TID.with(|tid| *tid), Ordering::Relaxed);
        let mut count = 0;
        for ((base, len), piece) in pieces.zip(&self.slot.pieces) {
            piece.base.store(base, Ordering::Relaxed);
            piece.len.store(len, Ordering::Relaxed);
            count += 1;
        }
        self.slot.count.store(count, Ordering::Relaxed);
    }

    /// Publishes it. What the target may have withdrawn is checked after this.
    #[inline]
    pub(super) fn activate(&self) {
        // A swap, because on x86 it is a store and a full fence in one.
        self.slot.state.swap(self.turn << 2 | u64::from(ACTIVE), Ordering::SeqCst);
    }

    /// Whether the target has revoked it.
    #[inline]
    pub(super) fn revoked(&self) -> bool {
        self.slot.state.load(Ordering::Acquire) as u32 & 3 == REVOKED
    }

    /// The iovec array that the system call reads, and its length.
    #[inline]
    pub(super) fn iov(&self) -> (*const libc::iovec, usize) {
        let count = self.slot.count.load(Ordering::Relaxed) as usize;
        (self.slot.pieces.as_ptr().cast(), count.min(MAX_SGE))
    }

    /// Ends this turn so that the slot can be filled and published once more.
    pub(super) fn again(&mut self) {
        self.slot.state.store(self.turn << 2 | u64::from(FREE), Ordering::SeqCst);
        self.turn += 1;
    }
}

impl Drop for Claimed<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.state.store(self.turn << 2 | u64::from(FREE), Ordering::Release);
        self.busy.fetch_and(!(1 << self.index), Ordering::Release);
    }
}
