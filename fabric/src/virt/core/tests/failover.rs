//! Paths that fail around a move, with another device to go to.

use super::remap::{core_of, go};
use super::*;
use crate::virt::{Cause, Failover};

/// Longer than any rescue takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two processes whose contexts may go to the soft device, and three messages of the first under way.
fn three_under_way() -> Two {
    three_under_way_with(Evidence::Psn)
}

fn three_under_way_with(evidence: Evidence) -> Two {
    let (job, fabric) = (Job::default(), Fabric::default());
    let failover = Failover::To(vec!["soft0".to_owned()]);
    let policy = Policy { failover, evidence, ..Policy::default() };
    // Of a network from which nothing reaches the soft device: the peer has to go there, too.
    let process = |n: u8| Process::with(&job, &fabric, n.into(), Port::ethernet(n), &policy);
    let (a, b) = (process(1), process(2));
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    fabric.on_command();
    for id in 0..4 {
        qb.post_recv(id, &[b.memory.slice(64 * id as usize..64 * id as usize + 64)]).unwrap();
    }
    for id in 0..3 {
        let sge = [a.memory.slice(0..4)];
        qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    Two { job, fabric, a, b, qa, qb }
}

/// Identifiers and statuses.
type Completions = Vec<(u64, u32)>;

/// Both ends poll until `n` completions have come at each.
fn poll_for(two: &Two, n: usize) -> (Completions, Completions) {
    let until = Instant::now() + PATIENCE;
    let (mut sent, mut received) = (Vec::new(), Vec::new());
    while (sent.len() < n || received.len() < n) && Instant::now() < until {
        sent.extend(ids(&two.a.drain()));
        received.extend(ids(&two.b.drain()));
    }
    (sent, received)
}

/// Whether a context has gone there because a path failed. (That is noted when the move is over, and
/// completions come before.)
fn went_to_soft(process: &Process) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        let moves = super::super::relocations(process.context.device()).unwrap();
        if moves.iter().any(|it| it.to == "soft0" && it.cause == Cause::PathFailure) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::yield_now();
    }
}

/// Promises 1 and 2: a path that fails while a move is on, which is then given up, is mended by another
/// device: nothing of it comes to the program, and each message is delivered once.
#[test]
fn a_path_that_fails_under_a_move_which_is_given_up_is_mended() {
    let two = three_under_way();
    let core = core_of(&two.qa);
    core.stop();
    two.fabric.step(1);
    two.fabric.cut_off(Port::ethernet(1));
    // Withheld while it is on, except for what was delivered.
    assert_eq!(ids(&two.a.drain()), successes(0..1));
    core.go_on();
    assert_eq!(two.qa.state().unwrap(), qp_state::RTS);
    let sge = [two.a.memory.slice(0..4)];
    two.qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    let (sent, mut received) = poll_for(&two, 3);
    assert_eq!(sent, successes(1..4));
    received.extend(ids(&two.b.drain()));
    assert_eq!(received, successes(0..4));
    assert!(went_to_soft(&two.a));
}

/// The same where only a request of ours behind a tail that is not signalled tells that it has failed.
#[test]
fn a_path_of_which_only_a_proof_tells_that_it_has_failed_is_mended() {
    let two = three_under_way();
    let sge = [two.a.memory.slice(0..4)];
    two.fabric.at_once();
    let write = SendRequest::new(9, Op::Write(two.b.memory.remote(1024)), &sge);
    two.qa.post_send(&write.unsignaled()).unwrap();
    assert_eq!((ids(&two.a.drain()), ids(&two.b.drain())), (successes(0..3), successes(0..3)));
    two.fabric.on_command();
    let core = core_of(&two.qa);
    core.stop();
    // The proof.
    assert_eq!(two.fabric.outstanding(), 1);
    two.fabric.cut_off(Port::ethernet(1));
    assert!(two.a.drain().is_empty());
    core.go_on();
    two.qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    assert_eq!(poll_for(&two, 1), (successes(3..4), successes(3..4)));
    assert!(went_to_soft(&two.a));
}

