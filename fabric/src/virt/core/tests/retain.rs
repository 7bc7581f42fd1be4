//! Retention of payloads over the device in memory.

use super::*;
use crate::names::{Consumed, Cover, Fetch, ProcessId};
use crate::virt::core::relocate;
use crate::virt::{Gap, Policy, RetainedConnection, RetainedMessage, Retention, Spill};
use sojourn_logging::Opcode;
use std::path::Path;

/// Longest message that is sent from the copy in these tests.
const FROM_COPY: u32 = 64;

fn policy(bytes: usize, spill: Option<&Path>) -> Policy {
    let spill = spill.map_or(Spill::Drop, |dir| Spill::To(dir.to_owned()));
    let retention = Retention::Payload { bytes, spill, from_copy: FROM_COPY };
    Policy { retention, evidence: Evidence::Psn, ..Policy::default() }
}

/// Two processes that keep what they send, with a queue pair each, connected.
fn two(bytes: usize, spill: Option<&Path>) -> Two {
    let (job, fabric) = (Job::default(), Fabric::default());
    let policy = policy(bytes, spill);
    let process =
        |n: u32| Process::with(&job, &fabric, n, Port::infiniband(n as u16 + 100), &policy);
    let (a, b) = (process(1), process(2));
    let options = |p: &Process| {
        let mut options = QpOptions::rc(&p.cq);
        options.cap.max_inline_data = 64;
        options.cap.max_send_sge = 3;
        p.pd.create_qp(&options).unwrap()
    };
    let (qa, qb) = (options(&a), options(&b));
    connect(&qa, &qb);
    Two { job, fabric, a, b, qa, qb }
}

