//! Virtual time, and what is going to happen.
//!
//! Events of one channel (packets of one direction, messages between two processes) happen in the
//! order in which they were made; those of different channels in any. A run by seed takes the
//! earliest; an exhaustive one goes on from every first event of a channel.

use super::device::{Packet, Response};
use super::shell::Letter;

/// Virtual time in microseconds.
pub(super) type Time = u64;

/// Something that is going to happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// The program at an end posts, or polls.
    Program(usize),
    /// It posts its next send.
    PostSend(usize),
    /// It posts a receive.
    PostRecv(usize),
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
    /// A process whose shared receives may have vanished is to create their queue anew.
    Anew(usize),
    /// A process is to stand still for a moment.
    Hold(usize),
    /// That moment is over.
    EndHold(usize),
    /// A process dies.
    Death(usize),
    /// The device of a process dies.
    DeviceDeath(usize),
    /// A process that has not left its dead device by now tells its programs.
    Fatal(usize),
    /// One process learns that another is dead.
    Noticed { by: usize, dead: usize },
}

/// What keeps its order.
pub(super) type Channel = (u8, usize, usize);

impl Event {
    /// It is a message between processes.
    pub(super) fn is_letter(channel: &Channel) -> bool {
        channel.0 == 2
    }

    pub(super) fn channel(&self) -> Channel {
        match self {
            Event::Packet(packet) => (0, packet.from, packet.to),
            Event::Response(response) => (1, response.from, response.to),
            Event::Letter(letter) => (2, letter.from, letter.to),
            Event::Program(at) => (3, *at, 0),
            Event::PostSend(at) => (4, *at, 0),
            Event::PostRecv(at) => (5, *at, 0),
            Event::Timer(at) => (7, *at, 0),
            Event::Flush(at) => (8, *at, 0),
            Event::Named(at) => (9, *at, 0),
            Event::Tick(at) => (10, *at, 0),
            Event::Move(at) => (11, *at, 0),
            Event::Death(at) => (12, *at, 0),
            Event::DeviceDeath(at) => (13, *at, 0),
            Event::Fatal(at) => (14, *at, 0),
            Event::Noticed { by, dead } => (15, *by, *dead),
            Event::Anew(at) => (16, *at, 0),
            Event::Hold(at) => (17, *at, 0),
            Event::EndHold(at) => (18, *at, 0),
        }
    }
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

    /// The channels that have events.
    pub(super) fn channels(&self) -> Vec<Channel> {
        let mut all: Vec<Channel> = self.pending.iter().map(|it| it.event.channel()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The first event of a channel, out of the queue.
    pub(super) fn take(&mut self, channel: Channel) -> Option<Event> {
        let of = self.pending.iter().enumerate().filter(|(_, it)| it.event.channel() == channel);
        let at = of.min_by_key(|(_, it)| it.order)?.0;
        Some(self.pending.swap_remove(at).event)
    }

    /// Channel by channel, in order: what differs in nothing but when it was made is the same.
    pub(super) fn sorted(&self) -> Vec<&Event> {
        let mut all: Vec<(Channel, u64, &Event)> =
            self.pending.iter().map(|it| (it.event.channel(), it.order, &it.event)).collect();
        all.sort_unstable_by_key(|(channel, order, _)| (*channel, *order));
        all.into_iter().map(|it| it.2).collect()
    }
}
