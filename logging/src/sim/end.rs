//! One virtual queue pair: what the program does with it, and how its completions come.
//!
//! The shell around the real windows, in the steady state. `turn` is its other half: suspend, attach,
//! replay.

use super::broken::Broken;
use super::device::{Cqe, Message, Source, Status, Whose, Wqe};
use super::kinds::Kind;
use super::late::Late;
use super::ledger::{SendWc, imm, recv_id, wr_id};
use super::queue::{Event, Time};
use super::script::{INLINE, SIGNALED, answers, takes_receive};
use super::world::World;
use crate::entry::{Element, Opcode, SendEntry};
use crate::recv::RecvWindow;
use crate::replay::{Replay, record_interval};
use crate::send::SendWindow;
use std::collections::VecDeque;
use std::hash::{Hash, Hasher};

/// Largest request that is made of one element.
const ONE_ELEMENT: u32 = 100;

/// A completion on the way to the program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wc {
    Send(SendWc),
    Recv { id: u64, message: Option<Message> },
}

/// A new physical queue pair, on the way to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Fresh {
    pub(super) qp: usize,
    /// Receives are posted to it.
    pub(super) receives: bool,
}

/// One end of a link.
pub(super) struct End {
    pub(super) process: usize,
    pub(super) send: SendWindow,
    pub(super) recv: RecvWindow,
    pub(super) qp: usize,
    pub(super) fresh: Option<Fresh>,
    /// Left, and not yet destroyed.
    pub(super) left: Vec<usize>,
    pub(super) suspended: bool,
    pub(super) recv_suspended: bool,
    pub(super) failed: bool,
    /// A name is missing: nothing is handed until it comes.
    pub(super) blocked: bool,
    /// To be handed again, before anything else.
    pub(super) again: VecDeque<Replay>,
    /// The queue pair whose failures are withheld: that which is being left.
    pub(super) withhold: Option<usize>,
    pub(super) withheld: Vec<Cqe>,
    pub(super) last_recv: Option<u64>,
    pub(super) recv_back: bool,
    /// A receive has come back flushed from it.
    pub(super) recv_flushed: bool,
    pub(super) late: Late,
    /// Proofs that are out of its queue pair, each behind all requests before that.
    pub(super) proofs: Vec<u64>,
    /// Its old queue pair's numbers have been said: what comes from it later is forgotten.
    pub(super) told: bool,
    /// Executed on an earlier path, without a completion so far.
    pub(super) executed: VecDeque<u64>,
    /// Handed again, without a completion so far.
    pub(super) replays: VecDeque<u64>,
    /// Receives that have been filled. (Those that came back in error are none.)
    pub(super) delivered: u64,
    /// Bytes that the next receive of a WRITE with immediate data lacks.
    pub(super) mend: u32,
    pub(super) incarnation: u32,
    /// WRITEs behind the last record and the last message.
    unrecorded: u32,
    record_interval: u32,
    /// Into which its peer records.
    pub(super) word: u64,
    pub(super) backlog: VecDeque<Wc>,
    pub(super) recvs_wanted: u64,
    /// Of the moves, how many it has gone through.
    pub(super) moves: u32,
}

impl End {
    pub(super) fn new(process: usize, qp: usize, depth: u32, recvs_wanted: u64) -> Self {
        End {
            process,
            send: SendWindow::new(depth, 2, super::script::MAX_INLINE),
            recv: RecvWindow::new(depth, 1),
            qp,
            fresh: None,
            left: Vec::new(),
            suspended: false,
            recv_suspended: false,
            failed: false,
            blocked: false,
            again: VecDeque::new(),
            withhold: None,
            withheld: Vec::new(),
            last_recv: None,
            recv_back: false,
            recv_flushed: false,
            late: Late::default(),
            proofs: Vec::new(),
            told: false,
            executed: VecDeque::new(),
            replays: VecDeque::new(),
            delivered: 0,
            mend: 0,
            incarnation: 0,
            unrecorded: 0,
            record_interval: record_interval(depth),
            word: 0,
            backlog: VecDeque::new(),
            recvs_wanted,
            moves: 0,
        }
    }
}

impl Clone for End {
    fn clone(&self) -> Self {
        End {
            send: self.send.copy(),
            recv: self.recv.copy(),
            left: self.left.clone(),
            again: self.again.clone(),
            withheld: self.withheld.clone(),
            executed: self.executed.clone(),
            replays: self.replays.clone(),
            backlog: self.backlog.clone(),
            late: self.late.clone(),
            proofs: self.proofs.clone(),
            ..*self
        }
    }
}

