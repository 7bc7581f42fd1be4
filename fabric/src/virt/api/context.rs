//! Contexts, protection domains and address handles.

use super::{CompletionChannel, CompletionQueue, MemoryRegion, QpOptions, QueuePair};
use super::{ConnectOptions, Endpoint, SharedReceiveQueue};
use crate::abi;
use crate::device::{
    AsyncEvent, CqInit, DeviceAh, DeviceContext, DevicePd, PdInit, QpInit, SrqInit,
};
use crate::error::{Error, Result};
use crate::names::ProcessId;
use crate::virt::core::{Cut, Relocation, RetainedConnection, Suspension, Written};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

/// The port that programs use where they name none.
const FIRST_PORT: u8 = 1;

/// An opened device: virtual, or raw for measuring.
#[derive(Clone)]
pub struct Context {
    dev: Arc<dyn DeviceContext>,
}

impl Context {
    /// The safe API over any opened device.
    #[must_use]
    pub fn over(dev: Arc<dyn DeviceContext>) -> Self {
        Context { dev }
    }

    /// Opens a device by name without virtual verbs on top: for measuring and for tests. What
    /// is opened so cannot be moved.
    ///
    /// # Errors
    /// As [`crate::device::open`].
    pub fn open_raw(name: &str) -> Result<Self> {
        Ok(Context::over(crate::device::open(name)?))
    }

