//! A store: memory of this node in which processes of other nodes keep their snapshots.
//!
//! A [`Store`] listens for those who hold its key. Each process that asks is *granted* a *compartment*:
//! two slots ([`crate::image`]) in memory that is mapped and registered for it alone. From then on it writes
//! there by RDMA, and this process takes no part: no thread of it runs for any byte that arrives. It is asked
//! again only to *note* which epoch is committed, to *check* one, to let somebody *read* it, and to *release* the compartment.
//!
//! # Who may write what
//!
//! A grant has a protection domain, a registration and queue pairs of its own. So a writer reaches its own
//! compartment, whatever key it names, and nobody else's. A reader gets another such *door*, of which the queue
//! pairs take reads alone. A door is open as long as the control connection over which it was asked for.
//!
//! Before a compartment changes its writer, the door of the old one is *shut*: its queue pairs go to
//! ERR, the flush of a receive that was posted before is polled, they are destroyed, and the memory is
//! deregistered. After that nothing that the old writer has under way lands, and the new one gets another
//! key. An incarnation older than the last that has asked is refused.
//!
//! # Which device
//!
//! The device's own verbs, not virtual ones. These connections have no names that must last: they
//! are made anew after a move of the process or a loss, by asking for another grant. Virtual ones would
//! have to be moved with the process that they save, and would stand in the way of that.
//!
//! # Parity
//!
//! A compartment may hold a share of the parity of a group of processes ([`crate::parity`]). Then it is this process that
//! writes it, on a thread of its own: it reads the images from other stores, as anybody does who reads.
//!
//! What is asked, and in which order, is the business of [`crate::epoch`]: its
//! [`Compartments`](crate::epoch::Compartments) decide, and this is what they decide about.

mod client;
mod door;
mod message;
mod parity;
mod process;
mod rooms;
mod server;

pub use client::Client;
pub(crate) use client::{Granted, device};
pub(crate) use message::Gather;
pub use message::{Hello, Kept, MAX_LANES, VERSION};
pub use process::{be_a_store, parse_bytes};
pub use server::{Store, StoreConfig};
