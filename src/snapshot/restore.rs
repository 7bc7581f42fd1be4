//! Which epoch the ranks go back to together, and reading it.
//!
//! Every rank asks the stores what they hold of it, with a claim that keeps what older lives have under way
//! from landing. Then all tell each other what they have heard, and each runs the same [`Recovery`] on the same
//! facts; so all come to the same epoch without anybody who decides. A rank reads its own memory alone, and
//! tells the others how that went.
//!
//! With parity the first rank of each group asks for its shares too. What can be rebuilt of them counts as one more
//! store, which holds what it would take to have.
//!
//! Rank 0 tells what is in files, too. What is gone back to is the last epoch of all: one that is in files only where
//! the stores can restore none that is later.

use super::flush::{self, Saved};
use super::options::{JOB_NAME, Options};
use super::parity;
use crate::{Error, Job, Result};
use sojourn_fabric::names::ProcessId;
use sojourn_snapshot::epoch::{
    Answer, Epoch, Found, Holding, Incarnation, Member, Origin, Recovery, RecoveryLimits, Request,
    Scope, Step, StoreId,
};
use sojourn_snapshot::parity::{REBUILT, Restore, rebuildable};
use sojourn_snapshot::redundancy::Placement;
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

/// What one rank tells the others.
#[derive(serde::Serialize, serde::Deserialize)]
struct Told {
    /// The last epoch that it knows to be committed.
    known: Epoch,
    /// It has taken epochs before: it would know of one that was committed.
    was_here: bool,
    /// Of its own memory.
    heard: Heard,
    /// Of the shares of parity that it has asked for.
    shares: Vec<Heard>,
    /// What is in files; or why it cannot look. Rank 0 alone knows.
    saved: std::result::Result<Saved, String>,
}

