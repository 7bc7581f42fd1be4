//! A context is written down, and made anew from that: in another process, over another device.
//!
//! > A snapshot is memory plus windows.
//!
//! Memory is others' business. Here is the rest: what was posted and not executed, posted receives,
//! completions and events that nobody has taken, counters, states, and every name that the program or a
//! peer knows. The [image](super::image) has virtual names alone. With the memory of the same moment at
//! the same addresses, the program goes on as if nothing had happened.
//!
//! ```text
//! going ── hold ──▶ held ── take ──▶ written down ── go_on ──▶ going (or gone: then restored elsewhere)
//!    ◀──── go_on ───┘ something does not come to rest before the deadline, or cannot be written down
//! ```
//!
//! Held means: nothing is handed to a device, and what was handed is through. (What is not, because it
//! waits for a receive, is decided by counting: `qp::remap::standing`.) The program posts and polls
//! nothing meanwhile.
//!
//! | file | what |
//! | --- | --- |
//! | `hold` | everything stands still |
//! | `take` | a held context as an image |
//! | `restore` | an image as a context |
//! | `memory` | whether memory is where regions were |
//!
//! # What is refused
//!
//! By name, and with everything going on as before: connections to other processes or to other contexts
//! of this one (their ends are to be written down at the same moment, which is a job's business),
//! whatever leads out of the job, retained messages, queue pairs in a state that a new one cannot be
//! given.

mod hold;
mod memory;
mod restore;
mod take;

pub(super) use restore::restore;
pub use restore::{CapturedRegion, RestoredCore, captured_regions};

use super::context::VirtualContext;
use super::image;
use crate::error::Result;
use std::sync::Arc;
use std::time::Instant;

/// Writes a context down, and calls `keep` with the bytes while everything stands still.
///
/// # Errors
/// As [`Context::capture`](crate::virt::Context::capture).
pub(super) fn capture<R>(
    context: &Arc<VirtualContext>,
    deadline: Instant,
    keep: impl FnOnce(&[u8]) -> R,
) -> Result<R> {
    hold::held(context, deadline, |held| {
        let bytes = image::encode(&take::take(context, held)?)?;
        Ok(keep(&bytes))
    })
}
