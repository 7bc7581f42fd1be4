//! Virtual verbs between operating system processes, over the soft device: each process is this
//! test program again, joined to the job of the test that started it.

mod hold;

use sojourn_fabric::abi::{GRH_BYTES, Wc, access, qp_state, wc_flags, wc_status};
use sojourn_fabric::device::soft::{Mode, Options, Pace, open_with, set_port};
use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{Endpoint as Place, JobKey, PrivateDir, ProcessId};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Datagram, Endpoint, MemoryRegion, Op, Policy,
    Process, ProtectionDomain, QpOptions, QueuePair, Remote, SendRequest,
};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PART: &str = "VIRT_TEST_PART";
const MODE: &str = "VIRT_TEST_MODE";
/// Far above what anything takes on a loaded machine; reached only by failures.
const LONG: Duration = Duration::from_secs(60);
const ALL: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

/// A job with its directory, in a directory of its own.
struct Job {
    dir: PrivateDir,
    at: Place,
    server: Option<DirectoryServer>,
}

impl Job {
    fn new() -> Job {
        let dir = PrivateDir::create().unwrap();
        let key = JobKey::generate().unwrap();
        key.write(&dir.path().join("key")).unwrap();
        let at = Place::Unix(dir.path().join("directory"));
        let server = DirectoryServer::start(ServerConfig::new(at.clone(), key, 0)).unwrap();
        Job { dir, at, server: Some(server) }
    }

    fn environment(&self, rank: u32) -> JobEnvironment {
        JobEnvironment {
            rank,
            size: 8,
            directory: self.at.clone(),
            key_file: self.dir.path().join("key"),
            device: None,
        }
    }

    /// Another process, in the given part.
    fn start(&self, part: &str, mode: &str, rank: u32) -> Part {
        self.start_with(part, mode, rank, &[])
    }

    /// The same, with more of an environment.
    fn start_with(&self, part: &str, mode: &str, rank: u32, more: &[(&str, &str)]) -> Part {
        let variables = self.environment(rank).variables();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["part", "--exact", "--ignored", "--nocapture"])
            .env(PART, part)
            .env(MODE, mode)
            // One to fail over to.
            .env("SOJOURN_SOFT_DEVICES", "2")
            .envs(variables.into_iter().filter_map(|(name, value)| Some((name, value?))))
            .envs(more.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Part(child)
    }
}

/// A child process that is killed and reaped when the test is over, however it ends.
struct Part(Child);

