//! What differs between two epochs, as their tables tell.

use super::directory::Directory;
use super::image::Image;
use crate::image::PageEntry;
use crate::{PAGE, Result};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What differs between two epochs.
///
/// Chunks are compared by what the page tables say, and no data is read: chunks with one checksum count as
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// The one epoch.
    pub from: u64,
    /// The other.
    pub to: u64,
    /// The processes that are in both.
    pub processes: Vec<ProcessDiff>,
    /// Processes that only `from` has.
    pub gone: Vec<u32>,
    /// Processes that only `to` has.
    pub new: Vec<u32>,
}

/// What differs in one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessDiff {
    /// Which one.
    pub process: u32,
    /// Whether the windows differ.
    pub windows: bool,
    /// The areas in which something differs.
    pub areas: Vec<AreaDiff>,
    /// Chunks that differ, of those in both.
    pub chunks: u64,
    /// Chunks that are in both.
    pub of: u64,
}

/// What differs in one area.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AreaDiff {
    /// Its id.
    pub area: u32,
    /// Its bytes in `from`, where it is there.
    pub from_bytes: Option<u64>,
    /// Its bytes in `to`, where it is there.
    pub to_bytes: Option<u64>,
    /// Chunks that differ, of those in both.
    pub chunks: u64,
    /// These chunks.
    pub runs: Vec<Run>,
}

/// Consecutive chunks of an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// The first one, counted from the area's first.
    pub first: u64,
    /// How many.
    pub chunks: u64,
}

impl Directory {
    /// Compares two epochs.
    ///
    /// # Errors
    /// One of them cannot be restored; names the file.
    pub fn diff(&self, from: u64, to: u64) -> Result<Diff> {
        let processes = |epoch| -> Result<BTreeSet<u32>> {
            Ok(self.manifest(epoch)?.members.iter().map(|member| member.process).collect())
        };
        let (old, new) = (processes(from)?, processes(to)?);
        // One process at a time: tables of all of them would be a lot to hold.
        let compared = old
            .intersection(&new)
            .map(|process| Ok(compare(&self.image(from, *process)?, &self.image(to, *process)?)));
        Ok(Diff {
            from,
            to,
            processes: compared.collect::<Result<_>>()?,
            gone: old.difference(&new).copied().collect(),
            new: new.difference(&old).copied().collect(),
        })
    }
}

/// Compares two images of one process, wherever they are.
#[must_use]
pub fn compare(from: &dyn Image, to: &dyn Image) -> ProcessDiff {
    let (old, new) = (areas(from), areas(to));
    let ids: BTreeSet<u32> = old.keys().chain(new.keys()).copied().collect();
    let (mut found, mut of, mut chunks) = (Vec::new(), 0, 0);
    for area in ids {
        let (old, new) = (old.get(&area), new.get(&area));
        let (from_bytes, to_bytes) = (old.map(|it| it.0), new.map(|it| it.0));
        let mut runs: Vec<Run> = Vec::new();
        if let (Some((old_bytes, old)), Some((new_bytes, new))) = (old, new) {
            for (i, (one, two)) in old.iter().zip(*new).enumerate() {
                // The last one may be shorter in one of them.
                let length = |bytes: &u64| (bytes - (i * PAGE) as u64).min(PAGE as u64);
                let i = i as u64;
                if one.crc() == two.crc() && length(old_bytes) == length(new_bytes) {
                    continue;
                }
                match runs.last_mut() {
                    Some(run) if run.first + run.chunks == i => run.chunks += 1,
                    _ => runs.push(Run { first: i, chunks: 1 }),
                }
            }
            of += old.len().min(new.len()) as u64;
        }
        let differ = runs.iter().map(|run| run.chunks).sum();
        chunks += differ;
        if from_bytes != to_bytes || differ > 0 {
            found.push(AreaDiff { area, from_bytes, to_bytes, chunks: differ, runs });
        }
    }
    let windows = from.windows() != to.windows();
    ProcessDiff { process: to.stamp().process.0, windows, areas: found, chunks, of }
}

/// The bytes and the entries of each area.
fn areas(image: &dyn Image) -> BTreeMap<u32, (u64, &[PageEntry])> {
    let layout = image.layout();
    let entries = |index| &image.pages().entries()[layout.chunks_of(index)];
    let areas = layout.areas().iter().enumerate();
    areas.map(|(index, area)| (area.id, (area.bytes as u64, entries(index)))).collect()
}
