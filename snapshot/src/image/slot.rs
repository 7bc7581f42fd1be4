//! Reading a slot, and believing nothing of it.

use super::damaged::{Damaged, Part, Why};
use super::geometry::Geometry;
use super::header::{Header, HeaderPage, Stamp, WORD_AT};
use super::tables::{AREA_BYTES, PageTable, check_entries, decode_areas};
use crate::epoch::Epoch;
use crate::{Layout, PAGE, Result};
use std::ops::Range;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Where the bytes of a slot come from: memory, or the other end of a connection.
pub trait Source {
    /// How many bytes there are.
    fn bytes(&self) -> usize;

    /// Reads `into.len()` bytes from the offset `at`.
    ///
    /// # Errors
    /// Whatever is in the way of reading them. Not all there is one.
    fn read(&self, at: usize, into: &mut [u8]) -> Result<()>;
}

impl<S: Source + ?Sized> Source for &S {
    fn bytes(&self) -> usize {
        (**self).bytes()
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        (**self).read(at, into)
    }
}

impl Source for Vec<u8> {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        self.as_slice().read(at, into)
    }
}

impl Source for [u8] {
    fn bytes(&self) -> usize {
        self.len()
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        let from = at.checked_add(into.len()).and_then(|end| self.get(at..end));
        let from = from.ok_or_else(|| {
            let (wanted, has) = (into.len(), self.len());
            crate::Error::invalid(format!("{wanted} bytes from {at:#x} of {has} bytes"))
        })?;
        into.copy_from_slice(from);
        Ok(())
    }
}

/// A complete epoch in a slot: its header and its tables, all checked.
///
/// It holds the tables and the windows, and not the source; the chunks are read from that when they are wanted.
#[derive(Clone, Debug)]
pub struct Slot {
    stamp: Stamp,
    geometry: Geometry,
    layout: Layout,
    pages: PageTable,
    windows: Vec<u8>,
}

impl Slot {
    /// Reads header, tables and windows, and checks them.
    ///
    /// It holds at most what the source has, whatever the header says.
    ///
    /// # Errors
    /// The part that cannot be used. [`Damaged::is_incomplete`] where there is just no epoch.
    pub fn open<S: Source + ?Sized>(source: &S) -> std::result::Result<Slot, Damaged> {
        let has = source.bytes();
        short(Part::Header, PAGE, has)?;
        let mut page = HeaderPage::new_zeroed();
        read(source, Part::Header, 0, page.as_mut_bytes())?;
        let header = page.check()?;
        let geometry = header.geometry;
        short(Part::Header, geometry.bytes(), has)?;

        let layout = open_areas(source, &header)?;
        let mut pages = PageTable::room(header.chunks);
        read(source, Part::Pages, geometry.pages_at(), pages.as_mut_bytes())?;
        checksum(Part::Pages, geometry.pages_at(), pages.as_bytes(), header.pages_crc)?;
        check_entries(&pages, &layout, Epoch(header.stamp.epoch).count()).map_err(
            |(chunk, what)| {
                let at = geometry.entries_at(chunk..chunk + 1).start;
                Damaged::nonsense(Part::Pages, at, what)
            },
        )?;

        let mut windows = vec![0; header.windows];
        read(source, Part::Windows, geometry.windows_at(), &mut windows)?;
        checksum(Part::Windows, geometry.windows_at(), &windows, header.windows_crc)?;
        Ok(Slot { stamp: header.stamp, geometry, layout, pages, windows })
    }

    /// Whose epoch it is, and which.
    #[must_use]
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// What the slot has room for.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The areas.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The page table.
    #[must_use]
    pub fn pages(&self) -> &PageTable {
        &self.pages
    }

    /// The windows.
    #[must_use]
    pub fn windows(&self) -> &[u8] {
        &self.windows
    }

    /// Reads consecutive chunks of one area, as [`Layout::pieces`] names them, and checks each.
    ///
    /// # Errors
    /// The first chunk that is damaged; what `into` holds then means nothing.
    ///
    /// # Panics
    /// Where `chunks` are not chunks of one area, or `into` has not just their bytes.
    pub fn read<S: Source + ?Sized>(
        &self,
        source: &S,
        chunks: Range<usize>,
        into: &mut [u8],
    ) -> std::result::Result<(), Damaged> {
        let mut pieces = self.layout.pieces(chunks.clone());
        let bytes = pieces.next().map_or(0, |(_, piece)| piece.len());
        assert!(pieces.next().is_none(), "chunks {chunks:?} are of more than one area");
        assert_eq!(into.len(), bytes, "the room for chunks {chunks:?}");

        let entries = &self.pages.entries()[chunks.clone()];
        let mut at = 0;
        // Runs of chunks that are there, or are not.
        for run in entries.chunk_by(|one, two| one.is_zero() == two.is_zero()) {
            let room = at * PAGE..((at + run.len()) * PAGE).min(bytes);
            let first = chunks.start + at;
            if run[0].is_zero() {
                into[room].fill(0);
            } else {
                let room = &mut into[room];
                let offset = self.geometry.chunk_at(first);
                source
                    .read(offset, room)
                    .map_err(|error| Damaged::new(self.part(first), offset, Why::Unread(error)))?;
                for (i, chunk) in room.chunks(PAGE).enumerate() {
                    self.check(first + i, chunk)?;
                }
            }
            at += run.len();
        }
        Ok(())
    }

