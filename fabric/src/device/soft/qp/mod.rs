//! Queue pairs.
//!
//! | file | what |
//! | --- | --- |
//! | `state` | which transitions there are |
//! | `request` | a send request, taken from the program's struct |
//! | `send` | the send queue: posting, waiting, completing, flushing |
//! | `exec` | the executor: what an initiator does for one request |
//! | `message` | the same for SENDs and immediates |
//! | `ask` | the same for what the target executes |
//! | `copy` | one copy between processes, fenced |
//! | `recv` | receive queues |
//! | `remote` | the same with a peer on another machine |
//! | `respond` | what a target does with what comes in the rings |
//! | this | creation, `modify`, `query`, errors |

mod ask;
mod copy;
mod exec;
mod message;
mod modify;
mod recv;
mod remote;
mod request;
mod respond;
mod send;
mod state;
mod ud;

pub(super) use recv::{RecvQueue, Taken};
pub(super) use send::Turn;

use super::core::{Core, Deferred};
use super::cq::Cq;
use super::limits::{MAX_INLINE, MAX_SGE, MAX_WR};
use super::lock::Lock;
use super::pd::Pd;
use super::region::{QpEntry, Region, SETTLED};
use super::shm::View;
use super::srq::{Srq, SrqHandle};
use crate::abi::{QpAttr, QpCap, RecvWr, Wc, event_type, qp_state, qp_type, wc_opcode, wc_status};
use crate::device::{DeviceQp, EventElement, PostError, PostRecv, PostSend, QpInit};
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A queue pair.
pub(super) struct Qp {
    pub(super) core: Arc<Core>,
    pub(super) num: u32,
    /// Its entry in the public region.
    pub(super) index: usize,
    entry: View<QpEntry, Region>,
    kind: u32,
    pd: u32,
    cap: QpCap,
    sig_all: bool,
    send_cq: Arc<Cq>,
    recv_cq: Arc<Cq>,
    srq: Option<Arc<Srq>>,
    sq: Lock<send::SendQueue>,
    rq: Lock<RecvQueue>,
    /// The program has destroyed it; who still holds it must let go.
    dead: AtomicBool,
}

impl Qp {
    #[inline]
    fn entry(&self) -> &QpEntry {
        &self.entry
    }

    #[inline]
    fn state(&self) -> u32 {
        QpEntry::state(self.entry().word.load(Ordering::Acquire))
    }

    #[inline]
    fn incarnation(&self) -> u32 {
        QpEntry::incarnation(self.entry().word.load(Ordering::Acquire))
    }

    #[inline]
    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Memory behind `key` is no longer registered: peers are to look at receives that name it.
    pub(super) fn disavow(&self, key: u32) {
        self.rq.lock().disavow(&self.core.region, self.entry(), key);
    }

    /// Whether completions of this QP go to `cq`.
    pub(super) fn uses(&self, cq: &Arc<Cq>) -> bool {
        Arc::ptr_eq(&self.send_cq, cq) || Arc::ptr_eq(&self.recv_cq, cq)
    }

    /// Moves the QP to ERR from whatever runs (not from RESET or INIT), and reports `event`.
    pub(super) fn fail(self: &Arc<Self>, event: u32) {
        let mut sq = self.sq.lock();
        if matches!(self.state(), qp_state::RESET | qp_state::INIT | qp_state::ERR) {
            return;
        }
        self.set_error(&mut sq);
        drop(sq);
        self.core.raise(event, EventElement::Qp(self.num));
    }

    /// Moves the QP to ERR and flushes its send queue; its receives are flushed as soon as
    /// somebody without locks settles it.
    fn set_error(self: &Arc<Self>, sq: &mut send::SendQueue) {
        let word = QpEntry::word_of(self.incarnation(), qp_state::ERR);
        if self.state() != qp_state::ERR {
            self.entry().word.store(word, Ordering::SeqCst);
            self.core.defer(Deferred::Settle(Arc::clone(self)));
        }
        self.flush_sends(sq);
    }

