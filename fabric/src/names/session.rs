//! The authenticated channel, without IO: bytes in, messages out.
//!
//! Both sides prove that they hold the job key before anything else of theirs is looked at. A frame
//! is a 16-bit big-endian length and that many bytes of one Noise message
//! (`Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s`: fresh keys per connection, so a recorded connection
//! can neither be replayed nor be read later with the job key). Before the handshake is complete
//! the only frames are its two messages, whose authenticated payload is the protocol version, and
//! a refusal of one byte from the side that listens. A refusal is not authenticated: it chooses
//! the words of an error and nothing else.
//!
//! Used by [`links`](super::links), and by the soft device to open its connections between machines.

use snow::{HandshakeState, TransportState};

use super::key::JobKey;

/// Largest message that a session carries. Bounds what one frame makes a receiver hold, and leaves
/// room for the largest note with its frame around it.
pub(crate) const MAX_MESSAGE: usize = 40 * 1024;

/// The protocol that this library speaks. Both sides must speak the same.
const VERSION: u8 = 1;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Length prefix of a frame.
const PREFIX: usize = 2;
/// Authentication tag of a Noise message.
const TAG: usize = 16;
/// Largest frame after the handshake.
const MAX_FRAME: usize = MAX_MESSAGE + TAG;
/// A handshake message: a public key, and the version with its tag.
const HANDSHAKE_FRAME: usize = 32 + 1 + TAG;
/// Bytes that each side writes before the session is open, its refusal excepted, which is shorter.
pub(crate) const OPENING: usize = PREFIX + HANDSHAKE_FRAME;
/// Bytes that a message takes on the wire beyond its own.
pub(crate) const OVERHEAD: usize = PREFIX + TAG;

/// What an idle connection keeps of each buffer: one large note must not hold its memory for the
/// life of the connection.
const IDLE_BUFFER: usize = 1024;

/// Why the listening side hung up before the handshake was complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// The first message was not made with this job's key.
    Key = 1,
    /// As many connections as the limit allows.
    Full = 2,
}

/// Why a session can't go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// It was made with another key.
    #[error("it does not hold the same job key")]
    KeyMismatch,
    /// Its listener has as many connections as it takes.
    #[error("it has no room for another connection")]
    Full,
    /// It speaks this version of the protocol.
    #[error("it speaks version {0} of the control protocol, this process version {VERSION}")]
    Version(u8),
    /// A frame of this length cannot be.
    #[error("it sent a frame of {0} bytes, which is out of bounds")]
    Frame(usize),
    /// A frame that was not made by the other end.
    #[error("it sent a frame that does not authenticate")]
    Forged,
    /// A message of our own, of this length.
    #[error("a message of {0} bytes is too large to send")]
    TooLarge(usize),
    /// The cipher could not be used.
    #[error("the cipher failed")]
    Cipher,
}

/// What came off the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Received {
    /// The other side has proved that it holds the key. Once, before any message.
    Open,
    /// A message of it.
    Message(Vec<u8>),
}

enum Phase {
    /// Boxed: it is large, and short-lived.
    Handshake(Box<HandshakeState>),
    Open(Box<TransportState>),
    Broken(SessionError),
}

/// One end of a channel.
pub(crate) struct Session {
    phase: Phase,
    initiator: bool,
    input: Vec<u8>,
    /// How much of `input` has been consumed.
    taken: usize,
    output: Vec<u8>,
    /// How much of `output` has been written.
    written: usize,
}

impl Session {
    /// The side that connects; its first message is ready to be written.
    pub(crate) fn initiate(key: &JobKey) -> Session {
        let mut session = Session::new(key, true);
        session.write_handshake();
        session
    }

    /// The side that listens.
    pub(crate) fn respond(key: &JobKey) -> Session {
        Session::new(key, false)
    }

    fn new(key: &JobKey, initiator: bool) -> Session {
        let state = PATTERN.parse().and_then(|params| {
            let builder = snow::Builder::new(params).psk(0, key.bytes())?;
            if initiator { builder.build_initiator() } else { builder.build_responder() }
        });
        let phase = match state {
            Ok(state) => Phase::Handshake(Box::new(state)),
            Err(_) => Phase::Broken(SessionError::Cipher),
        };
        Session { phase, initiator, input: vec![], taken: 0, output: vec![], written: 0 }
    }

