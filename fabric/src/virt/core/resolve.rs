//! What the core needs of the job's control path, as a trait: so the core is tested with names that
//! come late, or never.

use crate::names::{Error, Fetch, Grant, ProcessId, Record};
use std::time::Instant;

/// What a fetch answers.
pub type Answer = Result<Record, Error>;

/// Resolves names that belong to other processes. Implemented by
/// [`Process`](crate::virt::Process) with the service of [`crate::names`].
pub trait Resolver: Send + Sync {
    /// Who we are in the job.
    fn grant(&self) -> Grant;

    /// The job has no other process, and never will: what is not ours is foreign.
    fn alone(&self) -> bool;

    /// Fetches what a peer publishes. Never blocks; `done` is called once, on the service
    /// thread, at the latest soon after `deadline`.
    fn fetch(
        &self,
        peer: ProcessId,
        what: Fetch,
        deadline: Instant,
        done: Box<dyn FnOnce(Answer) + Send>,
    );

    /// The same, waiting for the answer: not to be called on the service thread.
    ///
    /// # Errors
    /// As the peer or the service answers.
    fn fetch_wait(&self, peer: ProcessId, what: Fetch, deadline: Instant) -> Answer;

    /// Runs `job` on the service thread, not before `at`.
    fn run_later(&self, at: Instant, job: Box<dyn FnOnce() + Send>);

    /// Runs `job` on the service thread after what that is at, or at once. Where neither is possible any
    /// more it is dropped unrun.
    fn run_soon(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}
