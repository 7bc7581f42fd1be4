//! `modify` and `query`: the program speaks of virtual addresses, the device hears physical ones.

use super::send::Target;
use super::{Attachment, QpCore};
use crate::abi::{self, AhAttr, QpAttr, qp_mask, qp_state, qp_type};
use crate::error::{Error, Result};
use crate::names::{self, Fetch, Incarnation, PhysicalEnd, ProcessId, Record, RecordWord};
use crate::virt::core::lock_mutex;
use crate::virt::core::pd::PdCore;
use crate::virt::core::underlay::{NO_SUCH_QPN, Underlay};
use crate::virt::core::written::Source;
use sojourn_logging::Start;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long `modify` waits for a peer to say what its queue pair number stands for.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// The port of a queue pair that was given none.
const FIRST_PORT: u8 = 1;

/// The retry count that rxe takes for one without end, though it is a number like others (IBTA
/// 9.7.6.1.3): a dead peer would never be noticed. Devices get one less.
const ENDLESS_ON_RXE: u8 = 7;

/// Attributes as the program set them.
#[derive(Default)]
pub(super) struct Control {
    pub(super) attr: QpAttr,
    /// The first packet's number, where the device's is not the one that the program named: its path
    /// began anew.
    pub(super) own_psn: Option<u32>,
    /// The path MTU on the device, in bytes.
    pub(super) mtu: u32,
    /// The process of the job that it has been connected to since it was in RESET, and its queue pair.
    pub(super) met: Option<(ProcessId, u32)>,
}

impl Control {
    /// The port that the queue pair is on.
    pub(super) fn port(&self) -> u8 {
        if self.attr.port_num == 0 { FIRST_PORT } else { self.attr.port_num }
    }

    /// Remembers what `mask` set.
    fn set(&mut self, attr: &QpAttr, mask: u32) {
        let own = &mut self.attr;
        let mut take = |bit: u32, set: &mut dyn FnMut(&mut QpAttr)| {
            if mask & bit != 0 {
                set(own);
            }
        };
        macro_rules! take_all {
            ($($bit:ident => $field:ident),* $(,)?) => {
                $(take(qp_mask::$bit, &mut |own| own.$field = attr.$field);)*
            };
        }
        take_all!(
            STATE => qp_state, PKEY_INDEX => pkey_index, PORT => port_num, QKEY => qkey,
            ACCESS_FLAGS => qp_access_flags, AV => ah_attr, PATH_MTU => path_mtu,
            DEST_QPN => dest_qp_num, RQ_PSN => rq_psn, SQ_PSN => sq_psn, TIMEOUT => timeout,
            RETRY_CNT => retry_cnt, RNR_RETRY => rnr_retry, MIN_RNR_TIMER => min_rnr_timer,
            MAX_QP_RD_ATOMIC => max_rd_atomic, MAX_DEST_RD_ATOMIC => max_dest_rd_atomic,
        );
    }
}

/// What a connected queue pair is connected to.
pub(super) struct Connection {
    pub(super) target: Target,
    pub(super) ah_attr: AhAttr,
    pub(super) dest_qp_num: u32,
    /// The largest path MTU that both ends have.
    pub(super) mtu: u32,
    /// LID in completions.
    lid: u16,
    /// Where the peer wants records.
    pub(super) word: Option<RecordWord>,
    /// The life of the peer in which it was found.
    life: Incarnation,
}

impl QpCore {
    pub(super) fn modify(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        let _settled = self.pd.context.settled();
        if self.pd.context.is_held() {
            return Err(Error::new(
                libc::EBUSY,
                format!(
                    "queue pair {:#x} cannot be changed while its context is suspended: end that first",
                    self.qpn
                ),
            ));
        }
        // It ends as verbs have it end, or begins anew: nobody need look for another path.
        if mask & qp_mask::STATE != 0 && matches!(attr.qp_state, qp_state::ERR | qp_state::RESET) {
            self.is_ending.store(true, Ordering::Release);
            self.let_it_fail();
        }
        self.while_it_stays(|| self.change(attr, mask))
    }

