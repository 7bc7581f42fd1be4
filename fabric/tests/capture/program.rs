//! A program of chance that talks to itself, over any context: so that what it does after a restore can be
//! held against what it does undisturbed.
//!
//! What it does depends on its seed alone. Every request has memory of its own, and every queue pair's
//! completions an order of their own: so completions by queue pair, and memory, are the same however
//! long anything takes.

use sojourn_fabric::abi::{SrqAttr, Wc, access, mtu, wc_opcode, wc_status};
use sojourn_fabric::virt::{
    AddressHandle, CompletionChannel, CompletionQueue, ConnectOptions, Context, Datagram,
    MemoryRegion, Op, ProtectionDomain, QpOptions, QueuePair, Remote, Restored, SendRequest,
    SharedReceiveQueue,
};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Far above what anything takes on a loaded machine; reached only by failures.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const ALL: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

/// Bytes of each piece of memory, and pieces of each area.
const PIECE: usize = 1024;
const PIECES: usize = 256;
const AREA: usize = PIECE * PIECES;
/// Areas: what is sent, what is received, what others write to, what is read.
const SOURCE: usize = 0;
const INBOX: usize = AREA;
const TARGET: usize = 2 * AREA;
const BACK: usize = 3 * AREA;
pub(crate) const BYTES: usize = 4 * AREA;
/// Requests and receives that fit into each queue.
const DEPTH: u32 = 256;
/// Bytes in front of a datagram.
const GRH: usize = 40;

/// Queue pairs: two that are connected, two of which the second shares its receives, one that is connected
/// to itself, one for datagrams.
const QPS: usize = 6;
const PEER: [usize; QPS] = [1, 0, 3, 2, 4, 5];
const LOOP: usize = 4;
const DATAGRAMS: usize = 5;
/// The one that sends to the shared receive queue, and the one on it.
const TO_SHARED: usize = 2;
const SHARED: usize = 3;

/// Splitmix64.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A completion: queue pair, receive, wr_id, status, opcode, length, immediate data, flags, sender.
pub(crate) type Done = (usize, bool, u64, u32, u32, u32, u32, u32, u32);

/// Memory of the process's own where nothing else is put: far below where the kernel maps what is asked for
/// anywhere, so that nobody takes its place while it is gone.
pub(crate) fn map_at(addr: Option<u64>, length: usize) -> NonNull<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0x2000_0000_0000);
    let addr = addr.unwrap_or_else(|| NEXT.fetch_add(1 << 30, Ordering::Relaxed));
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
    );
    // SAFETY: where nothing is mapped, or it fails.
    let at = unsafe { libc::mmap(addr as *mut libc::c_void, length, prot, flags, -1, 0) };
    assert_eq!(at as u64, addr, "{}", std::io::Error::last_os_error());
    NonNull::new(at.cast()).unwrap()
}

/// A region there.
pub(crate) fn adopt(pd: &ProtectionDomain, length: usize) -> MemoryRegion {
    // SAFETY: mapped just now, for this alone.
    unsafe { pd.adopt(map_at(None, length), length, ALL) }.unwrap()
}

/// What the program holds.
pub(crate) struct Rig {
    pub(crate) context: Context,
    _pd: ProtectionDomain,
    pub(crate) memory: MemoryRegion,
    channel: CompletionChannel,
    cqs: [CompletionQueue; 2],
    srq: SharedReceiveQueue,
    pub(crate) qps: Vec<QueuePair>,
    ah: AddressHandle,
}

impl Rig {
    pub(crate) fn new(context: Context) -> Rig {
        let pd = context.alloc_pd().unwrap();
        // Names that are not the first of all.
        drop(pd.register(64, ALL).unwrap());
        let memory = adopt(&pd, BYTES);
        let mut chance = Chance(7);
        let source: Vec<u8> = (0..AREA).map(|_| chance.next() as u8).collect();
        memory.write(SOURCE, &source);
        let channel = context.create_channel().unwrap();
        let cqs = [0, 1].map(|user| context.create_cq_on(16, &channel, user).unwrap());
        drop(pd.create_qp(&QpOptions::rc(&cqs[0])).unwrap());
        let attr = SrqAttr { max_wr: DEPTH, max_sge: 2, srq_limit: 0 };
        let srq = pd.create_srq(attr, 9).unwrap();
        let new = |at: usize| {
            let mut options = match at {
                DATAGRAMS => QpOptions::ud(&cqs[0]),
                _ => QpOptions::rc(&cqs[0]),
            };
            options.recv_cq = &cqs[1];
            (options.cap.max_send_wr, options.cap.max_recv_wr) = (DEPTH, DEPTH);
            options.srq = (at == SHARED).then_some(&srq);
            pd.create_qp(&options).unwrap()
        };
        let qps: Vec<QueuePair> = (0..QPS).map(new).collect();
        let options = ConnectOptions { path_mtu: Some(mtu::MTU_256), ..ConnectOptions::default() };
        for at in 0..QPS {
            match at {
                DATAGRAMS => qps[at].activate(&options).unwrap(),
                _ => qps[at].connect(&qps[PEER[at]].endpoint().unwrap(), &options).unwrap(),
            }
        }
        let ah = pd.create_ah(&qps[DATAGRAMS].endpoint().unwrap()).unwrap();
        Rig { context, _pd: pd, memory, channel, cqs, srq, qps, ah }
    }

