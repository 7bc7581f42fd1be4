//! What a process knows of its job, and how its processes come together.

use crate::verbs::{Context, Restored};
use crate::{Error, Result, best_device};
use sojourn_fabric::names::ProcessId;
use sojourn_fabric::names::env::{self, JobEnvironment};
use sojourn_fabric::virt::{Policy, Process};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The note in which every rank says which life of its own this is.
const LIFE: &str = "sojourn/life";
/// Under which it tells the prefix of the group that it is in, or would be in next.
const STANDS_FOR: &str = "sojourn/group";
/// How long a rank is waited for before it is looked again whether that is still of use.
const LOOK: Duration = Duration::from_millis(200);
/// What the job's own barriers are called.
const BARRIERS: &str = "sojourn/barrier";
/// Between two looks at a rank that is dead.
const REST: Duration = Duration::from_millis(10);

/// A process's membership in its job. It lasts as long as this value: dropping it, and its clones, leaves the job.
///
/// Ranks tell each other what they need by *notes*: small blobs that one publishes under a name,
/// and others fetch from it. Notes are for setting up, and for whatever else is rare; data
/// travels by verbs.
///
/// Clones are the same membership.
#[derive(Clone)]
pub struct Job {
    inner: Arc<Inner>,
}

struct Inner {
    process: Process,
    rank: u32,
    size: u32,
    device: Option<String>,
    barriers: Mutex<Arc<Circle>>,
    group: Mutex<Group>,
}

/// Barriers that count by themselves, so that one thread of each rank may meet the others' while another
/// thread meets theirs.
#[derive(Debug)]
pub(crate) struct Circle {
    name: String,
    /// The ranks that come there.
    group: Group,
    /// Those that this rank has entered.
    entered: AtomicU64,
    /// This rank waits for nobody here any more.
    left: AtomicBool,
}

impl Circle {
    /// A circle of that name, which is no other's in a group, of that group.
    fn new(name: &str, group: &Group) -> Self {
        Circle {
            name: group.full_name(name),
            group: group.clone(),
            entered: AtomicU64::new(0),
            left: AtomicBool::new(false),
        }
    }

    /// Whoever waits at a barrier of it in this process waits no more.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Whether it was left.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}

/// The ranks that meet each other: which life of each.
#[derive(Clone, Debug)]
struct Group {
    /// Empty for a process that takes another's place, until it has met the others.
    lives: Vec<u32>,
    /// What the names of its notes begin with, so that no note of an earlier group is taken for one of this.
    prefix: String,
}

impl Job {
    /// How long [`Self::fetch`], [`Self::exchange`] and [`Self::barrier`] wait for another rank.
    pub const PATIENCE: Duration = Duration::from_secs(60);

    /// Joins the job of which the launcher told this process; without a launcher, a job of one.
    ///
    /// # Errors
    /// Where the launcher's environment variables make no sense (the message names them), the job
    /// key cannot be read or does not match, or the directory cannot be reached.
    pub fn from_env() -> Result<Self> {
        match JobEnvironment::read().map_err(|error| Error::invalid(error.to_string()))? {
            Some(told) => Self::join(&told),
            None => Ok(Job::over(Inner {
                process: Process::standalone()?,
                rank: 0,
                size: 1,
                device: std::env::var(env::DEVICE).ok().filter(|name| !name.is_empty()),
                barriers: Mutex::new(Arc::new(Circle::new(BARRIERS, &Group::first(1)))),
                group: Mutex::new(Group::first(1)),
            })),
        }
    }

    fn join(told: &JobEnvironment) -> Result<Self> {
        let process = Process::join(told)?;
        let life = process.grant().incarnation.0;
        process.publish(LIFE, &life.to_be_bytes())?;
        process.publish(STANDS_FOR, &[])?;
        let group = match life {
            FIRST_LIFE => Group::first(told.size),
            _ => Group { lives: Vec::new(), prefix: String::new() },
        };
        Ok(Job::over(Inner {
            process,
            rank: told.rank,
            size: told.size,
            device: told.device.clone(),
            barriers: Mutex::new(Arc::new(Circle::new(BARRIERS, &group))),
            group: Mutex::new(group),
        }))
    }

