//! Parity in stores: the IO around [`crate::redundancy`].
//!
//! A process sends its image to one store, and takes no part in the rest. For each group of processes there are shares
//! of parity, each on a store of its own. The store that holds one *gathers* it: when all images of the group are
//! complete in an epoch, it reads them from the stores of the members by RDMA READ, and computes on its own
//! cores what goes into its own memory.
//!
//! | file | what | who |
//! | --- | --- | --- |
//! | `task` | what a store is told: which share, of whom, and where images may be | both |
//! | `distant` | two slots of another store, read by RDMA | both of the next |
//! | `whole` | an image there, as the string of bytes that parity is of | the same |
//! | `held` | a share of parity there | whoever restores |
//! | `maker` | the work of a store that holds a share | the store |
//! | `asker` | asks the stores of one group, epoch for epoch | one process of the group, or who decides for it |
//! | `rebuild` | an image back into memory, read or rebuilt | whoever restores |
//! | `check` | all checksums of a share | whoever verifies |
//!
//! # A share is a member of its own
//!
//! Its compartment ([`member_of`]) has two slots and words, as that of a process has, and the machine of the store
//! treats it the same: the one that holds the committed epoch is not written, an older incarnation is fenced before a
//! newer one is let in, and what is there is told and noted in the same way. Its writer is the store itself, on a
//! thread of its own, for the incarnation that asked.
//!
//! A slot of it is a page that has nothing but the word, at the same place as in the slot of a process, and then a share
//! as [`crate::redundancy::share`] says.
//!
//! # One epoch
//!
//! ```text
//!   member (each)                    asker                           store of parity
//!   ------------------------------------------------------------------------------------------------
//!   word := E     ▷
//!   Protect(E)
//!   all have met, or one has not come
//!                                    Gather(E, committed C)   ▶      the slot that is not C: word := 0
//!                                                                    reads what has changed ◁ of each image,
//!                                                                    computes, looks again ◁, word := E
//!                                            ◀                       gathered
//!   protected
//!   complete: the decision, as without parity
//!                                    Note(E)                  ▶
//! ```
//!
//! So an epoch is committed only when its parity is there. A member writes no slot before it has heard the decision;
//! should one do so all the same, the second look finds it, and the share stays incomplete. What dies in between
//! leaves the epoch before: its images and its parity are in the other slots.
//!
//! # What is read again
//!
//! The chunks of which a member's page table says that they have changed since the epoch that this very slot was last
//! made of, the tables, and the windows. All of it where the store has just begun with this share, where a
//! member is in another life, or where its image has another shape.

mod asker;
mod check;
mod distant;
mod held;
mod maker;
mod rebuild;
mod task;
mod whole;

pub use asker::{Asker, Asking};
pub use check::{Sound, check};
pub use rebuild::{REBUILT, Restore, rebuildable, restore};
pub use task::{MAX_STORES, Made, Task};

pub(crate) use maker::Maker;
#[cfg(test)]
pub(crate) use task::tests::task as tasks;

use crate::epoch::Member;
use crate::redundancy::Scheme;

/// Where the numbers of shares begin, among those of members: those of processes have 32 bits.
const SHARES: u64 = 1 << 40;

/// The member that share `index` of the parity of a group is.
///
/// # Panics
/// Where no scheme has so many shares.
#[must_use]
pub fn member_of(group: u32, index: usize) -> Member {
    assert!(index < Scheme::MAX_PARITY, "share {index} of parity");
    Member(SHARES + u64::from(group) * Scheme::MAX_PARITY as u64 + index as u64)
}

/// The group and the share of it that a member is; `None` for a process.
#[must_use]
pub fn share_of(member: Member) -> Option<(u32, usize)> {
    let number = member.0.checked_sub(SHARES)?;
    let each = Scheme::MAX_PARITY as u64;
    let group = u32::try_from(number / each).ok()?;
    Some((group, usize::try_from(number % each).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_share_or_a_process_and_never_both() {
        for (group, index) in [(0, 0), (0, 1), (7, Scheme::MAX_PARITY - 1), (u32::MAX, 0)] {
            assert_eq!(share_of(member_of(group, index)), Some((group, index)));
        }
        for number in [0, 1, u64::from(u32::MAX), SHARES - 1, u64::MAX] {
            assert_eq!(share_of(Member(number)), None, "{number}");
        }
    }
}
