//! Which entry of a port's GID table to use where the program does not say.

use crate::abi::{Gid, GidEntry, gid_type};

/// How well an Ethernet port's entry serves: RoCE v2 passes through routers, and its IPv4
/// entries do so on any network that ping works on; a link-local address does not.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    Other,
    RoceV1,
    RoceV2LinkLocal,
    RoceV2Routable,
    RoceV2Ipv4,
}

/// The index of the entry that serves an Ethernet `port` best: the first of the best kind, or 0.
pub(super) fn best(table: &[GidEntry], port: u8) -> u32 {
    table
        .iter()
        .filter(|entry| entry.port_num == u32::from(port))
        .max_by(|a, b| fitness(a).cmp(&fitness(b)).then_with(|| b.gid_index.cmp(&a.gid_index)))
        .map_or(0, |entry| entry.gid_index)
}

fn fitness(entry: &GidEntry) -> Fitness {
    match entry.gid_type {
        gid_type::ROCE_V2 if is_ipv4_mapped(entry.gid) => Fitness::RoceV2Ipv4,
        gid_type::ROCE_V2 if is_link_local(entry.gid) => Fitness::RoceV2LinkLocal,
        gid_type::ROCE_V2 => Fitness::RoceV2Routable,
        gid_type::ROCE_V1 => Fitness::RoceV1,
        _ => Fitness::Other,
    }
}

/// `::ffff:a.b.c.d`
fn is_ipv4_mapped(gid: Gid) -> bool {
    gid.0[..10] == [0; 10] && gid.0[10..12] == [0xff; 2]
}

/// `fe80::/10`
fn is_link_local(gid: Gid) -> bool {
    gid.0[0] == 0xfe && gid.0[1] & 0xc0 == 0x80
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(gid_index: u32, port_num: u32, gid_type: u32, gid: &str) -> GidEntry {
        let gid = Gid(gid.parse::<std::net::Ipv6Addr>().expect("an address").octets());
        GidEntry { gid, gid_index, port_num, gid_type, ndev_ifindex: 2 }
    }

    /// Promise: RoCE v2 over IPv4 is preferred, then other routable entries, then link-local
    /// ones, then RoCE v1; other ports do not count, and a tie goes to the first.
    #[test]
    fn the_best_entry_of_the_port_wins() {
        use gid_type::{ROCE_V1, ROCE_V2};
        let all = [
            entry(0, 1, ROCE_V1, "fe80::1"),
            entry(1, 1, ROCE_V2, "fe80::1"),
            entry(2, 1, ROCE_V2, "fd00::1"),
            entry(3, 1, ROCE_V1, "::ffff:10.77.0.1"),
            entry(4, 1, ROCE_V2, "::ffff:10.77.0.1"),
            entry(5, 1, ROCE_V2, "::ffff:10.77.0.9"),
            entry(9, 2, ROCE_V2, "::ffff:10.78.0.1"),
        ];
        assert_eq!(best(&all, 1), 4);
        assert_eq!(best(&all, 2), 9);
        assert_eq!(best(&all, 3), 0);
        assert_eq!(best(&all[..4], 1), 2);
        assert_eq!(best(&all[..2], 1), 1);
        assert_eq!(best(&all[..1], 1), 0);
        assert_eq!(best(&[], 1), 0);
    }
}
