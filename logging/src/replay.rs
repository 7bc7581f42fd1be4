//! What the peer has executed, request by request, when a path has come to an end.
//!
//! RC delivers in order, so both ends count, and nothing need be added to what goes over the wire.
//! Three numbers of the responder tell how far it has come, once it executes nothing more (its queue
//! pair is in ERR, and what was posted to it has come back):
//!
//! - how many *messages* it has delivered since the queue pairs were connected: SENDs, and WRITEs with
//!   immediate data, each of which takes a receive;
//! - its expected *packet sequence number*, where the device's is live. A request takes as many
//!   numbers as it has packets; a READ those of its response; an atomic, and a request of no bytes,
//!   one (IBTA 9.4, 9.7.2);
//! - its *record*, where that number is not live: a word in its memory, into which the requester writes,
//!   behind WRITEs that no message follows, how many requests of the connection stand before that very
//!   write. It is a request of one packet that is not in the window, and RC executes in order: so all
//!   before it have been executed.
//!
//! A record counts from the first request of the connection, through all incarnations, and never less
//! than the one before. So it needs no number of its incarnation, and no word has to be cleared
//! between two: an old one that came late (which fencing rules out) would still be true, and only tell
//! less. It says what was executed, and not what was not: hence it is believed without the barrier, too.
//! The word begins at 0 with a connection, before its first packet can come.
//!
//! How often: [`record_interval`]. A record that a queue pair refuses to take was not made.
//!
//! An *incarnation* is the time during which one physical queue pair is attached. It begins with
//! requests that are done again, in the order of the window, and goes on with the window from the
//! cursor on; the packet numbers of one incarnation say nothing of another.
//!
//! | request | executed | in part | not at all |
//! | --- | --- | --- | --- |
//! | SEND | done | again, whole: its receive was not used up | again |
//! | WRITE | done | the rest: what has landed may have been seen | again |
//! | WRITE with immediate | done | the rest, with the immediate data | again |
//! | READ | again: its data has not come | again | again |
//! | atomic | undecided: its result has not come | | again |
//!
//! Without a live packet number, WRITEs and atomics behind both the last delivered message and the
//! record are undecided. What is undecided ends with an error, and all that follows is flushed: never a silent guess.
//!
//! Requests whose completion has come are done, and so is everything before them. To add up what was
//! posted costs nothing when posting: it is done for many requests at once, before their places in
//! the window are used again.

mod still;

use crate::entry::Opcode;
use crate::send::SendWindow;
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{MutexGuard, PoisonError};

/// Packet sequence numbers have 24 bits (IBTA 9.2).
const PSNS: u64 = 1 << 24;

/// Where the requests of an incarnation begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Start {
    /// Packet sequence number of the first packet.
    pub psn: u32,
    /// Path MTU in bytes.
    pub mtu: u32,
}

/// How far a responder has come; it executes nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Executed {
    /// Messages delivered since the queue pairs were connected.
    pub messages: u64,
    /// The packet sequence number that it expected next; `None` where the device's is not live.
    pub psn: Option<u32>,
    /// It has passed the barrier: nothing moves the number any more. Without, the number is not
    /// believed. (Not even where nothing is under way by now: it may have been told while something
    /// was, and is not needed where nothing is.)
    pub settled: bool,
    /// What its word says: as many requests of the connection have been executed, and maybe more.
    /// `None` where it keeps none.
    pub recorded: Option<u64>,
}

/// WRITEs behind which a record goes: a record costs about as much as a WRITE, so this makes them dearer
/// by a sixteenth; and as many are undecided, at most, behind the last record that has arrived.
const RECORD_EVERY: u32 = 16;
/// Records in each window's length at least: in a short one they come closer together. (If only every
/// sixteenth WRITE were followed by one, a window of sixteen would be full of undecided ones.)
const RECORDS_IN_WINDOW: u32 = 4;

/// After so many WRITEs that no message follows goes a record, in a window of that depth. (A little
/// later where requests are handed in lists, and never sooner.)
#[must_use]
pub fn record_interval(depth: u32) -> u32 {
    RECORD_EVERY.min(depth.div_ceil(RECORDS_IN_WINDOW)).max(1)
}

/// Most records that may stand in a physical send queue together with the requests of a window of that
/// depth: one behind each so many of them, and one behind the last that has its completion.
#[must_use]
pub fn record_slots(depth: u32) -> u32 {
    (depth / RECORD_EVERY).max(RECORDS_IN_WINDOW) + 1
}

