//! Random writes of the program and of a device, together, against an image that is made of what a tracker and virtual
//! verbs tell: on the first soft device, or the one that `SOJOURN_TEST_DEVICE` names.

use crate::memory::{HUGE, Image, Made, Memory, Random};
use crate::{alone, kinds, tracker};
use sojourn_fabric::abi::{Sge, access};
use sojourn_fabric::device::{self, DeviceMr};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, MemoryRegion, Op, Policy, Process, ProtectionDomain,
    QpOptions, QueuePair, Remote, SendRequest,
};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::track::Kind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Far above what anything takes on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Looks at rest at each kind of memory, and what is done before each at most.
const LOOKS: usize = 12;
const DEEDS: usize = 8;
const ALL: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

fn late() -> Instant {
    Instant::now() + PATIENCE
}

/// A process that sends to itself.
struct Rig {
    context: Context,
    pd: ProtectionDomain,
    cq: CompletionQueue,
    from: QueuePair,
    to: QueuePair,
    source: MemoryRegion,
}

impl Rig {
    fn new(device: &str) -> Rig {
        let process = Process::standalone().unwrap();
        let policy = Policy { tracking: true, ..Policy::default() };
        let context = process.open_with(device::open(device).unwrap(), policy).unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(16).unwrap();
        let (from, to) = pd.create_pair(&QpOptions::rc(&cq), &ConnectOptions::default()).unwrap();
        let source = pd.register(4 * PAGE, ALL).unwrap();
        Rig { context, pd, cq, from, to, source }
    }

    /// Registers memory of any kind.
    fn register(&self, memory: &Memory) -> Arc<dyn DeviceMr> {
        let device = Arc::clone(self.pd.device());
        // SAFETY: the memory outlives the region, and all access to it is atomic.
        unsafe { device.reg_mr(memory.addr as *mut _, memory.bytes, ALL) }.unwrap()
    }

    /// One thing that the device writes into that memory, until it has.
    fn deed(&self, memory: &Memory, region: &Arc<dyn DeviceMr>, random: &mut Random) {
        let long = 8 + random.below(2 * PAGE);
        let at = (memory.addr + random.below(memory.bytes - long)) as u64;
        self.source.write(0, &vec![random.below(256) as u8; long]);
        let (there, word) = (Remote { addr: at, rkey: region.rkey() }, at.next_multiple_of(8) - 8);
        let word = word.max(memory.addr as u64);
        let out = [self.source.slice(0..long)];
        let into = |addr, length| [Sge { addr, length, lkey: region.lkey() }];
        let (back, result) = (into(at, long as u32), into(word, 8));
        let from = self.source.remote(0);
        let (request, completions) = match random.below(5) {
            0 => (SendRequest::new(1, Op::Write(there), &out), 1),
            1 => {
                // Longer than the message, where there is room.
                let room = (memory.range().end as u64 - at).min(3 * PAGE as u64);
                self.to.post_recv(2, &into(at, room as u32)).unwrap();
                (SendRequest::new(1, Op::Send, &out), 2)
            }
            2 => (SendRequest::new(1, Op::Read(from), &back), 1),
            3 => (SendRequest::new(1, Op::FetchAdd(from, 1), &result), 1),
            _ => {
                let word = Remote { addr: word, rkey: region.rkey() };
                let out = [self.source.slice(2 * PAGE..2 * PAGE + 8)];
                self.from.post_send(&SendRequest::new(1, Op::FetchAdd(word, 77), &out)).unwrap();
                self.cq.expect(PATIENCE).unwrap().check().unwrap();
                return;
            }
        };
        self.from.post_send(&request).unwrap();
        (0..completions).for_each(|_| self.cq.expect(PATIENCE).unwrap().check().unwrap());
    }
}

/// Promise 7: every byte that the program or a device has changed is told, by the tracker or by virtual verbs; an inbound
/// WRITE that is missed fails this.
#[test]
fn what_the_program_and_devices_write_is_told_between_the_two() {
    let _alone = alone();
    let device = std::env::var("SOJOURN_TEST_DEVICE").unwrap_or_else(|_| "soft0".into());
    let rig = Rig::new(&device);
    for kind in kinds() {
        // Protected pages refuse the system call by which the soft device writes.
        if kind == Kind::Protect && device.starts_with("soft") {
            continue;
        }
        for made in [Made::Private, Made::SharedAnonymous, Made::Memfd, Made::Transparent] {
            let mut random = Random(made as u64 * 8 + kind as u64);
            let memory = Memory::new(made, HUGE).unwrap();
            let region = rig.register(&memory);
            let mut tracker = tracker(kind);
            tracker.add(memory.range()).unwrap();
            let mut image = Image::new(&memory);
            for look in 0..LOOKS {
                for _ in 0..random.below(DEEDS) {
                    if random.below(2) == 0 {
                        rig.deed(&memory, &region, &mut random);
                    } else {
                        let long = 1 + random.below(3 * PAGE);
                        let at = random.below(memory.bytes - long);
                        memory.write(at, long, random.below(256) as u8);
                    }
                    if random.below(4) == 0 {
                        image.update_meanwhile(&mut *tracker, &memory);
                    }
                }
                let held = rig.context.suspend(late()).unwrap();
                let written = rig.context.written(late()).unwrap();
                assert_eq!(written.unknown(), []);
                image.update(&mut *tracker, &memory);
                written.ranges().iter().for_each(|range| image.copy(&memory, range.clone()));
                image.check(&memory, &format!("{kind} {made:?} over {device}, look {look}"));
                held.end().unwrap();
                // One that is not committed is in the next.
                if random.below(3) > 0 {
                    written.commit(late()).unwrap();
                }
            }
            drop((region, tracker));
        }
        println!("back end {kind} and {device}: ok");
    }
}
