//! What carries timely's messages: byte streams over verbs, or TCP to compare with. Both are
//! handed to timely's own networking; only how the ranks find each other is ours.

use sojourn::Job;
use sojourn::stream::{StreamOptions, VerbsStream};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::generic::AllocatorBuilder;
use timely::communication::allocator::zero_copy::initialize::{
    CommsGuard, initialize_networking_from_sockets,
};
use timely::communication::allocator::zero_copy::stream::Stream;
use timely::communication::initialize::Hooks;

/// How long the other ranks may take to connect.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks for a connection.
const PAUSE: Duration = Duration::from_millis(2);

/// A byte stream in the form that timely takes.
pub(crate) struct Verbs(VerbsStream);

impl Read for Verbs {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Verbs {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.0.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Stream for Verbs {
    fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Verbs)
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.shutdown(how)
    }
}

/// A stream to every other rank over virtual verbs, by rank.
pub(crate) fn verbs(job: &Job) -> io::Result<Vec<Option<Verbs>>> {
    let streams = VerbsStream::mesh(job, &job.context()?, "pagerank", &StreamOptions::default())?;
    Ok(streams.into_iter().map(|stream| stream.map(Verbs)).collect())
}

/// A TCP connection to every other rank, by rank. Each listens at `ip`; who has the higher rank
/// connects.
pub(crate) fn tcp(job: &Job, ip: IpAddr) -> io::Result<Vec<Option<TcpStream>>> {
    let listener = TcpListener::bind((ip, 0)).map_err(|error| about(&error, "listening at", ip))?;
    let here = listener.local_addr()?.to_string();
    let addresses = job.exchange("pagerank/tcp", here.as_bytes())?;
    let (rank, deadline) = (job.rank() as usize, Instant::now() + PATIENCE);
    let mut sockets: Vec<Option<TcpStream>> = addresses.iter().map(|_| None).collect();
    for (peer, address) in addresses.iter().enumerate().take(rank) {
        let text = String::from_utf8_lossy(address);
        let address: SocketAddr = text.parse().map_err(|_| {
            let why = format!("rank {peer} listens at \"{text}\", which is no address");
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE)
            .map_err(|error| about(&error, "connecting to", address))?;
        socket.write_all(&job.rank().to_be_bytes())?;
        sockets[peer] = Some(socket);
    }
    listener.set_nonblocking(true)?;
    while let Some(missing) = (rank + 1..sockets.len()).find(|peer| sockets[*peer].is_none()) {
        match listener.accept() {
            Ok((mut socket, _)) => {
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                let mut peer = [0; 4];
                socket.read_exact(&mut peer)?;
                socket.set_read_timeout(None)?;
                let peer = u32::from_be_bytes(peer) as usize;
                // Whoever is not awaited is none of ours.
                if peer > rank && sockets.get(peer).is_some_and(Option::is_none) {
                    sockets[peer] = Some(socket);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    let why = format!("rank {missing} did not connect to {here}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    for socket in sockets.iter().flatten() {
        socket.set_nodelay(true)?;
    }
    Ok(sockets)
}

fn about(error: &io::Error, doing: &str, at: impl std::fmt::Display) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {at}: {error}"))
}

/// Timely's workers and communication threads over `sockets`.
pub(crate) fn allocators<S: Stream + 'static>(
    sockets: Vec<Option<S>>,
    rank: u32,
    workers: usize,
) -> io::Result<(Vec<AllocatorBuilder>, CommsGuard)> {
    let hooks = Hooks::default();
    let inside = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), None);
    let (builders, guard) =
        initialize_networking_from_sockets(inside, sockets, rank as usize, workers, hooks)?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), guard))
}
