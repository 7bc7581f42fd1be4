//! The objects that libibverbs hands out, and what describes one to be created.
//!
//! libibverbs allocates these and a provider puts its own data behind them, so they are only
//! ever seen through pointers. Layout source: `verbs.h` of rdma-core 44; unchanged in 64.

use super::{Context, Gid, QpCap, layout};
use core::ffi::{c_char, c_int, c_void};
use core::mem::size_of;
use libc::{pthread_cond_t, pthread_mutex_t};

/// Bytes of a device's name, its terminating zero included (`IBV_SYSFS_NAME_MAX`).
pub const SYSFS_NAME_MAX: usize = 64;
/// Bytes of a path in sysfs, its terminating zero included (`IBV_SYSFS_PATH_MAX`).
pub const SYSFS_PATH_MAX: usize = 256;

/// `struct ibv_device`: a device that was found.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in verbs.h")]
pub struct Device {
    /// Two functions that no program may call.
    pub _ops: [*mut c_void; 2],
    pub node_type: i32,
    pub transport_type: i32,
    /// Name in the kernel, such as `mlx5_0`.
    pub name: [c_char; SYSFS_NAME_MAX],
    /// Name of its uverbs device, such as `uverbs0`.
    pub dev_name: [c_char; SYSFS_NAME_MAX],
    pub dev_path: [c_char; SYSFS_PATH_MAX],
    pub ibdev_path: [c_char; SYSFS_PATH_MAX],
}

/// `struct ibv_pd`: a protection domain.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in verbs.h")]
pub struct Pd {
    pub context: *mut Context,
    pub handle: u32,
}

/// `struct ibv_td`: a thread domain.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in verbs.h")]
pub struct Td {
    pub context: *mut Context,
}

/// `struct ibv_mr`: a memory region.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_reg_mr(3)")]
pub struct Mr {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub addr: *mut c_void,
    pub length: usize,
    pub handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// `struct ibv_mw`: a memory window.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_alloc_mw(3)")]
pub struct Mw {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub rkey: u32,
    pub handle: u32,
    pub mw_type: u32,
}

/// `struct ibv_comp_channel`: a completion channel.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_comp_channel(3)")]
pub struct CompChannel {
    pub context: *mut Context,
    pub fd: c_int,
    pub refcnt: c_int,
}

/// `struct ibv_cq`: a completion queue. `struct ibv_cq_ex` begins with the same fields, so that
/// a pointer to one serves as a pointer to the other (`ibv_cq_ex_to_cq`).
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_cq(3)")]
pub struct Cq {
    pub context: *mut Context,
    pub channel: *mut CompChannel,
    /// The program's own pointer.
    pub cq_context: *mut c_void,
    pub handle: u32,
    pub cqe: c_int,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub comp_events_completed: u32,
    pub async_events_completed: u32,
}

/// `struct ibv_srq`: a shared receive queue.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_srq(3)")]
pub struct Srq {
    pub context: *mut Context,
    /// The program's own pointer.
    pub srq_context: *mut c_void,
    pub pd: *mut Pd,
    pub handle: u32,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub events_completed: u32,
}

/// `struct ibv_qp`: a queue pair.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_qp(3)")]
pub struct Qp {
    pub context: *mut Context,
    /// The program's own pointer.
    pub qp_context: *mut c_void,
    pub pd: *mut Pd,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut Srq,
    pub handle: u32,
    pub qp_num: u32,
    /// [`super::qp_state`], as this process last set it.
    pub state: u32,
    /// [`super::qp_type`].
    pub qp_type: u32,
    pub mutex: pthread_mutex_t,
    pub cond: pthread_cond_t,
    pub events_completed: u32,
}

/// `struct ibv_ah`: an address handle.
#[repr(C)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_ah(3)")]
pub struct Ah {
    pub context: *mut Context,
    pub pd: *mut Pd,
    pub handle: u32,
}

/// `element` of `struct ibv_async_event`.
#[repr(C)]
#[derive(Clone, Copy)]
pub union AsyncElement {
    /// For events of a completion queue.
    pub cq: *mut Cq,
    /// For events of a queue pair.
    pub qp: *mut Qp,
    /// For events of a shared receive queue.
    pub srq: *mut Srq,
    /// For events of a work queue.
    pub wq: *mut c_void,
    /// For events of a port.
    pub port_num: c_int,
}

/// `struct ibv_async_event`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AsyncEvent {
    /// What it is about, by type.
    pub element: AsyncElement,
    /// [`super::event_type`].
    pub event_type: u32,
}

