//! Parity over what lies at the same place of the images of a group, and back.
//!
//! An image is a string of bytes here. Images of a group may have different lengths: behind its end each
//! counts as zeros. Byte i of the parity depends on the same [`UNIT`] of each image and on nothing else, so
//! any run of whole units can be computed alone: what has changed is computed again, and the rest stays.
//!
//! A [`Code`] works on a *stripe* at a time, the same range of all images. It owns what it needs and
//! allocates nothing once it has seen the longest stripe.
//!
//! | scheme | parity | where it is from |
//! | --- | --- | --- |
//! | `xor:G` | the XOR | here: at the speed of memory |
//! | `rs:D+P` | shares of a Reed–Solomon code over GF(2^16) | `reed-solomon-simd` |
//!
//! The code of a group that is smaller than the scheme's is that of its real size.

mod inverse;
mod xor;

use super::Scheme;
use crate::{Error, PAGE, PageSet, Result};
use inverse::Inverse;
use reed_solomon_simd::ReedSolomonEncoder;
use std::ops::Range;

/// Stripes are whole multiples of this many bytes.
pub const UNIT: usize = 64;
/// Bytes of each image in a stripe. Measured from 4 KiB to 1 MiB: from 32 to 256 KiB parity is computed as
/// fast as memory can be read, since all that a group needs of a stripe stays in the cache.
pub const STRIPE: usize = 64 << 10;
/// Longest stripe that is taken: bounds what a code allocates.
pub const MAX_STRIPE: usize = 1 << 20;

/// The code of one group.
pub struct Code {
    members: usize,
    parity: usize,
    kind: Kind,
    /// What a stripe of zeros is read from.
    zeros: Vec<u8>,
    /// A stripe of an image that ends in it.
    padded: Vec<u8>,
}

enum Kind {
    Xor,
    ReedSolomon {
        encoder: Box<ReedSolomonEncoder>,
        /// The length that the encoder is set to.
        set: usize,
        inverse: Box<Inverse>,
    },
}

impl Code {
    /// The code of a group of so many members.
    ///
    /// # Errors
    /// `EINVAL` for a scheme that is out of bounds or has no parity, or a group that it does not have.
    pub fn new(scheme: Scheme, members: usize) -> Result<Self> {
        scheme.check()?;
        if scheme.parity() == 0 {
            return Err(Error::invalid(format!("{scheme} has no parity")));
        }
        if members == 0 || members > scheme.group() {
            return Err(Error::invalid(format!("{scheme} has no group of {members} processes")));
        }
        let parity = scheme.parity();
        let kind = match scheme {
            Scheme::ReedSolomon { .. } => Kind::ReedSolomon {
                encoder: Box::new(
                    ReedSolomonEncoder::new(members, parity, UNIT)
                        .map_err(|error| refused(scheme, &error))?,
                ),
                set: UNIT,
                inverse: Box::new(Inverse::new(members, parity)?),
            },
            Scheme::Xor { .. } | Scheme::Copies(_) => Kind::Xor,
        };
        Ok(Code { members, parity, kind, zeros: Vec::new(), padded: Vec::new() })
    }

    /// How many images it is of.
    #[must_use]
    pub fn members(&self) -> usize {
        self.members
    }

    /// How many shares of parity it has.
    #[must_use]
    pub fn parity(&self) -> usize {
        self.parity
    }

    /// Computes a stripe of those shares of parity that are wanted, each named by its index.
    ///
    /// `images` has the same stripe of each member. One that is shorter counts as zeros behind its end; an
    /// empty one is nothing but zeros, and nothing is read of it.
    ///
    /// # Errors
    /// `EINVAL` for another number of members, a stripe that is no multiple of [`UNIT`] or longer than
    /// [`MAX_STRIPE`], shares of different lengths, or a share that there is not.
    pub fn encode(&mut self, images: &[&[u8]], wanted: &mut [(usize, &mut [u8])]) -> Result<()> {
        let Some(length) = wanted.first().map(|(_, bytes)| bytes.len()) else { return Ok(()) };
        self.check(length, images.len(), self.members, images.iter().map(|it| it.len()))?;
        if let Some((index, bytes)) =
            wanted.iter().find(|(index, bytes)| *index >= self.parity || bytes.len() != length)
        {
            return Err(Error::invalid(format!(
                "parity {index} of {} in a stripe of {} and {length} bytes",
                self.parity,
                bytes.len()
            )));
        }
        if images.iter().all(|it| it.is_empty()) {
            wanted.iter_mut().for_each(|(_, bytes)| bytes.fill(0));
            return Ok(());
        }
        match &mut self.kind {
            Kind::Xor => {
                wanted.iter_mut().for_each(|(_, bytes)| xor::sum(bytes, images.iter().copied()));
            }
            Kind::ReedSolomon { encoder, set, .. } => {
                let failed = |error| Error::invalid(format!("encoding parity: {error}"));
                if *set != length {
                    encoder.reset(self.members, self.parity, length).map_err(failed)?;
                    *set = length;
                }
                for image in images {
                    let whole = whole(image, length, &mut self.zeros, &mut self.padded);
                    encoder.add_original_shard(whole).map_err(failed)?;
                }
                let made = encoder.encode().map_err(failed)?;
                for (index, bytes) in wanted {
                    bytes.copy_from_slice(made.recovery(*index).unwrap_or_default());
                }
            }
        }
        Ok(())
    }

