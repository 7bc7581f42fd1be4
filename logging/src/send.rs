//! The window of a send queue.

use crate::entry::{Element, Opcode, Refused, SendEntry, State};
use crate::replay::Progress;
use crate::ring::{Counters, MoreElements, copy_words, load_element, pair, store_element, unpair};
use crate::sync::{AtomicU64, Mutex, Ordering, zeroed};
use std::hash::{Hash, Hasher};
use std::ops::Range;

/// One cache line: all of a request but further elements and inline bytes.
#[repr(align(64))]
struct Slot {
    wr_id: AtomicU64,
    /// Opcode (8 bits), elements (8), flags (16), immediate data (32).
    head: AtomicU64,
    remote_addr: AtomicU64,
    /// Remote key or queue pair number (32 bits), inline length (32).
    key: AtomicU64,
    /// Atomic: the operand; else the queue key.
    compare_add: AtomicU64,
    swap: AtomicU64,
    first_addr: AtomicU64,
    first_rest: AtomicU64,
}

/// The send requests of one virtual queue pair, from `append` to `retire`. See the crate's
/// documentation for states and threads.
pub struct SendWindow {
    counters: Counters,
    slots: Box<[Slot]>,
    more: MoreElements,
    /// Inline payload by value, `inline_words` for each slot.
    inline: Box<[AtomicU64]>,
    inline_words: usize,
    max_inline: u32,
    /// What the peer may be asked about; see [`crate::replay`].
    pub(crate) progress: Mutex<Progress>,
}

/// A place in the window for a request of the most common kind: exactly one element, and neither
/// a datagram nor an atomic. It is filled piece by piece, so that whoever copies a request out of
/// the program's memory has each piece in hand once, and [published](SendWindow::publish).
pub struct PlainSlot<'a> {
    slot: &'a Slot,
    seq: u64,
}

impl PlainSlot<'_> {
    /// The sequence that it will have.
    #[inline]
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// What every request has. `opcode` is a verbs value that [`Opcode::from_verbs`] takes;
    /// `flags` are as wide as verbs have them, though below 2¹⁶.
    #[inline]
    pub fn request(&self, wr_id: u64, opcode: u32, flags: u32, imm: u32) {
        debug_assert!(Opcode::from_verbs(opcode).is_some() && flags < 1 << 16);
        self.slot.wr_id.store(wr_id, Ordering::Relaxed);
        let low = opcode | 1 << 8 | flags << 16;
        self.slot.head.store(pair(low, imm), Ordering::Relaxed);
    }

    /// The same of a request whose payload [is in the window](SendWindow::copy_by_value).
    #[inline]
    pub fn request_by_value(&self, wr_id: u64, opcode: u32, flags: u32, imm: u32) {
        debug_assert!(Opcode::from_verbs(opcode).is_some() && flags < 1 << 16);
        self.slot.wr_id.store(wr_id, Ordering::Relaxed);
        self.slot.head.store(pair(opcode | flags << 16, imm), Ordering::Relaxed);
    }

    /// Where in the peer's memory. A SEND has nothing there.
    #[inline]
    pub fn remote(&self, addr: u64, rkey: u32) {
        self.slot.remote_addr.store(addr, Ordering::Relaxed);
        self.slot.key.store(pair(rkey, 0), Ordering::Relaxed);
    }

    /// Its element.
    #[inline]
    pub fn element(&self, element: Element) {
        store_element(&self.slot.first_addr, &self.slot.first_rest, element);
    }
}

/// `IBV_SEND_SIGNALED`.
const SIGNALED: u16 = 2;

/// The word of a slot that holds what every request has.
#[inline]
fn head(entry: &SendEntry, elements: u8) -> u64 {
    let low = entry.opcode as u32 | u32::from(elements) << 8 | u32::from(entry.flags) << 16;
    pair(low, entry.imm)
}

