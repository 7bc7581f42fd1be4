//! What a context is told when it is opened.

use super::remap::Failover;
use crate::error::{Error, Result};

/// What tells how far a responder has come, beside the count of messages that it has delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// Its expected packet sequence number, as `ibv_query_qp` returns it: to be used where that is
    /// live (on soft and on rxe it is).
    #[default]
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
    /// The environment variable that says it: `psn` (where it is not set, too), `record`, or `counts`.
    pub const VARIABLE: &'static str = "SOJOURN_EVIDENCE";

    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "psn" => Ok(Evidence::Psn),
            "record" => Ok(Evidence::Record),
            "counts" => Ok(Evidence::Counts),
            other => Err(Error::invalid(format!(
                "{} is {other:?}: want psn, record or counts",
                Self::VARIABLE
            ))),
        }
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

    #[test]
    fn the_evidence_is_one_of_those_that_there_are() {
        assert_eq!(Evidence::parse("").unwrap(), Evidence::Psn);
        assert_eq!(Evidence::parse("counts").unwrap(), Evidence::Counts);
        assert_eq!(Evidence::parse("record").unwrap(), Evidence::Record);
        let error = Evidence::parse("guess").unwrap_err().to_string();
        assert!(error.contains(Evidence::VARIABLE) && error.contains("guess"), "{error}");
    }
}
