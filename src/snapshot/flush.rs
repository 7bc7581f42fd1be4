//! Epochs in files: which are drained there, and going back to one when no store has anything any more.
//!
//! Rank 0 drains, in the background, what all ranks have committed: it reads every rank's epoch out of the stores
//! by RDMA READ, so no program's memory is touched and none waits. An epoch that is overwritten before all of
//! it is read is given up; the next one in turn is drained, and given twice as long: the epoch that would overwrite
//! it comes later ([`Drain::stretched`]). What became of them stands in [`Statistics`] of rank 0.

use super::{Options, Statistics};
use crate::{Error, Result};
use sojourn_snapshot::Layout;
use sojourn_snapshot::epoch::{Epoch, Member};
use sojourn_snapshot::files::{
    self, Codec, Directory, Flusher, Image, Keep, Manifest, Plan, restore,
};
use sojourn_snapshot::restore::images;
use sojourn_snapshot::session::StoreAt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How long the end of a program waits for what is being drained.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many intervals an epoch that is being drained is given before it is overwritten, at most.
const MOST_ROOM: u32 = 64;
/// Epochs of the directory that are tried, from the last one: of more than these something else is wrong.
pub(super) const MOST: usize = 8;

/// Epochs that are drained to a directory, in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush {
    /// The directory, which all ranks see: jobs that are given one directory are told apart by
    /// [`Options::job`].
    pub dir: PathBuf,
    /// Each epoch whose count is a multiple of this is drained.
    pub every: u64,
    /// Which ones stay; all of them, where there is no rule.
    pub keep: Option<Keep>,
    /// Most increments on top of a full epoch; 0 for full ones only.
    pub chain: usize,
    /// How they are compressed.
    pub codec: Codec,
}

impl Flush {
    /// Each tenth epoch to `dir`, by the rules that [`files`] has where nothing is said.
    #[must_use]
    pub fn to(dir: impl Into<PathBuf>) -> Flush {
        let files::Options { codec, chain } = files::Options::default();
        Flush { dir: dir.into(), every: 10, keep: Some(Keep::default()), chain, codec }
    }

    /// The plan of who drains.
    fn plan(&self) -> Plan {
        let options = files::Options { codec: self.codec, chain: self.chain };
        Plan { every: self.every, options, keep: self.keep }
    }

    /// The job's own directory, which must be there.
    fn open(&self, job: &[u8; 16]) -> Result<Directory> {
        Directory::open(&self.dir, job)
    }
}

/// Who drains: of rank 0 alone.
pub(super) struct Drain {
    flusher: Flusher,
    every: u64,
    /// Epochs whose turn it was while the one before was still being drained.
    skipped: AtomicU64,
    /// How many intervals an epoch that is being drained is given before it is overwritten.
    room: AtomicU32,
    options: Options,
    device: String,
    stores: Vec<StoreAt>,
    members: Vec<Member>,
}

impl Drain {
    /// Starts the thread, where the options name a directory.
    ///
    /// # Errors
    /// The directory is not there; a plan that cannot be.
    pub(super) fn start(
        options: &Options,
        device: &str,
        stores: Vec<StoreAt>,
        members: Vec<Member>,
    ) -> Result<Option<Drain>> {
        let Some(flush) = &options.flush else { return Ok(None) };
        let flusher = Flusher::start(flush.open(&options.job)?, flush.plan())?;
        Ok(Some(Drain {
            flusher,
            every: flush.every,
            skipped: AtomicU64::new(0),
            room: AtomicU32::new(1),
            options: options.clone(),
            device: device.to_owned(),
            stores,
            members,
        }))
    }

