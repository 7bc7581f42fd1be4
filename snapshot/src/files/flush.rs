//! Writing an epoch, and making a full one out of a chain.

use super::chain::{MAX_CHAIN, Stored};
use super::codec::Codec;
use super::data::{self, Written};
use super::directory::{Directory, check_images};
use super::image::Image;
use super::io::{Aside, sync_dir};
use super::manifest::{MAX_MANIFEST, Manifest, Member, data_name, manifest_name, records};
use super::{Progress, Step, Watcher};
use crate::epoch::Epoch;
use crate::{Error, Result};
use serde::Serialize;

/// How an epoch is written.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How extents are stored.
    pub codec: Codec,
    /// Most increments on top of a full epoch, at most [`Self::MAX_CHAIN`]; 0 for full ones only.
    pub chain: usize,
}

impl Options {
    /// The longest chain, so that few files are open while it is read.
    pub const MAX_CHAIN: usize = MAX_CHAIN - 1;

    /// # Errors
    /// `EINVAL` for a chain that is too long, `EOPNOTSUPP` for a codec that this build has not.
    pub(super) fn check(&self) -> Result<()> {
        if self.chain > Self::MAX_CHAIN {
            let (chain, most) = (self.chain, Self::MAX_CHAIN);
            return Err(Error::invalid(format!("a chain of {chain} increments: at most {most}")));
        }
        self.codec.check()
    }
}

impl Default for Options {
    fn default() -> Self {
        Options { codec: Codec::Lz4, chain: 8 }
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flushed {
    /// The count of the epoch.
    pub epoch: u64,
    /// What its increments stand on.
    pub base: Option<u64>,
    /// How many increments there are now on top of a full epoch.
    pub increments: usize,
    /// Its processes.
    pub processes: usize,
    /// Bytes of all their areas.
    pub image_bytes: u64,
    /// Bytes of the data files.
    pub file_bytes: u64,
    /// Chunks in the data files.
    pub stored_chunks: u64,
    /// Chunks of all images.
    pub chunks: u64,
}

/// What an increment stands on.
struct Under {
    epoch: u64,
    tables: String,
}

/// Files that got their names, to be removed again where what they are for fails.
struct Undo<'a> {
    directory: &'a Directory,
    names: Vec<String>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        for name in &self.names {
            // The next who writes cleans what is left.
            let _ = self.directory.remove(name);
        }
    }
}

impl Directory {
    /// Writes an epoch of the job: the images of all of its processes.
    ///
    /// It is an increment on the last epoch that is there, for each process for which that can be (see
    /// [`super`]). What is there stays as it is, whatever happens.
    ///
    /// # Errors
    /// `EINVAL` where the images are not those of this job and epoch; `EEXIST` where there is an epoch of this count, or a larger
    /// one, already; whatever is in the way of reading an image, or of writing the file that is named. Where
    /// only syncing the manifest's name has failed, the epoch may exist.
    pub fn flush(
        &self,
        epoch: Epoch,
        images: &mut [&mut dyn Image],
        options: &Options,
        watcher: &mut Watcher<'_>,
    ) -> Result<Flushed> {
        options.check()?;
        check_images(self.job(), epoch, images.iter().map(|image| &**image))?;
        let lock = self.lock()?;
        if let Some(last) = self.epochs()?.last().filter(|last| **last >= epoch.count()) {
            let path = self.path().display();
            return Err(Error::new(
                libc::EEXIST,
                format!(
                    "{epoch} cannot be written: {path} has epoch {last}; to go on from an earlier one, \
                     remove those after it first"
                ),
            ));
        }
        self.clean(&lock)?;
        watcher(&Progress { step: Step::Cleaned, file: "", done: 0, total: 0 })?;
        let base = self.base(options);
        let mut undo = Undo { directory: self, names: Vec::new() };
        let mut members = Vec::new();
        for image in images {
            let under = base.as_ref().and_then(|base| self.under(base, *image));
            members.push(self.write(*image, under, options.codec, &mut undo, watcher)?);
        }
        self.commit(Manifest::new(self.job(), epoch, members), undo, watcher)
    }

    /// Makes a full epoch out of an increment and those that it stands on. It stays the same epoch.
    ///
    /// # Errors
    /// A file of its chain is damaged, or one cannot be written; then it is as it was.
    pub fn compact(&self, epoch: u64, codec: Codec, watcher: &mut Watcher<'_>) -> Result<Flushed> {
        codec.check()?;
        let lock = self.lock()?;
        self.clean(&lock)?;
        watcher(&Progress { step: Step::Cleaned, file: "", done: 0, total: 0 })?;
        let mut manifest = self.manifest(epoch)?;
        let mut undo = Undo { directory: self, names: Vec::new() };
        let mut members = Vec::new();
        let mut replaced = Vec::new();
        for member in std::mem::take(&mut manifest.members) {
            if member.base.is_none() {
                members.push(member);
                continue;
            }
            let mut image = self.image(epoch, member.process)?;
            members.push(self.write(&mut image, None, codec, &mut undo, watcher)?);
            replaced.push(member.file);
        }
        let flushed = self.commit(manifest.with(members), undo, watcher)?;
        for name in replaced {
            // It exists, and is whole; these are cleaned at the next time where they are still there.
            if let Err(error) = self.remove(&name) {
                tracing::warn!("{error}");
            }
            let _ = watcher(&Progress { step: Step::DataRemoved, file: &name, done: 0, total: 0 });
        }
        Ok(flushed)
    }

