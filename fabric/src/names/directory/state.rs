//! The directory as a state machine without IO: requests and hang-ups in, replies out.
//!
//! Generic over what names a client: a connection of the server, a handle of the local one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::names::message::{Denial, FromDirectory, Place, ToDirectory};
use crate::names::timers::{TimerKey, Timers};
use crate::names::types::{Address, Grant, Incarnation, JobId, ProcessId, Whereabouts};

/// Most process numbers that a directory remembers, the dead included. Bounds its memory at some
/// hundreds of MB; far above any job that it was made for.
pub(crate) const MAX_PROCESSES: usize = 1 << 20;

/// Most look-ups of one client that wait for somebody to join.
pub(crate) const MAX_WAITING: usize = 4096;

struct Process<C> {
    /// Of its present life, or its last.
    incarnation: Incarnation,
    /// Who it is and where, while it lives.
    alive: Option<(C, Address)>,
}

struct Client {
    process: Option<ProcessId>,
    waiting: HashSet<(ProcessId, u32)>,
}

/// What the directory knows.
pub(crate) struct State<C> {
    job: JobId,
    /// The next number to deal to one who wants none in particular.
    next: u32,
    processes: HashMap<ProcessId, Process<C>>,
    clients: HashMap<C, Client>,
    /// Look-ups that wait for a process to join.
    waiting: HashMap<ProcessId, HashMap<(C, u32), TimerKey>>,
    timers: Timers<(ProcessId, C, u32)>,
    replies: VecDeque<(C, FromDirectory)>,
}

impl<C: Copy + Eq + Hash> State<C> {
    /// Numbers up to `reserve` are dealt only to those who ask for them.
    pub(crate) fn new(job: JobId, reserve: u32) -> State<C> {
        State {
            job,
            next: reserve.saturating_add(1),
            processes: HashMap::new(),
            clients: HashMap::new(),
            waiting: HashMap::new(),
            timers: Timers::new(),
            replies: VecDeque::new(),
        }
    }

    /// A client is there.
    pub(crate) fn handle_opened(&mut self, client: C) {
        self.clients.insert(client, Client { process: None, waiting: HashSet::new() });
    }

    /// A client has gone, and with it the process that it was.
    pub(crate) fn handle_closed(&mut self, client: C) {
        let Some(gone) = self.clients.remove(&client) else { return };
        for (process, id) in gone.waiting {
            self.stop_waiting(process, client, id);
        }
        if let Some(process) = gone.process.and_then(|id| self.processes.get_mut(&id)) {
            process.alive = None;
        }
    }

    /// A client says something.
    pub(crate) fn handle_request(&mut self, client: C, request: ToDirectory, now: Instant) {
        match request {
            ToDirectory::Join { wanted, address } => {
                let reply = match self.join(client, wanted, address) {
                    Ok(grant) => FromDirectory::Granted(grant),
                    Err(denial) => FromDirectory::Denied(denial),
                };
                self.replies.push_back((client, reply));
            }
            ToDirectory::Lookup { id, process, wait_ms } => {
                if let Some(place) = self.lookup(client, id, process, wait_ms, now) {
                    self.replies.push_back((client, FromDirectory::Place { id, place }));
                }
            }
        }
    }

    /// Time has passed.
    pub(crate) fn handle_time(&mut self, now: Instant) {
        while let Some((process, client, id)) = self.timers.expired(now) {
            self.stop_waiting(process, client, id);
            self.replies.push_back((client, FromDirectory::Place { id, place: Place::NotYet }));
        }
    }

    /// When [`handle_time`](Self::handle_time) has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// What to tell whom.
    pub(crate) fn next_reply(&mut self) -> Option<(C, FromDirectory)> {
        self.replies.pop_front()
    }

