//! A program that talks RDMA, as a session sees it: its memory, and the contexts whose devices write there.
//!
//! A [`Host`] joins what the CPU has written, which a [`Tracker`] tells, and what devices have written, which no
//! tracker can see and virtual verbs tell (`Context::written`). It has what an epoch needs of attached contexts:
//!
//! | the session asks for | what happens |
//! | --- | --- |
//! | rounds | the tracker is asked, and nobody else: the program and its peers go on. What a device has written meanwhile is not sent, or sent in whatever state it is, and stays stale |
//! | the pause | every attached context is suspended, with its peers' ends; what devices have written since the last committed report is asked for; windows are captured; then the tracker is asked at rest. All that devices wrote is sent inside the pause, while nobody can write it |
//! | to go on | suspensions end. Where one had lapsed (a peer went on by itself), what was sent is not of one moment: the epoch is given up by name, and the next one sends it again |
//! | the commit | devices' reports are let go of, and peers are told what they need not keep any more (`Context::cut`) |
//!
//! A pause that fails has stopped nothing: contexts that were suspended already go on. A report that is not committed
//! is contained in the next; so is one whose commit a peer did not hear.
//!
//! *Threads are not its business.* Whoever drives the session sees to it that no thread of the program writes memory, posts
//! or polls from [`pause`](Program::pause) to [`resume`](Program::resume): by driving it on the program's only thread, or
//! as a program of its own around this one.
//!
//! # What must be attached
//!
//! Every context ([`Contexts`]) with memory in the snapshot that others may write, or that receives or READs into it. A report is of all
//! contexts of a process that track; but only attached ones stand still. A pause lasts no longer than peers have
//! patience (30 s), or the epoch is given up.
//!
//! Who sends datagrams is not known, so nobody stops them: one may land in the pause, in a receive that was posted before.
//! It is of no epoch then, which is as if it had been lost; but where its page is being sent at that moment, its checksum does not hold.
//! Where datagrams are received into protected memory, [`Policy::check`](crate::epoch::Policy) has such an epoch given up.
//!
//! # Windows
//!
//! With [`Attach::Windows`] a context's windows are part of the epoch ([`Windows`]), and come back with
//! [`Process::restore`](sojourn_fabric::virt::Process::restore) once memory is where it was. Both ends of each of its
//! connections are its own then: a cut through all processes of a job, with their windows, takes more than each of them
//! standing still at a moment of its own, and is not built yet. A context that is connected to others is attached
//! with [`Attach::Memory`], and its program connects anew after a restore.

mod contexts;
mod windows;

pub use contexts::{Attach, Contexts, MAX_CONTEXTS};
pub use windows::Windows;

use crate::session::Program;
use crate::track::Tracker;
use crate::{Error, Result};
use contexts::Attached;
use sojourn_fabric::virt::{Cut, Suspension, Written};
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long contexts may take to stand still, one after the other. Where the ranks of a job pause at the same time they
/// hold each other one by one.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long peers may take to hear that an epoch is committed. Who does not hear it is told next time.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);

/// What is told to peers when the epoch of the last pause is committed.
struct Told {
    written: Vec<Written>,
    cuts: Vec<Cut>,
}

/// A program's memory and contexts. See the [module](self).
pub struct Host {
    tracker: Box<dyn Tracker>,
    contexts: Contexts,
    /// From the pause until it ends.
    holds: Option<Vec<Suspension>>,
    /// From the pause until its epoch is committed, or another one pauses.
    told: Option<Told>,
}

impl Host {
    /// A program whose memory that tracker watches, and whose devices are those of these contexts.
    #[must_use]
    pub fn new(tracker: Box<dyn Tracker>, contexts: &Contexts) -> Host {
        let contexts = contexts.clone();
        Host { tracker, contexts, holds: None, told: None }
    }

    /// Suspends all contexts, and asks for what is needed of them.
    fn hold(&self) -> Result<(Vec<Suspension>, Told, Windows)> {
        let deadline = Instant::now() + PATIENCE;
        let contexts = self.contexts.now();
        let mut holds = Vec::new();
        // Where one of them fails those before it are dropped, and so end.
        for (at, Attached { context, .. }) in contexts.iter().enumerate() {
            holds.push(context.suspend(deadline).map_err(|error| whose(at, error))?);
        }
        let mut told = Told { written: Vec::new(), cuts: Vec::new() };
        let mut windows = Windows::default();
        for (at, (Attached { context, what }, hold)) in contexts.iter().zip(&holds).enumerate() {
            let captured = match what {
                Attach::Windows => Some(hold.capture(deadline).map_err(|error| whose(at, error))?),
                Attach::Memory => None,
            };
            windows.push(captured);
            let written = context.written(deadline).map_err(|error| whose(at, error))?;
            for (peer, why) in written.unknown() {
                tracing::debug!("all that {peer:?} could have written counts as written: {why}");
            }
            told.written.push(written);
            told.cuts.push(context.cut().map_err(|error| whose(at, error))?);
        }
        Ok((holds, told, windows))
    }
}

impl Program for Host {
    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        let (Some(_), Some(told)) = (&self.holds, &self.told) else {
            return self.tracker.collect(dirty);
        };
        // What devices have written is told again as long as it is not committed; what a tracker tells is told once.
        // So this comes first: it is not lost where the other fails.
        for range in told.written.iter().flat_map(Written::ranges) {
            dirty(range.clone());
        }
        self.tracker.collect_at_rest(dirty)
    }

    fn pause(&mut self) -> Result<Vec<u8>> {
        // A cut that was not committed gives back what it has taken, before the next one is made.
        self.told = None;
        let (holds, told, windows) = self.hold()?;
        (self.holds, self.told) = (Some(holds), Some(told));
        Ok(windows.encode())
    }

    fn resume(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        // All of them, whatever becomes of one.
        for (at, hold) in self.holds.take().into_iter().flatten().enumerate() {
            outcome = outcome.and(hold.end().map(drop).map_err(|error| whose(at, error)));
        }
        if outcome.is_err() {
            self.told = None;
        }
        outcome
    }

    fn committed(&mut self) {
        let Some(Told { written, cuts }) = self.told.take() else { return };
        let deadline = Instant::now() + COMMIT_PATIENCE;
        let written = written.into_iter().map(|it| it.commit(deadline));
        for error in
            written.chain(cuts.into_iter().map(|it| it.commit(deadline))).filter_map(Result::err)
        {
            tracing::warn!(
                "an epoch is committed, and {error}: that is made up for with the next one"
            );
        }
    }
}

fn whose(at: usize, error: Error) -> Error {
    error.context(format_args!("context {at} of this program"))
}
