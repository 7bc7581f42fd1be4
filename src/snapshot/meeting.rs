//! Where the program and the thread that writes its epochs meet.
//!
//! | stage | program | writer |
//! | --- | --- | --- |
//! | idle | computes | waits |
//! | begun | computes | sends rounds |
//! | paused | stands in `checkpoint` | sends the last round |
//! | sealing | computes | seals, and hears whether it is committed |
//!
//! The program comes to `checkpoint` and stands there until the writer has said that it may go on. An epoch may be
//! begun ahead of that, so that rounds are sent while the program computes; the writer waits for the program
//! before the pause then.

use crate::{Error, Result};
use sojourn_snapshot::session::EpochReport;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How far an epoch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    Begun,
    Paused,
    Sealing,
}

/// What has become of an epoch.
pub(super) struct Outcome {
    /// What it took, or why it was given up.
    pub(super) report: Result<EpochReport>,
    /// The call at which the next one is due.
    pub(super) next: u64,
}

struct State {
    stage: Stage,
    /// The program stands in `checkpoint`.
    here: bool,
    /// The call at which it would have the next epoch.
    wish: u64,
    /// What became of the last epoch, until somebody takes it.
    outcome: Option<Outcome>,
    /// That one had ended before the program came: it is told when it comes.
    early: bool,
    /// Nothing more can be done here, and why.
    broken: Option<Error>,
    /// The program wants no more.
    over: bool,
}

/// The place.
pub(super) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

impl Meeting {
    pub(super) fn new() -> Self {
        let state = State {
            stage: Stage::Idle,
            here: false,
            wish: 0,
            outcome: None,
            early: false,
            broken: None,
            over: false,
        };
        Meeting { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The program: an epoch may begin, ahead of the pause.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Idle && state.outcome.is_none() {
            state.stage = Stage::Begun;
            self.changed.notify_all();
        }
    }

    /// The program: stands still, until the last round is sent, or the epoch is given up. What became of the
    /// epoch before it has been asked first ([`Self::outcome`]). `wish` is the call at which it would have the
    /// next.
    ///
    /// # Errors
    /// Nothing can be done here any more.
    pub(super) fn stand_still(&self, wish: u64) -> Result<()> {
        let mut state = self.lock();
        state.wish = wish;
        if std::mem::take(&mut state.early) {
            return Ok(());
        }
        if state.stage == Stage::Idle {
            state.stage = Stage::Begun;
        }
        state.here = true;
        self.changed.notify_all();
        while matches!(state.stage, Stage::Begun | Stage::Paused) && state.broken.is_none() {
            state = self.wait(state);
        }
        state.here = false;
        state.early = false;
        state.broken.clone().map_or(Ok(()), Err)
    }

    /// The program: what has become of the last epoch that it stood still for, if nobody has asked yet; waits
    /// for that.
    ///
    /// # Errors
    /// Nothing can be done here any more.
    pub(super) fn outcome(&self) -> Result<Option<Outcome>> {
        let mut state = self.lock();
        while state.stage == Stage::Sealing && state.broken.is_none() {
            state = self.wait(state);
        }
        Self::take(&mut state)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// As [`Self::outcome`].
    pub(super) fn outcome_now(&self) -> Result<Option<Outcome>> {
        Self::take(&mut self.lock())
    }

    fn take(state: &mut State) -> Result<Option<Outcome>> {
        match &state.broken {
            Some(error) => Err(error.clone()),
            None if state.early => Ok(None),
            None => Ok(state.outcome.take()),
        }
    }

    /// The program: it wants no more.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// The writer: waits for an epoch to begin. No more do where it answers false.
    pub(super) fn begun(&self) -> bool {
        let mut state = self.lock();
        while state.stage != Stage::Begun && !state.over {
            state = self.wait(state);
        }
        !state.over
    }

    /// The writer: waits until the program stands still.
    pub(super) fn pause(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let mut state = self.lock();
        while !state.here {
            if state.over {
                return Err(Error::new(libc::ECANCELED, "the program ends its snapshots"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let text = format!("it did not call checkpoint for {} s", patience.as_secs_f64());
                return Err(Error::new(libc::ETIMEDOUT, text));
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        state.stage = Stage::Paused;
        Ok(())
    }

    /// The writer: the program may go on.
    pub(super) fn resume(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Paused {
            state.stage = Stage::Sealing;
            self.changed.notify_all();
        }
    }

    /// The writer: the call at which the program would have the next epoch, as far as it has come.
    pub(super) fn wish(&self) -> u64 {
        self.lock().wish
    }

    /// The writer: the epoch has come to its end. One that ended before the program stood still for it is told
    /// when the program comes.
    pub(super) fn finish(&self, outcome: Outcome) {
        let mut state = self.lock();
        state.early = state.stage == Stage::Begun && !state.here;
        (state.stage, state.wish) = (Stage::Idle, 0);
        state.outcome = Some(outcome);
        self.changed.notify_all();
    }

    /// The writer: nothing can be done here any more.
    pub(super) fn fail(&self, error: Error) {
        self.lock().broken = Some(error);
        self.changed.notify_all();
    }
}
