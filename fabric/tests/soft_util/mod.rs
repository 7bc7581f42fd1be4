//! What the soft device's tests share: an endpoint with one of everything, and other processes.
#![allow(dead_code, reason = "each test binary uses a part")]

use sojourn_fabric::abi::{self, QpAttr, RecvWr, SendWr, Sge, Wc, access, qp_mask as m, qp_state};
use sojourn_fabric::device::soft::{Options, open_with};
use sojourn_fabric::device::{
    CqInit, DeviceContext, DeviceCq, DeviceMr, DevicePd, DeviceQp, DeviceSrq, PdInit, QpInit,
};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; what takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that a region may allow.
pub(crate) const ALL: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

/// Page-aligned memory that lives until the process ends, used through raw pointers only.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) at: *mut u8,
    pub(crate) len: usize,
}

// SAFETY: plain memory that nobody frees, accessed by volatile reads and writes.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn new(len: usize) -> Memory {
        // SAFETY: a fresh private mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Memory { at: at.cast(), len }
    }

    pub(crate) fn addr(self) -> u64 {
        self.at as u64
    }

    pub(crate) fn fill(self, from: usize, len: usize, byte: u8) {
        assert!(from + len <= self.len);
        for i in from..from + len {
            // SAFETY: within the memory.
            unsafe { self.at.add(i).write_volatile(byte) };
        }
    }

    pub(crate) fn get(self, from: usize, len: usize) -> Vec<u8> {
        assert!(from + len <= self.len);
        // SAFETY: within the memory.
        (from..from + len).map(|i| unsafe { self.at.add(i).read_volatile() }).collect()
    }

    pub(crate) fn put(self, from: usize, bytes: &[u8]) {
        assert!(from + bytes.len() <= self.len);
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: within the memory.
            unsafe { self.at.add(from + i).write_volatile(*byte) };
        }
    }
}

/// How an endpoint is made.
pub(crate) struct Setup {
    pub(crate) qp_type: u32,
    pub(crate) options: Options,
    pub(crate) memory: usize,
    pub(crate) cap: abi::QpCap,
    pub(crate) cqe: u32,
    pub(crate) srq: Option<abi::SrqAttr>,
    pub(crate) access: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            qp_type: abi::qp_type::RC,
            options: Options::default(),
            memory: 4 << 20,
            cap: abi::QpCap {
                max_send_wr: 256,
                max_recv_wr: 256,
                max_send_sge: 4,
                max_recv_sge: 4,
                max_inline_data: 128,
            },
            cqe: 1024,
            srq: None,
            access: ALL,
        }
    }
}

/// A context with one of everything, its QP in INIT.
pub(crate) struct End {
    pub(crate) context: Arc<dyn DeviceContext>,
    pub(crate) pd: Arc<dyn DevicePd>,
    pub(crate) cq: Arc<dyn DeviceCq>,
    pub(crate) srq: Option<Arc<dyn DeviceSrq>>,
    pub(crate) qp: Arc<dyn DeviceQp>,
    pub(crate) mr: Arc<dyn DeviceMr>,
    pub(crate) memory: Memory,
}

/// What the other side must know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub(crate) qpn: u32,
    pub(crate) lid: u16,
    pub(crate) addr: u64,
    pub(crate) rkey: u32,
    pub(crate) gid: abi::Gid,
}

impl Address {
    pub(crate) fn text(&self) -> String {
        let gid = u128::from_be_bytes(self.gid.0);
        format!("{} {} {} {} {gid}", self.qpn, self.lid, self.addr, self.rkey)
    }

    pub(crate) fn parse(text: &str) -> Address {
        let mut parts = text.split_whitespace().map(|p| p.parse::<u128>().unwrap());
        let mut next = || parts.next().unwrap();
        Address {
            qpn: next() as u32,
            lid: next() as u16,
            addr: next() as u64,
            rkey: next() as u32,
            gid: abi::Gid(next().to_be_bytes()),
        }
    }

