//! What is kept, for those who replay: and for operators, how much that is.

use super::Store;
use crate::error::{Error, Result};
use crate::names::ProcessId;
use crate::virt::core::context::VirtualContext;
use sojourn_logging::retain::{ConnectionId, Place, Record, Status};
pub use sojourn_logging::retain::{Gap, Message};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that are copied out of the ring under its lock at a time.
const PIECE: usize = 16 << 10;
/// How long a message may be on its way into the log: into memory, or to a disk.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is kept of one connection.
pub struct RetainedConnection {
    store: Arc<Store>,
    id: ConnectionId,
    /// Our queue pair.
    pub qpn: u32,
    /// The process that it is connected to, or was.
    pub peer: ProcessId,
    /// The queue pair there.
    pub peer_qpn: u32,
    /// Messages posted so far.
    pub messages: u64,
    /// Messages kept.
    pub records: u64,
    /// Bytes of payload kept in memory.
    pub in_memory: u64,
    /// Bytes of payload in the spill file.
    pub spilled: u64,
    /// Messages that are not kept, and that no epoch has covered so far.
    pub gap: Option<Gap>,
    /// Our queue pair has been destroyed or reset since.
    pub ended: bool,
}

/// A message that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedMessage {
    /// Its number on the connection, in posting order, from 0.
    pub number: u64,
    /// Messages up to it, itself included, that take a receive at the peer.
    pub receives: u64,
    /// What it is, and how many messages of the peer had been received before it was posted.
    pub message: Message,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// The messages that are kept of a connection, in posting order, from the oldest on. What is covered meanwhile is
/// left out, and what is posted meanwhile comes too.
pub struct RetainedMessages {
    store: Arc<Store>,
    id: ConnectionId,
    next: u64,
}

impl RetainedConnection {
    /// What is kept, in posting order.
    #[must_use]
    pub fn messages_kept(&self) -> RetainedMessages {
        RetainedMessages { store: Arc::clone(&self.store), id: self.id, next: 0 }
    }
}

/// All connections of a context of which something is known.
pub(in crate::virt::core) fn retained_of(context: &VirtualContext) -> Vec<RetainedConnection> {
    let mut all = Vec::new();
    for store in context.stores() {
        let statuses = store.enter().log.statuses();
        for (id, status) in statuses {
            let Status { qpn, peer, peer_qpn, messages, records, in_memory, spilled, .. } = status;
            all.push(RetainedConnection {
                store: Arc::clone(&store),
                id,
                qpn,
                peer: ProcessId(peer),
                peer_qpn,
                messages,
                records,
                in_memory,
                spilled,
                gap: status.gap,
                ended: status.ended,
            });
        }
    }
    all
}

impl Iterator for RetainedMessages {
    type Item = Result<RetainedMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (record, place) = self.store.enter().log.next_record(self.id, self.next)?;
            let Record { number, receives, message } = record;
            let Some(place) = place else {
                if Instant::now() > deadline {
                    self.next = number + 1;
                    let text = format!("message {number}: it is still on its way into the log");
                    return Some(Err(Error::new(libc::ETIMEDOUT, text)));
                }
                std::thread::yield_now();
                continue;
            };
            let mut payload = vec![0; message.length as usize];
            match self.read(&record, place, &mut payload) {
                // Spilled or covered meanwhile.
                Ok(false) => continue,
                Ok(true) => {
                    self.next = number + 1;
                    return Some(Ok(RetainedMessage { number, receives, message, payload }));
                }
                Err(error) => {
                    self.next = number + 1;
                    let text = format_args!("reading message {number} from the spill file");
                    return Some(Err(Error::os(&error, text)));
                }
            }
        }
    }
}

impl RetainedMessages {
    /// Whether the record is still there.
    fn stands(&self, record: &Record, place: Place) -> bool {
        let now = self.store.enter().log.next_record(self.id, record.number);
        now == Some((*record, Some(place)))
    }

    /// False where it is not there any more.
    fn read(&self, record: &Record, place: Place, to: &mut [u8]) -> std::io::Result<bool> {
        match place {
            Place::Nowhere => Ok(true),
            Place::File(at) => {
                let read = self.store.read_file(at, to);
                // What has been let go may be a hole by now.
                if self.stands(record, place) { read.map(|()| true) } else { Ok(false) }
            }
            Place::Ring(at) => {
                let from = self.store.mapping.at(at, record.message.length);
                for (index, piece) in to.chunks_mut(PIECE).enumerate() {
                    let inner = self.store.enter();
                    let now = inner.log.next_record(self.id, record.number);
                    if now != Some((*record, Some(place))) {
                        return Ok(false);
                    }
                    // SAFETY: within the record's place, which is not dealt anew while the log is locked
                    // and has its payload there.
                    unsafe {
                        let from = from.add(index * PIECE);
                        piece.as_mut_ptr().copy_from_nonoverlapping(from, piece.len());
                    }
                    drop(inner);
                }
                Ok(true)
            }
        }
    }
}
