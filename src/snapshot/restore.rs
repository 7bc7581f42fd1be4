//! Which epoch the ranks go back to together, and reading it.
//!
//! Every rank asks the stores what they hold of it, with a claim that keeps what older lives have under way
//! from landing. Then all tell each other what they have heard, and each runs the same [`Recovery`] on the same
//! facts; so all come to the same epoch without anybody who decides. A rank reads its own memory alone, and
//! tells the others how that went.
//!
//! Rank 0 tells what is in files, too. What is gone back to is the last epoch of all: one that is in files only where
//! the stores can restore none that is later.

use super::flush::{self, Saved};
use super::options::{JOB_NAME, Options};
use crate::{Error, Job, Result};
use sojourn_snapshot::epoch::{
    Answer, Epoch, Found, Holding, Incarnation, Member, Origin, Recovery, RecoveryLimits, Request,
    Scope, Step, StoreId,
};
use sojourn_snapshot::restore::Copy;
use sojourn_snapshot::session::{Restored, StoreAt};
use sojourn_snapshot::store::Client;
use sojourn_snapshot::{Layout, image};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long a store may take to be connected to. It lives, or is taken for dead.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a store may fence an older life of a process.
const FENCE: Duration = Duration::from_secs(10);
/// Between asking again where it has not done that yet.
const AGAIN: Duration = Duration::from_millis(1);

/// What one rank has heard from each store; `None` where that does not answer.
type Heard = Vec<Option<Option<Holding>>>;

/// What a rank tells the others: the last epoch that it knows to be committed, what it has heard, and, of rank 0, the
/// epochs in files, the last first, with what is wrong with one that is not among them; or why it cannot look.
type Told = (Epoch, Heard, std::result::Result<(Vec<Epoch>, Option<String>), String>);

/// Which member a rank is.
pub(super) fn member(rank: u32) -> Member {
    Member(u64::from(Job::process_of(rank).0))
}

/// The stores as sessions know them: numbered in the order in which all ranks are told of them.
pub(super) fn stores(options: &Options) -> Vec<StoreAt> {
    let numbered = (1..).zip(&options.stores);
    numbered.map(|(id, store)| StoreAt { id: StoreId(id), at: store.at.clone() }).collect()
}

/// What the ranks have come to.
pub(super) struct Back {
    /// The epoch that memory is of; `None` where there is nothing to go back to, and the job begins.
    pub(super) epoch: Option<Epoch>,
    /// Where this rank's came from, unless that was a file.
    pub(super) restored: Option<Restored>,
    /// The life that this rank has from here on, which is all ranks' own: later than all before.
    pub(super) life: u32,
}