fn only(process: &Process) -> RetainedConnection {
    let mut all = process.context.retained().unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn kept(process: &Process) -> Vec<RetainedMessage> {
    only(process).messages_kept().map(Result::unwrap).collect()
}

fn commit(process: &Process) {
    process.context.cut().unwrap().commit(Instant::now() + Duration::from_secs(10)).unwrap();
}

/// Posts a SEND of so many bytes of `byte`, which is received, and overwrites the buffer.
fn send(two: &Two, byte: u8, length: usize) {
    let Two { a, b, qa, qb, .. } = two;
    qb.post_recv(0, &[b.memory.slice(0..4096)]).unwrap();
    a.memory.write(0, &vec![byte; length]);
    qa.post_send(&SendRequest::new(0, Op::Send, &[a.memory.slice(0..length)])).unwrap();
    assert_eq!(ids(&a.drain()), successes(0..1));
    a.memory.write(0, &vec![0xee; length]);
    assert_eq!(ids(&b.drain()), successes(0..1));
    let mut there = vec![0; length];
    b.memory.read(0, &mut there);
    assert!(there.iter().all(|it| *it == byte), "delivered as posted");
}

fn assert_payloads(messages: &[RetainedMessage], expected: &[(u8, usize)]) {
    let found: Vec<_> = messages.iter().map(|it| it.payload.clone()).collect();
    let expected: Vec<_> = expected.iter().map(|(byte, n)| vec![*byte; *n]).collect();
    assert!(found == expected, "{} of {} kept", found.len(), expected.len());
}

/// Promise: every SEND and WRITE is kept as it was posted, though the program overwrites its buffer after
/// completion: in order, with the count of what it had received before; until an epoch covers it, and
/// no WRITE behind that one.
#[test]
fn messages_are_kept_as_posted_until_an_epoch_covers_them() {
    let it = two(1 << 16, None);
    let Two { a, b, qa, qb, .. } = &it;
    for id in 0..4 {
        qb.post_recv(id, &[b.memory.slice(0..512)]).unwrap();
        qa.post_recv(id, &[a.memory.slice(4000..4096)]).unwrap();
    }
    for (i, byte) in [1u8, 2, 3].into_iter().enumerate() {
        a.memory.write(1000 * i, &[byte; 1000]);
    }
    let s = |range| a.memory.slice(range);
    let there = b.memory.remote(2048);
    // Short, from three places; long; inline; of no bytes.
    let three = [s(0..5), s(1000..1000), s(1000..1007)];
    qa.post_send(&SendRequest::new(0, Op::SendImm(7), &three)).unwrap();
    qb.post_send(&SendRequest::new(0, Op::Send, &[b.memory.slice(0..4)])).unwrap();
    assert_eq!((ids(&a.drain()).len(), b.drain().len()), (2, 2));
    qa.post_send(&SendRequest::new(1, Op::Write(there), &[s(2000..3000)])).unwrap();
    qa.post_send(&SendRequest::inline(2, Op::Send, &[9; 30])).unwrap();
    qa.post_send(&SendRequest::new(3, Op::WriteImm(there.offset(5), 8), &[])).unwrap();
    let counter = Op::FetchAdd(b.memory.remote(1024), 1);
    qa.post_send(&SendRequest::new(4, counter, &[s(3000..3008)])).unwrap();
    qa.post_send(&SendRequest::new(5, Op::Write(there), &[s(0..3)])).unwrap();
    assert_eq!(ids(&a.drain()), successes(1..6));
    a.memory.write(0, &[0xee; 4096]);
    let all = kept(a);
    let first = [[1; 5].as_slice(), &[2; 7]].concat();
    let payloads = [first, vec![3; 1000], vec![9; 30], vec![], vec![1; 3]];
    assert_eq!(all.iter().map(|it| it.payload.clone()).collect::<Vec<_>>(), payloads);
    let told: Vec<_> = all.iter().map(|it| (it.number, it.receives, it.message.received)).collect();
    assert_eq!(told, [(0, 1, 0), (1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 3, 1)]);
    let opcodes: Vec<_> = all.iter().map(|it| it.message.opcode).collect();
    let (write, imm) = (Opcode::Write, Opcode::WriteImm);
    assert_eq!(opcodes, [Opcode::SendImm, write, Opcode::Send, imm, write]);
    assert_eq!(u32::from_be(all[3].message.imm), 8);
    assert_eq!((all[3].message.remote_addr, all[3].message.rkey), (there.addr + 5, there.rkey));
    let status = only(a);
    assert_eq!(
        (status.qpn, status.peer, status.peer_qpn),
        (qa.qp_num(), ProcessId(2), qb.qp_num())
    );
    assert_eq!((status.messages, status.records, status.gap), (5, 5, None));
    assert_eq!((status.in_memory, status.spilled), (12 + 1000 + 30 + 3, 0));

    // The peer has polled one of the three, when its epoch is taken.
    let cut = b.context.cut().unwrap();
    assert_eq!(b.drain().len(), 2);
    cut.commit(Instant::now()).unwrap();
    assert_eq!(kept(a).iter().map(|it| it.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
    // One that is taken, and never committed.
    drop(b.context.cut().unwrap());
    assert_eq!(kept(a).len(), 4);
    commit(b);
    assert_eq!(kept(a).iter().map(|it| it.number).collect::<Vec<_>>(), [4]);
    // The other way round it is the other's.
    assert_eq!(kept(b).len(), 1);
    commit(a);
    assert!(kept(b).is_empty());
}

/// Promise: what is handed again after a move is what was posted: short messages are sent from the copy,
/// from wherever the ring has got to.
#[test]
fn a_move_sends_what_was_posted_from_the_copy() {
    for executed in 0..4 {
        let it = two(1 << 16, None);
        let Two { fabric, a, b, qa, qb, .. } = &it;
        for id in 0..4 {
            let at = 512 * id as usize;
            qb.post_recv(id, &[b.memory.slice(at..at + 512)]).unwrap();
        }
        fabric.on_command();
        for id in 0..4u64 {
            a.memory.write(0, &[id as u8 + 1; 60]);
            qa.post_send(&SendRequest::new(id, Op::Send, &[a.memory.slice(0..60)])).unwrap();
        }
        // No program may do so; it shows from where it was sent.
        a.memory.write(0, &[0xee; 60]);
        fabric.step(executed);
        relocate(a.context.device(), &fabric.open(Port::infiniband(300))).unwrap();
        fabric.at_once();
        assert_eq!(ids(&a.drain()), successes(0..4));
        assert_eq!(ids(&b.drain()), successes(0..4));
        for id in 0..4 {
            let mut bytes = [0; 60];
            b.memory.read(512 * id, &mut bytes);
            assert_eq!(bytes, [id as u8 + 1; 60], "message {id}, {executed} executed");
        }
        assert_payloads(&kept(a), &[(1, 60), (2, 60), (3, 60), (4, 60)]);
        // And on it goes from there.
        send(&it, 9, 50);
        assert_eq!(kept(a)[4].payload, [9; 50]);
        commit(b);
        assert!(kept(a).is_empty());
        fabric.assert_no_overrun();
    }
}

/// Promise: what the ring has no room for is spilled, messages longer than the ring too, and is read back as it
/// was posted, until it is covered.
#[test]
fn overflow_spills_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let it = two(2048, Some(dir.path()));
    let mut expected = Vec::new();
    for n in 0..200usize {
        let length = [40, 700, 64, 3000, 65, 2048, 0][n % 7];
        send(&it, n as u8, length);
        expected.push((n as u8, length));
        if n % 50 == 0 {
            assert_payloads(&kept(&it.a), &expected);
        }
    }
    let status = only(&it.a);
    let bytes: usize = expected.iter().map(|it| it.1).sum();
    assert_eq!(status.in_memory + status.spilled, bytes as u64);
    assert!(status.in_memory <= 2048 && status.gap.is_none());
    assert_payloads(&kept(&it.a), &expected);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    commit(&it.b);
    assert!(kept(&it.a).is_empty());
    let status = only(&it.a);
    assert_eq!((status.in_memory, status.spilled, status.records), (0, 0, 0));
}

/// Promise: where nothing is spilled, delivery goes on, the connection's retention is dropped, which can be
/// seen, and the peer's next epoch lets it begin anew.
#[test]
fn without_a_spill_retention_is_dropped_and_delivery_goes_on() {
    let it = two(2048, None);
    for n in 0..40 {
        send(&it, n, 300);
    }
    let Gap { numbers, .. } = only(&it.a).gap.unwrap();
    assert_eq!((numbers, only(&it.a).records), (0..40, 0));
    commit(&it.b);
    assert_eq!(only(&it.a).gap, None);
    send(&it, 77, 300);
    assert_payloads(&kept(&it.a), &[(77, 300)]);
}

/// Promise: requests that have not completed are sent from where they are, however full the ring is: others go to
/// the file meanwhile, or are not kept.
#[test]
fn what_is_outstanding_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    for spill in [Some(dir.path()), None] {
        let it = two(256, spill);
        let Two { fabric, a, b, qa, qb, .. } = &it;
        for id in 0..8 {
            let at = 64 * id as usize;
            qb.post_recv(id, &[b.memory.slice(at..at + 64)]).unwrap();
        }
        fabric.on_command();
        for id in 0..8u64 {
            a.memory.write(64 * id as usize, &[id as u8 + 1; 64]);
            let at = 64 * id as usize;
            let sge = [a.memory.slice(at..at + 64)];
            qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
        }
        fabric.at_once();
        fabric.run();
        assert_eq!(ids(&a.drain()), successes(0..8));
        assert_eq!(ids(&b.drain()), successes(0..8));
        for id in 0..8 {
            let mut bytes = [0; 64];
            b.memory.read(64 * id, &mut bytes);
            assert_eq!(bytes, [id as u8 + 1; 64]);
        }
        let all: Vec<_> = (1..9).map(|byte| (byte, 64)).collect();
        assert_payloads(&kept(a), if spill.is_some() { &all } else { &[] });
        assert_eq!(only(a).gap.is_some(), spill.is_none());
    }
}

/// Promise: what a destroyed queue pair has sent stays until an epoch of the peer tells of it; what was sent to
/// one that is destroyed goes with the peer's next epoch, and with that of a peer that has left.
#[test]
fn destroyed_queue_pairs_are_told_of() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let policy = policy(1 << 16, None);
    let process =
        |n: u32| Process::with(&job, &fabric, n, Port::infiniband(n as u16 + 100), &policy);
    let (a, b) = (process(1), process(2));
    let meet = || {
        let (qa, qb) = (a.qp(), b.qp());
        connect(&qa, &qb);
        qb.post_recv(0, &[b.memory.slice(0..64)]).unwrap();
        qa.post_send(&SendRequest::new(0, Op::Send, &[a.memory.slice(0..64)])).unwrap();
        qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(0)), &[a.memory.slice(0..64)]))
            .unwrap();
        assert_eq!((a.drain().len(), b.drain().len()), (2, 1));
        (qa, qb)
    };
    let records = || -> Vec<_> {
        let all = a.context.retained().unwrap();
        all.iter().map(|it| (it.records, it.ended)).collect()
    };
    // Ours goes first.
    let (qa, qb) = meet();
    drop(qa);
    assert_eq!(records(), [(2, true)]);
    commit(&b);
    assert_eq!(records(), [(1, true)], "the WRITE behind the last message stays");
    drop(qb);
    assert_eq!(records(), [(1, true)]);
    let cut = b.context.cut().unwrap();
    // A cut that is not committed has told nothing.
    drop(cut);
    commit(&b);
    assert_eq!(records(), []);
    // The peer's goes first.
    let (_qa, qb) = meet();
    let before = b.context.cut().unwrap();
    drop(qb);
    before.commit(Instant::now()).unwrap();
    assert_eq!(records(), [(1, false)], "it went after the cut");
    commit(&b);
    assert_eq!(records(), []);
    // All of the peer's.
    let _both = (meet(), meet());
    assert_eq!(records().len(), 2);
    a.context.forget_peer(ProcessId(2)).unwrap();
    assert_eq!(records(), []);
}

