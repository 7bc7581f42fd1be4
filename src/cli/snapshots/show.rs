//! `sojourn snapshots show`.

use super::place::{Found, Place};
use super::stores::{Held, Stores};
use super::text::{ago, bytes, percent};
use super::{Failure, Outcome, answer};
use serde::Serialize;
use sojourn_snapshot::epoch::Epoch;
use sojourn_snapshot::files::{Image, Run, Shown};
use sojourn_snapshot::parity::share_of;
use std::fmt::Write;

/// How often it is looked again where the last epoch was overwritten meanwhile.
const LOOKS: usize = 3;

/// Show an epoch: areas of memory, sizes, and which part of them changed in it
#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// Its count (default: the last committed one)
    #[arg(value_name = "EPOCH")]
    epoch: Option<u64>,
    /// One process alone
    #[arg(long, value_name = "N")]
    process: Option<u32>,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct InStores {
    epoch: u64,
    term: u32,
    committed: bool,
    copies: Vec<OfCopy>,
    /// Parity that images of this epoch are rebuilt of.
    shares: Vec<Share>,
}

#[derive(Serialize)]
struct Share {
    group: u32,
    share: usize,
    store: String,
    at: String,
    slot: String,
}

#[derive(Serialize)]
struct OfCopy {
    process: u64,
    store: String,
    at: String,
    slot: String,
    life: u32,
    paused_at: u64,
    windows: u64,
    #[serde(flatten)]
    sum: Sum,
    areas: Vec<OfArea>,
}

/// Of an area, or of all.
#[derive(Clone, Copy, Default, Serialize)]
struct Sum {
    bytes: u64,
    chunks: u64,
    /// Chunks that changed in this epoch.
    changed_chunks: u64,
    zero_chunks: u64,
}

#[derive(Serialize)]
struct OfArea {
    area: u32,
    addr: u64,
    #[serde(flatten)]
    sum: Sum,
    /// The changed chunks, counted from the area's first.
    extents: Vec<Run>,
}

/// Shows.
pub(super) fn run(args: &ShowArgs) -> Outcome {
    match args.place.find()? {
        Found::Stores(stores) => {
            let shown = in_stores(args, stores)?;
            answer(args.json, &shown.0, || stores_text(&shown.0))?;
            shown.1.all_there()
        }
        Found::Files(jobs) => {
            let directory = Place::one(jobs)?;
            let epoch = match args.epoch {
                Some(epoch) => epoch,
                None => directory.last_restorable()?,
            };
            if !directory.epochs()?.contains(&epoch) {
                return Err(no_epoch(&directory, epoch));
            }
            let mut shown = directory.show(epoch)?;
            if let Some(process) = args.process {
                shown.members.retain(|member| member.process == process);
                if shown.members.is_empty() {
                    return Err(no_process(epoch, process));
                }
            }
            answer(args.json, &shown, || files_text(&shown))
        }
    }
}

/// That a directory has no such epoch.
pub(super) fn no_epoch(directory: &sojourn_snapshot::files::Directory, epoch: u64) -> Failure {
    let there = directory.epochs().unwrap_or_default();
    let there: Vec<String> = there.iter().map(u64::to_string).collect();
    let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    let path = directory.path().display();
    Failure::new(format!("{path} has no epoch {epoch}: it has {there}"))
}

fn no_process(epoch: u64, process: u32) -> Failure {
    Failure::new(format!("epoch {epoch} has no process {process}"))
}

fn in_stores(args: &ShowArgs, mut stores: Stores) -> Outcome<(InStores, Stores)> {
    let mut looks = 1;
    loop {
        match copies(args, &mut stores) {
            Ok(shown) => return Ok((shown, stores)),
            // The last one may be another by now.
            Err(Trouble::Gone(_)) if args.epoch.is_none() && looks < LOOKS => {
                let Found::Stores(again) = args.place.find()? else { break };
                stores = again;
                looks += 1;
            }
            Err(Trouble::Gone(failure) | Trouble::Failed(failure)) => return Err(failure),
        }
    }
    Err(Failure::new("the stores are gone"))
}

enum Trouble {
    /// A slot was begun anew meanwhile.
    Gone(Failure),
    Failed(Failure),
}

fn copies(args: &ShowArgs, stores: &mut Stores) -> Result<InStores, Trouble> {
    let mut held = stores.of(args.epoch).map_err(Trouble::Failed)?;
    let epoch = held.first().map_or(Epoch::NONE, |held| held.epoch);
    if let Some(process) = args.process {
        held.retain(|held| held.member.0 == u64::from(process));
        if held.is_empty() {
            return Err(Trouble::Failed(no_process(epoch.count(), process)));
        }
    }
    let mut copies = Vec::new();
    for one in &held {
        match stores.open(one) {
            Ok(copy) => copies.push(shown(stores, one, &copy)),
            Err(error) => {
                let gone = stores.is_gone(one);
                let failure = Failure::new(format!("{}: {error}", stores.context(one)));
                return Err(if gone { Trouble::Gone(failure) } else { Trouble::Failed(failure) });
            }
        }
    }
    let of_epoch = |held: Held| {
        let (group, share) = share_of(held.member)?;
        let (store, at) = (stores.name(held.store).to_owned(), stores.at(held.store));
        let slot = format!("{:?}", held.slot);
        (held.epoch == epoch).then_some(Share { group, share, store, at, slot })
    };
    let shares = stores.shares().into_iter().filter_map(of_epoch).collect();
    Ok(InStores {
        epoch: epoch.count(),
        term: epoch.term().0,
        committed: epoch <= stores.committed(),
        copies,
        shares,
    })
}

