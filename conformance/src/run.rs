//! Runs cases: the leader's side, the follower's, and both in one process.

use crate::caps::Node;
use crate::case::{Body, Case, Outcome, Stop, Verdict};
use crate::link::{Link, pair};
use crate::message::{Ended, Message};
use crate::side::{Place, Role, SharedLink, Side};
use serde::Serialize;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What a side has after its deadline to leave its waits, and again to hear of the other's end.
const GRACE: Duration = Duration::from_secs(5);
/// Slices of the follower's wait for its next case.
const IDLE: Duration = Duration::from_millis(500);

/// How cases are run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What one case may take.
    pub limit: Duration,
    /// What one wait within it may take.
    pub patience: Duration,
}

impl Default for Options {
    /// Generous: a wait ends at once on success, and on failure only the report is late.
    fn default() -> Self {
        Options { limit: Duration::from_secs(60), patience: Duration::from_secs(20) }
    }
}

/// How one case went.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of the case.
    pub name: &'static str,
    /// How it ended, and why.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub millis: u64,
}

/// How a run went.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Each case, in the order of the run.
    pub reports: Vec<Report>,
    /// Why the run ended before its last case, where it did.
    pub stopped: Option<String>,
}

impl Summary {
    /// Cases that passed.
    #[must_use]
    pub fn passed(&self) -> usize {
        self.count(|outcome| *outcome == Outcome::Passed)
    }

    /// Cases that failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_)))
    }

    /// Cases that are not applicable.
    #[must_use]
    pub fn not_applicable(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::NotApplicable(_)))
    }

    /// Nothing failed, and nothing was left out.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.failed() == 0 && self.stopped.is_none()
    }

    fn count(&self, which: impl Fn(&Outcome) -> bool) -> usize {
        self.reports.iter().filter(|report| which(&report.outcome)).count()
    }
}

/// Runs cases as their side A; the other end of the link must [`follow`]. `progress` hears of
/// each case as it ends.
pub fn lead(
    link: impl Link + 'static,
    node: &Node,
    cases: &[Case],
    options: &Options,
    mut progress: impl FnMut(&Report),
) -> Summary {
    let link: SharedLink = Arc::new(Mutex::new(Box::new(link)));
    let mut summary = Summary::default();
    for case in cases {
        let began = Instant::now();
        let (outcome, stop) = one(&link, node, case, options);
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let report = Report { name: case.name, outcome, millis };
        progress(&report);
        summary.reports.push(report);
        if let Some(why) = stop {
            let left = cases.len() - summary.reports.len();
            summary.stopped = Some(format!("{why}; {left} cases were not run"));
            break;
        }
    }
    // A follower that is gone needs no farewell.
    let _ = say(&link, &Message::Bye);
    summary
}

/// One case, from the leader's seat: its outcome, and why the run cannot go on, where it cannot.
fn one(
    link: &SharedLink,
    node: &Node,
    case: &Case,
    options: &Options,
) -> (Outcome, Option<String>) {
    let body = match case.body {
        Body::One(body) => return alone(link, node, case, body, options),
        Body::Two(body, _) => body,
    };
    let limit_ms = u64::try_from(options.limit.as_millis()).unwrap_or(u64::MAX);
    if let Err(error) = say(link, &Message::Start { limit_ms, case: case.name.into() }) {
        return (Outcome::Failed(error.to_string()), Some(error.to_string()));
    }
    let here = perform(Arc::clone(link), node, Role::A, body, true, options);
    let outcome = joined(&here);
    let stop = here.hung.then(|| format!("{} hangs", case.name)).or(match here.other {
        Some(Ok(_)) => None,
        Some(Err(why)) => Some(why),
        None => Some(format!("{} has no end at the other side", case.name)),
    });
    (outcome, stop)
}

fn alone(
    link: &SharedLink,
    node: &Node,
    case: &Case,
    body: fn(&mut Side) -> Verdict,
    options: &Options,
) -> (Outcome, Option<String>) {
    let here = perform(Arc::clone(link), node, Role::A, body, false, options);
    let stop = here.hung.then(|| format!("{} hangs", case.name));
    (here.own.into(), stop)
}

