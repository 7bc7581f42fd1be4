//! What posting takes, and what it refuses at once.

use super::prelude::*;
use crate::attrs;
use sojourn_fabric::abi::QpCap;
use sojourn_fabric::virt::Datagram;

pub(super) const CASES: &[Case] = &[
    one(
        "post.send_state",
        "Send requests are refused in RESET, INIT and RTR (IBTA 10.3.1, ibv_post_send(3))",
        send_state,
    ),
    one(
        "post.recv_in_reset",
        "Receives are refused in RESET (IBTA C10-97.2.1, ibv_post_recv(3))",
        recv_in_reset,
    ),
    two(
        "post.send_full",
        "A full send queue refuses with ENOMEM, names the first request that it did not take, \
         and loses none that it took (ibv_post_send(3))",
        send_full_a,
        send_full_b,
    ),
    one(
        "post.recv_full",
        "A full receive queue refuses with ENOMEM, names the first receive that it did not take, \
         and loses none that it took (ibv_post_recv(3))",
        recv_full,
    ),
    two(
        "post.list",
        "The requests of a list before a bad one are posted, and those after it are not \
         (ibv_post_send(3), bad_wr)",
        list_a,
        list_b,
    ),
    two(
        "post.sges",
        "More elements than the QP was created with are refused (ibv_post_send(3))",
        sges_a,
        idle,
    ),
    two(
        "post.inline",
        "More inline bytes than the QP was created with are refused (ibv_post_send(3))",
        inline_a,
        idle,
    ),
    two(
        "post.opcode_uc",
        "UC has no READ and no atomics (ibv_post_send(3), table of opcodes)",
        opcode_uc_a,
        opcode_uc_b,
    ),
    two(
        "post.opcode_ud",
        "UD has SEND alone (ibv_post_send(3), table of opcodes)",
        opcode_ud_a,
        opcode_ud_b,
    ),
];

fn idle(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

fn send_state(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let parts = side.parts(&plan)?;
    let qp = side.qp(&parts, &plan, None)?;
    let sge = [parts.sge(0..8)];
    let send = SendRequest::new(1, Op::Send, &sge);
    let caps = side.caps();
    let towards = attrs::Towards {
        address: caps.address_vector(caps.port.lid, caps.gid, caps.global()),
        qpn: qp.qp_num(),
        psn: 1,
        mtu: caps.port.active_mtu,
    };
    refused("a SEND in RESET", qp.post_send(&send), &[libc::EINVAL])?;
    let (attr, mask) = attrs::init(qp_type::RC, &plan.connect);
    qp.device().modify(&attr, mask)?;
    refused("a SEND in INIT", qp.post_send(&send), &[libc::EINVAL])?;
    let (attr, mask) = attrs::rtr(qp_type::RC, &plan.connect, &towards);
    qp.device().modify(&attr, mask)?;
    refused("a SEND in RTR", qp.post_send(&send), &[libc::EINVAL])?;
    side.nothing(&parts.sends, Duration::ZERO)
}

fn recv_in_reset(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let parts = side.parts(&plan)?;
    let qp = side.qp(&parts, &plan, None)?;
    refused("a receive in RESET", qp.post_recv(1, &[parts.sge(0..8)]), &[libc::EINVAL])
}

/// Of the queue that is filled. What is granted may be more, but not without bound.
const SHALLOW: u32 = 16;
/// What the other queues take.
const DEEP: u32 = 1024;

fn shallow() -> Plan {
    let plan = Plan::rc();
    let cap = QpCap { max_send_wr: SHALLOW, max_recv_wr: DEEP, ..plan.cap };
    Plan { cap, cqe: 2 * DEEP, ..plan }
}

fn send_full_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&shallow())?;
    // The peer has no receive yet, so nothing leaves the queue.
    let sge = [rig.sge(0..8)];
    let requests: Vec<_> =
        (0..u64::from(DEEP)).map(|i| SendRequest::new(i, Op::Send, &sge)).collect();
    let (taken, error) = match rig.qp.post_sends(&requests) {
        Err((taken, error)) => (taken, error),
        Ok(()) => return Err(Stop::failed(format!("{DEEP} requests fit {SHALLOW} slots"))),
    };
    same("the errno", error.errno(), libc::ENOMEM)?;
    ensure(taken >= SHALLOW as usize, &format!("{taken} taken, {SHALLOW} granted"))?;
    side.tell(&[taken as u64])?;
    for (i, wc) in side.completions(&rig.sends, taken)?.iter().enumerate() {
        success(wc, i as u64, wc_opcode::SEND)?;
    }
    // There is room again, for as many.
    side.meet()?;
    rig.post(&SendRequest::new(5000, Op::Send, &sge))?;
    rig.sent(side, 5000, wc_opcode::SEND)?;
    side.nothing(&rig.sends, Duration::ZERO)
}

fn send_full_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&shallow())?;
    let [taken] = side.hear()?;
    ensure(taken <= u64::from(DEEP), "more requests than there were")?;
    for i in 0..taken {
        rig.post_recv(i, 0..8)?;
    }
    for i in 0..taken {
        rig.received(side, i, wc_opcode::RECV, 8)?;
    }
    side.nothing(&rig.recvs, QUIET)?;
    side.meet()?;
    rig.post_recv(5000, 0..8)?;
    rig.received(side, 5000, wc_opcode::RECV, 8)?;
    Ok(())
}

