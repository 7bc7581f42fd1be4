//! The verbs objects of a byte stream, and the threads that wait on them.
//!
//! One lock guards the protocol's state and everything that is posted or polled; bytes are copied
//! outside of it. There is no thread of its own: whoever calls makes progress for all. Of several
//! callers that have to wait one sleeps on the completion channel and passes on what it finds; the
//! others sleep on a condition variable until it does, or until it is their turn.
//!
//! Who calls it: [`super::VerbsStream`]. It touches its own queue pair and regions.

use super::protocol::{Header, Outgoing, Protocol};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use sojourn_fabric::abi::{self, Wc, wc_flags, wc_status};
use sojourn_fabric::virt::{
    CompletionChannel, CompletionQueue, Data, MemoryRegion, Op, QueuePair, Remote, SendRequest,
};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a waiter polls before it sleeps: about what going to sleep and waking up costs.
const SPIN: Duration = Duration::from_micros(10);
/// Rounds of the processor's pause between two polls: other threads get at the lock.
const PAUSES: u32 = 20;
/// A waiter without news for so long asks the peer's device whether it is still there: a queue
/// pair that only receives is told of nothing.
const PULSE_AFTER: Duration = Duration::from_secs(1);
/// How long dropping a stream waits for the peer to take what was written.
const LINGER: Duration = Duration::from_secs(5);
/// Completions taken at a time.
const BATCH: usize = 16;

/// `wr_id` of a receive: this bit and the number of its buffer. That of a message is its number.
const RECEIVE: u64 = 1 << 63;
/// `wr_id` of a pulse.
const PULSE: u64 = 1 << 62;

/// A connected queue pair with its buffers.
pub(super) struct Connection {
    // First, so that it is destroyed before the memory that its receives name.
    pub(super) qp: QueuePair,
    pub(super) send_cq: CompletionQueue,
    pub(super) recv_cq: CompletionQueue,
    pub(super) channel: CompletionChannel,
    /// Send buffers, then receive buffers.
    pub(super) buffers: MemoryRegion,
    /// What the peer's pulses name.
    pub(super) _pulse: MemoryRegion,
    /// What our pulses name.
    pub(super) peer_pulse: Remote,
    /// Distance of two buffers, and size of a receive.
    pub(super) stride: usize,
    /// Number of send buffers.
    pub(super) slots: u32,
    /// Most bytes of a message that we send.
    pub(super) message_bytes: usize,
    /// Messages of so many bytes need no buffer.
    pub(super) inline_bytes: usize,
    pub(super) wake: EventFd,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    /// Held by the one that reads, and the one that writes.
    pub(super) reading: Mutex<()>,
    pub(super) writing: Mutex<()>,
}

/// What changes.
pub(super) struct State {
    protocol: Protocol,
    failure: Option<Failure>,
    /// A thread sleeps on the channel.
    sleeper: bool,
    /// Threads sleep until it tells them.
    waiters: u32,
    /// A pulse is on its way.
    pulse_out: bool,
    /// When something was last heard of the peer.
    news: Instant,
    read_shut: bool,
    pub(super) nonblocking: bool,
    pub(super) read_timeout: Option<Duration>,
    pub(super) write_timeout: Option<Duration>,
}

/// Why a connection is over.
enum Failure {
    /// A work request failed.
    Lost(String),
    /// A work request was flushed: because of another, whose completion says more.
    Flushed(String),
    /// The peer broke the protocol.
    Violation(String),
}

impl State {
    pub(super) fn new(protocol: Protocol) -> Self {
        State {
            protocol,
            failure: None,
            sleeper: false,
            waiters: 0,
            pulse_out: false,
            news: Instant::now(),
            read_shut: false,
            nonblocking: false,
            read_timeout: None,
            write_timeout: None,
        }
    }

