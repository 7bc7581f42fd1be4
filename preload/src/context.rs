//! Contexts: `struct ibv_context` inside its `struct verbs_context`, and what is asked of a device.
//!
//! Programs reach three kinds of functions through a context: posting, polling and arming through
//! `ops`; `ibv_query_port` through the extended context in front; and whatever else stands in front,
//! where an empty place makes the header's inlined code answer `EOPNOTSUPP`, or go back to an
//! older verb that we have (`ibv_query_device_ex`, `ibv_create_qp_ex` and `ibv_create_srq_ex` do).

use crate::answer::{Answer, MinusOne, failure, status};
use crate::events::{Live, lock, wait};
use crate::object::body;
use crate::registry::{self, Open};
use crate::{cq, qp, srq};
use sojourn_fabric::abi::{
    self, ABI_EXTENDED, AsyncElement, AsyncEvent, Context, Device, DeviceAttr, PortAttr,
    VerbsContext, event_type,
};
use sojourn_fabric::device::{DeviceContext, EventElement};
use std::ffi::{c_int, c_void};
use std::mem::{offset_of, zeroed};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// What programs may choose completion vectors from: nothing is known of a device's own here.
const COMP_VECTORS: c_int = 1;
/// How much of a port's attributes the symbol `ibv_query_port` fills: programs whose header has the
/// rest of them call through the extended context.
const OLD_PORT_ATTR: usize = offset_of!(PortAttr, port_cap_flags2);

/// Stands in the private field of every context of ours, and of no other.
static MARK: u8 = 0;

/// A context that a program holds.
#[repr(C)]
struct Opened {
    front: VerbsContext,
    body: Body,
}

/// What stands behind a context.
pub(crate) struct Body {
    pub(crate) open: Arc<Open>,
    /// What its events can be about.
    pub(crate) live: Mutex<Live>,
    /// Objects created from it, and one for the program itself. A program may close a context
    /// whose objects it never destroyed: then it lives as long as they do.
    users: AtomicU32,
}

fn whole(context: *mut Context) -> *mut Opened {
    context.wrapping_byte_sub(offset_of!(VerbsContext, context)).cast()
}

