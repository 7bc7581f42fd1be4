//! The window of a receive queue.

use crate::entry::{Element, RecvEntry, Refused, State};
use crate::ring::{Counters, MoreElements, load_element, store_element};
use crate::sync::{AtomicU64, Ordering};
use std::hash::{Hash, Hasher};

/// Half a cache line: a receive and its first element.
#[repr(align(32))]
pub(crate) struct Slot {
    wr_id: AtomicU64,
    elements: AtomicU64,
    first_addr: AtomicU64,
    first_rest: AtomicU64,
}

/// Slots of receives with their elements, as both receive windows keep them.
pub(crate) struct Receives {
    slots: Box<[Slot]>,
    more: MoreElements,
}

impl Receives {
    pub(crate) fn new(slots: usize, max_elements: u8) -> Self {
        let slot = || Slot {
            wr_id: AtomicU64::new(0),
            elements: AtomicU64::new(0),
            first_addr: AtomicU64::new(0),
            first_rest: AtomicU64::new(0),
        };
        Receives {
            slots: (0..slots).map(|_| slot()).collect(),
            more: MoreElements::new(slots, max_elements),
        }
    }

    pub(crate) fn copy(&self) -> Self {
        let word = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
        let slot = |slot: &Slot| Slot {
            wr_id: word(&slot.wr_id),
            elements: word(&slot.elements),
            first_addr: word(&slot.first_addr),
            first_rest: word(&slot.first_rest),
        };
        Receives { slots: self.slots.iter().map(slot).collect(), more: self.more.copy() }
    }

    #[inline]
    fn slot(&self, at: usize) -> &Slot {
        &self.slots[at]
    }

    #[inline]
    pub(crate) fn fits(&self, elements: usize) -> Result<(), Refused> {
        if elements > self.more.max() { Err(Refused::TooManyElements) } else { Ok(()) }
    }

    #[inline]
    pub(crate) fn store<I>(&self, at: usize, wr_id: u64, elements: I)
    where
        I: ExactSizeIterator<Item = Element>,
    {
        let slot = self.slot(at);
        slot.wr_id.store(wr_id, Ordering::Relaxed);
        slot.elements.store(elements.len() as u64, Ordering::Relaxed);
        for (i, element) in elements.enumerate() {
            if i == 0 {
                store_element(&slot.first_addr, &slot.first_rest, element);
            } else {
                self.more.store(at, i, element);
            }
        }
    }

    #[inline]
    pub(crate) fn entry(&self, at: usize) -> RecvEntry {
        let slot = self.slot(at);
        let elements = slot.elements.load(Ordering::Relaxed) as u8;
        RecvEntry { wr_id: slot.wr_id.load(Ordering::Relaxed), elements }
    }

    #[inline]
    pub(crate) fn element(&self, at: usize, index: usize) -> Element {
        if index == 0 {
            load_element(&self.slot(at).first_addr, &self.slot(at).first_rest)
        } else {
            self.more.load(at, index)
        }
    }
}

/// A place in the window for a receive of exactly one element, the common case. It is filled piece
/// by piece, so that whoever copies a receive out of the program's memory has each piece in hand
/// once, and [published](RecvWindow::publish).
pub struct PlainRecvSlot<'a> {
    slot: &'a Slot,
    seq: u64,
}

impl PlainRecvSlot<'_> {
    /// The sequence that it will have.
    #[inline]
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The program's identifier.
    #[inline]
    pub fn wr_id(&self, wr_id: u64) {
        self.slot.wr_id.store(wr_id, Ordering::Relaxed);
    }

    /// Its element.
    #[inline]
    pub fn element(&self, element: Element) {
        self.slot.elements.store(1, Ordering::Relaxed);
        store_element(&self.slot.first_addr, &self.slot.first_rest, element);
    }
}

/// The receives of one virtual queue pair, from `append` to `retire`. See the crate's
/// documentation for states and threads.
pub struct RecvWindow {
    counters: Counters,
    receives: Receives,
}

impl RecvWindow {
    /// A window for `depth` receives of at most `max_elements` elements.
    ///
    /// # Panics
    /// Where `depth` exceeds 2²⁴.
    #[must_use]
    pub fn new(depth: u32, max_elements: u8) -> Self {
        let counters = Counters::new(depth);
        RecvWindow { receives: Receives::new(counters.slots(), max_elements), counters }
    }

    /// The same again, for a checker that goes on from one state in several ways.
    pub(crate) fn copy(&self) -> Self {
        RecvWindow { counters: self.counters.copy(), receives: self.receives.copy() }
    }

    /// Tells states of a window apart that have the same entries.
    pub(crate) fn digest(&self, state: &mut impl Hasher) {
        self.counters.words().hash(state);
    }

    /// Producer, of a window that is not in use yet: its first receive has that sequence, as where one
    /// that was written down is filled anew.
    ///
    /// # Panics
    /// Where `seq` exceeds [`MAX_SEQ`](crate::MAX_SEQ).
    pub fn begin_at(&self, seq: u64) {
        self.counters.begin_at(seq);
    }

    /// Producer: adds a receive, and returns its sequence.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::TooManyElements`]; nothing has changed then.
    #[inline]
    pub fn append<I>(&self, wr_id: u64, elements: I) -> Result<u64, Refused>
    where
        I: ExactSizeIterator<Item = Element>,
    {
        self.receives.fits(elements.len())?;
        let seq = self.counters.claim().ok_or(Refused::Full)?;
        self.receives.store(self.counters.slot(seq), wr_id, elements);
        self.counters.publish(seq);
        Ok(seq)
    }

