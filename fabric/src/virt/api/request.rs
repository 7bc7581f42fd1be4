//! Send requests as values.

use super::queue::sge_count;
use super::{AddressHandle, Remote};
use crate::abi::{self, AtomicWr, ImmOrKey, RdmaWr, SendWr, Sge, UdWr, WrTarget, send_flags};
use crate::error::{Error, Result};

/// What a request does. Immediate data is in host order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// SEND, consumed by the peer's next receive.
    Send,
    /// SEND with immediate data.
    SendImm(u32),
    /// RDMA WRITE.
    Write(Remote),
    /// RDMA WRITE with immediate data, which consumes a receive of the peer.
    WriteImm(Remote, u32),
    /// RDMA READ into the request's own elements.
    Read(Remote),
    /// Adds to the peer's 8-byte word; what was there goes into the request's element.
    FetchAdd(Remote, u64),
    /// Stores the second value where the first is found; what was there goes into the element.
    CompareSwap(Remote, u64, u64),
}

/// The local data of a request.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// Registered memory.
    Gather(&'a [Sge]),
    /// Bytes that are copied before the post returns.
    Inline(&'a [u8]),
}

/// Destination of a datagram.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    /// The process.
    pub ah: &'a AddressHandle,
    /// Its queue pair.
    pub qpn: u32,
    /// Its queue key.
    pub qkey: u32,
}

/// A work request of a send queue.
#[derive(Clone, Copy)]
pub struct SendRequest<'a> {
    /// Comes back in the completion.
    pub wr_id: u64,
    /// What to do.
    pub op: Op,
    /// With what data.
    pub data: Data<'a>,
    /// A completion is wanted on success, too.
    pub signaled: bool,
    /// The peer's receive raises a solicited event.
    pub solicited: bool,
    /// Wait for earlier READs and atomics of this queue pair first.
    pub fence: bool,
    /// Where a datagram goes; `None` on connected queue pairs.
    pub to: Option<Datagram<'a>>,
}

impl<'a> SendRequest<'a> {
    /// A signalled request of `op` over registered memory.
    #[must_use]
    #[inline]
    pub fn new(wr_id: u64, op: Op, sges: &'a [Sge]) -> Self {
        let data = Data::Gather(sges);
        SendRequest { wr_id, op, data, signaled: true, solicited: false, fence: false, to: None }
    }

    /// A signalled request of `op` whose bytes are copied at once.
    #[must_use]
    #[inline]
    pub fn inline(wr_id: u64, op: Op, bytes: &'a [u8]) -> Self {
        SendRequest { data: Data::Inline(bytes), ..SendRequest::new(wr_id, op, &[]) }
    }

    /// The same, unsignalled.
    #[must_use]
    #[inline]
    pub fn unsignaled(self) -> Self {
        SendRequest { signaled: false, ..self }
    }

    /// The same, solicited.
    #[must_use]
    #[inline]
    pub fn solicited(self) -> Self {
        SendRequest { solicited: true, ..self }
    }

    /// The same, fenced.
    #[must_use]
    #[inline]
    pub fn fenced(self) -> Self {
        SendRequest { fence: true, ..self }
    }

    /// The same, as a datagram.
    #[must_use]
    #[inline]
    pub fn to(self, to: Datagram<'a>) -> Self {
        SendRequest { to: Some(to), ..self }
    }

    /// Fills in the verbs struct, an empty one, in place; `element` holds the single element of
    /// inline data.
    #[inline]
    pub(super) fn lower(&self, wr: &mut SendWr, element: &mut Sge) -> Result<()> {
        wr.wr_id = self.wr_id;
        match self.data {
            Data::Gather(sges) => {
                wr.sg_list = sges.as_ptr().cast_mut();
                wr.num_sge = sge_count(sges)?;
            }
            Data::Inline(bytes) => {
                let length = u32::try_from(bytes.len())
                    .map_err(|_| Error::invalid(format!("{} bytes of inline data", bytes.len())))?;
                *element = Sge { addr: bytes.as_ptr() as u64, length, lkey: 0 };
                wr.sg_list = element;
                wr.num_sge = i32::from(length > 0);
                wr.send_flags |= send_flags::INLINE;
            }
        }
        for (wanted, flag) in [
            (self.signaled, send_flags::SIGNALED),
            (self.solicited, send_flags::SOLICITED),
            (self.fence, send_flags::FENCE),
        ] {
            wr.send_flags |= if wanted { flag } else { 0 };
        }
        let rdma = |at: Remote| WrTarget { rdma: RdmaWr { remote_addr: at.addr, rkey: at.rkey } };
        let imm = |value: u32| ImmOrKey { imm_data: value.to_be() };
        match self.op {
            Op::Send => {}
            Op::SendImm(value) => {
                wr.opcode = abi::wr_opcode::SEND_WITH_IMM;
                wr.imm = imm(value);
            }
            Op::Write(at) => {
                wr.opcode = abi::wr_opcode::RDMA_WRITE;
                wr.wr = rdma(at);
            }
            Op::WriteImm(at, value) => {
                wr.opcode = abi::wr_opcode::RDMA_WRITE_WITH_IMM;
                wr.wr = rdma(at);
                wr.imm = imm(value);
            }
            Op::Read(at) => {
                wr.opcode = abi::wr_opcode::RDMA_READ;
                wr.wr = rdma(at);
            }
            Op::FetchAdd(at, compare_add) => {
                wr.opcode = abi::wr_opcode::ATOMIC_FETCH_AND_ADD;
                wr.wr.atomic =
                    AtomicWr { remote_addr: at.addr, compare_add, swap: 0, rkey: at.rkey };
            }
            Op::CompareSwap(at, compare_add, swap) => {
                wr.opcode = abi::wr_opcode::ATOMIC_CMP_AND_SWP;
                wr.wr.atomic = AtomicWr { remote_addr: at.addr, compare_add, swap, rkey: at.rkey };
            }
        }
        if let Some(to) = self.to {
            wr.wr.ud =
                UdWr { ah: to.ah.device().as_raw(), remote_qpn: to.qpn, remote_qkey: to.qkey };
        }
        Ok(())
    }
}
