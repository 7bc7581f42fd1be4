//! The epochs of the demo, as they are shown.

use crate::cli::heat::{Back, Kept};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Instant;

/// Rows that are shown: the first and the last ones of a long run.
const SHOWN: usize = 8;

/// One epoch of the job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    epoch: u64,
    ranks: usize,
    /// Bytes that were sent, by all ranks to all stores.
    bytes: u64,
    /// What part of the memory was sent, to each store.
    share: f64,
    /// The longest that a rank stood still.
    pause_seconds: f64,
    /// All ranks together, while they sent.
    gigabytes_per_second: f64,
}

/// A rank was lost, and all went back to an epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Lost {
    rank: u32,
    epoch: u64,
    step: u64,
    /// From its death until the last rank was back.
    seconds: f64,
}

impl Lost {
    /// What became of a rank that died; `None` where no other process took its place.
    pub(super) fn new(rank: u32, died: Instant, back: &[(Back, Instant)]) -> Option<Self> {
        let (own, _) = back.iter().find(|(back, _)| back.rank == rank && back.new)?;
        let last = back.iter().map(|(_, at)| *at).max()?;
        let seconds = last.saturating_duration_since(died).as_secs_f64();
        Some(Lost { rank, epoch: own.epoch, step: own.step, seconds })
    }
}

/// What all ranks tell of each epoch, put together.
pub(super) fn rows(kept: &[Kept]) -> Vec<Row> {
    let mut epochs: BTreeMap<u64, Vec<&Kept>> = BTreeMap::new();
    for one in kept {
        epochs.entry(one.epoch).or_default().push(one);
    }
    let row = |(epoch, all): (u64, Vec<&Kept>)| {
        let bytes = all.iter().map(|one| one.bytes).sum();
        let whole: u64 = all.iter().map(|one| one.memory * one.copies as u64).sum();
        let longest = |of: fn(&Kept) -> f64| all.iter().map(|one| of(one)).fold(0.0, f64::max);
        Row {
            epoch,
            ranks: all.len(),
            bytes,
            share: bytes as f64 / whole.max(1) as f64,
            pause_seconds: longest(|one| one.pause_seconds),
            gigabytes_per_second: bytes as f64 / 1e9 / longest(|one| one.sending_seconds).max(1e-9),
        }
    };
    epochs.into_iter().map(row).collect()
}

/// A table, for people.
pub(super) fn text(rows: &[Row], lost: Option<&Lost>) -> String {
    let mut text = String::new();
    if rows.is_empty() {
        return text;
    }
    text += "epoch      sent  of memory      pause      rate\n";
    for (i, row) in rows.iter().enumerate() {
        if rows.len() > SHOWN && i == SHOWN / 2 {
            let _ = writeln!(text, "  ... {} more", rows.len() - SHOWN);
        }
        if rows.len() > SHOWN && (SHOWN / 2..rows.len() - SHOWN / 2).contains(&i) {
            continue;
        }
        let _ = writeln!(
            text,
            "{:>5} {:>6.2} MB {:>8.1} % {:>7.2} ms {:>4.1} GB/s",
            row.epoch,
            row.bytes as f64 / 1e6,
            100.0 * row.share,
            1e3 * row.pause_seconds,
            row.gigabytes_per_second
        );
    }
    if let Some(lost) = lost {
        let _ = writeln!(
            text,
            "rank {} was killed, and the store of its node with it: a new process has its place, and all \
             went back to step {} (epoch {}) in {:.0} ms",
            lost.rank,
            lost.step,
            lost.epoch,
            1e3 * lost.seconds
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rank: u32, epoch: u64, bytes: u64, pause_seconds: f64) -> Kept {
        Kept { rank, epoch, memory: 1000, bytes, copies: 2, pause_seconds, sending_seconds: 0.5 }
    }

    #[test]
    fn ranks_are_put_together_by_epoch() {
        let all = [kept(0, 2, 500, 0.1), kept(0, 1, 2000, 0.3), kept(1, 2, 1500, 0.2)];
        let rows = rows(&all);
        let of: Vec<_> = rows.iter().map(|row| (row.epoch, row.ranks, row.bytes)).collect();
        assert_eq!(of, [(1, 1, 2000), (2, 2, 2000)]);
        assert_eq!((rows[0].share, rows[1].share, rows[1].pause_seconds), (1.0, 0.5, 0.2));
        let many: Vec<_> =
            (1..=20).flat_map(|epoch| super::rows(&[kept(0, epoch, 1, 0.0)])).collect();
        let text = text(&many, None);
        assert_eq!(text.lines().count(), 1 + SHOWN + 1, "{text}");
        assert!(text.contains("... 12 more"), "{text}");
    }

    #[test]
    fn a_loss_is_told_when_another_process_is_in_its_place() {
        let now = Instant::now();
        let back = |rank, new| (Back { rank, epoch: 3, step: 24, new }, now);
        assert_eq!(Lost::new(1, now, &[back(0, false), back(1, false)]), None);
        let lost = Lost::new(1, now, &[back(0, false), back(1, true)]).unwrap();
        assert_eq!((lost.rank, lost.epoch, lost.step), (1, 3, 24));
    }
}
