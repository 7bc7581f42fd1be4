//! Suspend, attach, replay: what a re-map does to one queue pair.
//!
//! ```text
//! attached ── stop ──▶ stopped ── take_down ──▶ down ── receive_on, attach ──▶ attached (to the new)
//!     ◀──── go_on ───────┘                                   │ its first request was cut
//!                                                            └─▶ held ── release ──▶ attached
//! ```
//!
//! Stopped: sends are only appended, receives are still handed. Down: receives are only appended, too.
//! From *stopped* on what the old physical queue pair reports as failed is withheld from the
//! program: given back where the move is given up, and forgotten where it is not, because whatever
//! failed is judged and done again.
//!
//! | file | what |
//! | --- | --- |
//! | `status` | how a queue pair stands |
//! | `fresh` | the new physical queue pair, made and connected before the blackout |
//! | `late` | receives that succeed falsely at ERR |
//! | `mend` | paths that fail around a move |
//! | `proof` | what nobody has had signalled, proven |
//! | `standing` | how it is written down |
//! | `anew` | and made anew from that |
//! | `still` | holds: stop, and go on |
//!
//! Called by the shells of the re-map, on any thread. A step that needs all completions to have been
//! taken says so: the caller harvests, once for many queue pairs.

mod anew;
mod fresh;
mod late;
mod mend;
mod proof;
mod standing;
mod status;
mod still;

pub(in crate::virt::core) use self::fresh::Fresh;
use self::late::Late;
use self::mend::{is_of_path, may_be_of_path};
use self::proof::Proofs;
pub(in crate::virt::core) use self::standing::{Places, Restless};
use super::ending::{Ending, completion_of};
use super::send::SendSide;
use super::{Attachment, Blocked, QpCore, watch};
use crate::abi::{QpAttr, Wc, qp_mask, qp_state, qp_type, wc_opcode, wc_status};
use crate::device::Kind;
use crate::error::{Error, Result};
use crate::names::DeviceId;
use crate::virt::core::cq::Held;
use crate::virt::core::image::QpImage;
use crate::virt::core::lock::{Guard, gate};
use crate::virt::core::peer::Missing;
use crate::virt::core::policy::Source;
use crate::virt::core::record::Word;
use crate::virt::core::underlay::Underlay;
use crate::virt::core::{KIND_SHIFT, LOW_31, RECV, SHARED, lock_mutex};
use sojourn_logging::{Executed, Opcode, Plan, Start};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a re-map keeps of a queue pair.
#[derive(Default)]
pub(super) struct Moving {
    /// A new physical queue pair is there, and the old one too: the program's own changes wait.
    under_way: bool,
    /// The path of the physical queue pair has failed, which the program is not to notice.
    broken: bool,
    /// The physical queue pair that is being left: its device, its number.
    old: Option<(DeviceId, u32)>,
    /// What it reports as failed.
    withheld: Vec<Wc>,
    /// What it reports as filled at ERR.
    late: Late,
    /// What the new one reports as failed before the move is over.
    early: Vec<Wc>,
    /// What was withheld of its sends has been given back, and of its receives.
    returned: [bool; 2],
    /// It had receives when it was taken down.
    recvs_out: bool,
    /// When it was taken down, where its receives are shared.
    down: Option<Instant>,
    /// One of its receives has come back flushed: it executes nothing more. (The first says as much as
    /// the last, and comes even where the path broke, and receives were posted behind that: those
    /// never come back from rxe.)
    flushed: bool,
    /// When handing ended.
    stopped: Option<Instant>,
    /// Since when the physical one is seen at ERR, and nothing says why.
    failing_since: Option<Instant>,
    /// The peer has been told how far it has come.
    told: bool,
    proofs: Proofs,
    /// Its peer stands still as well, and has not failed.
    peer_is_well: bool,
    /// Requests that were executed on an earlier path, without a completion so far, in order.
    executed: VecDeque<u64>,
    /// Requests that were handed again, without a completion so far, in order.
    replays: VecDeque<u64>,
    /// One of them has failed.
    failed: bool,
    /// Bytes that the next receive lacks in its completion.
    mend: u32,
    incarnation: u32,
}

