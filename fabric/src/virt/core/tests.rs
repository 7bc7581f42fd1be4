//! The core over a device in memory, with names that come when the test says so.

mod capture;
mod failover;
mod hold;
mod refusals;
mod remap;
mod retain;
mod room;
mod written;

use super::testing::{Fabric, Job, Port};
use super::{Core, Evidence, Policy};
use crate::abi::{
    self, GRH_BYTES, QpCap, Wc, access, qp_mask, qp_state, wc_flags, wc_opcode, wc_status,
};
use crate::virt::{
    CompletionQueue, ConnectOptions, Context, Data, Datagram, MemoryRegion, Op, ProtectionDomain,
    QpOptions, QueuePair, SendRequest,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ALL: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

/// A process with one of everything.
struct Process {
    _core: Core,
    context: Context,
    pd: ProtectionDomain,
    cq: CompletionQueue,
    memory: MemoryRegion,
}

impl Process {
    fn new(job: &Job, fabric: &Fabric, process: u32) -> Self {
        Process::at(job, fabric, process, Port::infiniband(process as u16 + 100))
    }

    fn at(job: &Job, fabric: &Fabric, process: u32, port: Port) -> Self {
        Process::with(job, fabric, process, port, &Policy::default())
    }

    fn with(job: &Job, fabric: &Fabric, process: u32, port: Port, policy: &Policy) -> Self {
        let core = job.join(process);
        let mut policy = policy.clone();
        // This device's number is live, and there is nothing to try it with: it does what tests say.
        if policy.evidence == Evidence::Auto {
            policy.evidence = Evidence::Psn;
        }
        let context = Context::over(core.open_over(fabric.open(port), policy).unwrap());
        let (pd, cq) = (context.alloc_pd().unwrap(), context.create_cq(4).unwrap());
        let memory = pd.register(4096, ALL).unwrap();
        Process { _core: core, context, pd, cq, memory }
    }

    fn qp(&self) -> QueuePair {
        self.pd.create_qp(&QpOptions::rc(&self.cq)).unwrap()
    }

    fn drain(&self) -> Vec<Wc> {
        drain(&self.cq)
    }
}

fn drain(cq: &CompletionQueue) -> Vec<Wc> {
    let mut all = Vec::new();
    // Few at a time, so that lists are cut.
    let mut wcs = [Wc::default(); 3];
    loop {
        let n = cq.poll(&mut wcs).unwrap();
        all.extend_from_slice(&wcs[..n]);
        if n == 0 {
            return all;
        }
    }
}

/// Two processes with a queue pair each, connected.
struct Two {
    job: Job,
    fabric: Fabric,
    a: Process,
    b: Process,
    qa: QueuePair,
    qb: QueuePair,
}

fn two() -> Two {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    Two { job, fabric, a, b, qa, qb }
}

fn connect(a: &QueuePair, b: &QueuePair) {
    a.connect(&b.endpoint().unwrap(), &ConnectOptions::default()).unwrap();
    b.connect(&a.endpoint().unwrap(), &ConnectOptions::default()).unwrap();
}

fn ids(wcs: &[Wc]) -> Vec<(u64, u32)> {
    wcs.iter().map(|wc| (wc.wr_id, wc.status)).collect()
}

fn successes(range: std::ops::Range<u64>) -> Vec<(u64, u32)> {
    range.map(|id| (id, wc_status::SUCCESS)).collect()
}

/// Promise: names that a program sees are virtual: LID, GID, queue pair numbers, keys, and the
/// peer's in completions.
#[test]
fn every_name_is_virtual() {
    let Two { a, b, qa, qb, .. } = two();
    let end = qb.endpoint().unwrap();
    assert_eq!(end.lid, 2, "the LID is the process number");
    assert_eq!(end.gid.0[..2], [0xfe, 0x80]);
    assert_eq!(end.gid.0[12..], [0, 0, 0, 2]);
    assert!((2..0x100).contains(&qa.qp_num()) && b.memory.lkey() < 0x1_0000);
    assert_eq!(b.memory.lkey(), b.memory.rkey());
    assert!(a.context.device().query_gid(1, 1).is_err(), "a virtual port has one GID");
    assert_eq!(a.context.query_port(1).unwrap().gid_tbl_len, 1);
    let attr = qa.query().unwrap();
    assert_eq!((attr.dest_qp_num, attr.ah_attr.dlid), (qb.qp_num(), 2));
    assert_eq!(attr.cap, qa.cap());

    qb.post_recv(7, &[b.memory.slice(0..64)]).unwrap();
    a.memory.write(0, b"hello");
    qa.post_send(&SendRequest::new(8, Op::SendImm(9), &[a.memory.slice(0..5)])).unwrap();
    let (sent, received) = (a.drain(), b.drain());
    assert_eq!((sent[0].wr_id, sent[0].qp_num), (8, qa.qp_num()));
    let wc = received[0];
    assert_eq!((wc.wr_id, wc.qp_num, wc.byte_len), (7, qb.qp_num(), 5));
    assert_eq!((wc.src_qp, wc.slid), (qa.qp_num(), 1));
    assert_eq!(u32::from_be(wc.imm_data), 9);
}

/// Promise: every posted request completes exactly once, in order, with the signalling asked
/// for, however late a name comes; and posting does not wait for it.
#[test]
fn requests_wait_for_a_slow_name_in_order() {
    let Two { job, fabric, a, b, qa, qb } = two();
    job.set_slow();
    for id in 0..20 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
    }
    a.memory.write(0, &[1, 2, 3, 4]);
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(0, Op::Send, &sge)).unwrap();
    assert_eq!(ids(&a.drain()), successes(0..1), "what names nothing remote does not wait");
    qa.post_send(&SendRequest::new(1, Op::Write(b.memory.remote(100)), &sge)).unwrap();
    let list: Vec<_> = (2..20)
        .map(|id| {
            let request = SendRequest::new(id, Op::Send, &sge);
            if id % 3 == 0 { request.unsignaled() } else { request }
        })
        .collect();
    qa.post_sends(&list).unwrap();
    assert!(a.drain().is_empty());
    assert_eq!(b.drain().len(), 1, "nothing overtakes a request that waits");
    assert_eq!(job.fetched(), 1);
    assert_eq!(job.answer(), 1);
    let signaled: Vec<_> = (1..20).filter(|id| id % 3 != 0).map(|id| (id, 0)).collect();
    assert_eq!(ids(&a.drain()), signaled);
    assert_eq!(ids(&b.drain()), successes(1..19));
    let mut bytes = [0; 4];
    b.memory.read(100, &mut bytes);
    assert_eq!(bytes, [1, 2, 3, 4]);

    // Now it is known, and fetched no more.
    qa.post_send(&SendRequest::new(50, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    assert_eq!((a.drain().len(), job.fetched()), (1, 1));
    fabric.assert_no_overrun();
}

/// Promise: a window may wait for several names, one after the other, and several queue pairs for
/// the same one.
#[test]
fn several_names_and_several_waiters() {
    let Two { job, a, b, qa, qb: _qb, .. } = two();
    let (qa2, qb2) = (a.qp(), b.qp());
    connect(&qa2, &qb2);
    let regions: Vec<_> = (0..40).map(|_| b.pd.register(64, ALL).unwrap()).collect();
    job.set_slow();
    let sge = [a.memory.slice(0..4)];
    for qp in [&qa, &qa2] {
        let list: Vec<_> = regions
            .iter()
            .enumerate()
            .map(|(id, mr)| SendRequest::new(id as u64, Op::Write(mr.remote(0)), &sge))
            .collect();
        qp.post_sends(&list).unwrap();
    }
    let mut rounds = 0;
    while job.answer() > 0 {
        rounds += 1;
    }
    assert_eq!((rounds, job.fetched()), (40, 40), "each name is fetched once");
    let done = a.drain();
    for qp in [&qa, &qa2] {
        let own: Vec<_> = done.iter().filter(|wc| wc.qp_num == qp.qp_num()).copied().collect();
        assert_eq!(ids(&own), successes(0..40));
    }
}

/// Promise: inline data may be reused at once, even while its request waits for a name.
#[test]
fn inline_data_waits_by_value() {
    let Two { job, b, a, qa, qb: _qb, .. } = two();
    job.set_slow();
    let mut bytes = *b"0123456789";
    qa.post_send(&SendRequest::inline(1, Op::Write(b.memory.remote(8)), &bytes)).unwrap();
    bytes.fill(0);
    job.answer();
    assert_eq!(ids(&a.drain()), successes(1..2));
    let mut seen = [0; 10];
    b.memory.read(8, &mut seen);
    assert_eq!(&seen, b"0123456789");
}

/// Promise: where the peer that a request waits for dies, it ends as verbs say, and everything
/// behind it is flushed, after what was on its way before.
#[test]
fn a_dead_peer_ends_what_waits_for_it_in_order() {
    let Two { job, fabric, a, b, qa, qb } = two();
    job.set_slow();
    fabric.on_command();
    qa.post_recv(90, &[a.memory.slice(0..8)]).unwrap();
    qb.post_recv(0, &[b.memory.slice(0..64)]).unwrap();
    qb.post_recv(0, &[b.memory.slice(0..64)]).unwrap();
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &sge).unsignaled()).unwrap();
    fabric.run();
    // Executed, and not polled: its successor left no trace at all.
    qa.post_send(&SendRequest::new(3, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    qa.post_send(&SendRequest::new(4, Op::Send, &sge).unsignaled()).unwrap();
    job.kill(2);
    job.answer();
    qa.post_send(&SendRequest::new(5, Op::Send, &sge)).unwrap();
    let (flush, retry) = (wc_status::WR_FLUSH_ERR, wc_status::RETRY_EXC_ERR);
    let done = a.drain();
    let (recvs, sends): (Vec<_>, Vec<_>) = done.iter().partition(|wc| wc.wr_id == 90);
    assert_eq!(ids(&sends), [(1, 0), (3, retry), (4, flush), (5, flush)]);
    assert_eq!(ids(&recvs), [(90, flush)]);
    assert!(done.iter().all(|wc| wc.qp_num == qa.qp_num()));
    assert_eq!(qa.state().unwrap(), qp_state::ERR);
    qa.post_send(&SendRequest::new(6, Op::Send, &sge)).unwrap();
    qa.post_recv(91, &[a.memory.slice(0..8)]).unwrap();
    assert_eq!(ids(&a.drain()), [(6, flush), (91, flush)]);
}

/// Promise: modify to ERR flushes what waits for a name after what was handed, exactly once, also
/// when the name comes later.
#[test]
fn err_flushes_what_waits_for_a_name() {
    let Two { job, fabric, a, b, qa, qb: _qb } = two();
    job.set_slow();
    fabric.on_command();
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    qa.set_state(qp_state::ERR).unwrap();
    let flush = wc_status::WR_FLUSH_ERR;
    assert_eq!(ids(&a.drain()), [(1, flush), (2, flush), (3, flush)]);
    job.answer();
    assert!(a.drain().is_empty());
    assert_eq!(fabric.outstanding(), 0);

    // And RESET makes a fresh one of it.
    qa.set_state(qp_state::RESET).unwrap();
    assert!(qa.post_send(&SendRequest::new(4, Op::Send, &sge)).is_err(), "not in RESET");
}

/// Promise: RESET discards all work and its completions, those of ours as well.
#[test]
fn reset_discards() {
    let Two { fabric, a, qa, qb, b, .. } = two();
    fabric.on_command();
    let sge = [a.memory.slice(0..4)];
    qa.post_recv(1, &sge).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    qa.set_state(qp_state::ERR).unwrap();
    qa.post_recv(3, &sge).unwrap();
    qa.post_send(&SendRequest::new(4, Op::Send, &sge)).unwrap();
    qa.set_state(qp_state::RESET).unwrap();
    assert!(a.drain().is_empty());
    qb.set_state(qp_state::RESET).unwrap();
    connect(&qa, &qb);
    for id in 0..300 {
        qb.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        qa.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
        fabric.run();
        assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(id, 0)], vec![(id, 0)]));
    }
}

