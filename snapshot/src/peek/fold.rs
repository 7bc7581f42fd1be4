//! The checksum of a whole page by folding, 256 bytes at a time, where the processor multiplies without carries in
//! registers of 512 bits.
//!
//! A crc is what is left of a polynomial, the message times x^32, after a division by P. What is left stays the same
//! where a block of 128 bits is taken away from the front, and the block times x^D, reduced, is added D bits later
//! (Gopal et al., *Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction*, Intel, 2009). So a page
//! is folded into its last 256 bytes, those into the last 16, and these are divided by the instruction for it.

use super::PAGE;
use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _MM_HINT_T1, _mm_crc32_u64, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_prefetch,
    _mm_xor_si128, _mm512_castsi512_si128, _mm512_clmulepi64_epi128, _mm512_extracti32x4_epi32,
    _mm512_set_epi64, _mm512_set4_epi64, _mm512_ternarylogic_epi64, _mm512_xor_si512,
};

/// Bytes of a register.
const WIDTH: usize = 64;
/// Registers that are folded side by side: as many as hide what a multiplication takes until its result is there.
const ABREAST: usize = 4;
/// Bytes that are folded at once.
const STRIDE: usize = ABREAST * WIDTH;
const LINE: usize = 64;
const _: () = assert!(PAGE.is_multiple_of(STRIDE) && PAGE > STRIDE);

/// The polynomial of crc32c but for x^32, the lowest bit that of x^31.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^n mod P, the lowest bit that of x^31.
const fn power(n: usize) -> i64 {
    let mut value = 1u32 << 31;
    let mut i = 0;
    while i < n {
        value = if value & 1 == 1 { value >> 1 ^ POLYNOMIAL } else { value >> 1 };
        i += 1;
    }
    value as i64
}

/// What the first and the second half of a block are multiplied with to be the same so many bits later.
///
/// A product of numbers whose lowest bit is the highest power has x^33 too much: 64 and 32 bits have 94 as their highest
/// power, and take the place of 128 bits, which have 127.
const fn later(bits: usize) -> [i64; 2] {
    [power(bits + 64 - 33), power(bits - 33)]
}

/// Blocks in a register.
const BLOCKS: usize = 4;
const BLOCK_BITS: usize = 128;

/// Whether the processor has the instructions.
pub(super) fn is_there() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("vpclmulqdq") && has!("sse4.2")
}

/// The crc32c of a page.
///
/// # Safety
/// The processor has the instructions. A page from `at` stays mapped and readable through the call.
#[target_feature(enable = "avx512f,vpclmulqdq,sse4.2")]
pub(super) unsafe fn crc_of_page(at: *const u8, next: *const u8) -> u32 {
    const STEP: [i64; 2] = later(STRIDE * 8);
    const NEAR: [i64; 2] = later(WIDTH * 8);
    let step = _mm512_set4_epi64(STEP[1], STEP[0], STEP[1], STEP[0]);
    // SAFETY: within the page that the caller promises.
    let mut sums: [__m512i; ABREAST] = std::array::from_fn(|i| unsafe { load(at, i * WIDTH) });
    // What follows on this page the processor fetches by itself, and faster than when told to.
    let is_apart = next != at.wrapping_add(PAGE);
    if is_apart {
        fetch(next, 0);
    }
    // A crc begins with the complement of the first 32 bits.
    let begin = _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, i64::from(u32::MAX));
    sums[0] = _mm512_xor_si512(sums[0], begin);
    for stride in 1..PAGE / STRIDE {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as above.
            let behind = unsafe { load(at, stride * STRIDE + i * WIDTH) };
            *sum = fold(*sum, step, behind);
        }
        if is_apart {
            fetch(next, stride);
        }
    }
    let near = _mm512_set4_epi64(NEAR[1], NEAR[0], NEAR[1], NEAR[0]);
    let [first, rest @ ..] = sums;
    last(rest.into_iter().fold(first, |sum, behind| fold(sum, near, behind)))
}

/// The crc of the last blocks.
#[target_feature(enable = "avx512f,vpclmulqdq,sse4.2")]
fn last(sum: __m512i) -> u32 {
    const fn to_end(block: usize) -> [i64; 2] {
        later((BLOCKS - 1 - block) * BLOCK_BITS)
    }
    const FAR: [[i64; 2]; BLOCKS - 1] = [to_end(0), to_end(1), to_end(2)];
    // The last block is there already.
    let far =
        _mm512_set_epi64(0, 0, FAR[2][1], FAR[2][0], FAR[1][1], FAR[1][0], FAR[0][1], FAR[0][0]);
    let zero = _mm512_xor_si512(sum, sum);
    let folded = fold(sum, far, zero);
    let block = _mm_xor_si128(
        _mm_xor_si128(_mm512_castsi512_si128(folded), _mm512_extracti32x4_epi32::<1>(folded)),
        _mm_xor_si128(_mm512_extracti32x4_epi32::<2>(folded), _mm512_extracti32x4_epi32::<3>(sum)),
    );
    let (first, second) = (_mm_cvtsi128_si64(block), _mm_extract_epi64::<1>(block));
    !(_mm_crc32_u64(_mm_crc32_u64(0, first as u64), second as u64) as u32)
}

/// Moves each block of `sum` to where `behind` is, which is as far as `by` says, and adds that.
#[target_feature(enable = "avx512f,vpclmulqdq")]
fn fold(sum: __m512i, by: __m512i, behind: __m512i) -> __m512i {
    const FIRST: i32 = 0x00;
    const SECOND: i32 = 0x11;
    /// What is in an odd number of the three.
    const XOR: i32 = 0x96;
    let first = _mm512_clmulepi64_epi128::<FIRST>(sum, by);
    let second = _mm512_clmulepi64_epi128::<SECOND>(sum, by);
    _mm512_ternarylogic_epi64::<XOR>(first, second, behind)
}

/// What is there now.
///
/// # Safety
/// A register's bytes from `at` and that many bytes more are mapped and readable.
#[target_feature(enable = "avx512f")]
unsafe fn load(at: *const u8, skip: usize) -> __m512i {
    let found;
    // Not by a reference or an ordinary load: see the parent.
    // SAFETY: the caller's promise; it reads memory, and changes the register that it names.
    unsafe {
        asm!(
            "vmovdqu64 {found}, [{at}]",
            found = out(zmm_reg) found,
            at = in(reg) at.add(skip),
            options(nostack, readonly, preserves_flags),
        );
    }
    found
}

/// Has the part of a page into the second cache that is as far as the one that is folded: more is on its way to there at a
/// time than to the first. Where there is no memory nothing happens.
fn fetch(page: *const u8, stride: usize) {
    for line in 0..STRIDE / LINE {
        let at = page.wrapping_add(stride * STRIDE + line * LINE);
        // SAFETY: a hint, whatever is there.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
}
