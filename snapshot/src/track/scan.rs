//! The back end for Linux 6.7 and later: `PAGEMAP_SCAN` over memory that a userfaultfd protects
//! asynchronously.
//!
//! Each page of tracked memory is *armed* (a bit in its page table entry, which is kept in swap and
//! for pages that do not exist) or *written*. A store to an armed page makes the kernel disarm it, on
//! the spot and without any thread of ours. One call of the kernel finds the written pages and arms
//! them, each in one step, so no store falls between the two.
//!
//! What it rests on, beyond that, each with a test:
//!
//! - A page that is dropped (`MADV_DONTNEED`, `MADV_FREE`, a fresh page table) has an empty entry, and
//!   that counts as written. Where whole page tables are missing (*holes*: never touched, or dropped
//!   as a whole) some kernels tell nothing, and others nothing of huge pages. So holes are asked for, too, which takes
//!   longer than all else: of shared mappings, and of private ones where a trial at the beginning was told of none. One
//!   in private anonymous memory reads as zeros; it is dirty where it was no hole last time. One in a shared
//!   mapping says nothing about its bytes: it is armed, and dirty.
//! - A page of a private mapping of a file stays armed when it is dropped, though it reads as the file
//!   again. So such a page is also dirty where it was this process's own copy last time and is none
//!   now, and as long as it is not there (whoever reads it brings it in).
//! - Arming is bound to the mapping. Memory that is mapped in the place of other memory, and what
//!   `mremap` brings, is not registered, and the scan fails there: it is registered, armed, and told
//!   as a whole. A scan that fails may have armed pages without telling of them, so all that it was
//!   asked about is dirty.
//! - What cannot be registered (a shared mapping of a file that this process may not write; memory
//!   that the program has registered with a userfaultfd of its own since it was added) or armed (huge
//!   pages of 1 GiB, on some kernels) is dirty each time. So are private mappings of huge pages: one
//!   that is dropped stays armed, and reads as zeros that cannot be told from what was there.

use super::maps::{self, Mapping};
use super::uffd::{Pagemap, Uffd};
use super::{Backend, Kind, ranges};
use crate::{Error, PAGE, Result};
use nix::errno::Errno;
use std::ops::Range;

/// What one scan is asked about: all of it is dirty where the scan fails. A multiple of any huge page
/// that can be armed.
const WINDOW: usize = 64 << 20;
/// What a page table maps.
const TABLE: usize = 2 << 20;

/// Tracks by scanning.
pub(super) struct Scan {
    // Fields are dropped in order: the memory is let go of first.
    uffd: Uffd,
    pagemap: Pagemap,
    /// Registered private anonymous memory.
    anonymous: Vec<Range<usize>>,
    /// Registered private mappings of files.
    files: Vec<Range<usize>>,
    /// Registered shared memory.
    shared: Vec<Range<usize>>,
    /// What could not be registered.
    refused: Vec<Range<usize>>,
    /// Whether the kernel tells of holes in private anonymous memory by itself.
    tells_holes: bool,
    /// Where it does not: holes that have been told of since they were none.
    holes: Vec<Range<usize>>,
    /// Pages of files that were this process's own copies at the last collect.
    copies: Vec<Range<usize>>,
}

impl Scan {
    /// # Errors
    /// `EOPNOTSUPP`, with what this kernel lacks.
    pub(super) fn open() -> Result<Self> {
        let none = Vec::new;
        let mut scan = Scan {
            uffd: Uffd::open()?,
            pagemap: Pagemap::open()?,
            anonymous: none(),
            files: none(),
            shared: none(),
            refused: none(),
            tells_holes: false,
            holes: none(),
            copies: none(),
        };
        scan.try_it()?;
        scan.tells_holes = scan.tries_a_hole();
        Ok(scan)
    }

    /// A page of our own is armed, and read back: a kernel may have the one interface and not the
    /// other.
    fn try_it(&mut self) -> Result<()> {
        let page = memmap2::MmapMut::map_anon(PAGE)
            .map_err(|error| Error::os(&error, "mapping a page to try tracking with"))?;
        let range = page.as_ptr() as usize..page.as_ptr() as usize + PAGE;
        match self.told_twice(&range) {
            Ok((1, 0)) => Ok(()),
            Ok((first, second)) => Err(Error::unsupported(format!(
                "PAGEMAP_SCAN of this kernel tells {first} and then {second} runs of one written page"
            ))),
            Err(errno) => Err(Error::unsupported(format!(
                "this kernel lacks PAGEMAP_SCAN, which Linux 6.7 brought: {errno}"
            ))),
        }
    }

