//! What travels in the rings: fixed little-endian heads, each followed by its payload.
//!
//! A reader takes nothing for granted: a record too short for its head is no record, and lengths
//! inside are checked where they are used.

use std::ptr::NonNull;

/// Kinds of requests and answers (never 0, see `ring`).
pub(super) mod kind {
    /// A message for the receive that its sender took: [`super::Recv`].
    pub(crate) const RECV: u8 = 1;
    /// The initiator met an error that is the responder's too: [`super::Fault`].
    pub(crate) const FAULT: u8 = 2;
    /// A request that the target executes and answers: [`super::Ask`].
    pub(crate) const ASK: u8 = 3;
    /// A datagram: [`super::Datagram`].
    pub(crate) const DATAGRAM: u8 = 4;
    /// The answer to an [`super::Ask`]: [`super::Answer`].
    pub(crate) const ANSWER: u8 = 5;
}

/// Flags of messages.
pub(super) mod flag {
    /// `imm` holds immediate data.
    pub(crate) const IMM: u32 = 1;
    /// The receiver's completion is a solicited one.
    pub(crate) const SOLICITED: u32 = 2;
    /// The payload is in the receive buffer already.
    pub(crate) const PLACED: u32 = 4;
    /// A WRITE with immediate: the payload is elsewhere.
    pub(crate) const WRITE: u32 = 8;
    /// The datagram has a GRH.
    pub(crate) const GRH: u32 = 16;
    /// The payload is not in the ring: the body lists where it stands in the sender's memory.
    pub(crate) const LISTED: u32 = 32;
    /// More of the same message follows.
    pub(crate) const MORE: u32 = 64;
}

macro_rules! record {
    ($(#[$doc:meta])* $name:ident, $head:expr, { $($(#[$fdoc:meta])* $field:ident : $ty:ty = $at:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(super) struct $name { $($(#[$fdoc])* pub(super) $field: $ty),* }

        impl $name {
            /// Bytes in front of the payload.
            pub(super) const HEAD: usize = $head;

            /// Writes the head.
            ///
            /// # Safety
            /// [`Self::HEAD`] bytes at `to` must be writable.
            #[inline]
            pub(super) unsafe fn put(&self, to: NonNull<u8>) {
                $(
                    const { assert!($at + size_of::<$ty>() <= $head) };
                    let bytes = self.$field.to_le_bytes();
                    // SAFETY: within the head, by the assertion above and the caller's promise.
                    unsafe {
                        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr().add($at), bytes.len());
                    }
                )*
            }

            /// The head, and the payload behind it.
            #[inline]
            pub(super) fn take(body: &[u8]) -> Option<(Self, &[u8])> {
                let (head, rest) = body.split_first_chunk::<$head>()?;
                $(
                    let mut $field = [0u8; size_of::<$ty>()];
                    $field.copy_from_slice(&head[$at..$at + size_of::<$ty>()]);
                )*
                Some(($name { $($field: <$ty>::from_le_bytes($field)),* }, rest))
            }
        }
    };
}

record! {
    /// A message for a receive that its sender has taken. The payload follows, unless it is
    /// placed already.
    Recv, 24, {
        /// Receiving QP, and its incarnation.
        qpn: u32 = 0, incarnation: u32 = 4,
        /// Low half of the receive's number.
        index: u32 = 8,
        /// Bytes of the message.
        len: u32 = 12,
        imm: u32 = 16,
        /// [`flag`].
        flags: u32 = 20,
    }
}

record! {
    /// The initiator found an error that takes the responder's QP to ERR as well.
    Fault, 16, {
        qpn: u32 = 0, incarnation: u32 = 4,
        /// [`fault`].
        what: u32 = 8,
        /// Low half of the number of the receive concerned.
        index: u32 = 12,
    }
}

/// What a [`Fault`] says.
pub(super) mod fault {
    /// Access that key or QP do not allow.
    pub(crate) const ACCESS: u32 = 1;
    /// A message that the receive does not hold.
    pub(crate) const LENGTH: u32 = 2;
    /// A receive whose own memory is not registered.
    pub(crate) const PROTECTION: u32 = 3;
}

record! {
    /// A request that the target executes.
    Ask, 80, {
        qpn: u32 = 0, incarnation: u32 = 4,
        /// Asking QP, and its incarnation.
        src: u32 = 8, src_incarnation: u32 = 12,
        /// Counts the asking QP's requests of this kind: an answer names it.
        seq: u32 = 16,
        /// Packet sequence number; a request out of sequence is dropped.
        psn: u32 = 20,
        len: u32 = 24, imm: u32 = 28,
        /// `opcode << 16 | ` [`flag`].
        flags: u32 = 32,
        rkey: u32 = 36, addr: u64 = 40, compare_add: u64 = 48, swap: u64 = 56,
        /// Cells of the response ring set aside for the answer; it says the same.
        credit: u32 = 64,
        /// Bytes of the message before this part.
        offset: u32 = 68,
        /// Packets of this part.
        packets: u32 = 72,
        /// Bytes of the whole message.
        total: u32 = 76,
    }
}

record! {
    /// A datagram, its payload behind it.
    Datagram, 64, {
        qpn: u32 = 0, src: u32 = 4, qkey: u32 = 8, len: u32 = 12, imm: u32 = 16,
        /// [`flag`].
        flags: u32 = 20,
        slid: u16 = 24, sl: u8 = 26, traffic_class: u8 = 27,
        /// Flow label, and the hop limit in the top byte.
        flow: u32 = 28,
        sgid: u128 = 32, dgid: u128 = 48,
    }
}

record! {
    /// The answer to an [`Ask`].
    Answer, 32, {
        qpn: u32 = 0, incarnation: u32 = 4, seq: u32 = 8,
        /// A `wc_status`, or [`RNR`] or [`DROPPED`].
        status: u32 = 12,
        /// The atomic's result; for [`RNR`] `psn << 32 | timer`.
        value: u64 = 16,
        credit: u32 = 24,
        /// Bytes of the message before this part, where data follows.
        offset: u32 = 28,
    }
}

/// [`Answer::status`]: no receive for this part; try again after the time that `value` encodes.
pub(super) const RNR: u32 = 0x100;
/// [`Answer::status`]: not executed, because something before it was not.
pub(super) const DROPPED: u32 = 0x101;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is put is what is taken, and the payload stands behind it.
        #[test]
        fn heads_survive(
            qpn: u32, incarnation: u32, index: u32, len: u32, imm: u32, flags: u32, tail: Vec<u8>
        ) {
            let record = Recv { qpn, incarnation, index, len, imm, flags };
            let mut bytes = vec![0u8; Recv::HEAD];
            // SAFETY: a head's worth of bytes.
            unsafe { record.put(NonNull::new(bytes.as_mut_ptr()).unwrap()) };
            bytes.extend(&tail);
            prop_assert_eq!(Recv::take(&bytes), Some((record, &tail[..])));
        }

        /// Any bytes are a record or not; none panics, and a short one is none.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>) {
            prop_assert_eq!(Recv::take(&bytes).is_some(), bytes.len() >= Recv::HEAD);
            prop_assert_eq!(Ask::take(&bytes).is_some(), bytes.len() >= Ask::HEAD);
            prop_assert_eq!(Datagram::take(&bytes).is_some(), bytes.len() >= Datagram::HEAD);
            prop_assert_eq!(Answer::take(&bytes).is_some(), bytes.len() >= Answer::HEAD);
            prop_assert_eq!(Fault::take(&bytes).is_some(), bytes.len() >= Fault::HEAD);
        }
    }
}
