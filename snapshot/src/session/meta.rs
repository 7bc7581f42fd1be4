//! What of a slot is not the program's memory: header, tables, windows, and the word, put together in registered
//! memory of our own and written from there.

use crate::image::{Geometry, HeaderPage, PageTable, Stamp, WORD_AT, encode_areas};
use crate::stream::Lane;
use crate::{Layout, PAGE, Result};
use sojourn_fabric::virt::{MemoryRegion, Op, ProtectionDomain, Remote};
use std::ops::Range;

/// Bytes of one WRITE at most.
const LONGEST: usize = 1 << 20;

/// The front of a slot, up to its data.
pub(super) struct Meta {
    region: MemoryRegion,
    geometry: Geometry,
}

impl Meta {
    pub(super) fn new(pd: &ProtectionDomain, geometry: Geometry) -> Result<Meta> {
        Ok(Meta { region: pd.register(geometry.data_at(), 0)?, geometry })
    }

    /// Puts an epoch together. What it does not fill is not written.
    pub(super) fn fill(
        &self,
        stamp: &Stamp,
        layout: &Layout,
        pages: &PageTable,
        windows: &[u8],
    ) -> Result<Vec<Range<usize>>> {
        let header = HeaderPage::new(stamp, &self.geometry, layout, pages, windows)?;
        let areas = encode_areas(layout);
        let parts = [
            (0, header.as_bytes()),
            (self.geometry.areas_at(), &areas[..]),
            (self.geometry.pages_at(), pages.as_bytes()),
            (self.geometry.windows_at(), windows),
        ];
        for (at, part) in parts {
            self.region.write(at, part);
        }
        let all = parts.iter().map(|(at, part)| *at..at + part.len());
        Ok(all.filter(|part| !part.is_empty()).collect())
    }

    /// Writes parts of what was put together into a slot.
    pub(super) fn write(
        &self,
        lane: &mut Lane<()>,
        slot: Remote,
        parts: &[Range<usize>],
    ) -> Result<()> {
        let mut done = |()| {};
        for part in parts {
            for at in part.clone().step_by(LONGEST) {
                let range = at..part.end.min(at + LONGEST);
                let local = self.region.slice(range);
                lane.post(Op::Write(slot.offset(at as u64)), local, (), &mut done)?;
            }
        }
        lane.drain(&mut done)
    }

    /// Writes the word of a slot.
    pub(super) fn word(&self, lane: &mut Lane<()>, slot: Remote, word: u64) -> Result<()> {
        self.region.write(WORD_AT, &word.to_le_bytes());
        self.write(lane, slot, std::slice::from_ref(&(WORD_AT..WORD_AT + size_of::<u64>())))
    }
}

const _: () = assert!(WORD_AT + size_of::<u64>() <= PAGE);
