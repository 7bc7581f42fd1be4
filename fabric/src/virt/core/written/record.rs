//! What this process has written at others, by peer.

use super::marks::Keys as Marks;
use crate::names::{Incarnation, MAX_WRITTEN, ProcessId, WrittenPart, WrittenWord};
use crate::virt::core::lock_mutex;
use std::collections::HashMap;
use std::sync::Mutex;

/// The records of all peers.
#[derive(Default)]
pub(super) struct Records(Mutex<HashMap<ProcessId, Record>>);

impl Records {
    pub(super) fn with<R>(&self, peer: ProcessId, job: impl FnOnce(&mut Record) -> R) -> R {
        job(lock_mutex(&self.0).entry(peer).or_default())
    }

    pub(super) fn forget(&self, peer: ProcessId) {
        lock_mutex(&self.0).remove(&peer);
    }
}

/// What this process has written at one peer.
#[derive(Default)]
pub(super) struct Record {
    /// Since the last report.
    since: Marks,
    /// Before it, and since the last that was committed.
    pending: Marks,
    /// The last report; what was told for it.
    report: u64,
    told: Vec<(u32, u64, u64)>,
    /// There is, or was, a queue pair of which nothing is recorded.
    pub(super) is_blind: bool,
}

impl Record {
    pub(super) fn mark(&mut self, key: u32, addr: u64, length: u64) {
        self.since.mark(key, addr, length);
    }

    /// Whether that report is the first to be heard of, beyond all that were.
    pub(super) fn is_new(&self, report: u64) -> bool {
        report > self.report
    }

    pub(super) fn tell(&mut self, life: Incarnation, report: u64, part: u32) -> WrittenPart {
        if self.is_new(report) && part == 0 {
            self.pending.absorb(std::mem::take(&mut self.since));
            self.report = report;
            self.told = self.pending.words();
        }
        let from = (part as usize).saturating_mul(MAX_WRITTEN).min(self.told.len());
        let upto = from.saturating_add(MAX_WRITTEN).min(self.told.len());
        let word = |(key, chunk, bits): &(u32, u64, u64)| WrittenWord {
            key: *key,
            chunk: *chunk,
            bits: *bits,
        };
        // Another report than the last is one that its asker has given up.
        let complete = self.report == report && !self.is_blind && !self.pending.is_everything();
        WrittenPart {
            life,
            complete,
            last: upto == self.told.len() || !complete,
            words: if complete {
                self.told[from..upto].iter().map(word).collect()
            } else {
                Vec::new()
            },
        }
    }

    pub(super) fn let_go(&mut self, report: u64) {
        if self.report == report {
            self.pending = Marks::default();
            self.told = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Incarnation = Incarnation(3);

    fn told(record: &mut Record, report: u64) -> Vec<u32> {
        let part = record.tell(LIFE, report, 0);
        assert!(part.complete && part.last);
        part.words.iter().map(|word| word.key).collect()
    }

    /// Promise 7: what was told is told again until its report is committed, and what came after stays.
    #[test]
    fn a_record_is_cumulative_since_the_last_commit() {
        let mut record = Record::default();
        record.mark(1, 0, 8);
        assert_eq!(told(&mut record, 5), [1]);
        record.mark(2, 0, 8);
        assert_eq!(told(&mut record, 5), [1], "the same report");
        assert_eq!(told(&mut record, 6), [1, 2], "the one before was not committed");
        record.mark(3, 0, 8);
        record.let_go(5);
        assert_eq!(told(&mut record, 7), [1, 2, 3], "an old one says nothing of what came since");
        record.mark(4, 0, 8);
        record.let_go(7);
        record.let_go(7);
        assert_eq!(told(&mut record, 8), [4]);
        assert!(!record.tell(LIFE, 7, 0).complete, "given up");
    }

    /// Promise 7: a record of any size is told whole, part by part.
    #[test]
    fn a_large_record_is_told_in_parts() {
        let mut record = Record::default();
        let words = 2 * MAX_WRITTEN as u64 + 5;
        (0..words).for_each(|at| record.mark(9, at << 18, 1));
        let mut all = Vec::new();
        for part in 0.. {
            let WrittenPart { words, last, complete, life } = record.tell(LIFE, 5, part);
            assert!(complete && life == LIFE && words.len() <= MAX_WRITTEN);
            all.extend(words.iter().map(|word| word.chunk));
            record.mark(9, (words.len() as u64 + 1000) << 18, 1);
            if last {
                break;
            }
        }
        assert_eq!(all, (0..words).collect::<Vec<_>>());
        record.is_blind = true;
        assert!(!record.tell(LIFE, 6, 0).complete);
    }
}
