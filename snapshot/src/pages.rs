//! Sets of pages.

use std::ops::Range;

/// Bytes of a chunk of an image, and of a page as tracking sees it.
pub const PAGE: usize = 4096;

/// A set of the numbers from 0 to a length: one bit each, so that the set of 1 GiB has 32 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageSet {
    words: Box<[u64]>,
    length: usize,
}

impl PageSet {
    /// The empty set of pages below `length`.
    #[must_use]
    pub fn new(length: usize) -> Self {
        PageSet { words: vec![0; length.div_ceil(64)].into_boxed_slice(), length }
    }

    /// The set of all pages below `length`.
    #[must_use]
    pub fn full(length: usize) -> Self {
        let mut set = PageSet::new(length);
        set.insert_range(0..length);
        set
    }

    /// One more than the largest page that it may hold.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// How many pages are in it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// No page is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// Whether `page` is in it.
    #[must_use]
    pub fn contains(&self, page: usize) -> bool {
        page < self.length && self.words[page / 64] >> (page % 64) & 1 == 1
    }

    /// Adds one page.
    ///
    /// # Panics
    /// Where `page` is not below [`Self::length`].
    pub fn insert(&mut self, page: usize) {
        self.insert_range(page..page + 1);
    }

    /// Adds pages.
    ///
    /// # Panics
    /// Where they are not below [`Self::length`].
    pub fn insert_range(&mut self, pages: Range<usize>) {
        self.check(&pages);
        masks(pages, |word, mask| self.words[word] |= mask);
    }

    /// Takes pages out.
    ///
    /// # Panics
    /// Where they are not below [`Self::length`].
    pub fn remove_range(&mut self, pages: Range<usize>) {
        self.check(&pages);
        masks(pages, |word, mask| self.words[word] &= !mask);
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    /// Adds all of `other`.
    ///
    /// # Panics
    /// Where the two have different lengths.
    pub fn union_with(&mut self, other: &PageSet) {
        assert_eq!(self.length, other.length, "sets of different memory");
        self.words.iter_mut().zip(&other.words).for_each(|(mine, other)| *mine |= other);
    }

    /// Takes all of `other` out.
    ///
    /// # Panics
    /// Where the two have different lengths.
    pub fn subtract(&mut self, other: &PageSet) {
        assert_eq!(self.length, other.length, "sets of different memory");
        self.words.iter_mut().zip(&other.words).for_each(|(mine, other)| *mine &= !other);
    }

    /// The runs of consecutive pages, upwards, each as long as it can be.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, 0)?;
            let end = self.next(start, u64::MAX).unwrap_or(self.length);
            at = end;
            Some(start..end)
        })
    }

    /// The first page at or after `from` that is in the set (`flip` 0), or is not (`flip` all ones).
    fn next(&self, from: usize, flip: u64) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = (self.words.get(word)? ^ flip) & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = self.words.get(word)? ^ flip;
        }
        let found = word * 64 + bits.trailing_zeros() as usize;
        (found < self.length).then_some(found)
    }

    fn check(&self, pages: &Range<usize>) {
        assert!(
            pages.start <= pages.end && pages.end <= self.length,
            "pages {pages:?} of {}",
            self.length
        );
    }
}

/// The words that hold `pages`, each with its mask.
fn masks(pages: Range<usize>, mut with: impl FnMut(usize, u64)) {
    let mut at = pages.start;
    while at < pages.end {
        let end = pages.end.min((at / 64 + 1) * 64);
        let mask = u64::MAX >> (64 - (end - at)) << (at % 64);
        with(at / 64, mask);
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pages(set: &PageSet) -> Vec<usize> {
        set.runs().flatten().collect()
    }

    proptest! {
        /// It is what a set of numbers is.
        #[test]
        fn a_page_set_is_a_set(
            length in 1usize..300,
            steps in prop::collection::vec((any::<bool>(), 0usize..300, 0usize..140), 0..40),
        ) {
            let (mut set, mut model) = (PageSet::new(length), BTreeSet::new());
            for (add, start, many) in steps {
                let run = start.min(length)..(start + many).min(length);
                if add {
                    set.insert_range(run.clone());
                    model.extend(run);
                } else {
                    set.remove_range(run.clone());
                    model.retain(|page| !run.contains(page));
                }
            }
            prop_assert_eq!(pages(&set), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.count(), model.len());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!((0..length + 70).all(|page| set.contains(page) == model.contains(&page)));
            // Runs are as long as they can be.
            let runs: Vec<_> = set.runs().collect();
            prop_assert!(runs.windows(2).all(|two| two[0].end < two[1].start));
            let mut rest = PageSet::full(length);
            rest.subtract(&set);
            prop_assert_eq!(rest.count(), length - model.len());
            rest.union_with(&set);
            prop_assert_eq!(rest, PageSet::full(length));
        }
    }
}
