//! What is tried.
//!
//! For each path MTU up to the port's:
//!
//! | case | the number must |
//! | --- | --- |
//! | each opcode, of no bytes, of one packet, of three | have grown by the packets of it |
//! | many of all kinds at once | have grown by those of all |
//! | a SEND that finds no receive | stay, until there is one |
//! | a WRITE with a wrong key, between good ones | stop before it |
//! | ERR amid many WRITEs, then the barrier | be as many packets as have landed in memory, and stay |
//!
//! The first pair's numbers pass the end of the 24 bits.

use super::Verdict;
use crate::abi::{
    self, AhAttr, GlobalRoute, QpAttr, QpCap, Wc, access, atomic_cap, qp_mask, qp_state, wc_status,
};
use crate::device::DeviceContext;
use crate::error::{Error, Result};
use crate::virt::{
    CompletionQueue, Context, MemoryRegion, Op, ProtectionDomain, QpOptions, QueuePair, Remote,
    SendRequest,
};
use sojourn_logging::{Opcode, packets};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The port that is tried: the driver is the same for all.
const PORT: u8 = 1;
/// Bytes at each end: more than three packets of the largest path MTU. (Together less than what may be
/// pinned anywhere.)
const HALF: usize = 16 << 10;
/// Packets of a request of several.
const SEVERAL: usize = 3;
/// Bytes of an atomic.
const WORD: usize = 8;
/// The first number of the first pair: a few packets before the end.
const NEAR_THE_END: u32 = 0x00ff_fff5;
/// Of the others.
const ELSEWHERE: u32 = 0x005a_5a5a;
/// Requests of a load.
const MANY: usize = 24;
/// Receives that wait at the other end.
const RECEIVES: u64 = 8;
/// Time in which a number that should stay could go astray.
const REST: Duration = Duration::from_millis(2);
/// Times that a stream of WRITEs is cut, each a little later than the one before.
const CUTS: u32 = 3;
/// Between two cuts.
const LATER: Duration = Duration::from_micros(100);
/// Identifies receives.
const RECV: u64 = 1 << 63;
/// A byte that memory does not hold until something has landed there.
const MARK: u8 = 0xa5;

/// Why it does not go on.
enum Stop {
    /// The number is not live.
    NotLive(Verdict),
    /// The trial cannot be made.
    Unable(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Unable(error)
    }
}

type Step<T = ()> = std::result::Result<T, Stop>;

/// Runs all cases within that time.
///
/// # Errors
/// Where they cannot be run.
pub(super) fn run(device: &Arc<dyn DeviceContext>, patience: Duration) -> Result<Verdict> {
    let doing = || format!("trying the packet number of {}", device.name());
    let tried = Trial::new(device, patience).map_err(Stop::from).and_then(|trial| trial.all());
    match tried {
        Ok(()) => Ok(Verdict::Live),
        Err(Stop::NotLive(verdict)) => Ok(verdict),
        Err(Stop::Unable(error)) => Err(error.context(doing())),
    }
}

struct Trial {
    context: Context,
    pd: ProtectionDomain,
    memory: MemoryRegion,
    /// To the port itself.
    address: AhAttr,
    /// `ibv_mtu` of the port.
    mtu: u32,
    atomics: bool,
    until: Instant,
}

impl Trial {
    fn new(device: &Arc<dyn DeviceContext>, patience: Duration) -> Result<Self> {
        let context = Context::over(Arc::clone(device));
        let port = context.query_port(PORT)?;
        let index = device.best_gid_index(PORT)?;
        let address = AhAttr {
            dlid: port.lid,
            port_num: PORT,
            is_global: u8::from(device.addresses_by_gid(PORT)?),
            grh: GlobalRoute {
                dgid: device.query_gid(PORT, index)?,
                sgid_index: u8::try_from(index)
                    .map_err(|_| Error::invalid(format!("GID index {index} exceeds 255")))?,
                hop_limit: 64,
                ..GlobalRoute::default()
            },
            ..AhAttr::default()
        };
        let pd = context.alloc_pd()?;
        let all = access::LOCAL_WRITE
            | access::REMOTE_WRITE
            | access::REMOTE_READ
            | access::REMOTE_ATOMIC;
        let atomics = context.query_device()?.atomic_cap != atomic_cap::NONE;
        let flags = if atomics { all } else { all & !access::REMOTE_ATOMIC };
        let memory = pd.register(2 * HALF, flags)?;
        let (mtu, until) = (port.active_mtu, Instant::now() + patience);
        Ok(Trial { context, pd, memory, address, mtu, atomics, until })
    }

