//! The state machine of a queue pair: which transition needs which attributes, and which it
//! admits, by type (IBTA 10.3.1 and table 91; `ibv_modify_qp(3)`).

use crate::abi::{qp_mask as m, qp_state, qp_type};

/// What a transition needs and admits; `None` where there is no such transition.
fn rule(from: u32, to: u32, kind: u32) -> Option<(u32, u32)> {
    use qp_state::{ERR, INIT, RESET, RTR, RTS, SQD, SQE};
    // One value for each of UD, UC, RC.
    let by_type = |ud: u32, uc: u32, rc: u32| match kind {
        qp_type::UD => ud,
        qp_type::UC => uc,
        _ => rc,
    };
    let init = by_type(
        m::PKEY_INDEX | m::PORT | m::QKEY,
        m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS,
        m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS,
    );
    let path = m::ALT_PATH | m::ACCESS_FLAGS | m::PATH_MIG_STATE;
    let running = by_type(
        m::CUR_STATE | m::QKEY,
        m::CUR_STATE | path,
        m::CUR_STATE | path | m::MIN_RNR_TIMER,
    );
    Some(match (from, to) {
        (_, RESET | ERR) => (0, 0),
        (RESET, INIT) => (init, 0),
        (INIT, INIT) => (0, init),
        (INIT, RTR) => (
            by_type(
                0,
                m::AV | m::PATH_MTU | m::DEST_QPN | m::RQ_PSN,
                m::AV
                    | m::PATH_MTU
                    | m::DEST_QPN
                    | m::RQ_PSN
                    | m::MAX_DEST_RD_ATOMIC
                    | m::MIN_RNR_TIMER,
            ),
            by_type(
                m::PKEY_INDEX | m::QKEY,
                m::ALT_PATH | m::ACCESS_FLAGS | m::PKEY_INDEX,
                m::ALT_PATH | m::ACCESS_FLAGS | m::PKEY_INDEX,
            ),
        ),
        (RTR, RTS) => (
            by_type(
                m::SQ_PSN,
                m::SQ_PSN,
                m::TIMEOUT | m::RETRY_CNT | m::RNR_RETRY | m::SQ_PSN | m::MAX_QP_RD_ATOMIC,
            ),
            running | m::RATE_LIMIT,
        ),
        (RTS, RTS) => (0, running | m::RATE_LIMIT),
        (RTS, SQD) => (0, m::EN_SQD_ASYNC_NOTIFY),
        (SQD, RTS) => (0, running),
        (SQD, SQD) => (
            0,
            by_type(
                m::PKEY_INDEX | m::QKEY,
                m::AV | m::PKEY_INDEX | path,
                m::PORT
                    | m::AV
                    | m::TIMEOUT
                    | m::RETRY_CNT
                    | m::RNR_RETRY
                    | m::MAX_QP_RD_ATOMIC
                    | m::MAX_DEST_RD_ATOMIC
                    | m::PKEY_INDEX
                    | m::MIN_RNR_TIMER
                    | path,
            ),
        ),
        (SQE, RTS) if kind != qp_type::RC => {
            (0, by_type(m::CUR_STATE | m::QKEY, m::CUR_STATE | m::ACCESS_FLAGS, 0))
        }
        _ => return None,
    })
}

/// The reason why a transition is refused, or `None` where it is allowed.
pub(super) fn refused(from: u32, to: u32, kind: u32, mask: u32) -> Option<String> {
    let names = || {
        format!(
            "{} to {} of a {} queue pair",
            qp_state::name(from),
            qp_state::name(to),
            qp_type::name(kind)
        )
    };
    let Some((required, optional)) = rule(from, to, kind) else {
        return Some(format!("there is no transition from {}", names()));
    };
    let missing = required & !mask;
    if missing != 0 {
        return Some(format!("{} also needs {}", names(), list(missing)));
    }
    let extra = mask & !(required | optional | m::STATE);
    if extra != 0 {
        return Some(format!("{} does not admit {}", names(), list(extra)));
    }
    None
}

/// The names of the bits of an attribute mask.
fn list(mask: u32) -> String {
    let names: Vec<String> = (0..32)
        .map(|bit| 1u32 << bit)
        .filter(|bit| mask & bit != 0)
        .map(|bit| match m::name(bit) {
            "?" => format!("{bit:#x}"),
            name => name.to_owned(),
        })
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use qp_state::{ERR, INIT, RESET, RTR, RTS, SQD, SQE};

    /// Every pair of states outside the verbs' table is refused for every type, whatever the mask.
    #[test]
    fn no_other_transition_exists() {
        let legal = [
            (RESET, INIT),
            (INIT, INIT),
            (INIT, RTR),
            (RTR, RTS),
            (RTS, RTS),
            (RTS, SQD),
            (SQD, SQD),
            (SQD, RTS),
            (SQE, RTS),
        ];
        for kind in [qp_type::RC, qp_type::UC, qp_type::UD] {
            for from in RESET..=ERR {
                for to in RESET..=ERR {
                    let exists = to == RESET
                        || to == ERR
                        || (legal.contains(&(from, to)) && !(from == SQE && kind == qp_type::RC));
                    assert_eq!(rule(from, to, kind).is_some(), exists, "{kind}: {from} to {to}");
                }
            }
        }
    }

    /// A missing or a surplus attribute is named.
    #[test]
    fn attributes_are_named() {
        let why = refused(RTR, RTS, qp_type::RC, m::STATE | m::SQ_PSN).unwrap();
        assert!(why.contains("RETRY_CNT") && why.contains("TIMEOUT"), "{why}");
        let why = refused(RTR, RTS, qp_type::UD, m::STATE | m::SQ_PSN | m::TIMEOUT).unwrap();
        assert!(why.contains("does not admit TIMEOUT"), "{why}");
        assert!(refused(RTR, RTS, qp_type::UD, m::STATE | m::SQ_PSN).is_none());
    }
}