/// How long completions may come after a device has gone to ERR: a thread of it that is kept from running
/// takes its time.
const FAILURE_LAG: Duration = Duration::from_secs(1);
/// How long a queue pair whose receives are shared is waited for at ERR: nothing of its own comes back for
/// certain, and a message that was just being executed is to be counted. Responders take microseconds
/// for that; threads of a machine that is busy, milliseconds.
const SHARED_LAG: Duration = Duration::from_millis(20);
/// How long is waited for what is under way, as long as it is no atomic.
const DRAIN_PATIENCE: Duration = Duration::from_millis(100);

impl QpCore {
    /// Whether an incarnation that a peer offers is newer than the one that is attached.
    pub(in crate::virt::core) fn accepts(&self, incarnation: u32) -> bool {
        incarnation > lock_mutex(&self.moving).incarnation
    }

    /// The program's own changes wait from here on.
    fn begin_moving(&self) -> Result<()> {
        let mut moving = lock_mutex(&self.moving);
        if self.is_dead() {
            return Err(Error::invalid(format!("queue pair {:#x} has been destroyed", self.qpn)));
        }
        if moving.under_way {
            return Err(Error::new(
                libc::EBUSY,
                format!("queue pair {:#x} is being moved already", self.qpn),
            ));
        }
        moving.under_way = true;
        Ok(())
    }

    fn end_moving(&self) {
        lock_mutex(&self.moving).under_way = false;
        self.moved.notify_all();
    }

