//! Holds over the device in memory: a context and its peers stand still, and go on.

use super::remap::go;
use super::*;
use crate::names::{Fetch, ProcessId, Record};
use crate::virt::{Failover, Suspension};
use sojourn_logging::remap::{Answer, GroupId, Request};

/// Beyond anything that these tests take.
fn late() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn shortly() -> Instant {
    Instant::now() + Duration::from_millis(50)
}

fn bytes(process: &Process) -> Vec<u8> {
    let mut all = vec![0; 4096];
    process.memory.read(0, &mut all);
    all
}

/// Two whose keys are known to each other.
fn acquainted() -> Two {
    let it = two();
    for (qp, from, to) in [(&it.qa, &it.a, &it.b), (&it.qb, &it.b, &it.a)] {
        let sge = [from.memory.slice(0..4)];
        qp.post_send(&SendRequest::new(0, Op::Write(to.memory.remote(0)), &sge)).unwrap();
        assert_eq!(from.drain().len(), 1);
    }
    it
}

/// Holds `process` on a thread of its own, and lets the device execute what there is until it is held.
pub(super) fn held_while_stepping(process: &Process, fabric: &Fabric) -> Suspension {
    std::thread::scope(|scope| {
        let held = scope.spawn(|| process.context.suspend(late()));
        while !held.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
            fabric.step(1);
        }
        held.join().unwrap().unwrap()
    })
}

/// Promise: while a context is suspended nothing is handed on either side of its connections, and no byte of its
/// memory changes; afterwards everything goes out, in order, and nothing is lost.
#[test]
fn nothing_lands_while_a_context_is_suspended() {
    let Two { a, b, qa, qb, fabric, .. } = acquainted();
    qb.post_recv(1, &[b.memory.slice(64..128)]).unwrap();
    let mut held = b.context.suspend(late()).unwrap();
    let before = bytes(&b);
    a.memory.write(0, &[7; 64]);
    let sge = [a.memory.slice(0..64)];
    qa.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Write(b.memory.remote(512)), &sge)).unwrap();
    qa.post_send(&SendRequest::new(3, Op::WriteImm(b.memory.remote(1024), 5), &sge)).unwrap();
    let read = [b.memory.slice(2048..2112)];
    qb.post_send(&SendRequest::new(4, Op::Read(a.memory.remote(0)), &read)).unwrap();
    qb.post_recv(2, &[b.memory.slice(128..192)]).unwrap();
    assert_eq!(fabric.outstanding(), 0, "nobody hands anything");
    assert_eq!((a.drain().len(), b.drain().len()), (0, 0));
    assert!(bytes(&b) == before && held.still_held());
    assert!(held.end().unwrap() > Duration::ZERO);
    assert_eq!(ids(&a.drain()), successes(1..4));
    let mut at_b = ids(&b.drain());
    at_b.sort_unstable();
    assert_eq!(at_b, [(1, 0), (2, 0), (4, 0)]);
    let after = bytes(&b);
    for at in [64, 512, 1024, 2048] {
        assert_eq!(after[at..at + 64], [7; 64], "at {at}");
    }
}

/// Promise: what was handed is executed before a hold begins, signalled or not, of either side.
#[test]
fn a_hold_waits_for_what_is_under_way() {
    let Two { a, b, qa, qb, fabric, .. } = acquainted();
    for id in 0..3 {
        qb.post_recv(id, &[b.memory.slice(64 * id as usize..64 * id as usize + 64)]).unwrap();
    }
    fabric.on_command();
    a.memory.write(0, &[7; 64]);
    let sge = [a.memory.slice(0..64)];
    qa.post_send(&SendRequest::new(1, Op::Send, &sge).unsignaled()).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Write(b.memory.remote(512)), &sge).unsignaled()).unwrap();
    qa.post_send(&SendRequest::new(3, Op::Send, &sge).unsignaled()).unwrap();
    let read = [b.memory.slice(2048..2112)];
    qb.post_send(&SendRequest::new(4, Op::Read(a.memory.remote(0)), &read)).unwrap();
    let held = held_while_stepping(&b, &fabric);
    let before = bytes(&b);
    for at in [0, 64, 512, 2048] {
        assert_eq!(before[at..at + 64], [7; 64], "at {at}");
    }
    fabric.at_once();
    assert!(bytes(&b) == before, "nothing was left");
    held.end().unwrap();
    let mut at_b = ids(&b.drain());
    at_b.sort_unstable();
    assert_eq!(at_b, [(0, 0), (1, 0), (4, 0)], "their completions had come");
}

