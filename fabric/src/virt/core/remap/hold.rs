//! A context stands still for a moment, and so do its peers' ends: the driver of the holder's machine, on the
//! thread that asks for it.
//!
//! From [`suspend`] until the [`Suspension`] ends no device writes for a connected queue pair of the context into
//! this process's memory, and nothing of it is in flight. All completions that came until then are in the
//! backlogs of the virtual CQs; unread, as far as the program has not polled them. Whoever posts meanwhile
//! appends, and no more: sends and receives, on both sides. (Receives of a shared queue are handed: nobody is there to
//! fill them.)
//!
//! | | what stands still |
//! | --- | --- |
//! | RC | all; a message that waits for a receive goes on waiting, and what is behind it |
//! | UC | nothing tells what has arrived: what was handed is given 100 ms |
//! | UD | what this context sends. Who sends to it is not known: a datagram may land in a receive that was posted before. Its completion comes after the hold, and says so |
//!
//! Other contexts of the process go on. A peer that hears nothing of its holder for its patience (30 s) goes on by
//! itself; the holder is told.

use super::cqs_of;
use super::follower::Holding;
use super::mover::by_lot;
use super::survey::{Surveyed, Way, survey_qps};
use crate::abi::{qp_state, qp_type};
use crate::error::{Error, Result};
use crate::names::{self, Fetch, ProcessId, Record};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::cq::CqCore;
use crate::virt::core::lock_mutex;
use crate::virt::core::qp::QpCore;
use crossbeam_channel::{Receiver, Sender, unbounded};
use sojourn_logging::remap::{
    Answer, GroupId, HeldEnd, HeldLink, HoldAction, HoldAsk, HoldFailure, HoldStage, Holder,
    HolderLimits, MAX_LINKS, Request,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two tries, at first; doubled each time, up to the most.
const FIRST_REST: Duration = Duration::from_millis(2);
const MOST_REST: Duration = Duration::from_millis(200);
/// How long the service looks for an answer to one question: the machine asks again sooner.
const ASK_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at what is still under way.
const LOOK: Duration = Duration::from_micros(20);

/// The context stands still as long as this is there: see [`Context::suspend`](crate::virt::Context::suspend).
#[must_use = "all goes on as soon as it is dropped"]
pub struct Suspension(Option<Hold>);

/// Makes a context stand still.
///
/// # Errors
/// As [`Context::suspend`](crate::virt::Context::suspend). Where there is one, everything goes on.
pub(in crate::virt::core) fn suspend(
    context: &Arc<VirtualContext>,
    deadline: Instant,
) -> Result<Suspension> {
    context.local().remaps.contend();
    let mut rest = FIRST_REST;
    loop {
        let busy = match attempt(context, deadline) {
            Ok(hold) => return Ok(Suspension(Some(hold))),
            Err(error) if error.errno() == libc::EBUSY => error,
            Err(error) => return Err(error.context("holding still")),
        };
        let wait = by_lot(rest);
        if Instant::now() + wait >= deadline {
            return Err(busy.context("holding still, tried until its deadline"));
        }
        tracing::debug!("holding still: {busy}; again in {wait:?}");
        std::thread::sleep(wait);
        rest = (rest * 2).min(MOST_REST);
    }
}

fn busy(why: &str) -> Error {
    Error::new(libc::EBUSY, why)
}

fn attempt(context: &Arc<VirtualContext>, deadline: Instant) -> Result<Hold> {
    let holding = context
        .local()
        .remaps
        .begin_hold(context.local())
        .ok_or_else(|| busy("this process is moving, follows a peer, or lets one go first"))?;
    let mut hold = {
        let _unsettled = loop {
            match context.try_unsettle() {
                Some(guard) => break guard,
                None if Instant::now() >= deadline => {
                    return Err(busy(
                        "an object of the context is being made, changed or destroyed",
                    ));
                }
                None => std::thread::sleep(LOOK),
            }
        };
        let surveyed = survey_qps(context, "which cannot be held")?;
        if !context.begin_hold() {
            return Err(busy("this context is held already"));
        }
        Hold::new(context, holding, surveyed, deadline)
    };
    hold.run()?;
    Ok(hold)
}

/// Links that one message speaks of.
struct Group {
    peer: ProcessId,
    id: GroupId,
    /// Queue pairs of the context, and their peers' numbers.
    links: Vec<(Arc<QpCore>, u32)>,
    /// Why it could not be asked the last time.
    trouble: Arc<Mutex<Option<names::Error>>>,
}

enum Told {
    Answer(usize, Answer<names::PhysicalEnd>),
    Lost(usize),
}

/// A hold, from its beginning until its end.
struct Hold {
    context: Arc<VirtualContext>,
    _holding: Holding,
    /// Those that may send or receive; of some it is known that they stand still.
    qps: Vec<(Arc<QpCore>, bool)>,
    /// Connected within the context: by place.
    within: Vec<(usize, usize)>,
    /// Connected to nobody who answers: by place.
    alone: Vec<usize>,
    groups: Vec<Group>,
    cqs: Vec<Arc<CqCore>>,
    machine: Holder,
    told: (Sender<Told>, Receiver<Told>),
    epoch: Instant,
    since: Instant,
    drained: bool,
    /// Why it cannot be begun.
    unable: Option<Error>,
}

impl Hold {
    fn new(
        context: &Arc<VirtualContext>,
        holding: Holding,
        surveyed: Vec<Surveyed>,
        deadline: Instant,
    ) -> Self {
        let local = context.local();
        let life = local.grant().incarnation.0;
        let mut groups: Vec<Group> = Vec::new();
        let mut open: HashMap<ProcessId, usize> = HashMap::new();
        let (mut within, mut alone) = (Vec::new(), Vec::new());
        for (at, Surveyed { qp, way, .. }) in surveyed.iter().enumerate() {
            match *way {
                Way::Within(other) => within.push((at, other)),
                Way::Gone(_) | Way::Alone => alone.push(at),
                Way::Peer(peer, qpn) => {
                    let group = match open.get(&peer) {
                        Some(group) if groups[*group].links.len() < MAX_LINKS => *group,
                        _ => {
                            let id = local.remaps.next_group(life);
                            let (links, trouble) = (Vec::new(), Arc::default());
                            groups.push(Group { peer, id, links, trouble });
                            open.insert(peer, groups.len() - 1);
                            groups.len() - 1
                        }
                    };
                    groups[group].links.push((Arc::clone(qp), qpn));
                }
            }
        }
        let epoch = Instant::now();
        let drain = deadline.saturating_duration_since(epoch);
        let limits = HolderLimits { drain, ..HolderLimits::default() };
        let is_live = |state| !matches!(state, qp_state::RESET | qp_state::ERR);
        Hold {
            context: Arc::clone(context),
            _holding: holding,
            cqs: cqs_of(surveyed.iter().map(|it| &it.qp)),
            qps: surveyed.into_iter().map(|it| (it.qp, !is_live(it.state))).collect(),
            within,
            alone,
            machine: Holder::new(groups.len(), Duration::ZERO, limits),
            groups,
            told: unbounded(),
            epoch,
            since: epoch,
            drained: false,
            unable: None,
        }
    }

    /// Drives the machine until all stand still.
    fn run(&mut self) -> Result<()> {
        loop {
            while let Some(action) = self.machine.poll(self.epoch.elapsed()) {
                match action {
                    HoldAction::Held => {
                        // What peers have said has been executed has come by now.
                        self.harvest();
                        for (at, other) in &self.within {
                            let (sender, receiver) = (&self.qps[*at].0, &self.qps[*other].0);
                            receiver.hear_of_peer(!sender.may_have_failed());
                        }
                        self.since = Instant::now();
                        return Ok(());
                    }
                    HoldAction::Ended(Err(failure)) => return Err(self.explain(&failure)),
                    HoldAction::Ended(Ok(_)) => return Err(busy("the hold has ended")),
                    action => self.act(action),
                }
            }
            if self.context.local().remaps.yields() || self.unable.is_some() {
                self.machine.give_way(self.epoch.elapsed());
            }
            if !self.drained && self.machine.stage() == HoldStage::Quiesce && self.has_drained() {
                self.drained = true;
                self.machine.drained(self.epoch.elapsed());
                continue;
            }
            self.wait();
        }
    }

    fn wait(&mut self) {
        let now = self.epoch.elapsed();
        let mut wait = self.machine.wake_at().map_or(LOOK, |at| at.saturating_sub(now));
        if !self.drained {
            wait = wait.min(LOOK);
        }
        if let Ok(told) = self.told.1.recv_timeout(wait) {
            self.tell(told);
        }
    }

    fn tell(&mut self, told: Told) {
        let now = self.epoch.elapsed();
        match told {
            Told::Answer(at, answer) => {
                let answer = self.as_still_as_both(at, answer);
                self.machine.answer(at, answer, now);
            }
            Told::Lost(at) => self.machine.lost(at, now),
        }
    }

    /// A peer says that it is still, and how its ends stand: by that it shows whether ours are.
    fn as_still_as_both(
        &self,
        at: usize,
        answer: Answer<names::PhysicalEnd>,
    ) -> Answer<names::PhysicalEnd> {
        let Answer::Still { still, ends } = answer else { return answer };
        self.harvest();
        let links = &self.groups[at].links;
        let own = |((qp, _), end): (&(Arc<QpCore>, u32), &Option<HeldEnd>)| match end {
            Some(end) if qp.qp_type == qp_type::RC => qp.is_still(end),
            _ => qp.has_drained(),
        };
        let both = ends.len() == links.len() && links.iter().zip(&ends).all(own);
        for ((qp, _), end) in links.iter().zip(&ends) {
            qp.hear_of_peer(end.is_some_and(|end| !end.failed));
        }
        Answer::Still { still: still && both, ends }
    }

    fn act(&mut self, action: HoldAction) {
        match action {
            HoldAction::Stop => self.stop(),
            HoldAction::Ask(at, ask) => self.ask(at, ask),
            HoldAction::GoOn => self.go_on(),
            HoldAction::Held | HoldAction::Ended(_) => {}
        }
    }

    fn stop(&mut self) {
        for (qp, is_still) in &mut self.qps {
            if *is_still {
                continue;
            }
            if let Err(error) = qp.stand_still() {
                // It is not to go on, either; and one that has just been destroyed is missed by nobody.
                *is_still = true;
                if error.errno() == libc::EBUSY {
                    self.unable = Some(error);
                }
            }
        }
    }

    fn go_on(&mut self) {
        self.context.end_hold();
        for (qp, was_still) in &self.qps {
            if !was_still {
                qp.stand_still_no_more();
            }
        }
    }

    fn harvest(&self) {
        self.cqs.iter().for_each(|cq| cq.harvest_now());
    }

    fn has_drained(&self) -> bool {
        self.harvest();
        let within = |(at, other): &(usize, usize)| {
            let (sender, receiver) = (&self.qps[*at].0, &self.qps[*other].0);
            // Whether a shared receive is there can be told of our own.
            sender.is_still(&receiver.held_end())
                || receiver.srq.is_some() && sender.is_at_rest(receiver)
        };
        self.alone.iter().all(|at| self.qps[*at].1 || self.qps[*at].0.has_drained())
            && self.within.iter().all(within)
    }

    fn ask(&self, at: usize, ask: HoldAsk) {
        let Group { peer, id, links, trouble } = &self.groups[at];
        let request = ask.plain().unwrap_or_else(|| {
            self.harvest();
            let link = |(qp, peer): &(Arc<QpCore>, u32)| HeldLink {
                qpn: *peer,
                holder_qpn: qp.qpn,
                end: qp.held_end(),
            };
            Request::Hold { links: links.iter().map(link).collect() }
        });
        let (told, trouble) = (self.told.0.clone(), Arc::clone(trouble));
        let done = Box::new(move |answer: std::result::Result<Record, names::Error>| {
            let event = match answer {
                Ok(Record::Remap(answer)) => Told::Answer(at, answer),
                Err(names::Error::Gone { .. }) => Told::Lost(at),
                // Asked again, as long as there is time.
                Ok(_) => return,
                Err(error) => {
                    *lock_mutex(&trouble) = Some(error);
                    return;
                }
            };
            // Nobody listens any more where the hold has ended.
            let _ = told.send(event);
        });
        let deadline = Instant::now() + ASK_PATIENCE;
        self.context.local().resolver().fetch(*peer, Fetch::Remap(*id, request), deadline, done);
    }

    fn explain(&mut self, failure: &HoldFailure) -> Error {
        if let Some(error) = self.unable.take() {
            return error;
        }
        let (at, errno) = match failure {
            HoldFailure::Busy(at) => (at, libc::EBUSY),
            HoldFailure::Refused(at, _) => (at, libc::ECONNREFUSED),
            HoldFailure::Silent(at) | HoldFailure::Restless(at) => (at, libc::ETIMEDOUT),
            HoldFailure::Confused(at) => (at, libc::EPROTO),
            HoldFailure::GaveWay => return busy(&failure.to_string()),
            HoldFailure::Undrained => {
                let restless = self.qps.iter().find(|(qp, was)| !was && !qp.has_drained());
                let name = restless.map(|(qp, _)| format!("queue pair {:#x}: ", qp.qpn));
                let text = format!("{}{failure}", name.unwrap_or_default());
                return Error::new(libc::ETIMEDOUT, text);
            }
        };
        let Group { peer, trouble, .. } = &self.groups[*at];
        let mut text = format!("{peer}: {failure}");
        if let (HoldFailure::Silent(_), Some(why)) = (failure, &*lock_mutex(trouble)) {
            text.push_str(&format!(": {why}"));
        }
        Error::new(errno, text)
    }

    /// Whether nobody has gone on. Asks who is to be asked again.
    fn lasts(&mut self) -> bool {
        while let Ok(told) = self.told.1.try_recv() {
            self.tell(told);
        }
        while let Some(action) = self.machine.poll(self.epoch.elapsed()) {
            self.act(action);
        }
        self.machine.lapsed(self.epoch.elapsed()).is_none()
    }

    fn end(mut self) -> Result<Duration> {
        let stood = self.since.elapsed();
        self.machine.end(self.epoch.elapsed());
        loop {
            while let Some(action) = self.machine.poll(self.epoch.elapsed()) {
                match action {
                    HoldAction::Ended(Ok(None)) => return Ok(stood),
                    HoldAction::Ended(Ok(Some(at))) => {
                        let peer = self.groups[at].peer;
                        let seconds = HolderLimits::default().patience.as_secs();
                        return Err(Error::new(
                            libc::EAGAIN,
                            format!(
                                "{peer} went on by itself, having heard nothing of this process for {seconds} s: \
                                 throw away what was taken of memory meanwhile, and hold again"
                            ),
                        ));
                    }
                    HoldAction::Ended(Err(failure)) => return Err(self.explain(&failure)),
                    action => self.act(action),
                }
            }
            self.drained = true;
            self.wait();
        }
    }
}

impl Suspension {
    /// The context that stands still.
    pub(in crate::virt::core) fn context(&self) -> Option<&Arc<VirtualContext>> {
        self.0.as_ref().map(|hold| &hold.context)
    }

    /// Whether both sides stand still to this moment. Peers whose patience is on the way to its end are asked to wait
    /// on: a hold that is to last longer than their patience (30 s) asks this every few seconds.
    pub fn still_held(&mut self) -> bool {
        self.0.as_mut().is_some_and(Hold::lasts)
    }

    /// Both sides go on. Returns how long they stood still.
    ///
    /// # Errors
    /// `EAGAIN` where a peer had gone on by itself, which the message names: whatever was taken of memory
    /// during the hold is not of one moment.
    pub fn end(mut self) -> Result<Duration> {
        match self.0.take() {
            Some(hold) => hold.end(),
            None => Ok(Duration::ZERO),
        }
    }
}

impl Drop for Suspension {
    fn drop(&mut self) {
        if let Some(hold) = self.0.take()
            && let Err(error) = hold.end()
        {
            tracing::warn!("holding still: {error}");
        }
    }
}
