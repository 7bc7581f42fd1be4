//! The list of devices. With `SOJOURN_DEVICE` it has that device alone; else all of this machine,
//! the best one first, since many programs take the first.
//!
//! A device lives for ever once it was listed, so that pointers to it stay good whatever lists are
//! freed; there are as many as the machine has.

use crate::answer::{Answer, MinusOne, failure, told};
use crate::context;
use crate::events::lock;
use crate::registry;
use sojourn_fabric::abi::{self, Device};
use sojourn_fabric::device::{self, Kind};
use sojourn_fabric::names::env;
use sojourn_fabric::{Error, Result};
use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int};
use std::mem::zeroed;
use std::ptr;
use std::sync::{Mutex, OnceLock};

/// `IBV_NODE_CA`: a channel adapter.
const NODE_CA: i32 = 1;
/// `IBV_TRANSPORT_IB`: what virtual verbs speak, whatever carries them.
const TRANSPORT_IB: i32 = 0;
/// Where the kernel shows its RDMA devices.
pub(crate) const SYSFS: &str = "/sys/class/infiniband/";

/// A device as programs see it.
#[repr(C)]
pub(crate) struct Listed {
    front: UnsafeCell<Device>,
    name: String,
    guid: OnceLock<u64>,
}

// SAFETY: nobody writes into the front after it was made; what is behind is `Sync`.
unsafe impl Sync for Listed {}
// SAFETY: its pointers are null, and are used by nobody.
unsafe impl Send for Listed {}

static DEVICES: Mutex<Vec<&'static Listed>> = Mutex::new(Vec::new());

impl Listed {
    fn new(name: &str, kind: Kind) -> Result<Self> {
        // SAFETY: numbers and null pointers are all zero.
        let mut front: Device = unsafe { zeroed() };
        front.node_type = NODE_CA;
        front.transport_type = TRANSPORT_IB;
        write_text(&mut front.name, name)?;
        if kind == Kind::Hca {
            write_text(&mut front.ibdev_path, &format!("{SYSFS}{name}"))?;
        }
        Ok(Listed { front: UnsafeCell::new(front), name: name.to_owned(), guid: OnceLock::new() })
    }

    /// The device of that name, listed from now on.
    fn of(name: &str, kind: Kind) -> Result<*mut Device> {
        let mut devices = lock(&DEVICES);
        let known = devices.iter().find(|device| device.name == name).copied();
        let device = match known {
            Some(device) => device,
            None => {
                let new: &'static Listed = Box::leak(Box::new(Listed::new(name, kind)?));
                devices.push(new);
                new
            }
        };
        Ok(device.front.get())
    }

    /// The listed device behind a pointer; `None` where it is not one of ours.
    fn find(device: *mut Device) -> Option<&'static Listed> {
        lock(&DEVICES).iter().find(|listed| ptr::eq(listed.front.get(), device)).copied()
    }

    fn read_guid(&self) -> Result<u64> {
        if let Some(guid) = self.guid.get() {
            return Ok(*guid);
        }
        let open = registry::all().into_iter().find(|open| open.device.name() == self.name);
        let attr = match open {
            Some(open) => open.device.query_device()?,
            None => device::open(&self.name)?.query_device()?,
        };
        Ok(*self.guid.get_or_init(|| attr.node_guid))
    }
}

/// Whether this is a device of ours.
pub(crate) fn is_ours(device: *mut Device) -> bool {
    Listed::find(device).is_some()
}

fn write_text(field: &mut [c_char], text: &str) -> Result<()> {
    if text.len() >= field.len() || text.bytes().any(|byte| byte == 0) {
        return Err(Error::invalid(format!(
            "the device name {text:?} does not fit into the {} bytes that verbs have for it",
            field.len() - 1
        )));
    }
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    Ok(())
}

/// The devices to list: name and kind, the one to take first.
fn choice() -> Result<Vec<(String, Kind)>> {
    let all: Vec<(String, Kind)> =
        device::list().iter().map(|device| (device.name().to_owned(), device.kind())).collect();
    let named = std::env::var_os(env::DEVICE).filter(|name| !name.is_empty());
    if let Some(named) = named {
        let found: Vec<_> = all.iter().filter(|(name, _)| *name.as_str() == *named).collect();
        if found.is_empty() {
            let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error::new(
                libc::ENODEV,
                format!(
                    "{}={}: there is no such device; this machine has: {}",
                    env::DEVICE,
                    named.to_string_lossy(),
                    names.join(", ")
                ),
            ));
        }
        return Ok(found.into_iter().cloned().collect());
    }
    let mut all = all;
    // Where no device is fit for use, programs may still look at all of them.
    if let Ok(best) = sojourn::best_device() {
        all.sort_by_key(|(name, _)| *name != best);
    }
    Ok(all)
}

/// `ibv_get_device_list(3)`.
///
/// # Safety
/// `count` is null or valid.
pub(crate) unsafe fn list(count: *mut c_int) -> *mut *mut Device {
    let devices = choice().and_then(|all| {
        all.iter().map(|(name, kind)| Listed::of(name, *kind)).collect::<Result<Vec<_>>>()
    });
    let devices = match devices {
        Ok(devices) => devices,
        Err(error) => return told(&error),
    };
    // SAFETY: plain allocation, of one more entry than there are devices.
    let array = unsafe { libc::calloc(devices.len() + 1, size_of::<*mut Device>()) };
    let array: *mut *mut Device = array.cast();
    if array.is_null() {
        return Answer::failed(libc::ENOMEM);
    }
    for (index, device) in devices.iter().enumerate() {
        // SAFETY: within what was just allocated.
        unsafe { array.add(index).write(*device) };
    }
    if !count.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *count = devices.len() as c_int };
    }
    array
}

/// `ibv_free_device_list(3)`.
///
/// # Safety
/// `list` came from [`list`].
pub(crate) unsafe fn free_list(list: *mut *mut Device) {
    // SAFETY: allocated by `calloc`; the devices stay.
    unsafe { libc::free(list.cast()) };
}

/// `ibv_get_device_name(3)`.
///
/// # Safety
/// `device` is one of ours.
pub(crate) unsafe fn name(device: *mut Device) -> *const c_char {
    // SAFETY: it lives for ever.
    unsafe { (&raw const (*device).name).cast() }
}

/// `ibv_get_device_guid(3)`: in network byte order, 0 where it cannot be found out.
///
/// # Safety
/// `device` is one of ours.
pub(crate) unsafe fn guid(device: *mut Device) -> u64 {
    match Listed::find(device).map(Listed::read_guid) {
        Some(Ok(guid)) => guid,
        Some(Err(error)) => failure(&error),
        None => Answer::failed(libc::EINVAL),
    }
}

/// `ibv_get_device_index(3)`: a virtual device has none.
///
/// # Safety
/// None is needed; it has the shape of its kind.
pub(crate) unsafe fn index(_: *mut Device) -> MinusOne {
    MinusOne(-1)
}

/// `ibv_open_device(3)`.
///
/// # Safety
/// `device` is one of ours.
pub(crate) unsafe fn open(device: *mut Device) -> *mut abi::Context {
    let Some(listed) = Listed::find(device) else { return Answer::failed(libc::EINVAL) };
    match registry::open(&listed.name) {
        Ok(open) => context::give(device, open),
        Err(error) => told(&error),
    }
}
