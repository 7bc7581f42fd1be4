//! The lines of the report, and what is measured for them.

use std::fmt::Display;

/// What a measure is held against.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// Ours divided by the reference: at most this.
    RatioAtMost(f64),
    /// Ours divided by the reference: at least this.
    RatioAtLeast(f64),
    /// Ours minus the reference: at most this.
    MoreAtMost(f64),
    /// Reported only.
    None,
}

/// Prints measures as they come, and remembers whether all goals were met.
pub(crate) struct Report {
    parts: Vec<String>,
    missed: usize,
}

impl Report {
    pub(crate) fn new(parts: Vec<String>) -> Self {
        Report { parts, missed: 0 }
    }

    pub(crate) fn header(&self) {
        println!("{}", row("measure", "ours", "reference", "ratio", "goal", ""));
    }

    /// Whether the measure called `name` was asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| name.contains(part))
    }

    /// One line.
    pub(crate) fn line(&mut self, name: &str, unit: &str, ours: f64, reference: f64, goal: Goal) {
        let ratio = ours / reference;
        let (ratio, goal, met) = match goal {
            Goal::RatioAtMost(most) => (format!("{ratio:.3}"), format!("≤ {most}"), ratio <= most),
            Goal::RatioAtLeast(least) => {
                (format!("{ratio:.3}"), format!("≥ {least}"), ratio >= least)
            }
            Goal::MoreAtMost(most) => {
                let more = ours - reference;
                (format!("{more:+.1}"), format!("≤ +{most}"), more <= most)
            }
            Goal::None => (format!("{ratio:.3}"), "-".to_owned(), true),
        };
        self.missed += usize::from(!met);
        let verdict = if met { "ok" } else { "short" };
        println!(
            "{}",
            row(name, &value(ours, unit), &value(reference, unit), &ratio, &goal, verdict)
        );
    }

    /// A measure that cannot be taken here.
    pub(crate) fn absent(&self, name: &str, why: impl Display) {
        println!("{}", row(name, "-", "-", "-", "-", &format!("not measured: {why}")));
    }

    pub(crate) fn all_met(&self) -> bool {
        self.missed == 0
    }
}

fn row(name: &str, ours: &str, reference: &str, ratio: &str, goal: &str, verdict: &str) -> String {
    format!("{name:<44} {ours:>14} {reference:>14} {ratio:>8} {goal:>8}  {verdict}")
}

fn value(value: f64, unit: &str) -> String {
    let digits = if value >= 100.0 { 0 } else { 2 };
    format!("{value:.digits$} {unit}")
}

/// The best (smallest) of `rounds` for each of two measurements, taken in turns.
pub(crate) fn best_in_turns<E>(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64, E>,
    mut reference: impl FnMut() -> Result<f64, E>,
) -> Result<(f64, f64), E> {
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds {
        best.1 = best.1.min(reference()?);
        best.0 = best.0.min(ours()?);
    }
    Ok(best)
}
