//! Who sent a datagram: from the physical names in a completion to the virtual ones.
//!
//! A process that wants to send datagrams to a queue pair of ours asks what its number stands
//! for, and tells of its own in the same breath, so the way back is here before its first datagram.
//! Entries are never removed: a physical number that is dealt again is learned again, and its entry
//! changes in place. So a reader needs no lock: an entry's key is written once, before it is marked,
//! and its value is one word.

use super::lock_mutex;
use crate::names::{PhysicalEnd, ProcessId};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

/// Slots of the first table. A power of two.
const FIRST_SLOTS: usize = 64;
/// Senders that are remembered: 2²⁰ of them take 80 MB, and a process receives from fewer.
const MAX_SENDERS: usize = 1 << 20;

/// Where a datagram came from, physically: the queue pair number, and the LID or the GID.
#[derive(Clone, Copy, PartialEq, Eq)]
struct From([u64; 3]);

impl From {
    fn lid(qpn: u32, lid: u16) -> Self {
        From([u64::from(qpn), u64::from(lid), 0])
    }

    fn gid(qpn: u32, gid: [u8; 16]) -> Self {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| gid[at + i]));
        // The bit tells it from a LID.
        From([u64::from(qpn) | 1 << 32, word(0), word(8)])
    }

    fn hash(self) -> usize {
        let mix =
            |h: u64, word: u64| (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        self.0.into_iter().fold(0, mix) as usize
    }
}

#[derive(Default)]
struct Slot {
    used: AtomicBool,
    key: [AtomicU64; 3],
    /// Process number (upper half), virtual queue pair number.
    value: AtomicU64,
}

impl Slot {
    fn key(&self) -> From {
        From(std::array::from_fn(|i| self.key[i].load(Ordering::Relaxed)))
    }
}

struct Table {
    slots: Box<[Slot]>,
}

impl Table {
    fn boxed(slots: usize) -> *mut Table {
        let slots = (0..slots).map(|_| Slot::default()).collect();
        Box::into_raw(Box::new(Table { slots }))
    }

    /// The slot of `from`, or the free one where it belongs.
    fn find(&self, from: From) -> &Slot {
        let mask = self.slots.len() - 1;
        let mut at = from.hash() & mask;
        loop {
            let slot = &self.slots[at];
            if !slot.used.load(Ordering::Acquire) || slot.key() == from {
                return slot;
            }
            at = (at + 1) & mask;
        }
    }

    /// True where the slot is new.
    fn put(&self, from: From, value: u64) -> bool {
        let slot = self.find(from);
        slot.value.store(value, Ordering::Release);
        let new = !slot.used.load(Ordering::Relaxed);
        if new {
            for (word, value) in slot.key.iter().zip(from.0) {
                word.store(value, Ordering::Relaxed);
            }
            slot.used.store(true, Ordering::Release);
        }
        new
    }
}

struct Writer {
    used: usize,
    /// Every table there was, for readers that are still in one; each twice as large as the one
    /// before, so that all together are no larger than twice the last.
    tables: Vec<*mut Table>,
}

// SAFETY: the pointers are to tables of atomics that live as long as the `ReverseTable`.
unsafe impl Send for Writer {}

/// The senders that are known.
pub(super) struct ReverseTable {
    current: AtomicPtr<Table>,
    writer: Mutex<Writer>,
}

impl ReverseTable {
    pub(super) fn new() -> Self {
        let first = Table::boxed(FIRST_SLOTS);
        ReverseTable {
            current: AtomicPtr::new(first),
            writer: Mutex::new(Writer { used: 0, tables: vec![first] }),
        }
    }

    fn table(&self) -> &Table {
        // SAFETY: tables live as long as `self`.
        unsafe { &*self.current.load(Ordering::Acquire) }
    }

