//! Files: written aside, synced, renamed; and read, whatever they are.

use crate::image::Source;
use crate::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// In front of the name of a file that is being written.
pub(super) const ASIDE: &str = ".part-";

/// A file under its other name, and the hash of what was written to it. Is removed where it does not get its name.
pub(super) struct Aside {
    file: File,
    dir: PathBuf,
    name: String,
    hash: blake3::Hasher,
    bytes: u64,
    renamed: bool,
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.renamed {
            // The next who writes cleans what is left.
            let _ = std::fs::remove_file(self.aside());
        }
    }
}

impl Aside {
    /// Begins the file that is to be `name` in `dir`.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub(super) fn create(dir: &Path, name: &str) -> Result<Aside> {
        let path = dir.join(format!("{ASIDE}{name}"));
        // Images are as private as the memory that they are of.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| Error::os(&error, format_args!("creating {}", path.display())))?;
        let (dir, name) = (dir.to_owned(), name.to_owned());
        Ok(Aside { file, dir, name, hash: blake3::Hasher::new(), bytes: 0, renamed: false })
    }

    /// The name that it will have.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of them.
    pub(super) fn hash(&self) -> blake3::Hash {
        self.hash.finalize()
    }

    /// Appends.
    ///
    /// # Errors
    /// They cannot be written: the disk is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error, "writing"))?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Waits until it is on disk.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed(&error, "syncing"))
    }

    /// Gives it its name, instead of what may have it. The directory is to be synced then.
    ///
    /// # Errors
    /// It still has the other one.
    pub(super) fn rename(&mut self) -> Result<()> {
        std::fs::rename(self.aside(), self.dir.join(&self.name))
            .map_err(|error| self.failed(&error, "renaming"))?;
        self.renamed = true;
        Ok(())
    }

    fn aside(&self) -> PathBuf {
        self.dir.join(format!("{ASIDE}{}", self.name))
    }

    fn failed(&self, error: &std::io::Error, doing: &str) -> Error {
        Error::os(error, format_args!("{doing} {}", self.aside().display()))
    }
}

/// Waits until the names in a directory are on disk.
///
/// # Errors
/// They are not.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| Error::os(&error, format_args!("syncing {}", dir.display())))
}

/// Makes a directory, and those above it, for nobody else to read.
///
/// # Errors
/// It cannot be made.
pub(super) fn make_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::os(&error, format_args!("creating {}", dir.display())))?;
    match dir.parent() {
        Some(above) if !above.as_os_str().is_empty() => sync_dir(above),
        _ => Ok(()),
    }
}

/// A file to read.
#[derive(Debug)]
pub(super) struct ReadFile {
    file: File,
    path: PathBuf,
    bytes: usize,
}

impl ReadFile {
    /// Opens it.
    ///
    /// # Errors
    /// It is not there, or it is no plain file.
    pub(super) fn open(path: &Path) -> Result<ReadFile> {
        let failed = |error| Error::os(&error, format_args!("opening {}", path.display()));
        // Does not wait for the other end of what is a pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if !about.is_file() {
            return Err(Error::invalid(format!("{} is no plain file", path.display())));
        }
        let bytes = usize::try_from(about.len()).unwrap_or(usize::MAX);
        Ok(ReadFile { file, path: path.to_owned(), bytes })
    }

    /// All of it, where that is at most `most` bytes.
    ///
    /// # Errors
    /// It is more, or it cannot be read.
    pub(super) fn all(&self, most: usize) -> Result<Vec<u8>> {
        if self.bytes > most {
            let (path, bytes) = (self.path.display(), self.bytes);
            return Err(Error::invalid(format!("{path} has {bytes} bytes: at most {most}")));
        }
        let mut all = vec![0; self.bytes];
        self.read(0, &mut all)?;
        Ok(all)
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Source for ReadFile {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, at as u64).map_err(|error| {
            let (bytes, path) = (into.len(), self.path.display());
            Error::os(&error, format_args!("reading {bytes} bytes at {at} of {path}"))
        })
    }
}
