//! What carries verbs: the traits that every device implements.
//!
//! They are the verbs of `libibverbs`, no more: control calls return [`Result`]s, the data path
//! takes the C structs of [`crate::abi`] and costs one indirect call, as it does in libibverbs
//! (`ibv_context.ops`). Who implements them:
//!
//! - [`hca`]: any device of the system's libibverbs;
//! - [`soft`]: an HCA in user space;
//! - [`crate::virt::core`]: virtual verbs, which stand over any of these. So one conformance
//!   suite, one safe API and every program run over a raw device and over virtual verbs alike.
//!
//! Ownership: an object keeps alive what it was created from (a QP its PD, CQs and SRQ), and is
//! destroyed when its last `Arc` goes; no order of drops is wrong. Destroying a QP discards its
//! outstanding work without completions, as `ibv_destroy_qp(3)` does.
//!
//! Threads: every object may be used from any thread at any time, as verbs may, except where it
//! was created single-threaded ([`PdInit`], [`CqInit`]).

pub mod hca;
pub mod soft;

use crate::abi;
use crate::error::Result;
use std::any::Any;
use std::ffi::c_void;
use std::num::NonZeroI32;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A device of libibverbs.
    Hca,
    /// The embedded device in user space.
    Soft,
}

impl Kind {
    /// `"hca"` or `"soft"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Hca => "hca",
            Kind::Soft => "soft",
        }
    }
}

/// A device that this machine has, not yet opened.
pub trait Device: Send + Sync {
    /// Its name, unique on the machine: `rxe0`, `mlx5_1`, `soft0`.
    fn name(&self) -> &str;
    /// Its kind.
    fn kind(&self) -> Kind;
    /// Opens it.
    ///
    /// # Errors
    /// Whatever keeps it from opening: permissions, no file descriptors left, a missing module.
    fn open(&self) -> Result<Arc<dyn DeviceContext>>;
}

/// An opened device (`ibv_context`).
pub trait DeviceContext: Any + Send + Sync {
    /// The name of the device.
    fn name(&self) -> &str;
    /// The kind of the device.
    fn kind(&self) -> Kind;
    /// `ibv_query_device(3)`.
    ///
    /// # Errors
    /// As the man page says.
    fn query_device(&self) -> Result<abi::DeviceAttr>;
    /// `ibv_query_port(3)`; ports count from 1.
    ///
    /// # Errors
    /// `EINVAL` for a port that the device does not have.
    fn query_port(&self, port: u8) -> Result<abi::PortAttr>;
    /// `ibv_query_gid(3)`.
    ///
    /// # Errors
    /// `EINVAL` for a port or an index that the device does not have.
    fn query_gid(&self, port: u8, index: u32) -> Result<abi::Gid>;
    /// `ibv_query_pkey(3)`, in network byte order.
    ///
    /// # Errors
    /// `EINVAL` for a port or an index that the device does not have.
    fn query_pkey(&self, port: u8, index: u32) -> Result<u16>;
    /// The entry of a port's GID table to use where the program does not choose one: on an
    /// Ethernet port a RoCE v2 entry, over IPv4 if there is one.
    ///
    /// # Errors
    /// `EINVAL` for a port that the device does not have.
    fn best_gid_index(&self, port: u8) -> Result<u32> {
        self.query_port(port).map(|_| 0)
    }
    /// Whether address vectors of this port must name the peer's GID: on Ethernet, where there is
    /// no LID, and where the GID says how another machine is reached.
    ///
    /// # Errors
    /// `EINVAL` for a port that the device does not have.
    fn addresses_by_gid(&self, port: u8) -> Result<bool> {
        let port = self.query_port(port)?;
        Ok(port.link_layer == abi::link_layer::ETHERNET || port.lid == 0)
    }
    /// `ibv_alloc_pd(3)`.
    ///
    /// # Errors
    /// `ENOMEM` when the device has no more.
    fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>>;
    /// `ibv_create_comp_channel(3)`.
    ///
    /// # Errors
    /// `EMFILE` when no file descriptor is left.
    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>>;
    /// `ibv_create_cq(3)`.
    ///
    /// # Errors
    /// `EINVAL` for a size beyond the device's, or a channel of another context.
    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>>;
    /// Readable whenever [`DeviceContext::get_async_event`] has something to return.
    fn async_fd(&self) -> BorrowedFd<'_>;
    /// `ibv_get_async_event(3)`, but never blocks: `None` where nothing is pending. The event
    /// is acknowledged by being taken.
    ///
    /// # Errors
    /// `EIO` when the device is gone.
    fn get_async_event(&self) -> Result<Option<AsyncEvent>>;
}

