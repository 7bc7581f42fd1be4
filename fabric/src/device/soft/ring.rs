//! A single-producer, single-consumer ring of variable-length records in shared memory.
//!
//! Cells have 64 bytes. A record takes whole cells, contiguous: where it would cross the end of
//! the ring, a pad record fills the rest. Its first eight bytes are the *mark*:
//! `sequence (32) | kind (8) | body bytes (24)`, `sequence` being the cell's position + 1. Kinds
//! are never 0, so neither is the mark of a record that is there.
//!
//! | word | written by | why this order suffices |
//! | --- | --- | --- |
//! | mark | producer | stored with Release after body *and* after the mark of the cell behind the record was zeroed: a consumer that loads it with Acquire sees both, so it never takes an old body for a mark. Marks are zeroed some cells ahead, once a record is published: the lines of the next records are then fetched while nobody waits for them |
//! | `head` | consumer | stored with Release after the body was read; the producer loads it with Acquire before it reuses cells |
//! | `waiting` | both | a producer that found no room sets it, fences, and looks again; the consumer looks after its store of `head`, without a fence: a producer that it misses looks again by itself after a while |
//!
//! No index of the producer is shared: a consumer touches the record's own lines only. A
//! producer that dies leaves either a whole record or none. What the mark says is checked
//! against the ring before it is believed.

use super::region::Alone;
use super::shm::{Mapping, Shared, View};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Bytes of a cell: a cache line.
pub(super) const CELL: usize = 64;
/// Bytes of a mark.
pub(super) const MARK: usize = 8;
/// Cells behind a record whose marks are zeroed ahead of need: two small messages.
const AHEAD: u64 = 4;
/// Kind of a record that only fills the ring's end.
const PAD: u8 = 0xff;

/// The words of a ring that both sides use, apart from its cells.
#[repr(C)]
pub(super) struct RingHead {
    head: Alone<AtomicU64>,
    waiting: Alone<AtomicU32>,
}
// SAFETY: atomics only; padding is never read.
unsafe impl Shared for RingHead {}

/// Where a ring lies in its mapping.
#[derive(Clone, Copy)]
pub(super) struct RingPlace {
    /// Offset of the [`RingHead`].
    pub(super) head: usize,
    /// Offset of the cells.
    pub(super) cells: usize,
    /// Number of cells, a power of two.
    pub(super) count: usize,
}

struct Ring {
    head: View<RingHead, Mapping>,
    cells: NonNull<u8>,
    count: usize,
}

// SAFETY: a pointer into shared memory that `head` keeps mapped; the protocol above says who may
// touch which cell when.
unsafe impl Send for Ring {}

impl Ring {
    fn new(mapping: Arc<Mapping>, place: RingPlace) -> Self {
        assert!(place.count.is_power_of_two());
        let cells = mapping.bytes(place.cells, place.count * CELL);
        let head = View::new(mapping, |mapping| mapping.get(place.head));
        Ring { head: head.expect("within the layout"), cells, count: place.count }
    }

    #[inline]
    fn shared(&self) -> &RingHead {
        &self.head
    }

    #[inline]
    fn cell(&self, position: u64) -> NonNull<u8> {
        let index = position as usize & (self.count - 1);
        // SAFETY: the index is below the number of cells.
        unsafe { self.cells.add(index * CELL) }
    }

    #[inline]
    fn mark(&self, position: u64) -> &AtomicU64 {
        // SAFETY: the first eight bytes of a cell, 64-byte aligned; both sides access them as
        // atomics wherever they may be a mark.
        unsafe { self.cell(position).cast::<AtomicU64>().as_ref() }
    }

    /// Cells from `position` to the end of the ring.
    #[inline]
    fn to_end(&self, position: u64) -> usize {
        self.count - (position as usize & (self.count - 1))
    }
}

fn mark_of(position: u64, kind: u8, len: usize) -> u64 {
    u64::from((position as u32).wrapping_add(1)) << 32 | u64::from(kind) << 24 | len as u64
}

fn cells_for(len: usize) -> usize {
    (MARK + len).div_ceil(CELL)
}

/// The writing end.
pub(super) struct Producer {
    ring: Ring,
    tail: u64,
    /// The consumer's, as last read.
    head: u64,
    /// Cells before it, from the tail on, have no mark.
    clear: u64,
}

impl Producer {
    pub(super) fn new(mapping: Arc<Mapping>, place: RingPlace) -> Self {
        // The memory is new, all zeros.
        Producer { ring: Ring::new(mapping, place), tail: 0, head: 0, clear: 1 }
    }

    /// Zeroes the marks before `end`, whose cells are free.
    #[inline]
    fn clear_to(&mut self, end: u64) {
        while self.clear < end {
            self.ring.mark(self.clear).store(0, Ordering::Relaxed);
            self.clear += 1;
        }
    }

