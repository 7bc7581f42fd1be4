//! Work requests and completions: what the data path carries.
//!
//! Layout source: `verbs.h` of rdma-core 44; unchanged in 64.

use super::layout;
use core::ffi::c_void;
use core::ptr;

/// `struct ibv_sge`: one piece of local memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Address of the first byte, in the program's address space.
    pub addr: u64,
    /// Length in bytes.
    pub length: u32,
    /// Local key of the region that holds it.
    pub lkey: u32,
}

/// Immediate data (network byte order) or the remote key to invalidate, by opcode.
#[repr(C)]
#[derive(Clone, Copy)]
pub union ImmOrKey {
    /// Immediate data in network byte order, where the opcode is `*_WITH_IMM`.
    pub imm_data: u32,
    /// The remote key to invalidate, where the opcode is `*_WITH_INV`.
    pub invalidate_rkey: u32,
}

/// Target of WRITE and READ.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RdmaWr {
    /// Address in the remote process.
    pub remote_addr: u64,
    /// Remote key.
    pub rkey: u32,
}

/// Target and operands of an atomic.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AtomicWr {
    /// Address in the remote process, 8-byte aligned.
    pub remote_addr: u64,
    /// What is added, or compared with.
    pub compare_add: u64,
    /// What is stored when the comparison holds.
    pub swap: u64,
    /// Remote key.
    pub rkey: u32,
}

/// Destination of a datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdWr {
    /// Address handle (`struct ibv_ah *`): what the device's `DeviceAh::as_raw` returned.
    pub ah: *mut c_void,
    /// Remote queue pair number.
    pub remote_qpn: u32,
    /// Queue key; with its top bit set, that of the sending queue pair is used.
    pub remote_qkey: u32,
}

/// The `wr` union of `struct ibv_send_wr`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union WrTarget {
    /// For WRITE and READ.
    pub rdma: RdmaWr,
    /// For atomics.
    pub atomic: AtomicWr,
    /// For datagrams.
    pub ud: UdWr,
}

/// `struct ibv_mw_bind_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MwBindInfo {
    /// `struct ibv_mr *`.
    pub mr: *mut c_void,
    /// First address.
    pub addr: u64,
    /// Length in bytes.
    pub length: u64,
    /// `enum ibv_access_flags`.
    pub mw_access_flags: u32,
}

/// `bind_mw` of `struct ibv_send_wr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BindMw {
    /// `struct ibv_mw *`.
    pub mw: *mut c_void,
    /// The window's new remote key.
    pub rkey: u32,
    /// What it is bound to.
    pub bind_info: MwBindInfo,
}

/// `tso` of `struct ibv_send_wr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Tso {
    /// Header.
    pub hdr: *mut c_void,
    /// Its length in bytes.
    pub hdr_sz: u16,
    /// Segment size in bytes.
    pub mss: u16,
}

/// The last union of `struct ibv_send_wr`. No device here executes either.
#[repr(C)]
#[derive(Clone, Copy)]
pub union BindOrTso {
    /// Memory window to bind.
    pub bind_mw: BindMw,
    /// Segmentation offload.
    pub tso: Tso,
}

/// `struct ibv_send_wr`: a work request of a send queue.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SendWr {
    /// The program's own identifier, returned in the completion.
    pub wr_id: u64,
    /// Next of a list, or null.
    pub next: *mut SendWr,
    /// The gather list (scatter list for READ and atomics).
    pub sg_list: *mut Sge,
    /// Its number of elements.
    pub num_sge: i32,
    /// [`super::wr_opcode`].
    pub opcode: u32,
    /// [`super::send_flags`].
    pub send_flags: u32,
    /// Immediate data or remote key to invalidate.
    pub imm: ImmOrKey,
    /// What the request is aimed at, by opcode and QP type.
    pub wr: WrTarget,
    /// XRC shared receive queue number.
    pub remote_srqn: u32,
    /// Memory window or segmentation offload.
    pub extra: BindOrTso,
}

impl SendWr {
    /// A request with nothing in it: SEND of no bytes, unsignalled.
    #[must_use]
    pub const fn empty() -> Self {
        SendWr {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 0,
            opcode: super::wr_opcode::SEND,
            send_flags: 0,
            imm: ImmOrKey { imm_data: 0 },
            // The largest member is initialised, so that every byte of the union is.
            wr: WrTarget { atomic: AtomicWr { remote_addr: 0, compare_add: 0, swap: 0, rkey: 0 } },
            remote_srqn: 0,
            extra: BindOrTso {
                bind_mw: BindMw {
                    mw: ptr::null_mut(),
                    rkey: 0,
                    bind_info: MwBindInfo {
                        mr: ptr::null_mut(),
                        addr: 0,
                        length: 0,
                        mw_access_flags: 0,
                    },
                },
            },
        }
    }
}

/// `struct ibv_recv_wr`: a posted receive.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RecvWr {
    /// The program's own identifier, returned in the completion.
    pub wr_id: u64,
    /// Next of a list, or null.
    pub next: *mut RecvWr,
    /// The scatter list.
    pub sg_list: *mut Sge,
    /// Its number of elements.
    pub num_sge: i32,
}

/// `struct ibv_wc`: a completion. With an error status only `wr_id`, `status`, `qp_num` and
/// `vendor_err` are defined (`ibv_poll_cq(3)`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wc {
    /// Identifier from the work request.
    pub wr_id: u64,
    /// [`super::wc_status`].
    pub status: u32,
    /// [`super::wc_opcode`].
    pub opcode: u32,
    /// Vendor error.
    pub vendor_err: u32,
    /// Bytes transferred (receives, READ, atomics).
    pub byte_len: u32,
    /// Immediate data in network byte order, or the invalidated remote key.
    pub imm_data: u32,
    /// Local queue pair number.
    pub qp_num: u32,
    /// Queue pair number of the sender (UD).
    pub src_qp: u32,
    /// [`super::wc_flags`].
    pub wc_flags: u32,
    /// P_Key index (GSI only).
    pub pkey_index: u16,
    /// LID of the sender (UD).
    pub slid: u16,
    /// Service level.
    pub sl: u8,
    /// Path bits of the destination LID.
    pub dlid_path_bits: u8,
}

layout!(Sge, size 16, addr at 0, length at 8, lkey at 12);
layout!(RdmaWr, size 16, remote_addr at 0, rkey at 8);
layout!(AtomicWr, size 32, remote_addr at 0, compare_add at 8, swap at 16, rkey at 24);
layout!(UdWr, size 16, ah at 0, remote_qpn at 8, remote_qkey at 12);
layout!(MwBindInfo, size 32, mr at 0, addr at 8, length at 16, mw_access_flags at 24);
layout!(BindMw, size 48, mw at 0, rkey at 8, bind_info at 16);
layout!(Tso, size 16, hdr at 0, hdr_sz at 8, mss at 10);
layout!(SendWr, size 128, wr_id at 0, next at 8, sg_list at 16, num_sge at 24, opcode at 28,
    send_flags at 32, imm at 36, wr at 40, remote_srqn at 72, extra at 80);
layout!(RecvWr, size 32, wr_id at 0, next at 8, sg_list at 16, num_sge at 24);
layout!(Wc, size 48, wr_id at 0, status at 8, opcode at 12, vendor_err at 16, byte_len at 20,
    imm_data at 24, qp_num at 28, src_qp at 32, wc_flags at 36, pkey_index at 40, slid at 42,
    sl at 44, dlid_path_bits at 45);
