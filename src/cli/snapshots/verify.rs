//! `sojourn snapshots verify`.

use super::place::{self, Place};
use super::show::no_epoch;
use super::stores::{Held, Stores};
use super::text::{bar, bytes, watch};
use super::{Failure, Outcome, answer};
use indicatif::ProgressBar;
use serde::Serialize;
use sojourn_snapshot::PAGE;
use sojourn_snapshot::epoch::Epoch;
use sojourn_snapshot::files::{Directory, Image, Verified};
use sojourn_snapshot::parity::share_of;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Chunks that are read at once.
const STEP: usize = 256;

/// Check every checksum of epochs: of stores by RDMA READ, of a directory by reading all files
///
/// It ends with status 1 where something is wrong. What a running job overwrites meanwhile is left out.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Their counts (default: all that there are)
    #[arg(value_name = "EPOCH")]
    epochs: Vec<u64>,
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct InStores {
    copies: Vec<OfCopy>,
    shares: Vec<OfShare>,
    /// Bytes that were checked, of copies of memory and of parity.
    bytes: u64,
}

#[derive(Serialize)]
struct OfCopy {
    process: u64,
    #[serde(flatten)]
    place: Where,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize)]
struct OfShare {
    group: u32,
    share: usize,
    /// The processes whose images are rebuilt of it, where it is sound.
    processes: Vec<u32>,
    #[serde(flatten)]
    place: Where,
    #[serde(flatten)]
    found: Found,
}

#[derive(Serialize)]
struct Where {
    epoch: u64,
    store: String,
    at: String,
    slot: String,
}

