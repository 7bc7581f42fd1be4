//! The service thread: one per context, all signals blocked, asleep in epoll.
//!
//! It answers peers that connect, learns of their death, and does what the program's threads
//! cannot: wait. A queue pair that met an empty receive queue, a full ring or a peer that does
//! not answer is *stalled* with a time, and run again then. It takes requests from the rings
//! only when somebody asks for it (`urgent`, an armed CQ, a ring without room), so that a
//! program that polls is not disturbed.

use super::core::{Core, Token};
use super::link;
use super::qp::Qp;
use super::{life, peer, shm};
use nix::sys::epoll::{EpollEvent, EpollTimeout};
use nix::sys::socket::{SockFlag, accept4};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// Connections that have not said hello yet; more are turned away.
const MAX_CALLERS: usize = 256;
/// How long such a connection may stay silent.
const PATIENCE: Duration = super::limits::HANDSHAKE;

/// Blocks all signals of the calling thread: handlers of the program never run on ours.
pub(super) fn block_signals() {
    // SAFETY: a valid set, filled by sigfillset.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Starts the service thread of `core`, and returns once peers can rely on it.
pub(super) fn start(core: Arc<Core>) -> crate::Result<std::thread::JoinHandle<()>> {
    let (ready, started) = crossbeam_channel::bounded(1);
    let thread = std::thread::Builder::new()
        .name(format!("sojourn-{}", core.name))
        .spawn(move || {
            block_signals();
            if !life::begin(&core.region) {
                tracing::warn!("no robust list: peers will not see this process exec");
            }
            let _ = ready.send(());
            Service { callers: HashMap::new(), core: &core }.run();
            life::end(&core.region);
        })
        .map_err(|error| crate::Error::os(&error, "starting the soft device's service thread"))?;
    let _ = started.recv();
    Ok(thread)
}

struct Service<'a> {
    core: &'a Arc<Core>,
    callers: HashMap<u32, (OwnedFd, Instant)>,
}

impl Service<'_> {
    fn run(&mut self) {
        let mut events = [EpollEvent::empty(); 64];
        while !self.core.stop.load(Ordering::Acquire) {
            let timeout = self.work();
            let header = self.core.region.header();
            header.sleeping.0.store(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // Whoever put something down before it could see that we sleep did not ring.
            let missed = header.urgent.0.load(Ordering::SeqCst) != 0
                || self.due().is_some_and(|at| at <= Instant::now());
            let timeout = if missed { Some(Duration::ZERO) } else { self.sooner(timeout) };
            let count = wait(&self.core.epoll, &mut events, timeout);
            header.sleeping.0.store(0, Ordering::SeqCst);
            let mut rung = header.urgent.0.swap(0, Ordering::SeqCst) != 0;
            for event in &events[..count] {
                match Token::unpack(event.data()) {
                    Some(Token::Doorbell) => rung |= shm::take_eventfd(self.core.doorbell.as_fd()),
                    Some(Token::Listener) => self.accept(),
                    Some(Token::Caller(fd)) => self.greet(fd),
                    Some(Token::Socket(number) | Token::Process(number)) => {
                        self.core.bury_link(number);
                    }
                    Some(Token::Tcp) => {
                        rung |= self.core.tcp.as_ref().is_some_and(|tcp| tcp.serve(self.core));
                    }
                    None => {}
                }
            }
            if rung {
                self.core.progress();
                self.rerun(|stalled_on_ring| stalled_on_ring);
            }
        }
    }

    /// Runs what is due; returns how long there is nothing to do.
    fn work(&mut self) -> Option<Duration> {
        self.rerun(|_| false);
        let now = Instant::now();
        self.callers.retain(|_, (_, until)| *until > now);
        let caller = self.callers.values().map(|(_, until)| *until).min();
        let tcp = self.core.tcp.as_ref().and_then(|tcp| tcp.due());
        let next = [self.due(), caller, tcp].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(now))
    }

    fn due(&self) -> Option<Instant> {
        self.core.stalled.lock().iter().map(|stalled| stalled.at).min()
    }

    fn sooner(&self, timeout: Option<Duration>) -> Option<Duration> {
        // Something may have been stalled since `work` looked; whoever did it may not have seen
        // that we sleep.
        let due = self.due().map(|at| at.saturating_duration_since(Instant::now()));
        [timeout, due].into_iter().flatten().min()
    }

    /// Runs the stalled queue pairs whose time has come, and those that `also` chooses.
    fn rerun(&self, also: impl Fn(bool) -> bool) {
        let now = Instant::now();
        let mut ready: Vec<Arc<Qp>> = Vec::new();
        self.core.stalled.lock().retain(|stalled| {
            let run = stalled.at <= now || also(stalled.on_ring);
            if run {
                ready.push(Arc::clone(&stalled.qp));
            }
            !run
        });
        for qp in ready {
            qp.resume();
        }
        self.core.run_deferred();
    }

    fn accept(&mut self) {
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.core.listener.as_raw_fd(), flags) {
                Ok(fd) => {
                    // SAFETY: a descriptor just made, owned by nobody else.
                    let sock = unsafe { OwnedFd::from_raw_fd(fd) };
                    if self.callers.len() < MAX_CALLERS
                        && self.core.watch(&sock, Token::Caller(fd as u32)).is_ok()
                    {
                        self.callers.insert(fd as u32, (sock, Instant::now() + PATIENCE));
                    }
                }
                Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(errno) => {
                    tracing::warn!(%errno, "cannot accept a peer");
                    // Without descriptors the listener stays readable: do not spin.
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
            }
        }
    }

    fn greet(&mut self, fd: u32) {
        let Some((sock, _)) = self.callers.remove(&fd) else { return };
        let _ = self.core.epoll.delete(&sock);
        if let Err(error) = self.meet(sock) {
            tracing::debug!(%error, "a peer was turned away");
        }
    }

    fn meet(&self, sock: OwnedFd) -> crate::Result<()> {
        let hello = peer::greet(&sock, self.core.options.ring_only)?;
        let ring_only = hello.peer.ring_only.load(Ordering::Relaxed);
        let mapping = link::open(&hello.link)?;
        let reply = sock.try_clone().map_err(|e| crate::Error::os(&e, "cloning a descriptor"))?;
        let number =
            self.core.accept_link(Arc::new(hello.peer), mapping, hello.number, Some(sock))?;
        peer::welcome(
            &reply,
            self.core.region_fd.as_fd(),
            self.core.doorbell.as_fd(),
            number,
            ring_only,
        )
    }
}

/// `epoll_wait` with nanoseconds where the kernel has `epoll_pwait2`.
fn wait(
    epoll: &nix::sys::epoll::Epoll,
    events: &mut [EpollEvent],
    timeout: Option<Duration>,
) -> usize {
    let spec = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(3600) as libc::time_t,
        tv_nsec: t.subsec_nanos().into(),
    });
    // SAFETY: `EpollEvent` is `repr(transparent)` over `epoll_event`; the array and the time are
    // valid for the call.
    let count = unsafe {
        libc::syscall(
            libc::SYS_epoll_pwait2,
            epoll.0.as_raw_fd(),
            events.as_mut_ptr(),
            events.len(),
            spec.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            std::ptr::null::<libc::sigset_t>(),
            0,
        )
    };
    if count >= 0 {
        return count as usize;
    }
    if std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS) {
        return 0;
    }
    let millis = timeout.map_or(EpollTimeout::NONE, |t| {
        EpollTimeout::try_from(t.as_millis() as i32 + 1).unwrap_or(EpollTimeout::MAX)
    });
    epoll.wait(events, millis).unwrap_or(0)
}
