//! Sockets of the control path: unix between processes of one machine, TCP between machines.
//!
//! Nothing here blocks: connecting, accepting, reading and writing are all resumed when the
//! descriptor is ready. A unix socket stands in a directory that only its user may enter, and both
//! ends check that the other runs as the same user. Used by [`links`](super::links).

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, getsockopt,
    listen, setsockopt, socket, sockopt,
};
use nix::unistd::{geteuid, getpid};

use super::error::{Error, errno_of};
use super::message::MAX_SOCKET_PATH;
use super::types::{Address, MachineId};

/// A silent TCP connection is probed after this many seconds …
const KEEPALIVE_IDLE_S: u32 = 5;
/// … then every so many …
const KEEPALIVE_INTERVAL_S: u32 = 2;
/// … and given up after so many: a machine that vanished is noticed within 15 s.
const KEEPALIVE_PROBES: u32 = 5;

/// Where something listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A TCP address and port.
    Tcp(SocketAddr),
}

impl Endpoint {
    /// Reads `unix:/path` or `tcp:host:port`. A host name is resolved here and now, which may take
    /// as long as the system's resolver takes; an address is not.
    pub fn parse(text: &str) -> Result<Endpoint, Error> {
        let bad = |problem: String| Error::Endpoint { text: text.into(), problem };
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(bad("the path must be absolute".into()));
            }
            check_path(Path::new(path)).map_err(bad)?;
            return Ok(Endpoint::Unix(path.into()));
        }
        let Some(host) = text.strip_prefix("tcp:") else {
            return Err(bad(
                "it starts with neither unix: nor tcp: (write unix:/path or tcp:host:port)".into(),
            ));
        };
        if let Ok(address) = host.parse() {
            return Ok(Endpoint::Tcp(address));
        }
        let resolved = host.to_socket_addrs().map_err(|e| bad(e.to_string()))?.next();
        resolved.map(Endpoint::Tcp).ok_or_else(|| bad("the host has no address".into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// A connected socket, or one that is about to be.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Begins to connect. [`finish`](Self::finish) tells how it went once it can be written.
    pub(crate) fn connect(to: &Endpoint) -> Result<Stream, Errno> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        match to {
            Endpoint::Unix(path) => {
                let address = UnixAddr::new(path)?;
                let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
                connect(fd.as_raw_fd(), &address)?;
                Ok(Stream::Unix(UnixStream::from(fd)))
            }
            Endpoint::Tcp(to) => {
                let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let fd = socket(family, SockType::Stream, flags, None)?;
                match connect(fd.as_raw_fd(), &SockaddrStorage::from(*to)) {
                    Ok(()) | Err(Errno::EINPROGRESS) => {}
                    Err(errno) => return Err(errno),
                }
                let stream = TcpStream::from(fd);
                set_up_tcp(&stream)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }

    /// How connecting went, and whether the other end is one of ours.
    pub(crate) fn finish(&self) -> Result<(), Errno> {
        match self {
            Stream::Unix(stream) => check_peer(stream),
            Stream::Tcp(stream) => {
                if let Some(error) = stream.take_error().map_err(|e| errno_of(&e))? {
                    return Err(errno_of(&error));
                }
                // A port that nobody listens on can be dealt to the very socket that connects to
                // it, which is then connected to itself.
                let ends = stream.local_addr().and_then(|a| Ok((a, stream.peer_addr()?)));
                match ends {
                    Ok((here, there)) if here != there => Ok(()),
                    Ok(_) => Err(Errno::ECONNREFUSED),
                    Err(error) => Err(errno_of(&error)),
                }
            }
        }
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, Errno> {
        retry(|| match self {
            Stream::Unix(stream) => stream.read(into),
            Stream::Tcp(stream) => stream.read(into),
        })
    }

    pub(crate) fn write(&mut self, from: &[u8]) -> Result<usize, Errno> {
        // The standard library writes with MSG_NOSIGNAL: no SIGPIPE.
        retry(|| match self {
            Stream::Unix(stream) => stream.write(from),
            Stream::Tcp(stream) => stream.write(from),
        })
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> Result<usize, Errno> {
    loop {
        match call().map_err(|e| errno_of(&e)) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn set_up_tcp(stream: &TcpStream) -> Result<(), Errno> {
    stream.set_nodelay(true).map_err(|e| errno_of(&e))?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)
}

/// The other end of a unix socket must run as the same user; EPERM says that it does not.
fn check_peer(stream: &UnixStream) -> Result<(), Errno> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    if peer.uid() == geteuid().as_raw() { Ok(()) } else { Err(Errno::EPERM) }
}

/// A listening socket. Takes its path with it when it goes.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens there; port 0 lets the system choose.
    pub(crate) fn bind(at: &Endpoint) -> Result<Listener, Error> {
        let failed = |error: io::Error| match errno_of(&error) {
            Errno::EADDRINUSE => Error::Taken {
                endpoint: at.to_string(),
                hint: match at {
                    Endpoint::Unix(_) => "somebody listens there, or one that died has left its \
                                          socket: choose another path, or remove it"
                        .into(),
                    Endpoint::Tcp(_) => "another program listens there: choose another port, or \
                                         0 for any"
                        .into(),
                },
            },
            errno => Error::system(format!("listening at {at}"), errno),
        };
        match at {
            Endpoint::Unix(path) => {
                let bad = |problem| Error::Endpoint { text: at.to_string(), problem };
                check_path(path).map_err(bad)?;
                check_private(path.parent().unwrap_or(Path::new("/")))?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                // From here on the path is ours to remove, whatever fails.
                let listener = Listener::Unix(listener, path.clone());
                listener.set_up().map_err(failed)?;
                Ok(listener)
            }
            Endpoint::Tcp(address) => {
                let listener = Listener::Tcp(TcpListener::bind(address).map_err(failed)?);
                listener.set_up().map_err(failed)?;
                Ok(listener)
            }
        }
    }

    fn set_up(&self) -> io::Result<()> {
        match self {
            Listener::Unix(listener, _) => listener.set_nonblocking(true),
            Listener::Tcp(listener) => listener.set_nonblocking(true),
        }?;
        // Listening again changes nothing but the length of the queue, here to all that the system
        // allows: the ranks of a job connect to its directory at once, and over TCP one that finds
        // the queue full tries again only after a second.
        Ok(listen(self, Backlog::MAXALLOWABLE)?)
    }

    /// Where it listens, with the port that the system chose.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Error> {
        match self {
            Listener::Unix(_, path) => Ok(Endpoint::Unix(path.clone())),
            Listener::Tcp(listener) => listener
                .local_addr()
                .map(Endpoint::Tcp)
                .map_err(|e| Error::io("address of a listening socket", &e)),
        }
    }

    /// The next connection; EAGAIN when there is none, EPERM for one of another user.
    pub(crate) fn accept(&self) -> Result<Stream, Errno> {
        let accepted = match self {
            Listener::Unix(listener, _) => listener.accept().map(|(s, _)| Stream::Unix(s)),
            Listener::Tcp(listener) => listener.accept().map(|(s, _)| Stream::Tcp(s)),
        };
        let stream = accepted.map_err(|e| errno_of(&e))?;
        match &stream {
            Stream::Unix(s) => {
                s.set_nonblocking(true).map_err(|e| errno_of(&e))?;
                check_peer(s)?;
            }
            Stream::Tcp(s) => {
                s.set_nonblocking(true).map_err(|e| errno_of(&e))?;
                set_up_tcp(s)?;
            }
        }
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener, _) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Gone already if its directory was removed first.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn check_path(path: &Path) -> Result<(), String> {
    let len = path.as_os_str().len();
    if path.to_str().is_none() {
        return Err("the path is not UTF-8".into());
    }
    if len > MAX_SOCKET_PATH {
        return Err(format!(
            "the path has {len} bytes, and the kernel takes {MAX_SOCKET_PATH}: use a shorter \
             directory (TMPDIR or XDG_RUNTIME_DIR)"
        ));
    }
    Ok(())
}

/// Whether only this user may enter a directory.
pub(crate) fn check_private(path: &Path) -> Result<(), Error> {
    let bad = |problem: String| Error::SocketDirectory { path: path.into(), problem };
    let meta = std::fs::metadata(path).map_err(|e| bad(errno_of(&e).desc().into()))?;
    let (mode, me) = (meta.mode() & 0o7777, geteuid().as_raw());
    if !meta.is_dir() {
        return Err(bad("is not a directory".into()));
    }
    if meta.uid() != me {
        return Err(bad(format!("belongs to uid {}, and this process runs as {me}", meta.uid())));
    }
    if mode & 0o077 != 0 {
        return Err(bad(format!("has mode {mode:04o} and must be closed to others: chmod 700")));
    }
    Ok(())
}

/// A directory of mode 0700 under a name of its own, removed with its content when dropped.
#[derive(Debug)]
pub struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    /// Makes one where the user's short-lived files belong: `XDG_RUNTIME_DIR`, or the system's
    /// directory for temporary files.
    pub fn create() -> Result<PrivateDir, Error> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let base = runtime.filter(|dir| dir.is_dir()).unwrap_or_else(std::env::temp_dir);
        PrivateDir::create_in(&base)
    }

    fn create_in(base: &Path) -> Result<PrivateDir, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        loop {
            // A directory that a process of the same pid left behind has its name; take another.
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = base.join(format!("sojourn-{}-{number}", getpid()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(PrivateDir { path }),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io(format!("creating {}", path.display()), &e)),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The machine, in this boot of it.
pub(crate) fn this_machine() -> Result<MachineId, Error> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(BOOT_ID).map_err(|e| Error::io(BOOT_ID, &e))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(|id| MachineId(id.to_be_bytes()))
        .map_err(|_| Error::system(format!("{BOOT_ID} holds no UUID"), Errno::EINVAL))
}

/// The address of this machine that a peer at `there` would see. Asks the routing table; sends
/// nothing.
pub(crate) fn address_towards(there: SocketAddr) -> Result<IpAddr, Error> {
    let any: SocketAddr =
        if there.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    UdpSocket::bind(any)
        .and_then(|socket| {
            socket.connect(there)?;
            Ok(socket.local_addr()?.ip())
        })
        .map_err(|e| Error::io(format!("finding the way to {there}"), &e))
}

/// How to reach an address from here, the best way first.
pub(crate) fn ways(to: &Address, machine: MachineId) -> Vec<Endpoint> {
    let near = to.machine == machine && to.uid == geteuid().as_raw();
    let unix = to.unix.iter().filter(|_| near).cloned().map(Endpoint::Unix);
    // On one machine TCP still serves where the path lies in another mount namespace.
    unix.chain(to.tcp.iter().copied().map(Endpoint::Tcp)).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn endpoints_read_back_as_written_and_bad_ones_say_what_is_wrong() {
        for text in ["unix:/run/x", "tcp:127.0.0.1:80", "tcp:[::1]:80"] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        let error = |text: &str| Endpoint::parse(text).unwrap_err().to_string();
        assert!(error("unix:rel").contains("absolute"));
        assert!(error("127.0.0.1:80").contains("neither"));
        assert!(error("tcp:127.0.0.1").contains("tcp:127.0.0.1"));
        assert!(error(&format!("unix:/{}", "x".repeat(107))).contains("108 bytes"));
    }

    #[test]
    fn a_taken_path_and_a_taken_port_are_named() {
        let dir = PrivateDir::create().unwrap();
        let path = Endpoint::Unix(dir.path().join("s"));
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, Error::Taken { .. }) && error.to_string().contains("/s is taken"));
        drop(first);
        drop(Listener::bind(&path).expect("a listener removes its path"));
        let any = Endpoint::Tcp(([127, 0, 0, 1], 0).into());
        let first = Listener::bind(&any).unwrap();
        let taken = first.endpoint().unwrap();
        let error = Listener::bind(&taken).unwrap_err().to_string();
        assert!(error.contains(&taken.to_string()) && error.contains("port"), "{error}");
    }

    #[test]
    fn a_socket_directory_must_be_private() {
        let dir = PrivateDir::create().unwrap();
        let at = Endpoint::Unix(dir.path().join("s"));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Listener::bind(&at).unwrap_err().to_string();
        assert!(error.contains("0755") && error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn connecting_to_nobody_is_refused_on_both_kinds() {
        let dir = PrivateDir::create().unwrap();
        let path = dir.path().join("s");
        assert_eq!(Stream::connect(&Endpoint::Unix(path.clone())).unwrap_err(), Errno::ENOENT);
        // A socket file whose listener is gone.
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(Stream::connect(&Endpoint::Unix(path)).unwrap_err(), Errno::ECONNREFUSED);
    }

    #[test]
    fn private_directories_go_with_their_content() {
        let dir = PrivateDir::create().unwrap();
        let other = PrivateDir::create().unwrap();
        assert_ne!(dir.path(), other.path());
        let path = dir.path().to_owned();
        assert!(check_private(&path).is_ok());
        std::fs::write(path.join("f"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn unix_is_preferred_on_one_machine_and_never_offered_to_another() {
        let here = this_machine().unwrap();
        let tcp: SocketAddr = ([10, 0, 0, 1], 5).into();
        let mut address = Address {
            machine: here,
            uid: geteuid().as_raw(),
            unix: Some("/s".into()),
            tcp: vec![tcp],
        };
        let both = [Endpoint::Unix("/s".into()), Endpoint::Tcp(tcp)];
        assert_eq!(ways(&address, here), both);
        assert_eq!(ways(&address, MachineId([0; 16])), both[1..]);
        address.uid += 1;
        assert_eq!(ways(&address, here), both[1..]);
    }
}