    /// All ranks have committed this epoch. Returns at once.
    pub(super) fn committed(&self, epoch: Epoch) {
        if !epoch.count().is_multiple_of(self.every) {
            return;
        }
        let (key, device) = (self.options.key.clone(), self.device.clone());
        let (stores, members) = (self.stores.clone(), self.members.clone());
        let open = move || images(&device, &key, &stores, &members, epoch);
        if !self.flusher.offer_with(epoch, open) {
            tracing::debug!("{epoch} is not drained: the one before still is");
            self.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The interval until the epoch after the next, which overwrites what is being drained, if anything is.
    pub(super) fn stretched(&self, interval: Duration) -> Duration {
        match self.flusher.draining() {
            Some(_) => interval.saturating_mul(self.room.load(Ordering::Relaxed)),
            None => interval,
        }
    }

    /// Adds what became of epochs since this was last asked.
    pub(super) fn tell(&self, statistics: &mut Statistics) {
        let skipped = self.skipped.swap(0, Ordering::Relaxed);
        if skipped > 0 {
            statistics.flushes_given_up += skipped;
            statistics.flush_why = Some("the epoch before it was still being drained".to_owned());
        }
        let drained = self.flusher.outcomes();
        let overwritten = |one: &files::Drained| {
            one.flushed.as_ref().is_err_and(|error| error.errno() == libc::ESTALE)
        };
        if drained.iter().any(overwritten) {
            self.give_more_room();
        }
        add(drained, statistics);
    }

    fn give_more_room(&self) {
        let room = self.room.load(Ordering::Relaxed);
        if room == 1 {
            let dir = self.options.flush.as_ref().map(|flush| flush.dir.display().to_string());
            tracing::warn!(
                "an epoch was overwritten before all of it was drained to {}: from here on the interval is \
                 longer while one is being drained",
                dir.unwrap_or_default()
            );
        }
        self.room.store((room * 2).min(MOST_ROOM), Ordering::Relaxed);
    }

    /// Waits for what is being drained, but not for ever, and ends.
    pub(super) fn finish(self, statistics: &mut Statistics) {
        self.tell(statistics);
        add(self.flusher.finish(PATIENCE), statistics);
    }
}

fn add(drained: Vec<files::Drained>, statistics: &mut Statistics) {
    for one in drained {
        match one.flushed {
            Ok(flushed) => {
                statistics.flushed += 1;
                statistics.last_flushed = Some(flushed.epoch);
            }
            Err(error) => {
                statistics.flushes_given_up += 1;
                statistics.flush_why = Some(format!("{}: {error}", one.epoch));
            }
        }
    }
}

/// What the directory has for a job to go back to: rank 0 looks, and tells the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Saved {
    /// The last ones that can be restored as far as their tables tell, the last first.
    pub(super) epochs: Vec<Epoch>,
    /// What is wrong with the last one that cannot.
    pub(super) why: Option<String>,
}

impl Saved {
    /// Looks, and makes the directory where there is none.
    ///
    /// # Errors
    /// It cannot be made, or read.
    pub(super) fn look(options: &Options, members: &[Member]) -> Result<Saved> {
        let Some(flush) = &options.flush else { return Ok(Saved::default()) };
        let directory = Directory::create(&flush.dir, &options.job)?;
        let mut saved = Saved::default();
        for count in directory.epochs()?.into_iter().rev() {
            let looked = directory.probe(count).and_then(|()| {
                let manifest = directory.manifest(count)?;
                ours(&manifest, members)?;
                Ok(manifest.number())
            });
            match looked {
                Ok(epoch) => saved.epochs.push(epoch),
                Err(error) => {
                    tracing::warn!("{}: {error}", flush.dir.display());
                    saved.why = saved.why.or(Some(error.to_string()));
                }
            }
            if saved.epochs.len() == MOST {
                break;
            }
        }
        // Where terms tell another order than counts, they are right.
        saved.epochs.sort_unstable_by(|one, other| other.cmp(one));
        Ok(saved)
    }

    /// There is nothing in files, sound or not.
    pub(super) fn is_empty(&self) -> bool {
        self.epochs.is_empty() && self.why.is_none()
    }

    /// The last one, where the stores have nothing that is as late.
    pub(super) fn later_than(&self, held: Option<Epoch>) -> Option<Epoch> {
        self.epochs.first().copied().filter(|epoch| held.is_none_or(|held| *epoch > held))
    }

