//! Queue pairs.

use super::cq::HcaCq;
use super::limits::{self, Ask};
use super::pd::HcaPd;
use super::raw::{self, Handle};
use super::srq::HcaSrq;
use crate::abi::{self, qp_mask, qp_state};
use crate::device::{DeviceCq, DeviceQp, DeviceSrq, PostError, PostRecv, PostSend, QpInit};
use crate::{Error, Result};
use std::any::Any;
use std::ffi::c_int;
use std::mem::zeroed;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) struct HcaQp {
    raw: Handle<abi::Qp>,
    /// The state that was last set. The device moves on by itself to SQE or ERR only, from where
    /// both queues accept requests.
    state: AtomicU32,
    qp_num: u32,
    qp_type: u32,
    cap: abi::QpCap,
    pd: Arc<HcaPd>,
    _cqs: [Arc<HcaCq>; 2],
    _srq: Option<Arc<HcaSrq>>,
}

impl HcaQp {
    pub(super) fn create(pd: Arc<HcaPd>, init: &QpInit) -> Result<Self> {
        let cqs = [own_cq(&pd, "send", &init.send_cq)?, own_cq(&pd, "receive", &init.recv_cq)?];
        let srq = init.srq.as_ref().map(|srq| own_srq(&pd, srq)).transpose()?;
        let mut attr = abi::QpInitAttr {
            qp_context: ptr::null_mut(),
            send_cq: cqs[0].raw.ptr(),
            recv_cq: cqs[1].raw.ptr(),
            srq: srq.as_ref().map_or(ptr::null_mut(), |srq| srq.raw.ptr()),
            cap: init.cap,
            qp_type: init.qp_type,
            sq_sig_all: c_int::from(init.sq_sig_all),
        };
        // SAFETY: the domain, the CQs and the SRQ exist, and are of one context.
        let created = unsafe { (pd.context.verbs.ibv_create_qp)(pd.raw.ptr(), &raw mut attr) };
        let raw = raw::created(created).map_err(|errno| refused(&pd, errno, init))?;
        // SAFETY: the QP was just created, and nobody writes this field.
        let qp_num = unsafe { (*raw.ptr()).qp_num };
        Ok(HcaQp {
            raw,
            state: AtomicU32::new(qp_state::RESET),
            qp_num,
            qp_type: init.qp_type,
            cap: attr.cap,
            pd,
            _cqs: cqs,
            _srq: srq,
        })
    }

    fn query_raw(&self, mask: u32) -> std::result::Result<abi::QpAttr, i32> {
        let mut attr = abi::QpAttr::default();
        // SAFETY: integers and null pointers may be zero.
        let mut init: abi::QpInitAttr = unsafe { zeroed() };
        // SAFETY: the QP exists, and both structs are of the types that the man page asks.
        let answer = unsafe {
            (self.pd.context.verbs.ibv_query_qp)(
                self.raw.ptr(),
                &raw mut attr,
                mask as c_int,
                &raw mut init,
            )
        };
        raw::status(answer).map(|()| attr)
    }

    fn cannot_modify(&self, errno: i32, attr: &abi::QpAttr, mask: u32) -> Error {
        let from = match self.query_raw(qp_mask::STATE) {
            Ok(now) => qp_state::name(now.qp_state),
            Err(_) => "an unknown state",
        };
        let to = match mask & qp_mask::STATE {
            0 => String::new(),
            _ => format!(" to {}", qp_state::name(attr.qp_state)),
        };
        let names: Vec<&str> = (0..u32::BITS)
            .map(|bit| 1 << bit)
            .filter(|bit| mask & bit != 0)
            .map(qp_mask::name)
            .collect();
        let names = names.join("|");
        let (number, device) = (self.qp_num, &self.pd.context.name);
        raw::error(
            errno,
            format_args!("modifying QP {number} of {device} from {from}{to} ({names})"),
        )
    }
}

/// What posting a list answered. A provider that names no culprit took the list whole and was
/// refused by the kernel when it rang the doorbell.
pub(super) fn posted<W>(
    answer: c_int,
    bad_wr: *mut W,
    first: *mut W,
) -> std::result::Result<(), PostError<W>> {
    if answer == 0 {
        return Ok(());
    }
    let errno = raw::status(answer).err().unwrap_or(libc::EIO);
    Err(PostError::new(errno, if bad_wr.is_null() { first } else { bad_wr }))
}

fn own_cq(pd: &HcaPd, which: &str, cq: &Arc<dyn DeviceCq>) -> Result<Arc<HcaCq>> {
    let cq: Arc<dyn Any + Send + Sync> = Arc::clone(cq) as _;
    cq.downcast::<HcaCq>()
        .ok()
        .filter(|cq| Arc::ptr_eq(&cq.context, &pd.context))
        .ok_or_else(|| foreign(pd, &format!("{which} CQ")))
}

