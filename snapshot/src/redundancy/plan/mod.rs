//! How each process's image of an epoch is had from the stores that are left.
//!
//! Whoever restores asks every store that it can reach what it holds, and makes a [`Plan`] of the answers.
//! It says for each process: read it there, or rebuild it of these shares, or what is missing. Where reading
//! finds that something is damaged, that goes out of the answers, and the plan is made again.
//!
//! - An answer counts by what it is, not by where the placement expects it: a store that was replaced, and
//!   is back, helps with what it has.
//! - Only images of one epoch are combined, and only those that the shares of parity name.
//! - Where two stores have images of one process and epoch that are not the same, the one is read that
//!   the group's parity was made of; where there is none, neither.
//! - Parity of other images than those that are read is not used, and of two that could both be rebuilt
//!   neither is. So the images of a group are never those of two attempts at one epoch. Who knows which
//!   images were committed leaves others out of the answers, and more can be restored.

use super::placement::{Placement, Role, Share};
use super::share::{Header, Image};
use super::{Absent, Missing, Why};
use sojourn_fabric::names::ProcessId;
use std::collections::{BTreeMap, BTreeSet};

/// What one store says that it holds. Only what is complete, and was validated by its decoder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub store: String,
    /// Images of processes, of whatever epochs.
    pub images: Vec<Image>,
    /// Shares of parity, of whatever groups and epochs.
    pub parity: Vec<Header>,
}

/// How the image of one process is had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is read from any of these stores, the one first that the placement names first.
    Read {
        /// The image.
        image: Image,
        /// The stores.
        stores: Vec<String>,
    },
    /// It is rebuilt of these shares.
    Rebuild {
        /// The image.
        image: Image,
        /// Its index among the group's images.
        index: usize,
        /// The images of the group that the parity is of, in the order of their indices.
        group: Vec<Image>,
        /// The shares, each by its index among all of the group's, and its store. There may be more than
        /// are needed: the first so many as there are images are enough.
        shares: Vec<(usize, String)>,
    },
    /// It can't be had.
    Missing(Missing),
}

/// How each image of one epoch is had: see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    steps: BTreeMap<ProcessId, Step>,
}

/// The images of a process that stores have, and which stores.
type Held<'a> = BTreeMap<Image, Vec<&'a str>>;

impl Plan {
    /// The plan for `epoch`.
    #[must_use]
    pub fn new(placement: &Placement, epoch: u64, answers: &[Answer]) -> Self {
        let mut images: BTreeMap<ProcessId, Held<'_>> = BTreeMap::new();
        for answer in answers {
            for image in answer.images.iter().filter(|it| it.epoch == epoch) {
                let held = images.entry(image.process).or_default().entry(*image).or_default();
                held.push(&answer.store);
            }
        }
        let mut parity: BTreeMap<usize, Vec<(&Header, &str)>> = BTreeMap::new();
        for answer in answers {
            for header in answer.parity.iter().filter(|it| it.epoch() == epoch) {
                if fits(placement, header) {
                    parity.entry(header.group as usize).or_default().push((header, &answer.store));
                }
            }
        }
        let mut plan = Plan { steps: BTreeMap::new() };
        for group in 0..placement.groups() {
            let parity = parity.remove(&group).unwrap_or_default();
            let made = made(placement.members(group), &images, &parity);
            let enough = |it: &&Made<'_>| it.shares.len() >= it.images.len();
            // Where two could be rebuilt that are not the same, nothing says which was committed.
            let one = match made.iter().filter(enough).count() {
                1 => made.iter().find(enough),
                _ => None,
            };
            for (index, process) in placement.members(group).iter().enumerate() {
                let held = images.get(process);
                // Where there are several, the one that parity is of.
                let named = || held?.get_key_value(one?.images.get(index)?);
                let step = if let Some((image, stores)) = held.and_then(only).or_else(named) {
                    read(placement, image, stores)
                } else if let Some(made) = one {
                    Step::Rebuild {
                        image: made.images[index],
                        index,
                        group: made.images.to_vec(),
                        shares: made.shares.iter().map(|(i, it)| (*i, (*it).to_owned())).collect(),
                    }
                } else {
                    let absent = absent(placement, group, epoch, answers, &images, &made);
                    Step::Missing(placement.missing_of(*process, group, absent))
                };
                plan.steps.insert(*process, step);
            }
        }
        plan
    }

    /// How the image of `process` is had; none for one that was not placed.
    #[must_use]
    pub fn step(&self, process: ProcessId) -> Option<&Step> {
        self.steps.get(&process)
    }

    /// All of them.
    pub fn steps(&self) -> impl Iterator<Item = (ProcessId, &Step)> {
        self.steps.iter().map(|(process, step)| (*process, step))
    }

