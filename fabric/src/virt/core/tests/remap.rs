//! Relocating a context over the device in memory: every step is the test's.

use super::*;
use crate::device::DeviceContext;
use crate::virt::core::qp::QpCore;
use crate::virt::core::relocate;
use crate::virt::{Failover, Relocation, SharedReceiveQueue};
use std::sync::Arc;

pub(super) fn go(process: &Process, device: Arc<dyn DeviceContext>) -> Relocation {
    relocate(process.context.device(), &device).unwrap()
}

/// Goes over to another port.
fn move_to(process: &Process, fabric: &Fabric, lid: u16) -> Relocation {
    go(process, fabric.open(Port::infiniband(lid)))
}

fn numbered(range: std::ops::Range<u64>) -> Vec<(u64, u32)> {
    successes(range)
}

/// Promise: all that a program knows survives: names, states, connections, its regions' keys.
#[test]
fn names_survive_a_move_and_everything_goes_on() {
    let Two { fabric, a, b, qa, qb, .. } = two();
    let before = (qa.endpoint().unwrap(), qb.endpoint().unwrap(), a.memory.rkey(), b.memory.rkey());
    for (round, mover) in [&a, &b, &a, &b].into_iter().enumerate() {
        let moved = move_to(mover, &fabric, 200 + round as u16);
        assert_eq!((moved.queue_pairs, moved.peers, moved.retries), (1, 1, 0));
        let names: Vec<_> = moved.phases.iter().map(|phase| phase.name).collect();
        assert_eq!(names, ["prepare", "quiesce", "down", "switch", "cleanup"]);
        assert!(moved.blackout() > Duration::ZERO);
        let after =
            (qa.endpoint().unwrap(), qb.endpoint().unwrap(), a.memory.rkey(), b.memory.rkey());
        assert_eq!(before, after);
        let state = (qa.state().unwrap(), qb.state().unwrap());
        assert_eq!(state, (qp_state::RTS, qp_state::RTS));
        for (from, to, there, here) in [(&a, &b, &qb, &qa), (&b, &a, &qa, &qb)] {
            let text = format!("round {round}");
            there.post_recv(7, &[to.memory.slice(0..64)]).unwrap();
            from.memory.write(100, text.as_bytes());
            let sge = [from.memory.slice(100..100 + text.len())];
            here.post_send(&SendRequest::new(8, Op::Write(to.memory.remote(200)), &sge)).unwrap();
            here.post_send(&SendRequest::new(9, Op::Send, &sge)).unwrap();
            assert_eq!(ids(&from.drain()), [(8, 0), (9, 0)]);
            let received = to.drain();
            assert_eq!((ids(&received), received[0].src_qp), (vec![(7, 0)], here.qp_num()));
            let mut bytes = vec![0; text.len()];
            to.memory.read(200, &mut bytes);
            assert_eq!(bytes, text.as_bytes());
        }
    }
    fabric.assert_no_overrun();
}

/// Promises 1 and 2: what is in flight is executed once, and completes once, in order, with the
/// signalling asked for; whichever end moves, and however much of it has been executed.
#[test]
fn what_is_in_flight_is_done_once_and_in_order() {
    for executed in 0..12 {
        for moves_sender in [true, false] {
            let Two { fabric, a, b, qa, qb, .. } = two();
            // So that keys are known.
            let sge = [a.memory.slice(0..4)];
            qa.post_send(&SendRequest::new(0, Op::Write(b.memory.remote(0)), &sge)).unwrap();
            assert_eq!(a.drain().len(), 1);
            for id in 0..12 {
                qb.post_recv(id, &[b.memory.slice(64 * id as usize..64 * id as usize + 64)])
                    .unwrap();
            }
            fabric.on_command();
            let counter = b.memory.remote(2048);
            for id in 0..12u64 {
                a.memory.write(8 * id as usize, &(id + 1).to_ne_bytes());
                let sge = [a.memory.slice(8 * id as usize..8 * id as usize + 8)];
                let op = match id % 4 {
                    0 | 3 => Op::Send,
                    1 => Op::Write(b.memory.remote(1024 + 8 * id as usize)),
                    _ => Op::FetchAdd(counter, 1),
                };
                let back = [a.memory.slice(512 + 8 * id as usize..520 + 8 * id as usize)];
                let request = match op {
                    Op::FetchAdd(..) => SendRequest::new(id, op, &back),
                    op => SendRequest::new(id, op, &sge),
                };
                let quiet = id % 4 == 1 || id % 4 == 3;
                qa.post_send(&if quiet { request.unsignaled() } else { request }).unwrap();
            }
            fabric.step(executed);
            move_to(if moves_sender { &a } else { &b }, &fabric, 300);
            fabric.at_once();
            let signaled: Vec<_> = (0..12).filter(|id| id % 4 == 0 || id % 4 == 2).collect();
            let done: Vec<_> = signaled.iter().map(|id| (*id, 0)).collect();
            assert_eq!(ids(&a.drain()), done, "{executed} executed, sender {moves_sender}");
            let received = b.drain();
            assert_eq!(ids(&received), numbered(0..6));
            for (i, id) in [0u64, 3, 4, 7, 8, 11].into_iter().enumerate() {
                let mut bytes = [0; 8];
                b.memory.read(64 * i, &mut bytes);
                assert_eq!(u64::from_ne_bytes(bytes), id + 1);
            }
            let mut bytes = [0; 8];
            b.memory.read(2048, &mut bytes);
            assert_eq!(u64::from_ne_bytes(bytes), 3, "each atomic was executed once");
            for (i, id) in [2u64, 6, 10].into_iter().enumerate() {
                a.memory.read(512 + 8 * id as usize, &mut bytes);
                assert_eq!(u64::from_ne_bytes(bytes), i as u64);
            }
            // And on it goes.
            let sge = [a.memory.slice(0..4)];
            for id in 0..30 {
                qa.post_send(&SendRequest::new(id, Op::Write(b.memory.remote(0)), &sge)).unwrap();
                assert_eq!(ids(&a.drain()), [(id, 0)]);
            }
            fabric.assert_no_overrun();
        }
    }
}

