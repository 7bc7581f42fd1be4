//! What this process has consumed, and telling its peers of it.
//!
//! A snapshot has two moments. At the *cut* the counts are taken, together with memory; that is what a
//! restored process has seen. When the epoch is *committed*, peers are told these counts, and let go of
//! what they cover. A cut that is never committed changes nothing.
//!
//! Queue pairs that are destroyed or reset between two commits are told of too, by an account of the
//! process that the peer goes through once, in order, whatever is asked twice on the way.

use super::Store;
use crate::error::{Error, Result};
use crate::names::{self, Consumed, Cover, Fetch, MAX_COVERS, ProcessId};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::lock_mutex;
use crossbeam_channel::unbounded;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Queue pairs that are gone, and of which no epoch has told yet. Of more the oldest are forgotten: what was
/// sent to them is kept by their peers until these let go of it for want of room.
const MAX_GONE: usize = 1 << 16;
/// What is waited beyond the deadline for the service to say that it has passed.
const GRACE: Duration = Duration::from_secs(1);
/// Numbers of messages count from here on in each life of a process.
const LIFE_SHIFT: u32 = 40;

/// Queue pairs of a context that have gone since the last commit.
#[derive(Default)]
pub(in crate::virt::core) struct Gone(Mutex<VecDeque<(ProcessId, Cover)>>);

impl Gone {
    /// Queue pair `own`, which was connected to queue pair `qpn` of `peer`, is gone; `number` grows.
    pub(in crate::virt::core) fn add(&self, peer: ProcessId, qpn: u32, own: u32, number: u64) {
        let mut gone = lock_mutex(&self.0);
        if gone.len() == MAX_GONE {
            gone.pop_front();
        }
        gone.push_back((peer, Cover { qpn, by: own, consumed: Consumed::Gone(number) }));
    }

    fn take(&self) -> Vec<(ProcessId, Cover)> {
        lock_mutex(&self.0).drain(..).collect()
    }

    /// They have not been told.
    fn put_back(&self, all: impl DoubleEndedIterator<Item = (ProcessId, Cover)>) {
        let mut gone = lock_mutex(&self.0);
        all.rev().for_each(|it| gone.push_front(it));
        gone.truncate(MAX_GONE);
    }
}

/// What peers have told of their commits, and the account of our own.
#[derive(Default)]
pub(in crate::virt::core) struct Committed {
    /// Of our messages, and of our queue pairs that are gone.
    next: AtomicU64,
    /// One commit at a time, so that their messages go in order.
    committing: Mutex<()>,
    /// For each peer: its last message, and the last of its queue pairs that it said is gone.
    heard: Mutex<HashMap<ProcessId, (u64, u64)>>,
}

