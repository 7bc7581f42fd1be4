//! The program's own handler of `SIGSEGV` beside tracking by protection. Each case is a process of its
//! own: this test program again.

use crate::memory::{HUGE, Made, Memory, told};
use crate::{alone, kinds, tracker};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::track::Kind;
use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

const PART: &str = "TRACKING_TEST_PART";

fn run(part: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["signals::part", "--exact", "--ignored", "--nocapture"])
        .env(PART, part)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap()
}

fn works(part: &str) {
    let status = run(part);
    assert!(status.success(), "{part}: {status}");
}

fn dies(part: &str) {
    assert_eq!(run(part).signal(), Some(libc::SIGSEGV), "{part}");
}

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn part() {
    let Ok(part) = std::env::var(PART) else {
        println!("skipped: {PART} is not set, so no test has started this");
        return;
    };
    match part.as_str() {
        "handler" => handler_before(libc::SA_SIGINFO),
        "plain-handler" => handler_before(0),
        "handler-after" => handler_after(),
        "handler-after-that-hands-on" => handler_after_that_hands_on(),
        "no-handler" => {
            default_action();
            crash_while_tracking();
        }
        "handler-of-the-runtime" => crash_while_tracking(),
        "signal-that-is-sent" => {
            default_action();
            let _tracked = tracked();
            // SAFETY: ends this process, which is here for that.
            unsafe { libc::raise(libc::SIGSEGV) };
        }
        "read-of-forbidden-memory" => {
            let (memory, _tracker) = tracked();
            // SAFETY: takes away memory that the next line reads, to die of it.
            unsafe { libc::mprotect(memory.addr as *mut _, PAGE, libc::PROT_NONE) };
            memory.read(0);
        }
        "many-mappings" => many_mappings(),
        other => panic!("{PART}={other} is no part"),
    }
}

/// Tests that need no protection skip themselves by name.
fn protects() -> bool {
    kinds().contains(&Kind::Protect)
}

#[test]
fn the_programs_own_handler_is_called_for_its_own_faults() {
    let _alone = alone();
    if protects() {
        works("handler");
        works("plain-handler");
    }
}

#[test]
fn a_handler_that_is_installed_later_loses_nothing() {
    let _alone = alone();
    if protects() {
        works("handler-after");
        works("handler-after-that-hands-on");
    }
}

#[test]
fn a_deliberate_crash_still_dies_of_its_signal() {
    let _alone = alone();
    if protects() {
        dies("no-handler");
        dies("handler-of-the-runtime");
        dies("signal-that-is-sent");
        dies("read-of-forbidden-memory");
    }
}

#[test]
fn pages_beyond_the_mappings_that_a_process_may_have_are_told() {
    let _alone = alone();
    if protects() {
        works("many-mappings");
    }
}

fn tracked() -> (Memory, Box<dyn sojourn_snapshot::track::Tracker>) {
    let memory = Memory::new(Made::Private, HUGE).unwrap();
    memory.write(0, HUGE, 1);
    let mut tracker = tracker(Kind::Protect);
    tracker.add(memory.range()).unwrap();
    told(&mut *tracker, &memory);
    memory.write(PAGE, 1, 2);
    assert_eq!(told(&mut *tracker, &memory), [1]);
    (memory, tracker)
}

fn crash_while_tracking() {
    let _tracked = tracked();
    let nowhere = std::hint::black_box(16 as *mut u8);
    // SAFETY: none: this is the deliberate crash.
    unsafe { nowhere.write_volatile(1) };
}

static CALLS: AtomicUsize = AtomicUsize::new(0);
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static FAULT: AtomicUsize = AtomicUsize::new(0);
static FORBIDDEN: AtomicUsize = AtomicUsize::new(0);
static BLOCKED: AtomicI32 = AtomicI32::new(0);
static OTHERS: AtomicUsize = AtomicUsize::new(0);

/// What a program's handler may do: it allows the page that it knows, and goes on.
fn allow(signal: i32) {
    CALLS.fetch_add(1, Ordering::SeqCst);
    SIGNAL.store(signal, Ordering::SeqCst);
    let page = FORBIDDEN.load(Ordering::SeqCst) as *mut libc::c_void;
    // SAFETY: memory of this test; the mask is asked for and not changed.
    unsafe {
        libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        let blocked = |signal| libc::sigismember(&mask, signal) << signal;
        let all = blocked(libc::SIGUSR1) | blocked(libc::SIGUSR2) | blocked(libc::SIGSEGV);
        BLOCKED.store(all, Ordering::SeqCst);
    }
}

extern "C" fn plain(signal: i32) {
    allow(signal);
}

extern "C" fn with_info(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel, or who hands on, gives a valid one.
    FAULT.store(unsafe { (*info).si_addr() } as usize, Ordering::SeqCst);
    allow(signal);
}

