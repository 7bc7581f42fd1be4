//! A blocking, authenticated channel between two processes that hold the same key: for commands
//! that run on two machines at once, such as `sojourn selftest`.
//!
//! It is one connection of [`links`](super::links), driven by whoever waits for it. It sends and
//! receives whole messages, and every wait has an end.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::error::Error;
use super::key::JobKey;
use super::links::{Event, HANDSHAKE_TIME, LinkError, LinkId, Links};
use super::session::{MAX_MESSAGE, SessionError};
use super::stream::Endpoint;

/// Waits are cut to this, so that no deadline however far is one that the kernel refuses.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// Time between two attempts to connect to a place where nobody listens yet.
const RETRY: Duration = Duration::from_millis(100);

/// A listening place, where one conversation can begin.
pub struct Reception {
    links: Links,
    key: JobKey,
    at: Endpoint,
}

impl Reception {
    /// Listens at `at`; TCP port 0 lets the system choose. Whoever does not hold `key` is turned
    /// away.
    pub fn listen(at: &Endpoint, key: &JobKey) -> Result<Reception, Error> {
        let mut links = Links::new(key.clone(), HANDSHAKE_TIME, 1)?;
        let at = links.listen(at)?;
        Ok(Reception { links, key: key.clone(), at })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.at
    }

    /// Waits for someone who holds the key.
    pub fn accept(mut self, until: Instant) -> Result<Conversation, Error> {
        loop {
            while let Some(event) = self.links.next_event() {
                if let Event::Opened(id) = event {
                    return Ok(Conversation::over(self.links, id, self.key, self.at));
                }
            }
            if Instant::now() >= until {
                let problem = "nobody with this key connected in time".into();
                return Err(Error::Endpoint { text: self.at.to_string(), problem });
            }
            wait(&mut self.links, until);
        }
    }
}

/// One end of a conversation. Dropping it ends it.
pub struct Conversation {
    links: Links,
    id: LinkId,
    key: JobKey,
    place: Endpoint,
    arrived: VecDeque<Vec<u8>>,
    ended: Option<Error>,
}

impl Conversation {
    /// Most bytes of a message.
    pub const MAX_MESSAGE: usize = MAX_MESSAGE;

    fn over(links: Links, id: LinkId, key: JobKey, place: Endpoint) -> Conversation {
        Conversation { links, id, key, place, arrived: VecDeque::new(), ended: None }
    }

