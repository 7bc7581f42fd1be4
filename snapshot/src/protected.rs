//! Memory that a program computes in, and that can be snapshot.

use crate::{Area, Error, PAGE, Result};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// An anonymous mapping. It is shared by the program that computes in it and by whoever reads it for
/// a snapshot, and unmapped when the last lets go.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is a range of addresses; what is done with the bytes is for whoever does it to justify.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps zeroed bytes, page aligned: at `addr` exactly, or anywhere.
    ///
    /// # Errors
    /// `ENOMEM` where they cannot be had, `EINVAL` for none, `EEXIST` where something lies at `addr`.
    pub fn new(bytes: usize, addr: Option<usize>) -> Result<Self> {
        if bytes == 0 {
            return Err(Error::invalid("0 bytes to snapshot: at least 1 is needed"));
        }
        let at = addr.unwrap_or(0);
        let place = if addr.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | place;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which replaces no other: without MAP_FIXED the address is a wish, and
        // with MAP_FIXED_NOREPLACE the call fails where something is there.
        let base = unsafe { libc::mmap(at as *mut libc::c_void, bytes, access, flags, -1, 0) };
        let base = NonNull::new(base.cast::<u8>()).filter(|it| it.as_ptr() as isize != -1);
        let base = base.ok_or_else(|| Error::last_os(format_args!("mapping {bytes} bytes")))?;
        Ok(Mapping { base, bytes })
    }

    /// Its first byte.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// How long it is.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Values that any bytes of their size are, and that are nothing but their bytes: what memory can be restored
/// to.
pub trait Plain: FromBytes + IntoBytes {}

impl<T: FromBytes + IntoBytes> Plain for T {}

/// A slice of its own, page aligned, that can be snapshot while the program computes in it.
///
/// It is all zeros at first. `T` is plain data: any bytes are a value, so that what is restored is one.
///
/// A snapshot reads it while the program writes it. What it reads then may be of two moments, and is
/// never used: tracking reports the page again, and it is read once more while the program stands still.
#[derive(Debug)]
pub struct Memory<T> {
    mapping: Arc<Mapping>,
    length: usize,
    _values: PhantomData<T>,
}

// SAFETY: it owns its values, as a `Box<[T]>` does.
unsafe impl<T: Send> Send for Memory<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Memory<T> {}

impl<T: Plain> Memory<T> {
    const ALIGNED: () = assert!(align_of::<T>() <= PAGE && size_of::<T>() > 0);

    /// `length` values, zeroed.
    ///
    /// # Errors
    /// As [`Mapping::new`].
    pub fn new(length: usize) -> Result<Self> {
        let () = Self::ALIGNED;
        let bytes = length.checked_mul(size_of::<T>()).ok_or_else(|| {
            Error::new(libc::ENOMEM, format!("{length} values are more than memory can hold"))
        })?;
        let mapping = Arc::new(Mapping::new(bytes, None)?);
        Ok(Memory { mapping, length, _values: PhantomData })
    }

    /// The area that it is, under that id.
    #[must_use]
    pub fn area(&self, id: u32) -> Area {
        Area { id, addr: self.mapping.addr(), bytes: self.mapping.len() }
    }

    /// What keeps it mapped.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let base = self.mapping.base.cast::<T>().as_ptr();
        // SAFETY: the mapping has room for so many values, is aligned for them, lives as long as
        // `self`, and any bytes are values; only a restore writes it from elsewhere, and that takes
        // `&mut` of what it restores.
        unsafe { std::slice::from_raw_parts(base, self.length) }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let base = self.mapping.base.cast::<T>().as_ptr();
        // SAFETY: as above, and `self` is borrowed for writing; what a snapshot reads meanwhile it reads as
        // a device would, and uses only where tracking says that nothing was written.
        unsafe { std::slice::from_raw_parts_mut(base, self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_slice_of_zeros_that_is_page_aligned() {
        let mut memory = Memory::<f64>::new(1000).unwrap();
        assert!(memory.iter().all(|value| *value == 0.0) && memory.len() == 1000);
        memory[999] = 2.5;
        let area = memory.area(7);
        assert_eq!((area.id, area.bytes, area.addr % PAGE), (7, 8000, 0));
        assert_eq!(memory[999], 2.5);
        assert!(Memory::<u64>::new(0).is_err() && Memory::<u64>::new(usize::MAX / 4).is_err());
    }

    #[test]
    fn nothing_is_mapped_over_what_is_there() {
        let first = Mapping::new(3 * PAGE, None).unwrap();
        let error = Mapping::new(PAGE, Some(first.addr() + PAGE)).unwrap_err();
        assert_eq!(error.errno(), libc::EEXIST, "{error}");
        let (addr, bytes) = (first.addr(), first.len());
        drop(first);
        assert_eq!(Mapping::new(bytes, Some(addr)).unwrap().addr(), addr);
    }
}
