//! ERR and destruction with work outstanding.

use super::prelude::*;
use crate::attrs;

pub(super) const CASES: &[Case] = &[
    two(
        "flush.outstanding",
        "modify to ERR completes every outstanding send and receive with WR_FLUSH_ERR, signalled \
         or not, in the order of posting (IBTA 10.3.1.7)",
        outstanding_a,
        outstanding_b,
    ),
    one(
        "flush.receives_in_init",
        "Receives posted in INIT are flushed when the QP goes to ERR (IBTA 10.3.1.7)",
        receives_in_init,
    ),
    two(
        "flush.posted_in_err",
        "A send request posted in ERR is taken and flushed (IBTA 10.3.1.7)",
        posted_in_err_a,
        quiet_peer,
    ),
    two(
        "flush.received_in_err",
        "A receive posted in ERR is taken and flushed (IBTA 10.3.1.7)",
        received_in_err_a,
        quiet_peer,
    ),
    two(
        "flush.executed_first",
        "What had completed before ERR keeps its success: only the rest is flushed \
         (IBTA 10.3.1.7)",
        executed_first_a,
        executed_first_b,
    ),
    two(
        "flush.nothing_lands",
        "After modify to ERR has returned at the target, no WRITE lands (IBTA 10.3.1.7)",
        nothing_lands_a,
        nothing_lands_b,
    ),
    two(
        "flush.reset",
        "RESET drops outstanding work without completions (IBTA 10.3.1.1)",
        reset_a,
        quiet_peer,
    ),
    two(
        "flush.destroy",
        "A QP may be destroyed with work outstanding, and other QPs of its CQ go on \
         (ibv_destroy_qp(3), IBTA 10.2.4.5)",
        |side| destroy_a(side, false),
        destroy_b,
    ),
    two(
        "flush.destroy_cleans",
        "The outstanding work of a destroyed QP leaves no completion (IBTA C10-7)",
        |side| destroy_a(side, true),
        destroy_b,
    ),
];

/// Requests outstanding in these cases.
const N: u64 = 12;

fn outstanding_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    for i in 0..N {
        rig.post_recv(100 + i, 0..64)?;
    }
    // The first SEND finds no receive, so all of them stay where they are.
    let sge = [rig.sge(0..64)];
    for i in 0..N {
        let op = if i % 3 == 1 { Op::Write(rig.remote(0)) } else { Op::Send };
        let request = SendRequest::new(i, op, &sge);
        rig.post(&if i % 2 == 0 { request } else { request.unsignaled() })?;
    }
    side.nothing(&rig.sends, QUIET)?;
    rig.qp.set_state(qp_state::ERR)?;
    for i in 0..N {
        rig.send_ends(side, i, &[wc_status::WR_FLUSH_ERR])?;
    }
    for i in 0..N {
        rig.recv_ends(side, 100 + i, &[wc_status::WR_FLUSH_ERR])?;
    }
    same("the state", qp_state::name(rig.qp.state()?), "ERR")?;
    side.nothing(&rig.sends, Duration::ZERO)?;
    side.nothing(&rig.recvs, Duration::ZERO)?;
    side.meet()
}

fn outstanding_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    // Nothing of it has arrived, and a receive posted now finds nothing.
    rig.post_recv(1, 0..64)?;
    side.nothing(&rig.recvs, QUIET)?;
    same("the state of the peer", qp_state::name(rig.qp.state()?), "RTS")
}

fn quiet_peer(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

fn receives_in_init(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let parts = side.parts(&plan)?;
    let qp = side.qp(&parts, &plan, None)?;
    let (attr, mask) = attrs::init(qp_type::RC, &plan.connect);
    qp.device().modify(&attr, mask)?;
    for i in 0..N {
        qp.post_recv(i, &[parts.sge(0..64)])?;
    }
    side.nothing(&parts.recvs, Duration::ZERO)?;
    qp.set_state(qp_state::ERR)?;
    for i in 0..N {
        let wc = side.completion(&parts.recvs)?;
        flushed(&wc, i)?;
        same("qp_num", wc.qp_num, qp.qp_num())?;
    }
    Ok(())
}

fn posted_in_err_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.qp.set_state(qp_state::ERR)?;
    let sge = [rig.sge(0..8)];
    for i in 0..4 {
        let request = SendRequest::new(i, Op::Send, &sge);
        rig.post(&if i == 2 { request.unsignaled() } else { request })?;
    }
    for i in 0..4 {
        rig.send_ends(side, i, &[wc_status::WR_FLUSH_ERR])?;
    }
    Ok(())
}

fn received_in_err_a(side: &mut Side) -> Verdict {
    side.needs(Feature::FlushOfLateReceives)?;
    let rig = side.wire(&Plan::rc())?;
    rig.post_recv(0, 0..8)?;
    rig.qp.set_state(qp_state::ERR)?;
    rig.post_recv(1, 0..8)?;
    rig.post_recv(2, 0..8)?;
    for i in 0..3 {
        rig.recv_ends(side, i, &[wc_status::WR_FLUSH_ERR])?;
    }
    Ok(())
}

