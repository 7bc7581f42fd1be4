//! What a context is told when it is opened.

use super::remap::Failover;
use super::retain::Retention;
use crate::device::DeviceContext;
use crate::error::{Error, Result};
use crate::trial::{self, Known, Verdict};
use sojourn_logging::Share;
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

/// What of a context's requests may be physically outstanding; the rest waits in the windows. A quiesce
/// waits for what is outstanding, so this bounds its time: by bytes over the line rate, or by requests
/// over what the device does of them in a second.
///
/// A queue pair has an equal share of what its context may have, and never more than its own bound; one
/// request it may have in any case. A grant that was dealt when there were fewer queue pairs is used up
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Bytes of a context. By default 64 MiB: 5.4 ms at 100 Gb/s.
    pub bytes: u64,
    /// Requests of a context. By default 65,536: some 6 ms, where a device does 10 million in a second.
    pub requests: u64,
    /// Bytes of one queue pair. By default 16 MiB: hundreds of times what is under way between
    /// two machines of one hall at 400 Gb/s, so that a bandwidth never suffers.
    pub qp_bytes: u64,
    /// Requests of one queue pair. By default 16,384: as deep as most devices' queues can be.
    pub qp_requests: u64,
}

impl Default for Outstanding {
    fn default() -> Self {
        Outstanding { bytes: 64 << 20, requests: 1 << 16, qp_bytes: 16 << 20, qp_requests: 1 << 14 }
    }
}

impl Outstanding {
    /// The environment variable that says it: any of `bytes=64M,requests=65536,qp-bytes=16M,qp-requests=16384`
    /// (K, M and G are powers of 1024).
    pub const VARIABLE: &'static str = "SOJOURN_OUTSTANDING";

    /// The share of one of `qps` queue pairs.
    #[must_use]
    pub fn share(&self, qps: u64) -> Share {
        let of = |all: u64, most: u64| (all / qps.max(1)).min(most).max(1);
        Share {
            bytes: of(self.bytes, self.qp_bytes),
            requests: of(self.requests, self.qp_requests),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut outstanding = Outstanding::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let value = part.split_once('=').and_then(|(name, value)| {
                let field = match name {
                    "bytes" => &mut outstanding.bytes,
                    "requests" => &mut outstanding.requests,
                    "qp-bytes" => &mut outstanding.qp_bytes,
                    "qp-requests" => &mut outstanding.qp_requests,
                    _ => return None,
                };
                *field = number(value).filter(|value| *value > 0)?;
                Some(())
            });
            if value.is_none() {
                return Err(Error::invalid(format!(
                    "{} has {part:?}: want some of bytes=64M,requests=65536,qp-bytes=16M,\
                     qp-requests=16384, each at least 1",
                    Self::VARIABLE
                )));
            }
        }
        Ok(outstanding)
    }
}

/// A number, or so many K, M or G.
pub(super) fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// How a context behaves when it moves, and so that it can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is done where a path fails.
    pub failover: Failover,
    /// What is believed of responders. Each side tells what its own device says.
    pub evidence: Evidence,
    /// What may be physically outstanding.
    pub outstanding: Outstanding,
    /// What is kept of messages that are sent.
    pub retention: Retention,
    /// Whether it is recorded what devices write, here and by this process at its peers: for snapshots, see
    /// [`Context::written`](crate::virt::Context::written). Its queue pairs go a longer way then.
    pub tracking: bool,
}

/// The environment variable that says [`Policy::tracking`]: `1`, or `0` (where it is not set, too).
pub(super) const TRACKING_VARIABLE: &str = "SOJOURN_TRACK_WRITES";

fn tracking(text: &str) -> Result<bool> {
    match text {
        "" | "0" => Ok(false),
        "1" => Ok(true),
        other => Err(Error::invalid(format!("{TRACKING_VARIABLE} is {other:?}: want 0 or 1"))),
    }
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
        let outstanding = match std::env::var(Outstanding::VARIABLE) {
            Ok(text) => Outstanding::parse(&text)?,
            Err(_) => Outstanding::default(),
        };
        let (failover, retention) = (Failover::from_env()?, Retention::from_env()?);
        let tracking = tracking(&std::env::var(TRACKING_VARIABLE).unwrap_or_default())?;
        Ok(Policy { failover, evidence, outstanding, retention, tracking })
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
    fn what_may_be_outstanding_is_said_by_name() {
        let all = Outstanding::parse("bytes=2G, requests=7,qp-bytes=3K,qp-requests=1").unwrap();
        let expected =
            Outstanding { bytes: 2 << 30, requests: 7, qp_bytes: 3 << 10, qp_requests: 1 };
        assert_eq!(all, expected);
        assert_eq!(Outstanding::parse("").unwrap(), Outstanding::default());
        for wrong in
            ["bytes", "bytes=", "bytes=0", "bytes=1MM", "bytes=1T", "byte=1", "requests=-1"]
        {
            let error = Outstanding::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(Outstanding::VARIABLE) && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn shares_are_equal_and_never_nothing() {
        let policy = Outstanding { bytes: 1000, requests: 10, qp_bytes: 400, qp_requests: 4 };
        let shares = |qps| (policy.share(qps).bytes, policy.share(qps).requests);
        assert_eq!(
            (shares(0), shares(1), shares(4), shares(5000)),
            ((400, 4), (400, 4), (250, 2), (1, 1))
        );
    }

    #[test]
    fn tracking_is_on_or_off() {
        assert_eq!(["", "0", "1"].map(|text| tracking(text).unwrap()), [false, false, true]);
        let error = tracking("yes").unwrap_err().to_string();
        assert!(error.contains(TRACKING_VARIABLE) && error.contains("yes"), "{error}");
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
