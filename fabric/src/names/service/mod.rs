//! The control service of a process: one thread, asleep until something is asked.
//!
//! It joins the job, answers what peers ask of this process ([`Owner`], notes), and fetches from
//! them what this process needs, without ever making the asking thread wait. It also runs what the
//! virtual layer has to do outside of the program's calls: closures ([`Handle::run`]), timers
//! ([`Handle::run_later`]) and watched descriptors ([`Handle::watch`]). All of these, and the
//! callbacks of fetches, run on the service thread one after the other: they must not wait. One
//! that panics ends the service, and with it this process's place in the job.
//!
//! Every signal is blocked on the thread, so that the program's handlers run where the program
//! expects them.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use sojourn_logging::remap::{self, GroupId, Request};

use super::directory::Directory;
use super::error::Error;
use super::key::JobKey;
use super::links::HANDSHAKE_TIME;
use super::message::{MAX_NOTE, MAX_NOTE_NAME};
use super::poller::{Poller, Ready, Wake};
use super::types::{
    Asker, Cover, Fetch, Grant, KeyRecord, Order, PhysicalEnd, ProcessId, QpnRecord, Record,
    WrittenPart,
};

mod answer;
mod fetch;
mod start;
mod thread;

/// How long joining may take: a launcher that starts many ranks at once on a loaded machine.
const JOIN_TIME: Duration = Duration::from_secs(30);

/// What a blocking fetch waits past its deadline for the service to report that deadline.
const GRACE: Duration = Duration::from_secs(1);

/// What this process publishes. Called on the service thread, so it must answer from tables, and
/// at once.
pub trait Owner: Send + Sync {
    /// What a virtual queue pair number of this process stands for. The asker's own end comes with
    /// the question.
    fn qpn(&self, asker: &Asker, qpn: u32) -> Option<QpnRecord>;
    /// What a virtual remote key of this process stands for.
    fn key(&self, asker: ProcessId, key: u32) -> Option<KeyRecord>;
    /// A context of `asker` goes to another device, and this is about a group of connections with
    /// it. It may be asked again.
    fn remap(
        &self,
        asker: ProcessId,
        group: GroupId,
        request: &Request<PhysicalEnd>,
    ) -> remap::Answer<PhysicalEnd>;
    /// A queue pair of `asker` for datagrams stands for `end` from now on.
    fn moved(&self, asker: ProcessId, qpn: u32, end: &PhysicalEnd);
    /// `asker` has committed an epoch that has consumed this. It may be told again.
    fn committed(&self, asker: ProcessId, serial: u64, covers: &[Cover]);
    /// What this process has written into the asker's memory, as of its report of that number; a part of it.
    fn written(&self, asker: ProcessId, report: u64, part: u32) -> WrittenPart;
    /// What was told for that report is safe.
    fn written_saved(&self, asker: ProcessId, report: u64);
    /// All contexts are to go to that device. It is asked again, with the same ticket, how that goes.
    fn relocate(&self, ticket: u64, device: &str) -> Order;
}

/// The result of a fetch.
pub type Fetched = Result<Record, Error>;

/// What a service needs to know.
pub struct ServiceConfig {
    /// The directory of the job.
    pub directory: Box<dyn Directory>,
    /// The key of the job.
    pub key: JobKey,
    /// The process number to join as; the next free one if `None`.
    pub wanted: Option<ProcessId>,
    /// A private directory for this process's socket; one of its own if `None`.
    pub socket_dir: Option<PathBuf>,
    /// Where to listen for processes of other machines too.
    pub listen_tcp: Option<IpAddr>,
    /// How long joining may take.
    pub join_time: Duration,
    /// How long a connection may take to authenticate itself.
    pub handshake_time: Duration,
}

impl ServiceConfig {
    /// A service on this machine alone, under the next free number.
    pub fn new(directory: Box<dyn Directory>, key: JobKey) -> ServiceConfig {
        ServiceConfig {
            directory,
            key,
            wanted: None,
            socket_dir: None,
            listen_tcp: None,
            join_time: JOIN_TIME,
            handshake_time: HANDSHAKE_TIME,
        }
    }
}

/// The running service. Leaves the job and stops when dropped; what is unanswered then fails with
/// [`Error::Stopped`].
pub struct Service {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Listens, joins the job, and serves from then on.
    pub fn start(config: ServiceConfig, owner: Arc<dyn Owner>) -> Result<Service, Error> {
        start::start(config, owner)
    }
}

impl std::ops::Deref for Service {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && !self.handle.on_service_thread()
        {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// A way to reach the service from any thread, its own included. Cheap to clone; does not keep the
/// service running.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    grant: Grant,
}

/// A closure for the service thread.
pub type Job = Box<dyn FnOnce() + Send>;
/// What takes the result of a fetch.
pub type Done = Box<dyn FnOnce(Fetched) + Send>;
/// What is called when a watched descriptor is ready.
pub type OnReady = Box<dyn FnMut(Ready) + Send>;

struct Shared {
    commands: Sender<Command>,
    wake: Wake,
    poller: Poller,
    /// Tokens of watches, from [`thread::FIRST_WATCH`] up.
    next_watch: AtomicU64,
    thread: std::sync::OnceLock<ThreadId>,
}

enum Command {
    Fetch { peer: ProcessId, what: Fetch, deadline: Instant, done: Reply },
    Publish { name: String, note: Vec<u8> },
    Withdraw { name: String },
    Run(Job),
    Later(Instant, Job),
    Watch { token: u64, fd: Arc<dyn AsFd + Send + Sync>, call: OnReady },
    Unwatch { token: u64 },
    Stop,
}

/// Answers exactly once, whatever becomes of the service: dropped without an answer, it answers
/// that the service has stopped.
struct Reply(Option<Done>);

impl Reply {
    fn send(mut self, fetched: Fetched) {
        if let Some(done) = self.0.take() {
            done(fetched);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(Error::Stopped));
        }
    }
}

