//! The send queue: posting, executing in order, waiting, completing, flushing.
//!
//! A request that nothing stands in the way of is executed inside `post_send` and never enters
//! the queue. Once something blocks, requests queue up behind it, and whoever removes the cause
//! (the service thread after a time, a thread that reads answers) goes on with [`Qp::run`].
//!
//! The queue holds first the requests that were sent and await an answer, then those not begun
//! (`next`): completions leave at its front only, so they are in order.

use super::super::link::Outbound;
use super::super::records::{Answer, DROPPED, RNR};
use super::super::region::RecvRing;
use super::Qp;
use super::exec::{Outcome, Wait};
use super::request::{Admits, Kept, Request, take};
use crate::abi::{
    MASK_24, QpAttr, SendWr, Wc, qp_state, qp_type, send_flags, wc_opcode, wc_status, wr_opcode,
};
use crate::device::{PostError, PostSend};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Where a connected QP's requests go.
pub(super) struct Path {
    pub(super) link: Arc<Outbound>,
    /// The peer's entry, and its incarnation when it was found.
    pub(super) index: usize,
    pub(super) incarnation: u32,
    pub(super) pd: u32,
    pub(super) recv_cq: usize,
    pub(super) has_srq: bool,
    pub(super) ring: RecvRing,
    /// Receives known to be posted.
    pub(super) posted: u64,
}

/// The initiator's state of a send queue.
#[derive(Default)]
pub(super) struct Flow {
    /// Next packet sequence number.
    pub(super) psn: u32,
    pub(super) path: Option<Path>,
    /// Requests that await an answer.
    pub(super) unanswered: u32,
    /// Of the last request that was asked.
    pub(super) seq: u32,
    /// RNR retries used up by the request at the front.
    rnr_used: u8,
    /// Since when the peer does not respond to it.
    pub(super) silent_since: Option<Instant>,
    /// Nothing is tried before.
    not_before: Option<Instant>,
    /// The service thread will run the queue.
    stalled: bool,
}

impl Flow {
    /// Forgets the path: it is looked up anew.
    pub(super) fn unbind(&mut self) {
        self.path = None;
        self.not_before = None;
    }
}

enum Stage {
    /// Not begun, or begun and to go on.
    Waiting,
    /// In the ring; the answer names this.
    Sent(u32),
}

struct Wqe {
    kept: Kept,
    stage: Stage,
    /// Bytes executed.
    done: u32,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct SendQueue {
    pub(super) attr: QpAttr,
    pub(super) flow: Flow,
    queue: VecDeque<Wqe>,
    /// The first that is [`Stage::Waiting`].
    next: usize,
}

impl SendQueue {
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// A QP that begins to send has all its retries.
    pub(super) fn restart(&mut self) {
        (self.flow.rnr_used, self.flow.silent_since, self.flow.not_before) = (0, None, None);
    }
}

/// How often a peer that is not there, or not ready, is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How often a full ring is looked at, in case nobody says that there is room.
const ROOM_AGAIN: Duration = Duration::from_millis(1);

impl Qp {
    pub(super) unsafe fn post_send(self: &Arc<Self>, mut wr: *mut SendWr) -> PostSend {
        let admits = Admits {
            kind: self.kind,
            max_sge: self.cap.max_send_sge,
            max_inline: self.cap.max_inline_data,
        };
        let mut sq = self.sq.lock();
        let refuse = |errno, bad_wr| Err(PostError { errno, bad_wr });
        // SAFETY: the caller's promise: a valid list.
        while let Some(head) = unsafe { wr.as_ref() } {
            let state = self.state();
            if matches!(state, qp_state::RESET | qp_state::INIT | qp_state::RTR) {
                return refuse(libc::EINVAL, wr);
            }
            // SAFETY: likewise.
            let request = match unsafe { take(head, &admits) } {
                Ok(request) => request,
                Err(errno) => return refuse(errno, wr),
            };
            if sq.queue.len() >= self.cap.max_send_wr as usize {
                return refuse(libc::ENOMEM, wr);
            }
            match state {
                qp_state::ERR | qp_state::SQE => {
                    self.complete(&request, wc_status::WR_FLUSH_ERR);
                }
                qp_state::RTS if sq.queue.is_empty() && self.core.is_sync() => {
                    self.start(&mut sq, &request);
                }
                _ => sq.queue.push_back(Wqe::new(&request)),
            }
            wr = head.next;
        }
        Ok(())
    }

    /// Executes a request that nothing stands before.
    #[inline]
    fn start(self: &Arc<Self>, sq: &mut SendQueue, request: &Request<'_>) {
        let mut done = 0;
        match self.exec(&mut sq.flow, &sq.attr, request, &mut done, u32::MAX) {
            Outcome::Done => self.complete(request, wc_status::SUCCESS),
            outcome => {
                sq.queue.push_back(Wqe { done, ..Wqe::new(request) });
                if self.outcome(sq, outcome) {
                    self.run(sq);
                }
            }
        }
    }

