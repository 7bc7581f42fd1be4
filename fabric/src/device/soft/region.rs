//! The public region: what a context shows to its peers, in one sealed memfd.
//!
//! | part | written by | read by |
//! | --- | --- | --- |
//! | [`Header`]: identity, life word, active rings | owner; peers set bits of active rings | all |
//! | [`QpEntry`]: a queue pair's state and receive queue | owner | peers that send to it |
//! | [`QpEntry::taken`], [`QpEntry::epsn`]: the responder's cursor | see below | all |
//! | [`MrEntry`]: a memory region by key index | owner | peers that access it |
//! | [`CqEntry`]: whether a CQ is armed | owner | peers that add completions |
//! | arena: posted receives | owner | peers that match them |
//!
//! The responder's cursor has one writer at a time: the connected initiator while it executes
//! requests itself, the owner while it executes requests of the ring. The initiator sees to it
//! that the two never alternate with something still under way (see `qp::exec`).
//!
//! Order: a writer fills fields and then stores the word that makes them valid (`MrEntry::key`,
//! `QpEntry::word`, `QpEntry::posted`) with Release; a reader loads that word with Acquire first.
//! Invalidation is a SeqCst store of that word and comes before the scan of in-flight slots,
//! while initiators publish a slot (SeqCst) before they read the word: one of the two sees the
//! other (`inflight`).

use super::limits::{ARENA_BYTES, BLOCK_QPNS, MAX_BLOCKS, MAX_CQ, MAX_LINKS, MAX_MR, MAX_QP};
use super::shm::{Mapping, Shared};
use crate::Result;
use crate::abi::access;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// `"sojsoft"` and the layout's version; another layout is another device.
pub(super) const MAGIC: u64 = 0x736f_6a73_6f66_7403;

/// A value on cache lines of its own.
#[repr(C, align(128))]
pub(super) struct Alone<T>(pub(super) T);

/// Identity and wake-ups.
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) context: [AtomicU64; 2],
    pub(super) pid: AtomicU32,
    /// Thread id of the service thread while the context lives; the kernel sets
    /// `FUTEX_OWNER_DIED` in it when the process exits or replaces its program (`life`).
    pub(super) life: AtomicU32,
    /// The robust list's only entry: an address in the owner's memory.
    pub(super) robust_next: AtomicU64,
    /// A word whose value peers know, to probe whether they may read this process; and where it
    /// stands in the owner's memory.
    pub(super) probe: AtomicU64,
    pub(super) probe_at: AtomicU64,
    /// Claimed block numbers plus one; block `i` holds QP entries `i * 1024 ..`.
    pub(super) blocks: [AtomicU32; MAX_BLOCKS],
    /// The port is down: nothing comes in (`fault`).
    pub(super) down: AtomicU32,
    /// The service thread sleeps, or is about to: urgent work needs its doorbell.
    pub(super) sleeping: Alone<AtomicU32>,
    /// There is work in a ring that must not wait for the program to poll.
    pub(super) urgent: Alone<AtomicU32>,
    /// The owner looks into all of its rings when it polls: nobody needs to mark one active.
    pub(super) direct: AtomicU32,
    /// Bit `i`: `active[i]` may be non-zero.
    pub(super) summary: Alone<AtomicU64>,
    /// Bit `i % 64` of word `i / 64`: the ring of link `i` may hold records.
    pub(super) active: Alone<[AtomicU64; MAX_LINKS / 64]>,
}
// SAFETY: atomics only.
unsafe impl Shared for Header {}

/// Set in [`QpEntry::word`]: the QP is at ERR and [`QpEntry::settled`] is final.
pub(super) const SETTLED: u64 = 1 << 8;

