//! What this process fetches from others.
//!
//! A connection to a peer is made when something of it is needed first, and kept. When it breaks
//! the directory is asked whether the peer still lives: if not, everything that waits for it
//! fails at once; if it does, the connection is made again, a few times, and what was unanswered
//! is asked again (a question has no effect that asking twice would double).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::debug;

use super::Reply;
use super::answer::{Answers, Who};
use crate::names::directory::{self, Directory};
use crate::names::error::Error;
use crate::names::links::{Event, LinkError, LinkId, Links};
use crate::names::message::{self, Answer, Checked, MAX_NOTE_NAME, Peer};
use crate::names::stream::{Endpoint, ways};
use crate::names::timers::{TimerKey, Timers};
use crate::names::types::{Fetch, Grant, MachineId, ProcessId, Record, Whereabouts};

/// Connections to peers that are kept though nothing is asked on them; the one unused for longest
/// makes room.
const MAX_KEPT: usize = 1024;

/// What is waited before connecting anew to a peer that the directory says lives: nothing at
/// first, since mostly one of the two has just restarted; then longer. After the last, the peer
/// counts as unreachable. Together far longer than the directory takes to notice a death, on a
/// loaded machine too.
const REST: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];

/// Failures after which a peer counts as unreachable where the directory can't be asked either.
const BLIND_FAILURES: usize = 3;

/// What this half of the service does its IO with.
pub(super) struct Io<'a> {
    pub(super) links: &'a mut Links,
    pub(super) answers: &'a mut Answers,
    pub(super) now: Instant,
}

/// How far we are with a peer.
enum Stage {
    /// Nothing is wanted of it, or everything has failed.
    Idle,
    /// The directory has been asked, and has not answered yet.
    Locating,
    /// It has answered that the peer has not joined, and will tell when it does.
    Awaiting,
    /// After a failure, until the timer asks the directory again.
    Resting,
    /// With the other ways to try if this one fails.
    Connecting(VecDeque<Endpoint>),
    /// Connected and authenticated; it has not said who it is.
    Greeting,
    Ready(LinkId),
}

struct Pending {
    what: Fetch,
    deadline: Instant,
    timer: TimerKey,
    reply: Reply,
}

struct Remote {
    place: Option<Whereabouts>,
    stage: Stage,
    /// Since it last answered something.
    failures: usize,
    /// Why it failed last.
    problem: String,
    /// By number, so that what is asked again is asked in the order in which it was asked first.
    pending: BTreeMap<u32, Pending>,
    used: Instant,
}

enum Due {
    Deadline(ProcessId, u32),
    Rested(ProcessId),
}

/// The fetching half of the service.
pub(super) struct Fetches {
    me: Grant,
    machine: MachineId,
    directory: Box<dyn Directory>,
    peers: HashMap<ProcessId, Remote>,
    links: HashMap<LinkId, ProcessId>,
    timers: Timers<Due>,
    next_id: u32,
}

impl Fetches {
    pub(super) fn new(me: Grant, machine: MachineId, directory: Box<dyn Directory>) -> Fetches {
        Fetches {
            me,
            machine,
            directory,
            peers: HashMap::new(),
            links: HashMap::new(),
            timers: Timers::new(),
            next_id: 0,
        }
    }

