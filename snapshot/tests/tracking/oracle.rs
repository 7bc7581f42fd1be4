//! Random changes against an image that is made of what was told.

use crate::memory::{ALL, HUGE, Image, Made, Memory, Random};
use crate::{alone, kinds, telling, tracker};
use sojourn_snapshot::PAGE;
use sojourn_snapshot::track::Kind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

const BYTES: usize = 6 << 20;
/// Collects of each back end on each kind of memory.
const COLLECTS: usize = 40;
/// Threads that write.
const THREADS: usize = 3;

fn seed() -> u64 {
    let seed = std::env::var("SOJOURN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    println!("SOJOURN_SEED={seed}");
    seed
}

/// Memory of each kind that this machine has.
fn memories(bytes: usize) -> Vec<Memory> {
    let made = |made| {
        let memory = Memory::new(made, bytes);
        if memory.is_none() {
            println!("skipped: this machine has no {made:?} memory");
        }
        memory
    };
    ALL.into_iter().filter_map(made).collect()
}

/// Writes 1 byte to 3 pages, anywhere in this thread's share of the memory; how many times.
fn scribble(memory: &Memory, random: &mut Random, share: usize, writes: usize) {
    let bytes = memory.bytes / THREADS;
    for _ in 0..writes {
        let most = [16, 3 * PAGE][random.below(2)];
        let long = 1 + random.below(most);
        let at = random.below(bytes - long);
        memory.write(share * bytes + at, long, random.below(256) as u8);
    }
}

#[test]
fn every_byte_that_changed_was_told() {
    let _alone = alone();
    let seed = seed();
    for kind in kinds() {
        let mut count = 0;
        let mut collects = 0;
        for memory in memories(BYTES) {
            let mut random = Random(seed);
            let mut tracker = tracker(kind);
            tracker.add(memory.range()).unwrap();
            let mut image = Image::new(&memory);
            image.update(&mut *tracker, &memory);
            for round in 0..COLLECTS {
                // A round at work or two, and then one at rest.
                for later in (0..random.below(3)).rev() {
                    count += change(&memory, &mut random);
                    if later > 0 {
                        image.update_meanwhile(&mut *tracker, &memory);
                    }
                }
                image.update(&mut *tracker, &memory);
                collects += 1;
                // Comparing touches all pages, and hides what happens to those that are not there.
                if random.below(4) == 0 {
                    let made = memory.made;
                    image.check(&memory, &format!("{kind} {made:?} round {round} seed {seed}"));
                }
            }
            image.check(&memory, &format!("{kind} seed {seed}"));
        }
        println!("back end {kind}: {count} writes, {collects} collects, ok");
    }
}

/// Writes, by several threads, and drops some pages now and then; how many writes.
fn change(memory: &Memory, random: &mut Random) -> usize {
    let seeds: Vec<u64> = (0..THREADS).map(|_| random.below(1 << 40) as u64).collect();
    let writes = random.below(6);
    std::thread::scope(|scope| {
        for (share, seed) in seeds.iter().enumerate() {
            scope.spawn(move || scribble(memory, &mut Random(*seed), share, writes));
        }
    });
    if random.below(3) == 0 {
        drop_some(memory, random);
    }
    THREADS * writes
}

/// Drops some pages, now and then whole page tables.
fn drop_some(memory: &Memory, random: &mut Random) {
    let unit = if random.below(3) == 0 { HUGE } else { memory.made.page() };
    let units = memory.bytes / unit;
    let from = random.below(units);
    let upto = (from + 1 + random.below(4)).min(units);
    memory.dont_need(from * unit..upto * unit);
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn writes_during_a_collect_are_told_then_or_next_time() {
    let _alone = alone();
    let seed = seed();
    for kind in kinds() {
        for memory in memories(2 * HUGE) {
            let mut tracker = tracker(kind);
            tracker.add(memory.range()).unwrap();
            let mut image = Image::new(&memory);
            for round in 0..3 {
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    for share in 0..THREADS {
                        let (memory, stop) = (&memory, &stop);
                        let mut random = Random(seed ^ (round * 64 + share) as u64);
                        scope.spawn(move || {
                            while !stop.load(Ordering::Relaxed) {
                                scribble(memory, &mut random, share, 1);
                            }
                        });
                    }
                    // However this ends: the others are waited for.
                    let _stop = Stop(&stop);
                    for _ in 0..8 {
                        image.update_meanwhile(&mut *tracker, &memory);
                    }
                });
                image.update(&mut *tracker, &memory);
                image.check(&memory, &format!("{kind} round {round} seed {seed}"));
            }
        }
    }
}

#[test]
fn only_pages_that_were_written_are_told() {
    let _alone = alone();
    for kind in telling() {
        for memory in memories(BYTES).into_iter().filter(|it| !it.made.always_dirty(kind)) {
            let mut tracker = tracker(kind);
            memory.write(0, memory.bytes, 1);
            tracker.add(memory.range()).unwrap();
            let mut image = Image::new(&memory);
            let all = image.update(&mut *tracker, &memory);
            assert_eq!(all.len(), memory.pages(), "{kind} {:?}", memory.made);
            assert_eq!(image.update(&mut *tracker, &memory).len(), 0, "{kind} {:?}", memory.made);
            // Across a boundary of pages, and the very last byte.
            memory.write(7 * PAGE - 1, 2, 2);
            memory.write(memory.bytes - 1, 1, 2);
            let expected: Vec<usize> = match memory.made {
                Made::ExplicitShared => {
                    (0..512).chain(memory.pages() - 512..memory.pages()).collect()
                }
                _ => vec![6, 7, memory.pages() - 1],
            };
            let told = image.update(&mut *tracker, &memory);
            // Soft-dirty knows a transparent huge page as one, and may not have split it.
            if !(kind == Kind::SoftDirty && memory.made == Made::Transparent) {
                assert_eq!(told, expected, "{kind} {:?}", memory.made);
            }
            assert_eq!(image.update(&mut *tracker, &memory).len(), 0, "{kind} {:?}", memory.made);
            image.check(&memory, kind.name());
        }
    }
}
