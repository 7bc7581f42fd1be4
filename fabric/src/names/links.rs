//! All authenticated connections of one thread: the IO shell around [`session`](super::session).
//!
//! The directory's server, its client and the service of a process each own one [`Links`], and see
//! of it only whole messages of peers that hold the job key. It is driven by whoever sleeps on its
//! descriptor: [`drive`](Links::drive) when that is readable or [`next_deadline`](Links::next_deadline)
//! has come, then [`next_event`](Links::next_event) until there is none.
//!
//! What it guards against: strangers that connect and say nothing (a deadline, and a limit past
//! which the oldest is dropped), peers that ask and do not read (no more of theirs is read until
//! they do), and running out of descriptors (accepting pauses; connections wait in the backlog).

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::warn;

use super::error::Error;
use super::key::JobKey;
use super::poller::{Poller, Ready};
use super::session::{Received, Refusal, Session, SessionError};
use super::stream::{Endpoint, Listener, Stream};
use super::timers::{TimerKey, Timers};

/// Time from connect to authenticated, for either side. Far above what a loaded machine takes, and
/// short enough that a silent stranger is soon forgotten.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Connections that have not proved themselves yet; the next one displaces the oldest.
const MAX_STRANGERS: usize = 256;
/// Connections accepted in one go, so that those at hand are served in between.
const ACCEPT_BATCH: usize = 16;
/// Bytes read from one connection in one go, for the same reason.
const READ_BATCH: usize = 64 * 1024;
const READ_BUFFER: usize = 16 * 1024;
/// While this much waits to be written to a peer, nothing of it is read.
const MAX_UNSENT: usize = 256 * 1024;
/// How long accepting rests when there are no descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Names a connection; never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(u64);

/// Why a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// The other side closed it.
    #[error("it closed the connection")]
    Closed,
    /// The same, before it had proved that it holds the key.
    #[error("it closed the connection before it had authenticated itself")]
    ClosedEarly,
    /// It did not prove that in time.
    #[error("it did not authenticate itself in time")]
    Silent,
    /// The process at the other end of a unix socket is another user's.
    #[error("it runs as another user")]
    OtherUser,
    /// What the operating system said.
    #[error("{}", .0.desc())]
    System(Errno),
    /// What it sent is not what a holder of the key sends.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> LinkError {
        match errno {
            Errno::EPERM => LinkError::OtherUser,
            Errno::EPIPE | Errno::ECONNRESET => LinkError::Closed,
            errno => LinkError::System(errno),
        }
    }
}

/// What happened on the connections.
#[derive(Debug)]
pub enum Event {
    /// A peer is authenticated: one that connected here, or one that we connected to.
    Opened(LinkId),
    /// It sent this.
    Message(LinkId, Vec<u8>),
    /// A connection that was open, or that we made, is no more. Not reported after
    /// [`Links::close`].
    Ended(LinkId, LinkError),
}

struct Link {
    stream: Stream,
    session: Session,
    /// Whether we made it.
    outbound: bool,
    /// The socket itself is connected.
    connected: bool,
    /// The other side holds the key, and the owner has been told.
    announced: bool,
    deadline: Option<TimerKey>,
    watched: Ready,
    /// Set when nothing more will be read; reported after the messages that came before it.
    ended: Option<LinkError>,
}

enum Due {
    Handshake(LinkId),
    Accept,
}

const WRITE: Ready = Ready { read: false, write: true };

/// Tokens of listeners are their index; those of links start here.
const FIRST_LINK: u64 = 1 << 32;

/// The connections of one thread.
pub struct Links {
    poller: Poller,
    key: JobKey,
    handshake_time: Duration,
    max_inbound: usize,
    listeners: Vec<Listener>,
    links: HashMap<LinkId, Link>,
    next_link: u64,
    inbound: usize,
    strangers: VecDeque<LinkId>,
    timers: Timers<Due>,
    /// Links that may have something to report.
    lively: VecDeque<LinkId>,
}

