//! Another context on this machine, and the handshake by which two contexts meet.
//!
//! The initiator connects to the target's unix socket (SOCK_SEQPACKET) and says hello with three
//! descriptors: its region, its doorbell, and the memory of the new link. The target answers
//! welcome with its region and doorbell. Each checks the other's credentials (`SO_PEERCRED`, the
//! same user), and opens a pidfd of the pid that they tell; the pid cannot have been dealt anew
//! before that, if the region's life word still lives afterwards. The socket stays open: its
//! hang-up says that the context was closed, or its process replaced by exec, and the pidfd that
//! the process is dead. Nothing here is decided by a timeout but the handshake itself.

use super::inflight::Liveness;
use super::limits::{HANDSHAKE, MAX_LINKS};
use super::region::Region;
use super::shm;
use crate::{Error, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, getsockopt, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// Another context, or this one seen as a peer of itself.
pub(super) struct Peer {
    pid: u32,
    /// Its public region.
    pub(super) region: std::sync::Arc<Region>,
    doorbell: OwnedFd,
    pidfd: Option<OwnedFd>,
    dead: AtomicBool,
    /// Copies by system call are forbidden: everything travels in the ring.
    pub(super) ring_only: AtomicBool,
}

impl Peer {
    /// This context itself.
    pub(super) fn own(region: std::sync::Arc<Region>, doorbell: OwnedFd, ring_only: bool) -> Peer {
        let peer = Peer {
            pid: std::process::id(),
            region,
            doorbell,
            pidfd: None,
            dead: AtomicBool::new(false),
            ring_only: AtomicBool::new(ring_only),
        };
        peer.probe();
        peer
    }

    fn new(pid: u32, region: Region, doorbell: OwnedFd, ring_only: bool) -> Result<Peer> {
        // SAFETY: plain system call.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(Error::last_os(format!("opening a pidfd of process {pid}")));
        }
        // SAFETY: a descriptor just made, owned by nobody else.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        if !region.alive() {
            return Err(Error::new(libc::ECONNRESET, format!("process {pid} has gone")));
        }
        let peer = Peer {
            pid,
            region: std::sync::Arc::new(region),
            doorbell,
            pidfd: Some(pidfd),
            dead: AtomicBool::new(false),
            ring_only: AtomicBool::new(ring_only),
        };
        peer.probe();
        Ok(peer)
    }

    /// Finds out whether the kernel lets us read its memory, by a word whose value we know.
    fn probe(&self) {
        if self.ring_only.load(Ordering::Relaxed) {
            return;
        }
        let header = self.region.header();
        let mut word = 0u64;
        let to = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: size_of::<u64>() };
        let from = libc::iovec {
            iov_base: header.probe_at.load(Ordering::Relaxed) as *mut _,
            iov_len: size_of::<u64>(),
        };
        // SAFETY: eight bytes into a local word; the kernel checks the address in the other process.
        let moved = unsafe { libc::process_vm_readv(self.pid as libc::pid_t, &to, 1, &from, 1, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        let refused = matches!(errno, Some(libc::EPERM | libc::EACCES | libc::ENOSYS));
        // Another word: the pid means another process to us than to the peer.
        let stranger = moved > 0 && word != header.probe.load(Ordering::Relaxed);
        if stranger || (moved < 0 && refused) {
            self.forbid();
        }
    }

    /// Copies between the two processes do not work: from now on everything travels in the ring.
    /// Says so, once in this process.
    #[cold]
    pub(super) fn forbid(&self) {
        static SAID: Once = Once::new();
        self.ring_only.store(true, Ordering::Relaxed);
        SAID.call_once(|| {
            tracing::warn!(
                pid = self.pid,
                "the kernel forbids copies between processes (ptrace rules): everything goes \
                 through shared memory, slower. Under Yama, start the processes by one launcher \
                 that calls PR_SET_PTRACER, or set kernel.yama.ptrace_scope=0"
            );
        });
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Neither dead, nor closed, nor another program.
    #[inline]
    pub(super) fn alive(&self) -> bool {
        !self.dead.load(Ordering::Relaxed) && self.region.alive()
    }

    pub(super) fn bury(&self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Wakes its service thread.
    pub(super) fn ring(&self) {
        shm::ring_eventfd(self.doorbell.as_fd());
    }

    /// Wakes its service thread for work that must not wait for a poll, if it sleeps.
    pub(super) fn urge(&self) {
        let header = self.region.header();
        header.urgent.0.store(1, Ordering::SeqCst);
        if header.sleeping.0.load(Ordering::SeqCst) != 0 {
            self.ring();
        }
    }
}

impl Liveness for Peer {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn gone(&self) -> bool {
        if !self.alive() {
            return true;
        }
        let Some(pidfd) = &self.pidfd else { return false };
        let mut fds = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }
}

const HELLO: u64 = 0x736f_6a68_656c_6c01;
const WELCOME: u64 = 0x736f_6a77_656c_6301;
/// Bytes of either message: tag, link number, [`RING_ONLY`] or not.
const MESSAGE: usize = 16;
/// In a welcome: the target may not copy out of the initiator's memory.
const RING_ONLY: u32 = 1;

/// What a hello carries.
pub(super) struct Hello {
    /// The initiator.
    pub(super) peer: Peer,
    /// The memory of the link.
    pub(super) link: OwnedFd,
    /// The initiator's number of the link.
    pub(super) number: u32,
}

/// Connects to the context behind `path`, and offers it a link.
///
/// # Errors
/// Whatever keeps the two apart; `ECONNREFUSED` and `ENOENT` mean that nobody is there.
pub(super) fn dial(
    path: &Path,
    region: BorrowedFd<'_>,
    doorbell: BorrowedFd<'_>,
    link: BorrowedFd<'_>,
    number: u32,
    ring_only: bool,
) -> Result<(OwnedFd, Peer, u32)> {
    let doing = || format!("connecting to {}", path.display());
    let fail = |errno: nix::errno::Errno| Error::os(&errno.into(), doing());
    let address = UnixAddr::new(path).map_err(fail)?;
    let sock = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(fail)?;
    let patience = TimeVal::new(HANDSHAKE.as_secs() as i64, 0);
    setsockopt(&sock, sockopt::SendTimeout, &patience).map_err(fail)?;
    setsockopt(&sock, sockopt::ReceiveTimeout, &patience).map_err(fail)?;
    connect(sock.as_raw_fd(), &address).map_err(fail)?;
    let pid = credentials(&sock)?;
    say(&sock, HELLO, number, 0, &[region, doorbell, link])?;
    let (tag, their_number, flags, fds) = hear(&sock)?;
    let [region, doorbell] = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|_| Error::new(libc::EPROTO, format!("{}: a malformed welcome", doing())))?;
    if tag != WELCOME {
        return Err(Error::new(libc::EPROTO, format!("{}: not a soft device", doing())));
    }
    let ring_only = ring_only || flags & RING_ONLY != 0;
    let peer = Peer::new(pid, Region::open(&region)?, doorbell, ring_only)?;
    Ok((sock, peer, their_number))
}

/// Takes the hello of whoever has connected; `None` where it has not arrived yet.
///
/// # Errors
/// Anything that is not a hello of the same user's process.
pub(super) fn greet(sock: &OwnedFd, ring_only: bool) -> Result<Hello> {
    let pid = credentials(sock)?;
    let (tag, number, _, fds) = hear(sock)?;
    let [region, doorbell, link] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|_| Error::new(libc::EPROTO, format!("process {pid}: a malformed hello")))?;
    if tag != HELLO {
        return Err(Error::new(libc::EPROTO, format!("process {pid}: not a soft device")));
    }
    let peer = Peer::new(pid, Region::open(&region)?, doorbell, ring_only)?;
    Ok(Hello { peer, link, number })
}

