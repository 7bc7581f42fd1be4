//! An HCA in user space, between separate processes of one user.
//!
//! It is a device like any other: memory protection by key, the QP state machine of the verbs,
//! RC, UC and UD, shared receive queues, completion channels, asynchronous events, RNR and
//! retries, flushes, a live responder PSN. It presents an InfiniBand link layer with a LID per
//! node. Called by [`super::list`] and [`super::open`]; it touches its runtime directory
//! (`node`), shared memory that it hands to peers, and the memory that programs register.
//!
//! How it works, and where:
//!
//! | file | what |
//! | --- | --- |
//! | `node` | names on the machine: who owns which queue pair numbers |
//! | `peer`, `link` | two contexts meet, and what they share |
//! | `region` | what a context shows to its peers: QPs, keys, posted receives |
//! | `ring`, `records` | what travels: a ring for each direction of each pair |
//! | `inflight`, `life` | why a killed, stopped or replaced peer writes nowhere it must not |
//! | `core`, `service` | the opened device, and its thread |
//! | `fault` | ports that go down when a test says so |
//! | `pace` | the asynchronous mode: packet by packet |
//! | `tcp` | contexts on other machines |
//! | `qp` | queue pairs: who executes what |
//!
//! Between processes of one machine the initiator of a request copies by one
//! `process_vm_writev`/`readv`, into memory that the target's public region says it may reach,
//! and small messages travel in the ring with no system call at all.
//!
//! A forked child must not use its parent's contexts: its threads are not there, and its pid is
//! another.

mod ah;
mod channel;
mod context;
mod core;
mod cq;
mod fault;
mod inflight;
mod life;
mod limits;
mod link;
mod lock;
mod mr;
mod node;
mod numbers;
mod options;
mod pace;
mod pd;
mod peer;
mod qp;
mod records;
mod region;
mod ring;
mod service;
mod shm;
mod srq;
mod tcp;

pub use fault::set_port;
pub use options::{Mode, Options, Pace};

use super::{Device, DeviceContext, Kind};
use crate::Result;
use context::Context;
use std::sync::Arc;

/// A soft device, not yet opened.
struct Soft {
    name: String,
}

impl Device for Soft {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        Kind::Soft
    }

    fn open(&self) -> Result<Arc<dyn DeviceContext>> {
        open_with(&self.name, Options::from_env()?)
    }
}

/// The soft devices that this machine has: `soft0`, and what `SOJOURN_SOFT_DEVICES` names.
#[must_use]
pub fn list() -> Vec<Box<dyn Device>> {
    let names = options::device_names().unwrap_or_else(|error| {
        tracing::warn!(%error, "only soft0 is there");
        vec!["soft0".into()]
    });
    names.into_iter().map(|name| Box::new(Soft { name }) as Box<dyn Device>).collect()
}

/// Opens the soft device `name` with options of one's own instead of the environment's.
///
/// # Errors
/// Whatever keeps it from opening: a runtime directory that is not ours, no file descriptors
/// left.
pub fn open_with(name: &str, options: Options) -> Result<Arc<dyn DeviceContext>> {
    Ok(Context::open(name, options)?)
}
