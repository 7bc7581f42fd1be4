//! What the soft device refuses, and with which errno; what overflows, and how that is told.

mod soft_util;

use soft_util::*;
use sojourn_fabric::abi::{
    QpAttr, QpCap, SendWr, Sge, access, event_type, qp_mask as m, qp_state, qp_type, send_flags,
    wc_status,
};
use sojourn_fabric::device::soft::{Options, open_with};
use sojourn_fabric::device::{CqInit, EventElement, PdInit, QpInit};
use std::sync::Arc;

/// Posting is refused by state as the verbs say.
#[test]
fn states_admit_what_verbs_say() {
    let end = End::new(&Setup::default());
    assert_eq!(end.state(), "INIT");
    assert_eq!(end.post(send(1), 0, 8), Err(libc::EINVAL));
    end.recv(1, 0, 8).unwrap();
    modify(&*end.qp, qp_state::RESET, &QpAttr::default(), 0);
    assert_eq!(end.recv(2, 0, 8), Err(libc::EINVAL));
    assert_eq!(end.post(send(1), 0, 8), Err(libc::EINVAL));
    end.nothing();
    let rts = QpAttr { qp_state: qp_state::RTS, ..QpAttr::default() };
    let error = end.qp.modify(&rts, m::STATE).unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(error.to_string().contains("RESET to RTS"), "{error}");
    let wrong = QpAttr { cur_qp_state: qp_state::RTS, ..rts };
    let error = end.qp.modify(&wrong, m::STATE | m::CUR_STATE).unwrap_err();
    assert!(error.to_string().contains("in RESET, not in RTS"), "{error}");
    let init = QpAttr { qp_state: qp_state::INIT, port_num: 2, ..QpAttr::default() };
    let mask = m::STATE | m::PKEY_INDEX | m::PORT | m::ACCESS_FLAGS;
    assert!(end.qp.modify(&init, mask).unwrap_err().to_string().contains("port 2"));
    assert_eq!(end.state(), "RESET", "a refused transition changes nothing");
}

/// Lists that are too long, inline data that is too much, and full queues are refused, and the
/// error names the request; those before it are posted.
#[test]
fn queues_have_limits() {
    let setup = Setup {
        cap: QpCap {
            max_send_wr: 4,
            max_recv_wr: 3,
            max_send_sge: 2,
            max_recv_sge: 1,
            max_inline_data: 64,
        },
        ..Setup::default()
    };
    let (a, b) = pair(&setup);
    let most = a.qp.init_cap().max_inline_data;
    assert!(most >= 64);
    let piece = a.sge(0, 1);
    assert_eq!(post_send(&*a.qp, send(1), &mut [piece; 3]), Err(libc::EINVAL));
    assert_eq!(post_recv(&*a.qp, 1, &mut [piece; 2]), Err(libc::EINVAL));
    let inline = SendWr { send_flags: send_flags::SIGNALED | send_flags::INLINE, ..send(1) };
    assert_eq!(a.post(inline, 0, most + 1), Err(libc::EINVAL));
    for i in 0..3 {
        a.recv(i, 0, 8).unwrap();
    }
    assert_eq!(a.recv(3, 0, 8), Err(libc::ENOMEM));
    // A list: four wait for receives, the fifth does not fit.
    let mut sge = a.sge(0, 8);
    let mut list: Vec<SendWr> =
        (0..6).map(|i| SendWr { sg_list: &mut sge, num_sge: 1, ..send(i) }).collect();
    for i in 0..5 {
        list[i].next = &mut list[i + 1];
    }
    let first = &raw mut list[0];
    // SAFETY: a valid list.
    let error = unsafe { a.qp.post_send(first) }.err().unwrap();
    assert_eq!(error.errno(), libc::ENOMEM);
    // SAFETY: it points into the list.
    assert_eq!(unsafe { (*error.bad_wr()).wr_id }, 4);
    for i in 0..3 {
        b.recv(i, 0, 8).unwrap();
    }
    for i in 0..3 {
        assert_eq!((a.success().wr_id, b.success().wr_id), (i, i));
    }
    b.recv(3, 0, 8).unwrap();
    assert_eq!((a.success().wr_id, b.success().wr_id), (3, 3));
}

