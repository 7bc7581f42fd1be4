//! A data file, read: its trailer and tables are checked, and its extents when they are wanted.

use super::codec::Codec;
use super::data::{EXTENT, Extent, MAGIC, MAX_RUN, TRAILER, Trailer, VERSION, runs, tables_hash};
use super::image::bytes_of;
use crate::epoch::Epoch;
use crate::image::{
    AREA_BYTES, ENTRY_BYTES, Geometry, MAX_EPOCH, PageTable, Source, Stamp, check_entries,
    decode_areas,
};
use crate::{Error, Layout, PAGE, Result};
use sojourn_fabric::names::{Incarnation, ProcessId};
use std::ops::Range;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A data file. It holds its tables.
#[derive(Debug)]
pub(super) struct DataFile<S> {
    source: S,
    stamp: Stamp,
    base: Option<u64>,
    layout: Layout,
    pages: PageTable,
    windows: Vec<u8>,
    extents: Vec<Extent>,
    /// The extent that was unpacked last, since chunks are wanted one behind the other.
    unpacked: Option<usize>,
    room: Vec<u8>,
    /// The same as it is stored, where that is not as it is.
    stored: Vec<u8>,
}

impl<S: Source> DataFile<S> {
    /// Reads trailer and tables, and checks them. Holds at most what the source has.
    ///
    /// # Errors
    /// `EBADMSG` says what is wrong.
    pub(super) fn open(source: S) -> Result<Self> {
        let has = source.bytes();
        let start = has.checked_sub(TRAILER).filter(|start| *start >= MAGIC.len());
        let start = start.ok_or_else(|| damaged(format!("{has} bytes are no data file")))?;
        let mut trailer = Trailer::new_zeroed();
        source.read(start, trailer.as_mut_bytes())?;
        check_trailer(&trailer)?;

        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let (chunks, windows) = (number(trailer.chunks.get()), number(trailer.windows.get()));
        let areas = trailer.areas.get() as usize;
        Geometry::new(areas, chunks, windows).map_err(|error| damaged(error.to_string()))?;
        let lengths = [
            Some(areas * AREA_BYTES),
            Some(chunks * ENTRY_BYTES),
            Some(windows),
            number(trailer.extents.get()).checked_mul(EXTENT),
        ];
        // They end where the trailer begins.
        let tables_at = number(trailer.tables_at.get());
        let end = lengths.iter().try_fold(tables_at, |at, length| at.checked_add((*length)?));
        if end != Some(start) || tables_at < MAGIC.len() {
            return Err(damaged("its tables are not as long as its trailer says"));
        }
        let crcs = [trailer.areas_crc, trailer.pages_crc, trailer.windows_crc, trailer.extents_crc];
        let mut at = tables_at;
        let mut part = |index: usize, into: &mut [u8]| {
            source.read(at, into)?;
            at += into.len();
            if crc32c::crc32c(into) == crcs[index].get() {
                return Ok(());
            }
            let what = ["table of areas", "page table", "windows", "table of extents"][index];
            Err(damaged(format!("its {what} has another checksum than its trailer says")))
        };
        let mut table = vec![0; areas * AREA_BYTES];
        part(0, &mut table)?;
        let mut pages = vec![0; chunks * ENTRY_BYTES];
        part(1, &mut pages)?;
        let mut held = vec![0; windows];
        part(2, &mut held)?;
        let mut extents = vec![Extent::new_zeroed(); number(trailer.extents.get())];
        part(3, extents.as_mut_slice().as_mut_bytes())?;

        let layout = decode_areas(&table).map_err(|error| damaged(error.to_string()))?;
        let pages = PageTable::from_bytes(&pages)?;
        let epoch = trailer.epoch.get();
        if layout.chunks() != chunks {
            let has = layout.chunks();
            return Err(damaged(format!("its areas have {has} chunks, its trailer says {chunks}")));
        }
        check_entries(&pages, &layout, Epoch(epoch).count()).map_err(|(_, what)| damaged(what))?;
        let base = Some(trailer.base.get()).filter(|base| *base != 0);
        check_extents(&extents, &layout, &pages, base, tables_at)?;
        let mut magic = [0; MAGIC.len()];
        source.read(0, &mut magic)?;
        if magic != MAGIC {
            return Err(damaged("it does not begin as a data file does"));
        }
        let stamp = Stamp {
            job: trailer.job,
            process: ProcessId(trailer.process.get()),
            incarnation: Incarnation(trailer.incarnation.get()),
            epoch,
            paused_at: trailer.paused_at.get(),
        };
        let (unpacked, room, stored) = (None, Vec::new(), Vec::new());
        Ok(DataFile {
            source,
            stamp,
            base,
            layout,
            pages,
            windows: held,
            extents,
            unpacked,
            room,
            stored,
        })
    }