    /// Whether these are the bytes of a chunk.
    ///
    /// # Errors
    /// The chunk is damaged.
    ///
    /// # Panics
    /// Where there is no such chunk.
    pub fn check(&self, chunk: usize, bytes: &[u8]) -> std::result::Result<(), Damaged> {
        let (found, expected) = (crc32c::crc32c(bytes), self.pages.entries()[chunk].crc());
        if found == expected {
            return Ok(());
        }
        let at = self.geometry.chunk_at(chunk);
        Err(Damaged::new(self.part(chunk), at, Why::Checksum { found, expected }))
    }

    /// Reads every chunk, and checks it.
    ///
    /// # Errors
    /// The first that is damaged.
    pub fn verify<S: Source + ?Sized>(&self, source: &S) -> std::result::Result<(), Damaged> {
        /// As much at once as is worth a request to another machine.
        const STEP: usize = 256;
        let mut room = vec![0; STEP.min(self.layout.chunks()) * PAGE];
        for index in 0..self.layout.areas().len() {
            let own = self.layout.chunks_of(index);
            for start in own.clone().step_by(STEP) {
                let chunks = start..own.end.min(start + STEP);
                let bytes = self.layout.pieces(chunks.clone()).map(|(_, piece)| piece.len()).sum();
                self.read(source, chunks, &mut room[..bytes])?;
            }
        }
        Ok(())
    }

    /// Whether the slot still holds this epoch: to be asked after its last chunk was read.
    ///
    /// # Errors
    /// It does not, or its word cannot be read.
    pub fn confirm<S: Source + ?Sized>(&self, source: &S) -> std::result::Result<(), Damaged> {
        let mut word = [0; 8];
        read(source, Part::Header, WORD_AT, &mut word)?;
        let (word, epoch) = (u64::from_le_bytes(word), self.stamp.epoch);
        if word == epoch {
            return Ok(());
        }
        Err(Damaged::new(Part::Header, WORD_AT, Why::Incomplete { word, epoch }))
    }

    fn part(&self, chunk: usize) -> Part {
        let areas = 0..self.layout.areas().len();
        let mut owners = areas.map(|index| (index, self.layout.chunks_of(index)));
        let (index, own) = owners.find(|(_, own)| own.contains(&chunk)).expect("a chunk of it");
        Part::Chunk { area: self.layout.areas()[index].id, chunk: chunk - own.start }
    }
}

fn open_areas<S: Source + ?Sized>(
    source: &S,
    header: &Header,
) -> std::result::Result<Layout, Damaged> {
    let at = header.geometry.areas_at();
    let mut table = vec![0; header.areas * AREA_BYTES];
    read(source, Part::Areas, at, &mut table)?;
    checksum(Part::Areas, at, &table, header.areas_crc)?;
    let nonsense = |what: String| Damaged::nonsense(Part::Areas, at, what);
    let layout = decode_areas(&table).map_err(|error| nonsense(error.to_string()))?;
    if layout.chunks() != header.chunks {
        let (chunks, should) = (layout.chunks(), header.chunks);
        return Err(nonsense(format!("it has {chunks} chunks, and the header says {should}")));
    }
    Ok(layout)
}

fn read<S: Source + ?Sized>(
    source: &S,
    part: Part,
    at: usize,
    into: &mut [u8],
) -> std::result::Result<(), Damaged> {
    source.read(at, into).map_err(|error| Damaged::new(part, at, Why::Unread(error)))
}

fn short(part: Part, needs: usize, has: usize) -> std::result::Result<(), Damaged> {
    if needs <= has {
        return Ok(());
    }
    Err(Damaged::new(part, 0, Why::Short { needs: needs as u64, has: has as u64 }))
}

fn checksum(
    part: Part,
    at: usize,
    bytes: &[u8],
    expected: u32,
) -> std::result::Result<(), Damaged> {
    let found = crc32c::crc32c(bytes);
    if found == expected {
        return Ok(());
    }
    Err(Damaged::new(part, at, Why::Checksum { found, expected }))
}

/// Decodes whatever `bytes` are, as they are and with their checksums made right, for tests by chance.
///
/// # Panics
/// Where a promise of this module does not hold.
pub fn exercise(bytes: &[u8]) {
    let look = |bytes: &[u8]| {
        let Ok(slot) = Slot::open(bytes) else { return };
        assert!(slot.geometry.bytes() <= bytes.len());
        assert_eq!(slot.layout.chunks(), slot.pages.entries().len());
        if let Err(damaged) = slot.verify(bytes) {
            assert!((damaged.offset as usize) < bytes.len(), "{damaged}");
        }
        slot.confirm(bytes).expect("it was complete");
    };
    look(bytes);
    let mut bytes = bytes.to_vec();
    if let Ok((mut header, _)) = HeaderPage::read_from_prefix(&bytes) {
        header.repair(|range| bytes.get(range).map(crc32c::crc32c));
        bytes[..PAGE].copy_from_slice(header.as_bytes());
        look(&bytes);
    }
}
