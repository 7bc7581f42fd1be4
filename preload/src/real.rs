//! The real libibverbs, for what is none of our business.
//!
//! A preloaded object is asked first by *everybody* in the process: by the program, and also by
//! libibverbs and its drivers, when Sojourn itself uses a real HCA through them. Objects that are
//! not ours come from there, and go back there; and functions that take no object at all
//! (`ibv_wc_status_str`) are answered there. An object of ours never goes there.

use sojourn_fabric::abi::SONAME;
use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

/// A function of the real library, looked up once.
pub(crate) struct Function {
    name: &'static CStr,
    found: OnceLock<Option<Address>>,
}

struct Address(NonNull<c_void>);

// SAFETY: it is the address of code, which never changes.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Function {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Function { name, found: OnceLock::new() }
    }

    /// Its address; `None` where libibverbs is not installed, or is older than the function.
    pub(crate) fn address(&self) -> Option<NonNull<c_void>> {
        let found = self.found.get_or_init(|| {
            // SAFETY: a C string. The library is there already where the program links with it; else
            // its constructors run, as they would have. Never closed, since drivers keep state.
            let library =
                unsafe { libc::dlopen(SONAME.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            let library = NonNull::new(library)?;
            // SAFETY: an open handle and a C string. Looked up in that library and what it depends
            // on, so what is found is never our own.
            NonNull::new(unsafe { libc::dlsym(library.as_ptr(), self.name.as_ptr()) }).map(Address)
        });
        found.as_ref().map(|address| address.0)
    }
}