/// Promise 3: a WRITE that was cut in the middle goes on at its first packet that has not landed; what
/// has landed is not written again, since the peer may have seen it, and changed it.
#[test]
fn a_write_that_was_cut_goes_on_where_it_was() {
    for with_imm in [false, true] {
        for moves_sender in [true, false] {
            let Two { fabric, a, b, qa, qb, .. } = two();
            let sge = [a.memory.slice(0..4096)];
            qa.post_send(&SendRequest::new(0, Op::Write(b.memory.remote(0)), &sge)).unwrap();
            assert_eq!(a.drain().len(), 1);
            qb.post_recv(5, &[]).unwrap();
            qb.post_recv(6, &[b.memory.slice(0..0)]).unwrap();
            fabric.on_command();
            a.memory.write(0, &[7; 4096]);
            let to = b.memory.remote(0);
            let op = if with_imm { Op::WriteImm(to, 77) } else { Op::Write(to) };
            qa.post_send(&SendRequest::new(1, op, &sge)).unwrap();
            qa.post_send(&SendRequest::new(2, Op::SendImm(78), &[])).unwrap();
            fabric.cut(3);
            // The peer has seen it.
            b.memory.write(0, &[9; 3072]);
            move_to(if moves_sender { &a } else { &b }, &fabric, 300);
            fabric.at_once();
            assert_eq!(ids(&a.drain()), numbered(1..3));
            let received = b.drain();
            if with_imm {
                assert_eq!(ids(&received), numbered(5..7));
                assert_eq!(received[0].byte_len, 4096, "as if it had never been cut");
                assert_eq!(u32::from_be(received[0].imm_data), 77);
            } else {
                assert_eq!(ids(&received), numbered(5..6));
            }
            let mut bytes = [0; 4096];
            b.memory.read(0, &mut bytes);
            assert!(bytes[..3072].iter().all(|byte| *byte == 9), "written again");
            assert!(bytes[3072..].iter().all(|byte| *byte == 7), "lost");
        }
    }
}

/// Promise: completions that nobody has polled, and notifications that were armed, survive.
#[test]
fn unread_completions_and_armed_notifications_survive() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    let channel = b.context.create_channel().unwrap();
    let cq = b.context.create_cq_on(16, &channel, 99).unwrap();
    let (qa, qb) = (a.qp(), b.pd.create_qp(&QpOptions::rc(&cq)).unwrap());
    connect(&qa, &qb);
    let sge = [a.memory.slice(0..4)];
    for id in 0..6 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
    }
    for id in 0..3 {
        qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    // Three that nobody has read; then armed for the next.
    let soon = || Instant::now() + Duration::from_millis(20);
    move_to(&b, &fabric, 300);
    assert_eq!(ids(&drain(&cq)), numbered(0..3));
    cq.req_notify(false).unwrap();
    assert_eq!(channel.wait(soon()).unwrap(), None);
    move_to(&b, &fabric, 301);
    move_to(&a, &fabric, 302);
    assert_eq!(channel.wait(soon()).unwrap(), None, "nothing has come, and nothing is told");
    qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    assert_eq!(channel.wait(soon()).unwrap(), Some(99));
    assert_eq!(channel.wait(soon()).unwrap(), None, "one event for one notification");
    assert_eq!(ids(&drain(&cq)), numbered(3..4));
    assert_eq!(ids(&a.drain()), numbered(0..4));
}

/// Promise: queue pairs that share their receives move together with them, in the order in which those
/// were posted; those of a process that talks to itself, too.
#[test]
fn shared_receives_and_loops_move() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let a = Process::new(&job, &fabric, 1);
    let srq = a.pd.create_srq(abi::SrqAttr { max_wr: 16, max_sge: 1, srq_limit: 0 }, 0).unwrap();
    let shared = || a.pd.create_qp(&QpOptions { srq: Some(&srq), ..QpOptions::rc(&a.cq) }).unwrap();
    let pairs = [(a.qp(), shared()), (a.qp(), shared())];
    pairs.iter().for_each(|(one, other)| connect(one, other));
    for id in 0..8 {
        srq.post_recv(100 + id, &[a.memory.slice(64 * id as usize..64 * id as usize + 64)])
            .unwrap();
    }
    fabric.on_command();
    let sge = [a.memory.slice(2048..2052)];
    for id in 0..6 {
        pairs[id as usize % 2].0.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    fabric.step(2);
    move_to(&a, &fabric, 300);
    fabric.at_once();
    let done = a.drain();
    let (received, sent): (Vec<_>, Vec<_>) = done.iter().partition(|wc| wc.wr_id >= 100);
    assert_eq!(ids(&received), numbered(100..106));
    for (at, (one, _)) in pairs.iter().enumerate() {
        let own: Vec<_> = sent.iter().filter(|wc| wc.qp_num == one.qp_num()).copied().collect();
        let expected: Vec<_> = (0..6).filter(|id| id % 2 == at as u64).map(|id| (id, 0)).collect();
        assert_eq!(ids(&own), expected);
    }
    fabric.assert_no_overrun();
}

