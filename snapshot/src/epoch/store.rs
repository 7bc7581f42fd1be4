//! The store's machine: whose compartment is whose, and what is noted about it.

use super::{Answer, Epoch, Holding, Incarnation, Member, Request, Slot};
use std::collections::BTreeMap;

/// Most compartments of one store.
pub const MAX_COMPARTMENTS: usize = 4096;
/// Most processes of which a store remembers the newest incarnation. Both bound what mistakes can make it keep.
const MAX_MEMBERS: usize = 1 << 16;

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
    /// Who may write: there is a queue pair.
    granted: Option<Incarnation>,
    /// An older one that is not past its barrier.
    fencing: Option<Incarnation>,
    committed: Epoch,
}

/// The compartments of a store.
#[derive(Clone, Debug, Hash)]
pub struct Compartments {
    all: BTreeMap<Member, Compartment>,
    /// The newest that has asked, also of those who have no compartment here (any more): who was claimed where
    /// there was nothing must not be given anything there later.
    newest: BTreeMap<Member, Incarnation>,
    budget: u64,
}

impl Compartments {
    /// None yet; at most `budget` bytes of them.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Compartments { all: BTreeMap::new(), newest: BTreeMap::new(), budget }
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
        let incarnation = *self.newest.get(&member)?;
        let Compartment { bytes, committed, .. } = *it;
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
        let newest = self.newest.get(&member).copied();
        if let Some(newest) = newest.filter(|newest| incarnation < *newest) {
            return Err(Answer::Stale(newest));
        }
        if newest.is_none() && self.newest.len() == MAX_MEMBERS {
            return Err(Answer::refused(&format!("the store knows {MAX_MEMBERS} processes")));
        }
        self.newest.insert(member, incarnation);
        let Some(it) = self.all.get_mut(&member) else { return Ok(()) };
        if let Some(old) = it.granted.take_if(|granted| *granted < incarnation) {
            room.fence(member, old);
            it.fencing = Some(old);
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
            if it.granted.replace(incarnation).is_none() {
                // Who asks was restored from this epoch, or has seen it committed: it knows better than
                // what was noted here.
                it.committed = committed;
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
            let it = Compartment { bytes, granted: Some(incarnation), fencing: None, committed };
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
        if let Some(newest) = self.newest.get(&member).filter(|newest| incarnation < **newest) {
            return Err(Answer::Stale(*newest));
        }
        let Some(holding) = self.holding(member, room) else {
            return Err(Answer::refused(&format!("process {member} has no compartment")));
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
        if let Err(answer) = self.supersede(member, incarnation, room) {
            return answer;
        }
        let Some(it) = self.all.get_mut(&member) else { return Answer::Released };
        if let Some(own) = it.granted.take() {
            room.fence(member, own);
            it.fencing = Some(own);
        }
        if it.fencing.is_some_and(|old| !room.is_fenced(member, old)) {
            return Answer::Wait;
        }
        room.free(member);
        self.all.remove(&member);
        Answer::Released
    }
}
