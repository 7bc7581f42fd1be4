//! The receiving side of a stream: every message of the peer is checked here.

use crate::control::{self, Control};
use crate::kind::{Kind, Transport};
use crate::landing::{Landed, Landing};
use crate::payload;
use crate::report::{Checked, Fault, Tally};
use crate::script::{Message, Script};
use sojourn::abi::{GRH_BYTES, Wc, wc_flags};
use sojourn::verbs::MemoryRegion;
use std::sync::Arc;

/// Pieces of memory that are prepared for READs of the peer.
pub(crate) const BLOCKS: u64 = 3;

/// Where the words of the peer's atomics are in the memory, and how long they are together.
pub(crate) const ADD_AT: usize = 0;
/// The word that is swapped.
pub(crate) const SWAP_AT: usize = 8;

/// Where READs of the peer go: blocks of `bytes` at `at`.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) at: usize,
    pub(crate) bytes: usize,
}

impl Blocks {
    /// Where the data of READ number `read` begins.
    pub(crate) fn of(&self, read: u64, message: &Message) -> usize {
        self.at + (read % BLOCKS) as usize * self.bytes + message.skew
    }
}

/// What arrived, and where.
pub(crate) struct Arrival<'a> {
    pub(crate) wc: &'a Wc,
    /// The filled part of the receive's buffer.
    pub(crate) bytes: &'a [u8],
}

/// The receiving side.
pub(crate) struct Receiver {
    transport: Transport,
    script: Script,
    memory: Arc<MemoryRegion>,
    landing: Landing,
    blocks: Blocks,
    /// All before this one is dealt with.
    dealt: u64,
    /// Which of the 128 before `dealt` have arrived, the last in the lowest bit: datagrams may be
    /// late.
    arrived: u128,
    /// The number of the next control message.
    next_control: u64,
    /// READs prepared, and where the next one is looked for.
    prepared: u64,
    next_read: u64,
    added: u64,
    swaps: u64,
    /// FETCH_ADDs on the word that all share.
    pub(crate) shared_adds: u64,
    total: Option<u64>,
    closed: bool,
    pub(crate) checked: Tally,
    pub(crate) lost: Tally,
}

impl Receiver {
    pub(crate) fn new(
        transport: Transport,
        script: Script,
        memory: Arc<MemoryRegion>,
        landing: Landing,
        blocks: Blocks,
    ) -> Self {
        let mut receiver = Receiver {
            transport,
            script,
            memory,
            landing,
            blocks,
            dealt: 0,
            arrived: 0,
            next_control: 0,
            prepared: 0,
            next_read: 0,
            added: 0,
            swaps: 0,
            shared_adds: 0,
            total: None,
            closed: false,
            checked: Tally::default(),
            lost: Tally::default(),
        };
        receiver.prepare(0);
        receiver
    }

    /// Messages before this one are dealt with.
    pub(crate) fn dealt(&self) -> u64 {
        self.dealt
    }

    /// READs before this one may be posted.
    pub(crate) fn prepared(&self) -> u64 {
        self.prepared
    }

    /// The stream has ended, and everything is dealt with.
    pub(crate) fn closed(&self) -> bool {
        self.closed
    }

    /// Where WRITEs land.
    pub(crate) fn landing(&self) -> &Landing {
        &self.landing
    }

    /// Checks what a receive got. Returns the control message that it was, if it was a new one.
    pub(crate) fn arrive(&mut self, arrival: &Arrival<'_>) -> Checked<Option<Control>> {
        let wc = arrival.wc;
        let imm = (wc.wc_flags & wc_flags::WITH_IMM != 0).then(|| u32::from_be(wc.imm_data));
        if imm.is_some_and(|imm| imm & control::IMM != 0) {
            return self.arrive_control(arrival, imm.unwrap_or_default());
        }
        match self.transport {
            Transport::Rc => self.arrive_reliable(arrival, imm)?,
            Transport::Uc | Transport::Ud => self.arrive_lossy(arrival, imm)?,
        }
        Ok(None)
    }

    fn arrive_reliable(&mut self, arrival: &Arrival<'_>, imm: Option<u32>) -> Checked {
        if !self.script.has(Kind::consumes) || self.closed {
            return Err(Fault::new(
                "a receive",
                Some(self.dealt),
                "nothing but control messages",
                self.name(arrival, imm),
            ));
        }
        let message = loop {
            let message = self.script.message(self.dealt);
            if message.kind.consumes() {
                break message;
            }
            self.pass(&message)?;
        };
        self.check(&message, arrival, imm)?;
        self.dealt += 1;
        Ok(())
    }

