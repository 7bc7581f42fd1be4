//! What the demo hears of its ranks.

use super::nodes::Stores;
use crate::cli::heat::{BACK, Back, DYING, EPOCH, Kept, MOVED, Moved, PROGRESS, Report};
use crate::cli::run::{Sink, Stream};
use indicatif::ProgressBar;
use std::sync::mpsc::Sender;
use std::time::Instant;

/// What ranks have told.
pub(super) enum Told {
    /// What the run came to.
    Report(Report),
    /// One has gone to another device.
    Moved(Moved),
    /// One has an epoch committed.
    Kept(Kept),
    /// One dies; when it said so.
    Dying(u32, Instant),
    /// One is back at an epoch; when it said so.
    Back(Back, Instant),
}

/// Takes what the ranks print; what is nothing that it knows is passed on.
pub(super) struct Watcher {
    pub(super) bar: ProgressBar,
    pub(super) tell: Sender<Told>,
    /// Those of the nodes, where a node is lost with its rank.
    pub(super) stores: Option<Stores>,
}

impl Watcher {
    fn told(&self, rank: u32, line: &str) -> Option<Told> {
        if let Ok(report) = serde_json::from_str(line) {
            return Some(Told::Report(report));
        }
        let (what, json) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            MOVED => serde_json::from_str(json).ok().map(Told::Moved),
            EPOCH => serde_json::from_str(json).ok().map(Told::Kept),
            BACK => serde_json::from_str(json).ok().map(|back| Told::Back(back, Instant::now())),
            DYING => {
                if let Some(stores) = &self.stores {
                    stores.kill(rank as usize);
                }
                Some(Told::Dying(rank, Instant::now()))
            }
            _ => None,
        }
    }
}

impl Sink for Watcher {
    fn line(&mut self, rank: u32, stream: Stream, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        if stream == Stream::Out {
            let mut words = text.split(' ');
            if words.next() == Some(PROGRESS) {
                let mut number = || words.next().and_then(|word| word.parse().ok());
                if let (Some(step), Some(steps)) = (number(), number()) {
                    self.bar.set_length(steps);
                    self.bar.set_position(step);
                    self.bar.set_message(format!("residual {}", words.next().unwrap_or_default()));
                }
                return;
            }
            if let Some(told) = self.told(rank, &text) {
                // The receiver is there as long as the job runs.
                let _ = self.tell.send(told);
                return;
            }
        }
        self.bar.suspend(|| eprintln!("[{rank}] {text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ranks_tell_is_found_among_other_lines() {
        let (tell, told) = std::sync::mpsc::channel();
        let mut watcher = Watcher { bar: ProgressBar::hidden(), tell, stores: None };
        let report = Report {
            width: 4,
            height: 3,
            ranks: 2,
            columns: 1,
            rows: 2,
            device: Some("soft0".to_owned()),
            raw: false,
            steps: 10,
            residual: 0.5,
            checksum: "ab".to_owned(),
            seconds: 0.1,
            bytes: 7,
            requests: 3,
            waited_seconds: 0.0,
        };
        let json = serde_json::to_vec(&report).unwrap();
        watcher.line(0, Stream::Out, b"progress 8 10 5e-1");
        watcher.line(1, Stream::Err, b"a warning");
        watcher.line(0, Stream::Out, &json);
        let moved = br#"moved {"rank":3,"from":"soft0","to":"soft1","failed":false,"queue_pairs":7,"peers":2,"blackout_seconds":0.001,"phases":[["switch",0.001]]}"#;
        watcher.line(3, Stream::Out, moved);
        let kept = br#"epoch {"rank":1,"epoch":2,"memory":100,"bytes":50,"copies":2,"pause_seconds":0.5,"sending_seconds":0.25}"#;
        watcher.line(1, Stream::Out, kept);
        watcher.line(2, Stream::Out, b"dying");
        watcher.line(2, Stream::Out, br#"back {"rank":2,"epoch":2,"step":8,"new":true}"#);
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(watcher.bar.position(), 8);
        assert!(
            matches!(
                &told[..],
                [
                    Told::Report(report),
                    Told::Moved(moved),
                    Told::Kept(kept),
                    Told::Dying(2, _),
                    Told::Back(back, _),
                ] if report.checksum == "ab" && moved.to == "soft1" && kept.epoch == 2 && back.new
            ),
            "{}",
            told.len()
        );
    }
}