/// Promise: a key that the peer does not have is a remote access error, and one request of no
/// bytes needs no key at all.
#[test]
fn unknown_keys_end_as_verbs_say() {
    let Two { job, a, b, qa, qb, .. } = two();
    let nowhere = b.memory.remote(0);
    qb.post_recv(0, &[]).unwrap();
    let none = crate::virt::Remote { addr: 0, rkey: 0 };
    qa.post_send(&SendRequest::new(1, Op::WriteImm(none, 5), &[])).unwrap();
    assert_eq!((ids(&a.drain()), b.drain().len()), (successes(1..2), 1));
    assert_eq!(job.fetched(), 0);

    b.memory.deregister().unwrap();
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(2, Op::Write(nowhere), &sge)).unwrap();
    qa.post_send(&SendRequest::new(3, Op::Send, &sge)).unwrap();
    let done = ids(&a.drain());
    assert_eq!(done, [(2, wc_status::REM_ACCESS_ERR), (3, wc_status::WR_FLUSH_ERR)]);
    assert_eq!(job.fetched(), 1);
    assert_eq!(qb.state().unwrap(), qp_state::ERR, "the responder's queue pair fails, too");

    // Keys so wild that no table has a place for them.
    for rkey in [u32::MAX, 0xffff_ff00, 0xff] {
        let (qa, qb) = (a.qp(), b.pd.create_qp(&QpOptions::rc(&b.cq)).unwrap());
        connect(&qa, &qb);
        let remote = crate::virt::Remote { addr: 0, rkey };
        qa.post_send(&SendRequest::new(4, Op::Write(remote), &sge)).unwrap();
        assert_eq!(ids(&a.drain()), [(4, wc_status::REM_ACCESS_ERR)]);
    }
}

