//! What devices have written into this process's memory.
//!
//! A NIC writes through pinned pages, and no dirty tracker of a kernel sees it. So virtual verbs say it
//! themselves, where a context is told to ([`Policy::tracking`](crate::virt::Policy)):
//!
//! | who writes | where it is known from |
//! | --- | --- |
//! | receives that were consumed | the receive window: whole buffers, whatever the length of the message |
//! | READs and results of atomics | the send window |
//! | WRITEs and atomics of peers | *their* send windows: each process records what it has written, by peer and key, and is asked |
//! | records of peers ([`Word`](super::record::Word)) | always counted as written |
//!
//! Nothing is marked when a request is posted or completes. A window keeps what it held until its place is used again,
//! so it is looked through when that is about to happen, once for as many requests as it is deep; and when somebody
//! asks. What is still out then is marked by whoever wrote it, and stays to be marked again: it may land
//! later. Receives that are still out are not, where they are filled as a whole or not at all: of a
//! reliable queue pair whose peer stands still as well. Of one whose peer has failed, or does not say, the first that is
//! out counts, which may have been filled in part; of one that has failed itself, all.
//!
//! # Epochs
//!
//! [`Context::written`](crate::virt::Context::written) asks for all that was written since the last *committed*
//! report. Each report has a number, larger than those before. [`Written::commit`] says that what was
//! reported is safe: this process and its peers let go of what they had when that report was made, and keep
//! what came after. A report that is never committed is contained in the next. So is one whose commit
//! a peer did not hear: it tells more than it must, never less.
//!
//! A record belongs to a process, and all of its contexts that track: one and the same takes its epochs.
//!
//! # Where a record cannot be had
//!
//! All that the writer could have written counts: every region of the protection domain of its connection that
//! allows remote writes or atomics, with those that have been deregistered since. That is so where a peer is dead,
//! or silent; where it was started anew since the connection was made ([`QpnRecord::life`](crate::names::QpnRecord)),
//! which forgot what its former self had written; where it does not track, or has lost count; and for whoever
//! is connected from outside the job.
//!
//! # Bounds
//!
//! Marks are bits of 4 KiB pages, 64 in a word. A record has at most [`MAX_CHUNKS`](marks::MAX_CHUNKS) words for each
//! peer; then a key counts as written altogether, and beyond [`MAX_KEYS`](marks::MAX_KEYS) keys everything does.
//!
//! # Locks
//!
//! A queue pair's side, then the record of a peer, or our own marks. Regions, then nothing.

mod ended;
mod marks;
mod record;
mod report;
mod watching;

pub use report::Written;
pub(super) use report::report;
pub(super) use watching::{Look, Source, Tracked};

use super::local::{Local, Region};
use super::lock_mutex;
use crate::names::{ProcessId, WrittenPart};
use ended::Ended;
use marks::Pages;
use record::Records;
use sojourn_logging::Element;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What a process knows of device writes: of its own, and of those into its memory.
#[derive(Default)]
pub(super) struct Writes {
    /// A context of this process tracks.
    on: AtomicBool,
    /// Some region is not addressed as it lies in memory.
    zero_based: AtomicBool,
    /// The last report that was asked for.
    reported: AtomicU64,
    own: Mutex<Own>,
    ended: Mutex<Ended>,
    sources: Mutex<HashMap<Source, Standing>>,
    /// What this process has written at others.
    records: Records,
}

/// Addresses of this process into which its own receives, READs and atomics have written.
#[derive(Default)]
struct Own {
    since: OwnMarks,
    pending: OwnMarks,
    /// The report that `pending` belongs to.
    report: u64,
}

#[derive(Default)]
struct OwnMarks {
    pages: Pages,
    /// There were too many: everything counts.
    overflowed: bool,
}

/// Connections with one writer.
#[derive(Default)]
struct Standing {
    live: usize,
    /// The last report before the last of them ended.
    stamp: u64,
}

