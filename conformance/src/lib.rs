//! The verbs conformance suite: cases written once, for devices and for virtual verbs alike.
//!
//! A case is a small program over [`sojourn_fabric::device::DeviceContext`], the trait that raw
//! devices and virtual contexts both implement. Most have two sides, A and B, which talk over a
//! [`Link`]: a channel inside a process, or a connection between two machines. So the same case
//! tests a device against itself and against another node.
//!
//! ```text
//! lead(link, node A) ── Start, Data…, Done ──▶ follow(link, node B)
//! ```
//!
//! Promises: every wait has a deadline, a case that hangs inside a device is reported with the
//! line at which it hangs, and a case whose feature a device lacks is listed as not applicable
//! with the reason ([`quirks`]), never left out.
//!
//! Who calls it: `sojourn selftest` and the tests here. It uses verbs alone, no environment and
//! no network but the link that it is handed; of files, it reads the kernel's version.

mod attrs;
mod caps;
mod case;
mod cases;
mod check;
mod link;
mod message;
pub mod quirks;
mod rig;
mod run;
mod side;

pub use caps::{Caps, Layer, Node};
pub use case::{Body, Case, Outcome, Stop, Verdict};
pub use cases::cases;
pub use link::{Link, MAX_FRAME, pair};
pub use run::{Options, Report, Summary, follow, lead, loopback};
pub use side::{Role, Side};