    /// Connects to a [`Reception`] that listens at `to`, or will in time.
    pub fn connect(to: &Endpoint, key: &JobKey, until: Instant) -> Result<Conversation, Error> {
        loop {
            let error = match Conversation::attempt(to, key, until)? {
                Ok(conversation) => return Ok(conversation),
                Err(error) => error,
            };
            let nobody = LinkError::System(Errno::ECONNREFUSED);
            if error != nobody || Instant::now() + RETRY >= until {
                return Err(explain(error, key, to));
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Connects to one that listens at `to` already. Where nobody does, that is said at once.
    pub fn connect_now(to: &Endpoint, key: &JobKey, until: Instant) -> Result<Conversation, Error> {
        Conversation::attempt(to, key, until)?.map_err(|error| explain(error, key, to))
    }

    fn attempt(
        to: &Endpoint,
        key: &JobKey,
        until: Instant,
    ) -> Result<Result<Conversation, LinkError>, Error> {
        let mut links = Links::new(key.clone(), HANDSHAKE_TIME, 0)?;
        let id = match links.connect(to, Instant::now()) {
            Ok(id) => id,
            Err(errno) => return Ok(Err(errno.into())),
        };
        loop {
            match links.next_event() {
                Some(Event::Opened(_)) => {
                    return Ok(Ok(Conversation::over(links, id, key.clone(), to.clone())));
                }
                Some(Event::Ended(_, error)) => return Ok(Err(error)),
                Some(Event::Message(..)) => {}
                None if Instant::now() >= until => return Ok(Err(LinkError::Silent)),
                None => wait(&mut links, until),
            }
        }
    }

    /// The address of the other end, or that where it connected to.
    pub fn place(&self) -> &Endpoint {
        &self.place
    }

    /// Sends a message.
    pub fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        if message.len() > MAX_MESSAGE {
            let what = "a message of a conversation".into();
            return Err(Error::Limit { what, value: message.len(), limit: MAX_MESSAGE });
        }
        self.look();
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        self.links.send(self.id, message);
        Ok(())
    }

    /// The next message, or `None` when none comes before `until`.
    pub fn receive(&mut self, until: Instant) -> Result<Option<Vec<u8>>, Error> {
        loop {
            self.look();
            if let Some(message) = self.arrived.pop_front() {
                return Ok(Some(message));
            }
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            wait(&mut self.links, until);
        }
    }

    /// Takes what has come.
    fn look(&mut self) {
        self.links.drive(Instant::now());
        while let Some(event) = self.links.next_event() {
            match event {
                Event::Message(id, message) if id == self.id => self.arrived.push_back(message),
                Event::Ended(id, error) if id == self.id => {
                    self.ended = Some(explain(error, &self.key, &self.place));
                }
                // A second visitor: this reception is taken.
                Event::Opened(id) | Event::Message(id, _) => self.links.close(id),
                Event::Ended(..) => {}
            }
        }
    }
}

/// Does what IO is possible, after sleeping until there is some, or until then.
fn wait(links: &mut Links, until: Instant) {
    let until = links.next_deadline().map_or(until, |at| at.min(until));
    let left = until.saturating_duration_since(Instant::now()).min(LONGEST_WAIT);
    let mut fds = [PollFd::new(links.as_fd(), PollFlags::POLLIN)];
    // Interrupted, or out of kernel memory: either way the caller looks, and waits again.
    let _ = ppoll(&mut fds, Some(TimeSpec::from(left)), None);
    links.drive(Instant::now());
}

fn explain(error: LinkError, key: &JobKey, place: &Endpoint) -> Error {
    let problem = match error {
        LinkError::Session(SessionError::KeyMismatch) => {
            return Error::KeyMismatch { key: key.origin(), place: place.to_string() };
        }
        LinkError::System(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
            return Error::system(format!("connecting to {place}"), errno);
        }
        LinkError::System(Errno::ECONNREFUSED | Errno::ENOENT) => "nobody listens there".into(),
        other => other.to_string(),
    };
    Error::Endpoint { text: place.to_string(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn anywhere() -> Endpoint {
        Endpoint::parse("tcp:127.0.0.1:0").unwrap()
    }

    #[test]
    fn messages_pass_both_ways_and_the_end_is_noticed() {
        let key = JobKey::from_bytes([7; 32]);
        let reception = Reception::listen(&anywhere(), &key).unwrap();
        let at = reception.endpoint().clone();
        let other = std::thread::spawn(move || {
            let mut there = reception.accept(soon()).unwrap();
            let heard = there.receive(soon()).unwrap().unwrap();
            there.send(&[heard, b" to you".to_vec()].concat()).unwrap();
            // Not closed before the other side has read.
            assert!(there.receive(soon()).unwrap().is_some());
        });
        let mut here = Conversation::connect(&at, &key, soon()).unwrap();
        assert_eq!(here.receive(Instant::now()).unwrap(), None);
        here.send(b"hello").unwrap();
        assert_eq!(here.receive(soon()).unwrap().unwrap(), b"hello to you");
        here.send(&vec![1; Conversation::MAX_MESSAGE]).unwrap();
        other.join().unwrap();
        assert!(here.receive(soon()).is_err(), "the other side is gone");
        assert!(here.send(&[0; Conversation::MAX_MESSAGE + 1]).is_err());
    }

    #[test]
    fn another_key_is_told_so_and_does_not_keep_the_right_one_out() {
        let key = JobKey::from_bytes([7; 32]);
        let reception = Reception::listen(&anywhere(), &key).unwrap();
        let at = reception.endpoint().clone();
        let other = std::thread::spawn(move || reception.accept(soon()).map(drop));
        let wrong = Conversation::connect(&at, &JobKey::from_bytes([8; 32]), soon());
        assert!(matches!(wrong, Err(Error::KeyMismatch { .. })));
        Conversation::connect(&at, &key, soon()).unwrap();
        other.join().unwrap().unwrap();
    }

    #[test]
    fn a_place_where_nobody_listens_is_named() {
        let at = Reception::listen(&anywhere(), &JobKey::from_bytes([7; 32])).unwrap();
        let gone = at.endpoint().clone();
        drop(at);
        let key = JobKey::from_bytes([7; 32]);
        let until = Instant::now() + Duration::from_millis(300);
        for connect in [Conversation::connect, Conversation::connect_now] {
            let error = connect(&gone, &key, until).err().unwrap().to_string();
            let place = gone.to_string();
            assert!(error.contains(&place) && error.contains("nobody listens"), "{error}");
        }
    }
}
