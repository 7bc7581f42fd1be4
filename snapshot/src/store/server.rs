//! The shell around the shelf: who asks, and who is answered.

use super::message::{self, Ask, Gather, Hello, Kept, MAX_LISTED, MAX_NAME, Place, Reply};
use super::rooms::Rooms;
use crate::epoch::{Answer, Compartments, Epoch, Holding, MAX_COMPARTMENTS, Member, Request, Slot};
use crate::{Error, Result, parity};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sojourn_fabric::device;
use sojourn_fabric::names::{Endpoint as At, HANDSHAKE_TIME, JobKey, LinkEvent, LinkId, Links};
use sojourn_fabric::virt::{Context, Endpoint};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

/// Most connections at a time: a writer and some readers of each process.
const MAX_CONNECTIONS: usize = 4 * MAX_COMPARTMENTS;

/// What a store needs to know.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The device by which it is reached.
    pub device: String,
    /// Bytes that it may hold.
    pub bytes: u64,
    /// Where it listens. TCP port 0 lets the system choose; the directory of a unix socket must
    /// exist and be closed to others.
    pub listen: At,
    /// The key of the job.
    pub key: JobKey,
    /// What it is called in messages and lists: the name of the node, as a rule.
    pub name: String,
    /// What it may fail together with: a rack, a power supply. By default the name.
    pub domain: String,
}

/// A store that listens, and serves while [`Store::serve`] runs. What it holds goes with it.
pub struct Store {
    links: Links,
    rooms: Rooms<LinkId>,
    compartments: Compartments,
    at: At,
    about: Hello,
    /// By which it reads from other stores.
    key: JobKey,
    /// Somebody has asked it to end.
    over: bool,
}

