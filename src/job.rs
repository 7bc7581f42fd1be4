//! What a process knows of its job, and how its processes come together.

use crate::member::Process;
use crate::verbs::Context;
use crate::{Error, Result, best_device};
use sojourn_fabric::names::env::{self, JobEnvironment};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A process's membership in its job. It lasts as long as this value: dropping it leaves the job.
///
/// Ranks tell each other what they need by *notes*: small blobs that one publishes under a name,
/// and others fetch from it. Notes are for setting up, and for whatever else is rare; data
/// travels by verbs.
pub struct Job {
    process: Process,
    rank: u32,
    size: u32,
    device: Option<String>,
    /// Barriers that this rank has entered.
    barriers: AtomicU64,
}

impl Job {
    /// How long [`Self::fetch`], [`Self::exchange`] and [`Self::barrier`] wait for another rank.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// Joins the job of which the launcher told this process; without a launcher, a job of one.
    ///
    /// # Errors
    /// Where the launcher's environment variables make no sense (the message names them), the job
    /// key cannot be read or does not match, or the directory cannot be reached.
    pub fn from_env() -> Result<Self> {
        let told = JobEnvironment::read().map_err(|error| Error::invalid(error.to_string()))?;
        Ok(match told {
            Some(told) => Job {
                process: Process::join(&told)?,
                rank: told.rank,
                size: told.size,
                device: told.device,
                barriers: AtomicU64::new(0),
            },
            None => Job {
                process: Process::standalone()?,
                rank: 0,
                size: 1,
                device: std::env::var(env::DEVICE).ok().filter(|name| !name.is_empty()),
                barriers: AtomicU64::new(0),
            },
        })
    }

    /// This process's number in the job, from 0.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many ranks the job has.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The device to open: the one that the user named, or the best of this machine.
    ///
    /// # Errors
    /// As [`best_device`].
    pub fn device(&self) -> Result<String> {
        match &self.device {
            Some(name) => Ok(name.clone()),
            None => best_device(),
        }
    }

    /// Opens virtual verbs over the job's device.
    ///
    /// # Errors
    /// Where there is no such device, or it cannot be opened.
    pub fn context(&self) -> Result<Context> {
        self.process.open(&self.device()?)
    }

    /// Leaves a note for the other ranks. It is there until this rank leaves the job, so end with
    /// a [`Self::barrier`] where another may still want it.
    ///
    /// # Errors
    /// Where the name or the note is longer than a note may be.
    pub fn publish(&self, name: &str, note: &[u8]) -> Result<()> {
        self.process.publish(name, note)
    }

    /// The note that `rank` published under `name`, or will within [`Self::PATIENCE`].
    ///
    /// # Errors
    /// `ETIMEDOUT` where none came, and at once where the rank has died.
    pub fn fetch(&self, rank: u32, name: &str) -> Result<Vec<u8>> {
        self.fetch_until(rank, name, Instant::now() + Self::PATIENCE)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_until(&self, rank: u32, name: &str, deadline: Instant) -> Result<Vec<u8>> {
        if rank >= self.size {
            return Err(Error::invalid(format!(
                "a note of rank {rank}: this job has the ranks 0 to {}",
                self.size - 1
            )));
        }
        self.process
            .fetch(JobEnvironment::process_of(rank), name, deadline)
            .map_err(|error| error.context(format_args!("rank {rank}")))
    }

    /// Gives every rank's note to every rank, by rank. All call it with the same name, which must
    /// be a new one each time.
    ///
    /// Each rank talks to each: for setting up jobs of modest size.
    ///
    /// # Errors
    /// As [`Self::publish`] and [`Self::fetch`]; [`Self::PATIENCE`] is for the whole.
    pub fn exchange(&self, name: &str, note: &[u8]) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + Self::PATIENCE;
        self.publish(name, note)?;
        (0..self.size)
            .map(|rank| match rank == self.rank {
                true => Ok(note.to_vec()),
                false => self.fetch_until(rank, name, deadline),
            })
            .collect()
    }

    /// Returns when every rank has called it, the same number of times.
    ///
    /// It travels by notes, in ⌈log₂ n⌉ rounds: for the beginning and the end of a program, not
    /// for its inner loop.
    ///
    /// # Errors
    /// As [`Self::fetch`], where a rank does not come.
    pub fn barrier(&self) -> Result<()> {
        let deadline = Instant::now() + Self::PATIENCE;
        let number = self.barriers.fetch_add(1, Ordering::Relaxed);
        let size = u64::from(self.size);
        let distances = || (0..u32::BITS).map(|round| 1u64 << round).take_while(|far| *far < size);
        let at = |far: u64| u32::try_from((u64::from(self.rank) + far) % size).unwrap_or_default();
        // In each round a rank hears from one before it that has heard from as many as itself.
        for far in distances() {
            let name = format!("sojourn/barrier/{number}/{far}");
            self.publish(&name, &[])?;
            self.fetch_until(at(size - far), &name, deadline)
                .map_err(|error| error.context("waiting at a barrier"))?;
        }
        // A note goes with the rank that left it, which may leave the job after this: so it stays
        // until those that fetch its notes have gone on. One that has left has gone on too.
        let passed = format!("sojourn/barrier/{number}/passed");
        self.publish(&passed, &[])?;
        for far in distances() {
            if let Err(error) = self.fetch_until(at(far), &passed, deadline) {
                tracing::debug!("leaving a barrier: {error}");
            }
        }
        Ok(())
    }
}
