//! What can go wrong on the control path, each named with its value and what to do about it.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

use super::types::ProcessId;

/// An error of the control path. Cheap to clone: one broken connection fails many fetches.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The job key file can't be used.
    #[error("job key file {}: {problem}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },

    /// The other side holds another key.
    #[error(
        "the job key ({key}) does not match that of {place}: use the key that the job was \
         started with"
    )]
    KeyMismatch {
        /// Where our key came from.
        key: String,
        /// Who refused it, or failed to prove it.
        place: String,
    },

    /// A socket path or port is in use.
    #[error("{endpoint} is taken: {hint}")]
    Taken {
        /// The path or port.
        endpoint: String,
        /// What to do.
        hint: String,
    },

    /// The process has used up its file descriptors.
    #[error("{what}: no file descriptors left (limit {limit}; raise it with ulimit -n)")]
    NoDescriptors {
        /// What needed one.
        what: String,
        /// The soft `RLIMIT_NOFILE`, or what the system as a whole has.
        limit: String,
    },

    /// The operating system refused something else.
    #[error("{what}: {}", errno.desc())]
    System {
        /// What was attempted.
        what: String,
        /// Why it failed.
        errno: Errno,
    },

    /// A directory for sockets that others may enter.
    #[error("socket directory {}: {problem}", path.display())]
    SocketDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },

    /// A job environment variable that is missing or makes no sense.
    #[error("environment variable {variable}: {problem}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it, its value included.
        problem: String,
    },

    /// Where something listens, written wrongly.
    #[error("endpoint {text:?}: {problem}")]
    Endpoint {
        /// What was written.
        text: String,
        /// What is wrong with it.
        problem: String,
    },

    /// The directory can't be asked.
    #[error("directory at {place}: {problem}")]
    Directory {
        /// Where it is, or was.
        place: String,
        /// What happened.
        problem: String,
    },

    /// The wanted process number belongs to a live process.
    #[error("{process} is already in the job and alive, says the directory at {place}")]
    AlreadyAlive {
        /// The number.
        process: ProcessId,
        /// The directory that says so.
        place: String,
    },

    /// Nobody of this number has joined yet.
    #[error("{process} has not joined the job")]
    NotYet {
        /// The number.
        process: ProcessId,
    },

    /// The process was in the job and is no more.
    #[error("{process} has left the job")]
    Gone {
        /// The number.
        process: ProcessId,
    },

    /// The directory says that the process lives, and yet it can't be talked to.
    #[error("{process} can't be reached: {problem}")]
    Unreachable {
        /// The number.
        process: ProcessId,
        /// What happened.
        problem: String,
    },

    /// The owner has no such thing.
    #[error("{process} has no {what}")]
    Unknown {
        /// The owner.
        process: ProcessId,
        /// What was asked for.
        what: String,
    },

    /// The owner could not serve another request of ours.
    #[error("{process} is busy: too many unanswered requests for notes ({what})")]
    Busy {
        /// The owner.
        process: ProcessId,
        /// What was asked for.
        what: String,
    },

    /// No answer in time.
    #[error("{what} of {process}: no answer before the deadline ({doing})")]
    Deadline {
        /// The owner.
        process: ProcessId,
        /// What was asked for.
        what: String,
        /// How far it got.
        doing: String,
    },

    /// A value of the program's own that is past a limit.
    #[error("{what} is {value}; the limit is {limit}")]
    Limit {
        /// What is too large.
        what: String,
        /// How large it is.
        value: usize,
        /// How large it may be.
        limit: usize,
    },

    /// The call would wait for the thread that it runs on.
    #[error("{what} called on the service thread, which it would block for ever")]
    OnServiceThread {
        /// The call.
        what: &'static str,
    },

    /// The service of this process has ended.
    #[error("the control service of this process has stopped")]
    Stopped,
}

impl Error {
    /// Turns a failed system call into the error that names it.
    pub(crate) fn system(what: impl Into<String>, errno: Errno) -> Error {
        let what = what.into();
        match errno {
            Errno::EMFILE => Error::NoDescriptors { what, limit: descriptor_limit() },
            Errno::ENFILE => Error::NoDescriptors { what, limit: "of the whole system".into() },
            errno => Error::System { what, errno },
        }
    }

    /// As [`Error::system`], of what the standard library reports.
    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error) -> Error {
        Error::system(what, errno_of(error))
    }
}

/// The same error as verbs tell it, with the errno that says the same.
impl From<Error> for crate::Error {
    fn from(error: Error) -> crate::Error {
        use Error as E;
        let errno = match &error {
            E::System { errno, .. } => *errno as i32,
            E::KeyFile { .. } | E::KeyMismatch { .. } | E::SocketDirectory { .. } => libc::EACCES,
            E::Taken { .. } => libc::EADDRINUSE,
            E::AlreadyAlive { .. } => libc::EEXIST,
            E::NoDescriptors { .. } => libc::EMFILE,
            E::Environment { .. } | E::Endpoint { .. } | E::Limit { .. } => libc::EINVAL,
            E::Gone { .. } | E::Unreachable { .. } => libc::EHOSTUNREACH,
            E::NotYet { .. } | E::Deadline { .. } => libc::ETIMEDOUT,
            E::Unknown { .. } => libc::ENOENT,
            E::Busy { .. } => libc::EBUSY,
            E::OnServiceThread { .. } => libc::EDEADLK,
            E::Directory { .. } | E::Stopped => libc::EIO,
        };
        crate::Error::new(errno, error.to_string())
    }
}

/// The number inside an `io::Error`; those without one are the library's own refusals of its
/// arguments.
pub(crate) fn errno_of(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw)
}

fn descriptor_limit() -> String {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or("unknown".into(), |(soft, _)| soft.to_string())
}

/// A duration as people say it.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
