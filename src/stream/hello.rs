//! What two sides tell each other before a stream exists: a fixed form, carried by any means.

use sojourn_fabric::Error;
use sojourn_fabric::virt::{Endpoint, Remote};

use super::protocol::{MAX_DEPTH, MIN_DEPTH};

/// First bytes of a greeting: a stranger's is told from one of another version.
const MAGIC: [u8; 4] = *b"SjBs";
/// Version of the greeting and of the protocol after it.
const VERSION: u8 = 1;
/// Smallest and largest message that a side may ask for. Below the first the cost per message is
/// all that remains; the second bounds the memory that a stream pins.
pub(super) const MESSAGE_BYTES: std::ops::RangeInclusive<u32> = 64..=1 << 20;

/// What one side offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    /// Its queue pair.
    pub(super) endpoint: Endpoint,
    /// Receives that it keeps posted.
    pub(super) depth: u32,
    /// Bytes of each of them.
    pub(super) message_bytes: u32,
    /// A word that a side without news writes nothing to, to learn whether the other lives.
    pub(super) pulse: Remote,
}

/// Length of a greeting.
pub const HELLO_BYTES: usize = 5 + Endpoint::BYTES + 4 + 4 + 8 + 4;

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let parts: [&[u8]; 7] = [
            &MAGIC,
            &[VERSION],
            &self.endpoint.to_bytes(),
            &self.depth.to_be_bytes(),
            &self.message_bytes.to_be_bytes(),
            &self.pulse.addr.to_be_bytes(),
            &self.pulse.rkey.to_be_bytes(),
        ];
        let mut at = 0;
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let refused = |why: String| Error::invalid(format!("the peer's greeting {why}"));
        if bytes.len() != HELLO_BYTES {
            return Err(refused(format!("has {} bytes, not {HELLO_BYTES}", bytes.len())));
        }
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            head
        };
        if take(4) != MAGIC {
            return Err(refused("is not that of a byte stream".into()));
        }
        let version = take(1)[0];
        if version != VERSION {
            return Err(refused(format!("has version {version}; this side speaks {VERSION}")));
        }
        let endpoint = Endpoint::from_bytes(take(Endpoint::BYTES))?;
        let mut word = || u32::from_be_bytes(take(4).try_into().expect("four bytes"));
        let (depth, message_bytes) = (word(), word());
        let addr = u64::from(word()) << 32 | u64::from(word());
        let pulse = Remote { addr, rkey: word() };
        if !(MIN_DEPTH..=MAX_DEPTH).contains(&depth) {
            return Err(refused(format!(
                "offers {depth} receives, not {MIN_DEPTH} to {MAX_DEPTH}"
            )));
        }
        if !MESSAGE_BYTES.contains(&message_bytes) {
            return Err(refused(format!(
                "offers messages of {message_bytes} bytes, not {} to {}",
                MESSAGE_BYTES.start(),
                MESSAGE_BYTES.end()
            )));
        }
        Ok(Hello { endpoint, depth, message_bytes, pulse })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sojourn_fabric::abi::{Gid, MASK_24};

    proptest! {
        #[test]
        fn greetings_survive_their_bytes(
            lid: u16, gid: [u8; 16], qpn in 0..=MASK_24, psn in 0..=MASK_24,
            depth in MIN_DEPTH..=MAX_DEPTH, message_bytes in MESSAGE_BYTES, addr: u64, rkey: u32,
        ) {
            let endpoint = Endpoint { lid, gid: Gid(gid), qpn, psn };
            let hello = Hello { endpoint, depth, message_bytes, pulse: Remote { addr, rkey } };
            prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
        }

        #[test]
        fn no_bytes_make_decoding_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..2 * HELLO_BYTES), like: bool,
        ) {
            if like {
                bytes.resize(HELLO_BYTES, 0);
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4] = VERSION;
                // QPN and PSN of 24 bits.
                (bytes[23], bytes[27]) = (0, 0);
            }
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(&hello.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn a_greeting_out_of_bounds_is_refused_by_name() {
        let endpoint = Endpoint { lid: 1, gid: Gid::default(), qpn: 2, psn: 3 };
        let pulse = Remote { addr: 4, rkey: 5 };
        let hello = Hello { endpoint, depth: 3, message_bytes: 4096, pulse };
        let error = Hello::decode(&hello.encode()).unwrap_err().to_string();
        assert_eq!(error, "the peer's greeting offers 3 receives, not 4 to 4096");
        let hello = Hello { depth: 8, message_bytes: u32::MAX, ..hello };
        let error = Hello::decode(&hello.encode()).unwrap_err().to_string();
        assert!(error.contains("messages of 4294967295 bytes"), "{error}");
        let error = Hello::decode(b"GET / HTTP/1.1").unwrap_err().to_string();
        assert_eq!(error, format!("the peer's greeting has 14 bytes, not {HELLO_BYTES}"));
    }
}