    fn over(inner: Inner) -> Self {
        Job { inner: Arc::new(inner) }
    }

    /// Whether this process has taken the place of one that died, and must [`Self::regroup`] before it
    /// meets the others.
    #[must_use]
    pub fn is_replacement(&self) -> bool {
        self.inner.process.grant().incarnation.0 != FIRST_LIFE
    }

    /// Makes the job whole again after ranks have died and others have taken their places
    /// (`sojourn run --restarts`): all ranks call it, those that live on and those that are new, and it
    /// returns when all have. From then on notes of before are gone, and barriers count anew. What the
    /// ranks had connected is theirs to make again.
    ///
    /// A rank that lives on calls it when something tells it that another has died: a connection that
    /// broke, a fetch that failed. So it waits for a rank to be replaced, and returns no sooner.
    ///
    /// # Errors
    /// `ETIMEDOUT` where by `deadline` nobody was replaced, or somebody is missing; the message says who.
    pub fn regroup(&self, deadline: Instant) -> Result<()> {
        let mut group = self.group();
        let mut missing = String::new();
        loop {
            let soon = Instant::now() + LOOK;
            // A look that the deadline cuts short tells of nobody: the first rank would seem to be slow.
            if soon > deadline && !missing.is_empty() {
                break;
            }
            let soon = soon.min(deadline);
            missing = match self.lives(soon) {
                Ok(lives) if lives == group.lives => "no rank has been replaced".to_owned(),
                Ok(lives) => match self.gather(&lives, soon) {
                    Ok(next) => {
                        // Who still waits at a barrier of before does so under its name.
                        *self.barriers() = Arc::new(Circle::new(BARRIERS, &next));
                        *group = next;
                        return Ok(());
                    }
                    Err(error) => error.to_string(),
                },
                // Slow is not dead, and says nothing new.
                Err(error) if error.errno() == libc::ETIMEDOUT && !missing.is_empty() => missing,
                Err(error) => error.to_string(),
            };
            std::thread::sleep(REST);
        }
        Err(Error::new(libc::ETIMEDOUT, format!("bringing the ranks together again: {missing}")))
    }

    /// Says that this rank is there for a group of these lives, and hears it from all others.
    fn gather(&self, lives: &[u32], deadline: Instant) -> Result<Group> {
        let prefix = format!("{:016x}/", fingerprint(lives));
        let group = Group { lives: lives.to_vec(), prefix };
        // Who waits for this rank in another group waits in vain.
        self.inner.process.publish(STANDS_FOR, group.prefix.as_bytes())?;
        let met = group.full_name("sojourn/met");
        self.inner.process.publish(&met, &[])?;
        (0..self.inner.size).try_for_each(|rank| self.ask(rank, &met, deadline).map(drop))?;
        Ok(group)
    }

    /// Looks whether all ranks of the group are alive: for one that waits for another, and would not be told
    /// (a connection on which nothing is sent does not break). It asks every rank.
    ///
    /// # Errors
    /// `EHOSTUNREACH` where one has died or been replaced; the message names it.
    pub fn check(&self) -> Result<()> {
        let lives = self.group().lives.clone();
        (0..).zip(&lives).try_for_each(|(rank, life)| self.check_life(rank, *life))
    }

    /// Looks whether a rank is in the life that it had in this group.
    fn check_life(&self, rank: u32, life: u32) -> Result<()> {
        match self.ask(rank, LIFE, Instant::now() + LOOK) {
            Ok(now) if now == life.to_be_bytes() => Ok(()),
            // Slow is not dead.
            Err(error) if error.errno() == libc::ETIMEDOUT => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let text = format!("rank {rank} died, and another process is in its place");
                Err(Error::new(libc::EHOSTUNREACH, text))
            }
        }
    }

