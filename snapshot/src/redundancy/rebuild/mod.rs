//! Rebuilding an image from the shares of its group, stripe by stripe.
//!
//! What can't be read, or is damaged, counts as lost for the stripe that is being rebuilt, and for that
//! alone: other shares stand in for it, as long as there are enough. Where there are not, the stripe is tried chunk
//! by chunk, since the shares may be damaged in different chunks. What is rebuilt is checked like anything
//! that is read: by the checksums of the image, by whoever knows them.

use super::Scheme;
use super::code::{Code, STRIPE};
use super::plan::Step;
use super::share::Image;
use crate::{Error, PAGE, Result};
use sojourn_fabric::names::ProcessId;
use std::ops::Range;

/// Where shares are read from, each named by its index among all of the group's: first the images, then the
/// parity.
pub trait Survivors {
    /// Reads chunks of a share: of an image as far as it goes, of parity whole ones. False where they are
    /// all zeros, and nothing was read. As in [`Source::read`](super::gather::Source::read), what belongs to nothing has to be
    /// zeros.
    ///
    /// # Errors
    /// What kept it from reading, or that what was read is not what the checksums say. The share counts as lost here.
    fn read(&mut self, share: usize, chunks: Range<usize>, into: &mut [u8]) -> Result<bool>;
}

/// The rebuilding of one image.
pub struct Rebuild {
    code: Code,
    image: Image,
    index: usize,
    group: Vec<Image>,
    shares: Vec<usize>,
    /// A stripe of each share.
    stripes: Vec<Vec<u8>>,
}

impl Rebuild {
    /// Bytes of the longest stripe.
    pub const STRIPE: usize = STRIPE;

    /// As a plan says it.
    ///
    /// # Errors
    /// `EINVAL` for a step that is not [`Step::Rebuild`], or not of this scheme.
    pub fn new(scheme: Scheme, step: &Step) -> Result<Self> {
        let Step::Rebuild { image, index, group, shares } = step else {
            return Err(Error::invalid("this image is not one to be rebuilt"));
        };
        let code = Code::new(scheme, group.len())?;
        let all = group.len() + code.parity();
        let shares: Vec<usize> = shares.iter().map(|(share, _)| *share).collect();
        if group.get(*index) != Some(image) || shares.iter().any(|it| *it >= all || it == index) {
            let process = image.process;
            return Err(Error::invalid(format!("the group of {process} is not one of {scheme}")));
        }
        let stripes = vec![Vec::new(); all];
        Ok(Rebuild { code, image: *image, index: *index, group: group.clone(), shares, stripes })
    }

    /// How many chunks the image has.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.image.chunks()
    }

    /// Rebuilds chunks of the image into `into`, which is as long as so many whole chunks; behind the
    /// image's end there are zeros.
    ///
    /// # Errors
    /// `EINVAL` for chunks that the image does not have, or more than [`Self::STRIPE`] bytes. `ENODATA` where
    /// there are too few shares: the message names the chunk, and says what was wrong with a share.
    pub fn stripe(
        &mut self,
        chunks: Range<usize>,
        survivors: &mut dyn Survivors,
        into: &mut [u8],
    ) -> Result<()> {
        let fits = chunks.start < chunks.end && chunks.end <= self.chunks();
        if !fits || into.len() != chunks.len() * PAGE || into.len() > Self::STRIPE {
            let (process, many) = (self.image.process, self.chunks());
            let bytes = into.len();
            return Err(Error::invalid(format!(
                "chunks {chunks:?} of the {many} of {process}, in {bytes} bytes"
            )));
        }
        match self.attempt(chunks.clone(), survivors, into) {
            Err(error) if error.errno() == libc::ENODATA && chunks.len() > 1 => {
                let each = chunks.zip(into.chunks_mut(PAGE));
                each.into_iter()
                    .try_for_each(|(chunk, into)| self.attempt(chunk..chunk + 1, survivors, into))
            }
            done => done,
        }
    }

    fn attempt(
        &mut self,
        chunks: Range<usize>,
        survivors: &mut dyn Survivors,
        into: &mut [u8],
    ) -> Result<()> {
        let start = (chunks.start * PAGE) as u64;
        let needed = self.group.len();
        let mut have: Vec<Option<usize>> = vec![None; self.stripes.len()];
        let (mut many, mut wrong) = (0, Vec::new());
        for &share in &self.shares {
            if many == needed {
                break;
            }
            let length = match self.group.get(share) {
                Some(image) => image.bytes.saturating_sub(start).min(into.len() as u64) as usize,
                None => into.len(),
            };
            let buffer = &mut self.stripes[share];
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            // Behind the end of an image there is nothing to read, and nothing that could be damaged.
            let read = length > 0;
            match read.then(|| survivors.read(share, chunks.clone(), &mut buffer[..length])) {
                None | Some(Ok(false)) => have[share] = Some(0),
                Some(Ok(true)) => have[share] = Some(length),
                Some(Err(error)) => {
                    wrong.push(format!("share {share}: {error}"));
                    continue;
                }
            }
            many += 1;
        }
        if many < needed {
            let ProcessId(process) = self.image.process;
            return Err(Error::new(
                libc::ENODATA,
                format!(
                    "chunks {chunks:?} of process {process} can't be rebuilt: {many} shares of its group \
                     are there, and {needed} are needed ({})",
                    wrong.join("; ")
                ),
            ));
        }
        let bytes = self.stripes.iter().zip(&have);
        let shares: Vec<Option<&[u8]>> =
            bytes.map(|(bytes, length)| length.map(|length| &bytes[..length])).collect();
        self.code.rebuild(&shares, &mut [(self.index, into)])
    }
}

#[cfg(test)]
mod tests;