impl End {
    /// All that tells two states of an end apart.
    pub(super) fn digest(&self, state: &mut impl Hasher) {
        self.send.digest(state);
        self.recv.digest(state);
        (self.qp, self.fresh, &self.left, self.suspended, self.recv_suspended).hash(state);
        (self.failed, self.blocked, &self.again, self.withhold, &self.withheld).hash(state);
        (self.last_recv, self.recv_back, &self.proofs, self.told).hash(state);
        (&self.executed, &self.replays, self.delivered, self.mend).hash(state);
        (self.incarnation, &self.backlog, self.unrecorded, self.word).hash(state);
        (self.recv_flushed, &self.late).hash(state);
    }
}

/// A request of ours behind that of this sequence.
fn hidden(seq: u64, whose: Whose) -> Wqe {
    Wqe {
        seq,
        whose,
        opcode: Opcode::Write,
        flags: 0,
        skip: 0,
        length: 0,
        cell: 0,
        imm: 0,
        inline_good: None,
        first: 0,
        packets: 0,
        got: 0,
        result: None,
        place: 0,
    }
}

/// What inline payload is.
fn inline_payload(end: usize, seq: u64, length: u32) -> Vec<u8> {
    (0..length).map(|at| (u64::from(at) * 31 + seq * 7 + end as u64) as u8).collect()
}

/// Where a request's buffer is.
fn address(end: usize, seq: u64) -> u64 {
    (end as u64) << 40 | seq << 16
}

impl World {
    /// The program posts its next request, if there is room.
    pub(super) fn post_next(&mut self, e: usize) {
        let account = &mut self.ledger.accounts[e];
        let seq = account.posted;
        let Some(wr) = account.script.get(seq as usize).copied() else { return };
        let mut entry = SendEntry {
            wr_id: wr_id(e, seq),
            opcode: wr.opcode,
            flags: wr.flags,
            imm: imm(e, seq),
            remote_addr: wr.cell,
            ..SendEntry::empty()
        };
        let end = &self.ends[e];
        let appended = if wr.flags & INLINE != 0 {
            entry.inline = wr.length;
            let payload = inline_payload(e, seq, wr.length);
            let (left, right) = payload.split_at(payload.len() / 3);
            end.send.append_inline(&entry, [left, right].into_iter())
        } else {
            let element = |addr, length| Element { addr, length, lkey: 1 };
            let first = wr.length.min(ONE_ELEMENT);
            let both = [
                element(address(e, seq), first),
                element(address(e, seq) + u64::from(first), wr.length - first),
            ];
            let n = if wr.length > ONE_ELEMENT { 2 } else { 1 };
            end.send.append(&entry, both.into_iter().take(n))
        };
        match appended {
            Ok(taken) if taken == seq => {}
            Ok(other) => return self.violate(format!("end {e}: request {seq} became {other}")),
            Err(_) => return self.reach(Kind::WindowFull),
        }
        self.ledger.accounts[e].posted += 1;
        self.note(|| format!("end {e} posts {seq}: {wr:?}"));
        if self.ends[e].failed {
            return self.flush_window(e);
        }
        if self.ends[e].suspended {
            return self.reach(Kind::PostedSuspended);
        }
        self.push(e, true);
    }

    /// The program posts a receive, if it wants one more and there is room.
    pub(super) fn post_next_recv(&mut self, e: usize) {
        if self.is_shared(e) {
            return self.post_next_shared();
        }
        let end = &self.ends[e];
        let seq = end.recv.appended();
        if seq >= end.recvs_wanted || end.recv.append(recv_id(e, seq), [].into_iter()).is_err() {
            return;
        }
        if end.failed {
            return self.flush_receives(e);
        }
        if end.recv_suspended {
            return;
        }
        end.recv.mark_handed(seq + 1);
        let qp = self.receiving(e);
        self.post_recv(qp, seq);
    }

    /// The physical queue pair to which receives go.
    fn receiving(&self, e: usize) -> usize {
        let end = &self.ends[e];
        end.fresh.filter(|fresh| fresh.receives).map_or(end.qp, |fresh| fresh.qp)
    }

