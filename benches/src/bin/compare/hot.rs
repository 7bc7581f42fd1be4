//! Cycles that virtual verbs add to a post and a poll.

use crate::report::{Goal, Report, best_in_turns};
use sojourn_benches::hot::{Copies, Layer, Names, PAYLOAD, Payload, Stage, Threads, Verb, cycles};

/// Requests of one timing: long against the clock, short against an interruption.
const BATCH: u64 = 2_000;
/// Timings of each set-up: long enough together that other programs pause now and then.
const ROUNDS: usize = 1_000;
/// Set-ups, since where their memory lies matters: the best counts of these, too.
const STAGES: usize = 3;

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
            let time = |stage: &mut Stage| {
                let start = cycles();
                stage.run(verb, BATCH);
                Ok::<_, sojourn_fabric::Error>((cycles() - start) as f64 / BATCH as f64)
            };
            let (mut ours, mut reference) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..STAGES {
                let mut virt = Stage::new(Layer::Virtual, threads)?;
                let mut raw = Stage::new(Layer::Raw, threads)?;
                let best = best_in_turns(ROUNDS, || time(&mut virt), || time(&mut raw))?;
                (ours, reference) = (ours.min(best.0), reference.min(best.1));
            }
            report.line(&name, "cyc", ours, reference, goal(verb, threads));
        }
    }
    records(report)?;
    tracking(report)?;
    for length in [64, PAYLOAD] {
        inline(report, length)?;
    }
    names(report);
    Ok(())
}

/// What records cost per WRITE: the long way, and a sixteenth of another request.
fn records(report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    let name = "cycles: WRITE 64 B, with records over without";
    over_plain(report, name, Layer::Recording, Verb::Write)
}

/// What it costs to record what devices write: the long way, and a look at each request before its place in the
/// window is used again.
fn tracking(report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    for verb in Verb::ALL {
        let name = format!("cycles: {} 64 B, with writes tracked over not", verb.name());
        over_plain(report, &name, Layer::Tracking, verb)?;
    }
    Ok(())
}

fn over_plain(
    report: &mut Report,
    name: &str,
    layer: Layer,
    verb: Verb,
) -> Result<(), Box<dyn std::error::Error>> {
    if !report.wants(name) {
        return Ok(());
    }
    let time = |stage: &mut Stage| {
        let start = cycles();
        stage.run(verb, BATCH);
        Ok::<_, sojourn_fabric::Error>((cycles() - start) as f64 / BATCH as f64)
    };
    let (mut ours, mut reference) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..STAGES {
        let mut long = Stage::new(layer, Threads::One)?;
        let mut plain = Stage::new(Layer::Virtual, Threads::One)?;
        let best = best_in_turns(ROUNDS, || time(&mut long), || time(&mut plain))?;
        (ours, reference) = (ours.min(best.0), reference.min(best.1));
    }
    report.line(name, "cyc", ours, reference, Goal::None);
    Ok(())
}

/// What an inline payload may add: so many bare copies of it.
const COPIES: f64 = 1.1;

/// An inline payload is copied into the window, once.
fn inline(report: &mut Report, length: usize) -> Result<(), Box<dyn std::error::Error>> {
    let name = format!("cycles: SEND {length} B, inline over named");
    if !report.wants(&name) {
        return Ok(());
    }
    let mut copies = Copies::new();
    let each = |run: &mut dyn FnMut()| {
        let start = cycles();
        run();
        (cycles() - start) as f64 / BATCH as f64
    };
    let (mut ours, mut named, mut copy) = (f64::INFINITY, f64::INFINITY, f64::INFINITY);
    for _ in 0..STAGES {
        let mut stage = Stage::new(Layer::Virtual, Threads::One)?;
        for _ in 0..ROUNDS {
            ours = ours.min(each(&mut || stage.run_payload(Payload::Inline, length, BATCH)));
            named = named.min(each(&mut || stage.run_payload(Payload::Named, length, BATCH)));
            copy = copy.min(each(&mut || copies.run(length, BATCH)));
        }
    }
    report.line(&name, "cyc", ours, named, Goal::MoreAtMost(COPIES * copy));
    report.note(format!("a bare copy takes {copy:.1} cyc"));
    Ok(())
}

/// The two look-ups of a WRITE with nothing around them but the copy that there is anyway.
fn names(report: &mut Report) {
    let name = "cycles: translation of a WRITE's names alone";
    if !report.wants(name) {
        return;
    }
    let mut names = [Names::new(), Names::new()];
    let n = BATCH / names[0].round();
    let time = |names: &mut Names, run: fn(&mut Names, u64)| {
        let start = cycles();
        run(names, n);
        Ok::<_, std::convert::Infallible>((cycles() - start) as f64 / (n * names.round()) as f64)
    };
    let [translated, copied] = &mut names;
    let Ok((ours, reference)) =
        best_in_turns(ROUNDS, || time(translated, Names::translate), || time(copied, Names::copy));
    report.line(name, "cyc", ours, reference, Goal::MoreAtMost(5.0));
}