#[derive(Serialize)]
struct Found {
    outcome: Checked,
    /// What is wrong.
    why: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Checked {
    Sound,
    Damaged,
    /// Begun anew before all was read.
    Overwritten,
}

/// Checks.
pub(super) fn run(args: &VerifyArgs) -> Outcome {
    let bar = bar(args.json)?;
    let problems = match args.place.find()? {
        place::Found::Stores(mut stores) => {
            let found = in_stores(&args.epochs, &mut stores, &bar)?;
            bar.finish_and_clear();
            answer(args.json, &found, || stores_text(&found))?;
            stores.all_there()?;
            found.all().filter(|found| found.outcome == Checked::Damaged).count()
        }
        place::Found::Files(jobs) => {
            let directory = Place::one(jobs)?;
            let found = in_files(&args.epochs, &directory, &bar)?;
            bar.finish_and_clear();
            answer(args.json, &found, || files_text(&found))?;
            found.iter().map(|epoch| epoch.problems.len()).sum()
        }
    };
    match problems {
        0 => Ok(()),
        1 => Err(Failure::new("verify: 1 problem was found")),
        many => Err(Failure::new(format!("verify: {many} problems were found"))),
    }
}

fn in_stores(epochs: &[u64], stores: &mut Stores, bar: &ProgressBar) -> Outcome<InStores> {
    let held = match epochs {
        [] => stores.held(),
        some => {
            let all = some.iter().map(|epoch| stores.of(Some(*epoch)));
            all.collect::<Outcome<Vec<_>>>()?.into_iter().flatten().collect()
        }
    };
    let mut shares = stores.shares();
    if !epochs.is_empty() {
        let wanted: BTreeSet<Epoch> = held.iter().map(|held| held.epoch).collect();
        shares.retain(|share| wanted.contains(&share.epoch));
    }
    let mut all = InStores::default();
    for one in &held {
        bar.set_message(stores.context(one));
        let read = check(stores, one, bar);
        all.bytes += read.as_ref().copied().unwrap_or_default();
        let (place, found) = (where_is(stores, one), judge(stores, one, read));
        all.copies.push(OfCopy { process: one.member.0, place, found });
    }
    for one in &shares {
        let Some((group, share)) = share_of(one.member) else { continue };
        bar.set_message(stores.context(one));
        let read = stores.check_share(one, bar);
        let sound = read.as_ref().ok();
        all.bytes += sound.map_or(0, |sound| sound.bytes);
        let processes = sound.map(|sound| sound.processes.iter().map(|it| it.0).collect());
        let processes = processes.unwrap_or_default();
        let (place, found) = (where_is(stores, one), judge(stores, one, read));
        all.shares.push(OfShare { group, share, processes, place, found });
    }
    Ok(all)
}

fn where_is(stores: &Stores, held: &Held) -> Where {
    let (store, at) = (stores.name(held.store).to_owned(), stores.at(held.store));
    Where { epoch: held.epoch.count(), store, at, slot: format!("{:?}", held.slot) }
}

/// What is to be said of something that was read.
fn judge<T>(stores: &mut Stores, held: &Held, read: sojourn::Result<T>) -> Found {
    match read {
        Ok(_) => Found { outcome: Checked::Sound, why: None },
        Err(_) if stores.is_gone(held) => Found { outcome: Checked::Overwritten, why: None },
        Err(error) => Found { outcome: Checked::Damaged, why: Some(error.to_string()) },
    }
}

impl InStores {
    fn all(&self) -> impl Iterator<Item = &Found> {
        let copies = self.copies.iter().map(|copy| &copy.found);
        copies.chain(self.shares.iter().map(|share| &share.found))
    }
}

/// Reads all of a copy. Returns its bytes.
fn check(stores: &Stores, held: &Held, bar: &ProgressBar) -> sojourn::Result<u64> {
    let mut copy = stores.open(held)?;
    let image: &mut dyn Image = &mut copy;
    let layout = image.layout().clone();
    let total = layout.bytes() as u64;
    bar.set_length(total.max(1));
    bar.set_position(0);
    let mut room = vec![0; STEP.min(layout.chunks()) * PAGE];
    for (index, area) in layout.areas().iter().enumerate() {
        let own = layout.chunks_of(index);
        for first in own.clone().step_by(STEP) {
            let last = own.end.min(first + STEP);
            let bytes = area.bytes.min((last - own.start) * PAGE) - (first - own.start) * PAGE;
            image.read(first..last, &mut room[..bytes])?;
            bar.inc(bytes as u64);
        }
    }
    image.confirm()?;
    Ok(total)
}

fn in_files(epochs: &[u64], directory: &Directory, bar: &ProgressBar) -> Outcome<Vec<Verified>> {
    let there = directory.epochs()?;
    if let Some(missing) = epochs.iter().find(|epoch| !there.contains(epoch)) {
        return Err(no_epoch(directory, *missing));
    }
    let epochs = if epochs.is_empty() { &there } else { epochs };
    let all = epochs.iter().map(|epoch| Ok(directory.verify(*epoch, &mut watch(bar))?));
    all.collect()
}

fn stores_text(found: &InStores) -> String {
    let mut text = String::new();
    let line = |whose: String, place: &Where, found: &Found| {
        let state = match found.outcome {
            Checked::Sound => "sound".to_owned(),
            Checked::Overwritten => "overwritten meanwhile".to_owned(),
            Checked::Damaged => format!("damaged: {}", found.why.as_deref().unwrap_or_default()),
        };
        let Where { epoch, store, slot, .. } = place;
        format!("{whose} epoch {epoch} in store {store}, slot {slot}: {state}\n")
    };
    for OfCopy { process, place, found } in &found.copies {
        text += &line(format!("process {process}"), place, found);
    }
    for OfShare { group, share, place, found, .. } in &found.shares {
        text += &line(format!("parity {share} of group {group}"), place, found);
    }
    let shares = match found.shares.len() {
        0 => String::new(),
        many => format!("{many} shares of parity, "),
    };
    let _ = writeln!(text, "{} copies, {shares}{} checked", found.copies.len(), bytes(found.bytes));
    text
}

fn files_text(found: &[Verified]) -> String {
    let mut text = String::new();
    for epoch in found {
        let state = if epoch.is_sound() { "sound" } else { "damaged" };
        let _ = writeln!(
            text,
            "epoch {}: {state}; {} files, {} read, {} of memory",
            epoch.epoch,
            epoch.files,
            bytes(epoch.file_bytes),
            bytes(epoch.image_bytes)
        );
        for problem in &epoch.problems {
            let _ = writeln!(text, "  {}", problem.what);
        }
    }
    if found.is_empty() {
        text += "no epoch\n";
    }
    text
}
