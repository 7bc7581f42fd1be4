//! Virtual completion queues: a backlog in front of physical ones.
//!
//! Polling takes what the devices have, in place in the program's array, and puts virtual names
//! where physical ones are. The backlog holds what was harvested before the program asked, and what
//! we complete ourselves; it is given out first, so that the order of a queue pair's completions
//! is kept: whoever puts something in there has seen to it that nothing earlier is still out.
//!
//! A physical CQ holds a full flush of all its queue pairs, or else completions could be lost; the
//! program's own size bounds nothing physical.

mod written;

use super::channel::ChannelCore;
use super::direct::Direct;
use super::local::{Local, QpTable};
use super::lock::{Side, gate};
use super::qp::{QpCore, physical_sends, watch};
use super::srq::SrqCore;
use super::underlay::Underlay;
use super::{
    KIND_SHIFT, LOW_31, MARKER, PROOF, QPN_SHIFT, QUIET, RECORD, RECV, SHARED, arrived, lock_mutex,
};
use crate::abi::{self, Wc, qp_type, wc_status};
use crate::device::{CqInit, DeviceCq, Polled};
use crate::error::{Error, Result};
use crate::names::DeviceId;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Completions harvested at a time into the backlog.
const HARVEST: usize = 64;

/// A completion in the backlog, virtual already.
pub(super) struct Held {
    pub(super) recv: bool,
    /// The entry that leaves its window when this is polled; `None` where it has left.
    pub(super) seq: Option<u64>,
    pub(super) wc: Wc,
}

impl Held {
    /// One whose entry has left its window.
    pub(super) fn gone(wc: Wc) -> Self {
        Held { recv: false, seq: None, wc }
    }
}

/// A physical CQ, and the device that it is on.
struct Harvest {
    cq: Direct<dyn DeviceCq>,
    underlay: Arc<Underlay>,
    /// What it holds at most.
    cqe: u32,
}

impl Harvest {
    fn new(
        underlay: &Arc<Underlay>,
        number: u32,
        cqe: u32,
        comp_vector: u32,
        channel: Option<&ChannelCore>,
    ) -> Result<Self> {
        let physical = CqInit {
            cqe,
            channel: channel.and_then(|channel| channel.physical_on(underlay.id)),
            comp_vector,
            // Ours is the only lock.
            single_threaded: true,
            user: u64::from(number),
        };
        let cq = Arc::clone(&underlay.device).create_cq(physical)?;
        Ok(Harvest { cqe: cq.cqe(), cq: Direct::new(cq), underlay: Arc::clone(underlay) })
    }
}

impl Backlog {
    fn push(&mut self, held: Held) {
        self.held.push_back(held);
        self.came += 1;
    }

    /// Before what its own arrival has put in here since it had `at` entries: a failure comes before what
    /// it flushes.
    fn insert(&mut self, at: usize, held: Held) {
        self.held.insert(at.min(self.held.len()), held);
        self.came += 1;
    }
}

#[derive(Default)]
struct Backlog {
    held: VecDeque<Held>,
    /// Completions that were put in here so far; and as many when the program last asked to be told
    /// of the next.
    came: u64,
    armed_at: u64,
    /// Queue pairs that the program has destroyed, and of which the physical CQ may still hold
    /// completions: they stay until it has been emptied once more.
    graves: Vec<Arc<QpCore>>,
    /// Queue pairs all of whose completions go through here, until it is empty and they need it no
    /// longer.
    through: Vec<Weak<QpCore>>,
    /// Queue pairs that wait until less of theirs is outstanding.
    waiting: Vec<Weak<QpCore>>,
    /// The service thread looks after those.
    ticking: bool,
}

/// One for each device in use.
struct Devices {
    first: Harvest,
    /// None, as long as nothing moves; else the CQ wants attention at every poll.
    more: Vec<Harvest>,
}