/// Most proofs that may stand there: one behind the tail of a queue pair that was stopped, which comes back no sooner
/// than that; and one behind all, where it is taken down meanwhile.
pub const PROOF_SLOTS: u32 = 2;

/// A request that is done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replay {
    /// Which one.
    pub seq: u64,
    /// Its leading bytes that have landed already: of WRITEs alone.
    pub skip: u32,
}

/// What is to be done with the requests that were handed, and whose completions have not come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be done again, in order, before anything else is handed.
    pub replays: Vec<Replay>,
    /// Executed: their completions are ours to make, in order with the others.
    pub executed: Vec<u64>,
    /// The first request of which nobody can tell; it and all that follow end with errors.
    pub undecided: Option<u64>,
}

/// What a connection has had so far, as far as it is not in the window any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// The first request of the connection.
    pub base: u64,
    /// Messages since then.
    pub messages: u64,
}

/// A responder claims what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// Messages delivered, where between so many and so many can have been.
    Messages {
        /// As told.
        told: u64,
        /// What is known to have been delivered.
        least: u64,
        /// What was handed.
        most: u64,
    },
    /// A packet sequence number, so many packets beyond what is known, where fewer can have been
    /// executed: so many were handed, or lie before the message after the last that was delivered.
    Packets {
        /// As told.
        told: u32,
        /// Beyond what is known to have been executed.
        ahead: u64,
        /// As many can have been executed beyond that.
        most: u64,
    },
    /// A record of requests, where none of so many was made, or one of so many cannot have come behind
    /// a message that was not delivered.
    Record {
        /// As told.
        told: u64,
        /// What can be.
        most: u64,
    },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Messages { told, least, most } => write!(
                f,
                "the peer says that it has delivered {told} messages; at least {least} are known, \
                 and {most} were posted"
            ),
            ReplayError::Packets { told, ahead, most } => write!(
                f,
                "the peer says that it expects packet {told:#x}, {ahead} beyond the last that is \
                 known, where {most} can be"
            ),
            ReplayError::Record { told, most } => write!(
                f,
                "the peer's record says that it has executed {told} requests, where {most} can be"
            ),
        }
    }
}

impl std::error::Error for ReplayError {}

/// What was posted so far, as far as it is not in the window any more; and how the incarnation
/// began.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Progress {
    /// There is a peer to be asked.
    connected: bool,
    /// The first request of the connection.
    base: u64,
    /// Requests before this one stand before the last record.
    recorded: u64,
    start: Start,
    /// Done again at the beginning of this incarnation, each with its packets.
    replays: Vec<(Replay, u64)>,
    /// Executed in earlier incarnations, without a completion so far.
    executed: Vec<u64>,
    /// The window from here on was handed in this incarnation.
    from: u64,
    /// Requests before this one are in the sums.
    summed: u64,
    /// Packets of requests from `from` on.
    packets: u64,
    /// Messages since the queue pairs were connected.
    messages: u64,
    /// Requests of ours, of one packet each, and not in the sums: each stands before the request of
    /// this sequence.
    hidden: Vec<u64>,
}

pub(crate) fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    /// The first request that the peer's record does not prove; and a message before that which its
    /// count lacks, where the count was told before the barrier. (That message was executed, and what
    /// it was delivered into is forgotten: nobody can have it delivered once.)
    fn recorded_by(
        &self,
        peer: &Executed,
        undelivered: Option<u64>,
    ) -> Result<(u64, Option<u64>), ReplayError> {
        let told = peer.recorded.unwrap_or(0);
        let most = self.recorded - self.base;
        if told > most {
            return Err(ReplayError::Record { told, most });
        }
        let upto = self.base + told;
        let unheard = undelivered.filter(|seq| *seq < upto);
        match unheard {
            Some(seq) if peer.settled => {
                Err(ReplayError::Record { told, most: seq.saturating_sub(self.base) })
            }
            unheard => Ok((upto, unheard)),
        }
    }
}

fn is_message(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Send | Opcode::SendImm | Opcode::SendInv | Opcode::WriteImm)
}

/// Bit `n`: the opcode that verbs number `n` is a message.
const MESSAGES: u32 = 1 << Opcode::Send as u32
    | 1 << Opcode::SendImm as u32
    | 1 << Opcode::SendInv as u32
    | 1 << Opcode::WriteImm as u32;
/// Bit `n`: the opcode that verbs number `n` is an atomic.
const ATOMICS: u32 = 1 << Opcode::CompareSwap as u32 | 1 << Opcode::FetchAdd as u32;

/// The smallest path MTU that there is: a start that names less says nothing of sense.
const MIN_MTU: u32 = 256;

