//! What RC carries, and that it arrives.

use super::prelude::*;
use crate::caps::Caps;
use sojourn_fabric::abi::QpCap;

pub(super) const CASES: &[Case] = &[
    two(
        "rc.send",
        "SEND fills the receive with its bytes and no more, for sizes around the MTU and up to \
         1 MiB (IBTA 9.4.1)",
        send_a,
        send_b,
    ),
    two(
        "rc.send_imm",
        "SEND with immediate delivers its 4 bytes in network order in the completion \
         (ibv_poll_cq(3))",
        send_imm_a,
        send_imm_b,
    ),
    two(
        "rc.write",
        "WRITE fills the range that it names and no more, for sizes around the MTU and up to \
         1 MiB (IBTA 9.4.3)",
        write_a,
        write_b,
    ),
    two(
        "rc.write_imm",
        "WRITE with immediate consumes a receive, leaves its buffer alone, and tells its length \
         (ibv_poll_cq(3), IBTA 9.4.3)",
        write_imm_a,
        write_imm_b,
    ),
    two(
        "rc.read",
        "READ fetches the range that it names, for sizes around the MTU and up to 1 MiB \
         (IBTA 9.4.4)",
        read_a,
        read_b,
    ),
    two(
        "rc.gather_scatter",
        "The elements of a request are gathered, and those of a receive or READ filled, in order \
         (ibv_post_send(3))",
        gather_a,
        gather_b,
    ),
    two(
        "rc.inline",
        "Inline bytes need no registration and may be overwritten once the call has returned \
         (ibv_post_send(3), IBV_SEND_INLINE)",
        inline_a,
        inline_b,
    ),
    two(
        "rc.unsignaled",
        "Unsignalled requests complete with nothing, and a signalled one behind them frees their \
         slots (ibv_post_send(3))",
        unsignaled_a,
        unsignaled_b,
    ),
    two(
        "rc.sig_all",
        "With sq_sig_all every request completes (ibv_create_qp(3))",
        sig_all_a,
        sig_all_b,
    ),
    two(
        "rc.late_receive",
        "A SEND that finds no receive waits (rnr_retry 7), and succeeds when one is posted \
         (IBTA 9.7.5.2.8)",
        late_receive_a,
        late_receive_b,
    ),
    two("rc.both_ways", "Both sides may send at once (IBTA 9.2)", both_ways, both_ways),
    one("rc.to_itself", "A QP may be connected to itself (IBTA 10.2.4)", to_itself),
];

/// The largest message of these cases.
const MOST: usize = 1 << 20;
/// Room in front of and behind what a message may touch.
const GUARD: usize = 64;

fn plan() -> Plan {
    Plan::rc().memory(MOST + 2 * GUARD)
}

/// Sizes at which devices change their way: nothing, less than a word, around a packet, large.
fn sizes(caps: &Caps, mtu: usize) -> Vec<usize> {
    let most = MOST.min(caps.port.max_msg_sz as usize);
    let mut sizes = vec![0, 1, 63, mtu - 1, mtu, mtu + 1, 64 * 1024, MOST];
    sizes.retain(|size| *size <= most);
    sizes
}

/// What the whole memory holds before a message arrives.
fn canary(size: usize) -> Vec<u8> {
    vec![0xc5 ^ size as u8; MOST + 2 * GUARD]
}

/// The memory holds the message of this size, and its canary around it.
fn holds_message(rig: &Rig, size: usize) -> Verdict {
    let canary = canary(size);
    holds(&rig.mem, GUARD, &pattern(size as u64, size))?;
    holds(&rig.mem, 0, &canary[..GUARD])?;
    holds(&rig.mem, GUARD + size, &canary[..GUARD])
}

/// Side A of a transfer of every size.
fn push(side: &mut Side, plan: &Plan, opcode: u32, op: impl Fn(&Rig, usize) -> Op) -> Verdict {
    let rig = side.wire(plan)?;
    for size in sizes(side.caps(), rig.mtu()) {
        side.meet()?;
        rig.mem.write(0, &pattern(size as u64, size));
        let op = op(&rig, size);
        let sge = [rig.sge(0..size)];
        // A request of no bytes has no elements, or one of length 0: the latter means 2 GiB to
        // some devices (IBTA 10.7.3.1), so verbs programs use the former.
        let sges = if size == 0 { &[][..] } else { &sge[..] };
        rig.post(&SendRequest::new(size as u64, op, sges))?;
        let wc = rig.sent(side, size as u64, opcode)?;
        same("qp_num", wc.qp_num, rig.qp.qp_num())?;
        side.meet()?;
    }
    Ok(())
}

