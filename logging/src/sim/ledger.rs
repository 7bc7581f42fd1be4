//! What really happened, seen from above: the promises are checked against it at every step.
//!
//! It knows each program's list of requests, and is told what devices execute and what programs are
//! told. Neither windows nor machines can look into it.

use super::device::{Message, Status};
use super::script::{CELLS, Wr, answers};
use crate::entry::Opcode;

/// A send completion as the program gets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SendWc {
    pub(super) wr_id: u64,
    pub(super) status: Status,
    pub(super) result: Option<u64>,
}

/// One end's requests, and what became of them.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Account {
    pub(super) script: Vec<Wr>,
    pub(super) posted: u64,
    /// Of WRITEs: bytes that have landed. A packet lands where the one before ended.
    landed: Vec<u32>,
    executed: Vec<u32>,
    /// For each cell at the peer, the last WRITE that has landed in it, from 1.
    cells: [u64; CELLS as usize],
    atomics: u64,
    /// The first request whose completion has not been seen.
    pub(super) seen: u64,
    /// An error has been seen: everything after it is flushed.
    pub(super) failed: bool,
    /// Of the peer's messages, the place in its script of the next that is to be delivered here.
    pub(super) next_message: usize,
    /// Receives whose completions have been seen.
    pub(super) received: u64,
    pub(super) recv_failed: bool,
    /// The link may fail, and why.
    pub(super) excuse: Option<&'static str>,
}

/// All of them.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Ledger {
    pub(super) accounts: Vec<Account>,
    /// Of each receive that was posted to a shared queue, whether its completion has been seen.
    pub(super) shared: Vec<bool>,
}

/// What the program calls its request.
pub(super) fn wr_id(end: usize, seq: u64) -> u64 {
    seq * 7 + end as u64 + 1000
}

/// What it calls its receive.
pub(super) fn recv_id(end: usize, seq: u64) -> u64 {
    seq * 5 + end as u64 + 500_000
}

/// What a program calls the receive that it posts as the `n`-th to a shared queue.
pub(super) fn shared_id(n: u64) -> u64 {
    n * 3 + 900_000
}

/// Its immediate data.
pub(super) fn imm(end: usize, seq: u64) -> u32 {
    (seq as u32) << 8 | end as u32
}

impl Ledger {
    pub(super) fn new(scripts: Vec<Vec<Wr>>) -> Self {
        let account = |script: Vec<Wr>| Account {
            landed: vec![0; script.len()],
            executed: vec![0; script.len()],
            script,
            ..Account::default()
        };
        Ledger { accounts: scripts.into_iter().map(account).collect(), shared: Vec::new() }
    }

    /// A packet of a WRITE has been written.
    pub(super) fn land(
        &mut self,
        end: usize,
        seq: u64,
        (from, to): (u32, u32),
        cell: u64,
        good: bool,
    ) -> Result<(), String> {
        let it = &mut self.accounts[end];
        let landed = &mut it.landed[seq as usize];
        if *landed != from {
            return Err(format!(
                "promise 3: bytes {from}..{to} of WRITE {seq} of end {end} landed where {landed} had"
            ));
        }
        if !good {
            return Err(format!("promise 2: WRITE {seq} of end {end} landed from a reused buffer"));
        }
        *landed = to;
        if to > from {
            it.cells[cell as usize] = it.cells[cell as usize].max(seq + 1);
        }
        Ok(())
    }

    pub(super) fn read(&self, end: usize, cell: u64) -> u64 {
        self.accounts[end].cells[cell as usize]
    }

    pub(super) fn atomic(&mut self, end: usize) -> u64 {
        self.accounts[end].atomics += 1;
        self.accounts[end].atomics - 1
    }

    /// The last packet of a request has been executed.
    pub(super) fn executed(&mut self, end: usize, seq: u64) -> Result<(), String> {
        let it = &mut self.accounts[end];
        let opcode = it.script[seq as usize].opcode;
        let times = &mut it.executed[seq as usize];
        *times += 1;
        if *times > 1 && opcode != Opcode::Read {
            return Err(format!(
                "promises 2 and 3: {opcode:?} {seq} of end {end} was executed {times} times"
            ));
        }
        if seq > 0 && it.executed[seq as usize - 1] == 0 {
            return Err(format!(
                "{opcode:?} {seq} of end {end} was executed before the one before it"
            ));
        }
        Ok(())
    }

    /// The program gets a send completion.
    pub(super) fn completed(&mut self, end: usize, wc: &SendWc) -> Result<(), String> {
        let it = &mut self.accounts[end];
        // The next that has to come: after an error every request has one.
        let failing = it.failed || wc.status != Status::Success;
        let mut next = it.seen;
        let is_quiet = |next: u64| !it.script[next as usize].is_signaled();
        while next < it.posted && is_quiet(next) && wr_id(end, next) != wc.wr_id && !it.failed {
            next += 1;
        }
        if next >= it.posted || wr_id(end, next) != wc.wr_id {
            return Err(format!(
                "promise 1: end {end} got {wc:?}, where request {next} (id {}) was next of {}",
                wr_id(end, next),
                it.posted
            ));
        }
        let wr = it.script[next as usize];
        it.seen = next + 1;
        if it.failed && wc.status == Status::Success {
            return Err(format!("promise 1: request {next} of end {end} succeeded after an error"));
        }
        it.failed |= failing;
        if failing {
            return match it.excuse {
                Some(_) => Ok(()),
                None => Err(format!(
                    "promise 1: {wr:?} {next} of end {end} failed for no reason: {wc:?}"
                )),
            };
        }
        if !wr.is_signaled() {
            return Err(format!(
                "promise 1: request {next} of end {end} was not signalled: {wc:?}"
            ));
        }
        if it.executed[next as usize] == 0 {
            return Err(format!(
                "promise 1: {wr:?} {next} of end {end} succeeded, and was not executed"
            ));
        }
        if answers(wr.opcode) {
            return it.check_result(end, next, wc.result);
        }
        Ok(())
    }

