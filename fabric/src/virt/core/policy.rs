//! What a context is told when it is opened.

use super::remap::Failover;
use crate::error::{Error, Result};
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

    fn parse(kind: &str, bytes: &str, spill: &str) -> Result<Self> {
        let bytes = match bytes {
            "" => Self::DEFAULT_BYTES,
            text => {
                parse_bytes(text).filter(|bytes| *bytes >= Self::MIN_BYTES).ok_or_else(|| {
                    Error::invalid(format!(
                        "{} is {text:?}: want bytes, from {}K to {}G, such as 64M",
                        Self::BYTES_VARIABLE,
                        Self::MIN_BYTES >> 10,
                        Self::MAX_BYTES >> 30
                    ))
                })?
            }
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

/// Bytes, with `K`, `M` or `G` behind or nothing; at most [`Retention::MAX_BYTES`].
fn parse_bytes(text: &str) -> Option<usize> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<usize>().ok()?.checked_mul(1 << shift)?;
    (bytes <= Retention::MAX_BYTES).then_some(bytes)
}

/// How a context behaves: when it moves, and with what it sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What is done where a path fails.
    pub failover: Failover,
    /// What is believed of responders. Each side tells what its own device says.
    pub evidence: Evidence,
    /// What is kept of messages.
    pub retention: Retention,
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
        let (failover, retention) = (Failover::from_env()?, Retention::from_env()?);
        Ok(Policy { failover, evidence, retention })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
