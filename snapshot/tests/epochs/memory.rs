//! A program's memory, which tells exactly what has changed.

use sojourn_snapshot::session::Program;
use sojourn_snapshot::{Area, Layout, Result};
use std::ops::Range;

/// Areas of ordinary memory. The test changes them by [`Memory::change`] and [`Memory::fill`] alone.
pub(crate) struct Memory {
    areas: Vec<(u32, Vec<u8>)>,
    dirty: Vec<Range<usize>>,
    pub(crate) windows_at_pause: u32,
}

impl Memory {
    /// Zeros, with these ids and sizes.
    pub(crate) fn new(shape: &[(u32, usize)]) -> Memory {
        let areas: Vec<_> = shape.iter().map(|(id, bytes)| (*id, vec![0; *bytes])).collect();
        let mut memory = Memory { areas, dirty: vec![], windows_at_pause: 0 };
        memory.dirty = memory.layout().areas().iter().map(Area::range).collect();
        memory
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout::new(self.areas.iter().map(|(id, bytes)| Area {
            id: *id,
            addr: bytes.as_ptr() as usize,
            bytes: bytes.len(),
        }))
        .unwrap()
    }

    /// Fills all with what `seed` says; no page is zeros.
    pub(crate) fn fill(&mut self, seed: u64) {
        let mut state = seed | 1;
        for byte in self.areas.iter_mut().flat_map(|(_, bytes)| bytes) {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(seed | 1);
            *byte = (state >> 56) as u8;
        }
        self.dirty = self.layout().areas().iter().map(Area::range).collect();
    }

    pub(crate) fn change(&mut self, id: u32, at: usize, value: u8) {
        let bytes = &mut self.areas.iter_mut().find(|area| area.0 == id).unwrap().1;
        bytes[at] = value;
        let addr = bytes.as_ptr() as usize + at;
        self.dirty.push(addr..addr + 1);
    }

    pub(crate) fn bytes_of(&self, id: u32) -> &[u8] {
        &self.areas.iter().find(|area| area.0 == id).unwrap().1
    }

    /// What the last pause gave.
    pub(crate) fn windows(&self) -> Vec<u8> {
        format!("windows {}", self.windows_at_pause).into_bytes()
    }
}

impl Program for Memory {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.dirty.drain(..).for_each(dirty);
        Ok(())
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        self.windows_at_pause += 1;
        Ok(self.windows())
    }

    fn resume(&mut self) -> Result<()> {
        Ok(())
    }
}
