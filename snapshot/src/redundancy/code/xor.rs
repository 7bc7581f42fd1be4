//! The sum of bytes without carries.

/// Bytes that are summed over all sources before the next ones are looked at: what they become stays in
/// the first-level cache.
const PIECE: usize = 4096;

/// Makes `into` the XOR of `sources`, each of which counts as zeros behind its end.
///
/// Four sources are taken at a time, so that what is summed up is loaded and stored once for four of
/// them.
pub(super) fn sum<'a>(into: &mut [u8], sources: impl Iterator<Item = &'a [u8]> + Clone) {
    for (at, piece) in into.chunks_mut(PIECE).enumerate() {
        let start = at * PIECE;
        let end = start + piece.len();
        // Those that have all of the piece, and then the one that ends in it.
        let mut whole = sources.clone().filter_map(|it| it.get(start..end));
        let mut fresh = true;
        loop {
            let four = (whole.next(), whole.next(), whole.next(), whole.next());
            match four {
                (Some(a), Some(b), Some(c), Some(d)) => four_into(piece, fresh, a, b, c, d),
                (Some(a), Some(b), Some(c), None) => {
                    two_into(piece, fresh, a, b);
                    one_into(piece, false, c);
                }
                (Some(a), Some(b), None, _) => two_into(piece, fresh, a, b),
                (Some(a), None, ..) => one_into(piece, fresh, a),
                (None, ..) => {
                    if fresh {
                        piece.fill(0);
                    }
                    break;
                }
            }
            fresh = false;
        }
        for short in sources.clone().filter(|it| it.len() < end) {
            one_into(piece, false, short.get(start..).unwrap_or_default());
        }
    }
}

fn one_into(into: &mut [u8], fresh: bool, a: &[u8]) {
    if fresh {
        into[..a.len()].copy_from_slice(a);
    } else {
        into.iter_mut().zip(a).for_each(|(into, a)| *into ^= a);
    }
}

fn two_into(into: &mut [u8], fresh: bool, a: &[u8], b: &[u8]) {
    let all = into.iter_mut().zip(a).zip(b);
    if fresh {
        all.for_each(|((into, a), b)| *into = a ^ b);
    } else {
        all.for_each(|((into, a), b)| *into ^= a ^ b);
    }
}

fn four_into(into: &mut [u8], fresh: bool, a: &[u8], b: &[u8], c: &[u8], d: &[u8]) {
    let all = into.iter_mut().zip(a).zip(b).zip(c).zip(d);
    if fresh {
        all.for_each(|((((into, a), b), c), d)| *into = a ^ b ^ c ^ d);
    } else {
        all.for_each(|((((into, a), b), c), d)| *into ^= a ^ b ^ c ^ d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Byte by byte it is the XOR, whatever the lengths.
        #[test]
        fn the_sum_is_that_of_every_byte(
            length in 0usize..10_000,
            lengths in prop::collection::vec(0usize..12_000, 0..11),
            seed in any::<u32>(),
        ) {
            let byte = |i: usize, at: usize| {
                (seed.wrapping_add((i * 40_009 + at) as u32).wrapping_mul(2_654_435_761) >> 24) as u8
            };
            let sources: Vec<Vec<u8>> = lengths
                .iter()
                .enumerate()
                .map(|(i, bytes)| (0..*bytes).map(|at| byte(i, at)).collect())
                .collect();
            let mut into = vec![0xa5; length];
            sum(&mut into, sources.iter().map(Vec::as_slice));
            for (at, got) in into.iter().enumerate() {
                let want = sources.iter().filter_map(|it| it.get(at)).fold(0, |sum, it| sum ^ it);
                prop_assert_eq!(*got, want, "byte {}", at);
            }
        }
    }
}