    /// What this context stands over.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DeviceContext> {
        &self.dev
    }

    /// Moves everything of this context to the device of that name, while the program and its peers
    /// go on: protection domains, regions, completion queues and channels, shared receive queues,
    /// queue pairs of every type, address handles. All that the program knows stays as it is:
    /// queue pair numbers, keys, LID and GID, states, unread completions, armed notifications, file
    /// descriptors. Not one message is lost, repeated or reordered (datagrams and UC messages may be
    /// lost, as ever).
    ///
    /// The calling thread does the work, and returns when the context is on the new device. Any thread
    /// may post and poll meanwhile; whoever makes, changes or destroys an object of this context
    /// waits. Peers follow by themselves with the queue pairs concerned. Where two that are connected move at the
    /// same time, one waits for the other.
    ///
    /// What is undecided because a device does not say what it has executed completes with
    /// `IBV_WC_RETRY_EXC_ERR` (on `soft` and rxe nothing is).
    ///
    /// # Errors
    /// Where there is one, the context is where it was, whole, and the program goes on there.
    /// - `ENODEV`: there is no such device (the message lists those that there are);
    /// - `EOPNOTSUPP`: this context is not one of virtual verbs, or a queue pair or an address handle leads out
    ///   of the job;
    /// - `EINVAL`, `ENOMEM`: the device is too small: the message names the limit, the need, and
    ///   what needs it;
    /// - `ECONNREFUSED`: a peer cannot follow, and why;
    /// - `ETIMEDOUT`: a peer does not answer; the message names it and the step;
    /// - `EBUSY`: for 30 s this process or a peer was busy with other moves.
    pub fn relocate(&self, device: &str) -> Result<Relocation> {
        crate::virt::core::relocate(&self.dev, &crate::device::open(device)?)
    }

    /// The last moves of this context, oldest first: those that were asked for, and those that it made
    /// by itself because a path had failed ([`Failover`](crate::virt::Failover)).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this context is not one of virtual verbs.
    pub fn relocations(&self) -> Result<Vec<Relocation>> {
        crate::virt::core::relocations(&self.dev)
    }

    /// Makes this context, and its peers' ends of its connections, stand still: until the [`Suspension`] ends, no
    /// device writes into this process's memory for a connected queue pair of this context, and nothing
    /// that either side has handed is under way. The moment at which a snapshot is taken.
    ///
    /// The program may post and poll meanwhile; what it posts waits, receives too, and goes out afterwards; what peers post on their
    /// ends of the connections does as well. All
    /// completions that had come are in the virtual completion queues. Memory may be registered, and other
    /// contexts go on. Queue pairs of this context can be destroyed, and not be changed (`EBUSY`).
    ///
    /// A SEND that finds no receive goes on waiting for one. (A peer whose `rnr_retry` is not endless counts on
    /// meanwhile.) Of UC nothing tells what has arrived: it is given 100 ms. Senders of datagrams are not known: one
    /// may land in a receive that was posted before, and completes after the hold.
    ///
    /// A peer that hears nothing of this process for 30 s goes on by itself: then the hold has lapsed, and
    /// [`Suspension::end`] says so.
    ///
    /// # Errors
    /// Where there is one, everything goes on.
    /// - `EOPNOTSUPP`: this context is not one of virtual verbs, or a queue pair leads out of the job;
    /// - `ECONNREFUSED`: a peer refuses, and why;
    /// - `ETIMEDOUT`: a peer does not answer, or what was handed there or here was not executed until
    ///   `deadline` (or for 15 s); the message names the peer and the step;
    /// - `EBUSY`: until `deadline` this process or a peer was moving, or holding others; or this context is suspended
    ///   already.
    pub fn suspend(&self, deadline: Instant) -> Result<Suspension> {
        crate::virt::core::suspend(&self.dev, deadline)
    }

    /// What every queue pair of this context has consumed so far, for an epoch that is being taken: the
    /// program posts and polls nothing meanwhile, and its memory is the same moment's.
    /// [`Cut::commit`] tells the peers when the epoch is committed, and they let go of the messages
    /// that they have kept for it ([`Retention::Payload`](crate::virt::Retention)).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this context is not one of virtual verbs.
    pub fn cut(&self) -> Result<Cut> {
        crate::virt::core::cut(&self.dev)
    }

    /// What devices have written into this process's memory since the last report that was committed
    /// ([`Written::commit`]): receives that were consumed, results of READs and atomics, and what peers have
    /// written, each of which is asked. To be called while the context is suspended ([`Self::suspend`]). It
    /// tells more than was written (pages, whole receives), and never less.
    ///
    /// A report is of all contexts of the process that track ([`Policy::tracking`](crate::virt::Policy)): memory
    /// into which others receive is not in it. What the CPU writes is not, either. Where a peer's record cannot be had (it is
    /// dead, or silent until `deadline`, it does not track, it has been started anew), all that it could have
    /// written is in the report, and [`Written::unknown`] names it.
    ///
    /// Datagrams that land during the hold are in the next report.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this context is not one of virtual verbs, or does not track; `EINVAL` where it is not
    /// suspended.
    pub fn written(&self, deadline: Instant) -> Result<Written> {
        crate::virt::core::written(&self.dev, deadline)
    }

    /// Whether it is recorded what devices write for this context ([`Policy::tracking`](crate::virt::Policy)), so that
    /// [`Self::written`] can tell.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this context is not one of virtual verbs.
    pub fn tracks_writes(&self) -> Result<bool> {
        crate::virt::core::tracks_writes(&self.dev)
    }

    /// What is kept of messages that were sent, connection by connection; those of destroyed queue pairs
    /// too, until a committed epoch of the peer has told of it.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this context is not one of virtual verbs.
    pub fn retained(&self) -> Result<Vec<RetainedConnection>> {
        crate::virt::core::retained(&self.dev)
    }

    /// A process has left the job for good, and will not be replayed: what was sent to it is let go.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where this context is not one of virtual verbs.
    pub fn forget_peer(&self, peer: ProcessId) -> Result<()> {
        crate::virt::core::forget_peer(&self.dev, peer)
    }

    /// The device's limits.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn query_device(&self) -> Result<abi::DeviceAttr> {
        self.dev.query_device()
    }

    /// A port's attributes; ports count from 1.
    ///
    /// # Errors
    /// `EINVAL` for a port that the device does not have.
    pub fn query_port(&self, port: u8) -> Result<abi::PortAttr> {
        self.dev.query_port(port)
    }

    /// Allocates a protection domain.
    ///
    /// # Errors
    /// `ENOMEM` when the device has no more.
    pub fn alloc_pd(&self) -> Result<ProtectionDomain> {
        self.pd(PdInit::default())
    }

    /// Allocates a protection domain whose queue pairs leave out their locks.
    ///
    /// # Safety
    /// The queue pairs and shared receive queues made from it are used by one thread at a time.
    ///
    /// # Errors
    /// `ENOMEM` when the device has no more.
    pub unsafe fn alloc_pd_single_threaded(&self) -> Result<ProtectionDomain> {
        self.pd(PdInit { single_threaded: true })
    }

    fn pd(&self, init: PdInit) -> Result<ProtectionDomain> {
        let pd = Arc::clone(&self.dev).alloc_pd(init)?;
        Ok(ProtectionDomain::over(pd, self.clone()))
    }

    /// Creates a completion queue of at least `cqe` entries, to be polled.
    ///
    /// # Errors
    /// `EINVAL` for a size beyond the device's.
    pub fn create_cq(&self, cqe: u32) -> Result<CompletionQueue> {
        self.create_cq_with(CqInit { cqe, ..CqInit::default() })
    }

    /// Creates a completion queue whose events go to `channel` under the name `user`.
    ///
    /// # Errors
    /// `EINVAL` for a size beyond the device's, or a channel of another context.
    pub fn create_cq_on(
        &self,
        cqe: u32,
        channel: &CompletionChannel,
        user: u64,
    ) -> Result<CompletionQueue> {
        let channel = Some(Arc::clone(channel.device()));
        self.create_cq_with(CqInit { cqe, channel, user, ..CqInit::default() })
    }

    /// Creates a completion queue that leaves out its lock.
    ///
    /// # Safety
    /// The queue is polled by one thread at a time.
    ///
    /// # Errors
    /// `EINVAL` for a size beyond the device's.
    pub unsafe fn create_cq_single_threaded(&self, cqe: u32) -> Result<CompletionQueue> {
        self.create_cq_with(CqInit { cqe, single_threaded: true, ..CqInit::default() })
    }

    fn create_cq_with(&self, init: CqInit) -> Result<CompletionQueue> {
        Ok(CompletionQueue::over(Arc::clone(&self.dev).create_cq(init)?))
    }

    /// Creates a completion channel.
    ///
    /// # Errors
    /// `EMFILE` when no file descriptor is left.
    pub fn create_channel(&self) -> Result<CompletionChannel> {
        Ok(CompletionChannel::over(Arc::clone(&self.dev).create_channel()?))
    }

    /// The next asynchronous event, or `None` when none comes before `deadline`.
    ///
    /// # Errors
    /// `EIO` when the device is gone.
    pub fn next_async_event(&self, deadline: Instant) -> Result<Option<AsyncEvent>> {
        loop {
            if let Some(event) = self.dev.get_async_event()? {
                return Ok(Some(event));
            }
            if !super::queue::readable(self.dev.async_fd(), deadline)? {
                return self.dev.get_async_event();
            }
        }
    }

    /// The path MTU that connections over `port` start from ([`abi::mtu`]).
    pub(super) fn active_mtu(&self, port: u8) -> Result<u32> {
        Ok(self.query_port(port)?.active_mtu)
    }

    /// LID and GID of the first port, for an [`Endpoint`].
    pub(super) fn address(&self) -> Result<(u16, abi::Gid)> {
        let port = self.query_port(FIRST_PORT)?;
        let gid = self.dev.query_gid(FIRST_PORT, self.dev.best_gid_index(FIRST_PORT)?)?;
        Ok((port.lid, gid))
    }

    /// The address vector that reaches `peer`: by GID where the port or the peer asks for it, else
    /// by LID.
    pub(super) fn address_vector(&self, peer: &Endpoint) -> Result<abi::AhAttr> {
        let global = self.dev.addresses_by_gid(FIRST_PORT)? || peer.lid == 0;
        let index = self.dev.best_gid_index(FIRST_PORT)?;
        Ok(abi::AhAttr {
            dlid: peer.lid,
            is_global: u8::from(global),
            port_num: FIRST_PORT,
            grh: abi::GlobalRoute {
                dgid: peer.gid,
                sgid_index: u8::try_from(index)
                    .map_err(|_| Error::invalid(format!("GID index {index} exceeds 255")))?,
                hop_limit: 64,
                ..abi::GlobalRoute::default()
            },
            ..abi::AhAttr::default()
        })
    }
}