/// Promise: datagrams find their way after a move, in both directions, and senders are named as
/// before.
#[test]
fn datagrams_find_their_way_after_a_move() {
    let (Two { fabric, a, b, qa, qb, .. }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let back = b.pd.create_ah(&qa.endpoint().unwrap()).unwrap();
    let qkey = ConnectOptions::default().qkey;
    for round in 0..4 {
        qb.post_recv(round, &[b.memory.slice(0..200)]).unwrap();
        qa.post_recv(round, &[a.memory.slice(0..200)]).unwrap();
        let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey };
        qa.post_send(&SendRequest::inline(1, Op::Send, b"ping").to(to)).unwrap();
        let to = Datagram { ah: &back, qpn: qa.qp_num(), qkey };
        qb.post_send(&SendRequest::inline(2, Op::Send, b"pong").to(to)).unwrap();
        let (at_a, at_b) = (a.drain(), [b.drain(), drain(&cq)].concat());
        let from = |wcs: &[Wc]| {
            let received: Vec<_> =
                wcs.iter().filter(|wc| wc.opcode == wc_opcode::RECV).copied().collect();
            assert_eq!(received.len(), 1, "round {round}");
            (received[0].src_qp, received[0].slid)
        };
        assert_eq!(from(&at_b), (qa.qp_num(), 1));
        assert_eq!(from(&at_a), (qb.qp_num(), 2));
        move_to(if round % 2 == 0 { &a } else { &b }, &fabric, 300 + round as u16);
    }
}

/// Promise: whoever receives a datagram knows its sender, also where the answer to a question of before the
/// move comes after it: that told of the queue pair that was left.
#[test]
fn a_late_answer_does_not_announce_a_new_sender() {
    let (Two { job, fabric, a, b, qa, qb }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    qb.post_recv(1, &[b.memory.slice(0..200)]).unwrap();
    job.set_slow();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    qa.post_send(&SendRequest::inline(2, Op::Send, b"ping").to(to)).unwrap();
    move_to(&a, &fabric, 300);
    while job.answer() > 0 {}
    let received: Vec<_> = [b.drain(), drain(&cq)].concat();
    assert_eq!(
        received.iter().map(|wc| (wc.wr_id, wc.src_qp)).collect::<Vec<_>>(),
        [(1, qa.qp_num())]
    );
}

/// Promise: what waits to be flushed is flushed once, and a queue pair at ERR stays there.
#[test]
fn queue_pairs_at_err_move_with_what_is_to_be_flushed() {
    let Two { fabric, a, b, qa, qb, .. } = two();
    fabric.on_command();
    let sge = [a.memory.slice(0..4)];
    qa.post_recv(1, &sge).unwrap();
    for id in 2..5 {
        qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    qa.set_state(qp_state::ERR).unwrap();
    move_to(&a, &fabric, 300);
    qa.post_send(&SendRequest::new(5, Op::Send, &sge)).unwrap();
    let mut done = ids(&a.drain());
    done.sort_unstable();
    let flush = wc_status::WR_FLUSH_ERR;
    assert_eq!(done, (1..6).map(|id| (id, flush)).collect::<Vec<_>>());
    assert_eq!(qa.state().unwrap(), qp_state::ERR);
    // A fresh start, on the new device.
    fabric.at_once();
    qa.set_state(qp_state::RESET).unwrap();
    qb.set_state(qp_state::RESET).unwrap();
    connect(&qa, &qb);
    qb.post_recv(6, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(7, Op::Send, &sge)).unwrap();
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(7, 0)], vec![(6, 0)]));
}

/// Promise 5: where a device is too small the program goes on where it was, and the error names the
/// limit, the need and what needs it.
#[test]
fn a_device_that_is_too_small_is_refused() {
    let Two { fabric, a, b, qa, qb, .. } = two();
    type Limit = fn(&mut abi::DeviceAttr);
    let limits: [(Limit, &str); 6] = [
        (|attr| attr.max_qp = 0, "max_qp of 0"),
        (|attr| attr.max_qp_wr = 10, "max_send_wr of"),
        (|attr| attr.max_sge = 0, "max_send_sge of"),
        (|attr| attr.max_cqe = 3, "holds 3 at most"),
        (|attr| attr.max_qp_rd_atom = 0, "max_qp_rd_atom of 0"),
        (|attr| attr.atomic_cap = 0, "no atomics"),
    ];
    for (round, (limit, text)) in limits.into_iter().enumerate() {
        let small = fabric.open_with(Port::infiniband(300), limit);
        let error = relocate(a.context.device(), &small).unwrap_err().to_string();
        assert!(error.contains(text) && error.starts_with("moving to test0: "), "{error}");
        let id = round as u64;
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        let sge = [a.memory.slice(0..4)];
        qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
        assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(id, 0)], vec![(id, 0)]));
    }
    let raw = fabric.open(Port::infiniband(300));
    let error = relocate(&raw, &fabric.open(Port::infiniband(301))).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP, "{error}");
}

/// Promise: a queue pair that leads out of the job keeps its process where it is, and is named.
#[test]
fn foreign_queue_pairs_keep_a_process_where_it_is() {
    let Two { fabric, a, qa: _qa, qb: _qb, .. } = two();
    let foreign = a.qp();
    let end = crate::virt::Endpoint { lid: 0xc123, ..foreign.endpoint().unwrap() };
    foreign.connect(&end, &ConnectOptions::default()).unwrap();
    let device = fabric.open(Port::infiniband(300));
    let error = relocate(a.context.device(), &device).unwrap_err();
    assert!(error.to_string().contains(&format!("{:#x}", foreign.qp_num())), "{error}");
    drop(foreign);
    relocate(a.context.device(), &device).unwrap();
}

