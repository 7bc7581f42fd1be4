//! The checksum of a whole page, by the instruction that there is for it: on any x86 of the last ten years.
//!
//! The instruction takes 8 bytes in each cycle, and its result is there three cycles later. So three thirds of a page go
//! side by side, as if each were alone, and are put together by what is linear in a crc: that of `a` before `n`
//! bytes of anything is a matrix times that of `a`, looked up byte by byte.

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

/// Whether the processor has the instruction.
pub(super) fn is_there() -> bool {
    std::arch::is_x86_feature_detected!("sse4.2")
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
