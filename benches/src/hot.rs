//! The hot loops: post and poll of 64 bytes over the device that completes at once.

use crate::null::NullDevice;
use sojourn_fabric::Result;
use sojourn_fabric::abi::{QpCap, RdmaWr, RecvWr, SendWr, Sge, Wc, access, send_flags, wr_opcode};
use sojourn_fabric::device::{DeviceCq, DeviceQp};
use sojourn_fabric::virt::core::Translation;
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Evidence, MemoryRegion, Policy, Process, QpOptions,
    QueuePair,
};
use std::hint::black_box;
use std::sync::Arc;

/// Which verbs are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The device's own.
    Raw,
    /// Virtual ones over it.
    Virtual,
    /// The same where the peer wants records of how far it has come.
    Recording,
    /// The same where it is recorded what devices write.
    Tracking,
}

/// Whether locks are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Single-threaded objects: no lock anywhere.
    One,
    /// As verbs are by default.
    Many,
}

/// The request that is posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// RDMA WRITE of 64 bytes.
    Write,
    /// SEND of 64 bytes.
    Send,
    /// RDMA READ of 64 bytes.
    Read,
    /// A receive of 64 bytes.
    Recv,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 4] = [Verb::Write, Verb::Send, Verb::Read, Verb::Recv];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verb::Write => "WRITE",
            Verb::Send => "SEND",
            Verb::Read => "READ",
            Verb::Recv => "RECV",
        }
    }
}

/// Bytes of the longest payload that queue pairs of stages take inline.
pub const PAYLOAD: usize = 512;

/// How a payload goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// From where it is.
    Named,
    /// Inline: the window keeps a copy.
    Inline,
}

/// A queue pair connected to itself, ready to post and poll.
pub struct Stage {
    qp: Arc<dyn DeviceQp>,
    cq: Arc<dyn DeviceCq>,
    sge: Sge,
    remote: (u64, u32),
    // What the above refers to, dropped after it.
    _owners: (QueuePair, CompletionQueue, MemoryRegion, Context, Option<Process>),
}

impl Stage {
    /// Sets up a queue pair of `layer`.
    ///
    /// # Errors
    /// Where any of it cannot be created.
    pub fn new(layer: Layer, threads: Threads) -> Result<Self> {
        let device = NullDevice::open()?;
        let (context, process) = match layer {
            Layer::Raw => (Context::over(device), None),
            Layer::Virtual | Layer::Recording | Layer::Tracking => {
                let evidence = match layer {
                    Layer::Recording => Evidence::Record,
                    _ => Evidence::Psn,
                };
                let process = Process::standalone()?;
                let tracking = layer == Layer::Tracking;
                let policy = Policy { evidence, tracking, ..Policy::default() };
                (process.open_with(device, policy)?, Some(process))
            }
        };
        let (pd, cq) = match threads {
            Threads::Many => (context.alloc_pd()?, context.create_cq(256)?),
            // SAFETY: a stage is used by the one thread that calls its loops (`&mut self`).
            Threads::One => unsafe {
                (context.alloc_pd_single_threaded()?, context.create_cq_single_threaded(256)?)
            },
        };
        let memory =
            pd.register(4096, access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ)?;
        let rc = QpOptions::rc(&cq);
        let cap = QpCap { max_inline_data: PAYLOAD as u32, ..rc.cap };
        let qp = pd.create_qp(&QpOptions { cap, ..rc })?;
        qp.connect(&qp.endpoint()?, &ConnectOptions::default())?;
        let remote = memory.remote(0);
        let mut stage = Stage {
            qp: Arc::clone(qp.device()),
            cq: Arc::clone(cq.device()),
            sge: memory.slice(64..128),
            remote: (remote.addr, remote.rkey),
            _owners: (qp, cq, memory, context, process),
        };
        // Whatever is fetched on first use is fetched here.
        for verb in Verb::ALL {
            stage.run(verb, 64);
        }
        Ok(stage)
    }

    /// Posts and polls `n` requests, one at a time.
    ///
    /// # Panics
    /// Where a post is refused or a completion is not a success.
    #[inline(never)]
    pub fn run(&mut self, verb: Verb, n: u64) {
        let mut wc = [Wc::default()];
        let mut sge = self.sge;
        let mut send = SendWr::empty();
        send.opcode = match verb {
            Verb::Write => wr_opcode::RDMA_WRITE,
            Verb::Read => wr_opcode::RDMA_READ,
            Verb::Send | Verb::Recv => wr_opcode::SEND,
        };
        send.send_flags = send_flags::SIGNALED;
        send.sg_list = &raw mut sge;
        send.num_sge = 1;
        let (remote_addr, rkey) = self.remote;
        send.wr.rdma = RdmaWr { remote_addr, rkey };
        let mut recv =
            RecvWr { wr_id: 0, next: std::ptr::null_mut(), sg_list: &raw mut sge, num_sge: 1 };
        for i in 0..n {
            let posted = if verb == Verb::Recv {
                recv.wr_id = i;
                // SAFETY: a list of one whose element lives through the call.
                unsafe { self.qp.post_recv(black_box(&raw mut recv)) }.is_ok()
            } else {
                send.wr_id = i;
                // SAFETY: as above.
                unsafe { self.qp.post_send(black_box(&raw mut send)) }.is_ok()
            };
            assert!(posted, "{} {i} was refused", verb.name());
            while self.cq.poll(black_box(&mut wc)) == Ok(0) {
                std::hint::spin_loop();
            }
            assert!(wc[0].status == 0 && wc[0].wr_id == i, "{} {i}: {:?}", verb.name(), wc[0]);
        }
    }
}

