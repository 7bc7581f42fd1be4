//! Shared receive queues.

use super::prelude::*;
use sojourn_fabric::abi::SrqAttr;
use sojourn_fabric::virt::SharedReceiveQueue;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) const CASES: &[Case] = &[
    two(
        "srq.shared",
        "Receives of an SRQ serve whichever QP needs one, in the order of posting \
         (ibv_post_srq_recv(3))",
        |side| sends_a(side, 3, 24),
        shared_b,
    ),
    two(
        "srq.large",
        "Messages of many packets and READs pass an SRQ as they pass a receive queue \
         (IBTA 10.2.9)",
        large_a,
        large_b,
    ),
    two(
        "srq.limit",
        "SRQ_LIMIT_REACHED comes once, when fewer receives than the limit are left, and disarms \
         the limit (ibv_modify_srq(3))",
        |side| sends_a(side, 1, 7),
        limit_b,
    ),
    two(
        "srq.late_receive",
        "A SEND that finds the SRQ empty waits, and succeeds when a receive is posted \
         (IBTA 9.7.5.2.8)",
        |side| sends_a(side, 1, 2),
        late_receive_b,
    ),
    two(
        "srq.behind_late_receive",
        "A READ of many packets behind a SEND that finds the SRQ empty brings all of its bytes \
         (IBTA 9.7.5.2.8)",
        behind_a,
        behind_b,
    ),
    two(
        "srq.last_wqe",
        "A QP on an SRQ that goes to ERR raises LAST_WQE_REACHED (IBTA 11.6.3.2)",
        |side| sends_a(side, 1, 1),
        last_wqe_b,
    ),
    two(
        "srq.survives",
        "Receives of an SRQ outlive a QP that goes to ERR, and one that is destroyed \
         (IBTA 10.2.9.5)",
        survives_a,
        survives_b,
    ),
    one(
        "srq.full",
        "A full SRQ refuses with ENOMEM, and too many elements with EINVAL \
         (ibv_post_srq_recv(3))",
        full,
    ),
    one(
        "srq.query",
        "query_srq tells sizes and limit, and a limit above the size is refused \
         (ibv_query_srq(3), ibv_modify_srq(3))",
        query,
    ),
    one(
        "srq.no_own_receives",
        "A QP on an SRQ takes no receives of its own (ibv_post_recv(3))",
        no_own_receives,
    ),
];

/// Bytes of a message of these cases.
const BYTES: usize = 100;

/// The SRQ of a case, under a name of its own: an event of an earlier case's must not be taken
/// for one of this one's.
fn create(parts: &Parts) -> Verdict<(SharedReceiveQueue, EventElement)> {
    static NAMES: AtomicU64 = AtomicU64::new(0x5390_0000);
    let name = NAMES.fetch_add(1, Ordering::Relaxed);
    let srq = parts.pd.create_srq(SrqAttr { max_wr: 64, max_sge: 2, srq_limit: 0 }, name)?;
    Ok((srq, EventElement::Srq(name)))
}

/// Side A: sends `n` messages over `qps` QPs in turn, each when the other side asks for it.
fn sends_a(side: &mut Side, qps: usize, n: u64) -> Verdict {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let mut rigs = Vec::new();
    for _ in 0..qps {
        rigs.push(side.join(&parts, &plan, None)?);
    }
    let rigs = side.keep(rigs);
    for i in 0..n {
        let [] = side.hear()?;
        parts.mem.write(0, &pattern(i, BYTES));
        let rig = &rigs[i as usize % qps];
        rig.post(&SendRequest::new(i, Op::Send, &[parts.sge(0..BYTES)]))?;
        success(&side.completion(&parts.sends)?, i, wc_opcode::SEND)?;
    }
    Ok(())
}

/// Side B: QPs over one SRQ.
struct Shared {
    parts: Arc<Parts>,
    srq: SharedReceiveQueue,
    element: EventElement,
    rigs: Arc<Vec<Rig>>,
}

fn over_srq(side: &mut Side, qps: usize) -> Verdict<Shared> {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let (srq, element) = create(&parts)?;
    let mut rigs = Vec::new();
    for _ in 0..qps {
        rigs.push(side.join(&parts, &plan, Some(&srq))?);
    }
    let rigs = side.keep(rigs);
    Ok(Shared { parts, srq, element, rigs })
}

impl Shared {
    fn post(&self, wr_id: u64) -> Verdict {
        let at = wr_id as usize % 64 * 128;
        Ok(self
            .srq
            .post_recv(wr_id, &[self.parts.sge(at..at + 60), self.parts.sge(at + 60..at + 128)])?)
    }

    /// Asks for message `i`, which must come into receive `wr_id` by the QP of this index.
    fn take(&self, side: &mut Side, i: u64, wr_id: u64, index: usize) -> Verdict {
        side.tell(&[])?;
        self.takes(side, i, wr_id, index)
    }

