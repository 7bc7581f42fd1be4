//! Rigs on the soft device, and how they are judged.

use sojourn_conformance::{Case, Layer, Node, Options, Outcome, Summary, cases, loopback};
use sojourn_fabric::device::{DeviceContext, soft};
use sojourn_fabric::names::directory::LocalDirectory;
use sojourn_fabric::names::{JobKey, ServiceConfig};
use sojourn_fabric::virt::Process;
use std::sync::Arc;
use std::time::Duration;

/// Long enough for a machine under load: only a failure takes it.
const OPTIONS: Options =
    Options { limit: Duration::from_secs(60), patience: Duration::from_secs(20) };

pub(crate) fn open(options: soft::Options) -> Arc<dyn DeviceContext> {
    soft::open_with("soft0", options).expect("soft0 opens")
}

/// What virtual verbs lack: they are never overrun.
pub(crate) const VIRTUAL_LACKS: &[&str] = &["cq.overrun", "cq.overrun_stops"];

/// Two members of one job, and a virtual context of each.
pub(crate) struct Job {
    pub(crate) a: Node,
    pub(crate) b: Node,
    _members: [Process; 2],
}

/// Virtual verbs of two processes over devices with these options.
pub(crate) fn job(a: soft::Options, b: soft::Options) -> Job {
    let key = JobKey::generate().expect("a key");
    let directory = LocalDirectory::new(key.job_id()).expect("a directory");
    let another = directory.another().expect("another handle of it");
    let [one, two] = [another, directory].map(|directory| {
        Process::start(ServiceConfig::new(Box::new(directory), key.clone())).expect("a member")
    });
    let node = |process: &Process, options| Node {
        context: process.open_over(open(options)).expect("a context").device().clone(),
        layer: Layer::Virtual,
    };
    Job { a: node(&one, a), b: node(&two, b), _members: [one, two] }
}

/// Runs all cases, and fails where one fails, or is not applicable without being expected to be.
pub(crate) fn all(a: &Node, b: &Node, lacks: &[&str]) {
    let cases: Vec<Case> = cases();
    let summary: Summary = loopback(a, b, &cases, &OPTIONS, |_| {});
    let wrong: Vec<String> = summary
        .reports
        .iter()
        .filter(|report| match report.outcome {
            Outcome::Passed => lacks.contains(&report.name),
            Outcome::NotApplicable(_) => !lacks.contains(&report.name),
            Outcome::Failed(_) => true,
        })
        .map(|report| format!("{}: {:?}", report.name, report.outcome))
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert_eq!(summary.stopped, None);
    assert_eq!(summary.reports.len(), cases.len());
}

/// A pace at which work is in flight while cases go on.
pub(crate) fn paced(seed: u64) -> soft::Options {
    let pace = soft::Pace { seed, latency: Duration::from_micros(50), gbps: 2.0 };
    soft::Options { mode: soft::Mode::Async(pace), ..soft::Options::default() }
}
