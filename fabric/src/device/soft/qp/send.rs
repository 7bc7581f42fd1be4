//! The send queue: posting, executing in order, waiting, completing, flushing.
//!
//! A request that nothing stands in the way of is executed inside `post_send` and never enters
//! the queue. Once something blocks, requests queue up behind it, and whoever removes the cause
//! (the service thread after a time, a thread that reads answers) goes on with [`Qp::run`].
//!
//! The queue holds first the requests that were executed or sent and have not completed, then those
//! not begun or not done (`next`): completions leave at its front only, so they are in order.

use super::super::link::Outbound;
use super::super::records::{Answer, DROPPED, RNR};
use super::super::region::{QpEntry, RecvRing, Region};
use super::super::shm::View;
use super::super::tcp::Conn;
use super::Qp;
use super::exec::{Outcome, Wait};
use super::remote::Remote;
use super::request::{Admits, Kept, Request, take};
use crate::abi::{
    MASK_24, QpAttr, SendWr, Wc, event_type, mtu_bytes, qp_state, qp_type, send_flags, wc_opcode,
    wc_status, wr_opcode,
};
use crate::device::{EventElement, PostError, PostSend};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Where a connected QP's requests go.
pub(super) struct Path {
    pub(super) link: Arc<Outbound>,
    /// The peer's entry, and its incarnation when it was found.
    pub(super) entry: View<QpEntry, Region>,
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
    /// The same where the peer is on another machine.
    pub(super) remote: Remote,
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

#[derive(Clone, Copy)]
enum Stage {
    /// Not begun, or begun and to go on.
    Waiting,
    /// In the ring; the answer names this.
    Sent(u32),
    /// Executed; completes at its turn, and not before this.
    Done(Option<Instant>),
    /// Fails with this status at its turn; nothing behind it is begun.
    Doomed(u32),
}

/// What a queue pair did with its turn (asynchronous mode).
pub(in super::super) enum Turn {
    /// It has nothing to do until it is told.
    Idle,
    /// It has something to do at this time.
    At(Instant),
    /// It has sent a packet with this many bytes.
    Sent(u32),
}

struct Wqe {
    kept: Kept,
    stage: Stage,
    /// Bytes executed.
    done: u32,
    /// Not begun before (asynchronous mode).
    ready: Option<Instant>,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct SendQueue {
    pub(super) attr: QpAttr,
    pub(super) flow: Flow,
    queue: VecDeque<Wqe>,
    /// The first that is [`Stage::Waiting`].
    next: usize,
    /// The program wants to hear when the queue is drained.
    pub(super) tell_drained: bool,
}

impl SendQueue {
    /// Whether no request is between its begin and its completion.
    pub(super) fn is_drained(&self) -> bool {
        self.next == 0 && self.queue.front().is_none_or(|wqe| wqe.done == 0)
    }

    /// The first request that the target has been asked for, and has not answered in full:
    /// answers come in order.
    fn asked(&self) -> Option<usize> {
        self.queue.iter().position(|wqe| match wqe.stage {
            Stage::Sent(_) => true,
            Stage::Waiting => wqe.done > 0,
            Stage::Done(_) | Stage::Doomed(_) => false,
        })
    }

    /// A QP that begins to send has all its retries.
    pub(super) fn restart(&mut self) {
        (self.flow.rnr_used, self.flow.silent_since, self.flow.not_before) = (0, None, None);
    }
}

/// Bytes that a packet without payload takes on the wire: LRH, BTH, RETH and CRCs, about.
const HEADER: u32 = 42;
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
        let refuse = |errno, bad_wr| Err(PostError::new(errno, bad_wr));
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
                _ => {
                    let ready = self.core.latency().map(|latency| Instant::now() + latency);
                    sq.queue.push_back(Wqe { ready, ..Wqe::new(&request) });
                    if ready.is_some() {
                        self.core.work.add(Arc::clone(self));
                    }
                }
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

    /// Goes on with the queue as far as it goes; in the asynchronous mode the engine does.
    pub(super) fn run(self: &Arc<Self>, sq: &mut SendQueue) {
        if !self.core.is_sync() {
            self.core.work.add(Arc::clone(self));
            return;
        }
        if let Some(at) = sq.flow.not_before.filter(|at| *at > Instant::now()) {
            // Whoever runs it too soon sees to it that it runs again.
            self.stall(sq, at, false);
            return;
        }
        sq.flow.not_before = None;
        while self.may_begin(sq) && self.step(sq, u32::MAX) {}
        self.check_drained(sq);
    }

    /// Whether the request at `next` may be begun, or gone on with: in SQD only the latter.
    fn may_begin(&self, sq: &SendQueue) -> bool {
        let Some(wqe) = sq.queue.get(sq.next) else { return false };
        let doomed = sq.next > 0 && matches!(sq.queue[sq.next - 1].stage, Stage::Doomed(_));
        match self.state() {
            qp_state::RTS => !doomed,
            qp_state::SQD => !doomed && wqe.done > 0,
            _ => false,
        }
    }