/// Promise: what the keys of a peer stood for in one of its lives is not taken for what they stand for in the next,
/// though they are the same.
#[test]
fn the_keys_of_a_peer_that_was_started_anew_are_asked_for_again() {
    let Two { job, fabric, a, b, qa, qb } = two();
    let sge = [a.memory.slice(0..4)];
    let remote = b.memory.remote(0);
    qa.post_send(&SendRequest::new(1, Op::Write(remote), &sge)).unwrap();
    assert_eq!(ids(&a.drain()), successes(1..2));
    job.kill(2);
    drop((qa, qb, b));
    // So that its device's numbers are others than those of its first life.
    let _other = Process::new(&job, &fabric, 3);
    let b = Process::new(&job, &fabric, 2);
    assert_eq!(b.memory.remote(0).rkey, remote.rkey);
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    a.memory.write(0, b"anew");
    qa.post_send(&SendRequest::new(2, Op::Write(b.memory.remote(0)), &sge)).unwrap();
    assert_eq!(ids(&a.drain()), successes(2..3));
    let mut there = [0; 4];
    b.memory.read(0, &mut there);
    assert_eq!(&there, b"anew");
}

/// Promise: the same holds for its queue pair numbers, which datagrams go to, once it is known to live anew.
#[test]
fn the_numbers_of_a_peer_that_was_started_anew_are_asked_for_again() {
    let (Two { job, fabric, a, b, qa, qb }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let ping = |qb: &QueuePair, id| {
        let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
        let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
        qa.post_send(&SendRequest::inline(id, Op::Send, b"ping").to(to)).unwrap();
        assert_eq!(ids(&a.drain()), successes(id..id + 1));
    };
    qb.post_recv(1, &[b.memory.slice(0..100)]).unwrap();
    ping(&qb, 1);
    assert_eq!(ids(&drain(&cq)), successes(1..2));
    let number = qb.qp_num();
    job.kill(2);
    drop((qb, cq, b));
    let b = Process::new(&job, &fabric, 2);
    let cq = b.context.create_cq(8).unwrap();
    let qb = b.pd.create_qp(&QpOptions::ud(&cq)).unwrap();
    qb.activate(&ConnectOptions::default()).unwrap();
    assert_eq!(qb.qp_num(), number);
    let (ra, rb) = (a.qp(), b.qp());
    connect(&ra, &rb);
    qb.post_recv(2, &[b.memory.slice(0..100)]).unwrap();
    ping(&qb, 2);
    assert_eq!(ids(&drain(&cq)), successes(2..3));
}

/// Promise: what a peer does not know today it may know tomorrow.
#[test]
fn unknown_names_are_asked_for_again() {
    let Two { a, b, qa, qb: _qb, .. } = two();
    // The key that the peer will deal next.
    let early = crate::virt::Remote { addr: 0, rkey: b.memory.rkey() + 0x100 };
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest::new(1, Op::Write(early), &sge)).unwrap();
    assert_eq!(ids(&a.drain()), [(1, wc_status::REM_ACCESS_ERR)]);
    let late = b.pd.register(64, ALL).unwrap();
    assert_eq!(late.rkey(), early.rkey);
    let (qa, qb) = (a.qp(), b.qp());
    connect(&qa, &qb);
    qa.post_send(&SendRequest::new(2, Op::Write(late.remote(0)), &sge)).unwrap();
    assert_eq!(ids(&a.drain()), successes(2..3));

    let (Two { a, b, qa, qb, .. }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let qkey = ConnectOptions::default().qkey;
    let to = Datagram { ah: &ah, qpn: qb.qp_num() + 1, qkey };
    qa.post_send(&SendRequest::inline(1, Op::Send, b"early").to(to)).unwrap();
    let next = b.pd.create_qp(&QpOptions::ud(&cq)).unwrap();
    assert_eq!(next.qp_num(), to.qpn);
    next.activate(&ConnectOptions::default()).unwrap();
    next.post_recv(2, &[b.memory.slice(0..100)]).unwrap();
    qa.post_send(&SendRequest::inline(2, Op::Send, b"late").to(to)).unwrap();
    assert_eq!((ids(&a.drain()), ids(&drain(&cq))), (successes(1..3), successes(2..3)));
}

/// Promise: a local key of a region that is gone is a protection error, never somebody else's
/// memory.
#[test]
fn a_stale_local_key_is_refused() {
    let Two { a, qa, qb: _qb, .. } = two();
    let gone = a.pd.register(64, ALL).unwrap();
    let stale = [gone.slice(0..4)];
    gone.deregister().unwrap();
    qa.post_send(&SendRequest::new(1, Op::Send, &stale)).unwrap();
    assert_eq!(ids(&a.drain()), [(1, wc_status::LOC_PROT_ERR)]);
}

/// Promise: a queue pair connected to its own process needs nobody.
#[test]
fn a_process_talks_to_itself() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let a = Process::new(&job, &fabric, 1);
    let connect = ConnectOptions::default();
    let (x, y) = a.pd.create_pair(&QpOptions::rc(&a.cq), &connect).unwrap();
    y.post_recv(1, &[a.memory.slice(0..8)]).unwrap();
    a.memory.write(64, &[9; 8]);
    let sge = [a.memory.slice(64..72)];
    x.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    x.post_send(&SendRequest::new(3, Op::Write(a.memory.remote(100)), &sge)).unwrap();
    x.post_send(&SendRequest::new(4, Op::Read(a.memory.remote(0)), &[a.memory.slice(200..208)]))
        .unwrap();
    let word = [a.memory.slice(208..216)];
    x.post_send(&SendRequest::new(5, Op::FetchAdd(a.memory.remote(64), 1), &word)).unwrap();
    assert_eq!(job.fetched(), 0);
    let mut done = ids(&a.drain());
    done.sort_unstable();
    assert_eq!(done, successes(1..6));
    let mut bytes = [0; 16];
    a.memory.read(200, &mut bytes);
    assert_eq!(bytes, [9; 16]);
    assert_eq!(a.memory.atomic_u64(64).load(Ordering::Relaxed), u64::from_ne_bytes([9; 8]) + 1);
}

