//! From the program's memory into a store, by RDMA WRITE and without a copy on the way.
//!
//! | file | what |
//! | --- | --- |
//! | `source` | the program's areas, registered once and for local reads alone |
//! | `lane` | one queue pair: a bounded window of WRITEs, and what has become of each |
//! | `pump` | the stale chunks of some slots: looked at once, sent to each slot that wants them |
//!
//! A chunk is looked at just before it is sent: its checksum is computed and its zeros are found
//! while it comes into the cache, from where the device then reads it. So memory is read once. Checksums go
//! into the page table of the image, which is the same for every slot; chunks of zeros are not sent.
//!
//! The program may compute meanwhile. Then a chunk may be sent torn, or with a checksum of another moment; but
//! then it was changed after tracking was asked, so it is dirty again, and is sent again in the pause.

mod lane;
mod pump;
mod source;

pub(crate) use lane::Lane;
pub(crate) use pump::{Target, cut, pump, share};
pub(crate) use source::Source;