/// How a protection domain is allocated.
#[derive(Clone, Copy, Debug, Default)]
pub struct PdInit {
    /// All QPs and SRQs of this domain are used by one thread at a time, and the caller sees to
    /// it: the device may leave out its locks (`ibv_alloc_td(3)`, `ibv_alloc_parent_domain(3)`).
    pub single_threaded: bool,
}

/// How a completion queue is created.
#[derive(Clone, Default)]
pub struct CqInit {
    /// Completions that it must hold (at least 1).
    pub cqe: u32,
    /// Where its events go, if anywhere.
    pub channel: Option<Arc<dyn DeviceChannel>>,
    /// Completion vector, below the device's number of them.
    pub comp_vector: u32,
    /// Polled by one thread at a time, which the caller sees to
    /// (`IBV_CREATE_CQ_ATTR_SINGLE_THREADED`).
    pub single_threaded: bool,
    /// Returned by [`DeviceChannel::get_event`], so that a program finds its CQ (`cq_context`).
    pub user: u64,
}

/// How a shared receive queue is created.
#[derive(Clone, Copy, Debug, Default)]
pub struct SrqInit {
    /// Sizes wanted, and the limit (0: no event).
    pub attr: abi::SrqAttr,
    /// Names the SRQ in its asynchronous events (`srq_context`).
    pub user: u64,
}

/// How a queue pair is created.
#[derive(Clone)]
pub struct QpInit {
    /// [`abi::qp_type`].
    pub qp_type: u32,
    /// Sizes wanted; what was granted is in [`DeviceQp::init_cap`].
    pub cap: abi::QpCap,
    /// Every send request is signalled.
    pub sq_sig_all: bool,
    /// Completions of the send queue.
    pub send_cq: Arc<dyn DeviceCq>,
    /// Completions of the receive queue.
    pub recv_cq: Arc<dyn DeviceCq>,
    /// A shared receive queue in place of one's own.
    pub srq: Option<Arc<dyn DeviceSrq>>,
}

