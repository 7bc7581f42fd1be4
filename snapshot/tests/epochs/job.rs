//! Stores, and what is told to those who use them.

use sojourn_fabric::names::{Endpoint, JobKey, PrivateDir};
use sojourn_snapshot::epoch::{Member, RecoveryLimits, StoreId};
use sojourn_snapshot::restore::RecoverOptions;
use sojourn_snapshot::session::{Options, StoreAt};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// Names the part that a process of a test plays.
pub(crate) const PART: &str = "EPOCHS_PART";

/// The device that all of it goes over: `SOJOURN_TEST_DEVICE`, or the first soft one.
pub(crate) fn device() -> String {
    std::env::var("SOJOURN_TEST_DEVICE").unwrap_or_else(|_| "soft0".into())
}

/// A directory, and a key in it.
pub(crate) struct Job {
    pub(crate) dir: PrivateDir,
    pub(crate) key: JobKey,
    next: AtomicU64,
}

/// A process that is killed and reaped when the test is over, however it ends.
pub(crate) struct Store {
    child: Child,
    pub(crate) at: StoreAt,
}

impl Job {
    pub(crate) fn new() -> Job {
        let dir = PrivateDir::create().unwrap();
        let key = JobKey::generate().unwrap();
        key.write(&dir.path().join("key")).unwrap();
        Job { dir, key, next: AtomicU64::new(1) }
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// A store of that name and so many bytes, in a process of its own.
    pub(crate) fn store(&self, name: &str, bytes: &str) -> Store {
        let at = Endpoint::Unix(self.dir.path().join(name));
        let mut child = Command::new(env!("CARGO_BIN_EXE_sojourn-store"))
            .args(["--device", &device(), "--with-parent", "--bytes", bytes, "--name", name])
            .args(["--listen", &at.to_string(), "--key-file"])
            .arg(self.key_file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("store {name} at {at}, {}, ", device())), "{line:?}");
        let id = StoreId(self.next.fetch_add(1, Ordering::Relaxed));
        Store { child, at: StoreAt { id, at } }
    }

    /// This test program again, in that part and that life.
    pub(crate) fn part(
        &self,
        part: &str,
        life: u32,
        stores: &[&Store],
        more: &[(&str, String)],
    ) -> Part {
        let told: Vec<String> =
            stores.iter().map(|store| format!("{}={}", store.at.id, store.at.at)).collect();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["part", "--exact", "--ignored", "--nocapture"])
            .env(PART, part)
            .env("EPOCHS_KEY", self.key_file())
            .env("EPOCHS_LIFE", life.to_string())
            .env("EPOCHS_STORES", told.join(" "))
            .envs(more.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Part(child)
    }

    /// What process 1 is told, in that life.
    pub(crate) fn options(&self, life: u32, stores: &[&Store]) -> Options {
        let stores = stores.iter().map(|store| store.at.clone()).collect();
        let options = Options::new(self.key.clone(), Member(1), life, stores);
        Options { device: device(), ..options }
    }

    pub(crate) fn recover_options(&self, life: u32, stores: &[&Store]) -> RecoverOptions {
        RecoverOptions {
            device: device(),
            key: self.key.clone(),
            member: Member(1),
            life,
            stores: stores.iter().map(|store| store.at.clone()).collect(),
            lanes: 2,
            fresh: true,
            limits: RecoveryLimits::default(),
        }
    }
}

impl Store {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Another process that is this test program.
pub(crate) struct Part(Child);

impl Part {
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
    }

    /// Whether it ended well, and what it had said: when it has ended.
    pub(crate) fn ended(mut self) -> (bool, Vec<String>) {
        let said = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let said = said.map_while(|line| line.ok()).filter(|line| line.starts_with("epochs: "));
        let said = said.map(|line| line["epochs: ".len()..].to_owned()).collect();
        (self.0.wait().unwrap().success(), said)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a part was told by [`Job::part`].
pub(crate) fn told() -> Options {
    let variable = |name| std::env::var(name).unwrap();
    let key = JobKey::read(variable("EPOCHS_KEY").as_ref()).unwrap();
    let stores = variable("EPOCHS_STORES");
    let stores = stores.split(' ').map(|store| {
        let (id, at) = store.split_once('=').unwrap();
        StoreAt { id: StoreId(id.parse().unwrap()), at: Endpoint::parse(at).unwrap() }
    });
    let life = variable("EPOCHS_LIFE").parse().unwrap();
    Options { device: device(), ..Options::new(key, Member(1), life, stores.collect()) }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
