//! Where an image comes from, and where it goes to.

use crate::image::{PageTable, Slot, Source, Stamp};
use crate::{Error, Layout, PAGE, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Chunks that are read, compressed and written at once: 256 KiB, enough for a disk and for a request to
/// another machine, and little enough that to read one chunk is no waste.
pub(super) const STEP: usize = 64;

/// One epoch of one process, wherever it is: in a store, or in files.
pub trait Image {
    /// Whose epoch it is, and which.
    fn stamp(&self) -> &Stamp;

    /// Its areas.
    fn layout(&self) -> &Layout;

    /// Its page table.
    fn pages(&self) -> &PageTable;

    /// Its windows.
    fn windows(&self) -> &[u8];

    /// Reads consecutive chunks of one area, zeros too, and checks each.
    ///
    /// # Errors
    /// A chunk that cannot be read, or is damaged.
    ///
    /// # Panics
    /// Where `chunks` are not chunks of one area, or `into` has not just their bytes.
    fn read(&mut self, chunks: Range<usize>, into: &mut [u8]) -> Result<()>;

    /// Whether all that was read was of this one epoch: asked after the last chunk.
    ///
    /// # Errors
    /// It may not have been.
    fn confirm(&mut self) -> Result<()>;
}

/// The image that is in a slot of a store.
#[derive(Debug)]
pub struct SlotImage<S> {
    slot: Slot,
    source: S,
}

impl<S: Source> SlotImage<S> {
    /// Opens the slot that is read from `source`.
    ///
    /// # Errors
    /// `ENODATA` where it has no complete epoch, `EBADMSG` where it is damaged.
    pub fn open(source: S) -> Result<Self> {
        let slot = Slot::open(&source)?;
        Ok(SlotImage { slot, source })
    }
}

impl<S: Source> Image for SlotImage<S> {
    fn stamp(&self) -> &Stamp {
        self.slot.stamp()
    }

    fn layout(&self) -> &Layout {
        self.slot.layout()
    }

    fn pages(&self) -> &PageTable {
        self.slot.pages()
    }

    fn windows(&self) -> &[u8] {
        self.slot.windows()
    }

    fn read(&mut self, chunks: Range<usize>, into: &mut [u8]) -> Result<()> {
        Ok(self.slot.read(&self.source, chunks, into)?)
    }

    fn confirm(&mut self) -> Result<()> {
        Ok(self.slot.confirm(&self.source)?)
    }
}

/// Reads all of an image into `rooms`, each the memory of the area with that id.
///
/// `told` is given the bytes so far, and all of them; an error from it ends the work.
///
/// # Errors
/// `EINVAL`, before anything is written, where the areas of the image are not just those, by id and
/// size; then whatever is in the way of reading a chunk, and what the rooms hold means nothing.
pub fn restore(
    image: &mut dyn Image,
    rooms: Vec<(u32, &mut [u8])>,
    told: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let layout = image.layout().clone();
    let mut by_id = BTreeMap::new();
    for (id, room) in rooms {
        if by_id.insert(id, room).is_some() {
            return Err(Error::invalid(format!("two rooms for area {id}")));
        }
    }
    for area in layout.areas() {
        match by_id.get(&area.id) {
            Some(room) if room.len() == area.bytes => {}
            Some(room) => {
                let (id, has, room) = (area.id, area.bytes, room.len());
                return Err(Error::invalid(format!(
                    "area {id} has {has} bytes in the snapshot, and {room} in this program"
                )));
            }
            None => {
                let id = area.id;
                return Err(Error::invalid(format!(
                    "area {id} is in the snapshot, and not in this program"
                )));
            }
        }
    }
    if let Some(id) = by_id.keys().find(|id| !layout.areas().iter().any(|area| area.id == **id)) {
        return Err(Error::invalid(format!(
            "area {id} is in this program, and not in the snapshot"
        )));
    }
    let (mut done, total) = (0, layout.bytes() as u64);
    for (index, area) in layout.areas().iter().enumerate() {
        let Some(room) = by_id.remove(&area.id) else { continue };
        for (chunks, part) in steps(layout.chunks_of(index)).zip(room.chunks_mut(STEP * PAGE)) {
            image.read(chunks, part)?;
            done += part.len() as u64;
            told(done, total)?;
        }
    }
    image.confirm()
}

/// These chunks, in steps.
pub(super) fn steps(chunks: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    chunks.clone().step_by(STEP).map(move |start| start..chunks.end.min(start + STEP))
}

/// How many bytes consecutive chunks of one area have.
pub(super) fn bytes_of(layout: &Layout, chunks: Range<usize>) -> usize {
    layout.pieces(chunks).map(|(_, piece)| piece.len()).sum()
}