    /// Whether a connection is one of those made here.
    pub(super) fn owns(&self, link: LinkId) -> bool {
        self.links.contains_key(&link)
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.timers.next(), self.directory.next_deadline()].into_iter().flatten().min()
    }

    pub(super) fn fetch(
        &mut self,
        process: ProcessId,
        what: Fetch,
        deadline: Instant,
        reply: Reply,
        mut io: Io<'_>,
    ) {
        if process.check().is_err() {
            return reply.send(Err(Error::NotYet { process }));
        }
        if let (Fetch::Note(name), Err(_)) = (&what, what.check()) {
            let (value, limit) = (name.len(), MAX_NOTE_NAME);
            let what = "the length of a note's name".into();
            return reply.send(Err(Error::Limit { what, value, limit }));
        }
        let remote = self.peers.entry(process).or_insert_with(|| Remote {
            place: None,
            stage: Stage::Idle,
            failures: 0,
            problem: String::new(),
            pending: BTreeMap::new(),
            used: io.now,
        });
        remote.used = io.now;
        // Numbers come round again after 2^32 fetches; one that still waits keeps its own.
        while remote.pending.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let timer = self.timers.set(deadline, Due::Deadline(process, id));
        remote.pending.insert(id, Pending { what, deadline, timer, reply });
        if process == self.me.process {
            self.ask_myself(id, &mut io);
        } else {
            match remote.stage {
                Stage::Idle if remote.place.is_some() => self.connect(process, &mut io),
                Stage::Idle => self.locate(process, io.now),
                Stage::Ready(link) => self.ask(process, link, Some(id), &mut io),
                // What is on its way takes this along.
                _ => {}
            }
        }
    }

    /// Answers of the directory and timers. Says whether there was anything.
    pub(super) fn drive(&mut self, mut io: Io<'_>) -> bool {
        let mut busy = false;
        self.directory.drive(io.now);
        while let Some(answer) = self.directory.next_answer() {
            busy = true;
            if let directory::Answer::Found(process, found) = answer {
                self.located(process, found, &mut io);
            }
        }
        for (id, record) in io.answers.take_mine() {
            self.complete(self.me.process, id, Ok(record));
        }
        while let Some(due) = self.timers.expired(io.now) {
            busy = true;
            match due {
                Due::Deadline(process, id) => self.too_late(process, id),
                Due::Rested(process) => self.locate(process, io.now),
            }
        }
        busy
    }

    /// Something happened on a connection made here.
    pub(super) fn event(&mut self, event: Event, mut io: Io<'_>) {
        match event {
            Event::Opened(link) => {
                let Some((_, remote)) = self.remote(link) else { return };
                remote.stage = Stage::Greeting;
                let hello = Peer::Hello { process: self.me.process };
                io.links.send(link, &message::encode(&hello));
            }
            Event::Message(link, bytes) => {
                let Some((process, _)) = self.remote(link) else { return };
                if let Err(why) = self.message(process, link, &bytes, &mut io) {
                    io.links.close(link);
                    self.links.remove(&link);
                    self.failed(process, why, io.now);
                }
            }
            Event::Ended(link, why) => {
                let Some((process, remote)) = self.remote(link) else { return };
                let rest = match &mut remote.stage {
                    Stage::Connecting(ways) => std::mem::take(ways),
                    _ => VecDeque::new(),
                };
                self.links.remove(&link);
                self.connect_by(process, rest, why.to_string(), &mut io);
            }
        }
    }

    fn remote(&mut self, link: LinkId) -> Option<(ProcessId, &mut Remote)> {
        let process = *self.links.get(&link)?;
        self.peers.get_mut(&process).map(|remote| (process, remote))
    }

    /// Asks the directory, if anything still waits for the answer.
    fn locate(&mut self, process: ProcessId, now: Instant) {
        let Some(remote) = self.peers.get_mut(&process) else { return };
        if remote.pending.is_empty() {
            remote.stage = Stage::Idle;
            return;
        }
        remote.stage = Stage::Locating;
        self.directory.lookup(process, None, now);
    }

    /// Asks the directory to tell when the peer joins, for as long as anybody waits for that.
    fn wait_for(&mut self, process: ProcessId, now: Instant) {
        let Some(remote) = self.peers.get_mut(&process) else { return };
        match remote.pending.values().map(|pending| pending.deadline).max() {
            Some(last) if last > now => {
                remote.stage = Stage::Awaiting;
                self.directory.lookup(process, Some(last), now);
            }
            // Their own timers end what is left.
            _ => remote.stage = Stage::Idle,
        }
    }

    fn located(&mut self, process: ProcessId, found: Result<Whereabouts, Error>, io: &mut Io<'_>) {
        let Some(remote) = self.peers.get_mut(&process) else { return };
        if !matches!(remote.stage, Stage::Locating | Stage::Awaiting) {
            return;
        }
        remote.stage = Stage::Idle;
        match found {
            Ok(place) => {
                remote.place = Some(place);
                if !remote.pending.is_empty() {
                    self.connect(process, io);
                }
            }
            Err(Error::NotYet { .. }) if remote.failures == 0 => self.wait_for(process, io.now),
            Err(error @ (Error::Gone { .. } | Error::NotYet { .. })) => {
                remote.place = None;
                self.fail_all(process, error);
            }
            // The directory can't be asked. What is known may still be true.
            Err(_) if remote.place.is_some() && remote.failures < BLIND_FAILURES => {
                self.connect(process, io);
            }
            Err(error) if remote.failures > 0 => {
                let problem = format!("{}; {error}", remote.problem);
                self.fail_all(process, Error::Unreachable { process, problem });
            }
            Err(error) => self.fail_all(process, error),
        }
    }

    fn connect(&mut self, process: ProcessId, io: &mut Io<'_>) {
        let Some(remote) = self.peers.get(&process) else { return };
        let ways =
            remote.place.as_ref().map(|p| ways(&p.address, self.machine)).unwrap_or_default();
        self.make_room(io);
        let none = "it has no address that can be reached from here".to_string();
        self.connect_by(process, ways.into(), none, io);
    }

    /// Tries one way after the other; after the last, the peer has failed by what the last one said.
    fn connect_by(
        &mut self,
        process: ProcessId,
        mut ways: VecDeque<Endpoint>,
        mut why: String,
        io: &mut Io<'_>,
    ) {
        while let Some(way) = ways.pop_front() {
            match io.links.connect(&way, io.now) {
                Ok(link) => {
                    self.links.insert(link, process);
                    if let Some(remote) = self.peers.get_mut(&process) {
                        remote.stage = Stage::Connecting(ways);
                    }
                    return;
                }
                Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
                    let error = Error::system(format!("connecting to {process}"), errno);
                    return self.fail_all(process, error);
                }
                Err(errno) => why = format!("{way}: {}", LinkError::from(errno)),
            }
        }
        self.failed(process, why, io.now);
    }

    /// There is no connection (any more), and no other way to try.
    fn failed(&mut self, process: ProcessId, why: String, now: Instant) {
        debug!("{process}: {why}");
        let Some(remote) = self.peers.get_mut(&process) else { return };
        remote.problem = why;
        if remote.pending.is_empty() {
            remote.stage = Stage::Idle;
            remote.failures = 0;
            return;
        }
        let Some(rest) = REST.get(remote.failures) else {
            let problem = remote.problem.clone();
            return self.fail_all(process, Error::Unreachable { process, problem });
        };
        remote.failures += 1;
        if rest.is_zero() {
            self.locate(process, now);
        } else {
            remote.stage = Stage::Resting;
            self.timers.set(now + *rest, Due::Rested(process));
        }
    }

    fn message(
        &mut self,
        process: ProcessId,
        link: LinkId,
        bytes: &[u8],
        io: &mut Io<'_>,
    ) -> Result<(), String> {
        let message = message::decode::<Peer>(bytes).map_err(|e| e.to_string())?;
        let Some(remote) = self.peers.get_mut(&process) else { return Ok(()) };
        match (&remote.stage, message) {
            (Stage::Greeting, Peer::Welcome { process: there, incarnation }) => {
                let expected = remote.place.as_ref().map(|place| place.incarnation);
                if there != process || Some(incarnation) != expected {
                    // Not cached any longer: the address has a new tenant.
                    remote.place = None;
                    return Err(format!("{there} of incarnation {} answers", incarnation.0));
                }
                remote.stage = Stage::Ready(link);
                self.ask(process, link, None, io);
                Ok(())
            }
            (Stage::Ready(_), Peer::Answer { id, answer }) => {
                remote.failures = 0;
                let Some(pending) = remote.pending.get(&id) else {
                    return Ok(()); // answered after its deadline
                };
                let what = pending.what.to_string();
                let fetched = match answer {
                    Answer::Record(record) if record.answers(&pending.what) => Ok(record),
                    Answer::Record(_) => return Err("it answered what was not asked".into()),
                    Answer::Unknown => Err(Error::Unknown { process, what }),
                    Answer::Busy => Err(Error::Busy { process, what }),
                };
                self.complete(process, id, fetched);
                Ok(())
            }
            _ => Err("it sent a message out of turn".into()),
        }
    }

    /// Asks one thing, or all that waits.
    fn ask(&mut self, process: ProcessId, link: LinkId, only: Option<u32>, io: &mut Io<'_>) {
        let Some(remote) = self.peers.get_mut(&process) else { return };
        let mut send = |id: u32, pending: &Pending| {
            let wait_ms = message::wait_ms(pending.deadline, io.now);
            let ask = Peer::Ask { id, wait_ms, what: pending.what.clone() };
            io.links.send(link, &message::encode(&ask));
        };
        match only {
            Some(id) => {
                if let Some(pending) = remote.pending.get(&id) {
                    send(id, pending);
                }
            }
            None => remote.pending.iter().for_each(|(id, pending)| send(*id, pending)),
        }
    }

    fn ask_myself(&mut self, id: u32, io: &mut Io<'_>) {
        let process = self.me.process;
        let Some(pending) = self.peers.get(&process).and_then(|r| r.pending.get(&id)) else {
            return;
        };
        let (what, until) = (&pending.what, pending.deadline);
        let text = what.to_string();
        let fetched = match io.answers.answer(process, Who::Me(id), what, until) {
            None => return,
            Some(Answer::Record(record)) => Ok(record),
            Some(Answer::Unknown) => Err(Error::Unknown { process, what: text }),
            Some(Answer::Busy) => Err(Error::Busy { process, what: text }),
        };
        self.complete(process, id, fetched);
    }

    fn complete(&mut self, process: ProcessId, id: u32, fetched: Result<Record, Error>) {
        let Some(remote) = self.peers.get_mut(&process) else { return };
        if let Some(pending) = remote.pending.remove(&id) {
            self.timers.cancel(pending.timer);
            pending.reply.send(fetched);
        }
    }

    fn too_late(&mut self, process: ProcessId, id: u32) {
        let Some(remote) = self.peers.get(&process) else { return };
        let Some(pending) = remote.pending.get(&id) else { return };
        let note = matches!(pending.what, Fetch::Note(_));
        let doing = match &remote.stage {
            Stage::Ready(_) if note => "it has not published it".into(),
            _ if process == self.me.process => "it has not published it".into(),
            Stage::Idle | Stage::Awaiting if remote.failures == 0 => {
                return self.complete(process, id, Err(Error::NotYet { process }));
            }
            Stage::Locating if remote.failures == 0 => {
                format!("the directory at {} does not answer", self.directory.place())
            }
            Stage::Ready(_) => "it is connected, and silent".into(),
            Stage::Connecting(_) | Stage::Greeting if remote.failures == 0 => {
                "it does not answer the connection".into()
            }
            _ => format!("it can't be reached: {}", remote.problem),
        };
        let what = pending.what.to_string();
        self.complete(process, id, Err(Error::Deadline { process, what, doing }));
    }

    fn fail_all(&mut self, process: ProcessId, error: Error) {
        let Some(remote) = self.peers.get_mut(&process) else { return };
        remote.stage = Stage::Idle;
        remote.failures = 0;
        for pending in std::mem::take(&mut remote.pending).into_values() {
            self.timers.cancel(pending.timer);
            pending.reply.send(Err(error.clone()));
        }
    }

    /// Lets go of the connection unused for longest, where too many are kept.
    fn make_room(&mut self, io: &mut Io<'_>) {
        if self.links.len() < MAX_KEPT {
            return;
        }
        let idle = self.peers.values_mut().filter(|remote| remote.pending.is_empty());
        let oldest = idle
            .filter_map(|remote| match remote.stage {
                Stage::Ready(link) => Some((remote.used, link, remote)),
                _ => None,
            })
            .min_by_key(|(used, link, _)| (*used, *link));
        if let Some((_, link, remote)) = oldest {
            remote.stage = Stage::Idle;
            self.links.remove(&link);
            io.links.close(link);
        }
    }
}
