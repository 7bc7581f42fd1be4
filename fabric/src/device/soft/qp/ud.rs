//! Datagrams: they travel in the ring, and the target matches them when it reads it. What finds
//! no receive, no room in time, no queue pair or the wrong key is dropped, as UD drops.

use super::super::link::Outbound;
use super::super::records::{Datagram, flag, kind};
use super::super::region::QpEntry;
use super::exec::{Outcome, Wait, gather};
use super::message::announce;
use super::recv::{RecvQueue, Taken};
use super::request::Request;
use super::send::Flow;
use super::{super::ah, super::context, Qp, remote};
use crate::abi::{
    GRH_BYTES, Gid, QpAttr, Wc, qp_state, qp_type, send_flags, wc_flags, wc_opcode, wc_status,
    wr_opcode,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Largest datagram: the MTU of the port.
const MAX_DATAGRAM: u32 = 4096;
/// How long a datagram waits for room in a ring before it is dropped.
const ROOM: Duration = Duration::from_millis(20);
/// How long it waits for the link to a process that it is the first to address: that one need not
/// have a core at once. Those behind it wait too, so not long.
const LINK: Duration = Duration::from_millis(250);

/// Executes a datagram.
pub(super) fn send(qp: &Arc<Qp>, flow: &mut Flow, attr: &QpAttr, request: &Request<'_>) -> Outcome {
    let Some((address, qpn, qkey)) = request.to else {
        return Outcome::Failed(wc_status::LOC_QP_OP_ERR);
    };
    if request.len > MAX_DATAGRAM {
        return Outcome::Failed(wc_status::LOC_LEN_ERR);
    }
    // With the top bit set the QP's own key is used (IBTA 10.2.5).
    let qkey = if qkey >> 31 != 0 { attr.qkey } else { qkey };
    let global = address.is_global != 0;
    let own = context::gid_of(&qp.core);
    let gid = |gid: Gid| u128::from_be_bytes(gid.0);
    let imm = request.opcode == wr_opcode::SEND_WITH_IMM;
    let solicited = request.is(send_flags::SOLICITED);
    let mut flags = 0;
    for (set, bit) in [(imm, flag::IMM), (solicited, flag::SOLICITED), (global, flag::GRH)] {
        flags |= if set { bit } else { 0 };
    }
    let record = Datagram {
        qpn,
        src: qp.num,
        qkey,
        len: request.len,
        imm: request.imm,
        flags,
        slid: qp.core.options.lid,
        sl: address.sl,
        traffic_class: address.grh.traffic_class,
        flow: u32::from(address.grh.hop_limit) << 24 | address.grh.flow_label & 0xf_ffff,
        sgid: gid(own),
        dgid: if global { gid(address.grh.dgid) } else { 0 },
    };
    let mut patience = ROOM;
    let outcome = if !ah::is_local(&qp.core, &address) {
        remote::datagram(qp, &address, request, &record)
    } else if let Some(link) = qp.core.link_to(qpn) {
        put(qp, &link, request, &record)
    } else if qp.core.node.owner(qpn).is_none() {
        Outcome::Done
    } else {
        qp.core.dial_later(qpn);
        patience = LINK;
        Outcome::Wait(Wait::Room)
    };
    match outcome {
        Outcome::Wait(Wait::Room) if overdue(flow, patience) => {
            flow.silent_since = None;
            Outcome::Done
        }
        outcome => outcome,
    }
}

/// Whether the datagram at hand has waited long enough.
fn overdue(flow: &mut Flow, patience: Duration) -> bool {
    flow.silent_since.get_or_insert_with(Instant::now).elapsed() > patience
}

fn put(qp: &Arc<Qp>, link: &Outbound, request: &Request<'_>, record: &Datagram) -> Outcome {
    let region = &link.peer.region;
    let entry = region.qp_index(record.qpn).and_then(|index| region.qp(index));
    let Some(entry) = entry else { return Outcome::Done };
    let mut tx = link.tx.lock();
    // Looked up under the ring's lock, for which `dereg` waits.
    let Some(local) = qp.local(request, 0, request.len, 0) else {
        return Outcome::Failed(wc_status::LOC_PROT_ERR);
    };
    let size = Datagram::HEAD + request.len as usize;
    let Some(room) = tx.reserve_or_wait(size) else {
        drop(tx);
        link.peer.urge();
        return Outcome::Wait(Wait::Room);
    };
    // SAFETY: reserved; the pieces are registered, or inline data.
    unsafe {
        record.put(room);
        gather(&local, room.add(Datagram::HEAD));
    }
    tx.publish(kind::DATAGRAM, size);
    drop(tx);
    let cq = entry.recv_cq.load(Ordering::Relaxed) as usize;
    announce(link, Some(cq), record.flags & flag::SOLICITED != 0);
    Outcome::Done
}

impl Qp {
    /// A datagram has come.
    pub(super) fn datagram(self: &Arc<Self>, record: &Datagram, payload: &[u8]) {
        let word = self.entry().word.load(Ordering::Acquire);
        let state = QpEntry::state(word);
        if self.kind != qp_type::UD
            || !matches!(state, qp_state::RTR | qp_state::RTS | qp_state::SQD | qp_state::SQE)
            || self.sq.lock().attr.qkey != record.qkey
        {
            return;
        }
        let Some(payload) = payload.get(..record.len as usize) else { return };
        let mut head = [0u8; GRH_BYTES];
        if record.flags & flag::GRH != 0 {
            // IBTA 8.3: version 6, traffic class, flow label; length; next header 0x1b; hops.
            let first = 6u32 << 28 | u32::from(record.traffic_class) << 20 | record.flow & 0xf_ffff;
            head[..4].copy_from_slice(&first.to_be_bytes());
            head[4..6].copy_from_slice(&(payload.len() as u16 + BASE_HEADERS).to_be_bytes());
            head[6] = 0x1b;
            head[7] = (record.flow >> 24) as u8;
            head[8..24].copy_from_slice(&record.sgid.to_be_bytes());
            head[24..].copy_from_slice(&record.dgid.to_be_bytes());
        }
        match &self.srq {
            Some(srq) => {
                let filled = srq.take(|queue, receive| {
                    self.place(queue, receive, srq.pd, &head, record, payload)
                });
                if filled == Some(false) {
                    self.fail(crate::abi::event_type::QP_FATAL);
                }
            }
            None => {
                let mut rq = self.rq.lock();
                let Some(receive) = rq.front() else { return };
                rq.done += 1;
                let filled = self.place(&rq, receive, self.pd, &head, record, payload);
                drop(rq);
                if !filled {
                    self.fail(crate::abi::event_type::QP_FATAL);
                }
            }
        }
    }

    /// Fills a receive and completes it; whether the QP can go on.
    fn place(
        &self,
        queue: &RecvQueue,
        receive: Taken,
        pd: u32,
        head: &[u8; GRH_BYTES],
        record: &Datagram,
        payload: &[u8],
    ) -> bool {
        let region = &self.core.region;
        let len = GRH_BYTES as u32 + record.len;
        let number = receive.number;
        let status = if queue.capacity(region, number) < u64::from(len) {
            wc_status::LOC_LEN_ERR
        } else {
            // Without a GRH its place stays as it is.
            let grh = record.flags & flag::GRH != 0;
            let head = if grh { queue.scatter(region, number, pd, 0, head) } else { Some(()) };
            let rest = queue.scatter(region, number, pd, GRH_BYTES as u32, payload);
            if head.and(rest).is_some() { wc_status::SUCCESS } else { wc_status::LOC_PROT_ERR }
        };
        let flags = [(flag::IMM, wc_flags::WITH_IMM), (flag::GRH, wc_flags::GRH)];
        let wc = Wc {
            wr_id: receive.wr_id,
            status,
            opcode: wc_opcode::RECV,
            byte_len: len,
            imm_data: if record.flags & flag::IMM != 0 { record.imm } else { 0 },
            qp_num: self.num,
            src_qp: record.src,
            wc_flags: flags.iter().filter(|(f, _)| record.flags & f != 0).map(|(_, w)| w).sum(),
            slid: record.slid,
            sl: record.sl,
            ..Wc::default()
        };
        self.recv_cq.push(wc, record.flags & flag::SOLICITED != 0);
        status == wc_status::SUCCESS
    }
}

/// BTH, DETH and ICRC: what the length of a GRH counts besides the payload.
const BASE_HEADERS: u16 = 12 + 8 + 4;
