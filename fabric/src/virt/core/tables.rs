//! Tables of names: virtual name in, physical name out, in a load and a comparison.
//!
//! An entry is one word: the whole virtual name in its upper half, the physical one in its lower
//! half. So a reader needs no lock, and a name of another generation never matches. An empty entry
//! holds a name that belongs elsewhere.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Keys that one process may have at a time. (The format allows 2²⁴.)
pub(super) const MAX_KEYS: u32 = 1 << 20;
/// Queue pairs that one process may have at a time: a QPN is 16 bits of index below 8 of generation.
pub(super) const MAX_QPS: u32 = 1 << 16;

/// The index of a key: its upper 24 bits.
#[inline]
pub(super) fn key_index(key: u32) -> usize {
    (key >> 8) as usize
}

/// The index of a queue pair number: its lower 16 bits.
#[inline]
pub(super) fn qpn_index(qpn: u32) -> usize {
    (qpn & (MAX_QPS - 1)) as usize
}

#[inline]
fn entry(name: u32, value: u32) -> u64 {
    u64::from(name) << 32 | u64::from(value)
}

#[inline]
fn matching(entry: u64, name: u32) -> Option<u32> {
    ((entry >> 32) as u32 == name).then_some(entry as u32)
}

/// The empty entry of an index. It is 0, as fresh memory is, but where the name 0 would be.
#[inline]
fn empty(index: usize) -> u64 {
    if index == 0 { u64::MAX } else { 0 }
}

/// `n` words of zero that take no memory until they are written: the allocator asks the kernel for
/// zeroed pages.
fn zeroed(n: usize) -> Box<[AtomicU64]> {
    let words = Box::into_raw(vec![0u64; n].into_boxed_slice());
    // SAFETY: `AtomicU64` has the size and bit validity of `u64`, and on the 64-bit machines that
    // this crate is for its alignment, too (asserted below); the box was just taken apart.
    unsafe { Box::from_raw(words as *mut [AtomicU64]) }
}
const _: () = assert!(align_of::<AtomicU64>() == align_of::<u64>());

/// Our own keys on one device: flat, because this is looked at for every element of every request.
/// A clone is another handle of the same table.
#[derive(Clone)]
pub(super) struct KeyTable {
    at: NonNull<KeyEntries>,
    #[allow(
        clippy::redundant_allocation,
        reason = "an Arc made of the box would copy its 8 MB, and so touch them"
    )]
    _owner: Arc<Box<KeyEntries>>,
}

// Of a size that is known where it is indexed.
type KeyEntries = [AtomicU64; MAX_KEYS as usize];

// SAFETY: it is an `Arc` of atomics, and where they are.
unsafe impl Send for KeyTable {}
// SAFETY: as above.
unsafe impl Sync for KeyTable {}

impl KeyTable {
    pub(super) fn new() -> Self {
        let entries: Box<KeyEntries> =
            zeroed(MAX_KEYS as usize).try_into().unwrap_or_else(|_| unreachable!("of that size"));
        entries[0].store(empty(0), Ordering::Relaxed);
        let owner = Arc::new(entries);
        KeyTable { at: NonNull::from(&**owner), _owner: owner }
    }

    #[inline]
    fn entries(&self) -> &KeyEntries {
        // SAFETY: the owner holds them.
        unsafe { self.at.as_ref() }
    }

    /// What `key` stands for on this device.
    #[inline]
    pub(super) fn get(&self, key: u32) -> Option<u32> {
        // An index beyond the table meets another's entry, which holds another name.
        let index = key_index(key) % MAX_KEYS as usize;
        matching(self.entries()[index].load(Ordering::Acquire), key)
    }

    /// `key` stands for `value` from now on.
    pub(super) fn set(&self, key: u32, value: u32) {
        self.entries()[key_index(key)].store(entry(key, value), Ordering::Release);
    }

    /// `key` stands for nothing any more.
    pub(super) fn unset(&self, key: u32) {
        // Only this very name: another generation may have moved in.
        let old = &self.entries()[key_index(key)];
        let _ = old.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            matching(word, key).map(|_| empty(key_index(key)))
        });
    }
}

/// Entries on one page: 4 KiB.
const PAGE: usize = 512;
type Page = [AtomicU64; PAGE];

/// What stands in place of a page that nothing was put on: whoever looks a name up has one case
/// less to think of. Its first entry serves as that of index 0 does.
static NO_PAGE: Page = {
    let mut page = [const { AtomicU64::new(0) }; PAGE];
    page[0] = AtomicU64::new(u64::MAX);
    page
};

fn no_page() -> *mut Page {
    (&raw const NO_PAGE).cast_mut()
}

/// Names of which few are known: pages come as they are needed.
pub(super) struct PagedTable<const PAGES: usize> {
    // Of a size that is known where it is indexed.
    pages: Box<[AtomicPtr<Page>; PAGES]>,
    writer: Mutex<()>,
}

/// Keys of a peer on one of its devices.
pub(super) type PeerKeys = PagedTable<{ MAX_KEYS as usize / PAGE }>;
/// Queue pair numbers of a peer.
pub(super) type PeerQpns = PagedTable<{ MAX_QPS as usize / PAGE }>;
/// A device's own queue pair numbers.
pub(super) type DeviceQpns = PagedTable<{ (1 << 24) / PAGE }>;

