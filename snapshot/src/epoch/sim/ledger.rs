//! What is promised, and the look at it.

use super::Kind;
use super::launcher::RECOVERY;
use super::process::Process;
use super::store::Image;
use super::world::World;
use crate::epoch::{
    Answer, Epoch, Found, Incarnation, Member, Missing, Origin, Recovery, Scope, Slot, Stage, Step,
    StoreId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What is known to all-seeing eyes of the job.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    /// Memory of each process as it was in the pause of each epoch.
    images: BTreeMap<(Member, Epoch), Image>,
    /// The last epoch of which a program was told that it is committed: nothing older may be restored.
    floor: Epoch,
    /// That, or a newer one to which all went back. (Until a store has noted it, they may go back once more.)
    committed: Epoch,
    /// Where each process has it, as far as that is promised.
    copies: BTreeMap<Member, BTreeSet<StoreId>>,
    /// Who was complete in what.
    complete: BTreeSet<(Member, Epoch)>,
    reported: BTreeSet<Epoch>,
    aborted: BTreeSet<Epoch>,
    /// Stores have changed since the last look.
    pub(super) changed: bool,
    /// Commits of each process since nothing goes wrong any more.
    pub(super) since_calm: BTreeMap<usize, u32>,
}

impl World {
    pub(super) fn forget_job(&mut self) {
        self.ledger = Ledger::default();
    }

    /// It is not of a job that had to begin anew.
    fn is_of_job(&self, member: Member) -> bool {
        self.process_of(member).is_some()
    }

    /// It was taken for dead, and another life of its process computes: what this one is told counts no more.
    fn is_replaced(&self, p: usize) -> bool {
        let Process { rank, member, .. } = self.processes[p];
        p >= self.ranks && (self.processes[rank].alive || !self.is_of_job(member))
    }

    pub(super) fn keep_image(&mut self, p: usize, epoch: Epoch, image: Image) {
        let member = self.processes[p].member;
        if !self.is_of_job(member) {
            return;
        }
        if self.ledger.images.insert((member, epoch), image).is_some() {
            self.violate(format!("process {p}: {epoch} is used twice"));
        }
    }

    /// Something has landed in a slot whose word was this.
    pub(super) fn check_landed(
        &mut self,
        at: usize,
        member: Member,
        slot: Slot,
        was: Epoch,
        word: bool,
    ) {
        let store = &self.stores[at];
        let Some(memory) = store.slot(member, slot) else { return };
        let place = format!("store {}, process {member}, slot {slot:?}", store.id);
        if was.is_some() && !word {
            return self.violate(format!("{place} is {was}, and is written"));
        }
        let now = memory.word;
        if now == Epoch::NONE || !self.is_of_job(member) {
            return;
        }
        let Some(image) = self.ledger.images.get(&(member, now)) else {
            return self.violate(format!("{place} says {now}, which never was"));
        };
        let damaged = |chunk: &usize| memory.damaged.contains(chunk);
        let wrong = (0..image.len())
            .filter(|chunk| !damaged(chunk))
            .find(|chunk| memory.data[*chunk] != image[*chunk]);
        if let Some(chunk) = wrong {
            return self.violate(format!(
                "{place} says {now}: chunk {chunk} is {:?}, and was {:?}",
                memory.data[chunk], image[chunk]
            ));
        }
        if memory.header != now || memory.table != *image {
            self.violate(format!("{place} says {now}, and is not sealed"));
        }
    }

    /// A process says that it is complete.
    pub(super) fn check_complete(&mut self, p: usize) {
        let member = self.processes[p].member;
        let Some(writer) = &self.processes[p].writer else { return };
        let epoch = writer.epoch();
        let first = self.ledger.complete.insert((member, epoch));
        if !first || self.is_replaced(p) || !self.is_of_job(member) {
            return;
        }
        let stores: Vec<StoreId> = writer.stores().collect();
        if stores.len() < self.policy.minimum {
            return self.violate(format!("process {p} is complete in {epoch} on {stores:?}"));
        }
        for id in stores {
            let store = self.stores.iter().find(|store| store.id == id && store.alive);
            if store.is_some_and(|store| store.holder(member, epoch).is_none()) {
                return self.violate(format!(
                    "process {p} is complete in {epoch}, and store {id} does not have it"
                ));
            }
        }
    }

    pub(super) fn check_decided(&mut self, epoch: Epoch) {
        let epoch = match self.broken {
            Some(super::Broken::NumberReused) => Epoch(epoch.count()),
            _ => epoch,
        };
        let restored = self.ledger.committed == epoch;
        let lacks = |p: &usize| !self.ledger.complete.contains(&(self.member(*p), epoch));
        if let Some(p) = (0..self.ranks).find(lacks).filter(|_| !restored) {
            self.violate(format!("{epoch} is committed, and process {p} never was complete"));
        }
    }

