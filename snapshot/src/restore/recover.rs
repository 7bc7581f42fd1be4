//! The IO around [`epoch::Recovery`](crate::epoch::Recovery), for one process.

use super::copy::{Copy, ReadReport};
use super::lazy::Lazy;
use crate::epoch::{
    Answer, Epoch, Found, Incarnation, Member, Origin, Recovery, RecoveryLimits, Request, Scope,
    Step, StoreId,
};
use crate::session::{Restored, StoreAt};
use crate::store::Client;
use crate::{Error, Layout, Result, image};
use sojourn_fabric::names::JobKey;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

/// How long a recovery sleeps at most before it looks again.
const LONGEST_SLEEP: Duration = Duration::from_millis(50);

/// What a recovery needs to know.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// The device by which stores are reached.
    pub device: String,
    /// The key of the job.
    pub key: JobKey,
    /// The process.
    pub member: Member,
    /// Which life of it this is: what older ones have under way lands nowhere any more.
    pub life: u32,
    /// Every store that may have something.
    pub stores: Vec<StoreAt>,
    /// Threads, each with a queue pair.
    pub lanes: usize,
    /// The memory that is given is zeros already.
    pub fresh: bool,
    /// How long is waited.
    pub limits: RecoveryLimits,
}

/// What was recovered.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// What a [`crate::session::Session`] goes on from.
    pub restored: Restored,
    /// The windows, as they were in the pause of that epoch.
    pub windows: Vec<u8>,
    /// The areas, where they were then.
    pub layout: Layout,
    /// What reading took.
    pub report: ReadReport,
}

/// Reads the last committed epoch of a process into memory that `place` names, once it has seen what there is.
///
/// # Safety
/// The areas that `place` names are mapped, writable, and used by nobody else until this returns.
///
/// # Errors
/// `ENODATA` where no store has an epoch that is whole: the message says what each has. What `place` says, and
/// `EINVAL` where it names other areas than those of the snapshot.
pub unsafe fn recover(
    options: &RecoverOptions,
    mut place: impl FnMut(&image::Slot) -> Result<Layout>,
) -> Result<Recovered> {
    find(options, |mut copy, origin| {
        let to = place(copy.slot()).map_err(Trouble::Place)?;
        // SAFETY: the caller's promise.
        let report = unsafe { copy.read(&to, options.fresh) }.map_err(Trouble::of)?;
        Ok(recovered(&copy, origin, report))
    })
}

/// The same, but returns as soon as the memory can be used: the rest of it is read when it is touched, and in the
/// background ([`Lazy`]). Other stores that have the epoch are read where this one fails.
///
/// Tracking that uses userfaultfd can watch the memory only when all of it is there. So a session that begins before
/// takes nothing over from what was restored.
///
/// # Safety
/// As [`Lazy::begin`].
///
/// # Errors
/// As [`recover`] and [`Lazy::begin`].
pub unsafe fn recover_lazily(
    options: &RecoverOptions,
    mut place: impl FnMut(&image::Slot) -> Result<Layout>,
    failed: impl FnOnce(&Error) + Clone + Send + 'static,
) -> Result<(Recovered, Lazy)> {
    find(options, |copy, origin| {
        let to = place(copy.slot()).map_err(Trouble::Place)?;
        let recovered = recovered(&copy, origin, ReadReport::default());
        let others = options.stores.iter().filter(|store| store.id != origin.store);
        let others = others.filter_map(|store| another(options, store, origin).ok());
        let same = |other: &Copy| other.slot().pages() == copy.slot().pages();
        let others: Vec<Copy> = others.filter(same).collect();
        let copies = std::iter::once(copy).chain(others).collect();
        // SAFETY: the caller's promise.
        let lazy = unsafe { Lazy::begin(copies, &to, failed.clone()) }.map_err(Trouble::of)?;
        Ok((recovered, lazy))
    })
}

/// Why a copy was not read.
enum Trouble {
    /// The memory is not there for it: no other copy is better.
    Place(Error),
    /// The copy is of no use.
    Copy(Error),
}

impl Trouble {
    /// Another copy has the same areas.
    fn of(error: Error) -> Trouble {
        match error.errno() {
            libc::EINVAL | libc::EOPNOTSUPP => Trouble::Place(error),
            _ => Trouble::Copy(error),
        }
    }
}

