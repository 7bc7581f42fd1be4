//! The nodes of the demo: each has a store, a process of its own, that holds epochs of ranks on other nodes.

use crate::cli::{Failure, Outcome, While};
use nix::sys::signal::SigSet;
use sojourn::snapshot::{INTERVAL, REDUNDANCY, STORE_KEY_FILE, STORES};
use sojourn_fabric::names::{JobKey, PrivateDir};
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// Memory that each store may use: two images of two ranks, and room.
const BYTES: &str = "256M";
/// Seconds between epochs.
const EVERY: &str = "0.25";
/// Two copies: a rank that is lost together with one store is still whole on another.
const COPIES: &str = "copies:2";

/// The stores, each on a node. Dropping it ends them.
pub(super) struct Nodes {
    home: PrivateDir,
    names: Vec<String>,
    stores: Stores,
}

/// The stores that run.
#[derive(Clone)]
pub(super) struct Stores(Arc<Mutex<Vec<Option<Child>>>>);

impl Nodes {
    /// Starts so many nodes.
    pub(super) fn start(count: u32, program: &Path, device: &str) -> Outcome<Self> {
        let home = PrivateDir::create().map_err(|error| Failure::new(error.to_string()))?;
        let key = home.path().join("key");
        JobKey::generate()
            .and_then(|new| new.write(&key))
            .map_err(|error| Failure::new(error.to_string()))?;
        let names: Vec<String> = (0..count).map(|i| format!("node{i}")).collect();
        let stores = Stores(Arc::default());
        let nodes = Nodes { home, names, stores };
        for name in &nodes.names {
            let mut command = Command::new(program);
            command
                .args(["store", "--with-parent", "--bytes", BYTES, "--device", device])
                .args(["--name", name, "--listen", &nodes.at(name), "--key-file"])
                .arg(&key)
                // The other end of its input goes with this process.
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // SAFETY: between fork and exec one system call is made, and nothing else: it sets the mask of
            // the new process, in which no signal of ours is to stay blocked.
            unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
            let mut child = command.spawn().doing(format_args!("starting the store of {name}"))?;
            let out = child.stdout.take().map(BufReader::new);
            nodes.stores.lock().push(Some(child));
            // It says a line when it is ready, or has said on stderr why it is not.
            let ready = out.and_then(|mut out| out.read_line(&mut String::new()).ok());
            if ready.is_none_or(|bytes| bytes == 0) {
                return Err(Failure::new(format!("the store of {name} did not start")));
            }
        }
        Ok(nodes)
    }

    /// What they are called, by rank.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// The stores.
    pub(super) fn stores(&self) -> &Stores {
        &self.stores
    }

    /// What ranks are told of them.
    pub(super) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let stores: Vec<_> =
            self.names.iter().map(|name| format!("{name}={}", self.at(name))).collect();
        vec![
            (STORES, stores.join(",").into()),
            (STORE_KEY_FILE, self.home.path().join("key").into()),
            (REDUNDANCY, COPIES.into()),
            (INTERVAL, EVERY.into()),
        ]
    }

    fn at(&self, name: &str) -> String {
        format!("unix:{}", self.home.path().join(name).display())
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in self.stores.lock().iter_mut().filter_map(Option::take) {
            end(child);
        }
    }
}

impl Stores {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Option<Child>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills that of a node.
    pub(super) fn kill(&self, node: usize) {
        if let Some(child) = self.lock().get_mut(node).and_then(Option::take) {
            end(child);
        }
    }
}

fn end(mut child: Child) {
    // It has nothing that must be put away.
    let _ = child.kill();
    let _ = child.wait();
}
