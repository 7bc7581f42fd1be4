//! What a slot promises.

use super::*;
use crate::{Area, Layout, PAGE};
use proptest::prelude::*;
use sojourn_fabric::names::{Incarnation, ProcessId};
use std::ops::Range;

const EPOCH: u64 = 7;

fn stamp() -> Stamp {
    Stamp {
        job: *b"a job of a test.",
        process: ProcessId(3),
        incarnation: Incarnation(2),
        epoch: EPOCH,
        paused_at: 1_700_000_000_000_000_001,
    }
}

/// A process: its areas, the bytes of each, and its windows.
#[derive(Clone, Debug)]
struct Process {
    layout: Layout,
    memory: Vec<Vec<u8>>,
    windows: Vec<u8>,
}

impl Process {
    fn new(shapes: &[usize], windows: usize, seed: u8) -> Process {
        let areas = shapes.iter().enumerate().map(|(i, bytes)| Area {
            id: 10 + i as u32,
            addr: 0x10_0000 * (i + 1) + i,
            bytes: *bytes,
        });
        let layout = Layout::new(areas).unwrap();
        let byte = |at: usize| (at as u8).wrapping_mul(31).wrapping_add(seed) | 1;
        let memory = shapes.iter().map(|bytes| (0..*bytes).map(byte).collect()).collect();
        Process { layout, memory, windows: (0..windows).map(byte).collect() }
    }

    fn chunk(&self, chunk: usize) -> &[u8] {
        let index = (0..).find(|i| self.layout.chunks_of(*i).contains(&chunk)).unwrap();
        let at = (chunk - self.layout.chunks_of(index).start) * PAGE;
        let bytes = &self.memory[index];
        &bytes[at..bytes.len().min(at + PAGE)]
    }

    fn pages(&self) -> PageTable {
        let of = |chunk| PageEntry::of(self.chunk(chunk), 1 + chunk as u64 % EPOCH);
        PageTable::new((0..self.layout.chunks()).map(of).collect())
    }

    /// The slot that it writes. What is not written is noise.
    fn write(&self, geometry: &Geometry) -> Vec<u8> {
        let pages = self.pages();
        let mut slot = vec![0xEE; geometry.bytes()];
        let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
        for (chunk, entry) in pages.entries().iter().enumerate() {
            if !entry.is_zero() {
                put(geometry.chunk_at(chunk), self.chunk(chunk));
            }
        }
        put(geometry.areas_at(), &encode_areas(&self.layout));
        put(geometry.pages_at(), pages.as_bytes());
        put(geometry.windows_at(), &self.windows);
        let header = HeaderPage::new(&stamp(), geometry, &self.layout, &pages, &self.windows);
        put(0, header.unwrap().as_bytes());
        put(WORD_AT, &EPOCH.to_le_bytes());
        slot
    }
}

/// All that is restored from a slot.
fn restore(bytes: &[u8]) -> Result<(Stamp, Process), Damaged> {
    let slot = Slot::open(bytes)?;
    let mut memory = Vec::new();
    for (index, area) in slot.layout().areas().iter().enumerate() {
        let mut room = vec![0x55; area.bytes];
        slot.read(bytes, slot.layout().chunks_of(index), &mut room)?;
        memory.push(room);
    }
    let (layout, windows) = (slot.layout().clone(), slot.windows().to_vec());
    Ok((*slot.stamp(), Process { layout, memory, windows }))
}

fn same(one: &Process, two: &Process) -> bool {
    one.layout == two.layout && one.memory == two.memory && one.windows == two.windows
}

/// Two areas, five chunks of which one is zeros and two are short; room for more of everything.
fn small() -> (Process, Geometry, Vec<u8>) {
    let mut process = Process::new(&[2 * PAGE + 100, PAGE + 1], 77, 5);
    process.memory[0][PAGE..2 * PAGE].fill(0);
    let geometry = Geometry::new(3, 6, 100).unwrap();
    let slot = process.write(&geometry);
    (process, geometry, slot)
}

