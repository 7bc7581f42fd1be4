//! A directory in a directory of its own, and services that join it.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sojourn_fabric::names::directory::{Answer, Client, Directory, DirectoryServer, ServerConfig};
use sojourn_fabric::names::{
    Address, Asker, Cover, DeviceId, Endpoint, Error, Fetch, Incarnation, JobKey, KeyRecord, Order,
    Owner, PhysicalEnd, PrivateDir, ProcessId, QpnRecord, Record, Service, ServiceConfig,
    Whereabouts, WrittenPart,
};
use sojourn_logging::remap::{Answer as RemapAnswer, GroupId, Request};

/// Far above what anything takes on a loaded machine; reached only by failures.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// What tests wait for that must run into a deadline, whatever has happened until then.
pub(crate) const SHORT: Duration = Duration::from_millis(150);

/// Fetches what never comes, and returns the error at the deadline. On a loaded machine a short
/// deadline may find the fetch on its way still: then once more, with a longer one.
pub(crate) fn runs_into_deadline(
    asking: &Service,
    peer: ProcessId,
    what: &Fetch,
    expected: impl Fn(&Error) -> bool,
) -> Error {
    let mut time = SHORT;
    loop {
        let begun = Instant::now();
        let error = asking.fetch_wait(peer, what.clone(), begun + time).unwrap_err();
        assert!(begun.elapsed() >= time, "{error}");
        if expected(&error) {
            return error;
        }
        assert!(time < LONG, "{error}");
        time *= 8;
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + LONG
}

/// A physical end that can be told from every other.
pub(crate) fn end(n: u32) -> PhysicalEnd {
    PhysicalEnd {
        device: DeviceId(n),
        lid: n as u16,
        gid: [n as u8; 16],
        qpn: n,
        mtu: 3,
        link_layer: 1,
        word: None,
    }
}

/// Publishes queue pairs below 100 and keys below 10, and remembers who asked.
#[derive(Default)]
pub(crate) struct Tables {
    pub(crate) asked: Mutex<Vec<Asker>>,
}

impl Owner for Tables {
    fn qpn(&self, asker: &Asker, qpn: u32) -> Option<QpnRecord> {
        self.asked.lock().unwrap().push(*asker);
        let one = Incarnation(1);
        let record = QpnRecord { end: end(qpn), qp_type: 2, incarnation: one, life: one };
        (qpn < 100).then_some(record)
    }

    fn key(&self, asker: ProcessId, key: u32) -> Option<KeyRecord> {
        (key < 10).then(|| KeyRecord { on: vec![(DeviceId(asker.0), key + 1000)] })
    }

    fn remap(
        &self,
        _asker: ProcessId,
        _group: GroupId,
        _request: &Request<PhysicalEnd>,
    ) -> RemapAnswer<PhysicalEnd> {
        RemapAnswer::Unknown
    }

    fn moved(&self, _asker: ProcessId, _qpn: u32, _end: &PhysicalEnd) {}

    fn committed(&self, _asker: ProcessId, _serial: u64, _covers: &[Cover]) {}

    fn written(&self, _asker: ProcessId, _report: u64, _part: u32) -> WrittenPart {
        WrittenPart::nothing(Incarnation(1))
    }

    fn written_saved(&self, _asker: ProcessId, _report: u64) {}

    fn relocate(&self, _ticket: u64, _device: &str) -> Order {
        Order::UnderWay
    }
}

/// A directory whose answers a test alters on their way.
pub(crate) struct Altered<F> {
    pub(crate) honest: Box<dyn Directory>,
    pub(crate) alter: F,
}

impl<F: FnMut(ProcessId, &mut Whereabouts) + Send> Directory for Altered<F> {
    fn place(&self) -> String {
        self.honest.place()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.honest.fd()
    }

    fn join(&mut self, wanted: Option<ProcessId>, address: Address, now: Instant) {
        self.honest.join(wanted, address, now);
    }

    fn lookup(&mut self, process: ProcessId, until: Option<Instant>, now: Instant) {
        self.honest.lookup(process, until, now);
    }

    fn drive(&mut self, now: Instant) {
        self.honest.drive(now);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.honest.next_deadline()
    }

    fn next_answer(&mut self) -> Option<Answer> {
        let mut answer = self.honest.next_answer();
        if let Some(Answer::Found(process, Ok(place))) = &mut answer {
            (self.alter)(*process, place);
        }
        answer
    }
}

/// A directory for one test.
pub(crate) struct Job {
    pub(crate) server: Option<DirectoryServer>,
    pub(crate) at: Endpoint,
    pub(crate) key: JobKey,
    pub(crate) dir: PrivateDir,
}

impl Job {
    pub(crate) fn unix() -> Job {
        let dir = PrivateDir::create().unwrap();
        let at = Endpoint::Unix(dir.path().join("directory"));
        Job::start(dir, at, |_| {})
    }

    pub(crate) fn tcp() -> Job {
        Job::start(
            PrivateDir::create().unwrap(),
            Endpoint::parse("tcp:127.0.0.1:0").unwrap(),
            |_| {},
        )
    }

    pub(crate) fn start(dir: PrivateDir, at: Endpoint, set: impl FnOnce(&mut ServerConfig)) -> Job {
        let key = JobKey::generate().unwrap();
        key.write(&dir.path().join("key")).unwrap();
        let mut config = ServerConfig::new(at, key.clone(), 8);
        set(&mut config);
        let server = DirectoryServer::start(config).unwrap();
        let at = server.endpoints()[0].clone();
        Job { server: Some(server), at, key, dir }
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub(crate) fn config(&self, key: &JobKey) -> ServiceConfig {
        let directory = Client::new(self.at.clone(), key.clone(), LONG).unwrap();
        let mut config = ServiceConfig::new(Box::new(directory), key.clone());
        match &self.at {
            Endpoint::Unix(_) => config.socket_dir = Some(self.dir.path().into()),
            Endpoint::Tcp(at) => config.listen_tcp = Some(at.ip()),
        }
        config
    }

    pub(crate) fn join(&self, wanted: u32) -> Service {
        self.join_as(wanted, Arc::new(Tables::default())).unwrap()
    }

    pub(crate) fn join_as(&self, wanted: u32, owner: Arc<dyn Owner>) -> Result<Service, Error> {
        let mut config = self.config(&self.key);
        config.wanted = Some(ProcessId(wanted));
        Service::start(config, owner)
    }
}

pub(crate) fn note(name: &str) -> Fetch {
    Fetch::Note(name.into())
}

pub(crate) fn qpn(qpn: u32) -> Fetch {
    Fetch::Qpn { qpn, own_qpn: 0, own_end: None }
}

pub(crate) fn text(record: Record) -> String {
    match record {
        Record::Note(bytes) => String::from_utf8(bytes).unwrap(),
        other => panic!("no note: {other:?}"),
    }
}