impl SendWindow {
    /// A window for `depth` requests of at most `max_elements` elements and `max_inline` bytes.
    ///
    /// # Panics
    /// Where `depth` exceeds 2²⁴.
    #[must_use]
    pub fn new(depth: u32, max_elements: u8, max_inline: u32) -> Self {
        let counters = Counters::new(depth);
        let slots = counters.slots();
        let inline_words = max_inline.div_ceil(8) as usize;
        let slot = || Slot {
            wr_id: AtomicU64::new(0),
            head: AtomicU64::new(0),
            remote_addr: AtomicU64::new(0),
            key: AtomicU64::new(0),
            compare_add: AtomicU64::new(0),
            swap: AtomicU64::new(0),
            first_addr: AtomicU64::new(0),
            first_rest: AtomicU64::new(0),
        };
        SendWindow {
            slots: (0..slots).map(|_| slot()).collect(),
            more: MoreElements::new(slots, max_elements),
            inline: zeroed(slots * inline_words),
            inline_words,
            max_inline,
            progress: Mutex::default(),
            counters,
        }
    }

    /// The same again, for a checker that goes on from one state in several ways.
    pub(crate) fn copy(&self) -> Self {
        let word = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
        let slot = |slot: &Slot| Slot {
            wr_id: word(&slot.wr_id),
            head: word(&slot.head),
            remote_addr: word(&slot.remote_addr),
            key: word(&slot.key),
            compare_add: word(&slot.compare_add),
            swap: word(&slot.swap),
            first_addr: word(&slot.first_addr),
            first_rest: word(&slot.first_rest),
        };
        SendWindow {
            counters: self.counters.copy(),
            slots: self.slots.iter().map(slot).collect(),
            more: self.more.copy(),
            inline: copy_words(&self.inline),
            inline_words: self.inline_words,
            max_inline: self.max_inline,
            progress: Mutex::new(crate::replay::lock(&self.progress).clone()),
        }
    }

    /// Tells states of a window apart that have the same entries.
    pub(crate) fn digest(&self, state: &mut impl Hasher) {
        self.counters.words().hash(state);
        crate::replay::lock(&self.progress).hash(state);
    }

    /// Producer, of a window that is not in use yet: its first request has that sequence, as where one
    /// that was written down is filled anew.
    ///
    /// # Panics
    /// Where `seq` exceeds [`MAX_SEQ`](crate::MAX_SEQ).
    pub fn begin_at(&self, seq: u64) {
        self.counters.begin_at(seq);
    }

    /// Producer: adds a request over registered memory, and returns its sequence.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::TooManyElements`]; nothing has changed then.
    #[inline]
    pub fn append<I>(&self, entry: &SendEntry, elements: I) -> Result<u64, Refused>
    where
        I: ExactSizeIterator<Item = Element>,
    {
        let count = elements.len();
        if count > self.more.max() {
            return Err(Refused::TooManyElements);
        }
        let seq = self.claim().ok_or(Refused::Full)?;
        let at = self.counters.slot(seq);
        let slot = &self.slots[at];
        for (i, element) in elements.enumerate() {
            if i == 0 {
                store_element(&slot.first_addr, &slot.first_rest, element);
            } else {
                self.more.store(at, i, element);
            }
        }
        self.store(at, entry, count as u8, 0);
        self.counters.publish(seq);
        Ok(seq)
    }

