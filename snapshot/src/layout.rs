//! The memory that a snapshot is of.

use crate::{Error, PAGE, PageSet, Result};
use std::ops::Range;

/// A range of memory with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// The name that its owner gave it: what it is found by when it is restored.
    pub id: u32,
    /// Its first byte, aligned or not.
    pub addr: usize,
    /// How long it is; at least 1.
    pub bytes: usize,
}

impl Area {
    /// Its addresses.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.addr..self.addr + self.bytes
    }
}

/// The areas of a process, cut into chunks that are numbered from 0 through all of them.
///
/// A chunk is [`PAGE`] bytes of one area, counted from the area's first byte; an area's last one may
/// be shorter. So an image says nothing of where memory lay, and bytes that are no part of an area
/// are never read or restored, however it is aligned. Where an area is page aligned a chunk is a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    areas: Vec<Area>,
    /// First chunk of each area, and behind the last one how many there are.
    first: Vec<usize>,
    /// The areas, by address.
    by_addr: Vec<usize>,
}

impl Layout {
    /// Most areas of one process. Bounds what a decoder holds.
    pub const MAX_AREAS: usize = 4096;
    /// Most bytes of all areas: 64 TiB, so that no sum of offsets can overflow.
    pub const MAX_BYTES: usize = 1 << 46;

    /// The layout of these areas, in their order.
    ///
    /// # Errors
    /// `EINVAL` for an empty area, one that wraps around, two that overlap, two with one id, or more
    /// than [`Self::MAX_AREAS`] or [`Self::MAX_BYTES`]; the message names it.
    pub fn new(areas: impl IntoIterator<Item = Area>) -> Result<Self> {
        let areas: Vec<Area> = areas.into_iter().collect();
        if areas.len() > Self::MAX_AREAS {
            let many = areas.len();
            return Err(Error::invalid(format!("{many} areas: at most {}", Self::MAX_AREAS)));
        }
        let mut total = 0usize;
        for area in &areas {
            if area.bytes == 0 || area.addr.checked_add(area.bytes).is_none() {
                return Err(Error::invalid(format!(
                    "area {}: {} bytes at {:#x} are no range of memory",
                    area.id, area.bytes, area.addr
                )));
            }
            total = total.saturating_add(area.bytes);
        }
        if total > Self::MAX_BYTES {
            let most = Self::MAX_BYTES;
            return Err(Error::invalid(format!("areas of {total} bytes: at most {most}")));
        }
        let mut ids: Vec<u32> = areas.iter().map(|area| area.id).collect();
        ids.sort_unstable();
        if let Some(two) = ids.windows(2).find(|two| two[0] == two[1]) {
            return Err(Error::invalid(format!("two areas have the id {}", two[0])));
        }
        let mut by_addr: Vec<usize> = (0..areas.len()).collect();
        by_addr.sort_unstable_by_key(|i| areas[*i].addr);
        for two in by_addr.windows(2) {
            let (low, high) = (&areas[two[0]], &areas[two[1]]);
            if low.range().end > high.addr {
                return Err(Error::invalid(format!(
                    "areas {} and {} overlap at {:#x}",
                    low.id, high.id, high.addr
                )));
            }
        }
        let mut first = vec![0];
        for area in &areas {
            first.push(first[first.len() - 1] + area.bytes.div_ceil(PAGE));
        }
        Ok(Layout { areas, first, by_addr })
    }

    /// The areas.
    #[must_use]
    pub fn areas(&self) -> &[Area] {
        &self.areas
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.first.last().copied().unwrap_or_default()
    }