    /// Ends what `set_error` began: fences the peer's copies in flight, delivers what the peer has
    /// completed, and flushes the receives. The caller holds no lock.
    ///
    /// # Errors
    /// `EBUSY` where a copy in flight does not end.
    pub(super) fn settle(self: &Arc<Self>) -> Result<()> {
        let word = self.entry().word.load(Ordering::SeqCst);
        if QpEntry::state(word) != qp_state::ERR || word & SETTLED != 0 {
            return Ok(());
        }
        self.fence()?;
        self.core.drain_all_requests();
        let mut rq = self.rq.lock();
        let entry = self.entry();
        entry.settled.store(rq.done, Ordering::Relaxed);
        let settled = word | SETTLED;
        if entry.word.compare_exchange(word, settled, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Ok(());
        }
        rq.flushing = true;
        if let Some(held) = rq.held.take() {
            self.recv_cq.push(self.flushed(held.wr_id, wc_opcode::RECV), false);
        }
        while let Some(receive) = rq.front() {
            rq.done += 1;
            self.recv_cq.push(self.flushed(receive.wr_id, wc_opcode::RECV), false);
        }
        drop(rq);
        if self.srq.is_some() {
            self.core.raise(event_type::QP_LAST_WQE_REACHED, EventElement::Qp(self.num));
        }
        Ok(())
    }

    /// Waits until no copy of a peer that names this QP can still move data.
    fn fence(&self) -> Result<()> {
        let links: Vec<_> =
            self.core.links.read().iter().flatten().map(|(link, _)| link.clone()).collect();
        for link in &links {
            if let super::link::Link::In(link) = link {
                link.push.fence(
                    |slot| slot.qpn() == self.num,
                    &*link.peer,
                    "taking a queue pair out of service",
                )?;
            }
        }
        if let Some(tcp) = &self.core.tcp {
            tcp.fence();
        }
        Ok(())
    }

    fn flushed(&self, wr_id: u64, opcode: u32) -> Wc {
        Wc { wr_id, opcode, status: wc_status::WR_FLUSH_ERR, qp_num: self.num, ..Wc::default() }
    }

    unsafe fn post_recv(self: &Arc<Self>, mut wr: *mut RecvWr) -> PostRecv {
        let refuse = |errno, bad_wr| Err(PostError::new(errno, bad_wr));
        if self.srq.is_some() || self.state() == qp_state::RESET {
            return refuse(libc::EINVAL, wr);
        }
        let mut rq = self.rq.lock();
        let entry = self.entry();
        // SAFETY: the caller's promise: a valid list.
        while let Some(request) = unsafe { wr.as_ref() } {
            // SAFETY: likewise.
            let posted = unsafe { rq.post(&self.core.region, Some((entry, self.pd)), request) };
            if let Err(errno) = posted {
                return refuse(errno, wr);
            }
            if rq.flushing {
                rq.done += 1;
                self.recv_cq.push(self.flushed(request.wr_id, wc_opcode::RECV), false);
            }
            wr = request.next;
        }
        Ok(())
    }
}

/// What the program holds. Dropping it destroys the queue pair.
pub(super) struct QpHandle {
    qp: Arc<Qp>,
    _srq: Option<Arc<dyn crate::device::DeviceSrq>>,
    _cqs: [Arc<dyn crate::device::DeviceCq>; 2],
    _pd: Arc<Pd>,
}