/// Answers a hello.
pub(super) fn welcome(
    sock: &OwnedFd,
    region: BorrowedFd<'_>,
    doorbell: BorrowedFd<'_>,
    number: u32,
    ring_only: bool,
) -> Result<()> {
    say(sock, WELCOME, number, if ring_only { RING_ONLY } else { 0 }, &[region, doorbell])
}

fn credentials(sock: &OwnedFd) -> Result<u32> {
    let cred = getsockopt(sock, sockopt::PeerCredentials)
        .map_err(|errno| Error::os(&errno.into(), "asking who a peer is"))?;
    let uid = nix::unistd::getuid().as_raw();
    if cred.uid() != uid {
        return Err(Error::new(
            libc::EACCES,
            format!("process {} belongs to user {}, not {uid}", cred.pid(), cred.uid()),
        ));
    }
    u32::try_from(cred.pid()).ok().filter(|pid| *pid != 0).ok_or_else(|| {
        Error::new(libc::ESRCH, "a peer lives in another pid namespace: soft cannot reach it")
    })
}

fn say(sock: &OwnedFd, tag: u64, number: u32, flags: u32, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut message = [0u8; MESSAGE];
    message[..8].copy_from_slice(&tag.to_le_bytes());
    message[8..12].copy_from_slice(&number.to_le_bytes());
    message[12..].copy_from_slice(&flags.to_le_bytes());
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    sendmsg::<()>(
        sock.as_raw_fd(),
        &[IoSlice::new(&message)],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .map_err(|errno| Error::os(&errno.into(), "speaking to a peer"))?;
    Ok(())
}

fn hear(sock: &OwnedFd) -> Result<(u64, u32, u32, Vec<OwnedFd>)> {
    let mut message = [0u8; MESSAGE];
    let mut space = nix::cmsg_space!([i32; 4]);
    let mut parts = [IoSliceMut::new(&mut message)];
    let got =
        recvmsg::<()>(sock.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(|errno| Error::os(&errno.into(), "listening to a peer"))?;
    let mut fds = Vec::new();
    if let Ok(controls) = got.cmsgs() {
        for control in controls {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: descriptors that the kernel has just installed for us.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    let bytes = got.bytes;
    if bytes == 0 {
        return Err(Error::new(libc::ECONNRESET, "a peer has closed the connection"));
    }
    if bytes != MESSAGE {
        return Err(Error::new(libc::EPROTO, format!("a peer sent {bytes} bytes")));
    }
    let word = |at: usize| <[u8; 8]>::try_from(&message[at..at + 8]).map(u64::from_le_bytes);
    let tag = word(0).unwrap_or(0);
    let rest = word(8).unwrap_or(0);
    let (number, flags) = (rest as u32, (rest >> 32) as u32);
    if number as usize >= MAX_LINKS {
        return Err(Error::new(libc::EPROTO, format!("a peer calls its link {number}")));
    }
    Ok((tag, number, flags, fds))
}
