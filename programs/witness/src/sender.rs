//! The sending side of a stream: what is posted, and that each request completes exactly once, in
//! order, with what it was to bring.

mod cut;
mod misbehave;

use self::cut::cut;
use crate::control::{self, Control, State};
use crate::kind::{Kind, Transport};
use crate::payload;
use crate::plot::Plot;
use crate::receiver::{ADD_AT, Blocks, SWAP_AT};
use crate::report::{Checked, Fault, Tally};
use crate::ring::{Place, Ring};
use crate::script::{Message, Script};
use sojourn::abi::{Sge, Wc, wc_opcode, wc_status};
use sojourn::verbs::SendRequest;
use sojourn::verbs::{AddressHandle, Data, Datagram, MemoryRegion, Op, QueuePair, Remote};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests beyond the window: control messages, and what is done twice on purpose.
pub(crate) const EXTRA: usize = 4;

/// The largest messages that the memory for outgoing ones holds.
pub(crate) const PLACES: usize = 3;

/// Unreliable streams are not further ahead of the peer than this: it has no more receives, and
/// what finds none is lost.
pub(crate) const CREDIT: u64 = 6;

/// Bit of the identifiers of send requests.
pub(crate) const SEND_TAG: u64 = 1 << 63;

/// The queue key of all datagrams.
pub(crate) const QKEY: u32 = 0x0057_1735;

/// Old values that FETCH_ADDs on shared words have returned, by the rank that has the word.
pub(crate) type Drawn = Mutex<HashSet<(u32, u64)>>;

/// How requests ask for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signals {
    /// The queue pair makes every request a signalled one.
    Queue,
    /// Every request asks.
    Each,
    /// Runs of requests do not ask.
    Some,
}

/// What a sender works with.
pub(crate) struct Io {
    pub(crate) qp: QueuePair,
    /// Where outgoing payloads are, and where results land.
    pub(crate) arena: Arc<MemoryRegion>,
    /// The peer's memory for this stream.
    pub(crate) remote: Remote,
    /// Where the peer's ring begins in it.
    pub(crate) landing_at: usize,
    /// Where READs find their data.
    pub(crate) blocks: Blocks,
    /// The word of the peer that all its peers add to.
    pub(crate) shared: Remote,
    /// Where datagrams go.
    pub(crate) datagram: Option<(AddressHandle, u32)>,
    pub(crate) signals: Signals,
    pub(crate) window: usize,
    pub(crate) drawn: Arc<Drawn>,
    pub(crate) plot: Option<Arc<Plot>>,
}

/// Why the next message is not posted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// Enough are outstanding.
    Window,
    /// The memory for outgoing payloads is full.
    Arena,
    /// The peer has not given back enough of its ring.
    Ring,
    /// The peer has not prepared the memory to be read.
    Read,
    /// The peer of an unreliable stream has not told what became of earlier ones.
    Credit,
}

/// What a request is.
#[derive(Clone, Copy, Debug)]
enum What {
    Message(Message),
    Control(u64),
    /// Done once more on purpose.
    Again(Message),
}

/// A posted request.
#[derive(Debug)]
struct Posted {
    wr_id: u64,
    what: What,
    signaled: bool,
    place: Option<Place>,
    /// What an atomic must return.
    old: u64,
}

/// The sending side.
pub(crate) struct Sender {
    transport: Transport,
    script: Script,
    io: Io,
    at_least: u64,
    next: u64,
    total: Option<u64>,
    posted: VecDeque<Posted>,
    /// Those of them that are no control messages.
    outstanding: usize,
    next_wr: u64,
    unsignaled: usize,
    controls: u64,
    control_out: bool,
    arena: Ring,
    target: Ring,
    reads_posted: u64,
    reads_done: u64,
    added: u64,
    swaps: u64,
    last_shared: Option<u64>,
    /// What the peer has told.
    peer: State,
    blocked: Option<Blocked>,
    scratch: Vec<u8>,
    /// WRITEs that could be done twice on purpose.
    written: VecDeque<(Message, Place)>,
    pub(crate) done: Tally,
}

impl Sender {
    pub(crate) fn new(
        transport: Transport,
        script: Script,
        io: Io,
        at_least: u64,
        (arena, target): (usize, usize),
        prepared: u64,
    ) -> Self {
        Sender {
            transport,
            script,
            io,
            at_least,
            next: 0,
            total: None,
            posted: VecDeque::new(),
            outstanding: 0,
            next_wr: 0,
            unsignaled: 0,
            controls: 0,
            control_out: false,
            arena: Ring::new(arena),
            target: Ring::new(target),
            reads_posted: 0,
            reads_done: 0,
            added: 0,
            swaps: 0,
            last_shared: None,
            peer: State { prepared, ..State::default() },
            blocked: None,
            scratch: Vec::new(),
            written: VecDeque::new(),
            done: Tally::default(),
        }
    }

