//! Shared receive queues.

use crate::answer::{Answer, failure, status};
use crate::context::{self, Keep};
use crate::events::{Acks, Shared, lock};
use crate::object::{Handed, User, Users, body, give, take};
use crate::qp::posted;
use sojourn_fabric::abi::{Pd, RecvWr, Srq, SrqAttr, SrqInitAttr};
use sojourn_fabric::device::{DeviceSrq, SrqInit};
use std::ffi::c_int;
use std::mem::zeroed;
use std::sync::Arc;

/// A shared receive queue.
pub(crate) struct SrqBody {
    pub(crate) device: Arc<dyn DeviceSrq>,
    number: u64,
    pub(crate) acks: Acks,
    pub(crate) users: Users,
    _pd: User,
    context: Keep,
}

impl Handed for Srq {
    type Body = SrqBody;
}

/// `ibv_create_srq(3)`; the sizes that were granted are written back.
///
/// # Safety
/// The domain is one of ours; `init` is valid.
pub(crate) unsafe fn create(pd: *mut Pd, init: *mut SrqInitAttr) -> *mut Srq {
    // SAFETY: the caller's promises.
    let (domain, context, wanted) = unsafe { (body(pd), (*pd).context, init.read()) };
    // SAFETY: the domain's context is open.
    let keep = unsafe { Keep::new(context) };
    let number = lock(&keep.get().live).number();
    let made = Arc::clone(&domain.device)
        .create_srq(SrqInit { attr: wanted.attr, user: number })
        .and_then(|device| Ok((device.query()?, device)));
    let (granted, device) = match made {
        Ok(made) => made,
        Err(error) => return failure(&error),
    };
    // SAFETY: numbers, null pointers, an unused mutex and an unused condition variable.
    let mut front: Srq = unsafe { zeroed() };
    front.context = context;
    front.srq_context = wanted.srq_context;
    front.pd = pd;
    let srq = give(
        front,
        SrqBody {
            device,
            number,
            acks: Acks::default(),
            users: Users::default(),
            _pd: domain.users.enter(),
            context: keep,
        },
    );
    // SAFETY: `init` is the caller's; the context is open.
    unsafe {
        (*init).attr = granted;
        lock(&context::of(context).live).srqs.insert(number, Shared(srq));
    }
    srq
}

/// `ibv_modify_srq(3)`.
///
/// # Safety
/// The queue is one of ours; `attr` is valid.
pub(crate) unsafe fn modify(srq: *mut Srq, attr: *mut SrqAttr, mask: c_int) -> c_int {
    // SAFETY: the caller's promises.
    status(unsafe { body(srq).device.modify(&*attr, mask as u32) })
}

/// `ibv_query_srq(3)`.
///
/// # Safety
/// The queue is one of ours; `attr` is valid.
pub(crate) unsafe fn query(srq: *mut Srq, attr: *mut SrqAttr) -> c_int {
    // SAFETY: the caller's promises.
    status(unsafe { body(srq) }.device.query().map(|found| unsafe { attr.write(found) }))
}

/// `ibv_destroy_srq(3)`.
///
/// # Safety
/// The queue is one of ours, and the program uses it no more, but to acknowledge events.
pub(crate) unsafe fn destroy(srq: *mut Srq) -> c_int {
    // SAFETY: the caller's promise.
    let queue = unsafe { body(srq) };
    if queue.users.any() {
        return Answer::failed(libc::EBUSY);
    }
    lock(&queue.context.get().live).srqs.remove(&queue.number);
    queue.acks.settle();
    // SAFETY: no event can point to it any more.
    unsafe { take(srq) };
    0
}

/// `ibv_post_srq_recv(3)`.
///
/// # Safety
/// The queue is one of ours; the list is valid, and what it names stays registered.
pub(crate) unsafe extern "C" fn post_recv(
    srq: *mut Srq,
    wr: *mut RecvWr,
    bad_wr: *mut *mut RecvWr,
) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { posted(body(srq).device.post_recv(wr), bad_wr) }
}