    fn join(
        &mut self,
        client: C,
        wanted: Option<ProcessId>,
        address: Address,
    ) -> Result<Grant, Denial> {
        let Some(joining) = self.clients.get_mut(&client) else { return Err(Denial::Twice) };
        if joining.process.is_some() {
            return Err(Denial::Twice);
        }
        let id = match wanted {
            Some(id) => id,
            None => {
                while self.processes.contains_key(&ProcessId(self.next)) {
                    self.next = self.next.checked_add(1).ok_or(Denial::Full)?;
                }
                ProcessId(self.next)
            }
        };
        if !self.processes.contains_key(&id) && self.processes.len() >= MAX_PROCESSES {
            return Err(Denial::Full);
        }
        let process = self
            .processes
            .entry(id)
            .or_insert(Process { incarnation: Incarnation(0), alive: None });
        if process.alive.is_some() {
            return Err(Denial::Alive(id));
        }
        let Some(incarnation) = process.incarnation.0.checked_add(1).map(Incarnation) else {
            return Err(Denial::Full);
        };
        process.incarnation = incarnation;
        process.alive = Some((client, address.clone()));
        joining.process = Some(id);
        self.answer_waiting(id, Whereabouts { address, incarnation });
        Ok(Grant::new(id, incarnation, self.job))
    }

    fn answer_waiting(&mut self, process: ProcessId, here: Whereabouts) {
        for ((client, id), timer) in self.waiting.remove(&process).unwrap_or_default() {
            self.timers.cancel(timer);
            if let Some(client) = self.clients.get_mut(&client) {
                client.waiting.remove(&(process, id));
            }
            let place = Place::Here(here.clone());
            self.replies.push_back((client, FromDirectory::Place { id, place }));
        }
    }

