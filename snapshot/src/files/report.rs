//! What is in a directory, for people and programs to read.

use super::codec::Codec;
use super::directory::Directory;
use super::image::{Image, bytes_of};
use super::manifest::{AreaRecord, Manifest, manifest_name};
use crate::Result;
use serde::Serialize;
use std::path::PathBuf;

/// An epoch, in a list of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Listed {
    /// Its count.
    pub epoch: u64,
    /// The term in which it was dealt.
    pub term: u32,
    /// What its increments stand on.
    pub base: Option<u64>,
    /// How many processes it has.
    pub processes: usize,
    /// When the last of them was paused for it, in nanoseconds since 1970.
    pub paused_at: u64,
    /// Bytes of all areas.
    pub image_bytes: u64,
    /// Bytes of its data files.
    pub file_bytes: u64,
    /// Chunks of all images.
    pub chunks: u64,
    /// Chunks in its files.
    pub stored_chunks: u64,
    /// Chunks of zeros.
    pub zero_chunks: u64,
    /// The part of the chunks that is in its files: of an increment, what was dirty.
    pub share: f64,
    /// Why it cannot be restored, as far as manifests and sizes of files tell. [`Directory::probe`] and
    /// [`Directory::verify`] read them.
    pub damaged: Option<String>,
}

/// An epoch, with its processes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// As in the list.
    #[serde(flatten)]
    pub listed: Listed,
    /// Where its manifest is.
    pub manifest: PathBuf,
    /// The processes.
    pub members: Vec<ShownProcess>,
}

/// A process in an epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownProcess {
    /// Which one.
    pub process: u32,
    /// Its incarnation then.
    pub incarnation: u32,
    /// When it was paused for the epoch, in nanoseconds since 1970.
    pub paused_at: u64,
    /// The files that it is restored from: its own first, the full one last.
    pub files: Vec<PathBuf>,
    /// The epochs that these are of.
    pub epochs: Vec<u64>,
    /// The size of its own.
    pub file_bytes: u64,
    /// Its areas.
    pub areas: Vec<AreaRecord>,
    /// Bytes of its windows.
    pub windows: u64,
    /// Chunks of the image.
    pub chunks: u64,
    /// Chunks in its own file.
    pub stored_chunks: u64,
    /// Chunks of zeros.
    pub zero_chunks: u64,
    /// Bytes of the chunks in its own file, and what they take there.
    pub extents: Vec<ShownExtents>,
}

/// Extents that are stored in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ShownExtents {
    /// How.
    pub codec: Codec,
    /// How many.
    pub extents: u64,
    /// Their bytes in memory.
    pub bytes: u64,
    /// Their bytes in the file.
    pub stored: u64,
}

impl Directory {
    /// All epochs, upwards; damaged ones too.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        Ok(self.epochs()?.into_iter().map(|epoch| self.listed(epoch)).collect())
    }

    /// One epoch, and its processes.
    ///
    /// # Errors
    /// It is not there, or cannot be restored; names the file.
    pub fn show(&self, epoch: u64) -> Result<Shown> {
        let manifest = self.manifest(epoch)?;
        let members = manifest.members.iter().map(|member| {
            let image = self.image(epoch, member.process)?;
            Ok(ShownProcess {
                process: member.process,
                incarnation: member.incarnation,
                paused_at: member.paused_at,
                files: image.paths().map(Into::into).collect(),
                epochs: image.epochs().collect(),
                file_bytes: member.bytes,
                areas: member.areas.clone(),
                windows: member.windows,
                chunks: member.chunks,
                stored_chunks: member.stored_chunks,
                zero_chunks: member.zero_chunks,
                extents: extents(&image),
            })
        });
        Ok(Shown {
            listed: summary(&manifest),
            manifest: self.path().join(manifest_name(epoch)),
            members: members.collect::<Result<_>>()?,
        })
    }

    fn listed(&self, epoch: u64) -> Listed {
        let (mut listed, sound) = match self.manifest(epoch) {
            Ok(manifest) => (summary(&manifest), self.glance(&manifest)),
            Err(error) => (Listed { epoch, ..Listed::default() }, Err(error)),
        };
        listed.damaged = sound.err().map(|error| error.to_string());
        listed
    }
}

fn summary(manifest: &Manifest) -> Listed {
    let members = &manifest.members;
    let (chunks, stored_chunks) = (
        members.iter().map(|member| member.chunks).sum(),
        members.iter().map(|member| member.stored_chunks).sum(),
    );
    Listed {
        epoch: manifest.epoch,
        term: manifest.term,
        base: manifest.base,
        processes: members.len(),
        paused_at: members.iter().map(|member| member.paused_at).max().unwrap_or_default(),
        image_bytes: members.iter().flat_map(|member| &member.areas).map(|area| area.bytes).sum(),
        file_bytes: members.iter().map(|member| member.bytes).sum(),
        chunks,
        stored_chunks,
        zero_chunks: members.iter().map(|member| member.zero_chunks).sum(),
        share: stored_chunks as f64 / chunks.max(1) as f64,
        damaged: None,
    }
}

fn extents(image: &super::Stored) -> Vec<ShownExtents> {
    let by_codec = [Codec::Raw, Codec::Lz4, Codec::Zstd].map(|codec| {
        let own = image.extents().iter().filter(|extent| extent.codec.get() == codec.number());
        let mut shown = ShownExtents { codec, extents: 0, bytes: 0, stored: 0 };
        for extent in own {
            let first = extent.first.get() as usize;
            let chunks = first..first + extent.chunks.get() as usize;
            shown.extents += 1;
            shown.bytes += bytes_of(image.layout(), chunks) as u64;
            shown.stored += u64::from(extent.stored.get());
        }
        shown
    });
    by_codec.into_iter().filter(|shown| shown.extents > 0).collect()
}
