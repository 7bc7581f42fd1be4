//! The two kernel interfaces of the scan: userfaultfd, and `PAGEMAP_SCAN`. Constants and structs are
//! those of the kernel's `userfaultfd.h` and `fs.h`.

use crate::{Error, Result};
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: i32 = 1;
const FEATURE_WP: u64 = 1 << 0;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;

const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

#[repr(C)]
#[derive(Default)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteProtect {
    range: UffdioRange,
    mode: u64,
}

#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A run of pages that a scan has found.
#[repr(C)]
#[derive(Clone, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

mod request {
    use super::{PmScanArg, UffdioApi, UffdioRange, UffdioRegister, UffdioWriteProtect};

    nix::ioctl_readwrite!(api, 0xaa, 0x3f, UffdioApi);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, UffdioRegister);
    // The kernel's header declares it the wrong way round, and keeps it so.
    nix::ioctl_read!(unregister, 0xaa, 0x01, UffdioRange);
    nix::ioctl_readwrite!(write_protect, 0xaa, 0x06, UffdioWriteProtect);
    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);
}

/// Runs that one call of the kernel can tell: 48 KiB of them.
const REGIONS: usize = 2048;

impl UffdioRange {
    fn of(range: &Range<usize>) -> Self {
        UffdioRange { start: range.start as u64, len: range.len() as u64 }
    }
}

/// A userfaultfd that resolves faults of protected pages by itself. Closing it lets go of all memory.
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// # Errors
    /// Where the kernel has it not, or does not let us; the message says what is missing.
    pub(super) fn open() -> Result<Self> {
        // For user mode only: it needs no privilege, and faults of system calls resolve by themselves.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | UFFD_USER_MODE_ONLY;
        // SAFETY: a system call with integers only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Error::unsupported(format!(
                "this kernel gives out no userfaultfd: {error}"
            )));
        }
        // SAFETY: the kernel has just made it, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let wanted =
            FEATURE_WP | FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
        let mut api = UffdioApi { api: UFFD_API, features: wanted, ioctls: 0 };
        // SAFETY: the struct is what this request reads and writes.
        if let Err(errno) = unsafe { request::api(fd.as_raw_fd(), &mut api) } {
            return Err(Error::unsupported(format!(
                "userfaultfd of this kernel lacks UFFD_FEATURE_WP_ASYNC, which Linux 6.7 brought: {errno}"
            )));
        }
        Ok(Uffd(fd))
    }

    /// Lets pages of the range be protected.
    pub(super) fn register(&self, range: &Range<usize>) -> nix::Result<()> {
        let mut arg =
            UffdioRegister { range: UffdioRange::of(range), mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: the struct is what this request reads and writes; protection that resolves by
        // itself changes nothing that the program can see.
        unsafe { request::register(self.0.as_raw_fd(), &mut arg) }.map(drop)
    }

    /// Undoes [`Self::register`], and all protection with it.
    pub(super) fn unregister(&self, range: &Range<usize>) -> nix::Result<()> {
        let mut arg = UffdioRange::of(range);
        // SAFETY: the struct is what this request reads.
        unsafe { request::unregister(self.0.as_raw_fd(), &mut arg) }.map(drop)
    }

    /// Protects pages, those that do not exist too.
    pub(super) fn protect(&self, range: &Range<usize>) -> nix::Result<()> {
        let mut arg =
            UffdioWriteProtect { range: UffdioRange::of(range), mode: WRITEPROTECT_MODE_WP };
        // SAFETY: as for `register`.
        unsafe { request::write_protect(self.0.as_raw_fd(), &mut arg) }.map(drop)
    }
}

/// `/proc/self/pagemap`, scanned.
pub(super) struct Pagemap {
    file: File,
    regions: Vec<PageRegion>,
}

impl Pagemap {
    /// # Errors
    /// Where it cannot be opened.
    pub(super) fn open() -> Result<Self> {
        let path = "/proc/self/pagemap";
        let file =
            File::open(path).map_err(|error| Error::os(&error, format!("opening {path}")))?;
        Ok(Pagemap { file, regions: vec![PageRegion::default(); REGIONS] })
    }

    /// Tells the pages of `range` that are not protected, and protects them, each page in one step.
    ///
    /// `EPERM` where a mapping in it is not registered. Whatever the error: pages may be protected
    /// then that were not told.
    pub(super) fn take_written(
        &mut self,
        range: &Range<usize>,
        told: impl FnMut(Range<usize>),
    ) -> nix::Result<()> {
        // With just these masks the kernel takes a page whose entry is empty for written; with any
        // other it does not (and a page that was dropped would be missed).
        let arg = PmScanArg {
            flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..PmScanArg::default()
        };
        self.scan(arg, range, told)
    }

    /// Tells where `range` has no pages, and no protection either.
    pub(super) fn holes(
        &mut self,
        range: &Range<usize>,
        told: impl FnMut(Range<usize>),
    ) -> nix::Result<()> {
        let none = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
        let arg = PmScanArg {
            category_inverted: none,
            category_mask: none,
            // Nothing of it, so that runs are as long as they can be.
            return_mask: 0,
            ..PmScanArg::default()
        };
        self.scan(arg, range, told)
    }

    /// Tells the pages of `range` that are there, and whether each is one of a file.
    pub(super) fn present(
        &mut self,
        range: &Range<usize>,
        mut told: impl FnMut(Range<usize>, bool),
    ) -> nix::Result<()> {
        let arg = PmScanArg {
            category_mask: PAGE_IS_PRESENT,
            return_mask: PAGE_IS_FILE,
            ..PmScanArg::default()
        };
        self.scan_all(arg, range, |range, categories| told(range, categories & PAGE_IS_FILE != 0))
    }

    fn scan(
        &mut self,
        arg: PmScanArg,
        range: &Range<usize>,
        mut told: impl FnMut(Range<usize>),
    ) -> nix::Result<()> {
        self.scan_all(arg, range, |range, _| told(range))
    }

    fn scan_all(
        &mut self,
        mut arg: PmScanArg,
        range: &Range<usize>,
        mut told: impl FnMut(Range<usize>, u64),
    ) -> nix::Result<()> {
        arg.size = size_of::<PmScanArg>() as u64;
        arg.end = range.end as u64;
        arg.walk_end = range.start as u64;
        while arg.walk_end < arg.end {
            arg.start = arg.walk_end;
            arg.vec = self.regions.as_mut_ptr() as u64;
            arg.vec_len = self.regions.len() as u64;
            // SAFETY: the struct is what this request reads and writes, and `vec` has room for
            // `vec_len` regions.
            let found = unsafe { request::pagemap_scan(self.file.as_raw_fd(), &mut arg) }?;
            for region in &self.regions[..found as usize] {
                told(region.start as usize..region.end as usize, region.categories);
            }
            if arg.walk_end <= arg.start {
                // It does so at huge pages that it cannot protect.
                return Err(nix::errno::Errno::ENOTSUP);
            }
        }
        Ok(())
    }
}