impl Store {
    /// Opens the device, and listens.
    ///
    /// # Errors
    /// Where the device cannot be opened, the place is taken, or a name is too long.
    pub fn open(config: StoreConfig) -> Result<Store> {
        for (what, text) in [("name", &config.name), ("domain", &config.domain)] {
            if text.is_empty() || text.len() > MAX_NAME {
                let text = format!("the {what} {text:?} of a store: 1 to {MAX_NAME} bytes");
                return Err(Error::invalid(text));
            }
        }
        let context = Context::over(device::open(&config.device)?);
        let mut links = Links::new(config.key.clone(), HANDSHAKE_TIME, MAX_CONNECTIONS)?;
        let at = links.listen(&config.listen)?;
        let about = Hello {
            name: config.name,
            domain: config.domain,
            device: config.device,
            bytes: config.bytes,
            free: config.bytes,
        };
        let (rooms, compartments) = (Rooms::new(context), Compartments::new(config.bytes));
        let key = config.key;
        Ok(Store { links, rooms, compartments, at, about, key, over: false })
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &At {
        &self.at
    }

    /// What it says of itself.
    #[must_use]
    pub fn about(&self) -> Hello {
        let used = self.compartments.used();
        Hello { free: self.about.bytes.saturating_sub(used), ..self.about.clone() }
    }

    /// Serves until one of `stop` is readable or has been hung up, or somebody who holds the key asks for the end.
    ///
    /// # Errors
    /// Where the system does not let it wait.
    pub fn serve(&mut self, stop: &[BorrowedFd<'_>]) -> Result<()> {
        loop {
            self.drive(Instant::now());
            if self.over {
                return Ok(());
            }
            let left = self.links.next_deadline().map_or(PollTimeout::NONE, |at| {
                let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            let mut fds: Vec<PollFd<'_>> =
                stop.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
            fds.push(PollFd::new(self.links.as_fd(), PollFlags::POLLIN));
            match poll(&mut fds, left) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::new(errno as i32, "a store cannot wait")),
            }
            if fds[..stop.len()].iter().any(|fd| fd.any() == Some(true)) {
                return Ok(());
            }
        }
    }

    fn drive(&mut self, now: Instant) {
        self.links.drive(now);
        while let Some(event) = self.links.next_event() {
            match event {
                LinkEvent::Opened(_) => {}
                LinkEvent::Message(link, bytes) => {
                    let reply = self.answer(link, &bytes).unwrap_or_else(|error| {
                        tracing::debug!("a store refuses: {error}");
                        message::refusal(&error)
                    });
                    self.links.send(link, &message::encode(&reply));
                }
                LinkEvent::Ended(link, error) => {
                    tracing::debug!("one who used a store has gone: {error}");
                    self.rooms.closed(link);
                }
            }
        }
    }

    fn answer(&mut self, link: LinkId, bytes: &[u8]) -> Result<Reply> {
        let ask = message::decode(bytes, "one who uses the store");
        let name = self.about.name.clone();
        let named = |error: Error| error.context(format_args!("store {name}"));
        match ask.map_err(named)? {
            Ask::Hello => Ok(Reply::Hello(self.about())),
            Ask::Of { member, request, ends } => {
                self.of(link, member, request, &peers(&ends)?).map_err(named)
            }
            Ask::Read { member, ends } => {
                let (place, ends) =
                    self.rooms.let_look(link, member, &peers(&ends)?).map_err(named)?;
                self.door(member, place, ends).map_err(named)
            }
            Ask::Gather(gather) => self.gather(&gather).map_err(named),
            Ask::List => Ok(Reply::List(self.list())),
            Ask::ShutDown => {
                self.over = true;
                Ok(Reply::Done)
            }
        }
    }

    fn of(
        &mut self,
        link: LinkId,
        member: Member,
        request: Request,
        peers: &[Endpoint],
    ) -> Result<Reply> {
        let answer = self.compartments.handle(member, request, &mut self.rooms);
        match (answer, request) {
            (Answer::Granted(_), Request::Grant { incarnation, .. }) => {
                let (place, ends) = self.rooms.let_in(link, member, incarnation, peers)?;
                self.door(member, place, ends)
            }
            (answer, _) => Ok(Reply::Of(answer)),
        }
    }

    fn gather(&mut self, gather: &Gather) -> Result<Reply> {
        let Gather { incarnation, epoch, committed, ref task } = *gather;
        let member = parity::member_of(task.group, usize::from(task.index));
        let bytes = task.compartment()?;
        let grant = Request::Grant { incarnation, bytes, committed };
        let holding = match self.compartments.handle(member, grant, &mut self.rooms) {
            Answer::Granted(holding) => holding,
            other => return Ok(Reply::Of(other)),
        };
        // Who asks knows what is committed. Where that is here, it may not be noted yet.
        let note = Request::Note { incarnation, epoch: committed };
        self.compartments.handle(member, note, &mut self.rooms);
        let by = (self.about.device.as_str(), &self.key);
        let slot = spare(&holding, committed);
        match self.rooms.make_parity(member, (incarnation, epoch), slot, task, by)? {
            None => Ok(Reply::Of(Answer::Wait)),
            Some(Ok(made)) => Ok(Reply::Gathered(made)),
            Some(Err(error)) => Ok(Reply::Ungathered(message::reason(&error))),
        }
    }

    fn door(&self, member: Member, place: Place, ends: Vec<Vec<u8>>) -> Result<Reply> {
        let holding = self.compartments.holding(member, &self.rooms);
        let holding = holding.ok_or_else(|| Error::new(libc::ENOENT, "it is gone"))?;
        Ok(Reply::Door { holding, place, ends })
    }

    fn list(&self) -> Vec<Kept> {
        let all = self.compartments.members().filter_map(|member| {
            let holding = self.compartments.holding(member, &self.rooms)?;
            Some(Kept { member, holding, writing: self.rooms.is_written(member) })
        });
        all.take(MAX_LISTED).collect()
    }
}

/// The slot to write where this epoch is committed: the other one; where it is in neither, the older one.
fn spare(holding: &Holding, committed: Epoch) -> Slot {
    match holding.slot_of(committed) {
        Some(Slot::A) => Slot::B,
        Some(Slot::B) => Slot::A,
        None if holding.words[0] <= holding.words[1] => Slot::A,
        None => Slot::B,
    }
}

fn peers(ends: &[Vec<u8>]) -> Result<Vec<Endpoint>> {
    ends.iter().map(|end| Endpoint::from_bytes(end)).collect()
}
