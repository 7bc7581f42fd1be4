//! Two sides and a wire between them: every schedule of small queues, random ones of large.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

/// A side with its program, its device, and the wire towards its peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Side {
    protocol: Protocol,
    /// Receives posted, in order.
    posted: VecDeque<u32>,
    /// Messages on their way to the peer: number, bytes, immediate data, signalled.
    wire: VecDeque<(u64, usize, u32, bool)>,
    /// Completions that the device has for us.
    completions: VecDeque<u64>,
    /// Messages that the program still wants to send, then the end of the stream.
    to_send: u32,
    /// Messages have 1 to this many bytes.
    width: u64,
    /// Bytes sent and read in all.
    sent: u64,
    read: u64,
}

/// What can happen next on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The program writes a message, or ends the stream.
    Send,
    /// The program reads one byte.
    Read,
    /// A credit update goes out.
    Update,
    /// The device delivers the oldest message to the peer.
    Deliver,
    /// The program's side sees a completion.
    Complete,
}

const STEPS: [Step; 5] = [Step::Send, Step::Read, Step::Update, Step::Deliver, Step::Complete];

impl Side {
    fn new(depth: u32, slots: u32, peer_depth: u32, to_send: u32) -> Self {
        Side {
            protocol: Protocol::new(depth, slots, peer_depth),
            posted: (0..depth).collect(),
            wire: VecDeque::new(),
            completions: VecDeque::new(),
            to_send,
            width: 1,
            sent: 0,
            read: 0,
        }
    }

    fn put_on_wire(&mut self, message: Outgoing, bytes: usize) {
        self.sent += bytes as u64;
        self.wire.push_back((message.seq, bytes, message.header.encode(), message.signaled));
    }

    fn repost(&mut self, buffer: Option<u32>) {
        if let Some(buffer) = buffer {
            assert!(!self.posted.contains(&buffer), "buffer {buffer} posted twice");
            self.posted.push_back(buffer);
            self.protocol.reposted();
        }
    }

    fn finished(&self) -> bool {
        self.protocol.last_sent() && self.protocol.at_end()
    }
}

/// Does `step` on side `at`; false where it is not possible.
fn step(sides: &mut [Side; 2], at: usize, step: Step) -> bool {
    let [a, b] = sides;
    let (me, peer) = if at == 0 { (a, b) } else { (b, a) };
    match step {
        Step::Send => {
            if !me.protocol.may_send() {
                return false;
            }
            let last = me.to_send == 0;
            let bytes = if last { 0 } else { 1 + (me.sent % me.width) as usize };
            me.to_send = me.to_send.saturating_sub(1);
            let message = me.protocol.send(bytes > 1, last);
            me.put_on_wire(message, bytes);
        }
        Step::Read => {
            let Some(_) = me.protocol.arrived() else { return false };
            me.read += 1;
            let buffer = me.protocol.consume(1);
            me.repost(buffer);
        }
        Step::Update => {
            let Some(message) = me.protocol.credit_update() else { return false };
            me.put_on_wire(message, 0);
        }
        Step::Deliver => {
            let Some((seq, bytes, imm, signaled)) = me.wire.pop_front() else { return false };
            let buffer = peer.posted.pop_front().expect("a message found no receive");
            let buffer = peer.protocol.received(buffer, bytes, imm).expect("no violation");
            peer.repost(buffer);
            if signaled {
                me.completions.push_back(seq);
            }
        }
        Step::Complete => {
            let Some(seq) = me.completions.pop_front() else { return false };
            me.protocol.sent(seq);
        }
    }
    true
}

fn check_end(sides: &[Side; 2]) {
    assert!(sides[0].finished() && sides[1].finished(), "stuck: {sides:#?}");
    assert_eq!(sides[0].sent, sides[1].read, "bytes lost");
    assert_eq!(sides[1].sent, sides[0].read, "bytes lost");
}

/// Guards: no lock-up and no loss, in every state that any schedule reaches; and the walk ends,
/// so credits are not echoed for ever. A completion is seen at once where `prompt`.
fn walk(depth: u32, slots: u32, to_send: [u32; 2], prompt: bool) -> usize {
    let hash = |state: &[Side; 2]| BuildHasherDefault::<DefaultHasher>::default().hash_one(state);
    let start = to_send.map(|to_send| Side::new(depth, slots, depth, to_send));
    let mut seen = HashSet::from([hash(&start)]);
    let mut open = vec![start];
    while let Some(state) = open.pop() {
        let mut stuck = true;
        for (at, what) in [0, 1].into_iter().flat_map(|at| STEPS.map(|what| (at, what))) {
            let mut next = state.clone();
            if !step(&mut next, at, what) {
                continue;
            }
            if prompt {
                step(&mut next, at, Step::Complete);
            }
            stuck = false;
            if seen.insert(hash(&next)) {
                open.push(next);
            }
        }
        if stuck {
            check_end(&state);
        }
        assert!(seen.len() < 1_000_000, "the walk does not end");
    }
    seen.len()
}

