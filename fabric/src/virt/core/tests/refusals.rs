//! Promise 5: a move that cannot be made leaves everything where it was, and the error names the limit,
//! the need and what needs it, or the step and the peer.

use super::remap::go;
use super::*;
use crate::device::DeviceContext;
use crate::virt::core::relocate;
use std::sync::Arc;

/// The error of a move that cannot be made.
fn refused(process: &Process, device: &Arc<dyn DeviceContext>) -> (i32, String) {
    let error = relocate(process.context.device(), device).unwrap_err();
    assert_eq!(process.context.relocations().unwrap().len(), 0, "it has gone nowhere");
    (error.errno(), error.to_string())
}

/// One message each way.
fn goes_on(two: &Two, id: u64) {
    let Two { a, b, qa, qb, .. } = two;
    for (from, to, here, there) in [(a, b, qa, qb), (b, a, qb, qa)] {
        there.post_recv(id, &[to.memory.slice(0..64)]).unwrap();
        here.post_send(&SendRequest::new(id, Op::Send, &[from.memory.slice(0..4)])).unwrap();
        assert_eq!((ids(&from.drain()), ids(&to.drain())), (vec![(id, 0)], vec![(id, 0)]));
    }
}

fn contains_all(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn less_inline_data_is_refused() {
    let two = two();
    two.fabric.limit_inline(16);
    let (_, text) = refused(&two.a, &two.fabric.open(Port::infiniband(300)));
    let (name, need) =
        (format!("{:#x}", two.qa.qp_num()), two.qa.cap().max_inline_data.to_string());
    contains_all(&text, &["moving to test0", &name, "max_inline_data", &need, "test0 16 at most"]);
    goes_on(&two, 1);
    two.fabric.limit_inline(1000);
    go(&two.a, two.fabric.open(Port::infiniband(300)));
    goes_on(&two, 2);
}

/// What is in the window is to be sent again: it must be short enough for the new device.
#[test]
fn a_message_that_is_too_long_for_the_new_device_is_refused() {
    let two = two();
    let small =
        || two.fabric.open_with_port(Port::infiniband(300), |_| {}, |it| it.max_msg_sz = 64);
    two.qb.post_recv(1, &[two.b.memory.slice(0..128)]).unwrap();
    two.fabric.on_command();
    let sge = [two.a.memory.slice(0..65)];
    two.qa.post_send(&SendRequest::new(1, Op::Send, &sge)).unwrap();
    let (_, text) = refused(&two.a, &small());
    let name = format!("{:#x}", two.qa.qp_num());
    contains_all(&text, &["test0", "max_msg_sz of 64", &name, "needs 65"]);
    two.fabric.at_once();
    assert_eq!((ids(&two.a.drain()), ids(&two.b.drain())), (successes(1..2), successes(1..2)));
    goes_on(&two, 2);
    // Nothing of that length is under way any more.
    go(&two.a, small());
    goes_on(&two, 3);
}

/// The program was told how long a datagram may be.
#[test]
fn a_smaller_mtu_is_refused_where_there_are_datagrams() {
    let (Two { fabric, a, b, qa, qb, .. }, cq) = datagrams(|n| Port::infiniband(n.into()));
    let small = fabric.open_with_port(
        Port::infiniband(300),
        |_| {},
        |it| it.active_mtu = abi::mtu::MTU_512,
    );
    let (_, text) = refused(&a, &small);
    let name = format!("{:#x}", qa.qp_num());
    contains_all(&text, &["test0", "MTU for datagrams of 512", &name, "needs 1024"]);
    let ah = a.pd.create_ah(&qb.endpoint().unwrap()).unwrap();
    qb.post_recv(1, &[b.memory.slice(0..100)]).unwrap();
    let to = Datagram { ah: &ah, qpn: qb.qp_num(), qkey: ConnectOptions::default().qkey };
    qa.post_send(&SendRequest::inline(1, Op::Send, b"ping").to(to)).unwrap();
    assert_eq!((ids(&a.drain()), ids(&drain(&cq))), (successes(1..2), successes(1..2)));
    drop(qa);
    go(&a, small);
}

/// Whatever cannot be made on the new device: region by region, object by object.
#[test]
fn where_memory_runs_out_everything_stays() {
    let two = two();
    let _more: Vec<_> = (0..3).map(|_| two.a.pd.register(4096, ALL).unwrap()).collect();
    let _channel = two.a.context.create_channel().unwrap();
    let srq = abi::SrqAttr { max_wr: 16, max_sge: 1, srq_limit: 0 };
    let srq = two.a.pd.create_srq(srq, 0).unwrap();
    let shared = two.a.pd.create_qp(&QpOptions { srq: Some(&srq), ..QpOptions::rc(&two.a.cq) });
    let _shared = shared.unwrap();
    // They take their names.
    goes_on(&two, 0);
    let before = two.fabric.objects();
    let mut texts = Vec::new();
    loop {
        let n = texts.len();
        two.fabric.run_out_after(Some(n));
        let moved = relocate(two.a.context.device(), &two.fabric.open(Port::infiniband(300)));
        two.fabric.run_out_after(None);
        goes_on(&two, n as u64);
        assert_eq!(two.fabric.objects(), before, "after {n} objects: nothing is left behind");
        let Err(error) = moved else { break };
        assert!(matches!(error.errno(), libc::ENOMEM | libc::ECONNREFUSED), "{error}");
        texts.push(error.to_string());
    }
    for text in &texts {
        contains_all(text, &["moving to test0", "no memory left"]);
    }
    // Each object of the mover, and the new queue pair of its peer.
    let of = |what: &str| texts.iter().filter(|text| text.contains(what)).count();
    assert_eq!(of("a protection domain"), 1);
    assert_eq!(of("a completion channel"), 1);
    assert_eq!(of("a completion queue"), 1);
    assert_eq!(of("the peer refused"), 1);
    let pinned = |key: u32, at| {
        format!(
            "memory region {key:#x} of 4096 bytes ({at} of 4; while a context moves, all of its \
             16384 registered bytes are pinned twice)"
        )
    };
    assert_eq!(of(&pinned(two.a.memory.lkey(), 1)), 1);
    assert_eq!(of("registered bytes are pinned twice"), 4);
    assert_eq!(of("another shared receive queue"), 1);
    assert_eq!(of(&format!("test0: another queue pair {:#x}:", two.qa.qp_num())), 1);
    assert_eq!(of("another queue pair"), 3);
    assert_eq!(texts.len(), 3 + 4 + 1 + 3);
}

#[test]
fn a_peer_that_refuses_is_named_with_its_reason() {
    let two = two();
    two.job.refuse(Some("it would rather not"));
    let (errno, text) = refused(&two.a, &two.fabric.open(Port::infiniband(300)));
    assert_eq!(errno, libc::ECONNREFUSED);
    contains_all(&text, &["moving to test0", "process 2", "the peer refused: it would rather not"]);
    goes_on(&two, 1);
    two.job.refuse(None);
    go(&two.a, two.fabric.open(Port::infiniband(300)));
    goes_on(&two, 2);
}

/// Where the directory is gone, and with it the way to a peer, a move fails when its time is over.
#[test]
fn a_peer_that_cannot_be_found_is_named_with_the_reason() {
    let two = two();
    goes_on(&two, 0);
    two.job.lose(Some(2));
    let (errno, text) = refused(&two.a, &two.fabric.open(Port::infiniband(300)));
    assert_eq!(errno, libc::ETIMEDOUT);
    contains_all(&text, &["process 2", "did not answer in time (prepare)", "nobody listens there"]);
    goes_on(&two, 1);
    two.job.lose(None);
    go(&two.a, two.fabric.open(Port::infiniband(300)));
    goes_on(&two, 2);
}