    /// What can't be had; nothing where the epoch can be restored as a whole.
    pub fn missing(&self) -> impl Iterator<Item = &Missing> {
        self.steps.values().filter_map(|step| match step {
            Step::Missing(missing) => Some(missing),
            Step::Read { .. } | Step::Rebuild { .. } => None,
        })
    }
}

/// Whether a share can be of that group: the scheme is this one, and so are the members.
fn fits(placement: &Placement, header: &Header) -> bool {
    let members = placement.members(header.group as usize);
    header.check().is_ok()
        && header.scheme == placement.scheme()
        && header.images.iter().map(|image| image.process).eq(members.iter().copied())
}

/// The image of a process, where all that stores have are the same.
fn only<'a, 'b>(held: &'b Held<'a>) -> Option<(&'b Image, &'b Vec<&'a str>)> {
    let mut all = held.iter();
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

fn read(placement: &Placement, image: &Image, stores: &[&str]) -> Step {
    let order: Vec<&str> = placement.stores_of(image.process).collect();
    let mut stores: Vec<String> = stores.iter().map(|it| (*it).to_owned()).collect();
    let rank = |store: &String| order.iter().position(|it| it == store).unwrap_or(order.len());
    stores.sort_by_key(|store| (rank(store), store.clone()));
    stores.dedup();
    Step::Read { image: *image, stores }
}

/// Shares that were made of the same images, and are there.
struct Made<'a> {
    images: &'a [Image],
    shares: Vec<(usize, &'a str)>,
}

/// All images of the group that there is parity of, without those that contradict an image which is read as
/// it is: else a group could be of two epochs.
fn made<'a>(
    members: &[ProcessId],
    images: &BTreeMap<ProcessId, Held<'a>>,
    parity: &[(&'a Header, &'a str)],
) -> Vec<Made<'a>> {
    let kinds: BTreeSet<&[Image]> = parity.iter().map(|(it, _)| it.images.as_slice()).collect();
    let agrees = |kind: &&[Image]| {
        let mut read = kind.iter().filter_map(|it| Some((it, images.get(&it.process)?)));
        read.all(|(image, held)| only(held).is_none_or(|(only, _)| only == image))
    };
    let made = kinds.into_iter().filter(agrees).map(|kind| {
        let mut shares: BTreeMap<usize, &str> = BTreeMap::new();
        for (i, image) in kind.iter().enumerate() {
            let stores = images.get(&image.process).and_then(|held| held.get(image));
            if let Some(store) = stores.and_then(|stores| stores.first()) {
                shares.insert(i, store);
            }
        }
        for (header, store) in parity.iter().filter(|(it, _)| it.images == kind) {
            shares.entry(members.len() + header.index).or_insert(store);
        }
        Made { images: kind, shares: shares.into_iter().collect() }
    });
    made.collect()
}

/// The shares of a group that are of no use, and why.
fn absent(
    placement: &Placement,
    group: usize,
    epoch: u64,
    answers: &[Answer],
    images: &BTreeMap<ProcessId, Held<'_>>,
    made: &[Made<'_>],
) -> Vec<Absent> {
    // Of several, the shares that were made of most that is there.
    let best = made.iter().max_by_key(|made| made.shares.len());
    let several = made.iter().filter(|made| made.shares.len() >= made.images.len()).count() > 1;
    let used = |share: Share| {
        let mut shares = best.iter().flat_map(|made| &made.shares);
        !several && shares.any(|(index, _)| *index == share.index)
    };
    let why = |role: Role, store: &str| {
        let here = answers.iter().filter(|it| it.store == store);
        if here.clone().count() == 0 {
            return Why::Lost;
        }
        let mut epochs: BTreeSet<u64> = match role {
            Role::Image(process) => {
                let all = here.flat_map(|it| &it.images).filter(|it| it.process == process);
                all.map(|it| it.epoch).collect()
            }
            Role::Parity(index) => {
                let all = here.flat_map(|it| &it.parity);
                let own = all.filter(|it| it.group as usize == group && it.index == index);
                own.map(Header::epoch).collect()
            }
        };
        match (epochs.remove(&epoch), role) {
            (false, _) => Why::OtherEpochs(epochs.into_iter().collect()),
            (true, Role::Image(_)) => Why::Contradicts,
            (true, Role::Parity(_)) if several => Why::Contradicts,
            (true, Role::Parity(_)) => Why::OtherImages,
        }
    };
    // An image that can be read is not missing, even where no parity is of it.
    let readable = |role: &Role| match role {
        Role::Image(process) => images.get(process).and_then(only).is_some(),
        Role::Parity(_) => false,
    };
    placement
        .shares(group)
        .filter(|(share, role, _)| !used(*share) && !readable(role))
        .map(|(share, role, store)| Absent {
            share,
            role,
            store: store.to_owned(),
            why: why(role, store),
        })
        .collect()
}

#[cfg(test)]
mod tests;
