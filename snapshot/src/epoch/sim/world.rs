//! The world of one run, and what happens next.

use super::launcher::{Restoring, Ruler};
use super::ledger::Ledger;
use super::process::Process;
use super::store::Store;
use super::wire::{Connection, Sender};
use super::{Broken, Kind};
use crate::PageSet;
use crate::epoch::{
    Answer, Epoch, Incarnation, Member, Order, Origin, Policy, Report, Request, StoreId,
};
use sojourn_logging::sim::{Rng, Schedule, Time};
use std::collections::BTreeSet;
use std::time::Duration;

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    /// A program writes to its memory.
    Program(usize),
    /// Somebody wants an epoch.
    Start,
    /// Machines look at the time.
    Wake,
    Request {
        store: StoreId,
        member: Member,
        from: Sender,
        request: Request,
    },
    Answer {
        store: StoreId,
        member: Member,
        to: Sender,
        answer: Answer,
    },
    Order {
        member: Member,
        order: Order,
    },
    Report {
        member: Member,
        report: Report,
    },
    /// A connection reads memory for its next WRITE.
    Transmit(usize),
    /// Its oldest WRITE comes to the store.
    Land(usize),
    /// The writer learns that all that it asked for has landed.
    Done(usize),
    /// It learns that the connection is gone.
    Gone(usize),
    /// A queue pair at ERR is past its barrier.
    Barrier(StoreId, Member, Incarnation),
    /// Tracking is asked.
    Collect {
        p: usize,
        life: u32,
        pause: bool,
    },
    /// It has answered.
    Dirty {
        p: usize,
        life: u32,
        dirty: PageSet,
    },
    Placed {
        p: usize,
        life: u32,
        known: Vec<StoreId>,
    },
    Protected {
        p: usize,
        life: u32,
        epoch: Epoch,
    },
    /// The launcher learns that a process is dead.
    Noticed {
        p: usize,
        life: u32,
    },
    /// The launcher begins anew.
    Launch,
    ReadDone {
        recovery: u64,
        member: Member,
        origin: Origin,
    },
    Fault,
    /// No fault happens any more.
    Calm,
}

/// Everything that there is.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) queue: Schedule<Happening>,
    pub(super) rng: Rng,
    pub(super) policy: Policy,
    pub(super) chunks: usize,
    /// No fault happens after this time.
    pub(super) horizon: Time,
    pub(super) calm: bool,
    /// Most time between two steps of a program, and between two epochs.
    pub(super) pace: Time,
    pub(super) every: Time,
    /// Of a thousand messages so many are lost, and come twice.
    pub(super) lost: u32,
    pub(super) twice: u32,
    /// Of a thousand deaths, so many are of a process that is restored alone.
    pub(super) alone: u32,
    /// Of a thousand actions of a writer, so many are met by a fault.
    pub(super) sudden: u32,
    pub(super) broken: Option<Broken>,
    /// The processes of the job, and behind them lives that were taken for dead.
    pub(super) processes: Vec<Process>,
    /// How many the job has.
    pub(super) ranks: usize,
    pub(super) stores: Vec<Store>,
    pub(super) connections: Vec<Connection>,
    pub(super) rulers: Vec<Ruler>,
    pub(super) restoring: Option<Restoring>,
    pub(super) recoveries: u64,
    /// A job that starts from nothing is another job.
    pub(super) job: u64,
    pub(super) ledger: Ledger,
    /// What programs write next.
    pub(super) value: u64,
    pub(super) wake: Option<Time>,
    pub(super) reached: BTreeSet<Kind>,
    pub(super) violation: Option<String>,
    pub(super) trace: Option<Vec<String>>,
}

impl World {
    pub(super) fn time(&self) -> Duration {
        Duration::from_micros(self.now)
    }

    pub(super) fn reach(&mut self, kind: Kind) {
        self.reached.insert(kind);
    }

    pub(super) fn violate(&mut self, what: String) {
        self.note(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>8} {}", self.now, line()));
        }
    }

    /// Something happens after a while of chance.
    pub(super) fn after(&mut self, most: Time, what: Happening) {
        let at = self.now + self.rng.between(1, most);
        self.queue.push(at, what);
    }

    pub(super) fn member(&self, p: usize) -> Member {
        Member(self.job * 100 + p as u64)
    }

    /// Which process has this name in the job of now.
    pub(super) fn process_of(&self, member: Member) -> Option<usize> {
        (0..self.ranks).find(|p| self.member(*p) == member)
    }

    pub(super) fn store_at(&self, id: StoreId) -> Option<usize> {
        self.stores.iter().position(|store| store.id == id)
    }

    /// The next event, and what follows from it at once. Whether there was one.
    pub(super) fn step(&mut self) -> bool {
        let Some((at, what)) = self.queue.pop() else { return false };
        self.now = at;
        self.happen(what);
        self.run_machines();
        true
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Program(p) => self.program(p),
            Happening::Start => self.start_epoch(),
            Happening::Wake => self.wake = None,
            Happening::Request { store, member, from, request } => {
                self.request(store, member, from, request);
            }
            Happening::Answer { store, member, to, answer } => {
                self.answer(store, member, to, answer)
            }
            Happening::Order { member, order } => self.order(member, order),
            Happening::Report { member, report } => self.report(member, report),
            Happening::Transmit(c) => self.transmit(c),
            Happening::Land(c) => self.land(c),
            Happening::Done(c) => self.done(c),
            Happening::Gone(c) => self.gone(c),
            Happening::Barrier(store, member, incarnation) => {
                self.barrier(store, member, incarnation);
            }
            Happening::Collect { p, life, pause } => self.collect(p, life, pause),
            Happening::Dirty { p, life, dirty } => self.dirty(p, life, dirty),
            Happening::Placed { p, life, known } => self.placed(p, life, &known),
            Happening::Protected { p, life, epoch } => self.protected(p, life, epoch),
            Happening::Noticed { p, life } => self.noticed(p, life),
            Happening::Launch => self.launch(),
            Happening::ReadDone { recovery, member, origin } => {
                self.read_done(recovery, member, origin);
            }
            Happening::Fault => self.fault(),
            Happening::Calm => self.become_calm(),
        }
    }

    /// All machines do what they have to do now.
    fn run_machines(&mut self) {
        for p in 0..self.processes.len() {
            self.run_writer(p);
        }
        self.run_rulers();
        self.run_recovery();
        self.look_at_stores();
        let writers =
            self.processes.iter().filter(|it| it.alive).filter_map(|it| it.writer.as_ref());
        let wakes = writers.filter_map(|writer| writer.wake_at());
        let wakes = wakes.chain(self.rulers.iter().filter_map(|ruler| ruler.machine.wake_at()));
        let recovery = self.restoring.as_ref().and_then(|it| it.machine.as_ref());
        let wake = wakes.chain(recovery.and_then(|it| it.wake_at())).min();
        if let Some(wake) = wake {
            let at = (wake.as_micros() as Time).max(self.now + 1);
            if self.wake.is_none_or(|wake| at < wake) {
                self.wake = Some(at);
                self.queue.push(at, Happening::Wake);
            }
        }
    }
}
