//! Memory whose content follows from how often it has been changed: so what is restored tells by itself whether it
//! is of one moment.

use sojourn_snapshot::session::Program;
use sojourn_snapshot::{Area, Layout, PAGE, Result};
use std::ops::Range;

/// Pages of each area; the last one is cut short, and the second area begins off a page.
const PAGES: [usize; 2] = [150, 33];
const SHORT: usize = 100;
/// A page changes in every so many turns.
const CYCLE: u64 = 7;

/// Two areas, and the number of turns that they have had.
pub(crate) struct History {
    areas: [Vec<u8>; 2],
    pub(crate) turn: u64,
    dirty: Vec<Range<usize>>,
}

impl History {
    pub(crate) fn new() -> History {
        let area = |pages: usize, extra: usize| vec![0; pages * PAGE - SHORT + extra];
        let mut history =
            History { areas: [area(PAGES[0], 0), area(PAGES[1], 13)], turn: 0, dirty: vec![] };
        history.dirty = history.layout().areas().iter().map(Area::range).collect();
        history
    }

    pub(crate) fn layout(&self) -> Layout {
        let area =
            |id: u32, bytes: &[u8]| Area { id, addr: bytes.as_ptr() as usize, bytes: bytes.len() };
        Layout::new([area(1, &self.areas[0]), area(2, &self.areas[1][13..])]).unwrap()
    }

    /// What is in a page after so many turns.
    fn value(area: usize, page: usize, turn: u64) -> u8 {
        let lag = (turn + CYCLE - page as u64 % CYCLE) % CYCLE;
        // The last turn that changed it, if there was one. Each fifth time it is zeros.
        let Some(last) = turn.checked_sub(lag).filter(|last| *last > 0) else { return 0 };
        if (last + page as u64).is_multiple_of(5) {
            0
        } else {
            (last * 31 + page as u64 * 7 + area as u64) as u8 | 1
        }
    }

    /// One more turn.
    pub(crate) fn take_turn(&mut self) {
        self.turn += 1;
        let turn = self.turn;
        for (area, bytes) in self.areas.iter_mut().enumerate() {
            let bytes = &mut bytes[13 * area..];
            for (page, bytes) in bytes.chunks_mut(PAGE).enumerate() {
                if page as u64 % CYCLE == turn % CYCLE {
                    bytes.fill(History::value(area, page, turn));
                    let addr = bytes.as_ptr() as usize;
                    self.dirty.push(addr..addr + bytes.len());
                }
            }
        }
    }

    /// Memory is as after those turns, in every byte; it goes on from there.
    pub(crate) fn is_after(&mut self, turn: u64) {
        for (area, bytes) in self.areas.iter().enumerate() {
            for (page, bytes) in bytes[13 * area..].chunks(PAGE).enumerate() {
                let value = History::value(area, page, turn);
                let wrong = bytes.iter().position(|byte| *byte != value);
                assert_eq!(wrong, None, "page {page} of area {area} after turn {turn}");
            }
        }
        self.turn = turn;
        self.dirty.clear();
    }
}

impl Program for History {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.dirty.drain(..).for_each(dirty);
        Ok(())
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        Ok(self.turn.to_le_bytes().to_vec())
    }

    fn resume(&mut self) -> Result<()> {
        Ok(())
    }
}
