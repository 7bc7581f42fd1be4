//! What the ranks print: gathered line by line by one thread, and handed to a [`Sink`].
//!
//! A line is never torn, however its rank writes it: it is held until its newline, until its pipe
//! closes, or until [`LONGEST_LINE`].

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

/// A line is handed on in pieces of this many bytes: a rank that never ends its line does not fill
/// the launcher's memory. (A line of JSON that tells of a thousand moves takes some 300 KiB.)
const LONGEST_LINE: usize = 1 << 20;

/// Bytes taken from one pipe before the next gets its turn: what a pipe holds by default.
const READ: usize = 64 << 10;

/// Where a rank printed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Its standard output.
    Out,
    /// Its standard error.
    Err,
}

/// What takes the lines of the ranks.
pub(crate) trait Sink: Send {
    /// A line of `rank`, without its newline.
    fn line(&mut self, rank: u32, stream: Stream, line: &[u8]);

    /// Writes out what was collected; called when there is nothing more to read at once. Answers
    /// whether the stream still has a reader.
    fn flush(&mut self, stream: Stream) -> bool {
        let _ = stream;
        true
    }
}

/// Prints every line behind its rank, on the stream that it came from.
#[derive(Default)]
pub(crate) struct Prefixed {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Sink for Prefixed {
    fn line(&mut self, rank: u32, stream: Stream, line: &[u8]) {
        let to = match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        };
        to.extend_from_slice(format!("[{rank}] ").as_bytes());
        to.extend_from_slice(line);
        to.push(b'\n');
    }

    fn flush(&mut self, stream: Stream) -> bool {
        let written = match stream {
            Stream::Out => write_out(&mut io::stdout().lock(), &mut self.out),
            Stream::Err => write_out(&mut io::stderr().lock(), &mut self.err),
        };
        written.is_ok()
    }
}

fn write_out(to: &mut impl Write, bytes: &mut Vec<u8>) -> io::Result<()> {
    let written = to.write_all(bytes).and_then(|()| to.flush());
    bytes.clear();
    written
}

/// One pipe from a rank.
pub(super) struct Source {
    rank: u32,
    stream: Stream,
    pipe: File,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl Source {
    /// Takes the reading end of a pipe.
    pub(super) fn new(rank: u32, stream: Stream, pipe: impl Into<OwnedFd>) -> io::Result<Self> {
        let pipe = File::from(pipe.into());
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Source { rank, stream, pipe, partial: Vec::new() })
    }

    /// Hands on what can be read now, a turn's worth; `None` when the pipe has closed, otherwise
    /// whether there may be more.
    fn turn(&mut self, buffer: &mut [u8], sink: &mut dyn Sink) -> Option<bool> {
        loop {
            match self.pipe.read(buffer) {
                Ok(0) => return None,
                Ok(n) => {
                    self.split(&buffer[..n], sink);
                    return Some(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(false),
                Err(_) => return None,
            }
        }
    }

    fn split(&mut self, mut bytes: &[u8], sink: &mut dyn Sink) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            if self.partial.is_empty() {
                sink.line(self.rank, self.stream, &bytes[..end]);
            } else {
                self.partial.extend_from_slice(&bytes[..end]);
                self.finish(sink);
            }
            bytes = &bytes[end + 1..];
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= LONGEST_LINE {
            self.finish(sink);
        }
    }

    /// Hands on a line that has no end of its own.
    fn finish(&mut self, sink: &mut dyn Sink) {
        if !self.partial.is_empty() {
            sink.line(self.rank, self.stream, &self.partial);
            self.partial.clear();
        }
    }
}

/// The thread that reads.
pub(super) struct Pump {
    thread: JoinHandle<Box<dyn Sink>>,
    tell: PipeWriter,
    more: Sender<Source>,
    done: PipeReader,
}

impl Pump {
    /// Starts reading.
    pub(super) fn start(sources: Vec<Source>, mut sink: Box<dyn Sink>) -> io::Result<Self> {
        let (told, tell) = io::pipe()?;
        let (done, finished) = io::pipe()?;
        let (more, new) = mpsc::channel();
        let thread = std::thread::Builder::new().name("output".to_owned()).spawn(move || {
            let _finished = finished;
            pump(sources, &told, &new, &mut *sink);
            sink
        })?;
        Ok(Pump { thread, tell, more, done })
    }

    /// Reads this too.
    pub(super) fn add(&mut self, source: Source) -> io::Result<()> {
        self.more.send(source).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.tell.write_all(&[0])
    }

