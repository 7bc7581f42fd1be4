//! What travels between two machines: frames of a 32-bit little-endian head, `kind << 24 | length`,
//! and a record (`records`) with its payload.
//!
//! Whoever sends them holds the job key, but may be broken, or of another build: every frame is
//! checked here, once, for all that the tables do not say. What is out of bounds ends the
//! connection.

use super::super::limits::MAX_MESSAGE;
use super::super::records::{Answer, Ask, Datagram, flag};
use crate::abi::{MASK_24, wr_opcode};

/// Kinds of frames.
pub(in super::super) mod kind {
    /// A part of a request: an [`Ask`](super::Ask).
    pub(crate) const ASK: u8 = 1;
    /// What became of it: an [`Answer`](super::Answer).
    pub(crate) const ANSWER: u8 = 2;
    /// A [`Datagram`](super::Datagram).
    pub(crate) const DATAGRAM: u8 = 3;
    /// An [`Ask`](super::Ask) without a request: is this queue pair ready for that one?
    pub(crate) const BIND: u8 = 4;
    /// The [`Answer`](super::Answer) to that: `value` is the queue pair's incarnation.
    pub(crate) const BOUND: u8 = 5;
}

/// Bytes of a frame's head.
pub(in super::super) const HEAD: usize = 4;
/// Largest part of a message, a multiple of every MTU: what one QP sends before another has a
/// turn, and what deregistration may have to wait for.
pub(in super::super) const MAX_PART: u32 = 32 << 10;
/// Largest datagram: the MTU of the port.
const MAX_DATAGRAM: u32 = 4096;
/// Largest frame.
pub(super) const MAX_FRAME: usize = HEAD + Ask::HEAD + MAX_PART as usize;
/// Smallest MTU (IBTA 8.1): how many packets a part can have at most.
const MIN_MTU: u32 = 256;

const _: () = assert!(Datagram::HEAD <= Ask::HEAD && Answer::HEAD <= Ask::HEAD);

/// Bytes of the answer to a part of a request.
pub(in super::super) fn answer_bytes(opcode: u32, len: u32) -> u32 {
    (HEAD + Answer::HEAD) as u32 + if opcode == wr_opcode::RDMA_READ { len } else { 0 }
}