    /// Sees to it that nothing stands at `next`, behind the record that ends there.
    #[inline]
    fn end_at(&mut self, next: u64) {
        // Within a record there are no marks.
        self.clear = self.clear.max(next);
        self.clear_to(next + 1);
    }

    /// Cells that a body of `len` bytes needs free at the current position.
    #[inline]
    fn need(&self, len: usize) -> usize {
        let cells = cells_for(len);
        let to_end = self.ring.to_end(self.tail);
        // One cell more, whose mark is zeroed.
        cells + 1 + if cells > to_end { to_end } else { 0 }
    }

    #[inline]
    fn has(&mut self, need: usize) -> bool {
        let free = |head: u64, tail: u64| self.ring.count as u64 - tail.wrapping_sub(head);
        if free(self.head, self.tail) >= need as u64 {
            return true;
        }
        let head = self.ring.shared().head.0.load(Ordering::Acquire);
        // A head that overtakes the tail or moves back is a broken consumer's: no room, ever.
        if self.tail.wrapping_sub(head) <= self.ring.count as u64 {
            self.head = head;
        }
        free(self.head, self.tail) >= need as u64
    }

    /// Room for a record with a body of `len` bytes, or `None` where the ring is full. Only
    /// [`Producer::publish`] makes it a record; who has written to it must publish it.
    #[inline]
    pub(super) fn reserve(&mut self, len: usize) -> Option<NonNull<u8>> {
        let need = self.need(len);
        if !self.has(need) {
            return None;
        }
        let to_end = self.ring.to_end(self.tail);
        if cells_for(len) > to_end {
            let next = self.tail + to_end as u64;
            self.end_at(next);
            let mark = mark_of(self.tail, PAD, 0);
            self.ring.mark(self.tail).store(mark, Ordering::Release);
            self.tail = next;
        }
        // SAFETY: `len` bytes behind the mark lie in the record's cells, which are contiguous.
        Some(unsafe { self.ring.cell(self.tail).add(MARK) })
    }

    /// As [`Producer::reserve`]; where the ring is full the consumer is told to say when it no
    /// longer is (`Consumer::wanted`).
    #[inline]
    pub(super) fn reserve_or_wait(&mut self, len: usize) -> Option<NonNull<u8>> {
        self.reserve(len).or_else(|| self.wait(len))
    }

    #[cold]
    fn wait(&mut self, len: usize) -> Option<NonNull<u8>> {
        self.ring.shared().waiting.0.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.reserve(len)
    }

    /// Publishes the record whose body of `len` bytes stands where the last reservation said.
    #[inline]
    pub(super) fn publish(&mut self, kind: u8, len: usize) {
        let next = self.tail + cells_for(len) as u64;
        self.end_at(next);
        // SeqCst, because the producer looks at the consumer's words next (does it sleep?), and
        // the consumer at this one after it has written those.
        self.ring.mark(self.tail).store(mark_of(self.tail, kind, len), Ordering::SeqCst);
        self.tail = next;
        self.clear_to((next + AHEAD).min(self.head + self.ring.count as u64));
    }
}

/// What a consumer finds.
pub(super) enum Found<'a> {
    /// A record of this kind and body.
    Record(u8, &'a [u8]),
    /// Nothing now.
    Empty,
    /// Something that no sane producer writes: the ring is of no further use.
    Broken,
}

/// Looks at a ring without reading it.
pub(super) struct Watch(Ring);

// SAFETY: it only loads atomics.
unsafe impl Sync for Watch {}

impl Watch {
    pub(super) fn new(mapping: Arc<Mapping>, place: RingPlace) -> Self {
        Watch(Ring::new(mapping, place))
    }

    /// Whether there is something for the consumer.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        let head = self.0.shared().head.0.load(Ordering::Relaxed);
        self.0.mark(head).load(Ordering::Acquire) != 0
    }
}

/// The reading end.
pub(super) struct Consumer {
    ring: Ring,
    head: u64,
    cells: usize,
}

impl Consumer {
    pub(super) fn new(mapping: Arc<Mapping>, place: RingPlace) -> Self {
        Consumer { ring: Ring::new(mapping, place), head: 0, cells: 0 }
    }

