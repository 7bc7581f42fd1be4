//! Dirty tracking: which pages of memory the CPU has written since the last look.
//!
//! A [`Tracker`] watches ranges of memory of its own process. [`Tracker::collect`] tells what was
//! written since it was called last. It may tell too much (each back end says when), and it may tell
//! one page twice; it never tells too little. Whoever copies memory for a snapshot copies a page
//! *after* `collect` has told of it: what is written between the two is in the copy, and is told
//! again next time.
//!
//! # What no tracker sees
//!
//! - **Devices.** An RDMA device writes into pinned pages and goes past the page tables, so nothing
//!   of the kernel notices. What RDMA has written is told by the log of the fabric, and the two are
//!   joined by whoever makes the snapshot. The same holds for every transfer that pins pages first
//!   and writes later: direct and registered I/O, and a `process_vm_writev` of another process
//!   (it is how the soft device writes) whose pages were pinned before `collect` and are written
//!   behind it.
//! - **The other side of shared memory.** A page of a shared mapping or of a file can be changed
//!   through another mapping, by another process, by `write`, or by punching a hole into its file.
//!   A tracker sees what is written through the mapping that it watches.
//!
//! Ranges to which any of this happens and of which no log tells are added with
//! [`Tracker::add_always_dirty`].
//!
//! # Back ends
//!
//! | kind | needs | costs the program | sees system calls that write | tells too much |
//! | --- | --- | --- | --- | --- |
//! | [`Kind::Scan`] | Linux 6.7 | a short fault at the first store to a page | yes | about pages that were never touched |
//! | [`Kind::SoftDirty`] | a kernel with `CONFIG_MEM_SOFT_DIRTY`; one tracker in a process | the same | yes | pages that a device has pinned; mappings that grow or merge |
//! | [`Kind::Protect`] | nothing | a signal at the first store to a page | **they fail** with `EFAULT` | after `fork`, while the child lives |
//! | [`Kind::Everything`] | nothing | nothing | yes | everything |
//!
//! [`open`] takes the best that the kernel has: scan, then soft-dirty, then everything. `Protect` is
//! chosen by name only, because it changes what the program's system calls do.
//!
//! # Memory that changes under a tracker
//!
//! `madvise(DONTNEED)` and `MADV_FREE` turn private pages into zeros without a write; `munmap`,
//! `mmap` and `mremap` put other memory in their place. All of it is told as dirty. Addresses at
//! which nothing is mapped may be added; they are not told as long as nothing is there, and wholly
//! once something is. After `fork` the child's memory is not watched: it must open a tracker of its
//! own.

mod everything;
mod maps;
mod outline;
mod pagemap;
mod protect;
mod ranges;
mod scan;
mod signal;
mod soft_dirty;
mod uffd;

use crate::{Error, PAGE, Result};
use maps::Mapping;
use std::fmt;
use std::ops::Range;

/// The environment variable that forces a back end: `auto`, or the name of a [`Kind`].
pub const VARIABLE: &str = "SOJOURN_TRACKING";

/// How a tracker learns of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `PAGEMAP_SCAN`, with pages that userfaultfd protects asynchronously.
    Scan,
    /// `mprotect`, and a handler of `SIGSEGV`.
    Protect,
    /// The soft-dirty bits of `/proc/self/pagemap`.
    SoftDirty,
    /// It does not: everything is always dirty.
    Everything,
}

impl Kind {
    /// All of them, the best first.
    pub const ALL: [Kind; 4] = [Kind::Scan, Kind::SoftDirty, Kind::Protect, Kind::Everything];

