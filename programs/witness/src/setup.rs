//! Creates the queue pairs of a rank, as different from each other as verbs allow, and connects them.

use crate::kind::{Kind, Transport};
use crate::landing::{self, Landing};
use crate::link::{Identity, Link};
use crate::options::Options;
use crate::plot::Plot;
use crate::receiver::{BLOCKS, Blocks, Receiver};
use crate::receives::{Queue, Receives};
use crate::ring::Ring;
use crate::script::{MAX_DATAGRAM, Script, Stream};
use crate::sender::{self, Drawn, EXTRA, INLINE, Io, QKEY, Sender, Signals};
use sojourn::abi::{GRH_BYTES, QpCap, SrqAttr, access, atomic_cap, mtu_bytes};
use sojourn::verbs::{
    CompletionChannel, CompletionQueue, ConnectOptions, Context, Endpoint, MemoryRegion,
    ProtectionDomain, QpOptions, QueuePair, Remote, SharedReceiveQueue,
};
use sojourn::{Error, Job, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Receives of a queue pair of its own. Fewer than a window, so that a peer meets RNR.
const RECEIVES: usize = 10;

/// Receives of the shared queue for each of its queue pairs.
const SHARED_RECEIVES: usize = 6;

/// The words that the peer's atomics go to, at the front of the memory of a stream.
const WORDS: usize = 64;

/// Identifiers of receives of the shared queue.
const SHARED_TAG: u64 = 1 << 62;

/// Bits of an identifier that count.
const COUNT_BITS: u32 = 40;

/// Where completions go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Completions {
    /// Two queues of its own, one for each direction.
    Own,
    /// One queue for many queue pairs, polled by several threads.
    Shared,
    /// A queue whose events wake a thread.
    Events,
}

/// What one queue pair is like: decided by its number alone.
struct Plan {
    peer: u32,
    index: u32,
    transport: Transport,
    completions: Completions,
    srq: bool,
    late: bool,
    signals: Signals,
}

impl Plan {
    fn new(options: &Options, peer: u32, index: u32, srqs: bool) -> Self {
        let transport = options.mix.transport(index as usize);
        Plan {
            peer,
            index,
            transport,
            completions: match index % 3 {
                0 => Completions::Own,
                1 => Completions::Shared,
                _ => Completions::Events,
            },
            srq: srqs && transport == Transport::Rc && index % 4 == 1,
            late: index.is_multiple_of(2),
            signals: match index % 5 {
                0 | 1 => Signals::Some,
                2 => Signals::Each,
                3 => Signals::Queue,
                _ => Signals::Some,
            },
        }
    }

    fn largest(&self, options: &Options) -> usize {
        match self.transport {
            Transport::Ud => options.max_size.min(MAX_DATAGRAM),
            _ => options.max_size,
        }
    }
}

/// Where things are in the memory of a stream that the peer reaches: words, ring, blocks.
struct Layout {
    ring: usize,
    blocks: Blocks,
    bytes: usize,
}

impl Layout {
    fn new(transport: Transport, largest: usize) -> Self {
        // Datagrams reach no memory.
        let largest = if transport == Transport::Ud { 0 } else { largest };
        let ring = Ring::bytes(landing::PLACES, largest);
        let blocks = Blocks { at: WORDS + ring, bytes: Ring::bytes(1, largest) };
        Layout { ring, blocks, bytes: blocks.at + BLOCKS as usize * blocks.bytes }
    }
}

/// The completion queues whose events wake a thread.
pub(crate) struct Events {
    pub(crate) channel: CompletionChannel,
    pub(crate) queues: Vec<CompletionQueue>,
}

/// Everything that a rank uses.
pub(crate) struct Rank {
    pub(crate) links: Vec<Mutex<Link>>,
    /// Which link a queue pair number stands for.
    pub(crate) by_qpn: HashMap<u32, usize>,
    /// Completion queues to poll. The lock keeps completions in order until they are dealt with.
    pub(crate) polled: Vec<Mutex<CompletionQueue>>,
    pub(crate) events: Option<Events>,
    /// The word that all peers add to.
    pub(crate) shared: MemoryRegion,
    /// How this rank misbehaves.
    pub(crate) plot: Option<Arc<Plot>>,
}

/// A queue pair that is not connected yet.
struct Draft {
    plan: Plan,
    qp: QueuePair,
    memory: Arc<MemoryRegion>,
    arena: Arc<MemoryRegion>,
}