impl Stage {
    /// Posts and polls `n` SENDs of `length` bytes, [`PAYLOAD`] at most, one at a time.
    ///
    /// # Panics
    /// Where a post is refused or a completion is not a success.
    #[inline(never)]
    pub fn run_payload(&mut self, payload: Payload, length: usize, n: u64) {
        let mut wc = [Wc::default()];
        let mut sge = Sge { length: length as u32, ..self.sge };
        let mut send = SendWr::empty();
        send.opcode = wr_opcode::SEND;
        let inline = if payload == Payload::Inline { send_flags::INLINE } else { 0 };
        send.send_flags = send_flags::SIGNALED | inline;
        send.sg_list = &raw mut sge;
        send.num_sge = 1;
        for i in 0..n {
            send.wr_id = i;
            // SAFETY: a list of one whose element and payload live through the call.
            let posted = unsafe { self.qp.post_send(black_box(&raw mut send)) };
            assert!(posted.is_ok(), "SEND {i} was refused");
            while self.cq.poll(black_box(&mut wc)) == Ok(0) {
                std::hint::spin_loop();
            }
            assert!(wc[0].status == 0 && wc[0].wr_id == i, "SEND {i}: {:?}", wc[0]);
        }
    }
}

/// Copies of a payload into a ring of as many places as a send queue of a stage has: what an inline
/// payload costs at least.
pub struct Copies {
    from: [u8; PAYLOAD],
    ring: Vec<[u8; PAYLOAD]>,
}

impl Copies {
    /// Places of the ring, a power of two.
    const PLACES: usize = 128;

    /// An empty ring.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "there is nothing default about 128 places")]
    pub fn new() -> Self {
        Copies { from: [7; PAYLOAD], ring: vec![[0; PAYLOAD]; Self::PLACES] }
    }

    /// Copies `n` payloads of `length` bytes, which the compiler does not know.
    ///
    /// # Panics
    /// Where that is longer than [`PAYLOAD`].
    #[inline(never)]
    pub fn run(&mut self, length: usize, n: u64) {
        for i in 0..n {
            let length = black_box(length);
            let place = &mut self.ring[i as usize % Self::PLACES];
            place[..length].copy_from_slice(&black_box(&self.from)[..length]);
            black_box(place);
        }
    }
}

/// A request's two keys, from the program's copy of it to the device's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keys {
    /// Of the element.
    pub lkey: u32,
    /// Of the target.
    pub rkey: u32,
}

/// Names alone: copies of requests, translated on their way or not.
pub struct Names {
    tables: Translation,
    from: Vec<Keys>,
    to: Vec<Keys>,
}

impl Names {
    /// As many regions as a program of some size has, used in turn.
    const REGIONS: u32 = 64;

    /// Fills the tables.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "there is nothing default about 64 regions")]
    pub fn new() -> Self {
        let key = |i: u32| Translation::key(i % Self::REGIONS);
        let from = (0..Self::REGIONS).map(|i| Keys { lkey: key(i), rkey: key(i * 7) }).collect();
        let to = vec![Keys::default(); Self::REGIONS as usize];
        Names { tables: Translation::new(Self::REGIONS), from, to }
    }

    /// Copies `n` rounds of requests with physical names.
    ///
    /// # Panics
    /// Where a name stands for nothing.
    #[inline(never)]
    pub fn translate(&mut self, n: u64) {
        for _ in 0..n {
            for (from, to) in black_box(&self.from).iter().zip(&mut self.to) {
                let found = self.tables.look_up(from.lkey, from.rkey);
                let (lkey, rkey) = found.expect("a name that was put in");
                *to = Keys { lkey, rkey };
            }
            black_box(&mut self.to);
        }
    }

    /// Copies `n` rounds of requests as they are.
    #[inline(never)]
    pub fn copy(&mut self, n: u64) {
        for _ in 0..n {
            for (from, to) in black_box(&self.from).iter().zip(&mut self.to) {
                *to = *from;
            }
            black_box(&mut self.to);
        }
    }

    /// Requests of a round.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.from.len() as u64
    }
}

/// The time stamp counter.
#[must_use]
pub fn cycles() -> u64 {
    // SAFETY: every x86-64 has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}
