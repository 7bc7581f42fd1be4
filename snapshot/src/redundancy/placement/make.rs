//! A placement from nothing.

use super::seats::{Rules, Seats};
use super::{Group, Machine, Node, Place, Placement, Process, Scheme};
use crate::{Error, Result};
use sojourn_fabric::names::ProcessId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Whether shares that are placed already may be moved to make room for others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Exchange {
    No,
    Yes,
}

impl Placement {
    /// Places the processes' images and the parity of their groups.
    ///
    /// # Errors
    /// `EINVAL` for a scheme that is out of bounds, names that are given twice, a process on an unknown
    /// node, or more than the limits. `ENOSPC` where there are too few nodes with stores: the message says
    /// how many are needed.
    pub fn new(scheme: Scheme, nodes: &[Node], processes: &[Process]) -> Result<Self> {
        Placement::make(scheme, nodes, processes, Placement::deal)
    }

    /// The same with groups of processes that follow one another in the order of their numbers, wherever they
    /// run. So a group stays what it is when a process goes on on another node, and what there is of its parity
    /// is parity of it still.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn numbered(scheme: Scheme, nodes: &[Node], processes: &[Process]) -> Result<Self> {
        Placement::make(scheme, nodes, processes, |made| {
            let order = made.homes.keys().copied().collect();
            made.cut(order);
        })
    }

    fn make(
        scheme: Scheme,
        nodes: &[Node],
        processes: &[Process],
        deal: impl FnOnce(&mut Placement),
    ) -> Result<Self> {
        scheme.check()?;
        let mut made = Placement {
            scheme,
            nodes: Vec::new(),
            domains: BTreeMap::new(),
            next_domain: 0,
            places: Vec::new(),
            homes: BTreeMap::new(),
            groups: Vec::new(),
            group_of: BTreeMap::new(),
        };
        for node in nodes {
            made.add_node(node)?;
        }
        if processes.len() > Self::MAX_PROCESSES {
            let many = processes.len();
            let most = Self::MAX_PROCESSES;
            return Err(Error::invalid(format!("{many} processes to place: at most {most}")));
        }
        for process in processes {
            let node = made.node(&process.node).map_err(|_| {
                let Process { id, node } = process;
                Error::invalid(format!("{id} runs on {node:?}, which is no node of the job"))
            })?;
            if made.homes.insert(process.id, node).is_some() {
                return Err(Error::invalid(format!("{} is named twice", process.id)));
            }
        }
        deal(&mut made);
        for group in 0..made.groups.len() {
            made.place_group(group)?;
        }
        made.balance();
        Ok(made)
    }

    /// A node more; it holds nothing yet.
    pub(super) fn add_node(&mut self, node: &Node) -> Result<()> {
        if self.nodes.len() == Self::MAX_NODES {
            return Err(Error::invalid(format!("more than {} nodes", Self::MAX_NODES)));
        }
        if self.nodes.iter().any(|it| it.name == node.name) {
            return Err(Error::invalid(format!("two nodes are called {:?}", node.name)));
        }
        let mut fresh = || {
            self.next_domain += 1;
            self.next_domain - 1
        };
        let domain = match &node.domain {
            Some(name) => *self.domains.entry(name.clone()).or_insert_with(&mut fresh),
            None => fresh(),
        };
        let name = node.name.clone();
        self.nodes.push(Machine { name, domain, stores: Vec::new() });
        let at = self.nodes.len() - 1;
        node.stores.iter().try_for_each(|store| self.add_place(at, store))
    }

    pub(super) fn add_place(&mut self, node: usize, store: &str) -> Result<()> {
        if self.places.len() == Self::MAX_NODES {
            return Err(Error::invalid(format!("more than {} stores", Self::MAX_NODES)));
        }
        if self.places.iter().any(|it| it.name == *store) {
            return Err(Error::invalid(format!("two stores are called {store:?}")));
        }
        self.nodes[node].stores.push(self.places.len());
        self.places.push(Place { name: store.to_owned(), node, gone: false, load: 0 });
        Ok(())
    }

    /// Deals the processes to groups: one of each node in turn.
    fn deal(&mut self) {
        let mut turn: BTreeMap<usize, usize> = BTreeMap::new();
        let mut order = Vec::new();
        for (process, node) in &self.homes {
            let round = turn.entry(*node).or_default();
            order.push((*round, *node, *process));
            *round += 1;
        }
        order.sort_unstable();
        self.cut(order.into_iter().map(|(_, _, process)| process).collect());
    }

    /// Cuts the processes, in this order, into even pieces.
    fn cut(&mut self, order: Vec<ProcessId>) {
        let many = order.len().div_ceil(self.scheme.group());
        let mut rest = order.iter().copied();
        for group in 0..many {
            // The first ones take what is over.
            let size = order.len() / many + usize::from(group < order.len() % many);
            let members: Vec<_> = rest.by_ref().take(size).collect();
            self.group_of.extend(members.iter().map(|process| (*process, group)));
            self.groups.push(Group { members, stores: Vec::new() });
        }
    }

    fn place_group(&mut self, at: usize) -> Result<()> {
        let shares = self.shares_of(&self.groups[at]);
        let domains = self.domains();
        let mut seats = Seats::new(shares, &domains);
        let all: Vec<usize> = (0..shares).collect();
        if !self.settle(&self.groups[at], &mut seats, &all, &[Exchange::Yes], &domains) {
            return Err(self.too_few(&self.groups[at]));
        }
        for share in all {
            let node = seats.node(share).unwrap_or_default();
            let store = self.least_loaded(node).unwrap_or_default();
            self.places[store].load += 1;
            self.groups[at].stores.push(store);
        }
        Ok(())
    }

    /// How many shares a group has, placed or not.
    pub(super) fn shares_of(&self, group: &Group) -> usize {
        match self.scheme {
            Scheme::Copies(copies) => copies,
            _ => group.members.len() + self.scheme.parity(),
        }
    }

    /// The failure domain of each node.
    pub(super) fn domains(&self) -> Vec<usize> {
        self.nodes.iter().map(|node| node.domain).collect()
    }

    pub(super) fn least_loaded(&self, node: usize) -> Option<usize> {
        let stores = self.nodes[node].stores.iter().copied();
        stores.filter(|it| !self.places[*it].gone).min_by_key(|it| self.places[*it].load)
    }

    /// Nodes with a store, those first whose store holds least; among equals those that follow `start`.
    fn by_load(&self, start: usize) -> Vec<usize> {
        let many = self.nodes.len();
        let load = |node: usize| self.least_loaded(node).map(|store| self.places[store].load);
        let mut order: Vec<_> = (0..many)
            .filter_map(|node| Some((load(node)?, (node + many - start) % many, node)))
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, node)| node).collect()
    }

    /// Places the shares `todo`: first of all in as many domains as can be, then by the fewest exchanges,
    /// then out of the domains of their processes.
    pub(super) fn settle(
        &self,
        group: &Group,
        seats: &mut Seats,
        todo: &[usize],
        exchanges: &[Exchange],
        domains: &[usize],
    ) -> bool {
        let shares = self.shares_of(group);
        let start = self.homes.get(&group.members[0]).map_or(0, |node| node + 1);
        let order = self.by_load(start);
        let spread: BTreeSet<usize> = order.iter().map(|node| domains[*node]).collect();
        if order.len() < shares {
            return false;
        }
        let least = shares.div_ceil(spread.len()).max(seats.crowd());
        for most in least..=shares {
            for exchange in exchanges {
                for apart in [true, false] {
                    let allowed = |share: usize, node: usize| {
                        self.own(group, share).is_none_or(|own| {
                            own != node && !(apart && domains[own] == domains[node])
                        })
                    };
                    let rules = Rules { allowed: &allowed, domains, order: &order, most };
                    let mut trial = seats.clone();
                    let placed = todo.iter().all(|share| match exchange {
                        Exchange::No => trial.place_alone(*share, &rules),
                        Exchange::Yes => trial.place(*share, &rules),
                    });
                    if placed {
                        *seats = trial;
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Moves shares from the fullest stores to the emptiest, as long as no rule suffers.
    fn balance(&mut self) {
        let mut held: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.places.len()];
        for (at, group) in self.groups.iter().enumerate() {
            group.stores.iter().enumerate().for_each(|(share, it)| held[*it].push((at, share)));
        }
        // Each step makes the sum of squares of the loads smaller, so there is an end.
        while let Some((from, at, to)) = self.lighter(&held) {
            let (group, share) = held[from].remove(at);
            held[to].push((group, share));
            self.groups[group].stores[share] = to;
            self.places[from].load -= 1;
            self.places[to].load += 1;
        }
    }

    /// A share whose move makes loads more even: its store, its index there, and the other store.
    fn lighter(&self, held: &[Vec<(usize, usize)>]) -> Option<(usize, usize, usize)> {
        let mut order: Vec<usize> = (0..self.places.len()).collect();
        order.sort_by_key(|store| self.places[*store].load);
        for &from in order.iter().rev() {
            for &to in &order {
                if self.places[from].load < self.places[to].load + 2 {
                    break;
                }
                let mut shares = held[from].iter();
                if let Some(at) =
                    shares.position(|(group, share)| self.may_move(*group, *share, to))
                {
                    return Some((from, at, to));
                }
            }
        }
        None
    }

    /// Whether `share` could as well be on store `to`.
    fn may_move(&self, group: usize, share: usize, to: usize) -> bool {
        let group = &self.groups[group];
        let from = group.stores[share];
        let node = self.places[to].node;
        if node == self.places[from].node {
            return true;
        }
        if group.stores.iter().any(|it| self.places[*it].node == node) {
            return false;
        }
        let fits = self.own(group, share).is_none_or(|own| {
            let home = self.nodes[own].domain;
            own != node && (self.domain_of(to) != home || self.domain_of(from) == home)
        });
        let in_domain = |domain: usize, but: Option<usize>| {
            let others = group.stores.iter().enumerate().filter(|(i, _)| Some(*i) != but);
            others.filter(|(_, it)| self.domain_of(**it) == domain).count()
        };
        let crowd = group.stores.iter().map(|it| in_domain(self.domain_of(*it), None)).max();
        fits && Some(in_domain(self.domain_of(to), Some(share)) + 1) <= crowd
    }

    /// Why a group has no place.
    pub(super) fn too_few(&self, group: &Group) -> Error {
        let scheme = self.scheme;
        let shares = self.shares_of(group);
        let usable = |node: &usize| self.least_loaded(*node).is_some();
        let have = (0..self.nodes.len()).filter(usable).count();
        let have_text = if have == self.nodes.len() {
            format!("this job has {have}")
        } else {
            format!("this job has {have}, and {} without", self.nodes.len() - have)
        };
        let message = match scheme {
            Scheme::Copies(copies) => {
                let process = group.members[0];
                let home = self.homes.get(&process).copied().unwrap_or_default();
                let others = have - usize::from(usable(&home));
                format!(
                    "{scheme} needs {copies} other nodes with stores beside {:?}, on which {process} \
                     runs; {have_text}, which leaves {others}",
                    self.nodes[home].name
                )
            }
            _ => format!(
                "{scheme} needs {shares} nodes with stores, for the images of {} processes and {} of \
                 parity; {have_text}",
                group.members.len(),
                scheme.parity()
            ),
        };
        Error::new(libc::ENOSPC, message)
    }

    /// The stores in use, those first that hold most.
    #[must_use]
    pub fn loads(&self) -> Vec<(&str, usize)> {
        let mut loads: Vec<_> = self
            .places
            .iter()
            .filter(|it| !it.gone)
            .map(|it| (it.name.as_str(), it.load))
            .collect();
        loads.sort_by_key(|(_, load)| Reverse(*load));
        loads
    }
}
