//! The engine of the deterministic simulator.
//!
//! A seed makes a world: two or three processes, links between them, a list of requests for each end,
//! devices with their habits, and faults. The world runs in virtual time; all that is left to chance
//! comes from one generator, so a seed tells a run again, event by event, on any machine.
//!
//! The windows, the judgement and all machines of the re-map are the real ones: [`SendWindow`],
//! [`RecvWindow`], [`SharedRecvWindow`], [`SendWindow::judge`], [`Mover`], [`Holder`] and [`Follower`]. The simulator
//! plays what is around them, and no more:
//!
//! | file | plays |
//! | --- | --- |
//! | `device` | RC queue pairs that execute packet by packet, and the wire between them |
//! | `script`, `end` | a program, its virtual queue pair, and how completions come |
//! | `turn` | suspend, attach, replay: the steps that the shell takes at one end |
//! | `late` | the same, for receives that a device gives back as filled, and that are not |
//! | `shared` | a shared receive queue, from which all links of one process take their receives |
//! | `shell`, `follow` | processes that move and follow, and the messages between them |
//! | `schedule`, `rng` | time and chance, for other simulators, too ([`Schedule`], [`Rng`]) |
//! | `queue`, `world`, `seeded` | what happens next, and faults |
//! | `hold` | processes that want to stand still for a moment, between moves |
//! | `ledger` | nobody: it sees everything, and holds it against the promises |
//! | `broken` | shells that do one thing wrong, each of which must be caught |
//! | [`command`] | the command line, of other simulators, too |
//!
//! # What goes wrong
//!
//! Packets and answers are lost; receivers are late; windows are full; names are missing. Messages
//! between processes are lost, late (beyond every deadline), asked twice, and in some runs overtaken by
//! later ones. Peers refuse. Both ends of a link move at once, one after the other, and again while an
//! earlier move is still remembered. Processes die, movers and followers, before and after the commit
//! point; devices die under them. Queue pairs at ERR execute one packet more before the barrier, give
//! nothing back, give back receives as filled that are not, or have no live number (responders then keep
//! records, or there are counts alone). Shared receives vanish with the queue pair that was filling them,
//! or there is no event that tells the barrier. [`Kind`] lists all of it; a run over many seeds that has
//! not met one of them fails.
//!
//! # What is checked, at every step
//!
//! - *Promise 1*: completions come once, in order, only for requests that were signalled or failed, and
//!   with success only where the request was executed. An error needs a reason, such as a dead device
//!   or an atomic whose result was lost: a link must not fail because it was moved.
//! - *Promise 2*: messages are delivered once, in order, as long as they were sent, with their immediate
//!   data, and from a buffer that still held them; each into a receive of its own. Receives that are
//!   shared are used once, whichever link takes them, and in the end none is missing.
//! - *Promise 3*: each byte of a WRITE lands once, in order; an atomic is executed once and returns its
//!   own result; a READ returns what was there.
//! - *Promise 4*: a queue pair whose last numbers were told executes nothing more.
//! - *Promise 5*: while nothing moves, both ends of a link are on the same path, and nobody is held back.
//! - *Holds*: while a process is held, and nobody has said that this has lapsed, no request lands in its memory,
//!   and no answer to one of its own.
//! - *Liveness*: when nothing goes wrong any more, everything comes to its end in bounded time.
//!
//! [`SendWindow`]: crate::SendWindow
//! [`SendWindow::judge`]: crate::SendWindow::judge
//! [`RecvWindow`]: crate::RecvWindow
//! [`SharedRecvWindow`]: crate::SharedRecvWindow
//! [`Mover`]: crate::remap::Mover
//! [`Holder`]: crate::remap::Holder
//! [`Follower`]: crate::remap::Follower

mod broken;
pub mod command;
mod device;
mod end;
mod follow;
mod hold;
mod kinds;
mod late;
mod ledger;
mod queue;
mod rng;
mod schedule;
mod script;
mod seeded;
mod shared;
mod shell;
mod small;
#[cfg(all(test, not(loom)))]
mod tests;
mod turn;
mod world;

pub use broken::Broken;
pub use kinds::{Kind, Kinds};
pub use rng::Rng;
pub use schedule::{Schedule, Time};
pub use seeded::{Remaps, run};
pub use small::{Explored, Fault, Small};
