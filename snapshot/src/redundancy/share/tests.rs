use super::*;
use proptest::prelude::*;

fn headers() -> impl Strategy<Value = Header> {
    let scheme = prop_oneof![
        (2usize..=64).prop_map(|group| Scheme::Xor { group }),
        (2usize..=64, 1usize..=16).prop_map(|(data, parity)| Scheme::ReedSolomon { data, parity }),
    ];
    let image = (1u64..200_000, any::<u64>());
    let images = prop::collection::vec(image, 64);
    let rest = (any::<u32>(), any::<u64>(), any::<prop::sample::Index>(), any::<u32>());
    (scheme, images, rest, any::<prop::sample::Index>()).prop_map(
        |(scheme, images, (group, epoch, index, first), many)| {
            let images = images.into_iter().take(many.index(scheme.group()) + 1);
            let image = |(i, (bytes, seal)): (usize, (u64, u64))| Image {
                process: ProcessId(first.wrapping_add(i as u32)),
                epoch,
                bytes,
                seal,
            };
            let images = images.enumerate().map(image).collect();
            Header { scheme, group, index: index.index(scheme.parity()), images }
        },
    )
}

fn table(header: &Header) -> Table {
    let mut table = Table::new(header.chunks());
    for chunk in 0..table.chunks() {
        table.set(chunk, &[chunk as u8; PAGE]).unwrap();
    }
    table
}

proptest! {
    /// What was encoded is decoded; and with any one byte changed it is refused.
    #[test]
    fn a_header_is_what_was_written_or_nothing(
        header in headers(),
        at in 0..PAGE,
        flip in 1u8..=255,
    ) {
        let table = table(&header);
        let mut page = header.encode(&table).unwrap();
        let (decoded, crc) = Header::decode(page.as_slice()).unwrap();
        prop_assert_eq!(&decoded, &header);
        let mut bytes = table.as_bytes().to_vec();
        prop_assert_eq!(Table::decode(&decoded, crc, &bytes).unwrap(), table);
        page[at] ^= flip;
        prop_assert_eq!(Header::decode(page.as_slice()).unwrap_err().errno(), libc::EBADMSG);
        let at = at % bytes.len();
        bytes[at] ^= flip;
        prop_assert_eq!(Table::decode(&decoded, crc, &bytes).unwrap_err().errno(), libc::EBADMSG);
        bytes.pop();
        prop_assert!(Table::decode(&decoded, crc, &bytes).is_err());
    }

    /// Nothing that is decoded breaks a bound, even where somebody has made the checksum right.
    #[test]
    fn no_bytes_are_believed(
        header in headers(),
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
        noise in prop::collection::vec(any::<u8>(), 0..PAGE + 10),
    ) {
        let _ = Header::decode(&noise);
        let mut page = header.encode(&table(&header)).unwrap();
        for (at, byte) in changes {
            page[at] = byte;
        }
        page[CRC].fill(0);
        let crc = crc32c::crc32c(page.as_slice());
        page[CRC].copy_from_slice(&crc.to_le_bytes());
        if let Ok((decoded, _)) = Header::decode(page.as_slice()) {
            prop_assert!(decoded.check().is_ok());
            prop_assert!(Parts::new(decoded.chunks()).is_ok());
        }
    }

    /// Parts follow one another and do not overlap; every chunk is aligned.
    #[test]
    fn parts_do_not_overlap(chunks in 0usize..5000) {
        let parts = Parts::new(chunks).unwrap();
        prop_assert_eq!(parts.header().end, parts.table().start);
        let all = parts.chunks(0..chunks);
        prop_assert!(parts.table().end <= all.start && all.start.is_multiple_of(PAGE));
        prop_assert_eq!((all.len(), all.end), (chunks * PAGE, parts.bytes()));
    }
}

#[test]
fn a_share_that_is_not_whole_is_said_to_be_so() {
    assert_eq!(Header::decode(&[0; PAGE]).unwrap_err().errno(), libc::ENODATA);
    assert_eq!(Header::decode(&[0; PAGE - 1]).unwrap_err().errno(), libc::EBADMSG);
    assert!(Parts::new(Parts::MAX_CHUNKS).is_ok());
    assert!(Parts::new(Parts::MAX_CHUNKS + 1).is_err());
}

#[test]
fn a_share_of_different_epochs_can_not_be_made() {
    let image = |process, epoch| Image { process: ProcessId(process), epoch, bytes: 9, seal: 1 };
    let header = |images: &[Image]| Header {
        scheme: Scheme::Xor { group: 2 },
        group: 3,
        index: 0,
        images: images.to_vec(),
    };
    let refused = |header: Header, words: &str| {
        let error = header.encode(&Table::new(1)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(header(&[image(1, 4), image(2, 5)]), "process 2 is at epoch 5, others at 4");
    refused(header(&[image(1, 4), image(1, 4)]), "process 1 is in it twice");
    refused(header(&[]), "no group of 0");
    refused(header(&[image(1, 4), image(2, 4), image(3, 4)]), "no group of 3");
    refused(Header { index: 1, ..header(&[image(1, 4)]) }, "xor:2 has 1 shares of parity");
    let long = Image { bytes: Image::MAX_BYTES + 1, ..image(1, 4) };
    refused(header(&[long, image(2, 4)]), "process 1 has an image of 140737488355329 bytes");
    refused(header(&[Image { bytes: 0, ..image(1, 4) }]), "process 1 has an image of 0 bytes");
    let two = Image { bytes: PAGE as u64 + 1, ..image(1, 4) };
    refused(header(&[image(2, 4), two]), "checksums of 1 chunks for 2");
}

#[test]
fn a_damaged_chunk_is_noticed() {
    let mut table = Table::new(3);
    let chunk = [7; PAGE];
    table.set(1, &[chunk, chunk].concat()).unwrap();
    assert!(table.check(1, &chunk).is_ok() && table.check(2, &chunk).is_ok());
    assert_eq!(table.check(0, &chunk).unwrap_err().errno(), libc::EBADMSG);
    assert!(table.check(3, &chunk).is_err());
    assert!(table.check(1, &chunk[1..]).is_err());
    for at in [0, 1000, PAGE - 1] {
        let mut damaged = chunk;
        damaged[at] ^= 1;
        let error = table.check(1, &damaged).unwrap_err().to_string();
        assert!(error.contains("chunk 1 of a share of parity is damaged"), "{error}");
    }
    assert!(table.set(2, &[chunk, chunk].concat()).is_err());
}
