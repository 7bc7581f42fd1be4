//! Runs by seed: worlds of chance, with faults of chance.

use super::broken::Broken;
use super::command::{Options, Outcome, Simulator};
use super::device::{Quirks, Source};
use super::kinds::{Kind, Kinds};
use super::queue::{Event, Time};
use super::rng::Rng;
use super::script::mixed;
use super::world::{FOLLOWER, Faults, LinkPlan, MOVER, World};
use crate::remap::{FollowerLimits, MoverLimits};
use std::time::Duration;

/// After the last fault everything must have come to its end within this time. The longest wait is
/// that of a follower, begun by the last word of a mover whose deadlines have all passed; beyond are
/// retries, and the pace of programs.
const BOUND: Time = 300_000;
/// Worlds whose devices give back receives as filled that are not, of a thousand. (None of those that
/// do was seen to execute a packet after ERR.)
const LIARS: u32 = 120;
/// Worlds in which receives are shared, of a thousand that can; and what makes their chance their own.
const SHARED: u32 = 400;
const SHARING: u64 = 0x5352_5100_0000_0000;
/// Worlds in which processes want to stand still, of a thousand; and what makes their chance their own.
const HOLDS: u32 = 350;
const HOLDING: u64 = 0x484f_4c44_0000_0000;
/// Most events of a run. (The longest that was seen had a tenth.)
const MAX_EVENTS: u64 = 2_000_000;

/// The simulator of re-maps.
pub enum Remaps {}

impl Simulator for Remaps {
    const NAME: &'static str = "simulate";
    const SEEDS: u64 = 10_000;
    // The rarest comes once in some hundred.
    const ENOUGH: u64 = 2_000;
    type Kind = Kind;
    const KINDS: &'static [Kind] = Kind::ALL;
    type Reached = Kinds;
    type Broken = Broken;
    const BROKEN: &'static [Broken] = Broken::ALL;

    fn has(reached: &Kinds, kind: Kind) -> bool {
        reached.has(kind)
    }

    fn run(seed: u64, options: Options<Broken>) -> Outcome<Kinds> {
        run(seed, options)
    }
}

/// Runs the world of a seed until all has come to its end, a promise is broken, or time is up.
#[must_use]
pub fn run(seed: u64, options: Options<Broken>) -> Outcome<Kinds> {
    let mut world = world_of(seed);
    world.broken = options.broken;
    if matches!(options.broken, Some(Broken::AlwaysFinished | Broken::CutHandedAfterAll)) {
        // It takes one to show.
        impatient(&mut world);
    }
    world.trace = options.trace.then(Vec::new);
    let mut events = 0;
    let deadline = world.horizon + BOUND;
    loop {
        let went_on = world.step();
        events += 1;
        if world.violation.is_some() {
            break;
        }
        // Looking costs more than a step does.
        let look = events % 32 == 0 || !went_on;
        let unfinished = if look { world.unfinished() } else { None };
        if look && unfinished.is_none() && no_move_is_due(&world) {
            let accounted = world.account_for_shared();
            world.check(accounted);
            break;
        }
        if !went_on || world.now > deadline || events >= MAX_EVENTS {
            let what = unfinished.or_else(|| world.unfinished()).unwrap_or_default();
            for e in 0..world.ends.len() {
                let qp = world.ends[e].qp;
                let line = format!("end {e} is on queue pair {qp}: {:?}", world.qps[qp]);
                world.note(|| line);
            }
            world.violate(format!("liveness: nothing goes wrong any more, and yet: {what}"));
            break;
        }
    }
    let World { reached, violation, trace, .. } = world;
    Outcome { seed, events, reached, violation, trace: trace.unwrap_or_default() }
}

/// All moves that are to come have come: those of idle programs are worth a look as well.
fn no_move_is_due(world: &World) -> bool {
    let is_due =
        |p| [Event::Move(p), Event::Anew(p), Event::Hold(p)].iter().any(|it| world.queue.has(it));
    !(0..world.procs.len()).any(is_due)
}

fn world_of(seed: u64) -> World {
    let mut rng = Rng::new(seed);
    let three = rng.permille(300);
    let processes = if three { 3 } else { 2 };
    let mut pairs = vec![[0, 1]];
    if three {
        pairs.push([1, 2]);
    }
    if rng.permille(400) {
        pairs.push(if three { [0, 2] } else { [0, 1] });
    }
    let link = |processes: [usize; 2]| {
        let depths = [0; 2].map(|_| rng.pick(&[2, 3, 4, 8, 16]));
        let scripts = depths.map(|depth| mixed(&mut rng, depth));
        LinkPlan { processes, scripts, depths }
    };
    let links = pairs.into_iter().map(link).collect();
    let mut world = World::new(processes, links, rng);
    chance(&mut world);
    let habits = &mut world.quirks;
    // By a chance of its own, so that other worlds are what they were.
    if !habits.exact && Rng::new(!seed).permille(LIARS) {
        (habits.lies, habits.edge, habits.source) = (true, false, Source::Psn);
    }
    share(&mut world, seed);
    world.connect_all();
    hold(&mut world, seed);
    world
}

/// In some worlds processes want to stand still for a moment, several times. By a chance of its own, too.
fn hold(world: &mut World, seed: u64) {
    let mut rng = Rng::new(seed ^ HOLDING);
    if !rng.permille(HOLDS) {
        return;
    }
    for p in 0..world.procs.len() {
        for _ in 0..rng.pick(&[0, 1, 2, 4]) {
            let at = rng.between(0, 100 + 25 * world.pace);
            world.queue.push(at, Event::Hold(p));
        }
    }
}

