//! Address handles.
//!
//! A datagram's work request points to its handle, and the device must find its own there. So a
//! program is given the device's object itself (which begins as `struct ibv_ah` does; its fields
//! are null), and the table here says what it belongs to.

use crate::answer::{Answer, MinusOne, failure};
use crate::context::{self, Keep};
use crate::events::lock;
use crate::object::{User, body};
use sojourn_fabric::abi::{Ah, AhAttr, Context, Gid, Grh, Pd, Wc, wc_flags};
use sojourn_fabric::device::DeviceAh;
use std::collections::HashMap;
use std::ffi::c_int;
use std::ptr;
use std::sync::{Arc, LazyLock, Mutex};

/// Hop limit of an answer: nothing between may drop it.
const HOPS: u8 = 0xff;
/// IP version of a GRH, in its first word.
const VERSION_SHIFT: u32 = 28;
const VERSION: u32 = 6;
const TCLASS_SHIFT: u32 = 20;
const FLOW_MASK: u32 = 0xf_ffff;

struct Handle {
    _device: Arc<dyn DeviceAh>,
    _pd: User,
    _context: Keep,
}

/// All handles of the program, by address.
static HANDLES: LazyLock<Mutex<HashMap<usize, Handle>>> = LazyLock::new(Mutex::default);

/// Whether this is a handle of ours.
pub(crate) fn is_ours(ah: *mut Ah) -> bool {
    lock(&HANDLES).contains_key(&ah.addr())
}

/// `ibv_create_ah(3)`.
///
/// # Safety
/// The domain is one of ours; `attr` is valid.
pub(crate) unsafe fn create(pd: *mut Pd, attr: *mut AhAttr) -> *mut Ah {
    // SAFETY: the caller's promises.
    let (domain, attr) = unsafe { (body(pd), &*attr) };
    let device = match Arc::clone(&domain.device).create_ah(attr) {
        Ok(device) => device,
        Err(error) => return failure(&error),
    };
    let raw = device.as_raw();
    // SAFETY: the domain's context is open.
    let keep = unsafe { Keep::new((*pd).context) };
    let handle = Handle { _device: device, _pd: domain.users.enter(), _context: keep };
    lock(&HANDLES).insert(raw.addr(), handle);
    raw.cast()
}

/// `ibv_destroy_ah(3)`.
///
/// # Safety
/// The program uses the handle no more.
pub(crate) unsafe fn destroy(ah: *mut Ah) -> c_int {
    // Not dropped under the lock: dropping a handle calls the device.
    let handle = lock(&HANDLES).remove(&ah.addr());
    match handle {
        Some(_) => 0,
        None => Answer::failed(libc::EINVAL),
    }
}

/// `ibv_init_ah_from_wc(3)`: the address vector that answers a datagram.
///
/// # Safety
/// The context is one of ours; `wc` and `attr` are valid, and `grh` is where the completion says
/// that there is one.
pub(crate) unsafe fn init_from_wc(
    context: *mut Context,
    port: u8,
    wc: *mut Wc,
    grh: *mut Grh,
    attr: *mut AhAttr,
) -> MinusOne {
    // SAFETY: the caller's promise.
    let wc = unsafe { &*wc };
    let mut answer = AhAttr {
        dlid: wc.slid,
        sl: wc.sl,
        src_path_bits: wc.dlid_path_bits,
        port_num: port,
        ..AhAttr::default()
    };
    if wc.wc_flags & wc_flags::GRH != 0 {
        // SAFETY: the caller's promise; receive buffers have any alignment.
        let header = unsafe { grh.read_unaligned() };
        let first = u32::from_be(header.version_tclass_flow);
        if first >> VERSION_SHIFT != VERSION {
            return Answer::failed(libc::EOPNOTSUPP);
        }
        // SAFETY: the caller's promise.
        let Some(index) = (unsafe { index_of(context, port, header.dgid) }) else {
            return Answer::failed(libc::ENOENT);
        };
        answer.is_global = 1;
        answer.grh.dgid = header.sgid;
        answer.grh.sgid_index = index;
        answer.grh.flow_label = first & FLOW_MASK;
        answer.grh.traffic_class = (first >> TCLASS_SHIFT) as u8;
        answer.grh.hop_limit = HOPS;
    }
    // SAFETY: the caller's promise.
    unsafe { attr.write(answer) };
    MinusOne(0)
}

/// Where a GID of ours stands in its port's table.
///
/// # Safety
/// The context is one of ours.
unsafe fn index_of(context: *mut Context, port: u8, gid: Gid) -> Option<u8> {
    // SAFETY: the caller's promise.
    let device = &unsafe { context::of(context) }.open.device;
    let length = u8::try_from(device.query_port(port).ok()?.gid_tbl_len).unwrap_or(u8::MAX);
    (0..length).find(|index| device.query_gid(port, u32::from(*index)).is_ok_and(|it| it == gid))
}

/// `ibv_create_ah_from_wc(3)`.
///
/// # Safety
/// As [`init_from_wc`]; the domain is one of ours.
pub(crate) unsafe fn create_from_wc(pd: *mut Pd, wc: *mut Wc, grh: *mut Grh, port: u8) -> *mut Ah {
    let mut attr = AhAttr::default();
    // SAFETY: the caller's promises.
    match unsafe { init_from_wc((*pd).context, port, wc, grh, &raw mut attr) } {
        // SAFETY: the caller's promises.
        MinusOne(0) => unsafe { create(pd, &raw mut attr) },
        MinusOne(_) => ptr::null_mut(),
    }
}
