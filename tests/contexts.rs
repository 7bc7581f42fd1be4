//! Programs whose registered memory, and whose windows, are part of epochs: ranks that are killed, and come back.
#![cfg(feature = "cli")]

mod common;

use common::{Place, Running, finish, start};
use sojourn::snapshot::{Area, Attach, Mapping, Memory, Options, Snapshots};
use sojourn::verbs::{
    ConnectOptions, Endpoint, MemoryRegion, Op, ProtectionDomain, QpOptions, QueuePair, Remote,
    SendRequest,
};
use sojourn::{Job, Result, abi};
use sojourn_fabric::names::JobKey;
use std::mem::ManuallyDrop;
use std::os::unix::fs::DirBuilderExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PART: &str = "CONTEXTS_PART";
/// Far above what anything takes on a loaded machine; reached only by failures.
const LONG: Duration = Duration::from_secs(60);
const ALL: u32 = abi::access::LOCAL_WRITE | abi::access::REMOTE_WRITE | abi::access::REMOTE_READ;
const PAGE: usize = 4096;

/// A place with a store.
struct World {
    place: Place,
    _store: Running,
}

impl World {
    fn new() -> World {
        let place = Place::new();
        JobKey::generate().unwrap().write(&place.path("key")).unwrap();
        std::fs::DirBuilder::new().mode(0o700).create(place.path("s")).unwrap();
        let at = World::at(&place);
        let key = place.path("key").to_str().unwrap().to_owned();
        let args = ["store", "--name", "a", "--bytes", "64M", "--listen", &at, "--key-file", &key];
        let store = start(place.sojourn(args));
        assert!(store.line().starts_with("store a at "));
        World { place, _store: store }
    }

    fn at(place: &Place) -> String {
        format!("unix:{}/a", place.path("s").display())
    }

    /// This test program again, as the ranks of a job. What they said of themselves.
    fn run(&self, part: &str, ranks: &str) -> Vec<String> {
        let own = std::env::current_exe().unwrap();
        let own = own.to_str().unwrap();
        let run = ["run", "-n", ranks, "--restarts", "1", "--timeout", "100", "--", own];
        let part_of = ["part", "--exact", "--ignored", "--nocapture"];
        let mut command = self.place.sojourn(run.into_iter().chain(part_of));
        command.env(PART, part).env("SOJOURN_TRACK_WRITES", "1");
        command.env("SOJOURN_STORES", format!("a={}", World::at(&self.place)));
        command.env("SOJOURN_STORE_KEY_FILE", self.place.path("key"));
        command.env("SOJOURN_NODE", "here").env("SOJOURN_EPOCH_SECONDS", "0.001");
        let said = finish(command).ok();
        let said = said.lines().filter_map(|line| line.split_once("says: "));
        said.map(|(_, said)| said.to_owned()).collect()
    }
}

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn part() {
    match std::env::var(PART).as_deref() {
        Ok("alone") => alone().unwrap(),
        Ok("two") => two().unwrap(),
        Ok(other) => panic!("{PART}={other} is no part"),
        Err(_) => println!("skipped: {PART} is not set, so no test has started this"),
    }
}

fn die() -> ! {
    // SAFETY: this process itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    unreachable!("it is dead");
}

/// Where the memory of the rank that is alone lies, in each life.
const AT: usize = 0x2000_0000_0000;
/// In there: the step, two queue pairs' numbers; from the second page on what is received.
const STEP: usize = 0;
const NUMBERS: [usize; 2] = [8, 16];
const INBOX: usize = PAGE;
/// Messages in all, those at the epoch, and those when it is killed.
const MESSAGES: u64 = 60;
const SAVED: u64 = 21;
const LOST: u64 = 33;

