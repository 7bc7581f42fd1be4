//! Devices: pairs of RC queue pairs that execute packet by packet. The requester is here, the responder in
//! `responder`.
//!
//! As IBTA has it: packet sequence numbers, acknowledgements that cover all before, go-back-N after a
//! timeout, RNR, duplicates that are answered and not executed. And as was measured on rxe: a queue
//! pair may execute one packet more after `modify(ERR)` has returned and before what was posted to it
//! has come back ([`Quirks::edge`]); the last packet of a WRITE with immediate data waits for a
//! receive that the others do not wait for. A dead device does nothing any more, and gives nothing
//! back.
//!
//! Payload is not moved but named: which request of whom, from which byte to which, and whether the
//! source still held it when the packet was made.

use super::kinds::Kind;
use super::queue::{Event, Time};
use super::script::{FENCE, SIGNALED, answers};
use super::world::World;
use crate::entry::Opcode;
use crate::replay::{PROOF_SLOTS, record_slots};
use std::collections::VecDeque;

mod responder;

pub(super) const PSN_MASK: u64 = (1 << 24) - 1;
/// Packets that a requester sends ahead of the acknowledgement.
const AHEAD: u64 = 8;
/// Time after which a requester sends again.
const RETRY: Time = 150;
/// Times that it does before it gives up (`retry_cnt`).
const RETRIES: u8 = 7;
/// Time after which it tries a receiver again that was not ready.
const RNR: Time = 60;
/// A queue pair at ERR executes nothing after this time, barrier or not.
pub(super) const EDGE: Time = 20;

/// How devices misbehave in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quirks {
    /// At ERR they execute nothing more, by themselves (as `soft` does).
    pub(super) exact: bool,
    /// One packet may be executed after ERR.
    pub(super) edge: bool,
    /// Those that are taken down give back all receives as filled.
    pub(super) lies: bool,
    /// What tells how far a responder has come, beside the count of messages.
    pub(super) source: Source,
    /// Some queue pairs at ERR never give back what was posted, of a thousand.
    pub(super) no_flush: u32,
    /// Packets and answers that are lost, of a thousand.
    pub(super) loss: u32,
    /// A shared receive that a SEND had filled in part at ERR vanishes; else it comes back flushed.
    pub(super) vanishes: bool,
    /// Those with shared receives tell when they have come back from ERR (`LAST_WQE_REACHED`).
    pub(super) tells_last: bool,
}

/// What tells how far a responder has come, beside the count of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Source {
    /// Its packet number, which is live.
    #[default]
    Psn,
    /// Its record.
    Record,
    /// Nothing.
    Counts,
}

/// Whose a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    /// The program's.
    Program,
    /// The shell's: it proves a tail by its completion, and by what it records.
    Proof(Option<u64>),
    /// The shell's: it records.
    Record(u64),
}

impl Whose {
    /// The program does not know of it.
    fn is_hidden(self) -> bool {
        self != Whose::Program
    }

