//! `sojourn heat`: the plate, as one rank of a job or alone.

use super::{Failure, Outcome, While, print};
use crate::heat::image;
use crate::heat::pattern::Pattern;
use crate::heat::travel::{self, Deed, Travel};
use crate::heat::{self, Problem, Progress, Solution};
use serde::{Deserialize, Serialize};
use sojourn::Job;
use sojourn::snapshot::{Options, Snapshots};
use sojourn::verbs::{Cause, Context, Relocation};
use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

/// What lines of progress begin with; step, steps and residual follow.
pub(crate) const PROGRESS: &str = "progress";
/// What lines of moves begin with; [`Moved`] in JSON follows.
pub(crate) const MOVED: &str = "moved";
/// What lines of committed epochs begin with; [`Kept`] in JSON follows.
pub(crate) const EPOCH: &str = "epoch";
/// The line of a rank that is about to be killed.
pub(crate) const DYING: &str = "dying";
/// What lines of ranks that go back begin with; [`Back`] in JSON follows.
pub(crate) const BACK: &str = "back";

/// Compute how heat spreads over a plate, together with the other ranks of a job
///
/// Under `sojourn run -n 4 -- sojourn heat`, each rank computes a part of the plate, and they
/// exchange their edges by RDMA. The field is the same, bit for bit, for any number of ranks.
#[derive(Debug, clap::Args)]
pub(crate) struct HeatArgs {
    /// Cells of the plate
    #[arg(long, value_name = "WIDTHxHEIGHT", default_value = "512x512", value_parser = size)]
    size: (usize, usize),
    /// Steps at most
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Stop when no cell changes by more than this in a step
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = tolerance)]
    tolerance: f64,
    /// Start from the brightness of this PNG, in place of a hot Julia set
    #[arg(long, value_name = "PNG", conflicts_with = "size")]
    input: Option<PathBuf>,
    /// Write the field as a picture
    #[arg(long, value_name = "PNG")]
    output: Option<PathBuf>,
    /// Use the device without virtual verbs, for measuring
    #[arg(long)]
    raw: bool,
    /// Let each rank go over to these devices in mid-run, one after the other (soft1,soft0)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "raw")]
    relocate: Vec<String>,
    /// Let the (soft) device fail under this rank, after two thirds of the steps
    #[arg(long, value_name = "RANK", conflicts_with = "raw")]
    fail: Option<u32>,
    /// Let this rank be killed, once, after two fifths of the steps
    #[arg(long, value_name = "RANK", conflicts_with = "raw", requires = "recover")]
    kill: Option<u32>,
    /// Where a rank dies, go on with the one that takes its place (`sojourn run --restarts`)
    #[arg(long)]
    recover: bool,
    /// Print the checksum of the field, and nothing else
    #[arg(long, conflicts_with = "json")]
    checksum: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print lines of progress
    #[arg(long)]
    progress: bool,
}

fn size(text: &str) -> Result<(usize, usize), String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let (width, height) = sides.ok_or("width and height are needed, as 512x512")?;
    image::check_size(width, height)?;
    Ok((width, height))
}

fn tolerance(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|x| x.is_finite() && *x >= 0.0).ok_or("a number from 0 up is needed".to_owned())
}

/// What a run came to, as it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) ranks: u32,
    pub(crate) columns: u32,
    pub(crate) rows: u32,
    /// `None` where a rank computed alone.
    pub(crate) device: Option<String>,
    pub(crate) raw: bool,
    pub(crate) steps: u64,
    pub(crate) residual: f64,
    pub(crate) checksum: String,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    /// Of all ranks together.
    pub(crate) waited_seconds: f64,
}

/// An epoch of a rank, as it is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) rank: u32,
    pub(crate) epoch: u64,
    /// Bytes of the rank's memory.
    pub(crate) memory: u64,
    /// Bytes that were sent, to all stores.
    pub(crate) bytes: u64,
    pub(crate) copies: usize,
    /// How long the rank stood still.
    pub(crate) pause_seconds: f64,
    /// How long bytes were being sent.
    pub(crate) sending_seconds: f64,
}

/// A rank has gone back to an epoch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Back {
    pub(crate) rank: u32,
    pub(crate) epoch: u64,
    pub(crate) step: u64,
    /// It is another process than before.
    pub(crate) new: bool,
}

