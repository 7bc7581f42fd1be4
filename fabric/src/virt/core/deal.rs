//! Dealing names: numbers made of an index into a table and a generation.
//!
//! An index that comes back is dealt again with the next generation, and not before many others
//! have come back: a name that a slow peer or a stale completion still holds must not mean
//! something new.

use super::image::Dealt;
use std::collections::{HashSet, VecDeque};

/// Queue pair numbers 0 and 1 are the fabric's own (SMI and GSI).
pub(super) const FIRST_QPN: u32 = 2;
/// The key 0 is nobody's.
pub(super) const FIRST_KEY: u32 = 1;
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

    /// How far it has come, for who writes it down.
    pub(super) fn dealt(&self) -> Dealt {
        Dealt {
            next: self.next,
            resting: self.resting.iter().copied().collect(),
            generations: self.generations.clone(),
        }
    }

    /// Goes on from where an earlier life of the process was, too: nothing that was dealt there is dealt
    /// again soon, and what is `live` not at all until it comes back. (What others had there stays
    /// dealt.)
    pub(super) fn resume(&mut self, from: &Dealt, live: &HashSet<u32>) {
        let own = self.next;
        self.next = own.max(from.next).min(self.end);
        if self.generations.len() < from.generations.len() {
            self.generations.resize(from.generations.len(), 0);
        }
        for (own, theirs) in self.generations.iter_mut().zip(&from.generations) {
            *own = (*own).max(*theirs);
        }
        self.resting.extend(from.resting.iter().copied().filter(|index| *index >= own));
        self.resting.retain(|index| !live.contains(index));
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

    proptest! {
        /// Promise: a life that goes on from an earlier one, wherever it stands itself, deals nothing that is
        /// in use there, and no name that has been.
        #[test]
        fn a_later_life_deals_nothing_again(
            first in prop::collection::vec(any::<bool>(), 0..300),
            own in prop::collection::vec(any::<bool>(), 0..300),
            same: bool,
        ) {
            let run = |dealer: &mut Dealer, held: &mut Vec<(u32, u8)>, steps: &[bool]| {
                let mut all = HashSet::new();
                for deal in steps {
                    if *deal {
                        let name = dealer.deal().unwrap();
                        held.push(name);
                        all.insert(name);
                    } else if let Some((index, _)) = held.pop() {
                        dealer.take_back(index);
                    }
                }
                all
            };
            let (mut earlier, mut held) = (Dealer::new(2, 1 << 16), Vec::new());
            let mut dealt = run(&mut earlier, &mut held, &first);
            let image = earlier.dealt();
            // Either the same process goes on until what it holds is gone, or another begins.
            let mut later = if same { earlier } else { Dealer::new(2, 1 << 16) };
            let live: HashSet<u32> = held.iter().map(|(index, _)| *index).collect();
            if same {
                held.drain(..).for_each(|(index, _)| later.take_back(index));
                dealt.extend(run(&mut later, &mut held, &own));
                held.drain(..).for_each(|(index, _)| later.take_back(index));
            }
            later.resume(&image, &live);
            for index in &live {
                prop_assert!(!later.resting.contains(index) && *index < later.next);
            }
            let mut anew = HashSet::new();
            for _ in 0..2000 {
                let name = later.deal().unwrap();
                prop_assert!(!live.contains(&name.0) && !dealt.contains(&name));
                anew.insert(name);
            }
            // What was live comes back as others do.
            live.iter().for_each(|index| later.take_back(*index));
            for _ in 0..1100 {
                let name = later.deal().unwrap();
                prop_assert!(!dealt.contains(&name) && !anew.contains(&name));
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
