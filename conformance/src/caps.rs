//! What the device of a side is and can.

use crate::case::{Stop, Verdict};
use crate::quirks::{self, Feature, Subject};
use sojourn_fabric::abi::{self, AhAttr, DeviceAttr, Gid, PortAttr};
use sojourn_fabric::device::DeviceContext;
use std::sync::Arc;

/// The port that cases use.
pub(crate) const PORT: u8 = 1;

/// What a case runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The device itself.
    Raw,
    /// Virtual verbs over it.
    Virtual,
}

impl Layer {
    /// `"raw"` or `"virtual"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Layer::Raw => "raw",
            Layer::Virtual => "virtual",
        }
    }
}

/// What one side runs on.
#[derive(Clone)]
pub struct Node {
    /// The opened device, raw or virtual.
    pub context: Arc<dyn DeviceContext>,
    /// Which of both it is.
    pub layer: Layer,
}

/// What the device answers about itself.
#[derive(Clone, Debug)]
pub struct Caps {
    /// Its limits.
    pub device: DeviceAttr,
    /// Its first port.
    pub port: PortAttr,
    /// Its address.
    pub gid: Gid,
    /// Index of that address.
    pub gid_index: u8,
    by_gid: bool,
    subject: Subject,
}

impl Caps {
    pub(crate) fn query(node: &Node) -> Verdict<Self> {
        let device = node.context.query_device()?;
        let port = node.context.query_port(PORT)?;
        let by_gid = node.context.addresses_by_gid(PORT)?;
        let index = node.context.best_gid_index(PORT)?;
        let gid = node.context.query_gid(PORT, index)?;
        let subject = Subject::of(node.context.kind(), device.vendor_id, node.layer);
        let gid_index = u8::try_from(index)
            .map_err(|_| Stop::failed(format!("GID index {index} does not fit 8 bits")))?;
        Ok(Caps { device, port, gid, gid_index, by_gid, subject })
    }

    /// Ends the case as not applicable where the device lacks `feature`.
    pub(crate) fn needs(&self, feature: Feature) -> Verdict {
        match quirks::lacking(&self.subject, self, feature) {
            Some(reason) => Err(Stop::NotApplicable(reason)),
            None => Ok(()),
        }
    }

    /// Addresses go by GID ([`sojourn_fabric::device::DeviceContext::addresses_by_gid`]).
    pub(crate) fn global(&self) -> bool {
        self.by_gid
    }

    /// The address vector that reaches a peer from here.
    pub(crate) fn address_vector(&self, lid: u16, gid: Gid, global: bool) -> AhAttr {
        AhAttr {
            dlid: lid,
            is_global: u8::from(global),
            port_num: PORT,
            grh: abi::GlobalRoute {
                dgid: gid,
                sgid_index: self.gid_index,
                hop_limit: 64,
                ..abi::GlobalRoute::default()
            },
            ..AhAttr::default()
        }
    }
}
