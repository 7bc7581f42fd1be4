//! Places in the spill file: dealt one behind the other, never twice; what is not needed any more is given
//! back to the file system segment by segment.

use std::collections::VecDeque;
use std::ops::Range;

/// Bytes after whose last use a hole is made in the file: large against what a system call costs.
pub(super) const SEGMENT: u64 = 4 << 20;

/// The file.
#[derive(Debug, Default)]
pub(super) struct FilePlaces {
    end: u64,
    /// Number of the first segment in `live`; those before it have been given back.
    first: u64,
    /// Bytes of each segment that are needed.
    live: VecDeque<u64>,
    /// Ranges that may become holes.
    holes: Vec<Range<u64>>,
}

impl FilePlaces {
    /// The next place.
    pub(super) fn take(&mut self, length: u64) -> u64 {
        let at = self.end;
        self.end += length;
        self.change(at..self.end, true);
        at
    }

    /// A place is not needed any more.
    pub(super) fn give_back(&mut self, at: u64, length: u64) {
        self.change(at..at + length, false);
    }

    fn change(&mut self, range: Range<u64>, more: bool) {
        let mut at = range.start;
        while at < range.end {
            let segment = at / SEGMENT;
            let upto = range.end.min((segment + 1) * SEGMENT);
            let Some(index) = segment.checked_sub(self.first).map(|index| index as usize) else {
                return;
            };
            if self.live.len() <= index {
                self.live.resize(index + 1, 0);
            }
            let live = &mut self.live[index];
            *live = if more { *live + (upto - at) } else { live.saturating_sub(upto - at) };
            at = upto;
            // The last segment is still being dealt from.
            if !more && self.live[index] == 0 && (segment + 1) * SEGMENT <= self.end {
                self.holes.push(segment * SEGMENT..(segment + 1) * SEGMENT);
            }
        }
        while self.live.front() == Some(&0) && (self.first + 1) * SEGMENT <= self.end {
            self.live.pop_front();
            self.first += 1;
        }
    }

    /// What has become free since the last call.
    pub(super) fn take_holes(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.holes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a hole is made where everything has left, and nowhere else; nothing is dealt there again.
    #[test]
    fn holes_are_what_nobody_needs() {
        let mut file = FilePlaces::default();
        let places: Vec<_> = (0..5).map(|_| (file.take(SEGMENT / 2), SEGMENT / 2)).collect();
        let long = file.take(3 * SEGMENT);
        assert_eq!(long, 5 * SEGMENT / 2);
        let mut give_back = |(at, length)| {
            file.give_back(at, length);
            let holes = file.take_holes().into_iter();
            holes.map(|it| (it.start / SEGMENT, it.end / SEGMENT)).collect::<Vec<_>>()
        };
        assert_eq!(give_back(places[1]), []);
        assert_eq!(give_back(places[2]), []);
        assert_eq!(give_back(places[3]), [(1, 2)]);
        assert_eq!(give_back(places[0]), [(0, 1)]);
        assert_eq!(give_back((long, 3 * SEGMENT)), [(3, 4), (4, 5)]);
        assert_eq!(give_back(places[4]), [(2, 3)]);
        assert_eq!(file.take(1), 11 * SEGMENT / 2);
    }
}