    /// Looks whether a rank has left a group, or given it up on the way there: because it has seen that another rank
    /// was replaced.
    fn check_stand(&self, rank: u32, group: &Group) -> Result<()> {
        match self.ask(rank, STANDS_FOR, Instant::now() + LOOK) {
            Ok(now) if now != group.prefix.as_bytes() => {
                let text = format!("rank {rank} is on its way to another group of ranks");
                Err(Error::new(libc::EHOSTUNREACH, text))
            }
            _ => Ok(()),
        }
    }

    /// Tells groups apart: another after each [`Self::regroup`], and the same for all ranks of one.
    pub(crate) fn generation(&self) -> String {
        self.group().prefix.clone()
    }

    /// The number of this process in the job, as stores know it.
    pub(crate) fn process_of(rank: u32) -> ProcessId {
        JobEnvironment::process_of(rank)
    }

    /// Which life of each rank there is.
    fn lives(&self, deadline: Instant) -> Result<Vec<u32>> {
        (0..self.inner.size)
            .map(|rank| {
                let note = self.ask(rank, LIFE, deadline)?;
                note.try_into().map(u32::from_be_bytes).map_err(|_| {
                    Error::new(libc::EPROTO, format!("rank {rank} tells no life that it has"))
                })
            })
            .collect()
    }

    fn barriers(&self) -> MutexGuard<'_, Arc<Circle>> {
        self.inner.barriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Barriers of that name among the ranks of this group, and of no later one.
    pub(crate) fn circle(&self, name: &str) -> Circle {
        Circle::new(name, &self.group())
    }

    fn group(&self) -> MutexGuard<'_, Group> {
        self.inner.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a note is called among all processes of all groups.
    fn full_name(&self, name: &str) -> String {
        self.group().full_name(name)
    }

