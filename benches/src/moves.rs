//! A context that goes from one soft device to the other, and back, while a peer follows.
//!
//! The measuring process starts two more with [`Pair::start`]: the mover and the follower, ranks 0
//! and 1 of a job of their own on a node with two soft devices. They connect their queue pairs, and the
//! mover keeps as many WRITEs outstanding on some of them as was asked for. Each
//! [`Pair::relocate`] is one line to the mover and one line back. Both end with their standard input.

use sojourn_fabric::abi::{QpCap, Wc, access};
use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{self, JobKey, PrivateDir, ProcessId};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Endpoint, MemoryRegion, Op, Outstanding, Phase,
    Process, ProtectionDomain, QpOptions, QueuePair, Remote, SendRequest,
};
use sojourn_fabric::{Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// The argument that makes a binary of this package serve as the mover or as the follower.
pub const ARGUMENT: &str = "--serve-in-a-move";
/// Bytes of a WRITE.
pub const LENGTH: usize = 4096;
/// Targets at the follower, used in turn by queue pair: more than a cache of the first level holds.
const TARGETS: usize = 64;
/// Endpoints in one note.
const IN_A_NOTE: usize = 1024;
/// Longest wait for another process: 4,096 connections take a second or two.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for completions where there were none: the machine may have few cores, and the
/// device's engine needs one.
const REST: Duration = Duration::from_micros(20);
/// The devices of the node.
const DEVICES: [&str; 2] = ["soft0", "soft1"];

/// What moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Queue pairs with WRITEs outstanding.
    pub busy: usize,
    /// Those without.
    pub idle: usize,
    /// WRITEs outstanding on each of the former.
    pub window: u32,
    /// `SOJOURN_SOFT_MODE`.
    pub mode: &'static str,
}

impl Scale {
    /// Queue pairs without traffic, over a device that does everything at once.
    #[must_use]
    pub fn idle(idle: usize) -> Self {
        Scale { busy: 0, idle, window: 0, mode: "sync" }
    }

    /// Bytes that the program has posted while traffic goes.
    #[must_use]
    pub fn posted(&self) -> u64 {
        self.busy as u64 * u64::from(self.window) * LENGTH as u64
    }

    /// Those of them that are outstanding: each queue pair's share bounds them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let share = Outstanding::default().share((self.busy + self.idle) as u64);
        let window = (share.bytes / LENGTH as u64).min(share.requests).max(1);
        self.busy as u64 * u64::from(self.window).min(window) * LENGTH as u64
    }
}

/// A move, as the mover tells of it.
#[derive(Clone, Debug)]
pub struct Moved {
    /// From the moment at which nothing more was handed to the old device until everything was handed
    /// to the new one.
    pub blackout: Duration,
    /// Each step.
    pub phases: Vec<(String, Duration)>,
}

impl Moved {
    /// How long that step took; zero where there was none.
    #[must_use]
    pub fn phase(&self, name: &str) -> Duration {
        self.phases.iter().find(|phase| phase.0 == name).map_or(Duration::ZERO, |phase| phase.1)
    }
}

fn broken(what: &str) -> Error {
    Error::new(libc::EPIPE, format!("a process of the move {what}"))
}

fn refused(error: names::Error) -> Error {
    Error::new(libc::EIO, error.to_string())
}