impl Devices {
    fn iter(&self) -> impl Iterator<Item = &Harvest> {
        std::iter::once(&self.first).chain(&self.more)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Harvest> {
        std::iter::once(&mut self.first).chain(&mut self.more)
    }
}

/// What must fit into the physical CQ.
#[derive(Default)]
struct Load {
    /// Completions of queue pairs.
    own: u64,
    /// Shared receive queues by number: how many queue pairs on each, and its size.
    shared: HashMap<u32, (u32, u64)>,
}

impl Load {
    fn total(&self) -> u64 {
        self.own + self.shared.values().map(|(_, size)| size).sum::<u64>()
    }
}

/// Notification wanted.
mod armed {
    pub(super) const NO: u32 = 0;
    pub(super) const YES: u32 = 1;
    /// For solicited and failed ones.
    pub(super) const SOLICITED: u32 = 2;
}

/// A completion queue, as its pollers, its queue pairs and the service thread share it.
pub(super) struct CqCore {
    number: u32,
    user: u64,
    qps: QpTable,
    local: Arc<Local>,
    /// Its gate says where the backlog or the graves hold something.
    on: Side<Devices>,
    backlog: Mutex<Backlog>,
    load: Mutex<Load>,
    cqe: AtomicU32,
    armed: AtomicU32,
    /// Queue pairs of it that are between two devices: events may be of what the program does not see.
    moving: AtomicU32,
    /// There have been such, since its last event.
    doubtful: AtomicBool,
    channel: Option<Arc<ChannelCore>>,
}

impl CqCore {
    pub(super) fn new(
        local: &Arc<Local>,
        underlays: &[Arc<Underlay>],
        number: u32,
        init: &CqInit,
        channel: Option<Arc<ChannelCore>>,
    ) -> Result<Self> {
        if init.cqe == 0 {
            return Err(Error::invalid("a CQ of 0 completions: at least 1 is needed"));
        }
        let harvest = |underlay: &Arc<Underlay>| {
            Harvest::new(underlay, number, init.cqe, init.comp_vector, channel.as_deref())
        };
        let first = harvest(&underlays[0])?;
        let more = underlays[1..].iter().map(harvest).collect::<Result<Vec<_>>>()?;
        let attention = !more.is_empty();
        let cq = CqCore {
            number,
            user: init.user,
            qps: local.qps.clone(),
            local: Arc::clone(local),
            on: Side::new(Devices { first, more }, init.single_threaded),
            backlog: Mutex::default(),
            load: Mutex::default(),
            cqe: AtomicU32::new(init.cqe),
            armed: AtomicU32::new(armed::NO),
            moving: AtomicU32::new(0),
            doubtful: AtomicBool::new(false),
            channel,
        };
        if attention {
            cq.on.note(gate::ATTENTION);
        }
        Ok(cq)
    }

    /// Is on that device, too, with room for everything that its queue pairs may leave.
    pub(super) fn extend(&self, underlay: &Arc<Underlay>) -> Result<()> {
        let need = u64::from(self.cqe.load(Ordering::Relaxed)).max(lock_mutex(&self.load).total());
        let limit = underlay.device.query_device()?.max_cqe.max(0) as u64;
        if need > limit {
            return Err(Error::new(
                libc::ENOMEM,
                format!(
                    "a CQ needs room for {need} completions, and one of {} holds {limit} at most",
                    underlay.device.name()
                ),
            ));
        }
        // Another device may have fewer vectors; on which one an event comes tells nothing.
        let vector = 0;
        let harvest =
            Harvest::new(underlay, self.number, need as u32, vector, self.channel.as_deref())?;
        let mut on = self.on.visit();
        // Under the lock, under which it is armed: so no notification is missed.
        match self.armed.load(Ordering::Acquire) {
            armed::NO => {}
            kind => harvest.cq.req_notify(kind == armed::SOLICITED)?,
        }
        on.more.push(harvest);
        self.on.note(gate::ATTENTION);
        Ok(())
    }

    /// What that device has goes into the backlog; it is not polled any more.
    pub(super) fn retract(&self, device: DeviceId) {
        let mut on = self.on.visit();
        let on = &mut *on;
        if on.first.underlay.id == device && !on.more.is_empty() {
            std::mem::swap(&mut on.first, &mut on.more[0]);
        }
        if let Some(at) = on.more.iter().position(|harvest| harvest.underlay.id == device) {
            let gone = on.more.remove(at);
            self.harvest_one(&gone);
        }
    }

    /// This device is polled first from now on.
    pub(super) fn promote(&self, device: DeviceId) {
        let mut on = self.on.visit();
        let on = &mut *on;
        if let Some(at) = on.more.iter().position(|harvest| harvest.underlay.id == device) {
            std::mem::swap(&mut on.first, &mut on.more[at]);
        }
    }

    /// Its number within the process: how physical events name it.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// How the program's events name it.
    pub(super) fn user(&self) -> u64 {
        self.user
    }

