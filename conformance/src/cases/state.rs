//! Creating, querying and resetting QPs.

use super::prelude::*;
use crate::attrs;
use sojourn_fabric::abi::{QpAttr, QpCap};
use sojourn_fabric::virt::ConnectOptions;

pub(super) const CASES: &[Case] = &[
    one(
        "qp.sizes",
        "Creation grants at least what was asked for, and refuses more than the device has \
         (ibv_create_qp(3))",
        sizes,
    ),
    one(
        "qp.numbers",
        "QPs that live at the same time have numbers of their own, of 24 bits, not 0 or 1 \
         (IBTA 10.2.4.2)",
        numbers,
    ),
    two("qp.query", "query_qp returns what modify set (ibv_query_qp(3))", query_a, query_b),
    one(
        "qp.bad_values",
        "A port, an MTU or a timeout that there is not is refused (ibv_modify_qp(3))",
        bad_values,
    ),
    one(
        "qp.bad_counts",
        "Counts and indices beyond their fields or the device's limits are refused \
         (IBTA 11.2.5.2)",
        bad_counts,
    ),
    two(
        "qp.second_life",
        "A QP that was in ERR works again after RESET, and its old work is gone (IBTA 10.3.1)",
        second_life_a,
        second_life_b,
    ),
    two(
        "qp.drain",
        "In SQD posted requests wait, and go on with RTS (IBTA 10.3.1.5)",
        drain_a,
        drain_b,
    ),
    two(
        "qp.drained_event",
        "SQ_DRAINED is raised once the requests that had begun have ended (IBTA 11.6.3.2)",
        drained_event_a,
        drained_event_b,
    ),
];

fn sizes(side: &mut Side) -> Verdict {
    let parts = side.parts(&Plan::rc())?;
    let wanted = QpCap {
        max_send_wr: 33,
        max_recv_wr: 47,
        max_send_sge: 3,
        max_recv_sge: 2,
        max_inline_data: 40,
    };
    for kind in [qp_type::RC, qp_type::UC, qp_type::UD] {
        let plan = Plan { qp_type: kind, cap: wanted, ..Plan::rc() };
        let got = side.qp(&parts, &plan, None)?.cap();
        let enough = got.max_send_wr >= wanted.max_send_wr
            && got.max_recv_wr >= wanted.max_recv_wr
            && got.max_send_sge >= wanted.max_send_sge
            && got.max_recv_sge >= wanted.max_recv_sge
            && got.max_inline_data >= wanted.max_inline_data;
        ensure(enough, &format!("asked for {wanted:?}, granted {got:?}"))?;
    }
    let device = side.caps().device;
    let (wrs, sges) = (device.max_qp_wr as u32, device.max_sge as u32);
    for (what, cap) in [
        ("max_send_wr", QpCap { max_send_wr: wrs.saturating_add(1), ..wanted }),
        ("max_recv_wr", QpCap { max_recv_wr: wrs.saturating_add(1), ..wanted }),
        ("max_send_sge", QpCap { max_send_sge: sges.saturating_add(1), ..wanted }),
        ("max_recv_sge", QpCap { max_recv_sge: sges.saturating_add(1), ..wanted }),
    ] {
        let what = format!("{what} beyond the device's");
        let qp = parts.pd.create_qp(&sojourn_fabric::virt::QpOptions {
            cap,
            ..sojourn_fabric::virt::QpOptions::rc(&parts.sends)
        });
        refused(&what, qp, &[libc::EINVAL, libc::ENOMEM])?;
    }
    Ok(())
}

fn numbers(side: &mut Side) -> Verdict {
    let parts = side.parts(&Plan::rc())?;
    let mut qps = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..32 {
        let qp = side.qp(&parts, &Plan::rc(), None)?;
        let number = qp.qp_num();
        ensure((2..=abi::MASK_24).contains(&number), &format!("QPN {number:#x}"))?;
        ensure(seen.insert(number), &format!("two QPs have the number {number:#x}"))?;
        qps.push(qp);
    }
    Ok(())
}