/// A queue pair as peers see it.
#[repr(C, align(128))]
pub(super) struct QpEntry {
    /// `incarnation << 32 | SETTLED? | state`. The incarnation grows at each RESET.
    pub(super) word: AtomicU64,
    /// `dest lid << 32 | dest qpn`.
    pub(super) dest: AtomicU64,
    /// `min_rnr_timer << 24 | has srq << 16 | type << 8 | access flags`.
    pub(super) traits: AtomicU32,
    pub(super) pd: AtomicU32,
    pub(super) recv_cq: AtomicU32,
    /// Path MTU in bytes.
    pub(super) mtu: AtomicU32,
    /// Offset of the receive ring in the region.
    pub(super) rq_base: AtomicU64,
    /// `stride << 32 | entries - 1`.
    pub(super) rq_shape: AtomicU64,
    /// Receives that completed with success, once the QP is settled.
    pub(super) settled: AtomicU64,
    /// The owner vouches that each posted receive holds as many bytes, all registered: who sends
    /// no more need not look at the receive, whose lines the owner then has for itself. 0 where it
    /// does not. Stored before `posted`.
    pub(super) fits: AtomicU32,
    /// What became of the incarnation that was reset last: `incarnation << 32 |` the low half of how
    /// many receives completed with success. Its program may have received a message and destroyed
    /// the QP before the sender saw to what became of it.
    pub(super) ended: AtomicU64,
    /// Receives posted since RESET.
    pub(super) posted: Alone<AtomicU64>,
    /// Receives taken by the connected initiator since RESET.
    pub(super) taken: Alone<Cursor>,
}
// SAFETY: atomics only; padding is never read.
unsafe impl Shared for QpEntry {}

/// The responder's cursor.
#[repr(C)]
pub(super) struct Cursor {
    /// Receives taken.
    pub(super) receives: AtomicU64,
    /// Expected packet sequence number.
    pub(super) epsn: AtomicU32,
}

impl QpEntry {
    pub(super) fn state(word: u64) -> u32 {
        (word & 0xff) as u32
    }

    pub(super) fn incarnation(word: u64) -> u32 {
        (word >> 32) as u32
    }

    /// What [`QpEntry::ended`] holds.
    pub(super) fn ended_of(incarnation: u32, received: u64) -> u64 {
        u64::from(incarnation) << 32 | received & u64::from(u32::MAX)
    }

    /// Whether receive `number` of a past incarnation is known to have completed with success.
    pub(super) fn received(&self, incarnation: u32, number: u64) -> bool {
        let ended = self.ended.load(Ordering::SeqCst);
        // No queue holds as many receives as half of what 32 bits count.
        let behind = (ended as u32).wrapping_sub(number as u32) as i32;
        QpEntry::incarnation(ended) == incarnation && behind > 0
    }

    pub(super) fn word_of(incarnation: u32, state: u32) -> u64 {
        u64::from(incarnation) << 32 | u64::from(state)
    }
}

/// A memory region as peers see it.
#[repr(C, align(64))]
pub(super) struct MrEntry {
    /// The key while the region is valid, else 0.
    pub(super) key: AtomicU32,
    pub(super) access: AtomicU32,
    pub(super) pd: AtomicU32,
    /// The owner has vouched for it ([`QpEntry::fits`]).
    pub(super) vouched: AtomicU32,
    pub(super) addr: AtomicU64,
    pub(super) len: AtomicU64,
}
// SAFETY: atomics only; padding is never read.
unsafe impl Shared for MrEntry {}

/// [`CqEntry::armed`]: no event wanted.
pub(super) const DISARMED: u32 = 0;
/// [`CqEntry::armed`]: an event for the next solicited or failed completion.
pub(super) const ARMED_SOLICITED: u32 = 1;
/// [`CqEntry::armed`]: an event for the next completion.
pub(super) const ARMED: u32 = 2;

/// A CQ as peers see it.
#[repr(C, align(64))]
pub(super) struct CqEntry {
    pub(super) armed: AtomicU32,
}
// SAFETY: atomics only; padding is never read.
unsafe impl Shared for CqEntry {}

const QPS_AT: usize = size_of::<Header>().next_multiple_of(4096);
const MRS_AT: usize = QPS_AT + MAX_QP * size_of::<QpEntry>();
const CQS_AT: usize = MRS_AT + MAX_MR * size_of::<MrEntry>();
/// Where the arena begins.
pub(super) const ARENA_AT: usize = (CQS_AT + MAX_CQ * size_of::<CqEntry>()).next_multiple_of(4096);
/// Bytes of a region.
pub(super) const REGION_BYTES: usize = ARENA_AT + ARENA_BYTES;

/// A region, one's own or a peer's.
pub(super) struct Region(Mapping);