    fn change(&self, attr: &QpAttr, mask: u32) -> Result<()> {
        if mask & (qp_mask::ALT_PATH | qp_mask::PATH_MIG_STATE) != 0 {
            return Err(Error::unsupported(format!(
                "queue pair {:#x}: an alternate path was given; virtual queue pairs have one path, \
                 which moves with the peer",
                self.qpn
            )));
        }
        // Before the peer's, which may be smaller, hides it.
        if mask & qp_mask::PATH_MTU != 0 && abi::mtu_bytes(attr.path_mtu).is_none() {
            return Err(Error::invalid(format!(
                "queue pair {:#x}: a path MTU of code {}: the codes are 1 (256 bytes) to 5 (4096)",
                self.qpn, attr.path_mtu
            )));
        }
        let attachment = self.attachment()?;
        let (mut physical, mut connection) = (*attr, None);
        // A larger one is the device's to refuse.
        if attr.retry_cnt == ENDLESS_ON_RXE {
            physical.retry_cnt = ENDLESS_ON_RXE - 1;
        }
        if mask & qp_mask::AV != 0 && self.qp_type != qp_type::UD {
            // The old destination stays where only the path is set anew.
            let dest = match mask & qp_mask::DEST_QPN {
                0 => lock_mutex(&self.control).attr.dest_qp_num,
                _ => attr.dest_qp_num,
            };
            let found = self.connect(&attachment, &attr.ah_attr, dest)?;
            physical.ah_attr = found.ah_attr;
            physical.dest_qp_num = found.dest_qp_num;
            physical.path_mtu = attr.path_mtu.min(found.mtu);
            connection = Some((found, dest));
        } else if mask & qp_mask::DEST_QPN != 0 {
            return Err(Error::invalid(format!(
                "queue pair {:#x}: a destination queue pair ({:#x}) without an address vector",
                self.qpn, attr.dest_qp_num
            )));
        }
        let state = (mask & qp_mask::STATE != 0).then_some(attr.qp_state);
        if state == Some(qp_state::RTS)
            && mask & qp_mask::SQ_PSN != 0
            && let Some(psn) = lock_mutex(&self.control).own_psn
        {
            physical.sq_psn = psn;
        }
        if state == Some(qp_state::RTR)
            && let Some(word) = self.word.get()
        {
            // Before anything of the peer's can come.
            word.clear();
        }
        if let Some((found, _)) = &connection {
            self.watch_source(Some(self.source_of(found)));
        }
        if state == Some(qp_state::RESET) {
            self.look_through_all();
        }
        attachment.qp.modify(&physical, mask)?;
        {
            let mut control = lock_mutex(&self.control);
            control.set(attr, mask);
            if mask & qp_mask::PATH_MTU != 0 {
                control.mtu = abi::mtu_bytes(physical.path_mtu).unwrap_or(0);
            }
            match state {
                // Whatever is posted from here on is counted from here on.
                Some(qp_state::RTS) if mask & qp_mask::SQ_PSN != 0 => {
                    self.send.connect(Start { psn: physical.sq_psn, mtu: control.mtu });
                }
                Some(qp_state::RTR) => {
                    self.recv_base.store(self.recv.retired(), Ordering::Relaxed);
                    self.unfilled.store(0, Ordering::Relaxed);
                    self.delivered.store(0, Ordering::Relaxed);
                }
                Some(qp_state::RESET) => {
                    control.own_psn = None;
                    lock_mutex(&self.known_to).clear();
                }
                _ => {}
            }
        }
        if let Some((found, dest)) = connection {
            let remote = u64::from(found.lid) << 32 | u64::from(dest);
            self.remote.store(remote, Ordering::Release);
            if state == Some(qp_state::RTR)
                && self.qp_type == qp_type::RC
                && let Target::Peer(peer, _) = &found.target
            {
                self.meets(Some((peer.process, dest)));
            }
            let mut side = self.send_side.enter();
            self.record_to(&mut side, found.word);
            side.target = found.target;
        }
        match state {
            Some(qp_state::ERR) => self.note_err(),
            Some(qp_state::RESET) => {
                self.reset();
                self.meets(None);
                self.watch_source(None);
                self.is_ending.store(false, Ordering::Release);
            }
            _ => {}
        }
        Ok(())
    }

    /// RESET discards all work, and the completions that nobody has polled yet.
    fn reset(&self) {
        let (send_cq, recv_cq) = (self.send_cq.upgrade(), self.recv_cq.upgrade());
        let same = match (&send_cq, &recv_cq) {
            (Some(a), Some(b)) => std::sync::Arc::ptr_eq(a, b),
            _ => false,
        };
        // In the order of their numbers, so that two that reset never wait for each other.
        let mut cqs: Vec<_> = send_cq.into_iter().chain(recv_cq.filter(|_| !same)).collect();
        cqs.sort_by_key(|cq| cq.number());
        let held: Vec<_> = cqs.iter().map(|cq| cq.exclude_pollers()).collect();
        self.forget_all();
        for cq in &cqs {
            cq.drop_backlog_of(self.qpn);
        }
        drop(held);
    }

    pub(super) fn query(&self, mask: u32) -> Result<QpAttr> {
        let attachment = self.attachment()?;
        let mut attr = attachment.qp.query(mask)?;
        let control = lock_mutex(&self.control);
        if mask & qp_mask::STATE != 0 && self.is_broken() {
            attr.qp_state = self.state()?;
        }
        // What the program sees of names and sizes is what it said.
        attr.cap = self.cap;
        attr.ah_attr = control.attr.ah_attr;
        attr.dest_qp_num = control.attr.dest_qp_num;
        attr.retry_cnt = control.attr.retry_cnt;
        if control.attr.path_mtu != 0 {
            attr.path_mtu = control.attr.path_mtu;
        }
        attr.alt_ah_attr = AhAttr::default();
        Ok(attr)
    }

