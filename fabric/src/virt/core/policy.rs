//! What a context is told when it is opened.

use super::remap::Failover;
use crate::error::{Error, Result};
use sojourn_logging::Share;
use std::path::{Path, PathBuf};

/// What tells how far a responder has come, beside the count of messages that it has delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// Its expected packet sequence number, as `ibv_query_qp` returns it: to be used where that is
    /// live (on soft and on rxe it is).
    #[default]
    Psn,
    /// Nothing: for devices that return a copy of software (irdma), or that place packets out of order
    /// (adaptive routing), where the number is only a lower bound. WRITEs and atomics that no message
    /// follows are undecided then where a move finds them under way, and end with errors.
    Counts,
}

impl Evidence {
    /// The environment variable that says it: `psn` (where it is not set, too), or `counts`.
    pub const VARIABLE: &'static str = "SOJOURN_EVIDENCE";

    fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "psn" => Ok(Evidence::Psn),
            "counts" => Ok(Evidence::Counts),
            other => {
                Err(Error::invalid(format!("{} is {other:?}: want psn or counts", Self::VARIABLE)))
            }
        }
    }
}

/// What is kept of messages beyond their windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Retention {
    /// Nothing: what migration and coordinated recovery need is in the windows, and payloads in the
    /// program's memory.
    #[default]
    Descriptor,
    /// Every message of a reliable connection, until the receiver's next committed epoch covers it: so
    /// that one process that has failed can be replayed alone.
    Payload {
        /// Of the ring that each protection domain gets: [`DEFAULT_BYTES`](Self::DEFAULT_BYTES), if in
        /// doubt.
        bytes: usize,
        /// Where the oldest messages go when it is full.
        spill: Spill,
        /// Longest message that is sent from the copy: [`DEFAULT_FROM_COPY`](Self::DEFAULT_FROM_COPY), if in
        /// doubt.
        from_copy: u32,
    },
}

/// Where messages go for which the ring has no room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Spill {
    /// Nowhere: retention of the connection with the oldest ones is dropped, with a warning.
    #[default]
    Drop,
    /// To a file without a name in this directory.
    To(PathBuf),
}

impl Retention {
    /// The environment variable that says which: `descriptor` (where it is not set, too), or `payload`.
    pub const VARIABLE: &'static str = "SOJOURN_RETENTION";
    /// That which says how large a ring is, in bytes, or with `K`, `M` or `G` behind.
    pub const BYTES_VARIABLE: &'static str = "SOJOURN_LOG_BYTES";
    /// That which says where to spill to: a directory, or `drop` (where it is not set, too).
    pub const SPILL_VARIABLE: &'static str = "SOJOURN_SPILL";

    /// A ring's usual size: what 25 Gb/s bring in 20 ms, which is longer than a disk takes to begin with
    /// the spill, and little against the memory of a rank. It is pinned, and there is one for each
    /// protection domain.
    pub const DEFAULT_BYTES: usize = 64 << 20;
    /// The least: the largest message that is sent from the copy, some times.
    pub const MIN_BYTES: usize = 64 << 10;
    /// What a registration takes on every device.
    pub const MAX_BYTES: usize = 1 << 40;
    /// Up to here it is no slower to send from the copy than from the program's own buffer (measured, see
    /// README): gathered into one element, and in cache.
    pub const DEFAULT_FROM_COPY: u32 = 4096;

    fn from_env() -> Result<Self> {
        let get = |name| std::env::var(name).unwrap_or_default();
        Self::parse(&get(Self::VARIABLE), &get(Self::BYTES_VARIABLE), &get(Self::SPILL_VARIABLE))
    }

    fn within(bytes: u64) -> Option<usize> {
        let bytes = usize::try_from(bytes).ok()?;
        (Self::MIN_BYTES..=Self::MAX_BYTES).contains(&bytes).then_some(bytes)
    }

    fn parse(kind: &str, bytes: &str, spill: &str) -> Result<Self> {
        let bytes = match bytes {
            "" => Self::DEFAULT_BYTES,
            text => number(text).and_then(Self::within).ok_or_else(|| {
                Error::invalid(format!(
                    "{} is {text:?}: want bytes, from {}K to {}G, such as 64M",
                    Self::BYTES_VARIABLE,
                    Self::MIN_BYTES >> 10,
                    Self::MAX_BYTES >> 30
                ))
            })?,
        };
        let spill = match spill {
            "" | "drop" => Spill::Drop,
            dir if Path::new(dir).is_absolute() => Spill::To(dir.into()),
            other => {
                return Err(Error::invalid(format!(
                    "{} is {other:?}: want drop, or the full path of a directory",
                    Self::SPILL_VARIABLE
                )));
            }
        };
        match kind {
            "" | "descriptor" => Ok(Retention::Descriptor),
            "payload" => {
                Ok(Retention::Payload { bytes, spill, from_copy: Self::DEFAULT_FROM_COPY })
            }
            other => Err(Error::invalid(format!(
                "{} is {other:?}: want descriptor or payload",
                Self::VARIABLE
            ))),
        }
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
    pub(super) fn share(&self, qps: u64) -> Share {
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
fn number(text: &str) -> Option<u64> {
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

/// How a context behaves: when it moves, so that it can, and with what it sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is done where a path fails.
    pub failover: Failover,
    /// What is believed of responders. Each side tells what its own device says.
    pub evidence: Evidence,
    /// What is kept of messages.
    pub retention: Retention,
    /// What may be physically outstanding.
    pub outstanding: Outstanding,
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
        Ok(Policy { failover, evidence, outstanding, retention })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_evidence_is_one_of_two() {
        assert_eq!(Evidence::parse("").unwrap(), Evidence::Psn);
        assert_eq!(Evidence::parse("counts").unwrap(), Evidence::Counts);
        let error = Evidence::parse("guess").unwrap_err().to_string();
        assert!(error.contains(Evidence::VARIABLE) && error.contains("guess"), "{error}");
    }

    /// Promise: a wrong value is refused by the name of its variable, and says what may be there.
    #[test]
    fn retention_is_what_three_variables_say() {
        let parse = Retention::parse;
        assert_eq!(parse("", "", "").unwrap(), Retention::Descriptor);
        assert_eq!(parse("descriptor", "1M", "/tmp").unwrap(), Retention::Descriptor);
        let payload = |bytes, spill| Retention::Payload {
            bytes,
            spill,
            from_copy: Retention::DEFAULT_FROM_COPY,
        };
        assert_eq!(parse("payload", "", "").unwrap(), payload(64 << 20, Spill::Drop));
        for (text, bytes) in
            [("65536", 1 << 16), ("64K", 1 << 16), ("3M", 3 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(parse("payload", text, "drop").unwrap(), payload(bytes, Spill::Drop));
        }
        let to = Spill::To("/var/tmp".into());
        assert_eq!(parse("payload", "1G", "/var/tmp").unwrap(), payload(1 << 30, to));
        for (kind, bytes, spill, variable, wrong) in [
            ("all", "", "", Retention::VARIABLE, "all"),
            ("payload", "63K", "", Retention::BYTES_VARIABLE, "63K"),
            ("payload", "M", "", Retention::BYTES_VARIABLE, "M"),
            ("payload", "64µ", "", Retention::BYTES_VARIABLE, "64µ"),
            ("payload", "99999999999G", "", Retention::BYTES_VARIABLE, "99999999999G"),
            ("descriptor", "", "here", Retention::SPILL_VARIABLE, "here"),
        ] {
            let error = parse(kind, bytes, spill).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains(wrong), "{error}");
        }
    }
}
