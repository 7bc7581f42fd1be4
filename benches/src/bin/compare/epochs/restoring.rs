//! Restoring from a store against a copy of as much into fresh memory.

use super::{bytes, threads};
use crate::report::{Goal, Report, best_in_turns};
use sojourn_benches::epochs::field::Field;
use sojourn_benches::epochs::restoring::Restoring;
use sojourn_benches::epochs::session::{Epochs, Known, ms};
use std::cell::RefCell;

const ROUNDS: usize = 7;
/// What restoring all of it may take, in copies.
const COPIES: f64 = 1.3;
/// Milliseconds until the program can use it, where it is restored lazily.
const FIRST: f64 = 20.0;
const LAZILY: &str = "epochs: restore lazily, to first use";

/// Takes all measures.
pub(super) fn measure(report: &mut Report) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let at_once = |lanes: usize| format!("epochs: restore, {}, over a copy", threads(lanes));
    if ![at_once(1), at_once(2), LAZILY.to_owned()].iter().any(|name| report.wants(name)) {
        return Ok(());
    }
    let epochs = Epochs::start(Field::new(bytes())?, 1, &Known::All)?;
    let restoring = RefCell::new(Restoring::new(epochs.end()));
    for lanes in [1, 2] {
        let name = at_once(lanes);
        if report.wants(&name) {
            let (ours, copy) = best_in_turns(
                ROUNDS,
                || restoring.borrow_mut().all(lanes).map(ms),
                || restoring.borrow().copy(lanes).map(ms),
            )?;
            report.line(&name, "ms", ours, copy, Goal::RatioAtMost(COPIES));
        }
    }
    if report.wants(LAZILY) {
        let mut took = vec![];
        for _ in 0..ROUNDS {
            match restoring.borrow_mut().lazily() {
                Ok(one) => took.push(one),
                Err(error) if error.errno() == libc::EOPNOTSUPP => {
                    report.absent(LAZILY, error);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        took.sort_by_key(|it| it.first);
        let (least, middle, most) = (took[0], took[ROUNDS / 2], took[ROUNDS - 1]);
        report.alone(LAZILY, "ms", ms(middle.first), Some(FIRST));
        let all = took.iter().map(|it| ms(it.all)).fold(f64::INFINITY, f64::min);
        let (least, most) = (ms(least.first), ms(most.first));
        report.note(format!("{least:.2} to {most:.2} ms; all of it in {all:.0} ms"));
    }
    Ok(())
}
