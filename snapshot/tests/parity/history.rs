//! A program's memory, which is the same in every process that takes the same turns.

use sojourn_snapshot::session::Program;
use sojourn_snapshot::{Area, Layout, Result};
use std::ops::Range;

/// Memory of one process of the job. What it is follows from who it is and how many turns it has taken.
pub(crate) struct History {
    member: u64,
    pub(crate) turn: u64,
    areas: Vec<(u32, Vec<u8>)>,
    dirty: Vec<Range<usize>>,
}

/// Numbers by chance, the same from the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 24
    }
}

impl History {
    /// Before its first turn: zeros. The process has about `bytes` bytes; no two have as many.
    pub(crate) fn new(member: u64, bytes: usize) -> History {
        let shape = [(7, bytes + member as usize * 12_345), (2, 5000), (9, bytes / 4)];
        let areas: Vec<_> = shape.into_iter().map(|(id, bytes)| (id, vec![0; bytes])).collect();
        let mut history = History { member, turn: 0, areas, dirty: vec![] };
        history.dirty = history.layout().areas().iter().map(Area::range).collect();
        history
    }

    /// After so many turns.
    pub(crate) fn after(member: u64, bytes: usize, turns: u64) -> History {
        let mut history = History::new(member, bytes);
        (0..turns).for_each(|_| history.take_turn());
        history
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::new(self.areas.iter().map(|(id, bytes)| Area {
            id: *id,
            addr: bytes.as_ptr() as usize,
            bytes: bytes.len(),
        }))
        .unwrap()
    }

    /// The first fills most of an area; each one changes some places, and makes zeros of some.
    pub(crate) fn take_turn(&mut self) {
        self.turn += 1;
        let mut chance = Chance(self.member << 32 | self.turn);
        if self.turn == 1 {
            let bytes = &mut self.areas[0].1;
            let most = bytes.len() * 7 / 8;
            bytes[..most].iter_mut().for_each(|byte| *byte = chance.next() as u8);
            self.dirty.push(bytes.as_ptr() as usize..bytes.as_ptr() as usize + most);
        }
        for _ in 0..9 {
            let index = chance.next() as usize % self.areas.len();
            let bytes = &mut self.areas[index].1;
            let start = chance.next() as usize % bytes.len();
            let end = bytes.len().min(start + 1 + chance.next() as usize % 9000);
            let zeros = chance.next().is_multiple_of(3);
            let byte = |_: &u8| if zeros { 0 } else { chance.next() as u8 };
            let new: Vec<u8> = bytes[start..end].iter().map(byte).collect();
            bytes[start..end].copy_from_slice(&new);
            let addr = bytes.as_ptr() as usize;
            self.dirty.push(addr + start..addr + end);
        }
    }

    /// What it tells of itself in a pause; longer in one turn than in another.
    pub(crate) fn windows(&self) -> Vec<u8> {
        let some = self.turn.to_le_bytes().repeat(1 + (self.turn as usize * 977) % 1500);
        [self.member.to_le_bytes().to_vec(), some].concat()
    }

    pub(crate) fn assert_equal(&self, other: &History) {
        assert_eq!(self.member, other.member);
        for ((id, one), (_, two)) in self.areas.iter().zip(&other.areas) {
            let differs = one.iter().zip(two).position(|(one, two)| one != two);
            assert_eq!(differs, None, "area {id} of process {}", self.member);
        }
    }
}

impl Program for History {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.dirty.drain(..).for_each(dirty);
        Ok(())
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        Ok(self.windows())
    }

    fn resume(&mut self) {}
}
