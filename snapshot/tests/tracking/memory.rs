//! Memory of every kind, and an image of it that is made of what a tracker tells.

use sojourn_snapshot::track::{Kind, Tracker};
use sojourn_snapshot::{PAGE, Result};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub(crate) const HUGE: usize = 2 << 20;

/// What memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    Private,
    SharedAnonymous,
    Memfd,
    PrivateFile,
    Transparent,
    Explicit,
    ExplicitShared,
}

pub(crate) const ALL: [Made; 7] = [
    Made::Private,
    Made::SharedAnonymous,
    Made::Memfd,
    Made::PrivateFile,
    Made::Transparent,
    Made::Explicit,
    Made::ExplicitShared,
];

impl Made {
    /// A back end says that it cannot track it, and tells all of it each time.
    pub(crate) fn always_dirty(self, kind: Kind) -> bool {
        let shared = matches!(self, Made::SharedAnonymous | Made::Memfd | Made::ExplicitShared);
        self == Made::Explicit || (kind == Kind::SoftDirty && shared)
    }

    /// Bytes of what is dropped or reported together.
    pub(crate) fn page(self) -> usize {
        if matches!(self, Made::Explicit | Made::ExplicitShared) { HUGE } else { PAGE }
    }
}

/// Mapped memory, unmapped when it is dropped.
pub(crate) struct Memory {
    pub(crate) addr: usize,
    pub(crate) bytes: usize,
    pub(crate) made: Made,
    reserved: Range<usize>,
    /// What it is a mapping of.
    pub(crate) file: Option<OwnedFd>,
}

fn map(at: usize, bytes: usize, flags: i32, file: Option<&OwnedFd>) -> Option<usize> {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a mapping at a place of the kernel's choice, or over memory that the caller owns.
    let addr = unsafe { libc::mmap(at as *mut _, bytes, protection, flags, fd, 0) };
    (addr != libc::MAP_FAILED).then_some(addr as usize)
}

/// A file in memory, of so many bytes.
pub(crate) fn memfd(bytes: usize) -> OwnedFd {
    // SAFETY: the name is a C string; the descriptor is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"tracked".as_ptr(), 0)) };
    // SAFETY: a system call with integers only.
    assert_eq!(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as i64) }, 0);
    fd
}

impl Memory {
    /// `None` where this machine has none of it.
    pub(crate) fn new(made: Made, bytes: usize) -> Option<Memory> {
        let bytes = bytes.next_multiple_of(made.page());
        // Room to align it, and a page at each side that is nobody's.
        let room = bytes + 2 * HUGE;
        let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let start = map(0, room, none, None).unwrap();
        let reserved = start..start + room;
        // SAFETY: memory that was just mapped.
        unsafe { libc::mprotect(start as *mut _, room, libc::PROT_NONE) };
        let addr = (start + PAGE).next_multiple_of(HUGE);
        let mut memory = Memory { addr, bytes, made, reserved, file: None };
        memory.fresh(0..bytes).then_some(memory)
    }

    /// Fresh memory in the place of these bytes.
    pub(crate) fn fresh(&mut self, part: Range<usize>) -> bool {
        let (private, shared) = (libc::MAP_PRIVATE, libc::MAP_SHARED);
        let (anonymous, huge) = (libc::MAP_ANONYMOUS, libc::MAP_ANONYMOUS | libc::MAP_HUGETLB);
        let flags = match self.made {
            Made::Private | Made::Transparent => private | anonymous,
            Made::SharedAnonymous => shared | anonymous,
            Made::Memfd => shared,
            Made::PrivateFile => private,
            Made::Explicit => private | huge,
            Made::ExplicitShared => shared | huge,
        };
        self.file = matches!(self.made, Made::Memfd | Made::PrivateFile).then(|| memfd(part.len()));
        let at = self.addr + part.start;
        if map(at, part.len(), flags | libc::MAP_FIXED, self.file.as_ref()).is_none() {
            return false;
        }
        // Some machines make huge pages of all that is large enough.
        match self.made {
            Made::Transparent => _ = self.advise(part, libc::MADV_HUGEPAGE),
            Made::Private => _ = self.advise(part, libc::MADV_NOHUGEPAGE),
            _ => {}
        }
        true
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.addr..self.addr + self.bytes
    }

    pub(crate) fn part(&self, part: Range<usize>) -> Range<usize> {
        assert!(part.end <= self.bytes);
        self.addr + part.start..self.addr + part.end
    }

    /// `madvise`. False where the kernel refuses.
    pub(crate) fn advise(&self, part: Range<usize>, advice: i32) -> bool {
        let at = (self.addr + part.start) as *mut _;
        // SAFETY: memory of our own, which nobody holds a reference into that forbids change.
        unsafe { libc::madvise(at, part.len(), advice) == 0 }
    }

