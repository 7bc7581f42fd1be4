//! What this process is in its job: its names, and tables of everything that has one.
//!
//! One [`Local`] per process stands under all of its contexts. Pollers read its table of queue
//! pairs without a lock; everything else here is for the control path and the service thread.

use super::ah::AhCore;
use super::context::VirtualContext;
use super::cq::CqCore;
use super::deal::{Dealer, FIRST_KEY, FIRST_QPN};
use super::image::{Image, NamesImage};
use super::lock_mutex;
use super::peer::Peer;
use super::policy::Source;
use super::qp::QpCore;
use super::remap::{Orders, Remaps, Rescue};
use super::resolve::Resolver;
use super::retain::Committed;
use super::reverse::ReverseTable;
use super::srq::SrqCore;
use super::tables::{MAX_KEYS, MAX_QPS, qpn_index};
use super::underlay::Underlay;
use super::written::Writes;
use crate::device::DeviceContext;
use crate::error::{Error, Result};
use crate::names::{
    Asker, Cover, DeviceId, Gid, Grant, Incarnation, KeyRecord, MAX_LID, Order, PhysicalEnd,
    ProcessId, QpnRecord, WrittenPart,
};
use sojourn_logging::remap::{Answer, GroupId, Request};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

/// Bits that count the openings of devices in one life; those above tell lives apart. A number that comes back
/// after so many openings is one that no peer is connected to any more.
const DEVICES_OF_A_LIFE: u32 = 16;

/// A region as this process knows it.
#[derive(Clone)]
pub(super) struct Region {
    /// The protection domain that it belongs to.
    pub(super) owner: usize,
    /// Its first byte in our address space.
    pub(super) base: usize,
    /// What requests call its first byte: the same, or 0.
    pub(super) start: u64,
    /// In bytes.
    pub(super) length: u64,
    /// [`access`](crate::abi::access).
    pub(super) flags: u32,
    /// Physical rkey on each device.
    pub(super) rkeys: Vec<(DeviceId, u32)>,
}

/// Regions by key.
pub(super) type Regions = HashMap<u32, Region, BuildHasherDefault<KeyHasher>>;