    /// Its name in [`VARIABLE`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Scan => "scan",
            Kind::Protect => "protect",
            Kind::SoftDirty => "soft-dirty",
            Kind::Everything => "everything",
        }
    }

    /// The kind that a value of [`VARIABLE`] names; `None` for `auto`.
    ///
    /// # Errors
    /// `EINVAL` for any other word, which the message names.
    pub fn parse(word: &str) -> Result<Option<Kind>> {
        if word == "auto" {
            return Ok(None);
        }
        Kind::ALL.into_iter().find(|kind| kind.name() == word).map(Some).ok_or_else(|| {
            Error::invalid(format!(
                "{VARIABLE}={word}: it is auto, scan, soft-dirty, protect or everything"
            ))
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Tells which pages of this process's memory have been written: see the [module](self).
pub trait Tracker: Send {
    /// How it learns of writes.
    fn kind(&self) -> Kind;

    /// Begins to track the pages that `range` touches (whole huge pages, where it is made of these).
    /// All of it counts as dirty until the first [`Self::collect`].
    ///
    /// # Errors
    /// `EINVAL` for an empty range or one that was added before; `EOPNOTSUPP` for memory of a device
    /// or of the kernel; what the kernel answers. The message names range and mapping.
    fn add(&mut self, range: Range<usize>) -> Result<()>;

    /// The same, but all of it counts as dirty each time, and nothing is done to its pages: for
    /// memory that others than this CPU write to.
    ///
    /// # Errors
    /// As [`Self::add`].
    fn add_always_dirty(&mut self, range: Range<usize>) -> Result<()>;

    /// Ends the tracking of a range that was added. Pages of it that another added range touches are
    /// tracked as before.
    ///
    /// # Errors
    /// `EINVAL` where no such range was added.
    fn remove(&mut self, range: Range<usize>) -> Result<()>;

    /// Calls `dirty` with ranges that were written since the last collect, and starts afresh. The
    /// program may run and write meanwhile: what it writes during the call is told now or next time. What is dirty
    /// each time, and memory that was dropped rather than written, may be told at rest alone.
    ///
    /// # Errors
    /// What the kernel answers; everything counts as dirty then until the next one. `EPERM` in
    /// another process than the one that opened it.
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()>;

    /// The same, while nothing writes to tracked memory, and nothing is left out. Only then does [`Kind::SoftDirty`] start
    /// afresh: its [`Self::collect`] tells all that was written since this one was called last.
    ///
    /// # Errors
    /// As [`Self::collect`].
    fn collect_at_rest(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()>;
}

/// What a back end does; [`Tracked`] keeps the books. All ranges are of whole pages.
trait Backend: Send {
    fn kind(&self) -> Kind;

    /// Begins to track memory of these ranges that is mapped. It is told as dirty by the caller.
    fn begin(&mut self, fresh: &[Range<usize>], maps: &[Mapping]) -> Result<()>;

    /// Leaves these ranges alone from now on.
    fn end(&mut self, gone: &[Range<usize>]);

    /// Tells what of `tracked`, which is all that was begun and not ended, has been written. It may leave to
    /// [`Self::collect_at_rest`] what was dropped.
    fn collect(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()>;

    /// The same, while nothing writes.
    fn collect_at_rest(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        self.collect(tracked, dirty)
    }
}

/// A range that somebody has added.
struct Entry {
    /// As it was given.
    named: Range<usize>,
    /// The whole pages that it touches.
    pages: Range<usize>,
    always: bool,
}

/// The books of a tracker, before its back end.
struct Tracked<B> {
    back: B,
    entries: Vec<Entry>,
    /// What the back end watches.
    watched: Vec<Range<usize>>,
    /// What is dirty each time.
    always: Vec<Range<usize>>,
    /// What is dirty whatever the back end says.
    fresh: Vec<Range<usize>>,
    process: u32,
}

impl<B: Backend> Tracked<B> {
    fn new(back: B) -> Self {
        let (entries, process) = (Vec::new(), std::process::id());
        Tracked { back, entries, watched: vec![], always: vec![], fresh: vec![], process }
    }

    /// The child of a fork has the descriptors of its parent, which tell of the parent's memory.
    fn own(&self) -> Result<()> {
        let here = std::process::id();
        if here != self.process {
            return Err(Error::new(
                libc::EPERM,
                format!(
                    "this tracker watches the memory of process {}, and this is process {here}: \
                     a child of a fork opens its own",
                    self.process
                ),
            ));
        }
        Ok(())
    }

    fn enter(&mut self, range: Range<usize>, always: bool) -> Result<()> {
        self.own()?;
        if range.is_empty() || range.end > usize::MAX - PAGE {
            return Err(Error::invalid(format!(
                "{:#x}-{:#x} is no range of memory that can be tracked",
                range.start, range.end
            )));
        }
        if self.entries.iter().any(|entry| entry.named == range) {
            return Err(Error::invalid(format!(
                "{:#x}-{:#x} is tracked already",
                range.start, range.end
            )));
        }
        let maps = maps::detailed()?;
        let mut pages = range.start / PAGE * PAGE..range.end.next_multiple_of(PAGE);
        for mapping in &maps {
            if let Some(part) = mapping.part_of(&range) {
                mapping.trackable()?;
                pages = pages.start.min(part.start)..pages.end.max(part.end);
            }
        }
        self.entries.push(Entry { named: range, pages: pages.clone(), always });
        if let Err(error) = self.follow(&maps) {
            self.entries.pop();
            // Watches less than before, or the same: nothing to begin, so nothing to fail.
            self.follow(&[])?;
            return Err(error);
        }
        if !always {
            self.fresh.push(pages);
        }
        Ok(())
    }

    /// Makes the back end watch what the entries say.
    fn follow(&mut self, maps: &[Mapping]) -> Result<()> {
        let pages = |always| {
            let of = self.entries.iter().filter(|entry| entry.always == always);
            ranges::normalize(of.map(|entry| entry.pages.clone()).collect())
        };
        let always = pages(true);
        let watched = ranges::subtract(&pages(false), &always);
        let gone = ranges::subtract(&self.watched, &watched);
        let fresh = ranges::subtract(&watched, &self.watched);
        self.always = always;
        // What is shared with an entry that was always dirty is new to the back end.
        self.fresh.extend(fresh.iter().cloned());
        self.watched = watched;
        if !gone.is_empty() {
            self.back.end(&gone);
        }
        if fresh.is_empty() { Ok(()) } else { self.back.begin(&fresh, maps) }
    }

    fn look(
        &mut self,
        dirty: &mut dyn FnMut(Range<usize>),
        collect: impl Fn(&mut B, &[Range<usize>], &mut dyn FnMut(Range<usize>)) -> Result<()>,
    ) -> Result<()> {
        self.own()?;
        if let Err(error) = collect(&mut self.back, &self.watched, dirty) {
            // What it has told and what not is not known any more.
            self.fresh = self.watched.clone();
            return Err(error);
        }
        let fresh = ranges::normalize(std::mem::take(&mut self.fresh));
        ranges::intersect(&fresh, &self.watched).into_iter().for_each(dirty);
        Ok(())
    }
}

impl<B: Backend> Tracker for Tracked<B> {
    fn kind(&self) -> Kind {
        self.back.kind()
    }

    fn add(&mut self, range: Range<usize>) -> Result<()> {
        self.enter(range, false)
    }

    fn add_always_dirty(&mut self, range: Range<usize>) -> Result<()> {
        self.enter(range, true)
    }

    fn remove(&mut self, range: Range<usize>) -> Result<()> {
        self.own()?;
        let Some(at) = self.entries.iter().position(|entry| entry.named == range) else {
            return Err(Error::invalid(format!(
                "{:#x}-{:#x} is not tracked, so it cannot be removed",
                range.start, range.end
            )));
        };
        let was_always = self.entries.remove(at).always;
        let maps = if was_always { maps::detailed()? } else { Vec::new() };
        self.follow(&maps)
    }

    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.look(dirty, B::collect)
    }

    fn collect_at_rest(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.look(dirty, B::collect_at_rest)?;
        // Not at work: what was sent of it then would be sent again.
        self.always.iter().cloned().for_each(dirty);
        Ok(())
    }
}

/// Opens a tracker: of the kind that is wanted, or that [`VARIABLE`] names, or else the best that
/// this kernel has.
///
/// # Errors
/// `EINVAL` where [`VARIABLE`] names no kind; `EOPNOTSUPP` where this kernel has not what the kind
/// needs, and the message says what that is; `EBUSY` where a process can have one only and has it.
pub fn open(wanted: Option<Kind>) -> Result<Box<dyn Tracker>> {
    let wanted = match (wanted, std::env::var_os(VARIABLE)) {
        (None, Some(word)) => Kind::parse(&word.to_string_lossy())?,
        (wanted, _) => wanted,
    };
    let Some(kind) = wanted else {
        return open_kind(Kind::Scan)
            .or_else(|_| open_kind(Kind::SoftDirty))
            .or_else(|_| open_kind(Kind::Everything));
    };
    open_kind(kind).map_err(|error| error.context(format!("dirty tracking by {kind}")))
}

fn open_kind(kind: Kind) -> Result<Box<dyn Tracker>> {
    Ok(match kind {
        Kind::Scan => Box::new(Tracked::new(scan::Scan::open()?)),
        Kind::Everything => Box::new(Tracked::new(everything::Everything)),
        Kind::SoftDirty => Box::new(Tracked::new(soft_dirty::SoftDirty::open()?)),
        Kind::Protect => Box::new(Tracked::new(protect::Protect::open()?)),
    })
}
