//! Completion queues.

use super::prelude::*;
use crate::rig::SEND_EVENT;
use sojourn_fabric::abi::QpCap;
use sojourn_fabric::virt::QpOptions;

pub(super) const CASES: &[Case] = &[
    one(
        "cq.sizes",
        "A CQ has at least the entries asked for; none, or more than the device has, is refused \
         (ibv_create_cq(3))",
        sizes,
    ),
    two(
        "cq.shared",
        "Completions of several QPs and of both queues meet in one CQ, each with its QP's number \
         and in its queue's order (ibv_poll_cq(3))",
        shared_a,
        shared_b,
    ),
    two(
        "cq.resize",
        "Resizing keeps the completions that are there, and refuses fewer entries than those \
         (ibv_resize_cq(3))",
        resize_a,
        peer,
    ),
    two(
        "cq.overrun",
        "A completion that finds its CQ full raises CQ_ERR (IBTA C11-39, 11.6.3.4)",
        overrun_a,
        overrun_b,
    ),
    two(
        "cq.overrun_stops",
        "A QP whose completion was lost goes to ERR (IBTA 11.6.3.4)",
        overrun_stops_a,
        overrun_stops_b,
    ),
];

fn peer(side: &mut Side) -> Verdict {
    side.wire(&Plan::rc())?;
    Ok(())
}

fn sizes(side: &mut Side) -> Verdict {
    for wanted in [1, 7, 100] {
        let cq = side.context().create_cq(wanted)?;
        let got = cq.device().cqe();
        ensure(got >= wanted, &format!("{wanted} entries asked for, {got} granted"))?;
        same("completions of a fresh CQ", cq.poll(&mut [abi::Wc::default(); 4])?, 0)?;
    }
    refused("a CQ of 0 entries", side.context().create_cq(0), &[libc::EINVAL])?;
    let most = side.caps().device.max_cqe as u32;
    let beyond = side.context().create_cq(most.saturating_add(1));
    refused("a CQ beyond max_cqe", beyond, &[libc::EINVAL, libc::ENOMEM])
}

/// QPs of `cq.shared`.
const QPS: usize = 4;
/// Messages of each of them, in each direction.
const EACH: u64 = 24;

/// Both sides of `cq.shared`: [`QPS`] connections, all of whose completions go to one queue.
fn shared(side: &mut Side, sends: bool) -> Verdict {
    let plan = Plan { cqe: 1024, ..Plan::rc() };
    let mut parts = side.parts(&plan)?;
    parts.recvs = parts.sends.clone();
    let parts = Arc::new(parts);
    let mut rigs = Vec::new();
    for _ in 0..QPS {
        rigs.push(side.join(&parts, &plan, None)?);
    }
    let rigs = side.keep(rigs);
    for rig in rigs.iter() {
        for i in 0..EACH {
            rig.post_recv(i, 0..64)?;
        }
    }
    side.meet()?;
    let sge = [parts.sge(64..128)];
    if sends {
        for i in 0..EACH {
            for rig in rigs.iter() {
                rig.post(&SendRequest::new(1000 + i, Op::Send, &sge))?;
            }
        }
    } else {
        // The other direction, one QP after the other.
        for rig in rigs.iter() {
            for i in 0..EACH {
                rig.post(&SendRequest::new(1000 + i, Op::SendImm(i as u32), &sge))?;
            }
        }
    }
    let mut next: Vec<(u64, u64)> = vec![(1000, 0); QPS];
    for wc in side.completions(&parts.sends, 2 * QPS * EACH as usize)? {
        same("the status", wc_status::name(wc.status), "SUCCESS")?;
        let index = rigs.iter().position(|rig| rig.qp.qp_num() == wc.qp_num);
        let Some(index) = index else {
            return Err(Stop::failed(format!("a completion of QP {:#x}, not ours", wc.qp_num)));
        };
        let (send, recv) = &mut next[index];
        let counter = if wc.opcode == wc_opcode::RECV { recv } else { send };
        same("wr_id", wc.wr_id, *counter)?;
        *counter += 1;
    }
    for counters in next {
        same("the counters of a QP", counters, (1000 + EACH, EACH))?;
    }
    side.nothing(&parts.sends, Duration::ZERO)
}

fn shared_a(side: &mut Side) -> Verdict {
    shared(side, true)
}

fn shared_b(side: &mut Side) -> Verdict {
    shared(side, false)
}

