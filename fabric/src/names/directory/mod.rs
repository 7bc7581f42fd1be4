//! The directory of a job: process → (address, incarnation), and no more.
//!
//! [`Directory`] is what a process needs of it. Behind the trait stand the embedded server's
//! [`Client`], and [`LocalDirectory`] for programs of one process. The server's logic is
//! a state machine without IO, which both share; [`DirectoryServer`] is its shell.
//!
//! A process is in the job for as long as its connection to the directory stands, so that a crash
//! takes its name away without anybody's help. Ranks keep working when the directory dies: what
//! they looked up before stays usable, and a new look-up fails with an error that names it.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use super::error::Error;
use super::message::{Denial, Place};
use super::types::{Address, Grant, ProcessId, Whereabouts};

mod client;
mod local;
mod server;
mod state;

pub use client::Client;
pub use local::LocalDirectory;
pub use server::{DirectoryServer, ServerConfig};

/// What a directory has answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Directory::join`].
    Joined(Result<Grant, Error>),
    /// To [`Directory::lookup`]: where the process is; [`Error::NotYet`] and [`Error::Gone`] if it
    /// is not, and anything else if that can't be told.
    Found(ProcessId, Result<Whereabouts, Error>),
}

/// A directory as one process sees it. Owned and driven by one thread, never waiting itself: its
/// owner sleeps on [`fd`](Self::fd), calls [`drive`](Self::drive) when that is readable or
/// [`next_deadline`](Self::next_deadline) has come, and takes the answers until there is none.
/// Dropping it leaves the job.
pub trait Directory: Send {
    /// Which directory this is, for messages.
    fn place(&self) -> String;

    /// Readable whenever there is something to drive.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Joins the job, under the wanted number or the next free one. Once.
    fn join(&mut self, wanted: Option<ProcessId>, address: Address, now: Instant);

    /// Asks where a process is. With `until`, an answer that it has not joined yet is kept back
    /// until it joins, or until then.
    fn lookup(&mut self, process: ProcessId, until: Option<Instant>, now: Instant);

    /// Makes progress.
    fn drive(&mut self, now: Instant);

    /// When to drive at the latest.
    fn next_deadline(&self) -> Option<Instant>;

    /// The next answer. To be called until there is none, before the owner sleeps.
    fn next_answer(&mut self) -> Option<Answer>;
}

/// A refusal to let a process join, in words.
fn denied(denial: Denial, place: &str) -> Error {
    let problem = match denial {
        Denial::Alive(process) => return Error::AlreadyAlive { process, place: place.into() },
        Denial::Full => "it has no process numbers left",
        Denial::Twice => "this process has joined already",
    };
    Error::Directory { place: place.into(), problem: problem.into() }
}

/// The answer to a look-up, as its asker takes it.
fn found(process: ProcessId, found: Place, place: &str) -> Answer {
    let result = match found {
        Place::Here(here) => Ok(here),
        Place::NotYet => Err(Error::NotYet { process }),
        Place::Gone => Err(Error::Gone { process }),
        Place::Busy => Err(Error::Directory {
            place: place.into(),
            problem: "too many look-ups of this process wait for others to join".into(),
        }),
    };
    Answer::Found(process, result)
}
