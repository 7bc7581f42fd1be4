//! Inline requests in fewer steps: one element, alone, nothing in the way. The payload is copied into the
//! window, and posted from there.

use super::{FLAGS, Target};
use crate::abi::{RdmaWr, SendWr, Sge, send_flags, wr_opcode};
use crate::device::PostSend;
use crate::virt::core::LOW_31;
use crate::virt::core::qp::QpCore;
use crate::virt::core::qp::room::Admission;
use crate::virt::core::tables::key_index;

impl QpCore {
    /// Whether a request is such a one, as far as it tells itself.
    #[inline]
    pub(super) fn is_by_value(wr: &SendWr) -> bool {
        wr.next.is_null()
            && wr.num_sge == 1
            && wr.opcode <= wr_opcode::SEND_WITH_IMM
            && wr.send_flags & (!FLAGS | send_flags::INLINE) == send_flags::INLINE
    }

    /// Posts it. `None` where nothing has changed, and it has to go the long way.
    ///
    /// # Safety
    /// As [`DeviceQp::post_send`], of a request that [`Self::is_by_value`].
    #[inline(never)]
    pub(super) unsafe fn post_by_value(&self, list: *mut SendWr, wr: &SendWr) -> Option<PostSend> {
        // SAFETY: it has one element.
        let Sge { addr, length, .. } = unsafe { *wr.sg_list };
        if length == 0 || length > self.cap.max_inline_data {
            return None;
        }
        let mut side = self.send_side.enter();
        if !side.is_clear() {
            return None;
        }
        let flags = wr.send_flags | self.always;
        match self.admit(&mut side, self.send.appended(), length.into()) {
            Admission::Yes => {}
            Admission::WithCompletion if flags & send_flags::SIGNALED != 0 => {}
            // Counted again there.
            _ => {
                self.send.revoke();
                return None;
            }
        }
        let slot = self.send.claim_plain()?;
        let (place, physical_sge) = side.plain.parts();
        // SAFETY: ours alone while we are inside.
        let physical = unsafe { &mut *place };
        let mut key = 0;
        if !matches!(wr.opcode, wr_opcode::SEND | wr_opcode::SEND_WITH_IMM) {
            // SAFETY: one-sided requests have these.
            let RdmaWr { remote_addr, rkey } = unsafe { wr.wr.rdma };
            let Target::Peer(_, keys) = &side.target else { return None };
            let known = keys.get(key_index(rkey), rkey)?;
            slot.remote(remote_addr, rkey);
            physical.wr.rdma = RdmaWr { remote_addr, rkey: known };
            key = rkey;
        }
        // SAFETY: inline data is readable during the call (`ibv_post_send(3)`).
        let payload = unsafe { std::slice::from_raw_parts(addr as *const u8, length as usize) };
        // SAFETY: every byte of this union is initialised in a verbs request.
        let imm = unsafe { wr.imm.imm_data };
        let copy = self.send.copy_by_value(&slot, key, payload);
        slot.request_by_value(wr.wr_id, wr.opcode, flags, imm);
        physical.wr_id = self.tag | slot.seq() & LOW_31;
        physical.opcode = wr.opcode;
        physical.send_flags = flags;
        physical.imm.imm_data = imm;
        self.send.publish(slot);
        // SAFETY: as above.
        unsafe { *physical_sge = Sge { addr: copy, length, lkey: 0 } };
        side.posting = list;
        let qp = side.qp.as_ref()?;
        // SAFETY: one request of ours, with one element, which is in the window.
        let posted = unsafe { qp.post_send(place) };
        Some(posted.or_else(|error| self.refused_plain(&side, error.errno())))
    }
}