    fn arrive_lossy(&mut self, arrival: &Arrival<'_>, imm: Option<u32>) -> Checked {
        let seq = match imm {
            // The lower 31 bits, of the number that is nearest.
            Some(imm) => {
                let ahead = (i64::from(imm) - (self.dealt & 0x7fff_ffff) as i64) << 33 >> 33;
                self.dealt.saturating_add_signed(ahead)
            }
            None => match payload::identify(payload_of(self.transport, arrival.bytes)) {
                Some((stream, seq, _)) if stream == self.script.stream => seq,
                _ => {
                    let found = self.name(arrival, imm);
                    return Err(Fault::new("SEND", None, "an intact message", found));
                }
            },
        };
        let behind = self.dealt.checked_sub(seq + 1);
        let late = self.transport == Transport::Ud
            && behind.is_some_and(|far| far < 128 && self.arrived >> far & 1 == 0);
        let message = self.script.message(seq);
        if late {
            self.check(&message, arrival, imm)?;
            self.arrived |= 1 << behind.unwrap_or_default();
            return Ok(());
        }
        if behind.is_some() {
            let expected = format!("sequence {} or a later one", self.dealt);
            let found = "one that came before, or that was overtaken";
            return Err(Fault::new(message.kind, Some(seq), expected, found));
        }
        // Nobody is so far ahead: what says so was damaged.
        if seq - self.dealt > 1 << 20 {
            let found = self.name(arrival, imm);
            return Err(Fault::new(message.kind, Some(seq), "a number that is near", found));
        }
        self.pass_until(seq)?;
        self.check(&message, arrival, imm)?;
        self.step(true);
        Ok(())
    }

    /// Checks the message that took a receive.
    fn check(&mut self, message: &Message, arrival: &Arrival<'_>, imm: Option<u32>) -> Checked {
        let (kind, seq, wc) = (message.kind, Some(message.seq), arrival.wc);
        let mut expected = Vec::new();
        self.script.payload(message, &mut expected);
        let bytes = payload_of(self.transport, arrival.bytes);
        let overhead = arrival.bytes.len() - bytes.len();
        let wanted_imm = kind.has_imm().then(|| message.imm());
        if wc.opcode != kind.recv_opcode()
            || imm != wanted_imm
            || wc.byte_len as usize != message.size + overhead
        {
            let sign = format!(
                "{} of {} bytes with {}",
                sojourn::abi::wc_opcode::name(kind.recv_opcode()),
                message.size + overhead,
                imm_text(wanted_imm)
            );
            return Err(Fault::new(kind, seq, sign, self.name(arrival, imm)));
        }
        if kind == Kind::WriteImm {
            let landed = self.landing.land(&self.script, message)?;
            if landed != Landed::Whole && message.size > 0 {
                let what = format!("its {} bytes", message.size);
                return Err(Fault::new(kind, seq, what, format_args!("{landed:?} landed")));
            }
        } else if bytes != expected {
            let what = format!("its {} bytes", message.size);
            return Err(Fault::new(kind, seq, what, payload::describe(&expected, bytes)));
        }
        self.checked.add(kind, message.size);
        Ok(())
    }

    /// Deals with everything before `seq` without a receive of its own.
    fn pass_until(&mut self, seq: u64) -> Checked {
        while self.dealt < seq {
            let message = self.script.message(self.dealt);
            self.pass(&message)?;
        }
        Ok(())
    }

    fn pass(&mut self, message: &Message) -> Checked {
        let (kind, seq) = (message.kind, message.seq);
        if kind.consumes() && !self.transport.lossy() {
            let what = "its arrival before that of later messages";
            return Err(Fault::new(kind, Some(seq), what, "that it was lost"));
        }
        let landed = match kind.writes() {
            true => Some(self.landing.land(&self.script, message)?),
            false => None,
        };
        if landed.is_some_and(|landed| landed != Landed::Whole) && !self.transport.lossy() {
            let what = format!("its {} bytes", message.size);
            let landed = landed.unwrap_or(Landed::Nothing);
            return Err(Fault::new(kind, Some(seq), what, format_args!("{landed:?} landed")));
        }
        let lost = kind.consumes() || landed.is_some_and(|landed| landed != Landed::Whole);
        match kind {
            Kind::FetchAdd if message.shared => self.shared_adds += 1,
            Kind::FetchAdd => self.added = self.added.wrapping_add(message.add()),
            Kind::CmpSwap if !message.miss => self.swaps += 1,
            _ => {}
        }
        // A datagram may still come.
        if lost && self.transport != Transport::Ud {
            self.lost.add(kind, message.size);
        } else if !lost {
            self.checked.add(kind, message.size);
        }
        self.step(false);
        Ok(())
    }