    /// A program is told that an epoch is committed.
    pub(super) fn check_committed(&mut self, p: usize, epoch: Epoch) {
        if p >= self.ranks {
            self.reach(Kind::GhostCommitted);
        }
        if self.is_replaced(p) {
            return;
        }
        if self.calm && p < self.ranks {
            *self.ledger.since_calm.entry(p).or_default() += 1;
        }
        if self.ledger.aborted.contains(&epoch) {
            self.violate(format!("process {p} commits {epoch}, which another has given up"));
        }
        self.ledger.reported.insert(epoch);
        self.check_decided(epoch);
        if epoch <= self.ledger.committed {
            return;
        }
        let reporter = self.processes[p].member;
        self.ledger.floor = epoch;
        self.promise(epoch, |store, member| {
            let noted = || store.machine.holding(member, &store.shelf).map(|it| it.committed);
            member != reporter || noted() == Some(epoch)
        });
    }

    /// From here on it must be possible to restore this epoch, from these stores.
    fn promise(&mut self, epoch: Epoch, counts: impl Fn(&super::store::Store, Member) -> bool) {
        let copies = |member: Member| {
            let whole = |store: &&super::store::Store| {
                let slot = store.holder(member, epoch);
                slot.is_some_and(|slot| slot.damaged.is_empty()) && counts(store, member)
            };
            self.stores.iter().filter(whole).map(|store| store.id).collect()
        };
        let members = (0..self.ranks).map(|p| self.member(p));
        let copies = members.map(|member| (member, copies(member))).collect();
        self.note(|| format!("promised: {epoch} on {copies:?}"));
        self.ledger.copies = copies;
        self.ledger.committed = epoch;
        self.ledger.changed = true;
    }

    /// All have gone back to this epoch, and these copies of it were seen.
    pub(super) fn rebase(&mut self, epoch: Epoch, seen: impl Fn(StoreId, Member) -> bool) {
        // Where what was committed is lost, nobody has promised that it can be restored.
        self.ledger.floor = self.ledger.floor.min(epoch);
        self.promise(epoch, |store, member| seen(store.id, member));
    }

    pub(super) fn check_aborted(&mut self, p: usize, epoch: Epoch) {
        if self.is_replaced(p) {
            return;
        }
        if self.ledger.complete.contains(&(self.processes[p].member, epoch)) {
            self.reach(Kind::AbortedWhenComplete);
        }
        self.ledger.aborted.insert(epoch);
        if self.ledger.reported.contains(&epoch) {
            self.violate(format!("process {p} gives up {epoch}, which another has committed"));
        }
    }

    /// A copy is damaged, and does not count any more.
    pub(super) fn uncount(&mut self, store: StoreId, member: Member, epoch: Epoch) {
        let copies = self.ledger.copies.get_mut(&member);
        if let Some(copies) = copies.filter(|_| epoch == self.ledger.committed) {
            copies.remove(&store);
        }
        self.ledger.changed = true;
    }

    fn is_promised(&self) -> bool {
        self.ledger.committed.is_some() && self.ledger.copies.values().all(|it| !it.is_empty())
    }

    /// Stores have changed: what is promised is still there, and can be restored.
    pub(super) fn look_at_stores(&mut self) {
        if !std::mem::take(&mut self.ledger.changed) || self.violation.is_some() {
            return;
        }
        let committed = self.ledger.committed;
        let alive: BTreeSet<StoreId> =
            self.stores.iter().filter(|it| it.alive).map(|it| it.id).collect();
        for copies in self.ledger.copies.values_mut() {
            copies.retain(|store| alive.contains(store));
        }
        let lost = self.ledger.copies.iter().find_map(|(member, copies)| {
            let holds = |id: &StoreId| {
                self.stores.iter().any(|it| it.id == *id && it.holder(*member, committed).is_some())
            };
            copies.iter().find(|id| !holds(id)).map(|id| (*member, *id))
        });
        if let Some((member, store)) = lost.filter(|_| committed.is_some()) {
            return self.violate(format!(
                "{committed} of process {member} was overwritten on store {store}"
            ));
        }
        if self.is_promised() {
            self.try_to_restore();
        }
    }

