//! What the ranks' messages travel on: reliable connections, and one region of memory.
//!
//! Each part of the program ([`super::halo`], [`super::reduce`], [`super::gather`]) plans its wires
//! and the memory that they need; then all are connected at once. A wire carries WRITEs into the
//! peer's inbox, and WRITE_WITH_IMMs that tell the peer of them. All completions come from one
//! queue, and are sorted here: into sends that are done, and notices that have arrived.

use sojourn::abi::{Wc, access, wc_opcode};
use sojourn::verbs::{
    CompletionQueue, ConnectOptions, Context, Endpoint, MemoryRegion, Op, ProtectionDomain,
    QpOptions, QueuePair, Remote, SendRequest,
};
use sojourn::{Error, Job, Result};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Receives that wait for notices on each wire. No peer is ever further ahead than the two buffers
/// that each kind of message has, so none is refused for want of a receive.
const RECEIVES: u32 = 4;

/// Requests that a wire holds, notices and unsignalled WRITEs together.
const SENDS: u32 = 64;

/// A WRITE in so many asks for a completion of its own, so that a run of them does not fill the
/// send queue.
const SIGNAL_EVERY: u32 = 16;

/// How long a peer may take for one step. It has died or hangs then; a rank that dies is found by
/// the launcher long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// Until it is asked whether that has died: it may owe something on a connection on which nothing is
/// sent, which does not break.
const LOOK: Duration = Duration::from_millis(100);

/// Completions taken at a time.
const BATCH: usize = 32;

/// A wire of this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WireId(usize);

/// A part of the region; multiples of 8 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Space(Range<usize>);

impl Space {
    /// Where its part at `offset` begins in the region.
    pub(super) fn at(&self, offset: usize) -> usize {
        debug_assert!(offset <= self.0.len());
        self.0.start + offset
    }
}

struct Planned {
    peer: u32,
    mine: String,
    theirs: String,
    inbox: Space,
}

/// Wires and memory that are wanted.
#[derive(Default)]
pub(super) struct Plan {
    wires: Vec<Planned>,
    bytes: usize,
}

impl Plan {
    /// Wants `words` words of 8 bytes.
    pub(super) fn space(&mut self, words: usize) -> Space {
        let start = self.bytes;
        self.bytes += words * 8;
        Space(start..self.bytes)
    }

    /// Wants a wire to `peer`, which may write into `inbox`. This side is called `mine`; it is
    /// connected with the one that the peer calls `theirs`.
    pub(super) fn wire(&mut self, peer: u32, mine: String, theirs: String, inbox: Space) -> WireId {
        self.wires.push(Planned { peer, mine, theirs, inbox });
        WireId(self.wires.len() - 1)
    }

    /// Connects all of them, and returns when every rank has.
    pub(super) fn connect<'a>(self, job: &'a Job, context: &Context) -> Result<Wires<'a>> {
        let pd = context.alloc_pd()?;
        let each = SENDS + 2 * RECEIVES;
        let cq = context.create_cq((each * self.wires.len() as u32).max(1))?;
        let memory = pd.register(self.bytes.max(8), access::LOCAL_WRITE | access::REMOTE_WRITE)?;
        let mut wires = Vec::with_capacity(self.wires.len());
        // Everything is told before anything is asked: no order of connecting waits in a circle.
        for plan in &self.wires {
            let qp = queue_pair(&pd, &cq)?;
            let offer = Offer { endpoint: qp.endpoint()?, inbox: memory.remote(plan.inbox.at(0)) };
            job.publish(&plan.mine, &offer.to_bytes())?;
            wires.push((plan, qp));
        }
        let options = ConnectOptions { access: access::REMOTE_WRITE, ..ConnectOptions::default() };
        let wires = wires.into_iter().enumerate().map(|(index, (plan, qp))| {
            let offer = Offer::from_bytes(&job.fetch(plan.peer, &plan.theirs)?)
                .map_err(|error| error.context(format_args!("rank {}", plan.peer)))?;
            qp.init(&options)?;
            for _ in 0..RECEIVES {
                qp.post_recv(wr_id(index), &[])?;
            }
            qp.connect(&offer.endpoint, &options)?;
            Ok(Wire {
                peer: plan.peer,
                qp,
                inbox: offer.inbox,
                arrived: VecDeque::with_capacity(RECEIVES as usize),
                posted: 0,
                done: 0,
                unsignaled: 0,
            })
        });
        let wires = wires.collect::<Result<Vec<_>>>()?;
        // Before a peer is ready to receive its sender would run into its retry limit.
        job.barrier()?;
        Ok(Wires { job, wires, cq, memory, traffic: Traffic::default() })
    }
}

