//! What is said on a control connection, and its limits.
//!
//! postcard encodes; [`decode`] accepts a message only whole, without a byte left over, and within
//! the limits below, so that nothing past this module checks again. Nothing here does IO.

use std::time::Instant;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sojourn_logging::remap;

use super::session::MAX_MESSAGE;
use super::types::{
    Address, Fetch, Grant, Incarnation, KeyRecord, Order, PhysicalEnd, ProcessId, Record,
    Whereabouts,
};

/// Largest note. Enough for one 32-bit name for each of 8,192 ranks.
pub const MAX_NOTE: usize = 32 * 1024;
/// Longest name of a note.
pub const MAX_NOTE_NAME: usize = 255;
/// Most queue pairs of which one message says that they have moved: 60 bytes each.
pub const MAX_MOVED: usize = 512;
/// Most queue pairs of which one message says what an epoch has consumed: 21 bytes each.
pub const MAX_COVERS: usize = 1024;
/// Most words of marks in one message that says what was written: 25 bytes each.
pub const MAX_WRITTEN: usize = 1024;
/// Most such messages: beyond, too much was written to tell.
pub const MAX_WRITTEN_PARTS: u32 = 96;
/// Longest name of a device: the kernel's are below 64 bytes.
pub const MAX_DEVICE_NAME: usize = 63;
/// Longest reason why an order was not carried out: a sentence or two.
pub const MAX_REASON: usize = 2048;
/// Most moves of which one message tells: with all their names they fit in it.
pub const MAX_ORDERED: usize = 32;
/// Most steps of a move.
pub const MAX_STEPS: usize = 8;
/// Most devices that one virtual key may stand on.
pub const MAX_KEY_DEVICES: usize = 16;
/// Most TCP addresses that one process may have.
pub const MAX_TCP_ADDRESSES: usize = 8;
/// Longest path of a unix socket that the kernel takes (`sun_path` with its final zero is 108).
pub const MAX_SOCKET_PATH: usize = 107;

// A note in its frame fits in a message; names and numbers take far less than the rest.
const _: () = assert!(MAX_NOTE + 1024 <= MAX_MESSAGE);
const _: () = assert!(MAX_COVERS * 21 + 1024 <= MAX_MESSAGE);
const _: () = assert!(MAX_WRITTEN * 25 + 1024 <= MAX_MESSAGE);
const _: () = {
    // Each name with its length, each number in full.
    let one = 2 * (MAX_DEVICE_NAME + 1) + 20 + MAX_STEPS * (MAX_DEVICE_NAME + 11);
    assert!(MAX_ORDERED * one + 1024 <= MAX_MESSAGE);
};

/// Process to directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum ToDirectory {
    /// Once per connection; the process is in the job for as long as the connection stands.
    Join { wanted: Option<ProcessId>, address: Address },
    /// Where is it? `wait_ms` of 0 asks for an answer at once.
    Lookup { id: u32, process: ProcessId, wait_ms: u32 },
}

/// Directory to process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum FromDirectory {
    Granted(Grant),
    Denied(Denial),
    /// The answer to the look-up of that number.
    Place {
        id: u32,
        place: Place,
    },
}

/// Why a process can't join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Denial {
    /// A live process has the wanted number.
    Alive(ProcessId),
    /// The directory holds as many processes as it may.
    Full,
    /// This connection has joined already.
    Twice,
}

/// What the directory knows of a process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Place {
    Here(Whereabouts),
    NotYet,
    Gone,
    /// The connection has too many look-ups waiting.
    Busy,
}

/// Between processes. The side that connected asks, the other answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Peer {
    /// First from the side that connected: who it is.
    Hello {
        process: ProcessId,
    },
    /// First from the other: who *it* is. An address may have a new tenant.
    Welcome {
        process: ProcessId,
        incarnation: Incarnation,
    },
    Ask {
        id: u32,
        wait_ms: u32,
        what: Fetch,
    },
    Answer {
        id: u32,
        answer: Answer,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Record(Record),
    /// The owner has no such name.
    Unknown,
    /// Too many of the asker's requests wait for notes.
    Busy,
}

