//! The counters of a window, and where an entry's elements stand.
//!
//! Who writes what: the producer `appended`, `handed` and `free_until`; the consumer `retired`.
//! They are on cache lines of their own, since the two run on different cores. A release store
//! of `appended` publishes the slots before it to the consumer (who reads a slot only after a
//! device told it of the entry's completion, and orders itself by the acquire load in
//! [`Counters::expand`]); a release store of `retired` gives slots back to the producer, who
//! overwrites one only after an acquire load that covers it.

use crate::entry::{Element, State};
use crate::sync::{AtomicU64, Ordering, zeroed};

/// Deepest window: entries are told apart by 31 bits of their sequence in a physical `wr_id`,
/// and no device has queues anywhere near.
pub(crate) const MAX_DEPTH: u32 = 1 << 24;

/// The latest sequence that a window may begin at: no program comes so far, and nothing that is added to
/// it overflows.
pub const MAX_SEQ: u64 = 1 << 56;

#[repr(align(64))]
struct Producer {
    appended: AtomicU64,
    handed: AtomicU64,
    /// A sequence up to which there is known to be room: spares a look at the consumer's line.
    free_until: AtomicU64,
    /// A sequence up to which there is, and up to which entries may be handed as well.
    granted_until: AtomicU64,
}

#[repr(align(64))]
struct Consumer {
    retired: AtomicU64,
}

/// The three counters of a window.
pub(crate) struct Counters {
    producer: Producer,
    consumer: Consumer,
    depth: u64,
    mask: u64,
}

impl Counters {
    pub(crate) fn new(depth: u32) -> Self {
        assert!(depth <= MAX_DEPTH, "a window of {depth} entries; the most is {MAX_DEPTH}");
        let slots = u64::from(depth.max(1)).next_power_of_two();
        Counters {
            producer: Producer {
                appended: AtomicU64::new(0),
                handed: AtomicU64::new(0),
                free_until: AtomicU64::new(u64::from(depth)),
                granted_until: AtomicU64::new(0),
            },
            consumer: Consumer { retired: AtomicU64::new(0) },
            depth: u64::from(depth),
            mask: slots - 1,
        }
    }

    /// The same again, for a checker that goes on from one state in several ways.
    pub(crate) fn copy(&self) -> Self {
        let copy = Counters::new(self.depth());
        copy.producer.appended.store(self.appended(), Ordering::Relaxed);
        copy.producer.handed.store(self.handed(), Ordering::Relaxed);
        copy.producer.free_until.store(copy_of(&self.producer.free_until), Ordering::Relaxed);
        copy.producer.granted_until.store(copy_of(&self.producer.granted_until), Ordering::Relaxed);
        copy.consumer.retired.store(self.retired(), Ordering::Relaxed);
        copy
    }

    /// Producer, of a window that is not in use yet: the first entry has that sequence.
    pub(crate) fn begin_at(&self, seq: u64) {
        assert!(seq <= MAX_SEQ, "a window that begins at {seq}; the most is {MAX_SEQ}");
        self.producer.appended.store(seq, Ordering::Release);
        self.producer.handed.store(seq, Ordering::Release);
        self.producer.free_until.store(seq + self.depth, Ordering::Relaxed);
        self.producer.granted_until.store(0, Ordering::Relaxed);
        self.consumer.retired.store(seq, Ordering::Release);
    }

    /// All that differs between two states of a window, but for its entries.
    pub(crate) fn words(&self) -> [u64; 4] {
        let free_until = copy_of(&self.producer.free_until);
        [self.appended(), self.handed(), self.retired(), free_until]
    }

    pub(crate) fn slots(&self) -> usize {
        self.mask as usize + 1
    }

    #[inline]
    pub(crate) fn slot(&self, seq: u64) -> usize {
        (seq & self.mask) as usize
    }

    /// Producer: the sequence of the next entry, where room for it is known; else there may be
    /// some, and [`Counters::claim`] looks.
    #[inline]
    pub(crate) fn claim_known(&self) -> Option<u64> {
        let seq = self.producer.appended.load(Ordering::Relaxed);
        (seq < self.producer.free_until.load(Ordering::Relaxed)).then_some(seq)
    }

    /// Producer: the sequence of the next entry, where it is known that there is room for it, and that it
    /// may be handed.
    #[inline]
    pub(crate) fn claim_granted(&self) -> Option<u64> {
        let seq = self.producer.appended.load(Ordering::Relaxed);
        self.is_granted(seq).then_some(seq)
    }

    /// Producer: whether that entry is known to have room, and may be handed.
    #[inline]
    pub(crate) fn is_granted(&self, seq: u64) -> bool {
        seq < self.producer.granted_until.load(Ordering::Relaxed)
    }

    /// Producer: entries before `until` may be handed, as far as there is room.
    pub(crate) fn grant_until(&self, until: u64) {
        let until = until.min(self.producer.free_until.load(Ordering::Relaxed));
        self.producer.granted_until.store(until, Ordering::Relaxed);
    }

    /// Producer: the sequence of the next entry, or `None` where the window is full.
    #[inline]
    pub(crate) fn claim(&self) -> Option<u64> {
        let known = self.claim_known();
        if known.is_some() {
            return known;
        }
        let seq = self.producer.appended.load(Ordering::Relaxed);
        self.look_for_room();
        (seq < self.producer.free_until.load(Ordering::Relaxed)).then_some(seq)
    }

