//! What most cases begin with: memory, queues, and a QP connected to the other side's.

use crate::attrs::{self, Towards};
use crate::case::{Stop, Verdict};
use crate::check::{ended, success};
use crate::quirks::Feature;
use crate::side::Side;
use sojourn_fabric::abi::{self, AhAttr, QpCap, Sge, access, qp_type};
use sojourn_fabric::virt::{
    AddressHandle, CompletionChannel, CompletionQueue, ConnectOptions, Datagram, MemoryRegion,
    ProtectionDomain, QpOptions, QueuePair, Remote, SendRequest, SharedReceiveQueue,
};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Every access that a region can allow.
pub(crate) const ALL_ACCESS: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;
/// What [`Parts::channel`] says of events of the send CQ, and of the receive CQ.
pub(crate) const SEND_EVENT: u64 = 0x5e4d;
/// As [`SEND_EVENT`].
pub(crate) const RECV_EVENT: u64 = 0x2ec4;

/// What a [`Rig`] is made of.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) qp_type: u32,
    pub(crate) cap: QpCap,
    /// Bytes of registered memory.
    pub(crate) memory: usize,
    /// What the memory allows.
    pub(crate) access: u32,
    /// Every request is signalled.
    pub(crate) sig_all: bool,
    pub(crate) connect: ConnectOptions,
    /// Entries of each CQ.
    pub(crate) cqe: u32,
    /// First PSN that this side sends.
    pub(crate) psn: Option<u32>,
    /// The CQs announce their completions on a channel.
    pub(crate) channel: bool,
}

impl Plan {
    pub(crate) fn rc() -> Self {
        Plan {
            qp_type: qp_type::RC,
            cap: QpCap {
                max_send_wr: 64,
                max_recv_wr: 64,
                max_send_sge: 4,
                max_recv_sge: 4,
                max_inline_data: 0,
            },
            memory: 64 * 1024,
            access: ALL_ACCESS,
            sig_all: false,
            // A longer timeout than usual: an emulated machine under load answers late.
            connect: ConnectOptions { timeout: 17, ..ConnectOptions::default() },
            cqe: 128,
            psn: None,
            channel: false,
        }
    }

    pub(crate) fn uc() -> Self {
        Plan { qp_type: qp_type::UC, ..Plan::rc() }
    }

    pub(crate) fn ud() -> Self {
        Plan { qp_type: qp_type::UD, ..Plan::rc() }
    }

    pub(crate) fn memory(self, memory: usize) -> Self {
        Plan { memory, ..self }
    }

    pub(crate) fn connect(mut self, change: impl FnOnce(&mut ConnectOptions)) -> Self {
        change(&mut self.connect);
        self
    }
}

/// What QPs of one side share.
pub(crate) struct Parts {
    pub(crate) pd: ProtectionDomain,
    pub(crate) channel: Option<CompletionChannel>,
    /// Completions of sends.
    pub(crate) sends: CompletionQueue,
    /// Completions of receives.
    pub(crate) recvs: CompletionQueue,
    pub(crate) mem: MemoryRegion,
}

impl Parts {
    /// The channel of both CQs.
    pub(crate) fn channel(&self) -> Verdict<&CompletionChannel> {
        self.channel.as_ref().ok_or_else(|| Stop::failed("the plan asks for no channel"))
    }

    /// The element of a range of the memory.
    pub(crate) fn sge(&self, range: Range<usize>) -> Sge {
        self.mem.slice(range)
    }
}

/// What the other side told of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) qpn: u32,
    pub(crate) psn: u32,
    pub(crate) lid: u16,
    pub(crate) address: AhAttr,
    /// Its memory.
    pub(crate) memory: Remote,
    /// The smaller of both MTUs, as code.
    pub(crate) mtu: u32,
}

/// A QP that is connected to the other side's, with what it needs.
pub(crate) struct Rig {
    pub(crate) parts: Arc<Parts>,
    pub(crate) qp: QueuePair,
    /// First PSN that it sends.
    pub(crate) psn: u32,
    pub(crate) peer: Peer,
    /// For datagrams.
    pub(crate) ah: Option<AddressHandle>,
    qkey: u32,
}

