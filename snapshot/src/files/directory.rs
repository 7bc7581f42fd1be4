//! The directory of a job: what is in it, and who may write.

use super::chain::{MAX_CHAIN, Stored};
use super::image::Image;
use super::io::{ASIDE, ReadFile, make_dir, sync_dir};
use super::manifest::{
    MAX_MANIFEST, Manifest, epoch_of, epoch_of_data, job_name, job_of, manifest_name,
};
use super::read::damaged;
use crate::epoch::Epoch;
use crate::{Error, Result};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Held by who writes.
const LOCK: &str = "lock";
/// How long who writes waits for another who does.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
/// How often a reader looks again, where a file went away because its epoch was compacted meanwhile.
const LOOKS: usize = 3;

/// The epochs of one job, in a directory.
///
/// Reading takes no lock. What writes holds the directory's lock meanwhile, and waits for it if need be; on a
/// file system without `flock`, that there is one who writes is up to the user.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    job: [u8; 16],
    patience: Duration,
}

/// The jobs that have a directory under `root`, by name.
///
/// # Errors
/// It cannot be read.
pub fn jobs(root: &Path) -> Result<Vec<[u8; 16]>> {
    Ok(names(root)?.iter().filter_map(|name| job_of(name)).collect())
}

impl Directory {
    /// The directory of `job` under `root`; both are made where they do not exist.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn create(root: &Path, job: &[u8; 16]) -> Result<Directory> {
        let path = root.join(job_name(job));
        make_dir(&path)?;
        Ok(Directory { path, job: *job, patience: PATIENCE })
    }

    /// The directory of `job` under `root`.
    ///
    /// # Errors
    /// `ENOENT` where it does not exist; names the jobs that do.
    pub fn open(root: &Path, job: &[u8; 16]) -> Result<Directory> {
        let path = root.join(job_name(job));
        match std::fs::metadata(&path) {
            Ok(about) if about.is_dir() => {
                return Ok(Directory { path, job: *job, patience: PATIENCE });
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::os(&error, format_args!("opening {}", path.display())));
            }
            _ => {}
        }
        let there: Vec<String> = jobs(root)?.iter().map(job_name).collect();
        let there = match there.as_slice() {
            [] => "no job".into(),
            jobs => format!("jobs {}", jobs.join(", ")),
        };
        let (root, job) = (root.display(), job_name(job));
        Err(Error::new(libc::ENOENT, format!("{root} has no job {job}: it has {there}")))
    }

    /// Who writes waits at most so long for another who does.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> &[u8; 16] {
        &self.job
    }

    /// The numbers of the epochs, upwards, damaged ones too.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn epochs(&self) -> Result<Vec<u64>> {
        Ok(names(&self.path)?.iter().filter_map(|name| epoch_of(name)).collect())
    }

    /// The manifest of an epoch.
    ///
    /// # Errors
    /// `ENOENT` where there is no such epoch, `EBADMSG` where the manifest is damaged; names the file.
    pub fn manifest(&self, epoch: u64) -> Result<Manifest> {
        let path = self.path.join(manifest_name(epoch));
        let json = ReadFile::open(&path)?.all(MAX_MANIFEST)?;
        Manifest::decode(&json, &self.job, epoch).map_err(|error| error.context(path.display()))
    }

    /// The image of a process in an epoch, to be restored.
    ///
    /// Its trailers and tables are checked here, and that its files belong together; each extent when it is read.
    ///
    /// # Errors
    /// Names the file that is missing, or damaged.
    pub fn image(&self, epoch: u64, process: u32) -> Result<Stored> {
        let mut looks = 1;
        loop {
            let opened = self
                .manifest(epoch)
                .and_then(|manifest| Stored::open(self, &manifest, manifest.member(process)?));
            match opened {
                Err(error) if error.errno() == libc::ENOENT && looks < LOOKS => looks += 1,
                opened => return opened,
            }
        }
    }

    /// Whether an epoch can be restored, as far as manifests, sizes and tables of all files tell. Data is not
    /// read: that is [`Self::verify`].
    ///
    /// # Errors
    /// Why not.
    pub fn probe(&self, epoch: u64) -> Result<()> {
        let manifest = self.manifest(epoch)?;
        for member in &manifest.members {
            self.image(epoch, member.process)?;
        }
        Ok(())
    }

    /// The last epoch that can be restored, as [`Self::probe`] says.
    ///
    /// # Errors
    /// `ENOENT` where there is none; says what is wrong with the last one that is there.
    pub fn last_restorable(&self) -> Result<u64> {
        let mut why = None;
        for epoch in self.epochs()?.into_iter().rev() {
            match self.probe(epoch) {
                Ok(()) => return Ok(epoch),
                Err(error) => why = why.or(Some(error)),
            }
        }
        let why = why.map_or("there is no epoch".to_owned(), |error| error.to_string());
        let path = self.path.display();
        Err(Error::new(libc::ENOENT, format!("nothing in {path} can be restored: {why}")))
    }

    /// How many increments an epoch stands on, itself counted.
    ///
    /// # Errors
    /// One of them is damaged.
    pub(super) fn increments(&self, manifest: &Manifest) -> Result<usize> {
        let mut many = 0;
        let mut base = manifest.base;
        while let Some(epoch) = base {
            many += 1;
            if many == MAX_CHAIN {
                break;
            }
            base = self.manifest(epoch)?.base;
        }
        Ok(many)
    }

    /// Whether an epoch can be restored, as far as manifests and sizes of files tell: no file is opened.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn glance(&self, manifest: &Manifest) -> Result<()> {
        let mut next = Some(manifest.clone());
        for _ in 0..MAX_CHAIN {
            let Some(manifest) = next else { return Ok(()) };
            for member in &manifest.members {
                let path = self.path.join(&member.file);
                let about = std::fs::symlink_metadata(&path).map_err(|error| {
                    Error::os(&error, format_args!("looking at {}", path.display()))
                })?;
                if !about.is_file() || about.len() != member.bytes {
                    let (path, is, bytes) = (path.display(), about.len(), member.bytes);
                    return Err(damaged(format!(
                        "{path} has {is} bytes, and its manifest says {bytes}"
                    )));
                }
            }
            next = manifest.base.map(|base| self.manifest(base)).transpose()?;
        }
        Err(damaged(format!("epoch {} stands on more than {MAX_CHAIN} files", manifest.epoch)))
    }

    /// Keeps others from writing until it is dropped.
    ///
    /// # Errors
    /// `EWOULDBLOCK` where another writes for longer than the patience is; the directory cannot be written.
    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.path.join(LOCK);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|error| Error::os(&error, format_args!("opening {}", path.display())))?;
        let deadline = Instant::now() + self.patience;
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => return Ok(Lock { _held: Some(held) }),
                Err((file, nix::Error::EWOULDBLOCK)) if Instant::now() < deadline => {
                    std::thread::sleep(PAUSE);
                    file
                }
                Err((_, nix::Error::EWOULDBLOCK)) => {
                    let path = self.path.display();
                    return Err(Error::new(
                        libc::EWOULDBLOCK,
                        format!("another process writes to {path}: try again when it is done"),
                    ));
                }
                Err((_, nix::Error::ENOSYS | nix::Error::ENOLCK | nix::Error::EOPNOTSUPP)) => {
                    tracing::warn!("{} cannot be locked: only one may write", path.display());
                    return Ok(Lock { _held: None });
                }
                Err((_, error)) => {
                    let doing = format!("locking {}: {error}", path.display());
                    return Err(Error::new(error as i32, doing));
                }
            };
        }
    }

    /// Removes what a writer that was killed has left: files under their other names, and data files that
    /// no manifest names. An epoch whose manifest is damaged is left as it is.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn clean(&self, _: &Lock) -> Result<()> {
        let names = names(&self.path)?;
        let epochs: BTreeSet<u64> = names.iter().filter_map(|name| epoch_of(name)).collect();
        let (mut known, mut referenced) = (BTreeSet::new(), BTreeSet::new());
        let with_data: BTreeSet<u64> =
            names.iter().filter_map(|name| epoch_of_data(name)).collect();
        for epoch in with_data.intersection(&epochs) {
            if let Ok(manifest) = self.manifest(*epoch) {
                known.insert(*epoch);
                referenced.extend(manifest.members.into_iter().map(|member| member.file));
            }
        }
        let mut removed = false;
        for name in &names {
            let loose = epoch_of_data(name).is_some_and(|epoch| {
                !epochs.contains(&epoch) || known.contains(&epoch) && !referenced.contains(name)
            });
            if loose || name.starts_with(ASIDE) {
                self.remove(name)?;
                removed = true;
            }
        }
        if removed { sync_dir(&self.path) } else { Ok(()) }
    }

    /// Removes a file, which may be gone already.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::os(&error, format_args!("removing {}", path.display())))
            }
            _ => Ok(()),
        }
    }
}

