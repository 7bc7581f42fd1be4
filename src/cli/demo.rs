//! `sojourn demo`: heat on four ranks that go from device to device in mid-run, checked against one
//! rank that stays.

use super::heat::{MOVED, Moved, PROGRESS, Report, place};
use super::run::{End, Launch, Place, Signals, Sink, Stream};
use super::{Failure, Outcome, While, print};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sojourn::device::Kind;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

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
/// What the ranks are told, where nothing else was said: their devices; and that a device that fails is
/// part of the show, and no warning.
const ENVIRONMENT: [(&str, &str); 2] =
    [("SOJOURN_SOFT_DEVICES", "soft0,soft1"), (super::LOG, "error")];
/// A hung rank ends the demo after this.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Show Sojourn at work: heat on four processes over the best device of this machine
///
/// In mid-run each process goes over to another device, and back, while the others compute; and under
/// one of them its device fails (if it is a soft one). The field is written as a picture, and compared bit for bit with that of one process.
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
    seconds: f64,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs) -> Outcome {
    let start = Instant::now();
    let device = match &args.device {
        Some(name) => name.clone(),
        None => sojourn::best_device()?,
    };
    let mut environment = ENVIRONMENT.to_vec();
    environment.retain(|(name, _)| std::env::var_os(name).is_none());
    let picture = std::path::absolute(&args.output)
        .doing(format_args!("the picture {}", args.output.display()))?;
    let program = std::env::current_exe().doing("finding the program itself")?;
    let signals = Signals::block()?;
    let heat = |ranks: u32, what: &'static str, more: &[OsString]| {
        let steps = args.steps.to_string();
        let mut arguments: Vec<OsString> =
            ["heat", "--size", SIZE, "--steps", &steps, "--json", "--progress"]
                .map(OsString::from)
                .to_vec();
        arguments.extend_from_slice(more);
        let job = Launch {
            size: ranks,
            ranks: (0..ranks).collect(),
            device: Some(&device),
            place: Place::Alone(None),
            timeout: Some(TIMEOUT),
            restarts: 0,
            program: &program,
            arguments: &arguments,
            environment: &environment,
        };
        launch(&job, &signals, what, args.json)
    };
    let journey = journey(&device).join(",");
    let mut more: Vec<OsString> =
        vec!["--relocate".into(), journey.into(), "--output".into(), picture.clone().into()];
    // Only soft devices fail when they are told to.
    let all = sojourn::device::list();
    if all.iter().any(|it| it.name() == device && it.kind() == Kind::Soft) {
        more.extend(["--fail".into(), FAILS_UNDER.to_string().into()]);
    }
    let (job, moves) = heat(RANKS, "4 ranks", &more)?;
    let (alone, _) = heat(1, "1 rank", &[])?;
    let same = job.checksum == alone.checksum && job.steps == alone.steps;
    let seconds = start.elapsed().as_secs_f64();
    let shown = Shown { ok: same, job, alone, picture, moves, seconds };
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
    if shown.ok {
        text += &format!(
            "check: both fields have the checksum {}\n{:.1} s in all\ndemo: ok\n",
            job.checksum, shown.seconds
        );
    }
    text
}

/// Runs heat, and returns what its rank 0 reports, and where ranks went.
fn launch(
    job: &Launch<'_>,
    signals: &Signals,
    what: &'static str,
    quiet: bool,
) -> Outcome<(Report, Vec<Moved>)> {
    let (tell, told) = std::sync::mpsc::channel();
    let (tell_moves, moves) = std::sync::mpsc::channel();
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(1) };
    // It draws on stderr, and only where that is a terminal.
    let style = ProgressStyle::with_template("{prefix:>8} [{bar:40}] {pos}/{len} steps, {msg}")
        .doing("the progress bar")?;
    bar.set_style(style.progress_chars("=> "));
    bar.set_prefix(what);
    let watcher = Watcher { bar: bar.clone(), tell, tell_moves };
    let (end, _) = job.run(signals, Box::new(watcher))?;
    bar.finish_and_clear();
    if end != End::Success {
        return Err(Failure::status(end.status()));
    }
    let report = told.try_iter().last();
    let report =
        report.ok_or_else(|| Failure::new(format!("demo: {what} ended without a report")))?;
    Ok((report, moves.try_iter().collect()))
}

/// Takes what the ranks print: progress and the report from rank 0; everything else is passed on.
struct Watcher {
    bar: ProgressBar,
    tell: std::sync::mpsc::Sender<Report>,
    tell_moves: std::sync::mpsc::Sender<Moved>,
}

impl Sink for Watcher {
    fn line(&mut self, rank: u32, stream: Stream, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let mut words = text.split(' ');
        if stream == Stream::Out && words.next() == Some(PROGRESS) {
            let mut number = || words.next().and_then(|word| word.parse().ok());
            if let (Some(step), Some(steps)) = (number(), number()) {
                self.bar.set_length(steps);
                self.bar.set_position(step);
                self.bar.set_message(format!("residual {}", words.next().unwrap_or_default()));
            }
        } else if stream == Stream::Out
            && let Some(Ok(moved)) =
                text.strip_prefix(MOVED).map(|json| serde_json::from_str(json.trim()))
        {
            let _ = self.tell_moves.send(moved);
        } else if stream == Stream::Out
            && let Ok(report) = serde_json::from_slice(line)
        {
            // The receiver is there as long as the job runs.
            let _ = self.tell.send(report);
        } else {
            self.bar.suspend(|| eprintln!("[{rank}] {text}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watcher_finds_the_report_among_other_lines() {
        let (tell, told) = std::sync::mpsc::channel();
        let (tell_moves, moves) = std::sync::mpsc::channel();
        let mut watcher = Watcher { bar: ProgressBar::hidden(), tell, tell_moves };
        let report = Report {
            width: 4,
            height: 3,
            ranks: 2,
            columns: 1,
            rows: 2,
            device: Some("soft0".to_owned()),
            raw: false,
            steps: 10,
            residual: 0.5,
            checksum: "ab".to_owned(),
            seconds: 0.1,
            bytes: 7,
            requests: 3,
            waited_seconds: 0.0,
        };
        let json = serde_json::to_vec(&report).unwrap();
        watcher.line(0, Stream::Out, b"progress 8 10 5e-1");
        watcher.line(1, Stream::Err, b"a warning");
        watcher.line(0, Stream::Out, &json);
        let moved = br#"moved {"rank":3,"from":"soft0","to":"soft1","failed":false,"queue_pairs":7,"peers":2,"blackout_seconds":0.001,"phases":[["switch",0.001]]}"#;
        watcher.line(3, Stream::Out, moved);
        let moves: Vec<_> = moves.try_iter().map(|moved| (moved.rank, moved.to)).collect();
        assert_eq!(moves, [(3, "soft1".to_owned())]);
        assert_eq!(watcher.bar.position(), 8);
        assert_eq!(told.try_iter().map(|report| report.checksum).collect::<Vec<_>>(), ["ab"]);
    }

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
            seconds: 1.0,
        };
        assert!(text(&shown(true)).ends_with("demo: ok\n"));
        assert!(!text(&shown(false)).contains("ok"));
    }
}
