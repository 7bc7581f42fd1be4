//! Every public symbol of libibverbs, from one table.
//!
//! The names are those of rdma-core's symbol map (versions `IBVERBS_1.0` to `1.18`) and the one private
//! function that programs import. Ours have no version, and glibc lets such a symbol of a preloaded
//! object stand for every version of its name. What drivers call of libibverbs (`ibv_cmd_*`, `verbs_*`)
//! is left alone: no program has it, and drivers need the real one.
//!
//! | kind | with an object of ours | with another | with none |
//! | --- | --- | --- | --- |
//! | `served` | does it | the real function | `EINVAL` |
//! | `refused` | `EOPNOTSUPP` | the real function | `EOPNOTSUPP` |
//! | `plain` | takes no object: the real function, or a fixed answer where there is none | | |
//!
//! A panic cannot leave these functions: Rust ends the process with the panic's message instead.

use crate::answer::{Answer, MinusOne};
use crate::context::About;
use crate::real::Function;
use crate::{ah, context, cq, devices, gid, memory, qp, srq};
use sojourn_fabric::abi::{
    Ah, AhAttr, AsyncEvent, CompChannel, Context, Cq, Device, DeviceAttr, Gid, GidEntry, Grh, Mr,
    Pd, PortAttr, Qp, QpAttr, QpInitAttr, Srq, SrqAttr, SrqInitAttr, Wc,
};
use std::ffi::{c_char, c_int, c_uint, c_void};

/// Whose an object is.
pub(crate) enum Owner {
    Ours,
    Real,
    /// A null pointer.
    Nobody,
}

/// The argument that tells whose a call is.
trait Owned: Copy {
    /// # Safety
    /// It is null, or an object that is alive.
    unsafe fn owner(self) -> Owner;
}

fn ours_or_real(ours: bool) -> Owner {
    if ours { Owner::Ours } else { Owner::Real }
}

impl Owned for *mut Context {
    unsafe fn owner(self) -> Owner {
        if self.is_null() {
            return Owner::Nobody;
        }
        // SAFETY: the caller's promise.
        ours_or_real(unsafe { context::is_ours(self) })
    }
}

/// Structs that begin with a pointer to their context.
trait OfContext {}
impl OfContext for Pd {}
impl OfContext for Mr {}
impl OfContext for CompChannel {}
impl OfContext for Cq {}
impl OfContext for Srq {}
impl OfContext for Qp {}

/// `struct ibv_dm`, `ibv_dmah` or `ibv_comp_cntr`: only their context is looked at.
#[repr(C)]
struct Newer {
    context: *mut Context,
}
impl OfContext for Newer {}

impl<T: OfContext> Owned for *mut T {
    unsafe fn owner(self) -> Owner {
        if self.is_null() {
            return Owner::Nobody;
        }
        // SAFETY: the caller's promise; the struct begins with this pointer.
        unsafe { self.cast::<*mut Context>().read().owner() }
    }
}

impl Owned for *mut Ah {
    unsafe fn owner(self) -> Owner {
        if self.is_null() { Owner::Nobody } else { ours_or_real(ah::is_ours(self)) }
    }
}

impl Owned for *mut Device {
    unsafe fn owner(self) -> Owner {
        if self.is_null() { Owner::Nobody } else { ours_or_real(devices::is_ours(self)) }
    }
}

/// A list of devices is whose the first is; an empty one is ours as well as anybody's.
impl Owned for *mut *mut Device {
    unsafe fn owner(self) -> Owner {
        if self.is_null() {
            return Owner::Nobody;
        }
        // SAFETY: the caller's promise: it ends with a null pointer.
        match unsafe { self.read().owner() } {
            Owner::Nobody => Owner::Ours,
            owner => owner,
        }
    }
}

