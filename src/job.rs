//! What a process knows of its job, and how its processes come together.

use crate::verbs::Context;
use crate::{Error, Result, best_device};
use sojourn_fabric::names::env::{self, JobEnvironment};
use sojourn_fabric::virt::Process;
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
        match JobEnvironment::read().map_err(|error| Error::invalid(error.to_string()))? {
            Some(told) => Self::join(&told),
            None => Ok(Job {
                process: Process::standalone()?,
                rank: 0,
                size: 1,
                device: std::env::var(env::DEVICE).ok().filter(|name| !name.is_empty()),
                barriers: AtomicU64::new(0),
            }),
        }
    }

    fn join(told: &JobEnvironment) -> Result<Self> {
        Ok(Job {
            process: Process::join(told)?,
            rank: told.rank,
            size: told.size,
            device: told.device.clone(),
            barriers: AtomicU64::new(0),
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

#[cfg(test)]
mod tests {
    use super::*;
    use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
    use sojourn_fabric::names::{Endpoint, JobKey, PrivateDir};
    use std::sync::atomic::AtomicU32;

    /// Runs `rank` in a thread for each rank of a job of its own.
    fn run<T: Send>(size: u32, rank: impl Fn(Job) -> T + Sync) -> Vec<T> {
        let home = PrivateDir::create().unwrap();
        let (at, key_file) = (home.path().join("directory"), home.path().join("key"));
        let key = JobKey::generate().unwrap();
        key.write(&key_file).unwrap();
        let config = ServerConfig::new(Endpoint::Unix(at), key, size);
        let server = DirectoryServer::start(config).unwrap();
        let told = |rank| JobEnvironment {
            rank,
            size,
            directory: server.endpoints()[0].clone(),
            key_file: key_file.clone(),
            device: None,
        };
        std::thread::scope(|scope| {
            let (told, rank) = (&told, &rank);
            let threads: Vec<_> = (0..size)
                .map(|i| scope.spawn(move || rank(Job::join(&told(i)).unwrap())))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn nobody_passes_a_barrier_before_all_have_come() {
        for size in [1, 2, 5] {
            let come = AtomicU32::new(0);
            run(size, |job| {
                for round in 1..=3 {
                    if job.rank() == round % size {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    come.fetch_add(1, Ordering::SeqCst);
                    job.barrier().unwrap();
                    assert!(come.load(Ordering::SeqCst) >= round * size);
                    job.barrier().unwrap();
                }
                // The others may still be on their way out when this one has left.
                drop(job);
            });
        }
    }

    #[test]
    fn everybody_gets_the_notes_of_everybody_by_rank() {
        let all = run(5, |job| {
            let all = job.exchange("numbers", &[job.rank() as u8 * 3]).unwrap();
            job.barrier().unwrap();
            all
        });
        assert!(all.iter().all(|notes| *notes == [[0], [3], [6], [9], [12]]), "{all:?}");
    }

    #[test]
    fn a_note_waits_for_its_publisher_and_then_for_its_reader() {
        run(2, |job| {
            if job.rank() == 0 {
                std::thread::sleep(Duration::from_millis(30));
                job.publish("late", b"here").unwrap();
            } else {
                assert_eq!(job.fetch(0, "late").unwrap(), b"here");
                assert_eq!(job.fetch(0, "late").unwrap(), b"here");
            }
            job.barrier().unwrap();
        });
    }

    #[test]
    fn what_will_never_come_is_an_error_that_names_the_rank() {
        run(2, |job| {
            if job.rank() == 1 {
                job.publish("here", b"").unwrap();
                // Leaves once the other has seen it.
                job.fetch(0, "seen").unwrap();
                return;
            }
            job.fetch(1, "here").unwrap();
            job.publish("seen", b"").unwrap();
            let start = Instant::now();
            let error = job.fetch(1, "never").unwrap_err().to_string();
            assert!(error.contains("rank 1") && error.contains("left the job"), "{error}");
            assert!(start.elapsed() < Job::PATIENCE / 2);
            let error = job.fetch(2, "x").unwrap_err().to_string();
            assert!(error.contains("ranks 0 to 1"), "{error}");
            let soon = Instant::now() + Duration::from_millis(20);
            assert!(job.fetch_until(0, "mine", soon).is_err());
            assert!(job.publish("long", &vec![0; 1 << 20]).is_err());
        });
    }

    #[test]
    fn without_a_launcher_a_process_is_a_job_of_one() {
        let job = Job {
            process: Process::standalone().unwrap(),
            rank: 0,
            size: 1,
            device: None,
            barriers: AtomicU64::new(0),
        };
        job.barrier().unwrap();
        assert_eq!(job.exchange("x", b"y").unwrap(), [b"y"]);
        job.publish("note", b"to myself").unwrap();
        assert_eq!(job.fetch(0, "note").unwrap(), b"to myself");
    }
}
