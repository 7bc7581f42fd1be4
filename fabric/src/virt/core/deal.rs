//! Dealing names: numbers made of an index into a table and a generation.
//!
//! An index that comes back is dealt again with the next generation, and not before many others
//! have come back: a name that a slow peer or a stale completion still holds must not mean
//! something new.

use std::collections::VecDeque;

/// Indices that rest before the first of them is dealt again.
const RESTING: usize = 1024;

/// Deals (index, generation) pairs.
pub(super) struct Dealer {
    next: u32,
    end: u32,
    resting: VecDeque<u32>,
    generations: Vec<u8>,
}

impl Dealer {
    /// A dealer of the indices from `first` to before `end`.
    pub(super) fn new(first: u32, end: u32) -> Self {
        Dealer { next: first, end, resting: VecDeque::new(), generations: Vec::new() }
    }

    /// An index and its generation, or `None` where all are in use.
    pub(super) fn deal(&mut self) -> Option<(u32, u8)> {
        let index = if self.next < self.end && self.resting.len() < RESTING {
            self.next += 1;
            self.next - 1
        } else {
            self.resting.pop_front()?
        };
        let generation = self.generations.get(index as usize).copied().unwrap_or(0);
        Some((index, generation))
    }

    /// Takes back what was dealt.
    pub(super) fn take_back(&mut self, index: u32) {
        let at = index as usize;
        if self.generations.len() <= at {
            self.generations.resize(at + 1, 0);
        }
        self.generations[at] = self.generations[at].wrapping_add(1);
        self.resting.push_back(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Promise: a virtual name is unique, and is not dealt again soon after it went.
        #[test]
        fn names_are_unique_and_rest(steps in prop::collection::vec(any::<bool>(), 0..4000)) {
            let mut dealer = Dealer::new(2, 1 << 16);
            let mut held = Vec::new();
            let mut last_given_back: HashMap<(u32, u8), usize> = HashMap::new();
            for (now, deal) in steps.into_iter().enumerate() {
                if deal {
                    let name = dealer.deal().unwrap();
                    prop_assert!(name.0 >= 2 && !held.iter().any(|(i, _)| *i == name.0));
                    prop_assert!(!last_given_back.contains_key(&name));
                    held.push(name);
                } else if let Some(name) = held.pop() {
                    dealer.take_back(name.0);
                    last_given_back.insert(name, now);
                }
            }
        }
    }

    /// Promise: names run out with an answer, and come back.
    #[test]
    fn names_run_out() {
        let mut dealer = Dealer::new(1, 3);
        assert_eq!((dealer.deal(), dealer.deal()), (Some((1, 0)), Some((2, 0))));
        assert_eq!(dealer.deal(), None);
        dealer.take_back(1);
        assert_eq!(dealer.deal(), Some((1, 1)));
    }
}
