//! Epochs: how a snapshot in the stores of peers comes to be complete and committed, and what is restored.
//!
//! Four machines without IO. A [`Writer`] is a process whose memory is snapshot. [`Compartments`] are what a
//! store keeps, for each process, and who may write there. A [`Decider`] says for a job what is committed.
//! A [`Recovery`] finds out what can be restored, and from where. Who drives them: the shells of this crate,
//! and the simulator. They are handed events, the time, and nothing else; they return what is to be done.
//!
//! # What is promised
//!
//! - *The last committed epoch can be restored*, while of each process one of the stores that have noted it is
//!   left, whatever dies, and when.
//! - *Never a mixture*: a slot whose word says E holds memory as it was in the pause of E, and all processes are
//!   restored from one epoch.
//! - *Failure*: an epoch that is not committed is given up, with a reason; the program computes on, and what was
//!   committed before still is.
//!
//! # One epoch of one process
//!
//! ```text
//!   decider            writer                                          its stores (each)
//!   ------------------------------------------------------------------------------------------------
//!   Begin(E)      ▶    gather: stores that it lacks      Grant     ▶   fences older incarnations
//!                      a slot that is not the committed  word := 0 ▷   the slot is no epoch any more
//!                      collect, then send                chunks    ▷   (rounds; the program computes)
//!                      pause, collect, send              chunks    ▷   (the last round)
//!                      go on
//!                      seal                              tables    ▷
//!                                                        word := E ▷   the slot is E
//!                                                        Check     ▶   (where the policy says so)
//!                      protect                                         (where the policy says so)
//!              ◀       complete
//!   all are
//!   Commit(E)     ▶                                      Note      ▶   E is committed
//!                      committed, to the program
//! ```
//!
//! ▶ is a message, which may be lost, late, or come twice; ▷ is an RDMA WRITE whose completion is awaited before
//! the next line. One reliable connection carries those of a writer to a store; should it break, the store is
//! lost to the writer, and is a new one if it comes back.
//!
//! *Collect comes before send*, always: tracking starts afresh, and then memory is read. What the program
//! changes after that is dirty again, whether it was sent or not. What is found is stale in both slots of every
//! store; what is sent is stale no more in the slot that it is sent to.
//!
//! # The writer
//!
//! | stage | waits for | a store is lost | given up (deadline, abort) |
//! | --- | --- | --- | --- |
//! | idle | an order | is replaced in the next epoch | |
//! | gather | grants, cleared words, and what an epoch that was given up has left under way | another takes its place, all of it stale; where there is none, goes on with fewer, if the policy's minimum allows | stays as it was |
//! | collect, round | tracking; WRITEs | as in gather, which follows | the slot is no epoch |
//! | pause, last | tracking; WRITEs | goes on with fewer, if the minimum allows | the program goes on |
//! |  | (where it then says that it has not stood still, the epoch is given up before it is sealed) | | |
//! | seal | WRITEs, checks | the same | |
//! | protect | the driver | the same | |
//! | complete | the decision, as long as it takes | nothing: it has been said | only if the decider says so |
//! | note | stores | the others take note | cannot be: it is committed |
//!
//! A writer that is complete is *in doubt*: it may be that others know the epoch to be committed. So it waits
//! for a decision, however long that takes (the program computes), of this decider or of a newer one.
//!
//! # The store
//!
//! | request | unknown process | a newer incarnation | the same | an older one |
//! | --- | --- | --- | --- | --- |
//! | [`Request::Grant`] | makes a compartment, or refuses | fences: *wait*, then granted | granted | stale |
//! | [`Request::Claim`] | nothing is there; remembers who asked | fences: *wait*, then tells | tells | stale |
//! | [`Request::Check`], [`Request::Note`] | refused | as the same | of a slot with that word; else refused | stale |
//! | [`Request::Release`] | released | fences: *wait*, then released | the same | stale |
//!
//! *Fencing* takes the older incarnation's queue pair to ERR and passes the barrier: nothing of it lands after
//! that. Only then is anybody else told what is there, or let in. Where nothing is there an older incarnation is
//! shut out all the same: else it could go on to such a store, and be complete, and committed, behind the back of
//! a recovery that was told of nothing.
//!
//! # The decider
//!
//! | stage | goes on when |
//! | --- | --- |
//! | asking | all members have said where they stand. An open epoch is committed where one has heard that it is, or all are complete; else it is given up |
//! | idle | [`Decider::start`] deals the next number |
//! | running | all are complete: commit. One cannot be any more, or the time is up: abort |
//! | deciding | all have heard |
//!
//! It keeps nothing that a new one could not ask for. Members heed the newest term only, and a report counts for
//! the term that it was made for; so an older decider that lives on decides nothing: what it would need is said
//! to the newer one. (A restored process is told from which term on it listens: what its life before was told may
//! still be on the way.) A member that is complete stays complete until it is told; so if an older one has committed
//! an epoch, all were complete, and still are, or have heard. In a job of one process the driver carries the
//! messages, and that is all.
//!
//! # Numbers
//!
//! An [`Epoch`] counts upwards by one with each attempt. Above the count stands the term of the decider that
//! dealt it: no number is dealt twice, though stores that have seen the last ones may be out of reach when a
//! new decider goes on from the largest that is known. (Two epochs of one number would be a mixture.) A job
//! that starts from nothing is another job: its processes have other names in the stores.
//!
//! # What is restored
//!
//! A recovery claims the compartments, so that nothing lands there any more, and asks what they hold. *C* is the
//! largest epoch that is noted as committed anywhere, by any process. Then it takes
//!
//! 1. the largest epoch beyond C that every process has, each on every store on which it has C;
//! 2. else C;
//! 3. else the largest epoch that every process has.
//!
//! Not simply the largest that all have: a process may be complete on one of two stores when everything dies. To go
//! on from there would give up C, of which there are two copies, for one. Nor simply C: the others may be told
//! of a commit before a store is. A slot beside that of C may be written only by who has noted C, or a
//! later one, in all of its stores: so where C was overwritten, the later one is noted.
//!
//! Where a copy fails its checks it counts as lost, and the rule is applied again. Nobody computes before all
//! have been read. What was read for another epoch is read anew.
//!
//! *One process alone*, while the others compute on (their messages to it are kept, and replayed): first a new
//! decider asks those that live, so that nothing is committed any more but by it; then the process is restored
//! from C, or from what they know to be committed where that is later, and from nothing else
//! ([`Scope::Part`]); then it reports to that decider as they did.
//!
//! A restored process is a [`Writer`] with an [`Origin`]: what it was restored from is committed, and the slot
//! that it was read from differs from memory in nothing but what is dirty since.
//!
//! # Parity
//!
//! A parity over a group of processes is a member of its own: its compartment has two slots and words, and who
//! computes it is their writer. It may combine slots only where all hold the epoch that it is of
//! ([`Compartments::slots_of`]), looked at before and after. The processes report that they are complete only when
//! [`Action::Protect`] is done.