fn resize_a(side: &mut Side) -> Verdict {
    const THERE: u64 = 20;
    let rig = side.wire(&Plan { cqe: 32, ..Plan::rc() })?;
    let sge = [rig.sge(0..8)];
    for i in 0..THERE {
        rig.post(&SendRequest::new(i, Op::Write(rig.remote(0)), &sge))?;
    }
    let polled = 2;
    for i in 0..polled {
        rig.sent(side, i, wc_opcode::RDMA_WRITE)?;
    }
    rig.sends.resize(300)?;
    ensure(rig.sends.device().cqe() >= 300, "300 entries were asked for")?;
    for i in polled..THERE {
        rig.sent(side, i, wc_opcode::RDMA_WRITE)?;
    }
    rig.mem.write(0, &[1; 8]);
    for i in 100..150 {
        rig.post(&SendRequest::new(i, Op::Write(rig.remote(0)), &sge))?;
    }
    // What a READ after them brings tells that they have completed; until then the CQ, had it 16
    // entries, could be overrun.
    rig.post(&SendRequest::new(150, Op::Read(rig.remote(0)), &[rig.sge(8..16)]))?;
    side.wait("the result of the READ", || Ok(holds(&rig.mem, 8, &[1; 8]).ok()))?;
    // Completions may be taken from the device late: until enough are there, the CQ may be made as
    // small as this.
    side.wait("the refusal of a size below what is there", || match rig.sends.resize(16) {
        Err(error) if error.errno() == libc::EINVAL => Ok(Some(())),
        Err(error) => Err(Stop::failed(error)),
        Ok(()) => {
            rig.sends.resize(300)?;
            Ok(None)
        }
    })?;
    for i in 100..150 {
        rig.sent(side, i, wc_opcode::RDMA_WRITE)?;
    }
    rig.sent(side, 150, wc_opcode::RDMA_READ)?;
    rig.sends.resize(16)?;
    rig.post(&SendRequest::new(7, Op::Write(rig.remote(0)), &sge))?;
    rig.sent(side, 7, wc_opcode::RDMA_WRITE)?;
    refused("a CQ of 0 entries", rig.sends.resize(0), &[libc::EINVAL])
}

fn overrun_plan() -> Plan {
    let plan = Plan::rc();
    Plan { cap: QpCap { max_send_wr: 512, ..plan.cap }, cqe: 15, channel: true, ..plan }
}

/// Fills the send CQ beyond its end.
fn overrun(side: &mut Side, rig: &Rig) -> Verdict {
    let room = rig.sends.device().cqe();
    ensure(room < 500, &format!("15 entries asked for, {room} granted"))?;
    let sge = [rig.sge(0..8)];
    for i in 0..u64::from(room) + 4 {
        // Once its CQ is overrun the QP may be beyond posting.
        if rig.qp.post_send(&SendRequest::new(i, Op::Write(rig.remote(0)), &sge)).is_err() {
            break;
        }
    }
    let event = side.async_event(EventElement::Cq(SEND_EVENT))?;
    same("the event", event_type::name(event.event_type), "CQ_ERR")
}

fn overrun_a(side: &mut Side) -> Verdict {
    side.needs(Feature::CqOverrun)?;
    let rig = side.wire(&overrun_plan())?;
    overrun(side, &rig)
}

fn overrun_b(side: &mut Side) -> Verdict {
    side.needs(Feature::CqOverrun)?;
    side.wire(&overrun_plan())?;
    Ok(())
}

fn overrun_stops_a(side: &mut Side) -> Verdict {
    side.needs(Feature::CqOverrunStopsQps)?;
    let plan = overrun_plan();
    let rig = side.wire(&plan)?;
    overrun(side, &rig)?;
    rig.comes_to(side, qp_state::ERR)?;
    // Another CQ of the context is none the worse.
    let other = side.context().create_cq(16)?;
    let pair = rig.pd.create_pair(&QpOptions::rc(&other), &plan.connect)?;
    pair.0.post_send(&SendRequest::new(1, Op::Write(rig.mem.remote(0)), &[rig.sge(8..16)]))?;
    success(&side.completion(&other)?, 1, wc_opcode::RDMA_WRITE)
}

fn overrun_stops_b(side: &mut Side) -> Verdict {
    side.needs(Feature::CqOverrunStopsQps)?;
    side.wire(&overrun_plan())?;
    Ok(())
}