/// What both sides of a case say, as one outcome: a failure counts more than an inapplicability,
/// and whoever stopped because of the other says nothing.
fn joined(here: &Finished) -> Outcome {
    let side = |role: &str, outcome: &Outcome| match outcome {
        Outcome::Failed(why) => Outcome::Failed(format!("side {role}: {why}")),
        other => other.clone(),
    };
    let own = match &here.own {
        Err(Stop::Abandoned(_)) => None,
        verdict => Some(side("A", &Outcome::from(verdict.clone()))),
    };
    let other = match &here.other {
        Some(Ok(Ended::With(outcome))) => Some(side("B", outcome)),
        Some(Ok(Ended::Abandoned(_))) => None,
        Some(Err(why)) => Some(Outcome::Failed(format!("side B: {why}"))),
        None => None,
    };
    match (own, other) {
        (Some(Outcome::Failed(a)), Some(Outcome::Failed(b))) => {
            Outcome::Failed(format!("{a}; {b}"))
        }
        (Some(Outcome::Failed(why)), _) | (_, Some(Outcome::Failed(why))) => Outcome::Failed(why),
        (Some(Outcome::NotApplicable(why)), _) | (_, Some(Outcome::NotApplicable(why))) => {
            Outcome::NotApplicable(why)
        }
        (Some(Outcome::Passed), Some(Outcome::Passed)) => Outcome::Passed,
        (own, other) => {
            let here = &here.own;
            Outcome::Failed(format!("a side gave up: {here:?}, {own:?} and {other:?}"))
        }
    }
}

/// Runs the side B of whatever the leader starts, until it says that there is no more.
///
/// # Errors
/// When the leader is gone without a farewell, speaks another language, or a case hangs here.
pub fn follow(
    link: impl Link + 'static,
    node: &Node,
    cases: &[Case],
    options: &Options,
) -> io::Result<()> {
    let link: SharedLink = Arc::new(Mutex::new(Box::new(link)));
    loop {
        let frame = lock(&link).recv(Instant::now() + IDLE)?;
        let Some(frame) = frame else { continue };
        match Message::decode(&frame) {
            Ok(Message::Bye) => return Ok(()),
            Ok(Message::Start { limit_ms, case }) => {
                let limit = Duration::from_millis(limit_ms).min(Options::default().limit);
                let options = Options { limit, ..*options };
                let known = cases.iter().find(|known| known.name == case);
                let Some(Case { body: Body::Two(_, body), .. }) = known else {
                    let why = format!("this side knows no case {case} of two sides");
                    say(&link, &Message::Done(Ended::With(Outcome::Failed(why))))?;
                    continue;
                };
                if perform(Arc::clone(&link), node, Role::B, *body, true, &options).hung {
                    return Err(io::Error::other(format!("{case} hangs at this side")));
                }
            }
            // What a stopped leader still said within a case that has ended here.
            Ok(Message::Data(_) | Message::Done(_)) => {}
            Err(why) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
        }
    }
}

/// Runs cases with both sides in this process.
pub fn loopback(
    a: &Node,
    b: &Node,
    cases: &[Case],
    options: &Options,
    progress: impl FnMut(&Report),
) -> Summary {
    let (link_a, link_b) = pair();
    let (node, theirs, options_b) = (b.clone(), cases.to_vec(), *options);
    let follower = thread::Builder::new()
        .name("conformance-b".into())
        .spawn(move || follow(link_b, &node, &theirs, &options_b));
    let follower = match follower {
        Ok(follower) => follower,
        Err(error) => {
            let stopped = Some(format!("no thread for side B: {error}"));
            return Summary { stopped, ..Summary::default() };
        }
    };
    let mut summary = lead(link_a, a, cases, options, progress);
    // A hung side B must not keep the caller: what it says is in the summary then.
    if summary.stopped.is_none() {
        match follower.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => summary.stopped = Some(format!("side B: {error}")),
            Err(_) => summary.stopped = Some("side B panicked".into()),
        }
    }
    summary
}

