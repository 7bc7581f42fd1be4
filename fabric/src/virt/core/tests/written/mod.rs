//! What devices have written: case by case, and against an oracle that compares bytes.

mod oracle;

use super::hold::held_while_stepping;
use super::remap::go;
use super::*;
use crate::virt::{SharedReceiveQueue, Written};

const MAP: usize = 1 << 20;
const PAGE: usize = 4096;

fn late() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn tracking() -> Policy {
    Policy { tracking: true, evidence: Evidence::Psn, ..Policy::default() }
}

/// A process that tracks, and memory of many pages.
fn tracker(job: &Job, fabric: &Fabric, process: u32, policy: &Policy) -> (Process, MemoryRegion) {
    let port = Port::infiniband(process as u16 + 100);
    let process = Process::with(job, fabric, process, port, policy);
    let map = process.pd.register(MAP, ALL).unwrap();
    (process, map)
}

/// Two that track, connected.
struct Tracked {
    job: Job,
    fabric: Fabric,
    a: Process,
    b: Process,
    map_a: MemoryRegion,
    map_b: MemoryRegion,
    qa: QueuePair,
    qb: QueuePair,
}

fn tracked() -> Tracked {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, map_a) = tracker(&job, &fabric, 1, &tracking());
    let (b, map_b) = tracker(&job, &fabric, 2, &tracking());
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    Tracked { job, fabric, a, b, map_a, map_b, qa, qb }
}

fn all_of(memory: &MemoryRegion) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

/// No page.
const NONE: [usize; 0] = [];

/// A report, made in a hold of its own.
fn report(process: &Process) -> Written {
    let held = process.context.suspend(late()).unwrap();
    let written = process.context.written(late()).unwrap();
    held.end().unwrap();
    written
}

/// Which pages of a region are in a report.
fn pages(written: &Written, map: &MemoryRegion) -> Vec<usize> {
    let base = map.addr() as usize;
    let is_in = |page: &usize| {
        let at = base + page * PAGE;
        written.ranges().iter().any(|range| range.start < at + PAGE && at < range.end)
    };
    (0..map.len() / PAGE).filter(is_in).collect()
}

/// Pages of a region that devices have written since the last committed report; commits it.
fn taken(process: &Process, map: &MemoryRegion) -> Vec<usize> {
    let written = report(process);
    assert_eq!(written.unknown(), []);
    let pages = pages(&written, map);
    written.commit(late()).unwrap();
    pages
}

fn write(qp: &QueuePair, from: &Process, to: &MemoryRegion, page: usize) {
    let sge = [from.memory.slice(0..64)];
    qp.post_send(&SendRequest::new(1, Op::Write(to.remote(page * PAGE)), &sge)).unwrap();
    assert_eq!(ids(&from.drain()), successes(1..2));
}

/// Promise 7: each way in which a device writes is told, page by page, and nothing else is.
#[test]
fn every_way_to_write_is_told() {
    let Tracked { a, b, map_a, map_b, qa, qb, .. } = tracked();
    assert_eq!((taken(&a, &map_a), taken(&b, &map_b)), (vec![], vec![]));
    let sge = [a.memory.slice(0..64)];
    qb.post_recv(1, &[map_b.slice(20 * PAGE - 8..20 * PAGE + 8)]).unwrap();
    qb.post_recv(2, &[]).unwrap();
    qb.post_recv(3, &[map_b.slice(30 * PAGE..30 * PAGE + 8)]).unwrap();
    let own = [1, 2].map(|page| [map_a.slice(page * PAGE..page * PAGE + 8)]);
    let at = |page: usize| map_b.remote(page * PAGE);
    let requests = [
        SendRequest::new(1, Op::Write(at(3).offset(PAGE as u64 - 1)), &sge).unsignaled(),
        SendRequest::new(2, Op::Send, &sge[..0]),
        SendRequest::new(3, Op::WriteImm(at(6), 9), &sge),
        SendRequest::new(4, Op::FetchAdd(at(9), 1), &own[0]),
        SendRequest::new(5, Op::Read(at(11)), &own[1]).unsignaled(),
        SendRequest::inline(6, Op::Write(at(13)), b"inline"),
    ];
    requests.iter().for_each(|request| qa.post_send(request).unwrap());
    // The READ came back, and the third receive is still out.
    assert_eq!(taken(&b, &map_b), [3, 4, 6, 9, 13, 19, 20]);
    assert_eq!(taken(&a, &map_a), [1, 2]);
    assert_eq!((taken(&a, &map_a), taken(&b, &map_b)), (vec![], vec![]), "once");
    qa.post_send(&SendRequest::new(7, Op::Send, &sge[..0])).unwrap();
    assert_eq!(taken(&b, &map_b), [30], "when it is consumed");
    a.drain();
    b.drain();
}

