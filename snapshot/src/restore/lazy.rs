//! Memory that is there at once, and is read when it is touched.
//!
//! The pages of the areas are *missing* ([`Missing`]). Whoever touches one waits until the thread of a [`Lazy`] has read
//! the megabyte around it, checked every chunk of it, and filled it in. When nobody waits, the thread
//! reads on, from the first to the last, until all is there.
//!
//! # What goes wrong
//!
//! A chunk that is damaged, or a store that dies in the middle: the next [`Copy`] is read, if there is one. If there is
//! none, whoever touches what is not there waits for ever: never is there a wrong byte, and no signal. The program is
//! told by `failed`, and has nothing better to do than to end, and to be restored from an epoch that is whole.
//!
//! # What it asks of the program
//!
//! - The areas are private anonymous memory, with nothing in it that is wanted. What does not fill a page (an
//!   area that does not begin at one, the end of one that does not end at one) is read before anything else.
//! - Until all is there, it does not fork (the child would find zeros), and nothing else watches the memory with a
//!   userfaultfd: so tracking that does so begins after it.
//! - Where the system gives userfaultfd to nobody but root for faults of the kernel (`vm.unprivileged_userfaultfd` is
//!   0), a system call that touches a page which is not there answers `EFAULT`; so do devices that
//!   register memory. Touch it first, or wait.

use super::copy::{Bytes, Copy, LONGEST, ReadReport, place};
use super::missing::Missing;
use crate::image::{self, PageEntry};
use crate::{Error, Layout, PAGE, Result, peek};
use sojourn_fabric::virt::Op;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// Chunks that are read at once: what a READ of a megabyte takes is little more than what one of a page takes.
const UNIT: usize = LONGEST / PAGE;

/// Consecutive chunks of whole pages.
struct Unit {
    chunks: Range<usize>,
    memory: Range<usize>,
    there: bool,
}

/// Memory that is being restored.
pub struct Lazy {
    thread: Option<JoinHandle<Result<ReadReport>>>,
    done: Arc<AtomicUsize>,
    units: usize,
}

impl Lazy {
    /// Begins: when this returns the areas of `to` can be used. `copies` are of one epoch; the first that is good is
    /// read. `failed` is called, on another thread, when there is none left.
    ///
    /// # Safety
    /// The areas are private anonymous memory that stays mapped until all is there. Their content is nobody's, and
    /// nobody uses them until this returns.
    ///
    /// # Errors
    /// As [`Copy::read`]; `EOPNOTSUPP` where the kernel has no userfaultfd; `EINVAL` for copies that differ.
    pub unsafe fn begin(
        mut copies: Vec<Copy>,
        to: &Layout,
        failed: impl FnOnce(&Error) + Send + 'static,
    ) -> Result<Lazy> {
        let first = copies.first().ok_or_else(|| Error::invalid("nothing to restore from"))?;
        let same = |one: &image::Slot, two: &image::Slot| {
            one.stamp().epoch == two.stamp().epoch && one.pages() == two.pages()
        };
        if !copies.iter().all(|copy| same(copy.slot(), first.slot())) {
            return Err(Error::invalid("copies of different epochs"));
        }
        let to = place(first.slot().layout(), to)?;
        let (mut units, mut rest) = (vec![], vec![]);
        for (index, area) in to.areas().iter().enumerate() {
            let own = to.chunks_of(index);
            let whole = if area.addr.is_multiple_of(PAGE) { area.bytes / PAGE } else { 0 };
            let memory = |chunk: usize| area.addr + (chunk - own.start) * PAGE;
            for start in (own.start..own.start + whole).step_by(UNIT) {
                let chunks = start..(start + UNIT).min(own.start + whole);
                let memory = memory(chunks.start)..memory(chunks.end);
                units.push(Unit { chunks, memory, there: false });
            }
            rest.push(own.start + whole..own.end);
        }
        let missing = Missing::open()?;
        for (index, area) in to.areas().iter().enumerate() {
            let whole = area.addr..area.addr + area.bytes / PAGE * PAGE;
            if rest[index].start > to.chunks_of(index).start {
                // SAFETY: the caller's promise, and whole pages.
                unsafe { missing.add(&whole) }?;
            }
        }
        for chunks in rest {
            // SAFETY: the caller's promise.
            with_next(&mut copies, |copy| unsafe { read_now(copy, &to, &chunks) })?;
        }
        units.sort_by_key(|unit| unit.memory.start);
        let (done, all) = (Arc::new(AtomicUsize::new(0)), units.len());
        let mut server = Server { copies, missing, units, done: Arc::clone(&done) };
        let work = move || {
            let outcome = server.run();
            if let Err(error) = &outcome {
                failed(error);
                // Closed, it would let go of what waits: to find zeros.
                std::mem::forget(server.missing);
            }
            outcome
        };
        let thread = std::thread::Builder::new().name("sj-restore".to_owned()).spawn(work);
        let thread = thread.map_err(|error| Error::os(&error, "starting a thread"))?;
        Ok(Lazy { thread: Some(thread), done, units: all })
    }

    /// The part that is there, from 0 to 1.
    #[must_use]
    pub fn progress(&self) -> f64 {
        if self.units == 0 {
            1.0
        } else {
            self.done.load(Ordering::Relaxed) as f64 / self.units as f64
        }
    }

    /// Waits until all is there.
    ///
    /// # Errors
    /// What was wrong with the last copy: see the documentation of the module.
    pub fn finish(mut self) -> Result<ReadReport> {
        self.join()
    }

