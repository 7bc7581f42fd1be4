//! The re-map: a live connection is suspended, attached to other hardware, and replayed.
//!
//! Three machines without IO. The [`Mover`] is the process whose context goes to another device; the [`Holder`] one
//! that wants its memory and connections to stand still for a moment; a
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
//! Questions and answers of a group travel in order, in both directions; either may be lost, and then the
//! question is asked again. A question that does not fit the follower's state is answered
//! [`Answer::Unknown`], and changes nothing.
//!
//! # The mover
//!
//! | stage | asks each group | goes on when | after its deadline |
//! | --- | --- | --- | --- |
//! | prepare | [`Request::Prepare`] | all have prepared: [`Action::Stop`] | is taken back |
//! | quiesce | [`Request::Quiesce`], again after a pause where something is under way | all are quiet, and so is it | who has not answered: is taken back; else goes on, and what is out is decided by counting |
//! | *commit point* | | [`Action::TakeDown`] | |
//! | down | nothing | its driver brings [`Event::Down`] | has none: the driver's barrier has one |
//! | switch | [`Request::Switch`], after a pause where the barrier is not passed yet; then [`Action::Attach`]; then [`Request::Finish`], and [`Action::Release`] where it has cut something | all have finished | the group is lost: [`Action::Fail`]. Each of the two questions has the whole time |
//! | abort | [`Request::Abort`] of those that were asked anything | all have taken note | ends all the same |
//!
//! *Taken back* is [`Action::GoOn`] (from quiesce only), [`Action::Discard`], the stage abort, and
//! [`Action::Ended`] with the reason. That happens on a refusal, on [`Answer::Busy`], on an answer that makes
//! no sense, and on silence, before the commit point. After it, any of these loses the group alone. A
//! peer that is dead is lost at any stage, and never takes a move back: its links are failed after the
//! commit point, when everybody else knows where they stand. Late answers of the stage before are
//! ignored, and so is everything that was not asked for.
//!
//! # The hold
//!
//! A snapshot of a process needs a moment in which no device writes into its memory, and nothing is in flight. A
//! *hold* is the quiesce of a move without the move: nothing is prepared, and nothing is taken down.
//!
//! ```text
//!          holder                                    follower
//!   ---------------------------------------------------------------------------------
//!   hands nothing any more,       Hold(numbers)  ▶   hands nothing any more,
//!   receives neither               ◀  Still(numbers)  receives neither
//!                                                     asked again until nothing of either will be executed
//!   held: asks again now and then
//!   goes on                       Finish         ▶   goes on
//!   ended                          ◀  Finished        Unknown: it had gone on by itself
//! ```
//!
//! With each question the holder says what it has executed, and with each answer the follower ([`HeldEnd`]): by that
//! the other judges as after a move ([`crate::SendWindow::is_still`]). It stands still where everything has been
//! executed, or where the first request that has not been is a message, and there is no receive posted for it:
//! none is while the hold lasts. What the follower says of itself its holder's driver looks at, and tells the
//! machine of an answer that it is not still where its own requests are not.
//!
//! | stage of the [`Holder`] | asks each group | goes on when | after its deadline |
//! | --- | --- | --- | --- |
//! | quiesce | [`Request::Hold`], again after a pause where something is under way | all are still, and so is it: [`HoldAction::Held`] | is taken back |
//! | held | [`Request::Hold`], a quarter of a patience after it was heard last | [`Holder::end`]: [`HoldAction::GoOn`] | has none |
//! | finish | [`Request::Finish`] | all have taken note | ends all the same |
//! | abort | [`Request::Abort`] of those that were asked anything | all have taken note | ends all the same |
//!
//! A follower that does not hear of its holder for its patience goes on. The holder knows when that may be, because
//! it knows when it asked what was answered; and it is told, because such a group is unknown when it says its last word.
//! A hold that has lapsed was none: what was taken of memory in it is to be thrown away. A peer that is dead hands nothing
//! more, and is waited for no longer.
//!
//! Who moves or holds is busy for whoever wants to move or to hold it, and the other way round; they try again.
//!
//! # The follower
//!
//! [`Request::Hold`] is unknown in all states but the first and *held*.
//!
//! | state | [`Request::Prepare`] | [`Request::Quiesce`] | [`Request::Switch`] | [`Request::Finish`] | [`Request::Abort`] | patience ends, or the mover dies |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | (none) | makes queue pairs: *prepared*. ([`Request::Hold`]: stops: *held*) | unknown | unknown | | | |
//! | held ([`Request::Hold`]: is it still?) | unknown | unknown | unknown | goes on: *finished* | goes on: *aborted* | goes on: *gave up* |
//! | prepared | the same answer | stops: *stopped* | unknown | unknown | discards: *aborted* | as abort |
//! | stopped | unknown | is it quiet? | takes down: *down* | unknown | goes on with the old ones, discards: *aborted* | as abort |
//! | down | unknown | unknown | barrier passed? then attaches: *attached* | unknown | unknown | attaches, loses what it has cut, releases: *gave up* |
//! | attached | unknown | unknown | the same answer | releases: *finished* | unknown | loses what it has cut, releases: *gave up* |
//! | finished | unknown | unknown | unknown | the same answer | unknown | |
//! | aborted | unknown | unknown | unknown | unknown | the same answer | |
//! | gave up | unknown | unknown | unknown | unknown: it has not heard what was cut, or was held no longer | unknown | |
//!
//! A machine that has ended may be forgotten, its number not. For a number without a machine the driver
//! answers: [`Request::Prepare`] and [`Request::Hold`] of a group that has ended with a refusal; [`Request::Finish`] of one that
//! [has finished](Follower::has_finished) with [`Answer::Finished`]; [`Request::Abort`] with [`Answer::Aborted`], and the group has ended with that
//! (its beginning may still be on the way); everything else with [`Answer::Unknown`].
//!
//! A mover, or a holder, that begins a *later* group over a link of an earlier one has taken the earlier one back, and
//! the word was lost: the driver of the follower aborts the earlier one first. An *earlier* group that
//! comes late ends nothing.
//!
//! # What a driver does at one end
//!
//! - *Stop*: sends are only appended from here on. Behind a tail of WRITEs that no completion would prove it
//!   hands a request of its own that does ([`crate::SendWindow::hide`]; to a peer that keeps a record it
//!   is one, signalled: [`crate::SendWindow::next_record`]), but not while requests of an
//!   earlier plan still wait to be handed: it would count as behind them. Errors of the old queue
//!   pair are withheld from the program: *go on* gives them back, *leave* forgets them.
//! - *Take down*: takes all completions, then ERR (never RESET: what is out would vanish). Receives are
//!   only appended from here on.
//! - *Executed*: only when the barrier is passed, the last receive that was posted having come back in
//!   error, or with [`Executed::settled`] false. [`Executed::messages`] counts receives that were filled,
//!   since the queue pairs were first connected; receives that came back in error do not count. Once the
//!   numbers are told, whatever the old queue pair reports is forgotten: the peer acts on the numbers.
//!   A side whose device has no live packet number tells none, but what stands in its word
//!   ([`Executed::recorded`]), read after the count of messages.
//! - *Record*: a peer that keeps a record says where its word lies when the connection begins, and for each
//!   new end in the offer or the answer to it: the word itself stays. Behind every so many WRITEs that no
//!   message follows ([`crate::record_interval`]) goes a record into it: eight bytes, little-endian, inline,
//!   not signalled, and never while requests of an earlier plan wait to be handed.
//! - *Attach*: posts all receives that were not consumed to the new queue pair (the mover does so before it
//!   asks for [`Request::Switch`]); judges ([`crate::SendWindow::judge`]); hands what the plan says, then
//!   what was appended meanwhile, all signalled; makes the completions of what was executed, each in its
//!   turn behind those that are handed again. If the plan holds back a WRITE with immediate data that was
//!   cut, nothing is handed before *release*.
//! - *Lose*: the links whose requests were cut end with errors. A mover that is only late has receives
//!   posted, and does not know: it would take the rest of such a request for the whole.
//! - *Release* adds what had landed to the next completion of a WRITE with immediate data; the old queue
//!   pair is destroyed.
//!
//! [`Executed::settled`]: crate::Executed::settled
//! [`Executed::messages`]: crate::Executed::messages
//! [`Executed::recorded`]: crate::Executed::recorded
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
//! What is handed again, and what not, is [`crate::replay`]'s to say. [`crate::sim`] tries all of this in
//! worlds of chance, and everything that can happen in small ones.

mod follower;
mod holder;
mod message;
mod mover;
#[cfg(all(test, not(loom)))]
mod tests;

pub use follower::{Follower, FollowerLimits, PrepareError, Side};
pub use holder::{HoldAction, HoldAsk, HoldFailure, HoldStage, Holder, HolderLimits};
pub use message::{
    Accept, Answer, Cut, GroupId, HeldEnd, HeldLink, MAX_LINKS, MAX_REASON, Malformed, Offer,
    Request,
};
pub use mover::{Action, Event, Failure, Mover, MoverLimits, Stage};