    fn takes(&self, side: &mut Side, i: u64, wr_id: u64, index: usize) -> Verdict {
        let wc = side.completion(&self.parts.recvs)?;
        success(&wc, wr_id, wc_opcode::RECV)?;
        same("byte_len", wc.byte_len as usize, BYTES)?;
        same("qp_num", wc.qp_num, self.rigs[index].qp.qp_num())?;
        holds(&self.parts.mem, wr_id as usize % 64 * 128, &pattern(i, BYTES))
    }
}

fn shared_b(side: &mut Side) -> Verdict {
    let shared = over_srq(side, 3)?;
    for wr_id in 0..10 {
        shared.post(wr_id)?;
    }
    for i in 0..24 {
        shared.take(side, i, i, i as usize % 3)?;
        shared.post(10 + i)?;
    }
    Ok(())
}

/// Bytes of the large message.
const LARGE: usize = 50_000;

fn large_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let rig = side.wire(&Plan::rc().memory(2 * LARGE))?;
    side.meet()?;
    rig.mem.write(0, &pattern(4, LARGE));
    rig.post(&SendRequest::new(1, Op::Send, &[rig.sge(0..LARGE)]))?;
    rig.sent(side, 1, wc_opcode::SEND)?;
    rig.post(&SendRequest::new(2, Op::WriteImm(rig.remote(LARGE), 77), &[rig.sge(0..LARGE)]))?;
    rig.sent(side, 2, wc_opcode::RDMA_WRITE)?;
    rig.post(&SendRequest::new(3, Op::Read(rig.remote(0)), &[rig.sge(LARGE..2 * LARGE)]))?;
    rig.sent(side, 3, wc_opcode::RDMA_READ)?;
    holds(&rig.mem, LARGE, &pattern(4, LARGE))
}

fn large_b(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc().memory(2 * LARGE);
    let parts = Arc::new(side.parts(&plan)?);
    let (srq, _) = create(&parts)?;
    let rig = side.join(&parts, &plan, Some(&srq))?;
    let rig = side.keep(rig);
    srq.post_recv(1, &[parts.sge(0..LARGE)])?;
    srq.post_recv(2, &[])?;
    side.meet()?;
    rig.received(side, 1, wc_opcode::RECV, LARGE)?;
    holds(&parts.mem, 0, &pattern(4, LARGE))?;
    let wc = rig.received(side, 2, wc_opcode::RECV_RDMA_WITH_IMM, LARGE)?;
    same("the immediate data", u32::from_be(wc.imm_data), 77)?;
    holds(&parts.mem, LARGE, &pattern(4, LARGE))
}

fn limit_b(side: &mut Side) -> Verdict {
    let shared = over_srq(side, 1)?;
    for wr_id in 0..8 {
        shared.post(wr_id)?;
    }
    shared.srq.arm_limit(4)?;
    same("the limit", shared.srq.query()?.srq_limit, 4)?;
    let event = AsyncEvent { event_type: event_type::SRQ_LIMIT_REACHED, element: shared.element };
    // Four receives are left: not fewer than four.
    for i in 0..4 {
        shared.take(side, i, i, 0)?;
    }
    side.no_async_event(event, QUIET)?;
    shared.take(side, 4, 4, 0)?;
    same("the event", side.async_event(shared.element)?, event)?;
    same("the limit after its event", shared.srq.query()?.srq_limit, 0)?;
    shared.take(side, 5, 5, 0)?;
    side.no_async_event(event, QUIET)?;
    // Armed again above what is left: the next receive that is taken raises it again.
    shared.srq.arm_limit(3)?;
    shared.take(side, 6, 6, 0)?;
    same("the second event", side.async_event(shared.element)?, event)
}

fn late_receive_b(side: &mut Side) -> Verdict {
    let shared = over_srq(side, 1)?;
    for i in 0..2 {
        side.tell(&[])?;
        side.nothing(&shared.parts.recvs, QUIET)?;
        shared.post(i)?;
        shared.takes(side, i, i, 0)?;
    }
    Ok(())
}

/// A READ of so much is under way in parts for a while.
const VERY_LARGE: usize = 1 << 19;

fn behind_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let rig = side.wire(&Plan::rc().memory(2 * VERY_LARGE))?;
    side.meet()?;
    rig.post(&SendRequest::new(1, Op::Send, &[rig.sge(0..8)]))?;
    rig.post(&SendRequest::new(
        2,
        Op::Read(rig.remote(0)),
        &[rig.sge(VERY_LARGE..2 * VERY_LARGE)],
    ))?;
    side.meet()?;
    rig.sent(side, 1, wc_opcode::SEND)?;
    rig.sent(side, 2, wc_opcode::RDMA_READ)?;
    holds(&rig.mem, VERY_LARGE, &pattern(5, VERY_LARGE))?;
    side.meet()
}

