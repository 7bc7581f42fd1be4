//! Every struct of `fabric::abi` with its fields, the C struct, and that of `rdma-sys`.
//!
//! A field whose name differs is followed by `= C-NAME, RDMA-SYS-NAME`. A struct whose fields are
//! not all listed does not compile.

use sojourn_fabric::abi;
use std::mem::{offset_of, size_of};

/// A struct, and its size in `fabric::abi` and in `rdma-sys`.
pub struct Layout {
    /// Name in `fabric::abi`.
    pub name: &'static str,
    /// The type in C.
    pub c: &'static str,
    /// Size in `fabric::abi`.
    pub ours: usize,
    /// Size in `rdma-sys`.
    pub rdma_sys: usize,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// A field, and its place in `fabric::abi` and in `rdma-sys`.
pub struct Field {
    /// Name in `fabric::abi`.
    pub name: &'static str,
    /// Name in C, perhaps a path.
    pub c: &'static str,
    /// Offset in `fabric::abi`.
    pub ours: usize,
    /// Offset in `rdma-sys`.
    pub rdma_sys: usize,
    /// Size in `fabric::abi`.
    pub size: usize,
}

/// The size of what a function returns a reference to.
const fn size_behind<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layouts {
    ($($ours:ident: $c:literal, $theirs:ident {
        $($field:tt $(= $c_field:literal, $their_field:ident$(.$nested:ident)*)?),* $(,)?
    })*) => {
        /// All of them.
        pub fn all() -> Vec<Layout> {
            vec![$({
                // Does not compile when a field of the struct is missing above.
                let _ = |all: &abi::$ours| { let abi::$ours { $($field: _),* } = all; };
                Layout {
                    name: stringify!($ours),
                    c: $c,
                    ours: size_of::<abi::$ours>(),
                    rdma_sys: size_of::<rdma_sys::$theirs>(),
                    fields: vec![$(Field {
                        name: stringify!($field),
                        c: layouts!(@c $field $($c_field)?),
                        ours: offset_of!(abi::$ours, $field),
                        rdma_sys:
                            layouts!(@theirs $theirs $field $($their_field$(.$nested)*)?),
                        size: size_behind(|whole: &abi::$ours| &whole.$field),
                    }),*],
                }
            }),*]
        }
    };
    (@c $field:tt) => { stringify!($field) };
    (@c $field:tt $c:literal) => { $c };
    (@theirs $type:ident $field:tt) => { offset_of!(rdma_sys::$type, $field) };
    (@theirs $type:ident $field:tt $($path:ident).+) => {
        offset_of!(rdma_sys::$type, $($path).+)
    };
}

layouts! {
    Gid: "union ibv_gid", ibv_gid { 0 = "raw", raw }
    DeviceAttr: "struct ibv_device_attr", ibv_device_attr {
        fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id,
        hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr,
        max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom,
        max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp,
        max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah,
        max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys,
        local_ca_ack_delay, phys_port_cnt,
    }
    PortAttr: "struct ibv_port_attr", ibv_port_attr {
        state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr,
        qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout,
        init_type_reply, active_width, active_speed, phys_state, link_layer, flags,
        port_cap_flags2,
    }
    GlobalRoute: "struct ibv_global_route", ibv_global_route {
        dgid, flow_label, sgid_index, hop_limit, traffic_class,
    }
    Grh: "struct ibv_grh", ibv_grh {
        version_tclass_flow, paylen, next_hdr, hop_limit, sgid, dgid,
    }
    AhAttr: "struct ibv_ah_attr", ibv_ah_attr {
        grh, dlid, sl, src_path_bits, static_rate, is_global, port_num,
    }
    SrqAttr: "struct ibv_srq_attr", ibv_srq_attr { max_wr, max_sge, srq_limit }
    SrqInitAttr: "struct ibv_srq_init_attr", ibv_srq_init_attr { srq_context, attr }
    QpCap: "struct ibv_qp_cap", ibv_qp_cap {
        max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data,
    }
    QpAttr: "struct ibv_qp_attr", ibv_qp_attr {
        qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num,
        qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index,
        en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer,
        port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit,
    }
    Sge: "struct ibv_sge", ibv_sge { addr, length, lkey }
    RdmaWr: "__typeof__(((struct ibv_send_wr *)0)->wr.rdma)", rdma_t { remote_addr, rkey }
    AtomicWr: "__typeof__(((struct ibv_send_wr *)0)->wr.atomic)", atomic_t {
        remote_addr, compare_add, swap, rkey,
    }
    UdWr: "__typeof__(((struct ibv_send_wr *)0)->wr.ud)", ud_t { ah, remote_qpn, remote_qkey }
    MwBindInfo: "struct ibv_mw_bind_info", ibv_mw_bind_info { mr, addr, length, mw_access_flags }
    BindMw: "__typeof__(((struct ibv_send_wr *)0)->bind_mw)", bind_mw_t { mw, rkey, bind_info }
    Tso: "__typeof__(((struct ibv_send_wr *)0)->tso)", tso_t { hdr, hdr_sz, mss }
    SendWr: "struct ibv_send_wr", ibv_send_wr {
        wr_id, next, sg_list, num_sge, opcode, send_flags,
        imm = "imm_data", imm_data_invalidated_rkey_union, wr,
        remote_srqn = "qp_type.xrc.remote_srqn", qp_type.xrc.remote_srqn,
        extra = "bind_mw", bind_mw_tso_union,
    }
    RecvWr: "struct ibv_recv_wr", ibv_recv_wr { wr_id, next, sg_list, num_sge }
    Wc: "struct ibv_wc", ibv_wc {
        wr_id, status, opcode, vendor_err, byte_len,
        imm_data = "imm_data", imm_data_invalidated_rkey_union, qp_num, src_qp, wc_flags,
        pkey_index, slid, sl, dlid_path_bits,
    }
    Device: "struct ibv_device", ibv_device {
        _ops, node_type, transport_type, name, dev_name, dev_path, ibdev_path,
    }
    Pd: "struct ibv_pd", ibv_pd { context, handle }
    Td: "struct ibv_td", ibv_td { context }
    Mr: "struct ibv_mr", ibv_mr { context, pd, addr, length, handle, lkey, rkey }
    Mw: "struct ibv_mw", ibv_mw { context, pd, rkey, handle, mw_type = "type", type_ }
    CompChannel: "struct ibv_comp_channel", ibv_comp_channel { context, fd, refcnt }
    Cq: "struct ibv_cq", ibv_cq {
        context, channel, cq_context, handle, cqe, mutex, cond, comp_events_completed,
        async_events_completed,
    }
    Srq: "struct ibv_srq", ibv_srq {
        context, srq_context, pd, handle, mutex, cond, events_completed,
    }
    Qp: "struct ibv_qp", ibv_qp {
        context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type, mutex,
        cond, events_completed,
    }
    Ah: "struct ibv_ah", ibv_ah { context, pd, handle }
    AsyncEvent: "struct ibv_async_event", ibv_async_event { element, event_type }
    QpInitAttr: "struct ibv_qp_init_attr", ibv_qp_init_attr {
        qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all,
    }
    CqInitAttrEx: "struct ibv_cq_init_attr_ex", ibv_cq_init_attr_ex {
        cqe, cq_context, channel, comp_vector, wc_flags, comp_mask, flags, parent_domain,
    }
    TdInitAttr: "struct ibv_td_init_attr", ibv_td_init_attr { comp_mask }
    ParentDomainInitAttr: "struct ibv_parent_domain_init_attr", ibv_parent_domain_init_attr {
        pd, td, comp_mask, alloc, free, pd_context,
    }
    GidEntry: "struct ibv_gid_entry", ibv_gid_entry {
        gid, gid_index, port_num, gid_type, ndev_ifindex,
    }
    ContextOps: "struct ibv_context_ops", ibv_context_ops {
        _compat_query_device, _compat_query_port, _compat_alloc_pd, _compat_dealloc_pd,
        _compat_reg_mr, _compat_rereg_mr, _compat_dereg_mr, alloc_mw, bind_mw, dealloc_mw,
        _compat_create_cq, poll_cq, req_notify_cq, _compat_cq_event, _compat_resize_cq,
        _compat_destroy_cq, _compat_create_srq, _compat_modify_srq, _compat_query_srq,
        _compat_destroy_srq, post_srq_recv, _compat_create_qp, _compat_query_qp,
        _compat_modify_qp, _compat_destroy_qp, post_send, post_recv, _compat_create_ah,
        _compat_destroy_ah, _compat_attach_mcast, _compat_detach_mcast, _compat_async_event,
    }
    Context: "struct ibv_context", ibv_context {
        device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat,
    }
    VerbsContext: "struct verbs_context", verbs_context {
        query_port, advise_mr, alloc_null_mr, read_counters, attach_counters_point_flow,
        create_counters, destroy_counters, reg_dm_mr, alloc_dm, free_dm, modify_flow_action_esp,
        destroy_flow_action, create_flow_action_esp, modify_qp_rate_limit, alloc_parent_domain,
        dealloc_td, alloc_td, modify_cq, post_srq_ops, destroy_rwq_ind_table,
        create_rwq_ind_table, destroy_wq, modify_wq, create_wq, query_rt_values, create_cq_ex,
        r#priv = "priv", priv_, query_device_ex, ibv_destroy_flow, ABI_placeholder2,
        ibv_create_flow, ABI_placeholder1, open_qp, create_qp_ex, get_srq_num, create_srq_ex,
        open_xrcd, close_xrcd, _ABI_placeholder3, sz, context,
    }
}
