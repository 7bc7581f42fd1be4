//! The one error type of verbs calls: an errno, as the man pages name them, and one sentence.

use std::fmt;

/// What a control-path verb answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a verb failed: the errno that the C interface would return, and a sentence that names
/// the thing, the value and what to do.
#[derive(Clone, Debug)]
pub struct Error {
    errno: i32,
    message: String,
}

impl Error {
    /// An error with the errno `errno` and a message of its own.
    #[must_use]
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        Error { errno, message: message.into() }
    }

    /// An error of the operating system, with what was being done when it happened.
    #[must_use]
    pub fn os(error: &std::io::Error, doing: impl fmt::Display) -> Self {
        Error::new(error.raw_os_error().unwrap_or(libc::EIO), format!("{doing}: {error}"))
    }

    /// The last error of the operating system ([`std::io::Error::last_os_error`]).
    #[must_use]
    pub fn last_os(doing: impl fmt::Display) -> Self {
        Error::os(&std::io::Error::last_os_error(), doing)
    }

    /// `EINVAL` with a message.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(libc::EINVAL, message)
    }

    /// `EOPNOTSUPP` with a message.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Error::new(libc::EOPNOTSUPP, message)
    }

    /// The errno.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// The same error, with what was being done in front of its message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = std::io::Error::from_raw_os_error(error.errno).kind();
        std::io::Error::new(kind, error)
    }
}
