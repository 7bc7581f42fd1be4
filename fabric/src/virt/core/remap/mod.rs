//! The shells of the re-map: they drive the machines of [`sojourn_logging::remap`] with queue pairs,
//! time and messages.
//!
//! | file | what |
//! | --- | --- |
//! | `mover` | a context goes to another device: on the thread that asks for it |
//! | `order` | somebody outside wants all contexts on another device |
//! | `site` | everything of a context on one more device, or not any more |
//! | `survey` | what of a context moves, and what stands against it |
//! | `follower` | a peer's context does: on the service thread |
//! | `hold` | a context and its peers stand still for a moment: on the thread that asks for it |
//! | `lookout` | a path that fails is noticed though nobody polls |
//! | `failover` | a path has failed: the context goes by itself, on a thread of its own |

mod failover;
mod follower;
mod hold;
mod lookout;
mod mover;
mod order;
mod site;
mod survey;

pub use failover::Failover;
pub(super) use failover::{Broken, Rescue};
pub(super) use follower::Remaps;
pub use hold::Suspension;
pub(super) use hold::suspend;
pub(super) use lookout::Lookout;
pub(super) use mover::relocate;
pub use mover::{Cause, Phase, Relocation};
pub(super) use order::Orders;
pub(super) use survey::{Surveyed, Way, survey};

use super::cq::CqCore;
use super::qp::{Leaving, QpCore};
use std::sync::Arc;
use std::time::Duration;

/// The port that devices are compared by.
pub(super) const FIRST_PORT: u8 = 1;
/// Time in which a physical queue pair at ERR gives back what was posted to it. Beyond it, its numbers
/// are told as they are, and not as settled: requests may end with errors then, so it is long. (rxe on an
/// emulated machine takes 50 ms every now and then, hardware microseconds.)
const BARRIER_PATIENCE: Duration = Duration::from_secs(1);

/// The CQs of some queue pairs, each once.
pub(super) fn cqs_of<'a>(qps: impl Iterator<Item = &'a Arc<QpCore>>) -> Vec<Arc<CqCore>> {
    let mut cqs: Vec<Arc<CqCore>> = qps.flat_map(|qp| qp.cqs()).collect();
    cqs.sort_by_key(|cq| cq.number());
    cqs.dedup_by_key(|cq| cq.number());
    cqs
}

/// The program's signals are for its own threads.
pub(super) fn block_signals() {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// Destroys what queue pairs have left behind, takes what that has left in their CQs, and forgets it.
fn leave(all: Vec<(Arc<QpCore>, Leaving)>) {
    let destroy = |(qp, leaving): (Arc<QpCore>, Leaving)| {
        let left = qp.destroy_left(leaving);
        (qp, left)
    };
    let left: Vec<_> = all.into_iter().map(destroy).collect();
    cqs_of(left.iter().map(|(qp, _)| qp)).iter().for_each(|cq| cq.harvest_now());
    left.into_iter().for_each(|(qp, left)| qp.forget_left(left));
}
