//! Locks of the data path.
//!
//! A virtual queue pair's send side, its receive side and a CQ have one lock each; the physical
//! objects under them have none. [`SpinLock`] costs one atomic exchange and a plain store, where a
//! mutex that can sleep costs two exchanges. [`Side`] puts it in front of data, and leaves it out where the
//! program promised to be single-threaded, except while somebody else has work there.

use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};

/// Rounds of waiting before a waiter lets others run: the holder may need this very core.
const SPINS_BEFORE_YIELD: u32 = 100;

/// A lock that is held for some dozens of instructions.
#[derive(Default)]
pub(super) struct SpinLock {
    held: AtomicBool,
}

impl SpinLock {
    #[inline]
    pub(super) fn lock(&self) {
        if self.held.swap(true, Ordering::Acquire) {
            self.wait();
        }
    }

    #[cold]
    fn wait(&self) {
        let mut spins = 0;
        loop {
            while self.held.load(Ordering::Relaxed) {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
            if !self.held.swap(true, Ordering::Acquire) {
                return;
            }
        }
    }

    #[inline]
    pub(super) fn unlock(&self) {
        self.held.store(false, Ordering::Release);
    }
}

/// Bits of a [`Side`]'s gate. With any of them set even a single-threaded user takes the lock.
pub(super) mod gate {
    /// Entries of the window wait for a name; the service thread may push them.
    pub(in super::super) const BLOCKED: u32 = 1;
    /// Nothing is handed any more: entries are completed by us.
    pub(in super::super) const FAILED: u32 = 2;
    /// The physical queue pair was seen in ERR.
    pub(in super::super) const ERR: u32 = 4;
    /// No physical queue pair is attached: entries are only appended.
    pub(in super::super) const SUSPENDED: u32 = 64;
    /// With one of these set, threads other than the user may enter.
    pub(in super::super) const SHARED: u32 = BLOCKED | FAILED | SUSPENDED;
    /// A CQ: its backlog or its graves hold something. Lets nobody in.
    pub(in super::super) const ATTENTION: u32 = 8;
    /// Thread-safe, for life: so that one look at the gate tells all that stands in the way of
    /// entering without the lock.
    pub(super) const LOCKED: u32 = 16;
    /// Its requests never are of the kind that the short way is for, or are more than that: for life.
    pub(in super::super) const ODD: u32 = 32;
    /// What says nothing of the moment.
    pub(super) const FOR_LIFE: u32 = LOCKED | ODD;
    /// The upper half counts those who are about to enter though the side is its user's alone.
    pub(super) const VISITOR: u32 = 1 << 16;
    /// What stands in the way of a request, rather than of the lock.
    pub(super) const IN_THE_WAY: u32 = (VISITOR - 1) & !FOR_LIFE;
}

/// Whether a thread can make every other one of this process see what it has written, without
/// their help: `membarrier(2)`, private and expedited (Linux 4.14).
fn can_fence_others() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED))
}

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: it takes numbers, and touches no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// One side of a queue pair (or a CQ): data of type `T` behind a lock.
///
/// Where it is single-threaded, its user (the one thread that the program promised) enters without
/// the lock while the gate is 0. Another thread enters only while a bit of [`gate::SHARED`] is
/// set, under the lock. These bits are set by the user inside, as the last thing before it leaves
/// ([`Guard::share`]), or under the lock; they are cleared under the lock. So user and others
/// never are inside at once, and each sees what the other wrote: by the lock, or by the release
/// store and the acquire load of the gate.
///
/// Whoever cannot wait for a bit to be set ([`Side::visit`]: a re-map, which comes when it comes)
/// counts itself in the gate's upper half, makes every thread see that by `membarrier(2)`, and waits
/// until the user is not `inside`. The user says that it is inside before it looks at the gate: so
/// either it sees the visitor, or the visitor sees it. All the cost is the visitor's: to the user
/// these are two plain stores.
pub(super) struct Side<T> {
    gate: AtomicU32,
    /// The user has entered without the lock.
    inside: AtomicBool,
    lock: SpinLock,
    data: UnsafeCell<T>,
}

// SAFETY: the data is reached through guards alone, which exclude each other (see above; that a
// single-threaded side has one user is the promise of whoever made it so).
unsafe impl<T: Send> Sync for Side<T> {}

impl<T> Side<T> {
    pub(super) fn new(data: T, single_threaded: bool) -> Self {
        let bare = single_threaded && can_fence_others();
        Side {
            gate: AtomicU32::new(if bare { 0 } else { gate::LOCKED }),
            inside: AtomicBool::new(false),
            lock: SpinLock::default(),
            data: UnsafeCell::new(data),
        }
    }

