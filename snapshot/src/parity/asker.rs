//! Asking the stores of one group for its parity, epoch for epoch.
//!
//! One does it for each group: a process of it, or who decides for the job. Each share has a store that the placement
//! names, and others that may take its place. A store that is gone, or refuses, is replaced by the next, which makes
//! all of the share anew, in the same epoch. What stays of a share elsewhere is of older epochs.

use super::member_of;
use super::task::{MAX_STORES, Made, Task};
use crate::epoch::{Answer, Epoch, Incarnation, Member, Request};
use crate::redundancy::Placement;
use crate::redundancy::placement::Role;
use crate::store::{Client, Gather};
use crate::{Error, Result};
use sojourn_fabric::names::{Endpoint, JobKey};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Between asking again where a share is not made yet.
const AGAIN: Duration = Duration::from_millis(1);
/// How long a store may take to be connected to. It lives, or another takes its place.
const CONNECT: Duration = Duration::from_secs(2);

/// What asking needs to know. Stores are named in the placement by where they listen.
#[derive(Clone, Debug)]
pub struct Asking<'a> {
    /// The key of the stores.
    pub key: &'a JobKey,
    /// Who is in which group, and which store holds what.
    pub placement: &'a Placement,
    /// The group.
    pub group: usize,
    /// Every store.
    pub stores: &'a [Endpoint],
    /// Bytes of the longest slot of a process of the group.
    pub bytes: u64,
    /// For which life: larger than all that have asked before.
    pub life: u32,
}

/// Who asks for the parity of one group.
pub struct Asker {
    key: JobKey,
    incarnation: Incarnation,
    shares: Vec<Share>,
}

/// One share of parity.
struct Share {
    task: Task,
    /// Where it may be, the best place first; those that failed go to the end.
    places: Vec<Endpoint>,
    client: Option<Client>,
}

impl Asker {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// `EINVAL` for a group that the placement does not have, a scheme without parity, or slots that cannot be.
    pub fn new(asking: &Asking<'_>) -> Result<Asker> {
        let Asking { key, placement, group, stores, bytes, life } = *asking;
        let held: Vec<_> = placement.shares(group).collect();
        if held.is_empty() || placement.scheme().parity() == 0 {
            let scheme = placement.scheme();
            return Err(Error::invalid(format!("{scheme} has no parity of group {group}")));
        }
        let number = u32::try_from(group).unwrap_or(u32::MAX);
        let members = placement.members(group);
        let text = |at: &Endpoint| at.to_string();
        // Those of the group first: there may be more than a task names.
        let mut all: Vec<String> = held.iter().map(|(_, _, store)| (*store).to_owned()).collect();
        all.extend(stores.iter().map(text).filter(|at| !held.iter().any(|it| it.2 == *at)));
        all.truncate(MAX_STORES);
        let first = (0u16..).take(members.len()).collect();
        let mut shares = vec![];
        for (_, role, at) in &held {
            let Role::Parity(index) = *role else { continue };
            let task = Task {
                scheme: placement.scheme(),
                group: number,
                index: u8::try_from(index).unwrap_or(u8::MAX),
                members: members.iter().map(|it| Member(it.0.into())).collect(),
                stores: all.clone(),
                first: Vec::clone(&first),
                bytes,
            };
            task.check()?;
            shares.push(Share { task, places: places(placement, group, at, stores), client: None });
        }
        let incarnation = Incarnation::of_life(life).next();
        Ok(Asker { key: key.clone(), incarnation, shares })
    }

