//! Virtual contexts.

use super::ah::AhCore;
use super::channel::{ChannelCore, VirtualChannel, readable_with};
use super::cq::{CqCore, VirtualCq};
use super::kept::KeptEvents;
use super::local::{Herd, Local, read, write};
use super::lock_mutex;
use super::mr::VirtualMr;
use super::pd::{PdCore, VirtualPd};
use super::policy::{Evidence, MayTry, Policy};
use super::qp::{QpCore, most_sends};
use super::remap::{Broken, FIRST_PORT, Failover, Lookout, Relocation};
use super::retain::{Gone, Retention, Store};
use super::srq::SrqCore;
use super::underlay::Underlay;
use crate::abi::{self, DeviceAttr, Gid, PortAttr, event_type, port_state, qp_type};
use crate::device::{
    AsyncEvent, CqInit, DeviceChannel, DeviceContext, DeviceCq, DevicePd, EventElement, Kind,
    PdInit,
};
use crate::error::{Error, Result};
use crate::names::DeviceId;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use sojourn_logging::Share;
use std::any::Any;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, Weak};

/// A context: names of this process, over a list of devices.
pub(super) struct VirtualContext {
    /// Of the device that it was opened over.
    name: String,
    local: Arc<Local>,
    /// The devices in use, the first of which new objects are created on. Others are there while a
    /// move is under way, and for queue pairs whose peer has gone where the first does not reach.
    underlays: RwLock<Vec<Arc<Underlay>>>,
    events: Epoll,
    policy: Policy,
    /// Logs of messages: those of its protection domains, and of such as are gone, as long as something is
    /// kept there.
    stores: Mutex<Vec<Arc<Store>>>,
    /// Queue pairs that are gone, and of which no epoch has told so far.
    pub(super) gone: Gone,
    /// The last moves.
    moves: Mutex<VecDeque<Relocation>>,
    /// Asynchronous events that no device holds any more, and the program has not taken.
    kept: KeptEvents,
    me: Weak<VirtualContext>,
    /// It and its peers stand still.
    held: AtomicBool,
    /// Whoever makes, changes or destroys an object holds it for reading; a move, for writing.
    settled: RwLock<()>,
    pub(super) pds: Herd<PdCore>,
    pub(super) mrs: Herd<VirtualMr>,
    pub(super) channels: Herd<ChannelCore>,
    pub(super) cqs: Herd<CqCore>,
    pub(super) srqs: Herd<SrqCore>,
    pub(super) qps: Herd<QpCore>,
    /// Queue pairs that the program holds.
    pub(super) qp_count: AtomicU64,
    pub(super) ahs: Herd<AhCore>,
    /// Who notices that a path of its queue pairs has failed, where nobody polls.
    pub(super) lookout: Lookout,
}

impl VirtualContext {
    pub(super) fn open(
        local: &Arc<Local>,
        device: Arc<dyn DeviceContext>,
        policy: Policy,
    ) -> Result<Arc<Self>> {
        let what = format!("opening virtual verbs over {}", device.name());
        let events = readable_with(&[device.async_fd()], &what)?;
        let source = policy.evidence.of(&device, MayTry::Yes);
        let context = Arc::new_cyclic(|me| VirtualContext {
            name: device.name().to_owned(),
            local: Arc::clone(local),
            underlays: RwLock::new(vec![local.add_device(device, source)]),
            events,
            policy,
            stores: Mutex::default(),
            gone: Gone::default(),
            moves: Mutex::default(),
            kept: KeptEvents::default(),
            me: me.clone(),
            held: AtomicBool::new(false),
            settled: RwLock::default(),
            pds: Herd::default(),
            mrs: Herd::default(),
            channels: Herd::default(),
            cqs: Herd::default(),
            srqs: Herd::default(),
            qps: Herd::default(),
            qp_count: AtomicU64::new(0),
            ahs: Herd::default(),
            lookout: Lookout::default(),
        });
        if context.tracks() {
            local.writes.begin();
        }
        local.contexts.add(&context);
        Ok(context)
    }

    pub(super) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    /// What is done where a path fails.
    pub(super) fn failover(&self) -> &Failover {
        &self.policy.failover
    }

    /// What one of its queue pairs may have outstanding: as much as any other.
    pub(super) fn share(&self) -> Share {
        self.policy.outstanding.share(self.qp_count.load(Ordering::Relaxed))
    }

    /// What is believed of devices.
    pub(super) fn evidence(&self) -> Evidence {
        self.policy.evidence
    }

    /// What is kept of messages.
    pub(super) fn retention(&self) -> &Retention {
        &self.policy.retention
    }

    /// Whether what devices write is recorded.
    pub(super) fn tracks(&self) -> bool {
        self.policy.tracking
    }

    /// Remembers a log of messages.
    pub(super) fn add_store(&self, store: &Arc<Store>) {
        let mut stores = lock_mutex(&self.stores);
        stores.retain(|store| Arc::strong_count(store) > 1 || !store.is_empty());
        stores.push(Arc::clone(store));
    }

