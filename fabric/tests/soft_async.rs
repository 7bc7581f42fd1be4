//! The asynchronous mode: work is really in flight, at a pace, and can be cut in the middle.

mod soft_util;

use soft_util::*;
use sojourn_fabric::abi::{QpAttr, Wc, event_type, qp_mask as m, qp_state, wc_status, wr_opcode};
use sojourn_fabric::device::soft::{Mode, Options, Pace};
use std::time::{Duration, Instant};

/// At the path MTU that `attributes` sets.
const MTU: usize = 1024;
const START: u32 = 0x1234;

fn paced(latency: Duration, gbps: f64) -> Setup {
    let mode = Mode::Async(Pace { seed: 7, latency, gbps });
    Setup { options: Options { mode, ..Options::default() }, ..Setup::default() }
}

fn status(wc: &Wc) -> &'static str {
    wc_status::name(wc.status)
}

fn epsn(end: &End) -> u32 {
    end.qp.query(m::RQ_PSN).unwrap().rq_psn
}

/// What is posted takes the time that latency and rate ask for, never less.
#[test]
fn work_takes_its_time() {
    // 250,000 bytes at 0.1 Gbit/s take 20 ms; twice the latency comes on top.
    let latency = Duration::from_millis(5);
    let (a, b) = pair(&paced(latency, 0.1));
    let begun = Instant::now();
    a.write(1, 0, 250_000, &b.address(), 0);
    assert!(begun.elapsed() < latency, "posting does not wait");
    a.nothing();
    a.success();
    let took = begun.elapsed();
    assert!(took >= Duration::from_micros(29_900), "{took:?}");
    // Ten that follow each other share the latency.
    let begun = Instant::now();
    for i in 0..10 {
        a.write(i, 0, 8, &b.address(), 0);
    }
    for i in 0..10 {
        assert_eq!(a.success().wr_id, i);
    }
    let took = begun.elapsed();
    assert!(took >= 2 * latency, "{took:?}");
}

/// ERR cuts a WRITE between two packets: the responder's PSN says exactly what has landed.
#[test]
fn a_write_is_cut_between_packets() {
    for _ in 0..5 {
        let (a, b) = pair(&paced(Duration::ZERO, 1.0));
        a.memory.fill(0, 4 << 20, 1);
        a.write(1, 0, 4 << 20, &b.address(), 0);
        until("some packets", || epsn(&b) > START + 20);
        b.to_error();
        let packets = (epsn(&b) - START) as usize;
        assert!(packets < 4096, "it was over too soon to be cut");
        let landed = b.memory.get(0, 4 << 20).iter().take_while(|byte| **byte == 1).count();
        assert_eq!(landed, packets * MTU);
        assert_eq!(status(&a.wait()), "RETRY_EXC_ERR");
        assert_eq!(epsn(&b) - START, packets as u32, "nothing comes later");
        assert_eq!(a.qp.query(m::SQ_PSN).unwrap().sq_psn, epsn(&b));
    }
}

/// ERR at the sender cuts as well; its request is flushed, and so are those behind it.
#[test]
fn a_sender_can_be_cut() {
    let (a, b) = pair(&paced(Duration::ZERO, 1.0));
    b.recv(9, 0, 4 << 20).unwrap();
    a.memory.fill(0, 4 << 20, 1);
    a.send(1, 0, 4 << 20);
    a.write(2, 0, 8, &b.address(), 0);
    until("some packets", || epsn(&b) > START + 20);
    a.to_error();
    let sent = a.qp.query(m::SQ_PSN).unwrap().sq_psn;
    for i in 1..=2 {
        let wc = a.wait();
        assert_eq!((wc.wr_id, status(&wc)), (i, "WR_FLUSH_ERR"));
    }
    assert_eq!(epsn(&b), sent);
    assert_eq!(b.state(), "RTS");
    b.nothing();
    // Its half-filled receive is not consumed.
    b.to_error();
    let wc = b.wait();
    assert_eq!((wc.wr_id, status(&wc)), (9, "WR_FLUSH_ERR"));
}

