//! Memory whose pages are filled in when they are touched: userfaultfd for pages that are missing. Constants
//! and structs are those of the kernel's `userfaultfd.h`.

use crate::{Error, PAGE, Result};
use nix::errno::Errno;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const API: u64 = 0xaa;
const USER_MODE_ONLY: i32 = 1;
const MODE_MISSING: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;

#[repr(C)]
#[derive(Default)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RangeArg {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArg {
    range: RangeArg,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArg {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroArg {
    range: RangeArg,
    mode: u64,
    zeroed: i64,
}

/// What the descriptor tells.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    rest: u64,
}

mod request {
    use super::{ApiArg, CopyArg, RangeArg, RegisterArg, ZeroArg};

    nix::ioctl_readwrite!(api, 0xaa, 0x3f, ApiArg);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, RegisterArg);
    // The kernel's header declares these two the wrong way round, and keeps it so.
    nix::ioctl_read!(unregister, 0xaa, 0x01, RangeArg);
    nix::ioctl_read!(wake, 0xaa, 0x02, RangeArg);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, CopyArg);
    nix::ioctl_readwrite!(zeropage, 0xaa, 0x04, ZeroArg);
}

impl RangeArg {
    fn of(range: &Range<usize>) -> Self {
        RangeArg { start: range.start as u64, len: range.len() as u64 }
    }
}

/// Ranges of which every page that is touched, and not there, is waited for.
pub(super) struct Missing(OwnedFd);

impl Missing {
    /// # Errors
    /// `EOPNOTSUPP` where the kernel does not give one out.
    pub(super) fn open() -> Result<Missing> {
        let open = |only: i32| {
            let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | only;
            // SAFETY: a system call with integers only.
            unsafe { libc::syscall(libc::SYS_userfaultfd, flags) }
        };
        // Where it may, for system calls too.
        let fd = Some(open(0)).filter(|fd| *fd >= 0).unwrap_or_else(|| open(USER_MODE_ONLY));
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Error::unsupported(format!(
                "this kernel gives out no userfaultfd: {error}"
            )));
        }
        // SAFETY: the kernel has just made it, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let mut api = ApiArg { api: API, ..ApiArg::default() };
        // SAFETY: the struct is what this request reads and writes.
        let answer = unsafe { request::api(fd.as_raw_fd(), &mut api) };
        answer.map_err(|errno| Error::new(errno as i32, format!("userfaultfd: {errno}")))?;
        Ok(Missing(fd))
    }

    /// Drops the pages of a range, and has each waited for from now on.
    ///
    /// # Safety
    /// Private anonymous memory, whole pages, of which nobody wants the content.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) unsafe fn add(&self, range: &Range<usize>) -> Result<()> {
        let mut arg = RegisterArg { range: RangeArg::of(range), mode: MODE_MISSING, ioctls: 0 };
        let doing = format_args!("restoring {:#x}..{:#x} lazily", range.start, range.end);
        // SAFETY: the caller's promise.
        if unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED) } != 0 {
            return Err(Error::last_os(doing));
        }
        // SAFETY: the struct is what this request reads and writes; the pages are empty.
        let answer = unsafe { request::register(self.0.as_raw_fd(), &mut arg) };
        answer.map(drop).map_err(|errno| Error::new(errno as i32, format!("{doing}: {errno}")))
    }

    /// Pages of a range that are not there are zeros from now on, as they are elsewhere.
    pub(super) fn remove(&self, range: &Range<usize>) -> nix::Result<()> {
        let mut arg = RangeArg::of(range);
        // SAFETY: the struct is what this request reads.
        unsafe { request::unregister(self.0.as_raw_fd(), &mut arg) }.map(drop)
    }

    /// Where somebody waits now.
    pub(super) fn faults(&self) -> Result<Vec<usize>> {
        let mut all = [Message::default(); 16];
        // SAFETY: room for as many whole messages as are asked for, which are integers alone.
        let bytes =
            unsafe { libc::read(self.0.as_raw_fd(), all.as_mut_ptr().cast(), size_of_val(&all)) };
        if bytes < 0 {
            let error = std::io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(vec![]),
                _ => Err(Error::os(&error, "reading who waits for memory")),
            };
        }
        let all = &all[..bytes as usize / size_of::<Message>()];
        let faults = all.iter().filter(|message| message.event == EVENT_PAGEFAULT);
        Ok(faults.map(|message| message.address as usize & !(PAGE - 1)).collect())
    }

    /// Puts whole pages where they are missing, and wakes who waits there.
    ///
    /// # Safety
    /// As many bytes at `from` are readable, and change no more.
    pub(super) unsafe fn fill(&self, range: &Range<usize>, from: *const u8) -> Result<()> {
        let mut done = 0;
        self.put(range, |left| {
            let mut arg = CopyArg {
                dst: left.start as u64,
                src: from as u64 + done as u64,
                len: left.len() as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: the struct is what this request reads and writes; it fills pages that are missing alone,
            // from memory that the caller has promised.
            let answer = unsafe { request::copy(self.0.as_raw_fd(), &mut arg) };
            done += usize::try_from(arg.copy).unwrap_or(0);
            (answer.map(drop), arg.copy)
        })
    }

    /// Puts zeros where pages are missing, and wakes who waits there.
    pub(super) fn zero(&self, range: &Range<usize>) -> Result<()> {
        self.put(range, |left| {
            let mut arg = ZeroArg { range: RangeArg::of(left), mode: 0, zeroed: 0 };
            // SAFETY: the struct is what this request reads and writes; it fills pages that are missing alone.
            let answer = unsafe { request::zeropage(self.0.as_raw_fd(), &mut arg) };
            (answer.map(drop), arg.zeroed)
        })
    }

    fn put(
        &self,
        range: &Range<usize>,
        mut some: impl FnMut(&Range<usize>) -> (nix::Result<()>, i64),
    ) -> Result<()> {
        let mut left = range.clone();
        while !left.is_empty() {
            let (answer, bytes) = some(&left);
            left.start += usize::try_from(bytes).unwrap_or(0);
            match answer {
                // The mappings of the process were just being changed.
                Ok(()) | Err(Errno::EAGAIN) => {}
                // It is there already: whoever waits has only to look again.
                Err(Errno::EEXIST) => {
                    let mut arg = RangeArg::of(&left);
                    // SAFETY: the struct is what this request reads.
                    let _ = unsafe { request::wake(self.0.as_raw_fd(), &mut arg) };
                    return Ok(());
                }
                Err(errno) => {
                    let text = format!("memory at {:#x} cannot be filled in: {errno}", left.start);
                    return Err(Error::new(errno as i32, text));
                }
            }
        }
        Ok(())
    }
}
