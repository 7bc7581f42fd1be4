//! The threads that keep messages going: two that poll and post, and one that sleeps until events
//! wake it. Any of them may post to a queue pair while another polls its completion queue.

use crate::report::Failure;
use crate::setup::Rank;
use sojourn::abi::Wc;
use sojourn::verbs::CompletionQueue;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// Threads that poll.
pub(crate) const POLLERS: usize = 2;

/// Completions taken at a time.
const BATCH: usize = 16;

/// Rounds without anything to do before a thread sleeps instead of yielding.
const IDLE_ROUNDS: u32 = 64;

/// How long it then sleeps: the peers may need the core.
const NAP: Duration = Duration::from_micros(100);

/// The longest sleep of the thread that events wake.
const EVENT_PATIENCE: Duration = Duration::from_millis(20);

/// What the threads share.
pub(crate) struct Engine {
    pub(crate) rank: Rank,
    /// Streams may end where they are long enough.
    pub(crate) may_end: AtomicBool,
    /// The threads end.
    pub(crate) over: AtomicBool,
    failure: OnceLock<Failure>,
}

impl Engine {
    pub(crate) fn new(rank: Rank) -> Self {
        let (may_end, over) = (AtomicBool::new(false), AtomicBool::new(false));
        Engine { rank, may_end, over, failure: OnceLock::new() }
    }

    /// The first thing that went wrong.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Ends everything for a reason. The first one counts.
    pub(crate) fn fail(&self, why: impl Into<Failure>) {
        let _ = self.failure.set(why.into());
        self.over.store(true, Ordering::Relaxed);
    }

    /// All streams of this rank have ended.
    pub(crate) fn done(&self) -> bool {
        self.rank.links.iter().all(|link| lock(link).done())
    }

    /// What a poller does.
    pub(crate) fn poll(&self) {
        let mut idle = 0;
        while !self.over.load(Ordering::Relaxed) {
            let busy = self.round().unwrap_or_else(|why| {
                self.fail(why);
                false
            });
            idle = if busy { 0 } else { idle + 1 };
            if idle > IDLE_ROUNDS {
                std::thread::sleep(NAP);
            } else if idle > 0 {
                std::thread::yield_now();
            }
        }
    }

    fn round(&self) -> Result<bool, Failure> {
        let mut busy = false;
        for cq in &self.rank.polled {
            // Another poller has it otherwise.
            if let Some(cq) = try_lock(cq) {
                busy |= self.drain(&cq)? > 0;
            }
        }
        let (now, may_end) = (Instant::now(), self.may_end.load(Ordering::Relaxed));
        for link in &self.rank.links {
            if let Some(mut link) = try_lock(link) {
                busy |= link.pump(now, may_end)?;
            }
        }
        Ok(busy)
    }

    /// Deals with some completions of a queue, whose lock the caller holds.
    fn drain(&self, cq: &CompletionQueue) -> Result<usize, Failure> {
        let mut wcs = [Wc::default(); BATCH];
        let n = cq.poll(&mut wcs)?;
        let now = Instant::now();
        for wc in &wcs[..n] {
            let link = self.rank.by_qpn.get(&wc.qp_num);
            let link = link.ok_or_else(|| {
                format!("a completion: expected the qp_num of a queue pair of ours, found {wc:?}")
            })?;
            lock(&self.rank.links[*link]).complete(wc, now)?;
        }
        Ok(n)
    }

    /// What the thread does that events wake.
    pub(crate) fn sleep_and_wake(&self) {
        if let Err(why) = self.serve_events() {
            self.fail(why);
        }
    }

    fn serve_events(&self) -> Result<(), Failure> {
        let Some(events) = &self.rank.events else { return Ok(()) };
        let text = |error: sojourn::Error| error.context("completion events");
        for cq in &events.queues {
            cq.req_notify(false).map_err(text)?;
            // What came before it was armed has no event.
            while self.drain(cq)? > 0 {}
        }
        while !self.over.load(Ordering::Relaxed) {
            let woken = events.channel.wait(Instant::now() + EVENT_PATIENCE).map_err(text)?;
            let Some(user) = woken else { continue };
            let cq = events.queues.get(user as usize);
            let cq = cq.ok_or_else(|| format!("an event of completion queue {user}, unknown"))?;
            // What came before the queue was armed again has no event of its own.
            while self.drain(cq)? > 0 {}
            cq.req_notify(false).map_err(text)?;
            while self.drain(cq)? > 0 {}
        }
        Ok(())
    }

    /// What each queue pair that has not ended waits for, where one has waited too long.
    pub(crate) fn stalled(&self, patience: Duration) -> Option<String> {
        let links = self.rank.links.iter();
        let stuck = links.clone().any(|link| match try_lock(link) {
            Some(link) => !link.done() && link.progress().elapsed() > patience,
            None => false,
        });
        stuck.then(|| {
            let waits = links.map(|link| match try_lock(link) {
                Some(link) if link.done() => String::new(),
                Some(link) => format!("\n  {}", link.waits()),
                None => "\n  a queue pair that is in use at this moment".to_owned(),
            });
            format!("no progress for {patience:?}{}", waits.collect::<String>())
        })
    }
}

/// Locks; what a thread that panicked has left is as good as any other.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
