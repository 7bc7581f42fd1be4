//! What was mapped at tracked addresses when somebody looked last, to notice what has come since.

use super::maps::{self, Mapping};
use super::ranges;
use crate::Result;
use std::ops::Range;

/// The mappings of tracked memory, each clipped to it.
#[derive(Default)]
pub(super) struct Outline(Vec<Mapping>);

impl Outline {
    /// Takes note of what is mapped in these ranges.
    pub(super) fn add(&mut self, fresh: &[Range<usize>], maps: &[Mapping]) {
        for range in fresh {
            self.0.extend(maps.iter().filter_map(|mapping| clip(mapping, range)));
        }
        self.0.sort_unstable_by_key(|it| it.range.start);
    }

    /// Forgets these ranges.
    pub(super) fn remove(&mut self, gone: &[Range<usize>]) {
        let left = |it: Mapping| {
            let left = ranges::subtract(std::slice::from_ref(&it.range), gone);
            left.into_iter().filter_map(move |range| clip(&it, &range))
        };
        self.0 = std::mem::take(&mut self.0).into_iter().flat_map(left).collect();
    }

    /// The parts of `tracked` at which something else is mapped `now` than what was noted.
    pub(super) fn changes(&self, now: &[Mapping], tracked: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut same = Vec::new();
        for old in &self.0 {
            let first = now.partition_point(|it| it.range.end <= old.range.start);
            for it in now[first..].iter().take_while(|it| it.range.start < old.range.end) {
                if alike(old, it) {
                    let start = it.range.start.max(old.range.start);
                    same.push(start..it.range.end.min(old.range.end));
                }
            }
        }
        // What is not mapped is no change: there is nothing to tell of.
        let here = ranges::normalize(now.iter().map(|it| it.range.clone()).collect());
        ranges::subtract(&ranges::intersect(tracked, &here), &ranges::normalize(same))
    }

    /// Takes note of what is mapped in these ranges now.
    ///
    /// # Errors
    /// Where `/proc` is not there, or does not say what it should.
    pub(super) fn renew(&mut self, changed: &[Range<usize>]) -> Result<()> {
        self.remove(changed);
        self.add(changed, &maps::detailed()?);
        Ok(())
    }

    /// The ranges of all mappings that are as `which` says.
    pub(super) fn of(&self, which: impl Fn(&Mapping) -> bool) -> Vec<Range<usize>> {
        let those = self.0.iter().filter(|it| which(it));
        ranges::normalize(those.map(|it| it.range.clone()).collect())
    }

    /// The ranges of all of them.
    pub(super) fn all(&self) -> Vec<Range<usize>> {
        self.of(|_| true)
    }

    /// The mappings.
    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.0
    }
}

/// The part of a mapping that lies in `range`.
fn clip(mapping: &Mapping, range: &Range<usize>) -> Option<Mapping> {
    let (start, end) = (range.start.max(mapping.range.start), range.end.min(mapping.range.end));
    (start < end).then(|| {
        let offset = mapping.offset.wrapping_add((start - mapping.range.start) as u64);
        Mapping { range: start..end, offset, ..mapping.clone() }
    })
}

/// Whether the two are of the same object, at the same place of it.
fn alike(one: &Mapping, other: &Mapping) -> bool {
    let place = |it: &Mapping| it.offset.wrapping_sub(it.range.start as u64);
    one.shared == other.shared
        && one.file == other.file
        && (one.file.2 == 0 || place(one) == place(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE;

    fn mapping(line: &str) -> Mapping {
        maps::decode(line.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn what_is_mapped_instead_is_a_change_and_what_is_split_or_gone_is_none() {
        let old = mapping("10000-20000 rw-p 00000000 00:00 0");
        let file = mapping("20000-30000 rw-s 00001000 00:01 77  /some/file");
        let mut outline = Outline::default();
        let one = |range: Range<usize>| Vec::from_iter([range]);
        let tracked = one(0x11000..0x2f000);
        outline.add(&tracked, &[old.clone(), file]);
        assert_eq!(outline.all(), tracked);
        let compare =
            |lines: &str| outline.changes(&maps::decode(lines.as_bytes()).unwrap(), &tracked);
        let as_before =
            "10000-18000 rw-p 0 0:0 0\n18000-20000 r--p 0 0:0 0\n20000-30000 rw-s 1000 00:1 77 /x";
        assert_eq!(compare(as_before), []);
        let moved = "10000-20000 rw-p 0 0:0 0\n20000-30000 rw-s 2000 00:1 77 /x";
        assert_eq!(compare(moved), one(0x20000..0x2f000));
        let shared = "10000-18000 rw-p 0 0:0 0\n18000-19000 rw-s 0 0:1 9 /dev/zero\n20000-30000 rw-s 1000 00:1 77 /x";
        assert_eq!(compare(shared), one(0x18000..0x19000));
        assert_eq!(compare("10000-12000 rw-p 0 0:0 0"), []);
        outline.remove(&[0x11000..0x12000, 0x20000..0x20000 + PAGE]);
        assert_eq!(outline.all(), [0x12000..0x20000, 0x21000..0x2f000]);
        assert!(alike(&outline.0[1], &mapping("21000-22000 rw-s 2000 00:1 77 /x")));
    }
}