impl Links {
    /// None yet. Of those that connect here at most `max_inbound` are held, once they have proved
    /// that they hold `key`, for which either side has `handshake_time` ([`HANDSHAKE_TIME`]).
    ///
    /// # Errors
    /// Where no file descriptor is left.
    pub fn new(key: JobKey, handshake_time: Duration, max_inbound: usize) -> Result<Links, Error> {
        Ok(Links {
            poller: Poller::new()?,
            key,
            handshake_time,
            max_inbound,
            listeners: vec![],
            links: HashMap::new(),
            next_link: FIRST_LINK,
            inbound: 0,
            strangers: VecDeque::new(),
            timers: Timers::new(),
            lively: VecDeque::new(),
        })
    }

    /// Listens there too. Returns where: with the port that the system chose.
    ///
    /// # Errors
    /// Where the place is taken, or is none for a socket.
    pub fn listen(&mut self, at: &Endpoint) -> Result<Endpoint, Error> {
        let listener = Listener::bind(at)?;
        let endpoint = listener.endpoint()?;
        self.poller
            .add(listener.as_fd(), self.listeners.len() as u64, Ready::READ)
            .map_err(|errno| Error::system(format!("watching {endpoint}"), errno))?;
        self.listeners.push(listener);
        Ok(endpoint)
    }

    /// Begins to connect. Ends in [`Event::Opened`] or [`Event::Ended`].
    ///
    /// # Errors
    /// What the operating system says at once.
    pub fn connect(&mut self, to: &Endpoint, now: Instant) -> Result<LinkId, Errno> {
        let stream = Stream::connect(to)?;
        self.insert(stream, true, now)
    }

