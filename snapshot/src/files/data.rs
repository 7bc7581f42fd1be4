//! A data file: how it is laid out, and how it is written.
//!
//! | part | bytes | what |
//! | --- | --- | --- |
//! | magic | 8 | |
//! | extents | | each as it is stored, one behind the other |
//! | areas | 24 for each | as in a slot |
//! | pages | 8 for each chunk of the image | as in a slot, of the whole image |
//! | windows | | |
//! | extents' table | 32 for each | chunks, place, how it is stored, crc32c of what is stored |
//! | trailer | 128 | who, which epoch, base, how much of everything, checksums |
//!
//! An extent is a run of chunks of one area. All chunks that are not zero are in one, in order, or of an increment
//! those that changed after its base. There is nothing between the parts. The trailer is last because only
//! then it is known how much there is, and a file is written and hashed in one go.

use super::codec::Codec;
use super::image::{Image, STEP, bytes_of};
use super::io::Aside;
use crate::image::{PageTable, Stamp, encode_areas};
use crate::{Layout, PAGE, Result};
use std::ops::Range;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const MAGIC: [u8; 8] = *b"SJRNDATA";
pub(super) const VERSION: u32 = 1;
/// Most chunks of an extent: what is unpacked at once.
pub(super) const MAX_RUN: usize = STEP;

/// An extent, in the table.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub(super) struct Extent {
    pub(super) first: U64,
    pub(super) at: U64,
    pub(super) stored: U32,
    pub(super) chunks: U32,
    pub(super) codec: U32,
    pub(super) crc: U32,
}

/// The end of the file.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Trailer {
    pub(super) job: [u8; 16],
    /// With its term.
    pub(super) epoch: U64,
    /// Only the count; 0 in a full one: epochs are numbered from 1.
    pub(super) base: U64,
    pub(super) paused_at: U64,
    pub(super) process: U32,
    pub(super) incarnation: U32,
    pub(super) chunks: U64,
    pub(super) windows: U64,
    pub(super) extents: U64,
    pub(super) tables_at: U64,
    pub(super) areas: U32,
    pub(super) areas_crc: U32,
    pub(super) pages_crc: U32,
    pub(super) windows_crc: U32,
    pub(super) extents_crc: U32,
    pub(super) zero: [U32; 3],
    pub(super) version: U32,
    pub(super) crc: U32,
    pub(super) magic: [u8; 8],
}

pub(super) const TRAILER: usize = size_of::<Trailer>();
const _: () = assert!(TRAILER == 128 && size_of::<Extent>() == 32);
pub(super) const EXTENT: usize = size_of::<Extent>();

impl Trailer {
    /// Of all that is before the checksum.
    pub(super) fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..std::mem::offset_of!(Trailer, crc)])
    }
}

/// What was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    /// Chunks that are in the file.
    pub(super) stored_chunks: u64,
    /// Of the image, how many are zeros.
    pub(super) zero_chunks: u64,
    /// The hash of the tables and windows.
    pub(super) tables: blake3::Hash,
}

/// Identifies an image: its areas, page table and windows, whatever file it is in.
pub(super) fn tables_hash(layout: &Layout, pages: &PageTable, windows: &[u8]) -> blake3::Hash {
    let areas = encode_areas(layout);
    let mut hash = blake3::Hasher::new();
    for part in [&areas, pages.as_bytes(), windows] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize()
}

/// The runs of chunks that belong in a file with this base, each of one area and at most [`MAX_RUN`].
pub(super) fn runs<'a>(
    layout: &'a Layout,
    pages: &'a PageTable,
    base: Option<u64>,
) -> impl Iterator<Item = Range<usize>> + 'a {
    let belongs = move |chunk: usize| {
        let entry = pages.entries()[chunk];
        !entry.is_zero() && base.is_none_or(|base| entry.changed() > base)
    };
    (0..layout.areas().len()).flat_map(move |index| {
        let own = layout.chunks_of(index);
        let mut at = own.start;
        std::iter::from_fn(move || {
            let start = (at..own.end).find(|chunk| belongs(*chunk))?;
            let most = own.end.min(start + MAX_RUN);
            let end = (start..most).find(|chunk| !belongs(*chunk)).unwrap_or(most);
            at = end;
            Some(start..end)
        })
    })
}