impl Deref for Rig {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

impl Rig {
    /// The same parts and peer with another QP.
    pub(crate) fn with(&self, qp: QueuePair) -> Rig {
        Rig { parts: Arc::clone(&self.parts), qp, ah: self.ah.clone(), ..*self }
    }

    /// Bytes of the path MTU.
    pub(crate) fn mtu(&self) -> usize {
        abi::mtu_bytes(self.peer.mtu).map_or(0, |bytes| bytes as usize)
    }

    /// The peer's memory from `offset` on.
    pub(crate) fn remote(&self, offset: usize) -> Remote {
        self.peer.memory.offset(offset as u64)
    }

    /// The peer as a destination of datagrams.
    pub(crate) fn to(&self) -> Verdict<Datagram<'_>> {
        let ah = self.ah.as_ref().ok_or_else(|| Stop::failed("no address handle"))?;
        Ok(Datagram { ah, qpn: self.peer.qpn, qkey: self.qkey })
    }

    /// Posts a send request.
    #[track_caller]
    pub(crate) fn post(&self, request: &SendRequest<'_>) -> Verdict {
        Ok(self.qp.post_send(request)?)
    }

    /// Posts a receive into a range of the memory.
    #[track_caller]
    pub(crate) fn post_recv(&self, wr_id: u64, range: Range<usize>) -> Verdict {
        Ok(self.qp.post_recv(wr_id, &[self.sge(range)])?)
    }

    /// The next completion of the send queue must be the success of this request.
    #[track_caller]
    pub(crate) fn sent(&self, side: &mut Side, wr_id: u64, opcode: u32) -> Verdict<abi::Wc> {
        let wc = side.completion(&self.sends)?;
        success(&wc, wr_id, opcode)?;
        Ok(wc)
    }

    /// The next completion of the receive queue must be the success of this request, with so
    /// many bytes.
    #[track_caller]
    pub(crate) fn received(
        &self,
        side: &mut Side,
        wr_id: u64,
        opcode: u32,
        bytes: usize,
    ) -> Verdict<abi::Wc> {
        let wc = side.completion(&self.recvs)?;
        success(&wc, wr_id, opcode)?;
        crate::check::same("byte_len", wc.byte_len as usize, bytes)?;
        crate::check::same("qp_num", wc.qp_num, self.qp.qp_num())?;
        Ok(wc)
    }

    /// The next completion of the send queue must end this request with one of these statuses.
    #[track_caller]
    pub(crate) fn send_ends(&self, side: &mut Side, wr_id: u64, statuses: &[u32]) -> Verdict {
        ended(&side.completion(&self.sends)?, wr_id, statuses)
    }

    /// As [`Self::send_ends`], of the receive queue.
    #[track_caller]
    pub(crate) fn recv_ends(&self, side: &mut Side, wr_id: u64, statuses: &[u32]) -> Verdict {
        ended(&side.completion(&self.recvs)?, wr_id, statuses)
    }

    /// Waits until the QP is in this state.
    #[track_caller]
    pub(crate) fn comes_to(&self, side: &mut Side, state: u32) -> Verdict {
        let what = format!("state {}", abi::qp_state::name(state));
        side.wait(&what, || Ok((self.qp.state()? == state).then_some(())))
    }

    /// RESET, INIT or any state: (again) to RTS, towards the same peer.
    pub(crate) fn bring_up(&self, plan: &Plan) -> Verdict {
        let towards = Towards {
            address: self.peer.address,
            qpn: self.peer.qpn,
            psn: self.peer.psn,
            mtu: self.peer.mtu,
        };
        for (attr, mask) in [
            attrs::rtr(plan.qp_type, &plan.connect, &towards),
            attrs::rts(plan.qp_type, &plan.connect, self.psn),
        ] {
            self.qp.device().modify(&attr, mask)?;
        }
        Ok(())
    }
}

impl Side {
    /// Memory and queues.
    pub(crate) fn parts(&mut self, plan: &Plan) -> Verdict<Parts> {
        let pd = self.context().alloc_pd()?;
        let channel = if plan.channel { Some(self.context().create_channel()?) } else { None };
        let cq = |user: u64| match &channel {
            Some(channel) => self.context().create_cq_on(plan.cqe, channel, user),
            None => self.context().create_cq(plan.cqe),
        };
        let (sends, recvs) = (cq(SEND_EVENT)?, cq(RECV_EVENT)?);
        let mem = pd.register(plan.memory, plan.access)?;
        Ok(Parts { pd, channel, sends, recvs, mem })
    }

