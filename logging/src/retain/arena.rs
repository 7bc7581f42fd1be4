//! Places in the ring: spans in the order in which they were dealt, given back in that order.

use std::collections::VecDeque;

/// Places begin at multiples of it: a cache line, so that no two messages share one.
pub(super) const ALIGN: u64 = 64;

/// What keeps a span from being given back, whether or not its record still wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its payload is being copied in.
    Filling,
    /// Nobody is at it.
    Kept,
    /// It is being copied out.
    Spilling,
}

/// A piece of the ring.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) at: u64,
    size: u64,
    /// Whose message it holds: a connection, and the message's number there.
    pub(super) owner: u64,
    pub(super) number: u64,
    pub(super) stage: Stage,
    /// A device may read it until so many requests of the owner's window have retired.
    pub(super) pin: Option<u64>,
    /// A record has its payload here, and nowhere else.
    pub(super) live: bool,
}

/// Why the oldest span stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stays {
    /// A record of this connection has its payload here.
    Live(u64),
    /// It is being copied out.
    Spilling,
    /// A device, or who copies into it, is at it.
    InUse,
}

/// The ring.
#[derive(Debug)]
pub(super) struct Arena {
    capacity: u64,
    spans: VecDeque<Span>,
    /// Number of the oldest span.
    first: u64,
    /// Spans before this one have nothing left to spill.
    spill_from: u64,
    /// Bytes of spans that are live.
    live: u64,
    /// The owner that was asked for last, and how many requests of its window had retired.
    asked: (u64, u64),
}

impl Arena {
    pub(super) fn new(capacity: u64) -> Self {
        let capacity = capacity / ALIGN * ALIGN;
        let spans = VecDeque::new();
        Arena { capacity, spans, first: 0, spill_from: 0, live: 0, asked: (0, 0) }
    }

    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(super) fn live(&self) -> u64 {
        self.live
    }

    /// A place of `size` bytes, without giving anything back; its span's number and its offset.
    pub(super) fn take(
        &mut self,
        size: u64,
        owner: u64,
        number: u64,
        pin: Option<u64>,
    ) -> Option<(u64, u64)> {
        let size = size.checked_next_multiple_of(ALIGN)?;
        let at = match (self.spans.front(), self.spans.back()) {
            (Some(front), Some(back)) => {
                let (tail, head) = (front.at, back.at + back.size);
                if head <= tail {
                    (size <= tail - head).then_some(head)?
                } else if size <= self.capacity - head {
                    head
                } else {
                    (size <= tail).then_some(())?;
                    if head < self.capacity {
                        // The rest up to the end is too short.
                        self.push(head, self.capacity - head, owner, number, None, false);
                    }
                    0
                }
            }
            _ => (size <= self.capacity).then_some(0)?,
        };
        let span = self.push(at, size, owner, number, pin, true);
        self.live += size;
        Some((span, at))
    }

    fn push(
        &mut self,
        at: u64,
        size: u64,
        owner: u64,
        number: u64,
        pin: Option<u64>,
        live: bool,
    ) -> u64 {
        let stage = if live { Stage::Filling } else { Stage::Kept };
        self.spans.push_back(Span { at, size, owner, number, stage, pin, live });
        self.first + self.spans.len() as u64 - 1
    }

    fn index(&self, span: u64) -> Option<usize> {
        usize::try_from(span.checked_sub(self.first)?).ok().filter(|at| *at < self.spans.len())
    }

    /// The span of that number, where it has not been given back.
    pub(super) fn get(&self, span: u64) -> Option<&Span> {
        self.spans.get(self.index(span)?)
    }

    pub(super) fn set_stage(&mut self, span: u64, stage: Stage) {
        if let Some(at) = self.index(span) {
            self.spans[at].stage = stage;
        }
    }

    /// No record needs the span any more.
    pub(super) fn release(&mut self, span: u64) {
        if let Some(at) = self.index(span)
            && self.spans[at].live
        {
            self.spans[at].live = false;
            self.live -= self.spans[at].size;
        }
    }

    /// No device has been given the span, nor will be.
    pub(super) fn unpin(&mut self, span: u64) {
        if let Some(at) = self.index(span) {
            self.spans[at].pin = None;
        }
    }

    /// Gives the oldest span back, or says why not. `retired` tells how many requests of a connection's
    /// window have retired. `Ok(false)`: there is none.
    pub(super) fn give_back(&mut self, retired: &impl Fn(u64) -> u64) -> Result<bool, Stays> {
        let Some(front) = self.spans.front() else { return Ok(false) };
        match front.stage {
            Stage::Filling => return Err(Stays::InUse),
            Stage::Spilling => return Err(Stays::Spilling),
            Stage::Kept => {}
        }
        if front.live {
            return Err(Stays::Live(front.owner));
        }
        if let Some(seq) = front.pin {
            // To ask costs something, and mostly many have retired since.
            if self.asked.0 != front.owner || self.asked.1 <= seq {
                self.asked = (front.owner, retired(front.owner));
            }
            if self.asked.1 <= seq {
                return Err(Stays::InUse);
            }
        }
        self.spans.pop_front();
        self.first += 1;
        self.spill_from = self.spill_from.max(self.first);
        Ok(true)
    }

    /// The oldest span that is live and was not looked at for spilling before, as far as those before it
    /// are filled. It counts as looked at from now on.
    pub(super) fn next_to_spill(&mut self) -> Option<u64> {
        loop {
            let span = self.get(self.spill_from)?;
            if span.stage == Stage::Filling {
                return None;
            }
            let found = (span.live && span.stage == Stage::Kept).then_some(self.spill_from);
            self.spill_from += 1;
            if found.is_some() {
                return found;
            }
        }
    }
}
