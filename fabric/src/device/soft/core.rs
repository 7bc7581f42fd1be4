//! The shared heart of an opened soft device: everything that outlives single calls, and that
//! the program's threads and the service thread both use.
//!
//! Locks, in the order in which a thread may take them: `direct`, a link's `rx` or a connection's,
//! a QP's `sq`, a receive
//! queue, a link's `tx`, a CQ; the tables here are leaves (taken last, held briefly), except that
//! `qps` and `links` are read while records are handled. What must not run under those locks (settling a
//! QP that went to ERR, which drains rings) is *deferred* and run by whoever holds none.

use super::channel::Events;
use super::cq::{Cq, Sink};
use super::limits::DIRECT_LINKS;
use super::link::{Link, Outbound};
use super::lock::{Lock, Table};
use super::node::{Node, random};
use super::numbers::Numbers;
use super::options::{Mode, Options};
use super::pace::Work;
use super::peer::{self, Peer};
use super::qp::Qp;
use super::region::{MAGIC, Region};
use super::tcp::Tcp;
use super::{link, shm};
use crate::abi;
use crate::device::{AsyncEvent, EventElement};
use crate::{Error, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

/// What a thread does once it holds no lock.
pub(super) enum Deferred {
    /// The QP is at ERR: fence, drain, flush its receives.
    Settle(Arc<Qp>),
    /// The CQ was overrun: its QPs go to ERR.
    Fail(Arc<Cq>),
}

/// A queue pair that cannot go on by itself.
pub(super) struct Stalled {
    pub(super) at: Instant,
    /// Also when somebody rings the doorbell.
    pub(super) on_ring: bool,
    pub(super) qp: Arc<Qp>,
}

/// A link and the socket over which it was made (none to ourselves).
pub(super) type Entered = (Link, Option<OwnedFd>);

/// See the module's documentation.
pub(super) struct Core {
    pub(super) name: String,
    pub(super) options: Options,
    pub(super) node: Node,
    pub(super) socket: PathBuf,
    pub(super) region: Arc<Region>,
    pub(super) region_fd: OwnedFd,
    pub(super) doorbell: OwnedFd,
    pub(super) listener: OwnedFd,
    /// Its end of the network, if it has one.
    pub(super) tcp: Option<Arc<Tcp>>,
    pub(super) epoll: Epoll,
    pub(super) links: Table<Vec<Option<Entered>>>,
    /// All links, while they are few enough to look into each ring.
    pub(super) direct: Lock<Vec<Link>>,
    outbound: Table<HashMap<u32, Arc<Outbound>>>,
    /// Blocks of queue pairs whose owner there is no link to.
    dials: Lock<HashMap<u32, Dial>>,
    pub(super) qps: Table<Vec<Option<Arc<Qp>>>>,
    pub(super) numbers: Lock<Numbers>,
    pub(super) stalled: Lock<Vec<Stalled>>,
    /// What the engine of the asynchronous mode has to look at.
    pub(super) work: Work,
    deferred: Lock<Vec<Deferred>>,
    has_deferred: AtomicBool,
    /// Requests of all links that await an answer.
    pub(super) unanswered: AtomicU32,
    empty_polls: AtomicU32,
    pub(super) events: Events<AsyncEvent>,
    pub(super) stop: AtomicBool,
}

/// What an epoll entry stands for: a tag in the upper half, a number in the lower.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Doorbell,
    Listener,
    /// A connection that has not said hello, by descriptor.
    Caller(u32),
    /// The socket of a link.
    Socket(u32),
    /// The process behind a link.
    Process(u32),
    /// Connections with other machines.
    Tcp,
}

impl Token {
    pub(super) fn pack(self) -> u64 {
        match self {
            Token::Doorbell => 0,
            Token::Listener => 1 << 32,
            Token::Caller(n) => 2 << 32 | u64::from(n),
            Token::Socket(n) => 3 << 32 | u64::from(n),
            Token::Process(n) => 4 << 32 | u64::from(n),
            Token::Tcp => 5 << 32,
        }
    }

