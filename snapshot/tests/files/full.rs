//! A disk that is full, and a directory that cannot be written. Each in a process of its own, since limits,
//! mounts and users are a process's.

use crate::world::{JOB, Process, files, flush, restored};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::files::{Codec, Directory, Options, unwatched};
use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const WHERE: &str = "FILES_TEST_WHERE";
const WORK: &str = "FILES_TEST_WORK";
const RAW: Options = Options { codec: Codec::Raw, chain: 4 };
/// What the small file system or the largest file has.
const ROOM: usize = 400 << 10;

/// Not a test: what the tests run in processes of their own.
#[test]
#[ignore = "part of other tests"]
fn part() {
    let Ok(root) = std::env::var(WHERE) else { return };
    match std::env::var(WORK).unwrap().as_str() {
        "full" => full(root.as_ref()),
        "limited" => limited(root.as_ref()),
        "unwritable" => unwritable(root.as_ref()),
        other => panic!("no work {other}"),
    }
}

fn run(work: &str) {
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["full::part", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(WHERE, root.path())
        .env(WORK, work)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{text}");
}

#[test]
fn a_full_disk_costs_only_the_epoch_that_found_it() {
    run("full");
}

#[test]
fn a_file_that_may_not_grow_costs_only_its_epoch() {
    run("limited");
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    run("unwritable");
}

/// An epoch that fits, one that does not, and one that does again.
fn three(directory: &Directory, errno: i32) {
    let mut process = Process::new(1, &[200 * PAGE]);
    process.noise(0, 0, 50 * PAGE, 1);
    flush(directory, 1, &mut [&mut process], &RAW).unwrap();
    let (was, before) = (process.memory.clone(), files(directory));

    let mut larger = process.clone();
    larger.noise(0, 0, 190 * PAGE, 2);
    let error = flush(directory, 2, &mut [&mut larger], &RAW).unwrap_err();
    assert_eq!(error.errno(), errno, "{error}");
    let file = directory.path().join(".part-epoch-0000000002.process-1.inc");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    assert_eq!(files(directory), before);
    assert_eq!(restored(directory, 1, 1).unwrap(), was);

    process.noise(0, 9 * PAGE, 10, 3);
    flush(directory, 3, &mut [&mut process], &RAW).unwrap();
    assert_eq!(restored(directory, 3, 1).unwrap(), process.memory);
    assert!(directory.verify(3, &mut unwatched).unwrap().is_sound());
}

fn full(root: &Path) {
    let at = CString::new(root.to_str().unwrap()).unwrap();
    let options = CString::new(format!("size={ROOM}")).unwrap();
    // SAFETY: a file system of this process alone, which goes with it; all texts end with a zero. The mounts of
    // others are made private first, so that nobody else sees it.
    let mounted = unsafe {
        let own = libc::unshare(libc::CLONE_NEWNS) == 0
            || libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) == 0;
        let (none, private) = (c"none".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
        own && libc::mount(none, c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()) == 0
            && libc::mount(none, at.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) == 0
    };
    if !mounted {
        // The same promise is shown with a limit instead, by `limited`.
        println!("no mount here: {}", std::io::Error::last_os_error());
        return;
    }
    let directory = Directory::create(root, &JOB).unwrap();
    three(&directory, libc::ENOSPC);
}

fn limited(root: &Path) {
    let limit = libc::rlimit { rlim_cur: ROOM as u64, rlim_max: ROOM as u64 };
    // SAFETY: a limit of this process, and a signal that would end it instead of an error.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    let directory = Directory::create(root, &JOB).unwrap();
    three(&directory, libc::EFBIG);
}

fn unwritable(root: &Path) {
    let directory = Directory::create(root, &JOB).unwrap();
    let mut process = Process::new(1, &[PAGE]);
    process.noise(0, 0, PAGE, 1);
    flush(&directory, 1, &mut [&mut process], &RAW).unwrap();
    let was = process.memory.clone();
    // All may read, nobody may write.
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in files(&directory) {
        mode(&directory.path().join(name), 0o444);
    }
    mode(&directory.path().join("lock"), 0o444);
    mode(directory.path(), 0o555);
    mode(root, 0o555);
    // SAFETY: this process alone. Permissions do not bind the superuser.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        }
    }
    process.noise(0, 0, 9, 1);
    let error = flush(&directory, 2, &mut [&mut process], &RAW).unwrap_err();
    assert_eq!(error.errno(), libc::EACCES, "{error}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    let error = Directory::create(root, &[1; 16]).unwrap_err();
    assert!(error.to_string().contains(root.to_str().unwrap()), "{error}");
    assert_eq!(restored(&directory, 1, 1).unwrap(), was);
    assert!(directory.verify(1, &mut unwatched).unwrap().is_sound());
}
