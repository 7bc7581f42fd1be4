//! The log against a model that is a list, over a ring whose bytes tell whose they are.

use super::*;
use crate::entry::Opcode;
use proptest::prelude::*;

const RING: u64 = 1024;

/// What the model knows of a message.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    record: Record,
    /// Its payload is that many times this byte.
    byte: u8,
}

/// The log, its ring and its file, and lists beside it.
struct World {
    log: Log,
    ring: Vec<u8>,
    file: Vec<u8>,
    /// For each connection: its name, what is kept of it, and what of its window has retired.
    lists: Vec<(ConnectionId, Name, Vec<Known>, u64)>,
    /// Payloads that a device may still read: connection, sequence, place, length, byte.
    pinned: Vec<(usize, u64, u64, u64, u8)>,
    /// What is being spilled, and what it was when that began.
    moving: Vec<(Move, Vec<u8>)>,
    next_byte: u8,
}

fn message(opcode: Opcode, length: u64) -> Message {
    Message { opcode, imm: 7, remote_addr: 8, rkey: 9, length, received: 3 }
}

impl World {
    fn new(connections: u32, spills: bool) -> World {
        let mut log = Log::new(RING, spills);
        let lists = (0..connections).map(|n| {
            let name = (n + 50, n + 100, n);
            (log.open(n, name.0, name.1), name, Vec::new(), 0)
        });
        let lists = lists.collect();
        let (ring, file, pinned) = (vec![0; RING as usize], Vec::new(), Vec::new());
        World { log, ring, file, lists, pinned, moving: Vec::new(), next_byte: 0 }
    }

    /// Posts a message as the shell does. A window's sequence is the message's number here.
    fn post(&mut self, con: usize, opcode: Opcode, length: u64, pinned: bool) {
        self.next_byte = self.next_byte.wrapping_add(1);
        let byte = self.next_byte;
        let id = self.lists[con].0;
        let before = self.status(con);
        let pin = pinned.then_some(before.messages);
        let message = message(opcode, length);
        let retired: Vec<u64> = self.lists.iter().map(|it| it.3).collect();
        let first = self.lists[0].0.0;
        let mut kept = true;
        loop {
            match self.log.append(id, message, pin, &|id| retired[(id.0 - first) as usize]) {
                Ok(Deal::Kept) => assert_eq!(length, 0),
                Ok(Deal::Not) => kept = false,
                Ok(Deal::Ring { span, at }) => {
                    self.ring[at as usize..][..length as usize].fill(byte);
                    self.log.filled(span);
                    if let Some(seq) = pin {
                        self.pinned.push((con, seq, at, length, byte));
                    }
                }
                Err(Full::Spill) => {
                    // Either what is under way ends, or more begins.
                    if self.moving.is_empty() {
                        self.begin_spill(100);
                    }
                    assert!(!self.moving.is_empty(), "told to spill, and nothing is there");
                    self.end_spill(true);
                    continue;
                }
                Err(Full::Stuck) => match self.log.append_to_file(id, message) {
                    Some((number, to)) => {
                        self.write(to, &vec![byte; length as usize]);
                        self.log.written(id, number, to, length, true);
                    }
                    None => kept = false,
                },
            }
            break;
        }
        let after = self.status(con);
        assert_eq!(after.messages, before.messages + 1);
        let record = Record { number: before.messages, receives: after.receives, message };
        if kept {
            self.lists[con].2.push(Known { record, byte });
        } else {
            let gap = after.gap.expect("what is not kept is told");
            assert!(gap.numbers.contains(&before.messages));
        }
        self.note_dropped();
    }

    /// What was dropped with notice is expected no longer.
    fn note_dropped(&mut self) {
        for dropped in self.log.take_dropped() {
            let list = self.lists.iter_mut().find(|it| it.1.2 == dropped.qpn).unwrap();
            list.2.clear();
        }
    }

    fn write(&mut self, to: u64, bytes: &[u8]) {
        let end = to as usize + bytes.len();
        self.file.resize(self.file.len().max(end), 0);
        self.file[to as usize..end].copy_from_slice(bytes);
    }

    fn begin_spill(&mut self, most: u64) {
        let moves = self.log.next_to_spill(most).into_iter();
        let bytes = |it: &Move| self.ring[it.from as usize..][..it.length as usize].to_vec();
        self.moving = moves.map(|it| (it, bytes(&it))).collect();
    }

    fn end_spill(&mut self, done: bool) {
        let moving = std::mem::take(&mut self.moving);
        for (it, bytes) in &moving {
            let now = &self.ring[it.from as usize..][..it.length as usize];
            assert_eq!(now, bytes, "dealt anew while it was being copied out");
            self.write(it.to, bytes);
        }
        let moves: Vec<_> = moving.iter().map(|it| it.0).collect();
        self.log.spilled(&moves, done);
        for hole in self.log.take_holes() {
            let end = self.file.len().min(hole.end as usize);
            self.file[hole.start as usize..end].fill(0);
        }
        self.note_dropped();
    }

