//! The atomics of this crate: loom's when its model checker runs, else the standard ones.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
// Of the producer alone: there is nothing for loom to find.
pub(crate) use std::sync::Mutex;

/// `n` words of zero.
pub(crate) fn zeroed(n: usize) -> Box<[AtomicU64]> {
    (0..n).map(|_| AtomicU64::new(0)).collect()
}
