//! The first page of a slot.

use super::damaged::{Damaged, Part, Why};
use super::geometry::Geometry;
use super::tables::PageTable;
use crate::epoch::Epoch;
use crate::{Error, Layout, PAGE, Result};
use sojourn_fabric::names::{Incarnation, ProcessId};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Of the format that is written and read here.
pub const VERSION: u32 = 1;
/// The largest count of an epoch ([`Epoch::count`]): it has to fit beside a flag in 32 bits. One each second lasts 68 years.
pub const MAX_EPOCH: u64 = (1 << 31) - 1;
/// Where in a slot the word is: the last cache line of the header's page, which nobody else writes with it.
pub const WORD_AT: usize = PAGE - 64;

const MAGIC: [u8; 8] = *b"SJRNSLOT";
/// The checksum is just before the word's cache line.
const CRC_AT: usize = WORD_AT - 4;
const FIELDS: usize = 112;

/// Whose epoch a slot holds, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Tells jobs apart.
    pub job: [u8; 16],
    /// The process whose memory it is.
    pub process: ProcessId,
    /// Its incarnation when it wrote this.
    pub incarnation: Incarnation,
    /// The number of the epoch, as in [`Epoch`]: its count is 1 to [`MAX_EPOCH`].
    pub epoch: u64,
    /// When the process was paused for it: nanoseconds since 1970.
    pub paused_at: u64,
}

/// The header's page, as it is in the slot.
#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HeaderPage {
    magic: [u8; 8],
    version: U32,
    process: U32,
    job: [u8; 16],
    epoch: U64,
    paused_at: U64,
    incarnation: U32,
    areas: U32,
    chunks: U64,
    windows: U64,
    room_areas: U64,
    room_chunks: U64,
    room_windows: U64,
    areas_crc: U32,
    pages_crc: U32,
    windows_crc: U32,
    zero: U32,
    unused: [u8; CRC_AT - FIELDS],
    crc: U32,
    word: U64,
    line: [u8; 56],
}

const _: () = assert!(size_of::<HeaderPage>() == PAGE);
const _: () = assert!(std::mem::offset_of!(HeaderPage, word) == WORD_AT);

impl HeaderPage {
    /// The header of an epoch. Its word is 0: who writes the slot puts it there at the end.
    ///
    /// # Errors
    /// `EINVAL` for an epoch whose count is not 1 to [`MAX_EPOCH`], a page table that is not of this layout, and
    /// anything that `geometry` has no room for.
    pub fn new(
        stamp: &Stamp,
        geometry: &Geometry,
        layout: &Layout,
        pages: &PageTable,
        windows: &[u8],
    ) -> Result<HeaderPage> {
        if !(1..=MAX_EPOCH).contains(&Epoch(stamp.epoch).count()) {
            let epoch = stamp.epoch;
            return Err(Error::invalid(format!("epoch {epoch}: numbers are 1 to {MAX_EPOCH}")));
        }
        if pages.entries().len() != layout.chunks() {
            let (has, needs) = (pages.entries().len(), layout.chunks());
            return Err(Error::invalid(format!("a page table of {has} chunks for {needs} chunks")));
        }
        for (what, number, room) in [
            ("areas", layout.areas().len(), geometry.areas()),
            ("chunks", layout.chunks(), geometry.chunks()),
            ("bytes of windows", windows.len(), geometry.windows()),
        ] {
            if number > room {
                return Err(Error::invalid(format!(
                    "{number} {what}: the slot has room for {room}"
                )));
            }
        }
        let mut page = HeaderPage {
            magic: MAGIC,
            version: VERSION.into(),
            process: stamp.process.0.into(),
            job: stamp.job,
            epoch: stamp.epoch.into(),
            paused_at: stamp.paused_at.into(),
            incarnation: stamp.incarnation.0.into(),
            areas: (layout.areas().len() as u32).into(),
            chunks: (layout.chunks() as u64).into(),
            windows: (windows.len() as u64).into(),
            room_areas: (geometry.areas() as u64).into(),
            room_chunks: (geometry.chunks() as u64).into(),
            room_windows: (geometry.windows() as u64).into(),
            areas_crc: crc32c::crc32c(&super::encode_areas(layout)).into(),
            pages_crc: crc32c::crc32c(pages.as_bytes()).into(),
            windows_crc: crc32c::crc32c(windows).into(),
            ..HeaderPage::new_zeroed()
        };
        page.seal();
        Ok(page)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        IntoBytes::as_bytes(self)
    }

