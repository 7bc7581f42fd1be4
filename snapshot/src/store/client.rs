//! One who uses a store: the control channel, and the queue pairs that a door is made for.

use super::message::{self, Ask, Ends, Gather, Hello, Kept, Place, Reply};
use crate::epoch::{Answer, Holding, Member, Request};
use crate::parity::Made;
use crate::stream::Lane;
use crate::{Error, Result};
use sojourn_fabric::names::{Conversation, Endpoint as At, JobKey};
use sojourn_fabric::virt::{ConnectOptions, Context, Endpoint, ProtectionDomain, Remote};
use std::time::{Duration, Instant};

/// How long a store may take for an answer. It may have to map and register all that was asked for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two slots in a store, and the queue pairs that reach them.
pub(crate) struct Granted<T> {
    /// What is there.
    pub(crate) holding: Holding,
    /// Where the slots begin.
    pub(crate) slots: [Remote; 2],
    pub(crate) lanes: Vec<Lane<T>>,
}

impl<T> Granted<T> {
    /// Bytes of a slot.
    pub(crate) fn slot_bytes(&self) -> usize {
        usize::try_from(self.holding.bytes / 2).unwrap_or(usize::MAX)
    }
}

/// The control channel to a store. What was opened over it ends with it.
pub struct Client {
    conversation: Conversation,
    about: Hello,
}

impl Client {
    /// Connects to the store that listens at `to`. It has to have answered before `until`.
    ///
    /// # Errors
    /// Nobody listens there; it holds another key (`EACCES`); it speaks another version (`EPROTONOSUPPORT`).
    pub fn connect(to: &At, key: &JobKey, until: Instant) -> Result<Client> {
        let conversation = Conversation::connect_now(to, key, until)?;
        let about = Hello {
            name: to.to_string(),
            domain: String::new(),
            device: String::new(),
            bytes: 0,
            free: 0,
        };
        let mut client = Client { conversation, about };
        client.hello()?;
        Ok(client)
    }

    /// What the store said of itself last.
    #[must_use]
    pub fn about(&self) -> &Hello {
        &self.about
    }

    /// What it is, and what is free now.
    ///
    /// # Errors
    /// The store is gone, or answers something else.
    pub fn hello(&mut self) -> Result<&Hello> {
        match self.ask(&Ask::Hello)? {
            Reply::Hello(hello) => {
                self.about = hello;
                Ok(&self.about)
            }
            _ => Err(self.nonsense()),
        }
    }

    /// Asks what a machine asks, anything but a grant.
    ///
    /// # Errors
    /// The store is gone, or answers something else.
    pub fn request(&mut self, member: Member, request: Request) -> Result<Answer> {
        match self.ask(&Ask::Of { member, request, ends: vec![] })? {
            Reply::Of(answer) => Ok(answer),
            _ => Err(self.nonsense()),
        }
    }

    /// A compartment to write, with `lanes` queue pairs of `pd` to it; or what stands in the way.
    ///
    /// # Errors
    /// The store is gone or answers something else; it, or this process, could not connect.
    pub(crate) fn grant<T>(
        &mut self,
        pd: &ProtectionDomain,
        lanes: usize,
        member: Member,
        request: Request,
    ) -> Result<std::result::Result<Granted<T>, Answer>> {
        self.open(pd, lanes, |ends| Ask::Of { member, request, ends })
    }

    /// What is kept of a process, to be read.
    ///
    /// # Errors
    /// `ENOENT` where nothing is.
    pub(crate) fn read<T>(
        &mut self,
        pd: &ProtectionDomain,
        lanes: usize,
        member: Member,
    ) -> Result<Granted<T>> {
        self.open(pd, lanes, |ends| Ask::Read { member, ends })?.map_err(|_| self.nonsense())
    }

    fn open<T>(
        &mut self,
        pd: &ProtectionDomain,
        lanes: usize,
        ask: impl FnOnce(Ends) -> Ask,
    ) -> Result<std::result::Result<Granted<T>, Answer>> {
        let lanes = (0..lanes).map(|_| Lane::new(pd)).collect::<Result<Vec<_>>>()?;
        let ends = lanes.iter().map(|lane| Ok(lane.qp.endpoint()?.to_bytes().to_vec()));
        match self.ask(&ask(ends.collect::<Result<_>>()?))? {
            Reply::Of(answer) if !matches!(answer, Answer::Granted(_)) => Ok(Err(answer)),
            Reply::Door { holding, place, ends } if ends.len() == lanes.len() => {
                for (lane, end) in lanes.iter().zip(&ends) {
                    lane.qp.connect(&Endpoint::from_bytes(end)?, &ConnectOptions::default())?;
                }
                let Place { addr, rkey } = place;
                let first = Remote { addr, rkey };
                let slots = [first, first.offset(holding.bytes / 2)];
                Ok(Ok(Granted { holding, slots, lanes }))
            }
            _ => Err(self.nonsense()),
        }
    }

    /// A share of parity; or what stands in the way, among it that it is not made yet.
    ///
    /// # Errors
    /// The store is gone or answers something else, or cannot make any.
    pub(crate) fn gather(&mut self, gather: Gather) -> Result<std::result::Result<Made, Answer>> {
        match self.ask(&Ask::Gather(gather))? {
            Reply::Gathered(made) => Ok(Ok(made)),
            Reply::Ungathered(reason) => Ok(Err(Answer::Refused(reason))),
            Reply::Of(answer @ (Answer::Wait | Answer::Stale(_))) => Ok(Err(answer)),
            Reply::Of(Answer::Refused(reason)) => Err(Error::new(libc::ENOSPC, reason)),
            _ => Err(self.nonsense()),
        }
    }

    /// Every compartment that it has.
    ///
    /// # Errors
    /// The store is gone, or answers something else.
    pub fn list(&mut self) -> Result<Vec<Kept>> {
        match self.ask(&Ask::List)? {
            Reply::List(list) => Ok(list),
            _ => Err(self.nonsense()),
        }
    }

    /// Ends the store.
    ///
    /// # Errors
    /// It is gone already, or answers something else.
    pub fn shut_down(&mut self) -> Result<()> {
        match self.ask(&Ask::ShutDown)? {
            Reply::Done => Ok(()),
            _ => Err(self.nonsense()),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<Reply> {
        let name = format!("store {}", self.about.name);
        let failed = |error| Error::from(error).context(&name);
        self.conversation.send(&message::encode(ask)).map_err(failed)?;
        let answer = self.conversation.receive(Instant::now() + PATIENCE).map_err(failed)?;
        let Some(bytes) = answer else {
            let text = format!("{name} has not answered for {} s", PATIENCE.as_secs());
            return Err(Error::new(libc::ETIMEDOUT, text));
        };
        match message::decode(&bytes, &name)? {
            Reply::Refused { errno, reason } => Err(Error::new(errno, reason)),
            reply => Ok(reply),
        }
    }

    fn nonsense(&self) -> Error {
        let name = &self.about.name;
        Error::new(libc::EPROTO, format!("store {name} answered something else than was asked"))
    }
}

/// A context over a device's own verbs, by name: see [the store](super) for why no virtual ones.
///
/// # Errors
/// As [`sojourn_fabric::device::open`].
pub(crate) fn device(name: &str) -> Result<Context> {
    Ok(Context::over(sojourn_fabric::device::open(name)?))
}