/// Creates and connects all queue pairs; returns when every rank has.
pub(crate) fn connect(job: &Job, context: &Context, options: &Options) -> Result<Rank> {
    let device = check_device(context, options)?;
    let pd = context.alloc_pd()?;
    let shared = pd.register(WORDS, access::LOCAL_WRITE | access::REMOTE_ATOMIC)?;
    let peers = (0..job.size()).filter(|peer| *peer != job.rank());
    let plans: Vec<_> = peers
        .flat_map(|peer| (0..options.qps).map(move |index| (peer, index)))
        .map(|(peer, index)| Plan::new(options, peer, index, device.srqs))
        .collect();

    let mut queues = Queues::create(context, options, &plans)?;
    let srq = shared_receives(&pd, options, &plans)?;
    let mut drafts = Vec::with_capacity(plans.len());
    for plan in plans {
        let (send_cq, recv_cq) = queues.of(context, options, &plan)?;
        let qp_options = QpOptions {
            qp_type: plan.transport.qp_type(),
            cap: QpCap {
                max_send_wr: (options.window + EXTRA) as u32,
                max_recv_wr: RECEIVES as u32,
                max_send_sge: 3,
                max_recv_sge: 2,
                max_inline_data: INLINE as u32,
            },
            sq_sig_all: plan.signals == Signals::Queue,
            send_cq: &send_cq,
            recv_cq: &recv_cq,
            srq: srq.as_ref().filter(|_| plan.srq).map(|(srq, _)| srq),
        };
        let qp = pd.create_qp(&qp_options)?;
        drafts.push(draft(&pd, plan, qp, options)?);
    }

    // Everything is told before anything is asked: no order of connecting waits in a circle.
    job.publish("witness/shared", &remote_bytes(shared.remote(0)))?;
    for peer in (0..job.size()).filter(|peer| *peer != job.rank()) {
        let mut note = Vec::new();
        for draft in drafts.iter().filter(|draft| draft.plan.peer == peer) {
            note.extend_from_slice(&draft.qp.endpoint()?.to_bytes());
            note.extend_from_slice(&remote_bytes(draft.memory.remote(0)));
        }
        job.publish(&format!("witness/links/{peer}"), &note)?;
    }
    let plot = options.sabotage.filter(|_| job.rank() == 0).map(|act| Arc::new(Plot::new(act)));
    let drawn = Arc::new(Drawn::default());
    let mut offers = HashMap::new();
    let mut links = Vec::with_capacity(drafts.len());
    let mut by_qpn = HashMap::new();
    for draft in drafts {
        let peer = draft.plan.peer;
        if let std::collections::hash_map::Entry::Vacant(vacant) = offers.entry(peer) {
            let note = job.fetch(peer, &format!("witness/links/{}", job.rank()))?;
            let word = remote_of(&job.fetch(peer, "witness/shared")?)?;
            vacant.insert((note, word));
        }
        let (note, word) = &offers[&peer];
        let each = Endpoint::BYTES + REMOTE_BYTES;
        let at = draft.plan.index as usize * each;
        let offer = note.get(at..at + each).ok_or_else(|| {
            Error::invalid(format!("rank {peer} offers {} bytes of queue pairs", note.len()))
        })?;
        let end = Endpoint::from_bytes(&offer[..Endpoint::BYTES])?;
        let theirs = remote_of(&offer[Endpoint::BYTES..])?;
        let pool = srq.as_ref().map(|(_, pool)| Arc::clone(pool));
        let more = (drawn.clone(), plot.clone(), pool);
        let link = finish(job.rank(), &pd, draft, (end, theirs, *word), options, more)?;
        by_qpn.insert(link.qpn(), links.len());
        links.push(Mutex::new(link));
    }
    job.barrier()?; // All are ready to receive.
    let (polled, events) = queues.finish();
    Ok(Rank { links, by_qpn, polled, events, shared, plot })
}

struct Abilities {
    srqs: bool,
}

fn check_device(context: &Context, options: &Options) -> Result<Abilities> {
    let device = context.query_device()?;
    let atomics = options.mix.kinds(Transport::Rc).into_iter().any(Kind::is_atomic);
    if atomics && device.atomic_cap == atomic_cap::NONE {
        return Err(Error::unsupported(
            "the device has no atomics: leave fetch-add and cmp-swap out of --mix",
        ));
    }
    let mtu = context.query_port(1)?.active_mtu;
    let datagrams = !options.mix.kinds(Transport::Ud).is_empty();
    if datagrams && mtu_bytes(mtu).is_none_or(|bytes| (bytes as usize) < MAX_DATAGRAM) {
        return Err(Error::unsupported(format!(
            "the port's path MTU (code {mtu}) is below {MAX_DATAGRAM} bytes: leave ud-send out of \
             --mix"
        )));
    }
    Ok(Abilities { srqs: device.max_srq > 0 })
}

