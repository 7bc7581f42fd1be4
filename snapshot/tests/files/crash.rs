//! A writer that is killed, at each of its steps: what was there can be restored, and the next one goes on.

use crate::world::{JOB, Process, files, flush, number, restored};
use sojourn_snapshot::files::{Codec, Directory, Image, Keep, Options, Progress, Step, unwatched};
use sojourn_snapshot::{Error, PAGE, Result};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

const WHERE: &str = "FILES_TEST_WHERE";
const WORK: &str = "FILES_TEST_WORK";
const AT: &str = "FILES_TEST_AT";

const FLUSH: [Step; 10] = [
    Step::Cleaned,
    Step::Data,
    Step::DataWritten,
    Step::DataSynced,
    Step::DataRenamed,
    Step::NamesSynced,
    Step::ManifestWritten,
    Step::ManifestSynced,
    Step::ManifestRenamed,
    Step::Committed,
];

fn options() -> Options {
    Options { codec: Codec::Lz4, chain: 5 }
}

/// Two processes as they are at an epoch.
fn processes(upto: u64) -> [Process; 2] {
    let mut two = [Process::new(1, &[6 * PAGE]), Process::new(2, &[5000, 90])];
    for epoch in 1..=upto {
        for (i, process) in two.iter_mut().enumerate() {
            process.noise(0, 600 * epoch as usize, 2000, epoch * 10 + i as u64);
            if epoch < upto {
                process.slot(epoch);
            }
        }
    }
    two
}

fn write(directory: &Directory, epoch: u64) {
    let [mut one, mut two] = processes(epoch);
    flush(directory, epoch, &mut [&mut one, &mut two], &options()).unwrap();
}

fn is_there(directory: &Directory, epoch: u64) {
    for (id, process) in [1, 2].into_iter().zip(processes(epoch)) {
        assert_eq!(restored(directory, epoch, id).unwrap(), process.memory, "epoch {epoch}");
    }
    assert!(directory.verify(epoch, &mut unwatched).unwrap().is_sound());
}

/// The work that is disturbed, on a directory with epochs 1, 2 and 3.
fn work(
    directory: &Directory,
    work: &str,
    watcher: &mut dyn FnMut(&Progress<'_>) -> Result<()>,
) -> Result<()> {
    match work {
        "flush" => {
            let [mut one, mut two] = processes(4);
            let (mut one, mut two) = (one.image(4), two.image(4));
            let images: &mut [&mut dyn Image] = &mut [&mut one, &mut two];
            directory.flush(number(4), images, &options(), watcher).map(drop)
        }
        "compact" => directory.compact(3, Codec::Raw, watcher).map(drop),
        "prune" => directory.prune(&Keep { last: 1, every: None }, false, watcher).map(drop),
        other => panic!("no work {other}"),
    }
}

fn three(root: &Path) -> Directory {
    let directory = Directory::create(root, &JOB).unwrap();
    (1..=3).for_each(|epoch| write(&directory, epoch));
    directory
}

/// Not a test: what the tests run in processes of their own, where a watcher kills it.
#[test]
#[ignore = "part of other tests"]
fn part() {
    let Ok(root) = std::env::var(WHERE) else { return };
    let directory = Directory::create(root.as_ref(), &JOB).unwrap();
    let at = std::env::var(AT).unwrap();
    let mut watcher = |progress: &Progress<'_>| {
        if format!("{:?}", progress.step) == at {
            // SAFETY: ends this process.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        Ok(())
    };
    work(&directory, &std::env::var(WORK).unwrap(), &mut watcher).unwrap();
}

/// Runs it in a process that is killed at this step.
fn killed(root: &Path, work: &str, at: Step) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["crash::part", "--exact", "--ignored"])
        .env(WHERE, root)
        .env(WORK, work)
        .env(AT, format!("{at:?}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{work} at {at:?}: {status}");
}

#[test]
fn a_flush_that_is_killed_loses_nothing_and_is_cleaned() {
    for at in FLUSH {
        let root = tempfile::tempdir().unwrap();
        let directory = three(root.path());
        killed(root.path(), "flush", at);
        let exists = matches!(at, Step::ManifestRenamed | Step::Committed);
        assert_eq!(directory.epochs().unwrap().contains(&4), exists, "{at:?}");
        (1..=3 + u64::from(exists)).for_each(|epoch| is_there(&directory, epoch));
        let left = files(&directory).len();
        // Something is left behind for the next to clean, or the test shows nothing.
        let whole = if exists { 12 } else { 9 };
        assert_eq!(left > whole, !exists && at != Step::Cleaned, "{at:?}: {left} files");
        let next = if exists { 5 } else { 4 };
        write(&directory, next);
        (1..=next).for_each(|epoch| is_there(&directory, epoch));
        assert_eq!(files(&directory).len(), 3 * next as usize, "{:?}", files(&directory));
    }
}

#[test]
fn a_compaction_that_is_killed_loses_nothing_and_is_cleaned() {
    for at in FLUSH.into_iter().chain([Step::DataRemoved]) {
        let root = tempfile::tempdir().unwrap();
        let directory = three(root.path());
        killed(root.path(), "compact", at);
        (1..=3).for_each(|epoch| is_there(&directory, epoch));
        let exists = matches!(at, Step::ManifestRenamed | Step::Committed | Step::DataRemoved);
        assert_eq!(directory.manifest(3).unwrap().base.is_none(), exists, "{at:?}");
        write(&directory, 4);
        (1..=4).for_each(|epoch| is_there(&directory, epoch));
        assert_eq!(files(&directory).len(), 12, "{at:?}: {:?}", files(&directory));
    }
}

#[test]
fn a_prune_that_is_killed_leaves_only_whole_epochs() {
    for at in [Step::ManifestRemoved, Step::DataRemoved] {
        let root = tempfile::tempdir().unwrap();
        let directory = three(root.path());
        directory.compact(3, Codec::Raw, &mut unwatched).unwrap();
        killed(root.path(), "prune", at);
        assert_eq!(directory.epochs().unwrap(), [1, 3]);
        is_there(&directory, 1);
        is_there(&directory, 3);
        write(&directory, 4);
        is_there(&directory, 4);
        assert_eq!(files(&directory).len(), 9, "{at:?}: {:?}", files(&directory));
    }
}

#[test]
fn work_that_ends_early_takes_back_what_it_did() {
    for what in ["flush", "compact"] {
        for at in FLUSH {
            let root = tempfile::tempdir().unwrap();
            let directory = three(root.path());
            let before = files(&directory);
            let mut watcher = |progress: &Progress<'_>| {
                if progress.step == at {
                    Err(Error::new(libc::ECANCELED, "enough"))
                } else {
                    Ok(())
                }
            };
            let ended = work(&directory, what, &mut watcher);
            if matches!(at, Step::ManifestRenamed | Step::Committed) {
                // Too late.
                ended.unwrap();
            } else {
                assert_eq!(ended.unwrap_err().errno(), libc::ECANCELED);
                assert_eq!(files(&directory), before, "{what} at {at:?}");
            }
            (1..=3).for_each(|epoch| is_there(&directory, epoch));
        }
    }
}
