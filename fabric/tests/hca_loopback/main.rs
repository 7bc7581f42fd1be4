//! A device of libibverbs against itself. Without such a device every test prints why it is
//! skipped; `hw-tests/run` runs them on rxe.

mod exhausted;
mod refusals;
mod rig;

use rig::{Buffer, Rig, expect, poll, post_recv, post_send, recv_wr, send_wr, wait_readable};
use sojourn_fabric::abi::{self, event_type, qp_mask, qp_state, wc_opcode, wc_status, wr_opcode};
use sojourn_fabric::device::{CqInit, EventElement, PdInit, QpInit, SrqInit};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Promise: all operations of a reliable connection move the right bytes, over ordinary objects
/// and over single-threaded ones, whether the provider has these or not.
#[test]
fn rc_moves_the_right_bytes() {
    for single_threaded in [false, true] {
        let Some(context) = rig::open() else { return };
        rc_round(&Rig::over(context, single_threaded));
    }
}

fn rc_round(rig: &Rig) {
    assert!(rig.cq.cqe() >= 32);
    let (near, far) = (Buffer::new(rig, 16384), Buffer::new(rig, 16384));
    let (a, b) = rig.rc_pair();
    assert!(a.init_cap().max_send_wr >= 16 && a.init_cap().max_inline_data >= 64);
    let pattern: Vec<u8> = (0..5000u32).map(|i| (i * 7 % 251) as u8).collect();
    near.write(0, &pattern);
    let mut source = near.sge(0, 5000);

    post_recv(&b, 1, far.sge(0, 8192));
    let mut wr = send_wr(2, wr_opcode::SEND_WITH_IMM, &mut source);
    wr.imm.imm_data = 0x0102_0304_u32.to_be();
    post_send(&a, wr);
    let [received, sent] = rig.completions();
    expect(&sent, 2, wc_status::SUCCESS);
    expect(&received, 1, wc_status::SUCCESS);
    assert_eq!((received.opcode, received.byte_len), (wc_opcode::RECV, 5000));
    assert_eq!(u32::from_be(received.imm_data), 0x0102_0304);
    assert_eq!(received.qp_num, b.qp_num());
    assert_eq!(far.read(0, 5000), pattern);

    let mut wr = send_wr(3, wr_opcode::RDMA_WRITE, &mut source);
    wr.wr.rdma = far.remote(8192);
    post_send(&a, wr);
    expect(&poll(&rig.cq), 3, wc_status::SUCCESS);
    assert_eq!(far.read(8192, 5000), pattern);

    let mut back = near.sge(8192, 5000);
    let mut wr = send_wr(4, wr_opcode::RDMA_READ, &mut back);
    wr.wr.rdma = far.remote(8192);
    post_send(&a, wr);
    expect(&poll(&rig.cq), 4, wc_status::SUCCESS);
    assert_eq!(near.read(8192, 5000), pattern);

    far.write(0, &40u64.to_ne_bytes());
    let mut old = near.sge(0, 8);
    let mut wr = send_wr(5, wr_opcode::ATOMIC_FETCH_AND_ADD, &mut old);
    wr.wr.atomic =
        abi::AtomicWr { remote_addr: far.address(0), compare_add: 2, swap: 0, rkey: far.mr.rkey() };
    post_send(&a, wr);
    expect(&poll(&rig.cq), 5, wc_status::SUCCESS);
    assert_eq!(near.read(0, 8), 40u64.to_ne_bytes());
    assert_eq!(far.read(0, 8), 42u64.to_ne_bytes());

    let attr = b.query(qp_mask::STATE | qp_mask::RQ_PSN).expect("it answers");
    assert_eq!(attr.qp_state, qp_state::RTS);
}

