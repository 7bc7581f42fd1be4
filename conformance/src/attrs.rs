//! The attributes of the way from RESET to RTS (ibv_modify_qp(3), IBTA 10.3.1).

use sojourn_fabric::abi::{self, AhAttr, QpAttr, access, qp_mask, qp_state, qp_type};
use sojourn_fabric::virt::ConnectOptions;

use crate::caps::PORT;

/// Attributes and the mask that says which of them count.
pub(crate) type Step = (QpAttr, u32);

/// What a QP is connected to.
#[derive(Clone, Copy)]
pub(crate) struct Towards {
    pub(crate) address: AhAttr,
    pub(crate) qpn: u32,
    pub(crate) psn: u32,
    pub(crate) mtu: u32,
}

/// The access flags that a QP of this type can have: UC has neither READ nor atomics.
pub(crate) fn allowed(kind: u32, flags: u32) -> u32 {
    if kind == qp_type::UC { flags & (access::LOCAL_WRITE | access::REMOTE_WRITE) } else { flags }
}

/// RESET to INIT.
pub(crate) fn init(kind: u32, options: &ConnectOptions) -> Step {
    let mut attr = QpAttr { qp_state: qp_state::INIT, port_num: PORT, ..QpAttr::default() };
    let mask = qp_mask::STATE | qp_mask::PKEY_INDEX | qp_mask::PORT;
    if kind == qp_type::UD {
        attr.qkey = options.qkey;
        return (attr, mask | qp_mask::QKEY);
    }
    attr.qp_access_flags = allowed(kind, options.access);
    (attr, mask | qp_mask::ACCESS_FLAGS)
}

/// INIT to RTR.
pub(crate) fn rtr(kind: u32, options: &ConnectOptions, towards: &Towards) -> Step {
    let mut attr = QpAttr { qp_state: qp_state::RTR, ..QpAttr::default() };
    let mut mask = qp_mask::STATE;
    if kind == qp_type::UD {
        return (attr, mask);
    }
    attr.ah_attr = towards.address;
    attr.path_mtu = towards.mtu;
    attr.dest_qp_num = towards.qpn;
    attr.rq_psn = towards.psn;
    mask |= qp_mask::AV | qp_mask::PATH_MTU | qp_mask::DEST_QPN | qp_mask::RQ_PSN;
    if kind == qp_type::RC {
        attr.max_dest_rd_atomic = options.max_rd_atomic;
        attr.min_rnr_timer = options.min_rnr_timer;
        mask |= qp_mask::MAX_DEST_RD_ATOMIC | qp_mask::MIN_RNR_TIMER;
    }
    (attr, mask)
}

/// RTR to RTS.
pub(crate) fn rts(kind: u32, options: &ConnectOptions, psn: u32) -> Step {
    let mut attr = QpAttr { qp_state: qp_state::RTS, sq_psn: psn, ..QpAttr::default() };
    let mut mask = qp_mask::STATE | qp_mask::SQ_PSN;
    if kind == qp_type::RC {
        attr.timeout = options.timeout;
        attr.retry_cnt = options.retry_cnt;
        attr.rnr_retry = options.rnr_retry;
        attr.max_rd_atomic = options.max_rd_atomic;
        mask |=
            qp_mask::TIMEOUT | qp_mask::RETRY_CNT | qp_mask::RNR_RETRY | qp_mask::MAX_QP_RD_ATOMIC;
    }
    (attr, mask)
}

/// `RC`, `UC` or `UD`.
pub(crate) fn kind_name(kind: u32) -> &'static str {
    abi::qp_type::name(kind)
}