    /// What it writes into the peer's word.
    fn recorded(self) -> Option<u64> {
        match self {
            Whose::Program => None,
            Whose::Proof(recorded) => recorded,
            Whose::Record(recorded) => Some(recorded),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum QpState {
    Init,
    Ready,
    Err,
    /// At ERR, and all has come back.
    Flushed,
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Success,
    Flushed,
    RetryExceeded,
}

/// What a send queue holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Wqe {
    pub(super) seq: u64,
    pub(super) whose: Whose,
    pub(super) opcode: Opcode,
    pub(super) flags: u16,
    /// Leading bytes that are left out.
    pub(super) skip: u32,
    /// Bytes of the whole request.
    pub(super) length: u32,
    pub(super) cell: u64,
    pub(super) imm: u32,
    /// For inline payload, which is copied when posting: whether it was what it should be.
    pub(super) inline_good: Option<bool>,
    pub(super) first: u64,
    pub(super) packets: u64,
    /// Packets of the answer that have come.
    pub(super) got: u64,
    pub(super) result: Option<u64>,
    /// How many were posted before it.
    pub(super) place: u64,
}

/// A packet of a requester.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Packet {
    pub(super) from: usize,
    pub(super) to: usize,
    index: u64,
    seq: u64,
    whose: Whose,
    opcode: Opcode,
    /// Its bytes in the request.
    begin: u32,
    end: u32,
    first: bool,
    last: bool,
    skip: u32,
    length: u32,
    packets: u64,
    cell: u64,
    imm: u32,
    good: bool,
}

/// What a responder answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Response {
    pub(super) from: usize,
    pub(super) to: usize,
    what: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Answer {
    Ack(u64),
    NotReady(u64),
    Read { index: u64, part: u64, value: u64 },
    Atomic { index: u64, value: u64 },
}

/// What a receive has got.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Message {
    pub(super) seq: u64,
    pub(super) opcode: Opcode,
    pub(super) byte_len: u32,
    pub(super) imm: u32,
    pub(super) good: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cqe {
    Send { seq: u64, whose: Whose, status: Status, result: Option<u64>, place: u64 },
    Recv { seq: u64, message: Option<Message> },
}

/// A physical queue pair.
#[derive(Clone, Debug, Hash)]
pub(super) struct Qp {
    /// The virtual one's end.
    pub(super) end: usize,
    pub(super) process: usize,
    pub(super) device: u32,
    pub(super) dead: bool,
    /// It gives back receives as filled that are not.
    pub(super) lies: bool,
    pub(super) state: QpState,
    pub(super) peer: Option<usize>,
    pub(super) mtu: u32,
    /// Of the first packet that it sends, and that its peer sends.
    pub(super) psn: u32,
    pub(super) peer_psn: u32,
    sq: VecDeque<Wqe>,
    /// Requests that were posted; and those whose slots are free again, because a completion at or behind them has
    /// been polled.
    requests: u64,
    reclaimed: u64,
    next: u64,
    posted: u64,
    acked: u64,
    not_ready: bool,
    retries: u8,
    progress_at: Time,
    timer: bool,
    rq: VecDeque<u64>,
    /// The shared receive queue that it takes its receives from, and what it has taken for the SEND that
    /// it is amid.
    pub(super) srq: Option<usize>,
    pub(super) taken: Option<u32>,
    /// It has told that nothing more comes from there.
    pub(super) last_told: bool,
    expected: u64,
    filled: u32,
    good: bool,
    results: Vec<(u64, u64)>,
    pub(super) cq: VecDeque<(Time, Cqe)>,
    packets_by: Time,
    responses_by: Time,
    err_at: Time,
    edge: bool,
    /// Its last numbers were told, with the barrier behind it.
    pub(super) told: bool,
}

impl Qp {
    pub(super) fn new(end: usize, process: usize, device: u32, psn: u32, mtu: u32) -> Self {
        Qp {
            end,
            process,
            device,
            dead: false,
            lies: false,
            state: QpState::Init,
            peer: None,
            mtu,
            psn,
            peer_psn: 0,
            sq: VecDeque::new(),
            requests: 0,
            reclaimed: 0,
            next: 0,
            posted: 0,
            acked: 0,
            not_ready: false,
            retries: 0,
            progress_at: 0,
            timer: false,
            rq: VecDeque::new(),
            srq: None,
            taken: None,
            last_told: false,
            expected: 0,
            filled: 0,
            good: true,
            results: Vec::new(),
            cq: VecDeque::new(),
            packets_by: 0,
            responses_by: 0,
            err_at: 0,
            edge: false,
            told: false,
        }
    }

    pub(super) fn connect(&mut self, peer: Option<usize>, peer_psn: u32) {
        (self.peer, self.peer_psn) = (peer, peer_psn);
        // That of an end which has failed meanwhile is at ERR, and stays there.
        if !self.is_at_err() {
            self.state = QpState::Ready;
        }
    }

    pub(super) fn is_at_err(&self) -> bool {
        matches!(self.state, QpState::Err | QpState::Flushed)
    }

