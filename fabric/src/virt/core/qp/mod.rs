//! Virtual queue pairs: two windows, and a physical queue pair as the cursor over them.
//!
//! | file | what |
//! | --- | --- |
//! | `send` | appending send requests, and handing them as far as their names are known |
//! | `recv` | the same for receives, which name nothing remote |
//! | `ending` | completing ourselves what is not handed any more: after ERR, or when a peer is lost |
//! | `control` | `modify` and `query`, where addresses are resolved |
//! | `remap` | suspend, attach, replay; `mend`, in it: paths that fail around that |
//! | `recording` | records into the peer's word, where its packet number is not live |
//!
//! # Threads
//!
//! Posters append and hand under the lock of their side (or without, see [`Side`]); the service
//! thread hands what was waiting for a name, under the same lock. Pollers retire, under the lock of
//! their CQ. Order of locks: CQ, then side, then a CQ's backlog. Nothing else is locked on the way
//! of a request whose names are known.

mod control;
mod ending;
mod recording;
mod recv;
mod remap;
mod room;
mod send;

pub(super) use recv::RecvLowering;
pub(super) use remap::{Fresh, Leaving, Places, Restless};
pub(super) use send::{sge, sges};

use super::cq::CqCore;
use super::direct::Direct;
use super::local::Local;
use super::lock::Side;
use super::pd::PdCore;
use super::peer::{Missing, Outcome, Peer, Wanted};
use super::policy::Source;
use super::record::{RECORD_BYTES, Word};
use super::retain::{Retaining, Retention, Ring};
use super::srq::SrqCore;
use super::underlay::Underlay;
use super::written::Tracked;
use super::{QPN_SHIFT, RECV, lock_mutex};
use crate::abi::{self, QpAttr, QpCap, Sge, qp_type, send_flags};
use crate::device::{DevicePd, DeviceQp, DeviceSrq, PostRecv, PostSend, QpInit};
use crate::error::{Error, Result};
use crate::names::{DeviceId, PhysicalEnd, ProcessId, RecordWord};
use control::Control;
use ending::Ending;
use recv::RecvSide;
use send::SendSide;
use sojourn_logging::{PROOF_SLOTS, RecvWindow, SendWindow, record_slots};
use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};

/// Slots of the physical send queue that are ours: for the marker behind which nothing of the
/// program's is outstanding any more, and for proofs.
const HIDDEN_SENDS: u32 = 1 + PROOF_SLOTS;

/// Slots of the physical send queue that a virtual one of that depth takes. Reliable ones have room for
/// records, whatever their peer wants today: it may go to another device tomorrow.
pub(super) fn physical_sends(qp_type: u32, depth: u32) -> u32 {
    let records = if qp_type == qp_type::RC { record_slots(depth) } else { 0 };
    depth.saturating_add(HIDDEN_SENDS + records)
}

