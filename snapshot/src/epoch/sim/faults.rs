//! What goes wrong.

use super::Kind;
use super::store::Store;
use super::world::World;
use crate::epoch::{Epoch, StoreId};
use sojourn_logging::sim::Time;

/// Longest time that a store is out of reach. (A writer waits 2500 for an answer, a recovery 3000.)
const AWAY: Time = 6_000;
/// Of a thousand stores that die, so many are replaced.
const REPLACED: u32 = 800;

impl World {
    /// A store that is empty.
    pub(super) fn new_store(&mut self) {
        let id = StoreId(self.stores.len() as u64 + 1);
        self.stores.push(Store::new(id, self.chunks, self.broken));
        self.note(|| format!("store {id} is there"));
    }

    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        match self.rng.below(22) {
            0..=3 => {
                let p = self.rng.below(self.processes.len() as u64) as usize;
                self.die(p);
            }
            4 | 20..=21 => {
                let p = self.rng.below(self.ranks as u64) as usize;
                self.take_for_dead(p);
            }
            5..=8 => self.kill_some_store(),
            9..=10 => self.break_some(None),
            11..=12 => self.part_some(),
            13..=14 => self.damage_some(),
            15 => self.new_store(),
            16..=17 => {
                self.reach(Kind::DeciderReplaced);
                self.new_ruler();
            }
            18 => self.kill_recovery(),
            _ => {
                // The decider is dead, and another takes its place.
                self.new_ruler();
                let newest = self.rulers.len() - 1;
                self.rulers.drain(..newest);
            }
        }
    }

    /// Something happens in the very moment in which a process is about to do something. Whether it is dead.
    pub(super) fn sudden_fault(&mut self, p: usize) -> bool {
        if self.calm || self.now > self.horizon || !self.rng.permille(self.sudden) {
            return false;
        }
        match self.rng.below(5) {
            0..=1 => {
                self.die(p);
                return true;
            }
            2 => self.kill_some_store(),
            3 => self.break_some(Some(p)),
            _ => {
                self.reach(Kind::DeciderReplaced);
                self.new_ruler();
            }
        }
        false
    }

    fn die(&mut self, p: usize) {
        if self.processes[p].alive {
            self.reach_death(p);
            self.kill(p);
        }
    }

    /// A process is out of the launcher's reach, and not out of that of the stores.
    fn take_for_dead(&mut self, p: usize) {
        if self.processes[p].alive {
            let life = self.processes[p].life;
            self.make_ghost(p);
            self.notice(p, life);
        }
    }

    fn kill_some_store(&mut self) {
        let alive: Vec<usize> =
            (0..self.stores.len()).filter(|at| self.stores[*at].alive).collect();
        if alive.is_empty() {
            return self.new_store();
        }
        let at = self.rng.pick(&alive);
        let id = self.stores[at].id;
        self.note(|| format!("store {id} is dead"));
        self.stores[at].alive = false;
        self.stores[at].shelf.slots.clear();
        self.ledger.changed = true;
        self.reach(Kind::StoreDied);
        if self.restoring.as_ref().is_some_and(|it| it.machine.is_some()) {
            self.reach(Kind::StoreDiedInRecovery);
        }
        for c in 0..self.connections.len() {
            if self.connections[c].store == id {
                self.break_connection(c, 0);
            }
        }
        if self.rng.permille(REPLACED) {
            self.new_store();
        }
    }

    fn break_some(&mut self, of: Option<usize>) {
        let fits = |c: &usize| {
            let it = &self.connections[*c];
            it.open && !it.broken && of.is_none_or(|p| it.p == p)
        };
        let open: Vec<usize> = (0..self.connections.len()).filter(fits).collect();
        if !open.is_empty() {
            let c = self.rng.pick(&open);
            let keep = self.rng.below(self.connections[c].under_way() as u64 + 1) as usize;
            self.break_connection(c, keep);
            self.reach(Kind::Broke);
        }
    }

    /// A store is out of reach; some of the connections to it break.
    fn part_some(&mut self) {
        if self.stores.is_empty() {
            return;
        }
        let at = self.rng.below(self.stores.len() as u64) as usize;
        let until = self.now + self.rng.between(100, AWAY);
        let id = self.stores[at].id;
        self.stores[at].back_at = until.max(self.stores[at].back_at);
        self.note(|| format!("store {id} is out of reach until {until}"));
        self.reach(Kind::Unreachable);
        for c in 0..self.connections.len() {
            if self.connections[c].store == id && self.rng.permille(500) {
                let keep = self.connections[c].under_way();
                self.break_connection(c, keep);
            }
        }
    }

    fn damage_some(&mut self) {
        let chunk = self.rng.below(self.chunks as u64) as usize;
        let mut held = Vec::new();
        for (at, store) in self.stores.iter().enumerate().filter(|it| it.1.alive) {
            for (member, slots) in &store.shelf.slots {
                let whole = (0..2).filter(|slot| slots[*slot].word != Epoch::NONE);
                held.extend(whole.map(|slot| (at, *member, slot)));
            }
        }
        if held.is_empty() {
            return;
        }
        let (at, member, slot) = self.rng.pick(&held);
        let store = &mut self.stores[at];
        let Some(slots) = store.shelf.slots.get_mut(&member) else { return };
        let memory = &mut slots[slot];
        memory.data[chunk][0] ^= 1 << 60;
        memory.damaged.insert(chunk);
        let (id, word) = (store.id, memory.word);
        self.note(|| format!("store {id}: {member} {word} is damaged"));
        self.uncount(id, member, word);
        self.reach(Kind::Damaged);
    }

    /// Nothing goes wrong any more, and there are stores enough.
    pub(super) fn become_calm(&mut self) {
        self.calm = true;
        for ghost in self.ranks..self.processes.len() {
            self.processes[ghost].alive = false;
        }
        self.note(|| "calm".to_owned());
        let newest = self.rulers.len() - 1;
        self.rulers.drain(..newest);
        while self.stores.iter().filter(|store| store.alive).count() < self.policy.copies {
            self.new_store();
        }
        self.launch();
    }
}
