//! A device under virtual verbs: opened, with the table of our keys on it and its ports' addresses.

use super::policy::Source;
use super::tables::{DeviceQpns, KeyTable};
use crate::abi;
use crate::device::{DeviceContext, Kind};
use crate::error::{Error, Result};
use crate::names::{DeviceId, PhysicalEnd};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

/// A physical key that no device deals: where a virtual key stands for nothing, the request is
/// handed with this one, and ends as verbs have it end. (Index 0 is nobody's on soft, rxe, mlx5.)
pub(super) const NO_SUCH_KEY: u32 = 0;
/// A queue pair number that no device deals (the last one of all is the multicast group's).
pub(super) const NO_SUCH_QPN: u32 = 0x00ff_fffe;
/// The hop limit of address vectors that name none.
const HOP_LIMIT: u8 = 64;

/// The release of the running kernel. (In the tests here one whose rxe lies.)
fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if cfg!(test) { "6.12.110".to_owned() } else { release }
}

/// Whether rxe of that kernel gives back receives as filled at ERR that are not.
fn rxe_lies(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|it| it.parse().ok()).unwrap_or(0u32);
    matches!((next(), next(), next()), (6, 12, patch) if patch < FIRST_HONEST)
}

/// The first release of Linux 6.12 whose rxe does not.
const FIRST_HONEST: u32 = 111;

/// What rxe says of who made it.
const RXE_VENDOR: u32 = 0x00ff_ffff;

/// Bytes of a GID that name the subnet (IBTA 4.1.1).
const SUBNET_PREFIX: usize = 8;

/// One physical device in use by a context.
pub(super) struct Underlay {
    pub(super) id: DeviceId,
    pub(super) device: Arc<dyn DeviceContext>,
    /// Our virtual keys, as this device has them.
    pub(super) keys: KeyTable,
    /// This device's queue pair numbers, as we call them.
    pub(super) qpns: DeviceQpns,
    /// At ERR it may give back receives as filled that are not.
    lies: bool,
    /// What tells here how far a queue pair has come.
    pub(super) source: Source,
    /// Held by each physical queue pair.
    users: Arc<()>,
}

impl Underlay {
    pub(super) fn new(id: DeviceId, device: Arc<dyn DeviceContext>, source: Source) -> Self {
        let vendor = device.query_device().map_or(0, |attr| attr.vendor_id);
        Underlay {
            id,
            lies: device.kind() == Kind::Hca && vendor == RXE_VENDOR && rxe_lies(&kernel()),
            device,
            keys: KeyTable::new(),
            qpns: DeviceQpns::new(),
            source,
            users: Arc::default(),
        }
    }

    /// Whether receives that come back as filled at ERR may not be.
    pub(super) fn may_lie_at_err(&self) -> bool {
        self.lies
    }

    /// A physical queue pair is on it as long as it holds this.
    pub(super) fn user(&self) -> Arc<()> {
        Arc::clone(&self.users)
    }

    /// Whether a physical queue pair is on it.
    pub(super) fn is_used(&self) -> bool {
        Arc::strong_count(&self.users) > 1
    }

    /// How peers reach queue pair `qpn` over `port` of this device.
    pub(super) fn end(&self, port: u8, qpn: u32) -> Result<PhysicalEnd> {
        let attr = self.device.query_port(port)?;
        let gid = self.device.query_gid(port, self.device.best_gid_index(port)?)?;
        Ok(PhysicalEnd {
            device: self.id,
            lid: attr.lid,
            gid: gid.0,
            qpn,
            mtu: attr.active_mtu as u8,
            link_layer: attr.link_layer,
            word: None,
        })
    }