    /// Where it is read from.
    pub(super) fn source(&self) -> &S {
        &self.source
    }

    /// Whose epoch it is of, and which.
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Of an increment, what it comes after.
    pub(super) fn base(&self) -> Option<u64> {
        self.base
    }

    /// The areas of the image.
    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The page table of the whole image.
    pub(super) fn pages(&self) -> &PageTable {
        &self.pages
    }

    /// The windows.
    pub(super) fn windows(&self) -> &[u8] {
        &self.windows
    }

    /// The extents.
    pub(super) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// What identifies the image.
    pub(super) fn tables(&self) -> blake3::Hash {
        tables_hash(&self.layout, &self.pages, &self.windows)
    }

    /// Reads the chunk with this number in the image.
    ///
    /// # Errors
    /// `EBADMSG` where it is not in the file, or its extent is damaged.
    ///
    /// # Panics
    /// Where `into` has not just its bytes.
    pub(super) fn chunk(&mut self, chunk: usize, into: &mut [u8]) -> Result<()> {
        let behind = self.extents.partition_point(|extent| extent.first.get() as usize <= chunk);
        let found =
            behind.checked_sub(1).filter(|index| chunks_of(&self.extents[*index]).contains(&chunk));
        let index =
            found.ok_or_else(|| damaged(format!("chunk {chunk} of the image is not in it")))?;
        self.unpack(index)?;
        let at = (chunk - chunks_of(&self.extents[index]).start) * PAGE;
        into.copy_from_slice(&self.room[at..self.room.len().min(at + PAGE)]);
        Ok(())
    }

    /// Lets go of the page table and the windows, which are not needed to read chunks.
    pub(super) fn forget_tables(&mut self) {
        self.pages = PageTable::default();
        self.windows = Vec::new();
    }

    /// Unpacks the extent at `index` of [`Self::extents`].
    ///
    /// # Errors
    /// `EBADMSG` where it is damaged.
    fn unpack(&mut self, index: usize) -> Result<()> {
        if self.unpacked == Some(index) {
            return Ok(());
        }
        self.unpacked = None;
        let extent = self.extents[index];
        let at = extent.at.get();
        let codec = Codec::of(extent.codec.get()).unwrap_or_default();
        let bytes = bytes_of(&self.layout, chunks_of(&extent));
        // Both are bounded: it was found to be in the file, and of at most [`MAX_RUN`] chunks.
        let length = extent.stored.get() as usize;
        let stored = if codec == Codec::Raw { &mut self.room } else { &mut self.stored };
        stored.resize(length, 0);
        self.source.read(at as usize, stored)?;
        if crc32c::crc32c(stored) != extent.crc.get() {
            return Err(damaged(format!("the extent at {at} has another checksum than it had")));
        }
        if codec != Codec::Raw {
            self.room.resize(bytes, 0);
            codec
                .unpack(&self.stored, &mut self.room)
                .map_err(|what| damaged(format!("the extent at {at} {what}")))?;
        }
        self.unpacked = Some(index);
        Ok(())
    }
}

/// The chunks of an extent.
fn chunks_of(extent: &Extent) -> Range<usize> {
    let first = extent.first.get() as usize;
    first..first + extent.chunks.get() as usize
}