    /// Whether memory that nobody has touched is told, once, page table and all.
    fn tries_a_hole(&mut self) -> bool {
        let Ok(memory) = memmap2::MmapMut::map_anon(2 * TABLE) else { return false };
        let at = (memory.as_ptr() as usize).next_multiple_of(TABLE);
        let hole = at..at + TABLE;
        self.told_twice(&hole) == Ok((TABLE / PAGE, 0))
    }

    /// How many pages of fresh memory of our own are told, and how many then.
    fn told_twice(&mut self, range: &Range<usize>) -> nix::Result<(usize, usize)> {
        let pagemap = &mut self.pagemap;
        let mut told = || {
            let mut pages = 0;
            pagemap.take_written(range, |part| pages += part.len() / PAGE).map(|()| pages)
        };
        let both = self.uffd.register(range).and_then(|()| Ok((told()?, told()?)))?;
        self.uffd.unregister(range).map(|()| both)
    }

    /// Forgets what is known of a range.
    fn forget(&mut self, gone: &[Range<usize>]) {
        for list in [
            &mut self.anonymous,
            &mut self.files,
            &mut self.shared,
            &mut self.refused,
            &mut self.holes,
            &mut self.copies,
        ] {
            *list = ranges::subtract(list, gone);
        }
    }

    fn registered(&self) -> Vec<Range<usize>> {
        ranges::normalize([&self.anonymous[..], &self.files, &self.shared].concat())
    }

    /// Registers what is mapped in `fresh`. Where that fails it is dirty each time, or the error of
    /// `strict`.
    fn register(&mut self, fresh: &[Range<usize>], maps: &[Mapping], strict: bool) -> Result<()> {
        for (mapping, range) in
            fresh.iter().flat_map(|range| maps.iter().map(move |it| (it, range)))
        {
            let Some(part) = mapping.part_of(range) else { continue };
            let huge = mapping.page > PAGE;
            let list = if mapping.trackable().is_err() || (huge && !mapping.shared) {
                &mut self.refused
            } else {
                match self.uffd.register(&part) {
                    Ok(()) if mapping.is_anonymous() => &mut self.anonymous,
                    Ok(()) if mapping.shared => &mut self.shared,
                    Ok(()) => &mut self.files,
                    Err(Errno::EBUSY) if strict => {
                        return Err(Error::new(
                            libc::EBUSY,
                            format!(
                                "{:#x}-{:#x} is registered with another userfaultfd: of another tracker, \
                             or of the program itself",
                                part.start, part.end
                            ),
                        ));
                    }
                    Err(errno) => {
                        tracing::debug!(
                            "{:#x}-{:#x} counts as dirty each time: userfaultfd refuses it: {errno}",
                            part.start,
                            part.end
                        );
                        &mut self.refused
                    }
                }
            };
            let mut all = std::mem::take(list);
            all.push(part);
            *list = ranges::normalize(all);
        }
        Ok(())
    }

    /// Arms all pages of a range, and tells nothing.
    fn arm(&mut self, range: &Range<usize>) {
        if let Err(errno) = self.pagemap.take_written(range, |_| ()) {
            // It is not armed, or in part, so the next scan fails or tells it.
            tracing::debug!("{:#x}-{:#x} is not armed: {errno}", range.start, range.end);
        }
    }

    /// The mappings have changed in these windows: begins them anew. They are told as a whole.
    fn begin_anew(&mut self, windows: &[Range<usize>]) -> Result<()> {
        let maps = maps::detailed()?;
        self.forget(windows);
        self.register(windows, &maps, false)?;
        let registered = self.registered();
        ranges::intersect(&registered, windows).iter().for_each(|range| self.arm(range));
        Ok(())
    }
}

impl Backend for Scan {
    fn kind(&self) -> Kind {
        Kind::Scan
    }

    fn begin(&mut self, fresh: &[Range<usize>], maps: &[Mapping]) -> Result<()> {
        if super::soft_dirty::is_open() {
            return Err(Error::new(
                libc::EBUSY,
                "a tracker by soft-dirty bits is open in this process, and would not see what it \
                 writes to memory that userfaultfd protects: close it first",
            ));
        }
        self.register(fresh, maps, true)
    }

