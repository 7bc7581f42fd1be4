//! The back end for kernels with `CONFIG_MEM_SOFT_DIRTY`: a bit in each page table entry that the
//! kernel sets with the first store, and clears for the whole process at once.
//!
//! - Reading the bits and clearing them are two steps, and what is written between the two is lost. So
//!   only [`Tracker::collect_at_rest`](super::Tracker::collect_at_rest) clears; while the program
//!   runs, all that was written since the last one is told each time.
//! - There is one set of bits in a process, hence one such tracker. Another user of
//!   `/proc/self/clear_refs` (a debugger, a checkpointer) breaks it, and nothing tells us.
//! - The bit of a dropped page is lost: see [`super::pagemap`]. That of a *shared* page is lost
//!   whenever its mapping is dropped, by the program or for want of memory, and cannot be made up for.
//!   So shared mappings, and explicit huge pages, which have no such bit, are dirty each time.
//! - A page that userfaultfd has write-protected has no soft-dirty bit any more: memory that is
//!   registered for that is refused, and no [`Kind::Scan`] tracks while this one is open.
//! - Pinned private pages stay dirty until the device lets go of them.

use super::maps::{self, Mapping};
use super::outline::Outline;
use super::pagemap::{Copies, Page, Pages};
use super::{Backend, Kind, ranges};
use crate::{Error, PAGE, Result};
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process has one.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Whether a tracker by soft-dirty bits is open, and would go blind by userfaultfd.
pub(super) fn is_open() -> bool {
    OPEN.load(Ordering::Acquire)
}

/// The right to clear the bits of this process.
struct Only;

impl Only {
    fn take() -> Result<Only> {
        if OPEN.swap(true, Ordering::AcqRel) {
            return Err(Error::new(
                libc::EBUSY,
                "soft-dirty bits are cleared for a whole process, and another tracker of this one \
                 uses them: close it first",
            ));
        }
        Ok(Only)
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        OPEN.store(false, Ordering::Release);
    }
}

/// Tracks by soft-dirty bits.
pub(super) struct SoftDirty {
    pages: Pages,
    /// What was mapped.
    outline: Outline,
    copies: Copies,
    _only: Only,
}

impl SoftDirty {
    /// # Errors
    /// `EOPNOTSUPP` where this kernel has them not, `EBUSY` where this process uses them.
    pub(super) fn open() -> Result<Self> {
        let (pages, copies) = (Pages::open()?, Copies::default());
        let outline = Outline::default();
        let mut tracker = SoftDirty { _only: Only::take()?, pages, outline, copies };
        tracker.try_it()?;
        Ok(tracker)
    }

    /// A kernel without them has the files all the same, and clears nothing: a page is really written.
    fn try_it(&mut self) -> Result<()> {
        let mut page = memmap2::MmapMut::map_anon(PAGE)
            .map_err(|error| Error::os(&error, "mapping a page to try tracking with"))?;
        let range = page.as_ptr() as usize..page.as_ptr() as usize + PAGE;
        let mut bit = || {
            let mut dirty = false;
            self.pages.each(&range, |_, page| dirty = page.soft_dirty()).map(|()| dirty)
        };
        page[0] = 1;
        clear()?;
        let before = bit()?;
        // A store that the compiler must not leave out.
        // SAFETY: the page is ours.
        unsafe { page.as_mut_ptr().write_volatile(2) };
        if before || !bit()? {
            return Err(Error::unsupported(
                "this kernel has no soft-dirty bits: it was built without CONFIG_MEM_SOFT_DIRTY",
            ));
        }
        Ok(())
    }

    fn look(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let changed = self.outline.changes(&maps::brief()?, tracked);
        if !changed.is_empty() {
            self.outline.renew(&changed)?;
            self.copies.forget(&changed);
        }
        changed.into_iter().for_each(&mut *dirty);
        let seen = self.outline.of(|it| !it.shared && it.page == PAGE && it.trackable().is_ok());
        let unseen = ranges::subtract(&self.outline.all(), &seen);
        let mut written = Vec::new();
        let note = |addr, page: Page| {
            if page.soft_dirty() {
                ranges::push(&mut written, addr..addr + PAGE);
            }
        };
        self.copies.look(&seen, &mut self.pages, note, dirty)?;
        written.into_iter().chain(unseen).for_each(dirty);
        Ok(())
    }
}

/// Clears all bits of this process.
fn clear() -> Result<()> {
    let path = "/proc/self/clear_refs";
    let written = std::fs::OpenOptions::new().write(true).open(path);
    written
        .and_then(|mut file| file.write_all(b"4"))
        .map_err(|error| Error::os(&error, format!("writing to {path}")))
}

impl Backend for SoftDirty {
    fn kind(&self) -> Kind {
        Kind::SoftDirty
    }

    fn begin(&mut self, fresh: &[Range<usize>], maps: &[Mapping]) -> Result<()> {
        for (mapping, range) in
            fresh.iter().flat_map(|range| maps.iter().map(move |it| (it, range)))
        {
            if mapping.userfault && mapping.part_of(range).is_some() {
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "{:#x}-{:#x} is write-protected by a userfaultfd, so it has no soft-dirty bits",
                        mapping.range.start, mapping.range.end
                    ),
                ));
            }
        }
        self.outline.add(fresh, maps);
        Ok(())
    }

    fn end(&mut self, gone: &[Range<usize>]) {
        self.outline.remove(gone);
        self.copies.forget(gone);
    }

    fn collect(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        self.look(tracked, dirty)
    }

    fn collect_at_rest(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let mut found = Vec::new();
        self.look(tracked, &mut |range| found.push(range))?;
        clear()?;
        // Behind the clearing: it may write, too.
        found.into_iter().for_each(dirty);
        Ok(())
    }
}
