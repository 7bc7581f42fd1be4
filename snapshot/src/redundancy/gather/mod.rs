//! Making a share of parity: the store that holds it reads what it is made of.
//!
//! A process sends its image to one store and is done. The store that has to hold parity reads the images
//! of the group from the stores of its members, stripe by stripe, and computes on its own cores what
//! goes into its own memory. [`Gather`] is that work; a [`Source`] reads, a [`Target`] is the memory.
//!
//! # Never a mixture
//!
//! 1. The share's header is overwritten with zeros: it is not complete.
//! 2. Every member is asked for its image of the epoch. All must be there.
//! 3. What is stale is read, computed and written.
//! 4. Every member is asked again. Each must have the same image still: its writer first of all makes an
//!    image incomplete, and only then changes it, so all that was read in between is of that image.
//! 5. The table is written, and at last the header.
//!
//! Where a member's image is another, or is gone, in 2 to 4, the share is given up: it stays incomplete, and
//! what was computed of it stays stale.
//!
//! # What is stale
//!
//! As with the slots of a process, a set of chunks says where the share may differ from the parity of the
//! images. Whoever drives this [marks](Gather::mark) what has changed in any member since the image
//! that the share was made of last (a slot's page table says it of each chunk). The first time, and where images are longer
//! or shorter than they were, all is stale.

use super::Scheme;
use super::code::{Code, stripes};
use super::share::{Header, Image, Parts, Table};
use crate::{Error, PAGE, PageSet, Result};

/// Where images are read from. Members are named by their index in the group.
pub trait Source {
    /// The image of `epoch` that the member's store has now, if it has one that is complete. Not from
    /// memory of an earlier call: it is asked for twice to find out whether it has changed.
    ///
    /// # Errors
    /// What kept it from asking. The share is given up.
    fn image(&mut self, member: usize, epoch: u64) -> Result<Option<Image>>;

    /// Reads bytes of the image from offset `at` on, which are all within it; false where they are all
    /// zeros and nothing was read.
    ///
    /// What belongs to nothing (gaps between the parts of a slot, chunks that are said to be zeros) has to be
    /// zeros, whatever is in the store's memory there: a copy of the image need not have the same.
    ///
    /// # Errors
    /// What kept it from reading, or that the bytes are damaged. The share is given up.
    fn read(&mut self, member: usize, at: u64, into: &mut [u8]) -> Result<bool>;
}

/// The memory that a share lies in.
pub trait Target {
    /// Writes bytes at an offset of the share. Calls take effect in their order.
    ///
    /// # Errors
    /// Where they don't fit, or can't be written.
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()>;
}

/// In ordinary memory; grows as needed.
impl Target for Vec<u8> {
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let end = at + bytes.len();
        if self.len() < end {
            self.resize(end, 0);
        }
        self[at..end].copy_from_slice(bytes);
        Ok(())
    }
}

/// One share of parity, made anew for one epoch after the other: see the [module](self).
pub struct Gather {
    scheme: Scheme,
    group: u32,
    index: usize,
    code: Code,
    table: Table,
    /// Where the share may differ from the parity of the images.
    stale: PageSet,
    /// How long the images are that `stale` is about.
    lengths: Vec<u64>,
    /// A stripe of each image, and of the parity.
    stripes: Vec<Vec<u8>>,
    parity: Vec<u8>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gathered {
    /// Of which images.
    pub header: Header,
    /// How many chunks of parity were computed.
    pub computed: usize,
}

impl Gather {
    /// Share `index` of the parity of a group with so many members. All of it is stale.
    ///
    /// # Errors
    /// `EINVAL` for a share or a group that the scheme does not have.
    pub fn new(scheme: Scheme, group: u32, index: usize, members: usize) -> Result<Self> {
        let code = Code::new(scheme, members)?;
        if index >= scheme.parity() {
            let message = format!("{scheme} has {} shares of parity, not {index}", scheme.parity());
            return Err(Error::invalid(message));
        }
        let (table, stale) = (Table::new(0), PageSet::new(0));
        let (lengths, stripes) = (vec![0; members], vec![Vec::new(); members]);
        let parity = Vec::new();
        Ok(Gather { scheme, group, index, code, table, stale, lengths, stripes, parity })
    }