#[test]
fn no_flipped_byte_is_restored() {
    let (process, geometry, mut slot) = small();
    let pages = process.pages();
    // What the formats says is covered; the rest belongs to nothing.
    let part = |at: usize, bytes: usize| at..at + bytes;
    let mut covered: Vec<Range<usize>> = vec![
        0..PAGE,
        part(geometry.areas_at(), 2 * AREA_BYTES),
        part(geometry.pages_at(), 5 * ENTRY_BYTES),
        part(geometry.windows_at(), 77),
    ];
    let sent = (0..5).filter(|chunk| !pages.entries()[*chunk].is_zero());
    covered.extend(sent.map(|chunk| part(geometry.chunk_at(chunk), process.chunk(chunk).len())));
    assert_eq!(covered.len(), 8);
    const FLIPS: [u8; 3] = [1, 0x80, 0xFF];
    for at in 0..slot.len() {
        slot[at] ^= FLIPS[at % 3];
        match restore(&slot) {
            Ok((whose, what)) => {
                assert!(whose == stamp() && same(&what, &process), "byte {at:#x}");
                assert!(!covered.iter().any(|part| part.contains(&at)), "byte {at:#x}");
            }
            Err(damaged) => {
                assert!(covered.iter().any(|part| part.contains(&at)), "{at:#x}: {damaged}");
                assert!(damaged.offset as usize <= at, "{at:#x}: {damaged}");
            }
        }
        slot[at] ^= FLIPS[at % 3];
    }
}

#[test]
fn what_is_damaged_is_named() {
    let (process, geometry, slot) = small();
    let with = |at: usize, change: &dyn Fn(&mut [u8])| {
        let mut slot = slot.clone();
        change(&mut slot[at..]);
        restore(&slot).unwrap_err()
    };
    let flip = |bytes: &mut [u8]| bytes[0] ^= 4;
    let areas = with(geometry.areas_at(), &flip);
    assert_eq!((areas.part, areas.offset as usize), (Part::Areas, geometry.areas_at()));
    assert_eq!(with(geometry.pages_at() + 9, &flip).part, Part::Pages);
    assert_eq!(with(geometry.windows_at() + 76, &flip).part, Part::Windows);
    let chunk = with(geometry.chunk_at(4), &flip);
    assert_eq!(chunk.part, Part::Chunk { area: 11, chunk: 1 });
    assert_eq!(chunk.offset as usize, geometry.chunk_at(4));
    let text = chunk.to_string();
    assert!(text.contains("chunk 1 of area 11") && text.contains(&format!("{:#x}", chunk.offset)));
    assert_eq!(crate::Error::from(chunk).errno(), libc::EBADMSG);
    assert!(with(8, &|bytes| bytes[0] = 9).to_string().contains("version 9, 1 is read here"));
    assert!(with(0, &flip).to_string().contains("does not begin as a slot does"));

    let cut = Slot::open(&slot[..slot.len() - 1]).unwrap_err();
    assert!(cut.to_string().contains(&format!("takes {} bytes", slot.len())), "{cut}");
    // Not complete is not broken.
    for word in [0, EPOCH - 1, EPOCH + 1] {
        let other = with(WORD_AT, &|bytes| bytes[..8].copy_from_slice(&u64::to_le_bytes(word)));
        assert!(other.is_incomplete(), "{other}");
    }
    assert!(Slot::open(&vec![0; slot.len()][..]).unwrap_err().is_incomplete());
    assert!(same(&restore(&slot).unwrap().1, &process));
}

#[test]
fn a_slot_that_is_begun_anew_while_it_is_read_is_noticed() {
    let (_, _, mut bytes) = small();
    let slot = Slot::open(&bytes[..]).unwrap();
    slot.verify(&bytes[..]).unwrap();
    slot.confirm(&bytes[..]).unwrap();
    bytes[WORD_AT..WORD_AT + 8].fill(0);
    assert!(slot.confirm(&bytes[..]).unwrap_err().is_incomplete());
}

