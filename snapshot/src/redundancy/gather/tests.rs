use super::*;
use proptest::prelude::*;
use sojourn_fabric::names::ProcessId;

/// Stores in ordinary memory, in which something happens after so many calls.
#[derive(Clone, Default)]
struct Memory {
    images: Vec<(Option<Image>, Vec<u8>)>,
    calls: usize,
    read: usize,
    /// After how many calls, to which member, what.
    event: Option<(usize, usize, Event)>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Its writer begins with another epoch: incomplete, then other bytes.
    Overwrite,
    /// The same, and it is complete again, as another attempt at the same epoch.
    Again,
    /// It does not answer any more.
    Dead,
}

fn image(member: usize, epoch: u64, bytes: usize, seal: u64) -> Image {
    Image { process: ProcessId(member as u32 + 1), epoch, bytes: bytes as u64, seal }
}

impl Memory {
    fn new(lengths: &[usize], epoch: u64, seed: usize) -> Self {
        let one = |(i, bytes): (usize, &usize)| {
            let byte = |at: usize| (at / 7 * (i + 3) + at + seed) as u8;
            (Some(image(i, epoch, *bytes, 1)), (0..*bytes).map(byte).collect())
        };
        Memory { images: lengths.iter().enumerate().map(one).collect(), ..Memory::default() }
    }

    fn tick(&mut self) -> Result<()> {
        self.calls += 1;
        let Some((after, member, event)) = self.event else { return Ok(()) };
        if self.calls <= after {
            return Ok(());
        }
        if let Event::Dead = event {
            return Err(Error::new(libc::EIO, "the store does not answer"));
        }
        self.event = None;
        let (image, bytes) = &mut self.images[member];
        bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
        match (event, image) {
            (Event::Again, Some(image)) => image.seal += 1,
            (_, image) => *image = None,
        }
        Ok(())
    }

    /// Parity, byte by byte: of XOR alone.
    fn xor(&self, at: usize) -> u8 {
        self.images.iter().filter_map(|(_, bytes)| bytes.get(at)).fold(0, |sum, it| sum ^ it)
    }
}

impl Source for Memory {
    fn image(&mut self, member: usize, epoch: u64) -> Result<Option<Image>> {
        self.tick()?;
        Ok(self.images[member].0.filter(|image| image.epoch == epoch))
    }

    fn read(&mut self, member: usize, at: u64, into: &mut [u8]) -> Result<bool> {
        self.tick()?;
        self.read += into.len();
        let bytes = &self.images[member].1[at as usize..at as usize + into.len()];
        into.copy_from_slice(bytes);
        Ok(bytes.iter().any(|byte| *byte != 0))
    }
}

/// The share, as somebody reads it who believes nothing.
fn open(share: &[u8]) -> Result<(Header, Vec<u8>)> {
    let (header, crc) = Header::decode(share)?;
    let parts = Parts::new(header.chunks())?;
    let table = Table::decode(&header, crc, &share[parts.table()])?;
    let bytes = &share[parts.chunks(0..header.chunks())];
    for (i, chunk) in bytes.chunks(PAGE).enumerate() {
        table.check(i, chunk)?;
    }
    Ok((header, bytes.to_vec()))
}

#[test]
fn a_share_is_made_of_what_the_stores_have() {
    let lengths = [3 * PAGE + 5, 40, 200_000];
    let mut memory = Memory::new(&lengths, 4, 0);
    let mut gather = Gather::new("xor:3".parse().unwrap(), 7, 0, 3).unwrap();
    let mut share = Vec::new();
    let made = gather.make(4, &mut memory, &mut share).unwrap();
    let (header, bytes) = open(&share).unwrap();
    assert_eq!((&header, header.group, header.epoch()), (&made.header, 7, 4));
    assert_eq!(made.computed, 200_000usize.div_ceil(PAGE));
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == memory.xor(at)));
    // Behind the end of an image nothing is read.
    assert_eq!(memory.read, lengths.iter().sum::<usize>());
    // Only what is stale is read again.
    memory.read = 0;
    memory.images[2].1[100_000] ^= 1;
    memory.images.iter_mut().flat_map(|(image, _)| image).for_each(|it| it.epoch = 6);
    let mut changed = PageSet::new(60);
    changed.insert(100_000 / PAGE);
    changed.insert(59);
    gather.mark(&changed);
    let made = gather.make(6, &mut memory, &mut share).unwrap();
    assert_eq!((made.computed, memory.read, gather.stale()), (1, PAGE, 0));
    let (header, bytes) = open(&share).unwrap();
    assert_eq!(header.epoch(), 6);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == memory.xor(at)));
    // An image that is shorter than it was has zeros there now.
    memory.images[0].1.truncate(PAGE);
    memory.images[0].0 = Some(image(0, 6, PAGE, 2));
    gather.make(6, &mut memory, &mut share).unwrap();
    let (_, bytes) = open(&share).unwrap();
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == memory.xor(at)));
}

