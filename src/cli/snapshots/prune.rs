//! `sojourn snapshots prune`.

use super::place::{Found, Place};
use super::stores::Stores;
use super::text::{bar, bytes, watch};
use super::{Failure, Outcome, answer};
use serde::Serialize;
use sojourn_snapshot::epoch::{Answer, Member, Request};
use sojourn_snapshot::files::{Keep, Pruned};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How long a store may take to shut the door of who wrote.
const FENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(2);

/// Remove epochs that need not be kept
///
/// In a directory: all but the last ones and what they stand on (--keep, --every). In stores: everything of
/// processes that are of no use any more (--process), which no writer may be connected for; that is for good,
/// and asks for --yes.
#[derive(Debug, clap::Args)]
pub(super) struct PruneArgs {
    /// Keep so many of the last epochs of a directory (default: 4)
    #[arg(long, value_name = "N", requires = "dir", value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
    /// And those whose count is a multiple of this
    #[arg(long, value_name = "K", requires = "dir", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// Processes whose epochs the stores may forget
    #[arg(long, value_name = "N", value_delimiter = ',', conflicts_with = "dir")]
    process: Vec<u64>,
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove from stores without further question
    #[arg(long, conflicts_with_all = ["dir", "dry_run"])]
    yes: bool,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct InFiles {
    dry_run: bool,
    #[serde(flatten)]
    pruned: Pruned,
}

#[derive(Serialize)]
struct InStores {
    dry_run: bool,
    released: Vec<Released>,
}

#[derive(Serialize)]
struct Released {
    process: u64,
    store: String,
    bytes: u64,
    epochs: Vec<u64>,
}

/// Prunes.
pub(super) fn run(args: &PruneArgs) -> Outcome {
    if !args.place.is_dir() && args.process.is_empty() {
        return Err(Failure::usage(
            "stores keep the last epochs of each process by themselves: name processes that are of no use any \
             more by --process, or a directory by --dir",
        ));
    }
    match args.place.find()? {
        Found::Stores(mut stores) => {
            let released = release(args, &mut stores)?;
            let shown = InStores { dry_run: args.dry_run, released };
            answer(args.json, &shown, || stores_text(&shown))?;
            stores.all_there()
        }
        Found::Files(jobs) => {
            let directory = Place::one(jobs)?;
            let last = args.keep.map_or(Keep::default().last, |keep| keep as usize);
            let keep = Keep { last, every: args.every };
            let bar = bar(args.json)?;
            let pruned = directory.prune(&keep, args.dry_run, &mut watch(&bar))?;
            bar.finish_and_clear();
            let shown = InFiles { dry_run: args.dry_run, pruned };
            answer(args.json, &shown, || files_text(&shown))
        }
    }
}

fn release(args: &PruneArgs, stores: &mut Stores) -> Outcome<Vec<Released>> {
    let mut released = Vec::new();
    for process in &args.process {
        let before = released.len();
        for (i, store) in stores.reached.iter().enumerate() {
            for kept in store.kept.iter().filter(|kept| kept.member.0 == *process) {
                let store = stores.name(i).to_owned();
                if kept.writing {
                    return Err(Failure::new(format!(
                        "process {process} writes epochs to store {store}: end it first"
                    )));
                }
                let words = kept.holding.words.into_iter().filter(|epoch| epoch.is_some());
                let epochs = words.map(|epoch| epoch.count()).collect();
                let bytes = kept.holding.bytes;
                released.push(Released { process: *process, store, bytes, epochs });
            }
        }
        if released.len() == before {
            return Err(Failure::new(format!("the stores have nothing of process {process}")));
        }
    }
    if args.dry_run {
        return Ok(released);
    }
    if !args.yes {
        let all: u64 = released.iter().map(|it| it.bytes).sum();
        return Err(Failure::usage(format!(
            "{} in {} compartments would be gone for good: say --yes, or --dry-run to see them",
            bytes(all),
            released.len()
        )));
    }
    for store in &mut stores.reached {
        for kept in store.kept.clone() {
            if args.process.contains(&kept.member.0) {
                let request = Request::Release { incarnation: kept.holding.incarnation };
                ask(&mut store.client, kept.member, request)?;
            }
        }
    }
    Ok(released)
}

fn ask(client: &mut sojourn_snapshot::store::Client, member: Member, request: Request) -> Outcome {
    let until = Instant::now() + FENCE;
    let name = client.about().name.clone();
    loop {
        match client.request(member, request)? {
            Answer::Released => return Ok(()),
            Answer::Wait if Instant::now() < until => std::thread::sleep(AGAIN),
            Answer::Wait => {
                return Err(Failure::new(format!(
                    "store {name} did not let go of process {member} within {} s",
                    FENCE.as_secs()
                )));
            }
            Answer::Stale(_) => {
                return Err(Failure::new(format!(
                    "a new life of process {member} has come to store {name} meanwhile"
                )));
            }
            other => {
                return Err(Failure::new(format!(
                    "store {name} keeps process {member}: it answers {other:?}"
                )));
            }
        }
    }
}

fn stores_text(shown: &InStores) -> String {
    let word = if shown.dry_run { "would release" } else { "released" };
    let mut text = String::new();
    for one in &shown.released {
        let epochs: Vec<String> = one.epochs.iter().map(u64::to_string).collect();
        let epochs = if epochs.is_empty() { "none".to_owned() } else { epochs.join(", ") };
        let _ = writeln!(
            text,
            "{word} process {} in store {}: {}, epochs {epochs}",
            one.process,
            one.store,
            bytes(one.bytes)
        );
    }
    text
}

fn files_text(shown: &InFiles) -> String {
    let pruned = &shown.pruned;
    let list = |epochs: &[u64]| {
        let all: Vec<String> = epochs.iter().map(u64::to_string).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let word = if shown.dry_run { "would remove" } else { "removed" };
    let mut text = format!(
        "{word} epochs {} ({})\nkept {}\n",
        list(&pruned.removed),
        bytes(pruned.bytes),
        list(&pruned.kept)
    );
    if !pruned.needed.is_empty() {
        let _ = writeln!(text, "needed by these {}", list(&pruned.needed));
    }
    for (epoch, why) in &pruned.damaged {
        let _ = writeln!(text, "left, since it is damaged: epoch {epoch}: {why}");
    }
    text
}
