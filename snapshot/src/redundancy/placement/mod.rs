//! Which store holds what of whom.
//!
//! Processes are dealt to *groups*, and each group has *shares*, one store for each:
//!
//! | scheme | members of a group | shares |
//! | --- | --- | --- |
//! | `copies:K` | one | K, each an image of the member |
//! | `xor:G`, `rs:D+P` | up to G or D | first an image of each member, in their order, then the parity |
//!
//! Groups are as few as there can be, and of sizes that differ by one at most. Members that follow one
//! another in a group run on different nodes, where that is possible.
//!
//! # Rules
//!
//! 1. No process's image is on the node that it runs on.
//! 2. All shares of a group are on different nodes. So a node that is lost takes one share of each group
//!    at most, and [`Scheme::losses`] holds for any nodes.
//! 3. They are on different failure domains, where these are named and there are enough; otherwise on as
//!    many as there are, none with more shares than it must have. A node without a named domain is one
//!    for itself. [`Placement::domain_losses`] says what that is worth.
//! 4. Where it costs none of this, an image is not in the failure domain that its process runs in.
//! 5. Stores hold as many shares as others, as far as the rules allow.
//!
//! The same input gives the same placement everywhere. A change moves what has to move and nothing else:
//! see [`Placement::replace`].

mod change;
mod make;
mod seats;

pub use change::Move;

use super::{Absent, Missing, Scheme, Why};
use crate::{Error, Result};
use sojourn_fabric::names::ProcessId;
use std::collections::{BTreeMap, BTreeSet};

/// A machine, and the stores on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name; no other node has it.
    pub name: String,
    /// What fails together with others: a rack, a chassis, a power supply.
    pub domain: Option<String>,
    /// The names of its stores, if it has any; no other store has them.
    pub stores: Vec<String>,
}

/// A process, and where it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in the job.
    pub id: ProcessId,
    /// The name of its node.
    pub node: String,
}

/// One share of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// The group's index.
    pub group: usize,
    /// Which of its shares, from 0.
    pub index: usize,
}

/// What a share is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// An image of this process.
    Image(ProcessId),
    /// The parity of this index.
    Parity(usize),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Machine {
    name: String,
    domain: usize,
    stores: Vec<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    name: String,
    node: usize,
    gone: bool,
    /// How many shares it holds.
    load: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    members: Vec<ProcessId>,
    /// The store of each share.
    stores: Vec<usize>,
}

/// Which store holds what of whom: see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    scheme: Scheme,
    nodes: Vec<Machine>,
    /// By number; a node without a named one has a number that no name leads to.
    domains: BTreeMap<String, usize>,
    next_domain: usize,
    places: Vec<Place>,
    /// The node of each process.
    homes: BTreeMap<ProcessId, usize>,
    groups: Vec<Group>,
    group_of: BTreeMap<ProcessId, usize>,
}

impl Placement {
    /// Most nodes of a job, and most stores. Bounds the time that it takes to make a placement.
    pub const MAX_NODES: usize = 1 << 13;
    /// Most processes of a job.
    pub const MAX_PROCESSES: usize = 1 << 16;

    /// The scheme.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// How many groups there are.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The members of a group, in the order of their images; none where there is no such group.
    #[must_use]
    pub fn members(&self, group: usize) -> &[ProcessId] {
        self.groups.get(group).map_or(&[], |group| &group.members)
    }

    /// The group that a process is in.
    #[must_use]
    pub fn group_of(&self, process: ProcessId) -> Option<usize> {
        self.group_of.get(&process).copied()
    }

    /// The node that a process runs on.
    #[must_use]
    pub fn home_of(&self, process: ProcessId) -> Option<&str> {
        self.homes.get(&process).map(|node| self.nodes[*node].name.as_str())
    }

    /// The shares of a group, each with what it is and the store that holds it.
    pub fn shares(&self, group: usize) -> impl Iterator<Item = (Share, Role, &str)> {
        let stores = self.groups.get(group).map_or(&[][..], |group| &group.stores);
        stores.iter().enumerate().map(move |(index, store)| {
            let share = Share { group, index };
            (share, self.role_in(&self.groups[group], index), self.places[*store].name.as_str())
        })
    }

    /// The stores that hold an image of `process`, the first first.
    pub fn stores_of(&self, process: ProcessId) -> impl Iterator<Item = &str> {
        let shares = self.group_of(process).into_iter().flat_map(|group| self.shares(group));
        shares.filter(move |(_, role, _)| *role == Role::Image(process)).map(|(_, _, store)| store)
    }

