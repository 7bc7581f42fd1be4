//! A session: a process whose memory is snapshot, and its stores. The IO around [`epoch::Writer`](crate::epoch::Writer).
//!
//! The machine says what is to be done next; a [`Session`] does it: it asks stores over their control channels, has
//! stale chunks, tables and words written by RDMA (`stream`), and asks the [`Program`] what is dirty, and to
//! stand still. It runs on whatever thread calls it. Where that is a thread of the program's own, the program
//! stands still anyway and rounds bring nothing; where it is another one, the program computes through all of an
//! epoch but the pause.
//!
//! Two ways to drive it:
//!
//! - [`Session::checkpoint`], where the process is a job of its own: one epoch from beginning to
//!   commit;
//! - [`Session::order`], [`Session::drive`] and [`Session::wake_at`], where somebody else decides for a job: orders go
//!   in, and [`Notice`]s come out, reports to the decider among them.
//!
//! What goes wrong with one store does not stop the others; the epoch goes on with those that are left, or is given up,
//! as the [`Policy`] says. The program is never stopped by it, and what was committed still is.

mod link;
mod meta;
mod run;

pub use run::Session;

use crate::epoch::{
    Epoch, Incarnation, Member, Origin, Policy, Report, StoreId, Term, WriterLimits,
};
use crate::image::PageTable;
use crate::{Result, store};
use sojourn_fabric::names::{Endpoint, JobKey};
use std::ops::Range;
use std::time::Duration;

/// The program whose memory it is: what a session needs of it.
pub trait Program {
    /// Calls `dirty` with the ranges that may have changed since it was called last, whoever wrote them;
    /// at the first time with everything. What is changed during the call is told now or next time.
    ///
    /// # Errors
    /// Where that cannot be said. The epoch is given up.
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()>;

    /// Stands still: from its return to [`Self::resume`] nothing changes the memory, neither a thread nor a
    /// device. Returns the windows, as they are then.
    ///
    /// # Errors
    /// Where it cannot. It goes on then, and the epoch is given up.
    fn pause(&mut self) -> Result<Vec<u8>>;

    /// Goes on.
    ///
    /// # Errors
    /// Where it has not stood still all the time, and why. It goes on all the same, and the epoch is given up: what
    /// was sent of it is not of one moment.
    fn resume(&mut self) -> Result<()>;

    /// The epoch of the last pause is committed. Called before anything of the next one is.
    fn committed(&mut self) {}
}

/// A store that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAt {
    /// Its number in the job: the same in every process, and in every life of this one.
    pub id: StoreId,
    /// Where it listens.
    pub at: Endpoint,
}

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device by which stores are reached.
    pub device: String,
    /// The key of the job.
    pub key: JobKey,
    /// Tells jobs apart: it stands in every slot.
    pub job: [u8; 16],
    /// The process.
    pub member: Member,
    /// Which life of it: larger than those of all that wrote for this process before.
    pub life: u32,
    /// That of the decider which takes over as this life begins; older ones are not listened to. Where the process
    /// is a job of its own its deciders are numbered as its lives are.
    pub term: Term,
    /// Stores, those first that are to be used first. None of them on this process's own node.
    pub stores: Vec<StoreAt>,
    /// Threads, each with a queue pair to each store: 1 to [`store::MAX_LANES`].
    pub lanes: usize,
    /// Most bytes of windows.
    pub windows: usize,
    /// What is asked of epochs.
    pub policy: Policy,
    /// How long is waited.
    pub limits: WriterLimits,
    /// Called at each of [`STEPS`], just before it is taken ("sent": just after). For tests that let something
    /// die there.
    pub at_step: fn(&'static str),
}

/// What an epoch goes through, in the order in which each comes first.
pub const STEPS: [&str; 12] = [
    "grant",
    "invalidate",
    "collect",
    "send",
    "sent",
    "pause",
    "resume",
    "seal",
    "word",
    "check",
    "note",
    "committed",
];

impl Options {
    /// The least: one copy, two threads.
    #[must_use]
    pub fn new(key: JobKey, member: Member, life: u32, stores: Vec<StoreAt>) -> Options {
        Options {
            device: "soft0".into(),
            key,
            job: [0; 16],
            member,
            life,
            term: Term(life),
            stores,
            lanes: 2,
            windows: 1 << 20,
            policy: Policy::default(),
            limits: WriterLimits::default(),
            at_step: |_| {},
        }
    }
}

/// Where memory came from that was restored: what a session goes on from.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Epoch, store and slot.
    pub origin: Origin,
    /// What that slot says of each chunk.
    pub pages: PageTable,
}

/// What an epoch took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EpochReport {
    /// Which one.
    pub epoch: Epoch,
    /// Stores that have noted it.
    pub copies: usize,
    /// Bytes of memory that were sent, to all stores.
    pub bytes: u64,
    /// Chunks that were looked at: stale ones, in each round again.
    pub chunks: usize,
    /// Those of them that were zeros, and not sent.
    pub zeros: usize,
    /// Rounds before the pause.
    pub rounds: u32,
    /// How long the program stood still.
    pub paused: Duration,
    /// From beginning to commit.
    pub took: Duration,
    /// How long chunks were being sent.
    pub sending: Duration,
}

impl EpochReport {
    /// GB/s while chunks were being sent: bytes of memory, to all stores together.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.sending.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// What has come of an epoch, and what a decider has to hear.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// To be told to the decider.
    Report(Report),
    /// To be protected by who knows how; [`Session::protected`] tells how it went.
    Protect(Epoch),
    /// Committed.
    Committed(EpochReport),
    /// Given up, and why.
    GivenUp(Epoch, String),
    /// A newer life of this process writes. This session has ended.
    Fenced(Incarnation),
}

const _: () = assert!(store::MAX_LANES >= 2);
