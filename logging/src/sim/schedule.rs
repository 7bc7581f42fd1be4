//! Virtual time, and what happens when.

/// Virtual time in microseconds.
pub type Time = u64;

#[derive(Clone, Debug)]
pub(super) struct Pending<E> {
    pub(super) at: Time,
    pub(super) order: u64,
    pub(super) event: E,
}

/// All that is going to happen. There are some tens of events: a list is fast enough.
#[derive(Clone, Debug)]
pub struct Schedule<E> {
    pub(super) pending: Vec<Pending<E>>,
    order: u64,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Schedule { pending: Vec::new(), order: 0 }
    }
}

impl<E> Schedule<E> {
    /// Adds an event. Those of one time happen in the order in which they were added.
    pub fn push(&mut self, at: Time, event: E) {
        self.order += 1;
        self.pending.push(Pending { at, order: self.order, event });
    }

    /// The earliest event, out of the list.
    pub fn pop(&mut self) -> Option<(Time, E)> {
        let first = self.pending.iter().enumerate().min_by_key(|(_, it)| (it.at, it.order))?.0;
        let Pending { at, event, .. } = self.pending.swap_remove(first);
        Some((at, event))
    }
}