/// Promise: connecting to a queue pair that does not exist works, and requests end as if
/// nobody answered; a process that is not there is an error that names it.
#[test]
fn connecting_to_nobody() {
    let Two { job, a, b, .. } = two();
    let qp = a.qp();
    let mut end = b.qp().endpoint().unwrap();
    end.qpn = 0x77_7777;
    qp.connect(&end, &ConnectOptions::default()).unwrap();
    qp.post_send(&SendRequest::new(1, Op::Send, &[])).unwrap();
    assert_eq!(ids(&a.drain()), [(1, wc_status::RETRY_EXC_ERR)]);

    (end.lid, end.gid.0[15]) = (3, 3);
    let error = a.qp().connect(&end, &ConnectOptions::default()).unwrap_err();
    assert_eq!(error.errno(), libc::ETIMEDOUT);
    assert!(error.to_string().contains("process 3"), "{error}");
    job.kill(2);
    (end.lid, end.gid.0[15]) = (2, 2);
    let error = a.qp().connect(&end, &ConnectOptions::default()).unwrap_err();
    assert!(error.to_string().contains("process 2 has left the job"), "{error}");
}

fn datagrams(link: fn(u8) -> Port) -> (Two, CompletionQueue) {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) =
        (Process::at(&job, &fabric, 1, link(101)), Process::at(&job, &fabric, 2, link(102)));
    let cq = b.context.create_cq(16).unwrap();
    let qa = a.pd.create_qp(&QpOptions::ud(&a.cq)).unwrap();
    let qb = b.pd.create_qp(&QpOptions::ud(&cq)).unwrap();
    for qp in [&qa, &qb] {
        qp.activate(&ConnectOptions::default()).unwrap();
    }
    (Two { job, fabric, a, b, qa, qb }, cq)
}

