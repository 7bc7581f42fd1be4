//! A context goes to another device: the driver of the mover's machine, on the thread that asks for it.
//!
//! Of two that move at once the one with precedence waits, with what it has made, until the other has taken
//! its move back; in between and afterwards each follows the other. See `follower`.
//!
//! Until the commit point every step can be taken back, and is, in the order in which it was done;
//! the program goes on where it was. Programs post and poll all the while; whoever makes, changes
//! or destroys an object waits.

use super::follower::has_precedence;
use super::survey::{Surveyed, Way, check_limits, survey};
use super::{BARRIER_PATIENCE, cqs_of, leave, site};
use crate::abi::{qp_state, qp_type};
use crate::device::{DeviceContext, DeviceSrq};
use crate::error::{Error, Result};
use crate::names::{self, DeviceId, Fetch, MAX_MOVED, PhysicalEnd, ProcessId, Record};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::cq::CqCore;
use crate::virt::core::local::Local;
use crate::virt::core::lock_mutex;
use crate::virt::core::policy::{MayTry, Source};
use crate::virt::core::qp::{Fresh, Leaving, QpCore};
use crate::virt::core::srq::SrqCore;
use crate::virt::core::underlay::Underlay;
use crossbeam_channel::{Receiver, Sender, unbounded};
use sojourn_logging::Executed;
use sojourn_logging::remap::{
    Accept, Action, Answer, Cut, Event, Failure, GroupId, MAX_LINKS, Mover, MoverLimits, Offer,
    Stage,
};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a move is tried while peers, or this process, are busy with others. As long as a peer
/// may take for the longest of them.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries, at first; doubled each time, up to the most. Two that are in each other's way
/// draw their waits by lot.
const FIRST_REST: Duration = Duration::from_millis(2);
const MOST_REST: Duration = Duration::from_millis(200);
/// How long the service looks for an answer to one question: the machine asks again sooner.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// How long is waited for atomics that are under way: one that was executed, and whose answer is not
/// waited for, ends with an error. (Everything else is waited for less long, by its queue pair. In the tests
/// here a device stands still until the test says so: waiting is in vain.)
const DRAIN: Duration = Duration::from_millis(if cfg!(test) { 150 } else { 2000 });
/// The same over a path that has failed.
const DRAIN_OF_FAILED: Duration = Duration::from_millis(1);
/// Until a peer that has to take back a move of its own is asked again.
const YIELD: Duration = Duration::from_millis(5);
/// How long a peer may take for that.
const MOST_YIELD: Duration = Duration::from_secs(2);
/// How long a peer may take to make its new queue pairs. (In the tests here it answers at once, or not at
/// all.)
const PREPARE: Duration = Duration::from_millis(if cfg!(test) { 700 } else { 10_000 });
/// Between two looks at what is still under way.
const LOOK: Duration = Duration::from_micros(20);

/// A step of a move, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Its name: `prepare`, `quiesce`, `down`, `switch`, `cleanup`.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// Why a context moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The program wanted it.
    Asked,
    /// A path failed.
    PathFailure,
}

/// A context has gone to another device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The device that it was on.
    pub from: String,
    /// The device that it is on.
    pub to: String,
    /// Why.
    pub cause: Cause,
    /// Queue pairs that moved.
    pub queue_pairs: usize,
    /// Processes that followed with their ends.
    pub peers: usize,
    /// Tries that were taken back before, because others were moving.
    pub retries: u32,
    /// The steps, in order.
    pub phases: Vec<Phase>,
}

impl Relocation {
    /// From the moment at which nothing more was handed to the old device until everything was
    /// handed to the new one. Posting and polling went on all the while.
    #[must_use]
    pub fn blackout(&self) -> Duration {
        let dark = ["quiesce", "down", "switch"];
        self.phases.iter().filter(|phase| dark.contains(&phase.name)).map(|phase| phase.took).sum()
    }
}

