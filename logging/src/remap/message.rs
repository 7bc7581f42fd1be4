//! What mover and follower say to each other. `E` is how a physical end is described; this crate
//! does not look into it.

use crate::replay::Executed;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most links in a group: an offer takes some 60 bytes, and a message holds 64 KiB.
pub const MAX_LINKS: usize = 256;
/// Longest reason of a refusal, in bytes: one sentence that names a limit.
pub const MAX_REASON: usize = 1024;

/// A group of one mover. Later groups have larger numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u64);

/// A new physical end of the mover's, for one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Offer<E> {
    /// The follower's virtual queue pair.
    pub qpn: u32,
    /// The mover's.
    pub mover_qpn: u32,
    /// The link's incarnation with this end; the one before was smaller.
    pub incarnation: u32,
    /// The mover's new end.
    pub end: E,
    /// Packet sequence number of the first packet that the mover will send.
    pub psn: u32,
}

/// The follower's new physical end, for one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Accept<E> {
    /// Its new end.
    pub end: E,
    /// Packet sequence number of the first packet that it will send.
    pub psn: u32,
}

/// One end of a link that is held, as its owner sees it at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldEnd {
    /// What it has executed so far of the other end's requests. Not final: more may have been by now.
    pub executed: Executed,
    /// It has no receive posted, and gets none while the hold lasts: a message that needs one does not land.
    pub starved: bool,
    /// It has failed, or been made to: of the last message that it sent, some may have landed and the rest never will.
    pub failed: bool,
}

/// One link of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldLink {
    /// The follower's virtual queue pair.
    pub qpn: u32,
    /// The holder's.
    pub holder_qpn: u32,
    /// How the holder's end stands.
    pub end: HeldEnd,
}

/// A WRITE with immediate data that goes on where it was cut: so many bytes had landed, which the
/// receiver adds to the length in the next receive completion of this link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cut {
    /// Place of the link in its group.
    pub link: u32,
    /// Bytes that had landed.
    pub landed: u32,
}

/// What the mover asks of a follower about a group.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Request<E> {
    /// Make new queue pairs, connected to these ends; hand nothing to them.
    Prepare {
        /// One for each link.
        links: Vec<Offer<E>>,
    },
    /// Hand nothing more; is anything under way?
    Quiesce,
    /// The mover's old queue pairs execute nothing more: take down the old ones, and go on with the new.
    Switch {
        /// What the mover has executed, link by link.
        executed: Vec<Executed>,
    },
    /// All is done; and these requests of the mover's go on where they were cut.
    Finish {
        /// Of few links, if any.
        cuts: Vec<Cut>,
    },
    /// Forget it: go on as before.
    Abort,
    /// Hand nothing on these links until [`Request::Finish`] comes; is anything still to be executed? Asked
    /// again until nothing is, and then now and then, so that it stays so.
    Hold {
        /// One for each link; the same links each time.
        links: Vec<HeldLink>,
    },
}

/// What a follower answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Answer<E> {
    /// To [`Request::Prepare`]: one for each link; `None` where its queue pair is gone.
    Prepared(Vec<Option<Accept<E>>>),
    /// It is moving itself: later.
    Busy,
    /// It cannot follow, and why.
    Refused(String),
    /// To [`Request::Quiesce`]: whether nothing is under way.
    Quiet(bool),
    /// To [`Request::Hold`].
    Still {
        /// Nothing that the follower has handed will be executed any more.
        still: bool,
        /// How its ends stand, link by link; `None` where its queue pair is gone.
        ends: Vec<Option<HeldEnd>>,
    },
    /// To [`Request::Switch`]: the barrier is not passed yet; ask again.
    Switching,
    /// To [`Request::Switch`]: it has gone over.
    Switched {
        /// What it has executed of the mover's requests, link by link.
        executed: Vec<Executed>,
        /// Requests of its own that were cut.
        cuts: Vec<Cut>,
    },
    /// To [`Request::Finish`].
    Finished,
    /// To [`Request::Abort`].
    Aborted,
    /// It knows no such group: it never did, or has given it up.
    Unknown,
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

fn at_most(n: usize, most: usize, what: &'static str) -> Result<(), Malformed> {
    if n <= most { Ok(()) } else { Err(Malformed(what)) }
}

fn check_cuts(cuts: &[Cut]) -> Result<(), Malformed> {
    at_most(cuts.len(), MAX_LINKS, "number of requests that were cut")?;
    let within = cuts.iter().all(|cut| (cut.link as usize) < MAX_LINKS);
    if within {
        Ok(())
    } else {
        Err(Malformed("a request that was cut, on a link beyond the group"))
    }
}

impl<E> Request<E> {
    /// Whether it is within the limits.
    ///
    /// # Errors
    /// The limit that it is past.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Request::Prepare { links } => at_most(links.len(), MAX_LINKS, "number of links"),
            Request::Switch { executed } => at_most(executed.len(), MAX_LINKS, "number of links"),
            Request::Finish { cuts } => check_cuts(cuts),
            Request::Hold { links } => at_most(links.len(), MAX_LINKS, "number of links"),
            Request::Quiesce | Request::Abort => Ok(()),
        }
    }
}

impl<E> Answer<E> {
    /// Whether it is within the limits.
    ///
    /// # Errors
    /// The limit that it is past.
    pub fn check(&self) -> Result<(), Malformed> {
        match self {
            Answer::Prepared(links) => at_most(links.len(), MAX_LINKS, "number of links"),
            Answer::Still { ends, .. } => at_most(ends.len(), MAX_LINKS, "number of links"),
            Answer::Refused(why) => at_most(why.len(), MAX_REASON, "length of a refusal"),
            Answer::Switched { executed, cuts } => {
                at_most(executed.len(), MAX_LINKS, "number of links")?;
                check_cuts(cuts)
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
