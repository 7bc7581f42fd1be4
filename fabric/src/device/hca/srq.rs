//! Shared receive queues.

use super::limits::{self, Ask};
use super::pd::HcaPd;
use super::qp::posted;
use super::raw::{self, Handle};
use crate::Result;
use crate::abi;
use crate::device::{DeviceSrq, PostError, PostRecv, SrqInit};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

pub(super) struct HcaSrq {
    pub(super) pd: Arc<HcaPd>,
    pub(super) raw: Handle<abi::Srq>,
}

impl HcaSrq {
    pub(super) fn create(pd: Arc<HcaPd>, init: SrqInit) -> Result<Self> {
        let mut attr = abi::SrqInitAttr { srq_context: init.user as *mut c_void, attr: init.attr };
        // SAFETY: the domain exists, and the attributes are valid; their pointer is returned
        // with events and not followed.
        let created = unsafe { (pd.context.verbs.ibv_create_srq)(pd.raw.ptr(), &raw mut attr) };
        let raw = raw::created(created).map_err(|errno| {
            let most = ("max_srq", (|attr| attr.max_srq) as fn(&abi::DeviceAttr) -> i32);
            limits::refused(&pd.context, errno, "creating an SRQ", &asks(&init.attr), most)
        })?;
        Ok(HcaSrq { pd, raw })
    }

    fn refused(&self, errno: i32, doing: &str) -> crate::Error {
        raw::error(errno, format_args!("{doing} an SRQ of {}", self.pd.context.name))
    }
}

fn asks(attr: &abi::SrqAttr) -> [Ask; 2] {
    [
        Ask {
            what: "max_wr",
            asked: u64::from(attr.max_wr),
            limit: "max_srq_wr",
            allowed: |attr| attr.max_srq_wr,
        },
        Ask {
            what: "max_sge",
            asked: u64::from(attr.max_sge),
            limit: "max_srq_sge",
            allowed: |attr| attr.max_srq_sge,
        },
    ]
}

impl Drop for HcaSrq {
    fn drop(&mut self) {
        // SAFETY: the SRQ exists, and all QPs on it held it and are gone.
        let answer = unsafe { (self.pd.context.verbs.ibv_destroy_srq)(self.raw.ptr()) };
        raw::log_undestroyed(answer, format_args!("an SRQ of {}", self.pd.context.name));
    }
}

impl DeviceSrq for HcaSrq {
    unsafe fn post_recv(&self, wr: *mut abi::RecvWr) -> PostRecv {
        let srq = self.raw.ptr();
        // SAFETY: the SRQ and its context exist.
        let Some(post) = (unsafe { (*(*srq).context).ops.post_srq_recv }) else {
            return Err(PostError::new(libc::ENOSYS, wr));
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the SRQ exists; the caller answers for the list.
        posted(unsafe { post(srq, wr, &raw mut bad) }, bad, wr)
    }

    fn modify(&self, attr: &abi::SrqAttr, mask: u32) -> Result<()> {
        let mut copy = *attr;
        // SAFETY: the SRQ exists, and the attributes are valid.
        let answer = unsafe {
            (self.pd.context.verbs.ibv_modify_srq)(self.raw.ptr(), &raw mut copy, mask as c_int)
        };
        raw::status(answer).map_err(|errno| {
            self.refused(errno, "modifying")
                .context(format_args!("max_wr {}, srq_limit {}", attr.max_wr, attr.srq_limit))
        })
    }

    fn query(&self) -> Result<abi::SrqAttr> {
        let mut attr = abi::SrqAttr::default();
        // SAFETY: the SRQ exists, and the attributes are of the type that the man page asks.
        let answer =
            unsafe { (self.pd.context.verbs.ibv_query_srq)(self.raw.ptr(), &raw mut attr) };
        raw::status(answer).map_err(|errno| self.refused(errno, "querying"))?;
        Ok(attr)
    }
}
