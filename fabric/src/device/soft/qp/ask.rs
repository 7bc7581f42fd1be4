//! Requests that the target executes: they travel in the ring, and are answered there.

use super::super::limits::RING_SEND_MAX;
use super::super::link::MAX_CREDIT;
use super::super::records::{Ask, flag, kind};
use super::exec::{Outcome, PART, Step, Wait, gather, is_atomic, is_send, packets, takes_receive};
use super::message::announce;
use super::request::{Data, Request};
use crate::abi::{MASK_24, send_flags, wc_status, wr_opcode};
use std::sync::atomic::Ordering;

/// Bytes of a part of a READ that comes back through the ring.
const READ_PART: u32 = 4096;

impl Step<'_> {
    /// Puts a request that the target executes into the ring; with forbidden copies, part by
    /// part.
    pub(super) fn ask(
        &mut self,
        request: &Request<'_>,
        done: &mut u32,
        ring_only: bool,
    ) -> Outcome {
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
