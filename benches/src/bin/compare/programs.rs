//! Whole programs: heat on virtual verbs against heat on the raw device, and PageRank on the
//! byte stream against timely's own TCP. They are built first, in release.

use crate::report::{Goal, Report, best_in_turns};
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEAT: &str = "heat: 2 ranks, virtual over raw device";
const PAGERANK: &str = "PageRank: 3 ranks, verbs stream over TCP";
/// Long enough that starting processes does not count: heat times its steps itself.
const HEAT_ARGS: [&str; 6] = ["heat", "--size", "512x512", "--steps", "3000", "--json"];
/// A graph large enough that messages count.
const PAGERANK_ARGS: [&str; 4] = ["--graph", "random:100000,1000000", "--iterations", "20"];
const ROUNDS: usize = 7;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Builds `package` in release, and returns where its binaries are: beside this one, since
/// cargo puts all binaries of a profile into one folder.
pub(crate) fn build(package: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--release", "--package", package]);
    if !command.arg("--manifest-path").arg(manifest).status()?.success() {
        return Err(format!("{package} does not build").into());
    }
    let exe = std::env::current_exe()?;
    Ok(exe.parent().ok_or("this binary has no folder")?.to_owned())
}

/// Runs `program` as a job of `ranks`, and returns what it wrote.
fn job(binaries: &Path, ranks: u32, program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(binaries.join("sojourn"))
        .args(["run", "-n", &ranks.to_string(), "--device", "soft0", "--timeout", "120", "--"])
        .arg(binaries.join(program))
        .args(args)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{program} failed: {text}{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// The number behind `label` in `text`.
pub(crate) fn number(text: &str, label: &str) -> Result<f64> {
    let (_, rest) = text.split_once(label).ok_or_else(|| format!("no {label} in: {text}"))?;
    let end = rest.find(|c: char| !matches!(c, '0'..='9' | '.' | 'e' | '-')).unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

/// Takes both measures.
pub(crate) fn measure(report: &mut Report) -> Result<()> {
    if report.wants(HEAT) {
        let binaries = build("sojourn")?;
        let heat = |more: &[&str]| {
            let args = [&HEAT_ARGS[..], more].concat();
            number(&job(&binaries, 2, "sojourn", &args)?, "\"seconds\":")
        };
        let (ours, raw) = best_in_turns(ROUNDS, || heat(&[]), || heat(&["--raw"]))?;
        report.line(HEAT, "ms", ours * 1e3, raw * 1e3, Goal::RatioAtMost(1.01));
    }
    if report.wants(PAGERANK) {
        build("sojourn")?;
        let binaries = build("sojourn-pagerank")?;
        let rank = |transport: &str| {
            let args = [&PAGERANK_ARGS[..], &["--transport", transport]].concat();
            number(&job(&binaries, 3, "pagerank", &args)?, "time: ")
        };
        let (ours, tcp) = best_in_turns(ROUNDS, || rank("verbs"), || rank("tcp"))?;
        report.line(PAGERANK, "ms", ours * 1e3, tcp * 1e3, Goal::None);
    }
    Ok(())
}
