//! What is to be done with what a held context had handed.

use crate::error::{Error, Result};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::qp::{QpCore, Restless};
use crate::virt::core::remap::{Surveyed, Way, survey};
use crate::virt::core::retain::Retention;
use sojourn_logging::Plan;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at what is still to come.
const LOOK: Duration = Duration::from_micros(20);

/// A queue pair that stands still.
pub(super) struct Still {
    pub(super) qp: Arc<QpCore>,
    /// [`qp_state`](crate::abi::qp_state).
    pub(super) state: u32,
    pub(super) way: Way,
    /// What is to be done with what was handed.
    pub(super) plan: Plan,
}

/// The queue pairs of a context that is held, and in which nothing is made or destroyed. Waits for what
/// is still to come of what was executed.
///
/// # Errors
/// As [`Suspension::capture`](crate::virt::Suspension::capture).
pub(super) fn stills(context: &VirtualContext, deadline: Instant) -> Result<Vec<Still>> {
    let surveyed = survey(context)?;
    refuse(context, &surveyed)?;
    let still =
        |Surveyed { qp, state, way }: Surveyed| Still { qp, state, way, plan: Plan::default() };
    let mut all: Vec<_> = surveyed.into_iter().map(still).collect();
    let cqs = context.cqs.alive();
    loop {
        cqs.iter().for_each(|cq| cq.settle());
        let Some(at) = look(&mut all)? else { return Ok(all) };
        if Instant::now() >= deadline {
            return Err(Error::new(
                libc::ETIMEDOUT,
                format!(
                    "queue pair {:#x} still has completions under way: give it more time",
                    all[at].qp.qpn
                ),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

/// The first queue pair that does not stand still.
fn look(all: &mut [Still]) -> Result<Option<usize>> {
    for at in 0..all.len() {
        let Still { qp, state, way, .. } = &all[at];
        let peer = match way {
            Way::Within(other) => Some(&*all[*other].qp),
            _ => None,
        };
        match qp.standing(*state, peer) {
            Ok(plan) => all[at].plan = plan,
            Err(Restless::Moves) => return Ok(Some(at)),
            Err(Restless::Failed) => {
                return Err(Error::new(
                    libc::EBUSY,
                    format!(
                        "queue pair {:#x} has failed since its context was suspended: end that, so that \
                         the program learns of it, and suspend again",
                        qp.qpn
                    ),
                ));
            }
            Err(Restless::Undecided(seq)) => {
                return Err(Error::new(
                    libc::ENOTRECOVERABLE,
                    format!(
                        "queue pair {:#x}: of its request {seq} nobody can tell how much of it was \
                         executed: post a receive for it first",
                        qp.qpn
                    ),
                ));
            }
        }
    }
    Ok(None)
}

fn refuse(context: &VirtualContext, surveyed: &[Surveyed]) -> Result<()> {
    for Surveyed { qp, way, .. } in surveyed {
        if let Way::Peer(process, dest) = way {
            return Err(Error::unsupported(format!(
                "queue pair {:#x} is connected to queue pair {dest:#x} of {process}, which is not of \
                 this context: the two ends of a connection are captured together",
                qp.qpn
            )));
        }
    }
    if *context.retention() != Retention::Descriptor {
        return Err(Error::unsupported(format!(
            "this context keeps the messages that it sends ({}), and those are not captured",
            Retention::VARIABLE
        )));
    }
    Ok(())
}
