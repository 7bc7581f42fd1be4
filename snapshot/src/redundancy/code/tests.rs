use super::*;
use proptest::prelude::*;

const SCHEMES: [&str; 8] =
    ["xor:2", "xor:4", "xor:9", "rs:2+1", "rs:3+2", "rs:4+2", "rs:6+4", "rs:9+3"];

/// Bytes that depend on a seed; every third chunk is zeros.
fn image(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..bytes)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if (at / PAGE + seed as usize).is_multiple_of(3) { 0 } else { (state >> 32) as u8 }
        })
        .collect()
}

/// The part of an image in a stripe; empty where it is nothing but zeros.
fn part(image: &[u8], range: Range<usize>) -> &[u8] {
    let part = &image[range.start.min(image.len())..range.end.min(image.len())];
    if part.iter().all(|byte| *byte == 0) { &[] } else { part }
}

fn chunks(images: &[Vec<u8>]) -> usize {
    images.iter().map(|it| it.len().div_ceil(PAGE)).max().unwrap_or_default()
}

/// Brings `parity` up to date in the chunks of `stale`.
fn update(code: &mut Code, images: &[Vec<u8>], stale: &PageSet, parity: &mut [Vec<u8>]) {
    for stripe in stripes(stale) {
        let bytes = stripe.start * PAGE..stripe.end * PAGE;
        let parts: Vec<&[u8]> = images.iter().map(|it| part(it, bytes.clone())).collect();
        let mut wanted: Vec<(usize, &mut [u8])> =
            parity.iter_mut().enumerate().map(|(i, it)| (i, &mut it[bytes.clone()])).collect();
        code.encode(&parts, &mut wanted).unwrap();
    }
}

fn full(code: &mut Code, images: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let chunks = chunks(images);
    let mut parity = vec![vec![0xee; chunks * PAGE]; code.parity()];
    update(code, images, &PageSet::full(chunks), &mut parity);
    parity
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is lost within the promise is rebuilt bit for bit; with one share fewer it is said how many
    /// are there.
    #[test]
    fn any_loss_within_the_promise_is_rebuilt_bit_for_bit(
        scheme in prop::sample::select(SCHEMES.as_slice()),
        lengths in prop::collection::vec(0usize..40_000, 9),
        (fewer, seed) in (0usize..3, any::<u64>()),
        order in Just((0usize..13).collect::<Vec<_>>()).prop_shuffle(),
        stripe in 1usize..8,
    ) {
        let scheme: Scheme = scheme.parse().unwrap();
        let members = scheme.group().saturating_sub(fewer).max(1);
        let mut code = Code::new(scheme, members).unwrap();
        let images: Vec<Vec<u8>> = lengths[..members]
            .iter()
            .enumerate()
            .map(|(i, bytes)| image(*bytes, seed.wrapping_add(i as u64)))
            .collect();
        let parity = full(&mut code, &images);
        let all: Vec<&Vec<u8>> = images.iter().chain(&parity).collect();
        let order: Vec<usize> = order.into_iter().filter(|i| *i < all.len()).collect();
        let lost = &order[..scheme.parity()];
        for start in (0..chunks(&images) * PAGE).step_by(stripe * PAGE) {
            let end = (start + stripe * PAGE).min(chunks(&images) * PAGE);
            let have = |i: usize| (!lost.contains(&i)).then(|| part(all[i], start..end));
            let mut shares: Vec<Option<&[u8]>> = (0..all.len()).map(have).collect();
            let mut rebuilt: Vec<(usize, Vec<u8>)> = lost
                .iter()
                .filter(|i| **i < members)
                .map(|i| (*i, vec![0xcc; end - start]))
                .collect();
            let into = |it: &mut Vec<(usize, Vec<u8>)>, code: &mut Code, shares: &[Option<&[u8]>]| {
                let mut into: Vec<(usize, &mut [u8])> =
                    it.iter_mut().map(|(i, bytes)| (*i, bytes.as_mut_slice())).collect();
                code.rebuild(shares, &mut into)
            };
            into(&mut rebuilt, &mut code, &shares).unwrap();
            for (i, bytes) in &rebuilt {
                let mut want = part(&images[*i], start..end).to_vec();
                want.resize(end - start, 0);
                prop_assert_eq!(bytes, &want, "image {} of {}", i, scheme);
            }
            // One more, where that leaves somebody to rebuild.
            if rebuilt.is_empty() {
                continue;
            }
            shares[order[scheme.parity()]] = None;
            let error = into(&mut rebuilt, &mut code, &shares).unwrap_err();
            prop_assert_eq!(error.errno(), libc::ENODATA);
            let words = format!("{} shares of a group are there, and {members} are", members - 1);
            prop_assert!(error.to_string().contains(&words), "{}", error);
        }
    }

    /// Where only what has changed is computed again, parity is that of a computation from nothing.
    #[test]
    fn incremental_parity_equals_full_parity(
        scheme in prop::sample::select(SCHEMES.as_slice()),
        lengths in prop::collection::vec(0usize..80_000, 9),
        rounds in prop::collection::vec(
            prop::collection::vec((0usize..9, any::<prop::sample::Index>(), 1usize..9000, any::<u8>()), 0..12),
            1..4,
        ),
        seed in any::<u64>(),
    ) {
        let scheme: Scheme = scheme.parse().unwrap();
        let members = scheme.group();
        let mut code = Code::new(scheme, members).unwrap();
        let mut images: Vec<Vec<u8>> = lengths[..members]
            .iter()
            .enumerate()
            .map(|(i, bytes)| image(*bytes, seed.wrapping_add(i as u64)))
            .collect();
        let mut parity = full(&mut code, &images);
        for round in rounds {
            let mut stale = PageSet::new(chunks(&images));
            for (member, at, long, byte) in round {
                let image = &mut images[member % members];
                if image.is_empty() {
                    continue;
                }
                let start = at.index(image.len());
                let end = (start + long).min(image.len());
                image[start..end].fill(byte);
                stale.insert_range(start / PAGE..end.div_ceil(PAGE));
            }
            update(&mut code, &images, &stale, &mut parity);
            prop_assert_eq!(&parity, &full(&mut code, &images));
        }
    }

    /// Stripes are the stale chunks, each once, and none is too long.
    #[test]
    fn stripes_are_what_is_stale(runs in prop::collection::vec((0usize..500, 0usize..90), 0..8)) {
        let mut stale = PageSet::new(600);
        runs.iter().for_each(|(start, many)| stale.insert_range(*start..start + many));
        let all: Vec<_> = stripes(&stale).collect();
        prop_assert!(all.iter().all(|it| !it.is_empty() && it.len() * PAGE <= STRIPE));
        let chunks: Vec<usize> = all.into_iter().flatten().collect();
        prop_assert_eq!(chunks, stale.runs().flatten().collect::<Vec<_>>());
    }
}