    /// Has all shares of `epoch` made, where this epoch is committed; returns when all are there.
    ///
    /// # Errors
    /// Why one is not: `EAGAIN` where an image is missing, `ENOSPC` where no store is left for it, `ESTALE` where a
    /// newer life asks, `ETIMEDOUT`. What was committed still is.
    pub fn gather(&mut self, epoch: Epoch, committed: Epoch, until: Instant) -> Result<Vec<Made>> {
        let mut made: Vec<Option<Made>> = vec![None; self.shares.len()];
        // Stores that failed in this epoch.
        let mut failed: Vec<BTreeSet<String>> = vec![BTreeSet::new(); self.shares.len()];
        loop {
            for ((share, made), failed) in self.shares.iter_mut().zip(&mut made).zip(&mut failed) {
                if made.is_none() {
                    *made = share.ask(&self.key, self.incarnation, epoch, committed, failed)?;
                }
            }
            if made.iter().all(Option::is_some) {
                return Ok(made.into_iter().flatten().collect());
            }
            if Instant::now() > until {
                let text = format!("parity of {epoch} was not made in time");
                return Err(Error::new(libc::ETIMEDOUT, text));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Tells the stores that an epoch is committed. One that does not hear it hears it with the next.
    pub fn note(&mut self, epoch: Epoch) {
        let request = Request::Note { incarnation: self.incarnation, epoch };
        for share in &mut self.shares {
            let member = share.member();
            let Some(client) = &mut share.client else { continue };
            match client.request(member, request) {
                Ok(Answer::Noted(_)) => {}
                Ok(other) => tracing::debug!("a store of parity does not note {epoch}: {other:?}"),
                Err(error) => {
                    tracing::warn!("a store of parity is lost: {error}");
                    share.client = None;
                }
            }
        }
    }

    /// Where each share is, or would be next.
    pub fn places(&self) -> impl Iterator<Item = &Endpoint> {
        self.shares.iter().filter_map(|share| share.places.first())
    }
}

impl Share {
    fn member(&self) -> Member {
        member_of(self.task.group, usize::from(self.task.index))
    }

    /// What has become of it; `None` where that has to be asked again.
    fn ask(
        &mut self,
        key: &JobKey,
        incarnation: Incarnation,
        epoch: Epoch,
        committed: Epoch,
        failed: &mut BTreeSet<String>,
    ) -> Result<Option<Made>> {
        let Some(at) = self.places.first().filter(|at| !failed.contains(&at.to_string())) else {
            let (index, group) = (self.task.index, self.task.group);
            let text = format!("no store is left for parity {index} of group {group}");
            return Err(Error::new(libc::ENOSPC, text));
        };
        let gather = Gather { incarnation, epoch, committed, task: self.task.clone() };
        let client = match self.client.take() {
            Some(client) => Ok(client),
            None => Client::connect(at, key, Instant::now() + CONNECT),
        };
        let asked = client.and_then(|mut client| Ok((client.gather(gather)?, client)));
        match asked {
            Ok((outcome, client)) => {
                self.client = Some(client);
                match outcome {
                    Ok(made) => Ok(Some(made)),
                    Err(Answer::Wait) => Ok(None),
                    Err(Answer::Stale(newest)) => {
                        let text = format!("another life asks for parity: {newest}");
                        Err(Error::new(libc::ESTALE, text))
                    }
                    Err(Answer::Refused(why)) => Err(Error::new(libc::EAGAIN, why)),
                    Err(other) => Err(Error::new(libc::EPROTO, format!("a store says {other:?}"))),
                }
            }
            Err(error) => {
                tracing::warn!("a store of parity is replaced: {error}");
                failed.insert(at.to_string());
                self.places.rotate_left(1);
                Ok(None)
            }
        }
    }
}

/// Where a share may be: the store that the placement names, then those on nodes that hold nothing of the group,
/// then the others: a share beside another is more than none.
fn places(placement: &Placement, group: usize, at: &str, stores: &[Endpoint]) -> Vec<Endpoint> {
    let mut all: Vec<(u8, Endpoint)> = stores
        .iter()
        .map(|store| {
            let text = store.to_string();
            let rank = if text == at { 0 } else { 1 + u8::from(placement.holds_of(&text, group)) };
            (rank, store.clone())
        })
        .collect();
    all.sort_by_key(|(rank, _)| *rank);
    all.into_iter().map(|(_, store)| store).collect()
}