    /// This process's number in the job, from 0.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.inner.rank
    }

    /// How many ranks the job has.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.inner.size
    }

    /// The device to open: the one that the user named, or the best of this machine.
    ///
    /// # Errors
    /// As [`best_device`].
    pub fn device(&self) -> Result<String> {
        match &self.inner.device {
            Some(name) => Ok(name.clone()),
            None => best_device(),
        }
    }

    /// Makes a context of an earlier life of this rank anew over the job's device, from the windows that an epoch has of it
    /// ([`Snapshots::windows`](crate::snapshot::Snapshots::windows)): see
    /// [`Snapshots::attach`](crate::snapshot::Snapshots::attach).
    ///
    /// # Safety
    /// The memory of all its regions is mapped where it was, holds what it held in that epoch, is nobody else's as long
    /// as they are registered, and is accessed with atomics alone. Whoever takes a region out of [`Restored`] becomes
    /// the owner of its mapping. What was made for one thread is used by one thread at a time.
    ///
    /// # Errors
    /// `EINVAL` for windows of another process or job, or that are damaged; `EFAULT` where memory is not there;
    /// `EEXIST` where a context of this process has one of the names; whatever the device answers.
    pub unsafe fn restore_context(&self, windows: &[u8]) -> Result<Restored> {
        let device = sojourn_fabric::device::open(&self.device()?)?;
        // SAFETY: the caller's promise.
        unsafe { self.inner.process.restore(device, Policy::from_env()?, windows) }
    }

    /// Opens virtual verbs over the job's device.
    ///
    /// # Errors
    /// Where there is no such device, or it cannot be opened.
    pub fn context(&self) -> Result<Context> {
        self.inner.process.open(&self.device()?)
    }

    /// Leaves a note for the other ranks. It is there until this rank leaves the job, so end with
    /// a [`Self::barrier`] where another may still want it.
    ///
    /// # Errors
    /// Where the name or the note is longer than a note may be.
    pub fn publish(&self, name: &str, note: &[u8]) -> Result<()> {
        self.inner.process.publish(&self.full_name(name), note)
    }

    /// The note that `rank` published under `name`, or will within [`Self::PATIENCE`].
    ///
    /// # Errors
    /// `ETIMEDOUT` where none came; and soon, where the rank has died, or another process has taken its place.
    pub fn fetch(&self, rank: u32, name: &str) -> Result<Vec<u8>> {
        self.fetch_until(rank, name, Instant::now() + Self::PATIENCE)
    }

    /// The same with another deadline.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub fn fetch_until(&self, rank: u32, name: &str, deadline: Instant) -> Result<Vec<u8>> {
        if rank >= self.inner.size {
            return Err(Error::invalid(format!(
                "a note of rank {rank}: this job has the ranks 0 to {}",
                self.inner.size - 1
            )));
        }
        let group = self.group().clone();
        self.await_note(&group, rank, &group.full_name(name), deadline, || false)
    }

    /// The note of that full name.
    fn ask(&self, rank: u32, name: &str, deadline: Instant) -> Result<Vec<u8>> {
        self.inner
            .process
            .fetch(JobEnvironment::process_of(rank), name, deadline)
            .map_err(|error| error.context(format_args!("rank {rank}")))
    }

    /// Gives every rank's note to every rank, by rank. All call it with the same name, which must
    /// be a new one each time.
    ///
    /// Each rank talks to each: for setting up jobs of modest size.
    ///
    /// # Errors
    /// As [`Self::publish`] and [`Self::fetch`]; [`Self::PATIENCE`] is for the whole.
    pub fn exchange(&self, name: &str, note: &[u8]) -> Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + Self::PATIENCE;
        self.publish(name, note)?;
        (0..self.inner.size)
            .map(|rank| match rank == self.inner.rank {
                true => Ok(note.to_vec()),
                false => self.fetch_until(rank, name, deadline),
            })
            .collect()
    }

    /// Takes a note back, whose name may be used again then. Who fetches it from now on waits.
    pub fn withdraw(&self, name: &str) {
        self.inner.process.withdraw(&self.full_name(name));
    }

    /// Returns when every rank has called it, the same number of times.
    ///
    /// It travels by notes, in ⌈log₂ n⌉ rounds: for the beginning and the end of a program and for what
    /// is as rare, not for its inner loop.
    ///
    /// # Errors
    /// As [`Self::fetch`], where a rank does not come.
    pub fn barrier(&self) -> Result<()> {
        let circle = Arc::clone(&self.barriers());
        self.meet(&circle, 0).map(drop)
    }

    /// The note of that full name, of a rank as long as it is of that group; unless it `is_left`, and not waited for any
    /// more.
    fn await_note(
        &self,
        group: &Group,
        rank: u32,
        name: &str,
        until: Instant,
        is_left: impl Fn() -> bool,
    ) -> Result<Vec<u8>> {
        loop {
            let soon = until.min(Instant::now() + LOOK);
            match self.ask(rank, name, soon) {
                Err(error) if error.errno() == libc::ETIMEDOUT && soon < until => {
                    if is_left() {
                        return Err(Error::new(
                            libc::ECANCELED,
                            "the barrier is not waited for any more",
                        ));
                    }
                    // The one in its place knows nothing of this.
                    let life = group.lives.get(rank as usize);
                    life.map_or(Ok(()), |life| self.check_life(rank, *life))?;
                    self.check_stand(rank, group)?;
                }
                other => return other,
            }
        }
    }

    /// A barrier of a circle, from which every rank takes with it the largest of the numbers that the ranks came
    /// with.
    ///
    /// # Errors
    /// As [`Self::barrier`].
    pub(crate) fn meet(&self, circle: &Circle, number: u64) -> Result<u64> {
        let mut largest = number;
        let deadline = Instant::now() + Self::PATIENCE;
        let count = circle.entered.fetch_add(1, Ordering::Relaxed);
        let size = u64::from(self.inner.size);
        let distances = || (0..u32::BITS).map(|round| 1u64 << round).take_while(|far| *far < size);
        let at =
            |far: u64| u32::try_from((u64::from(self.inner.rank) + far) % size).unwrap_or_default();
        let name = |count: u64, far: u64| format!("{}/{count}/{far}", circle.name);
        let passed = |count: u64| format!("{}/{count}/passed", circle.name);
        let wait = |rank: u32, name: &str| {
            self.await_note(&circle.group, rank, name, deadline, || circle.is_left())
        };
        // In each round a rank hears from one before it that has heard from as many as itself.
        for far in distances() {
            self.inner.process.publish(&name(count, far), &largest.to_be_bytes())?;
            let from = at(size - far);
            let heard = wait(from, &name(count, far))
                .and_then(|note| number_in(&note, from))
                .map_err(|error| error.context("waiting at a barrier"));
            let heard = match heard {
                Ok(heard) => heard,
                Err(error) => {
                    // Those that wait for this rank have nothing to wait for.
                    for later in distances().filter(|later| *later > far) {
                        self.inner.process.publish(&name(count, later), &[])?;
                    }
                    self.inner.process.publish(&passed(count), &[])?;
                    return Err(error);
                }
            };
            // Some arrive twice, which the largest does not mind.
            largest = largest.max(heard);
        }
        // A note goes with the rank that left it, which may leave the job after this: so it stays
        // until those that fetch its notes have gone on. One that has left has gone on too.
        self.inner.process.publish(&passed(count), &[])?;
        for far in distances() {
            if let Err(error) = wait(at(far), &passed(count)) {
                tracing::debug!("leaving a barrier: {error}");
            }
        }
        // Everybody has entered this one, and so has left the one before.
        if let Some(before) = count.checked_sub(1) {
            distances().for_each(|far| self.inner.process.withdraw(&name(before, far)));
            self.inner.process.withdraw(&passed(before));
        }
        Ok(largest)
    }
}

