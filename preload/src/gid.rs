//! What programs ask of a port's GIDs. A virtual port has one, of InfiniBand.

use crate::answer::{Answer, MinusOne, failure, status};
use crate::context;
use crate::devices::SYSFS;
use sojourn_fabric::abi::{Context, Gid, GidEntry, gid_type, link_layer};
use sojourn_fabric::device::DeviceContext;
use sojourn_fabric::{Error, Result};
use std::ffi::c_int;
use std::ptr;

/// `IBV_GID_TYPE_SYSFS_IB_ROCE_V1`: the numbers of `ibv_query_gid_type` are others than those of
/// [`gid_type`].
const SYSFS_IB_ROCE_V1: u32 = 0;
/// `IBV_GID_TYPE_SYSFS_ROCE_V2`.
const SYSFS_ROCE_V2: u32 = 1;

fn gid_at(device: &dyn DeviceContext, port: u8, index: c_int) -> Result<Gid> {
    let index = u32::try_from(index).map_err(|_| Error::invalid(format!("GID index {index}")))?;
    device.query_gid(port, index)
}

/// `ibv_query_gid(3)`.
///
/// # Safety
/// The context is one of ours; `gid` is valid.
pub(crate) unsafe fn query(
    context: *mut Context,
    port: u8,
    index: c_int,
    gid: *mut Gid,
) -> MinusOne {
    // SAFETY: the caller's promise.
    match gid_at(&**unsafe { context::device(context) }, port, index) {
        // Programs' GIDs are not always aligned as the union says: some are bytes on the wire.
        // SAFETY: the caller's promise.
        Ok(found) => unsafe {
            gid.write_unaligned(found);
            MinusOne(0)
        },
        Err(error) => failure(&error),
    }
}

/// Whether an entry of an Ethernet port's table is one of RoCE v2. The device traits do not tell, so
/// the kernel is asked; an unused entry has no type there. Virtual ports are no Ethernet ports.
fn is_roce_v2(device: &dyn DeviceContext, port: u8, index: u32) -> Result<bool> {
    let file = format!("{SYSFS}{}/ports/{port}/gid_attrs/types/{index}", device.name());
    match std::fs::read_to_string(&file) {
        Ok(kind) => Ok(kind.trim() == "RoCE v2"),
        Err(error) => {
            Err(Error::new(libc::ENODATA, format!("the type of a GID in {file}: {error}")))
        }
    }
}

fn is_ethernet(device: &dyn DeviceContext, port: u8) -> Result<bool> {
    Ok(device.query_port(port)?.link_layer == link_layer::ETHERNET)
}

/// `ibv_query_gid_type`, which some programs import though it is private.
///
/// # Safety
/// The context is one of ours; `kind` is valid.
pub(crate) unsafe fn query_type(
    context: *mut Context,
    port: u8,
    index: u32,
    kind: *mut u32,
) -> MinusOne {
    // SAFETY: the caller's promise.
    let device = &**unsafe { context::device(context) };
    let found = is_ethernet(device, port).and_then(|ethernet| match ethernet {
        true => is_roce_v2(device, port, index),
        false => device.query_gid(port, index).map(|_| false),
    });
    match found {
        // SAFETY: the caller's promise.
        Ok(v2) => unsafe {
            *kind = if v2 { SYSFS_ROCE_V2 } else { SYSFS_IB_ROCE_V1 };
            MinusOne(0)
        },
        Err(error) => failure(&error),
    }
}

/// An entry of a port's table. Of an Ethernet port, which only a plain device has, the network
/// interface belongs to it; it is not known here.
fn entry(device: &dyn DeviceContext, port: u32, index: u32) -> Result<GidEntry> {
    let number = u8::try_from(port).map_err(|_| Error::invalid(format!("port {port}")))?;
    if is_ethernet(device, number)? {
        return Err(Error::unsupported(format!(
            "the GID table of {}, an Ethernet device, outside a job",
            device.name()
        )));
    }
    let gid = device.query_gid(number, index)?;
    Ok(GidEntry { gid, gid_index: index, port_num: port, gid_type: gid_type::IB, ndev_ifindex: 0 })
}

/// Writes an entry of which the program's header has `size` bytes.
///
/// # Safety
/// `to` has `size` bytes.
unsafe fn write_entry(to: *mut u8, found: &GidEntry, size: usize) {
    let known = size.min(size_of::<GidEntry>());
    // SAFETY: `known` bytes are in both, `size` bytes in the program's.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(found).cast::<u8>(), to, known);
        ptr::write_bytes(to.add(known), 0, size - known);
    }
}

/// `ibv_query_gid_ex(3)`. No flags are defined.
///
/// # Safety
/// The context is one of ours; `to` has `size` bytes.
pub(crate) unsafe fn query_entry(
    context: *mut Context,
    port: u32,
    index: u32,
    to: *mut GidEntry,
    flags: u32,
    size: usize,
) -> c_int {
    if flags != 0 {
        return Answer::failed(libc::EOPNOTSUPP);
    }
    // SAFETY: the caller's promises.
    let found = entry(&**unsafe { context::device(context) }, port, index);
    // SAFETY: the caller's promises.
    status(found.map(|found| unsafe { write_entry(to.cast(), &found, size) }))
}

fn table(device: &dyn DeviceContext) -> Result<Vec<GidEntry>> {
    let mut all = Vec::new();
    for port in 1..=device.query_device()?.phys_port_cnt {
        let length = device.query_port(port)?.gid_tbl_len;
        for index in 0..u32::try_from(length).unwrap_or(0) {
            all.push(entry(device, u32::from(port), index)?);
        }
    }
    all.retain(|entry| entry.gid != Gid::default());
    Ok(all)
}

/// `ibv_query_gid_table(3)`: how many entries, or a negative errno.
///
/// # Safety
/// The context is one of ours; `to` has `max` entries of `size` bytes.
pub(crate) unsafe fn query_table(
    context: *mut Context,
    to: *mut GidEntry,
    max: usize,
    flags: u32,
    size: usize,
) -> isize {
    if flags != 0 {
        return Answer::failed(libc::EOPNOTSUPP);
    }
    // SAFETY: the caller's promise.
    match table(&**unsafe { context::device(context) }) {
        Ok(all) if all.len() > max => Answer::failed(libc::EINVAL),
        Ok(all) => {
            for (index, found) in all.iter().enumerate() {
                // SAFETY: within the program's array, which has room for `max` of that size.
                unsafe { write_entry(to.cast::<u8>().add(index * size), found, size) };
            }
            all.len() as isize
        }
        Err(error) => failure(&error),
    }
}
