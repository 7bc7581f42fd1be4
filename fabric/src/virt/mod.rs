//! Virtual verbs.
//!
//! - [`Process`] is this process in its job: it opens virtual contexts.
//! - [`core`] stands over devices and speaks addresses and verbs structs: it implements the
//!   traits of [`crate::device`], so that whatever takes a device takes virtual verbs too.
//! - The types here are the safe API: one skin over any [`crate::device::DeviceContext`]. Programs open a
//!   virtual context; benchmarks and conformance tests put the same skin on a raw device.
//!
//! # Why the safe API is safe
//!
//! A region owns its memory, and gives it back only after deregistration, after which no device
//! touches it; a request names memory by (address, length, key), and the device checks all three
//! against the regions that are registered at the moment of access. So no request, however wrong
//! and however long outstanding, reaches memory that Rust owns otherwise. Inline data is copied
//! before the post returns. Registered memory is read and written with atomic accesses alone,
//! since a peer may write it at any time.

mod api;
pub mod core;
mod mapping;
mod process;

pub use self::core::{
    CapturedRegion, Cause, Cut, Evidence, Failover, Gap, Message, Outstanding, Phase, Policy,
    Relocation, RetainedConnection, RetainedMessage, RetainedMessages, Retention, Spill,
    Suspension, Written, captured_regions,
};
pub use api::{
    AddressHandle, CompletionChannel, CompletionQueue, ConnectOptions, Context, Data, Datagram,
    Endpoint, MemoryRegion, Op, ProtectionDomain, QpOptions, QueuePair, Remote, Restored,
    SendRequest, SharedReceiveQueue,
};
pub use process::Process;
pub use sojourn_logging::Share;
