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
    /// Ours: at most this, whatever the reference.
    AtMost(f64),
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
                (format!("{more:+.1}"), format!("≤ +{}", short(most)), more <= most)
            }
            Goal::AtMost(most) => {
                (format!("{ratio:.3}"), format!("≤ {}", short(most)), ours <= most)
            }
            // Of nothing there is no multiple.
            Goal::None if reference == 0.0 => ("-".to_owned(), "-".to_owned(), true),
            Goal::None => (format!("{ratio:.3}"), "-".to_owned(), true),
        };
        self.missed += usize::from(!met);
        let verdict = if met { "ok" } else { "short" };
        println!(
            "{}",
            row(name, &value(ours, unit), &value(reference, unit), &ratio, &goal, verdict)
        );
    }

    /// One line of what has no reference.
    pub(crate) fn alone(&mut self, name: &str, unit: &str, ours: f64, most: Option<f64>) {
        let met = most.is_none_or(|most| ours <= most);
        self.missed += usize::from(!met);
        let goal = most.map_or("-".to_owned(), |most| format!("≤ {}", short(most)));
        let verdict = if met { "ok" } else { "short" };
        println!("{}", row(name, &value(ours, unit), "-", "-", &goal, verdict));
    }

    /// What is to be said beside the line above.
    pub(crate) fn note(&self, text: impl Display) {
        println!("    {text}");
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

/// A goal that was computed, without digits that say nothing.
fn short(goal: f64) -> String {
    let digits = if goal.fract() == 0.0 { 0 } else { 1 };
    format!("{goal:.digits$}")
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