    /// Of its own.
    pub(super) fn has_no_receive(&self) -> bool {
        self.rq.is_empty()
    }

    /// A SEND has come in part.
    pub(super) fn is_amid_send(&self) -> bool {
        self.filled > 0
    }

    fn packets(&self, opcode: Opcode, bytes: u32) -> u64 {
        if opcode.is_atomic() { 1 } else { u64::from(bytes.div_ceil(self.mtu).max(1)) }
    }
}

impl World {
    /// The number that a queue pair expects next, as `ibv_query_qp` has it.
    pub(super) fn query_psn(&mut self, qp: usize) -> Option<u32> {
        let it = &self.qps[qp];
        let wrapped = u64::from(it.peer_psn) + it.expected > PSN_MASK;
        let psn = ((u64::from(it.peer_psn) + it.expected) & PSN_MASK) as u32;
        if it.dead || self.quirks.source != Source::Psn {
            self.reach(Kind::NoPsn);
            return None;
        }
        if wrapped {
            self.reach(Kind::PsnWrapped);
        }
        Some(psn)
    }

    pub(super) fn post_recv(&mut self, qp: usize, seq: u64) {
        let it = &mut self.qps[qp];
        if !it.is_at_err() {
            it.rq.push_back(seq);
        }
        // Soft RoCE never flushes what comes after ERR: nor does this.
    }

    pub(super) fn post_send(&mut self, qp: usize, mut wqe: Wqe) {
        let records = self.quirks.source == Source::Record;
        let it = &mut self.qps[qp];
        let depth = self.ends[it.end].send.depth();
        // Those of records are reserved in any case; but none are posted where there are none.
        let records = if records { record_slots(depth) } else { 0 };
        let room = u64::from(depth + records + PROOF_SLOTS);
        if it.requests - it.reclaimed >= room {
            let whose = wqe.whose;
            return self.violate(format!("queue pair {qp}: no room for a request of {whose:?}"));
        }
        wqe.place = it.requests;
        it.requests += 1;
        if it.state == QpState::Flushed {
            let cqe = flushed(&wqe);
            return self.complete(qp, cqe);
        }
        let bytes = wqe.length - wqe.skip;
        wqe.packets = it.packets(wqe.opcode, bytes);
        wqe.first = it.posted;
        it.posted += wqe.packets;
        if it.sq.is_empty() {
            it.progress_at = self.now;
        }
        it.sq.push_back(wqe);
        self.pump(qp);
    }

    pub(super) fn complete(&mut self, qp: usize, cqe: Cqe) {
        let late = if self.is_exhaustive() { 0 } else { self.rng.below(4) };
        let it = &mut self.qps[qp];
        let after = it.cq.back().map_or(0, |(at, _)| *at);
        it.cq.push_back((after.max(self.now + late), cqe));
    }

    /// The next completion of a queue pair that can be seen.
    pub(super) fn poll_cq(&mut self, qp: usize) -> Option<Cqe> {
        let now = self.now;
        let it = &mut self.qps[qp];
        it.cq.front().filter(|(at, _)| *at <= now)?;
        let (_, cqe) = it.cq.pop_front()?;
        if let Cqe::Send { place, .. } = cqe {
            it.reclaimed = it.reclaimed.max(place + 1);
        }
        Some(cqe)
    }

    /// A completion is there, or will be.
    pub(super) fn has_cqes(&self, qp: usize) -> bool {
        !self.qps[qp].cq.is_empty()
    }

