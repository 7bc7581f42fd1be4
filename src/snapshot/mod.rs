//! Snapshots of a program's memory in the memory of other nodes.
//!
//! A program says which memory matters ([`Snapshots::protect`]), and comes by at a place where that memory makes
//! sense ([`Snapshots::should_checkpoint`], [`Snapshots::checkpoint`]). What has changed goes to *stores*, processes on
//! other nodes (`sojourn store`), by RDMA WRITE, most of it while the program computes. When all ranks are complete
//! the epoch is *committed*, and the one before it may be overwritten. After a rank has died, and another
//! process has taken its place, [`Snapshots::restored`] brings the memory of all ranks back to the last epoch.
//!
//! # A guide
//!
//! ```no_run
//! use sojourn::Job;
//! use sojourn::snapshot::{Memory, Options, Snapshots};
//! use std::time::Duration;
//!
//! # fn compute(step: u64, field: &mut [f64]) -> sojourn::Result<()> { Ok(()) }
//! fn main() -> sojourn::Result<()> {
//!     let job = Job::from_env()?;
//!     let options = Options::from_env()?.expect("SOJOURN_STORES names the stores");
//!     // All that is needed to go on from the same place.
//!     let mut field = Memory::<f64>::new(1 << 20)?;
//!     let mut step = Memory::<u64>::new(1)?;
//!     let mut snapshots = Snapshots::new(&job, options)?;
//!     snapshots.protect(0, &field)?;
//!     snapshots.protect(1, &step)?;
//!
//!     // A process that takes the place of a dead one goes on where that was.
//!     if job.is_replacement() {
//!         job.regroup(std::time::Instant::now() + Job::PATIENCE)?;
//!     }
//!     if let Some(epoch) = snapshots.restored()? {
//!         eprintln!("goes on from epoch {epoch}, at step {}", step[0]);
//!     }
//!     while step[0] < 100_000 {
//!         // Where this fails because a rank has died, the others regroup and restore, too.
//!         compute(step[0], &mut field)?;
//!         step[0] += 1;
//!         if snapshots.should_checkpoint()? {
//!             snapshots.checkpoint()?;
//!         }
//!     }
//!     snapshots.finish()
//! }
//! ```
//!
//! It is started with stores beside it, each on a node of its own:
//!
//! ```text
//! sojourn store --name a --bytes 8G --listen tcp:10.0.0.1:7400 --key-file key     (on node a, and so on)
//! SOJOURN_STORES=a=tcp:10.0.0.1:7400,b=tcp:10.0.0.2:7400 SOJOURN_STORE_KEY_FILE=key \
//!     sojourn run -n 2 --restarts 4 -- program
//! ```
//!
//! # Redundancy
//!
//! [`REDUNDANCY`] says how epochs outlive nodes ([`Scheme`]). With `copies:K` each rank sends its memory to K stores. With
//! `xor:G` or `rs:D+P` it sends it to one, and the stores make the parity of groups of ranks among themselves, out
//! of what was sent; the epoch is committed when that is there, too. A rank whose image is lost or damaged rebuilds it
//! from the others of its group, where as many shares are left as the scheme promises; else the error names those
//! that are not.
//!
//! # Files
//!
//! With `SOJOURN_FLUSH_DIR` rank 0 drains each n-th epoch out of the stores into a directory that all ranks see, in the
//! background. A job that is started anew with stores that have nothing of it goes on from the last epoch there:
//!
//! ```text
//! SOJOURN_FLUSH_DIR=/scratch/heat SOJOURN_FLUSH_EVERY=10 SOJOURN_FLUSH_KEEP=4 SOJOURN_FLUSH_COMPRESS=lz4
//! ```
//!
//! Draining takes its time, and a slot is written again two epochs later. Where that was too soon, the interval is made
//! longer from then on while an epoch is being drained: up to 64 times, doubled each time, and with a warning.
//!
//! It is never gone back to an epoch there where the stores have a later one; where a later one was committed and is
//! lost, a warning names both. A job that is to begin from the beginning is given another directory, or another
//! `SOJOURN_JOB_NAME`.
//!
//! # Rules
//!
//! - All ranks call [`Snapshots::restored`], [`Snapshots::should_checkpoint`] and [`Snapshots::checkpoint`] at the same
//!   places of their programs, as they would call a barrier. `checkpoint` returns as soon as the
//!   last round is sent; the epoch is committed behind the program's back ([`Snapshots::wait`] tells when).
//! - Memory that was protected is written by the program, and by devices of attached contexts ([`Snapshots::attach`]): by
//!   nobody else. What peers WRITE elsewhere is copied into it.
//! - Of memory that other ranks write ([`Snapshots::protect_region`]) no rank writes between its own checkpoint and the
//!   writer's of that memory: each rank's image is of one moment of its own, and these moments are not one cut
//!   through the job. A [`Job::barrier`] in front of `checkpoint` and one behind it see to that.
//! - An epoch that is given up, for want of stores or of time, stops nobody: what was committed still is. It is
//!   told by [`Snapshots::wait`] and counted in [`Statistics`].

