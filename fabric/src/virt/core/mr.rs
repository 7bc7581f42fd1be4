//! Virtual memory regions: one key for local and remote use, that stands for a registration on each
//! device in use.

use super::image::RegionImage;
use super::local::Region;
use super::lock_mutex;
use super::pd::PdCore;
use super::tables::key_index;
use super::underlay::Underlay;
use crate::abi::access;
use crate::device::{DeviceMr, DevicePd};
use crate::error::{Error, Result};
use crate::names::DeviceId;
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
    pd: Arc<PdCore>,
    addr: usize,
    length: usize,
    flags: u32,
    /// Empty once deregistered.
    on: Mutex<Vec<Registration>>,
}

impl VirtualMr {
    /// # Safety
    /// As [`DevicePd::reg_mr`](crate::device::DevicePd::reg_mr).
    pub(super) unsafe fn register(
        pd: &Arc<PdCore>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Self> {
        // Before a name is dealt.
        Self::check(flags)?;
        let key = pd.context.local().deal_key()?;
        // SAFETY: the caller's promise.
        unsafe { Self::register_as(pd, key, addr, length, flags) }
    }

    fn check(flags: u32) -> Result<()> {
        if flags & access::MW_BIND != 0 {
            return Err(Error::unsupported(
                "a region with the access flag MW_BIND: virtual verbs have no memory windows",
            ));
        }
        Ok(())
    }

    /// The same under a key that was dealt.
    ///
    /// # Safety
    /// As [`DevicePd::reg_mr`](crate::device::DevicePd::reg_mr).
    pub(super) unsafe fn register_as(
        pd: &Arc<PdCore>,
        key: u32,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Self> {
        let local = pd.context.local();
        let start = if flags & access::ZERO_BASED != 0 { 0 } else { addr as u64 };
        let owner = PdCore::identity(pd);
        if flags & access::ZERO_BASED != 0 {
            local.writes.has_zero_based();
        }
        let (base, length_64, rkeys) = (addr as usize, length as u64, Vec::new());
        let region = Region { owner, base, start, length: length_64, flags, rkeys };
        local.add_region(key, region);
        let on = Mutex::default();
        // Dropped, and so deregistered, where a device does not want it.
        let mr = VirtualMr { key, pd: Arc::clone(pd), addr: addr as usize, length, flags, on };
        for (underlay, physical) in pd.all() {
            // SAFETY: the caller's promise.
            if let Err(error) = unsafe { mr.register_on(&underlay, physical) } {
                mr.forget()?;
                return Err(error);
            }
        }
        Ok(mr)
    }

    /// Writes it down. `pd` is where its domain is in the image. `None` where it has been deregistered.
    pub(super) fn image(&self, pd: u32) -> Option<RegionImage> {
        let (addr, length) = (self.addr as u64, self.length as u64);
        let region = RegionImage { key: self.key, pd, addr, length, access: self.flags };
        (!lock_mutex(&self.on).is_empty()).then_some(region)
    }

    /// The domain that it is in.
    pub(super) fn pd(&self) -> &Arc<PdCore> {
        &self.pd
    }

    /// Its access flags.
    pub(super) fn flags(&self) -> u32 {
        self.flags
    }

    /// Its name, and its bytes: for those who say what they cannot register.
    pub(super) fn describe(&self) -> (u32, usize) {
        (self.key, self.length)
    }

    /// Is registered on another device, too, where it is registered at all.
    pub(super) fn extend(&self, underlay: &Arc<Underlay>) -> Result<()> {
        let Some(physical) = self.pd.physical_on(underlay.id) else { return Ok(()) };
        // SAFETY: it is registered with these very values, by somebody who keeps the memory until
        // it is deregistered; that has not begun, since whoever moves keeps it out.
        unsafe { self.register_on(underlay, physical) }
    }

    /// # Safety
    /// As [`DevicePd::reg_mr`](crate::device::DevicePd::reg_mr), for the region's own memory.
    unsafe fn register_on(&self, underlay: &Arc<Underlay>, pd: Arc<dyn DevicePd>) -> Result<()> {
        // SAFETY: the caller's promise.
        let mr = unsafe { pd.reg_mr(self.addr as *mut c_void, self.length, self.flags) }?;
        let local = self.pd.context.local();
        local.region_is_on(self.key, underlay.id, mr.rkey());
        underlay.keys.set(self.key, mr.lkey());
        // Queue pairs that are connected to this very process find it without asking.
        let own = local.peer(local.grant().process);
        let known = own.keys(underlay.id).set(key_index(self.key), self.key, mr.rkey());
        debug_assert!(known, "keys are dealt within the table");
        lock_mutex(&self.on).push(Registration { underlay: Arc::clone(underlay), mr });
        Ok(())
    }

    /// Is not registered on that device any more.
    ///
    /// # Errors
    /// Where the device does not let go of it.
    pub(super) fn retract(&self, device: DeviceId) -> Result<()> {
        let mut on = lock_mutex(&self.on);
        let Some(at) = on.iter().position(|it| it.underlay.id == device) else { return Ok(()) };
        self.hide(&on[at]);
        on[at].mr.dereg()?;
        on.remove(at);
        Ok(())
    }

    /// Nobody finds a registration any more.
    fn hide(&self, Registration { underlay, mr }: &Registration) {
        let local = self.pd.context.local();
        local.region_is_gone_from(self.key, underlay.id);
        underlay.keys.unset(self.key);
        let own = local.peer(local.grant().process);
        own.keys(underlay.id).unset(key_index(self.key), self.key, mr.rkey());
    }

    fn forget(&self) -> Result<()> {
        let local = self.pd.context.local();
        let region = local.regions().get(&self.key).cloned();
        if let Some(region) = &region {
            local.writes.region_ends(self.key, region);
        }
        // First nobody finds it any more, by any name; then the memory is let go.
        local.remove_region(self.key);
        let mut on = lock_mutex(&self.on);
        on.iter().for_each(|it| self.hide(it));
        while let Some(last) = on.last() {
            last.mr.dereg()?;
            on.pop();
        }
        local.writes.region_has_ended(self.key);
        local.return_key(self.key);
        Ok(())
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
        // Looked at first, since one that was never whole is dropped by whoever makes it.
        if lock_mutex(&self.on).is_empty() {
            return Ok(());
        }
        let _settled = self.pd.context.settled();
        if lock_mutex(&self.on).is_empty() {
            return Ok(());
        }
        self.forget()
    }
}

impl Drop for VirtualMr {
    fn drop(&mut self) {
        if let Err(error) = self.dereg() {
            tracing::warn!("key {:#x} stays in use: {error}", self.key);
        }
    }
}
