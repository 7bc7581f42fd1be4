//! Processes of a job that talk RDMA to each other.

use crate::job::{self, Job, Store};
use sojourn_fabric::abi::{Wc, access};
use sojourn_fabric::device;
use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{Endpoint as Place, ProcessId};
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Endpoint, MemoryRegion, Policy, Process,
    ProtectionDomain, QpOptions, QueuePair, Remote,
};
use sojourn_snapshot::epoch::{Answer, Epoch, Member, Request};
use sojourn_snapshot::restore::Copy;
use sojourn_snapshot::store::Client;
use sojourn_snapshot::track::{Kind, Tracker};
use sojourn_snapshot::{Area, Layout, Mapping, Result};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Far above what anything takes on a loaded machine; reached only by failures.
const LONG: Duration = Duration::from_secs(60);
const ALL: u32 =
    access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ | access::REMOTE_ATOMIC;

pub(crate) fn soon() -> Instant {
    Instant::now() + LONG
}

/// The directory of a job.
pub(crate) struct Directory {
    _server: DirectoryServer,
    told: JobEnvironment,
}

impl Directory {
    pub(crate) fn new(job: &Job, size: u32) -> Directory {
        let at = Place::Unix(job.dir.path().join("directory"));
        let config = ServerConfig::new(at.clone(), job.key.clone(), 0);
        let server = DirectoryServer::start(config).unwrap();
        let told =
            JobEnvironment { rank: 0, size, directory: at, key_file: job.key_file(), device: None };
        Directory { _server: server, told }
    }

    pub(crate) fn told(&self, rank: u32) -> JobEnvironment {
        JobEnvironment { rank, ..self.told.clone() }
    }

    /// The same as environment variables.
    pub(crate) fn variables(&self, rank: u32) -> Vec<(&'static str, String)> {
        let all = self.told(rank).variables().into_iter();
        all.filter_map(|(name, value)| Some((name, value?.into_string().unwrap()))).collect()
    }
}

/// One end of a connection between two processes, with memory.
pub(crate) struct End {
    pub(crate) context: Context,
    pub(crate) cq: CompletionQueue,
    pub(crate) qp: QueuePair,
    pub(crate) memory: MemoryRegion,
    _pd: ProtectionDomain,
    pub(crate) process: Process,
}

impl End {
    /// Joins as that rank, with so many bytes.
    pub(crate) fn open(told: &JobEnvironment, bytes: usize) -> End {
        let process = Process::join(told).unwrap();
        let policy = Policy { tracking: true, ..Policy::default() };
        let context = process.open_with(device::open(&job::device()).unwrap(), policy).unwrap();
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(256).unwrap();
        let qp = pd.create_qp(&QpOptions::rc(&cq)).unwrap();
        let memory = pd.register(bytes, ALL).unwrap();
        let mut note = qp.endpoint().unwrap().to_bytes().to_vec();
        note.extend(memory.addr().to_be_bytes());
        note.extend(memory.rkey().to_be_bytes());
        process.publish("end", &note).unwrap();
        End { context, cq, qp, memory, _pd: pd, process }
    }

    /// Connects to the end of that rank, and says where its memory is.
    pub(crate) fn connect(&self, rank: u32) -> Remote {
        let peer: ProcessId = JobEnvironment::process_of(rank);
        let note = self.process.fetch(peer, "end", soon()).unwrap();
        let (end, rest) = note.split_at(Endpoint::BYTES);
        let (addr, rkey) = rest.split_at(8);
        let end = Endpoint::from_bytes(end).unwrap();
        self.qp.connect(&end, &ConnectOptions::default()).unwrap();
        Remote {
            addr: u64::from_be_bytes(addr.try_into().unwrap()),
            rkey: u32::from_be_bytes(rkey.try_into().unwrap()),
        }
    }

    /// Takes one completion, which is a success.
    pub(crate) fn next(&self) {
        let mut wc = [Wc::default()];
        assert_eq!(self.cq.wait(&mut wc, soon()).unwrap(), 1, "no completion");
        wc[0].check().unwrap();
    }

    /// Its memory, as area 1.
    pub(crate) fn layout(&self) -> Layout {
        let (addr, bytes) = (self.memory.addr() as usize, self.memory.len());
        Layout::new([Area { id: 1, addr, bytes }]).unwrap()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.memory.len()];
        self.memory.read(0, &mut bytes);
        bytes
    }
}

/// A tracker that sees nothing, as no tracker sees what a NIC writes: it knows what it is told.
#[derive(Clone, Default)]
pub(crate) struct Blind(Arc<Mutex<Vec<Range<usize>>>>);

impl Blind {
    /// Of that memory, all of which counts as written at first.
    pub(crate) fn of(layout: &Layout) -> Blind {
        let blind = Blind::default();
        layout.areas().iter().for_each(|area| blind.tell(area.range()));
        blind
    }

    /// The CPU has written there.
    pub(crate) fn tell(&self, range: Range<usize>) {
        self.0.lock().unwrap().push(range);
    }
}

impl Tracker for Blind {
    fn kind(&self) -> Kind {
        Kind::Protect
    }

    fn add(&mut self, range: Range<usize>) -> Result<()> {
        self.tell(range);
        Ok(())
    }

    fn add_always_dirty(&mut self, _: Range<usize>) -> Result<()> {
        Ok(())
    }

    fn remove(&mut self, _: Range<usize>) -> Result<()> {
        Ok(())
    }

    fn collect(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.0.lock().unwrap().drain(..).for_each(dirty);
        Ok(())
    }

    fn collect_at_rest(&mut self, dirty: &mut dyn FnMut(Range<usize>)) -> Result<()> {
        self.collect(dirty)
    }
}

/// What a store has of area 1 in that epoch, while its writer goes on.
///
/// # Errors
/// Where a checksum says that it is damaged.
pub(crate) fn image_of(job: &Job, store: &Store, epoch: Epoch, bytes: usize) -> Result<Vec<u8>> {
    let member = Member(1);
    let mut client = Client::connect(&store.at.at, &job.key, soon()).unwrap();
    let Ok(Answer::Told(Some(holding))) = client.request(member, Request::Tell) else {
        panic!("the store holds nothing");
    };
    let slot = holding.slot_of(epoch).expect("the epoch that was just committed");
    let mut copy = Copy::open(&job::device(), &job.key, &store.at, member, slot, 1)?;
    let mapping = Mapping::new(bytes, None).unwrap();
    let place = Layout::new([Area { id: 1, addr: mapping.addr(), bytes }]).unwrap();
    // SAFETY: fresh memory that nobody else uses.
    unsafe { copy.read(&place, true) }?;
    // SAFETY: read just now, and nobody writes it.
    Ok(unsafe { std::slice::from_raw_parts(mapping.addr() as *const u8, bytes) }.to_vec())
}
