//! What happens to a rank in mid-run: it goes over to other devices, or its device fails under it. On a
//! thread beside the one that computes, which notices nothing.

use sojourn::verbs::{Context, Relocation};
use sojourn::{Error, Result, device};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

/// A look at the step that was told last, where nobody says that there is another.
const LOOK: Duration = Duration::from_millis(10);

/// What happens at a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// The rank goes to this device.
    Go(String),
    /// The port of this (soft) device fails.
    Fail(String),
}

/// The moves of one rank.
pub(crate) struct Travel {
    told: Arc<Told>,
    thread: JoinHandle<Result<Vec<Relocation>>>,
}

#[derive(Default)]
struct Told {
    step: AtomicU64,
    over: AtomicBool,
}

/// The steps at which rank `rank` of `size` goes to each of `devices`, of `steps` in all: so that one
/// rank moves after the other, all through the run.
pub(crate) fn plan(devices: &[String], rank: u32, size: u32, steps: u64) -> Vec<(u64, Deed)> {
    let (rank, size) = (u64::from(rank), u64::from(size));
    let turns = devices.len() as u64 * size + 1;
    let at = |turn: usize| steps * (turn as u64 * size + rank + 1) / turns;
    devices.iter().enumerate().map(|(turn, device)| (at(turn), Deed::Go(device.clone()))).collect()
}

impl Travel {
    /// Does to `context` what is planned, once its step has been told.
    pub(crate) fn start(context: Context, plan: Vec<(u64, Deed)>) -> Result<Self> {
        let told = Arc::new(Told::default());
        let listen = Arc::clone(&told);
        let thread = thread::Builder::new()
            .name("travel".to_owned())
            .spawn(move || {
                for (step, deed) in plan {
                    while listen.step.load(Ordering::Acquire) < step {
                        if listen.over.load(Ordering::Acquire) {
                            return context.relocations();
                        }
                        thread::park_timeout(LOOK);
                    }
                    match deed {
                        Deed::Go(device) => drop(context.relocate(&device)?),
                        Deed::Fail(device) => device::soft::set_port(&device, false)?,
                    }
                }
                // It may move by itself until then.
                while !listen.over.load(Ordering::Acquire) {
                    thread::park_timeout(LOOK);
                }
                context.relocations()
            })
            .map_err(|error| Error::os(&error, "starting a thread"))?;
        Ok(Travel { told, thread })
    }

    fn waker(&self) -> &Thread {
        self.thread.thread()
    }

    /// The computation has come to that step.
    pub(crate) fn tell(&self, step: u64) {
        self.told.step.store(step, Ordering::Release);
        self.waker().unpark();
    }

    /// The computation is over: the moves that were made.
    ///
    /// # Errors
    /// That of the move that failed.
    pub(crate) fn finish(self) -> Result<Vec<Relocation>> {
        self.told.over.store(true, Ordering::Release);
        self.waker().unpark();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_move_one_after_the_other_all_through_the_run() {
        let devices = ["soft1".to_owned(), "soft0".to_owned()];
        let mut all: Vec<_> =
            (0..3).flat_map(|rank| plan(&devices, rank, 3, 700).into_iter()).collect();
        all.sort_unstable();
        let steps: Vec<_> = all.iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [100, 200, 300, 400, 500, 600]);
        assert!(all[..3].iter().all(|(_, deed)| *deed == Deed::Go("soft1".to_owned())));
    }
}
