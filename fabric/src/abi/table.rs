//! The functions of the real libibverbs, loaded at run time.
//!
//! Nothing here links with libibverbs: [`Verbs::get`] opens `libibverbs.so.1` at first use and
//! looks up every function together with its symbol version, so that a program runs with or
//! without RDMA on the machine, and meets the function whose arguments it knows even where the
//! library keeps an older one of the same name. rdma-core 44 to 64 have all of them.
//!
//! Caller: `device::hca`. A function pointer obeys the man page of its name.

use super::{
    Ah, AhAttr, AsyncEvent, CompChannel, Context, Cq, Device, DeviceAttr, Gid, GidEntry, Mr, Pd,
    PortAttr, Qp, QpAttr, QpInitAttr, Srq, SrqAttr, SrqInitAttr,
};
use crate::{Error, Result};
use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::mem::transmute;
use std::sync::OnceLock;

/// The library's name, as every program that links with it knows it.
pub const SONAME: &CStr = c"libibverbs.so.1";

/// The oldest rdma-core whose libibverbs is known to have all functions used here.
const OLDEST: &str = "rdma-core 44";

macro_rules! functions {
    ($($version:literal {
        $($name:ident: fn($($arg:ty),* $(,)?) $(-> $ret:ty)?;)*
    })*) => {
        /// The functions of libibverbs that Sojourn calls, by their C names.
        pub struct Verbs {
            $($(
                #[doc = concat!("`", stringify!($name), "`, of symbol version ", $version, ".")]
                pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,
            )*)*
        }

        impl Verbs {
            fn from_library(library: &Library) -> Result<Self> {
                Ok(Verbs {
                    $($($name: {
                        let symbol = library.symbol(stringify!($name), $version)?;
                        // SAFETY: the symbol of this name and version is a function of this
                        // type; libibverbs never changes one without a new version.
                        unsafe {
                            transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(symbol)
                        }
                    },)*)*
                })
            }
        }
    };
}

functions! {
    "IBVERBS_1.1" {
        ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
        ibv_free_device_list: fn(*mut *mut Device);
        ibv_get_device_name: fn(*mut Device) -> *const c_char;
        ibv_open_device: fn(*mut Device) -> *mut Context;
        ibv_close_device: fn(*mut Context) -> c_int;
        ibv_get_async_event: fn(*mut Context, *mut AsyncEvent) -> c_int;
        ibv_ack_async_event: fn(*mut AsyncEvent);
        ibv_query_device: fn(*mut Context, *mut DeviceAttr) -> c_int;
        ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
        ibv_query_gid: fn(*mut Context, u8, c_int, *mut Gid) -> c_int;
        ibv_query_pkey: fn(*mut Context, u8, c_int, *mut u16) -> c_int;
        ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
        ibv_dealloc_pd: fn(*mut Pd) -> c_int;
        ibv_dereg_mr: fn(*mut Mr) -> c_int;
        ibv_create_cq: fn(
            *mut Context, c_int, *mut c_void, *mut CompChannel, c_int,
        ) -> *mut Cq;
        ibv_resize_cq: fn(*mut Cq, c_int) -> c_int;
        ibv_destroy_cq: fn(*mut Cq) -> c_int;
        ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events: fn(*mut Cq, c_uint);
        ibv_create_srq: fn(*mut Pd, *mut SrqInitAttr) -> *mut Srq;
        ibv_modify_srq: fn(*mut Srq, *mut SrqAttr, c_int) -> c_int;
        ibv_query_srq: fn(*mut Srq, *mut SrqAttr) -> c_int;
        ibv_destroy_srq: fn(*mut Srq) -> c_int;
        ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
        ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
        ibv_query_qp: fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
        ibv_destroy_qp: fn(*mut Qp) -> c_int;
        ibv_create_ah: fn(*mut Pd, *mut AhAttr) -> *mut Ah;
        ibv_destroy_ah: fn(*mut Ah) -> c_int;
    }
    // Without a version of their own ever since: they have only this one.
    "IBVERBS_1.0" {
        ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
        ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
    }
    // What ibv_reg_mr itself calls. It drops optional access flags that the kernel lacks.
    "IBVERBS_1.8" {
        ibv_reg_mr_iova2: fn(*mut Pd, *mut c_void, usize, u64, c_uint) -> *mut Mr;
    }
    "IBVERBS_1.11" {
        _ibv_query_gid_table: fn(*mut Context, *mut GidEntry, usize, u32, usize) -> isize;
    }
}