    /// The logs of messages.
    pub(super) fn stores(&self) -> Vec<Arc<Store>> {
        lock_mutex(&self.stores).clone()
    }

    /// Sees to it that everything goes to another device, where the port is down and that may be. True
    /// where it will.
    pub(super) fn look_after_port(&self) -> bool {
        let device = &self.underlay().device;
        let down = device.query_port(FIRST_PORT).is_ok_and(|it| it.state != port_state::ACTIVE);
        let leaves = down && self.policy.failover.may_leave(&**device);
        if leaves {
            self.local.rescue.call(&self.local, Broken::Port(self.me.clone()));
        }
        leaves
    }

    /// Remembers a move.
    pub(super) fn note_move(&self, moved: Relocation) {
        let mut moves = lock_mutex(&self.moves);
        if moves.len() == super::MAX_MOVES_KEPT {
            moves.pop_front();
        }
        moves.push_back(moved);
    }

    /// The last moves, oldest first.
    pub(super) fn moves(&self) -> Vec<Relocation> {
        lock_mutex(&self.moves).iter().cloned().collect()
    }

    /// The device that new objects are created on.
    pub(super) fn underlay(&self) -> Arc<Underlay> {
        Arc::clone(&read(&self.underlays)[0])
    }

    /// All devices in use, that one first.
    pub(super) fn underlays(&self) -> Vec<Arc<Underlay>> {
        read(&self.underlays).clone()
    }