    /// Sends its user the long way for life: [`Side::enter_bare`] lets nobody in, and
    /// [`Guard::is_clear`] is never true.
    pub(super) fn odd(mut self) -> Self {
        *self.gate.get_mut() |= gate::ODD;
        self
    }

    /// Enters as the user.
    #[inline]
    pub(super) fn enter(&self) -> Guard<'_, T> {
        let bare = self.enter_if(!gate::ODD);
        if !bare {
            self.lock.lock();
        }
        Guard { side: self, locked: !bare, visiting: false }
    }

    /// Enters without the lock, unless one of these bits is set.
    #[inline]
    fn enter_if(&self, none_of: u32) -> bool {
        // Where there is a lock for life it says nothing, and nobody asks.
        self.inside.store(true, Ordering::Relaxed);
        // The processor may swap the two; the visitor's membarrier is against that.
        compiler_fence(Ordering::SeqCst);
        let bare = self.gate.load(Ordering::Acquire) & none_of == 0;
        if !bare {
            self.inside.store(false, Ordering::Release);
        }
        bare
    }

    /// Enters as the user without the lock, where that is allowed right now. The short way of
    /// every request: it has nothing to give back, and keeps no account of whether it has.
    #[inline]
    pub(super) fn enter_bare(&self) -> Option<Bare<'_, T>> {
        self.enter_if(u32::MAX).then(|| Bare { side: self })
    }

    /// Enters as somebody else, whatever the user does. Not for a thread that is inside already.
    pub(super) fn visit(&self) -> Guard<'_, T> {
        let visiting = self.gate.load(Ordering::Relaxed) & gate::LOCKED == 0;
        if visiting {
            self.gate.fetch_add(gate::VISITOR, Ordering::SeqCst);
            let fenced = membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
            debug_assert!(fenced, "registered when the side was made");
            let mut spins = 0;
            while self.inside.load(Ordering::Acquire) {
                spins += 1;
                if spins < SPINS_BEFORE_YIELD {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
            }
        }
        self.lock.lock();
        Guard { side: self, locked: true, visiting }
    }

    /// Enters as somebody else: `None` where the side is its user's alone.
    pub(super) fn enter_shared(&self) -> Option<Guard<'_, T>> {
        self.lock.lock();
        let guard = Guard { side: self, locked: true, visiting: false };
        let open = self.gate.load(Ordering::Acquire) & (gate::LOCKED | gate::SHARED) != 0;
        open.then_some(guard)
    }

    /// It has one user, who leaves out the lock.
    pub(super) fn is_single_threaded(&self) -> bool {
        self.gate.load(Ordering::Relaxed) & gate::LOCKED == 0
    }

    /// What is in the way.
    #[inline]
    pub(super) fn gate(&self) -> u32 {
        self.gate.load(Ordering::Acquire) & gate::IN_THE_WAY
    }

    /// Sets the bit [`gate::ERR`] or [`gate::ATTENTION`], which let nobody in: anybody may.
    pub(super) fn note(&self, bit: u32) {
        debug_assert!(bit & (gate::FOR_LIFE | gate::SHARED) == 0);
        self.gate.fetch_or(bit, Ordering::Release);
    }

    /// Takes back what anybody noted.
    pub(super) fn unnote(&self, bit: u32) {
        debug_assert!(bit & (gate::FOR_LIFE | gate::SHARED) == 0);
        self.gate.fetch_and(!bit, Ordering::Release);
    }
}

/// Being inside.
pub(super) struct Guard<'a, T> {
    side: &'a Side<T>,
    locked: bool,
    visiting: bool,
}

impl<T> Guard<'_, T> {
    /// What is in the way.
    #[inline]
    pub(super) fn gate(&self) -> u32 {
        self.side.gate.load(Ordering::Relaxed) & gate::IN_THE_WAY
    }

    /// Nothing is in the way of the short way.
    #[inline]
    pub(super) fn is_clear(&self) -> bool {
        self.side.gate.load(Ordering::Relaxed) & !gate::LOCKED == 0
    }

    /// Sets bits of the gate, and leaves.
    #[cold]
    pub(super) fn share(self, bits: u32) {
        self.side.gate.fetch_or(bits, Ordering::Release);
    }

    /// Sets bits of the gate, and stays: only under the lock.
    pub(super) fn set(&mut self, bits: u32) {
        if !self.locked {
            // Nobody holds it: a visitor waits until we are not inside.
            self.side.lock.lock();
            self.locked = true;
            self.side.inside.store(false, Ordering::Release);
        }
        self.side.gate.fetch_or(bits, Ordering::Release);
    }

    /// Clears bits of the gate.
    pub(super) fn clear(&mut self, bits: u32) {
        self.side.gate.fetch_and(!bits, Ordering::Release);
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: guards exclude each other, see `Side`.
        unsafe { &*self.side.data.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: guards exclude each other, see `Side`.
        unsafe { &mut *self.side.data.get() }
    }
}

