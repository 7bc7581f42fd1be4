//! What the sides of a selftest run on: opened devices.

use crate::cli::Outcome;
use sojourn_conformance::{Layer, Node};

/// The sides that are on this machine.
pub(super) struct Nodes {
    a: Node,
    b: Node,
}

impl Nodes {
    /// Both sides: two contexts of the device, as two processes would have.
    pub(super) fn both(device: &str, layer: Layer) -> Outcome<Self> {
        Ok(Nodes { a: open(device, layer)?, b: open(device, layer)? })
    }

    pub(super) fn a(&self) -> &Node {
        &self.a
    }

    pub(super) fn b(&self) -> &Node {
        &self.b
    }
}

/// One side.
pub(super) fn open(device: &str, layer: Layer) -> Outcome<Node> {
    Ok(Node { context: sojourn::device::open(device)?, layer })
}
