//! A shared object of the device, with its address at hand.
//!
//! An `Arc<dyn Trait>` must read the alignment of what it holds before it finds it; on the way of
//! every request that is worth sparing.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

/// An `Arc` and the address in it.
pub(super) struct Direct<T: ?Sized> {
    at: NonNull<T>,
    owner: Arc<T>,
}

impl<T: ?Sized> Direct<T> {
    pub(super) fn new(owner: Arc<T>) -> Self {
        Direct { at: NonNull::from(&*owner), owner }
    }

    /// The `Arc`.
    pub(super) fn arc(&self) -> &Arc<T> {
        &self.owner
    }
}

impl<T: ?Sized> Deref for Direct<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: `owner` holds it.
        unsafe { self.at.as_ref() }
    }
}

// SAFETY: it is an `Arc`.
unsafe impl<T: ?Sized + Send + Sync> Send for Direct<T> {}
// SAFETY: it is an `Arc`.
unsafe impl<T: ?Sized + Send + Sync> Sync for Direct<T> {}
