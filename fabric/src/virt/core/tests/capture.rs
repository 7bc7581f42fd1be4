//! Contexts that are captured and restored over the device in memory: each kind of object, and what is
//! refused.

use super::*;
use crate::abi::SrqAttr;
use crate::device::DeviceContext;
use crate::error::Error;
use crate::virt::{Restored, Retention, Spill, captured_regions};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Beyond anything that these tests take.
fn late() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// What is kept of a context and its memory.
struct Kept {
    bytes: Vec<u8>,
    memory: Vec<(u64, Vec<u8>)>,
}

fn policy() -> Policy {
    Policy { evidence: Evidence::Psn, ..Policy::default() }
}

/// A region of memory where nothing else is put: far below where the kernel maps what is asked for
/// anywhere, so that nobody takes its place while it is gone.
fn adopt(pd: &ProtectionDomain, length: usize) -> MemoryRegion {
    static NEXT: AtomicU64 = AtomicU64::new(0x2000_0000_0000);
    let at = map_at(NEXT.fetch_add(1 << 30, Ordering::Relaxed), length);
    // SAFETY: mapped just now, for this alone.
    unsafe { pd.adopt(at, length, ALL) }.unwrap()
}

fn map_at(addr: u64, length: usize) -> NonNull<u8> {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    );
    // SAFETY: where nothing is mapped, or it fails.
    let at = unsafe { libc::mmap(addr as *mut libc::c_void, length, prot, flags, -1, 0) };
    assert_eq!(at as u64, addr, "{}", std::io::Error::last_os_error());
    NonNull::new(at.cast()).unwrap()
}

/// One process alone, and what it is made over.
struct One {
    job: Job,
    fabric: Fabric,
    core: Core,
    context: Context,
    pd: ProtectionDomain,
    cq: CompletionQueue,
    memory: MemoryRegion,
}

fn one() -> One {
    let (job, fabric) = (Job::default(), Fabric::default());
    let Process { _core: core, context, pd, cq, memory } = Process::new(&job, &fabric, 1);
    drop(memory);
    let memory = adopt(&pd, 4096);
    One { job, fabric, core, context, pd, cq, memory }
}

impl One {
    fn qp(&self) -> QueuePair {
        self.pd.create_qp(&QpOptions::rc(&self.cq)).unwrap()
    }

    fn pair(&self) -> (QueuePair, QueuePair) {
        let pair = (self.qp(), self.qp());
        connect(&pair.0, &pair.1);
        pair
    }

    fn capture(&self) -> crate::Result<Kept> {
        let held = self.context.suspend(late())?;
        let bytes = held.capture(late())?;
        let mut memory = Vec::new();
        for region in captured_regions(&bytes).unwrap() {
            let mut all = vec![0; region.length as usize];
            if region.addr == self.memory.addr() {
                self.memory.read(0, &mut all);
            }
            memory.push((region.addr, all));
        }
        held.end()?;
        Ok(Kept { bytes, memory })
    }

    /// Captures it, and lets go of everything but what the names are dealt by.
    fn leave(self, qps: Vec<QueuePair>) -> (Kept, Job, Fabric, Core) {
        let kept = self.capture().unwrap();
        drop(qps);
        let One { job, fabric, core, context, pd, cq, memory } = self;
        drop((memory, cq, pd, context));
        assert_eq!(fabric.objects(), [0; 4], "nothing is left");
        fabric.at_once();
        (kept, job, fabric, core)
    }
}

