//! What is said over the control channel of a store, and its limits.
//!
//! A message is the version (2 bytes, little-endian) and a postcard value. Whoever finds another version
//! says so, and looks no further. One request, one reply, in order.

use crate::epoch::{Answer, Epoch, Holding, Incarnation, MAX_REASON, Member, Request};
use crate::parity::{Made, Task};
use crate::{Error, PAGE, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sojourn_fabric::names::Conversation;
use sojourn_fabric::virt::Endpoint;

/// The version of this protocol. Both sides must speak the same.
pub const VERSION: u16 = 1;
/// Most queue pairs of one door: one for each thread that sends.
pub const MAX_LANES: usize = 8;
/// Longest name of a store, of its failure domain and of its device.
pub(super) const MAX_NAME: usize = 128;
/// Most compartments in a list, so that it fits into a message.
pub(super) const MAX_LISTED: usize = 512;
/// The largest that the kernel has.
const MAX_ERRNO: i32 = 4095;

/// The ends of the queue pairs of one side.
pub(super) type Ends = Vec<Vec<u8>>;

/// What is asked of a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Who are you?
    Hello,
    /// Of the compartment of a process, as the machines of [`crate::epoch`] ask; a grant with the ends of the queue
    /// pairs that are going to write.
    Of { member: Member, request: Request, ends: Ends },
    /// To read what is kept of this process.
    Read { member: Member, ends: Ends },
    /// What is kept?
    List,
    /// End.
    ShutDown,
    /// Make this share of parity of an epoch; asked again until it is made.
    Gather(Gather),
}

/// What a store says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Hello(Hello),
    /// To all of a compartment but a grant that is granted.
    Of(Answer),
    /// What is there, and the door to it.
    Door {
        holding: Holding,
        place: Place,
        ends: Ends,
    },
    List(Vec<Kept>),
    Done,
    /// The share of parity is there.
    Gathered(Made),
    /// It could not be made, because of what it is made of.
    Ungathered(String),
    /// Why not, with the errno that says the same.
    Refused {
        errno: i32,
        reason: String,
    },
}

/// A share of parity that is to be made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Gather {
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    /// The slot of this epoch is not written.
    pub(crate) committed: Epoch,
    pub(crate) task: Task,
}

/// What a store is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Its name: of the node, as a rule.
    pub name: String,
    /// What it may fail together with.
    pub domain: String,
    /// The device that it is reached by.
    pub device: String,
    /// Bytes that it holds at most.
    pub bytes: u64,
    /// Bytes of these that are free.
    pub free: u64,
}

/// Two slots, and how they are reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) addr: u64,
    pub(super) rkey: u32,
}

/// What a store says of one compartment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Whose it is.
    pub member: Member,
    /// What is there.
    pub holding: Holding,
    /// A writer is connected.
    pub writing: bool,
}

/// What a message must be, beyond its form.
pub(super) trait Checked {
    /// What is wrong with it.
    fn check(&self) -> std::result::Result<(), String>;
}

fn ends(all: &[Vec<u8>]) -> std::result::Result<(), String> {
    if all.is_empty() || all.len() > MAX_LANES {
        return Err(format!("{} queue pairs: 1 to {MAX_LANES}", all.len()));
    }
    all.iter().try_for_each(|end| Endpoint::from_bytes(end).map(drop).map_err(|e| e.to_string()))
}

fn text(what: &str, text: &str, most: usize) -> std::result::Result<(), String> {
    if text.len() > most { Err(format!("{what} of {} bytes", text.len())) } else { Ok(()) }
}

impl Checked for Ask {
    fn check(&self) -> std::result::Result<(), String> {
        match self {
            Ask::Of { request: Request::Grant { bytes, .. }, ends: all, .. } => {
                // Two headers at least, and no more than any sum of offsets can hold.
                if *bytes < 2 * PAGE as u64 || bytes % (2 * PAGE as u64) != 0 || *bytes > 1 << 48 {
                    return Err(format!("a compartment of {bytes} bytes"));
                }
                ends(all)
            }
            Ask::Of { ends: all, .. } if !all.is_empty() => {
                Err(format!("{} queue pairs that nothing is for", all.len()))
            }
            Ask::Read { ends: all, .. } => ends(all),
            Ask::Gather(Gather { epoch, .. }) if !epoch.is_some() => {
                Err("parity of no epoch".into())
            }
            Ask::Gather(Gather { task, .. }) => task.check().map_err(|error| error.to_string()),
            Ask::Of { .. } | Ask::Hello | Ask::List | Ask::ShutDown => Ok(()),
        }
    }
}

