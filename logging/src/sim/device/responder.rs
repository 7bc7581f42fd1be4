//! The responder: what a queue pair does with packets that come.

use super::{Answer, Cqe, EDGE, Message, Packet, QpState, Response};
use crate::entry::Opcode;
use crate::sim::kinds::Kind;
use crate::sim::queue::Event;
use crate::sim::script::{answers, takes_receive};
use crate::sim::world::World;

impl World {
    fn respond(&mut self, from: usize, what: Answer) {
        let Some(to) = self.qps[from].peer else { return };
        let at = self.arrival(self.qps[from].responses_by);
        self.qps[from].responses_by = at;
        if !self.loses_packet(to) {
            self.queue.push(at, Event::Response(Response { from, to, what }));
        }
    }

    pub(in crate::sim) fn packet_came(&mut self, packet: &Packet) {
        let qp = packet.to;
        let now = self.now;
        let it = &mut self.qps[qp];
        let edge = it.state == QpState::Err && it.edge && now < it.err_at + EDGE;
        if it.dead || it.peer != Some(packet.from) || !(it.state == QpState::Ready || edge) {
            return;
        }
        if packet.index > it.expected {
            return;
        }
        if packet.index < it.expected {
            return self.duplicate(packet);
        }
        let needs_recv = match packet.opcode {
            Opcode::Send | Opcode::SendImm => packet.first,
            Opcode::WriteImm => packet.last,
            _ => false,
        };
        if needs_recv && self.lacks_receive(qp) {
            self.reach(Kind::Rnr);
            return self.respond(qp, Answer::NotReady(packet.index));
        }
        if edge {
            self.qps[qp].edge = false;
            self.reach(Kind::EdgePacket);
        }
        if self.qps[qp].told {
            self.violate(format!(
                "promise 4: queue pair {qp} executed packet {} of request {} after its last numbers \
                 were told",
                packet.index, packet.seq
            ));
        }
        self.execute(packet);
    }

    /// Executed before: answered again.
    fn duplicate(&mut self, packet: &Packet) {
        let qp = packet.to;
        self.reach(Kind::Retransmitted);
        if packet.opcode == Opcode::Read {
            self.answer_read(packet);
        } else if packet.opcode.is_atomic() {
            let kept = self.qps[qp].results.iter().find(|(index, _)| *index == packet.index);
            if let Some(&(index, value)) = kept {
                self.respond(qp, Answer::Atomic { index, value });
            }
        } else {
            self.respond(qp, Answer::Ack(self.qps[qp].expected));
        }
    }

    fn answer_read(&mut self, packet: &Packet) {
        let value = self.ledger.read(self.qps[packet.from].end, packet.cell);
        for part in 0..packet.packets {
            self.respond(packet.to, Answer::Read { index: packet.index, part, value });
        }
    }

    fn execute(&mut self, packet: &Packet) {
        let qp = packet.to;
        let sender = self.qps[packet.from].end;
        let numbers = if answers(packet.opcode) { packet.packets } else { 1 };
        self.qps[qp].expected += numbers;
        if packet.whose.is_hidden() {
            if let Some(recorded) = packet.whose.recorded() {
                let end = self.qps[qp].end;
                self.ends[end].word = recorded;
            }
            return self.respond(qp, Answer::Ack(self.qps[qp].expected));
        }
        let index = packet.index;
        if packet.opcode.is_atomic() || packet.opcode != Opcode::Read && packet.end > packet.begin {
            self.lands(self.qps[qp].end);
        }
        match packet.opcode {
            Opcode::Write | Opcode::WriteImm => {
                let range = (packet.begin, packet.end);
                let landed = self.ledger.land(sender, packet.seq, range, packet.cell, packet.good);
                self.check(landed);
            }
            Opcode::Read => self.answer_read(packet),
            opcode if opcode.is_atomic() => {
                let value = self.ledger.atomic(sender);
                self.qps[qp].results.push((index, value));
                self.respond(qp, Answer::Atomic { index, value });
            }
            _ => {
                if packet.first {
                    self.take_shared(qp);
                }
                let it = &mut self.qps[qp];
                if packet.first {
                    (it.filled, it.good) = (0, true);
                }
                // Not of its bytes: a SEND of nothing, once here, is not amid.
                it.filled = packet.end;
                it.good &= packet.good;
            }
        }
        if packet.last && takes_receive(packet.opcode) {
            let send = packet.opcode != Opcode::WriteImm;
            if !send {
                self.take_shared(qp);
            }
            let it = &mut self.qps[qp];
            if let Some(seq) = it.taken.take().map(u64::from).or_else(|| it.rq.pop_front()) {
                let message = Message {
                    seq: packet.seq,
                    opcode: packet.opcode,
                    byte_len: packet.length - if send { 0 } else { packet.skip },
                    imm: packet.imm,
                    good: if send { it.good } else { packet.good },
                };
                it.filled = 0;
                self.complete(qp, Cqe::Recv { seq, message: Some(message) });
            }
        }
        if packet.last {
            let executed = self.ledger.executed(sender, packet.seq);
            self.check(executed);
        }
        if !answers(packet.opcode) {
            self.respond(qp, Answer::Ack(self.qps[qp].expected));
        }
    }
}
