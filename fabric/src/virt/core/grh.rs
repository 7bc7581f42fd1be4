//! The GRH in front of a datagram's payload: its GIDs are names, too, and the program must see
//! virtual ones.
//!
//! The header is in the program's own memory, where the device put it. It is rewritten when the
//! completion is polled, before the program knows of the datagram, and only where the region is
//! still registered: its memory may be gone otherwise.

use super::local::Local;
use crate::abi::GRH_BYTES;
use sojourn_logging::Element;
use std::sync::atomic::{AtomicU8, Ordering};

/// A header as bytes.
pub(super) type Header = [u8; GRH_BYTES];

/// Next header of a GRH: an IBA transport header (IBTA 8.3).
const NEXT_IBA: u8 = 0x1b;
/// On RoCE v2 over IPv4 the last 20 bytes hold an IPv4 header, and the first 20 nothing.
const IPV4_AT: usize = 20;

/// The sender's physical GID, of either form; `None` where it is no header that we know.
pub(super) fn sender(header: &Header) -> Option<[u8; 16]> {
    if header[0] >> 4 == 6 {
        return Some(std::array::from_fn(|i| header[8 + i]));
    }
    is_ipv4(header).then(|| {
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&header[IPV4_AT + 12..IPV4_AT + 16]);
        gid
    })
}

fn is_ipv4(header: &Header) -> bool {
    header[IPV4_AT] >> 4 == 4
}

/// The same header with virtual GIDs, in the form of a GRH.
pub(super) fn renamed(header: &Header, sgid: [u8; 16], dgid: [u8; 16]) -> Header {
    let mut new = *header;
    if header[0] >> 4 != 6 && is_ipv4(header) {
        let ip = &header[IPV4_AT..];
        let (tos, ttl) = (ip[1], ip[8]);
        // What follows the header: the total length without the 20 bytes of the IPv4 header.
        let payload = u16::from_be_bytes([ip[2], ip[3]]).saturating_sub(20);
        new[0] = 6 << 4 | tos >> 4;
        new[1] = tos << 4;
        new[2..4].fill(0);
        new[4..6].copy_from_slice(&payload.to_be_bytes());
        new[6] = NEXT_IBA;
        new[7] = ttl;
    }
    new[8..24].copy_from_slice(&sgid);
    new[24..].copy_from_slice(&dgid);
    new
}

/// Lets `edit` change the header at the front of a receive with these elements. False where its
/// memory is not registered any more: then nothing was touched.
pub(super) fn edit(
    local: &Local,
    elements: impl Iterator<Item = Element>,
    edit: impl FnOnce(&mut Header),
) -> bool {
    let regions = local.regions();
    let mut bytes: [Option<&AtomicU8>; GRH_BYTES] = [None; GRH_BYTES];
    let mut filled = 0;
    for element in elements {
        let Some(region) = regions.get(&element.lkey) else { return false };
        let take = (GRH_BYTES - filled).min(element.length as usize);
        let offset = element.addr.wrapping_sub(region.start);
        if offset.checked_add(take as u64).is_none_or(|end| end > region.length) {
            return false;
        }
        for i in 0..take {
            let byte = (region.base + offset as usize + i) as *mut u8;
            // SAFETY: within a region that is registered while `regions` is held, whose memory
            // is mapped that long, and accessed with atomics alone (`DevicePd::reg_mr`).
            bytes[filled + i] = Some(unsafe { AtomicU8::from_ptr(byte) });
        }
        filled += take;
        if filled == GRH_BYTES {
            break;
        }
    }
    if filled < GRH_BYTES {
        return false;
    }
    let load = |i: usize| bytes[i].map_or(0, |byte| byte.load(Ordering::Relaxed));
    let mut header: Header = std::array::from_fn(load);
    edit(&mut header);
    for (byte, new) in bytes.iter().zip(header) {
        if let Some(byte) = byte {
            byte.store(new, Ordering::Relaxed);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Promise: the program sees virtual GIDs in a proper GRH, whatever the wire's header was.
    #[test]
    fn an_ipv4_header_becomes_a_grh() {
        let mut header = [0; GRH_BYTES];
        header[20] = 0x45;
        header[21] = 0xab;
        header[22..24].copy_from_slice(&100u16.to_be_bytes());
        header[28] = 64;
        header[32..36].copy_from_slice(&[10, 77, 0, 1]);
        let physical = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, 1];
        assert_eq!(sender(&header), Some(physical));
        let new = renamed(&header, [1; 16], [2; 16]);
        assert_eq!(new[..8], [0x6a, 0xb0, 0, 0, 0, 80, 0x1b, 64]);
        assert_eq!(sender(&new), Some([1; 16]));
        assert_eq!(new[24..], [2; 16]);
    }

    proptest! {
        /// Promise: only the names in a header change.
        #[test]
        fn the_rest_of_a_grh_stays(front in any::<[u8; 8]>(), a: [u8; 16], b: [u8; 16]) {
            let mut header = [0; GRH_BYTES];
            header[..8].copy_from_slice(&front);
            header[0] = 0x60 | header[0] & 15;
            header[8..24].copy_from_slice(&a);
            prop_assert_eq!(sender(&header), Some(a));
            let new = renamed(&header, b, a);
            prop_assert_eq!(new[..8].to_vec(), header[..8].to_vec());
            prop_assert_eq!(sender(&new), Some(b));
        }

        #[test]
        fn no_header_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), GRH_BYTES)) {
            let header: Header = bytes.try_into().unwrap();
            let _ = sender(&header);
            let _ = renamed(&header, [1; 16], [2; 16]);
        }
    }
}