impl Verbs {
    /// The functions of this machine's libibverbs.
    ///
    /// # Errors
    /// `ENOENT` where it is not installed, `ENOSYS` where it lacks a function.
    pub fn get() -> Result<&'static Verbs> {
        static VERBS: OnceLock<Result<Verbs>> = OnceLock::new();
        VERBS.get_or_init(|| Verbs::load(SONAME)).as_ref().map_err(Clone::clone)
    }

    fn load(name: &CStr) -> Result<Self> {
        Verbs::from_library(&Library::open(name)?)
    }
}

/// An open shared library. It is never closed: libibverbs keeps providers and threads' state.
struct Library {
    name: String,
    handle: *mut c_void,
}

impl Library {
    fn open(name: &CStr) -> Result<Self> {
        // SAFETY: the name is a C string. The constructors that run are those of libibverbs and
        // its dependencies, or whatever the machine's owner put in their place.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        let name = name.to_string_lossy().into_owned();
        if handle.is_null() {
            return Err(Error::new(
                libc::ENOENT,
                format!(
                    "{name} cannot be loaded, so no RDMA hardware can be used: {}; \
                     install {OLDEST} or newer (package libibverbs1 or libibverbs)",
                    last_dl_error()
                ),
            ));
        }
        Ok(Library { name, handle })
    }

    fn symbol(&self, symbol: &str, version: &str) -> Result<*mut c_void> {
        let [c_symbol, c_version] = [symbol, version]
            .map(|text| std::ffi::CString::new(text).expect("names in this file have no zero"));
        // SAFETY: the handle is open, and both names are C strings.
        let found = unsafe { libc::dlvsym(self.handle, c_symbol.as_ptr(), c_version.as_ptr()) };
        if found.is_null() {
            return Err(Error::new(
                libc::ENOSYS,
                format!(
                    "{} has no {symbol} of version {version}; install {OLDEST} or newer",
                    self.name
                ),
            ));
        }
        Ok(found)
    }
}

/// What went wrong in this thread's last call of the dynamic linker.
fn last_dl_error() -> String {
    // SAFETY: dlerror has no preconditions.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the dynamic linker gives no reason".into();
    }
    // SAFETY: it is a C string, and stays until this thread's next call of the dynamic linker.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: every function used is found, with its version, in the libibverbs installed here.
    #[test]
    fn installed_library_has_every_function() {
        match Verbs::load(SONAME) {
            Ok(_) => {}
            Err(error) if error.errno() == libc::ENOENT => eprintln!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Promise: a missing library gives one error that names it and says what to do.
    #[test]
    fn missing_library_is_named() {
        let error = Verbs::load(c"libsojourn-absent.so.9").err().expect("there is no such library");
        assert_eq!(error.errno(), libc::ENOENT);
        let text = error.to_string();
        assert!(text.contains("libsojourn-absent.so.9") && text.contains("install"), "{text}");
    }

    /// Promise: a library that lacks a function gives one error that names function and version.
    #[test]
    fn missing_function_is_named() {
        let error = Verbs::load(c"libc.so.6").err().expect("libc is not libibverbs");
        assert_eq!(error.errno(), libc::ENOSYS);
        let text = error.to_string();
        for part in ["libc.so.6", "ibv_get_device_list", "IBVERBS_1.1", "install"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
