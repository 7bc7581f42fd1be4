//! The store's machine: whose compartment is whose, and what is noted about it.

use super::{Answer, Epoch, Holding, Incarnation, Member, Request, Slot};
use std::collections::BTreeMap;

/// Most compartments of one store. Bounds what a job of mistakes can make it remember.
pub const MAX_COMPARTMENTS: usize = 4096;

/// What a store's process does around its memory and queue pairs.
pub trait Room {
    /// Sets memory aside for a compartment, all of it zero.
    ///
    /// # Errors
    /// Why there is none.
    fn make(&mut self, member: Member, bytes: u64) -> Result<(), String>;
    /// The queue pair of this incarnation to ERR. Returns at once.
    fn fence(&mut self, member: Member, incarnation: Incarnation);
    /// Whether that queue pair is past its barrier: nothing of it lands any more. True where there is none.
    fn is_fenced(&mut self, member: Member, incarnation: Incarnation) -> bool;
    /// The word of a slot as it stands in memory.
    fn word(&self, member: Member, slot: Slot) -> Epoch;
    /// Holds a slot against its checksums; `None` while that takes its time.
    fn verify(&mut self, member: Member, slot: Slot) -> Option<Result<(), String>>;
    /// Lets go of a compartment's memory. Called only past the barrier.
    fn free(&mut self, member: Member);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Compartment {
    bytes: u64,
    /// The newest that has asked.
    incarnation: Incarnation,
    /// It may write: there is a queue pair.
    granted: bool,
    /// An older one that is not past its barrier.
    fencing: Option<Incarnation>,
    committed: Epoch,
}

/// The compartments of a store.
#[derive(Clone, Debug, Hash)]
pub struct Compartments {
    all: BTreeMap<Member, Compartment>,
    budget: u64,
}

impl Compartments {
    /// None yet; at most `budget` bytes of them.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Compartments { all: BTreeMap::new(), budget }
    }

