//! A program with an epoch each second against the same without: heat, and a store process for each rank.

use crate::programs::{build, number};
use crate::report::{Goal, Report};
use sojourn_fabric::names::{JobKey, PrivateDir};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ranks, cells, and steps for several seconds.
const RUNS: [(u32, &str, &str); 3] =
    [(2, "512x512", "40000"), (2, "2048x2048", "3000"), (4, "1024x1024", "10000")];
const ROUNDS: usize = 3;
/// What a run with epochs may take, in runs without.
const MOST: f64 = 1.05;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A store that ends with its standard input, and is ended in any case.
struct Store(Child);

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stores, and what ranks are told of them.
struct Stores {
    _all: Vec<Store>,
    told: String,
    key: PathBuf,
    _dir: PrivateDir,
}

impl Stores {
    fn start(binaries: &Path, many: u32) -> Result<Self> {
        let dir = PrivateDir::create()?;
        let key = dir.path().join("key");
        JobKey::generate()?.write(&key)?;
        let (mut all, mut told) = (vec![], vec![]);
        for i in 0..many {
            let at = format!("unix:{}", dir.path().join(format!("store{i}")).display());
            let mut child = Command::new(binaries.join("sojourn"))
                .args(["store", "--name", &format!("node{i}"), "--bytes", "512M"])
                .args(["--listen", &at, "--device", "soft0", "--with-parent", "--key-file"])
                .arg(&key)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let output = child.stdout.take().ok_or("a store has no output")?;
            all.push(Store(child));
            let mut line = String::new();
            if BufReader::new(output).read_line(&mut line)? == 0 {
                return Err("a store does not start".into());
            }
            told.push(format!("node{i}={at}"));
        }
        Ok(Stores { _all: all, told: told.join(","), key, _dir: dir })
    }
}

/// What a run took, in seconds, and how many epochs each rank has committed in it.
fn run(
    binaries: &Path,
    (ranks, size, steps): (u32, &str, &str),
    stores: Option<&Stores>,
) -> Result<(f64, usize)> {
    let mut command = Command::new(binaries.join("sojourn"));
    command.args(["run", "-n", &ranks.to_string(), "--device", "soft0", "--timeout", "120", "--"]);
    let heat = ["heat", "--size", size, "--steps", steps, "--json"];
    match stores {
        None => command.arg(binaries.join("sojourn")).args(heat),
        // Each rank is on a node of its own.
        Some(stores) => command
            .args(["sh", "-c", "SOJOURN_NODE=node$SOJOURN_RANK exec \"$@\"", "sh"])
            .arg(binaries.join("sojourn"))
            .args(heat)
            .env("SOJOURN_STORES", &stores.told)
            .env("SOJOURN_STORE_KEY_FILE", &stores.key)
            .env("SOJOURN_EPOCH_SECONDS", "1")
            // Tells of each epoch.
            .env("SOJOURN_LOG", "sojourn::snapshot=debug"),
    };
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("heat failed: {text}{said}").into());
    }
    let epochs = said.matches(" is committed: ").count() + text.matches(" is committed: ").count();
    Ok((number(&text, "\"seconds\":")?, epochs / ranks as usize))
}

/// Takes all measures.
pub(super) fn measure(report: &mut Report) -> Result<()> {
    for job in RUNS {
        let (ranks, size, _) = job;
        let name = format!("epochs: heat, {ranks} ranks, {size}");
        if !report.wants(&name) {
            continue;
        }
        let binaries = build("sojourn")?;
        let (mut ours, mut reference, mut epochs) = (f64::INFINITY, f64::INFINITY, vec![]);
        for _ in 0..ROUNDS {
            reference = run(&binaries, job, None)?.0.min(reference);
            let stores = Stores::start(&binaries, ranks)?;
            let (took, some) = run(&binaries, job, Some(&stores))?;
            ours = took.min(ours);
            epochs.push(some);
        }
        report.line(&name, "s", ours, reference, Goal::RatioAtMost(MOST));
        let fewest = epochs.iter().min().copied().unwrap_or(0);
        report.note(format!("an epoch each second: at least {fewest} in each run"));
        if fewest == 0 {
            return Err("a run has committed no epoch".into());
        }
    }
    Ok(())
}
