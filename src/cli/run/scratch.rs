//! The private directory of a job: its sockets and its key.
//!
//! It is made for this user alone, and removed with the job. A launcher that was killed leaves its
//! directory behind; its lock is free then, and the next launcher removes it.

use crate::cli::{Failure, Outcome, While};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the names of these directories begin with.
const PREFIX: &str = "sojourn-run-";

/// A directory without a lock is left alone until it is this old: its launcher may be about to
/// lock it.
const SETTLED: Duration = Duration::from_secs(60);

/// A unix socket's path may have 107 bytes; the longest name that is put in here has fewer than 40.
const LONGEST_PATH: usize = 107 - 40;

/// A directory that goes away with this value.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Scratch {
    /// Makes one below `$XDG_RUNTIME_DIR`, or below the directory for temporary files.
    pub(super) fn new() -> Outcome<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let parent = match runtime {
            Some(path) if path.is_dir() && fits(&path) => path,
            _ => std::env::temp_dir(),
        };
        Self::below(&parent)
    }

    fn below(parent: &Path) -> Outcome<Self> {
        if !fits(parent) {
            return Err(Failure::new(format!(
                "the directory for temporary files, {}, is too long a path for a unix socket: set \
                 TMPDIR to a shorter one",
                parent.display()
            )));
        }
        sweep(parent);
        let doing = format!("making a directory in {}", parent.display());
        let path = nix::unistd::mkdtemp(&parent.join(format!("{PREFIX}XXXXXX"))).doing(&doing)?;
        let lock = lock(&path).doing(&doing)?;
        Ok(Scratch { path, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

fn fits(parent: &Path) -> bool {
    parent.as_os_str().len() + 1 + PREFIX.len() + 6 <= LONGEST_PATH
}

fn lock(path: &Path) -> Result<Flock<File>, Errno> {
    let directory = File::open(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

/// Removes what launchers of this user that were killed have left in `parent`.
fn sweep(parent: &Path) {
    let me = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
            // Of the entry itself: a symbolic link is not followed.
            && entry.metadata().is_ok_and(|meta| {
                let age = meta.modified().ok().and_then(|at| at.elapsed().ok());
                meta.is_dir() && meta.uid() == me && age.is_some_and(|age| age > SETTLED)
            });
        if ours && lock(&entry.path()).is_ok() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn it_is_private_and_goes_away_with_its_contents() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::below(parent.path()).unwrap();
        assert_eq!(fs::metadata(scratch.path()).unwrap().mode() & 0o7777, 0o700);
        fs::write(scratch.path().join("key"), "secret").unwrap();
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn only_the_directories_of_dead_launchers_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * SETTLED;
        let age = |path: &Path| File::open(path).unwrap().set_modified(old).unwrap();
        let live = Scratch::below(parent.path()).unwrap();
        let (dead, young, other) = (
            parent.path().join("sojourn-run-dead00"),
            parent.path().join("sojourn-run-young0"),
            parent.path().join("something-else"),
        );
        for path in [&dead, &young, &other] {
            fs::create_dir(path).unwrap();
        }
        for path in [live.path(), &dead, &other] {
            age(path);
        }
        let second = Scratch::below(parent.path()).unwrap();
        assert!(!dead.exists());
        assert!(live.path().exists() && second.path().exists() && young.exists() && other.exists());
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_by_name() {
        let parent = PathBuf::from(format!("/tmp/{}", "x".repeat(80)));
        let message = Scratch::below(&parent).unwrap_err().message.unwrap();
        assert!(message.contains("TMPDIR") && message.contains("xxx"), "{message}");
    }
}
