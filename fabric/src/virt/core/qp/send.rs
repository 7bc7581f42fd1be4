//! The send side: appending, and handing.

mod by_value;

use super::room::Admission;
use super::{Attachment, Blocked, Ending, PlainWr, QpCore};
use crate::abi::{self, AtomicWr, RdmaWr, SendWr, Sge, UdWr, qp_type, send_flags, wr_opcode};
use crate::device::{DeviceAh, DeviceQp, PostError, PostSend};
use crate::names::RecordWord;
use crate::virt::core::ah::{AhCore, AhPd, Destination};
use crate::virt::core::direct::Direct;
use crate::virt::core::lock::{Guard, gate};
use crate::virt::core::peer::{Missing, Peer, Wanted};
use crate::virt::core::retain;
use crate::virt::core::tables::{KeyTable, MAX_KEYS, PeerKeys, key_index};
use crate::virt::core::underlay::{NO_SUCH_KEY, NO_SUCH_QPN};
use crate::virt::core::written::Look;
use crate::virt::core::{LOW_31, QUIET};
use sojourn_logging::{Element, Grant, Opcode, PlainSlot, Refused, Replay, SMALL, SendEntry};
use std::collections::VecDeque;
use std::ptr;
use std::sync::Arc;

/// Requests handed in one call: a list of any length goes in chains of so many.
const CHAIN: usize = 16;
/// Flags that exist.
const FLAGS: u32 = send_flags::FENCE
    | send_flags::SIGNALED
    | send_flags::SOLICITED
    | send_flags::INLINE
    | send_flags::IP_CSUM;
/// Bytes of an atomic's target.
const ATOMIC_BYTES: u64 = 8;
/// The port of a datagram to nowhere.
const PORT: u8 = 1;

/// Whose keys one-sided requests name.
#[derive(Clone)]
pub(in crate::virt::core) enum Target {
    /// Not connected.
    Nobody,
    /// A process of the job, and its keys on the device that we are connected to.
    Peer(Arc<Peer>, Arc<PeerKeys>),
    /// Somebody outside: keys are physical.
    Foreign,
}

/// What a poster needs, behind the side's lock.
pub(in crate::virt::core) struct SendSide {
    qp: Option<Direct<dyn DeviceQp>>,
    keys: KeyTable,
    /// What may be handed before it is counted again.
    pub(super) grant: Grant,
    pub(super) target: Target,
    /// Where plain requests are put together.
    plain: PlainWr<SendWr>,
    /// What the program has posted; a register would have to be saved at every call.
    posting: *mut SendWr,
    /// Where the others are; each points to its own elements.
    wrs: Box<[SendWr; CHAIN]>,
    sges: Box<[Sge]>,
    max_sges: usize,
    /// Datagrams: peers that know of this queue pair, by their index.
    announced: Vec<bool>,
    /// Physical queue pairs that it has had before.
    path: u64,
    nowhere: Option<Arc<dyn DeviceAh>>,
    on: AhPd,
    pub(super) ending: Ending,
    /// Requests of an earlier path, to be handed again before anything else.
    pub(super) replays: VecDeque<Replay>,
    /// Where the peer wants records.
    pub(super) record: Option<RecordWord>,
    /// WRITEs behind the last record and the last message.
    pub(super) unrecorded: u32,
}

// SAFETY: the pointers are to this struct's own boxes, and null otherwise; `posting` is looked at by
// the call that set it alone.
unsafe impl Send for SendSide {}

/// What entries of the window wait for.
enum Wait {
    Name(Missing),
    Room,
}

/// A request in the window: what stands in the way of handing it, if anything.
type Staged = std::result::Result<u64, Missing>;