/// Promise: a SEND that waits for a receive keeps nobody from standing still; and it waits on, though the program
/// posts one, until the hold ends.
#[test]
fn a_message_without_a_receive_waits_on() {
    let Two { a, b, qa, qb, .. } = acquainted();
    a.memory.write(0, &[7; 64]);
    let sge = [a.memory.slice(0..64)];
    qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(512)), &sge).unsignaled()).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    qa.post_send(&SendRequest::new(3, Op::Write(b.memory.remote(1024)), &sge)).unwrap();
    let held = b.context.suspend(late()).unwrap();
    let before = bytes(&b);
    assert_eq!(before[512..576], [7; 64], "what stood before it has landed");
    qb.post_recv(9, &[b.memory.slice(64..128)]).unwrap();
    assert!(bytes(&b) == before && b.drain().is_empty());
    held.end().unwrap();
    assert_eq!((ids(&b.drain()), ids(&a.drain())), (successes(9..10), successes(2..4)));
    assert_eq!(bytes(&b)[1024..1088], [7; 64]);
}

/// Promise 5: what is not executed in time takes the hold back; the error names the peer and the step; everything
/// goes on.
#[test]
fn a_hold_that_fails_leaves_everything_as_it_was() {
    let Two { job, a, b, qa, qb, fabric } = acquainted();
    let sge = [a.memory.slice(0..64)];
    fabric.on_command();
    qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(512)), &sge)).unwrap();
    let refused = |process: &Process, errno, texts: [&str; 2]| {
        let error = process.context.suspend(shortly()).err().expect("it is not held");
        assert_eq!(error.errno(), errno, "{error}");
        let text = error.to_string();
        assert!(texts.iter().all(|part| text.contains(part)), "{text}");
    };
    refused(&b, libc::ETIMEDOUT, ["process 1: ", "(drain)"]);
    refused(&a, libc::ETIMEDOUT, ["process 2: ", "(drain)"]);
    fabric.at_once();
    assert_eq!(ids(&a.drain()), successes(1..2));
    job.lose(Some(1));
    refused(&b, libc::ETIMEDOUT, ["process 1: ", "(quiesce)"]);
    job.lose(None);
    qb.post_recv(3, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    assert_eq!((ids(&b.drain()), ids(&a.drain())), (successes(3..4), successes(2..3)));
    let raw = Context::over(fabric.open(Port::infiniband(300)));
    assert_eq!(raw.suspend(late()).err().unwrap().errno(), libc::EOPNOTSUPP);
}

/// Promise: of two that hold each other one waits; and who moves waits for who holds, and the other way round.
#[test]
fn holds_and_moves_wait_for_each_other() {
    let Two { a, b, qa, qb, fabric, .. } = acquainted();
    let held = a.context.suspend(late()).unwrap();
    for process in [&a, &b] {
        let error = process.context.suspend(shortly()).err().expect("they stand still already");
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
    }
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| go(&b, fabric.open(Port::infiniband(300))));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!moved.is_finished(), "it would take down what stands still");
        held.end().unwrap();
        assert!(moved.join().unwrap().retries > 0);
    });
    let held = b.context.suspend(late()).unwrap();
    held.end().unwrap();
    for id in 1..20 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        qa.post_send(&SendRequest::new(id, Op::Send, &[a.memory.slice(0..4)])).unwrap();
        assert_eq!((ids(&b.drain()).len(), ids(&a.drain()).len()), (1, 1));
    }
}