    #[inline]
    fn poll(&self, wcs: &mut [Wc]) -> Polled {
        // Nor is there anything in the backlog then.
        match self.on.enter_bare() {
            Some(on) => self.poll_first(&on, wcs),
            None => self.poll_locked(wcs),
        }
    }

    #[inline(never)]
    fn poll_locked(&self, wcs: &mut [Wc]) -> Polled {
        let on = self.on.enter();
        if on.gate() != 0 { self.poll_more(&on, wcs, 0) } else { self.poll_first(&on, wcs) }
    }

    /// Polls the first device; goes on from there only if what came needs it.
    #[inline(always)]
    fn poll_first(&self, on: &Devices, wcs: &mut [Wc]) -> Polled {
        let polled = on.first.cq.poll(wcs);
        // By far the most frequent: without a loop it takes few registers.
        if polled == Ok(1) && wcs.first_mut().is_some_and(|wc| self.translate(wc)) {
            return polled;
        }
        match polled {
            Ok(got @ 1..) => self.translate_all(on, wcs, got as usize),
            none => none,
        }
    }

    /// Makes the first `got` completions virtual.
    #[inline(never)]
    fn translate_all(&self, on: &Devices, wcs: &mut [Wc], got: usize) -> Polled {
        for (i, wc) in wcs.iter_mut().take(got).enumerate() {
            if !self.translate(wc) {
                return self.look_again(on, wcs, i, got);
            }
        }
        Ok(got as u32)
    }

    /// Goes on at completion `from`, which is not a plain success; those before it are virtual by now.
    #[cold]
    #[inline(never)]
    fn look_again(&self, on: &Devices, wcs: &mut [Wc], from: usize, got: usize) -> Polled {
        // A device that has more than there is room for is out of its mind.
        let Some(came) = wcs.get_mut(from..got) else { return Err(libc::EIO) };
        let kept = from + self.translate_rest(&on.first, came);
        if kept == got { Ok(got as u32) } else { self.poll_more(on, wcs, kept) }
    }

    /// Fills `wcs` from its entry `n` on: from the backlog, then from the devices.
    #[cold]
    fn poll_more(&self, on: &Devices, wcs: &mut [Wc], mut n: usize) -> Polled {
        loop {
            if self.on.gate() & gate::ATTENTION != 0 {
                n += self.attend(on, &mut wcs[n..]);
            }
            for harvest in on.iter() {
                while n < wcs.len() {
                    let got = match harvest.cq.poll(&mut wcs[n..]) {
                        Ok(got) => got as usize,
                        Err(errno) if n == 0 => return Err(errno),
                        Err(_) => break,
                    };
                    let kept = self.translate_rest(harvest, &mut wcs[n..n + got]);
                    n += kept;
                    if kept == got {
                        break;
                    }
                }
            }
            // What came may have gone into the backlog: "nothing" must not be said then.
            if n == wcs.len() || lock_mutex(&self.backlog).held.is_empty() {
                return Ok(n as u32);
            }
        }
    }

    /// Makes completions virtual in place, whatever they are, and moves those that are the
    /// program's to the front; returns how many they are.
    #[cold]
    fn translate_rest(&self, harvest: &Harvest, wcs: &mut [Wc]) -> usize {
        let mut kept = 0;
        for i in 0..wcs.len() {
            if self.translate(&mut wcs[i]) || self.translate_odd(harvest, &mut wcs[i]) {
                wcs[kept] = wcs[i];
                kept += 1;
            }
        }
        kept
    }

    /// Makes the completion of a connected queue pair virtual, if it is a plain success; else
    /// leaves it as it is, and returns false.
    #[inline(always)]
    fn translate(&self, wc: &mut Wc) -> bool {
        let id = wc.wr_id;
        // The upper half is the queue pair's number, with a kind of 0.
        let qpn = (id >> QPN_SHIFT) as u32;
        // SAFETY: we hold this CQ, alone.
        let Some(qp) = (unsafe { self.qps.get(qpn) }) else { return false };
        // One branch for both: SUCCESS is 0.
        if wc.status | qp.watch.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // Of the lower half the windows look at 31 bits.
        let low = id as u32;
        let wr_id = if id & RECV != 0 {
            name_peer(qp, wc);
            qp.recv.take(low)
        } else {
            qp.send.take(low)
        };
        let Some(wr_id) = wr_id else { return false };
        wc.wr_id = wr_id;
        wc.qp_num = qpn;
        true
    }

