//! What a payload looks like, and what wrong bytes turn out to be.
//!
//! A payload of [`HEADER`] bytes or more begins with its stream, length, sequence number and a
//! checksum over all of it; the rest is noise of that message alone. A shorter one is noise. The
//! receiver compares with the bytes that it expects; the header serves to say what came instead.

use crate::script::{Stream, mix};

/// Stream and length (4 bytes each), sequence number, checksum (8 bytes each).
pub(crate) const HEADER: usize = 24;

/// What a receiver writes over memory once it has seen what landed there. It must stay.
pub(crate) const SEEN: u8 = 0xe5;

/// Puts a payload into `into`.
pub(crate) fn make(stream: Stream, seq: u64, noise: u64, size: usize, into: &mut Vec<u8>) {
    into.clear();
    if size >= HEADER {
        into.extend_from_slice(&stream.code().to_le_bytes());
        into.extend_from_slice(&(size as u32).to_le_bytes());
        into.extend_from_slice(&seq.to_le_bytes());
        into.extend_from_slice(&[0; 8]);
    }
    let mut word = noise;
    while into.len() < size {
        word = mix(word);
        let left = (size - into.len()).min(8);
        into.extend_from_slice(&word.to_le_bytes()[..left]);
    }
    if size >= HEADER {
        let sum = checksum(into);
        into[16..HEADER].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Over everything but the checksum itself.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let parts = [&bytes[..16], &bytes[HEADER..]];
    parts.iter().flat_map(|part| part.chunks(8)).fold(0xcbf2_9ce4_8422_2325, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    })
}

/// The message that these bytes begin with, where it is intact.
pub(crate) fn identify(bytes: &[u8]) -> Option<(Stream, u64, usize)> {
    let word = |at: usize| bytes.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()));
    let (head, seq, sum) = (word(0)?, word(8)?, word(16)?);
    let size = (head >> 32) as usize;
    let whole = bytes.get(..size).filter(|whole| whole.len() >= HEADER)?;
    (checksum(whole) == sum).then(|| (Stream::of_code(head as u32), seq, size))
}

/// Says what `found` is, where `expected` was to be.
pub(crate) fn describe(expected: &[u8], found: &[u8]) -> String {
    if let Some((stream, seq, size)) = identify(found) {
        return format!(
            "the intact message of sequence {seq}, rank {} to rank {}, queue pair {} ({size} bytes)",
            stream.from, stream.to, stream.index
        );
    }
    if !found.is_empty() && found.iter().all(|byte| *byte == SEEN) {
        return format!("{} bytes of the pattern of what was seen already", found.len());
    }
    let differs = |(a, b): &(&u8, &u8)| a != b;
    match expected.iter().zip(found).position(|pair| differs(&pair)) {
        Some(at) => {
            let wrong = expected.iter().zip(found).filter(differs).count();
            format!(
                "{wrong} wrong bytes of {}, the first at {at}: {:#04x} for {:#04x}",
                expected.len(),
                found[at],
                expected[at]
            )
        }
        None => format!("{} bytes", found.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { from: 1, to: 2, index: 3 };

    fn payload(seq: u64, size: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        make(STREAM, seq, 77 + seq, size, &mut bytes);
        bytes
    }

    /// Promise: each bit of a payload counts, and an intact one tells which it is.
    #[test]
    fn an_intact_message_is_identified_and_a_damaged_one_is_not() {
        for size in [24, 25, 32, 100, 4096] {
            let good = payload(9, size);
            assert_eq!(good.len(), size);
            assert_eq!(identify(&good), Some((STREAM, 9, size)));
            for at in [0, 5, 9, 17, size - 1] {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                assert_eq!(identify(&bad), None, "byte {at} of {size}");
                let found = describe(&good, &bad);
                assert!(found.contains(&format!("the first at {at}:")), "{found}");
            }
        }
        for size in 0..24 {
            assert_eq!(identify(&payload(9, size)), None);
        }
        assert_ne!(payload(9, 16), payload(10, 16));
    }

    #[test]
    fn what_came_instead_is_named() {
        let found = describe(&payload(5, 64), &payload(4, 64));
        assert!(found.contains("sequence 4, rank 1 to rank 2, queue pair 3 (64 bytes)"), "{found}");
        assert!(describe(&payload(5, 64), &[SEEN; 64]).contains("seen already"));
    }
}