impl Checked for Reply {
    fn check(&self) -> std::result::Result<(), String> {
        match self {
            Reply::Hello(hello) => {
                text("a name", &hello.name, MAX_NAME)?;
                text("a domain", &hello.domain, MAX_NAME)?;
                text("a device", &hello.device, MAX_NAME)
            }
            Reply::Of(answer) => answer.check().map_err(|malformed| malformed.to_string()),
            Reply::Door { holding, place, ends: all } => {
                let holds = Answer::Granted(*holding).check();
                holds.map_err(|malformed| malformed.to_string())?;
                if place.addr.checked_add(holding.bytes).is_none() {
                    return Err("slots that wrap around".into());
                }
                if holding.bytes < 2 * PAGE as u64 {
                    return Err(format!("slots in {} bytes", holding.bytes));
                }
                ends(all)
            }
            Reply::List(all) if all.len() > MAX_LISTED => {
                Err(format!("{} compartments", all.len()))
            }
            Reply::Ungathered(reason) => text("a reason", reason, MAX_REASON),
            Reply::List(_) | Reply::Done | Reply::Gathered(_) => Ok(()),
            Reply::Refused { errno, reason } => {
                if *errno <= 0 || *errno > MAX_ERRNO {
                    return Err(format!("the errno {errno}"));
                }
                text("a reason", reason, MAX_REASON)
            }
        }
    }
}

/// The bytes of a message.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Only a type that postcard cannot express fails here, and none of ours is one.
    postcard::to_extend(value, VERSION.to_le_bytes().to_vec()).unwrap_or_default()
}

/// The message that these bytes are.
///
/// # Errors
/// `EPROTONOSUPPORT` for another version, `EPROTO` for what is no message or past a limit.
pub(super) fn decode<T: DeserializeOwned + Checked>(bytes: &[u8], from: &str) -> Result<T> {
    let bad = |why: String| Error::new(libc::EPROTO, format!("{from} sent {why}"));
    if bytes.len() > Conversation::MAX_MESSAGE {
        return Err(bad(format!("a message of {} bytes", bytes.len())));
    }
    let Some((version, rest)) = bytes.split_first_chunk() else {
        return Err(bad(format!("a message of {} bytes", bytes.len())));
    };
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(Error::new(
            libc::EPROTONOSUPPORT,
            format!(
                "{from} speaks version {version} of the store protocol, this process {VERSION}"
            ),
        ));
    }
    let (value, rest) = postcard::take_from_bytes::<T>(rest)
        .map_err(|_| bad("something that is no message".into()))?;
    if !rest.is_empty() {
        return Err(bad(format!("a message with {} bytes too many", rest.len())));
    }
    value.check().map_err(bad)?;
    Ok(value)
}

/// A refusal that says what `error` says.
pub(super) fn refusal(error: &Error) -> Reply {
    Reply::Refused { errno: error.errno().clamp(1, MAX_ERRNO), reason: reason(error) }
}