    fn end(&mut self, gone: &[Range<usize>]) {
        let registered = self.registered();
        for range in ranges::intersect(&registered, gone) {
            if let Err(errno) = self.uffd.unregister(&range) {
                // Something else is mapped there by now, which is not ours.
                tracing::debug!("{:#x}-{:#x} is not let go of: {errno}", range.start, range.end);
            }
        }
        self.forget(gone);
    }

    /// Where pages were dropped is told at rest alone: to find that out takes a second look at every page, and who
    /// collects at work collects once more at rest.
    fn collect(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let scanned = ranges::subtract(tracked, &self.refused);
        let told = self.told_written(&scanned, dirty)?;
        // As one look at rest would see it: a hole that was written is told as soon as it is a hole again, and so is
        // a copy that is none any more.
        self.holes = ranges::subtract(&self.holes, &told);
        let copied = ranges::intersect(&told, &self.files);
        self.copies = ranges::normalize([&self.copies[..], &copied].concat());
        Ok(())
    }

    fn collect_at_rest(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let scanned = ranges::subtract(tracked, &self.refused);
        let told = self.told_written(&scanned, dirty)?;
        self.refused.iter().cloned().for_each(&mut *dirty);
        if self.tells_holes {
            let shared = ranges::intersect(&scanned, &self.shared);
            self.told_holes(&shared, &told, dirty)?;
        } else {
            self.told_holes(&scanned, &told, dirty)?;
        }
        self.told_copies(&told, dirty)
    }
}

impl Scan {
    /// Tells the pages that were written, and returns them. What is mapped there anew begins anew, and is told as a whole.
    fn told_written(
        &mut self,
        scanned: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<Vec<Range<usize>>> {
        let (mut told, mut changed) = (Vec::new(), Vec::new());
        for window in ranges::windows(scanned, WINDOW) {
            let taken = self.pagemap.take_written(&window, |range| {
                ranges::push(&mut told, range.clone());
                dirty(range);
            });
            match taken {
                Ok(()) => {}
                Err(Errno::EPERM | Errno::ENOTSUP) => changed.push(window),
                Err(errno) => return Err(failed(&window, errno)),
            }
        }
        if !changed.is_empty() {
            let changed = ranges::normalize(changed);
            self.begin_anew(&changed)?;
            changed.into_iter().for_each(dirty);
        }
        Ok(told)
    }

    /// Tells the holes that need telling. `told` is what was written: one of those may have been
    /// copied before it became a hole again.
    fn told_holes(
        &mut self,
        scanned: &[Range<usize>],
        told: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let mut holes = Vec::new();
        for range in scanned {
            let found = self.pagemap.holes(range, |hole| ranges::push(&mut holes, hole));
            found.map_err(|errno| failed(range, errno))?;
        }
        for hole in ranges::intersect(&holes, &self.shared) {
            if let Err(errno) = self.uffd.protect(&hole) {
                tracing::debug!("the hole {:#x}-{:#x} stays dirty: {errno}", hole.start, hole.end);
            }
            dirty(hole);
        }
        let holes = ranges::intersect(&holes, &self.anonymous);
        let known = ranges::subtract(&self.holes, told);
        ranges::subtract(&holes, &known).into_iter().for_each(dirty);
        self.holes = holes;
        Ok(())
    }

    /// Tells the pages of files that are not there, or no copies any more.
    fn told_copies(
        &mut self,
        told: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let (mut there, mut copies) = (Vec::new(), Vec::new());
        for range in &self.files {
            let found = self.pagemap.present(range, |page, of_file| {
                ranges::push(&mut there, page.clone());
                if !of_file {
                    ranges::push(&mut copies, page);
                }
            });
            found.map_err(|errno| failed(range, errno))?;
        }
        let were = [&self.copies[..], &ranges::intersect(told, &self.files)].concat();
        let gone = ranges::subtract(&ranges::normalize(were), &copies);
        let missing = ranges::subtract(&self.files, &there);
        ranges::normalize([gone, missing].concat()).into_iter().for_each(dirty);
        self.copies = copies;
        Ok(())
    }
}

fn failed(range: &Range<usize>, errno: Errno) -> Error {
    Error::new(
        errno as i32,
        format!("PAGEMAP_SCAN of {:#x}-{:#x}: {errno}", range.start, range.end),
    )
}