/// Promise: channels never block; an armed CQ's event carries its `user` value, once.
#[test]
fn completion_events_come_once_and_never_block() {
    let Some(rig) = Rig::new() else { return };
    let channel = Arc::clone(&rig.context).create_channel().expect("a channel");
    let user = 0xdead_beef_0000_0001;
    let init = CqInit { cqe: 16, channel: Some(Arc::clone(&channel)), user, ..CqInit::default() };
    let armed = Arc::clone(&rig.context).create_cq(init).expect("a CQ");
    assert_eq!(rig.cq.req_notify(false).expect_err("no channel").errno(), libc::EINVAL);
    assert_eq!(channel.get_event().expect("no error"), None);

    let buffer = Buffer::new(&rig, 4096);
    let a = rig.rc();
    let init = QpInit { recv_cq: Arc::clone(&armed), ..rig.qp_init(abi::qp_type::RC) };
    let b = rig.create(&init);
    rig.connect(&a, &b);
    armed.req_notify(false).expect("it is armed");
    post_recv(&b, 1, buffer.sge(0, 64));
    let mut sge = buffer.sge(64, 64);
    post_send(&a, send_wr(2, wr_opcode::SEND, &mut sge));
    wait_readable(channel.fd());
    assert_eq!(channel.get_event().expect("no error"), Some(user));
    assert_eq!(channel.get_event().expect("no error"), None);
    expect(&poll(&armed), 1, wc_status::SUCCESS);
    expect(&poll(&rig.cq), 2, wc_status::SUCCESS);
}

/// Promise: datagrams arrive with the sender's number, behind a GRH.
#[test]
fn datagrams_name_their_sender() {
    const QKEY: u32 = 0x1111;
    let Some(rig) = Rig::new() else { return };
    let buffer = Buffer::new(&rig, 4096);
    let make = || {
        let qp = rig.create(&rig.qp_init(abi::qp_type::UD));
        let attr =
            |qp_state| abi::QpAttr { qp_state, qkey: QKEY, port_num: 1, ..Default::default() };
        let init = qp_mask::STATE | qp_mask::PKEY_INDEX | qp_mask::PORT | qp_mask::QKEY;
        qp.modify(&attr(qp_state::INIT), init).expect("INIT");
        qp.modify(&attr(qp_state::RTR), qp_mask::STATE).expect("RTR");
        qp.modify(&attr(qp_state::RTS), qp_mask::STATE | qp_mask::SQ_PSN).expect("RTS");
        qp
    };
    let (a, b) = (make(), make());
    let ah = Arc::clone(&rig.pd).create_ah(&rig.to_self()).expect("an AH");
    buffer.write(0, b"datagram");
    post_recv(&b, 1, buffer.sge(1024, 1024));
    let mut sge = buffer.sge(0, 8);
    let mut wr = send_wr(2, wr_opcode::SEND, &mut sge);
    wr.wr.ud = abi::UdWr { ah: ah.as_raw(), remote_qpn: b.qp_num(), remote_qkey: QKEY };
    post_send(&a, wr);
    let [received, sent] = rig.completions();
    expect(&sent, 2, wc_status::SUCCESS);
    expect(&received, 1, wc_status::SUCCESS);
    println!("UD receive: {received:?}, header {:02x?}", buffer.read(1024, abi::GRH_BYTES));
    assert_eq!(received.byte_len as usize, abi::GRH_BYTES + 8);
    assert_eq!(received.src_qp, a.qp_num());
    assert_ne!(received.wc_flags & abi::wc_flags::GRH, 0);
    assert_eq!(buffer.read(1024 + abi::GRH_BYTES, 8), b"datagram");
}

/// Promise: a bad remote key fails the request, moves the QP to ERR, and flushes what follows.
#[test]
fn a_bad_key_fails_and_flushes() {
    let Some(rig) = Rig::new() else { return };
    let buffer = Buffer::new(&rig, 4096);
    let (a, b) = rig.rc_pair();
    let mut sge = buffer.sge(0, 8);
    let mut wr = send_wr(1, wr_opcode::RDMA_WRITE, &mut sge);
    wr.wr.rdma = buffer.remote(64);
    // SAFETY: this member was just set.
    wr.wr.rdma.rkey = unsafe { wr.wr.rdma.rkey } ^ 0x00ff_ff00;
    post_send(&a, wr);
    expect(&poll(&rig.cq), 1, wc_status::REM_ACCESS_ERR);
    let end = Instant::now() + rig::PATIENCE;
    while a.query(qp_mask::STATE).expect("it answers").qp_state != qp_state::ERR {
        assert!(Instant::now() < end, "still not in ERR");
    }
    post_send(&a, send_wr(2, wr_opcode::SEND, &mut sge));
    expect(&poll(&rig.cq), 2, wc_status::WR_FLUSH_ERR);
    let responder = b.query(qp_mask::STATE).expect("it answers").qp_state;
    let event = rig.context.get_async_event().expect("no error");
    println!("responder in {}, event {event:?}", qp_state::name(responder));
}

