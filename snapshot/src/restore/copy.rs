//! One slot of a store, from afar.

use crate::epoch::{Member, Slot};
use crate::image::{self, PageEntry, Source};
use crate::session::StoreAt;
use crate::store::{Client, Granted};
use crate::stream::{Lane, cut, share};
use crate::{Area, Error, Layout, PAGE, PageSet, Result, peek, store};
use sojourn_fabric::abi::{Sge, access};
use sojourn_fabric::device::DeviceMr;
use sojourn_fabric::names::JobKey;
use sojourn_fabric::virt::{MemoryRegion, Op, ProtectionDomain, Remote};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of one READ at most, and of the memory that tables are read through.
pub(super) const LONGEST: usize = 1 << 20;
/// Bytes that are worth a thread.
const WORTH_A_THREAD: usize = 4 << 20;
/// How long a store may take to be reached.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long no READ may complete. A store that is alive sends some in far less, and whoever restores is to have time
/// for another connection: there are devices on which READs stand still for ever once packets were lost.
const READ_PATIENCE: Duration = Duration::from_secs(8);

/// What reading took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReadReport {
    /// Bytes of chunks that were read; zeros are not.
    pub bytes: u64,
    /// From the first READ to the last check.
    pub took: Duration,
}

/// A complete epoch in a slot of a store, with a connection to it.
pub struct Copy {
    pub(super) slot: image::Slot,
    pub(super) at: Remote,
    pub(super) lanes: Vec<Lane<Range<usize>>>,
    /// Registered memory that is read through where not straight to where it belongs.
    pub(super) room: MemoryRegion,
    pd: ProtectionDomain,
    // The door to the store is open as long as this is.
    client: Client,
}

/// The bytes of a slot, read through registered memory of our own.
pub(super) struct Bytes<'a> {
    lane: Mutex<&'a mut Lane<Range<usize>>>,
    room: &'a MemoryRegion,
    at: Remote,
    bytes: usize,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(
        room: &'a MemoryRegion,
        lanes: &'a mut [Lane<Range<usize>>],
        at: Remote,
        bytes: usize,
    ) -> Result<Bytes<'a>> {
        let lane = lanes.first_mut().ok_or_else(|| Error::new(libc::EIO, "no queue pair"))?;
        Ok(Bytes { lane: Mutex::new(lane), room, at, bytes })
    }
}

impl Source for Bytes<'_> {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len()).is_none_or(|end| end > self.bytes) {
            let (wanted, has) = (into.len(), self.bytes);
            return Err(Error::invalid(format!("{wanted} bytes from {at:#x} of {has} bytes")));
        }
        let mut lane = self.lane.lock().map_err(|_| Error::new(libc::EIO, "a reader has died"))?;
        for (i, part) in into.chunks_mut(LONGEST).enumerate() {
            let from = Op::Read(self.at.offset((at + i * LONGEST) as u64));
            lane.post(from, self.room.slice(0..part.len()), 0..0, &mut |_| {})?;
            lane.drain(&mut |_| {})?;
            self.room.read(0, part);
        }
        Ok(())
    }
}

impl Copy {
    /// Opens a slot of a store: reads and checks its header, tables and windows.
    ///
    /// # Errors
    /// The store cannot be reached; the slot holds no complete epoch (`ENODATA`) or a damaged one (`EBADMSG`).
    pub fn open(
        device: &str,
        key: &JobKey,
        from: &StoreAt,
        member: Member,
        slot: Slot,
        lanes: usize,
    ) -> Result<Copy> {
        let mut client = Client::connect(&from.at, key, Instant::now() + PATIENCE)?;
        let pd = store::device(device)?.alloc_pd()?;
        let granted = client.read(&pd, lanes.clamp(1, store::MAX_LANES), member)?;
        let bytes = granted.slot_bytes();
        let Granted { slots, mut lanes, .. } = granted;
        lanes.iter_mut().for_each(|lane| lane.patience = READ_PATIENCE);
        let at = slots[slot.index()];
        let room = pd.register(LONGEST, access::LOCAL_WRITE)?;
        let slot = image::Slot::open(&Bytes::new(&room, &mut lanes, at, bytes)?);
        let slot = slot.map_err(|damaged| {
            Error::from(damaged).context(format_args!("store {}", client.about().name))
        })?;
        Ok(Copy { slot, at, lanes, room, pd, client })
    }