/// Side B of a transfer of every size that consumes a receive: `arrived` looks at it.
fn take(
    side: &mut Side,
    plan: &Plan,
    opcode: u32,
    arrived: impl Fn(&abi::Wc, usize) -> Verdict,
) -> Verdict {
    let rig = side.wire(plan)?;
    for size in sizes(side.caps(), rig.mtu()) {
        rig.mem.write(0, &canary(size));
        // With room to spare, which must stay untouched.
        rig.post_recv(size as u64, GUARD..GUARD + size + GUARD)?;
        side.meet()?;
        let wc = rig.received(side, size as u64, opcode, size)?;
        arrived(&wc, size)?;
        holds_message(&rig, size)?;
        side.meet()?;
    }
    Ok(())
}

fn without_imm(wc: &abi::Wc, _: usize) -> Verdict {
    same("the flag WITH_IMM", wc.wc_flags & wc_flags::WITH_IMM, 0)
}

/// Four bytes that differ, so that a wrong order shows.
fn imm(size: usize) -> u32 {
    0x0102_0304 ^ (size as u32).rotate_left(8)
}

fn with_imm(wc: &abi::Wc, size: usize) -> Verdict {
    same("the flag WITH_IMM", wc.wc_flags & wc_flags::WITH_IMM, wc_flags::WITH_IMM)?;
    same("the immediate data", u32::from_be(wc.imm_data), imm(size))
}

fn send_a(side: &mut Side) -> Verdict {
    push(side, &plan(), wc_opcode::SEND, |_, _| Op::Send)
}

fn send_b(side: &mut Side) -> Verdict {
    take(side, &plan(), wc_opcode::RECV, without_imm)
}

fn send_imm_a(side: &mut Side) -> Verdict {
    push(side, &plan(), wc_opcode::SEND, |_, size| Op::SendImm(imm(size)))
}

fn send_imm_b(side: &mut Side) -> Verdict {
    take(side, &plan(), wc_opcode::RECV, with_imm)
}

fn write_a(side: &mut Side) -> Verdict {
    push(side, &plan(), wc_opcode::RDMA_WRITE, |rig, _| Op::Write(rig.remote(GUARD)))
}

fn write_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    for size in sizes(side.caps(), rig.mtu()) {
        rig.mem.write(0, &canary(size));
        side.meet()?;
        side.meet()?;
        holds_message(&rig, size)?;
    }
    side.nothing(&rig.recvs, Duration::ZERO)
}

fn write_imm_a(side: &mut Side) -> Verdict {
    push(side, &plan(), wc_opcode::RDMA_WRITE, |rig, size| {
        Op::WriteImm(rig.remote(GUARD), imm(size))
    })
}

fn write_imm_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    let aside = rig.pd.register(4096, access::LOCAL_WRITE)?;
    let untouched = pattern(1, 4096);
    aside.write(0, &untouched);
    for size in sizes(side.caps(), rig.mtu()) {
        rig.mem.write(0, &canary(size));
        // The receive may be of any size, and have no buffer at all.
        let buffer = [aside.slice(0..64)];
        rig.qp.post_recv(size as u64, if size % 2 == 0 { &buffer } else { &[] })?;
        side.meet()?;
        let opcode = wc_opcode::RECV_RDMA_WITH_IMM;
        let wc = rig.received(side, size as u64, opcode, size)?;
        with_imm(&wc, size)?;
        holds_message(&rig, size)?;
        side.meet()?;
    }
    holds(&aside, 0, &untouched)
}

fn read_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    for size in sizes(side.caps(), rig.mtu()) {
        side.meet()?;
        rig.mem.write(0, &canary(size));
        let sge = [rig.sge(GUARD..GUARD + size)];
        let sges = if size == 0 { &[][..] } else { &sge[..] };
        rig.post(&SendRequest::new(size as u64, Op::Read(rig.remote(0)), sges))?;
        rig.sent(side, size as u64, wc_opcode::RDMA_READ)?;
        holds_message(&rig, size)?;
        side.meet()?;
    }
    Ok(())
}

fn read_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    for size in sizes(side.caps(), rig.mtu()) {
        rig.mem.write(0, &pattern(size as u64, size));
        side.meet()?;
        side.meet()?;
    }
    Ok(())
}

/// Pieces of a message as its sender gathers them, and as its receiver scatters them: (offset,
/// length), out of order, unaligned, and of other lengths at both sides.
const GATHER: [(usize, usize); 4] = [(5000, 1), (100, 4097), (9001, 333), (40, 7)];
/// As [`GATHER`].
const SCATTER: [(usize, usize); 3] = [(7777, 2000), (3, 5), (12000, 4000)];

