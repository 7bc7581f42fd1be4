//! Processes whose memory changes, the slots that they write, and what was in their memory at each epoch.

use sojourn_fabric::names::{Incarnation, ProcessId};
use sojourn_snapshot::epoch::{Epoch, Term};
use sojourn_snapshot::files::{Directory, Flushed, Image, Options, SlotImage, restore, unwatched};
use sojourn_snapshot::image::{Geometry, HeaderPage, PageEntry, PageTable, Stamp, encode_areas};
use sojourn_snapshot::{Area, Layout, PAGE, Result};
use std::collections::BTreeSet;

/// The term of all epochs here.
const TERM: Term = Term(3);

/// The epoch with this count.
pub(crate) fn number(count: u64) -> Epoch {
    Epoch(count - 1).after(TERM)
}

pub(crate) const JOB: [u8; 16] = *b"a job of a test.";

/// The job, as its directory is called.
pub(crate) const JOB_NAME: &str = "61206a6f62206f66206120746573742e";

/// What is restored: the memory of each area, and the windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) areas: Vec<(u32, Vec<u8>)>,
    pub(crate) windows: Vec<u8>,
}

/// A process.
#[derive(Clone)]
pub(crate) struct Process {
    id: u32,
    layout: Layout,
    pub(crate) memory: Memory,
    entries: Vec<PageEntry>,
    dirty: BTreeSet<usize>,
}

impl Process {
    /// One with areas of these sizes, of zeros.
    pub(crate) fn new(id: u32, sizes: &[usize]) -> Process {
        let areas = sizes.iter().enumerate().map(|(i, bytes)| Area {
            id: 20 + i as u32,
            addr: 0x100_0000 * (i + 1),
            bytes: *bytes,
        });
        let layout = Layout::new(areas).unwrap();
        let areas = layout.areas().iter().map(|area| (area.id, vec![0; area.bytes])).collect();
        Process {
            id,
            entries: PageTable::zeros(&layout, 0).entries().to_vec(),
            memory: Memory { areas, windows: Vec::new() },
            dirty: (0..layout.chunks()).collect(),
            layout,
        }
    }

    /// Writes to its memory.
    pub(crate) fn write(&mut self, area: usize, at: usize, bytes: &[u8]) {
        self.memory.areas[area].1[at..at + bytes.len()].copy_from_slice(bytes);
        let first = self.layout.chunks_of(area).start;
        let chunks = at / PAGE..(at + bytes.len()).div_ceil(PAGE);
        self.dirty.extend(chunks.map(|chunk| first + chunk));
    }

    /// Fills memory with what does not get shorter.
    pub(crate) fn noise(&mut self, area: usize, at: usize, bytes: usize, mut seed: u64) {
        let mut byte = || {
            seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            (seed >> 56) as u8
        };
        let noise: Vec<u8> = (0..bytes).map(|_| byte()).collect();
        self.write(area, at, &noise);
    }

    /// The slot of an epoch.
    pub(crate) fn slot(&mut self, epoch: u64) -> Vec<u8> {
        for chunk in std::mem::take(&mut self.dirty) {
            self.entries[chunk] = PageEntry::of(self.chunk(chunk), epoch);
        }
        let pages = PageTable::new(self.entries.clone());
        let windows = &self.memory.windows;
        let geometry = Geometry::of(&self.layout, windows.len()).unwrap();
        let mut slot = vec![0xEE; geometry.bytes()];
        let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
        for (chunk, entry) in self.entries.iter().enumerate() {
            if !entry.is_zero() {
                put(geometry.chunk_at(chunk), self.chunk(chunk));
            }
        }
        put(geometry.areas_at(), &encode_areas(&self.layout));
        put(geometry.pages_at(), pages.as_bytes());
        put(geometry.windows_at(), windows);
        let stamp = Stamp {
            job: JOB,
            process: ProcessId(self.id),
            incarnation: Incarnation(1),
            epoch: number(epoch).0,
            paused_at: 1_000_000_000 * epoch,
        };
        let header = HeaderPage::new(&stamp, &geometry, &self.layout, &pages, windows).unwrap();
        put(0, header.with_word(number(epoch).0).as_bytes());
        slot
    }

    /// The same, to be read.
    pub(crate) fn image(&mut self, epoch: u64) -> SlotImage<Vec<u8>> {
        SlotImage::open(self.slot(epoch)).unwrap()
    }

    fn chunk(&self, chunk: usize) -> &[u8] {
        let index = (0..).find(|i| self.layout.chunks_of(*i).contains(&chunk)).unwrap();
        let at = (chunk - self.layout.chunks_of(index).start) * PAGE;
        let bytes = &self.memory.areas[index].1;
        &bytes[at..bytes.len().min(at + PAGE)]
    }
}

/// Writes an epoch of these processes.
pub(crate) fn flush(
    directory: &Directory,
    epoch: u64,
    processes: &mut [&mut Process],
    options: &Options,
) -> Result<Flushed> {
    let mut images: Vec<_> = processes.iter_mut().map(|process| process.image(epoch)).collect();
    let mut images: Vec<&mut dyn Image> =
        images.iter_mut().map(|image| image as &mut dyn Image).collect();
    directory.flush(number(epoch), &mut images, options, &mut unwatched)
}

/// Reads all of an image.
pub(crate) fn read(image: &mut dyn Image) -> Result<Memory> {
    let layout = image.layout().clone();
    let mut areas: Vec<(u32, Vec<u8>)> =
        layout.areas().iter().map(|area| (area.id, vec![0x55; area.bytes])).collect();
    let rooms = areas.iter_mut().map(|(id, room)| (*id, room.as_mut_slice())).collect();
    restore(image, rooms, &mut |_, _| Ok(()))?;
    Ok(Memory { areas, windows: image.windows().to_vec() })
}

/// What a process had at an epoch.
pub(crate) fn restored(directory: &Directory, epoch: u64, process: u32) -> Result<Memory> {
    read(&mut directory.image(epoch, process)?)
}

/// The names of all files of a job, but for the lock.
pub(crate) fn files(directory: &Directory) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lock")
        .collect();
    names.sort();
    names
}