    /// Opens what is there now, over the same connection.
    #[cfg(test)]
    pub(super) fn again(&mut self) -> Result<()> {
        let all = self.slot.geometry().bytes();
        self.slot = image::Slot::open(&Bytes::new(&self.room, &mut self.lanes, self.at, all)?)?;
        Ok(())
    }

    /// What it is of: stamp, areas, page table, windows.
    #[must_use]
    pub fn slot(&self) -> &image::Slot {
        &self.slot
    }

    /// Reads every chunk into the areas of `to`, which are those of the slot by their ids and sizes, wherever
    /// they are now. With `fresh` they are zeros already.
    ///
    /// # Safety
    /// The areas are mapped, writable, and used by nobody else until this returns.
    ///
    /// # Errors
    /// `EINVAL` where the areas are others; `EBADMSG` for a chunk that is damaged, `ENODATA` where the slot
    /// was overwritten meanwhile; what a broken connection says. The areas hold nothing of use then.
    pub unsafe fn read(&mut self, to: &Layout, fresh: bool) -> Result<ReadReport> {
        let since = Instant::now();
        let to = place(self.slot.layout(), to)?;
        // SAFETY: the caller's promise.
        let regions = unsafe { register(&self.pd, &to) }?;
        let bytes = self.chunks(&to, &regions, fresh).map_err(|error| {
            error.context(format_args!("reading from store {}", self.client.about().name))
        })?;
        let all = self.slot.geometry().bytes();
        self.slot.confirm(&Bytes::new(&self.room, &mut self.lanes, self.at, all)?)?;
        Ok(ReadReport { bytes, took: since.elapsed() })
    }

    fn chunks(&mut self, to: &Layout, regions: &[Arc<dyn DeviceMr>], fresh: bool) -> Result<u64> {
        let entries = self.slot.pages().entries();
        let mut there = PageSet::full(entries.len());
        for (chunk, entry) in entries.iter().enumerate() {
            if entry.is_zero() {
                there.remove_range(chunk..chunk + 1);
            }
        }
        if !fresh {
            let mut zeros = PageSet::full(entries.len());
            zeros.subtract(&there);
            for (_, memory) in zeros.runs().flat_map(|run| to.pieces(run)) {
                // SAFETY: areas that the caller of `read` has given to be written.
                unsafe { std::ptr::write_bytes(memory.start as *mut u8, 0, memory.len()) };
            }
        }
        let items: Vec<_> = there.runs().flat_map(|run| cut(to, run)).collect();
        let chunks = there.count();
        let threads = (chunks * PAGE).div_ceil(WORTH_A_THREAD).clamp(1, self.lanes.len());
        let shares = share(&items, threads, chunks);
        let (slot, at) = (&self.slot, self.at);
        let outcomes: Vec<Result<u64>> = std::thread::scope(|scope| {
            let mut jobs: Vec<_> = self.lanes.iter_mut().zip(shares).collect();
            let own = jobs.pop();
            let others: Vec<_> = jobs
                .into_iter()
                .map(|(lane, items)| scope.spawn(move || run(slot, at, to, regions, lane, items)))
                .collect();
            let own = own.map(|(lane, items)| run(slot, at, to, regions, lane, items));
            let others = others.into_iter().map(|it| it.join().expect("reading does not panic"));
            others.collect::<Vec<_>>().into_iter().chain(own).collect()
        });
        outcomes.into_iter().sum()
    }
}

