//! What writers, stores and the decider say to each other.

use super::{Epoch, Incarnation, Slot};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest reason of a refusal, in bytes: one sentence that names a limit.
pub const MAX_REASON: usize = 1024;

/// What is asked of a store about the compartment of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Request {
    /// This incarnation is going to write.
    Grant {
        /// Who asks. Older ones are fenced first.
        incarnation: Incarnation,
        /// Bytes of the compartment, both slots together.
        bytes: u64,
        /// The committed epoch that it knows of: what it was restored from, or has seen committed.
        committed: Epoch,
    },
    /// Older incarnations are to be fenced; what is there then?
    Claim {
        /// Who asks.
        incarnation: Incarnation,
    },
    /// What the slot of this epoch holds is to be held against its checksums.
    Check {
        /// Who asks.
        incarnation: Incarnation,
        /// Whose slot.
        epoch: Epoch,
    },
    /// This epoch is committed.
    Note {
        /// Who asks.
        incarnation: Incarnation,
        /// The epoch.
        epoch: Epoch,
    },
    /// The compartment is not needed any more.
    Release {
        /// Who asks.
        incarnation: Incarnation,
    },
    /// What is there? Changes nothing.
    Tell,
}

/// What a store holds of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holding {
    /// The newest incarnation that has asked for it.
    pub incarnation: Incarnation,
    /// Bytes of the compartment.
    pub bytes: u64,
    /// The epoch that is noted as committed. It need not be in a slot here.
    pub committed: Epoch,
    /// The words of both slots; [`Epoch::NONE`] where a slot is not complete.
    pub words: [Epoch; 2],
}

impl Holding {
    /// The slot that holds `epoch`.
    #[must_use]
    pub fn slot_of(&self, epoch: Epoch) -> Option<Slot> {
        Slot::BOTH.into_iter().find(|slot| epoch.is_some() && self.words[slot.index()] == epoch)
    }

    /// The largest epoch that it tells of.
    #[must_use]
    pub fn largest(&self) -> Epoch {
        self.committed.max(self.words[0]).max(self.words[1])
    }
}

/// What a store answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Request::Grant`].
    Granted(Holding),
    /// To [`Request::Claim`] and [`Request::Tell`]; `None` where there is no compartment.
    Told(Option<Holding>),
    /// To [`Request::Check`]: the slot of this epoch is whole.
    Checked(Epoch),
    /// To [`Request::Note`].
    Noted(Epoch),
    /// To [`Request::Release`].
    Released,
    /// Not yet: ask again. (An older incarnation is being fenced, or a slot is being read.)
    Wait,
    /// A newer incarnation has asked: this one.
    Stale(Incarnation),
    /// It cannot be done, and why.
    Refused(String),
}

/// A message past a limit, or one that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Malformed {}

impl Answer {
    /// Whether it is within the limits.
    ///
    /// # Errors
    /// The limit that it is past.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Answer::Refused(why) if why.len() > MAX_REASON => {
                Err(Malformed("the reason of a refusal is too long"))
            }
            Answer::Granted(holding) | Answer::Told(Some(holding))
                if holding.words[0] == holding.words[1] && holding.words[0].is_some() =>
            {
                Err(Malformed("two slots hold one epoch"))
            }
            _ => Ok(()),
        }
    }

    /// A refusal, shortened to what a message holds.
    #[must_use]
    pub fn refused(why: &str) -> Self {
        let end = (0..=why.len().min(MAX_REASON)).rev().find(|at| why.is_char_boundary(*at));
        Answer::Refused(why[..end.unwrap_or(0)].to_owned())
    }
}

/// Which decider: they are numbered upwards, and no number is given twice in a job. Whoever starts one
/// has the number from where incarnations come from.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Term(pub u32);

impl Term {
    /// The largest: an [`Epoch`] has 24 bits for it.
    pub const MAX: Term = Term((1 << 24) - 1);
}

/// What a decider tells a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Order {
    /// Which decider. Members do not listen to older ones.
    pub term: Term,
    /// Which life of the member: no other heeds it.
    pub to: Incarnation,
    /// What it says.
    pub word: Word,
}

/// What an [`Order`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Word {
    /// Tell where you stand.
    Ask,
    /// Write this epoch.
    Begin(Epoch),
    /// This epoch is committed.
    Commit(Epoch),
    /// This epoch is given up.
    Abort(Epoch),
}

/// Where a member stands. The whole of it each time, so that any may be lost or come twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The decider to whom it is told: nobody else may count it.
    pub term: Term,
    /// Which life of the member.
    pub incarnation: Incarnation,
    /// Grows with each report of an incarnation: a later one replaces an earlier.
    pub serial: u64,
    /// The largest epoch that it has heard of. What is not open and not larger it will never complete.
    pub largest: Epoch,
    /// The last one that it knows is committed.
    pub committed: Epoch,
    /// The one that it works on.
    pub open: Option<Open>,
}

/// An epoch that is not decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// Its number.
    pub epoch: Epoch,
    /// The member is complete, and waits for the decision.
    pub complete: bool,
}

impl Report {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self) -> Result<(), Malformed> {
        let open = self.open.map_or(Epoch::NONE, |open| open.epoch);
        if self.open.is_some() && open <= self.committed {
            return Err(Malformed("a report of an open epoch that is not past the committed one"));
        }
        if self.committed.max(open) > self.largest {
            return Err(Malformed("a report of an epoch past the largest one"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_contradicts_itself_is_refused() {
        let (three, four) = (Epoch(3), Epoch(4));
        let report = Report {
            term: Term(1),
            incarnation: Incarnation(1),
            serial: 1,
            largest: four,
            committed: three,
            open: Some(Open { epoch: four, complete: true }),
        };
        assert!(report.check().is_ok());
        assert!(Report { committed: four, ..report }.check().is_err());
        assert!(Report { largest: three, ..report }.check().is_err());
        let twice =
            Holding { incarnation: Incarnation(1), bytes: 0, committed: four, words: [four, four] };
        assert!(Answer::Granted(twice).check().is_err());
        assert!(Answer::Granted(Holding { words: [Epoch::NONE; 2], ..twice }).check().is_ok());
        assert!(Answer::Refused("x".repeat(MAX_REASON + 1)).check().is_err());
        assert!(Answer::refused(&"ä".repeat(MAX_REASON)).check().is_ok());
    }

    proptest! {
        /// Bytes of a stranger are decoded or refused, and never end a process.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(answer) = postcard::from_bytes::<Answer>(&bytes) {
                let _ = answer.check();
            }
            if let Ok(report) = postcard::from_bytes::<Report>(&bytes) {
                let _ = report.check();
            }
            let _ = postcard::from_bytes::<Request>(&bytes);
            let _ = postcard::from_bytes::<Order>(&bytes);
        }

        /// What is encoded is decoded.
        #[test]
        fn messages_survive_their_encoding(a in any::<u64>(), b in any::<u64>(), c in any::<u64>()) {
            let holding = Holding {
                incarnation: Incarnation(a), bytes: b, committed: Epoch(c), words: [Epoch(a), Epoch(b)],
            };
            let answer = Answer::Told(Some(holding));
            let bytes = postcard::to_stdvec(&answer).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Answer>(&bytes).unwrap(), answer);
            let request = Request::Grant { incarnation: Incarnation(a), bytes: b, committed: Epoch(c) };
            let bytes = postcard::to_stdvec(&request).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Request>(&bytes).unwrap(), request);
        }
    }
}