    /// Whether `port` is up and on a network with `end`: on the same subnet (InfiniBand, and soft), or
    /// where the kernel routes that address by one of the port's own (RoCE).
    pub(super) fn reaches(&self, port: u8, end: &PhysicalEnd) -> bool {
        let Ok(own) = self.end(port, 0) else { return false };
        let up =
            self.device.query_port(port).is_ok_and(|attr| attr.state == abi::port_state::ACTIVE);
        if !up || own.link_layer != end.link_layer {
            return false;
        }
        match (ipv4_of(own.gid), ipv4_of(end.gid)) {
            (Some(own), Some(theirs)) => own == theirs || source_towards(theirs) == Some(own),
            (None, None) => own.gid[..SUBNET_PREFIX] == end.gid[..SUBNET_PREFIX],
            _ => false,
        }
    }

    /// The physical address vector that leads to `end`, in place of a virtual one.
    pub(super) fn route(&self, wanted: &abi::AhAttr, end: &PhysicalEnd) -> Result<abi::AhAttr> {
        let own = self.end(wanted.port_num, 0)?;
        if own.link_layer != end.link_layer {
            return Err(Error::new(
                libc::EHOSTUNREACH,
                format!(
                    "port {} of {} has another link layer ({}) than the peer's device ({}): \
                     both processes must use devices of one network",
                    wanted.port_num,
                    self.device.name(),
                    own.link_layer,
                    end.link_layer
                ),
            ));
        }
        // Where LIDs cannot tell nodes apart (Ethernet; soft nodes that were given no LID of their
        // own) the GID must.
        let by_gid = end.link_layer == abi::link_layer::ETHERNET
            || end.lid == 0
            || (self.device.kind() == Kind::Soft && !same_node(&own, end));
        let is_global = u8::from(wanted.is_global != 0 || by_gid);
        let mut attr = abi::AhAttr { dlid: end.lid, is_global, ..*wanted };
        attr.grh.dgid = abi::Gid(end.gid);
        attr.grh.sgid_index = self.gid_index(wanted.port_num)?;
        if attr.grh.hop_limit == 0 {
            attr.grh.hop_limit = HOP_LIMIT;
        }
        Ok(attr)
    }

    /// An address vector of the program's own, to somewhere outside the job.
    pub(super) fn foreign_route(&self, wanted: &abi::AhAttr) -> Result<abi::AhAttr> {
        let mut attr = *wanted;
        if attr.is_global != 0 {
            attr.grh.sgid_index = self.gid_index(wanted.port_num)?;
        }
        Ok(attr)
    }

    fn gid_index(&self, port: u8) -> Result<u8> {
        let index = self.device.best_gid_index(port)?;
        u8::try_from(index).map_err(|_| {
            Error::invalid(format!(
                "GID index {index} of {} exceeds 255, which is what an address vector holds",
                self.device.name()
            ))
        })
    }
}

/// Of a RoCE v2 GID over IPv4.
fn ipv4_of(gid: [u8; 16]) -> Option<Ipv4Addr> {
    Ipv6Addr::from(gid).to_ipv4_mapped()
}

/// The address of ours that the kernel sends from to another. Nothing is sent.
fn source_towards(to: Ipv4Addr) -> Option<Ipv4Addr> {
    // Any port: none is looked at.
    const PORT: u16 = 9;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((to, PORT)).ok()?;
    match socket.local_addr().ok()? {
        SocketAddr::V4(own) => Some(*own.ip()),
        SocketAddr::V6(_) => None,
    }
}

/// Two soft ports on one node: the second half of their GIDs names the node in its last four bytes.
fn same_node(a: &PhysicalEnd, b: &PhysicalEnd) -> bool {
    a.lid == b.lid && a.gid[12..] == b.gid[12..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rxe_lies_in_some_kernels() {
        for (release, lies) in [
            ("6.12.110-amd64", true),
            ("6.12.43+deb12-amd64", true),
            ("6.12.111+deb12-amd64", false),
            ("6.1.0-49-amd64", false),
            ("6.18.5", false),
            ("", false),
        ] {
            assert_eq!(rxe_lies(release), lies, "{release}");
        }
    }
}
