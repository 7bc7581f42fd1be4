//! Whether an image is one of what a context can be.
//!
//! Behind this, whoever restores from it indexes, and fills windows, without asking again.

use super::parts::{Dealt, Image, Link, QpImage, ReceiveImage, RequestImage};
use crate::abi::{access, qp_state, qp_type, send_flags};
use crate::error::{Error, Result};
use crate::virt::core::deal::{FIRST_KEY, FIRST_QPN};
use crate::virt::core::tables::{MAX_KEYS, MAX_QPS, key_index, qpn_index};
use sojourn_logging::{MAX_SEQ, Opcode};
use std::collections::HashSet;

/// Deepest window.
const MAX_DEPTH: u32 = 1 << 24;
/// Elements of a request: as many as a window counts.
const MAX_ELEMENTS: u32 = u8::MAX as u32;
/// Flags that exist, beside [`send_flags::INLINE`].
const FLAGS: u32 =
    send_flags::FENCE | send_flags::SIGNALED | send_flags::SOLICITED | send_flags::IP_CSUM;

/// An error that says what, and of whom.
fn wrong<T>(whose: &str, what: &str) -> Result<T> {
    Err(Error::invalid(format!("captured windows are damaged: {whose}: {what}")))
}

fn ensure(holds: bool, whose: &str, what: &str) -> Result<()> {
    if holds { Ok(()) } else { wrong(whose, what) }
}

/// # Errors
/// `EINVAL` that names the first thing that cannot be.
pub(super) fn check(image: &Image) -> Result<()> {
    ensure(image.identity.process.0 != 0, "the process", "its number is 0")?;
    let qpns = check_dealt(&image.names.qpns, FIRST_QPN, MAX_QPS, "queue pair numbers")?;
    let keys = check_dealt(&image.names.keys, FIRST_KEY, MAX_KEYS, "keys")?;
    let domains = image.pds.len();
    let mut seen = HashSet::new();
    for region in &image.regions {
        let whose = format!("region {:#x}", region.key);
        let index = key_index(region.key) as u32;
        keys.has(index, &whose)?;
        ensure(seen.insert(index), &whose, "it is there twice")?;
        ensure((region.pd as usize) < domains, &whose, "it has no protection domain")?;
        ensure(region.access & access::MW_BIND == 0, &whose, "there are no memory windows")?;
        let end = region.addr.checked_add(region.length);
        let is_memory =
            region.length > 0 && end.is_some() && usize::try_from(region.length).is_ok();
        ensure(is_memory, &whose, "no memory is there")?;
    }
    for (at, cq) in image.cqs.iter().enumerate() {
        let whose = format!("completion queue {at}");
        ensure(cq.cqe > 0 && cq.cqe <= i32::MAX as u32, &whose, "its size cannot be")?;
        let channel = cq.channel.is_none_or(|it| (it as usize) < image.channels.len());
        ensure(channel, &whose, "its channel is not there")?;
        let armed = cq.armed == 0 || (cq.armed <= 2 && cq.channel.is_some());
        ensure(armed, &whose, "it cannot be armed so")?;
    }
    for (at, srq) in image.srqs.iter().enumerate() {
        let whose = format!("shared receive queue {at}");
        ensure((srq.pd as usize) < domains, &whose, "it has no protection domain")?;
        ensure(
            srq.max_wr <= MAX_DEPTH && srq.max_sge <= MAX_ELEMENTS,
            &whose,
            "its size cannot be",
        )?;
        ensure(srq.limit <= srq.max_wr, &whose, "its limit is above its size")?;
        check_receives(&srq.receives, srq.max_wr, srq.max_sge, &whose)?;
    }
    seen.clear();
    for ah in &image.ahs {
        let whose = format!("address handle {}", ah.number);
        let dealt = ah.number != 0 && ah.number <= image.names.last_ah;
        ensure(dealt && seen.insert(ah.number), &whose, "its number was not dealt to it")?;
        ensure((ah.pd as usize) < domains, &whose, "it has no protection domain")?;
    }
    seen.clear();
    for at in 0..image.qps.len() {
        let whose = format!("queue pair {:#x}", image.qps[at].qpn);
        let index = qpn_index(image.qps[at].qpn) as u32;
        ensure(image.qps[at].qpn <= crate::abi::MASK_24, &whose, "its number has 24 bits")?;
        qpns.has(index, &whose)?;
        ensure(seen.insert(index), &whose, "it is there twice")?;
        check_qp(image, at, &whose)?;
    }
    Ok(())
}

/// Names that were dealt and not given back.
struct Names<'a> {
    first: u32,
    next: u32,
    resting: HashSet<&'a u32>,
}

impl Names<'_> {
    fn has(&self, index: u32, whose: &str) -> Result<()> {
        let dealt = (self.first..self.next).contains(&index) && !self.resting.contains(&index);
        ensure(dealt, whose, "its name was not dealt to it")
    }
}

fn check_dealt<'a>(dealt: &'a Dealt, first: u32, end: u32, whose: &str) -> Result<Names<'a>> {
    let Dealt { next, resting, generations } = dealt;
    ensure((first..=end).contains(next), whose, "more were dealt than there are")?;
    ensure(generations.len() <= *next as usize, whose, "there are too many generations")?;
    let is_dealt = |index: &u32| (first..*next).contains(index);
    ensure(resting.iter().all(is_dealt), whose, "one rests that was not dealt")?;
    let set: HashSet<&u32> = resting.iter().collect();
    ensure(set.len() == resting.len(), whose, "one rests twice")?;
    Ok(Names { first, next: *next, resting: set })
}

