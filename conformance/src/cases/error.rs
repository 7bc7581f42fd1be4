//! Requests that must fail: with which status, and what else ends with them.

use super::prelude::*;
use crate::attrs;

pub(super) const CASES: &[Case] = &[
    two(
        "error.write_bad_rkey",
        "WRITE with a key that there is not: REM_ACCESS_ERR, flushes behind it, both QPs in ERR \
         (IBTA 9.9.2, 11.6.2)",
        |side| remote_a(side, |rig| Op::Write(bad_key(rig)), ACCESS),
        |side| remote_b(side, Plan::rc()),
    ),
    two(
        "error.read_bad_rkey",
        "READ with a key that there is not: REM_ACCESS_ERR, flushes, both QPs in ERR \
         (IBTA 9.9.2, 11.6.2)",
        |side| remote_a(side, |rig| Op::Read(bad_key(rig)), ACCESS),
        |side| remote_b(side, Plan::rc()),
    ),
    two(
        "error.atomic_bad_rkey",
        "An atomic with a key that there is not: REM_ACCESS_ERR, flushes, both QPs in ERR \
         (IBTA 9.9.2, 11.6.2)",
        |side| atomic_a(side, |rig| Op::FetchAdd(bad_key(rig), 1), ACCESS),
        |side| atomic_b(side, Plan::rc()),
    ),
    two(
        "error.write_out_of_range",
        "WRITE beyond the end of its region: REM_ACCESS_ERR (IBTA 10.6.3.2)",
        |side| remote_a(side, |rig| Op::Write(rig.remote(MEMORY - 7)), ACCESS),
        |side| remote_b(side, Plan::rc()),
    ),
    two(
        "error.write_before_start",
        "WRITE that begins before its region: REM_ACCESS_ERR (IBTA 10.6.3.2)",
        |side| remote_a(side, |rig| Op::Write(before(rig)), ACCESS),
        |side| remote_b(side, Plan::rc()),
    ),
    two(
        "error.read_out_of_range",
        "READ beyond the end of its region: REM_ACCESS_ERR (IBTA 10.6.3.2)",
        |side| remote_a(side, |rig| Op::Read(rig.remote(MEMORY)), ACCESS),
        |side| remote_b(side, Plan::rc()),
    ),
    two(
        "error.range_overflows",
        "A range whose end exceeds 64 bits: REM_ACCESS_ERR (IBTA 10.6.3.2)",
        |side| remote_a(side, |rig| Op::Write(last_bytes(rig)), ACCESS),
        |side| remote_b(side, Plan::rc()),
    ),
    two(
        "error.region_without_write",
        "WRITE into a region that allows no remote write: REM_ACCESS_ERR (ibv_reg_mr(3))",
        |side| remote_a(side, |rig| Op::Write(rig.remote(0)), ACCESS),
        |side| remote_b(side, region(access::LOCAL_WRITE | access::REMOTE_READ)),
    ),
    two(
        "error.region_without_read",
        "READ from a region that allows no remote read: REM_ACCESS_ERR (ibv_reg_mr(3))",
        |side| remote_a(side, |rig| Op::Read(rig.remote(0)), ACCESS),
        |side| remote_b(side, region(access::LOCAL_WRITE | access::REMOTE_WRITE)),
    ),
    two(
        "error.region_without_atomic",
        "An atomic on a region that allows none: REM_ACCESS_ERR (ibv_reg_mr(3))",
        |side| atomic_a(side, |rig| Op::FetchAdd(rig.remote(0), 1), ACCESS),
        |side| atomic_b(side, region(access::LOCAL_WRITE | access::REMOTE_WRITE)),
    ),
    two(
        "error.qp_without_write",
        "WRITE to a QP that allows none: REM_ACCESS_ERR, or REM_INV_REQ_ERR as for an operation \
         that the QP does not have (IBTA 11.6.2, ibv_modify_qp(3))",
        |side| remote_a(side, |rig| Op::Write(rig.remote(0)), REFUSED),
        |side| remote_b(side, allows(access::REMOTE_READ)),
    ),
    two(
        "error.qp_without_read",
        "READ from a QP that allows none: as error.qp_without_write (IBTA 11.6.2)",
        |side| remote_a(side, |rig| Op::Read(rig.remote(0)), REFUSED),
        |side| remote_b(side, allows(access::REMOTE_WRITE)),
    ),
    two(
        "error.qp_without_atomic",
        "An atomic on a QP that allows none: as error.qp_without_write (IBTA 11.6.2)",
        |side| atomic_a(side, |rig| Op::FetchAdd(rig.remote(0), 1), REFUSED),
        |side| atomic_b(side, allows(access::REMOTE_WRITE)),
    ),
    two(
        "error.access_event",
        "A remote access error raises QP_ACCESS_ERR at the responder (IBTA 11.6.3.3)",
        access_event_a,
        access_event_b,
    ),
    two(
        "error.bad_lkey_status",
        "A local key that there is not: LOC_PROT_ERR (IBTA 11.6.2)",
        bad_lkey_status_a,
        local_b,
    ),
    two(
        "error.bad_lkey",
        "A local key that there is not: a local error, flushes behind it, and the peer is none \
         the worse (IBTA 11.6.2)",
        |side| local_a(side, |rig| Sge { lkey: rig.mem.lkey() ^ 0x5a, ..rig.sge(0..8) }),
        local_b,
    ),
    two(
        "error.sge_beyond_end",
        "An element that ends beyond its region: as error.bad_lkey (IBTA 11.6.2)",
        |side| local_a(side, |rig| Sge { length: 16, ..rig.sge(MEMORY - 8..MEMORY) }),
        local_b,
    ),
    two(
        "error.read_into_readonly",
        "READ into a region without local write: LOC_PROT_ERR (ibv_reg_mr(3), IBTA 11.6.2)",
        readonly_a,
        local_b,
    ),
    two(
        "error.receive_too_small",
        "SEND that exceeds its receive ends at both sides with an error, takes both QPs to ERR, \
         and touches nothing behind the receive (IBTA 9.9.3.1)",
        |side| bad_receive_a(side, LONG, &RECEIVE_ERRORS),
        |side| too_small_b(side, &RECEIVE_ERRORS),
    ),
    two(
        "error.receive_too_small_status",
        "SEND that exceeds its receive: REM_INV_REQ_ERR for the sender, LOC_LEN_ERR for the \
         receive (IBTA 11.6.2)",
        |side| exact(side, |side| bad_receive_a(side, LONG, &[wc_status::REM_INV_REQ_ERR])),
        |side| exact(side, |side| too_small_b(side, &[wc_status::LOC_LEN_ERR])),
    ),
    two(
        "error.receive_bad_lkey",
        "SEND into a receive with a bad key ends at both sides with an error, and takes both QPs \
         to ERR (IBTA 9.9.3.1)",
        |side| bad_receive_a(side, 64, &RECEIVE_ERRORS),
        |side| bad_lkey_b(side, &RECEIVE_ERRORS),
    ),
    two(
        "error.receive_bad_lkey_status",
        "SEND into a receive with a bad key: REM_OP_ERR for the sender, LOC_PROT_ERR for the \
         receive (IBTA 11.6.2)",
        |side| exact(side, |side| bad_receive_a(side, 64, &[wc_status::REM_OP_ERR])),
        |side| exact(side, |side| bad_lkey_b(side, &[wc_status::LOC_PROT_ERR])),
    ),
    two(
        "error.rnr_never",
        "Without a receive and with rnr_retry 0: RNR_RETRY_EXC_ERR (IBTA 9.7.5.2.8)",
        |side| rnr_a(side, 0),
        |side| rnr_b(side, 0),
    ),
    two(
        "error.rnr_once",
        "Without a receive and with rnr_retry 1: RNR_RETRY_EXC_ERR (IBTA 9.7.5.2.8)",
        |side| rnr_a(side, 1),
        |side| rnr_b(side, 1),
    ),
    two(
        "error.peer_destroyed",
        "A SEND to a QP that has been destroyed: RETRY_EXC_ERR (IBTA 11.6.2)",
        |side| destroyed_a(side, &impatient()),
        |side| destroyed_b(side, &impatient()),
    ),
    two(
        "error.seven_retries",
        "The largest retry count is a count, unlike that of RNR: a SEND to a QP that has been \
         destroyed ends with RETRY_EXC_ERR (IBTA 9.7.6.1.3, 11.6.2)",
        seven_a,
        seven_b,
    ),
    two(
        "error.no_such_peer",
        "A QP may be connected to a number that there is not; its first request ends with \
         RETRY_EXC_ERR (IBTA 11.6.2)",
        nobody_a,
        nobody_b,
    ),
];