    /// Queues a message, and writes what the socket takes. A connection that fails reports so.
    pub fn send(&mut self, id: LinkId, message: &[u8]) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.ended.is_some() {
            return;
        }
        if let Err(error) = link.session.send(message) {
            link.ended = Some(error.into());
            self.lively.push_back(id);
            return;
        }
        self.progress(id, WRITE);
    }

    /// Ends a connection without a report.
    pub fn close(&mut self, id: LinkId) {
        if let Some(mut link) = self.links.remove(&id) {
            self.poller.delete(link.stream.as_fd());
            if let Some(timer) = link.deadline.take() {
                self.timers.cancel(timer);
            }
            if !link.outbound {
                self.inbound -= 1;
            }
            if !link.announced {
                self.strangers.retain(|stranger| *stranger != id);
            }
        }
    }

    /// When to be driven at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Does all IO that is possible now.
    pub fn drive(&mut self, now: Instant) {
        for (token, ready) in self.poller.ready() {
            match usize::try_from(token) {
                Ok(index) if token < FIRST_LINK => self.accept(index, now),
                _ => self.progress(LinkId(token), ready),
            }
        }
        while let Some(due) = self.timers.expired(now) {
            match due {
                Due::Handshake(id) => self.end(id, LinkError::Silent),
                Due::Accept => self.watch_listeners(true),
            }
        }
    }

    /// What has happened since; a message at a time, from each peer in turn. To be called until
    /// there is nothing, before the caller sleeps.
    pub fn next_event(&mut self) -> Option<Event> {
        while let Some(id) = self.lively.pop_front() {
            let Some(link) = self.links.get_mut(&id) else { continue };
            if link.must_read_first() {
                continue; // writing makes it lively again
            }
            let error = match link.session.receive() {
                Ok(Some(received)) => {
                    self.lively.push_back(id);
                    match received {
                        Received::Message(message) => return Some(Event::Message(id, message)),
                        Received::Open => self.opened(id),
                    }
                    return Some(Event::Opened(id));
                }
                Ok(None) => match link.ended {
                    None => continue,
                    Some(error) => error,
                },
                Err(error) => {
                    // What is unsent is a refusal, if anything. A socket this fresh takes it.
                    let refusal = link.session.unsent().to_vec();
                    let _ = link.stream.write(&refusal);
                    error.into()
                }
            };
            let report = link.outbound || link.announced;
            self.close(id);
            if report {
                return Some(Event::Ended(id, error));
            }
            warn!("a connection was not let in: {error}");
        }
        None
    }

    fn opened(&mut self, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.announced = true;
        if link.ended == Some(LinkError::Silent) {
            // It was this thread that came too late, not what the peer had to say.
            link.ended = None;
        }
        if let Some(timer) = link.deadline.take() {
            self.timers.cancel(timer);
        }
        self.strangers.retain(|stranger| *stranger != id);
        // The side that listens still has its half of the handshake to write.
        self.progress(id, WRITE);
    }

    fn insert(&mut self, stream: Stream, outbound: bool, now: Instant) -> Result<LinkId, Errno> {
        // A unix socket is connected at once, and so is one that was accepted.
        let connected = !outbound || matches!(stream, Stream::Unix(_));
        if outbound && connected {
            stream.finish()?;
        }
        let session =
            if outbound { Session::initiate(&self.key) } else { Session::respond(&self.key) };
        let id = LinkId(self.next_link);
        self.poller.add(stream.as_fd(), id.0, WRITE)?;
        self.next_link += 1;
        let deadline = Some(self.timers.set(now + self.handshake_time, Due::Handshake(id)));
        let link = Link {
            stream,
            session,
            outbound,
            connected,
            announced: false,
            deadline,
            watched: WRITE,
            ended: None,
        };
        self.links.insert(id, link);
        if !outbound {
            self.inbound += 1;
            self.strangers.push_back(id);
        }
        self.progress(id, if connected { WRITE } else { Ready::default() });
        Ok(id)
    }

    fn accept(&mut self, index: usize, now: Instant) {
        for _ in 0..ACCEPT_BATCH {
            let Some(listener) = self.listeners.get(index) else { return };
            let stream = match listener.accept() {
                Ok(stream) => stream,
                Err(Errno::EAGAIN) => return,
                Err(errno @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)) => {
                    warn!("{}", Error::system("accepting a connection (will retry)", errno));
                    // The listener stays readable: watching it would be spinning.
                    self.watch_listeners(false);
                    self.timers.set(now + ACCEPT_PAUSE, Due::Accept);
                    return;
                }
                Err(errno) => {
                    warn!("a connection was not accepted: {}", LinkError::from(errno));
                    continue;
                }
            };
            if self.inbound - self.strangers.len() >= self.max_inbound {
                self.turn_away(stream);
                continue;
            }
            if self.strangers.len() >= MAX_STRANGERS
                && let Some(oldest) = self.strangers.front().copied()
            {
                warn!("{MAX_STRANGERS} connections have not authenticated; the oldest is dropped");
                self.close(oldest);
            }
            if let Err(errno) = self.insert(stream, false, now) {
                warn!("{}", Error::system("watching a connection", errno));
            }
        }
    }

    fn turn_away(&self, mut stream: Stream) {
        warn!("a connection was turned away: {} are open", self.max_inbound);
        let mut session = Session::respond(&self.key);
        session.refuse(Refusal::Full);
        let _ = stream.write(session.unsent());
    }

    fn watch_listeners(&mut self, on: bool) {
        let ready = Ready { read: on, write: false };
        for (index, listener) in self.listeners.iter().enumerate() {
            if let Err(errno) = self.poller.modify(listener.as_fd(), index as u64, ready) {
                warn!("{}", Error::system("watching a listening socket", errno));
            }
        }
    }

    /// Does what a connection is ready for.
    fn progress(&mut self, id: LinkId, ready: Ready) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let held_back = link.must_read_first();
        let was_alive = link.ended.is_none();
        if was_alive && let Err(error) = link.transfer(ready) {
            link.ended = Some(error);
        }
        let wanted = link.wanted();
        if wanted != link.watched {
            match self.poller.modify(link.stream.as_fd(), id.0, wanted) {
                Ok(()) => link.watched = wanted,
                Err(errno) => link.ended = link.ended.or(Some(errno.into())),
            }
        }
        let released = held_back && !link.must_read_first();
        if ready.read || released || (was_alive && link.ended.is_some()) {
            self.lively.push_back(id);
        }
    }

    fn end(&mut self, id: LinkId, error: LinkError) {
        if let Some(link) = self.links.get_mut(&id) {
            link.ended = link.ended.or(Some(error));
            self.lively.push_back(id);
        }
    }
}