    fn all(&self) -> Step {
        for mtu in abi::mtu::MTU_256..=self.mtu {
            let first = if mtu == abi::mtu::MTU_256 { NEAR_THE_END } else { ELSEWHERE };
            self.pair(mtu, first)?.each_opcode()?;
            self.pair(mtu, ELSEWHERE)?.a_load()?;
            self.pair(mtu, ELSEWHERE)?.a_send_without_a_receive()?;
            self.pair(mtu, ELSEWHERE)?.a_wrong_key()?;
            for cut in 0..CUTS {
                self.pair(mtu, ELSEWHERE)?.a_cut(LATER * cut)?;
            }
        }
        Ok(())
    }

    fn pair(&self, mtu: u32, psn: u32) -> Step<Pair<'_>> {
        let cq = self.context.create_cq(256)?;
        let cap = QpCap {
            max_send_wr: 64,
            max_recv_wr: 32,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let create = || self.pd.create_qp(&QpOptions { cap, ..QpOptions::rc(&cq) });
        let (a, b) = (create()?, create()?);
        self.connect(&a, &b, mtu, psn)?;
        self.connect(&b, &a, mtu, psn)?;
        let (bytes, flushed) = (abi::mtu_bytes(mtu).unwrap_or(0), Cell::new(false));
        Ok(Pair { trial: self, a, b, cq, mtu: bytes, expected: psn, next: 0, receives: 0, flushed })
    }

    fn connect(&self, qp: &QueuePair, to: &QueuePair, mtu: u32, psn: u32) -> Result<()> {
        let remote = access::REMOTE_WRITE | access::REMOTE_READ;
        let atomic = if self.atomics { access::REMOTE_ATOMIC } else { 0 };
        let attr = QpAttr {
            port_num: PORT,
            qp_access_flags: remote | atomic,
            path_mtu: mtu,
            dest_qp_num: to.qp_num(),
            rq_psn: psn,
            sq_psn: psn,
            ah_attr: self.address,
            max_dest_rd_atomic: 1,
            max_rd_atomic: 1,
            // 0.6 ms: a receiver that is not ready is not asked more often.
            min_rnr_timer: 12,
            // 67 ms, six times: nothing is lost on the way to oneself.
            timeout: 14,
            retry_cnt: 6,
            rnr_retry: 7,
            ..QpAttr::default()
        };
        let steps = [
            (qp_state::INIT, qp_mask::PKEY_INDEX | qp_mask::PORT | qp_mask::ACCESS_FLAGS),
            (
                qp_state::RTR,
                qp_mask::AV
                    | qp_mask::PATH_MTU
                    | qp_mask::DEST_QPN
                    | qp_mask::RQ_PSN
                    | qp_mask::MAX_DEST_RD_ATOMIC
                    | qp_mask::MIN_RNR_TIMER,
            ),
            (
                qp_state::RTS,
                qp_mask::SQ_PSN
                    | qp_mask::TIMEOUT
                    | qp_mask::RETRY_CNT
                    | qp_mask::RNR_RETRY
                    | qp_mask::MAX_QP_RD_ATOMIC,
            ),
        ];
        for (qp_state, mask) in steps {
            qp.device().modify(&QpAttr { qp_state, ..attr }, mask | qp_mask::STATE)?;
        }
        Ok(())
    }
}

/// A receive that has come back from a queue pair at ERR.
fn is_flushed(wc: &Wc) -> bool {
    wc.wr_id & RECV != 0 && wc.status == wc_status::WR_FLUSH_ERR
}