fn check_receives(all: &[ReceiveImage], depth: u32, max: u32, whose: &str) -> Result<()> {
    ensure(all.len() <= depth as usize, whose, "it has more receives than there is room for")?;
    let fits = |it: &ReceiveImage| it.elements.len() <= max as usize;
    ensure(all.iter().all(fits), whose, "a receive has too many elements")
}

fn check_qp(image: &Image, at: usize, whose: &str) -> Result<()> {
    let qp = &image.qps[at];
    let cap = qp.cap();
    ensure(
        matches!(qp.qp_type, qp_type::RC | qp_type::UC | qp_type::UD),
        whose,
        "there is no such type",
    )?;
    ensure((qp.pd as usize) < image.pds.len(), whose, "it has no protection domain")?;
    let cqs = image.cqs.len();
    let has_cqs = (qp.send_cq as usize) < cqs && (qp.recv_cq as usize) < cqs;
    ensure(has_cqs, whose, "it has no completion queue")?;
    let depths = cap.max_send_wr <= MAX_DEPTH && cap.max_recv_wr <= MAX_DEPTH;
    let widths = cap.max_send_sge <= MAX_ELEMENTS && cap.max_recv_sge <= MAX_ELEMENTS;
    ensure(depths && widths && cap.max_inline_data <= MAX_DEPTH, whose, "its size cannot be")?;
    if let Some(srq) = qp.srq {
        ensure((srq as usize) < image.srqs.len(), whose, "its shared receive queue is not there")?;
        ensure(cap.max_recv_wr == 0, whose, "it has receives of its own, and shared ones")?;
    }
    let known = [qp_state::RESET, qp_state::INIT, qp_state::RTR, qp_state::RTS, qp_state::ERR];
    ensure(known.contains(&qp.state), whose, "it is in no state that one can be captured in")?;
    let connected = qp.qp_type != qp_type::UD && qp.is_connected();
    match qp.link {
        Link::Alone => ensure(!connected, whose, "it is connected to nobody")?,
        Link::Gone => ensure(connected, whose, "it cannot be connected")?,
        Link::Within(other) => {
            let back = image.qps.get(other as usize).is_some_and(|it| {
                it.link == Link::Within(at as u32) && it.qp_type == qp.qp_type && it.is_connected()
            });
            ensure(connected && back, whose, "its peer is not connected to it")?;
        }
    }
    ensure(qp.recvs.first <= MAX_SEQ, whose, "it cannot have had so many receives")?;
    check_receives(&qp.recvs.entries, cap.max_recv_wr, cap.max_recv_sge.max(1), whose)?;
    check_sends(qp, whose)
}

fn check_sends(qp: &QpImage, whose: &str) -> Result<()> {
    let (cap, sends) = (qp.cap(), &qp.sends);
    ensure(sends.first <= MAX_SEQ, whose, "it cannot have had so many requests")?;
    let n = sends.entries.len();
    ensure(n <= cap.max_send_wr as usize, whose, "it has more requests than there is room for")?;
    ensure(sends.handed as usize <= n, whose, "more requests were handed than there are")?;
    for request in &sends.entries {
        check_request(qp, request, whose)?;
    }
    if let Some(past) = sends.past {
        let fits = past.base <= sends.first && past.messages <= MAX_SEQ;
        ensure(fits, whose, "its connection has a past that cannot be")?;
    }
    let at_err = qp.state == qp_state::ERR;
    ensure(at_err || sends.failing.is_none(), whose, "it fails, and is not at ERR")?;
    let in_order = rises(sends.executed.iter().copied(), sends.handed)
        && rises(sends.replays.iter().map(|(at, _)| *at), sends.handed);
    ensure(in_order, whose, "what was handed is not in order")?;
    for (at, skip) in &sends.replays {
        let once = sends.executed.binary_search(at).is_err();
        ensure(once, whose, "a request was executed, and is to be done again")?;
        let request = &sends.entries[*at as usize];
        let bytes: u64 = request.elements.iter().map(|it| u64::from(it.1)).sum();
        let write = request.opcode <= Opcode::WriteImm as u8;
        let fits = *skip == 0 || (write && u64::from(*skip) <= bytes + request.inline.len() as u64);
        ensure(fits, whose, "a request is to be done again from where it has nothing")?;
    }
    let decided = sends.executed.len() + sends.replays.len() == sends.handed as usize;
    ensure(at_err || decided, whose, "of a request nothing says what has become of it")
}

/// Each is greater than the one before, and all are below `end`.
fn rises(mut places: impl Iterator<Item = u32>, end: u32) -> bool {
    let mut from = 0;
    places.all(|at| {
        let fits = from <= at && at < end;
        from = at.saturating_add(1);
        fits
    })
}

fn check_request(qp: &QpImage, request: &RequestImage, whose: &str) -> Result<()> {
    let cap = qp.cap();
    let opcode = request.entry().map(|it| it.opcode);
    let offered = opcode.is_some_and(|it| match qp.qp_type {
        qp_type::RC => true,
        qp_type::UC => !it.is_one_sided() || matches!(it, Opcode::Write | Opcode::WriteImm),
        _ => !it.is_one_sided(),
    });
    ensure(offered, whose, "a request of a kind that it does not have")?;
    let inline = u32::from(request.flags) & send_flags::INLINE != 0;
    let known = u32::from(request.flags) & !(FLAGS | send_flags::INLINE) == 0;
    ensure(known, whose, "a request with flags that do not exist")?;
    let (elements, bytes) = (request.elements.len(), request.inline.len());
    let fits = if inline {
        elements == 0 && bytes <= cap.max_inline_data as usize
    } else {
        bytes == 0 && elements <= cap.max_send_sge.max(1) as usize
    };
    ensure(fits, whose, "a request with more than there is room for")
}