    /// In these chunks an image has changed. More than there are count for nothing: images of another
    /// length make all of the share stale.
    pub fn mark(&mut self, changed: &PageSet) {
        let most = self.stale.length();
        for run in changed.runs() {
            self.stale.insert_range(run.start.min(most)..run.end.min(most));
        }
    }

    /// How many chunks are stale.
    #[must_use]
    pub fn stale(&self) -> usize {
        self.stale.count()
    }

    /// Makes the share of `epoch`.
    ///
    /// # Errors
    /// `EAGAIN` where a member has no image of it, or one that changed meanwhile: the message names it. What
    /// the source or the target say. The share is incomplete then, and this can be tried again.
    pub fn make(
        &mut self,
        epoch: u64,
        source: &mut dyn Source,
        target: &mut dyn Target,
    ) -> Result<Gathered> {
        target.write(0, &[0; PAGE])?;
        let members = self.stripes.len();
        let images = (0..members).map(|member| self.image(member, epoch, source));
        let images = images.collect::<Result<Vec<Image>>>()?;
        let header = Header { scheme: self.scheme, group: self.group, index: self.index, images };
        header.check()?;
        let parts = Parts::new(header.chunks())?;
        let lengths = header.images.iter().map(|image| image.bytes);
        if !lengths.clone().eq(self.lengths.iter().copied()) {
            self.lengths = lengths.collect();
            self.stale = PageSet::full(header.chunks());
            self.table = Table::new(header.chunks());
        }
        let todo = self.stale.clone();
        for stripe in stripes(&todo) {
            self.stripe(&header.images, stripe, &parts, source, target)?;
        }
        for (member, image) in header.images.iter().enumerate() {
            if self.image(member, epoch, source)? != *image {
                let process = image.process;
                return Err(given_up(format!(
                    "the image of {process} at epoch {epoch} has changed while it was read"
                )));
            }
        }
        target.write(parts.table().start, self.table.as_bytes())?;
        target.write(0, header.encode(&self.table)?.as_slice())?;
        // Not before: until here it may have been a mixture.
        self.stale.clear();
        Ok(Gathered { header, computed: todo.count() })
    }

    fn image(&self, member: usize, epoch: u64, source: &mut dyn Source) -> Result<Image> {
        let (group, members) = (self.group, self.stripes.len());
        match source.image(member, epoch)? {
            Some(image) if image.epoch == epoch => Ok(image),
            Some(image) => Err(given_up(format!(
                "{} of group {group} is at epoch {}, not {epoch}",
                image.process, image.epoch
            ))),
            None => Err(given_up(format!(
                "member {member} of the {members} of group {group} has no complete image of epoch {epoch}"
            ))),
        }
    }

    /// One stripe: read, computed, written.
    fn stripe(
        &mut self,
        images: &[Image],
        stripe: std::ops::Range<usize>,
        parts: &Parts,
        source: &mut dyn Source,
        target: &mut dyn Target,
    ) -> Result<()> {
        let start = (stripe.start * PAGE) as u64;
        let length = stripe.len() * PAGE;
        let mut have = [&[][..]; Scheme::MAX_GROUP];
        for (member, (image, buffer)) in images.iter().zip(&mut self.stripes).enumerate() {
            let inside = image.bytes.saturating_sub(start).min(length as u64) as usize;
            if buffer.len() < inside {
                buffer.resize(inside, 0);
            }
            let into = &mut buffer[..inside];
            if inside > 0 && source.read(member, start, into)? {
                have[member] = into;
            }
        }
        if self.parity.len() < length {
            self.parity.resize(length, 0);
        }
        let parity = &mut self.parity[..length];
        self.code.encode(&have[..images.len()], &mut [(self.index, &mut *parity)])?;
        self.table.set(stripe.start, parity)?;
        target.write(parts.chunks(stripe).start, parity)
    }
}

fn given_up(problem: String) -> Error {
    Error::new(libc::EAGAIN, format!("parity is given up: {problem}"))
}

#[cfg(test)]
mod tests;