/// Promise 7: what was told is told again until its report is committed; and what comes after a report stays for
/// the next, whether that is committed or not.
#[test]
fn reports_are_cumulative_since_the_last_commit() {
    let Tracked { a, b, map_b, qa, qb: _qb, .. } = tracked();
    write(&qa, &a, &map_b, 1);
    drop(report(&b));
    write(&qa, &a, &map_b, 2);
    let second = report(&b);
    assert_eq!(pages(&second, &map_b), [1, 2]);
    write(&qa, &a, &map_b, 3);
    second.commit(late()).unwrap();
    assert_eq!(taken(&b, &map_b), [3]);
    // One that is committed late says nothing of what came since the next was made.
    write(&qa, &a, &map_b, 4);
    let early = report(&b);
    write(&qa, &a, &map_b, 5);
    let late_one = report(&b);
    early.commit(late()).unwrap();
    drop(late_one);
    assert_eq!(taken(&b, &map_b), [4, 5]);
    assert_eq!(taken(&b, &map_b), NONE);
}

/// Promise 7: a request that was handed, and waits for a receive behind which it stands, is told when it has landed:
/// also where the report that it was handed before is committed.
#[test]
fn what_lands_after_a_hold_is_told_after_it() {
    let Tracked { a, b, map_b, qa, qb, .. } = tracked();
    write(&qa, &a, &map_b, 1);
    let sge = [a.memory.slice(0..64)];
    qa.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    qa.post_send(&SendRequest::new(3, Op::Write(map_b.remote(7 * PAGE)), &sge)).unwrap();
    assert!(taken(&b, &map_b).contains(&1));
    qb.post_recv(4, &[map_b.slice(9 * PAGE..9 * PAGE + 64)]).unwrap();
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (successes(2..4), successes(4..5)));
    assert_eq!(taken(&b, &map_b), [7, 9]);
}

/// Promise 7: what a message has left that came in part, because its sender failed, is told as long as its receive is out.
#[test]
fn what_is_left_of_a_message_that_failed_is_told() {
    let Tracked { fabric, a, b, map_a, map_b, qa, qb, .. } = tracked();
    let receive = |id: u64, page: usize| {
        qb.post_recv(id, &[map_b.slice(page * PAGE..(page + 2) * PAGE)]).unwrap();
    };
    receive(1, 3);
    receive(2, 9);
    assert_eq!(taken(&b, &map_b), NONE, "nothing came");
    fabric.on_command();
    let before = all_of(&map_b);
    map_a.write(0, &[7; PAGE]);
    qa.post_send(&SendRequest::new(5, Op::Send, &[map_a.slice(0..2 * PAGE)])).unwrap();
    fabric.cut(1);
    assert!(all_of(&map_b) != before, "some of it");
    qa.set_state(qp_state::ERR).unwrap();
    fabric.at_once();
    for _ in 0..2 {
        assert_eq!(taken(&b, &map_b), [3, 4]);
    }
    qb.set_state(qp_state::RESET).unwrap();
    assert_eq!(taken(&b, &map_b), [3, 4, 9, 10], "it may have gone on until then");
    assert_eq!(taken(&b, &map_b), NONE);
    drop(a.drain());
}

/// Promise 7: the same where its sender fails while it is being held.
#[test]
fn what_is_left_of_a_message_that_fails_in_a_hold_is_told() {
    let Tracked { fabric, a, b, map_a, map_b, qa, qb, .. } = tracked();
    qb.post_recv(1, &[map_b.slice(3 * PAGE..5 * PAGE)]).unwrap();
    fabric.on_command();
    map_a.write(0, &[7; PAGE]);
    qa.post_send(&SendRequest::new(5, Op::Send, &[map_a.slice(0..2 * PAGE)])).unwrap();
    fabric.cut(1);
    // The rest is not there any more when it is to be sent.
    drop(map_a);
    let held = held_while_stepping(&b, &fabric);
    let written = b.context.written(late()).unwrap();
    assert_eq!(pages(&written, &map_b), [3, 4]);
    held.end().unwrap();
    assert_eq!(ids(&a.drain()), [(5, wc_status::LOC_PROT_ERR)]);
}

