//! The window of a shared receive queue.
//!
//! Its receives complete in any order, through as many completion queues as there are queue
//! pairs on it. So there is no counter to retire: each receive has a slot, and a list of free
//! slots goes round. The list is a stack of indices whose head carries a tag that grows with
//! every change, so that a slow popper is not fooled by a slot that went and came back.

use crate::entry::{Element, RecvEntry, Refused};
use crate::recv::Receives;
use crate::ring::{MAX_DEPTH, pair, unpair};
use crate::sync::{AtomicU32, AtomicU64, Ordering, zeroed};

/// No slot.
const NONE: u32 = u32::MAX;
/// Order of a slot that is not in use.
const FREE: u64 = 0;

/// The receives of a virtual shared receive queue. All methods may be called from any thread;
/// receives are posted under the queue's lock, so that [`SharedRecvWindow::order`] is the order of posting.
pub struct SharedRecvWindow {
    receives: Receives,
    /// For each slot the place in the order of posting, from 1; [`FREE`] where it is not in use.
    orders: Box<[AtomicU64]>,
    next_free: Box<[AtomicU32]>,
    /// First free slot, and the tag.
    free: AtomicU64,
    posted: AtomicU64,
    depth: u32,
}

impl SharedRecvWindow {
    /// A window for `depth` receives of at most `max_elements` elements.
    ///
    /// # Panics
    /// Where `depth` exceeds 2²⁴.
    #[must_use]
    pub fn new(depth: u32, max_elements: u8) -> Self {
        assert!(depth <= MAX_DEPTH, "a window of {depth} entries; the most is {MAX_DEPTH}");
        let next = |i: u32| if i + 1 < depth { i + 1 } else { NONE };
        SharedRecvWindow {
            receives: Receives::new(depth as usize, max_elements),
            orders: zeroed(depth as usize),
            next_free: (0..depth).map(|i| AtomicU32::new(next(i))).collect(),
            free: AtomicU64::new(pair(if depth > 0 { 0 } else { NONE }, 0)),
            posted: AtomicU64::new(0),
            depth,
        }
    }

    /// The same again, for a simulated world that is copied.
    pub(crate) fn copy(&self) -> Self {
        let word = |word: &AtomicU64| AtomicU64::new(word.load(Ordering::Relaxed));
        let index = |index: &AtomicU32| AtomicU32::new(index.load(Ordering::Relaxed));
        SharedRecvWindow {
            receives: self.receives.copy(),
            orders: self.orders.iter().map(word).collect(),
            next_free: self.next_free.iter().map(index).collect(),
            free: word(&self.free),
            posted: word(&self.posted),
            depth: self.depth,
        }
    }

    /// Adds a receive, and returns its slot.
    ///
    /// # Errors
    /// [`Refused::Full`], [`Refused::TooManyElements`]; nothing has changed then.
    pub fn append<I>(&self, wr_id: u64, elements: I) -> Result<u32, Refused>
    where
        I: ExactSizeIterator<Item = Element>,
    {
        self.receives.fits(elements.len())?;
        let slot = self.pop().ok_or(Refused::Full)?;
        self.receives.store(slot as usize, wr_id, elements);
        let order = self.posted.fetch_add(1, Ordering::Relaxed) + 1;
        self.orders[slot as usize].store(order, Ordering::Release);
        Ok(slot)
    }

    /// Takes the receive in `slot` out of the window and returns it; `None` where the slot does
    /// not exist or holds none, as when a completion names a receive for the second time.
    pub fn retire(&self, slot: u32) -> Option<RecvEntry> {
        let order = self.orders.get(slot as usize)?;
        if order.load(Ordering::Acquire) == FREE {
            return None;
        }
        let entry = self.receives.entry(slot as usize);
        // Of two that retire the same slot at once only one succeeds.
        if order.swap(FREE, Ordering::AcqRel) == FREE {
            return None;
        }
        self.push(slot);
        Some(entry)
    }

