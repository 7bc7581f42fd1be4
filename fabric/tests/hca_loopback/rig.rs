//! What the tests share: memory, queue pairs that lead back to the same port, and waiting.

use sojourn_fabric::abi::{self, access, qp_mask, qp_state, wc_status};
use sojourn_fabric::device::{
    CqInit, DeviceContext, DeviceCq, DeviceMr, DevicePd, DeviceQp, PdInit, QpInit, hca,
};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nothing here takes longer than this, on an emulated machine under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The machine's first device, opened, or `None` with the reason printed.
pub(crate) fn open() -> Option<Arc<dyn DeviceContext>> {
    let reason = match hca::find() {
        Ok(devices) => match devices.first() {
            Some(device) => return Some(device.open().expect("it opens")),
            None => "this machine has no RDMA device".into(),
        },
        Err(error) => error.to_string(),
    };
    println!("skipped: {reason}");
    None
}

/// A device with a protection domain and a CQ of 32: enough for most tests.
pub(crate) struct Rig {
    pub(crate) context: Arc<dyn DeviceContext>,
    pub(crate) pd: Arc<dyn DevicePd>,
    pub(crate) cq: Arc<dyn DeviceCq>,
}

impl Rig {
    pub(crate) fn new() -> Option<Self> {
        Some(Rig::over(open()?, false))
    }

    pub(crate) fn over(context: Arc<dyn DeviceContext>, single_threaded: bool) -> Self {
        let pd = Arc::clone(&context).alloc_pd(PdInit { single_threaded }).expect("a PD");
        let init = CqInit { cqe: 32, single_threaded, ..CqInit::default() };
        let cq = Arc::clone(&context).create_cq(init).expect("a CQ");
        Rig { context, pd, cq }
    }

    pub(crate) fn qp_init(&self, qp_type: u32) -> QpInit {
        QpInit {
            qp_type,
            cap: abi::QpCap {
                max_send_wr: 16,
                max_recv_wr: 16,
                max_send_sge: 2,
                max_recv_sge: 2,
                max_inline_data: 64,
            },
            sq_sig_all: true,
            send_cq: Arc::clone(&self.cq),
            recv_cq: Arc::clone(&self.cq),
            srq: None,
        }
    }

    pub(crate) fn create(&self, init: &QpInit) -> Arc<dyn DeviceQp> {
        Arc::clone(&self.pd).create_qp(init).expect("a QP")
    }

    pub(crate) fn rc(&self) -> Arc<dyn DeviceQp> {
        self.create(&self.qp_init(abi::qp_type::RC))
    }

    /// Two connected QPs.
    pub(crate) fn rc_pair(&self) -> (Arc<dyn DeviceQp>, Arc<dyn DeviceQp>) {
        let (a, b) = (self.rc(), self.rc());
        self.connect(&a, &b);
        (a, b)
    }

    pub(crate) fn connect(&self, a: &Arc<dyn DeviceQp>, b: &Arc<dyn DeviceQp>) {
        to_init(a);
        to_init(b);
        self.to_rts(a, b.qp_num());
        self.to_rts(b, a.qp_num());
    }

    /// An address vector that leads back to port 1.
    pub(crate) fn to_self(&self) -> abi::AhAttr {
        let index = self.context.best_gid_index(1).expect("a GID");
        abi::AhAttr {
            grh: abi::GlobalRoute {
                dgid: self.context.query_gid(1, index).expect("that GID"),
                sgid_index: u8::try_from(index).expect("a small table"),
                hop_limit: 64,
                ..Default::default()
            },
            dlid: self.context.query_port(1).expect("port 1").lid,
            is_global: 1,
            port_num: 1,
            ..Default::default()
        }
    }

    pub(crate) fn to_rts(&self, qp: &Arc<dyn DeviceQp>, dest_qp_num: u32) {
        let attr = abi::QpAttr {
            qp_state: qp_state::RTR,
            path_mtu: abi::mtu::MTU_1024,
            dest_qp_num,
            rq_psn: 0x00ff_fffe,
            max_dest_rd_atomic: 1,
            min_rnr_timer: 1,
            ah_attr: self.to_self(),
            ..Default::default()
        };
        let mask = qp_mask::STATE
            | qp_mask::AV
            | qp_mask::PATH_MTU
            | qp_mask::DEST_QPN
            | qp_mask::RQ_PSN
            | qp_mask::MAX_DEST_RD_ATOMIC
            | qp_mask::MIN_RNR_TIMER;
        qp.modify(&attr, mask).expect("INIT to RTR");
        let attr = abi::QpAttr {
            qp_state: qp_state::RTS,
            sq_psn: 0x00ff_fffe,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            max_rd_atomic: 1,
            ..Default::default()
        };
        let mask = qp_mask::STATE
            | qp_mask::SQ_PSN
            | qp_mask::TIMEOUT
            | qp_mask::RETRY_CNT
            | qp_mask::RNR_RETRY
            | qp_mask::MAX_QP_RD_ATOMIC;
        qp.modify(&attr, mask).expect("RTR to RTS");
    }

