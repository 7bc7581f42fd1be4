//! Completion queues.

use super::channel::{Channel, ChannelHandle, CqEvent};
use super::context::Context;
use super::core::{Core, Deferred};
use super::limits::MAX_CQE;
use super::lock::Lock;
use super::region::{ARMED, ARMED_SOLICITED, CqEntry, DISARMED};
use crate::abi::{Wc, event_type, wc_status};
use crate::device::{CqInit, DeviceCq, EventElement, Polled};
use crate::{Error, Result};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// A CQ: completions that wait to be polled.
pub(super) struct Cq {
    core: Arc<Core>,
    /// Where it stands in the public region.
    pub(super) index: u32,
    user: u64,
    channel: Option<Arc<Channel>>,
    queue: Lock<VecDeque<Wc>>,
    /// How many there are: looked at without the lock.
    len: AtomicU32,
    capacity: AtomicU32,
    overrun: AtomicBool,
}

impl Cq {
    #[inline]
    fn entry(&self) -> &CqEntry {
        self.core.region.cq(self.index as usize).expect("a dealt index")
    }

    /// Adds a completion.
    #[inline]
    pub(super) fn push(self: &Arc<Self>, wc: Wc, solicited: bool) {
        self.push_behind(0, wc, solicited);
    }

    /// As [`Cq::push`], behind as many as have gone to whoever polls.
    fn push_behind(self: &Arc<Self>, taken: u32, wc: Wc, solicited: bool) {
        {
            let mut queue = self.queue.lock();
            let len = queue.len() as u32;
            if len + taken >= self.capacity.load(Ordering::Relaxed) {
                drop(queue);
                self.overflow();
                return;
            }
            queue.push_back(wc);
            self.len.store(len + 1, Ordering::Release);
        }
        if self.channel.is_some() {
            fence(Ordering::SeqCst);
            let armed = self.entry().armed.load(Ordering::Relaxed);
            if armed == ARMED
                || (armed == ARMED_SOLICITED && (solicited || wc.status != wc_status::SUCCESS))
            {
                self.fire();
            }
        }
    }

    #[cold]
    fn fire(&self) {
        if self.entry().armed.swap(DISARMED, Ordering::SeqCst) != DISARMED
            && let Some(channel) = &self.channel
        {
            channel.events.push(CqEvent { index: self.index, user: self.user });
        }
    }

    #[cold]
    fn overflow(self: &Arc<Self>) {
        if !self.overrun.swap(true, Ordering::SeqCst) {
            self.core.raise(event_type::CQ_ERR, EventElement::Cq(self.user));
            self.core.defer(Deferred::Fail(Arc::clone(self)));
        }
    }

    #[inline]
    fn take(&self, wcs: &mut [Wc]) -> usize {
        if self.len.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let mut queue = self.queue.lock();
        let mut taken = 0;
        for wc in wcs {
            let Some(next) = queue.pop_front() else { break };
            *wc = next;
            taken += 1;
        }
        self.len.store(queue.len() as u32, Ordering::Release);
        taken
    }

    /// The CQ behind a handle of this context.
    pub(super) fn of(core: &Arc<Core>, cq: &Arc<dyn DeviceCq>) -> Result<Arc<Cq>> {
        let any: Arc<dyn Any + Send + Sync> = Arc::clone(cq) as _;
        any.downcast::<CqHandle>()
            .ok()
            .map(|handle| Arc::clone(&handle.cq))
            .filter(|cq| Arc::ptr_eq(&cq.core, core))
            .ok_or_else(|| Error::invalid("the completion queue belongs to another context"))
    }
}

/// Where completions go while a thread polls: straight to it, while nothing stands in its queue
/// before them; else into their queues.
pub(super) struct Sink<'a> {
    cq: Option<&'a Arc<Cq>>,
    wcs: &'a mut [Wc],
    taken: usize,
}

impl<'a> Sink<'a> {
    /// Nobody polls.
    pub(super) fn none() -> Sink<'a> {
        Sink { cq: None, wcs: &mut [], taken: 0 }
    }

    fn of(cq: &'a Arc<Cq>, wcs: &'a mut [Wc]) -> Sink<'a> {
        // A channel wants to hear of everything that is added to the queue.
        let cq = Some(cq).filter(|cq| cq.channel.is_none());
        Sink { cq, wcs, taken: 0 }
    }

    /// Adds a completion to `cq`. The caller is the only one who adds completions of its kind and
    /// queue pair now: it holds what they come from.
    #[inline]
    pub(super) fn push(&mut self, cq: &Arc<Cq>, solicited: bool, wc: impl Fn() -> Wc) {
        let polled = self.cq.is_some_and(|polled| Arc::ptr_eq(polled, cq));
        if !polled {
            return cq.push(wc(), solicited);
        }
        let capacity = cq.capacity.load(Ordering::Relaxed) as usize;
        match self.wcs.get_mut(self.taken) {
            Some(place) if self.taken < capacity && cq.len.load(Ordering::Acquire) == 0 => {
                // Made where it goes: a copy would wait for the stores that made it.
                *place = wc();
                self.taken += 1;
            }
            _ => cq.push_behind(self.taken as u32, wc(), solicited),
        }
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        self.entry().armed.store(DISARMED, Ordering::Relaxed);
        self.core.numbers.lock().free_cq(self.index);
    }
}

