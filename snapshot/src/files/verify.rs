//! All checksums of an epoch.

use super::chain::Stored;
use super::directory::Directory;
use super::image::{Image, bytes_of, steps};
use super::io::ReadFile;
use super::manifest::{Manifest, manifest_name};
use super::{Progress, Step, Watcher};
use crate::image::Source;
use crate::{PAGE, Result};
use serde::Serialize;
use std::collections::BTreeSet;

/// Bytes that are read and hashed at once.
const BLOCK: usize = 1 << 20;

/// What was found out about an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The epoch.
    pub epoch: u64,
    /// The epochs whose files were read: its own, and those that it stands on.
    pub epochs: BTreeSet<u64>,
    /// Data files that were read.
    pub files: usize,
    /// Bytes of these.
    pub file_bytes: u64,
    /// Bytes of the images that were put together out of them.
    pub image_bytes: u64,
    /// What is wrong. Nothing, where it can be restored.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The epoch whose file it is.
    pub epoch: u64,
    /// The process, where it is one's.
    pub process: Option<u32>,
    /// What is wrong; it names the file.
    pub what: String,
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, epoch: u64, process: Option<u32>, what: impl ToString) {
        let problem = Problem { epoch, process, what: what.to_string() };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

impl Directory {
    /// Reads everything that an epoch needs, and checks every checksum of it: hashes of files, extents, and
    /// each chunk of the image that comes out.
    ///
    /// # Errors
    /// That of the watcher. What is wrong with the epoch is in the answer.
    pub fn verify(&self, epoch: u64, watcher: &mut Watcher<'_>) -> Result<Verified> {
        let mut found = Verified { epoch, ..Verified::default() };
        let mut next = Some(epoch);
        let mut top = None;
        while let Some(number) = next {
            found.epochs.insert(number);
            match self.manifest(number) {
                Ok(manifest) => {
                    self.hash_files(&manifest, &mut found, watcher)?;
                    next = manifest.base;
                    top = top.or(Some(manifest));
                }
                Err(error) => {
                    found.problem(number, None, error);
                    break;
                }
            }
        }
        for member in top.iter().flat_map(|manifest| &manifest.members) {
            let process = Some(member.process);
            match self.image(epoch, member.process) {
                Ok(mut image) => self.read_image(&mut image, &mut found, watcher)?,
                Err(error) => found.problem(epoch, process, error),
            }
        }
        Ok(found)
    }

    /// Compares each file of a manifest with the hash there.
    fn hash_files(
        &self,
        manifest: &Manifest,
        found: &mut Verified,
        watcher: &mut Watcher<'_>,
    ) -> Result<()> {
        let epoch = manifest.epoch;
        for member in &manifest.members {
            let path = self.path().join(&member.file);
            let process = Some(member.process);
            let file = match ReadFile::open(&path) {
                Ok(file) => file,
                Err(error) => {
                    found.problem(epoch, process, error);
                    continue;
                }
            };
            let (path, total) = (path.display(), file.bytes());
            let mut hash = blake3::Hasher::new();
            let mut block = vec![0; BLOCK.min(total)];
            let mut at = 0;
            while at < total {
                let block = &mut block[..BLOCK.min(total - at)];
                if let Err(error) = file.read(at, block) {
                    found.problem(epoch, process, error);
                    break;
                }
                hash.update(block);
                at += block.len();
                let (file, done, total) = (member.file.as_str(), at as u64, total as u64);
                watcher(&Progress { step: Step::Data, file, done, total })?;
            }
            found.files += 1;
            found.file_bytes += at as u64;
            if at == total && hash.finalize().to_hex().as_str() != member.blake3 {
                let json = manifest_name(epoch);
                found.problem(epoch, process, format!("{path} has another hash than {json} says"));
            }
        }
        Ok(())
    }

    /// Puts an image together.
    fn read_image(
        &self,
        image: &mut Stored,
        found: &mut Verified,
        watcher: &mut Watcher<'_>,
    ) -> Result<()> {
        let (epoch, process) = (found.epoch, Some(image.stamp().process.0));
        let layout = image.layout().clone();
        let name =
            image.paths().next().and_then(|path| path.file_name()?.to_str().map(String::from));
        let name = name.unwrap_or_default();
        let (mut done, total) = (0, layout.bytes() as u64);
        let mut room = vec![0; layout.chunks().min(super::image::STEP) * PAGE];
        for index in 0..layout.areas().len() {
            for chunks in steps(layout.chunks_of(index)) {
                let bytes = bytes_of(&layout, chunks.clone());
                if let Err(error) = image.read(chunks, &mut room[..bytes]) {
                    found.problem(epoch, process, error);
                }
                done += bytes as u64;
                watcher(&Progress { step: Step::Data, file: &name, done, total })?;
            }
        }
        found.image_bytes += total;
        Ok(())
    }
}
