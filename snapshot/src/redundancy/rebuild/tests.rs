use super::super::share::Table;
use super::*;
use proptest::prelude::*;

const SCHEMES: [&str; 4] = ["xor:3", "rs:3+1", "rs:4+2", "rs:3+3"];

/// Shares in ordinary memory, with the checksums of their chunks.
struct Memory {
    shares: Vec<(Vec<u8>, Table)>,
    reads: usize,
}

impl Survivors for Memory {
    fn read(&mut self, share: usize, chunks: Range<usize>, into: &mut [u8]) -> Result<bool> {
        self.reads += 1;
        let (bytes, table) = &self.shares[share];
        let start = chunks.start * PAGE;
        into.copy_from_slice(&bytes[start..start + into.len()]);
        for (chunk, bytes) in chunks.zip(into.chunks(PAGE)) {
            let mut whole = bytes.to_vec();
            whole.resize(PAGE, 0);
            table.check(chunk, &whole)?;
        }
        Ok(into.iter().any(|byte| *byte != 0))
    }
}

/// A group with its parity: the images, and what there is of it in memory.
fn group(scheme: Scheme, lengths: &[usize], seed: u64) -> (Vec<Image>, Memory) {
    let mut code = Code::new(scheme, lengths.len()).unwrap();
    let chunks = lengths.iter().max().unwrap().div_ceil(PAGE);
    let byte = |i: usize, at: usize| {
        if (at / PAGE + i).is_multiple_of(4) {
            0
        } else {
            ((at * 7 + i * 13) as u64 ^ seed >> (at % 50)) as u8
        }
    };
    let mut all: Vec<Vec<u8>> = lengths
        .iter()
        .enumerate()
        .map(|(i, bytes)| (0..*bytes).map(|at| byte(i, at)).collect())
        .collect();
    let mut parity = vec![vec![0; chunks * PAGE]; scheme.parity()];
    let images: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    let mut wanted: Vec<(usize, &mut [u8])> =
        parity.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
    code.encode(&images, &mut wanted).unwrap();
    all.extend(parity);
    let image = |(i, bytes): (usize, &usize)| Image {
        process: ProcessId(i as u32 + 1),
        epoch: 3,
        bytes: *bytes as u64,
        seal: 5,
    };
    let images = lengths.iter().enumerate().map(image).collect();
    let share = |bytes: Vec<u8>| {
        let mut table = Table::new(bytes.len().div_ceil(PAGE));
        let mut whole = bytes.clone();
        whole.resize(table.chunks() * PAGE, 0);
        table.set(0, &whole).unwrap();
        (bytes, table)
    };
    (images, Memory { shares: all.into_iter().map(share).collect(), reads: 0 })
}

