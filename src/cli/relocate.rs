//! `sojourn relocate`: takes a running process of a job to another device.

use super::{Failure, Outcome, While, print};
use serde::Serialize;
use sojourn_fabric::names::env::JobEnvironment;
use sojourn_fabric::names::{MAX_DEVICE_NAME, Relocated};
use sojourn_fabric::virt::Process;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, Instant};

/// Longer than a process tries to be alone in moving.
const PATIENCE: Duration = Duration::from_secs(45);

/// Take a running process of a job to another device, while it and its peers go on
///
/// The process is one that `sojourn run` started on this machine, linked with Sojourn or preloaded;
/// it notices nothing. Where it cannot go there, it goes on where it was.
#[derive(Debug, clap::Args)]
pub(crate) struct RelocateArgs {
    /// The process
    #[arg(long, value_name = "PID")]
    pid: u32,
    /// Where to
    #[arg(value_name = "DEVICE")]
    device: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    from: &'a str,
    to: &'a str,
    queue_pairs: u32,
    peers: u32,
    blackout_seconds: f64,
    /// Name and seconds.
    phases: Vec<(&'a str, f64)>,
}

/// Gives the order, and says what came of it.
pub(crate) fn run(args: &RelocateArgs) -> Outcome {
    if args.device.is_empty() || args.device.len() > MAX_DEVICE_NAME {
        return Err(Failure::usage(format!(
            "device {:?}: a name has between 1 and {MAX_DEVICE_NAME} bytes",
            args.device
        )));
    }
    let told = environment_of(args.pid)?;
    let mut config = told.service().doing("joining the job")?;
    // Under a number of our own.
    config.wanted = None;
    let us = Process::start(config)?;
    let peer = JobEnvironment::process_of(told.rank);
    let moves = us.order(peer, &args.device, Instant::now() + PATIENCE)?;
    let shown: Vec<_> = moves.iter().map(show).collect();
    if args.json {
        return print(&format!("{}\n", serde_json::to_string(&shown).doing("writing JSON")?));
    }
    if shown.is_empty() {
        return print(&format!("process {} was on {} already\n", args.pid, args.device));
    }
    for moved in &shown {
        let phases: Vec<_> =
            moved.phases.iter().map(|(name, took)| format!("{name} {:.2}", took * 1e3)).collect();
        print(&format!(
            "{} to {}: {} queue pairs, {} peers, blackout {:.2} ms ({} ms)\n",
            moved.from,
            moved.to,
            moved.queue_pairs,
            moved.peers,
            moved.blackout_seconds * 1e3,
            phases.join(", ")
        ))?;
    }
    Ok(())
}

fn show(moved: &Relocated) -> Shown<'_> {
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    Shown {
        from: &moved.from,
        to: &moved.to,
        queue_pairs: moved.queue_pairs,
        peers: moved.peers,
        blackout_seconds: seconds(moved.blackout),
        phases: moved.phases.iter().map(|(name, took)| (name.as_str(), seconds(*took))).collect(),
    }
}

/// What a launcher told a process.
fn environment_of(pid: u32) -> Outcome<JobEnvironment> {
    let path = format!("/proc/{pid}/environ");
    let bytes = std::fs::read(&path).doing(format_args!("reading {path}"))?;
    let pairs = bytes.split(|byte| *byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..at].to_vec(), OsString::from_vec(pair[at + 1..].to_vec())))
    });
    let variables: HashMap<Vec<u8>, OsString> = pairs.collect();
    let told = JobEnvironment::read_from(|name| variables.get(name.as_bytes()).cloned())
        .doing(format_args!("the environment of process {pid}"))?;
    told.ok_or_else(|| {
        Failure::new(format!("process {pid} is of no job: start programs with `sojourn run`"))
    })
}