/// Why a message is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("it sent a message that does not decode")]
    Malformed,
    #[error("it sent a message with {0} bytes too many")]
    Trailing(usize),
    #[error("it sent a message past a limit: {0}")]
    Limit(&'static str),
}

/// What a decoded value must also satisfy.
pub(crate) trait Checked {
    fn check(&self) -> Result<(), &'static str>;
}

/// Reads one message.
pub(crate) fn decode<T: DeserializeOwned + Checked>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::Limit("length of a message"));
    }
    let (value, rest) =
        postcard::take_from_bytes::<T>(bytes).map_err(|_| DecodeError::Malformed)?;
    if !rest.is_empty() {
        return Err(DecodeError::Trailing(rest.len()));
    }
    value.check().map_err(DecodeError::Limit)?;
    Ok(value)
}

/// Writes one message. The limits are held by whoever fills it in.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Only a type that postcard can't express fails here, and none of ours is one.
    postcard::to_stdvec(value).unwrap_or_default()
}

/// A deadline as it is told to another machine, whose clock is another: what is left of it.
pub(crate) fn wait_ms(until: Instant, now: Instant) -> u32 {
    let left = until.saturating_duration_since(now).as_millis();
    // A wait of nothing would mean "do not wait".
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

fn at_most(len: usize, limit: usize, what: &'static str) -> Result<(), &'static str> {
    if len <= limit { Ok(()) } else { Err(what) }
}

impl Checked for ProcessId {
    fn check(&self) -> Result<(), &'static str> {
        if self.0 == 0 { Err("process number 0") } else { Ok(()) }
    }
}

impl Checked for Address {
    fn check(&self) -> Result<(), &'static str> {
        let path = self.unix.as_ref().map_or(0, |path| path.as_os_str().len());
        at_most(path, MAX_SOCKET_PATH, "length of a socket path")?;
        at_most(self.tcp.len(), MAX_TCP_ADDRESSES, "number of TCP addresses")
    }
}

impl Checked for ToDirectory {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            ToDirectory::Join { wanted, address } => {
                wanted.map_or(Ok(()), |process| process.check())?;
                address.check()
            }
            ToDirectory::Lookup { process, .. } => process.check(),
        }
    }
}

impl Checked for FromDirectory {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            FromDirectory::Granted(grant) => {
                grant.process.check()?;
                let same = *grant == Grant::new(grant.process, grant.incarnation, grant.job);
                if same { Ok(()) } else { Err("names that do not belong to the process number") }
            }
            FromDirectory::Place { place: Place::Here(here), .. } => here.address.check(),
            FromDirectory::Denied(_) | FromDirectory::Place { .. } => Ok(()),
        }
    }
}

impl Checked for PhysicalEnd {
    fn check(&self) -> Result<(), &'static str> {
        match self.word {
            Some(word) if word.addr == 0 || word.addr % 8 != 0 => {
                Err("address of a record, which is that of a whole word")
            }
            _ => Ok(()),
        }
    }
}

impl Checked for remap::Request<PhysicalEnd> {
    fn check(&self) -> Result<(), &'static str> {
        remap::Request::check(self).map_err(|malformed| malformed.0)?;
        match self {
            remap::Request::Prepare { links } => links.iter().try_for_each(|it| it.end.check()),
            _ => Ok(()),
        }
    }
}

impl Checked for remap::Answer<PhysicalEnd> {
    fn check(&self) -> Result<(), &'static str> {
        remap::Answer::check(self).map_err(|malformed| malformed.0)?;
        match self {
            remap::Answer::Prepared(links) => {
                links.iter().flatten().try_for_each(|it| it.end.check())
            }
            _ => Ok(()),
        }
    }
}

impl Checked for Fetch {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Fetch::Note(name) => at_most(name.len(), MAX_NOTE_NAME, "length of a note's name"),
            Fetch::Remap(_, request) => Checked::check(request),
            Fetch::Moved(qps) => {
                at_most(qps.len(), MAX_MOVED, "number of queue pairs that moved")?;
                qps.iter().try_for_each(|(_, end)| end.check())
            }
            Fetch::Relocate { device, .. } => {
                at_most(device.len(), MAX_DEVICE_NAME, "length of a device's name")
            }
            Fetch::Committed { covers, .. } => {
                at_most(covers.len(), MAX_COVERS, "number of queue pairs of an epoch")
            }
            Fetch::Qpn { own_end, .. } => own_end.map_or(Ok(()), |end| end.check()),
            Fetch::Written { part, .. } => {
                at_most(*part as usize, MAX_WRITTEN_PARTS as usize, "part of a record of writes")
            }
            Fetch::Key(_) | Fetch::WrittenSaved { .. } => Ok(()),
        }
    }
}