/// Packet sequence numbers that a request takes: of so many bytes, over that path MTU.
#[must_use]
pub fn packets(opcode: Opcode, bytes: u64, mtu: u32) -> u64 {
    let mtu = u64::from(mtu.max(MIN_MTU));
    if opcode.is_atomic() { 1 } else { bytes.div_ceil(mtu).max(1) }
}

/// A request of this incarnation, with the packets that it took: from, and to before.
struct Posted {
    seq: u64,
    skip: u32,
    first: u64,
    end: u64,
}

impl SendWindow {
    fn packets_of(&self, seq: u64, skip: u32, mtu: u32) -> u64 {
        packets(self.entry(seq).opcode, self.length(seq).saturating_sub(skip.into()), mtu)
    }

    /// Producer: requests before `upto` are about to be overwritten.
    pub(crate) fn add_up(&self, upto: u64) {
        let mut progress = lock(&self.progress);
        if !progress.connected {
            return;
        }
        let Progress { summed, from, start, .. } = *progress;
        let (mut messages, mut packets) = (0, 0);
        let is_message = |opcode: u32| u64::from(MESSAGES >> opcode & 1);
        self.weigh(summed..upto.min(from), |opcode, _| messages += is_message(opcode));
        let mtu = u64::from(start.mtu.max(MIN_MTU));
        self.weigh(summed.max(from)..upto, |opcode, bytes| {
            messages += is_message(opcode);
            // Almost all are of one packet: no division for them.
            let one = bytes <= mtu || ATOMICS >> opcode & 1 != 0;
            packets += if one { 1 } else { bytes.div_ceil(mtu) };
        });
        if !progress.hidden.is_empty() {
            let before = progress.hidden.iter().take_while(|at| **at < upto).count();
            progress.hidden.drain(..before);
            packets += before as u64;
        }
        progress.messages += messages;
        progress.packets += packets;
        progress.summed = progress.summed.max(upto);
    }

    /// Producer: a request of one packet that is not in the window was given to the physical queue
    /// pair, behind all that were handed: it proves them by its completion.
    pub fn hide(&self) {
        lock(&self.progress).hidden.push(self.handed());
    }

    /// Producer: what a record says that is posted now, behind all that were handed, none of which
    /// waits to be handed again.
    #[must_use]
    pub fn next_record(&self) -> u64 {
        self.handed() - lock(&self.progress).base
    }

    /// Producer: that record was given to the physical queue pair.
    pub fn note_record(&self) {
        let mut progress = lock(&self.progress);
        progress.recorded = self.handed();
        progress.hidden.push(self.handed());
    }

    /// Producer: the queue pair is connected, and nothing is in its window. Messages count from here.
    pub fn connect(&self, start: Start) {
        let now = self.appended();
        *lock(&self.progress) = Progress {
            connected: true,
            start,
            base: now,
            recorded: now,
            from: now,
            summed: now,
            ..Progress::default()
        };
    }

    /// What the connection has had before the first request of the window; `None` without a peer to be
    /// asked. For who writes the window down.
    #[must_use]
    pub fn past(&self) -> Option<Past> {
        let progress = lock(&self.progress);
        if !progress.connected {
            return None;
        }
        let mut messages = progress.messages;
        // What is not in the sums was not overwritten.
        self.weigh(progress.summed..self.retired().max(progress.summed), |opcode, _| {
            messages += u64::from(MESSAGES >> opcode & 1);
        });
        Some(Past { base: progress.base, messages })
    }

    /// Producer, of a window that has been filled anew: the connection goes on as after that past. Its peer
    /// has no record of it. To be [attached](Self::attach) next.
    ///
    /// # Panics
    /// Where the connection would begin behind the window.
    pub fn resume(&self, past: Past) {
        let first = self.retired();
        assert!(past.base <= first, "a connection from {} in a window from {first}", past.base);
        *lock(&self.progress) = Progress {
            connected: true,
            base: past.base,
            recorded: past.base,
            from: self.handed(),
            summed: first,
            messages: past.messages,
            ..Progress::default()
        };
    }

    /// Producer, while no physical queue pair is attached: another incarnation begins. Its peer
    /// executes the plan's replays first, and then whatever is handed after that.
    pub fn attach(&self, start: Start, plan: &Plan) {
        let mut progress = lock(&self.progress);
        let progress = &mut *progress;
        (progress.start, progress.packets, progress.from) = (start, 0, self.handed());
        let packets = |it: &Replay| self.packets_of(it.seq, it.skip, start.mtu);
        progress.replays = plan.replays.iter().map(|it| (*it, packets(it))).collect();
        progress.executed.clone_from(&plan.executed);
        progress.hidden.clear();
    }

