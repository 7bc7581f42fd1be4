//! A device that completes at once.
//!
//! Posting a request puts its completion into the CQ, and that is all: what remains is the cost
//! of the call itself, against which the cost of the virtual layer shows. It behaves as a
//! provider of libibverbs does where locks are concerned: a queue pair has a lock of its own
//! unless its domain is single-threaded, and a CQ unless it was created so.

use sojourn_fabric::abi::{self, RecvWr, SendWr, Wc, send_flags, wc_opcode, wr_opcode};
use sojourn_fabric::device::{
    AsyncEvent, CqInit, DeviceAh, DeviceChannel, DeviceContext, DeviceCq, DeviceMr, DevicePd,
    DeviceQp, DeviceSrq, Kind, PdInit, Polled, PostError, PostRecv, PostSend, QpInit, SrqInit,
};
use sojourn_fabric::{Error, Result};
use std::any::Any;
use std::ffi::c_void;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Completions that a CQ holds. A power of two.
const RING: usize = 1 << 9;
/// LID of the only port.
const LID: u16 = 1;

/// The device, opened.
pub struct NullDevice {
    next: AtomicU32,
    /// A pipe that nobody writes to: its asynchronous events never come.
    never: (PipeReader, PipeWriter),
}

impl NullDevice {
    /// Opens it.
    ///
    /// # Errors
    /// Where no file descriptor is left.
    pub fn open() -> Result<Arc<dyn DeviceContext>> {
        let never = std::io::pipe().map_err(|e| Error::os(&e, "opening a pipe"))?;
        Ok(Arc::new(NullDevice { next: AtomicU32::new(0x100), never }))
    }

    fn number(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}

fn none<T>(what: &str) -> Result<T> {
    Err(Error::unsupported(format!("the null device has no {what}")))
}

impl DeviceContext for NullDevice {
    fn name(&self) -> &str {
        "null0"
    }

    fn kind(&self) -> Kind {
        Kind::Soft
    }

    fn query_device(&self) -> Result<abi::DeviceAttr> {
        // SAFETY: integers and byte arrays alone, for which zero is a value.
        let mut attr: abi::DeviceAttr = unsafe { std::mem::zeroed() };
        attr.max_qp = 1 << 16;
        attr.max_qp_wr = RING as i32 / 2;
        attr.max_sge = 16;
        attr.max_cq = 1 << 16;
        attr.max_cqe = RING as i32;
        attr.max_mr = 1 << 16;
        attr.max_pd = 1 << 16;
        attr.max_mr_size = u64::MAX;
        attr.max_qp_rd_atom = 16;
        attr.max_qp_init_rd_atom = 16;
        attr.phys_port_cnt = 1;
        Ok(attr)
    }

    fn query_port(&self, _port: u8) -> Result<abi::PortAttr> {
        Ok(abi::PortAttr {
            state: abi::port_state::ACTIVE,
            max_mtu: abi::mtu::MTU_4096,
            active_mtu: abi::mtu::MTU_4096,
            gid_tbl_len: 1,
            max_msg_sz: 1 << 30,
            pkey_tbl_len: 1,
            lid: LID,
            link_layer: abi::link_layer::INFINIBAND,
            ..abi::PortAttr::default()
        })
    }

    fn query_gid(&self, _port: u8, _index: u32) -> Result<abi::Gid> {
        Ok(abi::Gid([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]))
    }

    fn query_pkey(&self, _port: u8, _index: u32) -> Result<u16> {
        Ok(u16::MAX)
    }

    fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>> {
        Ok(Arc::new(NullPd { device: self, locked: !init.single_threaded }))
    }

    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        none("channels")
    }

    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
        Ok(Arc::new(NullCq {
            ring: (0..RING).map(|_| Entry::default()).collect(),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            lock: Lock::new(!init.single_threaded),
        }))
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        self.never.0.as_fd()
    }

    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        Ok(None)
    }
}

/// The lock of a provider: one word, or nothing where the caller is single-threaded.
struct Lock {
    word: AtomicBool,
    needed: bool,
}

impl Lock {
    fn new(needed: bool) -> Self {
        Lock { word: AtomicBool::new(false), needed }
    }

    #[inline]
    fn hold<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.needed {
            return work();
        }
        while self
            .word
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            std::hint::spin_loop();
        }
        let out = work();
        self.word.store(false, Ordering::Release);
        out
    }
}

struct NullPd {
    device: Arc<NullDevice>,
    locked: bool,
}

impl DevicePd for NullPd {
    unsafe fn reg_mr(
        self: Arc<Self>,
        _addr: *mut c_void,
        _length: usize,
        _flags: u32,
    ) -> Result<Arc<dyn DeviceMr>> {
        Ok(Arc::new(NullMr { key: self.device.number() }))
    }

    fn create_qp(self: Arc<Self>, init: &QpInit) -> Result<Arc<dyn DeviceQp>> {
        let cq = |cq: &Arc<dyn DeviceCq>| {
            let any: Arc<dyn Any + Send + Sync> = Arc::clone(cq) as _;
            any.downcast::<NullCq>().map_err(|_| Error::invalid("a CQ of another device"))
        };
        Ok(Arc::new(NullQp {
            num: self.device.number(),
            qp_type: init.qp_type,
            cap: init.cap,
            sig_all: init.sq_sig_all,
            send_cq: cq(&init.send_cq)?,
            recv_cq: cq(&init.recv_cq)?,
            send_lock: Lock::new(self.locked),
            recv_lock: Lock::new(self.locked),
            attr: Mutex::new(abi::QpAttr::default()),
        }))
    }

