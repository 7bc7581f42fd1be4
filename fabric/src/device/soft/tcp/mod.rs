//! TCP between machines: what takes the place of shared memory where there is none.
//!
//! With `SOJOURN_SOFT_ADDR=ip[:port]` a context listens there (port 0, or none: any), and its GID
//! carries the address (`address`). A destination whose LID, or address, is not this node's is
//! reached over a connection to the context that its GID names: one for each pair of contexts (two
//! if both dial at the same moment), made at RTR or at the first use, kept until one side goes.
//!
//! Authentication comes first: both sides prove by a Noise handshake that they hold the job key
//! (`SOJOURN_KEY_FILE`), and say who they are, before anything else is looked at (`handshake`).
//! What follows are plain frames on that connection (`wire`): RDMA data is neither encrypted nor
//! authenticated, here as little as by an HCA, so whoever can rewrite packets on the network between
//! the machines can rewrite the data.
//!
//! Requests are cut into parts, which the target's service thread executes against its own tables,
//! each part under the checks of key and state that hold at that moment, and answers (`conn`, and
//! `qp::remote` for what a queue pair does). An answer completes the request, so a request whose
//! connection is lost ends with RETRY_EXC_ERR: by the peer's end at once, by a machine or cable
//! that is gone within the patience that the queue pair has (timeout and retries), but at least
//! three seconds; by a peer that is stopped, not before it is gone.
//!
//! Called by the service thread (everything that comes in) and by the program's threads (requests
//! go out inside `post_send`). Touches sockets, and what it is asked for of registered memory.

mod address;
mod conn;
mod handshake;
mod wire;

pub(super) use address::{endpoint, gid, node};
pub(super) use conn::Conn;
pub(super) use wire::{Frame, HEAD, MAX_PART, answer_bytes, kind};

use super::core::Core;
use super::limits::{HANDSHAKE, MAX_LINKS};
use super::lock::Lock;
use super::node::random;
use super::qp::Qp;
use super::service::block_signals;
use crate::names::{JobKey, SessionError};
use crate::{Error, Result, names};
use handshake::{Failure, Handshake, Hello};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections whose handshake is not done; more are turned away.
const MAX_CALLERS: usize = 256;
/// How soon an address that could not be reached is dialed again.
const REDIAL: Duration = Duration::from_millis(100);
/// How long a context that closes waits for its peers to read what it has sent.
const LINGER: Duration = Duration::from_secs(1);

const LISTENER: u32 = 0;
const CALLER: u32 = 1;
const CONN: u32 = 2;

/// What an epoll entry stands for: a kind, and a descriptor or a number in the table.
fn token(kind: u32, number: u32) -> u64 {
    u64::from(kind) << 32 | u64::from(number)
}

/// A context's end of the network.
pub(super) struct Tcp {
    key: JobKey,
    key_file: PathBuf,
    own: Hello,
    listener: TcpListener,
    epoll: Arc<Epoll>,
    conns: Lock<Vec<Option<Arc<Conn>>>>,
    routes: Lock<HashMap<SocketAddrV4, Route>>,
    callers: Lock<HashMap<u32, Caller>>,
}

/// How an address is reached.
enum Route {
    Up(Arc<Conn>),
    Dialing,
    /// It was tried in vain, then.
    Down(Instant),
}

/// Whether an address can be reached now.
pub(super) enum Reach {
    /// Over this connection.
    Up(Arc<Conn>),
    /// It is being found out.
    Dialing,
    /// No.
    Down,
}

/// A connection that somebody made to us, before it is one.
struct Caller {
    stream: TcpStream,
    handshake: Handshake,
    until: Instant,
}