    /// Waits until no re-map of it is under way. The service thread, which drives it, gives up by
    /// itself a mover that is not heard of any more.
    fn wait_for_moves(&self) -> MutexGuard<'_, Moving> {
        let mut moving = lock_mutex(&self.moving);
        while moving.under_way {
            moving = self.moved.wait(moving).unwrap_or_else(PoisonError::into_inner);
        }
        moving
    }

    /// Runs `change` while no re-map of it is under way.
    pub(in crate::virt::core) fn while_it_stays<R>(&self, change: impl FnOnce() -> R) -> R {
        self.wait_for_moves().under_way = true;
        let changed = change();
        self.end_moving();
        changed
    }

    /// The program destroys it: no re-map of it begins any more.
    pub(super) fn stay_for_good(&self) {
        let mut moving = self.wait_for_moves();
        self.watch.fetch_or(watch::DEAD, Ordering::Release);
        moving.broken = false;
        moving.early.clear();
        if moving.old.take().is_some() {
            self.cqs().for_each(|cq| cq.end_move());
        }
    }

    /// Sends are only appended from here on.
    pub(in crate::virt::core) fn stop(&self) {
        let Ok(attachment) = self.attachment() else { return };
        let mut side = self.send_side.visit();
        if !self.begin_withholding(&attachment, false) {
            return;
        }
        side.set(gate::SUSPENDED);
        self.prove_tail(&mut side);
    }

    /// Failures are not the program's business from here on; of a path that is `broken`, or of one that is
    /// to be left. False where that began before.
    fn begin_withholding(&self, attachment: &Attachment, broken: bool) -> bool {
        {
            let mut moving = lock_mutex(&self.moving);
            if moving.old.is_some() {
                return false;
            }
            moving.begin(attachment, broken);
        }
        self.cqs().for_each(|cq| cq.begin_move());
        self.watch.fetch_or(watch::WITHHOLD, Ordering::SeqCst);
        true
    }

    /// Nothing that was handed is still to be executed, as far as can be told. After a harvest.
    pub(in crate::virt::core) fn is_quiet(&self) -> bool {
        if self.goes_no_further() {
            return true;
        }
        let (retired, handed) = (self.send.retired(), self.send.handed());
        self.prove_tail(&mut self.send_side.visit());
        let (proven, waits, stuck) = {
            let moving = lock_mutex(&self.moving);
            let since = moving.stopped.map_or(Duration::ZERO, |since| since.elapsed());
            let waits = moving.proofs.are_out() || !moving.replays.is_empty();
            (moving.proofs.upto(), waits, since >= DRAIN_PATIENCE)
        };
        // A SEND without a receive would be waited for in vain: it and what is behind it are decided by
        // counting. The answer of an atomic, once it was executed, is not; nor, where the peer's number is
        // not live, whether a WRITE behind the last record was.
        if stuck {
            let records = self.send_side.visit().record.is_some();
            let last_back = (retired..handed).rev().find(|seq| self.comes_back(*seq));
            let mut is_behind = false;
            return (retired..handed).all(|seq| {
                let opcode = self.send.entry(seq).opcode;
                let message = !opcode.is_one_sided() || opcode == Opcode::WriteImm;
                is_behind |= message && self.comes_back(seq);
                let will_be_known = seq < proven || last_back >= Some(seq);
                let write = opcode == Opcode::Write && will_be_known && !is_behind;
                !(opcode.is_atomic() || records && write)
            });
        }
        !waits
            && (retired..handed).all(|seq| {
                let opcode = self.send.entry(seq).opcode;
                !self.comes_back(seq) && !matches!(opcode, Opcode::Write | Opcode::WriteImm)
            })
    }

    /// The old physical queue pair to ERR. Receives are only appended from here on.
    pub(in crate::virt::core) fn take_down(&self) {
        self.recv_side.visit().set(gate::SUSPENDED);
        lock_mutex(&self.moving).recvs_out = self.recv.retired() < self.recv.handed();
        let Ok(attachment) = self.attachment() else { return };
        self.expect_lies();
        let err = QpAttr { qp_state: qp_state::ERR, ..QpAttr::default() };
        if let Err(error) = attachment.qp.modify(&err, qp_mask::STATE) {
            tracing::warn!("queue pair {:#x}: to ERR: {error}", self.qpn);
        }
        lock_mutex(&self.moving).down = self.srq.is_some().then(Instant::now);
        // What is signalled at ERR comes back behind everything else.
        let mut side = self.send_side.visit();
        let handed = self.send.handed();
        if self.send.retired() < handed && lock_mutex(&self.moving).proofs.upto() < handed {
            self.prove(&mut side, false);
        }
    }

    /// How far the old physical queue pair has come as a responder. `None` where something is still to
    /// come back from it, unless this is the last look. After a harvest.
    pub(in crate::virt::core) fn executed(&self, last_look: bool) -> Option<Executed> {
        let Ok(attachment) = self.attachment() else { return Some(Executed::default()) };
        // Soft queue pairs at ERR execute nothing more, by themselves.
        let exact = attachment.underlay.device.kind() == Kind::Soft;
        let settled = {
            let moving = lock_mutex(&self.moving);
            // Of shared receives one comes back only where it was in hand.
            let lags = moving.down.is_some_and(|since| since.elapsed() < SHARED_LAG);
            let waits = ((moving.recvs_out || lags) && !moving.flushed) || moving.proofs.are_out();
            if !exact && !last_look && waits {
                return None;
            }
            exact || moving.flushed
        };
        let number = || attachment.qp.query(qp_mask::RQ_PSN).ok().map(|attr| attr.rq_psn);
        let source = attachment.underlay.source;
        let (mut psn, mut recorded) = (None, None);
        // What is held back of the count depends on the number.
        let lies = source == Source::Psn && attachment.underlay.may_lie_at_err();
        if lies {
            psn = number();
            self.settle_late(attachment.underlay.id, psn);
        }
        let messages = self.received();
        // The peer acts on these: what comes after them does not count.
        lock_mutex(&self.moving).told = true;
        match source {
            Source::Psn if lies => {}
            Source::Psn => psn = number(),
            // After the count: what was recorded behind a message that the count lacks shows then.
            Source::Record => recorded = self.word.get().map(Word::recorded),
            Source::Counts => {}
        }
        Some(Executed { messages, psn, settled, recorded })
    }

    /// Hands all receives to the new physical queue pair.
    pub(in crate::virt::core) fn receive_on(&self, fresh: &Fresh) {
        let mut side = self.recv_side.visit();
        side.go_over(&fresh.attachment);
        let none = matches!(fresh.state, qp_state::RESET | qp_state::ERR) || self.srq.is_some();
        // One at ERR has nothing to receive: what is in its window is flushed.
        if none || side.gate() & (gate::FAILED | gate::ERR) != 0 {
            side.clear(gate::SUSPENDED);
            return;
        }
        if let Err(errno) = self.hand_recvs_again(&mut side) {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::error!("queue pair {:#x}: a receive is lost: {error}", self.qpn);
        }
        side.clear(gate::SUSPENDED);
    }

    /// Where the shared receive queue stays, it gets again what the old physical queue pair gave back: that
    /// was not consumed. (A receive that vanished with it comes with the next move that creates the queue
    /// anew.)
    pub(in crate::virt::core) fn return_shared(&self) {
        let Some(srq) = &self.srq else { return };
        let returned: Vec<Wc> = {
            let mut moving = lock_mutex(&self.moving);
            let (returned, rest) = std::mem::take(&mut moving.withheld)
                .into_iter()
                .partition(|wc: &Wc| wc.wr_id >> KIND_SHIFT == SHARED >> KIND_SHIFT);
            moving.withheld = rest;
            returned
        };
        returned.iter().for_each(|wc| srq.post_again((wc.wr_id & LOW_31) as u32));
    }

    /// Goes over to the new physical queue pair: the peer has executed that much; `None`, where it is
    /// not to be asked any more. Returns how many bytes of its first request had landed where that is a WRITE
    /// with immediate data: it then waits to be released. All completions of the old one have been
    /// taken, and `receive_on` was called.
    pub(in crate::virt::core) fn attach(
        &self,
        fresh: Fresh,
        peer: Option<&Executed>,
    ) -> (Leaving, Option<u32>) {
        self.attach_as(fresh, |state| match state {
            qp_state::RTS if self.qp_type == qp_type::RC => self.judge(peer),
            // Whatever was handed is sent, as far as anybody can know.
            _ => Some(Plan {
                executed: (self.send.retired()..self.send.handed()).collect(),
                ..Plan::default()
            }),
        })
    }

    /// The same, where `plan` says what is to be done with what was handed, of a queue pair in that state;
    /// `None`, where that cannot be told.
    fn attach_as(
        &self,
        fresh: Fresh,
        plan: impl FnOnce(u32) -> Option<Plan>,
    ) -> (Leaving, Option<u32>) {
        let at_err =
            fresh.state == qp_state::ERR || self.send_side.gate() & (gate::FAILED | gate::ERR) != 0;
        if at_err {
            return (self.attach_at_err(fresh), None);
        }
        let Fresh { attachment, psn, mtu, target, word, incarnation, state, doubled } = fresh;
        lock_mutex(&self.moving).incarnation = incarnation;
        let send_cq = self.send_cq.upgrade();
        // First, so that peers are told of it by whoever sends on it.
        let old = lock_mutex(&self.attachment).replace(attachment.clone());
        let switch = || {
            let mut side = self.send_side.visit();
            let plan = plan(state);
            side.go_over(&attachment, target.clone());
            self.record_to(&mut side, word);
            if side.gate() & gate::FAILED != 0 {
                // It ends already, and goes on with that.
                side.clear(gate::SUSPENDED);
                to_err(&attachment, self.qpn);
                return (None, None);
            }
            let plan = match plan {
                Some(plan) if plan.undecided.is_none() => plan,
                undecided => {
                    self.give_up(&mut side, undecided);
                    return (None, None);
                }
            };
            self.send.attach(Start { psn, mtu }, &plan);
            let cut = plan.replays.iter().find(|replay| {
                replay.skip > 0 && self.send.entry(replay.seq).opcode == Opcode::WriteImm
            });
            let cut = cut.map(|replay| replay.skip);
            self.note_plan(&plan);
            side.replays = plan.replays.into();
            if cut.is_some() {
                return (cut, None);
            }
            (None, self.resume(&mut side))
        };
        let (cut, missing) = match &send_cq {
            Some(cq) => cq.alone(switch),
            None => switch(),
        };
        lock_mutex(&self.moving).broken = false;
        // A peer that is connected counts from there; one that is yet to be, from what the program
        // tells it.
        if matches!(state, qp_state::RTR | qp_state::RTS) {
            lock_mutex(&self.control).own_psn = Some(psn);
        }
        if let Some(missing) = missing {
            missing.resolve(self);
        }
        (Leaving { old, doubled }, cut)
    }

    /// Goes over at ERR: what is outstanding is flushed, by the old physical queue pair as far as that
    /// has done it, and by us.
    fn attach_at_err(&self, fresh: Fresh) -> Leaving {
        let Fresh { attachment, doubled, .. } = fresh;
        self.return_withheld();
        let send = || {
            let mut side = self.send_side.visit();
            side.go_over(&attachment, None);
            side.clear(gate::SUSPENDED);
            to_err(&attachment, self.qpn);
            if side.gate() & gate::FAILED != 0 {
                self.flush_sends(&mut side, true);
            } else if self.send.retired() < self.send.appended() {
                self.send.unhand(self.send.retired());
                self.end_here(&mut side, wc_status::WR_FLUSH_ERR);
            }
        };
        let recv = || {
            let mut side = self.recv_side.visit();
            side.set(gate::ERR);
            side.clear(gate::SUSPENDED);
            if self.recv.retired() < self.recv.appended() {
                self.end_recvs(&mut side, true);
            }
        };
        match self.send_cq.upgrade() {
            Some(cq) => cq.alone(send),
            None => send(),
        }
        match self.recv_cq.upgrade() {
            Some(cq) => cq.alone(recv),
            None => recv(),
        }
        Leaving { old: lock_mutex(&self.attachment).replace(attachment), doubled }
    }

    /// What is to be done with what was handed; `None` where that cannot be told.
    fn judge(&self, peer: Option<&Executed>) -> Option<Plan> {
        let (retired, handed) = (self.send.retired(), self.send.handed());
        let Some(peer) = peer else {
            return (retired == handed).then(Plan::default);
        };
        tracing::debug!(
            "queue pair {:#x}: the peer has executed {peer:?}; requests {retired} to {handed} are out",
            self.qpn
        );
        match self.send.judge(peer, retired) {
            Ok(plan) => Some(plan),
            Err(error) => {
                tracing::error!("queue pair {:#x}: {error}", self.qpn);
                None
            }
        }
    }

    /// Completions of ours, in turn with those of the requests that are done again. While nobody
    /// polls.
    fn note_plan(&self, plan: &Plan) {
        let due = {
            let mut moving = lock_mutex(&self.moving);
            moving.executed = plan.executed.iter().copied().collect();
            moving.replays = plan.replays.iter().map(|replay| replay.seq).collect();
            moving.failed = false;
            let mut due = Vec::new();
            self.take_due(&mut moving, &mut due);
            due
        };
        if plan.executed.is_empty() && plan.replays.is_empty() {
            return;
        }
        self.watch.fetch_or(watch::THROUGH, Ordering::SeqCst);
        if let Some(cq) = self.send_cq.upgrade() {
            cq.pass(self);
            cq.hold(due.into_iter().map(Held::gone));
        }
    }

    /// Executed requests behind nothing that was handed again and is waited for: they leave the window.
    fn take_due(&self, moving: &mut Moving, due: &mut Vec<Wc>) {
        let limit = moving.replays.front().copied().unwrap_or(u64::MAX);
        while let Some(seq) = moving.executed.front().copied().filter(|seq| *seq < limit) {
            moving.executed.pop_front();
            if moving.failed || self.send.is_signaled(seq) {
                let status =
                    if moving.failed { wc_status::WR_FLUSH_ERR } else { wc_status::SUCCESS };
                due.push(self.completion(seq, status));
            }
            self.send.retire(seq);
        }
    }

    fn completion(&self, seq: u64, status: u32) -> Wc {
        let entry = self.send.entry(seq);
        let opcode = completion_of(entry.opcode);
        Wc { wr_id: entry.wr_id, status, opcode, qp_num: self.qpn, ..Wc::default() }
    }

    /// A send completion has come, which the program `asked` for or not: all that are due now, in
    /// order. Their entries leave the window. Called by pollers.
    #[cold]
    pub(in crate::virt::core) fn in_turn(&self, wc: &Wc, asked: bool) -> Vec<Wc> {
        let mut due = Vec::new();
        let Some(seq) = self.send.expand((wc.wr_id & LOW_31) as u32) else { return due };
        let mut moving = lock_mutex(&self.moving);
        // A completion covers all that were posted before it.
        while moving.replays.front().is_some_and(|replay| *replay < seq) {
            moving.replays.pop_front();
        }
        self.take_due(&mut moving, &mut due);
        if moving.replays.front() == Some(&seq) {
            moving.replays.pop_front();
        }
        moving.failed |= wc.status != wc_status::SUCCESS;
        if asked || wc.status != wc_status::SUCCESS {
            due.push(Wc { wr_id: self.send.wr_id(seq), qp_num: self.qpn, ..*wc });
        }
        self.send.retire(seq);
        self.take_due(&mut moving, &mut due);
        due
    }

    /// Its completions need not go through the backlog any longer, which is empty. False where they
    /// must. Called by pollers.
    pub(in crate::virt::core) fn leave_through(&self) -> bool {
        let moving = lock_mutex(&self.moving);
        let done = moving.executed.is_empty() && moving.replays.is_empty();
        if done {
            self.watch.fetch_and(!watch::THROUGH, Ordering::Release);
        }
        done
    }

    /// Whether a completion is a failure of the path that is being left, or of one that another may take the
    /// place of. Called by pollers.
    #[cold]
    pub(in crate::virt::core) fn withholds(&self, device: DeviceId, wc: &Wc) -> bool {
        // One that ends by itself flushes for the program, and not for us.
        let withhold = self.watch.load(Ordering::Acquire) & watch::WITHHOLD != 0;
        if self.send_side.gate() & gate::FAILED != 0 {
            return false;
        }
        if !withhold && (wc.status == wc_status::SUCCESS || !self.breaks(wc)) {
            return false;
        }
        let mut moving = lock_mutex(&self.moving);
        let Some(old) = moving.old else {
            drop(moving);
            // A move has been given up, or is over, since the first look: it is the program's, or a path's.
            let over = withhold && self.watch.load(Ordering::Acquire) & watch::WITHHOLD == 0;
            return over && self.withholds(device, wc);
        };
        if old != (device, wc.qp_num) {
            drop(moving);
            return self.withholds_early(device, wc);
        }
        if moving.returned[usize::from(is_recv(wc))] {
            return false;
        }
        if moving.told {
            return true;
        }
        if wc.status == wc_status::SUCCESS {
            return moving.late.holds(wc);
        }
        if moving.withheld.is_empty() || wc.status != wc_status::WR_FLUSH_ERR {
            tracing::debug!(
                "queue pair {:#x}: {} of a {} (vendor error {:#x}) is withheld",
                self.qpn,
                wc_status::name(wc.status),
                if is_recv(wc) { "receive" } else { "send" },
                wc.vendor_err
            );
        }
        moving.withhold(wc);
        true
    }

    /// Whether a failure is that of a path that another may take the place of: it is to be withheld then,
    /// and help is called. Called by pollers.
    fn breaks(&self, wc: &Wc) -> bool {
        if !may_be_of_path(wc) {
            return false;
        }
        let Some(attachment) = self.replaceable() else { return false };
        if attachment.qp.qp_num() != wc.qp_num {
            return false;
        }
        {
            let mut side = self.send_side.visit();
            // Somebody else who polls another of its CQs may have found it first; or it comes after
            // all, because it was judged already.
            if !self.begin_withholding(&attachment, true) {
                return self.is_broken();
            }
            side.set(gate::SUSPENDED);
        }
        self.call_for_help();
        true
    }

    /// The status that broke it, where that may be the path's fault. All completions have been taken.
    pub(in crate::virt::core) fn cause(&self) -> Option<u32> {
        lock_mutex(&self.moving).first_failure().filter(|status| is_of_path(*status))
    }

    /// There is no other path: the program gets what was withheld. Nothing where it is not broken.
    pub(in crate::virt::core) fn let_it_fail(&self) {
        self.while_it_stays(|| {
            if std::mem::take(&mut lock_mutex(&self.moving).broken) {
                // What is given back looks as it did when it was withheld.
                self.is_ending.store(true, Ordering::Release);
                self.go_on();
            }
        });
    }

    /// The request whose receive comes next was cut: so many bytes of it had landed.
    pub(in crate::virt::core) fn expect_cut(&self, landed: u32) {
        lock_mutex(&self.moving).mend = landed;
        self.watch.fetch_or(watch::MEND, Ordering::Release);
    }

    /// Mends the length in a receive's completion, where its request was cut. Called by pollers.
    #[inline]
    pub(in crate::virt::core) fn mend(&self, wc: &mut Wc) {
        if self.watch.load(Ordering::Acquire) & watch::MEND != 0
            && wc.status == wc_status::SUCCESS
            && wc.opcode == wc_opcode::RECV_RDMA_WITH_IMM
        {
            self.watch.fetch_and(!watch::MEND, Ordering::Release);
            wc.byte_len = wc.byte_len.saturating_add(lock_mutex(&self.moving).mend);
        }
    }

    /// What was handed cannot be done again: its first request that was not executed for certain, and all behind
    /// it, end with errors. While nobody polls.
    fn give_up(&self, side: &mut Guard<'_, SendSide>, plan: Option<Plan>) {
        let retired = self.send.retired();
        let out = self.send.handed() - retired;
        tracing::warn!(
            "queue pair {:#x} ends: of {out} requests nobody can tell whether they were executed",
            self.qpn
        );
        let (first, executed) = match plan {
            Some(plan) => {
                let replay = plan.replays.first().map(|replay| replay.seq);
                let first = replay.into_iter().chain(plan.undecided).min().unwrap_or(retired);
                (first, plan.executed)
            }
            None => (retired, Vec::new()),
        };
        let mut done = Vec::new();
        for seq in executed.into_iter().filter(|seq| *seq < first) {
            if self.send.is_signaled(seq) {
                done.push(self.completion(seq, wc_status::SUCCESS));
            }
            self.send.retire(seq);
        }
        if let Some(cq) = self.send_cq.upgrade() {
            cq.hold(done.into_iter().map(Held::gone));
        }
        self.forget_replays();
        self.send.unhand(first.max(self.send.retired()));
        self.end_here(side, wc_status::RETRY_EXC_ERR);
    }

    /// Nothing is in turn any more.
    pub(super) fn forget_replays(&self) {
        let mut moving = lock_mutex(&self.moving);
        moving.executed.clear();
        moving.replays.clear();
        moving.failing_since = None;
    }

    /// The peer is gone: what was handed ends as verbs end it.
    pub(in crate::virt::core) fn lose_peer(&self) {
        let lose = || {
            let mut side = self.send_side.visit();
            if side.gate() & gate::FAILED != 0 {
                side.clear(gate::SUSPENDED);
            } else if self.send.retired() == self.send.appended() {
                // Nothing is out. What comes will be told so by the device, in its own time.
                let _ = self.resume(&mut side);
            } else {
                self.give_up(&mut side, None);
            }
        };
        match self.send_cq.upgrade() {
            Some(cq) => cq.alone(lose),
            None => lose(),
        }
    }

    /// What has been appended meanwhile is handed.
    fn resume(&self, side: &mut Guard<'_, SendSide>) -> Option<Missing> {
        // Posters stay behind what waits.
        side.set(gate::BLOCKED);
        side.clear(gate::SUSPENDED);
        match self.push_in(side) {
            Blocked::By(missing) => Some(missing),
            Blocked::No => None,
        }
    }

    /// Goes on after its first request was cut, or with the old physical queue pair.
    pub(in crate::virt::core) fn release(&self) {
        let missing = {
            let mut side = self.send_side.visit();
            if side.gate() & gate::SUSPENDED == 0 {
                return;
            }
            if side.gate() & gate::FAILED != 0 {
                side.clear(gate::SUSPENDED);
                return;
            }
            self.resume(&mut side)
        };
        if let Some(missing) = missing {
            missing.resolve(self);
        }
    }

    /// What was withheld comes after all, before anything that comes later.
    fn return_withheld(&self) {
        let Some((device, _)) = lock_mutex(&self.moving).old else { return };
        for (recvs, cq) in [(false, &self.send_cq), (true, &self.recv_cq)] {
            if let Some(cq) = cq.upgrade() {
                cq.give_back(device, || self.no_longer_withhold(recvs));
            }
        }
        self.watch.fetch_and(!watch::WITHHOLD, Ordering::SeqCst);
    }

    /// What was withheld of its receives, or of its sends. While nobody polls their CQ.
    fn no_longer_withhold(&self, recvs: bool) -> Vec<Wc> {
        let mut moving = lock_mutex(&self.moving);
        moving.returned[usize::from(recvs)] = true;
        let all = std::mem::take(&mut moving.withheld);
        let (returned, kept) = all.into_iter().partition(|wc| is_recv(wc) == recvs);
        moving.withheld = kept;
        returned
    }

    /// Of what was withheld, the sends: before a request of ours says that all of them are through.
    #[cold]
    pub(in crate::virt::core) fn take_withheld_sends(&self) -> Vec<Wc> {
        let mut moving = lock_mutex(&self.moving);
        let withheld = std::mem::take(&mut moving.withheld);
        let (recvs, sends): (Vec<_>, Vec<_>) = withheld.into_iter().partition(is_recv);
        moving.withheld = recvs;
        sends
    }

    /// Destroys what was left. What it has put into the CQs is to be harvested next, and then it is to be
    /// forgotten: a harvest may be one for many queue pairs.
    pub(in crate::virt::core) fn destroy_left(&self, leaving: Leaving) -> Left {
        let Leaving { old, doubled } = leaving;
        let number = old.map(|old| {
            let number = old.qp.qp_num();
            let underlay = old.underlay;
            drop(old.qp);
            (underlay, number)
        });
        // Its messages are told from those of others by the physical number alone, which the device may
        // deal again at once: they wait for nobody.
        if self.srq.is_some() {
            self.cqs().for_each(|cq| cq.harvest_now());
        }
        Left { number, doubled }
    }

    /// Forgets what was destroyed: nothing of it is in the CQs any more.
    pub(in crate::virt::core) fn forget_left(&self, left: Left) {
        if let Some((underlay, number)) = left.number {
            underlay.qpns.unset(number as usize, number, self.qpn);
        }
        self.end_withholding();
        self.release_room(left.doubled);
        self.end_moving();
    }

    /// Nothing physical is outstanding: whatever is in the window beyond the cursor ends with `status`.
    fn end_here(&self, side: &mut Guard<'_, SendSide>, status: u32) {
        side.ending = Ending::through(self.send.handed(), status);
        self.begin_ending(side, status);
    }
}

/// What a queue pair has left behind.
#[must_use = "it is destroyed by `QpCore::destroy_left`"]
pub(in crate::virt::core) struct Leaving {
    old: Option<Attachment>,
    doubled: bool,
}

/// What has been destroyed of that: its device and number.
#[must_use = "it is forgotten by `QpCore::forget_left`"]
pub(in crate::virt::core) struct Left {
    number: Option<(Arc<Underlay>, u32)>,
    doubled: bool,
}

/// By its physical `wr_id`.
fn is_recv(wc: &Wc) -> bool {
    wc.wr_id & RECV != 0 || wc.wr_id >> KIND_SHIFT == SHARED >> KIND_SHIFT
}

fn to_err(attachment: &Attachment, qpn: u32) {
    let err = QpAttr { qp_state: qp_state::ERR, ..QpAttr::default() };
    if let Err(error) = attachment.qp.modify(&err, qp_mask::STATE) {
        tracing::warn!("queue pair {qpn:#x}: to ERR: {error}");
    }
}
