//! A second process to measure against.
//!
//! The measuring process starts itself again with [`Peer::start`]; the child serves
//! [`serve`] until its standard input ends. They talk in lines over the child's pipes, and share
//! one mapping for the shared-memory reference.

use sojourn_fabric::abi::{Wc, access};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Endpoint, MemoryRegion, Op, QpOptions, QueuePair,
    Remote, SendRequest,
};
use sojourn_fabric::{Error, Result};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The argument that makes a binary of this package serve as the second process.
pub const PEER_ARGUMENT: &str = "--serve-as-peer";
/// Registered memory of each side.
pub const REGION: usize = 4 << 20;
/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(20);
/// Receives that a side keeps posted in a ping-pong.
const RECEIVES: u64 = 16;
/// Bytes of a message of the ping-pongs.
pub const MESSAGE: usize = 64;

fn broken(what: &str) -> Error {
    Error::new(libc::EPIPE, format!("the second process {what}"))
}

/// Two mailboxes of 64 bytes and a turn each, in memory that both processes map.
pub struct Mailboxes {
    base: NonNull<AtomicU64>,
    fd: OwnedFd,
}

/// Words of the mapping: two mailboxes on cache lines of their own, with a turn in front.
const MAILBOX_WORDS: usize = 32;

impl Mailboxes {
    fn create() -> Result<Self> {
        // SAFETY: a name and no flags; CLOEXEC is left out so that the child inherits it.
        let fd = unsafe { libc::memfd_create(c"mailboxes".as_ptr(), 0) };
        if fd < 0 {
            return Err(Error::last_os("creating shared memory"));
        }
        // SAFETY: just created, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a descriptor of ours.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), 4096) } < 0 {
            return Err(Error::last_os("sizing shared memory"));
        }
        Self::map(fd)
    }

    fn map(fd: OwnedFd) -> Result<Self> {
        // SAFETY: a fresh mapping of one page.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        let base = NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED);
        Ok(Mailboxes { base: base.ok_or_else(|| Error::last_os("mapping shared memory"))?, fd })
    }

    fn word(&self, mailbox: usize, word: usize) -> &AtomicU64 {
        assert!(mailbox < 2 && word < MAILBOX_WORDS);
        // SAFETY: within the page that was mapped and is never unmapped before `self` goes.
        unsafe { self.base.add(mailbox * MAILBOX_WORDS + word).as_ref() }
    }

    /// Puts 64 bytes into a mailbox, as message number `turn`.
    fn put(&self, mailbox: usize, turn: u64) {
        for i in 0..MESSAGE / 8 {
            self.word(mailbox, 8 + i).store(turn + i as u64, Ordering::Relaxed);
        }
        self.word(mailbox, 0).store(turn, Ordering::Release);
    }

    /// Waits for message number `turn`, and takes its 64 bytes.
    fn take(&self, mailbox: usize, turn: u64) -> u64 {
        while self.word(mailbox, 0).load(Ordering::Acquire) != turn {
            std::hint::spin_loop();
        }
        (0..MESSAGE / 8).map(|i| self.word(mailbox, 8 + i).load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Mailboxes {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length.
        unsafe { libc::munmap(self.base.as_ptr().cast(), 4096) };
    }
}

/// One side of a connection over the soft device.
struct Side {
    qp: QueuePair,
    cq: CompletionQueue,
    memory: MemoryRegion,
    /// Receives posted so far.
    posted: Cell<u64>,
}

impl Side {
    fn open() -> Result<Self> {
        let context = Context::open_raw("soft0")?;
        let pd = context.alloc_pd()?;
        let cq = context.create_cq(1024)?;
        let memory =
            pd.register(REGION, access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ)?;
        let qp = pd.create_qp(&QpOptions::rc(&cq))?;
        qp.init(&ConnectOptions::default())?;
        let side = Side { qp, cq, memory, posted: Cell::new(0) };
        // Posted before there is a peer, and anew as each is used: no message ever finds none, and
        // waits for its time.
        for _ in 0..RECEIVES {
            side.receive()?;
        }
        Ok(side)
    }

    /// Posts the next receive.
    fn receive(&self) -> Result<()> {
        let number = self.posted.replace(self.posted.get() + 1);
        let at = (number % RECEIVES) as usize * MESSAGE;
        self.qp.post_recv(number, &[self.memory.slice(at..at + MESSAGE)])
    }

    /// Sends (`first`) or awaits the first of `n` messages each way.
    fn ping_pong(&self, n: u64, first: bool) -> Result<()> {
        let out = [self.memory.slice(REGION - MESSAGE..REGION)];
        let (mut received, mut sent) = (0, 0);
        let mut wcs = [Wc::default(); 8];
        let mut deadline = Instant::now() + PATIENCE;
        while received < n || sent < n {
            if sent < n && if first { sent <= received } else { sent < received } {
                let request = SendRequest::new(sent, Op::Send, &out);
                let signal = sent % 32 == 31 || sent + 1 == n;
                self.qp.post_send(&if signal { request } else { request.unsignaled() })?;
                sent += 1;
            }
            let got = self.cq.poll(&mut wcs)?;
            for wc in &wcs[..got] {
                wc.check()?;
                if wc.opcode & sojourn_fabric::abi::wc_opcode::RECV != 0 {
                    received += 1;
                    self.receive()?;
                }
            }
            if got > 0 && received % 1024 == 0 {
                deadline = Instant::now() + PATIENCE;
            } else if got == 0 && received % 1024 == 0 && Instant::now() > deadline {
                return Err(broken("did not answer in a ping-pong"));
            }
        }
        Ok(())
    }
}

/// The second process, and this side of the connection to it.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    side: Side,
    mailboxes: Mailboxes,
    remote: Remote,
    turn: u64,
    /// Its process id, for bare system calls.
    pub pid: i32,
    /// Address of [`REGION`] bytes in it.
    pub addr: u64,
}