impl Tcp {
    /// Listens at `at`.
    ///
    /// # Errors
    /// No key file, or a bad one; an address that is not this machine's, or is taken.
    pub(super) fn open(at: SocketAddrV4, lid: u16) -> Result<Tcp> {
        if at.ip().is_unspecified() || at.ip().is_multicast() || at.ip().is_broadcast() {
            return Err(Error::invalid(format!(
                "SOJOURN_SOFT_ADDR is {at}: want an address of this machine that the others can \
                 reach"
            )));
        }
        let variable = names::env::KEY_FILE;
        let key_file = std::env::var_os(variable).filter(|f| !f.is_empty()).ok_or_else(|| {
            Error::new(
                libc::EACCES,
                format!(
                    "SOJOURN_SOFT_ADDR is {at}, but {variable} is not set: a soft device talks to \
                     other machines only with a job key, in a file of mode 0600"
                ),
            )
        })?;
        let key_file = PathBuf::from(key_file);
        let key =
            JobKey::read(&key_file).map_err(|error| Error::new(libc::EACCES, error.to_string()))?;
        let listening = |error: std::io::Error| {
            let hint = match error.raw_os_error() {
                Some(libc::EADDRINUSE) => {
                    ": another context listens there; give it another port, or none for any"
                }
                Some(libc::EADDRNOTAVAIL) => ": this machine does not have that address",
                _ => "",
            };
            Error::os(&error, format!("SOJOURN_SOFT_ADDR: listening at {at}{hint}"))
        };
        let listener = TcpListener::bind(at).map_err(listening)?;
        listener.set_nonblocking(true).map_err(listening)?;
        let SocketAddr::V4(endpoint) = listener.local_addr().map_err(listening)? else {
            return Err(Error::invalid("an IPv4 listener with another address"));
        };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::os(&errno.into(), "creating an epoll"))?;
        epoll
            .add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, token(LISTENER, 0)))
            .map_err(|errno| Error::os(&errno.into(), "watching a listener"))?;
        Ok(Tcp {
            key,
            key_file,
            own: Hello { endpoint, lid, context: random() },
            listener,
            epoll: Arc::new(epoll),
            conns: Lock::default(),
            routes: Lock::default(),
            callers: Lock::default(),
        })
    }

    /// Readable whenever [`Tcp::serve`] has something to do.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Where we listen.
    pub(super) fn endpoint(&self) -> SocketAddrV4 {
        self.own.endpoint
    }

    /// Returns once nothing that came over a connection before can still touch memory, and what
    /// is executed from now on sees what the caller has changed before.
    pub(super) fn fence(&self) {
        let conns: Vec<_> = self.conns.lock().iter().flatten().cloned().collect();
        for conn in conns {
            drop(conn.rx.lock());
            drop(conn.tx.lock());
        }
    }

    // Reaching others.

    /// How `to` is reached; dials in the background where it is not known.
    pub(super) fn reach(self: &Arc<Self>, core: &Arc<Core>, to: SocketAddrV4) -> Reach {
        let mut routes = self.routes.lock();
        match routes.get(&to) {
            Some(Route::Up(conn)) if !conn.lost() => return Reach::Up(Arc::clone(conn)),
            Some(Route::Dialing) => return Reach::Dialing,
            Some(Route::Down(since)) if since.elapsed() < REDIAL => return Reach::Down,
            _ => {}
        }
        routes.insert(to, Route::Dialing);
        drop(routes);
        let (tcp, waker) = (Arc::clone(self), Arc::clone(core));
        let dialer = std::thread::Builder::new().name("soft-dial".into()).spawn(move || {
            block_signals();
            if let Err(error) = tcp.dial_now(to) {
                tracing::warn!(%error, "no connection");
            }
            waker.wake();
        });
        if dialer.is_err() {
            self.routes.lock().insert(to, Route::Down(Instant::now()));
            return Reach::Down;
        }
        Reach::Dialing
    }

    /// Connects to `to`, unless that is done or under way.
    ///
    /// # Errors
    /// `EACCES` where the peer holds another key; why it cannot be reached.
    pub(super) fn dial(&self, core: &Core, to: SocketAddrV4) -> Result<()> {
        let mut routes = self.routes.lock();
        match routes.get(&to) {
            Some(Route::Up(conn)) if !conn.lost() => return Ok(()),
            Some(Route::Dialing) => return Ok(()),
            _ => {}
        }
        routes.insert(to, Route::Dialing);
        drop(routes);
        let dialed = self.dial_now(to);
        core.wake();
        dialed
    }

    fn dial_now(&self, to: SocketAddrV4) -> Result<()> {
        let met = self.meet(to).and_then(|(stream, hello)| self.enter(stream, hello));
        let mut routes = self.routes.lock();
        match met {
            Ok(conn) => {
                // Somebody who dialed us at the same time is as good.
                if !matches!(routes.get(&to), Some(Route::Up(other)) if !other.lost()) {
                    routes.insert(to, Route::Up(conn));
                }
                Ok(())
            }
            Err(error) => {
                if matches!(routes.get(&to), Some(Route::Dialing)) {
                    routes.insert(to, Route::Down(Instant::now()));
                }
                Err(error)
            }
        }
    }

    /// Connects, and comes to know whoever listens there.
    fn meet(&self, to: SocketAddrV4) -> Result<(TcpStream, Hello)> {
        let doing = || format!("connecting to the soft device at {to}");
        let os = |error: std::io::Error| Error::os(&error, doing());
        let until = Instant::now() + HANDSHAKE;
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut stream = TcpStream::connect_timeout(&to.into(), left()).map_err(os)?;
        stream.set_nodelay(true).map_err(os)?;
        let mut handshake = Handshake::dial(&self.key, self.own);
        let mut bytes = [0; 256];
        let mut hello = None;
        loop {
            while !handshake.unsent().is_empty() {
                stream.set_write_timeout(Some(left())).map_err(os)?;
                let sent = stream.write(handshake.unsent()).map_err(os)?;
                handshake.sent(sent);
            }
            if let Some(hello) = hello {
                return Ok((stream, hello));
            }
            if Instant::now() >= until {
                return Err(os(ErrorKind::TimedOut.into()));
            }
            stream.set_read_timeout(Some(left())).map_err(os)?;
            let wanted = handshake.wanted().min(bytes.len());
            let come = stream.read(&mut bytes[..wanted]).map_err(os)?;
            if come == 0 {
                let why = "it hung up: does it run, and hold the same job key?";
                return Err(Error::new(libc::ECONNRESET, format!("{}: {why}", doing())));
            }
            hello = handshake.feed(&bytes[..come]).map_err(|failure| {
                let key = failure == Failure::Session(SessionError::KeyMismatch);
                let file = if key {
                    format!(" (ours is {})", self.key_file.display())
                } else {
                    String::new()
                };
                Error::new(libc::EACCES, format!("{}: {failure}{file}", doing()))
            })?;
        }
    }

    /// Makes a connection of a stream over which we have met.
    fn enter(&self, stream: TcpStream, hello: Hello) -> Result<Arc<Conn>> {
        let os = |error: std::io::Error| Error::os(&error, "setting up a connection");
        let mut conns = self.conns.lock();
        let number = match conns.iter().position(Option::is_none) {
            Some(number) => number,
            None if conns.len() < MAX_LINKS => {
                conns.push(None);
                conns.len() - 1
            }
            None => {
                return Err(Error::new(
                    libc::ENOMEM,
                    format!("this context has {MAX_LINKS} connections, the most it can"),
                ));
            }
        };
        let conn =
            Arc::new(Conn::new(hello, stream, Arc::clone(&self.epoll), number as u32).map_err(os)?);
        conns[number] = Some(Arc::clone(&conn));
        drop(conns);
        conn.watch().map_err(|errno| os(errno.into()))?;
        Ok(conn)
    }

    // The service thread's part.

    /// When [`Tcp::serve`] is to be called at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.callers.lock().values().map(|caller| caller.until).min()
    }

    /// Does what there is to do; whether stalled queue pairs may go on.
    pub(super) fn serve(&self, core: &Arc<Core>) -> bool {
        let mut events = [EpollEvent::empty(); 64];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let mut relieved = false;
        for event in &events[..count] {
            let number = event.data() as u32;
            match (event.data() >> 32) as u32 {
                LISTENER => self.accept(),
                CALLER => self.hear(number),
                _ => relieved |= self.converse(core, number, event.events()),
            }
        }
        let now = Instant::now();
        self.callers.lock().retain(|_, caller| caller.until > now);
        core.run_deferred();
        relieved
    }

    fn converse(&self, core: &Arc<Core>, number: u32, ready: EpollFlags) -> bool {
        let conn = self.conns.lock().get(number as usize).cloned().flatten();
        let Some(conn) = conn else { return false };
        if ready.contains(EpollFlags::EPOLLOUT) {
            conn.writable();
        }
        if ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP)
            && let Err(end) = conn.readable(core)
        {
            tracing::debug!(peer = %conn.peer.endpoint, %end, "a connection has ended");
            self.bury(core, &conn);
            return true;
        }
        conn.relieved()
    }

    /// A connection is lost: what awaits an answer over it fails.
    fn bury(&self, core: &Arc<Core>, conn: &Arc<Conn>) {
        conn.bury();
        if let Some(place) = self.conns.lock().get_mut(conn.number() as usize) {
            *place = None;
        }
        self.routes
            .lock()
            .retain(|_, route| !matches!(route, Route::Up(other) if Arc::ptr_eq(other, conn)));
        let qps: Vec<Arc<Qp>> = core.qps.read().iter().flatten().cloned().collect();
        for qp in qps {
            qp.connection_lost(conn);
        }
    }

    fn accept(&self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let mut callers = self.callers.lock();
                    if callers.len() >= MAX_CALLERS || stream.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let fd = stream.as_raw_fd() as u32;
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, token(CALLER, fd));
                    if self.epoll.add(&stream, event).is_ok() {
                        let handshake = Handshake::accept(&self.key, self.own);
                        let until = Instant::now() + HANDSHAKE;
                        callers.insert(fd, Caller { stream, handshake, until });
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::Interrupted | ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Without descriptors the listener stays readable: do not spin.
                    std::thread::sleep(Duration::from_millis(10));
                    return;
                }
            }
        }
    }

    /// A caller has said something.
    fn hear(&self, fd: u32) {
        let Some(mut caller) = self.callers.lock().remove(&fd) else { return };
        match caller.hear() {
            Ok(None) => {
                self.callers.lock().insert(fd, caller);
            }
            Ok(Some(hello)) => {
                let _ = self.epoll.delete(&caller.stream);
                match self.enter(caller.stream, hello) {
                    Ok(conn) => {
                        let mut routes = self.routes.lock();
                        let up = |route: &Route| matches!(route, Route::Up(c) if !c.lost());
                        // A dial of ours that is under way would only make a second one.
                        if !routes.get(&hello.endpoint).is_some_and(up) {
                            routes.insert(hello.endpoint, Route::Up(conn));
                        }
                    }
                    Err(error) => tracing::warn!(%error, "a peer was turned away"),
                }
            }
            Err(why) => tracing::warn!(%why, "somebody was turned away"),
        }
    }

    /// The context closes: what it has executed is made known.
    pub(super) fn close(&self) {
        let conns = std::mem::take(&mut *self.conns.lock());
        let deadline = Instant::now() + LINGER;
        for conn in conns.iter().flatten() {
            conn.close(deadline);
            conn.bury();
        }
    }
}