    fn join(&mut self) -> Result<ReadReport> {
        let joined = self.thread.take().map(JoinHandle::join);
        let died = || Error::new(libc::EIO, "the thread that restores memory has died");
        joined.ok_or_else(died)?.map_err(|_| died())?
    }
}

impl Drop for Lazy {
    /// Waits, as [`Self::finish`] does.
    fn drop(&mut self) {
        if self.thread.is_some() {
            // It was told to `failed`.
            let _ = self.join();
        }
    }
}

/// Does something with the first copy, or with the next one where that is of no use.
fn with_next<T>(copies: &mut Vec<Copy>, mut work: impl FnMut(&mut Copy) -> Result<T>) -> Result<T> {
    loop {
        let copy = copies.first_mut().ok_or_else(|| Error::new(libc::EIO, "no copy is left"))?;
        match work(copy) {
            Ok(done) => return Ok(done),
            Err(error) if copies.len() > 1 => {
                tracing::warn!("a copy is of no use, the next is read: {error}");
                copies.remove(0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads chunks of one area at once.
///
/// # Safety
/// They are writable, and used by nobody else.
unsafe fn read_now(copy: &mut Copy, to: &Layout, chunks: &Range<usize>) -> Result<()> {
    let bytes = copy.slot.geometry().bytes();
    let source = Bytes::new(&copy.room, &mut copy.lanes, copy.at, bytes)?;
    for start in chunks.clone().step_by(UNIT) {
        let some = start..chunks.end.min(start + UNIT);
        for (_, memory) in to.pieces(some.clone()) {
            let mut room = vec![0; memory.len()];
            copy.slot.read(&source, some.clone(), &mut room)?;
            // SAFETY: the caller's promise.
            unsafe {
                std::ptr::copy_nonoverlapping(room.as_ptr(), memory.start as *mut u8, room.len());
            }
        }
    }
    Ok(())
}

struct Server {
    copies: Vec<Copy>,
    missing: Missing,
    units: Vec<Unit>,
    done: Arc<AtomicUsize>,
}

impl Server {
    fn run(&mut self) -> Result<ReadReport> {
        let since = Instant::now();
        let mut bytes = 0;
        let mut next = 0;
        while next < self.units.len() {
            let faults = self.missing.faults()?;
            for at in &faults {
                bytes += self.fault(*at)?;
            }
            if faults.is_empty() {
                bytes += self.load(next)?;
                next += 1;
            }
        }
        for unit in &self.units {
            // Where the program has unmapped it nothing is watched any more.
            let _ = self.missing.remove(&unit.memory);
        }
        Ok(ReadReport { bytes, took: since.elapsed() })
    }

    fn fault(&mut self, at: usize) -> Result<u64> {
        let unit = self.units.partition_point(|unit| unit.memory.end <= at);
        match self.units.get(unit).map(|unit| unit.there) {
            // The program has dropped it since.
            Some(true) => self.missing.zero(&(at..at + PAGE)).map(|()| 0),
            Some(false) => self.load(unit),
            None => Ok(0),
        }
    }

    /// Reads a unit, checks it, and fills it in; nothing where it is there.
    fn load(&mut self, index: usize) -> Result<u64> {
        if self.units[index].there {
            return Ok(0);
        }
        let Server { copies, missing, units, done } = self;
        let Unit { chunks, memory, there } = &mut units[index];
        let bytes = with_next(copies, |copy| read_unit(copy, chunks))?;
        let copy = copies.first().ok_or_else(|| Error::new(libc::EIO, "no copy is left"))?;
        let (entries, room) = (copy.slot.pages().entries(), copy.room.as_ptr());
        let mut at = memory.start;
        for run in entries[chunks.clone()].chunk_by(|one, two| one.is_zero() == two.is_zero()) {
            let part = at..at + run.len() * PAGE;
            if run[0].is_zero() {
                missing.zero(&part)?;
            } else {
                // SAFETY: within the room, which nobody writes now.
                unsafe { missing.fill(&part, room.add(part.start - memory.start)) }?;
            }
            at = part.end;
        }
        *there = true;
        done.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Reads chunks of whole pages into the room of a copy, each at its place, and checks them.
fn read_unit(copy: &mut Copy, chunks: &Range<usize>) -> Result<u64> {
    let entries = &copy.slot.pages().entries()[chunks.clone()];
    let lane = copy.lanes.first_mut().ok_or_else(|| Error::new(libc::EIO, "no queue pair"))?;
    let (mut at, mut bytes) = (0, 0);
    for run in entries.chunk_by(|one, two| one.is_zero() == two.is_zero()) {
        if !run[0].is_zero() {
            let local = copy.room.slice(at * PAGE..(at + run.len()) * PAGE);
            let from = copy.slot.geometry().chunk_at(chunks.start + at) as u64;
            lane.post(Op::Read(copy.at.offset(from)), local, 0..0, &mut |_| {})?;
            bytes += u64::from(local.length);
        }
        at += run.len();
    }
    lane.drain(&mut |_| {})?;
    let good = |(i, entry): (usize, &PageEntry)| {
        let at = copy.room.as_ptr().wrapping_add(i * PAGE);
        // SAFETY: a page of the room.
        entry.is_zero() || unsafe { peek::crc(at, PAGE, at.wrapping_add(PAGE)) } == entry.crc()
    };
    if let Some(i) = (0..entries.len()).find(|i| !good((*i, &entries[*i]))) {
        let mut there = vec![0; PAGE];
        copy.room.read(i * PAGE, &mut there);
        copy.slot.check(chunks.start + i, &there)?;
    }
    Ok(bytes)
}