/// A process of the pair.
struct Part {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Part {
    fn start(told: &JobEnvironment, scale: &Scale) -> Result<Self> {
        let exe = std::env::current_exe().map_err(|e| Error::os(&e, "finding this binary"))?;
        let variables = told.variables();
        let mut child = Command::new(exe)
            .arg(ARGUMENT)
            .args([scale.busy, scale.idle, scale.window as usize].map(|n| n.to_string()))
            .envs(variables.into_iter().filter_map(|(name, value)| Some((name, value?))))
            .env("SOJOURN_SOFT_DEVICES", DEVICES.join(","))
            .env("SOJOURN_SOFT_MODE", scale.mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::os(&e, "starting a process of the move"))?;
        let input = child.stdin.take().ok_or_else(|| broken("has no input"))?;
        let output = child.stdout.take().ok_or_else(|| broken("has no output"))?;
        Ok(Part { child, input, output: BufReader::new(output) })
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").map_err(|e| Error::os(&e, "asking for a move"))?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        match read.map_err(|e| Error::os(&e, "reading of a move"))? {
            0 => Err(broken("ended")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The mover and the follower.
pub struct Pair {
    mover: Part,
    _follower: Part,
    _directory: DirectoryServer,
    _dir: PrivateDir,
}

impl Pair {
    /// Starts both, and returns when they are connected and traffic goes.
    ///
    /// # Errors
    /// Where one of them cannot be started, or fails.
    pub fn start(scale: &Scale) -> Result<Self> {
        let dir = PrivateDir::create().map_err(refused)?;
        let (key, key_file) = (JobKey::generate().map_err(refused)?, dir.path().join("key"));
        key.write(&key_file).map_err(refused)?;
        let at = names::Endpoint::Unix(dir.path().join("directory"));
        let server = ServerConfig::new(at.clone(), key, DEVICES.len() as u32);
        let directory = DirectoryServer::start(server).map_err(refused)?;
        let told = |rank| JobEnvironment {
            rank,
            size: 2,
            directory: at.clone(),
            key_file: key_file.clone(),
            device: None,
        };
        let mut mover = Part::start(&told(0), scale)?;
        let mut follower = Part::start(&told(1), scale)?;
        mover.line()?;
        follower.line()?;
        Ok(Pair { mover, _follower: follower, _directory: directory, _dir: dir })
    }

    /// Moves the context to the device on which it is not.
    ///
    /// # Errors
    /// Where it does not move.
    pub fn relocate(&mut self) -> Result<Moved> {
        let line = self.mover.ask("move")?;
        let mut words = line.split(' ');
        let mut time = || words.next()?.parse().ok().map(Duration::from_nanos);
        let blackout = time().ok_or_else(|| broken("told of no time"))?;
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        let phase = |pair: &[&str]| match pair {
            [name, took] => {
                Ok(((*name).to_owned(), Duration::from_nanos(took.parse().unwrap_or(0))))
            }
            _ => Err(broken("told of half a phase")),
        };
        Ok(Moved { blackout, phases: words.chunks(2).map(phase).collect::<Result<_>>()? })
    }

    /// Stops posting for once, and returns how long what is outstanding takes then: the reference of a
    /// quiesce, which does the same without the program's help.
    ///
    /// # Errors
    /// Where the mover has failed.
    pub fn drain(&mut self) -> Result<Duration> {
        let took = self.mover.ask("drain")?.parse();
        took.map(Duration::from_nanos).map_err(|_| broken("told of no time"))
    }
}

/// Serves as mover or follower where the arguments ask for it; returns false where they do not.
///
/// # Errors
/// Where the peer cannot be connected to, or a request fails.
pub fn serve() -> Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [flag, numbers @ ..] = &args[..] else { return Ok(false) };
    if flag != ARGUMENT {
        return Ok(false);
    }
    let numbers: Vec<usize> = numbers.iter().filter_map(|number| number.parse().ok()).collect();
    let [busy, idle, window] = numbers[..] else {
        return Err(Error::invalid(format!("{ARGUMENT} needs three numbers")));
    };
    let told = JobEnvironment::read().map_err(refused)?;
    let told = told.ok_or_else(|| Error::invalid(format!("{ARGUMENT} needs a job")))?;
    let member = Member::join(&told, busy + idle, window)?;
    let remote = member.meet(JobEnvironment::process_of(1 - told.rank))?;
    if told.rank == 0 {
        member.drive(busy, window, remote)?;
    } else {
        println!("connected");
        // Its service thread follows; it has nothing to do itself.
        for line in std::io::stdin().lock().lines() {
            line.map_err(|e| Error::os(&e, "waiting for the end"))?;
        }
    }
    Ok(true)
}

/// A process of the job, with its queue pairs.
struct Member {
    process: Process,
    context: Context,
    _pd: ProtectionDomain,
    cq: CompletionQueue,
    memory: MemoryRegion,
    qps: Vec<QueuePair>,
}

impl Member {
    fn join(told: &JobEnvironment, qps: usize, window: usize) -> Result<Self> {
        let process = Process::join(told)?;
        let context = process.open(DEVICES[0])?;
        let pd = context.alloc_pd()?;
        let memory = pd.register(TARGETS * LENGTH, access::LOCAL_WRITE | access::REMOTE_WRITE)?;
        // Made as large as its queue pairs need, at once.
        let depth = window.max(1);
        let cq = context.create_cq(((depth + 1) * qps).max(1) as u32)?;
        let cap = QpCap {
            max_send_wr: depth as u32,
            max_recv_wr: 1,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: 0,
        };
        let options = QpOptions { cap, ..QpOptions::rc(&cq) };
        let qps = (0..qps).map(|_| pd.create_qp(&options)).collect::<Result<_>>()?;
        Ok(Member { process, context, _pd: pd, cq, memory, qps })
    }

    /// Connects to the queue pairs of `peer`, and returns where its memory is.
    fn meet(&self, peer: ProcessId) -> Result<Remote> {
        let note = |name: &str| self.process.fetch(peer, name, Instant::now() + PATIENCE);
        let own = self.memory.remote(0);
        let memory = [&own.addr.to_be_bytes()[..], &own.rkey.to_be_bytes()].concat();
        self.process.publish("memory", &memory)?;
        for (i, qps) in self.qps.chunks(IN_A_NOTE).enumerate() {
            let ends = qps.iter().map(|qp| Ok(qp.endpoint()?.to_bytes()));
            let ends = ends.collect::<Result<Vec<_>>>()?.concat();
            self.process.publish(&format!("ends {i}"), &ends)?;
        }
        for (i, qps) in self.qps.chunks(IN_A_NOTE).enumerate() {
            let ends = note(&format!("ends {i}"))?;
            for (qp, end) in qps.iter().zip(ends.chunks(Endpoint::BYTES)) {
                qp.connect(&Endpoint::from_bytes(end)?, &ConnectOptions::default())?;
            }
        }
        self.process.publish("connected", &[])?;
        note("connected")?;
        let memory = note("memory")?;
        match (memory.first_chunk(), memory.last_chunk()) {
            (Some(addr), Some(rkey)) => {
                Ok(Remote { addr: u64::from_be_bytes(*addr), rkey: u32::from_be_bytes(*rkey) })
            }
            _ => Err(broken("told of no memory")),
        }
    }

    /// Moves when told to, while another thread keeps `busy` queue pairs busy.
    fn drive(&self, busy: usize, window: usize, remote: Remote) -> Result<()> {
        let (wanted, full) = (AtomicU8::new(GO), AtomicBool::new(false));
        let traffic = Traffic { member: self, busy, window, remote, wanted, full };
        std::thread::scope(|scope| {
            let running = (busy > 0).then(|| scope.spawn(|| traffic.run()));
            let served = self.obey(&traffic);
            traffic.wanted.store(END, Ordering::Release);
            match running.map(std::thread::ScopedJoinHandle::join) {
                Some(Ok(ran)) => served.and(ran),
                Some(Err(_)) => Err(broken("panicked")),
                None => served,
            }
        })
    }

    fn obey(&self, traffic: &Traffic<'_>) -> Result<()> {
        println!("connected");
        let mut at = 0;
        for line in std::io::stdin().lock().lines() {
            match line.map_err(|e| Error::os(&e, "waiting for a word"))?.as_str() {
                "move" => {
                    at = 1 - at;
                    let moved = self.context.relocate(DEVICES[at])?;
                    let phase =
                        |phase: &Phase| format!(" {} {}", phase.name, phase.took.as_nanos());
                    let phases: String = moved.phases.iter().map(phase).collect();
                    println!("{}{phases}", moved.blackout().as_nanos());
                }
                "drain" => println!("{}", traffic.drain()?.as_nanos()),
                _ => return Err(broken("was asked for something unknown")),
            }
        }
        Ok(())
    }
}

/// What [`Traffic::wanted`] says: post; post nothing, until all is through; all is; end.
const GO: u8 = 0;
const PAUSE: u8 = 1;
const EMPTY: u8 = 2;
const END: u8 = 3;

/// Keeps `window` WRITEs outstanding on each of the first `busy` queue pairs.
struct Traffic<'a> {
    member: &'a Member,
    busy: usize,
    window: usize,
    remote: Remote,
    wanted: AtomicU8,
    /// As many are outstanding as are to be.
    full: AtomicBool,
}

impl Traffic<'_> {
    fn post(&self, at: usize) -> Result<()> {
        let offset = at % TARGETS * LENGTH;
        let sges = [self.member.memory.slice(offset..offset + LENGTH)];
        let to = Op::Write(self.remote.offset(offset as u64));
        self.member.qps[at].post_send(&SendRequest::new(at as u64, to, &sges))
    }