impl SendSide {
    pub(super) fn new(attachment: &Attachment, max_sges: u8) -> Self {
        // Inline data takes an element even where the program has asked for none.
        let max_sges = usize::from(max_sges).max(1);
        let mut sges = vec![Sge::default(); CHAIN * max_sges].into_boxed_slice();
        let mut wrs = Box::new([SendWr::empty(); CHAIN]);
        for (wr, part) in wrs.iter_mut().zip(sges.chunks_exact_mut(max_sges)) {
            wr.sg_list = part.as_mut_ptr();
        }
        let plain = PlainWr::new(SendWr::empty(), |wr, sge| (wr.sg_list, wr.num_sge) = (sge, 1));
        let on =
            AhPd { underlay: Arc::clone(&attachment.underlay), pd: Arc::clone(&attachment.pd) };
        SendSide {
            qp: Some(Direct::new(Arc::clone(&attachment.qp))),
            keys: attachment.underlay.keys.clone(),
            grant: Grant::default(),
            target: Target::Nobody,
            plain,
            posting: ptr::null_mut(),
            wrs,
            sges,
            max_sges,
            announced: Vec::new(),
            path: 0,
            nowhere: None,
            on,
            ending: Ending::default(),
            replays: VecDeque::new(),
            record: None,
            unrecorded: 0,
        }
    }

    pub(super) fn detach(&mut self) {
        self.qp = None;
    }

    /// Goes over to another physical queue pair, which knows of nothing that was posted.
    pub(super) fn go_over(&mut self, attachment: &Attachment, target: Option<Target>) {
        self.qp = Some(Direct::new(Arc::clone(&attachment.qp)));
        self.keys = attachment.underlay.keys.clone();
        if let Some(target) = target {
            self.target = target;
        }
        // Peers do not know where its datagrams come from now.
        self.announced.clear();
        self.path += 1;
        self.nowhere = None;
        self.on =
            AhPd { underlay: Arc::clone(&attachment.underlay), pd: Arc::clone(&attachment.pd) };
    }

    pub(super) fn physical(&self) -> Option<&dyn DeviceQp> {
        self.qp.as_deref()
    }

    pub(super) fn knows_key(&self, peer: &Peer, key: u32) -> bool {
        match &self.target {
            Target::Peer(target, keys) if target.process == peer.process => {
                keys.get(key_index(key), key).is_some()
            }
            // Connected elsewhere by now: nothing to wait for.
            _ => true,
        }
    }

    /// A peer has been told where datagrams came from on that path, or is to be told anew.
    pub(super) fn announce(&mut self, peer: &Peer, path: u64, known: bool) {
        if path != self.path {
            return;
        }
        if self.announced.len() <= peer.index {
            self.announced.resize(peer.index + 1, false);
        }
        self.announced[peer.index] = known;
    }

    /// Puts the physical request of `entry` together in place `at`.
    #[inline]
    fn lower<I>(
        &mut self,
        core: &QpCore,
        at: usize,
        seq: u64,
        entry: &SendEntry,
        elements: I,
        ah: Option<&AhCore>,
    ) -> Result<(), Missing>
    where
        I: ExactSizeIterator<Item = Element> + Clone,
    {
        if entry.opcode.is_one_sided() {
            let rkey = match &self.target {
                Target::Peer(_, keys) => match keys.get(key_index(entry.rkey), entry.rkey) {
                    Some(rkey) => rkey,
                    None => self.unknown_key(entry, elements.clone())?,
                },
                Target::Foreign => entry.rkey,
                Target::Nobody => NO_SUCH_KEY,
            };
            let remote_addr = entry.remote_addr;
            if entry.opcode.is_atomic() {
                let (compare_add, swap) = (entry.compare_add, entry.swap);
                self.wrs[at].wr.atomic = AtomicWr { remote_addr, compare_add, swap, rkey };
            } else {
                self.wrs[at].wr.rdma = RdmaWr { remote_addr, rkey };
            }
        } else if core.qp_type == qp_type::UD {
            self.wrs[at].wr.ud = self.datagram(core, entry, ah)?;
        }
        let sges = &mut self.sges[at * self.max_sges..][..self.max_sges];
        let wr = &mut self.wrs[at];
        if u32::from(entry.flags) & send_flags::INLINE != 0 {
            sges[0] = Sge { addr: core.send.inline_addr(seq), length: entry.inline, lkey: 0 };
            wr.num_sge = i32::from(entry.inline > 0);
        } else {
            wr.num_sge = elements.len() as i32;
            for (sge, element) in sges.iter_mut().zip(elements) {
                let lkey = self.keys.get(element.lkey).unwrap_or(NO_SUCH_KEY);
                *sge = Sge { addr: element.addr, length: element.length, lkey };
            }
        }
        wr.wr_id = core.tag | seq & LOW_31;
        wr.opcode = entry.opcode as u32;
        wr.send_flags = u32::from(entry.flags);
        wr.imm.imm_data = entry.imm;
        // What brings something back is signalled always: a drained queue then knows that it has come.
        if matches!(entry.opcode, Opcode::Read) || entry.opcode.is_atomic() {
            self.ask_quietly(at);
        }
        Ok(())
    }

