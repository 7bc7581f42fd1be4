//! Memory that is snapshot into a store in another process, and what the device does alone.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`field`] | the memory of a program, and pages of it that are changed by chance |
//! | `part` | the second processes: a store, or memory as a store has it |
//! | [`raw`] | the device's own WRITEs from the same memory into such a process |
//! | [`session`] | epochs: of a program that stands still, or computes on |
//! | [`restoring`] | memory from a store, against a copy of as much |
//!
//! The same binary is each of the second processes ([`serve`]).

pub mod field;
mod part;
pub mod raw;
pub mod restoring;
pub mod session;

pub use part::{StoreProcess, serve};