mod decider;
mod message;
mod recovery;
mod replica;
pub mod sim;
mod store;
#[cfg(test)]
mod tests;
mod words;
mod writer;

pub use decider::{Decider, DeciderLimits, Ruling};
pub use message::{
    Answer, Holding, MAX_REASON, Malformed, Open, Order, Report, Request, Term, Word,
};
pub use recovery::{Found, Missing, Recovery, RecoveryLimits, Scope, Step};
pub use store::{Compartments, MAX_COMPARTMENTS, Room};
pub use words::{Action, Event, Origin, Policy, Reason, Stage, WriterLimits};
pub use writer::Writer;

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bits of an [`Epoch`] that count; the term of the decider stands above them.
const COUNT_BITS: u32 = 40;

/// The number of an epoch, and the word of the slot that holds it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

impl Epoch {
    /// None: the word of a slot that is not complete.
    pub const NONE: Epoch = Epoch(0);

    /// The one after this, dealt in this term. Larger than this wherever this was dealt in no later term.
    #[must_use]
    pub fn after(self, term: Term) -> Epoch {
        Epoch((u64::from(term.0) << COUNT_BITS) | (self.count() + 1))
    }

    /// The one with this count, dealt in this term.
    ///
    /// # Panics
    /// Where the count has more bits than there are.
    #[must_use]
    pub fn new(term: Term, count: u64) -> Epoch {
        assert!(count < 1 << COUNT_BITS, "the count {count} of an epoch");
        Epoch((u64::from(term.0) << COUNT_BITS) | count)
    }

    /// Which attempt of the job it is, from 1: what a person is told.
    #[must_use]
    pub fn count(self) -> u64 {
        self.0 & ((1 << COUNT_BITS) - 1)
    }

    /// In which term it was dealt.
    #[must_use]
    pub fn term(self) -> Term {
        Term((self.0 >> COUNT_BITS) as u32)
    }

    /// It is not [`Self::NONE`].
    #[must_use]
    pub fn is_some(self) -> bool {
        self != Epoch::NONE
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {} (term {})", self.count(), self.term().0)
    }
}

macro_rules! name {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {$(
        $(#[doc = $doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

name! {
    /// A process of a job, for as long as the job lives; no other job's on the same stores has the same name.
    Member,
    /// A store.
    StoreId,
    /// Which connection of which life of a process: it grows with both.
    Incarnation,
}

impl Incarnation {
    /// The first of a life of a process. Lives are numbered upwards, from 1, by whoever starts them.
    #[must_use]
    pub fn of_life(life: u32) -> Self {
        Incarnation(u64::from(life) << 32)
    }

    /// The next connection.
    #[must_use]
    pub fn next(self) -> Self {
        Incarnation(self.0 + 1)
    }

    /// The life of the process.
    #[must_use]
    pub fn life(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// One of the two slots of a compartment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// Both.
    pub const BOTH: [Slot; 2] = [Slot::A, Slot::B];

    /// Its place: 0 or 1.
    #[must_use]
    pub fn index(self) -> usize {
        self as usize
    }
}