/// What a rank came to a barrier with.
fn number_in(note: &[u8], rank: u32) -> Result<u64> {
    if note.is_empty() {
        let text = format!("rank {rank} has not got through it either");
        return Err(Error::new(libc::ECONNABORTED, text));
    }
    note.try_into().map(u64::from_be_bytes).map_err(|_| {
        Error::new(libc::EPROTO, format!("rank {rank} came to a barrier without a number"))
    })
}

/// The life that a rank begins with.
const FIRST_LIFE: u32 = 1;

impl Group {
    /// That of a job that begins.
    fn first(size: u32) -> Self {
        Group { lives: vec![FIRST_LIFE; size as usize], prefix: String::new() }
    }

    /// What a note of it is called among all processes of all groups.
    fn full_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// FNV-1a: differs for any two groups of a job, but for a chance of one in 2^64.
fn fingerprint(lives: &[u32]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = lives.iter().flat_map(|life| life.to_le_bytes());
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
    use sojourn_fabric::names::{Endpoint, JobKey, PrivateDir};
    use std::sync::atomic::AtomicU32;

    /// A launcher without processes.
    struct Told {
        size: u32,
        home: PrivateDir,
        server: DirectoryServer,
    }

    impl Told {
        fn new(size: u32) -> Self {
            let home = PrivateDir::create().unwrap();
            let key = JobKey::generate().unwrap();
            key.write(&home.path().join("key")).unwrap();
            let at = Endpoint::Unix(home.path().join("directory"));
            let server = DirectoryServer::start(ServerConfig::new(at, key, size)).unwrap();
            Told { size, home, server }
        }

        fn join(&self, rank: u32) -> Job {
            let told = JobEnvironment {
                rank,
                size: self.size,
                directory: self.server.endpoints()[0].clone(),
                key_file: self.home.path().join("key"),
                device: None,
            };
            // A member that has left may still be taken for alive for a moment.
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                match Job::join(&told) {
                    Ok(job) => return job,
                    Err(error) if Instant::now() > until => panic!("{error}"),
                    Err(_) => std::thread::sleep(REST),
                }
            }
        }
    }

