//! Every case on virtual verbs where next to nothing may be physically outstanding: what waits in the
//! windows instead goes out in its turn, and fails as if it had been handed.

mod common;

use common::{VIRTUAL_LACKS, all, job, paced};
use sojourn_fabric::device::soft;
use sojourn_fabric::virt::Outstanding;

/// A share of one byte and one request for each queue pair.
fn next_to_nothing() {
    // SAFETY: the environment is read through the standard library only, which locks; and every
    // test of this file sets the same.
    unsafe { std::env::set_var(Outstanding::VARIABLE, "bytes=1,requests=1") };
}

#[test]
fn one_request_at_a_time_is_enough() {
    next_to_nothing();
    let job = job(soft::Options::default(), soft::Options::default());
    all(&job.a, &job.b, VIRTUAL_LACKS);
}

#[test]
fn it_is_enough_at_a_pace() {
    next_to_nothing();
    let job = job(paced(14), paced(15));
    all(&job.a, &job.b, VIRTUAL_LACKS);
}
