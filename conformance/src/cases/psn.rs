//! Packet sequence numbers, as `query_qp` shows them.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[two(
    "psn.live",
    "The responder's expected number grows by the packets of each request, through the end of \
     its 24 bits: of a READ by those of its response, of atomics and empty requests by one \
     (IBTA 9.7.3, ibv_query_qp(3))",
    live_a,
    live_b,
)];

/// The first number: a few packets before the 24 bits end.
const FIRST: u32 = 0x00ff_fff0;
/// The largest request.
const MOST: usize = 100_000;

fn plan() -> Plan {
    Plan { psn: Some(FIRST), ..Plan::rc().memory(2 * MOST) }
}

#[derive(Clone, Copy)]
enum Kind {
    Send,
    Write,
    WriteImm,
    Read,
    Add,
}

/// What is sent, and how long it is.
fn program(mtu: usize, atomics: bool) -> Vec<(Kind, usize)> {
    let mut program = Vec::new();
    for size in [0, 1, mtu - 1, mtu, mtu + 1, 5 * mtu, 5 * mtu + 1, MOST] {
        for kind in [Kind::Send, Kind::Write, Kind::WriteImm, Kind::Read] {
            program.push((kind, size));
        }
        if atomics {
            program.push((Kind::Add, 8));
        }
    }
    program
}

fn live_a(side: &mut Side) -> Verdict {
    side.needs(Feature::LivePsn)?;
    let atomics = side.needs(Feature::Atomics).is_ok();
    let rig = side.wire(&plan())?;
    side.tell(&[u64::from(atomics)])?;
    side.meet()?;
    for (i, (kind, size)) in program(rig.mtu(), atomics).into_iter().enumerate() {
        let i = i as u64;
        let sge = [rig.sge(0..size)];
        let sges = if size == 0 { &[][..] } else { &sge[..] };
        let there = rig.remote(0);
        let (op, opcode) = match kind {
            Kind::Send => (Op::Send, wc_opcode::SEND),
            Kind::Write => (Op::Write(there), wc_opcode::RDMA_WRITE),
            Kind::WriteImm => (Op::WriteImm(there, 1), wc_opcode::RDMA_WRITE),
            Kind::Read => (Op::Read(there), wc_opcode::RDMA_READ),
            Kind::Add => (Op::FetchAdd(there, 1), wc_opcode::FETCH_ADD),
        };
        rig.post(&SendRequest::new(i, op, sges))?;
        rig.sent(side, i, opcode)?;
        side.meet()?;
        side.meet()?;
    }
    Ok(())
}

fn live_b(side: &mut Side) -> Verdict {
    side.needs(Feature::LivePsn)?;
    let rig = side.wire(&plan())?;
    let [atomics] = side.hear()?;
    let program = program(rig.mtu(), atomics != 0);
    for i in 0..program.len().min(32) as u64 {
        rig.post_recv(i, 0..2 * MOST)?;
    }
    side.meet()?;
    let mut wanted = FIRST;
    for (kind, size) in program {
        let packets = match kind {
            Kind::Add => 1,
            _ => size.div_ceil(rig.mtu()).max(1),
        };
        wanted = wanted.wrapping_add(packets as u32) & abi::MASK_24;
        side.meet()?;
        same("rq_psn", rig.qp.query()?.rq_psn, wanted)?;
        side.meet()?;
    }
    Ok(())
}
