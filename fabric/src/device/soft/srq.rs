//! Shared receive queues: their receives are taken by their owner, as requests are read from the
//! rings.

use super::context::Context;
use super::core::Core;
use super::limits::{MAX_SGE, MAX_WR};
use super::lock::Lock;
use super::pd::Pd;
use super::qp::RecvQueue;
use crate::abi::{RecvWr, SrqAttr, event_type, srq_mask};
use crate::device::{DeviceSrq, EventElement, PostError, PostRecv, SrqInit};
use crate::{Error, Result};
use std::any::Any;
use std::sync::Arc;

/// A shared receive queue.
pub(super) struct Srq {
    core: Arc<Core>,
    pub(super) pd: u32,
    user: u64,
    queue: Lock<Shared>,
}

struct Shared {
    receives: RecvQueue,
    attr: SrqAttr,
}

impl Srq {
    /// Takes the next receive and hands it to `fill` before it can be posted over; reports the
    /// limit once. `None` where nothing is posted.
    pub(super) fn take<T>(
        &self,
        fill: impl FnOnce(&RecvQueue, super::qp::Taken) -> T,
    ) -> Option<T> {
        self.offer(|queue, receive| Some(fill(queue, receive))).flatten()
    }

    /// As [`Srq::take`], but where `fill` has no use for the receive it stays, and is the next
    /// again.
    pub(super) fn offer<T>(
        &self,
        fill: impl FnOnce(&RecvQueue, super::qp::Taken) -> Option<T>,
    ) -> Option<Option<T>> {
        let mut queue = self.queue.lock();
        let receive = queue.receives.front()?;
        let Some(filled) = fill(&queue.receives, receive) else { return Some(None) };
        queue.receives.done += 1;
        let limit = queue.attr.srq_limit;
        if limit > 0 && queue.receives.len() < u64::from(limit) {
            // Once: the program sets a new limit to hear of it again.
            queue.attr.srq_limit = 0;
            drop(queue);
            self.core.raise(event_type::SRQ_LIMIT_REACHED, EventElement::Srq(self.user));
        }
        Some(Some(filled))
    }
}

impl Drop for Srq {
    fn drop(&mut self) {
        self.queue.lock().receives.free(&self.core);
    }
}

/// What the program holds.
pub(super) struct SrqHandle {
    srq: Arc<Srq>,
    _context: Arc<Context>,
    _pd: Arc<Pd>,
}

impl SrqHandle {
    pub(super) fn create(pd: Arc<Pd>, init: SrqInit) -> Result<SrqHandle> {
        let core = &pd.context.core;
        let attr = init.attr;
        if attr.max_wr == 0 || attr.max_wr > MAX_WR || attr.max_sge > MAX_SGE as u32 {
            return Err(Error::invalid(format!(
                "a shared receive queue of {} receives with {} elements: {} has at most {MAX_WR} \
                 with {MAX_SGE}",
                attr.max_wr, attr.max_sge, core.name
            )));
        }
        let receives = RecvQueue::new(core, attr.max_wr, attr.max_sge)?;
        let attr = SrqAttr { srq_limit: 0, ..attr };
        let srq = Srq {
            core: Arc::clone(core),
            pd: pd.id,
            user: init.user,
            queue: Lock::new(Shared { receives, attr }),
        };
        let context = Arc::clone(&pd.context);
        Ok(SrqHandle { srq: Arc::new(srq), _context: context, _pd: pd })
    }

    /// The SRQ behind a handle of this context.
    pub(super) fn of(core: &Arc<Core>, srq: &Arc<dyn DeviceSrq>) -> Result<Arc<Srq>> {
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(srq) as _;
        any.downcast::<SrqHandle>()
            .ok()
            .map(|handle| Arc::clone(&handle.srq))
            .filter(|srq| Arc::ptr_eq(&srq.core, core))
            .ok_or_else(|| Error::invalid("the shared receive queue belongs to another context"))
    }
}

impl DeviceSrq for SrqHandle {
    unsafe fn post_recv(&self, mut wr: *mut RecvWr) -> PostRecv {
        let mut queue = self.srq.queue.lock();
        // SAFETY: the caller's promise: a valid list.
        while let Some(request) = unsafe { wr.as_ref() } {
            // SAFETY: likewise.
            let posted = unsafe { queue.receives.post(&self.srq.core.region, None, request) };
            if let Err(errno) = posted {
                return Err(PostError::new(errno, wr));
            }
            wr = request.next;
        }
        Ok(())
    }

    fn modify(&self, attr: &SrqAttr, mask: u32) -> Result<()> {
        if mask & srq_mask::MAX_WR != 0 {
            return Err(Error::unsupported("a soft device cannot resize a shared receive queue"));
        }
        if mask & srq_mask::LIMIT != 0 {
            let mut queue = self.srq.queue.lock();
            if attr.srq_limit > queue.attr.max_wr {
                return Err(Error::invalid(format!(
                    "a limit of {} on a shared receive queue of {}",
                    attr.srq_limit, queue.attr.max_wr
                )));
            }
            queue.attr.srq_limit = attr.srq_limit;
        }
        Ok(())
    }

    fn query(&self) -> Result<SrqAttr> {
        Ok(self.srq.queue.lock().attr)
    }
}