/// What `error` says, as far as a message has room for it.
pub(super) fn reason(error: &Error) -> String {
    let mut reason = error.to_string();
    let cut = (0..=MAX_REASON.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at));
    reason.truncate(cut.unwrap_or_default());
    reason
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sojourn_fabric::abi::Gid;

    fn ends() -> impl Strategy<Value = Ends> {
        let end = (any::<u16>(), any::<[u8; 16]>(), 0u32..1 << 24, 0u32..1 << 24).prop_map(
            |(lid, gid, qpn, psn)| Endpoint { lid, gid: Gid(gid), qpn, psn }.to_bytes().to_vec(),
        );
        prop::collection::vec(end, 1..=MAX_LANES)
    }

    fn request() -> impl Strategy<Value = Request> {
        let some = (any::<u64>(), any::<u64>(), 1u64..1 << 30);
        (0..6, some).prop_map(|(kind, (incarnation, epoch, pages))| {
            let (incarnation, epoch) = (Incarnation(incarnation), Epoch(epoch));
            let bytes = pages * 2 * PAGE as u64;
            match kind {
                0 => Request::Grant { incarnation, bytes, committed: epoch },
                1 => Request::Claim { incarnation },
                2 => Request::Check { incarnation, epoch },
                3 => Request::Note { incarnation, epoch },
                4 => Request::Release { incarnation },
                _ => Request::Tell,
            }
        })
    }

    fn ask() -> impl Strategy<Value = Ask> {
        let member = || any::<u64>().prop_map(Member);
        prop_oneof![
            Just(Ask::Hello),
            Just(Ask::List),
            Just(Ask::ShutDown),
            (member(), ends()).prop_map(|(member, ends)| Ask::Read { member, ends }),
            (crate::parity::tasks(), any::<u64>(), 1..u64::MAX).prop_map(|(task, by, epoch)| {
                let (incarnation, epoch, committed) = (Incarnation(by), Epoch(epoch), Epoch(by));
                Ask::Gather(Gather { incarnation, epoch, committed, task })
            }),
            (member(), request(), ends()).prop_map(|(member, request, ends)| {
                let grant = matches!(request, Request::Grant { .. });
                Ask::Of { member, request, ends: if grant { ends } else { vec![] } }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_asked_reads_back_and_no_part_of_it_is_another(ask in ask(), extra in 1usize..9) {
            let bytes = encode(&ask);
            prop_assert_eq!(decode::<Ask>(&bytes, "x").unwrap(), ask);
            for cut in 0..bytes.len() {
                prop_assert!(decode::<Ask>(&bytes[..cut], "x").is_err());
            }
            let longer = [bytes.clone(), vec![0; extra]].concat();
            prop_assert!(decode::<Ask>(&longer, "x").is_err());
            let mut other = bytes;
            other[0] ^= 2;
            let error = decode::<Ask>(&other, "store x").unwrap_err();
            prop_assert_eq!(error.errno(), libc::EPROTONOSUPPORT);
            prop_assert!(error.to_string().contains("store x speaks version 3"), "{}", error);
        }

        /// What comes out has passed its limits, whatever went in.
        #[test]
        fn no_bytes_make_the_decoder_panic_or_pass_what_cannot_be(mut bytes: Vec<u8>, ours: bool) {
            if ours && bytes.len() > 1 {
                bytes[..2].copy_from_slice(&VERSION.to_le_bytes());
            }
            if let Ok(ask) = decode::<Ask>(&bytes, "x") {
                prop_assert!(ask.check().is_ok());
            }
            if let Ok(reply) = decode::<Reply>(&bytes, "x") {
                prop_assert!(reply.check().is_ok());
            }
        }
    }

    #[test]
    fn what_is_past_a_limit_is_no_message() {
        let one = vec![0; Endpoint::BYTES];
        let (member, incarnation, committed) = (Member(1), Incarnation(1), Epoch::NONE);
        let grant = |bytes, ends| {
            let request = Request::Grant { incarnation, bytes, committed };
            encode(&Ask::Of { member, request, ends })
        };
        let refused = |bytes: &[u8]| decode::<Ask>(bytes, "x").unwrap_err().to_string();
        assert!(decode::<Ask>(&grant(8192, vec![one.clone()]), "x").is_ok());
        assert!(refused(&grant(8192, vec![one.clone(); MAX_LANES + 1])).contains("9 queue"));
        assert!(refused(&grant(8192, vec![])).contains("0 queue"));
        assert!(refused(&grant(8192, vec![vec![0; 3]])).contains("26"));
        for bytes in [0, 4096, 8192 + 4096, 1 << 49, u64::MAX] {
            let error = refused(&grant(bytes, vec![one.clone()]));
            assert!(error.contains(&bytes.to_string()), "{error}");
        }
        let tell = Ask::Of { member, request: Request::Tell, ends: vec![one.clone()] };
        assert!(refused(&encode(&tell)).contains("nothing is for"));
        let long = Error::new(libc::EIO, "é".repeat(MAX_REASON));
        let reply = decode::<Reply>(&encode(&refusal(&long)), "x").unwrap();
        assert!(matches!(reply, Reply::Refused { errno: libc::EIO, .. }));
        let holding = Holding { incarnation, bytes: 8192, committed, words: [committed; 2] };
        let place = Place { addr: u64::MAX - 9, rkey: 1 };
        let door = encode(&Reply::Door { holding, place, ends: vec![one] });
        assert!(decode::<Reply>(&door, "x").unwrap_err().to_string().contains("wrap"));
    }
}
