//! Windows of RDMA work requests, as state machines without IO.
//!
//! > A virtual queue pair is a window of work requests.
//! > The physical queue pair is only a cursor over it.
//!
//! This crate holds the windows. It knows no device, socket, clock or thread: it is handed
//! requests and told of completions, and says what stands where. Who drives it is
//! `sojourn-fabric`'s virtual layer.
//!
//! | type | of what | order of completion |
//! | --- | --- | --- |
//! | [`SendWindow`] | a queue pair's send requests | as posted |
//! | [`RecvWindow`] | a queue pair's receives | as posted |
//! | [`SharedRecvWindow`] | a shared receive queue's receives | any |
//!
//! # States of an entry
//!
//! ```text
//!            append              hand                 retire
//! (program) ───────▶ appended ──────────▶ handed ───────────────▶ retired
//!                    in the window,       given to the            its completion was taken, or
//!                    the program goes on  physical queue pair     that of a later entry
//! ```
//!
//! Entries are numbered from 0 by a 64-bit sequence that never wraps in practice. Three counters
//! say everything: `retired ≤ handed ≤ appended`, and `appended - retired ≤ depth`. An entry holds
//! virtual names only, and inline payload by value, so that it can be handed to any physical queue
//! pair at any later time.
//!
//! What the peer has executed of the entries that were handed, when a path has ended: [`replay`].
//! How both ends of a connection go over to other hardware: [`remap`]. What is kept of messages until the
//! receiver has a committed epoch: [`retain`]. Moves in worlds of chance, in virtual time: [`sim`].
//!
//! # Threads
//!
//! A window has one producer (who appends and hands, under the queue pair's send or receive
//! lock) and one consumer (who retires, under the completion queue's lock), which may run at the
//! same time without a lock between them: the producer publishes with a release store, the
//! consumer frees with another, and slots are made of relaxed atomics. To break that contract
//! gives wrong entries, never undefined behaviour: there is no `unsafe` here.
#![forbid(unsafe_code)]

mod entry;
mod recv;
pub mod remap;
pub mod replay;
pub mod retain;
mod ring;
mod room;
mod send;
mod shared;
pub mod sim;
mod sync;

pub use entry::{Element, Opcode, RecvEntry, Refused, SendEntry, State};
pub use recv::{PlainRecvSlot, RecvWindow};
pub use replay::{
    Executed, PROOF_SLOTS, Past, Plan, Replay, ReplayError, Start, packets, record_interval,
    record_slots,
};
pub use ring::MAX_SEQ;
pub use room::{Counted, Grant, SMALL, Share};
pub use send::{PlainSlot, SendWindow};
pub use shared::SharedRecvWindow;
