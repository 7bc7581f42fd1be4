//! A peer process as we know it: what its names stand for, and who waits to learn more.

use super::local::Local;
use super::lock_mutex;
use super::qp::{Blocked, QpCore};
use super::tables::{PeerKeys, PeerQpns, key_index, qpn_index};
use super::underlay::{NO_SUCH_KEY, NO_SUCH_QPN};
use crate::abi::MASK_24;
use crate::names::{self, DeviceId, Fetch, Incarnation, PhysicalEnd, ProcessId, Record};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// How long a request waits for the name of a peer that lives but does not answer. Longer than
/// the longest retransmission of a queue pair with usual settings; a peer that is dead is known to
/// be so at once.
const NAME_PATIENCE: Duration = Duration::from_secs(20);
/// Different ports of a peer that datagrams may go to.
const MAX_ENDS: usize = 200;
/// In place of the number of an end: a datagram for nobody.
pub(super) const NOWHERE: u8 = u8::MAX;

/// What a request needs to know before it can be handed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// What a key stands for.
    Key(u32),
    /// What queue pair `qpn` stands for, by our queue pair `own`: the peer is told of it, as it stands
    /// on its so many-th path. (What the peer was told before a move is of no use after it.)
    Qpn { qpn: u32, own: u32, path: u64 },
}

/// A name that is missing, and whose it is.
pub(super) struct Missing {
    pub(super) peer: Arc<Peer>,
    pub(super) wanted: Wanted,
}

/// What came of a fetch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The name is in the tables.
    Known,
    /// The peer cannot be asked: it is dead, or silent beyond patience.
    Lost,
}

/// A process of the job.
pub(super) struct Peer {
    pub(super) process: ProcessId,
    /// Its place in bit sets of peers.
    pub(super) index: usize,
    /// It is this process.
    pub(super) own: bool,
    local: Weak<Local>,
    /// Its queue pair numbers: number of an end (8 bits), physical number (24).
    qpns: PeerQpns,
    /// The life that they are of; 0 where nobody has said.
    life: AtomicU32,
    ends: Mutex<Vec<PhysicalEnd>>,
    devices: Mutex<HashMap<DeviceId, Arc<PeerKeys>>>,
    waiting: Mutex<HashMap<Wanted, Vec<Weak<QpCore>>>>,
}