impl Region {
    /// A new region, to be filled by its owner.
    pub(super) fn create() -> Result<(OwnedFd, Region)> {
        let (fd, mapping) = Mapping::create(c"sojourn-soft-region", REGION_BYTES)?;
        Ok((fd, Region(mapping)))
    }

    /// A peer's region.
    pub(super) fn open(fd: &OwnedFd) -> Result<Region> {
        let region = Region(Mapping::open(fd, REGION_BYTES)?);
        if region.header().magic.load(Ordering::Acquire) != MAGIC {
            return Err(crate::Error::invalid(
                "a peer's soft device has another layout: run the same version everywhere",
            ));
        }
        Ok(region)
    }

    #[inline]
    pub(super) fn header(&self) -> &Header {
        self.0.at(0)
    }

    /// Whether the owner still runs the program that made the region.
    #[inline]
    pub(super) fn alive(&self) -> bool {
        let life = self.header().life.load(Ordering::Acquire);
        life != 0 && life & libc::FUTEX_OWNER_DIED == 0
    }

    /// Whether the owner's port is down.
    #[inline]
    pub(super) fn down(&self) -> bool {
        self.header().down.load(Ordering::Relaxed) != 0
    }

    /// Entry index of a QPN of this region's owner.
    pub(super) fn qp_index(&self, qpn: u32) -> Option<usize> {
        let block = qpn / BLOCK_QPNS + 1;
        let blocks = &self.header().blocks;
        let slot = blocks.iter().position(|b| b.load(Ordering::Acquire) == block)?;
        Some(slot * BLOCK_QPNS as usize + (qpn % BLOCK_QPNS) as usize)
    }

    #[inline]
    pub(super) fn qp(&self, index: usize) -> Option<&QpEntry> {
        if index < MAX_QP { self.0.get(QPS_AT + index * size_of::<QpEntry>()) } else { None }
    }

    #[inline]
    pub(super) fn mr(&self, index: usize) -> Option<&MrEntry> {
        if index < MAX_MR { self.0.get(MRS_AT + index * size_of::<MrEntry>()) } else { None }
    }

    #[inline]
    pub(super) fn cq(&self, index: usize) -> Option<&CqEntry> {
        if index < MAX_CQ { self.0.get(CQS_AT + index * size_of::<CqEntry>()) } else { None }
    }

    /// Words of the arena.
    #[inline]
    fn words(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        if offset >= ARENA_AT { self.0.slice(offset, count) } else { None }
    }

    pub(super) fn discard(&self, offset: usize, len: usize) {
        self.0.discard(offset, len);
    }

    /// Whether `key` stands for a region of `pd` that holds all of `addr .. addr + len` and
    /// allows `need` (bits of [`access`]).
    #[inline]
    pub(super) fn permits(&self, key: u32, pd: u32, addr: u64, len: u64, need: u32) -> bool {
        let Some(entry) = self.mr((key >> 8) as usize) else { return false };
        if key == 0 || entry.key.load(Ordering::Acquire) != key {
            return false;
        }
        let start = entry.addr.load(Ordering::Relaxed);
        let size = entry.len.load(Ordering::Relaxed);
        entry.pd.load(Ordering::Relaxed) == pd
            && entry.access.load(Ordering::Relaxed) & need == need
            && addr >= start
            && addr - start <= size
            && len <= size - (addr - start)
    }

    /// As [`Region::permits`], of one's own region: and deregistering it takes back what peers
    /// were told.
    #[inline]
    pub(super) fn vouch(&self, key: u32, pd: u32, addr: u64, len: u64, need: u32) -> bool {
        let Some(entry) = self.mr((key >> 8) as usize) else { return false };
        if entry.vouched.load(Ordering::Relaxed) == 0 {
            // Before the key is looked at: whoever takes that away looks here afterwards.
            entry.vouched.store(1, Ordering::SeqCst);
        }
        self.permits(key, pd, addr, len, need)
    }

    /// Marks the ring of `link` as having records, which were published by a SeqCst store.
    #[inline]
    pub(super) fn mark_active(&self, link: u32) {
        let header = self.header();
        if header.direct.load(Ordering::SeqCst) != 0 {
            return;
        }
        let (word, bit) = ((link / 64) as usize, 1u64 << (link % 64));
        let Some(active) = header.active.0.get(word) else { return };
        if active.load(Ordering::Relaxed) & bit == 0 {
            active.fetch_or(bit, Ordering::SeqCst);
        }
        let bit = 1u64 << word;
        if header.summary.0.load(Ordering::Relaxed) & bit == 0 {
            header.summary.0.fetch_or(bit, Ordering::SeqCst);
        }
    }
}

