//! What each machine does, step by step. What they do together is tried by the simulator.

mod decider;
mod recovery;
mod store;
mod writer;

use super::{Epoch, Term};
use std::time::Duration;

const NOW: Duration = Duration::from_secs(1);
const TERM: Term = Term(1);

fn epoch(count: u64) -> Epoch {
    Epoch(count - 1).after(TERM)
}