    /// Producer: entries before this one may be overwritten.
    pub(crate) fn free_from(&self) -> u64 {
        self.producer.free_until.load(Ordering::Relaxed).saturating_sub(self.depth)
    }

    /// Producer: looks how far the consumer has come.
    #[cold]
    pub(crate) fn look_for_room(&self) {
        let free_until = self.consumer.retired.load(Ordering::Acquire) + self.depth;
        self.producer.free_until.store(free_until, Ordering::Relaxed);
    }

    /// Producer: the entry `seq`, claimed before, is complete.
    #[inline]
    pub(crate) fn publish(&self, seq: u64) {
        debug_assert_eq!(seq, self.producer.appended.load(Ordering::Relaxed));
        self.producer.appended.store(seq + 1, Ordering::Release);
    }

    /// Producer: the same for an entry that is given to the physical queue pair at once, with
    /// all before it.
    #[inline]
    pub(crate) fn publish_handed(&self, seq: u64) {
        self.publish(seq);
        self.hand(seq + 1);
    }

    /// Producer: entries below `upto` have been given to the physical queue pair.
    #[inline]
    pub(crate) fn hand(&self, upto: u64) {
        debug_assert!(self.handed() <= upto && upto <= self.appended());
        self.producer.handed.store(upto, Ordering::Release);
    }

    /// Producer: the entry `seq` and all after it never were.
    pub(crate) fn take_back(&self, seq: u64) {
        debug_assert!(self.retired() <= seq && seq <= self.appended());
        self.producer.handed.store(self.handed().min(seq), Ordering::Release);
        self.producer.appended.store(seq, Ordering::Release);
    }

    /// Producer: entries from `seq` on have not been given to a physical queue pair after all.
    pub(crate) fn unhand(&self, seq: u64) {
        debug_assert!(self.retired() <= seq && seq <= self.handed());
        self.producer.handed.store(seq, Ordering::Release);
    }

    /// Consumer: entries up to and including `seq` are done.
    #[inline]
    pub(crate) fn retire(&self, seq: u64) {
        debug_assert!(self.retired() <= seq && seq < self.appended());
        self.consumer.retired.store(seq + 1, Ordering::Release);
    }

    /// Consumer: the sequence within the window whose low 31 bits are `low`, if there is one.
    #[inline]
    pub(crate) fn expand(&self, low: u32) -> Option<u64> {
        const MASK_31: u64 = 0x7fff_ffff;
        let retired = self.consumer.retired.load(Ordering::Relaxed);
        let ahead = u64::from(low).wrapping_sub(retired) & MASK_31;
        let seq = retired + ahead;
        (seq < self.producer.appended.load(Ordering::Acquire)).then_some(seq)
    }

    #[inline]
    pub(crate) fn appended(&self) -> u64 {
        self.producer.appended.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn handed(&self) -> u64 {
        self.producer.handed.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn retired(&self) -> u64 {
        self.consumer.retired.load(Ordering::Acquire)
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth as u32
    }

    pub(crate) fn state(&self, seq: u64) -> State {
        // From the last counter to the first: each only grows, so that an entry is never
        // reported as standing before where it stood when the call began.
        if seq < self.retired() {
            State::Retired
        } else if seq < self.handed() {
            State::Handed
        } else if seq < self.appended() {
            State::Appended
        } else {
            State::Future
        }
    }
}

fn copy_of(word: &AtomicU64) -> u64 {
    word.load(Ordering::Relaxed)
}

/// The same words again.
pub(crate) fn copy_words(words: &[AtomicU64]) -> Box<[AtomicU64]> {
    words.iter().map(|word| AtomicU64::new(copy_of(word))).collect()
}

/// Elements beyond an entry's first, which stands in its slot.
pub(crate) struct MoreElements {
    words: Box<[AtomicU64]>,
    per_slot: usize,
}

impl MoreElements {
    pub(crate) fn new(slots: usize, max_elements: u8) -> Self {
        let per_slot = usize::from(max_elements).saturating_sub(1);
        MoreElements { words: zeroed(slots * per_slot * 2), per_slot }
    }

    pub(crate) fn copy(&self) -> Self {
        MoreElements { words: copy_words(&self.words), per_slot: self.per_slot }
    }

    pub(crate) fn max(&self) -> usize {
        self.per_slot + 1
    }

    #[inline]
    fn at(&self, slot: usize, index: usize) -> usize {
        debug_assert!(1 <= index && index <= self.per_slot);
        (slot * self.per_slot + index - 1) * 2
    }

    #[inline]
    pub(crate) fn store(&self, slot: usize, index: usize, element: Element) {
        let at = self.at(slot, index);
        store_element(&self.words[at], &self.words[at + 1], element);
    }

    #[inline]
    pub(crate) fn load(&self, slot: usize, index: usize) -> Element {
        let at = self.at(slot, index);
        load_element(&self.words[at], &self.words[at + 1])
    }
}

#[inline]
pub(crate) fn store_element(addr: &AtomicU64, rest: &AtomicU64, element: Element) {
    addr.store(element.addr, Ordering::Relaxed);
    rest.store(pair(element.length, element.lkey), Ordering::Relaxed);
}

#[inline]
pub(crate) fn load_element(addr: &AtomicU64, rest: &AtomicU64) -> Element {
    let (length, lkey) = unpair(rest.load(Ordering::Relaxed));
    Element { addr: addr.load(Ordering::Relaxed), length, lkey }
}

/// Two halves of a word.
#[inline]
pub(crate) const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// The halves of [`pair`].
#[inline]
pub(crate) const fn unpair(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}