/// Inline data needs no key, and the buffer may be reused at once, even by what has to wait.
#[test]
fn inline_data_is_taken_at_once() {
    let (a, b) = pair(&Setup::default());
    let inline = SendWr { send_flags: send_flags::SIGNALED | send_flags::INLINE, ..send(1) };
    let mut buffer = [5u8; 100];
    let at = buffer.as_mut_ptr();
    let sge = Sge { addr: at as u64, length: 100, lkey: 0 };
    post_send(&*a.qp, inline, &mut [sge]).unwrap();
    // SAFETY: our buffer, through the pointer that the request also has.
    unsafe { at.write_bytes(9, 100) };
    b.recv(1, 0, 200).unwrap();
    b.recv(2, 200, 200).unwrap();
    assert_eq!(b.success().byte_len, 100);
    assert_eq!(b.memory.get(0, 100), [5; 100]);
    post_send(&*a.qp, inline, &mut [sge]).unwrap();
    b.success();
    assert_eq!(b.memory.get(200, 100), [9; 100]);
}

/// A CQ that is too small says so once, and its queue pairs fail.
#[test]
fn an_overrun_is_an_error() {
    let a = End::new(&Setup { cqe: 4, ..Setup::default() });
    let b = End::new(&Setup::default());
    a.connect(&b.address());
    b.connect(&a.address());
    for i in 0..5 {
        a.write(i, 0, 8, &b.address(), 0);
    }
    let event = a.context.get_async_event().unwrap().unwrap();
    assert_eq!((event.event_type, event.element), (event_type::CQ_ERR, EventElement::Cq(0)));
    assert_eq!(a.state(), "ERR");
    for i in 0..4 {
        assert_eq!(a.success().wr_id, i, "what was there before stays");
    }
    assert_eq!(a.cq.poll(&mut [Default::default()]), Err(libc::EOVERFLOW));
    // One that is made larger in time holds more.
    let a = End::new(&Setup { cqe: 4, ..Setup::default() });
    let b = End::new(&Setup::default());
    a.connect(&b.address());
    b.connect(&a.address());
    a.cq.resize(8).unwrap();
    assert_eq!(a.cq.cqe(), 8);
    for i in 0..8 {
        a.write(i, 0, 8, &b.address(), 0);
    }
    assert_eq!(a.cq.resize(7).unwrap_err().errno(), libc::EINVAL);
    for i in 0..8 {
        assert_eq!(a.success().wr_id, i);
    }
}

/// Messages that wait to be polled overrun a CQ as well, however many a poll asks for.
#[test]
fn received_messages_overrun_too() {
    for at_once in [1usize, 4, 8] {
        for count in [4u64, 5] {
            let a = End::new(&Setup::default());
            let b = End::new(&Setup { cqe: 4, ..Setup::default() });
            a.connect(&b.address());
            b.connect(&a.address());
            for i in 0..count {
                b.recv(i, 0, 8).unwrap();
                a.send(i, 0, 8);
                a.success();
            }
            let mut wcs = vec![Default::default(); at_once];
            let mut taken = Vec::new();
            while taken.len() < 4 {
                let n = b.cq.poll(&mut wcs).unwrap();
                assert!(n > 0, "{taken:?}");
                taken.extend(wcs[..n as usize].iter().map(|wc| (wc.wr_id, wc.status)));
            }
            assert_eq!(taken, [(0, 0), (1, 0), (2, 0), (3, 0)], "{at_once} at once");
            if count > 4 {
                let event = b.context.get_async_event().unwrap().unwrap();
                assert_eq!(event.event_type, event_type::CQ_ERR);
                assert_eq!(b.cq.poll(&mut wcs), Err(libc::EOVERFLOW));
                assert_eq!(b.state(), "ERR");
            } else {
                assert_eq!(b.context.get_async_event().unwrap(), None);
                assert_eq!(b.cq.poll(&mut wcs), Ok(0));
            }
        }
    }
}

