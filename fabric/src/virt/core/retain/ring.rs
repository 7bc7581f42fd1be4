//! The ring of a protection domain.

use super::{Retention, Store};
use crate::device::DeviceMr;
use crate::error::{Error, Result};
use crate::virt::core::mr::VirtualMr;
use crate::virt::core::pd::PdCore;
use crate::virt::mapping::anonymous;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory of the process's own.
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is memory, and every access to it says itself why it may.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(length: usize) -> Result<Self> {
        let doing = format_args!("mapping {length} bytes of message log");
        let base = anonymous(length, doing)?;
        // On large pages, and touched now, as most devices do when they pin it, rather than by whoever posts
        // first. Where the kernel has neither it does without.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_POPULATE_WRITE] {
            // SAFETY: the mapping made just now.
            unsafe { libc::madvise(base.as_ptr().cast(), length, advice) };
        }
        Ok(Mapping { base, length })
    }

    /// The byte at that offset.
    ///
    /// # Panics
    /// Where `length` bytes from there are not within.
    pub(super) fn at(&self, offset: u64, length: u64) -> *mut u8 {
        let end = offset.checked_add(length);
        assert!(end.is_some_and(|end| end <= self.length as u64), "a place beyond the ring");
        // SAFETY: within the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; whoever registered it has seen to it that no device
        // knows it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A store whose ring is registered in a domain. Held by the domain that the program has, and by its queue
/// pairs; the store stays longer, with the context, as long as something is kept there.
pub(in crate::virt::core) struct Ring {
    mr: Arc<VirtualMr>,
    pub(in crate::virt::core) store: Arc<Store>,
}

impl Ring {
    /// A ring for the queue pairs of `pd`.
    ///
    /// # Errors
    /// Where the memory cannot be had, or not be registered, or the spill file not be made.
    pub(in crate::virt::core) fn new(pd: &Arc<PdCore>, retention: &Retention) -> Result<Self> {
        let Retention::Payload { bytes, spill, .. } = retention else {
            return Err(Error::invalid("a message log where none is wanted"));
        };
        let mapping = Mapping::new(*bytes)?;
        let base = mapping.base.as_ptr().cast::<c_void>();
        let store = Store::new(mapping, *bytes as u64, spill)?;
        // Read by our own device alone.
        let flags = 0;
        // SAFETY: the mapping lives as long as the store, which `Ring::drop` holds beyond deregistration.
        let mr = unsafe { VirtualMr::register(pd, base, *bytes, flags) }.map_err(|error| {
            error.context(format_args!(
                "a message log of {bytes} bytes cannot be registered ({} says how large it is)",
                Retention::BYTES_VARIABLE
            ))
        })?;
        let mr = Arc::new(mr);
        pd.context.mrs.add(&mr);
        Ok(Ring { mr, store })
    }

    /// How requests name it.
    pub(in crate::virt::core) fn lkey(&self) -> u32 {
        self.mr.lkey()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(error) = self.mr.dereg() {
            tracing::warn!("a message log stays mapped: {error}");
            // A device may still read it.
            std::mem::forget(Arc::clone(&self.store));
        }
    }
}