/// Promise: a queue pair that is reset and connected again counts anew, and what the peer says of the one that it
/// was is not taken for what it is.
#[test]
fn a_connection_that_begins_anew_is_another() {
    let it = two(1 << 16, None);
    let Two { a, b, qa, qb, .. } = &it;
    send(&it, 1, 10);
    send(&it, 2, 10);
    let again = || {
        for qp in [qa, qb] {
            qp.set_state(qp_state::RESET).unwrap();
        }
        connect(qa, qb);
    };
    again();
    send(&it, 3, 10);
    let records = || -> Vec<_> {
        let all = a.context.retained().unwrap();
        all.iter().map(|it| (it.records, it.ended)).collect()
    };
    assert_eq!(records(), [(2, true), (1, false)]);
    let cut = b.context.cut().unwrap();
    send(&it, 4, 10);
    cut.commit(Instant::now()).unwrap();
    assert_eq!(records(), [(1, false)]);
    assert_payloads(&kept(a), &[(4, 10)]);
}

/// Promise: what a peer says is looked at before it is believed: of its own connections alone, not more than was
/// sent, and nothing twice.
#[test]
fn what_a_peer_says_is_looked_at() {
    let it = two(1 << 16, None);
    send(&it, 1, 10);
    send(&it, 2, 10);
    let (qpn, by) = (it.qa.qp_num(), it.qb.qp_num());
    let say = |process, serial, covers: &[(u32, u32, Consumed)]| {
        let covers = covers.iter().map(|(qpn, by, consumed)| Cover {
            qpn: *qpn,
            by: *by,
            consumed: *consumed,
        });
        let what = Fetch::Committed { serial, covers: covers.collect() };
        it.job.ask_as(process, ProcessId(1), &what).unwrap();
        kept(&it.a).len()
    };
    let upto = Consumed::Upto;
    assert_eq!(say(3, 1, &[(qpn, by, upto(2))]), 2, "another process");
    assert_eq!(say(2, 1, &[(qpn, by, upto(3))]), 2, "more than was sent");
    assert_eq!(say(2, 2, &[(qpn, by + 1, upto(2)), (qpn + 1, by, upto(2))]), 2, "another one");
    assert_eq!(say(2, 2, &[(qpn, by, upto(2))]), 2, "an old message");
    assert_eq!(say(2, 3, &[(qpn, by, upto(1))]), 1);
    assert_eq!(say(2, 4, &[(qpn + 1, by, Consumed::Gone(7))]), 1);
    // Its account goes on from there.
    let gone = say(2, 5, &[(qpn, by, Consumed::Gone(7))]);
    assert_eq!(gone, 1, "told before");
    say_gone(&it, qpn, by);
    assert!(it.a.context.retained().unwrap().is_empty());
}

