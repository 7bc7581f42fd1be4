//! A job of processes within this one. Names are answered at once, or when the test says so.

use crate::names::{Asker, Error, Fetch, Grant, Incarnation, JobId, Owner, ProcessId, Record};
use crate::virt::core::{Answer, Core, Resolver};
use sojourn_logging::remap::{self, Request};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Instant;

type Done = Box<dyn FnOnce(Answer) + Send>;

/// A fetch that waits for the test.
struct Pending {
    by: ProcessId,
    peer: ProcessId,
    what: Fetch,
    done: Done,
}

#[derive(Default)]
struct State {
    owners: HashMap<ProcessId, Arc<dyn Owner>>,
    dead: HashSet<ProcessId>,
    lives: HashMap<ProcessId, u32>,
    slow: bool,
    pending: Vec<Pending>,
    timers: Vec<Box<dyn FnOnce() + Send>>,
    stopping: bool,
    fetched: usize,
    busy: usize,
    refusal: Option<String>,
    unreachable: Option<ProcessId>,
}

/// The job.
#[derive(Clone, Default)]
pub(in super::super) struct Job(Arc<Mutex<State>>);

const ID: JobId = JobId(0x50_4a);

impl Job {
    /// A new process; or another life of one that has died.
    pub(in super::super) fn join(&self, process: u32) -> Core {
        let core = Core::new();
        let process = ProcessId(process);
        let life = {
            let mut state = self.0.lock().unwrap();
            state.owners.insert(process, core.owner());
            state.dead.remove(&process);
            let life = state.lives.entry(process).or_default();
            *life += 1;
            *life
        };
        let grant = Grant::new(process, Incarnation(life), ID);
        core.joined(Arc::new(Member { job: self.clone(), grant }));
        core
    }

    /// From now on fetches wait for [`Job::answer`].
    pub(in super::super) fn set_slow(&self) {
        self.0.lock().unwrap().slow = true;
    }

    /// Answers what has been asked so far, and returns how much it was. More may have been asked
    /// since.
    pub(in super::super) fn answer(&self) -> usize {
        let pending = std::mem::take(&mut self.0.lock().unwrap().pending);
        let n = pending.len();
        for Pending { by, peer, what, done } in pending {
            done(self.ask(by, peer, &what));
        }
        n
    }

    /// Fetches that have been made so far.
    pub(in super::super) fn fetched(&self) -> usize {
        self.0.lock().unwrap().fetched
    }

    /// The next that are asked to follow a move are moving themselves.
    pub(in super::super) fn busy_for(&self, times: usize) {
        self.0.lock().unwrap().busy = times;
    }

    /// Whoever is asked to follow a move refuses, and says that; `None`: nobody does.
    pub(in super::super) fn refuse(&self, why: Option<&str>) {
        self.0.lock().unwrap().refusal = why.map(str::to_owned);
    }

    /// Where this process is cannot be found out; `None`: that of all can.
    pub(in super::super) fn lose(&self, process: Option<u32>) {
        self.0.lock().unwrap().unreachable = process.map(ProcessId);
    }

    /// From now on nothing is run any more that could be run soon.
    pub(in super::super) fn stop_running(&self) {
        self.0.lock().unwrap().stopping = true;
    }

    /// A process dies.
    pub(in super::super) fn kill(&self, process: u32) {
        self.0.lock().unwrap().dead.insert(ProcessId(process));
    }

    /// The time of every timer has come.
    pub(in super::super) fn run_timers(&self) {
        let timers = std::mem::take(&mut self.0.lock().unwrap().timers);
        timers.into_iter().for_each(|timer| timer());
    }

    /// Timers that are running.
    pub(in super::super) fn timers(&self) -> usize {
        self.0.lock().unwrap().timers.len()
    }

    /// What `peer` answers a process.
    pub(in super::super) fn ask_as(&self, by: u32, peer: ProcessId, what: &Fetch) -> Answer {
        self.ask(ProcessId(by), peer, what)
    }

    fn ask(&self, by: ProcessId, peer: ProcessId, what: &Fetch) -> Answer {
        let owner = {
            let mut state = self.0.lock().unwrap();
            if state.busy > 0 && matches!(what, Fetch::Remap(_, Request::Prepare { .. })) {
                state.busy -= 1;
                return Ok(Record::Remap(remap::Answer::Busy));
            }
            if state.unreachable == Some(peer) {
                let problem = "nobody listens there".to_owned();
                return Err(Error::Directory { place: "the test".to_owned(), problem });
            }
            if let (Some(why), Fetch::Remap(_, Request::Prepare { .. })) = (&state.refusal, what) {
                return Ok(Record::Remap(remap::Answer::Refused(why.clone())));
            }
            if state.dead.contains(&peer) {
                return Err(Error::Gone { process: peer });
            }
            let Some(owner) = state.owners.get(&peer) else {
                return Err(Error::NotYet { process: peer });
            };
            Arc::clone(owner)
        };
        let record = match what {
            Fetch::Qpn { qpn, own_qpn, own_end } => {
                let grant = Grant::new(by, Incarnation(1), ID);
                let asker = Asker {
                    process: by,
                    lid: grant.lid,
                    gid: grant.gid,
                    qpn: *own_qpn,
                    physical: *own_end,
                };
                owner.qpn(&asker, *qpn).map(Record::Qpn)
            }
            Fetch::Key(key) => owner.key(by, *key).map(Record::Key),
            Fetch::Remap(group, request) => Some(Record::Remap(owner.remap(by, *group, request))),
            Fetch::Moved(qps) => {
                qps.iter().for_each(|(qpn, end)| owner.moved(by, *qpn, end));
                Some(Record::Noted)
            }
            Fetch::Committed { serial, covers } => {
                owner.committed(by, *serial, covers);
                Some(Record::Noted)
            }
            Fetch::Written { report, part } => {
                Some(Record::Written(owner.written(by, *report, *part)))
            }
            Fetch::WrittenSaved { report } => {
                owner.written_saved(by, *report);
                Some(Record::Noted)
            }
            Fetch::Relocate { ticket, device } => {
                Some(Record::Order(owner.relocate(*ticket, device)))
            }
            Fetch::Note(_) => None,
        };
        record.ok_or_else(|| Error::Unknown { process: peer, what: what.to_string() })
    }
}

struct Member {
    job: Job,
    grant: Grant,
}

impl Resolver for Member {
    fn grant(&self) -> Grant {
        self.grant
    }

    fn alone(&self) -> bool {
        false
    }

    fn fetch(&self, peer: ProcessId, what: Fetch, _deadline: Instant, done: Done) {
        let by = self.grant.process;
        let mut state = self.job.0.lock().unwrap();
        state.fetched += 1;
        if state.slow {
            state.pending.push(Pending { by, peer, what, done });
            return;
        }
        drop(state);
        done(self.job.ask(by, peer, &what));
    }

    fn fetch_wait(&self, peer: ProcessId, what: Fetch, _deadline: Instant) -> Answer {
        self.job.ask(self.grant.process, peer, &what)
    }

    fn run_later(&self, _at: Instant, job: Box<dyn FnOnce() + Send>) {
        self.job.0.lock().unwrap().timers.push(job);
    }

    fn run_soon(&self, job: Box<dyn FnOnce() + Send>) {
        let stopping = self.job.0.lock().unwrap().stopping;
        if stopping { drop(job) } else { job() }
    }
}