    /// The same for every other completion. False where it is not the program's.
    #[cold]
    fn translate_odd(&self, harvest: &Harvest, wc: &mut Wc) -> bool {
        let id = wc.wr_id;
        if id >> KIND_SHIFT != 0 {
            return self.translate_special(harvest, wc);
        }
        // SAFETY: we hold this CQ, alone.
        let Some(qp) = (unsafe { self.qps.get((id >> QPN_SHIFT) as u32) }) else { return false };
        let (low, recv) = ((id & LOW_31) as u32, id & RECV != 0);
        if qp.withholds(harvest.underlay.id, wc) {
            return false;
        }
        if !recv {
            qp.blame(wc);
        }
        if !recv && qp.watch.load(Ordering::Relaxed) & watch::THROUGH != 0 {
            self.pass_through(qp, wc, true);
            return false;
        }
        let wr_id = if recv {
            if qp.qp_type == qp_type::UD {
                self.rename_sender(qp, low, wc);
            } else {
                name_peer(qp, wc);
            }
            qp.recv.take(low)
        } else {
            qp.send.take(low)
        };
        let Some(wr_id) = wr_id else { return false };
        wc.wr_id = wr_id;
        wc.qp_num = qp.qpn;
        if recv {
            qp.unfilled.fetch_add(u64::from(wc.status != wc_status::SUCCESS), Ordering::Relaxed);
            qp.mend(wc);
        }
        qp.look_closer(wc, recv)
    }

    /// A send completion of a queue pair that is not to overtake what is in the backlog: it goes there
    /// itself, with those of ours that come before and after it.
    fn pass_through(&self, qp: &QpCore, wc: &Wc, asked: bool) {
        self.hold(qp.in_turn(wc, asked).into_iter().map(Held::gone));
        if wc.status != wc_status::SUCCESS {
            qp.look_closer(wc, false);
        }
    }

    /// A datagram's completion, before its receive leaves the window.
    fn rename_sender(&self, qp: &QpCore, low: u32, wc: &mut Wc) {
        if let Some(seq) = qp.recv.expand(low) {
            let elements = qp.recv.entry(seq).elements;
            let elements = (0..elements).map(|i| qp.recv.element(seq, i.into()));
            arrived::rename(&self.local, wc, elements);
        }
    }

    /// Completions that do not name their queue pair's window entry: the marker, and receives of
    /// a shared receive queue, which name their slot there.
    #[cold]
    fn translate_special(&self, harvest: &Harvest, wc: &mut Wc) -> bool {
        let (id, number) = (wc.wr_id, (wc.wr_id >> QPN_SHIFT) as u32 & abi::MASK_24);
        if id >> KIND_SHIFT == MARKER >> KIND_SHIFT {
            // SAFETY: we hold this CQ, alone.
            if let Some(qp) = unsafe { self.qps.get(number) } {
                self.come_late(harvest, qp.take_withheld_sends());
                qp.marker_came((id & LOW_31) as u32);
            }
            return false;
        }
        if id >> KIND_SHIFT == QUIET >> KIND_SHIFT {
            // SAFETY: we hold this CQ, alone.
            if let Some(qp) = unsafe { self.qps.get(number) } {
                return self.quiet(harvest, qp, wc);
            }
            return false;
        }
        if id >> KIND_SHIFT == PROOF >> KIND_SHIFT {
            // SAFETY: we hold this CQ, alone.
            if let Some(qp) = unsafe { self.qps.get(number) }
                && qp.proof_came(harvest.underlay.id, wc)
                && !qp.withholds(harvest.underlay.id, wc)
            {
                qp.ours_failed(wc);
            }
            return false;
        }
        if id >> KIND_SHIFT == RECORD >> KIND_SHIFT {
            // SAFETY: we hold this CQ, alone.
            if let Some(qp) = unsafe { self.qps.get(number) }
                && !qp.withholds(harvest.underlay.id, wc)
            {
                qp.ours_failed(wc);
            }
            return false;
        }
        if id >> KIND_SHIFT != SHARED >> KIND_SHIFT {
            return false;
        }
        let Some(srq) = self.local.srqs.get(number) else { return false };
        let slot = (id & LOW_31) as u32;
        let Some(entry) = srq.window.entry(slot) else { return false };
        let qpn = harvest.underlay.qpns.get(wc.qp_num as usize, wc.qp_num);
        // SAFETY: we hold this CQ, alone.
        let qp = qpn.and_then(|qpn| unsafe { self.qps.get(qpn) });
        if let Some(qp) = qp {
            if qp.qp_type == qp_type::UD {
                let elements = (0..entry.elements).map(|i| srq.window.element(slot, i.into()));
                arrived::rename(&self.local, wc, elements);
            } else {
                name_peer(qp, wc);
            }
        }
        // A path that ends has not consumed it: it is posted again.
        if qp.is_some_and(|qp| qp.withholds(harvest.underlay.id, wc)) {
            return false;
        }
        if srq.tracked {
            let elements = (0..entry.elements).map(|i| srq.window.element(slot, i.into()));
            self.local.writes.mark_elements(&self.local, elements);
        }
        // Given back in any case: a queue pair that is gone has consumed it, too.
        srq.window.retire(slot);
        let Some(qp) = qp else { return false };
        qp.delivered.fetch_add(u64::from(wc.status == wc_status::SUCCESS), Ordering::Relaxed);
        wc.wr_id = entry.wr_id;
        wc.qp_num = qp.qpn;
        qp.mend(wc);
        if wc.status != wc_status::SUCCESS || qp.watch.load(Ordering::Relaxed) != 0 {
            return qp.look_closer(wc, true);
        }
        true
    }

