//! `modify` and `query`.

use super::super::ah;
use super::super::limits::MAX_RD_ATOMIC;
use super::super::region::QpEntry;
use super::Qp;
use super::send::{Flow, SendQueue};
use super::state;
use crate::abi::{MASK_24, QpAttr, access, mtu_bytes, qp_mask as m, qp_state, qp_type};
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Access flags that a QP may grant.
const QP_ACCESS: u32 = access::LOCAL_WRITE
    | access::REMOTE_WRITE
    | access::REMOTE_READ
    | access::REMOTE_ATOMIC
    | access::MW_BIND;

impl Qp {
    pub(super) fn modify(self: &Arc<Self>, attr: &QpAttr, mask: u32) -> Result<()> {
        self.dial(attr, mask)?;
        let mut sq = self.sq.lock();
        let now = self.state();
        let from = if mask & m::CUR_STATE != 0 { attr.cur_qp_state } else { now };
        if from != now {
            return Err(Error::invalid(format!(
                "the queue pair is in {}, not in {}",
                qp_state::name(now),
                qp_state::name(from)
            )));
        }
        let to = if mask & m::STATE != 0 { attr.qp_state } else { from };
        if let Some(why) = state::refused(from, to, self.kind, mask) {
            return Err(Error::invalid(why));
        }
        match to {
            qp_state::RESET => {
                drop(sq);
                return self.reset();
            }
            qp_state::ERR => {
                self.set_error(&mut sq);
                drop(sq);
                let settled = self.settle();
                self.core.run_deferred();
                return settled;
            }
            _ => {}
        }
        self.check(attr, mask)?;
        self.apply(&mut sq, attr, mask);
        let entry = self.entry();
        let word = QpEntry::word_of(self.incarnation(), to);
        entry.word.store(word, Ordering::SeqCst);
        if to == qp_state::RTS && from != to {
            sq.restart();
            self.run(&mut sq);
        }
        if to == qp_state::SQD && from != to {
            let wanted = mask & m::EN_SQD_ASYNC_NOTIFY != 0 && attr.en_sqd_async_notify != 0;
            sq.tell_drained = wanted;
            self.check_drained(&mut sq);
        }
        drop(sq);
        if to == qp_state::RTR && self.kind != qp_type::UD {
            // Made now, so that the first message finds it. Whoever is not there yet is looked
            // for again when there is something to send.
            if self.is_local(attr.ah_attr) {
                let _ = self.core.dial(attr.dest_qp_num);
            }
        }
        self.core.run_deferred();
        Ok(())
    }

