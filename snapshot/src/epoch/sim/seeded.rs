//! Runs by seed.

use super::ledger::Ledger;
use super::process::Process;
use super::world::{Happening, World};
use super::{Broken, Kind};
use crate::epoch::Policy;
use sojourn_logging::sim::command::{Options, Outcome, Simulator};
use sojourn_logging::sim::{Rng, Schedule, Time};
use std::collections::BTreeSet;

/// After the last fault an epoch must be committed within this time. The longest wait is for epochs that are given
/// up late, one after the other, until all stores that do not answer are known.
const BOUND: Time = 150_000;
/// Commits of each process that are waited for.
const ENOUGH: u32 = 2;
/// Most events of a run. (The longest that was seen had a tenth.)
const MAX_EVENTS: u64 = 3_000_000;

/// The simulator of epochs.
pub enum Epochs {}

impl Simulator for Epochs {
    const NAME: &'static str = "simulate-epochs";
    const SEEDS: u64 = 5_000;
    const ENOUGH: u64 = 3_000;
    type Kind = Kind;
    const KINDS: &'static [Kind] = Kind::ALL;
    type Reached = BTreeSet<Kind>;
    type Broken = Broken;
    const BROKEN: &'static [Broken] = Broken::ALL;

    fn has(reached: &BTreeSet<Kind>, kind: Kind) -> bool {
        reached.contains(&kind)
    }

    fn run(seed: u64, options: Options<Broken>) -> Outcome<BTreeSet<Kind>> {
        run(seed, options)
    }
}

/// Runs the world of a seed until all has come to its end, a promise is broken, or time is up.
#[must_use]
pub fn run(seed: u64, options: Options<Broken>) -> Outcome<BTreeSet<Kind>> {
    let mut world = world_of(seed, options);
    let mut events = 0;
    let deadline = world.horizon + BOUND;
    loop {
        let went_on = world.step();
        events += 1;
        let all = world.ranks;
        let done = world.ledger.since_calm.values().filter(|many| **many >= ENOUGH).count();
        if world.violation.is_some() || done == all {
            break;
        }
        if !went_on || world.now > deadline || events >= MAX_EVENTS {
            for p in 0..all {
                let line = format!("process {p}: {:?}", world.processes[p].writer);
                world.note(|| line);
            }
            world.violate("liveness: nothing goes wrong any more, and no epoch comes".to_owned());
            break;
        }
    }
    let World { reached, violation, trace, .. } = world;
    Outcome { seed, events, reached, violation, trace: trace.unwrap_or_default() }
}

fn world_of(seed: u64, options: Options<Broken>) -> World {
    let mut rng = Rng::new(seed);
    let processes = rng.pick(&[1, 1, 2, 2, 2, 3, 3, 4, 5]);
    let stores = rng.between(1, 5);
    let copies = rng.between(1, stores.min(3)) as usize;
    let chunks = rng.between(2, 10) as usize;
    let policy = Policy {
        copies,
        minimum: rng.between(1, copies as u64) as usize,
        rounds: rng.between(0, 3) as u32,
        small: rng.between(0, 4) as usize,
        check: rng.permille(300),
        protect: rng.permille(300),
    };
    let horizon = rng.between(10_000, 50_000);
    let faults = rng.between(0, 10);
    let mut world = World {
        now: 0,
        queue: Schedule::default(),
        policy,
        chunks,
        horizon,
        calm: false,
        pace: rng.pick(&[20, 60, 200]),
        every: rng.pick(&[200, 600, 1_500]),
        lost: rng.pick(&[0, 0, 20, 100]),
        twice: rng.pick(&[0, 20, 100]),
        alone: rng.pick(&[0, 500, 900]),
        sudden: rng.pick(&[0, 2, 6]),
        broken: options.broken,
        processes: (0..processes).map(|rank| Process::new(rank, 0, chunks)).collect(),
        ranks: processes,
        stores: Vec::new(),
        connections: Vec::new(),
        rulers: Vec::new(),
        restoring: None,
        recoveries: 0,
        job: 0,
        ledger: Ledger::default(),
        value: 0,
        wake: None,
        reached: BTreeSet::new(),
        violation: None,
        trace: options.trace.then(Vec::new),
        rng,
    };
    (0..stores).for_each(|_| world.new_store());
    world.begin_job();
    (0..processes).for_each(|p| world.queue.push(1, Happening::Program(p)));
    world.queue.push(1, Happening::Start);
    for _ in 0..faults {
        let at = world.rng.between(1, horizon);
        world.queue.push(at, Happening::Fault);
    }
    world.queue.push(horizon, Happening::Calm);
    world
}
