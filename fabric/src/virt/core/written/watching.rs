//! Looking through the windows of queue pairs.

use crate::abi::qp_type;
use crate::names::{Incarnation, ProcessId};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::local::Local;
use crate::virt::core::lock_mutex;
use crate::virt::core::qp::QpCore;
use crate::virt::core::srq::SrqCore;
use sojourn_logging::{Element, Opcode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of an atomic.
const ATOMIC_BYTES: u64 = 8;

/// Somebody who may write into this process's memory, by connections of one protection domain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(in crate::virt::core) struct Source {
    /// `None` is outside the job.
    pub(in crate::virt::core) peer: Option<ProcessId>,
    /// Its life in which the connection was made.
    pub(in crate::virt::core) life: Incarnation,
    /// The protection domain.
    pub(in crate::virt::core) owner: usize,
}

/// How far the windows of one queue pair have been looked through.
#[derive(Default)]
pub(in crate::virt::core) struct Tracked {
    // Each under the lock of its side.
    sends: AtomicU64,
    recvs: AtomicU64,
    source: Mutex<Option<Source>>,
}

impl Tracked {
    /// Whether the next request would take the place of one that was not looked at.
    #[inline]
    pub(in crate::virt::core) fn sends_are_due(&self, qp: &QpCore) -> bool {
        qp.send.appended() - self.sends.load(Ordering::Relaxed) >= u64::from(qp.send.depth())
    }

    /// The windows begin there: nothing before was posted to this queue pair.
    pub(in crate::virt::core) fn begin_at(&self, sends: u64, recvs: u64) {
        self.sends.store(sends, Ordering::Relaxed);
        self.recvs.store(recvs, Ordering::Relaxed);
    }

    /// The same of receives.
    #[inline]
    pub(in crate::virt::core) fn recvs_are_due(&self, qp: &QpCore) -> bool {
        qp.recv.appended() - self.recvs.load(Ordering::Relaxed) >= u64::from(qp.recv.depth())
    }
}

/// What of a window is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::virt::core) enum Look {
    /// What is through: the rest stays where it is.
    Through,
    /// And the first that is not, as one that has been begun.
    Begun,
    /// All that was handed: what is not through will be looked at again.
    Handed,
}

impl QpCore {
    /// It is about to be connected, or not any more.
    pub(in crate::virt::core) fn watch_source(&self, new: Option<Source>) {
        let Some(tracked) = &self.tracked else {
            if let Some(peer) = new.and_then(|source| source.peer) {
                self.local().writes.writes_unseen(peer);
            }
            return;
        };
        let mut source = lock_mutex(&tracked.source);
        if *source == new {
            return;
        }
        let writes = &self.local().writes;
        if let Some(new) = new {
            writes.connects(new);
        }
        if let Some(old) = std::mem::replace(&mut *source, new) {
            writes.disconnects(old);
        }
    }

    /// Who it is connected to.
    fn source(&self) -> Option<Source> {
        self.tracked.as_ref().and_then(|tracked| *lock_mutex(&tracked.source))
    }

    /// Looks through its send window. Under the lock of its send side.
    #[cold]
    pub(in crate::virt::core) fn look_through_sends(&self, tracked: &Tracked, look: Look) {
        // Before: what comes through meanwhile is looked at again.
        let retired = self.send.retired();
        let from = tracked.sends.load(Ordering::Relaxed);
        let upto = if look == Look::Handed { self.send.handed().max(retired) } else { retired };
        let local = self.local();
        let mut results: Vec<Element> = Vec::new();
        let mut remote: Vec<(u32, u64, u64)> = Vec::new();
        for seq in from..upto {
            let entry = self.send.entry(seq);
            match entry.opcode {
                Opcode::Write | Opcode::WriteImm => {
                    remote.push((entry.rkey, entry.remote_addr, self.send.length(seq)));
                }
                Opcode::CompareSwap | Opcode::FetchAdd => {
                    remote.push((entry.rkey, entry.remote_addr, ATOMIC_BYTES));
                    results.extend((0..entry.elements).map(|i| self.send.element(seq, i.into())));
                }
                Opcode::Read => {
                    results.extend((0..entry.elements).map(|i| self.send.element(seq, i.into())));
                }
                Opcode::Send | Opcode::SendImm | Opcode::SendInv => {}
            }
        }
        tracked.sends.store(retired.max(from), Ordering::Relaxed);
        if !results.is_empty() {
            local.writes.mark_elements(local, results.into_iter());
        }
        let peer = self.source().and_then(|source| source.peer);
        if let Some(peer) = peer.filter(|_| !remote.is_empty()) {
            local.writes.records.with(peer, |record| {
                for (key, addr, length) in remote {
                    record.mark(key, addr, length);
                }
            });
        }
    }