    /// Sends what may be sent.
    fn pump(&mut self, qp: usize) {
        loop {
            let it = &self.qps[qp];
            if it.state != QpState::Ready || it.dead || it.not_ready {
                return;
            }
            let Some(peer) = it.peer else {
                // To nobody: what it sends is lost.
                self.qps[qp].next = self.qps[qp].posted;
                break;
            };
            if it.next >= it.posted || it.next >= it.acked + AHEAD {
                break;
            }
            let at = it.sq.partition_point(|wqe| wqe.first + wqe.packets <= it.next);
            let Some(wqe) = it.sq.get(at) else { break };
            let waits = wqe.flags & FENCE != 0 && it.sq.range(..at).any(|it| answers(it.opcode));
            if waits {
                self.reach(Kind::Fenced);
                break;
            }
            let within = (it.next - wqe.first) as u32;
            let single = answers(wqe.opcode);
            let begin = if single { 0 } else { wqe.skip + within * it.mtu };
            let last = single || u64::from(within) + 1 == wqe.packets;
            let end = if last { wqe.length } else { begin + it.mtu };
            let good = wqe.inline_good.unwrap_or_else(|| self.is_buffer_kept(it.end, wqe.seq));
            let packet = Packet {
                from: qp,
                to: peer,
                index: it.next,
                seq: wqe.seq,
                whose: wqe.whose,
                opcode: wqe.opcode,
                begin,
                end,
                first: within == 0,
                last,
                skip: wqe.skip,
                length: wqe.length,
                packets: wqe.packets,
                cell: wqe.cell,
                imm: wqe.imm,
                good: good || wqe.whose.is_hidden(),
            };
            let step = if single { wqe.packets } else { 1 };
            let at = self.arrival(it.packets_by);
            let lost = self.loses_packet(qp);
            let it = &mut self.qps[qp];
            it.next += step;
            it.packets_by = at;
            if !lost {
                self.queue.push(at, Event::Packet(packet));
            }
        }
        if !self.qps[qp].timer && !self.qps[qp].sq.is_empty() && !self.is_exhaustive() {
            self.qps[qp].timer = true;
            self.queue.push(self.now + RETRY, Event::Timer(qp));
        }
    }

    /// Whether chance takes a packet between a requester and its peer. Wires are bad, but not so bad that
    /// all retries fail.
    fn loses_packet(&mut self, requester: usize) -> bool {
        let loss = self.quirks.loss;
        let may = self.now < self.horizon && self.qps[requester].retries < RETRIES / 2;
        may && self.rng.permille(loss)
    }

    pub(super) fn response_came(&mut self, response: &Response) {
        let qp = response.to;
        let now = self.now;
        let it = &mut self.qps[qp];
        if it.state != QpState::Ready || it.dead || it.peer != Some(response.from) {
            return;
        }
        let (end, asked) = (it.end, |index: u64| it.sq.iter().any(|wqe| wqe.first == index));
        if let Answer::Read { index, .. } | Answer::Atomic { index, .. } = response.what
            && asked(index)
        {
            self.lands(end);
        }
        let it = &mut self.qps[qp];
        match response.what {
            Answer::Ack(upto) => it.acked = it.acked.max(upto),
            Answer::NotReady(index) => {
                it.acked = it.acked.max(index);
                if !it.not_ready && index < it.next {
                    (it.next, it.not_ready) = (index, true);
                    (it.progress_at, it.retries) = (now, 0);
                    let again = if self.is_exhaustive() { 0 } else { RNR };
                    self.queue.push(now + again, Event::Timer(qp));
                }
            }
            Answer::Read { index, part, value } => {
                let wqe = it.sq.iter_mut().find(|wqe| wqe.first == index);
                if let Some(wqe) = wqe.filter(|wqe| wqe.opcode == Opcode::Read && wqe.got == part) {
                    wqe.got += 1;
                    (it.progress_at, it.retries) = (now, 0);
                    wqe.result = Some(wqe.result.map_or(value, |old| old.min(value)));
                    let came = index + wqe.packets;
                    if wqe.got == wqe.packets {
                        it.acked = it.acked.max(came);
                    }
                }
            }
            Answer::Atomic { index, value } => {
                if let Some(wqe) = it.sq.iter_mut().find(|wqe| wqe.first == index) {
                    (wqe.got, wqe.result) = (1, Some(value));
                    it.acked = it.acked.max(index + 1);
                }
            }
        }
        self.complete_acknowledged(qp);
        self.pump(qp);
    }

