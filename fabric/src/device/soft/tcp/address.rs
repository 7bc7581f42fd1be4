//! A context's end of the network, and the GID that carries it: the link-local prefix, the TCP
//! port, 16 zero bits, the IPv4 address. Port 0 says that the context has none.

use crate::abi::Gid;
use std::net::{Ipv4Addr, SocketAddrV4};

const PREFIX: [u8; 8] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0];

/// The GID of a context that listens there, or nowhere.
pub(in super::super) fn gid(endpoint: Option<SocketAddrV4>) -> Gid {
    let endpoint = endpoint.unwrap_or(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    let mut gid = [0u8; 16];
    gid[..8].copy_from_slice(&PREFIX);
    gid[8..10].copy_from_slice(&endpoint.port().to_be_bytes());
    gid[12..].copy_from_slice(&endpoint.ip().octets());
    Gid(gid)
}

/// Where the context with this GID listens, if it is one of ours and listens at all.
pub(in super::super) fn endpoint(gid: Gid) -> Option<SocketAddrV4> {
    let port = u16::from_be_bytes([gid.0[8], gid.0[9]]);
    let ours = gid.0[..8] == PREFIX && gid.0[10..12] == [0, 0] && port != 0;
    ours.then(|| SocketAddrV4::new(node(gid), port))
}

/// The part of a GID that contexts of one node share.
pub(in super::super) fn node(gid: Gid) -> Ipv4Addr {
    Ipv4Addr::new(gid.0[12], gid.0[13], gid.0[14], gid.0[15])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A GID leads back to the address that it was made of, and no port means no address.
        #[test]
        fn a_gid_carries_an_address(ip: u32, port: u16) {
            let at = SocketAddrV4::new(ip.into(), port);
            prop_assert_eq!(endpoint(gid(Some(at))), (port != 0).then_some(at));
            prop_assert_eq!(node(gid(Some(at))), *at.ip());
        }

        /// Nobody else's GID is taken for one of ours.
        #[test]
        fn foreign_gids_lead_nowhere(bytes: [u8; 16]) {
            let ours = bytes[..8] == PREFIX && bytes[10..12] == [0, 0];
            prop_assert!(ours || endpoint(Gid(bytes)).is_none());
        }
    }

    /// A context without a network has a GID that leads nowhere.
    #[test]
    fn nowhere_is_no_address() {
        assert_eq!(endpoint(gid(None)), None);
    }
}