impl<const PAGES: usize> PagedTable<PAGES> {
    pub(super) fn new() -> Self {
        let pages: Box<[_]> = (0..PAGES).map(|_| AtomicPtr::new(no_page())).collect();
        let pages = pages.try_into().unwrap_or_else(|_| unreachable!("as many as made"));
        PagedTable { pages, writer: Mutex::new(()) }
    }

    /// What `name`, of index `index`, stands for.
    #[inline]
    pub(super) fn get(&self, index: usize, name: u32) -> Option<u32> {
        // An index beyond the table meets another's entry, which holds another name.
        let page = self.pages[index / PAGE % PAGES].load(Ordering::Acquire);
        // SAFETY: a page, once there, stays until the table is dropped; so does the static one.
        let page = unsafe { &*page };
        matching(page[index % PAGE].load(Ordering::Acquire), name)
    }

    /// `name`, of index `index`, stands for `value` from now on. False where the index is beyond
    /// the table: a peer's mistake.
    #[must_use]
    pub(super) fn set(&self, index: usize, name: u32, value: u32) -> bool {
        let Some(slot) = self.pages.get(index / PAGE) else { return false };
        let _writer = super::lock_mutex(&self.writer);
        let mut page = slot.load(Ordering::Acquire);
        if page == no_page() {
            let fresh = Box::new([const { AtomicU64::new(0) }; PAGE]);
            if index < PAGE {
                fresh[0].store(empty(0), Ordering::Relaxed);
            }
            page = Box::into_raw(fresh);
            slot.store(page, Ordering::Release);
        }
        // SAFETY: as in `get`; it is one of ours.
        let page = unsafe { &*page };
        page[index % PAGE].store(entry(name, value), Ordering::Release);
        true
    }

    /// `name`, of index `index`, does not stand for `value` any more; where it stands for
    /// something else by now, that stays.
    pub(super) fn unset(&self, index: usize, name: u32, value: u32) {
        let Some(slot) = self.pages.get(index / PAGE) else { return };
        let page = slot.load(Ordering::Acquire);
        if page != no_page() {
            // SAFETY: as in `get`; it is one of ours.
            let slot = unsafe { &(&*page)[index % PAGE] };
            let (old, empty) = (entry(name, value), empty(index));
            let _ = slot.compare_exchange(old, empty, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// No name stands for anything any more.
    pub(super) fn clear(&self) {
        let _writer = super::lock_mutex(&self.writer);
        for (number, slot) in self.pages.iter().enumerate() {
            let page = slot.load(Ordering::Acquire);
            if page != no_page() {
                // SAFETY: as in `get`; it is one of ours.
                let page = unsafe { &*page };
                for (i, entry) in page.iter().enumerate() {
                    entry.store(empty(number * PAGE + i), Ordering::Release);
                }
            }
        }
    }
}

impl<const PAGES: usize> Drop for PagedTable<PAGES> {
    fn drop(&mut self) {
        for slot in self.pages.iter_mut() {
            let page = *slot.get_mut();
            if page != no_page() {
                // SAFETY: it came from `Box::into_raw`, and nobody reads the table any more.
                drop(unsafe { Box::from_raw(page) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Promise: a name resolves to what it stands for, and a stale one to nothing.
        #[test]
        fn tables_hold_what_was_put_in(
            steps in prop::collection::vec((1u32..40, any::<u8>(), any::<u32>(), any::<bool>()), 0..200),
        ) {
            let (flat, paged) = (KeyTable::new(), PeerKeys::new());
            let mut model: HashMap<u32, (u32, u32)> = HashMap::new();
            for (index, generation, value, set) in steps {
                // Spread over pages.
                let index = index * 1000;
                let key = index << 8 | u32::from(generation);
                if set {
                    flat.set(key, value);
                    prop_assert!(paged.set(key_index(key), key, value));
                    model.insert(index, (key, value));
                } else {
                    flat.unset(key);
                    paged.unset(key_index(key), key, value.wrapping_add(1));
                    if let Some(held) = paged.get(key_index(key), key) {
                        paged.unset(key_index(key), key, held);
                    }
                    if model.get(&index).is_some_and(|(k, _)| *k == key) {
                        model.remove(&index);
                    }
                }
                let expected = model.get(&index).filter(|(k, _)| *k == key).map(|(_, v)| *v);
                prop_assert_eq!(flat.get(key), expected);
                prop_assert_eq!(paged.get(key_index(key), key), expected);
            }
        }

        /// Promise: a key that was never dealt, however large, resolves to nothing.
        #[test]
        fn no_key_makes_a_look_up_go_astray(
            key in prop_oneof![any::<u32>(), Just(0), Just(u32::MAX)], neighbour: u32,
        ) {
            let (flat, keys, qpns) = (KeyTable::new(), PeerKeys::new(), PeerQpns::new());
            let astray = |name| {
                let key = keys.get(key_index(name), name);
                (flat.get(name), key, qpns.get(name as usize, name)) != (None, None, None)
            };
            prop_assert!(!astray(key));
            // Another of the same place in the tables.
            let size = MAX_KEYS << 8;
            let there = (neighbour % size).max(1);
            flat.set(there, 7);
            prop_assert!(keys.set(key_index(there), there, 7));
            prop_assert!(!astray(there ^ size));
            prop_assert_eq!(qpns.set(key as usize, key.max(1), 7), key < MAX_QPS);
        }
    }
}
