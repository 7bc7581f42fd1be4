//! One queue pair with one peer: both directions, and what the two sides tell each other.

use crate::control::State;
use crate::kind::Transport;
use crate::receiver::{Arrival, Receiver};
use crate::receives::Receives;
use crate::report::{Checked, Failure, Fault, LinkCounts};
use crate::sender::{Blocked, CREDIT, SEND_TAG, Sender};
use sojourn::abi::{Wc, wc_status};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After so long an unreliable queue pair says again what may have been lost.
const AGAIN: Duration = Duration::from_millis(20);

/// Who is at both ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) rank: u32,
    pub(crate) peer: u32,
    pub(crate) index: u32,
    pub(crate) qpn: u32,
    /// The peer's number, as datagrams tell it.
    pub(crate) peer_qpn: u32,
    pub(crate) transport: Transport,
}

/// A queue pair in use.
pub(crate) struct Link {
    who: Identity,
    sender: Sender,
    receiver: Receiver,
    receives: Arc<Mutex<Receives>>,
    told: State,
    told_at: Instant,
    /// What was said of this side's stream when it asked last. Told without asking, the same may
    /// have been said before, and no answer come.
    asked: Option<(u64, u64, Option<u64>)>,
    /// The peer has asked, and was not answered yet.
    owed: bool,
    /// When something completed last.
    progress: Instant,
    buffer: Vec<u8>,
}

impl Link {
    pub(crate) fn new(
        who: Identity,
        sender: Sender,
        receiver: Receiver,
        receives: Arc<Mutex<Receives>>,
    ) -> Self {
        let now = Instant::now();
        let told = State { prepared: receiver.prepared(), ..State::default() };
        Link {
            who,
            sender,
            receiver,
            receives,
            told,
            told_at: now,
            asked: None,
            owed: false,
            progress: now,
            buffer: Vec::new(),
        }
    }

    /// Posts whatever can be posted. Says whether it posted anything.
    pub(crate) fn pump(&mut self, now: Instant, may_end: bool) -> Result<bool, Failure> {
        self.try_pump(now, may_end).map_err(|fault| self.blame(&fault))
    }

    fn try_pump(&mut self, now: Instant, may_end: bool) -> Checked<bool> {
        lock(&self.receives).post(now)?;
        let posted = self.sender.pump(may_end)?;
        if self.sender.control_out() || self.sender.silent() {
            return Ok(posted);
        }
        let state = self.state();
        let told = self.told;
        let lossy = self.who.transport.lossy();
        let again = lossy && now >= self.told_at + AGAIN;
        let waits =
            matches!(self.sender.blocked(), Some(Blocked::Ring | Blocked::Read | Blocked::Credit))
                || (state.total.is_some() && !self.sender.closed());
        let mine = Some((state.posted, state.reads_done, state.total));
        let ask = waits && (again || self.asked != mine);
        let offers = state.freed - told.freed >= self.receiver.landing().much()
            || (lossy && state.dealt - told.dealt >= CREDIT / 2)
            || state.closed && !told.closed;
        if ask || offers || self.owed || self.sender.needs_flush() {
            self.sender.post_control(state, ask)?;
            (self.told, self.told_at, self.owed) = (state, now, false);
            if ask {
                self.asked = mine;
            }
            return Ok(true);
        }
        Ok(posted)
    }

    fn state(&self) -> State {
        let mut state = State {
            dealt: self.receiver.dealt(),
            freed: self.receiver.landing().freed(),
            prepared: self.receiver.prepared(),
            closed: self.receiver.closed(),
            ..State::default()
        };
        self.sender.tell(&mut state);
        state
    }

    /// Takes a completion of this queue pair.
    pub(crate) fn complete(&mut self, wc: &Wc, now: Instant) -> Result<(), Failure> {
        self.progress = now;
        let done = match wc.wr_id & SEND_TAG {
            0 => self.receive(wc, now),
            _ => self.sender.complete(wc),
        };
        done.map_err(|fault| self.blame(&fault))
    }

    fn receive(&mut self, wc: &Wc, now: Instant) -> Checked {
        let mut receives = lock(&self.receives);
        let slot = receives.take(wc.wr_id)?;
        if wc.status != wc_status::SUCCESS {
            let found = format!("{} ({})", wc_status::name(wc.status), wc.status);
            return Err(Fault::new("a receive", None, "a completion with SUCCESS", found).broken());
        }
        receives.read(slot, wc.byte_len as usize, &mut self.buffer);
        receives.give_back(slot, now);
        drop(receives);
        if self.who.transport == Transport::Ud && wc.src_qp != self.who.peer_qpn {
            let found = format!("{:#x}", wc.src_qp);
            let expected = format!("src_qp {:#x}", self.who.peer_qpn);
            return Err(Fault::new("a receive", None, expected, found));
        }
        if let Some(control) = self.receiver.arrive(&Arrival { wc, bytes: &self.buffer })? {
            self.sender.learn(&control.state);
            self.owed |= control.ask;
        }
        Ok(())
    }

    /// Both streams have ended, and both sides know it.
    pub(crate) fn done(&self) -> bool {
        self.sender.closed() && self.told.closed && !self.sender.control_out()
    }

    /// The last look at memory, when nobody sends any more.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.receiver.finish().map_err(|fault| self.blame(&fault))
    }

    /// FETCH_ADDs of the peer on the word of this rank that all share.
    pub(crate) fn shared_adds(&self) -> u64 {
        self.receiver.shared_adds
    }

    /// When something completed last.
    pub(crate) fn progress(&self) -> Instant {
        self.progress
    }

    /// Its number in completions.
    pub(crate) fn qpn(&self) -> u32 {
        self.who.qpn
    }

    /// What it came to.
    pub(crate) fn counts(&self) -> LinkCounts {
        LinkCounts {
            transport: self.who.transport,
            done: self.sender.done,
            checked: self.receiver.checked,
            lost: self.receiver.lost,
            controls: self.sender.controls(),
        }
    }

    /// What it waits for.
    pub(crate) fn waits(&self) -> String {
        let who = self.who;
        format!(
            "{}: {}; of rank {} it has dealt with {} messages (ended: {}), {} receives are posted, \
             state {}",
            who.name(),
            self.sender.waits(),
            who.peer,
            self.receiver.dealt(),
            self.receiver.closed(),
            lock(&self.receives).len(),
            self.sender.qp().state().map_or("?", sojourn::abi::qp_state::name),
        )
    }

    fn blame(&self, fault: &Fault) -> Failure {
        fault.blame(self.who.name())
    }
}

impl Identity {
    fn name(&self) -> String {
        format!(
            "rank {}, {} queue pair {} ({:#x}) with rank {}",
            self.rank, self.transport, self.index, self.qpn, self.peer
        )
    }
}

fn lock(receives: &Mutex<Receives>) -> std::sync::MutexGuard<'_, Receives> {
    receives.lock().unwrap_or_else(PoisonError::into_inner)
}
