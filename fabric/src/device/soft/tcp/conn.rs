//! A connection to a context on another machine: authenticated, and bounded both ways.
//!
//! Each side sends requests and answers those of the other. Nothing waits for the other side's
//! reading, so that two that flood each other cannot lock each other up: what is read is executed
//! and answered at once, always. That stays bounded because each side asks for no more answers
//! than [`ANSWERS`] bytes at a time, and puts down no request while more than [`REQUESTS`] bytes
//! have not left; a side that does not keep to it is cut off.
//!
//! Locks: `rx` is held by the service thread while it executes what has come, and `tx` by whoever
//! puts something down. Deregistration and ERR pass through both, so what comes later finds the
//! key or the state gone (`Tcp::fence`).

use super::super::core::Core;
use super::super::lock::Lock;
use super::handshake::Hello;
use super::wire::{self, Garbage, HEAD, MAX_FRAME};
use super::{CONN, token};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Bytes that may wait for the socket before a request has to.
const REQUESTS: usize = 1 << 20;
/// Bytes of answers that may be awaited at a time.
const ANSWERS: u32 = 1 << 20;
/// Bytes read before other connections have a turn.
const TURN: usize = 1 << 20;
/// What is read in one go: several of the largest frames.
const INPUT: usize = 8 * MAX_FRAME;

/// A silent connection is probed after this many seconds, and then every so many.
const PROBE_S: u32 = 1;
/// How long the other machine may stay silent at least: TCP's own retransmissions need some
/// hundreds of milliseconds, and a busy process must come to read.
const LEAST_PATIENCE: Duration = Duration::from_secs(3);
/// How long at most, for queue pairs that wait for ever: a machine that is gone answers to no one.
const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// See the module's documentation.
pub(in super::super) struct Conn {
    /// Who is on the other side.
    pub(in super::super) peer: Hello,
    stream: TcpStream,
    epoll: Arc<Epoll>,
    /// Its place in the table.
    number: u32,
    pub(in super::super) tx: Lock<Tx>,
    pub(super) rx: Lock<Rx>,
    lost: AtomicBool,
    /// Milliseconds of silence that the kernel allows.
    patience: AtomicU32,
}

/// What waits for the socket.
#[derive(Default)]
pub(in super::super) struct Tx {
    buf: Vec<u8>,
    /// How much of it has left.
    left: usize,
    /// Bytes of answers that our requests under way may bring.
    awaited: u32,
    /// The socket takes no more now; the service thread goes on when it does.
    full: bool,
    /// A request found no room.
    starved: bool,
}

