//! Memory that the peer WRITEs to, and the proof that it does so once.
//!
//! The peer places its WRITEs in a ring by the rule of [`Ring`]; so this side knows where each must
//! land. Once it knows that one has been executed (by a later message of the same queue pair), it
//! checks every byte, and overwrites the place with [`SEEN`]. Whatever appears there before the
//! place is given back was written twice. Places are given back as late as can be.

use crate::kind::Kind;
use crate::payload::{self, SEEN};
use crate::report::{Checked, Fault};
use crate::ring::{Place, Ring};
use crate::script::{Message, Script};
use sojourn::verbs::MemoryRegion;
use std::collections::VecDeque;
use std::sync::Arc;

/// The largest messages that the ring holds: half of it is what was seen already, one place may
/// be lost at the end, and there must be room for some that are on their way.
pub(crate) const PLACES: usize = 6;

/// Bytes compared with [`SEEN`] at a time.
const BLOCK: usize = 4096;

/// How much of a WRITE has landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landed {
    Whole,
    Partly,
    Nothing,
}

/// A place that was seen, and whose it was.
struct Seen {
    place: Place,
    kind: Kind,
    seq: u64,
}

/// The ring of one stream.
pub(crate) struct Landing {
    memory: Arc<MemoryRegion>,
    /// Where the ring begins in the memory.
    at: usize,
    bytes: usize,
    ring: Ring,
    seen: VecDeque<Seen>,
}

impl Landing {
    /// The ring at `at` of `memory`.
    pub(crate) fn new(memory: Arc<MemoryRegion>, at: usize, bytes: usize) -> Self {
        let landing = Landing { memory, at, bytes, ring: Ring::new(bytes), seen: VecDeque::new() };
        landing.wipe(0, bytes);
        landing
    }

    /// Position before which all places were given back.
    pub(crate) fn freed(&self) -> u64 {
        self.ring.tail()
    }

    /// How many bytes may be given back before the peer is told.
    pub(crate) fn much(&self) -> u64 {
        self.bytes as u64 / 4
    }

    /// Checks what landed of `message`, which is the next WRITE of its stream, and wipes it.
    pub(crate) fn land(&mut self, script: &Script, message: &Message) -> Checked<Landed> {
        let (kind, seq) = (message.kind, message.seq);
        let place = self.ring.take(message.skew + message.size).ok_or_else(|| {
            let free = "a WRITE within the memory that was given back";
            Fault::new(kind, Some(seq), free, format_args!("one beyond {}", self.ring.tail()))
        })?;
        let length = (place.end - place.start) as usize;
        let offset = self.ring.offset(place.start);
        let mut found = vec![0; length];
        self.memory.read(self.at + offset, &mut found);
        let mut payload = Vec::with_capacity(message.size);
        script.payload(message, &mut payload);
        let mut expected = vec![SEEN; length];
        expected[message.skew..message.skew + message.size].copy_from_slice(&payload);

        let landed = if found == expected {
            Landed::Whole
        } else if is_seen(&found) {
            Landed::Nothing
        } else if expected.iter().zip(&found).all(|(e, f)| f == e || *f == SEEN) {
            Landed::Partly
        } else {
            // Counted from the message's first byte; what surrounds it comes last.
            expected.rotate_left(message.skew);
            found.rotate_left(message.skew);
            let found = payload::describe(&expected, &found);
            let what = format!("its {} bytes, and nothing beside them", message.size);
            return Err(Fault::new(kind, Some(seq), what, found));
        };
        self.wipe(offset, length);
        self.seen.push_back(Seen { place, kind, seq });
        self.release(self.bytes as u64 / 2)?;
        Ok(landed)
    }

    /// Gives back the oldest places until at most `keep` bytes are held.
    fn release(&mut self, keep: u64) -> Checked {
        while self.ring.head() - self.ring.tail() > keep {
            let Some(oldest) = self.seen.pop_front() else { break };
            self.still_seen(&oldest)?;
            self.ring.free(oldest.place.end);
        }
        Ok(())
    }

    fn still_seen(&self, seen: &Seen) -> Checked {
        let length = (seen.place.end - seen.place.start) as usize;
        self.untouched(self.ring.offset(seen.place.start), length, Some(seen))
    }

    /// Checks that nothing was written to what was seen; for the end, when nothing may be on its
    /// way any more.
    pub(crate) fn check_all(&self) -> Checked {
        self.seen.iter().try_for_each(|seen| self.still_seen(seen))?;
        self.untouched(0, self.bytes, None)
    }

    fn untouched(&self, offset: usize, length: usize, whose: Option<&Seen>) -> Checked {
        let mut block = [0; BLOCK];
        for at in (offset..offset + length).step_by(BLOCK) {
            let part = &mut block[..BLOCK.min(offset + length - at)];
            self.memory.read(self.at + at, part);
            let Some(first) = part.iter().position(|byte| *byte != SEEN) else { continue };
            // The message's length is not known: enough for a header to be found.
            let mut found = vec![0; (self.bytes - at - first).min(16 * BLOCK)];
            self.memory.read(self.at + at + first, &mut found);
            let found = match payload::identify(&found) {
                Some(_) => payload::describe(&[], &found),
                None => format!("a byte {:#04x} at {} of the ring", found[0], at + first),
            };
            let (kind, seq) = whose.map_or((Kind::Write, None), |s| (s.kind, Some(s.seq)));
            let what = "memory that stays as it is once its message was seen";
            return Err(Fault::new(kind, seq, what, found));
        }
        Ok(())
    }

    fn wipe(&self, offset: usize, length: usize) {
        for at in (offset..offset + length).step_by(BLOCK) {
            self.memory.write(self.at + at, &[SEEN; BLOCK][..BLOCK.min(offset + length - at)]);
        }
    }
}

fn is_seen(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK).all(|chunk| chunk == &[SEEN; BLOCK][..chunk.len()])
}
