//! The objects that programs hold: the C struct in front, and what it stands for behind it.
//!
//! A program reads fields of the struct (`qp->qp_num`, `mr->lkey`) and hands the pointer back. So
//! nothing here ever makes a reference to the front part; what is behind is reached by [`body`],
//! shared by all threads of the program, and lives until [`take`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

#[repr(C)]
struct Object<A: Handed> {
    front: A,
    body: A::Body,
}

/// A C struct that programs are given pointers to.
pub(crate) trait Handed: Sized {
    /// What stands behind it.
    type Body: Send + Sync;
}

/// Makes an object for the program.
pub(crate) fn give<A: Handed>(front: A, body: A::Body) -> *mut A {
    Box::into_raw(Box::new(Object { front, body })).cast()
}

/// What stands behind an object.
///
/// # Safety
/// `object` came from [`give`], and is not taken while the result is in use.
pub(crate) unsafe fn body<'a, A: Handed>(object: *mut A) -> &'a A::Body {
    // SAFETY: the caller's promise: this is the front of a whole object, and it lives.
    unsafe { &(*object.cast::<Object<A>>()).body }
}

/// Ends an object: the program has destroyed it.
///
/// # Safety
/// `object` came from [`give`], and nobody uses it any more.
pub(crate) unsafe fn take<A: Handed>(object: *mut A) {
    // SAFETY: the caller's promise; `give` made it by `Box`.
    drop(unsafe { Box::from_raw(object.cast::<Object<A>>()) });
}

/// How many objects were created from this one: while there are any it cannot be destroyed.
#[derive(Default)]
pub(crate) struct Users(Arc<AtomicU32>);

impl Users {
    /// One more, until the result is dropped.
    pub(crate) fn enter(&self) -> User {
        self.0.fetch_add(1, Ordering::Relaxed);
        User(Arc::clone(&self.0))
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }
}

/// One that was created from another.
pub(crate) struct User(Arc<AtomicU32>);

impl Drop for User {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}
