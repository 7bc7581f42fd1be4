//! Shared memory between contexts: sealed memfds, mapped whole, read as atomics only.
//!
//! A memfd cannot be truncated once it is sealed, so no peer can turn an access into SIGBUS. What
//! stands in it may change at any time, or hold anything if the writer died half-way: it is
//! viewed through [`Shared`] types alone, for which every bit pattern is a value, and each
//! offset is checked against the mapping.

use crate::{Error, Result};
use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Types made of atomics, or of arrays and structs of them.
///
/// # Safety
/// Every bit pattern must be a valid value, and shared access must be sound whoever else
/// writes: no padding that is read, no plain field.
pub(super) unsafe trait Shared {}

// SAFETY: an atomic.
unsafe impl Shared for AtomicU64 {}

const SEALS: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// A memfd mapped whole, readable and writable.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only accessed as atomics
// or by the ring's own protocol.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A new sealed memfd of `len` zero bytes, and its mapping.
    pub(super) fn create(name: &CStr, len: usize) -> Result<(OwnedFd, Mapping)> {
        // SAFETY: the name is a C string.
        let fd = unsafe {
            libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
        };
        if fd < 0 {
            return Err(Error::last_os("memfd_create for the soft device's shared memory"));
        }
        // SAFETY: a descriptor just made, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain system calls on our descriptor.
        let sealed = unsafe {
            libc::ftruncate(fd.as_raw_fd(), len as libc::off_t) == 0
                && libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) == 0
        };
        if !sealed {
            return Err(Error::last_os(format!("sizing shared memory of {len} bytes")));
        }
        let mapping = Mapping::map(&fd, len)?;
        Ok((fd, mapping))
    }

    /// Maps a memfd received from a peer, if it is sealed and has exactly `len` bytes.
    pub(super) fn open(fd: &OwnedFd, len: usize) -> Result<Mapping> {
        let need = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        // SAFETY: plain system call; it fails on anything but a memfd.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & need != need {
            return Err(Error::invalid("a peer's shared memory is not a sealed memfd"));
        }
        // SAFETY: `stat` is plain data, filled by the call.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: valid descriptor and buffer.
        if unsafe { libc::fstat(fd.as_raw_fd(), &mut stat) } != 0 || stat.st_size != len as i64 {
            return Err(Error::invalid(format!(
                "a peer's shared memory has {} bytes instead of {len}: another version of Sojourn?",
                stat.st_size
            )));
        }
        Mapping::map(fd, len)
    }

    fn map(fd: &OwnedFd, len: usize) -> Result<Mapping> {
        // SAFETY: a fresh shared mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os(format!("mapping {len} bytes of shared memory")));
        }
        // Core dumps need no device rings. Failure to say so is harmless.
        // SAFETY: the range just mapped.
        unsafe { libc::madvise(base, len, libc::MADV_DONTDUMP) };
        let base = NonNull::new(base.cast()).ok_or_else(|| Error::invalid("mapped at null"))?;
        Ok(Mapping { base, len })
    }

    /// The `T` at `offset`, where it lies within the mapping and is aligned.
    #[inline]
    pub(super) fn get<T: Shared>(&self, offset: usize) -> Option<&T> {
        let end = offset.checked_add(size_of::<T>())?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: in bounds and aligned (mappings are page-aligned); `T: Shared` may be viewed
        // whatever stands there and whoever writes it.
        Some(unsafe { &*self.base.as_ptr().add(offset).cast::<T>() })
    }

    /// As [`Mapping::get`], for `count` of them.
    #[inline]
    pub(super) fn slice<T: Shared>(&self, offset: usize, count: usize) -> Option<&[T]> {
        let end = offset.checked_add(count.checked_mul(size_of::<T>())?)?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: as in `get`.
        Some(unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast::<T>(), count)
        })
    }

    /// As [`Mapping::get`], for places that the layout guarantees.
    ///
    /// # Panics
    /// Where the layout's own arithmetic is wrong.
    pub(super) fn at<T: Shared>(&self, offset: usize) -> &T {
        self.get(offset).expect("within the layout")
    }

    /// A pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// Where the layout's own arithmetic is wrong.
    pub(super) fn bytes(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "within the layout");
        // SAFETY: in bounds, as just asserted.
        unsafe { self.base.add(offset) }
    }

    /// Gives the memory of a range back to the system; it reads as zeros afterwards.
    pub(super) fn discard(&self, offset: usize, len: usize) {
        let start = offset.next_multiple_of(4096);
        let end = (offset + len) & !4095;
        if end > start && end <= self.len {
            // SAFETY: whole pages within our shared mapping; nobody holds references but to
            // atomics, which then read 0.
            unsafe {
                libc::madvise(self.base.as_ptr().add(start).cast(), end - start, libc::MADV_REMOVE)
            };
        }
    }
}

/// A reference into something that it keeps alive: found once, then followed in one step.
pub(super) struct View<T, K> {
    at: NonNull<T>,
    _keeper: Arc<K>,
}

// SAFETY: it gives out shared references only, and shares the keeper.
unsafe impl<T: Sync, K: Send + Sync> Send for View<T, K> {}
// SAFETY: as above.
unsafe impl<T: Sync, K: Send + Sync> Sync for View<T, K> {}

impl<T, K> View<T, K> {
    /// What `find` finds in `keeper`.
    pub(super) fn new(
        keeper: Arc<K>,
        find: impl for<'a> FnOnce(&'a K) -> Option<&'a T>,
    ) -> Option<Self> {
        let at = NonNull::from(find(&keeper)?);
        Some(View { at, _keeper: keeper })
    }
}

impl<T, K> Deref for View<T, K> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: borrowed from the keeper, which stands still and lives as long as `self`.
        unsafe { self.at.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `map`; nothing borrowed from `self` outlives it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// An eventfd by which a context's service thread is woken.
pub(super) fn eventfd(flags: i32) -> Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK | flags) };
    if fd < 0 {
        return Err(Error::last_os("creating an eventfd"));
    }
    // SAFETY: a descriptor just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd. A counter at its limit has woken its reader long since.
pub(super) fn ring_eventfd(fd: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: eight readable bytes.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Takes from an eventfd; `false` where there was nothing.
pub(super) fn take_eventfd(fd: BorrowedFd<'_>) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: eight writable bytes.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) == 8 }
}