    /// The address vector that leads there: over the network if it has an address on one.
    pub(crate) fn vector(&self) -> abi::AhAttr {
        let mut attr = abi::AhAttr { dlid: self.lid, port_num: 1, ..Default::default() };
        attr.is_global = u8::from(self.gid.0[8..10] != [0, 0]);
        attr.grh.dgid = self.gid;
        attr
    }
}

/// Options of a context that others reach over this machine's own network only, as if it were on
/// another machine: each has a LID of its own.
pub(crate) fn far() -> Options {
    use std::sync::atomic::{AtomicU16, Ordering};
    static LID: AtomicU16 = AtomicU16::new(100);
    job_key();
    Options {
        lid: LID.fetch_add(1, Ordering::Relaxed),
        addr: Some("127.0.0.1:0".parse().unwrap()),
        ..Options::default()
    }
}

/// A key file without a name; child processes may read it too.
pub(crate) fn key_file(key: &str) -> String {
    // SAFETY: a C string, and plain calls on the new descriptor, which stays open for good.
    let fd = unsafe {
        let fd = libc::memfd_create(c"job-key".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        assert_eq!(libc::fchmod(fd, 0o600), 0);
        assert_eq!(libc::write(fd, key.as_ptr().cast(), key.len()), key.len() as isize);
        fd
    };
    format!("/proc/{}/fd/{fd}", std::process::id())
}

/// The job key of this process and its children, made once.
pub(crate) fn job_key() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os("SOJOURN_KEY_FILE").is_none() {
            let file = key_file(&"5a".repeat(32));
            // SAFETY: here the environment is read through the standard library only, which locks.
            unsafe { std::env::set_var("SOJOURN_KEY_FILE", file) };
        }
    });
}

/// Attributes of a connection; tests change what they are about.
pub(crate) fn attributes(to: &Address) -> QpAttr {
    QpAttr {
        path_mtu: abi::mtu::MTU_1024,
        dest_qp_num: to.qpn,
        rq_psn: 0x1234,
        sq_psn: 0x1234,
        max_dest_rd_atomic: 4,
        max_rd_atomic: 4,
        min_rnr_timer: 1,
        timeout: 12,
        retry_cnt: 3,
        rnr_retry: 7,
        port_num: 1,
        qp_access_flags: ALL,
        qkey: 0x1111,
        ah_attr: to.vector(),
        ..QpAttr::default()
    }
}

pub(crate) fn modify(qp: &dyn DeviceQp, state: u32, attr: &QpAttr, mask: u32) {
    qp.modify(&QpAttr { qp_state: state, ..*attr }, mask | m::STATE).unwrap();
}

/// INIT with these attributes.
pub(crate) fn to_init(qp: &dyn DeviceQp, attr: &QpAttr) {
    let key = if qp.qp_type() == abi::qp_type::UD { m::QKEY } else { m::ACCESS_FLAGS };
    modify(qp, qp_state::INIT, attr, m::PKEY_INDEX | m::PORT | key);
}

/// RTR and RTS with these attributes.
pub(crate) fn bring_up(qp: &dyn DeviceQp, attr: &QpAttr) {
    use abi::qp_type::{RC, UC};
    let kind = qp.qp_type();
    let connected = m::AV | m::PATH_MTU | m::DEST_QPN | m::RQ_PSN;
    let rtr = match kind {
        RC => connected | m::MAX_DEST_RD_ATOMIC | m::MIN_RNR_TIMER,
        UC => connected,
        _ => 0,
    };
    modify(qp, qp_state::RTR, attr, rtr);
    let rts = match kind {
        RC => m::TIMEOUT | m::RETRY_CNT | m::RNR_RETRY | m::SQ_PSN | m::MAX_QP_RD_ATOMIC,
        _ => m::SQ_PSN,
    };
    modify(qp, qp_state::RTS, attr, rts);
}

impl End {
    pub(crate) fn new(setup: &Setup) -> End {
        let mut options = setup.options;
        if options.addr.is_some() {
            options.lid = far().lid;
        }
        let context = open_with("soft0", options).unwrap();
        End::in_context(context, setup)
    }

