//! `sojourn store`: memory of this node in which ranks on other nodes keep their epochs.

use super::{Failure, Outcome, print};
use sojourn::Error;
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::store::{StoreConfig, be_a_store, parse_bytes};
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
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = parse_bytes)]
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

/// Serves.
pub(crate) fn run(args: &StoreArgs) -> Outcome {
    let refuse = |error: sojourn_fabric::names::Error| Failure::new(error.to_string());
    let config = StoreConfig {
        device: match &args.device {
            Some(name) => name.clone(),
            None => sojourn::best_device()?,
        },
        bytes: args.bytes,
        listen: Endpoint::parse(&args.listen).map_err(refuse)?,
        key: JobKey::read(&args.key_file).map_err(refuse)?,
        name: args.name.clone(),
        domain: args.domain.clone().unwrap_or_else(|| args.name.clone()),
    };
    Ok(be_a_store(config, args.with_parent, |store| {
        let (about, at) = (store.about(), store.endpoint());
        let line =
            format!("store {} at {at}, {}, {} bytes\n", about.name, about.device, about.bytes);
        print(&line).map_err(|failure| Error::new(libc::EIO, failure.message.unwrap_or_default()))
    })?)
}
