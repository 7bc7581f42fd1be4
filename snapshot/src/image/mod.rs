//! The bytes of a slot: one whole image of a process, as it lies in a store.
//!
//! The process writes it by RDMA WRITE; whoever restores reads it by RDMA READ, and the store may read it
//! in place. All numbers are little-endian. Every part begins at a multiple of 4 KiB, and has room for what
//! its [`Geometry`] allows, so nothing moves from one epoch to the next:
//!
//! | part | bytes | what |
//! | --- | --- | --- |
//! | header | [`PAGE`](crate::PAGE) | who, which epoch, how much of everything, checksums; then the *word* |
//! | areas | 24 for each | id, 0, address, bytes |
//! | pages | 8 for each chunk | [`PageEntry`]: crc32c, and the epoch in which it last changed |
//! | windows | as many as there are | opaque here |
//! | data | [`PAGE`](crate::PAGE) for each chunk | the chunks in the order of the [`Layout`](crate::Layout) |
//!
//! # The word
//!
//! The last cache line of the header's page begins with it ([`WORD_AT`]). It is the epoch's number where the slot
//! holds a *complete* epoch, and 0 where it does not. Before anything of a slot is changed the word
//! is set to 0, and it is set to the number when everything else has arrived. A slot is complete
//! only if its word is the number in its header, and the header's checksum is right.
//!
//! # Checksums
//!
//! The header's covers its whole page except for the word and itself; it holds those of the areas, of the
//! page table and of the windows; and the page table holds that of each chunk. What is between the parts,
//! and behind the last byte of an area's last chunk, belongs to nothing and is not read. A chunk of zeros
//! need not be sent: its entry says so, and its place in the data means nothing.
//!
//! # Reading
//!
//! [`Slot::open`] takes any [`Source`] of bytes and believes none of them: it holds no more than is really
//! there, and says which part is [damaged](Damaged), where. A slot may be overwritten while it is read;
//! then checksums differ, or [`Slot::confirm`] says so.
//!
//! # Writing
//!
//! [`HeaderPage::new`] makes the header from the [`Stamp`] and the parts; [`encode_areas`] and [`PageTable`] make
//! the tables. Who writes puts each at the place that [`Geometry`] names, then the word.

mod damaged;
mod geometry;
mod header;
mod slot;
mod tables;

pub use damaged::{Damaged, Part, Why};
pub use geometry::Geometry;
pub use header::{HeaderPage, MAX_EPOCH, Stamp, VERSION, WORD_AT};
pub use slot::{Slot, Source, exercise};
pub(crate) use tables::check_entries;
pub use tables::{AREA_BYTES, ENTRY_BYTES, PageEntry, PageTable, decode_areas, encode_areas};

#[cfg(test)]
mod tests;
