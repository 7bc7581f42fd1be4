//! How often to checkpoint.
//!
//! Too often, and the job spends its time on snapshots; too seldom, and on what a failure takes back.
//! Where a checkpoint costs C of computing and the job fails once in M on average, J. W. Young's first-order
//! optimum between the end of one and the beginning of the next is √(2CM) (CACM 17(9), 1974). J. T.
//! Daly's higher-order estimate (FGCS 22(3), 2006) is the better one where C is no longer small
//! against M; beyond C = 2M it is M itself.

use std::time::Duration;

/// When the next checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// So long after the one before.
    Every(Duration),
    /// By Young and Daly, from what checkpoints have cost so far, and the mean time between failures
    /// of the whole job.
    Optimal {
        /// Mean time between failures. That of n nodes is an n-th of one node's.
        failures: Duration,
    },
}

impl Interval {
    /// Shortest interval that is chosen: below it measuring and agreeing are no longer negligible.
    pub const SHORTEST: Duration = Duration::from_millis(100);

    /// Computing time from the end of one checkpoint to the beginning of the next, where one has cost
    /// `cost` (the time that the program stood still, and what it was slowed down by).
    #[must_use]
    pub fn next(self, cost: Duration) -> Duration {
        match self {
            Interval::Every(interval) => interval,
            Interval::Optimal { failures } => daly(cost, failures).max(Self::SHORTEST),
        }
    }
}

/// Daly's estimate of the optimal computing time between two checkpoints.
fn daly(cost: Duration, failures: Duration) -> Duration {
    let (c, m) = (cost.as_secs_f64(), failures.as_secs_f64());
    if c >= 2.0 * m {
        return failures;
    }
    let ratio = c / (2.0 * m);
    let series = 1.0 + ratio.sqrt() / 3.0 + ratio / 9.0;
    Duration::try_from_secs_f64((2.0 * c * m).sqrt() * series - c).unwrap_or(failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What fraction of the time is useful, by Daly's model of the whole: exponential failures, at any moment,
    /// and a restart that costs nothing.
    fn useful(interval: f64, c: f64, m: f64) -> f64 {
        interval / (m * (((interval + c) / m).exp() - 1.0))
    }

    #[test]
    fn a_small_cost_gives_the_square_root_of_young() {
        let optimal = Interval::Optimal { failures: Duration::from_secs(86_400) };
        let young = (2.0f64 * 10.0 * 86_400.0).sqrt();
        let got = optimal.next(Duration::from_secs(10)).as_secs_f64();
        assert!((got - young).abs() < 0.01 * young, "{got} against {young}");
        assert_eq!(optimal.next(Duration::ZERO), Interval::SHORTEST);
        let hopeless = Interval::Optimal { failures: Duration::from_secs(60) };
        assert_eq!(hopeless.next(Duration::from_secs(200)), Duration::from_secs(60));
        let every = Interval::Every(Duration::from_millis(7));
        assert_eq!(every.next(Duration::from_secs(9)), Duration::from_millis(7));
    }

    proptest! {
        /// No other interval would leave much more of the time for the program.
        #[test]
        fn the_interval_is_close_to_the_best_there_is(
            c in 0.2f64..300.0,
            ratio in 2.0f64..10_000.0,
            other in 0.01f64..100.0,
        ) {
            let m = c * ratio;
            let optimal = Interval::Optimal { failures: Duration::from_secs_f64(m) };
            let chosen = optimal.next(Duration::from_secs_f64(c)).as_secs_f64();
            prop_assert!(useful(chosen, c, m) > 0.99 * useful(chosen * other, c, m));
        }
    }
}
