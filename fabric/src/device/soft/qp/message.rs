//! SEND, and WRITE with immediate, to a queue pair with its own receive queue: what the initiator
//! does for them. Small messages travel in the ring, larger ones are copied into the peer's receive;
//! either way a record in the ring has the peer end the receive.
//!
//! The peer vouches for its receives ([`QpEntry::fits`]), so the path of a small message touches
//! two cache lines that both sides use, those of the record.

use super::super::limits::RING_SEND_MAX;
use super::super::link::Outbound;
use super::super::records::{Recv, fault, flag, kind};
use super::super::region::{ARMED, ARMED_SOLICITED, QpEntry, SETTLED};
use super::copy::{Way, copy, stop_point};
use super::exec::{Outcome, PART, Step, Wait, gather, is_send};
use super::recv::{Pieces, pieces};
use super::request::Request;
use crate::abi::{send_flags, wc_status, wr_opcode};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long an initiator waits to learn what became of a message that met a QP going to ERR.
const VERDICT: Duration = Duration::from_millis(20);

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

impl Step<'_> {
    /// SEND, or WRITE with immediate: takes the peer's next receive.
    pub(super) fn message(&mut self, request: &Request<'_>, done: &mut u32, chunk: u32) -> Outcome {
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
        let ring_only = self.path.link.peer.ring_only.load(Ordering::Relaxed);
        let in_ring = ring_only || (*done == 0 && len == left && len <= RING_SEND_MAX);
        if in_ring {
            if request.len > self.path.entry().fits.load(Ordering::Relaxed)
                && let Err(outcome) = self.receive(request, number, *done, len)
            {
                return outcome;
            }
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
        let remote = match self.receive(request, number, *done, len) {
            Ok(remote) => remote,
            Err(outcome) => return outcome,
        };
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

    /// The pieces of the peer's receive that take bytes `skip .. skip + len` of a message.
    #[inline(never)]
    fn receive(
        &mut self,
        request: &Request<'_>,
        number: u64,
        skip: u32,
        len: u32,
    ) -> Result<Pieces, Outcome> {
        let region = &self.path.link.peer.region;
        let capacity = self.path.ring.total(region, number).unwrap_or(0);
        if capacity < u64::from(request.len) {
            return Err(self.fault(fault::LENGTH, number, wc_status::REM_INV_REQ_ERR));
        }
        pieces(region, &self.path.ring, number, self.path.pd, skip, len)
            .ok_or_else(|| self.fault(fault::PROTECTION, number, wc_status::REM_OP_ERR))
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
        stop_point("before-publish");
        let link = &self.path.link;
        let mut tx = link.tx.lock();
        // Looked up under the ring's lock, for which `dereg` waits.
        let mut local = Pieces::new();
        if !self.qp.find_local(request, skip, len, 0, &mut local) {
            return Outcome::Failed(wc_status::LOC_PROT_ERR);
        }
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
        stop_point("before-verdict");
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
            if entry.received(self.path.incarnation, number) {
                return Outcome::Done;
            }
            if other || !self.path.link.usable() || Instant::now() > deadline {
                return self.qp.gone();
            }
            std::thread::yield_now();
        }
    }
}