/// Writes an image, or what changed in it after `base`. `told` is given the bytes so far, and all of them.
///
/// # Errors
/// The image cannot be read, or the file cannot be written.
pub(super) fn write(
    out: &mut Aside,
    image: &mut dyn Image,
    base: Option<u64>,
    codec: Codec,
    told: &mut dyn FnMut(&str, u64, u64) -> Result<()>,
) -> Result<Written> {
    let (stamp, layout, pages) = (*image.stamp(), image.layout().clone(), image.pages().clone());
    let total: usize = runs(&layout, &pages, base).map(|chunks| bytes_of(&layout, chunks)).sum();
    let (mut done, mut stored_chunks) = (0, 0);
    let (mut bytes, mut packed) = (vec![0; MAX_RUN * PAGE], Vec::new());
    let mut extents = Vec::new();
    out.write(&MAGIC)?;
    for chunks in runs(&layout, &pages, base) {
        let bytes = &mut bytes[..bytes_of(&layout, chunks.clone())];
        image.read(chunks.clone(), bytes)?;
        let by = codec.pack(bytes, &mut packed);
        let stored = if by == Codec::Raw { &*bytes } else { &packed };
        extents.push(Extent {
            first: (chunks.start as u64).into(),
            at: out.bytes().into(),
            stored: (stored.len() as u32).into(),
            chunks: (chunks.len() as u32).into(),
            codec: by.number().into(),
            crc: crc32c::crc32c(stored).into(),
        });
        out.write(stored)?;
        stored_chunks += chunks.len() as u64;
        done += bytes.len() as u64;
        told(out.name(), done, total as u64)?;
    }
    // What was read is worth nothing where the slot has been begun anew.
    image.confirm()?;

    let windows = image.windows();
    let trailer = trailer(&stamp, base, &layout, &pages, windows, &extents, out.bytes());
    for part in [
        &encode_areas(&layout),
        pages.as_bytes(),
        windows,
        extents.as_slice().as_bytes(),
        trailer.as_bytes(),
    ] {
        out.write(part)?;
    }
    let zero_chunks = pages.entries().iter().filter(|entry| entry.is_zero()).count() as u64;
    let tables = tables_hash(&layout, &pages, windows);
    Ok(Written { stored_chunks, zero_chunks, tables })
}

fn trailer(
    stamp: &Stamp,
    base: Option<u64>,
    layout: &Layout,
    pages: &PageTable,
    windows: &[u8],
    extents: &[Extent],
    tables_at: u64,
) -> Trailer {
    let mut trailer = Trailer {
        job: stamp.job,
        epoch: stamp.epoch.into(),
        base: base.unwrap_or_default().into(),
        paused_at: stamp.paused_at.into(),
        process: stamp.process.0.into(),
        incarnation: stamp.incarnation.0.into(),
        chunks: (layout.chunks() as u64).into(),
        windows: (windows.len() as u64).into(),
        extents: (extents.len() as u64).into(),
        tables_at: tables_at.into(),
        areas: (layout.areas().len() as u32).into(),
        areas_crc: crc32c::crc32c(&encode_areas(layout)).into(),
        pages_crc: crc32c::crc32c(pages.as_bytes()).into(),
        windows_crc: crc32c::crc32c(windows).into(),
        extents_crc: crc32c::crc32c(extents.as_bytes()).into(),
        zero: [0.into(); 3],
        version: VERSION.into(),
        crc: 0.into(),
        magic: MAGIC,
    };
    trailer.crc = trailer.checksum().into();
    trailer
}
