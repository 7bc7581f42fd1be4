//! Stores, and what is told to those who use them.

use sojourn_fabric::names::{Endpoint, JobKey, PrivateDir};
use sojourn_snapshot::epoch::{Member, RecoveryLimits, StoreId};
use sojourn_snapshot::restore::RecoverOptions;
use sojourn_snapshot::session::{Options, StoreAt};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

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
            .args(["--device", "soft0", "--with-parent", "--bytes", bytes, "--name", name])
            .args(["--listen", &at.to_string(), "--key-file"])
            .arg(self.key_file())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("store {name} at {at}, soft0, ")), "{line:?}");
        let id = StoreId(self.next.fetch_add(1, Ordering::Relaxed));
        Store { child, at: StoreAt { id, at } }
    }

    /// What process 1 is told, in that life.
    pub(crate) fn options(&self, life: u32, stores: &[&Store]) -> Options {
        let stores = stores.iter().map(|store| store.at.clone()).collect();
        Options::new(self.key.clone(), Member(1), life, stores)
    }

    pub(crate) fn recover_options(&self, life: u32, stores: &[&Store]) -> RecoverOptions {
        RecoverOptions {
            device: "soft0".into(),
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

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