/// Two queue pairs; the first sends, and the number is the second's.
struct Pair<'a> {
    trial: &'a Trial,
    a: QueuePair,
    b: QueuePair,
    cq: CompletionQueue,
    /// In bytes.
    mtu: u32,
    expected: u32,
    /// Identifier of the next request.
    next: u64,
    receives: u64,
    /// A receive has come back flushed.
    flushed: Cell<bool>,
}

impl Pair<'_> {
    fn there(&self) -> Remote {
        self.trial.memory.remote(HALF)
    }

    fn ops(&self) -> Vec<(Op, Opcode)> {
        let there = self.there();
        let mut ops = vec![
            (Op::Send, Opcode::Send),
            (Op::SendImm(1), Opcode::SendImm),
            (Op::Write(there), Opcode::Write),
            (Op::WriteImm(there, 1), Opcode::WriteImm),
            (Op::Read(there), Opcode::Read),
        ];
        if self.trial.atomics {
            ops.push((Op::FetchAdd(there, 1), Opcode::FetchAdd));
            ops.push((Op::CompareSwap(there, 0, 1), Opcode::CompareSwap));
        }
        ops
    }

    /// Posts a request, which the number is to count.
    fn post(&mut self, (op, opcode): (Op, Opcode), bytes: usize, signaled: bool) -> Step<u64> {
        let sge = [self.trial.memory.slice(0..bytes)];
        let sges = if bytes == 0 { &[][..] } else { &sge[..] };
        let id = self.next;
        self.next += 1;
        self.a.post_send(&SendRequest { signaled, ..SendRequest::new(id, op, sges) })?;
        self.count(packets(opcode, bytes as u64, self.mtu));
        Ok(id)
    }

    fn count(&mut self, packets: u64) {
        self.expected = (self.expected + packets as u32) & abi::MASK_24;
    }

    /// A receive waits at the other end.
    fn receive(&mut self) -> Step {
        let into = [self.trial.memory.slice(HALF..2 * HALF)];
        self.b.post_recv(RECV | self.receives, &into)?;
        self.receives += 1;
        Ok(())
    }

    /// The number is that which is expected.
    fn look(&self, case: &str) -> Step {
        let found = self.b.query()?.rq_psn;
        if found == self.expected { Ok(()) } else { Err(self.not_live(case, Some(found))) }
    }

    fn not_live(&self, case: &str, found: Option<u32>) -> Stop {
        let case = format!("{case} at a path MTU of {}", self.mtu);
        Stop::NotLive(Verdict::NotLive { case, expected: self.expected, found })
    }

    /// The next completion that `wanted` takes.
    fn wait(&self, case: &str, wanted: impl Fn(&Wc) -> bool) -> Step<Wc> {
        loop {
            let mut wcs = [Wc::default()];
            if self.cq.poll(&mut wcs)? == 0 {
                if Instant::now() >= self.trial.until {
                    return Err(self.not_live(case, None));
                }
                std::thread::yield_now();
                continue;
            }
            if is_flushed(&wcs[0]) {
                self.flushed.set(true);
            }
            if wanted(&wcs[0]) {
                return Ok(wcs[0]);
            }
        }
    }

    /// A request has succeeded.
    fn sent(&self, case: &str, id: u64) -> Step {
        let failed = |wc: &Wc| wc.wr_id & RECV == 0 && wc.status != wc_status::SUCCESS;
        let wc = self.wait(case, |wc| wc.wr_id == id || failed(wc))?;
        if failed(&wc) {
            let text = format!("{case}: {}", wc_status::name(wc.status));
            return Err(Error::new(libc::EIO, text).into());
        }
        Ok(())
    }

    /// What was posted to the other end has come back: it executes nothing more.
    fn barrier(&self, case: &str) -> Step {
        // It may have come while something else was waited for.
        if self.flushed.get() { Ok(()) } else { self.wait(case, is_flushed).map(drop) }
    }

    /// The number stays what it is.
    fn look_twice(&self, case: &str) -> Step {
        self.look(case)?;
        std::thread::sleep(REST);
        self.look(case)
    }

    fn each_opcode(mut self) -> Step {
        let mtu = self.mtu as usize;
        for (op, opcode) in self.ops() {
            let sizes: &[usize] = match opcode.is_atomic() {
                true => &[WORD],
                false => &[0, mtu, (SEVERAL - 1) * mtu + 1],
            };
            for &bytes in sizes {
                let case = format!("{opcode:?} of {bytes} B");
                if matches!(op, Op::Send | Op::SendImm(_) | Op::WriteImm(..)) {
                    self.receive()?;
                }
                let id = self.post((op, opcode), bytes, true)?;
                self.sent(&case, id)?;
                self.look(&case)?;
            }
        }
        Ok(())
    }

    fn a_load(mut self) -> Step {
        let case = "many requests at once";
        let (mtu, ops) = (self.mtu as usize, self.ops());
        (0..RECEIVES).try_for_each(|_| self.receive())?;
        let mut messages = 0;
        let mut last = 0;
        for i in 0..MANY {
            let mut op = ops[i % ops.len()];
            if matches!(op.0, Op::Send | Op::SendImm(_) | Op::WriteImm(..)) {
                messages += 1;
                if messages > RECEIVES {
                    op = (Op::Write(self.there()), Opcode::Write);
                }
            }
            let bytes = if op.1.is_atomic() { WORD } else { [mtu, SEVERAL * mtu, 1, 0][i % 4] };
            last = self.post(op, bytes, i + 1 == MANY)?;
        }
        self.sent(case, last)?;
        self.look(case)
    }

    fn a_send_without_a_receive(mut self) -> Step {
        let case = "SEND without a receive";
        let before = self.expected;
        let id = self.post((Op::Send, Opcode::Send), SEVERAL * self.mtu as usize, true)?;
        let after = std::mem::replace(&mut self.expected, before);
        self.look_twice(case)?;
        self.receive()?;
        self.expected = after;
        self.sent(case, id)?;
        self.look(case)
    }

    fn a_wrong_key(mut self) -> Step {
        let case = "WRITE with a wrong key";
        let write = (Op::Write(self.there()), Opcode::Write);
        self.receive()?;
        let id = self.post(write, self.mtu as usize, true)?;
        let good = self.expected;
        let there = self.there();
        let wrong = Op::Write(Remote { rkey: !there.rkey, ..there });
        let bad = self.post((wrong, Opcode::Write), SEVERAL * self.mtu as usize, true)?;
        self.post(write, self.mtu as usize, true)?;
        self.expected = good;
        self.sent(case, id)?;
        let wc = self.wait(case, |wc| wc.wr_id == bad)?;
        if wc.status != wc_status::REM_ACCESS_ERR {
            let text = format!("{case}: {}", wc_status::name(wc.status));
            return Err(Error::new(libc::EIO, text).into());
        }
        self.b.set_state(qp_state::ERR)?;
        self.barrier(case)?;
        self.look_twice(case)
    }

    fn a_cut(mut self, after: Duration) -> Step {
        let case = "ERR amid WRITEs";
        let (mtu, memory) = (self.mtu as usize, &self.trial.memory);
        memory.write(0, &[MARK; HALF]);
        memory.write(HALF, &[0; HALF]);
        self.receive()?;
        let first = self.expected;
        for i in 0..HALF / (SEVERAL * mtu) {
            let there = memory.remote(HALF + i * SEVERAL * mtu);
            self.post((Op::Write(there), Opcode::Write), SEVERAL * mtu, false)?;
        }
        // Too short to sleep for.
        let at = Instant::now() + after;
        while Instant::now() < at {
            std::hint::spin_loop();
        }
        self.b.set_state(qp_state::ERR)?;
        self.barrier(case)?;
        let mut landed = [0; HALF];
        memory.read(HALF, &mut landed);
        let whole = |packet: &&[u8]| packet.iter().all(|byte| *byte == MARK);
        let packets = landed.chunks_exact(mtu).take_while(whole).count();
        self.expected = first;
        self.count(packets as u64);
        self.look_twice(case)
    }
}