/// Of keys that this process deals itself, one after the other: nobody chooses them so that they collide.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    #[inline]
    fn write_u32(&mut self, key: u32) {
        // Any odd number whose bits are well mixed: the table looks at the upper ones too.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ u64::from(key)).wrapping_mul(SPREAD);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

/// Things that are somewhere, held weakly.
pub(super) struct Herd<T>(Mutex<Vec<Weak<T>>>);

impl<T> Default for Herd<T> {
    fn default() -> Self {
        Herd(Mutex::default())
    }
}

impl<T> Herd<T> {
    pub(super) fn add(&self, thing: &Arc<T>) {
        let mut things = lock_mutex(&self.0);
        // The dead are cleared away whenever the list would have to grow.
        if things.len() == things.capacity() {
            things.retain(|thing| thing.strong_count() > 0);
        }
        things.push(Arc::downgrade(thing));
    }

    /// Those that are alive, in the order in which they came.
    pub(super) fn alive(&self) -> Vec<Arc<T>> {
        lock_mutex(&self.0).iter().filter_map(Weak::upgrade).collect()
    }
}

/// The queue pairs by index, for pollers.
#[derive(Clone)]
pub(super) struct QpTable {
    // Of a size that is known where it is indexed.
    slots: Arc<[AtomicPtr<QpCore>; MAX_QPS as usize]>,
}

impl QpTable {
    fn new() -> Self {
        let slots: Arc<[_]> = (0..MAX_QPS).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        QpTable { slots: slots.try_into().unwrap_or_else(|_| unreachable!("as many as made")) }
    }

    /// The queue pair `qpn` of this very generation.
    ///
    /// # Safety
    /// The caller polls, alone, a CQ of this queue pair: then it stays at least until that CQ
    /// has given it up (see `CqCore::bury`).
    #[inline]
    pub(super) unsafe fn get<'a>(&self, qpn: u32) -> Option<&'a QpCore> {
        let slot = self.slots[qpn_index(qpn)].load(Ordering::Acquire);
        // SAFETY: entries point to living queue pairs until those take them out, when no CQ
        // knows them any more.
        let qp = unsafe { slot.as_ref() }?;
        (qp.qpn == qpn).then_some(qp)
    }

    pub(super) fn put(&self, qp: &Arc<QpCore>) {
        let raw = Arc::as_ptr(qp).cast_mut();
        self.slots[qpn_index(qp.qpn)].store(raw, Ordering::Release);
    }

    /// A queue pair is there, or has not been given up by its CQs.
    fn is_taken(&self, qpn: u32) -> bool {
        !self.slots[qpn_index(qpn)].load(Ordering::Acquire).is_null()
    }

    pub(super) fn clear(&self, qpn: u32) {
        self.slots[qpn_index(qpn)].store(ptr::null_mut(), Ordering::Release);
    }
}

/// This process.
pub(super) struct Local {
    resolver: OnceLock<Arc<dyn Resolver>>,
    pub(super) grant: OnceLock<Grant>,
    me: Weak<Local>,
    pub(super) qps: QpTable,
    qpns: Mutex<Dealer>,
    keys: Mutex<Dealer>,
    /// Queue pairs by number, for those who do not poll.
    numbers: RwLock<HashMap<u32, Weak<QpCore>>>,
    regions: RwLock<Regions>,
    peers: Mutex<HashMap<ProcessId, Arc<Peer>>>,
    next_device: AtomicU32,
    /// Address handles, shared receive queues and CQs by number.
    pub(super) ahs: Registry<AhCore>,
    pub(super) srqs: Registry<SrqCore>,
    pub(super) cqs: Registry<CqCore>,
    /// Senders of datagrams: physical names to virtual ones.
    pub(super) senders: ReverseTable,
    /// Re-maps under way.
    pub(super) remaps: Remaps,
    /// Those that are open.
    pub(super) contexts: Herd<VirtualContext>,
    /// Orders from outside.
    pub(super) orders: Orders,
    /// Who is called where a path fails.
    pub(super) rescue: Rescue,
    /// Epochs, of peers and of our own.
    pub(super) committed: Committed,
    /// What devices have written, here and by us elsewhere.
    pub(super) writes: Writes,
}

impl Local {
    /// A process that has not joined yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Local {
            resolver: OnceLock::new(),
            grant: OnceLock::new(),
            me: me.clone(),
            qps: QpTable::new(),
            qpns: Mutex::new(Dealer::new(FIRST_QPN, MAX_QPS)),
            keys: Mutex::new(Dealer::new(FIRST_KEY, MAX_KEYS)),
            numbers: RwLock::default(),
            regions: RwLock::default(),
            peers: Mutex::default(),
            next_device: AtomicU32::new(0),
            ahs: Registry::default(),
            srqs: Registry::default(),
            cqs: Registry::default(),
            senders: ReverseTable::new(),
            remaps: Remaps::default(),
            contexts: Herd::default(),
            orders: Orders::default(),
            rescue: Rescue::default(),
            committed: Committed::default(),
            writes: Writes::default(),
        })
    }

    /// It has joined: names resolve through `resolver` from now on. Once.
    pub(super) fn joined(&self, resolver: Arc<dyn Resolver>) {
        let _ = self.grant.set(resolver.grant());
        let _ = self.resolver.set(resolver);
    }

    /// Who we are. Contexts are opened after joining only.
    pub(super) fn grant(&self) -> Grant {
        *self.grant.get().expect("set before any context is opened")
    }

    pub(super) fn resolver(&self) -> &Arc<dyn Resolver> {
        self.resolver.get().expect("set before any context is opened")
    }

    /// Numbers an opened device: every opening has a number of its own, in every life of the process, so that a
    /// key that somebody remembers of an earlier one never means something of this.
    pub(super) fn add_device(
        &self,
        device: Arc<dyn DeviceContext>,
        source: Source,
    ) -> Arc<Underlay> {
        let count = self.next_device.fetch_add(1, Ordering::Relaxed);
        let life = self.grant().incarnation.0;
        let id = DeviceId(life << DEVICES_OF_A_LIFE | (count & ((1 << DEVICES_OF_A_LIFE) - 1)));
        Arc::new(Underlay::new(id, device, source))
    }

    /// The peer of that number: made when it is first named.
    pub(super) fn peer(&self, process: ProcessId) -> Arc<Peer> {
        let mut peers = lock_mutex(&self.peers);
        let index = peers.len();
        let own = process == self.grant().process;
        Arc::clone(
            peers
                .entry(process)
                .or_insert_with(|| Arc::new(Peer::new(process, index, own, self.me.clone()))),
        )
    }

    /// The process that an address names, or `None` where it is foreign to the job.
    pub(super) fn process_at(&self, lid: u16, gid: Option<[u8; 16]>) -> Option<ProcessId> {
        let own = self.grant();
        let process = match gid {
            Some(gid) => {
                let (job, process) = Gid(gid).owner()?;
                (job == own.job).then_some(process)?
            }
            // Above are the multicast LIDs, which are the fabric's.
            None if (1..=MAX_LID).contains(&u32::from(lid)) => ProcessId(u32::from(lid)),
            None => return None,
        };
        (process == own.process || !self.resolver().alone()).then_some(process)
    }

    /// Deals a queue pair number.
    pub(super) fn deal_qpn(&self) -> Result<u32> {
        let (index, generation) = lock_mutex(&self.qpns).deal().ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!("this process has {} queue pairs, which is the most", MAX_QPS - FIRST_QPN),
            )
        })?;
        Ok(u32::from(generation) << 16 | index)
    }

    pub(super) fn return_qpn(&self, qpn: u32) {
        lock_mutex(&self.qpns).take_back(qpn_index(qpn) as u32);
    }

    /// How far it has come with dealing names.
    pub(super) fn names(&self) -> NamesImage {
        NamesImage {
            qpns: lock_mutex(&self.qpns).dealt(),
            keys: lock_mutex(&self.keys).dealt(),
            devices: self.next_device.load(Ordering::Relaxed),
            last_ah: self.ahs.last(),
        }
    }

    /// The names of that image are dealt from here on, whoever makes their objects; and none that the
    /// process had dealt by then is dealt to others.
    ///
    /// # Errors
    /// `EEXIST` where one is in use: nothing has changed then.
    pub(super) fn take_over(&self, image: &Image) -> Result<()> {
        let in_use = |what: &str, name: u32| {
            Err(Error::new(
                libc::EEXIST,
                format!(
                    "{what} {name:#x} is in use in this process: what was captured there must be gone \
                     before it is restored"
                ),
            ))
        };
        let keys: HashSet<u32> = self.regions().keys().map(|key| key >> 8).collect();
        if let Some(region) = image.regions.iter().find(|it| keys.contains(&(it.key >> 8))) {
            return in_use("the key", region.key);
        }
        if let Some(qp) = image.qps.iter().find(|it| self.qps.is_taken(it.qpn)) {
            return in_use("the queue pair number", qp.qpn);
        }
        if let Some(ah) = image.ahs.iter().find(|it| self.ahs.get(it.number).is_some()) {
            return in_use("the address handle", ah.number);
        }
        let live = image.qps.iter().map(|it| qpn_index(it.qpn) as u32).collect();
        lock_mutex(&self.qpns).resume(&image.names.qpns, &live);
        let live = image.regions.iter().map(|it| it.key >> 8).collect();
        lock_mutex(&self.keys).resume(&image.names.keys, &live);
        self.next_device.fetch_max(image.names.devices, Ordering::Relaxed);
        self.ahs.go_on_from(image.names.last_ah);
        Ok(())
    }

    /// Makes a queue pair known by its number.
    pub(super) fn add_qp(&self, qp: &Arc<QpCore>) {
        self.qps.put(qp);
        write(&self.numbers).insert(qp.qpn, Arc::downgrade(qp));
    }

    /// A queue pair is gone for everyone but its CQs.
    pub(super) fn forget_qp(&self, qpn: u32) {
        write(&self.numbers).remove(&qpn);
    }

    pub(super) fn qp(&self, qpn: u32) -> Option<Arc<QpCore>> {
        read(&self.numbers).get(&qpn)?.upgrade()
    }

    /// Deals a key.
    pub(super) fn deal_key(&self) -> Result<u32> {
        let (index, generation) = lock_mutex(&self.keys).deal().ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!(
                    "this process has {} memory regions, which is the most; register fewer, \
                     larger ones",
                    MAX_KEYS - FIRST_KEY
                ),
            )
        })?;
        Ok(index << 8 | u32::from(generation))
    }

    pub(super) fn return_key(&self, key: u32) {
        lock_mutex(&self.keys).take_back(key >> 8);
    }

    pub(super) fn add_region(&self, key: u32, region: Region) {
        write(&self.regions).insert(key, region);
    }

    /// The region has a key on that device, too.
    pub(super) fn region_is_on(&self, key: u32, device: DeviceId, rkey: u32) {
        if let Some(region) = write(&self.regions).get_mut(&key) {
            region.rkeys.push((device, rkey));
        }
    }

    /// The region has no key on that device any more.
    pub(super) fn region_is_gone_from(&self, key: u32, device: DeviceId) {
        if let Some(region) = write(&self.regions).get_mut(&key) {
            region.rkeys.retain(|(id, _)| *id != device);
        }
    }

    /// From here on nobody finds the region, and nobody who found it is still at it.
    pub(super) fn remove_region(&self, key: u32) {
        write(&self.regions).remove(&key);
    }

    /// The regions, which stay registered while this is held.
    pub(super) fn regions(&self) -> RwLockReadGuard<'_, Regions> {
        read(&self.regions)
    }

    /// Datagrams from `end` come from queue pair `qpn` of `process`.
    pub(super) fn learn_sender(&self, end: &PhysicalEnd, qpn: u32, process: ProcessId) {
        self.senders.learn(end, qpn, process, process.gid(self.grant().job).0);
    }

    /// A process has committed an epoch that has consumed this of what we have sent to it.
    pub(super) fn hear_committed(&self, peer: ProcessId, serial: u64, covers: &[Cover]) {
        let contexts = self.contexts.alive();
        let stores: Vec<_> = contexts.iter().flat_map(|context| context.stores()).collect();
        self.committed.hear(peer, serial, covers, &stores);
    }

    /// Where our queue pair `qpn` is to be reached.
    pub(super) fn own_qpn(&self, qpn: u32) -> Option<(PhysicalEnd, u32)> {
        let qp = self.qp(qpn)?;
        Some((qp.end()?, qp.qp_type))
    }
}

