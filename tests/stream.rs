//! The byte stream over the soft device: what a program that expects a socket relies on.

use sojourn::stream::{StreamOptions, Unconnected, VerbsStream};
use sojourn_fabric::virt::Context;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What any wait here may take on a busy machine before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(60);

fn context() -> Context {
    Context::open_raw("soft0").expect("every machine has soft0")
}

/// Small queues and messages, so that credits and slots run out all the time.
fn tiny() -> StreamOptions {
    StreamOptions { message_bytes: 64, depth: 4, ..StreamOptions::default() }
}

fn patient(stream: VerbsStream) -> VerbsStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Two ends of a stream, each over a context of its own.
fn pair(a: StreamOptions, b: StreamOptions) -> (VerbsStream, VerbsStream) {
    let (mut left, mut right) = UnixStream::pair().unwrap();
    let other =
        thread::spawn(move || VerbsStream::over(&context(), &mut right, &b).map(patient).unwrap());
    let this = VerbsStream::over(&context(), &mut left, &a).map(patient).unwrap();
    (this, other.join().unwrap())
}

/// Random numbers that the two ends agree on.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Random bytes in blocks, which both ends make from one seed.
const BLOCK: usize = 1 << 16;

/// Writes `blocks` blocks in pieces of random length, then the end.
fn send(mut stream: VerbsStream, seed: u64, blocks: usize, longest: u64) {
    let (mut data, mut lengths) = (Random(seed), Random(seed ^ 0xff));
    let mut block = vec![0; BLOCK];
    for _ in 0..blocks {
        data.fill(&mut block);
        let mut rest = &block[..];
        while !rest.is_empty() {
            let n = rest.len().min((lengths.next() % longest + 1) as usize);
            stream.write_all(&rest[..n]).unwrap();
            rest = &rest[n..];
        }
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

/// Reads what [`send`] writes, in pieces of random length, and then the end.
fn receive(mut stream: VerbsStream, seed: u64, blocks: usize, longest: u64) {
    let (mut data, mut lengths) = (Random(seed), Random(seed ^ 0xff00));
    let (mut expected, mut got) = (vec![0; BLOCK], vec![0; BLOCK]);
    for number in 0..blocks {
        data.fill(&mut expected);
        let mut at = 0;
        while at < BLOCK {
            let n = (BLOCK - at).min((lengths.next() % longest + 1) as usize);
            let n = stream.read(&mut got[at..at + n]).unwrap();
            assert!(n > 0, "the stream ended in block {number}");
            at += n;
        }
        assert!(got == expected, "block {number} differs");
    }
    assert_eq!(stream.read(&mut got).unwrap(), 0, "more than was written");
    assert_eq!(stream.read(&mut got).unwrap(), 0, "the end is not the end");
}

#[test]
fn a_hundred_megabytes_arrive_intact_in_pieces_of_any_size() {
    let (a, b) = pair(StreamOptions::default(), StreamOptions::default());
    let blocks = (100 << 20) / BLOCK;
    let start = Instant::now();
    let sender = thread::spawn(move || send(a, 1, blocks, 100_000));
    receive(b, 1, blocks, 80_000);
    sender.join().unwrap();
    println!("100 MiB in {:?}", start.elapsed());
}

#[test]
fn both_directions_flow_at_once_through_queues_of_any_size() {
    let odd = StreamOptions { message_bytes: 999, depth: 5, ..StreamOptions::default() };
    for (options_a, options_b) in
        [(tiny(), tiny()), (tiny(), StreamOptions::default()), (odd, tiny())]
    {
        let (a, b) = pair(options_a, options_b);
        let (a2, b2) = (a.try_clone().unwrap(), b.try_clone().unwrap());
        let threads = [
            thread::spawn(move || send(a, 3, 20, 3000)),
            thread::spawn(move || receive(b, 3, 20, 500)),
            thread::spawn(move || send(b2, 4, 20, 200)),
            thread::spawn(move || receive(a2, 4, 20, 5000)),
        ];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn after_one_half_has_ended_the_other_goes_on() {
    let (mut a, mut b) = pair(tiny(), tiny());
    a.write_all(b"question").unwrap();
    a.shutdown(Shutdown::Write).unwrap();
    a.shutdown(Shutdown::Write).expect("ending twice is no error");
    assert_eq!(a.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut question = String::new();
    b.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    // Far more than the queues hold, so that the ended side must return credits.
    let reader = thread::spawn(move || receive(a, 5, 4, 100));
    send(b, 5, 4, 1000);
    reader.join().unwrap();
}

#[test]
fn what_was_written_before_a_stream_was_dropped_arrives_and_then_the_end() {
    let (mut a, mut b) = pair(tiny(), tiny());
    let writer = thread::spawn(move || a.write_all(&[7; 5000]).unwrap());
    let mut all = Vec::new();
    b.read_to_end(&mut all).unwrap();
    writer.join().unwrap();
    assert_eq!(all, [7; 5000]);
}

#[test]
fn reads_and_writes_keep_to_their_deadlines() {
    let (mut a, b) = pair(tiny(), tiny());
    let short = Some(Duration::from_millis(30));
    a.set_read_timeout(short).unwrap();
    a.set_write_timeout(short).unwrap();
    assert!(a.set_read_timeout(Some(Duration::ZERO)).is_err());
    let start = Instant::now();
    assert_eq!(a.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() >= Duration::from_millis(30));
    // Nobody reads at the other end.
    let error = loop {
        if let Err(error) = a.write(&[0; 64]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    drop(b);
}

/// Whether the stream's descriptor becomes readable.
fn becomes_ready(stream: &VerbsStream) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let limit = PollTimeout::try_from(PATIENCE).unwrap();
    poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLIN)], limit).unwrap() == 1
}

#[test]
fn a_nonblocking_stream_says_when_to_try_again() {
    let (mut a, mut b) = pair(tiny(), tiny());
    a.set_nonblocking(true).unwrap();
    assert_eq!(a.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    b.write_all(b"x").unwrap();
    assert!(becomes_ready(&a));
    assert_eq!(a.read(&mut [0; 8]).unwrap(), 1);

    let mut written = 0;
    let full = loop {
        match a.write(&[1; 50]) {
            Ok(n) => written += n,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    let mut got = vec![0; written];
    b.read_exact(&mut got).unwrap();
    assert!(becomes_ready(&a));
    assert!(a.write(&[1; 50]).is_ok());
}

#[test]
fn shutting_down_reads_wakes_a_blocked_reader() {
    let (a, _b) = pair(tiny(), tiny());
    let mut reader = a.try_clone().unwrap();
    let reader = thread::spawn(move || reader.read(&mut [0; 8]).unwrap());
    // Wherever the reader is by then: before, in, or on the way to its sleep.
    thread::sleep(Duration::from_millis(20));
    a.shutdown(Shutdown::Read).unwrap();
    assert_eq!(reader.join().unwrap(), 0);
}

#[test]
fn sizes_out_of_bounds_are_refused_by_name() {
    let refused = |options: StreamOptions| {
        Unconnected::new(&context(), &options).err().expect("a refusal").to_string()
    };
    let error = refused(StreamOptions { depth: 3, ..tiny() });
    assert_eq!(error, "a stream of 3 messages in flight: 4 to 4096 are possible");
    let error = refused(StreamOptions { message_bytes: 1 << 30, ..tiny() });
    assert!(error.contains("messages of 1073741824 bytes"), "{error}");
}

#[test]
fn a_bootstrap_peer_that_speaks_something_else_is_refused() {
    let (mut left, mut right) = UnixStream::pair().unwrap();
    right.write_all(&[b'x'; 100]).unwrap();
    let error = VerbsStream::over(&context(), &mut left, &tiny()).unwrap_err().to_string();
    assert_eq!(error, "the peer's greeting is not that of a byte stream");
}

/// Where a test that runs as the child of another finds its bootstrap socket.
const SOCKET: &str = "SOJOURN_TEST_STREAM_SOCKET";

/// Starts this very test program as a process that runs `test` alone, connected to us.
fn start_peer(test: &str) -> (Child, VerbsStream) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bootstrap");
    let listener = UnixListener::bind(&path).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(SOCKET, &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut bootstrap, _) = listener.accept().unwrap();
    bootstrap.set_read_timeout(Some(PATIENCE)).unwrap();
    let stream = VerbsStream::over(&context(), &mut bootstrap, &tiny()).unwrap();
    (child, patient(stream))
}

/// The stream to the test that started this process; `None` where none did.
fn stream_to_parent() -> Option<VerbsStream> {
    let mut bootstrap = UnixStream::connect(std::env::var_os(SOCKET)?).unwrap();
    bootstrap.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(patient(VerbsStream::over(&context(), &mut bootstrap, &tiny()).unwrap()))
}

#[test]
fn a_killed_peer_is_an_error_that_names_the_status_and_not_a_hang() {
    if let Some(mut stream) = stream_to_parent() {
        stream.write_all(b"alive").unwrap();
        // Until the parent kills this process.
        let _ = stream.read(&mut [0; 8]);
        return;
    }
    let (mut child, mut stream) =
        start_peer("a_killed_peer_is_an_error_that_names_the_status_and_not_a_hang");
    let mut alive = [0; 5];
    stream.read_exact(&mut alive).unwrap();
    assert_eq!(&alive, b"alive");
    let mut reader = stream.try_clone().unwrap();
    let blocked = thread::spawn(move || reader.read(&mut [0; 8]).unwrap_err());
    child.kill().unwrap();
    child.wait().unwrap();
    let error = blocked.join().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    assert!(error.to_string().contains("RETRY_EXC_ERR"), "{error}");
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{error}");
    assert!(error.to_string().contains("RETRY_EXC_ERR"), "{error}");
}

#[test]
fn processes_stream_to_each_other_through_buffered_readers() {
    if let Some(stream) = stream_to_parent() {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        (&stream).write_all(&all).unwrap();
        return;
    }
    let (mut child, stream) = start_peer("processes_stream_to_each_other_through_buffered_readers");
    let writer = stream.try_clone().unwrap();
    let writer = thread::spawn(move || send(writer, 9, 3, 1000));
    writer.join().unwrap();
    receive(stream, 9, 3, 1000);
    assert!(child.wait().unwrap().success());
}
