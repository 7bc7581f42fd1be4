//! A ring of bytes that is given out from the front and taken back from the rear.
//!
//! Places are positions that only grow; where one would cross the end of the memory it begins at the
//! start of the next turn. The rule is simple so that two sides that place the same messages in the
//! same order get the same places, without telling each other.

/// Places begin and end at multiples of this, so that no two share a cache line.
const LINE: usize = 64;

/// Bytes of a place after its message, at least: they must stay as they are.
const GUARD: usize = 8;

/// A part of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Position of its first byte.
    pub(crate) start: u64,
    /// Position after its last byte.
    pub(crate) end: u64,
}

/// Memory of `size` bytes.
#[derive(Clone, Debug)]
pub(crate) struct Ring {
    size: u64,
    head: u64,
    tail: u64,
}

impl Ring {
    /// Bytes that a ring needs so that `count` messages of up to `largest` bytes fit.
    pub(crate) fn bytes(count: usize, largest: usize) -> usize {
        count * footprint(largest + 7)
    }

    pub(crate) fn new(size: usize) -> Self {
        Ring { size: size as u64, head: 0, tail: 0 }
    }

    /// Takes the next place for `bytes` bytes; `None` where too little is free.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Place> {
        let place = self.next(bytes);
        if place.end - self.tail > self.size {
            return None;
        }
        self.head = place.end;
        Some(place)
    }

    /// Whether [`Self::take`] would succeed.
    pub(crate) fn fits(&self, bytes: usize) -> bool {
        self.next(bytes).end - self.tail <= self.size
    }

    /// Gives back everything before `position`.
    pub(crate) fn free(&mut self, position: u64) {
        debug_assert!(position <= self.head);
        self.tail = self.tail.max(position);
    }

    /// Position before which everything was given out.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Position before which everything was given back.
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Where a position is in the memory.
    pub(crate) fn offset(&self, position: u64) -> usize {
        (position % self.size) as usize
    }

    fn next(&self, bytes: usize) -> Place {
        let length = footprint(bytes) as u64;
        let at = self.head % self.size;
        let skip = if at + length > self.size { self.size - at } else { 0 };
        let start = self.head + skip;
        Place { start, end: start + length }
    }
}

fn footprint(bytes: usize) -> usize {
    (bytes + GUARD).next_multiple_of(LINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: two sides that place the same messages agree on every place, whatever was given
    /// back when; and no two places that are out overlap.
    #[test]
    fn places_depend_on_the_messages_alone_and_never_overlap() {
        let size = Ring::bytes(6, 1000);
        let (mut a, mut b) = (Ring::new(size), Ring::new(size));
        let mut out: Vec<Place> = Vec::new();
        for i in 0..2000usize {
            let bytes = (i * 37) % 1008;
            let place = loop {
                match a.take(bytes) {
                    Some(place) => break place,
                    None => a.free(out.remove(0).end),
                }
            };
            b.free(b.head());
            assert_eq!(b.take(bytes), Some(place));
            let (from, to) = (a.offset(place.start), a.offset(place.start) + bytes);
            assert!(to <= size);
            for other in &out {
                let start = a.offset(other.start);
                let end = start + (other.end - other.start) as usize;
                assert!(to <= start || end <= from, "{place:?} and {other:?}");
            }
            out.push(place);
        }
    }

    #[test]
    fn what_is_full_is_refused_until_something_is_given_back() {
        let mut ring = Ring::new(128);
        let first = ring.take(50).unwrap();
        assert!(ring.take(50).is_some() && !ring.fits(0) && ring.take(0).is_none());
        ring.free(first.end);
        assert_eq!(ring.take(1), Some(Place { start: 128, end: 192 }));
    }
}
