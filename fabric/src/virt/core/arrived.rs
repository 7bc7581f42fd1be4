//! Datagrams that have arrived: their completions, and the GRH in front of them, name the sender
//! virtually.

use super::grh;
use super::local::Local;
use crate::abi::{Wc, wc_flags, wc_status};
use sojourn_logging::Element;

/// Renames the sender in a datagram's completion, and in its GRH where it has one. One that is
/// not known is outside the job, and keeps its physical names.
pub(super) fn rename(local: &Local, wc: &mut Wc, elements: impl Iterator<Item = Element>) {
    if wc.status != wc_status::SUCCESS {
        return;
    }
    let grant = local.grant();
    let mut sender = None;
    if wc.wc_flags & wc_flags::GRH != 0 {
        grh::edit(local, elements, |header| {
            let Some(gid) = grh::sender(header) else { return };
            sender = local.senders.find(wc.src_qp, wc.slid, Some(gid));
            if let Some((process, _)) = sender {
                *header = grh::renamed(header, process.gid(grant.job).0, grant.gid.0);
            }
        });
    } else {
        sender = local.senders.find(wc.src_qp, wc.slid, None);
    }
    if let Some((process, qpn)) = sender {
        wc.src_qp = qpn;
        wc.slid = process.lid().0;
    }
}