/// Promise: a holder learns that a peer has gone on by itself.
#[test]
fn a_hold_that_has_lapsed_is_none() {
    let Two { job, a, b, qa, qb: _qb, .. } = acquainted();
    let held = b.context.suspend(late()).unwrap();
    // As if its patience had ended.
    let group = GroupId(1 << 40);
    let abort = Fetch::Remap(group, Request::Abort);
    let answer = job.ask_as(2, ProcessId(1), &abort).unwrap();
    assert_eq!(answer, Record::Remap(Answer::Aborted));
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    assert_eq!(ids(&a.drain()), successes(1..2), "it has gone on");
    let error = held.end().unwrap_err();
    assert_eq!(error.errno(), libc::EAGAIN, "{error}");
    assert!(error.to_string().contains("process 1 went on by itself"), "{error}");
    b.context.suspend(late()).unwrap().end().unwrap();
}

/// Promise: a peer that is dead keeps nobody from standing still.
#[test]
fn a_dead_peer_is_not_waited_for() {
    let Two { job, b, a: _a, qa: _qa, qb: _qb, .. } = acquainted();
    job.kill(1);
    b.context.suspend(late()).unwrap().end().unwrap();
}

/// Promise: whoever lets go of a suspension lets everything go on; and meanwhile queue pairs are destroyed, but not
/// changed.
#[test]
fn a_suspension_ends_with_its_value() {
    let Two { job, fabric, a, b, qa, qb } = acquainted();
    {
        let _held = b.context.suspend(late()).unwrap();
        let error = qb.set_state(qp_state::ERR).unwrap_err();
        assert_eq!(error.errno(), libc::EBUSY, "{error}");
        let memory = b.pd.register(4096, ALL).unwrap();
        drop(memory);
        drop(b.qp());
    }
    qb.post_recv(1, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(1, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    assert_eq!((ids(&b.drain()), ids(&a.drain())), (successes(1..2), successes(1..2)));
    let held = b.context.suspend(late()).unwrap();
    drop(qb);
    held.end().unwrap();
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    qb.post_recv(2, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    assert_eq!((ids(&b.drain()), ids(&a.drain())), (successes(2..3), successes(2..3)));
    drop(job);
    fabric.assert_no_overrun();
}

/// Promise: queue pairs of one context that are connected to each other stand still, too.
#[test]
fn a_process_that_talks_to_itself_stands_still() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let a = Process::new(&job, &fabric, 1);
    let (one, other) = (a.qp(), a.qp());
    connect(&one, &other);
    other.post_recv(1, &[a.memory.slice(0..64)]).unwrap();
    fabric.on_command();
    let sge = [a.memory.slice(512..516)];
    a.memory.write(512, &[7; 4]);
    one.post_send(&SendRequest::new(2, Op::Send, &sge).unsignaled()).unwrap();
    let held = held_while_stepping(&a, &fabric);
    assert_eq!(bytes(&a)[..4], [7; 4]);
    one.post_send(&SendRequest::new(3, Op::Write(a.memory.remote(1024)), &sge)).unwrap();
    fabric.at_once();
    assert_eq!(bytes(&a)[1024..1028], [0; 4]);
    held.end().unwrap();
    assert_eq!(bytes(&a)[1024..1028], [7; 4]);
    assert_eq!(ids(&a.drain()).len(), 2);
}

/// Promise: a hold begins when all has landed, whatever tells how far a responder has come, signalled or not.
#[test]
fn whatever_tells_what_was_executed_a_hold_begins() {
    for evidence in [Evidence::Psn, Evidence::Record, Evidence::Counts] {
        let (job, fabric) = (Job::default(), Fabric::default());
        let policy = Policy { evidence, ..Policy::default() };
        let process =
            |n: u32| Process::with(&job, &fabric, n, Port::infiniband(n as u16 + 100), &policy);
        let (a, b) = (process(1), process(2));
        let (qa, qb) = (a.qp(), b.qp());
        connect(&qa, &qb);
        a.memory.write(0, &[7; 64]);
        let sge = [a.memory.slice(0..64)];
        for round in 0..4 {
            let at = 512 + 64 * round;
            qb.post_recv(1, &[b.memory.slice(1024..1088)]).unwrap();
            let requests = [Op::Send, Op::Write(b.memory.remote(at))];
            let order: Vec<_> =
                if round % 2 == 0 { requests.into() } else { requests.into_iter().rev().collect() };
            for op in order {
                qa.post_send(&SendRequest::new(2, op, &sge).unsignaled()).unwrap();
            }
            let holder = if round < 2 { &b } else { &a };
            let held = holder.context.suspend(late()).unwrap();
            assert_eq!(bytes(&b)[at..at + 64], [7; 64], "{evidence:?}");
            held.end().unwrap();
            assert_eq!(ids(&b.drain()), successes(1..2));
        }
    }
}

/// Promise: a queue pair whose path has failed is waited for: it goes elsewhere first, or ends.
#[test]
fn a_broken_path_is_mended_before_a_hold() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let failover = Failover::To(vec!["nowhere".into()]);
    let policy = Policy { failover, evidence: Evidence::Psn, ..Policy::default() };
    let process =
        |n: u32| Process::with(&job, &fabric, n, Port::infiniband(n as u16 + 100), &policy);
    let (a, b) = (process(1), process(2));
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    fabric.break_path(qb.qp_num());
    let sge = [a.memory.slice(0..4)];
    let sent = qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(0)), &sge));
    sent.unwrap();
    let both = || [&a, &b].map(|it| it.context.suspend(late()).and_then(Suspension::end));
    // There is no way out of it, and the program gets the error in its time.
    let deadline = late();
    loop {
        for held in both() {
            assert!(held.as_ref().is_ok_and(|stood| *stood > Duration::ZERO), "{held:?}");
        }
        let done = a.drain();
        if !done.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "it never ends");
    }
}