/// A rank has gone to another device in mid-run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) rank: u32,
    pub(crate) from: String,
    pub(crate) to: String,
    /// Its path had failed.
    pub(crate) failed: bool,
    pub(crate) queue_pairs: usize,
    pub(crate) peers: usize,
    pub(crate) blackout_seconds: f64,
    /// Name and seconds.
    pub(crate) phases: Vec<(String, f64)>,
}

impl Moved {
    fn new(rank: u32, moved: Relocation) -> Self {
        let seconds = |took: Duration| took.as_secs_f64();
        Moved {
            rank,
            blackout_seconds: seconds(moved.blackout()),
            from: moved.from,
            to: moved.to,
            failed: moved.cause == Cause::PathFailure,
            queue_pairs: moved.queue_pairs,
            peers: moved.peers,
            phases: moved.phases.iter().map(|it| (it.name.to_owned(), seconds(it.took))).collect(),
        }
    }

    /// One line, for people.
    pub(crate) fn text(&self) -> String {
        let phases: Vec<_> =
            self.phases.iter().map(|(name, took)| format!("{name} {:.2}", took * 1e3)).collect();
        format!(
            "rank {}: {}{} to {}, {} queue pairs, blackout {:.2} ms ({} ms)",
            self.rank,
            self.from,
            if self.failed { ", which failed," } else { "" },
            self.to,
            self.queue_pairs,
            self.blackout_seconds * 1e3,
            phases.join(", ")
        )
    }
}

impl Report {
    /// Steps in a second.
    pub(crate) fn steps_per_second(&self) -> f64 {
        self.steps as f64 / self.seconds
    }

    /// Cells made in a second.
    pub(crate) fn cells_per_second(&self) -> f64 {
        (self.width * self.height) as f64 * self.steps_per_second()
    }
}

/// Computes, and reports at rank 0.
pub(crate) fn run(args: &HeatArgs) -> Outcome {
    let pattern = match &args.input {
        None => Pattern::Julia { width: args.size.0, height: args.size.1 },
        Some(path) => Pattern::Picture(
            image::read(path).doing(format_args!("reading the picture {}", path.display()))?,
        ),
    };
    let job = Job::from_env()?;
    let device = if job.size() > 1 { Some(job.device()?) } else { None };
    let problem =
        Problem { pattern, steps: args.steps, tolerance: args.tolerance, recover: args.recover };
    check_devices(&args.relocate)?;
    let travel = RefCell::new(None);
    let dies = args.kill == Some(job.rank()) && !job.is_replacement();
    let open = || match &device {
        Some(name) if args.raw => Context::open_raw(name),
        _ => {
            let context = job.context()?;
            let mut plan = travel::plan(&args.relocate, job.rank(), job.size(), args.steps);
            if args.fail == Some(job.rank()) {
                let at = args.steps * 2 / 3;
                // Where it is by then.
                let before = plan.iter().rev().find(|(step, _)| *step <= at);
                let under = match before {
                    Some((_, Deed::Go(device))) => device.clone(),
                    _ => job.device()?,
                };
                plan.retain(|(step, _)| *step <= at);
                plan.push((at, Deed::Fail(under)));
            }
            if !plan.is_empty() {
                *travel.borrow_mut() = Some(Travel::start(context.clone(), plan)?);
            }
            Ok(context)
        }
    };
    // Of a process that takes another's place, until it has gone back.
    let fresh = Cell::new(true);
    let mut told = Instant::now();
    let tell = args.progress && job.rank() == 0;
    let mut snapshots = match Options::from_env()? {
        Some(options) => Some(Snapshots::new(&job, options)?),
        None => None,
    };
    if args.progress
        && let Some(snapshots) = &mut snapshots
    {
        let rank = job.rank();
        snapshots.on_committed(move |report, memory| {
            let _ = tell_line(
                EPOCH,
                &Kept {
                    rank,
                    epoch: report.epoch.count(),
                    memory: memory as u64,
                    bytes: report.bytes,
                    copies: report.copies,
                    pause_seconds: report.paused.as_secs_f64(),
                    sending_seconds: report.sending.as_secs_f64(),
                },
            );
        });
    }
    let solution = heat::solve(&job, open, &problem, snapshots.as_mut(), |progress| {
        let (step, residual) = match progress {
            Progress::Step { step, residual } => (step, residual),
            Progress::Back { step, epoch } => {
                if args.progress {
                    let new = job.is_replacement() && fresh.replace(false);
                    let _ = tell_line(BACK, &Back { rank: job.rank(), epoch, step, new });
                }
                return;
            }
        };
        if dies && step >= args.steps * 2 / 5 {
            die(args.progress);
        }
        if let Some(travel) = &*travel.borrow() {
            travel.tell(step);
        }
        if tell && told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            println!("{PROGRESS} {step} {} {residual:e}", args.steps);
        }
    })?;
    if let Some(travel) = travel.into_inner() {
        for moved in travel.finish()? {
            tell_move(&Moved::new(job.rank(), moved), args.progress)?;
        }
    }
    let Some(solution) = solution else { return Ok(()) };
    let (width, height) = problem.pattern.size();
    if let Some(path) = &args.output {
        image::write(path, width, height, solution.field.iter().copied())
            .doing(format_args!("writing the picture {}", path.display()))?;
    }
    let report = report(&solution, (width, height), &job, device, args.raw);
    if args.checksum {
        print(&format!("{}\n", report.checksum))
    } else if args.json {
        let text = serde_json::to_string(&report).doing("writing JSON")?;
        print(&format!("{text}\n"))
    } else {
        print(&text(&report, args))
    }
}