/// A protection domain: regions and queue pairs of one domain work together, and no others.
#[derive(Clone)]
pub struct ProtectionDomain {
    pd: Arc<dyn DevicePd>,
    context: Context,
}

impl ProtectionDomain {
    pub(super) fn over(pd: Arc<dyn DevicePd>, context: Context) -> Self {
        ProtectionDomain { pd, context }
    }

    /// The context that it belongs to.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The device's object.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DevicePd> {
        &self.pd
    }

    /// Allocates `length` zeroed bytes, page aligned, and registers them with the given bits of
    /// [`abi::access`]. The memory belongs to the region.
    ///
    /// # Errors
    /// `ENOMEM` where it cannot be had or pinned (the message names the limit and the need),
    /// `EINVAL` for a length of zero or flags that verbs refuse.
    pub fn register(&self, length: usize, access: u32) -> Result<MemoryRegion> {
        MemoryRegion::new(&self.pd, length, access)
    }

    /// Registers memory that is mapped already, and makes the region its owner.
    ///
    /// # Safety
    /// The `length` bytes at `base`, which is at the start of a page, are a mapping that is nobody else's:
    /// dropping the region unmaps it. Until then it is accessed with atomics alone.
    ///
    /// # Errors
    /// As [`Self::register`]; the memory stays the caller's.
    pub unsafe fn adopt(
        &self,
        base: NonNull<u8>,
        length: usize,
        access: u32,
    ) -> Result<MemoryRegion> {
        // SAFETY: the caller's promise.
        let mr = unsafe { Arc::clone(&self.pd).reg_mr(base.as_ptr().cast(), length, access) }?;
        // SAFETY: the caller's promise.
        Ok(unsafe { MemoryRegion::over(mr, base, length) })
    }

    /// Creates a queue pair, in RESET.
    ///
    /// # Errors
    /// `EINVAL` for sizes beyond the device's.
    pub fn create_qp(&self, options: &QpOptions<'_>) -> Result<QueuePair> {
        let qp = Arc::clone(&self.pd).create_qp(&QpInit {
            qp_type: options.qp_type,
            cap: options.cap,
            sq_sig_all: options.sq_sig_all,
            send_cq: Arc::clone(options.send_cq.device()),
            recv_cq: Arc::clone(options.recv_cq.device()),
            srq: options.srq.map(|srq| Arc::clone(srq.device())),
        })?;
        Ok(QueuePair::over(qp, self.context.clone()))
    }

    /// Creates a shared receive queue; `user` names it in its events.
    ///
    /// # Errors
    /// `EINVAL` for sizes beyond the device's.
    pub fn create_srq(&self, attr: abi::SrqAttr, user: u64) -> Result<SharedReceiveQueue> {
        Ok(SharedReceiveQueue::over(Arc::clone(&self.pd).create_srq(SrqInit { attr, user })?))
    }

    /// Creates the address handle that reaches the process of `peer`.
    ///
    /// # Errors
    /// `EINVAL` where this port cannot reach such an address.
    pub fn create_ah(&self, peer: &Endpoint) -> Result<AddressHandle> {
        self.create_ah_raw(&self.context.address_vector(peer)?)
    }

    /// Creates an address handle from an address vector.
    ///
    /// # Errors
    /// `EINVAL` for a port or a GID index that the device does not have.
    pub fn create_ah_raw(&self, attr: &abi::AhAttr) -> Result<AddressHandle> {
        Ok(AddressHandle::over(Arc::clone(&self.pd).create_ah(attr)?))
    }

    /// Two queue pairs of this domain, connected to each other: what a program that talks to
    /// itself needs, and tests.
    ///
    /// # Errors
    /// As [`Self::create_qp`] and [`QueuePair::connect`].
    pub fn create_pair(
        &self,
        options: &QpOptions<'_>,
        connect: &ConnectOptions,
    ) -> Result<(QueuePair, QueuePair)> {
        let (a, b) = (self.create_qp(options)?, self.create_qp(options)?);
        a.connect(&b.endpoint()?, connect)?;
        b.connect(&a.endpoint()?, connect)?;
        Ok((a, b))
    }
}

/// Where a datagram goes.
#[derive(Clone)]
pub struct AddressHandle {
    ah: Arc<dyn DeviceAh>,
}

impl AddressHandle {
    pub(super) fn over(ah: Arc<dyn DeviceAh>) -> Self {
        AddressHandle { ah }
    }

    /// The device's object.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DeviceAh> {
        &self.ah
    }
}
