//! What verbs refuse: one clear error each.

use crate::rig::{Buffer, Rig, expect, open, post_recv, post_send, recv_wr, send_wr, to_init};
use sojourn_fabric::abi::{self, access, qp_mask, qp_state, wc_status, wr_opcode};
use sojourn_fabric::device::{CqInit, DeviceQp, SrqInit};
use sojourn_fabric::{Error, Result};
use std::sync::Arc;

/// The error of something that must fail, with all of `parts` in its sentence.
fn refused<T>(result: Result<T>, errno: i32, parts: &[&str]) -> Error {
    let error = result.err().expect("it is refused");
    let text = error.to_string();
    assert_eq!(error.errno(), errno, "{text}");
    for part in parts {
        assert!(text.contains(part), "no \"{part}\" in: {text}");
    }
    error
}

/// Promise: queries answer as the man pages say, and what does not exist is named.
#[test]
fn queries_answer_or_name_what_is_missing() {
    let Some(context) = open() else { return };
    let device = context.query_device().expect("attributes");
    assert!(device.max_qp > 0 && device.phys_port_cnt >= 1);
    let port = context.query_port(1).expect("port 1");
    assert_eq!(port.state, abi::port_state::ACTIVE);
    let gid = context.query_gid(1, context.best_gid_index(1).expect("an index")).expect("a GID");
    assert_ne!(gid, abi::Gid::default());
    if port.link_layer == abi::link_layer::ETHERNET {
        assert_eq!(gid.0[10..12], [0xff; 2], "{gid} is not over IPv4");
    }
    assert_eq!(context.query_pkey(1, 0).expect("the default key"), 0xffff);

    let name = context.name();
    refused(context.query_port(0), libc::EINVAL, &[name, "no port 0"]);
    refused(context.query_port(200), libc::EINVAL, &[name, "no port 200"]);
    refused(context.query_gid(1, 60_000), libc::EINVAL, &[name, "GID 60000"]);
    refused(context.query_gid(200, 0), libc::EINVAL, &[name, "no port 200"]);
    refused(context.query_pkey(1, 60_000), libc::EINVAL, &[name, "P_Key 60000"]);
    refused(context.best_gid_index(200), libc::EINVAL, &[name, "no port 200"]);
}

fn refuses_send(qp: &Arc<dyn DeviceQp>, buffer: &Buffer) {
    let mut sge = buffer.sge(0, 8);
    let mut wr = send_wr(66, wr_opcode::SEND, &mut sge);
    // SAFETY: the request is whole.
    let error = unsafe { qp.post_send(&raw mut wr) }.expect_err("it is refused");
    assert_eq!((error.errno(), error.bad_wr()), (libc::EINVAL, &raw mut wr));
}

/// Promise: a request that IBTA forbids in the QP's state is refused, and not executed later.
#[test]
fn requests_in_wrong_states_are_refused() {
    let Some(rig) = Rig::new() else { return };
    let buffer = Buffer::new(&rig, 4096);
    let (a, b) = (rig.rc(), rig.rc());
    refuses_send(&a, &buffer);
    let mut sge = buffer.sge(0, 8);
    let mut wr = recv_wr(67, &mut sge);
    // SAFETY: the request is whole.
    let error = unsafe { b.post_recv(&raw mut wr) }.expect_err("it is refused");
    assert_eq!((error.errno(), error.bad_wr()), (libc::EINVAL, &raw mut wr));
    to_init(&a);
    to_init(&b);
    refuses_send(&a, &buffer);
    rig.to_rts(&a, b.qp_num());
    rig.to_rts(&b, a.qp_num());

    post_recv(&b, 1, buffer.sge(64, 8));
    let mut sge = buffer.sge(0, 8);
    post_send(&a, send_wr(2, wr_opcode::SEND, &mut sge));
    let [received, sent] = rig.completions();
    expect(&received, 1, wc_status::SUCCESS);
    expect(&sent, 2, wc_status::SUCCESS);

    let attr = abi::QpAttr { qp_state: qp_state::INIT, ..Default::default() };
    let number = a.qp_num().to_string();
    let parts = [&number, "from RTS to INIT", "(STATE)", rig.context.name()];
    refused(a.modify(&attr, qp_mask::STATE), libc::EINVAL, &parts);
}

