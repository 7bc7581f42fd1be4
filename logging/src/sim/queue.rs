//! Virtual time, and what is going to happen.
//!
//! A run takes the earliest event; of two at the same time, the one that was made first.

use super::device::{Packet, Response};
use super::shell::Letter;

/// Virtual time in microseconds.
pub(super) type Time = u64;

/// Something that is going to happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// The program at an end posts, or polls.
    Program(usize),
    /// A packet of a requester comes to its responder.
    Packet(Packet),
    /// An answer comes back.
    Response(Response),
    /// A requester looks for what has not been acknowledged.
    Timer(usize),
    /// A queue pair at ERR gives back what was posted to it.
    Flush(usize),
    /// A name that an end lacked has come.
    Named(usize),
    /// A message between processes.
    Letter(Box<Letter>),
    /// The shells of a process look around.
    Tick(usize),
    /// A process is to move.
    Move(usize),
    /// A process dies.
    Death(usize),
    /// The device of a process dies.
    DeviceDeath(usize),
    /// A process that has not left its dead device by now tells its programs.
    Fatal(usize),
    /// One process learns that another is dead.
    Noticed { by: usize, dead: usize },
}

#[derive(Clone, Debug)]
struct Pending {
    at: Time,
    order: u64,
    event: Event,
}

/// All that is going to happen. There are some tens of events: a list is fast enough.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    pending: Vec<Pending>,
    order: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Time, event: Event) {
        self.order += 1;
        self.pending.push(Pending { at, order: self.order, event });
    }

    /// The earliest event, out of the queue.
    pub(super) fn pop(&mut self) -> Option<(Time, Event)> {
        let first = self.pending.iter().enumerate().min_by_key(|(_, it)| (it.at, it.order))?.0;
        let Pending { at, event, .. } = self.pending.swap_remove(first);
        Some((at, event))
    }

    pub(super) fn has(&self, wanted: &Event) -> bool {
        self.pending.iter().any(|it| it.event == *wanted)
    }
}
