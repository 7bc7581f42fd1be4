//! Sizes, shares and ages for people; the progress bar.

use super::{Outcome, While};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes, in the unit that leaves few digits.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|(_, unit)| bytes as f64 >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / unit),
        None => format!("{bytes} B"),
    }
}

/// A part of something, in per cent.
pub(super) fn percent(part: u64, of: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / of.max(1) as f64)
}

/// How long ago something was, of which the time since 1970 is known in nanoseconds.
pub(super) fn ago(nanos: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(nanos / 1_000_000_000);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A bar of bytes. It draws on stderr, and only where that is a terminal.
pub(super) fn bar(hidden: bool) -> Outcome<ProgressBar> {
    let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::new(1) };
    let style = ProgressStyle::with_template(
        "[{bar:40}] {bytes}/{total_bytes} {binary_bytes_per_sec} {msg}",
    )
    .doing("the progress bar")?;
    bar.set_style(style.progress_chars("=> "));
    Ok(bar)
}

/// Tells a bar of the work on a directory.
pub(super) fn watch(
    bar: &ProgressBar,
) -> impl FnMut(&sojourn_snapshot::files::Progress<'_>) -> sojourn::Result<()> + '_ {
    |progress| {
        bar.set_length(progress.total.max(1));
        bar.set_position(progress.done);
        bar.set_message(progress.file.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(999), bytes(1500), bytes(2_000_000_000)], ["999 B", "1.5 kB", "2.0 GB"]);
        assert_eq!([percent(1, 8), percent(0, 0)], ["12.5 %", "0.0 %"]);
        assert!(ago(0).ends_with("days ago"), "{}", ago(0));
        assert_eq!(ago(u64::MAX), "0 s ago");
    }
}
