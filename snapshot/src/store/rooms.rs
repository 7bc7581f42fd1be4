//! The memory of a store, and the doors to it: what [`Compartments`](crate::epoch::Compartments) decides is
//! done here. `L` names a connection.

use super::door::{Door, May};
use super::message::Place;
use super::parity::Making;
use crate::epoch::{Epoch, Incarnation, Member, Room, Slot};
use crate::image::{self, Source, WORD_AT};
use crate::memory::{Mapping, Portion};
use crate::parity::{Made, Task};
use crate::{Error, PAGE, Result};
use sojourn_fabric::names::JobKey;
use sojourn_fabric::virt::{Context, Endpoint};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

struct Writer<L> {
    link: L,
    incarnation: Incarnation,
    door: Door,
}

/// A slot that is being held against its checksums.
struct Verifying {
    slot: Slot,
    word: Epoch,
    outcome: Arc<OnceLock<Result<()>>>,
}

struct Compartment<L> {
    memory: Arc<Mapping>,
    /// The last that was granted, and older ones that are not past their barrier.
    writers: Vec<Writer<L>>,
    readers: Vec<(L, Door)>,
    verifying: Option<Verifying>,
    /// Of one that holds parity.
    making: Option<Making>,
}

impl<L> Compartment<L> {
    fn slot(&self, slot: Slot) -> Portion<'_> {
        half(&self.memory, slot)
    }
}

/// One of the two slots that lie in `memory` one behind the other.
fn half(memory: &Mapping, slot: Slot) -> Portion<'_> {
    let bytes = memory.length() / 2;
    memory.part(slot.index() * bytes, bytes)
}

/// All compartments of a store.
pub(super) struct Rooms<L> {
    context: Context,
    all: BTreeMap<Member, Compartment<L>>,
}

impl<L: Copy + PartialEq> Rooms<L> {
    pub(super) fn new(context: Context) -> Self {
        Rooms { context, all: BTreeMap::new() }
    }

    /// A door for who was granted the compartment.
    pub(super) fn let_in(
        &mut self,
        link: L,
        member: Member,
        incarnation: Incarnation,
        peers: &[Endpoint],
    ) -> Result<(Place, Vec<Vec<u8>>)> {
        let it = self.all.get_mut(&member).ok_or_else(|| nothing(member))?;
        // The same one once more: over another connection, or with other queue pairs.
        it.writers.retain(|writer| writer.incarnation != incarnation);
        let door = Door::open(&self.context, &it.memory, May::Write, peers)?;
        let answer = (place(&it.memory, &door), door.ends()?);
        it.writers.push(Writer { link, incarnation, door });
        Ok(answer)
    }

    /// A door for who only reads.
    pub(super) fn let_look(
        &mut self,
        link: L,
        member: Member,
        peers: &[Endpoint],
    ) -> Result<(Place, Vec<Vec<u8>>)> {
        let it = self.all.get_mut(&member).ok_or_else(|| nothing(member))?;
        let door = Door::open(&self.context, &it.memory, May::Read, peers)?;
        let answer = (place(&it.memory, &door), door.ends()?);
        it.readers.push((link, door));
        Ok(answer)
    }

    /// What has become of the share of parity of an epoch, in this slot; `None` while it is made.
    ///
    /// # Errors
    /// There is no such compartment.
    pub(super) fn make_parity(
        &mut self,
        member: Member,
        wanted: (Incarnation, Epoch),
        slot: Slot,
        task: &Task,
        by: (&str, &JobKey),
    ) -> Result<Option<Result<Made>>> {
        let it = self.all.get_mut(&member).ok_or_else(|| nothing(member))?;
        let making = it.making.get_or_insert_with(Making::new);
        Ok(making.ask(wanted, slot, task, &it.memory, by))
    }

    /// Whether there is a writer who is connected.
    pub(super) fn is_written(&self, member: Member) -> bool {
        self.all.get(&member).is_some_and(|it| !it.writers.is_empty())
    }

