//! Sets of pages: of an address space, and of the regions of a peer by their keys.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::names::{MAX_WRITTEN, MAX_WRITTEN_PARTS};
use crate::virt::core::local::KeyHasher;

/// Bytes of a page, as a power of two.
const PAGE_SHIFT: u32 = 12;
/// Pages of a word of marks, as a power of two.
const CHUNK_SHIFT: u32 = 6;
/// Words of one peer's record: 16 GiB where all of it is written, and some 2 MiB of memory.
pub(super) const MAX_CHUNKS: usize = 1 << 16;
/// Keys of one peer's record.
pub(super) const MAX_KEYS: usize = 1 << 14;
// All of a record can be told.
const _: () = assert!(MAX_CHUNKS + MAX_KEYS <= MAX_WRITTEN * MAX_WRITTEN_PARTS as usize);
/// Words of our own marks: 256 GiB where all of it is written.
pub(super) const MAX_OWN_CHUNKS: usize = 1 << 20;

/// Words that a range may take.
pub(super) fn chunks_of(addr: u64, length: u64) -> usize {
    let bytes = 1 << (PAGE_SHIFT + CHUNK_SHIFT);
    let chunks = length / bytes + u64::from(addr % bytes + length % bytes > 0) * 2;
    usize::try_from(chunks).unwrap_or(usize::MAX)
}

/// Pages that were written, 64 to a word.
#[derive(Clone, Debug, Default)]
pub(super) struct Pages(HashMap<u64, u64, BuildHasherDefault<ChunkHasher>>);

/// Places come in runs; nobody chooses them so that they collide but who would slow itself down.
#[derive(Default)]
pub(super) struct ChunkHasher(u64);

impl std::hash::Hasher for ChunkHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn write_u64(&mut self, chunk: u64) {
        // Any odd number whose bits are well mixed: the table looks at the upper ones too.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        self.0 = (self.0 ^ chunk).wrapping_mul(SPREAD);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

impl Pages {
    /// Words of it.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Marks every page that the range touches.
    #[inline]
    pub(super) fn mark(&mut self, addr: u64, length: u64) {
        let Some(last) = length.checked_sub(1) else { return };
        let (first, last) = (addr >> PAGE_SHIFT, addr.saturating_add(last) >> PAGE_SHIFT);
        for chunk in first >> CHUNK_SHIFT..=last >> CHUNK_SHIFT {
            let begin = chunk << CHUNK_SHIFT;
            let (low, high) = (first.max(begin) - begin, last.min(begin + 63) - begin);
            *self.0.entry(chunk).or_default() |= u64::MAX >> (63 - high) & u64::MAX << low;
        }
    }

    /// Adds all pages of another.
    pub(super) fn absorb(&mut self, other: Pages) {
        for (chunk, bits) in other.0 {
            *self.0.entry(chunk).or_default() |= bits;
        }
    }

    /// Its words, in order.
    pub(super) fn words(&self) -> Vec<(u64, u64)> {
        let mut all: Vec<_> = self.0.iter().map(|(chunk, bits)| (*chunk, *bits)).collect();
        all.sort_unstable();
        all
    }
}

/// The bytes that a word of marks stands for: one range for each run of pages, in order.
pub(super) fn ranges_of(chunk: u64, bits: u64) -> impl Iterator<Item = (u64, u64)> {
    // A word that a peer made up may lie beyond all addresses.
    let base = chunk
        .checked_shl(PAGE_SHIFT + CHUNK_SHIFT)
        .filter(|it| it >> (PAGE_SHIFT + CHUNK_SHIFT) == chunk);
    let mut left = if base.is_some() { bits } else { 0 };
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let low = left.trailing_zeros();
        let run = (!(left >> low)).trailing_zeros();
        left &= u64::MAX.checked_shl(low + run).unwrap_or(0);
        let begin = base?.wrapping_add(u64::from(low) << PAGE_SHIFT);
        Some((begin, begin.saturating_add(u64::from(run) << PAGE_SHIFT)))
    })
}

/// What of a region was written.
#[derive(Clone, Debug)]
pub(super) enum Marked {
    /// These pages.
    Pages(Pages),
    /// All of it, as far as anybody knows.
    All,
}

/// What was written of the regions of one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    keys: HashMap<u32, Marked, BuildHasherDefault<KeyHasher>>,
    chunks: usize,
    /// There are too many keys to tell.
    everything: bool,
}