impl Checked for Order {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Order::UnderWay => Ok(()),
            Order::Failed(why) => at_most(why.len(), MAX_REASON, "length of a reason"),
            Order::Done(moves) => {
                at_most(moves.len(), MAX_ORDERED, "number of moves")?;
                moves.iter().try_for_each(|moved| {
                    at_most(moved.phases.len(), MAX_STEPS, "number of steps of a move")?;
                    let steps = moved.phases.iter().map(|(name, _)| name);
                    [&moved.from, &moved.to].into_iter().chain(steps).try_for_each(|name| {
                        at_most(name.len(), MAX_DEVICE_NAME, "length of a name")
                    })
                })
            }
        }
    }
}

impl Checked for KeyRecord {
    fn check(&self) -> Result<(), &'static str> {
        at_most(self.on.len(), MAX_KEY_DEVICES, "number of devices of a key")
    }
}

impl Checked for Peer {
    fn check(&self) -> Result<(), &'static str> {
        match self {
            Peer::Hello { process } | Peer::Welcome { process, .. } => process.check(),
            Peer::Ask { what, .. } => what.check(),
            Peer::Answer { answer: Answer::Record(record), .. } => match record {
                Record::Key(key) => key.check(),
                Record::Note(note) => at_most(note.len(), MAX_NOTE, "length of a note"),
                Record::Remap(answer) => Checked::check(answer),
                Record::Order(order) => order.check(),
                Record::Qpn(record) => record.end.check(),
                Record::Written(part) => {
                    at_most(part.words.len(), MAX_WRITTEN, "length of a record of writes")
                }
                Record::Noted => Ok(()),
            },
            Peer::Answer { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use sojourn_logging::Executed;
    use sojourn_logging::remap::{
        Accept, Cut, GroupId, HeldEnd, HeldLink, MAX_LINKS, Offer, Request,
    };

    use super::*;
    use crate::names::types::{
        Consumed, Cover, DeviceId, JobId, MachineId, QpnRecord, RecordWord, Relocated, WrittenPart,
        WrittenWord,
    };

    fn end() -> impl Strategy<Value = PhysicalEnd> {
        let word = (1..1u64 << 61, any::<u32>());
        let word = word.prop_map(|(at, rkey)| RecordWord { addr: at * 8, rkey });
        (
            any::<[u32; 2]>(),
            any::<u16>(),
            any::<[u8; 16]>(),
            any::<[u8; 2]>(),
            prop::option::of(word),
        )
            .prop_map(|([device, qpn], lid, gid, [mtu, link_layer], word)| PhysicalEnd {
                device: DeviceId(device),
                lid,
                gid,
                qpn,
                mtu,
                link_layer,
                word,
            })
    }

    fn executed() -> impl Strategy<Value = Vec<Executed>> {
        let told = (prop::option::of(any::<u32>()), prop::option::of(any::<u64>()));
        let one =
            (any::<u64>(), any::<bool>(), told).prop_map(|(messages, settled, (psn, recorded))| {
                Executed { messages, psn, settled, recorded }
            });
        prop::collection::vec(one, 0..9)
    }

    fn cuts() -> impl Strategy<Value = Vec<Cut>> {
        let one =
            (0..MAX_LINKS as u32, any::<u32>()).prop_map(|(link, landed)| Cut { link, landed });
        prop::collection::vec(one, 0..9)
    }

    fn held_links() -> impl Strategy<Value = Vec<HeldLink>> {
        (executed(), any::<[u32; 2]>(), any::<bool>()).prop_map(
            |(all, [qpn, holder_qpn], starved)| {
                let end = |executed| HeldEnd { executed, starved, failed: !starved };
                let link = |it| HeldLink { qpn, holder_qpn, end: end(it) };
                all.into_iter().map(link).collect()
            },
        )
    }

    fn request() -> impl Strategy<Value = Request<PhysicalEnd>> {
        let offer =
            (any::<[u32; 4]>(), end()).prop_map(|([qpn, mover_qpn, incarnation, psn], end)| {
                Offer { qpn, mover_qpn, incarnation, end, psn }
            });
        prop_oneof![
            prop::collection::vec(offer, 0..9).prop_map(|links| Request::Prepare { links }),
            Just(Request::Quiesce),
            held_links().prop_map(|links| Request::Hold { links }),
            executed().prop_map(|executed| Request::Switch { executed }),
            cuts().prop_map(|cuts| Request::Finish { cuts }),
            Just(Request::Abort),
        ]
    }

    fn remap_answer() -> impl Strategy<Value = remap::Answer<PhysicalEnd>> {
        use remap::Answer;
        let accept =
            prop::option::of((end(), any::<u32>()).prop_map(|(end, psn)| Accept { end, psn }));
        prop_oneof![
            prop::collection::vec(accept, 0..9).prop_map(Answer::Prepared),
            Just(Answer::Busy),
            ".{0,40}".prop_map(Answer::Refused),
            any::<bool>().prop_map(Answer::Quiet),
            (any::<bool>(), held_links()).prop_map(|(still, links)| {
                let end = |link: &HeldLink| link.end.starved.then_some(link.end);
                Answer::Still { still, ends: links.iter().map(end).collect() }
            }),
            (executed(), cuts()).prop_map(|(executed, cuts)| Answer::Switched { executed, cuts }),
            Just(Answer::Unknown),
        ]
    }

    fn order() -> impl Strategy<Value = Order> {
        let name = "[a-z0-9]{0,15}";
        let phases = prop::collection::vec((name, any::<u64>()), 0..MAX_STEPS);
        let moved = (name, name, any::<[u32; 2]>(), any::<u64>(), phases).prop_map(
            |(from, to, [queue_pairs, peers], blackout, phases)| Relocated {
                from,
                to,
                queue_pairs,
                peers,
                blackout,
                phases,
            },
        );
        prop_oneof![
            Just(Order::UnderWay),
            prop::collection::vec(moved, 0..4).prop_map(Order::Done),
            ".{0,40}".prop_map(Order::Failed),
        ]
    }

    fn cover() -> impl Strategy<Value = Cover> {
        let consumed = (any::<u64>(), any::<bool>())
            .prop_map(|(n, gone)| if gone { Consumed::Gone(n) } else { Consumed::Upto(n) });
        (any::<u32>(), any::<u32>(), consumed).prop_map(|(qpn, by, consumed)| Cover {
            qpn,
            by,
            consumed,
        })
    }

    fn fetch() -> impl Strategy<Value = Fetch> {
        prop_oneof![
            (any::<u32>(), any::<u32>(), prop::option::of(end()))
                .prop_map(|(qpn, own_qpn, own_end)| Fetch::Qpn { qpn, own_qpn, own_end }),
            any::<u32>().prop_map(Fetch::Key),
            ".{0,40}".prop_map(Fetch::Note),
            prop::collection::vec((any::<u32>(), end()), 0..9).prop_map(Fetch::Moved),
            (any::<u64>(), request()).prop_map(|(id, r)| Fetch::Remap(GroupId(id), r)),
            (any::<u64>(), "[a-z0-9]{0,15}")
                .prop_map(|(ticket, device)| Fetch::Relocate { ticket, device }),
            (any::<u64>(), prop::collection::vec(cover(), 0..9))
                .prop_map(|(serial, covers)| Fetch::Committed { serial, covers }),
            (any::<u64>(), 0..=MAX_WRITTEN_PARTS)
                .prop_map(|(report, part)| Fetch::Written { report, part }),
            any::<u64>().prop_map(|report| Fetch::WrittenSaved { report }),
        ]
    }

    fn written() -> impl Strategy<Value = WrittenPart> {
        let word = (any::<u32>(), any::<[u64; 2]>()).prop_map(|(key, [chunk, bits])| WrittenWord {
            key,
            chunk,
            bits,
        });
        (any::<u32>(), any::<[bool; 2]>(), prop::collection::vec(word, 0..9)).prop_map(
            |(life, [complete, last], words)| WrittenPart {
                life: Incarnation(life),
                complete,
                last,
                words,
            },
        )
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            (end(), any::<u8>(), any::<[u32; 2]>()).prop_map(|(end, qp_type, [inc, life])| {
                let (incarnation, life) = (Incarnation(inc), Incarnation(life));
                Record::Qpn(QpnRecord { end, qp_type, incarnation, life })
            }),
            prop::collection::vec((any::<u32>().prop_map(DeviceId), any::<u32>()), 0..=16)
                .prop_map(|on| Record::Key(KeyRecord { on })),
            prop::collection::vec(any::<u8>(), 0..500).prop_map(Record::Note),
            remap_answer().prop_map(Record::Remap),
            Just(Record::Noted),
            order().prop_map(Record::Order),
            written().prop_map(Record::Written),
        ]
    }

    fn address() -> impl Strategy<Value = Address> {
        (any::<[u8; 16]>(), any::<u32>(), prop::option::of("/[a-z/]{0,80}"), any::<[u8; 16]>())
            .prop_map(|(machine, uid, unix, ip)| Address {
                machine: MachineId(machine),
                uid,
                unix: unix.map(Into::into),
                tcp: vec![SocketAddr::from((ip, 7)), SocketAddr::from(([10, 0, 0, 1], 65535))],
            })
    }

    fn peer() -> impl Strategy<Value = Peer> {
        prop_oneof![
            (1..=u32::MAX).prop_map(|id| Peer::Hello { process: ProcessId(id) }),
            (any::<u32>(), any::<u32>(), fetch()).prop_map(|(id, wait_ms, what)| Peer::Ask {
                id,
                wait_ms,
                what
            }),
            (any::<u32>(), record())
                .prop_map(|(id, r)| Peer::Answer { id, answer: Answer::Record(r) }),
        ]
    }

    fn to_directory() -> impl Strategy<Value = ToDirectory> {
        prop_oneof![
            (prop::option::of((1..=u32::MAX).prop_map(ProcessId)), address())
                .prop_map(|(wanted, address)| ToDirectory::Join { wanted, address }),
            (any::<u32>(), 1..=u32::MAX, any::<u32>()).prop_map(|(id, process, wait_ms)| {
                ToDirectory::Lookup { id, process: ProcessId(process), wait_ms }
            }),
        ]
    }

    /// Decodes as each kind of message; whatever comes of it, it may not panic.
    fn decode_all(bytes: &[u8]) {
        let _ = decode::<Peer>(bytes);
        let _ = decode::<ToDirectory>(bytes);
        let _ = decode::<FromDirectory>(bytes);
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(peer in peer(), dir in to_directory()) {
            prop_assert_eq!(decode::<Peer>(&encode(&peer)), Ok(peer));
            prop_assert_eq!(decode::<ToDirectory>(&encode(&dir)), Ok(dir));
        }

        #[test]
        fn truncated_and_lengthened_messages_are_refused(peer in peer(), dir in to_directory()) {
            for bytes in [encode(&peer), encode(&dir)] {
                let kind = |b: &[u8]| (decode::<Peer>(b).ok(), decode::<ToDirectory>(b).ok());
                let whole = kind(&bytes);
                for cut in 0..bytes.len() {
                    let part = kind(&bytes[..cut]);
                    prop_assert!(part.0.is_none() || part.0 != whole.0);
                    prop_assert!(part.1.is_none() || part.1 != whole.1);
                }
            }
            for cut in 0..encode(&peer).len() {
                prop_assert!(decode::<Peer>(&encode(&peer)[..cut]).is_err());
            }
            let mut long = encode(&peer);
            long.push(0);
            prop_assert_eq!(decode::<Peer>(&long), Err(DecodeError::Trailing(1)));
        }

        #[test]
        fn random_and_damaged_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            peer in peer(),
            dir in to_directory(),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
        ) {
            decode_all(&bytes);
            for mut bytes in [encode(&peer), encode(&dir)] {
                let at = at.index(bytes.len());
                bytes[at] = value;
                decode_all(&bytes);
            }
        }
    }