fn queue_pair(pd: &ProtectionDomain, cq: &CompletionQueue) -> Result<QueuePair> {
    let mut options = QpOptions::rc(cq);
    options.cap.max_send_wr = SENDS;
    options.cap.max_recv_wr = RECEIVES;
    options.cap.max_send_sge = 1;
    options.cap.max_recv_sge = 1;
    options.cap.max_inline_data = 8;
    pd.create_qp(&options)
}

/// What a side tells the other of itself.
struct Offer {
    endpoint: Endpoint,
    inbox: Remote,
}

impl Offer {
    const BYTES: usize = Endpoint::BYTES + 12;

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.endpoint.to_bytes().to_vec();
        bytes.extend_from_slice(&self.inbox.addr.to_be_bytes());
        bytes.extend_from_slice(&self.inbox.rkey.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let refuse = || {
            Error::invalid(format!("offers a wire in {} bytes, not {}", bytes.len(), Self::BYTES))
        };
        let (endpoint, rest) = bytes.split_at_checked(Endpoint::BYTES).ok_or_else(refuse)?;
        let (addr, rkey) = rest.split_at_checked(8).ok_or_else(refuse)?;
        let endpoint = Endpoint::from_bytes(endpoint)?;
        let addr = u64::from_be_bytes(addr.try_into().map_err(|_| refuse())?);
        let rkey = u32::from_be_bytes(rkey.try_into().map_err(|_| refuse())?);
        Ok(Offer { endpoint, inbox: Remote { addr, rkey } })
    }
}

/// What went over the wires of a rank.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traffic {
    /// Bytes of WRITEs and notices.
    pub(super) bytes: u64,
    /// Requests posted.
    pub(super) requests: u64,
    /// Time spent waiting for peers.
    pub(super) waited: Duration,
}

struct Wire {
    peer: u32,
    qp: QueuePair,
    /// Where the peer takes our WRITEs.
    inbox: Remote,
    /// Immediate data of notices that were not taken yet, in order.
    arrived: VecDeque<u32>,
    /// Signalled requests posted, and those of them that are done.
    posted: u64,
    done: u64,
    /// WRITEs since the last signalled request.
    unsignaled: u32,
}

/// The wires of this rank, connected.
pub(super) struct Wires<'a> {
    job: &'a Job,
    wires: Vec<Wire>,
    cq: CompletionQueue,
    memory: MemoryRegion,
    traffic: Traffic,
}

/// A point in the sends of a wire: what was posted until then is done when this is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark(u64);

