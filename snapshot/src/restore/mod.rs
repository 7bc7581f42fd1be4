//! From a store back into memory, by RDMA READ.
//!
//! | file | what |
//! | --- | --- |
//! | `copy` | one slot of a store: its tables, and its chunks into given memory |
//! | `lazy`, `missing` | the same, when it is touched |
//! | `recover` | which copy of which epoch, and the next one where one is damaged or lost |
//!
//! Every chunk is checked against its checksum, always, after it has arrived and before anybody is told that it is
//! there. What fails is never used: another copy is, and where there is none the error says what is wrong with each.

mod copy;
mod lazy;
mod missing;
mod recover;
#[cfg(test)]
mod tests;

pub(crate) use copy::place as area_places;
pub use copy::{Copy, ReadReport};
pub use lazy::Lazy;
pub use recover::{RecoverOptions, Recovered, recover, recover_lazily};