/// What has come.
pub(super) struct Rx {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("it has closed the connection")]
    Closed,
    #[error("{0}")]
    Os(#[from] std::io::Error),
    #[error("it sent garbage: {0}")]
    Garbage(#[from] Garbage),
    #[error("it asks for more than it may")]
    Greedy,
}

impl Tx {
    fn unsent(&self) -> usize {
        self.buf.len() - self.left
    }

    /// Whether a request of `bytes` may be put down that brings `answer` bytes back.
    pub(in super::super) fn admits(&mut self, bytes: usize, answer: u32) -> bool {
        let room = self.unsent() + bytes <= REQUESTS && self.awaited + answer <= ANSWERS;
        self.starved |= !room;
        room
    }

    /// Room for a frame's record of `len` bytes; it is part of what is sent once
    /// [`Tx::publish`] has been called.
    pub(in super::super) fn reserve(&mut self, len: usize) -> NonNull<u8> {
        if self.left == self.buf.len() {
            self.buf.clear();
            self.left = 0;
        } else if self.left > REQUESTS {
            self.buf.drain(..self.left);
            self.left = 0;
        }
        self.buf.reserve(HEAD + len);
        // SAFETY: the vector's own memory, of which that much is set aside; never null.
        unsafe { NonNull::new_unchecked(self.buf.as_mut_ptr()).add(self.buf.len() + HEAD) }
    }

    /// Puts down the frame that was written to what [`Tx::reserve`] returned; `answer` bytes may
    /// come back.
    ///
    /// # Safety
    /// All of the `len` bytes that were reserved just before are written.
    pub(in super::super) unsafe fn publish(&mut self, kind: u8, len: usize, answer: u32) {
        self.buf.extend_from_slice(&wire::head(kind, len));
        // SAFETY: reserved, and written, as the caller promises.
        unsafe { self.buf.set_len(self.buf.len() + len) };
        self.awaited += answer;
    }
}

impl Conn {
    pub(super) fn new(
        peer: Hello,
        stream: TcpStream,
        epoll: Arc<Epoll>,
        number: u32,
    ) -> std::io::Result<Conn> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        setsockopt(&stream, sockopt::TcpKeepIdle, &PROBE_S)?;
        setsockopt(&stream, sockopt::TcpKeepInterval, &PROBE_S)?;
        let patience = LEAST_PATIENCE.as_millis() as u32;
        setsockopt(&stream, sockopt::TcpUserTimeout, &patience)?;
        Ok(Conn {
            peer,
            stream,
            epoll,
            number,
            tx: Lock::default(),
            rx: Lock::new(Rx { buf: vec![0; INPUT].into(), start: 0, end: 0 }),
            lost: AtomicBool::new(false),
            patience: AtomicU32::new(patience),
        })
    }

    pub(super) fn watch(&self) -> nix::Result<()> {
        self.epoll.add(&self.stream, self.event(false))
    }

    fn event(&self, write: bool) -> EpollEvent {
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, write);
        EpollEvent::new(flags, token(CONN, self.number))
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Whether nothing will come over it any more.
    #[inline]
    pub(in super::super) fn lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Ends it; the service thread sees that, and does what follows.
    pub(super) fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    pub(super) fn bury(&self) {
        self.lost.store(true, Ordering::Release);
        let _ = self.epoll.delete(&self.stream);
        self.cut();
    }

    /// A queue pair with this patience depends on it: the kernel gives up on a machine that
    /// stays silent for as long as the most patient one waits.
    pub(in super::super) fn depend(&self, patience: Option<Duration>) {
        let patience =
            patience.unwrap_or(MOST_PATIENCE).clamp(LEAST_PATIENCE, MOST_PATIENCE).as_millis();
        let patience = patience as u32;
        if self.patience.fetch_max(patience, Ordering::Relaxed) < patience {
            // It can only fail on a socket that has failed.
            let _ = setsockopt(&self.stream, sockopt::TcpUserTimeout, &patience);
        }
    }

    /// Hands to the socket what it takes.
    pub(in super::super) fn flush(&self, tx: &mut Tx) {
        while tx.unsent() > 0 {
            match (&self.stream).write(&tx.buf[tx.left..]) {
                Ok(0) => break,
                Ok(sent) => tx.left += sent,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !tx.full {
                        tx.full = self.epoll.modify(&self.stream, &mut self.event(true)).is_ok();
                    }
                    return;
                }
                Err(_) => {
                    // Its end is readable, too.
                    self.cut();
                    return;
                }
            }
        }
        if std::mem::take(&mut tx.full) {
            let _ = self.epoll.modify(&self.stream, &mut self.event(false));
        }
    }

    /// An answer of `bytes` has come.
    pub(in super::super) fn credited(&self, bytes: u32) {
        let mut tx = self.tx.lock();
        tx.awaited = tx.awaited.saturating_sub(bytes);
    }

    /// The socket takes more.
    pub(super) fn writable(&self) {
        self.flush(&mut self.tx.lock());
    }

    /// Whether requests that found no room may find it now; says so once.
    pub(super) fn relieved(&self) -> bool {
        let mut tx = self.tx.lock();
        tx.starved && tx.unsent() <= REQUESTS / 2 && tx.awaited <= ANSWERS / 2 && {
            tx.starved = false;
            true
        }
    }

    /// Takes what has come, and executes and answers it.
    pub(super) fn readable(self: &Arc<Self>, core: &Arc<Core>) -> Result<(), End> {
        let mut rx = self.rx.lock();
        let mut taken = 0;
        let ended = loop {
            let Rx { buf, end, .. } = &mut *rx;
            match (&self.stream).read(&mut buf[*end..]) {
                Ok(0) => break Err(End::Closed),
                Ok(come) => {
                    *end += come;
                    taken += come;
                    self.execute(core, &mut rx)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(End::Os(error)),
            }
            if taken >= TURN {
                break Ok(());
            }
        };
        drop(rx);
        let mut tx = self.tx.lock();
        // Answers that the peer has not made room for.
        if tx.unsent() > REQUESTS + ANSWERS as usize + MAX_FRAME {
            return Err(End::Greedy);
        }
        self.flush(&mut tx);
        ended
    }

    /// Executes the whole frames that have come.
    fn execute(self: &Arc<Self>, core: &Arc<Core>, rx: &mut Rx) -> Result<(), Garbage> {
        while let Some((frame, used)) = wire::next(&rx.buf[rx.start..rx.end])? {
            core.take_frame(self, frame);
            rx.start += used;
        }
        // What is left is less than a frame, so there is always room to read.
        rx.buf.copy_within(rx.start..rx.end, 0);
        (rx.start, rx.end) = (0, rx.end - rx.start);
        Ok(())
    }

    /// Sends what is still to be sent, and waits until the peer has read it: what was executed
    /// here is known there, and the other way round. Until `deadline`.
    pub(super) fn close(&self, deadline: Instant) {
        let mut tx = self.tx.lock();
        let left = || {
            let left = deadline.saturating_duration_since(Instant::now());
            (!left.is_zero()).then_some(left)
        };
        let Some(patience) = left() else { return };
        let set = self
            .stream
            .set_nonblocking(false)
            .and_then(|()| self.stream.set_write_timeout(Some(patience)));
        if set.is_err() || (&self.stream).write_all(&tx.buf[tx.left..]).is_err() {
            return;
        }
        tx.left = tx.buf.len();
        let _ = self.stream.shutdown(Shutdown::Write);
        // Closing a socket with unread bytes would reset it, and lose what the peer has not read.
        let mut scrap = [0; 4096];
        while let Some(patience) = left() {
            let set = self.stream.set_read_timeout(Some(patience));
            match set.and_then(|()| (&self.stream).read(&mut scrap)) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}