    /// The queue pair.
    pub(crate) fn qp(&self) -> &QueuePair {
        &self.io.qp
    }

    /// Fills in what this side can tell of its stream.
    pub(crate) fn tell(&self, state: &mut State) {
        state.posted = self.next;
        state.reads_done = self.reads_done;
        state.total = self.total.filter(|_| self.outstanding == 0);
    }

    /// What the peer said of this stream.
    pub(crate) fn learn(&mut self, state: &State) {
        self.target.free(state.freed);
        self.peer = *state;
    }

    /// The peer has dealt with all of this stream.
    pub(crate) fn closed(&self) -> bool {
        self.peer.closed
    }

    /// Why it does not go on.
    pub(crate) fn blocked(&self) -> Option<Blocked> {
        self.blocked
    }

    /// A control message is on its way.
    pub(crate) fn control_out(&self) -> bool {
        self.control_out
    }

    /// It keeps quiet on purpose.
    pub(crate) fn silent(&self) -> bool {
        self.io.plot.as_ref().is_some_and(|plot| plot.silences(self.next))
    }

    /// Control messages sent.
    pub(crate) fn controls(&self) -> u64 {
        self.controls
    }

    /// Nothing outstanding will tell of its completion, though something waits for it.
    pub(crate) fn needs_flush(&self) -> bool {
        let waits = self.total.is_some() || self.blocked == Some(Blocked::Arena);
        waits && self.outstanding > 0 && !self.posted.iter().any(|posted| posted.signaled)
    }

    /// Posts what can be posted. With `may_end` the stream ends where it has been long enough.
    pub(crate) fn pump(&mut self, may_end: bool) -> Checked<bool> {
        let before = self.next_wr;
        self.blocked = None;
        self.rewrite()?;
        while self.total.is_none() {
            if may_end && self.next >= self.at_least {
                self.total = Some(self.next);
                break;
            }
            let message = self.script.message(self.next);
            self.blocked = self.lacking(&message);
            if self.blocked.is_some() {
                break;
            }
            if !self.misbehave(&message)? {
                self.post(&message)?;
                self.next += 1;
            }
        }
        self.add_twice()?;
        Ok(self.next_wr > before)
    }

    fn lacking(&self, message: &Message) -> Option<Blocked> {
        if self.outstanding >= self.io.window {
            Some(Blocked::Window)
        } else if !message.inline && !self.arena.fits(message.skew + message.size) {
            Some(Blocked::Arena)
        } else if message.kind.writes() && !self.target.fits(message.skew + message.size) {
            Some(Blocked::Ring)
        } else if message.kind == Kind::Read && self.reads_posted >= self.peer.prepared {
            Some(Blocked::Read)
        } else if self.transport.lossy() && self.next >= self.peer.dealt + CREDIT {
            Some(Blocked::Credit)
        } else {
            None
        }
    }

    /// Posts a message of the stream.
    fn post(&mut self, message: &Message) -> Checked {
        let mut old = 0;
        let target = match message.kind.writes() {
            true => self.target.take(message.skew + message.size),
            false => None,
        };
        let at = |offset: usize| self.io.remote.offset(offset as u64);
        let op = match message.kind {
            Kind::Send => Op::Send,
            Kind::SendImm => Op::SendImm(message.imm()),
            Kind::Write => Op::Write(self.landing(message, target)),
            Kind::WriteImm => Op::WriteImm(self.landing(message, target), message.imm()),
            Kind::Read => {
                let read = self.reads_posted;
                self.reads_posted += 1;
                Op::Read(at(self.io.blocks.of(read, message)))
            }
            Kind::FetchAdd if message.shared => Op::FetchAdd(self.io.shared, message.add()),
            Kind::FetchAdd => {
                old = self.added;
                self.added = self.added.wrapping_add(message.add());
                Op::FetchAdd(at(ADD_AT), message.add())
            }
            Kind::CmpSwap => {
                old = self.script.swapped(self.swaps);
                if message.miss {
                    Op::CompareSwap(at(SWAP_AT), !old, 0)
                } else {
                    self.swaps += 1;
                    Op::CompareSwap(at(SWAP_AT), old, self.script.swapped(self.swaps))
                }
            }
        };
        if let (Some(place), Some(_)) = (target, &self.io.plot) {
            self.written.push_back((*message, place));
            // A few are enough.
            if self.written.len() > 64 {
                self.written.pop_front();
            }
        }
        self.post_as(What::Message(*message), message, op, old)
    }