/// What was executed but has not completed is flushed: only the responder's PSN knows better.
#[test]
fn executed_is_not_completed() {
    let (a, b) = pair(&paced(Duration::from_millis(200), 100.0));
    a.memory.fill(0, 8, 3);
    a.write(1, 0, 8, &b.address(), 0);
    until("it lands", || b.memory.get(0, 8) == [3; 8]);
    a.to_error();
    assert_eq!(status(&a.wait()), "WR_FLUSH_ERR");
    assert_eq!(epsn(&b), START + 1);
}

/// A READ is cut too; what has arrived stays, and nothing comes later.
#[test]
fn a_read_is_cut() {
    let (a, b) = pair(&paced(Duration::ZERO, 1.0));
    b.memory.fill(0, 4 << 20, 1);
    a.read(1, 0, 4 << 20, &b.address(), 0);
    until("some packets", || a.memory.get(20 * MTU, 1) == [1]);
    a.to_error();
    assert_eq!(status(&a.wait()), "WR_FLUSH_ERR");
    let landed = a.memory.get(0, 4 << 20).iter().take_while(|byte| **byte == 1).count();
    assert!(landed < 4 << 20);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(a.memory.get(landed, 1), [0]);
    // The responder counts all packets of a response when it takes the request.
    assert_eq!(epsn(&b), START + 4096);
}

/// In SQD what was begun ends, what was not begun waits, and the drain is told once.
#[test]
fn a_send_queue_drains() {
    let (a, b) = pair(&paced(Duration::from_millis(1), 1.0));
    a.write(1, 0, 1 << 20, &b.address(), 0);
    a.write(2, 0, 8, &b.address(), 0);
    until("some packets", || epsn(&b) > START + 20);
    let notify = QpAttr { en_sqd_async_notify: 1, ..QpAttr::default() };
    modify(&*a.qp, qp_state::SQD, &notify, m::EN_SQD_ASYNC_NOTIFY);
    assert_eq!(a.qp.query(m::STATE).unwrap().sq_draining, 1);
    a.write(3, 0, 8, &b.address(), 0);
    assert_eq!(a.success().wr_id, 1);
    let mut event = None;
    until("the drain", || {
        event = a.context.get_async_event().unwrap();
        event.is_some()
    });
    assert_eq!(event.unwrap().event_type, event_type::SQ_DRAINED);
    assert_eq!(a.qp.query(m::STATE).unwrap().sq_draining, 0);
    std::thread::sleep(Duration::from_millis(5));
    a.nothing();
    modify(&*a.qp, qp_state::RTS, &QpAttr::default(), 0);
    assert_eq!((a.success().wr_id, a.success().wr_id), (2, 3));
    assert!(a.context.get_async_event().unwrap().is_none());
}

/// Several queue pairs share the wire in turns; each stays in order.
#[test]
fn queue_pairs_take_turns() {
    let setup = paced(Duration::ZERO, 1.0);
    let context = sojourn_fabric::device::soft::open_with("soft0", setup.options).unwrap();
    let pairs: Vec<(End, End)> = (0..3)
        .map(|_| {
            let a = End::in_context(std::sync::Arc::clone(&context), &setup);
            let b = End::new(&Setup::default());
            a.connect(&b.address());
            b.connect(&a.address());
            (a, b)
        })
        .collect();
    for (a, b) in &pairs {
        a.write(1, 0, 1 << 20, &b.address(), 0);
        a.post(rdma(wr_opcode::RDMA_READ, 2, &b.address(), 0), 1 << 20, 8).unwrap();
    }
    // All of them are under way before the first is done.
    until("all begin", || pairs.iter().all(|(_, b)| epsn(b) > START + 5));
    assert!(pairs.iter().all(|(_, b)| epsn(b) < START + 1024), "they share the wire");
    for (a, _) in &pairs {
        assert_eq!((a.success().wr_id, a.success().wr_id), (1, 2));
    }
}