    /// Producer, while no physical queue pair is attached: what is to be done with the requests from
    /// `first` on that were handed. Those before have their completions.
    ///
    /// # Errors
    /// Where the responder's numbers cannot be.
    pub fn judge(&self, peer: &Executed, first: u64) -> Result<Plan, ReplayError> {
        let progress = lock(&self.progress);
        let (posted, total) = self.posted(&progress);
        let is_done = |seq: u64| seq < first || progress.executed.binary_search(&seq).is_ok();
        // Messages before each request; the last that has been delivered proves what is before it.
        let handed = self.handed();
        let (mut least, mut most) = (progress.messages, progress.messages);
        let (mut counted, mut undelivered) = (first, None);
        for seq in progress.summed..handed {
            if !is_message(self.entry(seq).opcode) {
                continue;
            }
            if most < peer.messages {
                counted = counted.max(seq + 1);
            } else {
                undelivered.get_or_insert(seq);
            }
            most += 1;
            if is_done(seq) {
                least = most;
            }
        }
        if peer.messages < least || peer.messages > most {
            return Err(ReplayError::Messages { told: peer.messages, least, most });
        }
        let (recorded, unheard) = progress.recorded_by(peer, undelivered)?;
        let reached = match peer.psn.filter(|_| peer.settled) {
            Some(psn) => self.reached(&progress, (&posted, total), psn, counted, is_done)?,
            None => None,
        };
        let mut plan = Plan {
            executed: progress.executed.iter().copied().filter(|seq| *seq >= first).collect(),
            ..Plan::default()
        };
        let proven = counted.max(recorded);
        // Nothing behind a message that was not delivered has been executed.
        let mut stuck = false;
        for Posted { seq, skip, first: begin, end } in posted {
            if is_done(seq) {
                continue;
            }
            if unheard == Some(seq) {
                plan.undecided = Some(seq);
                break;
            }
            let opcode = self.entry(seq).opcode;
            stuck |= is_message(opcode) && seq >= proven;
            let by_packets = reached.map(|reached| reached >= end);
            if seq < proven || by_packets == Some(true) {
                match opcode {
                    Opcode::Read => plan.replays.push(Replay { seq, skip: 0 }),
                    opcode if opcode.is_atomic() => {
                        plan.undecided = Some(seq);
                        break;
                    }
                    _ => plan.executed.push(seq),
                }
                continue;
            }
            let writes = matches!(opcode, Opcode::Write | Opcode::WriteImm);
            let Some(reached) = reached else {
                // Of a message that was cut no count tells how much of it has landed.
                let cut = stuck && is_message(opcode) && writes && end - begin > 1;
                if cut || (!stuck && (writes || opcode.is_atomic())) {
                    plan.undecided = Some(seq);
                    break;
                }
                plan.replays.push(Replay { seq, skip });
                continue;
            };
            let mtu = u64::from(progress.start.mtu.max(MIN_MTU));
            let landed = u64::from(skip) + reached.saturating_sub(begin) * mtu;
            let skip = if writes { u32::try_from(landed).unwrap_or(u32::MAX) } else { 0 };
            plan.replays.push(Replay { seq, skip });
        }
        if let Some(undecided) = plan.undecided {
            plan.executed.retain(|seq| *seq < undecided);
            plan.replays.retain(|replay| replay.seq < undecided);
        }
        plan.executed.sort_unstable();
        Ok(plan)
    }

    /// The requests of this incarnation that are still in the window, in the order in which they
    /// were posted; and the packets of all.
    fn posted(&self, progress: &Progress) -> (Vec<Posted>, u64) {
        let mtu = progress.start.mtu;
        let mut hidden = progress.hidden.iter().copied().peekable();
        let mut next = 0;
        let mut posted = Vec::new();
        for &(Replay { seq, skip }, n) in &progress.replays {
            posted.push(Posted { seq, skip, first: next, end: next + n });
            next += n;
        }
        next += progress.packets;
        for seq in progress.summed.max(progress.from)..self.handed() {
            while hidden.next_if(|at| *at <= seq).is_some() {
                next += 1;
            }
            let n = self.packets_of(seq, 0, mtu);
            posted.push(Posted { seq, skip: 0, first: next, end: next + n });
            next += n;
        }
        (posted, next + hidden.count() as u64)
    }

