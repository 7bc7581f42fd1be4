//! Protection domains and memory regions.

use crate::answer::{Answer, failure, status};
use crate::context::Keep;
use crate::object::{Handed, User, Users, body, give, take};
use sojourn_fabric::Error;
use sojourn_fabric::abi::{Context, Mr, Pd};
use sojourn_fabric::device::{DeviceMr, DevicePd, PdInit};
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

/// A protection domain. The device's object goes before what keeps the context, here and below.
pub(crate) struct PdBody {
    pub(crate) device: Arc<dyn DevicePd>,
    pub(crate) users: Users,
    _context: Keep,
}

impl Handed for Pd {
    type Body = PdBody;
}

/// `ibv_alloc_pd(3)`.
///
/// # Safety
/// The context is one of ours, and open.
pub(crate) unsafe fn alloc_pd(context: *mut Context) -> *mut Pd {
    // SAFETY: the caller's promise.
    let keep = unsafe { Keep::new(context) };
    // Programs share objects between threads as they like.
    let device = match Arc::clone(&keep.get().open.device).alloc_pd(PdInit::default()) {
        Ok(device) => device,
        Err(error) => return failure(&error),
    };
    give(Pd { context, handle: 0 }, PdBody { device, users: Users::default(), _context: keep })
}

/// `ibv_dealloc_pd(3)`.
///
/// # Safety
/// The domain is one of ours, and the program uses it no more.
pub(crate) unsafe fn dealloc_pd(pd: *mut Pd) -> c_int {
    // SAFETY: the caller's promise.
    if unsafe { body(pd) }.users.any() {
        return Answer::failed(libc::EBUSY);
    }
    // SAFETY: the caller's promise.
    unsafe { take(pd) };
    0
}

/// A memory region.
pub(crate) struct MrBody {
    device: Arc<dyn DeviceMr>,
    _pd: User,
    _context: Keep,
}

impl Handed for Mr {
    type Body = MrBody;
}

/// `ibv_reg_mr(3)`.
///
/// # Safety
/// The domain is one of ours; the memory stays mapped until it is deregistered.
pub(crate) unsafe fn reg_mr(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut Mr {
    // SAFETY: the caller's promises.
    unsafe { reg_mr_iova2(pd, addr, length, addr as u64, access as c_uint) }
}

/// `ibv_reg_mr_iova(3)`.
///
/// # Safety
/// As [`reg_mr`].
pub(crate) unsafe fn reg_mr_iova(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> *mut Mr {
    // SAFETY: the caller's promises.
    unsafe { reg_mr_iova2(pd, addr, length, iova, access as c_uint) }
}

/// What `ibv_reg_mr` of newer headers calls. Regions begin at their own addresses.
///
/// # Safety
/// As [`reg_mr`].
pub(crate) unsafe fn reg_mr_iova2(
    pd: *mut Pd,
    addr: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut Mr {
    if iova != addr as u64 {
        return failure(&Error::unsupported(format!(
            "a region at {addr:p} with the I/O address {iova:#x}: virtual ones have their own"
        )));
    }
    // SAFETY: the caller's promise.
    let domain = unsafe { body(pd) };
    // SAFETY: the caller's promise.
    let context = unsafe { (*pd).context };
    // SAFETY: the memory is the program's, written by it as C does: no Rust reference to it exists.
    let device = match unsafe { Arc::clone(&domain.device).reg_mr(addr, length, access) } {
        Ok(device) => device,
        Err(error) => return failure(&error),
    };
    let (lkey, rkey) = (device.lkey(), device.rkey());
    // SAFETY: the domain's context is open.
    let keep = unsafe { Keep::new(context) };
    give(
        Mr { context, pd, addr, length, handle: 0, lkey, rkey },
        MrBody { device, _pd: domain.users.enter(), _context: keep },
    )
}

/// `ibv_dereg_mr(3)`.
///
/// # Safety
/// The region is one of ours; where this succeeds the program uses it no more.
pub(crate) unsafe fn dereg_mr(mr: *mut Mr) -> c_int {
    // SAFETY: the caller's promise.
    let gone = unsafe { body(mr) }.device.dereg();
    // SAFETY: nothing lands in the memory any more, and the program is told so.
    status(gone.map(|()| unsafe { take(mr) }))
}
