//! Which contexts stand still in a pause.

use crate::{Error, Result};
use sojourn_fabric::virt::Context;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Contexts of one snapshot at most: far more than a process opens, and it bounds what a decoder makes of a number.
pub const MAX_CONTEXTS: usize = 256;

/// What of an attached context goes into an epoch, beside what its devices have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attach {
    /// Its windows: posted and not executed requests, receives, completions that nobody has taken, counters and names.
    /// Where they cannot be captured (the context is connected to others, say) there is no epoch.
    Windows,
    /// No more than that. After a restore the program makes the context anew.
    Memory,
}

#[derive(Clone)]
pub(super) struct Attached {
    pub(super) context: Context,
    pub(super) what: Attach,
}

/// The contexts that are attached: a list that a program and its [`Host`](super::Host) share.
#[derive(Clone, Default)]
pub struct Contexts(Arc<Mutex<Vec<Attached>>>);

impl Contexts {
    /// This context stands still in each pause that begins from now on. Its place in the order of attachment is its name in
    /// [`Windows`](super::Windows).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where it is not one of virtual verbs, or does not track what devices write (`SOJOURN_TRACK_WRITES`);
    /// `EINVAL` where it is attached already, or for more than [`MAX_CONTEXTS`].
    pub fn attach(&self, context: &Context, what: Attach) -> Result<()> {
        if !context.tracks_writes()? {
            let text = "this context does not track what devices write, and no kernel sees it: set \
                        SOJOURN_TRACK_WRITES=1, or Policy::tracking, before it is opened";
            return Err(Error::new(libc::EOPNOTSUPP, text));
        }
        let mut all = self.lock();
        if all.iter().any(|it| is_same(&it.context, context)) {
            return Err(Error::invalid("this context is attached already"));
        }
        if all.len() == MAX_CONTEXTS {
            return Err(Error::invalid(format!(
                "more than {MAX_CONTEXTS} contexts in one snapshot"
            )));
        }
        all.push(Attached { context: context.clone(), what });
        Ok(())
    }

    /// It does not stand still any more. Those that were attached later move up. False where it was not attached.
    pub fn detach(&self, context: &Context) -> bool {
        let mut all = self.lock();
        let before = all.len();
        all.retain(|it| !is_same(&it.context, context));
        all.len() < before
    }

    pub(super) fn now(&self) -> Vec<Attached> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same(one: &Context, other: &Context) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one.device()), Arc::as_ptr(other.device()))
}