    pub(crate) fn in_context(context: Arc<dyn DeviceContext>, setup: &Setup) -> End {
        let pd = Arc::clone(&context).alloc_pd(PdInit::default()).unwrap();
        let cq =
            Arc::clone(&context).create_cq(CqInit { cqe: setup.cqe, ..CqInit::default() }).unwrap();
        let srq = setup.srq.map(|attr| {
            Arc::clone(&pd).create_srq(sojourn_fabric::device::SrqInit { attr, user: 77 }).unwrap()
        });
        let init = QpInit {
            qp_type: setup.qp_type,
            cap: setup.cap,
            sq_sig_all: false,
            send_cq: Arc::clone(&cq),
            recv_cq: Arc::clone(&cq),
            srq: srq.clone(),
        };
        let qp = Arc::clone(&pd).create_qp(&init).unwrap();
        let memory = Memory::new(setup.memory);
        // SAFETY: the memory is never unmapped, and accessed as `Memory` does.
        let mr =
            unsafe { Arc::clone(&pd).reg_mr(memory.at.cast(), memory.len, setup.access).unwrap() };
        let nobody = Address { qpn: 0, lid: 0, addr: 0, rkey: 0, gid: abi::Gid::default() };
        to_init(&*qp, &attributes(&nobody));
        End { context, pd, cq, srq, qp, mr, memory }
    }

    pub(crate) fn address(&self) -> Address {
        Address {
            qpn: self.qp.qp_num(),
            lid: self.context.query_port(1).unwrap().lid,
            addr: self.memory.addr(),
            rkey: self.mr.rkey(),
            gid: self.context.query_gid(1, 0).unwrap(),
        }
    }

    pub(crate) fn connect(&self, to: &Address) {
        bring_up(&*self.qp, &attributes(to));
    }

    pub(crate) fn sge(&self, from: usize, len: u32) -> Sge {
        Sge { addr: self.memory.addr() + from as u64, length: len, lkey: self.mr.lkey() }
    }

    pub(crate) fn recv(&self, wr_id: u64, from: usize, len: u32) -> Result<(), i32> {
        post_recv(&*self.qp, wr_id, &mut [self.sge(from, len)])
    }

    pub(crate) fn post(&self, wr: SendWr, from: usize, len: u32) -> Result<(), i32> {
        post_send(&*self.qp, wr, &mut [self.sge(from, len)])
    }

    pub(crate) fn send(&self, wr_id: u64, from: usize, len: u32) {
        self.post(send(wr_id), from, len).unwrap();
    }

    pub(crate) fn write(&self, wr_id: u64, from: usize, len: u32, to: &Address, at: u64) {
        self.post(rdma(abi::wr_opcode::RDMA_WRITE, wr_id, to, at), from, len).unwrap();
    }

    pub(crate) fn read(&self, wr_id: u64, from: usize, len: u32, to: &Address, at: u64) {
        self.post(rdma(abi::wr_opcode::RDMA_READ, wr_id, to, at), from, len).unwrap();
    }

    /// The next completion, which must come.
    pub(crate) fn wait(&self) -> Wc {
        wait(&*self.cq)
    }

    /// The next completion, which must be a success.
    pub(crate) fn success(&self) -> Wc {
        let wc = self.wait();
        assert_eq!(abi::wc_status::name(wc.status), "SUCCESS", "{wc:?}");
        wc
    }

    /// No completion is there.
    pub(crate) fn nothing(&self) {
        let mut wc = [Wc::default()];
        assert_eq!(self.cq.poll(&mut wc), Ok(0), "{wc:?}");
    }

    pub(crate) fn to_error(&self) {
        modify(&*self.qp, qp_state::ERR, &QpAttr::default(), 0);
    }

    pub(crate) fn state(&self) -> &'static str {
        qp_state::name(self.qp.query(m::STATE).unwrap().qp_state)
    }
}

/// A signalled SEND.
pub(crate) fn send(wr_id: u64) -> SendWr {
    SendWr { wr_id, send_flags: abi::send_flags::SIGNALED, ..SendWr::empty() }
}

/// A signalled one-sided request.
pub(crate) fn rdma(opcode: u32, wr_id: u64, to: &Address, at: u64) -> SendWr {
    let mut wr = SendWr { opcode, ..send(wr_id) };
    wr.wr.rdma = abi::RdmaWr { remote_addr: to.addr + at, rkey: to.rkey };
    wr
}