/// Promise: a datagram's sender is named virtually, by LID and queue pair number, from its very
/// first datagram, however slow names are.
#[test]
fn datagrams_name_their_sender_virtually() {
    let (Two { job, a, b, qa, qb, .. }, cq) = datagrams(|n| Port::infiniband(n.into()));
    job.set_slow();
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    for id in 0..3 {
        qb.post_recv(id, &[b.memory.slice(0..100)]).unwrap();
        qa.post_send(&SendRequest::inline(id, Op::Send, b"ping").to(to)).unwrap();
    }
    assert!(a.drain().is_empty());
    assert_eq!(job.answer(), 1);
    assert_eq!(ids(&a.drain()), successes(0..3));
    let received = drain(&cq);
    assert_eq!(ids(&received), successes(0..3));
    for wc in received {
        assert_eq!((wc.src_qp, wc.slid, wc.byte_len), (qa.qp_num(), 1, 44));
        assert_eq!(wc.wc_flags & wc_flags::GRH, 0);
    }
    // A second queue pair of the same process is not taken for the first.
    let other = a.pd.create_qp(&QpOptions::ud(&a.cq)).unwrap();
    other.activate(&ConnectOptions::default()).unwrap();
    qb.post_recv(9, &[b.memory.slice(0..100)]).unwrap();
    other.post_send(&SendRequest::inline(9, Op::Send, b"pong").to(to)).unwrap();
    job.answer();
    assert_eq!(drain(&cq)[0].src_qp, other.qp_num());
}

/// Promise: the GRH holds virtual GIDs, also where the wire has an IPv4 header, also where the
/// receive's memory is in pieces.
#[test]
fn the_grh_is_virtual() {
    let (Two { a, b, qa, qb, .. }, cq) = datagrams(Port::ethernet);
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    let pieces = [b.memory.slice(0..7), b.memory.slice(100..133), b.memory.slice(200..260)];
    qb.post_recv(1, &pieces).unwrap();
    qa.post_send(&SendRequest::inline(1, Op::Send, b"ping").to(to)).unwrap();
    let wc = drain(&cq)[0];
    assert_eq!((wc.src_qp, wc.slid), (qa.qp_num(), 1));
    assert_ne!(wc.wc_flags & wc_flags::GRH, 0);
    let mut grh = [0; GRH_BYTES];
    b.memory.read(0, &mut grh[..7]);
    b.memory.read(100, &mut grh[7..]);
    let gid = |p: &Process| p.context.device().query_gid(1, 0).unwrap().0;
    assert_eq!((grh[0] >> 4, &grh[8..24], &grh[24..]), (6, &gid(&a)[..], &gid(&b)[..]));
    let mut payload = [0; 4];
    b.memory.read(200, &mut payload);
    assert_eq!(&payload, b"ping");
}

/// Promise: polling touches no memory that the program has taken away.
#[test]
fn the_grh_of_a_region_that_is_gone_is_left_alone() {
    let (Two { a, b, qa, qb, .. }, cq) = datagrams(Port::ethernet);
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    let gone = b.pd.register(100, ALL).unwrap();
    qb.post_recv(1, &[gone.slice(0..100)]).unwrap();
    qa.post_send(&SendRequest::inline(1, Op::Send, b"ping").to(to)).unwrap();
    drop(gone);
    assert_eq!(ids(&drain(&cq)), successes(1..2));
}