    /// The receive in `slot`, or `None` where there is none.
    #[must_use]
    pub fn entry(&self, slot: u32) -> Option<RecvEntry> {
        self.order(slot).map(|_| self.receives.entry(slot as usize))
    }

    /// Element `index` of the receive in `slot`.
    ///
    /// # Panics
    /// Where either is beyond what the window was made for.
    #[must_use]
    pub fn element(&self, slot: u32, index: usize) -> Element {
        self.receives.element(slot as usize, index)
    }

    /// The place of the receive in `slot` in the order of posting, or `None` where there is none.
    #[must_use]
    pub fn order(&self, slot: u32) -> Option<u64> {
        let order = self.orders.get(slot as usize)?.load(Ordering::Acquire);
        (order != FREE).then_some(order)
    }

    /// Most receives in the window.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.depth
    }

    fn pop(&self) -> Option<u32> {
        let mut head = self.free.load(Ordering::Acquire);
        loop {
            let (slot, tag) = unpair(head);
            if slot == NONE {
                return None;
            }
            let next = self.next_free[slot as usize].load(Ordering::Relaxed);
            let new = pair(next, tag.wrapping_add(1));
            match self.free.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(slot),
                Err(found) => head = found,
            }
        }
    }

    fn push(&self, slot: u32) {
        let mut head = self.free.load(Ordering::Relaxed);
        loop {
            let (first, tag) = unpair(head);
            self.next_free[slot as usize].store(first, Ordering::Relaxed);
            let new = pair(slot, tag.wrapping_add(1));
            match self.free.compare_exchange_weak(head, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => head = found,
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Promise: a receive is consumed exactly once, whichever queue pair consumes it.
        #[test]
        fn receives_leave_once_in_any_order(
            depth in 0u32..6, steps in proptest::collection::vec((any::<bool>(), 0u32..8), 0..200),
        ) {
            let window = SharedRecvWindow::new(depth, 1);
            let mut model: HashMap<u32, u64> = HashMap::new();
            for (n, (post, slot)) in steps.into_iter().enumerate() {
                let wr_id = n as u64;
                if post {
                    match window.append(wr_id, [].into_iter()) {
                        Ok(slot) => prop_assert_eq!(model.insert(slot, wr_id), None),
                        Err(why) => {
                            prop_assert_eq!(why, Refused::Full);
                            prop_assert_eq!(model.len(), depth as usize);
                        }
                    }
                } else {
                    prop_assert_eq!(window.retire(slot).map(|e| e.wr_id), model.remove(&slot));
                }
            }
        }
    }

    /// Promise: the order of posting is known, so that receives can be posted again in it.
    #[test]
    fn the_order_of_posting_is_kept() {
        let window = SharedRecvWindow::new(2, 1);
        let a = window.append(1, [].into_iter()).unwrap();
        let b = window.append(2, [].into_iter()).unwrap();
        window.retire(a).unwrap();
        let c = window.append(3, [].into_iter()).unwrap();
        assert_eq!(a, c, "the slot was used again");
        assert!(window.order(b) < window.order(c));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Promise: two pollers that retire at once, and a poster, never share a slot.
    #[test]
    fn slots_are_handed_out_once() {
        loom::model(|| {
            let window = Arc::new(SharedRecvWindow::new(2, 1));
            let first = window.append(1, [].into_iter()).unwrap();
            let second = window.append(2, [].into_iter()).unwrap();
            let poller = {
                let window = Arc::clone(&window);
                loom::thread::spawn(move || assert_eq!(window.retire(first).unwrap().wr_id, 1))
            };
            assert_eq!(window.retire(second).unwrap().wr_id, 2);
            let again = window.append(3, [].into_iter()).unwrap();
            poller.join().unwrap();
            let last = window.append(4, [].into_iter()).unwrap();
            assert_ne!(again, last);
            assert!(window.append(5, [].into_iter()).is_err());
        });
    }
}
