//! This process's place in the job: its control service, and what it opens.

use crate::verbs::Context;
use crate::{Error, Result};
use sojourn_fabric::names::directory::LocalDirectory;
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{
    self, Asker, Fetch, JobKey, KeyRecord, Owner, ProcessId, QpnRecord, Record, Service,
    ServiceConfig,
};
use std::sync::Arc;
use std::time::Instant;

/// Publishes notes, and no names.
struct NoNames;

impl Owner for NoNames {
    fn qpn(&self, _asker: &Asker, _qpn: u32) -> Option<QpnRecord> {
        None
    }

    fn key(&self, _asker: ProcessId, _key: u32) -> Option<KeyRecord> {
        None
    }
}

pub(crate) struct Process {
    service: Service,
}

impl Process {
    pub(crate) fn join(told: &JobEnvironment) -> Result<Self> {
        Self::start(told.service().map_err(refused)?)
    }

    pub(crate) fn standalone() -> Result<Self> {
        let key = JobKey::generate().map_err(refused)?;
        let directory = LocalDirectory::new(key.job_id()).map_err(refused)?;
        Self::start(ServiceConfig::new(Box::new(directory), key))
    }

    fn start(config: ServiceConfig) -> Result<Self> {
        let service = Service::start(config, Arc::new(NoNames)).map_err(refused)?;
        Ok(Process { service })
    }

    pub(crate) fn open(&self, device: &str) -> Result<Context> {
        Context::open_raw(device)
    }

    pub(crate) fn publish(&self, name: &str, note: &[u8]) -> Result<()> {
        self.service.publish_note(name, note).map_err(refused)
    }

    pub(crate) fn fetch(&self, peer: ProcessId, name: &str, deadline: Instant) -> Result<Vec<u8>> {
        match self.service.fetch_wait(peer, Fetch::Note(name.to_owned()), deadline) {
            Ok(Record::Note(note)) => Ok(note),
            Ok(_) => Err(Error::invalid(format!("{peer} answered with something else"))),
            Err(error) => Err(refused(error)),
        }
    }
}

fn refused(error: names::Error) -> Error {
    Error::new(libc::EIO, error.to_string())
}
