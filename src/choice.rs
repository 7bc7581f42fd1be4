//! Which device to use where the user names none.

use crate::{Error, Result};
use sojourn_fabric::abi::port_state;
use sojourn_fabric::device::{self, Device, Kind};

/// The port that programs use where they name none.
const FIRST_PORT: u8 = 1;

/// The name of the best device of this machine: the first of libibverbs whose port is active, or
/// else the first soft one.
///
/// # Errors
/// `ENODEV` where there is neither.
pub fn best_device() -> Result<String> {
    let all = device::list();
    let of = |kind: Kind| all.iter().filter(move |device| device.kind() == kind);
    let active = of(Kind::Hca).find(|device| is_active(&***device));
    active.or_else(|| of(Kind::Soft).next()).map(|device| device.name().to_owned()).ok_or_else(
        || {
            let names: Vec<&str> = all.iter().map(|device| device.name()).collect();
            Error::new(
                libc::ENODEV,
                format!("no device with an active port; this machine has: [{}]", names.join(", ")),
            )
        },
    )
}

fn is_active(device: &dyn Device) -> bool {
    let state = device.open().and_then(|context| Ok(context.query_port(FIRST_PORT)?.state));
    state.is_ok_and(|state| state == port_state::ACTIVE)
}