    /// The program polls up to `n` completions.
    pub(super) fn poll(&mut self, e: usize, n: u64) {
        self.harvest(e);
        for _ in 0..n {
            let Some(wc) = self.ends[e].backlog.pop_front() else { return };
            let checked = match &wc {
                Wc::Send(wc) => {
                    if wc.status != Status::Success {
                        self.reach(Kind::ErrorSeen);
                    }
                    self.ledger.completed(e, wc)
                }
                Wc::Recv { id, message } if self.is_shared(e) => {
                    self.ledger.delivered_shared(e, *id, message.as_ref())
                }
                Wc::Recv { id, message } => self.ledger.delivered(e, *id, message.as_ref()),
            };
            self.note(|| format!("end {e} gets {wc:?}"));
            self.check(checked);
        }
    }

    /// Whether a buffer still holds what was posted: programs use it again once they have seen that it
    /// was sent.
    pub(super) fn is_buffer_kept(&self, e: usize, seq: u64) -> bool {
        seq >= self.ledger.accounts[e].seen
    }

    /// Hands what waits. `posting`: in the program's own call.
    pub(super) fn push(&mut self, e: usize, posting: bool) {
        loop {
            let end = &mut self.ends[e];
            if end.blocked || end.suspended || end.failed {
                return;
            }
            let replay = end.again.front().copied();
            let handed = end.send.handed();
            let Replay { seq, skip } = match replay {
                Some(replay) => replay,
                None if handed < end.send.appended() => Replay { seq: handed, skip: 0 },
                None => return,
            };
            let one_sided = end.send.entry(seq).opcode.is_one_sided();
            let missing = self.missing_names;
            if one_sided && self.rng.permille(missing) {
                self.ends[e].blocked = true;
                let at = self.now + self.rng.between(5, 300);
                return self.queue.push(at, Event::Named(e));
            }
            let wqe = self.lower(e, seq, skip, replay.is_some(), posting);
            let end = &mut self.ends[e];
            match replay {
                Some(_) => drop(end.again.pop_front()),
                None => end.send.mark_handed(seq + 1),
            }
            let qp = end.qp;
            let is_due = self.is_record_due(e, wqe.opcode);
            let too_soon = self.is(Broken::RecordFirst);
            if is_due && too_soon {
                self.record(e);
            }
            self.post_send(qp, wqe);
            if is_due && !too_soon {
                self.record(e);
            }
        }
    }

    /// Whether a record is to follow this request, which is being handed.
    fn is_record_due(&mut self, e: usize, opcode: Opcode) -> bool {
        let end = &mut self.ends[e];
        match opcode {
            Opcode::Write => end.unrecorded += 1,
            opcode if takes_receive(opcode) => end.unrecorded = 0,
            _ => {}
        }
        // Behind what waits to be handed again it would be counted, and is not.
        let in_place = end.again.is_empty();
        self.quirks.source == Source::Record && in_place && end.unrecorded >= end.record_interval
    }

    fn record(&mut self, e: usize) {
        let end = &mut self.ends[e];
        let recorded = end.send.next_record();
        end.send.note_record();
        end.unrecorded = 0;
        let (qp, seq) = (end.qp, end.send.handed() - 1);
        self.post_send(qp, hidden(seq, Whose::Record(recorded)));
    }

    /// The physical form of an entry, from what the window holds.
    fn lower(&mut self, e: usize, seq: u64, skip: u32, again: bool, posting: bool) -> Wqe {
        let end = &self.ends[e];
        let entry = end.send.entry(seq);
        let length = end.send.length(seq) as u32;
        let wr = self.ledger.accounts[e].script[seq as usize];
        let whole = entry.wr_id == wr_id(e, seq)
            && (entry.opcode, entry.flags, length) == (wr.opcode, wr.flags, wr.length)
            && (entry.elements == 0 || end.send.element(seq, 0).addr == address(e, seq));
        if !whole {
            self.violate(format!("end {e}: the window has {entry:?} where {wr:?} was posted"));
        }
        let inline_good = (entry.flags & INLINE != 0).then(|| {
            let copied = self.ends[e].send.inline_bytes(seq) == inline_payload(e, seq, length);
            if again {
                self.reach(Kind::InlineReplayed);
            }
            copied && (posting || !self.is(Broken::InlineNotCopied))
        });
        let mut flags = entry.flags;
        if again || answers(entry.opcode) {
            flags |= SIGNALED;
        }
        let skip = if self.is(Broken::CutFromTheStart) { 0 } else { skip };
        Wqe {
            seq,
            whose: Whose::Program,
            opcode: entry.opcode,
            flags,
            skip,
            length,
            cell: entry.remote_addr,
            imm: entry.imm,
            inline_good,
            first: 0,
            packets: 0,
            got: 0,
            result: None,
            place: 0,
        }
    }