    /// The error of a call that met the failure, if there is one.
    fn failed(&self, kind: ErrorKind) -> io::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(Failure::Lost(why) | Failure::Flushed(why)) => {
                Err(io::Error::new(kind, why.clone()))
            }
            Some(Failure::Violation(why)) => {
                Err(io::Error::new(ErrorKind::InvalidData, why.clone()))
            }
        }
    }

    fn writable(&self) -> bool {
        self.failure.is_some() || self.protocol.last_sent() || self.protocol.may_send()
    }

    fn readable(&self) -> bool {
        self.read_shut
            || self.failure.is_some()
            || self.protocol.arrived().is_some()
            || self.protocol.at_end()
    }
}

/// The name of the receive whose buffer is `buffer`.
pub(super) fn receive_id(buffer: u32) -> u64 {
    RECEIVE | u64::from(buffer)
}

impl Connection {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what has arrived, at most `into.len()` bytes, waiting for the first.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        let _reader = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.wait(|state| state.read_timeout, State::readable)?;
        // A failure may have been met with arrivals still unpolled.
        if state.failure.is_some() {
            self.progress(&mut state);
        }
        let mut done = 0;
        while !state.read_shut && done < into.len() {
            let Some(arrived) = state.protocol.arrived() else { break };
            let n = arrived.len.min(into.len() - done);
            drop(state);
            let at = self.receive_at(arrived.buffer) + arrived.offset;
            self.buffers.read(at, &mut into[done..done + n]);
            done += n;
            state = self.lock();
            if let Some(buffer) = state.protocol.consume(n) {
                self.post_receive(&mut state, buffer);
                self.return_credits(&mut state);
            }
        }
        if done == 0 && !state.read_shut && !state.protocol.at_end() {
            state.failed(ErrorKind::ConnectionReset)?;
        }
        Ok(done)
    }

    /// Sends the front of `parts` as one message, and returns its bytes.
    pub(super) fn write(&self, parts: &[&[u8]]) -> io::Result<usize> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        let _writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = total.min(self.message_bytes);
        let mut state = self.wait_to_send()?;
        if let &[part] = parts
            && bytes <= self.inline_bytes
        {
            let message = state.protocol.send(false, false);
            self.post(&mut state, message, Data::Inline(&part[..bytes]));
            return Ok(bytes);
        }
        let at = state.protocol.send_buffer() as usize * self.stride;
        drop(state);
        let mut done = 0;
        for part in parts {
            let n = part.len().min(bytes - done);
            self.buffers.write(at + done, &part[..n]);
            done += n;
        }
        // A credit update of another thread may have taken the credit meanwhile.
        let mut state = self.wait_to_send()?;
        let message = state.protocol.send(true, false);
        self.post(&mut state, message, Data::Gather(&[self.buffers.slice(at..at + bytes)]));
        Ok(bytes)
    }

    /// Ends our half of the stream.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        let _writer = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.wait(|state| state.write_timeout, State::writable)?;
        if !state.protocol.last_sent() {
            state.failed(ErrorKind::BrokenPipe)?;
            let message = state.protocol.send(false, true);
            self.post(&mut state, message, Data::Gather(&[]));
        }
        Ok(())
    }

    /// Reads return 0 from now on.
    pub(super) fn shutdown_read(&self) {
        let mut state = self.lock();
        state.read_shut = true;
        self.tell(&state);
        if state.sleeper {
            self.wake_sleeper();
        }
    }

    /// Waits until a message may be sent.
    fn wait_to_send(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.wait(|state| state.write_timeout, State::writable)?;
        state.failed(ErrorKind::BrokenPipe)?;
        if state.protocol.last_sent() {
            let why = "the stream was shut down for writing";
            return Err(io::Error::new(ErrorKind::BrokenPipe, why));
        }
        Ok(state)
    }

    /// Makes progress until `ready`, at most for `timeout`.
    fn wait(
        &self,
        timeout: impl Fn(&State) -> Option<Duration>,
        ready: impl Fn(&State) -> bool,
    ) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if ready(&state) {
            return Ok(state);
        }
        let start = Instant::now();
        let timeout = timeout(&state);
        let deadline = timeout.map(|timeout| start + timeout);
        loop {
            self.progress(&mut state);
            if ready(&state) {
                return Ok(state);
            }
            if state.nonblocking {
                self.forget_events(&mut state);
                self.arm(&mut state);
                self.progress(&mut state);
                if ready(&state) {
                    return Ok(state);
                }
                return Err(ErrorKind::WouldBlock.into());
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                let waited = timeout.unwrap_or_default().as_millis();
                let why = format!("the peer did nothing for {waited} ms");
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            if now < start + SPIN {
                drop(state);
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
                state = self.lock();
            } else {
                state = self.sleep(state, deadline);
            }
        }
    }

    /// Sleeps until something may have changed, or `deadline`.
    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        self.arm(&mut state);
        if self.progress(&mut state) || state.failure.is_some() {
            return state;
        }
        let now = Instant::now();
        let pulse_at = state.news + PULSE_AFTER;
        if now >= pulse_at {
            self.post_pulse(&mut state);
        }
        let mut left = if now < pulse_at { pulse_at - now } else { PULSE_AFTER };
        if let Some(deadline) = deadline {
            left = left.min(deadline.saturating_duration_since(now));
        }
        if state.sleeper {
            state.waiters += 1;
            let slept = self.changed.wait_timeout(state, left);
            state = slept.unwrap_or_else(PoisonError::into_inner).0;
            state.waiters -= 1;
            return state;
        }
        state.sleeper = true;
        drop(state);
        // Rounded up, so that a wait of less than a millisecond is not a busy loop.
        let left =
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds =
            [self.channel.fd(), self.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // An interrupted wait is one that ended early; the caller looks, and comes back.
        let _ = poll(&mut fds, left);
        if fds[1].any() == Some(true) {
            let _ = self.wake.read();
        }
        let mut state = self.lock();
        state.sleeper = false;
        self.forget_events(&mut state);
        // Also where nothing came: it may be another one's turn to sleep here.
        self.tell(&state);
        state
    }

    /// Asks for an event at the next arrival, and at the next completion of a message where the
    /// lack of slots is what somebody waits for.
    fn arm(&self, state: &mut State) {
        let mut armed = self.recv_cq.req_notify(false);
        if armed.is_ok() && (state.protocol.out_of_slots() || state.protocol.last_sent()) {
            armed = self.send_cq.req_notify(false);
        }
        if let Err(error) = armed {
            self.fail(state, Failure::Lost(error.to_string()));
        }
    }

    /// Takes the events that have brought us here.
    fn forget_events(&self, state: &mut State) {
        loop {
            match self.channel.device().get_event() {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => return self.fail(state, Failure::Lost(error.to_string())),
            }
        }
    }

    /// Handles all completions; true where there were any.
    fn progress(&self, state: &mut State) -> bool {
        let mut wcs = [Wc::default(); BATCH];
        let mut any = false;
        for cq in [&self.recv_cq, &self.send_cq] {
            loop {
                match cq.poll(&mut wcs) {
                    Ok(0) => break,
                    Ok(n) => wcs[..n].iter().for_each(|wc| self.completed(state, wc)),
                    Err(error) => {
                        self.fail(state, Failure::Lost(error.to_string()));
                        break;
                    }
                }
                any = true;
            }
        }
        if any {
            state.news = Instant::now();
            self.return_credits(state);
            self.tell(state);
        }
        any
    }

    fn completed(&self, state: &mut State, wc: &Wc) {
        if wc.status != wc_status::SUCCESS {
            let Err(error) = wc.check() else { return };
            let why = format!("the connection is lost: {error}");
            let flushed = wc.status == wc_status::WR_FLUSH_ERR;
            self.fail(state, if flushed { Failure::Flushed(why) } else { Failure::Lost(why) });
        } else if wc.wr_id & RECEIVE != 0 {
            self.received(state, wc);
        } else if wc.wr_id == PULSE {
            state.pulse_out = false;
        } else {
            state.protocol.sent(wc.wr_id);
        }
    }

    fn received(&self, state: &mut State, wc: &Wc) {
        let buffer = (wc.wr_id & !RECEIVE) as u32;
        let bytes = wc.byte_len as usize;
        if wc.wc_flags & wc_flags::WITH_IMM == 0 || bytes > self.stride {
            let why = format!("the peer sent {bytes} bytes that are not of a byte stream");
            return self.fail(state, Failure::Violation(why));
        }
        match state.protocol.received(buffer, bytes, u32::from_be(wc.imm_data)) {
            Ok(None) => {}
            Ok(Some(buffer)) => self.post_receive(state, buffer),
            Err(violation) => {
                let why = format!("the peer broke the stream's protocol: {}", violation.0);
                self.fail(state, Failure::Violation(why));
            }
        }
    }

    fn post_receive(&self, state: &mut State, buffer: u32) {
        let at = self.receive_at(buffer);
        match self.qp.post_recv(receive_id(buffer), &[self.buffers.slice(at..at + self.stride)]) {
            Ok(()) => state.protocol.reposted(),
            Err(error) => self.fail(state, Failure::Lost(error.to_string())),
        }
    }

    fn return_credits(&self, state: &mut State) {
        if state.failure.is_none()
            && let Some(message) = state.protocol.credit_update()
        {
            self.post(state, message, Data::Gather(&[]));
        }
    }

    fn post(&self, state: &mut State, message: Outgoing, data: Data<'_>) {
        let Outgoing { seq, header, signaled } = message;
        let op = Op::SendImm(Header::encode(header));
        let request = SendRequest { data, signaled, ..SendRequest::new(seq, op, &[]) };
        if let Err(error) = self.qp.post_send(&request) {
            self.fail(state, Failure::Lost(error.to_string()));
        }
    }

    /// A WRITE of no bytes: it costs the peer neither a receive nor attention, and fails where
    /// the peer is gone.
    fn post_pulse(&self, state: &mut State) {
        if !state.pulse_out {
            state.pulse_out = true;
            let request = SendRequest::new(PULSE, Op::Write(self.peer_pulse), &[]);
            if let Err(error) = self.qp.post_send(&request) {
                self.fail(state, Failure::Lost(error.to_string()));
            }
        }
    }

    /// Ends the connection. The first reason is the one that counts, unless it is a flush.
    #[cold]
    fn fail(&self, state: &mut State, failure: Failure) {
        match (&state.failure, &failure) {
            (None, _) | (Some(Failure::Flushed(_)), Failure::Lost(_)) => {}
            _ => return,
        }
        if matches!(failure, Failure::Violation(_)) {
            // The peer is to hear of it too: its next message fails.
            let _ = self.qp.set_state(abi::qp_state::ERR);
        }
        state.failure = Some(failure);
        self.tell(state);
        if state.sleeper {
            self.wake_sleeper();
        }
    }

    fn tell(&self, state: &State) {
        if state.waiters > 0 {
            self.changed.notify_all();
        }
    }

    fn wake_sleeper(&self) {
        // It fails only where the counter is full, and then the sleeper is awake.
        let _ = self.wake.write(1);
    }

    fn receive_at(&self, buffer: u32) -> usize {
        (self.slots + buffer) as usize * self.stride
    }

    /// Readable when a call that would have blocked should be tried again.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.channel.fd()
    }

    /// The reason for which the connection is over, if it is.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let mut state = self.lock();
        self.progress(&mut state);
        state.failed(ErrorKind::ConnectionReset).err()
    }

    /// Ends the stream in order, so that the peer reads all that was written.
    fn linger(&self) {
        let mut state = self.lock();
        state.nonblocking = false;
        state.write_timeout = Some(LINGER);
        let over = state.failure.is_some();
        drop(state);
        if over {
            return;
        }
        let ended = self.shutdown_write().and_then(|()| {
            let done = |state: &State| state.failure.is_some() || state.protocol.last_done();
            let state = self.wait(|state| state.write_timeout, done)?;
            // The peer may have left after both halves had ended, before it could confirm ours.
            if state.protocol.last_received() {
                Ok(())
            } else {
                state.failed(ErrorKind::BrokenPipe)
            }
        });
        if let Err(error) = ended {
            tracing::debug!("a byte stream over {:#x} did not end: {error}", self.qp.qp_num());
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.linger();
    }
}

/// The event descriptor with which one thread wakes another that sleeps on the channel.
pub(super) fn new_wake() -> io::Result<EventFd> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    EventFd::from_value_and_flags(0, flags).map_err(io::Error::from)
}
