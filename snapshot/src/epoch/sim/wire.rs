//! RDMA WRITEs, and messages.

use super::store::{Image, Payload, Qp};
use super::world::{Happening, World};
use super::{Broken, Kind};
use crate::epoch::{Answer, Epoch, Event, Incarnation, Member, Request, Slot, StoreId};
use sojourn_logging::sim::Time;
use std::collections::VecDeque;

/// Longest time that a message, and one that is late, is on its way. (A writer asks again after 400.)
const MESSAGE: Time = 60;
const LATE: Time = 1_500;
/// Of a thousand messages so many are late.
const LATES: u32 = 40;
/// Longest time until a WRITE reads memory, and until it lands after that.
const TRANSMIT: Time = 4;
const FLIGHT: Time = 25;
/// The longest that it may take until a packet of a dead process comes.
const STRAY: Time = 2_500;
/// Of a thousand connections that end, so many have WRITEs on the way that come late.
const HELD: u32 = 400;
/// Longest time of a barrier: mostly, and where there is much to flush.
const BARRIER: Time = 300;
const LONG_BARRIER: Time = 2_500;

/// Who asks a store.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sender {
    Writer { p: usize, life: u32, by: Incarnation },
    Recovery(u64),
}

/// What is to be written, when memory is read for it.
#[derive(Clone, Debug)]
pub(super) enum What {
    Half(usize, usize),
    Table(Image),
    Header(Epoch),
    Word(Epoch),
}

#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) slot: Slot,
    pub(super) what: What,
    /// The last of what the writer has asked for.
    pub(super) last: bool,
}

/// The reliable connection of an incarnation of a writer to a store.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) p: usize,
    pub(super) life: u32,
    pub(super) member: Member,
    pub(super) store: StoreId,
    pub(super) by: Incarnation,
    /// The writer's end is there.
    pub(super) open: bool,
    /// It has broken, and the writer has to learn that.
    pub(super) broken: bool,
    posted: VecDeque<Write>,
    flight: VecDeque<(Slot, Payload, bool)>,
    transmitting: bool,
    /// Nothing lands before this time.
    held: Time,
    /// When the last WRITE lands: the next does so later.
    lands: Time,
}

impl Connection {
    /// What it had not sent yet never is; with `keep`, of what is under way so much lands.
    pub(super) fn cut(&mut self, keep: Option<usize>) {
        self.posted.clear();
        if let Some(keep) = keep {
            self.flight.truncate(keep);
        }
    }

    pub(super) fn under_way(&self) -> usize {
        self.flight.len()
    }
}

impl World {
    /// A message goes, if it does.
    pub(super) fn post(&mut self, what: Happening) {
        if !self.calm {
            if self.rng.permille(self.lost) {
                self.reach(Kind::MessageLost);
                self.note(|| format!("lost: {what:?}"));
                return;
            }
            if self.rng.permille(self.twice) {
                self.reach(Kind::MessageTwice);
                self.after(LATE, what.clone());
            }
            if self.rng.permille(LATES) {
                return self.after(LATE, what);
            }
        }
        self.after(MESSAGE, what);
    }

    pub(super) fn request(&mut self, id: StoreId, member: Member, from: Sender, request: Request) {
        let now = self.now;
        let Some(at) = self.store_at(id).filter(|at| self.stores[*at].reachable(now)) else {
            return;
        };
        let store = &mut self.stores[at];
        let answer = store.machine.handle(member, request, &mut store.shelf);
        if let (Answer::Granted(_), Request::Grant { incarnation, .. }) = (&answer, request) {
            store.shelf.qps.entry((member, incarnation)).or_insert(Qp::Up);
        }
        for (member, incarnation) in std::mem::take(&mut store.shelf.fenced) {
            let most = if self.rng.permille(200) { LONG_BARRIER } else { BARRIER };
            self.after(most, Happening::Barrier(id, member, incarnation));
        }
        if answer == Answer::Wait {
            self.reach(Kind::WaitedForBarrier);
        }
        if matches!((request, &answer), (Request::Check { .. }, Answer::Refused(_))) {
            self.reach(Kind::DamageFound);
        }
        self.ledger.changed = true;
        self.note(|| format!("store {id}: {member} {request:?}: {answer:?}"));
        self.post(Happening::Answer { store: id, member, to: from, answer });
    }

    pub(super) fn barrier(&mut self, id: StoreId, member: Member, incarnation: Incarnation) {
        if let Some(at) = self.store_at(id) {
            self.stores[at].shelf.qps.insert((member, incarnation), Qp::Down);
            self.note(|| format!("store {id}: {member} past the barrier of {incarnation}"));
        }
    }

    pub(super) fn answer(&mut self, store: StoreId, member: Member, to: Sender, answer: Answer) {
        match to {
            Sender::Writer { p, life, by } => {
                let Some(at) = self.find(p, life) else { return };
                if matches!(answer, Answer::Granted(_)) {
                    self.connect(p, life, member, store, by);
                }
                self.event(at, Event::Answer(by, answer));
            }
            Sender::Recovery(recovery) => self.recovery_answer(recovery, store, member, answer),
        }
    }

    fn connect(&mut self, p: usize, life: u32, member: Member, store: StoreId, by: Incarnation) {
        if self.connections.iter().any(|it| (it.p, it.by) == (p, by)) {
            return;
        }
        let mine = |it: &&super::wire::Connection| it.p == p && it.life == life;
        if self.connections.iter().filter(mine).any(|it| it.store == store) {
            self.reach(Kind::CameBack);
        }
        self.connections.push(Connection {
            p,
            life,
            member,
            store,
            by,
            open: true,
            broken: false,
            posted: VecDeque::new(),
            flight: VecDeque::new(),
            transmitting: false,
            held: 0,
            lands: 0,
        });
    }

