//! What a context does with what comes in its rings: the target's side of requests, and the
//! initiator's side of answers. One thread at a time reads a ring (the ring's lock).

use super::super::core::Core;
use super::super::cq::Sink;
use super::super::link::{Inbound, Outbound, Receiver};
use super::super::records::{Answer, Ask, DROPPED, Datagram, Fault, RNR, Recv, fault, flag, kind};
use super::super::region::{QpEntry, SETTLED};
use super::super::ring::{Found, Producer};
use super::Qp;
use super::copy::{Trouble, Way, copy};
use super::recv::{Pieces, RecvQueue, Taken};
use crate::abi::{
    MASK_24, Wc, access, event_type, qp_state, qp_type, wc_flags, wc_opcode, wc_status, wr_opcode,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Records that one thread takes from one ring before it looks after others.
const BATCH: u32 = 256;

impl Core {
    /// Takes requests of a link; `all`: until the ring is empty, waiting for whoever reads it now.
    pub(in super::super) fn drain_requests(
        self: &Arc<Self>,
        link: &Arc<Inbound>,
        all: bool,
        sink: &mut Sink<'_>,
    ) {
        let mut rx = if all {
            link.rx.lock()
        } else if let Some(rx) = link.rx.try_lock() {
            rx
        } else {
            // Somebody reads it, but may have looked for the last time.
            self.region.mark_active(link.number);
            return;
        };
        if link.broken.load(Ordering::Relaxed) {
            return;
        }
        let Receiver { requests, responses, last } = &mut *rx;
        let mut answered = false;
        // Even `all` ends: what comes while we drain was not there when it was called.
        let limit = if all { 1 << 16 } else { BATCH };
        for taken in 0.. {
            if taken == limit {
                self.region.mark_active(link.number);
                break;
            }
            match requests.peek() {
                Found::Record(kind, body) => {
                    answered |= self.take(link, kind, body, responses, last, sink);
                    requests.advance();
                }
                Found::Empty => break,
                Found::Broken => {
                    link.broken.store(true, Ordering::Relaxed);
                    tracing::error!(pid = link.peer.pid(), "a peer's ring holds garbage: closed");
                    break;
                }
            }
        }
        if requests.wanted() {
            link.peer.ring();
        }
        drop(rx);
        if answered {
            let region = &link.peer.region;
            region.mark_active(link.remote_number);
            // Whoever waits for an answer polls, or has armed a CQ or a stalled queue.
            link.peer.urge();
        }
    }

    /// The last look at the ring of a peer that is gone: what it completed is delivered.
    pub(in super::super) fn drain_last(self: &Arc<Self>, link: &Arc<Inbound>) {
        self.drain_requests(link, true, &mut Sink::none());
    }

    /// Handles one request; whether it was answered.
    #[inline]
    fn take(
        self: &Arc<Self>,
        link: &Arc<Inbound>,
        what: u8,
        body: &[u8],
        responses: &mut Producer,
        last: &mut Option<Arc<Qp>>,
        sink: &mut Sink<'_>,
    ) -> bool {
        match what {
            kind::RECV => {
                let Some((record, payload)) = Recv::take(body) else { return false };
                // A QP that is destroyed says so before it waits for this ring's lock.
                if last.as_ref().is_none_or(|qp| qp.num != record.qpn || qp.is_dead()) {
                    *last = self.qp(record.qpn);
                }
                if let Some(qp) = last {
                    qp.deliver(&record, payload, sink);
                }
            }
            kind::FAULT => {
                if let Some((record, _)) = Fault::take(body)
                    && let Some(qp) = self.qp(record.qpn)
                {
                    qp.faulted(&record);
                }
            }
            kind::DATAGRAM => {
                if let Some((record, payload)) = Datagram::take(body)
                    && let Some(qp) = self.qp(record.qpn)
                {
                    qp.datagram(&record, payload);
                }
            }
            kind::ASK => {
                let Some((ask, payload)) = Ask::take(body) else { return false };
                let reply = match self.qp(ask.qpn) {
                    Some(qp) => qp.asked(Some(link), &ask, payload),
                    None => Reply::status(wc_status::RETRY_EXC_ERR),
                };
                answer(responses, &ask, &reply);
                return true;
            }
            _ => {}
        }
        false
    }

    /// Takes answers of a link.
    pub(in super::super) fn drain_answers(self: &Arc<Self>, link: &Arc<Outbound>, last: bool) {
        let mut rx = if last {
            link.rx.lock()
        } else if let Some(rx) = link.rx.try_lock() {
            rx
        } else {
            self.region.mark_active(link.number);
            return;
        };
        while !link.broken.load(Ordering::Relaxed) {
            match rx.peek() {
                Found::Record(kind::ANSWER, body) => {
                    if let Some((answer, data)) = Answer::take(body) {
                        let credit = link.credit.load(Ordering::Relaxed).min(answer.credit);
                        link.credit.fetch_sub(credit, Ordering::Relaxed);
                        self.answered();
                        if let Some(qp) = self.qp(answer.qpn) {
                            qp.answered(&answer, data);
                        }
                    }
                    rx.advance();
                }
                Found::Empty => break,
                Found::Record(..) | Found::Broken => {
                    link.broken.store(true, Ordering::Relaxed);
                    tracing::error!(pid = link.peer.pid(), "a peer's ring holds garbage: closed");
                }
            }
        }
    }

    fn answered(&self) {
        let less = |count: u32| count.checked_sub(1);
        let _ = self.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// What a target answers.
pub(super) struct Reply {
    pub(super) status: u32,
    pub(super) value: u64,
    pub(super) data: Pieces,
}

impl Reply {
    pub(super) fn status(status: u32) -> Reply {
        Reply { status, value: 0, data: Pieces::new() }
    }

    pub(super) fn value(status: u32, value: u64) -> Reply {
        Reply { value, ..Reply::status(status) }
    }
}

fn answer(responses: &mut Producer, ask: &Ask, reply: &Reply) {
    let len: u64 = reply.data.iter().map(|(_, len)| len).sum();
    let record = Answer {
        qpn: ask.src,
        incarnation: ask.src_incarnation,
        seq: ask.seq,
        status: reply.status,
        value: reply.value,
        credit: ask.credit,
        offset: ask.offset,
    };
    let size = Answer::HEAD + len as usize;
    // The initiator has set cells aside, so there is room unless it broke its word.
    let Some(room) = responses.reserve(size) else { return };
    // SAFETY: reserved; the pieces are registered, and `dereg` waits for the ring's lock.
    unsafe {
        record.put(room);
        super::exec::gather(&reply.data, room.add(Answer::HEAD));
    }
    responses.publish(kind::ANSWER, size);
}

impl Qp {
    /// Whether a record is for this incarnation of the QP, and the QP still takes it: also at
    /// ERR, until it is settled.
    #[inline]
    fn takes(&self, incarnation: u32) -> bool {
        let word = self.entry().word.load(Ordering::Acquire);
        QpEntry::incarnation(word) == incarnation
            && word & SETTLED == 0
            && !matches!(QpEntry::state(word), qp_state::RESET | qp_state::INIT)
    }

    /// A message for the receive whose turn it is.
    #[inline]
    fn deliver(self: &Arc<Self>, record: &Recv, payload: &[u8], sink: &mut Sink<'_>) {
        if !self.takes(record.incarnation) || self.srq.is_some() {
            return;
        }
        let mut rq = self.rq.lock();
        let Some(receive) = rq.front() else { return };
        if receive.number as u32 != record.index {
            tracing::warn!(qp = self.num, "a message for a receive that is not next");
            return;
        }
        let placed = record.flags & flag::PLACED != 0;
        let mut status = wc_status::SUCCESS;
        let mut len = record.len;
        if !placed {
            let bytes = payload.get(..record.len as usize).unwrap_or(payload);
            let skip = rq.filled;
            if rq.scatter(&self.core.region, receive.number, self.pd, skip, bytes).is_none() {
                status = wc_status::LOC_PROT_ERR;
            }
            len = skip.saturating_add(bytes.len() as u32);
            if record.flags & flag::MORE != 0 && status == wc_status::SUCCESS {
                rq.filled = len;
                return;
            }
        }
        let kind = Message { flags: record.flags, imm: record.imm, len };
        rq.end();
        // Under the queue's lock, so that it stands before what a flush adds.
        let solicited = record.flags & flag::SOLICITED != 0;
        sink.push(&self.recv_cq, solicited, || self.completion(receive.wr_id, status, &kind));
        drop(rq);
        if status != wc_status::SUCCESS {
            self.fail(event_type::QP_FATAL);
        }
    }

    /// Ends the receive whose turn it is.
    #[inline]
    pub(super) fn end(&self, rq: &mut RecvQueue, receive: Taken, status: u32, message: &Message) {
        rq.end();
        self.received(receive.wr_id, status, message);
    }

    pub(super) fn received(&self, wr_id: u64, status: u32, message: &Message) {
        let wc = self.completion(wr_id, status, message);
        self.recv_cq.push(wc, message.flags & flag::SOLICITED != 0);
    }

    #[inline]
    fn completion(&self, wr_id: u64, status: u32, message: &Message) -> Wc {
        let imm = message.flags & flag::IMM != 0;
        let opcode = if message.flags & flag::WRITE != 0 {
            wc_opcode::RECV_RDMA_WITH_IMM
        } else {
            wc_opcode::RECV
        };
        Wc {
            wr_id,
            status,
            opcode,
            byte_len: message.len,
            imm_data: if imm { message.imm } else { 0 },
            qp_num: self.num,
            wc_flags: if imm { wc_flags::WITH_IMM } else { 0 },
            ..Wc::default()
        }
    }

    /// The peer found an error that is ours too.
    fn faulted(self: &Arc<Self>, record: &Fault) {
        if !self.takes(record.incarnation) {
            return;
        }
        let status = match record.what {
            fault::LENGTH => wc_status::LOC_LEN_ERR,
            fault::PROTECTION => wc_status::LOC_PROT_ERR,
            fault::ACCESS => return self.fail(event_type::QP_ACCESS_ERR),
            _ => return self.fail(event_type::QP_REQ_ERR),
        };
        let mut rq = self.rq.lock();
        if let Some(receive) = rq.front().filter(|r| r.number as u32 == record.index) {
            self.end(&mut rq, receive, status, &Message::default());
        }
        drop(rq);
        self.fail(event_type::QP_FATAL);
    }

    /// A request that we execute; it came over a link, or else from another machine.
    pub(super) fn asked(
        self: &Arc<Self>,
        link: Option<&Arc<Inbound>>,
        ask: &Ask,
        payload: &[u8],
    ) -> Reply {
        let word = self.entry().word.load(Ordering::Acquire);
        if QpEntry::incarnation(word) != ask.incarnation
            || !matches!(QpEntry::state(word), qp_state::RTR | qp_state::RTS | qp_state::SQD)
        {
            return Reply::status(wc_status::RETRY_EXC_ERR);
        }
        let cursor = &self.entry().taken.0;
        let epsn = cursor.epsn.load(Ordering::Acquire) & MASK_24;
        if epsn != ask.psn && self.kind == qp_type::RC {
            return Reply::status(DROPPED);
        }
        let opcode = ask.flags >> 16;
        let reply = match opcode {
            wr_opcode::ATOMIC_CMP_AND_SWP | wr_opcode::ATOMIC_FETCH_AND_ADD => self.atomic(ask),
            wr_opcode::RDMA_READ => self.part_of_read(ask),
            wr_opcode::RDMA_WRITE => self.part_of_write(ask, payload),
            wr_opcode::RDMA_WRITE_WITH_IMM if ask.flags & flag::MORE != 0 => {
                self.part_of_write(ask, payload)
            }
            wr_opcode::RDMA_WRITE_WITH_IMM => self.immediate(ask, payload),
            _ => match link {
                Some(link) => self.shared_receive(link, ask, payload),
                None => self.part_of_message(ask, payload),
            },
        };
        match reply.status {
            wc_status::SUCCESS => {
                let next = (ask.psn.wrapping_add(ask.packets)) & MASK_24;
                cursor.epsn.store(next, Ordering::Release);
            }
            _ if self.kind == qp_type::UC => {}
            RNR | DROPPED => {}
            wc_status::REM_ACCESS_ERR => self.fail(event_type::QP_ACCESS_ERR),
            wc_status::REM_INV_REQ_ERR => self.fail(event_type::QP_REQ_ERR),
            _ => self.fail(event_type::QP_FATAL),
        }
        reply
    }

    /// Whether this QP's peer may do `need` to `len` bytes at `addr`.
    fn grants(&self, rkey: u32, addr: u64, len: u64, need: u32) -> bool {
        self.entry().traits.load(Ordering::Relaxed) & need == need
            && (len == 0 || self.core.region.permits(rkey, self.pd, addr, len, need))
    }

    /// The same for all of the message that `ask` is a part of: nothing of a message lands that is
    /// not allowed as a whole.
    fn grants_whole(&self, ask: &Ask, need: u32) -> bool {
        let first = ask.addr.wrapping_sub(ask.offset.into());
        self.grants(ask.rkey, first, ask.total.into(), need)
    }

    fn atomic(&self, ask: &Ask) -> Reply {
        if !ask.addr.is_multiple_of(8) {
            return Reply::status(wc_status::REM_INV_REQ_ERR);
        }
        if !self.grants(ask.rkey, ask.addr, 8, access::REMOTE_ATOMIC) {
            return Reply::status(wc_status::REM_ACCESS_ERR);
        }
        // SAFETY: eight aligned bytes of a region registered for remote atomics now; `dereg` waits
        // for the ring's lock. The program accesses such memory by atomics only.
        let word = unsafe { AtomicU64::from_ptr(ask.addr as *mut u64) };
        let before = if ask.flags >> 16 == wr_opcode::ATOMIC_FETCH_AND_ADD {
            word.fetch_add(ask.compare_add, Ordering::SeqCst)
        } else {
            match word.compare_exchange(
                ask.compare_add,
                ask.swap,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(before) | Err(before) => before,
            }
        };
        Reply::value(wc_status::SUCCESS, before)
    }

    /// A part of a READ, where copies are forbidden.
    fn part_of_read(&self, ask: &Ask) -> Reply {
        if !self.grants_whole(ask, access::REMOTE_READ) {
            return Reply::status(wc_status::REM_ACCESS_ERR);
        }
        let mut reply = Reply::status(wc_status::SUCCESS);
        if ask.len > 0 {
            reply.data.push(ask.addr, ask.len.into());
        }
        reply
    }

    /// A part of a WRITE, where copies are forbidden.
    fn part_of_write(&self, ask: &Ask, payload: &[u8]) -> Reply {
        let fits = u64::from(ask.offset) + payload.len() as u64 <= u64::from(ask.total);
        if !fits || !self.grants_whole(ask, access::REMOTE_WRITE) {
            return Reply::status(wc_status::REM_ACCESS_ERR);
        }
        // SAFETY: registered for remote writing now; `dereg` waits for the ring's lock. Raw copy.
        unsafe {
            std::ptr::copy_nonoverlapping(payload.as_ptr(), ask.addr as *mut u8, payload.len());
        }
        Reply::status(wc_status::SUCCESS)
    }

    /// The immediate of a WRITE: takes a receive, of the SRQ or our own.
    fn immediate(&self, ask: &Ask, payload: &[u8]) -> Reply {
        if !self.grants(ask.rkey, ask.addr, payload.len() as u64, access::REMOTE_WRITE) {
            return Reply::status(wc_status::REM_ACCESS_ERR);
        }
        let len = if ask.flags & flag::PLACED != 0 {
            ask.len
        } else {
            ask.offset.saturating_add(payload.len() as u32)
        };
        let message = Message { flags: ask.flags & 0xffff | flag::WRITE, imm: ask.imm, len };
        let write = || {
            let _ = self.part_of_write(ask, payload);
        };
        let taken = match &self.srq {
            Some(srq) => srq.take(|_, receive| {
                write();
                self.received(receive.wr_id, wc_status::SUCCESS, &message);
            }),
            None => {
                let mut rq = self.rq.lock();
                rq.front().map(|receive| {
                    write();
                    self.end(&mut rq, receive, wc_status::SUCCESS, &message);
                    self.entry().taken.0.receives.store(rq.done, Ordering::Release);
                })
            }
        };
        if taken.is_some() { Reply::status(wc_status::SUCCESS) } else { self.not_ready(ask) }
    }

    pub(super) fn not_ready(&self, ask: &Ask) -> Reply {
        let timer = self.entry().traits.load(Ordering::Relaxed) >> 24;
        Reply::value(RNR, u64::from(ask.psn) << 32 | u64::from(timer))
    }

    /// A SEND to an SRQ.
    fn shared_receive(&self, link: &Arc<Inbound>, ask: &Ask, payload: &[u8]) -> Reply {
        let Some(srq) = &self.srq else { return Reply::status(wc_status::REM_INV_REQ_ERR) };
        let region = &self.core.region;
        // Where copies are forbidden a message comes in parts, and takes its receive whole.
        let mut rq = self.rq.lock();
        let in_parts = ask.len < ask.total;
        let listed = ask.flags & flag::LISTED != 0;
        if in_parts {
            rq.parts.truncate(ask.offset as usize);
            if rq.parts.len() != ask.offset as usize {
                return Reply::status(wc_status::REM_INV_REQ_ERR);
            }
            rq.parts.extend_from_slice(payload);
            if ask.flags & flag::MORE != 0 {
                return Reply::status(wc_status::SUCCESS);
            }
        }
        let bytes = if in_parts { &rq.parts[..] } else { payload };
        let taken = srq.offer(|queue, receive| {
            let message = Message { flags: ask.flags & 0xffff, imm: ask.imm, len: ask.total };
            let fits = queue.capacity(region, receive.number) >= u64::from(ask.total);
            let (ours, theirs) = if !fits {
                (wc_status::LOC_LEN_ERR, wc_status::REM_INV_REQ_ERR)
            } else if listed {
                self.pull(link, queue, receive, srq.pd, ask, payload)?
            } else {
                match queue.scatter(region, receive.number, srq.pd, 0, bytes) {
                    Some(()) => (wc_status::SUCCESS, wc_status::SUCCESS),
                    None => (wc_status::LOC_PROT_ERR, wc_status::REM_OP_ERR),
                }
            };
            self.received(receive.wr_id, ours, &message);
            Some(theirs)
        });
        if taken.is_some() {
            rq.parts = Vec::new();
        }
        match taken {
            Some(Some(status)) => Reply::status(status),
            Some(None) => Reply::status(DROPPED),
            None => self.not_ready(ask),
        }
    }

    /// Copies a message out of its sender's memory into a receive: what we and the sender
    /// complete it with. `None` where the sender is gone, its process or its queue pair, before all
    /// of it was here: then nothing has been received.
    fn pull(
        &self,
        link: &Arc<Inbound>,
        queue: &RecvQueue,
        receive: Taken,
        pd: u32,
        ask: &Ask,
        list: &[u8],
    ) -> Option<(u32, u32)> {
        let ours = |status| Some((status, wc_status::REM_OP_ERR));
        let region = &self.core.region;
        let Some(local) = queue.pieces(region, receive.number, pd, 0, ask.len) else {
            return ours(wc_status::LOC_PROT_ERR);
        };
        let mut remote = Pieces::new();
        let mut keys = [0u32; super::super::limits::MAX_SGE];
        for (sge, key) in list.chunks_exact(16).zip(&mut keys) {
            let word = |at: usize| u64::from_le_bytes(sge[at..at + 8].try_into().unwrap_or([0; 8]));
            let (addr, rest) = (word(0), word(8));
            *key = (rest >> 32) as u32;
            remote.push(addr, rest & 0xffff_ffff);
        }
        let total: u64 = remote.iter().map(|(_, len)| len).sum();
        let theirs = &link.peer.region;
        let sender = theirs.qp_index(ask.src).and_then(|index| theirs.qp(index));
        let Some(sender) = sender.filter(|_| total == u64::from(ask.len)) else {
            return ours(wc_status::LOC_QP_OP_ERR);
        };
        let sends = || {
            let word = sender.word.load(Ordering::SeqCst);
            QpEntry::incarnation(word) == ask.src_incarnation
                && matches!(QpEntry::state(word), qp_state::RTS | qp_state::SQD)
        };
        let valid = || {
            let pd = sender.pd.load(Ordering::Relaxed);
            sends()
                && remote
                    .iter()
                    .zip(&keys)
                    .all(|((addr, len), key)| len == 0 || theirs.permits(*key, pd, addr, len, 0))
                && queue
                    .pieces(
                        region,
                        receive.number,
                        self.srq.as_ref().map_or(0, |s| s.pd),
                        0,
                        ask.len,
                    )
                    .is_some()
        };
        let (busy, way) = (&link.pull_busy, Way::In);
        match copy(&link.peer, &link.pull, busy, way, ask.src, &local, remote.iter(), valid) {
            Ok(slot) => {
                drop(slot);
                Some((wc_status::SUCCESS, wc_status::SUCCESS))
            }
            Err(Trouble::Local) => ours(wc_status::LOC_PROT_ERR),
            Err(Trouble::Dead) => None,
            Err(Trouble::Remote | Trouble::Invalid) if !sends() => None,
            Err(Trouble::Remote | Trouble::Invalid) => {
                Some((wc_status::LOC_QP_OP_ERR, wc_status::LOC_PROT_ERR))
            }
            Err(Trouble::Forbidden) => ours(wc_status::LOC_QP_OP_ERR),
        }
    }
}

/// What a completion says of a message.
#[derive(Clone, Copy, Default)]
pub(super) struct Message {
    pub(super) flags: u32,
    pub(super) imm: u32,
    pub(super) len: u32,
}