    /// A send completion that we asked for, and the program did not. False where it must not see it.
    fn quiet(&self, harvest: &Harvest, qp: &QpCore, wc: &mut Wc) -> bool {
        if qp.withholds(harvest.underlay.id, wc) {
            return false;
        }
        qp.blame(wc);
        let low = (wc.wr_id & LOW_31) as u32;
        let asked = wc.status != wc_status::SUCCESS;
        if qp.watch.load(Ordering::Relaxed) & watch::THROUGH != 0 {
            self.pass_through(qp, wc, asked);
            return false;
        }
        let Some(wr_id) = qp.send.take(low) else { return false };
        wc.wr_id = wr_id;
        wc.qp_num = qp.qpn;
        asked && qp.look_closer(wc, false)
    }

    /// Gives out the backlog, and buries the dead.
    #[cold]
    fn attend(&self, on: &Devices, wcs: &mut [Wc]) -> usize {
        if !lock_mutex(&self.backlog).graves.is_empty() {
            self.empty_graves(on);
        }
        self.use_room();
        let mut n = 0;
        let mut backlog = lock_mutex(&self.backlog);
        while n < wcs.len()
            && let Some(held) = backlog.held.pop_front()
        {
            if self.take(&held) {
                wcs[n] = held.wc;
                n += 1;
            }
        }
        if backlog.held.is_empty() {
            backlog.through.retain(|qp| qp.upgrade().is_some_and(|qp| !qp.leave_through()));
        }
        let more = !backlog.held.is_empty()
            || !backlog.graves.is_empty()
            || !backlog.waiting.is_empty()
            || !on.more.is_empty();
        if !more {
            self.on.unnote(gate::ATTENTION);
        }
        n
    }

    /// A queue pair waits until less of its requests is outstanding.
    pub(super) fn wait_for_room(self: &Arc<Self>, qp: Weak<QpCore>) {
        let begins = {
            let mut backlog = lock_mutex(&self.backlog);
            backlog.waiting.push(qp);
            !std::mem::replace(&mut backlog.ticking, true)
        };
        self.on.note(gate::ATTENTION);
        if begins {
            self.keep_going();
        }
    }

    /// Those that wait for room hand what they may.
    fn use_room(&self) {
        let waiting = std::mem::take(&mut lock_mutex(&self.backlog).waiting);
        if waiting.is_empty() {
            return;
        }
        let still = |qp: &Weak<QpCore>| qp.upgrade().is_some_and(|qp| !qp.use_room());
        let still: Vec<_> = waiting.into_iter().filter(still).collect();
        lock_mutex(&self.backlog).waiting.extend(still);
    }

    /// The same for a program that does not poll. False where nobody waits any more.
    pub(super) fn look_for_room(&self) -> bool {
        self.harvest_now();
        self.use_room();
        let mut backlog = lock_mutex(&self.backlog);
        backlog.ticking = !backlog.waiting.is_empty();
        backlog.ticking
    }

    /// Events of its physical CQs may be of what the program does not see.
    pub(super) fn doubt(&self) {
        self.doubtful.store(true, Ordering::Release);
    }

