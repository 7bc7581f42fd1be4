//! What two sides tell each other before they connect, and how they connect.

use crate::abi;
use crate::error::{Error, Result};

/// What a peer must know of a queue pair to connect to it, or to send datagrams to it. Programs
/// carry it over any channel they like ([`Endpoint::to_bytes`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// LID of the port, or 0.
    pub lid: u16,
    /// GID of the port.
    pub gid: abi::Gid,
    /// Queue pair number (24 bits).
    pub qpn: u32,
    /// First packet sequence number that this side will send (24 bits).
    pub psn: u32,
}

impl Endpoint {
    /// Length of [`Self::to_bytes`].
    pub const BYTES: usize = 26;

    /// A fixed form, big endian: LID, GID, QPN, PSN.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&self.lid.to_be_bytes());
        bytes[2..18].copy_from_slice(&self.gid.0);
        bytes[18..22].copy_from_slice(&self.qpn.to_be_bytes());
        bytes[22..].copy_from_slice(&self.psn.to_be_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// `EINVAL` for another length, or numbers beyond 24 bits.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().map_err(|_| {
            Error::invalid(format!("an endpoint has {} bytes, not {}", Self::BYTES, bytes.len()))
        })?;
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (qpn, psn) = (word(18), word(22));
        if qpn > abi::MASK_24 || psn > abi::MASK_24 {
            return Err(Error::invalid(format!(
                "an endpoint with QPN {qpn:#x} and PSN {psn:#x}: both have 24 bits"
            )));
        }
        let mut gid = abi::Gid::default();
        gid.0.copy_from_slice(&bytes[2..18]);
        Ok(Endpoint { lid: u16::from_be_bytes([bytes[0], bytes[1]]), gid, qpn, psn })
    }
}

/// How [`super::QueuePair::connect`] sets up a connection. The defaults suit most programs.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Bits of [`abi::access`] that peers may use on this queue pair.
    pub access: u32,
    /// Path MTU ([`abi::mtu`]); `None`: the port's active one.
    pub path_mtu: Option<u32>,
    /// Local ACK timeout: 4.096 µs × 2^timeout (IBTA 9.7.6.1.3).
    pub timeout: u8,
    /// Times that a lost packet is sent again, up to 7 (which a raw rxe takes for: without end).
    pub retry_cnt: u8,
    /// Times that a request is sent again to a peer without a receive; 7: without end.
    pub rnr_retry: u8,
    /// Code of the wait that a peer is asked for when it has no receive (IBTA table 45).
    pub min_rnr_timer: u8,
    /// READs and atomics outstanding as initiator and as responder.
    pub max_rd_atomic: u8,
    /// Queue key of a datagram queue pair.
    pub qkey: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            access: abi::access::REMOTE_WRITE
                | abi::access::REMOTE_READ
                | abi::access::REMOTE_ATOMIC,
            path_mtu: None,
            timeout: 14,
            // A dead peer must show on rxe, too.
            retry_cnt: 6,
            rnr_retry: 7,
            min_rnr_timer: 12,
            max_rd_atomic: 8,
            qkey: 0x1111_1111,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn endpoints_survive_their_bytes(
            lid: u16, gid: [u8; 16], qpn in 0..=abi::MASK_24, psn in 0..=abi::MASK_24,
        ) {
            let endpoint = Endpoint { lid, gid: abi::Gid(gid), qpn, psn };
            prop_assert_eq!(Endpoint::from_bytes(&endpoint.to_bytes()).unwrap(), endpoint);
        }

        #[test]
        fn no_bytes_make_from_bytes_panic(bytes: Vec<u8>) {
            if let Ok(endpoint) = Endpoint::from_bytes(&bytes) {
                prop_assert_eq!(&endpoint.to_bytes()[..], &bytes[..]);
            }
        }
    }
}
