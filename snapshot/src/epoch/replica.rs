//! One copy of a process: two slots on a store, and the connection to it.

use super::{Epoch, Holding, Incarnation, Request, Slot, StoreId, WriterLimits};
use crate::PageSet;
use std::time::Duration;

/// Where a replica stands in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// It is asked for its compartment.
    Granting,
    /// In no epoch.
    Idle,
    /// The word of its slot is being cleared.
    Invalidating,
    /// Its slot may be written.
    Ready,
    /// Chunks are on their way.
    Sending,
    /// Tables and header are.
    Sealing,
    /// Its word is.
    Wording,
    /// The store holds it against its checksums.
    Checking,
    /// It is complete.
    Written,
    /// It is asked to take note.
    Noting,
    /// It has.
    Noted,
}

#[derive(Clone, Copy, Debug)]
struct Asking {
    request: Request,
    at: Duration,
    /// Since when there was no answer.
    since: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Replica {
    /// The incarnation of this connection.
    pub(super) by: Incarnation,
    pub(super) store: StoreId,
    pub(super) step: Step,
    /// The driver has something to do here, and has not said that it is done.
    pub(super) busy: bool,
    /// The slot that is written.
    pub(super) slot: Slot,
    /// What each slot holds; nothing once it is invalidated.
    words: [Epoch; 2],
    /// In which chunks each may differ from memory.
    stale: [PageSet; 2],
    asking: Option<Asking>,
}

impl Replica {
    pub(super) fn new(
        by: Incarnation,
        store: StoreId,
        chunks: usize,
        grant: Request,
        now: Duration,
    ) -> Self {
        Replica {
            by,
            store,
            step: Step::Granting,
            busy: false,
            slot: Slot::A,
            words: [Epoch::NONE; 2],
            stale: [PageSet::full(chunks), PageSet::full(chunks)],
            asking: Some(Asking { request: grant, at: now, since: now }),
        }
    }

    /// The compartment is ours; `known` is a slot that differs from memory only in these chunks.
    pub(super) fn granted(
        &mut self,
        holding: &Holding,
        committed: Epoch,
        known: Option<(Slot, PageSet)>,
    ) {
        self.words = holding.words;
        if let Some((slot, stale)) = known {
            self.stale[slot.index()] = stale;
        }
        self.slot = self.free_slot(committed);
        self.settle(Step::Idle);
    }

    /// The slot that does not hold what is committed; of two such ones the older.
    fn free_slot(&self, committed: Epoch) -> Slot {
        let held = |slot: &Slot| {
            let word = self.words[slot.index()];
            (word.is_some() && word == committed, word)
        };
        Slot::BOTH.into_iter().min_by_key(held).unwrap_or(Slot::A)
    }

    /// An epoch begins here: chooses the slot, whose word is to be cleared.
    pub(super) fn open(&mut self, committed: Epoch) {
        self.slot = self.free_slot(committed);
        self.words[self.slot.index()] = Epoch::NONE;
        (self.step, self.busy) = (Step::Invalidating, true);
    }

    pub(super) fn mark(&mut self, dirty: &PageSet) {
        self.stale.iter_mut().for_each(|stale| stale.union_with(dirty));
    }

    /// How many chunks are to be sent.
    pub(super) fn stale(&self) -> usize {
        self.stale[self.slot.index()].count()
    }

    /// What is to be sent now. It is not stale any more from here on: what becomes dirty before it has
    /// landed is marked again, and a connection on which it fails takes the whole replica with it.
    pub(super) fn send(&mut self) -> Option<PageSet> {
        let stale = &mut self.stale[self.slot.index()];
        if self.step != Step::Ready || stale.is_empty() {
            return None;
        }
        let chunks = stale.clone();
        stale.clear();
        (self.step, self.busy) = (Step::Sending, true);
        Some(chunks)
    }

    pub(super) fn check(&mut self, epoch: Epoch, now: Duration) {
        self.ask(Request::Check { incarnation: self.by, epoch }, Step::Checking, now);
    }

    pub(super) fn note(&mut self, epoch: Epoch, now: Duration) {
        self.words[self.slot.index()] = epoch;
        self.ask(Request::Note { incarnation: self.by, epoch }, Step::Noting, now);
    }

    fn ask(&mut self, request: Request, step: Step, now: Duration) {
        self.step = step;
        self.asking = Some(Asking { request, at: now, since: now });
    }

    /// It has answered: nothing is asked any more.
    pub(super) fn settle(&mut self, step: Step) {
        (self.step, self.asking) = (step, None);
    }

    /// The epoch has ended. What the driver still does here is waited for before the next.
    pub(super) fn close(&mut self) {
        if self.step != Step::Granting {
            self.settle(Step::Idle);
        }
    }

    pub(super) fn ask_later(&mut self, at: Duration, now: Duration) {
        if let Some(asking) = &mut self.asking {
            // It lives; how long a barrier may take is bounded by the epoch's deadline.
            (asking.at, asking.since) = (at, now);
        }
    }

    pub(super) fn is_silent(&self, limits: &WriterLimits, now: Duration) -> bool {
        self.asking.is_some_and(|asking| now >= asking.since + limits.answer)
    }

    /// The driver, or the store, has to do something.
    pub(super) fn is_waited_for(&self) -> bool {
        self.busy || self.asking.is_some()
    }

    pub(super) fn wake_at(&self, limits: &WriterLimits) -> Option<Duration> {
        self.asking.map(|asking| asking.at.min(asking.since + limits.answer))
    }

    /// What is to be asked now, if it is time.
    pub(super) fn due(&mut self, now: Duration, again: Duration) -> Option<Request> {
        let asking = self.asking.as_mut().filter(|asking| asking.at <= now)?;
        asking.at = now + again;
        Some(asking.request)
    }
}