/// Promise: datagrams that a context sends stand still with it, and go out afterwards.
#[test]
fn datagrams_stand_still_with_their_sender() {
    let (Two { a, b, qa, qb, .. }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    qb.post_recv(1, &[b.memory.slice(0..200)]).unwrap();
    let held = a.context.suspend(late()).unwrap();
    qa.post_send(&SendRequest::inline(2, Op::Send, b"ping").to(to)).unwrap();
    assert_eq!((a.drain().len(), drain(&cq).len()), (0, 0));
    held.end().unwrap();
    assert_eq!((ids(&a.drain()), ids(&drain(&cq))), (successes(2..3), successes(1..2)));
    // Who receives them gives no receive to the device meanwhile.
    let held = b.context.suspend(late()).unwrap();
    qb.post_recv(3, &[b.memory.slice(0..200)]).unwrap();
    qa.post_send(&SendRequest::inline(4, Op::Send, b"pong").to(to)).unwrap();
    assert!(drain(&cq).is_empty());
    held.end().unwrap();
}

/// Promise: however often a context is held while a SEND waits for a receive, what is behind it takes no more of the
/// device's queue: it is as deep as the program was told.
#[test]
fn holds_take_no_room_from_a_queue_that_waits() {
    for evidence in [Evidence::Psn, Evidence::Record] {
        let policy = Policy { evidence, ..Policy::default() };
        let (job, fabric) = (Job::default(), Fabric::default());
        let [a, b] = [1, 2].map(|number| {
            Process::with(&job, &fabric, number, Port::infiniband(number as u16), &policy)
        });
        let mut options = QpOptions::rc(&a.cq);
        options.cap.max_send_wr = 8;
        let (qa, qb) = (a.pd.create_qp(&options).unwrap(), b.qp());
        connect(&qa, &qb);
        let sge = [a.memory.slice(0..64)];
        let write = |id: u64| {
            let to = b.memory.remote(64 * id as usize);
            let request = SendRequest::new(id, Op::Write(to), &sge);
            qa.post_send(&if id == 7 { request } else { request.unsignaled() })
        };
        qa.post_send(&SendRequest::new(0, Op::Send, &sge).unsignaled()).unwrap();
        for id in 1..8 {
            write(id).unwrap();
            for _ in 0..3 {
                b.context.suspend(late()).unwrap().end().unwrap();
            }
        }
        assert_eq!(qa.state().unwrap(), qp_state::RTS, "{evidence:?}");
        qb.post_recv(8, &[b.memory.slice(2048..2112)]).unwrap();
        b.context.suspend(late()).unwrap().end().unwrap();
        assert_eq!(ids(&a.drain()), successes(7..8), "{evidence:?}");
        assert_eq!(ids(&b.drain()), successes(8..9), "{evidence:?}");
    }
}
