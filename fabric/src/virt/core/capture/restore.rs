//! An image as a context.
//!
//! In the order in which nothing needs what is not there yet: names, domains, regions, channels, CQs with
//! what the program has not read, shared receive queues with their receives, address handles, queue pairs
//! with their windows; then queue pairs at ERR complete what they have, CQs are armed, connections are
//! made, receives are handed, and at last requests. Where a step fails all that was made is let go of,
//! and nothing was executed.

use super::memory::Mapped;
use crate::abi::{access, qp_state, qp_type};
use crate::device::{
    AsyncEvent, CqInit, DeviceAh, DeviceChannel, DeviceContext, DeviceCq, DeviceMr, DevicePd,
    DeviceQp, DeviceSrq, EventElement, SrqInit,
};
use crate::error::{Error, Result};
use crate::virt::core::ah::{AhCore, VirtualAh};
use crate::virt::core::channel::{ChannelCore, VirtualChannel};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::cq::{CqCore, VirtualCq};
use crate::virt::core::image::{self, About, Image, Link, QpImage, RegionImage};
use crate::virt::core::local::Local;
use crate::virt::core::mr::VirtualMr;
use crate::virt::core::pd::{PdCore, QpWanted, VirtualPd};
use crate::virt::core::policy::Policy;
use crate::virt::core::qp::{Fresh, VirtualQp};
use crate::virt::core::remap::FIRST_PORT;
use crate::virt::core::retain::Retention;
use crate::virt::core::srq::{SrqCore, VirtualSrq};
use std::sync::Arc;

/// A region of a captured context: memory that is to be where it was before the context is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedRegion {
    /// Its key.
    pub key: u32,
    /// Address of its first byte.
    pub addr: u64,
    /// In bytes.
    pub length: u64,
    /// Bits of [`crate::abi::access`].
    pub access: u32,
}

/// The regions of a captured context, in the order in which they were registered.
///
/// # Errors
/// `EINVAL` where the bytes are damaged, `EOPNOTSUPP` where they are of another version.
pub fn captured_regions(bytes: &[u8]) -> Result<Vec<CapturedRegion>> {
    let region = |it: &RegionImage| CapturedRegion {
        key: it.key,
        addr: it.addr,
        length: it.length,
        access: it.access,
    };
    Ok(image::decode(bytes)?.regions.iter().map(region).collect())
}

/// What was made anew, in the order in which it was made first.
pub struct RestoredCore {
    /// The context.
    pub context: Arc<dyn DeviceContext>,
    /// Protection domains.
    pub pds: Vec<Arc<dyn DevicePd>>,
    /// Regions, with the places of their domains.
    pub mrs: Vec<(CapturedRegion, Arc<dyn DeviceMr>)>,
    /// Completion channels.
    pub channels: Vec<Arc<dyn DeviceChannel>>,
    /// Completion queues, with the `user` values of their events.
    pub cqs: Vec<(u64, Arc<dyn DeviceCq>)>,
    /// Shared receive queues, with the `user` values of their events.
    pub srqs: Vec<(u64, Arc<dyn DeviceSrq>)>,
    /// Address handles.
    pub ahs: Vec<Arc<dyn DeviceAh>>,
    /// Queue pairs.
    pub qps: Vec<Arc<dyn DeviceQp>>,
}

/// What is being made.
struct Site<'a> {
    context: &'a Arc<VirtualContext>,
    image: &'a Image,
    pds: Vec<Arc<VirtualPd>>,
    mrs: Vec<Arc<VirtualMr>>,
    channels: Vec<Arc<ChannelCore>>,
    cqs: Vec<Arc<CqCore>>,
    srqs: Vec<Arc<SrqCore>>,
    ahs: Vec<Arc<AhCore>>,
    qps: Vec<Arc<VirtualQp>>,
}

