//! Holds between processes, with traffic at full speed before and after.

use super::{Job, Member, soon};
use sojourn_fabric::virt::{Op, Policy, QueuePair, SendRequest};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Messages that may be out at once: fewer than receives are posted.
const WINDOW: u64 = 32;
/// Where the flooded process counts, is written to, and is told that there is enough; and the flood's own bytes.
const COUNTER: usize = 0;
const WRITTEN: usize = 512;
const ENOUGH: usize = 8;
const SOURCE: usize = 2048;
/// The last message.
const LAST: u64 = u64::MAX;
const HOLDS: usize = 40;

/// WRITEs, atomics and SENDs as fast as it goes, until it is told to stop.
pub(super) fn flood(member: &Member) {
    let (qp, _, remote) = member.connected(1);
    let enough = member.memory.atomic_u64(ENOUGH);
    let (mut n, mut done) = (0u64, 0);
    loop {
        while n - done >= WINDOW {
            member.next().check().unwrap();
            done += 1;
        }
        if enough.load(Ordering::Acquire) != 0 {
            break;
        }
        let at = SOURCE + (n % WINDOW) as usize * 16;
        member.memory.write(at, &n.to_ne_bytes());
        let bytes = [member.memory.slice(at..at + 8)];
        let to = remote.offset(WRITTEN as u64 + n % 64 * 8);
        qp.post_send(&SendRequest::new(n, Op::Write(to), &bytes).unsignaled()).unwrap();
        let result = [member.memory.slice(at + 8..at + 16)];
        let count = Op::FetchAdd(remote.offset(COUNTER as u64), 1);
        if n % 8 == 0 {
            qp.post_send(&SendRequest::new(n, count, &result).unsignaled()).unwrap();
        }
        qp.post_send(&SendRequest::inline(n, Op::Send, &n.to_ne_bytes())).unwrap();
        n += 1;
    }
    qp.post_send(&SendRequest::inline(n, Op::Send, &LAST.to_ne_bytes())).unwrap();
    while done <= n {
        member.next().check().unwrap();
        done += 1;
    }
    member.part(1);
}

/// What the flooded process has seen so far.
struct Flooded<'a> {
    member: &'a Member,
    qp: QueuePair,
    received: u64,
}

impl Flooded<'_> {
    /// Takes the next message; false where it was the last.
    fn take(&mut self) -> bool {
        let wc = self.member.next();
        wc.check().unwrap();
        if wc.opcode & 128 == 0 {
            return true;
        }
        let from = self.member.receive(wc.wr_id).addr - self.member.memory.addr();
        let told = self.member.memory.atomic_u64(from as usize).load(Ordering::Acquire);
        if told == LAST {
            return false;
        }
        assert_eq!((told, wc.wr_id), (self.received, self.received), "lost, repeated or late");
        self.qp.post_recv(wc.wr_id + 64, &[self.member.receive(wc.wr_id)]).unwrap();
        self.received += 1;
        true
    }

    fn memory(&self) -> Vec<u8> {
        let mut all = vec![0; 1 << 16];
        self.member.memory.read(0, &mut all);
        all
    }
}