    /// The same, from what was captured.
    pub(crate) fn again(mut restored: Restored) -> Rig {
        let key = restored.regions().next().unwrap().key;
        let qpns: Vec<u32> = restored.queue_pairs().collect();
        Rig {
            context: restored.context(),
            _pd: restored.protection_domain(0).unwrap(),
            memory: restored.take_region(key).unwrap(),
            channel: restored.completion_channel(0).unwrap(),
            cqs: [0, 1].map(|user| restored.completion_queue_of(user).unwrap()),
            srq: restored.shared_receive_queue_of(9).unwrap(),
            qps: qpns.iter().map(|qpn| restored.queue_pair(*qpn).unwrap()).collect(),
            ah: restored.address_handle(0).unwrap(),
        }
    }

    /// All names that it knows.
    pub(crate) fn names(&self) -> Vec<u64> {
        let end = self.qps[0].endpoint().unwrap();
        let mut names = vec![end.lid.into(), self.memory.rkey().into(), self.memory.addr()];
        names.extend(end.gid.0.map(u64::from));
        names.extend(self.qps.iter().map(|qp| u64::from(qp.qp_num())));
        names
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; BYTES];
        self.memory.read(0, &mut bytes);
        bytes
    }
}

/// How far the program has come.
#[derive(Default)]
pub(crate) struct Program {
    chance: u64,
    step: usize,
    /// Receives posted to each queue pair, and messages sent to it.
    receives: [usize; QPS],
    messages: [usize; QPS],
    inbox: usize,
    /// Requests of each that bring a completion.
    signaled: [usize; QPS],
    /// The last piece that each has written to.
    written: [usize; QPS],
    pub(crate) done: Vec<Done>,
}

impl Program {
    pub(crate) fn new(seed: u64) -> Program {
        Program { chance: seed, ..Program::default() }
    }

    /// One more step. Without a rig: as if it had been done.
    pub(crate) fn step(&mut self, rig: Option<&Rig>) {
        let mut chance = Chance(self.chance.wrapping_mul(1000).wrapping_add(self.step as u64));
        self.step += 1;
        match chance.below(20) {
            0..=3 => self.receive(rig, chance.below(QPS as u64) as usize),
            4..=6 => {
                self.poll(rig, chance.below(2) as usize, 1 + chance.below(4) as usize);
            }
            7 => {
                if let Some(rig) = rig {
                    rig.cqs[chance.below(2) as usize].req_notify(chance.below(2) == 0).unwrap();
                }
            }
            8 => {
                if let Some(rig) = rig {
                    let _ = rig.channel.wait(Instant::now()).unwrap();
                }
            }
            _ => {
                let mut at = chance.below(QPS as u64) as usize;
                if at == SHARED {
                    at = TO_SHARED;
                }
                match at {
                    DATAGRAMS => self.datagram(rig),
                    _ => self.request(rig, at, &mut chance),
                }
            }
        }
    }

    fn receive(&mut self, rig: Option<&Rig>, at: usize) {
        if self.inbox >= PIECES {
            return;
        }
        let from = INBOX + self.inbox * PIECE;
        let id = self.inbox as u64;
        self.inbox += 1;
        self.receives[at] += 1;
        let Some(rig) = rig else { return };
        let sges = [rig.memory.slice(from..from + 600), rig.memory.slice(from + 600..from + PIECE)];
        match at {
            SHARED => rig.srq.post_recv(id, &sges).unwrap(),
            _ => rig.qps[at].post_recv(id, &sges).unwrap(),
        }
    }

    fn poll(&mut self, rig: Option<&Rig>, cq: usize, most: usize) -> usize {
        let Some(rig) = rig else { return 0 };
        let mut wcs = [Wc::default(); 8];
        let n = rig.cqs[cq].poll(&mut wcs[..most]).unwrap();
        for wc in &wcs[..n] {
            let at = rig.qps.iter().position(|qp| qp.qp_num() == wc.qp_num).unwrap();
            let recv = wc.opcode & wc_opcode::RECV != 0;
            assert_eq!(recv, cq == 1);
            // What is defined of it.
            let length = if recv { wc.byte_len } else { 0 };
            let from = if recv { wc.src_qp } else { 0 };
            let imm = if wc.wc_flags & 2 != 0 { wc.imm_data } else { 0 };
            let flags = wc.wc_flags;
            self.done.push((at, recv, wc.wr_id, wc.status, wc.opcode, length, imm, flags, from));
        }
        n
    }

