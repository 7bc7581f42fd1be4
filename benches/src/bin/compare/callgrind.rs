//! Instructions that virtual verbs add to a post and a poll, counted by valgrind's callgrind.
//!
//! The count does not depend on what else the machine does. The loop runs twice under valgrind,
//! with different numbers of requests; the difference leaves only the loop.

use crate::report::{Goal, Report};
use sojourn_benches::hot::{Layer, Stage, Threads, Verb};
use std::process::Command;

/// The argument that makes this binary run the loop and nothing else.
const ARGUMENT: &str = "--count-instructions";
const FEW: u64 = 1_000;
const MANY: u64 = 3_000;

/// Runs the loop where the arguments ask for it; returns false where they do not.
pub(crate) fn serve() -> Result<bool, Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [flag, layer, verb, n] = &args[..] else { return Ok(false) };
    if flag != ARGUMENT {
        return Ok(false);
    }
    let layer = if layer == "raw" { Layer::Raw } else { Layer::Virtual };
    let verb = Verb::ALL.into_iter().find(|v| v.name() == verb).ok_or("no such verb")?;
    Stage::new(layer, Threads::One)?.run(verb, n.parse()?);
    Ok(true)
}

fn count(layer: &str, verb: Verb, n: u64) -> Result<f64, Box<dyn std::error::Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([ARGUMENT, layer, verb.name(), &n.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("the loop under valgrind failed: {text}").into());
    }
    let collected = text.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = collected.ok_or_else(|| format!("valgrind said: {text}"))?;
    Ok(number.trim().parse::<u64>()? as f64)
}

pub(crate) fn measure(report: &mut Report) -> Result<(), Box<dyn std::error::Error>> {
    for verb in Verb::ALL {
        let name = format!("instructions: {} 64 B, post + poll", verb.name());
        if !report.wants(&name) {
            continue;
        }
        if Command::new("valgrind").arg("--version").output().is_err() {
            report.absent(&name, "valgrind is not installed");
            continue;
        }
        let per_request = |layer| {
            Ok::<_, Box<dyn std::error::Error>>(
                (count(layer, verb, MANY)? - count(layer, verb, FEW)?) / (MANY - FEW) as f64,
            )
        };
        report.line(&name, "ins", per_request("virtual")?, per_request("raw")?, Goal::None);
    }
    Ok(())
}
