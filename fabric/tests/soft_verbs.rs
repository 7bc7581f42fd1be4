//! The soft device behaves as the verbs' man pages say: every case runs over copies between
//! processes, as where the kernel forbids those through the ring alone, in the asynchronous mode,
//! and over the network.

mod soft_util;

use soft_util::*;
use sojourn_fabric::abi::{
    self, QpAttr, QpCap, SendWr, Sge, SrqAttr, Wc, access, event_type, qp_mask as m, qp_state,
    qp_type, send_flags, srq_mask, wc_flags, wc_opcode, wc_status, wr_opcode,
};
use sojourn_fabric::device::soft::{Mode, Options, Pace, open_with};
use sojourn_fabric::device::{AsyncEvent, CqInit, DeviceContext, EventElement, QpInit};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Each case as a test of its own for each way that data travels.
macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        mod direct { $($(#[$doc])* #[test] fn $name() { super::$name(super::Options::default()) })* }
        mod ring { $($(#[$doc])* #[test] fn $name() {
            super::$name(super::Options { ring_only: true, ..super::Options::default() })
        })* }
        mod paced { $($(#[$doc])* #[test] fn $name() {
            let pace = super::Pace { latency: super::Duration::from_micros(5), ..super::Pace::default() };
            super::$name(super::Options { mode: super::Mode::Async(pace), ..super::Options::default() })
        })* }
    };
}

cases! {
    lists_scatter_and_gather,
    one_context_talks_to_itself,
    atomics_return_what_was_there,
    atomics_that_are_not_allowed_fail,
    writes_with_immediate_take_a_receive,
    a_receiver_that_is_not_ready_is_waited_for,
    rnr_retries_run_out,
    a_message_too_long_fails_on_both_sides,
    access_that_is_not_allowed_fails_on_both_sides,
    local_keys_are_checked,
    each_receive_counts_for_itself,
    receives_outlive_no_region,
    a_shared_queue_serves_many,
    an_empty_shared_queue_is_not_ready,
    datagrams_say_where_they_come_from,
    datagrams_that_nobody_takes_are_dropped,
    unreliable_connections_drop_silently,
    errors_flush_in_order,
    the_responders_psn_is_live,
    events_come_once,
}

/// The same over a network, for what does not depend on the moment at which an unreliable message
/// arrives.
macro_rules! far_cases {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        mod far { $($(#[$doc])* #[test] fn $name() { super::$name(super::far()) })* }
    };
}

far_cases! {
    lists_scatter_and_gather,
    one_context_talks_to_itself,
    atomics_return_what_was_there,
    atomics_that_are_not_allowed_fail,
    writes_with_immediate_take_a_receive,
    a_receiver_that_is_not_ready_is_waited_for,
    rnr_retries_run_out,
    a_message_too_long_fails_on_both_sides,
    access_that_is_not_allowed_fails_on_both_sides,
    local_keys_are_checked,
    each_receive_counts_for_itself,
    receives_outlive_no_region,
    a_shared_queue_serves_many,
    an_empty_shared_queue_is_not_ready,
    errors_flush_in_order,
    the_responders_psn_is_live,
    events_come_once,
}

fn setup(options: Options) -> Setup {
    Setup { options, ..Setup::default() }
}

fn status(wc: &Wc) -> &'static str {
    wc_status::name(wc.status)
}

fn event(context: &Arc<dyn DeviceContext>) -> AsyncEvent {
    let mut found = None;
    until("an asynchronous event", || {
        found = context.get_async_event().unwrap();
        found.is_some()
    });
    found.unwrap()
}

fn lists_scatter_and_gather(options: Options) {
    let (a, b) = pair(&setup(options));
    for (round, piece) in [5u32, 3000].into_iter().enumerate() {
        a.memory.fill(0, 4 * piece as usize, round as u8 + 1);
        let mut to: Vec<_> = (0..4).map(|i| b.sge(i * 10_000, piece)).collect();
        post_recv(&*b.qp, 1, &mut to).unwrap();
        // Empty pieces anywhere are legal.
        let mut from = vec![a.sge(0, 0), a.sge(0, 2 * piece), a.sge(0, 0), a.sge(0, 2 * piece - 1)];
        post_send(&*a.qp, send(2), &mut from).unwrap();
        assert_eq!(b.success().byte_len, 4 * piece - 1);
        a.success();
        for i in 0..4 {
            let len = piece as usize - usize::from(i == 3);
            assert_eq!(b.memory.get(i * 10_000, len), vec![round as u8 + 1; len]);
        }
        let mut to = vec![a.sge(1 << 20, 7), a.sge(2 << 20, piece)];
        let wr = rdma(wr_opcode::RDMA_READ, 3, &b.address(), 10_000);
        b.memory.fill(10_000, piece as usize + 7, 9);
        post_send(&*a.qp, wr, &mut to).unwrap();
        assert_eq!(a.success().byte_len, piece + 7);
        assert_eq!(a.memory.get(2 << 20, piece as usize), vec![9; piece as usize]);
    }
}

fn one_context_talks_to_itself(options: Options) {
    let context = open_with("soft0", options).unwrap();
    let a = End::in_context(Arc::clone(&context), &setup(options));
    let b = End::in_context(context, &setup(options));
    a.connect(&b.address());
    b.connect(&a.address());
    for len in [8u32, 100_000] {
        a.memory.fill(0, len as usize, 4);
        b.recv(1, 0, len).unwrap();
        a.send(2, 0, len);
        assert_eq!(b.success().byte_len, len);
        a.success();
        a.write(3, 0, len, &b.address(), 1 << 20);
        a.success();
        assert_eq!(b.memory.get(1 << 20, len as usize), vec![4; len as usize]);
    }
    // A queue pair may also be its own peer.
    let c = End::in_context(Arc::clone(&a.context), &setup(options));
    c.connect(&c.address());
    c.recv(1, 0, 64).unwrap();
    c.send(2, 1000, 64);
    let mut ids = [c.success().wr_id, c.success().wr_id];
    ids.sort_unstable();
    assert_eq!(ids, [1, 2]);
}

fn atomic(opcode: u32, to: &Address, at: u64, compare_add: u64, swap: u64) -> SendWr {
    let mut wr = SendWr { opcode, ..send(5) };
    wr.wr.atomic = abi::AtomicWr { remote_addr: to.addr + at, compare_add, swap, rkey: to.rkey };
    wr
}

fn atomics_return_what_was_there(options: Options) {
    let (a, b) = pair(&setup(options));
    let to = b.address();
    let fetch_add = |add| atomic(wr_opcode::ATOMIC_FETCH_AND_ADD, &to, 8, add, 0);
    let swap = |old, new| atomic(wr_opcode::ATOMIC_CMP_AND_SWP, &to, 8, old, new);
    let steps = [
        (fetch_add(5), 0u64, wc_opcode::FETCH_ADD),
        (fetch_add(u64::MAX), 5, wc_opcode::FETCH_ADD),
        (swap(4, 100), 4, wc_opcode::COMP_SWAP),
        (swap(4, 200), 100, wc_opcode::COMP_SWAP),
        (fetch_add(0), 100, wc_opcode::FETCH_ADD),
    ];
    // The owner does not poll: its service thread executes them.
    for (wr, before, opcode) in steps {
        a.post(wr, 16, 8).unwrap();
        let wc = a.success();
        assert_eq!((wc.opcode, wc.byte_len), (opcode, 8));
        assert_eq!(a.memory.get(16, 8), before.to_ne_bytes());
    }
    assert_eq!(b.memory.get(8, 8), 100u64.to_ne_bytes());
    // Several at once, and what follows them finds them executed.
    for _ in 0..50 {
        a.post(SendWr { send_flags: 0, ..fetch_add(1) }, 16, 8).unwrap();
    }
    a.read(7, 0, 8, &to, 8);
    assert_eq!(a.success().wr_id, 7);
    assert_eq!(a.memory.get(0, 8), 150u64.to_ne_bytes());
}

fn atomics_that_are_not_allowed_fail(options: Options) {
    let no_atomics = ALL & !access::REMOTE_ATOMIC;
    for (at, flags, want, raised) in [
        (4u64, ALL, "REM_INV_REQ_ERR", event_type::QP_REQ_ERR),
        (8, no_atomics, "REM_ACCESS_ERR", event_type::QP_ACCESS_ERR),
        (1 << 40, ALL, "REM_ACCESS_ERR", event_type::QP_ACCESS_ERR),
    ] {
        let a = End::new(&setup(options));
        let b = End::new(&Setup { access: flags, ..setup(options) });
        a.connect(&b.address());
        b.connect(&a.address());
        let wr = atomic(wr_opcode::ATOMIC_FETCH_AND_ADD, &b.address(), at, 1, 0);
        a.post(wr, 0, 8).unwrap();
        assert_eq!(status(&a.wait()), want);
        assert_eq!(a.state(), "ERR");
        until("the responder fails too", || b.state() == "ERR");
        let element = EventElement::Qp(b.qp.qp_num());
        assert_eq!(event(&b.context), AsyncEvent { event_type: raised, element });
    }
}

fn writes_with_immediate_take_a_receive(options: Options) {
    let (a, b) = pair(&setup(options));
    for len in [0u32, 8, 100_000] {
        b.recv(1, 0, 0).unwrap();
        a.memory.fill(0, len as usize, 6);
        let mut wr = rdma(wr_opcode::RDMA_WRITE_WITH_IMM, 2, &b.address(), 1 << 20);
        wr.imm.imm_data = 0x55;
        a.post(wr, 0, len).unwrap();
        let wc = b.success();
        assert_eq!((wc.opcode, wc.byte_len), (wc_opcode::RECV_RDMA_WITH_IMM, len));
        assert_eq!((wc.imm_data, wc.wc_flags), (0x55, wc_flags::WITH_IMM));
        assert_eq!(b.memory.get(1 << 20, len as usize), vec![6; len as usize]);
        assert_eq!(a.success().opcode, wc_opcode::RDMA_WRITE);
    }
    // And a SEND after it takes the next one.
    b.recv(3, 0, 64).unwrap();
    a.send(4, 0, 64);
    assert_eq!((b.success().wr_id, a.success().wr_id), (3, 4));
}

fn a_receiver_that_is_not_ready_is_waited_for(options: Options) {
    let (a, b) = pair(&setup(options));
    for len in [8u32, 50_000] {
        a.send(1, 0, len);
        a.write(2, 0, 8, &b.address(), 0);
        a.nothing();
        b.nothing();
        assert_eq!(b.memory.get(0, 8), vec![0; 8], "a WRITE does not overtake a SEND");
        a.memory.fill(0, 8, 1);
        b.recv(3, 1 << 20, len).unwrap();
        assert_eq!(b.success().wr_id, 3);
        assert_eq!((a.success().wr_id, a.success().wr_id), (1, 2));
        b.memory.fill(0, 8, 0);
        a.memory.fill(0, 8, 0);
    }
}

fn rnr_retries_run_out(options: Options) {
    let a = End::new(&setup(options));
    let b = End::new(&setup(options));
    let attr = QpAttr { rnr_retry: 2, ..attributes(&b.address()) };
    bring_up(&*a.qp, &attr);
    b.connect(&a.address());
    // Unsignalled: an error completes all the same.
    a.post(SendWr { send_flags: 0, ..send(1) }, 0, 8).unwrap();
    a.send(2, 0, 8);
    let wc = a.wait();
    assert_eq!((wc.wr_id, status(&wc)), (1, "RNR_RETRY_EXC_ERR"));
    let wc = a.wait();
    assert_eq!((wc.wr_id, status(&wc)), (2, "WR_FLUSH_ERR"));
    assert_eq!(a.state(), "ERR");
    assert_eq!(b.state(), "RTS");
}

fn a_message_too_long_fails_on_both_sides(options: Options) {
    for len in [64u32, 100_000] {
        let (a, b) = pair(&setup(options));
        b.recv(1, 0, len - 1).unwrap();
        b.recv(2, 0, len).unwrap();
        a.send(3, 0, len);
        assert_eq!(status(&a.wait()), "REM_INV_REQ_ERR");
        let wc = b.wait();
        assert_eq!((wc.wr_id, status(&wc)), (1, "LOC_LEN_ERR"));
        let wc = b.wait();
        assert_eq!((wc.wr_id, status(&wc)), (2, "WR_FLUSH_ERR"));
        assert_eq!((a.state(), b.state()), ("ERR", "ERR"));
    }
}

fn access_that_is_not_allowed_fails_on_both_sides(options: Options) {
    type Change = fn(&mut SendWr);
    let wrong: [(&str, u32, Change); 6] = [
        ("a key that does not exist", ALL, |wr| {
            // SAFETY: a one-sided request.
            unsafe { wr.wr.rdma.rkey ^= 1 };
        }),
        ("key 0", ALL, |wr| wr.wr.rdma.rkey = 0),
        ("before the region", ALL, |wr| {
            // SAFETY: a one-sided request.
            unsafe { wr.wr.rdma.remote_addr -= 1 };
        }),
        ("behind the region", ALL, |wr| {
            // SAFETY: a one-sided request.
            unsafe { wr.wr.rdma.remote_addr += (4 << 20) - 7 };
        }),
        ("an address that wraps", ALL, |wr| wr.wr.rdma.remote_addr = u64::MAX - 3),
        ("a region without permission", access::LOCAL_WRITE, |_| {}),
    ];
    for opcode in [wr_opcode::RDMA_WRITE, wr_opcode::RDMA_READ] {
        for (what, flags, change) in wrong {
            let a = End::new(&setup(options));
            let b = End::new(&Setup { access: flags, ..setup(options) });
            a.connect(&b.address());
            b.connect(&a.address());
            b.recv(1, 0, 8).unwrap();
            let mut wr = rdma(opcode, 2, &b.address(), 0);
            change(&mut wr);
            a.memory.fill(0, 8, 1);
            a.post(wr, 0, 8).unwrap();
            a.send(3, 0, 8);
            let wc = a.wait();
            assert_eq!((wc.wr_id, status(&wc)), (2, "REM_ACCESS_ERR"), "{what}");
            let wc = a.wait();
            assert_eq!((wc.wr_id, status(&wc)), (3, "WR_FLUSH_ERR"), "{what}");
            let wc = b.wait();
            assert_eq!((wc.wr_id, status(&wc)), (1, "WR_FLUSH_ERR"), "{what}");
            assert_eq!((a.state(), b.state()), ("ERR", "ERR"), "{what}");
            assert_eq!(b.memory.get(0, 8), vec![0; 8], "{what}");
            assert_eq!(event(&b.context).event_type, event_type::QP_ACCESS_ERR, "{what}");
        }
        // What the region allows, the queue pair must allow too; even for no bytes at all.
        for len in [0u32, 8] {
            let a = End::new(&setup(options));
            let b = End::new(&setup(options));
            a.connect(&b.address());
            let none = QpAttr { qp_access_flags: 0, ..attributes(&a.address()) };
            b.qp.modify(&none, m::ACCESS_FLAGS).unwrap();
            bring_up(&*b.qp, &none);
            a.post(rdma(opcode, 2, &b.address(), 0), 0, len).unwrap();
            assert_eq!(status(&a.wait()), "REM_ACCESS_ERR", "{len} bytes");
        }
    }
}

fn local_keys_are_checked(options: Options) {
    for len in [8u32, 50_000] {
        let (a, b) = pair(&setup(options));
        b.recv(1, 0, len).unwrap();
        let mut sge = a.sge(0, len);
        sge.lkey ^= 1;
        post_send(&*a.qp, send(2), &mut [sge]).unwrap();
        assert_eq!(status(&a.wait()), "LOC_PROT_ERR");
        assert_eq!((a.state(), b.state()), ("ERR", "RTS"));
        b.nothing();

        // A receive whose key does not fit fails when a message comes.
        let (a, b) = pair(&setup(options));
        let mut sge = b.sge(0, len);
        sge.lkey ^= 1;
        post_recv(&*b.qp, 3, &mut [sge]).unwrap();
        a.send(4, 0, len);
        assert_eq!(status(&a.wait()), "REM_OP_ERR");
        let wc = b.wait();
        assert_eq!((wc.wr_id, status(&wc)), (3, "LOC_PROT_ERR"));
        assert_eq!(b.state(), "ERR");

        // So does one in a region that may not be written.
        let a = End::new(&setup(options));
        let b = End::new(&Setup { access: 0, ..setup(options) });
        a.connect(&b.address());
        b.connect(&a.address());
        b.recv(5, 0, len).unwrap();
        a.send(6, 0, len);
        assert_eq!(status(&a.wait()), "REM_OP_ERR");
        assert_eq!(status(&b.wait()), "LOC_PROT_ERR");
    }
}

/// What earlier receives hold, or later ones, does not matter to a message.
fn each_receive_counts_for_itself(options: Options) {
    for len in [64u32, 100_000] {
        let (a, b) = pair(&setup(options));
        b.recv(1, 0, len).unwrap();
        b.recv(2, 0, 0).unwrap();
        b.recv(3, 0, len - 1).unwrap();
        a.memory.fill(0, len as usize, 6);
        a.send(4, 0, len);
        assert_eq!((a.success().wr_id, b.success().wr_id), (4, 1));
        assert_eq!(b.memory.get(0, len as usize), vec![6; len as usize]);
        a.send(5, 0, 0);
        assert_eq!((a.success().wr_id, b.success().wr_id), (5, 2));
        a.send(6, 0, len);
        assert_eq!(status(&a.wait()), "REM_INV_REQ_ERR");
        let wc = b.wait();
        assert_eq!((wc.wr_id, status(&wc)), (3, "LOC_LEN_ERR"));
    }
}

/// A receive whose region was deregistered since it was posted fails on both sides, and those in
/// other regions do not.
fn receives_outlive_no_region(options: Options) {
    for len in [8u32, 50_000] {
        let (a, b) = pair(&setup(options));
        let memory = Memory::new(1 << 16);
        let register = || {
            // SAFETY: the memory is never unmapped, and accessed as `Memory` does.
            unsafe { Arc::clone(&b.pd).reg_mr(memory.at.cast(), memory.len, ALL).unwrap() }
        };
        let [other, unused] = [register(), register()];
        b.recv(1, 0, len).unwrap();
        let sge = Sge { addr: memory.addr(), length: len, lkey: other.lkey() };
        post_recv(&*b.qp, 2, &mut [sge]).unwrap();
        post_recv(&*b.qp, 3, &mut [sge]).unwrap();
        unused.dereg().unwrap();
        for wr_id in [1, 2] {
            a.send(4, 0, len);
            assert_eq!((a.success().wr_id, b.success().wr_id), (4, wr_id));
        }
        other.dereg().unwrap();
        a.send(5, 0, len);
        assert_eq!(status(&a.wait()), "REM_OP_ERR");
        let wc = b.wait();
        assert_eq!((wc.wr_id, status(&wc)), (3, "LOC_PROT_ERR"));
        assert_eq!((a.state(), b.state()), ("ERR", "ERR"));
    }
}

fn shared(options: Options) -> Setup {
    let srq = SrqAttr { max_wr: 64, max_sge: 2, srq_limit: 0 };
    Setup { srq: Some(srq), ..setup(options) }
}

fn post_shared(end: &End, wr_id: u64, from: usize, len: u32) {
    post_srq(&**end.srq.as_ref().unwrap(), wr_id, &mut [end.sge(from, len)]).unwrap();
}

fn a_shared_queue_serves_many(options: Options) {
    let b = End::new(&shared(options));
    let init = QpInit {
        qp_type: qp_type::RC,
        cap: QpCap { max_send_wr: 8, max_send_sge: 1, ..QpCap::default() },
        sq_sig_all: false,
        send_cq: Arc::clone(&b.cq),
        recv_cq: Arc::clone(&b.cq),
        srq: b.srq.clone(),
    };
    let second = Arc::clone(&b.pd).create_qp(&init).unwrap();
    let (x, y) = (End::new(&setup(options)), End::new(&setup(options)));
    x.connect(&b.address());
    b.connect(&x.address());
    y.connect(&Address { qpn: second.qp_num(), ..b.address() });
    to_init(&*second, &attributes(&y.address()));
    bring_up(&*second, &attributes(&y.address()));
    for i in 0..8 {
        post_shared(&b, i, i as usize * 100_000, 100_000);
    }
    let srq = b.srq.as_ref().unwrap();
    srq.modify(&SrqAttr { srq_limit: 6, ..SrqAttr::default() }, srq_mask::LIMIT).unwrap();
    for (i, (end, len, qpn)) in [
        (&x, 8u32, b.qp.qp_num()),
        (&y, 50_000, second.qp_num()),
        (&x, 100_000, b.qp.qp_num()),
        (&y, 0, second.qp_num()),
    ]
    .into_iter()
    .enumerate()
    {
        end.memory.fill(0, len as usize, 40 + i as u8);
        end.send(9, 0, len);
        let wc = b.success();
        assert_eq!((wc.wr_id, wc.byte_len, wc.qp_num), (i as u64, len, qpn));
        let got = b.memory.get(i * 100_000, len as usize);
        assert_eq!(got, vec![40 + i as u8; len as usize]);
        assert_eq!(end.success().wr_id, 9);
        let raised = b.context.get_async_event().unwrap();
        let limit = AsyncEvent {
            event_type: event_type::SRQ_LIMIT_REACHED,
            element: EventElement::Srq(77),
        };
        assert_eq!(raised, (i == 2).then_some(limit), "five left, once");
    }
    assert_eq!(srq.query().unwrap().srq_limit, 0);
    let mut wr = rdma(wr_opcode::RDMA_WRITE_WITH_IMM, 2, &b.address(), 3 << 20);
    wr.imm.imm_data = 3;
    x.memory.fill(0, 9000, 1);
    x.post(wr, 0, 9000).unwrap();
    let wc = b.success();
    assert_eq!((wc.wr_id, wc.opcode, wc.byte_len), (4, wc_opcode::RECV_RDMA_WITH_IMM, 9000));
    assert_eq!(b.memory.get(3 << 20, 9000), vec![1; 9000]);
    x.success();
    // One of them at ERR says when it has taken its last receive; the other goes on.
    b.to_error();
    let last = event(&b.context);
    assert_eq!(last.event_type, event_type::QP_LAST_WQE_REACHED);
    assert_eq!(last.element, EventElement::Qp(b.qp.qp_num()));
    y.send(10, 0, 8);
    assert_eq!(b.success().wr_id, 5);
}

fn an_empty_shared_queue_is_not_ready(options: Options) {
    let b = End::new(&shared(options));
    let a = End::new(&setup(options));
    a.connect(&b.address());
    b.connect(&a.address());
    // Ten in a row meet an empty queue; they arrive in order, with what follows them.
    for i in 0..10u64 {
        a.memory.put(i as usize * 30_000, &i.to_le_bytes());
        a.send(i, i as usize * 30_000, if i % 2 == 0 { 8 } else { 30_000 });
    }
    a.write(10, 0, 8, &b.address(), 0);
    for i in 0..10u64 {
        post_shared(&b, i, 1 << 20, 30_000);
        let wc = b.success();
        assert_eq!(wc.wr_id, i);
        assert_eq!(b.memory.get(1 << 20, 8), i.to_le_bytes());
    }
    for i in 0..=10 {
        assert_eq!(a.success().wr_id, i);
    }
    // With retries to run out of, it fails.
    let a = End::new(&setup(options));
    let b = End::new(&shared(options));
    bring_up(&*a.qp, &QpAttr { rnr_retry: 1, ..attributes(&b.address()) });
    b.connect(&a.address());
    a.send(1, 0, 8);
    assert_eq!(status(&a.wait()), "RNR_RETRY_EXC_ERR");
}

fn datagram(end: &End, ah: &dyn sojourn_fabric::device::DeviceAh, to: u32, qkey: u32) -> SendWr {
    let _ = end;
    let mut wr = send(1);
    wr.wr.ud = abi::UdWr { ah: ah.as_raw(), remote_qpn: to, remote_qkey: qkey };
    wr
}

fn datagrams_say_where_they_come_from(options: Options) {
    let ud = Setup { qp_type: qp_type::UD, ..setup(options) };
    let (a, b) = (End::new(&ud), End::new(&ud));
    a.connect(&b.address());
    b.connect(&a.address());
    let lid = b.address().lid;
    let plain = abi::AhAttr { dlid: lid, port_num: 1, sl: 3, ..abi::AhAttr::default() };
    let mut global = plain;
    global.is_global = 1;
    global.grh.dgid = b.context.query_gid(1, 0).unwrap();
    global.grh.hop_limit = 5;
    for (attr, len) in [(plain, 4096u32), (global, 100), (plain, 0)] {
        let ah = Arc::clone(&a.pd).create_ah(&attr).unwrap();
        b.recv(7, 0, 40 + 4096).unwrap();
        a.memory.fill(0, len as usize, 8);
        let mut wr = datagram(&a, &*ah, b.qp.qp_num(), 0x1111);
        wr.opcode = wr_opcode::SEND_WITH_IMM;
        wr.imm.imm_data = 12;
        a.post(wr, 0, len).unwrap();
        drop(ah);
        let wc = b.success();
        let grh = if attr.is_global != 0 { wc_flags::GRH } else { 0 };
        assert_eq!((wc.wr_id, wc.byte_len, wc.imm_data), (7, 40 + len, 12));
        assert_eq!((wc.src_qp, wc.slid, wc.sl), (a.qp.qp_num(), a.address().lid, 3));
        assert_eq!(wc.wc_flags, wc_flags::WITH_IMM | grh);
        assert_eq!(b.memory.get(40, len as usize), vec![8; len as usize]);
        if grh != 0 {
            let head = b.memory.get(0, 40);
            assert_eq!((head[0] >> 4, head[6], head[7]), (6, 0x1b, 5));
            assert_eq!(head[8..24], a.context.query_gid(1, 0).unwrap().0);
            assert_eq!(head[24..], global.grh.dgid.0);
        }
        a.success();
    }
}

fn datagrams_that_nobody_takes_are_dropped(options: Options) {
    let ud = Setup { qp_type: qp_type::UD, ..setup(options) };
    let (a, b) = (End::new(&ud), End::new(&ud));
    a.connect(&b.address());
    b.connect(&a.address());
    let attr = abi::AhAttr { dlid: b.address().lid, port_num: 1, ..abi::AhAttr::default() };
    let ah = Arc::clone(&a.pd).create_ah(&attr).unwrap();
    let to = b.qp.qp_num();
    let send = |to, qkey| {
        a.post(datagram(&a, &*ah, to, qkey), 0, 8).unwrap();
        a.success();
    };
    // No receive, the wrong key, no such queue pair.
    send(to, 0x1111);
    b.nothing();
    b.recv(1, 0, 100).unwrap();
    send(to, 0x2222);
    send(0xfff_fff, 0x1111);
    b.nothing();
    // With the top bit, the sender's own key counts.
    send(to, 0x8000_0000);
    assert_eq!(b.success().wr_id, 1);
    // One that is too long stops the queue, not the receiver.
    let mut sges = [a.sge(0, 4000), a.sge(0, 97)];
    post_send(&*a.qp, datagram(&a, &*ah, to, 0x1111), &mut sges).unwrap();
    assert_eq!(status(&a.wait()), "LOC_LEN_ERR");
    assert_eq!(a.state(), "SQE");
    a.post(datagram(&a, &*ah, to, 0x1111), 0, 8).unwrap();
    assert_eq!(status(&a.wait()), "WR_FLUSH_ERR");
    modify(&*a.qp, qp_state::RTS, &QpAttr::default(), 0);
    b.recv(2, 0, 100).unwrap();
    send(to, 0x1111);
    assert_eq!(b.success().wr_id, 2);
    // A receive that is too short takes the receiver to ERR.
    b.recv(3, 0, 47).unwrap();
    send(to, 0x1111);
    assert_eq!(status(&b.wait()), "LOC_LEN_ERR");
}

fn unreliable_connections_drop_silently(options: Options) {
    let uc = Setup { qp_type: qp_type::UC, ..setup(options) };
    let (a, b) = pair(&uc);
    a.send(1, 0, 8);
    assert_eq!(a.success().wr_id, 1);
    let mut bad = rdma(wr_opcode::RDMA_WRITE, 2, &b.address(), 0);
    bad.wr.rdma.rkey = 0;
    a.post(bad, 0, 8).unwrap();
    assert_eq!(a.success().wr_id, 2);
    b.nothing();
    assert_eq!((a.state(), b.state()), ("RTS", "RTS"));
    for len in [8u32, 50_000] {
        b.recv(3, 0, len).unwrap();
        a.memory.fill(0, len as usize, 2);
        a.send(4, 0, len);
        assert_eq!(a.success().wr_id, 4);
        assert_eq!(b.success().byte_len, len);
        a.write(5, 0, len, &b.address(), 1 << 20);
        a.success();
        assert_eq!(b.memory.get(1 << 20, len as usize), vec![2; len as usize]);
    }
    let read = rdma(wr_opcode::RDMA_READ, 6, &b.address(), 0);
    assert_eq!(a.post(read, 0, 8), Err(libc::EINVAL));
}

fn errors_flush_in_order(options: Options) {
    let (a, b) = pair(&setup(options));
    for i in 0..5 {
        a.recv(100 + i, 0, 8).unwrap();
        // They wait for receives that never come; most would complete in silence.
        a.post(SendWr { send_flags: 0, ..send(i) }, 0, 8).unwrap();
    }
    a.nothing();
    a.to_error();
    for i in (0..5).chain(100..105) {
        let wc = a.wait();
        assert_eq!((wc.wr_id, status(&wc)), (i, "WR_FLUSH_ERR"));
        assert_eq!(wc.qp_num, a.qp.qp_num());
    }
    // What is posted now is flushed too.
    a.send(6, 0, 8);
    a.recv(7, 0, 8).unwrap();
    let wc = a.wait();
    assert_eq!((wc.wr_id, wc.opcode, status(&wc)), (6, wc_opcode::SEND, "WR_FLUSH_ERR"));
    let wc = a.wait();
    assert_eq!((wc.wr_id, wc.opcode, status(&wc)), (7, wc_opcode::RECV, "WR_FLUSH_ERR"));
    // The peer finds out when it next sends.
    b.send(8, 0, 8);
    assert_eq!(status(&b.wait()), "RETRY_EXC_ERR");
    // From RESET on, both begin anew.
    for end in [&a, &b] {
        modify(&*end.qp, qp_state::RESET, &QpAttr::default(), 0);
        to_init(&*end.qp, &attributes(&a.address()));
    }
    a.connect(&b.address());
    b.connect(&a.address());
    b.recv(9, 0, 8).unwrap();
    a.send(10, 0, 8);
    assert_eq!((a.success().wr_id, b.success().wr_id), (10, 9));
}

fn the_responders_psn_is_live(options: Options) {
    let (a, b) = (End::new(&setup(options)), End::new(&setup(options)));
    // So that it wraps on the way.
    let start = 0xff_fff0u32;
    let psn = |attr: QpAttr| QpAttr { rq_psn: start, sq_psn: start, ..attr };
    bring_up(&*a.qp, &psn(attributes(&b.address())));
    bring_up(&*b.qp, &psn(attributes(&a.address())));
    let live = || b.qp.query(m::RQ_PSN).unwrap().rq_psn;
    assert_eq!(live(), start);
    let mut expected = start;
    let mut step = |packets: u32| {
        assert_eq!(a.success().status, 0);
        expected = (expected + packets) & 0xff_ffff;
        assert_eq!(live(), expected);
        assert_eq!(a.qp.query(m::SQ_PSN).unwrap().sq_psn, expected);
    };
    // At a path MTU of 1,024.
    for (len, packets) in [(0u32, 1u32), (1, 1), (1024, 1), (1025, 2), (10_240, 10)] {
        b.recv(1, 0, 20_000).unwrap();
        a.send(1, 0, len);
        step(packets);
        a.write(1, 0, len, &b.address(), 0);
        step(packets);
        a.read(1, 0, len, &b.address(), 0);
        step(packets);
        b.recv(1, 0, 0).unwrap();
        a.post(rdma(wr_opcode::RDMA_WRITE_WITH_IMM, 1, &b.address(), 0), 0, len).unwrap();
        step(packets);
    }
    a.post(atomic(wr_opcode::ATOMIC_FETCH_AND_ADD, &b.address(), 0, 1, 0), 0, 8).unwrap();
    step(1);
    // Nothing that is not executed counts.
    a.send(2, 0, 5000);
    a.nothing();
    assert_eq!(live(), expected);
}

fn events_come_once(options: Options) {
    let ends = [End::new(&setup(options)), End::new(&setup(options))];
    let context = Arc::clone(&ends[1].context);
    let channel = Arc::clone(&context).create_channel().unwrap();
    let init =
        CqInit { cqe: 64, channel: Some(Arc::clone(&channel)), user: 5, ..CqInit::default() };
    let cq = context.create_cq(init).unwrap();
    let init = QpInit {
        qp_type: qp_type::RC,
        cap: Setup::default().cap,
        sq_sig_all: false,
        send_cq: Arc::clone(&cq),
        recv_cq: Arc::clone(&cq),
        srq: None,
    };
    let qp = Arc::clone(&ends[1].pd).create_qp(&init).unwrap();
    let a = &ends[0];
    let to = Address { qpn: qp.qp_num(), ..ends[1].address() };
    to_init(&*qp, &attributes(&a.address()));
    bring_up(&*qp, &attributes(&a.address()));
    a.connect(&to);
    for i in 0..16 {
        post_recv(&*qp, i, &mut [ends[1].sge(0, 10_000)]).unwrap();
    }
    let solicited = SendWr { send_flags: send_flags::SIGNALED | send_flags::SOLICITED, ..send(1) };
    let event = || {
        let mut pollfd = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&channel.fd()),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid entry.
        assert_eq!(unsafe { libc::poll(&mut pollfd, 1, 30_000) }, 1, "no event");
        assert_eq!(channel.get_event().unwrap(), Some(5));
    };
    let silent = || assert_eq!(channel.get_event().unwrap(), None);
    // Not armed: no event. Armed: one, for a message of either kind of transport.
    a.send(1, 0, 8);
    assert_eq!(wait(&*cq).wr_id, 0);
    silent();
    for (n, len) in [(1u64, 8u32), (2, 5000)] {
        cq.req_notify(false).unwrap();
        silent();
        a.send(1, 0, len);
        event();
        assert_eq!(wait(&*cq).wr_id, 2 * n - 1);
        a.send(1, 0, len);
        silent();
        assert_eq!(wait(&*cq).byte_len, len);
        a.success();
        a.success();
        post_recv(&*qp, n, &mut [ends[1].sge(0, 10_000)]).unwrap();
    }
    // Armed for solicited ones only.
    cq.req_notify(true).unwrap();
    a.send(1, 0, 8);
    wait(&*cq);
    silent();
    a.post(solicited, 0, 8).unwrap();
    event();
    wait(&*cq);
    // An error is one too.
    cq.req_notify(true).unwrap();
    qp.modify(&QpAttr { qp_state: qp_state::ERR, ..QpAttr::default() }, m::STATE).unwrap();
    event();
    silent();
}

/// Promise: a SEND that waits for a shared receive, with one behind it that is to fail, is sent again when
/// the receiver has none, completes when it has, and then the other fails.
#[test]
fn a_send_that_waits_is_sent_again_in_front_of_one_that_fails() {
    let (a, b) = pair(&shared(Options::default()));
    a.send(1, 0, 64);
    // A key that is nobody's.
    let mut nowhere = [Sge { lkey: 0xdead_0000, ..a.sge(0, 64) }];
    post_send(&*a.qp, send(2), &mut nowhere).unwrap();
    // The receiver looks, and has none: again and again.
    let then = Instant::now() + Duration::from_millis(50);
    while Instant::now() < then {
        b.nothing();
        a.nothing();
    }
    post_srq(&**b.srq.as_ref().unwrap(), 7, &mut [b.sge(0, 64)]).unwrap();
    until("the message has arrived", || {
        let mut wc = [Wc::default()];
        b.cq.poll(&mut wc) == Ok(1) && (wc[0].wr_id, wc[0].status) == (7, 0)
    });
    let (first, second) = (a.wait(), a.wait());
    assert_eq!((first.wr_id, first.status), (1, wc_status::SUCCESS));
    assert_eq!((second.wr_id, second.status), (2, wc_status::LOC_PROT_ERR));
}