fn check_trailer(trailer: &Trailer) -> Result<()> {
    if trailer.magic != MAGIC {
        return Err(damaged("it does not end as a data file does"));
    }
    if trailer.version.get() != VERSION {
        let version = trailer.version;
        return Err(damaged(format!("it is of version {version}, {VERSION} is read here")));
    }
    if trailer.checksum() != trailer.crc.get() {
        return Err(damaged("its trailer has another checksum than it had"));
    }
    let (epoch, base) = (Epoch(trailer.epoch.get()).count(), trailer.base.get());
    if !(1..=MAX_EPOCH).contains(&epoch) || base >= epoch {
        return Err(damaged(format!("there is no epoch {epoch} on top of {base}")));
    }
    if trailer.zero.iter().any(|zero| zero.get() != 0) {
        return Err(damaged("its trailer has something where 0 belongs"));
    }
    Ok(())
}

/// The extents are just those runs that belong in the file, each where the one before ends.
fn check_extents(
    extents: &[Extent],
    layout: &Layout,
    pages: &PageTable,
    base: Option<u64>,
    tables_at: usize,
) -> Result<()> {
    let mut at = MAGIC.len() as u64;
    let mut wanted = runs(layout, pages, base);
    for extent in extents {
        let (first, many) = (extent.first.get(), u64::from(extent.chunks.get()));
        let own = wanted.next().filter(|own| own.start as u64 == first && own.len() as u64 == many);
        let Some(own) = own.filter(|own| own.len() <= MAX_RUN) else {
            return Err(damaged(format!(
                "an extent of {many} chunks from {first} has no place in it"
            )));
        };
        let raw = bytes_of(layout, own) as u64;
        let stored = u64::from(extent.stored.get());
        let fits = match Codec::of(extent.codec.get()) {
            None => false,
            Some(Codec::Raw) => stored == raw,
            Some(_) => (1..raw).contains(&stored),
        };
        if extent.at.get() != at || !fits {
            return Err(damaged(format!("the extent of chunk {first} is not stored as it may be")));
        }
        at += stored;
    }
    if let Some(own) = wanted.next() {
        return Err(damaged(format!("chunk {} of the image is not in it", own.start)));
    }
    if at != tables_at as u64 {
        return Err(damaged("its extents do not end where its tables begin"));
    }
    Ok(())
}

pub(super) fn damaged(what: impl Into<String>) -> Error {
    Error::new(libc::EBADMSG, what)
}

/// Decodes whatever `bytes` are, as they are and with a trailer that fits them, for tests by chance.
///
/// # Panics
/// Where a promise of this module does not hold.
pub fn exercise(bytes: &[u8]) {
    fn look(bytes: &[u8]) {
        let Ok(mut file) = DataFile::open(bytes) else { return };
        for index in 0..file.extents.len() {
            for chunk in chunks_of(&file.extents[index]) {
                let mut room = vec![0; bytes_of(&file.layout, chunk..chunk + 1)];
                if file.chunk(chunk, &mut room).is_err() {
                    break;
                }
            }
        }
    }
    look(bytes);
    let Some(start) = bytes.len().checked_sub(TRAILER + MAGIC.len()).map(|at| at + MAGIC.len())
    else {
        return;
    };
    let mut bytes = bytes.to_vec();
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    let Ok(mut trailer) = Trailer::read_from_bytes(&bytes[start..]) else { return };
    let crc = |at: &mut usize, length: u64| {
        let end = usize::try_from(length).ok().and_then(|length| at.checked_add(length));
        let part = end.and_then(|end| bytes.get(*at..end)).unwrap_or_default();
        *at = at.saturating_add(part.len());
        crc32c::crc32c(part).into()
    };
    let mut at = usize::try_from(trailer.tables_at.get()).unwrap_or(usize::MAX);
    trailer.areas_crc = crc(&mut at, u64::from(trailer.areas.get()) * AREA_BYTES as u64);
    trailer.pages_crc = crc(&mut at, trailer.chunks.get().saturating_mul(ENTRY_BYTES as u64));
    trailer.windows_crc = crc(&mut at, trailer.windows.get());
    trailer.extents_crc = crc(&mut at, trailer.extents.get().saturating_mul(EXTENT as u64));
    (trailer.magic, trailer.version) = (MAGIC, VERSION.into());
    trailer.crc = trailer.checksum().into();
    bytes[start..].copy_from_slice(trailer.as_bytes());
    look(&bytes);
}
