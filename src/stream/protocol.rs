//! The protocol of a byte stream, without IO: credits, framing, half-close.
//!
//! Both sides keep `depth` receives posted, and each may send as many messages as the peer has
//! receives for it: its *credits*. Every message is one SEND with immediate data. Its bytes are
//! the stream's, and the immediate data carries what [`Header`] holds: the receives that were
//! posted again since the last message (credits returned), and whether the stream ends here.
//!
//! Why it cannot lock up: a message that takes the last credit must itself return credits, so
//! both sides can never be without any at once; and a side that owes half of its receives says so
//! in a message without bytes, for which one slot of the send queue is always kept. Such messages
//! cause no endless echo: it takes half a queue of them to cause one. The tests walk through every
//! reachable state of small queues, and through random schedules of large ones.
//!
//! Who calls it: [`super::connection`], under its lock. It touches nothing.

use std::collections::VecDeque;

/// Fewest receives of a side with which credits work: below it half a queue would be one
/// message, and two idle sides would echo credits for ever.
pub(super) const MIN_DEPTH: u32 = 4;
/// Most receives of a side: the header has 16 bits for credits.
pub(super) const MAX_DEPTH: u32 = 4096;

/// What the immediate data of a message says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// No bytes follow after those of this message.
    pub(super) last: bool,
    /// Receives posted again since the message before.
    pub(super) credits: u16,
}

impl Header {
    const LAST: u32 = 1 << 31;
    const CREDITS: u32 = 0xffff;

    /// As immediate data.
    pub(super) fn encode(self) -> u32 {
        u32::from(self.credits) | if self.last { Self::LAST } else { 0 }
    }

    /// From immediate data.
    pub(super) fn decode(imm: u32) -> Result<Self, Violation> {
        if imm & !(Self::LAST | Self::CREDITS) != 0 {
            return Err(Violation(format!("immediate data {imm:#010x} has unknown bits")));
        }
        let credits = u16::try_from(imm & Self::CREDITS).expect("masked to 16 bits");
        Ok(Header { last: imm & Self::LAST != 0, credits })
    }
}

/// How the peer broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) String);

/// A message to be handed to the device now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// Counts all messages of this side, from 0: names it in its completion.
    pub(super) seq: u64,
    /// Its immediate data.
    pub(super) header: Header,
    /// It must be signalled.
    pub(super) signaled: bool,
}

/// Bytes that have arrived and were not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    /// The receive buffer that they are in.
    pub(super) buffer: u32,
    /// Where in it the first unread one is.
    pub(super) offset: usize,
    /// How many there are.
    pub(super) len: usize,
}

/// One side of a byte stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Protocol {
    /// Receives that we keep posted.
    depth: u32,
    /// Receives that the peer keeps posted.
    peer_depth: u32,
    /// Messages that may be outstanding in the send queue.
    slots: u32,
    /// Messages that the peer has receives for.
    credits: u32,
    /// Receives that we posted again and have not told the peer of.
    owed: u32,
    /// Number of the next message.
    next: u64,
    /// Messages that the device has executed.
    done: u64,
    /// Messages since the last signalled one.
    unsignaled: u32,
    /// Send buffers given out so far; the next is this modulo `slots`.
    buffers: u64,
    /// Number of the message that ended our half of the stream.
    last_sent: Option<u64>,
    last_received: bool,
    inbox: VecDeque<(u32, usize)>,
    /// Bytes of the front of `inbox` that were read.
    read: usize,
}

impl Protocol {
    /// A side with `depth` receives posted, `slots` requests in its send queue, and a peer that
    /// has posted `peer_depth` receives.
    pub(super) fn new(depth: u32, slots: u32, peer_depth: u32) -> Self {
        debug_assert!((MIN_DEPTH..=MAX_DEPTH).contains(&depth) && slots >= MIN_DEPTH);
        Protocol {
            depth,
            peer_depth,
            slots,
            credits: peer_depth,
            owed: 0,
            next: 0,
            done: 0,
            unsignaled: 0,
            buffers: 0,
            last_sent: None,
            last_received: false,
            inbox: VecDeque::with_capacity(depth as usize),
            read: 0,
        }
    }

    /// Whether a message with bytes, or the last one, may be sent now.
    pub(super) fn may_send(&self) -> bool {
        let credit = self.credits > 1 || (self.credits == 1 && self.owed > 0);
        self.last_sent.is_none() && credit && self.free() > 1
    }

    /// The send buffer for the next message with bytes that needs one. It is free whenever
    /// [`Self::may_send`], since there are as many as slots, and they are taken in order. It
    /// stays the same until [`Self::send`] has taken it.
    pub(super) fn send_buffer(&self) -> u32 {
        u32::try_from(self.buffers % u64::from(self.slots)).expect("below the slots")
    }

