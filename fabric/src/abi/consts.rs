//! The enumerations of `verbs.h` as modules of integer constants.

macro_rules! constants {
    ($(#[$doc:meta])* $module:ident : $ty:ty { $($(#[$d:meta])* $name:ident = $value:expr),* $(,)? }) => {
        $(#[$doc])*
        pub mod $module {
            $($(#[$d])* #[allow(missing_docs, reason = "the names are those of verbs.h")]
            pub const $name: $ty = $value;)*

            /// The name of a value as `verbs.h` has it, without its prefix; `"?"` where none fits.
            #[must_use]
            pub fn name(value: $ty) -> &'static str {
                $(if value == $name { return stringify!($name); })*
                "?"
            }
        }
    };
}

constants! {
    /// `enum ibv_wr_opcode`.
    wr_opcode: u32 {
        RDMA_WRITE = 0, RDMA_WRITE_WITH_IMM = 1, SEND = 2, SEND_WITH_IMM = 3, RDMA_READ = 4,
        ATOMIC_CMP_AND_SWP = 5, ATOMIC_FETCH_AND_ADD = 6, LOCAL_INV = 7, BIND_MW = 8,
        SEND_WITH_INV = 9, TSO = 10, DRIVER1 = 11, ATOMIC_WRITE = 15,
    }
}
constants! {
    /// `enum ibv_send_flags`.
    send_flags: u32 { FENCE = 1, SIGNALED = 2, SOLICITED = 4, INLINE = 8, IP_CSUM = 16 }
}
constants! {
    /// `enum ibv_wc_status`.
    wc_status: u32 {
        SUCCESS = 0, LOC_LEN_ERR = 1, LOC_QP_OP_ERR = 2, LOC_EEC_OP_ERR = 3, LOC_PROT_ERR = 4,
        WR_FLUSH_ERR = 5, MW_BIND_ERR = 6, BAD_RESP_ERR = 7, LOC_ACCESS_ERR = 8,
        REM_INV_REQ_ERR = 9, REM_ACCESS_ERR = 10, REM_OP_ERR = 11, RETRY_EXC_ERR = 12,
        RNR_RETRY_EXC_ERR = 13, LOC_RDD_VIOL_ERR = 14, REM_INV_RD_REQ_ERR = 15,
        REM_ABORT_ERR = 16, INV_EECN_ERR = 17, INV_EEC_STATE_ERR = 18, FATAL_ERR = 19,
        RESP_TIMEOUT_ERR = 20, GENERAL_ERR = 21, TM_ERR = 22, TM_RNDV_INCOMPLETE = 23,
    }
}
constants! {
    /// `enum ibv_wc_opcode`. A receive has the bit [`wc_opcode::RECV`] set.
    wc_opcode: u32 {
        SEND = 0, RDMA_WRITE = 1, RDMA_READ = 2, COMP_SWAP = 3, FETCH_ADD = 4, BIND_MW = 5,
        LOCAL_INV = 6, TSO = 7, ATOMIC_WRITE = 9, RECV = 128, RECV_RDMA_WITH_IMM = 129,
    }
}
constants! {
    /// `enum ibv_wc_flags`.
    wc_flags: u32 { GRH = 1, WITH_IMM = 2, IP_CSUM_OK = 4, WITH_INV = 8 }
}
constants! {
    /// `enum ibv_access_flags`.
    access: u32 {
        LOCAL_WRITE = 1, REMOTE_WRITE = 2, REMOTE_READ = 4, REMOTE_ATOMIC = 8, MW_BIND = 16,
        ZERO_BASED = 32, ON_DEMAND = 64, HUGETLB = 128, RELAXED_ORDERING = 1 << 20,
    }
}
constants! {
    /// `enum ibv_qp_type`.
    qp_type: u32 { RC = 2, UC = 3, UD = 4, RAW_PACKET = 8, XRC_SEND = 9, XRC_RECV = 10, DRIVER = 255 }
}
constants! {
    /// `enum ibv_qp_state`.
    qp_state: u32 { RESET = 0, INIT = 1, RTR = 2, RTS = 3, SQD = 4, SQE = 5, ERR = 6, UNKNOWN = 7 }
}
constants! {
    /// `enum ibv_qp_attr_mask`.
    qp_mask: u32 {
        STATE = 1, CUR_STATE = 1 << 1, EN_SQD_ASYNC_NOTIFY = 1 << 2, ACCESS_FLAGS = 1 << 3,
        PKEY_INDEX = 1 << 4, PORT = 1 << 5, QKEY = 1 << 6, AV = 1 << 7, PATH_MTU = 1 << 8,
        TIMEOUT = 1 << 9, RETRY_CNT = 1 << 10, RNR_RETRY = 1 << 11, RQ_PSN = 1 << 12,
        MAX_QP_RD_ATOMIC = 1 << 13, ALT_PATH = 1 << 14, MIN_RNR_TIMER = 1 << 15,
        SQ_PSN = 1 << 16, MAX_DEST_RD_ATOMIC = 1 << 17, PATH_MIG_STATE = 1 << 18, CAP = 1 << 19,
        DEST_QPN = 1 << 20, RATE_LIMIT = 1 << 25,
    }
}
constants! {
    /// `enum ibv_mig_state`.
    mig_state: u32 { MIGRATED = 0, REARM = 1, ARMED = 2 }
}
constants! {
    /// `enum ibv_mtu`.
    mtu: u32 { MTU_256 = 1, MTU_512 = 2, MTU_1024 = 3, MTU_2048 = 4, MTU_4096 = 5 }
}
constants! {
    /// `enum ibv_port_state`.
    port_state: u32 { NOP = 0, DOWN = 1, INIT = 2, ARMED = 3, ACTIVE = 4, ACTIVE_DEFER = 5 }
}
constants! {
    /// `link_layer` of a port.
    link_layer: u8 { UNSPECIFIED = 0, INFINIBAND = 1, ETHERNET = 2 }
}
constants! {
    /// `flags` of a port.
    port_flags: u8 { GRH_REQUIRED = 1 }
}
constants! {
    /// `enum ibv_atomic_cap`.
    atomic_cap: u32 { NONE = 0, HCA = 1, GLOB = 2 }
}
constants! {
    /// `enum ibv_device_cap_flags`, as far as devices here set or read them.
    device_cap: u32 {
        RESIZE_MAX_WR = 1, CURR_QP_STATE_MOD = 1 << 7, SYS_IMAGE_GUID = 1 << 11,
        RC_RNR_NAK_GEN = 1 << 12, SRQ_RESIZE = 1 << 13, N_NOTIFY_CQ = 1 << 14,
        MEM_WINDOW = 1 << 17, XRC = 1 << 20, MEM_MGT_EXTENSIONS = 1 << 21,
    }
}
constants! {
    /// `enum ibv_gid_type`.
    gid_type: u32 { IB = 0, ROCE_V1 = 1, ROCE_V2 = 2 }
}
constants! {
    /// `enum ibv_create_cq_wc_flags`.
    create_cq_wc_flags: u64 {
        BYTE_LEN = 1, IMM = 1 << 1, QP_NUM = 1 << 2, SRC_QP = 1 << 3, SLID = 1 << 4, SL = 1 << 5,
        DLID_PATH_BITS = 1 << 6, COMPLETION_TIMESTAMP = 1 << 7, CVLAN = 1 << 8,
        FLOW_TAG = 1 << 9, TM_INFO = 1 << 10, COMPLETION_TIMESTAMP_WALLCLOCK = 1 << 11,
    }
}
constants! {
    /// `enum ibv_cq_init_attr_mask`.
    cq_init_attr_mask: u32 { FLAGS = 1, PD = 1 << 1 }
}
constants! {
    /// `enum ibv_create_cq_attr_flags`.
    create_cq_flags: u32 { SINGLE_THREADED = 1, IGNORE_OVERRUN = 1 << 1 }
}
constants! {
    /// `enum ibv_srq_attr_mask`.
    srq_mask: u32 { MAX_WR = 1, LIMIT = 2 }
}
constants! {
    /// `enum ibv_event_type`.
    event_type: u32 {
        CQ_ERR = 0, QP_FATAL = 1, QP_REQ_ERR = 2, QP_ACCESS_ERR = 3, COMM_EST = 4,
        SQ_DRAINED = 5, PATH_MIG = 6, PATH_MIG_ERR = 7, DEVICE_FATAL = 8, PORT_ACTIVE = 9,
        PORT_ERR = 10, LID_CHANGE = 11, PKEY_CHANGE = 12, SM_CHANGE = 13, SRQ_ERR = 14,
        SRQ_LIMIT_REACHED = 15, QP_LAST_WQE_REACHED = 16, CLIENT_REREGISTER = 17,
        GID_CHANGE = 18, WQ_FATAL = 19,
    }
}

/// Bytes of a path MTU (`enum ibv_mtu`), or `None` where the value is none of the five.
#[must_use]
pub fn mtu_bytes(mtu: u32) -> Option<u32> {
    (mtu::MTU_256..=mtu::MTU_4096).contains(&mtu).then(|| 128 << mtu)
}

/// The GRH that precedes the payload in the buffer of a UD receive, in bytes (IBTA 11.4.1.2).
pub const GRH_BYTES: usize = 40;
/// Packet sequence numbers and queue pair numbers have 24 bits (IBTA 9.2).
pub const MASK_24: u32 = 0x00ff_ffff;