/// A protection domain (`ibv_pd`).
pub trait DevicePd: Any + Send + Sync {
    /// `ibv_reg_mr(3)`: makes `length` bytes at `addr` known to the device.
    ///
    /// # Safety
    /// The memory must stay mapped until the region is dropped, and the program must treat it
    /// as memory that others may write at any time: with volatile or atomic access, and through
    /// no reference that promises otherwise, as `flags` (bits of [`abi::access`]) allow.
    ///
    /// # Errors
    /// `EINVAL` for flags that verbs refuse (remote write without local write), `ENOMEM` where
    /// it cannot be pinned (the message names `RLIMIT_MEMLOCK` and the need), `EFAULT` where
    /// nothing is mapped.
    unsafe fn reg_mr(
        self: Arc<Self>,
        addr: *mut c_void,
        length: usize,
        flags: u32,
    ) -> Result<Arc<dyn DeviceMr>>;
    /// `ibv_create_qp(3)`. The QP is in RESET.
    ///
    /// # Errors
    /// `EINVAL` for sizes beyond the device's or CQs of another context, `ENOMEM` when the
    /// device has no more.
    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>>;
    /// `ibv_create_srq(3)`.
    ///
    /// # Errors
    /// `EINVAL` for sizes beyond the device's.
    fn create_srq(self: Arc<Self>, init: SrqInit) -> Result<Arc<dyn DeviceSrq>>;
    /// `ibv_create_ah(3)`.
    ///
    /// # Errors
    /// `EINVAL` for a port or GID index that the device does not have.
    fn create_ah(self: Arc<Self>, attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>>;
}

/// A memory region (`ibv_mr`). Dropping it deregisters: after that nothing lands in the memory.
pub trait DeviceMr: Any + Send + Sync {
    /// Local key.
    fn lkey(&self) -> u32;
    /// Remote key.
    fn rkey(&self) -> u32;
    /// `ibv_dereg_mr(3)`, for those who want to hear of a failure: dropping does the same. After
    /// it has returned without error nothing lands in the memory. Idempotent.
    ///
    /// # Errors
    /// `EBUSY` where the device cannot promise that yet.
    fn dereg(&self) -> Result<()>;
}

/// A completion channel (`ibv_comp_channel`).
pub trait DeviceChannel: Any + Send + Sync {
    /// Readable whenever [`DeviceChannel::get_event`] has something to return.
    fn fd(&self) -> BorrowedFd<'_>;
    /// `ibv_get_cq_event(3)`, but never blocks: the `user` value of a CQ whose armed
    /// notification fired, or `None`. The event is acknowledged by being taken.
    ///
    /// # Errors
    /// `EIO` when the device is gone.
    fn get_event(&self) -> Result<Option<u64>>;
}

/// What polling answers: how many completions, or the errno. (Of one width, so that it is answered
/// in registers.)
pub type Polled = std::result::Result<u32, i32>;

/// A completion queue (`ibv_cq`).
pub trait DeviceCq: Any + Send + Sync {
    /// Completions that it holds at most.
    fn cqe(&self) -> u32;
    /// `ibv_poll_cq(3)`: fills the front of `wcs` and returns how many.
    ///
    /// # Errors
    /// The errno with which the device refused: the CQ was overrun, or the device is gone.
    fn poll(&self, wcs: &mut [abi::Wc]) -> Polled;
    /// `ibv_req_notify_cq(3)`: one event on the channel for the next completion (or the next
    /// solicited or failed one) that is added after this call.
    ///
    /// # Errors
    /// `EINVAL` where the CQ has no channel.
    fn req_notify(&self, solicited_only: bool) -> Result<()>;
    /// `ibv_resize_cq(3)`.
    ///
    /// # Errors
    /// `EINVAL` for a size beyond the device's, `EOPNOTSUPP` where the device cannot.
    fn resize(&self, cqe: u32) -> Result<()>;
}

/// Why a posted list was cut short.
// That the errno is never 0 leaves a value for success: so what posting answers fits into two
// registers.
pub struct PostError<W> {
    errno: NonZeroI32,
    bad_wr: *mut W,
}

impl<W> PostError<W> {
    /// `errno`: `ENOMEM` where the queue is full, `EINVAL` where the request or the QP's state is
    /// wrong (0, which says nothing, becomes `EIO`). `bad_wr`: the first request of the list that
    /// was not posted; those before it were.
    #[must_use]
    pub const fn new(errno: i32, bad_wr: *mut W) -> Self {
        const UNSAID: NonZeroI32 = NonZeroI32::new(libc::EIO).expect("not 0");
        let errno = match NonZeroI32::new(errno) {
            Some(errno) => errno,
            None => UNSAID,
        };
        PostError { errno, bad_wr }
    }

    /// Why.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        self.errno.get()
    }

    /// The first request of the list that was not posted.
    #[must_use]
    pub const fn bad_wr(&self) -> *mut W {
        self.bad_wr
    }
}

// By hand, since derived ones would ask the same of the request, which is only pointed to.
impl<W> Clone for PostError<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for PostError<W> {}

impl<W> PartialEq for PostError<W> {
    fn eq(&self, other: &Self) -> bool {
        (self.errno, self.bad_wr) == (other.errno, other.bad_wr)
    }
}

impl<W> Eq for PostError<W> {}

impl<W> std::fmt::Debug for PostError<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let reason = std::io::Error::from_raw_os_error(self.errno());
        write!(f, "PostError({reason}, bad_wr {:p})", self.bad_wr)
    }
}

/// What posting a list of send requests answers.
pub type PostSend = std::result::Result<(), PostError<abi::SendWr>>;
/// What posting a list of receives answers.
pub type PostRecv = std::result::Result<(), PostError<abi::RecvWr>>;

