//! Snapshots of a process's memory in the memory of its peers.
//!
//! It works on a set of address ranges ([`Layout`]), whoever names them. What has changed since the
//! last epoch goes by RDMA WRITE, straight from the process's memory, into the *store* of a peer
//! node; when all of it is there, one small write makes the epoch *complete*; it is *committed*
//! when every process of the job is complete. A process that has died is restored from there.
//!
//! # Slots
//!
//! A store holds two *slots* of each process. A slot is a whole image of the process's ranges, in
//! place: chunk i always lies at the same offset. The slot that does not hold the last committed
//! epoch is written next. So there is no list of what changed in which epoch: for each slot that a
//! process has, on whatever store, one [`PageSet`] says in which chunks that slot may differ from
//! memory (it is *stale* there). Whatever tracking finds is added to all of them; what has been
//! sent is taken out of the one that it was sent to. This is the union of two epochs' dirty sets
//! where nothing fails, and is still right where an epoch is given up in the middle.
//!
//! # An epoch
//!
//! 1. *Rounds*, while the program computes: tracking is asked what is dirty (and starts afresh),
//!    and stale chunks are sent. What the program changes meanwhile is dirty again.
//! 2. *Pause*: the program's threads and the connections of its contexts stand still. The last
//!    stale chunks are sent, and the windows are recorded. Everything that a device may write is
//!    sent here, because no protection of pages stops a device.
//! 3. *Seal*: checksums, areas and header of the slot follow, then its word.
//! 4. *Commit*: when every process of the job is complete.
//!
//! The bytes of a slot are [`image`]; committed epochs are drained from there to a directory by [`files`].

pub mod epoch;
pub mod files;
pub mod image;
mod interval;
mod layout;
mod memory;
mod pages;
pub mod parity;
mod peek;
mod protected;
pub mod redundancy;
pub mod restore;
pub mod session;
pub mod store;
mod stream;
pub mod track;

pub use interval::Interval;
pub use layout::{Area, Layout};
pub use pages::{PAGE, PageSet};
pub use protected::{Mapping, Memory, Plain};
pub use sojourn_fabric::{Error, Result};