    fn cover(&mut self, con: usize, messages: u64) {
        let (_, (peer, peer_qpn, qpn), list, _) = &mut self.lists[con];
        while self.log.cover(*peer, *peer_qpn, *qpn, messages).unwrap() {}
        // Up to the last message that takes a receive and is within.
        let last = list
            .iter()
            .rposition(|it| it.record.receives <= messages && it.record.message.takes_receive());
        let behind = list.iter().position(|it| it.record.receives >= messages);
        let upto = last.map_or(0, |at| at + 1).max(behind.unwrap_or(list.len()));
        // A WRITE with the same count as the last one consumed stands behind that.
        list.drain(..upto);
    }

    fn status(&self, con: usize) -> Status {
        let id = self.lists[con].0;
        self.log.statuses().into_iter().find(|it| it.0 == id).unwrap().1
    }

    fn check(&self) {
        for (con, (id, _, list, _)) in self.lists.iter().enumerate() {
            let (mut from, mut found) = (0, Vec::new());
            while let Some((record, place)) = self.log.next_record(*id, from) {
                let length = record.message.length as usize;
                let bytes = match place.expect("nothing is being filled") {
                    Place::Nowhere => &[][..],
                    Place::Ring(at) => &self.ring[at as usize..][..length],
                    Place::File(at) => &self.file[at as usize..][..length],
                };
                assert_eq!(bytes.len(), length);
                let byte = list.get(found.len()).map_or(0, |known| known.byte);
                assert!(bytes.iter().all(|it| *it == byte), "{record:?} of {con} is damaged");
                found.push(Known { record, byte });
                from = record.number + 1;
            }
            assert_eq!(&found, list, "connection {con}");
            let status = self.status(con);
            assert_eq!(status.records, list.len() as u64);
            let bytes: u64 = list.iter().map(|it| it.record.message.length).sum();
            assert_eq!(status.in_memory + status.spilled, bytes);
        }
        for (con, seq, at, length, byte) in &self.pinned {
            if self.lists[*con].3 <= *seq {
                let bytes = &self.ring[*at as usize..][..*length as usize];
                assert!(bytes.iter().all(|it| it == byte), "a device was reading there");
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Post { con: usize, kind: u8, length: u64, pinned: bool },
    Cover { con: usize, behind: u64 },
    Retire { con: usize, behind: u64 },
    TakeBack { con: usize, n: u64 },
    BeginSpill(u64),
    EndSpill(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let con = 0..3usize;
    let length =
        prop_oneof![Just(0), 1..40u64, 60..70u64, 200..600u64, 1000..1100u64, 3000..3010u64];
    prop_oneof![
        8 => (con.clone(), 0..4u8, length, any::<bool>())
            .prop_map(|(con, kind, length, pinned)| Step::Post { con, kind, length, pinned }),
        2 => (con.clone(), 0..6u64).prop_map(|(con, behind)| Step::Cover { con, behind }),
        2 => (con.clone(), 0..6u64).prop_map(|(con, behind)| Step::Retire { con, behind }),
        1 => (con, 1..3u64).prop_map(|(con, n)| Step::TakeBack { con, n }),
        1 => (1..2000u64).prop_map(Step::BeginSpill),
        1 => prop::bool::weighted(0.9).prop_map(Step::EndSpill),
    ]
}

fn run(spills: bool, steps: Vec<Step>) {
    let mut world = World::new(3, spills);
    for step in steps {
        match step {
            Step::Post { con, kind, length, pinned } => {
                let opcode = [Opcode::Write, Opcode::WriteImm, Opcode::Send, Opcode::SendImm];
                world.post(con, opcode[usize::from(kind)], length, pinned);
            }
            Step::Cover { con, behind } => {
                let receives = world.status(con).receives;
                world.cover(con, receives.saturating_sub(behind));
            }
            Step::Retire { con, behind } => {
                let upto = world.status(con).messages.saturating_sub(behind);
                world.lists[con].3 = world.lists[con].3.max(upto);
            }
            Step::TakeBack { con, n } => {
                // Only what was posted last, kept, and not retired can be refused.
                let status = world.status(con);
                let (_, _, list, retired) = &mut world.lists[con];
                let n = n.min(list.len() as u64).min(status.messages - *retired);
                let first = status.messages - n;
                let gone: Vec<_> = list.iter().filter(|it| it.record.number >= first).collect();
                if gone.len() as u64 == n {
                    let takes = gone.iter().filter(|it| it.record.message.takes_receive()).count();
                    list.retain(|it| it.record.number < first);
                    world.log.take_back(world.lists[con].0, n, takes as u64);
                    world.pinned.retain(|it| it.0 != con || it.1 < first);
                }
            }
            Step::BeginSpill(most) => {
                if world.moving.is_empty() {
                    world.begin_spill(most);
                }
            }
            Step::EndSpill(done) => world.end_spill(done),
        }
        world.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Promise: what is kept is what was posted, byte for byte, wherever it has gone meanwhile, until it is
    /// covered; nothing is dealt anew that a device may read.
    #[test]
    fn a_log_that_spills_is_a_list(steps in prop::collection::vec(step(), 0..120)) {
        run(true, steps);
    }

    /// Promise: without a spill as well, but for connections that are dropped with notice.
    #[test]
    fn a_log_that_drops_is_a_list(steps in prop::collection::vec(step(), 0..120)) {
        run(false, steps);
    }
}

/// Promise: an epoch covers everything up to the last message that it consumed, WRITEs too, and no WRITE
/// behind that.
#[test]
fn an_epoch_covers_up_to_its_last_message() {
    let mut world = World::new(1, false);
    for opcode in [Opcode::Write, Opcode::Send, Opcode::Write, Opcode::WriteImm, Opcode::Write] {
        world.post(0, opcode, 10, false);
    }
    let left = |world: &World| world.log.next_record(world.lists[0].0, 0).unwrap().0.number;
    let (_, (peer, peer_qpn, qpn), ..) = world.lists[0];
    for (messages, first) in [(0, 0), (1, 2), (0, 2), (2, 4)] {
        assert_eq!(world.log.cover(peer, peer_qpn, qpn, messages), Ok(false));
        assert_eq!(left(&world), first, "after {messages}");
    }
    let beyond = Err(Beyond { told: 3, posted: 2 });
    assert_eq!(world.log.cover(peer, peer_qpn, qpn, 3), beyond);
    assert_eq!(world.log.cover(peer + 1, peer_qpn, qpn, 2), Ok(false), "another process says so");
    assert_eq!(left(&world), 4);
}

/// Promise: a connection whose retention was dropped keeps messages again after the next epoch, and is whole
/// when one has covered what is missing.
#[test]
fn a_gap_is_told_until_it_is_covered() {
    let mut world = World::new(1, false);
    for _ in 0..3 {
        world.post(0, Opcode::Send, 500, false);
    }
    let gap = world.status(0).gap.unwrap();
    assert_eq!((gap.numbers, gap.why), (0..3, Lost::Full));
    assert!(world.lists[0].2.is_empty());
    let (_, (peer, peer_qpn, qpn), ..) = world.lists[0];
    world.log.cover(peer, peer_qpn, qpn, 1).unwrap();
    world.post(0, Opcode::Send, 500, false);
    assert_eq!(world.status(0).gap.unwrap().numbers, 0..3);
    world.check();
    world.log.cover(peer, peer_qpn, qpn, 3).unwrap();
    assert_eq!((world.status(0).gap, world.status(0).records), (None, 1));
}

/// Promise: of connections with the same names each is told of in its turn; what a destroyed queue pair has
/// sent stays until then.
#[test]
fn lives_of_a_connection_are_told_apart() {
    let mut log = Log::new(RING, false);
    let all: Vec<_> = (0..3)
        .map(|n| {
            let id = log.open(1, 2, 3);
            log.append(id, message(Opcode::Send, 0), None, &|_| 0).unwrap();
            if n < 2 {
                log.end(id);
            }
            id
        })
        .collect();
    let kept = |log: &Log| {
        let known = |id: &&ConnectionId| log.next_record(**id, 0).is_some();
        all.iter().filter(known).copied().collect::<Vec<_>>()
    };
    assert_eq!(kept(&log), all);
    assert!(!log.gone(2, 3, 1));
    assert_eq!(kept(&log), all[1..]);
    log.cover(2, 3, 1, 1).unwrap();
    assert_eq!(kept(&log), all[1..2], "the last one is the one that is counted");
    assert!(!log.gone(2, 3, 1));
    assert!(log.is_empty());
    assert_eq!(log.statuses().len(), 1);
    while log.forget_peer(2) {}
    assert!(log.statuses().is_empty());
}

/// Promise: records without payload are bounded, too.
#[test]
fn no_more_records_are_kept_than_may_be() {
    let mut log = Log::new(RING, false);
    let id = log.open(1, 2, 3);
    let empty = message(Opcode::Send, 0);
    for _ in 0..MIN_RECORDS {
        assert_eq!(log.append(id, empty, None, &|_| 0), Ok(Deal::Kept));
    }
    assert_eq!(log.append(id, empty, None, &|_| 0), Ok(Deal::Not));
    assert_eq!(log.take_dropped(), [Dropped { qpn: 1, peer: 2, why: Lost::TooMany }]);
    assert!(log.is_empty());
}
