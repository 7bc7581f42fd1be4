//! Address handles.

use super::context::{GIDS, PORT, gid_of};
use super::core::Core;
use super::pd::Pd;
use crate::abi::{AhAttr, Gid};
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
    Ok(())
}

/// Whether an address is on this machine.
pub(super) fn is_local(core: &Core, attr: &AhAttr) -> bool {
    let own: Gid = gid_of(core);
    attr.dlid == core.options.lid || (attr.is_global != 0 && attr.grh.dgid == own)
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
