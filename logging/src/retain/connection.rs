//! What is kept of one connection.

use crate::entry::Opcode;
use std::collections::VecDeque;
use std::ops::Range;

/// A message, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// SEND, SEND with immediate data, WRITE, or WRITE with immediate data.
    pub opcode: Opcode,
    /// Immediate data as it came.
    pub imm: u32,
    /// WRITE: where at the peer.
    pub remote_addr: u64,
    /// WRITE: virtual remote key.
    pub rkey: u32,
    /// Bytes of payload.
    pub length: u64,
    /// Messages of the peer that had been received on the connection before it was posted.
    pub received: u64,
}

impl Message {
    /// It takes a receive at the peer.
    #[must_use]
    pub const fn takes_receive(&self) -> bool {
        !matches!(self.opcode, Opcode::Write)
    }
}

/// A message that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number on the connection, in posting order, from 0.
    pub number: u64,
    /// Messages up to it, itself included, that take a receive at the peer.
    pub receives: u64,
    /// The message.
    pub message: Message,
}

/// Where the payload of a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has none.
    Nowhere,
    /// At this offset of the ring.
    Ring(u64),
    /// At this offset of the spill file.
    File(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Nowhere,
    /// In that span.
    Ring(u64),
    File(u64),
    /// About to be written there.
    Writing(u64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) record: Record,
    pub(super) held: Held,
}

/// Why messages of a connection are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The ring is full, and there is no spill.
    Full,
    /// The spill took no more.
    SpillFailed,
    /// As many messages are kept as may be.
    TooMany,
    /// What a request names is not registered memory of this process; its device refuses it too.
    Unreadable,
}

/// Messages that are not kept, and that no committed epoch has covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Their numbers. Some of these may be kept all the same: a replay is whole without any of them only.
    pub numbers: Range<u64>,
    /// Why the first of them is not kept.
    pub why: Lost,
    /// As [`Record::receives`] of the last of them, and whether that one takes a receive.
    last: (u64, bool),
}

/// How a connection stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Our queue pair.
    pub qpn: u32,
    /// The process that it is connected to, and the queue pair there.
    pub peer: u32,
    /// The peer's queue pair.
    pub peer_qpn: u32,
    /// Messages posted so far.
    pub messages: u64,
    /// Of these, those that take a receive.
    pub receives: u64,
    /// Messages kept.
    pub records: u64,
    /// Bytes of payload in the ring.
    pub in_memory: u64,
    /// Bytes of payload in the spill file.
    pub spilled: u64,
    /// Messages that are missing.
    pub gap: Option<Gap>,
    /// Our queue pair has been destroyed or reset since.
    pub ended: bool,
}

pub(super) struct Connection {
    pub(super) status: Status,
    /// Why messages are not being kept, where they are not.
    pub(super) dropped: Option<Lost>,
    /// The last message that was posted takes a receive, as far as is known.
    last_takes: bool,
    /// In order.
    pub(super) kept: VecDeque<Kept>,
}

impl Connection {
    pub(super) fn new(qpn: u32, peer: u32, peer_qpn: u32) -> Self {
        let status = Status {
            qpn,
            peer,
            peer_qpn,
            messages: 0,
            receives: 0,
            records: 0,
            in_memory: 0,
            spilled: 0,
            gap: None,
            ended: false,
        };
        Connection { status, dropped: None, last_takes: false, kept: VecDeque::new() }
    }

    /// One more message has been posted.
    pub(super) fn count(&mut self, message: Message) -> Record {
        let number = self.status.messages;
        self.status.messages += 1;
        self.status.receives += u64::from(message.takes_receive());
        self.last_takes = message.takes_receive();
        Record { number, receives: self.status.receives, message }
    }

    /// Adds one that is kept.
    pub(super) fn push(&mut self, record: Record, held: Held) {
        self.account(held, record.message.length, true);
        self.status.records += 1;
        self.kept.push_back(Kept { record, held });
    }

    /// It was posted last, or the oldest: it is not kept any more.
    pub(super) fn forget(&mut self, kept: &Kept) {
        self.account(kept.held, kept.record.message.length, false);
        self.status.records -= 1;
    }

    fn account(&mut self, held: Held, bytes: u64, more: bool) {
        let of = match held {
            Held::Nowhere => return,
            Held::Ring(_) => &mut self.status.in_memory,
            Held::File(_) | Held::Writing(_) => &mut self.status.spilled,
        };
        *of = if more { *of + bytes } else { *of - bytes };
    }

    pub(super) fn find(&self, number: u64) -> Option<&Kept> {
        let at = self.kept.partition_point(|kept| kept.record.number < number);
        self.kept.get(at).filter(|kept| kept.record.number == number)
    }

    /// The payload of message `number` is at another place from now on.
    pub(super) fn relocate(&mut self, number: u64, held: Held) {
        let at = self.kept.partition_point(|kept| kept.record.number < number);
        if let Some(kept) = self.kept.get(at).copied().filter(|it| it.record.number == number) {
            self.account(kept.held, kept.record.message.length, false);
            self.account(held, kept.record.message.length, true);
            self.kept[at].held = held;
        }
    }

    /// The last messages were not posted after all.
    pub(super) fn uncount(&mut self, messages: u64, receives: u64) {
        self.status.messages -= messages;
        self.status.receives -= receives;
        self.last_takes = false;
        let upto = self.status.messages;
        if let Some(gap) = &mut self.status.gap {
            gap.numbers.end = gap.numbers.end.min(upto);
            if gap.numbers.is_empty() {
                self.status.gap = None;
            }
        }
    }

    /// The oldest record, where that is covered by an epoch which has consumed `messages`.
    pub(super) fn pop_covered(&mut self, messages: u64) -> Option<Kept> {
        let oldest = self.kept.front()?;
        let Record { receives, message, .. } = oldest.record;
        if !covers(messages, receives, message.takes_receive()) {
            return None;
        }
        let oldest = self.kept.pop_front()?;
        self.forget(&oldest);
        Some(oldest)
    }

    /// Message `from` and all up to the last one posted are not all kept.
    pub(super) fn miss(&mut self, from: u64, why: Lost) {
        let (first, why) = match &self.status.gap {
            Some(gap) => (gap.numbers.start.min(from), gap.why),
            None => (from, why),
        };
        let last = (self.status.receives, self.last_takes);
        self.status.gap = Some(Gap { numbers: first..self.status.messages, why, last });
    }

    /// The peer's epoch covers what it has received up to its `messages`-th message.
    pub(super) fn mend(&mut self, messages: u64) {
        self.dropped = None;
        if self.status.gap.as_ref().is_some_and(|gap| covers(messages, gap.last.0, gap.last.1)) {
            self.status.gap = None;
        }
    }
}

/// Whether an epoch that has consumed `messages` covers a message with a count of `receives`, which takes one
/// itself or not. (A WRITE behind the last one consumed may not have executed yet.)
fn covers(messages: u64, receives: u64, takes_receive: bool) -> bool {
    receives < messages || (receives == messages && takes_receive)
}