/// Completion queues while they are being created.
struct Queues {
    polled: Vec<Mutex<CompletionQueue>>,
    shared: Option<CompletionQueue>,
    events: Option<Events>,
}

impl Queues {
    fn create(context: &Context, options: &Options, plans: &[Plan]) -> Result<Self> {
        let count = |kind| plans.iter().filter(|plan| plan.completions == kind).count();
        let shared = match count(Completions::Shared) {
            0 => None,
            n => Some(context.create_cq((n * entries(options)) as u32)?),
        };
        let events = match count(Completions::Events) {
            0 => None,
            _ => Some(Events { channel: context.create_channel()?, queues: Vec::new() }),
        };
        let polled = shared.iter().cloned().map(Mutex::new).collect();
        Ok(Queues { polled, shared, events })
    }

    /// Where sends and receives of a queue pair complete.
    fn of(
        &mut self,
        context: &Context,
        options: &Options,
        plan: &Plan,
    ) -> Result<(CompletionQueue, CompletionQueue)> {
        let size = entries(options) as u32;
        match (plan.completions, &self.shared, &mut self.events) {
            (Completions::Shared, Some(shared), _) => Ok((shared.clone(), shared.clone())),
            (Completions::Events, _, Some(events)) => {
                let user = events.queues.len() as u64;
                let cq = context.create_cq_on(size, &events.channel, user)?;
                events.queues.push(cq.clone());
                Ok((cq.clone(), cq))
            }
            _ => {
                let (send, recv) = (context.create_cq(size)?, context.create_cq(size)?);
                self.polled.extend([send.clone(), recv.clone()].map(Mutex::new));
                Ok((send, recv))
            }
        }
    }

    fn finish(self) -> (Vec<Mutex<CompletionQueue>>, Option<Events>) {
        (self.polled, self.events)
    }
}

/// Completions that a queue pair may have at a time. An SRQ may give one of them all its receives.
fn entries(options: &Options) -> usize {
    options.window + EXTRA + RECEIVES.max(SHARED_RECEIVES) * 2
}

type Pool = Arc<Mutex<Receives>>;

/// The shared receive queue, where any queue pair uses it.
fn shared_receives(
    pd: &ProtectionDomain,
    options: &Options,
    plans: &[Plan],
) -> Result<Option<(SharedReceiveQueue, Pool)>> {
    let users = plans.iter().filter(|plan| plan.srq).count();
    if users == 0 {
        return Ok(None);
    }
    let slots = users * SHARED_RECEIVES;
    let attr = SrqAttr { max_wr: slots as u32, max_sge: 2, ..SrqAttr::default() };
    let srq = pd.create_srq(attr, 0)?;
    let stride = buffer(options.max_size);
    let memory = Arc::new(pd.register(slots * stride, access::LOCAL_WRITE)?);
    let queue = Queue::Shared(srq.clone());
    let late = Some(options.seed);
    let pool = Receives::new(queue, memory, 0, (stride, slots), SHARED_TAG, late);
    Ok(Some((srq, Arc::new(Mutex::new(pool)))))
}

/// Bytes of a receive's buffer: a payload or a control message, and a GRH.
fn buffer(largest: usize) -> usize {
    (largest.max(crate::control::BYTES) + GRH_BYTES).next_multiple_of(64)
}

fn draft(pd: &ProtectionDomain, plan: Plan, qp: QueuePair, options: &Options) -> Result<Draft> {
    let largest = plan.largest(options);
    let remote =
        access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;
    let memory = pd.register(Layout::new(plan.transport, largest).bytes, remote)?;
    let receives = if plan.srq { 0 } else { RECEIVES * buffer(largest) };
    let arena = Ring::bytes(sender::PLACES, largest);
    let arena = pd.register(arena + receives, access::LOCAL_WRITE)?;
    Ok(Draft { plan, qp, memory: Arc::new(memory), arena: Arc::new(arena) })
}

/// What both sides of a stream know of it.
fn script(options: &Options, plan: &Plan, from: u32, to: u32) -> Script {
    let stream = Stream { from, to, index: plan.index };
    let kinds = options.mix.kinds(plan.transport);
    Script::new(stream, plan.transport, kinds, options.seed, options.max_size)
}

