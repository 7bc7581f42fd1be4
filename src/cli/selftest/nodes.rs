//! What the sides of a selftest run on: an opened device, or virtual verbs over it. For these a
//! side is a process of a job of two, whose directory the listening side keeps; where both sides
//! are in this process, so is the directory.

use crate::cli::{Failure, Outcome, While};
use sojourn_conformance::{Layer, Node};
use sojourn_fabric::names::directory::{DirectoryServer, LocalDirectory, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{Endpoint, JobKey, ServiceConfig};
use sojourn_fabric::virt::Process;
use std::net::IpAddr;
use std::path::Path;

/// The sides of a job: the one that listens, and the one that connects.
const SIDES: u32 = 2;

/// One side, as long as it lives. Dropped in this order.
pub(super) struct Side {
    node: Node,
    _member: Option<Process>,
    directory: Option<DirectoryServer>,
}

impl Side {
    /// Both sides in this process: two contexts of the device, as two processes would have.
    pub(super) fn both(device: &str, layer: Layer) -> Outcome<[Self; 2]> {
        if layer == Layer::Raw {
            return Ok([Self::raw(device)?, Self::raw(device)?]);
        }
        let key = JobKey::generate().doing("starting a job")?;
        let one = LocalDirectory::new(key.job_id()).doing("starting a directory")?;
        let two = one.another().doing("starting a directory")?;
        let side = |directory| {
            let config = ServiceConfig::new(Box::new(directory), key.clone());
            Self::member(device, Process::start(config)?)
        };
        Ok([side(one)?, side(two)?])
    }

    /// The side that listens, under `ip` for whatever the layer needs beside the cases.
    pub(super) fn listening(
        device: &str,
        layer: Layer,
        ip: IpAddr,
        key_file: &Path,
    ) -> Outcome<Self> {
        if layer == Layer::Raw {
            return Self::raw(device);
        }
        let key = JobKey::read(key_file).doing("--key-file")?;
        let config = ServerConfig::new(Endpoint::Tcp((ip, 0).into()), key, SIDES);
        let server = DirectoryServer::start(config).doing("starting a directory")?;
        let process = join(0, server.endpoints()[0].clone(), key_file)?;
        let mut side = Self::member(device, process)?;
        side.directory = Some(server);
        Ok(side)
    }

    /// The side that connects, told by the other where its directory is, if it keeps one.
    pub(super) fn connecting(
        device: &str,
        layer: Layer,
        directory: Option<&str>,
        key_file: &Path,
    ) -> Outcome<Self> {
        match (layer, directory) {
            (Layer::Raw, _) => Self::raw(device),
            (Layer::Virtual, Some(at)) => {
                let at = Endpoint::parse(at).doing("the other side's directory")?;
                Self::member(device, join(1, at, key_file)?)
            }
            (Layer::Virtual, None) => {
                Err(Failure::new("the other side does not say where its directory is"))
            }
        }
    }

    fn raw(device: &str) -> Outcome<Self> {
        let node = Node { context: sojourn::device::open(device)?, layer: Layer::Raw };
        Ok(Side { node, _member: None, directory: None })
    }

    fn member(device: &str, process: Process) -> Outcome<Self> {
        let context = process.open(device)?.device().clone();
        let node = Node { context, layer: Layer::Virtual };
        Ok(Side { node, _member: Some(process), directory: None })
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }

    /// Where the directory is that this side keeps.
    pub(super) fn directory(&self) -> Option<String> {
        self.directory.as_ref().map(|server| server.endpoints()[0].to_string())
    }
}

/// Joins the job of the two sides.
fn join(rank: u32, directory: Endpoint, key_file: &Path) -> Outcome<Process> {
    let key_file = key_file.to_owned();
    Ok(Process::join(&JobEnvironment { rank, size: SIDES, directory, key_file, device: None })?)
}