    /// The request in place `at` is signalled, where the program did not ask for that.
    #[inline]
    fn ask_quietly(&mut self, at: usize) {
        let wr = &mut self.wrs[at];
        if wr.send_flags & send_flags::SIGNALED == 0 {
            wr.send_flags |= send_flags::SIGNALED;
            wr.wr_id |= QUIET;
        }
    }

    /// Leaves out the first `skip` bytes of the WRITE in place `at`: they have landed.
    fn skip(&mut self, at: usize, skip: u32) {
        if skip == 0 {
            return;
        }
        let sges = &mut self.sges[at * self.max_sges..][..self.max_sges];
        let wr = &mut self.wrs[at];
        // SAFETY: a WRITE has these.
        let RdmaWr { remote_addr, rkey } = unsafe { wr.wr.rdma };
        let remote_addr = remote_addr.wrapping_add(u64::from(skip));
        wr.wr.rdma = RdmaWr { remote_addr, rkey };
        let mut left = skip;
        let mut kept = 0;
        for i in 0..wr.num_sge.max(0) as usize {
            let mut sge = sges[i];
            let cut = left.min(sge.length);
            left -= cut;
            if cut < sge.length || sge.length == 0 {
                (sge.addr, sge.length) = (sge.addr + u64::from(cut), sge.length - cut);
                sges[kept] = sge;
                kept += 1;
            }
        }
        wr.num_sge = kept as i32;
    }

    /// A key of the peer that is not in the table: what to hand in its place, or what to wait for.
    #[cold]
    fn unknown_key(
        &self,
        entry: &SendEntry,
        elements: impl Iterator<Item = Element>,
    ) -> Result<u32, Missing> {
        let Target::Peer(peer, _) = &self.target else { return Ok(NO_SUCH_KEY) };
        let bytes = u64::from(entry.inline) + elements.map(|e| u64::from(e.length)).sum::<u64>();
        // A request of no bytes names no memory (IBTA 9.7.4.1.5): its key may be anything.
        let nothing = bytes == 0 && !entry.opcode.is_atomic();
        let never_dealt = key_index(entry.rkey) == 0 || key_index(entry.rkey) >= MAX_KEYS as usize;
        // Our own keys are in the table from the moment of registration.
        if nothing || never_dealt || peer.own {
            return Ok(NO_SUCH_KEY);
        }
        Err(Missing { peer: Arc::clone(peer), wanted: Wanted::Key(entry.rkey) })
    }

    /// The physical destination of a datagram.
    #[inline]
    fn datagram(
        &mut self,
        core: &QpCore,
        entry: &SendEntry,
        ah: Option<&AhCore>,
    ) -> Result<UdWr, Missing> {
        let (qpn, remote_qkey) = (entry.rkey, entry.qkey);
        // The program has destroyed the handle of a request that is still outstanding: the
        // datagram is lost.
        let Some(ah) = ah else { return Ok(self.lost_datagram(remote_qkey)) };
        let peer = match &ah.destination {
            Destination::Foreign(ah) => {
                return Ok(UdWr { ah: ah.as_raw(), remote_qpn: qpn, remote_qkey });
            }
            Destination::Peer(peer) => peer,
        };
        let known = match self.announced.get(peer.index) {
            Some(true) => peer.qpn(qpn),
            _ => None,
        };
        let (end, remote_qpn) = match known {
            Some(known) => known,
            None => match self.unknown_qpn(core, peer, qpn)? {
                Some(known) => known,
                None => return Ok(self.lost_datagram(remote_qkey)),
            },
        };
        match ah.physical(self.on.underlay.id, end) {
            Some(ah) => Ok(UdWr { ah, remote_qpn, remote_qkey }),
            None => Ok(self.lost_datagram(remote_qkey)),
        }
    }

