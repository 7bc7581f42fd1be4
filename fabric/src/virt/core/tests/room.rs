//! What may be outstanding is bounded: the rest waits in the window, and goes out in its turn.

use super::remap::core_of;
use super::*;
use crate::virt::Outstanding;
use crate::virt::core::relocate;

/// Two connected processes, where a queue pair of the first may have `requests` outstanding.
fn two_where(outstanding: Outstanding) -> Two {
    let (job, fabric) = (Job::default(), Fabric::default());
    let policy = Policy { outstanding, evidence: Evidence::Psn, ..Policy::default() };
    let a = Process::with(&job, &fabric, 1, Port::infiniband(101), &policy);
    let b = Process::new(&job, &fabric, 2);
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    // So that keys are known.
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(0, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    assert_eq!(a.drain().len(), 1);
    Two { job, fabric, a, b, qa, qb }
}

fn few(requests: u64) -> Outstanding {
    Outstanding { qp_requests: requests, ..Outstanding::default() }
}

/// Posts `n` WRITEs of 8 bytes, side by side, that nobody is told of.
fn write_quietly(two: &Two, n: u64) {
    for id in 1..=n {
        let at = 8 * id as usize;
        two.a.memory.write(at, &id.to_ne_bytes());
        let sge = [two.a.memory.slice(at..at + 8)];
        let write = SendRequest::new(id, Op::Write(two.b.memory.remote(at)), &sge);
        two.qa.post_send(&write.unsignaled()).unwrap();
    }
}

fn landed(two: &Two) -> u64 {
    let mut bytes = [0; 8];
    let there = |id: &u64| {
        two.b.memory.read(8 * *id as usize, &mut bytes);
        u64::from_ne_bytes(bytes) == *id
    };
    (1..).take_while(there).count() as u64
}

/// Promise: a quiesce never waits for more than the share, whatever depth the program asked for.
#[test]
fn never_more_than_the_share_is_outstanding() {
    for requests in [1, 2, 3, 7] {
        let two = two_where(few(requests));
        two.fabric.on_command();
        write_quietly(&two, 12);
        let mut done = 0;
        while done < 12 {
            let out = two.fabric.outstanding();
            assert!(out > 0 && out <= requests as usize, "{out} of {requests}");
            two.fabric.step(1);
            done += 1;
            assert_eq!(two.a.drain().len(), 0, "nobody asked to be told");
            two.a.drain();
        }
        assert_eq!(landed(&two), 12);
    }
}

/// The same in bytes; one request may be outstanding in any case.
#[test]
fn bytes_are_bounded_too() {
    let two = two_where(Outstanding { qp_bytes: 1, ..Outstanding::default() });
    two.fabric.on_command();
    for id in 1..4 {
        let sge = [two.a.memory.slice(0..4096)];
        let write = SendRequest::new(id, Op::Write(two.b.memory.remote(0)), &sge);
        two.qa.post_send(&write).unwrap();
    }
    for id in 1..4 {
        assert_eq!(two.fabric.outstanding(), 1);
        two.fabric.step(1);
        assert_eq!(ids(&two.a.drain()), [(id, 0)]);
        two.a.drain();
    }
}

/// Promise: a program that posts past its share and then only watches memory is kept going.
#[test]
fn a_program_that_never_polls_is_kept_going() {
    let two = two_where(few(2));
    write_quietly(&two, 14);
    let before = landed(&two);
    assert!(before < 14, "it waits: {before}");
    let mut looks = 0;
    while landed(&two) < 14 {
        two.job.run_timers();
        looks += 1;
        assert!(looks < 14, "a look brings nothing");
    }
    // Once nothing waits, nobody looks any more.
    two.job.run_timers();
    two.job.run_timers();
    assert_eq!(two.job.timers(), 0);
}

/// Promise 1: what waits for room goes over with the rest, in order, signalled as asked for.
#[test]
fn what_waits_goes_on_behind_a_move() {
    for executed in 0..4 {
        let two = two_where(few(2));
        // The barrier, without which nobody can tell how far the peer has come.
        two.qb.post_recv(0, &[]).unwrap();
        two.fabric.on_command();
        for id in 1..=9 {
            let sge = [two.a.memory.slice(0..8)];
            let write = SendRequest::new(id, Op::Write(two.b.memory.remote(8 * id as usize)), &sge);
            let quiet = id % 3 != 0;
            two.qa.post_send(&if quiet { write.unsignaled() } else { write }).unwrap();
        }
        two.fabric.step(executed);
        relocate(two.a.context.device(), &two.fabric.open(Port::infiniband(300))).unwrap();
        two.fabric.at_once();
        let mut done = Vec::new();
        for _ in 0..9 {
            done.extend(ids(&two.a.drain()));
        }
        assert_eq!(done, [(3, 0), (6, 0), (9, 0)], "{executed} executed");
        assert_eq!(core_of(&two.qa).send.retired(), 10);
    }
}

/// Promise 1: where a queue pair fails, what waited is flushed behind what was handed, whoever finds
/// the failure.
#[test]
fn a_failure_comes_before_what_it_flushes() {
    for by_the_program in [true, false] {
        let two = two_where(few(1));
        two.fabric.on_command();
        for id in 1..=3 {
            let sge = [two.a.memory.slice(0..8)];
            let write = SendRequest::new(id, Op::Write(two.b.memory.remote(0)), &sge);
            two.qa.post_send(&write).unwrap();
        }
        two.fabric.break_path(core_of(&two.qa).end().unwrap().qpn);
        two.fabric.at_once();
        if !by_the_program {
            two.job.run_timers();
        }
        let mut done = Vec::new();
        for _ in 0..4 {
            done.extend(ids(&two.a.drain()));
        }
        let flushed = wc_status::WR_FLUSH_ERR;
        assert_eq!(done, [(1, flushed), (2, flushed), (3, flushed)], "{by_the_program}");
    }
}
