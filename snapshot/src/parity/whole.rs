//! An image on another store, as the string of bytes that parity is of.
//!
//! It is the slot from its first byte to its last chunk, with zeros for all that belongs to nothing: room that is
//! not used, what is behind the end of an area, and chunks that are said to be zeros, whatever is in their place.
//! So every copy of an image is the same string, and one that was rebuilt is a slot again.

use super::distant::Distant;
use super::task::piece;
use crate::epoch::{Epoch, Member, Slot};
use crate::image::{self, Source, WORD_AT, encode_areas};
use crate::redundancy::Image;
use crate::{Error, PAGE, PageSet, Result};
use sojourn_fabric::names::ProcessId;
use std::ops::Range;

/// A complete image that was opened: its tables are here, its chunks there.
pub(super) struct Whole {
    slot: image::Slot,
    at: Slot,
    header: Vec<u8>,
    /// All before the data.
    front: Vec<u8>,
    image: Image,
}

/// What has to be kept of an image to know later what has changed since.
#[derive(Clone, Copy)]
pub(super) struct Trace {
    life: u32,
    epoch: u64,
    bytes: u64,
    windows: usize,
}

/// A number that only the image with this header has: its checksums are in there.
pub(super) fn seal(header: &[u8], life: u32) -> u64 {
    let word = WORD_AT..WORD_AT + size_of::<u64>();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..word.start]), &header[word.end..]);
    u64::from(life) << 32 | u64::from(crc)
}

impl Whole {
    /// Opens the image of this epoch; `None` where the compartment does not hold it.
    ///
    /// # Errors
    /// The store is gone, or what it has is damaged.
    pub(super) fn open(from: &Distant, member: Member, epoch: Epoch) -> Result<Option<Whole>> {
        let Some(at) = from.slot_of(epoch)? else { return Ok(None) };
        let part = from.part(at);
        let mut header = vec![0; PAGE];
        part.read(0, &mut header)?;
        let slot = match image::Slot::open(&part) {
            Ok(slot) => slot,
            Err(damaged) if damaged.is_incomplete() => return Ok(None),
            Err(damaged) => {
                let name = format_args!("process {member} on store {}", from.name());
                return Err(Error::from(damaged).context(name));
            }
        };
        let stamp = slot.stamp();
        if (u64::from(stamp.process.0), stamp.epoch) != (member.0, epoch.0) {
            let (name, process) = (from.name(), stamp.process);
            let text = format!("store {name}: a slot of process {member} is of {process}");
            return Err(Error::new(libc::EBADMSG, text));
        }
        let geometry = *slot.geometry();
        let image = Image {
            process: stamp.process,
            epoch: stamp.epoch,
            bytes: geometry.bytes() as u64,
            seal: seal(&header, stamp.incarnation.0),
        };
        let mut front = vec![0; geometry.data_at()];
        let areas = encode_areas(slot.layout());
        let parts = [
            (0, &header[..]),
            (geometry.areas_at(), &areas),
            (geometry.pages_at(), slot.pages().as_bytes()),
            (geometry.windows_at(), slot.windows()),
        ];
        for (at, bytes) in parts {
            front[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let whole = Whole { slot, at, header, front, image };
        // Between the two looks at the header it may have become another.
        Ok(whole.is_there(from)?.then_some(whole))
    }

    /// What it is.
    pub(super) fn image(&self) -> Image {
        self.image
    }

    /// Whether the store still has just this image.
    ///
    /// # Errors
    /// The store is gone.
    pub(super) fn is_there(&self, from: &Distant) -> Result<bool> {
        let mut header = vec![0; PAGE];
        from.part(self.at).read(0, &mut header)?;
        Ok(header == self.header)
    }

    /// What to keep of it.
    pub(super) fn trace(&self) -> Trace {
        Trace {
            life: self.slot.stamp().incarnation.0,
            epoch: Epoch(self.image.epoch).count(),
            bytes: self.image.bytes,
            windows: self.slot.windows().len(),
        }
    }

    /// Its chunks that are not what they were in an image of before; all of them, where nothing is known of that.
    pub(super) fn changed_since(&self, before: Option<Trace>) -> PageSet {
        let all = self.image.chunks();
        let now = self.trace();
        let Some(before) = before.filter(|it| (it.life, it.bytes) == (now.life, now.bytes)) else {
            return PageSet::full(all);
        };
        let geometry = self.slot.geometry();
        let mut set = PageSet::new(all);
        let mut add = |bytes: Range<usize>| {
            set.insert_range(bytes.start / PAGE..bytes.end.div_ceil(PAGE));
        };
        add(0..PAGE);
        // The areas of one life stay where they are; their table is a few pages.
        add(geometry.areas_at()..geometry.windows_at());
        let windows = geometry.windows_at();
        add(windows..windows + before.windows.max(now.windows));
        let first = geometry.data_at() / PAGE;
        for (chunk, entry) in self.slot.pages().entries().iter().enumerate() {
            if entry.changed() > before.epoch {
                set.insert(first + chunk);
            }
        }
        set
    }

    /// Reads bytes of the string from a whole chunk on; false where they are all zeros, and `into` then has
    /// nothing of them. Adds to `count` what was read from the store.
    ///
    /// # Errors
    /// The store is gone, or a chunk is damaged.
    pub(super) fn read(
        &self,
        from: &Distant,
        at: usize,
        into: &mut [u8],
        count: &mut u64,
    ) -> Result<bool> {
        let geometry = self.slot.geometry();
        let data = geometry.data_at();
        let own = into.len().min(data.saturating_sub(at));
        let (front, chunks) = into.split_at_mut(own);
        piece(&self.front, at, front);
        let mut some = front.iter().any(|byte| *byte != 0);
        if chunks.is_empty() {
            return Ok(some);
        }
        let first = (at.max(data) - data) / PAGE;
        let last = first + chunks.len().div_ceil(PAGE);
        let entries = &self.slot.pages().entries()[first..last];
        let mut done = 0;
        for run in entries.chunk_by(|one, two| one.is_zero() == two.is_zero()) {
            let room = done * PAGE..((done + run.len()) * PAGE).min(chunks.len());
            let (start, room) = (first + done, &mut chunks[room]);
            done += run.len();
            if run[0].is_zero() {
                room.fill(0);
                continue;
            }
            some = true;
            from.part(self.at).read(geometry.chunk_at(start), room)?;
            *count += room.len() as u64;
            self.check(start, room)?;
        }
        Ok(some)
    }

    /// Holds chunks against their checksums, and puts zeros behind the end of an area.
    fn check(&self, start: usize, room: &mut [u8]) -> Result<()> {
        let layout = self.slot.layout();
        for (i, bytes) in room.chunks_mut(PAGE).enumerate() {
            let chunk = start + i;
            let piece = layout.pieces(chunk..chunk + 1).next();
            let used = piece.map_or(0, |(_, memory)| memory.len()).min(bytes.len());
            self.slot.check(chunk, &bytes[..used])?;
            bytes[used..].fill(0);
        }
        Ok(())
    }
}

/// The process that a member is.
pub(super) fn process_of(member: Member) -> ProcessId {
    // Tasks and placements have processes alone, whose numbers have 32 bits.
    ProcessId(u32::try_from(member.0).unwrap_or(u32::MAX))
}
