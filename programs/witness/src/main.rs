//! Checks every message of every kind between all pairs of ranks, while their devices are relocated.
//!
//! ```text
//! sojourn run -n 2 -- witness --messages 1000
//! ```
//!
//! What each side says is a pure function of a seed ([`script`]), so the other knows every byte in
//! advance: nothing is taken on trust, and whatever is lost, repeated, reordered or damaged is
//! reported by the rank that sees it, in one line, with status 1.
//!
//! | what | promise that it guards |
//! | --- | --- |
//! | [`sender`] | each request completes once, in order, with the signalling that it asked for; READs bring what was there; atomics happen once |
//! | [`receiver`] | each message arrives once, in order, intact (unreliable ones: at most once) |
//! | [`landing`] | a WRITE is never executed again after its effect could be seen |
//! | [`receives`] | each receive completes once, in order |
//!
//! Beside their streams the two sides of a queue pair exchange [`control`] messages; so they end
//! together, on counts that both have confirmed, however slow everything is.

mod control;
mod engine;
mod kind;
mod landing;
mod link;
mod movement;
mod options;
mod payload;
mod plot;
mod receiver;
mod receives;
mod report;
mod ring;
mod run;
mod sabotage;
mod script;
mod sender;
mod setup;

use options::Options;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Exit status of options that make no sense.
const USAGE: u8 = 2;

/// A rank whose connection broke lets another speak first: where that one found something wrong and
/// ended, the launcher ends this one meanwhile.
const AFTER_OTHERS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("witness: {why}");
            return ExitCode::from(USAGE);
        }
    };
    log();
    // A thread that is no more would leave the others waiting.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("witness: {info}");
        std::process::exit(1);
    }));
    if let Err(why) = run::run(&options) {
        if why.broken {
            std::thread::sleep(AFTER_OTHERS);
        }
        eprintln!("witness: {}", why.line);
        // Threads may be in the middle of anything.
        std::process::exit(1);
    }
    ExitCode::SUCCESS
}

/// What the library says, as `SOJOURN_LOG` asks for it.
fn log() {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::ERROR.into())
        .with_env_var("SOJOURN_LOG")
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // A second subscriber in one process is refused; there is only this one.
    let _ = subscriber.try_init();
}