    /// A queue pair number of a peer that is not in the table, or that peer does not know of us.
    #[cold]
    fn unknown_qpn(
        &mut self,
        core: &QpCore,
        peer: &Arc<Peer>,
        qpn: u32,
    ) -> Result<Option<(u8, u32)>, Missing> {
        if qpn > abi::MASK_24 {
            return Ok(None);
        }
        if !peer.own {
            let wanted = Wanted::Qpn { qpn, own: core.qpn, path: self.path };
            return Err(Missing { peer: Arc::clone(peer), wanted });
        }
        let physical = self.qp.as_ref().map(|qp| qp.qp_num());
        if let Some(end) = physical.and_then(|number| self.on.underlay.end(PORT, number).ok()) {
            core.local().learn_sender(&end, core.qpn, peer.process);
        }
        // Not announced for good: a queue pair of our own may go and come again.
        let Some((end, _)) = core.local().own_qpn(qpn) else { return Ok(None) };
        peer.learn_qpn(qpn, &end);
        Ok(peer.qpn(qpn))
    }

    /// A datagram for a queue pair that does not exist: the device drops it on arrival.
    #[cold]
    pub(super) fn lost_datagram(&mut self, remote_qkey: u32) -> UdWr {
        if self.nowhere.is_none() {
            self.nowhere = self.on.nowhere(PORT).ok();
        }
        let ah = self.nowhere.as_ref().map_or(ptr::null_mut(), |ah| ah.as_raw());
        UdWr { ah, remote_qpn: NO_SUCH_QPN, remote_qkey }
    }

    /// Opcodes of the first `n` physical requests.
    pub(super) fn opcodes(&self, n: usize) -> impl Iterator<Item = u32> + '_ {
        self.wrs[..n].iter().map(|wr| wr.opcode)
    }

    /// Hands the first `n` physical requests. With an error: how many of them were taken.
    #[inline]
    fn hand(&mut self, n: usize) -> Result<(), (usize, i32)> {
        let Some(qp) = &self.qp else { return Err((0, libc::EINVAL)) };
        let base = self.wrs.as_mut_ptr();
        if n > 1 {
            for i in 1..n {
                self.wrs[i - 1].next = &raw mut self.wrs[i];
            }
            self.wrs[n - 1].next = ptr::null_mut();
        }
        // SAFETY: a list within `wrs`, each with elements within `sges`, which name what the
        // program's own requests named; handles are alive, or were looked up just now.
        let posted = unsafe { qp.post_send(base) };
        if n > 1 {
            for wr in &mut self.wrs[..n] {
                wr.next = ptr::null_mut();
            }
        }
        posted.map_err(|error| {
            let taken = (error.bad_wr() as usize).wrapping_sub(base as usize) / size_of::<SendWr>();
            (taken.min(n - 1), error.errno())
        })
    }
}

