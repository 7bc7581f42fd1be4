//! The asynchronous mode: an engine that executes what is posted packet by packet, at a pace.
//!
//! In the synchronous mode work is done when `post_send` returns, so nothing is ever in flight.
//! Here a request waits for the latency, then goes out in packets of the path MTU as the rate
//! allows, queue pairs taking turns in a seeded random order, and completes a latency after its
//! last packet. What is between is in flight as on a wire: ERR cuts a message in the middle, with
//! the responder's PSN telling how far it came, and a request that was executed but not yet
//! completed is flushed.
//!
//! Same executor, other chunk: `Qp::turn` is all that the engine knows of a queue pair.

use super::core::Core;
use super::options::Pace;
use super::qp::{Qp, Turn};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The queue pairs that have been given work since the engine last looked.
#[derive(Default)]
pub(super) struct Work {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    fresh: Vec<Arc<Qp>>,
    stop: bool,
}

impl Work {
    /// Tells the engine of a queue pair that may have something to do.
    pub(super) fn add(&self, qp: Arc<Qp>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.fresh.iter().any(|other| Arc::ptr_eq(other, &qp)) {
            inner.fresh.push(qp);
        }
        self.changed.notify_one();
    }

    /// Forgets a queue pair that is destroyed.
    pub(super) fn remove(&self, qp: &Arc<Qp>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.fresh.retain(|other| !Arc::ptr_eq(other, qp));
    }

    pub(super) fn stop(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.changed.notify_one();
    }

    /// Waits until `until` (for ever where there is none) or until something was added; adds that
    /// to `active`. `false`: the engine is to stop.
    fn wait(&self, active: &mut Vec<Arc<Qp>>, until: Option<Instant>) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if inner.stop {
                return false;
            }
            let now = Instant::now();
            if !inner.fresh.is_empty() || until.is_some_and(|at| at <= now) {
                break;
            }
            inner = match until {
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    self.changed
                        .wait_timeout(inner, at - now)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
        for qp in inner.fresh.drain(..) {
            if !active.iter().any(|other| Arc::ptr_eq(other, &qp)) {
                active.push(qp);
            }
        }
        true
    }
}

/// Packets go out in bursts no longer than this: a thread cannot sleep for one of them.
const BURST: Duration = Duration::from_micros(60);

/// Starts the engine of `core`.
pub(super) fn start(core: Arc<Core>, pace: Pace) -> crate::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("{}-engine", core.name))
        .spawn(move || {
            super::service::block_signals();
            run(&core, &pace);
        })
        .map_err(|error| crate::Error::os(&error, "starting the soft device's engine"))
}

fn run(core: &Arc<Core>, pace: &Pace) {
    let mut random = Random::new(pace.seed);
    // One number for each packet, however often the engine looks before it can send.
    let mut turn = random.next();
    let mut active: Vec<Arc<Qp>> = Vec::new();
    // When the wire is free again.
    let mut free = Instant::now();
    let mut until: Option<Instant> = None;
    while core.work.wait(&mut active, until) {
        let now = Instant::now();
        if free > now + BURST {
            until = Some(free);
            continue;
        }
        until = None;
        // From a random one on, the first that can do something does it.
        let start = (turn % active.len().max(1) as u64) as usize;
        let mut i = 0;
        while i < active.len() {
            let at = (start + i) % active.len();
            match active[at].turn(pace.latency) {
                Turn::Idle => {
                    active.swap_remove(at);
                    continue;
                }
                Turn::At(time) => until = Some(until.map_or(time, |u: Instant| u.min(time))),
                Turn::Sent(bytes) => {
                    let wire = f64::from(bytes) * 8.0 / pace.gbps;
                    free = free.max(now) + Duration::from_nanos(wire as u64);
                    until = Some(now);
                    turn = random.next();
                    break;
                }
            }
            i += 1;
        }
        core.run_deferred();
    }
}

/// A small generator (splitmix64): the order of turns is a function of the seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::Random;
    use std::collections::HashSet;

    /// A seed gives the same turns each time, another one other turns, and each of several queue
    /// pairs has its turn.
    #[test]
    fn turns_follow_from_the_seed() {
        let turns = |seed| {
            let mut random = Random::new(seed);
            (0..64).map(|_| random.next() % 3).collect::<Vec<_>>()
        };
        let orders: HashSet<_> = (0..64).map(turns).collect();
        assert_eq!(orders.len(), 64);
        for seed in 0..64 {
            assert_eq!(turns(seed), turns(seed));
            assert!((0..3).all(|who| turns(seed).contains(&who)));
        }
    }
}