fn shown(stores: &Stores, held: &Held, image: &dyn Image) -> OfCopy {
    let (stamp, layout) = (image.stamp(), image.layout());
    let count = Epoch(stamp.epoch).count();
    let mut all = Sum::default();
    let mut areas = Vec::new();
    for (index, area) in layout.areas().iter().enumerate() {
        let entries = &image.pages().entries()[layout.chunks_of(index)];
        let mut extents: Vec<Run> = Vec::new();
        for (at, _) in (0..).zip(entries).filter(|(_, entry)| entry.changed() == count) {
            match extents.last_mut() {
                Some(run) if run.first + run.chunks == at => run.chunks += 1,
                _ => extents.push(Run { first: at, chunks: 1 }),
            }
        }
        let sum = Sum {
            bytes: area.bytes as u64,
            chunks: entries.len() as u64,
            changed_chunks: extents.iter().map(|run| run.chunks).sum(),
            zero_chunks: entries.iter().filter(|entry| entry.is_zero()).count() as u64,
        };
        all.bytes += sum.bytes;
        all.chunks += sum.chunks;
        all.changed_chunks += sum.changed_chunks;
        all.zero_chunks += sum.zero_chunks;
        areas.push(OfArea { area: area.id, addr: area.addr as u64, sum, extents });
    }
    OfCopy {
        process: held.member.0,
        store: stores.name(held.store).to_owned(),
        at: stores.at(held.store),
        slot: format!("{:?}", held.slot),
        life: stamp.incarnation.0,
        paused_at: stamp.paused_at,
        windows: image.windows().len() as u64,
        sum: all,
        areas,
    }
}

fn stores_text(shown: &InStores) -> String {
    let state = if shown.committed { "committed" } else { "complete" };
    let mut text = format!("epoch {} (term {}), {state}\n", shown.epoch, shown.term);
    let numbers = |sum: &Sum| {
        format!(
            "{} in {} chunks, {} changed, {} zero",
            bytes(sum.bytes),
            sum.chunks,
            percent(sum.changed_chunks, sum.chunks),
            percent(sum.zero_chunks, sum.chunks)
        )
    };
    for copy in &shown.copies {
        let _ = writeln!(
            text,
            "process {} in store {}, slot {} (life {}, paused {}): {}",
            copy.process,
            copy.store,
            copy.slot,
            copy.life,
            ago(copy.paused_at),
            numbers(&copy.sum)
        );
        for area in &copy.areas {
            let _ = writeln!(
                text,
                "  area {:<4} at {:#x}: {}, {} extents",
                area.area,
                area.addr,
                numbers(&area.sum),
                area.extents.len()
            );
        }
        if copy.windows > 0 {
            let _ = writeln!(text, "  windows: {}", bytes(copy.windows));
        }
    }
    for Share { group, share, store, slot, .. } in &shown.shares {
        let _ = writeln!(text, "parity {share} of group {group} in store {store}, slot {slot}");
    }
    text
}

fn files_text(shown: &Shown) -> String {
    let listed = &shown.listed;
    let kind = match listed.base {
        None => "full".to_owned(),
        Some(base) => format!("on epoch {base}"),
    };
    let mut text = format!(
        "epoch {} (term {}), {kind}, {}: {}\n",
        listed.epoch,
        listed.term,
        ago(listed.paused_at),
        shown.manifest.display()
    );
    for member in &shown.members {
        let all: u64 = member.areas.iter().map(|area| area.bytes).sum();
        let _ = writeln!(
            text,
            "process {} (life {}): {} in {} chunks, {} stored, {} zero; {} in {}",
            member.process,
            member.incarnation,
            bytes(all),
            member.chunks,
            percent(member.stored_chunks, member.chunks),
            percent(member.zero_chunks, member.chunks),
            bytes(member.file_bytes),
            member.files.first().map(|path| path.display().to_string()).unwrap_or_default()
        );
        for area in &member.areas {
            let _ = writeln!(text, "  area {:<4} {}", area.id, bytes(area.bytes));
        }
        for extents in &member.extents {
            let _ = writeln!(
                text,
                "  {} extents {}: {} in {}",
                extents.extents,
                format!("{:?}", extents.codec).to_lowercase(),
                bytes(extents.bytes),
                bytes(extents.stored)
            );
        }
        if member.windows > 0 {
            let _ = writeln!(text, "  windows: {}", bytes(member.windows));
        }
        if member.epochs.len() > 1 {
            let chain: Vec<String> = member.epochs.iter().map(u64::to_string).collect();
            let _ = writeln!(text, "  restored from epochs {}", chain.join(", "));
        }
    }
    text
}