    pub(super) fn unpack(data: u64) -> Option<Token> {
        let n = data as u32;
        Some(match data >> 32 {
            0 => Token::Doorbell,
            1 => Token::Listener,
            2 => Token::Caller(n),
            3 => Token::Socket(n),
            4 => Token::Process(n),
            5 => Token::Tcp,
            _ => return None,
        })
    }
}

/// Where a peer stands that there is no link to.
#[derive(Default)]
struct Dial {
    under_way: bool,
    /// Nobody was there the last time.
    absent: bool,
}

impl Core {
    pub(super) fn new(name: &str, options: Options) -> Result<Arc<Core>> {
        let node = Node::open()?;
        let tcp =
            options.addr.map(|addr| Tcp::open(addr, options.lid).map(Arc::new)).transpose()?;
        let (region_fd, region) = Region::create()?;
        let id = [random(), random()];
        let header = region.header();
        header.context[0].store(id[0], Ordering::Relaxed);
        header.context[1].store(id[1], Ordering::Relaxed);
        header.pid.store(std::process::id(), Ordering::Relaxed);
        header.probe.store(id[0] ^ id[1], Ordering::Relaxed);
        header.probe_at.store((&raw const header.probe) as u64, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        let path = node.socket(id[0]);
        let failed = |errno: nix::errno::Errno| {
            Error::os(&errno.into(), format!("listening on {}", path.display()))
        };
        let listener = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(failed)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).map_err(failed)?).map_err(failed)?;
        listen(&listener, Backlog::new(1024).unwrap_or(Backlog::MAXCONN)).map_err(failed)?;
        let doorbell = shm::eventfd(0)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::os(&errno.into(), "creating an epoll"))?;
        let core = Core {
            name: name.to_owned(),
            options,
            node,
            socket: path,
            region: Arc::new(region),
            region_fd,
            doorbell,
            listener,
            tcp,
            epoll,
            links: Table::default(),
            direct: Lock::default(),
            outbound: Table::default(),
            dials: Lock::default(),
            qps: Table::default(),
            numbers: Lock::new(Numbers::new()),
            stalled: Lock::default(),
            work: Work::default(),
            deferred: Lock::default(),
            has_deferred: AtomicBool::new(false),
            unanswered: AtomicU32::new(0),
            empty_polls: AtomicU32::new(0),
            events: Events::new()?,
            stop: AtomicBool::new(false),
        };
        core.watch(&core.doorbell, Token::Doorbell)?;
        core.watch(&core.listener, Token::Listener)?;
        if let Some(tcp) = &core.tcp {
            core.watch(&tcp.fd(), Token::Tcp)?;
        }
        Ok(Arc::new(core))
    }

    pub(super) fn watch(&self, fd: &impl AsFd, token: Token) -> Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token.pack()))
            .map_err(|errno| Error::os(&errno.into(), "watching a descriptor"))
    }

    #[inline]
    pub(super) fn is_sync(&self) -> bool {
        self.options.mode == Mode::Sync
    }

    /// The latency of the asynchronous mode; none in the synchronous one.
    pub(super) fn latency(&self) -> Option<Duration> {
        match &self.options.mode {
            Mode::Sync => None,
            Mode::Async(pace) => Some(pace.latency),
        }
    }

    /// Wakes the service thread.
    pub(super) fn wake(&self) {
        shm::ring_eventfd(self.doorbell.as_fd());
    }

    /// Raises an asynchronous event.
    pub(super) fn raise(&self, event_type: u32, element: EventElement) {
        tracing::debug!(event = abi::event_type::name(event_type), ?element, "asynchronous event");
        self.events.push(AsyncEvent { event_type, element });
    }

    // Links.

    /// The link to the owner of `qpn`, if there is one.
    #[inline]
    pub(super) fn link_to(&self, qpn: u32) -> Option<Arc<Outbound>> {
        let block = qpn / super::limits::BLOCK_QPNS;
        self.outbound.read().get(&block).filter(|link| link.usable()).cloned()
    }

    /// Makes a link to the owner of `qpn`, where there is none yet.
    ///
    /// # Errors
    /// `ENOENT` or `ECONNREFUSED` where nobody owns it; whatever the handshake answers.
    pub(super) fn dial(self: &Arc<Self>, qpn: u32) -> Result<Arc<Outbound>> {
        if let Some(link) = self.link_to(qpn) {
            return Ok(link);
        }
        let block = qpn / super::limits::BLOCK_QPNS;
        let nobody =
            || Error::new(libc::ENOENT, format!("no process here owns queue pair {qpn:#x}"));
        let path = self.node.owner(qpn).ok_or_else(nobody)?;
        let (link_fd, mapping) = link::create()?;
        let own = path == self.socket;
        let number = self.reserve_link()?;
        let dialed = if own {
            let doorbell = self.doorbell.try_clone().map_err(|e| Error::os(&e, "cloning"))?;
            let peer = Peer::own(Arc::clone(&self.region), doorbell, self.options.ring_only);
            self.accept_link(Arc::new(peer), Arc::clone(&mapping), number, None).and_then(
                |remote| {
                    let doorbell =
                        self.doorbell.try_clone().map_err(|e| Error::os(&e, "cloning"))?;
                    let ring_only = self.options.ring_only;
                    let peer = Peer::own(Arc::clone(&self.region), doorbell, ring_only);
                    Ok((None, peer, remote))
                },
            )
        } else {
            peer::dial(
                &path,
                self.region_fd.as_fd(),
                self.doorbell.as_fd(),
                link_fd.as_fd(),
                number,
                self.options.ring_only,
            )
            .map(|(sock, peer, remote)| (Some(sock), peer, remote))
        };
        let (sock, peer, remote_number) = match dialed {
            Ok(dialed) => dialed,
            Err(error) => {
                // The context may be closed by now, and have none any more.
                if let Some(link) = self.links.write().get_mut(number as usize) {
                    *link = None;
                }
                self.numbers.lock().free_link(number);
                return Err(error);
            }
        };
        if peer.region.qp_index(qpn).is_none() {
            // The file named a context that has let go of the block, or never had it.
            self.numbers.lock().free_link(number);
            return Err(nobody());
        }
        let link = Arc::new(Outbound::new(Arc::new(peer), mapping, number, remote_number));
        self.enter_link(number, Link::Out(Arc::clone(&link)), sock)?;
        self.outbound.write().insert(block, Arc::clone(&link));
        Ok(link)
    }

    /// Dials in the background, unless that is under way, and then runs what waits for it. The
    /// service thread must not block on a peer's service thread, which may be dialing it. False where
    /// nobody was there the last time: a peer that is there and does not answer, because it is stopped or
    /// kept from running, has a NIC that would.
    pub(super) fn dial_later(self: &Arc<Self>, qpn: u32) -> bool {
        let block = qpn / super::limits::BLOCK_QPNS;
        let mut dials = self.dials.lock();
        let dial = dials.entry(block).or_default();
        let may_be_there = !dial.absent;
        if std::mem::replace(&mut dial.under_way, true) {
            return may_be_there;
        }
        drop(dials);
        let core = Arc::clone(self);
        let dialer = std::thread::Builder::new().name("soft-dial".into()).spawn(move || {
            super::service::block_signals();
            let dialed = core.dial(qpn);
            if let Err(error) = &dialed {
                tracing::debug!(%error, qpn, "no link");
            }
            core.dialed(block, dialed.map(drop));
            core.wake();
        });
        if let Err(error) = dialer {
            self.dialed(block, Err(Error::os(&error, "starting a thread that dials")));
        }
        may_be_there
    }

    fn dialed(&self, block: u32, result: Result<()>) {
        let mut dials = self.dials.lock();
        match result {
            Ok(()) => drop(dials.remove(&block)),
            // It is in the backlog of a living process: the socket of a dead one refuses.
            Err(error) => {
                let absent = error.errno() != libc::EAGAIN;
                dials.insert(block, Dial { under_way: false, absent });
            }
        }
    }

    /// A number for a new link.
    fn reserve_link(&self) -> Result<u32> {
        let number = self.numbers.lock().link()?;
        let mut links = self.links.write();
        if links.len() <= number as usize {
            links.resize_with(number as usize + 1, || None);
        }
        Ok(number)
    }

    fn enter_link(&self, number: u32, link: Link, sock: Option<OwnedFd>) -> Result<()> {
        if let Some(sock) = &sock {
            self.watch(sock, Token::Socket(number))?;
            if let Some(pidfd) = link.peer().pidfd() {
                self.watch(&pidfd, Token::Process(number))?;
            }
        }
        self.links.write()[number as usize] = Some((link, sock));
        self.choose_direct();
        // Answers may have come before the link was entered.
        self.region.mark_active(number);
        Ok(())
    }

    /// Takes a link that a peer made; returns our number of it.
    pub(super) fn accept_link(
        &self,
        peer: Arc<Peer>,
        mapping: Arc<shm::Mapping>,
        remote_number: u32,
        sock: Option<OwnedFd>,
    ) -> Result<u32> {
        let number = self.reserve_link()?;
        let link = Arc::new(link::Inbound::new(peer, mapping, number, remote_number));
        self.enter_link(number, Link::In(link), sock)?;
        Ok(number)
    }

    /// A peer is dead, or has closed its context: what it has sent is still delivered, and what
    /// waits for it fails.
    pub(super) fn bury_link(self: &Arc<Self>, number: u32) {
        let Some((link, sock)) = self.links.write().get_mut(number as usize).and_then(Option::take)
        else {
            return;
        };
        link.peer().bury();
        self.choose_direct();
        if let Some(sock) = &sock {
            let _ = self.epoll.delete(sock);
        }
        if let Some(pidfd) = link.peer().pidfd() {
            let _ = self.epoll.delete(pidfd);
        }
        match &link {
            Link::In(inbound) => self.drain_last(inbound),
            Link::Out(outbound) => {
                self.drain_answers(outbound, true);
                self.outbound.write().retain(|_, other| !Arc::ptr_eq(other, outbound));
                let qps: Vec<Arc<Qp>> = self.qps.read().iter().flatten().cloned().collect();
                for qp in qps {
                    qp.peer_died(outbound);
                }
            }
        }
        self.numbers.lock().free_link(number);
        self.run_deferred();
    }

    // Deferred and stalled work.

    pub(super) fn defer(&self, what: Deferred) {
        self.deferred.lock().push(what);
        self.has_deferred.store(true, Ordering::Release);
    }

    /// Runs what was deferred. The caller holds no lock.
    #[inline]
    pub(super) fn run_deferred(self: &Arc<Self>) {
        if self.has_deferred.load(Ordering::Acquire) {
            self.run_deferred_now();
        }
    }

    #[cold]
    fn run_deferred_now(self: &Arc<Self>) {
        loop {
            let work = {
                let mut deferred = self.deferred.lock();
                self.has_deferred.store(false, Ordering::Release);
                std::mem::take(&mut *deferred)
            };
            if work.is_empty() {
                return;
            }
            for item in work {
                match item {
                    Deferred::Settle(qp) => {
                        if let Err(error) = qp.settle() {
                            tracing::warn!(%error, qp = qp.num, "a queue pair is not fenced");
                        }
                    }
                    Deferred::Fail(cq) => {
                        let qps: Vec<Arc<Qp>> = self.qps.read().iter().flatten().cloned().collect();
                        for qp in qps.iter().filter(|qp| qp.uses(&cq)) {
                            qp.fail(abi::event_type::QP_FATAL);
                        }
                    }
                }
            }
        }
    }

    /// Has the service thread run `qp` at `at`, or when somebody rings (`on_ring`).
    pub(super) fn stall(&self, qp: Arc<Qp>, at: Instant, on_ring: bool) {
        self.stalled.lock().push(Stalled { at, on_ring, qp });
        let sleeping = &self.region.header().sleeping.0;
        fence(Ordering::SeqCst);
        if sleeping.load(Ordering::SeqCst) != 0 {
            self.wake();
        }
    }

    // Progress.

    /// What a poll does that found its CQ empty.
    #[inline]
    pub(super) fn progress_for_poll(self: &Arc<Self>, sink: &mut Sink<'_>) {
        // Whoever holds it takes what has come.
        let Some(direct) = self.direct.try_lock() else { return };
        let mut news = false;
        let mut look = || {
            for link in direct.iter().filter(|link| link.has_news()) {
                self.drain(link, sink);
                news = true;
            }
            news
        };
        if !look() {
            // Whoever polls in a loop leaves the core to its sibling meanwhile, and is back here
            // when something comes.
            std::hint::spin_loop();
            look();
        }
        drop(direct);
        if self.region.header().summary.0.load(Ordering::Acquire) != 0 {
            self.progress_marked(sink);
        } else if news {
            self.run_deferred();
        } else if self.unanswered.load(Ordering::Relaxed) != 0 {
            self.nudge();
        }
    }

    /// A program polls in vain while targets owe answers: now and then their service threads are
    /// woken, in case their programs do not poll.
    #[cold]
    fn nudge(&self) {
        const POLLS: u32 = 64;
        if self.empty_polls.fetch_add(1, Ordering::Relaxed) % POLLS == POLLS - 1 {
            self.urge_all();
        }
    }

    /// Wakes the service threads of all targets that owe answers.
    pub(super) fn urge_all(&self) {
        for (link, _) in self.links.read().iter().flatten() {
            if let Link::Out(link) = link
                && link.credit.load(Ordering::Relaxed) != 0
            {
                link.peer.urge();
            }
        }
    }

    /// Takes what has arrived in the rings. The caller holds no lock.
    pub(super) fn progress(self: &Arc<Self>) {
        let direct = self.direct.lock();
        for link in direct.iter().filter(|link| link.has_news()) {
            self.drain(link, &mut Sink::none());
        }
        drop(direct);
        self.progress_marked(&mut Sink::none());
    }

    /// Takes what has arrived in rings that are marked.
    fn progress_marked(self: &Arc<Self>, sink: &mut Sink<'_>) {
        let header = self.region.header();
        let mut words = header.summary.0.swap(0, Ordering::SeqCst);
        while words != 0 {
            let word = words.trailing_zeros() as usize;
            words &= words - 1;
            let mut bits = header.active.0[word].swap(0, Ordering::SeqCst);
            while bits != 0 {
                let number = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let link = match self.links.read().get(number) {
                    Some(Some((link, _))) => link.clone(),
                    _ => continue,
                };
                self.drain(&link, sink);
            }
        }
        self.run_deferred();
    }

    fn drain(self: &Arc<Self>, link: &Link, sink: &mut Sink<'_>) {
        match link {
            Link::In(link) => self.drain_requests(link, false, sink),
            Link::Out(link) => self.drain_answers(link, false),
        }
    }

    /// Links have come or gone: chooses between looking into each ring and having them marked.
    fn choose_direct(&self) {
        // Before looking: of two that come at once, the one that has seen fewer must not have the last word, or nobody
        // would ever look into the ring of the other.
        let mut direct = self.direct.lock();
        let links: Vec<(u32, Link)> = self
            .links
            .read()
            .iter()
            .enumerate()
            .filter_map(|(number, entered)| Some((number as u32, entered.as_ref()?.0.clone())))
            .collect();
        let header = self.region.header();
        if links.len() <= DIRECT_LINKS {
            *direct = links.into_iter().map(|(_, link)| link).collect();
            header.direct.store(1, Ordering::SeqCst);
        } else {
            direct.clear();
            header.direct.store(0, Ordering::SeqCst);
            // What was published before that is not marked.
            for (number, _) in links {
                self.region.mark_active(number);
            }
        }
    }

    /// Takes everything that now stands in any request ring: what a QP must have seen before its
    /// receives are flushed.
    pub(super) fn drain_all_requests(self: &Arc<Self>) {
        let inbound: Vec<_> = self
            .links
            .read()
            .iter()
            .flatten()
            .filter_map(|(link, _)| match link {
                Link::In(link) => Some(Arc::clone(link)),
                Link::Out(_) => None,
            })
            .collect();
        for link in inbound {
            self.drain_requests(&link, true, &mut Sink::none());
        }
    }

    /// The queue pair of this number.
    #[inline]
    pub(super) fn qp(&self, qpn: u32) -> Option<Arc<Qp>> {
        let index = self.region.qp_index(qpn)?;
        self.qps.read().get(index)?.as_ref().filter(|qp| qp.num == qpn).cloned()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