fn query_a(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let rig = side.wire(&plan)?;
    let everything = qp_mask::STATE
        | qp_mask::ACCESS_FLAGS
        | qp_mask::PORT
        | qp_mask::AV
        | qp_mask::PATH_MTU
        | qp_mask::TIMEOUT
        | qp_mask::RETRY_CNT
        | qp_mask::RNR_RETRY
        | qp_mask::RQ_PSN
        | qp_mask::MAX_QP_RD_ATOMIC
        | qp_mask::MIN_RNR_TIMER
        | qp_mask::SQ_PSN
        | qp_mask::MAX_DEST_RD_ATOMIC
        | qp_mask::CAP
        | qp_mask::DEST_QPN;
    let attr = rig.qp.device().query(everything)?;
    let options = &plan.connect;
    same("qp_state", attr.qp_state, qp_state::RTS)?;
    same("dest_qp_num", attr.dest_qp_num, rig.peer.qpn)?;
    same("rq_psn", attr.rq_psn, rig.peer.psn)?;
    same("sq_psn", attr.sq_psn, rig.psn)?;
    same("path_mtu", attr.path_mtu, rig.peer.mtu)?;
    same("qp_access_flags", attr.qp_access_flags & crate::rig::ALL_ACCESS, options.access)?;
    same("port_num", attr.port_num, 1)?;
    same("timeout", attr.timeout, options.timeout)?;
    same("retry_cnt", attr.retry_cnt, options.retry_cnt)?;
    same("rnr_retry", attr.rnr_retry, options.rnr_retry)?;
    same("min_rnr_timer", attr.min_rnr_timer, options.min_rnr_timer)?;
    same("max_rd_atomic", attr.max_rd_atomic, options.max_rd_atomic)?;
    same("max_dest_rd_atomic", attr.max_dest_rd_atomic, options.max_rd_atomic)?;
    let (address, wanted) = (attr.ah_attr, rig.peer.address);
    same("is_global", address.is_global, wanted.is_global)?;
    if wanted.is_global == 0 {
        same("dlid", address.dlid, wanted.dlid)?;
    } else {
        same("dgid", address.grh.dgid, wanted.grh.dgid)?;
    }
    ensure(attr.cap.max_send_wr >= plan.cap.max_send_wr, "cap.max_send_wr is too small")
}

fn query_b(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

/// What is wrong, and how to make it so.
type Spoiler<'a> = (&'a str, fn(&mut QpAttr));

