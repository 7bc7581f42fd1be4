//! The bytes of a share of parity, as it lies in a store.
//!
//! All numbers are little-endian. Parts begin at multiples of [`PAGE`]:
//!
//! | part | bytes | what |
//! | --- | --- | --- |
//! | header | [`PAGE`] | which share of which group, of which images, the checksum of the table, its own |
//! | table | 4 for each chunk | the crc32c of each chunk |
//! | chunks | [`PAGE`] each | the parity |
//!
//! A share is whole only if its header is right. Before a chunk is changed the header is overwritten with
//! zeros, and it is written again when everything else is there; so a share is of the images that its
//! header names, or of none.
//!
//! # What it is parity of
//!
//! The header has the [`Image`] of each member: the epoch alone would not do, since an epoch that was given
//! up may have been made again with other contents. Shares are combined with each other and with images
//! only where all of that is the same.
//!
//! Whoever reads a share believes none of it: [`Header::decode`] takes any bytes, and each chunk is
//! [checked](Table::check). One that is damaged counts as lost, and the others do not.

use super::Scheme;
use crate::{Error, Layout, PAGE, Result};
use sojourn_fabric::names::ProcessId;
use std::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a header begins with.
const MAGIC: [u8; 8] = *b"SJNPRTY\x01";
/// A header of another version is refused.
const VERSION: u32 = 1;

/// A complete image of one process at one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Image {
    /// Whose it is.
    pub process: ProcessId,
    /// Its epoch.
    pub epoch: u64,
    /// How long it is as a string of bytes, from the first of its header.
    pub bytes: u64,
    /// A number that only this very image has, such as one of its checksums together with the incarnation
    /// that wrote it.
    pub seal: u64,
}

impl Image {
    /// Longest image. Twice what a layout may have, so that there is room for its tables.
    pub const MAX_BYTES: u64 = 2 * Layout::MAX_BYTES as u64;

    /// How many chunks it has.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.bytes.div_ceil(PAGE as u64) as usize
    }
}

/// Which share of parity this is, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The scheme.
    pub scheme: Scheme,
    /// The group, by its index in the placement.
    pub group: u32,
    /// Which share of the group's parity it is, from 0.
    pub index: usize,
    /// The images, in the order of the members; all of one epoch.
    pub images: Vec<Image>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: [u8; 8],
    version: U32,
    /// Of the header's whole page, with zeros here.
    crc: U32,
    epoch: U64,
    group: U32,
    table_crc: U32,
    kind: U16,
    data: U16,
    parity: U16,
    index: U16,
    members: U16,
    zero: [u8; 22],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Member {
    process: U32,
    zero: U32,
    bytes: U64,
    seal: U64,
}

const FIXED: usize = size_of::<Fixed>();
const MEMBER: usize = size_of::<Member>();
/// Where the header's own checksum is.
const CRC: Range<usize> = 12..16;
const _: () = assert!(FIXED == 64 && FIXED + Scheme::MAX_GROUP * MEMBER <= PAGE);

const XOR: u16 = 1;
const REED_SOLOMON: u16 = 2;

impl Header {
    /// Whether such a share can be.
    ///
    /// # Errors
    /// `EINVAL` with what is wrong.
    pub fn check(&self) -> Result<()> {
        let Header { scheme, group, index, images } = self;
        scheme.check()?;
        let refused = |problem: String| {
            Err(Error::invalid(format!("parity {index} of group {group}: {problem}")))
        };
        if *index >= scheme.parity() {
            return refused(format!("{scheme} has {} shares of parity", scheme.parity()));
        }
        if images.is_empty() || images.len() > scheme.group() {
            return refused(format!("{scheme} has no group of {} processes", images.len()));
        }
        let epoch = images[0].epoch;
        for (i, image) in images.iter().enumerate() {
            let process = image.process;
            if image.epoch != epoch {
                let other = image.epoch;
                return refused(format!("{process} is at epoch {other}, others at {epoch}"));
            }
            if image.bytes == 0 || image.bytes > Image::MAX_BYTES {
                return refused(format!("{process} has an image of {} bytes", image.bytes));
            }
            if images[..i].iter().any(|other| other.process == process) {
                return refused(format!("{process} is in it twice"));
            }
        }
        Ok(())
    }

