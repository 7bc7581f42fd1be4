//! `sojourn selftest`: the conformance cases on one device and on virtual verbs over it, against
//! itself or another machine's.

mod choose;
mod nodes;
mod print;
mod remote;

use super::{Failure, Outcome, While, print as say};
use nodes::Side;
use remote::{Answer, Question, Wire};
use sojourn_conformance::{Case, Layer, Options, cases, follow, lead, loopback};
use sojourn_fabric::names::{Conversation, Endpoint, JobKey, Reception};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long one side may come later than the other.
const PATIENCE: Duration = Duration::from_secs(60);

/// Check that a device does what the verbs promise
///
/// Each case is a small program over the device. With --listen on one machine and --connect on
/// another, the two sides of a case run on both.
///
/// A line for each case: ok; n/a with the reason, where the device lacks what it is about; FAIL
/// with what was found. The status is 1 where a case fails. In the end the device's packet number is
/// tried, and the verdict remembered for the jobs of this user.
#[derive(Debug, clap::Args)]
pub(crate) struct SelftestArgs {
    /// The device to check
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    device: Option<String>,
    /// Be the other side for a selftest on another machine: wait for it at this address (host:port)
    #[arg(long, value_name = "ADDR", requires = "key_file", conflicts_with_all = ["connect", "only"])]
    listen: Option<String>,
    /// Run the other side of each case on the machine that listens at this address (host:port)
    #[arg(long, value_name = "ADDR", requires = "key_file")]
    connect: Option<String>,
    /// File with the key that both sides hold, mode 0600; with --listen it is made where there is none
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only list the cases, and what each guards
    #[arg(long)]
    list: bool,
    /// Only cases whose name has this in it, or matches it (with *)
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
}

/// Runs the cases.
pub(crate) fn run(args: &SelftestArgs) -> Outcome {
    let chosen = choose::cases(&cases(), args.only.as_deref())?;
    if args.list {
        return print::list(&chosen, args.json);
    }
    let Some(device) = &args.device else {
        return Err(Failure::usage("--device is needed"));
    };
    match (&args.listen, &args.connect, &args.key_file) {
        (Some(at), _, Some(key)) => serve(device, at, key),
        (_, Some(to), Some(key_file)) => {
            let key = JobKey::read(key_file).doing("--key-file")?;
            let to = Endpoint::Tcp(tcp("--connect", to)?);
            let talk =
                Conversation::connect(&to, &key, Instant::now() + PATIENCE).doing("--connect")?;
            let mut wire = Wire::over(talk);
            let report = all(args, device, &chosen, Some((&mut wire, key_file)))?;
            wire.ask(&Question::End)?;
            report.finish()
        }
        _ => all(args, device, &chosen, None)?.finish(),
    }
}

/// What the cases run over.
const LAYERS: [Layer; 2] = [Layer::Raw, Layer::Virtual];

/// Runs the cases on every layer that is asked for, against the other side where there is one.
fn all(
    args: &SelftestArgs,
    device: &str,
    cases: &[Case],
    mut other: Option<(&mut Wire, &Path)>,
) -> Outcome<print::Report> {
    let options = Options::default();
    let place = other.as_ref().map(|(wire, _)| wire.place());
    let mut report = print::Report::new(device, place, args.json);
    for layer in LAYERS {
        let progress = |case: &sojourn_conformance::Report| report.case(layer, case);
        let summary = match &mut other {
            None => {
                let [a, b] = Side::both(device, layer)?;
                loopback(a.node(), b.node(), cases, &options, progress)
            }
            Some((wire, key_file)) => {
                let directory = wire.begin(layer)?;
                let side = Side::connecting(device, layer, directory.as_deref(), key_file)?;
                lead(wire.clone(), side.node(), cases, &options, progress)
            }
        };
        let stopped = summary.stopped.is_some();
        report.layer(layer, summary);
        if stopped {
            return Ok(report);
        }
    }
    // A job then need not try it any more. Whether it is live fails nothing: a re-map asks.
    if args.only.is_none() {
        let tried = sojourn::device::open(device)
            .and_then(|device| sojourn::trial::try_anew(&device))
            .inspect_err(|error| tracing::warn!("{error}"));
        report.packet_number(tried.ok().as_ref());
    }
    Ok(report)
}

/// Is side B for whoever connects, until it says that it is done.
fn serve(device: &str, at: &str, key_file: &Path) -> Outcome {
    if !key_file.exists() {
        JobKey::generate().and_then(|key| key.write(key_file)).doing("--key-file")?;
    }
    let key = JobKey::read(key_file).doing("--key-file")?;
    // Before anybody is let in: a device that is not there is told at once.
    sojourn::device::open(device)?;
    let at = tcp("--listen", at)?;
    let reception = Reception::listen(&Endpoint::Tcp(at), &key).doing("--listen")?;
    say(&format!("waiting for the other side at {}\n", reception.endpoint()))?;
    let talk = reception.accept(Instant::now() + PATIENCE).doing("--listen")?;
    let mut wire = Wire::over(talk);
    loop {
        let layer = match wire.question()? {
            Question::End => {
                wire.answer(&Answer::Ended)?;
                return Ok(());
            }
            Question::Begin { version, .. } if version != remote::VERSION => {
                let why = format!("this side is version {}", remote::VERSION);
                wire.answer(&Answer::Refused(why.clone()))?;
                return Err(Failure::new(format!("the other side is version {version}; {why}")));
            }
            Question::Begin { layer, .. } => remote::layer(&layer)?,
        };
        let side = match Side::listening(device, layer, at.ip(), key_file) {
            Ok(side) => side,
            Err(failure) => {
                let why = failure.message.clone().unwrap_or_default();
                wire.answer(&Answer::Refused(why))?;
                return Err(failure);
            }
        };
        wire.answer(&Answer::Ready { directory: side.directory() })?;
        say(&format!("the other side runs the {} cases\n", layer.as_str()))?;
        follow(wire.clone(), side.node(), &cases(), &Options::default())
            .doing("serving the cases")?;
    }
}

/// The address that `option` names. What others are told must be an address that they can reach.
fn tcp(option: &str, at: &str) -> Outcome<SocketAddr> {
    let problem = |what: &str| Failure::new(format!("{option} {at}: {what}"));
    let mut found = at.to_socket_addrs().map_err(|error| {
        problem(&format!("{error}; host:port is needed, such as 10.0.0.1:7000"))
    })?;
    match found.next() {
        Some(address) if address.ip().is_unspecified() => {
            Err(problem("name the address under which the other machine reaches this one"))
        }
        Some(address) => Ok(address),
        None => Err(problem("no such host")),
    }
}