/// A queue pair (`ibv_qp`).
pub trait DeviceQp: Any + Send + Sync {
    /// Its number.
    fn qp_num(&self) -> u32;
    /// [`abi::qp_type`].
    fn qp_type(&self) -> u32;
    /// The sizes that creation granted.
    fn init_cap(&self) -> abi::QpCap;
    /// `ibv_post_send(3)`.
    ///
    /// # Safety
    /// `wr` heads a valid list; its memory is read before the call returns. What its gather
    /// lists name must stay registered and untouched until the completion, inline data excepted.
    /// A UD request's address handle is one of this context, alive during the call. (A program
    /// keeps it until the completion, as verbs ask; a device must stay memory-safe if it does not.)
    unsafe fn post_send(&self, wr: *mut abi::SendWr) -> PostSend;
    /// `ibv_post_recv(3)`.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    unsafe fn post_recv(&self, wr: *mut abi::RecvWr) -> PostRecv;
    /// `ibv_modify_qp(3)`; `mask` holds bits of [`abi::qp_mask`].
    ///
    /// # Errors
    /// `EINVAL` for a transition or an attribute that IBTA 10.3.1 and the man page do not allow.
    fn modify(&self, attr: &abi::QpAttr, mask: u32) -> Result<()>;
    /// `ibv_query_qp(3)`. `rq_psn` is the responder's expected packet number, where the device's
    /// is live.
    ///
    /// # Errors
    /// As the man page says.
    fn query(&self, mask: u32) -> Result<abi::QpAttr>;
}

/// A shared receive queue (`ibv_srq`).
pub trait DeviceSrq: Any + Send + Sync {
    /// `ibv_post_srq_recv(3)`.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    unsafe fn post_recv(&self, wr: *mut abi::RecvWr) -> PostRecv;
    /// `ibv_modify_srq(3)`; `mask` holds bits of [`abi::srq_mask`].
    ///
    /// # Errors
    /// `EINVAL` for a limit above the size; `EOPNOTSUPP` for a resize that the device cannot do.
    fn modify(&self, attr: &abi::SrqAttr, mask: u32) -> Result<()>;
    /// `ibv_query_srq(3)`.
    ///
    /// # Errors
    /// As the man page says.
    fn query(&self) -> Result<abi::SrqAttr>;
}

/// An address handle (`ibv_ah`).
pub trait DeviceAh: Any + Send + Sync {
    /// What goes into [`abi::UdWr::ah`]; valid while the handle lives.
    fn as_raw(&self) -> *mut c_void;
}

/// What an asynchronous event is about, and what happened ([`abi::event_type`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// [`abi::event_type`].
    pub event_type: u32,
    /// The object concerned.
    pub element: EventElement,
}

/// The object that an asynchronous event concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventElement {
    /// The queue pair of this number.
    Qp(u32),
    /// The CQ with this `user` value ([`CqInit::user`]).
    Cq(u64),
    /// The SRQ with this `user` value ([`SrqInit::user`]).
    Srq(u64),
    /// The port of this number.
    Port(u8),
    /// The device as a whole.
    Device,
}

/// All devices that this machine has: those of libibverbs first, then the soft ones.
///
/// A missing libibverbs or a kernel without RDMA is not an error here: there are then only soft
/// devices.
#[must_use]
pub fn list() -> Vec<Box<dyn Device>> {
    let mut all = hca::list();
    all.extend(soft::list());
    all
}

/// Opens the device called `name`.
///
/// # Errors
/// `ENODEV`, naming the devices that this machine has; whatever [`Device::open`] answers.
pub fn open(name: &str) -> Result<Arc<dyn DeviceContext>> {
    let all = list();
    match all.iter().find(|device| device.name() == name) {
        Some(device) => device.open(),
        None => {
            let names: Vec<&str> = all.iter().map(|device| device.name()).collect();
            let mut text =
                format!("device \"{name}\" not found; this machine has: {}", names.join(", "));
            if let Err(why) = hca::find() {
                text.push_str(&format!(" (no HCA: {why})"));
            }
            Err(crate::Error::new(libc::ENODEV, text))
        }
    }
}