    /// A connection has ended, and its doors with it.
    pub(super) fn closed(&mut self, link: L) {
        for it in self.all.values_mut() {
            it.readers.retain(|(of, _)| *of != link);
            it.writers.retain(|writer| writer.link != link);
        }
    }
}

fn nothing(member: Member) -> Error {
    Error::new(libc::ENOENT, format!("there is nothing of process {member}"))
}

fn place(memory: &Mapping, door: &Door) -> Place {
    Place { addr: memory.base().as_ptr() as u64, rkey: door.rkey() }
}

impl<L: Copy + PartialEq> Room for Rooms<L> {
    fn make(&mut self, member: Member, bytes: u64) -> std::result::Result<(), String> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let memory = Arc::new(Mapping::new(bytes).map_err(|error| error.to_string())?);
        let (writers, readers) = (vec![], vec![]);
        let (verifying, making) = (None, None);
        self.all.insert(member, Compartment { memory, writers, readers, verifying, making });
        Ok(())
    }

    fn fence(&mut self, member: Member, incarnation: Incarnation) {
        let Some(it) = self.all.get_mut(&member) else { return };
        it.making.iter().for_each(Making::stop);
        let writers = it.writers.iter_mut();
        writers.filter(|it| it.incarnation == incarnation).for_each(|it| it.door.shut());
    }

    fn is_fenced(&mut self, member: Member, incarnation: Incarnation) -> bool {
        let Some(it) = self.all.get_mut(&member) else { return true };
        it.writers.retain_mut(|it| it.incarnation != incarnation || !it.door.is_shut());
        // What is made is made for the last that was let in.
        let made = it.making.as_mut().is_none_or(Making::is_idle);
        made && it.writers.iter().all(|it| it.incarnation != incarnation)
    }

    fn word(&self, member: Member, slot: Slot) -> Epoch {
        let mut word = [0; 8];
        if let Some(it) = self.all.get(&member) {
            // A slot is at least a page, so this does not fail.
            let _ = it.slot(slot).read(WORD_AT, &mut word);
        }
        Epoch(u64::from_le_bytes(word))
    }

    fn verify(&mut self, member: Member, slot: Slot) -> Option<std::result::Result<(), String>> {
        let word = self.word(member, slot);
        let Some(it) = self.all.get_mut(&member) else { return Some(Err("it is gone".into())) };
        match &it.verifying {
            Some(now) if (now.slot, now.word) == (slot, word) => {
                let outcome = now.outcome.get()?.clone();
                it.verifying = None;
                Some(outcome.map_err(|error| error.to_string()))
            }
            // One that nobody waits for any more ends by itself.
            _ => {
                let outcome = Arc::new(OnceLock::new());
                let (memory, tell) = (Arc::clone(&it.memory), Arc::clone(&outcome));
                let work = move || {
                    // Nobody else sets it.
                    let _ = tell.set(check(&half(&memory, slot)));
                };
                let name = "sj-verify".to_owned();
                if let Err(error) = std::thread::Builder::new().name(name).spawn(work) {
                    return Some(Err(format!("no thread to verify it: {error}")));
                }
                it.verifying = Some(Verifying { slot, word, outcome });
                None
            }
        }
    }

    fn free(&mut self, member: Member) {
        self.all.remove(&member);
    }
}

/// Whether a slot is whole, with every chunk.
fn check(from: &Portion<'_>) -> Result<()> {
    let slot = image::Slot::open(from)?;
    for (area, shape) in slot.layout().areas().iter().enumerate() {
        let own = slot.layout().chunks_of(area);
        for chunk in own.clone() {
            let entry = &slot.pages().entries()[chunk];
            let bytes = (shape.bytes - (chunk - own.start) * PAGE).min(PAGE);
            if !entry.is_zero() && from.crc(slot.geometry().chunk_at(chunk), bytes) != entry.crc() {
                let mut there = vec![0; bytes];
                from.read(slot.geometry().chunk_at(chunk), &mut there)?;
                slot.check(chunk, &there)?;
            }
        }
    }
    Ok(slot.confirm(from)?)
}