mod contexts;
mod flush;
mod meeting;
mod options;
mod pace;
mod parity;
mod restore;
mod writer;

pub use flush::Flush;
pub use options::{
    FAILURES, FLUSH_COMPRESS, FLUSH_DIR, FLUSH_EVERY, FLUSH_KEEP, INTERVAL, JOB_NAME, NODE,
    Options, REDUNDANCY, STORE_KEY_FILE, STORES, StoreAddress,
};
pub use sojourn_snapshot::files::{Codec, Keep};
pub use sojourn_snapshot::host::{Attach, Windows};
pub use sojourn_snapshot::redundancy::Scheme;
pub use sojourn_snapshot::session::EpochReport;
pub use sojourn_snapshot::track::Kind as Tracking;
pub use sojourn_snapshot::{Area, Interval, Mapping, Memory, Plain};

use crate::job::Circle;
use crate::{Error, Job, Result};
use contexts::Owner;
use flush::Drain;
use meeting::Meeting;
use pace::Pace;
use parity::Parity;
use restore::member;
use sojourn_fabric::names::ProcessId;
use sojourn_snapshot::epoch::{Epoch, Policy, Term};
use sojourn_snapshot::host::{Contexts, Host};
use sojourn_snapshot::image::Geometry;
use sojourn_snapshot::redundancy::Placement;
use sojourn_snapshot::redundancy::placement::{Node, Process};
use sojourn_snapshot::session::{self, Session};
use sojourn_snapshot::{Layout, track};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use writer::Writer;

/// Rounds are begun so many times as long ahead of the pause as sending took last time.
const AHEAD: u32 = 2;
/// And no less than so long.
const LEAST_AHEAD: Duration = Duration::from_millis(2);

/// What snapshots have taken so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Epochs that were committed.
    pub committed: u64,
    /// Epochs that were given up.
    pub given_up: u64,
    /// Bytes that were sent, to all stores.
    pub bytes: u64,
    /// How long the program stood still, all epochs together.
    pub paused: Duration,
    /// The last epoch that was committed.
    pub last: Option<EpochReport>,
    /// Why the last one that was given up was.
    pub why: Option<String>,
    /// Epochs that were drained to files; of rank 0, which drains those of all ranks.
    pub flushed: u64,
    /// The count of the last of them.
    pub last_flushed: Option<u64>,
    /// Epochs whose turn it was, and that are not in files: as a rule because they were overwritten first.
    pub flushes_given_up: u64,
    /// Why the last of these is not.
    pub flush_why: Option<String>,
}

/// What is called before the program stands still for an epoch, and after it.
type Hook = Box<dyn FnMut() + Send>;
/// What is told of epochs that were committed.
type Told = Box<dyn FnMut(&EpochReport, usize) + Send>;

/// The snapshots of one rank. See the [module](self).
pub struct Snapshots {
    job: Job,
    options: Options,
    device: String,
    areas: Vec<(Area, Owner)>,
    contexts: Contexts,
    /// Of the epoch that memory was brought back to.
    windows: Option<Windows>,
    running: Option<Running>,
    /// The last life that stores know of this process by, and the last epoch that is known to be committed.
    life: u32,
    known: Epoch,
    /// How many times the ranks of this generation have gone back together.
    generation: String,
    times: u32,
    pace: Pace,
    taken: Instant,
    statistics: Statistics,
    before: Option<Hook>,
    after: Option<Hook>,
    told: Option<Told>,
}

/// Where epochs go.
struct Placed {
    placement: Placement,
    /// Those that this rank uses, the first first.
    stores: Vec<session::StoreAt>,
}

/// The thread that writes.
struct Running {
    meeting: Arc<Meeting>,
    circle: Arc<Circle>,
    thread: JoinHandle<()>,
    /// An epoch was paused for whose end was not told yet; how long that took.
    paused: Option<Duration>,
    drain: Option<Arc<Drain>>,
}