    /// The sender of a datagram: by its GID where there is a GRH, else by its LID.
    pub(super) fn find(
        &self,
        qpn: u32,
        lid: u16,
        gid: Option<[u8; 16]>,
    ) -> Option<(ProcessId, u32)> {
        let from = match gid {
            Some(gid) => From::gid(qpn, gid),
            None => From::lid(qpn, lid),
        };
        let slot = self.table().find(from);
        if !slot.used.load(Ordering::Acquire) {
            return None;
        }
        let value = slot.value.load(Ordering::Acquire);
        Some((ProcessId((value >> 32) as u32), value as u32))
    }

    /// What comes from `end` is from queue pair `qpn` of `process`, whose virtual GID is `gid`.
    ///
    /// It is found by that GID, too: where a program lets datagrams arrive one over the other, a
    /// header that has been renamed already is the one in front of the next.
    pub(super) fn learn(&self, end: &PhysicalEnd, qpn: u32, process: ProcessId, gid: [u8; 16]) {
        let value = u64::from(process.0) << 32 | u64::from(qpn);
        let mut writer = lock_mutex(&self.writer);
        if writer.used >= MAX_SENDERS {
            tracing::error!(
                "more than {MAX_SENDERS} senders of datagrams; those of {process} keep their \
                 physical names"
            );
            return;
        }
        let by_lid = (end.lid != 0).then(|| From::lid(end.qpn, end.lid));
        let by_gid = [end.gid, gid].map(|gid| From::gid(end.qpn, gid));
        for from in by_lid.into_iter().chain(by_gid) {
            // At most half full, so that searches are short, and end.
            if (writer.used + 1) * 2 > self.table().slots.len() {
                self.grow(&mut writer);
            }
            writer.used += usize::from(self.table().put(from, value));
        }
    }

    fn grow(&self, writer: &mut Writer) {
        let old = self.table();
        let new = Table::boxed(old.slots.len() * 2);
        writer.tables.push(new);
        for slot in &old.slots {
            if slot.used.load(Ordering::Relaxed) {
                // SAFETY: just made, and alive as long as `self`.
                unsafe { &*new }.put(slot.key(), slot.value.load(Ordering::Relaxed));
            }
        }
        self.current.store(new, Ordering::Release);
    }
}

impl Drop for ReverseTable {
    fn drop(&mut self) {
        for table in lock_mutex(&self.writer).tables.drain(..) {
            // SAFETY: it came from `Box::into_raw`, once, and nobody reads it any more.
            drop(unsafe { Box::from_raw(table) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::DeviceId;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn end(qpn: u32, lid: u16, host: u8) -> PhysicalEnd {
        let (device, mtu, link_layer) = (DeviceId(0), 5, 1);
        PhysicalEnd { device, lid, gid: [host; 16], qpn, mtu, link_layer, word: None }
    }

    fn virtual_gid(process: u32) -> [u8; 16] {
        [0x80 + process as u8; 16]
    }

    proptest! {
        /// Promise: a datagram is from the process that has its physical names now.
        #[test]
        fn senders_are_found_by_lid_and_by_either_gid(
            steps in prop::collection::vec((0u32..40, 0u16..4, 1u32..9, 2u32..99), 0..300),
        ) {
            let table = ReverseTable::new();
            let (mut lids, mut gids, mut renamed) =
                (HashMap::new(), HashMap::new(), HashMap::new());
            for (physical, lid, process, qpn) in steps {
                let host = lid as u8 + 1;
                let from = end(physical, lid, host);
                table.learn(&from, qpn, ProcessId(process), virtual_gid(process));
                gids.insert((physical, host), (ProcessId(process), qpn));
                renamed.insert((physical, process), (ProcessId(process), qpn));
                if lid != 0 {
                    lids.insert((physical, lid), (ProcessId(process), qpn));
                }
            }
            for physical in 0..41 {
                for lid in 0..5 {
                    let host = lid as u8 + 1;
                    let expected = lids.get(&(physical, lid)).copied();
                    prop_assert_eq!(table.find(physical, lid, None), expected);
                    let expected = gids.get(&(physical, host)).copied();
                    prop_assert_eq!(table.find(physical, lid, Some([host; 16])), expected);
                }
                for process in 1..10 {
                    let expected = renamed.get(&(physical, process)).copied();
                    let found = table.find(physical, 0, Some(virtual_gid(process)));
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
