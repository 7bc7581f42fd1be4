//! Stale chunks, into the slots that want them.

use super::lane::Lane;
use super::source::Source;
use crate::image::{Geometry, PageEntry, PageTable};
use crate::{Error, Layout, PAGE, PageSet, peek};
use sojourn_fabric::abi::Sge;
use sojourn_fabric::virt::{Op, Remote};
use std::ops::Range;

/// Chunks of one WRITE at most: 4 MiB. Longer ones go no faster.
const LONGEST: usize = 1024;
/// Chunks that are worth a thread.
const WORTH_A_THREAD: usize = 1024;

/// A slot that wants chunks.
pub(crate) struct Target<'a> {
    /// A queue pair for each thread.
    pub(crate) lanes: &'a mut [Lane<()>],
    /// The slot's first byte.
    pub(crate) slot: Remote,
    pub(crate) geometry: Geometry,
    /// Where it may differ from memory.
    pub(crate) stale: PageSet,
    /// Why it got no more: it has all of them only where there is nothing here.
    pub(crate) failed: Option<Error>,
}

/// What a [`pump`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pumped {
    /// Chunks that were looked at.
    pub(crate) chunks: usize,
    /// Those of them that are zeros.
    pub(crate) zeros: usize,
    /// Bytes that were handed over, to all targets.
    pub(crate) bytes: u64,
}

/// What one thread knows of a target.
struct Side<'a> {
    lane: &'a mut Lane<()>,
    slot: Remote,
    geometry: Geometry,
    stale: &'a PageSet,
    failed: Option<Error>,
}

