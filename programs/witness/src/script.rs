//! What a side says on a queue pair: a pure function of the seed, the stream and the sequence number.
//!
//! Both sides compute it, so a receiver knows of every message what it must be before it comes, and
//! where in memory it must land. A *stream* is one direction of one queue pair.

use crate::kind::{Kind, Transport};
use crate::payload;

/// The largest datagram: what one packet holds at the path MTU of Ethernet (1024 bytes).
pub(crate) const MAX_DATAGRAM: usize = 1024;

/// Payloads up to this length are sent inline now and then.
pub(crate) const MAX_INLINE: usize = 96;

/// Names one direction of one queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Rank that sends.
    pub(crate) from: u32,
    /// Rank that receives.
    pub(crate) to: u32,
    /// Which of the queue pairs between the two.
    pub(crate) index: u32,
}

impl Stream {
    /// Ranks that fit into [`Self::code`].
    pub(crate) const MAX_RANKS: u32 = 1 << 10;
    /// Queue pairs between two ranks: what fits into one note, and into 12 bits.
    pub(crate) const MAX_QPS: u32 = 512;

    /// As one word.
    pub(crate) fn code(self) -> u32 {
        self.from << 22 | self.to << 12 | self.index
    }

    /// The stream of a word.
    pub(crate) fn of_code(code: u32) -> Self {
        Stream { from: code >> 22, to: code >> 12 & 0x3ff, index: code & 0xfff }
    }
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Its number in its stream, from 0.
    pub(crate) seq: u64,
    /// What it is.
    pub(crate) kind: Kind,
    /// Bytes of payload.
    pub(crate) size: usize,
    /// Distance of its memory from the beginning of its place: 0 to 7.
    pub(crate) skew: usize,
    /// Its bytes are copied when it is posted.
    pub(crate) inline: bool,
    /// A FETCH_ADD of 1 on the word that all queue pairs share; else on that of its own stream.
    pub(crate) shared: bool,
    /// A CMP_SWAP that compares with a value that is not there.
    pub(crate) miss: bool,
    /// Whatever else is decided by chance.
    pub(crate) dice: u64,
}

impl Message {
    /// What a FETCH_ADD adds.
    pub(crate) fn add(&self) -> u64 {
        if self.shared { 1 } else { 1 + (self.dice >> 40 & 0xff) }
    }

    /// Its immediate data. The top bit is that of control messages.
    pub(crate) fn imm(&self) -> u32 {
        (self.seq & 0x7fff_ffff) as u32
    }
}

/// All that is said on one stream.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) stream: Stream,
    seed: u64,
    kinds: Vec<Kind>,
    smallest: usize,
    largest: usize,
}

impl Script {
    /// The script of `stream`, with payloads of at most `largest` bytes.
    pub(crate) fn new(
        stream: Stream,
        transport: Transport,
        kinds: Vec<Kind>,
        seed: u64,
        largest: usize,
    ) -> Self {
        // Where messages may be lost, each must say which it is.
        let smallest = if transport.lossy() { payload::HEADER } else { 0 };
        let largest = if transport == Transport::Ud { largest.min(MAX_DATAGRAM) } else { largest };
        Script { stream, seed, kinds, smallest, largest }
    }

    /// Whether it has messages of a kind.
    pub(crate) fn has(&self, wanted: impl Fn(Kind) -> bool) -> bool {
        self.kinds.iter().any(|kind| wanted(*kind))
    }

    /// Message number `seq`.
    pub(crate) fn message(&self, seq: u64) -> Message {
        let dice = mix(self.base(seq));
        let more = mix(dice);
        let kind = self.kinds[(dice % self.kinds.len() as u64) as usize];
        let size = if kind.is_atomic() { 8 } else { self.size(more) };
        let may_inline = size <= MAX_INLINE && !kind.is_atomic() && kind != Kind::Read;
        Message {
            seq,
            kind,
            size,
            skew: (dice >> 16 & 7) as usize,
            inline: may_inline && dice >> 20 & 1 == 0,
            shared: dice >> 21 & 1 == 0,
            miss: dice >> 22 & 3 == 0,
            dice: mix(more),
        }
    }

    /// Small sizes as often as large ones: a number of bits first, then a size of so many.
    fn size(&self, dice: u64) -> usize {
        let span = (self.largest - self.smallest) as u64;
        let bits = u64::from(u64::BITS - span.leading_zeros());
        let below = 1u64 << ((dice >> 32) % (bits + 1));
        // The largest itself, now and then.
        let size = if dice >> 58 == 0 { span } else { (dice & 0xffff_ffff) % below };
        self.smallest + size.min(span) as usize
    }

    /// Puts the payload of a message into `into`.
    pub(crate) fn payload(&self, message: &Message, into: &mut Vec<u8>) {
        payload::make(self.stream, message.seq, self.base(message.seq), message.size, into);
    }

    /// The value that the swapped word of this stream has after `swaps` swaps.
    pub(crate) fn swapped(&self, swaps: u64) -> u64 {
        if swaps == 0 { 0 } else { mix(self.base(swaps) ^ 0x5a5a) | 1 }
    }

    fn base(&self, seq: u64) -> u64 {
        mix(self.seed ^ mix(u64::from(self.stream.code()) << 32 ^ seq))
    }
}

/// A permutation of words that scatters neighbours (splitmix64's).
pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Mix;

    fn script(transport: Transport) -> Script {
        let stream = Stream { from: 3, to: 1, index: 9 };
        Script::new(stream, transport, Mix::all().kinds(transport), 7, 1 << 16)
    }

    /// Promise: a script covers what the run is to cover: all kinds, all sizes, inline or not.
    #[test]
    fn a_script_has_all_kinds_and_sizes_and_is_the_same_each_time() {
        let script = script(Transport::Rc);
        let all: Vec<_> = (0..3000).map(|seq| script.message(seq)).collect();
        assert!(all.iter().enumerate().all(|(i, m)| script.message(i as u64) == *m));
        for kind in Kind::ALL {
            let some: Vec<_> = all.iter().filter(|m| m.kind == kind).collect();
            assert!(some.len() > 300, "{kind}: {}", some.len());
            if kind.is_atomic() {
                assert!(some.iter().all(|m| m.size == 8 && !m.inline));
                continue;
            }
            assert!(some.iter().any(|m| m.size == 0) && some.iter().any(|m| m.size == 1 << 16));
            assert!(some.iter().all(|m| m.size <= 1 << 16));
            assert_eq!(some.iter().any(|m| m.inline), kind != Kind::Read);
        }
    }

    #[test]
    fn what_may_be_lost_says_which_it_is_and_datagrams_fit_a_packet() {
        let script = script(Transport::Ud);
        let sizes: Vec<_> = (0..2000).map(|seq| script.message(seq).size).collect();
        assert_eq!(sizes.iter().min(), Some(&payload::HEADER));
        assert_eq!(sizes.iter().max(), Some(&MAX_DATAGRAM));
    }

    #[test]
    fn streams_survive_their_code() {
        let stream = Stream { from: 1023, to: 512, index: 4095 };
        assert_eq!(Stream::of_code(stream.code()), stream);
    }
}
