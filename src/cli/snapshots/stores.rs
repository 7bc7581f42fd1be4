//! What stores have, and reading it.

use super::{Failure, Outcome};
use indicatif::ProgressBar;
use serde::Serialize;
use sojourn_fabric::names::{Endpoint, JobKey};
use sojourn_snapshot::epoch::{Answer, Epoch, Member, Request, Slot, StoreId};
use sojourn_snapshot::parity::{self, Sound, share_of};
use sojourn_snapshot::restore::Copy;
use sojourn_snapshot::session::StoreAt;
use sojourn_snapshot::store::{Client, Kept};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long a store may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// A store that has answered.
pub(super) struct Reached {
    pub(super) at: StoreAt,
    pub(super) client: Client,
    pub(super) kept: Vec<Kept>,
}

/// All that have.
pub(super) struct Stores {
    key: JobKey,
    device: String,
    pub(super) reached: Vec<Reached>,
    /// What is wrong with the others.
    pub(super) lost: Vec<Lost>,
}

/// A store that has not answered.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Lost {
    pub(super) at: String,
    pub(super) why: String,
}

/// One copy of one epoch of one process, or one share of parity of that epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) member: Member,
    pub(super) epoch: Epoch,
    /// Which store, of those that were reached.
    pub(super) store: usize,
    pub(super) slot: Slot,
}

impl Stores {
    /// Asks each what it has.
    ///
    /// Fails where none answers.
    pub(super) fn connect(endpoints: &[Endpoint], key: JobKey, device: String) -> Outcome<Stores> {
        let (mut reached, mut lost) = (Vec::new(), Vec::new());
        for (id, at) in (1..).zip(endpoints) {
            let asked = Client::connect(at, &key, Instant::now() + CONNECT)
                .and_then(|mut client| Ok((client.list()?, client)));
            match asked {
                Ok((kept, client)) => {
                    let at = StoreAt { id: StoreId(id), at: at.clone() };
                    reached.push(Reached { at, client, kept });
                }
                Err(error) => lost.push(Lost { at: at.to_string(), why: error.to_string() }),
            }
        }
        let stores = Stores { key, device, reached, lost };
        if stores.reached.is_empty() { Err(stores.failure()) } else { Ok(stores) }
    }

    /// That stores are missing.
    fn failure(&self) -> Failure {
        let all = self.lost.iter().map(|lost| format!("store {}: {}", lost.at, lost.why));
        Failure::new(all.collect::<Vec<_>>().join("; "))
    }

    /// At the end of what could be said of those that are there: whether all were.
    pub(super) fn all_there(&self) -> Outcome {
        if self.lost.is_empty() { Ok(()) } else { Err(self.failure()) }
    }

    /// What a store is called.
    pub(super) fn name(&self, store: usize) -> &str {
        &self.reached[store].client.about().name
    }

    /// Where it listens.
    pub(super) fn at(&self, store: usize) -> String {
        self.reached[store].at.at.to_string()
    }

    /// The last epoch that is noted as committed anywhere.
    pub(super) fn committed(&self) -> Epoch {
        let all = self.reached.iter().flat_map(|store| &store.kept);
        all.map(|kept| kept.holding.committed).max().unwrap_or(Epoch::NONE)
    }

    /// All copies of images of processes, by process, then epoch, then store.
    pub(super) fn held(&self) -> Vec<Held> {
        self.all(is_process)
    }

    /// All shares of parity, in the same order.
    pub(super) fn shares(&self) -> Vec<Held> {
        self.all(|member| share_of(member).is_some())
    }

    fn all(&self, wanted: impl Fn(Member) -> bool) -> Vec<Held> {
        let mut all = Vec::new();
        for (store, reached) in self.reached.iter().enumerate() {
            for kept in reached.kept.iter().filter(|kept| wanted(kept.member)) {
                for slot in Slot::BOTH {
                    let epoch = kept.holding.words[slot.index()];
                    if epoch.is_some() {
                        all.push(Held { member: kept.member, epoch, store, slot });
                    }
                }
            }
        }
        all.sort_by_key(|held| (held.member, held.epoch, held.store));
        all
    }

    /// The copies of the epoch that has this count; of the last committed one where none is named, or else of
    /// the last.
    ///
    /// Fails where there is none, and says which there are.
    pub(super) fn of(&self, count: Option<u64>) -> Outcome<Vec<Held>> {
        let held = self.held();
        let there: BTreeSet<Epoch> = held.iter().map(|held| held.epoch).collect();
        let committed = Some(self.committed()).filter(|epoch| there.contains(epoch));
        let epoch = match count {
            // Of two terms the later one counts.
            Some(count) => there.iter().rev().find(|epoch| epoch.count() == count).copied(),
            None => committed.or_else(|| there.last().copied()),
        };
        let of = |epoch| held.iter().filter(|held| held.epoch == epoch).copied().collect();
        epoch.map(of).ok_or_else(|| {
            let counts: BTreeSet<u64> = there.iter().map(|epoch| epoch.count()).collect();
            let counts: Vec<String> = counts.iter().map(u64::to_string).collect();
            let asked = count.map_or("no epoch".to_owned(), |count| format!("no epoch {count}"));
            let lost = if self.lost.is_empty() { "" } else { ", and not all of them answer" };
            Failure::new(match counts.as_slice() {
                [] => format!("the stores have no epoch of any process{lost}"),
                counts => format!("the stores have {asked}: they have {}{lost}", counts.join(", ")),
            })
        })
    }

    /// Opens a copy: its tables are read and checked.
    pub(super) fn open(&self, held: &Held) -> sojourn::Result<Copy> {
        let at = &self.reached[held.store].at;
        let copy = Copy::open(&self.device, &self.key, at, held.member, held.slot, 1)?;
        if copy.slot().stamp().epoch == held.epoch.0 {
            return Ok(copy);
        }
        Err(sojourn::Error::new(libc::ENODATA, "it holds another epoch by now"))
    }

    /// Reads all of a share of parity, and checks it.
    pub(super) fn check_share(&self, held: &Held, bar: &ProgressBar) -> sojourn::Result<Sound> {
        let at = &self.reached[held.store].at.at;
        parity::check(&self.device, &self.key, at, held.member, held.epoch, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
    }

    /// Whether a slot was begun anew since it was asked about: what was read of it says nothing then.
    pub(super) fn is_gone(&mut self, held: &Held) -> bool {
        let client = &mut self.reached[held.store].client;
        match client.request(held.member, Request::Tell) {
            Ok(Answer::Told(now)) => {
                now.is_none_or(|now| now.words[held.slot.index()] != held.epoch)
            }
            // A store that has died is no epoch that was overwritten.
            _ => false,
        }
    }

    /// What to put before an error about a copy.
    pub(super) fn context(&self, held: &Held) -> String {
        format!("{} of {} in store {}", held.epoch, whose(held.member), self.name(held.store))
    }
}

/// What a member is.
pub(super) fn whose(member: Member) -> String {
    match share_of(member) {
        Some((group, index)) => format!("parity {index} of group {group}"),
        None => format!("process {member}"),
    }
}

/// Whether it is a process, and not a share of parity: the numbers of processes have 32 bits.
pub(super) fn is_process(member: Member) -> bool {
    u32::try_from(member.0).is_ok()
}

/// One copy of each process.
pub(super) fn first_of_each(held: Vec<Held>) -> BTreeMap<Member, Held> {
    let mut all = BTreeMap::new();
    for one in held {
        all.entry(one.member).or_insert(one);
    }
    all
}
