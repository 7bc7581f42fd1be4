//! `sojourn snapshots`: what there is of epochs, in stores and in directories.
//!
//! | file | what |
//! | --- | --- |
//! | `place` | which stores, or which directory |
//! | `stores` | what stores have, and reading it by RDMA READ |
//! | `list`, `show`, `verify`, `diff`, `prune` | one each: arguments, then stores, then directories |
//! | `text` | sizes, shares and ages for people; the progress bar |
//!
//! A running job may begin a slot anew at any time. What was read of it then is given up, and is no damage.

mod diff;
mod list;
mod place;
mod prune;
mod show;
mod stores;
mod text;
mod verify;

use super::{Failure, Outcome, While, print};
use clap::Subcommand;
use serde::Serialize;

/// Look at snapshots in the memory of stores, or in a directory
///
/// Stores are named by --store, or by SOJOURN_STORES as for `sojourn run`; their key is that of --key-file or
/// SOJOURN_STORE_KEY_FILE. A directory (--dir) is what SOJOURN_FLUSH_DIR was for a job. Epochs are told by their count.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct SnapshotsArgs {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "Examples:
  sojourn snapshots list --store unix:/run/user/1000/a,tcp:10.0.0.2:7400 --key-file key
  sojourn snapshots verify
  sojourn snapshots diff 12 13
  sojourn snapshots show --dir /scratch/heat 40
  sojourn snapshots prune --dir /scratch/heat --keep 4 --every 100 --dry-run";

#[derive(Debug, Subcommand)]
enum What {
    List(list::ListArgs),
    Show(show::ShowArgs),
    Verify(verify::VerifyArgs),
    Diff(diff::DiffArgs),
    Prune(prune::PruneArgs),
}

/// Runs what was asked for.
pub(crate) fn run(args: &SnapshotsArgs) -> Outcome {
    match &args.what {
        What::List(args) => list::run(args),
        What::Show(args) => show::run(args),
        What::Verify(args) => verify::run(args),
        What::Diff(args) => diff::run(args),
        What::Prune(args) => prune::run(args),
    }
}

/// Prints the one or the other form of an answer.
fn answer(json: bool, value: &impl Serialize, text: impl FnOnce() -> String) -> Outcome {
    if json {
        print(&format!("{}\n", serde_json::to_string_pretty(value).doing("writing JSON")?))
    } else {
        print(&text())
    }
}