/// Sends to each target the chunks in which it is stale, and brings the entries of `table` up to date for all
/// of them; the epochs that entries name stay. Returns when everything has arrived or failed. A target
/// that fails does not stop the others.
///
/// # Panics
/// Where sets, table and geometries are not of the layout of `source`, or the targets have different
/// numbers of lanes.
pub(crate) fn pump(source: &Source, table: &mut PageTable, targets: &mut [Target<'_>]) -> Pumped {
    let mut wanted = PageSet::new(source.layout().chunks());
    for target in targets.iter().filter(|target| target.failed.is_none()) {
        wanted.union_with(&target.stale);
    }
    let items: Vec<Range<usize>> =
        wanted.runs().flat_map(|run| cut(source.layout(), run)).collect();
    let chunks = wanted.count();
    let threads = targets.iter().map(|target| target.lanes.len()).min().unwrap_or(0);
    if chunks == 0 || threads == 0 {
        return Pumped::default();
    }
    let shares = share(&items, threads.min(chunks.div_ceil(WORTH_A_THREAD)), chunks);

    // For each thread a side of each target.
    let mut sides: Vec<Vec<Side<'_>>> = shares.iter().map(|_| vec![]).collect();
    for Target { lanes, slot, geometry, stale, failed } in targets.iter_mut() {
        for (sides, lane) in sides.iter_mut().zip(lanes.iter_mut()) {
            let (slot, geometry, failed) = (*slot, *geometry, failed.clone());
            sides.push(Side { lane, slot, geometry, stale, failed });
        }
    }

    let mut rest = table.entries_mut();
    let mut at = 0;
    let mut jobs = vec![];
    for (index, (items, sides)) in shares.iter().zip(sides).enumerate() {
        let end = shares.get(index + 1).map_or(at + rest.len(), |next| next[0].start);
        let (entries, behind) = rest.split_at_mut(end - at);
        jobs.push((at, entries, *items, sides));
        (at, rest) = (end, behind);
    }
    let last = jobs.pop();
    let results = std::thread::scope(|scope| {
        let threads: Vec<_> = jobs
            .into_iter()
            .map(|(first, entries, items, sides)| {
                scope.spawn(move || run(source, first, entries, items, sides))
            })
            .collect();
        let own =
            last.map(|(first, entries, items, sides)| run(source, first, entries, items, sides));
        let others = threads.into_iter().map(|thread| thread.join());
        let others: Vec<_> = others.map(|result| result.expect("a pump does not panic")).collect();
        others.into_iter().chain(own).collect::<Vec<_>>()
    });

    let mut sum = Pumped::default();
    for (pumped, outcomes) in results {
        sum.chunks += pumped.chunks;
        sum.zeros += pumped.zeros;
        sum.bytes += pumped.bytes;
        for (target, failed) in targets.iter_mut().zip(outcomes) {
            target.failed = target.failed.take().or(failed);
        }
    }
    sum
}

/// A run of chunks as pieces of one area each, none longer than a WRITE.
pub(crate) fn cut(layout: &Layout, run: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let pieces: Vec<_> = layout.pieces(run).collect();
    pieces.into_iter().flat_map(|(first, memory)| {
        let end = first + memory.len().div_ceil(PAGE);
        (first..end).step_by(LONGEST).map(move |start| start..end.min(start + LONGEST))
    })
}

/// Items in at most so many shares of much the same number of chunks, none of them empty.
pub(crate) fn share(items: &[Range<usize>], shares: usize, chunks: usize) -> Vec<&[Range<usize>]> {
    let each = chunks.div_ceil(shares.max(1));
    let (mut all, mut from, mut sum) = (vec![], 0, 0);
    for (index, item) in items.iter().enumerate() {
        sum += item.len();
        if sum >= each || index + 1 == items.len() {
            all.push(&items[from..=index]);
            (from, sum) = (index + 1, 0);
        }
    }
    all
}

/// One thread's share. `entries` begin with that of the chunk `first`.
fn run(
    source: &Source,
    first: usize,
    entries: &mut [PageEntry],
    items: &[Range<usize>],
    mut sides: Vec<Side<'_>>,
) -> (Pumped, Vec<Option<Error>>) {
    let zeros = PageEntry::zeros(PAGE, 0);
    let mut pumped = Pumped::default();
    let memory = |item: &Range<usize>| source.layout().pieces(item.clone()).next();
    let mut ahead = items.iter().filter_map(|item| Some((item, memory(item)?.1))).peekable();
    while let Some((item, memory)) = ahead.next() {
        let area = source.layout().area_of(item.start);
        let then = ahead.peek().map_or(memory.start, |(_, memory)| memory.start);
        let mut skip = [false; LONGEST];
        for (i, at) in memory.clone().step_by(PAGE).enumerate() {
            let bytes = (memory.end - at).min(PAGE);
            let next = if at + bytes < memory.end { at + bytes } else { then };
            let entry = &mut entries[item.start + i - first];
            let changed = entry.changed();
            // SAFETY: memory of an area, which stays mapped and readable as long as `source` lives.
            let crc = unsafe { peek::crc(at as *const u8, bytes, next as *const u8) };
            let none = if bytes == PAGE { zeros.crc() } else { PageEntry::zeros(bytes, 0).crc() };
            // SAFETY: as above.
            skip[i] = crc == none && unsafe { peek::is_zero(at as *const u8, bytes) };
            *entry = if skip[i] {
                PageEntry::zeros(bytes, changed)
            } else {
                PageEntry::with_crc(crc, changed)
            };
        }
        pumped.chunks += item.len();
        pumped.zeros += skip[..item.len()].iter().filter(|zero| **zero).count();
        for side in sides.iter_mut().filter(|side| side.failed.is_none()) {
            match side.send(source.lkey(area), item, &memory, &skip) {
                Ok(bytes) => pumped.bytes += bytes,
                Err(error) => side.failed = Some(error),
            }
        }
    }
    let finish =
        |Side { lane, failed, .. }: Side<'_>| failed.or_else(|| lane.drain(&mut |()| {}).err());
    (pumped, sides.into_iter().map(finish).collect())
}

impl Side<'_> {
    /// Sends what this target wants of an item, and returns how many bytes that is.
    fn send(
        &mut self,
        lkey: u32,
        item: &Range<usize>,
        memory: &Range<usize>,
        skip: &[bool; LONGEST],
    ) -> crate::Result<u64> {
        let (mut bytes, mut from) = (0, item.start);
        while from < item.end {
            let wanted = |chunk: &usize| self.stale.contains(*chunk) && !skip[*chunk - item.start];
            let Some(start) = (from..item.end).find(wanted) else { break };
            let end = (start..item.end).find(|chunk| !wanted(chunk)).unwrap_or(item.end);
            let at = memory.start + (start - item.start) * PAGE;
            let to = memory.end.min(memory.start + (end - item.start) * PAGE);
            let local = Sge { addr: at as u64, length: (to - at) as u32, lkey };
            let remote = self.slot.offset(self.geometry.chunk_at(start) as u64);
            self.lane.post(Op::Write(remote), local, (), &mut |()| {})?;
            bytes += u64::from(local.length);
            from = end;
        }
        Ok(bytes)
    }
}
