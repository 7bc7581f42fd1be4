//! Memory regions.

use super::memlock;
use super::pd::HcaPd;
use super::raw::{self, Handle};
use crate::abi::{self, access};
use crate::device::DeviceMr;
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) struct HcaMr {
    pd: Arc<HcaPd>,
    lkey: u32,
    rkey: u32,
    /// `None` once it is deregistered.
    raw: Mutex<Option<Handle<abi::Mr>>>,
}

impl HcaMr {
    /// # Safety
    /// As [`crate::device::DevicePd::reg_mr`].
    pub(super) unsafe fn register(
        pd: Arc<HcaPd>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Self> {
        // SAFETY: the domain exists; the caller answers for the memory.
        let registered = unsafe {
            (pd.context.verbs.ibv_reg_mr_iova2)(pd.raw.ptr(), addr, length, addr as u64, flags)
        };
        let raw = raw::created(registered)
            .map_err(|errno| refused(&pd.context.name, errno, addr as usize, length, flags))?;
        // SAFETY: the region was just created, and nobody writes these fields.
        let (lkey, rkey) = unsafe { ((*raw.ptr()).lkey, (*raw.ptr()).rkey) };
        Ok(HcaMr { pd, lkey, rkey, raw: Mutex::new(Some(raw)) })
    }
}

fn refused(device: &str, errno: i32, addr: usize, length: usize, flags: u32) -> Error {
    let doing = format!("registering {length} bytes at {addr:#x} on {device}");
    let writes = access::REMOTE_WRITE | access::REMOTE_ATOMIC;
    let reason = match errno {
        libc::ENOMEM | libc::EAGAIN => memlock::explain(addr, length),
        libc::EINVAL if flags & writes != 0 && flags & access::LOCAL_WRITE == 0 => {
            Some("REMOTE_WRITE and REMOTE_ATOMIC need LOCAL_WRITE".into())
        }
        libc::EINVAL => Some(format!("the device refuses access flags {flags:#x} or this range")),
        libc::EFAULT => Some(
            "part of this range is not mapped, or not writable where the flags allow writing"
                .into(),
        ),
        _ => None,
    };
    let error = raw::error(errno, doing);
    match reason {
        Some(reason) => Error::new(errno, format!("{error}: {reason}")),
        None => error,
    }
}

impl DeviceMr for HcaMr {
    fn lkey(&self) -> u32 {
        self.lkey
    }

    fn rkey(&self) -> u32 {
        self.rkey
    }

    fn dereg(&self) -> Result<()> {
        let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(region) = raw.as_ref() else { return Ok(()) };
        // SAFETY: the region exists: the lock is held, and it has not been deregistered.
        let answer = unsafe { (self.pd.context.verbs.ibv_dereg_mr)(region.ptr()) };
        raw::status(answer).map_err(|errno| {
            let name = &self.pd.context.name;
            raw::error(errno, format_args!("deregistering key {:#x} of {name}", self.rkey))
        })?;
        *raw = None;
        Ok(())
    }
}

impl Drop for HcaMr {
    fn drop(&mut self) {
        if let Err(error) = self.dereg() {
            tracing::error!(%error, "the device may still use memory that its owner gives up");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a refused registration says why, in one sentence that names device and range.
    #[test]
    fn refusals_say_why() {
        let text = refused("rxe0", libc::EINVAL, 0x1000, 64, access::REMOTE_WRITE).to_string();
        assert!(text.contains("64 bytes at 0x1000 on rxe0"), "{text}");
        assert!(text.contains("need LOCAL_WRITE"), "{text}");
        let text = refused("rxe0", libc::EFAULT, 0x1000, 64, access::LOCAL_WRITE).to_string();
        assert!(text.contains("not mapped"), "{text}");
    }
}
