//! Following a peer whose context goes to another device: on the service thread, which never waits.

use super::{BARRIER_PATIENCE, FIRST_PORT, cqs_of, leave, site};
use crate::abi::{qp_state, qp_type};
use crate::device::{self, Kind};
use crate::names::{PhysicalEnd, ProcessId};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::local::Local;
use crate::virt::core::lock_mutex;
use crate::virt::core::policy::MayTry;
use crate::virt::core::qp::{Fresh, Leaving, QpCore};
use crate::virt::core::underlay::Underlay;
use sojourn_logging::Executed;
use sojourn_logging::remap::{
    Accept, Answer, Cut, Follower, FollowerLimits, GroupId, HeldEnd, HeldLink, Offer, PrepareError,
    Request, Side,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Groups that one process may have begun here and not ended: 256 links in each, which is as many as
/// a process may have queue pairs.
const MAX_GROUPS: usize = 512;

/// How long a mover that was refused may take to come back, before who refused it moves. A try takes
/// a few milliseconds, and up to two seconds where the machine is emulated.
const DEFERENCE: Duration = Duration::from_secs(2);

/// Re-maps of a process: whether it is moving itself, and those in which it follows.
pub(in crate::virt::core) struct Remaps {
    epoch: Instant,
    moving: AtomicBool,
    /// Holds of its contexts.
    holds: AtomicUsize,
    /// The move under way is to be taken back, if it still can be: another goes first.
    yields: AtomicBool,
    next_group: AtomicU64,
    following: Mutex<Following>,
}

#[derive(Default)]
struct Following {
    groups: HashMap<(ProcessId, GroupId), Group>,
    /// Groups of each mover that have ended, the last of them: whether by its last word.
    ended: HashMap<ProcessId, BTreeMap<GroupId, bool>>,
    /// A timer is set.
    waking: bool,
    /// A process that may go first, and until when.
    deference: Option<(ProcessId, Duration)>,
    /// Who was refused while this process moved, and will try again.
    refused: Option<ProcessId>,
}

struct Group {
    machine: Follower<PhysicalEnd>,
    side: Ground,
}

impl Default for Remaps {
    fn default() -> Self {
        Remaps {
            epoch: Instant::now(),
            moving: AtomicBool::new(false),
            holds: AtomicUsize::new(0),
            yields: AtomicBool::new(false),
            next_group: AtomicU64::new(0),
            following: Mutex::default(),
        }
    }
}

/// While it is there, this process is moving.
pub(in crate::virt::core) struct Moving<'a>(&'a Remaps);

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.moving.store(false, Ordering::Release);
    }
}

