//! Completion channels: when an armed CQ wakes its program.

use super::prelude::*;
use crate::rig::{RECV_EVENT, SEND_EVENT};
use std::time::Instant;

pub(super) const CASES: &[Case] = &[
    two(
        "channel.event",
        "An armed CQ raises one event for the next completion, none when it is not armed, and \
         the event names the CQ (ibv_req_notify_cq(3), ibv_get_cq_event(3))",
        event_a,
        event_b,
    ),
    two(
        "channel.armed_twice",
        "A CQ that is armed twice raises one event (ibv_req_notify_cq(3))",
        armed_twice_a,
        armed_twice_b,
    ),
    two(
        "channel.solicited",
        "A CQ armed for solicited completions sleeps through others, and wakes for a SEND or \
         WRITE_WITH_IMM with the solicited flag (ibv_req_notify_cq(3), IBTA 11.4.2.2)",
        solicited_a,
        solicited_b,
    ),
    two(
        "channel.solicited_error",
        "A CQ armed for solicited completions wakes for one in error (IBTA 11.4.2.2)",
        solicited_error_a,
        solicited_error_b,
    ),
    two(
        "channel.two_queues",
        "CQs that share a channel raise an event each (ibv_create_comp_channel(3))",
        two_queues_a,
        two_queues_b,
    ),
    one(
        "channel.none",
        "A channel without events is not readable (ibv_create_comp_channel(3))",
        none,
    ),
    two(
        "channel.kept",
        "An event raised before the program looks is kept for it (ibv_get_cq_event(3))",
        kept_a,
        kept_b,
    ),
];

fn plan() -> Plan {
    Plan { channel: true, ..Plan::rc() }
}

/// The next event of the rig's channel must be this CQ's.
#[track_caller]
fn wakes(side: &mut Side, rig: &Rig, user: u64) -> Verdict {
    let until = side.until();
    same("the CQ of the event", rig.channel()?.wait(until)?, Some(user))
}

/// No event comes.
#[track_caller]
fn sleeps(side: &mut Side, rig: &Rig) -> Verdict {
    let until = side.until().min(Instant::now() + QUIET);
    same("an event that must not come", rig.channel()?.wait(until)?, None)
}

/// Sends `n` messages one after the other, each when the other side is ready for it.
fn messages(side: &mut Side, rig: &Rig, n: u64) -> Verdict {
    for i in 0..n {
        let [solicited] = side.hear()?;
        let sge = [rig.sge(0..8)];
        let op = if solicited == 2 { Op::WriteImm(rig.remote(64), 1) } else { Op::Send };
        let request = SendRequest::new(i, op, &sge);
        rig.post(&if solicited > 0 { request.solicited() } else { request })?;
        let opcode = if solicited == 2 { wc_opcode::RDMA_WRITE } else { wc_opcode::SEND };
        rig.sent(side, i, opcode)?;
    }
    Ok(())
}

/// The receive side of one of [`messages`], before anything of it is polled.
fn ask(side: &mut Side, rig: &Rig, solicited: u64) -> Verdict {
    rig.post_recv(7, 0..8)?;
    side.tell(&[solicited])
}

fn take(side: &mut Side, rig: &Rig) -> Verdict {
    let wc = side.completion(&rig.recvs)?;
    ended(&wc, 7, &[wc_status::SUCCESS])
}

fn event_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    messages(side, &rig, 3)
}

fn event_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    // Not armed.
    ask(side, &rig, 0)?;
    take(side, &rig)?;
    sleeps(side, &rig)?;
    // Armed: one event, for one completion.
    rig.recvs.req_notify(false)?;
    ask(side, &rig, 0)?;
    wakes(side, &rig, RECV_EVENT)?;
    take(side, &rig)?;
    // Not armed again.
    ask(side, &rig, 0)?;
    take(side, &rig)?;
    sleeps(side, &rig)
}

fn armed_twice_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    messages(side, &rig, 2)
}

fn armed_twice_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    rig.recvs.req_notify(false)?;
    rig.recvs.req_notify(false)?;
    ask(side, &rig, 0)?;
    wakes(side, &rig, RECV_EVENT)?;
    take(side, &rig)?;
    ask(side, &rig, 0)?;
    take(side, &rig)?;
    sleeps(side, &rig)
}

fn solicited_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    messages(side, &rig, 3)
}

fn solicited_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    rig.recvs.req_notify(true)?;
    ask(side, &rig, 0)?;
    take(side, &rig)?;
    sleeps(side, &rig)?;
    ask(side, &rig, 1)?;
    wakes(side, &rig, RECV_EVENT)?;
    take(side, &rig)?;
    rig.recvs.req_notify(true)?;
    ask(side, &rig, 2)?;
    wakes(side, &rig, RECV_EVENT)?;
    take(side, &rig)
}

fn solicited_error_a(side: &mut Side) -> Verdict {
    side.needs(Feature::ErrorIsSolicited)?;
    let rig = side.wire(&plan())?;
    rig.post_recv(1, 0..8)?;
    rig.recvs.req_notify(true)?;
    rig.qp.set_state(qp_state::ERR)?;
    wakes(side, &rig, RECV_EVENT)?;
    rig.recv_ends(side, 1, &[wc_status::WR_FLUSH_ERR])
}

fn solicited_error_b(side: &mut Side) -> Verdict {
    side.needs(Feature::ErrorIsSolicited)?;
    side.wire(&plan())?;
    Ok(())
}

fn two_queues_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    rig.sends.req_notify(false)?;
    rig.recvs.req_notify(false)?;
    rig.post_recv(1, 0..8)?;
    rig.post(&SendRequest::new(2, Op::Write(rig.remote(0)), &[rig.sge(0..8)]))?;
    wakes(side, &rig, SEND_EVENT)?;
    rig.sent(side, 2, wc_opcode::RDMA_WRITE)?;
    side.meet()?;
    wakes(side, &rig, RECV_EVENT)?;
    rig.received(side, 1, wc_opcode::RECV, 8)?;
    Ok(())
}

fn two_queues_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    side.meet()?;
    rig.post(&SendRequest::new(1, Op::Send, &[rig.sge(0..8)]))?;
    rig.sent(side, 1, wc_opcode::SEND)?;
    Ok(())
}

fn none(side: &mut Side) -> Verdict {
    let parts = side.parts(&plan())?;
    let channel = parts.channel()?;
    same("an event of no CQ", channel.wait(Instant::now())?, None)?;
    parts.recvs.req_notify(false)?;
    same("an event without a completion", channel.wait(Instant::now() + QUIET)?, None)
}

fn kept_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    messages(side, &rig, 1)?;
    side.tell(&[])
}

fn kept_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&plan())?;
    rig.recvs.req_notify(false)?;
    ask(side, &rig, 0)?;
    // Polling does not take the event away.
    take(side, &rig)?;
    let [] = side.hear()?;
    wakes(side, &rig, RECV_EVENT)
}
