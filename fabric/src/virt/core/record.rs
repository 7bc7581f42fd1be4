//! Words into which peers record how far they have come.
//!
//! Where a device's packet number is not live, each reliable queue pair of ours on it has a word, and its
//! peer writes into that how many of its requests it has sent ([`sojourn_logging::replay`] says what
//! that proves). Words lie side by side on pages of their protection domain; a page is registered on each
//! device where one of its words is kept, and a word stays in its place for the life of its queue pair.
//!
//! Who may write there: whoever has the key, which is told to peers of the job alone, and is as good as
//! any other key of the domain. A queue pair's own access flags stay what the program made them: a record
//! goes behind WRITEs only, which the peer's queue pair has let through; one that lets no WRITEs in is
//! never recorded to. (A program that takes the right to write away from a connected queue pair, while
//! its peer writes, may lose the connection by the record instead of by a WRITE.)
//!
//! Called by the queue pairs of a domain, on the control path, and when they are told to say how far they
//! have come.

use super::lock_mutex;
use crate::abi::access;
use crate::device::{DeviceMr, DevicePd};
use crate::error::Result;
use crate::names::{DeviceId, RecordWord};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes of a record.
pub(super) const RECORD_BYTES: u32 = 8;
/// Words on a page: one of the processor's, so that registering pins nothing else.
const WORDS: usize = 512;

#[repr(C, align(4096))]
struct Words([AtomicU64; WORDS]);

/// Words of one protection domain. Pages come as they are needed, and stay as long as it does.
#[derive(Default)]
pub(super) struct Records(Mutex<Vec<Arc<Page>>>);

struct Page {
    words: ManuallyDrop<Box<Words>>,
    /// Bit by bit, which are somebody's.
    taken: Mutex<[u64; WORDS / 64]>,
    on: Mutex<Vec<(DeviceId, Arc<dyn DeviceMr>)>>,
}

/// A queue pair's word.
pub(super) struct Word {
    page: Arc<Page>,
    at: usize,
}

impl Records {
    /// A word that is nobody's, holding 0.
    pub(super) fn take(&self) -> Word {
        let mut pages = lock_mutex(&self.0);
        let free = pages.iter().find_map(|page| Some((page, page.take()?)));
        let (page, at) = match free {
            Some((page, at)) => (Arc::clone(page), at),
            None => {
                let page = Arc::new(Page::new());
                pages.push(Arc::clone(&page));
                let at = page.take().unwrap_or_else(|| unreachable!("a new page has room"));
                (page, at)
            }
        };
        let word = Word { page, at };
        word.clear();
        word
    }

    /// None is kept on that device any more.
    pub(super) fn retract(&self, device: DeviceId) {
        for page in lock_mutex(&self.0).iter() {
            lock_mutex(&page.on).retain(|(on, mr)| *on != device || page.let_go(&**mr).is_err());
        }
    }
}

impl Page {
    fn new() -> Self {
        let words = Box::new(Words([const { AtomicU64::new(0) }; WORDS]));
        Page { words: ManuallyDrop::new(words), taken: Mutex::default(), on: Mutex::default() }
    }

    fn take(&self) -> Option<usize> {
        let mut taken = lock_mutex(&self.taken);
        let (i, bits) = taken.iter_mut().enumerate().find(|(_, bits)| **bits != u64::MAX)?;
        let bit = bits.trailing_ones() as usize;
        *bits |= 1 << bit;
        Some(i * 64 + bit)
    }

    fn let_go(&self, mr: &dyn DeviceMr) -> Result<()> {
        mr.dereg().inspect_err(|error| {
            tracing::warn!("a page of records stays registered on a device: {error}");
        })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let on = std::mem::take(&mut *lock_mutex(&self.on));
        // A device that does not let go of it may write there at any time.
        if on.iter().all(|(_, mr)| self.let_go(&**mr).is_ok()) {
            // SAFETY: nothing of it is used after this.
            unsafe { ManuallyDrop::drop(&mut self.words) };
        }
    }
}

impl Word {
    fn word(&self) -> &AtomicU64 {
        &self.page.words.0[self.at]
    }

    /// Is kept on that device, of which this is the domain, from now on.
    ///
    /// # Errors
    /// As [`DevicePd::reg_mr`].
    pub(super) fn keep_on(&self, device: DeviceId, pd: &Arc<dyn DevicePd>) -> Result<()> {
        let mut on = lock_mutex(&self.page.on);
        if on.iter().any(|(known, _)| *known == device) {
            return Ok(());
        }
        let flags = access::LOCAL_WRITE | access::REMOTE_WRITE;
        let addr = self.page.words.0.as_ptr().cast_mut().cast();
        let length = size_of::<Words>();
        // SAFETY: a page of atomics, which is freed only after the region is gone.
        let mr = unsafe { Arc::clone(pd).reg_mr(addr, length, flags) }?;
        on.push((device, mr));
        Ok(())
    }

    /// How a peer reaches it on that device; `None` where it is not kept.
    pub(super) fn on(&self, device: DeviceId) -> Option<RecordWord> {
        let on = lock_mutex(&self.page.on);
        let (_, mr) = on.iter().find(|(known, _)| *known == device)?;
        Some(RecordWord { addr: self.word().as_ptr() as u64, rkey: mr.rkey() })
    }

    /// Where it is in our memory.
    pub(super) fn address(&self) -> u64 {
        self.word().as_ptr() as u64
    }

    /// A connection begins.
    pub(super) fn clear(&self) {
        self.word().store(0, Ordering::Release);
    }

    /// What the peer has recorded.
    pub(super) fn recorded(&self) -> u64 {
        u64::from_le(self.word().load(Ordering::Acquire))
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        lock_mutex(&self.page.taken)[self.at / 64] &= !(1 << (self.at % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Promise: no two queue pairs have one word, and one that is used again says nothing of before.
    #[test]
    fn words_are_one_for_each() {
        let records = Records::default();
        let mut words: Vec<Word> = (0..2 * WORDS + 1).map(|_| records.take()).collect();
        let places = |words: &[Word]| -> HashSet<usize> {
            words.iter().map(|word| word.word().as_ptr() as usize).collect()
        };
        assert_eq!(places(&words).len(), words.len());
        assert!(places(&words).iter().all(|place| place % 8 == 0));
        words[WORDS].word().store(7_u64.to_le(), Ordering::Relaxed);
        assert_eq!(words[WORDS].recorded(), 7);
        let place = words[WORDS].word().as_ptr();
        drop(words.swap_remove(WORDS));
        let again = records.take();
        assert_eq!((again.word().as_ptr(), again.recorded()), (place, 0));
        assert_eq!(lock_mutex(&records.0).len(), 3, "pages are used again");
    }
}
