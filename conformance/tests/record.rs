//! Every case on virtual verbs that record how far they have come, as they do where a device's packet number
//! is not live: programs see nothing of it.

mod common;

use common::{VIRTUAL_LACKS, all, job, open, paced};
use sojourn_conformance::{Layer, Node};
use sojourn_fabric::device::soft;
use sojourn_fabric::virt::{Evidence, Process};

fn record() {
    // SAFETY: the environment is read through the standard library only, which locks; and every
    // test of this file sets the same.
    unsafe { std::env::set_var(Evidence::VARIABLE, "record") };
}

#[test]
fn with_records_every_case_passes() {
    record();
    let job = job(soft::Options::default(), soft::Options::default());
    all(&job.a, &job.b, VIRTUAL_LACKS);
}

#[test]
fn with_records_at_a_pace_every_case_passes() {
    record();
    let job = job(paced(14), paced(15));
    all(&job.a, &job.b, VIRTUAL_LACKS);
}

#[test]
fn with_records_of_a_process_to_itself_every_case_passes() {
    record();
    let process = Process::standalone().expect("a process");
    let context = process.open_over(open(soft::Options::default())).expect("a context");
    let node = Node { context: context.device().clone(), layer: Layer::Virtual };
    all(&node, &node, VIRTUAL_LACKS);
}