    /// The record at the head; it stays there until [`Consumer::advance`].
    #[inline]
    pub(super) fn peek(&mut self) -> Found<'_> {
        loop {
            let mark = self.ring.mark(self.head).load(Ordering::Acquire);
            if mark == 0 {
                return Found::Empty;
            }
            let (kind, len) = ((mark >> 24) as u8, (mark & 0xff_ffff) as usize);
            let to_end = self.ring.to_end(self.head);
            if (mark >> 32) as u32 != (self.head as u32).wrapping_add(1) || cells_for(len) > to_end
            {
                return Found::Broken;
            }
            if kind == PAD {
                self.head += to_end as u64;
                self.ring.shared().head.0.store(self.head, Ordering::Release);
                continue;
            }
            self.cells = cells_for(len);
            // SAFETY: the body lies in the record's cells, checked against the end just now; the
            // producer leaves them alone until `head` has passed them.
            let body = unsafe {
                std::slice::from_raw_parts(self.ring.cell(self.head).add(MARK).as_ptr(), len)
            };
            return Found::Record(kind, body);
        }
    }

    /// Gives the cells of the record last peeked back to the producer.
    #[inline]
    pub(super) fn advance(&mut self) {
        self.head += std::mem::take(&mut self.cells) as u64;
        self.ring.shared().head.0.store(self.head, Ordering::Release);
    }

    /// Whether the producer waits for room, once: the caller wakes it.
    #[inline]
    pub(super) fn wanted(&self) -> bool {
        let waiting = &self.ring.shared().waiting.0;
        waiting.load(Ordering::Relaxed) != 0 && waiting.swap(0, Ordering::SeqCst) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair(count: usize) -> (Arc<Mapping>, Producer, Consumer) {
        let (_, mapping) = Mapping::create(c"test-ring", 4096 + count * CELL).unwrap();
        let mapping = Arc::new(mapping);
        let place = RingPlace { head: 0, cells: 4096, count };
        let producer = Producer::new(Arc::clone(&mapping), place);
        let consumer = Consumer::new(Arc::clone(&mapping), place);
        (mapping, producer, consumer)
    }

    fn put(producer: &mut Producer, kind: u8, body: &[u8]) -> bool {
        let Some(room) = producer.reserve(body.len()) else { return false };
        // SAFETY: `reserve` gave room for the body.
        unsafe { std::ptr::copy_nonoverlapping(body.as_ptr(), room.as_ptr(), body.len()) };
        producer.publish(kind, body.len());
        true
    }

    proptest! {
        /// Every record comes out once, whole and in order, whatever the lengths and however
        /// reads and writes interleave over many laps.
        #[test]
        fn records_come_out_as_they_went_in(
            steps in proptest::collection::vec((0usize..500, 0usize..6, any::<u8>()), 1..400)
        ) {
            let (_mapping, mut producer, mut consumer) = pair(32);
            let mut expected = std::collections::VecDeque::new();
            for (len, reads, fill) in steps {
                let body = vec![fill; len];
                if put(&mut producer, fill & 0x7f, &body) {
                    expected.push_back((fill & 0x7f, body));
                } else {
                    prop_assert!(!expected.is_empty(), "an empty ring has room");
                }
                for _ in 0..reads {
                    match consumer.peek() {
                        Found::Record(kind, body) => {
                            let (k, b) = expected.pop_front().unwrap();
                            prop_assert_eq!(kind, k);
                            prop_assert_eq!(body, &b[..]);
                            consumer.advance();
                        }
                        Found::Empty => prop_assert!(expected.is_empty()),
                        Found::Broken => prop_assert!(false, "broken"),
                    }
                }
            }
        }

        /// A ring full of garbage is refused or read within its bounds; it never panics.
        #[test]
        fn garbage_is_not_believed(words in proptest::collection::vec(any::<u64>(), 32)) {
            let (mapping, _producer, mut consumer) = pair(32);
            for (i, word) in words.iter().enumerate() {
                mapping.at::<AtomicU64>(4096 + i * CELL).store(*word, Ordering::Relaxed);
            }
            for _ in 0..64 {
                match consumer.peek() {
                    Found::Record(_, body) => {
                        prop_assert!(body.len() <= 32 * CELL);
                        consumer.advance();
                    }
                    Found::Empty | Found::Broken => break,
                }
            }
        }
    }

    /// Two threads, a small ring: nothing is lost or torn while both run.
    #[test]
    fn two_threads_agree() {
        let (_mapping, mut producer, mut consumer) = pair(16);
        const COUNT: u64 = 50_000;
        let writer = std::thread::spawn(move || {
            for i in 0..COUNT {
                let len = 8 + (i % 37) as usize * 8;
                let body: Vec<u8> = i.to_le_bytes().repeat(len / 8);
                while !put(&mut producer, 1, &body) {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0u64;
        while next < COUNT {
            match consumer.peek() {
                Found::Record(1, body) => {
                    assert_eq!(body.len(), 8 + (next % 37) as usize * 8);
                    assert!(body.chunks(8).all(|c| c == next.to_le_bytes()));
                    consumer.advance();
                    next += 1;
                }
                Found::Empty => std::thread::yield_now(),
                _ => panic!("broken"),
            }
        }
        writer.join().unwrap();
    }
}
