//! Simulators from the command line: many seeds, or one of them again with its trace. What is simulated is a
//! [`Simulator`]; this is the rest, for each of them the same.
//!
//! ```text
//! NAME [--seeds N] [--first N] [--json]    seeds one after the other
//! NAME --seed N [--broken NAME]            one seed, with its trace
//! NAME --broken all [--seeds N]            the first seed that catches each broken shell
//! ```

use std::fmt::Debug;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Instant;

/// Between two reports of progress, in seeds.
const PROGRESS: u64 = 1_000;
/// Lines of a trace that are shown beside a failure; all of them with `--seed`.
const TAIL: usize = 80;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome<R> {
    /// The seed.
    pub seed: u64,
    /// Steps taken.
    pub events: u64,
    /// What was met.
    pub reached: R,
    /// The promise that was broken, if one was.
    pub violation: Option<String>,
    /// What happened, where that was asked for.
    pub trace: Vec<String>,
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options<B> {
    /// Keep a trace.
    pub trace: bool,
    /// With a shell that is broken on purpose.
    pub broken: Option<B>,
}

impl<B> Default for Options<B> {
    fn default() -> Self {
        Options { trace: false, broken: None }
    }
}

/// Worlds by their seeds.
pub trait Simulator {
    /// What it is called on the command line.
    const NAME: &'static str;
    /// Seeds that are run where nobody says how many.
    const SEEDS: u64;
    /// Seeds after which every kind must have been met.
    const ENOUGH: u64;
    /// What a run can meet: faults and interleavings.
    type Kind: Copy + Debug + 'static;
    /// All of these.
    const KINDS: &'static [Self::Kind];
    /// A set of these.
    type Reached;
    /// Shells that do one thing wrong.
    type Broken: Copy + Debug + 'static;
    /// All of these.
    const BROKEN: &'static [Self::Broken];

    /// Whether a run has met it.
    fn has(reached: &Self::Reached, kind: Self::Kind) -> bool;
    /// Runs the world of a seed until all has come to its end, a promise is broken, or time is up.
    fn run(seed: u64, options: Options<Self::Broken>) -> Outcome<Self::Reached>;
}

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// How many seeds.
    pub seeds: Option<u64>,
    /// The first of them.
    pub first: u64,
    /// Answers as JSON.
    pub json: bool,
    seed: Option<u64>,
    broken: Option<String>,
    others: Vec<String>,
}

impl Arguments {
    /// Those of this process. `others` are words that its program knows beside those that are known here.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn read(others: &[&str]) -> Result<Arguments, String> {
        let mut given = Arguments::default();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().unwrap_or_default();
            let number = |value: String| {
                let plain = value.replace('_', "");
                plain.parse().map_err(|_| format!("{word} {value:?}: expected a number"))
            };
            match word.as_str() {
                "--seeds" => given.seeds = Some(number(value())?),
                "--first" => given.first = number(value())?,
                "--seed" => given.seed = Some(number(value())?),
                "--broken" => given.broken = Some(value()),
                "--json" => given.json = true,
                other if others.contains(&other) => given.others.push(word),
                _ => {
                    let known = ["--seeds N", "--first N", "--seed N", "--broken NAME", "--json"];
                    let all = [&known[..], others].concat();
                    return Err(format!("{word}: expected one of {}", all.join(", ")));
                }
            }
        }
        Ok(given)
    }

    /// Whether one of the others is among them.
    #[must_use]
    pub fn has(&self, other: &str) -> bool {
        self.others.iter().any(|it| it == other)
    }
}

/// Says what is wrong with the arguments.
#[must_use]
pub fn refused(name: &str, why: &str) -> ExitCode {
    eprintln!("{name}: {why}");
    ExitCode::from(2)
}