#[test]
fn what_a_slot_has_no_room_for_is_refused() {
    let process = Process::new(&[2 * PAGE, 10], 20, 0);
    let (layout, pages) = (&process.layout, process.pages());
    let header = |geometry: [usize; 3], stamp: &Stamp, pages: &PageTable| {
        let geometry = Geometry::new(geometry[0], geometry[1], geometry[2]).unwrap();
        let page = HeaderPage::new(stamp, &geometry, layout, pages, &process.windows);
        page.map(|_| ()).map_err(|error| error.to_string())
    };
    header([2, 3, 20], &stamp(), &pages).unwrap();
    assert!(header([1, 3, 20], &stamp(), &pages).unwrap_err().contains("2 areas"));
    assert!(header([2, 2, 20], &stamp(), &pages).unwrap_err().contains("3 chunks"));
    assert!(header([2, 3, 19], &stamp(), &pages).unwrap_err().contains("20 bytes of windows"));
    let short = PageTable::new(pages.entries()[1..].to_vec());
    assert!(header([2, 3, 20], &stamp(), &short).unwrap_err().contains("page table of 2 chunks"));
    for epoch in [0, MAX_EPOCH + 1] {
        let other = Stamp { epoch, ..stamp() };
        assert!(header([2, 3, 20], &other, &pages).unwrap_err().contains("epoch"));
    }
    let most = [Layout::MAX_AREAS, Geometry::MAX_CHUNKS, Geometry::MAX_WINDOWS];
    let largest = Geometry::new(most[0], most[1], most[2]).unwrap();
    assert!(largest.bytes() > Layout::MAX_BYTES);
    for i in 0..3 {
        let mut beyond = most;
        beyond[i] += 1;
        let error = Geometry::new(beyond[0], beyond[1], beyond[2]).unwrap_err();
        assert!(error.to_string().contains(&most[i].to_string()));
    }
}

#[test]
fn a_table_that_says_what_cannot_be_is_refused() {
    let (process, geometry, slot) = small();
    // Its writer is a liar: all checksums are right.
    let with = |change: &dyn Fn(&mut PageTable)| {
        let mut pages = process.pages();
        change(&mut pages);
        let header =
            HeaderPage::new(&stamp(), &geometry, &process.layout, &pages, &process.windows);
        let mut slot = slot.clone();
        slot[..PAGE].copy_from_slice(header.unwrap().with_word(EPOCH).as_bytes());
        let at = geometry.pages_at();
        slot[at..at + pages.as_bytes().len()].copy_from_slice(pages.as_bytes());
        restore(&slot)
    };
    with(&|_| {}).unwrap();
    let later = with(&|pages| pages.entries_mut()[3] = PageEntry::of(process.chunk(3), EPOCH + 1));
    let later = later.unwrap_err();
    assert_eq!(later.part, Part::Pages);
    assert_eq!(later.offset as usize, geometry.entries_at(3..4).start);
    assert!(later.to_string().contains("chunk 0 of area 11 changed in epoch 8"), "{later}");
    let zeros = with(&|pages| pages.entries_mut()[2] = PageEntry::zeros(99, 1)).unwrap_err();
    assert!(zeros.to_string().contains("chunk 2 of area 10"), "{zeros}");
    // The zeros are what it says.
    let shorter = with(&|pages| pages.entries_mut()[2] = PageEntry::zeros(100, 1)).unwrap();
    assert_eq!(shorter.1.memory[0][2 * PAGE..], [0; 100]);
}

