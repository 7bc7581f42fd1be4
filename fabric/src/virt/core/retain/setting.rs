//! What a context is told of retention when it is opened.

use crate::error::{Error, Result};
use crate::virt::core::policy::number;
use std::path::{Path, PathBuf};

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
    /// Up to here it costs nothing to send from the copy rather than from the program's own buffer; nowhere
    /// is it faster, and beyond 4 KiB slower, where a copy is read that need not be in cache (measured on
    /// soft, see README).
    pub const DEFAULT_FROM_COPY: u32 = 1024;

    /// What the environment says.
    ///
    /// # Errors
    /// `EINVAL` that names the variable and what it may hold.
    pub(in crate::virt::core) fn from_env() -> Result<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
