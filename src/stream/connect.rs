//! From a context to a connected stream.
//!
//! Each side makes its objects and posts its receives ([`Unconnected::new`]), the two exchange
//! greetings by whatever means they have, and each connects ([`Unconnected::connect`]). Bytes may
//! be written once *both* have connected: a queue pair that is not yet ready to receive drops
//! what reaches it.

use super::VerbsStream;
use super::connection::{Connection, State, new_wake, receive_id};
use super::hello::{HELLO_BYTES, Hello, MESSAGE_BYTES};
use super::protocol::{MAX_DEPTH, MIN_DEPTH, Protocol};
use sojourn_fabric::Error;
use sojourn_fabric::abi::access;
use sojourn_fabric::virt::{
    CompletionChannel, CompletionQueue, ConnectOptions, Context, MemoryRegion, ProtectionDomain,
    QpOptions, QueuePair,
};
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};

/// Bytes that are worth copying into the request rather than into a buffer; asked for where the
/// device has them.
const INLINE_BYTES: u32 = 256;
/// Requests of the send queue beside messages: one pulse.
const EXTRA_REQUESTS: u32 = 1;
/// Bytes of the word that pulses name.
const PULSE_BYTES: usize = 8;
/// What a side says over a bootstrap channel once it can receive.
const READY: u8 = b'R';

/// Sizes of a stream. The two sides may differ.
#[derive(Clone, Copy, Debug)]
pub struct StreamOptions {
    /// Most bytes of one message, and size of each buffer.
    pub message_bytes: u32,
    /// Messages in flight in each direction. The stream registers twice this many buffers.
    pub depth: u32,
    /// How the queue pair connects.
    pub connect: ConnectOptions,
}

impl Default for StreamOptions {
    /// 16 messages of 64 KiB: 2 MiB registered. A peer is given up after some seconds, since a
    /// stream should outlast a machine that is busy.
    fn default() -> Self {
        let connect = ConnectOptions {
            // Pulses are WRITEs.
            access: access::REMOTE_WRITE,
            timeout: 17,
            ..ConnectOptions::default()
        };
        StreamOptions { message_bytes: 64 << 10, depth: 16, connect }
    }
}

/// One side of a stream that does not know its peer yet.
pub struct Unconnected {
    qp: QueuePair,
    send_cq: CompletionQueue,
    recv_cq: CompletionQueue,
    channel: CompletionChannel,
    buffers: MemoryRegion,
    pulse: MemoryRegion,
    inline_bytes: u32,
    hello: Hello,
    options: StreamOptions,
}

impl Unconnected {
    /// Makes the queue pair and its buffers, and posts the receives.
    ///
    /// # Errors
    /// `EINVAL` for sizes out of bounds or beyond the device's; what verbs refuse.
    pub fn new(context: &Context, options: &StreamOptions) -> io::Result<Self> {
        check(context, options)?;
        let StreamOptions { message_bytes, depth, connect } = *options;
        let channel = context.create_channel()?;
        let send_cq = context.create_cq_on(depth + EXTRA_REQUESTS, &channel, 0)?;
        let recv_cq = context.create_cq_on(depth, &channel, 1)?;
        let pd = context.alloc_pd()?;
        let stride = message_bytes as usize;
        let buffers = pd.register(2 * depth as usize * stride, access::LOCAL_WRITE)?;
        let pulse = pd.register(PULSE_BYTES, access::LOCAL_WRITE | access::REMOTE_WRITE)?;
        let (qp, inline_bytes) = create_qp(&pd, depth, &send_cq, &recv_cq)?;
        qp.init(&connect)?;
        for buffer in 0..depth {
            let at = (depth + buffer) as usize * stride;
            qp.post_recv(receive_id(buffer), &[buffers.slice(at..at + stride)])?;
        }
        let endpoint = qp.endpoint()?;
        let hello = Hello { endpoint, depth, message_bytes, pulse: pulse.remote(0) };
        let options = *options;
        Ok(Unconnected {
            qp,
            send_cq,
            recv_cq,
            channel,
            buffers,
            pulse,
            inline_bytes,
            hello,
            options,
        })
    }

