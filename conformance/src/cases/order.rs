//! The order of requests among each other.

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    two(
        "order.mixed",
        "A thousand requests of every opcode complete in the order of posting, and arrive in it \
         (IBTA 10.7.3.3)",
        mixed_a,
        mixed_b,
    ),
    two(
        "order.writes_before_send",
        "What was written before a SEND is there when its receive completes (IBTA 10.7.3.3)",
        visible_a,
        visible_b,
    ),
    two(
        "order.fence",
        "A fenced request begins after the READs and atomics before it have ended \
         (IBTA 10.7.3.3, IBV_SEND_FENCE)",
        fence_a,
        fence_b,
    ),
    two(
        "order.many_reads",
        "More READs than max_rd_atomic may be posted: the device holds them back (IBTA 9.7.3.3)",
        many_reads_a,
        many_reads_b,
    ),
];

/// Requests of `order.mixed`.
const MIXED: u64 = 1000;
/// How many of them are outstanding at most: each has a slot of memory of its own.
const WINDOW: u64 = 32;
/// Bytes of a slot.
const SLOT: usize = 512;

fn slot(i: u64) -> std::ops::Range<usize> {
    let at = (i % WINDOW) as usize * SLOT;
    at..at + SLOT
}

/// Areas of the memory, `WINDOW` slots each.
fn area(n: usize) -> usize {
    n * WINDOW as usize * SLOT
}

fn mixed_plan() -> Plan {
    Plan::rc().memory(area(4))
}

/// Whether the `i`-th request consumes a receive.
fn consumes(kind: u64) -> bool {
    matches!(kind, 0 | 1 | 3)
}

/// Kinds in a mixture without and with atomics.
fn kind(i: u64, kinds: u64) -> u64 {
    // Not simply modulo: neighbours of every pair of kinds occur.
    (i * i + i / 3) % kinds
}

fn mixed_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&mixed_plan())?;
    let kinds = if side.needs(Feature::Atomics).is_ok() { 7 } else { 5 };
    side.tell(&[kinds])?;
    side.meet()?;
    let opcode = |i| match kind(i, kinds) {
        0 | 1 => wc_opcode::SEND,
        2 | 3 => wc_opcode::RDMA_WRITE,
        4 => wc_opcode::RDMA_READ,
        5 => wc_opcode::FETCH_ADD,
        _ => wc_opcode::COMP_SWAP,
    };
    let (mut posted, mut done) = (0, 0);
    while done < MIXED {
        while posted < MIXED && posted - done < WINDOW {
            let at = slot(posted);
            let imm = posted as u32;
            let there = rig.remote(area(1) + at.start);
            let word = [rig.sge(area(1) + at.start..area(1) + at.start + 8)];
            let message = [rig.sge(at.clone())];
            rig.mem.write(at.start, &pattern(posted, SLOT));
            let (op, sges) = match kind(posted, kinds) {
                0 => (Op::Send, &message),
                1 => (Op::SendImm(imm), &message),
                2 => (Op::Write(there), &message),
                3 => (Op::WriteImm(there, imm), &message),
                4 => (Op::Read(rig.remote(area(2))), &message),
                5 => (Op::FetchAdd(rig.remote(area(3)), 1), &word),
                _ => (Op::CompareSwap(rig.remote(area(3) + 8), 0, 0), &word),
            };
            rig.post(&SendRequest::new(posted, op, sges))?;
            posted += 1;
        }
        rig.sent(side, done, opcode(done))?;
        if kind(done, kinds) == 4 {
            holds(&rig.mem, slot(done).start, &pattern(77, SLOT))?;
        }
        done += 1;
    }
    let adds = (0..MIXED).filter(|i| kind(*i, kinds) == 5).count();
    side.tell(&[adds as u64])
}