impl Snapshots {
    /// Snapshots of this rank. Nothing is connected to yet.
    ///
    /// # Errors
    /// Where the job's device cannot be told.
    pub fn new(job: &Job, options: Options) -> Result<Self> {
        Ok(Snapshots {
            device: job.device()?,
            generation: job.generation(),
            job: job.clone(),
            options,
            areas: Vec::new(),
            contexts: Contexts::default(),
            windows: None,
            running: None,
            life: 0,
            known: Epoch::NONE,
            times: 0,
            pace: Pace::new(),
            taken: Instant::now(),
            statistics: Statistics::default(),
            before: None,
            after: None,
            told: None,
        })
    }

    /// This memory is part of every epoch from now on, under an id that is the same in every life of the
    /// program. It stays mapped as long as snapshots are taken of it.
    ///
    /// # Errors
    /// `EINVAL` for an id that other memory has; `EBUSY` after [`Self::restored`].
    pub fn protect<T: Plain>(&mut self, id: u32, memory: &Memory<T>) -> Result<()> {
        self.add(memory.area(id), Owner::Mapping(Arc::clone(memory.mapping())))
    }

    fn add(&mut self, area: Area, owner: Owner) -> Result<()> {
        let id = area.id;
        if self.running.is_some() {
            let text = format!("memory {id} is protected after the first epoch has begun");
            return Err(Error::new(libc::EBUSY, text));
        }
        if self.areas.iter().any(|(area, _)| area.id == id) {
            return Err(Error::invalid(format!("two areas have the id {id}")));
        }
        self.areas.push((area, owner));
        Ok(())
    }

    /// Is called by [`Self::checkpoint`] before the program stands still, on the program's thread: to bring into
    /// protected memory what is kept elsewhere.
    pub fn on_before(&mut self, hook: impl FnMut() + Send + 'static) {
        self.before = Some(Box::new(hook));
    }

    /// Is called by [`Self::checkpoint`] after the program has stood still, on the program's thread.
    pub fn on_after(&mut self, hook: impl FnMut() + Send + 'static) {
        self.after = Some(Box::new(hook));
    }

    /// Is told of every epoch once it is committed, and how many bytes of memory are protected; on the program's
    /// thread, when that calls here again.
    pub fn on_committed(&mut self, hook: impl FnMut(&EpochReport, usize) + Send + 'static) {
        self.told = Some(Box::new(hook));
    }

    /// Brings protected memory back to the last epoch, where there is one, and begins with epochs; all ranks
    /// call it, at the start and after each [`Job::regroup`]. Returns the count of the epoch, or `None` where the
    /// job begins: memory is as it was then. Where no store has one, and the [`Flush`] directory has, it is that.
    ///
    /// # Errors
    /// `ENODATA` where an epoch was committed, and cannot be read any more: the message says what is missing where.
    /// `EINVAL` where the epoch is of other areas than were protected, or the placement is not possible.
    pub fn restored(&mut self) -> Result<Option<u64>> {
        self.stop(false);
        let generation = self.job.generation();
        if generation != self.generation {
            (self.generation, self.times) = (generation, 0);
        }
        self.times += 1;
        let name = format!("sojourn/epochs/{}", self.times);
        let layout = Layout::new(self.areas.iter().map(|(area, _)| *area))?;
        let placed = self.place(&name)?;
        // SAFETY: the areas are memory whose owners are kept here, or that the caller keeps; the program has called, so it
        // uses them for nothing else; the thread that reads them was ended.
        let back = unsafe {
            restore::restore(
                &self.job,
                &self.options,
                &placed.placement,
                &self.device,
                &layout,
                (self.life, self.known),
                &name,
            )
        }?;
        self.life = back.life;
        self.windows = match &back.epoch {
            Some(_) => Some(Windows::decode(&back.windows)?),
            None => None,
        };
        let epoch = back.epoch;
        self.known = epoch.unwrap_or(Epoch::NONE);
        self.begin(layout, back, placed, &name)?;
        (self.pace, self.taken) = (Pace::new(), Instant::now());
        Ok(epoch.map(Epoch::count))
    }

    /// Whether a checkpoint is due, at this call, in all ranks: to be asked at the same places of the program
    /// by all, and as often as a checkpoint could be taken. The first time it is.
    ///
    /// # Errors
    /// Nothing can be saved any more before [`Self::restored`] is called: as a rule because a rank has died.
    pub fn should_checkpoint(&mut self) -> Result<bool> {
        self.hear(false)?;
        self.pace.call();
        if self.pace.due().is_none() {
            self.hear(true)?;
        }
        let due = self.pace.due().unwrap_or(false);
        if !due
            && self.begins_soon()
            && let Some(running) = &self.running
        {
            running.meeting.begin();
        }
        Ok(due)
    }