impl Caller {
    /// Takes what has come; the peer's hello once all is said.
    fn hear(&mut self) -> std::result::Result<Option<Hello>, String> {
        let mut bytes = [0; 256];
        loop {
            let wanted = self.handshake.wanted().min(bytes.len());
            let come = match self.stream.read(&mut bytes[..wanted]) {
                Ok(0) => return Err("it hung up".into()),
                Ok(come) => come,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            let heard = self.handshake.feed(&bytes[..come]);
            // An empty socket's buffer holds more than a whole handshake.
            let unsent = self.handshake.unsent();
            if !unsent.is_empty() {
                let sent = self.stream.write(unsent).map_err(|error| error.to_string())?;
                self.handshake.sent(sent);
            }
            if let Some(hello) = heard.map_err(|failure| failure.to_string())? {
                return Ok(Some(hello));
            }
        }
    }
}

/// Where the context listens that an address of another node leads to.
///
/// # Errors
/// `EHOSTUNREACH`, naming what is missing.
pub(super) fn destination(core: &Core, attr: &crate::abi::AhAttr) -> Result<SocketAddrV4> {
    let missing = |what: String| {
        let own = core.options.lid;
        Error::new(
            libc::EHOSTUNREACH,
            format!("LID {} is another node than ours, which is {own}: {what}", attr.dlid),
        )
    };
    if core.tcp.is_none() {
        return Err(missing(
            "to reach others this process needs SOJOURN_SOFT_ADDR (an address of this machine) \
             and SOJOURN_KEY_FILE; for a process on this machine use its LID"
                .into(),
        ));
    }
    if attr.is_global == 0 {
        return Err(missing(
            "the address vector must name the GID that the peer's query_gid shows (is_global, \
             grh.dgid)"
                .into(),
        ));
    }
    endpoint(attr.grh.dgid).ok_or_else(|| {
        missing(format!(
            "GID {} carries no address; was the peer started without SOJOURN_SOFT_ADDR?",
            attr.grh.dgid
        ))
    })
}