/// What peers are told.
impl crate::names::Owner for Local {
    fn qpn(&self, asker: &Asker, qpn: u32) -> Option<QpnRecord> {
        if let Some(end) = asker.physical.filter(|_| asker.qpn != 0) {
            self.learn_sender(&end, asker.qpn, asker.process);
        }
        if let Some(qp) = self.qp(qpn) {
            qp.is_known_to(asker.process);
        }
        let (end, qp_type) = self.own_qpn(qpn)?;
        let life = self.grant().incarnation;
        Some(QpnRecord { end, qp_type: qp_type as u8, incarnation: Incarnation(1), life })
    }

    fn key(&self, _asker: ProcessId, key: u32) -> Option<KeyRecord> {
        let on = self.regions().get(&key)?.rkeys.clone();
        Some(KeyRecord { on })
    }

    fn remap(
        &self,
        asker: ProcessId,
        group: GroupId,
        request: &Request<PhysicalEnd>,
    ) -> Answer<PhysicalEnd> {
        let Some(me) = self.me.upgrade() else { return Answer::Unknown };
        self.remaps.answer(&me, asker, group, request)
    }

    fn moved(&self, asker: ProcessId, qpn: u32, end: &PhysicalEnd) {
        self.peer(asker).learn_qpn(qpn, end);
    }