/// Why a try came to nothing.
enum Short {
    /// Somebody else is moving: try again.
    Busy(Error),
    /// Of itself.
    Failed(Error),
}

impl From<Error> for Short {
    fn from(error: Error) -> Self {
        match error.errno() {
            libc::EBUSY => Short::Busy(error),
            _ => Short::Failed(error),
        }
    }
}

/// Moves a context to that device.
///
/// # Errors
/// As [`crate::virt::Context::relocate`]. Where there is one, everything is as it was.
pub(in crate::virt::core) fn relocate(
    context: &Arc<VirtualContext>,
    device: &Arc<dyn DeviceContext>,
    cause: Cause,
) -> Result<Relocation> {
    let until = Instant::now() + PATIENCE;
    let to = device.name().to_owned();
    // Before anybody waits for this move. What has failed already is not to wait for a trial.
    let may_try = if cause == Cause::Asked { MayTry::Yes } else { MayTry::No };
    let source = context.evidence().of(device, may_try);
    context.local().remaps.contend();
    let (mut rest, mut retries) = (FIRST_REST, 0);
    loop {
        let busy = match attempt(context, device, source, cause, until) {
            Ok(done) => return Ok(Relocation { retries, ..done }),
            Err(Short::Failed(error)) => return Err(error.context(format!("moving to {to}"))),
            Err(Short::Busy(error)) => error,
        };
        let wait = by_lot(rest);
        if Instant::now() + wait >= until {
            let tried = format!("moving to {to}, tried for {} s", PATIENCE.as_secs());
            return Err(busy.context(tried));
        }
        tracing::debug!("moving to {to}: {busy}; again in {wait:?}");
        std::thread::sleep(wait);
        rest = (rest * 2).min(MOST_REST);
        retries += 1;
    }
}

/// Between half of it and one and a half.
pub(super) fn by_lot(rest: Duration) -> Duration {
    rest / 2 + rest.mul_f64((RandomState::new().hash_one(0) % 1024) as f64 / 1024.0)
}

fn attempt(
    context: &Arc<VirtualContext>,
    device: &Arc<dyn DeviceContext>,
    source: Source,
    cause: Cause,
    until: Instant,
) -> std::result::Result<Relocation, Short> {
    let local = context.local();
    let busy = |why: &str| Short::Busy(Error::new(libc::EBUSY, why));
    let _moving = local.remaps.begin().ok_or_else(|| {
        busy("this process is moving another context, follows a peer, or lets one go first")
    })?;
    let started = Instant::now();
    let _unsettled = loop {
        match context.try_unsettle() {
            Some(guard) => break guard,
            None if Instant::now() >= until => {
                return Err(busy("an object of the context is being made, changed or destroyed"));
            }
            None => std::thread::sleep(LOOK),
        }
    };
    let surveyed = survey(context)?;
    let to = local.add_device(Arc::clone(device), source);
    check_limits(context, &surveyed, &to)?;
    let old: Vec<DeviceId> = context.underlays().iter().map(|underlay| underlay.id).collect();
    let from = context.underlay().device.name().to_owned();
    site::extend(context, &to)?;
    let made = Move::prepare(context, &to, surveyed, cause);
    let mut a_move = made.inspect_err(|_| site::retract(context, to.id))?;
    a_move.mark_since("prepare", started);
    match a_move.run() {
        Ok(()) => {}
        Err(failure) => {
            let short = a_move.explain(&failure);
            drop(a_move);
            site::retract(context, to.id);
            return Err(short);
        }
    }
    let ended = Instant::now();
    context.promote_underlay(to.id);
    a_move.leave_old();
    old.iter().for_each(|device| site::retract(context, *device));
    a_move.tell_of_datagrams();
    a_move.mark_since("cleanup", ended);
    Ok(Relocation {
        from,
        to: device.name().to_owned(),
        cause,
        queue_pairs: a_move.links.len(),
        peers: a_move.followers(),
        retries: 0,
        phases: std::mem::take(&mut a_move.phases),
    })
}