/// How one side of a case finished.
struct Finished {
    own: Verdict,
    /// How the other side ended, where there is one.
    other: Option<Result<Ended, String>>,
    hung: bool,
}

enum Progress {
    Ended(Verdict),
    Finished(Option<Result<Ended, String>>),
}

/// Runs one side in a thread of its own, so that a hang inside the device is seen and told.
fn perform(
    link: SharedLink,
    node: &Node,
    role: Role,
    body: fn(&mut Side) -> Verdict,
    two: bool,
    options: &Options,
) -> Finished {
    let (report, progress) = channel();
    let place: Place = Place::default();
    let deadline = Instant::now() + options.limit;
    let patience = options.patience;
    let worker = {
        let (node, link, place) = (node.clone(), Arc::clone(&link), Arc::clone(&place));
        move || work(role, &node, &link, deadline, patience, &place, body, two, &report)
    };
    if let Err(error) = thread::Builder::new().name(format!("side-{role:?}")).spawn(worker) {
        let why = format!("no thread for a case: {error}");
        return Finished { own: Err(Stop::Failed(why.clone())), other: Some(Err(why)), hung: true };
    }
    // Within its waits a side ends at its deadline, so what comes later hangs in the device.
    let ends_by = deadline + GRACE;
    let mut own = None;
    loop {
        // After its own end a side waits for the other's, and drops its objects.
        let until = if own.is_some() { ends_by + 2 * GRACE } else { ends_by };
        match progress.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Progress::Ended(verdict)) => own = Some(verdict),
            Ok(Progress::Finished(other)) => {
                let own = own.unwrap_or_else(|| Err(Stop::failed("ended without an outcome")));
                return Finished { own, other, hung: false };
            }
            Err(why) => {
                let at = place.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let what = match (why, &own) {
                    (RecvTimeoutError::Disconnected, _) => "panicked",
                    (RecvTimeoutError::Timeout, None) => "hangs in the device",
                    (RecvTimeoutError::Timeout, Some(_)) => "hangs while it destroys its objects",
                };
                let verdict = match own {
                    Some(Err(stop)) => Err(stop),
                    _ => Err(Stop::Failed(format!("{what}, after {at}"))),
                };
                if two {
                    let _ = say(&link, &Message::Done(ended(&verdict)));
                }
                return Finished { own: verdict, other: None, hung: true };
            }
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "all that a side is made of, once")]
fn work(
    role: Role,
    node: &Node,
    link: &SharedLink,
    deadline: Instant,
    patience: Duration,
    place: &Place,
    body: fn(&mut Side) -> Verdict,
    two: bool,
    report: &Sender<Progress>,
) {
    let made = Side::new(role, node, Arc::clone(link), deadline, patience, Arc::clone(place));
    let (verdict, side) = match made {
        Ok(mut side) => (body(&mut side), Some(side)),
        Err(stop) => (Err(stop), None),
    };
    // The watch may have given up; then nobody listens any more.
    let _ = report.send(Progress::Ended(verdict.clone()));
    let other = two.then(|| {
        say(link, &Message::Done(ended(&verdict))).map_err(|error| error.to_string())?;
        match side {
            Some(mut side) => side.farewell(deadline + 2 * GRACE),
            None => Ok(Ended::Abandoned("this side could not begin".into())),
        }
    });
    let _ = report.send(Progress::Finished(other));
}

fn ended(verdict: &Verdict) -> Ended {
    match verdict {
        Err(Stop::Abandoned(why)) => Ended::Abandoned(why.clone()),
        other => Ended::With(other.clone().into()),
    }
}

fn say(link: &SharedLink, message: &Message) -> io::Result<()> {
    lock(link).send(&message.encode())
}

fn lock(link: &SharedLink) -> std::sync::MutexGuard<'_, Box<dyn Link>> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}