    fn stop_waiting(&mut self, process: ProcessId, client: C, id: u32) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.waiting.remove(&(process, id));
        }
        let Some(waiting) = self.waiting.get_mut(&process) else { return };
        if let Some(timer) = waiting.remove(&(client, id)) {
            self.timers.cancel(timer);
        }
        if waiting.is_empty() {
            self.waiting.remove(&process);
        }
    }

    /// `None` when the answer has to wait.
    fn lookup(
        &mut self,
        client: C,
        id: u32,
        process: ProcessId,
        wait_ms: u32,
        now: Instant,
    ) -> Option<Place> {
        match self.processes.get(&process) {
            Some(Process { incarnation, alive: Some((_, address)) }) => {
                Some(Place::Here(Whereabouts {
                    address: address.clone(),
                    incarnation: *incarnation,
                }))
            }
            Some(Process { alive: None, .. }) => Some(Place::Gone),
            None if wait_ms == 0 => Some(Place::NotYet),
            None => {
                let asking = self.clients.get_mut(&client)?;
                if asking.waiting.len() >= MAX_WAITING || !asking.waiting.insert((process, id)) {
                    return Some(Place::Busy);
                }
                let at = now + Duration::from_millis(wait_ms.into());
                let timer = self.timers.set(at, (process, client, id));
                self.waiting.entry(process).or_default().insert((client, id), timer);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::names::types::MachineId;

    fn address(n: u32) -> Address {
        Address { machine: MachineId([0; 16]), uid: n, unix: None, tcp: vec![] }
    }

    fn join(state: &mut State<u8>, client: u8, wanted: Option<u32>, now: Instant) -> FromDirectory {
        let wanted = wanted.map(ProcessId);
        let request = ToDirectory::Join { wanted, address: address(client.into()) };
        state.handle_request(client, request, now);
        std::iter::from_fn(|| state.next_reply()).find(|(to, _)| *to == client).unwrap().1
    }

    fn lookup(process: u32, id: u32, wait_ms: u32) -> ToDirectory {
        ToDirectory::Lookup { id, process: ProcessId(process), wait_ms }
    }

    fn open(clients: impl IntoIterator<Item = u8>, reserve: u32) -> State<u8> {
        let mut state = State::new(JobId(7), reserve);
        clients.into_iter().for_each(|client| state.handle_opened(client));
        state
    }

    fn granted(process: u32, incarnation: u32) -> FromDirectory {
        let grant = Grant::new(ProcessId(process), Incarnation(incarnation), JobId(7));
        FromDirectory::Granted(grant)
    }

    #[test]
    fn a_live_number_is_refused_and_a_dead_one_returns_with_a_higher_incarnation() {
        let now = Instant::now();
        let mut state = open(0..3, 0);
        assert_eq!(join(&mut state, 0, Some(5), now), granted(5, 1));
        let alive = FromDirectory::Denied(Denial::Alive(ProcessId(5)));
        assert_eq!(join(&mut state, 1, Some(5), now), alive);
        assert_eq!(join(&mut state, 0, Some(6), now), FromDirectory::Denied(Denial::Twice));
        state.handle_closed(0);
        assert_eq!(join(&mut state, 1, Some(5), now), granted(5, 2));
        state.handle_closed(1);
        state.handle_closed(1);
        assert_eq!(join(&mut state, 2, Some(5), now), granted(5, 3));
    }

    #[test]
    fn numbers_dealt_pass_over_the_reserved_and_the_used() {
        let now = Instant::now();
        let mut state = open(0..4, 4);
        assert_eq!(join(&mut state, 0, Some(6), now), granted(6, 1));
        assert_eq!(join(&mut state, 1, None, now), granted(5, 1));
        assert_eq!(join(&mut state, 2, None, now), granted(7, 1));
        assert_eq!(join(&mut state, 3, Some(2), now), granted(2, 1));
    }

    #[test]
    fn a_lookup_waits_until_the_process_joins_or_its_time_is_over() {
        let now = Instant::now();
        let mut state = open(0..3, 0);
        state.handle_request(0, lookup(9, 1, 0), now);
        assert_eq!(
            state.next_reply(),
            Some((0, FromDirectory::Place { id: 1, place: Place::NotYet }))
        );
        state.handle_request(0, lookup(9, 2, 100), now);
        state.handle_request(0, lookup(9, 3, 300), now);
        state.handle_request(2, lookup(9, 3, 300), now);
        state.handle_closed(2);
        assert_eq!(state.next_reply(), None);
        let later = state.next_deadline().unwrap();
        assert_eq!(later, now + Duration::from_millis(100));
        state.handle_time(later);
        assert_eq!(
            state.next_reply(),
            Some((0, FromDirectory::Place { id: 2, place: Place::NotYet }))
        );
        state.handle_request(
            1,
            ToDirectory::Join { wanted: Some(ProcessId(9)), address: address(1) },
            later,
        );
        let here = Whereabouts { address: address(1), incarnation: Incarnation(1) };
        let replies: Vec<_> = std::iter::from_fn(|| state.next_reply()).collect();
        let found = (0, FromDirectory::Place { id: 3, place: Place::Here(here) });
        assert_eq!(replies, [found, (1, granted(9, 1))]);
        assert_eq!(state.next_deadline(), None, "nothing waits any more");
        state.handle_closed(1);
        state.handle_request(0, lookup(9, 4, 1000), later);
        assert_eq!(
            state.next_reply(),
            Some((0, FromDirectory::Place { id: 4, place: Place::Gone })),
            "the dead are not waited for"
        );
    }

    #[test]
    fn one_client_can_keep_only_so_many_lookups_waiting() {
        let now = Instant::now();
        let mut state = open(0..1, 0);
        for id in 0..MAX_WAITING as u32 {
            state.handle_request(0, lookup(9, id, 1000), now);
        }
        assert_eq!(state.next_reply(), None);
        state.handle_request(0, lookup(9, u32::MAX, 1000), now);
        let busy = FromDirectory::Place { id: u32::MAX, place: Place::Busy };
        assert_eq!(state.next_reply(), Some((0, busy)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u8),
        Close(u8),
        Join(u8, Option<u32>),
        Lookup(u8, u32, u32),
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4u8).prop_map(Step::Open),
            (0..4u8).prop_map(Step::Close),
            (0..4u8, prop::option::of(1..5u32)).prop_map(|(c, w)| Step::Join(c, w)),
            (0..4u8, 1..5u32, 0..50u32).prop_map(|(c, p, w)| Step::Lookup(c, p, w)),
            (0..60u64).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Against a model that knows only who lives: numbers are never shared, incarnations only
        /// grow, every look-up of a client that stays is answered once and truthfully.
        #[test]
        fn whatever_happens_in_whatever_order(steps in prop::collection::vec(step(), 1..80)) {
            let mut now = Instant::now();
            let mut state: State<u8> = State::new(JobId(7), 0);
            let mut is_open = [false; 4];
            let mut alive: HashMap<ProcessId, u8> = HashMap::new();
            let mut lives: HashMap<ProcessId, u32> = HashMap::new();
            let mut unanswered: HashMap<u32, (u8, ProcessId)> = HashMap::new();
            for (n, step) in steps.into_iter().enumerate() {
                let n = n as u32;
                match step {
                    Step::Open(c) if !is_open[c as usize] => {
                        is_open[c as usize] = true;
                        state.handle_opened(c);
                    }
                    Step::Close(c) => {
                        is_open[c as usize] = false;
                        state.handle_closed(c);
                        alive.retain(|_, owner| *owner != c);
                        unanswered.retain(|_, (asker, _)| *asker != c);
                    }
                    Step::Join(c, wanted) if is_open[c as usize] => {
                        let wanted = wanted.map(ProcessId);
                        let request = ToDirectory::Join { wanted, address: address(c.into()) };
                        state.handle_request(c, request, now);
                    }
                    Step::Lookup(c, process, wait_ms) if is_open[c as usize] => {
                        unanswered.insert(n, (c, ProcessId(process)));
                        state.handle_request(c, lookup(process, n, wait_ms), now);
                    }
                    Step::Pass(ms) => {
                        now += Duration::from_millis(ms);
                        state.handle_time(now);
                    }
                    _ => {}
                }
                let mut places = vec![];
                while let Some((to, reply)) = state.next_reply() {
                    prop_assert!(is_open[to as usize]);
                    match reply {
                        FromDirectory::Granted(grant) => {
                            prop_assert!(alive.insert(grant.process, to).is_none());
                            let life = lives.entry(grant.process).or_insert(0);
                            *life += 1;
                            prop_assert_eq!(grant.incarnation.0, *life);
                        }
                        FromDirectory::Denied(Denial::Alive(p)) => {
                            prop_assert!(alive.contains_key(&p));
                        }
                        FromDirectory::Denied(_) => {
                            prop_assert!(alive.values().any(|owner| *owner == to));
                        }
                        FromDirectory::Place { id, place } => places.push((to, id, place)),
                    }
                }
                for (to, id, place) in places {
                    let (asker, process) = unanswered.remove(&id).expect("asked, and once");
                    prop_assert_eq!(asker, to);
                    match place {
                        Place::Here(here) => {
                            prop_assert_eq!(here.address.uid, u32::from(alive[&process]));
                            prop_assert_eq!(here.incarnation.0, lives[&process]);
                        }
                        Place::NotYet => prop_assert!(!lives.contains_key(&process)),
                        Place::Gone => {
                            prop_assert!(lives.contains_key(&process));
                            prop_assert!(!alive.contains_key(&process));
                        }
                        Place::Busy => prop_assert!(false, "far below the limit"),
                    }
                }
            }
            state.handle_time(now + Duration::from_secs(1));
            let late = std::iter::from_fn(|| state.next_reply()).count();
            prop_assert_eq!(late, unanswered.len());
            for client in 0..4 {
                state.handle_closed(client);
            }
            prop_assert!(state.waiting.is_empty() && state.clients.is_empty());
            prop_assert_eq!(state.next_deadline(), None);
        }
    }
}
