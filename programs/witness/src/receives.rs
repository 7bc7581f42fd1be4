//! Posted receives: those of one queue pair, or those of a shared receive queue.

use crate::report::{Checked, Fault};
use crate::script::mix;
use sojourn::abi::Sge;
use sojourn::verbs::{MemoryRegion, QueuePair, SharedReceiveQueue};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One completion in so many is followed by a time in which no receive is posted.
const LATE_ONE_IN: u64 = 24;

/// The longest such time; a few RNR waits.
const LATE_AT_MOST: u64 = 4000;

/// Where receives are posted.
pub(crate) enum Queue {
    Own(QueuePair),
    Shared(SharedReceiveQueue),
}

/// Receives, and the buffers that they fill.
pub(crate) struct Receives {
    queue: Queue,
    memory: Arc<MemoryRegion>,
    at: usize,
    stride: usize,
    /// Identifiers begin with this.
    tag: u64,
    posted: VecDeque<(u64, usize)>,
    idle: Vec<usize>,
    next: u64,
    /// State of chance; `None` where receives are never late.
    late: Option<u64>,
    /// No receive is posted until then.
    hold: Option<Instant>,
}

impl Receives {
    /// `slots` buffers of `stride` bytes at `at` of `memory`. With `late`, a seed, they are
    /// sometimes posted late.
    pub(crate) fn new(
        queue: Queue,
        memory: Arc<MemoryRegion>,
        at: usize,
        (stride, slots): (usize, usize),
        tag: u64,
        late: Option<u64>,
    ) -> Self {
        let idle = (0..slots).rev().collect();
        let posted = VecDeque::with_capacity(slots);
        Receives { queue, memory, at, stride, tag, posted, idle, next: 0, late, hold: None }
    }

    /// Posts what is idle, unless it is to be late.
    pub(crate) fn post(&mut self, now: Instant) -> Checked {
        if self.hold.is_some_and(|until| now < until) {
            return Ok(());
        }
        self.hold = None;
        while let Some(slot) = self.idle.pop() {
            let wr_id = self.tag | self.next;
            let start = self.at + slot * self.stride;
            // Every other receive scatters, cut where chance has it.
            let cut = match self.next % 2 {
                0 => 0,
                _ => 1 + (mix(self.next) % (self.stride as u64 - 1)) as usize,
            };
            let whole = start..start + self.stride;
            let sges: [Sge; 2] =
                [self.memory.slice(start..start + cut), self.memory.slice(start + cut..whole.end)];
            let sges = if cut == 0 { &sges[1..] } else { &sges[..] };
            let posted = match &self.queue {
                Queue::Own(qp) => qp.post_recv(wr_id, sges),
                Queue::Shared(srq) => srq.post_recv(wr_id, sges),
            };
            posted.map_err(|error| Fault::call("posting a receive", Some(self.next), &error))?;
            self.posted.push_back((wr_id, slot));
            self.next += 1;
        }
        Ok(())
    }

    /// The buffer of the receive that completed. A queue pair's own complete in the order in
    /// which they were posted, each once.
    pub(crate) fn take(&mut self, wr_id: u64) -> Checked<usize> {
        let at = self.posted.iter().position(|(posted, _)| *posted == wr_id);
        let first = self.posted.front().map(|(first, _)| *first);
        match (at, &self.queue) {
            (Some(at), Queue::Shared(_)) | (Some(at @ 0), Queue::Own(_)) => {
                Ok(self.posted.remove(at).map_or(0, |(_, slot)| slot))
            }
            _ => Err(Fault::new(
                "a receive",
                None,
                format_args!("the completion of receive {first:#x?}"),
                format_args!("that of {wr_id:#x}"),
            )),
        }
    }

    /// Copies the first bytes of a buffer.
    pub(crate) fn read(&self, slot: usize, bytes: usize, into: &mut Vec<u8>) {
        into.clear();
        into.resize(bytes.min(self.stride), 0);
        self.memory.read(self.at + slot * self.stride, into);
    }

    /// The buffer may be used again.
    pub(crate) fn give_back(&mut self, slot: usize, now: Instant) {
        self.idle.push(slot);
        if let Some(dice) = &mut self.late {
            *dice = mix(*dice);
            if self.hold.is_none() && dice.is_multiple_of(LATE_ONE_IN) {
                self.hold = Some(now + Duration::from_micros((*dice >> 32) % LATE_AT_MOST));
            }
        }
    }

    /// Receives that are posted now.
    pub(crate) fn len(&self) -> usize {
        self.posted.len()
    }
}
