//! How a command ends when it does not succeed: one sentence on stderr and an exit status.

use std::fmt::Display;

/// Exit status of a failure that has no status of its own.
const FAILED: u8 = 1;
/// Exit status of arguments that make no sense, as clap's own.
const USAGE: u8 = 2;

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What to say on stderr; `None` where everything has been said.
    pub(crate) message: Option<String>,
    /// The exit status.
    pub(crate) status: u8,
}

/// What a command answers.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Something went wrong while doing what was asked.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure { message: Some(message.into()), status: FAILED }
    }

    /// What was asked makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Failure { message: Some(message.into()), status: USAGE }
    }

    /// An exit status whose reason has been told already.
    pub(crate) fn status(status: u8) -> Self {
        Failure { message: None, status }
    }
}

impl From<sojourn::Error> for Failure {
    fn from(error: sojourn::Error) -> Self {
        Failure::new(error.to_string())
    }
}

/// Says what was being done when an error happened.
pub(crate) trait While<T> {
    /// Puts `doing` in front of the error.
    fn doing(self, doing: impl Display) -> Outcome<T>;
}

impl<T, E: Display> While<T> for Result<T, E> {
    fn doing(self, doing: impl Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{doing}: {error}")))
    }
}
