//! How the bytes of an extent are stored.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How extents are stored where that makes them shorter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// As they are.
    #[default]
    Raw,
    /// LZ4 blocks.
    Lz4,
    /// Zstandard frames; needs the feature `zstd` of this crate, to write and to read.
    Zstd,
}

/// Level of Zstandard. Its lowest: more costs time while a slot of a store is held.
#[cfg(feature = "zstd")]
const ZSTD_LEVEL: i32 = 1;

impl Codec {
    /// Its number in a data file.
    pub(super) fn number(self) -> u32 {
        match self {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    /// The one with this number.
    pub(super) fn of(number: u32) -> Option<Codec> {
        [Codec::Raw, Codec::Lz4, Codec::Zstd].into_iter().find(|codec| codec.number() == number)
    }

    /// Whether this build has it.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for Zstandard, where the feature is off.
    pub fn check(self) -> Result<()> {
        if self == Codec::Zstd && !cfg!(feature = "zstd") {
            return Err(Error::unsupported(
                "zstd: this build is without it; build with the feature `zstd`, or use lz4",
            ));
        }
        Ok(())
    }

    /// Packs `bytes` into `room`, and says how they are stored: [`Codec::Raw`], and nothing is in `room`,
    /// where that is no shorter.
    pub(super) fn pack(self, bytes: &[u8], room: &mut Vec<u8>) -> Codec {
        room.clear();
        let packed = match self {
            Codec::Raw => None,
            Codec::Lz4 => {
                room.resize(lz4_flex::block::get_maximum_output_size(bytes.len()), 0);
                lz4_flex::block::compress_into(bytes, room).ok()
            }
            Codec::Zstd => zstd_pack(bytes, room),
        };
        match packed {
            Some(length) if length < bytes.len() => {
                room.truncate(length);
                self
            }
            _ => {
                room.clear();
                Codec::Raw
            }
        }
    }

    /// Unpacks what was packed out of just `into.len()` bytes. Says what is wrong.
    pub(super) fn unpack(self, packed: &[u8], into: &mut [u8]) -> std::result::Result<(), String> {
        let length = match self {
            Codec::Raw if packed.len() == into.len() => {
                into.copy_from_slice(packed);
                packed.len()
            }
            Codec::Raw => packed.len(),
            Codec::Lz4 => lz4_flex::block::decompress_into(packed, into)
                .map_err(|error| format!("cannot be unpacked by lz4: {error}"))?,
            Codec::Zstd => zstd_unpack(packed, into)?,
        };
        if length == into.len() {
            return Ok(());
        }
        Err(format!("unpacks to {length} bytes, and {} belong there", into.len()))
    }
}

#[cfg(feature = "zstd")]
fn zstd_pack(bytes: &[u8], room: &mut Vec<u8>) -> Option<usize> {
    room.resize(bytes.len(), 0);
    zstd::bulk::compress_to_buffer(bytes, room.as_mut_slice(), ZSTD_LEVEL).ok()
}

#[cfg(not(feature = "zstd"))]
fn zstd_pack(_: &[u8], _: &mut Vec<u8>) -> Option<usize> {
    None
}

#[cfg(feature = "zstd")]
fn zstd_unpack(packed: &[u8], into: &mut [u8]) -> std::result::Result<usize, String> {
    zstd::bulk::decompress_to_buffer(packed, into)
        .map_err(|error| format!("cannot be unpacked by zstd: {error}"))
}

#[cfg(not(feature = "zstd"))]
fn zstd_unpack(_: &[u8], _: &mut [u8]) -> std::result::Result<usize, String> {
    Err("is packed by zstd, which this build is without: build with the feature `zstd`".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            bytes in prop::collection::vec(0u8..4, 1..3000),
            other in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                for bytes in [&bytes, &other] {
                    let mut room = Vec::new();
                    let by = codec.pack(bytes, &mut room);
                    let packed = if by == Codec::Raw { bytes } else { &room };
                    prop_assert!(packed.len() <= bytes.len());
                    let mut back = vec![7; bytes.len()];
                    prop_assert_eq!(by.unpack(packed, &mut back), Ok(()));
                    prop_assert_eq!(&back, bytes);
                    // To another length: never.
                    let mut longer = vec![7; bytes.len() + 1];
                    prop_assert!(by.unpack(packed, &mut longer).is_err());
                    // Of anything else: whatever it is, it is no panic.
                    let _ = codec.unpack(&other, &mut back);
                }
            }
        }
    }
}
