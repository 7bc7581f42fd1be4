//! Asynchronous events.

use super::context::HcaContext;
use super::raw;
use crate::Result;
use crate::abi::{self, event_type as ty};
use crate::device::{AsyncEvent, DeviceContext, EventElement};
use std::mem::zeroed;

/// The next asynchronous event, acknowledged, or `None`.
pub(super) fn take(context: &HcaContext) -> Result<Option<AsyncEvent>> {
    // SAFETY: a null pointer and 0 are values of this struct.
    let mut event: abi::AsyncEvent = unsafe { zeroed() };
    loop {
        // SAFETY: the context is open, and the event is of the type that the man page asks.
        let answer =
            unsafe { (context.verbs.ibv_get_async_event)(context.raw.ptr(), &raw mut event) };
        match raw::status(answer) {
            Ok(()) => break,
            Err(libc::EAGAIN) => return Ok(None),
            Err(libc::EINTR) => {}
            Err(errno) => {
                let doing = format_args!("taking an asynchronous event of {}", context.name());
                return Err(raw::error(errno, doing));
            }
        }
    }
    // SAFETY: the event was just returned and is not yet acknowledged, and until then the
    // destruction of its object waits: the pointer that its type selects is valid.
    let element = unsafe { element(&event) };
    // SAFETY: as above, and it is acknowledged once.
    unsafe { (context.verbs.ibv_ack_async_event)(&raw mut event) };
    Ok(Some(AsyncEvent { event_type: event.event_type, element }))
}

/// # Safety
/// The pointer in `event`, where its type has one, is valid.
unsafe fn element(event: &abi::AsyncEvent) -> EventElement {
    match event.event_type {
        ty::CQ_ERR => {
            // SAFETY: this type's element is a CQ.
            EventElement::Cq(unsafe { (*event.element.cq).cq_context } as u64)
        }
        ty::QP_FATAL
        | ty::QP_REQ_ERR
        | ty::QP_ACCESS_ERR
        | ty::COMM_EST
        | ty::SQ_DRAINED
        | ty::PATH_MIG
        | ty::PATH_MIG_ERR
        | ty::QP_LAST_WQE_REACHED => {
            // SAFETY: this type's element is a QP.
            EventElement::Qp(unsafe { (*event.element.qp).qp_num })
        }
        ty::SRQ_ERR | ty::SRQ_LIMIT_REACHED => {
            // SAFETY: this type's element is an SRQ.
            EventElement::Srq(unsafe { (*event.element.srq).srq_context } as u64)
        }
        ty::PORT_ACTIVE
        | ty::PORT_ERR
        | ty::LID_CHANGE
        | ty::PKEY_CHANGE
        | ty::SM_CHANGE
        | ty::CLIENT_REREGISTER
        | ty::GID_CHANGE => {
            // SAFETY: this type's element is a number.
            let port = unsafe { event.element.port_num };
            u8::try_from(port).map_or(EventElement::Device, EventElement::Port)
        }
        // The device as a whole; a work queue, which nothing here creates; or a type newer than
        // this file, whose element is not known.
        _ => EventElement::Device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(event_type: u32, element: abi::AsyncElement) -> EventElement {
        // SAFETY: each case below has the element that its type selects.
        unsafe { super::element(&abi::AsyncEvent { element, event_type }) }
    }

    /// Promise: an event names its object as the program knows it, and none is misread.
    #[test]
    fn events_name_their_objects() {
        // SAFETY: integers, null pointers and an unused mutex's bytes may all be zero.
        let (mut cq, mut qp, mut srq): (abi::Cq, abi::Qp, abi::Srq) = unsafe { zeroed() };
        cq.cq_context = 0xfeed_0000_0000_0001 as *mut _;
        srq.srq_context = 7 as *mut _;
        qp.qp_num = 17;
        let cq_element = abi::AsyncElement { cq: &raw mut cq };
        let qp_element = abi::AsyncElement { qp: &raw mut qp };
        let srq_element = abi::AsyncElement { srq: &raw mut srq };
        assert_eq!(of(ty::CQ_ERR, cq_element), EventElement::Cq(0xfeed_0000_0000_0001));
        assert_eq!(of(ty::QP_ACCESS_ERR, qp_element), EventElement::Qp(17));
        assert_eq!(of(ty::QP_LAST_WQE_REACHED, qp_element), EventElement::Qp(17));
        assert_eq!(of(ty::SRQ_LIMIT_REACHED, srq_element), EventElement::Srq(7));
        let port = abi::AsyncElement { port_num: 2 };
        assert_eq!(of(ty::PORT_ACTIVE, port), EventElement::Port(2));
        assert_eq!(of(ty::DEVICE_FATAL, port), EventElement::Device);
        assert_eq!(of(9999, port), EventElement::Device);
    }
}
