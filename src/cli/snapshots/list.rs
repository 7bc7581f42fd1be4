//! `sojourn snapshots list`.

use super::place::{Found, Place, name};
use super::stores::{Lost, Stores, is_process};
use super::text::{ago, bytes, percent};
use super::{Outcome, answer};
use serde::Serialize;
use sojourn_snapshot::epoch::Epoch;
use sojourn_snapshot::files::{Directory, Listed};
use sojourn_snapshot::parity::share_of;
use std::fmt::Write;

/// List epochs: which processes have them, where each copy is, how large it is, and what is committed
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct InStores {
    stores: Vec<Store>,
    /// Stores that do not answer.
    lost: Vec<Lost>,
    /// The last epoch that is noted as committed; `None` where there is none.
    committed: Option<Number>,
    processes: Vec<Process>,
    /// Parity that images are rebuilt of.
    shares: Vec<Share>,
}

#[derive(Serialize)]
struct Share {
    /// Its number among the members of the job.
    member: u64,
    /// The group of processes that it is of, and its number there.
    group: u32,
    share: usize,
    store: String,
    bytes: u64,
    /// Its store is computing it.
    writing: bool,
    /// The epochs of its slots.
    epochs: Vec<u64>,
}

#[derive(Serialize)]
struct Store {
    name: String,
    at: String,
    domain: String,
    device: String,
    bytes: u64,
    free: u64,
}

/// An epoch.
#[derive(Clone, Copy, Serialize)]
struct Number {
    epoch: u64,
    term: u32,
}

impl From<Epoch> for Number {
    fn from(epoch: Epoch) -> Self {
        Number { epoch: epoch.count(), term: epoch.term().0 }
    }
}

#[derive(Serialize)]
struct Process {
    process: u64,
    epochs: Vec<OfProcess>,
    compartments: Vec<Compartment>,
}

#[derive(Serialize)]
struct OfProcess {
    #[serde(flatten)]
    number: Number,
    /// It is, or was, committed; else it is complete, and nobody has noted more.
    committed: bool,
    copies: Vec<Where>,
}

#[derive(Serialize)]
struct Where {
    store: String,
    at: String,
    slot: String,
}

/// What a store has set aside for a process: two slots.
#[derive(Serialize)]
struct Compartment {
    store: String,
    bytes: u64,
    /// A writer is connected.
    writing: bool,
    /// The life of the process that has asked for it last.
    life: u32,
}

#[derive(Serialize)]
struct InFiles {
    job: String,
    path: std::path::PathBuf,
    epochs: Vec<Listed>,
}

/// Lists.
pub(super) fn run(args: &ListArgs) -> Outcome {
    match args.place.find()? {
        Found::Stores(stores) => {
            let shown = in_stores(&stores);
            answer(args.json, &shown, || stores_text(&shown))?;
            stores.all_there()
        }
        Found::Files(jobs) => {
            let listed = |job: &Directory| {
                let epochs = job.list()?;
                Ok(InFiles { job: name(job), path: job.path().to_owned(), epochs })
            };
            let jobs: Vec<InFiles> = jobs.iter().map(listed).collect::<Outcome<_>>()?;
            answer(args.json, &jobs, || files_text(&jobs))
        }
    }
}