    /// The next `N` completions, by their `wr_id`.
    pub(crate) fn completions<const N: usize>(&self) -> [abi::Wc; N] {
        let mut wcs = [(); N].map(|()| poll(&self.cq));
        wcs.sort_by_key(|wc| wc.wr_id);
        wcs
    }
}

pub(crate) fn to_init(qp: &Arc<dyn DeviceQp>) {
    let attr = abi::QpAttr {
        qp_state: qp_state::INIT,
        port_num: 1,
        qp_access_flags: Buffer::ALL,
        ..Default::default()
    };
    let mask = qp_mask::STATE | qp_mask::PKEY_INDEX | qp_mask::PORT | qp_mask::ACCESS_FLAGS;
    qp.modify(&attr, mask).expect("RESET to INIT");
}

/// Registered memory on its own pages, read and written through its pointer.
pub(crate) struct Buffer {
    pub(crate) at: *mut u8,
    pub(crate) mr: Arc<dyn DeviceMr>,
    layout: Layout,
}

impl Buffer {
    pub(crate) const ALL: u32 =
        access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

    pub(crate) fn new(rig: &Rig, length: usize) -> Self {
        let layout = Layout::from_size_align(length, 4096).expect("a valid layout");
        // SAFETY: the layout is not empty.
        let at = unsafe { alloc_zeroed(layout) };
        assert!(!at.is_null());
        // SAFETY: the memory lives until after the region, and is used through its pointer only.
        let mr = unsafe { Arc::clone(&rig.pd).reg_mr(at.cast(), length, Self::ALL) };
        Buffer { at, mr: mr.expect("it registers"), layout }
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.layout.size());
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: inside the buffer, as just checked.
            unsafe { self.at.add(offset + i).write_volatile(byte) };
        }
    }

    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.layout.size());
        // SAFETY: inside the buffer, as just checked.
        (0..length).map(|i| unsafe { self.at.add(offset + i).read_volatile() }).collect()
    }

    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.at as u64 + offset as u64
    }

    pub(crate) fn sge(&self, offset: usize, length: u32) -> abi::Sge {
        abi::Sge { addr: self.address(offset), length, lkey: self.mr.lkey() }
    }

    pub(crate) fn remote(&self, offset: usize) -> abi::RdmaWr {
        abi::RdmaWr { remote_addr: self.address(offset), rkey: self.mr.rkey() }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.mr.dereg().expect("it deregisters");
        // SAFETY: it was allocated with this layout, and no device knows it any more.
        unsafe { dealloc(self.at, self.layout) };
    }
}

/// A request on one piece of memory; the caller sets the rest.
pub(crate) fn send_wr(wr_id: u64, opcode: u32, sge: &mut abi::Sge) -> abi::SendWr {
    abi::SendWr { wr_id, opcode, sg_list: sge, num_sge: 1, ..abi::SendWr::empty() }
}

pub(crate) fn recv_wr(wr_id: u64, sge: &mut abi::Sge) -> abi::RecvWr {
    abi::RecvWr { wr_id, next: ptr::null_mut(), sg_list: sge, num_sge: 1 }
}

pub(crate) fn post_send(qp: &Arc<dyn DeviceQp>, mut wr: abi::SendWr) {
    // SAFETY: the request is whole, and the tests keep its memory until its completion.
    unsafe { qp.post_send(&raw mut wr) }.expect("it is posted");
}

pub(crate) fn post_recv(qp: &Arc<dyn DeviceQp>, wr_id: u64, mut sge: abi::Sge) {
    let mut wr = recv_wr(wr_id, &mut sge);
    // SAFETY: as above.
    unsafe { qp.post_recv(&raw mut wr) }.expect("it is posted");
}

pub(crate) fn poll(cq: &Arc<dyn DeviceCq>) -> abi::Wc {
    let end = Instant::now() + PATIENCE;
    let mut wcs = [abi::Wc::default()];
    while Instant::now() < end {
        if cq.poll(&mut wcs).expect("the CQ works") == 1 {
            return wcs[0];
        }
        std::thread::yield_now();
    }
    panic!("no completion within {PATIENCE:?}");
}

pub(crate) fn expect(wc: &abi::Wc, wr_id: u64, status: u32) {
    let found = (wc.wr_id, wc_status::name(wc.status));
    assert_eq!(found, (wr_id, wc_status::name(status)), "{wc:?}");
}

pub(crate) fn wait_readable(fd: BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = PollTimeout::try_from(PATIENCE).expect("it fits");
    let ready = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout).expect("poll works");
    assert_eq!(ready, 1, "nothing to read within {PATIENCE:?}");
}