impl Told {
    /// All that it has heard of stores that answer.
    fn all(&self) -> impl Iterator<Item = &Option<Holding>> {
        self.shares.iter().chain([&self.heard]).flatten().flatten()
    }
}

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
    placement: &Placement,
    device: &str,
    layout: &Layout,
    (before, known): (u32, Epoch),
    name: &str,
) -> Result<Back> {
    let stores = stores(options);
    let own = member(job.rank());
    let mut clients: Vec<Option<Client>> =
        stores.iter().map(|store| connect(options, store)).collect();
    // Files are looked at by one, so that all go by the same.
    let saved = match job.rank() {
        0 => {
            let members: Vec<Member> = (0..job.size()).map(member).collect();
            Saved::look(options, &members).map_err(|error| error.to_string())
        }
        _ => Ok(Saved::default()),
    };
    let terms = saved.iter().flat_map(|saved| &saved.epochs).map(|epoch| epoch.term().0);
    let before_all = terms.fold(before, u32::max);
    let lives = clients.iter_mut().flatten().filter_map(|client| {
        match client.request(own, Request::Tell) {
            Ok(Answer::Told(Some(holding))) => Some(holding.incarnation.life()),
            _ => None,
        }
    });
    let life = lives.fold(before_all, u32::max);
    let all = job.exchange(&format!("{name}/life"), &life.to_be_bytes())?;
    let life = all
        .iter()
        .map(|note| number(note))
        .try_fold(0, |most, life| life.map(|it| most.max(it)))?;
    let life = life.checked_add(1).ok_or_else(|| Error::new(libc::EOVERFLOW, "too many lives"))?;

    let heard: Heard =
        clients.iter_mut().map(|client| claim(client.as_mut()?, own, life)).collect();
    let mut shares = Vec::new();
    for share in parity::shares(job.rank(), placement) {
        let heard = clients.iter_mut().map(|client| claim(client.as_mut()?, share, life));
        shares.push(heard.collect::<Heard>());
    }
    // Their doors are shut when they are opened anew for reading.
    drop(clients);
    let told = Told { known, was_here: before > 0, heard, shares, saved };
    let note = postcard::to_stdvec(&told);
    let note = note.map_err(|error| Error::new(libc::EPROTO, error.to_string()))?;
    let all = job.exchange(&format!("{name}/held"), &note)?;
    let all = all.iter().zip(0..).map(|(note, rank)| {
        let shares = parity::shares(rank, placement).len();
        decode(note, rank, stores.len(), shares)
    });
    let all: Vec<Told> = all.collect::<Result<_>>()?;

    // What was never committed need not be gone back to.
    let committed = all.iter().flat_map(|told| {
        let held = told.all().flatten().map(|holding| holding.committed);
        held.chain([told.known])
    });
    let committed = committed.max().unwrap_or(Epoch::NONE);
    let mut saved = match &all[0].saved {
        Ok(saved) => saved.clone(),
        Err(why) => return Err(Error::new(libc::ENOENT, format!("rank 0: {why}"))),
    };
    let from = Stores { options, device, stores: &stores, placement };
    let mut machine = recovery(&all, &from, life);
    let (mut last, mut reads, mut missing) = (None, Vec::new(), None);
    let mut windows = Vec::new();
    for round in 0.. {
        while let Some(step) = machine.poll(Duration::ZERO) {
            match step {
                Step::Ask(..) => {}
                Step::Read(whose, origin) => reads.push((whose, origin)),
                Step::Restored(epoch, _) => {
                    return Ok(Back { epoch: Some(epoch), restored: last, windows, life });
                }
                Step::Impossible(lacks) => missing = Some(lacks),
            }
        }
        if let Some(missing) = &missing
            && !committed.is_some()
        {
            nothing_is_hidden(&all, options)?;
            if saved.is_empty() {
                return Ok(Back { epoch: None, restored: None, windows, life });
            }
            tracing::debug!("no store has anything: {missing}");
        }
        let held = reads.iter().map(|(_, origin): &(Member, Origin)| origin.epoch).max();
        if let Some(epoch) = saved.later_than(held) {
            if epoch < committed && job.rank() == 0 {
                let lacks = missing.as_ref().map_or_else(String::new, |it| format!(" ({it})"));
                tracing::warn!(
                    "{committed} was committed, and cannot be restored any more{lacks}: \
                     going back to {epoch}, which is in files"
                );
            }
            // SAFETY: the caller's promise.
            let read = unsafe { flush::read(options, epoch, own, layout) };
            let read = read.map(|its| windows = its);
            let read = read.map_err(|error| match error.errno() {
                libc::EINVAL => format!("{OTHER}: {error}"),
                _ => error.to_string(),
            });
            let all = outcomes(job, name, round, &read.err().unwrap_or_default())?;
            let Some(rank) = all.iter().position(|why| !why.is_empty()) else {
                if job.rank() == 0 {
                    flush::forget_after(options, epoch);
                }
                return Ok(Back { epoch: Some(epoch), restored: None, windows, life });
            };
            saved.is_of_no_use(epoch, &format!("rank {rank}: {}", all[rank]));
            continue;
        }
        if let Some(missing) = missing {
            let mut text = match saved.why {
                Some(why) => format!("no epoch can be restored: {missing}; in files: {why}"),
                None => format!("no epoch can be restored: {missing}"),
            };
            if has_parity(placement) {
                let lacks = missing.lacking().any(|lacking| lacking == own);
                // SAFETY: the caller's promise.
                let tried =
                    lacks.then(|| unsafe { from.rebuild(own, missing.committed, layout).err() });
                let note = tried.flatten().map(|error| error.to_string()).unwrap_or_default();
                // Whichever rank is heard says what all of them lack.
                let all = job.exchange(&format!("{name}/missing"), note.as_bytes())?;
                for why in all.iter().filter(|why| !why.is_empty()) {
                    text = format!("{text}; {}", String::from_utf8_lossy(why));
                }
            }
            return Err(Error::new(libc::ENODATA, text));
        }
        let mut outcome = String::new();
        if let Some((_, origin)) = reads.iter().find(|(whose, _)| *whose == own) {
            // SAFETY: the caller's promise.
            match unsafe { from.read(own, *origin, layout) } {
                Ok((restored, its)) => (last, windows) = (Some(restored), its),
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

/// Connections that are tried, one after the other, before a copy is given up. It may be the last one; and where a
/// machine is slow, packets are lost of which a connection dies though both of its ends live.
const CONNECTIONS: u32 = 3;
/// And within which time another is: the other ranks wait for what comes of it, for [`Job::PATIENCE`].
const ANOTHER: Duration = Duration::from_secs(20);

/// Does what reads from a store again where its connection has failed, and not the store or what is there.
fn over_new_connections<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let since = Instant::now();
    for _ in 1..CONNECTIONS {
        match read() {
            Err(error)
                if matches!(error.errno(), libc::EIO | libc::ETIMEDOUT)
                    && since.elapsed() < ANOTHER =>
            {
                tracing::warn!("reading an epoch again over another connection: {error}");
            }
            outcome => return outcome,
        }
    }
    read()
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

fn decode(note: &[u8], rank: u32, stores: usize, due: usize) -> Result<Told> {
    let refuse = |what: &str| Error::new(libc::EPROTO, format!("rank {rank} tells {what}"));
    let told: Told = postcard::from_bytes(note).map_err(|_| refuse("nonsense of its stores"))?;
    if told.shares.len() != due {
        let has = told.shares.len();
        return Err(refuse(&format!("of {has} shares of parity, and has to of {due}")));
    }
    for heard in told.shares.iter().chain([&told.heard]) {
        if heard.len() != stores {
            let has = heard.len();
            return Err(refuse(&format!("of {has} stores, and {stores} were named here")));
        }
    }
    if told.saved.as_ref().is_ok_and(|saved| saved.epochs.len() > flush::MOST) {
        return Err(refuse("of more epochs in files than are looked at"));
    }
    let answers = told.all().map(|holding| Answer::Told(*holding));
    for answer in answers {
        answer.check().map_err(|error| refuse(&error.to_string()))?;
    }
    Ok(told)
}

/// A job that begins in all its ranks can't tell whether there were epochs, where a store does not answer: then it
/// must not begin from nothing.
fn nothing_is_hidden(all: &[Told], options: &Options) -> Result<()> {
    if all.iter().any(|told| told.was_here) {
        return Ok(());
    }
    let silent = |i: &usize| {
        let mut heard = all.iter().flat_map(|told| told.shares.iter().chain([&told.heard]));
        heard.any(|heard| heard[*i].is_none())
    };
    match (0..options.stores.len()).find(silent) {
        None => Ok(()),
        Some(i) => {
            let store = &options.stores[i];
            let text = format!(
                "no epoch is found, and the store of node {} at {} is of no help, which may have one: \
                 start it, or leave it out of {}",
                store.node,
                store.at,
                super::STORES
            );
            Err(Error::new(libc::ENODATA, text))
        }
    }
}

/// The machine, which has heard everything.
fn recovery(all: &[Told], from: &Stores<'_>, life: u32) -> Recovery {
    let incarnation = Incarnation::of_life(life);
    let members = (0..).zip(all).map(|(rank, _)| (member(rank), incarnation));
    let rebuilt = has_parity(from.placement).then_some(REBUILT);
    let ids = from.stores.iter().map(|store| store.id).chain(rebuilt);
    let limits = RecoveryLimits::default();
    let mut machine = Recovery::new(members, ids, Scope::Whole, Duration::ZERO, limits);
    // One that has not answered one of them counts as lost to all.
    let silent = |i: usize| {
        let mut heard = all.iter().flat_map(|told| told.shares.iter().chain([&told.heard]));
        heard.any(|heard| heard[i].is_none())
    };
    let silent: Vec<bool> = (0..from.stores.len()).map(silent).collect();
    let mut held: BTreeMap<Member, Vec<Holding>> = BTreeMap::new();
    for (i, store) in from.stores.iter().enumerate() {
        if silent[i] {
            machine.found(Found::Lost(store.id), Duration::ZERO);
            continue;
        }
        for (rank, told) in (0..).zip(all) {
            if let Some(holding) = told.heard[i] {
                let answer = Answer::Told(holding);
                machine.found(Found::Answer(store.id, member(rank), answer), Duration::ZERO);
                held.entry(member(rank)).or_default().extend(holding);
            }
            for (share, heard) in parity::shares(rank, from.placement).iter().zip(&told.shares) {
                held.entry(*share).or_default().extend(heard[i].flatten());
            }
        }
    }
    if rebuilt.is_some() {
        let rebuildable = rebuildable(from.placement, &held);
        for (rank, _) in (0..).zip(all) {
            let answer = Answer::Told(rebuildable.get(&member(rank)).copied());
            machine.found(Found::Answer(REBUILT, member(rank), answer), Duration::ZERO);
        }
    }
    machine
}

fn has_parity(placement: &Placement) -> bool {
    placement.scheme().parity() > 0
}

/// What is read from.
struct Stores<'a> {
    options: &'a Options,
    device: &'a str,
    stores: &'a [StoreAt],
    placement: &'a Placement,
}

impl Stores<'_> {
    /// # Safety
    /// As [`restore`].
    unsafe fn read(
        &self,
        own: Member,
        origin: Origin,
        layout: &Layout,
    ) -> Result<(Restored, Vec<u8>)> {
        if origin.store == REBUILT {
            // SAFETY: the caller's promise.
            return unsafe { self.rebuild(own, origin.epoch, layout) };
        }
        let store = self.stores.iter().find(|store| store.id == origin.store);
        let store =
            store.ok_or_else(|| Error::new(libc::ENOENT, format!("no store {}", origin.store)))?;
        // SAFETY: the caller's promise. What failed has closed its connection, over which nothing lands any more.
        over_new_connections(|| unsafe { self.read_from(store, own, origin, layout) })
    }

    /// # Safety
    /// As [`restore`].
    unsafe fn read_from(
        &self,
        store: &StoreAt,
        own: Member,
        origin: Origin,
        layout: &Layout,
    ) -> Result<(Restored, Vec<u8>)> {
        let Options { key, lanes, .. } = self.options;
        let mut copy = Copy::open(self.device, key, store, own, origin.slot, *lanes)?;
        if copy.slot().stamp().epoch != origin.epoch.0 {
            let text = format!("the slot of {} holds another epoch", origin.epoch);
            return Err(Error::new(libc::EBADMSG, text));
        }
        if copy.slot().stamp().job != self.options.job {
            let text = format!("the slot of {} is of another job: see {JOB_NAME}", origin.epoch);
            return Err(Error::new(libc::EBADMSG, text));
        }
        let layout = place(copy.slot(), layout)?;
        // SAFETY: the caller's promise: these are the areas of `layout`.
        unsafe { copy.read(&layout, false) }?;
        let restored = Restored { origin, pages: copy.slot().pages().clone() };
        Ok((restored, copy.slot().windows().to_vec()))
    }

    /// # Safety
    /// As [`restore`].
    unsafe fn rebuild(
        &self,
        own: Member,
        epoch: Epoch,
        layout: &Layout,
    ) -> Result<(Restored, Vec<u8>)> {
        let Options { key, lanes, .. } = self.options;
        let options = Restore {
            device: self.device,
            key,
            placement: self.placement,
            stores: self.stores,
            lanes: *lanes,
            fresh: false,
        };
        let process = ProcessId(u32::try_from(own.0).unwrap_or(u32::MAX));
        // SAFETY: the caller's promise: these are the areas of `layout`.
        let back = unsafe {
            sojourn_snapshot::parity::restore(&options, process, epoch, |slot| place(slot, layout))
        };
        back.map(|back| (back.restored, back.windows))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a connection that fails costs no copy of an epoch; a copy that is damaged is left at once, and
    /// one that no connection reaches in the end.
    #[test]
    fn a_copy_outlives_connections_to_it() {
        for (errnos, reads, good) in [
            (&[][..], 1, true),
            (&[libc::EIO, libc::ETIMEDOUT], 3, true),
            (&[libc::EIO; 3], 3, false),
            (&[libc::EBADMSG], 1, false),
            (&[libc::EIO, libc::ENODATA], 2, false),
        ] {
            let mut count = 0;
            let outcome = over_new_connections(|| {
                count += 1;
                errnos.get(count - 1).map_or(Ok(()), |errno| Err(Error::new(*errno, "it failed")))
            });
            assert_eq!((count, outcome.is_ok()), (reads, good), "{errnos:?}");
        }
    }
}
