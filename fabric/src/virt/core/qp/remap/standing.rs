//! What has become of what was handed, where nothing of it goes on by itself any more: for who writes a
//! queue pair down.
//!
//! A queue pair that is held drains, but for one case: a message that finds no receive is not
//! executed, and is tried again until there is one. It, and what is behind it, is decided by counting: the
//! peer's receive queue is empty, and stays so while it is held; so the first request that
//! has not been executed is that message, and RC executes nothing behind it. The numbers of the peer
//! are then as good as behind the barrier of a take-down, though its queue pair goes on.

use super::super::{QpCore, watch};
use super::{Moving, QpImage};
use crate::abi::qp_state;
use crate::abi::{qp_mask, qp_type, send_flags};
use crate::virt::core::image::{
    AttrImage, Failing, Link, ReceiveImage, RecvsImage, RequestImage, SendsImage, cap_image,
};
use crate::virt::core::lock::gate;
use crate::virt::core::lock_mutex;
use crate::virt::core::policy::Source;
use crate::virt::core::record::Word;
use sojourn_logging::{Executed, Opcode, Plan};
use std::sync::atomic::Ordering;

/// Why a queue pair cannot be written down right now.
pub(in crate::virt::core) enum Restless {
    /// Something is under way.
    Moves,
    /// What has become of this request nobody can tell, and that will stay so.
    Undecided(u64),
    /// It has failed since it was stopped: the program is to learn of that first.
    Failed,
}

/// Where a queue pair's objects are in an image.
pub(in crate::virt::core) struct Places {
    pub(in crate::virt::core) pd: u32,
    pub(in crate::virt::core) send_cq: u32,
    pub(in crate::virt::core) recv_cq: u32,
    pub(in crate::virt::core) srq: Option<u32>,
    pub(in crate::virt::core) link: Link,
}

impl Moving {
    fn failed(&self) -> bool {
        self.has_failed() || self.broken || !self.early.is_empty()
    }
}

