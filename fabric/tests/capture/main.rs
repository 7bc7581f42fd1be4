//! A context is written down, and made anew from that: the program that it belongs to does not notice.

mod events;
mod program;

use program::{BYTES, Chance, LONG, Program, Rig, map_at};
use serde::{Deserialize, Serialize};
use sojourn_fabric::device::DeviceContext;
use sojourn_fabric::device::soft::{Mode, Options, Pace, open_with};
use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{Endpoint as Place, JobKey, PrivateDir};
use sojourn_fabric::virt::{Policy, Process, captured_regions};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PART: &str = "CAPTURE_TEST_PART";
/// Steps of a program.
const STEPS: usize = 150;

fn device(mode: u64, seed: u64) -> Arc<dyn DeviceContext> {
    let pace = Pace { seed, latency: Duration::from_micros(20), gbps: 1.0 };
    let mode = if mode == 0 { Mode::Sync } else { Mode::Async(pace) };
    open_with("soft0", Options { mode, ..Options::default() }).unwrap()
}

/// What a program leaves when it is captured.
#[derive(Serialize, Deserialize)]
struct Left {
    seed: u64,
    /// The next step.
    at: usize,
    bytes: Vec<u8>,
    memory: Vec<u8>,
    names: Vec<u64>,
    /// Completions that it had by then.
    done: Vec<program::Done>,
}

/// What a run ends with.
#[derive(Serialize, Deserialize)]
struct End {
    done: Vec<program::Done>,
    memory: Vec<u8>,
}

/// Captures a program between two steps.
fn capture(rig: &Rig, program: &Program, seed: u64, at: usize) -> Left {
    let deadline = Instant::now() + LONG;
    let held = rig.context.suspend(deadline).unwrap();
    let (bytes, memory) = (held.capture(deadline).unwrap(), rig.bytes());
    held.end().unwrap();
    Left { seed, at, bytes, memory, names: rig.names(), done: program.done.clone() }
}

/// Runs a program, captures it before a step, and goes on as if nothing had happened.
fn run(process: &Process, seed: u64, at: usize, mode: u64) -> (Left, End) {
    let rig = Rig::new(process.open_over(device(mode, seed)).unwrap());
    let mut program = Program::new(seed);
    (0..at).for_each(|_| program.step(Some(&rig)));
    let left = capture(&rig, &program, seed, at);
    (at..STEPS).for_each(|_| program.step(Some(&rig)));
    program.finish(&rig);
    (left, End { done: program.sorted(), memory: rig.bytes() })
}

/// Maps the memory of what was captured where it was, and fills it.
fn map_all(bytes: &[u8], memory: &[Vec<u8>]) {
    let regions = captured_regions(bytes).unwrap();
    assert_eq!(regions.len(), memory.len());
    for (region, content) in regions.iter().zip(memory) {
        let length = region.length as usize;
        assert_eq!(length, content.len());
        let at = map_at(Some(region.addr), length).as_ptr();
        // SAFETY: mapped just now, with that length, and nobody else's.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), at, length) };
    }
}

/// Restores what was captured.
fn restore(process: &Process, left: Left, mode: u64) -> (Rig, Program) {
    map_all(&left.bytes, std::slice::from_ref(&left.memory));
    let device = device(mode, left.seed ^ 1);
    let policy = Policy::from_env().unwrap();
    // SAFETY: the memory was mapped just now, for this alone, and the region is its owner from here on.
    let rig = Rig::again(unsafe { process.restore(device, policy, &left.bytes) }.unwrap());
    assert_eq!(rig.names(), left.names, "names are what they were");
    let mut program = Program::new(left.seed);
    (0..left.at).for_each(|_| program.step(None));
    program.done = left.done;
    (rig, program)
}

/// Restores what was captured, and goes on to the end.
fn go_on(process: &Process, left: Left, mode: u64) -> End {
    let at = left.at;
    let (rig, mut program) = restore(process, left, mode);
    (at..STEPS).for_each(|_| program.step(Some(&rig)));
    program.finish(&rig);
    End { done: program.sorted(), memory: rig.bytes() }
}

fn compare(undisturbed: &End, restored: &End, what: &str) {
    for (one, other) in undisturbed.done.iter().zip(&restored.done) {
        assert_eq!(one, other, "{what}: a completion");
    }
    assert_eq!(undisturbed.done.len(), restored.done.len(), "{what}: completions");
    let differs = (0..BYTES).find(|at| undisturbed.memory[*at] != restored.memory[*at]);
    assert_eq!(differs, None, "{what}: memory at {:#x}", differs.unwrap_or(0));
}