/// Being inside without the lock.
pub(super) struct Bare<'a, T> {
    side: &'a Side<T>,
}

impl<T> Deref for Bare<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the user is inside, alone, see `Side`.
        unsafe { &*self.side.data.get() }
    }
}

impl<T> DerefMut for Bare<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the user is inside, alone, see `Side`.
        unsafe { &mut *self.side.data.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.visiting {
            // Before the lock goes: the user then finds the gate as it is to be.
            self.side.gate.fetch_sub(gate::VISITOR, Ordering::Release);
        }
        if self.locked {
            self.side.lock.unlock();
        } else {
            self.side.inside.store(false, Ordering::Release);
        }
    }
}

impl<T> Drop for Bare<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.side.inside.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Promise: the sides of a queue pair are thread-safe as verbs are.
    #[test]
    fn users_exclude_each_other() {
        let side = Arc::new(Side::new(0u64, false));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let side = Arc::clone(&side);
                std::thread::spawn(move || {
                    for _ in 0..20_000 {
                        *side.enter() += 1;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*side.enter(), 60_000);
    }

    /// Promise: nobody but its user enters a single-threaded side, unless the user shared it.
    #[test]
    fn a_single_threaded_side_is_its_users_alone_until_shared() {
        let side = Side::new(0u64, true);
        assert!(side.enter_shared().is_none());
        side.enter().share(gate::BLOCKED);
        {
            let mut other = side.enter_shared().unwrap();
            *other += 1;
            other.clear(gate::BLOCKED);
        }
        assert!(side.enter_shared().is_none());
        side.note(gate::ERR);
        assert!(side.enter_shared().is_none(), "ERR is a hint, and lets nobody in");
        assert_eq!(*side.enter(), 1);
    }

    /// Promise: a re-map enters a side whose user asks nobody, and the two never meet.
    #[test]
    fn a_visitor_and_the_user_never_meet() {
        const ROUNDS: u64 = 20_000;
        let side = Arc::new(Side::new((0u64, 0u64), true));
        let visitor = {
            let side = Arc::clone(&side);
            std::thread::spawn(move || {
                for _ in 0..ROUNDS / 10 {
                    let mut inside = side.visit();
                    inside.0 += 1;
                    inside.1 += 1;
                }
            })
        };
        for _ in 0..ROUNDS {
            if let Some(mut inside) = side.enter_bare() {
                inside.0 += 1;
                inside.1 += 1;
            } else {
                let mut inside = side.enter();
                inside.0 += 1;
                inside.1 += 1;
            }
        }
        visitor.join().unwrap();
        assert!(side.enter_bare().is_some(), "the user asks nobody again");
        let inside = side.enter();
        assert_eq!((inside.0, inside.1), (ROUNDS + ROUNDS / 10, ROUNDS + ROUNDS / 10));
    }

    /// Promise: a user and the service thread, which take turns by the gate, never meet.
    #[test]
    fn user_and_service_take_turns() {
        const ROUNDS: u64 = 20_000;
        let side = Arc::new(Side::new((0u64, 0u64), true));
        let service = {
            let side = Arc::clone(&side);
            std::thread::spawn(move || {
                let mut done = 0;
                while done < ROUNDS {
                    let Some(mut inside) = side.enter_shared() else {
                        std::thread::yield_now();
                        continue;
                    };
                    inside.0 += 1;
                    inside.1 += 1;
                    done += 1;
                    inside.clear(gate::BLOCKED);
                }
            })
        };
        for _ in 0..ROUNDS {
            let mut inside = side.enter();
            inside.0 += 1;
            inside.1 += 1;
            inside.share(gate::BLOCKED);
            while side.gate() != 0 {
                std::thread::yield_now();
            }
        }
        service.join().unwrap();
        let inside = side.enter();
        assert_eq!((inside.0, inside.1), (2 * ROUNDS, 2 * ROUNDS));
    }
}