fn mixed_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&mixed_plan())?;
    let [kinds] = side.hear()?;
    rig.mem.write(area(2), &pattern(77, SLOT));
    // Fewer receives than the sender's window, so that it also meets an empty queue.
    let mut receives = 0..u64::MAX;
    let mut post = || {
        let at = slot(receives.start);
        rig.post_recv(receives.start, at)?;
        receives.start += 1;
        Verdict::Ok(())
    };
    for _ in 0..WINDOW / 2 {
        post()?;
    }
    side.meet()?;
    for (received, i) in (0..MIXED).filter(|i| consumes(kind(*i, kinds))).enumerate() {
        let received = received as u64;
        let (opcode, imm) = match kind(i, kinds) {
            0 => (wc_opcode::RECV, false),
            1 => (wc_opcode::RECV, true),
            _ => (wc_opcode::RECV_RDMA_WITH_IMM, true),
        };
        let wc = rig.received(side, received, opcode, SLOT)?;
        if imm {
            same("the immediate data", u32::from_be(wc.imm_data), i as u32)?;
        }
        if opcode == wc_opcode::RECV {
            holds(&rig.mem, slot(received).start, &pattern(i, SLOT))?;
        }
        post()?;
    }
    let [adds] = side.hear()?;
    holds(&rig.mem, area(3), &adds.to_ne_bytes())
}

/// Rounds of the cases below.
const ROUNDS: u64 = 100;

fn visible_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc().memory(128 * 1024))?;
    side.meet()?;
    for round in 0..ROUNDS {
        rig.mem.write(0, &pattern(round, 9000));
        let remote = rig.remote(64 * 1024);
        let (large, small) = ([rig.sge(0..9000)], [rig.sge(9000..9008)]);
        rig.mem.write(9000, &round.to_le_bytes());
        let write = SendRequest::new(2 * round, Op::Write(remote), &large).unsignaled();
        rig.post(&write)?;
        rig.post(&SendRequest::new(2 * round + 1, Op::Send, &small))?;
        rig.sent(side, 2 * round + 1, wc_opcode::SEND)?;
        let [] = side.hear()?;
    }
    Ok(())
}

fn visible_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc().memory(128 * 1024))?;
    side.meet()?;
    for round in 0..ROUNDS {
        rig.post_recv(round, 0..8)?;
        rig.received(side, round, wc_opcode::RECV, 8)?;
        holds(&rig.mem, 64 * 1024, &pattern(round, 9000))?;
        side.tell(&[])?;
    }
    Ok(())
}

fn fence_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    for round in 0..ROUNDS {
        // What is sent is what the READ before it fetches: stale without the fence.
        rig.mem.write(0, &[0xff; 6000]);
        let fetched = [rig.sge(0..6000)];
        let read = SendRequest::new(0, Op::Read(rig.remote(0)), &fetched).unsignaled();
        rig.post(&read)?;
        rig.post(&SendRequest::new(round, Op::Send, &fetched).fenced())?;
        rig.sent(side, round, wc_opcode::SEND)?;
        let [] = side.hear()?;
    }
    Ok(())
}

fn fence_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.mem.write(0, &pattern(0, 6000));
    rig.post_recv(0, 8192..8192 + 6000)?;
    side.meet()?;
    for round in 0..ROUNDS {
        rig.received(side, round, wc_opcode::RECV, 6000)?;
        holds(&rig.mem, 8192, &pattern(round, 6000))?;
        rig.mem.write(0, &pattern(round + 1, 6000));
        rig.post_recv(round + 1, 8192..8192 + 6000)?;
        side.tell(&[])?;
    }
    Ok(())
}

fn many_reads_plan() -> Plan {
    Plan::rc().connect(|options| options.max_rd_atomic = 1)
}

fn many_reads_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&many_reads_plan())?;
    side.meet()?;
    for i in 0..48 {
        let at = i as usize * 1000;
        rig.post(&SendRequest::new(i, Op::Read(rig.remote(at)), &[rig.sge(at..at + 1000)]))?;
    }
    for i in 0..48 {
        rig.sent(side, i, wc_opcode::RDMA_READ)?;
    }
    holds(&rig.mem, 0, &pattern(8, 48_000))
}

fn many_reads_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&many_reads_plan())?;
    rig.mem.write(0, &pattern(8, 48_000));
    side.meet()
}
