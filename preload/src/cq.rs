//! Completion channels and completion queues.

use crate::answer::{Answer, MinusOne, failure, status, unsigned};
use crate::context::{self, Keep};
use crate::events::{Acks, Shared, lock, wait};
use crate::object::{Handed, User, Users, body, give, take};
use sojourn_fabric::abi::{CompChannel, Context, Cq, Wc};
use sojourn_fabric::device::{CqInit, DeviceChannel, DeviceCq};
use std::ffi::{c_int, c_uint, c_void};
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// A completion channel.
pub(crate) struct ChannelBody {
    device: Arc<dyn DeviceChannel>,
    users: Users,
    context: Keep,
}

impl Handed for CompChannel {
    type Body = ChannelBody;
}

/// `ibv_create_comp_channel(3)`.
///
/// # Safety
/// The context is one of ours, and open.
pub(crate) unsafe fn create_channel(context: *mut Context) -> *mut CompChannel {
    // SAFETY: the caller's promise.
    let keep = unsafe { Keep::new(context) };
    let device = match Arc::clone(&keep.get().open.device).create_channel() {
        Ok(device) => device,
        Err(error) => return failure(&error),
    };
    let fd = device.fd().as_raw_fd();
    give(
        CompChannel { context, fd, refcnt: 0 },
        ChannelBody { device, users: Users::default(), context: keep },
    )
}

/// `ibv_destroy_comp_channel(3)`.
///
/// # Safety
/// The channel is one of ours, and the program uses it no more.
pub(crate) unsafe fn destroy_channel(channel: *mut CompChannel) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { body(channel) }.users.any() {
        return Answer::failed(libc::EBUSY);
    }
    // SAFETY: the caller's promise.
    unsafe { take(channel) };
    0
}

/// `ibv_get_cq_event(3)`.
///
/// # Safety
/// The channel is one of ours; `cq` and `user` are valid.
pub(crate) unsafe fn get_event(
    channel: *mut CompChannel,
    cq: *mut *mut Cq,
    user: *mut *mut c_void,
) -> MinusOne {
    // SAFETY: the caller's promise.
    let channel = unsafe { body(channel) };
    loop {
        match channel.device.get_event() {
            Ok(Some(number)) => {
                let live = lock(&channel.context.get().live);
                // An event of a queue that was destroyed meanwhile is nobody's.
                let Some(found) = live.cqs.get(&number) else { continue };
                // SAFETY: what is in the table lives, as long as the lock is held; after that it
                // lives until this event is acknowledged. The pointers are the caller's.
                unsafe {
                    body(found.0).acks.give();
                    *cq = found.0;
                    *user = (*found.0).cq_context;
                }
                return MinusOne(0);
            }
            Ok(None) => {
                if let Err(errno) = wait(channel.device.fd()) {
                    return Answer::failed(errno);
                }
            }
            Err(error) => return failure(&error),
        }
    }
}

/// A completion queue.
pub(crate) struct CqBody {
    pub(crate) device: Arc<dyn DeviceCq>,
    number: u64,
    pub(crate) acks: Acks,
    pub(crate) users: Users,
    _channel: Option<User>,
    context: Keep,
}

impl Handed for Cq {
    type Body = CqBody;
}

/// `ibv_create_cq(3)`.
///
/// # Safety
/// The context is one of ours; the channel is null or one of ours.
pub(crate) unsafe fn create(
    context: *mut Context,
    cqe: c_int,
    user: *mut c_void,
    channel: *mut CompChannel,
    comp_vector: c_int,
) -> *mut Cq {
    let (Some(cqe), Some(comp_vector)) = (unsigned(cqe), unsigned(comp_vector)) else {
        return Answer::failed(libc::EINVAL);
    };
    // SAFETY: the caller's promise.
    let keep = unsafe { Keep::new(context) };
    // SAFETY: the caller's promise.
    let events = (!channel.is_null()).then(|| unsafe { body(channel) });
    let number = lock(&keep.get().live).number();
    let device = Arc::clone(&keep.get().open.device).create_cq(CqInit {
        cqe,
        channel: events.map(|channel| Arc::clone(&channel.device)),
        comp_vector,
        single_threaded: false,
        user: number,
    });
    let device = match device {
        Ok(device) => device,
        Err(error) => return failure(&error),
    };
    // SAFETY: numbers, null pointers, an unused mutex and an unused condition variable.
    let mut front: Cq = unsafe { zeroed() };
    front.context = context;
    front.channel = channel;
    front.cq_context = user;
    front.cqe = device.cqe() as c_int;
    let cq = give(
        front,
        CqBody {
            device,
            number,
            acks: Acks::default(),
            users: Users::default(),
            _channel: events.map(|channel| channel.users.enter()),
            context: keep,
        },
    );
    // SAFETY: the context is open.
    lock(&unsafe { context::of(context) }.live).cqs.insert(number, Shared(cq));
    cq
}

/// `ibv_resize_cq(3)`.
///
/// # Safety
/// The queue is one of ours.
pub(crate) unsafe fn resize(cq: *mut Cq, cqe: c_int) -> c_int {
    let Some(cqe) = unsigned(cqe) else { return Answer::failed(libc::EINVAL) };
    // SAFETY: the caller's promise.
    let queue = unsafe { body(cq) };
    let resized = queue.device.resize(cqe);
    // SAFETY: the field is the library's to write.
    status(resized.map(|()| unsafe { (*cq).cqe = queue.device.cqe() as c_int }))
}

/// `ibv_destroy_cq(3)`.
///
/// # Safety
/// The queue is one of ours, and the program uses it no more, but to acknowledge events.
pub(crate) unsafe fn destroy(cq: *mut Cq) -> c_int {
    // SAFETY: the caller's promise.
    let queue = unsafe { body(cq) };
    if queue.users.any() {
        return Answer::failed(libc::EBUSY);
    }
    lock(&queue.context.get().live).cqs.remove(&queue.number);
    queue.acks.settle();
    // SAFETY: no event can point to it any more.
    unsafe { take(cq) };
    0
}

/// `ibv_ack_cq_events(3)`.
///
/// # Safety
/// The queue is one of ours, and has that many events that are not acknowledged.
pub(crate) unsafe fn ack_events(cq: *mut Cq, events: c_uint) {
    // SAFETY: the caller's promise.
    unsafe { body(cq) }.acks.acknowledge(u64::from(events));
}

/// `ibv_poll_cq(3)`.
///
/// # Safety
/// The queue is one of ours; `wcs` has `count` entries.
pub(crate) unsafe extern "C" fn poll(cq: *mut Cq, count: c_int, wcs: *mut Wc) -> c_int {
    let Ok(count) = usize::try_from(count) else { return -libc::EINVAL };
    if count == 0 {
        return 0;
    }
    // SAFETY: the program's array, of plain numbers.
    let wcs = unsafe { std::slice::from_raw_parts_mut(wcs, count) };
    // SAFETY: the caller's promise.
    match unsafe { body(cq) }.device.poll(wcs) {
        Ok(filled) => filled as c_int,
        Err(errno) => -errno,
    }
}

/// `ibv_req_notify_cq(3)`.
///
/// # Safety
/// The queue is one of ours.
pub(crate) unsafe extern "C" fn req_notify(cq: *mut Cq, solicited_only: c_int) -> c_int {
    // SAFETY: the caller's promise.
    status(unsafe { body(cq) }.device.req_notify(solicited_only != 0))
}