    /// Producer: the next place, for a plain request, where there is known to be one, and it
    /// [may be handed](Self::count); else [`claim_plain`](Self::claim_plain) has to look. Nothing has changed
    /// until it is published.
    #[inline(always)]
    #[must_use]
    pub fn claim_granted(&self) -> Option<PlainSlot<'_>> {
        let seq = self.counters.claim_granted()?;
        Some(PlainSlot { slot: self.slot(seq), seq })
    }

    /// Producer: the sequence of the next entry; `None` where the window is full.
    #[inline]
    fn claim(&self) -> Option<u64> {
        let known = self.counters.claim_known();
        if known.is_some() {
            return known;
        }
        self.look_for_room();
        self.counters.claim_known()
    }

    /// What is about to be overwritten is added up before.
    #[cold]
    pub(crate) fn look_for_room(&self) {
        self.counters.look_for_room();
        self.add_up(self.counters.free_from());
    }

    /// Producer: whether the request `seq`, the next to be handed, may be: of a long one that says nothing,
    /// see [`Grant::take`](crate::Grant::take).
    #[inline]
    #[must_use]
    pub fn is_granted(&self, seq: u64) -> bool {
        self.counters.is_granted(seq)
    }

    /// Producer: what was granted is counted again. For when a request was not handed after all that was to
    /// bring a completion.
    pub fn revoke(&self) {
        self.counters.grant_until(0);
    }

    pub(crate) fn grant_until(&self, until: u64) {
        self.counters.grant_until(until);
    }

    /// Producer: the next place, for a plain request; `None` where the window is full.
    #[inline]
    #[must_use]
    pub fn claim_plain(&self) -> Option<PlainSlot<'_>> {
        let seq = self.claim()?;
        Some(PlainSlot { slot: self.slot(seq), seq })
    }

    /// Producer: copies the payload of a request into its place, which was claimed just now, and returns
    /// [where it is](Self::inline_addr). `rkey` is that of the remote memory; 0 for a SEND.
    ///
    /// # Panics
    /// Where it is longer than what the window was made for.
    #[cfg(not(loom))]
    #[inline]
    #[must_use]
    pub fn copy_by_value(&self, plain: &PlainSlot<'_>, rkey: u32, payload: &[u8]) -> u64 {
        self.copy_in(self.counters.slot(plain.seq), std::iter::once(payload));
        plain.slot.key.store(pair(rkey, payload.len() as u32), Ordering::Relaxed);
        self.inline_addr(plain.seq)
    }

    /// Producer: adds the request in a place that was claimed just now. It counts as handed, like
    /// all before it: this is for requests that are given to the physical queue pair at once (where
    /// that refuses, there is [`SendWindow::take_back`]).
    #[inline(always)]
    pub fn publish(&self, plain: PlainSlot<'_>) {
        self.counters.publish_handed(plain.seq);
    }

    #[inline]
    fn slot(&self, seq: u64) -> &Slot {
        // As many as the next power of two: the compiler sees that the index is within.
        &self.slots[seq as usize & (self.slots.len() - 1)]
    }

    /// Producer: adds a request whose payload is copied: the program may reuse its buffers at
    /// once. Pieces are joined in order.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::InlineTooLong`]; nothing has changed then.
    #[inline]
    pub fn append_inline<'a, I>(&self, entry: &SendEntry, pieces: I) -> Result<u64, Refused>
    where
        I: Iterator<Item = &'a [u8]> + Clone,
    {
        let length: usize = pieces.clone().map(<[u8]>::len).sum();
        if length > self.max_inline as usize {
            return Err(Refused::InlineTooLong);
        }
        let seq = self.claim().ok_or(Refused::Full)?;
        let at = self.counters.slot(seq);
        self.copy_in(at, pieces);
        self.store(at, entry, 0, length as u32);
        self.counters.publish(seq);
        Ok(seq)
    }

    #[inline]
    fn store(&self, at: usize, entry: &SendEntry, elements: u8, inline: u32) {
        let slot = &self.slots[at];
        slot.wr_id.store(entry.wr_id, Ordering::Relaxed);
        slot.head.store(head(entry, elements), Ordering::Relaxed);
        slot.remote_addr.store(entry.remote_addr, Ordering::Relaxed);
        slot.key.store(pair(entry.rkey, inline), Ordering::Relaxed);
        if entry.opcode.is_atomic() {
            slot.compare_add.store(entry.compare_add, Ordering::Relaxed);
            slot.swap.store(entry.swap, Ordering::Relaxed);
        } else {
            slot.compare_add.store(u64::from(entry.qkey), Ordering::Relaxed);
        }
    }

    #[inline]
    fn copy_in<'a>(&self, at: usize, pieces: impl Iterator<Item = &'a [u8]>) {
        let words = &self.inline[at * self.inline_words..][..self.inline_words];
        let (mut word, mut filled, mut next) = (0u64, 0, 0);
        for piece in pieces {
            let mut rest = piece;
            if filled == 0 {
                let (whole, part) = piece.as_chunks();
                for (word, bytes) in words[next..].iter().zip(whole) {
                    word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
                }
                next += whole.len();
                rest = part;
            }
            for &byte in rest {
                word |= u64::from(byte) << (8 * filled);
                filled += 1;
                if filled == 8 {
                    words[next].store(u64::from_ne_bytes(word.to_le_bytes()), Ordering::Relaxed);
                    (word, filled, next) = (0, 0, next + 1);
                }
            }
        }
        if filled > 0 {
            words[next].store(u64::from_ne_bytes(word.to_le_bytes()), Ordering::Relaxed);
        }
    }

    /// The request `seq`, which must be in the window, or have been: its place keeps it until a request comes there that
    /// is as many later as the window is deep.
    #[inline]
    #[must_use]
    pub fn entry(&self, seq: u64) -> SendEntry {
        let slot = self.slot(seq);
        let (low, imm) = unpair(slot.head.load(Ordering::Relaxed));
        let (rkey, inline) = unpair(slot.key.load(Ordering::Relaxed));
        let opcode = Opcode::from_verbs(low & 0xff).expect("a slot holds what append stored");
        let operand = slot.compare_add.load(Ordering::Relaxed);
        let (compare_add, swap, qkey) = if opcode.is_atomic() {
            (operand, slot.swap.load(Ordering::Relaxed), 0)
        } else {
            (0, 0, operand as u32)
        };
        SendEntry {
            wr_id: slot.wr_id.load(Ordering::Relaxed),
            opcode,
            flags: (low >> 16) as u16,
            imm,
            remote_addr: slot.remote_addr.load(Ordering::Relaxed),
            rkey,
            qkey,
            compare_add,
            swap,
            elements: (low >> 8) as u8,
            // A plain SEND leaves here what an earlier request of this place had.
            inline: if low >> 8 & 0xff == 0 { inline } else { 0 },
        }
    }

    /// Element `index` of the request `seq`.
    ///
    /// # Panics
    /// Where `index` is beyond what the window was made for.
    #[inline]
    #[must_use]
    pub fn element(&self, seq: u64, index: usize) -> Element {
        let at = self.counters.slot(seq);
        if index == 0 {
            let slot = &self.slots[at];
            load_element(&slot.first_addr, &slot.first_rest)
        } else {
            self.more.load(at, index)
        }
    }

    /// Address of the inline payload of the request `seq`: it stays unchanged until the request
    /// is retired.
    #[cfg(not(loom))]
    #[inline]
    #[must_use]
    pub fn inline_addr(&self, seq: u64) -> u64 {
        self.inline[self.counters.slot(seq) * self.inline_words..].as_ptr() as u64
    }

    /// The inline payload of the request `seq`, copied out.
    #[must_use]
    pub fn inline_bytes(&self, seq: u64) -> Vec<u8> {
        let at = self.counters.slot(seq);
        let words = &self.inline[at * self.inline_words..][..self.inline_words];
        let mut bytes: Vec<u8> =
            words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes()).collect();
        bytes.truncate(self.entry(seq).inline as usize);
        bytes
    }

    /// The program's identifier of the request `seq`.
    #[inline]
    #[must_use]
    pub fn wr_id(&self, seq: u64) -> u64 {
        self.slot(seq).wr_id.load(Ordering::Relaxed)
    }

    /// Whether the program asked for a completion of the request `seq`.
    #[inline]
    #[must_use]
    pub fn is_signaled(&self, seq: u64) -> bool {
        let (low, _) = unpair(self.slot(seq).head.load(Ordering::Relaxed));
        (low >> 16) as u16 & SIGNALED != 0
    }

    /// Producer: requests below `upto` have been given to the physical queue pair.
    #[inline]
    pub fn mark_handed(&self, upto: u64) {
        self.counters.hand(upto);
    }

    /// Producer: takes `seq` and all after it out again. The physical queue pair must not have
    /// taken them.
    pub fn take_back(&self, seq: u64) {
        self.counters.take_back(seq);
    }

    /// Producer, while no physical queue pair is attached: entries from `seq` on count as appended,
    /// and not handed, again.
    pub fn unhand(&self, seq: u64) {
        self.counters.unhand(seq);
    }

    /// Bytes that a request moves.
    #[must_use]
    pub fn length(&self, seq: u64) -> u64 {
        let entry = self.entry(seq);
        let elements = (0..entry.elements).map(|i| u64::from(self.element(seq, i.into()).length));
        u64::from(entry.inline) + elements.sum::<u64>()
    }

    /// Opcode (as verbs number it) and bytes of each of these requests, in order: for those who add up
    /// many.
    #[inline]
    pub(crate) fn weigh(&self, seqs: Range<u64>, mut each: impl FnMut(u32, u64)) {
        let mut seq = seqs.start;
        while seq < seqs.end {
            // Up to where the ring begins again.
            let at = self.counters.slot(seq);
            let n = (seqs.end - seq).min((self.slots.len() - at) as u64) as usize;
            for slot in &self.slots[at..at + n] {
                let (low, _) = unpair(slot.head.load(Ordering::Relaxed));
                // Inline requests have no elements.
                let bytes = match low >> 8 & 0xff {
                    1 => load_element(&slot.first_addr, &slot.first_rest).length.into(),
                    _ => self.length(seq),
                };
                each(low & 0xff, bytes);
                seq += 1;
            }
        }
    }

    /// Consumer: the completion of `seq` was taken. It and all before it leave the window: a
    /// completion says that every earlier request of the queue is done (`ibv_post_send(3)`, on
    /// unsignalled requests).
    #[inline]
    pub fn retire(&self, seq: u64) {
        self.counters.retire(seq);
    }

    /// Consumer: the completion of the request whose sequence has the low 31 bits of `low` was taken:
    /// [`SendWindow::expand`], [`SendWindow::wr_id`] and [`SendWindow::retire`] in one.
    #[inline]
    pub fn take(&self, low: u32) -> Option<u64> {
        // A slot is found by fewer bits than these: its place need not wait for the sequence.
        let slot = self.slot(low.into());
        let seq = self.counters.expand(low)?;
        let wr_id = slot.wr_id.load(Ordering::Relaxed);
        self.counters.retire(seq);
        Some(wr_id)
    }

    /// Consumer: the sequence in the window whose low 31 bits are `low`, as a physical
    /// completion brings it back; `None` where there is none.
    #[inline]
    #[must_use]
    pub fn expand(&self, low: u32) -> Option<u64> {
        self.counters.expand(low)
    }

    /// Requests appended so far: the sequence of the next one.
    #[inline]
    #[must_use]
    pub fn appended(&self) -> u64 {
        self.counters.appended()
    }

    /// Requests given to the physical queue pair so far: the cursor.
    #[inline]
    #[must_use]
    pub fn handed(&self) -> u64 {
        self.counters.handed()
    }

    /// Requests that have left the window so far.
    #[inline]
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.counters.retired()
    }

    /// Most requests in the window.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.counters.depth()
    }

    /// Where the request `seq` stands.
    #[must_use]
    pub fn state(&self, seq: u64) -> State {
        self.counters.state(seq)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    fn entry(wr_id: u64) -> SendEntry {
        SendEntry { wr_id, ..SendEntry::empty() }
    }

    /// Promise: a request is what was posted, whatever stood in its place before: its length decides how
    /// many packets it took.
    #[test]
    fn a_plain_request_has_nothing_of_the_one_before() {
        let window = SendWindow::new(1, 1, 88);
        let seq = window.append_inline(&entry(1), [&[7; 88][..]].into_iter()).unwrap();
        assert_eq!(window.length(seq), 88);
        window.mark_handed(seq + 1);
        window.retire(seq);
        let slot = window.claim_plain().unwrap();
        slot.request(2, Opcode::Send as u32, 0, 0);
        slot.element(Element { addr: 0, length: 4096, lkey: 1 });
        window.publish(slot);
        assert_eq!((window.length(1), window.entry(1).inline), (4096, 0));
    }

    /// Promise: everything that the program posted is there to be handed again, unchanged.
    #[test]
    fn an_entry_comes_back_as_it_went_in() {
        let window = SendWindow::new(4, 3, 16);
        let atomic = SendEntry {
            wr_id: 9,
            opcode: Opcode::CompareSwap,
            flags: SIGNALED | 1,
            imm: 0xdead_beef,
            remote_addr: 0x1000,
            rkey: 0x1234,
            qkey: 0,
            compare_add: u64::MAX,
            swap: 7,
            elements: 3,
            inline: 0,
        };
        let elements =
            [1, 2, 3].map(|n| Element { addr: n << 32, length: n as u32, lkey: n as u32 + 100 });
        let seq = window.append(&atomic, elements.into_iter()).unwrap();
        assert_eq!(window.entry(seq), atomic);
        for (i, element) in elements.into_iter().enumerate() {
            assert_eq!(window.element(seq, i), element);
        }
        assert!(window.is_signaled(seq));
    }

    /// Promise: a window is never deeper than the program asked for, and says so.
    #[test]
    fn a_full_window_refuses_until_an_entry_is_retired() {
        let window = SendWindow::new(3, 1, 0);
        for n in 0..3 {
            assert_eq!(window.append(&entry(n), [].into_iter()), Ok(n));
        }
        assert_eq!(window.append(&entry(3), [].into_iter()), Err(Refused::Full));
        window.mark_handed(3);
        window.retire(1);
        assert_eq!(window.append(&entry(3), [].into_iter()), Ok(3));
        assert_eq!(window.state(1), State::Retired);
        assert_eq!(window.state(2), State::Handed);
        assert_eq!(window.state(3), State::Appended);
        assert_eq!(window.state(4), State::Future);
    }

    /// Promise: nothing of an earlier request is left in the slot that a later one takes.
    #[test]
    fn a_slot_forgets_what_it_held() {
        let window = SendWindow::new(1, 1, 8);
        let datagram = SendEntry { qkey: 77, rkey: 5, ..entry(1) };
        assert_eq!(window.entry(window.append(&datagram, [].into_iter()).unwrap()), datagram);
        window.mark_handed(1);
        window.retire(0);
        assert_eq!(window.entry(window.append(&entry(2), [].into_iter()).unwrap()), entry(2));
    }

    #[test]
    fn sizes_beyond_the_window_are_refused_and_change_nothing() {
        let window = SendWindow::new(2, 1, 4);
        let two = [Element::default(); 2];
        assert_eq!(window.append(&entry(0), two.into_iter()), Err(Refused::TooManyElements));
        let long: [&[u8]; 2] = [b"abc", b"de"];
        assert_eq!(window.append_inline(&entry(0), long.into_iter()), Err(Refused::InlineTooLong));
        assert_eq!(window.appended(), 0);
    }

    #[test]
    fn a_window_of_no_depth_takes_nothing() {
        let window = SendWindow::new(0, 1, 0);
        assert_eq!(window.append(&entry(0), [].into_iter()), Err(Refused::Full));
    }

    proptest! {
        /// Promise: inline payload is copied whole, however it is cut into pieces.
        #[test]
        fn inline_pieces_are_joined(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..20), 0..6))
        {
            let window = SendWindow::new(1, 1, 120);
            let seq = window.append_inline(&entry(0), pieces.iter().map(Vec::as_slice)).unwrap();
            prop_assert_eq!(window.inline_bytes(seq), pieces.concat());
        }

        /// Promise: entries leave in the order in which they came, none twice and none lost,
        /// across any mixture of appends, hand-overs and completions.
        #[test]
        fn a_window_behaves_as_a_queue(depth in 1u32..9, steps in proptest::collection::vec(0u8..4, 0..400)) {
            let window = SendWindow::new(depth, 1, 0);
            let mut model: VecDeque<u64> = VecDeque::new();
            let mut next = 0;
            for step in steps {
                match step {
                    0 | 1 => {
                        let answer = window.append(&entry(next * 3), [].into_iter());
                        if model.len() < depth as usize {
                            prop_assert_eq!(answer, Ok(next));
                            model.push_back(next * 3);
                            next += 1;
                        } else {
                            prop_assert_eq!(answer, Err(Refused::Full));
                        }
                    }
                    2 => window.mark_handed(window.appended()),
                    _ => if window.retired() < window.handed() {
                        let last = window.handed() - 1;
                        prop_assert_eq!(window.expand(last as u32 & 0x7fff_ffff), Some(last));
                        while window.retired() <= last {
                            let seq = window.retired();
                            prop_assert_eq!(Some(window.wr_id(seq)), model.pop_front());
                            window.retire(seq);
                        }
                    }
                }
                prop_assert_eq!(window.appended() - window.retired(), model.len() as u64);
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::mpsc;

    /// Promise: a poller that was told of a completion reads the entry that was posted, while
    /// the poster reuses the slots that it freed.
    #[test]
    fn producer_and_consumer_need_no_lock() {
        loom::model(|| {
            let window = Arc::new(SendWindow::new(1, 1, 0));
            let (device, completions) = mpsc::channel();
            let consumer = {
                let window = Arc::clone(&window);
                loom::thread::spawn(move || {
                    for expected in 0..2u64 {
                        let low: u32 = completions.recv().unwrap();
                        let seq = window.expand(low).expect("a completion names an entry");
                        assert_eq!(window.wr_id(seq), 100 + expected);
                        window.retire(seq);
                    }
                })
            };
            for n in 0..2u64 {
                let entry = SendEntry { wr_id: 100 + n, ..SendEntry::empty() };
                let seq = loop {
                    match window.append(&entry, [].into_iter()) {
                        Ok(seq) => break seq,
                        Err(_) => loom::thread::yield_now(),
                    }
                };
                window.mark_handed(seq + 1);
                device.send(seq as u32).unwrap();
            }
            consumer.join().unwrap();
        });
    }
}