fn map(kept: &Kept) {
    for (addr, bytes) in &kept.memory {
        let at = map_at(*addr, bytes.len()).as_ptr();
        // SAFETY: mapped just now, of that length.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }
}

fn unmap(kept: &Kept) {
    for (addr, bytes) in &kept.memory {
        // SAFETY: mapped by `map`, and owned by nobody else.
        unsafe { libc::munmap(*addr as *mut libc::c_void, bytes.len()) };
    }
}

fn try_restore(
    core: &Core,
    device: Arc<dyn DeviceContext>,
    bytes: &[u8],
) -> Result<Restored, Error> {
    // SAFETY: tests map the memory, and take regions once.
    unsafe { core.restore_over(device, policy(), bytes) }.map(Restored::over)
}

fn restore(core: &Core, fabric: &Fabric, kept: &Kept) -> (Restored, MemoryRegion) {
    map(kept);
    let mut restored = try_restore(core, fabric.open(Port::infiniband(300)), &kept.bytes).unwrap();
    let key = restored.regions().next().unwrap().key;
    let memory = restored.take_region(key).unwrap();
    (restored, memory)
}

/// Promise: every kind of object comes back under its names and in its state, and names that are dealt
/// afterwards are others.
#[test]
fn each_kind_of_object_comes_back() {
    each_kind(false);
    // In another process, which has dealt nothing so far.
    each_kind(true);
}

fn each_kind(elsewhere: bool) {
    let one = one();
    let srq = one.pd.create_srq(SrqAttr { max_wr: 8, max_sge: 2, srq_limit: 0 }, 77).unwrap();
    srq.post_recv(50, &[one.memory.slice(0..64)]).unwrap();
    drop(one.qp());
    let options = ConnectOptions::default();
    let qps: Vec<_> = (0..5).map(|_| one.qp()).collect();
    // RESET, INIT with a receive, ERR, and two that are connected.
    qps[1].init(&options).unwrap();
    qps[1].post_recv(11, &[one.memory.slice(64..128)]).unwrap();
    qps[2].init(&options).unwrap();
    qps[2].set_state(qp_state::ERR).unwrap();
    connect(&qps[3], &qps[4]);
    let shared =
        one.pd.create_qp(&QpOptions { srq: Some(&srq), ..QpOptions::rc(&one.cq) }).unwrap();
    let ah = one.pd.create_ah(&qps[0].endpoint().unwrap()).unwrap();
    let unreliable = [0, 1].map(|_| one.pd.create_qp(&QpOptions::uc(&one.cq)).unwrap());
    connect(&unreliable[0], &unreliable[1]);
    let mut numbers: Vec<_> = qps.iter().map(QueuePair::qp_num).collect();
    numbers.push(shared.qp_num());
    numbers.extend(unreliable.each_ref().map(QueuePair::qp_num));
    let (key, cap) = (one.memory.rkey(), qps[0].cap());
    let attr = qps[3].query().unwrap();
    let mut all = qps.clone();
    all.push(shared);
    all.extend(unreliable);
    let before = one.capture().unwrap();
    drop((ah, srq, qps));
    let (kept, job, fabric, mut core) = one.leave(all);
    drop(before);
    if elsewhere {
        core = job.join(1);
    }

    let (restored, memory) = restore(&core, &fabric, &kept);
    assert_eq!(restored.queue_pairs().collect::<Vec<_>>(), numbers);
    assert_eq!((memory.rkey(), memory.len()), (key, 4096));
    let qps: Vec<_> = numbers.iter().map(|it| restored.queue_pair(*it).unwrap()).collect();
    let states: Vec<_> = qps.iter().map(|qp| qp.state().unwrap()).collect();
    let (reset, init, rts) = (qp_state::RESET, qp_state::INIT, qp_state::RTS);
    assert_eq!(states, [reset, init, qp_state::ERR, rts, rts, reset, rts, rts]);
    assert_eq!(qps[0].cap(), cap);
    let again = qps[3].query().unwrap();
    assert_eq!((again.dest_qp_num, again.ah_attr), (attr.dest_qp_num, attr.ah_attr));
    let (pd, cq) = (restored.protection_domain(0).unwrap(), restored.completion_queue(0).unwrap());
    assert!(restored.protection_domain(1).is_none() && restored.queue_pair(1).is_none());
    assert!(restored.address_handle(1).is_none() && restored.address_handle(0).is_none());

    // The receive of the one in INIT, and the shared one, are there.
    let (a, b) = (&qps[0], &qps[1]);
    b.connect(&a.endpoint().unwrap(), &ConnectOptions::default()).unwrap();
    a.connect(&b.endpoint().unwrap(), &ConnectOptions::default()).unwrap();
    memory.write(1000, b"eleven");
    let sge = [memory.slice(1000..1006)];
    a.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    let mut done = ids(&drain(&cq));
    done.sort_unstable();
    assert_eq!(done, [(1, 0), (11, 0)]);

    qps[7].post_recv(12, &[memory.slice(128..192)]).unwrap();
    qps[6].post_send(&SendRequest::new(2, Op::Send, &sge)).unwrap();
    let mut done = ids(&drain(&cq));
    done.sort_unstable();
    assert_eq!(done, [(2, 0), (12, 0)]);

    // New names.
    let fresh: Vec<_> = (0..1100).map(|_| pd.register(64, ALL).unwrap().rkey()).collect();
    assert!(!fresh.contains(&key));
    let cq = restored.context().create_cq(16).unwrap();
    for _ in 0..20 {
        let qp = pd.create_qp(&QpOptions::rc(&cq)).unwrap();
        assert!(!numbers.contains(&qp.qp_num()));
    }
}

/// Promise: completions that nobody has read, events that nobody has taken, and notifications that were
/// asked for come back; what was posted comes behind what was there.
#[test]
fn unread_completions_events_and_notifications_come_back() {
    let one = one();
    let channel = one.context.create_channel().unwrap();
    let cqs = [5, 6, 7].map(|user| one.context.create_cq_on(16, &channel, user).unwrap());
    let qps: Vec<_> = cqs
        .iter()
        .flat_map(|cq| {
            let other = one.pd.create_qp(&QpOptions::rc(cq)).unwrap();
            let own = one.qp();
            connect(&own, &other);
            [own, other]
        })
        .collect();
    let sge = [one.memory.slice(0..4)];
    for (at, cq) in cqs.iter().enumerate() {
        for id in 0..4 {
            qps[2 * at + 1].post_recv(id, &[one.memory.slice(64..128)]).unwrap();
        }
        // The first is told of one, which nobody takes; the second waits for the next, having one; the
        // third waits for a solicited one.
        if at == 0 {
            cq.req_notify(false).unwrap();
        }
        qps[2 * at].post_send(&SendRequest::new(0, Op::Send, &sge)).unwrap();
        match at {
            1 => {
                assert_eq!(ids(&drain(cq)), successes(0..1));
                cq.req_notify(false).unwrap();
            }
            2 => cq.req_notify(true).unwrap(),
            _ => {}
        }
    }
    let numbers: Vec<_> = qps.iter().map(QueuePair::qp_num).collect();
    drop((cqs, channel));
    let (kept, _job, fabric, core) = one.leave(qps);

    let (restored, memory) = restore(&core, &fabric, &kept);
    let channel = restored.completion_channel(0).unwrap();
    let cqs = [5, 6, 7].map(|user| restored.completion_queue_of(user).unwrap());
    let qps: Vec<_> = numbers.iter().map(|it| restored.queue_pair(*it).unwrap()).collect();
    let now = || Instant::now() + Duration::from_millis(20);
    assert_eq!(channel.wait(late()).unwrap(), Some(5), "its event had come");
    assert_eq!(channel.wait(now()).unwrap(), None, "and no other");
    let sge = [memory.slice(0..4)];
    qps[4].post_send(&SendRequest::new(1, Op::Send, &sge).solicited()).unwrap();
    assert_eq!(channel.wait(late()).unwrap(), Some(7));
    qps[2].post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    assert_eq!(channel.wait(late()).unwrap(), Some(6));
    qps[0].post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    assert_eq!(channel.wait(now()).unwrap(), None, "nobody asked again");
    assert_eq!(ids(&drain(&cqs[0])), successes(0..2));
    assert_eq!(ids(&drain(&cqs[1])), successes(1..2));
    assert_eq!(ids(&drain(&cqs[2])), successes(0..2));
    let sent = drain(&restored.completion_queue(0).unwrap());
    assert_eq!(sent.len(), 6, "those from before, too");
}

/// Promise: at ERR, what the program has not read of what failed comes back: once, in order, with the
/// status of each; whoever flushed it.
#[test]
fn what_failed_is_told_once() {
    for read in [0, 2, 4] {
        let one = one();
        let (qa, qb) = one.pair();
        let sge = [one.memory.slice(0..4)];
        qa.post_recv(90, &sge).unwrap();
        qa.post_recv(91, &sge).unwrap();
        // A key that is nobody's.
        let nowhere = crate::virt::Remote { addr: 0, rkey: 0x00de_ad00 };
        for id in 0..4 {
            let op = if id == 1 { Op::Write(nowhere) } else { Op::Write(one.memory.remote(64)) };
            qa.post_send(&SendRequest::new(id, op, &sge)).unwrap();
        }
        let done = drain_some(&one.cq, read);
        // These are flushed by us.
        qa.post_send(&SendRequest::new(4, Op::Write(one.memory.remote(64)), &sge)).unwrap();
        qa.post_recv(92, &sge).unwrap();
        let (number, peer) = (qa.qp_num(), qb.qp_num());
        let (kept, _job, fabric, core) = one.leave(vec![qa, qb]);
        let (restored, memory) = restore(&core, &fabric, &kept);
        let (qa, qb) = (restored.queue_pair(number).unwrap(), restored.queue_pair(peer).unwrap());
        assert_eq!(qa.state().unwrap(), qp_state::ERR);
        let sge = [memory.slice(0..4)];
        qa.post_send(&SendRequest::new(5, Op::Write(memory.remote(64)), &sge)).unwrap();
        let cq = restored.completion_queue(0).unwrap();
        let all = [done, drain(&cq)].concat();
        let of_qa: Vec<_> = all.iter().filter(|wc| wc.qp_num == number).copied().collect();
        let (recvs, sends): (Vec<_>, Vec<_>) = of_qa.iter().partition(|wc| wc.wr_id >= 90);
        let (access, flush) = (wc_status::REM_ACCESS_ERR, wc_status::WR_FLUSH_ERR);
        assert_eq!(
            ids(&sends),
            [(0, 0), (1, access), (2, flush), (3, flush), (4, flush), (5, flush)],
            "{read} were read"
        );
        assert_eq!(ids(&recvs), [(90, flush), (91, flush), (92, flush)], "{read} were read");
        // And a fresh start.
        qa.set_state(qp_state::RESET).unwrap();
        qb.set_state(qp_state::RESET).unwrap();
        connect(&qa, &qb);
        qb.post_recv(6, &[memory.slice(64..128)]).unwrap();
        qa.post_send(&SendRequest::new(7, Op::Send, &sge)).unwrap();
        let mut done = ids(&drain(&cq));
        done.sort_unstable();
        assert_eq!(done, [(6, 0), (7, 0)]);
    }
}

fn drain_some(cq: &CompletionQueue, n: usize) -> Vec<Wc> {
    let mut wcs = vec![Wc::default(); n];
    let got = if n == 0 { 0 } else { cq.poll(&mut wcs).unwrap() };
    wcs.truncate(got);
    wcs
}

/// Promise 3: of a message that was cut for want of a receive, what has landed is not written again; and
/// the receiver is told its whole length.
#[test]
fn a_message_that_was_cut_goes_on_where_it_was() {
    let one = one();
    let (qa, qb) = one.pair();
    let big = adopt(&one.pd, 8192);
    big.write(0, &[7; 4096]);
    one.fabric.on_command();
    let to = crate::virt::Remote { addr: big.addr() + 4096, rkey: big.rkey() };
    let sge = [big.slice(0..4096)];
    qa.post_send(&SendRequest::new(1, Op::WriteImm(to, 77), &sge)).unwrap();
    qa.post_send(&SendRequest::new(
        2,
        Op::FetchAdd(one.memory.remote(8), 5),
        &[one.memory.slice(16..24)],
    ))
    .unwrap();
    one.fabric.cut(3);
    let (numbers, addr) = ((qa.qp_num(), qb.qp_num()), big.addr());
    let mut kept = one.capture().unwrap();
    let big_bytes = kept.memory.iter_mut().find(|it| it.0 == addr).unwrap();
    big.read(0, &mut big_bytes.1);
    // The program has seen what has landed, and changed it.
    assert!(big_bytes.1[4096..7168].iter().all(|byte| *byte == 7), "three packets have landed");
    big_bytes.1[4096..7168].fill(9);
    drop(big);
    let (_, _job, fabric, core) = one.leave(vec![qa, qb]);

    let (mut restored, memory) = restore(&core, &fabric, &kept);
    let key = restored.regions().next().unwrap().key;
    let big = restored.take_region(key).unwrap();
    let qb = restored.queue_pair(numbers.1).unwrap();
    qb.post_recv(9, &[]).unwrap();
    fabric.run();
    let done = drain(&restored.completion_queue(0).unwrap());
    let (received, sent): (Vec<_>, Vec<_>) = done.iter().partition(|wc| wc.wr_id == 9);
    assert_eq!((ids(&received), ids(&sent)), (vec![(9, 0)], vec![(1, 0), (2, 0)]));
    assert_eq!(received[0].byte_len, 4096, "as if it had never been cut");
    assert_eq!((received[0].src_qp, u32::from_be(received[0].imm_data)), (numbers.0, 77));
    let mut bytes = vec![0; 8192];
    big.read(0, &mut bytes);
    assert!(bytes[4096..7168].iter().all(|byte| *byte == 9), "written again");
    assert!(bytes[7168..].iter().all(|byte| *byte == 7), "lost");
    let mut word = [0; 8];
    memory.read(8, &mut word);
    assert_eq!(u64::from_ne_bytes(word), 5, "the atomic was executed once");
}

/// Promise: where a context cannot be restored the error says why, nothing is left behind, and it can
/// still be restored where that is mended.
#[test]
fn what_cannot_be_restored_leaves_nothing_behind() {
    let one = one();
    let (qa, qb) = one.pair();
    let number = qa.qp_num();
    for id in 0..3 {
        qb.post_recv(id, &[one.memory.slice(0..64)]).unwrap();
    }
    let key = one.memory.rkey();
    // While the original is there.
    let early = one.capture().unwrap();
    let device = || one.fabric.open(Port::infiniband(300));
    let error = try_restore(&one.core, device(), &early.bytes).err().unwrap();
    assert_eq!(error.errno(), libc::EEXIST, "{error}");
    assert!(error.to_string().contains(&format!("key {key:#x} is in use")), "{error}");
    let (kept, job, fabric, core) = one.leave(vec![qa, qb]);

    let open = || fabric.open(Port::infiniband(300));
    let fails = |core: &Core, device, bytes: &[u8], errno, text: &str| {
        let error = try_restore(core, device, bytes).err().unwrap();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(text), "{error} does not say {text:?}");
        assert_eq!(fabric.objects(), [0; 4], "{text}: something is left");
    };
    // Memory that is not there, or too short, or cannot be written.
    let text = format!("region {key:#x} was 4096 bytes");
    fails(&core, open(), &kept.bytes, libc::EFAULT, &text);
    map(&kept);
    let (addr, length) = (kept.memory[0].0 as *mut libc::c_void, kept.memory[0].1.len());
    // SAFETY: mapped just now, and nobody else's.
    assert_eq!(unsafe { libc::mprotect(addr, length, libc::PROT_READ) }, 0);
    fails(&core, open(), &kept.bytes, libc::EFAULT, "no memory that can be written");
    // SAFETY: as above.
    assert_eq!(unsafe { libc::mprotect(addr, length, libc::PROT_READ | libc::PROT_WRITE) }, 0);
    // Another process, another version, bytes that are damaged.
    fails(&job.join(2), open(), &kept.bytes, libc::EINVAL, "this is process 2");
    let mut other = kept.bytes.clone();
    other[8] += 1;
    fails(&core, open(), &other, libc::EOPNOTSUPP, "this library reads version 1");
    fails(&core, open(), &kept.bytes[..kept.bytes.len() - 1], libc::EINVAL, "damaged");
    // A device without room.
    type Limit = fn(&mut abi::DeviceAttr);
    let limits: [(Limit, &str); 5] = [
        (|attr| attr.max_qp = 1, "max_qp of 1"),
        (|attr| attr.max_qp_wr = 10, "max_send_wr of"),
        (|attr| attr.max_cqe = 3, "max_cqe of 3"),
        (|attr| attr.max_qp_rd_atom = 0, "max_qp_rd_atom of 0"),
        (|attr| attr.atomic_cap = 0, "no atomics"),
    ];
    for (limit, text) in limits {
        let small = fabric.open_with(Port::infiniband(300), limit);
        fails(&core, small, &kept.bytes, libc::EINVAL, text);
    }
    // One that runs out of memory at each step.
    let mut steps = 0;
    loop {
        fabric.run_out_after(Some(steps));
        let Err(error) = try_restore(&core, open(), &kept.bytes) else { break };
        assert_eq!(error.errno(), libc::ENOMEM, "{error}");
        assert_eq!(fabric.objects(), [0; 4], "after {steps} objects");
        steps += 1;
    }
    assert!(steps >= 4, "a region, a CQ and two queue pairs");
    fabric.run_out_after(None);

    unmap(&kept);
    let (restored, memory) = restore(&core, &fabric, &kept);
    let qa = restored.queue_pair(number).unwrap();
    qa.post_send(&SendRequest::new(9, Op::Send, &[memory.slice(0..4)])).unwrap();
    let mut done = ids(&drain(&restored.completion_queue(0).unwrap()));
    done.sort_unstable();
    assert_eq!(done, [(0, 0), (9, 0)]);
}

