//! The connection of a selftest on two machines: what is agreed on before the cases of a layer,
//! and the link over which they run.

use crate::cli::{Failure, Outcome, While};
use serde::{Deserialize, Serialize};
use sojourn_conformance::{Layer, Link, MAX_FRAME};
use sojourn_fabric::names::{self, Conversation};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Both sides must know the same cases.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How long an answer may take: opening a device, starting a directory.
const ANSWER: Duration = Duration::from_secs(60);
/// How long the next question may take: while nothing is asked, the other side opens its device.
const QUESTION: Duration = Duration::from_secs(120);

/// What the side that connects asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// Be side B for the cases of this layer.
    Begin { version: String, layer: String },
    /// There is no more.
    End,
}

/// What the side that listens answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It follows from now on. For virtual verbs both sides are of one job, whose directory is at
    /// this address.
    Ready { directory: Option<String> },
    /// It cannot.
    Refused(String),
    /// It ends, too.
    Ended,
}

/// A connection, as often as it is needed.
#[derive(Clone)]
pub(super) struct Wire(Arc<Mutex<Conversation>>);

impl Wire {
    pub(super) fn over(talk: Conversation) -> Self {
        Wire(Arc::new(Mutex::new(talk)))
    }

    /// Where the other side is.
    pub(super) fn place(&self) -> String {
        self.talk().place().to_string()
    }

    /// Asks the other side to follow; returns where its directory is, if it keeps one.
    pub(super) fn begin(&mut self, layer: Layer) -> Outcome<Option<String>> {
        let (version, layer) = (VERSION.into(), layer.as_str().into());
        match self.ask(&Question::Begin { version, layer })? {
            Answer::Ready { directory } => Ok(directory),
            Answer::Refused(why) => Err(Failure::new(format!("the other side: {why}"))),
            Answer::Ended => Err(Failure::new("the other side has ended")),
        }
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&mut self, question: &Question) -> Outcome<Answer> {
        self.say(question)?;
        self.hear("an answer", ANSWER)
    }

    /// Waits for a question.
    pub(super) fn question(&mut self) -> Outcome<Question> {
        self.hear("what to do next", QUESTION)
    }

    /// Answers it.
    pub(super) fn answer(&mut self, answer: &Answer) -> Outcome {
        self.say(answer)
    }

    fn say(&mut self, what: &impl Serialize) -> Outcome {
        let bytes = serde_json::to_vec(what).doing("writing JSON")?;
        self.talk().send(&bytes).doing("the other side")
    }

    fn hear<T: for<'a> Deserialize<'a>>(&mut self, what: &str, patience: Duration) -> Outcome<T> {
        let until = Instant::now() + patience;
        let silent = || Failure::new(format!("the other side does not say {what} in time"));
        let bytes = self.talk().receive(until).doing("the other side")?.ok_or_else(silent)?;
        serde_json::from_slice(&bytes).doing("the other side says something else than expected")
    }

    fn talk(&self) -> MutexGuard<'_, Conversation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link for Wire {
    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.talk().send(frame).map_err(gone)
    }

    fn recv(&mut self, until: Instant) -> io::Result<Option<Vec<u8>>> {
        let frame = self.talk().receive(until).map_err(gone)?;
        match frame {
            Some(frame) if frame.len() > MAX_FRAME => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the other side sent a frame of {} bytes", frame.len()),
            )),
            frame => Ok(frame),
        }
    }
}

fn gone(error: names::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

/// The layer of this name.
pub(super) fn layer(name: &str) -> Outcome<Layer> {
    super::LAYERS
        .into_iter()
        .find(|layer| layer.as_str() == name)
        .ok_or_else(|| Failure::new(format!("the other side asks for a layer {name:?}")))
}