impl Part {
    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Stops it, and returns when none of its threads runs any more.
    fn stop(&self) {
        // SAFETY: our own child, not reaped yet.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, libc::SIGSTOP) }, 0);
        let threads = format!("/proc/{}/task", self.0.id());
        let stopped = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        let deadline = soon();
        while !std::fs::read_dir(&threads).unwrap().all(|thread| stopped(thread.unwrap())) {
            assert!(Instant::now() < deadline, "the other process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it go on.
    fn go_on(&self) {
        // SAFETY: our own child, not reaped yet.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, libc::SIGCONT) }, 0);
    }

    /// Ends without an error.
    fn ends(&mut self) {
        let deadline = soon();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "the other process: {status}");
                return;
            }
            assert!(Instant::now() < deadline, "the other process does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn soon() -> Instant {
    Instant::now() + LONG
}

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn part() {
    let Ok(part) = std::env::var(PART) else {
        println!("skipped: {PART} is not set, so no test has started this");
        return;
    };
    let mode = std::env::var(MODE).unwrap();
    let told = JobEnvironment::read().unwrap().expect("started by a test");
    let member = Member::join(&told, &mode);
    match part.as_str() {
        "echo" => echo(&member),
        "flood" => hold::flood(&member),
        "datagrams" => datagrams(&member),
        "victim" => victim(&member),
        "keep" => keep(&member, false),
        "keep-on-a-full-disk" => keep(&member, true),
        "writer" => writer(&member),
        "watcher" => watcher(&member),
        "mover" => mover(&member),
        other => panic!("{PART}={other} is no part"),
    }
}

/// A process of the job with one of everything.
struct Member {
    process: Process,
    context: Context,
    pd: ProtectionDomain,
    cq: CompletionQueue,
    memory: MemoryRegion,
}

impl Member {
    fn join(told: &JobEnvironment, mode: &str) -> Member {
        Member::join_with(told, mode, Policy::from_env().unwrap())
    }

    fn join_with(told: &JobEnvironment, mode: &str, policy: Policy) -> Member {
        let process = Process::join(told).unwrap();
        let mode = match mode {
            "sync" => Mode::Sync,
            "async" => {
                Mode::Async(Pace { seed: 7, latency: Duration::from_micros(20), gbps: 10.0 })
            }
            other => panic!("{MODE}={other} is no mode"),
        };
        let device = open_with("soft0", Options { mode, ..Options::default() }).unwrap();
        let context = process.open_with(device, policy).unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(16).unwrap();
        let memory = pd.register(1 << 16, ALL).unwrap();
        Member { process, context, pd, cq, memory }
    }

    /// Tells the peer of a queue pair, and learns of its.
    fn meet(&self, peer: u32, own: &Endpoint) -> (Endpoint, Remote) {
        let mut note = own.to_bytes().to_vec();
        note.extend(self.memory.addr().to_be_bytes());
        note.extend(self.memory.rkey().to_be_bytes());
        self.process.publish("meet", &note).unwrap();
        let note = self.process.fetch(ProcessId(peer), "meet", soon()).unwrap();
        let (end, rest) = note.split_at(Endpoint::BYTES);
        let (addr, rkey) = rest.split_at(8);
        let remote = Remote {
            addr: u64::from_be_bytes(addr.try_into().unwrap()),
            rkey: u32::from_be_bytes(rkey.try_into().unwrap()),
        };
        (Endpoint::from_bytes(end).unwrap(), remote)
    }

    fn connected(&self, peer: u32) -> (QueuePair, Endpoint, Remote) {
        let qp = self.pd.create_qp(&QpOptions::rc(&self.cq)).unwrap();
        let (end, remote) = self.meet(peer, &qp.endpoint().unwrap());
        qp.init(&ConnectOptions::default()).unwrap();
        for id in 0..64 {
            qp.post_recv(id, &[self.receive(id)]).unwrap();
        }
        qp.connect(&end, &ConnectOptions::default()).unwrap();
        (qp, end, remote)
    }

    fn receive(&self, id: u64) -> sojourn_fabric::abi::Sge {
        let at = 4096 + (id as usize % 64) * 512;
        self.memory.slice(at..at + 512)
    }

    fn next(&self) -> Wc {
        let mut wc = [Wc::default()];
        assert_eq!(self.cq.wait(&mut wc, soon()).unwrap(), 1, "no completion");
        wc[0]
    }

    /// Leaves when the peer has said that it needs nothing more.
    fn part(&self, peer: u32) {
        self.process.publish("done", b"").unwrap();
        let done = self.process.fetch(ProcessId(peer), "done", soon());
        // One that is done may have left before it was asked whether it is.
        assert!(done.is_ok() || done.is_err_and(|e| e.errno() == libc::EHOSTUNREACH));
    }
}

/// Messages of a round trip.
const MESSAGES: u64 = 500;

/// Sends every message back, as a WRITE and a SEND.
fn echo(member: &Member) {
    let (qp, _, remote) = member.connected(1);
    let (mut received, mut sent) = (0, 0);
    while received < MESSAGES || sent < MESSAGES {
        let wc = member.next();
        wc.check().unwrap();
        if wc.opcode & 128 == 0 {
            sent += 1;
            continue;
        }
        assert_eq!((wc.wr_id, wc.slid), (received, 1));
        let from = member.receive(wc.wr_id).addr - member.memory.addr();
        let bytes = [member.memory.slice(from as usize..from as usize + 8)];
        let write = Op::Write(remote.offset(8 * received));
        qp.post_send(&SendRequest::new(received, write, &bytes).unsignaled()).unwrap();
        qp.post_send(&SendRequest::new(received, Op::SendImm(received as u32), &bytes)).unwrap();
        qp.post_recv(received + 64, &[member.receive(received)]).unwrap();
        received += 1;
    }
    member.part(1);
}

/// Promise: between processes, every request completes once, in order, and every message arrives
/// once, intact, under virtual names alone; whether the device executes at once or takes its time.
fn messages_go_round(mode: &str) {
    let job = Job::new();
    let mut other = job.start("echo", mode, 1);
    let member = Member::join(&job.environment(0), mode);
    let (qp, end, _) = member.connected(2);
    assert_eq!((end.lid, end.gid.0[12..].to_vec()), (2, vec![0, 0, 0, 2]));
    let (mut posted, mut sent, mut back) = (0, 0, 0);
    while back < MESSAGES || sent < MESSAGES {
        while posted < MESSAGES && posted < back + 32 {
            let bytes = (posted * 3 + 1).to_ne_bytes();
            qp.post_send(&SendRequest::inline(posted, Op::Send, &bytes)).unwrap();
            posted += 1;
        }
        let wc = member.next();
        wc.check().unwrap();
        assert_eq!(wc.qp_num, qp.qp_num());
        if wc.opcode & 128 == 0 {
            assert_eq!(wc.wr_id, sent);
            sent += 1;
            continue;
        }
        assert_eq!((wc.wr_id, u32::from_be(wc.imm_data)), (back, back as u32));
        assert_eq!((wc.src_qp, wc.slid), (end.qpn, 2));
        // The WRITE came before the SEND that followed it.
        let written = member.memory.atomic_u64(8 * back as usize);
        assert_eq!(written.load(std::sync::atomic::Ordering::Acquire), back * 3 + 1);
        qp.post_recv(back + 64, &[member.receive(back)]).unwrap();
        back += 1;
    }
    member.part(2);
    other.ends();
}

#[test]
fn messages_go_round_at_once() {
    messages_go_round("sync");
}

#[test]
fn messages_go_round_at_a_pace() {
    messages_go_round("async");
}

fn datagram_end(member: &Member) -> QueuePair {
    let qp = member.pd.create_qp(&QpOptions::ud(&member.cq)).unwrap();
    qp.init(&ConnectOptions::default()).unwrap();
    for id in 0..64 {
        qp.post_recv(id, &[member.receive(id)]).unwrap();
    }
    qp.activate(&ConnectOptions::default()).unwrap();
    qp
}

/// Answers the first datagram by what its completion says of its sender.
fn datagrams(member: &Member) {
    let qp = datagram_end(member);
    member.meet(1, &qp.endpoint().unwrap());
    let wc = member.next();
    wc.check().unwrap();
    assert_eq!((wc.slid, wc.qp_num), (1, qp.qp_num()));
    let own = member.context.device().query_gid(1, 0).unwrap();
    let gid = sojourn_fabric::abi::Gid(*b"\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
    let mut back = Endpoint { lid: wc.slid, gid, qpn: wc.src_qp, psn: 0 };
    back.gid.0[8..12].copy_from_slice(&own.0[8..12]);
    if wc.wc_flags & wc_flags::GRH != 0 {
        let mut grh = [0; GRH_BYTES];
        member
            .memory
            .read((member.receive(wc.wr_id).addr - member.memory.addr()) as usize, &mut grh);
        assert_eq!((&grh[8..24], &grh[24..]), (&back.gid.0[..], &own.0[..]));
    }
    let ah = member.pd.create_ah(&back).unwrap();
    let to = Datagram { ah: &ah, qpn: back.qpn, qkey: ConnectOptions::default().qkey };
    qp.post_send(&SendRequest::inline(100, Op::Send, b"pong").to(to)).unwrap();
    assert_eq!(member.next().wr_id, 100);
    member.part(1);
}

/// Promise: a datagram can be answered by what its completion says of its sender, from the first
/// one on.
#[test]
fn datagrams_can_be_answered() {
    let job = Job::new();
    let mut other = job.start("datagrams", "sync", 1);
    let member = Member::join(&job.environment(0), "sync");
    let qp = datagram_end(&member);
    let (end, _) = member.meet(2, &qp.endpoint().unwrap());
    let ah = member.pd.create_ah(&end).unwrap();
    let to = Datagram { ah: &ah, qpn: end.qpn, qkey: ConnectOptions::default().qkey };
    qp.post_send(&SendRequest::inline(100, Op::Send, b"ping").to(to)).unwrap();
    let mut seen = [member.next(), member.next()];
    seen.sort_by_key(|wc| wc.wr_id);
    seen.iter().for_each(|wc| wc.check().unwrap());
    let [received, sent] = seen;
    assert_eq!((received.wr_id, sent.wr_id), (0, 100));
    assert_eq!((received.src_qp, received.slid), (end.qpn, 2));
    assert_eq!(received.byte_len as usize, GRH_BYTES + 4);
    member.part(2);
    other.ends();
}

/// Bytes of the messages that are kept, which are of that many times the low byte of their number.
const KEPT: usize = 500;
/// The ring of who keeps them holds a part of them.
const RING: &str = "64K";

/// Sends messages which it keeps, overwrites its buffer, and reads them back; then the peer commits an epoch
/// that covers half of them, and another.
fn keep(member: &Member, full: bool) {
    let (qp, end, _) = member.connected(1);
    if full {
        // As a disk that has no more than that; no signal comes of it.
        let limit = libc::rlimit { rlim_cur: 16 << 10, rlim_max: 16 << 10 };
        // SAFETY: the limit is read during the call.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    }
    for n in 0..MESSAGES {
        member.memory.write(0, &[n as u8; KEPT]);
        let sge = [member.memory.slice(0..KEPT)];
        qp.post_send(&SendRequest::new(1000 + n, Op::Send, &sge)).unwrap();
        member.next().check().unwrap();
        member.memory.write(0, &[0xee; KEPT]);
    }
    let kept = |from: u64| {
        let all = member.context.retained().unwrap();
        assert_eq!((all.len(), all[0].qpn, all[0].peer_qpn), (1, qp.qp_num(), end.qpn));
        let mut expected = from;
        for message in all[0].messages_kept() {
            let message = message.unwrap();
            assert_eq!(message.number, expected);
            assert!(message.payload == [expected as u8; KEPT], "message {expected}");
            expected += 1;
        }
        assert_eq!(all[0].records, expected - from);
        (all[0].gap.clone(), all[0].records, all[0].spilled)
    };
    if full {
        let (gap, records, _) = kept(MESSAGES);
        assert_eq!(gap.unwrap().numbers.end, MESSAGES);
        assert_eq!(records, 0, "nothing is kept until the next epoch");
    } else {
        let (gap, records, spilled) = kept(0);
        assert_eq!((gap, records), (None, MESSAGES));
        assert!(spilled >= MESSAGES * KEPT as u64 - (64 << 10), "{spilled}");
    }
    member.process.publish("sent", b"").unwrap();
    member.process.fetch(ProcessId(1), "half", soon()).unwrap();
    if !full {
        assert_eq!(kept(MESSAGES / 2).1, MESSAGES / 2);
    }
    member.process.publish("seen", b"").unwrap();
    member.process.fetch(ProcessId(1), "all", soon()).unwrap();
    assert_eq!(kept(MESSAGES), (None, 0, 0));
    member.part(1);
}

/// Promise: between processes, what is sent is kept until the receiver says over the control service that an
/// epoch covers it, whatever the program makes of its buffer, and more than memory has room for; on a
/// full disk it is not, which can be seen, and every message is delivered all the same.
#[test]
fn messages_are_kept_until_the_receiver_has_an_epoch() {
    for part in ["keep", "keep-on-a-full-disk"] {
        let job = Job::new();
        let spill = tempfile::tempdir().unwrap();
        let more = [
            ("SOJOURN_RETENTION", "payload"),
            ("SOJOURN_LOG_BYTES", RING),
            ("SOJOURN_SPILL", spill.path().to_str().unwrap()),
        ];
        let mut other = job.start_with(part, "sync", 1, &more);
        let member = Member::join(&job.environment(0), "sync");
        let (qp, ..) = member.connected(2);
        let mut cut = None;
        for n in 0..MESSAGES {
            let wc = member.next();
            wc.check().unwrap();
            assert_eq!((wc.wr_id, wc.byte_len as usize), (n, KEPT));
            let mut bytes = [0; KEPT];
            let from = member.receive(wc.wr_id).addr - member.memory.addr();
            member.memory.read(from as usize, &mut bytes);
            assert!(bytes == [n as u8; KEPT], "message {n}");
            qp.post_recv(n + 64, &[member.receive(n)]).unwrap();
            if n + 1 == MESSAGES / 2 {
                cut = Some(member.context.cut().unwrap());
            }
        }
        member.process.fetch(ProcessId(2), "sent", soon()).unwrap();
        cut.unwrap().commit(soon()).unwrap();
        member.process.publish("half", b"").unwrap();
        member.process.fetch(ProcessId(2), "seen", soon()).unwrap();
        member.context.cut().unwrap().commit(soon()).unwrap();
        member.process.publish("all", b"").unwrap();
        member.part(2);
        other.ends();
        assert_eq!(std::fs::read_dir(spill.path()).unwrap().count(), 0);
    }
}

/// Connects, and waits to be killed.
fn victim(member: &Member) {
    let (_qp, _, _) = member.connected(1);
    member.process.publish("ready", b"").unwrap();
    let never = member.process.fetch(ProcessId(1), "never", soon());
    panic!("nobody has ended this process: {never:?}");
}

/// Promise: where a peer dies, requests that wait for its names, and those that do not, end with
/// errors, in order and soon; nothing hangs.
#[test]
fn a_killed_peer_ends_requests() {
    for blocked in [false, true] {
        let job = Job::new();
        let mut other = job.start("victim", "sync", 1);
        let member = Member::join(&job.environment(0), "sync");
        let (qp, _, remote) = member.connected(2);
        member.process.fetch(ProcessId(2), "ready", soon()).unwrap();
        let sge = [member.memory.slice(0..8)];
        // Beyond the numbers of the receives, whose flushes come in between.
        let next_send = || loop {
            let wc = member.next();
            if wc.wr_id >= 1000 {
                return (wc.wr_id, wc.status);
            }
        };
        if !blocked {
            qp.post_send(&SendRequest::new(1001, Op::Write(remote), &sge)).unwrap();
            assert_eq!(next_send(), (1001, wc_status::SUCCESS));
        }
        other.kill();
        qp.post_send(&SendRequest::new(1002, Op::Write(remote), &sge)).unwrap();
        qp.post_send(&SendRequest::new(1003, Op::Send, &sge)).unwrap();
        assert_eq!(next_send(), (1002, wc_status::RETRY_EXC_ERR), "{blocked}");
        assert_eq!(next_send(), (1003, wc_status::WR_FLUSH_ERR), "{blocked}");
        assert_eq!(qp.state().unwrap(), qp_state::ERR);
    }
}

/// Promise: two processes of one job may live in one operating system process, and a queue pair
/// that is blocked by a stopped peer neither blocks its program nor other queue pairs.
#[test]
fn a_stopped_peer_blocks_only_its_own_queue_pairs() {
    let job = Job::new();
    let mut other = job.start("victim", "sync", 1);
    let member = Member::join(&job.environment(0), "sync");
    let third = Member::join(&job.environment(2), "sync");
    let (qp, _, remote) = member.connected(2);
    member.process.fetch(ProcessId(2), "ready", soon()).unwrap();
    other.stop();
    let sge = [member.memory.slice(0..8)];
    let begun = Instant::now();
    qp.post_send(&SendRequest::new(900, Op::Write(remote), &sge)).unwrap();

    let cq = member.context.create_cq(16).unwrap();
    let qa = member.pd.create_qp(&QpOptions::rc(&cq)).unwrap();
    let qb = third.pd.create_qp(&QpOptions::rc(&third.cq)).unwrap();
    qa.connect(&qb.endpoint().unwrap(), &ConnectOptions::default()).unwrap();
    qb.connect(&qa.endpoint().unwrap(), &ConnectOptions::default()).unwrap();
    qa.post_send(&SendRequest::new(1, Op::Write(third.memory.remote(0)), &sge)).unwrap();
    assert_eq!(cq.expect(LONG).unwrap().wr_id, 1);
    assert!(member.cq.poll(&mut [Wc::default()]).unwrap() == 0, "the peer is stopped");
    assert!(begun.elapsed() < LONG);

    other.go_on();
    let wc = member.next();
    assert_eq!((wc.wr_id, wc.status), (900, wc_status::SUCCESS));
    other.kill();
}

/// Words that are written without being polled for.
const WORDS: u64 = 40;

/// Writes, has its port fail, and writes on: it never polls.
fn writer(member: &Member) {
    let (qp, _, remote) = member.connected(2);
    for n in 0..WORDS {
        if n == WORDS / 2 {
            set_port("soft0", false).unwrap();
        }
        let write = Op::Write(remote.offset(8 * n));
        let word = (n + 1).to_ne_bytes();
        let request = SendRequest::inline(n, write, &word);
        qp.post_send(&request.unsignaled()).unwrap();
    }
    member.part(2);
}

/// Watches its memory for what the writer writes: it never polls either.
fn watcher(member: &Member) {
    let (_qp, _, _) = member.connected(1);
    let word = |n: u64| {
        member.memory.atomic_u64(8 * n as usize).load(std::sync::atomic::Ordering::Acquire)
    };
    let deadline = soon();
    while word(WORDS - 1) == 0 {
        assert!(Instant::now() < deadline, "the last word does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
    (0..WORDS).for_each(|n| assert_eq!(word(n), n + 1));
    member.part(1);
}

/// Promise: where a path fails between programs that only write and watch their memory, and never poll,
/// they go on over another device.
#[test]
fn a_failure_is_noticed_though_nobody_polls() {
    for mode in ["sync", "async"] {
        let job = Job::new();
        let mut writer = job.start("writer", mode, 0);
        let mut watcher = job.start("watcher", mode, 1);
        writer.ends();
        watcher.ends();
    }
}

/// Says that it is connected, and when it is told to tries to move; says how that went, and when it is told
/// to writes to its peer, wherever it is.
fn mover(member: &Member) {
    const GUIDE: ProcessId = ProcessId(3);
    let (qp, _, remote) = member.connected(2);
    let write = |n: u64| {
        let word = n.to_ne_bytes();
        qp.post_send(&SendRequest::inline(n, Op::Write(remote), &word)).unwrap();
        let wc = member.next();
        assert_eq!((wc.wr_id, wc.status), (n, wc_status::SUCCESS));
    };
    write(1000);
    // So that each knows where the other is.
    member.process.fetch(GUIDE, "here", soon()).unwrap();
    member.process.publish("ready", b"").unwrap();
    member.process.fetch(GUIDE, "move", soon()).unwrap();
    let told = match member.context.relocate("soft1") {
        Ok(_) => "moved".to_owned(),
        Err(error) => format!("{} {error}", error.errno()),
    };
    member.process.publish("told", told.as_bytes()).unwrap();
    member.process.fetch(GUIDE, "write", soon()).unwrap();
    write(1001);
    member.process.publish("written", b"").unwrap();
    member.process.fetch(GUIDE, "end", soon()).unwrap();
}

/// A mover, the peer that it is connected to, and the guide of both.
fn three(job: &Job) -> (Part, Part, Member) {
    let mover = job.start("mover", "sync", 0);
    let peer = job.start("victim", "sync", 1);
    let guide = Member::join(&job.environment(2), "sync");
    guide.process.publish("here", b"").unwrap();
    for process in [1, 2] {
        guide.process.fetch(ProcessId(process), "ready", soon()).unwrap();
    }
    (mover, peer, guide)
}

fn told(guide: &Member) -> String {
    let told = guide.process.fetch(ProcessId(1), "told", soon()).unwrap();
    String::from_utf8(told).unwrap()
}

/// Promise 5: a peer that never answers, since it is stopped, does not keep a move for longer than its
/// deadline: all stays where it was, goes on when the peer does, and the error names the peer and the step.
#[test]
fn a_stopped_peer_is_not_waited_for_beyond_the_deadline() {
    let job = Job::new();
    let (mut mover, peer, guide) = three(&job);
    peer.stop();
    guide.process.publish("move", b"").unwrap();
    let told = told(&guide);
    assert!(told.starts_with(&libc::ETIMEDOUT.to_string()), "{told}");
    for part in ["moving to soft1", "process 2", "did not answer in time (prepare)"] {
        assert!(told.contains(part), "{part:?} is not in {told:?}");
    }
    peer.go_on();
    guide.process.publish("write", b"").unwrap();
    guide.process.fetch(ProcessId(1), "written", soon()).unwrap();
    guide.process.publish("end", b"").unwrap();
    mover.ends();
}

/// Promise: a move needs no directory: one among processes that know each other goes on where that is gone.
#[test]
fn a_move_needs_no_directory() {
    let mut job = Job::new();
    let (mut mover, mut peer, guide) = three(&job);
    job.server = None;
    guide.process.publish("move", b"").unwrap();
    assert_eq!(told(&guide), "moved");
    guide.process.publish("write", b"").unwrap();
    guide.process.fetch(ProcessId(1), "written", soon()).unwrap();
    peer.kill();
    guide.process.publish("end", b"").unwrap();
    mover.ends();
}
