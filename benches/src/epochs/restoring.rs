//! Memory from a store, at once or when it is touched; and a copy of as much into fresh memory.

use super::field::Field;
use super::part::{DEVICE, StoreProcess};
use super::session::MEMBER;
use sojourn_fabric::{Error, Result};
use sojourn_snapshot::epoch::RecoveryLimits;
use sojourn_snapshot::restore::{RecoverOptions, recover, recover_lazily};
use sojourn_snapshot::{Layout, Memory, PAGE};
use std::time::{Duration, Instant};

/// Words of a page.
const WORDS: usize = PAGE / size_of::<u64>();

/// What a lazy restore took.
#[derive(Clone, Copy, Debug)]
pub struct Lazily {
    /// Until it had returned, and a page in the middle was read.
    pub first: Duration,
    /// Until all was there.
    pub all: Duration,
}

/// A store that holds an epoch of a field.
pub struct Restoring {
    field: Field,
    store: StoreProcess,
    life: u32,
}

impl Restoring {
    /// What `Epochs::end` has left.
    #[must_use]
    pub fn new((field, store): (Field, StoreProcess)) -> Self {
        Restoring { field, store, life: 1 }
    }

    fn options(&mut self, lanes: usize) -> RecoverOptions {
        self.life += 1;
        RecoverOptions {
            device: DEVICE.into(),
            key: self.store.key().clone(),
            member: MEMBER,
            life: self.life,
            stores: vec![self.store.at()],
            lanes,
            fresh: true,
            limits: RecoveryLimits::default(),
        }
    }

    fn fresh(&self) -> Result<(Memory<u64>, Layout)> {
        let memory = Memory::new(self.field.words().len())?;
        let layout = Layout::new([memory.area(self.field.area().id)])?;
        Ok((memory, layout))
    }

    fn same(&self, memory: &[u64]) -> Result<()> {
        if memory == self.field.words() {
            return Ok(());
        }
        Err(Error::new(libc::EIO, "what was restored is not what was there"))
    }

    /// How long it takes to restore all into fresh memory: from asking the store to the last page.
    ///
    /// # Errors
    /// Where it is not what was there.
    pub fn all(&mut self, lanes: usize) -> Result<Duration> {
        let (memory, layout) = self.fresh()?;
        let options = self.options(lanes);
        let start = Instant::now();
        // SAFETY: memory that nobody else uses.
        unsafe { recover(&options, |_| Ok(layout.clone())) }?;
        let took = start.elapsed();
        self.same(&memory)?;
        Ok(took)
    }

    /// The same, when it is touched.
    ///
    /// # Errors
    /// As [`Self::all`].
    pub fn lazily(&mut self) -> Result<Lazily> {
        let (memory, layout) = self.fresh()?;
        let options = self.options(1);
        let start = Instant::now();
        // SAFETY: fresh private memory, which outlives the restore.
        let (_, lazy) = unsafe { recover_lazily(&options, |_| Ok(layout.clone()), |_| ()) }?;
        let middle = memory.len() / 2;
        if std::hint::black_box(&memory)[middle] != self.field.words()[middle] {
            return Err(Error::new(libc::EIO, "the first page is not what was there"));
        }
        let first = start.elapsed();
        lazy.finish()?;
        let all = start.elapsed();
        self.same(&memory)?;
        Ok(Lazily { first, all })
    }

    /// How long a copy of as much takes into fresh memory, by so many threads.
    ///
    /// # Errors
    /// Where there is no such memory.
    pub fn copy(&self, threads: usize) -> Result<Duration> {
        let (mut memory, _) = self.fresh()?;
        let from = self.field.words();
        let each = from.len().div_ceil(threads).next_multiple_of(WORDS);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let mut jobs = memory.chunks_mut(each).zip(from.chunks(each));
            let own = jobs.next();
            for (to, from) in jobs {
                scope.spawn(move || to.copy_from_slice(from));
            }
            if let Some((to, from)) = own {
                to.copy_from_slice(from);
            }
        });
        let took = start.elapsed();
        self.same(&memory)?;
        Ok(took)
    }
}