fn behind_b(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc().memory(2 * VERY_LARGE);
    let parts = Arc::new(side.parts(&plan)?);
    let (srq, _) = create(&parts)?;
    let rig = side.join(&parts, &plan, Some(&srq))?;
    let rig = side.keep(rig);
    parts.mem.write(0, &pattern(5, VERY_LARGE));
    side.meet()?;
    side.meet()?;
    side.nothing(&parts.recvs, QUIET)?;
    srq.post_recv(1, &[parts.sge(VERY_LARGE..VERY_LARGE + 8)])?;
    rig.received(side, 1, wc_opcode::RECV, 8)?;
    side.meet()
}

fn last_wqe_b(side: &mut Side) -> Verdict {
    side.needs(Feature::LastWqe)?;
    let shared = over_srq(side, 1)?;
    shared.post(0)?;
    shared.take(side, 0, 0, 0)?;
    let qp = &shared.rigs[0].qp;
    qp.set_state(qp_state::ERR)?;
    let event = side.async_event(EventElement::Qp(qp.qp_num()))?;
    same("the event", event_type::name(event.event_type), "QP_LAST_WQE_REACHED")
}

fn survives_a(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let mut rigs = Vec::new();
    for _ in 0..3 {
        rigs.push(side.join(&parts, &plan, None)?);
    }
    let rigs = side.keep(rigs);
    side.meet()?;
    parts.mem.write(0, &pattern(0, BYTES));
    for i in 0..4 {
        rigs[2].post(&SendRequest::new(i, Op::Send, &[parts.sge(0..BYTES)]))?;
        rigs[2].sent(side, i, wc_opcode::SEND)?;
    }
    Ok(())
}

fn survives_b(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let (srq, element) = create(&parts)?;
    let fails = side.join(&parts, &plan, Some(&srq))?;
    let goes = side.join(&parts, &plan, Some(&srq))?;
    let stays = side.join(&parts, &plan, Some(&srq))?;
    let rigs = side.keep(vec![fails, stays]);
    let shared = Shared { parts, srq, element, rigs };
    for wr_id in 0..4 {
        shared.post(wr_id)?;
    }
    shared.rigs[0].qp.set_state(qp_state::ERR)?;
    drop(goes);
    side.nothing(&shared.parts.recvs, QUIET)?;
    side.meet()?;
    for i in 0..4 {
        shared.takes(side, 0, i, 1)?;
    }
    Ok(())
}

fn full(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let parts = side.parts(&Plan::rc())?;
    let (srq, _) = create(&parts)?;
    let attr = srq.query()?;
    ensure(attr.max_wr >= 64 && attr.max_sge >= 2, &format!("asked for 64 × 2, got {attr:?}"))?;
    let many = vec![parts.sge(0..8); attr.max_sge as usize + 1];
    refused("too many elements", srq.post_recv(0, &many), &[libc::EINVAL])?;
    let mut taken = 0;
    let error = loop {
        match srq.post_recv(taken, &many[..1]) {
            Ok(()) if taken > 8 * u64::from(attr.max_wr) => {
                return Err(Stop::failed(format!("{taken} receives fit {} slots", attr.max_wr)));
            }
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    same("the errno", error.errno(), libc::ENOMEM)?;
    ensure(taken >= u64::from(attr.max_wr), &format!("{taken} taken, {} granted", attr.max_wr))
}

fn query(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let parts = side.parts(&Plan::rc())?;
    let (srq, _) = create(&parts)?;
    let attr = srq.query()?;
    same("the limit of a fresh SRQ", attr.srq_limit, 0)?;
    srq.arm_limit(5)?;
    same("the limit", srq.query()?.srq_limit, 5)?;
    refused("a limit above the size", srq.arm_limit(attr.max_wr + 1), &[libc::EINVAL])?;
    same("the limit after a refusal", srq.query()?.srq_limit, 5)?;
    let beyond = side.caps().device.max_srq_wr as u32;
    let attr = SrqAttr { max_wr: beyond.saturating_add(1), max_sge: 1, srq_limit: 0 };
    let srq = parts.pd.create_srq(attr, 0);
    refused("an SRQ beyond max_srq_wr", srq, &[libc::EINVAL, libc::ENOMEM])
}

fn no_own_receives(side: &mut Side) -> Verdict {
    side.needs(Feature::Srq)?;
    let plan = Plan::rc();
    let parts = side.parts(&plan)?;
    let (srq, _) = create(&parts)?;
    let qp = side.qp(&parts, &plan, Some(&srq))?;
    let (attr, mask) = crate::attrs::init(qp_type::RC, &plan.connect);
    qp.device().modify(&attr, mask)?;
    let posted = qp.post_recv(1, &[parts.sge(0..8)]);
    refused("a receive of its own", posted, &[libc::EINVAL, libc::ENOMEM])
}