impl Keys {
    /// A range of a region may be written.
    pub(super) fn mark(&mut self, key: u32, addr: u64, length: u64) {
        if length == 0 || self.everything {
            return;
        }
        if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&key) {
            return self.mark_everything();
        }
        let marked = self.keys.entry(key).or_insert_with(|| Marked::Pages(Pages::default()));
        let Marked::Pages(pages) = marked else { return };
        let before = pages.len();
        if self.chunks + chunks_of(addr, length) > MAX_CHUNKS {
            self.chunks -= before;
            *marked = Marked::All;
            return;
        }
        pages.mark(addr, length);
        self.chunks += pages.len() - before;
    }

    fn mark_everything(&mut self) {
        *self = Keys { everything: true, ..Keys::default() };
    }

    /// Adds what another has.
    pub(super) fn absorb(&mut self, other: Keys) {
        if other.everything || self.everything {
            return self.mark_everything();
        }
        for (key, marked) in other.keys {
            if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&key) {
                return self.mark_everything();
            }
            let own = self.keys.entry(key).or_insert_with(|| Marked::Pages(Pages::default()));
            let Marked::Pages(pages) = own else { continue };
            let before = pages.len();
            match marked {
                Marked::Pages(more) if self.chunks + more.len() <= MAX_CHUNKS => {
                    pages.absorb(more);
                    self.chunks += pages.len() - before;
                }
                _ => {
                    self.chunks -= before;
                    *own = Marked::All;
                }
            }
        }
    }

    /// Whether it is too much to tell.
    pub(super) fn is_everything(&self) -> bool {
        self.everything
    }

    /// Key by key and word by word, in order; a word without a bit stands for all of a key.
    pub(super) fn words(&self) -> Vec<(u32, u64, u64)> {
        let mut all = Vec::with_capacity(self.chunks + self.keys.len());
        for (key, marked) in &self.keys {
            match marked {
                Marked::All => all.push((*key, 0, 0)),
                Marked::Pages(pages) => {
                    all.extend(pages.words().into_iter().map(|(chunk, bits)| (*key, chunk, bits)));
                }
            }
        }
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(pages: &Pages, addr: u64) -> bool {
        let all = pages.words();
        all.iter()
            .flat_map(|(chunk, bits)| ranges_of(*chunk, *bits))
            .any(|(b, e)| (b..e).contains(&addr))
    }

    proptest! {
        /// Promise 7: what was marked is told, page by page, and no page that was not.
        #[test]
        fn what_is_marked_is_told(marks in prop::collection::vec((0..1u64 << 22, 0..1u64 << 20), 0..8)) {
            let mut pages = Pages::default();
            for (addr, length) in &marks {
                let mut alone = Pages::default();
                alone.mark(*addr, *length);
                prop_assert!(alone.len() <= chunks_of(*addr, *length));
                pages.mark(*addr, *length);
            }
            for page in 0..1u64 << 11 {
                let (begin, end) = (page << 12, (page + 1) << 12);
                let marked = marks.iter().any(|(addr, length)| {
                    *length > 0 && *addr < end && addr + length > begin
                });
                prop_assert_eq!(covers(&pages, begin), marked, "page {}", page);
            }
        }

        /// Promise: words that somebody made up stand for nothing worse than ranges.
        #[test]
        fn no_word_makes_it_panic(chunk in any::<u64>(), bits in any::<u64>()) {
            for (begin, end) in ranges_of(chunk, bits) {
                prop_assert!(begin < end);
            }
        }
    }

    /// Promise 7: a record that is full tells more, and never less.
    #[test]
    fn a_full_record_becomes_coarser() {
        let word = 1u64 << 18;
        let mut keys = Keys::default();
        keys.mark(1, 0, word * 1000);
        for at in 0..MAX_CHUNKS as u64 {
            keys.mark(2, at * word, 8);
        }
        assert_eq!(keys.words().iter().filter(|it| it.0 == 2).count(), 1, "all of key 2");
        assert!(keys.words().contains(&(2, 0, 0)));
        assert_eq!(keys.words().iter().filter(|it| it.0 == 1).count(), 1000);
        keys.mark(2, 0, 8);
        let mut both = Keys::default();
        both.mark(1, 0, word * (MAX_CHUNKS as u64 - 10));
        both.absorb(keys);
        assert_eq!(both.words(), [(1, 0, 0), (2, 0, 0)]);
        for key in 0..MAX_KEYS as u32 {
            both.mark(key + 10, 0, 8);
        }
        assert!(both.is_everything() && both.words().is_empty());
        let mut other = Keys::default();
        other.absorb(both);
        assert!(other.is_everything());
    }
}