    /// Takes an epoch of protected memory as it is now; all ranks call it. The program stands still until
    /// everything is sent, and computes on while the epoch is sealed and committed. Where the epoch before is
    /// not committed yet, that is waited for first.
    ///
    /// # Errors
    /// As [`Self::should_checkpoint`]. That an epoch is given up is none.
    pub fn checkpoint(&mut self) -> Result<()> {
        self.hear(true)?;
        if let Some(before) = &mut self.before {
            before();
        }
        let start = Instant::now();
        let took = start.duration_since(self.taken);
        self.taken = start;
        self.pace.taken();
        let mut interval = self.options.interval.next(self.cost());
        let running = self.running.as_mut().ok_or_else(not_begun)?;
        if let Some(drain) = &running.drain {
            interval = drain.stretched(interval);
        }
        let wish = self.pace.wish(took, interval);
        let stood = running.meeting.stand_still(wish);
        running.paused = Some(start.elapsed());
        if let Some(after) = &mut self.after {
            after();
        }
        stood
    }

    /// Waits until the last epoch is committed, and tells what it took; `None` where that was told before, or
    /// there is none.
    ///
    /// # Errors
    /// `ECANCELED` where it was given up, and why; otherwise as [`Self::should_checkpoint`].
    pub fn wait(&mut self) -> Result<Option<EpochReport>> {
        self.hear(true)?.transpose()
    }

    /// What snapshots have taken so far.
    #[must_use]
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Waits for the last epoch, and takes no more. All ranks call it, or drop this value: which waits for nobody.
    ///
    /// # Errors
    /// As [`Self::should_checkpoint`].
    pub fn finish(&mut self) -> Result<()> {
        let last = self.hear(true).map(drop);
        self.stop(true);
        last
    }

    /// What is being drained is waited for, or given up.
    fn stop(&mut self, wait: bool) {
        if let Some(running) = self.running.take() {
            running.meeting.end();
            running.circle.leave();
            if running.thread.join().is_err() {
                tracing::warn!("the thread that writes epochs has failed");
            }
            // The thread had the other one.
            if let Some(drain) = running.drain.and_then(Arc::into_inner) {
                if wait {
                    drain.finish(&mut self.statistics);
                } else {
                    drain.tell(&mut self.statistics);
                }
            }
        }
    }

    /// What has become of the last epoch, once it is over.
    fn hear(&mut self, wait: bool) -> Result<Option<Result<EpochReport>>> {
        let running = self.running.as_mut().ok_or_else(not_begun)?;
        let outcome = if wait { running.meeting.outcome() } else { running.meeting.outcome_now() };
        if let Some(drain) = &running.drain {
            drain.tell(&mut self.statistics);
        }
        let Some(outcome) = outcome? else { return Ok(None) };
        let paused = running.paused.take().unwrap_or_default();
        self.pace.agree(outcome.next);
        self.statistics.paused += paused;
        let report = outcome.report.map(|report| EpochReport { paused, ..report });
        match &report {
            Ok(report) => {
                tracing::debug!(
                    "{} is committed: {} bytes to {} stores, paused {paused:.1?}; the next at call {}",
                    report.epoch,
                    report.bytes,
                    report.copies,
                    outcome.next
                );
                self.known = report.epoch;
                self.statistics.committed += 1;
                self.statistics.bytes += report.bytes;
                self.statistics.last = Some(*report);
                if let Some(told) = &mut self.told {
                    told(report, self.areas.iter().map(|(area, _)| area.bytes).sum());
                }
            }
            Err(error) => {
                tracing::warn!("{error}");
                self.statistics.given_up += 1;
                self.statistics.why = Some(error.to_string());
            }
        }
        Ok(Some(report))
    }

    /// What an epoch costs: the time that the program stands still for it, on average.
    fn cost(&self) -> Duration {
        let epochs = self.statistics.committed + self.statistics.given_up;
        self.statistics.paused / u32::try_from(epochs.max(1)).unwrap_or(u32::MAX)
    }

    /// Whether the next epoch is so near that its rounds can begin.
    fn begins_soon(&self) -> bool {
        let sending = self.statistics.last.map_or(Duration::ZERO, |last| last.sending);
        self.pace
            .left_takes(self.taken.elapsed())
            .is_some_and(|left| left <= (sending * AHEAD).max(LEAST_AHEAD))
    }

