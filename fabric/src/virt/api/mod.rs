//! The safe API: ownership, lifetimes and Rust types over the `Device*` traits.

mod context;
mod endpoint;
mod memory;
mod queue;
mod queue_pair;
mod request;
mod restored;

pub use context::{AddressHandle, Context, ProtectionDomain};
pub use endpoint::{ConnectOptions, Endpoint};
pub use memory::{MemoryRegion, Remote};
pub use queue::{CompletionChannel, CompletionQueue, SharedReceiveQueue};
pub use queue_pair::{QpOptions, QueuePair};
pub use request::{Data, Datagram, Op, SendRequest};
pub use restored::Restored;
