//! A send request, taken from the program's struct: checked once, then read by the executor.

use super::super::ah::Ah;
use super::super::limits::{MAX_MESSAGE, MAX_SGE};
use crate::abi::{AhAttr, SendWr, Sge, qp_type, send_flags, wr_opcode};

/// The local memory of a request.
#[derive(Clone, Copy)]
pub(super) enum Data<'a> {
    /// Registered memory, by gather (or scatter) list.
    Listed(&'a [Sge]),
    /// The program's memory, read during the call without a key.
    Inline(&'a [Sge]),
    /// A copy of inline data.
    Copied(&'a [u8]),
}

/// A send request.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) wr_id: u64,
    pub(super) opcode: u32,
    pub(super) flags: u32,
    pub(super) imm: u32,
    pub(super) data: Data<'a>,
    /// Bytes of the message.
    pub(super) len: u32,
    pub(super) addr: u64,
    pub(super) rkey: u32,
    pub(super) compare_add: u64,
    pub(super) swap: u64,
    /// Destination of a datagram.
    pub(super) to: Option<(AhAttr, u32, u32)>,
}

impl Request<'_> {
    pub(super) fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// What a queue pair admits.
pub(super) struct Admits {
    pub(super) kind: u32,
    pub(super) max_sge: u32,
    pub(super) max_inline: u32,
}

/// Takes one request.
///
/// # Errors
/// The errno with which posting it fails.
///
/// # Safety
/// As `ibv_post_send(3)`: the request's pointers are valid.
#[inline]
pub(super) unsafe fn take<'a>(wr: &'a SendWr, admits: &Admits) -> Result<Request<'a>, i32> {
    if wr.num_sge < 0 || wr.num_sge as u32 > admits.max_sge.min(MAX_SGE as u32) {
        return Err(libc::EINVAL);
    }
    let sges: &[Sge] = if wr.num_sge == 0 {
        &[]
    } else if wr.sg_list.is_null() {
        return Err(libc::EINVAL);
    } else {
        // SAFETY: the caller's promise; not null and within the limit.
        unsafe { std::slice::from_raw_parts(wr.sg_list, wr.num_sge as usize) }
    };
    let len: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
    let inline = wr.send_flags & send_flags::INLINE != 0;
    let mut request = Request {
        wr_id: wr.wr_id,
        opcode: wr.opcode,
        flags: wr.send_flags,
        imm: 0,
        data: if inline { Data::Inline(sges) } else { Data::Listed(sges) },
        len: 0,
        addr: 0,
        rkey: 0,
        compare_add: 0,
        swap: 0,
        to: None,
    };
    use wr_opcode as op;
    let connected = admits.kind != qp_type::UD;
    match wr.opcode {
        op::SEND => {}
        op::SEND_WITH_IMM | op::RDMA_WRITE_WITH_IMM | op::RDMA_WRITE => {
            if wr.opcode != op::RDMA_WRITE {
                // SAFETY: the member that this opcode uses; plain bytes either way.
                request.imm = unsafe { wr.imm.imm_data };
            }
            if wr.opcode != op::SEND_WITH_IMM {
                if !connected {
                    return Err(libc::EINVAL);
                }
                // SAFETY: the member that this opcode uses; plain bytes either way.
                let rdma = unsafe { wr.wr.rdma };
                (request.addr, request.rkey) = (rdma.remote_addr, rdma.rkey);
            }
        }
        op::RDMA_READ => {
            if admits.kind != qp_type::RC || inline {
                return Err(libc::EINVAL);
            }
            // SAFETY: the member that this opcode uses; plain bytes either way.
            let rdma = unsafe { wr.wr.rdma };
            (request.addr, request.rkey) = (rdma.remote_addr, rdma.rkey);
        }
        op::ATOMIC_CMP_AND_SWP | op::ATOMIC_FETCH_AND_ADD => {
            if admits.kind != qp_type::RC || inline || len != 8 {
                return Err(libc::EINVAL);
            }
            // SAFETY: the member that this opcode uses; plain bytes either way.
            let atomic = unsafe { wr.wr.atomic };
            (request.addr, request.rkey) = (atomic.remote_addr, atomic.rkey);
            (request.compare_add, request.swap) = (atomic.compare_add, atomic.swap);
        }
        _ => return Err(libc::EINVAL),
    }
    if inline && len > u64::from(admits.max_inline) {
        return Err(libc::EINVAL);
    }
    // A message longer than a device carries is refused when it is posted, which verbs leave open.
    if len > u64::from(MAX_MESSAGE) {
        return Err(libc::EINVAL);
    }
    request.len = len as u32;
    if !connected {
        // SAFETY: the member that UD uses; the handle is alive, as the caller promises.
        let (ud, attr) = unsafe { (wr.wr.ud, Ah::target(wr.wr.ud.ah)) };
        request.to = Some((attr.ok_or(libc::EINVAL)?, ud.remote_qpn, ud.remote_qkey));
    }
    Ok(request)
}

/// A request that waits in the queue: it owns what it needs.
pub(super) struct Kept {
    request: Request<'static>,
    sges: Box<[Sge]>,
    bytes: Option<Box<[u8]>>,
}

impl Kept {
    pub(super) fn new(request: &Request<'_>) -> Kept {
        let (sges, bytes): (Box<[Sge]>, _) = match request.data {
            Data::Listed(sges) => (sges.into(), None),
            Data::Copied(bytes) => (Box::default(), Some(bytes.into())),
            Data::Inline(sges) => {
                let mut bytes = Vec::with_capacity(request.len as usize);
                for sge in sges.iter().filter(|sge| sge.length > 0) {
                    // SAFETY: inline data is the program's own memory, readable during the call
                    // (`ibv_post_send(3)`), which is when this runs.
                    bytes.extend_from_slice(unsafe {
                        std::slice::from_raw_parts(sge.addr as *const u8, sge.length as usize)
                    });
                }
                (Box::default(), Some(bytes.into_boxed_slice()))
            }
        };
        Kept { request: Request { data: Data::Listed(&[]), ..*request }, sges, bytes }
    }

    pub(super) fn get(&self) -> Request<'_> {
        let data = match &self.bytes {
            Some(bytes) => Data::Copied(bytes),
            None => Data::Listed(&self.sges),
        };
        Request { data, ..self.request }
    }
}