/// Tries one attribute at a time with a value that must be refused, in each step to RTS.
fn refuse_values(side: &mut Side, steps: [&[Spoiler<'_>]; 3]) -> Verdict {
    let plan = Plan::rc();
    let parts = side.parts(&plan)?;
    let qp = side.qp(&parts, &plan, None)?;
    let caps = side.caps();
    let towards = attrs::Towards {
        address: caps.address_vector(caps.port.lid, caps.gid, caps.global()),
        qpn: qp.qp_num(),
        psn: 1,
        mtu: caps.port.active_mtu,
    };
    let options = ConnectOptions::default();
    let good = [
        attrs::init(qp_type::RC, &options),
        attrs::rtr(qp_type::RC, &options, &towards),
        attrs::rts(qp_type::RC, &options, 1),
    ];
    for ((attr, mask), bad) in good.into_iter().zip(steps) {
        for (what, spoil) in bad {
            let mut spoilt = attr;
            spoil(&mut spoilt);
            refused(what, qp.device().modify(&spoilt, mask), &[libc::EINVAL])?;
        }
        qp.device().modify(&attr, mask)?;
    }
    Ok(())
}

fn bad_values(side: &mut Side) -> Verdict {
    refuse_values(
        side,
        [
            &[("port 0", |attr| attr.port_num = 0), ("port 200", |attr| attr.port_num = 200)],
            &[("MTU code 9", |attr| attr.path_mtu = 9)],
            &[("timeout 32", |attr| attr.timeout = 32)],
        ],
    )
}

fn bad_counts(side: &mut Side) -> Verdict {
    side.needs(Feature::ChecksAttributeValues)?;
    refuse_values(
        side,
        [
            &[("partition key index 60000", |attr| attr.pkey_index = 60_000)],
            &[
                ("MTU code 0", |attr| attr.path_mtu = 0),
                ("min_rnr_timer 32", |attr| attr.min_rnr_timer = 32),
                ("max_dest_rd_atomic 255", |attr| attr.max_dest_rd_atomic = 255),
                ("an AV of port 200", |attr| attr.ah_attr.port_num = 200),
            ],
            &[
                ("retry_cnt 8", |attr| attr.retry_cnt = 8),
                ("rnr_retry 8", |attr| attr.rnr_retry = 8),
                ("max_rd_atomic 255", |attr| attr.max_rd_atomic = 255),
            ],
        ],
    )
}

/// Takes both QPs through ERR and RESET to RTS again.
fn reconnect(side: &mut Side, rig: &Rig, plan: &Plan) -> Verdict {
    rig.qp.set_state(qp_state::RESET)?;
    side.meet()?;
    let (attr, mask) = attrs::init(plan.qp_type, &plan.connect);
    rig.qp.device().modify(&attr, mask)?;
    rig.bring_up(plan)?;
    side.meet()
}

fn second_life_a(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let rig = side.wire(&plan)?;
    let bad = Remote { addr: rig.peer.memory.addr, rkey: rig.peer.memory.rkey ^ 0x5a };
    rig.post(&SendRequest::new(1, Op::Write(bad), &[rig.sge(0..8)]))?;
    rig.send_ends(side, 1, &[wc_status::REM_ACCESS_ERR])?;
    rig.comes_to(side, qp_state::ERR)?;
    side.meet()?;
    reconnect(side, &rig, &plan)?;
    side.nothing(&rig.sends, Duration::ZERO)?;
    rig.mem.write(0, &pattern(3, 100));
    rig.post(&SendRequest::new(2, Op::Send, &[rig.sge(0..100)]))?;
    rig.sent(side, 2, wc_opcode::SEND)?;
    Ok(())
}

fn second_life_b(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let rig = side.wire(&plan)?;
    side.meet()?;
    rig.comes_to(side, qp_state::ERR)?;
    reconnect(side, &rig, &plan)?;
    rig.post_recv(9, 0..100)?;
    rig.received(side, 9, wc_opcode::RECV, 100)?;
    holds(&rig.mem, 0, &pattern(3, 100))
}

fn drain_a(side: &mut Side) -> Verdict {
    side.needs(Feature::GoesOnAfterSqd)?;
    let rig = side.wire(&Plan::rc())?;
    rig.qp.set_state(qp_state::SQD)?;
    for i in 0..4 {
        rig.post(&SendRequest::new(i, Op::Send, &[rig.sge(0..8)]))?;
    }
    side.nothing(&rig.sends, QUIET)?;
    rig.qp.set_state(qp_state::RTS)?;
    for i in 0..4 {
        rig.sent(side, i, wc_opcode::SEND)?;
    }
    Ok(())
}

fn drain_b(side: &mut Side) -> Verdict {
    side.needs(Feature::GoesOnAfterSqd)?;
    let rig = side.wire(&Plan::rc())?;
    for i in 0..4 {
        rig.post_recv(i, 0..8)?;
    }
    for i in 0..4 {
        rig.received(side, i, wc_opcode::RECV, 8)?;
    }
    Ok(())
}

fn drained_event_a(side: &mut Side) -> Verdict {
    side.needs(Feature::SqDrained)?;
    side.needs(Feature::GoesOnAfterSqd)?;
    let rig = side.wire(&Plan::rc())?;
    for i in 0..8 {
        rig.post(&SendRequest::new(i, Op::Write(rig.remote(0)), &[rig.sge(0..1024)]))?;
    }
    let attr = QpAttr { qp_state: qp_state::SQD, en_sqd_async_notify: 1, ..QpAttr::default() };
    rig.qp.device().modify(&attr, qp_mask::STATE | qp_mask::EN_SQD_ASYNC_NOTIFY)?;
    let event = side.async_event(EventElement::Qp(rig.qp.qp_num()))?;
    same("the event", event_type::name(event.event_type), "SQ_DRAINED")?;
    rig.qp.set_state(qp_state::RTS)?;
    for i in 0..8 {
        rig.sent(side, i, wc_opcode::RDMA_WRITE)?;
    }
    Ok(())
}

fn drained_event_b(side: &mut Side) -> Verdict {
    side.needs(Feature::SqDrained)?;
    side.needs(Feature::GoesOnAfterSqd)?;
    side.wire(&Plan::rc())?;
    Ok(())
}