    /// Finds out what a virtual address stands for.
    fn connect(&self, attachment: &Attachment, wanted: &AhAttr, dest: u32) -> Result<Connection> {
        let underlay = &attachment.underlay;
        let gid = (wanted.is_global != 0).then_some(wanted.grh.dgid.0);
        if gid.is_some() && wanted.grh.sgid_index != 0 {
            return Err(Error::invalid(format!(
                "queue pair {:#x}: GID index {} in its address vector: a virtual port has one \
                 GID, index 0",
                self.qpn, wanted.grh.sgid_index
            )));
        }
        let mut wanted = *wanted;
        if wanted.port_num == 0 {
            wanted.port_num = lock_mutex(&self.control).port();
        }
        let Some(process) = self.local().process_at(wanted.dlid, gid) else {
            tracing::info!(
                "queue pair {:#x} is connected to queue pair {dest:#x} at {wanted:?}, outside the \
                 job: a foreign queue pair, which keeps this process where it is",
                self.qpn
            );
            return Ok(Connection {
                target: Target::Foreign,
                ah_attr: underlay.foreign_route(&wanted)?,
                dest_qp_num: dest,
                mtu: abi::mtu::MTU_4096,
                lid: wanted.dlid,
                word: None,
                life: Incarnation(0),
            });
        };
        let own = underlay.end(wanted.port_num, attachment.qp.qp_num())?;
        let (end, life) = match self.find_end(process, dest)? {
            Some(found) => found,
            None => {
                tracing::warn!(
                    "queue pair {:#x}: {process} has no queue pair {dest:#x}; requests will end \
                     as if nobody answered",
                    self.qpn
                );
                (PhysicalEnd { qpn: NO_SUCH_QPN, word: None, ..own }, Incarnation(0))
            }
        };
        self.local().peer(process).lives(life);
        let found = self.connection_to(underlay, &wanted, process, &own, &end)?;
        Ok(Connection { life, ..found })
    }

    /// What leads from our end `own` to `end` of a process of the job.
    pub(super) fn connection_to(
        &self,
        underlay: &Underlay,
        wanted: &AhAttr,
        process: ProcessId,
        own: &PhysicalEnd,
        end: &PhysicalEnd,
    ) -> Result<Connection> {
        let peer = self.local().peer(process);
        let keys = peer.keys(end.device);
        Ok(Connection {
            target: Target::Peer(peer, keys),
            ah_attr: underlay.route(wanted, end)?,
            dest_qp_num: end.qpn,
            mtu: u32::from(end.mtu.min(own.mtu)),
            lid: process.lid().0,
            word: end.word,
            life: Incarnation(0),
        })
    }

    /// Who may write here by that connection.
    fn source_of(&self, found: &Connection) -> Source {
        self.source_to(&found.target, found.life)
    }

    /// Who may write here by a connection to that.
    pub(super) fn source_to(&self, target: &Target, life: Incarnation) -> Source {
        let peer = match target {
            Target::Peer(peer, _) => Some(peer.process),
            Target::Foreign | Target::Nobody => None,
        };
        Source { peer, life, owner: PdCore::identity(&self.pd) }
    }

    /// Where queue pair `dest` of `process` is to be reached, and in which life of that; `None` where it has none of
    /// that number.
    fn find_end(
        &self,
        process: ProcessId,
        dest: u32,
    ) -> Result<Option<(PhysicalEnd, Incarnation)>> {
        if process == self.local().grant().process {
            if let Some(qp) = self.local().qp(dest) {
                qp.is_known_to(process);
            }
            let life = self.local().grant().incarnation;
            return Ok(self.local().own_qpn(dest).map(|(end, _)| (end, life)));
        }
        let what = Fetch::Qpn { qpn: dest, own_qpn: self.qpn, own_end: self.end() };
        let deadline = Instant::now() + CONNECT_PATIENCE;
        match self.local().resolver().fetch_wait(process, what, deadline) {
            Ok(Record::Qpn(record)) => Ok(Some((record.end, record.life))),
            Err(names::Error::Unknown { .. }) => Ok(None),
            Ok(_) => Err(Error::new(
                libc::EPROTO,
                format!("{process} answered something else when asked for queue pair {dest:#x}"),
            )),
            Err(error) => Err(Error::from(error).context(format_args!(
                "connecting queue pair {:#x} to queue pair {dest:#x} of {process}",
                self.qpn
            ))),
        }
    }
}
