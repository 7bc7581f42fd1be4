//! `sojourn run`: starts the processes of a job, on one machine or as one launcher of several.
//!
//! The first launcher hosts the job's directory, and each tells its ranks of it by environment
//! variables ([`sojourn::Job`] reads them). What happens to the ranks from then on is
//! [`supervise`]d; what they print is prefixed ([`output`]).

mod guest;
mod output;
mod program;
mod ranks;
mod scratch;
mod supervise;

pub(crate) use output::{Sink, Stream};
pub(crate) use supervise::{End, Signals};

use super::{Failure, Outcome, While};
use nix::sys::resource::{Resource, getrlimit};
use sojourn_fabric::names::directory::{DirectoryServer, ServerConfig};
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{self, Endpoint, JobKey};
use std::ffi::OsString;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Descriptors that a launcher needs beside those of its ranks: its own streams, the directory's
/// sockets, signals, wake-ups.
const OWN_DESCRIPTORS: u64 = 32;

/// Descriptors for each rank that it starts: two pipes, and the pipe by which a failed exec is
/// told, twice while it starts.
const DESCRIPTORS_PER_RANK: u64 = 3;

/// Start the processes of a job
///
/// Every process gets its rank and the size of the job, finds the others by the job's directory,
/// and has its output prefixed with its rank; its input is empty. When one fails, the rest is ended, and its status
/// passed on (128 + the signal's number for one that died by a signal).
///
/// A job over several machines has one launcher on each: the first with --listen, the others with
/// --join, all with the same -n and key file, and each with its own --ranks.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Processes of the whole job
    #[arg(short = 'n', value_name = "N")]
    size: u32,
    /// Device that the programs open (default: the best that the machine has)
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Ranks to start here, as 0,2 or 0-3 (default: all of them)
    #[arg(long, value_name = "LIST")]
    ranks: Option<String>,
    /// Host the job's directory for other machines at this address (host:port)
    #[arg(long, value_name = "ADDR", conflicts_with = "join")]
    listen: Option<String>,
    /// Join the job whose directory is at this address (host:port)
    #[arg(long, value_name = "ADDR", requires = "ranks")]
    join: Option<String>,
    /// File with the job's key, mode 0600; with --listen it is made where there is none
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// End the job, with status 124, when it takes longer
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Call the nodes that the ranks are on so, one after the other and over again (for trying what is for several
    /// nodes on one)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    nodes: Vec<String>,
    /// Start a rank that dies by a signal anew, so many times in all, in place of ending the job
    ///
    /// The program must know how to go on: the new process takes the rank of the dead one, and has none of its memory.
    #[arg(long, value_name = "N", default_value_t = 0)]
    restarts: u32,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|&seconds: &f64| seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a number of seconds above 0 is needed".to_owned())
}

/// Runs a job as the arguments say, and prints what its ranks print.
pub(crate) fn run(args: &RunArgs) -> Outcome {
    if args.size == 0 {
        return Err(Failure::usage("-n 0: a job has at least one process"));
    }
    let local = match &args.ranks {
        Some(text) => ranks::parse(text, args.size)
            .map_err(|reason| Failure::usage(format!("--ranks {text}: {reason}")))?,
        None => (0..args.size).collect(),
    };
    if local.len() < args.size as usize && args.listen.is_none() && args.join.is_none() {
        return Err(Failure::usage(format!(
            "--ranks {} leaves out ranks of this job of {}; to start those from another machine, \
             --listen here",
            args.ranks.as_deref().unwrap_or_default(),
            args.size
        )));
    }
    let program = program::find(&args.program[0])?;
    let place = match (&args.listen, &args.join, &args.key_file) {
        (Some(at), _, Some(key)) => Place::Host(at, key),
        (_, Some(at), Some(key)) => Place::Guest(at, key),
        (None, None, key) => Place::Alone(key.as_deref()),
        _ => {
            return Err(Failure::usage(
                "a job over several machines needs --key-file: the launchers know each other by it",
            ));
        }
    };
    let device = std::env::var(names::env::DEVICE).ok().filter(|name| !name.is_empty());
    let job = Launch {
        size: args.size,
        ranks: local,
        device: args.device.as_deref().or(device.as_deref()),
        place,
        timeout: args.timeout,
        restarts: args.restarts,
        quiet: false,
        nodes: &args.nodes,
        program: &program,
        arguments: &args.program[1..],
        environment: &[],
    };
    let signals = Signals::block()?;
    match job.run(&signals, Box::new(output::Prefixed::default()))?.0 {
        End::Success => Ok(()),
        end => Err(Failure::status(end.status())),
    }
}

/// Which launcher of a job this is.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// The only one; with a key file of the user's, or a key of its own.
    Alone(Option<&'a Path>),
    /// The one that hosts the directory, at this address.
    Host(&'a str, &'a Path),
    /// One that joins the directory at this address.
    Guest(&'a str, &'a Path),
}

