//! Queue pairs whose peer is on another machine: what travels over a connection (`tcp`).
//!
//! The initiator cuts a request into parts of at most [`MAX_PART`] bytes. Each says where in the
//! message it stands and which packets it has; the target executes the parts in order, under the
//! checks of that moment, and answers each (those of UC excepted). What is behind a part that was
//! not executed is out of sequence, and dropped. Nothing is kept for a retransmission: TCP sees to
//! that, and a request that met no receive is sent again from the program's memory.
//!
//! Before the first request the initiator asks for the peer's incarnation, which every part names:
//! a queue pair that was reset takes nothing that was meant for it before.

use super::super::core::Core;
use super::super::records::{Answer, Ask, Datagram, flag};
use super::super::region::QpEntry;
use super::super::tcp::{self, Conn, Frame, HEAD, MAX_PART, Reach, answer_bytes, kind};
use super::Qp;
use super::exec::{Outcome, Wait, gather, is_atomic, packets};
use super::recv::{Held, RecvQueue};
use super::request::Request;
use super::respond::{Message, Reply};
use super::send::{Flow, patience};
use crate::abi::{
    AhAttr, MASK_24, QpAttr, access, mtu_bytes, qp_state, qp_type, send_flags, wc_status, wr_opcode,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What is known of a peer on another machine.
#[derive(Default)]
pub(super) enum Remote {
    #[default]
    Unbound,
    /// It was asked whether it is ready.
    Asked(Arc<Conn>),
    /// It is not.
    Refused,
    /// It is, in this incarnation.
    Bound(Arc<Conn>, u32),
}

impl Remote {
    /// Whether the peer is reached over `conn`.
    pub(super) fn is_over(&self, conn: &Arc<Conn>) -> bool {
        match self {
            Remote::Asked(own) | Remote::Bound(own, _) => Arc::ptr_eq(own, conn),
            Remote::Unbound | Remote::Refused => false,
        }
    }
}

/// Sends the next part, of at most `chunk` bytes, behind the first `done`.
pub(super) fn exec(
    qp: &Arc<Qp>,
    flow: &mut Flow,
    attr: &QpAttr,
    request: &Request<'_>,
    done: &mut u32,
    chunk: u32,
) -> Outcome {
    let (conn, incarnation) = match bound(qp, flow, attr, *done) {
        Ok(bound) => bound,
        Err(outcome) => return outcome,
    };
    let opcode = request.opcode;
    let atomic = is_atomic(opcode);
    let fetches = atomic || opcode == wr_opcode::RDMA_READ;
    if *done == 0 {
        let fenced = request.is(send_flags::FENCE) && flow.unanswered > 0;
        let many = fetches && flow.unanswered >= u32::from(attr.max_rd_atomic.max(1));
        if fenced || many {
            return Outcome::Wait(Wait::Answer);
        }
        // All of its memory, before any part of it travels.
        let need = if fetches { access::LOCAL_WRITE } else { 0 };
        if qp.local(request, 0, request.len, need).is_none() {
            return Outcome::Failed(wc_status::LOC_PROT_ERR);
        }
    }
    let len = if atomic { request.len } else { (request.len - *done).min(chunk).min(MAX_PART) };
    let last = *done + len >= request.len;
    let imm = matches!(opcode, wr_opcode::SEND_WITH_IMM | wr_opcode::RDMA_WRITE_WITH_IMM);
    let mut flags = opcode << 16;
    for (set, bit) in [
        (imm, flag::IMM),
        (request.is(send_flags::SOLICITED), flag::SOLICITED),
        (!last, flag::MORE),
    ] {
        flags |= if set { bit } else { 0 };
    }
    let mtu = mtu_bytes(attr.path_mtu).unwrap_or(4096);
    let reliable = qp.kind == qp_type::RC;
    let ask = Ask {
        qpn: attr.dest_qp_num,
        incarnation,
        src: qp.num,
        src_incarnation: qp.incarnation(),
        seq: flow.seq.wrapping_add(1),
        psn: flow.psn,
        len,
        imm: request.imm,
        flags,
        rkey: request.rkey,
        addr: request.addr.wrapping_add((*done).into()),
        compare_add: request.compare_add,
        swap: request.swap,
        credit: if reliable { answer_bytes(opcode, len) } else { 0 },
        offset: *done,
        packets: if atomic { 1 } else { packets(len, mtu) },
        total: request.len,
    };
    let carried = if fetches { 0 } else { len };
    let size = Ask::HEAD + carried as usize;
    let mut tx = conn.tx.lock();
    if !tx.admits(HEAD + size, ask.credit) {
        return Outcome::Wait(Wait::Room);
    }
    // Looked up under the connection's lock, for which `dereg` waits.
    let Some(local) = qp.local(request, *done, carried, 0) else {
        return Outcome::Failed(wc_status::LOC_PROT_ERR);
    };
    let room = tx.reserve(size);
    // SAFETY: reserved; the pieces are registered, or inline data, and hold `carried` bytes.
    unsafe {
        ask.put(room);
        gather(&local, room.add(Ask::HEAD));
        tx.publish(kind::ASK, size, ask.credit);
    }
    conn.flush(&mut tx);
    drop(tx);
    flow.seq = ask.seq;
    flow.psn = (flow.psn + ask.packets) & MASK_24;
    *done += len;
    match (last, reliable) {
        (false, _) => Outcome::More,
        (true, true) => Outcome::Sent(ask.seq),
        (true, false) => Outcome::Done,
    }
}

/// The connection to the peer, and the peer's incarnation; what to wait for where one of them is
/// not known.
fn bound(
    qp: &Arc<Qp>,
    flow: &mut Flow,
    attr: &QpAttr,
    done: u32,
) -> Result<(Arc<Conn>, u32), Outcome> {
    match &flow.remote {
        Remote::Bound(conn, incarnation) if !conn.lost() => {
            return Ok((Arc::clone(conn), *incarnation));
        }
        // What was sent is lost with the connection, and fails in a moment (`connection_lost`).
        Remote::Bound(..) if done > 0 || flow.unanswered > 0 => {
            return Err(Outcome::Wait(Wait::Answer));
        }
        Remote::Asked(conn) if !conn.lost() => return Err(Outcome::Wait(Wait::Room)),
        Remote::Refused => {
            flow.remote = Remote::Unbound;
            return Err(qp.silent());
        }
        Remote::Unbound | Remote::Asked(_) | Remote::Bound(..) => {}
    }
    flow.remote = Remote::Unbound;
    match reach(&qp.core, &attr.ah_attr) {
        Reach::Up(conn) => {
            conn.depend(patience(attr));
            let ask = Ask {
                qpn: attr.dest_qp_num,
                src: qp.num,
                src_incarnation: qp.incarnation(),
                flags: qp.kind,
                ..Ask::default()
            };
            let mut tx = conn.tx.lock();
            if tx.admits(HEAD + Ask::HEAD, 0) {
                let room = tx.reserve(Ask::HEAD);
                // SAFETY: reserved.
                unsafe {
                    ask.put(room);
                    tx.publish(kind::BIND, Ask::HEAD, 0);
                }
                conn.flush(&mut tx);
                drop(tx);
                flow.remote = Remote::Asked(conn);
            }
            Err(Outcome::Wait(Wait::Room))
        }
        Reach::Dialing => Err(Outcome::Wait(Wait::Room)),
        Reach::Down => Err(qp.silent()),
    }
}

fn reach(core: &Arc<Core>, attr: &AhAttr) -> Reach {
    match (&core.tcp, tcp::destination(core, attr)) {
        (Some(tcp), Ok(to)) => tcp.reach(core, to),
        _ => Reach::Down,
    }
}

/// Sends a datagram to another machine. It waits until it is known whether the machine can be
/// reached, and then not at all.
pub(super) fn datagram(
    qp: &Arc<Qp>,
    to: &AhAttr,
    request: &Request<'_>,
    record: &Datagram,
) -> Outcome {
    let conn = match reach(&qp.core, to) {
        Reach::Up(conn) => conn,
        Reach::Dialing => return Outcome::Wait(Wait::Silence),
        Reach::Down => return Outcome::Done,
    };
    let size = Datagram::HEAD + request.len as usize;
    let mut tx = conn.tx.lock();
    if !tx.admits(HEAD + size, 0) {
        return Outcome::Wait(Wait::Room);
    }
    let Some(local) = qp.local(request, 0, request.len, 0) else {
        return Outcome::Failed(wc_status::LOC_PROT_ERR);
    };
    let room = tx.reserve(size);
    // SAFETY: reserved; the pieces are registered, or inline data, and hold `len` bytes.
    unsafe {
        record.put(room);
        gather(&local, room.add(Datagram::HEAD));
        tx.publish(kind::DATAGRAM, size, 0);
    }
    conn.flush(&mut tx);
    Outcome::Done
}

impl Core {
    /// Executes what has come over a connection. The caller holds its `rx`.
    pub(in super::super) fn take_frame(self: &Arc<Self>, conn: &Arc<Conn>, frame: Frame<'_>) {
        match frame {
            Frame::Ask(ask, payload) => {
                let reply = match self.qp(ask.qpn) {
                    Some(qp) => qp.asked_from_afar(&ask, payload),
                    None => Reply::status(wc_status::RETRY_EXC_ERR),
                };
                if ask.credit != 0 {
                    answer(conn, kind::ANSWER, &ask, &reply);
                }
            }
            Frame::Answer(answer, data) => {
                conn.credited(answer.credit);
                if let Some(qp) = self.qp(answer.qpn)
                    && qp.sq.lock().flow.remote.is_over(conn)
                {
                    qp.answered(&answer, data);
                }
            }
            Frame::Datagram(record, payload) => {
                if let Some(qp) = self.qp(record.qpn) {
                    qp.datagram(&record, payload);
                }
            }
            Frame::Bind(ask) => {
                let ready = self.qp(ask.qpn).and_then(|qp| qp.incarnation_for(conn, &ask));
                let reply = match ready {
                    Some(incarnation) => Reply::value(wc_status::SUCCESS, incarnation.into()),
                    None => Reply::status(wc_status::RETRY_EXC_ERR),
                };
                answer(conn, kind::BOUND, &ask, &reply);
            }
            Frame::Bound(answer) => {
                if let Some(qp) = self.qp(answer.qpn) {
                    qp.bound(conn, &answer);
                }
            }
        }
    }
}

/// Puts an answer down; it leaves when all that has come is executed.
fn answer(conn: &Conn, kind: u8, ask: &Ask, reply: &Reply) {
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
    let mut tx = conn.tx.lock();
    let room = tx.reserve(size);
    // SAFETY: reserved; the pieces are registered, and `dereg` waits for the `rx` that the caller
    // holds.
    unsafe {
        record.put(room);
        gather(&reply.data, room.add(Answer::HEAD));
        tx.publish(kind, size, 0);
    }
}

impl Qp {
    /// The incarnation of this QP, if it is ready for requests of the one that asks.
    fn incarnation_for(&self, conn: &Conn, ask: &Ask) -> Option<u32> {
        let entry = self.entry();
        let word = entry.word.load(Ordering::Acquire);
        let dest = entry.dest.load(Ordering::Relaxed);
        let (lid, qpn) = ((dest >> 32) as u16, dest as u32);
        let ready = matches!(QpEntry::state(word), qp_state::RTR | qp_state::RTS | qp_state::SQD);
        let ours = qpn == ask.src && (lid == 0 || lid == conn.peer.lid) && ask.flags == self.kind;
        (ready && ours).then(|| QpEntry::incarnation(word))
    }

    /// The peer has said whether it is ready.
    fn bound(self: &Arc<Self>, conn: &Arc<Conn>, answer: &Answer) {
        let mut sq = self.sq.lock();
        let asked = matches!(&sq.flow.remote, Remote::Asked(own) if Arc::ptr_eq(own, conn));
        if !asked || answer.incarnation != self.incarnation() {
            return;
        }
        sq.flow.remote = if answer.status == wc_status::SUCCESS {
            Remote::Bound(Arc::clone(conn), answer.value as u32)
        } else {
            Remote::Refused
        };
        self.run(&mut sq);
    }

    /// A part of a request of a QP on another machine.
    fn asked_from_afar(self: &Arc<Self>, ask: &Ask, payload: &[u8]) -> Reply {
        if self.entry().dest.load(Ordering::Relaxed) as u32 != ask.src {
            return Reply::status(wc_status::RETRY_EXC_ERR);
        }
        self.asked(None, ask, payload)
    }

    /// A part of a SEND. A receive is taken by the first one, and ends with the last.
    pub(super) fn part_of_message(&self, ask: &Ask, payload: &[u8]) -> Reply {
        let mut rq = self.rq.lock();
        if self.srq.is_some() {
            return self.part_for_shared(&mut rq, ask, payload);
        }
        let Some(receive) = rq.front() else { return self.not_ready(ask) };
        if ask.offset == 0 {
            rq.filled = 0;
            if rq.capacity(&self.core.region, receive.number) < u64::from(ask.total) {
                // UC drops it without a word.
                if self.kind == qp_type::RC {
                    self.end(&mut rq, receive, wc_status::LOC_LEN_ERR, &Message::default());
                }
                return Reply::status(wc_status::REM_INV_REQ_ERR);
            }
        }
        if ask.offset != rq.filled {
            return Reply::status(wc_status::REM_INV_REQ_ERR);
        }
        let message = Message { flags: ask.flags & 0xffff, imm: ask.imm, len: ask.total };
        let place = rq.scatter(&self.core.region, receive.number, self.pd, ask.offset, payload);
        if place.is_none() {
            if self.kind == qp_type::RC {
                self.end(&mut rq, receive, wc_status::LOC_PROT_ERR, &message);
            }
            return Reply::status(wc_status::REM_OP_ERR);
        }
        rq.filled = ask.offset + ask.len;
        if ask.flags & flag::MORE == 0 {
            self.end(&mut rq, receive, wc_status::SUCCESS, &message);
            self.entry().taken.0.receives.store(rq.done, Ordering::Release);
        }
        Reply::status(wc_status::SUCCESS)
    }

    fn part_for_shared(&self, rq: &mut RecvQueue, ask: &Ask, payload: &[u8]) -> Reply {
        let Some(srq) = &self.srq else { return Reply::status(wc_status::REM_INV_REQ_ERR) };
        let region = &self.core.region;
        if ask.offset == 0 && rq.held.is_none() {
            rq.held = srq.take(|queue, receive| Held::of(queue, region, receive));
        }
        let Some(held) = &mut rq.held else { return self.not_ready(ask) };
        let message = Message { flags: ask.flags & 0xffff, imm: ask.imm, len: ask.total };
        let (ours, theirs) = if held.capacity() < u64::from(ask.total) {
            (wc_status::LOC_LEN_ERR, wc_status::REM_INV_REQ_ERR)
        } else if ask.offset != held.filled {
            (wc_status::LOC_QP_OP_ERR, wc_status::REM_INV_REQ_ERR)
        } else if held.scatter(region, srq.pd, payload).is_none() {
            (wc_status::LOC_PROT_ERR, wc_status::REM_OP_ERR)
        } else if ask.flags & flag::MORE != 0 {
            return Reply::status(wc_status::SUCCESS);
        } else {
            (wc_status::SUCCESS, wc_status::SUCCESS)
        };
        self.received(held.wr_id, ours, &message);
        rq.held = None;
        Reply::status(theirs)
    }
}