/// A frame off the wire.
#[derive(Debug, PartialEq)]
pub(in super::super) enum Frame<'a> {
    /// A part of a request, and its payload.
    Ask(Ask, &'a [u8]),
    /// An answer, and what was read.
    Answer(Answer, &'a [u8]),
    /// A datagram.
    Datagram(Datagram, &'a [u8]),
    /// See [`kind::BIND`].
    Bind(Ask),
    /// See [`kind::BOUND`].
    Bound(Answer),
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of kind {kind} with {len} bytes: {what}")]
pub(in super::super) struct Garbage {
    kind: u8,
    len: usize,
    what: &'static str,
}

/// The head of a frame.
pub(super) fn head(kind: u8, len: usize) -> [u8; HEAD] {
    (u32::from(kind) << 24 | len as u32 & 0xff_ffff).to_le_bytes()
}

/// The first frame of `bytes`, and how many of them it takes; `None` where it is not whole yet.
pub(super) fn next(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Garbage> {
    let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Ok(None) };
    let word = u32::from_le_bytes(*head);
    let (kind, len) = ((word >> 24) as u8, (word & 0xff_ffff) as usize);
    let garbage = |what| Garbage { kind, len, what };
    let (least, most) = match kind {
        kind::ASK => (Ask::HEAD, Ask::HEAD + MAX_PART as usize),
        kind::ANSWER => (Answer::HEAD, Answer::HEAD + MAX_PART as usize),
        kind::DATAGRAM => (Datagram::HEAD, Datagram::HEAD + MAX_DATAGRAM as usize),
        kind::BIND => (Ask::HEAD, Ask::HEAD),
        kind::BOUND => (Answer::HEAD, Answer::HEAD),
        _ => return Err(garbage("no such kind")),
    };
    if !(least..=most).contains(&len) {
        return Err(garbage("a length out of bounds"));
    }
    let Some(body) = rest.get(..len) else { return Ok(None) };
    let short = || garbage("shorter than its record");
    let frame = match kind {
        kind::ASK | kind::BIND => {
            let (ask, payload) = Ask::take(body).ok_or_else(short)?;
            if kind == kind::BIND {
                Frame::Bind(ask)
            } else {
                check(&ask, payload.len()).map_err(garbage)?;
                Frame::Ask(ask, payload)
            }
        }
        kind::ANSWER | kind::BOUND => {
            let (answer, data) = Answer::take(body).ok_or_else(short)?;
            if kind == kind::BOUND { Frame::Bound(answer) } else { Frame::Answer(answer, data) }
        }
        _ => {
            let (datagram, payload) = Datagram::take(body).ok_or_else(short)?;
            if datagram.len as usize != payload.len() {
                return Err(garbage("a datagram of another length"));
            }
            Frame::Datagram(datagram, payload)
        }
    };
    Ok(Some((frame, HEAD + len)))
}

/// Whether a part of a request makes sense.
fn check(ask: &Ask, payload: usize) -> Result<(), &'static str> {
    use wr_opcode as op;
    let opcode = ask.flags >> 16;
    let carried = match opcode {
        op::SEND | op::SEND_WITH_IMM | op::RDMA_WRITE | op::RDMA_WRITE_WITH_IMM => ask.len,
        op::RDMA_READ => 0,
        op::ATOMIC_CMP_AND_SWP | op::ATOMIC_FETCH_AND_ADD if ask.total != 8 || ask.len != 8 => {
            return Err("an atomic of another length than 8");
        }
        op::ATOMIC_CMP_AND_SWP | op::ATOMIC_FETCH_AND_ADD => 0,
        _ => return Err("no such request"),
    };
    if ask.flags & 0xffff & !(flag::IMM | flag::SOLICITED | flag::MORE) != 0 {
        return Err("flags that do not travel");
    }
    if carried as usize != payload {
        return Err("a payload of another length");
    }
    let Some(end) = ask.offset.checked_add(ask.len) else { return Err("a part out of bounds") };
    if ask.len > MAX_PART || end > ask.total || ask.total > MAX_MESSAGE {
        return Err("a part out of bounds");
    }
    if (ask.flags & flag::MORE != 0) != (end < ask.total) {
        return Err("more to come, or not, in spite of its length");
    }
    if ask.psn > MASK_24 || ask.packets == 0 || ask.packets > ask.len.div_ceil(MIN_MTU).max(1) {
        return Err("packets that cannot be");
    }
    if ask.credit != 0 && ask.credit != answer_bytes(opcode, ask.len) {
        return Err("room for another answer");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ptr::NonNull;

    fn framed(kind: u8, record: impl FnOnce(NonNull<u8>), head_len: usize, tail: &[u8]) -> Vec<u8> {
        let mut body = vec![0u8; head_len];
        record(NonNull::new(body.as_mut_ptr()).unwrap());
        body.extend(tail);
        let mut bytes = head(kind, body.len()).to_vec();
        bytes.extend(body);
        bytes
    }

    fn write(len: u32, offset: u32, total: u32) -> Ask {
        let more = if offset + len < total { flag::MORE } else { 0 };
        Ask {
            len,
            offset,
            total,
            flags: wr_opcode::RDMA_WRITE << 16 | more,
            packets: len.div_ceil(1024).max(1),
            credit: answer_bytes(wr_opcode::RDMA_WRITE, len),
            ..Ask::default()
        }
    }

    fn asked(ask: &Ask, payload: &[u8]) -> Vec<u8> {
        // SAFETY: `framed` gives a head's worth of bytes.
        framed(kind::ASK, |to| unsafe { ask.put(to) }, Ask::HEAD, payload)
    }

    proptest! {
        /// A part of a request arrives as it was sent, wherever the wire cuts it.
        #[test]
        fn parts_survive(len in 0u32..5000, offset in 0u32..5000, rest in 0u32..5000, cut: u16) {
            let ask = write(len, offset, offset + len + if len == 0 { 0 } else { rest });
            let payload = vec![7u8; len as usize];
            let bytes = asked(&ask, &payload);
            let cut = cut as usize % bytes.len();
            prop_assert_eq!(next(&bytes[..cut]).unwrap(), None);
            let (frame, used) = next(&bytes).unwrap().unwrap();
            prop_assert_eq!(frame, Frame::Ask(ask, &payload[..]));
            prop_assert_eq!(used, bytes.len());
        }

        /// Hostile bytes are a frame within all limits, or incomplete, or garbage; none panics.
        #[test]
        fn any_bytes_are_decoded_or_refused(
            kind in 0u8..8,
            len in prop_oneof![0usize..200, any::<usize>().prop_map(|n| n & 0xff_ffff)],
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = head(kind, len).to_vec();
            bytes.extend(&tail);
            if let Ok(Some((frame, used))) = next(&bytes) {
                prop_assert!(used <= bytes.len() && used <= MAX_FRAME);
                if let Frame::Ask(ask, payload) = frame {
                    prop_assert!(payload.len() <= MAX_PART as usize);
                    prop_assert!(ask.offset + ask.len <= ask.total && ask.total <= MAX_MESSAGE);
                }
            }
        }

        /// A part whose record has one wrong field is refused, or still within its bounds.
        #[test]
        fn a_wrong_field_does_not_pass(at in 0usize..Ask::HEAD, byte: u8) {
            let payload = [1u8; 700];
            let mut bytes = asked(&write(700, 1024, 1724), &payload);
            bytes[HEAD + at] = byte;
            if let Ok(Some((Frame::Ask(ask, got), _))) = next(&bytes) {
                prop_assert_eq!(got.len(), 700);
                prop_assert!(matches!(
                    ask.flags >> 16,
                    wr_opcode::RDMA_WRITE | wr_opcode::RDMA_WRITE_WITH_IMM | wr_opcode::SEND
                        | wr_opcode::SEND_WITH_IMM
                ));
                prop_assert!(ask.len == 700 && ask.packets <= 3 && ask.psn <= MASK_24);
            }
        }
    }

    /// What no length admits is refused before its body is awaited.
    #[test]
    fn a_frame_too_long_is_not_waited_for() {
        let largest = Ask::HEAD + MAX_PART as usize;
        assert_eq!(next(&head(kind::ASK, largest)), Ok(None));
        assert!(next(&head(kind::ASK, largest + 1)).is_err());
        assert!(next(&head(kind::BIND, Ask::HEAD + 1)).is_err());
        assert!(next(&head(kind::BOUND, Answer::HEAD - 1)).is_err());
        assert!(next(&head(99, 0)).is_err());
    }
}
