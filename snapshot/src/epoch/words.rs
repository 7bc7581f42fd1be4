//! What a writer is asked for, does, and is told.

use super::{Answer, Epoch, Incarnation, Order, Report, Request, Slot, StoreId};
use crate::PageSet;
use std::fmt;
use std::time::Duration;

/// What is asked of epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Stores that an epoch goes to.
    pub copies: usize,
    /// With how many of them it is still complete, where others were lost and nobody takes their place.
    pub minimum: usize,
    /// Most rounds before the pause. (A store that comes in later starts the count anew.) Fewer where more are of no use:
    /// the round in which the program has changed nearly all again is the last of that epoch, and left out of the next few.
    pub rounds: u32,
    /// So many stale chunks are few enough for the pause.
    pub small: usize,
    /// Stores hold the slot against its checksums before the epoch is complete.
    pub check: bool,
    /// It is complete only when it is protected, too ([`Action::Protect`]).
    pub protect: bool,
}

impl Default for Policy {
    fn default() -> Self {
        // 1024 chunks are 4 MiB: a millisecond at 4 GB/s.
        Policy { copies: 1, minimum: 1, rounds: 4, small: 1024, check: false, protect: false }
    }
}

/// How long a writer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriterLimits {
    /// From the beginning of an epoch until it is complete. It is given up then.
    pub epoch: Duration,
    /// For a store's answer. It counts as lost then.
    pub answer: Duration,
    /// Between asking again where the answer was "not yet".
    pub pause: Duration,
    /// Between asking, or telling, again where nothing came.
    pub again: Duration,
}

impl Default for WriterLimits {
    fn default() -> Self {
        WriterLimits {
            epoch: Duration::from_secs(60),
            answer: Duration::from_secs(10),
            pause: Duration::from_millis(1),
            again: Duration::from_millis(500),
        }
    }
}

/// Where the memory of a restored process came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The epoch.
    pub epoch: Epoch,
    /// The store.
    pub store: StoreId,
    /// The slot.
    pub slot: Slot,
}

/// What the writer's driver has to do. A store is named by the incarnation of the connection to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask a store; bring [`Event::Answer`]. A grant is answered when the queue pair is connected, too.
    Ask(Incarnation, StoreId, Request),
    /// Name a store for one more copy, none of these: [`Event::Store`]. (Where memory came from is worth most.)
    Place(Vec<StoreId>),
    /// WRITE [`Epoch::NONE`] to the word of a slot: [`Event::Done`].
    Invalidate(Incarnation, Slot),
    /// Ask tracking what is dirty, and let it start afresh: [`Event::Dirty`].
    Collect,
    /// WRITE these chunks of memory as they are now or later: [`Event::Done`] when all have landed.
    Send(Incarnation, Slot, PageSet),
    /// Let the program stand still, then collect: [`Event::Dirty`].
    Pause,
    /// Let it go on; bring [`Event::Moved`] at once where it has not stood still.
    Resume,
    /// WRITE checksums, tables, windows and header of this epoch, as they were in the pause:
    /// [`Event::Done`] when all have landed.
    Seal(Incarnation, Slot, Epoch),
    /// WRITE the word of a slot: [`Event::Done`].
    Word(Incarnation, Slot, Epoch),
    /// Protect the slots of this epoch (a parity over a group, say): [`Event::Protected`].
    Protect(Epoch),
    /// Let go of a connection: nothing of it is waited for any more.
    Disconnect(Incarnation),
    /// Tell the decider.
    Report(Report),
    /// An epoch is committed, and noted by so many stores that hold it. Where these are none, all that held it are
    /// lost to this writer, or a later life has shut it out: nobody may be told that it is committed.
    Committed(Epoch, usize),
    /// An epoch is given up. The program computes; what was committed before still is.
    GivenUp(Epoch, Reason),
    /// A newer incarnation of this process writes: this machine has ended.
    Fenced(Incarnation),
}

/// Why an epoch was given up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Of the stores that the policy asks for at least, so many are left.
    TooFew {
        /// Stores that are left.
        left: usize,
        /// What the last store that was lost had said, if it had.
        why: Option<String>,
    },
    /// It took too long.
    Late,
    /// The driver could not do what it was told.
    Unable(String),
    /// The decider says so.
    Aborted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::TooFew { left, why: None } => write!(f, "{left} stores are left"),
            Reason::TooFew { left, why: Some(why) } => write!(f, "{left} stores are left: {why}"),
            Reason::Late => f.write_str("it was not complete in time"),
            Reason::Unable(why) => f.write_str(why),
            Reason::Aborted => f.write_str("another process of the job has given it up"),
        }
    }
}

/// What the driver tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A store has answered.
    Answer(Incarnation, Answer),
    /// A store for one more copy, or that there is none.
    Store(Option<StoreId>),
    /// What was to be written there has landed.
    Done(Incarnation),
    /// A connection has broken, or the store is dead.
    Lost(Incarnation),
    /// What was dirty.
    Dirty(PageSet),
    /// Tracking, or the pause, has failed, and why. (One of this and [`Event::Dirty`] comes for each
    /// [`Action::Collect`] and [`Action::Pause`], in their order.)
    Unable(String),
    /// The program has not stood still from [`Action::Pause`] to [`Action::Resume`], and why: what was sent is not of one
    /// moment.
    Moved(String),
    /// An epoch is protected, or why it cannot be.
    Protected(Epoch, Result<(), String>),
    /// The decider says something.
    Order(Order),
}

/// How far an epoch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// There is none.
    Idle,
    /// Stores are granted, and slots invalidated.
    Gather,
    /// Tracking is asked.
    Collect,
    /// A round is sent.
    Round,
    /// The program is stopped.
    Pause,
    /// The last round is sent.
    Last,
    /// Tables and header, then the word; the program computes again.
    Seal,
    /// The driver protects it.
    Protect,
    /// Complete: the decision is waited for.
    Complete,
    /// Committed: stores take note.
    Note,
    /// A newer incarnation writes.
    Fenced,
}