/// In some worlds all ends of one process that has several share their receives. By a chance of its own,
/// too. (Devices that lie were seen to do so of receives that are not shared.)
fn share(world: &mut World, seed: u64) {
    let mut rng = Rng::new(seed ^ SHARING);
    if world.quirks.lies || !rng.permille(SHARED) {
        return;
    }
    let ends_of =
        |world: &World, p| world.ends.iter().filter(|end| end.process == p).count() as u32;
    let able: Vec<usize> = (0..world.procs.len()).filter(|p| ends_of(world, *p) > 1).collect();
    if able.is_empty() {
        return;
    }
    let p = rng.pick(&able);
    if rng.permille(700) {
        // So that there are SENDs to cut, which wait for packets that were lost.
        world.quirks.loss = rng.pick(&[0, 80, 200]);
        world.mover_limits.drain = Duration::from_micros(rng.pick(&[0, 5, 20, 60]));
        for e in 0..world.ends.len() {
            if world.ends[e ^ 1].process == p {
                world.send_more(e, &mut rng);
            }
        }
    }
    // A queue pair that fails may take one with it, for good.
    let depth = ends_of(world, p) + rng.pick(&[1, 2, 3, 8, 16]);
    (world.quirks.vanishes, world.quirks.tells_last) = (rng.permille(600), rng.permille(600));
    world.share_receives(p, depth);
}

/// Faults, paces, and when processes move and die.
fn chance(world: &mut World) {
    let rng = &mut world.rng;
    let exact = rng.permille(300);
    let sometimes = |rng: &mut Rng, often: u32, values: &[u32]| {
        if rng.permille(often) { rng.pick(values) } else { 0 }
    };
    world.quirks = Quirks {
        exact,
        edge: rng.permille(700),
        source: match rng.below(100) {
            0..12 => Source::Counts,
            12..35 => Source::Record,
            _ => Source::Psn,
        },
        no_flush: sometimes(rng, 60, &[100, 500, 1000]),
        loss: sometimes(rng, 200, &[5, 30, 80]),
        ..Quirks::default()
    };
    world.wraps = rng.permille(300);
    world.pace = rng.pick(&[5, 15, 40, 100]);
    world.missing_names = sometimes(rng, 150, &[30, 200]);
    let faulty = rng.permille(600);
    let long = rng.permille(250);
    world.horizon = if long { 60_000 } else { 4_000 };
    if faulty {
        world.faults = Faults {
            letter_lost: sometimes(rng, 500, &[20, 150, 500]),
            letter_late: sometimes(rng, 500, &[50, 300]),
            letter_overtakes: 0,
            latest: rng.pick(&[600, 3_000, 15_000]),
            refused: sometimes(rng, 150, &[200, 700]),
        };
        if rng.permille(100) {
            world.faults.letter_overtakes = 100;
        }
    }
    (world.mover_limits, world.follower_limits) = (MOVER, FOLLOWER);
    if rng.permille(400) {
        hurry(&mut world.mover_limits, &mut world.follower_limits);
    }
    if rng.permille(60) {
        impatient(world);
    }
    let rng = &mut world.rng;
    if rng.permille(600) {
        // So that much is under way at the commit point.
        world.mover_limits.drain = Duration::from_micros(rng.pick(&[0, 5, 20, 60]));
    }
    // Some programs take their time, so that moves meet what earlier ones have left.
    let slow = long && world.rng.permille(500);
    if slow {
        world.pace = 4_000;
    }
    let busy = 100 + 25 * world.pace;
    for e in 0..world.ends.len() {
        // Without a receive to spare there may be no barrier.
        world.ends[e].recvs_wanted += world.rng.below(3);
        let at = world.rng.between(0, 30);
        world.queue.push(at, Event::Program(e));
    }
    for p in 0..world.procs.len() {
        let more = if slow { 5 } else { 0 };
        for _ in 0..more + world.rng.pick(&[0, 1, 1, 1, 2, 3]) {
            let at = world.rng.between(0, busy);
            world.queue.push(at, Event::Move(p));
        }
    }
    if faulty && world.rng.permille(120) {
        let p = world.rng.below(world.procs.len() as u64) as usize;
        let at = world.rng.between(0, busy + 400);
        world.queue.push(at, Event::Death(p));
    }
    if faulty && world.rng.permille(150) {
        let p = world.rng.below(world.procs.len() as u64) as usize;
        let at = world.rng.between(0, busy + 200);
        world.queue.push(at, Event::DeviceDeath(p));
    }
}

/// Followers that give up while their movers are only late.
fn impatient(world: &mut World) {
    world.impatient = true;
    (world.faults.letter_late, world.faults.latest) = (300, 600);
    let patience = Duration::from_micros(world.rng.pick(&[200, 600, 2000]));
    world.follower_limits.patience = patience;
}

/// Shorter deadlines, so that groups which somebody has forgotten are met by later moves.
fn hurry(mover: &mut MoverLimits, follower: &mut FollowerLimits) {
    let waits = [
        &mut mover.prepare,
        &mut mover.quiesce,
        &mut mover.switch,
        &mut mover.abort,
        &mut mover.again,
        &mut follower.patience,
    ];
    for wait in waits {
        *wait /= 10;
    }
}