    /// The writer posts; without a single WRITE it is done at once.
    pub(super) fn write(&mut self, p: usize, by: Incarnation, mut writes: Vec<Write>) {
        let Some(c) = self.connections.iter().position(|it| (it.p, it.by) == (p, by)) else {
            return;
        };
        if let Some(last) = writes.last_mut() {
            last.last = true;
        }
        let connection = &mut self.connections[c];
        if connection.broken && self.broken == Some(Broken::BreakIgnored) {
            return self.after(FLIGHT, Happening::Done(c));
        }
        if !connection.open || connection.broken {
            return; // The writer is about to learn.
        }
        if writes.is_empty() {
            return self.after(FLIGHT, Happening::Done(c));
        }
        connection.posted.extend(writes);
        self.go_on(c);
    }

    fn go_on(&mut self, c: usize) {
        let connection = &mut self.connections[c];
        if !connection.transmitting && !connection.posted.is_empty() {
            connection.transmitting = true;
            self.after(TRANSMIT, Happening::Transmit(c));
        }
    }

    pub(super) fn transmit(&mut self, c: usize) {
        self.connections[c].transmitting = false;
        let Some(write) = self.connections[c].posted.pop_front() else { return };
        let connection = &self.connections[c];
        let Some(at) = self.find(connection.p, connection.life) else { return };
        let memory = &self.processes[at].memory;
        let payload = match write.what {
            What::Half(chunk, half) => Payload::Half { chunk, half, value: memory[chunk][half] },
            What::Table(image) => Payload::Table(image),
            What::Header(epoch) => Payload::Header(epoch),
            What::Word(epoch) => Payload::Word(epoch),
        };
        let most = if !self.calm && self.rng.permille(2) { STRAY } else { FLIGHT };
        let at = (self.now + self.rng.between(1, most)).max(connection.lands);
        let connection = &mut self.connections[c];
        connection.lands = at;
        connection.flight.push_back((write.slot, payload, write.last));
        self.queue.push(at, Happening::Land(c));
        self.go_on(c);
    }

    pub(super) fn land(&mut self, c: usize) {
        let Connection { p, life, member, store: id, by, .. } = self.connections[c];
        let Some(at) = self.store_at(id) else { return };
        let held = self.connections[c].held.max(self.stores[at].back_at);
        if self.stores[at].alive && self.now < held {
            // It waits somewhere on the way.
            let later = held + 1;
            self.connections[c].lands = self.connections[c].lands.max(later);
            return self.queue.push(later, Happening::Land(c));
        }
        let Some((slot, payload, last)) = self.connections[c].flight.pop_front() else { return };
        let edge = self.rng.permille(700);
        let before = self.stores[at].shelf.qps.get(&(member, by)).copied();
        let half = matches!(payload, Payload::Half { half: 0, .. });
        self.note(|| format!("land: process {p} ({by}) store {id} {slot:?} {payload:?}"));
        let was = self.stores[at].slot(member, slot).map(|it| it.word).unwrap_or_default();
        let word = matches!(payload, Payload::Word(_));
        let landed = self.stores[at].land(member, by, slot, payload, edge);
        let alive = self.find(p, life).is_some_and(|at| at < self.ranks);
        if landed {
            if !alive {
                self.reach(Kind::LateWrite);
                if before == Some(Qp::Err) {
                    self.reach(Kind::LateWriteAtErr);
                }
                if half && self.connections[c].flight.is_empty() {
                    self.reach(Kind::Torn);
                }
            }
            self.ledger.changed |= word;
            self.check_landed(at, member, slot, was, word);
            if last && self.connections[c].open && !self.connections[c].broken {
                self.after(FLIGHT, Happening::Done(c));
            }
        } else {
            if !alive && self.stores[at].alive {
                self.reach(Kind::LateWriteFenced);
            }
            self.break_connection(c, 0);
        }
    }

    /// A connection ends: what is on the way may come late.
    pub(super) fn hold(&mut self, c: usize) {
        if self.connections[c].under_way() > 0 && !self.calm && self.rng.permille(HELD) {
            self.connections[c].held = self.now + self.rng.between(1, STRAY);
        }
    }

    /// A connection ends. Of what is under way, so much lands still.
    pub(super) fn break_connection(&mut self, c: usize, keep: usize) {
        let connection = &mut self.connections[c];
        connection.cut(Some(keep));
        self.hold(c);
        let connection = &mut self.connections[c];
        if connection.open && !connection.broken {
            connection.broken = true;
            self.note(|| format!("connection {c} has broken"));
            self.after(FLIGHT * 4, Happening::Gone(c));
        }
    }

    pub(super) fn done(&mut self, c: usize) {
        let Connection { p, life, by, open, broken, .. } = self.connections[c];
        let ignored = self.broken == Some(Broken::BreakIgnored);
        let Some(at) = self.find(p, life) else { return };
        if open && (!broken || ignored) {
            if self.broken == Some(Broken::CollectedLate) {
                self.processes[at].dirty.clear();
            }
            self.event(at, Event::Done(by));
        }
    }

    pub(super) fn gone(&mut self, c: usize) {
        let Connection { p, life, by, open, .. } = self.connections[c];
        let Some(at) = self.find(p, life).filter(|_| open) else { return };
        let ignored = self.broken == Some(Broken::BreakIgnored);
        self.event(at, if ignored { Event::Done(by) } else { Event::Lost(by) });
    }
}