    pub(super) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    /// Lets the entry of a held completion leave its window. False where it has left already.
    fn take(&self, held: &Held) -> bool {
        let Some(seq) = held.seq else { return true };
        // SAFETY: we hold this CQ, alone.
        let Some(qp) = (unsafe { self.qps.get(held.wc.qp_num) }) else { return false };
        let stands =
            !qp.is_dead() && seq >= if held.recv { qp.recv.retired() } else { qp.send.retired() };
        if stands {
            if held.recv {
                qp.unfilled.fetch_add(1, Ordering::Relaxed);
                qp.recv.retire(seq);
            } else {
                qp.send.retire(seq);
            }
        }
        stands
    }

    /// Moves everything that the devices have into the backlog.
    fn harvest_all(&self, on: &Devices) {
        on.iter().for_each(|harvest| self.harvest_one(harvest));
    }

    fn harvest_one(&self, harvest: &Harvest) {
        let mut wcs = [Wc::default(); HARVEST];
        while let Ok(got @ 1..) = harvest.cq.poll(&mut wcs) {
            // One by one: some put others into the backlog themselves.
            for wc in &mut wcs[..got as usize] {
                self.keep(harvest, wc);
            }
            self.on.note(gate::ATTENTION);
        }
    }

    fn empty_graves(&self, on: &Devices) {
        let graves = std::mem::take(&mut lock_mutex(&self.backlog).graves);
        self.harvest_all(on);
        let mut load = lock_mutex(&self.load);
        for qp in &graves {
            qp.unload(self, &mut |own, srq| load.remove(own, srq));
        }
        drop(load);
        lock_mutex(&self.backlog)
            .held
            .retain(|held| graves.iter().all(|qp| qp.qpn != held.wc.qp_num));
    }

    /// Takes over a queue pair that the program has destroyed, and whose physical one is
    /// gone.
    pub(super) fn bury(&self, qp: &Arc<QpCore>) {
        lock_mutex(&self.backlog).graves.push(Arc::clone(qp));
        self.on.note(gate::ATTENTION);
        // Where only the program's thread may, its next poll does it.
        if let Some(on) = self.on.enter_shared() {
            self.empty_graves(&on);
        }
    }

    /// Harvests what the devices have. False where only the program's thread may.
    pub(super) fn harvest(&self) -> bool {
        let on = self.on.enter_shared();
        on.is_some_and(|on| {
            self.harvest_all(&on);
            true
        })
    }

    /// Harvests what the devices have, whoever else may poll.
    pub(super) fn harvest_now(&self) {
        let on = self.on.visit();
        self.harvest_all(&on);
    }

    /// The same, where nobody has asked for completions, and the program does not seem to want them. It
    /// may still find as many as it has asked room for: what is beyond stays where it is.
    pub(super) fn harvest_unasked(&self) {
        let on = self.on.visit();
        let there = lock_mutex(&self.backlog).held.len();
        if there < self.cqe.load(Ordering::Relaxed) as usize {
            self.harvest_all(&on);
        }
    }

    /// Runs `job` while nobody polls.
    pub(super) fn alone<R>(&self, job: impl FnOnce() -> R) -> R {
        let _on = self.on.visit();
        job()
    }

    /// Completions of that device that were withheld come after all: `taken` while nobody polls.
    pub(super) fn give_back(&self, device: DeviceId, taken: impl FnOnce() -> Vec<Wc>) {
        let on = self.on.visit();
        let wcs = taken();
        if let Some(harvest) = on.iter().find(|harvest| harvest.underlay.id == device) {
            self.come_late(harvest, wcs);
        }
    }

    fn come_late(&self, harvest: &Harvest, wcs: Vec<Wc>) {
        for mut wc in wcs {
            if self.keep(harvest, &mut wc) {
                self.announce(true, wc.status != wc_status::SUCCESS);
            }
        }
    }

    /// Puts a completion into the backlog, where it is the program's. While nobody else polls.
    fn keep(&self, harvest: &Harvest, wc: &mut Wc) -> bool {
        let at = lock_mutex(&self.backlog).held.len();
        let keeps = self.translate(wc) || self.translate_odd(harvest, wc);
        if keeps {
            // What it was the last to stand in the way of has come behind it by now.
            lock_mutex(&self.backlog).insert(at, Held::gone(*wc));
        }
        keeps
    }

    /// From now on all send completions of this queue pair go through the backlog.
    pub(super) fn pass(&self, qp: &QpCore) {
        lock_mutex(&self.backlog).through.push(qp.weak());
    }