    fn step(&mut self, arrived: bool) {
        self.dealt += 1;
        self.arrived = self.arrived << 1 | u128::from(arrived);
    }

    fn arrive_control(&mut self, arrival: &Arrival<'_>, imm: u32) -> Checked<Option<Control>> {
        let fault = |seq, expected: &str, found: String| {
            Err(Fault::new("a control message", Some(seq), expected, found))
        };
        let expected = self.next_control;
        let bytes = payload_of(self.transport, arrival.bytes);
        let Some(control) = Control::from_bytes(bytes, self.script.stream) else {
            return fault(expected, "an intact one", self.name(arrival, Some(imm)));
        };
        if control.imm() != imm || arrival.wc.byte_len as usize != arrival.bytes.len() {
            return fault(control.seq, "its own immediate data", format!("{imm:#x}"));
        }
        let stale = control.seq < expected;
        match self.transport {
            Transport::Rc if control.seq != expected => {
                return fault(expected, "this one", format!("that of sequence {}", control.seq));
            }
            Transport::Uc if stale => {
                return fault(control.seq, "a later one", "one that came before".to_owned());
            }
            Transport::Ud if control.seq + 1 == expected => {
                return fault(control.seq, "it once", "it twice".to_owned());
            }
            _ if stale => return Ok(None),
            _ => {}
        }
        self.next_control = control.seq + 1;
        self.learn(&control)?;
        Ok(Some(control))
    }

    fn learn(&mut self, control: &Control) -> Checked {
        let state = control.state;
        // What the peer posted before has been executed, or is lost.
        self.pass_until(state.posted)?;
        if let (Some(total), None) = (state.total, self.total) {
            self.total = Some(total);
            self.close()?;
        }
        self.prepare(state.reads_done);
        Ok(())
    }

    /// All has been executed: what it left behind must be right.
    fn close(&mut self) -> Checked {
        let word = |at| self.memory.atomic_u64(at).load(std::sync::atomic::Ordering::Acquire);
        let count = Some(self.dealt);
        for (kind, at, expected) in [
            (Kind::FetchAdd, ADD_AT, self.added),
            (Kind::CmpSwap, SWAP_AT, self.script.swapped(self.swaps)),
        ] {
            if word(at) != expected {
                let expected = format!("a word of {expected:#x} after all of them");
                return Err(Fault::new(kind, count, expected, format_args!("{:#x}", word(at))));
            }
        }
        self.landing.check_all()?;
        self.closed = true;
        Ok(())
    }

    /// The last look, when nobody sends any more.
    pub(crate) fn finish(&mut self) -> Checked {
        let total = self.total;
        self.close()?;
        if self.transport == Transport::Ud {
            let lost = total.unwrap_or(0).saturating_sub(self.checked.count());
            self.lost.add_some(Kind::Send, lost);
        }
        Ok(())
    }

    /// Writes what the next READs are to find, where those before them are done.
    fn prepare(&mut self, done: u64) {
        if !self.script.has(|kind| kind == Kind::Read) {
            return;
        }
        let mut bytes = Vec::new();
        while self.prepared < done + BLOCKS && self.total.is_none_or(|all| self.next_read < all) {
            let message = self.script.message(self.next_read);
            self.next_read += 1;
            if message.kind == Kind::Read {
                self.script.payload(&message, &mut bytes);
                self.memory.write(self.blocks.of(self.prepared, &message), &bytes);
                self.prepared += 1;
            }
        }
    }

    /// Says what arrived.
    fn name(&self, arrival: &Arrival<'_>, imm: Option<u32>) -> String {
        let what = payload::describe(&[], payload_of(self.transport, arrival.bytes));
        format!(
            "{} of {} bytes with {}: {what}",
            sojourn::abi::wc_opcode::name(arrival.wc.opcode),
            arrival.wc.byte_len,
            imm_text(imm)
        )
    }
}

fn imm_text(imm: Option<u32>) -> String {
    imm.map_or("no immediate data".to_owned(), |imm| format!("immediate data {imm:#x}"))
}

/// A datagram comes after a GRH.
fn payload_of(transport: Transport, bytes: &[u8]) -> &[u8] {
    match transport {
        Transport::Ud => bytes.get(GRH_BYTES..).unwrap_or_default(),
        _ => bytes,
    }
}
