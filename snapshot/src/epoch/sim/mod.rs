//! The simulator of epochs: worlds of chance, in virtual time.
//!
//! A seed makes a world: one to five processes, one to five stores, a policy, and faults. Time and chance are
//! those of [`sojourn_logging::sim`], so a seed tells a run again, event by event, on any machine.
//!
//! All four machines are the real ones: [`Writer`], [`Compartments`], [`Decider`] and [`Recovery`]. The simulator
//! plays what is around them, and no more:
//!
//! | file | plays |
//! | --- | --- |
//! | `store` | a store's memory, half chunk by half chunk, and its queue pairs |
//! | `process` | a program that writes to its memory, tracking, and the shell of its writer |
//! | `wire` | RDMA WRITEs, which read memory late and land later, and messages |
//! | `launcher` | who notices deaths, starts deciders, and restores |
//! | `faults` | what goes wrong |
//! | `world`, `seeded` | what happens next |
//! | `ledger` | nobody: it sees everything, and holds it against the promises |
//! | `lists` | what a run can meet, and shells that do one thing wrong, each of which must be caught |
//!
//! # What goes wrong
//!
//! Processes, stores, recoveries and deciders die, at any time and in the middle of any step; deciders are replaced
//! while they live, and go on deciding. Processes are taken for dead, and compute, write and commit beside the life that
//! takes their place, as far as stores let them. Connections break, with part of what was under way landed; stores are out of
//! reach for a while, and come back with what they had. WRITEs of a dead process land late, until its queue
//! pair is past the barrier. Messages are lost, late, twice, and overtake each other. Bytes in stores are damaged.
//! Tracking answers late, protection fails.
//!
//! # What is checked
//!
//! - *Whenever something lands*: no slot is written whose word says that it is an epoch, and a slot whose word says so holds
//!   memory as it was in the pause of that epoch, every half chunk of it.
//! - *Whenever a store changes*: no copy of the last committed epoch is gone but by a fault; and while each process has
//!   one, a recovery, tried there and then, restores that epoch or a newer one.
//! - *In every recovery*: all processes get the same epoch, and memory as it was in its pause. It gives up only where a
//!   process has no copy of the last committed epoch left.
//! - *In every decision*: what is committed was complete, in all processes, on the policy's least number of stores; no
//!   process commits what another was told to give up; no number is used twice.
//! - *Liveness*: when nothing goes wrong any more, a new epoch is committed in bounded time.
//!
//! A store that a recovery could not reach, and one that was lost before it took note of a commit, count as lost: what
//! they hold is no copy for the promise. Of what is committed to a process that was taken for dead, only what was
//! committed before another life began is promised.
//!
//! [`Writer`]: super::Writer
//! [`Compartments`]: super::Compartments
//! [`Decider`]: super::Decider
//! [`Recovery`]: super::Recovery

mod faults;
mod launcher;
mod ledger;
mod lists;
mod process;
mod seeded;
mod store;
#[cfg(test)]
mod tests;
mod wire;
mod world;

pub use lists::{Broken, Kind};
pub use seeded::{Epochs, run};