    /// The physical CQ on one device.
    pub(super) fn physical_on(&self, device: DeviceId) -> Option<Arc<dyn DeviceCq>> {
        let on = self.on.visit();
        let harvest = on.iter().find(|harvest| harvest.underlay.id == device)?;
        Some(Arc::clone(harvest.cq.arc()))
    }

    /// Keeps pollers out for as long as the guard lives.
    pub(super) fn exclude_pollers(&self) -> impl Drop + '_ {
        self.on.enter()
    }

    /// Adds completions of ours to the backlog.
    pub(super) fn hold(&self, completions: impl Iterator<Item = Held>) {
        let mut backlog = lock_mutex(&self.backlog);
        let before = backlog.held.len();
        completions.for_each(|held| backlog.push(held));
        // Successful ones of ours are of sends, which nobody solicits.
        let loud = |held: &Held| held.wc.status != wc_status::SUCCESS;
        let (any, loud) = (backlog.held.len() > before, backlog.held.range(before..).any(loud));
        drop(backlog);
        self.announce(any, loud);
    }

    /// Something is in the backlog; whether something new, and such as is announced to who waits for that
    /// alone.
    fn announce(&self, any: bool, loud: bool) {
        self.on.note(gate::ATTENTION);
        let kind = self.armed.load(Ordering::Acquire);
        let due = match kind {
            armed::NO => false,
            armed::SOLICITED => loud,
            _ => any,
        };
        if due
            && self.armed.swap(armed::NO, Ordering::AcqRel) != armed::NO
            && let Some(channel) = &self.channel
        {
            channel.announce(self.user);
        }
    }

    /// RESET discards the completions of a queue pair.
    pub(super) fn drop_backlog_of(&self, qpn: u32) {
        lock_mutex(&self.backlog).held.retain(|held| held.wc.qp_num != qpn);
    }

    /// Makes room for the completions of a queue pair.
    pub(super) fn reserve(&self, own: u64, srq: Option<&SrqCore>) -> Result<()> {
        let mut load = lock_mutex(&self.load);
        load.add(own, srq);
        let need = load.total();
        self.grow(need).inspect_err(|_| load.remove(own, srq))
    }

    /// Takes back what was reserved.
    pub(super) fn release(&self, own: u64, srq: Option<&SrqCore>) {
        lock_mutex(&self.load).remove(own, srq);
    }

    /// Sees to it that the physical CQs hold `need`.
    fn grow(&self, need: u64) -> Result<()> {
        let mut on = self.on.enter();
        for harvest in on.iter_mut().filter(|harvest| u64::from(harvest.cqe) < need) {
            let device = &harvest.underlay.device;
            let limit = device.query_device()?.max_cqe.max(0) as u64;
            if need > limit {
                return Err(Error::new(
                    libc::ENOMEM,
                    format!(
                        "the queue pairs of one CQ may leave {need} completions, and a CQ of {} \
                         holds {limit} at most: use more CQs, or smaller queue pairs",
                        device.name()
                    ),
                ));
            }
            // Twofold, so that a CQ of many queue pairs is not resized for each of them.
            let cqe = need.next_power_of_two().min(limit) as u32;
            harvest.cq.resize(cqe).map_err(|error| {
                error.context(format_args!(
                    "making room for {need} completions in a CQ of {}, which has room for {} \
                     (create it with at least as many entries as all its queue pairs have)",
                    device.name(),
                    harvest.cqe
                ))
            })?;
            harvest.cqe = harvest.cq.cqe().max(cqe);
        }
        Ok(())
    }

    fn req_notify(&self, solicited_only: bool) -> Result<()> {
        if self.channel.is_none() {
            return Err(Error::invalid("a notification was asked for of a CQ without a channel"));
        }
        let on = self.on.enter();
        let kind = if solicited_only { armed::SOLICITED } else { armed::YES };
        // Asked for any, and then for solicited ones: it stays at any.
        if self.armed.load(Ordering::Acquire) != armed::YES {
            self.armed.store(kind, Ordering::Release);
        }
        {
            let mut backlog = lock_mutex(&self.backlog);
            backlog.armed_at = backlog.came;
        }
        for harvest in on.iter() {
            harvest.cq.req_notify(solicited_only)?;
        }
        Ok(())
    }

    /// One more of its queue pairs is between two devices.
    pub(super) fn begin_move(&self) {
        self.moving.fetch_add(1, Ordering::AcqRel);
        self.doubt();
    }

    /// It has arrived.
    pub(super) fn end_move(&self) {
        self.moving.fetch_sub(1, Ordering::AcqRel);
    }