/// A queue pair on the way.
struct Link {
    qp: Arc<QpCore>,
    state: u32,
    way: Way,
    fresh: Option<Fresh>,
    leaving: Option<Leaving>,
    /// Its peer has no such queue pair.
    absent: bool,
    /// Its first request was cut: it waits for the peer to be told.
    held: bool,
    executed: Executed,
}

impl Link {
    /// It has something to stop.
    fn is_live(&self) -> bool {
        !matches!(self.state, qp_state::RESET | qp_state::ERR)
    }
}

/// Links that one message speaks of.
struct Group {
    peer: ProcessId,
    id: GroupId,
    /// Places of its links.
    links: Vec<usize>,
    /// What it was asked last.
    asked: Option<Fetch>,
    /// Its peer is to take back a move of its own, and is asked again then.
    again: Option<Instant>,
    /// Its last answer was that it is busy.
    is_busy: bool,
    /// Why it could not be asked the last time.
    trouble: Arc<Mutex<Option<names::Error>>>,
}

/// A move under way.
struct Move<'a> {
    context: &'a Arc<VirtualContext>,
    local: &'a Arc<Local>,
    links: Vec<Link>,
    groups: Vec<Group>,
    /// Shared receive queues, with what they go over to.
    srqs: Vec<(Arc<SrqCore>, Arc<dyn DeviceSrq>)>,
    cqs: Vec<Arc<CqCore>>,
    to: Arc<Underlay>,
    cause: Cause,
    machine: Option<Mover<PhysicalEnd>>,
    events: (Sender<Event<PhysicalEnd>>, Receiver<Event<PhysicalEnd>>),
    epoch: Instant,
    /// It is taken back because another goes first.
    gives_way: bool,
    /// Links with something under way, once stopped.
    draining: Option<Vec<usize>>,
    /// When the phase began that is going on.
    since: Instant,
    phases: Vec<Phase>,
}

impl<'a> Move<'a> {
    /// Makes everything that can be made before anything stops.
    fn prepare(
        context: &'a Arc<VirtualContext>,
        to: &Arc<Underlay>,
        surveyed: Vec<Surveyed>,
        cause: Cause,
    ) -> Result<Self> {
        let link = |Surveyed { qp, state, way }| Link {
            qp,
            state,
            way,
            fresh: None,
            leaving: None,
            absent: false,
            held: false,
            executed: Executed::default(),
        };
        let epoch = Instant::now();
        let mut it = Move {
            context,
            local: context.local(),
            links: surveyed.into_iter().map(link).collect(),
            groups: Vec::new(),
            srqs: Vec::new(),
            cqs: Vec::new(),
            to: Arc::clone(to),
            cause,
            machine: None,
            events: unbounded(),
            epoch,
            gives_way: false,
            draining: None,
            since: epoch,
            phases: Vec::new(),
        };
        it.cqs = cqs_of(it.links.iter().map(|link| &link.qp));
        // Dropped where it fails, and so all is let go of.
        it.make_queues()?;
        it.connect_within()?;
        let offers = it.make_groups()?;
        let drain = match cause {
            Cause::Asked => DRAIN,
            Cause::PathFailure => DRAIN_OF_FAILED,
        };
        let limits = MoverLimits { drain, prepare: PREPARE, ..MoverLimits::default() };
        it.machine = Some(Mover::new(offers, it.epoch.elapsed(), limits));
        Ok(it)
    }

