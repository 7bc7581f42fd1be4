//! What a case is, and how it ends.

use crate::side::Side;
use serde::Serialize;
use std::fmt;
use std::panic::Location;

/// One thing that a device must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// `group.what`, unique.
    pub name: &'static str,
    /// What it guards, in one sentence, with the source of the rule.
    pub guards: &'static str,
    /// What runs.
    pub body: Body,
}

/// The program of a case.
#[derive(Clone, Copy)]
pub enum Body {
    /// It needs one side alone.
    One(fn(&mut Side) -> Verdict),
    /// It needs two, which run at the same time: first the active one.
    Two(fn(&mut Side) -> Verdict, fn(&mut Side) -> Verdict),
}

/// What the steps of a case return.
pub type Verdict<T = ()> = Result<T, Stop>;

/// Why a case stops before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The device did something else than it must.
    Failed(String),
    /// The device lacks what the case is about.
    NotApplicable(String),
    /// The other side has stopped; its own outcome says why.
    Abandoned(String),
}

impl Stop {
    /// A failure, with the line of the case that found it.
    #[track_caller]
    pub fn failed(message: impl fmt::Display) -> Self {
        Stop::Failed(format!("{}: {message}", place(Location::caller())))
    }
}

impl From<sojourn_fabric::Error> for Stop {
    #[track_caller]
    fn from(error: sojourn_fabric::Error) -> Self {
        Stop::failed(error)
    }
}

/// A line of a case in few words: `rc.rs:88`.
pub(crate) fn place(at: &Location<'_>) -> String {
    let file = at.file().rsplit(['/', '\\']).next().unwrap_or_default();
    format!("{file}:{}", at.line())
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "message", rename_all = "snake_case")]
pub enum Outcome {
    /// As it must.
    Passed,
    /// The device lacks what the case is about, for this reason.
    NotApplicable(String),
    /// Otherwise.
    Failed(String),
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Ok(()) => Outcome::Passed,
            Err(Stop::NotApplicable(reason)) => Outcome::NotApplicable(reason),
            Err(Stop::Failed(message) | Stop::Abandoned(message)) => Outcome::Failed(message),
        }
    }
}