/// What the program holds.
pub(super) struct CqHandle {
    cq: Arc<Cq>,
    _context: Arc<Context>,
}

impl CqHandle {
    pub(super) fn create(context: Arc<Context>, init: &CqInit) -> Result<CqHandle> {
        let core = &context.core;
        if init.cqe == 0 || init.cqe > MAX_CQE {
            return Err(Error::invalid(format!(
                "a completion queue of {} entries: {} holds 1 to {MAX_CQE}",
                init.cqe, core.name
            )));
        }
        if init.comp_vector != 0 {
            return Err(Error::invalid(format!(
                "completion vector {}: {} has vector 0 only",
                init.comp_vector, core.name
            )));
        }
        let channel = match &init.channel {
            None => None,
            Some(channel) => {
                let any: Arc<dyn Any + Send + Sync> = Arc::clone(channel) as _;
                let handle = any.downcast::<ChannelHandle>().ok();
                let channel = handle.map(|handle| Arc::clone(&handle.channel));
                let ours = channel.filter(|channel| Arc::ptr_eq(&channel.core, core));
                Some(ours.ok_or_else(|| {
                    Error::invalid("the completion channel belongs to another context")
                })?)
            }
        };
        let index = core.numbers.lock().cq()?;
        let cq = Cq {
            core: Arc::clone(core),
            index,
            user: init.user,
            channel,
            // Most queues stay far below their size.
            queue: Lock::new(VecDeque::with_capacity(init.cqe.min(4096) as usize)),
            len: AtomicU32::new(0),
            capacity: AtomicU32::new(init.cqe),
            overrun: AtomicBool::new(false),
        };
        Ok(CqHandle { cq: Arc::new(cq), _context: context })
    }
}

impl DeviceCq for CqHandle {
    fn cqe(&self) -> u32 {
        self.cq.capacity.load(Ordering::Relaxed)
    }

    #[inline]
    fn poll(&self, wcs: &mut [Wc]) -> Polled {
        let taken = self.cq.take(wcs);
        if taken > 0 || wcs.is_empty() {
            return Ok(taken as u32);
        }
        let mut sink = Sink::of(&self.cq, wcs);
        self.cq.core.progress_for_poll(&mut sink);
        let taken = sink.taken;
        let taken = taken + self.cq.take(&mut wcs[taken..]);
        if taken == 0 && self.cq.overrun.load(Ordering::Relaxed) {
            return Err(libc::EOVERFLOW);
        }
        Ok(taken as u32)
    }

    fn req_notify(&self, solicited_only: bool) -> Result<()> {
        if self.cq.channel.is_none() {
            return Err(Error::invalid("the completion queue has no channel for its events"));
        }
        let armed = &self.cq.entry().armed;
        if solicited_only {
            // Asking for less does not take back what was asked for before.
            let _ = armed.compare_exchange(
                DISARMED,
                ARMED_SOLICITED,
                Ordering::SeqCst,
                Ordering::SeqCst,
            );
        } else {
            armed.swap(ARMED, Ordering::SeqCst);
        }
        // From here on initiators see that the CQ is armed and ring. What they put into the rings
        // before is added to the queue now, with its event.
        fence(Ordering::SeqCst);
        self.cq.core.progress();
        if self.cq.core.unanswered.load(Ordering::Relaxed) != 0 {
            self.cq.core.urge_all();
        }
        Ok(())
    }

    fn resize(&self, cqe: u32) -> Result<()> {
        let queue = self.cq.queue.lock();
        if cqe == 0 || cqe > MAX_CQE || (cqe as usize) < queue.len() {
            return Err(Error::invalid(format!(
                "resizing a completion queue to {cqe} entries: it holds {} now, and {} at most",
                queue.len(),
                MAX_CQE
            )));
        }
        self.cq.capacity.store(cqe, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for CqHandle {
    fn drop(&mut self) {
        if let Some(channel) = &self.cq.channel {
            channel.events.forget(|event| event.index == self.cq.index);
        }
    }
}
