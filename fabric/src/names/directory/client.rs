//! The embedded directory as a process sees it: one connection, which is also its membership.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::warn;

use super::{Answer, Directory, denied, found};
use crate::names::error::Error;
use crate::names::key::JobKey;
use crate::names::links::{Event, LinkError, LinkId, Links};
use crate::names::message::{self, FromDirectory, ToDirectory};
use crate::names::session::SessionError;
use crate::names::stream::Endpoint;
use crate::names::types::{Address, ProcessId};

/// How long to wait before connecting again to a server whose backlog is full.
const RETRY: Duration = Duration::from_millis(10);

/// How the connection stands.
enum Standing {
    /// Nobody has joined yet.
    Idle,
    /// To be tried (again) then.
    Later {
        at: Instant,
        give_up: Instant,
        join: ToDirectory,
    },
    /// On its way. The request to join goes out once it is there.
    Connecting(ToDirectory),
    Open(LinkId),
    Lost(Error),
}

/// A client of a [`DirectoryServer`](super::DirectoryServer).
pub struct Client {
    server: Endpoint,
    key: JobKey,
    handshake_time: Duration,
    links: Links,
    standing: Standing,
    lookups: HashMap<u32, ProcessId>,
    next_lookup: u32,
    joining: bool,
    answers: VecDeque<Answer>,
}

impl Client {
    /// A client of the directory there. It connects when it is asked to join.
    pub fn new(server: Endpoint, key: JobKey, handshake_time: Duration) -> Result<Client, Error> {
        let links = Links::new(key.clone(), handshake_time, 0)?;
        Ok(Client {
            server,
            key,
            handshake_time,
            links,
            standing: Standing::Idle,
            lookups: HashMap::new(),
            next_lookup: 0,
            joining: false,
            answers: VecDeque::new(),
        })
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::Directory { place: self.server.to_string(), problem: problem.into() }
    }

    fn connect(&mut self, join: ToDirectory, now: Instant, give_up: Instant) {
        self.standing = match self.links.connect(&self.server, now) {
            Ok(_) => Standing::Connecting(join),
            Err(Errno::EAGAIN) if now < give_up => {
                Standing::Later { at: now + RETRY, give_up, join }
            }
            Err(errno) => return self.lost(errno.into()),
        };
    }

    /// Ends everything that waits for the directory, and whatever is asked from now on.
    fn lost(&mut self, why: LinkError) {
        let error = match why {
            LinkError::Session(SessionError::KeyMismatch) => Error::KeyMismatch {
                key: self.key.origin(),
                place: format!("the directory at {}", self.server),
            },
            LinkError::System(errno @ (Errno::ENOENT | Errno::ECONNREFUSED)) => {
                self.error(format!("nobody listens there ({})", errno.desc()))
            }
            LinkError::System(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
                Error::system(format!("connecting to the directory at {}", self.server), errno)
            }
            why => self.error(why.to_string()),
        };
        if matches!(self.standing, Standing::Open(_)) && !self.joining {
            warn!("{error}; processes that are known already stay reachable");
        }
        if std::mem::take(&mut self.joining) {
            self.answers.push_back(Answer::Joined(Err(error.clone())));
        }
        for (_, process) in self.lookups.drain() {
            self.answers.push_back(Answer::Found(process, Err(error.clone())));
        }
        self.standing = Standing::Lost(error);
    }

    fn received(&mut self, link: LinkId, bytes: &[u8]) {
        match message::decode::<FromDirectory>(bytes) {
            Ok(FromDirectory::Granted(grant)) if self.joining => {
                self.joining = false;
                self.answers.push_back(Answer::Joined(Ok(grant)));
            }
            Ok(FromDirectory::Denied(denial)) if self.joining => {
                self.joining = false;
                let error = denied(denial, &self.server.to_string());
                self.answers.push_back(Answer::Joined(Err(error)));
            }
            Ok(FromDirectory::Granted(_) | FromDirectory::Denied(_)) => {
                self.drop_link(link, "it answered what was not asked")
            }
            Ok(FromDirectory::Place { id, place }) => {
                let Some(process) = self.lookups.remove(&id) else {
                    return self.drop_link(link, "it answered what was not asked");
                };
                self.answers.push_back(found(process, place, &self.server.to_string()));
            }
            Err(error) => self.drop_link(link, &error.to_string()),
        }
    }

    fn drop_link(&mut self, link: LinkId, why: &str) {
        warn!("the directory at {} is dropped: {why}", self.server);
        self.links.close(link);
        self.lost(LinkError::Closed);
    }
}

impl Directory for Client {
    fn place(&self) -> String {
        self.server.to_string()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.links.as_fd()
    }

    fn join(&mut self, wanted: Option<ProcessId>, address: Address, now: Instant) {
        if !matches!(self.standing, Standing::Idle) {
            let error = match &self.standing {
                Standing::Lost(error) => error.clone(),
                _ => self.error("this process has joined already"),
            };
            return self.answers.push_back(Answer::Joined(Err(error)));
        }
        self.joining = true;
        let join = ToDirectory::Join { wanted, address };
        self.connect(join, now, now + self.handshake_time);
    }

    fn lookup(&mut self, process: ProcessId, until: Option<Instant>, now: Instant) {
        let link = match &self.standing {
            Standing::Open(link) => *link,
            Standing::Lost(error) => {
                return self.answers.push_back(Answer::Found(process, Err(error.clone())));
            }
            _ => {
                let error = self.error("this process has not joined");
                return self.answers.push_back(Answer::Found(process, Err(error)));
            }
        };
        let id = self.next_lookup;
        self.next_lookup = self.next_lookup.wrapping_add(1);
        self.lookups.insert(id, process);
        let wait_ms = until.map_or(0, |at| message::wait_ms(at, now));
        let request = ToDirectory::Lookup { id, process, wait_ms };
        self.links.send(link, &message::encode(&request));
    }

    fn drive(&mut self, now: Instant) {
        self.links.drive(now);
        if let Standing::Later { at, .. } = self.standing
            && at <= now
            && let Standing::Later { give_up, join, .. } =
                std::mem::replace(&mut self.standing, Standing::Idle)
        {
            self.connect(join, now, give_up);
        }
        while let Some(event) = self.links.next_event() {
            match event {
                Event::Opened(link) => {
                    if let Standing::Connecting(join) =
                        std::mem::replace(&mut self.standing, Standing::Open(link))
                    {
                        self.links.send(link, &message::encode(&join));
                    }
                }
                Event::Message(link, bytes) => self.received(link, &bytes),
                Event::Ended(_, why) => self.lost(why),
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let retry = match self.standing {
            Standing::Later { at, .. } => Some(at),
            _ => None,
        };
        [retry, self.links.next_deadline()].into_iter().flatten().min()
    }

    fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}