/// A rank that sends to itself. Receives are posted half as fast as messages are sent, and nothing is polled: so the
/// epoch has unread completions, and messages that wait for a receive.
fn alone() -> Result<()> {
    let job = Job::from_env()?;
    let mut snapshots = Snapshots::new(&job, Options::from_env()?.expect("there is a store"))?;
    let bytes = INBOX + 8 * MESSAGES as usize;
    let mapping = ManuallyDrop::new(Mapping::new(bytes, Some(AT))?);
    // SAFETY: the region, which is going to be its owner, outlives the snapshots.
    unsafe { snapshots.protect_area(Area { id: 0, addr: AT, bytes }) }?;
    if job.is_replacement() {
        job.regroup(Instant::now() + LONG)?;
    }
    let epoch = snapshots.restored()?;
    let base = NonNull::new(mapping.addr() as *mut u8).expect("mapped");
    let (context, cq, region, [from, to]) = match snapshots.windows() {
        None => {
            let context = job.context()?;
            let (pd, cq) = (context.alloc_pd()?, context.create_cq(256)?);
            // SAFETY: a mapping that is nobody else's.
            let region = unsafe { pd.adopt(base, bytes, ALL) }?;
            let qps = [pd.create_qp(&QpOptions::rc(&cq))?, pd.create_qp(&QpOptions::rc(&cq))?];
            for (qp, other) in [(&qps[0], &qps[1]), (&qps[1], &qps[0])] {
                qp.connect(&other.endpoint()?, &ConnectOptions::default())?;
            }
            (context, cq, region, qps)
        }
        Some(windows) => {
            println!("says: {epoch:?} with windows of {} contexts", windows.contexts());
            let windows = windows.of(0).expect("they were kept");
            // SAFETY: the memory was restored just now, and is the region's alone.
            let mut restored = unsafe { job.restore_context(windows) }?;
            let key = restored.regions().next().expect("one").key;
            let region = restored.take_region(key).expect("it begins with a page");
            let number =
                |at: usize| region.atomic_u64(at).load(std::sync::atomic::Ordering::Relaxed);
            let qp = |at: usize| restored.queue_pair(number(at) as u32).expect("that number");
            let qps = NUMBERS.map(qp);
            (restored.context(), restored.completion_queue(0).expect("one"), region, qps)
        }
    };
    snapshots.attach(&context, Attach::Windows)?;
    for (at, qp) in NUMBERS.into_iter().zip([&from, &to]) {
        region.write(at, &u64::from(qp.qp_num()).to_ne_bytes());
    }
    let mut step = [0; 8];
    region.read(STEP, &mut step);
    let first = u64::from_ne_bytes(step);
    println!("says: goes on from step {first}");
    let receive = |n: u64| {
        let at = INBOX + 8 * n as usize;
        to.post_recv(n, &[region.slice(at..at + 8)])
    };
    for n in first..MESSAGES {
        if n == SAVED && epoch.is_none() {
            snapshots.checkpoint()?;
            snapshots.wait()?.expect("an epoch was taken");
        }
        if n == LOST && epoch.is_none() {
            die();
        }
        from.post_send(&SendRequest::inline(n, Op::Send, &(n * 3).to_ne_bytes()))?;
        if n % 2 == 0 {
            receive(n / 2)?;
        }
        region.write(STEP, &(n + 1).to_ne_bytes());
    }
    (MESSAGES / 2..MESSAGES).try_for_each(receive)?;
    let mut next = [0, 0];
    while next != [MESSAGES, MESSAGES] {
        let wc = cq.expect(LONG)?;
        wc.check()?;
        let is_recv = usize::from(wc.opcode & abi::wc_opcode::RECV != 0);
        assert_eq!(wc.wr_id, next[is_recv], "in order, and once");
        next[is_recv] += 1;
    }
    for n in 0..MESSAGES {
        let mut there = [0; 8];
        region.read(INBOX + 8 * n as usize, &mut there);
        assert_eq!(u64::from_ne_bytes(there), n * 3, "message {n}");
    }
    println!("says: all is there");
    snapshots.finish()
}

/// Promise: a rank alone comes back with its windows: nothing of what it had sent to itself is lost or repeated.
#[test]
fn a_rank_that_is_killed_comes_back_with_its_windows() {
    let said = World::new().run("alone", "1");
    let expected = [
        "goes on from step 0".to_owned(),
        "Some(1) with windows of 1 contexts".to_owned(),
        format!("goes on from step {SAVED}"),
        "all is there".to_owned(),
    ];
    assert_eq!(said, expected);
}

/// Pages that ranks write to each other, steps, and the one at which a rank dies.
const PAGES: u64 = 16;
const STEPS: u64 = 120;
const DEATH: u64 = 70;

/// A rank of two that write into each other's protected memory.
struct Rank {
    job: Job,
    pd: ProtectionDomain,
    region: Arc<MemoryRegion>,
    source: MemoryRegion,
    step: Memory<u64>,
    snapshots: Snapshots,
}