/// One thread's share.
fn run(
    slot: &image::Slot,
    at: Remote,
    to: &Layout,
    regions: &[Arc<dyn DeviceMr>],
    lane: &mut Lane<Range<usize>>,
    items: &[Range<usize>],
) -> Result<u64> {
    let entries = slot.pages().entries();
    let mut bad = None;
    let mut bytes = 0;
    let mut done = |chunks: Range<usize>| {
        if bad.is_none() {
            bad = first_bad(to, entries, chunks);
        }
    };
    for item in items {
        let lkey = regions[to.area_of(item.start)].lkey();
        let Some((_, memory)) = to.pieces(item.clone()).next() else { continue };
        let local = Sge { addr: memory.start as u64, length: memory.len() as u32, lkey };
        bytes += u64::from(local.length);
        let from = Op::Read(at.offset(slot.geometry().chunk_at(item.start) as u64));
        lane.post(from, local, item.clone(), &mut done)?;
    }
    lane.drain(&mut done)?;
    match bad {
        None => Ok(bytes),
        Some((chunk, memory)) => {
            let mut there = vec![0; memory.len()];
            // SAFETY: an area that the caller of `read` has given.
            unsafe { peek::copy(memory.start as *const u8, &mut there) };
            slot.check(chunk, &there)?;
            Err(Error::new(libc::EBADMSG, format!("chunk {chunk} changed while it was checked")))
        }
    }
}

/// The first of these chunks that is not what its entry says.
fn first_bad(
    to: &Layout,
    entries: &[PageEntry],
    chunks: Range<usize>,
) -> Option<(usize, Range<usize>)> {
    to.pieces(chunks).find_map(|(first, memory)| {
        let all = memory.clone().step_by(PAGE).enumerate();
        all.map(|(i, at)| (first + i, at..memory.end.min(at + PAGE))).find(|(chunk, memory)| {
            // SAFETY: an area that the caller of `read` has given.
            let crc = unsafe {
                peek::crc(memory.start as *const u8, memory.len(), memory.end as *const u8)
            };
            crc != entries[*chunk].crc()
        })
    })
}

/// The areas of a slot where they are to be now.
///
/// # Errors
/// `EINVAL` where there are others, or other sizes: the message names each that differs.
pub(crate) fn place(slot: &Layout, to: &Layout) -> Result<Layout> {
    let find = |areas: &[Area], id| areas.iter().find(|area| area.id == id).copied();
    let mut wrong = vec![];
    let mut all = vec![];
    for old in slot.areas() {
        match find(to.areas(), old.id) {
            Some(new) if new.bytes == old.bytes => all.push(new),
            Some(new) => {
                let (id, old, new) = (old.id, old.bytes, new.bytes);
                wrong.push(format!("area {id} had {old} bytes and has {new}"));
            }
            None => wrong.push(format!("area {} of {} bytes is missing", old.id, old.bytes)),
        }
    }
    for new in to.areas().iter().filter(|new| find(slot.areas(), new.id).is_none()) {
        wrong.push(format!("area {} of {} bytes is not in the snapshot", new.id, new.bytes));
    }
    if wrong.is_empty() {
        return Layout::new(all);
    }
    let text = format!("the memory to restore is not that of the snapshot: {}", wrong.join("; "));
    Err(Error::invalid(text))
}

/// # Safety
/// The areas are mapped and writable, and used by nobody else, as long as the regions live.
unsafe fn register(pd: &ProtectionDomain, to: &Layout) -> Result<Vec<Arc<dyn DeviceMr>>> {
    let one = |area: &Area| {
        let (device, at) = (Arc::clone(pd.device()), area.addr as *mut c_void);
        // SAFETY: the caller's promise. They are looked at by volatile loads alone.
        let region = unsafe { device.reg_mr(at, area.bytes, access::LOCAL_WRITE) };
        let doing = format_args!("registering area {}: {} bytes", area.id, area.bytes);
        region.map_err(|error| error.context(doing))
    };
    to.areas().iter().map(one).collect()
}
