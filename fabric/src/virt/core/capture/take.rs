//! A context that stands still, as an image.

use super::still::Still;
use crate::device::{AsyncEvent, EventElement};
use crate::error::{Error, Result};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::cq::CqCore;
use crate::virt::core::image::{
    About, ChannelImage, CqImage, EventImage, IdentityImage, Image, Link, QpImage,
};
use crate::virt::core::pd::PdCore;
use crate::virt::core::qp::Places;
use crate::virt::core::remap::{FIRST_PORT, Way};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the event of a completion may take to come behind it: hardware takes microseconds, and a suspended
/// context has waited for longer already.
const EVENT_LAG: Duration = Duration::from_micros(200);
/// Between two looks for it.
const LOOK: Duration = Duration::from_micros(20);

/// Writes the context down.
///
/// # Errors
/// Where a device is gone, or an object is not of this context.
pub(super) fn take(context: &VirtualContext, stills: &[Still]) -> Result<Image> {
    let (pds, cqs, srqs) = (context.pds.alive(), context.cqs.alive(), context.srqs.alive());
    let (pd_places, cq_places, srq_places) = (places(&pds), places(&cqs), places(&srqs));
    let pd_of = |pd: &Arc<PdCore>| place(&pd_places, pd, "protection domain");
    let (channels, cqs_images) = queues(context, &cqs)?;
    let mut regions = Vec::new();
    for mr in context.mrs.alive() {
        regions.extend(mr.image(pd_of(mr.pd())?));
    }
    let grant = context.local().grant();
    let image = |still: &Still| -> Result<QpImage> {
        let Still { qp, state, way, plan } = still;
        let [send_cq, recv_cq] = qp.both_cqs().map(|cq| match cq {
            Some(cq) => place(&cq_places, &cq, "completion queue"),
            None => Err(Error::invalid(format!("a CQ of queue pair {:#x} is gone", qp.qpn))),
        });
        let srq = qp.srq.as_ref().map(|srq| place(&srq_places, srq, "shared receive queue"));
        let places = Places {
            pd: pd_of(&qp.pd)?,
            send_cq: send_cq?,
            recv_cq: recv_cq?,
            srq: srq.transpose()?,
            link: match way {
                Way::Within(other) => Link::Within(*other as u32),
                Way::Gone(_) => Link::Gone,
                Way::Peer(..) | Way::Alone => Link::Alone,
            },
        };
        Ok(qp.image(*state, plan, &places))
    };
    Ok(Image {
        identity: IdentityImage {
            job: grant.job,
            process: grant.process,
            incarnation: grant.incarnation.0,
        },
        names: context.local().names(),
        mtu: context.underlay().device.query_port(FIRST_PORT)?.active_mtu,
        regions,
        channels,
        cqs: cqs_images,
        srqs: srqs.iter().map(|srq| Ok(srq.image(pd_of(&srq.pd)?))).collect::<Result<_>>()?,
        ahs: {
            let ahs = context.ahs.alive();
            ahs.iter().map(|ah| Ok(ah.image(pd_of(ah.pd())?))).collect::<Result<_>>()?
        },
        qps: stills.iter().map(image).collect::<Result<_>>()?,
        events: context.keep_events()?.iter().map(event).collect(),
        pds: pds.iter().map(|pd| pd.image()).collect(),
    })
}

/// The CQs, and the channels with the events that nobody has taken.
fn queues(
    context: &VirtualContext,
    cqs: &[Arc<CqCore>],
) -> Result<(Vec<ChannelImage>, Vec<CqImage>)> {
    let channels = context.channels.alive();
    let until = Instant::now() + EVENT_LAG;
    loop {
        cqs.iter().for_each(|cq| cq.settle());
        channels.iter().for_each(|channel| channel.take_all_events());
        if !cqs.iter().any(|cq| cq.owes_event()) || Instant::now() >= until {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let mut channel_images: Vec<_> =
        channels.iter().map(|channel| ChannelImage { ready: channel.ready() }).collect();
    let channel_places = places(&channels);
    let mut images = Vec::with_capacity(cqs.len());
    for cq in cqs {
        let at = match cq.channel() {
            Some(channel) => Some(place(&channel_places, channel, "completion channel")?),
            None => None,
        };
        let (image, told) = cq.image(at);
        if let Some(at) = at.filter(|_| told) {
            channel_images[at as usize].ready.push(cq.user());
        }
        images.push(image);
    }
    Ok((channel_images, images))
}

/// Where things are among others of their kind, by address.
fn places<T>(all: &[Arc<T>]) -> HashMap<*const T, u32> {
    // As many as fit into memory, and far below 2³².
    all.iter().enumerate().map(|(at, it)| (Arc::as_ptr(it), at as u32)).collect()
}

fn place<T>(all: &HashMap<*const T, u32>, one: &Arc<T>, what: &str) -> Result<u32> {
    let at = all.get(&Arc::as_ptr(one)).copied();
    at.ok_or_else(|| Error::invalid(format!("a {what} of another context")))
}

fn event(event: &AsyncEvent) -> EventImage {
    let about = match event.element {
        EventElement::Qp(qpn) => About::Qp(qpn),
        EventElement::Cq(user) => About::Cq(user),
        EventElement::Srq(user) => About::Srq(user),
        EventElement::Port(port) => About::Port(port),
        EventElement::Device => About::Device,
    };
    EventImage { event_type: event.event_type, about }
}
