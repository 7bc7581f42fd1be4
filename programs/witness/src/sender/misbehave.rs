//! The acts of [`Plot`](crate::plot::Plot), as far as a sender commits them.

use super::Sender;
use super::What;
use crate::kind::{Kind, Transport};
use crate::receiver::ADD_AT;
use crate::report::Checked;
use crate::script::Message;
use sojourn::verbs::Op;

impl Sender {
    /// Where this message is to be sent wrongly: does so, or something in its place.
    pub(super) fn misbehave(&mut self, message: &Message) -> Checked<bool> {
        let Some(plot) = self.io.plot.clone() else { return Ok(false) };
        let next = self.script.message(message.seq + 1);
        let room = self.outstanding + 2 <= self.io.window
            && self.arena.fits(2 * (message.size + next.size) + 256);
        if plot.drops(message, self.transport) {
            self.next += 1;
            return Ok(true);
        }
        if room && plot.duplicates(message) {
            self.post(message)?;
            self.again(message, op_of_send(message))?;
            self.next += 1;
            return Ok(true);
        }
        if room && plot.reorders(message, &next, self.transport) {
            self.post(&next)?;
            self.post(message)?;
            self.next += 2;
            return Ok(true);
        }
        Ok(false)
    }

    /// Where a WRITE is to be done again on purpose: does so with the last one that the peer has
    /// dealt with, before anything else can make it give back the place.
    pub(super) fn rewrite(&mut self) -> Checked {
        let Some(plot) = self.io.plot.clone() else { return Ok(()) };
        if self.transport != Transport::Rc || self.outstanding > self.io.window {
            return Ok(());
        }
        let peer = self.peer;
        let seen = self.written.iter().rfind(|(message, place)| {
            message.kind == Kind::Write
                && message.size > 0
                && message.seq < peer.dealt
                && place.start >= peer.freed
                && self.arena.fits(message.size + message.skew)
        });
        if let Some((message, place)) = seen.copied()
            && plot.rewrites(&message)
        {
            let op = Op::Write(self.landing(&message, Some(place)));
            return self.again(&message, op);
        }
        Ok(())
    }

    /// Where a FETCH_ADD is to be done twice on purpose: does so at the end, when nobody here
    /// looks at the word any more.
    pub(super) fn add_twice(&mut self) -> Checked {
        let Some(plot) = self.io.plot.clone() else { return Ok(()) };
        let all = self.total.is_some() && self.outstanding == 0 && !self.peer.closed;
        let last = (0..self.next).rev().map(|seq| self.script.message(seq));
        if all
            && self.script.has(|kind| kind == Kind::FetchAdd)
            && let Some(message) = last.take(256).find(|m| m.kind == Kind::FetchAdd && !m.shared)
            && plot.adds_twice(&message)
        {
            let word = self.io.remote.offset(ADD_AT as u64);
            return self.again(&message, Op::FetchAdd(word, message.add()));
        }
        Ok(())
    }

    fn again(&mut self, message: &Message, op: Op) -> Checked {
        self.post_as(What::Again(*message), message, op, 0)
    }
}

fn op_of_send(message: &Message) -> Op {
    if message.kind == Kind::SendImm { Op::SendImm(message.imm()) } else { Op::Send }
}