/// Bytes of memory of each side.
const MEMORY: usize = 64 * 1024;
const ACCESS: &[u32] = &[wc_status::REM_ACCESS_ERR];
const REFUSED: &[u32] = &[wc_status::REM_ACCESS_ERR, wc_status::REM_INV_REQ_ERR];

fn bad_key(rig: &Rig) -> Remote {
    Remote { rkey: rig.peer.memory.rkey ^ 0x5a, ..rig.peer.memory }
}

fn before(rig: &Rig) -> Remote {
    Remote { addr: rig.peer.memory.addr - 1, ..rig.peer.memory }
}

fn last_bytes(rig: &Rig) -> Remote {
    Remote { addr: u64::MAX - 3, ..rig.peer.memory }
}

/// A peer whose region allows this alone.
fn region(access: u32) -> Plan {
    Plan { access, ..Plan::rc() }
}

/// A peer whose QP allows this alone.
fn allows(access: u32) -> Plan {
    Plan::rc().connect(|options| options.access = access)
}

/// Side A: an empty SEND, a request that must end with one of `statuses`, and what is flushed
/// behind it, signalled or not.
fn remote_a(side: &mut Side, bad: impl Fn(&Rig) -> Op, statuses: &[u32]) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.post_recv(100, 0..8)?;
    side.meet()?;
    let word = [rig.sge(0..8)];
    let list = [
        SendRequest::new(1, Op::Send, &[]),
        SendRequest::new(2, bad(&rig), &word),
        SendRequest::new(3, Op::Send, &word).unsignaled(),
        SendRequest::new(4, Op::Write(rig.remote(0)), &word),
        SendRequest::new(5, Op::Read(rig.remote(0)), &word),
    ];
    rig.qp
        .post_sends(&list)
        .map_err(|(taken, error)| Stop::failed(format!("after {taken} requests: {error}")))?;
    rig.sent(side, 1, wc_opcode::SEND)?;
    rig.send_ends(side, 2, statuses)?;
    for wr_id in 3..=5 {
        rig.send_ends(side, wr_id, &[wc_status::WR_FLUSH_ERR])?;
    }
    rig.recv_ends(side, 100, &[wc_status::WR_FLUSH_ERR])?;
    rig.comes_to(side, qp_state::ERR)?;
    side.nothing(&rig.sends, Duration::ZERO)?;
    side.tell(&[])
}

