//! What a user chooses, and what it promises.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How committed epochs outlive the loss of nodes.
///
/// # What is promised
///
/// The loss of a node takes the processes that run there, and all that its stores hold of others. So
/// there are two promises, and both hold for every placement that [`super::Placement`] makes:
///
/// - [`Self::losses`]: after the loss of any so many nodes the committed epoch of *every* process can be
///   read from what is left, of those that died and of those that live. This is what a job needs that
///   goes back to its last epoch as a whole.
/// - [`Self::own_losses`]: after the loss of any so many nodes, its own among them, the committed epoch
///   of a process *that died with its node* can be read. This is what a job needs in which nobody else
///   goes back.
///
/// | scheme | memory per process | `losses` | `own_losses` |
/// | --- | --- | --- | --- |
/// | `copies:K` | K | K − 1 | K |
/// | `xor:G` | 1 + 1/G | 1 | 1 |
/// | `rs:D+P` | 1 + P/D | P | P |
///
/// The loss of a process alone, whose node lives, takes nothing from any store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Scheme {
    /// So many whole copies of each process, on as many other nodes.
    Copies(usize),
    /// One copy of each process, and for each group of processes their XOR.
    Xor {
        /// How many processes share a parity; a group may be smaller.
        group: usize,
    },
    /// One copy of each process, and for each group of processes the parity of a Reed–Solomon code.
    ReedSolomon {
        /// How many processes share the parity; a group may be smaller.
        data: usize,
        /// How many shares of parity there are.
        parity: usize,
    },
}

impl Scheme {
    /// Most copies of a process: each costs its whole memory again.
    pub const MAX_COPIES: usize = 8;
    /// Most processes of a group: all of their slots are read to rebuild one.
    pub const MAX_GROUP: usize = 64;
    /// Most shares of parity of a group.
    pub const MAX_PARITY: usize = 16;

    /// Whether it is within the bounds.
    ///
    /// # Errors
    /// `EINVAL` with the bound that it breaks.
    pub fn check(&self) -> Result<()> {
        let within = |what: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(format!("{self}: {what} must be {least} to {most}")))
        };
        match *self {
            Scheme::Copies(copies) => within("copies", copies, 1, Self::MAX_COPIES),
            // A group of one would be copies:2 under another name.
            Scheme::Xor { group } => within("the group", group, 2, Self::MAX_GROUP),
            Scheme::ReedSolomon { data, parity } => {
                within("the group", data, 2, Self::MAX_GROUP)?;
                within("parity", parity, 1, Self::MAX_PARITY)
            }
        }
    }

    /// Most processes of one group.
    #[must_use]
    pub fn group(&self) -> usize {
        match *self {
            Scheme::Copies(_) => 1,
            Scheme::Xor { group } => group,
            Scheme::ReedSolomon { data, .. } => data,
        }
    }

    /// How many shares of parity a group has.
    #[must_use]
    pub fn parity(&self) -> usize {
        match *self {
            Scheme::Copies(_) => 0,
            Scheme::Xor { .. } => 1,
            Scheme::ReedSolomon { parity, .. } => parity,
        }
    }

    /// How many whole copies there are of each process.
    #[must_use]
    pub fn copies(&self) -> usize {
        match *self {
            Scheme::Copies(copies) => copies,
            Scheme::Xor { .. } | Scheme::ReedSolomon { .. } => 1,
        }
    }

    /// How many nodes may be lost with the epochs of all processes still there.
    #[must_use]
    pub fn losses(&self) -> usize {
        self.copies() - 1 + self.parity()
    }

    /// How many nodes may be lost, its own among them, with the epoch of a process that died with its
    /// node still there.
    #[must_use]
    pub fn own_losses(&self) -> usize {
        match *self {
            Scheme::Copies(copies) => copies,
            Scheme::Xor { .. } | Scheme::ReedSolomon { .. } => self.losses(),
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheme::Copies(copies) => write!(f, "copies:{copies}"),
            Scheme::Xor { group } => write!(f, "xor:{group}"),
            Scheme::ReedSolomon { data, parity } => write!(f, "rs:{data}+{parity}"),
        }
    }
}

impl From<Scheme> for String {
    fn from(scheme: Scheme) -> String {
        scheme.to_string()
    }
}

impl TryFrom<String> for Scheme {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Not `parse` alone: that also takes a sign.
        let number = |digits: &str| {
            let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            all.then(|| digits.parse::<usize>().ok()).flatten()
        };
        let scheme = text.split_once(':').and_then(|(name, rest)| match name {
            "copies" => number(rest).map(Scheme::Copies),
            "xor" => number(rest).map(|group| Scheme::Xor { group }),
            "rs" => {
                let (data, parity) = rest.split_once('+')?;
                Some(Scheme::ReedSolomon { data: number(data)?, parity: number(parity)? })
            }
            _ => None,
        });
        let scheme = scheme.ok_or_else(|| {
            Error::invalid(format!(
                "{text:?} is no scheme of redundancy: say copies:K, xor:GROUP or rs:DATA+PARITY, \
                 as in copies:2, xor:4 or rs:4+2"
            ))
        })?;
        scheme.check()?;
        Ok(scheme)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_is_what_its_text_says() {
        let all = [
            (Scheme::Copies(1), "copies:1", 0, 1),
            (Scheme::Copies(3), "copies:3", 2, 3),
            (Scheme::Xor { group: 4 }, "xor:4", 1, 1),
            (Scheme::ReedSolomon { data: 4, parity: 2 }, "rs:4+2", 2, 2),
            (Scheme::ReedSolomon { data: 64, parity: 16 }, "rs:64+16", 16, 16),
        ];
        for (scheme, text, losses, own) in all {
            assert_eq!(text.parse::<Scheme>().unwrap(), scheme);
            assert_eq!(scheme.to_string(), text);
            assert_eq!((scheme.losses(), scheme.own_losses()), (losses, own));
        }
    }

    #[test]
    fn nonsense_is_refused_with_what_would_be_right() {
        let nonsense = [
            "",
            "copies",
            "copies:",
            "copies:two",
            "copies:+2",
            "copies: 2",
            "copies:2 ",
            "Copies:2",
            "xor",
            "xor:4+1",
            "rs:4",
            "rs:4+",
            "rs:+2",
            "rs:4+-2",
            "rs:4+2+1",
            "raid:5",
            "copies:99999999999999999999",
        ];
        for text in nonsense {
            let error = text.parse::<Scheme>().unwrap_err();
            assert_eq!(error.errno(), libc::EINVAL);
            let error = error.to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("rs:4+2"), "{error}");
        }
        for (text, words) in [
            ("copies:0", "copies must be 1 to 8"),
            ("copies:9", "copies must be 1 to 8"),
            ("xor:1", "the group must be 2 to 64"),
            ("xor:65", "the group must be 2 to 64"),
            ("rs:1+1", "the group must be 2 to 64"),
            ("rs:4+0", "parity must be 1 to 16"),
            ("rs:4+17", "parity must be 1 to 16"),
        ] {
            let error = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(error.starts_with(text) && error.contains(words), "{error}");
        }
    }
}