/// Goes back to the last epoch, all ranks together. `before` is the last life of this process, and `known` the last
/// epoch that it knows to be committed; `name` is new each time.
///
/// # Safety
/// The areas of `layout` are mapped, writable, and used by nobody else until this returns.
///
/// # Errors
/// `ENODATA` where an epoch was committed, and cannot be read any more: the message says what is missing. `EINVAL`
/// where the epoch is of other areas.
pub(super) unsafe fn restore(
    job: &Job,
    options: &Options,
    device: &str,
    layout: &Layout,
    before: u32,
    known: Epoch,
    name: &str,
) -> Result<Back> {
    let stores = stores(options);
    let own = member(job.rank());
    let mut clients: Vec<Option<Client>> =
        stores.iter().map(|store| connect(options, store)).collect();
    let members: Vec<Member> = (0..job.size()).map(member).collect();
    // Of all that run at the same time one looks, so that all go by the same.
    let saved = match job.rank() {
        0 => Saved::look(options, &members).map_err(|error| error.to_string()),
        _ => Ok(Saved::default()),
    };
    let saved_life = saved.iter().flat_map(|saved| &saved.epochs).map(|epoch| epoch.term().0);
    let before = saved_life.fold(before, u32::max);
    let lives = clients.iter_mut().flatten().filter_map(|client| {
        match client.request(own, Request::Tell) {
            Ok(Answer::Told(Some(holding))) => Some(holding.incarnation.life()),
            _ => None,
        }
    });
    let life = lives.fold(before, u32::max);
    let all = job.exchange(&format!("{name}/life"), &life.to_be_bytes())?;
    let life = all
        .iter()
        .map(|note| number(note))
        .try_fold(0, |most, life| life.map(|it| most.max(it)))?;
    let life = life.checked_add(1).ok_or_else(|| Error::new(libc::EOVERFLOW, "too many lives"))?;

    let heard: Heard =
        clients.iter_mut().map(|client| claim(client.as_mut()?, own, life)).collect();
    // Their doors are shut when they are opened anew for reading.
    drop(clients);
    let told: Told = (known, heard, saved.map(|saved| (saved.epochs, saved.why)));
    let note =
        postcard::to_stdvec(&told).map_err(|error| Error::new(libc::EPROTO, error.to_string()))?;
    let all = job.exchange(&format!("{name}/held"), &note)?;
    let all = all.iter().zip(0..).map(|(note, rank)| decode(note, rank, stores.len()));
    let all: Vec<Told> = all.collect::<Result<_>>()?;
    let (mut saved, why) = match all.first().map(|(_, _, saved)| saved.clone()) {
        Some(Ok(saved)) => saved,
        Some(Err(why)) => return Err(Error::new(libc::ENOENT, format!("rank 0: {why}"))),
        None => (Vec::new(), None),
    };

    // What was never committed need not be gone back to.
    let committed = all.iter().flat_map(|(known, heard, _)| {
        let held = heard.iter().flatten().flatten().map(|holding| holding.committed);
        held.chain([*known])
    });
    let committed = committed.max().unwrap_or(Epoch::NONE);
    let mut machine = recovery(&all, &stores, life);
    let (mut last, mut reads, mut missing) = (None, Vec::new(), None);
    for round in 0.. {
        while let Some(step) = machine.poll(Duration::ZERO) {
            match step {
                Step::Ask(..) => {}
                Step::Read(whose, origin) => reads.push((whose, origin)),
                Step::Restored(epoch, _) => {
                    return Ok(Back { epoch: Some(epoch), restored: last, life });
                }
                Step::Impossible(lacks) => missing = Some(lacks),
            }
        }
        let held = reads.iter().map(|(_, origin): &(Member, Origin)| origin.epoch).max();
        let file = saved.first().copied().filter(|epoch| held.is_none_or(|held| *epoch > held));
        let lacks = missing.as_ref().map_or_else(String::new, |lacks| format!(": {lacks}"));
        if let Some(epoch) = file {
            if epoch < committed && job.rank() == 0 {
                tracing::warn!(
                    "{committed} was committed, and cannot be restored any more; \
                     going back to {epoch}, which is in files{lacks}"
                );
            }
            // SAFETY: the caller's promise.
            let read = unsafe { flush::read(options, epoch, own, layout) };
            let read = read.map_err(|error| match error.errno() {
                libc::EINVAL => format!("{OTHER}: {error}"),
                _ => error.to_string(),
            });
            let outcomes = outcomes(job, name, round, &read.err().unwrap_or_default())?;
            match outcomes.iter().position(|why| !why.is_empty()) {
                None => {
                    if job.rank() == 0 {
                        flush::forget_after(options, epoch);
                    }
                    return Ok(Back { epoch: Some(epoch), restored: None, life });
                }
                Some(rank) => {
                    tracing::warn!(
                        "{epoch} in files is of no use: rank {rank}: {}",
                        outcomes[rank]
                    );
                    saved.remove(0);
                    if saved.is_empty() && reads.is_empty() {
                        let text = format!(
                            "no epoch can be restored: {epoch} in files: rank {rank}: {}{lacks}",
                            outcomes[rank]
                        );
                        return Err(Error::new(libc::ENODATA, text));
                    }
                    continue;
                }
            }
        }
        if reads.is_empty() {
            return match (why, committed.is_some()) {
                (None, false) => Ok(Back { epoch: None, restored: None, life }),
                (why, _) => {
                    let files = why.map_or_else(String::new, |why| format!("; in files: {why}"));
                    let text = format!("no epoch can be restored{lacks}{files}");
                    Err(Error::new(libc::ENODATA, text))
                }
            };
        }
        let mut outcome = String::new();
        if let Some((_, origin)) = reads.iter().find(|(whose, _)| *whose == own) {
            // SAFETY: the caller's promise.
            match unsafe { read(options, device, &stores, own, *origin, layout) } {
                Ok(restored) => last = Some(restored),
                Err(error) => outcome = error.to_string(),
            }
        }
        let all = outcomes(job, name, round, &outcome)?;
        for (whose, origin) in std::mem::take(&mut reads) {
            let rank = all.iter().zip(0..).find(|(_, rank)| member(*rank) == whose);
            let why = rank.map(|(why, _)| why.clone()).unwrap_or_default();
            let outcome = if why.is_empty() { Ok(()) } else { Err(why) };
            machine.found(Found::Read(whose, origin, outcome), Duration::ZERO);
        }
    }
    Err(Error::new(libc::EIO, "a recovery did not come to an end"))
}

/// How reading went in each rank: nothing is said where it went well.
///
/// # Errors
/// `EINVAL` where the epoch is of other areas in one, which no other copy would change.
fn outcomes(job: &Job, name: &str, round: usize, outcome: &str) -> Result<Vec<String>> {
    let all = job.exchange(&format!("{name}/read/{round}"), outcome.as_bytes())?;
    let all: Vec<String> =
        all.iter().map(|why| String::from_utf8_lossy(why).into_owned()).collect();
    match all.iter().enumerate().find(|(_, why)| why.starts_with(OTHER)) {
        None => Ok(all),
        Some((rank, why)) => Err(Error::invalid(format!("rank {rank}: {why}"))),
    }
}

/// What an outcome begins with that no other copy would change.
const OTHER: &str = "the epoch is of other memory";

fn connect(options: &Options, store: &StoreAt) -> Option<Client> {
    match Client::connect(&store.at, &options.key, Instant::now() + CONNECT) {
        Ok(client) => Some(client),
        Err(error) => {
            tracing::warn!("store {} is of no help: {error}", store.at);
            None
        }
    }
}