    fn datagram(&mut self, rig: Option<&Rig>) {
        // One without a receive would be lost.
        if self.messages[DATAGRAMS] >= self.receives[DATAGRAMS] {
            return;
        }
        self.messages[DATAGRAMS] += 1;
        self.signaled[DATAGRAMS] += 1;
        let (id, from) = (self.step as u64, SOURCE + self.step % PIECES * PIECE);
        let Some(rig) = rig else { return };
        let qp = &rig.qps[DATAGRAMS];
        let qkey = ConnectOptions::default().qkey;
        let to = Datagram { ah: &rig.ah, qpn: qp.qp_num(), qkey };
        let sge = [rig.memory.slice(from..from + PIECE / 8 - GRH)];
        qp.post_send(&SendRequest::new(id, Op::SendImm(7), &sge).to(to)).unwrap();
    }

    fn request(&mut self, rig: Option<&Rig>, at: usize, chance: &mut Chance) {
        let piece = self.step % PIECES;
        let (id, from) = (self.step as u64, SOURCE + piece * PIECE);
        let mut length = 1 + chance.below(PIECE as u64) as usize;
        let kind = chance.below(8);
        let (quiet, inline) = (chance.below(2) == 0, chance.below(2) == 0);
        let (value, solicited) = (chance.next(), chance.below(4) == 0);
        if inline {
            length = length.min(64);
        }
        let is_message = matches!(kind, 0 | 1 | 2 | 4);
        self.messages[PEER[at]] += usize::from(is_message);
        self.signaled[at] += usize::from(!quiet);
        let target = TARGET + piece * PIECE;
        let read = TARGET + self.written[at] * PIECE;
        if matches!(kind, 3 | 4) {
            self.written[at] = piece;
        }
        let Some(rig) = rig else { return };
        let remote = |offset: usize| rig.memory.remote(offset);
        // A word of its own in front of the first target, which nobody else writes to.
        let word: Remote = remote(TARGET + AREA - 64 + 8 * at);
        let op = match kind {
            0 | 1 => Op::Send,
            2 => Op::SendImm(value as u32),
            3 => Op::Write(remote(target)),
            4 => Op::WriteImm(remote(target), value as u32),
            5 => Op::Read(remote(read)),
            6 => Op::FetchAdd(word, value),
            _ => Op::CompareSwap(word, value, 3),
        };
        let back = BACK + piece * PIECE;
        let sges = match kind {
            5 => vec![rig.memory.slice(back..back + length)],
            6 | 7 => vec![rig.memory.slice(back..back + 8)],
            _ => {
                let cut = from + length / 3;
                vec![rig.memory.slice(from..cut), rig.memory.slice(cut..from + length)]
            }
        };
        let mut bytes = vec![0; length];
        rig.memory.read(from, &mut bytes);
        let mut request = match inline && kind < 5 {
            true => SendRequest::inline(id, op, &bytes),
            false => SendRequest::new(id, op, &sges),
        };
        request.solicited = solicited && is_message;
        if quiet {
            request = request.unsignaled();
        }
        rig.qps[at].post_send(&request).unwrap();
        // Copied by now.
        bytes.fill(0xee);
    }

    /// What is missing for everything to end, and its end.
    pub(crate) fn finish(&mut self, rig: &Rig) {
        for at in 0..QPS {
            while self.receives[at] < self.messages[at] {
                self.inbox %= PIECES - 1;
                self.receive(Some(rig), at);
            }
        }
        let deadline = Instant::now() + LONG;
        loop {
            let n = self.poll(Some(rig), 0, 8) + self.poll(Some(rig), 1, 8);
            let count = |at: usize, recv: bool| {
                self.done.iter().filter(|it| (it.0, it.1) == (at, recv)).count()
            };
            let all = (0..QPS).all(|at| {
                count(at, false) >= self.signaled[at] && count(at, true) >= self.messages[at]
            });
            if all && n == 0 {
                break;
            }
            let missing = || -> Vec<_> {
                let of =
                    |at| (count(at, false), self.signaled[at], count(at, true), self.messages[at]);
                (0..QPS).map(of).collect()
            };
            assert!(Instant::now() < deadline, "what is posted does not end: {:?}", missing());
        }
        // The last are not signalled: another request, and its completion, says that they are through.
        for at in [0, 1, TO_SHARED, LOOP] {
            rig.qps[at]
                .post_send(&SendRequest::new(9999, Op::Write(rig.memory.remote(TARGET)), &[]))
                .unwrap();
        }
        let before = self.done.len();
        while self.done.len() < before + 4 {
            self.poll(Some(rig), 0, 8);
            assert!(Instant::now() < deadline, "the last request does not end");
        }
        assert!(self.done.iter().all(|it| it.3 == wc_status::SUCCESS), "{:?}", self.done);
    }

    /// Completions, queue by queue.
    pub(crate) fn sorted(&self) -> Vec<Done> {
        let mut done = self.done.clone();
        // Stable: each queue keeps its order.
        done.sort_by_key(|it| (it.0, it.1));
        done
    }
}
