//! The two slots that a store keeps of somebody, read from afar.

use crate::epoch::{Epoch, Member, Slot};
use crate::image::{Source, WORD_AT};
use crate::store::Client;
use crate::stream::Lane;
use crate::{Error, Result};
use sojourn_fabric::abi::access;
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_fabric::virt::{MemoryRegion, Op, ProtectionDomain, Remote};
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// Bytes of one READ at most, and of the memory that is read into.
const LONGEST: usize = 1 << 20;
/// How long a store may take to be reached.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection to a compartment, to read it. The door is open as long as this is.
pub(super) struct Distant {
    lane: RefCell<Lane<()>>,
    room: MemoryRegion,
    slots: [Remote; 2],
    bytes: usize,
    client: Client,
}

impl Distant {
    /// Opens the compartment of `member` on the store that listens at `at`.
    ///
    /// # Errors
    /// The store cannot be reached, or has nothing of it (`ENOENT`).
    pub(super) fn open(
        pd: &ProtectionDomain,
        key: &JobKey,
        at: &Endpoint,
        member: Member,
    ) -> Result<Distant> {
        let mut client = Client::connect(at, key, Instant::now() + PATIENCE)?;
        let granted = client.read(pd, 1, member)?;
        let bytes = granted.slot_bytes();
        let lane = granted.lanes.into_iter().next();
        let lane = lane.ok_or_else(|| Error::new(libc::EIO, "no queue pair"))?;
        let room = pd.register(LONGEST, access::LOCAL_WRITE)?;
        Ok(Distant { lane: RefCell::new(lane), room, slots: granted.slots, bytes, client })
    }

    /// What the store is called.
    pub(super) fn name(&self) -> &str {
        &self.client.about().name
    }

    /// The slot whose word is `epoch` now.
    ///
    /// # Errors
    /// The store is gone.
    pub(super) fn slot_of(&self, epoch: Epoch) -> Result<Option<Slot>> {
        for slot in Slot::BOTH {
            let mut word = [0; 8];
            self.part(slot).read(WORD_AT, &mut word)?;
            if epoch.is_some() && u64::from_le_bytes(word) == epoch.0 {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// The bytes of one slot.
    pub(super) fn part(&self, slot: Slot) -> Part<'_> {
        Part { distant: self, slot }
    }
}

/// One of its slots.
pub(super) struct Part<'a> {
    distant: &'a Distant,
    slot: Slot,
}

impl Source for Part<'_> {
    fn bytes(&self) -> usize {
        self.distant.bytes
    }

    fn read(&self, at: usize, into: &mut [u8]) -> Result<()> {
        let Distant { lane, room, slots, bytes, .. } = self.distant;
        if at.checked_add(into.len()).is_none_or(|end| end > *bytes) {
            let wanted = into.len();
            return Err(Error::invalid(format!("{wanted} bytes from {at:#x} of {bytes} bytes")));
        }
        let mut lane = lane.borrow_mut();
        let named = |error: Error| error.context(format_args!("store {}", self.distant.name()));
        for (i, part) in into.chunks_mut(LONGEST).enumerate() {
            let from = Op::Read(slots[self.slot.index()].offset((at + i * LONGEST) as u64));
            lane.post(from, room.slice(0..part.len()), (), &mut |()| {}).map_err(named)?;
            lane.drain(&mut |()| {}).map_err(named)?;
            room.read(0, part);
        }
        Ok(())
    }
}