/// Promise 7: keys that are gone, and come again, and memory that is registered anew, are told by where they were.
#[test]
fn regions_that_end_are_told() {
    let Tracked { a, b, map_b, qa, qb: _qb, .. } = tracked();
    let sge = [a.memory.slice(0..64)];
    let region = b.pd.register(4 * PAGE, ALL).unwrap();
    let (addr, key) = (region.addr() as usize, region.rkey());
    let request = SendRequest::new(1, Op::Write(region.remote(PAGE)), &sge);
    qa.post_send(&request).unwrap();
    drop(region);
    let written = report(&b);
    let wanted = addr + PAGE..addr + 2 * PAGE;
    assert!(written.ranges().iter().any(|it| it.start <= wanted.start && it.end >= wanted.end));
    drop(written);
    // Until the very key comes again, for other memory.
    let again = loop {
        let again = b.pd.register(PAGE, ALL).unwrap();
        if again.rkey() == key {
            break again;
        }
    };
    let written = report(&b);
    assert!(written.ranges().iter().any(|it| it.start <= wanted.start && it.end >= wanted.end));
    written.commit(late()).unwrap();
    assert_eq!(taken(&b, &map_b), NONE);
    assert_eq!(report(&b).bytes(), 0);
    drop(again);
    a.drain();
}

/// Promise 7: receives that are shared are told when they are consumed; while one is out it may be filled in part.
#[test]
fn shared_receives_are_told() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, _map) = tracker(&job, &fabric, 1, &tracking());
    let (b, map_b) = tracker(&job, &fabric, 2, &tracking());
    let attr = abi::SrqAttr { max_wr: 16, max_sge: 1, srq_limit: 0 };
    let srq: SharedReceiveQueue = b.pd.create_srq(attr, 0).unwrap();
    let qb = b.pd.create_qp(&QpOptions { srq: Some(&srq), ..QpOptions::rc(&b.cq) }).unwrap();
    let qa = a.qp();
    connect(&qa, &qb);
    for page in [3, 5] {
        srq.post_recv(page as u64, &[map_b.slice(page * PAGE..page * PAGE + 64)]).unwrap();
    }
    qa.post_send(&SendRequest::new(1, Op::Send, &[a.memory.slice(0..8)])).unwrap();
    assert_eq!(taken(&b, &map_b), [3, 5]);
    assert_eq!(taken(&b, &map_b), [5]);
    qa.post_send(&SendRequest::new(2, Op::Send, &[a.memory.slice(0..8)])).unwrap();
    b.drain();
    assert_eq!(taken(&b, &map_b), [5]);
    assert_eq!(taken(&b, &map_b), NONE);
    drop((qa, qb));
}

/// Promise 7: where a record cannot be had, all that the writer could have written counts, and it is named.
#[test]
fn who_cannot_tell_may_have_written_all() {
    let all: Vec<usize> = (0..MAP / PAGE).collect();
    // Does not track.
    let (job, fabric) = (Job::default(), Fabric::default());
    let blind = Policy { tracking: false, ..tracking() };
    let (a, _map) = tracker(&job, &fabric, 1, &blind);
    let (b, map_b) = tracker(&job, &fabric, 2, &tracking());
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    // What allows no remote writes, or belongs to another domain, is not concerned.
    let closed = b.pd.register(PAGE, access::LOCAL_WRITE | access::REMOTE_READ).unwrap();
    let other = b.context.alloc_pd().unwrap().register(PAGE, ALL).unwrap();
    for _ in 0..2 {
        let written = report(&b);
        assert_eq!(pages(&written, &map_b), all);
        assert!(pages(&written, &closed).is_empty() && pages(&written, &other).is_empty());
        let [(peer, why)] = written.unknown() else { panic!("{:?}", written.unknown()) };
        assert!(peer.is_some_and(|peer| peer.0 == 1) && why.contains("does not track"), "{why}");
        written.commit(late()).unwrap();
    }
    drop((qa, qb));
    assert_eq!(pages(&report(&b), &map_b), all, "it may have written until its connection ended");

    // Dead, or silent; and when it answers again it has forgotten nothing.
    let Tracked { job, a, b, map_b, qa, qb: _qb, .. } = tracked();
    write(&qa, &a, &map_b, 5);
    let held = b.context.suspend(late()).unwrap();
    job.lose(Some(1));
    let written = b.context.written(late()).unwrap();
    assert_eq!((pages(&written, &map_b), written.unknown().len()), (all.clone(), 1));
    job.lose(None);
    drop(written);
    assert_eq!(pages(&b.context.written(late()).unwrap(), &map_b), [5]);
    held.end().unwrap();
    job.kill(1);
    assert_eq!(pages(&report(&b), &map_b), all);
}