impl Owned for *mut AsyncEvent {
    unsafe fn owner(self) -> Owner {
        if self.is_null() {
            return Owner::Nobody;
        }
        // SAFETY: the caller's promise; what an event is about is alive until it is acknowledged.
        unsafe {
            match context::about(&*self) {
                About::Qp(qp) => qp.owner(),
                About::Cq(cq) => cq.owner(),
                About::Srq(srq) => srq.owner(),
                About::Nothing => Owner::Ours,
            }
        }
    }
}

/// `struct ibv_buf`: made by functions that are refused, so none is ours.
#[repr(C)]
struct Buffer {
    _opaque: u8,
}

impl Owned for *mut Buffer {
    unsafe fn owner(self) -> Owner {
        if self.is_null() { Owner::Nobody } else { Owner::Real }
    }
}

/// Where the devices are counted (`ibv_get_device_list`), or a descriptor (`ibv_import_device`):
/// no object, and the call is ours.
impl Owned for *mut c_int {
    unsafe fn owner(self) -> Owner {
        Owner::Ours
    }
}
impl Owned for c_int {
    unsafe fn owner(self) -> Owner {
        Owner::Ours
    }
}

/// Whether an object is one of ours; a null pointer is not.
///
/// # Safety
/// It is null, or an object that is alive.
#[allow(private_bounds, reason = "the objects are this crate's business, and few")]
pub(crate) unsafe fn is_ours<T: OfContext>(object: *mut T) -> bool {
    // SAFETY: the caller's promise.
    matches!(unsafe { object.owner() }, Owner::Ours)
}

/// Calls the real function of that name and type; evaluates to `None` where there is none.
macro_rules! real {
    ($name:ident($($arg:ident: $ty:ty),*) -> $ret:ty) => {{
        const NAME: &std::ffi::CStr = match std::ffi::CStr::from_bytes_with_nul(
            concat!(stringify!($name), "\0").as_bytes(),
        ) {
            Ok(name) => name,
            Err(_) => panic!("identifiers have no zero in them"),
        };
        static REAL: Function = Function::new(NAME);
        REAL.address().map(|address| {
            // SAFETY: libibverbs' function of this name has this type, for ever.
            let function = unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($ty),*) -> $ret>(
                    address.as_ptr(),
                )
            };
            // SAFETY: the caller's promises, which are those of the function's man page.
            unsafe { function($($arg),*) }
        })
    }};
}

macro_rules! symbols {
    (
        served { $(fn $served:ident($s:ident: $sty:ty $(, $sarg:ident: $sargty:ty)* $(,)?) -> $sret:ty
            = $body:path;)* }
        refused { $(fn $refused:ident($r:ident: $rty:ty $(, $rarg:ident: $rargty:ty)* $(,)?) -> $rret:ty;)* }
        plain { $(fn $plain:ident($($parg:ident: $pargty:ty),* $(,)?) -> $pret:ty, else $fixed:expr;)* }
    ) => {
        /// The names of all functions that are exported.
        pub const NAMES: &[&str] =
            &[$(stringify!($served),)* $(stringify!($refused),)* $(stringify!($plain),)*];

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $served($s: $sty $(, $sarg: $sargty)*) -> $sret {
                // SAFETY: the caller's promises, which are those of the function's man page.
                match unsafe { $s.owner() } {
                    // SAFETY: as above, and the object is ours.
                    Owner::Ours => unsafe { $body($s $(, $sarg)*) },
                    Owner::Real => real!($served($s: $sty $(, $sarg: $sargty)*) -> $sret)
                        .unwrap_or_else(|| Answer::failed(libc::EOPNOTSUPP)),
                    Owner::Nobody => Answer::failed(libc::EINVAL),
                }
            }
        )*

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $refused($r: $rty $(, $rarg: $rargty)*) -> $rret {
                // SAFETY: the caller's promises, which are those of the function's man page.
                match unsafe { $r.owner() } {
                    Owner::Real => real!($refused($r: $rty $(, $rarg: $rargty)*) -> $rret)
                        .unwrap_or_else(|| Answer::failed(libc::EOPNOTSUPP)),
                    Owner::Ours | Owner::Nobody => Answer::failed(libc::EOPNOTSUPP),
                }
            }
        )*

        $(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $plain($($parg: $pargty),*) -> $pret {
                real!($plain($($parg: $pargty),*) -> $pret).unwrap_or($fixed)
            }
        )*
    };
}

