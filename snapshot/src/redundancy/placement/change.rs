//! What changes when a store is gone, one is added, or a process runs elsewhere.

use super::make::Exchange;
use super::seats::Seats;
use super::{Node, Placement, Role, Share};
use crate::Result;
use sojourn_fabric::names::ProcessId;

/// A share that has another store now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub share: Share,
    /// What it is.
    pub role: Role,
    /// Where it was.
    pub from: String,
    /// Where it has to be made.
    pub to: String,
}

impl Placement {
    /// Adds a node, or stores to one that is there. Nothing moves; what has to find a place later goes to
    /// them first, since they hold least.
    ///
    /// # Errors
    /// `EINVAL` for a store that is there already, or more than the limits. Nothing has changed then.
    pub fn add(&mut self, node: &Node) -> Result<()> {
        let mut next = self.clone();
        match next.node(&node.name) {
            Ok(at) => node.stores.iter().try_for_each(|store| next.add_place(at, store))?,
            Err(_) => next.add_node(node)?,
        }
        *self = next;
        Ok(())
    }

    /// These stores are gone (all those of a node, where it is the node that is gone): what they held is
    /// placed elsewhere. Returned is what has to be made anew.
    ///
    /// Only what was there moves. Where a share finds no place in that way, others of its own group make
    /// room for it: as few as can be, and never one of another group.
    ///
    /// # Errors
    /// `ENOENT` for an unknown store, `ENOSPC` where too few nodes are left: the message says how many are
    /// needed. Nothing has changed then; [`Placement::add`] first.
    pub fn replace(&mut self, gone: &[&str]) -> Result<Vec<Move>> {
        let mut next = self.clone();
        for name in gone {
            let store = next.place(name)?;
            next.places[store].gone = true;
        }
        let mut moves = Vec::new();
        for group in 0..next.groups.len() {
            let stores = next.groups[group].stores.iter().enumerate();
            let lost = stores.filter(|(_, it)| next.places[**it].gone).map(|(share, _)| share);
            let lost: Vec<usize> = lost.collect();
            next.place_again(group, &lost, &mut moves)?;
        }
        *self = next;
        Ok(moves)
    }

    /// `process` runs on another node now. Its images that are there move away.
    ///
    /// # Errors
    /// `ENOENT` for an unknown process or node, `ENOSPC` where there is no place for its images. Nothing
    /// has changed then.
    pub fn relocate(&mut self, process: ProcessId, node: &str) -> Result<Vec<Move>> {
        let mut next = self.clone();
        let home = next.node(node)?;
        let Some(group) = next.group_of(process) else {
            let message = format!("{process} is not one of those that were placed");
            return Err(crate::Error::new(libc::ENOENT, message));
        };
        next.homes.insert(process, home);
        let stores = next.groups[group].stores.iter().enumerate();
        let wrong = stores.filter(|(share, it)| {
            next.own(&next.groups[group], *share) == Some(next.places[**it].node)
        });
        let wrong: Vec<usize> = wrong.map(|(share, _)| share).collect();
        let mut moves = Vec::new();
        next.place_again(group, &wrong, &mut moves)?;
        *self = next;
        Ok(moves)
    }

    fn place_again(&mut self, at: usize, shares: &[usize], moves: &mut Vec<Move>) -> Result<()> {
        if shares.is_empty() {
            return Ok(());
        }
        let domains = self.domains();
        let group = &self.groups[at];
        let mut seats = Seats::new(group.stores.len(), &domains);
        for (share, store) in group.stores.iter().enumerate() {
            if !shares.contains(&share) {
                seats.set(share, self.places[*store].node, &domains);
            }
        }
        let both = [Exchange::No, Exchange::Yes];
        if !self.settle(group, &mut seats, shares, &both, &domains) {
            return Err(self.too_few(group));
        }
        for share in 0..self.groups[at].stores.len() {
            let from = self.groups[at].stores[share];
            let node = seats.node(share).unwrap_or_default();
            if !shares.contains(&share) && self.places[from].node == node {
                continue;
            }
            let to = self.least_loaded(node).unwrap_or_default();
            self.places[from].load -= 1;
            self.places[to].load += 1;
            self.groups[at].stores[share] = to;
            moves.push(Move {
                share: Share { group: at, index: share },
                role: self.role_in(&self.groups[at], share),
                from: self.places[from].name.clone(),
                to: self.places[to].name.clone(),
            });
        }
        Ok(())
    }
}