fn recv_full(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let cap = QpCap { max_recv_wr: SHALLOW, ..plan.cap };
    let plan = Plan { cap, cqe: 2 * DEEP, ..plan };
    let parts = side.parts(&plan)?;
    let qp = side.qp(&parts, &plan, None)?;
    let (attr, mask) = attrs::init(qp_type::RC, &plan.connect);
    qp.device().modify(&attr, mask)?;
    let sge = [parts.sge(0..8)];
    let receives: Vec<_> = (0..u64::from(DEEP)).map(|i| (i, &sge[..])).collect();
    let (taken, error) = match qp.post_recvs(&receives) {
        Err((taken, error)) => (taken, error),
        Ok(()) => return Err(Stop::failed(format!("{DEEP} receives fit {SHALLOW} slots"))),
    };
    same("the errno", error.errno(), libc::ENOMEM)?;
    ensure(taken >= SHALLOW as usize, &format!("{taken} taken, {SHALLOW} granted"))?;
    qp.set_state(qp_state::ERR)?;
    for (i, wc) in side.completions(&parts.recvs, taken)?.iter().enumerate() {
        flushed(wc, i as u64)?;
    }
    side.nothing(&parts.recvs, Duration::ZERO)
}

fn list_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    let few = [rig.sge(0..8)];
    let many = vec![rig.sge(0..8); rig.qp.cap().max_send_sge as usize + 1];
    let mut requests: Vec<_> = (0..8).map(|i| SendRequest::new(i, Op::Send, &few)).collect();
    requests[5] = SendRequest::new(5, Op::Send, &many);
    let taken = match rig.qp.post_sends(&requests) {
        Err((taken, _)) => taken,
        Ok(()) => return Err(Stop::failed("a list with a bad request is taken")),
    };
    same("the number of requests before bad_wr", taken, 5)?;
    for i in 0..5 {
        rig.sent(side, i, wc_opcode::SEND)?;
    }
    side.nothing(&rig.sends, QUIET)
}

fn list_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let few = [rig.sge(0..8)];
    let many = vec![rig.sge(0..8); rig.qp.cap().max_recv_sge as usize + 1];
    let mut receives: Vec<(u64, &[Sge])> = (0..8).map(|i| (i, &few[..])).collect();
    receives[5] = (5, &many);
    match rig.qp.post_recvs(&receives) {
        Err((taken, _)) => same("the number of receives before bad_wr", taken, 5)?,
        Ok(()) => return Err(Stop::failed("a list with a bad receive is taken")),
    }
    side.meet()?;
    for i in 0..5 {
        rig.received(side, i, wc_opcode::RECV, 8)?;
    }
    Ok(())
}

fn sges_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let cap = rig.qp.cap();
    let sends = vec![rig.sge(0..8); cap.max_send_sge as usize + 1];
    let recvs = vec![rig.sge(0..8); cap.max_recv_sge as usize + 1];
    let errnos = [libc::EINVAL, libc::ENOMEM];
    for op in [Op::Send, Op::Write(rig.remote(0)), Op::Read(rig.remote(0))] {
        let posted = rig.qp.post_send(&SendRequest::new(1, op, &sends));
        refused(&format!("{op:?} with too many elements"), posted, &errnos)?;
    }
    refused("a receive with too many elements", rig.qp.post_recv(1, &recvs), &errnos)?;
    // The QP is none the worse for it.
    rig.post(&SendRequest::new(2, Op::Write(rig.remote(0)), &sends[1..]))?;
    rig.sent(side, 2, wc_opcode::RDMA_WRITE)?;
    Ok(())
}

fn inline_a(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let cap = QpCap { max_inline_data: 32, ..plan.cap };
    let rig = side.wire(&Plan { cap, ..plan })?;
    let most = rig.qp.cap().max_inline_data as usize;
    ensure(most >= 32, &format!("32 inline bytes asked for, {most} granted"))?;
    let bytes = vec![1; most + 1];
    let write = Op::Write(rig.remote(0));
    let posted = rig.qp.post_send(&SendRequest::inline(1, write, &bytes));
    refused(&format!("{} inline bytes", most + 1), posted, &[libc::EINVAL, libc::ENOMEM])?;
    rig.post(&SendRequest::inline(2, write, &bytes[1..]))?;
    rig.sent(side, 2, wc_opcode::RDMA_WRITE)?;
    Ok(())
}

fn opcode_uc_a(side: &mut Side) -> Verdict {
    side.needs(Feature::RefusesOpcodes)?;
    let rig = side.wire(&Plan::uc())?;
    let word = [rig.sge(0..8)];
    for op in [
        Op::Read(rig.remote(0)),
        Op::FetchAdd(rig.remote(0), 1),
        Op::CompareSwap(rig.remote(0), 0, 1),
    ] {
        let posted = rig.qp.post_send(&SendRequest::new(1, op, &word));
        refused(&format!("{op:?} on UC"), posted, &[libc::EINVAL, libc::EOPNOTSUPP])?;
    }
    Ok(())
}

fn opcode_uc_b(side: &mut Side) -> Verdict {
    side.needs(Feature::RefusesOpcodes)?;
    side.wire(&Plan::uc())?;
    Ok(())
}

fn opcode_ud_a(side: &mut Side) -> Verdict {
    side.needs(Feature::RefusesOpcodes)?;
    let rig = side.wire(&Plan::ud())?;
    let word = [rig.sge(0..8)];
    let to: Datagram<'_> = rig.to()?;
    for op in [
        Op::Write(rig.remote(0)),
        Op::WriteImm(rig.remote(0), 1),
        Op::Read(rig.remote(0)),
        Op::FetchAdd(rig.remote(0), 1),
    ] {
        let posted = rig.qp.post_send(&SendRequest::new(1, op, &word).to(to));
        refused(&format!("{op:?} on UD"), posted, &[libc::EINVAL, libc::EOPNOTSUPP])?;
    }
    Ok(())
}

fn opcode_ud_b(side: &mut Side) -> Verdict {
    side.needs(Feature::RefusesOpcodes)?;
    side.wire(&Plan::ud())?;
    Ok(())
}