impl QpCore {
    /// # Safety
    /// As [`DeviceQp::post_send`].
    #[inline]
    pub(super) unsafe fn post_send(&self, list: *mut SendWr) -> PostSend {
        // The shortest way alone is here: what else a function can do costs registers.
        // SAFETY: the caller's list is valid during the call.
        if let Some(wr) = unsafe { list.as_ref() }
            && Self::is_plain(wr)
            && let Some(mut side) = self.send_side.enter_bare()
            && let Some(slot) = self.send.claim_granted()
            // SAFETY: plain requests have one element.
            && let length = unsafe { (*wr.sg_list).length }
            && (length <= SMALL || side.grant.take(length))
        {
            // SAFETY: the caller's promise; it is plain.
            if let Some(posted) = unsafe { self.post_plain(&mut side, slot, list, wr) } {
                return posted;
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.leave_short_send(list) }
    }

    /// Cold, so that the compiler lays the shortest way out straight.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    #[cold]
    #[inline(never)]
    unsafe fn leave_short_send(&self, list: *mut SendWr) -> PostSend {
        // SAFETY: the caller's promise.
        unsafe { self.post_send_entering(list) }
    }

    /// The same with the lock, where there is one; and where room has to be looked for.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    #[inline(never)]
    unsafe fn post_send_entering(&self, list: *mut SendWr) -> PostSend {
        let mut ask = false;
        // SAFETY: the caller's list is valid during the call.
        if let Some(wr) = unsafe { list.as_ref() }
            && Self::is_by_value(wr)
            // SAFETY: the caller's promise; it is such a one.
            && let Some(posted) = unsafe { self.post_by_value(list, wr) }
        {
            return posted;
        }
        // SAFETY: the caller's list is valid during the call.
        if let Some(wr) = unsafe { list.as_ref() }
            && Self::is_plain(wr)
        {
            let mut side = self.send_side.enter();
            // SAFETY: plain requests have one element.
            let length = unsafe { (*wr.sg_list).length };
            let signaled = (wr.send_flags | self.always) & send_flags::SIGNALED != 0;
            let admitted = match side.is_clear() {
                true => self.admit(&mut side, self.send.appended(), length.into()),
                false => Admission::No,
            };
            ask = admitted == Admission::WithCompletion && !signaled;
            if admitted != Admission::No && !ask {
                let Some(slot) = self.send.claim_plain() else {
                    return Err(PostError::new(libc::ENOMEM, list));
                };
                // SAFETY: the caller's promise; it is plain.
                if let Some(posted) = unsafe { self.post_plain(&mut side, slot, list, wr) } {
                    return posted;
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.post_list(list, ask) }
    }

    /// Whether a request is one of those that programs post by the million: alone, one element
    /// of registered memory, no atomic.
    #[inline]
    fn is_plain(wr: &SendWr) -> bool {
        wr.next.is_null()
            && wr.num_sge == 1
            && wr.opcode <= wr_opcode::RDMA_READ
            && wr.send_flags & !(FLAGS & !send_flags::INLINE) == 0
            // Such a one is signalled in any case, see `SendSide::lower`.
            && (wr.opcode != wr_opcode::RDMA_READ || wr.send_flags & send_flags::SIGNALED != 0)
    }

    /// What [`Self::post_list`] does, in fewer steps. `None` where nothing has changed, and it has
    /// to go the long way.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`], of a request that [`Self::is_plain`].
    #[inline(always)]
    unsafe fn post_plain(
        &self,
        side: &mut SendSide,
        slot: PlainSlot<'_>,
        list: *mut SendWr,
        wr: &SendWr,
    ) -> Option<PostSend> {
        let (place, physical_sge) = side.plain.parts();
        // SAFETY: ours alone while we are inside.
        let physical = unsafe { &mut *place };
        let opcode = wr.opcode;
        // Plain requests are SENDs or one-sided.
        if !matches!(opcode, wr_opcode::SEND | wr_opcode::SEND_WITH_IMM) {
            // SAFETY: one-sided requests have these.
            let RdmaWr { remote_addr, rkey } = unsafe { wr.wr.rdma };
            let Target::Peer(_, keys) = &side.target else { return None };
            let known = keys.get(key_index(rkey), rkey)?;
            slot.remote(remote_addr, rkey);
            physical.wr.rdma = RdmaWr { remote_addr, rkey: known };
        }
        let flags = wr.send_flags | self.always;
        // SAFETY: every byte of this union is initialised in a verbs request.
        let imm = unsafe { wr.imm.imm_data };
        slot.request(wr.wr_id, opcode, flags, imm);
        physical.wr_id = self.tag | slot.seq() & LOW_31;
        physical.opcode = opcode;
        physical.send_flags = flags;
        physical.imm.imm_data = imm;
        // SAFETY: plain requests have one element.
        let sge = unsafe { *wr.sg_list };
        // One that stands for nothing is handed as such, the long way.
        let lkey = side.keys.get(sge.lkey)?;
        slot.element(element(&sge));
        self.send.publish(slot);
        // SAFETY: as above.
        unsafe { *physical_sge = Sge { lkey, ..sge } };
        side.posting = list;
        // SAFETY: the physical queue pair goes with the virtual one, which is being posted to.
        let qp = unsafe { side.qp.as_ref().unwrap_unchecked() };
        // SAFETY: one request of ours, with one element, which names what the program's named.
        let posted = unsafe { qp.post_send(place) };
        Some(posted.or_else(|error| self.refused_plain(side, error.errno())))
    }

    /// The device does not want the request that was published last.
    #[cold]
    #[inline(never)]
    fn refused_plain(&self, side: &SendSide, errno: i32) -> PostSend {
        self.send.take_back(self.send.appended() - 1);
        self.send.revoke();
        Err(PostError::new(errno, side.posting))
    }

    /// Entries wait from here on, for a name or for room.
    #[cold]
    fn block(&self, side: Guard<'_, SendSide>, why: Wait) {
        self.send.revoke();
        side.share(gate::BLOCKED);
        match why {
            Wait::Name(missing) => missing.resolve(self),
            Wait::Room => self.wait_for_room(),
        }
    }

    /// A list, or a request while something is in the way. Where `ask` says so, the first must bring a
    /// completion.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    #[inline(never)]
    unsafe fn post_list(&self, list: *mut SendWr, mut ask: bool) -> PostSend {
        let mut side = self.send_side.enter();
        let mut next = list;
        while side.gate() == 0 && !next.is_null() {
            let first = self.send.appended();
            let mut staged = [ptr::null_mut(); CHAIN];
            let (mut n, mut refused, mut wait) = (0, None, None);
            while n < CHAIN {
                // SAFETY: the caller's list is valid during the call.
                let Some(wr) = (unsafe { next.as_ref() }) else { break };
                // SAFETY: the caller's promise.
                let length = unsafe { elements(wr) }.map(|it| u64::from(it.length)).sum();
                let admitted = self.admit(&mut side, self.send.appended(), length);
                if admitted == Admission::No {
                    wait = Some(Wait::Room);
                    break;
                }
                // SAFETY: the caller's promise.
                match unsafe { self.stage(&mut side, n, wr) } {
                    Ok(Ok(_)) => staged[n] = next,
                    Ok(Err(name)) => wait = Some(Wait::Name(name)),
                    Err(errno) => refused = Some(errno),
                }
                if refused.is_some() {
                    break;
                }
                next = wr.next;
                if wait.is_some() {
                    break;
                }
                if std::mem::take(&mut ask) || admitted == Admission::WithCompletion {
                    side.ask_quietly(n);
                }
                n += 1;
            }
            if n > 0 {
                if let Err((taken, errno)) = side.hand(n) {
                    self.send.mark_handed(first + taken as u64);
                    self.keep_not(first + taken as u64);
                    self.send.take_back(first + taken as u64);
                    self.send.revoke();
                    return Err(PostError::new(errno, staged[taken]));
                }
                self.send.mark_handed(first + n as u64);
                self.record_behind(&mut side, n);
            }
            if let Some(errno) = refused {
                self.send.revoke();
                return Err(PostError::new(errno, next));
            }
            if let Some(why) = wait {
                // What follows stays behind it, in order.
                // SAFETY: the caller's promise.
                let rest = unsafe { self.append_all(next) };
                if self.send.handed() < self.send.appended() {
                    self.block(side, why);
                }
                return rest;
            }
        }
        if next.is_null() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        let posted = unsafe { self.append_all(next) };
        if side.gate() & gate::FAILED != 0 {
            self.flush_sends(&mut side, false);
        } else if side.gate() & gate::ERR != 0 {
            self.begin_ending(&mut side, abi::wc_status::WR_FLUSH_ERR);
        }
        posted
    }

    /// Appends a list without handing it.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    unsafe fn append_all(&self, mut next: *mut SendWr) -> PostSend {
        // SAFETY: the caller's list is valid during the call.
        while let Some(wr) = unsafe { next.as_ref() } {
            // SAFETY: the caller's promise.
            if let Err(errno) = unsafe { self.append(wr) } {
                return Err(PostError::new(errno, next));
            }
            next = wr.next;
        }
        Ok(())
    }

    /// Appends a request, and puts its physical form in place `at`.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    #[inline]
    unsafe fn stage(&self, side: &mut SendSide, at: usize, wr: &SendWr) -> Result<Staged, i32> {
        // SAFETY: the caller's promise.
        let (seq, entry, copy) = unsafe { self.append(wr) }?;
        let ah = if self.qp_type == qp_type::UD {
            // SAFETY: a datagram's handle is one of ours, and alive during the call.
            unsafe { wr.wr.ud.ah.cast::<AhCore>().as_ref() }
        } else {
            None
        };
        if let Some(copy) = copy {
            return Ok(side.lower(self, at, seq, &entry, [copy].into_iter(), ah).map(|()| seq));
        }
        // SAFETY: the caller's promise.
        let elements = unsafe { elements(wr) };
        Ok(side.lower(self, at, seq, &entry, elements, ah).map(|()| seq))
    }

    /// Appends a request to the window; with the element of the copy that it is sent from, where it is.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`].
    #[inline]
    unsafe fn append(&self, wr: &SendWr) -> Result<(u64, SendEntry, Option<Element>), i32> {
        if let Some(tracked) = &self.tracked
            && tracked.sends_are_due(self)
        {
            self.look_through_sends(tracked, Look::Through);
        }
        let opcode = match Opcode::from_verbs(wr.opcode) {
            Some(Opcode::SendInv) | None => return Err(self.refuse(wr.opcode)),
            Some(opcode) => opcode,
        };
        if wr.num_sge as u32 > self.cap.max_send_sge.max(1) || wr.send_flags & !FLAGS != 0 {
            return Err(libc::EINVAL);
        }
        let mut entry = SendEntry {
            wr_id: wr.wr_id,
            opcode,
            flags: wr.send_flags as u16,
            // SAFETY: every byte of this union is initialised in a verbs request.
            imm: unsafe { wr.imm.imm_data },
            ..SendEntry::empty()
        };
        entry.flags |= self.always as u16;
        if opcode.is_one_sided() {
            let write = matches!(opcode, Opcode::Write | Opcode::WriteImm);
            // IBTA 9.2, table 38: what each transport service offers. The device would refuse it
            // too, but may get it only when a name has come.
            if self.qp_type != qp_type::RC && !(write && self.qp_type == qp_type::UC) {
                return Err(libc::EINVAL);
            }
            if opcode.is_atomic() {
                // SAFETY: what an atomic's target is.
                let atomic = unsafe { wr.wr.atomic };
                // IBTA 9.4.5. Some devices refuse it when posting, some when executing: here it
                // must not depend on whether the key is known already.
                if atomic.remote_addr % ATOMIC_BYTES != 0 {
                    return Err(libc::EINVAL);
                }
                (entry.remote_addr, entry.rkey) = (atomic.remote_addr, atomic.rkey);
                (entry.compare_add, entry.swap) = (atomic.compare_add, atomic.swap);
            } else {
                // SAFETY: what the target of a WRITE or READ is.
                let rdma = unsafe { wr.wr.rdma };
                (entry.remote_addr, entry.rkey) = (rdma.remote_addr, rdma.rkey);
            }
        } else if self.qp_type == qp_type::UD {
            // SAFETY: what the target of a datagram is.
            let ud = unsafe { wr.wr.ud };
            // SAFETY: the handle is one of ours, and alive during the call.
            let Some(ah) = (unsafe { ud.ah.cast::<AhCore>().as_ref() }) else {
                return Err(libc::EINVAL);
            };
            entry.remote_addr = u64::from(ah.number);
            (entry.rkey, entry.qkey) = (ud.remote_qpn, ud.remote_qkey);
        }
        let keeps = self.retaining.as_ref().filter(|_| retain::is_kept(opcode));
        let copy = match keeps {
            // SAFETY: the caller's promise.
            Some(retaining) => unsafe {
                self.keep(retaining, &entry, sges(wr.sg_list, wr.num_sge))
            },
            None => None,
        };
        let appended = if let Some(copy) = copy {
            self.send.append(&entry, [copy].into_iter())
        } else if wr.send_flags & send_flags::INLINE != 0 {
            if matches!(opcode, Opcode::Read) || opcode.is_atomic() {
                return Err(libc::EINVAL);
            }
            // SAFETY: the caller's promise.
            let sges = unsafe { sges(wr.sg_list, wr.num_sge) };
            entry.inline = sges.iter().fold(0u32, |sum, sge| sum.saturating_add(sge.length));
            let pieces = sges.iter().filter(|sge| sge.length > 0).map(|sge| {
                // SAFETY: inline data is readable during the call.
                unsafe { std::slice::from_raw_parts(sge.addr as *const u8, sge.length as usize) }
            });
            self.send.append_inline(&entry, pieces)
        } else {
            // SAFETY: the caller's promise.
            self.send.append(&entry, unsafe { elements(wr) })
        };
        let refused = match appended {
            Ok(seq) => return Ok((seq, entry, copy)),
            Err(refused) => refused,
        };
        if let Some(retaining) = keeps {
            retaining.take_back(1, u64::from(opcode != Opcode::Write));
        }
        Err(if refused == Refused::Full { libc::ENOMEM } else { libc::EINVAL })
    }

    #[cold]
    fn refuse(&self, opcode: u32) -> i32 {
        tracing::error!(
            "queue pair {:#x}: {} ({opcode}) was posted; virtual queue pairs refuse memory windows, \
             remote invalidation, segmentation offload and vendors' own operations",
            self.qpn,
            wr_opcode::name(opcode)
        );
        libc::EOPNOTSUPP
    }

    /// Hands what waits in the window, as far as names are known. Not for the poster's own use,
    /// unless the window is blocked.
    pub(in crate::virt::core) fn push(&self) -> Blocked {
        let Some(mut side) = self.send_side.enter_shared() else { return Blocked::No };
        self.push_in(&mut side)
    }

    /// The same, inside.
    pub(super) fn push_in(&self, side: &mut Guard<'_, SendSide>) -> Blocked {
        loop {
            if side.gate() & (gate::FAILED | gate::SUSPENDED) != 0 {
                return Blocked::No;
            }
            let again = side.replays.len().min(CHAIN);
            let first = self.send.handed();
            let waiting = match again {
                0 => (self.send.appended() - first).min(CHAIN as u64) as usize,
                again => again,
            };
            let (mut n, mut missing, mut full) = (0, None, false);
            // Kept until they are handed.
            let mut handles = Vec::new();
            while n < waiting && missing.is_none() {
                let replay = match again {
                    0 => Replay { seq: first + n as u64, skip: 0 },
                    _ => side.replays[n],
                };
                let Replay { seq, skip } = replay;
                // What is handed again was outstanding before.
                let admitted = match again {
                    0 => self.admit(side, seq, self.send.length(seq)),
                    _ => Admission::Yes,
                };
                if admitted == Admission::No {
                    full = true;
                    break;
                }
                let entry = self.send.entry(seq);
                let elements = (0..entry.elements).map(|i| self.send.element(seq, i.into()));
                let ah = if self.qp_type == qp_type::UD {
                    self.local().ahs.get(entry.remote_addr as u32)
                } else {
                    None
                };
                match side.lower(self, n, seq, &entry, elements, ah.as_deref()) {
                    Ok(()) => {
                        if again > 0 {
                            side.skip(n, skip);
                        }
                        if again > 0 || admitted == Admission::WithCompletion {
                            side.ask_quietly(n);
                        }
                        n += 1;
                    }
                    Err(name) => missing = Some(name),
                }
                handles.extend(ah);
            }
            if n > 0 {
                let handed = side.hand(n);
                let taken = handed.map_or_else(|(taken, _)| taken, |()| n);
                match again {
                    0 => self.send.mark_handed(first + taken as u64),
                    _ => drop(side.replays.drain(..taken)),
                }
                self.record_behind(side, taken);
                if let Err((_, errno)) = handed {
                    tracing::error!(
                        "queue pair {:#x}: the device refused a request that had waited: {}",
                        self.qpn,
                        std::io::Error::from_raw_os_error(errno)
                    );
                    self.begin_ending(side, abi::wc_status::LOC_QP_OP_ERR);
                    return Blocked::No;
                }
            }
            if let Some(missing) = missing {
                self.send.revoke();
                return Blocked::By(missing);
            }
            if side.replays.is_empty() && self.send.handed() == self.send.appended() {
                side.clear(gate::BLOCKED);
                return Blocked::No;
            }
            if full {
                self.wait_for_room();
                return Blocked::No;
            }
        }
    }
}

/// The elements of a list, which may be null where it is empty.
///
/// # Safety
/// `list` is valid for `n` elements.
#[inline]
pub(in crate::virt::core) unsafe fn sges<'a>(list: *const Sge, n: i32) -> &'a [Sge] {
    if n <= 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(list, n as usize) }
}

/// The elements of a request, as the window keeps them.
///
/// # Safety
/// The request's list is valid.
#[inline]
unsafe fn elements(wr: &SendWr) -> impl ExactSizeIterator<Item = Element> + Clone + '_ {
    // SAFETY: the caller's promise.
    unsafe { sges(wr.sg_list, wr.num_sge) }.iter().map(element)
}

#[inline]
pub(super) fn element(sge: &Sge) -> Element {
    Element { addr: sge.addr, length: sge.length, lkey: sge.lkey }
}

/// The way back.
pub(in crate::virt::core) fn sge(element: &Element) -> Sge {
    Sge { addr: element.addr, length: element.length, lkey: element.lkey }
}