/// Promise: a datagram to a dead process, or to a queue pair that does not exist, is lost,
/// and its request completes; those behind it arrive.
#[test]
fn lost_datagrams_complete() {
    let (Two { job, a, b, qa, qb, .. }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let end = qb.endpoint().unwrap();
    let qkey = ConnectOptions::default().qkey;
    let ah = a.pd.create_ah(&end).unwrap();
    let nobody = Datagram { ah: &ah, qpn: 0x1234, qkey };
    let dead_end = crate::virt::Endpoint { lid: 3, ..end };
    let dead = a.pd.create_ah(&dead_end).unwrap();
    let dead = Datagram { ah: &dead, qpn: 0x1234, qkey };
    qb.post_recv(1, &[b.memory.slice(0..100)]).unwrap();
    job.set_slow();
    qa.post_send(&SendRequest::inline(1, Op::Send, b"a").to(nobody)).unwrap();
    qa.post_send(&SendRequest::inline(2, Op::Send, b"b").to(dead)).unwrap();
    qa.post_send(&SendRequest::inline(3, Op::Send, b"c").to(Datagram { qpn: end.qpn, ..nobody }))
        .unwrap();
    // Its handle goes while it waits: lost, and no more than that.
    let gone = a.pd.create_ah(&end).unwrap();
    let to_gone = Datagram { ah: &gone, qpn: end.qpn, qkey };
    qa.post_send(&SendRequest::inline(4, Op::Send, b"d").to(to_gone)).unwrap();
    drop(gone);
    while job.answer() > 0 {}
    assert_eq!(ids(&a.drain()), successes(1..5));
    assert_eq!(drain(&cq).len(), 1);
}

/// Promise: a physical CQ holds a full flush of all its queue pairs, whatever size the program
/// asked for; and where that cannot be, the error names the limit.
#[test]
fn a_cq_holds_a_full_flush_of_all_its_queue_pairs() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    fabric.on_command();
    let pairs: Vec<_> = (0..5).map(|_| (a.qp(), b.qp())).collect();
    let sge = [a.memory.slice(0..4)];
    let mut posted = 0;
    for (qa, qb) in &pairs {
        connect(qa, qb);
        while qa.post_send(&SendRequest::new(0, Op::Send, &sge).unsignaled()).is_ok() {
            posted += 1;
        }
        while qa.post_recv(0, &sge).is_ok() {
            posted += 1;
        }
    }
    assert_eq!(posted, 5 * 256);
    for (qa, _) in &pairs {
        qa.set_state(qp_state::ERR).unwrap();
    }
    fabric.assert_no_overrun();
    assert_eq!(a.drain().len(), posted);

    let cap = QpCap { max_send_wr: 920, max_recv_wr: 920, ..pairs[0].0.cap() };
    let error = a.pd.create_qp(&QpOptions { cap, ..QpOptions::rc(&a.cq) }).err().unwrap();
    assert!(error.to_string().contains("2048 at most"), "{error}");
    // Destroyed queue pairs make room.
    drop(pairs);
    a.pd.create_qp(&QpOptions { cap, ..QpOptions::rc(&a.cq) }).unwrap();
    let cap = QpCap { max_send_wr: 1000, ..cap };
    let error = a.pd.create_qp(&QpOptions { cap, ..QpOptions::rc(&a.cq) }).err().unwrap();
    assert!(error.to_string().contains("max_send_wr of 1000") && error.to_string().contains("938"));
}

/// Promise: completions of a queue pair that is destroyed are dropped, and those of others
/// stay, in order.
#[test]
fn completions_of_a_destroyed_queue_pair_are_dropped() {
    let Two { a, b, qa, qb, .. } = two();
    let (qa2, qb2) = (a.qp(), b.qp());
    connect(&qa2, &qb2);
    let sge = [a.memory.slice(0..4)];
    for id in 0..6 {
        let (from, to) = if id % 2 == 0 { (&qa, &qb) } else { (&qa2, &qb2) };
        to.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        from.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    let number = qa2.qp_num();
    drop(qa2);
    assert_eq!(ids(&a.drain()), [(0, 0), (2, 0), (4, 0)]);
    assert_ne!(a.qp().qp_num(), number, "a number rests before it is dealt again");
}

/// Promise: rxe never flushes a receive that is posted after ERR; the program gets its
/// completion all the same, also of one that was posted before anybody knew.
#[test]
fn receives_posted_after_err_are_flushed() {
    let Two { job, fabric, a, b, qa, qb } = two();
    fabric.deaf_in_err();
    let sge = [a.memory.slice(0..4)];
    // The peer's fault takes `qb` to ERR without its program's doing.
    let wild = crate::virt::Remote { addr: 0, rkey: 0xff };
    qb.post_recv(1, &[b.memory.slice(0..8)]).unwrap();
    qa.post_send(&SendRequest::new(1, Op::Write(wild), &sge)).unwrap();
    qb.post_recv(2, &[b.memory.slice(0..8)]).unwrap();
    let flush = wc_status::WR_FLUSH_ERR;
    assert_eq!(ids(&b.drain()), [(1, flush)]);
    qb.post_recv(3, &[b.memory.slice(0..8)]).unwrap();
    assert!(b.drain().is_empty());
    job.run_timers();
    assert_eq!(ids(&b.drain()), [(2, flush), (3, flush)]);
    qb.post_recv(4, &[b.memory.slice(0..8)]).unwrap();
    assert_eq!(ids(&b.drain()), [(4, flush)]);
}

/// Promise: what the device refuses is not in the window either.
#[test]
fn a_refused_post_leaves_nothing() {
    let Two { fabric, a, b, qa, qb, .. } = two();
    let sge = [a.memory.slice(0..4)];
    fabric.refuse_posts(true);
    // More than the windows are deep.
    for _ in 0..300 {
        assert!(qa.post_send(&SendRequest::new(1, Op::Send, &sge)).is_err());
        let list = [SendRequest::new(1, Op::Send, &sge); 3];
        assert_eq!(qa.post_sends(&list).unwrap_err().0, 0);
    }
    fabric.refuse_posts(false);
    qb.post_recv(7, &[b.memory.slice(0..8)]).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (successes(2..3), successes(7..8)));
    let many = [a.memory.slice(0..4); 5];
    assert!(qa.post_send(&SendRequest::new(1, Op::Send, &many)).is_err(), "5 elements of 4");
    let long = [0; 65];
    assert!(qa.post_send(&SendRequest::inline(1, Op::Send, &long)).is_err(), "65 bytes of 64");
    let mut wr = abi::SendWr::empty();
    wr.opcode = abi::wr_opcode::LOCAL_INV;
    // SAFETY: one request without elements.
    let refused = unsafe { qa.device().post_send(&raw mut wr) }.unwrap_err();
    assert_eq!((refused.errno(), refused.bad_wr()), (libc::EOPNOTSUPP, &raw mut wr));
}