fn install(handler: usize, flags: i32) -> libc::sigaction {
    // SAFETY: all-zero actions and sets are valid, and the handlers of this test are safe to run.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaddset(&mut action.sa_mask, libc::SIGUSR1);
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, &mut before), 0);
        before
    }
}

fn default_action() {
    install(libc::SIG_DFL, 0);
}

fn handler_before(flags: i32) {
    let handler = if flags == 0 { plain as *const () } else { with_info as *const () };
    install(handler as usize, flags);
    let (memory, mut tracker) = tracked();
    assert_eq!(CALLS.load(Ordering::SeqCst), 0, "called for a page that is tracked");
    let other = Memory::new(Made::Private, PAGE).unwrap();
    FORBIDDEN.store(other.addr, Ordering::SeqCst);
    for round in 1..3 {
        // SAFETY: memory of this test, which its handler allows again.
        unsafe { libc::mprotect(other.addr as *mut _, PAGE, libc::PROT_NONE) };
        other.write(123, 1, 5);
        assert_eq!((CALLS.load(Ordering::SeqCst), other.read(123)), (round, 5));
        assert_eq!(SIGNAL.load(Ordering::SeqCst), libc::SIGSEGV);
        if flags != 0 {
            assert_eq!(FAULT.load(Ordering::SeqCst), other.addr + 123);
        }
        let blocked = BLOCKED.load(Ordering::SeqCst);
        assert_eq!(blocked, 1 << libc::SIGUSR1 | 1 << libc::SIGSEGV, "its own mask, no other");
    }
    memory.write(7 * PAGE, 1, 3);
    assert_eq!(told(&mut *tracker, &memory), [7]);
    assert_eq!(CALLS.load(Ordering::SeqCst), 2);
}

fn handler_after() {
    let (memory, mut tracker) = tracked();
    let ours = install(with_info as *const () as usize, libc::SA_SIGINFO);
    let all: Vec<usize> = (0..memory.pages()).collect();
    assert_eq!(told(&mut *tracker, &memory), all);
    memory.write(3 * PAGE, 1, 3);
    assert_eq!(told(&mut *tracker, &memory), all);
    assert_eq!(CALLS.load(Ordering::SeqCst), 0, "nothing is protected from them");
    assert!(sojourn_snapshot::track::open(Some(Kind::Protect)).is_err_and(|refused| {
        refused.errno() == libc::EBUSY && refused.to_string().contains("SIGSEGV")
    }));
    // SAFETY: puts back what was there.
    unsafe { libc::sigaction(libc::SIGSEGV, &ours, std::ptr::null_mut()) };
    assert_eq!(told(&mut *tracker, &memory), all);
    memory.write(4 * PAGE, 1, 3);
    assert_eq!(told(&mut *tracker, &memory), [4]);
}

static BEFORE: AtomicUsize = AtomicUsize::new(0);

extern "C" fn hands_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    OTHERS.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the handler that was in place, with SA_SIGINFO.
    unsafe {
        let before: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
            std::mem::transmute(BEFORE.load(Ordering::SeqCst));
        before(signal, info, context);
    }
}

fn handler_after_that_hands_on() {
    let (memory, mut tracker) = tracked();
    BEFORE.store(libc::SIG_DFL, Ordering::SeqCst);
    let before = install(hands_on as *const () as usize, libc::SA_SIGINFO);
    BEFORE.store(before.sa_sigaction, Ordering::SeqCst);
    memory.write(9 * PAGE, 1, 3);
    assert_eq!(OTHERS.load(Ordering::SeqCst), 1);
    assert_eq!(memory.read(9 * PAGE), 3);
    assert!(told(&mut *tracker, &memory).contains(&9));
}

/// Every second page is written, of more than a process may have mappings.
fn many_mappings() {
    let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let most: usize = most.trim().parse().unwrap();
    if most > 100_000 {
        println!("skipped: {most} mappings are too many to use up");
        return;
    }
    let memory = Memory::new(Made::Private, (most + 1000) * 2 * PAGE).unwrap();
    let mut tracker = tracker(Kind::Protect);
    tracker.add(memory.range()).unwrap();
    tracker.collect_at_rest(&mut |_| ()).unwrap();
    (0..memory.pages()).step_by(2).for_each(|page| memory.write(page * PAGE, 1, 3));
    let mut missing: BTreeSet<usize> = memory.range().step_by(2 * PAGE).collect();
    let told = |range: Range<usize>| range.step_by(PAGE).for_each(|it| _ = missing.remove(&it));
    tracker.collect_at_rest(&mut { told }).unwrap();
    assert_eq!(missing.len(), 0, "of {} pages", memory.pages() / 2);
}