proptest! {
    /// Whatever the areas, the room and the zeros are, what is read is what was written.
    #[test]
    fn an_image_is_read_as_it_was_written(
        shapes in prop::collection::vec(1usize..3 * PAGE, 0..5),
        windows in 0usize..9000,
        spare in (0usize..3, 0usize..3, 0usize..5000),
        zeros in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        seed in any::<u8>(),
    ) {
        let mut process = Process::new(&shapes, windows, seed);
        for zero in zeros.iter().filter(|_| !shapes.is_empty()) {
            let memory = &mut process.memory[zero.index(shapes.len())];
            let from = zero.index(memory.len()) / PAGE * PAGE;
            let to = memory.len().min(from + PAGE);
            memory[from..to].fill(0);
        }
        let room = Geometry::new(
            shapes.len() + spare.0,
            process.layout.chunks() + spare.1,
            windows + spare.2,
        ).unwrap();
        let bytes = process.write(&room);
        let (whose, what) = restore(&bytes).unwrap();
        prop_assert_eq!(whose, stamp());
        prop_assert!(same(&what, &process));
        let slot = Slot::open(&bytes[..]).unwrap();
        prop_assert_eq!(slot.geometry(), &room);
        prop_assert_eq!(slot.pages(), &process.pages());
        slot.verify(&bytes[..]).unwrap();
        let zeros = PageTable::zeros(&process.layout, 1);
        let all = zeros.entries().iter().zip(process.pages().entries()).all(|(zero, entry)| {
            zero.is_zero() && (!entry.is_zero() || entry.crc() == zero.crc())
        });
        prop_assert!(all);
    }

    /// Parts begin at pages, follow each other, and do not overlap.
    #[test]
    fn parts_of_a_slot_do_not_overlap(
        areas in 0..=Layout::MAX_AREAS,
        chunks in 0..=Geometry::MAX_CHUNKS,
        windows in 0..=Geometry::MAX_WINDOWS,
    ) {
        let geometry = Geometry::new(areas, chunks, windows).unwrap();
        let starts = [
            (0, PAGE),
            (geometry.areas_at(), areas * AREA_BYTES),
            (geometry.pages_at(), chunks * ENTRY_BYTES),
            (geometry.windows_at(), windows),
            (geometry.data_at(), chunks * PAGE),
            (geometry.bytes(), 0),
        ];
        for two in starts.windows(2) {
            prop_assert!(two[0].0 % PAGE == 0 && two[0].0 + two[0].1 <= two[1].0);
        }
        if chunks > 0 {
            prop_assert_eq!(geometry.chunk_at(chunks - 1) + PAGE, geometry.bytes());
            prop_assert_eq!(geometry.entries_at(0..chunks).end, geometry.pages_at() + chunks * 8);
        }
    }

    /// Nothing that is no slot makes it panic.
    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..3 * PAGE)) {
        exercise(&bytes);
        prop_assert!(Slot::open(&bytes[..]).is_err());
    }

    /// Nor does anything that is almost one, with its checksums made right or not.
    #[test]
    fn mutated_slots_are_refused_or_read(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fields in prop::collection::vec((0usize..28, any::<u32>(), 0u32..32), 0..3),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let (_, _, mut slot) = small();
        for (at, byte) in &flips {
            // Most of them where there is something.
            let at = at.index(if byte % 2 == 0 { PAGE * 4 } else { slot.len() });
            slot[at] ^= byte;
        }
        for (field, value, shift) in &fields {
            slot[field * 4..field * 4 + 4].copy_from_slice(&(value >> shift).to_le_bytes());
        }
        if let Some(cut) = cut {
            slot.truncate(cut.index(slot.len()));
        }
        exercise(&slot);
    }

    /// Tables by themselves.
    #[test]
    fn random_tables_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(layout) = decode_areas(&bytes) {
            prop_assert_eq!(encode_areas(&layout), bytes.clone());
        }
        if let Ok(pages) = PageTable::from_bytes(&bytes) {
            prop_assert_eq!(pages.as_bytes(), &bytes[..]);
        }
    }
}