/// Side B: goes to ERR, and no byte of its memory changes.
fn remote_b(side: &mut Side, plan: Plan) -> Verdict {
    let rig = side.wire(&plan)?;
    let before = pattern(9, MEMORY);
    rig.mem.write(0, &before);
    for wr_id in 1..=3 {
        rig.post_recv(wr_id, 0..8)?;
    }
    side.meet()?;
    rig.received(side, 1, wc_opcode::RECV, 0)?;
    let [] = side.hear()?;
    rig.comes_to(side, qp_state::ERR)?;
    for wr_id in 2..=3 {
        rig.recv_ends(side, wr_id, &[wc_status::WR_FLUSH_ERR])?;
    }
    holds(&rig.mem, 0, &before)
}

fn atomic_a(side: &mut Side, bad: impl Fn(&Rig) -> Op, statuses: &[u32]) -> Verdict {
    side.needs(Feature::Atomics)?;
    remote_a(side, bad, statuses)
}

fn atomic_b(side: &mut Side, plan: Plan) -> Verdict {
    side.needs(Feature::Atomics)?;
    remote_b(side, plan)
}

fn access_event_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.post(&SendRequest::new(1, Op::Write(bad_key(&rig)), &[rig.sge(0..8)]))?;
    rig.send_ends(side, 1, ACCESS)?;
    side.meet()
}

fn access_event_b(side: &mut Side) -> Verdict {
    side.needs(Feature::AccessErrorEvent)?;
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    let event = side.async_event(EventElement::Qp(rig.qp.qp_num()))?;
    same("the event", event_type::name(event.event_type), "QP_ACCESS_ERR")
}