/// Makes a captured context anew.
///
/// # Safety
/// As [`Process::restore`](crate::virt::Process::restore).
///
/// # Errors
/// As that says.
pub(in crate::virt::core) unsafe fn restore(
    local: &Arc<Local>,
    device: Arc<dyn DeviceContext>,
    policy: Policy,
    bytes: &[u8],
) -> Result<RestoredCore> {
    let image = image::decode(bytes)?;
    check_identity(local, &image)?;
    if policy.retention != Retention::Descriptor {
        return Err(Error::unsupported(format!(
            "a captured context cannot be restored into one that keeps what it sends ({})",
            Retention::VARIABLE
        )));
    }
    check_memory(&image)?;
    check_device(&*device, &image)?;
    let context = VirtualContext::open(local, device, policy)?;
    local.take_over(&image)?;
    let mut site = Site {
        context: &context,
        image: &image,
        pds: Vec::new(),
        mrs: Vec::new(),
        channels: Vec::new(),
        cqs: Vec::new(),
        srqs: Vec::new(),
        ahs: Vec::new(),
        qps: Vec::new(),
    };
    {
        // Nobody else has the context; a move of a peer, which looks for all, finds it unsettled.
        let _settled = context.settled();
        // SAFETY: the caller's promise.
        unsafe { site.make_regions() }?;
        site.make_queues()?;
        site.make_queue_pairs()?;
        site.go_on()?;
    }
    for event in &image.events {
        context
            .raise(AsyncEvent { event_type: event.event_type, element: element(event.about) })?;
    }
    Ok(site.finish())
}

fn element(about: About) -> EventElement {
    match about {
        About::Qp(qpn) => EventElement::Qp(qpn),
        About::Cq(user) => EventElement::Cq(user),
        About::Srq(user) => EventElement::Srq(user),
        About::Port(port) => EventElement::Port(port),
        About::Device => EventElement::Device,
    }
}

/// Names belong to a process of a job, and to its latest life.
fn check_identity(local: &Local, image: &Image) -> Result<()> {
    let (own, was) = (local.grant(), image.identity);
    if (own.job, own.process) != (was.job, was.process) {
        return Err(Error::invalid(format!(
            "captured windows of {} of job {:#x}: this is {} of job {:#x}, which has other names; \
             join as that process",
            was.process, was.job.0, own.process, own.job.0
        )));
    }
    if own.incarnation.0 < was.incarnation {
        return Err(Error::invalid(format!(
            "captured windows of incarnation {} of {}: this is an earlier one, {}",
            was.incarnation, was.process, own.incarnation.0
        )));
    }
    Ok(())
}

fn check_memory(image: &Image) -> Result<()> {
    let mapped = Mapped::now()?;
    for RegionImage { key, addr, length, access, .. } in &image.regions {
        let writes = access & access::LOCAL_WRITE != 0;
        if let Some(missing) = mapped.missing(*addr, *length, writes) {
            return Err(Error::new(
                libc::EFAULT,
                format!(
                    "region {key:#x} was {length} bytes at {addr:#x}, and {} is mapped at {missing:#x}: \
                     restore memory first, where it was",
                    if writes { "no memory that can be written" } else { "no memory" },
                ),
            ));
        }
    }
    Ok(())
}

/// What no creation would show.
fn check_device(device: &dyn DeviceContext, image: &Image) -> Result<()> {
    let (attr, name) = (device.query_device()?, device.name());
    let port = device.query_port(FIRST_PORT)?;
    let check = |what: &str, has: u64, whose: &str, needs: u64| {
        if needs <= has {
            return Ok(());
        }
        let text = format!("{name} has {what} of {has}, and {whose} needs {needs}");
        Err(Error::invalid(text))
    };
    let limit = |value: i32| value.max(0) as u64;
    check("a max_qp", limit(attr.max_qp), "this context", image.qps.len() as u64)?;
    for cq in &image.cqs {
        check("a max_cqe", limit(attr.max_cqe), "a completion queue", cq.cqe.into())?;
    }
    let atomics = image.regions.iter().any(|it| it.access & access::REMOTE_ATOMIC != 0);
    if atomics && attr.atomic_cap == 0 {
        return Err(Error::invalid(format!(
            "{name} has no atomics, and a memory region allows them (REMOTE_ATOMIC)"
        )));
    }
    for qp in &image.qps {
        let whose = format!("queue pair {:#x}", qp.qpn);
        let set = qp.attr.attr(qp.state);
        let (has, needs) = (limit(attr.max_qp_init_rd_atom), set.max_rd_atomic.into());
        check("a max_qp_init_rd_atom", has, &whose, needs)?;
        let (has, needs) = (limit(attr.max_qp_rd_atom), set.max_dest_rd_atomic.into());
        check("a max_qp_rd_atom", has, &whose, needs)?;
        check("a max_msg_sz", port.max_msg_sz.into(), &whose, qp.longest_message())?;
        if qp.qp_type == qp_type::UD {
            let bytes = |mtu| crate::abi::mtu_bytes(mtu).unwrap_or(0).into();
            check("an MTU for datagrams", bytes(port.active_mtu), &whose, bytes(image.mtu))?;
        }
    }
    Ok(())
}