/// What to start.
pub(crate) struct Launch<'a> {
    /// Processes of the whole job.
    pub(crate) size: u32,
    /// Those to start here.
    pub(crate) ranks: Vec<u32>,
    /// The device that they open.
    pub(crate) device: Option<&'a str>,
    /// Where the directory is.
    pub(crate) place: Place<'a>,
    /// How long the job may take.
    pub(crate) timeout: Option<Duration>,
    /// How many times a rank that dies by a signal is started anew.
    pub(crate) restarts: u32,
    /// That a rank is started anew is not worth a line.
    pub(crate) quiet: bool,
    /// What the nodes of the ranks are called, one after the other and over again; by themselves where it is empty.
    pub(crate) nodes: &'a [String],
    /// The program's file.
    pub(crate) program: &'a Path,
    /// Its arguments.
    pub(crate) arguments: &'a [OsString],
    /// Variables that are set beside those of the job.
    pub(crate) environment: &'a [(&'a str, OsString)],
}

impl Launch<'_> {
    /// Runs it, and returns how it ended; lines go to `sink`, complaints to stderr.
    ///
    /// It must be called by a thread that lives as long as the job.
    pub(crate) fn run(
        &self,
        signals: &Signals,
        sink: Box<dyn Sink>,
    ) -> Outcome<(End, Box<dyn Sink>)> {
        check_device(self.device)?;
        self.check_descriptors()?;
        let scratch = scratch::Scratch::new()?;
        let (key_file, key) = self.key(scratch.path())?;
        let (_server, directory) = match self.place {
            Place::Alone(_) => {
                let (server, at) = self.serve(vec![unix(scratch.path())], key)?;
                (Some(server), at)
            }
            Place::Host(at, _) => {
                let (server, at) = self.serve(vec![tcp("--listen", at)?], key)?;
                (Some(server), at)
            }
            Place::Guest(at, _) => {
                let at = tcp("--join", at)?;
                guest::check(&at, &key)?;
                (None, at)
            }
        };
        let commands = self
            .ranks
            .iter()
            .map(|&rank| (rank, self.command(rank, &directory, &key_file)))
            .collect();
        let restarts = supervise::Restarts { left: self.restarts, quiet: self.quiet, commands };
        supervise::supervise(signals, restarts, self.timeout, sink)
    }

    fn key(&self, scratch: &Path) -> Outcome<(PathBuf, JobKey)> {
        let (file, make) = match self.place {
            Place::Alone(None) => (scratch.join("key"), true),
            Place::Host(_, file) => (file.to_owned(), !file.exists()),
            Place::Alone(Some(file)) | Place::Guest(_, file) => (file.to_owned(), false),
        };
        if make {
            JobKey::generate().and_then(|key| key.write(&file)).map_err(refused)?;
        }
        let key = JobKey::read(&file).map_err(refused)?;
        Ok((file, key))
    }

    fn serve(&self, listen: Vec<Endpoint>, key: JobKey) -> Outcome<(DirectoryServer, Endpoint)> {
        let mut config = ServerConfig::new(listen[0].clone(), key, self.size);
        config.listen = listen;
        let server = DirectoryServer::start(config).map_err(refused)?;
        let at = server.endpoints()[0].clone();
        Ok((server, at))
    }

    fn command(&self, rank: u32, directory: &Endpoint, key_file: &Path) -> Command {
        let told = JobEnvironment {
            rank,
            size: self.size,
            directory: directory.clone(),
            key_file: key_file.to_owned(),
            device: self.device.map(str::to_owned),
        };
        let mut command = Command::new(self.program);
        command.args(self.arguments).envs(self.environment.iter().cloned());
        if !self.nodes.is_empty() {
            command.env(sojourn::snapshot::NODE, &self.nodes[rank as usize % self.nodes.len()]);
        }
        for (name, value) in told.variables() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    fn check_descriptors(&self) -> Outcome {
        let need = OWN_DESCRIPTORS
            + DESCRIPTORS_PER_RANK * (self.ranks.len() as u64 + u64::from(self.restarts))
            + u64::from(self.size);
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).doing("reading RLIMIT_NOFILE")?;
        if need <= limit {
            return Ok(());
        }
        Err(Failure::new(format!(
            "launching {} of {} ranks needs about {need} file descriptors, and the limit is \
             {limit}: raise it (ulimit -n {need})",
            self.ranks.len(),
            self.size
        )))
    }
}

/// Whether this machine has such a device.
pub(crate) fn check_device(name: Option<&str>) -> Outcome {
    let Some(name) = name else { return Ok(()) };
    let all = sojourn::device::list();
    if all.iter().any(|device| device.name() == name) {
        return Ok(());
    }
    let names: Vec<_> = all.iter().map(|device| device.name()).collect();
    Err(Failure::new(format!(
        "device \"{name}\" not found; this machine has: {}",
        names.join(", ")
    )))
}

fn refused(error: names::Error) -> Failure {
    Failure::new(error.to_string())
}

fn unix(scratch: &Path) -> Endpoint {
    Endpoint::Unix(scratch.join("directory"))
}

/// The endpoint that `option` names. A directory's address must be one that the other machines
/// can reach, since it is what they are told.
fn tcp(option: &str, at: &str) -> Outcome<Endpoint> {
    let problem = |what: &str| Failure::new(format!("{option} {at}: {what}"));
    let mut found = at.to_socket_addrs().map_err(|error| {
        problem(&format!("{error}; host:port is needed, such as 10.0.0.1:7000"))
    })?;
    match found.next() {
        Some(address) if address.ip().is_unspecified() => {
            Err(problem("name the address under which the other machines reach this one"))
        }
        Some(address) => Ok(Endpoint::Tcp(address)),
        None => Err(problem("no such host")),
    }
}