    /// A request of ours, of no bytes, behind all that were handed.
    pub(super) fn prove(&mut self, e: usize, counts: bool) {
        let end = &mut self.ends[e];
        end.proofs.push(end.send.handed());
        let mut recorded = None;
        if counts && self.quirks.source == Source::Record {
            recorded = Some(end.send.next_record());
            end.send.note_record();
        } else if counts {
            end.send.hide();
        }
        if counts {
            self.reach(Kind::Proof);
        }
        let end = &self.ends[e];
        let (qp, seq) = (end.qp, end.send.handed().wrapping_sub(1));
        let wqe = Wqe { flags: SIGNALED, ..hidden(seq, Whose::Proof(recorded)) };
        self.post_send(qp, wqe);
    }

    /// Takes all completions that can be seen.
    pub(super) fn harvest(&mut self, e: usize) {
        let (old, fresh) = (self.ends[e].qp, self.ends[e].fresh);
        while let Some(cqe) = self.poll_cq(old) {
            if !self.ends[e].told {
                self.take(e, cqe, old);
            }
        }
        if let Some(fresh) = fresh.filter(|fresh| fresh.receives) {
            while let Some(cqe) = self.poll_cq(fresh.qp) {
                self.take(e, cqe, fresh.qp);
            }
        }
    }

    pub(super) fn take(&mut self, e: usize, cqe: Cqe, from: usize) {
        if self.holds_late(e, &cqe, from) {
            return;
        }
        let is_shared = self.is_shared(e);
        let end = &mut self.ends[e];
        let withhold = end.withhold == Some(from);
        match cqe {
            Cqe::Send {
                seq, whose: whose @ (Whose::Proof(_) | Whose::Record(_)), status, ..
            } => {
                if matches!(whose, Whose::Proof(_)) {
                    end.proofs.retain(|upto| *upto != seq + 1);
                }
                if status == Status::Success {
                    if seq >= end.send.retired() {
                        end.send.retire(seq);
                    }
                } else if withhold {
                    end.withheld.push(cqe);
                } else if !end.failed {
                    // After a move that was taken back it is the first to tell that the path has ended.
                    let first = end.send.retired();
                    self.fail(e, first, status);
                }
            }
            Cqe::Send { status: Status::Success, seq, result, .. } => self.in_turn(e, seq, result),
            Cqe::Recv { seq, message } if is_shared => {
                self.take_from_shared(e, seq, message, withhold);
            }
            // What was flushed does not come back.
            Cqe::Recv { seq, .. } if end.failed && seq < end.recv.retired() => {}
            Cqe::Recv { seq, message: Some(message) } => {
                if seq != end.recv.retired() || seq >= end.recv.handed() {
                    let expected = end.recv.retired();
                    return self.violate(format!("end {e}: receive {seq} came before {expected}"));
                }
                end.recv.retire(seq);
                end.delivered += 1;
                let mut message = message;
                if message.opcode == Opcode::WriteImm {
                    message.byte_len += std::mem::take(&mut end.mend);
                }
                let id = end.recv.wr_id(seq);
                end.backlog.push_back(Wc::Recv { id, message: Some(message) });
            }
            failed if withhold => {
                if let Cqe::Recv { seq, .. } = failed
                    && end.last_recv == Some(seq)
                {
                    end.recv_back = true;
                }
                end.recv_flushed |= matches!(failed, Cqe::Recv { .. });
                end.withheld.push(failed);
            }
            Cqe::Send { seq, status, .. } => {
                if !end.failed {
                    self.fail(e, seq, status);
                }
            }
            Cqe::Recv { .. } => {
                if !end.failed {
                    let first = end.send.retired();
                    self.fail(e, first, Status::Flushed);
                }
            }
        }
    }

    /// A send completion has come: all that are due, in order.
    fn in_turn(&mut self, e: usize, seq: u64, result: Option<u64>) {
        let end = &mut self.ends[e];
        if end.failed || seq < end.send.retired() {
            return;
        }
        while end.replays.front().is_some_and(|replay| *replay < seq) {
            end.replays.pop_front();
        }
        self.take_due(e);
        let end = &mut self.ends[e];
        if end.replays.front() == Some(&seq) {
            end.replays.pop_front();
        }
        if end.send.is_signaled(seq) {
            let wr_id = end.send.wr_id(seq);
            end.backlog.push_back(Wc::Send(SendWc { wr_id, status: Status::Success, result }));
        }
        end.send.retire(seq);
        self.take_due(e);
    }