/// Promise: a peer that is dead holds up nobody: its connections end as verbs end them, and the others
/// go on.
#[test]
fn a_dead_peer_does_not_hold_up_a_move() {
    let Two { job, fabric, a, qa, qb: _qb, .. } = two();
    let c = Process::new(&job, &fabric, 3);
    let (qac, qc) = (a.qp(), c.qp());
    connect(&qac, &qc);
    job.kill(2);
    fabric.on_command();
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    qac.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    qc.post_recv(3, &[c.memory.slice(0..64)]).unwrap();
    move_to(&a, &fabric, 300);
    fabric.at_once();
    let done = a.drain();
    let of = |qp: &QueuePair| {
        ids(&done.iter().filter(|wc| wc.qp_num == qp.qp_num()).copied().collect::<Vec<_>>())
    };
    assert_eq!(of(&qac), numbered(2..3));
    assert_eq!(of(&qa), [(1, wc_status::RETRY_EXC_ERR)]);
    assert_eq!(ids(&c.drain()), numbered(3..4));
}

/// Promise 5: a try that was taken back, whoever made it, is in the way of none that follows.
#[test]
fn a_try_that_was_taken_back_is_in_nobodys_way() {
    let Two { job, fabric, a, b, qa, qb } = two();
    for round in 0..3 {
        let foreign = a.qp();
        let end = crate::virt::Endpoint { lid: 0xc123, ..foreign.endpoint().unwrap() };
        foreign.connect(&end, &ConnectOptions::default()).unwrap();
        let device = fabric.open(Port::infiniband(300));
        assert!(relocate(a.context.device(), &device).is_err());
        drop(foreign);
        move_to(&b, &fabric, 310 + round);
        // And one of its peers is busy: waited for by who goes first, and by another tried again, and
        // again, until it is not.
        job.busy_for(3);
        assert_eq!(move_to(&a, &fabric, 320 + round).retries, 0);
        job.busy_for(3);
        assert_eq!(move_to(&b, &fabric, 330 + round).retries, 3);
        let id = u64::from(round);
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        qa.post_send(&SendRequest::new(id, Op::Send, &[a.memory.slice(0..4)])).unwrap();
        assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(id, 0)], vec![(id, 0)]));
    }
}

pub(super) fn core_of(qp: &QueuePair) -> Arc<QpCore> {
    let device: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(qp.device()) as _;
    let device = device.downcast::<crate::virt::core::qp::VirtualQp>();
    Arc::clone(device.unwrap_or_else(|_| panic!("a virtual queue pair")).core())
}

/// Promise 2: receives that came back empty are not told as messages: the peer would take SENDs for
/// delivered that never came.
#[test]
fn flushed_receives_are_no_messages() {
    let Two { a, b, qa, qb, .. } = two();
    for id in 0..5 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
    }
    for id in 0..2 {
        qa.post_send(&SendRequest::new(id, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    }
    qb.set_state(qp_state::ERR).unwrap();
    // One more, which is ours to flush.
    qb.post_recv(5, &[b.memory.slice(0..64)]).unwrap();
    assert_eq!(b.drain().len(), 6);
    assert_eq!(core_of(&qb).executed(true).unwrap().messages, 2);
}

/// Promise: of two processes that move at once one goes first, however long their tries take and however
/// they fall; then the other has its turn.
#[test]
fn of_two_that_move_at_once_the_first_goes_first() {
    use crate::names::{Fetch, ProcessId, Record};
    use sojourn_logging::remap::{Answer, GroupId, Offer, Request};
    let Two { job, a: _a, b: _b, qa, qb, .. } = two();
    let (qa, qb) = (core_of(&qa), core_of(&qb));
    let process = |qp: &QpCore| qp.local().grant().process;
    let ask = |by: &QpCore, of: &QpCore, id, what| match job
        .ask_as(process(by).0, process(of), &Fetch::Remap(GroupId(id), what))
        .unwrap()
    {
        Record::Remap(answer) => answer,
        other => panic!("{other:?}"),
    };
    let prepare = |by: &QpCore, of: &QpCore| {
        let end = by.end().unwrap();
        let offer = Offer { qpn: of.qpn, mover_qpn: by.qpn, incarnation: 1, end, psn: 9 };
        Request::Prepare { links: vec![offer] }
    };
    assert_eq!((process(&qa), process(&qb)), (ProcessId(1), ProcessId(2)));
    let (one, two) = (&qa.local().remaps, &qb.local().remaps);
    let (first, second) = (one.begin().unwrap(), two.begin().unwrap());
    assert_eq!(ask(&qa, &qb, 1, prepare(&qa, &qb)), Answer::Busy);
    assert_eq!(ask(&qb, &qa, 1, prepare(&qb, &qa)), Answer::Busy);
    assert_eq!((one.yields(), two.yields()), (false, true));
    drop(second);
    assert!(two.begin().is_none());
    // The first has been waiting for that.
    assert!(matches!(ask(&qa, &qb, 1, prepare(&qa, &qb)), Answer::Prepared(_)));
    assert_eq!(ask(&qa, &qb, 1, Request::Abort), Answer::Aborted);
    drop(first);
    // When it wants to move again, the second is due.
    one.contend();
    assert!(one.begin().is_none());
    let second = two.begin().unwrap();
    assert!(!two.yields());
    assert!(matches!(ask(&qb, &qa, 2, prepare(&qb, &qa)), Answer::Prepared(_)));
    assert_eq!(ask(&qb, &qa, 2, Request::Abort), Answer::Aborted);
    drop(second);
    assert!(one.begin().is_some());
}

/// Promise: processes that move at once all come through, without one try after the other.
#[test]
fn two_that_move_at_once_both_come_through() {
    let Two { fabric, a, b, qa, qb, .. } = two();
    for round in 0..20 {
        std::thread::scope(|scope| {
            let one = scope.spawn(|| move_to(&a, &fabric, 200 + 2 * round));
            let other = scope.spawn(|| move_to(&b, &fabric, 201 + 2 * round));
            one.join().unwrap();
            other.join().unwrap();
        });
        let id = u64::from(round);
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        qa.post_send(&SendRequest::new(id, Op::Send, &[a.memory.slice(0..4)])).unwrap();
        assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(id, 0)], vec![(id, 0)]));
    }
}

