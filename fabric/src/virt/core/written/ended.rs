//! Regions that were deregistered, and may have been written since the last committed report.

use crate::virt::core::local::Region;
use std::collections::HashMap;

/// So many are remembered one by one. Of more each counts as written altogether.
const MAX_ENDED: usize = 1 << 14;

/// In place of a report: it is still on the way to its end.
const ENDING: u64 = u64::MAX;

/// Them, by key. A key that is dealt again after 256 times is that of several.
#[derive(Default)]
pub(super) struct Ended {
    regions: HashMap<u32, Vec<(Region, u64)>>,
    count: usize,
}

impl Ended {
    /// One ends. Returns what is to be counted as written: there is no room for it.
    pub(super) fn add(&mut self, key: u32, region: &Region) -> Option<(u64, u64)> {
        if self.count >= MAX_ENDED {
            return Some((region.base as u64, region.length));
        }
        self.count += 1;
        self.regions.entry(key).or_default().push((region.clone(), ENDING));
        None
    }

    /// It has ended, after the report `stamp` was begun.
    pub(super) fn has_ended(&mut self, key: u32, stamp: u64) {
        let all = self.regions.get_mut(&key).into_iter().flatten();
        all.filter(|(_, it)| *it == ENDING).for_each(|(_, it)| *it = stamp);
    }

    /// The regions that had that key.
    pub(super) fn of(&self, key: u32) -> impl Iterator<Item = &Region> {
        self.regions.get(&key).into_iter().flatten().map(|(region, _)| region)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Region> {
        self.regions.values().flatten().map(|(region, _)| region)
    }

    /// Where `begin..end` of a key may have been: addresses and lengths.
    pub(super) fn resolve(&self, key: u32, begin: u64, end: u64) -> Vec<(u64, u64)> {
        let clipped = self.of(key).filter_map(|region| clip(region, begin, end));
        clipped.map(|(begin, end)| (begin, end - begin)).collect()
    }

    /// What that report has told is safe.
    pub(super) fn let_go(&mut self, report: u64) {
        self.regions.retain(|_, regions| {
            regions.retain(|(_, stamp)| *stamp >= report);
            !regions.is_empty()
        });
        self.count = self.regions.values().map(Vec::len).sum();
    }
}

/// The addresses of our memory that `begin..end` of a region's are, as far as they are its.
pub(super) fn clip(region: &Region, begin: u64, end: u64) -> Option<(u64, u64)> {
    let last = region.start.saturating_add(region.length);
    let (begin, end) = (begin.max(region.start), end.min(last));
    let base = region.base as u64;
    (begin < end).then(|| (base + (begin - region.start), base + (end - region.start)))
}
