//! Anonymous memory, for regions and logs.

use crate::error::{Error, Result};
use std::fmt::Display;
use std::ptr::{self, NonNull};

/// Fresh memory of the process's own, zeroed, at the start of a page: whoever takes it unmaps it.
///
/// # Errors
/// What mmap(2) says, after what was being `doing`.
pub(super) fn anonymous(length: usize, doing: impl Display) -> Result<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping touches no memory of anyone else.
    let base = unsafe {
        libc::mmap(
            ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(Error::last_os(doing));
    }
    Ok(NonNull::new(base.cast()).expect("mmap without MAP_FIXED returns no null"))
}
