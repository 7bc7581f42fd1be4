//! The environment variables by which a launcher tells a process of its job.
//!
//! [`JobEnvironment`] is the one place that reads and writes them.

use std::ffi::OsString;
use std::path::PathBuf;

use super::directory::Client;
use super::error::Error;
use super::key::JobKey;
use super::links::HANDSHAKE_TIME;
use super::service::ServiceConfig;
use super::stream::{Endpoint, address_towards};
use super::types::ProcessId;

/// The rank of this process, from 0.
pub const RANK: &str = "SOJOURN_RANK";
/// How many ranks the job has.
pub const SIZE: &str = "SOJOURN_SIZE";
/// Where the directory listens: `unix:/path` or `tcp:host:port`.
pub const DIRECTORY: &str = "SOJOURN_DIRECTORY";
/// The file that holds the job key.
pub const KEY_FILE: &str = "SOJOURN_KEY_FILE";
/// The device to use (optional).
pub const DEVICE: &str = "SOJOURN_DEVICE";

/// What a process of a job is told when it starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobEnvironment {
    /// From 0 and below `size`.
    pub rank: u32,
    /// How many ranks the job has.
    pub size: u32,
    /// Where the directory listens.
    pub directory: Endpoint,
    /// The file that holds the job key.
    pub key_file: PathBuf,
    /// The device to use, if the user named one.
    pub device: Option<String>,
}

impl JobEnvironment {
    /// What this process was told; `None` where no launcher started it.
    pub fn read() -> Result<Option<JobEnvironment>, Error> {
        JobEnvironment::read_from(|name| std::env::var_os(name))
    }

    /// As [`read`](Self::read), from elsewhere.
    pub fn read_from(
        get: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Option<JobEnvironment>, Error> {
        const REQUIRED: [&str; 4] = [RANK, SIZE, DIRECTORY, KEY_FILE];
        if REQUIRED.iter().all(|name| get(name).is_none()) {
            return Ok(None);
        }
        let value = |variable: &'static str| {
            let bad = |problem: String| Error::Environment { variable, problem };
            let value = get(variable).ok_or_else(|| {
                bad("is not set, though others of its kind are: start the program with \
                     `sojourn run`"
                    .into())
            })?;
            value.into_string().map_err(|v| bad(format!("{v:?} is not UTF-8")))
        };
        let number = |variable: &'static str| {
            let text = value(variable)?;
            text.parse::<u32>().map_err(|e| Error::Environment {
                variable,
                problem: format!("{text:?} is no number ({e})"),
            })
        };
        let (rank, size) = (number(RANK)?, number(SIZE)?);
        if rank >= size {
            return Err(Error::Environment {
                variable: RANK,
                problem: format!("is {rank}, and {SIZE} is {size}: ranks run from 0 to {SIZE} - 1"),
            });
        }
        let directory = Endpoint::parse(&value(DIRECTORY)?)
            .map_err(|e| Error::Environment { variable: DIRECTORY, problem: e.to_string() })?;
        let key_file = PathBuf::from(value(KEY_FILE)?);
        let device = get(DEVICE).is_some().then(|| value(DEVICE)).transpose()?;
        let device = device.filter(|name| !name.is_empty());
        Ok(Some(JobEnvironment { rank, size, directory, key_file, device }))
    }

    /// The variables to set for a process, for the launcher. One without a value is to be unset.
    pub fn variables(&self) -> [(&'static str, Option<OsString>); 5] {
        [
            (RANK, Some(self.rank.to_string().into())),
            (SIZE, Some(self.size.to_string().into())),
            (DIRECTORY, Some(self.directory.to_string().into())),
            (KEY_FILE, Some(self.key_file.clone().into())),
            (DEVICE, self.device.clone().map(Into::into)),
        ]
    }

    /// The process number of a rank.
    pub fn process_of(rank: u32) -> ProcessId {
        ProcessId(rank.saturating_add(1))
    }

    /// The service configuration that joins this job: sockets beside the directory's own where
    /// that is on this machine, and on the network that leads to it where it is not.
    pub fn service(&self) -> Result<ServiceConfig, Error> {
        let key = JobKey::read(&self.key_file)?;
        let directory = Client::new(self.directory.clone(), key.clone(), HANDSHAKE_TIME)?;
        let mut config = ServiceConfig::new(Box::new(directory), key);
        config.wanted = Some(JobEnvironment::process_of(self.rank));
        match &self.directory {
            Endpoint::Unix(path) => config.socket_dir = path.parent().map(Into::into),
            Endpoint::Tcp(address) => config.listen_tcp = Some(address_towards(*address)?),
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<JobEnvironment>, Error> {
        JobEnvironment::read_from(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
        })
    }

    const GOOD: [(&str, &str); 5] = [
        (RANK, "2"),
        (SIZE, "4"),
        (DIRECTORY, "unix:/run/job/directory"),
        (KEY_FILE, "/run/job/key"),
        (DEVICE, "soft0"),
    ];

    #[test]
    fn what_the_launcher_writes_the_process_reads() {
        let job = read(&GOOD).unwrap().unwrap();
        assert_eq!((job.rank, job.size, job.device.as_deref()), (2, 4, Some("soft0")));
        assert_eq!(JobEnvironment::process_of(job.rank), ProcessId(3));
        let written = job.variables();
        let again = JobEnvironment::read_from(|name| {
            written.iter().find(|(n, _)| *n == name).and_then(|(_, value)| value.clone())
        });
        assert_eq!(again, Ok(Some(job)));
    }

    #[test]
    fn without_a_launcher_there_is_no_job() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[(DEVICE, "soft0")]), Ok(None));
    }

    #[test]
    fn each_fault_names_its_variable_and_its_value() {
        for (index, (name, _)) in GOOD[..4].iter().enumerate() {
            let mut variables = GOOD.to_vec();
            variables.remove(index);
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("not set"), "{error}");
        }
        for (index, value) in [(0, "4"), (0, "-1"), (1, "many"), (2, "/run/job"), (2, "tcp:x")] {
            let mut variables = GOOD;
            variables[index].1 = value;
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(variables[index].0) && error.contains(value), "{error}");
        }
    }
}
