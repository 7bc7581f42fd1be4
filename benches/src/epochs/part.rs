//! The second processes: a store, or memory as a store has it. The measuring process starts itself again; each ends
//! with its standard input.

use crate::peer::{format_endpoint, parse_endpoint};
use sojourn_fabric::abi::access;
use sojourn_fabric::device::DeviceMr;
use sojourn_fabric::names::{self, Endpoint as At, JobKey, PrivateDir};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Endpoint, QpOptions, QueuePair, Remote,
};
use sojourn_fabric::{Error, Result};
use sojourn_snapshot::epoch::StoreId;
use sojourn_snapshot::session::StoreAt;
use sojourn_snapshot::store::{Store, StoreConfig};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

/// The argument that makes a binary of this package serve as a second process.
const ARGUMENT: &str = "--serve-epochs";
/// The device that everything goes over.
pub(crate) const DEVICE: &str = "soft0";
/// Where the key and the socket of a store are, in its directory.
const KEY: &str = "key";
const SOCKET: &str = "store";
/// Large pages start at multiples of this; a store's memory does, too.
const LARGE: usize = 2 << 20;

pub(crate) fn refused(error: names::Error) -> Error {
    Error::new(libc::EIO, error.to_string())
}

fn broken(what: &str) -> Error {
    Error::new(libc::EPIPE, format!("a second process {what}"))
}

/// Another process that is this binary.
pub(crate) struct Part {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Part {
    fn start(arguments: &[String]) -> Result<Part> {
        let exe = std::env::current_exe().map_err(|e| Error::os(&e, "finding this binary"))?;
        let mut child = Command::new(exe)
            .arg(ARGUMENT)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::os(&e, "starting a second process"))?;
        let input = child.stdin.take().ok_or_else(|| broken("has no input"))?;
        let output = child.stdout.take().ok_or_else(|| broken("has no output"))?;
        Ok(Part { child, input, output: BufReader::new(output) })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").map_err(|e| Error::os(&e, "telling a second process"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        match read.map_err(|e| Error::os(&e, "hearing a second process"))? {
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

/// A store in a process of its own, over the soft device.
pub struct StoreProcess {
    _part: Part,
    dir: PrivateDir,
    key: JobKey,
}

impl StoreProcess {
    /// One that may hold so many bytes.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(bytes: usize) -> Result<Self> {
        let dir = PrivateDir::create().map_err(refused)?;
        let key = JobKey::generate().map_err(refused)?;
        key.write(&dir.path().join(KEY)).map_err(refused)?;
        let place = dir.path().to_string_lossy().into_owned();
        let mut part = Part::start(&["store".to_owned(), place, bytes.to_string()])?;
        part.line()?;
        Ok(StoreProcess { _part: part, dir, key })
    }

    /// Its name and place.
    #[must_use]
    pub fn at(&self) -> StoreAt {
        StoreAt { id: StoreId(1), at: At::Unix(self.dir.path().join(SOCKET)) }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &JobKey {
        &self.key
    }
}

/// Memory in a process of its own, made as a store makes it, and queue pairs that are connected to it.
pub(crate) struct Target {
    _part: Part,
    pub(crate) remote: Remote,
}

impl Target {
    /// So many bytes, for these queue pairs.
    pub(crate) fn start(bytes: usize, qps: &[&QueuePair]) -> Result<Target> {
        let mut part =
            Part::start(&["memory".to_owned(), bytes.to_string(), qps.len().to_string()])?;
        let hello = part.line()?;
        let words: Vec<&str> = hello.split(' ').collect();
        let [addr, rkey, ends @ ..] = &words[..] else { return Err(broken("said too little")) };
        let number = |text: &str| text.parse::<u64>().map_err(|_| broken("named no number"));
        let remote = Remote { addr: number(addr)?, rkey: number(rkey)? as u32 };
        let own = qps.iter().map(|qp| Ok(format_endpoint(&qp.endpoint()?)));
        part.say(&own.collect::<Result<Vec<_>>>()?.join(" "))?;
        for (qp, end) in qps.iter().zip(ends) {
            qp.connect(&parse_endpoint(end)?, &ConnectOptions::default())?;
        }
        part.line()?;
        Ok(Target { _part: part, remote })
    }
}

/// Serves as a second process where the arguments ask for it; returns false where they do not.
///
/// # Errors
/// Where it cannot serve.
pub fn serve() -> Result<bool> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().map_err(|_| Error::invalid(format!("{text}: a number")));
    match words[..] {
        [ARGUMENT, "store", dir, bytes] => serve_store(dir, number(bytes)? as u64)?,
        [ARGUMENT, "memory", bytes, qps] => serve_memory(number(bytes)?, number(qps)?)?,
        [ARGUMENT, ..] => return Err(Error::invalid(format!("{ARGUMENT}: of what?"))),
        _ => return Ok(false),
    }
    Ok(true)
}

fn serve_store(dir: &str, bytes: u64) -> Result<()> {
    let dir = std::path::Path::new(dir);
    let mut store = Store::open(StoreConfig {
        device: DEVICE.into(),
        bytes,
        listen: At::Unix(dir.join(SOCKET)),
        key: JobKey::read(&dir.join(KEY)).map_err(refused)?,
        name: "bench".into(),
        domain: "bench".into(),
    })?;
    println!("ready");
    store.serve(&[std::io::stdin().as_fd()])
}

/// Anonymous memory at the start of a large page, made of large pages, all of it there: as stores have it.
fn map(bytes: usize) -> Result<*mut libc::c_void> {
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh anonymous mapping touches no memory of anyone else.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes + LARGE, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(Error::last_os("mapping memory"));
    }
    // SAFETY: at most LARGE - 1 bytes on, of LARGE and more.
    let base = unsafe { start.byte_add(start.cast::<u8>().align_offset(LARGE)) };
    // SAFETY: advice on the mapping made just now.
    unsafe { libc::madvise(base, bytes, libc::MADV_HUGEPAGE) };
    // SAFETY: within that mapping, which nobody has seen.
    unsafe { std::ptr::write_bytes(base.cast::<u8>(), 0, bytes) };
    Ok(base)
}

fn serve_memory(bytes: usize, qps: usize) -> Result<()> {
    let pd = Context::open_raw(DEVICE)?.alloc_pd()?;
    let base = map(bytes)?;
    let access = access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ;
    // SAFETY: mapped until this process ends, and looked at by nobody here.
    let mr: Arc<dyn DeviceMr> = unsafe { Arc::clone(pd.device()).reg_mr(base, bytes, access) }?;
    let cq: CompletionQueue = pd.context().create_cq(qps as u32)?;
    let all = (0..qps).map(|_| {
        let qp = pd.create_qp(&QpOptions::rc(&cq))?;
        qp.init(&ConnectOptions::default())?;
        Ok(qp)
    });
    let all: Vec<QueuePair> = all.collect::<Result<_>>()?;
    let ends = all.iter().map(|qp| Ok(format_endpoint(&qp.endpoint()?)));
    let ends = ends.collect::<Result<Vec<_>>>()?.join(" ");
    println!("{} {} {ends}", base as u64, mr.rkey());
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::os(&e, "hearing the measuring process"))?;
        let peers = line.split(' ').map(parse_endpoint).collect::<Result<Vec<Endpoint>>>()?;
        for (qp, peer) in all.iter().zip(&peers) {
            qp.connect(peer, &ConnectOptions::default())?;
        }
        println!("connected");
    }
    Ok(())
}