    fn make_queues(&mut self) -> Result<()> {
        for srq in self.context.srqs.alive() {
            let what = "another shared receive queue";
            let other = srq.another(&self.to).map_err(|error| error.context(what))?;
            self.srqs.push((srq, other));
        }
        for link in &mut self.links {
            let srq = match &link.qp.srq {
                Some(srq) => {
                    let found = self.srqs.iter().find(|(it, _)| Arc::ptr_eq(it, srq));
                    let missing = || Error::invalid("a shared receive queue of another context");
                    Some(Arc::clone(&found.ok_or_else(missing)?.1))
                }
                None => None,
            };
            // Making all of them takes a while, and somebody may wait for this move to be taken back.
            if self.local.remaps.yields() {
                return Err(Error::new(libc::EBUSY, "it gives way to another"));
            }
            link.fresh = Some(link.qp.fresh(&self.to, srq, link.state)?);
        }
        Ok(())
    }

    /// Connects what needs nobody's answer.
    fn connect_within(&mut self) -> Result<()> {
        let own = self.local.grant().process;
        for at in 0..self.links.len() {
            let (process, end) = match self.links[at].way {
                Way::Peer(..) | Way::Alone => continue,
                Way::Gone(process) => (process, None),
                Way::Within(other) => {
                    let other = &self.links[other];
                    let Some(fresh) = &other.fresh else { continue };
                    (own, Some((other.qp.end_of(fresh)?, fresh.psn)))
                }
            };
            let Link { qp, fresh, .. } = &mut self.links[at];
            if let Some(fresh) = fresh {
                qp.connect_fresh(fresh, process, end)?;
            }
        }
        Ok(())
    }