/// While it is there, this process holds its peers.
pub(super) struct Holding(Arc<Local>);

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.remaps.holds.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Remaps {
    /// This process wants to move, and will try until it has: once who was in its way last time has had
    /// its turn.
    pub(in crate::virt::core) fn contend(&self) {
        let now = self.epoch.elapsed();
        let mut following = lock_mutex(&self.following);
        if let Some(whom) = following.refused.take() {
            following.deference = Some((whom, now + DEFERENCE));
        }
    }

    /// Whether the move under way is to be taken back.
    pub(in crate::virt::core) fn yields(&self) -> bool {
        self.yields.load(Ordering::Acquire)
    }

    /// Begins a move of this process; `None` while another is under way, it follows somebody, or lets
    /// somebody go first.
    pub(in crate::virt::core) fn begin(&self) -> Option<Moving<'_>> {
        let now = self.epoch.elapsed();
        let following = lock_mutex(&self.following);
        let defers = following.deference.is_some_and(|(_, until)| now < until);
        let holds = self.holds.load(Ordering::Acquire) > 0;
        let follows = !following.groups.is_empty();
        if defers || holds || follows || self.moving.swap(true, Ordering::AcqRel) {
            return None;
        }
        self.yields.store(false, Ordering::Release);
        Some(Moving(self))
    }

    /// Begins a hold of this process, of which there may be several; `None` where a move could not be begun.
    pub(super) fn begin_hold(&self, local: &Arc<Local>) -> Option<Holding> {
        let (now, own) = (self.epoch.elapsed(), local.grant().process);
        let following = lock_mutex(&self.following);
        let defers = following.deference.is_some_and(|(_, until)| now < until);
        let follows = following.groups.keys().any(|(mover, _)| *mover != own);
        if defers || follows || self.moving.load(Ordering::Acquire) {
            return None;
        }
        self.yields.store(false, Ordering::Release);
        self.holds.fetch_add(1, Ordering::AcqRel);
        Some(Holding(Arc::clone(local)))
    }

    /// Numbers for the groups of a move: larger than those of an earlier life of this process.
    pub(super) fn next_group(&self, life: u32) -> GroupId {
        GroupId(u64::from(life) << 40 | self.next_group.fetch_add(1, Ordering::Relaxed))
    }

    /// What a mover is answered.
    pub(in crate::virt::core) fn answer(
        &self,
        local: &Arc<Local>,
        mover: ProcessId,
        id: GroupId,
        request: &Request<PhysicalEnd>,
    ) -> Answer<PhysicalEnd> {
        let now = self.epoch.elapsed();
        let mut following = lock_mutex(&self.following);
        let ended = following.ended.get(&mover);
        let over = ended.and_then(BTreeMap::last_key_value).is_some_and(|(last, _)| id <= *last);
        let finished = ended.and_then(|ended| ended.get(&id)).is_some_and(|finished| *finished);
        let Some(group) = following.groups.get_mut(&(mover, id)) else {
            return match request {
                Request::Prepare { .. } if over => Answer::refused("that move has ended"),
                Request::Prepare { links } => {
                    let qpns = links.iter().map(|link| link.qpn).collect();
                    self.begin_following(local, &mut following, (mover, id), now, qpns, |side| {
                        Follower::begin(id, links, now, FollowerLimits::default(), side)
                    })
                }
                Request::Hold { .. } if over => Answer::refused("that hold has ended"),
                Request::Hold { links } => {
                    let qpns = links.iter().map(|link| link.qpn).collect();
                    self.begin_following(local, &mut following, (mover, id), now, qpns, |side| {
                        Follower::begin_hold(id, links, now, FollowerLimits::default(), side)
                    })
                }
                Request::Finish { .. } if finished => Answer::Finished,
                Request::Abort => {
                    // Its beginning may still be on the way.
                    following.end(mover, id, false);
                    Answer::Aborted
                }
                _ => Answer::Unknown,
            };
        };
        let answer = group.machine.handle(request.clone(), now, &mut group.side);
        if group.machine.is_ended() {
            let finished = group.machine.has_finished();
            following.end(mover, id, finished);
        }
        answer
    }

    fn begin_following(
        &self,
        local: &Arc<Local>,
        following: &mut Following,
        (mover, id): (ProcessId, GroupId),
        now: Duration,
        qpns: Vec<u32>,
        begin: impl FnOnce(&mut Ground) -> (Option<Follower<PhysicalEnd>>, Answer<PhysicalEnd>),
    ) -> Answer<PhysicalEnd> {
        following.take_back_before((mover, id), &qpns, now);
        // Two contexts of one process do not wait for each other: only one of them moves.
        let moves = self.moving.load(Ordering::Acquire) || self.holds.load(Ordering::Acquire) > 0;
        let busy = moves && mover != local.grant().process;
        if busy {
            tracing::debug!("{mover} is to be followed, and this process is moving");
            if has_precedence(mover, local.grant().process) {
                following.defer_to(mover, now);
                self.yields.store(true, Ordering::Release);
            } else {
                following.refused = Some(mover);
            }
        }
        if busy || following.groups.len() >= MAX_GROUPS {
            return Answer::Busy;
        }
        let mut side =
            Ground { local: Arc::clone(local), mover, qpns, links: Vec::new(), down: None };
        let (machine, answer) = begin(&mut side);
        if let Some(machine) = machine {
            following.deference.take_if(|(whom, _)| *whom == mover);
            following.refused.take_if(|whom| *whom == mover);
            following.groups.insert((mover, id), Group { machine, side });
            if !std::mem::replace(&mut following.waking, true) {
                wake_later(local);
            }
        }
        answer
    }

    /// Gives up movers that have not been heard of for long.
    fn wake(&self, local: &Arc<Local>) {
        let now = self.epoch.elapsed();
        let mut following = lock_mutex(&self.following);
        let mut over = Vec::new();
        for ((mover, id), group) in &mut following.groups {
            group.machine.wake(now, &mut group.side);
            if group.machine.is_ended() {
                tracing::warn!("{mover}, which was moving, has not been heard of any more");
                over.push((*mover, *id));
            }
        }
        over.into_iter().for_each(|(mover, id)| following.end(mover, id, false));
        following.waking = !following.groups.is_empty();
        if following.waking {
            wake_later(local);
        }
    }
}

