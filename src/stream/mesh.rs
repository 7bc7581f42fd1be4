//! Streams between the ranks of a job, which introduce themselves by notes.

use super::{StreamOptions, Unconnected, VerbsStream};
use crate::Job;
use sojourn_fabric::virt::Context;
use std::io;

impl VerbsStream {
    /// Connects with `rank`, which does the same with this rank and the same `name`: one that is
    /// new between the two each time.
    ///
    /// # Errors
    /// What verbs refuse, a rank that does not come or is gone, and one that speaks something
    /// else.
    pub fn with_rank(
        job: &Job,
        context: &Context,
        rank: u32,
        name: &str,
        options: &StreamOptions,
    ) -> io::Result<Self> {
        let unconnected = Unconnected::new(context, options)?;
        job.publish(&format!("{name}/hello/{rank}"), &unconnected.hello())?;
        let stream = accept(job, unconnected, rank, name)?;
        job.publish(&format!("{name}/ready/{rank}"), &[])?;
        job.fetch(rank, &format!("{name}/ready/{}", job.rank()))?;
        Ok(stream)
    }

    /// Connects every rank with every other: all call it with the same `name`, a new one each
    /// time. The streams are returned by rank, with `None` in this rank's place.
    ///
    /// # Errors
    /// As [`Self::with_rank`].
    pub fn mesh(
        job: &Job,
        context: &Context,
        name: &str,
        options: &StreamOptions,
    ) -> io::Result<Vec<Option<Self>>> {
        let mut unconnected = Vec::new();
        for rank in 0..job.size() {
            let side = match rank == job.rank() {
                true => None,
                false => Some(Unconnected::new(context, options)?),
            };
            if let Some(side) = &side {
                job.publish(&format!("{name}/hello/{rank}"), &side.hello())?;
            }
            unconnected.push(side);
        }
        let mut streams = Vec::new();
        for (rank, side) in (0..).zip(unconnected) {
            streams.push(side.map(|side| accept(job, side, rank, name)).transpose()?);
        }
        // All can receive before anyone sends.
        job.barrier()?;
        Ok(streams)
    }
}

/// Connects to the side of `rank` that greeted this one.
fn accept(job: &Job, side: Unconnected, rank: u32, name: &str) -> io::Result<VerbsStream> {
    let hello = job.fetch(rank, &format!("{name}/hello/{}", job.rank()))?;
    side.connect(&hello).map_err(|error| {
        io::Error::new(error.kind(), format!("connecting a stream to rank {rank}: {error}"))
    })
}
