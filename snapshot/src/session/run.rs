//! Doing what the machine says.

use super::link::{Link, not_granted};
use super::meta::Meta;
use super::{EpochReport, Notice, Options, Program, Restored};
use crate::epoch::{
    Action, Answer, Decider, DeciderLimits, Epoch, Event, Incarnation, Order, Request, Ruling,
    Slot, StoreId, Term, Writer,
};
use crate::image::{Geometry, PageEntry, PageTable, Stamp};
use crate::stream::{Lane, Source, Target, pump};
use crate::{Error, Layout, PageSet, Result, store};
use sojourn_fabric::names::{self, ProcessId};
use sojourn_fabric::virt::{ProtectionDomain, Remote};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a session sleeps at most before it looks again.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// What an epoch has taken so far.
#[derive(Clone, Copy, Default)]
struct Toll {
    bytes: u64,
    chunks: usize,
    zeros: usize,
    collects: u32,
    paused: Duration,
    sending: Duration,
}

/// A process and its stores. See the [module](super).
pub struct Session {
    options: Options,
    machine: Writer,
    // Before the links' queue pairs the source must not go: a device may still read it.
    links: BTreeMap<Incarnation, Link>,
    source: Source,
    meta: Meta,
    pd: ProtectionDomain,
    geometry: Geometry,
    pages: PageTable,
    windows: Vec<u8>,
    paused_at: u64,
    pausing: Option<Instant>,
    toll: Toll,
    since: Instant,
    began: Instant,
    decider: Option<Decider>,
    notices: Vec<Notice>,
}

impl Session {
    /// A session for these areas. With `restored`, memory is as it was read from there, and nothing has changed it
    /// that [`Program::collect`] will not tell.
    ///
    /// Everything is registered here, ahead of any pause. Stores are connected to when the first epoch begins.
    ///
    /// # Safety
    /// The areas stay mapped and readable until the session is dropped.
    ///
    /// # Errors
    /// Where the device cannot be opened, or an area not be registered; `EINVAL` for options that contradict
    /// each other, or a table of other areas.
    pub unsafe fn open(
        options: Options,
        layout: Layout,
        restored: Option<Restored>,
    ) -> Result<Session> {
        if !(1..=store::MAX_LANES).contains(&options.lanes) {
            let (lanes, most) = (options.lanes, store::MAX_LANES);
            return Err(Error::invalid(format!("{lanes} threads of a session: 1 to {most}")));
        }
        let (copies, minimum) = (options.policy.copies, options.policy.minimum);
        if minimum == 0 || minimum > copies || copies > options.stores.len() {
            let stores = options.stores.len();
            let text = format!("{copies} copies, {minimum} at least, on {stores} stores");
            return Err(Error::invalid(text));
        }
        if u32::try_from(options.member.0).is_err() || options.member.0 == 0 || options.life == 0 {
            let (member, life) = (options.member, options.life);
            return Err(Error::invalid(format!(
                "life {life} of process {member}: both count from 1"
            )));
        }
        if options.term.0 == 0 || options.term > Term::MAX {
            let (term, most) = (options.term.0, Term::MAX.0);
            return Err(Error::invalid(format!("a decider of term {term}: 1 to {most}")));
        }
        if let Some(restored) = &restored
            && restored.pages.entries().len() != layout.chunks()
        {
            let (has, needs) = (restored.pages.entries().len(), layout.chunks());
            let text = format!("memory of {needs} chunks, restored from a slot of {has}");
            return Err(Error::invalid(text));
        }
        let geometry = Geometry::of(&layout, options.windows)?;
        let context = store::device(&options.device)?;
        let pd = context.alloc_pd()?;
        let meta = Meta::new(&pd, geometry)?;
        let life = Incarnation::of_life(options.life);
        let sizes = (layout.chunks(), 2 * geometry.bytes() as u64);
        let origin = restored.as_ref().map(|restored| restored.origin);
        let machine =
            Writer::new(sizes, life, options.term, origin, options.policy, options.limits);
        let pages =
            restored.map_or_else(|| PageTable::zeros(&layout, 0), |restored| restored.pages);
        // SAFETY: the caller's promise.
        let source = unsafe { Source::register(&pd, layout) }?;
        let now = Instant::now();
        Ok(Session {
            options,
            machine,
            links: BTreeMap::new(),
            source,
            meta,
            pd,
            geometry,
            pages,
            windows: vec![],
            paused_at: 0,
            pausing: None,
            toll: Toll::default(),
            since: now,
            began: now,
            decider: None,
            notices: vec![],
        })
    }