    /// Executes the next part of the request at `next`; whether to go on.
    fn step(self: &Arc<Self>, sq: &mut SendQueue, chunk: u32) -> bool {
        let SendQueue { attr, flow, queue, next, .. } = sq;
        let Some(wqe) = queue.get_mut(*next) else { return false };
        let request = wqe.kept.get();
        let outcome = self.exec(flow, attr, &request, &mut wqe.done, chunk);
        self.outcome(sq, outcome)
    }

    /// One turn of the engine: completes what is due, and sends at most one packet.
    pub(in super::super) fn turn(self: &Arc<Self>, latency: Duration) -> Turn {
        let mut sq = self.sq.lock();
        self.release(&mut sq);
        self.check_drained(&mut sq);
        let due = match sq.queue.front().map(|wqe| wqe.stage) {
            Some(Stage::Done(at)) => at,
            _ => None,
        };
        let idle = due.map_or(Turn::Idle, Turn::At);
        if !self.may_begin(&sq) {
            return idle;
        }
        let now = Instant::now();
        let wqe = &sq.queue[sq.next];
        let begin = [wqe.ready, sq.flow.not_before].into_iter().flatten().max();
        if let Some(at) = begin.filter(|at| *at > now) {
            return Turn::At(due.map_or(at, |due| due.min(at)));
        }
        sq.flow.not_before = None;
        let (at, done) = (sq.next, sq.queue[sq.next].done);
        let mtu = mtu_bytes(sq.attr.path_mtu).unwrap_or(4096);
        if self.step(&mut sq, mtu) {
            let Some(wqe) = sq.queue.get_mut(at) else { return Turn::Sent(0) };
            if let Stage::Done(when) = &mut wqe.stage {
                *when = Some(now + latency);
            }
            // A header's worth, even where there is no payload.
            return Turn::Sent((wqe.done - done).max(HEADER));
        }
        match sq.flow.not_before {
            Some(at) => Turn::At(due.map_or(at, |due| due.min(at))),
            None => idle,
        }
    }

    /// Completes from the front what is executed and due.
    fn release(self: &Arc<Self>, sq: &mut SendQueue) {
        while let Some(wqe) = sq.queue.front() {
            match wqe.stage {
                Stage::Done(at) if at.is_none_or(|at| at <= Instant::now()) => {
                    self.complete(&wqe.kept.get(), wc_status::SUCCESS);
                    sq.queue.pop_front();
                    sq.next -= 1;
                }
                Stage::Doomed(status) => {
                    self.fail_front(sq, status);
                    return;
                }
                _ => return,
            }
        }
    }

    /// What follows from executing the request at `next`; whether to go on.
    fn outcome(self: &Arc<Self>, sq: &mut SendQueue, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Done => {
                sq.queue[sq.next].stage = Stage::Done(None);
                sq.next += 1;
                sq.restart();
                if self.core.is_sync() {
                    self.release(sq);
                }
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
                self.doom(sq, status);
                false
            }
            Outcome::Wait(wait) => {
                self.wait(sq, wait);
                false
            }
        }
    }

    /// The request at `next` fails, as soon as those before it have completed.
    fn doom(self: &Arc<Self>, sq: &mut SendQueue, status: u32) {
        if let Some(wqe) = sq.queue.get_mut(sq.next) {
            wqe.stage = Stage::Doomed(status);
            sq.next += 1;
            self.release(sq);
        }
    }