    /// Runs `rank` in a thread for each rank of a job of its own.
    fn run<T: Send>(size: u32, rank: impl Fn(Job) -> T + Sync) -> Vec<T> {
        let told = Told::new(size);
        std::thread::scope(|scope| {
            let (told, rank) = (&told, &rank);
            let threads: Vec<_> =
                (0..size).map(|i| scope.spawn(move || rank(told.join(i)))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn nobody_passes_a_barrier_before_all_have_come() {
        for size in [1, 2, 5] {
            let come = AtomicU32::new(0);
            run(size, |job| {
                for round in 1..=3 {
                    if job.rank() == round % size {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    come.fetch_add(1, Ordering::SeqCst);
                    job.barrier().unwrap();
                    assert!(come.load(Ordering::SeqCst) >= round * size);
                    job.barrier().unwrap();
                }
                // The others may still be on their way out when this one has left.
                drop(job);
            });
        }
    }

    #[test]
    fn everybody_leaves_a_barrier_with_the_largest_number() {
        for size in [1, 2, 3, 5, 8] {
            run(size, |job| {
                for round in 0..5 {
                    let of = |rank: u32| u64::from((rank + round) % size);
                    let met = job.meet(&Arc::clone(&job.barriers()), of(job.rank())).unwrap();
                    assert_eq!(met, u64::from(size - 1));
                }
                job.barrier().unwrap();
                // What earlier ones have left behind is gone.
                let soon = Instant::now() + Duration::from_millis(20);
                let old = job.fetch_until(job.rank(), "sojourn/barrier/3/passed", soon);
                assert!(old.is_err());
                job.barrier().unwrap();
            });
        }
    }

    #[test]
    fn everybody_gets_the_notes_of_everybody_by_rank() {
        let all = run(5, |job| {
            let all = job.exchange("numbers", &[job.rank() as u8 * 3]).unwrap();
            job.barrier().unwrap();
            all
        });
        assert!(all.iter().all(|notes| *notes == [[0], [3], [6], [9], [12]]), "{all:?}");
    }

    #[test]
    fn a_note_waits_for_its_publisher_and_then_for_its_reader() {
        run(2, |job| {
            if job.rank() == 0 {
                std::thread::sleep(Duration::from_millis(30));
                job.publish("late", b"here").unwrap();
            } else {
                assert_eq!(job.fetch(0, "late").unwrap(), b"here");
                assert_eq!(job.fetch(0, "late").unwrap(), b"here");
            }
            job.barrier().unwrap();
        });
    }

    #[test]
    fn what_will_never_come_is_an_error_that_names_the_rank() {
        run(2, |job| {
            if job.rank() == 1 {
                job.publish("here", b"").unwrap();
                // Leaves once the other has seen it.
                job.fetch(0, "seen").unwrap();
                return;
            }
            job.fetch(1, "here").unwrap();
            job.publish("seen", b"").unwrap();
            let start = Instant::now();
            let error = job.fetch(1, "never").unwrap_err().to_string();
            assert!(error.contains("rank 1") && error.contains("left the job"), "{error}");
            assert!(start.elapsed() < Job::PATIENCE / 2);
            let error = job.fetch(2, "x").unwrap_err().to_string();
            assert!(error.contains("ranks 0 to 1"), "{error}");
            let soon = Instant::now() + Duration::from_millis(20);
            assert!(job.fetch_until(0, "mine", soon).is_err());
            assert!(job.publish("long", &vec![0; 1 << 20]).is_err());
        });
    }

    /// Promise: those that live on and those that are new meet again, under names of their own.
    #[test]
    fn ranks_that_were_replaced_and_those_that_live_on_meet_again() {
        let told = Told::new(4);
        let died = AtomicU32::new(0);
        let soon = || Instant::now() + Duration::from_secs(20);
        let meet = |job: &Job, round: u8| {
            job.regroup(soon()).unwrap();
            let all = job.exchange("x", &[round, job.rank() as u8]).unwrap();
            assert_eq!(all, (0..4).map(|rank| [round, rank]).collect::<Vec<_>>());
            job.barrier().unwrap();
        };
        std::thread::scope(|scope| {
            let (told, died, meet) = (&told, &died, &meet);
            for rank in 0..4 {
                scope.spawn(move || {
                    let mut job = told.join(rank);
                    job.exchange("x", b"before").unwrap();
                    job.barrier().unwrap();
                    // Two at a time, then one.
                    for (round, dead) in [(1, [1, 2]), (2, [3, 3])] {
                        if dead.contains(&rank) {
                            drop(job);
                            died.fetch_add(1, Ordering::SeqCst);
                            job = told.join(rank);
                            assert!(job.is_replacement());
                        } else {
                            // A survivor may notice sooner than there is anybody new, or later.
                            std::thread::sleep(Duration::from_millis(u64::from(rank) * 15));
                            while job.check().is_ok() {}
                            assert_eq!(job.check().unwrap_err().errno(), libc::EHOSTUNREACH);
                        }
                        meet(&job, round);
                    }
                });
            }
        });
        assert_eq!(died.load(Ordering::SeqCst), 3);
    }

    /// Promise: who waits for a note of a rank that has died is told so, and soon, also where another process has its place
    /// by then.
    #[test]
    fn a_note_of_a_rank_that_was_replaced_is_not_waited_for() {
        let told = Told::new(2);
        let (one, other) = (told.join(0), told.join(1));
        drop(other);
        let other = told.join(1);
        assert!(other.is_replacement());
        let start = Instant::now();
        for error in [one.fetch(1, "x").unwrap_err(), one.exchange("y", b"").unwrap_err()] {
            assert_eq!(error.errno(), libc::EHOSTUNREACH, "{error}");
            assert!(error.to_string().contains("rank 1 died"), "{error}");
        }
        assert!(start.elapsed() < Job::PATIENCE / 2);
    }

    /// Promise: and neither is one of a rank that lives, and has gone to meet the one that is new.
    #[test]
    fn a_note_of_a_rank_that_regroups_is_not_waited_for() {
        let told = Told::new(3);
        let (zero, one, two) = (told.join(0), told.join(1), told.join(2));
        drop(zero);
        let zero = told.join(0);
        let soon = || Instant::now() + Duration::from_secs(30);
        std::thread::scope(|scope| {
            for job in [&zero, &one] {
                scope.spawn(move || job.regroup(soon()).unwrap());
            }
            let error = two.fetch_until(1, "x", soon()).unwrap_err();
            assert_eq!(error.errno(), libc::EHOSTUNREACH, "{error}");
            assert!(error.to_string().contains("rank 1 is on its way"), "{error}");
            two.regroup(soon()).unwrap();
        });
    }

    #[test]
    fn where_nobody_was_replaced_regrouping_ends_at_its_deadline() {
        run(2, |job| {
            // Long enough for the ranks to hear from each other on a loaded machine.
            let soon = Instant::now() + Duration::from_secs(2);
            let error = job.regroup(soon).unwrap_err();
            assert_eq!(error.errno(), libc::ETIMEDOUT);
            assert!(error.to_string().contains("no rank has been replaced"), "{error}");
            // And the group is what it was.
            job.check().unwrap();
            job.barrier().unwrap();
        });
    }

    #[test]
    fn without_a_launcher_a_process_is_a_job_of_one() {
        let job = Job::over(Inner {
            process: Process::standalone().unwrap(),
            rank: 0,
            size: 1,
            device: None,
            barriers: Mutex::new(Arc::new(Circle::new(BARRIERS, &Group::first(1)))),
            group: Mutex::new(Group::first(1)),
        });
        job.barrier().unwrap();
        assert_eq!(job.exchange("x", b"y").unwrap(), [b"y"]);
        job.publish("note", b"to myself").unwrap();
        assert_eq!(job.fetch(0, "note").unwrap(), b"to myself");
    }
}
