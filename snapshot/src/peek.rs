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

use crate::PAGE;

/// The crc32c of memory that may change while it is read. Meanwhile the page at `next`, which need not be there, is
/// fetched into the cache: what is looked at next.
///
/// # Safety
/// `bytes` bytes from `at` stay mapped and readable through the call.
#[must_use]
pub(crate) unsafe fn crc(at: *const u8, bytes: usize, next: *const u8) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes == PAGE && std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the caller's promise, and the processor has the instruction.
        return unsafe { lanes::crc_of_page(at, next) };
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

/// The checksum of a whole page, several bytes of it at a time.
///
/// The instruction takes 8 bytes in each cycle, and its result is there three cycles later. So three thirds of a page go
/// side by side, as if each were alone, and are put together by what is linear in a crc: that of `a` before `n`
/// bytes of anything is a matrix times that of `a`, looked up byte by byte.
#[cfg(target_arch = "x86_64")]
mod lanes {
    use super::PAGE;
    use std::sync::LazyLock;

    /// Bytes of a lane, whole cache lines; three of them, and one line, are a page.
    const LANE: usize = 1344;
    const LINE: usize = 64;
    const _: () = assert!(3 * LANE + LINE == PAGE && LANE.is_multiple_of(LINE));
    /// For each byte of a crc the value that it has `LANE` zero bytes later.
    static SHIFT: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
        let zeros = [0; LANE];
        // As a register without the complements that begin and end a crc.
        let later = |value: u32| !crc32c::crc32c_append(!value, &zeros);
        std::array::from_fn(|byte| {
            let bits: [u32; 8] = std::array::from_fn(|bit| later(1 << (8 * byte + bit)));
            std::array::from_fn(|value| {
                (0..8).filter(|bit| value >> bit & 1 == 1).fold(0, |sum, bit| sum ^ bits[bit])
            })
        })
    });

    fn shift(table: &[[u32; 256]; 4], crc: u64) -> u64 {
        let bytes = (crc as u32).to_le_bytes();
        let sum = (0..4).fold(0, |sum, i| sum ^ table[i][usize::from(bytes[i])]);
        u64::from(sum)
    }

    /// The crc32c of a page.
    ///
    /// # Safety
    /// The processor has SSE 4.2. A page from `at` stays mapped and readable through the call.
    pub(super) unsafe fn crc_of_page(at: *const u8, next: *const u8) -> u32 {
        let table = &*SHIFT;
        let (mut one, mut two, mut three) = (u64::from(u32::MAX), 0u64, 0u64);
        // Three streams in one page are more than the processor sees through by itself: so what comes next is
        // fetched here, from front to back. Where there is no memory nothing happens.
        // SAFETY: reads a page in three lanes, and no more. The instructions only read memory, and change
        // nothing but the registers named.
        unsafe {
            std::arch::asm!(
                "2:",
                "prefetcht0 [{next}]",
                "prefetcht0 [{next} + 64]",
                "prefetcht0 [{next} + 128]",
                "add {next}, 192",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 0]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 0]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 0]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 8]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 8]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 8]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 16]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 16]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 16]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 24]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 24]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 24]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 32]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 32]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 32]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 40]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 40]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 40]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 48]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 48]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 48]",
                "crc32 {one}, qword ptr [{at} + 0 * {lane} + 56]",
                "crc32 {two}, qword ptr [{at} + 1 * {lane} + 56]",
                "crc32 {three}, qword ptr [{at} + 2 * {lane} + 56]",
                "add {at}, 64",
                "cmp {at}, {end}",
                "jne 2b",
                one = inout(reg) one,
                two = inout(reg) two,
                three = inout(reg) three,
                at = inout(reg) at => _,
                end = in(reg) at.add(LANE),
                next = inout(reg) next => _,
                lane = const LANE,
                options(nostack, readonly),
            );
        }
        let mut crc = shift(table, shift(table, one) ^ two) ^ three;
        // SAFETY: the last line of the page, else as above.
        unsafe {
            std::arch::asm!(
                "crc32 {crc}, qword ptr [{at} + {rest} + 0]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 8]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 16]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 24]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 32]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 40]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 48]",
                "crc32 {crc}, qword ptr [{at} + {rest} + 56]",
                crc = inout(reg) crc,
                at = in(reg) at,
                rest = const 3 * LANE,
                options(nostack, readonly, preserves_flags),
            );
        }
        !(crc as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
