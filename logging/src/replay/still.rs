//! Whether a live path stands still: the question of a hold, asked while nothing more is handed.

use super::{Executed, MIN_MTU, is_message, lock};
use crate::SendWindow;
use crate::entry::Opcode;

impl SendWindow {
    /// Producer, while nothing is handed: whether nothing that was handed will be executed any more, by what the
    /// responder has executed *so far*. With a responder that is `starved`, having no receive and getting none,
    /// a message that needs one waits, and so does everything behind it. (It is not asked whether
    /// requests wait to be handed again: what a plan names is taken for handed.)
    ///
    /// A WRITE with immediate data lands as far as its last packet, which takes the receive; but there are devices that
    /// look for that first, and let nothing land. Whether one is on its way or `given_time` in vain is the
    /// caller's to know.
    ///
    /// Said to be so it is so; where numbers are missing it may be so and not be said.
    #[must_use]
    pub fn is_still(&self, peer: &Executed, starved: bool, given_time: bool) -> bool {
        let retired = self.retired();
        if retired == self.handed() {
            return true;
        }
        // The numbers grow while this looks: what they say is the least.
        let Ok(plan) = self.judge(&Executed { settled: true, ..*peer }, retired) else {
            return false;
        };
        let Some(first) = plan.replays.first() else { return plan.undecided.is_none() };
        let entry = self.entry(first.seq);
        if !starved || !is_message(entry.opcode) {
            return false;
        }
        let mtu = lock(&self.progress).start.mtu.max(MIN_MTU);
        let left = self.length(first.seq).saturating_sub(u64::from(first.skip));
        entry.opcode != Opcode::WriteImm || given_time || left <= u64::from(mtu)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::entry::{Element, SendEntry};
    use crate::replay::Start;

    const PSN: u32 = 10;

    /// A window with these handed: opcode and bytes.
    fn window(requests: &[(Opcode, u32)]) -> SendWindow {
        let window = SendWindow::new(16, 1, 0);
        window.connect(Start { psn: PSN, mtu: 256 });
        for (opcode, length) in requests {
            let entry = SendEntry { opcode: *opcode, ..SendEntry::empty() };
            let element = Element { addr: 0, length: *length, lkey: 0 };
            window.append(&entry, [element].into_iter()).unwrap();
        }
        window.mark_handed(window.appended());
        window
    }

    fn told(messages: u64, packets: u32) -> Executed {
        Executed { messages, psn: Some(PSN + packets), settled: false, recorded: None }
    }

    /// Promise: a hold begins only when everything has landed, unsignalled or not.
    #[test]
    fn what_has_not_landed_is_not_still() {
        let sent = window(&[(Opcode::Write, 600), (Opcode::Send, 10)]);
        for packets in 0..4 {
            assert!(
                !sent.is_still(&told(0, packets), false, true),
                "{packets} packets have landed"
            );
        }
        assert!(sent.is_still(&told(1, 4), false, true));
        assert!(!sent.is_still(&told(0, 4), false, true), "the message is yet to be counted");
        assert!(!sent.is_still(&Executed { psn: None, ..told(0, 0) }, true, false), "who knows?");
        assert!(window(&[]).is_still(&told(0, 0), false, true));
    }

    /// Promise: data that is on its way back is waited for.
    #[test]
    fn answers_are_waited_for() {
        for opcode in [Opcode::Read, Opcode::FetchAdd, Opcode::CompareSwap] {
            let sent = window(&[(opcode, 8)]);
            assert!(!sent.is_still(&told(0, 1), true, false), "{opcode:?}");
            sent.retire(0);
            assert!(sent.is_still(&told(0, 1), true, false), "{opcode:?}");
        }
    }

    /// Promise: a message that waits for a receive holds nobody up, if there is none and will be none.
    #[test]
    fn a_message_without_a_receive_stands_still() {
        let sent = window(&[(Opcode::Write, 10), (Opcode::Send, 10), (Opcode::Write, 10)]);
        assert!(!sent.is_still(&told(0, 0), true, false), "the WRITE before it is on its way");
        assert!(sent.is_still(&told(0, 1), true, false));
        assert!(!sent.is_still(&told(0, 1), false, true), "there may be a receive");
        assert!(!sent.is_still(&told(1, 2), true, false), "the WRITE behind it is on its way");
        let sent = window(&[(Opcode::WriteImm, 600)]);
        for packets in 0..2 {
            assert!(
                !sent.is_still(&told(0, packets), true, false),
                "{packets} of 3 packets have landed"
            );
        }
        assert!(sent.is_still(&told(0, 2), true, false), "the last waits");
        assert!(sent.is_still(&told(0, 0), true, true), "this device looks for the receive first");
    }
}
