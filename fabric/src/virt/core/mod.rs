//! The core of virtual verbs: addresses and verbs structs.
//!
//! It implements the traits of [`crate::device`] over other implementations of them. What a
//! program sees of names (LID, GID, queue pair numbers, keys) is virtual, dealt by this process and
//! fixed for life; what devices see is physical, and may change under the program's feet.
//!
//! | file | what |
//! | --- | --- |
//! | `local` | this process: its names, and tables of all that has one |
//! | `peer` | another process: what its names stand for, and who waits to learn more |
//! | `qp` | two windows, and a physical queue pair as the cursor over them |
//! | `cq`, `channel` | a backlog in front of physical CQs; events |
//! | `srq`, `ah`, `mr`, `pd`, `context` | the other objects, each with its physical side |
//! | `underlay` | a device in use |
//! | `record` | words into which peers record how far they have come |
//! | `policy` | what a context is told when it is opened |
//! | `remap` | going over to another device, and following a peer that does |
//! | `retain` | what is kept of messages until the receiver has a committed epoch |
//! | `capture`, `image` | a context written down, and made anew from that |
//! | `kept` | asynchronous events that no device holds any more |
//! | `written` | what devices have written into this process's memory |
//! | `arrived`, `grh`, `reverse` | who sent a datagram |
//! | `tables`, `translation`, `deal` | name tables, measuring them, dealing names |
//! | `lock`, `direct` | locks of the data path; device objects at hand |
//! | `resolve` | the control path as a trait |
//!
//! # The way of a request
//!
//! A post appends to the window, looks up each name in an array, and calls the physical queue
//! pair: no system call, no allocation, and no lock but the queue pair's own. A name that is not
//! there blocks the window, not the program: the rest of the window follows when the name has
//! been fetched. A completion carries, in its physical `wr_id`, the queue pair's number and the
//! entry's sequence, so that a poll finds both by index.
//!
//! Called by [`Process`](super::Process), and by whatever takes a [`DeviceContext`]. Touches
//! devices, and through [`Resolver`] the names of other processes.

mod ah;
mod arrived;
mod capture;
mod channel;
mod context;
mod cq;
mod deal;
mod direct;
mod grh;
mod image;
mod kept;
mod local;
mod lock;
mod mr;
mod pd;
mod peer;
mod policy;
mod qp;
mod record;
mod remap;
mod resolve;
mod retain;
mod reverse;
mod srq;
mod tables;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod translation;
mod underlay;
mod written;

pub use capture::{CapturedRegion, RestoredCore, captured_regions};
pub use policy::{Evidence, Outstanding, Policy};
pub use remap::{Cause, Failover, Phase, Relocation, Suspension};
pub use resolve::{Answer, Resolver};
pub use retain::{
    Cut, Gap, Message, RetainedConnection, RetainedMessage, RetainedMessages, Retention, Spill,
};
#[doc(hidden)]
pub use translation::Translation;
pub use written::Written;

use crate::device::DeviceContext;
use crate::error::{Error, Result};
use crate::names::{Owner, ProcessId};
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

// A physical `wr_id`: kind (8 bits), number of the queue pair or SRQ (24), receive (1), sequence
// in the window or slot (31).
const LOW_31: u64 = 0x7fff_ffff;
const RECV: u64 = 1 << 31;
const QPN_SHIFT: u32 = 32;
const KIND_SHIFT: u32 = 56;
/// Kind: what is posted behind the last handed request of a queue pair in ERR.
const MARKER: u64 = 1 << KIND_SHIFT;
/// Kind: a receive of a shared receive queue.
const SHARED: u64 = 2 << KIND_SHIFT;
/// Kind: a request of the program's whose completion it did not ask for, and we did.
const QUIET: u64 = 3 << KIND_SHIFT;
/// Kind: a request of ours behind the program's, which proves them by its completion.
const PROOF: u64 = 4 << KIND_SHIFT;
/// Kind: a record, which is not signalled, and so comes back where it fails alone.
const RECORD: u64 = 5 << KIND_SHIFT;

/// A process's virtual names, under all of its contexts.
#[derive(Clone)]
pub struct Core {
    local: Arc<local::Local>,
}

impl Core {
    /// The names of a process that is about to join its job.
    #[must_use]
    pub fn new() -> Self {
        Core { local: local::Local::new() }
    }

    /// What peers are told of this process.
    #[must_use]
    pub fn owner(&self) -> Arc<dyn Owner> {
        Arc::clone(&self.local) as _
    }

