//! `sojourn-store`: one store, in a process of its own.
//!
//! ```text
//! sojourn-store --device soft0 --bytes 4G --listen unix:/run/job/store --key-file /run/job/key
//!               [--name NAME] [--domain DOMAIN] [--with-parent]
//! ```
//!
//! It says one line when it is ready, `store NAME at ENDPOINT, DEVICE, BYTES`, and ends on SIGTERM, SIGINT or SIGHUP; with
//! `--with-parent` also when its standard input is closed, so that it does not outlive who started it.

use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::store::{Hello, StoreConfig, be_a_store, parse_bytes};
use sojourn_snapshot::{Error, Result};
use std::io::Write;
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
    be_a_store(config, with_parent, |store| {
        let Hello { name, device, bytes, .. } = store.about();
        println!("store {name} at {}, {device}, {bytes}", store.endpoint());
        std::io::stdout().flush().map_err(|error| Error::os(&error, "telling that it is ready"))
    })
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
