//! The one act of [`Sabotage`] of a run: where it happens, and that it happens once.

use crate::kind::{Kind, Transport};
use crate::sabotage::{FROM, Sabotage};
use crate::script::Message;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is to be done, and whether it was.
#[derive(Debug)]
pub(crate) struct Plot {
    act: Sabotage,
    done: AtomicBool,
}

impl Plot {
    pub(crate) fn new(act: Sabotage) -> Self {
        Plot { act, done: AtomicBool::new(false) }
    }

    /// Whether the act was committed.
    pub(crate) fn done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn duplicates(&self, message: &Message) -> bool {
        self.now(Sabotage::Duplicate, message, is_send(message))
    }

    pub(crate) fn drops(&self, message: &Message, transport: Transport) -> bool {
        self.now(Sabotage::Drop, message, is_send(message) && !transport.lossy())
    }

    pub(crate) fn reorders(&self, first: &Message, next: &Message, transport: Transport) -> bool {
        let both = is_send(first) && is_send(next);
        self.now(Sabotage::Reorder, first, both && transport != Transport::Ud)
    }

    pub(crate) fn rewrites(&self, message: &Message) -> bool {
        self.now(Sabotage::Rewrite, message, true)
    }

    pub(crate) fn adds_twice(&self, message: &Message) -> bool {
        self.now(Sabotage::Atomic, message, true)
    }

    /// Whether no control message is sent any more, `posted` messages having been.
    pub(crate) fn silences(&self, posted: u64) -> bool {
        let silent = self.act == Sabotage::Silence && posted >= FROM;
        self.done.fetch_or(silent, Ordering::Relaxed);
        silent
    }

    /// Changes one bit of the payload.
    pub(crate) fn damage(&self, message: &Message, payload: &mut [u8]) {
        if !payload.is_empty() && self.now(Sabotage::Corrupt, message, is_send(message)) {
            let at = message.dice as usize % payload.len();
            payload[at] ^= 1;
        }
    }

    fn now(&self, act: Sabotage, message: &Message, fits: bool) -> bool {
        act == self.act && fits && message.seq >= FROM && !self.done.swap(true, Ordering::Relaxed)
    }
}

fn is_send(message: &Message) -> bool {
    matches!(message.kind, Kind::Send | Kind::SendImm)
}