    fn landing(&self, message: &Message, place: Option<Place>) -> Remote {
        let start = place.map_or(0, |place| self.target.offset(place.start));
        self.io.remote.offset((self.io.landing_at + start + message.skew) as u64)
    }

    fn post_as(&mut self, what: What, message: &Message, op: Op, old: u64) -> Checked {
        self.script.payload(message, &mut self.scratch);
        if let (Some(plot), What::Message(_)) = (&self.io.plot, what) {
            plot.damage(message, &mut self.scratch);
        }
        let gathers = !message.inline || matches!(what, What::Again(_));
        let place = if gathers { self.arena.take(message.skew + message.size) } else { None };
        if gathers && place.is_none() {
            let found = "all of it in use";
            return Err(Fault::new(message.kind, Some(message.seq), "memory for it", found));
        }
        let start = place.map_or(0, |place| self.arena.offset(place.start) + message.skew);
        let mut sges = [Sge::default(); 3];
        let data = match place {
            None => Data::Inline(&self.scratch),
            Some(_) => {
                // Results are no payload: what a READ does not bring must not be there.
                if !matches!(message.kind, Kind::Read) && !message.kind.is_atomic() {
                    self.io.arena.write(start, &self.scratch);
                }
                let start = start - if message.kind.is_atomic() { message.skew } else { 0 };
                Data::Gather(cut(&self.io.arena, start, message, &mut sges))
            }
        };
        // One in so many asks; the last of half a window always does.
        let chance = message.dice.is_multiple_of(4);
        let longest = (self.io.window / 2).saturating_sub(1);
        let signaled = match self.io.signals {
            Signals::Queue | Signals::Each => true,
            Signals::Some => chance || self.unsignaled >= longest || matches!(what, What::Again(_)),
        };
        let asks = signaled && self.io.signals != Signals::Queue;
        let wr_id = SEND_TAG | self.next_wr;
        let fence = message.dice >> 8 & 7 == 0;
        let solicited = message.dice >> 11 & 1 == 0 && message.kind.consumes();
        let to = datagram(&self.io);
        let request = SendRequest { wr_id, op, data, signaled: asks, solicited, fence, to };
        self.io
            .qp
            .post_send(&request)
            .map_err(|error| Fault::call(message.kind, Some(message.seq), &error))?;
        self.unsignaled = if signaled { 0 } else { self.unsignaled + 1 };
        self.next_wr += 1;
        self.outstanding += 1;
        self.posted.push_back(Posted { wr_id, what, signaled, place, old });
        Ok(())
    }

    /// Tells the peer something.
    pub(crate) fn post_control(&mut self, state: State, ask: bool) -> Checked {
        let control = Control { seq: self.controls, state, ask };
        let wr_id = SEND_TAG | self.next_wr;
        let bytes = control.to_bytes(self.script.stream);
        let request = SendRequest {
            to: datagram(&self.io),
            signaled: self.io.signals != Signals::Queue,
            solicited: true,
            ..SendRequest::inline(wr_id, Op::SendImm(control.imm()), &bytes)
        };
        let posted = self.io.qp.post_send(&request);
        posted.map_err(|error| Fault::call("a control message", Some(control.seq), &error))?;
        let what = What::Control(control.seq);
        self.posted.push_back(Posted { wr_id, what, signaled: true, place: None, old: 0 });
        self.unsignaled = 0;
        self.next_wr += 1;
        self.controls += 1;
        self.control_out = true;
        Ok(())
    }

