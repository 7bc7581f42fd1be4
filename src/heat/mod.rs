//! Heat that spreads over a plate, computed by the ranks of a job: what Sojourn is shown with, and
//! tested by.
//!
//! The plate is cut into blocks ([`decomposition`]), one for each rank, which is a process of its
//! own. In each step a rank makes its outermost cells first, sends them to its neighbours
//! ([`halo`]), and makes the others while they travel. Every [`MEASURE_EVERY`] steps the ranks
//! begin to find the largest change of all ([`reduce`]), and look at the result that many steps
//! later; so they all stop at the same step, whatever their number, without ever waiting for it.
//! At the end the field comes together at rank 0 ([`gather`]). It is bit for bit the same for
//! any number of ranks.
//!
//! Meanwhile a rank may go over to other devices ([`travel`]): the field stays the same.
//!
//! Called by the `heat` and `demo` commands. All communication is RDMA WRITE and WRITE_WITH_IMM
//! ([`wires`]), over virtual verbs, or for measuring over a raw device.

mod decomposition;
mod gather;
mod grid;
mod halo;
pub(crate) mod image;
pub(crate) mod pattern;
mod reduce;
mod team;
pub(crate) mod travel;
mod wires;

use decomposition::Decomposition;
use grid::Grid;
use pattern::Pattern;
use sojourn::snapshot::{Memory, Snapshots};
use sojourn::verbs::Context;
use sojourn::{Error, Job, Result};
use std::time::{Duration, Instant};
use team::Team;
use zerocopy::{FromBytes, IntoBytes};

/// Steps from one residual to the next, and from the beginning of its reduction to its use.
pub(crate) const MEASURE_EVERY: u64 = 8;

/// Rows that are made before the residual's messages are looked at again.
const ROWS_AT_A_TIME: usize = 64;

/// What is computed.
pub(crate) struct Problem {
    /// The plate at the start.
    pub(crate) pattern: Pattern,
    /// Steps, at most.
    pub(crate) steps: u64,
    /// Stop when no cell changes by more than this in a step.
    pub(crate) tolerance: f64,
    /// Where a rank dies, wait for the one that takes its place, and go on with it.
    pub(crate) recover: bool,
}

/// How a run goes.
pub(crate) enum Progress {
    /// Every [`MEASURE_EVERY`] steps.
    Step {
        /// The step.
        step: u64,
        /// The last known residual.
        residual: f64,
    },
    /// This rank is back at an epoch.
    Back {
        /// The step that the epoch is of.
        step: u64,
        /// Its count.
        epoch: u64,
    },
}

/// What a run came to, at rank 0.
pub(crate) struct Solution {
    /// Row by row.
    pub(crate) field: Vec<f64>,
    /// Steps done.
    pub(crate) steps: u64,
    /// The largest change in the last step that was measured.
    pub(crate) residual: f64,
    /// Time that the steps took, without connecting and gathering.
    pub(crate) elapsed: Duration,
    /// Blocks side by side, and one above the other.
    pub(crate) blocks: (u32, u32),
    /// What went over the wires of all ranks.
    pub(crate) bytes: u64,
    /// Requests posted by all ranks.
    pub(crate) requests: u64,
    /// Time that all ranks together waited for each other.
    pub(crate) waited: Duration,
}

/// How far a rank has come: what its epochs hold beside its grid.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes)]
#[repr(C)]
struct At {
    step: u64,
    /// The largest change of all ranks that is known.
    residual: f64,
    /// That of this rank where the ranks are finding the next; negative where they are not.
    largest: f64,
    /// Which of the grid's fields is that of this step.
    now: u64,
}

impl At {
    const START: At = At { step: 0, residual: f64::INFINITY, largest: -1.0, now: 0 };
}