    /// Rebuilds a stripe of images that are lost, each named by the index of its member.
    ///
    /// `shares` has the stripe of each image and, behind these, of each share of parity, as far as they are
    /// there; each counts as zeros behind its end. As many are needed as there are members; more are not
    /// looked at.
    ///
    /// # Errors
    /// `EINVAL` as in [`Self::encode`], or for an image that is there and wanted too; `ENODATA` where
    /// there are too few shares.
    pub fn rebuild(
        &mut self,
        shares: &[Option<&[u8]>],
        lost: &mut [(usize, &mut [u8])],
    ) -> Result<()> {
        let Some(length) = lost.first().map(|(_, bytes)| bytes.len()) else { return Ok(()) };
        let lengths = shares.iter().flatten().map(|it| it.len());
        self.check(length, shares.len(), self.members + self.parity, lengths)?;
        if let Some((index, bytes)) = lost.iter().find(|(index, bytes)| {
            *index >= self.members || bytes.len() != length || shares[*index].is_some()
        }) {
            return Err(Error::invalid(format!(
                "image {index} of {} is to be rebuilt in a stripe of {} and {length} bytes",
                self.members,
                bytes.len()
            )));
        }
        let have = shares.iter().flatten().count();
        if have < self.members {
            let message =
                format!("{have} shares of a group are there, and {} are needed", self.members);
            return Err(Error::new(libc::ENODATA, message));
        }
        match &mut self.kind {
            // Just one is lost.
            Kind::Xor => {
                let sources = shares.iter().flatten().copied();
                lost.iter_mut().for_each(|(_, bytes)| xor::sum(bytes, sources.clone()));
            }
            Kind::ReedSolomon { inverse, .. } => inverse.rebuild(shares, lost)?,
        }
        Ok(())
    }

    fn check(
        &self,
        length: usize,
        given: usize,
        wanted: usize,
        mut lengths: impl Iterator<Item = usize>,
    ) -> Result<()> {
        if length == 0 || !length.is_multiple_of(UNIT) || length > MAX_STRIPE {
            return Err(Error::invalid(format!(
                "a stripe of {length} bytes: it must be a multiple of {UNIT}, and at most {MAX_STRIPE}"
            )));
        }
        if given != wanted {
            return Err(Error::invalid(format!("{given} shares for a code of {wanted}")));
        }
        if let Some(long) = lengths.find(|it| *it > length) {
            return Err(Error::invalid(format!("{long} bytes in a stripe of {length}")));
        }
        Ok(())
    }
}

/// `bytes` with zeros behind them.
fn whole<'a>(
    bytes: &'a [u8],
    length: usize,
    zeros: &'a mut Vec<u8>,
    padded: &'a mut Vec<u8>,
) -> &'a [u8] {
    if bytes.len() == length {
        bytes
    } else if bytes.is_empty() {
        if zeros.len() < length {
            zeros.resize(length, 0);
        }
        &zeros[..length]
    } else {
        if padded.len() < length {
            padded.resize(length, 0);
        }
        padded[..bytes.len()].copy_from_slice(bytes);
        padded[bytes.len()..length].fill(0);
        &padded[..length]
    }
}

fn refused(scheme: Scheme, error: &reed_solomon_simd::Error) -> Error {
    Error::invalid(format!("{scheme}: {error}"))
}

/// The stripes that have to be computed where the chunks of `stale` have: ranges of chunks, none longer than
/// [`STRIPE`], and none with a chunk that is not stale.
pub fn stripes(stale: &PageSet) -> impl Iterator<Item = Range<usize>> {
    const CHUNKS: usize = STRIPE / PAGE;
    stale.runs().flat_map(|run| {
        let end = run.end;
        run.step_by(CHUNKS).map(move |start| start..end.min(start + CHUNKS))
    })
}

#[cfg(test)]
mod tests;