fn in_stores(stores: &Stores) -> InStores {
    let committed = stores.committed();
    let mut processes: Vec<Process> = Vec::new();
    let kept = stores.reached.iter().flat_map(|store| &store.kept).map(|kept| kept.member);
    let members: std::collections::BTreeSet<_> =
        kept.filter(|member| is_process(*member)).collect();
    let held = stores.held();
    for member in members {
        let mut epochs: Vec<OfProcess> = Vec::new();
        for one in held.iter().filter(|held| held.member == member) {
            let number = Number::from(one.epoch);
            let (store, at) = (stores.name(one.store).to_owned(), stores.at(one.store));
            let copy = Where { store, at, slot: format!("{:?}", one.slot) };
            let same =
                |it: &OfProcess| (it.number.epoch, it.number.term) == (number.epoch, number.term);
            match epochs.last_mut() {
                Some(last) if same(last) => last.copies.push(copy),
                _ => {
                    // Beside what is committed lies what was before it, or what is not decided yet.
                    let committed = one.epoch <= committed;
                    epochs.push(OfProcess { number, committed, copies: vec![copy] });
                }
            }
        }
        let compartments = stores.reached.iter().enumerate().flat_map(|(i, store)| {
            let own = store.kept.iter().filter(move |kept| kept.member == member);
            own.map(move |kept| Compartment {
                store: stores.name(i).to_owned(),
                bytes: kept.holding.bytes,
                writing: kept.writing,
                life: kept.holding.incarnation.life(),
            })
        });
        let compartments = compartments.collect();
        processes.push(Process { process: member.0, epochs, compartments });
    }
    let mut shares = Vec::new();
    for (i, store) in stores.reached.iter().enumerate() {
        for kept in &store.kept {
            let Some((group, share)) = share_of(kept.member) else { continue };
            let words = kept.holding.words.into_iter().filter(|epoch| epoch.is_some());
            shares.push(Share {
                member: kept.member.0,
                group,
                share,
                writing: kept.writing,
                store: stores.name(i).to_owned(),
                bytes: kept.holding.bytes,
                epochs: words.map(Epoch::count).collect(),
            });
        }
    }
    let about = |(i, store): (usize, &super::stores::Reached)| {
        let about = store.client.about();
        Store {
            name: about.name.clone(),
            at: stores.at(i),
            domain: about.domain.clone(),
            device: about.device.clone(),
            bytes: about.bytes,
            free: about.free,
        }
    };
    InStores {
        stores: stores.reached.iter().enumerate().map(about).collect(),
        lost: stores.lost.clone(),
        committed: Some(committed).filter(|epoch| epoch.is_some()).map(Number::from),
        processes,
        shares,
    }
}

fn stores_text(shown: &InStores) -> String {
    let mut text = String::new();
    for store in &shown.stores {
        let _ = writeln!(
            text,
            "store {} at {} ({}, domain {}): {} of {} free",
            store.name,
            store.at,
            store.device,
            store.domain,
            bytes(store.free),
            bytes(store.bytes)
        );
    }
    for lost in &shown.lost {
        let _ = writeln!(text, "store at {}: does not answer", lost.at);
    }
    match shown.committed {
        None => text += "no epoch is committed\n",
        Some(last) => {
            let _ = writeln!(text, "committed: epoch {} (term {})", last.epoch, last.term);
        }
    }
    for process in &shown.processes {
        let places: Vec<String> = process
            .compartments
            .iter()
            .map(|it| {
                let writing = if it.writing { ", being written" } else { "" };
                format!("{} in store {}{writing}", bytes(it.bytes), it.store)
            })
            .collect();
        let _ = writeln!(text, "process {}: {}", process.process, places.join("; "));
        for epoch in &process.epochs {
            let copies: Vec<String> =
                epoch.copies.iter().map(|copy| format!("{}/{}", copy.store, copy.slot)).collect();
            let state = if epoch.committed { "committed" } else { "complete" };
            let _ = writeln!(
                text,
                "  epoch {:<6} {state:<9} in {}",
                epoch.number.epoch,
                copies.join(", ")
            );
        }
        if process.epochs.is_empty() {
            text += "  no complete epoch\n";
        }
    }
    for share in &shown.shares {
        let epochs: Vec<String> = share.epochs.iter().map(u64::to_string).collect();
        let epochs = if epochs.is_empty() { "none".to_owned() } else { epochs.join(", ") };
        let _ = writeln!(
            text,
            "parity {} of group {}: {} in store {}, epochs {epochs}",
            share.share,
            share.group,
            bytes(share.bytes),
            share.store
        );
    }
    text
}

fn files_text(jobs: &[InFiles]) -> String {
    let mut text = String::new();
    for job in jobs {
        let _ = writeln!(text, "job {} in {}", job.job, job.path.display());
        for epoch in &job.epochs {
            if let Some(why) = &epoch.damaged {
                let _ = writeln!(text, "  epoch {:<6} damaged: {why}", epoch.epoch);
                continue;
            }
            let kind = epoch.base.map_or("full".to_owned(), |base| format!("on {base}"));
            let _ = writeln!(
                text,
                "  epoch {:<6} {kind:<8} {} processes, {} of memory, {} stored ({} of the chunks, {} zero), {}",
                epoch.epoch,
                epoch.processes,
                bytes(epoch.image_bytes),
                bytes(epoch.file_bytes),
                percent(epoch.stored_chunks, epoch.chunks),
                percent(epoch.zero_chunks, epoch.chunks),
                ago(epoch.paused_at)
            );
        }
        if job.epochs.is_empty() {
            text += "  no epoch\n";
        }
    }
    text
}