    /// What a store holds.
    pub fn held_by(&self, store: &str) -> impl Iterator<Item = (Share, Role)> {
        let all = (0..self.groups.len()).flat_map(|group| self.shares(group));
        all.filter(move |(_, _, place)| *place == store).map(|(share, role, _)| (share, role))
    }

    /// The stores of a node that are in use, or could be.
    pub fn stores_on(&self, node: &str) -> impl Iterator<Item = &str> {
        let node = self.nodes.iter().position(|it| it.name == node);
        let places = self.places.iter().filter(move |it| Some(it.node) == node && !it.gone);
        places.map(|it| it.name.as_str())
    }

    /// Whether a share of this group is on the node that the store is on.
    #[must_use]
    pub fn holds_of(&self, store: &str, group: usize) -> bool {
        let node = self.places.iter().find(|it| it.name == store).map(|it| it.node);
        let stores = self.groups.get(group).map_or(&[][..], |group| &group.stores);
        stores.iter().any(|it| Some(self.places[*it].node) == node)
    }

    /// How many whole failure domains may be lost with the epochs of all processes still there:
    /// as many as [`Scheme::losses`] where no two shares of a group are in one domain, else fewer.
    #[must_use]
    pub fn domain_losses(&self) -> usize {
        let crowd = |group: &Group| {
            let mut count: BTreeMap<usize, usize> = BTreeMap::new();
            group.stores.iter().for_each(|it| *count.entry(self.domain_of(*it)).or_default() += 1);
            let mut count: Vec<usize> = count.into_values().collect();
            count.sort_unstable_by(|a, b| b.cmp(a));
            // The worst is that the fullest domains go first.
            let mut lost = 0;
            let within = |many: &&usize| {
                lost += **many;
                lost <= self.scheme.losses()
            };
            count.iter().take_while(within).count()
        };
        let most = self.scheme.losses();
        self.groups.iter().map(crowd).min().unwrap_or(most).min(most)
    }

    /// Whose images can't be had any more where these nodes are lost, each with what of it is gone. Nobody's
    /// where they are [`Scheme::losses`] or fewer.
    ///
    /// # Errors
    /// `ENOENT` for a node that is not of the job.
    pub fn missing(&self, lost: &[&str]) -> Result<Vec<Missing>> {
        let mut gone = BTreeSet::new();
        for name in lost {
            gone.insert(self.node(name)?);
        }
        let mut missing = Vec::new();
        for (index, group) in self.groups.iter().enumerate() {
            let absent: Vec<Absent> = self
                .shares(index)
                .zip(&group.stores)
                .filter(|(_, store)| gone.contains(&self.places[**store].node))
                .map(|((share, role, store), _)| Absent {
                    share,
                    role,
                    store: store.to_owned(),
                    why: Why::Lost,
                })
                .collect();
            if absent.len() <= self.scheme.losses() {
                continue;
            }
            for process in &group.members {
                let image = Role::Image(*process);
                let mut own = self.shares(index).filter(|(_, role, _)| *role == image);
                if own.all(|(share, ..)| absent.iter().any(|it| it.share == share)) {
                    missing.push(self.missing_of(*process, index, absent.clone()));
                }
            }
        }
        Ok(missing)
    }

    pub(super) fn missing_of(
        &self,
        process: ProcessId,
        group: usize,
        absent: Vec<Absent>,
    ) -> Missing {
        let shares = self.groups[group].stores.len();
        Missing { process, scheme: self.scheme, group, shares, absent }
    }

    fn role_in(&self, group: &Group, index: usize) -> Role {
        match self.scheme {
            Scheme::Copies(_) => Role::Image(group.members[0]),
            _ => group
                .members
                .get(index)
                .map_or(Role::Parity(index.saturating_sub(group.members.len())), |process| {
                    Role::Image(*process)
                }),
        }
    }

    /// The node that this share must not be on.
    fn own(&self, group: &Group, index: usize) -> Option<usize> {
        match self.role_in(group, index) {
            Role::Image(process) => self.homes.get(&process).copied(),
            Role::Parity(_) => None,
        }
    }

    fn domain_of(&self, store: usize) -> usize {
        self.nodes[self.places[store].node].domain
    }

    fn node(&self, name: &str) -> Result<usize> {
        self.nodes.iter().position(|node| node.name == name).ok_or_else(|| {
            Error::new(libc::ENOENT, format!("the job has no node that is called {name:?}"))
        })
    }

    fn place(&self, name: &str) -> Result<usize> {
        self.places.iter().position(|place| place.name == name).ok_or_else(|| {
            Error::new(libc::ENOENT, format!("the job has no store that is called {name:?}"))
        })
    }
}

#[cfg(test)]
mod tests;