    /// A recovery of the whole job, there and then.
    fn try_to_restore(&mut self) {
        let members = (0..self.ranks).map(|p| (self.member(p), Incarnation(u64::MAX)));
        let alive = self.stores.iter().filter(|store| store.alive).map(|store| store.id);
        let now = self.time();
        let mut recovery = Recovery::new(members, alive, Scope::Whole, now, RECOVERY);
        let mut images = BTreeMap::new();
        while let Some(step) = recovery.poll(now) {
            match step {
                Step::Ask(id, member, _) => {
                    let store = self.stores.iter().find(|store| store.id == id);
                    let holding = store.and_then(|it| it.machine.holding(member, &it.shelf));
                    let answer = Answer::Told(self.as_told(holding));
                    recovery.found(Found::Answer(id, member, answer), now);
                }
                Step::Read(member, origin) => {
                    let store = self.stores.iter().find(|store| store.id == origin.store);
                    let slot = store.and_then(|store| store.slot(member, origin.slot));
                    let read = slot.map(|slot| slot.read(origin.epoch));
                    let result = match read {
                        Some(Ok(image)) => {
                            images.insert(member, image);
                            Ok(())
                        }
                        Some(Err(why)) => Err(why),
                        None => Err("it is gone".to_owned()),
                    };
                    recovery.found(Found::Read(member, origin, result), now);
                }
                Step::Restored(epoch, origins) => {
                    return self.check_restored(epoch, Epoch::NONE, &origins, &images, false);
                }
                Step::Impossible(missing) => {
                    let committed = self.ledger.committed;
                    return self.violate(format!("{committed} cannot be restored: {missing}"));
                }
            }
        }
        self.violate("a recovery waits for nothing".to_owned());
    }

    /// What a recovery, for good or as a trial, has come to; `known` is what was noted.
    pub(super) fn check_restored(
        &mut self,
        epoch: Epoch,
        known: Epoch,
        origins: &[(Member, Origin)],
        images: &BTreeMap<Member, Image>,
        whole: bool,
    ) {
        let floor = self.ledger.floor;
        if epoch < floor && self.is_promised() {
            return self.violate(format!("{epoch} is restored, and {floor} was committed"));
        }
        for (member, origin) in origins {
            if origin.epoch != epoch {
                return self
                    .violate(format!("{epoch} is restored, and {} of {member}", origin.epoch));
            }
            if self.ledger.images.get(&(*member, epoch)) != images.get(member) {
                return self.violate(format!(
                    "process {member} is restored from store {}: it is not as it was in {epoch}",
                    origin.store
                ));
            }
        }
        if !whole {
            return;
        }
        if epoch > known {
            self.reach(Kind::RestoredNewer);
        }
        if epoch < known {
            self.reach(Kind::RestoredOlder);
        }
        if self.ledger.aborted.contains(&epoch) {
            self.reach(Kind::RestoredAborted);
        }
        let newest = |member: &Member| {
            let held = |store: &super::store::Store| {
                store.machine.holding(*member, &store.shelf).filter(|_| store.alive)
            };
            self.stores.iter().filter_map(held).flat_map(|it| it.words).max().unwrap_or_default()
        };
        let all: BTreeSet<Epoch> = origins.iter().map(|it| newest(&it.0)).collect();
        if epoch == known && all.len() == 1 && all.first().is_some_and(|newest| *newest > epoch) {
            self.reach(Kind::NewerLeft);
        }
    }

    /// A recovery has done without these copies: they count as lost.
    pub(super) fn keep_copies(&mut self, counts: impl Fn(StoreId, Member) -> bool) {
        for (member, copies) in &mut self.ledger.copies {
            copies.retain(|store| counts(*store, *member));
        }
    }

    /// A recovery of the whole job gives up.
    pub(super) fn check_nothing_left(&mut self, missing: &Missing) {
        let alive: BTreeSet<StoreId> =
            self.stores.iter().filter(|it| it.alive).map(|it| it.id).collect();
        self.ledger.copies.values_mut().for_each(|it| it.retain(|store| alive.contains(store)));
        if self.is_promised() {
            let committed = self.ledger.committed;
            self.violate(format!("{committed} was committed: {missing}"));
        }
    }

    /// Where a process stood when it died.
    pub(super) fn reach_death(&mut self, p: usize) {
        let stage = self.processes[p].writer.as_ref().map(crate::epoch::Writer::stage);
        match stage {
            Some(Stage::Pause | Stage::Last) => self.reach(Kind::DiedInPause),
            Some(Stage::Seal) => self.reach(Kind::DiedSealing),
            Some(Stage::Complete) => self.reach(Kind::DiedComplete),
            Some(Stage::Note) => self.reach(Kind::DiedNoting),
            _ => {}
        }
    }
}