fn local_a(side: &mut Side, bad: impl Fn(&Rig) -> Sge) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let (good, bad) = ([rig.sge(0..8)], [bad(&rig)]);
    let write = Op::Write(rig.remote(0));
    let list = [
        SendRequest::new(1, write, &good),
        SendRequest::new(2, write, &bad),
        SendRequest::new(3, write, &good),
    ];
    // Where a local error keeps out the acknowledgement of an earlier request, that comes first.
    let at_once = side.needs(Feature::AcksAfterLocalError).is_ok();
    let (first, rest) = list.split_at(if at_once { 3 } else { 1 });
    let failed = |(taken, error)| Stop::failed(format!("after {taken} requests: {error}"));
    rig.qp.post_sends(first).map_err(failed)?;
    rig.sent(side, 1, wc_opcode::RDMA_WRITE)?;
    rig.qp.post_sends(rest).map_err(failed)?;
    rig.send_ends(side, 2, side.protection())?;
    rig.send_ends(side, 3, &[wc_status::WR_FLUSH_ERR])?;
    rig.comes_to(side, qp_state::ERR)?;
    side.meet()
}

fn bad_lkey_status_a(side: &mut Side) -> Verdict {
    side.needs(Feature::LocalErrorStatus)?;
    let rig = side.wire(&Plan::rc())?;
    let bad = [Sge { lkey: rig.mem.lkey() ^ 0x5a, ..rig.sge(0..8) }];
    rig.post(&SendRequest::new(1, Op::Write(rig.remote(0)), &bad))?;
    rig.send_ends(side, 1, &[wc_status::LOC_PROT_ERR])?;
    side.meet()
}

fn local_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    same("the state", qp_state::name(rig.qp.state()?), "RTS")
}

fn readonly_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let readonly = rig.pd.register(4096, access::REMOTE_READ)?;
    rig.post(&SendRequest::new(1, Op::Read(rig.remote(0)), &[readonly.slice(0..8)]))?;
    rig.send_ends(side, 1, &[wc_status::LOC_PROT_ERR])?;
    holds(&readonly, 0, &[0; 8])?;
    rig.comes_to(side, qp_state::ERR)?;
    side.meet()
}

/// A message of two packets, so that its first could land.
const LONG: usize = 5000;

/// What a device may call a receive that does not fit, or cannot be written, at either side.
const RECEIVE_ERRORS: [u32; 5] = [
    wc_status::LOC_LEN_ERR,
    wc_status::LOC_PROT_ERR,
    wc_status::LOC_QP_OP_ERR,
    wc_status::REM_INV_REQ_ERR,
    wc_status::REM_OP_ERR,
];

fn exact(side: &mut Side, run: impl Fn(&mut Side) -> Verdict) -> Verdict {
    side.needs(Feature::ReceiveErrorStatus)?;
    run(side)
}

fn bad_receive_a(side: &mut Side, size: usize, statuses: &[u32]) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    rig.post(&SendRequest::new(1, Op::Send, &[rig.sge(0..size)]))?;
    rig.send_ends(side, 1, statuses)?;
    rig.comes_to(side, qp_state::ERR)?;
    side.meet()
}

fn too_small_b(side: &mut Side, statuses: &[u32]) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.mem.write(0, &[0xaa; LONG]);
    rig.post_recv(1, 0..LONG - 1)?;
    rig.post_recv(2, 0..LONG)?;
    side.meet()?;
    rig.recv_ends(side, 1, statuses)?;
    rig.recv_ends(side, 2, &[wc_status::WR_FLUSH_ERR])?;
    rig.comes_to(side, qp_state::ERR)?;
    // Whatever landed, nothing landed behind the receive.
    holds(&rig.mem, LONG - 1, &[0xaa])?;
    side.meet()
}

fn bad_lkey_b(side: &mut Side, statuses: &[u32]) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let bad = Sge { lkey: rig.mem.lkey() ^ 0x5a, ..rig.sge(0..64) };
    rig.qp.post_recv(1, &[bad])?;
    rig.post_recv(2, 0..64)?;
    side.meet()?;
    rig.recv_ends(side, 1, statuses)?;
    rig.recv_ends(side, 2, &[wc_status::WR_FLUSH_ERR])?;
    rig.comes_to(side, qp_state::ERR)?;
    side.meet()
}

