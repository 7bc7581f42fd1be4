//! At which call of `should_checkpoint` the ranks checkpoint: at the same one, without asking each other then.
//!
//! Every rank calls it at the same places of its program, so a call's number is a place that all know. With
//! each epoch the ranks agree at which call the next one is due, from how fast calls came of late and how long
//! the interval is. A rank must not be past that call when it hears of it: so the next one is due no sooner than
//! at half the distance of the last two, and who comes that far first waits.

use std::time::Duration;

/// The distance grows by no more than this from one epoch to the next: the first calls may be fast.
const GROWTH: u64 = 16;

/// The calls of one rank. Whatever is said of calls is the same in all ranks, but for time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    calls: u64,
    /// The call at which the last epoch was taken, and its distance from the one before.
    last: u64,
    distance: u64,
    /// Where it is agreed.
    next: Option<u64>,
}

impl Pace {
    /// The first call is due: there is something to go back to from then on.
    pub(super) fn new() -> Self {
        Pace { calls: 0, last: 0, distance: 1, next: Some(1) }
    }

    /// One call more.
    pub(super) fn call(&mut self) {
        self.calls += 1;
    }

    /// Whether an epoch is due at this call; `None` where that has to be waited for.
    pub(super) fn due(&self) -> Option<bool> {
        match self.next {
            Some(next) => Some(self.calls >= next),
            None if self.calls < self.last + self.least() => Some(false),
            None => None,
        }
    }

    /// How long it is until the next one is due, where that is known, and calls come as they did since the last
    /// one, `since` ago.
    pub(super) fn left_takes(&self, since: Duration) -> Option<Duration> {
        let left = self.next?.saturating_sub(self.calls);
        let seconds = since.as_secs_f64() / (self.calls - self.last).max(1) as f64 * left as f64;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    /// An epoch is taken now.
    pub(super) fn taken(&mut self) {
        self.distance = (self.calls - self.last).max(1);
        (self.last, self.next) = (self.calls, None);
    }

    /// What this rank would have the next one be, where the last distance took so long.
    pub(super) fn wish(&self, took: Duration, interval: Duration) -> u64 {
        let calls = self.distance as f64 * interval.as_secs_f64() / took.as_secs_f64().max(1e-9);
        // Too many for a number are the most.
        self.last + (calls as u64).clamp(self.least(), self.distance.saturating_mul(GROWTH))
    }

    /// What is agreed: the largest of all wishes.
    pub(super) fn agree(&mut self, next: u64) {
        self.next = Some(next.max(self.last + self.least()));
    }

    fn least(&self) -> u64 {
        (self.distance / 2).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: all ranks take their epochs at the same calls, however late they hear, and however fast they are.
    #[test]
    fn all_ranks_take_the_same_calls_and_the_interval_is_met() {
        let interval = Duration::from_secs(1);
        // Seconds that a call takes each rank.
        let speed = [0.001, 0.0013, 0.0009];
        let mut ranks = [Pace::new(); 3];
        let mut taken = Vec::new();
        for _ in 0..12 {
            for rank in &mut ranks {
                while rank.due() != Some(true) {
                    rank.call();
                    // The others' wishes are there only when all have taken theirs; nobody gets further
                    // than that.
                    assert!(rank.due().is_some());
                }
            }
            let calls = ranks[0].calls;
            assert!(ranks.iter().all(|rank| rank.calls == calls), "{ranks:?}");
            taken.push(calls);
            let mut wishes = Vec::new();
            for (rank, seconds) in ranks.iter_mut().zip(speed) {
                rank.taken();
                let took = Duration::from_secs_f64(rank.distance as f64 * seconds);
                wishes.push(rank.wish(took, interval));
            }
            // Each hears at another moment: the last when it can go no further.
            let agreed = *wishes.iter().max().unwrap();
            for (rank, late) in ranks.iter_mut().zip([0, 1, 2]) {
                for _ in 0..late * rank.least() {
                    if rank.due().is_none() {
                        break;
                    }
                    rank.call();
                    assert_ne!(rank.due(), Some(true));
                }
                rank.agree(agreed);
            }
        }
        assert_eq!(taken[0], 1);
        let last = taken[11] - taken[10];
        assert!((900..1200).contains(&last), "{taken:?}");
    }

    #[test]
    fn a_program_that_becomes_slower_is_followed() {
        let mut pace = Pace { calls: 10_000, last: 9_000, distance: 1_000, next: Some(10_000) };
        pace.taken();
        let wish = pace.wish(Duration::from_secs(100), Duration::from_secs(1));
        assert_eq!(wish, 10_500);
        pace.agree(wish);
        assert_eq!((pace.due(), pace.next), (Some(false), Some(10_500)));
        pace.call();
        assert_eq!(pace.left_takes(Duration::from_secs(1)), Some(Duration::from_secs(499)));
        pace.agree(0);
        assert_eq!(pace.next, Some(10_500));
    }
}
