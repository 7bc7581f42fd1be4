//! `sojourn-store`: one store, in a process of its own.
//!
//! ```text
//! sojourn-store --device soft0 --bytes 4G --listen unix:/run/job/store --key-file /run/job/key
//!               [--name NAME] [--domain DOMAIN] [--with-parent]
//! ```
//!
//! It says one line when it is ready, `store NAME at ENDPOINT, DEVICE, BYTES`, and ends on SIGTERM or SIGINT; with
//! `--with-parent` also when its standard input is closed, so that it does not outlive who started it.

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::store::{Hello, Store, StoreConfig};
use sojourn_snapshot::{Error, Result};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sojourn-store: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let (config, with_parent) = parse(arguments)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    let system = |errno: nix::errno::Errno| Error::new(errno as i32, "handling signals");
    // Before any thread is started, so that none takes them.
    signals.thread_block().map_err(system)?;
    let signals = SignalFd::new(&signals).map_err(system)?;
    let mut store = Store::open(config)?;
    let Hello { name, device, bytes, .. } = store.about();
    println!("store {name} at {}, {device}, {bytes}", store.endpoint());
    std::io::stdout().flush().map_err(|error| Error::os(&error, "telling that it is ready"))?;
    let input = std::io::stdin();
    let stop = [signals.as_fd(), input.as_fd()];
    store.serve(if with_parent { &stop } else { &stop[..1] })
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<(StoreConfig, bool)> {
    let (mut device, mut bytes, mut listen, mut key) = (None, None, None, None);
    let (mut name, mut domain, mut with_parent) = (None, None, false);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let missing = || Error::invalid(format!("{argument} needs a value"));
            arguments.next().ok_or_else(missing)
        };
        match argument.as_str() {
            "--device" => device = Some(value()?),
            "--bytes" => bytes = Some(parse_bytes(&value()?)?),
            "--listen" => listen = Some(Endpoint::parse(&value()?)?),
            "--key-file" => key = Some(JobKey::read(value()?.as_ref())?),
            "--name" => name = Some(value()?),
            "--domain" => domain = Some(value()?),
            "--with-parent" => with_parent = true,
            other => return Err(Error::invalid(format!("{other} is no argument of it"))),
        }
    }
    let missing = |what: &str| Error::invalid(format!("{what} is missing"));
    let listen = listen.ok_or_else(|| missing("--listen"))?;
    let name = name.unwrap_or_else(|| listen.to_string());
    let config = StoreConfig {
        device: device.ok_or_else(|| missing("--device"))?,
        bytes: bytes.ok_or_else(|| missing("--bytes"))?,
        key: key.ok_or_else(|| missing("--key-file"))?,
        domain: domain.unwrap_or_else(|| name.clone()),
        listen,
        name,
    };
    Ok((config, with_parent))
}

/// A number of bytes: `1048576`, `1024K`, `1M`.
fn parse_bytes(text: &str) -> Result<u64> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => (digits, 10 * (1 + "KMGT".find(&text[digits.len()..]).unwrap_or(0))),
        None => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    let bad = || Error::invalid(format!("{text:?} is no number of bytes: write 4G, 512M or 4096"));
    number.ok_or_else(bad)
}