    /// Reports a drained queue once, where that was asked for.
    pub(super) fn check_drained(&self, sq: &mut SendQueue) {
        if sq.tell_drained && self.state() == qp_state::SQD && sq.is_drained() {
            sq.tell_drained = false;
            self.core.raise(event_type::SQ_DRAINED, EventElement::Qp(self.num));
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
                self.stall(sq, Instant::now() + ROOM_AGAIN, true);
            }
            Wait::Rnr(timer) => self.rnr(sq, timer),
            Wait::Silence => {
                let since = *sq.flow.silent_since.get_or_insert_with(Instant::now);
                match patience(&sq.attr) {
                    Some(patience) if since.elapsed() >= patience => {
                        self.doom(sq, wc_status::RETRY_EXC_ERR);
                    }
                    _ => self.stall(sq, Instant::now() + LOOK_AGAIN, true),
                }
            }
        }
    }

    /// The receiver was not ready: once more after its time, unless the retries are used up.
    fn rnr(self: &Arc<Self>, sq: &mut SendQueue, timer: u8) {
        // Seven means without end (IBTA 9.7.5.2.8).
        if sq.attr.rnr_retry != 7 {
            if sq.flow.rnr_used >= sq.attr.rnr_retry {
                self.doom(sq, wc_status::RNR_RETRY_EXC_ERR);
                return;
            }
            sq.flow.rnr_used += 1;
        }
        let at = Instant::now() + rnr_time(timer);
        sq.flow.not_before = Some(at);
        self.stall(sq, at, false);
    }

    /// Has the queue run again at `at`.
    fn stall(self: &Arc<Self>, sq: &mut SendQueue, at: Instant, on_ring: bool) {
        if !self.core.is_sync() {
            sq.flow.not_before = Some(at);
            self.core.work.add(Arc::clone(self));
        } else if !std::mem::replace(&mut sq.flow.stalled, true) {
            self.core.stall(Arc::clone(self), at, on_ring);
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
            // UC knows no RNR: what finds no receive is lost (IBTA 9.8.2.2.5).
            RNR if self.kind == qp_type::RC => self.go_back(&mut sq, answer),
            // Whatever becomes of it at the other end, UC does not hear of it.
            status if status == wc_status::SUCCESS || self.kind == qp_type::UC => {
                self.accomplished(&mut sq, answer, data);
            }
            status => {
                if let Some(at) = sq.asked() {
                    sq.queue[at].stage = Stage::Doomed(status);
                    sq.next = sq.next.max(at + 1);
                    self.release(&mut sq);
                }
                return;
            }
        }
        self.release(&mut sq);
        self.run(&mut sq);
    }

    /// A request, or a part of one, was executed by the target.
    fn accomplished(self: &Arc<Self>, sq: &mut SendQueue, answer: &Answer, data: &[u8]) {
        let Some(at) = sq.asked() else { return };
        let wqe = &mut sq.queue[at];
        let request = wqe.kept.get();
        let landed = match request.opcode {
            wr_opcode::ATOMIC_CMP_AND_SWP | wr_opcode::ATOMIC_FETCH_AND_ADD => {
                self.land(&request, 0, &answer.value.to_ne_bytes())
            }
            wr_opcode::RDMA_READ => self.land(&request, answer.offset, data),
            _ => true,
        };
        if !landed {
            wqe.stage = Stage::Doomed(wc_status::LOC_PROT_ERR);
            sq.next = sq.next.max(at + 1);
        } else if matches!(wqe.stage, Stage::Sent(last) if last == answer.seq) {
            wqe.stage = Stage::Done(None);
            sq.flow.unanswered -= 1;
            sq.restart();
        }
    }

    /// The target had no receive for the request that the answer names: it and all behind it
    /// are sent again.
    fn go_back(self: &Arc<Self>, sq: &mut SendQueue, answer: &Answer) {
        // Answers come in order, so it is the first that has not been answered in full.
        let Some(at) = sq.asked() else { return };
        sq.flow.psn = (answer.value >> 32) as u32 & MASK_24;
        // The one at `next` too: parts of it may be in the ring, behind what was refused.
        let behind = sq.queue.len().min(sq.next + 1);
        // Not one that is to fail at its turn: it was never sent.
        let is_sent = |wqe: &&Wqe| matches!(wqe.stage, Stage::Sent(_));
        let sent = sq.queue.range(at..sq.next).filter(is_sent).count();
        for wqe in sq.queue.range_mut(at..behind) {
            wqe.stage = Stage::Waiting;
            wqe.done = 0;
        }
        sq.queue[at].done = answer.offset;
        sq.flow.unanswered -= sent as u32;
        sq.next = at;
        self.rnr(sq, answer.value as u8);
    }

    /// The process behind `link` is gone.
    pub(in super::super) fn peer_died(self: &Arc<Self>, link: &Arc<Outbound>) {
        let mut sq = self.sq.lock();
        let ours = sq.flow.path.as_ref().is_some_and(|path| Arc::ptr_eq(&path.link, link));
        if ours {
            self.deserted(&mut sq);
        }
    }

    /// The connection to another machine is lost.
    pub(in super::super) fn connection_lost(self: &Arc<Self>, conn: &Arc<Conn>) {
        let mut sq = self.sq.lock();
        if sq.flow.remote.is_over(conn) {
            sq.flow.remote = Remote::Unbound;
            self.deserted(&mut sq);
        }
    }

    /// No answer will come any more.
    fn deserted(self: &Arc<Self>, sq: &mut SendQueue) {
        if sq.queue.is_empty() || !matches!(self.state(), qp_state::RTS | qp_state::SQD) {
            return;
        }
        match sq.asked() {
            Some(at) => {
                sq.queue[at].stage = if self.kind == qp_type::UC {
                    Stage::Done(None)
                } else {
                    Stage::Doomed(wc_status::RETRY_EXC_ERR)
                };
                sq.next = sq.next.max(at + 1);
                self.release(sq);
            }
            None => sq.flow.not_before = None,
        }
        self.run(sq);
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
        Wqe { kept: Kept::new(request), stage: Stage::Waiting, done: 0, ready: None }
    }
}

/// How long a silent peer is waited for: 4.096 µs × 2^timeout for each try; `None` without end
/// (IBTA 9.7.6.1.3).
pub(super) fn patience(attr: &QpAttr) -> Option<Duration> {
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