#[test]
fn images_of_different_epochs_make_no_share() {
    let mut memory = Memory::new(&[100, 100], 4, 0);
    memory.images[1].0 = Some(image(1, 5, 100, 1));
    let mut gather = Gather::new("xor:2".parse().unwrap(), 0, 0, 2).unwrap();
    let mut share = vec![7; 3 * PAGE];
    for epoch in [4, 5] {
        let error = gather.make(epoch, &mut memory, &mut share).unwrap_err();
        assert_eq!(error.errno(), libc::EAGAIN);
        assert!(error.to_string().contains(&format!("no complete image of epoch {epoch}")));
        assert_eq!(open(&share).unwrap_err().errno(), libc::ENODATA);
    }
    assert!(Gather::new("xor:2".parse().unwrap(), 0, 1, 2).is_err());
    assert!(Gather::new("xor:2".parse().unwrap(), 0, 0, 3).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens to a member at whatever time: the share is whole and of the images that it names, or
    /// it is incomplete; and when everything stands still again, it can be made.
    #[test]
    fn a_share_is_of_the_images_that_it_names_or_of_none(
        lengths in prop::collection::vec(1usize..150_000, 2..5),
        (after, member) in (0usize..28, any::<prop::sample::Index>()),
        event in prop::sample::select(vec![Event::Overwrite, Event::Again, Event::Dead]),
        before in any::<bool>(),
    ) {
        let members = lengths.len();
        let scheme: Scheme = "xor:4".parse().unwrap();
        let mut gather = Gather::new(scheme, 0, 0, members).unwrap();
        let mut share = Vec::new();
        if before {
            // There is a share of an earlier epoch, and all of it is stale.
            let mut old = Memory::new(&lengths, 2, 9);
            gather.make(2, &mut old, &mut share).unwrap();
            gather.mark(&PageSet::full(Parts::MAX_CHUNKS.min(100)));
        }
        let mut memory = Memory::new(&lengths, 4, 0);
        memory.event = Some((after, member.index(members), event));
        let untouched = memory.clone();
        match gather.make(4, &mut memory, &mut share) {
            Ok(made) => {
                let (header, bytes) = open(&share).unwrap();
                prop_assert_eq!(&header, &made.header);
                // Of the images from before the event, or of those from behind it.
                let of = |memory: &Memory| {
                    let images = memory.images.iter().map(|(image, _)| *image);
                    images.eq(header.images.iter().map(|it| Some(*it)))
                };
                let seen = if of(&untouched) { &untouched } else { &memory };
                prop_assert!(of(seen));
                let right = |(at, byte): (usize, &u8)| *byte == seen.xor(at);
                prop_assert!(bytes.iter().enumerate().all(right));
            }
            Err(error) => {
                prop_assert!([libc::EAGAIN, libc::EIO].contains(&error.errno()), "{}", error);
                prop_assert_eq!(open(&share).unwrap_err().errno(), libc::ENODATA);
            }
        }
        // All have another attempt, and nothing happens.
        let mut memory = Memory::new(&lengths, 4, 33);
        if gather.stale() == 0 {
            gather.mark(&PageSet::full(100));
        }
        gather.make(4, &mut memory, &mut share).unwrap();
        let (_, bytes) = open(&share).unwrap();
        prop_assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == memory.xor(at)));
    }

    /// Each store makes its own share, and together they make up for what the scheme says.
    #[test]
    fn shares_that_stores_make_rebuild_the_images(
        lengths in prop::collection::vec(1usize..60_000, 4),
        lost in prop::sample::subsequence((0usize..6).collect::<Vec<_>>(), 2),
        damaged in any::<prop::sample::Index>(),
    ) {
        let scheme: Scheme = "rs:4+2".parse().unwrap();
        let memory = Memory::new(&lengths, 4, 5);
        let mut all: Vec<Vec<u8>> = memory.images.iter().map(|(_, bytes)| bytes.clone()).collect();
        for index in 0..2 {
            let mut share = Vec::new();
            let mut gather = Gather::new(scheme, 0, index, 4).unwrap();
            gather.make(4, &mut memory.clone(), &mut share).unwrap();
            // One damaged byte is noticed, in whatever part it is (gaps belong to nothing).
            let mut bad = share.clone();
            let at = damaged.index(bad.len());
            bad[at] ^= 0x40;
            let (header, bytes) = open(&share).unwrap();
            let parts = Parts::new(header.chunks()).unwrap();
            let gap = parts.table().end..parts.chunks(0..1).start;
            prop_assert_eq!(open(&bad).is_err(), !gap.contains(&at));
            all.push(bytes);
        }
        let length = all[4].len();
        let shares: Vec<Option<&[u8]>> =
            (0..6).map(|i| (!lost.contains(&i)).then_some(all[i].as_slice())).collect();
        let mut code = Code::new(scheme, 4).unwrap();
        for &i in lost.iter().filter(|i| **i < 4) {
            let mut out = vec![1; length];
            code.rebuild(&shares, &mut [(i, &mut out)]).unwrap();
            prop_assert_eq!(&out[..all[i].len()], &all[i]);
            prop_assert!(out[all[i].len()..].iter().all(|byte| *byte == 0));
        }
    }
}
