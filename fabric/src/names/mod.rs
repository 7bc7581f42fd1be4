//! What a process publishes of itself, and the directory of a job.
//!
//! A process joins its job by asking the [`directory`] for a [`Grant`]: a process number, and the
//! LID and GID that belong to it for life. The directory knows where each live process is, and no
//! more. Everything else (what a queue pair number or a key stands for today, and small
//! [notes](Handle::publish_note) that programs leave for each other) is fetched from the process that
//! owns it, by the [`Service`]: one thread per process, asleep until it is needed. The data path
//! never waits for any of this.
//!
//! Every connection is authenticated with the [job key](JobKey) before anything that comes over it
//! is looked at, everything that arrives has limits, and every wait has a deadline.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `types` | process numbers, addresses, records |
//! | `key`, `session` | the job key; the Noise channel, without IO |
//! | `message` | what is said, and its limits |
//! | `stream`, `links` | sockets; all connections of one thread ([`Links`], for other servers too) |
//! | `conversation` | one blocking connection between two commands |
//! | `timers`, `poller` | what happens later; sleeping and being woken |
//! | `directory` | the trait, the server (state machine and shell), the client, the local one |
//! | `service` | answers peers, and fetches from them |
//! | `env` | the variables by which a launcher tells a process of its job |
//!
//! Called by [`virt`](crate::virt), by the launcher and by the command. Knows nothing of devices.

mod conversation;
pub mod directory;
pub mod env;
mod error;
mod key;
mod links;
mod message;
mod poller;
mod service;
mod session;
mod stream;
mod timers;
mod types;

pub use conversation::{Conversation, Reception};
pub use error::Error;
pub use key::{JobKey, KEY_LEN};
pub use links::{Event as LinkEvent, HANDSHAKE_TIME, LinkError, LinkId, Links};
pub use message::{
    MAX_COVERS, MAX_DEVICE_NAME, MAX_KEY_DEVICES, MAX_MOVED, MAX_NOTE, MAX_NOTE_NAME, MAX_ORDERED,
    MAX_REASON, MAX_SOCKET_PATH, MAX_STEPS, MAX_TCP_ADDRESSES, MAX_WRITTEN, MAX_WRITTEN_PARTS,
};
pub use poller::Ready;
pub use service::{Done, Fetched, Handle, Job, OnReady, Owner, Service, ServiceConfig, Watch};
pub use session::SessionError;
pub(crate) use session::{OPENING, OVERHEAD, Received, Session};
pub use stream::{Endpoint, PrivateDir};
pub use types::*;