    /// The epoch that the next may stand on: none where the chain would be too long, or is damaged.
    fn base(&self, options: &Options) -> Option<Manifest> {
        let last = self.epochs().ok()?.last().copied()?;
        let short = self.manifest(last).and_then(|manifest| {
            let short = self.increments(&manifest)? < options.chain;
            Ok(short.then_some(manifest))
        });
        short.unwrap_or_else(|error| {
            tracing::warn!("nothing can stand on epoch {last}, the next is full: {error}");
            None
        })
    }

    /// What an increment of this process would stand on, where that carries it.
    fn under(&self, base: &Manifest, image: &dyn Image) -> Option<Under> {
        let member = base.members.iter().find(|it| it.process == image.stamp().process.0)?;
        match Stored::open(self, base, member) {
            Ok(stored) => stored
                .carries(image)
                .then(|| Under { epoch: base.epoch, tables: member.tables.clone() }),
            Err(error) => {
                tracing::warn!("process {} is written in full: {error}", member.process);
                None
            }
        }
    }

    /// Writes one data file, under its name.
    fn write(
        &self,
        image: &mut dyn Image,
        under: Option<Under>,
        codec: Codec,
        undo: &mut Undo<'_>,
        watcher: &mut Watcher<'_>,
    ) -> Result<Member> {
        let stamp = *image.stamp();
        let base = under.as_ref().map(|under| under.epoch);
        let name = data_name(Epoch(stamp.epoch).count(), stamp.process.0, base.is_some());
        let mut file = Aside::create(self.path(), &name)?;
        let mut told =
            |file: &str, done, total| watcher(&Progress { step: Step::Data, file, done, total });
        let written = data::write(&mut file, image, base, codec, &mut told)?;
        let bytes = file.bytes();
        let mut at = |step| watcher(&Progress { step, file: &name, done: bytes, total: bytes });
        at(Step::DataWritten)?;
        file.sync()?;
        at(Step::DataSynced)?;
        undo.names.push(name.clone());
        file.rename()?;
        at(Step::DataRenamed)?;
        Ok(member(image, under, name.clone(), &file, &written))
    }

    /// Writes the manifest of files that have their names.
    fn commit(
        &self,
        manifest: Manifest,
        mut undo: Undo<'_>,
        watcher: &mut Watcher<'_>,
    ) -> Result<Flushed> {
        // Everything that may fail because of what is there, before there is something more.
        let increments = self.increments(&manifest)?;
        let name = manifest_name(manifest.epoch);
        let json = manifest.encode();
        if json.len() > MAX_MANIFEST {
            let bytes = json.len();
            return Err(Error::invalid(format!("{name} of {bytes} bytes: at most {MAX_MANIFEST}")));
        }
        let bytes = json.len() as u64;
        let mut at = |step| watcher(&Progress { step, file: &name, done: bytes, total: bytes });
        sync_dir(self.path())?;
        at(Step::NamesSynced)?;
        let mut file = Aside::create(self.path(), &name)?;
        file.write(&json)?;
        at(Step::ManifestWritten)?;
        file.sync()?;
        at(Step::ManifestSynced)?;
        // From here on nothing is taken back: a rename that is reported as failed may have been done. Where it
        // was not, the data files are of no epoch, and the next who writes cleans them.
        undo.names.clear();
        file.rename()?;
        let _ = at(Step::ManifestRenamed);
        sync_dir(self.path())?;
        let _ = at(Step::Committed);
        let sum = |of: fn(&Member) -> u64| manifest.members.iter().map(of).sum();
        Ok(Flushed {
            epoch: manifest.epoch,
            base: manifest.base,
            increments,
            processes: manifest.members.len(),
            image_bytes: sum(|member| member.areas.iter().map(|area| area.bytes).sum()),
            file_bytes: sum(|member| member.bytes),
            stored_chunks: sum(|member| member.stored_chunks),
            chunks: sum(|member| member.chunks),
        })
    }
}

fn member(
    image: &dyn Image,
    under: Option<Under>,
    name: String,
    file: &Aside,
    written: &Written,
) -> Member {
    let stamp = image.stamp();
    Member {
        process: stamp.process.0,
        incarnation: stamp.incarnation.0,
        paused_at: stamp.paused_at,
        file: name,
        bytes: file.bytes(),
        blake3: file.hash().to_hex().to_string(),
        tables: written.tables.to_hex().to_string(),
        base: under.as_ref().map(|under| under.epoch),
        base_tables: under.map(|under| under.tables),
        windows: image.windows().len() as u64,
        chunks: image.layout().chunks() as u64,
        stored_chunks: written.stored_chunks,
        zero_chunks: written.zero_chunks,
        areas: records(image.layout()),
    }
}
