//! Virtual contexts.

use super::channel::{ChannelCore, VirtualChannel, readable_with};
use super::cq::{CqCore, VirtualCq};
use super::local::Local;
use super::pd::VirtualPd;
use super::qp::HIDDEN_SENDS;
use super::underlay::Underlay;
use crate::abi::{self, DeviceAttr, Gid, PortAttr, event_type};
use crate::device::{
    AsyncEvent, CqInit, DeviceChannel, DeviceContext, DeviceCq, DevicePd, EventElement, Kind,
    PdInit,
};
use crate::error::{Error, Result};
use nix::sys::epoll::Epoll;
use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A context: names of this process, over a list of devices.
pub(super) struct VirtualContext {
    local: Arc<Local>,
    /// The devices in use, the first of which new objects are created on. One, as long as
    /// nothing has moved.
    underlays: Vec<Arc<Underlay>>,
    events: Epoll,
}

impl VirtualContext {
    pub(super) fn open(
        local: &Arc<Local>,
        device: Arc<dyn DeviceContext>,
    ) -> Result<Arc<dyn DeviceContext>> {
        let what = format!("opening virtual verbs over {}", device.name());
        let events = readable_with(&[device.async_fd()], &what)?;
        let underlays = vec![local.add_device(device)?];
        Ok(Arc::new(VirtualContext { local: Arc::clone(local), underlays, events }))
    }

    pub(super) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    /// The device that new objects are created on.
    pub(super) fn underlay(&self) -> &Arc<Underlay> {
        &self.underlays[0]
    }

    fn device(&self) -> &Arc<dyn DeviceContext> {
        &self.underlay().device
    }

    /// What an event is about, virtually; `None` where it is none of the program's business.
    fn translate(&self, underlay: &Underlay, event: AsyncEvent) -> Option<AsyncEvent> {
        let element = match event.element {
            EventElement::Qp(qpn) => EventElement::Qp(underlay.qpns.get(qpn as usize, qpn)?),
            EventElement::Cq(number) => EventElement::Cq(self.local.cqs.get(number as u32)?.user()),
            EventElement::Srq(number) => {
                EventElement::Srq(self.local.srqs.get(number as u32)?.user)
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
    fn name(&self) -> &str {
        self.device().name()
    }

    fn kind(&self) -> Kind {
        self.device().kind()
    }

    fn query_device(&self) -> Result<DeviceAttr> {
        let mut attr = self.device().query_device()?;
        let at_most = |value: &mut i32, limit: u32| *value = (*value).min(limit as i32);
        attr.max_qp_wr = attr.max_qp_wr.saturating_sub(HIDDEN_SENDS as i32);
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
        // Our locks are the only ones.
        let physical = PdInit { single_threaded: true };
        let pd = Arc::clone(self.device()).alloc_pd(physical)?;
        Ok(Arc::new(VirtualPd::new(self, pd, init.single_threaded)))
    }

    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        let physical = Arc::clone(self.device()).create_channel()?;
        Ok(Arc::new(VirtualChannel(ChannelCore::new(physical)?)))
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
        let of_event = channel.clone();
        let cq = self
            .local
            .cqs
            .try_add(|number| CqCore::new(&self.local, self.underlay(), number, &init, channel))?;
        if let Some(channel) = of_event {
            channel.add(&cq);
        }
        Ok(Arc::new(VirtualCq::new(cq)))
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        self.events.0.as_fd()
    }

    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        for underlay in &self.underlays {
            while let Some(event) = underlay.device.get_async_event()? {
                if let Some(event) = self.translate(underlay, event) {
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }
}