fn executed_first_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    side.meet()?;
    // Three find receives, the fourth waits.
    let sge = [rig.sge(0..64)];
    for i in 0..5 {
        rig.post(&SendRequest::new(i, Op::Send, &sge))?;
    }
    rig.sent(side, 0, wc_opcode::SEND)?;
    side.meet()?;
    rig.qp.set_state(qp_state::ERR)?;
    let mut wcs = side.completions(&rig.sends, 4)?;
    // The acknowledgements of the second and third may still have been on their way.
    let executed = wcs.iter().take_while(|wc| wc.status == wc_status::SUCCESS).count();
    ensure(executed <= 2, &format!("{} sends succeed, and there were 3 receives", executed + 1))?;
    let rest = wcs.split_off(executed);
    for (wr_id, wc) in (1..).zip(&wcs) {
        success(wc, wr_id, wc_opcode::SEND)?;
    }
    for (wr_id, wc) in (1 + executed as u64..).zip(&rest) {
        flushed(wc, wr_id)?;
    }
    side.meet()
}

fn executed_first_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    for i in 0..3 {
        rig.post_recv(i, 0..64)?;
    }
    side.meet()?;
    for i in 0..3 {
        rig.received(side, i, wc_opcode::RECV, 64)?;
    }
    side.meet()?;
    side.meet()?;
    // A packet of the fourth, which was tried again and again, may still be on its way. The fifth was never sent.
    rig.post_recv(3, 0..64)?;
    rig.post_recv(4, 0..64)?;
    if let Some(wc) = side.within(&rig.recvs, QUIET)? {
        success(&wc, 3, wc_opcode::RECV)?;
    }
    side.nothing(&rig.recvs, QUIET)
}

fn nothing_lands_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc().connect(|options| {
        options.timeout = 14;
        options.retry_cnt = 1;
    }))?;
    side.meet()?;
    // Writes until its QP breaks, which it does once the target is in ERR.
    let sge = [rig.sge(0..4096)];
    let (mut posted, mut done) = (0, 0);
    loop {
        while posted - done < 16 {
            posted += 1;
            rig.mem.write(0, &pattern(posted, 4096));
            rig.post(&SendRequest::new(posted, Op::Write(rig.remote(0)), &sge))?;
        }
        let wc = side.completion(&rig.sends)?;
        done += 1;
        same("wr_id", wc.wr_id, done)?;
        if wc.status != wc_status::SUCCESS {
            let lost = [wc_status::RETRY_EXC_ERR, wc_status::REM_INV_REQ_ERR];
            return ended(&wc, done, &lost);
        }
        if done == 20 {
            side.tell(&[])?;
        }
    }
}

fn nothing_lands_b(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    rig.post_recv(1, 4096..8192)?;
    side.meet()?;
    let [] = side.hear()?;
    rig.qp.set_state(qp_state::ERR)?;
    // The polled flush of a receive posted before is the barrier where modify alone is none.
    rig.recv_ends(side, 1, &[wc_status::WR_FLUSH_ERR])?;
    let mine = pattern(0, 4096);
    rig.mem.write(0, &mine);
    std::thread::sleep(QUIET);
    holds(&rig.mem, 0, &mine)
}

fn reset_a(side: &mut Side) -> Verdict {
    let rig = side.wire(&Plan::rc())?;
    let sge = [rig.sge(0..8)];
    for i in 0..4 {
        rig.post(&SendRequest::new(i, Op::Send, &sge))?;
        rig.post_recv(i, 0..8)?;
    }
    rig.qp.set_state(qp_state::RESET)?;
    side.nothing(&rig.sends, QUIET)?;
    side.nothing(&rig.recvs, Duration::ZERO)
}

fn destroy_a(side: &mut Side, clean: bool) -> Verdict {
    if clean {
        side.needs(Feature::CleansCq)?;
    }
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let (stays, goes) = (side.join(&parts, &plan, None)?, side.join(&parts, &plan, None)?);
    let sge = [parts.sge(0..64)];
    for i in 0..N {
        goes.post(&SendRequest::new(i, Op::Send, &sge))?;
        goes.post_recv(i, 64..128)?;
    }
    drop(goes);
    if clean {
        side.nothing(&parts.sends, QUIET)?;
        side.nothing(&parts.recvs, Duration::ZERO)?;
    }
    side.meet()?;
    let stays = side.keep(stays);
    for i in 0..N {
        stays.post(&SendRequest::new(1000 + i, Op::Send, &sge))?;
    }
    let mut next = 1000;
    while next < 1000 + N {
        let wc = side.completion(&parts.sends)?;
        if clean || wc.qp_num == stays.qp.qp_num() {
            success(&wc, next, wc_opcode::SEND)?;
            next += 1;
        }
    }
    Ok(())
}

fn destroy_b(side: &mut Side) -> Verdict {
    let plan = Plan::rc();
    let parts = Arc::new(side.parts(&plan)?);
    let (stays, orphan) = (side.join(&parts, &plan, None)?, side.join(&parts, &plan, None)?);
    let (stays, _orphan) = (side.keep(stays), side.keep(orphan));
    side.meet()?;
    for i in 0..N {
        stays.post_recv(i, 0..64)?;
    }
    for i in 0..N {
        stays.received(side, i, wc_opcode::RECV, 64)?;
    }
    Ok(())
}