/// Promise: an SRQ serves its QPs, and its limit raises one event that names it.
#[test]
fn a_shared_queue_serves_and_warns() {
    let Some(rig) = Rig::new() else { return };
    let buffer = Buffer::new(&rig, 4096);
    let attr = abi::SrqAttr { max_wr: 8, max_sge: 1, srq_limit: 0 };
    let srq = Arc::clone(&rig.pd).create_srq(SrqInit { attr, user: 77 }).expect("an SRQ");
    assert!(srq.query().expect("it answers").max_wr >= 8);
    let a = rig.rc();
    let init = QpInit { srq: Some(Arc::clone(&srq)), ..rig.qp_init(abi::qp_type::RC) };
    let b = rig.create(&init);
    rig.connect(&a, &b);
    for wr_id in [1, 2] {
        let mut sge = buffer.sge(0, 64);
        let mut wr = recv_wr(wr_id, &mut sge);
        // SAFETY: the request is whole, and the buffer outlives the QPs' use of it.
        unsafe { srq.post_recv(&raw mut wr) }.expect("it is posted");
    }
    let limit = abi::SrqAttr { srq_limit: 2, ..attr };
    srq.modify(&limit, abi::srq_mask::LIMIT).expect("a limit");
    assert_eq!(rig.context.get_async_event().expect("no error"), None);
    let mut sge = buffer.sge(64, 8);
    post_send(&a, send_wr(3, wr_opcode::SEND, &mut sge));
    let [received, sent] = rig.completions();
    expect(&received, 1, wc_status::SUCCESS);
    expect(&sent, 3, wc_status::SUCCESS);
    wait_readable(rig.context.async_fd());
    let event = rig.context.get_async_event().expect("no error").expect("an event");
    assert_eq!(event.event_type, event_type::SRQ_LIMIT_REACHED);
    assert_eq!(event.element, EventElement::Srq(77));
    assert_eq!(rig.context.get_async_event().expect("no error"), None);
}

/// Counts warnings: there are none of a device, unless something could not be destroyed.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Promise: whatever is dropped first, all is destroyed, in a legal order.
#[test]
fn no_order_of_drops_is_wrong() {
    const OBJECTS: usize = 7;
    let warnings = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::with_default(Warnings(Arc::clone(&warnings)), || {
        // Each object is once the last that is left.
        for last in 0..OBJECTS {
            let Some(rig) = Rig::new() else { return };
            let context = Arc::clone(&rig.context);
            let pd = Arc::clone(&context).alloc_pd(PdInit::default()).expect("a PD");
            let channel = Arc::clone(&context).create_channel().expect("a channel");
            let init = CqInit { cqe: 4, channel: Some(Arc::clone(&channel)), ..CqInit::default() };
            let cq = Arc::clone(&context).create_cq(init).expect("a CQ");
            let attr = abi::SrqAttr { max_wr: 4, max_sge: 1, srq_limit: 0 };
            let srq = Arc::clone(&pd).create_srq(SrqInit { attr, user: 0 }).expect("an SRQ");
            let init = QpInit {
                srq: Some(Arc::clone(&srq)),
                send_cq: Arc::clone(&cq),
                recv_cq: Arc::clone(&cq),
                ..rig.qp_init(abi::qp_type::RC)
            };
            let qp = Arc::clone(&pd).create_qp(&init).expect("a QP");
            let ah = Arc::clone(&pd).create_ah(&rig.to_self()).expect("an AH");
            drop((init, rig));
            let mut all: Vec<Box<dyn Any>> = vec![
                Box::new(context),
                Box::new(pd),
                Box::new(channel),
                Box::new(cq),
                Box::new(srq),
                Box::new(qp),
                Box::new(ah),
            ];
            assert_eq!(all.len(), OBJECTS);
            let kept = all.remove(last);
            drop(all);
            drop(kept);
        }
    });
    assert_eq!(warnings.load(Ordering::Relaxed), 0, "something could not be destroyed");
}