impl Site<'_> {
    /// # Safety
    /// As [`restore`].
    unsafe fn make_regions(&mut self) -> Result<()> {
        let Site { context, image, .. } = *self;
        for pd in &image.pds {
            let core = PdCore::new(Arc::clone(context), pd.single_threaded)?;
            context.pds.add(&core);
            self.pds.push(Arc::new(VirtualPd::new(core)));
        }
        for RegionImage { key, pd, addr, length, access } in &image.regions {
            let pd = &self.pds[*pd as usize].0;
            let (addr, length) = (*addr as *mut std::ffi::c_void, *length as usize);
            // SAFETY: the caller's promise; the memory was looked for.
            let mr = unsafe { VirtualMr::register_as(pd, *key, addr, length, *access) };
            let mr = mr.map_err(|error| {
                error.context(format_args!("region {key:#x} of {length} bytes at {addr:p}"))
            })?;
            let mr = Arc::new(mr);
            context.mrs.add(&mr);
            self.mrs.push(mr);
        }
        Ok(())
    }

    fn make_queues(&mut self) -> Result<()> {
        let Site { context, image, .. } = *self;
        for channel in &image.channels {
            let core = ChannelCore::new(&context.underlays())?;
            channel.ready.iter().for_each(|user| core.announce(*user));
            context.channels.add(&core);
            self.channels.push(core);
        }
        for cq in &image.cqs {
            let channel = cq.channel.map(|at| Arc::clone(&self.channels[at as usize]));
            let init = CqInit {
                cqe: cq.cqe,
                user: cq.user,
                single_threaded: cq.single_threaded,
                ..CqInit::default()
            };
            let core = context.add_cq(&init, channel)?;
            core.fill(cq);
            self.cqs.push(core);
        }
        for srq in &image.srqs {
            let attr =
                crate::abi::SrqAttr { max_wr: srq.max_wr, max_sge: srq.max_sge, srq_limit: 0 };
            let made = self.pds[srq.pd as usize].make_srq(&SrqInit { attr, user: srq.user })?;
            made.fill(srq)?;
            self.srqs.push(made);
        }
        for ah in &image.ahs {
            let pd = &self.pds[ah.pd as usize].0;
            let core = AhCore::numbered(pd, &(&ah.to).into(), Some(ah.number))?;
            context.ahs.add(&core);
            self.ahs.push(core);
        }
        Ok(())
    }

    fn make_queue_pairs(&mut self) -> Result<()> {
        for image in &self.image.qps {
            let whose = |error: Error| error.context(format_args!("queue pair {:#x}", image.qpn));
            let wanted = QpWanted {
                qp_type: image.qp_type,
                cap: image.cap(),
                sig_all: image.sig_all,
                send_cq: Arc::clone(&self.cqs[image.send_cq as usize]),
                recv_cq: Arc::clone(&self.cqs[image.recv_cq as usize]),
                srq: image.srq.map(|at| Arc::clone(&self.srqs[at as usize])),
                qpn: Some(image.qpn),
            };
            let qp = self.pds[image.pd as usize].make_qp(wanted).map_err(whose)?;
            qp.core().fill(image).map_err(whose)?;
            self.qps.push(Arc::new(qp));
        }
        Ok(())
    }

    /// Connects queue pairs, and hands what is in their windows.
    fn go_on(&self) -> Result<()> {
        let mut fresh = Unattached(Vec::new());
        for (qp, image) in self.qps.iter().zip(&self.image.qps) {
            let made = qp
                .core()
                .fresh_here(image.state)
                .map_err(|error| error.context(format_args!("queue pair {:#x}", image.qpn)))?;
            fresh.0.push((Arc::clone(qp), Some(made)));
        }
        self.connect(&mut fresh)?;
        // From here on nothing fails.
        self.attach(&mut fresh, |image| image.state == qp_state::ERR);
        for (cq, image) in self.cqs.iter().zip(&self.image.cqs) {
            cq.arm_again(image)?;
        }
        for (qp, fresh) in &fresh.0 {
            if let Some(fresh) = fresh {
                qp.core().receive_on(fresh);
            }
        }
        self.attach(&mut fresh, |_| true);
        Ok(())
    }

    fn connect(&self, all: &mut Unattached) -> Result<()> {
        for (at, image) in self.image.qps.iter().enumerate() {
            if image.qp_type == qp_type::UD || !image.is_connected() {
                continue;
            }
            let end = match image.link {
                Link::Within(other) => {
                    let (qp, fresh) = &all.0[other as usize];
                    match fresh {
                        Some(fresh) => Some((qp.core().end_of(fresh)?, fresh.psn)),
                        None => None,
                    }
                }
                Link::Gone | Link::Alone => None,
            };
            let (qp, fresh) = &mut all.0[at];
            if let Some(fresh) = fresh {
                qp.core().connect_anew(fresh, end).map_err(|error| {
                    error.context(format_args!("connecting queue pair {:#x} again", image.qpn))
                })?;
            }
        }
        Ok(())
    }

    /// Attaches those of which `which` says so.
    fn attach(&self, all: &mut Unattached, which: impl Fn(&QpImage) -> bool) {
        let mut cut = Vec::new();
        for (at, image) in self.image.qps.iter().enumerate() {
            let (qp, fresh) = &mut all.0[at];
            if !which(image) {
                continue;
            }
            if let Some(fresh) = fresh.take()
                && let Some(landed) = qp.core().attach_anew(fresh, image)
                && let Link::Within(other) = image.link
            {
                all.0[other as usize].0.core().expect_cut(landed);
                cut.push(at);
            }
        }
        cut.into_iter().for_each(|at| all.0[at].0.core().release());
    }

    fn finish(self) -> RestoredCore {
        let Site { context, image, pds, mrs, channels, cqs, srqs, ahs, qps } = self;
        let region = |it: &RegionImage| CapturedRegion {
            key: it.key,
            addr: it.addr,
            length: it.length,
            access: it.access,
        };
        let users = image.cqs.iter().map(|cq| cq.user);
        let srq_users = image.srqs.iter().map(|srq| srq.user);
        RestoredCore {
            context: Arc::clone(context) as _,
            pds: pds.into_iter().map(|pd| pd as _).collect(),
            mrs: image.regions.iter().map(region).zip(mrs.into_iter().map(|mr| mr as _)).collect(),
            channels: channels.into_iter().map(|it| Arc::new(VirtualChannel(it)) as _).collect(),
            cqs: users.zip(cqs.into_iter().map(|it| Arc::new(VirtualCq::new(it)) as _)).collect(),
            srqs: srq_users.zip(srqs.into_iter().map(|it| Arc::new(VirtualSrq(it)) as _)).collect(),
            ahs: ahs.into_iter().map(|it| Arc::new(VirtualAh(it)) as _).collect(),
            qps: qps.into_iter().map(|it| it as _).collect(),
        }
    }
}

/// Queue pairs with what they are to be attached to.
struct Unattached(Vec<(Arc<VirtualQp>, Option<Fresh>)>);

impl Drop for Unattached {
    fn drop(&mut self) {
        for (qp, fresh) in &mut self.0 {
            if fresh.take().is_some() {
                qp.core().stay_unattached();
            }
        }
    }
}
