//! The executor: what an initiator does for one request of a connected queue pair.
//!
//! Two kinds of work, by who executes it:
//!
//! - *here*: WRITE, READ, and SEND to a queue pair with its own receive queue. The initiator
//!   checks key and state in the target's region, copies, moves the responder's cursor, and is
//!   done when the call returns;
//! - *there*: atomics, whatever takes a receive of an SRQ, and everything where the kernel forbids
//!   copies. The request travels in the ring, the target executes and answers it, and moves the
//!   cursor itself.
//!
//! The cursor has one writer at a time, and requests execute in order, because nothing is
//! executed here while an answer is awaited.

use super::super::records::{Fault, fault, kind};
use super::super::region::{QpEntry, RecvRing};
use super::super::shm::View;
use super::copy::{Trouble, Way, copy};
use super::message::announce;
use super::recv::Pieces;
use super::request::{Data, Request};
use super::send::{Flow, Path};
use super::{Qp, remote, ud};
use crate::abi::{
    MASK_24, QpAttr, access, mtu_bytes, qp_state, qp_type, send_flags, wc_status, wr_opcode,
};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What became of a request, or of a part of it.
pub(super) enum Outcome {
    /// It is executed.
    Done,
    /// A part is executed.
    More,
    /// It is in the ring; the answer with this number ends it.
    Sent(u32),
    /// It fails with this status.
    Failed(u32),
    /// It cannot go on now.
    Wait(Wait),
}

/// Why a request cannot go on.
pub(super) enum Wait {
    /// The receiver has no receive posted; its timer.
    Rnr(u8),
    /// The ring is full.
    Room,
    /// Something before it has not been answered.
    Answer,
    /// The peer is not there, or not ready to receive.
    Silence,
}

/// Bytes of a part of a message that travels through the ring because copies are forbidden.
pub(super) const PART: u32 = 4096;

/// Packets that `len` bytes take.
pub(super) fn packets(len: u32, mtu: u32) -> u32 {
    if len <= mtu { 1 } else { len.div_ceil(mtu) }
}

fn ready(word: u64, incarnation: u32) -> bool {
    QpEntry::incarnation(word) == incarnation
        && matches!(
            QpEntry::state(word),
            qp_state::RTR | qp_state::RTS | qp_state::SQD | qp_state::SQE
        )
}

impl Path {
    #[inline]
    pub(super) fn entry(&self) -> &QpEntry {
        &self.entry
    }

    #[inline]
    pub(super) fn ready(&self) -> bool {
        ready(self.entry().word.load(Ordering::SeqCst), self.incarnation)
    }

    /// Moves the responder's cursor: packets executed here.
    #[inline]
    pub(super) fn advance(&self, psn: u32) {
        self.entry().taken.0.epsn.store(psn, Ordering::Release);
    }
}

impl Qp {
    /// Executes `request`, or its next part of at most `chunk` bytes behind the first `done`.
    #[inline]
    pub(super) fn exec(
        self: &Arc<Self>,
        flow: &mut Flow,
        attr: &QpAttr,
        request: &Request<'_>,
        done: &mut u32,
        chunk: u32,
    ) -> Outcome {
        if self.core.region.down() {
            return if self.kind == qp_type::UD { Outcome::Done } else { self.silent() };
        }
        if self.kind == qp_type::UD {
            return ud::send(self, flow, attr, request);
        }
        if flow.path.is_none() {
            if !super::super::ah::is_local(&self.core, &attr.ah_attr) {
                return remote::exec(self, flow, attr, request, done, chunk);
            }
            if let Err(outcome) = self.bind(flow, attr) {
                return outcome;
            }
        }
        let Some(path) = &mut flow.path else { return Outcome::Wait(Wait::Silence) };
        if !path.link.usable() {
            return self.gone();
        }
        if path.link.peer.region.down() {
            return self.silent();
        }
        let word = path.entry().word.load(Ordering::Acquire);
        if !ready(word, path.incarnation) {
            return self.refused(flow, word);
        }
        if request.is(send_flags::FENCE) && flow.unanswered > 0 {
            return Outcome::Wait(Wait::Answer);
        }
        let mtu = mtu_bytes(attr.path_mtu).unwrap_or(4096);
        let atomic = matches!(
            request.opcode,
            wr_opcode::ATOMIC_CMP_AND_SWP | wr_opcode::ATOMIC_FETCH_AND_ADD
        );
        let receives = takes_receive(request.opcode);
        let ring_only = path.link.peer.ring_only.load(Ordering::Relaxed);
        let there = atomic
            || (path.has_srq && receives)
            || (ring_only && request.len > 0 && !is_send(request.opcode));
        let mut step = Step { qp: self, psn: &mut flow.psn, seq: &mut flow.seq, attr, mtu, path };
        if there {
            if atomic && flow.unanswered >= u32::from(attr.max_rd_atomic.max(1)) {
                return Outcome::Wait(Wait::Answer);
            }
            // A WRITE whose immediate takes a receive of an SRQ places its data first, here.
            if request.opcode == wr_opcode::RDMA_WRITE_WITH_IMM && !ring_only && *done < request.len
            {
                if flow.unanswered > 0 {
                    return Outcome::Wait(Wait::Answer);
                }
                return step.place(request, done);
            }
            return step.ask(request, done, ring_only);
        }
        if flow.unanswered > 0 {
            return Outcome::Wait(Wait::Answer);
        }
        let expected = step.path.entry().taken.0.epsn.load(Ordering::Relaxed) & MASK_24;
        if self.kind == qp_type::RC && expected != *step.psn {
            // The responder would not take these packets: they are out of sequence.
            return Outcome::Wait(Wait::Silence);
        }
        match request.opcode {
            wr_opcode::RDMA_WRITE => step.write(request, done, chunk),
            wr_opcode::RDMA_READ => step.read(request, done, chunk),
            _ => step.message(request, done, chunk),
        }
    }

