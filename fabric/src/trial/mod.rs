//! Whether a device's packet number is live: tried once, and remembered.
//!
//! `ibv_query_qp` returns the packet number that a responder expects next. Some devices answer with what
//! they do next, others with a copy that software made when the queue pair was connected; no attribute
//! says which. What a re-map may believe depends on it ([`sojourn_logging::replay`]), so it is tried: a
//! pair of queue pairs that are connected to each other, requests of every kind, and after each the number
//! must be what the arithmetic of packets says. (`cases` lists what is tried.)
//!
//! - *Whose verdict it is*: that of the kind of device, its vendor, part, hardware and firmware, and of
//!   the kernel, whose driver it is. It is kept in the user's cache (`cache`), and asked for there first;
//!   and by the process itself, which goes to another device of the kind without another trial.
//! - *Soft devices* are live by construction; the trial is a test of them, and is not run otherwise.
//! - *What no trial sees*: a fabric that places packets out of order (adaptive routing). There the number
//!   is a lower bound, and the user has to say so (`SOJOURN_EVIDENCE=record`).
//! - *A device that hangs* is not live; one on which the trial cannot be made (its port is down, it has no
//!   loopback) is not judged, and nothing is remembered.
//!
//! Called where a context of a job is opened, and by `sojourn devices` and `sojourn selftest`.

mod cache;
mod cases;
#[cfg(test)]
mod tests;

use crate::device::{DeviceContext, Kind};
use crate::error::Result;
use cache::{Cache, Key};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the whole trial may take: a device that has not answered by then hangs. (Hardware takes some
/// milliseconds, rxe on an emulated machine a second or two.)
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The number is what the responder has executed.
    Live,
    /// It is not.
    NotLive {
        /// What was tried.
        case: String,
        /// The number that it should have had.
        expected: u32,
        /// The number that it had; `None` where the device did not answer in time.
        found: Option<u32>,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Live => f.write_str("live"),
            Verdict::NotLive { case, expected, found: Some(found) } => {
                write!(f, "not live ({case}: {expected:#x} was expected, and {found:#x} found)")
            }
            Verdict::NotLive { case, expected, found: None } => {
                write!(f, "not live ({case}: {expected:#x} was expected, and no answer came)")
            }
        }
    }
}

/// A verdict, and when it was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What came of it.
    pub verdict: Verdict,
    /// Seconds since 1970; `None` where it needed no trial.
    pub tried: Option<u64>,
}

/// What this process has found out, for where there is no cache.
static FOUND: Mutex<Vec<(Key, Known)>> = Mutex::new(Vec::new());

fn found() -> MutexGuard<'static, Vec<(Key, Known)>> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known without a trial.
#[must_use]
pub fn known(device: &dyn DeviceContext) -> Option<Known> {
    if device.kind() != Kind::Soft
        && let Ok(key) = Key::of(device)
        && let Some((_, known)) = found().iter().find(|(of, _)| *of == key)
    {
        return Some(known.clone());
    }
    known_in(Cache::of_user().as_ref(), device)
}

fn known_in(cache: Option<&Cache>, device: &dyn DeviceContext) -> Option<Known> {
    if device.kind() == Kind::Soft {
        return Some(Known { verdict: Verdict::Live, tried: None });
    }
    cache?.look_up(&Key::of(device).ok()?)
}

/// What is known, or comes of a trial now; that is remembered where there is a place for it.
///
/// # Errors
/// Where the trial cannot be made.
pub fn find_out(device: &Arc<dyn DeviceContext>) -> Result<Known> {
    match known(&**device) {
        Some(known) => Ok(known),
        None => try_anew(device),
    }
}

/// Tries it, whatever is known.
///
/// # Errors
/// Where the trial cannot be made.
pub fn try_anew(device: &Arc<dyn DeviceContext>) -> Result<Known> {
    let known = try_in(Cache::of_user().as_ref(), device)?;
    let key = Key::of(&**device)?;
    let mut found = found();
    found.retain(|(of, _)| *of != key);
    found.push((key, known.clone()));
    Ok(known)
}

fn try_in(cache: Option<&Cache>, device: &Arc<dyn DeviceContext>) -> Result<Known> {
    let key = Key::of(&**device)?;
    let verdict = cases::run(device, PATIENCE)?;
    tracing::info!("{}: its packet number is {verdict}", device.name());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let found = Known { verdict, tried: Some(now) };
    // Of a soft one everybody knows.
    if device.kind() != Kind::Soft
        && let Some(cache) = cache
    {
        cache.store(&key, &found);
    }
    Ok(found)
}