fn wake_later(local: &Arc<Local>) {
    let weak = Arc::downgrade(local);
    let job = Box::new(move || {
        if let Some(local) = weak.upgrade() {
            local.remaps.wake(&local);
        }
    });
    // As precise as giving up must be.
    let at = Instant::now() + FollowerLimits::default().patience / 8;
    local.resolver().run_later(at, job);
}

/// Whether `mover` goes first, where both are in each other's way: that with the smaller number. It keeps
/// what it has made and asks again, and the other takes its own back. (Where both did so, tries that
/// take longer than the rests between them would meet for ever.)
pub(super) fn has_precedence(mover: ProcessId, other: ProcessId) -> bool {
    mover < other
}

impl Following {
    fn defer_to(&mut self, mover: ProcessId, now: Duration) {
        let better = |(whom, until)| until <= now || has_precedence(mover, whom);
        if self.deference.is_none_or(better) {
            self.deference = Some((mover, now + DEFERENCE));
        }
    }

    fn end(&mut self, mover: ProcessId, id: GroupId, finished: bool) {
        self.groups.remove(&(mover, id));
        let ended = self.ended.entry(mover).or_default();
        ended.insert(id, finished);
        // Of older ones nothing is asked any more.
        if ended.len() > MAX_GROUPS {
            ended.pop_first();
        }
    }

    /// A mover that begins anew over a link has taken back what it began before, and we have not heard of
    /// it.
    fn take_back_before(&mut self, (mover, id): (ProcessId, GroupId), qpns: &[u32], now: Duration) {
        let anew: HashSet<u32> = qpns.iter().copied().collect();
        let mut over = Vec::new();
        for ((whose, earlier), group) in &mut self.groups {
            let same = group.side.qpns.iter().any(|qpn| anew.contains(qpn));
            if *whose == mover && *earlier < id && same {
                group.machine.handle(Request::Abort, now, &mut group.side);
                if group.machine.is_ended() {
                    over.push(*earlier);
                }
            }
        }
        over.into_iter().for_each(|earlier| self.end(mover, earlier, false));
    }
}

/// One end of a connection whose other end moves.
struct Link {
    /// `None` where the mover named a queue pair that is not connected to its own.
    qp: Option<Arc<QpCore>>,
    fresh: Option<Fresh>,
    leaving: Option<Leaving>,
}

/// The queue pairs of a group.
struct Ground {
    local: Arc<Local>,
    mover: ProcessId,
    /// As the mover names them.
    qpns: Vec<u32>,
    links: Vec<Link>,
    /// When they were taken down.
    down: Option<Instant>,
}

impl Ground {
    fn qps(&self) -> impl Iterator<Item = &Arc<QpCore>> {
        self.links.iter().filter_map(|link| link.qp.as_ref())
    }

    fn harvest(&self) {
        cqs_of(self.qps()).iter().for_each(|cq| cq.harvest_now());
    }

    fn leave_unused(&self) {
        leave_unused(self.qps());
    }

    /// Our queue pair of that number, if it is connected to that of the mover's.
    fn find(&self, qpn: u32, mover_qpn: u32) -> Result<Option<Arc<QpCore>>, PrepareError> {
        let Some(qp) = self.local.qp(qpn) else { return Ok(None) };
        if !matches!(qp.qp_type, qp_type::RC | qp_type::UC) {
            return Ok(None);
        }
        let status = match qp.status_at_rest() {
            Ok(status) => status,
            Err(error) if error.errno() == libc::EBUSY => return Err(PrepareError::Busy),
            Err(_) => return Ok(None),
        };
        let connected = status.is_connected() && status.peer == Some((self.mover, mover_qpn));
        if connected {
            return Ok(Some(qp));
        }
        // It is about to be: the mover's end came first.
        match status.state {
            qp_state::RESET | qp_state::INIT => Err(PrepareError::Busy),
            _ => Ok(None),
        }
    }