    /// Connects to the peer's machine, before anything is changed or locked. Whoever cannot be
    /// reached yet is dialed again when there is something to send; one that holds another key
    /// never will be.
    fn dial(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        let to_rtr = mask & m::STATE != 0 && attr.qp_state == qp_state::RTR && mask & m::AV != 0;
        let Some(tcp) = self.core.tcp.as_ref().filter(|_| to_rtr && self.kind != qp_type::UD)
        else {
            return Ok(());
        };
        if self.is_local(attr.ah_attr) {
            return Ok(());
        }
        match tcp.dial(&self.core, super::super::tcp::destination(&self.core, &attr.ah_attr)?) {
            Err(error) if error.errno() == libc::EACCES => Err(error),
            Err(error) => {
                tracing::warn!(%error, qp = self.num, "the peer cannot be reached now");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn is_local(&self, attr: crate::abi::AhAttr) -> bool {
        ah::is_local(&self.core, &attr)
    }

    fn check(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        let bad = |what: &str, value: u64| Err(Error::invalid(format!("{what} {value}")));
        if mask & m::PORT != 0 && attr.port_num != super::super::context::PORT {
            return bad("there is no port", attr.port_num.into());
        }
        if mask & m::PKEY_INDEX != 0 && attr.pkey_index != 0 {
            return bad("there is no P_Key with index", attr.pkey_index.into());
        }
        if mask & m::ACCESS_FLAGS != 0 && attr.qp_access_flags & !QP_ACCESS != 0 {
            return bad("unknown access flags in", attr.qp_access_flags.into());
        }
        if mask & m::AV != 0 {
            ah::check(&self.core, &attr.ah_attr)?;
        }
        if mask & m::PATH_MTU != 0 && mtu_bytes(attr.path_mtu).is_none() {
            return bad("not a path MTU:", attr.path_mtu.into());
        }
        if mask & m::DEST_QPN != 0 && attr.dest_qp_num > MASK_24 {
            return bad("not a queue pair number:", attr.dest_qp_num.into());
        }
        for (bit, what, value, most) in [
            (m::TIMEOUT, "timeout", attr.timeout, 31),
            (m::RETRY_CNT, "retry_cnt", attr.retry_cnt, 7),
            (m::RNR_RETRY, "rnr_retry", attr.rnr_retry, 7),
            (m::MIN_RNR_TIMER, "min_rnr_timer", attr.min_rnr_timer, 31),
            (m::MAX_QP_RD_ATOMIC, "max_rd_atomic", attr.max_rd_atomic, MAX_RD_ATOMIC),
            (m::MAX_DEST_RD_ATOMIC, "max_dest_rd_atomic", attr.max_dest_rd_atomic, MAX_RD_ATOMIC),
        ] {
            if mask & bit != 0 && value > most {
                return Err(Error::invalid(format!("{what} is {value}: at most {most}")));
            }
        }
        Ok(())
    }

    fn apply(&self, sq: &mut SendQueue, attr: &QpAttr, mask: u32) {
        let entry = self.entry();
        let set = &mut sq.attr;
        macro_rules! take {
            ($($bit:ident => $field:ident),* $(,)?) => {
                $(if mask & m::$bit != 0 { set.$field = attr.$field; })*
            };
        }
        take!(
            PKEY_INDEX => pkey_index, PORT => port_num, QKEY => qkey, AV => ah_attr,
            ACCESS_FLAGS => qp_access_flags, PATH_MTU => path_mtu, TIMEOUT => timeout,
            RETRY_CNT => retry_cnt, RNR_RETRY => rnr_retry, MAX_QP_RD_ATOMIC => max_rd_atomic,
            MAX_DEST_RD_ATOMIC => max_dest_rd_atomic, MIN_RNR_TIMER => min_rnr_timer,
            DEST_QPN => dest_qp_num, ALT_PATH => alt_ah_attr, PATH_MIG_STATE => path_mig_state,
            RATE_LIMIT => rate_limit, EN_SQD_ASYNC_NOTIFY => en_sqd_async_notify,
        );
        if mask & m::RQ_PSN != 0 {
            entry.taken.0.epsn.store(attr.rq_psn & MASK_24, Ordering::Relaxed);
        }
        if mask & m::SQ_PSN != 0 {
            sq.flow.psn = attr.sq_psn & MASK_24;
        }
        let has_srq = u32::from(self.srq.is_some());
        let access = set.qp_access_flags & 0xff;
        let traits = u32::from(set.min_rnr_timer) << 24 | has_srq << 16 | self.kind << 8 | access;
        entry.traits.store(traits, Ordering::Relaxed);
        let lid = u64::from(set.ah_attr.dlid);
        entry.dest.store(lid << 32 | u64::from(set.dest_qp_num), Ordering::Relaxed);
        entry.mtu.store(mtu_bytes(set.path_mtu).unwrap_or(4096), Ordering::Relaxed);
        sq.flow.unbind();
    }

    /// Sets what peers see of a QP in RESET.
    pub(super) fn clear(&self) {
        let entry = self.entry();
        entry.posted.0.store(0, Ordering::Relaxed);
        entry.taken.0.receives.store(0, Ordering::Relaxed);
        entry.taken.0.epsn.store(0, Ordering::Relaxed);
        entry.settled.store(0, Ordering::Relaxed);
        entry.fits.store(0, Ordering::Relaxed);
        entry.dest.store(0, Ordering::Relaxed);
        let has_srq = u32::from(self.srq.is_some());
        entry.traits.store(has_srq << 16 | self.kind << 8, Ordering::Relaxed);
    }

    /// Takes the QP to RESET: whatever is outstanding is discarded without a completion.
    pub(super) fn reset(self: &Arc<Self>) -> Result<()> {
        let mut sq = self.sq.lock();
        let entry = self.entry();
        // At ERR first: what peers still do for the old incarnation must not find a new one.
        entry.word.store(QpEntry::word_of(self.incarnation(), qp_state::ERR), Ordering::SeqCst);
        self.discard(&mut sq);
        drop(sq);
        let fenced = self.fence();
        let mut sq = self.sq.lock();
        let mut rq = self.rq.lock();
        // Where the receives were flushed, those that were not are counted.
        let received = if rq.flushing { entry.settled.load(Ordering::Relaxed) } else { rq.done };
        entry.ended.store(QpEntry::ended_of(self.incarnation(), received), Ordering::SeqCst);
        rq.reset();
        self.clear();
        sq.attr = QpAttr::default();
        sq.flow = Flow::default();
        let next = self.incarnation().wrapping_add(1);
        entry.word.store(QpEntry::word_of(next, qp_state::RESET), Ordering::SeqCst);
        fenced
    }

    pub(super) fn query(&self) -> QpAttr {
        let sq = self.sq.lock();
        let state = self.state();
        QpAttr {
            qp_state: state,
            cur_qp_state: state,
            rq_psn: self.entry().taken.0.epsn.load(Ordering::Acquire) & MASK_24,
            sq_psn: sq.flow.psn,
            cap: self.cap,
            sq_draining: u8::from(state == qp_state::SQD && !sq.is_drained()),
            ..sq.attr
        }
    }
}
