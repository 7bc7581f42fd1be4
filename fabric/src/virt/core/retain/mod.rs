//! Retention of payloads: what is sent is kept until the receiver has a committed epoch that covers it.
//!
//! The shell of [`sojourn_logging::retain`]. Each protection domain with a reliable queue pair has a ring
//! of anonymous memory, registered as the program's own regions are, so that it follows every move. A SEND
//! or WRITE of a reliable connection within the job, with or without immediate data, is copied into it when it
//! is *posted*, since the program may reuse its buffer when it has completed. Short ones are sent from
//! the copy; so whatever is handed again after a move is of the same bytes.
//!
//! | file | what |
//! | --- | --- |
//! | `ring` | the ring of a domain: its memory, its registration |
//! | `store` | its log under a lock, and the spill |
//! | `spill` | the spill file |
//! | `posting`, `copying` | what a queue pair does with a request that is posted |
//! | `cut` | what this process has consumed, and telling its peers of it when an epoch is committed |
//! | `setting` | what a context is told |
//! | `reading` | what is kept, for those who replay |
//!
//! # What is not kept
//!
//! READs and atomics change nothing at the peer that a replay of it would lack: it restores its own memory,
//! and an atomic that it has executed since its epoch is for the one who replays to think of, by the
//! result that the asker has. Datagrams and UC messages may be lost as ever. A connection that leads out of
//! the job has a peer that never commits an epoch.
//!
//! # Full
//!
//! From half full on a thread copies the oldest records to the spill file. Where the program posts faster than
//! that, the poster itself does so when the ring is full: it waits for the disk, never for an epoch. A
//! message that does not fit into the ring, and one that finds a place in use which spilling does not free (a
//! request sent from there has not completed), goes from the program's buffer to the file at once. Without
//! a spill, and where the file takes no more, the connection to which the oldest record belongs is not
//! retained any more: a warning says so, [`RetainedConnection::gap`] too, and messages are kept again from the
//! peer's next epoch on.
//!
//! # Locks
//!
//! A queue pair's side, then the spill file, then the log (a spin lock: for counters and queues, never for a
//! copy, but for a [piece](reading) that somebody reads). Regions are kept from being deregistered while
//! they are read.

mod copying;
mod cut;
mod posting;
mod reading;
mod ring;
mod setting;
mod spill;
mod store;

pub use cut::Cut;
pub(super) use cut::{Committed, Gone, cut_of};
pub(super) use posting::{Retaining, is_kept};
pub(super) use reading::retained_of;
pub use reading::{Gap, Message, RetainedConnection, RetainedMessage, RetainedMessages};
pub(super) use ring::Ring;
pub use setting::{Retention, Spill};
pub(super) use store::Store;