    /// Looks through its receive window. Under the lock of its receive side.
    #[cold]
    pub(in crate::virt::core) fn look_through_recvs(&self, tracked: &Tracked, look: Look) {
        let retired = self.recv.retired();
        let from = tracked.recvs.load(Ordering::Relaxed);
        let handed = self.recv.handed().max(retired);
        let upto = match look {
            Look::Through => retired,
            Look::Begun => handed.min(retired + 1),
            Look::Handed => handed,
        };
        let elements = (from..upto).flat_map(|seq| {
            let n = self.recv.entry(seq).elements;
            (0..n).map(move |i| self.recv.element(seq, i.into()))
        });
        self.local().writes.mark_elements(self.local(), elements);
        tracked.recvs.store(retired.max(from), Ordering::Relaxed);
    }

    /// Looks through both. The queue pair's connection ends, or nobody may be sure of it: with all that was handed.
    pub(in crate::virt::core) fn look_through_all(&self) {
        let Some(tracked) = &self.tracked else { return };
        {
            let _side = self.visit_sends();
            self.look_through_sends(tracked, Look::Handed);
        }
        let _side = self.visit_recvs();
        self.look_through_recvs(tracked, Look::Handed);
    }

    /// Looks through both for a report.
    fn look_through(&self) {
        let Some(tracked) = &self.tracked else { return };
        {
            let _side = self.visit_sends();
            self.look_through_sends(tracked, Look::Handed);
        }
        // Of a reliable message all comes, or its receive comes back; but where a path has failed, some of one may
        // be there already that comes again; and where its sender has, some that will never be more.
        let look = match self.qp_type == qp_type::RC && !self.may_have_failed() {
            false => Look::Handed,
            true if self.may_be_filled_in_part() => Look::Begun,
            true => Look::Through,
        };
        let _side = self.visit_recvs();
        self.look_through_recvs(tracked, look);
        if let Some(addr) = self.word_address() {
            self.local().writes.mark_word(addr);
        }
    }
}

/// Looks through the send windows of all queue pairs that are connected to a process.
pub(super) fn look_through_sends_to(local: &Arc<Local>, peer: ProcessId) {
    for context in local.contexts.alive() {
        for qp in context.qps.alive() {
            if qp.source().is_some_and(|source| source.peer == Some(peer))
                && let Some(tracked) = &qp.tracked
            {
                qp.cqs().for_each(|cq| cq.harvest_now());
                let _side = qp.visit_sends();
                qp.look_through_sends(tracked, Look::Handed);
            }
        }
    }
}

/// Looks through all windows of this process.
pub(super) fn look_through_everything(local: &Arc<Local>) {
    for context in local.contexts.alive() {
        look_through_context(&context);
    }
}

fn look_through_context(context: &VirtualContext) {
    context.cqs.alive().iter().for_each(|cq| cq.harvest_now());
    context.qps.alive().iter().for_each(|qp| qp.look_through());
    context.srqs.alive().iter().for_each(|srq| look_through_shared(srq));
}

/// Of shared receives that are out nobody knows which queue pair has begun to fill one.
fn look_through_shared(srq: &SrqCore) {
    if srq.tracked {
        let local = srq.pd.context.local();
        let slots =
            (0..srq.window.depth()).filter_map(|slot| Some((slot, srq.window.entry(slot)?)));
        let elements = slots.flat_map(|(slot, entry)| {
            (0..entry.elements).map(move |i| srq.window.element(slot, i.into()))
        });
        local.writes.mark_elements(local, elements);
    }
}