fn say_gone(it: &Two, qpn: u32, by: u32) {
    let covers = vec![Cover { qpn, by, consumed: Consumed::Gone(8) }];
    let what = Fetch::Committed { serial: 6, covers };
    it.job.ask_as(2, ProcessId(1), &what).unwrap();
}

/// Promise: a request that names what is not registered fails as ever, and touches nothing.
#[test]
fn a_request_that_names_nothing_fails_as_ever() {
    let it = two(1 << 16, None);
    let Two { a, b, qa, qb, .. } = &it;
    qb.post_recv(0, &[b.memory.slice(0..64)]).unwrap();
    let mut sge = a.memory.slice(0..8);
    sge.addr = 8;
    qa.post_send(&SendRequest::new(5, Op::Send, &[sge])).unwrap();
    assert_eq!(ids(&a.drain()), [(5, wc_status::LOC_PROT_ERR)]);
    let status = only(a);
    assert_eq!((status.messages, status.records, status.gap.unwrap().numbers), (1, 0, 0..1));
}

/// Promise: what a device does not take is not kept.
#[test]
fn what_is_refused_is_not_kept() {
    let it = two(1 << 16, None);
    let Two { fabric, a, b, qa, .. } = &it;
    send(&it, 1, 10);
    let sge = [a.memory.slice(0..8)];
    let there = Op::Write(b.memory.remote(0));
    // Its key is known from here on.
    qa.post_send(&SendRequest::new(0, there, &sge)).unwrap();
    assert_eq!(ids(&a.drain()), successes(0..1));
    fabric.refuse_posts(true);
    for op in [Op::Send, there] {
        assert!(qa.post_send(&SendRequest::new(5, op, &sge)).is_err());
    }
    fabric.refuse_posts(false);
    let status = only(a);
    assert_eq!((status.messages, status.records), (2, 2));
    // Nor what the window does not.
    fabric.on_command();
    let mut posted = 0;
    while qa.post_send(&SendRequest::new(posted, there, &sge)).is_ok() {
        posted += 1;
    }
    assert_eq!(only(a).records, 2 + posted);
    fabric.at_once();
    fabric.run();
    assert_eq!(a.drain().len() as u64, posted);
}

/// Promise: a spill directory that cannot be written is named when the first queue pair is made.
#[test]
fn a_spill_directory_that_is_not_there_is_named() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let policy = policy(1 << 16, Some(Path::new("/no/such/directory")));
    let a = Process::with(&job, &fabric, 1, Port::infiniband(101), &policy);
    let error = a.pd.create_qp(&QpOptions::rc(&a.cq)).err().unwrap().to_string();
    assert!(error.contains("/no/such/directory"), "{error}");
}
