//! `sojourn snapshots diff`.

use super::place::{Found, Place};
use super::show::no_epoch;
use super::stores::{Held, Stores, first_of_each};
use super::text::percent;
use super::{Failure, Outcome, answer};
use sojourn_snapshot::files::{Diff, compare};
use std::fmt::Write;

/// Show in which chunks two epochs differ, by their checksums
///
/// Of a process in a store these are the epochs of its two slots; in a directory any two.
#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// Count of the one epoch
    #[arg(value_name = "FROM")]
    from: u64,
    /// Count of the other
    #[arg(value_name = "TO")]
    to: u64,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Compares.
pub(super) fn run(args: &DiffArgs) -> Outcome {
    match args.place.find()? {
        Found::Stores(stores) => {
            let diff = in_stores(args, &stores)?;
            answer(args.json, &diff, || text(&diff))?;
            stores.all_there()
        }
        Found::Files(jobs) => {
            let directory = Place::one(jobs)?;
            let there = directory.epochs()?;
            if let Some(missing) = [args.from, args.to].iter().find(|epoch| !there.contains(epoch))
            {
                return Err(no_epoch(&directory, *missing));
            }
            let diff = directory.diff(args.from, args.to)?;
            answer(args.json, &diff, || text(&diff))
        }
    }
}

fn in_stores(args: &DiffArgs, stores: &Stores) -> Outcome<Diff> {
    let old = first_of_each(stores.of(Some(args.from))?);
    let new = first_of_each(stores.of(Some(args.to))?);
    let number = |held: &Held| u32::try_from(held.member.0).unwrap_or(u32::MAX);
    let open = |held: &Held| {
        stores
            .open(held)
            .map_err(|error| Failure::new(format!("{}: {error}", stores.context(held))))
    };
    let mut processes = Vec::new();
    for (member, from) in &old {
        if let Some(to) = new.get(member) {
            processes.push(compare(&open(from)?, &open(to)?));
        }
    }
    Ok(Diff {
        from: args.from,
        to: args.to,
        processes,
        gone: old.iter().filter(|it| !new.contains_key(it.0)).map(|it| number(it.1)).collect(),
        new: new.iter().filter(|it| !old.contains_key(it.0)).map(|it| number(it.1)).collect(),
    })
}

fn text(diff: &Diff) -> String {
    let mut text = String::new();
    let size =
        |bytes: Option<u64>| bytes.map_or("none".to_owned(), |bytes| format!("{bytes} bytes"));
    for process in &diff.processes {
        let _ = writeln!(
            text,
            "process {}: {} of {} chunks differ ({}){}",
            process.process,
            process.chunks,
            process.of,
            percent(process.chunks, process.of),
            if process.windows { ", and the windows" } else { "" }
        );
        for area in &process.areas {
            let sizes = match area.from_bytes == area.to_bytes {
                true => String::new(),
                false => format!(", {} and {}", size(area.from_bytes), size(area.to_bytes)),
            };
            let _ = writeln!(
                text,
                "  area {:<4} {} chunks in {} runs{sizes}",
                area.area,
                area.chunks,
                area.runs.len()
            );
        }
    }
    for (processes, epoch) in [(&diff.gone, diff.from), (&diff.new, diff.to)] {
        for process in processes {
            let _ = writeln!(text, "process {process} is in epoch {epoch} alone");
        }
    }
    text
}