pub(crate) fn post_send(qp: &dyn DeviceQp, mut wr: SendWr, sges: &mut [Sge]) -> Result<(), i32> {
    (wr.sg_list, wr.num_sge) = (sges.as_mut_ptr(), sges.len() as i32);
    // SAFETY: a list of one, with its gather list; the memory is registered for good.
    unsafe { qp.post_send(&mut wr) }.map_err(|error| error.errno())
}

pub(crate) fn post_recv(qp: &dyn DeviceQp, wr_id: u64, sges: &mut [Sge]) -> Result<(), i32> {
    let mut wr = RecvWr {
        wr_id,
        next: std::ptr::null_mut(),
        sg_list: sges.as_mut_ptr(),
        num_sge: sges.len() as i32,
    };
    // SAFETY: as above.
    unsafe { qp.post_recv(&mut wr) }.map_err(|error| error.errno())
}

pub(crate) fn post_srq(srq: &dyn DeviceSrq, wr_id: u64, sges: &mut [Sge]) -> Result<(), i32> {
    let mut wr = RecvWr {
        wr_id,
        next: std::ptr::null_mut(),
        sg_list: sges.as_mut_ptr(),
        num_sge: sges.len() as i32,
    };
    // SAFETY: as above.
    unsafe { srq.post_recv(&mut wr) }.map_err(|error| error.errno())
}

pub(crate) fn wait(cq: &dyn DeviceCq) -> Wc {
    let deadline = Instant::now() + PATIENCE;
    let mut wcs = [Wc::default()];
    loop {
        if cq.poll(&mut wcs).unwrap() == 1 {
            return wcs[0];
        }
        assert!(Instant::now() < deadline, "no completion");
        std::thread::yield_now();
    }
}

/// Two endpoints in contexts of their own, in this process, connected.
pub(crate) fn pair(setup: &Setup) -> (End, End) {
    let (a, b) = (End::new(setup), End::new(setup));
    a.connect(&b.address());
    b.connect(&a.address());
    (a, b)
}

/// Waits until `holds`, which must come to pass.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Another process: this test binary again, in the role that its test `helper` plays. The two
/// speak in lines.
pub(crate) struct Other {
    pub(crate) child: Child,
    input: ChildStdin,
    lines: std::sync::mpsc::Receiver<String>,
}

const MARK: &str = "@@";

impl Other {
    pub(crate) fn start(role: &str, env: &[(&str, &str)]) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper", "--nocapture", "--test-threads=1"])
            .env("SOFT_TEST_ROLE", role)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, said)) = line.split_once(MARK) {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Other { child, input, lines }
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub(crate) fn hear(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the other process says nothing")
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: our own child, not reaped yet.
        assert_eq!(unsafe { libc::kill(self.pid(), signal) }, 0);
    }

    /// Waits until it is stopped, with all of its threads.
    pub(crate) fn stopped(&self) {
        until("the other process stops", || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            threads.map(|thread| thread.unwrap().path().join("stat")).all(|stat| {
                let stat = std::fs::read_to_string(stat).unwrap();
                stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
            })
        });
    }

    /// Exchanges addresses and connects both ends.
    pub(crate) fn connect(&mut self, end: &End) -> Address {
        let theirs = Address::parse(&self.hear());
        self.tell(&end.address().text());
        end.connect(&theirs);
        assert_eq!(self.hear(), "connected");
        theirs
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role of this process, if it is another's helper.
pub(crate) fn role() -> Option<String> {
    std::env::var("SOFT_TEST_ROLE").ok()
}

pub(crate) fn say(line: &str) {
    println!("{MARK}{line}");
    std::io::stdout().flush().unwrap();
}

pub(crate) fn listen() -> String {
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line).unwrap() == 0 {
        // Nobody is left to help.
        std::process::exit(0);
    }
    line.trim().to_owned()
}

/// The helper's half of [`Other::connect`].
pub(crate) fn meet(end: &End) -> Address {
    say(&end.address().text());
    let theirs = Address::parse(&listen());
    end.connect(&theirs);
    say("connected");
    theirs
}