    /// Goes on with the queue as far as it goes.
    pub(super) fn run(self: &Arc<Self>, sq: &mut SendQueue) {
        if sq.flow.not_before.is_some_and(|at| at > Instant::now()) {
            return;
        }
        sq.flow.not_before = None;
        while self.state() == qp_state::RTS && sq.next < sq.queue.len() {
            let SendQueue { attr, flow, queue, next } = sq;
            let wqe = &mut queue[*next];
            let request = wqe.kept.get();
            let outcome = self.exec(flow, attr, &request, &mut wqe.done, u32::MAX);
            if !self.outcome(sq, outcome) {
                break;
            }
        }
    }

    /// What follows from executing the request at `next`; whether to go on.
    fn outcome(self: &Arc<Self>, sq: &mut SendQueue, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Done => {
                // Executed here, so nothing before it awaits an answer (`exec`).
                if let Some(wqe) = sq.queue.remove(sq.next) {
                    self.complete(&wqe.kept.get(), wc_status::SUCCESS);
                }
                sq.restart();
                true
            }
            Outcome::More => true,
            Outcome::Sent(seq) => {
                sq.queue[sq.next].stage = Stage::Sent(seq);
                sq.next += 1;
                sq.flow.unanswered += 1;
                true
            }
            Outcome::Failed(status) => {
                // What was sent before it is answered first; then this is met again.
                if sq.next == 0 {
                    self.fail_front(sq, status);
                }
                false
            }
            Outcome::Wait(wait) => {
                self.wait(sq, wait);
                false
            }
        }
    }

    fn wait(self: &Arc<Self>, sq: &mut SendQueue, wait: Wait) {
        match wait {
            Wait::Answer => {
                // Whoever reads the answer goes on; it must not depend on the target's polling.
                if let Some(path) = &sq.flow.path {
                    path.link.peer.urge();
                }
            }
            Wait::Room => {
                if let Some(path) = &sq.flow.path {
                    path.link.peer.urge();
                }
                self.stall(sq, ROOM_AGAIN, true);
            }
            Wait::Rnr(timer) => self.rnr(sq, timer),
            Wait::Silence => {
                let since = *sq.flow.silent_since.get_or_insert_with(Instant::now);
                match patience(&sq.attr) {
                    Some(patience) if since.elapsed() >= patience && sq.next == 0 => {
                        self.fail_front(sq, wc_status::RETRY_EXC_ERR);
                    }
                    _ => self.stall(sq, LOOK_AGAIN, true),
                }
            }
        }
    }

    /// The receiver was not ready: once more after its time, unless the retries are used up.
    fn rnr(self: &Arc<Self>, sq: &mut SendQueue, timer: u8) {
        // Seven means without end (IBTA 9.7.5.2.8).
        if sq.attr.rnr_retry != 7 {
            if sq.flow.rnr_used >= sq.attr.rnr_retry {
                if sq.next == 0 {
                    self.fail_front(sq, wc_status::RNR_RETRY_EXC_ERR);
                }
                return;
            }
            sq.flow.rnr_used += 1;
        }
        let pause = rnr_time(timer);
        sq.flow.not_before = Some(Instant::now() + pause);
        self.stall(sq, pause, false);
    }

    fn stall(self: &Arc<Self>, sq: &mut SendQueue, pause: Duration, on_ring: bool) {
        if !std::mem::replace(&mut sq.flow.stalled, true) {
            self.core.stall(Arc::clone(self), Instant::now() + pause, on_ring);
        }
    }

    /// The service thread's turn.
    pub(in super::super) fn resume(self: &Arc<Self>) {
        let mut sq = self.sq.lock();
        sq.flow.stalled = false;
        self.run(&mut sq);
    }

    /// The request at the front fails, and with it the queue.
    fn fail_front(self: &Arc<Self>, sq: &mut SendQueue, status: u32) {
        if let Some(wqe) = sq.queue.pop_front() {
            sq.next = sq.next.saturating_sub(1);
            self.complete(&wqe.kept.get(), status);
        }
        if self.kind == qp_type::UD {
            let word = super::QpEntry::word_of(self.incarnation(), qp_state::SQE);
            self.entry().word.store(word, Ordering::SeqCst);
            self.flush_sends(sq);
        } else {
            self.set_error(sq);
        }
    }

    /// An answer has come.
    pub(in super::super) fn answered(self: &Arc<Self>, answer: &Answer, data: &[u8]) {
        let mut sq = self.sq.lock();
        if answer.incarnation != self.incarnation() || self.state() == qp_state::ERR {
            return;
        }
        match answer.status {
            DROPPED => return,
            RNR => self.go_back(&mut sq, answer),
            // Whatever becomes of it at the other end, UC does not hear of it.
            status if status == wc_status::SUCCESS || self.kind == qp_type::UC => {
                self.accomplished(&mut sq, answer, data);
            }
            status => {
                self.fail_front(&mut sq, status);
                return;
            }
        }
        self.run(&mut sq);
    }