fn pieces<const N: usize>(rig: &Rig, pieces: [(usize, usize); N]) -> [Sge; N] {
    pieces.map(|(at, length)| rig.sge(at..at + length))
}

fn gathered() -> Vec<u8> {
    pattern(11, GATHER.iter().map(|piece| piece.1).sum())
}

/// Spreads the message over the pieces.
fn spread(rig: &Rig, pieces: &[(usize, usize)]) {
    let message = gathered();
    let mut from = 0;
    for (at, length) in pieces {
        let end = message.len().min(from + length);
        rig.mem.write(*at, &message[from..end]);
        from = end;
    }
}

/// The pieces hold the message.
fn holds_spread(rig: &Rig, pieces: &[(usize, usize)]) -> Verdict {
    let message = gathered();
    let mut from = 0;
    for (at, length) in pieces {
        let end = message.len().min(from + length);
        holds(&rig.mem, *at, &message[from..end])?;
        from = end;
    }
    Ok(())
}

fn gather_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    spread(&rig, &GATHER);
    let sges = pieces(&rig, GATHER);
    rig.post(&SendRequest::new(1, Op::Send, &sges))?;
    rig.sent(side, 1, wc_opcode::SEND)?;
    rig.post(&SendRequest::new(2, Op::Write(rig.remote(20_000)), &sges))?;
    rig.sent(side, 2, wc_opcode::RDMA_WRITE)?;
    side.meet()?;
    // Back into other pieces.
    rig.mem.write(0, &[0; 20_000]);
    let length = gathered().len();
    let mut sges = pieces(&rig, SCATTER);
    sges[2].length = (length - SCATTER[0].1 - SCATTER[1].1) as u32;
    rig.post(&SendRequest::new(3, Op::Read(rig.remote(20_000)), &sges))?;
    rig.sent(side, 3, wc_opcode::RDMA_READ)?;
    holds_spread(&rig, &SCATTER)
}

fn gather_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.qp.post_recv(1, &pieces(&rig, SCATTER))?;
    side.meet()?;
    rig.received(side, 1, wc_opcode::RECV, gathered().len())?;
    holds_spread(&rig, &SCATTER)?;
    side.meet()?;
    holds(&rig.mem, 20_000, &gathered())
}

fn inline_plan() -> Plan {
    let plan = Plan::rc();
    Plan { cap: QpCap { max_inline_data: 64, ..plan.cap }, ..plan }
}

/// Lengths of inline messages, up to what was granted.
fn inline_sizes(most: usize) -> [usize; 5] {
    [0, 1, 7, most - 1, most]
}

fn inline_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&inline_plan())?;
    let most = rig.qp.cap().max_inline_data as usize;
    side.tell(&[most as u64])?;
    side.meet()?;
    let mut buffer = vec![0; most];
    for size in inline_sizes(most) {
        let at = size as u64;
        for (op, opcode) in [
            (Op::Send, wc_opcode::SEND),
            (Op::Write(rig.remote(8192)), wc_opcode::RDMA_WRITE),
            (Op::WriteImm(rig.remote(16_384), imm(size)), wc_opcode::RDMA_WRITE),
        ] {
            buffer[..size].copy_from_slice(&pattern(at, size));
            rig.post(&SendRequest::inline(at, op, &buffer[..size]))?;
            // At once, and long before the completion of a slow device.
            buffer.fill(0xee);
            rig.sent(side, at, opcode)?;
        }
        side.meet()?;
    }
    Ok(())
}

fn inline_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&inline_plan())?;
    let [most] = side.hear()?;
    ensure((64..4096).contains(&most), &format!("{most} bytes of inline data"))?;
    let most = most as usize;
    for i in 0..2 * inline_sizes(most).len() as u64 {
        rig.post_recv(i, 0..4096)?;
    }
    side.meet()?;
    for (i, size) in inline_sizes(most).into_iter().enumerate() {
        let wr_id = 2 * i as u64;
        rig.received(side, wr_id, wc_opcode::RECV, size)?;
        rig.received(side, wr_id + 1, wc_opcode::RECV_RDMA_WITH_IMM, size)?;
        for at in [0, 8192, 16_384] {
            holds(&rig.mem, at, &pattern(size as u64, size))?;
        }
        side.meet()?;
    }
    Ok(())
}

/// Requests of a run of `rc.unsignaled`, the last one signalled; the runs together are many
/// times the queue's depth.
const RUN: u64 = 41;
/// Number of runs.
const RUNS: u64 = 8;

