//! What a store is told of a share of parity.

use crate::epoch::Member;
use crate::redundancy::Scheme;
use crate::redundancy::share::{Image, Parts};
use crate::{Error, PAGE, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::time::Duration;

/// Most stores that a task names, so that it fits into a message.
pub const MAX_STORES: usize = 256;
/// Longest text of where a store listens: the path of a unix socket has 108 bytes.
const MAX_AT: usize = 128;

/// A share of parity, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The scheme.
    pub scheme: Scheme,
    /// The group, by its index in the placement.
    pub group: u32,
    /// Which share of its parity.
    pub index: u8,
    /// The processes, in the order of their images.
    pub members: Vec<Member>,
    /// Where stores listen that may have an image of one of them.
    pub stores: Vec<String>,
    /// For each process the store that is asked first, by its index in [`Self::stores`].
    pub first: Vec<u16>,
    /// Bytes of the longest slot of a process.
    pub bytes: u64,
}

impl Task {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// `EINVAL` with what is wrong.
    pub fn check(&self) -> Result<()> {
        let Task { scheme, group, index, members, stores, first, bytes } = self;
        let refused = |problem: String| {
            Err(Error::invalid(format!("parity {index} of group {group}: {problem}")))
        };
        scheme.check()?;
        if usize::from(*index) >= scheme.parity() {
            return refused(format!("{scheme} has {} shares of parity", scheme.parity()));
        }
        if members.is_empty() || members.len() > scheme.group() {
            return refused(format!("{scheme} has no group of {} processes", members.len()));
        }
        for (i, member) in members.iter().enumerate() {
            if u32::try_from(member.0).is_err() || members[..i].contains(member) {
                return refused(format!("process {member} is none, or is in it twice"));
            }
        }
        if stores.is_empty() || stores.len() > MAX_STORES {
            return refused(format!("{} stores: 1 to {MAX_STORES}", stores.len()));
        }
        if let Some(long) = stores.iter().find(|at| at.len() > MAX_AT) {
            return refused(format!("a store at {} bytes of text", long.len()));
        }
        if first.len() != members.len() || first.iter().any(|it| usize::from(*it) >= stores.len()) {
            return refused("a process whose store is none of those named".into());
        }
        if *bytes < PAGE as u64 || !bytes.is_multiple_of(PAGE as u64) || *bytes > Image::MAX_BYTES {
            return refused(format!("slots of {bytes} bytes"));
        }
        Ok(())
    }

    /// Where the parts of a share are that has room for the longest image.
    ///
    /// # Errors
    /// `EINVAL` where that is more than can be.
    pub(crate) fn room(&self) -> Result<Parts> {
        Parts::new(usize::try_from(self.bytes).unwrap_or(usize::MAX).div_ceil(PAGE))
    }

    /// Bytes of the compartment that it takes, both slots together.
    ///
    /// # Errors
    /// As [`Self::room`].
    pub(crate) fn compartment(&self) -> Result<u64> {
        Ok(2 * (PAGE + self.room()?.bytes()) as u64)
    }

    /// The same share of the same processes, wherever they are.
    pub(crate) fn is_same(&self, other: &Task) -> bool {
        let of = |it: &Task| (it.scheme, it.group, it.index, it.bytes);
        of(self) == of(other) && self.members == other.members
    }
}

/// What making a share took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Chunks of parity that were computed.
    pub computed: u64,
    /// Bytes that were read from other stores, without tables.
    pub read: u64,
    /// How long it took.
    pub took: Duration,
}

/// These bytes of `from`, which has as many zeros behind its end as are asked for.
pub(super) fn piece(from: &[u8], at: usize, into: &mut [u8]) {
    let Range { start, end } = at.min(from.len())..(at + into.len()).min(from.len());
    into[..end - start].copy_from_slice(&from[start..end]);
    into[end - start..].fill(0);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn task() -> impl Strategy<Value = Task> {
        let stores = prop::collection::vec("unix:/[a-z]{1,90}", 1..9);
        let some = (any::<u32>(), 0..2u8, 1..1u64 << 30);
        (stores, some, prop::collection::btree_set(any::<u32>(), 1..=4), any::<u16>()).prop_map(
            |(stores, (group, index, pages), members, first)| Task {
                scheme: Scheme::ReedSolomon { data: 4, parity: 2 },
                group,
                index,
                first: vec![first % stores.len() as u16; members.len()],
                members: members.into_iter().map(|it| Member(it.into())).collect(),
                stores,
                bytes: pages * PAGE as u64,
            },
        )
    }

    proptest! {
        /// What makes sense is taken, and each way in which it does not is found.
        #[test]
        fn a_task_that_makes_no_sense_is_refused(task in task()) {
            prop_assert!(task.check().is_ok());
            prop_assert!(task.compartment().unwrap() > 2 * task.bytes);
            let wrong: [fn(&mut Task); 10] = [
                |it| it.index = 2,
                |it| it.scheme = Scheme::Copies(2),
                |it| it.members.clear(),
                |it| it.members = (1..6).map(Member).collect(),
                |it| it.members = vec![Member(1 << 32); it.members.len()],
                |it| it.stores = vec![String::new(); MAX_STORES + 1],
                |it| it.stores[0] = "x".repeat(MAX_AT + 1),
                |it| it.first[0] = it.stores.len() as u16,
                |it| it.bytes += 1,
                |it| it.bytes = Image::MAX_BYTES + PAGE as u64,
            ];
            for wrong in wrong {
                let mut other = task.clone();
                wrong(&mut other);
                prop_assert!(other.check().is_err(), "{other:?}");
            }
        }
    }
}
