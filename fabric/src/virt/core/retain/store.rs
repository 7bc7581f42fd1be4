//! A log under a lock, its ring, and its spill.

use super::ring::Mapping;
use super::setting::Spill;
use super::spill::SpillFile;
use crate::error::{Error, Result};
use crate::virt::core::lock::{Guard, Side};
use crate::virt::core::lock_mutex;
use crate::virt::core::qp::QpCore;
use crate::virt::core::remap::block_signals;
use sojourn_logging::retain::{
    Beyond, ConnectionId, Deal, Dropped, Full, Log, Lost, Message, Move,
};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};

/// Bytes that are spilled in one go: what a poster waits for at most, beside one that is under way.
const CHUNK: u64 = 1 << 20;
/// A poster that has made room so often without getting any writes its message to the file itself: others
/// are faster.
const TRIES: usize = 16;

/// What the lock is for.
pub(super) struct Inner {
    pub(super) log: Log,
    /// Whose requests are sent from the ring.
    qps: HashMap<ConnectionId, Weak<QpCore>>,
}

/// The spill.
struct Spilling {
    file: Mutex<SpillFile>,
    /// There is something for the thread to do.
    wanted: AtomicBool,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct Bell {
    /// It has been rung; the store has gone.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self, gone: bool) {
        let mut state = lock_mutex(&self.state);
        *state = (true, state.1 || gone);
        self.changed.notify_one();
    }

    /// Waits until it is rung; false where the store has gone.
    fn wait(&self) -> bool {
        let mut state = lock_mutex(&self.state);
        while !state.0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.0 = false;
        !state.1
    }
}

/// The store.
pub(in crate::virt::core) struct Store {
    pub(super) mapping: Mapping,
    inner: Side<Inner>,
    spilling: Option<Spilling>,
    /// A warning has been given: the others go to the log of details.
    warned: AtomicBool,
}

/// Where the payload of a message goes.
#[derive(Clone, Copy)]
pub(super) enum Dealt {
    /// Nowhere: it has none, or is not kept.
    Nowhere,
    Ring {
        span: u64,
        at: u64,
    },
    File {
        number: u64,
        to: u64,
    },
}

impl Store {
    pub(super) fn new(mapping: Mapping, bytes: u64, spill: &Spill) -> Result<Arc<Self>> {
        let spilling = match spill {
            Spill::Drop => None,
            Spill::To(dir) => Some(Spilling {
                file: Mutex::new(SpillFile::create(dir)?),
                wanted: AtomicBool::new(false),
                bell: Arc::default(),
            }),
        };
        let log = Log::new(bytes, spilling.is_some());
        let store = Arc::new(Store {
            mapping,
            inner: Side::new(Inner { log, qps: HashMap::new() }, false),
            spilling,
            warned: AtomicBool::new(false),
        });
        if let Some(spilling) = &store.spilling {
            let (bell, store) = (Arc::clone(&spilling.bell), Arc::downgrade(&store));
            std::thread::Builder::new()
                .name("sojourn-spill".to_owned())
                .spawn(move || keep_room(&bell, &store))
                .map_err(|error| Error::os(&error, "starting the thread that spills messages"))?;
        }
        Ok(store)
    }

