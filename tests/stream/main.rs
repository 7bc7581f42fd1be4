//! The byte stream over the soft device, raw and through virtual verbs: what a program that
//! expects a socket relies on.

mod rig;

use rig::{PATIENCE, Peer, Rig};
use sojourn::stream::{StreamOptions, Unconnected, VerbsStream};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

rig::over_raw_and_virtual_verbs! {
    a_hundred_megabytes_arrive_intact_in_pieces_of_any_size,
    both_directions_flow_at_once_through_queues_of_any_size,
    after_one_half_has_ended_the_other_goes_on,
    what_was_written_before_a_stream_was_dropped_arrives_and_then_the_end,
    reads_and_writes_keep_to_their_deadlines,
    a_nonblocking_stream_says_when_to_try_again,
    shutting_down_reads_wakes_a_blocked_reader,
    sizes_out_of_bounds_are_refused_by_name,
    a_bootstrap_peer_that_speaks_something_else_is_refused,
    a_killed_peer_is_an_error_that_names_the_status_and_not_a_hang,
    processes_stream_to_each_other_through_buffered_readers,
}

/// Small queues and messages, so that credits and slots run out all the time.
fn tiny() -> StreamOptions {
    StreamOptions { message_bytes: 64, depth: 4, ..StreamOptions::default() }
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

fn a_hundred_megabytes_arrive_intact_in_pieces_of_any_size(rig: Rig) {
    let (a, b) = rig.pair(StreamOptions::default(), StreamOptions::default());
    let blocks = (100 << 20) / BLOCK;
    let start = Instant::now();
    let sender = thread::spawn(move || send(a, 1, blocks, 100_000));
    receive(b, 1, blocks, 80_000);
    sender.join().unwrap();
    println!("100 MiB in {:?}", start.elapsed());
}

fn both_directions_flow_at_once_through_queues_of_any_size(rig: Rig) {
    let odd = StreamOptions { message_bytes: 999, depth: 5, ..StreamOptions::default() };
    for (options_a, options_b) in
        [(tiny(), tiny()), (tiny(), StreamOptions::default()), (odd, tiny())]
    {
        let (a, b) = rig.pair(options_a, options_b);
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

fn after_one_half_has_ended_the_other_goes_on(rig: Rig) {
    let (mut a, mut b) = rig.pair(tiny(), tiny());
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

fn what_was_written_before_a_stream_was_dropped_arrives_and_then_the_end(rig: Rig) {
    let (mut a, mut b) = rig.pair(tiny(), tiny());
    let writer = thread::spawn(move || a.write_all(&[7; 5000]).unwrap());
    let mut all = Vec::new();
    b.read_to_end(&mut all).unwrap();
    writer.join().unwrap();
    assert_eq!(all, [7; 5000]);
}

fn reads_and_writes_keep_to_their_deadlines(rig: Rig) {
    let (mut a, b) = rig.pair(tiny(), tiny());
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

fn a_nonblocking_stream_says_when_to_try_again(rig: Rig) {
    let (mut a, mut b) = rig.pair(tiny(), tiny());
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

fn shutting_down_reads_wakes_a_blocked_reader(rig: Rig) {
    let (a, _b) = rig.pair(tiny(), tiny());
    let mut reader = a.try_clone().unwrap();
    let reader = thread::spawn(move || reader.read(&mut [0; 8]).unwrap());
    // Wherever the reader is by then: before, in, or on the way to its sleep.
    thread::sleep(Duration::from_millis(20));
    a.shutdown(Shutdown::Read).unwrap();
    assert_eq!(reader.join().unwrap(), 0);
}

fn sizes_out_of_bounds_are_refused_by_name(rig: Rig) {
    let refused = |options: StreamOptions| {
        Unconnected::new(&rig.context(0), &options).err().expect("a refusal").to_string()
    };
    let error = refused(StreamOptions { depth: 3, ..tiny() });
    assert_eq!(error, "a stream of 3 messages in flight: 4 to 4096 are possible");
    let error = refused(StreamOptions { message_bytes: 1 << 30, ..tiny() });
    assert!(error.contains("messages of 1073741824 bytes"), "{error}");
}

fn a_bootstrap_peer_that_speaks_something_else_is_refused(rig: Rig) {
    let (mut left, mut right) = UnixStream::pair().unwrap();
    right.write_all(&[b'x'; 100]).unwrap();
    let error = VerbsStream::over(&rig.context(0), &mut left, &tiny()).unwrap_err().to_string();
    assert_eq!(error, "the peer's greeting is not that of a byte stream");
}

fn a_killed_peer_is_an_error_that_names_the_status_and_not_a_hang(rig: Rig) {
    if let Some((mut stream, _job)) = rig.to_parent(tiny()) {
        stream.write_all(b"alive").unwrap();
        // Until the parent kills this process.
        let _ = stream.read(&mut [0; 8]);
        return;
    }
    let Peer { ref mut stream, ref mut child, .. } = rig.start_peer(tiny());
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

fn processes_stream_to_each_other_through_buffered_readers(rig: Rig) {
    if let Some((stream, _job)) = rig.to_parent(tiny()) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        (&stream).write_all(&all).unwrap();
        return;
    }
    let Peer { ref stream, ref mut child, .. } = rig.start_peer(tiny());
    let writer = stream.try_clone().unwrap();
    let writer = thread::spawn(move || send(writer, 9, 3, 1000));
    writer.join().unwrap();
    receive(stream.clone(), 9, 3, 1000);
    assert!(child.wait().unwrap().success());
}
