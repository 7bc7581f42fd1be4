//! Unreliable connections: what arrives, and what is dropped without a word.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    two(
        "uc.send",
        "SEND over UC delivers messages of one packet and of many, with immediate data or \
         without (IBTA 9.8.2)",
        send_a,
        send_b,
    ),
    two(
        "uc.write",
        "WRITE over UC fills its range, with immediate data or without (IBTA 9.8.2)",
        write_a,
        write_b,
    ),
    two(
        "uc.no_receive",
        "A SEND that finds no receive succeeds for its sender and is dropped, and later messages \
         arrive (IBTA 9.8.2.2.5)",
        no_receive_a,
        no_receive_b,
    ),
    two(
        "uc.write_without_receive",
        "So does a WRITE_WITH_IMM of several packets (IBTA 9.8.2.2.5)",
        write_without_receive_a,
        write_without_receive_b,
    ),
    two(
        "uc.bad_rkey",
        "A WRITE with a bad key succeeds for its sender, touches nothing, and later messages \
         arrive (IBTA 9.8.2.2, 9.9.3.2)",
        bad_rkey_a,
        bad_rkey_b,
    ),
];

/// Sizes: empty, small, around one packet, several packets.
fn sizes(mtu: usize) -> [usize; 6] {
    [0, 1, mtu - 1, mtu, mtu + 1, 5 * mtu + 3]
}

fn sges(sge: &[Sge; 1]) -> &[Sge] {
    if sge[0].length == 0 { &[] } else { sge }
}

fn send_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    for (i, size) in sizes(rig.mtu()).into_iter().enumerate() {
        side.meet()?;
        rig.mem.write(0, &pattern(i as u64, size));
        let op = if i % 2 == 0 { Op::Send } else { Op::SendImm(i as u32) };
        let sge = [rig.sge(0..size)];
        rig.post(&SendRequest::new(i as u64, op, sges(&sge)))?;
        rig.sent(side, i as u64, wc_opcode::SEND)?;
    }
    side.meet()
}

fn send_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    for (i, size) in sizes(rig.mtu()).into_iter().enumerate() {
        rig.mem.write(0, &vec![0xee; size + 8]);
        rig.post_recv(i as u64, 0..size + 8)?;
        side.meet()?;
        let wc = rig.received(side, i as u64, wc_opcode::RECV, size)?;
        let with_imm = wc.wc_flags & wc_flags::WITH_IMM != 0;
        same("the flag WITH_IMM", with_imm, i % 2 == 1)?;
        if with_imm {
            same("the immediate data", u32::from_be(wc.imm_data), i as u32)?;
        }
        holds(&rig.mem, 0, &pattern(i as u64, size))?;
        holds(&rig.mem, size, &[0xee; 8])?;
    }
    side.meet()
}

fn write_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    for (i, size) in sizes(rig.mtu()).into_iter().enumerate() {
        side.meet()?;
        rig.mem.write(0, &pattern(i as u64, size));
        let sge = [rig.sge(0..size)];
        // The first tells nobody: the one with immediate data behind it does.
        let write = SendRequest::new(0, Op::Write(rig.remote(0)), sges(&sge)).unsignaled();
        rig.post(&write)?;
        let op = Op::WriteImm(rig.remote(32 * 1024), i as u32);
        rig.post(&SendRequest::new(i as u64, op, sges(&sge)))?;
        rig.sent(side, i as u64, wc_opcode::RDMA_WRITE)?;
    }
    side.meet()
}

fn write_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    for (i, size) in sizes(rig.mtu()).into_iter().enumerate() {
        rig.qp.post_recv(i as u64, &[])?;
        side.meet()?;
        let wc = rig.received(side, i as u64, wc_opcode::RECV_RDMA_WITH_IMM, size)?;
        same("the immediate data", u32::from_be(wc.imm_data), i as u32)?;
        holds(&rig.mem, 0, &pattern(i as u64, size))?;
        holds(&rig.mem, 32 * 1024, &pattern(i as u64, size))?;
    }
    side.meet()
}