/// That nobody else writes.
pub(super) struct Lock {
    _held: Option<Flock<File>>,
}

/// The names in a directory, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let failed = |error| Error::os(&error, format_args!("reading {}", dir.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        // Names that are no text are none of ours.
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// The stamps of images that are to be one epoch of one job.
///
/// # Errors
/// `EINVAL` names the process that does not belong.
pub(super) fn check_images<'a>(
    job: &[u8; 16],
    epoch: Epoch,
    images: impl Iterator<Item = &'a dyn Image>,
) -> Result<()> {
    let mut seen = BTreeSet::new();
    for image in images {
        let stamp = image.stamp();
        let of = stamp.process;
        if stamp.job != *job {
            let (is, job) = (job_name(&stamp.job), job_name(job));
            return Err(Error::invalid(format!("{of} is of job {is}, and not of {job}")));
        }
        if stamp.epoch != epoch.0 {
            let is = Epoch(stamp.epoch);
            return Err(Error::invalid(format!("{of} has {is}, and not {epoch}")));
        }
        if !seen.insert(of) {
            return Err(Error::invalid(format!("{of} twice in {epoch}")));
        }
    }
    if seen.is_empty() {
        return Err(Error::invalid(format!("{epoch} of no process at all")));
    }
    Ok(())
}