    /// Finds the peer's queue pair.
    #[cold]
    fn bind(self: &Arc<Self>, flow: &mut Flow, attr: &QpAttr) -> Result<(), Outcome> {
        let silence = || Err(self.silent());
        let Some(link) = self.core.link_to(attr.dest_qp_num) else {
            if self.core.dial_later(attr.dest_qp_num) && self.kind == qp_type::RC {
                return Err(Outcome::Wait(Wait::Room));
            }
            return silence();
        };
        let region = &link.peer.region;
        let Some(index) = region.qp_index(attr.dest_qp_num) else { return silence() };
        let entry = View::new(Arc::clone(region), |region| region.qp(index));
        let Some(entry) = entry else { return silence() };
        let word = entry.word.load(Ordering::Acquire);
        let traits = entry.traits.load(Ordering::Relaxed);
        let dest = entry.dest.load(Ordering::Relaxed) as u32;
        let incarnation = QpEntry::incarnation(word);
        if !ready(word, incarnation) || dest != self.num || traits >> 8 & 0xff != self.kind {
            return silence();
        }
        let Some(ring) = RecvRing::of(&entry) else { return silence() };
        let path = Path {
            incarnation,
            pd: entry.pd.load(Ordering::Relaxed),
            recv_cq: entry.recv_cq.load(Ordering::Relaxed) as usize,
            has_srq: traits >> 16 & 1 != 0,
            ring,
            posted: entry.posted.0.load(Ordering::Acquire),
            entry,
            link,
        };
        flow.path = Some(path);
        Ok(())
    }

    /// A peer that does not respond: UC does not notice.
    pub(super) fn silent(&self) -> Outcome {
        if self.kind == qp_type::UC { Outcome::Done } else { Outcome::Wait(Wait::Silence) }
    }

    pub(super) fn gone(&self) -> Outcome {
        if self.kind == qp_type::UC {
            Outcome::Done
        } else {
            Outcome::Failed(wc_status::RETRY_EXC_ERR)
        }
    }

    /// The peer's QP is not what it was: at ERR it does not come back, else it may.
    #[cold]
    fn refused(&self, flow: &mut Flow, word: u64) -> Outcome {
        let same = flow.path.as_ref().is_some_and(|p| p.incarnation == QpEntry::incarnation(word));
        flow.path = None;
        if same && QpEntry::state(word) == qp_state::ERR { self.gone() } else { self.silent() }
    }

    /// The local pieces of a request that hold bytes `skip .. skip + len` of its message, if its
    /// keys allow `need`.
    #[inline]
    pub(super) fn local(
        &self,
        request: &Request<'_>,
        skip: u32,
        len: u32,
        need: u32,
    ) -> Option<Pieces> {
        let mut pieces = Pieces::new();
        self.find_local(request, skip, len, need, &mut pieces).then_some(pieces)
    }

    /// As [`Qp::local`], into `pieces`, which are too large to be moved about.
    #[inline]
    pub(super) fn find_local(
        &self,
        request: &Request<'_>,
        skip: u32,
        len: u32,
        need: u32,
        pieces: &mut Pieces,
    ) -> bool {
        if let Data::Listed([sge]) = request.data
            && (skip, len) == (0, sge.length)
            && len > 0
        {
            return self.core.region.permits(sge.lkey, self.pd, sge.addr, len.into(), need)
                && pieces.push(sge.addr, len.into());
        }
        self.find_pieces(request, skip, len, need, pieces)
    }