fn two() -> Result<()> {
    let job = Job::from_env()?;
    let mut snapshots = Snapshots::new(&job, Options::from_env()?.expect("there is a store"))?;
    let context = job.context()?;
    let pd = context.alloc_pd()?;
    let region = Arc::new(pd.register(PAGES as usize * PAGE, ALL)?);
    let source = pd.register(PAGE, ALL)?;
    let step = Memory::<u64>::new(1)?;
    snapshots.attach(&context, Attach::Memory)?;
    snapshots.protect(0, &step)?;
    snapshots.protect_region(1, &region)?;
    let mut again = job.is_replacement();
    let mut rank = Rank { job, pd, region, source, step, snapshots };
    loop {
        if again {
            rank.job.regroup(Instant::now() + LONG)?;
        }
        match rank.go() {
            Ok(()) => break,
            Err(error) if again => return Err(error),
            Err(_) => again = true,
        }
    }
    rank.job.barrier()
}

impl Rank {
    fn go(&mut self) -> Result<()> {
        if self.snapshots.restored()?.is_some() {
            println!("says: back at {}", self.step[0]);
            assert!(self.step[0] > 0 && self.step[0] <= DEATH);
        }
        self.is_of(self.step[0]);
        let cq = self.pd.context().create_cq(16)?;
        let qp = self.pd.create_qp(&QpOptions::rc(&cq))?;
        let to = self.connect(&qp)?;
        while self.step[0] < STEPS {
            let n = self.step[0] + 1;
            self.source.write(0, &n.to_ne_bytes().repeat(PAGE / 8));
            self.job.barrier()?;
            let at = to.offset(n % PAGES * PAGE as u64);
            qp.post_send(&SendRequest::new(n, Op::Write(at), &[self.source.slice(0..PAGE)]))?;
            cq.expect(LONG)?.check()?;
            self.job.barrier()?;
            self.step[0] = n;
            self.is_of(n);
            if n == DEATH && self.job.rank() == 1 && !self.job.is_replacement() {
                assert!(
                    self.snapshots.statistics().committed > 0,
                    "{:?}",
                    self.snapshots.statistics()
                );
                die();
            }
            if self.snapshots.should_checkpoint()? {
                self.snapshots.checkpoint()?;
            }
        }
        self.snapshots.finish()?;
        let statistics = self.snapshots.statistics();
        println!("says: at the end, {:?}", statistics.why);
        Ok(())
    }

    /// Connects to the other rank, and says where its memory is.
    fn connect(&self, qp: &QueuePair) -> Result<Remote> {
        let mut note = qp.endpoint()?.to_bytes().to_vec();
        note.extend(self.region.addr().to_be_bytes());
        note.extend(self.region.rkey().to_be_bytes());
        self.job.publish("end", &note)?;
        let note = self.job.fetch(1 - self.job.rank(), "end")?;
        let (end, rest) = note.split_at(Endpoint::BYTES);
        let (addr, rkey) = rest.split_at(8);
        qp.connect(&Endpoint::from_bytes(end)?, &ConnectOptions::default())?;
        Ok(Remote {
            addr: u64::from_be_bytes(addr.try_into().expect("eight bytes")),
            rkey: u32::from_be_bytes(rkey.try_into().expect("four bytes")),
        })
    }

    /// Its memory has what the other rank had written in so many steps.
    fn is_of(&self, steps: u64) {
        let mut memory = vec![0; PAGES as usize * PAGE];
        self.region.read(0, &mut memory);
        for (page, bytes) in (0..PAGES).zip(memory.chunks(PAGE)) {
            let last = (1..=steps).rev().find(|n| n % PAGES == page).unwrap_or(0);
            let is = bytes.chunks(8).all(|word| word == last.to_ne_bytes());
            assert!(is, "page {page} after {steps} steps");
        }
    }
}

/// Promise: memory that ranks write to each other comes back, in the rank that died and in the one that lives; though
/// both stand still at the same time.
#[test]
fn memory_that_ranks_write_to_each_other_comes_back_when_one_is_killed() {
    let said = World::new().run("two", "2");
    let back: Vec<_> = said.iter().filter(|it| it.starts_with("back at")).collect();
    assert!(back.len() == 2 && back[0] == back[1], "{said:?}");
    let ended = said.iter().filter(|it| *it == "at the end, None").count();
    assert_eq!(ended, 2, "{said:?}");
}