fn rnr_plan(retries: u8) -> Plan {
    Plan::rc().connect(|options| {
        options.rnr_retry = retries;
        // Code 8: 0.16 ms (IBTA table 45).
        options.min_rnr_timer = 8;
    })
}

fn rnr_a(side: &mut Side, retries: u8) -> Verdict {
    let rig = side.wire(&rnr_plan(retries))?;
    let word = [rig.sge(0..8)];
    // An earlier WRITE needs no receive.
    rig.post(&SendRequest::new(1, Op::Write(rig.remote(0)), &word))?;
    rig.post(&SendRequest::new(2, Op::Send, &word))?;
    rig.sent(side, 1, wc_opcode::RDMA_WRITE)?;
    rig.send_ends(side, 2, &[wc_status::RNR_RETRY_EXC_ERR])?;
    rig.comes_to(side, qp_state::ERR)?;
    side.meet()
}

fn rnr_b(side: &mut Side, retries: u8) -> Verdict {
    let rig = side.wire(&rnr_plan(retries))?;
    side.meet()?;
    same("the state of the peer", qp_state::name(rig.qp.state()?), "RTS")
}

/// Gives up after some tenths of a second (IBTA 9.7.6.1.3: between 1 and 4 times 3 × 67 ms).
fn impatient() -> Plan {
    Plan::rc().connect(|options| {
        options.timeout = 14;
        options.retry_cnt = 2;
    })
}

fn finds_nobody(side: &mut Side, rig: &Rig) -> Verdict {
    rig.post_recv(100, 0..8)?;
    let word = [rig.sge(0..8)];
    rig.post(&SendRequest::new(1, Op::Send, &word))?;
    rig.post(&SendRequest::new(2, Op::Write(rig.remote(0)), &word))?;
    rig.send_ends(side, 1, &[wc_status::RETRY_EXC_ERR])?;
    rig.send_ends(side, 2, &[wc_status::WR_FLUSH_ERR])?;
    rig.recv_ends(side, 100, &[wc_status::WR_FLUSH_ERR])?;
    rig.comes_to(side, qp_state::ERR)
}

fn destroyed_a(side: &mut Side, plan: &Plan) -> Verdict {
    let rig = side.wire(plan)?;
    side.meet()?;
    finds_nobody(side, &rig)
}

fn destroyed_b(side: &mut Side, plan: &Plan) -> Verdict {
    drop(side.wire_alone(plan)?);
    side.meet()
}

/// Shorter waits, and more of them.
fn seven_retries() -> Plan {
    Plan::rc().connect(|options| {
        options.timeout = 12;
        options.retry_cnt = 7;
    })
}

fn seven_a(side: &mut Side) -> Verdict {
    side.needs(Feature::SevenRetries)?;
    let plan = seven_retries();
    let rig = side.wire(&plan)?;
    same("retry_cnt", rig.qp.query()?.retry_cnt, 7)?;
    side.meet()?;
    finds_nobody(side, &rig)
}

fn seven_b(side: &mut Side) -> Verdict {
    side.needs(Feature::SevenRetries)?;
    destroyed_b(side, &seven_retries())
}

fn nobody_a(side: &mut Side) -> Verdict {
    let plan = impatient();
    let rig = side.wire(&plan)?;
    // Another QP, to the number of a QP that the other side had and has no more.
    let [gone] = side.hear()?;
    let qp = side.qp(&rig, &plan, None)?;
    let towards = attrs::Towards {
        address: rig.peer.address,
        qpn: gone as u32 & abi::MASK_24,
        psn: 5,
        mtu: rig.peer.mtu,
    };
    for (attr, mask) in [
        attrs::init(qp_type::RC, &plan.connect),
        attrs::rtr(qp_type::RC, &plan.connect, &towards),
        attrs::rts(qp_type::RC, &plan.connect, 5),
    ] {
        qp.device().modify(&attr, mask)?;
    }
    finds_nobody(side, &rig.with(qp))
}

fn nobody_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&impatient())?;
    let number = side.qp(&rig, &impatient(), None)?.qp_num();
    side.tell(&[u64::from(number)])
}