/// Promise 3: a path that fails flushes its receives before anybody takes it down, and that is a barrier as
/// good as any: what has been executed is not told as unsettled.
#[test]
fn a_flush_before_the_take_down_is_a_barrier() {
    let Two { fabric, a: _a, b, qa: _qa, qb, .. } = two();
    for id in 0..3 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
    }
    let core = core_of(&qb);
    core.stop();
    fabric.break_path(core.end().unwrap().qpn);
    // Withheld: the program is not to notice.
    assert!(b.drain().is_empty());
    // Of what is posted from here on the device gives nothing back, as rxe does.
    fabric.deaf_in_err();
    qb.post_recv(3, &[b.memory.slice(0..64)]).unwrap();
    core.take_down();
    assert!(b.drain().is_empty());
    assert!(core.executed(false).is_some_and(|executed| executed.settled));
}

/// Promise: what fails without its path being to blame fails for the program as well, though there would be
/// another device: each completion comes, once.
#[test]
fn what_is_not_the_fault_of_a_path_fails() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let failover = Failover::To(vec!["soft0".to_owned()]);
    let policy = Policy { failover, ..Policy::default() };
    let process =
        |n: u16| Process::with(&job, &fabric, n.into(), Port::infiniband(n + 100), &policy);
    let (a, b) = (process(1), process(2));
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    for id in 0..3 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
    }
    fabric.break_path(core_of(&qb).end().unwrap().qpn);
    let until = std::time::Instant::now() + Duration::from_secs(10);
    let mut flushed = Vec::new();
    while flushed.len() < 3 && std::time::Instant::now() < until {
        flushed.extend(ids(&b.drain()));
    }
    assert_eq!(flushed, (0..3).map(|id| (id, wc_status::WR_FLUSH_ERR)).collect::<Vec<_>>());
    assert_eq!(qb.state().unwrap(), qp_state::ERR);
}

/// Promise: who follows does not take a queue pair that its program is just connecting for one that is
/// connected to nobody: the mover would go on without its peer.
#[test]
fn a_queue_pair_that_is_being_connected_is_waited_for() {
    use crate::names::{Fetch, ProcessId, Record};
    use sojourn_logging::remap::{Answer, GroupId, Offer, Request};
    let Two { job, a: _a, b: _b, qa, qb, .. } = two();
    let end = core_of(&qa).end().unwrap();
    // As if it were not known yet that it is this one.
    let mover_qpn = qa.qp_num() + 1;
    let offer = Offer { qpn: qb.qp_num(), mover_qpn, incarnation: 1, end, psn: 9 };
    let ask = |group: u64| {
        let what = Fetch::Remap(GroupId(group), Request::Prepare { links: vec![offer] });
        match job.ask_as(1, ProcessId(2), &what).unwrap() {
            Record::Remap(answer) => answer,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(core_of(&qb).while_it_stays(|| ask(5)), Answer::Busy);
    assert_eq!(ask(6), Answer::Prepared(vec![None]));
}

/// Promise: a group whose end the follower has not heard of is in nobody's way.
#[test]
fn a_later_group_takes_the_place_of_an_earlier_one() {
    use crate::names::{Fetch, ProcessId, Record};
    use sojourn_logging::remap::{Answer, GroupId, Offer, Request};
    let Two { job, fabric, a, b, qa, qb } = two();
    let end = core_of(&qa).end().unwrap();
    let offer = Offer { qpn: qb.qp_num(), mover_qpn: qa.qp_num(), incarnation: 1, end, psn: 9 };
    let ask = |group: u64, request: Request<_>| {
        let what = Fetch::Remap(GroupId(group), request);
        match job.ask_as(1, ProcessId(2), &what).unwrap() {
            Record::Remap(answer) => answer,
            other => panic!("{other:?}"),
        }
    };
    let prepare = || Request::Prepare { links: vec![offer] };
    assert!(matches!(ask(5, prepare()), Answer::Prepared(_)));
    assert_eq!(ask(5, Request::Quiesce), Answer::Quiet(true));
    // Its Abort is lost; the next try begins.
    assert!(matches!(ask(6, prepare()), Answer::Prepared(_)));
    assert_eq!(ask(5, Request::Quiesce), Answer::Unknown);
    // Nothing of what comes late ends the later one.
    assert!(matches!(ask(5, prepare()), Answer::Refused(_)));
    assert_eq!(ask(6, Request::Quiesce), Answer::Quiet(true));
    assert_eq!(ask(6, Request::Abort), Answer::Aborted);
    assert_eq!(ask(6, Request::Finish { cuts: vec![] }), Answer::Unknown, "it did not finish");
    move_to(&b, &fabric, 300);
    qb.post_recv(1, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(2, 0)], vec![(1, 0)]));
}

