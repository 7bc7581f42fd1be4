//! A process with connections to itself is killed, and goes on in another one from memory and windows that a store
//! has: as if nothing had happened.

#[path = "../../../fabric/tests/capture/program.rs"]
mod program;

use crate::job::{self, Job, told};
use crate::verbs::{Directory, soon};
use program::{BYTES, Chance, Done, Rig, map_at};
use serde::{Deserialize, Serialize};
use sojourn_fabric::device::soft::{Mode, Options, Pace, open_with};
use sojourn_fabric::device::{DeviceContext, open};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::virt::{Policy, Process};
use sojourn_snapshot::host::{Attach, Contexts, Host, Windows};
use sojourn_snapshot::restore::{RecoverOptions, recover};
use sojourn_snapshot::session::{self, Restored, Session};
use sojourn_snapshot::{Area, Layout, track};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps of a program.
const STEPS: usize = 150;
/// Bytes in which it keeps what it knows.
const KEPT: usize = 1 << 16;
/// Areas: the memory that its requests name, and what it knows.
const MEMORY: u32 = 1;
const KNOWN: u32 = 2;

/// What a life does.
#[derive(Serialize, Deserialize)]
struct Plan {
    seed: u64,
    /// Whether its device takes its time.
    paced: bool,
    /// The step before which it takes an epoch, and the one before which it is killed. The last life has
    /// neither.
    until: Option<(usize, usize)>,
    /// Where the last one leaves what it ended with.
    end: PathBuf,
}

/// What a program knows beside its memory.
#[derive(Serialize, Deserialize)]
struct Known {
    /// The next step.
    at: usize,
    /// Completions that it had by then.
    done: Vec<Done>,
    names: Vec<u64>,
}

/// What a run ends with.
#[derive(Serialize, Deserialize, PartialEq)]
struct End {
    done: Vec<Done>,
    memory: Vec<u8>,
}

fn device(paced: bool, seed: u64) -> Arc<dyn DeviceContext> {
    if job::device() != "soft0" {
        return open(&job::device()).unwrap();
    }
    let pace = Pace { seed, latency: Duration::from_micros(20), gbps: 1.0 };
    let mode = if paced { Mode::Async(pace) } else { Mode::Sync };
    open_with("soft0", Options { mode, ..Options::default() }).unwrap()
}

fn tracking() -> Policy {
    Policy { tracking: true, ..Policy::default() }
}

/// A program in the middle of its life.
struct Alive {
    rig: Rig,
    program: program::Program,
    at: usize,
    kept: NonNull<u8>,
    host: Host,
    session: Session,
}

impl Alive {
    fn first(process: &Process, plan: &Plan, options: session::Options) -> Alive {
        let rig = Rig::new(process.open_with(device(plan.paced, plan.seed), tracking()).unwrap());
        let kept = map_at(None, KEPT);
        let program = program::Program::new(plan.seed);
        let layout = Layout::new([
            Area { id: MEMORY, addr: rig.memory.addr() as usize, bytes: BYTES },
            Area { id: KNOWN, addr: kept.as_ptr() as usize, bytes: KEPT },
        ]);
        let layout = layout.unwrap();
        let tracker = tracker(&layout, false);
        Alive::over(rig, program, 0, kept, tracker, options, layout, None)
    }

    /// From what the store has.
    fn again(process: &Process, plan: &Plan, options: session::Options) -> Alive {
        let from = RecoverOptions {
            device: options.device.clone(),
            key: options.key.clone(),
            member: options.member,
            life: options.life,
            stores: options.stores.clone(),
            lanes: options.lanes,
            fresh: true,
            limits: Default::default(),
        };
        // SAFETY: the memory is mapped for this alone, where it was in the life before.
        let recovered = unsafe {
            recover(&from, |slot| {
                for Area { addr, bytes, .. } in slot.layout().areas() {
                    map_at(Some(*addr as u64), *bytes);
                }
                Ok(slot.layout().clone())
            })
        };
        let recovered = recovered.unwrap();
        let layout = recovered.layout;
        let kept = layout.areas().iter().find(|area| area.id == KNOWN).unwrap().addr;
        let kept = NonNull::new(kept as *mut u8).unwrap();
        // SAFETY: mapped and read just now.
        let bytes = unsafe { std::slice::from_raw_parts(kept.as_ptr(), KEPT) };
        let known: Known = postcard::take_from_bytes(bytes).unwrap().0;
        // Before anything is executed that was posted.
        let tracker = tracker(&layout, true);
        let windows = Windows::decode(&recovered.windows).unwrap();
        assert_eq!(windows.contexts(), 1);
        let device = device(plan.paced, plan.seed ^ u64::from(options.life));
        let windows = windows.of(0).unwrap();
        // SAFETY: the memory of its only region was mapped just now, and the region is its owner from here on.
        let rig = Rig::again(unsafe { process.restore(device, tracking(), windows) }.unwrap());
        assert_eq!(rig.names(), known.names, "names are what they were");
        let mut program = program::Program::new(plan.seed);
        (0..known.at).for_each(|_| program.step(None));
        program.done = known.done;
        let restored = Some(recovered.restored);
        Alive::over(rig, program, known.at, kept, tracker, options, layout, restored)
    }