/// The deepest virtual send queue that fits into a physical one.
pub(super) fn most_sends(qp_type: u32, limit: u32) -> u32 {
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = high - (high - low) / 2;
        if physical_sends(qp_type, middle) <= limit {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

/// Bits of `QpCore::watch`: reasons for a poller to look closer.
pub(super) mod watch {
    /// The program has destroyed the queue pair: its completions are dropped.
    pub(in super::super) const DEAD: u32 = 1;
    /// Requests are being completed by us once the handed ones are through.
    pub(in super::super) const ENDING: u32 = 2;
    /// Its receives are datagrams, whose senders have to be looked up.
    pub(in super::super) const DATAGRAM: u32 = 4;
    /// Failures of the path that is being left are not the program's business.
    pub(in super::super) const WITHHOLD: u32 = 8;
    /// Its send completions go through the backlog, in turn with those that we make.
    pub(in super::super) const THROUGH: u32 = 16;
    /// The next receive is of a request that was cut: its length has to be mended.
    pub(in super::super) const MEND: u32 = 32;
}

/// The physical side of a queue pair.
#[derive(Clone)]
pub(super) struct Attachment {
    pub(super) underlay: Arc<Underlay>,
    pub(super) pd: Arc<dyn DevicePd>,
    pub(super) qp: Arc<dyn DeviceQp>,
    _use: Arc<()>,
}

/// What a physical queue pair is made from.
pub(super) struct PhysicalParts<'a> {
    pub(super) qp_type: u32,
    pub(super) cap: QpCap,
    pub(super) send_cq: &'a CqCore,
    pub(super) recv_cq: &'a CqCore,
    pub(super) srq: Option<Arc<dyn DeviceSrq>>,
}

impl Attachment {
    /// A new physical queue pair, in RESET.
    pub(super) fn create(
        pd: &PdCore,
        underlay: &Arc<Underlay>,
        parts: &PhysicalParts<'_>,
    ) -> Result<Self> {
        let missing = || Error::invalid("a queue pair and its CQs must be of the same context");
        let cq = |cq: &CqCore| cq.physical_on(underlay.id).ok_or_else(missing);
        let pd = pd.physical_on(underlay.id).ok_or_else(missing)?;
        let mut init = QpInit {
            qp_type: parts.qp_type,
            cap: parts.cap,
            // Every request says itself whether it is signalled.
            sq_sig_all: false,
            send_cq: cq(parts.send_cq)?,
            recv_cq: cq(parts.recv_cq)?,
            srq: parts.srq.clone(),
        };
        let inline = parts.cap.max_inline_data;
        if parts.qp_type == qp_type::RC {
            init.cap.max_inline_data = inline.max(RECORD_BYTES);
        }
        let qp = Arc::clone(&pd).create_qp(&init).or_else(|error| {
            // A device that has no inline data, say. Its peers then get no records.
            if init.cap.max_inline_data == inline {
                return Err(error);
            }
            init.cap.max_inline_data = inline;
            Arc::clone(&pd).create_qp(&init)
        })?;
        Ok(Attachment { underlay: Arc::clone(underlay), pd, qp, _use: underlay.user() })
    }
}

/// What a queue pair is made from.
pub(super) struct QpParts {
    pub(super) pd: Arc<PdCore>,
    pub(super) attachment: Attachment,
    pub(super) qp_type: u32,
    pub(super) cap: QpCap,
    pub(super) sig_all: bool,
    pub(super) single_threaded: bool,
    pub(super) send_cq: Arc<CqCore>,
    pub(super) recv_cq: Arc<CqCore>,
    pub(super) srq: Option<Arc<SrqCore>>,
    /// Where what it sends is kept, if it is.
    pub(super) ring: Option<Arc<Ring>>,
}

/// A queue pair, as its posters, its pollers and the service thread share it.
pub(super) struct QpCore {
    // What pollers read comes first.
    pub(super) qpn: u32,
    pub(super) qp_type: u32,
    /// Bits of [`watch`].
    pub(super) watch: AtomicU32,
    /// Connected: what completions say of the peer: its queue pair number (lower half), its LID.
    pub(super) remote: AtomicU64,
    pub(super) send: SendWindow,
    pub(super) recv: RecvWindow,
    send_side: Side<SendSide>,
    recv_side: Side<RecvSide>,
    /// The queue pair's part of a physical `wr_id`, of sends and of receives.
    tag: u64,
    recv_tag: u64,
    /// Flags that every request gets.
    always: u32,
    cap: QpCap,
    pub(super) srq: Option<Arc<SrqCore>>,
    pub(super) pd: Arc<PdCore>,
    /// Into which its peer records, where that is wanted on a device that it is or was on.
    word: OnceLock<Word>,
    /// A record has failed with that status, and no request of the program's has been told so.
    blame: AtomicU32,
    /// Receives that were consumed before it was connected.
    recv_base: AtomicU64,
    /// The program has told it to end, or it has failed for good: what fails from then on is no path.
    is_ending: AtomicBool,
    /// Something in its window waits until less is outstanding, and its send CQ knows.
    waits_for_room: AtomicBool,
    /// How far the window had come when that began.
    full_at: AtomicU64,
    /// Receives that have come back empty since.
    pub(super) unfilled: AtomicU64,
    /// Messages delivered since, where its receives are shared.
    pub(super) delivered: AtomicU64,
    /// How far it had come when it was last looked at.
    seen: AtomicU64,
    moving: Mutex<remap::Moving>,
    /// No re-map of it is under way any more.
    moved: Condvar,
    /// Processes that have asked what its number stands for.
    known_to: Mutex<HashSet<ProcessId>>,
    // Weak, because a CQ keeps queue pairs that it may still have completions of.
    send_cq: Weak<CqCore>,
    recv_cq: Weak<CqCore>,
    me: Weak<QpCore>,
    /// `None` once the program has destroyed it.
    attachment: Mutex<Option<Attachment>>,
    control: Mutex<Control>,
    /// What its requests write is recorded: it goes the long way for life.
    pub(super) tracked: Option<Tracked>,
    /// What is kept of what it sends: where there is something, it goes the long way for life.
    pub(super) retaining: Option<Retaining>,
}

/// A physical request or receive of one element, which stands beside it. Reached through raw
/// pointers alone, since one part points to the other.
struct PlainWr<W>(NonNull<PlainParts<W>>);

// What is written for each request is on two cache lines.
#[repr(C, align(64))]
struct PlainParts<W> {
    wr: W,
    sge: Sge,
}

impl<W> PlainWr<W> {
    /// `wr` has one element; `point` tells it which.
    fn new(wr: W, point: impl FnOnce(&mut W, *mut Sge)) -> Self {
        let at = NonNull::from(Box::leak(Box::new(PlainParts { wr, sge: Sge::default() })));
        // SAFETY: it was just made, and nobody else has it.
        unsafe { point(&mut (*at.as_ptr()).wr, &raw mut (*at.as_ptr()).sge) };
        PlainWr(at)
    }

    /// The request, and its element.
    #[inline]
    fn parts(&mut self) -> (*mut W, *mut Sge) {
        let at = self.0.as_ptr();
        // SAFETY: it lives as long as this does.
        unsafe { (&raw mut (*at).wr, &raw mut (*at).sge) }
    }
}

impl<W> Drop for PlainWr<W> {
    fn drop(&mut self) {
        // SAFETY: it came from a box.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: it owns what it points to, which holds no other pointers than to itself.
unsafe impl<W> Send for PlainWr<W> {}

/// Whether a queue pair waits for a name.
pub(super) enum Blocked {
    /// It waits for this one.
    By(Missing),
    /// Everything in the window has been handed.
    No,
}

impl QpCore {
    fn new(parts: &QpParts, qpn: u32) -> Arc<Self> {
        let (cap, srq) = (parts.cap, parts.srq.clone());
        // Both fit: the caller compared them with the device's limits.
        let (send_sges, recv_sges) = (cap.max_send_sge as u8, cap.max_recv_sge as u8);
        let recv_depth = if srq.is_some() { 0 } else { cap.max_recv_wr };
        let attachment = &parts.attachment;
        let send_side = Side::new(SendSide::new(attachment, send_sges), parts.single_threaded);
        let recv_side = Side::new(RecvSide::new(attachment, recv_sges), parts.single_threaded);
        // The short ways are for connected queue pairs, and requests of one element.
        let retaining = match (&parts.ring, parts.pd.context.retention()) {
            (Some(ring), Retention::Payload { from_copy, .. }) => {
                Some(Retaining::new(ring, *from_copy))
            }
            _ => None,
        };
        let tracked = parts.pd.context.tracks().then(Tracked::default);
        let odd_sends = parts.qp_type == qp_type::UD
            || send_sges == 0
            || retaining.is_some()
            || tracked.is_some();
        let odd_recvs = srq.is_some() || recv_sges == 0 || tracked.is_some();
        Arc::new_cyclic(|me| QpCore {
            qpn,
            qp_type: parts.qp_type,
            watch: AtomicU32::new(if parts.qp_type == qp_type::UD { watch::DATAGRAM } else { 0 }),
            remote: AtomicU64::new(0),
            send: SendWindow::new(cap.max_send_wr, send_sges, cap.max_inline_data),
            recv: RecvWindow::new(recv_depth, recv_sges),
            send_side: if odd_sends { send_side.odd() } else { send_side },
            recv_side: if odd_recvs { recv_side.odd() } else { recv_side },
            tag: u64::from(qpn) << QPN_SHIFT,
            recv_tag: u64::from(qpn) << QPN_SHIFT | RECV,
            always: if parts.sig_all { send_flags::SIGNALED } else { 0 },
            cap,
            srq,
            pd: Arc::clone(&parts.pd),
            word: OnceLock::new(),
            blame: AtomicU32::new(abi::wc_status::SUCCESS),
            recv_base: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
            waits_for_room: AtomicBool::new(false),
            full_at: AtomicU64::new(0),
            unfilled: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            moving: Mutex::default(),
            moved: Condvar::new(),
            known_to: Mutex::default(),
            send_cq: Arc::downgrade(&parts.send_cq),
            recv_cq: Arc::downgrade(&parts.recv_cq),
            me: me.clone(),
            attachment: Mutex::new(Some(attachment.clone())),
            control: Mutex::default(),
            retaining,
            tracked,
        })
    }

    pub(super) fn weak(&self) -> Weak<QpCore> {
        self.me.clone()
    }

    pub(super) fn local(&self) -> &Arc<Local> {
        self.pd.context.local()
    }

    fn attachment(&self) -> Result<Attachment> {
        lock_mutex(&self.attachment)
            .clone()
            .ok_or_else(|| Error::invalid(format!("queue pair {:#x} has been destroyed", self.qpn)))
    }

    /// A process has asked what its number stands for.
    pub(super) fn is_known_to(&self, process: ProcessId) {
        lock_mutex(&self.known_to).insert(process);
    }

    /// Who has asked, since it was in RESET.
    pub(super) fn known_to(&self) -> Vec<ProcessId> {
        lock_mutex(&self.known_to).iter().copied().collect()
    }

    /// Its peer can record on the device of that physical queue pair, where the packet number there is
    /// not live.
    fn keep_word(&self, on: &Attachment) -> Result<()> {
        if self.qp_type != qp_type::RC || on.underlay.source != Source::Record {
            return Ok(());
        }
        let word = self.word.get_or_init(|| self.pd.records.take());
        word.keep_on(on.underlay.id, &on.pd).map_err(|error| {
            error.context(format_args!("a word for the records of queue pair {:#x}", self.qpn))
        })
    }

    /// Where the peer records, on that device.
    fn word_on(&self, device: DeviceId) -> Option<RecordWord> {
        self.word.get()?.on(device)
    }

    /// Its CQs, as long as they are there.
    pub(super) fn cqs(&self) -> impl Iterator<Item = Arc<CqCore>> {
        [self.send_cq.upgrade(), self.recv_cq.upgrade()].into_iter().flatten()
    }

    /// Its CQs, of sends and of receives, as far as they are there.
    pub(super) fn both_cqs(&self) -> [Option<Arc<CqCore>>; 2] {
        [self.send_cq.upgrade(), self.recv_cq.upgrade()]
    }

    /// Where peers reach it; `None` where its port does not answer.
    pub(super) fn end(&self) -> Option<PhysicalEnd> {
        // The physical queue pair itself is not held: destroying it waits for nobody.
        let (underlay, number) = {
            let attachment = lock_mutex(&self.attachment);
            let attachment = attachment.as_ref()?;
            (Arc::clone(&attachment.underlay), attachment.qp.qp_num())
        };
        let port = lock_mutex(&self.control).port();
        let end = underlay.end(port, number).ok()?;
        Some(PhysicalEnd { word: self.word_on(underlay.id), ..end })
    }

    /// Tells what the completions of this queue pair took of `cq`.
    pub(super) fn unload(&self, cq: &CqCore, tell: &mut dyn FnMut(u64, Option<&SrqCore>)) {
        if std::ptr::eq(self.send_cq.as_ptr(), cq) {
            tell(super::cq::sends(self.qp_type, &self.cap), None);
        }
        if std::ptr::eq(self.recv_cq.as_ptr(), cq) {
            tell(u64::from(self.cap.max_recv_wr), self.srq.as_deref());
        }
    }

    /// Whether a request that waits for this name can go on.
    pub(super) fn knows(&self, peer: &Peer, wanted: Wanted) -> bool {
        match wanted {
            Wanted::Key(key) => {
                self.send_side.enter_shared().is_none_or(|side| side.knows_key(peer, key))
            }
            // Asked for in this queue pair's name alone, and so it alone learns of the answer.
            Wanted::Qpn { .. } => false,
        }
    }

    /// A name that it waited for has come, or never will.
    pub(super) fn settled(&self, peer: &Peer, wanted: Wanted, outcome: Outcome) {
        if outcome == Outcome::Lost && self.qp_type == qp_type::RC {
            self.fail(abi::wc_status::RETRY_EXC_ERR);
            return;
        }
        // Unreliable: what cannot be delivered is lost, and its request completes.
        let announce = |known| {
            if let Wanted::Qpn { path, .. } = wanted
                && let Some(mut side) = self.send_side.enter_shared()
            {
                side.announce(peer, path, known);
            }
        };
        announce(true);
        let blocked = self.push();
        if outcome == Outcome::Lost {
            announce(false);
        }
        if let Blocked::By(missing) = blocked {
            missing.resolve(self);
        }
    }

    /// Whether the program has destroyed it.
    pub(super) fn is_dead(&self) -> bool {
        self.watch.load(Ordering::Relaxed) & watch::DEAD != 0
    }

    /// The process of the job that it has been connected to since it was in RESET, and its queue pair.
    pub(super) fn met(&self) -> Option<(ProcessId, u32)> {
        lock_mutex(&self.control).met
    }

    /// It has met a queue pair of a process of the job, or the connection with that has ended: no device reads
    /// or writes for it any more.
    fn meets(&self, new: Option<(ProcessId, u32)>) {
        let old = std::mem::replace(&mut lock_mutex(&self.control).met, new);
        if let Some((peer, qpn)) = old {
            let local = self.local();
            let number = local.committed.number(local.grant().incarnation.0);
            self.pd.context.gone.add(peer, qpn, self.qpn, number);
        }
        match (&self.retaining, new) {
            (Some(retaining), Some((peer, qpn))) => retaining.begin(self, peer.0, qpn),
            (Some(retaining), None) => retaining.end(),
            (None, _) => {}
        }
    }

    /// Inside its send side, whatever its user does.
    pub(super) fn visit_sends(&self) -> impl Drop + '_ {
        self.send_side.visit()
    }

    /// Inside its receive side.
    pub(super) fn visit_recvs(&self) -> impl Drop + '_ {
        self.recv_side.visit()
    }

    /// Where its peer records, if it does.
    pub(super) fn word_address(&self) -> Option<u64> {
        self.word.get().map(Word::address)
    }

    /// Messages of the peer that have been delivered since it was connected.
    pub(super) fn received(&self) -> u64 {
        if self.srq.is_some() {
            return self.delivered.load(Ordering::Acquire);
        }
        let since = self.recv.retired().wrapping_sub(self.recv_base.load(Ordering::Acquire));
        since.wrapping_sub(self.unfilled.load(Ordering::Acquire))
    }

    /// The physical number and device, to take them out of the device's table.
    fn detach(&self) -> Option<Attachment> {
        self.stay_for_good();
        self.local().forget_qp(self.qpn);
        self.send_side.enter().detach();
        self.recv_side.enter().detach();
        lock_mutex(&self.attachment).take()
    }
}

impl Drop for QpCore {
    fn drop(&mut self) {
        // Its CQs have let go of it: no completion names it any more.
        self.local().qps.clear(self.qpn);
        self.local().return_qpn(self.qpn);
    }
}

/// The queue pair that a program holds.
pub(super) struct VirtualQp {
    core: Direct<QpCore>,
    send_cq: Arc<CqCore>,
    recv_cq: Arc<CqCore>,
    /// Registered as long as it may send from there.
    _ring: Option<Arc<Ring>>,
}

impl VirtualQp {
    /// A queue pair over a physical one that was just created, for whose completions there is
    /// room in the CQs.
    pub(super) fn new(parts: &QpParts) -> Result<Self> {
        let qpn = parts.pd.context.local().deal_qpn()?;
        Self::named(parts, qpn)
    }

    /// The same, under a number that was dealt.
    pub(super) fn named(parts: &QpParts, qpn: u32) -> Result<Self> {
        let local = parts.pd.context.local();
        let core = QpCore::new(parts, qpn);
        let attachment = &parts.attachment;
        core.keep_word(attachment)?;
        let physical = attachment.qp.qp_num();
        if !attachment.underlay.qpns.set(physical as usize, physical, qpn) {
            return Err(Error::new(
                libc::EIO,
                format!("{} dealt queue pair {physical:#x}", attachment.underlay.device.name()),
            ));
        }
        local.add_qp(&core);
        parts.pd.context.qp_count.fetch_add(1, Ordering::Relaxed);
        let (send_cq, recv_cq) = (Arc::clone(&parts.send_cq), Arc::clone(&parts.recv_cq));
        let _ring = parts.ring.clone();
        Ok(VirtualQp { core: Direct::new(core), send_cq, recv_cq, _ring })
    }

    pub(super) fn core(&self) -> &Arc<QpCore> {
        self.core.arc()
    }
}

impl Drop for VirtualQp {
    fn drop(&mut self) {
        let context = Arc::clone(&self.core.pd.context);
        let _settled = context.settled();
        context.qp_count.fetch_sub(1, Ordering::Relaxed);
        let attachment = self.core.detach();
        let physical = attachment.map(|it| (it.underlay, it.qp.qp_num()));
        self.core.meets(None);
        self.core.look_through_all();
        self.core.watch_source(None);
        // The physical one is destroyed by now; what it left in the CQs is taken out by them.
        self.send_cq.bury(self.core.arc());
        if !Arc::ptr_eq(&self.send_cq, &self.recv_cq) {
            self.recv_cq.bury(self.core.arc());
        }
        if let Some((underlay, number)) = physical {
            underlay.qpns.unset(number as usize, number, self.core.qpn);
        }
    }
}

impl DeviceQp for VirtualQp {
    fn qp_num(&self) -> u32 {
        self.core.qpn
    }

    fn qp_type(&self) -> u32 {
        self.core.qp_type
    }

    fn init_cap(&self) -> QpCap {
        self.core.cap
    }

    #[inline]
    unsafe fn post_send(&self, wr: *mut abi::SendWr) -> PostSend {
        // SAFETY: the caller's promise.
        unsafe { self.core.post_send(wr) }
    }

    #[inline]
    unsafe fn post_recv(&self, wr: *mut abi::RecvWr) -> PostRecv {
        // SAFETY: the caller's promise.
        unsafe { self.core.post_recv(wr) }
    }

    fn modify(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        self.core.modify(attr, mask)
    }

    fn query(&self, mask: u32) -> Result<QpAttr> {
        self.core.query(mask)
    }
}