    /// Packets of this incarnation that the peer has executed; `None` where as many are out as there
    /// are numbers, so that one number stands for two places.
    fn reached(
        &self,
        progress: &Progress,
        (posted, total): (&[Posted], u64),
        psn: u32,
        proven: u64,
        is_done: impl Fn(u64) -> bool,
    ) -> Result<Option<u64>, ReplayError> {
        let again: u64 = progress.replays.iter().map(|(_, packets)| packets).sum();
        let summed = if progress.summed > progress.from { again + progress.packets } else { 0 };
        // A message that was delivered proves as much as a completion. (A READ before it proves
        // nothing: the message may be of an earlier incarnation, and the READ done again in this.)
        let is_message = |it: &Posted| is_message(self.entry(it.seq).opcode);
        let is_known = |it: &&Posted| is_done(it.seq) || (it.seq < proven && is_message(it));
        let known = posted.iter().filter(is_known).map(|it| it.end).max().unwrap_or(0).max(summed);
        // And the first message that was not delivered has its last packet still to come.
        let limit = posted.iter().find(|it| !is_known(it) && is_message(it)).map(|it| it.end - 1);
        let most = limit.unwrap_or(total).max(known);
        // The number has come round so often that what is known does not exceed it.
        let psn = u64::from(psn);
        let ahead = (psn + PSNS * 2 - u64::from(progress.start.psn) - known % PSNS) % PSNS;
        if known + ahead > most {
            let most = most - known;
            return Err(ReplayError::Packets { told: psn as u32, ahead, most });
        }
        Ok((known + ahead + PSNS > most).then_some(known + ahead))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::entry::{Element, SendEntry};
    use proptest::prelude::*;

    /// Promise: a window that was written down and filled anew knows as much of the past as the first did:
    /// what the peer has delivered since the connection began fits.
    #[test]
    fn a_window_that_is_filled_anew_knows_its_past() {
        let send = SendEntry { opcode: Opcode::Send, ..SendEntry::empty() };
        let window = SendWindow::new(2, 1, 0);
        let post = |window: &SendWindow| {
            let seq = window.append(&send, [].into_iter()).unwrap();
            window.mark_handed(seq + 1);
            seq
        };
        for _ in 0..3 {
            window.retire(post(&window));
        }
        assert_eq!(window.past(), None);
        window.connect(Start { psn: 7, mtu: 1024 });
        for _ in 0..5 {
            window.retire(post(&window));
        }
        let (done, open) = (post(&window), post(&window));
        let past = window.past().unwrap();
        assert_eq!(past, Past { base: 3, messages: 5 });

        let anew = SendWindow::new(2, 1, 0);
        anew.begin_at(window.retired());
        assert_eq!((post(&anew), post(&anew)), (done, open));
        anew.resume(past);
        let replays = vec![Replay { seq: open, skip: 0 }];
        anew.attach(
            Start { psn: 9, mtu: 1024 },
            &Plan { executed: vec![done], replays: replays.clone(), undecided: None },
        );
        assert_eq!(anew.past(), Some(past));
        let peer = Executed { messages: 6, psn: Some(9), settled: true, recorded: None };
        let plan = anew.judge(&peer, anew.retired()).unwrap();
        assert_eq!((plan.executed, plan.replays), (vec![done], replays));
        let more = Executed { messages: 8, ..peer };
        assert!(anew.judge(&more, anew.retired()).is_err(), "more than were posted");
    }

    const OPCODES: [Opcode; 7] = [
        Opcode::Write,
        Opcode::WriteImm,
        Opcode::Send,
        Opcode::SendImm,
        Opcode::Read,
        Opcode::CompareSwap,
        Opcode::FetchAdd,
    ];

    /// What goes over the wire.
    #[derive(Clone, Copy)]
    enum Sent {
        /// A request, from a byte on.
        Request(Replay),
        /// One of ours, of no bytes.
        Proof,
        /// A record.
        Record(u64),
    }

    /// What is asked of the responder, beside its count.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Source {
        Psn,
        Record,
        Counts,
    }

    /// A responder that executes packet by packet, and remembers all that it has done.
    #[derive(Default)]
    struct Responder {
        /// What is to come, in this incarnation.
        wire: Vec<Sent>,
        /// What the last record said.
        word: u64,
        next: usize,
        /// Packets of the next one that have been executed.
        within: u64,
        psn: u32,
        messages: u64,
        /// How often each byte of each WRITE has landed, and each other request was executed.
        landed: Vec<Vec<u8>>,
        times: Vec<u32>,
    }