    /// Takes a completion of the send queue.
    pub(crate) fn complete(&mut self, wc: &Wc) -> Checked {
        let Some(at) = self.posted.iter().position(|posted| posted.wr_id == wc.wr_id) else {
            let first = self.posted.front().map(Posted::name).unwrap_or("none".into());
            let found = format!(
                "one of request {:#x}: none such is outstanding, or it completed before",
                wc.wr_id
            );
            return Err(Fault::new("a completion", None, format!("that of {first}"), found));
        };
        let posted = &self.posted[at];
        if wc.status != wc_status::SUCCESS {
            let found = format!("{} ({})", wc_status::name(wc.status), wc.status);
            return Err(posted.fault("a completion with SUCCESS", found).broken());
        }
        if let Some(skipped) = self.posted.iter().take(at).find(|posted| posted.signaled) {
            return Err(skipped.fault("its completion", format!("that of {}", posted.name())));
        }
        if !posted.signaled {
            return Err(posted.fault("no completion, since it asked for none", "one".into()));
        }
        let (opcode, length) = posted.completes_as();
        if wc.opcode != opcode || length.is_some_and(|length| wc.byte_len as usize != length) {
            let name = wc_opcode::name;
            return Err(posted.fault(
                &format!("opcode {} and byte_len {length:?}", name(opcode)),
                format!("{} and {}", name(wc.opcode), wc.byte_len),
            ));
        }
        for _ in 0..=at {
            if let Some(posted) = self.posted.pop_front() {
                self.finish(posted)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, posted: Posted) -> Checked {
        match posted.what {
            What::Control(_) => self.control_out = false,
            What::Again(_) => self.outstanding -= 1,
            What::Message(message) => {
                self.outstanding -= 1;
                self.done.add(message.kind, message.size);
                match message.kind {
                    Kind::Read => self.check_read(&message, &posted)?,
                    Kind::FetchAdd | Kind::CmpSwap => self.check_atomic(&message, &posted)?,
                    _ => {}
                }
            }
        }
        if let Some(place) = posted.place {
            self.arena.free(place.end);
        }
        Ok(())
    }

    fn check_read(&mut self, message: &Message, posted: &Posted) -> Checked {
        self.reads_done += 1;
        let start = posted.place.map_or(0, |place| self.arena.offset(place.start) + message.skew);
        let mut found = vec![0; message.size];
        self.io.arena.read(start, &mut found);
        self.script.payload(message, &mut self.scratch);
        if found != self.scratch {
            let what = format!("the {} bytes that the peer has there", message.size);
            return Err(posted.fault(&what, payload::describe(&self.scratch, &found)));
        }
        Ok(())
    }

    fn check_atomic(&mut self, message: &Message, posted: &Posted) -> Checked {
        let start = posted.place.map_or(0, |place| self.arena.offset(place.start));
        let mut old = [0; 8];
        self.io.arena.read(start, &mut old);
        let old = u64::from_ne_bytes(old);
        if !(message.kind == Kind::FetchAdd && message.shared) {
            if old != posted.old {
                let expected = format!("the old value {:#x}", posted.old);
                return Err(posted.fault(&expected, format!("{old:#x}")));
            }
            return Ok(());
        }
        if self.last_shared.is_some_and(|last| old <= last) {
            let expected = format!("an old value above {:#x}", self.last_shared.unwrap_or(0));
            return Err(posted.fault(&expected, format!("{old:#x}")));
        }
        self.last_shared = Some(old);
        let mut drawn = self.io.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if !drawn.insert((self.script.stream.to, old)) {
            let found = format!("{old:#x}, which another one got, too");
            return Err(posted.fault("an old value of its own", found));
        }
        Ok(())
    }

    /// What it waits for.
    pub(crate) fn waits(&self) -> String {
        let oldest = self.posted.front().map(|posted| format!(", the oldest {}", posted.name()));
        let end = match self.total {
            Some(total) if self.peer.closed => format!("all {total} messages dealt with"),
            Some(total) => {
                format!("all {total} posted, the peer has dealt with {}", self.peer.dealt)
            }
            None => format!("{} posted, the next one waits for {:?}", self.next, self.blocked),
        };
        format!(
            "{end}; {} outstanding{}; it was told {:?}",
            self.posted.len(),
            oldest.unwrap_or_default(),
            self.peer
        )
    }
}

fn datagram(io: &Io) -> Option<Datagram<'_>> {
    io.datagram.as_ref().map(|(ah, qpn)| Datagram { ah, qpn: *qpn, qkey: QKEY })
}

impl Posted {
    fn name(&self) -> String {
        match self.what {
            What::Message(m) => format!("{} of sequence {}", m.kind, m.seq),
            What::Control(seq) => format!("control message {seq}"),
            What::Again(m) => format!("{} of sequence {} once more", m.kind, m.seq),
        }
    }

    /// Opcode of the completion, and its length where that is defined.
    fn completes_as(&self) -> (u32, Option<usize>) {
        match self.what {
            What::Control(_) => (wc_opcode::SEND, None),
            What::Message(m) | What::Again(m) => {
                let returns = m.kind == Kind::Read || m.kind.is_atomic();
                (m.kind.wc_opcode(), returns.then_some(m.size))
            }
        }
    }

    fn fault(&self, expected: &str, found: String) -> Fault {
        match self.what {
            What::Message(m) | What::Again(m) => Fault::new(m.kind, Some(m.seq), expected, found),
            What::Control(seq) => Fault::new("a control message", Some(seq), expected, found),
        }
    }
}

/// What control messages and payloads that are copied need of a queue pair.
pub(crate) const INLINE: usize = {
    let payload = crate::script::MAX_INLINE;
    if control::BYTES > payload { control::BYTES } else { payload }
};
