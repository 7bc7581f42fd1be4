//! The ranks as the step sees them: neighbours that send their edges, a residual of all, a field
//! that comes together at rank 0. A job of one is a team that needs no device.

use super::decomposition::{Decomposition, Side};
use super::gather::Gather;
use super::grid::Grid;
use super::halo::Halo;
use super::reduce::AllReduce;
use super::wires::{Plan, Traffic, Wires};
use sojourn::verbs::Context;
use sojourn::{Job, Result};

/// The other ranks.
pub(super) enum Team<'a> {
    /// There are none; the residual that is under way.
    Alone(Option<f64>),
    /// There are some.
    Peers(Box<Peers<'a>>),
}

pub(super) struct Peers<'a> {
    wires: Wires<'a>,
    halo: Halo,
    reduce: AllReduce,
    gather: Gather,
}

impl<'a> Team<'a> {
    /// A job of one.
    pub(super) fn alone() -> Self {
        Team::Alone(None)
    }

    /// Connects with the other ranks over `context`, and returns when all have.
    pub(super) fn connect(
        job: &'a Job,
        context: &Context,
        cut: &Decomposition,
        plate: (usize, usize),
    ) -> Result<Self> {
        let (rank, mut plan) = (job.rank(), Plan::default());
        let halo = Halo::plan(&mut plan, cut, &cut.block(rank), rank);
        let reduce = AllReduce::plan(&mut plan, rank, job.size());
        let gather = Gather::plan(&mut plan, cut, plate, rank);
        let wires = plan.connect(job, context)?;
        Ok(Team::Peers(Box::new(Peers { wires, halo, reduce, gather })))
    }

    /// Sends the edges of `step`.
    pub(super) fn send_edges<I: Iterator<Item = f64>>(
        &mut self,
        step: u64,
        edge: impl Fn(Side) -> I,
    ) -> Result<()> {
        match self {
            Team::Alone(_) => Ok(()),
            Team::Peers(peers) => peers.halo.send(&mut peers.wires, step, edge),
        }
    }

    /// Waits for the edges of `step`, and fills the ghosts.
    pub(super) fn receive_edges(&mut self, step: u64, grid: &mut Grid) -> Result<()> {
        match self {
            Team::Alone(_) => {
                Side::ALL.into_iter().for_each(|side| grid.insulate(side));
                Ok(())
            }
            Team::Peers(peers) => peers.halo.receive(&mut peers.wires, step, grid),
        }
    }

    /// Begins to find the largest residual.
    pub(super) fn begin_residual(&mut self, largest: f64) -> Result<()> {
        match self {
            Team::Alone(running) => {
                *running = Some(largest);
                Ok(())
            }
            Team::Peers(peers) => peers.reduce.begin(&mut peers.wires, largest),
        }
    }

    /// Moves the residual on, without waiting.
    pub(super) fn progress(&mut self) -> Result<()> {
        match self {
            Team::Alone(_) => Ok(()),
            Team::Peers(peers) => peers.reduce.progress(&mut peers.wires),
        }
    }

    /// The residual that was begun last, and not yet asked for.
    pub(super) fn finish_residual(&mut self) -> Result<Option<f64>> {
        match self {
            Team::Alone(running) => Ok(running.take()),
            Team::Peers(peers) => peers.reduce.finish(&mut peers.wires),
        }
    }

    /// The whole field and the traffic of all ranks, at rank 0; elsewhere `None`. All that this
    /// rank has sent is done then.
    pub(super) fn gather(&mut self, grid: &Grid) -> Result<Option<(Vec<f64>, Traffic)>> {
        match self {
            Team::Alone(_) => Ok(Some((grid.cells(), Traffic::default()))),
            Team::Peers(peers) => {
                let gathered = peers.gather.run(&mut peers.wires, grid)?;
                peers.wires.drain()?;
                Ok(gathered)
            }
        }
    }
}
