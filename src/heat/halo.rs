//! Edges of blocks, on their way to the neighbours.
//!
//! The edge of step s is WRITTEN into one of two slots of the neighbour's inbox, by the parity of
//! s, and a WRITE_WITH_IMM behind it carries s in its immediate data and as a stamp into the slot.
//! Two slots are enough, without any other flow control: a rank sends its edge of step s only
//! when it has the neighbour's of s - 1, which the neighbour made from our edge of s - 2; so slot
//! and send buffer of s - 2 are free. Notices must come in order, one for each step, each with
//! its stamp: a message that is lost, repeated or out of order is an error here.

use super::decomposition::{Block, Decomposition, Side};
use super::grid::Grid;
use super::wires::{Mark, Plan, Space, WireId, Wires};
use sojourn::{Error, Result};

/// Buffers of each edge.
const SLOTS: usize = 2;

struct Edge {
    side: Side,
    wire: WireId,
    /// Cells of an edge; a slot has one word more, for its stamp.
    cells: usize,
    inbox: Space,
    outbox: Space,
    /// When each slot of the outbox is free.
    sent: [Mark; SLOTS],
}

impl Edge {
    fn slot(&self, step: u64) -> usize {
        (step as usize % SLOTS) * (self.cells + 1) * 8
    }
}

/// The neighbours of a rank.
pub(super) struct Halo {
    edges: Vec<Edge>,
    /// The plate's own sides.
    insulated: Vec<Side>,
}

impl Halo {
    /// Plans the wires to the neighbours of `rank`.
    pub(super) fn plan(plan: &mut Plan, cut: &Decomposition, block: &Block, rank: u32) -> Self {
        let name = |from: u32, to: u32| format!("heat/halo/{from}-{to}");
        let mut halo = Halo { edges: Vec::new(), insulated: Vec::new() };
        for side in Side::ALL {
            let Some(peer) = cut.neighbour(rank, side) else {
                halo.insulated.push(side);
                continue;
            };
            let cells = block.side(side);
            let inbox = plan.space(SLOTS * (cells + 1));
            let outbox = plan.space(SLOTS * cells);
            let wire = plan.wire(peer, name(rank, peer), name(peer, rank), inbox.clone());
            halo.edges.push(Edge { side, wire, cells, inbox, outbox, sent: Default::default() });
        }
        halo
    }

    /// Sends the edges of `step`, which `edge` of the grid gives.
    pub(super) fn send<I: Iterator<Item = f64>>(
        &mut self,
        wires: &mut Wires<'_>,
        step: u64,
        edge: impl Fn(Side) -> I,
    ) -> Result<()> {
        for to in &mut self.edges {
            let slot = step as usize % SLOTS;
            wires.done(to.wire, to.sent[slot])?;
            let from = to.outbox.at(slot * to.cells * 8);
            for (i, value) in edge(to.side).enumerate() {
                wires.store(from + i * 8, value.to_bits());
            }
            let slot_at = to.slot(step);
            wires.write(to.wire, from, to.cells * 8, slot_at)?;
            to.sent[slot] = wires.notify(to.wire, step, slot_at + to.cells * 8, step as u32)?;
        }
        Ok(())
    }

    /// Waits for the neighbours' edges of `step`, and fills the ghosts of the grid with them.
    pub(super) fn receive(
        &mut self,
        wires: &mut Wires<'_>,
        step: u64,
        grid: &mut Grid,
    ) -> Result<()> {
        for side in &self.insulated {
            grid.insulate(*side);
        }
        for from in &self.edges {
            let imm = wires.notice(from.wire, "its edge of the last step")?;
            let slot = from.inbox.at(from.slot(step));
            let stamp = wires.load(slot + from.cells * 8);
            if imm != step as u32 || stamp != step {
                return Err(Error::new(
                    libc::EBADMSG,
                    format!(
                        "rank {} sent its edge of step {imm} with stamp {stamp} where that of \
                         step {step} was due: messages were lost, repeated or reordered",
                        wires.peer(from.wire)
                    ),
                ));
            }
            let cells = (0..from.cells).map(|i| f64::from_bits(wires.load(slot + i * 8)));
            grid.set_ghosts(from.side, cells);
        }
        Ok(())
    }
}