/// What the store holds of this process, once nothing lands there any more.
fn claim(client: &mut Client, own: Member, life: u32) -> Option<Option<Holding>> {
    let incarnation = Incarnation::of_life(life);
    let until = Instant::now() + FENCE;
    while Instant::now() < until {
        match client.request(own, Request::Claim { incarnation }) {
            Ok(Answer::Told(holding)) => return Some(holding),
            Ok(Answer::Wait) => std::thread::sleep(AGAIN),
            Ok(other) => {
                tracing::warn!("store {} answers {other:?}", client.about().name);
                return None;
            }
            Err(error) => {
                tracing::warn!("a store is of no help: {error}");
                return None;
            }
        }
    }
    None
}

fn number(note: &[u8]) -> Result<u32> {
    let bytes = note.try_into().map_err(|_| Error::new(libc::EPROTO, "a rank tells no life"))?;
    Ok(u32::from_be_bytes(bytes))
}

fn decode(note: &[u8], rank: u32, stores: usize) -> Result<Told> {
    let refuse = |what: &str| Error::new(libc::EPROTO, format!("rank {rank} tells {what}"));
    let told: Told = postcard::from_bytes(note).map_err(|_| refuse("nonsense of its stores"))?;
    if told.1.len() != stores {
        return Err(refuse(&format!("of {} stores, and {stores} were named here", told.1.len())));
    }
    if told.2.as_ref().is_ok_and(|(epochs, _)| epochs.len() > flush::MOST) {
        return Err(refuse("of more epochs in files than are looked at"));
    }
    let answers = told.1.iter().flatten().map(|holding| Answer::Told(*holding));
    for answer in answers {
        answer.check().map_err(|error| refuse(&error.to_string()))?;
    }
    Ok(told)
}

/// The machine, which has heard everything.
fn recovery(all: &[Told], stores: &[StoreAt], life: u32) -> Recovery {
    let incarnation = Incarnation::of_life(life);
    let members = (0..).zip(all).map(|(rank, _)| (member(rank), incarnation));
    let ids = stores.iter().map(|store| store.id);
    let limits = RecoveryLimits::default();
    let mut machine = Recovery::new(members, ids, Scope::Whole, Duration::ZERO, limits);
    let silent: BTreeMap<StoreId, ()> = stores
        .iter()
        .enumerate()
        .filter(|(i, _)| all.iter().any(|(_, heard, _)| heard[*i].is_none()))
        .map(|(_, store)| (store.id, ()))
        .collect();
    for store in silent.keys() {
        machine.found(Found::Lost(*store), Duration::ZERO);
    }
    for (rank, (_, heard, _)) in (0..).zip(all) {
        for (store, holding) in stores.iter().zip(heard) {
            if let Some(holding) = holding
                && !silent.contains_key(&store.id)
            {
                let answer = Answer::Told(*holding);
                machine.found(Found::Answer(store.id, member(rank), answer), Duration::ZERO);
            }
        }
    }
    machine
}

/// # Safety
/// As [`restore`].
unsafe fn read(
    options: &Options,
    device: &str,
    stores: &[StoreAt],
    own: Member,
    origin: Origin,
    layout: &Layout,
) -> Result<Restored> {
    let store = stores.iter().find(|store| store.id == origin.store);
    let store =
        store.ok_or_else(|| Error::new(libc::ENOENT, format!("no store {}", origin.store)))?;
    let mut copy = Copy::open(device, &options.key, store, own, origin.slot, options.lanes)?;
    if copy.slot().stamp().epoch != origin.epoch.0 {
        let text = format!("the slot of {} holds another epoch", origin.epoch);
        return Err(Error::new(libc::EBADMSG, text));
    }
    if copy.slot().stamp().job != options.job {
        let text = format!("the slot of {} is of another job: see {JOB_NAME}", origin.epoch);
        return Err(Error::new(libc::EBADMSG, text));
    }
    let layout = place(copy.slot(), layout)?;
    // SAFETY: the caller's promise: these are the areas of `layout`.
    unsafe { copy.read(&layout, false) }?;
    Ok(Restored { origin, pages: copy.slot().pages().clone() })
}

/// The areas of the slot, in its order, where they are now.
fn place(slot: &image::Slot, layout: &Layout) -> Result<Layout> {
    let sizes = |layout: &Layout| {
        let mut all: Vec<_> = layout.areas().iter().map(|area| (area.id, area.bytes)).collect();
        all.sort_unstable();
        all
    };
    let (then, now) = (sizes(slot.layout()), sizes(layout));
    if then != now {
        let list = |sizes: Vec<(u32, usize)>| {
            let texts: Vec<_> =
                sizes.iter().map(|(id, bytes)| format!("{id} ({bytes} bytes)")).collect();
            texts.join(", ")
        };
        let text = format!("{OTHER}: it has the areas {}, this program {}", list(then), list(now));
        return Err(Error::invalid(text));
    }
    let here = |id: u32| layout.areas().iter().find(|area| area.id == id).copied();
    Layout::new(slot.layout().areas().iter().filter_map(|area| here(area.id)))
}