#[test]
fn one_share_alone_is_what_it_is_among_all() {
    let mut code = Code::new("rs:5+3".parse().unwrap(), 5).unwrap();
    let images: Vec<Vec<u8>> = (0..5).map(|i| image(3 * PAGE, i)).collect();
    let parity = full(&mut code, &images);
    let parts: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    for index in [2, 0] {
        let mut alone = vec![0; 3 * PAGE];
        code.encode(&parts, &mut [(index, &mut alone)]).unwrap();
        assert_eq!(alone, parity[index]);
    }
}

#[test]
fn a_call_that_makes_no_sense_is_refused() {
    let refused = |error: Error, words: &str| {
        assert_eq!(error.errno(), libc::EINVAL);
        assert!(error.to_string().contains(words), "{error}");
    };
    let new = |scheme, members| Code::new(scheme, members).map(drop);
    refused(new(Scheme::Copies(2), 1).unwrap_err(), "copies:2 has no parity");
    refused(new(Scheme::Xor { group: 4 }, 5).unwrap_err(), "xor:4 has no group of 5");
    refused(new(Scheme::Xor { group: 4 }, 0).unwrap_err(), "xor:4 has no group of 0");
    refused(new(Scheme::Xor { group: 99 }, 4).unwrap_err(), "the group must be");
    for scheme in ["xor:2", "rs:2+1"] {
        let mut code = Code::new(scheme.parse().unwrap(), 2).unwrap();
        let (mut out, image) = ([0; 128], [7; 128]);
        let two: [&[u8]; 2] = [&image, &image];
        let mut encode = |images: &[&[u8]], index, length: usize| {
            code.encode(images, &mut [(index, &mut out[..length])]).unwrap_err()
        };
        refused(encode(&two[..1], 0, 128), "1 shares for a code of 2");
        refused(encode(&two, 0, 64), "128 bytes in a stripe of 64");
        refused(encode(&two, 0, 100), "multiple of 64");
        refused(encode(&two, 0, 0), "multiple of 64");
        refused(encode(&two, 1, 128), "parity 1 of 1");
        let mut long = vec![0; MAX_STRIPE + UNIT];
        let error = code.encode(&two, &mut [(0, &mut long)]).unwrap_err();
        refused(error, "at most");
        let mut rebuild = |shares: &[Option<&[u8]>], index, length: usize| {
            code.rebuild(shares, &mut [(index, &mut out[..length])]).unwrap_err()
        };
        let some = Some(image.as_slice());
        refused(rebuild(&[some, some], 0, 128), "2 shares for a code of 3");
        refused(rebuild(&[some, None, some], 0, 128), "image 0 of 2");
        refused(rebuild(&[None, some, some], 2, 128), "image 2 of 2");
        refused(rebuild(&[None, some, some], 0, 64), "128 bytes in a stripe of 64");
        // What was refused has left nothing behind.
        code.encode(&two, &mut [(0, &mut out)]).unwrap();
        let parity = out;
        let mut again = [1; 128];
        code.rebuild(&[None, some, Some(&parity)], &mut [(0, &mut again)]).unwrap();
        assert_eq!(again, image);
    }
}
