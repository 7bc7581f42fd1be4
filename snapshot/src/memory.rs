//! Memory of a store: mappings of its own, that peers write by RDMA.

use crate::image::Source;
use crate::{Error, Result, peek};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// Large pages start and end at multiples of this. A store that lies on them is written half as fast again.
const LARGE: usize = 2 << 20;

/// Anonymous memory of this process alone, at the start of a large page, all of it present.
///
/// A peer may write it at any time, so it is read by copy alone ([`Source`]).
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    /// What is really mapped: more, for the sake of the start.
    whole: (NonNull<u8>, usize),
}

// SAFETY: a mapping is memory, and it is read by volatile loads alone.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// So many zeros.
    ///
    /// # Errors
    /// `ENOMEM` where they cannot be had.
    pub(crate) fn new(length: usize) -> Result<Mapping> {
        let doing = format_args!("mapping {length} bytes of a store");
        let whole = length.checked_add(LARGE).ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!("{length} bytes of a store: more than an address says"),
            )
        })?;
        // SAFETY: a fresh anonymous mapping touches no memory of anyone else.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os(doing));
        }
        let start =
            NonNull::new(start.cast::<u8>()).expect("mmap without MAP_FIXED returns no null");
        let skip = start.as_ptr().align_offset(LARGE);
        // SAFETY: at most LARGE - 1 bytes on, of LARGE and more.
        let base = unsafe { start.add(skip) };
        let mapping = Mapping { base, length, whole: (start, whole) };
        // SAFETY: advice on the mapping made just now. Where there are no large pages it does without.
        unsafe { libc::madvise(base.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        // Now rather than at the first epoch, and as an error rather than as a signal.
        // SAFETY: as above.
        if unsafe { libc::madvise(base.as_ptr().cast(), length, libc::MADV_POPULATE_WRITE) } != 0 {
            let error = std::io::Error::last_os_error();
            // Kernels before 5.14 do not know it; devices touch what they pin.
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(Error::os(&error, doing));
            }
        }
        Ok(mapping)
    }

    /// Its first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// How long it is.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Writes bytes of it, as a peer would.
    ///
    /// # Panics
    /// Where it has no such bytes.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.length), "bytes of it");
        // SAFETY: within the mapping, of which there are no references. Whoever reads it meanwhile does not
        // believe what it finds.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(at), bytes.len());
        }
    }

    /// Writes a word of it at once, after everything that was written before.
    ///
    /// # Panics
    /// Where it has no such word, or the word lies across two.
    pub(crate) fn write_word(&self, at: usize, word: u64) {
        const BYTES: usize = size_of::<u64>();
        let inside = at.checked_add(BYTES).is_some_and(|end| end <= self.length);
        assert!(inside && at.is_multiple_of(BYTES), "a word of it");
        // SAFETY: within the mapping, and aligned, since the mapping is.
        let place = unsafe { &*self.base.as_ptr().add(at).cast::<AtomicU64>() };
        place.store(word, Ordering::SeqCst);
    }

    /// The bytes from `at` as a source of their own.
    pub(crate) fn part(&self, at: usize, length: usize) -> Portion<'_> {
        assert!(at.checked_add(length).is_some_and(|end| end <= self.length), "a part of it");
        Portion { mapping: self, at, length }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; whoever registered it has seen to it that no device
        // knows it any more.
        unsafe { libc::munmap(self.whole.0.as_ptr().cast(), self.whole.1) };
    }
}

/// A part of a [`Mapping`].
pub(crate) struct Portion<'a> {
    mapping: &'a Mapping,
    at: usize,
    length: usize,
}

impl Portion<'_> {
    /// The crc32c of bytes of it.
    ///
    /// # Panics
    /// Where it has no such bytes.
    pub(crate) fn crc(&self, at: usize, bytes: usize) -> u32 {
        assert!(at.checked_add(bytes).is_some_and(|end| end <= self.length), "bytes of it");
        let first = self.mapping.base.as_ptr().wrapping_add(self.at + at);
        // SAFETY: within the mapping, which outlives `self`.
        unsafe { peek::crc(first, bytes, first.wrapping_add(bytes)) }
    }
}

impl Source for Portion<'_> {
    fn bytes(&self) -> usize {
        self.length
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        if at.checked_add(into.len()).is_none_or(|end| end > self.length) {
            let (wanted, has) = (into.len(), self.length);
            return Err(Error::invalid(format!("{wanted} bytes from {at:#x} of {has} bytes")));
        }
        // SAFETY: within the mapping, which outlives `self`; `into` is memory of somebody else.
        unsafe { peek::copy(self.mapping.base.as_ptr().add(self.at + at), into) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_zeros_at_the_start_of_a_large_page_and_ends_where_it_ends() {
        let mapping = Mapping::new(3 * 4096).unwrap();
        assert_eq!(mapping.base().as_ptr() as usize % LARGE, 0);
        let part = mapping.part(4096, 8192);
        let mut bytes = [1; 8192];
        part.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 8192]);
        assert_eq!(part.crc(8, 8000), crc32c::crc32c(&[0; 8000]));
        assert!(part.read(8000, &mut bytes[..193]).is_err());
        mapping.write(4099, &[1, 2, 3]);
        mapping.write_word(4096 + 8, u64::from_le_bytes([7; 8]));
        part.read(0, &mut bytes[..16]).unwrap();
        assert_eq!(bytes[..16], [0, 0, 0, 1, 2, 3, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert_eq!(Mapping::new(usize::MAX).err().unwrap().errno(), libc::ENOMEM);
    }
}