    fn complete_acknowledged(&mut self, qp: usize) {
        loop {
            let now = self.now;
            let it = &mut self.qps[qp];
            let done = |wqe: &Wqe| {
                let has_come = !answers(wqe.opcode) || wqe.got >= wqe.packets;
                wqe.first + wqe.packets <= it.acked && has_come
            };
            if !it.sq.front().is_some_and(done) {
                return;
            }
            (it.progress_at, it.retries) = (now, 0);
            let Some(wqe) = it.sq.pop_front() else { return };
            it.next = it.next.max(wqe.first + wqe.packets);
            if wqe.flags & SIGNALED != 0 {
                let Wqe { seq, whose, result, place, .. } = wqe;
                let status = Status::Success;
                self.complete(qp, Cqe::Send { seq, whose, status, result, place });
            }
        }
    }

    pub(super) fn timer_came(&mut self, qp: usize) {
        let now = self.now;
        let it = &mut self.qps[qp];
        if it.state != QpState::Ready || it.dead {
            it.timer = false;
            return;
        }
        if std::mem::take(&mut it.not_ready) {
            self.pump(qp);
            return;
        }
        it.timer = false;
        let Some(front) = it.sq.front() else { return };
        if now >= it.progress_at + RETRY {
            it.retries += 1;
            it.progress_at = now;
            if it.retries > RETRIES {
                return self.exceed_retries(qp);
            }
            let from = if answers(front.opcode) { front.first } else { front.first.max(it.acked) };
            it.next = it.next.min(from);
        }
        self.pump(qp);
    }

    fn exceed_retries(&mut self, qp: usize) {
        if let Some(wqe) = self.qps[qp].sq.pop_front() {
            let Wqe { seq, whose, place, .. } = wqe;
            let status = Status::RetryExceeded;
            self.complete(qp, Cqe::Send { seq, whose, status, result: None, place });
        }
        self.modify_err(qp);
    }

    /// To ERR: what was posted comes back in its own time.
    pub(super) fn modify_err(&mut self, qp: usize) {
        let edge = self.quirks.edge && !self.quirks.exact;
        let never = self.rng.permille(self.quirks.no_flush);
        let after = if self.is_exhaustive() { 0 } else { self.rng.between(0, 40) };
        let it = &mut self.qps[qp];
        if it.is_at_err() || it.state == QpState::Gone {
            return;
        }
        (it.state, it.err_at, it.edge) = (QpState::Err, self.now, edge);
        if !it.dead && !never {
            self.queue.push(self.now + after, Event::Flush(qp));
        }
    }

    pub(super) fn flush_came(&mut self, qp: usize) {
        let it = &mut self.qps[qp];
        if it.state != QpState::Err || it.dead {
            return;
        }
        it.state = QpState::Flushed;
        it.last_told = self.quirks.tells_last;
        let taken = it.taken.take();
        let (sq, rq) = (std::mem::take(&mut it.sq), std::mem::take(&mut it.rq));
        for seq in rq {
            let message = self.qps[qp].lies.then(super::late::nothing);
            self.complete(qp, Cqe::Recv { seq, message });
        }
        if let Some(slot) = taken {
            self.give_back_taken(qp, slot);
        }
        for wqe in sq {
            self.complete(qp, flushed(&wqe));
        }
    }

    /// To RESET, as nobody may who has requests outstanding: they vanish.
    pub(super) fn reset(&mut self, qp: usize) {
        let it = &mut self.qps[qp];
        it.state = QpState::Gone;
        it.sq.clear();
        it.rq.clear();
        it.taken = None;
        it.cq.clear();
        (it.expected, it.peer_psn) = (0, 0);
    }

    /// A device dies with all of its queue pairs.
    pub(super) fn kill_device(&mut self, process: usize, device: Option<u32>) {
        let on = |qp: &&mut Qp| qp.process == process && device.is_none_or(|it| it == qp.device);
        for qp in self.qps.iter_mut().filter(on) {
            qp.dead = true;
        }
    }
}

fn flushed(wqe: &Wqe) -> Cqe {
    let Wqe { seq, whose, place, .. } = *wqe;
    Cqe::Send { seq, whose, status: Status::Flushed, result: None, place }
}