    /// What is dropped of private memory reads as zeros, or as its file.
    pub(crate) fn dont_need(&self, part: Range<usize>) {
        assert!(self.advise(part, libc::MADV_DONTNEED), "{}", std::io::Error::last_os_error());
    }

    pub(crate) fn unmap(&self, part: Range<usize>) {
        let at = (self.addr + part.start) as *mut _;
        // SAFETY: memory of our own, that the test does not touch until it is mapped again.
        assert_eq!(unsafe { libc::munmap(at, part.len()) }, 0);
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < self.bytes);
        // SAFETY: inside the mapping; all access to it from Rust is atomic.
        unsafe { AtomicU8::from_ptr((self.addr + at) as *mut u8) }
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at + 8 <= self.bytes && at.is_multiple_of(8));
        // SAFETY: as `byte`, and aligned.
        unsafe { AtomicU64::from_ptr((self.addr + at) as *mut u64) }
    }

    pub(crate) fn write(&self, at: usize, bytes: usize, value: u8) {
        let (mut at, end) = (at, (at + bytes).min(self.bytes));
        while at < end {
            if at.is_multiple_of(8) && end - at >= 8 {
                self.word(at).store(u64::from_ne_bytes([value; 8]), Ordering::Relaxed);
                at += 8;
            } else {
                self.byte(at).store(value, Ordering::Relaxed);
                at += 1;
            }
        }
    }

    pub(crate) fn read(&self, at: usize) -> u8 {
        self.byte(at).load(Ordering::Relaxed)
    }

    /// Copies one page.
    pub(crate) fn copy(&self, page: usize, to: &mut [u64]) {
        for (i, word) in to.iter_mut().enumerate() {
            *word = self.word(page * PAGE + i * 8).load(Ordering::Relaxed);
        }
    }

    pub(crate) fn pages(&self) -> usize {
        self.bytes / PAGE
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(self.reserved.start as *mut _, self.reserved.len()) };
    }
}

/// What a snapshot would hold: only what was told is ever copied into it.
pub(crate) struct Image {
    words: Vec<u64>,
}

const WORDS: usize = PAGE / 8;

impl Image {
    /// Holds bytes that memory surely has not.
    pub(crate) fn new(memory: &Memory) -> Image {
        Image { words: vec![0x5a5a_5a5a_dead_beef; memory.bytes / 8] }
    }

    /// One collect while nobody writes; the pages that it told.
    pub(crate) fn update(&mut self, tracker: &mut dyn Tracker, memory: &Memory) -> Vec<usize> {
        self.take(memory, |told| tracker.collect_at_rest(told))
    }

    /// One collect while others write.
    pub(crate) fn update_meanwhile(&mut self, tracker: &mut dyn Tracker, memory: &Memory) {
        self.take(memory, |told| tracker.collect(told));
    }

    fn take(
        &mut self,
        memory: &Memory,
        collect: impl FnOnce(&mut dyn FnMut(Range<usize>)) -> Result<()>,
    ) -> Vec<usize> {
        let mut told = Vec::new();
        collect(&mut |range| {
            assert!(range.start % PAGE == 0 && range.end % PAGE == 0 && !range.is_empty());
            let range = range.start.max(memory.addr)..range.end.min(memory.range().end);
            told.extend(range.step_by(PAGE).map(|at| (at - memory.addr) / PAGE));
        })
        .unwrap();
        told.sort_unstable();
        told.dedup();
        told.iter().for_each(|page| self.page(memory, *page));
        told
    }

    /// Copies what somebody else tells of: whatever of it is this memory.
    pub(crate) fn copy(&mut self, memory: &Memory, range: Range<usize>) {
        let range = range.start.max(memory.addr)..range.end.min(memory.range().end);
        if !range.is_empty() {
            let pages = (range.start - memory.addr) / PAGE..=(range.end - 1 - memory.addr) / PAGE;
            pages.for_each(|page| self.page(memory, page));
        }
    }

    fn page(&mut self, memory: &Memory, page: usize) {
        memory.copy(page, &mut self.words[page * WORDS..(page + 1) * WORDS]);
    }

    /// Every byte is what memory has: nothing was left untold.
    pub(crate) fn check(&self, memory: &Memory, what: &str) {
        let mut words = [0; WORDS];
        for page in 0..memory.pages() {
            memory.copy(page, &mut words);
            let held = &self.words[page * WORDS..(page + 1) * WORDS];
            assert!(held == words, "{what}: page {page} of {:?} has changed untold", memory.made);
        }
    }
}

/// The pages that one collect tells.
pub(crate) fn told(tracker: &mut dyn Tracker, memory: &Memory) -> Vec<usize> {
    Image::new(memory).update(tracker, memory)
}

/// Numbers that a seed gives again.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}