/// Promise 7: a process that was started anew does not know what its former self wrote, and is not believed.
#[test]
fn a_writer_that_was_started_anew_may_have_written_all() {
    let all: Vec<usize> = (0..MAP / PAGE).collect();
    let Tracked { job, fabric, a, b, map_a, map_b, qa, qb } = tracked();
    write(&qa, &a, &map_b, 5);
    job.kill(1);
    drop((qa, qb, map_a, a));
    let (a, _map) = tracker(&job, &fabric, 1, &tracking());
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    write(&qa, &a, &map_b, 6);
    let written = report(&b);
    assert_eq!(pages(&written, &map_b), all);
    assert!(written.unknown()[0].1.contains("started anew"), "{:?}", written.unknown());
    written.commit(late()).unwrap();
    write(&qa, &a, &map_b, 7);
    assert_eq!(taken(&b, &map_b), [7], "of this life it tells");
}

/// Promise: a report is of a context that tracks, and stands still.
#[test]
fn a_report_needs_a_hold_and_tracking() {
    let Tracked { b, qb: _qb, qa: _qa, a: _a, .. } = tracked();
    assert_eq!(b.context.written(late()).err().unwrap().errno(), libc::EINVAL);
    let Two { b, .. } = two();
    let error = b.context.written(late()).err().unwrap();
    assert_eq!(error.errno(), libc::EOPNOTSUPP, "{error}");
    assert!(error.to_string().contains("SOJOURN_TRACK_WRITES=1"), "{error}");
}

/// Promise 7: records and keys go with both sides when they move, and connections that ended are remembered.
#[test]
fn records_survive_moves_and_ends_of_connections() {
    let Tracked { fabric, a, b, map_b, qa, qb, .. } = tracked();
    write(&qa, &a, &map_b, 1);
    go(&a, fabric.open(Port::infiniband(300)));
    write(&qa, &a, &map_b, 2);
    go(&b, fabric.open(Port::infiniband(301)));
    write(&qa, &a, &map_b, 3);
    drop((qa, qb));
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    write(&qa, &a, &map_b, 4);
    for qp in [&qa, &qb] {
        qp.set_state(qp_state::RESET).unwrap();
    }
    assert_eq!(taken(&b, &map_b), [1, 2, 3, 4]);
    connect(&qa, &qb);
    assert_eq!(taken(&b, &map_b), NONE);
}

/// Promise 7: a process that writes into its own memory through a queue pair is one of its peers.
#[test]
fn a_process_that_writes_to_itself_is_told() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, map) = tracker(&job, &fabric, 1, &tracking());
    let (one, other) = (a.qp(), a.qp());
    connect(&one, &other);
    write(&one, &a, &map, 4);
    assert_eq!(taken(&a, &map), [4]);
    assert_eq!(taken(&a, &map), NONE);
}

/// Promise 7: datagrams come when they come: as long as a receive for one is out, it counts as written.
#[test]
fn receives_of_datagrams_count_until_they_are_consumed() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, _map) = tracker(&job, &fabric, 1, &tracking());
    let (b, map_b) = tracker(&job, &fabric, 2, &tracking());
    let end = |process: &Process| process.pd.create_qp(&QpOptions::ud(&process.cq)).unwrap();
    let (qa, qb) = (end(&a), end(&b));
    [&qa, &qb].iter().for_each(|qp| qp.activate(&ConnectOptions::default()).unwrap());
    qb.post_recv(1, &[map_b.slice(3 * PAGE..3 * PAGE + 200)]).unwrap();
    assert_eq!(taken(&b, &map_b), [3]);
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    let held = b.context.suspend(late()).unwrap();
    let written = b.context.written(late()).unwrap();
    // It lands in the hold.
    qa.post_send(&SendRequest::inline(2, Op::Send, b"ping").to(to)).unwrap();
    held.end().unwrap();
    written.commit(late()).unwrap();
    assert_eq!(ids(&b.drain()), successes(1..2));
    assert_eq!(taken(&b, &map_b), [3]);
    assert_eq!(taken(&b, &map_b), NONE);
    drop(a.drain());
}
