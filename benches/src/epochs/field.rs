//! The memory of a program, and pages of it that are changed by chance.

use sojourn_fabric::Result;
use sojourn_snapshot::{Area, Layout, Memory, PAGE, PageSet};
use std::ops::Range;

/// Words of a page.
const WORDS: usize = PAGE / size_of::<u64>();
/// From this share on every page is taken whose turn it is, rather than some by chance.
const MOST: f64 = 0.5;

/// Numbers that look like chance, the same ones each time.
pub struct Chance(u64);

impl Chance {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Chance(seed | 1)
    }

    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A share of so many pages, scattered.
    pub fn pages(&mut self, pages: usize, share: f64) -> PageSet {
        let mut set = PageSet::new(pages);
        let many = ((pages as f64 * share).round() as usize).clamp(1, pages);
        if share >= MOST {
            let each = pages as f64 / many as f64;
            (0..many).for_each(|i| set.insert((i as f64 * each) as usize));
            return set;
        }
        let mut left = many;
        while left > 0 {
            let page = (self.number() % pages as u64) as usize;
            left -= usize::from(!set.contains(page));
            set.insert(page);
        }
        set
    }
}

/// Memory that a program has beside its field. Once it was visited the caches hold nothing of the field any more: whoever
/// is measured then begins as one does who was not measured just after another one had the same pages.
pub struct Elsewhere(Vec<u64>);

impl Elsewhere {
    /// Bytes: some of the largest caches.
    const BYTES: usize = 128 << 20;

    /// All of it there.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "there is nothing default about 128 MiB")]
    pub fn new() -> Self {
        Elsewhere(vec![1; Self::BYTES / size_of::<u64>()])
    }

    /// Reads all of it.
    pub fn visit(&self) {
        let sum = self.0.iter().fold(0_u64, |sum, word| sum.wrapping_add(*word));
        std::hint::black_box(sum);
    }
}

/// Memory without a page of zeros.
pub struct Field {
    memory: Memory<u64>,
    stamp: u64,
}

impl Field {
    /// So many bytes, rounded up to pages, all of them there.
    ///
    /// # Errors
    /// Where they cannot be had.
    pub fn new(bytes: usize) -> Result<Self> {
        let mut memory = Memory::<u64>::new(bytes.div_ceil(PAGE) * WORDS)?;
        let mut value = 1_u64;
        for word in memory.iter_mut() {
            value = value.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            *word = value | 1;
        }
        Ok(Field { memory, stamp: 0 })
    }

    /// How many pages it has.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.memory.len() / WORDS
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages() * PAGE
    }

    /// Where it is.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.memory.area(1).range()
    }

    /// The area that it is.
    #[must_use]
    pub fn area(&self) -> Area {
        self.memory.area(1)
    }

    /// It alone.
    ///
    /// # Errors
    /// Where it is too large for a snapshot.
    pub fn layout(&self) -> Result<Layout> {
        Layout::new([self.area()])
    }

    /// Its words.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.memory
    }

    /// One store to a page: never a zero, and never what was there.
    #[inline]
    pub fn store(&mut self, page: usize) {
        self.stamp = self.stamp.wrapping_add(2);
        self.memory[page * WORDS + page % WORDS] = self.stamp | 1;
    }

    /// One store to each of these pages.
    pub fn change(&mut self, pages: &PageSet) {
        for page in pages.runs().flatten() {
            self.store(page);
        }
    }

    /// One store to every page, each far from the last one.
    pub fn change_all(&mut self) {
        // Odd, and so without a common divisor with a power of two; a page more or less does not matter.
        const STRIDE: usize = 1_103_515;
        let pages = self.pages();
        let mut page = 0;
        for _ in 0..pages {
            self.store(page);
            page = (page + STRIDE) % pages;
        }
    }
}
