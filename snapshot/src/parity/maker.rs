//! The work of a store that holds a share of parity.

use super::distant::Distant;
use super::task::{Made, Task};
use super::whole::{Trace, Whole, process_of};
use crate::epoch::{Epoch, Slot};
use crate::image::WORD_AT;
use crate::memory::Mapping;
use crate::redundancy::Image;
use crate::redundancy::gather::{self, Gather};
use crate::{Error, PAGE, Result, store};
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_fabric::virt::ProtectionDomain;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A share, from one epoch to the next: its two slots, and the connections to where images are.
pub(crate) struct Maker {
    device: String,
    key: JobKey,
    task: Task,
    memory: Arc<Mapping>,
    pd: Option<ProtectionDomain>,
    /// For each slot the work, and what it was last made of.
    slots: [(Gather, Option<Vec<Trace>>); 2],
    /// For each member the store that its image was read from last, by its index in the task.
    distants: Vec<Option<(usize, Distant)>>,
}

impl Maker {
    /// The maker of a share into `memory`, which has room for it twice.
    ///
    /// # Errors
    /// `EINVAL` for a task that makes no sense.
    pub(crate) fn new(
        device: &str,
        key: &JobKey,
        task: &Task,
        memory: Arc<Mapping>,
    ) -> Result<Maker> {
        task.check()?;
        let Task { scheme, group, index, members, .. } = task;
        let gather = || Gather::new(*scheme, *group, usize::from(*index), members.len());
        let slots = [(gather()?, None), (gather()?, None)];
        Ok(Maker {
            device: device.to_owned(),
            key: key.clone(),
            task: task.clone(),
            memory,
            pd: None,
            slots,
            distants: members.iter().map(|_| None).collect(),
        })
    }

    /// Whether it is of that share.
    pub(crate) fn is_of(&self, task: &Task) -> bool {
        self.task.is_same(task)
    }

    /// Makes the share of `epoch` in this slot, until `stop`.
    ///
    /// # Errors
    /// `EAGAIN` where a member has no image of it, or not any more; `ECANCELED` where it was stopped; what was in
    /// the way of reading. The slot is no epoch then.
    pub(crate) fn make(
        &mut self,
        task: &Task,
        epoch: Epoch,
        slot: Slot,
        stop: &AtomicBool,
    ) -> Result<Made> {
        let since = Instant::now();
        if self.task.stores != task.stores {
            // Their indices are others.
            self.distants.iter_mut().for_each(|it| *it = None);
        }
        self.task = task.clone();
        let start = slot.index() * self.memory.length() / 2;
        let word = start + WORD_AT;
        self.memory.write_word(word, Epoch::NONE.0);

        let wholes = (0..self.task.members.len()).map(|member| self.open(member, epoch));
        let wholes = wholes.collect::<Result<Vec<Whole>>>()?;
        let (gather, before) = &mut self.slots[slot.index()];
        for (member, whole) in wholes.iter().enumerate() {
            let before = before.as_ref().and_then(|all| all.get(member)).copied();
            gather.mark(&whole.changed_since(before));
        }
        let distants: Vec<&Distant> =
            self.distants.iter().flatten().map(|(_, distant)| distant).collect();
        let mut images = Images { wholes: &wholes, distants: &distants, stop, read: 0 };
        let room = self.memory.length() / 2 - PAGE;
        let mut share = Share { memory: &self.memory, start: start + PAGE, room };
        let made = gather.make(epoch.0, &mut images, &mut share)?;
        *before = Some(wholes.iter().map(Whole::trace).collect());
        self.memory.write_word(word, epoch.0);
        Ok(Made { computed: made.computed as u64, read: images.read, took: since.elapsed() })
    }

    /// The member's image of this epoch, wherever it is.
    fn open(&mut self, member: usize, epoch: Epoch) -> Result<Whole> {
        let whose = self.task.members[member];
        let first = usize::from(self.task.first[member]);
        let last = self.distants[member].as_ref().map(|(store, _)| *store);
        let all = 0..self.task.stores.len();
        let order = last.into_iter().chain([first]).chain(all);
        let mut tried: Vec<usize> = vec![];
        let mut wrong: Option<Error> = None;
        for store in order {
            // The connection of before may be broken, and the store be there.
            let open = self.distants[member].take_if(|(of, _)| *of == store);
            if open.is_none() && tried.contains(&store) {
                continue;
            }
            let is_new = open.is_none();
            let distant = match open {
                Some((_, distant)) => Ok(distant),
                None => self.connect(store, member),
            };
            let found =
                distant.and_then(|distant| Ok((Whole::open(&distant, whose, epoch)?, distant)));
            match found {
                Ok((Some(whole), distant)) => {
                    self.distants[member] = Some((store, distant));
                    return Ok(whole);
                }
                Ok((None, _)) => tried.push(store),
                Err(error) => {
                    if is_new {
                        tried.push(store);
                    }
                    if error.errno() != libc::ENOENT {
                        wrong = wrong.or(Some(error));
                    }
                }
            }
        }
        let process = process_of(whose);
        let why = wrong.map(|error| format!(" ({error})")).unwrap_or_default();
        let text = format!("parity is given up: no store has {epoch} of {process}{why}");
        Err(Error::new(libc::EAGAIN, text))
    }

    fn connect(&mut self, store: usize, member: usize) -> Result<Distant> {
        let pd = match &self.pd {
            Some(pd) => pd.clone(),
            None => self.pd.insert(store::device(&self.device)?.alloc_pd()?).clone(),
        };
        let at = Endpoint::parse(&self.task.stores[store])?;
        Distant::open(&pd, &self.key, &at, self.task.members[member])
    }
}

/// The images of the group, as they were opened.
struct Images<'a> {
    wholes: &'a [Whole],
    distants: &'a [&'a Distant],
    stop: &'a AtomicBool,
    read: u64,
}

impl gather::Source for Images<'_> {
    fn image(&mut self, member: usize, _: u64) -> Result<Option<Image>> {
        let whole = &self.wholes[member];
        Ok(whole.is_there(self.distants[member])?.then(|| whole.image()))
    }

    fn read(&mut self, member: usize, at: u64, into: &mut [u8]) -> Result<bool> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(libc::ECANCELED, "parity is given up: somebody else asks"));
        }
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.wholes[member].read(self.distants[member], at, into, &mut self.read)
    }
}

/// The memory of one slot, behind the page of its word.
struct Share<'a> {
    memory: &'a Mapping,
    start: usize,
    room: usize,
}

impl gather::Target for Share<'_> {
    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        if at.checked_add(bytes.len()).is_none_or(|end| end > self.room) {
            let (wanted, has) = (bytes.len(), self.room);
            let text = format!("an image is longer than was said: {wanted} bytes at {at} of {has}");
            return Err(Error::new(libc::EMSGSIZE, text));
        }
        self.memory.write(self.start + at, bytes);
        Ok(())
    }
}
