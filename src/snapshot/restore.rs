//! Which epoch the ranks go back to together, and reading it.
//!
//! Every rank asks the stores what they hold of it, with a claim that keeps what older lives have under way
//! from landing. Then all tell each other what they have heard, and each runs the same [`Recovery`] on the same
//! facts; so all come to the same epoch without anybody who decides. A rank reads its own memory alone, and
//! tells the others how that went.

use super::options::Options;
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
    /// Of this rank; `None` where there is nothing to go back to, and the job begins.
    pub(super) restored: Option<Restored>,
    /// The windows that its epoch has.
    pub(super) windows: Vec<u8>,
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
    let told = (known, heard);
    let note =
        postcard::to_stdvec(&told).map_err(|error| Error::new(libc::EPROTO, error.to_string()))?;
    let all = job.exchange(&format!("{name}/held"), &note)?;
    let all = all.iter().zip(0..).map(|(note, rank)| decode(note, rank, stores.len()));
    let all: Vec<(Epoch, Heard)> = all.collect::<Result<_>>()?;

    // What was never committed need not be gone back to.
    let committed = all.iter().flat_map(|(known, heard)| {
        let held = heard.iter().flatten().flatten().map(|holding| holding.committed);
        held.chain([*known])
    });
    let committed = committed.max().unwrap_or(Epoch::NONE);
    let mut machine = recovery(&all, &stores, life);
    let (mut last, mut windows) = (None, Vec::new());
    for round in 0.. {
        let mut reads = Vec::new();
        while let Some(step) = machine.poll(Duration::ZERO) {
            match step {
                Step::Ask(..) => {}
                Step::Read(whose, origin) => reads.push((whose, origin)),
                Step::Restored(..) => return Ok(Back { restored: last, windows, life }),
                Step::Impossible(_) if !committed.is_some() => {
                    return Ok(Back { restored: None, windows: Vec::new(), life });
                }
                Step::Impossible(missing) => {
                    return Err(Error::new(
                        libc::ENODATA,
                        format!("no epoch can be restored: {missing}"),
                    ));
                }
            }
        }
        let mut outcome = String::new();
        if let Some((_, origin)) = reads.iter().find(|(whose, _)| *whose == own) {
            // SAFETY: the caller's promise.
            match unsafe { read(options, device, &stores, own, *origin, layout) } {
                Ok((restored, its)) => (last, windows) = (Some(restored), its),
                Err(error) => outcome = error.to_string(),
            }
        }
        let all = job.exchange(&format!("{name}/read/{round}"), outcome.as_bytes())?;
        if let Some((rank, why)) =
            all.iter().enumerate().find(|(_, why)| why.starts_with(OTHER.as_bytes()))
        {
            let why = String::from_utf8_lossy(why);
            return Err(Error::invalid(format!("rank {rank}: {why}")));
        }
        for (whose, origin) in reads {
            let rank = all.iter().zip(0..).find(|(_, rank)| member(*rank) == whose);
            let why =
                rank.map(|(why, _)| String::from_utf8_lossy(why).into_owned()).unwrap_or_default();
            let outcome = if why.is_empty() { Ok(()) } else { Err(why) };
            machine.found(Found::Read(whose, origin, outcome), Duration::ZERO);
        }
    }
    Err(Error::new(libc::EIO, "a recovery did not come to an end"))
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

fn decode(note: &[u8], rank: u32, stores: usize) -> Result<(Epoch, Heard)> {
    let refuse = |what: &str| Error::new(libc::EPROTO, format!("rank {rank} tells {what}"));
    let told: (Epoch, Heard) =
        postcard::from_bytes(note).map_err(|_| refuse("nonsense of its stores"))?;
    if told.1.len() != stores {
        return Err(refuse(&format!("of {} stores, and {stores} were named here", told.1.len())));
    }
    let answers = told.1.iter().flatten().map(|holding| Answer::Told(*holding));
    for answer in answers {
        answer.check().map_err(|error| refuse(&error.to_string()))?;
    }
    Ok(told)
}

/// The machine, which has heard everything.
fn recovery(all: &[(Epoch, Heard)], stores: &[StoreAt], life: u32) -> Recovery {
    let incarnation = Incarnation::of_life(life);
    let members = (0..).zip(all).map(|(rank, _)| (member(rank), incarnation));
    let ids = stores.iter().map(|store| store.id);
    let limits = RecoveryLimits::default();
    let mut machine = Recovery::new(members, ids, Scope::Whole, Duration::ZERO, limits);
    let silent: BTreeMap<StoreId, ()> = stores
        .iter()
        .enumerate()
        .filter(|(i, _)| all.iter().any(|(_, heard)| heard[*i].is_none()))
        .map(|(_, store)| (store.id, ()))
        .collect();
    for store in silent.keys() {
        machine.found(Found::Lost(*store), Duration::ZERO);
    }
    for (rank, (_, heard)) in (0..).zip(all) {
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
) -> Result<(Restored, Vec<u8>)> {
    let store = stores.iter().find(|store| store.id == origin.store);
    let store =
        store.ok_or_else(|| Error::new(libc::ENOENT, format!("no store {}", origin.store)))?;
    let mut copy = Copy::open(device, &options.key, store, own, origin.slot, options.lanes)?;
    if copy.slot().stamp().epoch != origin.epoch.0 {
        let text = format!("the slot of {} holds another epoch", origin.epoch);
        return Err(Error::new(libc::EBADMSG, text));
    }
    let layout = place(copy.slot(), layout)?;
    // SAFETY: the caller's promise: these are the areas of `layout`.
    unsafe { copy.read(&layout, false) }?;
    let restored = Restored { origin, pages: copy.slot().pages().clone() };
    Ok((restored, copy.slot().windows().to_vec()))
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
