//! How verbs answer a failure: an errno, in the place where the man page of each has it.

use sojourn_fabric::Error;
use std::ffi::{c_char, c_int, c_uint};
use std::io::Write as _;

/// What a verb returns, as far as a failure goes.
pub(crate) trait Answer {
    /// The answer of one that failed with `errno`.
    fn failed(errno: c_int) -> Self;
}

/// Returned by most: 0, or the errno.
impl Answer for c_int {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
        errno
    }
}

/// Returned by the verbs that answer −1 and leave the reason in `errno`.
#[repr(transparent)]
pub(crate) struct MinusOne(pub(crate) c_int);

impl Answer for MinusOne {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
        MinusOne(-1)
    }
}

/// A count, or the negative errno.
impl Answer for isize {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
        -(errno as isize)
    }
}

/// A value that has no room for an error: 0.
impl Answer for u64 {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
        0
    }
}

impl Answer for () {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
    }
}

impl<T> Answer for *mut T {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
        std::ptr::null_mut()
    }
}

impl Answer for *const c_char {
    fn failed(errno: c_int) -> Self {
        set_errno(errno);
        std::ptr::null()
    }
}

/// What a verb that returns 0 or an errno returns.
pub(crate) fn status(result: Result<(), Error>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => failure(&error),
    }
}

/// The answer to an error of the layers below.
pub(crate) fn failure<A: Answer>(error: &Error) -> A {
    A::failed(error.errno())
}

/// The same, where the program's own message could not say what to do: it is told on stderr.
pub(crate) fn told<A: Answer>(error: &Error) -> A {
    // A closed stderr is no reason to fail in another way.
    let _ = writeln!(std::io::stderr(), "sojourn: {error}");
    failure(error)
}

fn set_errno(errno: c_int) {
    // SAFETY: the address of this thread's own errno is always valid.
    unsafe { *libc::__errno_location() = errno }
}

/// A size or count that C passes as `int`; `None` where it is negative.
pub(crate) fn unsigned(value: c_int) -> Option<c_uint> {
    c_uint::try_from(value).ok()
}