    /// Whether the other side has proved that it holds the key.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Takes bytes off the wire.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    /// What the next whole frame brings, if there is one.
    pub(crate) fn receive(&mut self) -> Result<Option<Received>, SessionError> {
        if let Phase::Broken(error) = self.phase {
            return Err(error);
        }
        let (rest, open) = (&self.input[self.taken..], self.is_open());
        let Some(prefix) = rest.first_chunk::<PREFIX>() else {
            if rest.is_empty() {
                self.input.clear();
                self.taken = 0;
                self.input.shrink_to(IDLE_BUFFER);
            }
            return Ok(None);
        };
        let len = usize::from(u16::from_be_bytes(*prefix));
        if !self.may_be_frame(open, len) {
            return Err(self.broken(SessionError::Frame(len)));
        }
        if rest.len() < PREFIX + len {
            return Ok(None);
        }
        let frame = self.taken + PREFIX..self.taken + PREFIX + len;
        self.taken = frame.end;
        if open {
            self.open_frame(frame).map(|message| Some(Received::Message(message)))
        } else {
            self.handshake_frame(frame).map(|()| Some(Received::Open))
        }
    }

    /// Queues a message. Only an open session can carry one.
    pub(crate) fn send(&mut self, message: &[u8]) -> Result<(), SessionError> {
        if message.len() > MAX_MESSAGE {
            return Err(SessionError::TooLarge(message.len()));
        }
        let Phase::Open(state) = &mut self.phase else { return Err(SessionError::Cipher) };
        let start = self.output.len();
        let frame = message.len() + TAG;
        self.output.extend_from_slice(&(frame as u16).to_be_bytes());
        self.output.resize(start + PREFIX + frame, 0);
        match state.write_message(message, &mut self.output[start + PREFIX..]) {
            Ok(_) => Ok(()),
            Err(_) => {
                self.output.truncate(start);
                Err(self.broken(SessionError::Cipher))
            }
        }
    }

    /// Tells the other side why it is not let in. Means nothing on the side that connects.
    pub(crate) fn refuse(&mut self, why: Refusal) {
        if !self.initiator {
            self.output.extend_from_slice(&[0, 1, why as u8]);
        }
    }