/// Whether this is a context of ours.
///
/// # Safety
/// It is an open context of some libibverbs.
pub(crate) unsafe fn is_ours(context: *mut Context) -> bool {
    // SAFETY: the caller's promise.
    if unsafe { (*context).abi_compat } as usize != ABI_EXTENDED {
        return false;
    }
    // SAFETY: `priv` has been in every extended context since there are any.
    let mark = unsafe { (&raw const (*whole(context)).front.r#priv).read() };
    ptr::eq(mark.cast::<u8>(), &raw const MARK)
}

/// What stands behind a context.
///
/// # Safety
/// It is one of ours, and is not closed while the result is in use.
pub(crate) unsafe fn of<'a>(context: *mut Context) -> &'a Body {
    // SAFETY: the caller's promise.
    unsafe { &(*whole(context)).body }
}

/// That an object belongs to a context: keeps it.
pub(crate) struct Keep(*mut Context);

// SAFETY: contexts may be used from any thread.
unsafe impl Send for Keep {}
// SAFETY: as above.
unsafe impl Sync for Keep {}

impl Keep {
    /// # Safety
    /// The context is one of ours, and open.
    pub(crate) unsafe fn new(context: *mut Context) -> Self {
        // SAFETY: the caller's promise.
        unsafe { of(context) }.users.fetch_add(1, Ordering::Relaxed);
        Keep(context)
    }

    /// The context.
    pub(crate) fn get(&self) -> &Body {
        // SAFETY: it lives, since this counts as a user.
        unsafe { of(self.0) }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        // SAFETY: this user has kept it until now.
        unsafe { leave(self.0) }
    }
}

/// # Safety
/// One of the context's users ends.
unsafe fn leave(context: *mut Context) {
    // SAFETY: it lives as long as it has users.
    if unsafe { of(context) }.users.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: it was made by `Box`, and the last user is gone.
        drop(unsafe { Box::from_raw(whole(context)) });
    }
}

/// Makes the context that a program is given.
pub(crate) fn give(device: *mut Device, open: Arc<Open>) -> *mut Context {
    // SAFETY: numbers, null pointers and `None`s are all zero; so is an unused mutex.
    let mut front: VerbsContext = unsafe { zeroed() };
    front.sz = size_of::<VerbsContext>();
    front.r#priv = (&raw const MARK).cast_mut().cast::<c_void>();
    front.query_port = Some(query_port_ex);
    front.context.abi_compat = ABI_EXTENDED as *mut c_void;
    front.context.device = device;
    // There is no kernel context that a command could go to.
    front.context.cmd_fd = -1;
    front.context.async_fd = open.device.async_fd().as_raw_fd();
    front.context.num_comp_vectors = COMP_VECTORS;
    front.context.ops.poll_cq = Some(cq::poll);
    front.context.ops.req_notify_cq = Some(cq::req_notify);
    front.context.ops.post_send = Some(qp::post_send);
    front.context.ops.post_recv = Some(qp::post_recv);
    front.context.ops.post_srq_recv = Some(srq::post_recv);
    let body = Body { open, live: Mutex::default(), users: AtomicU32::new(1) };
    let opened = Box::into_raw(Box::new(Opened { front, body }));
    opened.wrapping_byte_add(offset_of!(VerbsContext, context)).cast()
}

/// `ibv_close_device(3)`.
///
/// # Safety
/// The context is one of ours, and the program uses it no more.
pub(crate) unsafe fn close(context: *mut Context) -> MinusOne {
    // SAFETY: the caller's promise.
    registry::closed(&unsafe { of(context) }.open);
    // SAFETY: the program's own use ends.
    unsafe { leave(context) };
    MinusOne(0)
}

/// # Safety
/// As [`of`].
pub(crate) unsafe fn device<'a>(context: *mut Context) -> &'a Arc<dyn DeviceContext> {
    // SAFETY: the caller's promise.
    &unsafe { of(context) }.open.device
}

/// `ibv_query_device(3)`.
///
/// # Safety
/// The context is one of ours; `attr` is valid.
pub(crate) unsafe fn query_device(context: *mut Context, attr: *mut DeviceAttr) -> c_int {
    // SAFETY: the caller's promises.
    status(unsafe { device(context) }.query_device().map(|found| unsafe { attr.write(found) }))
}

/// `ibv_query_port(3)`, as programs with an old header call it.
///
/// # Safety
/// The context is one of ours; `attr` is valid up to its last field in old headers.
pub(crate) unsafe fn query_port(context: *mut Context, port: u8, attr: *mut PortAttr) -> c_int {
    // SAFETY: the caller's promises.
    unsafe { query_port_ex(context, port, attr, OLD_PORT_ATTR) }
}

/// # Safety
/// The context is one of ours; `attr` has `length` bytes.
unsafe extern "C" fn query_port_ex(
    context: *mut Context,
    port: u8,
    attr: *mut PortAttr,
    length: usize,
) -> c_int {
    // SAFETY: the caller's promise.
    let found = match unsafe { device(context) }.query_port(port) {
        Ok(found) => found,
        Err(error) => return failure(&error),
    };
    let (to, from) = (attr.cast::<u8>(), (&raw const found).cast::<u8>());
    let known = length.min(size_of::<PortAttr>());
    // SAFETY: `known` bytes are in both, `length` bytes in the program's. What a newer header has
    // behind them is zero.
    unsafe {
        ptr::copy_nonoverlapping(from, to, known);
        ptr::write_bytes(to.add(known), 0, length - known);
    }
    0
}

/// `ibv_query_pkey(3)`: in network byte order.
///
/// # Safety
/// The context is one of ours; `pkey` is valid.
pub(crate) unsafe fn query_pkey(
    context: *mut Context,
    port: u8,
    index: c_int,
    pkey: *mut u16,
) -> MinusOne {
    let Ok(index) = u32::try_from(index) else { return Answer::failed(libc::EINVAL) };
    // SAFETY: the caller's promise.
    match unsafe { device(context) }.query_pkey(port, index) {
        // SAFETY: the caller's promise.
        Ok(found) => unsafe {
            *pkey = found;
            MinusOne(0)
        },
        Err(error) => failure(&error),
    }
}

/// `ibv_get_pkey_index(3)`.
///
/// # Safety
/// The context is one of ours.
pub(crate) unsafe fn pkey_index(context: *mut Context, port: u8, pkey: u16) -> MinusOne {
    // SAFETY: the caller's promise.
    let device = unsafe { device(context) };
    let length = match device.query_port(port) {
        Ok(attr) => u32::from(attr.pkey_tbl_len),
        Err(error) => return failure(&error),
    };
    match (0..length).find(|index| device.query_pkey(port, *index).is_ok_and(|it| it == pkey)) {
        Some(index) => MinusOne(index as c_int),
        None => Answer::failed(libc::ENOENT),
    }
}

/// The program's form of an event; `None` where its object is gone, or is none of the program's.
fn lower(live: &Live, element: EventElement) -> Option<AsyncElement> {
    match element {
        EventElement::Qp(number) => live.qps.get(&number).map(|qp| {
            // SAFETY: what is in the table lives until it has been taken out, which the caller's
            // lock forbids.
            unsafe { body(qp.0) }.acks.give();
            AsyncElement { qp: qp.0 }
        }),
        EventElement::Cq(number) => live.cqs.get(&number).map(|cq| {
            // SAFETY: as above.
            unsafe { body(cq.0) }.acks.give();
            AsyncElement { cq: cq.0 }
        }),
        EventElement::Srq(number) => live.srqs.get(&number).map(|srq| {
            // SAFETY: as above.
            unsafe { body(srq.0) }.acks.give();
            AsyncElement { srq: srq.0 }
        }),
        EventElement::Port(port) => Some(AsyncElement { port_num: c_int::from(port) }),
        EventElement::Device => Some(AsyncElement { cq: ptr::null_mut() }),
    }
}

/// `ibv_get_async_event(3)`.
///
/// # Safety
/// The context is one of ours; `event` is valid.
pub(crate) unsafe fn get_async_event(context: *mut Context, event: *mut AsyncEvent) -> MinusOne {
    // SAFETY: the caller's promise.
    let context = unsafe { of(context) };
    loop {
        match context.open.device.get_async_event() {
            Ok(Some(found)) => {
                if let Some(element) = lower(&lock(&context.live), found.element) {
                    let found = AsyncEvent { element, event_type: found.event_type };
                    // SAFETY: the caller's promise.
                    unsafe { event.write(found) };
                    return MinusOne(0);
                }
            }
            Ok(None) => {
                if let Err(errno) = wait(context.open.device.async_fd()) {
                    return Answer::failed(errno);
                }
            }
            Err(error) => return failure(&error),
        }
    }
}

/// What an event of the program's is about.
pub(crate) enum About {
    Qp(*mut abi::Qp),
    Cq(*mut abi::Cq),
    Srq(*mut abi::Srq),
    /// A port or a device: nobody waits for its acknowledgement.
    Nothing,
}

/// What an event is about, by its type.
///
/// # Safety
/// It is an event as [`get_async_event`] or libibverbs made it.
pub(crate) unsafe fn about(event: &AsyncEvent) -> About {
    use event_type as E;
    let element = &event.element;
    match event.event_type {
        E::QP_FATAL
        | E::QP_REQ_ERR
        | E::QP_ACCESS_ERR
        | E::COMM_EST
        | E::SQ_DRAINED
        | E::PATH_MIG
        | E::PATH_MIG_ERR
        | E::QP_LAST_WQE_REACHED => {
            // SAFETY: the type says that this member of the union was written.
            About::Qp(unsafe { element.qp })
        }
        // SAFETY: as above.
        E::CQ_ERR => About::Cq(unsafe { element.cq }),
        // SAFETY: as above.
        E::SRQ_ERR | E::SRQ_LIMIT_REACHED => About::Srq(unsafe { element.srq }),
        _ => About::Nothing,
    }
}

/// `ibv_ack_async_event(3)`.
///
/// # Safety
/// The event came from [`get_async_event`], and is acknowledged once.
pub(crate) unsafe fn ack_async_event(event: *mut AsyncEvent) {
    // SAFETY: the caller's promise; an object lives until its events are acknowledged.
    unsafe {
        match about(&*event) {
            About::Qp(qp) => body(qp).acks.acknowledge(1),
            About::Cq(cq) => body(cq).acks.acknowledge(1),
            About::Srq(srq) => body(srq).acks.acknowledge(1),
            About::Nothing => {}
        }
    }
}