impl Link {
    /// A peer that has asked for more than it reads. A side that asks always reads: were both to
    /// wait for the other, neither would move.
    fn must_read_first(&self) -> bool {
        !self.outbound && self.ended.is_none() && self.session.unsent().len() > MAX_UNSENT
    }

    fn wanted(&self) -> Ready {
        if self.ended.is_some() {
            return Ready::default();
        }
        Ready {
            read: self.connected && !self.must_read_first(),
            write: !self.connected || !self.session.unsent().is_empty(),
        }
    }

    fn transfer(&mut self, ready: Ready) -> Result<(), LinkError> {
        if !self.connected {
            if !ready.write {
                return Ok(());
            }
            self.stream.finish()?;
            self.connected = true;
        }
        // What has arrived is taken even where writing fails: it came before the end, and may say why.
        let written = if ready.write { self.write() } else { Ok(()) };
        if (ready.read || written.is_err()) && !self.must_read_first() {
            self.read()?;
        }
        written
    }

    fn write(&mut self) -> Result<(), LinkError> {
        while !self.session.unsent().is_empty() {
            match self.stream.write(self.session.unsent()) {
                Ok(bytes) => self.session.sent(bytes),
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(self.ended_by(errno.into())),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), LinkError> {
        let mut buffer = [0; READ_BUFFER];
        for _ in 0..READ_BATCH / READ_BUFFER {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(self.ended_by(LinkError::Closed)),
                Ok(bytes) => {
                    self.session.feed(&buffer[..bytes]);
                    if bytes < READ_BUFFER {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(self.ended_by(errno.into())),
            }
        }
        Ok(())
    }

    fn ended_by(&self, error: LinkError) -> LinkError {
        match error {
            LinkError::Closed if !self.announced => LinkError::ClosedEarly,
            error => error,
        }
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::session::MAX_MESSAGE;
    use crate::names::stream::PrivateDir;

    const LONG: Duration = Duration::from_secs(60);

    /// One who listens and one who has connected, both authenticated.
    fn pair(max_inbound: usize) -> (PrivateDir, Links, LinkId, Links, LinkId) {
        let dir = PrivateDir::create().unwrap();
        let key = JobKey::from_bytes([4; 32]);
        let mut server = Links::new(key.clone(), LONG, max_inbound).unwrap();
        let at = server.listen(&Endpoint::Unix(dir.path().join("s"))).unwrap();
        let mut client = Links::new(key, LONG, 0).unwrap();
        let out = client.connect(&at, Instant::now()).unwrap();
        let (mut accepted, mut opened) = (None, false);
        let deadline = Instant::now() + LONG;
        while accepted.is_none() || !opened {
            assert!(Instant::now() < deadline);
            for links in [&mut server, &mut client] {
                links.drive(Instant::now());
            }
            match server.next_event() {
                Some(Event::Opened(id)) => accepted = Some(id),
                other => assert!(other.is_none(), "{other:?}"),
            }
            opened |= matches!(client.next_event(), Some(Event::Opened(id)) if id == out);
        }
        (dir, server, accepted.unwrap(), client, out)
    }

    #[test]
    fn one_who_asks_and_does_not_read_is_not_listened_to_until_it_does() {
        const QUESTIONS: usize = 60;
        let (_dir, mut server, accepted, mut client, out) = pair(2);
        for n in 0..QUESTIONS {
            client.send(out, &(n as u64).to_be_bytes());
        }
        let mut asked = 0;
        let mut answered = 0u64;
        let mut serve = |server: &mut Links, most: &mut usize| {
            server.drive(Instant::now());
            while let Some(event) = server.next_event() {
                let Event::Message(id, mut message) = event else { panic!("{event:?}") };
                asked += 1;
                message.resize(MAX_MESSAGE, 1);
                server.send(id, &message);
                *most = server.links[&accepted].session.unsent().len().max(*most);
            }
            asked
        };
        // Nobody reads: it stops after what fits in the socket and below the limit.
        let mut most = 0;
        let stopped_at = (0..50).map(|_| serve(&mut server, &mut most)).max().unwrap_or(0);
        assert!(stopped_at < QUESTIONS, "{stopped_at}");
        assert!(most <= MAX_UNSENT + MAX_MESSAGE + 64, "{most}");
        assert!(server.poller.ready().is_empty(), "it waits, and does not spin");
        let deadline = Instant::now() + LONG;
        while answered < QUESTIONS as u64 {
            assert!(Instant::now() < deadline, "stuck after {answered}");
            client.drive(Instant::now());
            while let Some(event) = client.next_event() {
                let Event::Message(_, message) = event else { panic!("{event:?}") };
                assert_eq!(message[..8], answered.to_be_bytes());
                answered += 1;
            }
            serve(&mut server, &mut most);
        }
        assert!(most <= MAX_UNSENT + MAX_MESSAGE + 64, "{most}");
    }

    #[test]
    fn what_was_sent_before_the_end_arrives_before_the_end() {
        let (_dir, mut server, accepted, mut client, out) = pair(2);
        client.send(out, b"last words");
        drop(client);
        let mut events = vec![];
        let deadline = Instant::now() + LONG;
        while events.len() < 2 && Instant::now() < deadline {
            server.drive(Instant::now());
            events.extend(std::iter::from_fn(|| server.next_event()));
        }
        assert!(
            matches!(&events[..], [
            Event::Message(a, words),
            Event::Ended(b, LinkError::Closed),
        ] if *a == accepted && *b == accepted && words == b"last words"),
            "{events:?}"
        );
        server.send(accepted, b"to nobody");
        assert!(server.next_event().is_none());
        assert_eq!((server.inbound, server.strangers.len()), (0, 0));
    }

    #[test]
    fn of_too_many_strangers_the_oldest_goes() {
        use std::io::{ErrorKind, Read};
        use std::os::unix::net::UnixStream;
        let (dir, mut server, accepted, mut client, out) = pair(2);
        let path = dir.path().join("s");
        let connect = |_| {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        };
        let mut crowd = vec![];
        for _ in 0..(MAX_STRANGERS + 3).div_ceil(ACCEPT_BATCH) {
            crowd.extend((0..ACCEPT_BATCH.min(MAX_STRANGERS + 3 - crowd.len())).map(connect));
            server.drive(Instant::now());
        }
        assert_eq!(server.strangers.len(), MAX_STRANGERS);
        for (index, stranger) in crowd.iter_mut().enumerate() {
            match stranger.read(&mut [0]) {
                Ok(0) => assert!(index < 3),
                Err(e) => assert!(index >= 3 && e.kind() == ErrorKind::WouldBlock, "{index}: {e}"),
                other => panic!("{other:?}"),
            }
        }
        client.send(out, b"undisturbed");
        server.drive(Instant::now());
        let event = server.next_event();
        assert!(matches!(event, Some(Event::Message(id, _)) if id == accepted), "{event:?}");
    }

    #[test]
    fn past_its_limit_a_listener_says_that_it_is_full() {
        let (dir, mut server, _, mut client, _) = pair(1);
        let at = Endpoint::Unix(dir.path().join("s"));
        let second = client.connect(&at, Instant::now()).unwrap();
        server.drive(Instant::now());
        client.drive(Instant::now());
        let event = client.next_event();
        assert!(
            matches!(event, Some(Event::Ended(id, LinkError::Session(SessionError::Full)))
                if id == second),
            "{event:?}"
        );
    }
}