    fn committed(&self, asker: ProcessId, serial: u64, covers: &[Cover]) {
        self.hear_committed(asker, serial, covers);
    }

    fn written(&self, asker: ProcessId, report: u64, part: u32) -> WrittenPart {
        match self.me.upgrade() {
            Some(me) => self.writes.tell(&me, asker, report, part),
            None => WrittenPart::nothing(self.grant().incarnation),
        }
    }

    fn written_saved(&self, asker: ProcessId, report: u64) {
        self.writes.let_go(asker, report);
    }

    fn relocate(&self, ticket: u64, device: &str) -> Order {
        match self.me.upgrade() {
            Some(me) => self.orders.answer(&me, ticket, device),
            None => Order::Failed("it is about to end".to_owned()),
        }
    }
}

/// Things by number, held weakly.
pub(super) struct Registry<T> {
    next: Mutex<u32>,
    things: RwLock<HashMap<u32, Weak<T>>>,
}

impl<T> Default for Registry<T> {
    fn default() -> Self {
        Registry { next: Mutex::new(0), things: RwLock::default() }
    }
}

impl<T> Registry<T> {
    /// Makes a thing that knows its own number (24 bits, none in use twice).
    pub(super) fn try_add(&self, make: impl FnOnce(u32) -> Result<T>) -> Result<Arc<T>> {
        self.try_add_as(None, make)
    }

    /// The same, of that number where there is one, which is not in use.
    pub(super) fn try_add_as(
        &self,
        number: Option<u32>,
        make: impl FnOnce(u32) -> Result<T>,
    ) -> Result<Arc<T>> {
        let number = {
            let mut next = lock_mutex(&self.next);
            let mut things = write(&self.things);
            let number = number.unwrap_or_else(|| {
                loop {
                    *next = (*next + 1) & crate::abi::MASK_24;
                    if *next != 0 && !things.contains_key(&*next) {
                        break *next;
                    }
                }
            });
            // Taken, so that nobody else gets it while the thing is being made.
            things.insert(number, Weak::new());
            number
        };
        match make(number) {
            Ok(thing) => {
                let thing = Arc::new(thing);
                write(&self.things).insert(number, Arc::downgrade(&thing));
                Ok(thing)
            }
            Err(error) => {
                self.remove(number);
                Err(error)
            }
        }
    }

    /// The last number that was dealt.
    fn last(&self) -> u32 {
        *lock_mutex(&self.next)
    }

    /// Numbers up to that one have been dealt.
    fn go_on_from(&self, last: u32) {
        let mut next = lock_mutex(&self.next);
        *next = (*next).max(last) & crate::abi::MASK_24;
    }

    pub(super) fn get(&self, number: u32) -> Option<Arc<T>> {
        read(&self.things).get(&number)?.upgrade()
    }

    pub(super) fn remove(&self, number: u32) {
        write(&self.things).remove(&number);
    }
}

pub(super) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
