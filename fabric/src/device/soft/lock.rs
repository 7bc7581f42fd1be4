//! Locks for short critical sections, without poisoning.
//!
//! A [`Lock`] costs one atomic read-modify-write to take and a plain store to release, half of
//! what a mutex that parks costs; a small message passes half a dozen of them. Who finds it taken
//! spins, then yields, then sleeps a little: holders do at most one copy, or wait for a peer.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// A lock around a value.
#[derive(Default)]
pub(super) struct Lock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time, through a guard.
unsafe impl<T: Send> Send for Lock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Lock<T> {}

/// Holds a [`Lock`] until it is dropped.
pub(super) struct Guard<'a, T> {
    lock: &'a Lock<T>,
    /// Guards stay on their thread.
    _local: std::marker::PhantomData<*const ()>,
}

impl<T> Lock<T> {
    pub(super) fn new(value: T) -> Self {
        Lock { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(super) fn lock(&self) -> Guard<'_, T> {
        match self.try_lock() {
            Some(guard) => guard,
            None => self.wait(),
        }
    }

    /// The guard, unless another thread holds it now.
    #[inline]
    pub(super) fn try_lock(&self) -> Option<Guard<'_, T>> {
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        Some(Guard { lock: self, _local: std::marker::PhantomData })
    }

    #[cold]
    fn wait(&self) -> Guard<'_, T> {
        let mut round = 0u32;
        loop {
            match round {
                0..100 => std::hint::spin_loop(),
                100..200 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
            round += 1;
            if !self.taken.load(Ordering::Relaxed)
                && let Some(guard) = self.try_lock()
            {
                return guard;
            }
        }
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is ours while the guard lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.taken.store(false, Ordering::Release);
    }
}

/// A table that many read and few change.
#[derive(Default)]
pub(super) struct Table<T>(RwLock<T>);

impl<T> Table<T> {
    #[inline]
    pub(super) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever many threads do under the lock adds up.
    #[test]
    fn one_thread_at_a_time() {
        let lock = Lock::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let mut value = lock.lock();
                        *value = std::hint::black_box(*value) + 1;
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), 40_000);
        let held = lock.lock();
        assert!(lock.try_lock().is_none());
        assert!(lock.try_lock().is_none(), "who is turned away does not release it");
        drop(held);
        assert!(lock.try_lock().is_some());
    }
}