impl Wires<'_> {
    /// What went over them until now.
    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The rank at the other end.
    pub(super) fn peer(&self, wire: WireId) -> u32 {
        self.wires[wire.0].peer
    }

    /// The word at `at` of the region.
    pub(super) fn load(&self, at: usize) -> u64 {
        self.memory.atomic_u64(at).load(Ordering::Relaxed)
    }

    /// Stores a word.
    pub(super) fn store(&self, at: usize, word: u64) {
        self.memory.atomic_u64(at).store(word, Ordering::Relaxed);
    }

    /// WRITEs `bytes` bytes of the region at `from` to `to` in the peer's inbox. They must stay as
    /// they are until the mark of a later notice is done.
    pub(super) fn write(
        &mut self,
        wire: WireId,
        from: usize,
        bytes: usize,
        to: usize,
    ) -> Result<()> {
        while self.full(wire) {
            self.wait(wire, "the completion of its WRITEs")?;
        }
        let element = [self.memory.slice(from..from + bytes)];
        let line = &mut self.wires[wire.0];
        let mut request =
            SendRequest::new(wr_id(wire.0), Op::Write(line.inbox.offset(to as u64)), &element);
        line.unsignaled += 1;
        if line.unsignaled < SIGNAL_EVERY {
            request = request.unsignaled();
        } else {
            line.signaled();
        }
        line.qp.post_send(&request)?;
        self.count(bytes);
        Ok(())
    }

    /// WRITEs one word to `to` in the peer's inbox, and gives notice of it, and of all before it,
    /// with `imm`.
    pub(super) fn notify(&mut self, wire: WireId, word: u64, to: usize, imm: u32) -> Result<Mark> {
        while self.full(wire) {
            self.wait(wire, "the completion of its notices")?;
        }
        let line = &mut self.wires[wire.0];
        let op = Op::WriteImm(line.inbox.offset(to as u64), imm);
        line.signaled();
        line.qp.post_send(&SendRequest::inline(wr_id(wire.0), op, &word.to_ne_bytes()))?;
        let mark = Mark(line.posted);
        self.count(8);
        Ok(mark)
    }

    /// Waits until everything up to `mark` is done.
    pub(super) fn done(&mut self, wire: WireId, mark: Mark) -> Result<()> {
        while self.wires[wire.0].done < mark.0 {
            self.wait(wire, "the completion of what was sent to it")?;
        }
        Ok(())
    }

    /// Waits until everything that was posted with a completion is done.
    pub(super) fn drain(&mut self) -> Result<()> {
        for index in 0..self.wires.len() {
            self.done(WireId(index), Mark(self.wires[index].posted))?;
        }
        Ok(())
    }

    /// The next notice of a wire, if it has arrived.
    pub(super) fn try_notice(&mut self, wire: WireId) -> Result<Option<u32>> {
        if self.wires[wire.0].arrived.is_empty() {
            self.poll()?;
        }
        Ok(self.wires[wire.0].arrived.pop_front())
    }

    /// The next notice of a wire; `what` it is goes into the error when none comes.
    pub(super) fn notice(&mut self, wire: WireId, what: &str) -> Result<u32> {
        loop {
            if let Some(imm) = self.wires[wire.0].arrived.pop_front() {
                return Ok(imm);
            }
            self.wait(wire, what)?;
        }
    }

    /// Sorts the completions that are there.
    pub(super) fn poll(&mut self) -> Result<()> {
        let mut wcs = [Wc::default(); BATCH];
        let n = self.cq.poll(&mut wcs)?;
        self.sort(&wcs[..n])
    }

    /// Whether the send queue may have no room for one more.
    fn full(&self, wire: WireId) -> bool {
        let line = &self.wires[wire.0];
        (line.posted - line.done + 1) * u64::from(SIGNAL_EVERY) >= u64::from(SENDS)
    }

    fn wait(&mut self, wire: WireId, what: &str) -> Result<()> {
        let mut wcs = [Wc::default(); BATCH];
        let mut n = self.cq.poll(&mut wcs)?;
        if n == 0 {
            let start = Instant::now();
            while n == 0 && start.elapsed() < PATIENCE {
                n = self.cq.wait(&mut wcs, Instant::now() + LOOK)?;
                if n == 0 {
                    self.job.check()?;
                }
            }
            self.traffic.waited += start.elapsed();
        }
        if n == 0 {
            return Err(Error::new(
                libc::ETIMEDOUT,
                format!(
                    "rank {} gave no sign for {} s ({what})",
                    self.wires[wire.0].peer,
                    PATIENCE.as_secs()
                ),
            ));
        }
        self.sort(&wcs[..n])
    }

    fn sort(&mut self, wcs: &[Wc]) -> Result<()> {
        for wc in wcs {
            let index = wc.wr_id as usize;
            let wire = self.wires.get_mut(index).ok_or_else(|| {
                Error::new(libc::EIO, format!("a completion of no request of ours: {wc:?}"))
            })?;
            wc.check().map_err(|error| {
                error.context(format_args!("the connection with rank {} broke", wire.peer))
            })?;
            if wc.opcode & wc_opcode::RECV == 0 {
                wire.done += 1;
            } else {
                wire.qp.post_recv(wr_id(index), &[])?;
                wire.arrived.push_back(u32::from_be(wc.imm_data));
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) {
        self.traffic.bytes += bytes as u64;
        self.traffic.requests += 1;
    }
}

impl Wire {
    /// The next request is signalled.
    fn signaled(&mut self) {
        self.posted += 1;
        self.unsignaled = 0;
    }
}

/// Requests are told apart by their wire, and by the opcode of their completion.
fn wr_id(wire: usize) -> u64 {
    wire as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_survive_their_bytes_and_others_are_refused() {
        let endpoint =
            Endpoint { lid: 3, gid: sojourn::abi::Gid([7; 16]), qpn: 0x123456, psn: 0xabcdef };
        let offer = Offer { endpoint, inbox: Remote { addr: 0x7f00_1234_5678, rkey: 0x9abc } };
        let bytes = offer.to_bytes();
        assert_eq!(bytes.len(), Offer::BYTES);
        let again = Offer::from_bytes(&bytes).unwrap();
        assert_eq!((again.endpoint, again.inbox), (offer.endpoint, offer.inbox));
        for length in 0..bytes.len() {
            assert!(Offer::from_bytes(&bytes[..length]).is_err());
        }
        assert!(Offer::from_bytes(&[bytes, vec![0]].concat()).is_err());
    }
}
