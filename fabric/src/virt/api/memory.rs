//! Memory regions that own their memory.
//!
//! A region that borrowed a buffer could not be sound: `mem::forget` of the region would end
//! the borrow while the device goes on writing. So memory comes from the region itself, is
//! handed out by copy or as atomics, and is unmapped after deregistration, or never.

use crate::abi;
use crate::device::{DeviceMr, DevicePd};
use crate::error::{Error, Result};
use crate::virt::mapping::anonymous;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A piece of a peer's registered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Address in the peer's address space.
    pub addr: u64,
    /// Remote key.
    pub rkey: u32,
}

impl Remote {
    /// The same memory `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Remote { addr: self.addr.wrapping_add(bytes), ..self }
    }
}

/// Registered memory. All access is by offset, checked, and atomic, because peers and devices
/// may write it at any moment; words are little endian as the machine has them.
///
/// Dropping it deregisters, then unmaps. Where deregistration fails the mapping is left in place
/// for good, since a device may still write to it.
pub struct MemoryRegion {
    mr: Arc<dyn DeviceMr>,
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to the region alone, and every access to it goes through atomics.
unsafe impl Send for MemoryRegion {}
// SAFETY: as above: shared access is atomic.
unsafe impl Sync for MemoryRegion {}

impl MemoryRegion {
    pub(super) fn new(pd: &Arc<dyn DevicePd>, length: usize, access: u32) -> Result<Self> {
        if length == 0 {
            return Err(Error::invalid("a memory region of 0 bytes: at least 1 is needed"));
        }
        let base = anonymous(length, format_args!("mapping {length} bytes"))?;
        // SAFETY: the mapping lives until the region has been deregistered, and is accessed with
        // atomics alone.
        let mr = match unsafe { Arc::clone(pd).reg_mr(base.as_ptr().cast(), length, access) } {
            Ok(mr) => mr,
            Err(error) => {
                // SAFETY: mapped above with this length, and registered nowhere.
                unsafe { libc::munmap(base.as_ptr().cast(), length) };
                return Err(error);
            }
        };
        Ok(MemoryRegion { mr, base, length })
    }

    /// A region whose memory is mapped, and registered as `mr`, already.
    ///
    /// # Safety
    /// As [`ProtectionDomain::adopt`](super::ProtectionDomain::adopt).
    pub(super) unsafe fn over(mr: Arc<dyn DeviceMr>, base: NonNull<u8>, length: usize) -> Self {
        MemoryRegion { mr, base, length }
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Address of the first byte.
    #[must_use]
    #[inline]
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Pointer to the first byte, for code that keeps to atomic or volatile access itself.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Local key.
    #[must_use]
    #[inline]
    pub fn lkey(&self) -> u32 {
        self.mr.lkey()
    }

    /// Remote key.
    #[must_use]
    #[inline]
    pub fn rkey(&self) -> u32 {
        self.mr.rkey()
    }

    /// The gather or scatter element of a range of bytes.
    ///
    /// # Panics
    /// Where the range is not within the region, or longer than 4 GiB.
    #[must_use]
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> abi::Sge {
        self.check(range.start, range.len());
        abi::Sge {
            addr: self.addr() + range.start as u64,
            length: u32::try_from(range.len()).expect("an element has at most 4 GiB"),
            lkey: self.lkey(),
        }
    }

    /// What a peer needs to name the byte at `offset`.
    ///
    /// # Panics
    /// Where `offset` is beyond the region.
    #[must_use]
    #[inline]
    pub fn remote(&self, offset: usize) -> Remote {
        self.check(offset, 0);
        Remote { addr: self.addr() + offset as u64, rkey: self.rkey() }
    }

    /// Copies bytes out of the region.
    ///
    /// # Panics
    /// Where the range is not within the region.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        let (head, words) = self.split(offset, into.len());
        let (first, rest) = into.split_at_mut(head);
        for (i, byte) in first.iter_mut().enumerate() {
            *byte = self.byte(offset + i).load(Ordering::Relaxed);
        }
        let (middle, last) = rest.split_at_mut(words * 8);
        for (i, chunk) in middle.chunks_exact_mut(8).enumerate() {
            let word = self.word(offset + head + i * 8).load(Ordering::Relaxed);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        for (i, byte) in last.iter_mut().enumerate() {
            *byte = self.byte(offset + head + words * 8 + i).load(Ordering::Relaxed);
        }
    }

    /// Copies bytes into the region.
    ///
    /// # Panics
    /// Where the range is not within the region.
    pub fn write(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len());
        let (head, words) = self.split(offset, from.len());
        let (first, rest) = from.split_at(head);
        for (i, byte) in first.iter().enumerate() {
            self.byte(offset + i).store(*byte, Ordering::Relaxed);
        }
        let (middle, last) = rest.split_at(words * 8);
        for (i, chunk) in middle.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(chunk.try_into().expect("chunks of 8"));
            self.word(offset + head + i * 8).store(word, Ordering::Relaxed);
        }
        for (i, byte) in last.iter().enumerate() {
            self.byte(offset + head + words * 8 + i).store(*byte, Ordering::Relaxed);
        }
    }

    /// The 8-byte word at `offset` as an atomic: to watch what a peer writes, or is told to.
    ///
    /// # Panics
    /// Where `offset` is not a multiple of 8, or the word not within the region.
    #[must_use]
    #[inline]
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8), "offset {offset} is not a multiple of 8");
        self.word(offset)
    }

    /// Deregisters now, to hear whether it worked; dropping does the same.
    ///
    /// # Errors
    /// As [`DeviceMr::dereg`].
    pub fn deregister(self) -> Result<()> {
        self.mr.dereg()
    }

    #[inline]
    fn check(&self, offset: usize, length: usize) {
        assert!(
            offset.checked_add(length).is_some_and(|end| end <= self.length),
            "bytes {offset}..+{length} are not within a region of {} bytes",
            self.length
        );
    }

    /// Bytes before the first aligned word of a range, and the number of whole words after them.
    fn split(&self, offset: usize, length: usize) -> (usize, usize) {
        let head = offset.next_multiple_of(8).saturating_sub(offset).min(length);
        (head, (length - head) / 8)
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        debug_assert!(offset < self.length);
        // SAFETY: within the mapping (the callers checked), which outlives `self`.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) }
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU64 {
        debug_assert!(offset + 8 <= self.length && offset.is_multiple_of(8));
        // SAFETY: within the mapping (the callers checked), which outlives `self`; aligned,
        // because the mapping is page aligned and the offset a multiple of 8.
        unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset).cast()) }
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        match self.mr.dereg() {
            Ok(()) => {
                // SAFETY: mapped by `new` with this length; no device touches it any more.
                unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
            }
            Err(error) => {
                tracing::warn!("{} bytes at {:#x} stay mapped: {error}", self.length, self.addr())
            }
        }
    }
}