fn unsignaled_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    for run in 0..RUNS {
        side.meet()?;
        for i in 0..RUN {
            let number = run * RUN + i;
            let bytes = number.to_le_bytes();
            rig.mem.write(i as usize * 8, &bytes);
            let sge = [rig.sge(i as usize * 8..i as usize * 8 + 8)];
            let request = SendRequest::new(number, Op::Send, &sge);
            rig.post(&if i + 1 == RUN { request } else { request.unsignaled() })?;
        }
        rig.sent(side, run * RUN + RUN - 1, wc_opcode::SEND)?;
    }
    side.nothing(&rig.sends, QUIET)
}

fn unsignaled_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    for run in 0..RUNS {
        for i in 0..RUN {
            rig.post_recv(run * RUN + i, i as usize * 8..i as usize * 8 + 8)?;
        }
        side.meet()?;
        for i in 0..RUN {
            let number = run * RUN + i;
            rig.received(side, number, wc_opcode::RECV, 8)?;
            holds(&rig.mem, i as usize * 8, &number.to_le_bytes())?;
        }
    }
    Ok(())
}

fn sig_all_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan { sig_all: true, ..Plan::rc() })?;
    let sge = [rig.sge(0..8)];
    for i in 0..10 {
        let op = if i % 2 == 0 { Op::Write(rig.remote(0)) } else { Op::Read(rig.remote(0)) };
        rig.post(&SendRequest::new(i, op, &sge).unsignaled())?;
    }
    for i in 0..10 {
        let opcode = if i % 2 == 0 { wc_opcode::RDMA_WRITE } else { wc_opcode::RDMA_READ };
        rig.sent(side, i, opcode)?;
    }
    Ok(())
}

fn sig_all_b(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

fn late_receive_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.mem.write(0, &pattern(5, 3000));
    for i in 0..3 {
        rig.post(&SendRequest::new(i, Op::Send, &[rig.sge(0..3000)]))?;
    }
    side.nothing(&rig.sends, QUIET)?;
    side.meet()?;
    for i in 0..3 {
        rig.sent(side, i, wc_opcode::SEND)?;
    }
    Ok(())
}

fn late_receive_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    for i in 0..3 {
        rig.post_recv(i, 4096..8192)?;
        rig.received(side, i, wc_opcode::RECV, 3000)?;
        holds(&rig.mem, 4096, &pattern(5, 3000))?;
    }
    Ok(())
}

fn both_ways(side: &mut Side) -> Verdict {
    const EACH: u64 = 48;
    let rig = side.wire(&Plan::rc())?;
    let slot = |i: u64| i as usize * 64..i as usize * 64 + 64;
    for i in 0..EACH {
        let at = slot(EACH + i);
        rig.post_recv(i, at)?;
    }
    side.meet()?;
    for i in 0..EACH {
        rig.mem.write(slot(i).start, &pattern(i, 64));
        rig.post(&SendRequest::new(i, Op::Send, &[rig.sge(slot(i))]))?;
    }
    for i in 0..EACH {
        rig.sent(side, i, wc_opcode::SEND)?;
        rig.received(side, i, wc_opcode::RECV, 64)?;
        holds(&rig.mem, slot(EACH + i).start, &pattern(i, 64))?;
    }
    Ok(())
}

fn to_itself(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let parts = side.parts(&plan)?;
    let qp = side.qp(&parts, &plan, None)?;
    let caps = side.caps();
    let towards = crate::attrs::Towards {
        address: caps.address_vector(caps.port.lid, caps.gid, caps.global()),
        qpn: qp.qp_num(),
        psn: 42,
        mtu: caps.port.active_mtu,
    };
    for (attr, mask) in [
        crate::attrs::init(qp_type::RC, &plan.connect),
        crate::attrs::rtr(qp_type::RC, &plan.connect, &towards),
        crate::attrs::rts(qp_type::RC, &plan.connect, 42),
    ] {
        qp.device().modify(&attr, mask)?;
    }
    parts.mem.write(0, &pattern(1, 3000));
    qp.post_recv(7, &[parts.sge(8192..8192 + 3000)])?;
    qp.post_send(&SendRequest::new(8, Op::Send, &[parts.sge(0..3000)]))?;
    success(&side.completion(&parts.sends)?, 8, wc_opcode::SEND)?;
    success(&side.completion(&parts.recvs)?, 7, wc_opcode::RECV)?;
    holds(&parts.mem, 8192, &pattern(1, 3000))
}
