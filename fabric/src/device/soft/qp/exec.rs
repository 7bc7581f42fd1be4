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

use super::super::limits::RING_SEND_MAX;
use super::super::link::{MAX_CREDIT, Outbound};
use super::super::records::{Ask, Fault, Recv, fault, flag, kind};
use super::super::region::{ARMED, ARMED_SOLICITED, QpEntry, RecvRing, SETTLED};
use super::copy::{Trouble, Way, copy};
use super::recv::{Pieces, pieces};
use super::request::{Data, Request};
use super::send::{Flow, Path};
use super::{Qp, remote, ud};
use crate::abi::{
    MASK_24, QpAttr, access, mtu_bytes, qp_state, qp_type, send_flags, wc_status, wr_opcode,
};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
const PART: u32 = 4096;
/// Bytes of a part of a READ that comes back through the ring.
const READ_PART: u32 = 4096;
/// How long an initiator waits to learn what became of a message that met a QP going to ERR.
const VERDICT: Duration = Duration::from_millis(20);

/// Packets that `len` bytes take.
pub(super) fn packets(len: u32, mtu: u32) -> u32 {
    len.div_ceil(mtu).max(1)
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
        self.link.peer.region.qp(self.index).expect("checked when it was bound")
    }

    #[inline]
    fn ready(&self) -> bool {
        ready(self.entry().word.load(Ordering::SeqCst), self.incarnation)
    }

    /// Moves the responder's cursor: packets executed here.
    #[inline]
    fn advance(&self, psn: u32) {
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
            self.core.dial_later(attr.dest_qp_num);
            return silence();
        };
        let region = &link.peer.region;
        let Some(index) = region.qp_index(attr.dest_qp_num) else { return silence() };
        let Some(entry) = region.qp(index) else { return silence() };
        let word = entry.word.load(Ordering::Acquire);
        let traits = entry.traits.load(Ordering::Relaxed);
        let dest = entry.dest.load(Ordering::Relaxed) as u32;
        let incarnation = QpEntry::incarnation(word);
        if !ready(word, incarnation) || dest != self.num || traits >> 8 & 0xff != self.kind {
            return silence();
        }
        let Some(ring) = RecvRing::of(entry) else { return silence() };
        let path = Path {
            index,
            incarnation,
            pd: entry.pd.load(Ordering::Relaxed),
            recv_cq: entry.recv_cq.load(Ordering::Relaxed) as usize,
            has_srq: traits >> 16 & 1 != 0,
            ring,
            posted: entry.posted.0.load(Ordering::Acquire),
            link,
        };
        flow.path = Some(path);
        Ok(())
    }

    /// A peer that does not respond: UC does not notice.
    pub(super) fn silent(&self) -> Outcome {
        if self.kind == qp_type::UC { Outcome::Done } else { Outcome::Wait(Wait::Silence) }
    }

    fn gone(&self) -> Outcome {
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
        let (mut skip, mut left) = (u64::from(skip), u64::from(len));
        let (sges, keyed) = match request.data {
            Data::Listed(sges) => (sges, true),
            Data::Inline(sges) => (sges, false),
            Data::Copied(bytes) => {
                pieces.push(bytes.as_ptr() as u64 + skip, left);
                return Some(pieces);
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
                return None;
            }
            skip = 0;
            left -= now;
        }
        Some(pieces)
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

fn takes_receive(opcode: u32) -> bool {
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

/// Tells the target that its ring holds something; `cq` is the one that gets a completion.
#[inline]
pub(super) fn announce(link: &Outbound, cq: Option<usize>, solicited: bool) {
    // The record was published by a SeqCst store, and these are SeqCst loads: a target that sleeps,
    // or has armed the CQ, is seen to, or sees the record.
    let region = &link.peer.region;
    region.mark_active(link.remote_number);
    if let Some(cq) = cq.and_then(|cq| region.cq(cq)) {
        let armed = cq.armed.load(Ordering::SeqCst);
        if armed == ARMED || (armed == ARMED_SOLICITED && solicited) {
            link.peer.ring();
        }
    }
}

/// One step of one request.
struct Step<'a> {
    qp: &'a Arc<Qp>,
    psn: &'a mut u32,
    seq: &'a mut u32,
    attr: &'a QpAttr,
    mtu: u32,
    path: &'a mut Path,
}

impl Step<'_> {
    fn is_rc(&self) -> bool {
        self.qp.kind == qp_type::RC
    }

    /// Packets of `len` bytes are executed.
    #[inline]
    fn count(&mut self, len: u32) {
        *self.psn = (*self.psn + packets(len, self.mtu)) & MASK_24;
        self.path.advance(*self.psn);
    }

    /// Whether the target's QP allows `need` to this QP's requests.
    #[inline]
    fn allowed(&self, need: u32) -> bool {
        self.path.entry().traits.load(Ordering::Relaxed) & need == need
    }

    /// An error that is the target's too: it learns of it, unless UC hides it.
    fn fault(&mut self, what: u32, index: u64, status: u32) -> Outcome {
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
    fn trouble(&mut self, trouble: Trouble, index: u64, receive: bool) -> Outcome {
        match trouble {
            Trouble::Dead => self.qp.gone(),
            Trouble::Local => Outcome::Failed(wc_status::LOC_PROT_ERR),
            Trouble::Forbidden => {
                let peer = &self.path.link.peer;
                if !peer.ring_only.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        pid = peer.pid(),
                        "the kernel forbids copies between processes (ptrace rules): everything \
                         goes through shared memory, slower. Under Yama, start the processes by \
                         one launcher that calls PR_SET_PTRACER, or set \
                         kernel.yama.ptrace_scope=0"
                    );
                }
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
    fn push(&mut self, request: &Request<'_>, skip: u32, len: u32) -> Result<(), Outcome> {
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

    /// SEND, or WRITE with immediate: takes the peer's next receive.
    fn message(&mut self, request: &Request<'_>, done: &mut u32, chunk: u32) -> Outcome {
        let send = is_send(request.opcode);
        let left = request.len - *done;
        let len = left.min(chunk);
        // Not remembered: what the target executes moves it too.
        let number = self.path.entry().taken.0.receives.load(Ordering::Acquire);
        // A receive is needed by the first packet of a SEND and by the last one of a WRITE.
        if send || len == left {
            if number >= self.path.posted {
                self.path.posted = self.path.entry().posted.0.load(Ordering::Acquire);
            }
            if number >= self.path.posted {
                if !self.is_rc() {
                    return Outcome::Done;
                }
                let timer = (self.path.entry().traits.load(Ordering::Relaxed) >> 24) as u8;
                return Outcome::Wait(Wait::Rnr(timer));
            }
        }
        if !send {
            let before = *self.psn;
            if let Err(outcome) = self.push(request, *done, len) {
                return outcome;
            }
            *done += len;
            if len < left {
                return Outcome::More;
            }
            let outcome = self.deliver(request, number, flag::PLACED | flag::WRITE, 0, 0);
            if let Outcome::Wait(_) = outcome {
                // The last part is done again: its receive was not taken.
                *done -= len;
                *self.psn = before;
                self.path.advance(before);
            } else if len == 0 {
                self.count(0);
            }
            return outcome;
        }
        let region = &self.path.link.peer.region;
        let capacity = self.path.ring.head(region, number).map_or(0, |head| head.total);
        if capacity < u64::from(request.len) {
            return self.fault(fault::LENGTH, number, wc_status::REM_INV_REQ_ERR);
        }
        let Some(remote) = pieces(region, &self.path.ring, number, self.path.pd, *done, len) else {
            return self.fault(fault::PROTECTION, number, wc_status::REM_OP_ERR);
        };
        let ring_only = self.path.link.peer.ring_only.load(Ordering::Relaxed);
        if ring_only || (*done == 0 && len == left && len <= RING_SEND_MAX) {
            let len = len.min(PART);
            let more = if len < left { flag::MORE } else { 0 };
            let outcome = self.deliver(request, number, more, *done, len);
            if matches!(outcome, Outcome::Done) {
                *done += len;
                self.count(len);
                if more != 0 {
                    return Outcome::More;
                }
            }
            return outcome;
        }
        let Some(local) = self.qp.local(request, *done, len, 0) else {
            return Outcome::Failed(wc_status::LOC_PROT_ERR);
        };
        let (path, qpn) = (&*self.path, self.attr.dest_qp_num);
        let valid = || {
            path.ready()
                && pieces(&path.link.peer.region, &path.ring, number, path.pd, *done, len).is_some()
        };
        let link = Arc::clone(&path.link);
        let way = Way::Out;
        let copied =
            copy(&link.peer, &link.push, &link.push_busy, way, qpn, &local, remote.iter(), valid);
        let slot = match copied {
            Ok(slot) => slot,
            Err(trouble) => return self.trouble(trouble, number, true),
        };
        if len < left {
            self.count(len);
            *done += len;
            return Outcome::More;
        }
        let outcome = self.publish(request, number, flag::PLACED, 0, 0);
        if matches!(outcome, Outcome::Done) {
            self.count(len);
            *done += len;
            drop(slot);
            return self.verdict(number);
        }
        outcome
    }

    /// Publishes the record of a message, and makes sure of it.
    fn deliver(
        &mut self,
        request: &Request<'_>,
        number: u64,
        flags: u32,
        skip: u32,
        len: u32,
    ) -> Outcome {
        match self.publish(request, number, flags, skip, len) {
            Outcome::Done => self.verdict(number),
            outcome => outcome,
        }
    }

    /// Puts the record of a message, and bytes `skip .. skip + len` of its payload, into the ring.
    #[inline]
    fn publish(
        &mut self,
        request: &Request<'_>,
        number: u64,
        flags: u32,
        skip: u32,
        len: u32,
    ) -> Outcome {
        let solicited = request.is(send_flags::SOLICITED);
        let imm =
            matches!(request.opcode, wr_opcode::SEND_WITH_IMM | wr_opcode::RDMA_WRITE_WITH_IMM);
        let flags =
            flags | if imm { flag::IMM } else { 0 } | if solicited { flag::SOLICITED } else { 0 };
        let record = Recv {
            qpn: self.attr.dest_qp_num,
            incarnation: self.path.incarnation,
            index: number as u32,
            len: if flags & flag::PLACED != 0 { request.len } else { len },
            imm: request.imm,
            flags,
        };
        super::copy::stop_point("before-publish");
        let link = &self.path.link;
        let mut tx = link.tx.lock();
        // Looked up under the ring's lock, for which `dereg` waits.
        let Some(local) = self.qp.local(request, skip, len, 0) else {
            return Outcome::Failed(wc_status::LOC_PROT_ERR);
        };
        let size = Recv::HEAD + len as usize;
        let Some(room) = tx.reserve_or_wait(size) else { return Outcome::Wait(Wait::Room) };
        // SAFETY: reserved; the pieces are registered, or inline data.
        unsafe {
            record.put(room);
            gather(&local, room.add(Recv::HEAD));
        }
        tx.publish(kind::RECV, size);
        drop(tx);
        if flags & flag::MORE == 0 {
            self.path.entry().taken.0.receives.store(number + 1, Ordering::Release);
        }
        announce(link, Some(self.path.recv_cq), solicited);
        Outcome::Done
    }

    /// A message is in the ring. If the target's QP left its state meanwhile, what it has
    /// delivered says whether this one was among it.
    #[inline]
    fn verdict(&mut self, number: u64) -> Outcome {
        if self.path.ready() {
            return Outcome::Done;
        }
        self.ask_verdict(number)
    }

    #[cold]
    fn ask_verdict(&mut self, number: u64) -> Outcome {
        let entry = self.path.entry();
        let deadline = Instant::now() + VERDICT;
        loop {
            let word = entry.word.load(Ordering::SeqCst);
            if QpEntry::incarnation(word) == self.path.incarnation && word & SETTLED != 0 {
                if number < entry.settled.load(Ordering::Relaxed) {
                    return Outcome::Done;
                }
                return self.qp.gone();
            }
            let other = QpEntry::incarnation(word) != self.path.incarnation;
            if other || !self.path.link.usable() || Instant::now() > deadline {
                return self.qp.gone();
            }
            std::thread::yield_now();
        }
    }

    /// Puts a request that the target executes into the ring; with forbidden copies, part by
    /// part.
    fn ask(&mut self, request: &Request<'_>, done: &mut u32, ring_only: bool) -> Outcome {
        let opcode = request.opcode;
        let read = opcode == wr_opcode::RDMA_READ;
        let in_ring = match opcode {
            wr_opcode::RDMA_READ | wr_opcode::ATOMIC_CMP_AND_SWP => 0,
            wr_opcode::ATOMIC_FETCH_AND_ADD => 0,
            wr_opcode::RDMA_WRITE_WITH_IMM if !ring_only => 0,
            _ if ring_only => (request.len - *done).min(PART),
            _ if request.len <= RING_SEND_MAX => request.len,
            _ => 0,
        };
        let part = match opcode {
            wr_opcode::RDMA_READ => (request.len - *done).min(READ_PART),
            _ if ring_only => in_ring,
            _ => request.len,
        };
        let listed = is_send(opcode) && in_ring == 0 && request.len > 0;
        let last = !(ring_only && *done + part < request.len && !is_atomic(opcode));
        let back = if read { (part as usize).div_ceil(64) as u32 * 2 + 2 } else { 1 };
        let link = &self.path.link;
        if link.credit.load(Ordering::Relaxed) + back > MAX_CREDIT {
            return Outcome::Wait(Wait::Room);
        }
        let imm = matches!(opcode, wr_opcode::SEND_WITH_IMM | wr_opcode::RDMA_WRITE_WITH_IMM);
        let solicited = request.is(send_flags::SOLICITED);
        let mut flags = opcode << 16;
        for (set, bit) in [
            (imm, flag::IMM),
            (solicited, flag::SOLICITED),
            (listed, flag::LISTED),
            (!last, flag::MORE),
            (opcode == wr_opcode::RDMA_WRITE_WITH_IMM && !ring_only, flag::PLACED),
        ] {
            flags |= if set { bit } else { 0 };
        }
        let len = if ring_only || read { part } else { request.len };
        let record = Ask {
            qpn: self.attr.dest_qp_num,
            incarnation: self.path.incarnation,
            src: self.qp.num,
            src_incarnation: self.qp.incarnation(),
            seq: self.seq.wrapping_add(1),
            psn: *self.psn,
            len,
            imm: request.imm,
            flags,
            rkey: request.rkey,
            addr: request.addr.wrapping_add(if is_atomic(opcode) { 0 } else { (*done).into() }),
            compare_add: request.compare_add,
            swap: request.swap,
            credit: back,
            offset: *done,
            packets: if is_atomic(opcode) { 1 } else { packets(len, self.mtu) },
            total: request.len,
        };
        let mut tx = link.tx.lock();
        let (skip, whole) = if listed { (0, request.len) } else { (*done, in_ring) };
        let Some(local) = self.qp.local(request, if whole == 0 { 0 } else { skip }, whole, 0)
        else {
            return Outcome::Failed(wc_status::LOC_PROT_ERR);
        };
        let list: &[crate::abi::Sge] = match request.data {
            Data::Listed(sges) if listed => sges,
            _ => &[],
        };
        let tail = if listed { list.len() * 16 } else { in_ring as usize };
        let size = Ask::HEAD + tail;
        let Some(room) = tx.reserve_or_wait(size) else { return Outcome::Wait(Wait::Room) };
        // SAFETY: reserved; the pieces are registered, or inline data.
        unsafe {
            record.put(room);
            let mut to = room.add(Ask::HEAD);
            if listed {
                for sge in list {
                    to.cast::<u64>().write_unaligned(sge.addr.to_le());
                    to.add(8).cast::<u32>().write_unaligned(sge.length.to_le());
                    to.add(12).cast::<u32>().write_unaligned(sge.lkey.to_le());
                    to = to.add(16);
                }
            } else {
                gather(&local, to);
            }
        }
        tx.publish(kind::ASK, size);
        drop(tx);
        *self.seq = record.seq;
        link.credit.fetch_add(back, Ordering::Relaxed);
        self.qp.core.unanswered.fetch_add(1, Ordering::Relaxed);
        *self.psn = (*self.psn + record.packets) & MASK_24;
        *done += part.min(request.len - *done);
        // A receive of an SRQ is taken when its owner polls, or waits for it; the rest must not
        // depend on that.
        let receives = takes_receive(opcode);
        announce(link, receives.then_some(self.path.recv_cq), solicited);
        if !receives || ring_only {
            link.peer.urge();
        }
        if last { Outcome::Sent(record.seq) } else { Outcome::More }
    }
}

pub(super) fn is_atomic(opcode: u32) -> bool {
    matches!(opcode, wr_opcode::ATOMIC_CMP_AND_SWP | wr_opcode::ATOMIC_FETCH_AND_ADD)
}