    /// Where this rank's epochs go: the stores to use, the first first.
    fn place(&self, name: &str) -> Result<Placed> {
        let note = self.options.node.as_bytes();
        let homes = self.job.exchange(&format!("{name}/node"), note)?;
        let mut nodes: BTreeMap<&str, Node> = BTreeMap::new();
        for store in &self.options.stores {
            let node = nodes.entry(&store.node).or_insert_with(|| Node {
                name: store.node.clone(),
                domain: store.domain.clone(),
                stores: Vec::new(),
            });
            node.stores.push(store.at.to_string());
        }
        let homes: Vec<String> =
            homes.iter().map(|home| String::from_utf8_lossy(home).into_owned()).collect();
        for home in &homes {
            nodes.entry(home).or_insert_with(|| Node {
                name: home.clone(),
                domain: None,
                stores: Vec::new(),
            });
        }
        let nodes: Vec<Node> = nodes.into_values().collect();
        let process = |(rank, node): (u32, &String)| Process {
            id: Job::process_of(rank),
            node: node.clone(),
        };
        let processes: Vec<Process> = (0..).zip(&homes).map(process).collect();
        let scheme = self.options.scheme;
        // A group has to be the same when a rank has come back on another node.
        let make = if scheme.parity() > 0 { Placement::numbered } else { Placement::new };
        let placement = make(scheme, &nodes, &processes)?;
        let own: ProcessId = Job::process_of(self.job.rank());
        let first: Vec<&str> = placement.stores_of(own).collect();
        let all = restore::stores(&self.options);
        let place =
            |store: &session::StoreAt| first.iter().position(|at| *at == store.at.to_string());
        let elsewhere = |store: &&session::StoreAt| {
            let at = self.options.stores.iter().find(|it| it.at == store.at);
            at.is_some_and(|it| it.node != self.options.node)
        };
        let mut stores: Vec<session::StoreAt> = all.iter().filter(elsewhere).cloned().collect();
        // The others are there for when one of these is lost; first those on nodes that hold nothing of the group.
        let group = placement.group_of(own).unwrap_or_default();
        stores.sort_by_key(|store| {
            let beside = placement.holds_of(&store.at.to_string(), group);
            (place(store).unwrap_or(usize::MAX), beside, store.id)
        });
        Ok(Placed { placement, stores })
    }

    fn begin(
        &mut self,
        layout: Layout,
        back: restore::Back,
        Placed { placement, mut stores }: Placed,
        name: &str,
    ) -> Result<()> {
        if let Some(restored) = &back.restored {
            // What it was read from need not be sent there again.
            stores.sort_by_key(|store| store.id != restored.origin.store);
        }
        let mut tracker = track::open(self.options.tracking)?;
        for area in layout.areas() {
            tracker.add(area.range())?;
        }
        if back.restored.is_some() {
            // What was read is what the slot has; nobody writes there before this returns.
            tracker.collect_at_rest(&mut |_| {})?;
        }
        let copies = self.options.scheme.copies();
        let mut options = session::Options::new(
            self.options.key.clone(),
            member(self.job.rank()),
            back.life,
            stores,
        );
        options.device.clone_from(&self.device);
        options.lanes = self.options.lanes;
        options.windows = self.options.windows;
        options.job = self.options.job;
        options.term = Term(back.life);
        let protect = self.options.scheme.parity() > 0;
        options.policy = Policy { copies, protect, ..Policy::default() };
        if tracker.kind() == Tracking::Everything {
            // What is sent ahead of the pause would be sent again in it.
            options.policy.rounds = 0;
        }
        let geometry = Geometry::of(&layout, options.windows)?;
        let life = back.life;
        // SAFETY: the owners of the areas are kept by this value, which ends the thread that has the session first.
        let session = unsafe { Session::open(options, layout, back.restored) }?;
        let drain = match self.job.rank() {
            0 => {
                let members = (0..self.job.size()).map(member).collect();
                Drain::start(&self.options, &self.device, restore::stores(&self.options), members)?
            }
            _ => None,
        };
        let drain = drain.map(Arc::new);
        let meeting = Arc::new(Meeting::new());
        let circle = Arc::new(self.job.circle(&format!("{name}/met")));
        let (job, known) = (&self.job, &self.options);
        let shared = (name, &circle);
        let parity = Parity::new(job, known, &placement, &geometry, life, shared)?;
        let writer = Writer {
            session,
            parity,
            host: Host::new(tracker, &self.contexts),
            meeting: Arc::clone(&meeting),
            job: self.job.clone(),
            circle: Arc::clone(&circle),
            term: Term(back.life),
            last: self.known,
            drain: drain.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("epochs".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::os(&error, "starting a thread"))?;
        self.running = Some(Running { meeting, circle, thread, paused: None, drain });
        Ok(())
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.stop(false);
    }
}

fn not_begun() -> Error {
    Error::new(libc::EINVAL, "call Snapshots::restored first: it begins with epochs")
}
