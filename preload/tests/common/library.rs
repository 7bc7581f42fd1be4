//! The shared object as a C program sees it: opened by `dlopen`, its functions found by name.

use sojourn_fabric::abi::{
    Ah, AhAttr, AsyncEvent, CompChannel, Context, Cq, Device, GidEntry, Grh, Mr, Pd, PortAttr, Qp,
    QpAttr, QpInitAttr, Srq, SrqAttr, SrqInitAttr, Wc,
};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

/// An open shared object. It is never closed.
pub(crate) struct Library(*mut c_void);

impl Library {
    /// Opens the object at that path, or of that name; `None` where there is none.
    pub(crate) fn open(path: &str) -> Option<Library> {
        let path = CString::new(path).unwrap();
        // SAFETY: a C string; constructors of libibverbs and of ours are harmless.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        (!handle.is_null()).then_some(Library(handle))
    }

    /// The address of a symbol that this object itself defines; null where it has none.
    pub(crate) fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: an open handle and a C string.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }

    /// The file that an address of it comes from.
    pub(crate) fn file_of(address: *mut c_void) -> String {
        // SAFETY: numbers and null pointers are all zero.
        let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: any address may be asked for.
        assert_ne!(unsafe { libc::dladdr(address, &mut info) }, 0);
        // SAFETY: found, so the name is a C string that lives as long as the object.
        let name = unsafe { std::ffi::CStr::from_ptr(info.dli_fname) };
        name.to_str().unwrap().to_owned()
    }
}

macro_rules! functions {
    ($($name:ident: fn($($arg:ty),* $(,)?) $(-> $ret:ty)?;)*) => {
        /// The verbs that these tests call, by their names in C.
        pub(crate) struct Verbs {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Verbs {
            /// Those of our object.
            pub(crate) fn ours() -> Verbs {
                let library = Library::open(super::object().to_str().unwrap()).expect("it opens");
                Verbs {
                    $($name: {
                        let address = library.symbol(stringify!($name));
                        assert!(!address.is_null(), concat!(stringify!($name), " is exported"));
                        // SAFETY: the function of that name has this type.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($arg),*) $(-> $ret)?,
                            >(address)
                        }
                    },)*
                }
            }
        }
    };
}

functions! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut Device;
    ibv_free_device_list: fn(*mut *mut Device);
    ibv_get_device_name: fn(*mut Device) -> *const c_char;
    ibv_get_device_index: fn(*mut Device) -> c_int;
    ibv_open_device: fn(*mut Device) -> *mut Context;
    ibv_close_device: fn(*mut Context) -> c_int;
    ibv_query_port: fn(*mut Context, u8, *mut PortAttr) -> c_int;
    ibv_query_gid: fn(*mut Context, u8, c_int, *mut [u8; 16]) -> c_int;
    ibv_get_pkey_index: fn(*mut Context, u8, u16) -> c_int;
    _ibv_query_gid_ex: fn(*mut Context, u32, u32, *mut GidEntry, u32, usize) -> c_int;
    _ibv_query_gid_table: fn(*mut Context, *mut GidEntry, usize, u32, usize) -> isize;
    ibv_alloc_pd: fn(*mut Context) -> *mut Pd;
    ibv_dealloc_pd: fn(*mut Pd) -> c_int;
    ibv_reg_mr: fn(*mut Pd, *mut c_void, usize, c_int) -> *mut Mr;
    ibv_reg_mr_iova2: fn(*mut Pd, *mut c_void, usize, u64, c_uint) -> *mut Mr;
    ibv_dereg_mr: fn(*mut Mr) -> c_int;
    ibv_create_comp_channel: fn(*mut Context) -> *mut CompChannel;
    ibv_destroy_comp_channel: fn(*mut CompChannel) -> c_int;
    ibv_create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompChannel, c_int) -> *mut Cq;
    ibv_destroy_cq: fn(*mut Cq) -> c_int;
    ibv_get_cq_event: fn(*mut CompChannel, *mut *mut Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut Cq, c_uint);
    ibv_create_srq: fn(*mut Pd, *mut SrqInitAttr) -> *mut Srq;
    ibv_query_srq: fn(*mut Srq, *mut SrqAttr) -> c_int;
    ibv_destroy_srq: fn(*mut Srq) -> c_int;
    ibv_create_qp: fn(*mut Pd, *mut QpInitAttr) -> *mut Qp;
    ibv_modify_qp: fn(*mut Qp, *mut QpAttr, c_int) -> c_int;
    ibv_query_qp: fn(*mut Qp, *mut QpAttr, c_int, *mut QpInitAttr) -> c_int;
    ibv_destroy_qp: fn(*mut Qp) -> c_int;
    ibv_get_async_event: fn(*mut Context, *mut AsyncEvent) -> c_int;
    ibv_ack_async_event: fn(*mut AsyncEvent);
    ibv_create_ah: fn(*mut Pd, *mut AhAttr) -> *mut Ah;
    ibv_create_ah_from_wc: fn(*mut Pd, *mut Wc, *mut Grh, u8) -> *mut Ah;
    ibv_destroy_ah: fn(*mut Ah) -> c_int;
    ibv_attach_mcast: fn(*mut Qp, *const [u8; 16], u16) -> c_int;
    ibv_rereg_mr: fn(*mut Mr, c_int, *mut Pd, *mut c_void, usize, c_int) -> c_int;
    ibv_qp_to_qp_ex: fn(*mut Qp) -> *mut c_void;
    ibv_import_pd: fn(*mut Context, u32) -> *mut Pd;
    ibv_import_device: fn(c_int) -> *mut Context;
    ibv_query_ece: fn(*mut Qp, *mut c_void) -> c_int;
    ibv_reg_dmabuf_mr: fn(*mut Pd, u64, usize, u64, c_int, c_int) -> *mut Mr;
    ibv_resolve_eth_l2_from_gid: fn(*mut Context, *mut AhAttr, *mut u8, *mut u16) -> c_int;
    ibv_query_port_speed: fn(*mut Context, u32, *mut u64) -> c_int;
    ibv_dm_export_dmabuf_fd: fn(*mut c_void) -> c_int;
    ibv_create_comp_cntr: fn(*mut Context, *mut c_void) -> *mut c_void;
    ibv_query_qp_data_in_order: fn(*mut Qp, u32, u32) -> c_int;
}

/// What the last verb left in `errno`.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}