impl Peer {
    pub(super) fn new(process: ProcessId, index: usize, own: bool, local: Weak<Local>) -> Self {
        Peer {
            process,
            index,
            own,
            local,
            qpns: PeerQpns::new(),
            life: AtomicU32::new(0),
            ends: Mutex::default(),
            devices: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    /// What keys stand for on one device of the peer.
    pub(super) fn keys(&self, device: DeviceId) -> Arc<PeerKeys> {
        let mut devices = lock_mutex(&self.devices);
        // Those of devices that it has left, and nobody is connected to. (Our own are there from
        // registration on, whoever is connected.)
        if !self.own && !devices.contains_key(&device) {
            devices.retain(|_, keys| Arc::strong_count(keys) > 1);
        }
        Arc::clone(devices.entry(device).or_insert_with(|| Arc::new(PeerKeys::new())))
    }

    /// Forgets what keys stand for on a device that is not in use any more.
    pub(super) fn forget_device(&self, device: DeviceId) {
        lock_mutex(&self.devices).remove(&device);
    }

    /// It is in that life now: what its queue pair numbers stood for in an earlier one is forgotten. (Its keys
    /// are told apart by its devices, which have other numbers in each life.)
    pub(super) fn lives(&self, life: Incarnation) {
        let before = self.life.fetch_max(life.0, Ordering::AcqRel);
        if before != 0 && before < life.0 {
            self.qpns.clear();
        }
    }

    /// The number of an end and the physical number of queue pair `qpn`.
    #[inline]
    pub(super) fn qpn(&self, qpn: u32) -> Option<(u8, u32)> {
        let value = self.qpns.get(qpn_index(qpn), qpn)?;
        Some(((value >> 24) as u8, value & MASK_24))
    }

    /// The end of that number.
    pub(super) fn end(&self, number: u8) -> Option<PhysicalEnd> {
        lock_mutex(&self.ends).get(usize::from(number)).copied()
    }

    /// Learns what queue pair `qpn` stands for. Where the peer has more ends than can be told
    /// apart, its datagrams go nowhere, and this is said.
    pub(super) fn learn_qpn(&self, qpn: u32, end: &PhysicalEnd) {
        let mut ends = lock_mutex(&self.ends);
        let same = |known: &PhysicalEnd| {
            (known.lid, known.gid, known.link_layer) == (end.lid, end.gid, end.link_layer)
        };
        let number = match ends.iter().position(same) {
            Some(number) => number,
            None if ends.len() < MAX_ENDS => {
                ends.push(*end);
                ends.len() - 1
            }
            None => {
                tracing::error!(
                    "{} has more than {MAX_ENDS} ports in use; datagrams to its queue pair \
                     {qpn:#x} are dropped",
                    self.process
                );
                usize::from(NOWHERE)
            }
        };
        let value = (number as u32) << 24 | (end.qpn & MASK_24);
        if !self.qpns.set(qpn_index(qpn), qpn, value) {
            tracing::warn!("{} published a queue pair number {qpn:#x}", self.process);
        }
    }

    /// Sees to it that `wanted` is fetched, and `qp` pushed when it is there. True where it
    /// is there by now, or never will be: the caller pushes.
    pub(super) fn request(self: &Arc<Self>, wanted: Wanted, qp: &QpCore) -> bool {
        let Some(local) = self.local.upgrade() else { return true };
        let first = {
            let mut waiting = lock_mutex(&self.waiting);
            // Whoever brings an answer puts it in the tables before it takes the lock.
            if qp.knows(self, wanted) {
                return true;
            }
            let waiters = waiting.entry(wanted).or_default();
            waiters.push(qp.weak());
            waiters.len() == 1
        };
        if first {
            let what = match wanted {
                Wanted::Key(key) => Fetch::Key(key),
                Wanted::Qpn { qpn, own, .. } => Fetch::Qpn { qpn, own_qpn: own, own_end: qp.end() },
            };
            let peer = Arc::clone(self);
            let deadline = Instant::now() + NAME_PATIENCE;
            let done = Box::new(move |answer| peer.settle(wanted, answer));
            local.resolver().fetch(self.process, what, deadline, done);
        }
        false
    }

    /// An answer has come, or none will: on the service thread.
    fn settle(&self, wanted: Wanted, answer: Result<Record, names::Error>) {
        let (outcome, placeholders) = match (&answer, wanted) {
            (Ok(Record::Key(record)), Wanted::Key(key)) => {
                for &(device, rkey) in &record.on {
                    self.learn_key(device, key, rkey);
                }
                // Registered, but not on the device that a waiter is connected to.
                (Outcome::Known, self.put_placeholders(wanted))
            }
            (Ok(Record::Qpn(record)), Wanted::Qpn { qpn, .. }) => {
                self.lives(record.life);
                self.learn_qpn(qpn, &record.end);
                (Outcome::Known, Vec::new())
            }
            (Err(names::Error::Unknown { .. }), _) => {
                (Outcome::Known, self.put_placeholders(wanted))
            }
            (answer, _) => {
                match answer {
                    Err(error) => tracing::warn!("{wanted:?} of {}: {error}", self.process),
                    Ok(_) => tracing::warn!("{wanted:?} of {}: a wrong answer", self.process),
                }
                (Outcome::Lost, self.put_placeholders(wanted))
            }
        };
        let waiters = lock_mutex(&self.waiting).remove(&wanted).unwrap_or_default();
        for qp in waiters.iter().filter_map(Weak::upgrade) {
            qp.settled(self, wanted, outcome);
        }
        // What the peer does not know today it may know tomorrow.
        for (table, index, name, value) in placeholders {
            match table {
                Some(keys) => keys.unset(index, name, value),
                None => self.qpns.unset(index, name, value),
            }
        }
    }

    fn learn_key(&self, device: DeviceId, key: u32, rkey: u32) {
        // Devices are known from connections; a key on another one is of no use yet.
        let keys = lock_mutex(&self.devices).get(&device).map(Arc::clone);
        if let Some(keys) = keys
            && !keys.set(key_index(key), key, rkey)
        {
            tracing::warn!("{} published a key {key:#x}", self.process);
        }
    }

    /// Enters "stands for nothing" wherever `wanted` is not known.
    fn put_placeholders(&self, wanted: Wanted) -> Vec<(Option<Arc<PeerKeys>>, usize, u32, u32)> {
        match wanted {
            Wanted::Key(key) => {
                let index = key_index(key);
                let tables: Vec<_> = lock_mutex(&self.devices).values().map(Arc::clone).collect();
                tables
                    .into_iter()
                    .filter(|keys| keys.get(index, key).is_none())
                    .filter(|keys| keys.set(index, key, NO_SUCH_KEY))
                    .map(|keys| (Some(keys), index, key, NO_SUCH_KEY))
                    .collect()
            }
            Wanted::Qpn { qpn, .. } => {
                let value = u32::from(NOWHERE) << 24 | NO_SUCH_QPN;
                let index = qpn_index(qpn);
                let new = self.qpns.get(index, qpn).is_none() && self.qpns.set(index, qpn, value);
                if new { vec![(None, index, qpn, value)] } else { Vec::new() }
            }
        }
    }
}

impl Missing {
    /// Waits for the name in the queue pair's stead; pushes what is known meanwhile.
    pub(super) fn resolve(mut self, qp: &QpCore) {
        while self.peer.request(self.wanted, qp) {
            match qp.push() {
                Blocked::By(next) => self = next,
                Blocked::No => return,
            }
        }
    }
}