impl Writes {
    /// A context tracks from here on.
    pub(super) fn begin(&self) {
        self.on.store(true, Ordering::Release);
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// A region whose addresses are not those of its memory is registered.
    pub(super) fn has_zero_based(&self) {
        self.zero_based.store(true, Ordering::Release);
    }

    /// A region is about to be deregistered: it may have been written since the last report, and may be to the end.
    pub(super) fn region_ends(&self, key: u32, region: &Region) {
        if self.is_on() {
            let whole = lock_mutex(&self.ended).add(key, region);
            if let Some((base, length)) = whole {
                lock_mutex(&self.own).mark(base, length);
            }
        }
    }

    /// No device writes there any more.
    pub(super) fn region_has_ended(&self, key: u32) {
        if self.is_on() {
            let stamp = self.reported.load(Ordering::Acquire);
            lock_mutex(&self.ended).has_ended(key, stamp);
        }
    }

    /// A queue pair of a context that tracks is about to be connected.
    fn connects(&self, source: Source) {
        lock_mutex(&self.sources).entry(source).or_default().live += 1;
    }

    /// Its connection has ended.
    fn disconnects(&self, source: Source) {
        let mut sources = lock_mutex(&self.sources);
        if let Some(standing) = sources.get_mut(&source) {
            standing.live = standing.live.saturating_sub(1);
            // Under the lock under which a report is begun: it has this one, or its stamp.
            standing.stamp = self.reported.load(Ordering::Acquire);
        }
    }

    /// A queue pair that does not track is connected to that process: of what it writes nobody will know.
    pub(super) fn writes_unseen(&self, peer: ProcessId) {
        self.records.with(peer, |record| record.is_blind = true);
    }

    /// That process has left the job for good, and will not ask.
    pub(super) fn forget_peer(&self, peer: ProcessId) {
        self.records.forget(peer);
    }

    /// A device has written, or may have written, into these.
    pub(super) fn mark_elements(&self, local: &Local, elements: impl Iterator<Item = Element>) {
        let zero_based = self.zero_based.load(Ordering::Acquire);
        let regions = zero_based.then(|| local.regions());
        let mut marks = Vec::new();
        for Element { addr, length, lkey } in elements.filter(|it| it.length > 0) {
            let length = u64::from(length);
            match regions.as_ref().map(|regions| regions.get(&lkey)) {
                None => marks.push((addr, length)),
                Some(Some(region)) => {
                    let at = addr.wrapping_sub(region.start).wrapping_add(region.base as u64);
                    marks.push((at, length));
                }
                // Deregistered since; or never there, and then nothing was written.
                Some(None) => {
                    let ended = lock_mutex(&self.ended);
                    marks.extend(ended.resolve(lkey, addr, addr.saturating_add(length)));
                }
            }
        }
        drop(regions);
        let mut own = lock_mutex(&self.own);
        marks.into_iter().for_each(|(addr, length)| own.mark(addr, length));
    }

    /// A peer has recorded there, or may have.
    fn mark_word(&self, addr: u64) {
        lock_mutex(&self.own).mark(addr, 8);
    }

    /// What this process has written at `asker`, as of the report of that number: a part of it.
    pub(super) fn tell(
        &self,
        local: &Arc<Local>,
        asker: ProcessId,
        report: u64,
        part: u32,
    ) -> WrittenPart {
        let is_new = self.records.with(asker, |record| record.is_new(report));
        if is_new && part == 0 {
            watching::look_through_sends_to(local, asker);
        }
        let life = local.grant().incarnation;
        self.records.with(asker, |record| record.tell(life, report, part))
    }

    /// What was told for that report is safe at `asker`.
    pub(super) fn let_go(&self, asker: ProcessId, report: u64) {
        self.records.with(asker, |record| record.let_go(report));
    }

    /// The same for what this process has of itself.
    fn let_go_own(&self, report: u64) {
        {
            let mut own = lock_mutex(&self.own);
            if own.report == report {
                own.pending = OwnMarks::default();
            }
        }
        lock_mutex(&self.ended).let_go(report);
        lock_mutex(&self.sources).retain(|_, it| it.live > 0 || it.stamp >= report);
    }
}

impl Own {
    fn mark(&mut self, addr: u64, length: u64) {
        let since = &mut self.since;
        if since.pages.len() + marks::chunks_of(addr, length) > marks::MAX_OWN_CHUNKS {
            since.overflowed = true;
        } else {
            since.pages.mark(addr, length);
        }
    }

    /// What has come so far belongs to that report.
    fn report(&mut self, report: u64) {
        let since = std::mem::take(&mut self.since);
        let pending = &mut self.pending;
        pending.overflowed |= since.overflowed;
        pending.pages.absorb(since.pages);
        if pending.pages.len() > marks::MAX_OWN_CHUNKS {
            *pending = OwnMarks { pages: Pages::default(), overflowed: true };
        }
        self.report = report;
    }
}