/// The same where a record is the first to find that out, and nothing of the program's is under way.
#[test]
fn a_path_of_which_only_a_record_tells_that_it_has_failed_is_mended() {
    let two = three_under_way_with(Evidence::Record);
    let sge = [two.a.memory.slice(0..4)];
    two.fabric.at_once();
    assert_eq!((ids(&two.a.drain()), ids(&two.b.drain())), (successes(0..3), successes(0..3)));
    let write = |id| SendRequest::new(id, Op::Write(two.b.memory.remote(1024)), &sge);
    two.qa.post_send(&write(9)).unwrap();
    assert_eq!(ids(&two.a.drain()), successes(9..10));
    two.fabric.on_command();
    let more = u64::from(sojourn_logging::record_interval(two.qa.cap().max_send_wr)) - 1;
    (0..more - 1).for_each(|id| two.qa.post_send(&write(id).unsignaled()).unwrap());
    two.qa.post_send(&write(more)).unwrap();
    two.fabric.step(more as usize);
    assert_eq!(ids(&two.a.drain()), successes(more..more + 1));
    // The record.
    assert_eq!(two.fabric.outstanding(), 1);
    two.fabric.cut_off(Port::ethernet(1));
    assert!(two.a.drain().is_empty());
    two.qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    assert_eq!(poll_for(&two, 1), (successes(3..4), successes(3..4)));
    assert!(went_to_soft(&two.a));
}

/// Promises 1 and 2: a path that fails before the move to it is over is mended once that is.
#[test]
fn a_new_path_that_fails_before_the_move_is_over_is_mended() {
    for moves_sender in [true, false] {
        let two = three_under_way();
        // The new path of the sender is cut off before it is there.
        let to = Port::ethernet(30);
        if moves_sender {
            two.fabric.cut_off(to);
        } else {
            two.fabric.cut_off_next(Port::ethernet(1));
        }
        go(if moves_sender { &two.a } else { &two.b }, two.fabric.open(to));
        let (sent, received) = poll_for(&two, 3);
        assert_eq!((sent, received), (successes(0..3), successes(0..3)), "sender {moves_sender}");
        assert!(went_to_soft(&two.a));
    }
}

/// Promise: what is not the fault of a path comes to the program when a move is given up, once, and before
/// what comes later.
#[test]
fn what_no_path_is_to_blame_for_comes_when_a_move_is_given_up() {
    let two = three_under_way();
    let core = core_of(&two.qa);
    core.stop();
    two.fabric.break_path(core.end().unwrap().qpn);
    assert!(two.a.drain().is_empty());
    // This one waits, and is flushed by us once those are through.
    let sge = [two.a.memory.slice(0..4)];
    two.qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    core.go_on();
    let until = Instant::now() + PATIENCE;
    let mut sent = Vec::new();
    while sent.len() < 4 && Instant::now() < until {
        sent.extend(ids(&two.a.drain()));
    }
    let flush = wc_status::WR_FLUSH_ERR;
    assert_eq!(sent, (0..4).map(|id| (id, flush)).collect::<Vec<_>>());
    assert_eq!(two.qa.state().unwrap(), qp_state::ERR);
}

/// Promise: a path that fails is mended though the program does not poll, but watches its memory.
#[test]
fn a_failure_that_nobody_polls_for_is_mended() {
    let two = three_under_way();
    two.fabric.cut_off(Port::ethernet(1));
    let until = Instant::now() + PATIENCE;
    let sge = [two.a.memory.slice(0..4)];
    two.a.memory.write(0, b"done");
    let write = SendRequest::new(3, Op::Write(two.b.memory.remote(1024)), &sge);
    two.qa.post_send(&write.unsignaled()).unwrap();
    let mut bytes = [0; 4];
    while bytes != *b"done" && Instant::now() < until {
        two.job.run_timers();
        two.b.memory.read(1024, &mut bytes);
    }
    assert_eq!(&bytes, b"done");
    // And what there was to be found is there.
    assert_eq!(poll_for(&two, 3), (successes(0..3), successes(0..3)));
}

/// Promise: completions of a program that does not poll are not hoarded without bound, and a queue pair
/// that gets on is left alone.
#[test]
fn completions_that_nobody_polls_for_are_not_hoarded() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let failover = Failover::To(vec!["soft0".to_owned()]);
    let policy = Policy { failover, evidence: Evidence::Psn, ..Policy::default() };
    let process =
        |n: u16| Process::with(&job, &fabric, n.into(), Port::infiniband(n + 100), &policy);
    let (a, b) = (process(1), process(2));
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    let sge = [a.memory.slice(0..4)];
    let write = || SendRequest::new(1, Op::Write(b.memory.remote(8)), &sge);
    let depth = qa.cap().max_send_wr;
    let mut posted = 0;
    for _ in 0..20 {
        for _ in 0..depth {
            posted += u32::from(qa.post_send(&write()).is_ok());
        }
        job.run_timers();
        job.run_timers();
    }
    // One harvest, which is more than the size of the CQ, and one window behind that.
    assert_eq!(posted, 2 * depth);
    assert_eq!(a.drain().len(), posted as usize);
}
