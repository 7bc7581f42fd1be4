//! Address handles.

use super::context::{GIDS, PORT, gid_of};
use super::core::Core;
use super::pd::Pd;
use super::tcp;
use crate::abi::AhAttr;
use crate::device::DeviceAh;
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// Marks the memory of a live handle, so that a stale or foreign one is told apart as far as
/// that can be done.
const MAGIC: u64 = 0x736f_6a6f_7572_6e41;

/// What a request reads of its handle.
#[repr(C)]
pub(super) struct Target {
    magic: u64,
    pub(super) attr: AhAttr,
}

/// An address handle.
pub(super) struct Ah {
    target: Box<Target>,
    _pd: Arc<Pd>,
}

impl Ah {
    pub(super) fn create(pd: Arc<Pd>, attr: &AhAttr) -> Result<Ah> {
        check(&pd.context.core, attr)?;
        Ok(Ah { target: Box::new(Target { magic: MAGIC, attr: *attr }), _pd: pd })
    }

    /// The attributes behind a request's handle.
    ///
    /// # Safety
    /// `raw` is null or what [`DeviceAh::as_raw`] returned for a handle that is alive.
    pub(super) unsafe fn target(raw: *mut c_void) -> Option<AhAttr> {
        // SAFETY: the caller's promise.
        let target = unsafe { raw.cast::<Target>().as_ref() }?;
        (target.magic == MAGIC).then_some(target.attr)
    }
}

/// Whether an address vector can be used on this device.
pub(super) fn check(core: &Core, attr: &AhAttr) -> Result<()> {
    if attr.port_num != PORT {
        return Err(Error::invalid(format!(
            "an address over port {}: {} has port {PORT} only",
            attr.port_num, core.name
        )));
    }
    if attr.is_global != 0 && u32::from(attr.grh.sgid_index) >= GIDS {
        return Err(Error::invalid(format!(
            "an address with GID index {}: {} has {GIDS}",
            attr.grh.sgid_index, core.name
        )));
    }
    if attr.dlid == 0 && attr.is_global == 0 {
        return Err(Error::invalid("an address needs a LID, or a GID"));
    }
    if !is_local(core, attr) {
        tcp::destination(core, attr)?;
    }
    Ok(())
}

/// Whether an address is on this machine: by its LID, and where it names a context on a network
/// by that context's address too, since nodes that were given no LID share one.
pub(super) fn is_local(core: &Core, attr: &AhAttr) -> bool {
    let (lid, gid) = (attr.dlid, attr.grh.dgid);
    let same_node = || tcp::node(gid) == tcp::node(gid_of(core));
    if attr.is_global == 0 {
        lid == core.options.lid
    } else if lid == 0 {
        same_node()
    } else {
        lid == core.options.lid && (tcp::endpoint(gid).is_none() || same_node())
    }
}

impl DeviceAh for Ah {
    fn as_raw(&self) -> *mut c_void {
        std::ptr::from_ref::<Target>(&self.target).cast_mut().cast()
    }
}

impl Drop for Ah {
    fn drop(&mut self) {
        self.target.magic = 0;
    }
}