    struct Model {
        window: SendWindow,
        posted: Vec<(Opcode, u32)>,
        responder: Responder,
        mtu: u32,
        /// Requests with completions.
        completed: u64,
        /// Handed, or told to be executed without a completion so far.
        executed: Vec<u64>,
    }

    impl Model {
        fn new(start: Start) -> Self {
            let window = SendWindow::new(16, 2, 0);
            window.connect(start);
            let responder = Responder { psn: start.psn, ..Responder::default() };
            let (posted, executed) = (Vec::new(), Vec::new());
            Model { window, posted, responder, mtu: start.mtu, completed: 0, executed }
        }

        fn post(&mut self, opcode: Opcode, length: u32) {
            let length = if opcode.is_atomic() { 8 } else { length };
            let half = length / 2;
            let element = |length| Element { addr: 0, length, lkey: 0 };
            let elements = [element(half), element(length - half)];
            let entry = SendEntry { opcode, ..SendEntry::empty() };
            let Ok(seq) = self.window.append(&entry, elements.into_iter()) else { return };
            self.window.mark_handed(seq + 1);
            assert_eq!(self.window.length(seq), u64::from(length));
            self.posted.push((opcode, length));
            self.responder.landed.push(vec![0; length as usize]);
            self.responder.times.push(0);
            self.responder.wire.push(Sent::Request(Replay { seq, skip: 0 }));
        }

        fn hide(&mut self) {
            self.window.hide();
            self.responder.wire.push(Sent::Proof);
        }

        fn record(&mut self) {
            self.responder.wire.push(Sent::Record(self.window.next_record()));
            self.window.note_record();
        }

        /// The responder executes a packet, if there is one.
        fn execute(&mut self) {
            let Some(&next) = self.responder.wire.get(self.responder.next) else { return };
            let Sent::Request(Replay { seq, skip }) = next else {
                let it = &mut self.responder;
                (it.psn, it.next) = ((it.psn + 1) & (PSNS as u32 - 1), it.next + 1);
                if let Sent::Record(word) = next {
                    assert!(word >= it.word, "records never tell less");
                    it.word = word;
                }
                return;
            };
            let (opcode, length) = self.posted[seq as usize];
            let it = &mut self.responder;
            let left = length - skip;
            let n = packets(opcode, left.into(), self.mtu);
            if matches!(opcode, Opcode::Write | Opcode::WriteImm) {
                let from = (skip + it.within as u32 * self.mtu) as usize;
                let to = (from + self.mtu as usize).min(length as usize);
                it.landed[seq as usize][from..to].iter_mut().for_each(|byte| *byte += 1);
            }
            // A READ's and an atomic's numbers pass as one: requests are single packets.
            let step = if opcode == Opcode::Read { n - it.within } else { 1 };
            it.psn = (it.psn + step as u32) & (PSNS as u32 - 1);
            it.within += step;
            if it.within == n {
                it.messages += u64::from(is_message(opcode));
                it.times[seq as usize] += 1;
                (it.next, it.within) = (it.next + 1, 0);
            }
        }

        /// Completions of up to `n` executed requests come.
        fn complete(&mut self, n: u64) {
            for _ in 0..n {
                let seq = self.completed;
                let it = &self.responder;
                let is_it = |sent: &Sent| matches!(sent, Sent::Request(it) if it.seq == seq);
                let by_wire = it.wire[..it.next].iter().any(is_it);
                if !by_wire && !self.executed.contains(&seq) {
                    return;
                }
                self.window.retire(seq);
                self.completed += 1;
            }
        }

        /// The path ends, and another begins. False where something was undecided.
        fn remap(&mut self, start: Start, source: Source) -> bool {
            let it = &self.responder;
            let psn = (source == Source::Psn).then_some(it.psn);
            let recorded = (source == Source::Record).then_some(it.word);
            let peer = Executed { messages: it.messages, psn, settled: true, recorded };
            let plan = self.window.judge(&peer, self.completed).unwrap();
            for seq in self.completed..self.window.handed() {
                let (opcode, _) = self.posted[seq as usize];
                let executed = it.times[seq as usize] > 0;
                if plan.undecided.is_some_and(|undecided| seq >= undecided) {
                    continue;
                }
                let again = plan.replays.iter().any(|replay| replay.seq == seq);
                assert_eq!(plan.executed.contains(&seq), !again, "request {seq}: {plan:?}");
                assert_eq!(again, !executed || opcode == Opcode::Read, "request {seq}: {plan:?}");
            }
            if let Some(seq) = plan.undecided {
                let (opcode, _) = self.posted[seq as usize];
                let writes = matches!(opcode, Opcode::Write | Opcode::WriteImm);
                assert!(
                    opcode.is_atomic() || (writes && source != Source::Psn),
                    "{opcode:?} is decidable"
                );
                let is_proven = source == Source::Record && seq < it.word;
                assert!(
                    opcode.is_atomic() || !is_proven,
                    "{opcode:?} {seq} stands before a record"
                );
                return false;
            }
            self.window.attach(start, &plan);
            self.executed = plan.executed;
            let it = &mut self.responder;
            (it.next, it.within) = (0, 0);
            it.wire = plan.replays.into_iter().map(Sent::Request).collect();
            (it.psn, self.mtu) = (start.psn, start.mtu);
            true
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Post(Opcode, u32),
        Execute(u8),
        Complete(u64),
        Hide,
        Record,
        Remap(Start, Source),
    }