/// `struct ibv_qp_init_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_qp(3)")]
pub struct QpInitAttr {
    /// The program's own pointer.
    pub qp_context: *mut c_void,
    pub send_cq: *mut Cq,
    pub recv_cq: *mut Cq,
    pub srq: *mut Srq,
    pub cap: QpCap,
    /// [`super::qp_type`].
    pub qp_type: u32,
    pub sq_sig_all: c_int,
}

/// `struct ibv_cq_init_attr_ex`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_cq_ex(3)")]
pub struct CqInitAttrEx {
    pub cqe: u32,
    /// The program's own pointer.
    pub cq_context: *mut c_void,
    pub channel: *mut CompChannel,
    pub comp_vector: u32,
    /// [`super::create_cq_wc_flags`].
    pub wc_flags: u64,
    /// [`super::cq_init_attr_mask`].
    pub comp_mask: u32,
    /// [`super::create_cq_flags`].
    pub flags: u32,
    pub parent_domain: *mut Pd,
}

/// `struct ibv_td_init_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TdInitAttr {
    /// Nothing is defined yet: 0.
    pub comp_mask: u32,
}

/// `alloc` of `struct ibv_parent_domain_init_attr`.
pub type ParentDomainAlloc =
    unsafe extern "C" fn(*mut Pd, *mut c_void, usize, usize, u64) -> *mut c_void;
/// `free` of `struct ibv_parent_domain_init_attr`.
pub type ParentDomainFree = unsafe extern "C" fn(*mut Pd, *mut c_void, *mut c_void, u64);

/// `struct ibv_parent_domain_init_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are described in ibv_alloc_parent_domain(3)")]
pub struct ParentDomainInitAttr {
    pub pd: *mut Pd,
    pub td: *mut Td,
    pub comp_mask: u32,
    pub alloc: Option<ParentDomainAlloc>,
    pub free: Option<ParentDomainFree>,
    pub pd_context: *mut c_void,
}

/// `struct ibv_gid_entry`: one entry of a GID table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are described in ibv_query_gid_table(3)")]
pub struct GidEntry {
    pub gid: Gid,
    pub gid_index: u32,
    pub port_num: u32,
    /// [`super::gid_type`].
    pub gid_type: u32,
    pub ndev_ifindex: u32,
}

// Where a mutex and a condition variable stand, what follows depends on their sizes, which are
// those of the C library (40 and 48 bytes with glibc on x86-64).
const SYNC: usize = size_of::<pthread_mutex_t>() + size_of::<pthread_cond_t>();

layout!(Device, size 664, _ops at 0, node_type at 16, transport_type at 20, name at 24,
    dev_name at 88, dev_path at 152, ibdev_path at 408);
layout!(Pd, size 16, context at 0, handle at 8);
layout!(Td, size 8, context at 0);
layout!(Mr, size 48, context at 0, pd at 8, addr at 16, length at 24, handle at 32, lkey at 36,
    rkey at 40);
layout!(Mw, size 32, context at 0, pd at 8, rkey at 16, handle at 20, mw_type at 24);
layout!(CompChannel, size 16, context at 0, fd at 8, refcnt at 12);
layout!(Cq, size 32 + SYNC + 8, context at 0, channel at 8, cq_context at 16, handle at 24,
    cqe at 28, mutex at 32, comp_events_completed at 32 + SYNC,
    async_events_completed at 36 + SYNC);
layout!(Srq, size 32 + SYNC + 8, context at 0, srq_context at 8, pd at 16, handle at 24,
    mutex at 32, events_completed at 32 + SYNC);
layout!(Qp, size 64 + SYNC + 8, context at 0, qp_context at 8, pd at 16, send_cq at 24,
    recv_cq at 32, srq at 40, handle at 48, qp_num at 52, state at 56, qp_type at 60,
    mutex at 64, events_completed at 64 + SYNC);
layout!(Ah, size 24, context at 0, pd at 8, handle at 16);
layout!(AsyncEvent, size 16, element at 0, event_type at 8);
layout!(QpInitAttr, size 64, qp_context at 0, send_cq at 8, recv_cq at 16, srq at 24, cap at 32,
    qp_type at 52, sq_sig_all at 56);
layout!(CqInitAttrEx, size 56, cqe at 0, cq_context at 8, channel at 16, comp_vector at 24,
    wc_flags at 32, comp_mask at 40, flags at 44, parent_domain at 48);
layout!(TdInitAttr, size 4, comp_mask at 0);
layout!(ParentDomainInitAttr, size 48, pd at 0, td at 8, comp_mask at 16, alloc at 24,
    free at 32, pd_context at 40);
layout!(GidEntry, size 32, gid at 0, gid_index at 16, port_num at 20, gid_type at 24,
    ndev_ifindex at 28);
