//! A store that is a process of its own: what the commands share that are one.

use super::server::{Store, StoreConfig};
use crate::{Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::os::fd::AsFd;

/// Is a store until SIGTERM, SIGINT or SIGHUP comes; with `with_parent` also until standard input is closed, so that
/// it does not outlive who started it. `ready` is told when it listens.
///
/// To be called before any thread is started, so that none takes those signals.
///
/// # Errors
/// As [`Store::open`] and [`Store::serve`], and what `ready` says.
pub fn be_a_store(
    config: StoreConfig,
    with_parent: bool,
    ready: impl FnOnce(&Store) -> Result<()>,
) -> Result<()> {
    let system = |errno: Errno| Error::new(errno as i32, "handling signals");
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    set.thread_block().map_err(system)?;
    let signals = SignalFd::new(&set).map_err(system)?;
    // Ranks write here with process_vm_writev where both are on one machine, and under Yama's mode 1 need to be
    // told so; they are of the same user in any case. Kernels without Yama answer EINVAL, and need nothing.
    // SAFETY: changes an attribute of the calling process alone.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
    let mut store = Store::open(config)?;
    ready(&store)?;
    let input = std::io::stdin();
    let stop = [signals.as_fd(), input.as_fd()];
    store.serve(if with_parent { &stop } else { &stop[..1] })
}

/// A number of bytes: `1048576`, `1024K`, `1M`.
///
/// # Errors
/// `EINVAL` for anything else.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => (digits, 10 * (1 + "KMGT".find(&text[digits.len()..]).unwrap_or(0))),
        None => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let bad = || Error::invalid(format!("{text:?} is no number of bytes: write 4G, 512M or 4096"));
    number.ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(parse_bytes("4096").unwrap(), 4096);
        assert_eq!(parse_bytes("3G").unwrap(), 3 << 30);
        for wrong in ["", "G", "4X", "4GB", "-1", "99999999999T"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