/// Regions: what cannot be registered is refused with the reason; keys are not reused at once.
#[test]
fn regions_are_checked() {
    let end = End::new(&Setup::default());
    let register = |addr: u64, len: usize, flags: u32| {
        // SAFETY: never unmapped, or refused.
        unsafe { Arc::clone(&end.pd).reg_mr(addr as *mut _, len, flags) }
    };
    let errno = |addr, len, flags| register(addr, len, flags).err().unwrap().errno();
    let at = end.memory.addr();
    assert_eq!(errno(at, 4096, access::REMOTE_WRITE), libc::EINVAL);
    assert_eq!(errno(at, 4096, access::REMOTE_ATOMIC), libc::EINVAL);
    assert_eq!(errno(at, 4096, access::ZERO_BASED), libc::EOPNOTSUPP);
    assert_eq!(errno(at, 0, 0), libc::EINVAL);
    assert_eq!(errno(4096, 4096, 0), libc::EFAULT);
    assert_eq!(errno(at, 1 << 40, 0), libc::EFAULT);
    assert_eq!(errno(u64::MAX - 10, 100, 0), libc::EINVAL);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let mr = register(at, 100, ALL | access::RELAXED_ORDERING).unwrap();
        assert!(seen.insert(mr.rkey()), "a key came back");
        assert_eq!(mr.lkey(), mr.rkey());
        mr.dereg().unwrap();
        mr.dereg().unwrap();
    }
}

/// Objects of another context or domain are told apart.
#[test]
fn foreign_objects_are_refused() {
    let (a, b) = (End::new(&Setup::default()), End::new(&Setup::default()));
    let init = QpInit {
        qp_type: qp_type::RC,
        cap: QpCap::default(),
        sq_sig_all: false,
        send_cq: Arc::clone(&a.cq),
        recv_cq: Arc::clone(&b.cq),
        srq: None,
    };
    assert_eq!(Arc::clone(&a.pd).create_qp(&init).err().unwrap().errno(), libc::EINVAL);
    // Memory of another protection domain is not reachable.
    let c = End::new(&Setup::default());
    a.connect(&c.address());
    c.connect(&a.address());
    let other = Arc::clone(&c.context).alloc_pd(PdInit::default()).unwrap();
    // SAFETY: never unmapped.
    let mr = unsafe { other.reg_mr(c.memory.at.cast(), 4096, ALL).unwrap() };
    a.write(1, 0, 8, &Address { rkey: mr.rkey(), ..c.address() }, 0);
    assert_eq!(wc_status::name(a.wait().status), "REM_ACCESS_ERR");
}

/// Queries describe an InfiniBand port with a LID and a GID.
#[test]
fn a_device_describes_itself() {
    let context = open_with("soft0", Options { lid: 77, ..Options::default() }).unwrap();
    let port = context.query_port(1).unwrap();
    assert_eq!((port.lid, port.link_layer, port.state), (77, 1, 4));
    assert_eq!(context.query_port(2).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(context.query_gid(1, 0).unwrap().0[..2], [0xfe, 0x80]);
    assert!(context.query_gid(1, 1).is_err());
    assert_eq!(context.query_pkey(1, 0).unwrap(), 0xffff);
    let attr = context.query_device().unwrap();
    assert!(attr.max_qp >= 60_000 && attr.max_sge == 30 && attr.phys_port_cnt == 1);
    let cq = |cqe| Arc::clone(&context).create_cq(CqInit { cqe, ..CqInit::default() });
    assert_eq!(cq(0).err().unwrap().errno(), libc::EINVAL);
    assert_eq!(cq(attr.max_cqe as u32 + 1).err().unwrap().errno(), libc::EINVAL);
}

/// Many queue pairs come and go; numbers below 2 are never dealt, and all are distinct.
#[test]
fn queue_pair_numbers_are_distinct() {
    let end = End::new(&Setup::default());
    let init = QpInit {
        qp_type: qp_type::RC,
        cap: QpCap { max_send_wr: 1, max_recv_wr: 1, ..QpCap::default() },
        sq_sig_all: false,
        send_cq: Arc::clone(&end.cq),
        recv_cq: Arc::clone(&end.cq),
        srq: None,
    };
    let qps: Vec<_> = (0..3000).map(|_| Arc::clone(&end.pd).create_qp(&init).unwrap()).collect();
    let mut numbers: Vec<u32> = qps.iter().map(|qp| qp.qp_num()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 3000);
    assert!(numbers[0] > 1 && numbers[2999] < 1 << 24);
}