    /// Any list, and any part of it.
    fn find_pieces(
        &self,
        request: &Request<'_>,
        skip: u32,
        len: u32,
        need: u32,
        pieces: &mut Pieces,
    ) -> bool {
        let (mut skip, mut left) = (u64::from(skip), u64::from(len));
        let (sges, keyed) = match request.data {
            Data::Listed(sges) => (sges, true),
            Data::Inline(sges) => (sges, false),
            Data::Copied(bytes) => {
                pieces.push(bytes.as_ptr() as u64 + skip, left);
                return true;
            }
        };
        for sge in sges {
            if left == 0 {
                break;
            }
            let size = u64::from(sge.length);
            if skip >= size {
                skip -= size;
                continue;
            }
            let now = (size - skip).min(left);
            let addr = sge.addr.wrapping_add(skip);
            if (keyed && !self.core.region.permits(sge.lkey, self.pd, addr, now, need))
                || !pieces.push(addr, now)
            {
                return false;
            }
            skip = 0;
            left -= now;
        }
        true
    }

    /// Copies bytes that came through a ring to where a READ or an atomic wants them.
    pub(super) fn land(&self, request: &Request<'_>, skip: u32, bytes: &[u8]) -> bool {
        if u64::from(skip) + bytes.len() as u64 > u64::from(request.len) {
            return false;
        }
        let need = access::LOCAL_WRITE;
        let Some(pieces) = self.local(request, skip, bytes.len() as u32, need) else {
            return false;
        };
        let mut rest = bytes;
        for (addr, len) in pieces.iter() {
            let (now, later) = rest.split_at(len as usize);
            // SAFETY: registered for local writing just now, and `dereg` waits for the lock of the
            // ring that the caller reads. Raw copy, no reference.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), addr as *mut u8, now.len()) };
            rest = later;
        }
        true
    }
}

pub(super) fn takes_receive(opcode: u32) -> bool {
    is_send(opcode) || opcode == wr_opcode::RDMA_WRITE_WITH_IMM
}

pub(super) fn is_send(opcode: u32) -> bool {
    matches!(opcode, wr_opcode::SEND | wr_opcode::SEND_WITH_IMM)
}

/// Copies pieces of this process's memory, one after the other, to `to`.
///
/// # Safety
/// `to` has room for all of them, and they are readable.
pub(super) unsafe fn gather(pieces: &Pieces, mut to: NonNull<u8>) {
    for (addr, len) in pieces.iter() {
        // SAFETY: the caller's promise.
        unsafe {
            std::ptr::copy_nonoverlapping(addr as *const u8, to.as_ptr(), len as usize);
            to = to.add(len as usize);
        }
    }
}

/// One step of one request.
pub(super) struct Step<'a> {
    pub(super) qp: &'a Arc<Qp>,
    pub(super) psn: &'a mut u32,
    pub(super) seq: &'a mut u32,
    pub(super) attr: &'a QpAttr,
    pub(super) mtu: u32,
    pub(super) path: &'a mut Path,
}

