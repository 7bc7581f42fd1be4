//! The memory that is sent.

use crate::{Layout, Result};
use sojourn_fabric::device::DeviceMr;
use sojourn_fabric::virt::ProtectionDomain;
use std::ffi::c_void;
use std::sync::Arc;

/// The areas of a layout, registered. No peer can reach them: the registration allows what any does, reads
/// of our own device.
pub(crate) struct Source {
    layout: Layout,
    regions: Vec<Arc<dyn DeviceMr>>,
}

impl Source {
    /// Registers all areas of a layout.
    ///
    /// # Safety
    /// They stay mapped and readable until this value is dropped.
    ///
    /// # Errors
    /// Where one cannot be registered; the message names it.
    pub(crate) unsafe fn register(pd: &ProtectionDomain, layout: Layout) -> Result<Source> {
        let mut regions = Vec::with_capacity(layout.areas().len());
        for area in layout.areas() {
            let (device, at) = (Arc::clone(pd.device()), area.addr as *mut c_void);
            // SAFETY: the caller's promise. Nobody writes there through this region, and it is read as
            // memory that may change at any time.
            let region = unsafe { device.reg_mr(at, area.bytes, 0) };
            let doing = format_args!("registering area {}: {} bytes", area.id, area.bytes);
            regions.push(region.map_err(|error| error.context(doing))?);
        }
        Ok(Source { layout, regions })
    }

    /// What it is the memory of.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The local key of the area at `index`.
    pub(crate) fn lkey(&self, index: usize) -> u32 {
        self.regions[index].lkey()
    }
}