/// Has the copies that the machine chooses read, until one is.
fn find<T>(
    options: &RecoverOptions,
    mut read: impl FnMut(Copy, Origin) -> std::result::Result<T, Trouble>,
) -> Result<T> {
    let since = Instant::now();
    let incarnation = Incarnation::of_life(options.life);
    let mut machine = Recovery::new(
        [(options.member, incarnation)],
        options.stores.iter().map(|store| store.id),
        Scope::Whole,
        since.elapsed(),
        options.limits,
    );
    let mut clients = BTreeMap::new();
    let mut last = None;
    loop {
        while let Some(step) = machine.poll(since.elapsed()) {
            let found = match step {
                Step::Ask(store, member, request) => {
                    match ask(options, &mut clients, store, member, request) {
                        Ok(answer) => Found::Answer(store, member, answer),
                        Err(error) => {
                            tracing::warn!("a store does not help a recovery: {error}");
                            Found::Lost(store)
                        }
                    }
                }
                Step::Read(member, origin) => {
                    let copy = open(options, origin).map_err(Trouble::Copy);
                    let outcome = match copy.and_then(|copy| read(copy, origin)) {
                        Ok(done) => {
                            last = Some(done);
                            Ok(())
                        }
                        Err(Trouble::Place(error)) => return Err(error),
                        Err(Trouble::Copy(error)) => Err(error.to_string()),
                    };
                    Found::Read(member, origin, outcome)
                }
                Step::Restored(epoch, _) => {
                    let unread = || Error::new(libc::EIO, format!("{epoch} was not read"));
                    return last.ok_or_else(unread);
                }
                Step::Impossible(missing) => {
                    return Err(Error::new(libc::ENODATA, missing.to_string()));
                }
            };
            machine.found(found, since.elapsed());
        }
        let left = machine.wake_at().map(|at| at.saturating_sub(since.elapsed()));
        std::thread::sleep(left.unwrap_or(LONGEST_SLEEP).min(LONGEST_SLEEP));
    }
}

fn at(options: &RecoverOptions, store: StoreId) -> Result<&StoreAt> {
    let found = options.stores.iter().find(|it| it.id == store);
    found.ok_or_else(|| Error::new(libc::ENOENT, format!("there is no store {store}")))
}

fn ask(
    options: &RecoverOptions,
    clients: &mut BTreeMap<StoreId, Client>,
    store: StoreId,
    member: Member,
    request: Request,
) -> Result<Answer> {
    let client = match clients.entry(store) {
        Entry::Occupied(client) => client.into_mut(),
        Entry::Vacant(place) => {
            let until = Instant::now() + options.limits.answer;
            place.insert(Client::connect(&at(options, store)?.at, &options.key, until)?)
        }
    };
    client.request(member, request)
}

fn open(options: &RecoverOptions, origin: Origin) -> Result<Copy> {
    let from = at(options, origin.store)?;
    let RecoverOptions { device, key, member, lanes, .. } = options;
    let copy = Copy::open(device, key, from, *member, origin.slot, *lanes)?;
    let stamp = copy.slot().stamp();
    if (stamp.epoch, u64::from(stamp.process.0)) != (origin.epoch.0, member.0) {
        let (epoch, process) = (Epoch(stamp.epoch), stamp.process);
        let text =
            format!("a slot of {} of process {member} holds {epoch} of {process}", origin.epoch);
        return Err(Error::new(libc::EBADMSG, text));
    }
    Ok(copy)
}

/// The copy that another store has of the same epoch.
fn another(options: &RecoverOptions, store: &StoreAt, origin: Origin) -> Result<Copy> {
    let mut clients = BTreeMap::new();
    let answer = ask(options, &mut clients, store.id, options.member, Request::Tell)?;
    let slot = match answer {
        Answer::Told(Some(holding)) => holding.slot_of(origin.epoch),
        _ => None,
    };
    let none = || Error::new(libc::ENODATA, format!("store {} has it not", store.id));
    open(options, Origin { store: store.id, slot: slot.ok_or_else(none)?, ..origin })
}

fn recovered(copy: &Copy, origin: Origin, report: ReadReport) -> Recovered {
    let slot = copy.slot();
    Recovered {
        restored: Restored { origin, pages: slot.pages().clone() },
        windows: slot.windows().to_vec(),
        layout: slot.layout().clone(),
        report,
    }
}