    /// The areas.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        self.source.layout()
    }

    /// The last epoch that is committed.
    #[must_use]
    pub fn committed(&self) -> Epoch {
        self.machine.committed()
    }

    /// The stores that hold copies now.
    pub fn stores(&self) -> impl Iterator<Item = StoreId> {
        self.machine.stores()
    }

    /// The decider says something.
    pub fn order(&mut self, order: Order) {
        let now = self.since.elapsed();
        let before = (self.machine.epoch(), self.machine.stage());
        self.machine.event(Event::Order(order), now);
        if self.machine.epoch() != before.0 {
            (self.toll, self.began) = (Toll::default(), Instant::now());
        }
    }

    /// How protecting an epoch went ([`Notice::Protect`]).
    pub fn protected(&mut self, epoch: Epoch, outcome: std::result::Result<(), String>) {
        self.machine.event(Event::Protected(epoch, outcome), self.since.elapsed());
    }

    /// When to call [`Self::drive`] again at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.machine.wake_at().map(|at| self.since + at)
    }

    /// Does all that there is to do now.
    pub fn drive(&mut self, program: &mut dyn Program) -> Vec<Notice> {
        loop {
            let mut sends = BTreeMap::new();
            while let Some(action) = self.machine.poll(self.since.elapsed()) {
                if let Some(event) = self.act(action, program, &mut sends) {
                    self.machine.event(event, self.since.elapsed());
                }
            }
            if sends.is_empty() {
                return std::mem::take(&mut self.notices);
            }
            for event in self.send(sends) {
                self.machine.event(event, self.since.elapsed());
            }
        }
    }

    /// One epoch, of a process that is a job of its own, from beginning to commit.
    ///
    /// # Errors
    /// It is given up, and why: `ECANCELED`; `ESTALE` where a newer life of this process writes.
    pub fn checkpoint(&mut self, program: &mut dyn Program) -> Result<EpochReport> {
        let member = self.options.member;
        let now = self.since.elapsed();
        let mut decider = self.decider.take().unwrap_or_else(|| {
            Decider::new(
                self.options.term,
                [(member, Incarnation::of_life(self.options.life))],
                now,
                DeciderLimits::default(),
            )
        });
        let mut started = None;
        let outcome = loop {
            let now = self.since.elapsed();
            if started.is_none() && decider.is_idle() {
                started = decider.start(now);
            }
            while let Some(ruling) = decider.poll(now) {
                if let Ruling::Tell(_, order) = ruling {
                    self.order(order);
                }
            }
            let mut outcome = None;
            for notice in self.drive(program) {
                match notice {
                    Notice::Report(report) => decider.report(member, report, self.since.elapsed()),
                    Notice::Protect(epoch) => self.protected(epoch, Ok(())),
                    Notice::Committed(report) => outcome = Some(Ok(report)),
                    Notice::GivenUp(epoch, why) => {
                        let text = format!("{epoch} is given up: {why}");
                        outcome = Some(Err(Error::new(libc::ECANCELED, text)));
                    }
                    Notice::Fenced(newest) => {
                        let (own, life) = (self.options.life, newest.life());
                        let text = format!("life {life} of process {member} writes; this is {own}");
                        outcome = Some(Err(Error::new(libc::ESTALE, text)));
                    }
                }
            }
            if let Some(outcome) = outcome {
                break outcome;
            }
            let now = self.since.elapsed();
            let wake = [self.machine.wake_at(), decider.wake_at()].into_iter().flatten().min();
            if started.is_some() || !decider.is_idle() {
                let left = wake.map_or(LONGEST_SLEEP, |at| at.saturating_sub(now));
                std::thread::sleep(left.min(LONGEST_SLEEP));
            }
        };
        self.decider = Some(decider);
        outcome
    }

    fn act(
        &mut self,
        action: Action,
        program: &mut dyn Program,
        sends: &mut BTreeMap<Incarnation, (Slot, PageSet)>,
    ) -> Option<Event> {
        if let Some(step) = step(&action) {
            (self.options.at_step)(step);
        }
        match action {
            Action::Ask(by, store, request) => Some(self.ask(by, store, request)),
            Action::Place(known) => {
                let other = self.options.stores.iter().find(|store| !known.contains(&store.id));
                Some(Event::Store(other.map(|store| store.id)))
            }
            Action::Invalidate(by, slot) => Some(self.word(by, slot, Epoch::NONE)),
            Action::Word(by, slot, epoch) => Some(self.word(by, slot, epoch)),
            Action::Collect => Some(self.collect(program)),
            Action::Pause => Some(self.pause(program)),
            Action::Resume => {
                let outcome = self.resume(program);
                outcome
                    .err()
                    .map(|error| Event::Moved(format!("the program did not stand still: {error}")))
            }
            Action::Send(by, slot, chunks) => {
                sends.insert(by, (slot, chunks));
                None
            }
            Action::Seal(by, slot, epoch) => Some(self.seal(by, slot, epoch)),
            Action::Disconnect(by) => {
                self.links.remove(&by);
                None
            }
            Action::Protect(epoch) => self.notice(Notice::Protect(epoch)),
            Action::Report(report) => self.notice(Notice::Report(report)),
            // With parity it can still be rebuilt.
            Action::Committed(epoch, 0) if !self.options.policy.protect => {
                let why = "all stores that had it are lost, or are another life's".to_owned();
                self.notice(Notice::GivenUp(epoch, why))
            }
            Action::Committed(epoch, copies) => {
                program.committed();
                let report = self.report(epoch, copies);
                self.notice(Notice::Committed(report))
            }
            Action::GivenUp(epoch, reason) => {
                self.notice(Notice::GivenUp(epoch, reason.to_string()))
            }
            Action::Fenced(newest) => self.notice(Notice::Fenced(newest)),
        }
    }

    fn notice(&mut self, notice: Notice) -> Option<Event> {
        self.notices.push(notice);
        None
    }

    fn report(&self, epoch: Epoch, copies: usize) -> EpochReport {
        let Toll { bytes, chunks, zeros, collects, paused, sending } = self.toll;
        EpochReport {
            epoch,
            copies,
            bytes,
            chunks,
            zeros,
            rounds: collects.saturating_sub(1),
            paused,
            took: self.began.elapsed(),
            sending,
        }
    }

    /// What failed with a store takes the connection with it.
    fn lost(&self, by: Incarnation, error: &Error) -> Event {
        tracing::warn!("a store of process {} is lost: {error}", self.options.member);
        Event::Lost(by)
    }

    fn ask(&mut self, by: Incarnation, store: StoreId, request: Request) -> Event {
        match self.answer(by, store, request) {
            Ok(answer) => Event::Answer(by, answer),
            // The reason is what the machine tells when it has to give up.
            Err(error) if matches!(request, Request::Grant { .. }) => {
                tracing::warn!("a store of process {}: {error}", self.options.member);
                Event::Answer(by, Answer::refused(&error.to_string()))
            }
            Err(error) => self.lost(by, &error),
        }
    }

    fn answer(&mut self, by: Incarnation, store: StoreId, request: Request) -> Result<Answer> {
        let Options { key, limits, stores, lanes, member, .. } = &self.options;
        let link = match self.links.entry(by) {
            Entry::Occupied(link) => link.into_mut(),
            Entry::Vacant(place) => {
                let at = stores.iter().find(|it| it.id == store).ok_or_else(not_granted)?;
                place.insert(Link::connect(at, key, limits.answer)?)
            }
        };
        link.ask(&self.pd, *lanes, *member, request)
    }

    /// What has become of something that was written.
    fn written(&self, by: Incarnation, outcome: Result<()>) -> Event {
        outcome.map_or_else(|error| self.lost(by, &error), |()| Event::Done(by))
    }

    fn word(&mut self, by: Incarnation, slot: Slot, epoch: Epoch) -> Event {
        let (links, meta) = (&mut self.links, &self.meta);
        let outcome =
            reach(links, by, slot).and_then(|(slot, lane)| meta.word(lane, slot, epoch.0));
        self.written(by, outcome)
    }

    fn seal(&mut self, by: Incarnation, slot: Slot, epoch: Epoch) -> Event {
        let stamp = Stamp {
            job: self.options.job,
            process: ProcessId(self.options.member.0 as u32),
            incarnation: names::Incarnation(by.life()),
            epoch: epoch.0,
            paused_at: self.paused_at,
        };
        let (links, meta) = (&mut self.links, &self.meta);
        let outcome =
            meta.fill(&stamp, self.source.layout(), &self.pages, &self.windows).and_then(|parts| {
                let (slot, lane) = reach(links, by, slot)?;
                meta.write(lane, slot, &parts)
            });
        self.written(by, outcome)
    }

    /// Marks in the page table what is dirty.
    fn collect(&mut self, program: &mut dyn Program) -> Event {
        let layout = self.source.layout();
        let mut dirty = PageSet::new(layout.chunks());
        if let Err(error) = program.collect(&mut |range| layout.mark(range, &mut dirty)) {
            return Event::Unable(error.to_string());
        }
        let count = self.machine.epoch().count();
        for chunk in dirty.runs().flatten() {
            let entry = &mut self.pages.entries_mut()[chunk];
            *entry = PageEntry::with_crc(entry.crc(), count);
        }
        self.toll.collects += 1;
        Event::Dirty(dirty)
    }

    fn pause(&mut self, program: &mut dyn Program) -> Event {
        self.pausing = Some(Instant::now());
        match program.pause() {
            Ok(windows) if windows.len() <= self.geometry.windows() => self.windows = windows,
            Ok(windows) => {
                let (has, room) = (windows.len(), self.geometry.windows());
                self.resume_anyway(program);
                return Event::Unable(format!("{has} bytes of windows: there is room for {room}"));
            }
            Err(error) => {
                self.pausing = None;
                return Event::Unable(format!("the program does not stand still: {error}"));
            }
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.paused_at = u64::try_from(since.as_nanos()).unwrap_or_default();
        let event = self.collect(program);
        if matches!(event, Event::Unable(_)) {
            self.resume_anyway(program);
        }
        event
    }

    fn resume(&mut self, program: &mut dyn Program) -> Result<()> {
        let Some(since) = self.pausing.take() else { return Ok(()) };
        let outcome = program.resume();
        self.toll.paused += since.elapsed();
        outcome
    }

    /// Of an epoch that is given up whatever comes of it.
    fn resume_anyway(&mut self, program: &mut dyn Program) {
        if let Err(error) = self.resume(program) {
            tracing::debug!("of an epoch that is given up: {error}");
        }
    }

    /// Sends to all stores at once, so that each chunk is looked at once.
    fn send(&mut self, mut sends: BTreeMap<Incarnation, (Slot, PageSet)>) -> Vec<Event> {
        (self.options.at_step)("send");
        let since = Instant::now();
        let (mut by, mut targets) = (vec![], vec![]);
        for (incarnation, link) in &mut self.links {
            let Some((slot, stale)) = sends.remove(incarnation) else { continue };
            if let Ok((slot, lanes)) = link.reach(slot) {
                by.push(*incarnation);
                targets.push(Target { lanes, slot, geometry: self.geometry, stale, failed: None });
            }
        }
        let pumped = pump(&self.source, &mut self.pages, &mut targets);
        let failed: Vec<Option<Error>> = targets.into_iter().map(|it| it.failed).collect();
        self.toll.bytes += pumped.bytes;
        self.toll.chunks += pumped.chunks;
        self.toll.zeros += pumped.zeros;
        self.toll.sending += since.elapsed();
        (self.options.at_step)("sent");
        let outcomes = by.into_iter().zip(failed);
        let sent = outcomes.map(|(by, failed)| self.written(by, failed.map_or(Ok(()), Err)));
        // What is left has no connection any more.
        sent.chain(sends.into_keys().map(Event::Lost)).collect()
    }
}

/// What an action is called in [`STEPS`](super::STEPS).
fn step(action: &Action) -> Option<&'static str> {
    match action {
        Action::Ask(_, _, Request::Grant { .. }) => Some("grant"),
        Action::Ask(_, _, Request::Check { .. }) => Some("check"),
        Action::Ask(_, _, Request::Note { .. }) => Some("note"),
        Action::Invalidate(..) => Some("invalidate"),
        Action::Collect => Some("collect"),
        Action::Pause => Some("pause"),
        Action::Resume => Some("resume"),
        Action::Seal(..) => Some("seal"),
        Action::Word(..) => Some("word"),
        Action::Committed(..) => Some("committed"),
        _ => None,
    }
}

/// A slot's first byte, and the queue pair for what must come in order.
fn reach(
    links: &mut BTreeMap<Incarnation, Link>,
    by: Incarnation,
    slot: Slot,
) -> Result<(Remote, &mut Lane<()>)> {
    let (slot, lanes) = links.get_mut(&by).ok_or_else(not_granted)?.reach(slot)?;
    Ok((slot, lanes.first_mut().ok_or_else(not_granted)?))
}
