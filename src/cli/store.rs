//! `sojourn store`: memory of this node in which ranks on other nodes keep their epochs.

use super::{Failure, Outcome, While, print};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::store::{Store, StoreConfig};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Hold epochs of ranks on other nodes in this node's memory
///
/// It says one line when it is ready, and serves until it is told to end by a signal. What it holds goes with it.
/// The ranks are told of it by SOJOURN_STORES.
#[derive(Debug, clap::Args)]
pub(crate) struct StoreArgs {
    /// Name of the node that it is on
    #[arg(long, value_name = "NAME")]
    name: String,
    /// What it may fail together with: a rack, a power supply
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// Memory that it may use
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = bytes)]
    bytes: u64,
    /// Where it listens: unix:/path or tcp:host:port
    #[arg(long, value_name = "ENDPOINT")]
    listen: String,
    /// File with the key of the stores, mode 0600
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// The device to use (default: the best that this machine has)
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// End when standard input is closed
    #[arg(long)]
    with_parent: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.find(|c: char| !c.is_ascii_digit()) {
        None => (text, 0),
        Some(at) => match &text[at..] {
            "K" => (&text[..at], 10),
            "M" => (&text[..at], 20),
            "G" => (&text[..at], 30),
            "T" => (&text[..at], 40),
            _ => (text, 0),
        },
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    number.ok_or_else(|| "a number of bytes is needed: 4G, 512M or 4096".to_owned())
}

/// Serves.
pub(crate) fn run(args: &StoreArgs) -> Outcome {
    // Before any thread is started, so that none takes them.
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    set.thread_block().doing("blocking signals")?;
    let signals = SignalFd::new(&set).doing("creating a signalfd")?;
    // Ranks write here with process_vm_writev where both are on one machine, and under Yama's mode 1 need to be
    // told so; they are of the same user in any case. Kernels without Yama answer EINVAL, and need nothing.
    // SAFETY: changes an attribute of the calling process alone.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
    let refuse = |error: sojourn_fabric::names::Error| Failure::new(error.to_string());
    let mut store = Store::open(StoreConfig {
        device: match &args.device {
            Some(name) => name.clone(),
            None => sojourn::best_device()?,
        },
        bytes: args.bytes,
        listen: Endpoint::parse(&args.listen).map_err(refuse)?,
        key: JobKey::read(&args.key_file).map_err(refuse)?,
        name: args.name.clone(),
        domain: args.domain.clone().unwrap_or_else(|| args.name.clone()),
    })?;
    let about = store.about();
    let at = store.endpoint();
    print(&format!("store {} at {at}, {}, {} bytes\n", about.name, about.device, about.bytes))?;
    let input = std::io::stdin();
    let stop = [signals.as_fd(), input.as_fd()];
    Ok(store.serve(if args.with_parent { &stop } else { &stop[..1] })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("3G"), Ok(3 << 30));
        for wrong in ["", "G", "4X", "4GB", "-1", "99999999999T"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