/// Promise: the send queue is as deep as the program asked for, blocked or not, and slots come back
/// with completions.
#[test]
fn the_window_is_as_deep_as_asked() {
    let Two { job, fabric, a, b, qa, qb: _qb } = two();
    let sge = [a.memory.slice(0..4)];
    job.set_slow();
    let write = SendRequest::new(1, Op::Write(b.memory.remote(0)), &sge);
    let fill = |qp: &QueuePair| (0..).take_while(|_| qp.post_send(&write).is_ok()).count();
    assert_eq!(fill(&qa), 128);
    assert_eq!(qa.post_send(&write).unwrap_err().errno(), libc::ENOMEM);
    job.answer();
    assert_eq!(fill(&qa), 0, "nothing has been polled yet");
    assert_eq!(a.drain().len(), 128);
    assert_eq!(fill(&qa), 128);
    fabric.assert_no_overrun();
}

/// Promise: a channel's descriptor is readable exactly when an event is there, whether a device
/// raised it or we did.
#[test]
fn channels_announce_what_devices_and_we_complete() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    let channel = a.context.create_channel().unwrap();
    let cq = a.context.create_cq_on(4, &channel, 0xc0ffee).unwrap();
    let (qa, qb) = (a.pd.create_qp(&QpOptions::rc(&cq)).unwrap(), b.qp());
    connect(&qa, &qb);
    let now = || Instant::now() + Duration::from_millis(1);
    assert_eq!(channel.wait(now()).unwrap(), None);

    cq.req_notify(false).unwrap();
    qb.post_recv(0, &[b.memory.slice(0..8)]).unwrap();
    qa.post_send(&SendRequest::new(1, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    assert_eq!(channel.wait(now()).unwrap(), Some(0xc0ffee));
    assert_eq!(channel.wait(now()).unwrap(), None);
    assert_eq!(drain(&cq).len(), 1);

    job.set_slow();
    let write = SendRequest::new(2, Op::Write(b.memory.remote(0)), &[]);
    let sge = [a.memory.slice(0..4)];
    qa.post_send(&SendRequest { data: Data::Gather(&sge), ..write }).unwrap();
    cq.req_notify(false).unwrap();
    job.kill(2);
    job.answer();
    assert_eq!(channel.wait(now()).unwrap(), Some(0xc0ffee));
    assert_eq!(ids(&drain(&cq)), [(2, wc_status::RETRY_EXC_ERR)]);
    let plain = a.context.create_cq(4).unwrap();
    assert!(plain.req_notify(false).is_err(), "a CQ without a channel has no events");
}

/// Promise: receives of a shared receive queue are consumed once, by whichever queue pair, and
/// come back, also those that a destroyed queue pair has consumed.
#[test]
fn shared_receives_are_consumed_once_and_come_back() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    let attr = abi::SrqAttr { max_wr: 8, max_sge: 1, srq_limit: 0 };
    let srq = b.pd.create_srq(attr, 5).unwrap();
    let pairs: Vec<_> = (0..3)
        .map(|_| {
            let options = QpOptions { srq: Some(&srq), ..QpOptions::rc(&b.cq) };
            let (qa, qb) = (a.qp(), b.pd.create_qp(&options).unwrap());
            connect(&qa, &qb);
            (qa, qb)
        })
        .collect();
    let sge = [a.memory.slice(0..4)];
    for round in 0..20u64 {
        for id in 0..8 {
            srq.post_recv(round * 8 + id, &[b.memory.slice(0..64)]).unwrap();
        }
        assert_eq!(srq.post_recv(0, &[]).unwrap_err().errno(), libc::ENOMEM);
        for id in 0..8usize {
            pairs[id % 3].0.post_send(&SendRequest::new(0, Op::Send, &sge)).unwrap();
        }
        a.drain();
        let done = b.drain();
        assert_eq!(ids(&done), successes(round * 8..round * 8 + 8));
        for (id, wc) in done.iter().enumerate() {
            let (qa, qb) = &pairs[id % 3];
            assert_eq!((wc.qp_num, wc.src_qp), (qb.qp_num(), qa.qp_num()));
        }
    }
    for id in 0..8 {
        srq.post_recv(id, &[b.memory.slice(0..64)]).unwrap();
        pairs[0].0.post_send(&SendRequest::new(0, Op::Send, &sge)).unwrap();
    }
    drop(pairs);
    assert!(b.drain().is_empty());
    srq.post_recv(9, &[]).unwrap();
    fabric.assert_no_overrun();
}

