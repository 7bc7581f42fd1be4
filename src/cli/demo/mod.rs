//! `sojourn demo`: heat on four ranks that go from device to device in mid-run, and of which one is lost
//! together with its node, checked against one rank that stays.

mod epochs;
mod nodes;
mod watch;

use super::heat::{Moved, Report, place};
use super::run::{End, Launch, Place, Signals, check_device};
use super::{Failure, Outcome, While, print};
use epochs::{Lost, Row};
use indicatif::{ProgressBar, ProgressStyle};
use nodes::{Nodes, Stores};
use serde::Serialize;
use sojourn::device::Kind;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use watch::{Told, Watcher};

/// Ranks of the demo.
const RANKS: u32 = 4;
/// Cells of its plate.
const SIZE: &str = "512x512";
/// Steps at most: enough for the heat to reach the edge of the plate.
const STEPS: u64 = 8000;
/// Times that each rank goes to another device.
const MOVES: usize = 2;
/// The rank whose device fails.
const FAILS_UNDER: u32 = RANKS - 1;
/// The rank that is lost, with the store of its node.
const LOST: u32 = 1;
/// What the ranks are told, where nothing else was said: their devices; and that a device that fails is
/// part of the show, and no warning.
const ENVIRONMENT: [(&str, &str); 2] =
    [("SOJOURN_SOFT_DEVICES", "soft0,soft1"), (super::LOG, "error")];
/// A hung rank ends the demo after this.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Show Sojourn at work: heat on four processes over the best device of this machine
///
/// In mid-run each process goes over to another device, and back, while the others compute; and under
/// one of them its device fails (if it is a soft one). All the while their memory is saved into stores on other nodes (here: processes).
/// One is killed, and the store of its node with it: a new process takes its place, and all go back to the last epoch.
/// The field is written as a picture, and compared bit for bit with that of one process.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The device to use (default: the best that this machine has)
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Where the picture goes
    #[arg(long, value_name = "PNG", default_value = "sojourn-demo.png")]
    output: PathBuf,
    /// Steps of the computation
    #[arg(long, value_name = "N", default_value_t = STEPS, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown {
    ok: bool,
    job: Report,
    alone: Report,
    picture: PathBuf,
    moves: Vec<Moved>,
    epochs: Vec<Row>,
    lost: Option<Lost>,
    seconds: f64,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> Outcome {
    let start = Instant::now();
    let device = match &args.device {
        Some(name) => name.clone(),
        None => sojourn::best_device()?,
    };
    check_device(Some(&device))?;
    let told = ENVIRONMENT.into_iter().map(|(name, value)| (name, OsString::from(value)));
    let plain: Vec<_> = told.filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    let picture = std::path::absolute(&args.output)
        .doing(format_args!("the picture {}", args.output.display()))?;
    let program = std::env::current_exe().doing("finding the program itself")?;
    let signals = Signals::block()?;
    let heat = |ranks: u32, what: &'static str, more: &[OsString], nodes: Option<&Nodes>| {
        let steps = args.steps.to_string();
        let mut arguments: Vec<OsString> =
            ["heat", "--size", SIZE, "--steps", &steps, "--json", "--progress"]
                .map(OsString::from)
                .to_vec();
        arguments.extend_from_slice(more);
        let mut environment = plain.clone();
        environment.extend(nodes.map(Nodes::environment).unwrap_or_default());
        let job = Launch {
            size: ranks,
            ranks: (0..ranks).collect(),
            device: Some(&device),
            place: Place::Alone(None),
            timeout: Some(TIMEOUT),
            restarts: u32::from(nodes.is_some()),
            quiet: true,
            nodes: nodes.map_or(&[], Nodes::names),
            program: &program,
            arguments: &arguments,
            environment: &environment,
        };
        launch(&job, &signals, what, args.json, nodes.map(|nodes| nodes.stores().clone()))
    };
    let journey = journey(&device).join(",");
    let mut more: Vec<OsString> =
        vec!["--relocate".into(), journey.into(), "--output".into(), picture.clone().into()];
    more.extend(["--recover".into(), "--kill".into(), LOST.to_string().into()]);
    // Only soft devices fail when they are told to.
    let all = sojourn::device::list();
    if all.iter().any(|it| it.name() == device && it.kind() == Kind::Soft) {
        more.extend(["--fail".into(), FAILS_UNDER.to_string().into()]);
    }
    let nodes = Nodes::start(RANKS, &program, &device)?;
    let shown = heat(RANKS, "4 ranks", &more, Some(&nodes))?;
    drop(nodes);
    let alone = heat(1, "1 rank", &[], None)?.report;
    let Came { report: job, moves, epochs, lost } = shown;
    let same = job.checksum == alone.checksum && job.steps == alone.steps;
    let seconds = start.elapsed().as_secs_f64();
    let shown = Shown { ok: same, job, alone, picture, moves, epochs, lost, seconds };
    if args.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&shown).doing("writing JSON")?))?;
    } else {
        print(&text(&shown))?;
    }
    if same {
        return Ok(());
    }
    Err(Failure::new(format!(
        "demo: the field of {RANKS} ranks ({} after {} steps) is not that of one ({} after {})",
        shown.job.checksum, shown.job.steps, shown.alone.checksum, shown.alone.steps
    )))
}