    /// The epoch of all of its images.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.images.first().map_or(0, |image| image.epoch)
    }

    /// How many chunks of parity there are: as many as the longest image has.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.images.iter().map(Image::chunks).max().unwrap_or_default()
    }

    /// The header's page.
    ///
    /// # Errors
    /// As [`Self::check`], or `EINVAL` for a table of another length.
    pub fn encode(&self, table: &Table) -> Result<Box<[u8; PAGE]>> {
        self.check()?;
        if table.0.len() != self.chunks() {
            return Err(Error::invalid(format!(
                "checksums of {} chunks for {}",
                table.0.len(),
                self.chunks()
            )));
        }
        let (kind, data) = match self.scheme {
            Scheme::ReedSolomon { data, .. } => (REED_SOLOMON, data),
            Scheme::Xor { group } => (XOR, group),
            Scheme::Copies(_) => return Err(Error::invalid("copies have no parity")),
        };
        let fixed = Fixed {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            epoch: self.epoch().into(),
            group: self.group.into(),
            table_crc: table.crc().into(),
            // All of these are within the scheme's bounds.
            kind: kind.into(),
            data: (data as u16).into(),
            parity: (self.scheme.parity() as u16).into(),
            index: (self.index as u16).into(),
            members: (self.images.len() as u16).into(),
            zero: [0; 22],
        };
        let mut page = Box::new([0; PAGE]);
        page[..FIXED].copy_from_slice(fixed.as_bytes());
        for (image, place) in self.images.iter().zip(page[FIXED..].chunks_exact_mut(MEMBER)) {
            let member = Member {
                process: image.process.0.into(),
                zero: 0.into(),
                bytes: image.bytes.into(),
                seal: image.seal.into(),
            };
            place.copy_from_slice(member.as_bytes());
        }
        let crc = crc32c::crc32c(page.as_slice());
        page[CRC].copy_from_slice(&crc.to_le_bytes());
        Ok(page)
    }

    /// What a header's page says, and the checksum of the table that belongs to it.
    ///
    /// # Errors
    /// `ENODATA` for a page of zeros, which a share has that is not whole; `EBADMSG` for anything else that
    /// is no header: the message says why.
    pub fn decode(bytes: &[u8]) -> Result<(Self, u32)> {
        let bad = |problem: String| {
            Error::new(libc::EBADMSG, format!("header of a share of parity: {problem}"))
        };
        let Some(page) = bytes.get(..PAGE) else {
            return Err(bad(format!("{} bytes, and it has {PAGE}", bytes.len())));
        };
        if page.iter().all(|byte| *byte == 0) {
            let message = "this share of parity is not complete";
            return Err(Error::new(libc::ENODATA, message));
        }
        let Ok((fixed, rest)) = Fixed::read_from_prefix(page) else {
            return Err(bad("too short".into()));
        };
        if fixed.magic != MAGIC {
            return Err(bad("it does not begin as one".into()));
        }
        if fixed.version != VERSION {
            return Err(bad(format!("version {}: this is {VERSION}", fixed.version)));
        }
        let crc = [&page[..CRC.start], &[0; 4], &page[CRC.end..]]
            .iter()
            .fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        if crc != fixed.crc.get() {
            return Err(bad(format!(
                "its checksum is {crc:#010x}, and it says {:#010x}",
                fixed.crc
            )));
        }
        let (data, parity) = (usize::from(fixed.data.get()), usize::from(fixed.parity.get()));
        let scheme = match fixed.kind.get() {
            XOR if parity == 1 => Scheme::Xor { group: data },
            REED_SOLOMON => Scheme::ReedSolomon { data, parity },
            kind => return Err(bad(format!("kind {kind} with parity {parity}"))),
        };
        let members = usize::from(fixed.members.get());
        if members > Scheme::MAX_GROUP {
            return Err(bad(format!("{members} processes")));
        }
        let mut images = Vec::with_capacity(members);
        for place in rest.chunks_exact(MEMBER).take(members) {
            let Ok(member) = Member::read_from_bytes(place) else { continue };
            images.push(Image {
                process: ProcessId(member.process.get()),
                epoch: fixed.epoch.get(),
                bytes: member.bytes.get(),
                seal: member.seal.get(),
            });
        }
        let index = usize::from(fixed.index.get());
        let header = Header { scheme, group: fixed.group.get(), index, images };
        header.check().map_err(|error| bad(error.to_string()))?;
        Ok((header, fixed.table_crc.get()))
    }
}

