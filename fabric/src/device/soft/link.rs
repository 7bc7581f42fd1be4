//! A link: what an initiator context shares with one target context, in one sealed memfd.
//!
//! Links have a direction, so two contexts that address each other make two, and no race of
//! simultaneous connects has to be resolved. The initiator makes the memory and passes it on
//! (`peer`). It holds:
//!
//! - the request ring (initiator → target) and the response ring (target → initiator);
//! - the slots of the initiator's copies, which the target may revoke, and those of the
//!   target's own copies out of the initiator's memory, which the initiator may revoke.

use super::inflight::{SLOTS_BYTES, Slots};
use super::lock::Lock;
use super::peer::Peer;
use super::qp::Qp;
use super::ring::{CELL, Consumer, Producer, RingHead, RingPlace, Watch};
use super::shm::Mapping;
use crate::Result;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const REQUEST_CELLS: usize = 4096;
const RESPONSE_CELLS: usize = 1024;
const PUSH_AT: usize = 4096;
const PULL_AT: usize = PUSH_AT + SLOTS_BYTES;
const REQUESTS_AT: usize = PULL_AT + SLOTS_BYTES;
const RESPONSES_AT: usize = REQUESTS_AT + REQUEST_CELLS * CELL;
/// Bytes of a link's shared memory.
const LINK_BYTES: usize = RESPONSES_AT + RESPONSE_CELLS * CELL;

const _: () = assert!(2 * size_of::<RingHead>() <= PUSH_AT);

/// Cells of the response ring that requests under way may have set aside for their answers, so
/// that it never fills: one cell stays free behind a record, the rest is slack.
pub(super) const MAX_CREDIT: u32 = RESPONSE_CELLS as u32 - 64;

const REQUESTS: RingPlace = RingPlace { head: 0, cells: REQUESTS_AT, count: REQUEST_CELLS };
const RESPONSES: RingPlace =
    RingPlace { head: size_of::<RingHead>(), cells: RESPONSES_AT, count: RESPONSE_CELLS };

/// Makes the memory of a link.
pub(super) fn create() -> Result<(OwnedFd, Arc<Mapping>)> {
    let (fd, mapping) = Mapping::create(c"sojourn-soft-link", LINK_BYTES)?;
    Ok((fd, Arc::new(mapping)))
}

/// Maps the memory of a link that a peer made.
pub(super) fn open(fd: &OwnedFd) -> Result<Arc<Mapping>> {
    Ok(Arc::new(Mapping::open(fd, LINK_BYTES)?))
}

/// The initiator's end.
pub(super) struct Outbound {
    /// Who is on the other side.
    pub(super) peer: Arc<Peer>,
    /// Our number of it: the response ring's bit in our region.
    pub(super) number: u32,
    /// The target's number of it: the request ring's bit in its region.
    pub(super) remote_number: u32,
    /// The request ring.
    pub(super) tx: Lock<Producer>,
    /// The response ring.
    pub(super) rx: Lock<Consumer>,
    watch: Watch,
    /// Our copies into and out of the target.
    pub(super) push: Slots,
    /// Which of them are in use.
    pub(super) push_busy: AtomicU32,
    /// The target's copies out of our memory.
    pub(super) pull: Slots,
    /// Cells of the response ring set aside for answers that have not come.
    pub(super) credit: AtomicU32,
    /// Something in the response ring made no sense.
    pub(super) broken: AtomicBool,
}

impl Outbound {
    pub(super) fn new(
        peer: Arc<Peer>,
        mapping: Arc<Mapping>,
        number: u32,
        remote_number: u32,
    ) -> Self {
        Outbound {
            peer,
            number,
            remote_number,
            tx: Lock::new(Producer::new(Arc::clone(&mapping), REQUESTS)),
            rx: Lock::new(Consumer::new(Arc::clone(&mapping), RESPONSES)),
            watch: Watch::new(Arc::clone(&mapping), RESPONSES),
            push: Slots::new(Arc::clone(&mapping), PUSH_AT),
            push_busy: AtomicU32::new(0),
            pull: Slots::new(mapping, PULL_AT),
            credit: AtomicU32::new(0),
            broken: AtomicBool::new(false),
        }
    }

    /// Whether requests can still reach the target.
    #[inline]
    pub(super) fn usable(&self) -> bool {
        self.peer.alive() && !self.broken.load(Ordering::Relaxed)
    }
}

/// What the target's end needs to take requests: one thread at a time holds it.
pub(super) struct Receiver {
    /// The request ring.
    pub(super) requests: Consumer,
    /// The response ring.
    pub(super) responses: Producer,
    /// The QP that the last request was for.
    pub(super) last: Option<Arc<Qp>>,
}

/// The target's end.
pub(super) struct Inbound {
    /// Who is on the other side.
    pub(super) peer: Arc<Peer>,
    /// Our number of it: the request ring's bit in our region.
    pub(super) number: u32,
    /// The initiator's number of it: the response ring's bit in its region.
    pub(super) remote_number: u32,
    /// The rings.
    pub(super) rx: Lock<Receiver>,
    watch: Watch,
    /// The initiator's copies into and out of our memory.
    pub(super) push: Slots,
    /// Our copies out of its memory.
    pub(super) pull: Slots,
    /// Which of them are in use.
    pub(super) pull_busy: AtomicU32,
    /// Something in the request ring made no sense.
    pub(super) broken: AtomicBool,
}

impl Inbound {
    pub(super) fn new(
        peer: Arc<Peer>,
        mapping: Arc<Mapping>,
        number: u32,
        remote_number: u32,
    ) -> Self {
        Inbound {
            peer,
            number,
            remote_number,
            rx: Lock::new(Receiver {
                requests: Consumer::new(Arc::clone(&mapping), REQUESTS),
                responses: Producer::new(Arc::clone(&mapping), RESPONSES),
                last: None,
            }),
            watch: Watch::new(Arc::clone(&mapping), REQUESTS),
            push: Slots::new(Arc::clone(&mapping), PUSH_AT),
            pull: Slots::new(mapping, PULL_AT),
            pull_busy: AtomicU32::new(0),
            broken: AtomicBool::new(false),
        }
    }
}

/// Either end.
#[derive(Clone)]
pub(super) enum Link {
    /// We send requests over it.
    Out(Arc<Outbound>),
    /// We take requests from it.
    In(Arc<Inbound>),
}

impl Link {
    /// Whether its ring holds something for us.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        match self {
            Link::Out(link) => link.watch.has_news(),
            Link::In(link) => link.watch.has_news(),
        }
    }

    pub(super) fn peer(&self) -> &Arc<Peer> {
        match self {
            Link::Out(link) => &link.peer,
            Link::In(link) => &link.peer,
        }
    }
}