impl Committed {
    /// A number larger than those before, in this life of the process and in earlier ones.
    pub(in crate::virt::core) fn number(&self, life: u32) -> u64 {
        (u64::from(life) << LIFE_SHIFT) + self.next.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// What a peer tells, as far as it is new, to those who have a log.
    pub(in crate::virt::core) fn hear(
        &self,
        peer: ProcessId,
        serial: u64,
        covers: &[Cover],
        stores: &[Arc<Store>],
    ) {
        let mut heard = lock_mutex(&self.heard);
        let (last, last_gone) = heard.entry(peer).or_default();
        if serial <= *last {
            // An answer was lost, and it asks again; or it has given up this one long ago.
            return;
        }
        *last = serial;
        for Cover { qpn, by, consumed } in covers {
            match *consumed {
                Consumed::Gone(number) if number <= *last_gone => {}
                Consumed::Gone(number) => {
                    *last_gone = number;
                    stores.iter().for_each(|store| store.gone(peer.0, *by, *qpn));
                }
                Consumed::Upto(messages) => {
                    for store in stores {
                        if let Err(beyond) = store.cover(peer.0, *by, *qpn, messages) {
                            tracing::warn!(
                                "{peer} says that its queue pair {by:#x} has consumed {} messages of \
                                 our queue pair {qpn:#x}, which has sent {}: ignored",
                                beyond.told,
                                beyond.posted
                            );
                        }
                    }
                }
            }
        }
    }
}

/// What every queue pair of a context has consumed at one moment: see
/// [`Context::cut`](crate::virt::Context::cut).
#[must_use = "a cut that is not committed lets nobody let go of anything"]
pub struct Cut {
    context: Arc<VirtualContext>,
    covers: BTreeMap<ProcessId, Vec<Cover>>,
    gone: Vec<(ProcessId, Cover)>,
}

/// Takes a cut.
pub(in crate::virt::core) fn cut_of(context: Arc<VirtualContext>) -> Cut {
    let mut covers: BTreeMap<ProcessId, Vec<Cover>> = BTreeMap::new();
    let gone = context.gone.take();
    for qp in context.qps.alive() {
        if let Some((peer, qpn)) = qp.met() {
            let consumed = Consumed::Upto(qp.received());
            covers.entry(peer).or_default().push(Cover { qpn, by: qp.qpn, consumed });
        }
    }
    Cut { context, covers, gone }
}

impl Cut {
    /// The epoch is committed: tells every peer, and waits until they have heard. They let go of what the
    /// cut covers. Not to be called on the service thread.
    ///
    /// # Errors
    /// `ETIMEDOUT` or what else kept a peer that lives from hearing; the message names it. It keeps what it
    /// has, and the next commit tells it all. (One that has died need not be told.)
    pub fn commit(mut self, deadline: Instant) -> Result<()> {
        let context = Arc::clone(&self.context);
        let local = context.local();
        let _one = lock_mutex(&local.committed.committing);
        let mut all: BTreeMap<ProcessId, Vec<Cover>> = BTreeMap::new();
        // In the order of their numbers, and before what their successors have consumed.
        for (peer, cover) in std::mem::take(&mut self.gone) {
            all.entry(peer).or_default().push(cover);
        }
        for (peer, covers) in std::mem::take(&mut self.covers) {
            all.entry(peer).or_default().extend(covers);
        }
        let mut failed: Option<Error> = None;
        // So many messages to each as it takes; all peers at a time.
        while !all.is_empty() {
            let (tell, told) = unbounded();
            let mut waiting = 0;
            for (peer, covers) in &all {
                let some = covers[..covers.len().min(MAX_COVERS)].to_vec();
                let serial = local.committed.number(local.grant().incarnation.0);
                if *peer == local.grant().process {
                    local.hear_committed(*peer, serial, &some);
                    let _ = tell.send((*peer, Ok(())));
                } else {
                    let (peer, tell) = (*peer, tell.clone());
                    let what = Fetch::Committed { serial, covers: some };
                    let done = Box::new(move |answer: names::Fetched| {
                        let _ = tell.send((peer, answer.map(drop)));
                    });
                    local.resolver().fetch(peer, what, deadline, done);
                }
                waiting += 1;
            }
            drop(tell);
            let mut silent: BTreeSet<ProcessId> = all.keys().copied().collect();
            let mut answers = Vec::new();
            while answers.len() < waiting
                && let Ok((peer, answer)) = told.recv_deadline(deadline + GRACE)
            {
                silent.remove(&peer);
                answers.push((peer, answer));
            }
            let what = || "a committed epoch".to_owned();
            let doing = || "the service thread of this process is kept busy".to_owned();
            answers.extend(silent.into_iter().map(|process| {
                let error = names::Error::Deadline { process, what: what(), doing: doing() };
                (process, Err(error))
            }));
            for (peer, answer) in answers {
                let Some(covers) = all.get_mut(&peer) else { continue };
                match answer {
                    Ok(()) => drop(covers.drain(..covers.len().min(MAX_COVERS))),
                    Err(names::Error::Gone { .. }) => covers.clear(),
                    Err(error) => {
                        let gone = covers.drain(..).filter(is_gone).map(|cover| (peer, cover));
                        self.gone.extend(gone);
                        let error = Error::from(error)
                            .context(format_args!("telling {peer} of a committed epoch"));
                        failed.get_or_insert(error);
                    }
                }
            }
            all.retain(|_, covers| !covers.is_empty());
        }
        failed.map_or(Ok(()), Err)
    }
}

fn is_gone(cover: &Cover) -> bool {
    matches!(cover.consumed, Consumed::Gone(_))
}

impl Drop for Cut {
    fn drop(&mut self) {
        let mut gone = std::mem::take(&mut self.gone);
        gone.sort_by_key(|(_, cover)| match cover.consumed {
            Consumed::Gone(number) => number,
            Consumed::Upto(_) => 0,
        });
        self.context.gone.put_back(gone.into_iter());
    }
}
