//! The tables of a slot: its areas, and its chunks.

use super::header::MAX_EPOCH;
use crate::{Area, Error, Layout, PAGE, Result};
use std::sync::LazyLock;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an area in the table of areas.
pub const AREA_BYTES: usize = size_of::<AreaEntry>();
/// Bytes of a chunk in the page table.
pub const ENTRY_BYTES: usize = size_of::<PageEntry>();

/// Of an entry's second word: the chunk is all zeros.
const ZERO: u32 = 1 << 31;
static ZEROS_CRC: LazyLock<u32> = LazyLock::new(|| crc32c::crc32c(&[0; PAGE]));

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AreaEntry {
    id: U32,
    zero: U32,
    addr: U64,
    bytes: U64,
}

/// The table of areas of this layout.
#[must_use]
pub fn encode_areas(layout: &Layout) -> Vec<u8> {
    let mut table = Vec::with_capacity(layout.areas().len() * AREA_BYTES);
    for area in layout.areas() {
        let entry = AreaEntry {
            id: area.id.into(),
            zero: 0.into(),
            addr: (area.addr as u64).into(),
            bytes: (area.bytes as u64).into(),
        };
        table.extend_from_slice(entry.as_bytes());
    }
    table
}

/// The layout that a table of areas is of.
///
/// # Errors
/// `EINVAL` for what is no table, or no [`Layout`].
pub fn decode_areas(table: &[u8]) -> Result<Layout> {
    let entries = <[AreaEntry]>::ref_from_bytes(table)
        .map_err(|_| Error::invalid(format!("{} bytes are no table of areas", table.len())))?;
    if let Some(entry) = entries.iter().find(|entry| entry.zero.get() != 0) {
        let (id, zero) = (entry.id, entry.zero);
        return Err(Error::invalid(format!("area {id} has {zero:#x} where 0 belongs")));
    }
    let number = |value: U64| usize::try_from(value.get()).unwrap_or(usize::MAX);
    Layout::new(entries.iter().map(|entry| Area {
        id: entry.id.get(),
        addr: number(entry.addr),
        bytes: number(entry.bytes),
    }))
}

/// What the page table says of one chunk.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct PageEntry {
    crc: U32,
    changed: U32,
}

impl PageEntry {
    /// Of a chunk with these bytes, whose content last changed in the epoch of count `changed`.
    ///
    /// It says whether they are all zero: then they need not be sent.
    ///
    /// # Panics
    /// Where the epoch is above [`MAX_EPOCH`], or there are more than [`PAGE`] bytes.
    #[must_use]
    pub fn of(bytes: &[u8], changed: u64) -> Self {
        if is_zero(bytes) {
            PageEntry::zeros(bytes.len(), changed)
        } else {
            PageEntry::with_crc(crc32c::crc32c(bytes), changed)
        }
    }

    /// Of a chunk whose bytes have this checksum, and are sent.
    ///
    /// # Panics
    /// Where the epoch is above [`MAX_EPOCH`].
    #[must_use]
    pub fn with_crc(crc: u32, changed: u64) -> Self {
        assert!(changed <= MAX_EPOCH, "epoch {changed}");
        PageEntry { crc: crc.into(), changed: (changed as u32).into() }
    }

    /// Of a chunk of so many zeros, which are not sent.
    ///
    /// # Panics
    /// Where the epoch is above [`MAX_EPOCH`], or there are more than [`PAGE`] bytes.
    #[must_use]
    pub fn zeros(bytes: usize, changed: u64) -> Self {
        assert!(changed <= MAX_EPOCH, "epoch {changed}");
        PageEntry { crc: crc_of_zeros(bytes).into(), changed: (changed as u32 | ZERO).into() }
    }

    /// The crc32c of its bytes, zeros too.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.crc.get()
    }

    /// The epoch in which its content last changed.
    #[must_use]
    pub fn changed(&self) -> u64 {
        u64::from(self.changed.get() & !ZERO)
    }

    /// Whether it is all zeros, and so not in the data.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.changed.get() & ZERO != 0
    }
}

/// Whether all of these are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // By blocks, which the compiler compares with wide instructions.
    let blocks = bytes.chunks_exact(32);
    blocks.remainder().iter().all(|byte| *byte == 0) && blocks.into_iter().all(|it| it == [0; 32])
}

/// The checksum of so many zeros.
///
/// # Panics
/// Where it is more than a chunk.
pub(super) fn crc_of_zeros(bytes: usize) -> u32 {
    if bytes == PAGE { *ZEROS_CRC } else { crc32c::crc32c(&[0; PAGE][..bytes]) }
}

/// What the entries of an image of this epoch say can be: epochs that have been, and of zeros their checksum.
/// Else the chunk, and what is wrong with it.
pub(crate) fn check_entries(
    pages: &PageTable,
    layout: &Layout,
    epoch: u64,
) -> std::result::Result<(), (usize, String)> {
    for (index, area) in layout.areas().iter().enumerate() {
        let own = layout.chunks_of(index);
        for chunk in own.clone() {
            let entry = pages.entries()[chunk];
            let bytes = (area.bytes - (chunk - own.start) * PAGE).min(PAGE);
            let of = format_args!("chunk {} of area {}", chunk - own.start, area.id);
            let changed = entry.changed();
            if changed > epoch {
                return Err((
                    chunk,
                    format!("{of} changed in epoch {changed}, and this is {epoch}"),
                ));
            }
            if entry.is_zero() && entry.crc() != crc_of_zeros(bytes) {
                return Err((chunk, format!("{of} is zeros, with a checksum of something else")));
            }
        }
    }
    Ok(())
}

/// The page table of an image: one entry for each chunk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable(Vec<PageEntry>);

impl PageTable {
    /// The table of an image of zeros, which were so since epoch `changed`.
    ///
    /// # Panics
    /// Where the epoch is above [`MAX_EPOCH`].
    #[must_use]
    pub fn zeros(layout: &Layout, changed: u64) -> Self {
        let mut entries = vec![PageEntry::zeros(PAGE, changed); layout.chunks()];
        for (index, area) in layout.areas().iter().enumerate() {
            let last = layout.chunks_of(index).end - 1;
            entries[last] = PageEntry::zeros((area.bytes - 1) % PAGE + 1, changed);
        }
        PageTable(entries)
    }

    /// These entries.
    #[must_use]
    pub fn new(entries: Vec<PageEntry>) -> Self {
        PageTable(entries)
    }

    /// The entries that `bytes` are, whose length is a multiple of [`ENTRY_BYTES`].
    ///
    /// # Errors
    /// `EINVAL` for another length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let entries = <[PageEntry]>::ref_from_bytes(bytes)
            .map_err(|_| Error::invalid(format!("{} bytes are no page table", bytes.len())))?;
        Ok(PageTable(entries.to_vec()))
    }

    /// Room for so many entries, to be read into.
    pub(super) fn room(chunks: usize) -> Self {
        PageTable(vec![PageEntry::new_zeroed(); chunks])
    }

    /// Its bytes, to be read into.
    pub(super) fn as_mut_bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &[PageEntry] {
        &self.0
    }

    /// Its entries, to be changed.
    pub fn entries_mut(&mut self) -> &mut [PageEntry] {
        &mut self.0
    }

    /// Its bytes, as they are in the slot.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice().as_bytes()
    }
}
