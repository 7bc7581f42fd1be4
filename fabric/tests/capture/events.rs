//! What waits for an event is told of it, whether it comes before the capture, or after the restore.

use crate::program::{LONG, adopt};
use crate::{device, map_all};
use sojourn_fabric::abi::{SrqAttr, event_type};
use sojourn_fabric::device::{AsyncEvent, EventElement};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Op, Policy, Process, ProtectionDomain, QpOptions, QueuePair,
    SendRequest,
};
use std::time::{Duration, Instant};

fn late() -> Instant {
    Instant::now() + LONG
}

fn pair(
    pd: &ProtectionDomain,
    sends: &CompletionQueue,
    options: &QpOptions<'_>,
) -> (QueuePair, QueuePair) {
    let (one, other) =
        (pd.create_qp(&QpOptions::rc(sends)).unwrap(), pd.create_qp(options).unwrap());
    let options = ConnectOptions::default();
    one.connect(&other.endpoint().unwrap(), &options).unwrap();
    other.connect(&one.endpoint().unwrap(), &options).unwrap();
    (one, other)
}

/// Promise: notifications of solicited completions stay such; limits of shared receive queues stay armed;
/// and an asynchronous event that nobody has taken is there, before any other.
#[test]
fn solicited_notifications_limits_and_asynchronous_events_come_back() {
    let process = Process::standalone().unwrap();
    let context = process.open_over(device(0, 1)).unwrap();
    let pd = context.alloc_pd().unwrap();
    let memory = adopt(&pd, 4096);
    let channel = context.create_channel().unwrap();
    let (sends, cq) =
        (context.create_cq(16).unwrap(), context.create_cq_on(16, &channel, 3).unwrap());
    let attr = SrqAttr { max_wr: 16, max_sge: 1, srq_limit: 0 };
    let srqs = [21, 22].map(|user| pd.create_srq(attr, user).unwrap());
    let mut pairs = Vec::new();
    for srq in &srqs {
        let options = QpOptions { srq: Some(srq), ..QpOptions::rc(&sends) };
        pairs.push(pair(&pd, &sends, &options));
        for id in 0..6 {
            srq.post_recv(id, &[memory.slice(64..128)]).unwrap();
        }
        srq.arm_limit(5).unwrap();
    }
    pairs.push(pair(&pd, &sends, &QpOptions { recv_cq: &cq, ..QpOptions::rc(&sends) }));
    for id in 0..6 {
        pairs[2].1.post_recv(id, &[memory.slice(64..128)]).unwrap();
    }
    let sge = [memory.slice(0..4)];
    let limit = |user| AsyncEvent {
        event_type: event_type::SRQ_LIMIT_REACHED,
        element: EventElement::Srq(user),
    };
    cq.req_notify(true).unwrap();
    // One event that is there, and nobody takes; the other limit is not reached.
    for id in 0..2 {
        pairs[0].0.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    // One that nobody solicited.
    pairs[2].0.post_send(&SendRequest::new(0, Op::Send, &sge)).unwrap();
    let numbers = [&pairs[1], &pairs[2]].map(|(one, _)| one.qp_num());
    let held = context.suspend(late()).unwrap();
    let bytes = held.capture(late()).unwrap();
    let mut all = vec![0; 4096];
    memory.read(0, &mut all);
    held.end().unwrap();
    // The original still has it.
    assert_eq!(context.next_async_event(late()).unwrap(), Some(limit(21)));
    assert_eq!(srqs.each_ref().map(|srq| srq.query().unwrap().srq_limit), [0, 5]);
    drop((pairs, srqs, cq, sends, channel, memory, pd, context));

    map_all(&bytes, &[all]);
    // SAFETY: the memory was mapped just now, for this alone, and the region is its owner from here on.
    let mut restored =
        unsafe { process.restore(device(0, 2), Policy::from_env().unwrap(), &bytes) }.unwrap();
    let key = restored.regions().next().unwrap().key;
    let memory = restored.take_region(key).unwrap();
    let context = restored.context();
    let soon = || Instant::now() + Duration::from_millis(50);
    assert_eq!(context.next_async_event(late()).unwrap(), Some(limit(21)));
    assert_eq!(context.next_async_event(soon()).unwrap(), None, "once");
    let srqs = [21, 22].map(|user| restored.shared_receive_queue_of(user).unwrap());
    assert_eq!(srqs.each_ref().map(|srq| srq.query().unwrap().srq_limit), [0, 5]);
    let channel = restored.completion_channel(0).unwrap();
    let [shared, own] = numbers.map(|it| restored.queue_pair(it).unwrap());
    let sge = [memory.slice(0..4)];
    own.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    assert_eq!(channel.wait(soon()).unwrap(), None, "nobody solicited that");
    own.post_send(&SendRequest::new(2, Op::Send, &sge).solicited()).unwrap();
    assert_eq!(channel.wait(late()).unwrap(), Some(3));
    for id in 0..2 {
        shared.post_send(&SendRequest::new(id, Op::Send, &sge)).unwrap();
    }
    let sends = restored.completion_queue(0).unwrap();
    // Those from before, too: shared receives are taken by whoever polls.
    (0..11).for_each(|_| assert_eq!(sends.expect(LONG).unwrap().status, 0));
    assert_eq!(context.next_async_event(late()).unwrap(), Some(limit(22)));
}