/// What has no name here.
type Opaque = *mut c_void;

/// `IBV_RATE_MAX`: no particular rate.
const RATE_MAX: u32 = 0;
/// `IBV_FORK_DISABLED`.
const FORK_DISABLED: u32 = 0;
const UNKNOWN: *const c_char = c"unknown".as_ptr();

symbols! {
    served {
        fn ibv_get_device_list(count: *mut c_int) -> *mut *mut Device = devices::list;
        fn ibv_free_device_list(list: *mut *mut Device) -> () = devices::free_list;
        fn ibv_get_device_name(device: *mut Device) -> *const c_char = devices::name;
        fn ibv_get_device_guid(device: *mut Device) -> u64 = devices::guid;
        fn ibv_get_device_index(device: *mut Device) -> MinusOne = devices::index;
        fn ibv_open_device(device: *mut Device) -> *mut Context = devices::open;
        fn ibv_close_device(context: *mut Context) -> MinusOne = context::close;
        fn ibv_get_async_event(context: *mut Context, event: *mut AsyncEvent) -> MinusOne
            = context::get_async_event;
        fn ibv_ack_async_event(event: *mut AsyncEvent) -> () = context::ack_async_event;
        fn ibv_query_device(context: *mut Context, attr: *mut DeviceAttr) -> c_int
            = context::query_device;
        fn ibv_query_port(context: *mut Context, port: u8, attr: *mut PortAttr) -> c_int
            = context::query_port;
        fn ibv_query_gid(context: *mut Context, port: u8, index: c_int, gid: *mut Gid) -> MinusOne
            = gid::query;
        fn ibv_query_gid_type(context: *mut Context, port: u8, index: c_uint, kind: *mut u32)
            -> MinusOne = gid::query_type;
        fn _ibv_query_gid_ex(
            context: *mut Context, port: u32, index: u32, entry: *mut GidEntry, flags: u32,
            size: usize,
        ) -> c_int = gid::query_entry;
        fn _ibv_query_gid_table(
            context: *mut Context, entries: *mut GidEntry, max: usize, flags: u32, size: usize,
        ) -> isize = gid::query_table;
        fn ibv_query_pkey(context: *mut Context, port: u8, index: c_int, pkey: *mut u16) -> MinusOne
            = context::query_pkey;
        fn ibv_get_pkey_index(context: *mut Context, port: u8, pkey: u16) -> MinusOne
            = context::pkey_index;

        fn ibv_alloc_pd(context: *mut Context) -> *mut Pd = memory::alloc_pd;
        fn ibv_dealloc_pd(pd: *mut Pd) -> c_int = memory::dealloc_pd;
        fn ibv_reg_mr(pd: *mut Pd, addr: Opaque, length: usize, access: c_int) -> *mut Mr
            = memory::reg_mr;
        fn ibv_reg_mr_iova(pd: *mut Pd, addr: Opaque, length: usize, iova: u64, access: c_int)
            -> *mut Mr = memory::reg_mr_iova;
        fn ibv_reg_mr_iova2(pd: *mut Pd, addr: Opaque, length: usize, iova: u64, access: c_uint)
            -> *mut Mr = memory::reg_mr_iova2;
        fn ibv_dereg_mr(mr: *mut Mr) -> c_int = memory::dereg_mr;

        fn ibv_create_comp_channel(context: *mut Context) -> *mut CompChannel = cq::create_channel;
        fn ibv_destroy_comp_channel(channel: *mut CompChannel) -> c_int = cq::destroy_channel;
        fn ibv_create_cq(
            context: *mut Context, cqe: c_int, user: Opaque, channel: *mut CompChannel,
            comp_vector: c_int,
        ) -> *mut Cq = cq::create;
        fn ibv_resize_cq(cq: *mut Cq, cqe: c_int) -> c_int = cq::resize;
        fn ibv_destroy_cq(cq: *mut Cq) -> c_int = cq::destroy;
        fn ibv_get_cq_event(channel: *mut CompChannel, cq: *mut *mut Cq, user: *mut Opaque)
            -> MinusOne = cq::get_event;
        fn ibv_ack_cq_events(cq: *mut Cq, events: c_uint) -> () = cq::ack_events;

        fn ibv_create_srq(pd: *mut Pd, init: *mut SrqInitAttr) -> *mut Srq = srq::create;
        fn ibv_modify_srq(srq: *mut Srq, attr: *mut SrqAttr, mask: c_int) -> c_int = srq::modify;
        fn ibv_query_srq(srq: *mut Srq, attr: *mut SrqAttr) -> c_int = srq::query;
        fn ibv_destroy_srq(srq: *mut Srq) -> c_int = srq::destroy;

        fn ibv_create_qp(pd: *mut Pd, init: *mut QpInitAttr) -> *mut Qp = qp::create;
        fn ibv_modify_qp(qp: *mut Qp, attr: *mut QpAttr, mask: c_int) -> c_int = qp::modify;
        fn ibv_query_qp(qp: *mut Qp, attr: *mut QpAttr, mask: c_int, init: *mut QpInitAttr) -> c_int
            = qp::query;
        fn ibv_destroy_qp(qp: *mut Qp) -> c_int = qp::destroy;
        fn ibv_query_qp_data_in_order(qp: *mut Qp, opcode: u32, flags: u32) -> c_int
            = qp::data_in_order;

        fn ibv_create_ah(pd: *mut Pd, attr: *mut AhAttr) -> *mut Ah = ah::create;
        fn ibv_destroy_ah(ah: *mut Ah) -> c_int = ah::destroy;
        fn ibv_init_ah_from_wc(
            context: *mut Context, port: u8, wc: *mut Wc, grh: *mut Grh, attr: *mut AhAttr,
        ) -> MinusOne = ah::init_from_wc;
        fn ibv_create_ah_from_wc(pd: *mut Pd, wc: *mut Wc, grh: *mut Grh, port: u8) -> *mut Ah
            = ah::create_from_wc;
    }
    refused {
        fn ibv_attach_mcast(qp: *mut Qp, gid: *const Gid, lid: u16) -> c_int;
        fn ibv_detach_mcast(qp: *mut Qp, gid: *const Gid, lid: u16) -> c_int;
        fn ibv_rereg_mr(
            mr: *mut Mr, flags: c_int, pd: *mut Pd, addr: Opaque, length: usize, access: c_int,
        ) -> MinusOne;
        fn ibv_qp_to_qp_ex(qp: *mut Qp) -> Opaque;
        fn ibv_resolve_eth_l2_from_gid(
            context: *mut Context, attr: *mut AhAttr, mac: *mut u8, vid: *mut u16,
        ) -> c_int;
        fn ibv_import_device(fd: c_int) -> *mut Context;
        fn ibv_import_mr(pd: *mut Pd, handle: u32) -> *mut Mr;
        fn ibv_unimport_mr(mr: *mut Mr) -> ();
        fn ibv_import_pd(context: *mut Context, handle: u32) -> *mut Pd;
        fn ibv_unimport_pd(pd: *mut Pd) -> ();
        fn ibv_import_dm(context: *mut Context, handle: u32) -> Opaque;
        fn ibv_unimport_dm(dm: *mut Newer) -> ();
        fn ibv_query_ece(qp: *mut Qp, ece: Opaque) -> c_int;
        fn ibv_set_ece(qp: *mut Qp, ece: Opaque) -> c_int;
        fn ibv_reg_dmabuf_mr(
            pd: *mut Pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int,
        ) -> *mut Mr;
        fn ibv_alloc_dmah(context: *mut Context, attr: Opaque) -> Opaque;
        fn ibv_dealloc_dmah(dmah: *mut Newer) -> c_int;
        fn ibv_reg_mr_ex(pd: *mut Pd, attr: Opaque) -> *mut Mr;
        fn ibv_dm_export_dmabuf_fd(dm: *mut Newer) -> MinusOne;
        fn ibv_query_port_speed(context: *mut Context, port: u32, speed: *mut u64) -> c_int;
        fn ibv_alloc_buf(pd: *mut Pd, size: usize, buffer: *mut Opaque) -> Opaque;
        fn ibv_free_buf(buffer: *mut Buffer) -> ();
        fn ibv_reg_buf_mr(pd: *mut Pd, buffer: Opaque, addr: Opaque, length: usize, access: c_int)
            -> *mut Mr;
        fn ibv_export_buf_dmabuf_fd(buffer: *mut Buffer) -> MinusOne;
        fn _ibv_query_comp_cntr_caps(context: *mut Context, caps: Opaque, size: usize) -> c_int;
        fn ibv_create_comp_cntr(context: *mut Context, attr: Opaque) -> Opaque;
        fn ibv_destroy_comp_cntr(counter: *mut Newer) -> c_int;
        fn ibv_inc_comp_cntr(counter: *mut Newer, amount: u64) -> c_int;
        fn ibv_inc_err_comp_cntr(counter: *mut Newer, amount: u64) -> c_int;
        fn ibv_set_comp_cntr(counter: *mut Newer, value: u64) -> c_int;
        fn ibv_set_err_comp_cntr(counter: *mut Newer, value: u64) -> c_int;
        fn ibv_read_comp_cntr(counter: *mut Newer, value: *mut u64) -> c_int;
        fn ibv_read_err_comp_cntr(counter: *mut Newer, value: *mut u64) -> c_int;
        fn ibv_qp_attach_comp_cntr(qp: *mut Qp, counter: *mut Newer, attr: Opaque) -> c_int;
    }
    plain {
        fn ibv_rate_to_mult(rate: u32) -> c_int, else -1;
        fn mult_to_ibv_rate(mult: c_int) -> u32, else RATE_MAX;
        fn ibv_rate_to_mbps(rate: u32) -> c_int, else -1;
        fn mbps_to_ibv_rate(mbps: c_int) -> u32, else RATE_MAX;
        fn ibv_node_type_str(kind: u32) -> *const c_char, else UNKNOWN;
        fn ibv_port_state_str(state: u32) -> *const c_char, else UNKNOWN;
        fn ibv_event_type_str(kind: u32) -> *const c_char, else UNKNOWN;
        fn ibv_wc_status_str(status: u32) -> *const c_char, else UNKNOWN;
        fn ibv_fork_init() -> c_int, else 0;
        fn ibv_is_fork_initialized() -> u32, else FORK_DISABLED;
        fn ibv_dontfork_range(base: Opaque, size: usize) -> c_int, else 0;
        fn ibv_dofork_range(base: Opaque, size: usize) -> c_int, else 0;
        fn ibv_get_sysfs_path() -> *const c_char, else c"/sys".as_ptr();
        fn ibv_read_sysfs_file(
            dir: *const c_char, file: *const c_char, buffer: *mut c_char, size: usize,
        ) -> c_int, else -1;
        fn ibv_copy_path_rec_from_kern(to: Opaque, from: Opaque) -> (), else ();
        fn ibv_copy_path_rec_to_kern(to: Opaque, from: Opaque) -> (), else ();
        fn ibv_copy_qp_attr_from_kern(to: Opaque, from: Opaque) -> (), else ();
        fn ibv_copy_ah_attr_from_kern(to: Opaque, from: Opaque) -> (), else ();
        fn ibv_register_driver(name: *const c_char, init: Opaque) -> (), else ();
    }
}
