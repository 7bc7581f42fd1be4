//! Queue pairs, and posting to them.

use crate::answer::{Answer, failure, status, told};
use crate::context::{self, Keep};
use crate::events::{Acks, Shared, lock};
use crate::object::{Handed, User, body, give, take};
use crate::table::is_ours;
use sojourn_fabric::Error;
use sojourn_fabric::abi::{Pd, Qp, QpAttr, QpInitAttr, RecvWr, SendWr, qp_mask, qp_state};
use sojourn_fabric::device::{DeviceQp, PostError, QpInit};
use sojourn_fabric::names::env;
use std::ffi::c_int;
use std::mem::zeroed;
use std::sync::Arc;

/// A queue pair.
pub(crate) struct QpBody {
    device: Arc<dyn DeviceQp>,
    pub(crate) acks: Acks,
    sq_sig_all: c_int,
    _users: [Option<User>; 4],
    context: Keep,
}

impl Handed for Qp {
    type Body = QpBody;
}

/// `ibv_create_qp(3)`; the sizes that were granted are written back.
///
/// # Safety
/// The domain is one of ours; `init` is valid, and what it points to is alive.
pub(crate) unsafe fn create(pd: *mut Pd, init: *mut QpInitAttr) -> *mut Qp {
    // SAFETY: the caller's promises.
    let (domain, context, wanted) = unsafe { (body(pd), (*pd).context, init.read()) };
    // SAFETY: the domain's context is open.
    let keep = unsafe { Keep::new(context) };
    if !keep.get().open.virt {
        return told(&Error::new(
            libc::EPERM,
            format!(
                "a queue pair was asked for, but this process is in no job ({} is not set): start \
                 the program with `sojourn run`",
                env::DIRECTORY
            ),
        ));
    }
    let (send_cq, recv_cq, srq) = (wanted.send_cq, wanted.recv_cq, wanted.srq);
    // SAFETY: each is null or alive.
    let ours = unsafe { is_ours(send_cq) && is_ours(recv_cq) && (srq.is_null() || is_ours(srq)) };
    if !ours {
        return Answer::failed(libc::EINVAL);
    }
    // SAFETY: they are ours, as just seen.
    let (sends, recvs) = unsafe { (body(send_cq), body(recv_cq)) };
    // SAFETY: as above.
    let shared = (!srq.is_null()).then(|| unsafe { body(srq) });
    let device = Arc::clone(&domain.device).create_qp(&QpInit {
        qp_type: wanted.qp_type,
        cap: wanted.cap,
        sq_sig_all: wanted.sq_sig_all != 0,
        send_cq: Arc::clone(&sends.device),
        recv_cq: Arc::clone(&recvs.device),
        srq: shared.map(|srq| Arc::clone(&srq.device)),
    });
    let device = match device {
        Ok(device) => device,
        Err(error) => return failure(&error),
    };
    let (number, granted) = (device.qp_num(), device.init_cap());
    // SAFETY: numbers, null pointers, an unused mutex and an unused condition variable.
    let mut front: Qp = unsafe { zeroed() };
    front.context = context;
    front.qp_context = wanted.qp_context;
    front.pd = pd;
    front.send_cq = send_cq;
    front.recv_cq = recv_cq;
    front.srq = srq;
    front.qp_num = number;
    front.state = qp_state::RESET;
    front.qp_type = wanted.qp_type;
    let users = [&domain.users, &sends.users, &recvs.users].map(|users| Some(users.enter()));
    let [pd_user, send_user, recv_user] = users;
    let srq_user = shared.map(|srq| srq.users.enter());
    let qp = give(
        front,
        QpBody {
            device,
            acks: Acks::default(),
            sq_sig_all: wanted.sq_sig_all,
            _users: [pd_user, send_user, recv_user, srq_user],
            context: keep,
        },
    );
    // SAFETY: `init` is the caller's; the context is open.
    unsafe {
        (*init).cap = granted;
        lock(&context::of(context).live).qps.insert(number, Shared(qp));
    }
    qp
}

/// `ibv_modify_qp(3)`.
///
/// # Safety
/// The queue pair is one of ours; `attr` is valid.
pub(crate) unsafe fn modify(qp: *mut Qp, attr: *mut QpAttr, mask: c_int) -> c_int {
    let mask = mask as u32;
    // SAFETY: the caller's promises.
    let (pair, wanted) = unsafe { (body(qp), &*attr) };
    let modified = pair.device.modify(wanted, mask);
    status(modified.map(|()| {
        if mask & qp_mask::STATE != 0 {
            // SAFETY: the field is the library's to write.
            unsafe { (*qp).state = wanted.qp_state };
        }
    }))
}

/// `ibv_query_qp(3)`.
///
/// # Safety
/// The queue pair is one of ours; `attr` and `init` are valid.
pub(crate) unsafe fn query(
    qp: *mut Qp,
    attr: *mut QpAttr,
    mask: c_int,
    init: *mut QpInitAttr,
) -> c_int {
    // SAFETY: the caller's promise.
    let pair = unsafe { body(qp) };
    let found = match pair.device.query(mask as u32) {
        Ok(found) => found,
        Err(error) => return failure(&error),
    };
    // SAFETY: the caller's promises; the fields of the queue pair are the library's to write.
    unsafe {
        (*qp).state = found.qp_state;
        attr.write(found);
        init.write(QpInitAttr {
            qp_context: (*qp).qp_context,
            send_cq: (*qp).send_cq,
            recv_cq: (*qp).recv_cq,
            srq: (*qp).srq,
            cap: found.cap,
            qp_type: (*qp).qp_type,
            sq_sig_all: pair.sq_sig_all,
        });
    }
    0
}

/// `ibv_destroy_qp(3)`.
///
/// # Safety
/// The queue pair is one of ours, and the program uses it no more, but to acknowledge events.
pub(crate) unsafe fn destroy(qp: *mut Qp) -> c_int {
    // SAFETY: the caller's promise.
    let pair = unsafe { body(qp) };
    lock(&pair.context.get().live).qps.remove(&pair.device.qp_num());
    pair.acks.settle();
    // SAFETY: no event can point to it any more.
    unsafe { take(qp) };
    0
}

/// `ibv_query_qp_data_in_order(3)`: nothing is promised.
///
/// # Safety
/// None is needed; it has the shape of its kind.
pub(crate) unsafe fn data_in_order(_: *mut Qp, _: u32, _: u32) -> c_int {
    0
}

/// What posting answers.
///
/// # Safety
/// `bad_wr` is null or valid.
pub(crate) unsafe fn posted<W>(result: Result<(), PostError<W>>, bad_wr: *mut *mut W) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => {
            if !bad_wr.is_null() {
                // SAFETY: the caller's promise.
                unsafe { *bad_wr = error.bad_wr() };
            }
            Answer::failed(error.errno())
        }
    }
}

/// `ibv_post_send(3)`.
///
/// # Safety
/// The queue pair is one of ours; the list is valid, and what it names stays registered.
pub(crate) unsafe extern "C" fn post_send(
    qp: *mut Qp,
    wr: *mut SendWr,
    bad_wr: *mut *mut SendWr,
) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { posted(body(qp).device.post_send(wr), bad_wr) }
}

/// `ibv_post_recv(3)`.
///
/// # Safety
/// As [`post_send`].
pub(crate) unsafe extern "C" fn post_recv(
    qp: *mut Qp,
    wr: *mut RecvWr,
    bad_wr: *mut *mut RecvWr,
) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { posted(body(qp).device.post_recv(wr), bad_wr) }
}