/// Promise: queue pairs and CQs may be used from any thread at any time.
#[test]
fn many_threads_post_and_poll() {
    const EACH: u64 = 3000;
    let Two { a, b, qa, qb, fabric, .. } = two();
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    let sge = [a.memory.slice(0..4)];
    let mut sent = Vec::new();
    let mut received = 0;
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let (qa, stop) = (&qa, &stop);
            scope.spawn(move || {
                for id in 0..EACH {
                    let request = SendRequest::new(thread << 32 | id, Op::Send, &sge);
                    while qa.post_send(&request).is_err() {
                        assert!(!stop.load(Ordering::Relaxed) && Instant::now() < deadline);
                        std::thread::yield_now();
                    }
                }
            });
        }
        let (qb, region, stop) = (&qb, b.memory.slice(0..64), &stop);
        scope.spawn(move || {
            let mut posted = 0;
            while posted < 3 * EACH {
                assert!(!stop.load(Ordering::Relaxed) && Instant::now() < deadline);
                match qb.post_recv(posted, &[region]) {
                    Ok(()) => posted += 1,
                    Err(_) => std::thread::yield_now(),
                }
            }
        });
        while sent.len() < 3 * EACH as usize || received < 3 * EACH {
            if Instant::now() > deadline {
                stop.store(true, Ordering::Relaxed);
                panic!("{} sent, {received} received", sent.len());
            }
            sent.extend(a.drain().iter().map(|wc| wc.wr_id));
            for wc in b.drain() {
                assert_eq!((wc.wr_id, wc.status), (received, wc_status::SUCCESS));
                received += 1;
            }
        }
    });
    for thread in 0..3 {
        let own: Vec<_> = sent.iter().filter(|id| *id >> 32 == thread).collect();
        assert_eq!(own.len(), EACH as usize);
        assert!(own.is_sorted(), "requests of one thread complete in order");
    }
    fabric.assert_no_overrun();
}

/// Promise: without locks, too, a window that waits for a name is pushed by another thread, and
/// every request completes once, in order.
#[test]
fn a_single_threaded_queue_pair_is_pushed_by_the_service() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let (a, b) = (Process::new(&job, &fabric, 1), Process::new(&job, &fabric, 2));
    // SAFETY: used by this thread alone.
    let (pd, cq) = unsafe {
        (
            a.context.alloc_pd_single_threaded().unwrap(),
            a.context.create_cq_single_threaded(16).unwrap(),
        )
    };
    let memory = pd.register(64, ALL).unwrap();
    let (qa, qb) = (pd.create_qp(&QpOptions::rc(&cq)).unwrap(), b.qp());
    connect(&qa, &qb);
    job.set_slow();
    let regions: Vec<_> = (0..200).map(|_| b.pd.register(64, ALL).unwrap()).collect();
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                job.answer();
                std::thread::yield_now();
            }
        });
        let sge = [memory.slice(0..4)];
        let (mut posted, mut done) = (0u64, 0u64);
        while done < 4000 {
            if Instant::now() > deadline {
                stop.store(true, Ordering::Relaxed);
                panic!("{done} of {posted} done");
            }
            // Every twentieth names a region for the first time.
            let remote = regions[(posted as usize / 20) % 200].remote(0);
            if posted < 4000
                && qa.post_send(&SendRequest::new(posted, Op::Write(remote), &sge)).is_ok()
            {
                posted += 1;
            }
            for wc in drain(&cq) {
                assert_eq!((wc.wr_id, wc.status), (done, wc_status::SUCCESS));
                done += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(qa);
    assert!(drain(&cq).is_empty());
}

/// Promise: what is outside the job is passed through, physical as it is.
#[test]
fn foreign_addresses_pass_through() {
    let (job, fabric) = (Job::default(), Fabric::default());
    let a = Process::at(&job, &fabric, 1, Port::ethernet(1));
    let qp = a.qp();
    let mut end = qp.endpoint().unwrap();
    end.gid = abi::Gid(Port::ethernet(99).gid);
    end.lid = 0;
    end.qpn = 0x4242;
    qp.connect(&end, &ConnectOptions::default()).unwrap();
    assert_eq!(qp.query().unwrap().dest_qp_num, 0x4242);
    assert_eq!(job.fetched(), 0);
    qp.post_send(&SendRequest::new(1, Op::Send, &[])).unwrap();
    assert_eq!(ids(&a.drain()), [(1, wc_status::RETRY_EXC_ERR)]);
    let error = qp.device().modify(&abi::QpAttr::default(), qp_mask::ALT_PATH).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP);
}

/// Promise: objects may go in any order, whatever is outstanding.
#[test]
fn no_order_of_drops_is_wrong() {
    for order in 0..6u32 {
        let Two { job, fabric, a, b, qa, qb } = two();
        fabric.on_command();
        job.set_slow();
        qa.post_send(&SendRequest::new(1, Op::Send, &[])).unwrap();
        let sge = [a.memory.slice(0..4)];
        qa.post_send(&SendRequest::new(2, Op::Write(b.memory.remote(0)), &sge)).unwrap();
        qa.post_recv(3, &sge).unwrap();
        let mut things: Vec<Box<dyn std::any::Any>> = vec![
            Box::new(qa),
            Box::new((a.cq, a.context)),
            Box::new((a.memory, a.pd, a._core)),
            Box::new((qb, b.cq)),
        ];
        while !things.is_empty() {
            let at = order as usize % things.len();
            things.swap_remove(at);
        }
        job.answer();
        job.run_timers();
    }
}

/// Promise: receives are told from sends even where a device leaves a failed completion's opcode
/// undefined.
#[test]
fn opcodes_of_our_own_completions_are_right() {
    let Two { a, qa, .. } = two();
    qa.set_state(qp_state::ERR).unwrap();
    qa.post_recv(1, &[]).unwrap();
    qa.post_send(&SendRequest::new(2, Op::Send, &[])).unwrap();
    let done: Vec<_> = a.drain().iter().map(|wc| (wc.wr_id, wc.opcode)).collect();
    assert_eq!(done, [(1, wc_opcode::RECV), (2, wc_opcode::SEND)]);
}