fn own_srq(pd: &HcaPd, srq: &Arc<dyn DeviceSrq>) -> Result<Arc<HcaSrq>> {
    let srq: Arc<dyn Any + Send + Sync> = Arc::clone(srq) as _;
    srq.downcast::<HcaSrq>()
        .ok()
        .filter(|srq| Arc::ptr_eq(&srq.pd.context, &pd.context))
        .ok_or_else(|| foreign(pd, "SRQ"))
}

fn foreign(pd: &HcaPd, what: &str) -> Error {
    let name = &pd.context.name;
    Error::invalid(format!("creating a QP on {name}: the {what} is of another context"))
}

fn refused(pd: &HcaPd, errno: i32, init: &QpInit) -> Error {
    let wr = |what, asked: u32| Ask {
        what,
        asked: u64::from(asked),
        limit: "max_qp_wr",
        allowed: |attr| attr.max_qp_wr,
    };
    let sge = |what, asked: u32| Ask {
        what,
        asked: u64::from(asked),
        limit: "max_sge",
        allowed: |attr| attr.max_sge,
    };
    let cap = &init.cap;
    let asks = [
        wr("max_send_wr", cap.max_send_wr),
        wr("max_recv_wr", cap.max_recv_wr),
        sge("max_send_sge", cap.max_send_sge),
        sge("max_recv_sge", cap.max_recv_sge),
    ];
    let inline = match cap.max_inline_data {
        0 => String::new(),
        bytes => format!(" with max_inline_data {bytes} (whose limit devices do not tell)"),
    };
    let doing = format!("creating a QP of type {}{inline}", abi::qp_type::name(init.qp_type));
    limits::refused(&pd.context, errno, doing, &asks, ("max_qp", |attr| attr.max_qp))
}

impl Drop for HcaQp {
    fn drop(&mut self) {
        // SAFETY: the QP exists, and nobody else has it any more.
        let answer = unsafe { (self.pd.context.verbs.ibv_destroy_qp)(self.raw.ptr()) };
        let (number, device) = (self.qp_num, &self.pd.context.name);
        raw::log_undestroyed(answer, format_args!("QP {number} of {device}"));
    }
}

impl DeviceQp for HcaQp {
    fn qp_num(&self) -> u32 {
        self.qp_num
    }

    fn qp_type(&self) -> u32 {
        self.qp_type
    }

    fn init_cap(&self) -> abi::QpCap {
        self.cap
    }

    unsafe fn post_send(&self, wr: *mut abi::SendWr) -> PostSend {
        if self.state.load(Ordering::Relaxed) < qp_state::RTS {
            return Err(PostError::new(libc::EINVAL, wr));
        }
        let qp = self.raw.ptr();
        // SAFETY: the QP and its context exist.
        let Some(post) = (unsafe { (*(*qp).context).ops.post_send }) else {
            return Err(PostError::new(libc::ENOSYS, wr));
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the QP exists; the caller answers for the list.
        posted(unsafe { post(qp, wr, &raw mut bad) }, bad, wr)
    }

    unsafe fn post_recv(&self, wr: *mut abi::RecvWr) -> PostRecv {
        if self.state.load(Ordering::Relaxed) == qp_state::RESET {
            return Err(PostError::new(libc::EINVAL, wr));
        }
        let qp = self.raw.ptr();
        // SAFETY: the QP and its context exist.
        let Some(post) = (unsafe { (*(*qp).context).ops.post_recv }) else {
            return Err(PostError::new(libc::ENOSYS, wr));
        };
        let mut bad = ptr::null_mut();
        // SAFETY: the QP exists; the caller answers for the list.
        posted(unsafe { post(qp, wr, &raw mut bad) }, bad, wr)
    }

    fn modify(&self, attr: &abi::QpAttr, mask: u32) -> Result<()> {
        let mut copy = *attr;
        // SAFETY: the QP exists, and the attributes are valid.
        let answer = unsafe {
            (self.pd.context.verbs.ibv_modify_qp)(self.raw.ptr(), &raw mut copy, mask as c_int)
        };
        raw::status(answer).map_err(|errno| self.cannot_modify(errno, attr, mask))?;
        if mask & qp_mask::STATE != 0 {
            self.state.store(attr.qp_state, Ordering::Relaxed);
        }
        Ok(())
    }

    fn query(&self, mask: u32) -> Result<abi::QpAttr> {
        self.query_raw(mask).map_err(|errno| {
            let (number, device) = (self.qp_num, &self.pd.context.name);
            raw::error(errno, format_args!("querying QP {number} of {device}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a failed post always names a request to go on from.
    #[test]
    fn a_failed_post_names_a_request() {
        let (mut first, mut second) = (1, 2);
        let (first, second) = (&raw mut first, &raw mut second);
        assert_eq!(posted(0, ptr::null_mut(), first), Ok(()));
        let named = posted(libc::ENOMEM, second, first);
        assert_eq!(named, Err(PostError::new(libc::ENOMEM, second)));
        let unnamed = posted(-libc::EINVAL, ptr::null_mut(), first);
        assert_eq!(unnamed, Err(PostError::new(libc::EINVAL, first)));
    }
}
