//! What a context is told when it is opened.

use super::remap::Failover;
use crate::device::DeviceContext;
use crate::error::{Error, Result};
use crate::trial::{self, Known, Verdict};
use std::sync::Arc;

/// What tells how far a responder has come, beside the count of messages that it has delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// The packet number on devices where it is live, which is [tried](crate::trial) once for each kind of
    /// them; a record on others.
    #[default]
    Auto,
    /// Its expected packet sequence number, as `ibv_query_qp` returns it: to be used where that is
    /// live (on soft and on rxe it is).
    Psn,
    /// A record: a word in our memory into which peers write how far they have come, behind every few
    /// WRITEs. For devices that return a copy of software (irdma), or that place packets out of order
    /// (adaptive routing), where the number is only a lower bound. WRITEs behind the last record, and
    /// atomics, are undecided where a path fails under them, and end with errors.
    Record,
    /// Nothing: WRITEs and atomics that no message follows are undecided where a path fails under them.
    Counts,
}

impl Evidence {
    /// The environment variable that says it: `auto` (where it is not set, too), `psn`, `record`, or
    /// `counts`.
    pub const VARIABLE: &'static str = "SOJOURN_EVIDENCE";

    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "auto" => Ok(Evidence::Auto),
            "psn" => Ok(Evidence::Psn),
            "record" => Ok(Evidence::Record),
            "counts" => Ok(Evidence::Counts),
            other => Err(Error::invalid(format!(
                "{} is {other:?}: want auto, psn, record or counts",
                Self::VARIABLE
            ))),
        }
    }
}

/// What is believed of one device. Said once, when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Its packet number.
    Psn,
    /// Records.
    Record,
    /// Nothing.
    Counts,
}

impl Source {
    /// By what is known of a device.
    fn of(known: Option<&Known>) -> Self {
        match known {
            Some(known) if known.verdict == Verdict::Live => Source::Psn,
            _ => Source::Record,
        }
    }
}

/// Whether a device of which nothing is known may be tried, which takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MayTry {
    /// Nobody waits but who opens it.
    Yes,
    /// Peers do, or the service thread would. Records are right on every device.
    No,
}

impl Evidence {
    /// What is believed of that device.
    pub(super) fn of(self, device: &Arc<dyn DeviceContext>, may_try: MayTry) -> Source {
        let known = match (self, may_try) {
            (Evidence::Psn, _) => return Source::Psn,
            (Evidence::Record, _) => return Source::Record,
            (Evidence::Counts, _) => return Source::Counts,
            (Evidence::Auto, MayTry::No) => trial::known(&**device),
            (Evidence::Auto, MayTry::Yes) => trial::find_out(device)
                .inspect_err(|error| tracing::warn!("{error}; peers record how far they come"))
                .ok(),
        };
        Source::of(known.as_ref())
    }
}

/// How a context behaves when it moves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is done where a path fails.
    pub failover: Failover,
    /// What is believed of responders. Each side tells what its own device says.
    pub evidence: Evidence,
}

impl Policy {
    /// What the environment says.
    ///
    /// # Errors
    /// `EINVAL` that names the variable and what it may hold.
    pub fn from_env() -> Result<Self> {
        let evidence = match std::env::var(Evidence::VARIABLE) {
            Ok(text) => Evidence::parse(&text)?,
            Err(_) => Evidence::default(),
        };
        Ok(Policy { failover: Failover::from_env()?, evidence })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::soft;

    #[test]
    fn a_packet_number_is_believed_where_it_is_known_to_be_live() {
        let known = |verdict| Known { verdict, tried: Some(1) };
        let not_live = Verdict::NotLive { case: "SEND".into(), expected: 1, found: Some(0) };
        assert_eq!(Source::of(Some(&known(Verdict::Live))), Source::Psn);
        assert_eq!(Source::of(Some(&known(not_live))), Source::Record);
        assert_eq!(Source::of(None), Source::Record);
        let soft = soft::open_with("soft0", soft::Options::default()).unwrap();
        for may_try in [MayTry::Yes, MayTry::No] {
            assert_eq!(Evidence::Auto.of(&soft, may_try), Source::Psn);
            assert_eq!(Evidence::Record.of(&soft, may_try), Source::Record);
            assert_eq!(Evidence::Counts.of(&soft, may_try), Source::Counts);
        }
    }

    #[test]
    fn the_evidence_is_one_of_those_that_there_are() {
        assert_eq!(Evidence::parse("").unwrap(), Evidence::Auto);
        assert_eq!(Evidence::parse("psn").unwrap(), Evidence::Psn);
        assert_eq!(Evidence::parse("counts").unwrap(), Evidence::Counts);
        assert_eq!(Evidence::parse("record").unwrap(), Evidence::Record);
        let error = Evidence::parse("guess").unwrap_err().to_string();
        assert!(error.contains(Evidence::VARIABLE) && error.contains("guess"), "{error}");
    }
}