    /// What the peer must be told.
    #[must_use]
    pub fn hello(&self) -> [u8; HELLO_BYTES] {
        self.hello.encode()
    }

    /// Connects to the side whose greeting this is.
    ///
    /// # Errors
    /// `EINVAL` for bytes that are no greeting; what verbs refuse.
    pub fn connect(self, peer: &[u8]) -> io::Result<VerbsStream> {
        let peer = Hello::decode(peer)?;
        self.qp.connect(&peer.endpoint, &self.options.connect)?;
        let Hello { depth, message_bytes, .. } = self.hello;
        let sent_bytes = message_bytes.min(peer.message_bytes);
        let connection = Connection {
            qp: self.qp,
            send_cq: self.send_cq,
            recv_cq: self.recv_cq,
            channel: self.channel,
            buffers: self.buffers,
            _pulse: self.pulse,
            peer_pulse: peer.pulse,
            stride: message_bytes as usize,
            slots: depth,
            message_bytes: sent_bytes as usize,
            inline_bytes: self.inline_bytes.min(sent_bytes) as usize,
            wake: new_wake()?,
            state: Mutex::new(State::new(Protocol::new(depth, depth, peer.depth))),
            changed: Condvar::new(),
            reading: Mutex::new(()),
            writing: Mutex::new(()),
        };
        Ok(VerbsStream { connection: Arc::new(connection) })
    }
}

/// Introduces two sides to each other over `bootstrap`.
pub(super) fn over(
    unconnected: Unconnected,
    bootstrap: &mut (impl Read + Write),
) -> io::Result<VerbsStream> {
    bootstrap.write_all(&unconnected.hello())?;
    bootstrap.flush()?;
    let mut hello = [0; HELLO_BYTES];
    bootstrap.read_exact(&mut hello)?;
    let stream = unconnected.connect(&hello)?;
    bootstrap.write_all(&[READY])?;
    bootstrap.flush()?;
    let mut ready = [0];
    bootstrap.read_exact(&mut ready)?;
    if ready != [READY] {
        let why = format!("the peer is not ready: it said {:#04x}", ready[0]);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(stream)
}

/// Refuses sizes that the protocol or the device does not have.
fn check(context: &Context, options: &StreamOptions) -> Result<(), Error> {
    let StreamOptions { message_bytes, depth, .. } = *options;
    if !(MIN_DEPTH..=MAX_DEPTH).contains(&depth) {
        return Err(Error::invalid(format!(
            "a stream of {depth} messages in flight: {MIN_DEPTH} to {MAX_DEPTH} are possible"
        )));
    }
    if !MESSAGE_BYTES.contains(&message_bytes) {
        return Err(Error::invalid(format!(
            "a stream with messages of {message_bytes} bytes: {} to {} are possible",
            MESSAGE_BYTES.start(),
            MESSAGE_BYTES.end()
        )));
    }
    let device = context.query_device()?;
    if i64::from(depth + EXTRA_REQUESTS) > i64::from(device.max_qp_wr) {
        return Err(Error::invalid(format!(
            "a stream of {depth} messages in flight needs {} work requests; {} has {} per queue",
            depth + EXTRA_REQUESTS,
            context.device().name(),
            device.max_qp_wr
        )));
    }
    Ok(())
}

/// The queue pair, and how many bytes it takes inline: devices do not tell in advance.
fn create_qp(
    pd: &ProtectionDomain,
    depth: u32,
    send_cq: &CompletionQueue,
    recv_cq: &CompletionQueue,
) -> Result<(QueuePair, u32), Error> {
    let mut options = QpOptions { recv_cq, ..QpOptions::rc(send_cq) };
    options.cap.max_send_wr = depth + EXTRA_REQUESTS;
    options.cap.max_recv_wr = depth;
    options.cap.max_send_sge = 1;
    options.cap.max_recv_sge = 1;
    options.cap.max_inline_data = INLINE_BYTES;
    let qp = pd.create_qp(&options).or_else(|_| {
        options.cap.max_inline_data = 0;
        pd.create_qp(&options)
    })?;
    let inline_bytes = qp.cap().max_inline_data;
    Ok((qp, inline_bytes))
}