    /// A physical CQ has raised its event. False where none was asked for any more, or it was of
    /// what the program does not see.
    pub(super) fn event_came(&self) -> bool {
        if self.doubtful.load(Ordering::Acquire) && !self.event_is_real() {
            return false;
        }
        self.armed.swap(armed::NO, Ordering::AcqRel) != armed::NO
    }

    /// Looks what has come. Where it is nothing, the physical CQs are to raise another event.
    fn event_is_real(&self) -> bool {
        let on = self.on.visit();
        if self.moving.load(Ordering::Acquire) == 0 {
            self.doubtful.store(false, Ordering::Release);
        }
        let something = || {
            self.harvest_all(&on);
            let backlog = lock_mutex(&self.backlog);
            backlog.came > backlog.armed_at
        };
        let kind = self.armed.load(Ordering::Acquire);
        if kind == armed::NO || something() {
            return true;
        }
        for harvest in on.iter() {
            if let Err(error) = harvest.cq.req_notify(kind == armed::SOLICITED) {
                tracing::warn!("a notification of {}: {error}", harvest.underlay.device.name());
            }
        }
        // What came before that raises none.
        something()
    }

    fn resize(&self, cqe: u32) -> Result<()> {
        let limit = {
            let on = self.on.enter();
            let limits = on.iter().map(|harvest| harvest.underlay.device.query_device());
            limits.collect::<Result<Vec<_>>>()?.iter().map(|attr| attr.max_cqe).min().unwrap_or(0)
        };
        if cqe == 0 || i64::from(cqe) > i64::from(limit) {
            return Err(Error::invalid(format!(
                "a CQ of {cqe} completions: between 1 and {limit} are possible"
            )));
        }
        // All that are there count, those that nobody has polled from the device too.
        self.harvest_all(&self.on.enter());
        let there = lock_mutex(&self.backlog).held.len();
        if there > cqe as usize {
            return Err(Error::invalid(format!(
                "a CQ of {cqe} completions: {there} are there that nobody has polled"
            )));
        }
        self.grow(u64::from(cqe))?;
        self.cqe.store(cqe, Ordering::Relaxed);
        Ok(())
    }
}

impl Load {
    fn add(&mut self, own: u64, srq: Option<&SrqCore>) {
        self.own += own;
        if let Some(srq) = srq {
            let size = u64::from(srq.window.depth());
            self.shared.entry(srq.number).or_insert((0, size)).0 += 1;
        }
    }

    fn remove(&mut self, own: u64, srq: Option<&SrqCore>) {
        self.own = self.own.saturating_sub(own);
        if let Some(srq) = srq
            && let Some((qps, _)) = self.shared.get_mut(&srq.number)
        {
            *qps -= 1;
            if *qps == 0 {
                self.shared.remove(&srq.number);
            }
        }
    }
}

/// Completions that a queue pair's send queue may leave at once.
pub(super) fn sends(qp_type: u32, cap: &abi::QpCap) -> u64 {
    u64::from(physical_sends(qp_type, cap.max_send_wr))
}

/// A connected queue pair's completions name its peer as the program knows it.
#[inline]
fn name_peer(qp: &QpCore, wc: &mut Wc) {
    let remote = qp.remote.load(Ordering::Relaxed);
    wc.src_qp = remote as u32;
    wc.slid = (remote >> 32) as u16;
}

/// The completion queue that a program holds.
pub(super) struct VirtualCq(Direct<CqCore>);

impl VirtualCq {
    pub(super) fn new(core: Arc<CqCore>) -> Self {
        VirtualCq(Direct::new(core))
    }

    pub(super) fn core(&self) -> &Arc<CqCore> {
        self.0.arc()
    }
}

impl DeviceCq for VirtualCq {
    fn cqe(&self) -> u32 {
        self.0.cqe.load(Ordering::Relaxed)
    }

    #[inline]
    fn poll(&self, wcs: &mut [Wc]) -> Polled {
        self.0.poll(wcs)
    }

    fn req_notify(&self, solicited_only: bool) -> Result<()> {
        self.0.req_notify(solicited_only)
    }

    fn resize(&self, cqe: u32) -> Result<()> {
        self.0.resize(cqe)
    }
}

impl Drop for CqCore {
    fn drop(&mut self) {
        if let Some(channel) = &self.channel {
            channel.forget(self.number);
        }
        self.local.cqs.remove(self.number);
    }
}
