//! Several operating system processes of one job. Each is this test program again, started with the
//! entry point below as its only test and its part in the environment.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{
    Endpoint, Error, Fetch, JobKey, PrivateDir, ProcessId, Record, Service,
};

use crate::support::{Job, LONG, SHORT, Tables, note, qpn, soon, text};

const PART: &str = "NAMES_TEST_PART";

#[test]
#[ignore = "the entry point of the processes that the other tests start"]
fn child() {
    let Ok(part) = std::env::var(PART) else {
        println!("skipped: {PART} is not set, so no test has started this");
        return;
    };
    match part.as_str() {
        "rank" => rank(),
        "asked" => asked(),
        "starved" => starved(),
        "server" => server_without_descriptors(),
        other => panic!("{PART}={other} is no part"),
    }
}

/// A child process that is killed and reaped when the test is over, however it ends.
struct Part(Child);

impl Part {
    fn start(part: &str, variables: impl IntoIterator<Item = (&'static str, String)>) -> Part {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["processes::child", "--exact", "--ignored", "--nocapture"])
            .env(PART, part)
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Part(child)
    }

    fn member(part: &str, job: &Job, rank: u32, size: u32) -> Part {
        let environment = JobEnvironment {
            rank,
            size,
            directory: job.at.clone(),
            key_file: job.key_file(),
            device: None,
        };
        let variables = environment.variables().into_iter();
        Part::start(
            part,
            variables.filter_map(|(name, value)| Some((name, value?.into_string().unwrap()))),
        )
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    /// Stops it, and returns once all of its threads have stopped.
    fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let deadline = soon();
        let threads = format!("/proc/{}/task", self.0.id());
        let stopped = |thread: std::fs::DirEntry| stat(&thread.path())[0] == "T";
        while !std::fs::read_dir(&threads).unwrap().all(|thread| stopped(thread.unwrap())) {
            assert!(Instant::now() < deadline, "a child process does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn wait(&mut self) -> std::process::ExitStatus {
        let deadline = soon();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "a child process does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_member() -> (JobEnvironment, Service) {
    let job = JobEnvironment::read().unwrap().expect("started by a test");
    let service = Service::start(job.service().unwrap(), Arc::new(Tables::default())).unwrap();
    assert_eq!(service.grant().process, JobEnvironment::process_of(job.rank));
    (job, service)
}

/// Exchanges notes with every other rank, asks each for a queue pair, and leaves after all have.
fn rank() {
    let (job, service) = start_member();
    let me = format!("rank {}", job.rank);
    service.publish_note("name", me.as_bytes()).unwrap();
    let others: Vec<u32> = (0..job.size).filter(|rank| *rank != job.rank).collect();
    for rank in &others {
        let process = JobEnvironment::process_of(*rank);
        let name = text(service.fetch_wait(process, note("name"), soon()).unwrap());
        assert_eq!(name, format!("rank {rank}"));
        let fetched = service.fetch_wait(process, qpn(*rank), soon()).unwrap();
        assert!(matches!(fetched, Record::Qpn(record) if record.end.qpn == *rank));
    }
    service.publish_note("done", b"").unwrap();
    for rank in &others {
        let done = service.fetch_wait(JobEnvironment::process_of(*rank), note("done"), soon());
        // One that is done may have left before it was asked whether it is.
        assert!(matches!(done, Ok(_) | Err(Error::Gone { .. })), "{done:?}");
    }
}

/// Publishes its name and stays until it is killed.
fn asked() {
    let (_job, service) = start_member();
    service.publish_note("name", b"asked").unwrap();
    let error = service.fetch_wait(ProcessId(7), note("never"), soon());
    panic!("nobody has ended this process: {error:?}");
}

/// Has no descriptor left when it has to connect to another process, and one again later.
fn starved() {
    let (_job, service) = start_member();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, next, hard).unwrap();
    let error = service.fetch_wait(ProcessId(1), Fetch::Key(1), soon()).unwrap_err();
    assert!(matches!(error, Error::NoDescriptors { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("process 1") && text.contains(&format!("limit {next}")), "{text}");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    service.fetch_wait(ProcessId(1), Fetch::Key(1), soon()).unwrap();
}

#[test]
fn one_without_descriptors_is_told_so_and_recovers() {
    let job = Job::unix();
    let _one = job.join(1);
    let status = Part::member("starved", &job, 1, 2).wait();
    assert!(status.success(), "{status}");
}

#[test]
fn a_directory_that_is_stopped_is_told_from_a_process_that_has_not_joined() {
    let dir = PrivateDir::create().unwrap();
    let (job, server) = remote_directory(dir);
    let one = job.join(1);
    server.stop();
    let error = one.fetch_wait(ProcessId(2), note("x"), Instant::now() + SHORT).unwrap_err();
    assert!(error.to_string().contains("directory at unix:"), "{error}");
    server.signal(Signal::SIGCONT);
    let _two = job.join(2);
    one.fetch_wait(ProcessId(2), Fetch::Key(1), soon()).unwrap();
}

#[test]
fn the_ranks_of_a_job_find_each_other_in_whatever_order_they_start() {
    for job in [Job::unix(), Job::tcp()] {
        let mut ranks: Vec<_> = (0..5).rev().map(|r| Part::member("rank", &job, r, 5)).collect();
        for rank in &mut ranks {
            let status = rank.wait();
            assert!(status.success(), "{status}");
        }
    }
}

#[test]
fn a_killed_process_is_gone_for_the_others() {
    let job = Job::unix();
    let one = job.join(1);
    let mut victim = Part::member("asked", &job, 1, 2);
    let two = ProcessId(2);
    assert_eq!(text(one.fetch_wait(two, note("name"), soon()).unwrap()), "asked");
    let (tx, rx) = crossbeam_channel::bounded(1);
    one.fetch(two, note("never"), soon(), Box::new(move |f| tx.send(f).unwrap()));
    one.fetch_wait(two, note("name"), soon()).unwrap();
    victim.signal(Signal::SIGKILL);
    assert_eq!(rx.recv_timeout(LONG).unwrap(), Err(Error::Gone { process: two }));
    assert_eq!(victim.wait().signal(), Some(Signal::SIGKILL as i32));
    // It left its socket behind; its next life takes another.
    let _next = Part::member("asked", &job, 1, 2);
    let deadline = soon();
    let fetched = loop {
        match one.fetch_wait(two, note("name"), soon()) {
            Err(Error::Gone { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => break other,
        }
    };
    assert_eq!(text(fetched.unwrap()), "asked");
}

#[test]
fn a_stopped_process_costs_its_askers_their_deadline_and_no_more() {
    let job = Job::unix();
    let (one, three) = (job.join(1), job.join(3));
    let sleeper = Part::member("asked", &job, 1, 3);
    let two = ProcessId(2);
    one.fetch_wait(two, note("name"), soon()).unwrap();
    sleeper.stop();
    // One has a connection to it, three has none.
    for asking in [&one, &three] {
        let error = asking.fetch_wait(two, Fetch::Key(1), Instant::now() + SHORT).unwrap_err();
        assert!(matches!(error, Error::Deadline { .. }), "{error}");
    }
    one.fetch_wait(ProcessId(3), Fetch::Key(1), soon()).unwrap();
    sleeper.signal(Signal::SIGCONT);
    for asking in [&one, &three] {
        asking.fetch_wait(two, Fetch::Key(1), soon()).unwrap();
    }
}

const SERVER_DIR: &str = "NAMES_TEST_DIR";
/// Descriptors that the server without any has: those of a test program, its own, and few more.
const SPARE: u64 = 24;

/// A directory that runs out of descriptors as soon as some dozens connect.
fn server_without_descriptors() {
    let dir = std::path::PathBuf::from(std::env::var(SERVER_DIR).unwrap());
    let key = JobKey::read(&dir.join("key")).unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let highest = std::fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, highest + SPARE, hard).unwrap();
    let at = Endpoint::Unix(dir.join("directory"));
    let _server = DirectoryServer::start(ServerConfig::new(at, key, 8)).unwrap();
    std::thread::sleep(LONG);
    panic!("nobody has ended this process");
}

/// What the kernel says of the process or thread of this folder, from its state on.
fn stat(of: &Path) -> Vec<String> {
    let stat = std::fs::read_to_string(of.join("stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].split(' ').map(String::from).collect()
}

/// Processor time that a process has used.
fn processor_time(pid: u32) -> Duration {
    let fields = stat(Path::new(&format!("/proc/{pid}")));
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 wherever Linux runs today.
    Duration::from_millis(ticks * 10)
}

/// A job whose directory is a process of its own.
fn remote_directory(dir: PrivateDir) -> (Job, Part) {
    let key = JobKey::generate().unwrap();
    key.write(&dir.path().join("key")).unwrap();
    let at = Endpoint::Unix(dir.path().join("directory"));
    let server = Part::start("server", [(SERVER_DIR, dir.path().to_str().unwrap().to_string())]);
    let deadline = soon();
    while UnixStream::connect(dir.path().join("directory")).is_err() {
        assert!(Instant::now() < deadline, "the directory does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    (Job { server: None, at, key, dir }, server)
}

#[test]
fn a_directory_without_descriptors_neither_spins_nor_dies() {
    let (job, server) = remote_directory(PrivateDir::create().unwrap());
    let path = job.dir.path().join("directory");
    // Far more than it has descriptors for: the rest stay in its backlog.
    let crowd: Vec<_> = (0..3 * SPARE).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let before = processor_time(server.0.id());
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time(server.0.id()) - before;
    assert!(used < Duration::from_millis(250), "used {used:?} of processor time in 1 s");
    drop(crowd);
    let (one, _two) = (job.join(1), job.join(2));
    one.fetch_wait(ProcessId(2), Fetch::Key(1), soon()).unwrap();
}