    fn prepare_one(
        &self,
        offer: &Offer<PhysicalEnd>,
    ) -> Result<(Link, Option<Accept<PhysicalEnd>>), PrepareError> {
        let Some(qp) = self.find(offer.qpn, offer.mover_qpn)? else {
            return Ok((Link { qp: None, fresh: None, leaving: None }, None));
        };
        if !qp.accepts(offer.incarnation) {
            let why = format!("queue pair {:#x} has had a later path", qp.qpn);
            return Err(PrepareError::Refused(why));
        }
        let refused = |error: crate::Error| PrepareError::Refused(error.to_string());
        let context = Arc::clone(&qp.pd.context);
        let underlay = device_towards(&context, &qp, &offer.end)?;
        let same = qp.device() == Some(underlay.id);
        let srq = match &qp.srq {
            // All that share them will go, by themselves.
            Some(_) if !same && context.look_after_port() => return Err(PrepareError::Busy),
            Some(_) if !same => {
                return Err(PrepareError::Refused(format!(
                    "queue pair {:#x} shares its receives with others, which stay on another \
                     device than {}",
                    qp.qpn,
                    underlay.device.name()
                )));
            }
            srq => srq.as_ref().map(|srq| srq.physical()),
        };
        let state = qp.status().map_err(refused)?.state;
        let mut fresh = qp.fresh(&underlay, srq, state).map_err(|error| match error.errno() {
            // The program is at it.
            libc::EBUSY => PrepareError::Busy,
            _ => refused(error),
        })?;
        fresh.incarnation = offer.incarnation;
        let connected = qp
            .connect_fresh(&mut fresh, self.mover, Some((offer.end, offer.psn)))
            .and_then(|()| qp.end_of(&fresh));
        match connected {
            Ok(end) => {
                let accept = Accept { end, psn: fresh.psn };
                Ok((Link { qp: Some(qp), fresh: Some(fresh), leaving: None }, Some(accept)))
            }
            Err(error) => {
                qp.discard(fresh);
                Err(refused(error))
            }
        }
    }
}

/// Leaves devices on which nothing of the contexts of these queue pairs is any more.
fn leave_unused<'a>(qps: impl Iterator<Item = &'a Arc<QpCore>>) {
    let mut contexts: Vec<_> = qps.map(|qp| &qp.pd.context).collect();
    contexts.dedup_by_key(|context| Arc::as_ptr(context));
    contexts.into_iter().for_each(|context| site::leave_unused(context));
}

/// Old physical queue pairs of a group that has gone over, all at ERR. Whoever drops it destroys them:
/// the thread that runs the job which holds it, or that lets go of the job where it is not run any
/// more, so that nobody waits for ever for the end of the move.
struct LeftBehind(Vec<(Arc<QpCore>, Leaving)>);

impl Drop for LeftBehind {
    fn drop(&mut self) {
        let left = std::mem::take(&mut self.0);
        let qps: Vec<_> = left.iter().map(|(qp, _)| Arc::clone(qp)).collect();
        leave(left);
        leave_unused(qps.iter());
    }
}

/// The device from which `end` is reached: the queue pair's own, another one in use, or one that is
/// opened for it.
fn device_towards(
    context: &Arc<VirtualContext>,
    qp: &QpCore,
    end: &PhysicalEnd,
) -> Result<Arc<Underlay>, PrepareError> {
    let reaches = |underlay: &Arc<Underlay>| underlay.reaches(FIRST_PORT, end);
    let mut underlays = context.underlays();
    let own = qp.device();
    underlays.sort_by_key(|underlay| Some(underlay.id) != own);
    if let Some(found) = underlays.into_iter().find(reaches) {
        return Ok(found);
    }
    context.look_after_port();
    let Some(_unsettled) = context.try_unsettle() else { return Err(PrepareError::Busy) };
    let mut devices = device::list();
    // Hardware first: a soft one reaches soft ones alone.
    devices.sort_by_key(|device| device.kind() == Kind::Soft);
    for device in devices {
        let Ok(opened) = device.open() else { continue };
        let source = context.evidence().of(&opened, MayTry::No);
        let underlay = context.local().add_device(opened, source);
        if reaches(&underlay) {
            let extended = site::extend(context, &underlay);
            return match extended {
                Ok(()) => Ok(underlay),
                Err(error) => Err(PrepareError::Refused(error.to_string())),
            };
        }
    }
    // Who sees nothing better tries where it is: what the kernel knows of its routes is not all.
    let same_kind = |underlay: &Arc<Underlay>| {
        underlay.end(FIRST_PORT, 0).is_ok_and(|own| own.link_layer == end.link_layer)
    };
    let found = context.underlays().into_iter().find(|it| Some(it.id) == own && same_kind(it));
    found.ok_or_else(|| {
        PrepareError::Refused(format!(
            "this machine has no device on a network of the mover's (link layer {}, GID {})",
            end.link_layer,
            crate::abi::Gid(end.gid)
        ))
    })
}

