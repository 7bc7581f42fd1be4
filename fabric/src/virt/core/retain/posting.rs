//! What a queue pair does with a request that is posted.

use super::copying::{copy, prefetch_behind};
use super::store::Dealt;
use super::{Ring, Store};
use crate::abi::{Sge, send_flags};
use crate::virt::core::local::Region;
use crate::virt::core::pd::PdCore;
use crate::virt::core::qp::QpCore;
use sojourn_logging::retain::{ConnectionId, Message};
use sojourn_logging::{Element, Opcode, SendEntry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// In place of a connection's number: not connected, or not within the job.
const NOBODY: u64 = u64::MAX;

/// Retention of one queue pair.
pub(in crate::virt::core) struct Retaining {
    store: Arc<Store>,
    /// Of the ring.
    lkey: u32,
    /// Longest message that is sent from the ring.
    from_copy: u64,
    connection: AtomicU64,
}

impl Retaining {
    pub(in crate::virt::core) fn new(ring: &Ring, from_copy: u32) -> Self {
        Retaining {
            store: Arc::clone(&ring.store),
            lkey: ring.lkey(),
            from_copy: from_copy.into(),
            connection: AtomicU64::new(NOBODY),
        }
    }

    /// Messages are kept from here on, as sent to queue pair `peer_qpn` of `peer`.
    pub(in crate::virt::core) fn begin(&self, qp: &QpCore, peer: u32, peer_qpn: u32) {
        let new = self.store.open(qp, peer, peer_qpn);
        self.change(new.0);
    }

    /// The connection has ended, and no device reads the ring for it any more.
    pub(in crate::virt::core) fn end(&self) {
        self.change(NOBODY);
    }

    fn change(&self, to: u64) {
        let old = self.connection.swap(to, Ordering::AcqRel);
        if old != NOBODY {
            self.store.end(ConnectionId(old));
        }
    }

    /// Where it is connected within the job.
    fn connection(&self) -> Option<ConnectionId> {
        let id = self.connection.load(Ordering::Acquire);
        (id != NOBODY).then_some(ConnectionId(id))
    }

    /// The last messages were not posted after all.
    pub(in crate::virt::core) fn take_back(&self, messages: u64, receives: u64) {
        if let Some(id) = self.connection() {
            self.store.take_back(id, messages, receives);
        }
    }
}

/// Whether requests of that opcode are kept.
pub(in crate::virt::core) fn is_kept(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Write | Opcode::WriteImm | Opcode::Send | Opcode::SendImm)
}

impl QpCore {
    /// Keeps a request that is about to be appended as `entry`: what it is to be sent from, where
    /// that is not what the program named. Called under the send side's lock.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`](crate::device::DeviceQp::post_send), of elements `sges`.
    pub(in crate::virt::core) unsafe fn keep(
        &self,
        retaining: &Retaining,
        entry: &SendEntry,
        sges: &[Sge],
    ) -> Option<Element> {
        let id = retaining.connection()?;
        let length = sges.iter().map(|sge| u64::from(sge.length)).sum();
        let message = Message {
            opcode: entry.opcode,
            imm: entry.imm,
            remote_addr: entry.remote_addr,
            rkey: entry.rkey,
            length,
            received: self.received(),
        };
        let inline = u32::from(entry.flags) & send_flags::INLINE != 0;
        // The window has inline payload of its own, which is sent.
        let sent = !inline && length > 0 && length <= retaining.from_copy;
        let pin = sent.then(|| self.send.appended());
        let store = &retaining.store;
        let dealt = store.deal(id, message, pin);
        if matches!(dealt, Dealt::Nowhere) {
            return None;
        }
        // What they name stays registered, and so is there, while this is held.
        let regions = self.local().regions();
        let is_there = |sge: &Sge| {
            let region = regions.get(&sge.lkey)?;
            (region.owner == PdCore::identity(&self.pd)).then_some(())?;
            address_in(region, sge)
        };
        let address = |sge: &Sge| {
            if inline || sge.length == 0 { Some(sge.addr) } else { is_there(sge) }
        };
        if !sges.iter().all(|sge| address(sge).is_some()) {
            drop(regions);
            store.unreadable(id, message, dealt);
            return None;
        }
        let pieces = sges.iter().filter(|sge| sge.length > 0).filter_map(|sge| {
            Some(libc::iovec { iov_base: address(sge)? as *mut _, iov_len: sge.length as usize })
        });
        match dealt {
            Dealt::Nowhere => None,
            Dealt::Ring { span, at } => {
                let mut to = store.mapping.at(at, length);
                for piece in pieces {
                    // SAFETY: from what the program has registered, or promised to be readable, into a
                    // place that is ours until it is filled. The program does not change what it has
                    // posted; where a peer does so, nothing is concluded from which of its bytes come.
                    unsafe {
                        copy(piece.iov_base.cast(), to, piece.iov_len, !sent);
                        to = to.add(piece.iov_len);
                    }
                }
                if sent {
                    prefetch_behind(to, length as usize);
                }
                store.filled(span);
                let addr = store.mapping.at(at, length) as u64;
                // A message is below 2³¹ bytes, and one that is sent from here far below.
                pin.map(|_| Element { addr, length: length as u32, lkey: retaining.lkey })
            }
            Dealt::File { number, to } => {
                let mut pieces: Vec<_> = pieces.collect();
                // SAFETY: as above.
                unsafe { store.write(id, number, to, &mut pieces) };
                None
            }
        }
    }

    /// The last requests of the window, from `seq` on, are about to be taken out of it.
    #[cold]
    pub(in crate::virt::core) fn keep_not(&self, seq: u64) {
        let Some(retaining) = &self.retaining else { return };
        let (mut messages, mut receives) = (0, 0);
        for opcode in (seq..self.send.appended()).map(|seq| self.send.entry(seq).opcode) {
            messages += u64::from(is_kept(opcode));
            receives += u64::from(is_kept(opcode) && opcode != Opcode::Write);
        }
        retaining.take_back(messages, receives);
    }
}

/// Where an element is in our memory, if it is within its region.
fn address_in(region: &Region, sge: &Sge) -> Option<u64> {
    let from = sge.addr.checked_sub(region.start)?;
    let end = from.checked_add(sge.length.into())?;
    (end <= region.length).then(|| region.base as u64 + from)
}
