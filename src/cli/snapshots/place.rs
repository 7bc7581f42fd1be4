//! Which stores, or which directory.

use super::stores::Stores;
use super::{Failure, Outcome, While};
use sojourn::snapshot::{STORE_KEY_FILE, STORES, StoreAddress};
use sojourn_fabric::names::env::DEVICE;
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::files::{self, Directory};
use std::path::{Path, PathBuf};

/// Where snapshots are looked for.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// Stores: unix:/path or tcp:host:port (default: those of SOJOURN_STORES)
    #[arg(long = "store", value_name = "ENDPOINT", value_delimiter = ',', conflicts_with = "dir")]
    stores: Vec<String>,
    /// File with the key of the stores (default: that of SOJOURN_STORE_KEY_FILE)
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    key_file: Option<PathBuf>,
    /// The device by which stores are read (default: the best that this machine has)
    #[arg(long, value_name = "NAME", conflicts_with = "dir")]
    device: Option<String>,
    /// A directory that epochs were drained to, in place of stores
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// The job, where the directory has several: its name, or the name of its directory
    #[arg(long, value_name = "JOB", requires = "dir")]
    job: Option<String>,
}

/// What was found there.
pub(super) enum Found {
    /// Stores that have answered.
    Stores(Stores),
    /// The directory of each job.
    Files(Vec<Directory>),
}

impl Place {
    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        self.dir.is_some()
    }

    /// Connects to the stores, or opens the directory of each job there.
    pub(super) fn find(&self) -> Outcome<Found> {
        let Some(root) = &self.dir else { return self.stores().map(Found::Stores) };
        if let Some(job) = &self.job {
            return Ok(Found::Files(vec![Directory::open(root, &id(job))?]));
        }
        let jobs = files::jobs(root)?;
        if jobs.is_empty() {
            return Err(Failure::new(format!(
                "{} has no epochs of any job: it is no directory that was given as SOJOURN_FLUSH_DIR",
                root.display()
            )));
        }
        let all = jobs.iter().map(|job| Directory::open(root, job));
        Ok(Found::Files(all.collect::<sojourn::Result<_>>()?))
    }

    /// The one directory of one job.
    pub(super) fn one(directories: Vec<Directory>) -> Outcome<Directory> {
        let names: Vec<String> = directories.iter().map(name).collect();
        match <[Directory; 1]>::try_from(directories) {
            Ok([one]) => Ok(one),
            Err(_) => Err(Failure::usage(format!(
                "the directory has several jobs: name one by --job: {}",
                names.join(", ")
            ))),
        }
    }

    fn stores(&self) -> Outcome<Stores> {
        let (endpoints, from) = match self.stores.as_slice() {
            [] => {
                let named = std::env::var(STORES).unwrap_or_default();
                (named.split(',').filter(|it| !it.is_empty()).map(String::from).collect(), STORES)
            }
            named => (named.to_vec(), "--store"),
        };
        if endpoints.is_empty() {
            return Err(Failure::usage(format!(
                "which snapshots? Name stores by --store or {STORES}, or a directory by --dir"
            )));
        }
        let endpoints = endpoints.iter().map(|text| endpoint(text, from));
        let endpoints = endpoints.collect::<Outcome<Vec<Endpoint>>>()?;
        let key_file = match &self.key_file {
            Some(path) => path.clone(),
            None => std::env::var_os(STORE_KEY_FILE).map(PathBuf::from).ok_or_else(|| {
                Failure::usage(format!(
                    "the stores have a key: name its file by --key-file or {STORE_KEY_FILE}"
                ))
            })?,
        };
        let key =
            JobKey::read(Path::new(&key_file)).map_err(|error| Failure::new(error.to_string()))?;
        let device = self.device.clone().or_else(|| std::env::var(DEVICE).ok());
        let device = match device.filter(|name| !name.is_empty()) {
            Some(name) => name,
            None => sojourn::best_device()?,
        };
        Stores::connect(&endpoints, key, device)
    }
}

/// `unix:/path`, or as in the environment `node=unix:/path`.
fn endpoint(text: &str, from: &str) -> Outcome<Endpoint> {
    let (at, refuse) = match text.split_once('=') {
        Some(_) => (text.parse::<StoreAddress>().map(|store| store.at).doing(from), None),
        None => (Endpoint::parse(text).doing(from), Some(text)),
    };
    at.map_err(|failure| {
        let what = refuse.map_or_else(String::new, |text| format!(" ({text:?})"));
        Failure::usage(format!("{}{what}", failure.message.unwrap_or_default()))
    })
}

/// The job that a person means.
fn id(job: &str) -> [u8; 16] {
    let plain = job.len() == 32 && job.bytes().all(|byte| byte.is_ascii_hexdigit());
    match u128::from_str_radix(job, 16) {
        Ok(number) if plain => number.to_be_bytes(),
        _ => files::job_called(job),
    }
}

/// What the directory of a job is called.
pub(super) fn name(directory: &Directory) -> String {
    format!("{:032x}", u128::from_be_bytes(*directory.job()))
}
