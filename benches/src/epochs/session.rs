//! Epochs of a field into a store: of a program that stands still, or that computes on.

use super::field::{Chance, Elsewhere, Field};
use super::part::{DEVICE, StoreProcess};
use sojourn_fabric::{Error, Result};
use sojourn_snapshot::epoch::Member;
use sojourn_snapshot::session::{EpochReport, Options, Program, Session};
use sojourn_snapshot::track::{self, Kind, Tracker};
use sojourn_snapshot::{PAGE, PageSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The process whose memory it is.
pub const MEMBER: Member = Member(1);
/// What a store needs beside two slots of data: tables, windows, headers.
const BESIDE: usize = 64 << 20;

/// The steps of the epoch that is under way, and when each was taken: a session tells them to a plain function.
static STEPS: Mutex<Vec<(&str, Instant)>> = Mutex::new(Vec::new());

fn at_step(step: &'static str) {
    STEPS.lock().expect("nobody panics with it").push((step, Instant::now()));
}

/// How long each step took, until the next one began; those of one name together.
fn steps(end: Instant) -> Vec<(&'static str, Duration)> {
    let steps = std::mem::take(&mut *STEPS.lock().expect("nobody panics with it"));
    let mut all: Vec<(&str, Duration)> = vec![];
    for (i, (name, at)) in steps.iter().enumerate() {
        let took = steps.get(i + 1).map_or(end, |next| next.1) - *at;
        match all.iter_mut().find(|it| it.0 == *name) {
            Some(it) => it.1 += took,
            None => all.push((name, took)),
        }
    }
    all
}

/// Bytes that a store needs for a field of so many.
#[must_use]
pub fn room(bytes: usize) -> usize {
    2 * bytes + BESIDE
}

/// An epoch.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What the session says of it.
    pub report: EpochReport,
    /// From its beginning to its commit, as its caller sees it.
    pub took: Duration,
    /// From its beginning to when the program may go on, where it stands still from then.
    pub still: Duration,
    /// Each step, in the order in which each came first.
    pub steps: Vec<(&'static str, Duration)>,
    /// What was changed since the epoch before the last, where nothing computed on: what the slot needed.
    pub union: PageSet,
}

impl Outcome {
    /// The steps in words.
    #[must_use]
    pub fn shares(&self) -> String {
        let share = |(name, took): &(&str, Duration)| format!("{name} {:.2}", ms(*took));
        let worth = self.steps.iter().filter(|it| it.1 >= Duration::from_micros(10));
        worth.map(share).collect::<Vec<_>>().join(", ")
    }
}

/// Milliseconds.
#[must_use]
pub fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// How it is known what is dirty.
pub enum Known {
    /// The program says that everything is, once in each epoch.
    All,
    /// A tracker of this kind finds out.
    Tracked(Kind),
}

/// Memory, and a session that takes epochs of it. The session goes first.
pub struct Epochs {
    session: Session,
    store: StoreProcess,
    tracker: Option<Box<dyn Tracker>>,
    field: Field,
    elsewhere: Elsewhere,
    last: PageSet,
    chance: Chance,
}

impl Epochs {
    /// Takes two epochs, so that both slots are filled.
    ///
    /// # Errors
    /// Where the kernel has no such tracker (`EOPNOTSUPP`), the store cannot be started, or an epoch is given up.
    pub fn start(field: Field, lanes: usize, known: &Known) -> Result<Self> {
        let mut tracker = match known {
            Known::All => None,
            Known::Tracked(kind) => Some(track::open(Some(*kind))?),
        };
        if let Some(tracker) = &mut tracker {
            tracker.add(field.range())?;
        }
        let store = StoreProcess::start(room(field.bytes()))?;
        let mut options = Options::new(store.key().clone(), MEMBER, 1, vec![store.at()]);
        (options.device, options.lanes, options.at_step) = (DEVICE.into(), lanes, at_step);
        // SAFETY: the field goes when the session has gone: it stands behind it here.
        let session = unsafe { Session::open(options, field.layout()?, None) }?;
        let (last, chance) = (PageSet::full(field.pages()), Chance::new(7));
        let mut epochs =
            Epochs { session, store, tracker, field, elsewhere: Elsewhere::new(), last, chance };
        let all = epochs.last.clone();
        for _ in 0..2 {
            epochs.take(&all)?;
        }
        Ok(epochs)
    }

    /// The memory.
    #[must_use]
    pub fn field(&self) -> &Field {
        &self.field
    }

    /// Ends the session, and leaves memory and store with the last epoch.
    #[must_use]
    pub fn end(self) -> (Field, StoreProcess) {
        (self.field, self.store)
    }

    /// An epoch in which that share of the pages is dirty, scattered ones; the program stands still.
    ///
    /// # Errors
    /// Where it is given up, or sent less than it had to.
    pub fn share(&mut self, share: f64) -> Result<Outcome> {
        let pages = self.chance.pages(self.field.pages(), share);
        self.take(&pages)
    }

    /// An epoch in which these pages are dirty; the program stands still.
    ///
    /// # Errors
    /// As [`Self::share`].
    pub fn take(&mut self, pages: &PageSet) -> Result<Outcome> {
        self.field.change(pages);
        let mut union = std::mem::replace(&mut self.last, pages.clone());
        union.union_with(pages);
        let tracker = self.tracker.as_mut();
        let all = tracker.is_none().then(|| self.field.range());
        let mut program = Host { tracker, all, paused: false, gate: None, resumed: None };
        self.elsewhere.visit();
        STEPS.lock().expect("nobody panics with it").clear();
        let start = Instant::now();
        let report = self.session.checkpoint(&mut program)?;
        let end = Instant::now();
        let still = program.resumed.map_or(Duration::ZERO, |at| at - start);
        if report.bytes < (union.count() * PAGE) as u64 {
            let (sent, had) = (report.bytes, union.count() * PAGE);
            return Err(Error::new(libc::EIO, format!("{sent} bytes were sent of {had}")));
        }
        Ok(Outcome { report, took: end - start, still, steps: steps(end), union })
    }

    /// The same, but the program computes on, and changes that share of its pages in each second.
    ///
    /// # Errors
    /// As [`Self::share`].
    pub fn share_computing(&mut self, share: f64) -> Result<Outcome> {
        let pages = self.chance.pages(self.field.pages(), share);
        self.field.change(&pages);
        let gate = Gate::default();
        let mut program = Host {
            tracker: self.tracker.as_mut(),
            all: None,
            paused: false,
            gate: Some(&gate),
            resumed: None,
        };
        let (session, field, chance) = (&mut self.session, &mut self.field, &mut self.chance);
        let between = Duration::from_secs_f64(1.0 / (share * field.pages() as f64));
        let (outcome, also) = std::thread::scope(|scope| {
            let computing = scope.spawn(|| compute(field, chance, between, &gate));
            gate.wait_until_running();
            STEPS.lock().expect("nobody panics with it").clear();
            let start = Instant::now();
            let report = session.checkpoint(&mut program);
            let end = Instant::now();
            gate.over.store(true, Ordering::Release);
            let also = computing.join().expect("the program does not panic");
            (report.map(|report| (report, start, end)), also)
        });
        let (report, start, end) = outcome?;
        let mut union = std::mem::replace(&mut self.last, pages);
        self.last.union_with(&also);
        union.union_with(&self.last);
        let (took, still) = (end - start, Duration::ZERO);
        Ok(Outcome { report, took, still, steps: steps(end), union })
    }
}

/// Where a program that computes is stopped.
#[derive(Default)]
struct Gate {
    running: AtomicBool,
    shut: AtomicBool,
    waits: AtomicBool,
    over: AtomicBool,
}

impl Gate {
    fn wait_until_running(&self) {
        while !self.running.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
    }
}

/// Stores to a page by chance, at that pace; and in between it does what a program does, which is use its processor.
fn compute(field: &mut Field, chance: &mut Chance, between: Duration, gate: &Gate) -> PageSet {
    let mut changed = PageSet::new(field.pages());
    let mut next = Instant::now();
    gate.running.store(true, Ordering::Release);
    while !gate.over.load(Ordering::Acquire) {
        if gate.shut.load(Ordering::Acquire) {
            gate.waits.store(true, Ordering::Release);
            while gate.shut.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            next = Instant::now();
        }
        if Instant::now() >= next {
            let page = (chance.number() % field.pages() as u64) as usize;
            field.store(page);
            changed.insert(page);
            next += between;
        }
    }
    changed
}

/// The program, as a session sees it.
struct Host<'a> {
    tracker: Option<&'a mut Box<dyn Tracker>>,
    /// What is dirty, where nothing tracks: told once.
    all: Option<Range<usize>>,
    paused: bool,
    gate: Option<&'a Gate>,
    resumed: Option<Instant>,
}

impl Program for Host<'_> {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        match &mut self.tracker {
            Some(tracker) if self.paused => tracker.collect_at_rest(dirty),
            Some(tracker) => tracker.collect(dirty),
            None => {
                self.all.take().into_iter().for_each(dirty);
                Ok(())
            }
        }
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        self.paused = true;
        if let Some(gate) = self.gate {
            gate.waits.store(false, Ordering::Release);
            gate.shut.store(true, Ordering::Release);
            while !gate.waits.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
        }
        Ok(Vec::new())
    }

    fn resume(&mut self) -> Result<()> {
        self.paused = false;
        self.resumed = Some(Instant::now());
        if let Some(gate) = self.gate {
            gate.shut.store(false, Ordering::Release);
        }
        Ok(())
    }
}
