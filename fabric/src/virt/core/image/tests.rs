//! Whatever the bytes are, decoding them is safe.

use super::*;
use crate::abi::{QpAttr, Wc, qp_state, qp_type};
use crate::names::{JobId, ProcessId};
use proptest::prelude::*;
use sojourn_logging::{Element, Opcode, Past, SendEntry};

/// A context with one of everything.
fn sample() -> Image {
    let element = Element { addr: 0x7000_0000, length: 64, lkey: 0x100 };
    let request = |opcode: Opcode, inline: &[u8]| {
        let flags = if inline.is_empty() { 2 } else { 2 | 8 };
        let elements = if inline.is_empty() { vec![element.into(); 2] } else { Vec::new() };
        let entry = SendEntry { wr_id: 77, opcode, flags, rkey: 0x100, ..SendEntry::empty() };
        RequestImage::new(&entry, elements, inline.to_vec())
    };
    let receive = || ReceiveImage { wr_id: 8, elements: vec![element.into()] };
    let qp = |at: u32, state: u32, link: Link| QpImage {
        qpn: 2 + at,
        qp_type: qp_type::RC,
        cap: [16, 16, 4, 4, 64],
        send_cq: 0,
        recv_cq: 1,
        state,
        attr: AttrImage::new(&QpAttr { dest_qp_num: 3, ..QpAttr::default() }),
        link,
        met: Some((1, 3)),
        sends: SendsImage {
            first: 100,
            past: Some(Past { base: 40, messages: 30 }),
            ..SendsImage::default()
        },
        recvs: RecvsImage {
            first: 90,
            entries: vec![receive(); 3],
            base: 50,
            ..RecvsImage::default()
        },
        ..QpImage::default()
    };
    let mut first = qp(0, qp_state::RTS, Link::Within(1));
    first.sends.entries = vec![
        request(Opcode::Send, b"by value"),
        request(Opcode::Write, &[]),
        request(Opcode::Read, &[]),
        request(Opcode::FetchAdd, &[]),
    ];
    (first.sends.handed, first.sends.executed, first.sends.replays) =
        (3, vec![0], vec![(1, 5), (2, 0)]);
    let mut failed = qp(2, qp_state::ERR, Link::Alone);
    failed.sends.entries = vec![request(Opcode::Write, &[])];
    failed.sends.failing = Some(Failing { first: 99, status: 12 });
    let mut shared = qp(3, qp_state::INIT, Link::Alone);
    (shared.srq, shared.cap[1], shared.recvs.entries) = (Some(0), 0, Vec::new());
    Image {
        identity: IdentityImage { job: JobId(7), process: ProcessId(3), incarnation: 2 },
        names: NamesImage {
            qpns: Dealt { next: 9, resting: vec![7, 6], generations: vec![0; 8] },
            keys: Dealt { next: 4, resting: vec![2], generations: vec![0, 0, 1] },
            devices: 1,
            last_ah: 5,
        },
        mtu: 5,
        pds: vec![PdImage { single_threaded: true }],
        regions: vec![RegionImage {
            key: 0x100,
            pd: 0,
            addr: 0x7000_0000,
            length: 4096,
            access: 7,
        }],
        channels: vec![ChannelImage { ready: vec![4] }],
        cqs: vec![
            CqImage { cqe: 4, ..CqImage::default() },
            CqImage {
                user: 4,
                cqe: 16,
                channel: Some(0),
                armed: 1,
                unread: vec![CompletionImage::new(&Wc { wr_id: 1, qp_num: 2, ..Wc::default() })],
                ..CqImage::default()
            },
        ],
        srqs: vec![SrqImage {
            max_wr: 4,
            max_sge: 2,
            limit: 1,
            receives: vec![receive(); 2],
            ..SrqImage::default()
        }],
        ahs: vec![AddressHandleImage { number: 5, ..AddressHandleImage::default() }],
        qps: vec![first, qp(1, qp_state::RTS, Link::Within(0)), failed, shared],
        events: vec![EventImage { event_type: 3, about: About::Qp(2) }],
    }
}

/// Promise: what was written is what is read.
#[test]
fn an_image_survives_its_bytes() {
    let image = sample();
    assert_eq!(decode(&encode(&image).unwrap()).unwrap(), image);
    assert_eq!(
        decode(
            &encode(&Image {
                names: NamesImage {
                    qpns: Dealt { next: 2, ..Dealt::default() },
                    keys: Dealt { next: 1, ..Dealt::default() },
                    ..NamesImage::default()
                },
                ..Image::default()
            })
            .unwrap()
        )
        .unwrap()
        .qps,
        []
    );
}

