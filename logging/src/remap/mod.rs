//! The re-map: a live connection is suspended, attached to other hardware, and replayed.
//!
//! Two machines without IO. The [`Mover`] is the process whose context goes to another device; a
//! [`Follower`] is a process at the other end of some of its connections. A *link* is one
//! connection, a *group* the links that are spoken of in one message (all with one peer, at most
//! [`MAX_LINKS`]). Who drives them: `sojourn-fabric`'s virtual layer, and the simulator.
//!
//! # The conversation of a group
//!
//! ```text
//!          mover                                     follower
//!   ---------------------------------------------------------------------------------
//!   makes new queue pairs         Prepare(ends)  ▶   makes new ones, connected to these
//!   connects them to the answer's  ◀  Prepared(ends)
//!                                                     nothing has changed for anybody so far
//!   hands nothing any more        Quiesce        ▶   hands nothing any more
//!   until nothing is under way     ◀  Quiet           asked again until nothing is under way
//!   ================================ commit point ====================================
//!   old queue pairs to ERR, barrier, all completions taken;
//!   posts receives to the new ones
//!                                 Switch(executed) ▶ the same; then knows what the mover has
//!                                                     executed, and replays on the new ones
//!   replays on the new ones        ◀  Switched(executed)
//!                                 Finish(cuts)   ▶   forgets the group
//!   done                           ◀  Finished
//! ```
//!
//! # Why it is safe
//!
//! - *Until the commit point nothing is lost*: the old queue pairs are whole, and only not handed
//!   anything. [`Request::Abort`], a refusal, a deadline, or the death of either side end with both
//!   going on where they were.
//! - *After it there is only forward*: everything that could be refused has been made and connected
//!   before. What remains are a barrier and messages. A peer that has died is told from one that is
//!   silent by the transport; its links end with errors, as verbs end those of a dead peer.
//! - *Nobody sends before the other can receive*: the mover posts its receives before it says
//!   [`Request::Switch`], the follower before it answers.
//! - *Nothing old lands later*: each side says what it has executed only after its old queue pair is
//!   at ERR and past the barrier, so that the numbers are final; the new ones have fresh numbers and
//!   packet sequences. Offers carry an incarnation that must be newer than the link's.
//! - *Every request may be asked twice*: the follower answers what it has done already with the same
//!   answer. A group that has ended is never begun again: groups are numbered upwards.
//! - *Two that move at once*: who is moving answers [`Answer::Busy`], and who hears that takes its
//!   own move back and tries again later. So there is no circle of waiting.
//! - *A WRITE with immediate data that was cut* goes on at its first packet that has not landed, and
//!   the receiver must add what had landed to the length in its completion: it is told so before
//!   that request is handed again (the answer to [`Request::Switch`], or [`Request::Finish`]), so
//!   such links wait for one message more.
//!
//! What is handed again, and what not, is [`crate::replay`]'s to say.

mod follower;
mod message;
mod mover;
#[cfg(all(test, not(loom)))]
mod tests;

pub use follower::{Follower, FollowerLimits, PrepareError, Side};
pub use message::{Accept, Answer, Cut, GroupId, MAX_LINKS, MAX_REASON, Malformed, Offer, Request};
pub use mover::{Action, Event, Failure, Mover, MoverLimits, Stage};
