//! The embedded directory: one thread around the [state machine](super::state).
//!
//! Started by the launcher, one per job. It listens on a unix socket in a private directory, on
//! TCP, or on both, and lives until it is dropped.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::state::State;
use crate::names::error::Error;
use crate::names::key::JobKey;
use crate::names::links::{Event, HANDSHAKE_TIME, LinkId, Links};
use crate::names::message::{self, ToDirectory};
use crate::names::poller::{Poller, Ready, Wake, spawn};
use crate::names::stream::Endpoint;

/// Most connections of one directory: one per process, at the size to which LIDs run, and some.
const MAX_CONNECTIONS: usize = 50_000;

const WAKE: u64 = 0;
const LINKS: u64 = 1;

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen. TCP port 0 lets the system choose; the directory of a unix socket must
    /// exist and be closed to others.
    pub listen: Vec<Endpoint>,
    /// The key of the job.
    pub key: JobKey,
    /// Process numbers up to this one are dealt only to those who ask for them: the ranks.
    pub reserve: u32,
    /// How long a connection may take to authenticate itself.
    pub handshake_time: Duration,
}

impl ServerConfig {
    /// One that listens there, with `reserve` ranks to come.
    pub fn new(listen: Endpoint, key: JobKey, reserve: u32) -> ServerConfig {
        ServerConfig { listen: vec![listen], key, reserve, handshake_time: HANDSHAKE_TIME }
    }
}

/// A running directory. Stops, and takes its sockets with it, when dropped.
pub struct DirectoryServer {
    endpoints: Vec<Endpoint>,
    wake: Arc<Wake>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DirectoryServer {
    /// Listens, and serves from then on.
    pub fn start(config: ServerConfig) -> Result<DirectoryServer, Error> {
        let state = State::new(config.key.job_id(), config.reserve);
        let mut links = Links::new(config.key, config.handshake_time, MAX_CONNECTIONS)?;
        let endpoints =
            config.listen.iter().map(|at| links.listen(at)).collect::<Result<Vec<_>, _>>()?;
        let poller = Poller::new()?;
        let (wake, stop) = (Arc::new(Wake::new()?), Arc::new(AtomicBool::new(false)));
        for (fd, token) in [(wake.as_fd(), WAKE), (links.as_fd(), LINKS)] {
            poller
                .add(fd, token, Ready::READ)
                .map_err(|errno| Error::system("watching the directory's sockets", errno))?;
        }
        // Moving the wake-up into the thread keeps its descriptor open for as long as it is watched.
        let (stopped, woken) = (stop.clone(), wake.clone());
        let mut server = Server { links, state };
        let thread = spawn("sj-directory", move || {
            while !stopped.load(Ordering::Acquire) {
                let deadline = server.drive(Instant::now());
                poller.sleep(deadline);
                woken.clear();
            }
        })?;
        Ok(DirectoryServer { endpoints, wake, stop, thread: Some(thread) })
    }

    /// Where it listens, in the order of the configuration.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

impl Drop for DirectoryServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Server {
    links: Links,
    state: State<LinkId>,
}

impl Server {
    /// Everything that can be done now. Returns when to come back at the latest.
    fn drive(&mut self, now: Instant) -> Option<Instant> {
        self.links.drive(now);
        self.state.handle_time(now);
        self.reply();
        while let Some(event) = self.links.next_event() {
            match event {
                Event::Opened(link) => self.state.handle_opened(link),
                Event::Message(link, bytes) => match message::decode::<ToDirectory>(&bytes) {
                    Ok(request) => self.state.handle_request(link, request, now),
                    Err(error) => {
                        warn!("a client of the directory is dropped: {error}");
                        self.links.close(link);
                        self.state.handle_closed(link);
                    }
                },
                Event::Ended(link, error) => {
                    debug!("a client of the directory has gone: {error}");
                    self.state.handle_closed(link);
                }
            }
            self.reply();
        }
        [self.links.next_deadline(), self.state.next_deadline()].into_iter().flatten().min()
    }

    fn reply(&mut self) {
        while let Some((link, reply)) = self.state.next_reply() {
            self.links.send(link, &message::encode(&reply));
        }
    }
}