impl Step<'_> {
    pub(super) fn is_rc(&self) -> bool {
        self.qp.kind == qp_type::RC
    }

    /// Packets of `len` bytes are executed.
    #[inline]
    pub(super) fn count(&mut self, len: u32) {
        *self.psn = (*self.psn + packets(len, self.mtu)) & MASK_24;
        self.path.advance(*self.psn);
    }

    /// Whether the target's QP allows `need` to this QP's requests.
    #[inline]
    fn allowed(&self, need: u32) -> bool {
        self.path.entry().traits.load(Ordering::Relaxed) & need == need
    }

    /// An error that is the target's too: it learns of it, unless UC hides it.
    pub(super) fn fault(&mut self, what: u32, index: u64, status: u32) -> Outcome {
        if !self.is_rc() {
            return Outcome::Done;
        }
        let record = Fault {
            qpn: self.attr.dest_qp_num,
            incarnation: self.path.incarnation,
            what,
            index: index as u32,
        };
        let link = &self.path.link;
        let mut tx = link.tx.lock();
        let Some(room) = tx.reserve_or_wait(Fault::HEAD) else { return Outcome::Wait(Wait::Room) };
        // SAFETY: reserved.
        unsafe { record.put(room) };
        tx.publish(kind::FAULT, Fault::HEAD);
        drop(tx);
        announce(link, None, false);
        link.peer.urge();
        Outcome::Failed(status)
    }

    /// What a failed copy means.
    pub(super) fn trouble(&mut self, trouble: Trouble, index: u64, receive: bool) -> Outcome {
        match trouble {
            Trouble::Dead => self.qp.gone(),
            Trouble::Local => Outcome::Failed(wc_status::LOC_PROT_ERR),
            Trouble::Forbidden => {
                self.path.link.peer.forbid();
                Outcome::More
            }
            Trouble::Invalid if !self.path.ready() => {
                // Found anew, and refused, by the next step.
                Outcome::More
            }
            Trouble::Invalid | Trouble::Remote if receive => {
                self.fault(fault::PROTECTION, index, wc_status::REM_OP_ERR)
            }
            Trouble::Invalid | Trouble::Remote => {
                self.fault(fault::ACCESS, 0, wc_status::REM_ACCESS_ERR)
            }
        }
    }

    /// Copies a part of a WRITE's data.
    #[inline]
    pub(super) fn push(
        &mut self,
        request: &Request<'_>,
        skip: u32,
        len: u32,
    ) -> Result<(), Outcome> {
        if !self.allowed(access::REMOTE_WRITE) {
            return Err(self.fault(fault::ACCESS, 0, wc_status::REM_ACCESS_ERR));
        }
        if len == 0 {
            return Ok(());
        }
        let Some(local) = self.qp.local(request, skip, len, 0) else {
            return Err(Outcome::Failed(wc_status::LOC_PROT_ERR));
        };
        let (path, qpn) = (&*self.path, self.attr.dest_qp_num);
        let addr = request.addr.wrapping_add(u64::from(skip));
        let valid = || {
            path.ready()
                && path.link.peer.region.permits(
                    request.rkey,
                    path.pd,
                    // The whole message must be allowed before its first part lands.
                    request.addr,
                    u64::from(request.len),
                    access::REMOTE_WRITE,
                )
        };
        let link = &path.link;
        let remote = std::iter::once((addr, u64::from(len)));
        let way = Way::Out;
        let busy = &link.push_busy;
        let trouble = match copy(&link.peer, &link.push, busy, way, qpn, &local, remote, valid) {
            Ok(slot) => {
                // Within the slot: a fenced target sees the number with the data.
                *self.psn = (*self.psn + packets(len, self.mtu)) & MASK_24;
                path.advance(*self.psn);
                drop(slot);
                return Ok(());
            }
            Err(trouble) => trouble,
        };
        Err(self.trouble(trouble, 0, false))
    }

    fn write(&mut self, request: &Request<'_>, done: &mut u32, chunk: u32) -> Outcome {
        let len = (request.len - *done).min(chunk);
        if let Err(outcome) = self.push(request, *done, len) {
            return outcome;
        }
        if len == 0 {
            self.count(0);
        }
        *done += len;
        if *done < request.len { Outcome::More } else { Outcome::Done }
    }

    /// The data of a WRITE_WITH_IMM to a QP with an SRQ; the last packet is the immediate's.
    fn place(&mut self, request: &Request<'_>, done: &mut u32) -> Outcome {
        let before = *self.psn;
        if let Err(outcome) = self.push(request, *done, request.len - *done) {
            return outcome;
        }
        // Not counted yet: the target counts them all when it executes the immediate.
        *self.psn = before;
        self.path.advance(before);
        *done = request.len;
        Outcome::More
    }

    fn read(&mut self, request: &Request<'_>, done: &mut u32, chunk: u32) -> Outcome {
        if !self.allowed(access::REMOTE_READ) {
            return self.fault(fault::ACCESS, 0, wc_status::REM_ACCESS_ERR);
        }
        let len = (request.len - *done).min(chunk);
        if len == 0 {
            self.count(0);
            return Outcome::Done;
        }
        let Some(local) = self.qp.local(request, *done, len, access::LOCAL_WRITE) else {
            return Outcome::Failed(wc_status::LOC_PROT_ERR);
        };
        let (path, qpn) = (&*self.path, self.attr.dest_qp_num);
        let addr = request.addr.wrapping_add(u64::from(*done));
        let valid = || {
            // Our own region may have been deregistered since it was looked up.
            path.ready()
                && self.qp.local(request, *done, len, access::LOCAL_WRITE).is_some()
                && path.link.peer.region.permits(
                    request.rkey,
                    path.pd,
                    request.addr,
                    u64::from(request.len),
                    access::REMOTE_READ,
                )
        };
        let link = &path.link;
        let remote = std::iter::once((addr, u64::from(len)));
        let (busy, way) = (&link.push_busy, Way::In);
        let copied = copy(&link.peer, &link.push, busy, way, qpn, &local, remote, valid).err();
        if let Some(trouble) = copied {
            let ours = self.qp.local(request, *done, len, access::LOCAL_WRITE).is_some();
            if trouble == Trouble::Invalid && self.path.ready() && !ours {
                return Outcome::Failed(wc_status::LOC_PROT_ERR);
            }
            return self.trouble(trouble, 0, false);
        }
        // The responder counts all packets of a response when it takes the request.
        if *done == 0 {
            self.count(request.len);
        }
        *done += len;
        if *done < request.len { Outcome::More } else { Outcome::Done }
    }
}

pub(super) fn is_atomic(opcode: u32) -> bool {
    matches!(opcode, wr_opcode::ATOMIC_CMP_AND_SWP | wr_opcode::ATOMIC_FETCH_AND_ADD)
}
