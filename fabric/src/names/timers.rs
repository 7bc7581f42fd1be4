//! What has to happen later, in order of time. No clock of its own: the caller says what time it is.

use std::collections::BTreeMap;
use std::time::Instant;

/// Names one timer, so that it can be taken back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct TimerKey {
    at: Instant,
    /// Tells timers of the same instant apart, the earlier set first.
    number: u64,
}

/// Timers that carry a `T` each.
pub(crate) struct Timers<T> {
    due: BTreeMap<TimerKey, T>,
    number: u64,
}

impl<T> Timers<T> {
    pub(crate) fn new() -> Timers<T> {
        Timers { due: BTreeMap::new(), number: 0 }
    }

    pub(crate) fn set(&mut self, at: Instant, what: T) -> TimerKey {
        self.number += 1;
        let key = TimerKey { at, number: self.number };
        self.due.insert(key, what);
        key
    }

    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.due.remove(&key);
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(key, _)| key.at)
    }

    /// One that is due, the earliest first.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<T> {
        let first = self.due.first_entry()?;
        (first.key().at <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_fire_in_order_of_time_then_of_setting_and_not_when_cancelled() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::new();
        timers.set(at(20), 'c');
        timers.set(at(10), 'a');
        let gone = timers.set(at(15), 'x');
        timers.set(at(10), 'b');
        timers.cancel(gone);
        assert_eq!(timers.next(), Some(at(10)));
        assert_eq!(timers.expired(at(9)), None);
        let fired: String = std::iter::from_fn(|| timers.expired(at(20))).collect();
        assert_eq!(fired, "abc");
        assert_eq!(timers.next(), None);
    }
}
