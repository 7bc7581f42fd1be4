//! Every case on virtual verbs that have another device to go to where a path fails: what fails by the
//! program's own doing is told from that, and comes as verbs tell it.

mod common;

use common::{VIRTUAL_LACKS, all, job, paced};
use sojourn_fabric::device::{self, soft};

fn two_devices() {
    // SAFETY: the environment is read through the standard library only, which locks; and every
    // test of this file sets the same.
    unsafe { std::env::set_var("SOJOURN_SOFT_DEVICES", "2") };
    assert_eq!(device::list().iter().filter(|it| it.name().starts_with("soft")).count(), 2);
}

#[test]
fn errors_of_the_programs_own_making_reach_it() {
    two_devices();
    let job = job(soft::Options::default(), soft::Options::default());
    all(&job.a, &job.b, VIRTUAL_LACKS);
}

#[test]
fn they_do_so_at_a_pace() {
    two_devices();
    let job = job(paced(12), paced(13));
    all(&job.a, &job.b, VIRTUAL_LACKS);
}