    /// What has to be written.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.output[self.written..]
    }

    /// That much of [`unsent`](Self::unsent) has been written.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written >= self.output.len() {
            self.output.clear();
            self.written = 0;
            self.output.shrink_to(IDLE_BUFFER);
        } else if self.written > self.output.len() / 2 {
            self.output.drain(..self.written);
            self.written = 0;
        }
    }

    fn may_be_frame(&self, open: bool, len: usize) -> bool {
        match (open, self.initiator) {
            (true, _) => (TAG..=MAX_FRAME).contains(&len),
            (false, true) => len == HANDSHAKE_FRAME || len == 1,
            (false, false) => len == HANDSHAKE_FRAME,
        }
    }

    fn open_frame(&mut self, frame: std::ops::Range<usize>) -> Result<Vec<u8>, SessionError> {
        let Phase::Open(state) = &mut self.phase else { return Err(SessionError::Cipher) };
        let mut message = vec![0; frame.len()];
        match state.read_message(&self.input[frame], &mut message) {
            Ok(len) => {
                message.truncate(len);
                Ok(message)
            }
            Err(_) => Err(self.broken(SessionError::Forged)),
        }
    }

    fn handshake_frame(&mut self, frame: std::ops::Range<usize>) -> Result<(), SessionError> {
        if frame.len() == 1 {
            let error = match self.input[frame.start] {
                code if code == Refusal::Key as u8 => SessionError::KeyMismatch,
                code if code == Refusal::Full as u8 => SessionError::Full,
                _ => SessionError::Forged,
            };
            return Err(self.broken(error));
        }
        let Phase::Handshake(state) = &mut self.phase else { return Err(SessionError::Cipher) };
        let mut payload = [0; HANDSHAKE_FRAME];
        match state.read_message(&self.input[frame], &mut payload) {
            Ok(1) => {}
            Ok(_) => return Err(self.broken(SessionError::Forged)),
            Err(_) => {
                self.refuse(Refusal::Key);
                return Err(self.broken(SessionError::KeyMismatch));
            }
        }
        if !self.initiator {
            // Also to a peer of another version, so that it can say so itself.
            self.write_handshake();
        }
        if payload[0] != VERSION {
            return Err(self.broken(SessionError::Version(payload[0])));
        }
        let state = std::mem::replace(&mut self.phase, Phase::Broken(SessionError::Cipher));
        if let Phase::Handshake(state) = state
            && let Ok(state) = state.into_transport_mode()
        {
            self.phase = Phase::Open(Box::new(state));
            return Ok(());
        }
        Err(SessionError::Cipher)
    }

    fn write_handshake(&mut self) {
        let Phase::Handshake(state) = &mut self.phase else { return };
        let mut message = [0; HANDSHAKE_FRAME];
        match state.write_message(&[VERSION], &mut message) {
            Ok(HANDSHAKE_FRAME) => {
                self.output.extend_from_slice(&(HANDSHAKE_FRAME as u16).to_be_bytes());
                self.output.extend_from_slice(&message);
            }
            _ => self.phase = Phase::Broken(SessionError::Cipher),
        }
    }

    fn broken(&mut self, error: SessionError) -> SessionError {
        self.phase = Phase::Broken(error);
        error
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (Session, Session) {
        let key = JobKey::from_bytes([9; 32]);
        (Session::initiate(&key), Session::respond(&key))
    }

    /// Moves everything unsent from one side to the other in pieces of at most `piece` bytes.
    fn carry(from: &mut Session, to: &mut Session, piece: usize) -> Vec<Vec<u8>> {
        let bytes = from.unsent().to_vec();
        from.sent(bytes.len());
        let mut messages = vec![];
        for piece in bytes.chunks(piece) {
            to.feed(piece);
            while let Some(received) = to.receive().unwrap() {
                match received {
                    Received::Message(message) => messages.push(message),
                    Received::Open => assert!(messages.is_empty()),
                }
            }
        }
        messages
    }

    fn open() -> (Session, Session) {
        let (mut a, mut b) = pair();
        carry(&mut a, &mut b, 7);
        carry(&mut b, &mut a, 7);
        assert!(a.is_open() && b.is_open());
        (a, b)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_arrive_whole_and_in_order_however_the_wire_cuts_them(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..8),
            piece in 1usize..200,
        ) {
            let (mut a, mut b) = open();
            for message in &messages {
                a.send(message).unwrap();
            }
            prop_assert_eq!(carry(&mut a, &mut b, piece), messages);
        }

        #[test]
        fn a_stranger_gets_no_message_in_and_no_panic_out(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            for mut session in [pair().0, pair().1] {
                session.feed(&bytes);
                if let Ok(received) = session.receive() {
                    prop_assert_eq!(received, None);
                }
                prop_assert!(!session.is_open());
            }
        }

        #[test]
        fn one_flipped_bit_ends_an_open_session(at in 0usize..66, bit in 0u8..8) {
            let (mut a, mut b) = open();
            a.send(&[5; 48]).unwrap();
            let mut bytes = a.unsent().to_vec();
            prop_assert_eq!(bytes.len(), 66);
            bytes[at] ^= 1 << bit;
            b.feed(&bytes);
            // A longer frame may still be awaited; nothing may be delivered.
            prop_assert!(!matches!(b.receive(), Ok(Some(_))));
        }
    }

    #[test]
    fn another_key_is_refused_and_the_connecting_side_learns_that_it_is_the_key() {
        let mut a = Session::initiate(&JobKey::from_bytes([1; 32]));
        let mut b = Session::respond(&JobKey::from_bytes([2; 32]));
        b.feed(a.unsent());
        assert_eq!(b.receive(), Err(SessionError::KeyMismatch));
        assert_eq!(b.receive(), Err(SessionError::KeyMismatch), "and stays so");
        a.feed(b.unsent());
        assert_eq!(a.receive(), Err(SessionError::KeyMismatch));
        assert_eq!(a.send(b"x"), Err(SessionError::Cipher));
    }

    #[test]
    fn a_recorded_connection_replayed_opens_nothing() {
        let (mut a, mut b) = pair();
        let hello = a.unsent().to_vec();
        carry(&mut a, &mut b, 100);
        carry(&mut b, &mut a, 100);
        a.send(b"obey").unwrap();
        let order = a.unsent().to_vec();
        let mut fresh = pair().1;
        fresh.feed(&hello);
        fresh.feed(&order);
        assert_eq!(fresh.receive(), Ok(Some(Received::Open)));
        // The replayed hello is answered with a fresh key, which the recording can't follow.
        assert_eq!(fresh.receive(), Err(SessionError::Forged));
    }

    #[test]
    fn the_largest_message_passes_and_a_larger_one_is_refused_by_its_sender() {
        let (mut a, mut b) = open();
        let large = vec![3; MAX_MESSAGE];
        a.send(&large).unwrap();
        assert_eq!(carry(&mut a, &mut b, 5000), vec![large]);
        assert_eq!(a.send(&vec![3; MAX_MESSAGE + 1]), Err(SessionError::TooLarge(MAX_MESSAGE + 1)));
        a.send(b"still open").unwrap();
        assert_eq!(carry(&mut a, &mut b, 5000), vec![b"still open".to_vec()]);
    }

    #[test]
    fn a_hostile_length_is_refused_before_its_bytes_are_awaited() {
        let (mut a, mut b) = open();
        b.feed(&[0xff, 0xff]);
        assert_eq!(b.receive(), Err(SessionError::Frame(0xffff)));
        a.feed(&[0, 3]);
        assert_eq!(a.receive(), Err(SessionError::Frame(3)));
        let mut stranger = pair().1;
        stranger.feed(b"GET / HTTP/1.1\r\n");
        assert_eq!(stranger.receive(), Err(SessionError::Frame(0x4745)));
    }

    #[test]
    fn a_full_server_says_so() {
        let (mut a, mut b) = pair();
        b.refuse(Refusal::Full);
        a.feed(b.unsent());
        assert_eq!(a.receive(), Err(SessionError::Full));
    }
}