    fn start() -> impl Strategy<Value = Start> {
        let psn = prop_oneof![0..PSNS as u32, PSNS as u32 - 20..PSNS as u32];
        (psn, 0..5u32).prop_map(|(psn, mtu)| Start { psn, mtu: 256 << mtu })
    }

    fn source() -> impl Strategy<Value = Source> {
        prop_oneof![6 => Just(Source::Psn), 3 => Just(Source::Record), 1 => Just(Source::Counts)]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (prop::sample::select(&OPCODES[..]), 0..9000u32).prop_map(|(o, n)| Step::Post(o, n)),
            8 => (1..20u8).prop_map(Step::Execute),
            4 => (1..6u64).prop_map(Step::Complete),
            1 => Just(Step::Hide),
            2 => Just(Step::Record),
            2 => (start(), source()).prop_map(|(start, source)| Step::Remap(start, source)),
        ]
    }

    proptest! {
        /// Promises 1 to 3: through any number of paths every request is executed once, each byte of
        /// a WRITE lands once, and only what cannot be decided is given up.
        #[test]
        fn every_request_is_executed_once(first in start(), steps in prop::collection::vec(step(), 1..120)) {
            let mut model = Model::new(first);
            let mut decided = true;
            for step in steps {
                match step {
                    Step::Post(opcode, length) => model.post(opcode, length),
                    Step::Execute(n) => (0..n).for_each(|_| model.execute()),
                    Step::Complete(n) => model.complete(n),
                    Step::Hide => model.hide(),
                    Step::Record => model.record(),
                    Step::Remap(start, source) => decided = model.remap(start, source),
                }
                if !decided {
                    break;
                }
            }
            if decided {
                while model.responder.next < model.responder.wire.len() {
                    model.execute();
                }
                model.complete(u64::MAX);
                prop_assert_eq!(model.completed, model.window.appended());
            }
            for (seq, (opcode, _)) in model.posted.iter().enumerate() {
                let times = model.responder.times[seq];
                prop_assert!(times == 1 || !decided || *opcode == Opcode::Read, "{seq}: {times}");
                prop_assert!(times <= 1 || *opcode == Opcode::Read, "{seq}: {times}");
                if matches!(opcode, Opcode::Write | Opcode::WriteImm) {
                    let most = u8::from(decided);
                    prop_assert!(model.responder.landed[seq].iter().all(|n| (most..=1).contains(n)));
                }
            }
        }

        /// Promise 3: a packet number that stands for two places decides nothing.
        #[test]
        fn a_number_that_has_come_round_is_not_believed(psn in 0..PSNS as u32, extra in 0..3u32) {
            let start = Start { psn: 7, mtu: 256 };
            let window = SendWindow::new(4, 2, 0);
            window.connect(start);
            let half = Element { addr: 0, length: 1 << 31, lkey: 0 };
            let write = SendEntry { opcode: Opcode::Write, ..SendEntry::empty() };
            // Twice 2²³ packets, and some.
            for _ in 0..2 {
                window.append(&write, [half].into_iter()).unwrap();
            }
            let last = Element { length: 256 * extra, ..half };
            window.append(&write, [last].into_iter()).unwrap();
            window.mark_handed(3);
            let peer = Executed { psn: Some(psn), settled: true, ..Executed::default() };
            let plan = window.judge(&peer, 0).unwrap();
            let ahead = (psn + PSNS as u32 - start.psn) % PSNS as u32;
            let twice = ahead <= extra.max(1);
            prop_assert_eq!(plan.undecided, twice.then_some(0));
            if !twice {
                let first = u64::from(ahead) << 8;
                let (seq, skip) = if first < 1 << 31 { (0, first) } else { (1, first - (1 << 31)) };
                prop_assert_eq!(plan.replays[0], Replay { seq, skip: skip as u32 });
            }
        }

        /// Promise 3: a number that was told before the barrier, and has moved since, decides nothing. It
        /// neither ends a connection of which everything has completed, nor has a WRITE done again.
        #[test]
        fn a_number_before_the_barrier_is_not_believed(
            completed in 0..=3u64, told in 0..=3u32, opcode in prop::sample::select(&OPCODES[..]),
        ) {
            let mut model = Model::new(Start { psn: 5, mtu: 1024 });
            (0..3).for_each(|_| model.post(opcode, 8));
            (0..completed).for_each(|_| model.execute());
            model.complete(completed);
            let messages = model.responder.messages;
            let peer = Executed { messages, psn: Some(5 + told), ..Executed::default() };
            let plan = model.window.judge(&peer, completed).unwrap();
            prop_assert_eq!(&plan.executed, &[]);
            match opcode {
                Opcode::Write | Opcode::CompareSwap | Opcode::FetchAdd => {
                    prop_assert_eq!(plan.undecided, (completed < 3).then_some(completed));
                }
                _ => prop_assert_eq!(plan.replays.len() as u64, 3 - completed),
            }
        }

        /// Promise: what a peer says is looked at before it is believed.
        #[test]
        fn numbers_that_cannot_be_are_refused(told in any::<u64>(), psn in 0..PSNS as u32) {
            let mut model = Model::new(Start { psn: 5, mtu: 1024 });
            model.post(Opcode::Send, 3000);
            model.post(Opcode::Write, 1);
            let peer =
                Executed { messages: told, psn: Some(psn), settled: true, recorded: None };
            let judged = model.window.judge(&peer, 0);
            let can_be = match psn {
                5..=7 => told == 0,
                8..=9 => told == 1,
                _ => false,
            };
            prop_assert_eq!(judged.is_ok(), can_be);
        }

        /// Promise 3: a record proves the WRITEs before it, barrier or not, and says nothing of those
        /// behind it; of an atomic before it only that its answer is lost.
        #[test]
        fn a_record_proves_what_stands_before_it(
            before in 0..6u64, behind in 0..6u64, settled: bool,
            opcode in prop::sample::select(&[Opcode::Write, Opcode::FetchAdd][..]),
        ) {
            let mut model = Model::new(Start { psn: 5, mtu: 1024 });
            (0..before).for_each(|_| model.post(opcode, 8));
            model.record();
            (0..behind).for_each(|_| model.post(opcode, 8));
            let peer = Executed { recorded: Some(before), settled, ..Executed::default() };
            let plan = model.window.judge(&peer, 0).unwrap();
            let undecided = if opcode.is_atomic() { 0 } else { before };
            prop_assert_eq!(plan.undecided, (undecided < before + behind).then_some(undecided));
            prop_assert_eq!(plan.executed, (0..undecided).collect::<Vec<_>>());
            prop_assert_eq!(plan.replays, vec![]);
        }

        /// Promise: a record of what was not recorded is refused, and so is one behind a message that
        /// was not delivered. Where the count may be older than the record, that message is undecided.
        #[test]
        fn a_record_that_cannot_be_is_refused(told in 0..9u64, messages in 0..=2u64, settled: bool) {
            let mut model = Model::new(Start { psn: 5, mtu: 1024 });
            for opcode in [Opcode::Write, Opcode::Send, Opcode::Write, Opcode::Send, Opcode::Write] {
                model.post(opcode, 8);
            }
            model.record();
            model.post(Opcode::Write, 8);
            let peer = Executed { messages, psn: None, settled, recorded: Some(told) };
            let judged = model.window.judge(&peer, 0);
            // Requests before the first message that was not delivered.
            let heard = [1, 3, 6][messages as usize];
            match judged {
                Err(ReplayError::Record { told: told_too, most }) => {
                    prop_assert!(told_too == told && told > most);
                    prop_assert!(told > 5 || (settled && told > heard));
                }
                Ok(plan) => {
                    prop_assert!(told <= 5);
                    if told > heard {
                        prop_assert!(!settled);
                        prop_assert_eq!(plan.undecided, Some(heard));
                    }
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        /// Promise: a window's records never take more places than are kept for them.
        #[test]
        fn records_have_places(depth in 1..5000u32) {
            let most = depth / record_interval(depth) + 1;
            prop_assert!(most <= record_slots(depth), "{} in {}", most, depth);
            prop_assert!(record_slots(depth) >= record_slots(depth - 1));
        }
    }
}