/// Promise: what cannot be captured is refused by name, and everything goes on.
#[test]
fn what_cannot_be_captured_is_refused_by_name() {
    let refused = |context: &Context, errno, text: &str| {
        let held = context.suspend(late()).unwrap();
        let error = held.capture(late()).unwrap_err();
        held.end().unwrap();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(text), "{error} does not say {text:?}");
    };
    // A connection to another process.
    let Two { a, b, qa, qb, .. } = two();
    let text = format!(
        "queue pair {:#x} is connected to queue pair {:#x} of process 2",
        qa.qp_num(),
        qb.qp_num()
    );
    refused(&a.context, libc::EOPNOTSUPP, &text);
    qb.post_recv(7, &[b.memory.slice(0..64)]).unwrap();
    qa.post_send(&SendRequest::new(8, Op::Send, &[a.memory.slice(0..4)])).unwrap();
    assert_eq!((ids(&a.drain()), ids(&b.drain())), (vec![(8, 0)], vec![(7, 0)]));
    // A handle that leads out of the job.
    let one = one();
    let foreign = crate::virt::Endpoint { lid: 0xc123, ..one.qp().endpoint().unwrap() };
    let ah = one.pd.create_ah(&foreign).unwrap();
    refused(&one.context, libc::EOPNOTSUPP, "an address handle (number 1) leads outside the job");
    drop(ah);
    one.capture().unwrap();
    // Messages that are kept.
    let (job, fabric) = (Job::default(), Fabric::default());
    let retention = Retention::Payload { bytes: 1 << 16, spill: Spill::Drop, from_copy: 0 };
    let keeps =
        Process::with(&job, &fabric, 1, Port::infiniband(9), &Policy { retention, ..policy() });
    refused(&keeps.context, libc::EOPNOTSUPP, Retention::VARIABLE);
}
