//! Pointers to libibverbs' objects, and what its functions answer.

use crate::Error;
use std::ffi::c_int;
use std::fmt;
use std::io;
use std::ptr::NonNull;

/// A pointer to an object that libibverbs made. Whoever holds it destroys the object.
pub(super) struct Handle<T>(NonNull<T>);

// SAFETY: verbs may be called on any object from any thread, at any time. (On what was created
// single-threaded the caller promised to use one thread at a time.)
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    pub(super) fn ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

/// What a function answered that creates an object: null stands for failure.
pub(super) fn created<T>(object: *mut T) -> Result<Handle<T>, i32> {
    NonNull::new(object).map(Handle).ok_or_else(last_errno)
}

/// What a function answered that returns 0 for success: the man pages say "errno on failure",
/// and some functions and providers return -1 and set errno, or the negative errno.
pub(super) fn status(answer: c_int) -> Result<(), i32> {
    match answer {
        0 => Ok(()),
        -1 => Err(last_errno()),
        errno => Err(errno.saturating_abs()),
    }
}

/// The thread's errno; `EIO` where the function that failed did not set it.
pub(super) fn last_errno() -> i32 {
    match io::Error::last_os_error().raw_os_error() {
        None | Some(0) => libc::EIO,
        Some(errno) => errno,
    }
}

/// An error with the reason in words, and with a remedy where the process ran out of files.
pub(super) fn error(errno: i32, doing: impl fmt::Display) -> Error {
    let reason = io::Error::from_raw_os_error(errno);
    if errno != libc::EMFILE {
        return Error::os(&reason, doing);
    }
    let limit = match nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
        Ok((soft, _)) => soft.to_string(),
        Err(_) => "unknown".into(),
    };
    Error::new(
        errno,
        format!(
            "{doing}: no file descriptor is left: RLIMIT_NOFILE is {limit}; raise it (ulimit -n)"
        ),
    )
}

/// Logs that an object could not be destroyed: there is nobody to return it to.
pub(super) fn log_undestroyed(answer: c_int, what: fmt::Arguments<'_>) {
    if let Err(errno) = status(answer) {
        tracing::warn!(error = %io::Error::from_raw_os_error(errno), "cannot destroy {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: all three ways in which verbs report a failure give the errno.
    #[test]
    fn every_way_to_fail_gives_the_errno() {
        assert_eq!(status(0), Ok(()));
        assert_eq!(status(libc::ENOMEM), Err(libc::ENOMEM));
        assert_eq!(status(-libc::ENOMEM), Err(libc::ENOMEM));
        nix::errno::Errno::ENODEV.set();
        assert_eq!(status(-1), Err(libc::ENODEV));
        nix::errno::Errno::clear();
        assert_eq!(status(-1), Err(libc::EIO));
    }

    /// Promise: running out of file descriptors names the limit.
    #[test]
    fn no_descriptor_left_names_the_limit() {
        let text = error(libc::EMFILE, "creating a completion channel").to_string();
        assert!(text.contains("RLIMIT_NOFILE is ") && text.contains("ulimit -n"), "{text}");
    }
}