    fn create_srq(self: Arc<Self>, _init: SrqInit) -> Result<Arc<dyn DeviceSrq>> {
        none("shared receive queues")
    }

    fn create_ah(self: Arc<Self>, _attr: &abi::AhAttr) -> Result<Arc<dyn DeviceAh>> {
        none("address handles")
    }
}

struct NullMr {
    key: u32,
}

impl DeviceMr for NullMr {
    fn lkey(&self) -> u32 {
        self.key
    }

    fn rkey(&self) -> u32 {
        self.key
    }

    fn dereg(&self) -> Result<()> {
        Ok(())
    }
}

/// A completion: identifier; opcode and length; queue pair.
#[derive(Default)]
struct Entry {
    wr_id: AtomicU64,
    what: AtomicU64,
    qp_num: AtomicU64,
}

struct NullCq {
    ring: Box<[Entry]>,
    head: AtomicU64,
    tail: AtomicU64,
    lock: Lock,
}

impl NullCq {
    #[inline]
    fn push(&self, wr_id: u64, opcode: u32, length: u32, qp_num: u32) -> bool {
        self.lock.hold(|| {
            let tail = self.tail.load(Ordering::Relaxed);
            if tail - self.head.load(Ordering::Acquire) == RING as u64 {
                return false;
            }
            let entry = &self.ring[tail as usize % RING];
            entry.wr_id.store(wr_id, Ordering::Relaxed);
            entry.what.store(u64::from(opcode) << 32 | u64::from(length), Ordering::Relaxed);
            entry.qp_num.store(u64::from(qp_num), Ordering::Relaxed);
            self.tail.store(tail + 1, Ordering::Release);
            true
        })
    }
}

impl DeviceCq for NullCq {
    fn cqe(&self) -> u32 {
        RING as u32
    }

    #[inline]
    fn poll(&self, wcs: &mut [Wc]) -> Polled {
        self.lock.hold(|| {
            let head = self.head.load(Ordering::Relaxed);
            let there = self.tail.load(Ordering::Acquire) - head;
            let n = wcs.len().min(there as usize);
            for (i, wc) in wcs[..n].iter_mut().enumerate() {
                let entry = &self.ring[(head as usize + i) % RING];
                let what = entry.what.load(Ordering::Relaxed);
                *wc = Wc {
                    wr_id: entry.wr_id.load(Ordering::Relaxed),
                    opcode: (what >> 32) as u32,
                    byte_len: what as u32,
                    qp_num: entry.qp_num.load(Ordering::Relaxed) as u32,
                    ..Wc::default()
                };
            }
            self.head.store(head + n as u64, Ordering::Release);
            Ok(n as u32)
        })
    }

    fn req_notify(&self, _solicited_only: bool) -> Result<()> {
        none("channels")
    }

    fn resize(&self, _cqe: u32) -> Result<()> {
        Ok(())
    }
}

struct NullQp {
    num: u32,
    qp_type: u32,
    cap: abi::QpCap,
    sig_all: bool,
    send_cq: Arc<NullCq>,
    recv_cq: Arc<NullCq>,
    send_lock: Lock,
    recv_lock: Lock,
    attr: Mutex<abi::QpAttr>,
}

impl DeviceQp for NullQp {
    fn qp_num(&self) -> u32 {
        self.num
    }

    fn qp_type(&self) -> u32 {
        self.qp_type
    }

    fn init_cap(&self) -> abi::QpCap {
        self.cap
    }

    #[inline]
    unsafe fn post_send(&self, wr: *mut SendWr) -> PostSend {
        self.send_lock.hold(|| {
            let mut next = wr;
            // SAFETY: the caller's list is valid during the call.
            while let Some(wr) = unsafe { next.as_ref() } {
                if self.sig_all || wr.send_flags & send_flags::SIGNALED != 0 {
                    let opcode = match wr.opcode {
                        wr_opcode::RDMA_READ => wc_opcode::RDMA_READ,
                        wr_opcode::RDMA_WRITE | wr_opcode::RDMA_WRITE_WITH_IMM => {
                            wc_opcode::RDMA_WRITE
                        }
                        _ => wc_opcode::SEND,
                    };
                    if !self.send_cq.push(wr.wr_id, opcode, 0, self.num) {
                        return Err(PostError::new(libc::ENOMEM, next));
                    }
                }
                next = wr.next;
            }
            Ok(())
        })
    }

    #[inline]
    unsafe fn post_recv(&self, wr: *mut RecvWr) -> PostRecv {
        self.recv_lock.hold(|| {
            let mut next = wr;
            // SAFETY: the caller's list is valid during the call.
            while let Some(wr) = unsafe { next.as_ref() } {
                if !self.recv_cq.push(wr.wr_id, wc_opcode::RECV, 64, self.num) {
                    return Err(PostError::new(libc::ENOMEM, next));
                }
                next = wr.next;
            }
            Ok(())
        })
    }

    fn modify(&self, attr: &abi::QpAttr, _mask: u32) -> Result<()> {
        *self.attr.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = *attr;
        Ok(())
    }

    fn query(&self, _mask: u32) -> Result<abi::QpAttr> {
        Ok(*self.attr.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