/// Promise: another version is not guessed at, and is named; nor is what is no image at all.
#[test]
fn other_versions_and_other_things_are_refused_by_name() {
    let mut bytes = encode(&sample()).unwrap();
    bytes[MAGIC.len()] = 2;
    let error = decode(&bytes).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP);
    assert!(error.to_string().contains("version 2: this library reads version 1"), "{error}");
    bytes[0] = b'X';
    let error = decode(&bytes).unwrap_err().to_string();
    assert!(error.contains("no captured windows"), "{error}");
    let mut bytes = encode(&sample()).unwrap();
    bytes.push(0);
    let error = decode(&bytes).unwrap_err().to_string();
    assert!(error.contains("1 bytes too many"), "{error}");
}

/// Promise: an image of what a context cannot be is refused, and says what is wrong.
#[test]
fn what_cannot_be_is_refused() {
    type Change = fn(&mut Image);
    let wrong: [(&str, Change); 32] = [
        ("memory windows", |it| it.regions[0].access |= crate::abi::access::MW_BIND),
        ("the process", |it| it.identity.process.0 = 0),
        ("more were dealt", |it| it.names.qpns.next = 1 << 17),
        ("rests that was not dealt", |it| it.names.qpns.resting.push(12)),
        ("rests twice", |it| it.names.qpns.resting.push(7)),
        ("too many generations", |it| it.names.keys.generations = vec![0; 5]),
        ("its name was not dealt", |it| it.regions[0].key = 0x200),
        ("it is there twice", |it| it.regions.push(it.regions[0])),
        ("no memory", |it| it.regions[0].length = 0),
        ("no memory", |it| it.regions[0].addr = u64::MAX - 9),
        ("no protection domain", |it| it.regions[0].pd = 1),
        ("its size cannot be", |it| it.cqs[0].cqe = 0),
        ("its channel is not there", |it| it.cqs[1].channel = Some(1)),
        ("armed so", |it| it.cqs[0].armed = 1),
        ("its limit", |it| it.srqs[0].limit = 5),
        ("more receives than", |it| it.srqs[0].max_wr = 1),
        ("too many elements", |it| it.srqs[0].max_sge = 0),
        ("its number was not dealt", |it| it.ahs[0].number = 6),
        ("24 bits", |it| it.qps[0].qpn = 1 << 24 | 2),
        ("no such type", |it| it.qps[0].qp_type = 99),
        ("no completion queue", |it| it.qps[0].recv_cq = 2),
        ("in no state", |it| it.qps[3].state = qp_state::SQD),
        ("its peer is not connected", |it| it.qps[1].link = Link::Gone),
        ("connected to nobody", |it| it.qps[0].link = Link::Alone),
        ("more requests than", |it| it.qps[0].cap[0] = 3),
        ("flags that do not exist", |it| it.qps[0].sends.entries[0].flags = 0x8000),
        ("more than there is room for", |it| it.qps[0].sends.entries[0].inline = vec![0; 65]),
        ("of a kind", |it| it.qps[0].sends.entries[0].opcode = 9),
        ("to be done again from where", |it| it.qps[0].sends.replays[1].1 = 1),
        ("not in order", |it| it.qps[0].sends.replays.swap(0, 1)),
        ("nothing says what has become", |it| it.qps[0].sends.handed = 4),
        ("a past that cannot be", |it| {
            it.qps[0].sends.past = Some(Past { base: 101, messages: 0 });
        }),
    ];
    for (text, change) in wrong {
        let mut image = sample();
        change(&mut image);
        let error = decode(&encode(&image).unwrap()).unwrap_err().to_string();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    }
}

/// Bytes of all that an image holds, roughly.
fn size(image: &Image) -> usize {
    let text = format!("{image:?}");
    text.len()
}

proptest! {
    /// Promise: of an image that was cut off nothing is taken.
    #[test]
    fn truncated_images_are_refused(cut in any::<prop::sample::Index>()) {
        let bytes = encode(&sample()).unwrap();
        prop_assert!(decode(&bytes[..cut.index(bytes.len())]).is_err());
    }

    /// Promise: damaged bytes never panic, and what is taken of them is an image with all its limits.
    #[test]
    fn flipped_bits_do_no_harm(flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4)) {
        let mut bytes = encode(&sample()).unwrap();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(image) = decode(&bytes) {
            prop_assert_eq!(decode(&encode(&image).unwrap()).unwrap(), image);
        }
    }

    /// Promise: neither do bytes of chance behind a true header, nor do they become much more than they
    /// were.
    #[test]
    fn bytes_of_chance_do_no_harm(body in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(&body);
        if let Ok((image, _)) = postcard::take_from_bytes::<Image>(&body) {
            prop_assert!(size(&image) < 10_000 + 1000 * body.len());
        }
        let _ = decode(&bytes);
        let _ = decode(&body);
    }
}
