//! What does not fit into a queue pair's share of what may be outstanding waits in its window.
//!
//! A poster that finds the share taken appends, and leaves a note with the send CQ. Whoever polls that
//! hands what waits as soon as a quarter of the share is free. A program that does not poll, because it
//! watches memory for instance, is kept going by the service thread, which looks each
//! [`TICK`] as long as there is a note. (It does not arm the physical CQ instead: its one event is the
//! program's.)

use super::{Blocked, QpCore, SendSide};
use crate::virt::core::cq::CqCore;
use sojourn_logging::{Counted, SMALL};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often the service thread looks while a share is taken: with the default share a queue pair that
/// it alone keeps going hands 16 MiB in this time, which is more than 100 Gb/s carry.
pub(in crate::virt::core) const TICK: Duration = Duration::from_millis(1);

/// Whether a request may be handed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    Yes,
    /// Yes, and it must bring a completion, asked for or not: by that we learn that there is room again.
    WithCompletion,
    /// Not before something completes.
    No,
}

impl QpCore {
    /// Whether the request `seq` of `length` bytes, the next to be handed, may be.
    #[inline]
    pub(super) fn admit(&self, side: &mut SendSide, seq: u64, length: u64) -> Admission {
        let small = length <= u64::from(SMALL);
        if self.send.is_granted(seq) && (small || side.grant.take(length as u32)) {
            return Admission::Yes;
        }
        self.count(side, seq, length)
    }

    #[cold]
    fn count(&self, side: &mut SendSide, seq: u64, length: u64) -> Admission {
        let share = self.pd.context.share();
        // Before it is counted: what completes meanwhile makes room.
        let retired = self.send.retired();
        match self.send.count(&mut side.grant, share, seq, length) {
            Counted::Granted if side.grant.is_short() => {
                // Its event is none of the program's.
                if let Some(cq) = self.send_cq.upgrade() {
                    cq.doubt();
                }
                Admission::WithCompletion
            }
            Counted::Granted => Admission::Yes,
            Counted::Full => {
                self.full_at.store(retired, Ordering::Relaxed);
                Admission::No
            }
        }
    }

    /// Leaves a note with the send CQ. Something is outstanding, and brings a completion.
    #[cold]
    pub(super) fn wait_for_room(&self) {
        if let Some(cq) = self.send_cq.upgrade()
            && !self.waits_for_room.swap(true, Ordering::AcqRel)
        {
            cq.wait_for_room(self.weak());
        }
    }

    /// Hands what waits for room, where something has completed since. False where nothing has, and the
    /// note is to stay.
    pub(in crate::virt::core) fn use_room(&self) -> bool {
        if self.send.retired() == self.full_at.load(Ordering::Relaxed) && !self.is_dead() {
            return false;
        }
        // Before it is looked, so that whoever finds no room again leaves another note.
        self.waits_for_room.store(false, Ordering::Release);
        if let Blocked::By(missing) = self.push() {
            missing.resolve(self);
        }
        true
    }
}

impl CqCore {
    /// Looks in the program's stead, now and again, while queue pairs wait for room.
    pub(in crate::virt::core) fn keep_going(self: &Arc<Self>) {
        let cq = Arc::downgrade(self);
        let look = move || {
            if let Some(cq) = cq.upgrade()
                && cq.look_for_room()
            {
                cq.keep_going();
            }
        };
        self.local().resolver().run_later(Instant::now() + TICK, Box::new(look));
    }
}