impl QpHandle {
    pub(super) fn create(pd: Arc<Pd>, init: &QpInit) -> Result<QpHandle> {
        let core = &pd.context.core;
        let cap = &init.cap;
        if !matches!(init.qp_type, qp_type::RC | qp_type::UC | qp_type::UD) {
            return Err(Error::unsupported(format!(
                "queue pairs of type {}: {} has RC, UC and UD",
                qp_type::name(init.qp_type),
                core.name
            )));
        }
        let limit = |what: &str, want: u32, most: u32| {
            if want <= most {
                return Ok(());
            }
            Err(Error::invalid(format!("{what} {want}: {} has at most {most}", core.name)))
        };
        limit("max_send_wr", cap.max_send_wr, MAX_WR)?;
        limit("max_send_sge", cap.max_send_sge, MAX_SGE as u32)?;
        limit("max_inline_data", cap.max_inline_data, MAX_INLINE)?;
        let send_cq = Cq::of(core, &init.send_cq)?;
        let recv_cq = Cq::of(core, &init.recv_cq)?;
        let srq = match &init.srq {
            None => None,
            Some(_) if init.qp_type == qp_type::UC => {
                return Err(Error::invalid("a UC queue pair cannot use a shared receive queue"));
            }
            Some(srq) => Some(SrqHandle::of(core, srq)?),
        };
        let (recv_wr, recv_sge) =
            if srq.is_some() { (0, 0) } else { (cap.max_recv_wr, cap.max_recv_sge) };
        let mut rq = RecvQueue::new(core, recv_wr, recv_sge)?;
        let number = core.numbers.lock().qp(&core.node, &core.socket, &core.region);
        let (num, index) = match number {
            Ok(number) => number,
            Err(error) => {
                rq.free(core);
                return Err(error);
            }
        };
        let cap = QpCap {
            max_recv_wr: recv_wr,
            max_recv_sge: recv_sge,
            max_inline_data: MAX_INLINE,
            ..*cap
        };
        let entry = View::new(Arc::clone(&core.region), |region| region.qp(index));
        let qp = Arc::new(Qp {
            core: Arc::clone(core),
            num,
            index,
            entry: entry.expect("a dealt index"),
            kind: init.qp_type,
            pd: pd.id,
            cap,
            sig_all: init.sq_sig_all,
            send_cq,
            recv_cq,
            srq,
            sq: Lock::new(send::SendQueue::default()),
            rq: Lock::new(rq),
            dead: AtomicBool::new(false),
        });
        qp.publish();
        let mut qps = core.qps.write();
        if qps.len() <= index {
            qps.resize_with(index + 1, || None);
        }
        qps[index] = Some(Arc::clone(&qp));
        drop(qps);
        Ok(QpHandle {
            qp,
            _srq: init.srq.clone(),
            _cqs: [Arc::clone(&init.send_cq), Arc::clone(&init.recv_cq)],
            _pd: pd,
        })
    }
}

impl Qp {
    /// Writes what peers must know of a new QP into its entry.
    fn publish(&self) {
        let entry = self.entry();
        entry.pd.store(self.pd, Ordering::Relaxed);
        entry.recv_cq.store(self.recv_cq.index, Ordering::Relaxed);
        self.rq.lock().ring.publish(entry);
        self.clear();
        let next = self.incarnation().wrapping_add(1);
        entry.word.store(QpEntry::word_of(next, qp_state::RESET), Ordering::SeqCst);
    }
}

impl Drop for QpHandle {
    fn drop(&mut self) {
        let qp = &self.qp;
        // What has come by now is executed and answered, as a NIC would have done at once: a peer that
        // leaves owes its last acknowledgement.
        if qp.srq.is_some() {
            qp.core.drain_all_requests();
        }
        if let Err(error) = qp.reset() {
            tracing::error!(%error, qp = qp.num, "a queue pair could not be fenced");
        }
        let core = &qp.core;
        qp.dead.store(true, Ordering::Release);
        if let Some(slot) = core.qps.write().get_mut(qp.index) {
            *slot = None;
        }
        core.stalled.lock().retain(|stalled| !Arc::ptr_eq(&stalled.qp, qp));
        core.work.remove(qp);
        core.events.forget(|event| event.element == EventElement::Qp(qp.num));
        // No ring's reader still fills one of its receives once each lock was free.
        core.drain_all_requests();
        qp.rq.lock().free(core);
        core.numbers.lock().free_qp(qp.index);
    }
}

impl DeviceQp for QpHandle {
    fn qp_num(&self) -> u32 {
        self.qp.num
    }

    fn qp_type(&self) -> u32 {
        self.qp.kind
    }

    fn init_cap(&self) -> QpCap {
        self.qp.cap
    }

    #[inline]
    unsafe fn post_send(&self, wr: *mut crate::abi::SendWr) -> PostSend {
        // SAFETY: the caller's promise.
        let posted = unsafe { self.qp.post_send(wr) };
        self.qp.core.run_deferred();
        posted
    }

    #[inline]
    unsafe fn post_recv(&self, wr: *mut RecvWr) -> PostRecv {
        // SAFETY: the caller's promise.
        unsafe { self.qp.post_recv(wr) }
    }

    fn modify(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        self.qp.modify(attr, mask)
    }

    fn query(&self, _mask: u32) -> Result<QpAttr> {
        Ok(self.qp.query())
    }
}
