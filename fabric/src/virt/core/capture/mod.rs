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
//! going ── suspend ──▶ held ── capture ──▶ held ── end ──▶ going (or gone: and restored elsewhere)
//! ```
//!
//! Held ([`Suspension`]) means: nothing is handed to a device, and what was handed is through. (What is
//! not, because it waits for a receive, is decided by counting: `qp::remap::standing`.) The program posts
//! and polls nothing between the capture and the saving of its memory.
//!
//! | file | what |
//! | --- | --- |
//! | `still` | what is to be done with what was handed |
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

mod memory;
mod restore;
mod still;
mod take;

pub(super) use restore::restore;
pub use restore::{CapturedRegion, RestoredCore, captured_regions};

use super::image;
use super::remap::Suspension;
use crate::error::{Error, Result};
use std::time::{Duration, Instant};

/// Between two tries to keep objects from being made and destroyed.
const LOOK: Duration = Duration::from_micros(20);

impl Suspension {
    /// Writes the context down, so that [`Process::restore`](crate::virt::Process::restore) makes it anew in
    /// another process, or over another device: un-executed requests with their inline payloads, posted
    /// receives, completions and events that nobody has taken, counters, states, and all names.
    ///
    /// Memory is not in there. It is of the same moment where it is saved before the suspension ends, and
    /// the program posts and polls nothing from this call until then.
    ///
    /// Of messages that find no receive, and of what is behind them, is counted how much was executed, and
    /// the rest is written down.
    ///
    /// # Errors
    /// The context stays suspended.
    /// - `EOPNOTSUPP`: something leads out of the context (to another process, to another context, out of the
    ///   job), or it keeps the messages that it sends;
    /// - `EINVAL`: a queue pair is in a state that a new one cannot be given;
    /// - `EBUSY`: a queue pair has failed since it was suspended, and the program is to learn of it first; or
    ///   until `deadline` objects were being made or destroyed;
    /// - `ETIMEDOUT`: completions are still to come at `deadline`;
    /// - `ENOTRECOVERABLE`: a device does not tell how much of a request was executed.
    pub fn capture(&self, deadline: Instant) -> Result<Vec<u8>> {
        let context = self.context().ok_or_else(|| Error::invalid("this suspension has ended"))?;
        let _unsettled = loop {
            match context.try_unsettle() {
                Some(guard) => break guard,
                None if Instant::now() >= deadline => {
                    let why = "an object of the context is being made, changed or destroyed";
                    return Err(Error::new(libc::EBUSY, why));
                }
                None => std::thread::sleep(LOOK),
            }
        };
        let stills = still::stills(context, deadline)?;
        image::encode(&take::take(context, &stills)?)
    }
}