/// Computes, with the other ranks of `job`, over what `open` opens (a job of one opens nothing).
/// `progress` is told how that goes. The
/// result is at rank 0; the others get `None`.
///
/// With `snapshots` the ranks take epochs on the way, and where one dies they go back to the last of them, with the
/// process that takes its place.
pub(crate) fn solve(
    job: &Job,
    open: impl FnOnce() -> Result<Context>,
    problem: &Problem,
    mut snapshots: Option<&mut Snapshots>,
    mut progress: impl FnMut(Progress),
) -> Result<Option<Solution>> {
    let plate = problem.pattern.size();
    let cut = Decomposition::new(plate.0, plate.1, job.size()).ok_or_else(|| {
        Error::invalid(format!(
            "a plate of {}x{} cells cannot be cut into {} blocks: use fewer ranks or a larger plate",
            plate.0,
            plate.1,
            job.size()
        ))
    })?;
    let block = cut.block(job.rank());
    let mut grid = Grid::new(block.x.len(), block.y.len())?;
    let context = if job.size() == 1 { None } else { Some(open()?) };
    let mut at = Memory::<At>::new(1)?;
    if let Some(snapshots) = snapshots.as_deref_mut() {
        snapshots.protect(0, &at)?;
        for (id, part) in (1..).zip(grid.parts()) {
            snapshots.protect(id, part)?;
        }
    }
    if job.is_replacement() {
        job.regroup(Instant::now() + Job::PATIENCE)?;
    }
    loop {
        at[0] = At::START;
        grid.fill(|x, y| problem.pattern.cell(block.x.start + x, block.y.start + y));
        if let Some(snapshots) = snapshots.as_deref_mut()
            && let Some(epoch) = snapshots.restored()?
        {
            grid.set_current(at[0].now as usize);
            tracing::info!("rank {} is back at step {} (epoch {epoch})", job.rank(), at[0].step);
            progress(Progress::Back { step: at[0].step, epoch });
        }
        let connect = || match &context {
            None => Ok(Team::alone()),
            Some(context) => {
                agree(job, problem)?;
                Team::connect(job, context, &cut, plate)
            }
        };
        let start = Instant::now();
        let done = connect().and_then(|mut team| {
            let snapshots = snapshots.as_deref_mut();
            compute(&mut team, &mut grid, &mut at[0], problem, snapshots, &mut progress)?;
            let elapsed = start.elapsed();
            let gathered = team.gather(&grid)?;
            // What was sent is done; what is still to come is done when all others are here.
            job.barrier()?;
            Ok((elapsed, gathered))
        });
        match done {
            Ok((elapsed, gathered)) => {
                let at = at[0];
                return Ok(gathered.map(|(field, traffic)| Solution {
                    field,
                    steps: at.step,
                    residual: at.residual,
                    elapsed,
                    blocks: (cut.columns, cut.rows),
                    bytes: traffic.bytes,
                    requests: traffic.requests,
                    waited: traffic.waited,
                }));
            }
            Err(error) if problem.recover => {
                tracing::info!("rank {} goes back: {error}", job.rank());
                // Not recovered from: the error that came first says more than that nobody was replaced.
                job.regroup(Instant::now() + Job::PATIENCE).map_err(|_| error)?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Takes the steps that are left.
fn compute(
    team: &mut Team<'_>,
    grid: &mut Grid,
    at: &mut At,
    problem: &Problem,
    mut snapshots: Option<&mut Snapshots>,
    progress: &mut impl FnMut(Progress),
) -> Result<()> {
    team.send_edges(at.step, |side| grid.edge(side))?;
    if at.largest >= 0.0 {
        team.begin_residual(at.largest)?;
    }
    while at.step < problem.steps {
        team.receive_edges(at.step, grid)?;
        at.step += 1;
        let measure = at.step.is_multiple_of(MEASURE_EVERY) || at.step == problem.steps;
        let mut largest = grid.step_border(measure);
        team.send_edges(at.step, |side| grid.next_edge(side))?;
        let rows = grid.inner_rows();
        for first in rows.clone().step_by(ROWS_AT_A_TIME) {
            let some = first..rows.end.min(first + ROWS_AT_A_TIME);
            largest = grid.step_inner(some, measure).max(largest);
            team.progress()?;
        }
        grid.swap();
        if measure {
            if let Some(known) = team.finish_residual()? {
                at.residual = known;
                progress(Progress::Step { step: at.step, residual: known });
            }
            team.begin_residual(largest)?;
            at.largest = largest;
            if at.residual <= problem.tolerance {
                break;
            }
            if let Some(snapshots) = snapshots.as_deref_mut()
                && snapshots.should_checkpoint()?
            {
                at.now = grid.current() as u64;
                snapshots.checkpoint()?;
            }
        }
    }
    if let Some(snapshots) = snapshots {
        snapshots.finish()?;
    }
    if let Some(last) = team.finish_residual()? {
        at.residual = last;
    }
    Ok(())
}

/// Checks that all ranks were asked for the same.
fn agree(job: &Job, problem: &Problem) -> Result<()> {
    let mine = checksum(
        [problem.pattern.fingerprint(), problem.steps, problem.tolerance.to_bits()].into_iter(),
    );
    let all = job.exchange("heat/problem", &mine.to_be_bytes())?;
    match all.iter().position(|theirs| *theirs != mine.to_be_bytes()) {
        None => Ok(()),
        Some(rank) => Err(Error::invalid(format!(
            "rank {rank} was given another plate, number of steps or tolerance than rank {}",
            job.rank()
        ))),
    }
}

/// FNV-1a over words: equal for equal bits.
pub(crate) fn checksum(words: impl Iterator<Item = u64>) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    words
        .flat_map(u64::to_le_bytes)
        .fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

impl Solution {
    /// A number that changes with any bit of the field.
    pub(crate) fn checksum(&self) -> u64 {
        checksum(self.field.iter().map(|cell| cell.to_bits()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_fnv_1a_and_tells_single_bits() {
        assert_eq!(checksum(std::iter::empty()), 0xcbf2_9ce4_8422_2325);
        // FNV-1a of eight zero bytes.
        let zeros = (0..8).fold(0xcbf2_9ce4_8422_2325u64, |h, _| h.wrapping_mul(0x100_0000_01b3));
        assert_eq!(checksum([0].into_iter()), zeros);
        assert_ne!(
            checksum([0.0f64.to_bits()].into_iter()),
            checksum([(-0.0f64).to_bits()].into_iter())
        );
    }
}
