//! A share of parity that this store makes: the thread on which it does, and what has become of it.
//!
//! The store's own thread answers others meanwhile: stores of one group read from each other.

use crate::epoch::{Epoch, Incarnation, Slot};
use crate::memory::Mapping;
use crate::parity::{Made, Maker, Task};
use crate::{Error, Result};
use sojourn_fabric::names::JobKey;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Which epoch, for whom.
type Wanted = (Incarnation, Epoch);

/// The share that a compartment is of.
pub(super) struct Making {
    /// `None` while it works, and where it was lost.
    idle: Option<Maker>,
    running: Option<Running>,
    /// What was made last, or why it was not, until that is told.
    last: Option<(Wanted, Result<Made>)>,
}

struct Running {
    wanted: Wanted,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Maker, Result<Made>)>,
}

impl Making {
    pub(super) fn new() -> Making {
        Making { idle: None, running: None, last: None }
    }

    /// What has become of the share of an epoch, which is begun where it was not; `None` while it is made, or while
    /// an older one has not ended yet.
    pub(super) fn ask(
        &mut self,
        wanted: Wanted,
        slot: Slot,
        task: &Task,
        memory: &Arc<Mapping>,
        (device, key): (&str, &JobKey),
    ) -> Option<Result<Made>> {
        if self.running.as_ref().is_some_and(|running| running.wanted != wanted) {
            self.stop();
        }
        if !self.is_idle() {
            return None;
        }
        match &self.last {
            Some((of, Ok(made))) if *of == wanted => return Some(Ok(*made)),
            // It can be tried again.
            Some((of, Err(_))) if *of == wanted => return self.last.take().map(|(_, it)| it),
            _ => self.last = None,
        }
        let maker = self.idle.take().filter(|maker| maker.is_of(task));
        let maker =
            match maker.map_or_else(|| Maker::new(device, key, task, Arc::clone(memory)), Ok) {
                Ok(maker) => maker,
                Err(error) => return Some(Err(error)),
            };
        match Running::start(maker, wanted, slot, task.clone()) {
            Ok(running) => self.running = Some(running),
            Err(error) => return Some(Err(error)),
        }
        None
    }

    /// Bids the thread to end. Returns at once.
    pub(super) fn stop(&self) {
        if let Some(running) = &self.running {
            running.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Whether nothing is being made: nothing more is written.
    pub(super) fn is_idle(&mut self) -> bool {
        if self.running.as_ref().is_some_and(|running| !running.thread.is_finished()) {
            return false;
        }
        let Some(running) = self.running.take() else { return true };
        let outcome = match running.thread.join() {
            Ok((maker, outcome)) => {
                self.idle = Some(maker);
                outcome
            }
            Err(_) => Err(Error::new(libc::EIO, "the thread that makes parity has failed")),
        };
        self.last = Some((running.wanted, outcome));
        true
    }
}

impl Running {
    fn start(mut maker: Maker, wanted: Wanted, slot: Slot, task: Task) -> Result<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let work = move || {
            let outcome = maker.make(&task, wanted.1, slot, &seen);
            (maker, outcome)
        };
        let thread = std::thread::Builder::new().name("sj-parity".to_owned()).spawn(work);
        let thread = thread.map_err(|error| Error::os(&error, "a thread to make parity"))?;
        Ok(Running { wanted, stop, thread })
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // The thread keeps the memory as long as it needs it.
        self.stop();
    }
}
