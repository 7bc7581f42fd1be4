//! Everything of a context stands still.

use crate::abi::qp_state;
use crate::error::{Error, Result};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::qp::{QpCore, Restless};
use crate::virt::core::remap::{Surveyed, Way, survey};
use crate::virt::core::retain::Retention;
use sojourn_logging::Plan;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at what is still under way.
const LOOK: Duration = Duration::from_micros(20);
/// Between two tries, where something failed or was being changed.
const REST: Duration = Duration::from_millis(1);

/// A queue pair that stands still.
pub(super) struct Still {
    pub(super) qp: Arc<QpCore>,
    /// [`qp_state`].
    pub(super) state: u32,
    pub(super) way: Way,
    /// What is to be done with what was handed.
    pub(super) plan: Plan,
}

impl Still {
    /// It has something to stop.
    fn is_live(&self) -> bool {
        !matches!(self.state, qp_state::RESET | qp_state::ERR)
    }
}

/// Queue pairs that have stopped, as long as it is there.
struct Stopped(Vec<Still>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().filter(|still| still.is_live()).for_each(|still| still.qp.go_on());
    }
}

/// Runs `then` while everything stands still.
///
/// # Errors
/// As [`Context::capture`](crate::virt::Context::capture); whatever `then` says.
pub(super) fn held<R>(
    context: &Arc<VirtualContext>,
    deadline: Instant,
    then: impl FnOnce(&[Still]) -> Result<R>,
) -> Result<R> {
    loop {
        let busy = {
            let moving = context.local().remaps.begin();
            let unsettled = moving.as_ref().and_then(|_| context.try_unsettle());
            match unsettled {
                None => Error::new(
                    libc::EBUSY,
                    "a context of this process moves, follows a peer, or has objects that are being \
                     made, changed or destroyed",
                ),
                Some(_unsettled) => match stop(context, deadline) {
                    Ok(stopped) => return then(&stopped.0),
                    Err(error) if error.errno() == libc::EBUSY => error,
                    Err(error) => return Err(error),
                },
            }
        };
        if Instant::now() + REST >= deadline {
            return Err(busy.context("a context does not come to rest"));
        }
        std::thread::sleep(REST);
    }
}

/// Stops everything, and waits until nothing goes on by itself any more.
fn stop(context: &Arc<VirtualContext>, deadline: Instant) -> Result<Stopped> {
    let surveyed = survey(context)?;
    refuse(context, &surveyed)?;
    let still =
        |Surveyed { qp, state, way }: Surveyed| Still { qp, state, way, plan: Plan::default() };
    let mut stopped = Stopped(surveyed.into_iter().map(still).collect());
    stopped.0.iter().filter(|still| still.is_live()).for_each(|still| still.qp.stop());
    let cqs = context.cqs.alive();
    loop {
        cqs.iter().for_each(|cq| cq.settle());
        let Some(at) = look(&mut stopped.0)? else { return Ok(stopped) };
        if Instant::now() >= deadline {
            return Err(Error::new(
                libc::ETIMEDOUT,
                format!(
                    "queue pair {:#x} still has requests under way: give it more time",
                    stopped.0[at].qp.qpn
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
                let text = format!("queue pair {:#x} has failed just now", qp.qpn);
                return Err(Error::new(libc::EBUSY, text));
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