/// Does what was asked for. Ends with 1 where a promise was broken (the seed is told, and what happened), or where
/// enough seeds were run and a kind was never met; with 2 where it was asked for what it does not know.
#[must_use]
pub fn main<S: Simulator>(given: &Arguments) -> ExitCode {
    let broken = match given.broken.as_deref() {
        None => None,
        Some("all") => return catch_all::<S>(given),
        Some(name) => match S::BROKEN.iter().find(|it| format!("{it:?}") == name) {
            Some(broken) => Some(*broken),
            None => {
                let all = S::BROKEN;
                let why = format!("--broken {name:?}: expected \"all\", or one of {all:?}");
                return refused(S::NAME, &why);
            }
        },
    };
    match given.seed {
        Some(seed) => replay::<S>(seed, broken),
        None => many::<S>(given, broken),
    }
}

/// Which seed catches each broken shell.
fn catch_all<S: Simulator>(given: &Arguments) -> ExitCode {
    let seeds = given.seeds.unwrap_or(S::SEEDS);
    let mut all = true;
    for broken in S::BROKEN {
        let options = Options { broken: Some(*broken), trace: false };
        let mut runs = (0..seeds).map(|n| S::run(given.first.wrapping_add(n), options));
        match runs.find(|it| it.violation.is_some()) {
            None => {
                all = false;
                println!("{broken:?}: not within {seeds} seeds");
            }
            Some(it) => {
                println!("{broken:?}: seed {}, {}", it.seed, it.violation.unwrap_or_default());
            }
        }
    }
    if all { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One seed, with all that happens.
fn replay<S: Simulator>(seed: u64, broken: Option<S::Broken>) -> ExitCode {
    let outcome = S::run(seed, Options { trace: true, broken });
    for line in &outcome.trace {
        println!("{line}");
    }
    match outcome.violation {
        None => {
            println!("seed {seed}: ok after {} events", outcome.events);
            ExitCode::SUCCESS
        }
        Some(what) => {
            println!("seed {seed}: {what}");
            ExitCode::FAILURE
        }
    }
}

fn many<S: Simulator>(given: &Arguments, broken: Option<S::Broken>) -> ExitCode {
    let begun = Instant::now();
    let seeds = given.seeds.unwrap_or(S::SEEDS);
    let mut counts = vec![0u64; S::KINDS.len()];
    let mut events = 0;
    let progress = std::io::stderr().is_terminal();
    for n in 0..seeds {
        let outcome = S::run(given.first.wrapping_add(n), Options { broken, trace: false });
        if let Some(what) = &outcome.violation {
            return failed::<S>(outcome.seed, what, broken, given.json);
        }
        events += outcome.events;
        for (count, kind) in counts.iter_mut().zip(S::KINDS) {
            *count += u64::from(S::has(&outcome.reached, *kind));
        }
        if progress && n % PROGRESS == 0 {
            eprint!("\r{n} of {seeds} seeds");
            let _ = std::io::stderr().flush();
        }
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    let seconds = begun.elapsed().as_secs_f64();
    let met = || counts.iter().zip(S::KINDS);
    if given.json {
        let met: Vec<String> = met().map(|(count, kind)| format!("\"{kind:?}\":{count}")).collect();
        println!(
            "{{\"seeds\":{seeds},\"first\":{},\"events\":{events},\"seconds\":{seconds:.3},\"kinds\":{{{}}}}}",
            given.first,
            met.join(",")
        );
    } else {
        for (count, kind) in met() {
            println!("{count:>9}  {kind:?}");
        }
        println!("{seeds} seeds, {events} events, {seconds:.1} s: no promise was broken");
    }
    let missing: Vec<_> = met().filter(|it| *it.0 == 0).map(|it| it.1).collect();
    if seeds >= S::ENOUGH && !missing.is_empty() {
        eprintln!("{}: never met: {missing:?}", S::NAME);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn failed<S: Simulator>(seed: u64, what: &str, broken: Option<S::Broken>, json: bool) -> ExitCode {
    if json {
        println!("{{\"failed\":{seed},\"what\":{what:?}}}");
        return ExitCode::FAILURE;
    }
    let trace = S::run(seed, Options { trace: true, broken }).trace;
    for line in &trace[trace.len().saturating_sub(TAIL)..] {
        println!("{line}");
    }
    println!("seed {seed}: {what}");
    println!("all of it: {} --seed {seed}", S::NAME);
    ExitCode::FAILURE
}
