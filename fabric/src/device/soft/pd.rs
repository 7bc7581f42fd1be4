//! Protection domains, and what is created in them.

use super::ah::Ah;
use super::context::Context;
use super::mr::Mr;
use super::qp::QpHandle;
use super::srq::SrqHandle;
use crate::Result;
use crate::abi::AhAttr;
use crate::device::{DeviceAh, DeviceMr, DevicePd, DeviceQp, DeviceSrq, QpInit, SrqInit};
use std::ffi::c_void;
use std::sync::Arc;

/// A protection domain: a number that QPs and regions must share.
pub(super) struct Pd {
    pub(super) id: u32,
    pub(super) context: Arc<Context>,
}

impl DevicePd for Pd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        Ok(Arc::new(Mr::register(self, addr as u64, length as u64, flags)?))
    }

    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        Ok(Arc::new(QpHandle::create(self, init)?))
    }

    fn create_srq(self: Arc<Self>, init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        Ok(Arc::new(SrqHandle::create(self, init)?))
    }

    fn create_ah(self: Arc<Self>, attr: &AhAttr) -> Result<Arc<dyn DeviceAh>> {
        Ok(Arc::new(Ah::create(self, attr)?))
    }
}