    #[test]
    fn hostile_lengths_are_refused_without_their_memory_being_taken() {
        // A note and a key record that claim 2^32 - 1 elements, with none behind the claim.
        let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
        for kind in [1u8, 2] {
            let mut bytes = vec![3, 0, 0, kind];
            bytes.extend(huge);
            assert_eq!(decode::<Peer>(&bytes), Err(DecodeError::Malformed));
        }
    }

    /// Promise: nobody is made to write where no word can be, by whatever message that place comes.
    #[test]
    fn a_record_is_a_whole_word_in_every_message() {
        let at = |addr| {
            let end = PhysicalEnd {
                device: DeviceId(1),
                lid: 1,
                gid: [0; 16],
                qpn: 5,
                mtu: 3,
                link_layer: 1,
                word: Some(RecordWord { addr, rkey: 9 }),
            };
            let ask = |what| Peer::Ask { id: 1, wait_ms: 0, what };
            let tell = |record| Peer::Answer { id: 1, answer: Answer::Record(record) };
            let offer = Offer { qpn: 1, mover_qpn: 2, incarnation: 1, end, psn: 3 };
            let accept = Accept { end, psn: 3 };
            [
                ask(Fetch::Qpn { qpn: 1, own_qpn: 2, own_end: Some(end) }),
                ask(Fetch::Moved(vec![(1, end)])),
                ask(Fetch::Remap(GroupId(1), Request::Prepare { links: vec![offer] })),
                tell(Record::Qpn(QpnRecord {
                    end,
                    qp_type: 2,
                    incarnation: Incarnation(1),
                    life: Incarnation(1),
                })),
                tell(Record::Remap(remap::Answer::Prepared(vec![None, Some(accept)]))),
            ]
        };
        assert!(at(4096).iter().all(|peer| decode::<Peer>(&encode(peer)).as_ref() == Ok(peer)));
        for bad in [0, 4, 4097] {
            assert!(at(bad).iter().all(|peer| decode::<Peer>(&encode(peer)).is_err()), "{bad}");
        }
    }