/// Promise: memory and windows, restored over another device, then replayed, give the same completions, in
/// the same order, and the same memory as if nothing had happened: whatever was posted, in flight, unread
/// or without a receive at that moment.
#[test]
fn a_program_goes_on_over_another_device_as_if_nothing_had_happened() {
    let seeds = std::env::var("CAPTURE_SEEDS").map_or(40, |it| it.parse().unwrap());
    let first = std::env::var("CAPTURE_SEED").map_or(0, |it| it.parse().unwrap());
    for seed in first..first + seeds {
        let mut chance = Chance(seed);
        let (at, mode, next) =
            (chance.below(STEPS as u64) as usize, chance.below(2), chance.below(2));
        let what = format!("seed {seed}, captured before step {at}, modes {mode} and {next}");
        println!("{what}");
        let process = Process::standalone().unwrap();
        let (left, undisturbed) = run(&process, seed, at, mode);
        let restored = go_on(&process, left, next);
        compare(&undisturbed, &restored, &what);
    }
}

/// Promise: what was restored is as good as what was captured: it can be captured again, at once or later,
/// and moved.
#[test]
fn what_was_restored_is_captured_and_moved_again() {
    for seed in 9000..9015 {
        let mut chance = Chance(seed);
        let at = chance.below(STEPS as u64) as usize;
        let again = at + chance.below((STEPS - at) as u64) as usize;
        let what = format!("seed {seed}, captured before steps {at} and {again}");
        println!("{what}");
        let process = Process::standalone().unwrap();
        let (left, undisturbed) = run(&process, seed, at, chance.below(2));
        let left = {
            let (rig, mut program) = restore(&process, left, chance.below(2));
            let left = capture(&rig, &program, seed, at);
            drop(rig);
            let (rig, _) = restore(&process, left, 0);
            rig.context.relocate("soft0").unwrap();
            (at..again).for_each(|_| program.step(Some(&rig)));
            capture(&rig, &program, seed, again)
        };
        compare(&undisturbed, &go_on(&process, left, 1), &what);
    }
}

/// A child process that is killed and reaped when the test is over, however it ends.
struct Part(Child);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn part() {
    let Ok(files) = std::env::var(PART) else {
        println!("skipped: {PART} is not set, so no test has started this");
        return;
    };
    let told = JobEnvironment::read().unwrap().expect("started by a test");
    let process = Process::join(&told).unwrap();
    assert!(process.grant().incarnation.0 > 1, "a later life of the process");
    let left: Left =
        postcard::from_bytes(&std::fs::read(format!("{files}.left")).unwrap()).unwrap();
    let mode = left.seed % 2;
    let end = go_on(&process, left, mode);
    std::fs::write(format!("{files}.end"), postcard::to_stdvec(&end).unwrap()).unwrap();
}

/// Promise: the same in another operating system process, which takes the place of the first in its job.
#[test]
fn a_program_goes_on_in_another_process_as_if_nothing_had_happened() {
    let dir = PrivateDir::create().unwrap();
    let key = JobKey::generate().unwrap();
    let key_file = dir.path().join("key");
    key.write(&key_file).unwrap();
    let directory = Place::Unix(dir.path().join("directory"));
    let _server = DirectoryServer::start(ServerConfig::new(directory.clone(), key, 0)).unwrap();
    let told = JobEnvironment { rank: 0, size: 1, directory, key_file, device: None };
    for seed in 5000..5006 {
        let mut chance = Chance(seed);
        let at = chance.below(STEPS as u64) as usize;
        let (left, undisturbed) = {
            let process = Process::join(&told).unwrap();
            run(&process, seed, at, chance.below(2))
        };
        let files = dir.path().join(format!("{seed}"));
        std::fs::write(files.with_extension("left"), postcard::to_stdvec(&left).unwrap()).unwrap();
        let variables = told.variables();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["part", "--exact", "--ignored", "--nocapture"])
            .env(PART, &files)
            .envs(variables.into_iter().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut part = Part(child);
        let deadline = Instant::now() + LONG;
        let status = loop {
            if let Some(status) = part.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the other process does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        assert!(status.success(), "the other process: {status}");
        let end = std::fs::read(files.with_extension("end")).unwrap();
        let what = format!("seed {seed}, captured before step {at}");
        compare(&undisturbed, &postcard::from_bytes(&end).unwrap(), &what);
    }
}
