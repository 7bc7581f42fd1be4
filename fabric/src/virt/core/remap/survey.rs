//! What of a context moves, who has to follow, and what stands against it.

use super::FIRST_PORT;
use crate::abi::{QpAttr, access, qp_state, qp_type};
use crate::error::{Error, Result};
use crate::names::ProcessId;
use crate::virt::core::context::VirtualContext;
use crate::virt::core::qp::QpCore;
use crate::virt::core::underlay::Underlay;
use std::collections::HashMap;
use std::sync::Arc;

/// Where the other end of a queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virt::core) enum Way {
    /// Queue pair `.1` of that process, or of another context of this one: it has to follow.
    Peer(ProcessId, u32),
    /// The queue pair at that place of the survey, which moves as well.
    Within(usize),
    /// It is connected to a queue pair of that process which is not connected back.
    Gone(ProcessId),
    /// It is connected to none: not yet, not any more, or it is for datagrams.
    Alone,
}

/// A queue pair that moves.
pub(in crate::virt::core) struct Surveyed {
    pub(in crate::virt::core) qp: Arc<QpCore>,
    /// [`qp_state`].
    pub(in crate::virt::core) state: u32,
    pub(in crate::virt::core) way: Way,
}

/// All queue pairs of a context that is kept as it is.
///
/// # Errors
/// `EBUSY` where a queue pair is just being connected: worth another try. `EOPNOTSUPP` where a queue
/// pair or an address handle leads out of the job; `EINVAL` where a queue pair is in a state that
/// a new one cannot be given.
pub(in crate::virt::core) fn survey(context: &VirtualContext) -> Result<Vec<Surveyed>> {
    let surveyed = survey_qps(context, "which cannot follow")?;
    if let Some(ah) = context.ahs.alive().iter().find(|ah| ah.destination.is_foreign()) {
        return Err(Error::unsupported(format!(
            "an address handle (number {}) leads outside the job: destroy it first",
            ah.number
        )));
    }
    Ok(surveyed)
}

/// The queue pairs alone. What is said of those whose peer is no part of the job is `foreign`.
///
/// # Errors
/// As [`survey`].
pub(super) fn survey_qps(context: &VirtualContext, foreign: &str) -> Result<Vec<Surveyed>> {
    let qps: Vec<_> = context.qps.alive().into_iter().filter(|qp| !qp.is_dead()).collect();
    let places: HashMap<u32, usize> = qps.iter().enumerate().map(|(i, qp)| (qp.qpn, i)).collect();
    let own = context.local().grant().process;
    let mut surveyed = Vec::with_capacity(qps.len());
    for qp in &qps {
        let status = qp.status()?;
        let name = format!("queue pair {:#x}", qp.qpn);
        if status.foreign {
            return Err(Error::unsupported(format!(
                "{name} is connected to a queue pair outside the job, {foreign}: destroy it first"
            )));
        }
        let way = match status.state {
            qp_state::RESET | qp_state::ERR => Way::Alone,
            qp_state::INIT => {
                // Somebody may be connected to where it is now, and we would not know whom to tell.
                if qp.qp_type != qp_type::UD && !qp.known_to().is_empty() {
                    return Err(being_connected(&name));
                }
                Way::Alone
            }
            qp_state::RTR | qp_state::RTS => match status.peer {
                Some((process, dest)) if process == own && places.contains_key(&dest) => {
                    Way::Within(places[&dest])
                }
                Some((process, dest)) => Way::Peer(process, dest),
                None => Way::Alone,
            },
            state => {
                return Err(Error::invalid(format!(
                    "{name} is in state {}: take it to RTS or to ERR first",
                    qp_state::name(state)
                )));
            }
        };
        surveyed.push(Surveyed { qp: Arc::clone(qp), state: status.state, way });
    }
    pair_up(&mut surveyed, own)?;
    Ok(surveyed)
}

fn being_connected(name: &str) -> Error {
    Error::new(libc::EBUSY, format!("{name} is just being connected"))
}

/// Queue pairs of this context that are connected to each other; whoever is connected to one that is
/// not connected back is as if its peer were gone.
fn pair_up(surveyed: &mut [Surveyed], own: ProcessId) -> Result<()> {
    for at in 0..surveyed.len() {
        let Way::Within(other) = surveyed[at].way else { continue };
        match (surveyed[other].state, surveyed[other].way) {
            (_, Way::Within(back)) if back == at => {}
            (qp_state::INIT | qp_state::RESET, _) => {
                return Err(being_connected(&format!("queue pair {:#x}", surveyed[other].qp.qpn)));
            }
            _ => surveyed[at].way = Way::Gone(own),
        }
    }
    Ok(())
}

/// Whether the device can carry all that: each limit that no creation would show.
///
/// # Errors
/// `EINVAL` that names the limit, the need and what needs it.
pub(super) fn check_limits(
    context: &VirtualContext,
    surveyed: &[Surveyed],
    to: &Underlay,
) -> Result<()> {
    let name = to.device.name();
    let attr = to.device.query_device()?;
    let port = to.device.query_port(FIRST_PORT)?;
    let short = |what: &str, need: u64, whose: &str, has: u64| {
        Err(Error::invalid(format!("{name} has {what} of {has}, and {whose} needs {need}")))
    };
    let has = attr.max_qp.max(0) as u64;
    if surveyed.len() as u64 > has {
        return short("a max_qp", surveyed.len() as u64, "this context", has);
    }
    let atomics = context.mrs.alive().iter().any(|mr| mr.flags() & access::REMOTE_ATOMIC != 0);
    if atomics && attr.atomic_cap == 0 {
        return Err(Error::invalid(format!(
            "{name} has no atomics, and a memory region allows them (REMOTE_ATOMIC)"
        )));
    }
    let now = context.underlay().device.query_port(FIRST_PORT)?;
    for Surveyed { qp, .. } in surveyed {
        let whose = format!("queue pair {:#x}", qp.qpn);
        let QpAttr { max_rd_atomic, max_dest_rd_atomic, .. } = qp.attributes();
        let has = attr.max_qp_init_rd_atom.max(0) as u64;
        if u64::from(max_rd_atomic) > has {
            return short("a max_qp_init_rd_atom", max_rd_atomic.into(), &whose, has);
        }
        let has = attr.max_qp_rd_atom.max(0) as u64;
        if u64::from(max_dest_rd_atomic) > has {
            return short("a max_qp_rd_atom", max_dest_rd_atomic.into(), &whose, has);
        }
        let longest = qp.longest_message();
        if longest > u64::from(port.max_msg_sz) {
            return short("a max_msg_sz", longest, &whose, port.max_msg_sz.into());
        }
        // The program was told how long a datagram may be.
        if qp.qp_type == qp_type::UD && port.active_mtu < now.active_mtu {
            let bytes = |mtu| crate::abi::mtu_bytes(mtu).unwrap_or(0).into();
            return short(
                "an MTU for datagrams",
                bytes(now.active_mtu),
                &whose,
                bytes(port.active_mtu),
            );
        }
    }
    Ok(())
}