    /// Producer: the next place, for a receive of one element, where there is known to be one; else
    /// [`claim_plain`](Self::claim_plain) has to look. Nothing has changed until it is published.
    #[inline(always)]
    #[must_use]
    pub fn claim_known(&self) -> Option<PlainRecvSlot<'_>> {
        let seq = self.counters.claim_known()?;
        Some(PlainRecvSlot { slot: self.slot(seq), seq })
    }

    /// Producer: the next place, for a receive of one element; `None` where the window is full.
    #[inline]
    #[must_use]
    pub fn claim_plain(&self) -> Option<PlainRecvSlot<'_>> {
        let seq = self.counters.claim()?;
        Some(PlainRecvSlot { slot: self.slot(seq), seq })
    }

    /// Producer: adds the receive in a place that was claimed just now. It counts as handed, like
    /// all before it: this is for receives that are given to the physical queue pair at once (where
    /// that refuses, there is [`RecvWindow::take_back`]).
    #[inline(always)]
    pub fn publish(&self, plain: PlainRecvSlot<'_>) {
        self.counters.publish_handed(plain.seq);
    }

    #[inline]
    fn slot(&self, seq: u64) -> &Slot {
        // As many as a power of two: the compiler sees that the index is within.
        &self.receives.slots[seq as usize & (self.receives.slots.len() - 1)]
    }

    /// The receive `seq`, which must be in the window, or have been: its place keeps it until one comes there that is as
    /// many later as the window is deep.
    #[inline]
    #[must_use]
    pub fn entry(&self, seq: u64) -> RecvEntry {
        self.receives.entry(self.counters.slot(seq))
    }

    /// The program's identifier of the receive `seq`.
    #[inline]
    #[must_use]
    pub fn wr_id(&self, seq: u64) -> u64 {
        self.slot(seq).wr_id.load(Ordering::Relaxed)
    }

    /// Element `index` of the receive `seq`.
    ///
    /// # Panics
    /// Where `index` is beyond what the window was made for.
    #[inline]
    #[must_use]
    pub fn element(&self, seq: u64, index: usize) -> Element {
        self.receives.element(self.counters.slot(seq), index)
    }

    /// Producer: receives below `upto` have been given to the physical queue pair.
    #[inline]
    pub fn mark_handed(&self, upto: u64) {
        self.counters.hand(upto);
    }

    /// Producer, while no physical queue pair is attached: receives from `seq` on count as appended,
    /// and not handed, again.
    pub fn unhand(&self, seq: u64) {
        self.counters.unhand(seq);
    }

    /// Producer: takes `seq` and all after it out again. The physical queue pair must not have
    /// taken them.
    pub fn take_back(&self, seq: u64) {
        self.counters.take_back(seq);
    }

    /// Consumer: the completion of `seq` was taken. Receives of a queue complete in order.
    #[inline]
    pub fn retire(&self, seq: u64) {
        self.counters.retire(seq);
    }

    /// Consumer: the completion of the receive whose sequence has the low 31 bits of `low` was
    /// taken: [`RecvWindow::expand`], [`RecvWindow::wr_id`] and [`RecvWindow::retire`] in one.
    #[inline]
    pub fn take(&self, low: u32) -> Option<u64> {
        // A slot is found by fewer bits than these: its place need not wait for the sequence.
        let slot = self.slot(low.into());
        let seq = self.counters.expand(low)?;
        let wr_id = slot.wr_id.load(Ordering::Relaxed);
        self.counters.retire(seq);
        Some(wr_id)
    }

    /// Consumer: the sequence in the window whose low 31 bits are `low`, if there is one.
    #[inline]
    #[must_use]
    pub fn expand(&self, low: u32) -> Option<u64> {
        self.counters.expand(low)
    }

    /// Receives appended so far.
    #[inline]
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.counters.appended()
    }

    /// Receives given to the physical queue pair so far.
    #[inline]
    #[must_use]
    pub fn handed(&self) -> u64 {
        self.counters.handed()
    }

    /// Receives that have left the window so far.
    #[inline]
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.counters.retired()
    }

    /// Most receives in the window.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.counters.depth()
    }

    /// Where the receive `seq` stands.
    #[must_use]
    pub fn state(&self, seq: u64) -> State {
        self.counters.state(seq)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Promise: posted receives are kept with their scatter lists until they are consumed.
    #[test]
    fn receives_come_back_in_order_with_their_elements() {
        let window = RecvWindow::new(2, 2);
        let element = |n: u64| Element { addr: n, length: 8, lkey: n as u32 };
        for n in 0..2 {
            window.append(n + 50, [element(n), element(n + 10)].into_iter()).unwrap();
        }
        assert_eq!(window.append(0, [].into_iter()), Err(Refused::Full));
        window.mark_handed(2);
        for n in 0..2 {
            let seq = window.expand(n as u32).unwrap();
            assert_eq!(window.entry(seq), RecvEntry { wr_id: n + 50, elements: 2 });
            assert_eq!(window.element(seq, 0), element(n));
            assert_eq!(window.element(seq, 1), element(n + 10));
            window.retire(seq);
        }
        assert_eq!(window.expand(0), None, "a completion of what has left names nothing");
        assert!(window.append(9, [].into_iter()).is_ok());
    }
}
