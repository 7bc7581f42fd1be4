//! How two contexts on different machines meet: a Noise session with the job key, in which each
//! says who it is; without IO.
//!
//! Nothing is taken from a peer before it has proved that it holds the key, and a recorded
//! connection cannot be replayed, because the hello is a message of the session. What follows
//! on the connection is not part of the session, and so is neither encrypted nor authenticated:
//! RDMA data is not (see the crate's goals); so not a byte beyond the hello is read here.

use crate::names::{JobKey, OPENING, OVERHEAD, Received, Session, SessionError};
use std::net::{Ipv4Addr, SocketAddrV4};

const MAGIC: u32 = 0x736f_6674;
/// What the frames look like; another version is another device.
const VERSION: u16 = 1;
/// Bytes of a hello: magic, version, LID, port, IPv4 address, number.
const HELLO: usize = 24;

/// What a context says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Hello {
    /// Where it listens: its GID.
    pub(in super::super) endpoint: SocketAddrV4,
    /// Its node.
    pub(in super::super) lid: u16,
    /// Tells contexts apart that had the same address one after the other.
    pub(in super::super) context: u64,
}

/// Why two contexts do not meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The session failed: another key, no session at all.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It holds the key, but is something else.
    #[error("it is not a soft device of this version")]
    Stranger,
}

/// One side of the meeting.
pub(super) struct Handshake {
    session: Session,
    own: Hello,
    /// Bytes of the frame that is awaited, and how many have come.
    frame: usize,
    come: usize,
}

impl Handshake {
    pub(super) fn dial(key: &JobKey, own: Hello) -> Handshake {
        Handshake { session: Session::initiate(key), own, frame: OPENING, come: 0 }
    }

    pub(super) fn accept(key: &JobKey, own: Hello) -> Handshake {
        Handshake { session: Session::respond(key), own, frame: OPENING, come: 0 }
    }

    /// How many bytes may be read now, and not one more.
    pub(super) fn wanted(&self) -> usize {
        self.frame - self.come
    }

    /// What has to be written.
    pub(super) fn unsent(&self) -> &[u8] {
        self.session.unsent()
    }

    /// That much of it has been written.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.session.sent(bytes);
    }

    /// Takes bytes off the wire, no more than [`Handshake::wanted`]; the peer's hello once it is
    /// there.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Option<Hello>, Failure> {
        self.come += bytes.len();
        self.session.feed(bytes);
        match self.session.receive()? {
            None if self.come < self.frame => Ok(None),
            // Less than it said.
            None => Err(Failure::Stranger),
            Some(Received::Open) => {
                (self.frame, self.come) = (HELLO + OVERHEAD, 0);
                self.session.send(&self.own.encode())?;
                Ok(None)
            }
            Some(Received::Message(message)) => {
                Hello::decode(&message).ok_or(Failure::Stranger).map(Some)
            }
        }
    }
}

impl Hello {
    fn encode(&self) -> [u8; HELLO] {
        let mut bytes = [0; HELLO];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.lid.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.endpoint.port().to_le_bytes());
        bytes[12..16].copy_from_slice(&self.endpoint.ip().octets());
        bytes[16..].copy_from_slice(&self.context.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Hello> {
        let bytes: &[u8; HELLO] = bytes.try_into().ok()?;
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let magic = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let ip = Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]);
        let context = bytes.last_chunk::<8>().map(|last| u64::from_le_bytes(*last))?;
        let known = magic == MAGIC && half(4) == VERSION && half(8) != 0;
        known.then(|| Hello { endpoint: SocketAddrV4::new(ip, half(8)), lid: half(6), context })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello(n: u8) -> Hello {
        Hello {
            endpoint: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 4000 + u16::from(n)),
            lid: n.into(),
            context: n.into(),
        }
    }

    /// Carries what one side has to say, in pieces; what stays over is the other's own affair.
    fn carry(
        from: &mut Handshake,
        to: &mut Handshake,
        piece: usize,
    ) -> Result<Option<Hello>, Failure> {
        while !from.unsent().is_empty() && to.wanted() > 0 {
            let now = piece.min(to.wanted()).min(from.unsent().len());
            let bytes = from.unsent()[..now].to_vec();
            from.sent(now);
            if let Some(hello) = to.feed(&bytes)? {
                return Ok(Some(hello));
            }
        }
        Ok(None)
    }

    proptest! {
        /// Both learn who the other is, however the wire cuts their words, and nothing that stands
        /// behind the hello is swallowed.
        #[test]
        fn two_with_one_key_meet(piece in 1usize..100) {
            let key = JobKey::from_bytes([3; 32]);
            let (mut a, mut b) =
                (Handshake::dial(&key, hello(1)), Handshake::accept(&key, hello(2)));
            prop_assert_eq!(carry(&mut a, &mut b, piece), Ok(None));
            prop_assert_eq!(carry(&mut b, &mut a, piece), Ok(Some(hello(2))));
            prop_assert_eq!(carry(&mut a, &mut b, piece), Ok(Some(hello(1))));
            prop_assert_eq!((a.wanted(), b.wanted()), (0, 0));
        }

        /// Whatever a stranger says, it does not come to a meeting.
        #[test]
        fn strangers_do_not_meet(bytes in prop::collection::vec(any::<u8>(), 1..120)) {
            let mut side = Handshake::accept(&JobKey::from_bytes([3; 32]), hello(2));
            for chunk in bytes.chunks(OPENING) {
                match side.feed(chunk) {
                    Ok(met) => prop_assert_eq!(met, None),
                    Err(_) => break,
                }
            }
        }

        /// No bytes but a hello's are one.
        #[test]
        fn hellos_are_checked(bytes in prop::collection::vec(any::<u8>(), 0..40), at in 0usize..6, flip in 1u8..) {
            let good = hello(9).encode();
            prop_assert_eq!(Hello::decode(&good), Some(hello(9)));
            prop_assert!(bytes.len() == HELLO || Hello::decode(&bytes).is_none());
            let mut bad = good;
            bad[at] ^= flip;
            prop_assert_eq!(Hello::decode(&bad), None);
        }
    }

    /// The side that dials learns that it is the key.
    #[test]
    fn another_key_is_named() {
        let mut a = Handshake::dial(&JobKey::from_bytes([1; 32]), hello(1));
        let mut b = Handshake::accept(&JobKey::from_bytes([2; 32]), hello(2));
        let mismatch = Failure::Session(SessionError::KeyMismatch);
        assert_eq!(carry(&mut a, &mut b, 100), Err(mismatch));
        assert_eq!(carry(&mut b, &mut a, 100), Err(mismatch));
    }
}