/// Promise: where the service stops before a follower has destroyed what it left, that is destroyed all the
/// same: no move of its queue pair is under way any more, and the program can move on with it.
#[test]
fn what_a_follower_has_left_is_destroyed_though_its_service_stops() {
    let Two { job, fabric, a, b, qa, qb } = two();
    job.stop_running();
    move_to(&a, &fabric, 300);
    let moved = move_to(&b, &fabric, 310);
    assert_eq!(moved.retries, 0, "its queue pair is between two devices no longer");
    qb.post_recv(1, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(1, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (numbered(1..2), numbered(1..2)));
    drop(qb);
}

/// Two processes whose devices tell so much, and a queue pair of each with a send queue so short that a
/// record follows each WRITE, where there are records.
fn two_with(evidence: Evidence) -> Two {
    let (job, fabric) = (Job::default(), Fabric::default());
    let policy = Policy { evidence, ..Policy::default() };
    let a = Process::with(&job, &fabric, 1, Port::infiniband(101), &policy);
    let b = Process::with(&job, &fabric, 2, Port::infiniband(102), &policy);
    let short = |process: &Process| {
        let options = QpOptions::rc(&process.cq);
        let cap = QpCap { max_send_wr: 4, ..options.cap };
        process.pd.create_qp(&QpOptions { cap, ..options }).unwrap()
    };
    let (qa, qb) = (short(&a), short(&b));
    connect(&qa, &qb);
    // So that keys are known.
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(9, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    assert_eq!(a.drain().len(), 1);
    Two { job, fabric, a, b, qa, qb }
}

/// Posts these requests, of which the device tells nothing but of the last: `s` a SEND, `w` a WRITE, `r` a
/// READ, `a` an atomic.
fn post_quietly(two: &Two, ops: &[char]) {
    let sge = [two.a.memory.slice(0..8)];
    for (id, op) in ops.iter().enumerate() {
        let op = match op {
            's' => Op::Send,
            'w' => Op::Write(two.b.memory.remote(8)),
            'r' => Op::Read(two.b.memory.remote(16)),
            _ => Op::FetchAdd(two.b.memory.remote(2048), 1),
        };
        let request = SendRequest::new(id as u64, op, &sge);
        let quiet = id + 1 < ops.len() && !matches!(op, Op::Read(_) | Op::FetchAdd(..));
        two.qa.post_send(&if quiet { request.unsignaled() } else { request }).unwrap();
    }
}

/// Promise 3: each source decides what it can, and no more. What a delivered message or a record proves is
/// done, messages that were not delivered are done again, and a WRITE or an atomic of which nobody can
/// tell ends with an error, and all behind it. A packet number tells of everything.
#[test]
fn each_source_decides_what_it_can() {
    type Succeed = [usize; 3];
    const SOURCES: [Evidence; 3] = [Evidence::Psn, Evidence::Record, Evidence::Counts];
    // What is posted, how many are executed, and how many complete with success by each source.
    let cases: [(&[char], usize, Succeed); 9] = [
        (&['s', 's', 's'], 1, [3, 3, 3]),
        (&['w', 's', 's'], 2, [3, 3, 3]),
        (&['s', 'w', 's'], 3, [3, 3, 3]),
        (&['s', 'w', 'w'], 1, [3, 1, 1]),
        (&['s', 'r', 's'], 1, [3, 3, 3]),
        (&['w', 's', 'w'], 1, [3, 3, 0]),
        (&['w', 'w', 'w'], 2, [3, 2, 0]),
        (&['w', 'w', 's'], 2, [3, 3, 0]),
        (&['w', 'a', 's'], 1, [3, 1, 0]),
    ];
    for (ops, executed, succeed) in cases {
        for (evidence, succeed) in SOURCES.into_iter().zip(succeed) {
            let case = format!("{ops:?}, {executed} executed, {evidence:?}");
            let two = two_with(evidence);
            let Two { fabric, a, b, qb, .. } = &two;
            for id in 0..3 {
                qb.post_recv(id, &[b.memory.slice(64..128)]).unwrap();
            }
            fabric.on_command();
            post_quietly(&two, ops);
            // A record is a request like others, behind its WRITE.
            let records = ops[..executed].iter().filter(|op| **op == 'w').count();
            let records = if evidence == Evidence::Record { records } else { 0 };
            fabric.step(executed + records);
            move_to(b, fabric, 300);
            fabric.at_once();
            let done = ids(&a.drain());
            let last = (ops.len() - 1) as u64;
            if succeed == ops.len() {
                assert_eq!(done.last(), Some(&(last, wc_status::SUCCESS)), "{case}: {done:?}");
            } else {
                // The first of which nobody can tell.
                let first = (succeed as u64, wc_status::RETRY_EXC_ERR);
                assert!(done.contains(&first), "{case}: {done:?}");
                let behind = (last, wc_status::WR_FLUSH_ERR);
                assert!(first.0 == last || done.contains(&behind), "{case}: {done:?}");
            }
            let received = b.drain().iter().filter(|wc| wc.status == wc_status::SUCCESS).count();
            let sends = ops[..succeed].iter().filter(|op| **op == 's').count();
            assert_eq!(received, sends, "{case}: each message once");
            fabric.assert_no_overrun();
        }
    }
}

/// Promise 3: a record that did not arrive proves nothing, though its WRITE did.
#[test]
fn a_record_that_did_not_arrive_proves_nothing() {
    let two = two_with(Evidence::Record);
    two.fabric.on_command();
    post_quietly(&two, &['w', 'w', 'w']);
    // The first, its record, and the second.
    two.fabric.step(3);
    move_to(&two.b, &two.fabric, 300);
    two.fabric.at_once();
    let ends = [(1, wc_status::RETRY_EXC_ERR), (2, wc_status::WR_FLUSH_ERR)];
    assert_eq!(ids(&two.a.drain()), ends);
}

/// Promise 3: a record tells of all paths of a connection, and its word is found on every new device, and by
/// every new connection.
#[test]
fn records_go_on_over_moves() {
    let two = two_with(Evidence::Record);
    let Two { fabric, a, b, qa, qb, .. } = &two;
    for round in 0..4 {
        fabric.on_command();
        post_quietly(&two, &['w', 'w', 'w', 'w']);
        fabric.step(6);
        // Three of them, with their records: only of the last nobody can tell, and that is drained.
        move_to(if round % 2 == 0 { b } else { a }, fabric, 300 + round);
        fabric.at_once();
        let done = ids(&a.drain());
        assert_eq!(done, [(3, wc_status::RETRY_EXC_ERR)], "round {round}");
        for qp in [qa, qb] {
            qp.set_state(qp_state::RESET).unwrap();
        }
        connect(qa, qb);
        let sge = [a.memory.slice(0..8)];
        for id in 0..10 {
            qa.post_send(&SendRequest::new(id, Op::Write(b.memory.remote(0)), &sge)).unwrap();
            assert_eq!(ids(&a.drain()), [(id, 0)]);
        }
        // All of it over a second path of the same connection.
        move_to(b, fabric, 310 + round);
        qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(0)), &sge)).unwrap();
        assert_eq!(ids(&a.drain()), [(1, 0)]);
    }
    fabric.assert_no_overrun();
}

