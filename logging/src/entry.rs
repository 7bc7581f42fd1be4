//! What an entry of a window holds.

use std::fmt;

/// Opcode of a send request, with the values of `enum ibv_wr_opcode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// RDMA WRITE.
    Write = 0,
    /// RDMA WRITE with immediate data.
    WriteImm = 1,
    /// SEND.
    Send = 2,
    /// SEND with immediate data.
    SendImm = 3,
    /// RDMA READ.
    Read = 4,
    /// Compare and swap.
    CompareSwap = 5,
    /// Fetch and add.
    FetchAdd = 6,
    /// SEND that invalidates a remote key.
    SendInv = 9,
}

impl Opcode {
    /// The opcode of a verbs value, or `None` for those that no window takes (memory windows,
    /// local invalidation, segmentation offload, vendors' own).
    #[inline]
    #[must_use]
    pub const fn from_verbs(value: u32) -> Option<Self> {
        Some(match value {
            0 => Opcode::Write,
            1 => Opcode::WriteImm,
            2 => Opcode::Send,
            3 => Opcode::SendImm,
            4 => Opcode::Read,
            5 => Opcode::CompareSwap,
            6 => Opcode::FetchAdd,
            9 => Opcode::SendInv,
            _ => return None,
        })
    }

    /// It names memory of the peer.
    #[inline]
    #[must_use]
    pub const fn is_one_sided(self) -> bool {
        !matches!(self, Opcode::Send | Opcode::SendImm | Opcode::SendInv)
    }

    /// It is an atomic.
    #[inline]
    #[must_use]
    pub const fn is_atomic(self) -> bool {
        matches!(self, Opcode::CompareSwap | Opcode::FetchAdd)
    }
}

/// A piece of the program's memory, as `struct ibv_sge` has it, with a virtual key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub length: u32,
    /// Virtual local key.
    pub lkey: u32,
}

/// A send request without its elements and inline bytes, which stand beside it in the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendEntry {
    /// The program's own identifier.
    pub wr_id: u64,
    /// What it does.
    pub opcode: Opcode,
    /// `enum ibv_send_flags`; bits beyond 16 do not exist.
    pub flags: u16,
    /// Immediate data as it came (network order), or the virtual key to invalidate.
    pub imm: u32,
    /// One-sided: address at the peer. Datagram: the address handle.
    pub remote_addr: u64,
    /// One-sided: virtual remote key. Datagram: the queue pair number.
    pub rkey: u32,
    /// Datagram: the queue key.
    pub qkey: u32,
    /// Atomic: what is added or compared with.
    pub compare_add: u64,
    /// Atomic: what is stored.
    pub swap: u64,
    /// Elements beside the entry.
    pub elements: u8,
    /// Bytes of inline payload beside the entry.
    pub inline: u32,
}

impl SendEntry {
    /// A SEND of nothing.
    #[must_use]
    pub const fn empty() -> Self {
        SendEntry {
            wr_id: 0,
            opcode: Opcode::Send,
            flags: 0,
            imm: 0,
            remote_addr: 0,
            rkey: 0,
            qkey: 0,
            compare_add: 0,
            swap: 0,
            elements: 0,
            inline: 0,
        }
    }
}

/// A posted receive without its elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecvEntry {
    /// The program's own identifier.
    pub wr_id: u64,
    /// Elements beside the entry.
    pub elements: u8,
}

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet in the window.
    Future,
    /// In the window, not yet given to a physical queue pair.
    Appended,
    /// Given to a physical queue pair.
    Handed,
    /// Gone from the window.
    Retired,
}

/// Why a window did not take an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many entries as the window is deep have not been retired.
    Full,
    /// More elements than the window was made for.
    TooManyElements,
    /// More inline bytes than the window was made for.
    InlineTooLong,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refused::Full => "the window is full",
            Refused::TooManyElements => "more elements than the window was made for",
            Refused::InlineTooLong => "more inline bytes than the window was made for",
        })
    }
}

impl std::error::Error for Refused {}