    #[test]
    fn each_limit_holds_at_its_edge() {
        let note = |len| Peer::Answer { id: 1, answer: Answer::Record(Record::Note(vec![0; len])) };
        assert!(decode::<Peer>(&encode(&note(MAX_NOTE))).is_ok());
        assert!(decode::<Peer>(&encode(&note(MAX_NOTE + 1))).is_err());
        let key = |n| {
            let on = vec![(DeviceId(1), 1); n];
            Peer::Answer { id: 1, answer: Answer::Record(Record::Key(KeyRecord { on })) }
        };
        assert!(decode::<Peer>(&encode(&key(MAX_KEY_DEVICES))).is_ok());
        assert!(decode::<Peer>(&encode(&key(MAX_KEY_DEVICES + 1))).is_err());
        let name = |len| Peer::Ask { id: 1, wait_ms: 0, what: Fetch::Note("n".repeat(len)) };
        assert!(decode::<Peer>(&encode(&name(MAX_NOTE_NAME))).is_ok());
        assert!(decode::<Peer>(&encode(&name(MAX_NOTE_NAME + 1))).is_err());
        let covers = |n| {
            let cover = Cover { qpn: u32::MAX, by: u32::MAX, consumed: Consumed::Upto(u64::MAX) };
            let what = Fetch::Committed { serial: u64::MAX, covers: vec![cover; n] };
            encode(&Peer::Ask { id: u32::MAX, wait_ms: u32::MAX, what })
        };
        assert!(covers(MAX_COVERS).len() <= MAX_MESSAGE);
        assert!(decode::<Peer>(&covers(MAX_COVERS)).is_ok());
        assert!(decode::<Peer>(&covers(MAX_COVERS + 1)).is_err());
        assert!(decode::<Peer>(&encode(&Peer::Hello { process: ProcessId(0) })).is_err());
        let mut grant = Grant::new(ProcessId(3), Incarnation(1), JobId(5));
        assert!(decode::<FromDirectory>(&encode(&FromDirectory::Granted(grant))).is_ok());
        grant.lid.0 += 1;
        assert!(decode::<FromDirectory>(&encode(&FromDirectory::Granted(grant))).is_err());
        assert!(decode::<Peer>(&vec![0; MAX_MESSAGE + 1]).is_err());
    }
}
