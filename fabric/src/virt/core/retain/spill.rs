//! The spill file: nameless, its owner's alone, gone with the process.

use crate::error::{Error, Result};
use nix::sys::resource::{Resource, getrlimit};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Pieces written in one call: what Linux takes (`IOV_MAX`).
const PIECES: usize = 1024;
/// Names that are tried where a file has to have one for a moment.
const NAMES: u32 = 100;

/// The file.
pub(super) struct SpillFile {
    file: File,
    /// The file system makes holes.
    holes: bool,
}

impl SpillFile {
    /// A new one in that directory.
    ///
    /// # Errors
    /// Where none can be made there; the message names the directory.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::os(&error, format_args!("making a spill file in {}", dir.display()))
        };
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(dir);
        let file = match nameless {
            Ok(file) => file,
            // Not every file system has them (`open(2)`), and old kernels say that it is a directory.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                named_for_a_moment(dir).map_err(failed)?
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(SpillFile { file, holes: true })
    }

    /// Writes pieces of memory one behind the other, from `at` on.
    ///
    /// # Safety
    /// The pieces are readable during the call.
    ///
    /// # Errors
    /// Where not all of it could be written: the disk is full, or the file larger than it may be.
    pub(super) unsafe fn write(&self, at: u64, pieces: &mut [libc::iovec]) -> io::Result<()> {
        let bytes: u64 = pieces.iter().map(|it| it.iov_len as u64).sum();
        // The kernel would send a signal that ends the program (`setrlimit(2)`, RLIMIT_FSIZE).
        let (limit, _) = getrlimit(Resource::RLIMIT_FSIZE)?;
        if at.saturating_add(bytes) > limit.min(i64::MAX as u64) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let (mut at, mut first) = (at, 0);
        while first < pieces.len() {
            let some = &pieces[first..pieces.len().min(first + PIECES)];
            // SAFETY: the caller's promise; a file of ours.
            let written = unsafe {
                libc::pwritev(
                    self.file.as_raw_fd(),
                    some.as_ptr(),
                    some.len() as libc::c_int,
                    at as libc::off_t,
                )
            };
            let mut written = match written {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                1.. => written as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error),
                },
            };
            at += written as u64;
            while let Some(piece) = pieces.get_mut(first) {
                let whole = written >= piece.iov_len;
                let took = written.min(piece.iov_len);
                written -= took;
                if whole {
                    first += 1;
                    continue;
                }
                piece.iov_base = piece.iov_base.wrapping_byte_add(took);
                piece.iov_len -= took;
                break;
            }
        }
        Ok(())
    }

    /// Reads what was written there.
    ///
    /// # Errors
    /// As the file system answers.
    pub(super) fn read(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// Gives disk blocks back that nobody needs. Where the file system cannot, they are with the file.
    pub(super) fn punch(&mut self, range: &Range<u64>) {
        if !self.holes {
            return;
        }
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (at, length) = (range.start as libc::off_t, (range.end - range.start) as libc::off_t);
        // SAFETY: a file of ours, and numbers.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, at, length) } != 0 {
            self.holes = false;
            tracing::debug!("no holes in the spill file: {}", io::Error::last_os_error());
        }
    }
}

fn named_for_a_moment(dir: &Path) -> io::Result<File> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut tried = 0;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".sojourn-spill-{}-{number}", std::process::id()));
        let made =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        match made {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tried < NAMES => {
                tried += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn pieces(all: &[Vec<u8>]) -> Vec<libc::iovec> {
        let piece =
            |it: &Vec<u8>| libc::iovec { iov_base: it.as_ptr() as *mut _, iov_len: it.len() };
        all.iter().map(piece).collect()
    }

    /// Promise: what is spilled is read back, and nobody else finds it: no name, mode 0600.
    #[test]
    fn a_spill_file_is_nameless_and_keeps_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let nameless = SpillFile::create(dir.path()).unwrap();
        let named = SpillFile { file: named_for_a_moment(dir.path()).unwrap(), holes: true };
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for mut spill in [nameless, named] {
            let meta = spill.file.metadata().unwrap();
            assert_eq!((meta.mode() & 0o777, meta.nlink()), (0o600, 0));
            let all: Vec<Vec<u8>> = (0..3000u32).map(|n| vec![n as u8; n as usize % 50]).collect();
            // SAFETY: they are slices of ours.
            unsafe { spill.write(10_000, &mut pieces(&all)) }.unwrap();
            let mut back = vec![0; all.concat().len()];
            spill.read(10_000, &mut back).unwrap();
            assert_eq!(back, all.concat());
            spill.punch(&(0..8192));
            spill.read(10_000, &mut back).unwrap();
            assert_eq!(back, all.concat());
        }
    }

    /// Promise: a directory that cannot be written is named.
    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = SpillFile::create(Path::new("/no/such/directory")).err().unwrap().to_string();
        assert!(error.contains("/no/such/directory"), "{error}");
    }
}