    /// Bytes of all compartments.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.all.values().map(|it| it.bytes).sum()
    }

    /// Whose there are.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.all.keys().copied()
    }

    /// What there is of a process.
    #[must_use]
    pub fn holding(&self, member: Member, room: &dyn Room) -> Option<Holding> {
        let it = self.all.get(&member)?;
        let words = Slot::BOTH.map(|slot| room.word(member, slot));
        let Compartment { incarnation, bytes, committed, .. } = *it;
        Some(Holding { incarnation, bytes, committed, words })
    }

    /// Which slot of each of these holds `epoch`; `None` unless all have it. Who computes a parity asks this
    /// before and after it has read: so it never is of slots of two epochs.
    #[must_use]
    pub fn slots_of(&self, members: &[Member], epoch: Epoch, room: &dyn Room) -> Option<Vec<Slot>> {
        members.iter().map(|member| self.holding(*member, room)?.slot_of(epoch)).collect()
    }

    /// Answers a request. All may come twice.
    pub fn handle(&mut self, member: Member, request: Request, room: &mut dyn Room) -> Answer {
        match request {
            Request::Tell => Answer::Told(self.holding(member, room)),
            Request::Claim { incarnation } => match self.supersede(member, incarnation, room) {
                Ok(()) => Answer::Told(self.holding(member, room)),
                Err(answer) => answer,
            },
            Request::Grant { incarnation, bytes, committed } => {
                self.grant(member, incarnation, bytes, committed, room)
            }
            Request::Check { incarnation, epoch } => self.check(member, incarnation, epoch, room),
            Request::Note { incarnation, epoch } => self.note(member, incarnation, epoch, room),
            Request::Release { incarnation } => self.release(member, incarnation, room),
        }
    }

    /// `incarnation` is the newest, and nothing of an older one lands any more; or what to answer.
    fn supersede(
        &mut self,
        member: Member,
        incarnation: Incarnation,
        room: &mut dyn Room,
    ) -> Result<(), Answer> {
        let Some(it) = self.all.get_mut(&member) else { return Ok(()) };
        if incarnation < it.incarnation {
            return Err(Answer::Stale(it.incarnation));
        }
        if incarnation > it.incarnation {
            if it.granted {
                room.fence(member, it.incarnation);
                it.fencing = Some(it.incarnation);
            }
            (it.incarnation, it.granted) = (incarnation, false);
        }
        match it.fencing {
            Some(old) if !room.is_fenced(member, old) => Err(Answer::Wait),
            _ => {
                it.fencing = None;
                Ok(())
            }
        }
    }

    fn grant(
        &mut self,
        member: Member,
        incarnation: Incarnation,
        bytes: u64,
        committed: Epoch,
        room: &mut dyn Room,
    ) -> Answer {
        if let Err(answer) = self.supersede(member, incarnation, room) {
            return answer;
        }
        let used = self.used();
        if let Some(it) = self.all.get_mut(&member) {
            if it.bytes != bytes {
                let why = format!(
                    "the compartment of process {member} has {} bytes, and {bytes} are asked for: \
                     release it first",
                    it.bytes
                );
                return Answer::refused(&why);
            }
            if !it.granted {
                // Who asks was restored from this epoch, or has seen it committed: it knows better than
                // what was noted here.
                (it.granted, it.committed) = (true, committed);
            }
        } else {
            let free = self.budget.saturating_sub(used);
            if bytes > free {
                let why = format!("{bytes} bytes are asked for, and {free} are left in the store");
                return Answer::refused(&why);
            }
            if self.all.len() == MAX_COMPARTMENTS {
                return Answer::refused(&format!("the store has {MAX_COMPARTMENTS} compartments"));
            }
            if let Err(why) = room.make(member, bytes) {
                return Answer::refused(&why);
            }
            let it = Compartment { bytes, incarnation, granted: true, fencing: None, committed };
            self.all.insert(member, it);
        }
        self.holding(member, room).map_or(Answer::Wait, Answer::Granted)
    }

    /// The slot that holds `epoch`, where `incarnation` may write; or what to answer.
    fn slot(
        &self,
        member: Member,
        incarnation: Incarnation,
        epoch: Epoch,
        room: &dyn Room,
    ) -> Result<Slot, Answer> {
        let holding = self.holding(member, room).filter(|it| it.incarnation <= incarnation);
        let Some(holding) = holding else {
            let newest = self.all.get(&member).map(|it| it.incarnation);
            return Err(newest.map_or_else(
                || Answer::refused(&format!("process {member} has no compartment")),
                Answer::Stale,
            ));
        };
        let missing = || Answer::refused(&format!("process {member} is not complete in {epoch}"));
        holding.slot_of(epoch).ok_or_else(missing)
    }

    fn check(
        &self,
        member: Member,
        incarnation: Incarnation,
        epoch: Epoch,
        room: &mut dyn Room,
    ) -> Answer {
        match self.slot(member, incarnation, epoch, room) {
            Ok(slot) => match room.verify(member, slot) {
                None => Answer::Wait,
                Some(Ok(())) => Answer::Checked(epoch),
                Some(Err(why)) => Answer::refused(&why),
            },
            Err(answer) => answer,
        }
    }

    fn note(
        &mut self,
        member: Member,
        incarnation: Incarnation,
        epoch: Epoch,
        room: &mut dyn Room,
    ) -> Answer {
        if let Err(answer) = self.slot(member, incarnation, epoch, room) {
            return answer;
        }
        if let Some(it) = self.all.get_mut(&member) {
            it.committed = it.committed.max(epoch);
        }
        Answer::Noted(epoch)
    }

    fn release(&mut self, member: Member, incarnation: Incarnation, room: &mut dyn Room) -> Answer {
        let Some(it) = self.all.get_mut(&member) else { return Answer::Released };
        if incarnation < it.incarnation {
            return Answer::Stale(it.incarnation);
        }
        if it.granted {
            room.fence(member, it.incarnation);
            it.fencing = Some(it.incarnation);
        }
        (it.incarnation, it.granted) = (incarnation, false);
        if it.fencing.is_some_and(|old| !room.is_fenced(member, old)) {
            return Answer::Wait;
        }
        room.free(member);
        self.all.remove(&member);
        Answer::Released
    }
}