/// Where the parts of a share of so many chunks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    chunks: usize,
}

impl Parts {
    /// Most chunks: those of the longest image.
    pub const MAX_CHUNKS: usize = (Image::MAX_BYTES / PAGE as u64) as usize;

    /// The parts of a share of `chunks` chunks.
    ///
    /// # Errors
    /// `EINVAL` for more than [`Self::MAX_CHUNKS`].
    pub fn new(chunks: usize) -> Result<Self> {
        if chunks > Self::MAX_CHUNKS {
            let most = Self::MAX_CHUNKS;
            return Err(Error::invalid(format!("parity of {chunks} chunks: at most {most}")));
        }
        Ok(Parts { chunks })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> Range<usize> {
        0..PAGE
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> Range<usize> {
        PAGE..PAGE + self.chunks * 4
    }

    /// These chunks.
    #[must_use]
    pub fn chunks(&self, chunks: Range<usize>) -> Range<usize> {
        let first = self.table().end.next_multiple_of(PAGE);
        first + chunks.start * PAGE..first + chunks.end * PAGE
    }

    /// Bytes of all of it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.chunks(0..self.chunks).end
    }
}

/// The checksums of a share's chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(Vec<U32>);

impl Table {
    /// Of so many chunks, none of which is known yet.
    #[must_use]
    pub fn new(chunks: usize) -> Self {
        Table(vec![0.into(); chunks])
    }

    /// How many chunks it is of.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.0.len()
    }

    /// Takes note of chunks that follow one another, from `first` on.
    ///
    /// # Errors
    /// `EINVAL` for chunks that it does not have.
    pub fn set(&mut self, first: usize, bytes: &[u8]) -> Result<()> {
        let many = bytes.len().div_ceil(PAGE);
        let all = self.0.len();
        let Some(places) = self.0.get_mut(first..first.saturating_add(many)) else {
            return Err(Error::invalid(format!("{many} chunks from {first} on of {all}")));
        };
        for (place, chunk) in places.iter_mut().zip(bytes.chunks(PAGE)) {
            *place = crc32c::crc32c(chunk).into();
        }
        Ok(())
    }

    /// Whether `bytes` are those of this chunk.
    ///
    /// # Errors
    /// `EBADMSG` where they are not, or there is no such chunk.
    pub fn check(&self, chunk: usize, bytes: &[u8]) -> Result<()> {
        let found = crc32c::crc32c(bytes);
        match self.0.get(chunk) {
            Some(crc) if found == crc.get() && bytes.len() == PAGE => Ok(()),
            Some(crc) => Err(Error::new(
                libc::EBADMSG,
                format!(
                    "chunk {chunk} of a share of parity is damaged: {} bytes with checksum {found:#010x}, \
                     not {PAGE} with {crc:#010x}",
                    bytes.len()
                ),
            )),
            None => {
                let all = self.0.len();
                Err(Error::new(libc::EBADMSG, format!("chunk {chunk} of parity that has {all}")))
            }
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The table of a header.
    ///
    /// # Errors
    /// `EBADMSG` where `bytes` are not the table of that header.
    pub fn decode(header: &Header, crc: u32, bytes: &[u8]) -> Result<Self> {
        let found = crc32c::crc32c(bytes);
        if bytes.len() != header.chunks() * 4 || found != crc {
            return Err(Error::new(
                libc::EBADMSG,
                format!(
                    "checksums of a share of parity: {} bytes with checksum {found:#010x}, not {} with \
                     {crc:#010x}",
                    bytes.len(),
                    header.chunks() * 4
                ),
            ));
        }
        let entry = |four: &[u8]| U32::read_from_bytes(four).unwrap_or_default();
        Ok(Table(bytes.chunks_exact(4).map(entry).collect()))
    }

    fn crc(&self) -> u32 {
        crc32c::crc32c(self.as_bytes())
    }
}

#[cfg(test)]
mod tests;