    fn run(&self) -> Result<()> {
        let mut wcs = [Wc::default(); 64];
        let mut outstanding = 0;
        loop {
            let wanted = self.wanted.load(Ordering::Acquire);
            if wanted == END {
                return Ok(());
            }
            if outstanding == 0 && wanted == GO {
                for _ in 0..self.window {
                    (0..self.busy).try_for_each(|at| self.post(at))?;
                }
                outstanding = self.window * self.busy;
                self.full.store(true, Ordering::Release);
            }
            let got = self.member.cq.poll(&mut wcs)?;
            for wc in &wcs[..got] {
                wc.check()?;
                if wanted == GO {
                    self.post(wc.wr_id as usize)?;
                } else {
                    outstanding -= 1;
                }
            }
            if outstanding == 0 && wanted == PAUSE {
                self.full.store(false, Ordering::Relaxed);
                // Unless it is to end meanwhile.
                let _ =
                    self.wanted.compare_exchange(PAUSE, EMPTY, Ordering::AcqRel, Ordering::Relaxed);
            } else if got == 0 {
                std::thread::sleep(REST);
            }
        }
    }

    /// See [`Pair::drain`]. Returns when as much is outstanding as before.
    fn drain(&self) -> Result<Duration> {
        let start = Instant::now();
        let wait = |done: &dyn Fn() -> bool| {
            while !done() {
                if start.elapsed() > PATIENCE {
                    return Err(broken("does not get through with its requests"));
                }
                std::thread::sleep(REST);
            }
            Ok(start.elapsed())
        };
        self.wanted.store(PAUSE, Ordering::Release);
        let took = wait(&|| self.wanted.load(Ordering::Acquire) == EMPTY)?;
        self.wanted.store(GO, Ordering::Release);
        wait(&|| self.full.load(Ordering::Acquire))?;
        Ok(took)
    }
}
