//! Epochs in a directory, as of a parallel file system.
//!
//! Now and then a committed epoch is drained from the stores to files, so that a job can be restarted
//! when all of its nodes are gone. A job has a directory of its own under the one that the user names:
//!
//! | file | what |
//! | --- | --- |
//! | `epoch-N.json` | the [`Manifest`] of epoch N: its processes, and for each the file, its size and hash |
//! | `epoch-N.process-P.full` | the whole image of a process |
//! | `epoch-N.process-P.inc` | what has changed in it since the epoch that the manifest calls its *base* |
//! | `.part-...` | a file that is being written |
//! | `lock` | held (`flock`) by who writes |
//!
//! N is the epoch's count ([`Epoch::count`](crate::epoch::Epoch::count)), which is what people are told, and
//! what increments and rules go by; its term is in the manifest.
//!
//! **An epoch exists when its manifest does.** Files are written under another name, synced, and
//! renamed; so is the manifest, when all of its data files are there. Whoever is killed before that
//! leaves the epochs before it as they were, and what it leaves behind is cleaned by the next who writes.
//!
//! # Full epochs and increments
//!
//! A data file holds the page table of the whole image ([`crate::image`]), and of its chunks those that are
//! not zero: all, or those that changed after the base. The chain from an increment to its full
//! epoch is bounded ([`Options::chain`]). [`Directory::compact`] makes a full epoch out of a chain, without the
//! process. An increment is written only where the tables of its base agree with those of the new image
//! in everything that it leaves out, and the whole chain can be opened; else the process is written in full.
//!
//! # What is believed
//!
//! Nothing. A manifest has a hash of itself, and of each data file the size, the hash, and the
//! hash of its tables; the base of an increment is known by the latter, which compaction does not
//! change. In a data file every byte is covered by a crc32c (trailer, tables, each extent), and each chunk
//! that is restored by the one in the page table. Names of files are never taken from a manifest: they
//! must be those that follow from the epoch and the process.
//!
//! Files are read, and not mapped: a mapped file that another machine cuts short kills the reader
//! with SIGBUS, and a read says that it is short.
//!
//! # Who calls it
//!
//! [`Flusher`] is the background of a running job: it drains, compacts and prunes. `sojourn snapshots` calls
//! [`Directory`] to list, show, verify, diff and prune; what these answer can be written as JSON.
//! Work that takes long tells how far it is ([`Progress`]), and ends early where it is told so.

mod background;
mod chain;
mod codec;
mod data;
mod diff;
mod directory;
mod flush;
mod image;
mod io;
mod keep;
mod manifest;
mod read;
mod report;
mod verify;

pub use background::{Drained, Flusher, Plan};
pub use chain::Stored;
pub use codec::Codec;
pub use diff::{AreaDiff, Diff, ProcessDiff, Run, compare};
pub use directory::{Directory, jobs};
pub use flush::{Flushed, Options};
pub use image::{Image, SlotImage, restore};
pub use keep::{Keep, Pruned};
pub use manifest::{AreaRecord, Manifest, Member, exercise as exercise_manifest};
pub use read::exercise as exercise_data;
pub use report::{Listed, Shown, ShownProcess};
pub use verify::{Problem, Verified};

use crate::Result;

/// How far long work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What has just been done.
    pub step: Step,
    /// The file that it was done to.
    pub file: &'a str,
    /// Bytes so far, of this file.
    pub done: u64,
    /// How many there will be.
    pub total: u64,
}

/// A step of long work. The order of those of a flush is the order here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What others had left behind is gone.
    Cleaned,
    /// More of a data file is read or written.
    Data,
    /// All of a data file is written, under its other name.
    DataWritten,
    /// It is on disk.
    DataSynced,
    /// It has its name.
    DataRenamed,
    /// The names of all data files are on disk.
    NamesSynced,
    /// The manifest is written, under its other name.
    ManifestWritten,
    /// It is on disk.
    ManifestSynced,
    /// It has its name: the epoch exists.
    ManifestRenamed,
    /// Its name is on disk.
    Committed,
    /// A manifest was removed: the epoch does not exist any more.
    ManifestRemoved,
    /// A data file was removed.
    DataRemoved,
}

/// Is told how far long work is. An error from it ends the work, with that error, and whatever was there
/// before stays as it was; once the epoch exists it is ignored.
pub type Watcher<'a> = dyn FnMut(&Progress<'_>) -> Result<()> + 'a;

/// The job that is called `name`, in stores and directories.
#[must_use]
pub fn job_called(name: &str) -> [u8; 16] {
    let mut job = [0; 16];
    job.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
    job
}

/// For work that nobody watches.
///
/// # Errors
/// None.
pub fn unwatched(_: &Progress<'_>) -> Result<()> {
    Ok(())
}