/// Where each rank goes: to another device of the same kind and back, or where there is none, to the
/// same one, with new queue pairs.
fn journey(device: &str) -> Vec<String> {
    let all = sojourn::device::list();
    let kind = all.iter().find(|it| it.name() == device).map(|it| it.kind());
    let other = match kind {
        // The ranks have two, whatever is seen here.
        Some(Kind::Soft) if device == "soft1" => "soft0".to_owned(),
        Some(Kind::Soft) => "soft1".to_owned(),
        _ => all
            .iter()
            .find(|it| Some(it.kind()) == kind && it.name() != device)
            .map_or(device.to_owned(), |it| it.name().to_owned()),
    };
    [other, device.to_owned()].into_iter().cycle().take(MOVES).collect()
}

fn text(shown: &Shown) -> String {
    let (job, alone) = (&shown.job, &shown.alone);
    let mut text = format!(
        "heat on a plate of {}x{} cells, {} steps, residual {:.1e}\n\
         {}: {:.2} s, {:.0} steps/s, {:.1} µs a step\n\
         {}: {:.2} s, {:.0} steps/s, {:.1} µs a step\n\
         over verbs: {} requests, {:.1} MB, {:.1} µs of waiting a step and rank\n\
         picture: {}\n",
        job.width,
        job.height,
        job.steps,
        job.residual,
        place(job),
        job.seconds,
        job.steps_per_second(),
        1e6 / job.steps_per_second(),
        place(alone),
        alone.seconds,
        alone.steps_per_second(),
        1e6 / alone.steps_per_second(),
        job.requests,
        job.bytes as f64 / 1e6,
        1e6 * job.waited_seconds / (job.steps as f64 * f64::from(job.ranks)),
        shown.picture.display(),
    );
    let mut moves = shown.moves.clone();
    moves.sort_by_key(|moved| moved.rank);
    for moved in &moves {
        text += &format!("{}\n", moved.text());
    }
    text += &epochs::text(&shown.epochs, shown.lost.as_ref());
    if shown.ok {
        text += &format!(
            "check: both fields have the checksum {}\n{:.1} s in all\ndemo: ok\n",
            job.checksum, shown.seconds
        );
    }
    text
}

/// What a run of heat came to.
struct Came {
    report: Report,
    moves: Vec<Moved>,
    epochs: Vec<Row>,
    lost: Option<Lost>,
}

/// Runs heat, and returns what its ranks tell.
fn launch(
    job: &Launch<'_>,
    signals: &Signals,
    what: &'static str,
    quiet: bool,
    stores: Option<Stores>,
) -> Outcome<Came> {
    let (tell, told) = std::sync::mpsc::channel();
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(1) };
    // It draws on stderr, and only where that is a terminal.
    let style = ProgressStyle::with_template("{prefix:>8} [{bar:40}] {pos}/{len} steps, {msg}")
        .doing("the progress bar")?;
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(what);
    let (end, _) = job.run(signals, Box::new(Watcher { bar: bar.clone(), tell, stores }))?;
    bar.finish_and_clear();
    if end != End::Success {
        return Err(Failure::status(end.status()));
    }
    let (mut report, mut moves, mut kept) = (None, Vec::new(), Vec::new());
    let (mut dying, mut back) = (None, Vec::new());
    for told in told.try_iter() {
        match told {
            Told::Report(it) => report = Some(it),
            Told::Moved(it) => moves.push(it),
            Told::Kept(it) => kept.push(it),
            Told::Dying(rank, at) => dying = Some((rank, at)),
            Told::Back(it, at) => back.push((it, at)),
        }
    }
    let report =
        report.ok_or_else(|| Failure::new(format!("demo: {what} ended without a report")))?;
    let lost = dying.and_then(|(rank, at)| Lost::new(rank, at, &back));
    Ok(Came { report, moves, epochs: epochs::rows(&kept), lost })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_ok_only_where_the_fields_are_the_same() {
        let report = |checksum: &str| {
            let text = format!(
                r#"{{"width":2,"height":2,"ranks":1,"columns":1,"rows":1,"device":null,"raw":false,
                "steps":5,"residual":0.1,"checksum":"{checksum}","seconds":0.5,"bytes":0,
                "requests":0,"waited_seconds":0.0}}"#
            );
            serde_json::from_str::<Report>(&text).unwrap()
        };
        let shown = |ok| Shown {
            ok,
            job: report("1"),
            alone: report("1"),
            picture: PathBuf::from("x.png"),
            moves: Vec::new(),
            epochs: Vec::new(),
            lost: None,
            seconds: 1.0,
        };
        assert!(text(&shown(true)).ends_with("demo: ok\n"));
        assert!(!text(&shown(false)).contains("ok"));
    }
}
