//! Starting a service: listen, join, then hand everything to the thread.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use nix::unistd::geteuid;

use super::answer::Answers;
use super::fetch::Fetches;
use super::thread::{DIRECTORY, FIRST_WATCH, LINKS, Thread, WAKE};
use super::{Handle, Owner, Service, ServiceConfig, Shared};
use crate::names::directory::{Answer, Directory};
use crate::names::error::{Error, seconds};
use crate::names::key;
use crate::names::links::Links;
use crate::names::poller::{Poller, Ready, Wake, spawn};
use crate::names::stream::{Endpoint, PrivateDir, this_machine};
use crate::names::types::{Address, Grant, ProcessId};

/// Most peers that may be connected to this process at a time. They connect again when they need to.
const MAX_INBOUND: usize = 16_384;

pub(super) fn start(config: ServiceConfig, owner: Arc<dyn Owner>) -> Result<Service, Error> {
    let ServiceConfig { mut directory, key, wanted, socket_dir, listen_tcp, .. } = config;
    let mut links = Links::new(key, config.handshake_time, MAX_INBOUND)?;
    let own_dir = if socket_dir.is_none() { Some(PrivateDir::create()?) } else { None };
    let dir = socket_dir.as_deref().or(own_dir.as_ref().map(PrivateDir::path));
    let unix = links.listen(&Endpoint::Unix(socket_path(dir.unwrap_or(Path::new("/")))?))?;
    if let Some(ip) = listen_tcp.filter(IpAddr::is_unspecified) {
        return Err(Error::Endpoint {
            text: format!("tcp:{ip}:0"),
            problem: "peers can't connect to an unspecified address: name one of this machine's"
                .into(),
        });
    }
    let tcp = listen_tcp.map(|ip| links.listen(&Endpoint::Tcp((ip, 0).into()))).transpose()?;
    let machine = this_machine()?;
    let address = Address {
        machine,
        uid: geteuid().as_raw(),
        unix: match unix {
            Endpoint::Unix(path) => Some(path),
            Endpoint::Tcp(_) => None,
        },
        tcp: match tcp {
            Some(Endpoint::Tcp(address)) => vec![address],
            _ => vec![],
        },
    };
    let deadline = Instant::now() + config.join_time;
    let grant = join(&mut *directory, wanted, address, deadline)?.ok_or_else(|| {
        let time = seconds(config.join_time);
        let problem = format!("no answer to the request to join in {time}");
        Error::Directory { place: directory.place(), problem }
    })?;

    let (commands, inbox) = crossbeam_channel::unbounded();
    let shared = Arc::new(Shared {
        commands,
        wake: Wake::new()?,
        poller: Poller::new()?,
        next_watch: AtomicU64::new(FIRST_WATCH),
        thread: OnceLock::new(),
    });
    let watched =
        [(shared.wake.as_fd(), WAKE), (links.as_fd(), LINKS), (directory.fd(), DIRECTORY)];
    for (fd, token) in watched {
        shared
            .poller
            .add(fd, token, Ready::READ)
            .map_err(|errno| Error::system("watching the service's sockets", errno))?;
    }
    let thread = Thread::new(
        shared.clone(),
        inbox,
        links,
        Answers::new(grant, owner),
        Fetches::new(grant, machine, directory),
        own_dir,
    );
    let handle = Handle { shared: shared.clone(), grant };
    let thread = spawn("sj-service", move || thread.run())?;
    // Nobody else holds the handle yet, so it is in place before anything can ask for it …
    // except what runs on the thread itself, which only a command from a handle can bring about.
    let _ = shared.thread.set(thread.thread().id());
    Ok(Service { handle, thread: Some(thread) })
}

fn socket_path(dir: &Path) -> Result<std::path::PathBuf, Error> {
    let name: String = key::random::<6>()?.iter().map(|b| format!("{b:02x}")).collect();
    Ok(dir.join(format!("p{name}")))
}

/// Waits for the directory's answer. `None` if there was none in time.
fn join(
    directory: &mut dyn Directory,
    wanted: Option<ProcessId>,
    address: Address,
    deadline: Instant,
) -> Result<Option<Grant>, Error> {
    let poller = Poller::new()?;
    poller
        .add(directory.fd(), 0, Ready::READ)
        .map_err(|errno| Error::system("watching the directory", errno))?;
    directory.join(wanted, address, Instant::now());
    loop {
        let now = Instant::now();
        directory.drive(now);
        while let Some(answer) = directory.next_answer() {
            if let Answer::Joined(joined) = answer {
                return joined.map(Some);
            }
        }
        if now >= deadline {
            return Ok(None);
        }
        poller.sleep(directory.next_deadline().into_iter().chain([deadline]).min());
    }
}