#[test]
fn no_schedule_of_small_queues_locks_up_or_loses_bytes() {
    for (slots, to_send, prompt) in
        [(4, [5, 0], false), (4, [2, 1], false), (16, [8, 0], true), (16, [4, 2], true)]
    {
        println!("{slots} slots, {to_send:?}: {} states", walk(4, slots, to_send, prompt));
    }
}

proptest! {
    #[test]
    fn no_random_schedule_locks_up_or_loses_bytes(
        depth in [MIN_DEPTH..40, MIN_DEPTH..40],
        slots in MIN_DEPTH..40,
        to_send in [0u32..300, 0u32..300],
        // How eager each side's steps are: a slow reader, a late poller, a lazy sender.
        weights in prop::array::uniform2(prop::array::uniform5(1u32..20)),
        seed: u64,
    ) {
        let mut sides = [
            Side::new(depth[0], slots, depth[1], to_send[0]),
            Side::new(depth[1], slots, depth[0], to_send[1]),
        ];
        sides[0].width = 3;
        let mut random = seed | 1;
        let total: u32 = weights.iter().flatten().sum();
        // An idle step is possible at any time; so many in a row without any real one are not.
        let mut idle = 0;
        while idle < 10_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut pick = u32::try_from(random % u64::from(total)).expect("below a u32");
            let chosen = (0..10usize).find(|i| {
                let weight = weights[i / 5][i % 5];
                let here = pick < weight;
                pick = pick.saturating_sub(weight);
                here
            });
            let chosen = chosen.expect("the pick is below the sum of weights");
            idle = if step(&mut sides, chosen / 5, STEPS[chosen % 5]) { 0 } else { idle + 1 };
        }
        check_end(&sides);
    }

    #[test]
    fn no_message_makes_a_side_panic_or_exceed_its_bounds(
        messages in prop::collection::vec((0usize..3, any::<u32>()), 0..100),
        small in any::<bool>(),
    ) {
        let mut side = Side::new(8, 8, 8, 0);
        for (bytes, imm) in messages {
            // Half of the runs keep to known bits, so that they get past the first check.
            let imm = if small { imm & 0x8000_0003 } else { imm };
            let Some(buffer) = side.posted.pop_front() else { break };
            match side.protocol.received(buffer, bytes, imm) {
                Ok(buffer) => side.repost(buffer),
                Err(_) => break,
            }
            prop_assert!(side.protocol.credits <= 8);
        }
    }

    #[test]
    fn headers_survive_their_encoding(last: bool, credits: u16) {
        let header = Header { last, credits };
        prop_assert_eq!(Header::decode(header.encode()).unwrap(), header);
    }
}

#[test]
fn a_stream_of_one_direction_gets_its_credits_back_without_the_reader_writing() {
    let mut sides = [Side::new(8, 8, 8, 1000), Side::new(8, 8, 8, 0)];
    for _ in 0..10_000 {
        step(&mut sides, 0, Step::Send);
        step(&mut sides, 0, Step::Deliver);
        while step(&mut sides, 1, Step::Read) {}
        step(&mut sides, 1, Step::Update);
        step(&mut sides, 1, Step::Deliver);
        for at in [0, 1] {
            step(&mut sides, at, Step::Complete);
        }
    }
    assert_eq!((sides[0].to_send, sides[1].protocol.at_end()), (0, true));
    assert_eq!(sides[0].sent, sides[1].read);
}

#[test]
fn a_peer_that_has_ended_gets_no_credit_updates() {
    let mut sides = [Side::new(8, 8, 8, 5), Side::new(8, 8, 8, 0)];
    for _ in 0..5 {
        assert!(step(&mut sides, 0, Step::Send) && step(&mut sides, 0, Step::Deliver));
    }
    while step(&mut sides, 1, Step::Read) {}
    assert!(sides[1].protocol.clone().credit_update().is_some(), "credits are due");
    assert!(step(&mut sides, 0, Step::Send) && step(&mut sides, 0, Step::Deliver));
    assert!(sides[1].protocol.last_received());
    assert_eq!(sides[1].protocol.credit_update(), None);
}

#[test]
fn what_breaks_the_protocol_is_named() {
    let mut protocol = Protocol::new(8, 8, 8);
    let refused = protocol.received(0, 1, 1).unwrap_err();
    assert_eq!(refused.0, "1 credits returned, which makes 9 of 8");
    let refused = protocol.received(0, 1, 0x4000_0000).unwrap_err();
    assert_eq!(refused.0, "immediate data 0x40000000 has unknown bits");
    assert_eq!(protocol.received(0, 0, 0).unwrap_err().0, "a message that says nothing");
    let last = Header { last: true, credits: 0 }.encode();
    assert_eq!(protocol.received(3, 0, last), Ok(Some(3)));
    assert_eq!(protocol.received(0, 9, 0).unwrap_err().0, "a message of 9 bytes after the last");
}
