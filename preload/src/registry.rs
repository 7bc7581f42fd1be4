//! This process in its job, and all contexts that the program has open: the one place that knows
//! them, and the one place that opens devices for the program.
//!
//! A process that a launcher started joins its job when it first opens a device, and stays in it
//! until it ends; its contexts are virtual verbs. A process of no job may look: it opens devices
//! plainly, and can do everything but create queue pairs.

use crate::events::lock;
use sojourn_fabric::device::{self, DeviceContext};
use sojourn_fabric::names::env::{self, JobEnvironment};
use sojourn_fabric::virt::Process;
use sojourn_fabric::{Error, Result};
use std::sync::{Arc, Mutex};

/// What this process is.
enum Membership {
    /// A member of a job.
    Member(Process),
    /// Nobody's.
    Alone,
}

/// A context that is open.
pub(crate) struct Open {
    /// The device; virtual verbs where this process is in a job.
    pub(crate) device: Arc<dyn DeviceContext>,
    /// Whether it is virtual verbs.
    pub(crate) virt: bool,
}

#[derive(Default)]
struct Registry {
    /// `None` until a device is opened. A failure is not kept: the next attempt may succeed.
    membership: Mutex<Option<Arc<Membership>>>,
    open: Mutex<Vec<Arc<Open>>>,
}

static REGISTRY: Registry = Registry { membership: Mutex::new(None), open: Mutex::new(Vec::new()) };

/// Opens the device `name` for the program.
///
/// # Errors
/// Where the launcher's variables make no sense or the job cannot be joined (the message names the
/// variables), or where there is no such device or it cannot be opened.
pub(crate) fn open(name: &str) -> Result<Arc<Open>> {
    let open = match &*membership()? {
        Membership::Member(process) => {
            Open { device: Arc::clone(process.open(name)?.device()), virt: true }
        }
        Membership::Alone => Open { device: device::open(name)?, virt: false },
    };
    let open = Arc::new(open);
    lock(&REGISTRY.open).push(Arc::clone(&open));
    Ok(open)
}

/// The program has closed a context.
pub(crate) fn closed(open: &Arc<Open>) {
    lock(&REGISTRY.open).retain(|other| !Arc::ptr_eq(other, open));
}

/// All contexts that are open.
pub(crate) fn all() -> Vec<Arc<Open>> {
    lock(&REGISTRY.open).clone()
}

fn membership() -> Result<Arc<Membership>> {
    let mut membership = lock(&REGISTRY.membership);
    if let Some(known) = &*membership {
        return Ok(Arc::clone(known));
    }
    let told = JobEnvironment::read().map_err(|error| Error::invalid(error.to_string()))?;
    let new = Arc::new(match told {
        Some(told) => Membership::Member(Process::join(&told).map_err(|error| {
            error.context(format_args!(
                "joining the job of {}={} as rank {} with the key of {}={}",
                env::DIRECTORY,
                told.directory,
                told.rank,
                env::KEY_FILE,
                told.key_file.display()
            ))
        })?),
        None => Membership::Alone,
    });
    *membership = Some(Arc::clone(&new));
    Ok(new)
}