impl Side<PhysicalEnd> for Ground {
    fn prepare(
        &mut self,
        offers: &[Offer<PhysicalEnd>],
    ) -> Result<Vec<Option<Accept<PhysicalEnd>>>, PrepareError> {
        let mut accepts = Vec::with_capacity(offers.len());
        for offer in offers {
            match self.prepare_one(offer) {
                Ok((link, accept)) => {
                    self.links.push(link);
                    accepts.push(accept);
                }
                Err(error) => {
                    self.discard();
                    return Err(error);
                }
            }
        }
        Ok(accepts)
    }

    fn stop(&mut self) {
        self.qps().for_each(|qp| qp.stop());
    }

    fn is_drained(&mut self) -> bool {
        self.harvest();
        self.qps().all(|qp| qp.is_quiet())
    }

    fn take_down(&mut self) {
        self.harvest();
        self.qps().for_each(|qp| qp.take_down());
        self.down = Some(Instant::now());
    }

    fn executed(&mut self) -> Option<Vec<Executed>> {
        self.harvest();
        let last_look = self.down.is_some_and(|since| since.elapsed() >= BARRIER_PATIENCE);
        let executed = |link: &Link| match &link.qp {
            Some(qp) => qp.executed(last_look),
            None => Some(Executed::default()),
        };
        self.links.iter().map(executed).collect()
    }

    fn attach(&mut self, mover: &[Executed]) -> Vec<Cut> {
        for Link { qp, fresh, .. } in &self.links {
            if let (Some(qp), Some(fresh)) = (qp, fresh) {
                qp.receive_on(fresh);
                qp.return_shared();
            }
        }
        let mut cuts = Vec::new();
        for (i, (link, executed)) in self.links.iter_mut().zip(mover).enumerate() {
            if let (Some(qp), Some(fresh)) = (&link.qp, link.fresh.take()) {
                let (leaving, cut) = qp.attach(fresh, Some(executed));
                link.leaving = Some(leaving);
                cuts.extend(cut.map(|landed| Cut { link: i as u32, landed }));
            }
        }
        cuts
    }

    fn release(&mut self, cuts: &[Cut]) {
        for cut in cuts {
            if let Some(qp) = self.links.get(cut.link as usize).and_then(|link| link.qp.as_ref()) {
                qp.expect_cut(cut.landed);
            }
        }
        let mut left = LeftBehind(Vec::with_capacity(self.links.len()));
        for Link { qp, leaving, .. } in &mut self.links {
            if let (Some(qp), Some(leaving)) = (qp, leaving.take()) {
                qp.release();
                left.0.push((Arc::clone(qp), leaving));
            }
        }
        // The mover hears first that all goes on: it waits for every group, in the dark. What is
        // left executes nothing any more; until it is gone, a next move finds this one under way.
        self.local.resolver().run_soon(Box::new(move || drop(left)));
    }

    fn lose(&mut self, cuts: &[Cut]) {
        for cut in cuts {
            if let Some(qp) = self.links.get(cut.link as usize).and_then(|link| link.qp.as_ref()) {
                qp.lose_peer();
            }
        }
    }

    fn go_on(&mut self) {
        self.qps().for_each(|qp| qp.go_on());
    }

    fn hold(&mut self, links: &[HeldLink]) -> Result<(), PrepareError> {
        for link in links {
            let held = self.find(link.qpn, link.holder_qpn).and_then(|found| match found {
                Some(qp) => match qp.be_held() {
                    Ok(()) => Ok(Some(qp)),
                    Err(error) if error.errno() == libc::EBUSY => Err(PrepareError::Busy),
                    // The program has destroyed it just now.
                    Err(_) => Ok(None),
                },
                None => Ok(None),
            });
            match held {
                Ok(qp) => self.links.push(Link { qp, fresh: None, leaving: None }),
                Err(error) => {
                    self.let_go();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn is_still(&mut self, links: &[HeldLink]) -> (bool, Vec<Option<HeldEnd>>) {
        self.harvest();
        let still = |(own, held): (&Link, &HeldLink)| {
            own.qp.as_ref().is_none_or(|qp| qp.is_still(&held.end))
        };
        let still = self.links.iter().zip(links).all(still);
        let end = |link: &Link| link.qp.as_ref().map(|qp| qp.held_end());
        (still, self.links.iter().map(end).collect())
    }

    fn let_go(&mut self) {
        self.qps().for_each(|qp| qp.be_let_go());
        self.links.clear();
    }

    fn discard(&mut self) {
        for Link { qp, fresh, .. } in &mut self.links {
            if let (Some(qp), Some(fresh)) = (qp, fresh.take()) {
                qp.discard(fresh);
            }
        }
        self.leave_unused();
    }
}