/// Promise: a list that does not fit is posted up to the first request that does not.
#[test]
fn a_full_queue_names_the_first_that_did_not_fit() {
    let Some(rig) = Rig::new() else { return };
    let buffer = Buffer::new(&rig, 4096);
    let (_a, b) = rig.rc_pair();
    let room = b.init_cap().max_recv_wr as usize;
    // Providers round sizes up, so that more may fit than was granted.
    let mut sges = vec![buffer.sge(0, 8); 2 * room + 2];
    let mut list: Vec<abi::RecvWr> =
        sges.iter_mut().enumerate().map(|(i, sge)| recv_wr(i as u64, sge)).collect();
    for i in 1..list.len() {
        list[i - 1].next = &raw mut list[i];
    }
    // SAFETY: the list is whole, and the buffer outlives the QP's use of it.
    let error = unsafe { b.post_recv(&raw mut list[0]) }.expect_err("it cannot all fit");
    assert_eq!(error.errno(), libc::ENOMEM);
    let first = list.iter().position(|wr| std::ptr::eq(wr, error.bad_wr())).expect("of the list");
    assert!(first >= room, "{first} of {room} fitted");
}

/// Promise: a creation beyond the device's limits, or of objects of another context, gives one
/// error that names them.
#[test]
fn refused_creations_name_the_limit() {
    let Some(rig) = Rig::new() else { return };
    let limits = rig.context.query_device().expect("attributes");
    let beyond = |limit: i32| u32::try_from(limit).expect("a size") + 1;
    let create_cq = |init| Arc::clone(&rig.context).create_cq(init);

    let max_cqe = format!("max_cqe {}", limits.max_cqe);
    let init = CqInit { cqe: beyond(limits.max_cqe), ..CqInit::default() };
    refused(create_cq(init), libc::EINVAL, &[&max_cqe]);
    refused(create_cq(CqInit::default()), libc::EINVAL, &["at least 1"]);
    let init = CqInit { cqe: 1, comp_vector: 9999, ..CqInit::default() };
    refused(create_cq(init), libc::EINVAL, &["comp_vector 9999"]);
    let resized = create_cq(CqInit { cqe: 16, ..CqInit::default() }).expect("a CQ");
    refused(resized.resize(beyond(limits.max_cqe)), libc::EINVAL, &[&max_cqe, "resizing"]);
    resized.resize(100).expect("within the limits");
    assert!(resized.cqe() >= 100);

    let mut init = rig.qp_init(abi::qp_type::RC);
    init.cap.max_send_wr = beyond(limits.max_qp_wr);
    let parts = ["RC", &format!("max_qp_wr {}", limits.max_qp_wr)];
    refused(Arc::clone(&rig.pd).create_qp(&init), libc::EINVAL, &parts);
    let attr = abi::SrqAttr { max_wr: beyond(limits.max_srq_wr), max_sge: 1, srq_limit: 0 };
    let max_srq_wr = format!("max_srq_wr {}", limits.max_srq_wr);
    let srq = Arc::clone(&rig.pd).create_srq(SrqInit { attr, user: 0 });
    refused(srq, libc::EINVAL, &[&max_srq_wr]);
    let port = abi::AhAttr { port_num: 200, ..rig.to_self() };
    refused(Arc::clone(&rig.pd).create_ah(&port), libc::EINVAL, &["no port 200"]);

    let other = Rig::new().expect("it opened before");
    let init = other.qp_init(abi::qp_type::RC);
    let created = Arc::clone(&rig.pd).create_qp(&init);
    refused(created, libc::EINVAL, &["send CQ is of another context"]);
}

/// Promise: registration refuses what verbs refuse, with the reason; deregistration is
/// idempotent.
#[test]
fn registrations_fail_with_a_reason() {
    let Some(rig) = Rig::new() else { return };
    let register = |addr: usize, flags| {
        // SAFETY: what gets registered here is never accessed.
        unsafe { Arc::clone(&rig.pd).reg_mr(addr as *mut _, 4096, flags) }
    };
    let buffer = Buffer::new(&rig, 4096);
    let address = buffer.at as usize;
    refused(register(address, access::REMOTE_WRITE), libc::EINVAL, &["LOCAL_WRITE"]);
    refused(register(4096, access::LOCAL_WRITE), libc::EFAULT, &["0x1000", "not mapped"]);
    let optional = access::LOCAL_WRITE | access::RELAXED_ORDERING;
    let region = register(address, optional).expect("an optional flag is no error");
    region.dereg().expect("once");
    region.dereg().expect("and again");
}
