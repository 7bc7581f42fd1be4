//! The physical queue pair that a virtual one is to go over to: made and connected before the blackout.

use crate::abi::{self, QpAttr, qp_mask, qp_state, qp_type};
use crate::device::DeviceSrq;
use crate::error::{Error, Result};
use crate::names::{PhysicalEnd, ProcessId, RecordWord};
use crate::virt::core::lock_mutex;
use crate::virt::core::pd::physical_cap;
use crate::virt::core::qp::control::Control;
use crate::virt::core::qp::send::Target;
use crate::virt::core::qp::{Attachment, PhysicalParts, QpCore};
use crate::virt::core::underlay::{NO_SUCH_QPN, Underlay};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

/// The retry count that rxe takes for one without end: devices get one less (see `control`).
const MOST_RETRIES: u8 = 6;

fn random_psn() -> u32 {
    // Seeded anew by the system for each.
    RandomState::new().hash_one(0) as u32 & abi::MASK_24
}

/// A new physical queue pair, on the way to be attached.
pub(in crate::virt::core) struct Fresh {
    pub(super) attachment: Attachment,
    /// Of the first packet that it sends.
    pub(in crate::virt::core) psn: u32,
    /// Path MTU in bytes, once connected.
    pub(super) mtu: u32,
    pub(super) target: Option<Target>,
    /// Where the peer wants records.
    pub(super) word: Option<RecordWord>,
    /// Of the connection: one more than that which is attached, or as the peer says who offers it.
    pub(in crate::virt::core) incarnation: u32,
    /// The state that it is to have.
    pub(super) state: u32,
    /// Room for its completions was reserved beside that of the old one.
    pub(super) doubled: bool,
}

impl Fresh {
    /// Of a physical queue pair that is in RESET, and whose completions have room.
    pub(super) fn of(attachment: Attachment, state: u32) -> Self {
        Fresh {
            attachment,
            psn: random_psn(),
            mtu: 0,
            target: None,
            word: None,
            incarnation: 0,
            state,
            doubled: false,
        }
    }

    /// It has a peer, or none for good.
    pub(in crate::virt::core) fn is_connected(&self) -> bool {
        self.target.is_some()
    }
}

impl QpCore {
    /// A physical queue pair to go over to, on that device, in INIT where the old one is beyond RESET.
    pub(in crate::virt::core) fn fresh(
        &self,
        underlay: &Arc<Underlay>,
        srq: Option<Arc<dyn DeviceSrq>>,
        state: u32,
    ) -> Result<Fresh> {
        self.begin_moving()?;
        let made = self.make_fresh(underlay, srq, state);
        if made.is_err() {
            self.end_moving();
        }
        made
    }

    fn make_fresh(
        &self,
        underlay: &Arc<Underlay>,
        srq: Option<Arc<dyn DeviceSrq>>,
        state: u32,
    ) -> Result<Fresh> {
        let gone = || Error::invalid(format!("a CQ of queue pair {:#x} is gone", self.qpn));
        let (send_cq, recv_cq) = (self.send_cq.upgrade(), self.recv_cq.upgrade());
        let (send_cq, recv_cq) = (send_cq.ok_or_else(gone)?, recv_cq.ok_or_else(gone)?);
        // On another device the CQs have been made large enough.
        let doubled = self.device() == Some(underlay.id);
        if doubled {
            send_cq.reserve(crate::virt::core::cq::sends(self.qp_type, &self.cap), None)?;
            if let Err(error) = recv_cq.reserve(u64::from(self.cap.max_recv_wr), None) {
                send_cq.release(crate::virt::core::cq::sends(self.qp_type, &self.cap), None);
                return Err(error);
            }
        }
        let made = physical_cap(underlay, self.qp_type, &self.cap, srq.is_some()).and_then(|cap| {
            let parts = PhysicalParts {
                qp_type: self.qp_type,
                cap,
                send_cq: &send_cq,
                recv_cq: &recv_cq,
                srq,
            };
            let another =
                |error: Error| error.context(format_args!("another queue pair {:#x}", self.qpn));
            let attachment = Attachment::create(&self.pd, underlay, &parts).map_err(another)?;
            self.keep_word(&attachment).map_err(another)?;
            Ok(attachment)
        });
        let attachment = match made {
            Ok(attachment) => attachment,
            Err(error) => {
                self.release_room(doubled);
                return Err(error);
            }
        };
        let inline = attachment.qp.init_cap().max_inline_data;
        if inline < self.cap.max_inline_data {
            self.release_room(doubled);
            return Err(Error::invalid(format!(
                "queue pair {:#x} has a max_inline_data of {}, and one of {} {inline} at most",
                self.qpn,
                self.cap.max_inline_data,
                underlay.device.name()
            )));
        }
        let number = attachment.qp.qp_num();
        let incarnation = lock_mutex(&self.moving).incarnation + 1;
        let fresh = Fresh { incarnation, doubled, ..Fresh::of(attachment, state) };
        let _ = underlay.qpns.set(number as usize, number, self.qpn);
        if state != qp_state::RESET
            && let Err(error) = self.init_fresh(&fresh)
        {
            self.let_go(fresh);
            return Err(error);
        }
        Ok(fresh)
    }

