//! The cases, by group.

mod atomic;
mod channel;
mod cq;
mod error;
mod flush;
mod grammar;
mod memory;
mod order;
mod post;
mod psn;
mod query;
mod rc;
mod srq;
mod state;
mod threads;
mod uc;
mod ud;

use crate::case::{Body, Case, Verdict};
use crate::side::Side;

/// What every group uses.
mod prelude {
    pub(super) use super::{one, two};
    pub(super) use crate::case::{Case, Stop, Verdict};
    pub(super) use crate::check::{ended, ensure, flushed, holds, pattern, refused, same, success};
    pub(super) use crate::quirks::Feature;
    pub(super) use crate::rig::{Parts, Plan, Rig};
    pub(super) use crate::side::Side;
    pub(super) use sojourn_fabric::abi::{
        self, Sge, access, event_type, qp_mask, qp_state, qp_type, wc_flags, wc_opcode, wc_status,
    };
    pub(super) use sojourn_fabric::device::{AsyncEvent, EventElement};
    pub(super) use sojourn_fabric::virt::{Op, Remote, SendRequest};
    pub(super) use std::sync::Arc;
    pub(super) use std::time::Duration;

    /// How long a case listens for what must not come. Longer finds more, and no length makes a
    /// device that behaves fail.
    pub(super) const QUIET: Duration = Duration::from_millis(20);
}

/// What one side runs.
type Program = fn(&mut Side) -> Verdict;

const fn one(name: &'static str, guards: &'static str, body: Program) -> Case {
    Case { name, guards, body: Body::One(body) }
}

const fn two(name: &'static str, guards: &'static str, a: Program, b: Program) -> Case {
    Case { name, guards, body: Body::Two(a, b) }
}

/// All cases, in the order in which a failing device is best understood: what it says of itself
/// first, then what it does.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        query::CASES,
        memory::CASES,
        state::CASES,
        grammar::CASES,
        post::CASES,
        rc::CASES,
        atomic::CASES,
        order::CASES,
        psn::CASES,
        error::CASES,
        flush::CASES,
        cq::CASES,
        channel::CASES,
        srq::CASES,
        uc::CASES,
        ud::CASES,
        threads::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::cases;
    use std::collections::HashSet;

    #[test]
    fn every_case_has_a_name_of_its_own_and_says_what_it_guards() {
        let mut names = HashSet::new();
        for case in cases() {
            assert!(names.insert(case.name), "{} occurs twice", case.name);
            assert!(case.name.contains('.'), "{} has no group", case.name);
            assert!(case.guards.ends_with(')'), "{} names no source: {}", case.name, case.guards);
        }
    }
}
