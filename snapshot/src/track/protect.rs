//! The back end that needs no help of the kernel: pages are made read-only, and a handler of `SIGSEGV`
//! makes one writable again at its first store ([`super::signal`] says why nothing is lost).
//!
//! What it asks of the program:
//!
//! - **System calls that write into tracked memory fail** with `EFAULT` (`read`, `recv`, …), and so
//!   does `process_vm_writev` of another process, which is how the soft device writes. Ranges that
//!   these write to are added with [`Tracker::add_always_dirty`](super::Tracker::add_always_dirty).
//! - Its own handler of `SIGSEGV` is installed before the first tracker is opened. It is called for
//!   every fault that is not ours. One that is installed *later* gets our faults, and has to hand them
//!   on. While it is in place nothing is protected from the next collect on, and everything is dirty.
//! - It does not change the protection of tracked memory, and writes to it from no handler that runs
//!   while `SIGSEGV` is blocked. Neither the stack of a thread without an alternate signal stack nor
//!   an alternate signal stack can be tracked: the kernel could not deliver the signal.
//!
//! What is mapped in the place of tracked memory is found by comparing mappings at each collect: other
//! files, other kinds. What can be written is dirty, whoever has mapped it. Fresh private memory and dropped pages
//! are found by [`super::pagemap`]. Private mappings of explicit huge pages are dirty each time: one
//! that was dropped cannot be told from one that was not.

use super::maps::{self, Mapping};
use super::outline::Outline;
use super::pagemap::{Copies, Pages};
use super::signal::{self, Region};
use super::{Backend, Kind, ranges};
use crate::{Error, PAGE, Result};
use std::ops::Range;

/// Tracks by protecting.
pub(super) struct Protect {
    regions: Vec<Region>,
    outline: Outline,
    pages: Pages,
    copies: Copies,
}

impl Protect {
    /// # Errors
    /// `EBUSY` where the program has installed its handler over ours.
    pub(super) fn open() -> Result<Self> {
        signal::install()?;
        let (regions, outline, copies) = (Vec::new(), Outline::default(), Copies::default());
        Ok(Protect { regions, outline, pages: Pages::open()?, copies })
    }

    /// Makes regions of what can be written in these ranges. None of it is protected.
    fn make(&mut self, fresh: &[Range<usize>]) {
        let mut made = Vec::new();
        for mapping in self.outline.mappings() {
            let parts = ranges::intersect(std::slice::from_ref(&mapping.range), fresh);
            if mapping.write && can_tell(mapping) {
                let region = |part| Region::new(part, mapping.execute, mapping.page);
                made.extend(parts.into_iter().map(region));
            }
        }
        signal::add(&made);
        self.regions.append(&mut made);
    }

    /// Ends regions, or parts of them; `leave` is told of each part first.
    fn unmake(&mut self, gone: &[Range<usize>], leave: impl Fn(&Region, &Range<usize>)) {
        let hit =
            |it: &Region| !ranges::intersect(std::slice::from_ref(&it.range), gone).is_empty();
        let (old, mut keep): (Vec<_>, Vec<_>) = self.regions.drain(..).partition(hit);
        if !old.is_empty() {
            for region in &old {
                for part in ranges::intersect(std::slice::from_ref(&region.range), gone) {
                    leave(region, &part);
                }
            }
            let left: Vec<Region> = old.iter().flat_map(|it| it.without(gone)).collect();
            signal::replace(&old, &left);
            keep.extend(left);
        }
        self.regions = keep;
    }

    /// What was no region, because it could not be written, and can be now.
    fn newly_writable(&self, writable: &[Range<usize>]) -> Vec<Range<usize>> {
        let regions = self.regions.iter().map(|it| it.range.clone()).collect();
        let readable = ranges::subtract(&self.outline.of(can_tell), &ranges::normalize(regions));
        ranges::intersect(&readable, writable)
    }
}

/// Whether a dropped page of it can be told.
fn can_tell(mapping: &Mapping) -> bool {
    mapping.trackable().is_ok() && (mapping.shared || mapping.page == PAGE)
}

impl Backend for Protect {
    fn kind(&self) -> Kind {
        Kind::Protect
    }

    fn begin(&mut self, fresh: &[Range<usize>], maps: &[Mapping]) -> Result<()> {
        if let Some(range) = fresh.iter().find(|range| signal::needs(range)) {
            return Err(Error::invalid(format!(
                "{:#x}-{:#x} holds what the handler of SIGSEGV itself writes to: it cannot be protected",
                range.start, range.end
            )));
        }
        if let Some(range) = fresh.iter().find(|range| signal::covers(range)) {
            return Err(Error::new(
                libc::EBUSY,
                format!(
                    "{:#x}-{:#x} is protected by another tracker of this process",
                    range.start, range.end
                ),
            ));
        }
        self.outline.add(fresh, maps);
        self.make(fresh);
        Ok(())
    }

    fn end(&mut self, gone: &[Range<usize>]) {
        self.unmake(gone, |region, part| _ = region.release(part));
        self.outline.remove(gone);
        self.copies.forget(gone);
    }

    fn collect(
        &mut self,
        tracked: &[Range<usize>],
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        if !signal::in_place() {
            for region in &self.regions {
                // Released first: from then on nothing faults, and everything is told each time.
                region.release(&region.range);
            }
            tracked.iter().cloned().for_each(dirty);
            return Ok(());
        }
        let now = maps::brief()?;
        let mut changed = self.outline.changes(&now, tracked);
        let writable = now.iter().filter(|it| it.write).map(|it| it.range.clone());
        let writable = ranges::normalize(writable.collect());
        changed.extend(self.newly_writable(&writable));
        let changed = ranges::normalize(changed);
        if !changed.is_empty() {
            // What is mapped there now is none of ours, and its protection not ours to change.
            self.unmake(&changed, |_, _| ());
            self.outline.renew(&changed)?;
            self.copies.forget(&changed);
            self.make(&changed);
            changed.into_iter().for_each(&mut *dirty);
        }

        let mut told = Vec::new();
        for region in &self.regions {
            for run in ranges::intersect(std::slice::from_ref(&region.range), &writable) {
                // Where that fails the run can still be written, and is told again.
                region.protect(&run);
                told.push(run);
            }
        }
        told.into_iter().for_each(&mut *dirty);
        let private = self.outline.of(|it| !it.shared && can_tell(it));
        self.copies.look(&private, &mut self.pages, |_, _| (), dirty)?;
        let all = self.outline.of(can_tell);
        ranges::subtract(&self.outline.all(), &all).into_iter().for_each(dirty);
        Ok(())
    }
}

impl Drop for Protect {
    fn drop(&mut self) {
        let all: Vec<_> = self.regions.iter().map(|it| it.range.clone()).collect();
        self.unmake(&ranges::normalize(all), |region, part| _ = region.release(part));
    }
}