/// Connects a queue pair.
fn finish(
    rank: u32,
    pd: &ProtectionDomain,
    draft: Draft,
    (end, theirs, shared): (Endpoint, Remote, Remote),
    options: &Options,
    (drawn, plot, pool): (Arc<Drawn>, Option<Arc<Plot>>, Option<Pool>),
) -> Result<Link> {
    let Draft { plan, qp, memory, arena } = draft;
    let largest = plan.largest(options);
    let layout = Layout::new(plan.transport, largest);
    let arena_bytes = Ring::bytes(sender::PLACES, largest);
    let connect = ConnectOptions { qkey: QKEY, ..ConnectOptions::default() };
    qp.init(&connect)?;
    let receives = match pool.filter(|_| plan.srq) {
        Some(pool) => pool,
        None => {
            let tag = u64::from(plan.peer * options.qps + plan.index) << COUNT_BITS;
            let late = plan.late.then_some(options.seed ^ tag);
            let sizes = (buffer(largest), RECEIVES);
            let queue = Queue::Own(qp.clone());
            let own = Receives::new(queue, Arc::clone(&arena), arena_bytes, sizes, tag, late);
            Arc::new(Mutex::new(own))
        }
    };
    let posted = crate::engine::lock(&receives).post(Instant::now());
    posted.map_err(|fault| Error::new(libc::EIO, fault.line()))?;
    let datagram = match plan.transport {
        Transport::Ud => {
            qp.activate(&connect)?;
            Some((pd.create_ah(&end)?, end.qpn))
        }
        _ => {
            qp.connect(&end, &connect)?;
            None
        }
    };
    let incoming = script(options, &plan, plan.peer, rank);
    let landing = Landing::new(Arc::clone(&memory), WORDS, layout.ring);
    let receiver = Receiver::new(plan.transport, incoming, memory, landing, layout.blocks);
    let who = Identity {
        rank,
        peer: plan.peer,
        index: plan.index,
        qpn: qp.qp_num(),
        peer_qpn: end.qpn,
        transport: plan.transport,
    };
    let io = Io {
        qp,
        arena,
        remote: theirs,
        landing_at: WORDS,
        blocks: layout.blocks,
        shared,
        datagram,
        signals: plan.signals,
        window: options.window,
        drawn,
        plot,
    };
    let outgoing = script(options, &plan, rank, plan.peer);
    let rings = (arena_bytes, layout.ring);
    let sender = Sender::new(plan.transport, outgoing, io, options.messages, rings, BLOCKS);
    Ok(Link::new(who, sender, receiver, receives))
}

const REMOTE_BYTES: usize = 12;

fn remote_bytes(remote: Remote) -> [u8; REMOTE_BYTES] {
    let mut bytes = [0; REMOTE_BYTES];
    bytes[..8].copy_from_slice(&remote.addr.to_be_bytes());
    bytes[8..].copy_from_slice(&remote.rkey.to_be_bytes());
    bytes
}

fn remote_of(bytes: &[u8]) -> Result<Remote> {
    let refuse = || Error::invalid(format!("an address and a key in {} bytes", bytes.len()));
    let (addr, rkey) = bytes.split_at_checked(8).ok_or_else(refuse)?;
    let addr = u64::from_be_bytes(addr.try_into().map_err(|_| refuse())?);
    let rkey = u32::from_be_bytes(rkey.try_into().map_err(|_| refuse())?);
    Ok(Remote { addr, rkey })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: eight queue pairs, the default, are of every sort.
    #[test]
    fn eight_queue_pairs_have_everything_that_is_to_be_tried() {
        let options = Options::parse([]).unwrap().unwrap();
        let plans: Vec<_> = (0..8).map(|i| Plan::new(&options, 1, i, true)).collect();
        let any = |is: &dyn Fn(&Plan) -> bool| plans.iter().any(is);
        for transport in [Transport::Rc, Transport::Uc, Transport::Ud] {
            assert!(any(&|plan| plan.transport == transport), "{transport:?}");
        }
        for completions in [Completions::Own, Completions::Shared, Completions::Events] {
            assert!(any(&|p| p.transport == Transport::Rc && p.completions == completions));
        }
        for signals in [Signals::Queue, Signals::Each, Signals::Some] {
            assert!(any(&|plan| plan.signals == signals), "{signals:?}");
        }
        assert!(plans.iter().filter(|plan| plan.srq).count() >= 2);
        assert!(any(&|p| p.late && p.transport == Transport::Rc) && any(&|plan| !plan.late));
    }
}