/// Before anything is computed.
fn check_devices(names: &[String]) -> Outcome {
    let all = sojourn::device::list();
    let known: Vec<_> = all.iter().map(|device| device.name()).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(Failure::new(format!(
            "--relocate: device \"{name}\" not found; this machine has: {}",
            known.join(", ")
        ))),
    }
}

/// The process dies, as one does that is killed.
fn die(tell: bool) {
    if tell {
        let _ = print(&format!("{DYING}\n"));
    }
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
}

/// A line for whoever watches the ranks.
fn tell_line(what: &str, value: &impl Serialize) -> Outcome {
    print(&format!("{what} {}\n", serde_json::to_string(value).doing("writing JSON")?))
}

fn tell_move(moved: &Moved, progress: bool) -> Outcome {
    if progress {
        return tell_line(MOVED, moved);
    }
    eprintln!("{}", moved.text());
    Ok(())
}

fn report(
    solution: &Solution,
    (width, height): (usize, usize),
    job: &Job,
    device: Option<String>,
    raw: bool,
) -> Report {
    Report {
        width,
        height,
        ranks: job.size(),
        columns: solution.blocks.0,
        rows: solution.blocks.1,
        raw: raw && device.is_some(),
        device,
        steps: solution.steps,
        residual: solution.residual,
        checksum: format!("{:016x}", solution.checksum()),
        seconds: solution.elapsed.as_secs_f64(),
        bytes: solution.bytes,
        requests: solution.requests,
        waited_seconds: solution.waited.as_secs_f64(),
    }
}

fn text(report: &Report, args: &HeatArgs) -> String {
    let mut text = String::new();
    let mut line = |what: String| {
        let _ = writeln!(text, "{what}");
    };
    line(format!("{}x{} cells on {}", report.width, report.height, place(report)));
    line(format!("steps      {}", report.steps));
    line(format!("residual   {:e}", report.residual));
    line(format!("checksum   {}", report.checksum));
    line(format!(
        "time       {:.3} s: {:.0} steps/s, {:.1} µs/step, {:.1} million cells/s",
        report.seconds,
        report.steps_per_second(),
        1e6 / report.steps_per_second(),
        report.cells_per_second() / 1e6
    ));
    if report.requests > 0 {
        line(format!(
            "messages   {}, {:.1} MB; ranks waited {:.1} % of the time",
            report.requests,
            report.bytes as f64 / 1e6,
            100.0 * report.waited_seconds / (report.seconds * f64::from(report.ranks))
        ));
    }
    if let Some(path) = &args.output {
        line(format!("picture    {}", path.display()));
    }
    text
}

/// On what a run was computed.
pub(crate) fn place(report: &Report) -> String {
    match &report.device {
        None => "1 rank".to_owned(),
        Some(device) => format!(
            "{} ranks ({}x{} blocks) over {} {device}",
            report.ranks,
            report.columns,
            report.rows,
            if report.raw { "raw" } else { "virtual" }
        ),
    }
}