/// Words of a receive entry with `max_sge` elements: a head, then two for each.
pub(super) fn recv_stride(max_sge: u32) -> u32 {
    (8 + 16 * max_sge.max(1)).next_multiple_of(32)
}

/// The shape of a receive ring in some region.
#[derive(Clone, Copy, Default)]
pub(super) struct RecvRing {
    base: usize,
    mask: u64,
    stride: usize,
}

impl RecvRing {
    /// A ring at `base` of `entries` (a power of two) with `stride` bytes each.
    pub(super) fn new(base: usize, entries: u32, stride: u32) -> Self {
        RecvRing { base, mask: u64::from(entries - 1), stride: stride as usize }
    }

    /// The ring of a peer's QP, if it makes sense.
    pub(super) fn of(entry: &QpEntry) -> Option<Self> {
        let shape = entry.rq_shape.load(Ordering::Relaxed);
        let (mask, stride) = (shape & 0xffff_ffff, (shape >> 32) as usize);
        let base = entry.rq_base.load(Ordering::Relaxed) as usize;
        let fits = (mask as usize + 1).checked_mul(stride)?.checked_add(base)? <= REGION_BYTES;
        ((mask + 1).is_power_of_two() && base >= ARENA_AT && stride.is_multiple_of(8) && fits)
            .then_some(RecvRing { base, mask, stride })
    }

    pub(super) fn publish(&self, entry: &QpEntry) {
        entry.rq_base.store(self.base as u64, Ordering::Relaxed);
        entry.rq_shape.store((self.stride as u64) << 32 | self.mask, Ordering::Relaxed);
    }

    /// Where receive `n` stands, and how many bytes the ring takes.
    #[inline]
    fn offset(&self, n: u64) -> usize {
        self.base + (n & self.mask) as usize * self.stride
    }

    /// The words of receive `n`.
    #[inline]
    fn words<'a>(&self, region: &'a Region, n: u64) -> Option<&'a [AtomicU64]> {
        region.words(self.offset(n), self.stride / 8)
    }

    /// Writes receive `n` of the owner's own ring; returns how many bytes it holds.
    #[inline]
    pub(super) fn put(&self, region: &Region, n: u64, sges: &[crate::abi::Sge]) -> u32 {
        let Some((head, elements)) = self.words(region, n).and_then(<[_]>::split_first) else {
            return 0;
        };
        let mut total = 0u64;
        for (sge, words) in sges.iter().zip(elements.chunks_exact(2)) {
            total += u64::from(sge.length);
            words[0].store(sge.addr, Ordering::Relaxed);
            words[1].store(u64::from(sge.lkey) << 32 | u64::from(sge.length), Ordering::Relaxed);
        }
        let total = total.min(u64::from(u32::MAX));
        head.store(total << 32 | sges.len() as u64, Ordering::Relaxed);
        total as u32
    }

    /// Bytes that receive `n` holds; `None` where it makes no sense.
    #[inline]
    pub(super) fn total(&self, region: &Region, n: u64) -> Option<u64> {
        Some(self.words(region, n)?.first()?.load(Ordering::Relaxed) >> 32)
    }

    /// The elements of receive `n`; `None` where it makes no sense.
    #[inline]
    pub(super) fn sges<'a>(
        &self,
        region: &'a Region,
        n: u64,
    ) -> Option<impl Iterator<Item = crate::abi::Sge> + use<'a>> {
        let (head, elements) = self.words(region, n)?.split_first()?;
        let count = head.load(Ordering::Relaxed) as u32 as usize;
        let elements = elements.get(..2 * count)?;
        Some(elements.chunks_exact(2).map(|words| {
            let (addr, rest) = (words[0].load(Ordering::Relaxed), words[1].load(Ordering::Relaxed));
            crate::abi::Sge { addr, length: rest as u32, lkey: (rest >> 32) as u32 }
        }))
    }
}

/// Access that writing into a posted receive needs.
pub(super) const RECEIVE: u32 = access::LOCAL_WRITE;
