//! An image in files: a full one, and increments on top of it.

use super::data::Extent;
use super::directory::Directory;
use super::image::Image;
use super::io::ReadFile;
use super::manifest::{Manifest, Member};
use super::read::{DataFile, damaged};
use crate::epoch::Epoch;
use crate::image::{PageTable, Source, Stamp};
use crate::{Error, Layout, PAGE, Result};
use std::ops::Range;

/// Most files of a chain, all of which are open while it is read.
pub(super) const MAX_CHAIN: usize = 64;

/// One process's image of one epoch, in a directory.
///
/// Its files stay open: what is pruned meanwhile can still be read.
#[derive(Debug)]
pub struct Stored {
    /// From the epoch down to the full one. Never empty.
    files: Vec<DataFile<ReadFile>>,
}

impl Stored {
    /// Opens the image of the process that is `member` of `manifest`, with all that it stands on. Trailers
    /// and tables are checked, and that the files belong together.
    ///
    /// # Errors
    /// Names the file that is not what its manifest says, or is missing.
    pub(super) fn open(
        directory: &Directory,
        manifest: &Manifest,
        member: &Member,
    ) -> Result<Self> {
        let mut files = vec![open(directory, manifest, member)?];
        let mut top = member.clone();
        while let Some(base) = top.base {
            if files.len() == MAX_CHAIN {
                let file = directory.path().join(&member.file);
                return Err(damaged(format!(
                    "{} stands on more than {MAX_CHAIN} files",
                    file.display()
                )));
            }
            let under = directory.manifest(base).map_err(|error| {
                error.context(format_args!(
                    "the base of {}",
                    directory.path().join(&top.file).display()
                ))
            })?;
            let found = under.members.iter().find(|it| it.process == top.process);
            let found = found.filter(|it| Some(&it.tables) == top.base_tables.as_ref());
            let Some(found) = found else {
                return Err(damaged(format!(
                    "{} stands on an epoch {base} that is not the one in this directory",
                    directory.path().join(&top.file).display()
                )));
            };
            files.push(open(directory, &under, found)?);
            top = found.clone();
        }
        // What they were compared by. Of many processes, and chains of them, it would be a lot to hold.
        files[1..].iter_mut().for_each(DataFile::forget_tables);
        Ok(Stored { files })
    }

    /// The epochs whose files it is in, from its own down to the full one.
    pub(super) fn epochs(&self) -> impl Iterator<Item = u64> {
        self.files.iter().map(|file| Epoch(file.stamp().epoch).count())
    }

    /// The paths of these files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &std::path::Path> {
        self.files.iter().map(|file| file.source().path())
    }

    /// The extents of its own epoch's file.
    pub(super) fn extents(&self) -> &[Extent] {
        self.files[0].extents()
    }

    /// Whether an increment on top of it would leave out only what it has: see [`super`].
    pub(super) fn carries(&self, image: &dyn Image) -> bool {
        let top = &self.files[0];
        let epoch = Epoch(top.stamp().epoch).count();
        // A process that was restored elsewhere may have its memory at other addresses.
        let shape = |layout: &Layout| -> Vec<(u32, usize)> {
            layout.areas().iter().map(|area| (area.id, area.bytes)).collect()
        };
        let mut entries = image.pages().entries().iter().zip(top.pages().entries());
        shape(image.layout()) == shape(top.layout())
            && entries.all(|(new, old)| new.changed() > epoch || new == old)
    }
}

impl Image for Stored {
    fn stamp(&self) -> &Stamp {
        self.files[0].stamp()
    }

    fn layout(&self) -> &Layout {
        self.files[0].layout()
    }

    fn pages(&self) -> &PageTable {
        self.files[0].pages()
    }

    fn windows(&self) -> &[u8] {
        self.files[0].windows()
    }

    fn read(&mut self, chunks: Range<usize>, into: &mut [u8]) -> Result<()> {
        let mut pieces = self.layout().pieces(chunks.clone());
        let bytes = pieces.next().map_or(0, |(_, piece)| piece.len());
        assert!(pieces.next().is_none(), "chunks {chunks:?} are of more than one area");
        drop(pieces);
        assert_eq!(into.len(), bytes, "the room for chunks {chunks:?}");
        for (chunk, room) in chunks.zip(into.chunks_mut(PAGE)) {
            let entry = self.pages().entries()[chunk];
            if entry.is_zero() {
                room.fill(0);
                continue;
            }
            // The newest file that has it: the base of that one had not seen the change yet.
            let has =
                |file: &DataFile<ReadFile>| file.base().is_none_or(|base| entry.changed() > base);
            let index = self.files.iter().position(has).unwrap_or(self.files.len() - 1);
            let file = &mut self.files[index];
            if let Err(error) = file.chunk(chunk, room) {
                return Err(named(error, file.source()));
            }
            if crc32c::crc32c(room) != entry.crc() {
                let what = format!(
                    "chunk {chunk} of the image is not the one of epoch {}",
                    Epoch(self.stamp().epoch).count()
                );
                return Err(named(damaged(what), self.files[index].source()));
            }
        }
        Ok(())
    }

    fn confirm(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Opens one file, and compares it with what its manifest says.
fn open(directory: &Directory, manifest: &Manifest, member: &Member) -> Result<DataFile<ReadFile>> {
    let path = directory.path().join(&member.file);
    let source = ReadFile::open(&path)?;
    if source.bytes() as u64 != member.bytes {
        let (has, should, path) = (source.bytes(), member.bytes, path.display());
        return Err(damaged(format!("{path} has {has} bytes, and its manifest says {should}")));
    }
    let file = DataFile::open(source).map_err(|error| error.context(path.display()))?;
    let (stamp, layout) = (file.stamp(), file.layout());
    if stamp.job != *directory.job() {
        let (path, job) = (path.display(), super::manifest::job_name(&stamp.job));
        return Err(damaged(format!("{path} is of job {job}")));
    }
    let stored: u64 = file.extents().iter().map(|extent| u64::from(extent.chunks.get())).sum();
    let zeros = file.pages().entries().iter().filter(|entry| entry.is_zero()).count() as u64;
    let differs = [
        ("epoch", Epoch(stamp.epoch).count() != manifest.epoch),
        ("term", Epoch(stamp.epoch).term().0 != manifest.term),
        ("process", stamp.process.0 != member.process),
        ("incarnation", stamp.incarnation.0 != member.incarnation),
        ("time", stamp.paused_at != member.paused_at),
        ("base", file.base() != member.base),
        ("areas", *layout != member.layout()?),
        ("number of stored chunks", stored != member.stored_chunks),
        ("number of zero chunks", zeros != member.zero_chunks),
        ("length of the windows", file.windows().len() as u64 != member.windows),
        ("tables", file.tables().to_hex().as_str() != member.tables),
    ];
    if let Some((what, _)) = differs.into_iter().find(|(_, differs)| *differs) {
        let path = path.display();
        return Err(damaged(format!("{path} is not the file of its manifest: another {what}")));
    }
    Ok(file)
}

fn named(error: Error, file: &ReadFile) -> Error {
    error.context(file.path().display())
}
