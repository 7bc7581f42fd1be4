//! The whole field in the memory of rank 0, once the last step is done.
//!
//! Every other rank WRITEs its rows where they belong in the plate, then gives notice with what it
//! has to tell of its run.

use super::decomposition::{Block, Decomposition};
use super::grid::Grid;
use super::wires::{Plan, Space, Traffic, WireId, Wires};
use sojourn::{Error, Result};
use std::time::Duration;

/// Words in which a rank tells of its run.
const TOLD: usize = 3;

/// The notices with which a rank is done, one for each of those words.
const DONE: u32 = 0x444f_4e00;

enum Role {
    /// Rank 0: the plate, followed by what the others tell; the wires to them, in order.
    Root { inbox: Space, wires: Vec<WireId> },
    /// Another: its rows, on their way.
    Other { rows: Space, wire: WireId },
}

/// The way of the field to rank 0.
pub(super) struct Gather {
    role: Role,
    block: Block,
    /// Cells of the plate's rows, and of all of it.
    width: usize,
    cells: usize,
    rank: u32,
}

impl Gather {
    /// Plans the wires of `rank`.
    pub(super) fn plan(
        plan: &mut Plan,
        cut: &Decomposition,
        (width, height): (usize, usize),
        rank: u32,
    ) -> Self {
        let size = cut.columns * cut.rows;
        let (block, cells) = (cut.block(rank), width * height);
        let at_root = |rank: u32| format!("heat/gather/{rank}");
        let at_other = || "heat/gather".to_owned();
        let role = if rank == 0 {
            let inbox = plan.space(cells + size as usize * TOLD);
            let wires = (1..size)
                .map(|rank| plan.wire(rank, at_root(rank), at_other(), inbox.clone()))
                .collect();
            Role::Root { inbox, wires }
        } else {
            let rows = plan.space(block.cells());
            // Nothing comes back.
            let nothing = plan.space(0);
            Role::Other { rows, wire: plan.wire(0, at_other(), at_root(rank), nothing) }
        };
        Gather { role, block, width, cells, rank }
    }

    /// Brings the field to rank 0, and with it what went over all wires; the other ranks get
    /// `None`.
    pub(super) fn run(
        &mut self,
        wires: &mut Wires<'_>,
        grid: &Grid,
    ) -> Result<Option<(Vec<f64>, Traffic)>> {
        match &self.role {
            Role::Other { rows, wire } => {
                let length = self.block.x.len();
                for (y, row) in self.block.y.clone().enumerate() {
                    let from = rows.at(y * length * 8);
                    let cells = grid.row(y);
                    for (i, cell) in cells.iter().enumerate() {
                        wires.store(from + i * 8, cell.to_bits());
                    }
                    let to = (row * self.width + self.block.x.start) * 8;
                    wires.write(*wire, from, length * 8, to)?;
                }
                let traffic = wires.traffic();
                let told = [
                    traffic.bytes,
                    traffic.requests,
                    u64::try_from(traffic.waited.as_nanos()).unwrap_or(u64::MAX),
                ];
                let at = self.told(self.rank);
                let mut mark = Default::default();
                for (i, word) in told.into_iter().enumerate() {
                    mark = wires.notify(*wire, word, at + i * 8, DONE + i as u32)?;
                }
                wires.done(*wire, mark)?;
                Ok(None)
            }
            Role::Root { inbox, wires: others } => {
                let mut total = wires.traffic();
                for (rank, wire) in (1..).zip(others) {
                    let mut told = [0; TOLD];
                    for (i, word) in told.iter_mut().enumerate() {
                        let imm = wires.notice(*wire, "the rest of its field")?;
                        if imm != DONE + i as u32 {
                            return Err(Error::new(
                                libc::EBADMSG,
                                format!("rank {rank} ended its field with notice {imm:#x}"),
                            ));
                        }
                        *word = wires.load(inbox.at(self.told(rank) + i * 8));
                    }
                    let [bytes, requests, waited] = told;
                    total.bytes += bytes;
                    total.requests += requests;
                    total.waited += Duration::from_nanos(waited);
                }
                let mut field: Vec<f64> =
                    (0..self.cells).map(|i| f64::from_bits(wires.load(inbox.at(i * 8)))).collect();
                for (y, row) in self.block.y.clone().enumerate() {
                    let at = row * self.width + self.block.x.start;
                    field[at..at + self.block.x.len()].copy_from_slice(grid.row(y));
                }
                Ok(Some((field, total)))
            }
        }
    }

    /// Where a rank tells of its run, in the inbox of rank 0.
    fn told(&self, rank: u32) -> usize {
        (self.cells + rank as usize * TOLD) * 8
    }
}
