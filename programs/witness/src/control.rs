//! Control messages: what the two sides of a queue pair tell each other beside their streams.
//!
//! They are small inline SENDs with immediate data whose top bit is set, on the very queue pair that
//! they are about; so they are checked as everything else is. Each tells the whole state, so that
//! one that is lost (UC, UD) is made good by the next.

use crate::payload;
use crate::script::Stream;

/// Length of a control message.
pub(crate) const BYTES: usize = payload::HEADER + 8 * 8;

/// Bit of the immediate data that tells a control message.
pub(crate) const IMM: u32 = 1 << 31;

/// Total of a stream that has not ended.
const OPEN: u64 = u64::MAX;

/// What one side knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// My messages before this one are posted.
    pub(crate) posted: u64,
    /// My READs before this one are done.
    pub(crate) reads_done: u64,
    /// How many messages my stream has in all, once I know.
    pub(crate) total: Option<u64>,
    /// I have dealt with your messages before this one.
    pub(crate) dealt: u64,
    /// I have given back your places in my memory before this position.
    pub(crate) freed: u64,
    /// I have prepared the memory of your READs before this one.
    pub(crate) prepared: u64,
    /// I have dealt with all of your stream, which has ended.
    pub(crate) closed: bool,
}

/// A control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    /// Its number among the control messages of its stream, from 0.
    pub(crate) seq: u64,
    /// The state.
    pub(crate) state: State,
    /// An answer is wanted.
    pub(crate) ask: bool,
}

impl Control {
    /// Its immediate data.
    pub(crate) fn imm(&self) -> u32 {
        IMM | (self.seq & 0x7fff_ffff) as u32
    }

    /// As bytes, with a header as payloads have it.
    pub(crate) fn to_bytes(self, stream: Stream) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..4].copy_from_slice(&stream.code().to_le_bytes());
        bytes[4..8].copy_from_slice(&(BYTES as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        let state = self.state;
        let words = [
            state.posted,
            state.reads_done,
            state.total.unwrap_or(OPEN),
            state.dealt,
            state.freed,
            state.prepared,
            u64::from(state.closed),
            u64::from(self.ask),
        ];
        for (to, word) in bytes[payload::HEADER..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let sum = payload::checksum(&bytes);
        bytes[16..payload::HEADER].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote; `None` for anything else.
    pub(crate) fn from_bytes(bytes: &[u8], stream: Stream) -> Option<Self> {
        let (of, seq, size) = payload::identify(bytes)?;
        if (of, size) != (stream, bytes.len()) || bytes.len() != BYTES {
            return None;
        }
        let mut words = [0; 8];
        for (word, from) in words.iter_mut().zip(bytes[payload::HEADER..].chunks_exact(8)) {
            *word = u64::from_le_bytes(from.try_into().ok()?);
        }
        let [posted, reads_done, total, dealt, freed, prepared, closed, ask] = words;
        let total = (total != OPEN).then_some(total);
        let closed = closed != 0;
        let state = State { posted, reads_done, total, dealt, freed, prepared, closed };
        Some(Control { seq, state, ask: ask != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a control message that is damaged, or another stream's, is not taken for one.
    #[test]
    fn control_messages_survive_their_bytes_and_nothing_else_does() {
        let stream = Stream { from: 0, to: 1, index: 2 };
        let state = State {
            posted: 1,
            reads_done: 2,
            total: Some(3),
            dealt: 4,
            freed: 5,
            prepared: 6,
            closed: true,
        };
        let control = Control { seq: 8, state, ask: true };
        let bytes = control.to_bytes(stream);
        assert_eq!(Control::from_bytes(&bytes, stream), Some(control));
        assert_eq!(Control::from_bytes(&bytes, Stream { index: 3, ..stream }), None);
        assert_eq!(Control::from_bytes(&bytes[..BYTES - 1], stream), None);
        for at in 0..BYTES {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Control::from_bytes(&bad, stream), None, "byte {at}");
        }
    }
}
