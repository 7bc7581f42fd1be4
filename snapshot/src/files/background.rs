//! The background of a running job: a thread that drains epochs, compacts and prunes.

use super::directory::Directory;
use super::flush::{Flushed, Options};
use super::image::Image;
use super::keep::{Keep, Pruned};
use super::{Progress, Step};
use crate::epoch::Epoch;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Outcomes that are held for who asks; of more the oldest are forgotten.
const MAX_OUTCOMES: usize = 64;

/// What the background does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Each epoch whose count is a multiple of this is drained; at least 1.
    pub every: u64,
    /// How they are written. An epoch that is as far from a full one as may be is compacted.
    pub options: Options,
    /// What is kept after each; everything, where there is no rule.
    pub keep: Option<Keep>,
}

/// What became of one epoch.
#[derive(Clone, Debug)]
pub struct Drained {
    /// Which one.
    pub epoch: Epoch,
    /// What was written, or why not.
    pub flushed: Result<Flushed>,
    /// What was written in compacting it, where its turn had come.
    pub compacted: Option<Result<Flushed>>,
    /// What was removed then, where there is a rule.
    pub pruned: Option<Result<Pruned>>,
}

/// A thread that drains epochs to a directory.
///
/// One at a time. While [`Self::draining`] names an epoch, the slots that it is read from must not be begun
/// anew: if they are, checksums tell, and the epoch is given up.
pub struct Flusher {
    shared: Arc<Shared>,
    every: u64,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

/// The images of an epoch, one of each process.
type Images = Vec<Box<dyn Image + Send>>;
/// Where they come from.
type Open = Box<dyn FnOnce() -> Result<Images> + Send>;

#[derive(Default)]
struct State {
    offered: Option<(Epoch, Open)>,
    /// The epoch whose images are being read.
    draining: Option<Epoch>,
    /// Draining, compacting or pruning.
    busy: bool,
    closed: bool,
    outcomes: VecDeque<Drained>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state is so, or until the deadline.
    fn wait(&self, deadline: Instant, so: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state();
        while !so(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Flusher {
    /// Starts it.
    ///
    /// # Errors
    /// `EINVAL` for a plan that cannot be; the thread cannot be started.
    pub fn start(directory: Directory, plan: Plan) -> Result<Flusher> {
        plan.options.check()?;
        if plan.every == 0 {
            return Err(Error::invalid("to flush every 0th epoch: the least is 1"));
        }
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("sojourn-flush".into())
            .spawn(move || run(&directory, &plan, &own))
            .map_err(|error| Error::os(&error, "starting the thread that flushes epochs"))?;
        Ok(Flusher { shared, every: plan.every, thread: Some(thread) })
    }

    /// Whether this epoch is one to be drained, and nothing else is being done.
    #[must_use]
    pub fn wants(&self, epoch: Epoch) -> bool {
        let state = self.shared.state();
        let idle = !state.busy && state.offered.is_none() && !state.closed;
        idle && epoch.count().is_multiple_of(self.every)
    }

    /// Drains a committed epoch: the images of all processes. Says whether it will be; where it is busy,
    /// it is not.
    pub fn offer(&self, epoch: Epoch, images: Vec<Box<dyn Image + Send>>) -> bool {
        self.offer_with(epoch, move || Ok(images))
    }

    /// The same with images that are opened by the thread that drains them: to connect to stores may take
    /// longer than who offers can wait.
    pub fn offer_with(
        &self,
        epoch: Epoch,
        open: impl FnOnce() -> Result<Vec<Box<dyn Image + Send>>> + Send + 'static,
    ) -> bool {
        let mut state = self.shared.state();
        if state.busy || state.offered.is_some() || state.closed {
            return false;
        }
        state.offered = Some((epoch, Box::new(open)));
        self.shared.changed.notify_all();
        true
    }

    /// The epoch whose slots are being read.
    #[must_use]
    pub fn draining(&self) -> Option<Epoch> {
        let state = self.shared.state();
        state.draining.or(state.offered.as_ref().map(|offered| offered.0))
    }

    /// Waits until no slot is being read. Says whether that is so.
    pub fn drained(&self, deadline: Instant) -> bool {
        self.shared.wait(deadline, |state| state.draining.is_none() && state.offered.is_none())
    }

    /// What became of epochs since this was last asked.
    pub fn outcomes(&self) -> Vec<Drained> {
        self.shared.state().outcomes.drain(..).collect()
    }

    /// Waits until everything is done, at most so long; then what is being done is given up. Says what became
    /// of epochs.
    pub fn finish(mut self, patience: Duration) -> Vec<Drained> {
        let deadline = Instant::now() + patience;
        self.shared.wait(deadline, |state| !state.busy && state.offered.is_none());
        self.end();
        self.outcomes()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and then there is nothing to wait for.
            let _ = thread.join();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(directory: &Directory, plan: &Plan, shared: &Shared) {
    loop {
        let mut state = shared.state();
        let (epoch, open) = loop {
            if state.closed {
                return;
            }
            if let Some(offered) = state.offered.take() {
                break offered;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        (state.draining, state.busy) = (Some(epoch), true);
        drop(state);
        let idle = Idle(shared);

        let watch = |progress: &Progress<'_>| {
            if progress.step == Step::NamesSynced {
                // All images are read: only the manifest is missing.
                shared.state().draining = None;
                shared.changed.notify_all();
            }
            if shared.stop.load(Ordering::Acquire) {
                return Err(Error::new(libc::ECANCELED, "the flush was ended before it was done"));
            }
            Ok(())
        };
        let flushed = open().and_then(|mut images| {
            let mut parts: Vec<&mut dyn Image> =
                images.iter_mut().map(|image| image.as_mut() as &mut dyn Image).collect();
            directory.flush(epoch, &mut parts, &plan.options, &mut { watch })
        });
        shared.state().draining = None;
        shared.changed.notify_all();

        let due =
            |flushed: &Flushed| plan.options.chain > 0 && flushed.increments >= plan.options.chain;
        let compacted = flushed
            .as_ref()
            .is_ok_and(due)
            .then(|| directory.compact(epoch.count(), plan.options.codec, &mut { watch }));
        let keep = plan.keep.filter(|_| flushed.is_ok());
        let pruned = keep.map(|keep| directory.prune(&keep, false, &mut { watch }));
        if let Some(error) = [
            flushed.as_ref().err(),
            compacted.as_ref().and_then(|it| it.as_ref().err()),
            pruned.as_ref().and_then(|it| it.as_ref().err()),
        ]
        .into_iter()
        .flatten()
        .next()
        {
            tracing::warn!("{epoch} to {}: {error}", directory.path().display());
        }
        let mut state = shared.state();
        if state.outcomes.len() == MAX_OUTCOMES {
            state.outcomes.pop_front();
        }
        state.outcomes.push_back(Drained { epoch, flushed, compacted, pruned });
        drop(state);
        drop(idle);
    }
}

/// Ends the work of the thread, however it ends.
struct Idle<'a>(&'a Shared);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        (state.draining, state.busy) = (None, false);
        if std::thread::panicking() {
            // Nobody is there to drain any more.
            state.closed = true;
        }
        drop(state);
        self.0.changed.notify_all();
    }
}
