//! A report of all that devices have written into this process's memory.

use super::Source;
use super::ended::clip;
use super::marks::ranges_of;
use super::watching::look_through_everything;
use crate::abi::access;
use crate::error::{Error, Result};
use crate::names::{self, Fetch, Incarnation, MAX_WRITTEN_PARTS, ProcessId, Record, WrittenWord};
use crate::virt::core::context::VirtualContext;
use crate::virt::core::local::{Local, Region};
use crate::virt::core::lock_mutex;
use crossbeam_channel::unbounded;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is waited beyond the deadline for the service to say that it has passed.
const GRACE: Duration = Duration::from_secs(1);

/// What devices have written into this process's memory since the last report that was committed: see
/// [`Context::written`](crate::virt::Context::written).
#[must_use = "a report that is not committed is contained in the next"]
pub struct Written {
    local: Arc<Local>,
    report: u64,
    ranges: Vec<Range<usize>>,
    unknown: Vec<(Option<ProcessId>, String)>,
    /// Who has told what it has written.
    told: Vec<ProcessId>,
}

/// What a writer has told.
struct Told {
    life: Incarnation,
    words: Vec<WrittenWord>,
}

/// Makes a report.
///
/// # Errors
/// As [`Context::written`](crate::virt::Context::written).
pub(in crate::virt::core) fn report(
    context: &Arc<VirtualContext>,
    deadline: Instant,
) -> Result<Written> {
    if !context.tracks() {
        return Err(Error::unsupported(format!(
            "what devices write is not tracked in this context: set {}=1, or Policy::tracking, before it is \
             opened",
            crate::virt::core::policy::TRACKING_VARIABLE
        )));
    }
    if !context.is_held() {
        return Err(Error::invalid(
            "a report of what devices have written is of a moment at which they do not: suspend the context first",
        ));
    }
    let local = Arc::clone(context.local());
    let writes = &local.writes;
    let report = local.committed.number(local.grant().incarnation.0);
    // Before anything is looked at: what ends from here on is asked for again.
    let sources: Vec<Source> = {
        let sources = lock_mutex(&writes.sources);
        writes.reported.store(report, Ordering::Release);
        sources.keys().copied().collect()
    };
    look_through_everything(&local);
    let peers: BTreeSet<ProcessId> = sources.iter().filter_map(|source| source.peer).collect();
    let answers = ask_all(&local, report, &peers, deadline);
    let mut unknown: Vec<(Option<ProcessId>, String)> = Vec::new();
    // Protection domains into which somebody may have written anything.
    let mut open: HashSet<usize> = HashSet::new();
    for Source { peer, life, owner } in &sources {
        let why = match peer.and_then(|peer| answers.get(&peer)) {
            None => "it is outside the job".to_owned(),
            Some(Err(why)) => why.clone(),
            Some(Ok(told)) if told.life != *life => {
                "it was started anew, and does not know what it wrote before".to_owned()
            }
            Some(Ok(_)) => continue,
        };
        open.insert(*owner);
        if !unknown.iter().any(|(known, _)| known == peer) {
            unknown.push((*peer, why));
        }
    }
    let words = answers.values().filter_map(|it| it.as_ref().ok()).flat_map(|told| &told.words);
    let ranges = resolve(&local, report, words, &open);
    let told = answers.iter().filter(|(_, it)| it.is_ok()).map(|(peer, _)| *peer).collect();
    Ok(Written { local, report, ranges, unknown, told })
}

