//! What can't be had any more, in words.

use super::placement::{Role, Share};
use super::scheme::Scheme;
use sojourn_fabric::names::ProcessId;
use std::fmt;

/// A process whose image can neither be read nor rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The process.
    pub process: ProcessId,
    /// The scheme, which does not make up for so much.
    pub scheme: Scheme,
    /// The group that the process is in.
    pub group: usize,
    /// How many shares that group has.
    pub shares: usize,
    /// Those that can't be used, in their order.
    pub absent: Vec<Absent>,
}

/// A share that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    /// Which.
    pub share: Share,
    /// What it is.
    pub role: Role,
    /// The store that should have it.
    pub store: String,
    /// Why it can't be used.
    pub why: Why,
}

/// Why a share can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its store is lost, or does not answer.
    Lost,
    /// Its store has it of these other epochs, or not at all.
    OtherEpochs(Vec<u64>),
    /// There are images of this epoch that are not the same, and nothing says which was committed.
    Contradicts,
    /// It is parity of other images than those that are there.
    OtherImages,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Lost => f.write_str("does not answer"),
            Why::OtherEpochs(none) if none.is_empty() => f.write_str("does not have it"),
            Why::OtherEpochs(epochs) => {
                let epochs: Vec<String> = epochs.iter().map(u64::to_string).collect();
                write!(f, "has it of epoch {} only", epochs.join(" and "))
            }
            Why::Contradicts => f.write_str("has one that another store contradicts"),
            Why::OtherImages => f.write_str("has it of other images"),
        }
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.role {
            Role::Image(process) => write!(f, "the image of {process}")?,
            Role::Parity(index) => write!(f, "parity {index}")?,
        }
        write!(f, " (store {:?} {})", self.store, self.why)
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Missing { process, scheme, group, shares, absent } = self;
        let list: Vec<String> = absent.iter().map(Absent::to_string).collect();
        let list = list.join(", ");
        let many = absent.len();
        match scheme {
            Scheme::Copies(_) => {
                write!(
                    f,
                    "{process} can't be restored: of its {shares} images, {many} are missing: {list}"
                )
            }
            _ => write!(
                f,
                "{process} can't be restored: of the {shares} shares of group {group}, {many} are \
                 missing, and {scheme} makes up for {}: {list}",
                scheme.losses()
            ),
        }
    }
}
