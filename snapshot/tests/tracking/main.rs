//! Dirty tracking on the kernel that this runs on: each back end that it has, against memory whose
//! bytes are compared.
//!
//! `SOJOURN_EXPECT_TRACKING` names back ends (with commas) without which the tests fail; others are
//! skipped by name where the kernel has them not. `SOJOURN_SEED` repeats a run of the oracle.

mod both;
mod changes;
mod choice;
mod device;
mod memory;
mod oracle;
mod signals;

use sojourn_snapshot::track::{Kind, Tracker, open};
use std::sync::{Mutex, MutexGuard};

/// A process has one SIGSEGV handler and one set of soft-dirty bits: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The back ends of this kernel.
fn kinds() -> Vec<Kind> {
    let (mut here, mut missing) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        match open(Some(kind)) {
            Ok(tracker) => {
                assert_eq!(tracker.kind(), kind);
                here.push(kind);
            }
            Err(why) => {
                println!("back end {kind}: not on this kernel ({why})");
                missing.push(kind.name());
            }
        }
    }
    let expected = std::env::var("SOJOURN_EXPECT_TRACKING").unwrap_or_default();
    for name in expected.split(',').filter(|name| !name.is_empty()) {
        assert!(!missing.contains(&name), "this kernel should have {name}");
        assert!(here.iter().any(|kind| kind.name() == name), "{name} is no back end");
    }
    here
}

/// Those that tell anything about pages.
fn telling() -> Vec<Kind> {
    kinds().into_iter().filter(|kind| *kind != Kind::Everything).collect()
}

fn tracker(kind: Kind) -> Box<dyn Tracker> {
    open(Some(kind)).unwrap()
}
