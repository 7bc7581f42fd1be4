//! What a process runs out of: locked memory, file descriptors. Each in a process of its own.

use crate::rig::{Rig, open};
use nix::sys::resource::{Resource, setrlimit};
use sojourn_fabric::abi::access;
use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

/// Set in the process that runs out.
const CHILD: &str = "SOJOURN_TEST_EXHAUSTED";
/// Nobody: a user without `CAP_IPC_LOCK`, to whom the limit applies.
const NOBODY: u32 = 65534;

/// Runs the test `name` of this program again, as the process that runs out.
fn run_alone(name: &str, as_nobody: bool) {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
    if as_nobody && nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "the test did not run: {text}{errors}");
}

/// Promise: memory beyond RLIMIT_MEMLOCK gives one error with the limit and the need.
#[test]
fn locked_memory() {
    const LIMIT: u64 = 65536;
    const LENGTH: usize = 1 << 20;
    if open().is_none() {
        return;
    }
    if env::var_os(CHILD).is_none() {
        return run_alone("exhausted::locked_memory", true);
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, LIMIT, LIMIT).expect("a lower limit");
    let rig = Rig::new().expect("it opened before");
    let memory = vec![0u8; LENGTH].leak();
    let (at, flags) = (memory.as_mut_ptr(), access::LOCAL_WRITE);
    // SAFETY: the memory lives for ever, and is not accessed again.
    let error = unsafe { Arc::clone(&rig.pd).reg_mr(at.cast(), LENGTH, flags) };
    let text = error.err().expect("it is too much").to_string();
    println!("{text}");
    let mut need = LENGTH;
    if !(at as usize).is_multiple_of(4096) {
        need += 4096;
    }
    for part in [&format!("RLIMIT_MEMLOCK is {LIMIT} "), &format!("needs {need} "), "ulimit -l"] {
        assert!(text.contains(part), "no \"{part}\" in: {text}");
    }
    // SAFETY: as above.
    let fits = unsafe { Arc::clone(&rig.pd).reg_mr(at.cast(), 4096, flags) };
    assert!(fits.is_ok(), "what fits is still registered");
}

/// Promise: without a file descriptor left, one error names the limit, and nothing hangs.
#[test]
fn file_descriptors() {
    const LIMIT: u64 = 64;
    let Some(context) = open() else { return };
    if env::var_os(CHILD).is_none() {
        return run_alone("exhausted::file_descriptors", false);
    }
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT).expect("a lower limit");
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    let error = Arc::clone(&context).create_channel().err().expect("there is none left");
    assert_eq!(error.errno(), libc::EMFILE, "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("RLIMIT_NOFILE is {LIMIT};")), "{text}");
    files.truncate(files.len() - 8);
    assert!(Arc::clone(&context).create_channel().is_ok(), "there are some left again");
}