/// Asks all who may have written here, all at a time and each part by part.
fn ask_all(
    local: &Arc<Local>,
    report: u64,
    peers: &BTreeSet<ProcessId>,
    deadline: Instant,
) -> BTreeMap<ProcessId, std::result::Result<Told, String>> {
    let own = local.grant().process;
    let mut answers: BTreeMap<ProcessId, std::result::Result<Told, String>> = BTreeMap::new();
    let mut open: BTreeMap<ProcessId, (u32, Vec<WrittenWord>)> =
        peers.iter().map(|peer| (*peer, (0, Vec::new()))).collect();
    let (tell, told) = unbounded();
    let ask = |peer: ProcessId, part: u32| {
        if peer == own {
            let answer = local.writes.tell(local, own, report, part);
            let _ = tell.send((peer, Ok(Record::Written(answer))));
            return;
        }
        let tell = tell.clone();
        let done = Box::new(move |answer: names::Fetched| {
            let _ = tell.send((peer, answer));
        });
        local.resolver().fetch(peer, Fetch::Written { report, part }, deadline, done);
    };
    open.keys().for_each(|peer| ask(*peer, 0));
    while !open.is_empty() {
        let Ok((peer, answer)) = told.recv_deadline(deadline + GRACE) else { break };
        let Some((part, words)) = open.get_mut(&peer) else { continue };
        let result = match answer {
            Ok(Record::Written(it)) if !it.complete => {
                Err("it does not track what it writes, or has written too much to tell".to_owned())
            }
            Ok(Record::Written(it)) => {
                words.extend(it.words);
                if !it.last && *part + 1 < MAX_WRITTEN_PARTS {
                    *part += 1;
                    ask(peer, *part);
                    continue;
                }
                match it.last {
                    true => Ok(Told { life: it.life, words: std::mem::take(words) }),
                    false => Err("it told more than any process writes".to_owned()),
                }
            }
            Ok(_) => Err("it answered what was not asked".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        open.remove(&peer);
        answers.insert(peer, result);
    }
    for peer in open.into_keys() {
        answers.insert(peer, Err("it did not answer in time".to_owned()));
    }
    answers
}

/// Addresses of this process that all of that stands for.
fn resolve<'a>(
    local: &Local,
    report: u64,
    words: impl Iterator<Item = &'a WrittenWord>,
    open: &HashSet<usize>,
) -> Vec<Range<usize>> {
    let writes = &local.writes;
    let regions = local.regions();
    let ended = lock_mutex(&writes.ended);
    let mut all: Vec<(u64, u64)> = Vec::new();
    for WrittenWord { key, chunk, bits } in words {
        // Those who had it before count, too: a key may be dealt again.
        for region in regions.get(key).into_iter().chain(ended.of(*key)) {
            if *bits == 0 {
                all.extend(clip(region, 0, u64::MAX));
            } else {
                all.extend(ranges_of(*chunk, *bits).filter_map(|(b, e)| clip(region, b, e)));
            }
        }
    }
    let everything = || regions.values().chain(ended.all());
    let whole = |region: &Region| (region.base as u64, region.base as u64 + region.length);
    let remote = access::REMOTE_WRITE | access::REMOTE_ATOMIC;
    all.extend(
        everything().filter(|it| open.contains(&it.owner) && it.flags & remote != 0).map(whole),
    );
    let mut own = lock_mutex(&writes.own);
    own.report(report);
    let words = own.pending.pages.words();
    all.extend(words.into_iter().flat_map(|(chunk, bits)| ranges_of(chunk, bits)));
    if own.pending.overflowed {
        all.extend(everything().filter(|it| it.flags & access::LOCAL_WRITE != 0).map(whole));
    }
    drop((own, ended, regions));
    merged(all)
}

/// In order, and none that touch.
fn merged(mut all: Vec<(u64, u64)>) -> Vec<Range<usize>> {
    all.sort_unstable();
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (begin, end) in all {
        let (begin, end) = (begin as usize, end as usize);
        match ranges.last_mut() {
            Some(last) if begin <= last.end => last.end = last.end.max(end),
            _ => ranges.push(begin..end),
        }
    }
    ranges
}

impl Written {
    /// Addresses, in order, none of which touch. Some may not be mapped any more: memory that was
    /// registered, and is not.
    #[must_use]
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Bytes of all ranges.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }

    /// Writers whose record could not be had, and why: all that they could have written is in the report.
    /// (`None`: somebody outside the job.)
    #[must_use]
    pub fn unknown(&self) -> &[(Option<ProcessId>, String)] {
        &self.unknown
    }

    /// What was reported is safe: it is not reported again. Peers let go of what they had told.
    ///
    /// # Errors
    /// Where a peer that lives could not be told: what it has told is in the next report once more, and nothing
    /// else is lost.
    pub fn commit(self, deadline: Instant) -> Result<()> {
        let writes = &self.local.writes;
        writes.let_go_own(self.report);
        let own = self.local.grant().process;
        let (tell, heard) = unbounded();
        let mut waiting: BTreeSet<ProcessId> = BTreeSet::new();
        for peer in &self.told {
            if *peer == own {
                writes.let_go(own, self.report);
                continue;
            }
            waiting.insert(*peer);
            let (peer, tell) = (*peer, tell.clone());
            let done = Box::new(move |answer: names::Fetched| {
                let _ = tell.send((peer, answer));
            });
            let what = Fetch::WrittenSaved { report: self.report };
            self.local.resolver().fetch(peer, what, deadline, done);
        }
        let mut failed: Option<Error> = None;
        while !waiting.is_empty() {
            let Ok((peer, answer)) = heard.recv_deadline(deadline + GRACE) else { break };
            waiting.remove(&peer);
            match answer {
                // One that has died has nothing to let go of.
                Ok(_) | Err(names::Error::Gone { .. }) => {}
                Err(error) => {
                    let doing = format_args!("telling {peer} that what it wrote is safe");
                    failed.get_or_insert(Error::from(error).context(doing));
                }
            }
        }
        if let Some(peer) = waiting.first() {
            let text = format!(
                "telling {peer} that what it wrote is safe: the service thread is kept busy"
            );
            failed.get_or_insert(Error::new(libc::ETIMEDOUT, text));
        }
        failed.map_or(Ok(()), Err)
    }
}