impl Handle {
    /// What this process is in the job.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Fetches from the owner. `done` is called exactly once, at the deadline at the latest, and
    /// on the service thread (on the caller's if the service has stopped). A process that has not
    /// joined yet, and a note that is not published yet, are waited for; one that has died fails
    /// with [`Error::Gone`] at once. Never blocks.
    pub fn fetch(&self, peer: ProcessId, what: Fetch, deadline: Instant, done: Done) {
        self.send(Command::Fetch { peer, what, deadline, done: Reply(Some(done)) });
    }

    /// As [`fetch`](Self::fetch), for threads that may wait.
    pub fn fetch_wait(&self, peer: ProcessId, what: Fetch, deadline: Instant) -> Fetched {
        if self.on_service_thread() {
            return Err(Error::OnServiceThread { what: "fetch_wait" });
        }
        let (tx, rx) = crossbeam_channel::bounded(1);
        let text = what.to_string();
        let done = Box::new(move |fetched| drop(tx.send(fetched)));
        self.fetch(peer, what, deadline, done);
        rx.recv_deadline(deadline.checked_add(GRACE).unwrap_or(deadline)).unwrap_or_else(
            |e| match e {
                RecvTimeoutError::Disconnected => Err(Error::Stopped),
                RecvTimeoutError::Timeout => Err(Error::Deadline {
                    process: peer,
                    what: text,
                    doing: "the service thread of this process is kept busy".into(),
                }),
            },
        )
    }

    /// Publishes a note under a name, in place of an earlier one.
    pub fn publish_note(&self, name: &str, note: &[u8]) -> Result<(), Error> {
        limit("the length of a note's name", name.len(), MAX_NOTE_NAME)?;
        limit("the length of a note", note.len(), MAX_NOTE)?;
        self.send(Command::Publish { name: name.into(), note: note.into() });
        Ok(())
    }

    /// Takes a note back: who fetches it from now on waits for another of that name.
    pub fn withdraw_note(&self, name: &str) {
        self.send(Command::Withdraw { name: name.into() });
    }

    /// Runs a closure on the service thread, soon. It is dropped unrun if the service stops first.
    pub fn run(&self, job: Job) {
        self.send(Command::Run(job));
    }

    /// Runs a closure on the service thread at that instant, or soon after it. It is dropped unrun
    /// if the service stops first.
    pub fn run_later(&self, at: Instant, job: Job) {
        self.send(Command::Later(at, job));
    }

    /// Calls back on the service thread whenever the descriptor is ready, and again for as long as
    /// it stays so: the callback has to take what makes it ready, or to
    /// [change the interest](Watch::set).
    pub fn watch(
        &self,
        fd: Arc<dyn AsFd + Send + Sync>,
        on: Ready,
        call: OnReady,
    ) -> Result<Watch, Error> {
        let token = self.shared.next_watch.fetch_add(1, Ordering::Relaxed);
        // The command first: the thread reads commands before it looks up whom to call.
        self.send(Command::Watch { token, fd: fd.clone(), call });
        let watch = Watch { shared: self.shared.clone(), token, fd };
        let add = self.shared.poller.add(watch.fd.as_fd(), token, on);
        add.map_err(|errno| Error::system("watching a descriptor", errno))?;
        Ok(watch)
    }

    /// Whether the caller runs on the service thread, where nothing may wait for the service.
    pub fn on_service_thread(&self) -> bool {
        self.shared.thread.get() == Some(&std::thread::current().id())
    }

    fn send(&self, command: Command) {
        self.shared.send(command);
    }
}

impl Shared {
    fn send(&self, command: Command) {
        // When the service has stopped the command is dropped here, and a fetch answers so.
        if self.commands.send(command).is_ok() {
            self.wake.wake();
        }
    }
}

/// A watched descriptor; no longer watched once this is dropped. (A callback that runs at that
/// moment on the service thread still finishes.)
pub struct Watch {
    shared: Arc<Shared>,
    token: u64,
    fd: Arc<dyn AsFd + Send + Sync>,
}

impl Watch {
    /// Changes what to wait for; nothing, to pause.
    pub fn set(&self, on: Ready) -> Result<(), Error> {
        self.shared
            .poller
            .modify(self.fd.as_fd(), self.token, on)
            .map_err(|errno| Error::system("watching a descriptor", errno))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.poller.delete(self.fd.as_fd());
        self.shared.send(Command::Unwatch { token: self.token });
    }
}

fn limit(what: &str, value: usize, limit: usize) -> Result<(), Error> {
    if value <= limit { Ok(()) } else { Err(Error::Limit { what: what.into(), value, limit }) }
}