/// Promise: from the beginning of a hold until its end no byte changes, whatever the peer does; and traffic goes on
/// afterwards as if nothing had been. Promise 7: whatever changes in between is told.
fn memory_stands_still(mode: &str) {
    let job = Job::new();
    let mut other = job.start_with("flood", mode, 1, &[("SOJOURN_TRACK_WRITES", "1")]);
    let policy = Policy { tracking: true, ..Policy::default() };
    let member = Member::join_with(&job.environment(0), mode, policy);
    let (qp, _, remote) = member.connected(2);
    let mut flooded = Flooded { member: &member, qp, received: 0 };
    let mut changed = 0;
    let mut committed = flooded.memory();
    let mut last = flooded.memory();
    for round in 0..HOLDS {
        for _ in 0..50 + 10 * (round % 4) {
            assert!(flooded.take());
        }
        let mut held = member.context.suspend(soon()).unwrap();
        let before = flooded.memory();
        // A flood of this speed changes something within microseconds.
        std::thread::sleep(Duration::from_millis(2));
        assert!(flooded.memory() == before, "round {round}: something landed");
        assert!(held.still_held());
        let written = member.context.written(soon()).unwrap();
        assert_eq!(written.unknown(), []);
        let base = member.memory.addr() as usize;
        let told = |at: usize| written.ranges().iter().any(|range| range.contains(&(base + at)));
        let differs = |at: &usize| committed[*at] != before[*at];
        assert!((0..before.len()).filter(differs).all(told), "round {round}: a WRITE is not told");
        assert!(!told(before.len() - 1), "nobody has written there");
        if round % 3 > 0 {
            written.commit(soon()).unwrap();
            committed.clone_from(&before);
        }
        held.end().unwrap();
        changed += usize::from(last != before);
        last = before;
    }
    assert_eq!(changed, HOLDS, "traffic went on between the holds");
    member.memory.write(SOURCE, &1u64.to_ne_bytes());
    let word = [member.memory.slice(SOURCE..SOURCE + 8)];
    let stop = SendRequest::new(0, Op::Write(remote.offset(ENOUGH as u64)), &word);
    flooded.qp.post_send(&stop).unwrap();
    while flooded.take() {}
    let counted = member.memory.atomic_u64(COUNTER).load(Ordering::Acquire);
    assert_eq!(counted, flooded.received.div_ceil(8), "each atomic was executed once");
    for back in 0..64.min(flooded.received) {
        let n = flooded.received - 1 - back;
        let at = WRITTEN + (n % 64) as usize * 8;
        assert_eq!(member.memory.atomic_u64(at).load(Ordering::Acquire), n, "a WRITE is missing");
    }
    member.part(2);
    other.ends();
}

#[test]
fn memory_stands_still_at_once() {
    memory_stands_still("sync");
}

#[test]
fn memory_stands_still_at_a_pace() {
    memory_stands_still("async");
}

/// Promise 5: a peer that is stopped takes the hold back in time, by name; when it goes on, so does everything.
#[test]
fn a_stopped_peer_takes_the_hold_back() {
    let job = Job::new();
    let mut other = job.start("flood", "sync", 1);
    let member = Member::join(&job.environment(0), "sync");
    let (qp, _, remote) = member.connected(2);
    let mut flooded = Flooded { member: &member, qp, received: 0 };
    assert!(flooded.take());
    other.stop();
    let deadline = std::time::Instant::now() + Duration::from_millis(300);
    let error = member.context.suspend(deadline).err().expect("nobody answers");
    assert_eq!(error.errno(), libc::ETIMEDOUT, "{error}");
    assert!(error.to_string().contains("process 2: ") && error.to_string().contains("(quiesce)"));
    other.go_on();
    for _ in 0..100 {
        assert!(flooded.take());
    }
    member.context.suspend(soon()).unwrap().end().unwrap();
    member.memory.write(SOURCE, &1u64.to_ne_bytes());
    let word = [member.memory.slice(SOURCE..SOURCE + 8)];
    let stop = SendRequest::new(0, Op::Write(remote.offset(ENOUGH as u64)), &word);
    flooded.qp.post_send(&stop).unwrap();
    while flooded.take() {}
    member.part(2);
    other.ends();
}

/// Promise: a peer that is killed in the middle of a hold, or before it, keeps nobody.
#[test]
fn a_killed_peer_keeps_nobody_from_standing_still() {
    let job = Job::new();
    let mut other = job.start("flood", "sync", 1);
    let member = Member::join(&job.environment(0), "sync");
    let (qp, _, _) = member.connected(2);
    let mut flooded = Flooded { member: &member, qp, received: 0 };
    assert!(flooded.take());
    let held = member.context.suspend(soon()).unwrap();
    other.kill();
    held.end().unwrap();
    member.context.suspend(soon()).unwrap().end().unwrap();
}
