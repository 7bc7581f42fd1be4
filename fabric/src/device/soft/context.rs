//! The opened device, as the program holds it.

use super::channel::{Channel, ChannelHandle, Events};
use super::core::Core;
use super::cq::CqHandle;
use super::fault;
use super::limits::{
    BLOCK_QPNS, MAX_CQ, MAX_CQE, MAX_MESSAGE, MAX_MR, MAX_QP, MAX_RD_ATOMIC, MAX_SGE, MAX_WR,
};
use super::options::{Mode, Options};
use super::pace;
use super::pd::Pd;
use super::service;
use super::tcp;
use crate::abi::{self, Gid, atomic_cap, device_cap, link_layer, mtu, port_state};
use crate::device::{
    AsyncEvent, CqInit, DeviceChannel, DeviceContext, DeviceCq, DevicePd, Kind, PdInit,
};
use crate::{Error, Result};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

/// The one port of a soft device.
pub(super) const PORT: u8 = 1;
/// Entries of its GID table and of its P_Key table.
pub(super) const GIDS: u32 = 1;
/// The default partition, full member.
const PKEY: u16 = 0xffff;

/// An opened soft device. Every object that comes from it keeps it open.
pub(super) struct Context {
    pub(super) core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

impl Context {
    pub(super) fn open(name: &str, options: Options) -> Result<Arc<Context>> {
        // Peers copy into and out of this process. Where Yama restricts that to descendants, it
        // must be allowed explicitly; elsewhere this is refused with EINVAL and not needed.
        // SAFETY: plain system call.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
        let core = Core::new(name, options)?;
        fault::opened(&core);
        let mut context = Context { core: Arc::clone(&core), threads: Vec::new() };
        context.threads.push(service::start(Arc::clone(&core))?);
        if let Mode::Async(pace) = core.options.mode {
            context.threads.push(pace::start(core, pace)?);
        }
        Ok(Arc::new(context))
    }

    fn port(&self, port: u8) -> Result<()> {
        if port == PORT {
            return Ok(());
        }
        Err(Error::invalid(format!("port {port}: {} has port {PORT} only", self.core.name)))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.core.stop.store(true, Ordering::Release);
        self.core.wake();
        self.core.work.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(tcp) = &self.core.tcp {
            tcp.close();
        }
        // Closing the sockets tells the peers.
        self.core.direct.lock().clear();
        self.core.links.write().clear();
    }
}

/// The GID of a context: it says where on the network the context is, if anywhere.
pub(super) fn gid_of(core: &Core) -> Gid {
    tcp::gid(core.tcp.as_ref().map(|tcp| tcp.endpoint()))
}

impl DeviceContext for Context {
    fn name(&self) -> &str {
        &self.core.name
    }

    fn kind(&self) -> Kind {
        Kind::Soft
    }

    fn query_device(&self) -> Result<abi::DeviceAttr> {
        // SAFETY: plain integers, for which zero is a value.
        let mut attr: abi::DeviceAttr = unsafe { std::mem::zeroed() };
        let version = env!("CARGO_PKG_VERSION").as_bytes();
        let shown = version.len().min(attr.fw_ver.len() - 1);
        attr.fw_ver[..shown].copy_from_slice(&version[..shown]);
        attr.node_guid = (0x0200_0000_0000_0000 | u64::from(self.core.options.lid)).to_be();
        attr.sys_image_guid = attr.node_guid;
        attr.max_mr_size = u64::MAX >> 1;
        attr.page_size_cap = !0xfff;
        attr.max_qp = (MAX_QP - BLOCK_QPNS as usize) as i32;
        attr.max_qp_wr = MAX_WR as i32;
        attr.device_cap_flags = device_cap::CURR_QP_STATE_MOD
            | device_cap::SYS_IMAGE_GUID
            | device_cap::RC_RNR_NAK_GEN
            | device_cap::N_NOTIFY_CQ;
        attr.max_sge = MAX_SGE as i32;
        attr.max_sge_rd = MAX_SGE as i32;
        attr.max_cq = MAX_CQ as i32;
        attr.max_cqe = MAX_CQE as i32;
        attr.max_mr = (MAX_MR - 1) as i32;
        attr.max_pd = i32::MAX;
        attr.max_qp_rd_atom = MAX_RD_ATOMIC.into();
        attr.max_res_rd_atom = i32::from(MAX_RD_ATOMIC) * MAX_QP as i32;
        attr.max_qp_init_rd_atom = MAX_RD_ATOMIC.into();
        // The owner's CPU executes them, so they are atomic to its own atomics too.
        attr.atomic_cap = atomic_cap::GLOB;
        attr.max_ah = i32::MAX;
        attr.max_srq = MAX_QP as i32;
        attr.max_srq_wr = MAX_WR as i32;
        attr.max_srq_sge = MAX_SGE as i32;
        attr.max_pkeys = 1;
        attr.local_ca_ack_delay = 0;
        attr.phys_port_cnt = PORT;
        Ok(attr)
    }

    fn query_port(&self, port: u8) -> Result<abi::PortAttr> {
        self.port(port)?;
        let down = self.core.region.down();
        Ok(abi::PortAttr {
            state: if down { port_state::DOWN } else { port_state::ACTIVE },
            max_mtu: mtu::MTU_4096,
            active_mtu: mtu::MTU_4096,
            gid_tbl_len: GIDS as i32,
            max_msg_sz: MAX_MESSAGE,
            pkey_tbl_len: 1,
            lid: self.core.options.lid,
            sm_lid: self.core.options.lid,
            max_vl_num: 1,
            // 4X at EDR: what a link of this kind says of itself.
            active_width: 2,
            active_speed: 32,
            // Disabled, or LinkUp.
            phys_state: if down { 3 } else { 5 },
            link_layer: link_layer::INFINIBAND,
            ..abi::PortAttr::default()
        })
    }

    fn query_gid(&self, port: u8, index: u32) -> Result<Gid> {
        self.port(port)?;
        if index >= GIDS {
            return Err(Error::invalid(format!(
                "GID index {index}: {} has {GIDS}",
                self.core.name
            )));
        }
        Ok(gid_of(&self.core))
    }

    fn addresses_by_gid(&self, port: u8) -> Result<bool> {
        self.port(port)?;
        Ok(self.core.tcp.is_some())
    }

    fn query_pkey(&self, port: u8, index: u32) -> Result<u16> {
        self.port(port)?;
        if index != 0 {
            return Err(Error::invalid(format!("P_Key index {index}: {} has 1", self.core.name)));
        }
        Ok(PKEY.to_be())
    }

    fn alloc_pd(self: Arc<Self>, _init: PdInit) -> Result<Arc<dyn DevicePd>> {
        let id = self.core.numbers.lock().pd();
        Ok(Arc::new(Pd { id, context: self }))
    }

    fn create_channel(self: Arc<Self>) -> Result<Arc<dyn DeviceChannel>> {
        let channel = Channel { core: Arc::clone(&self.core), events: Events::new()? };
        Ok(Arc::new(ChannelHandle { channel: Arc::new(channel), _context: self }))
    }

    fn create_cq(self: Arc<Self>, init: CqInit) -> Result<Arc<dyn DeviceCq>> {
        Ok(Arc::new(CqHandle::create(self, &init)?))
    }

    fn async_fd(&self) -> BorrowedFd<'_> {
        self.core.events.fd()
    }

    fn get_async_event(&self) -> Result<Option<AsyncEvent>> {
        Ok(self.core.events.pop())
    }
}