    /// Asks for an end once what is in the pipes now has been read: a descendant that escaped its
    /// rank may hold a pipe open for ever. The descriptor that is returned hangs up when all is
    /// written.
    pub(super) fn finish(self) -> (PipeReader, JoinHandle<Box<dyn Sink>>) {
        drop(self.tell);
        (self.done, self.thread)
    }
}

fn pump(mut sources: Vec<Source>, told: &PipeReader, new: &Receiver<Source>, sink: &mut dyn Sink) {
    let mut buffer = vec![0; READ];
    let mut stopping = false;
    // Where all pipes have closed, a rank may still be started anew.
    while !(stopping && sources.is_empty()) {
        if !stopping {
            match wait(&sources, told) {
                Ok(stop) => stopping = stop,
                Err(errno) => {
                    tracing::warn!("the output of the ranks is lost: poll: {errno}");
                    return;
                }
            }
        }
        sources.extend(new.try_iter());
        let mut more = false;
        sources.retain_mut(|source| match source.turn(&mut buffer, sink) {
            Some(again) => {
                more |= again;
                true
            }
            None => {
                source.finish(sink);
                false
            }
        });
        if stopping && !more {
            sources.iter_mut().for_each(|source| source.finish(sink));
        }
        for stream in [Stream::Out, Stream::Err] {
            // Without a reader of ours the ranks get none either, and learn it as in any pipeline.
            if !sink.flush(stream) {
                sources.retain(|source| source.stream != stream);
            }
        }
        if stopping && !more {
            return;
        }
    }
}

/// Waits until there is something to read, or a source more; true when the launcher wants an end.
fn wait(sources: &[Source], mut told: &PipeReader) -> Result<bool, Errno> {
    let mut fds: Vec<PollFd<'_>> =
        sources.iter().map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN)).collect();
    fds.push(PollFd::new(told.as_fd(), PollFlags::POLLIN));
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) if fds.last().and_then(PollFd::any) == Some(true) => {
                // A byte for each source more, and the end of the pipe for the end.
                let mut bytes = [0; 16];
                return match told.read(&mut bytes) {
                    Ok(n) => Ok(n == 0),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                    Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
                };
            }
            Ok(_) => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    struct Lines(mpsc::Sender<(u32, Stream, Vec<u8>)>);

    impl Sink for Lines {
        fn line(&mut self, rank: u32, stream: Stream, line: &[u8]) {
            self.0.send((rank, stream, line.to_vec())).unwrap();
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    fn source(rank: u32) -> (PipeWriter, Source) {
        let (reader, writer) = io::pipe().unwrap();
        (writer, Source::new(rank, Stream::Out, reader).unwrap())
    }

    #[test]
    fn lines_come_whole_however_they_were_written() {
        let (tx, rx) = mpsc::channel();
        let ((mut a, from_a), (mut b, from_b)) = (source(0), source(1));
        let mut pump = Pump::start(vec![from_a, from_b], Box::new(Lines(tx))).unwrap();
        a.write_all(b"one ").unwrap();
        b.write_all(b"other\n").unwrap();
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), (1, Stream::Out, b"other".to_vec()));
        a.write_all(b"line\n\nlast").unwrap();
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap().2, b"one line");
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap().2, b"");
        drop((a, b));
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap().2, b"last");
        let (mut c, from_c) = source(2);
        pump.add(from_c).unwrap();
        c.write_all(b"one more\n").unwrap();
        assert_eq!(rx.recv_timeout(PATIENCE).unwrap().2, b"one more");
        pump.finish().1.join().unwrap();
    }

    #[test]
    fn a_line_without_end_is_handed_on_in_pieces() {
        let (tx, rx) = mpsc::channel();
        let (mut a, from_a) = source(0);
        let text = vec![b'x'; 3 * LONGEST_LINE];
        let pump = Pump::start(vec![from_a], Box::new(Lines(tx))).unwrap();
        a.write_all(&text).unwrap();
        drop(a);
        pump.finish().1.join().unwrap();
        let mut got = Vec::new();
        for (_, _, piece) in rx {
            assert!(piece.len() < LONGEST_LINE + READ);
            got.extend(piece);
        }
        assert_eq!(got, text);
    }

    #[test]
    fn a_pipe_that_someone_keeps_open_does_not_hold_up_the_end() {
        let (tx, rx) = mpsc::channel();
        let (mut a, from_a) = source(0);
        let pump = Pump::start(vec![from_a], Box::new(Lines(tx))).unwrap();
        a.write_all(b"said before\nand this").unwrap();
        let (_, thread) = pump.finish();
        thread.join().unwrap();
        let lines: Vec<_> = rx.iter().map(|(_, _, line)| line).collect();
        assert_eq!(lines, [b"said before".to_vec(), b"and this".to_vec()]);
    }
}