    /// The process has joined. To be called once, before any context is opened.
    pub fn joined(&self, resolver: Arc<dyn Resolver>) {
        self.local.joined(resolver);
    }

    /// Virtual verbs over an opened device.
    ///
    /// # Errors
    /// `EMFILE` without file descriptors, or where this process has opened as many contexts as it
    /// may; whatever the device answers to queries.
    pub fn open_over(
        &self,
        device: Arc<dyn DeviceContext>,
        policy: Policy,
    ) -> Result<Arc<dyn DeviceContext>> {
        let context = context::VirtualContext::open(&self.local, device, policy)?;
        Ok(context)
    }

    /// Makes a captured context anew over an opened device: see
    /// [`Process::restore`](super::Process::restore).
    ///
    /// # Safety
    /// As that says.
    ///
    /// # Errors
    /// As that says.
    pub unsafe fn restore_over(
        &self,
        device: Arc<dyn DeviceContext>,
        policy: Policy,
        bytes: &[u8],
    ) -> Result<RestoredCore> {
        // SAFETY: the caller's promise.
        unsafe { capture::restore(&self.local, device, policy, bytes) }
    }
}

/// Moves a virtual context to another device: see [`Context::relocate`](super::Context::relocate).
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs; and as that says.
pub fn relocate(
    context: &Arc<dyn DeviceContext>,
    device: &Arc<dyn DeviceContext>,
) -> Result<Relocation> {
    let context = virtual_context(context)?;
    let moved = remap::relocate(&context, device, Cause::Asked)?;
    context.note_move(moved.clone());
    Ok(moved)
}

/// Makes a virtual context stand still: see [`Context::suspend`](super::Context::suspend).
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs; and as that says.
pub fn suspend(context: &Arc<dyn DeviceContext>, deadline: Instant) -> Result<Suspension> {
    remap::suspend(&virtual_context(context)?, deadline)
}

/// The moves that a virtual context has made, the last [`MAX_MOVES_KEPT`] of them: those that were
/// asked for, and those that it made by itself because a path had failed.
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs.
pub fn relocations(context: &Arc<dyn DeviceContext>) -> Result<Vec<Relocation>> {
    Ok(virtual_context(context)?.moves())
}

/// What devices have written into this process's memory: see [`Context::written`](super::Context::written).
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs; and as that says.
pub fn written(context: &Arc<dyn DeviceContext>, deadline: Instant) -> Result<Written> {
    written::report(&virtual_context(context)?, deadline)
}

/// Whether a virtual context tracks: see [`Context::tracks_writes`](super::Context::tracks_writes).
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs.
pub fn tracks_writes(context: &Arc<dyn DeviceContext>) -> Result<bool> {
    Ok(virtual_context(context)?.tracks())
}

/// What every queue pair of a virtual context has consumed so far: see [`Context::cut`](super::Context::cut).
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs.
pub fn cut(context: &Arc<dyn DeviceContext>) -> Result<Cut> {
    Ok(retain::cut_of(virtual_context(context)?))
}

/// What a virtual context keeps of what it has sent: see [`Context::retained`](super::Context::retained).
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs.
pub fn retained(context: &Arc<dyn DeviceContext>) -> Result<Vec<RetainedConnection>> {
    Ok(retain::retained_of(&*virtual_context(context)?))
}

/// A process has left the job for good: nothing that a virtual context has sent to it is needed any more.
///
/// # Errors
/// `EOPNOTSUPP` where `context` is not one of virtual verbs.
pub fn forget_peer(context: &Arc<dyn DeviceContext>, peer: ProcessId) -> Result<()> {
    let context = virtual_context(context)?;
    context.stores().iter().for_each(|store| store.forget_peer(peer.0));
    context.local().writes.forget_peer(peer);
    Ok(())
}

/// Moves that a context remembers.
pub const MAX_MOVES_KEPT: usize = 64;

fn virtual_context(context: &Arc<dyn DeviceContext>) -> Result<Arc<context::VirtualContext>> {
    let name = context.name().to_owned();
    let context: Arc<dyn Any + Send + Sync> = Arc::clone(context) as _;
    context.downcast::<context::VirtualContext>().map_err(|_| {
        Error::unsupported(format!("{name} was opened without virtual verbs, which this needs"))
    })
}

impl Default for Core {
    fn default() -> Self {
        Core::new()
    }
}

/// Locks a mutex whose data no panic leaves half changed.
fn lock_mutex<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
