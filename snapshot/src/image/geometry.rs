//! How much a slot has room for, and so where its parts are.

use super::tables::{AREA_BYTES, ENTRY_BYTES};
use crate::{Error, Layout, PAGE, Result};
use std::ops::Range;

/// What a slot has room for. Decides where each part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    areas: usize,
    chunks: usize,
    windows: usize,
}

impl Geometry {
    /// Most chunks: those of [`Layout::MAX_BYTES`], and of each area one that is not full.
    pub const MAX_CHUNKS: usize = Layout::MAX_BYTES / PAGE + Layout::MAX_AREAS;
    /// Most bytes of windows. 4,096 queue pairs with 64 requests of 1 KiB each take a quarter of it.
    pub const MAX_WINDOWS: usize = 1 << 30;

    /// Room for `areas` areas, `chunks` chunks and `windows` bytes of windows.
    ///
    /// # Errors
    /// `EINVAL` above [`Layout::MAX_AREAS`], [`Self::MAX_CHUNKS`] or [`Self::MAX_WINDOWS`].
    pub fn new(areas: usize, chunks: usize, windows: usize) -> Result<Self> {
        for (what, number, most) in [
            ("areas", areas, Layout::MAX_AREAS),
            ("chunks", chunks, Self::MAX_CHUNKS),
            ("bytes of windows", windows, Self::MAX_WINDOWS),
        ] {
            if number > most {
                return Err(Error::invalid(format!(
                    "a slot for {number} {what}: it can have at most {most}"
                )));
            }
        }
        Ok(Geometry { areas, chunks, windows })
    }

    /// Room for just this layout and so many bytes of windows.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(layout: &Layout, windows: usize) -> Result<Self> {
        Geometry::new(layout.areas().len(), layout.chunks(), windows)
    }

    /// Most areas.
    #[must_use]
    pub fn areas(&self) -> usize {
        self.areas
    }

    /// Most chunks.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Most bytes of windows.
    #[must_use]
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// Where the table of areas is.
    #[must_use]
    pub fn areas_at(&self) -> usize {
        PAGE
    }

    /// Where the page table is.
    #[must_use]
    pub fn pages_at(&self) -> usize {
        self.areas_at() + pages(self.areas * AREA_BYTES)
    }

    /// Where the windows are.
    #[must_use]
    pub fn windows_at(&self) -> usize {
        self.pages_at() + pages(self.chunks * ENTRY_BYTES)
    }

    /// Where the data is.
    #[must_use]
    pub fn data_at(&self) -> usize {
        self.windows_at() + pages(self.windows)
    }

    /// Where the data of `chunk` is.
    ///
    /// # Panics
    /// Where there is no room for such a chunk.
    #[must_use]
    pub fn chunk_at(&self, chunk: usize) -> usize {
        assert!(chunk < self.chunks, "chunk {chunk} of {}", self.chunks);
        self.data_at() + chunk * PAGE
    }

    /// Where the page table's entries of `chunks` are.
    ///
    /// # Panics
    /// Where there is no room for such chunks.
    #[must_use]
    pub fn entries_at(&self, chunks: Range<usize>) -> Range<usize> {
        assert!(
            chunks.start <= chunks.end && chunks.end <= self.chunks,
            "chunks {chunks:?} of {}",
            self.chunks
        );
        self.pages_at() + chunks.start * ENTRY_BYTES..self.pages_at() + chunks.end * ENTRY_BYTES
    }

    /// Bytes of the slot. The limits keep this sum, and those above, far below an overflow.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data_at() + self.chunks * PAGE
    }
}

const fn pages(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

/// Places in a slot are `usize`: the largest slot has to fit.
const _: () = assert!(usize::BITS == 64);