/// Where side A writes a word that tells that all before it has been executed: requests of one
/// UC QP arrive in order, or not at all.
const MARK: usize = 60_000;

/// Writes the mark, which needs no receive.
fn mark(side: &mut Side, rig: &Rig, wr_id: u64) -> Verdict {
    rig.mem.write(MARK, &wr_id.to_le_bytes());
    let sge = [rig.sge(MARK..MARK + 8)];
    rig.post(&SendRequest::new(wr_id, Op::Write(rig.remote(MARK)), &sge))?;
    rig.sent(side, wr_id, wc_opcode::RDMA_WRITE)?;
    Ok(())
}

/// Waits for the mark.
fn marked(side: &mut Side, rig: &Rig, wr_id: u64) -> Verdict {
    let word = wr_id.to_le_bytes();
    side.wait("the mark", || Ok(holds(&rig.mem, MARK, &word).ok()))
}

fn no_receive_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    later_arrives_a(side, &rig, Op::Send, wc_opcode::SEND)
}

fn no_receive_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    later_arrives_b(side, &rig)
}

fn write_without_receive_a(side: &mut Side) -> Verdict {
    side.needs(Feature::UcGoesOnAfterCutWrite)?;
    let rig = side.wire(&Plan::uc())?;
    let write = Op::WriteImm(rig.remote(32 * 1024), 0);
    later_arrives_a(side, &rig, write, wc_opcode::RDMA_WRITE)
}

fn write_without_receive_b(side: &mut Side) -> Verdict {
    side.needs(Feature::UcGoesOnAfterCutWrite)?;
    let rig = side.wire(&Plan::uc())?;
    later_arrives_b(side, &rig)
}

/// Two messages of several packets find no receive; what comes behind them arrives.
fn later_arrives_a(side: &mut Side, rig: &Rig, op: Op, opcode: u32) -> Verdict {
    let size = 2 * rig.mtu();
    for wr_id in 1..=2 {
        rig.post(&SendRequest::new(wr_id, op, &[rig.sge(0..size)]))?;
        rig.sent(side, wr_id, opcode)?;
    }
    mark(side, rig, 3)?;
    side.meet()?;
    rig.mem.write(0, &pattern(4, size));
    rig.post(&SendRequest::new(4, Op::Send, &[rig.sge(0..size)]))?;
    rig.sent(side, 4, wc_opcode::SEND)?;
    side.meet()
}

fn later_arrives_b(side: &mut Side, rig: &Rig) -> Verdict {
    let size = 2 * rig.mtu();
    marked(side, rig, 3)?;
    rig.post_recv(1, 0..size)?;
    side.nothing(&rig.recvs, Duration::ZERO)?;
    side.meet()?;
    rig.received(side, 1, wc_opcode::RECV, size)?;
    holds(&rig.mem, 0, &pattern(4, size))?;
    side.meet()
}

fn bad_rkey_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    side.meet()?;
    let bad = Remote { rkey: rig.peer.memory.rkey ^ 0x5a, ..rig.peer.memory };
    let size = 2 * rig.mtu();
    for (wr_id, op) in [(1, Op::Write(bad)), (2, Op::Write(rig.remote(64 * 1024 - 8)))] {
        rig.post(&SendRequest::new(wr_id, op, &[rig.sge(0..size)]))?;
        rig.sent(side, wr_id, wc_opcode::RDMA_WRITE)?;
    }
    mark(side, &rig, 3)?;
    same("the state", qp_state::name(rig.qp.state()?), "RTS")?;
    side.meet()
}

fn bad_rkey_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::uc())?;
    let before = pattern(6, MARK);
    rig.mem.write(0, &before);
    side.meet()?;
    marked(side, &rig, 3)?;
    holds(&rig.mem, 0, &before)?;
    same("the state", qp_state::name(rig.qp.state()?), "RTS")?;
    side.meet()
}