    /// With this word: the epoch's number for a complete slot.
    #[must_use]
    pub fn with_word(mut self, word: u64) -> Self {
        self.word = word.into();
        self
    }

    fn checksum(&self) -> u32 {
        let bytes = IntoBytes::as_bytes(self);
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), &bytes[WORD_AT + 8..])
    }

    /// Puts the checksum in.
    pub(super) fn seal(&mut self) {
        self.crc = self.checksum().into();
    }

    /// What the page says, as far as it can be checked by itself.
    pub(super) fn check(&self) -> std::result::Result<Header, Damaged> {
        let nonsense = |what: String| Damaged::nonsense(Part::Header, 0, what);
        // Nothing is said of a slot's bytes before it was ever written, or while it is.
        if self.word.get() == 0 {
            return Err(incomplete(0, self.epoch.get()));
        }
        if self.magic != MAGIC {
            return Err(nonsense("it does not begin as a slot does".into()));
        }
        if self.version.get() != VERSION {
            let version = self.version.get();
            return Err(nonsense(format!("it is of version {version}, {VERSION} is read here")));
        }
        let (found, expected) = (self.checksum(), self.crc.get());
        if found != expected {
            return Err(Damaged::new(Part::Header, 0, Why::Checksum { found, expected }));
        }
        if !(1..=MAX_EPOCH).contains(&Epoch(self.epoch.get()).count()) {
            return Err(nonsense(format!("there is no epoch {}", self.epoch)));
        }
        if self.word != self.epoch {
            return Err(incomplete(self.word.get(), self.epoch.get()));
        }
        let number = |value: U64| usize::try_from(value.get()).unwrap_or(usize::MAX);
        let room = [self.room_areas, self.room_chunks, self.room_windows].map(number);
        let geometry = Geometry::new(room[0], room[1], room[2])
            .map_err(|error| nonsense(error.to_string()))?;
        let used = [self.areas.get() as usize, number(self.chunks), number(self.windows)];
        if let Some(i) = (0..3).find(|i| used[*i] > room[*i]) {
            let what = ["areas", "chunks", "bytes of windows"][i];
            let (used, room) = (used[i], room[i]);
            return Err(nonsense(format!("{used} {what} in room for {room}")));
        }
        Ok(Header {
            stamp: Stamp {
                job: self.job,
                process: ProcessId(self.process.get()),
                incarnation: Incarnation(self.incarnation.get()),
                epoch: self.epoch.get(),
                paused_at: self.paused_at.get(),
            },
            geometry,
            areas: used[0],
            chunks: used[1],
            windows: used[2],
            areas_crc: self.areas_crc.get(),
            pages_crc: self.pages_crc.get(),
            windows_crc: self.windows_crc.get(),
        })
    }

    /// The word and every checksum of a header, made right: so chance reaches what is behind them.
    pub(super) fn repair(&mut self, part: impl Fn(std::ops::Range<usize>) -> Option<u32>) {
        self.magic = MAGIC;
        self.version = VERSION.into();
        self.word = self.epoch;
        self.seal();
        if let Ok(header) = self.check() {
            let geometry = header.geometry;
            let of = |at: usize, bytes: usize| part(at..at + bytes).unwrap_or_default().into();
            self.areas_crc = of(geometry.areas_at(), header.areas * super::AREA_BYTES);
            self.pages_crc = of(geometry.pages_at(), header.chunks * super::ENTRY_BYTES);
            self.windows_crc = of(geometry.windows_at(), header.windows);
            self.seal();
        }
    }
}

fn incomplete(word: u64, epoch: u64) -> Damaged {
    Damaged::new(Part::Header, WORD_AT, Why::Incomplete { word, epoch })
}

/// What a header that was checked says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) stamp: Stamp,
    pub(super) geometry: Geometry,
    pub(super) areas: usize,
    pub(super) chunks: usize,
    pub(super) windows: usize,
    pub(super) areas_crc: u32,
    pub(super) pages_crc: u32,
    pub(super) windows_crc: u32,
}