    /// Takes a message: its bytes are in [`Self::send_buffer`] where `buffered`, else inline.
    /// `last` ends our half of the stream.
    pub(super) fn send(&mut self, buffered: bool, last: bool) -> Outgoing {
        debug_assert!(self.may_send());
        self.buffers += u64::from(buffered);
        self.last_sent = last.then_some(self.next);
        self.take(last)
    }

    /// A message that only returns credits, where one is due.
    pub(super) fn credit_update(&mut self) -> Option<Outgoing> {
        // A peer that sends no more has no use for credits: what its own credit updates need,
        // our messages return. So nothing is sent to a peer that may have closed altogether.
        let due = self.owed >= self.depth / 2 && !self.last_received;
        (due && self.credits > 0 && self.free() > 0).then(|| self.take(false))
    }

    fn take(&mut self, last: bool) -> Outgoing {
        let credits = u16::try_from(self.owed).expect("at most MAX_DEPTH receives");
        let seq = self.next;
        self.next += 1;
        self.owed = 0;
        self.credits -= 1;
        self.unsignaled += 1;
        // The one that leaves none but the reserved slot is signalled, or nobody would ever
        // hear that slots are free again.
        let signaled = last || self.unsignaled >= self.slots / 4 || self.free() <= 1;
        if signaled {
            self.unsignaled = 0;
        }
        Outgoing { seq, header: Header { last, credits }, signaled }
    }

    /// The device has executed message `seq`, and so all before it.
    pub(super) fn sent(&mut self, seq: u64) {
        debug_assert!(seq < self.next);
        self.done = self.done.max(seq + 1);
    }

    /// A message of `bytes` bytes has arrived in receive buffer `buffer`. Where the answer names
    /// that buffer, it is to be posted again, and then [`Self::reposted`] called.
    pub(super) fn received(
        &mut self,
        buffer: u32,
        bytes: usize,
        imm: u32,
    ) -> Result<Option<u32>, Violation> {
        let header = Header::decode(imm)?;
        let credits = self.credits + u32::from(header.credits);
        if credits > self.peer_depth {
            return Err(Violation(format!(
                "{} credits returned, which makes {credits} of {}",
                header.credits, self.peer_depth
            )));
        }
        if self.last_received && (bytes > 0 || header.last) {
            return Err(Violation(format!("a message of {bytes} bytes after the last")));
        }
        if bytes == 0 && header == Header::default() {
            return Err(Violation("a message that says nothing".into()));
        }
        if self.inbox.len() >= self.depth as usize {
            return Err(Violation("more messages than receives".into()));
        }
        self.credits = credits;
        self.last_received |= header.last;
        if bytes == 0 {
            return Ok(Some(buffer));
        }
        self.inbox.push_back((buffer, bytes));
        Ok(None)
    }

    /// A receive was posted again.
    pub(super) fn reposted(&mut self) {
        self.owed += 1;
        debug_assert!(self.owed <= self.depth);
    }

    /// The oldest unread bytes.
    pub(super) fn arrived(&self) -> Option<Arrived> {
        let (buffer, len) = *self.inbox.front()?;
        Some(Arrived { buffer, offset: self.read, len: len - self.read })
    }

    /// `bytes` of what [`Self::arrived`] showed were read. Where that empties the buffer, it is
    /// to be posted again, and then [`Self::reposted`] called.
    pub(super) fn consume(&mut self, bytes: usize) -> Option<u32> {
        self.read += bytes;
        let (buffer, len) = *self.inbox.front()?;
        debug_assert!(self.read <= len);
        if self.read < len {
            return None;
        }
        self.read = 0;
        self.inbox.pop_front();
        Some(buffer)
    }

    /// All bytes of the peer have been read, and no more will come.
    pub(super) fn at_end(&self) -> bool {
        self.last_received && self.inbox.is_empty()
    }

    /// The peer has ended its half of the stream.
    pub(super) fn last_received(&self) -> bool {
        self.last_received
    }

    /// Our half of the stream has ended.
    pub(super) fn last_sent(&self) -> bool {
        self.last_sent.is_some()
    }

    /// Our half of the stream has ended, and all of it is with the peer's device.
    pub(super) fn last_done(&self) -> bool {
        self.last_sent.is_some_and(|last| last < self.done)
    }

    /// What keeps a message from being sent is that the device still has others.
    pub(super) fn out_of_slots(&self) -> bool {
        self.free() <= 1
    }

    fn free(&self) -> u32 {
        self.slots - u32::try_from(self.next - self.done).expect("at most `slots`")
    }
}

#[cfg(test)]
mod tests;