    /// A QP of these parts, in RESET.
    pub(crate) fn qp(
        &self,
        parts: &Parts,
        plan: &Plan,
        srq: Option<&SharedReceiveQueue>,
    ) -> Verdict<QueuePair> {
        Ok(parts.pd.create_qp(&QpOptions {
            qp_type: plan.qp_type,
            cap: plan.cap,
            sq_sig_all: plan.sig_all,
            send_cq: &parts.sends,
            recv_cq: &parts.recvs,
            srq,
        })?)
    }

    /// Connects a fresh QP of `parts` with one of the other side, which does the same. The rig
    /// is the caller's: see [`Side::wire`].
    pub(crate) fn join(
        &mut self,
        parts: &Arc<Parts>,
        plan: &Plan,
        srq: Option<&SharedReceiveQueue>,
    ) -> Verdict<Rig> {
        let qp = self.qp(parts, plan, srq)?;
        let psn = plan.psn.unwrap_or_else(|| qp.qp_num().wrapping_mul(0x9e37_79b1)) & abi::MASK_24;
        let peer = self.exchange(&qp, psn, &parts.mem)?;
        let (attr, mask) = attrs::init(plan.qp_type, &plan.connect);
        qp.device().modify(&attr, mask)?;
        let ah = match plan.qp_type {
            qp_type::UD => Some(parts.pd.create_ah_raw(&peer.address)?),
            _ => None,
        };
        let rig = Rig { parts: Arc::clone(parts), qp, psn, peer, ah, qkey: plan.connect.qkey };
        rig.bring_up(plan)?;
        self.meet()?;
        Ok(rig)
    }

    /// Tells the other side of this QP, and hears of its.
    fn exchange(&mut self, qp: &QueuePair, psn: u32, mem: &MemoryRegion) -> Verdict<Peer> {
        let caps = self.caps().clone();
        let (gid_high, gid_low) = caps.gid.0.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let here = mem.remote(0);
        self.tell(&[
            u64::from(caps.port.lid) | u64::from(caps.global()) << 16,
            word(gid_high),
            word(gid_low),
            u64::from(qp.qp_num()),
            u64::from(psn),
            u64::from(caps.port.active_mtu),
            here.addr,
            u64::from(here.rkey),
        ])?;
        let [place, gid_high, gid_low, qpn, psn, mtu, addr, rkey] = self.hear()?;
        let mut gid = abi::Gid::default();
        gid.0[..8].copy_from_slice(&gid_high.to_be_bytes());
        gid.0[8..].copy_from_slice(&gid_low.to_be_bytes());
        let small = |word: u64| {
            u32::try_from(word).map_err(|_| Stop::failed(format!("the other side said {word:#x}")))
        };
        let lid = small(place)? as u16;
        let global = caps.global() || place & 1 << 16 != 0;
        Ok(Peer {
            qpn: small(qpn)? & abi::MASK_24,
            psn: small(psn)? & abi::MASK_24,
            lid,
            address: caps.address_vector(lid, gid, global),
            memory: Remote { addr, rkey: small(rkey)? },
            mtu: small(mtu)?.min(caps.port.active_mtu),
        })
    }

    /// How a request ends here whose own memory is not as it says.
    pub(crate) fn protection(&self) -> &'static [u32] {
        use abi::wc_status::{LOC_PROT_ERR, LOC_QP_OP_ERR, WR_FLUSH_ERR};
        let exact = self.needs(Feature::LocalErrorStatus).is_ok();
        if exact { &[LOC_PROT_ERR] } else { &[LOC_PROT_ERR, LOC_QP_OP_ERR, WR_FLUSH_ERR] }
    }

    /// Parts and a connected QP, kept until the other side has ended too.
    pub(crate) fn wire(&mut self, plan: &Plan) -> Verdict<Arc<Rig>> {
        let rig = self.wire_alone(plan)?;
        Ok(self.keep(rig))
    }

    /// The same, but the rig is the caller's alone, who may drop it at any time.
    pub(crate) fn wire_alone(&mut self, plan: &Plan) -> Verdict<Rig> {
        let parts = Arc::new(self.parts(plan)?);
        self.join(&parts, plan, None)
    }
}