/// Promise 3: where no number tells of them, WRITEs that are slow are waited for as atomics are: longer than
/// what can be decided by counting. Those behind a message that is waited for in vain are not.
#[test]
fn writes_that_are_slow_are_waited_for_where_no_number_tells_of_them() {
    let cases: [(Evidence, &[char], bool); 5] = [
        (Evidence::Record, &['w'], false),
        (Evidence::Record, &['w', 's'], false),
        (Evidence::Record, &['s', 's'], true),
        (Evidence::Psn, &['w'], true),
        (Evidence::Psn, &['a'], false),
    ];
    for (evidence, ops, quiet) in cases {
        let two = two_with(evidence);
        two.fabric.on_command();
        post_quietly(&two, ops);
        let core = core_of(&two.qa);
        core.stop();
        assert!(!core.is_quiet(), "{evidence:?}, {ops:?}");
        std::thread::sleep(Duration::from_millis(110));
        assert_eq!(core.is_quiet(), quiet, "{evidence:?}, {ops:?}");
        core.go_on();
    }
    let two = two_with(Evidence::Record);
    two.fabric.on_command();
    let sge = [two.a.memory.slice(0..8)];
    for (id, op) in [(0, Op::Send), (1, Op::Write(two.b.memory.remote(8)))] {
        two.qa.post_send(&SendRequest::new(id, op, &sge)).unwrap();
    }
    let core = core_of(&two.qa);
    core.stop();
    std::thread::sleep(Duration::from_millis(110));
    assert!(core.is_quiet());
}

/// Promise 3: what was recorded of a connection says nothing of the next one.
#[test]
fn a_connection_that_begins_anew_has_no_record() {
    let two = two_with(Evidence::Record);
    // Its word holds 1.
    for qp in [&two.qa, &two.qb] {
        qp.set_state(qp_state::RESET).unwrap();
    }
    connect(&two.qa, &two.qb);
    two.fabric.on_command();
    post_quietly(&two, &['w', 'w', 'w']);
    move_to(&two.b, &two.fabric, 300);
    two.fabric.at_once();
    let done = ids(&two.a.drain());
    assert_eq!(done.first(), Some(&(0, wc_status::RETRY_EXC_ERR)), "{done:?}");
}

/// Promise 1: records have slots of their own: a program may fill its send queue as before, again and
/// again, and all may come back flushed.
#[test]
fn records_take_no_slot_of_the_programs() {
    for depth in [1, 4, 7, 33, 64, 200] {
        let Two { fabric, a, b, .. } = two_with(Evidence::Record);
        let deep = |process: &Process| {
            let options = QpOptions::rc(&process.cq);
            let cap = QpCap { max_send_wr: depth, ..options.cap };
            process.pd.create_qp(&QpOptions { cap, ..options }).unwrap()
        };
        let (qa, qb) = (deep(&a), deep(&b));
        connect(&qa, &qb);
        let sge = [a.memory.slice(0..8)];
        let write = |id: u32| {
            let request = SendRequest::new(id.into(), Op::Write(b.memory.remote(0)), &sge);
            qa.post_send(&if id + 1 == depth { request } else { request.unsignaled() })
        };
        qa.post_send(&SendRequest::new(0, Op::Write(b.memory.remote(0)), &sge)).unwrap();
        a.drain();
        for _ in 0..3 {
            fabric.on_command();
            (0..depth).for_each(|id| write(id).unwrap());
            assert_eq!(write(depth).unwrap_err().errno(), libc::ENOMEM, "{depth} are out");
            assert!(fabric.outstanding() > depth as usize, "records are among them");
            fabric.at_once();
            assert_eq!(ids(&a.drain()), [(u64::from(depth) - 1, wc_status::SUCCESS)]);
        }
        fabric.on_command();
        (0..depth).for_each(|id| write(id).unwrap());
        qa.set_state(qp_state::ERR).unwrap();
        let done = ids(&a.drain());
        let all = (0..u64::from(depth)).map(|id| (id, wc_status::WR_FLUSH_ERR));
        assert_eq!(done, all.collect::<Vec<_>>());
        fabric.assert_no_overrun();
    }
}

/// Promise: where the packet number is live nothing is added to what the program posts; nor where WRITEs
/// are followed by messages.
#[test]
fn records_go_only_where_they_are_needed() {
    for (evidence, ops, more) in [
        (Evidence::Psn, &['w', 'w', 'w'], 0),
        (Evidence::Counts, &['w', 'w', 'w'], 0),
        (Evidence::Record, &['w', 'w', 'w'], 3),
        (Evidence::Record, &['s', 'r', 's'], 0),
    ] {
        let two = two_with(evidence);
        two.fabric.on_command();
        post_quietly(&two, ops);
        assert_eq!(two.fabric.outstanding(), ops.len() + more, "{evidence:?}, {ops:?}");
    }
}