    /// The program gets a receive completion; `None` for an error.
    pub(super) fn delivered(
        &mut self,
        end: usize,
        id: u64,
        message: Option<&Message>,
    ) -> Result<(), String> {
        let seq = self.accounts[end].received;
        if id != recv_id(end, seq) {
            return Err(format!("promise 1: receive {seq} of end {end} was next, not id {id}"));
        }
        self.received(end, message)
    }

    /// The same for a receive of a shared queue: any link may get any, and each is used once.
    pub(super) fn delivered_shared(
        &mut self,
        end: usize,
        id: u64,
        message: Option<&Message>,
    ) -> Result<(), String> {
        let n = (0..self.shared.len()).find(|n| shared_id(*n as u64) == id);
        let Some(seen) = n.and_then(|n| self.shared.get_mut(n)) else {
            return Err(format!("promise 1: end {end} got receive {id}, which nobody has posted"));
        };
        if std::mem::replace(seen, true) {
            return Err(format!("promise 1: end {end} got shared receive {id} a second time"));
        }
        self.received(end, message)
    }

    /// A receive of an end has ended; its next message is in it, or it failed.
    fn received(&mut self, end: usize, message: Option<&Message>) -> Result<(), String> {
        let sender = end ^ 1;
        let it = &self.accounts[end];
        let seq = it.received;
        let Some(message) = message else {
            let it = &mut self.accounts[end];
            (it.received, it.recv_failed) = (seq + 1, true);
            return match it.excuse {
                Some(_) => Ok(()),
                None => Err(format!("promise 1: receive {seq} of end {end} failed for no reason")),
            };
        };
        if it.recv_failed {
            return Err(format!("promise 1: receive {seq} of end {end} succeeded after an error"));
        }
        let script = &self.accounts[sender].script;
        let next = (it.next_message..script.len()).find(|at| script[*at].is_message());
        let Some(next) = next.filter(|next| *next as u64 == message.seq) else {
            return Err(format!("promise 2: end {end} got {message:?} where {next:?} was next"));
        };
        let wr = script[next];
        let as_sent = message.opcode == wr.opcode
            && message.byte_len == wr.length
            && message.good
            && (wr.opcode == Opcode::Send || message.imm == imm(sender, message.seq));
        if !as_sent {
            return Err(format!("promise 2: end {end} got {message:?} where {wr:?} was sent"));
        }
        let it = &mut self.accounts[end];
        (it.next_message, it.received) = (next + 1, seq + 1);
        Ok(())
    }

    /// What of an end's requests has not come to its end.
    pub(super) fn unfinished(&self, end: usize, peer_is_dead: bool) -> Option<String> {
        let (it, peer) = (&self.accounts[end], &self.accounts[end ^ 1]);
        if it.posted < it.script.len() as u64 {
            return Some(format!("end {end} has posted {} of {}", it.posted, it.script.len()));
        }
        let open =
            (it.seen..it.posted).find(|seq| it.failed || it.script[*seq as usize].is_signaled());
        if let Some(seq) = open {
            let wr = it.script[seq as usize];
            return Some(format!("request {seq} of end {end} has no completion: {wr:?}"));
        }
        if it.failed || peer.failed || peer.recv_failed || peer_is_dead {
            return None;
        }
        if let Some(seq) = it.executed.iter().position(|times| *times == 0) {
            let wr = it.script[seq];
            return Some(format!("request {seq} of end {end} was not executed: {wr:?}"));
        }
        let missing = (peer.next_message..it.script.len()).find(|at| it.script[*at].is_message());
        missing.map(|seq| format!("message {seq} of end {end} was not delivered"))
    }
}

impl Account {
    fn check_result(&self, end: usize, seq: u64, result: Option<u64>) -> Result<(), String> {
        let before = &self.script[..seq as usize];
        let wr = &self.script[seq as usize];
        if wr.opcode.is_atomic() {
            let wanted = before.iter().filter(|wr| wr.opcode.is_atomic()).count() as u64;
            if result != Some(wanted) {
                return Err(format!(
                    "promise 3: atomic {seq} of end {end} returned {result:?}, not {wanted}"
                ));
            }
            return Ok(());
        }
        // What was written before is seen; what was posted later may be, without a fence.
        let is_write = |wr: &Wr| matches!(wr.opcode, Opcode::Write | Opcode::WriteImm);
        let last =
            before.iter().rposition(|it| is_write(it) && it.cell == wr.cell && it.length > 0);
        let least = last.map_or(0, |at| at as u64 + 1);
        match result {
            Some(value) if (least..=self.posted).contains(&value) => Ok(()),
            _ => Err(format!(
                "promise 3: READ {seq} of end {end} returned {result:?}; {least} had been written"
            )),
        }
    }
}
