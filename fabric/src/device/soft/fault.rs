//! Ports that go down when somebody says so: to see what programs make of it.
//!
//! It is the port of this process's own contexts alone: with another process the device has others.
//! What has been handed to the wire arrives; after that nothing goes out, and peers on this machine
//! send nothing in. (Those on other machines, over TCP, do.) A request that finds a port down, at either
//! end, is retried until its time is over, as on a cable that was pulled.

use super::core::Core;
use crate::abi::event_type;
use crate::device::EventElement;
use crate::{Error, Result};
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

#[derive(Default)]
struct Ports {
    open: Vec<Weak<Core>>,
    down: HashSet<String>,
}

static PORTS: Mutex<Option<Ports>> = Mutex::new(None);

fn ports() -> MutexGuard<'static, Option<Ports>> {
    PORTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A context has been opened: its port is as the device's is.
pub(super) fn opened(core: &Arc<Core>) {
    let mut ports = ports();
    let ports = ports.get_or_insert_default();
    ports.open.retain(|core| core.strong_count() > 0);
    ports.open.push(Arc::downgrade(core));
    core.region.header().down.store(ports.down.contains(&core.name).into(), Ordering::Relaxed);
}

/// Takes the port of a soft device down, or up again, for this process: contexts that are open, and those
/// that will be. Each raises `IBV_EVENT_PORT_ERR` or `IBV_EVENT_PORT_ACTIVE`.
///
/// # Errors
/// `ENODEV` where there is no soft device of that name.
pub fn set_port(device: &str, up: bool) -> Result<()> {
    if !super::list().iter().any(|it| it.name() == device) {
        return Err(Error::new(libc::ENODEV, format!("there is no soft device \"{device}\"")));
    }
    let mut ports = ports();
    let ports = ports.get_or_insert_default();
    let changed = if up { ports.down.remove(device) } else { ports.down.insert(device.to_owned()) };
    if !changed {
        return Ok(());
    }
    for core in ports.open.iter().filter_map(Weak::upgrade).filter(|core| core.name == device) {
        core.region.header().down.store((!up).into(), Ordering::Relaxed);
        let what = if up { event_type::PORT_ACTIVE } else { event_type::PORT_ERR };
        core.raise(what, EventElement::Port(super::context::PORT));
    }
    Ok(())
}
