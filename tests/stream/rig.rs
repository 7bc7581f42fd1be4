//! Where the tests run: over the raw device and over virtual verbs, in one process or in two.

use sojourn::stream::{StreamOptions, VerbsStream};
use sojourn_fabric::names::directory::{DirectoryServer, LocalDirectory, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{Endpoint, JobKey, ServiceConfig};
use sojourn_fabric::virt::{Context, Process};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// What any wait here may take on a busy machine before it counts as a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Where a test that runs as the child of another finds its bootstrap socket.
const SOCKET: &str = "SOJOURN_TEST_STREAM_SOCKET";

/// What a test's streams run over.
#[derive(Clone, Copy)]
pub(crate) struct Rig {
    /// The test's own name, to be run again in another process.
    pub(crate) test: &'static str,
    pub(crate) is_virtual: bool,
}

impl Rig {
    /// Opens the device for one of two sides.
    pub(crate) fn context(self, side: usize) -> Context {
        // Two members of one job, which all tests of this process share.
        static MEMBERS: OnceLock<[Process; 2]> = OnceLock::new();
        if !self.is_virtual {
            return Context::open_raw("soft0").expect("every machine has soft0");
        }
        let members = MEMBERS.get_or_init(|| {
            let key = JobKey::generate().unwrap();
            let one = LocalDirectory::new(key.job_id()).unwrap();
            let two = one.another().unwrap();
            [one, two].map(|directory| {
                Process::start(ServiceConfig::new(Box::new(directory), key.clone())).unwrap()
            })
        });
        members[side].open("soft0").unwrap()
    }

    /// Two ends of a stream, each over a context of its own.
    pub(crate) fn pair(self, a: StreamOptions, b: StreamOptions) -> (VerbsStream, VerbsStream) {
        let (mut left, mut right) = UnixStream::pair().unwrap();
        let other = std::thread::spawn(move || {
            VerbsStream::over(&self.context(1), &mut right, &b).map(patient).unwrap()
        });
        let this = VerbsStream::over(&self.context(0), &mut left, &a).map(patient).unwrap();
        (this, other.join().unwrap())
    }

    /// Starts this very test in another process.
    pub(crate) fn start_peer(self, options: StreamOptions) -> Peer {
        let owner = std::fs::Permissions::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(owner).tempdir().unwrap();
        let path = dir.path().join("bootstrap");
        let listener = UnixListener::bind(&path).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", self.test, "--nocapture"]).env(SOCKET, &path);
        let job = self.is_virtual.then(|| {
            let (key, key_file) = (JobKey::generate().unwrap(), dir.path().join("key"));
            key.write(&key_file).unwrap();
            let directory = Endpoint::Unix(dir.path().join("directory"));
            let server =
                DirectoryServer::start(ServerConfig::new(directory.clone(), key, 2)).unwrap();
            let job = |rank| JobEnvironment {
                rank,
                size: 2,
                directory: directory.clone(),
                key_file: key_file.clone(),
                device: None,
            };
            for (name, value) in job(1).variables() {
                command.envs(value.map(|value| (name, value)));
            }
            (server, Process::join(&job(0)).unwrap())
        });
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let context = match &job {
            Some((_, process)) => process.open("soft0").unwrap(),
            None => self.context(0),
        };
        let (mut bootstrap, _) = listener.accept().unwrap();
        let stream = connect(&context, &mut bootstrap, options);
        Peer { stream, child, _job: job }
    }

    /// The stream to the test that started this process; `None` where none did.
    pub(crate) fn to_parent(
        self,
        options: StreamOptions,
    ) -> Option<(VerbsStream, Option<Process>)> {
        let path = std::env::var_os(SOCKET)?;
        let job = JobEnvironment::read().unwrap().map(|job| Process::join(&job).unwrap());
        let context = match &job {
            Some(process) => process.open("soft0").unwrap(),
            None => self.context(1),
        };
        let mut bootstrap = UnixStream::connect(path).unwrap();
        Some((connect(&context, &mut bootstrap, options), job))
    }
}

/// Another process that runs the same test.
pub(crate) struct Peer {
    pub(crate) stream: VerbsStream,
    pub(crate) child: Child,
    _job: Option<(DirectoryServer, Process)>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Where the test failed before the end of the child.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(context: &Context, bootstrap: &mut UnixStream, options: StreamOptions) -> VerbsStream {
    bootstrap.set_read_timeout(Some(PATIENCE)).unwrap();
    patient(VerbsStream::over(context, bootstrap, &options).unwrap())
}

fn patient(stream: VerbsStream) -> VerbsStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Every function of a list as a test over the raw device and one over virtual verbs.
macro_rules! over_raw_and_virtual_verbs {
    ($($test:ident,)*) => {
        mod raw {
            $(#[test] fn $test() {
                let test = concat!("raw::", stringify!($test));
                super::$test($crate::rig::Rig { test, is_virtual: false });
            })*
        }
        mod virtual_verbs {
            $(#[test] fn $test() {
                let test = concat!("virtual_verbs::", stringify!($test));
                super::$test($crate::rig::Rig { test, is_virtual: true });
            })*
        }
    };
}
pub(crate) use over_raw_and_virtual_verbs;
