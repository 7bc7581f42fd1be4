//! Cycles that virtual verbs add to a post and a poll.

use crate::report::{Goal, Report, best_in_turns};
use sojourn_benches::hot::{Layer, Stage, Threads, Verb, cycles};

/// Requests of one timing: long against the clock, short against an interruption.
const BATCH: u64 = 20_000;
const ROUNDS: usize = 60;

fn goal(verb: Verb, threads: Threads) -> Goal {
    match (verb, threads) {
        (Verb::Recv, Threads::One) => Goal::MoreAtMost(20.0),
        (_, Threads::One) => Goal::MoreAtMost(30.0),
        (Verb::Recv, Threads::Many) => Goal::None,
        (_, Threads::Many) => Goal::MoreAtMost(45.0),
    }
}

pub(crate) fn measure(report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    for (threads, label) in [(Threads::One, "one thread"), (Threads::Many, "thread-safe")] {
        for verb in Verb::ALL {
            let name = format!("cycles: {} 64 B, post + poll, {label}", verb.name());
            if !report.wants(&name) {
                continue;
            }
            let mut virt = Stage::new(Layer::Virtual, threads)?;
            let mut raw = Stage::new(Layer::Raw, threads)?;
            let time = |stage: &mut Stage| {
                let start = cycles();
                stage.run(verb, BATCH);
                Ok::<_, sojourn_fabric::Error>((cycles() - start) as f64 / BATCH as f64)
            };
            let (ours, reference) = best_in_turns(ROUNDS, || time(&mut virt), || time(&mut raw))?;
            report.line(&name, "cyc", ours, reference, goal(verb, threads));
        }
    }
    Ok(())
}