impl QpCore {
    /// What is to be done with what was handed, of a queue pair in `state` that is connected to `peer`. While
    /// it is held, and after a harvest.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub(in crate::virt::core) fn standing(
        &self,
        state: u32,
        peer: Option<&QpCore>,
    ) -> Result<Plan, Restless> {
        if state == qp_state::ERR {
            return self.standing_at_err();
        }
        if self.send_side.gate() & (gate::FAILED | gate::ERR) != 0
            || lock_mutex(&self.moving).failed()
        {
            return Err(Restless::Failed);
        }
        // Before the numbers are read: a message that finds none now finds none later.
        let starved = peer.is_some_and(QpCore::has_no_receive);
        let side = self.send_side.visit();
        let out = self.send.retired()..self.send.handed();
        if !side.replays.is_empty() {
            return Err(Restless::Moves);
        }
        if out.is_empty() {
            return Ok(Plan::default());
        }
        let comes = |seq: &u64| self.comes_back(*seq);
        let (qp_type::RC, Some(peer)) = (self.qp_type, peer) else {
            // Whatever was handed is sent, as far as anybody can know.
            let quiet = !out.clone().any(|seq| comes(&seq));
            let plan = Plan { executed: out.collect(), ..Plan::default() };
            return if quiet { Ok(plan) } else { Err(Restless::Moves) };
        };
        // While something is under way the numbers need not fit each other.
        let told = peer.executed_at_rest();
        let plan = self.send.judge(&told, out.start).map_err(|_| Restless::Moves)?;
        let first = plan.replays.first().map(|replay| replay.seq);
        let is_message = |seq: u64| {
            let opcode = self.send.entry(seq).opcode;
            !opcode.is_one_sided() || opcode == Opcode::WriteImm
        };
        let blocked = first.is_some_and(|seq| starved && is_message(seq));
        // What proves the last ones is still to come, if nothing is in its way.
        let unproven = first.is_none() && lock_mutex(&self.moving).proofs.are_out();
        if !blocked && first.is_some() || unproven || plan.executed.iter().any(comes) {
            return Err(Restless::Moves);
        }
        match plan.undecided {
            Some(_) if first.is_none() => Err(Restless::Moves),
            Some(seq) => Err(Restless::Undecided(seq)),
            None => Ok(plan),
        }
    }

    /// Whether nothing of what it has handed goes on by itself, connected to `peer`. While it is held, and
    /// after a harvest.
    pub(in crate::virt::core) fn is_at_rest(&self, peer: &QpCore) -> bool {
        self.nothing_lands()
            && !matches!(self.standing(qp_state::RTS, Some(peer)), Err(Restless::Moves))
    }

    /// All that the device had is back, and the rest is completed by us.
    fn standing_at_err(&self) -> Result<Plan, Restless> {
        self.note_err();
        let sends = self.send.retired() == self.send.handed() || {
            let side = self.send_side.visit();
            side.gate() & gate::FAILED != 0 && side.ending.is_through()
        };
        let recvs = self.recv.retired() == self.recv.handed() || {
            let side = self.recv_side.visit();
            side.gate() & gate::FAILED != 0 && side.ending.is_through()
        };
        if sends && recvs { Ok(Plan::default()) } else { Err(Restless::Moves) }
    }

    /// What comes to it finds no receive.
    fn has_no_receive(&self) -> bool {
        match &self.srq {
            Some(srq) => srq.is_empty(),
            None => self.recv.retired() == self.recv.handed(),
        }
    }

    /// How far it has come as a responder, which executes nothing any more.
    fn executed_at_rest(&self) -> Executed {
        let (mut psn, mut recorded) = (None, None);
        if let Ok(attachment) = self.attachment() {
            match attachment.underlay.source {
                Source::Psn => {
                    psn = attachment.qp.query(qp_mask::RQ_PSN).ok().map(|attr| attr.rq_psn);
                }
                Source::Record => recorded = self.word.get().map(Word::recorded),
                Source::Counts => {}
            }
        }
        Executed { messages: self.received(), psn, settled: true, recorded }
    }

    /// Writes it down, in `state`, and with that to be done of what was handed.
    pub(in crate::virt::core) fn image(&self, state: u32, plan: &Plan, at: &Places) -> QpImage {
        let (attr, met) = {
            let control = lock_mutex(&self.control);
            (AttrImage::new(&control.attr), control.met)
        };
        let mend = match self.watch.load(Ordering::Acquire) & watch::MEND {
            0 => 0,
            _ => lock_mutex(&self.moving).mend,
        };
        QpImage {
            qpn: self.qpn,
            qp_type: self.qp_type,
            cap: cap_image(&self.cap),
            sig_all: self.always & send_flags::SIGNALED != 0,
            pd: at.pd,
            send_cq: at.send_cq,
            recv_cq: at.recv_cq,
            srq: at.srq,
            state,
            attr,
            link: at.link,
            remote: self.remote.load(Ordering::Acquire),
            met: met.map(|(process, qpn)| (process.0, qpn)),
            sends: self.sends_image(state, plan),
            recvs: RecvsImage {
                base: self.recv_base.load(Ordering::Acquire),
                unfilled: self.unfilled.load(Ordering::Acquire),
                delivered: self.delivered.load(Ordering::Acquire),
                mend,
                ..self.recvs_image()
            },
        }
    }

    fn sends_image(&self, state: u32, plan: &Plan) -> SendsImage {
        let side = self.send_side.visit();
        let first = self.send.retired();
        let request = |seq: u64| {
            let entry = self.send.entry(seq);
            let elements = (0..entry.elements).map(|i| self.send.element(seq, i.into()).into());
            let inline = match u32::from(entry.flags) & send_flags::INLINE {
                0 => Vec::new(),
                _ => self.send.inline_bytes(seq),
            };
            RequestImage::new(&entry, elements.collect(), inline)
        };
        // Windows are shorter than 2³² by far.
        let place = |seq: u64| (seq - first) as u32;
        let failing = side.gate() & gate::FAILED != 0 && state == qp_state::ERR;
        SendsImage {
            first,
            handed: place(self.send.handed()),
            past: self.send.past(),
            entries: (first..self.send.appended()).map(request).collect(),
            executed: plan.executed.iter().map(|seq| place(*seq)).collect(),
            replays: plan.replays.iter().map(|it| (place(it.seq), it.skip)).collect(),
            failing: failing.then(|| {
                let (first, status) = side.ending.failed();
                Failing { first, status }
            }),
        }
    }

    fn recvs_image(&self) -> RecvsImage {
        let _side = self.recv_side.visit();
        let first = self.recv.retired();
        let receive = |seq: u64| {
            let entry = self.recv.entry(seq);
            let elements = (0..entry.elements).map(|i| self.recv.element(seq, i.into()).into());
            ReceiveImage { wr_id: entry.wr_id, elements: elements.collect() }
        };
        RecvsImage {
            first,
            entries: (first..self.recv.appended()).map(receive).collect(),
            ..RecvsImage::default()
        }
    }
}