    #[allow(clippy::too_many_arguments, reason = "what it is made of")]
    fn over(
        rig: Rig,
        program: program::Program,
        at: usize,
        kept: NonNull<u8>,
        tracker: Box<dyn track::Tracker>,
        options: session::Options,
        layout: Layout,
        restored: Option<Restored>,
    ) -> Alive {
        let contexts = Contexts::default();
        contexts.attach(&rig.context, Attach::Windows).unwrap();
        let host = Host::new(tracker, &contexts);
        // SAFETY: the memory lives as long as this process.
        let session = unsafe { Session::open(options, layout, restored) }.unwrap();
        Alive { rig, program, at, kept, host, session }
    }

    fn run_to(&mut self, step: usize) {
        (self.at..step).for_each(|_| self.program.step(Some(&self.rig)));
        self.at = step;
    }

    fn checkpoint(&mut self) {
        let known = Known { at: self.at, done: self.program.done.clone(), names: self.rig.names() };
        let bytes = postcard::to_stdvec(&known).unwrap();
        assert!(bytes.len() <= KEPT);
        // SAFETY: mapped with so many bytes, and this thread's alone.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.kept.as_ptr(), bytes.len()) };
        self.session.checkpoint(&mut self.host).unwrap();
    }
}

fn tracker(layout: &Layout, is_read: bool) -> Box<dyn track::Tracker> {
    let mut tracker = track::open(None).unwrap();
    layout.areas().iter().for_each(|area| tracker.add(area.range()).unwrap());
    if is_read {
        // What was read is what the slot has.
        tracker.collect(&mut |_| {}).unwrap();
    }
    tracker
}

fn join(environment: &JobEnvironment) -> Process {
    let deadline = soon();
    loop {
        match Process::join(environment) {
            Ok(process) => return process,
            // Until the one before is known to be dead.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The part of one life.
pub(crate) fn life() {
    let plan: Plan = serde_json::from_str(&std::env::var("EPOCHS_PLAN").unwrap()).unwrap();
    let environment = JobEnvironment::read().unwrap().expect("started by a test");
    let process = join(&environment);
    let options = told();
    let mut alive = match options.life {
        1 => Alive::first(&process, &plan, options),
        _ => Alive::again(&process, &plan, options),
    };
    let Some((epoch, death)) = plan.until else {
        alive.run_to(STEPS);
        alive.program.finish(&alive.rig);
        let end = End { done: alive.program.sorted(), memory: alive.rig.bytes() };
        std::fs::write(plan.end, postcard::to_stdvec(&end).unwrap()).unwrap();
        return;
    };
    alive.run_to(epoch);
    alive.checkpoint();
    println!("epochs: committed before step {epoch}");
    alive.run_to(death);
    // SAFETY: this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// As the same rank of the same job, whose names are in the datagrams that it sends.
fn undisturbed(directory: &Directory, seed: u64) -> End {
    let process = join(&directory.told(0));
    let rig = Rig::new(process.open_over(device(false, seed)).unwrap());
    let mut program = program::Program::new(seed);
    (0..STEPS).for_each(|_| program.step(Some(&rig)));
    program.finish(&rig);
    End { done: program.sorted(), memory: rig.bytes() }
}

/// Promise: memory and windows that are restored from a store, in another process and over another device, go on to
/// the same completions and the same memory as if nothing had happened: and that again and again.
#[test]
fn a_killed_process_goes_on_from_memory_and_windows_in_a_store_as_if_nothing_had_happened() {
    let seeds = std::env::var("LIVES_SEEDS").map_or(6, |it| it.parse().unwrap());
    let first = std::env::var("LIVES_SEED").map_or(0, |it| it.parse().unwrap());
    for seed in first..first + seeds {
        let mut chance = Chance(seed);
        let job = Job::new();
        let directory = Directory::new(&job, 1);
        let store = job.store("a", "16M");
        let end = job.dir.path().join("end");
        let (mut from, mut lives) = (0, Vec::new());
        for _ in 0..2 {
            let epoch = from + chance.below((STEPS - from) as u64) as usize;
            let death = epoch + chance.below((STEPS - epoch) as u64 + 1) as usize;
            lives.push(Some((epoch, death)));
            from = epoch;
        }
        lives.push(None);
        println!("seed {seed}: {lives:?}");
        for (life, until) in (1..).zip(lives) {
            let plan = Plan { seed, paced: chance.below(2) == 0, until, end: end.clone() };
            let mut more = directory.variables(0);
            more.push(("EPOCHS_PLAN", serde_json::to_string(&plan).unwrap()));
            let (well, said) = job.part("life", life, &[&store], &more).ended();
            let expected: Vec<String> =
                until.iter().map(|(epoch, _)| format!("committed before step {epoch}")).collect();
            assert_eq!((well, said), (until.is_none(), expected), "seed {seed}, life {life}");
        }
        let restored: End = postcard::from_bytes(&std::fs::read(&end).unwrap()).unwrap();
        let wanted = undisturbed(&directory, seed);
        for (one, other) in wanted.done.iter().zip(&restored.done) {
            assert_eq!(one, other, "seed {seed}: a completion");
        }
        assert_eq!(wanted.done.len(), restored.done.len(), "seed {seed}: completions");
        let differs = (0..BYTES).find(|at| wanted.memory[*at] != restored.memory[*at]);
        let part = |end: &End, at: usize| end.memory[at / 64 * 64..][..64].to_vec();
        let both = differs.map(|at| (at, part(&wanted, at), part(&restored, at)));
        assert_eq!(both, None, "seed {seed}: memory, as wanted and as restored");
    }
}
