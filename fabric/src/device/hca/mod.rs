//! Any device of the system's libibverbs: `rxe0`, `mlx5_0`, …
//!
//! Promises: the verbs of the man pages and nothing beside them, with three differences. Nothing
//! blocks (channels and asynchronous events are polled), an event is acknowledged when it is
//! taken, and a request posted in a state that IBTA forbids (a send before RTS, a receive in
//! RESET) is refused before the provider sees it: rxe answers `EINVAL` to such a send, but keeps
//! it, and executes it once the QP is in RTS.
//!
//! Callers: [`super::list`] and [`super::open`]. This is the only part of the crate that calls
//! libibverbs ([`crate::abi::Verbs`]). The data path calls the provider through
//! `ibv_context.ops`, as a C program's inlined verbs do.
//!
//! Each object holds `Arc`s of what it was created from, and destroys its own in `Drop`; so a
//! parent is always destroyed after its children. A destruction that fails is logged.

mod ah;
mod channel;
mod context;
mod cq;
mod events;
mod gid;
mod limits;
mod memlock;
mod mr;
mod pd;
mod qp;
mod raw;
mod srq;

use super::{Device, DeviceContext, Kind};
use crate::abi::{self, Verbs};
use crate::{Error, Result};
use raw::Handle;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::sync::Arc;

/// The devices of libibverbs that this machine has; none where there is no RDMA
/// ([`find`] says why).
#[must_use]
pub fn list() -> Vec<Box<dyn Device>> {
    find().unwrap_or_else(|error| {
        tracing::debug!(%error, "no device of libibverbs");
        Vec::new()
    })
}

/// As [`list`], for those who want to know why there is none.
///
/// # Errors
/// `ENOENT` where libibverbs is not installed, `ENOSYS` where it or the kernel lacks something.
pub fn find() -> Result<Vec<Box<dyn Device>>> {
    let list = Arc::new(DeviceList::read(Verbs::get()?)?);
    let mut seen = BTreeSet::new();
    Ok((0..list.len)
        .map(|index| HcaDevice { name: list.name(index), list: Arc::clone(&list), index })
        .filter(|device| seen.insert(device.name.clone()))
        .map(|device| Box::new(device) as Box<dyn Device>)
        .collect())
}

/// What `ibv_get_device_list` returned, freed with its last device.
struct DeviceList {
    verbs: &'static Verbs,
    first: Handle<*mut abi::Device>,
    len: usize,
}

impl DeviceList {
    fn read(verbs: &'static Verbs) -> Result<Self> {
        let mut len = 0;
        // SAFETY: the argument is where the number goes.
        let first = unsafe { (verbs.ibv_get_device_list)(&raw mut len) };
        let first = raw::created(first).map_err(|errno| {
            let advice = match errno {
                libc::ENOSYS => " (is the kernel module ib_uverbs loaded?)",
                _ => "",
            };
            raw::error(errno, format_args!("listing RDMA devices{advice}"))
        })?;
        Ok(DeviceList { verbs, first, len: usize::try_from(len).unwrap_or(0) })
    }

    fn device(&self, index: usize) -> *mut abi::Device {
        assert!(index < self.len, "an index of this list");
        // SAFETY: the list has `len` elements, and lives as long as `self`.
        unsafe { self.first.ptr().add(index).read() }
    }

    fn name(&self, index: usize) -> String {
        // SAFETY: the device is in the list, which holds it.
        let name = unsafe { (self.verbs.ibv_get_device_name)(self.device(index)) };
        // SAFETY: the name is a C string inside the device.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: the list came from libibverbs, and no device of it is in use but opened ones,
        // which their contexts hold.
        unsafe { (self.verbs.ibv_free_device_list)(self.first.ptr()) }
    }
}

struct HcaDevice {
    name: String,
    list: Arc<DeviceList>,
    index: usize,
}

impl Device for HcaDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Hca
    }

    fn open(&self) -> Result<Arc<dyn DeviceContext>> {
        // SAFETY: the device is in the list, which `self` keeps.
        let opened = unsafe { (self.list.verbs.ibv_open_device)(self.list.device(self.index)) };
        let opened = raw::created(opened).map_err(|errno| self.cannot_open(errno))?;
        Ok(Arc::new(context::HcaContext::new(self.list.verbs, opened, self.name.clone())?))
    }
}

impl HcaDevice {
    fn cannot_open(&self, errno: i32) -> Error {
        // SAFETY: the device is in the list, which `self` keeps; its strings are C strings.
        let node =
            unsafe { CStr::from_ptr((&raw const (*self.list.device(self.index)).dev_name).cast()) };
        let node = node.to_string_lossy();
        let advice = match errno {
            libc::EACCES | libc::EPERM => {
                format!(" (this user needs read and write access to /dev/infiniband/{node})")
            }
            libc::ENOENT | libc::ENXIO | libc::ENODEV => {
                format!(" (/dev/infiniband/{node} is missing, or its device is gone)")
            }
            _ => String::new(),
        };
        raw::error(errno, format_args!("opening device \"{}\"{advice}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    /// Promise: a machine without RDMA has no such devices, and that is no error of the list.
    #[test]
    fn list_never_fails_and_has_no_duplicates() {
        let names: Vec<String> = list().iter().map(|device| device.name().to_owned()).collect();
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), names.len(), "{names:?}");
        match find() {
            Ok(found) => assert_eq!(found.len(), names.len()),
            Err(error) => {
                assert!(names.is_empty());
                assert!(!error.to_string().is_empty());
            }
        }
    }

    /// Promise: an unknown device gives one error that names it.
    #[test]
    fn unknown_device_is_named() {
        let error = device::open("rxe-none").err().expect("there is no such device");
        assert_eq!(error.errno(), libc::ENODEV);
        assert!(error.to_string().contains("\"rxe-none\""), "{error}");
    }
}