    pub(super) fn enter(&self) -> Guard<'_, Inner> {
        self.inner.enter()
    }

    /// A connection begins.
    pub(super) fn open(&self, qp: &QpCore, peer: u32, peer_qpn: u32) -> ConnectionId {
        let mut inner = self.enter();
        let id = inner.log.open(qp.qpn, peer, peer_qpn);
        inner.qps.insert(id, qp.weak());
        id
    }

    /// It has ended: no device reads for it any more.
    pub(super) fn end(&self, id: ConnectionId) {
        let mut inner = self.enter();
        inner.log.end(id);
        inner.qps.remove(&id);
    }

    /// A place for the payload of a message. Spills where there is none.
    pub(super) fn deal(&self, id: ConnectionId, message: Message, pin: Option<u64>) -> Dealt {
        for _ in 0..TRIES {
            let full = {
                let mut inner = self.enter();
                let Inner { log, qps } = &mut *inner;
                let retired = |id: ConnectionId| {
                    let qp = qps.get(&id).and_then(Weak::upgrade);
                    qp.map_or(u64::MAX, |qp| qp.send.retired())
                };
                let dealt = log.append(id, message, pin, &retired);
                let dropped = log.take_dropped();
                let half = log.unspilled() > log.capacity() / 2;
                drop(inner);
                self.tell(&dropped);
                if half {
                    self.call_thread();
                }
                match dealt {
                    Ok(Deal::Ring { span, at }) => return Dealt::Ring { span, at },
                    Ok(Deal::Kept | Deal::Not) => return Dealt::Nowhere,
                    Err(full) => full,
                }
            };
            if full == Full::Stuck {
                break;
            }
            self.spill_some();
        }
        match self.enter().log.append_to_file(id, message) {
            Some((number, to)) => Dealt::File { number, to },
            None => Dealt::Nowhere,
        }
    }

    /// The payload that was dealt a place in the ring is there.
    pub(super) fn filled(&self, span: u64) {
        self.enter().log.filled(span);
    }

    /// Writes a payload to the file that was dealt a place there.
    ///
    /// # Safety
    /// The pieces are readable during the call.
    pub(super) unsafe fn write(
        &self,
        id: ConnectionId,
        number: u64,
        to: u64,
        pieces: &mut [libc::iovec],
    ) {
        let length = pieces.iter().map(|it| it.iov_len as u64).sum();
        let written = self.spilling.as_ref().map(|spilling| {
            // SAFETY: the caller's promise.
            unsafe { lock_mutex(&spilling.file).write(to, pieces) }
        });
        let done = matches!(written, Some(Ok(())));
        let dropped = {
            let mut inner = self.enter();
            inner.log.written(id, number, to, length, done);
            inner.log.take_dropped()
        };
        if let Some(Err(error)) = written {
            tracing::debug!("a message log cannot be spilled: {error}");
        }
        self.tell(&dropped);
    }

    /// The last messages of a connection were not posted after all.
    pub(super) fn take_back(&self, id: ConnectionId, messages: u64, receives: u64) {
        self.enter().log.take_back(id, messages, receives);
    }

    /// The last message of a connection, which was dealt that place, cannot be read.
    pub(super) fn unreadable(&self, id: ConnectionId, message: Message, dealt: Dealt) {
        let mut inner = self.enter();
        inner.log.take_back(id, 1, u64::from(message.takes_receive()));
        match dealt {
            Dealt::Ring { span, .. } => inner.log.filled(span),
            Dealt::File { number, to } => inner.log.written(id, number, to, message.length, false),
            Dealt::Nowhere => {}
        }
        inner.log.miss(id, message, Lost::Unreadable);
    }

    /// A committed epoch of a peer has consumed so many messages.
    pub(super) fn cover(
        &self,
        peer: u32,
        peer_qpn: u32,
        qpn: u32,
        messages: u64,
    ) -> std::result::Result<(), Beyond> {
        // The lock is let go in between.
        while self.enter().log.cover(peer, peer_qpn, qpn, messages)? {}
        Ok(())
    }

    /// A queue pair of a peer is gone.
    pub(super) fn gone(&self, peer: u32, peer_qpn: u32, qpn: u32) {
        while self.enter().log.gone(peer, peer_qpn, qpn) {}
    }

    /// A peer has left for good.
    pub(in crate::virt::core) fn forget_peer(&self, peer: u32) {
        while self.enter().log.forget_peer(peer) {}
    }

    /// Nothing is kept.
    pub(in crate::virt::core) fn is_empty(&self) -> bool {
        self.enter().log.is_empty()
    }

    fn call_thread(&self) {
        if let Some(spilling) = &self.spilling
            && !spilling.wanted.swap(true, Ordering::AcqRel)
        {
            spilling.bell.ring(false);
        }
    }

    /// Copies the oldest records to the file; waits for whoever is at that. False where there were none.
    fn spill_some(&self) -> bool {
        let Some(spilling) = &self.spilling else { return false };
        let mut file = lock_mutex(&spilling.file);
        let moves = self.enter().log.next_to_spill(CHUNK);
        let Some(first) = moves.first() else { return false };
        let piece = |it: &Move| libc::iovec {
            iov_base: self.mapping.at(it.from, it.length).cast(),
            iov_len: it.length as usize,
        };
        let mut pieces: Vec<_> = moves.iter().map(piece).collect();
        // SAFETY: within the ring, where nobody writes while it is being spilled.
        let written = unsafe { file.write(first.to, &mut pieces) };
        let (holes, dropped) = {
            let mut inner = self.enter();
            inner.log.spilled(&moves, written.is_ok());
            (inner.log.take_holes(), inner.log.take_dropped())
        };
        holes.iter().for_each(|hole| file.punch(hole));
        drop(file);
        if let Err(error) = written {
            tracing::debug!("a message log cannot be spilled: {error}");
        }
        self.tell(&dropped);
        true
    }

    /// Reads a payload from the file.
    pub(super) fn read_file(&self, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        match &self.spilling {
            Some(spilling) => lock_mutex(&spilling.file).read(at, bytes),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// Says what is not kept any more: the first time as a warning.
    fn tell(&self, dropped: &[Dropped]) {
        for Dropped { qpn, peer, why } in dropped {
            let why = match why {
                Lost::Full => "the ring is full, and nothing is spilled",
                Lost::SpillFailed => "the spill file takes no more",
                Lost::TooMany => "as many messages are kept as may be",
                Lost::Unreadable => "a message cannot be read",
            };
            if self.warned.swap(true, Ordering::Relaxed) {
                tracing::debug!("queue pair {qpn:#x} to process {peer} is not retained: {why}");
            } else {
                tracing::warn!(
                    "what queue pair {qpn:#x} has sent to process {peer} is not retained any more \
                     until that has its next epoch: {why}. Take epochs more often, or give the log more \
                     memory or a directory to spill to; further drops are told as details"
                );
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(spilling) = &self.spilling {
            spilling.bell.ring(true);
        }
    }
}

/// The thread: makes room from half full to a quarter.
fn keep_room(bell: &Bell, store: &Weak<Store>) {
    block_signals();
    while bell.wait() {
        let Some(store) = store.upgrade() else { return };
        let Some(spilling) = &store.spilling else { return };
        spilling.wanted.store(false, Ordering::Release);
        let is_much = |inner: &Inner| inner.log.unspilled() > inner.log.capacity() / 4;
        while is_much(&store.enter()) && store.spill_some() {}
    }
}
