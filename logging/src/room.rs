//! How much of a window may be physically outstanding: a re-map waits for what is, so this bounds the
//! time that a quiesce takes, whatever depth the program asked for.
//!
//! What does not fit stays in the window, appended and not handed, and goes out as completions come.
//! A queue pair's share is its own: what is stuck on one (a SEND that finds no receive) takes nothing
//! from another, so the message that would free it is never behind it. And one request may always be
//! outstanding, however long it is. Hence nothing waits for ever that a plain queue pair would not
//! make wait for ever.
//!
//! To count is to add up what is outstanding, which takes a look at each request. It is not done
//! for each request, but for a *grant* at a time: so many requests of at most [`SMALL`] bytes, and so many
//! bytes of longer ones. A count grants nothing while less than a quarter of the share is free;
//! so each request is looked at a few times at most.

use crate::send::SendWindow;

/// Longest request, in bytes, that is not accounted for by its length: it counts as long as this.
/// One page: shorter messages cost a wire their headers, not their bytes.
pub const SMALL: u32 = 4096;

/// The share of one queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Bytes, both ways.
    pub bytes: u64,
    /// Requests.
    pub requests: u64,
}

/// What may be handed before it is counted again: the producer's.
#[derive(Debug, Default)]
pub struct Grant {
    /// Bytes of requests longer than [`SMALL`].
    long: u64,
    /// It ends before the window does.
    is_short: bool,
}

impl Grant {
    /// Takes a request's bytes out of the grant. False where there are not so many.
    #[inline]
    #[must_use]
    pub fn take(&mut self, length: u32) -> bool {
        let enough = self.long >= u64::from(length);
        if enough {
            self.long -= u64::from(length);
        }
        enough
    }

    /// It ran out, or will, before the window does: so a completion must come for one of its requests,
    /// whatever the program asked for, or nothing would tell that there is room again.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.is_short
    }
}

/// What became of a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The next request may be handed, and the grant is filled anew.
    Granted,
    /// Too much is outstanding.
    Full,
}

impl SendWindow {
    /// Producer: counts what is outstanding before the request `seq` of `length` bytes, which is the next
    /// to be handed, and fills `grant`.
    pub fn count(&self, grant: &mut Grant, share: Share, seq: u64, length: u64) -> Counted {
        self.look_for_room();
        let depth = u64::from(self.depth());
        let all_small = depth * u64::from(SMALL);
        let long = length > u64::from(SMALL);
        let bounded = depth > share.requests || all_small > share.bytes / 2;
        if !bounded {
            // Small ones can never be too many: nothing need be looked at.
            self.grant_until(u64::MAX);
            if !long {
                return Counted::Granted;
            }
        }
        let out = self.retired()..seq;
        let requests = seq.saturating_sub(out.start);
        let mut bytes = 0;
        self.weigh(out, |_, length| bytes += length);
        let too_many = bytes > share.bytes - share.bytes / 4
            || requests > share.requests.saturating_sub(1).min(share.requests - share.requests / 4);
        if requests > 0 && too_many {
            return Counted::Full;
        }
        // Once this request has completed, no more can be outstanding than was granted with it: small ones
        // and long ones together must leave a quarter free then, or nothing would be granted any more.
        let quarter = share.bytes.saturating_sub(bytes + length) / 4;
        grant.long = quarter;
        grant.is_short = true;
        if bounded {
            let requests = share.requests.saturating_sub(requests + 1) / 2;
            self.grant_until(seq + 1 + requests.min(quarter / u64::from(SMALL)));
        } else {
            grant.is_short = long;
        }
        Counted::Granted
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::entry::{Element, Opcode, SendEntry};
    use proptest::prelude::*;

    /// What a shell does: hands what is granted, in order.
    struct Shell {
        window: SendWindow,
        grant: Grant,
        share: Share,
        lengths: Vec<u64>,
        /// Requests that bring a completion.
        signaled: Vec<bool>,
    }

    impl Shell {
        fn new(depth: u32, share: Share) -> Self {
            let window = SendWindow::new(depth, 1, 0);
            Shell { window, grant: Grant::default(), share, lengths: vec![], signaled: vec![] }
        }

        fn outstanding(&self) -> (u64, u64) {
            let out = self.window.retired()..self.window.handed();
            (out.clone().map(|seq| self.lengths[seq as usize]).sum(), out.end - out.start)
        }

        fn append(&mut self, length: u32, signaled: bool) -> bool {
            let entry = SendEntry { opcode: Opcode::Write, ..SendEntry::empty() };
            let element = Element { addr: 0, length, lkey: 0 };
            let done = self.window.append(&entry, [element].into_iter()).is_ok();
            if done {
                self.lengths.push(length.into());
                self.signaled.push(signaled);
            }
            done
        }

        /// Hands what may be; tells whether all was.
        fn hand(&mut self) -> bool {
            while self.window.handed() < self.window.appended() {
                let seq = self.window.handed();
                let length = self.lengths[seq as usize];
                let known = self.window.is_granted(seq)
                    && (length <= SMALL.into() || self.grant.take(length as u32));
                if !known {
                    if self.window.count(&mut self.grant, self.share, seq, length) == Counted::Full
                    {
                        return false;
                    }
                    self.signaled[seq as usize] |= self.grant.is_short();
                }
                self.window.mark_handed(seq + 1);
            }
            true
        }

        /// The completion of the oldest outstanding request that brings one.
        fn complete(&mut self) -> bool {
            let out = self.window.retired()..self.window.handed();
            let done = out.clone().find(|seq| self.signaled[*seq as usize]);
            if let Some(seq) = done {
                self.window.retire(seq);
            }
            done.is_some()
        }
    }

    proptest! {
        /// Promise: what is outstanding is within the share, but for one request; and whatever the program
        /// posts, and however it signals, all of it is handed in the end.
        #[test]
        fn what_is_outstanding_is_bounded_and_never_stuck(
            depth in 1u32..64,
            bytes in 1u64..1 << 20,
            requests in 1u64..80,
            posts in prop::collection::vec((prop_oneof![0u32..300, 0u32..100_000], any::<bool>(), 0u8..3), 1..200),
        ) {
            let share = Share { bytes, requests };
            let mut shell = Shell::new(depth, share);
            for (length, signaled, completions) in posts {
                // A program that fills its queue must have asked for a completion.
                while !shell.append(length, signaled || shell.lengths.len().is_multiple_of(depth as usize)) {
                    shell.hand();
                    prop_assert!(shell.complete() || !shell.signaled.iter().any(|it| *it));
                    if !shell.complete() { break }
                }
                shell.hand();
                let (out, n) = shell.outstanding();
                prop_assert!(n <= requests.max(1), "{n} requests");
                let longest = shell.lengths.iter().copied().max().unwrap_or(0);
                prop_assert!(n <= 1 || out <= bytes + longest, "{out} bytes of {bytes}");
                for _ in 0..completions { shell.complete(); }
            }
            // With nothing more posted, completions alone bring everything out.
            while !shell.hand() {
                prop_assert!(shell.complete(), "nothing is outstanding that would tell");
            }
        }
    }
}