    fn make_groups(&mut self) -> Result<Vec<Vec<Offer<PhysicalEnd>>>> {
        let life = self.local.grant().incarnation.0;
        let mut open: HashMap<ProcessId, usize> = HashMap::new();
        let mut offers: Vec<Vec<Offer<PhysicalEnd>>> = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            let (Way::Peer(peer, qpn), Some(fresh)) = (link.way, &link.fresh) else { continue };
            let group = match open.get(&peer) {
                Some(group) if offers[*group].len() < MAX_LINKS => *group,
                _ => {
                    let id = self.local.remaps.next_group(life);
                    self.groups.push(Group {
                        peer,
                        id,
                        links: Vec::new(),
                        asked: None,
                        again: None,
                        is_busy: false,
                        trouble: Arc::default(),
                    });
                    offers.push(Vec::new());
                    open.insert(peer, offers.len() - 1);
                    offers.len() - 1
                }
            };
            self.groups[group].links.push(at);
            offers[group].push(Offer {
                qpn,
                mover_qpn: link.qp.qpn,
                incarnation: fresh.incarnation,
                end: link.qp.end_of(fresh)?,
                psn: fresh.psn,
            });
        }
        Ok(offers)
    }

    /// A phase has ended.
    fn mark(&mut self, name: &'static str) {
        self.mark_since(name, self.since);
    }

    fn mark_since(&mut self, name: &'static str, since: Instant) {
        let now = Instant::now();
        let took = now - since;
        self.since = now;
        // What came before the machine belongs to its first phase.
        match self.phases.iter_mut().find(|phase| phase.name == name) {
            Some(phase) => phase.took += took,
            None => self.phases.push(Phase { name, took }),
        }
    }

    /// Drives the machine to its end.
    fn run(&mut self) -> std::result::Result<(), Failure> {
        let Some(mut machine) = self.machine.take() else { return Ok(()) };
        loop {
            while let Some(action) = machine.poll(self.epoch.elapsed()) {
                let event = match action {
                    Action::Ended(result) => {
                        if result.is_ok() {
                            self.mark("switch");
                        }
                        return result;
                    }
                    action => self.act(action),
                };
                if let Some(event) = event {
                    machine.event(event, self.epoch.elapsed());
                }
            }
            let mut wait =
                machine.wake_at().map_or(LOOK, |at| at.saturating_sub(self.epoch.elapsed()));
            if machine.stage() == Stage::Prepare {
                if self.local.remaps.yields() && !std::mem::replace(&mut self.gives_way, true) {
                    let why = "it gives way to another".to_owned();
                    machine.event(Event::Unable(0, why), self.epoch.elapsed());
                    continue;
                }
                self.ask_again();
                wait = wait.min(YIELD);
            }
            if machine.stage() == Stage::Quiesce && self.draining.is_some() {
                if self.is_drained() {
                    self.draining = None;
                    machine.event(Event::Drained, self.epoch.elapsed());
                    continue;
                }
                wait = wait.min(LOOK);
            }
            if let Ok(event) = self.events.1.recv_timeout(wait) {
                if machine.stage() == Stage::Prepare && self.waits_for_peer(&event) {
                    continue;
                }
                machine.event(event, self.epoch.elapsed());
            }
        }
    }

    fn act(&mut self, action: Action<PhysicalEnd>) -> Option<Event<PhysicalEnd>> {
        match action {
            Action::Ask(at, request) => {
                let what = Fetch::Remap(self.groups[at].id, request);
                self.groups[at].asked = Some(what.clone());
                self.ask(at, what);
            }
            Action::Connect(at, accepts) => {
                if let Err(error) = self.connect(at, accepts) {
                    return Some(Event::Unable(at, error.to_string()));
                }
            }
            Action::Stop => self.stop(),
            Action::TakeDown => return Some(Event::Down(self.take_down())),
            Action::Attach(at, executed, cuts) => {
                return Some(Event::Attached(at, self.attach(at, &executed, &cuts)));
            }
            Action::Release(at) => {
                for link in self.groups[at].links.clone() {
                    self.release(link);
                }
            }
            Action::Fail(at) => self.fail(at),
            Action::GoOn => {
                self.draining = None;
                self.links.iter().filter(|link| link.is_live()).for_each(|link| link.qp.go_on());
            }
            Action::Discard => self.discard(),
            Action::Ended(_) => {}
        }
        None
    }

    /// Whether a peer is busy with a move that it takes back for this one. It is asked again then.
    fn waits_for_peer(&mut self, event: &Event<PhysicalEnd>) -> bool {
        let Event::Answer(at, Answer::Busy) = event else { return false };
        let Some(group) = self.groups.get_mut(*at) else { return false };
        let first = !group.is_busy;
        // One that is busy for longer has to go itself first (its port is down, say): it gets its turn.
        group.is_busy = has_precedence(self.local.grant().process, group.peer)
            && self.epoch.elapsed() < MOST_YIELD;
        if first && group.is_busy {
            tracing::debug!("{} is busy: it is waited for", group.peer);
        }
        group.again = group.is_busy.then(|| Instant::now() + YIELD);
        group.is_busy
    }

    fn ask_again(&mut self) {
        let now = Instant::now();
        for at in 0..self.groups.len() {
            let group = &mut self.groups[at];
            if group.again.take_if(|at| *at <= now).is_some()
                && let Some(what) = group.asked.clone()
            {
                self.ask(at, what);
            }
        }
    }

    fn ask(&self, at: usize, what: Fetch) {
        let events = self.events.0.clone();
        let trouble = Arc::clone(&self.groups[at].trouble);
        let done = Box::new(move |answer: std::result::Result<Record, names::Error>| {
            let event = match answer {
                Ok(Record::Remap(answer)) => Event::Answer(at, answer),
                Err(names::Error::Gone { .. }) => Event::Lost(at),
                // Asked again, as long as there is time.
                Ok(_) => return,
                Err(error) => {
                    *lock_mutex(&trouble) = Some(error);
                    return;
                }
            };
            // Nobody listens any more where the move has ended.
            let _ = events.send(event);
        });
        let deadline = Instant::now() + ASK_PATIENCE;
        self.local.resolver().fetch(self.groups[at].peer, what, deadline, done);
    }

    fn connect(&mut self, at: usize, accepts: Vec<Option<Accept<PhysicalEnd>>>) -> Result<()> {
        let Group { peer, links, .. } = &self.groups[at];
        for (place, accept) in links.iter().zip(accepts) {
            let Link { qp, fresh, absent, .. } = &mut self.links[*place];
            let Some(fresh) = fresh else { continue };
            *absent = accept.is_none();
            qp.connect_fresh(fresh, *peer, accept.map(|accept| (accept.end, accept.psn)))?;
        }
        // All that is broken has nobody at the other end: it is not the path's fault.
        let broken = |link: &&Link| link.qp.is_broken();
        if self.cause == Cause::PathFailure
            && self.links.iter().filter(broken).all(|link| link.absent)
            && self.links.iter().any(|link| broken(&link))
        {
            return Err(Error::new(libc::ECONNRESET, "the queue pairs at the other end are gone"));
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.mark("prepare");
        let live = self.links.iter().enumerate().filter(|(_, link)| link.is_live());
        self.draining = Some(
            live.map(|(at, link)| {
                link.qp.stop();
                at
            })
            .collect(),
        );
    }

    fn is_drained(&mut self) -> bool {
        self.cqs.iter().for_each(|cq| cq.harvest_now());
        let Some(draining) = &mut self.draining else { return true };
        draining.retain(|at| !self.links[*at].qp.is_quiet());
        draining.is_empty()
    }

    /// Everything old is down, and everything new receives.
    fn take_down(&mut self) -> Vec<Vec<Executed>> {
        self.draining = None;
        self.mark("quiesce");
        self.links.iter().filter(|link| link.is_live()).for_each(|link| link.qp.take_down());
        let down = Instant::now();
        let mut open: Vec<usize> =
            (0..self.links.len()).filter(|at| self.links[*at].is_live()).collect();
        loop {
            self.cqs.iter().for_each(|cq| cq.harvest_now());
            let last_look = down.elapsed() >= BARRIER_PATIENCE;
            let links = &mut self.links;
            open.retain(|at| match links[*at].qp.executed(last_look) {
                Some(executed) => {
                    links[*at].executed = executed;
                    false
                }
                None => true,
            });
            if open.is_empty() {
                break;
            }
            std::thread::sleep(LOOK);
        }
        self.srqs.iter().for_each(|(srq, other)| srq.go_over(&self.to, other));
        for Link { qp, fresh, .. } in &self.links {
            if let Some(fresh) = fresh {
                qp.receive_on(fresh);
            }
        }
        self.mark("down");
        self.attach_own();
        let executed = |group: &Group| {
            group.links.iter().map(|at| self.links[*at].executed).collect::<Vec<_>>()
        };
        self.groups.iter().map(executed).collect()
    }

    /// Attaches what needs nobody's word: queue pairs that are connected to none, or to each other.
    fn attach_own(&mut self) {
        let mut cuts = Vec::new();
        for at in 0..self.links.len() {
            let peer = match self.links[at].way {
                Way::Peer(..) => continue,
                Way::Within(other) => Some(self.links[other].executed),
                Way::Gone(_) | Way::Alone => None,
            };
            if let Some(landed) = self.attach_one(at, peer.as_ref())
                && let Way::Within(other) = self.links[at].way
            {
                self.links[other].qp.expect_cut(landed);
                cuts.push(at);
            }
        }
        cuts.into_iter().for_each(|at| self.release(at));
    }

    fn attach_one(&mut self, at: usize, peer: Option<&Executed>) -> Option<u32> {
        let link = &mut self.links[at];
        let fresh = link.fresh.take()?;
        let (leaving, cut) = link.qp.attach(fresh, peer);
        link.leaving = Some(leaving);
        link.held = cut.is_some();
        cut
    }

    fn attach(&mut self, at: usize, executed: &[Executed], cuts: &[Cut]) -> Vec<Cut> {
        let links = self.groups[at].links.clone();
        for cut in cuts {
            if let Some(place) = links.get(cut.link as usize) {
                self.links[*place].qp.expect_cut(cut.landed);
            }
        }
        let mut own = Vec::new();
        for (i, (place, executed)) in links.into_iter().zip(executed).enumerate() {
            let peer = (!self.links[place].absent).then_some(executed);
            if let Some(landed) = self.attach_one(place, peer) {
                own.push(Cut { link: i as u32, landed });
            }
        }
        own
    }

    fn release(&mut self, at: usize) {
        if std::mem::take(&mut self.links[at].held) {
            self.links[at].qp.release();
        }
    }

    /// The peer of a group is gone.
    fn fail(&mut self, at: usize) {
        let peer = self.groups[at].peer;
        tracing::warn!("{peer} does not follow any more: its connections end");
        for place in self.groups[at].links.clone() {
            let Link { qp, fresh, held, .. } = &mut self.links[place];
            if std::mem::take(held) {
                qp.lose_peer();
            }
            let Some(fresh) = fresh else { continue };
            // Its answer never came.
            if !fresh.is_connected()
                && let Err(error) = qp.connect_fresh(fresh, peer, None)
            {
                tracing::warn!("queue pair {:#x}: {error}", qp.qpn);
            }
            self.attach_one(place, None);
        }
    }

    fn discard(&mut self) {
        for Link { qp, fresh, .. } in &mut self.links {
            if let Some(fresh) = fresh.take() {
                qp.discard(fresh);
            }
        }
        self.srqs.clear();
    }

    /// Lets go of what was left.
    fn leave_old(&mut self) {
        let links = self.links.iter_mut();
        leave(
            links.filter_map(|link| Some((Arc::clone(&link.qp), link.leaving.take()?))).collect(),
        );
        self.cqs.iter().for_each(|cq| cq.promote(self.to.id));
    }

    /// Who sends datagrams to a queue pair learns where it is now.
    fn tell_of_datagrams(&self) {
        let mut news: HashMap<ProcessId, Vec<(u32, PhysicalEnd)>> = HashMap::new();
        let datagrams = self.links.iter().map(|link| &link.qp);
        let own = self.local.peer(self.local.grant().process);
        for qp in datagrams.filter(|qp| qp.qp_type == qp_type::UD) {
            let Some(end) = qp.end() else { continue };
            own.learn_qpn(qp.qpn, &end);
            for process in qp.known_to() {
                news.entry(process).or_default().push((qp.qpn, end));
            }
        }
        for (process, qps) in news {
            for some in qps.chunks(MAX_MOVED) {
                let deadline = Instant::now() + ASK_PATIENCE;
                let done = Box::new(move |answer: std::result::Result<_, names::Error>| {
                    if let Err(error) = answer {
                        tracing::info!("{process} is not told where datagrams go: {error}");
                    }
                });
                self.local.resolver().fetch(process, Fetch::Moved(some.to_vec()), deadline, done);
            }
        }
    }

    /// Processes that followed.
    fn followers(&self) -> usize {
        let mut peers: Vec<_> = self.groups.iter().map(|group| group.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        peers.len()
    }

    fn explain(&self, failure: &Failure) -> Short {
        let (at, errno) = match failure {
            Failure::Busy(at) => (at, libc::EBUSY),
            Failure::Unable(at, _) if self.gives_way => (at, libc::EBUSY),
            Failure::Silent(at, Stage::Prepare) if self.groups[*at].is_busy => (at, libc::EBUSY),
            Failure::Refused(at, _) => (at, libc::ECONNREFUSED),
            Failure::Silent(at, _) => (at, libc::ETIMEDOUT),
            Failure::Confused(at, _) => (at, libc::EPROTO),
            Failure::Unable(at, _) => (at, libc::EIO),
        };
        let Group { peer, trouble, .. } = &self.groups[*at];
        let mut text = format!("{peer}: {failure}");
        if let (Failure::Silent(..), Some(why)) = (failure, &*lock_mutex(trouble)) {
            text.push_str(&format!(": {why}"));
        }
        Error::new(errno, text).into()
    }
}

impl Drop for Move<'_> {
    fn drop(&mut self) {
        self.discard();
    }
}