/// Promise 1: where a record is the first to find that its peer is gone, the program hears of that by its
/// next request, with the status that tells why.
#[test]
fn a_record_that_fails_says_why() {
    for posted_before in [true, false] {
        let Two { fabric, a, b, qa, qb, .. } = two_with(Evidence::Record);
        let sge = [a.memory.slice(0..8)];
        let write = |id| SendRequest::new(id, Op::Write(b.memory.remote(0)), &sge);
        fabric.on_command();
        qa.post_send(&write(1)).unwrap();
        fabric.step(1);
        assert_eq!(ids(&a.drain()), [(1, wc_status::SUCCESS)]);
        if posted_before {
            qa.post_send(&write(2)).unwrap();
        }
        drop(qb);
        fabric.at_once();
        let mut done = ids(&a.drain());
        if !posted_before {
            assert_eq!(done, [], "the program has nothing out");
            qa.post_send(&write(2)).unwrap();
            done = ids(&a.drain());
        }
        qa.post_send(&write(3)).unwrap();
        done.extend(ids(&a.drain()));
        let ends = [(2, wc_status::RETRY_EXC_ERR), (3, wc_status::WR_FLUSH_ERR)];
        assert_eq!(done, ends, "posted before: {posted_before}");
    }
}

/// Promise: a queue pair that has just failed is neither taken for one at ERR nor for one that is whole,
/// before its completions say which it is: a peer that moves meanwhile tries again.
#[test]
fn a_queue_pair_that_has_just_failed_is_waited_for() {
    let Two { fabric, a, b, qa, qb, .. } = two();
    qb.post_recv(1, &[b.memory.slice(0..64)]).unwrap();
    fabric.err_at(102);
    let moved = std::thread::scope(|scope| {
        let late = fabric.clone();
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            late.flush();
        });
        move_to(&a, &fabric, 300)
    });
    // It cannot have been ready before.
    assert!(moved.phases[0].took >= Duration::from_millis(40), "{moved:?}");
    assert_eq!(ids(&b.drain()), [(1, wc_status::WR_FLUSH_ERR)]);
    assert_eq!((qa.state().unwrap(), qb.state().unwrap()), (qp_state::RTS, qp_state::ERR));
}

/// Promise 2: what a device gives back as filled at ERR, though nothing has come, is no message: its receive
/// is filled by what comes over the next path.
#[test]
fn receives_that_succeed_falsely_are_no_messages() {
    for shared in [false, true] {
        let (job, fabric) = (Job::default(), Fabric::default());
        let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
        let attr = abi::SrqAttr { max_wr: 16, max_sge: 1, srq_limit: 0 };
        let srq = b.pd.create_srq(attr, 0).unwrap();
        let of_srq = QpOptions { srq: Some(&srq), ..QpOptions::rc(&b.cq) };
        let qb = if shared { b.pd.create_qp(&of_srq).unwrap() } else { b.qp() };
        let qa = a.qp();
        connect(&qa, &qb);
        // As rxe says who made it.
        let rxe = |lid| fabric.open_with(Port::infiniband(lid), |attr| attr.vendor_id = 0xff_ffff);
        go(&b, rxe(300));
        for id in 0..4usize {
            let sge = [b.memory.slice(64 * id..64 * id + 64)];
            match shared {
                true => srq.post_recv(id as u64, &sge).unwrap(),
                false => qb.post_recv(id as u64, &sge).unwrap(),
            }
        }
        fabric.on_command();
        for id in 0..4u64 {
            let sge = [a.memory.slice(8 * id as usize..8 * id as usize + 8)];
            a.memory.write(8 * id as usize, &(id + 1).to_ne_bytes());
            qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
        }
        fabric.step(1);
        fabric.lie_in_err();
        go(&b, rxe(301));
        fabric.at_once();
        assert_eq!((ids(&a.drain()), ids(&b.drain())), (numbered(0..4), numbered(0..4)));
        for id in 0..4u64 {
            let mut bytes = [0; 8];
            b.memory.read(64 * id as usize, &mut bytes);
            assert_eq!(u64::from_ne_bytes(bytes), id + 1);
        }
    }
}

/// Two processes, of which the second has one receive, which is shared.
fn two_with_a_shared_receive() -> (Two, SharedReceiveQueue) {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    let attr = abi::SrqAttr { max_wr: 1, max_sge: 1, srq_limit: 0 };
    let srq = b.pd.create_srq(attr, 0).unwrap();
    let qb = b.pd.create_qp(&QpOptions { srq: Some(&srq), ..QpOptions::rc(&b.cq) }).unwrap();
    let qa = a.qp();
    connect(&qa, &qb);
    srq.post_recv(7, &[b.memory.slice(0..64)]).unwrap();
    (Two { job, fabric, a, b, qa, qb }, srq)
}

/// Promise 3: a shared receive that was in hand and comes back flushed is as good a barrier as one of the queue
/// pair's own: what the packet number proves is not given up.
#[test]
fn a_flushed_shared_receive_is_a_barrier() {
    let (Two { fabric, a: _a, b, qb, qa: _qa, .. }, _srq) = two_with_a_shared_receive();
    fabric.take_in_hand();
    let core = core_of(&qb);
    core.stop();
    core.take_down();
    assert!(b.drain().is_empty());
    assert!(core.executed(false).is_some_and(|executed| executed.settled));
}

/// Promise 2: where a queue pair follows and its shared receive queue stays, the receive that it had in hand
/// for a SEND which was cut is there for the next message.
#[test]
fn a_shared_receive_that_came_back_is_posted_again() {
    let (Two { fabric, a, b, qa, qb: _qb, .. }, _srq) = two_with_a_shared_receive();
    fabric.on_command();
    qa.post_send(&SendRequest::new(1, Op::Send, &[a.memory.slice(0..8)])).unwrap();
    fabric.take_in_hand();
    move_to(&a, &fabric, 300);
    fabric.at_once();
    let success = wc_status::SUCCESS;
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(1, success)], vec![(7, success)]));
}
