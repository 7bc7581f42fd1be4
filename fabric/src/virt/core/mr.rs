//! Virtual memory regions: one key for local and remote use, that stands for a registration on each
//! device in use.

use super::local::{Local, Region};
use super::lock_mutex;
use super::tables::key_index;
use super::underlay::Underlay;
use crate::abi::access;
use crate::device::{DeviceMr, DevicePd};
use crate::error::{Error, Result};
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// A registration on one device.
struct Registration {
    underlay: Arc<Underlay>,
    mr: Arc<dyn DeviceMr>,
}

/// A memory region.
pub(super) struct VirtualMr {
    key: u32,
    local: Arc<Local>,
    /// Empty once deregistered.
    on: Mutex<Vec<Registration>>,
}

impl VirtualMr {
    /// # Safety
    /// As [`DevicePd::reg_mr`].
    pub(super) unsafe fn register(
        local: &Arc<Local>,
        underlay: Arc<Underlay>,
        pd: Arc<dyn DevicePd>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Self> {
        if flags & access::MW_BIND != 0 {
            return Err(Error::unsupported(
                "a region with the access flag MW_BIND: virtual verbs have no memory windows",
            ));
        }
        let key = local.deal_key()?;
        // SAFETY: the caller's promise.
        let mr = match unsafe { pd.reg_mr(addr, length, flags) } {
            Ok(mr) => mr,
            Err(error) => {
                local.return_key(key);
                return Err(error);
            }
        };
        let start = if flags & access::ZERO_BASED != 0 { 0 } else { addr as u64 };
        local.add_region(
            key,
            Region {
                base: addr as usize,
                start,
                length: length as u64,
                rkeys: vec![(underlay.id, mr.rkey())],
            },
        );
        underlay.keys.set(key, mr.lkey());
        // Queue pairs that are connected to this very process find it without asking.
        let own = local.peer(local.grant().process);
        let known = own.keys(underlay.id).set(key_index(key), key, mr.rkey());
        debug_assert!(known, "keys are dealt within the table");
        let on = Mutex::new(vec![Registration { underlay, mr }]);
        Ok(VirtualMr { key, local: Arc::clone(local), on })
    }
}

impl DeviceMr for VirtualMr {
    fn lkey(&self) -> u32 {
        self.key
    }

    fn rkey(&self) -> u32 {
        self.key
    }

    fn dereg(&self) -> Result<()> {
        let mut on = lock_mutex(&self.on);
        if on.is_empty() {
            return Ok(());
        }
        // First nobody finds it any more, by any name; then the memory is let go.
        self.local.remove_region(self.key);
        let own = self.local.peer(self.local.grant().process);
        for Registration { underlay, mr } in on.iter() {
            underlay.keys.unset(self.key);
            own.keys(underlay.id).unset(key_index(self.key), self.key, mr.rkey());
        }
        while let Some(last) = on.last() {
            last.mr.dereg()?;
            on.pop();
        }
        self.local.return_key(self.key);
        Ok(())
    }
}

impl Drop for VirtualMr {
    fn drop(&mut self) {
        if let Err(error) = self.dereg() {
            tracing::warn!("key {:#x} stays in use: {error}", self.key);
        }
    }
}