    /// From RESET on the way to its state. (Verbs know no way from RESET to ERR.)
    pub(super) fn init_fresh(&self, fresh: &Fresh) -> Result<()> {
        let control = lock_mutex(&self.control);
        let attr = QpAttr {
            qp_state: qp_state::INIT,
            pkey_index: control.attr.pkey_index,
            port_num: control.port(),
            qkey: control.attr.qkey,
            qp_access_flags: control.attr.qp_access_flags,
            ..QpAttr::default()
        };
        let own = if self.qp_type == qp_type::UD { qp_mask::QKEY } else { qp_mask::ACCESS_FLAGS };
        let mask = qp_mask::STATE | qp_mask::PKEY_INDEX | qp_mask::PORT | own;
        drop(control);
        fresh.attachment.qp.modify(&attr, mask)?;
        if self.qp_type == qp_type::UD && fresh.state != qp_state::ERR {
            return self.ready(fresh, &QpAttr::default(), 0);
        }
        Ok(())
    }

    /// From INIT to the state that it is to have.
    fn ready(&self, fresh: &Fresh, rtr: &QpAttr, mask: u32) -> Result<()> {
        let qp = &fresh.attachment.qp;
        if fresh.state == qp_state::INIT {
            return Ok(());
        }
        qp.modify(&QpAttr { qp_state: qp_state::RTR, ..*rtr }, qp_mask::STATE | mask)?;
        if fresh.state == qp_state::RTR {
            return Ok(());
        }
        let Control { attr, .. } = &*lock_mutex(&self.control);
        let rts = QpAttr {
            qp_state: qp_state::RTS,
            sq_psn: fresh.psn,
            timeout: attr.timeout,
            retry_cnt: attr.retry_cnt.min(MOST_RETRIES),
            rnr_retry: attr.rnr_retry,
            max_rd_atomic: attr.max_rd_atomic,
            ..QpAttr::default()
        };
        let mut mask = qp_mask::STATE | qp_mask::SQ_PSN;
        if self.qp_type == qp_type::RC {
            mask |= qp_mask::TIMEOUT
                | qp_mask::RETRY_CNT
                | qp_mask::RNR_RETRY
                | qp_mask::MAX_QP_RD_ATOMIC;
        }
        qp.modify(&rts, mask)
    }

    /// How peers reach the new physical queue pair.
    pub(in crate::virt::core) fn end_of(&self, fresh: &Fresh) -> Result<PhysicalEnd> {
        let port = lock_mutex(&self.control).port();
        let underlay = &fresh.attachment.underlay;
        let end = underlay.end(port, fresh.attachment.qp.qp_num())?;
        Ok(PhysicalEnd { word: self.word_on(underlay.id), ..end })
    }

    /// Connects the new physical queue pair to that end of `process`, whose first packet has that
    /// number; without an end, to nobody.
    pub(in crate::virt::core) fn connect_fresh(
        &self,
        fresh: &mut Fresh,
        process: ProcessId,
        end: Option<(PhysicalEnd, u32)>,
    ) -> Result<()> {
        let own = self.end_of(fresh)?;
        let (end, peer_psn) =
            end.unwrap_or((PhysicalEnd { qpn: NO_SUCH_QPN, word: None, ..own }, 0));
        let attr = {
            let control = lock_mutex(&self.control);
            let mut attr = control.attr;
            attr.ah_attr.port_num = control.port();
            attr
        };
        let underlay = Arc::clone(&fresh.attachment.underlay);
        let found = self.connection_to(&underlay, &attr.ah_attr, process, &own, &end)?;
        let rtr = QpAttr {
            path_mtu: attr.path_mtu.min(found.mtu),
            dest_qp_num: found.dest_qp_num,
            rq_psn: peer_psn,
            ah_attr: found.ah_attr,
            max_dest_rd_atomic: attr.max_dest_rd_atomic,
            min_rnr_timer: attr.min_rnr_timer,
            ..QpAttr::default()
        };
        let mut mask = qp_mask::AV | qp_mask::PATH_MTU | qp_mask::DEST_QPN | qp_mask::RQ_PSN;
        if self.qp_type == qp_type::RC {
            mask |= qp_mask::MAX_DEST_RD_ATOMIC | qp_mask::MIN_RNR_TIMER;
        }
        self.ready(fresh, &rtr, mask)?;
        fresh.mtu = abi::mtu_bytes(rtr.path_mtu).unwrap_or(0);
        (fresh.target, fresh.word) = (Some(found.target), found.word);
        Ok(())
    }

    /// Lets go of a new physical queue pair that is not needed.
    pub(in crate::virt::core) fn discard(&self, fresh: Fresh) {
        self.let_go(fresh);
        self.end_moving();
    }

    fn let_go(&self, fresh: Fresh) {
        let number = fresh.attachment.qp.qp_num();
        let underlay = Arc::clone(&fresh.attachment.underlay);
        let doubled = fresh.doubled;
        drop(fresh);
        underlay.qpns.unset(number as usize, number, self.qpn);
        self.release_room(doubled);
    }

    pub(super) fn release_room(&self, doubled: bool) {
        if doubled {
            if let Some(cq) = self.send_cq.upgrade() {
                cq.release(crate::virt::core::cq::sends(self.qp_type, &self.cap), None);
            }
            if let Some(cq) = self.recv_cq.upgrade() {
                cq.release(u64::from(self.cap.max_recv_wr), None);
            }
        }
    }
}
