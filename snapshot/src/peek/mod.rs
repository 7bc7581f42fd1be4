//! Reading memory that somebody else may be writing: the program while it computes, a device, a peer.
//!
//! What comes out of such a read may be torn: a mixture of before and after, never anything worse.
//! Who reads sees to it that a torn chunk is not believed: what the program changed meanwhile is dirty
//! again, and is sent again in the pause; and what a peer changed does not have its checksum.
//!
//! Rust has no read that may race with an ordinary write, so no reference to such memory is made here, and
//! no ordinary load. Bytes are fetched by volatile loads, or by instructions that the compiler does not look
//! into. So it can assume nothing of what it did not see; and the machine gives for each load what some store
//! to that place put there.

#[cfg(target_arch = "x86_64")]
mod fold;
#[cfg(target_arch = "x86_64")]
mod lanes;

use crate::PAGE;

/// The crc32c of memory that may change while it is read. Meanwhile the page at `next`, which need not be there, is
/// fetched into the cache: what is looked at next.
///
/// # Safety
/// `bytes` bytes from `at` stay mapped and readable through the call.
#[must_use]
pub(crate) unsafe fn crc(at: *const u8, bytes: usize, next: *const u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes == PAGE {
        if fold::is_there() {
            // SAFETY: the caller's promise, and the processor has the instructions.
            return unsafe { fold::crc_of_page(at, next) };
        }
        if lanes::is_there() {
            // SAFETY: as above.
            return unsafe { lanes::crc_of_page(at, next) };
        }
    }
    // Without the means to fetch it.
    let _ = next;
    let mut room = [0; PAGE];
    let mut crc = 0;
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(PAGE);
        // SAFETY: within what the caller promises.
        unsafe { copy(at.add(done), &mut room[..part]) };
        crc = crc32c::crc32c_append(crc, &room[..part]);
        done += part;
    }
    crc
}

/// Whether all of them are zero, as far as can be said of memory that may change.
///
/// # Safety
/// As [`crc`].
#[must_use]
pub(crate) unsafe fn is_zero(at: *const u8, bytes: usize) -> bool {
    let mut room = [0; PAGE];
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(PAGE);
        // SAFETY: within what the caller promises.
        unsafe { copy(at.add(done), &mut room[..part]) };
        if room[..part].iter().any(|byte| *byte != 0) {
            return false;
        }
        done += part;
    }
    true
}

/// Copies bytes out.
///
/// # Safety
/// `into.len()` bytes from `at` stay mapped and readable through the call, and are not those of `into`.
pub(crate) unsafe fn copy(at: *const u8, into: &mut [u8]) {
    const WORD: usize = size_of::<u64>();
    let head = at.align_offset(WORD).min(into.len());
    let (first, rest) = into.split_at_mut(head);
    for (i, byte) in first.iter_mut().enumerate() {
        // SAFETY: within what the caller promises.
        *byte = unsafe { at.add(i).read_volatile() };
    }
    // SAFETY: within what the caller promises, or just behind it.
    let at = unsafe { at.add(head) };
    let mut words = rest.chunks_exact_mut(WORD);
    let mut done = 0;
    for word in words.by_ref() {
        // SAFETY: as above, and aligned since `head`.
        let value = unsafe { at.add(done).cast::<u64>().read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
        done += WORD;
    }
    for (i, byte) in words.into_remainder().iter_mut().enumerate() {
        // SAFETY: as above.
        *byte = unsafe { at.add(done + i).read_volatile() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The ways to the checksum of a page, and whether this processor can go them.
    #[cfg(target_arch = "x86_64")]
    type OfPage = unsafe fn(*const u8, *const u8) -> u32;
    #[cfg(target_arch = "x86_64")]
    const PAGES: [(fn() -> bool, OfPage); 2] =
        [(lanes::is_there, lanes::crc_of_page), (fold::is_there, fold::crc_of_page)];

    proptest! {
        /// Whatever way it goes, a checksum is the crc32c of those bytes, and a copy is those bytes.
        #[test]
        fn peeking_sees_what_is_there(
            bytes in prop::collection::vec(any::<u8>(), 0..3 * PAGE),
            skip in 0usize..9,
        ) {
            let part = &bytes[skip.min(bytes.len())..];
            // SAFETY: a slice, which nobody writes.
            let crc = |part: &[u8]| unsafe { super::crc(part.as_ptr(), part.len(), part.as_ptr()) };
            prop_assert_eq!(crc(part), crc32c::crc32c(part));
            let mut copied = vec![0; part.len()];
            // SAFETY: as above.
            unsafe { copy(part.as_ptr(), &mut copied) };
            prop_assert_eq!(part, &copied[..]);
            if let Some(page) = part.get(..PAGE) {
                prop_assert_eq!(crc(page), crc32c::crc32c(page));
                #[cfg(target_arch = "x86_64")]
                for (is_there, crc_of_page) in PAGES {
                    // SAFETY: a page, which nobody writes, and the processor has the instructions.
                    let found = is_there().then(|| unsafe { crc_of_page(page.as_ptr(), page.as_ptr()) });
                    prop_assert_eq!(found.unwrap_or(crc32c::crc32c(page)), crc32c::crc32c(page));
                }
            }
        }
    }

    #[test]
    fn zeros_are_told_from_all_but_zeros() {
        let mut bytes = vec![0u8; 2 * PAGE];
        // SAFETY: a part of a slice, which nobody writes.
        let zero = |bytes: &[u8], n| unsafe { is_zero(bytes.as_ptr(), n) };
        assert!(zero(&bytes, bytes.len()) && zero(&bytes, 0));
        for at in [0, 7, PAGE - 1, PAGE, 2 * PAGE - 1] {
            bytes[at] = 1;
            assert!(!zero(&bytes, bytes.len()) && zero(&bytes, at));
            bytes[at] = 0;
        }
    }
}