    /// Nothing moves while this is held.
    pub(super) fn settled(&self) -> RwLockReadGuard<'_, ()> {
        read(&self.settled)
    }

    /// Nothing is made, changed or destroyed while this is held. Tried only: who waited for it would
    /// keep out whoever comes, the very one too who holds it for reading and comes again.
    pub(super) fn try_unsettle(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.settled.try_write() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// It stands still from here on; false where it does already. While nothing is being changed.
    pub(super) fn begin_hold(&self) -> bool {
        !self.held.swap(true, Ordering::AcqRel)
    }

    /// It goes on.
    pub(super) fn end_hold(&self) {
        self.held.store(false, Ordering::Release);
    }

    /// Whether it stands still.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// A device is in use from now on.
    pub(super) fn add_underlay(&self, underlay: &Arc<Underlay>) -> Result<()> {
        // One that announces nothing cannot be waited for.
        let fd = underlay.device.async_fd();
        match self.events.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)) {
            Ok(()) | Err(Errno::EPERM) => {}
            Err(errno) => {
                return Err(Error::new(
                    errno as i32,
                    format!("waiting for events of {}: {errno}", underlay.device.name()),
                ));
            }
        }
        write(&self.underlays).push(Arc::clone(underlay));
        Ok(())
    }

    /// A device is not in use any more; or, of several, not the first to create objects on.
    pub(super) fn remove_underlay(&self, id: DeviceId) {
        let mut underlays = write(&self.underlays);
        if underlays.len() > 1
            && let Some(at) = underlays.iter().position(|underlay| underlay.id == id)
        {
            let gone = underlays.remove(at);
            // It closes with its last user; fails where it was never added.
            let _ = self.events.delete(gone.device.async_fd());
        }
    }

    /// New objects are created on this device from now on.
    pub(super) fn promote_underlay(&self, id: DeviceId) {
        let mut underlays = write(&self.underlays);
        if let Some(at) = underlays.iter().position(|underlay| underlay.id == id) {
            underlays.swap(0, at);
        }
    }

    /// A CQ whose events go to `channel`. While nothing moves.
    pub(super) fn add_cq(
        &self,
        init: &CqInit,
        channel: Option<Arc<ChannelCore>>,
    ) -> Result<Arc<CqCore>> {
        let of_event = channel.clone();
        let cq = self
            .local
            .cqs
            .try_add(|number| CqCore::new(&self.local, &self.underlays(), number, init, channel))?;
        self.cqs.add(&cq);
        if let Some(channel) = of_event {
            channel.add(&cq);
        }
        Ok(cq)
    }

    fn device(&self) -> Arc<dyn DeviceContext> {
        Arc::clone(&self.underlay().device)
    }

    /// All events that the program has not taken, oldest first. They are ours from here on.
    ///
    /// # Errors
    /// Where a device is gone, or no file descriptor is left to tell the program of them.
    pub(super) fn keep_events(&self) -> Result<Vec<AsyncEvent>> {
        while let Some(event) = self.event_of_devices()? {
            self.kept.push(&self.events, event)?;
        }
        Ok(self.kept.all())
    }

    /// The program gets that event, too.
    ///
    /// # Errors
    /// Where no file descriptor is left to tell the program of it.
    pub(super) fn raise(&self, event: AsyncEvent) -> Result<()> {
        self.kept.push(&self.events, event)
    }

    fn event_of_devices(&self) -> Result<Option<AsyncEvent>> {
        for underlay in &self.underlays() {
            while let Some(event) = underlay.device.get_async_event()? {
                if let Some(event) = self.translate(underlay, event) {
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    /// What an event is about, virtually; `None` where it is none of the program's business.
    fn translate(&self, underlay: &Underlay, event: AsyncEvent) -> Option<AsyncEvent> {
        let element = match event.element {
            EventElement::Qp(qpn) => EventElement::Qp(underlay.qpns.get(qpn as usize, qpn)?),
            EventElement::Cq(number) => EventElement::Cq(self.local.cqs.get(number as u32)?.user()),
            EventElement::Srq(number) => {
                EventElement::Srq(self.local.srqs.get(number as u32)?.user)
            }
            // It goes elsewhere, and the virtual port stays up.
            EventElement::Port(_)
                if matches!(event.event_type, event_type::PORT_ERR | event_type::PORT_ACTIVE)
                    && self.policy.failover.may_leave(&*underlay.device) =>
            {
                self.look_after_port();
                return None;
            }
            // A virtual port keeps its addresses.
            EventElement::Port(_)
                if matches!(
                    event.event_type,
                    event_type::LID_CHANGE | event_type::GID_CHANGE | event_type::SM_CHANGE
                ) =>
            {
                return None;
            }
            element @ (EventElement::Port(_) | EventElement::Device) => element,
        };
        Some(AsyncEvent { element, ..event })
    }
}

impl DeviceContext for VirtualContext {
    /// A name like others: it stays.
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        self.device().kind()
    }

    fn query_device(&self) -> Result<DeviceAttr> {
        let mut attr = self.device().query_device()?;
        let at_most = |value: &mut i32, limit: u32| *value = (*value).min(limit as i32);
        attr.max_qp_wr = most_sends(qp_type::RC, attr.max_qp_wr.max(0) as u32) as i32;
        at_most(&mut attr.max_qp, super::tables::MAX_QPS);
        at_most(&mut attr.max_mr, super::tables::MAX_KEYS);
        at_most(&mut attr.max_sge, u32::from(u8::MAX));
        at_most(&mut attr.max_srq_sge, u32::from(u8::MAX));
        // Not virtualised.
        attr.max_mw = 0;
        attr.device_cap_flags &= !abi::device_cap::MEM_WINDOW;
        Ok(attr)
    }

    fn query_port(&self, port: u8) -> Result<PortAttr> {
        let attr = self.device().query_port(port)?;
        Ok(PortAttr {
            lid: self.local.grant().lid.0,
            lmc: 0,
            gid_tbl_len: 1,
            // Whatever the device has: the name that a peer is reached by, its LID, must not
            // change with it.
            link_layer: abi::link_layer::INFINIBAND,
            flags: attr.flags & !abi::port_flags::GRH_REQUIRED,
            ..attr
        })
    }

    fn query_gid(&self, port: u8, index: u32) -> Result<Gid> {
        // Asked for the sake of the answer to a port that does not exist.
        self.device().query_port(port)?;
        if index != 0 {
            return Err(Error::invalid(format!(
                "GID index {index} of port {port}: a virtual port has one GID, index 0"
            )));
        }
        Ok(Gid(self.local.grant().gid.0))
    }

    /// As the device does: where it is addressed by GID, datagrams carry a GRH whatever the
    /// program's address handle says, and that must be no surprise to the receiver.
    fn addresses_by_gid(&self, port: u8) -> Result<bool> {
        Ok(self.local.grant().lid.0 == 0 || self.device().addresses_by_gid(port)?)
    }

    fn query_pkey(&self, port: u8, index: u32) -> Result<u16> {
        self.device().query_pkey(port, index)
    }

    fn alloc_pd(self: Arc<Self>, init: PdInit) -> Result<Arc<dyn DevicePd>> {
        let _settled = self.settled();
        let pd = PdCore::new(Arc::clone(&self), init.single_threaded)?;
        self.pds.add(&pd);
        Ok(Arc::new(VirtualPd::new(pd)))
    }

    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        let _settled = self.settled();
        let channel = ChannelCore::new(&self.underlays())?;
        self.channels.add(&channel);
        Ok(Arc::new(VirtualChannel(channel)))
    }

    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
        let channel = match &init.channel {
            Some(channel) => {
                let any: Arc<dyn Any + Send + Sync> = Arc::clone(channel) as _;
                let channel = any.downcast::<VirtualChannel>().map_err(|_| {
                    Error::invalid("the channel of a new CQ is not one of virtual verbs")
                })?;
                Some(Arc::clone(&channel.0))
            }
            None => None,
        };
        let _settled = self.settled();
        Ok(Arc::new(VirtualCq::new(self.add_cq(&init, channel)?)))
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }

    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        if let Some(event) = self.kept.take() {
            return Ok(Some(event));
        }
        self.event_of_devices()
    }
}