    /// Bytes of all areas.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.areas.iter().map(|area| area.bytes).sum()
    }

    /// The chunks of the area at `index` of [`Self::areas`].
    ///
    /// # Panics
    /// Where there is none.
    #[must_use]
    pub fn chunks_of(&self, index: usize) -> Range<usize> {
        self.first[index]..self.first[index + 1]
    }

    /// The index in [`Self::areas`] of the area that has `chunk`.
    ///
    /// # Panics
    /// Where there is no such chunk.
    #[must_use]
    pub fn area_of(&self, chunk: usize) -> usize {
        assert!(chunk < self.chunks(), "chunk {chunk} of {}", self.chunks());
        self.first.partition_point(|first| *first <= chunk) - 1
    }

    /// The pieces of memory that `chunks` are, each with its first chunk: one for each area.
    ///
    /// # Panics
    /// Where there are no such chunks.
    pub fn pieces(&self, chunks: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
        assert!(chunks.end <= self.chunks(), "chunks {chunks:?} of {}", self.chunks());
        let from = self.first.partition_point(|first| *first <= chunks.start).saturating_sub(1);
        let areas = self.areas.iter().enumerate().skip(from);
        areas
            .take_while({
                let end = chunks.end;
                move |(i, _)| self.first[*i] < end
            })
            .filter_map(move |(i, area)| {
                let own = self.chunks_of(i);
                let (start, end) = (own.start.max(chunks.start), own.end.min(chunks.end));
                let addr = |chunk: usize| area.addr + ((chunk - own.start) * PAGE).min(area.bytes);
                (start < end).then(|| (start, addr(start)..addr(end)))
            })
    }

    /// Adds to `set` every chunk that has a byte in `range`.
    ///
    /// # Panics
    /// Where `set` is not one of this layout's length.
    pub fn mark(&self, range: Range<usize>, set: &mut PageSet) {
        assert_eq!(set.length(), self.chunks(), "a set of other memory");
        let from = self.by_addr.partition_point(|i| self.areas[*i].range().end <= range.start);
        for i in &self.by_addr[from..] {
            let area = &self.areas[*i];
            let (start, end) = (area.addr.max(range.start), area.range().end.min(range.end));
            if start >= end {
                break;
            }
            let chunk = |addr: usize| self.first[*i] + (addr - area.addr) / PAGE;
            set.insert_range(chunk(start)..chunk(end - 1) + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn area(id: u32, addr: usize, bytes: usize) -> Area {
        Area { id, addr, bytes }
    }

    #[test]
    fn what_is_no_layout_is_refused_by_name() {
        let refused = |areas: &[Area], words: &[&str]| {
            let error = Layout::new(areas.iter().copied()).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        };
        refused(&[area(3, 0x1000, 0)], &["area 3", "0 bytes"]);
        refused(&[area(3, usize::MAX, 2)], &["area 3"]);
        refused(&[area(3, 0x1000, 8), area(3, 0x2000, 8)], &["two areas", "3"]);
        refused(&[area(4, 0x2000, 8), area(3, 0x1000, 0x1001)], &["areas 3 and 4", "0x2000"]);
        refused(&[area(1, 0x1000, Layout::MAX_BYTES + 1)], &["at most"]);
        let many = (0..=Layout::MAX_AREAS).map(|i| area(i as u32, 0x1000 + i * 8, 8));
        assert!(Layout::new(many).unwrap_err().to_string().contains("at most 4096"));
        assert_eq!(Layout::new([]).unwrap().chunks(), 0);
    }

    proptest! {
        /// Every byte of every area is in just one chunk, and no other byte is in any.
        #[test]
        fn chunks_are_all_bytes_of_the_areas_once(
            shapes in prop::collection::vec((1usize..3 * PAGE, 0usize..2 * PAGE), 1..6),
            order in any::<prop::sample::Index>(),
            (from, long) in (0usize..40_000, 1usize..9000),
        ) {
            let mut addr = 0x10_0000;
            let mut areas = Vec::new();
            for (i, (bytes, gap)) in shapes.into_iter().enumerate() {
                areas.push(area(i as u32, addr + gap, bytes));
                addr += gap + bytes;
            }
            let mid = order.index(areas.len());
            areas.rotate_left(mid);
            let layout = Layout::new(areas.clone()).unwrap();
            let mut bytes = 0;
            for chunk in 0..layout.chunks() {
                let pieces: Vec<_> = layout.pieces(chunk..chunk + 1).collect();
                prop_assert_eq!(pieces.len(), 1);
                let (first, range) = pieces[0].clone();
                prop_assert_eq!(first, chunk);
                prop_assert!(!range.is_empty() && range.len() <= PAGE);
                prop_assert!(layout.chunks_of(layout.area_of(chunk)).contains(&chunk));
                bytes += range.len();
                let mut set = PageSet::new(layout.chunks());
                layout.mark(range.clone(), &mut set);
                prop_assert_eq!(set.runs().collect::<Vec<_>>(), vec![chunk..chunk + 1]);
            }
            prop_assert_eq!(bytes, layout.bytes());
            let whole: Vec<_> = layout.pieces(0..layout.chunks()).map(|(_, range)| range).collect();
            prop_assert_eq!(whole, areas.iter().map(Area::range).collect::<Vec<_>>());
            // What is marked is what overlaps.
            let range = 0x10_0000 + from..0x10_0000 + from + long;
            let mut set = PageSet::new(layout.chunks());
            layout.mark(range.clone(), &mut set);
            for (chunk, piece) in (0..layout.chunks()).flat_map(|i| layout.pieces(i..i + 1)) {
                let overlap = piece.start < range.end && range.start < piece.end;
                prop_assert_eq!(set.contains(chunk), overlap);
            }
        }
    }
}