impl Peer {
    /// Starts the second process and connects to it over the soft device.
    ///
    /// # Errors
    /// Where it cannot be started or does not answer.
    pub fn start() -> Result<Self> {
        let mailboxes = Mailboxes::create()?;
        let exe = std::env::current_exe().map_err(|e| Error::os(&e, "finding this binary"))?;
        let mut child = Command::new(exe)
            .arg(PEER_ARGUMENT)
            .arg(mailboxes.fd.as_raw_fd().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::os(&e, "starting the second process"))?;
        let input = child.stdin.take().ok_or_else(|| broken("has no input"))?;
        let output = child.stdout.take().ok_or_else(|| broken("has no output"))?;
        let pid = i32::try_from(child.id()).map_err(|_| broken("has no process id"))?;
        let side = Side::open()?;
        let remote = Remote { addr: 0, rkey: 0 };
        let output = BufReader::new(output);
        let mut peer =
            Peer { child, input, output, side, mailboxes, remote, turn: 0, pid, addr: 0 };
        let hello = peer.line()?;
        let mut words = hello.split(' ');
        let mut word = || words.next().ok_or_else(|| broken("said too little"));
        let endpoint = parse_endpoint(word()?)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| broken("named no number"));
        peer.addr = number(word()?)?;
        let rkey = u32::try_from(number(word()?)?).map_err(|_| broken("named no key"))?;
        peer.remote = Remote { addr: peer.addr, rkey };
        let own = peer.side.qp.endpoint()?;
        peer.say(&format_endpoint(&own))?;
        peer.side.qp.connect(&endpoint, &ConnectOptions::default())?;
        peer.line()?;
        Ok(peer)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").map_err(|e| Error::os(&e, "writing to the second process"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let n = self
            .output
            .read_line(&mut line)
            .map_err(|e| Error::os(&e, "reading from the second process"))?;
        if n == 0 { Err(broken("ended")) } else { Ok(line.trim_end().to_owned()) }
    }

    /// Writes `length` bytes into the other process `n` times with bare `process_vm_writev`.
    ///
    /// # Errors
    /// Where the kernel refuses it.
    pub fn bare_writes(&self, length: usize, n: u64) -> Result<()> {
        let local = libc::iovec { iov_base: self.side.memory.as_ptr().cast(), iov_len: length };
        let remote = libc::iovec { iov_base: self.addr as *mut _, iov_len: length };
        for _ in 0..n {
            // SAFETY: the local range is registered memory of ours; the remote one is of the
            // process that we started, which has not been waited for.
            let moved = unsafe {
                libc::process_vm_writev(self.pid, &raw const local, 1, &raw const remote, 1, 0)
            };
            if moved != length as isize {
                return Err(Error::last_os("process_vm_writev"));
            }
        }
        Ok(())
    }

    /// Writes `length` bytes into the other process `n` times over verbs, each completed before
    /// the next is posted.
    ///
    /// # Errors
    /// Where a write fails.
    pub fn verbs_writes(&self, length: usize, n: u64) -> Result<()> {
        let sges = [self.side.memory.slice(0..length)];
        let mut wc = [Wc::default()];
        for k in 0..n {
            self.side.qp.post_send(&SendRequest::new(k, Op::Write(self.remote), &sges))?;
            while self.side.cq.poll(&mut wc)? == 0 {
                std::hint::spin_loop();
            }
            wc[0].check()?;
        }
        Ok(())
    }

    /// Sends `n` messages of 64 bytes each way over verbs.
    ///
    /// # Errors
    /// Where a message fails.
    pub fn verbs_ping_pong(&mut self, n: u64) -> Result<()> {
        self.say(&format!("verbs {n}"))?;
        self.side.ping_pong(n, true)?;
        self.line().map(drop)
    }

    /// Sends `n` messages of 64 bytes each way through shared memory.
    ///
    /// # Errors
    /// Where the second process is gone.
    pub fn shared_ping_pong(&mut self, n: u64) -> Result<()> {
        let from = self.turn;
        self.turn += n;
        self.say(&format!("shared {from} {n}"))?;
        for turn in from + 1..=from + n {
            self.mailboxes.put(0, turn);
            std::hint::black_box(self.mailboxes.take(1, turn));
        }
        self.line().map(drop)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn format_endpoint(endpoint: &Endpoint) -> String {
    endpoint.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn parse_endpoint(text: &str) -> Result<Endpoint> {
    let bytes: Option<Vec<u8>> = (0..text.len() / 2)
        .map(|i| text.get(2 * i..2 * i + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok()))
        .collect();
    Endpoint::from_bytes(&bytes.ok_or_else(|| broken("named no endpoint"))?)
}

/// Serves as the second process where the arguments ask for it; returns false where they do not.
///
/// # Errors
/// Where the first process breaks off in the middle.
pub fn serve() -> Result<bool> {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() != Some(PEER_ARGUMENT) {
        return Ok(false);
    }
    let fd: RawFd = args
        .next()
        .and_then(|fd| fd.parse().ok())
        .ok_or_else(|| Error::invalid(format!("{PEER_ARGUMENT} needs a descriptor")))?;
    // SAFETY: the starting process left this descriptor open for us, and nobody else uses it.
    let mailboxes = Mailboxes::map(unsafe { OwnedFd::from_raw_fd(fd) })?;
    let side = Side::open()?;
    let memory = &side.memory;
    println!("{} {} {}", format_endpoint(&side.qp.endpoint()?), memory.addr(), memory.rkey());
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::os(&e, "reading from the first process"))?;
        let words: Vec<&str> = line.split(' ').collect();
        let number =
            |text: &str| text.parse::<u64>().map_err(|_| broken("was asked for no number"));
        match words[..] {
            ["verbs", n] => side.ping_pong(number(n)?, false)?,
            ["shared", from, n] => {
                let from = number(from)?;
                for turn in from + 1..=from + number(n)? {
                    std::hint::black_box(mailboxes.take(0, turn));
                    mailboxes.put(1, turn);
                }
            }
            [endpoint] => {
                side.qp.connect(&parse_endpoint(endpoint)?, &ConnectOptions::default())?;
            }
            _ => return Err(broken("was asked for something unknown")),
        }
        println!("done");
    }
    Ok(true)
}