    /// Executed requests behind nothing that was handed again and is waited for.
    pub(super) fn take_due(&mut self, e: usize) {
        let unordered = self.is(Broken::SynthesisedOutOfOrder);
        let all = self.is(Broken::UnsignalledReported);
        loop {
            let end = &mut self.ends[e];
            let limit = end.replays.front().copied().unwrap_or(u64::MAX);
            let Some(seq) = end.executed.front().copied().filter(|seq| unordered || *seq < limit)
            else {
                return;
            };
            end.executed.pop_front();
            if all || end.send.is_signaled(seq) {
                let wr_id = end.send.wr_id(seq);
                let status = Status::Success;
                end.backlog.push_back(Wc::Send(SendWc { wr_id, status, result: None }));
            }
            if seq >= end.send.retired() {
                end.send.retire(seq);
            }
            self.reach(Kind::Synthesised);
            if self.ends[e].moves > 0 && limit == u64::MAX {
                continue;
            }
            self.reach(Kind::SynthesisedInTurn);
        }
    }

    /// The queue pair has failed at request `first`, with that status; what is before is done.
    pub(super) fn fail(&mut self, e: usize, first: u64, status: Status) {
        let end = &mut self.ends[e];
        let excuse = self.ledger.accounts[e].excuse;
        end.failed = true;
        end.replays.clear();
        end.again.clear();
        while let Some(seq) = end.executed.pop_front().filter(|seq| *seq < first) {
            if end.send.is_signaled(seq) {
                let wr_id = end.send.wr_id(seq);
                let status = Status::Success;
                end.backlog.push_back(Wc::Send(SendWc { wr_id, status, result: None }));
            }
            end.send.retire(seq);
        }
        end.executed.clear();
        if first > end.send.retired() {
            end.send.retire(first - 1);
        }
        if end.send.retired() < end.send.appended() {
            let wr_id = end.send.wr_id(end.send.retired());
            end.backlog.push_back(Wc::Send(SendWc { wr_id, status, result: None }));
            end.send.retire(end.send.retired());
        }
        let qps = [Some(end.qp), end.fresh.map(|fresh| fresh.qp)];
        self.note(|| format!("end {e} fails at {first}: {excuse:?}"));
        for qp in qps.into_iter().flatten() {
            self.modify_err(qp);
        }
        self.flush_window(e);
        self.flush_receives(e);
    }

    fn flush_window(&mut self, e: usize) {
        let end = &mut self.ends[e];
        end.send.mark_handed(end.send.appended());
        while end.send.retired() < end.send.appended() {
            let seq = end.send.retired();
            let wr_id = end.send.wr_id(seq);
            let status = Status::Flushed;
            end.backlog.push_back(Wc::Send(SendWc { wr_id, status, result: None }));
            end.send.retire(seq);
        }
    }

    fn flush_receives(&mut self, e: usize) {
        // What has come stands before what is flushed.
        for qp in [Some(self.ends[e].qp), self.ends[e].fresh.map(|it| it.qp)].into_iter().flatten()
        {
            while let Some(cqe) = self.poll_cq(qp) {
                let comes = match &cqe {
                    Cqe::Recv { message, .. } => message.is_some() || self.is_shared(e),
                    Cqe::Send { .. } => false,
                };
                if comes && !self.ends[e].told {
                    self.take(e, cqe, qp);
                }
            }
        }
        let end = &mut self.ends[e];
        end.recv.mark_handed(end.recv.appended());
        while end.recv.retired() < end.recv.appended() {
            let seq = end.recv.retired();
            let id = end.recv.wr_id(seq);
            end.recv.retire(seq);
            end.backlog.push_back(Wc::Recv { id, message: None });
        }
    }

    /// When the program acts next.
    pub(super) fn next_step_at(&mut self, e: usize) -> Time {
        let idle = self.ledger.accounts[e].posted == self.ledger.accounts[e].script.len() as u64
            || (self.ends[e].suspended && self.now > self.horizon);
        let most = if idle { 150 } else { self.pace };
        self.now + self.rng.between(1, most)
    }
}
