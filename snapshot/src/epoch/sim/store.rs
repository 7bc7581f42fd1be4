//! A store: its memory, its queue pairs, and its machine.

use super::Broken;
use crate::epoch::{Compartments, Epoch, Incarnation, Member, Room, Slot, StoreId};
use sojourn_logging::sim::Time;
use std::collections::{BTreeMap, BTreeSet};

/// A chunk: two halves that land one after the other. A value is written by a program once.
pub(super) type Chunk = [u64; 2];
/// The memory of a process.
pub(super) type Image = Vec<Chunk>;

/// What is written.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    Half { chunk: usize, half: usize, value: u64 },
    Table(Image),
    Header(Epoch),
    Word(Epoch),
}

#[derive(Clone, Debug, Default)]
pub(super) struct SlotMemory {
    pub(super) word: Epoch,
    pub(super) header: Epoch,
    /// Stands for the checksums.
    pub(super) table: Image,
    pub(super) data: Image,
    /// Chunks whose first half was damaged.
    pub(super) damaged: BTreeSet<usize>,
}

impl SlotMemory {
    /// What it holds, held against its checksums.
    pub(super) fn read(&self, epoch: Epoch) -> Result<Image, String> {
        if self.word != epoch || self.header != epoch {
            return Err(format!("its word is {}, its header {}", self.word, self.header));
        }
        if self.table != self.data {
            return Err("a chunk does not have its checksum".to_owned());
        }
        Ok(self.data.clone())
    }

    fn land(&mut self, payload: Payload) {
        match payload {
            Payload::Half { chunk, half, value } => {
                self.data[chunk][half] = value;
                if half == 0 {
                    self.damaged.remove(&chunk);
                }
            }
            Payload::Table(image) => self.table = image,
            Payload::Header(epoch) => self.header = epoch,
            Payload::Word(epoch) => self.word = epoch,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qp {
    Up,
    /// At ERR, before the barrier: some more may land.
    Err,
    /// Past it, or something was dropped.
    Down,
}

/// What a store's process has beside its machine.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    pub(super) slots: BTreeMap<Member, [SlotMemory; 2]>,
    pub(super) qps: BTreeMap<(Member, Incarnation), Qp>,
    /// Queue pairs that have gone to ERR just now.
    pub(super) fenced: Vec<(Member, Incarnation)>,
    chunks: usize,
    broken: Option<Broken>,
}

impl Room for Shelf {
    fn make(&mut self, member: Member, _: u64) -> Result<(), String> {
        let slot = SlotMemory { data: vec![[0; 2]; self.chunks], ..SlotMemory::default() };
        self.slots.insert(member, [slot.clone(), slot]);
        Ok(())
    }

    fn fence(&mut self, member: Member, incarnation: Incarnation) {
        if self.broken == Some(Broken::NoFencing) {
            return;
        }
        if let Some(qp) = self.qps.get_mut(&(member, incarnation)) {
            if *qp == Qp::Up {
                *qp = Qp::Err;
            }
            self.fenced.push((member, incarnation));
        }
    }

    fn is_fenced(&mut self, member: Member, incarnation: Incarnation) -> bool {
        if matches!(self.broken, Some(Broken::NoFencing | Broken::NoBarrier)) {
            return true;
        }
        self.qps.get(&(member, incarnation)).is_none_or(|qp| *qp == Qp::Down)
    }

    fn word(&self, member: Member, slot: Slot) -> Epoch {
        self.slots.get(&member).map_or(Epoch::NONE, |slots| slots[slot.index()].word)
    }

    fn verify(&mut self, member: Member, slot: Slot) -> Option<Result<(), String>> {
        let slot = &self.slots.get(&member)?[slot.index()];
        Some(slot.read(slot.word).map(|_| ()))
    }

    fn free(&mut self, member: Member) {
        self.slots.remove(&member);
    }
}

/// A store.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) id: StoreId,
    pub(super) alive: bool,
    /// Nobody reaches it until then.
    pub(super) back_at: Time,
    pub(super) machine: Compartments,
    pub(super) shelf: Shelf,
}

impl Store {
    pub(super) fn new(id: StoreId, chunks: usize, broken: Option<Broken>) -> Self {
        Store {
            id,
            alive: true,
            back_at: 0,
            machine: Compartments::new(u64::MAX),
            shelf: Shelf { chunks, broken, ..Shelf::default() },
        }
    }

    pub(super) fn reachable(&self, now: Time) -> bool {
        self.alive && now >= self.back_at
    }

    pub(super) fn slot(&self, member: Member, slot: Slot) -> Option<&SlotMemory> {
        Some(&self.shelf.slots.get(&member)?[slot.index()])
    }

    /// The slot that holds an epoch of a process.
    pub(super) fn holder(&self, member: Member, epoch: Epoch) -> Option<&SlotMemory> {
        let slots = self.shelf.slots.get(&member).filter(|_| self.alive)?;
        slots.iter().find(|slot| slot.word == epoch && epoch.is_some())
    }

    /// A WRITE comes. Whether it has landed.
    pub(super) fn land(
        &mut self,
        member: Member,
        incarnation: Incarnation,
        slot: Slot,
        payload: Payload,
        edge: bool,
    ) -> bool {
        let Some(qp) = self.shelf.qps.get_mut(&(member, incarnation)).filter(|_| self.alive) else {
            return false;
        };
        match *qp {
            Qp::Up => {}
            Qp::Err if edge => {}
            Qp::Err | Qp::Down => {
                *qp = Qp::Down;
                return false;
            }
        }
        let Some(slots) = self.shelf.slots.get_mut(&member) else { return false };
        slots[slot.index()].land(payload);
        true
    }
}
