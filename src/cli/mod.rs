//! The command: arguments in, exit status out.
//!
//! Each command is a file of its own, with its arguments and one function. An error is one
//! sentence on stderr, after the name of the command; it ends with status 1, or 2 where the
//! arguments make no sense. What the libraries have to say goes to stderr too, as much of it as
//! `SOJOURN_LOG` asks for.

mod demo;
mod devices;
mod failure;
mod heat;
mod packet_number;
mod relocate;
mod run;
mod selftest;
mod snapshots;
mod store;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use failure::{Failure, Outcome, While};
use std::io::Write;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// What is logged, as directives of tracing-subscriber: `debug`, `sojourn_fabric=trace`.
const LOG: &str = "SOJOURN_LOG";

/// Checkpoint, recover and move RDMA programs while they run
#[derive(Debug, Parser)]
#[command(name = "sojourn", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::DemoArgs),
    Devices(devices::DevicesArgs),
    Heat(heat::HeatArgs),
    Relocate(relocate::RelocateArgs),
    Run(run::RunArgs),
    Selftest(selftest::SelftestArgs),
    Snapshots(snapshots::SnapshotsArgs),
    Store(store::StoreArgs),
}

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    log();
    let outcome = match Cli::try_parse() {
        Ok(cli) => match &cli.command {
            Command::Demo(args) => demo::run(args),
            Command::Devices(args) => devices::run(args),
            Command::Heat(args) => heat::run(args),
            Command::Relocate(args) => relocate::run(args),
            Command::Run(args) => run::run(args),
            Command::Selftest(args) => selftest::run(args),
            Command::Snapshots(args) => snapshots::run(args),
            Command::Store(args) => store::run(args),
        },
        Err(error) => refuse(&error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message {
                eprintln!("sojourn: {message}");
            }
            ExitCode::from(failure.status)
        }
    }
}

/// What clap says, in the form of our own errors; its help is no error.
fn refuse(error: &clap::Error) -> Outcome {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&text),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Err(Failure::usage(text)),
        _ => Err(Failure::usage(text.trim_start_matches("error: ").trim_end())),
    }
}

/// Prints a command's result. A reader that has gone wants no more of it.
fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("writing to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

fn log() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::WARN.into())
        .with_env_var(LOG)
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second subscriber in one process is refused; there is only this one.
    let _ = subscriber.try_init();
}
