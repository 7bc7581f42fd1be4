//! `/proc/self/pagemap`, read page by page: for kernels and back ends that cannot scan it.
//!
//! A private page that is dropped becomes zeros, or its file's bytes again, without a store. What shows
//! it is that the page was this process's *own copy* and is none any more. A copy is a page of this
//! process alone, or one in swap. One that several processes share after a fork looks as the page of
//! zeros does; it is told apart by its bytes.

use super::ranges;
use crate::{Error, PAGE, Result};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_FILE: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 56;
const SOFT_DIRTY: u64 = 1 << 55;
/// Pages that one read asks for.
const BATCH: usize = 8192;

/// What one page is.
#[derive(Clone, Copy)]
pub(super) struct Page(u64);

impl Page {
    /// It was written since soft-dirty bits were cleared.
    pub(super) fn soft_dirty(self) -> bool {
        self.0 & SOFT_DIRTY != 0
    }

    fn is_own(self) -> bool {
        self.0 & OF_FILE == 0
            && (self.0 & SWAPPED != 0 || self.0 & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE)
    }

    /// A page of zeros, or one that is shared with a child.
    fn is_either(self) -> bool {
        self.0 & (PRESENT | OF_FILE | EXCLUSIVE) == PRESENT
    }
}

/// The file.
pub(super) struct Pages {
    file: File,
    buffer: Vec<u8>,
}

impl Pages {
    /// # Errors
    /// Where it cannot be opened.
    pub(super) fn open() -> Result<Self> {
        let path = "/proc/self/pagemap";
        let file =
            File::open(path).map_err(|error| Error::os(&error, format!("opening {path}")))?;
        Ok(Pages { file, buffer: vec![0; BATCH * 8] })
    }

    /// Tells each page of a range.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn each(
        &mut self,
        range: &Range<usize>,
        mut told: impl FnMut(usize, Page),
    ) -> Result<()> {
        for batch in ranges::windows(std::slice::from_ref(range), BATCH * PAGE) {
            let buffer = &mut self.buffer[..batch.len() / PAGE * 8];
            self.file.read_exact_at(buffer, (batch.start / PAGE * 8) as u64).map_err(|error| {
                Error::os(&error, format!("pagemap of {:#x}-{:#x}", batch.start, batch.end))
            })?;
            for (entry, addr) in buffer.chunks_exact(8).zip(batch.step_by(PAGE)) {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(entry);
                told(addr, Page(u64::from_ne_bytes(bytes)));
            }
        }
        Ok(())
    }
}

/// The pages that are this process's own copies.
#[derive(Default)]
pub(super) struct Copies(Vec<Range<usize>>);

impl Copies {
    /// Looks at private memory, and tells the pages that are own copies no more, and those that may be
    /// dropped without notice. `each` is told every page.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn look(
        &mut self,
        private: &[Range<usize>],
        pages: &mut Pages,
        mut each: impl FnMut(usize, Page),
        dirty: &mut dyn FnMut(Range<usize>),
    ) -> Result<()> {
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        for range in private {
            pages.each(range, |addr, page| {
                each(addr, page);
                if page.is_own() {
                    ranges::push(&mut own, addr..addr + PAGE);
                } else if page.is_either() && !reads_as_zeros(addr) {
                    ranges::push(&mut shared, addr..addr + PAGE);
                }
            })?;
        }
        let now = ranges::normalize([&own[..], &shared].concat());
        ranges::subtract(&self.0, &now).into_iter().for_each(&mut *dirty);
        shared.into_iter().for_each(dirty);
        self.0 = now;
        Ok(())
    }

    /// Forgets what was there.
    pub(super) fn forget(&mut self, gone: &[Range<usize>]) {
        self.0 = ranges::subtract(&self.0, gone);
    }
}

/// Whether a page is all zeros. Through the kernel, because the program may take it away meanwhile.
fn reads_as_zeros(addr: usize) -> bool {
    let mut page = [0u64; PAGE / 8];
    let to = libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: PAGE };
    let from = libc::iovec { iov_base: addr as *mut _, iov_len: PAGE };
    // SAFETY: the kernel writes into `page` alone, and checks the other address.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &to, 1, &from, 1, 0) };
    read == PAGE as isize && page.iter().all(|word| *word == 0)
}