    /// One that could not be read after all.
    pub(super) fn is_of_no_use(&mut self, epoch: Epoch, why: &str) {
        tracing::warn!("{epoch} in files is of no use: {why}");
        self.epochs.retain(|it| *it != epoch);
        self.why.get_or_insert_with(|| format!("{epoch}: {why}"));
    }
}

/// Whether an epoch is of just these processes.
fn ours(manifest: &Manifest, members: &[Member]) -> Result<()> {
    let then: Vec<u64> = manifest.members.iter().map(|it| u64::from(it.process)).collect();
    if then.iter().eq(members.iter().map(|member| &member.0)) {
        return Ok(());
    }
    let (epoch, then, now) = (manifest.epoch, then.len(), members.len());
    Err(Error::invalid(format!("epoch {epoch} is of {then} processes, and this job has {now}")))
}

/// Reads one rank's part of an epoch of the directory, and returns its windows.
///
/// # Safety
/// The areas of `layout` are mapped, writable, and used by nobody else until this returns.
///
/// # Errors
/// `EINVAL` where the epoch is of other areas; a file that is damaged or missing, by name.
pub(super) unsafe fn read(
    options: &Options,
    epoch: Epoch,
    own: Member,
    layout: &Layout,
) -> Result<Vec<u8>> {
    let nothing = || Error::new(libc::ENOENT, "this rank was given no directory to restore from");
    let directory = options.flush.as_ref().ok_or_else(nothing)?.open(&options.job)?;
    let process = u32::try_from(own.0).unwrap_or(u32::MAX);
    let mut image = directory.image(epoch.count(), process)?;
    if image.stamp().epoch != epoch.0 {
        let (path, is) = (directory.path().display(), Epoch(image.stamp().epoch));
        return Err(Error::new(libc::EBADMSG, format!("{path} has {is}, and not {epoch}")));
    }
    let rooms = layout.areas().iter().map(|area| {
        // SAFETY: the caller's promise: it is mapped, writable and nobody else's meanwhile. Areas do not overlap.
        let room = unsafe { std::slice::from_raw_parts_mut(area.addr as *mut u8, area.bytes) };
        (area.id, room)
    });
    restore(&mut image, rooms.collect(), &mut |_, _| Ok(()))?;
    Ok(image.windows().to_vec())
}

/// Removes what was drained after the epoch that the job goes on from: those counts are dealt anew.
pub(super) fn forget_after(options: &Options, epoch: Epoch) {
    let Some(flush) = &options.flush else { return };
    let removed = flush
        .open(&options.job)
        .and_then(|directory| directory.remove_after(epoch.count(), &mut files::unwatched));
    match removed {
        Ok(gone) if gone.is_empty() => {}
        Ok(gone) => {
            tracing::warn!("epochs {gone:?} after {epoch} are removed: {}", flush.dir.display())
        }
        // Draining says so again, each time.
        Err(error) => tracing::warn!("epochs after {epoch} cannot be removed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{STORE_KEY_FILE, STORES};
    use sojourn_fabric::names::JobKey;
    use sojourn_snapshot::epoch::Term;
    use std::net::TcpListener;

    /// Promise: what is not drained, because stores are gone or another still is, is told, and nobody waits for it.
    #[test]
    fn what_is_not_drained_is_told_and_why() {
        let home = tempfile::tempdir().unwrap();
        let key = home.path().join("key");
        JobKey::generate().unwrap().write(&key).unwrap();
        // It lets connect, and never answers.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let stores = format!("a=tcp:{}", mute.local_addr().unwrap());
        let get = |name: &str| match name {
            STORES => Some(stores.clone()),
            STORE_KEY_FILE => Some(key.to_str().unwrap().to_owned()),
            _ => None,
        };
        let mut options = Options::read(get).unwrap().unwrap();
        options.flush = Some(Flush { every: 2, ..Flush::to(home.path().join("files")) });
        let members = [Member(1)];
        assert_eq!(Saved::look(&options, &members).unwrap(), Saved::default());
        let stores = super::super::restore::stores(&options);
        let drain = Drain::start(&options, "soft0", stores, members.to_vec()).unwrap().unwrap();
        let epoch = |count| Epoch::new(Term(1), count);
        for count in 1..=4 {
            drain.committed(epoch(count));
        }
        let mut statistics = Statistics::default();
        drain.tell(&mut statistics);
        assert_eq!(statistics.flushes_given_up, 1, "epoch 4: {statistics:?}");
        // What is being drained is given more time after one was overwritten, but not without end.
        let second = Duration::from_secs(1);
        assert_eq!(drain.stretched(second), second);
        (0..9).for_each(|_| drain.give_more_room());
        assert_eq!(drain.stretched(second), second * MOST_ROOM);
        drop(mute);
        assert!(drain.flusher.drained(std::time::Instant::now() + PATIENCE));
        assert_eq!(drain.stretched(second), second, "nothing is being drained");
        drain.finish(&mut statistics);
        assert_eq!((statistics.flushed, statistics.flushes_given_up), (0, 2));
        let why = statistics.flush_why.unwrap();
        assert!(why.starts_with("epoch 2 (term 1): ") && why.contains("process 1"), "{why}");
    }
}