fn step(images: &[Image], index: usize, shares: impl Iterator<Item = usize>) -> Step {
    let shares = shares.filter(|it| *it != index).map(|it| (it, format!("s{it}"))).collect();
    Step::Rebuild { image: images[index], index, group: images.to_vec(), shares }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// In each chunk as many shares may be damaged as the scheme makes up for, the lost one among them:
    /// what is rebuilt is what was lost. With one more in one chunk, it is that chunk that is named, and
    /// nothing wrong is returned.
    #[test]
    fn damaged_chunks_count_as_lost(
        scheme in prop::sample::select(SCHEMES.as_slice()),
        lengths in prop::collection::vec(1usize..60_000, 4),
        (index, seed) in (any::<prop::sample::Index>(), any::<u64>()),
        order in prop::collection::vec(any::<u64>(), 16),
        beyond in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let scheme: Scheme = scheme.parse().unwrap();
        let lengths = &lengths[..scheme.group()];
        let index = index.index(lengths.len());
        let (images, mut memory) = group(scheme, lengths, seed);
        let all = memory.shares.len();
        let want = memory.shares[index].0.clone();
        let beyond = beyond.map(|it| it.index(images[index].chunks()));
        let mut too_many = None;
        for chunk in 0..images[index].chunks() {
            let more = usize::from(beyond == Some(chunk));
            // Other shares for each chunk.
            let first = order[chunk % order.len()] as usize;
            let others = (0..all).map(|i| (i + first) % all).filter(|it| *it != index);
            let mut damaged = 0;
            for share in others.take(scheme.parity() - 1 + more) {
                let bytes = &mut memory.shares[share].0;
                if let Some(byte) = bytes.get_mut(chunk * PAGE + first % 64) {
                    *byte ^= 1;
                    damaged += 1;
                }
            }
            if damaged == scheme.parity() {
                too_many = Some(chunk);
            }
        }
        let mut rebuild = Rebuild::new(scheme, &step(&images, index, 0..all)).unwrap();
        const MOST: usize = Rebuild::STRIPE / PAGE;
        for start in (0..rebuild.chunks()).step_by(MOST) {
            let chunks = start..rebuild.chunks().min(start + MOST);
            let mut into = vec![9; chunks.len() * PAGE];
            let done = rebuild.stripe(chunks.clone(), &mut memory, &mut into);
            if let Some(chunk) = too_many.filter(|it| chunks.contains(it)) {
                let error = done.unwrap_err();
                prop_assert_eq!(error.errno(), libc::ENODATA);
                let words = format!("chunks {chunk}..{} of process {}", chunk + 1, index + 1);
                prop_assert!(error.to_string().contains(&words), "{}", error);
                prop_assert!(error.to_string().contains("damaged"), "{}", error);
                continue;
            }
            done.unwrap();
            let mut part = want[start * PAGE..want.len().min(chunks.end * PAGE)].to_vec();
            part.resize(into.len(), 0);
            prop_assert!(into == part);
        }
    }
}

#[test]
fn no_more_is_read_than_is_needed() {
    let scheme: Scheme = "rs:3+2".parse().unwrap();
    let (images, mut memory) = group(scheme, &[PAGE, PAGE, 3 * PAGE], 1);
    let mut rebuild = Rebuild::new(scheme, &step(&images, 2, 0..5)).unwrap();
    let mut into = vec![0; PAGE];
    rebuild.stripe(0..1, &mut memory, &mut into).unwrap();
    assert_eq!(memory.reads, 3);
    // Behind the end of the two others.
    rebuild.stripe(2..3, &mut memory, &mut into).unwrap();
    assert_eq!(memory.reads, 4);
    assert_eq!(into, memory.shares[2].0[2 * PAGE..]);
}

#[test]
fn a_step_or_stripe_that_makes_no_sense_is_refused() {
    let scheme: Scheme = "xor:2".parse().unwrap();
    let (images, mut memory) = group(scheme, &[PAGE, 20 * PAGE], 1);
    let refused = |step: &Step| {
        assert_eq!(Rebuild::new(scheme, step).err().map(|it| it.errno()), Some(libc::EINVAL));
    };
    refused(&Step::Read { image: images[0], stores: Vec::new() });
    refused(&step(&images, 0, 1..4));
    refused(&Step::Rebuild {
        image: images[1],
        index: 0,
        group: images.clone(),
        shares: vec![(1, "a".into()), (2, "b".into())],
    });
    let mut rebuild = Rebuild::new(scheme, &step(&images, 1, 0..3)).unwrap();
    let mut into = vec![0; 20 * PAGE];
    for (chunks, bytes) in [(0..0, 0), (20..21, PAGE), (0..1, 2 * PAGE), (0..20, 20 * PAGE)] {
        let error = rebuild.stripe(chunks, &mut memory, &mut into[..bytes]).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
    }
    rebuild.stripe(3..9, &mut memory, &mut into[..6 * PAGE]).unwrap();
    assert_eq!(into[..6 * PAGE], memory.shares[1].0[3 * PAGE..9 * PAGE]);
}
