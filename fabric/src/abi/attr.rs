//! Attributes: what queries return and what creation and `modify` take.
//!
//! Layout source: `verbs.h` of rdma-core 44; unchanged in 64, but for [`PortAttr`], which grows
//! at its tail (a library writes as many bytes as the length argument of `query_port` allows).

use super::layout;
use core::ffi::c_void;
use core::fmt;

/// `union ibv_gid`: 16 bytes in network order.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gid(pub [u8; 16]);

impl fmt::Display for Gid {
    /// As an IPv6 address in full, the way that `ibv_devinfo -v` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, pair) in self.0.chunks_exact(2).enumerate() {
            write!(f, "{}{:02x}{:02x}", if i > 0 { ":" } else { "" }, pair[0], pair[1])?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `struct ibv_device_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are described in ibv_query_device(3)")]
pub struct DeviceAttr {
    pub fw_ver: [u8; 64],
    /// Big endian.
    pub node_guid: u64,
    /// Big endian.
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: i32,
    pub max_qp_wr: i32,
    pub device_cap_flags: u32,
    pub max_sge: i32,
    pub max_sge_rd: i32,
    pub max_cq: i32,
    pub max_cqe: i32,
    pub max_mr: i32,
    pub max_pd: i32,
    pub max_qp_rd_atom: i32,
    pub max_ee_rd_atom: i32,
    pub max_res_rd_atom: i32,
    pub max_qp_init_rd_atom: i32,
    pub max_ee_init_rd_atom: i32,
    /// [`super::atomic_cap`].
    pub atomic_cap: u32,
    pub max_ee: i32,
    pub max_rdd: i32,
    pub max_mw: i32,
    pub max_raw_ipv6_qp: i32,
    pub max_raw_ethy_qp: i32,
    pub max_mcast_grp: i32,
    pub max_mcast_qp_attach: i32,
    pub max_total_mcast_qp_attach: i32,
    pub max_ah: i32,
    pub max_fmr: i32,
    pub max_map_per_fmr: i32,
    pub max_srq: i32,
    pub max_srq_wr: i32,
    pub max_srq_sge: i32,
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

/// `struct ibv_port_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are described in ibv_query_port(3)")]
pub struct PortAttr {
    /// [`super::port_state`].
    pub state: u32,
    /// [`super::mtu`].
    pub max_mtu: u32,
    /// [`super::mtu`].
    pub active_mtu: u32,
    pub gid_tbl_len: i32,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    /// [`super::link_layer`].
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
}

/// `struct ibv_global_route`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_ah(3)")]
pub struct GlobalRoute {
    pub dgid: Gid,
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

/// `struct ibv_grh`: the header in front of the payload of a UD receive.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grh {
    /// IP version (6), traffic class and flow label, big endian.
    pub version_tclass_flow: u32,
    /// Payload length, big endian.
    pub paylen: u16,
    /// Next header.
    pub next_hdr: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub sgid: Gid,
    /// Destination.
    pub dgid: Gid,
}

/// `struct ibv_ah_attr`: an address vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are described in ibv_create_ah(3)")]
pub struct AhAttr {
    pub grh: GlobalRoute,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

/// `struct ibv_srq_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SrqAttr {
    /// Most receives that can be posted.
    pub max_wr: u32,
    /// Most scatter elements of a receive.
    pub max_sge: u32,
    /// The event SRQ_LIMIT_REACHED is raised once when fewer receives than this are left; 0: never.
    pub srq_limit: u32,
}

/// `struct ibv_srq_init_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SrqInitAttr {
    /// The program's own pointer.
    pub srq_context: *mut c_void,
    /// Sizes.
    pub attr: SrqAttr,
}

/// `struct ibv_qp_cap`: sizes of a queue pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QpCap {
    /// Most outstanding send requests.
    pub max_send_wr: u32,
    /// Most outstanding receives.
    pub max_recv_wr: u32,
    /// Most gather elements of a send request.
    pub max_send_sge: u32,
    /// Most scatter elements of a receive.
    pub max_recv_sge: u32,
    /// Most bytes of inline data.
    pub max_inline_data: u32,
}

/// `struct ibv_qp_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "the fields are described in ibv_modify_qp(3)")]
pub struct QpAttr {
    /// [`super::qp_state`].
    pub qp_state: u32,
    pub cur_qp_state: u32,
    /// [`super::mtu`].
    pub path_mtu: u32,
    pub path_mig_state: u32,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: u32,
    pub cap: QpCap,
    pub ah_attr: AhAttr,
    pub alt_ah_attr: AhAttr,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

layout!(Gid, size 16);
layout!(DeviceAttr, size 232, fw_ver at 0, node_guid at 64, sys_image_guid at 72,
    max_mr_size at 80, page_size_cap at 88, vendor_id at 96, max_qp at 108, max_qp_wr at 112,
    device_cap_flags at 116, max_sge at 120, max_cq at 128, max_cqe at 132, max_mr at 136,
    max_qp_rd_atom at 144, max_qp_init_rd_atom at 156, atomic_cap at 164, max_srq at 212,
    max_srq_sge at 220, max_pkeys at 224, phys_port_cnt at 227);
layout!(PortAttr, size 52, state at 0, active_mtu at 8, gid_tbl_len at 12, max_msg_sz at 20,
    pkey_tbl_len at 32, lid at 34, sm_lid at 36, lmc at 38, link_layer at 46, flags at 47,
    port_cap_flags2 at 48);
layout!(GlobalRoute, size 24, dgid at 0, flow_label at 16, sgid_index at 20, hop_limit at 21,
    traffic_class at 22);
layout!(Grh, size 40, paylen at 4, next_hdr at 6, hop_limit at 7, sgid at 8, dgid at 24);
layout!(AhAttr, size 32, grh at 0, dlid at 24, sl at 26, src_path_bits at 27, static_rate at 28,
    is_global at 29, port_num at 30);
layout!(SrqAttr, size 12, max_wr at 0, max_sge at 4, srq_limit at 8);
layout!(SrqInitAttr, size 24, srq_context at 0, attr at 8);
layout!(QpCap, size 20, max_send_wr at 0, max_recv_wr at 4, max_send_sge at 8,
    max_recv_sge at 12, max_inline_data at 16);
layout!(QpAttr, size 144, qp_state at 0, path_mtu at 8, qkey at 16, rq_psn at 20, sq_psn at 24,
    dest_qp_num at 28, qp_access_flags at 32, cap at 36, ah_attr at 56, alt_ah_attr at 88,
    pkey_index at 120, en_sqd_async_notify at 124, max_rd_atomic at 126, min_rnr_timer at 128,
    timeout at 130, retry_cnt at 131, rnr_retry at 132, alt_timeout at 134, rate_limit at 136);