    /// A request, or a part of one, was executed by the target.
    fn accomplished(self: &Arc<Self>, sq: &mut SendQueue, answer: &Answer, data: &[u8]) {
        let Some(wqe) = sq.queue.front() else { return };
        let request = wqe.kept.get();
        let landed = match request.opcode {
            wr_opcode::ATOMIC_CMP_AND_SWP | wr_opcode::ATOMIC_FETCH_AND_ADD => {
                self.land(&request, 0, &answer.value.to_ne_bytes())
            }
            wr_opcode::RDMA_READ => self.land(&request, answer.offset, data),
            _ => true,
        };
        if !landed {
            self.fail_front(sq, wc_status::LOC_PROT_ERR);
        } else if matches!(wqe.stage, Stage::Sent(last) if last == answer.seq) {
            self.complete(&request, wc_status::SUCCESS);
            sq.queue.pop_front();
            sq.next -= 1;
            sq.flow.unanswered -= 1;
            sq.restart();
        }
    }

    /// The target had no receive for the request that the answer names: it and all behind it
    /// are sent again.
    fn go_back(self: &Arc<Self>, sq: &mut SendQueue, answer: &Answer) {
        let named = |wqe: &Wqe| matches!(wqe.stage, Stage::Sent(seq) if seq == answer.seq);
        let Some(at) = sq.queue.iter().position(named) else { return };
        sq.flow.psn = (answer.value >> 32) as u32 & MASK_24;
        for wqe in sq.queue.range_mut(at..sq.next) {
            wqe.stage = Stage::Waiting;
            wqe.done = 0;
        }
        sq.queue[at].done = answer.offset;
        sq.flow.unanswered -= (sq.next - at) as u32;
        sq.next = at;
        self.rnr(sq, answer.value as u8);
    }

    /// The process behind `link` is gone.
    pub(in super::super) fn peer_died(self: &Arc<Self>, link: &Arc<Outbound>) {
        let mut sq = self.sq.lock();
        let ours = sq.flow.path.as_ref().is_some_and(|path| Arc::ptr_eq(&path.link, link));
        if ours && !sq.queue.is_empty() && self.state() == qp_state::RTS {
            if sq.next > 0 {
                self.fail_front(&mut sq, wc_status::RETRY_EXC_ERR);
            } else {
                sq.flow.not_before = None;
                self.run(&mut sq);
            }
        }
    }

    /// Completes a request, if it is to be heard of.
    #[inline]
    pub(super) fn complete(&self, request: &Request<'_>, status: u32) {
        let signaled = self.sig_all || request.is(send_flags::SIGNALED);
        if status == wc_status::SUCCESS && !signaled {
            return;
        }
        let (opcode, byte_len) = match request.opcode {
            wr_opcode::RDMA_WRITE | wr_opcode::RDMA_WRITE_WITH_IMM => (wc_opcode::RDMA_WRITE, 0),
            wr_opcode::RDMA_READ => (wc_opcode::RDMA_READ, request.len),
            wr_opcode::ATOMIC_CMP_AND_SWP => (wc_opcode::COMP_SWAP, 8),
            wr_opcode::ATOMIC_FETCH_AND_ADD => (wc_opcode::FETCH_ADD, 8),
            _ => (wc_opcode::SEND, 0),
        };
        let wc = Wc {
            wr_id: request.wr_id,
            status,
            opcode,
            byte_len,
            qp_num: self.num,
            ..Wc::default()
        };
        self.send_cq.push(wc, false);
    }

    /// Flushes whatever is in the queue.
    pub(super) fn flush_sends(&self, sq: &mut SendQueue) {
        for wqe in sq.queue.drain(..) {
            self.complete(&wqe.kept.get(), wc_status::WR_FLUSH_ERR);
        }
        (sq.next, sq.flow.unanswered) = (0, 0);
        sq.restart();
    }

    /// Drops whatever is in the queue.
    pub(super) fn discard(&self, sq: &mut SendQueue) {
        sq.queue.clear();
        (sq.next, sq.flow.unanswered) = (0, 0);
        sq.restart();
    }
}

impl Wqe {
    fn new(request: &Request<'_>) -> Wqe {
        Wqe { kept: Kept::new(request), stage: Stage::Waiting, done: 0 }
    }
}

/// How long a silent peer is waited for: 4.096 µs × 2^timeout for each try; `None` without end
/// (IBTA 9.7.6.1.3).
fn patience(attr: &QpAttr) -> Option<Duration> {
    if attr.timeout == 0 {
        return None;
    }
    let once = Duration::from_nanos(4096) * (1u32 << attr.timeout.min(31));
    Some(once * (u32::from(attr.retry_cnt) + 1))
}

/// The time that a `min_rnr_timer` stands for (IBTA table 45), in units of 10 µs.
fn rnr_time(timer: u8) -> Duration {
    const TENS: [u32; 32] = [
        65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024,
        1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
    ];
    Duration::from_micros(u64::from(TENS[usize::from(timer & 31)]) * 10)
}
