//! Queue pairs.

use super::queue::recv_wr;
use super::{CompletionQueue, ConnectOptions, Context, Endpoint, SendRequest, SharedReceiveQueue};
use crate::abi::{self, QpAttr, QpCap, Sge, qp_mask, qp_state, qp_type};
use crate::device::DeviceQp;
use crate::error::{Error, Result};
use std::sync::Arc;

/// What a queue pair is created from.
#[derive(Clone, Copy)]
pub struct QpOptions<'a> {
    /// [`abi::qp_type`].
    pub qp_type: u32,
    /// Sizes wanted.
    pub cap: QpCap,
    /// Every request is signalled.
    pub sq_sig_all: bool,
    /// Completions of the send queue.
    pub send_cq: &'a CompletionQueue,
    /// Completions of the receive queue.
    pub recv_cq: &'a CompletionQueue,
    /// A shared receive queue in place of one's own.
    pub srq: Option<&'a SharedReceiveQueue>,
}

impl<'a> QpOptions<'a> {
    /// A reliable connected queue pair of modest size whose completions all go to `cq`.
    #[must_use]
    pub fn rc(cq: &'a CompletionQueue) -> Self {
        QpOptions {
            qp_type: qp_type::RC,
            cap: QpCap {
                max_send_wr: 128,
                max_recv_wr: 128,
                max_send_sge: 4,
                max_recv_sge: 4,
                max_inline_data: 64,
            },
            sq_sig_all: false,
            send_cq: cq,
            recv_cq: cq,
            srq: None,
        }
    }

    /// The same for datagrams.
    #[must_use]
    pub fn ud(cq: &'a CompletionQueue) -> Self {
        QpOptions { qp_type: qp_type::UD, ..QpOptions::rc(cq) }
    }

    /// The same, unreliable connected.
    #[must_use]
    pub fn uc(cq: &'a CompletionQueue) -> Self {
        QpOptions { qp_type: qp_type::UC, ..QpOptions::rc(cq) }
    }
}

/// A queue pair.
#[derive(Clone)]
pub struct QueuePair {
    qp: Arc<dyn DeviceQp>,
    context: Context,
    /// First packet sequence number that it sends, once connected.
    psn: u32,
    datagram: bool,
}

impl QueuePair {
    pub(super) fn over(qp: Arc<dyn DeviceQp>, context: Context) -> Self {
        // Differs from one queue pair to the next, so that a stray packet of a predecessor is
        // not taken for one of this one's (IBTA 9.7.1); derived, so that a run can be repeated.
        let psn = qp.qp_num().wrapping_mul(0x9e37_79b1) & abi::MASK_24;
        let datagram = qp.qp_type() == qp_type::UD;
        QueuePair { qp, context, psn, datagram }
    }

    /// The device's object.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn DeviceQp> {
        &self.qp
    }

    /// Its number.
    #[must_use]
    pub fn qp_num(&self) -> u32 {
        self.qp.qp_num()
    }

    /// The sizes that were granted.
    #[must_use]
    pub fn cap(&self) -> QpCap {
        self.qp.init_cap()
    }

    /// What a peer needs to connect to it.
    ///
    /// # Errors
    /// When the port cannot be queried.
    pub fn endpoint(&self) -> Result<Endpoint> {
        let (lid, gid) = self.context.address()?;
        Ok(Endpoint { lid, gid, qpn: self.qp_num(), psn: self.psn })
    }

    /// RESET to INIT: receives can be posted.
    ///
    /// # Errors
    /// `EINVAL` where it is not in RESET.
    pub fn init(&self, options: &ConnectOptions) -> Result<()> {
        let mut attr = QpAttr { qp_state: qp_state::INIT, port_num: 1, ..QpAttr::default() };
        let mut mask = qp_mask::STATE | qp_mask::PKEY_INDEX | qp_mask::PORT;
        if self.datagram {
            attr.qkey = options.qkey;
            mask |= qp_mask::QKEY;
        } else {
            // Remote READ and atomics do not exist on UC.
            let uc = abi::access::LOCAL_WRITE | abi::access::REMOTE_WRITE;
            let allowed = if self.qp.qp_type() == qp_type::UC { uc } else { u32::MAX };
            attr.qp_access_flags = options.access & allowed;
            mask |= qp_mask::ACCESS_FLAGS;
        }
        self.qp.modify(&attr, mask)
    }

    /// Takes it from RESET or INIT to RTS, connected to `peer`. A queue pair in INIT keeps the
    /// receives that were posted to it.
    ///
    /// # Errors
    /// `EINVAL` in another state, or for an address that this port cannot reach.
    pub fn connect(&self, peer: &Endpoint, options: &ConnectOptions) -> Result<()> {
        if self.state()? == qp_state::RESET {
            self.init(options)?;
        }
        let reliable = self.qp.qp_type() == qp_type::RC;
        let path_mtu = match options.path_mtu {
            Some(mtu) => mtu,
            None => self.context.active_mtu(1)?,
        };
        let mut rtr = QpAttr {
            qp_state: qp_state::RTR,
            path_mtu,
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn,
            ah_attr: self.context.address_vector(peer)?,
            max_dest_rd_atomic: options.max_rd_atomic,
            min_rnr_timer: options.min_rnr_timer,
            ..QpAttr::default()
        };
        let mut mask =
            qp_mask::STATE | qp_mask::AV | qp_mask::PATH_MTU | qp_mask::DEST_QPN | qp_mask::RQ_PSN;
        if reliable {
            mask |= qp_mask::MAX_DEST_RD_ATOMIC | qp_mask::MIN_RNR_TIMER;
        } else {
            (rtr.max_dest_rd_atomic, rtr.min_rnr_timer) = (0, 0);
        }
        self.qp.modify(&rtr, mask)?;
        let rts = QpAttr {
            qp_state: qp_state::RTS,
            sq_psn: self.psn,
            timeout: options.timeout,
            retry_cnt: options.retry_cnt,
            rnr_retry: options.rnr_retry,
            max_rd_atomic: options.max_rd_atomic,
            ..QpAttr::default()
        };
        let mut mask = qp_mask::STATE | qp_mask::SQ_PSN;
        if reliable {
            mask |= qp_mask::TIMEOUT
                | qp_mask::RETRY_CNT
                | qp_mask::RNR_RETRY
                | qp_mask::MAX_QP_RD_ATOMIC;
        }
        self.qp.modify(&rts, mask)
    }

    /// Takes a datagram queue pair from RESET or INIT to RTS.
    ///
    /// # Errors
    /// `EINVAL` in another state.
    pub fn activate(&self, options: &ConnectOptions) -> Result<()> {
        if self.state()? == qp_state::RESET {
            self.init(options)?;
        }
        self.set_state(qp_state::RTR)?;
        let rts = QpAttr { qp_state: qp_state::RTS, sq_psn: self.psn, ..QpAttr::default() };
        self.qp.modify(&rts, qp_mask::STATE | qp_mask::SQ_PSN)
    }

    /// `modify` of the state alone: to ERR, to RESET, to SQD.
    ///
    /// # Errors
    /// `EINVAL` where the transition is not allowed.
    pub fn set_state(&self, state: u32) -> Result<()> {
        self.qp.modify(&QpAttr { qp_state: state, ..QpAttr::default() }, qp_mask::STATE)
    }

    /// The state that it is in ([`abi::qp_state`]).
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn state(&self) -> Result<u32> {
        Ok(self.qp.query(qp_mask::STATE)?.qp_state)
    }

    /// Its attributes, `rq_psn` and `sq_psn` as they are now.
    ///
    /// # Errors
    /// When the device does not answer.
    pub fn query(&self) -> Result<QpAttr> {
        self.qp
            .query(qp_mask::STATE | qp_mask::RQ_PSN | qp_mask::SQ_PSN | qp_mask::AV | qp_mask::CAP)
    }

    /// Posts a send request.
    ///
    /// # Errors
    /// `ENOMEM` where the queue is full, `EINVAL` where the request does not fit the queue pair
    /// or its state.
    #[inline]
    pub fn post_send(&self, request: &SendRequest<'_>) -> Result<()> {
        let mut element = Sge::default();
        let mut wr = abi::SendWr::empty();
        self.lower(request, &mut wr, &mut element)?;
        // SAFETY: one request, whose list (`request.data` or `element`) lives through the call;
        // inline bytes are copied within it, and every other element is checked by the device
        // against the registered regions at the moment of access.
        unsafe { self.qp.post_send(&raw mut wr) }.map_err(|error| self.refused(error.errno()))
    }

    /// Posts send requests as one list, in order. Returns how many were posted where the list
    /// was cut short.
    ///
    /// # Errors
    /// As [`Self::post_send`], with the number of requests that were posted before the refused one.
    pub fn post_sends(
        &self,
        requests: &[SendRequest<'_>],
    ) -> std::result::Result<(), (usize, Error)> {
        /// Requests chained at a time: the chain is on the stack.
        const CHAIN: usize = 16;
        for (part, chunk) in requests.chunks(CHAIN).enumerate() {
            let done = part * CHAIN;
            let mut elements = [Sge::default(); CHAIN];
            let mut wrs = [abi::SendWr::empty(); CHAIN];
            for (i, request) in chunk.iter().enumerate() {
                // What stands before a request that is wrong in itself is posted, as verbs do.
                if let Err(error) = self.lower(request, &mut wrs[i], &mut elements[i]) {
                    self.post_sends(&chunk[..i]).map_err(|(n, error)| (done + n, error))?;
                    return Err((done + i, error));
                }
            }
            let base = wrs.as_mut_ptr();
            for i in 1..chunk.len() {
                // SAFETY: both indices are below CHAIN.
                unsafe { (*base.add(i - 1)).next = base.add(i) };
            }
            // SAFETY: a list within `wrs`, which lives through the call; else as in `post_send`.
            unsafe { self.qp.post_send(base) }.map_err(|error| {
                let at = (error.bad_wr() as usize).saturating_sub(base as usize)
                    / size_of::<abi::SendWr>();
                (done + at, self.refused(error.errno()))
            })?;
        }
        Ok(())
    }

    /// The verbs struct of a request, which must have a destination exactly where this is a
    /// datagram queue pair: elsewhere the device would read one field as another.
    #[inline]
    fn lower(
        &self,
        request: &SendRequest<'_>,
        wr: &mut abi::SendWr,
        element: &mut Sge,
    ) -> Result<()> {
        if request.to.is_some() == self.datagram {
            return request.lower(wr, element);
        }
        Err(Error::invalid(format!(
            "request {:#x} has {} destination, and queue pair {:#x} {} datagrams",
            request.wr_id,
            if self.datagram { "no" } else { "a" },
            self.qp_num(),
            if self.datagram { "sends" } else { "does not send" },
        )))
    }

    /// Posts a receive.
    ///
    /// # Errors
    /// `ENOMEM` where the queue is full, `EINVAL` for too many elements or in RESET.
    #[inline]
    pub fn post_recv(&self, wr_id: u64, sges: &[Sge]) -> Result<()> {
        let mut wr = recv_wr(wr_id, sges)?;
        // SAFETY: one request whose list lives through the call; the device checks every element
        // against the registered regions when it uses it.
        unsafe { self.qp.post_recv(&raw mut wr) }.map_err(|error| self.refused(error.errno()))
    }

    /// Posts receives as one list, in order; each has its identifier and its elements.
    ///
    /// # Errors
    /// As [`Self::post_recv`], with the number of receives that were posted before the refused one.
    pub fn post_recvs(
        &self,
        receives: &[(u64, &[Sge])],
    ) -> std::result::Result<(), (usize, Error)> {
        let mut wrs = Vec::with_capacity(receives.len());
        for (i, (wr_id, sges)) in receives.iter().enumerate() {
            wrs.push(recv_wr(*wr_id, sges).map_err(|error| (i, error))?);
        }
        let base = wrs.as_mut_ptr();
        for i in 1..wrs.len() {
            // SAFETY: both indices are below the length.
            unsafe { (*base.add(i - 1)).next = base.add(i) };
        }
        if wrs.is_empty() {
            return Ok(());
        }
        // SAFETY: a list within `wrs`, which lives through the call; else as in `post_recv`.
        unsafe { self.qp.post_recv(base) }.map_err(|error| {
            let at =
                (error.bad_wr() as usize).saturating_sub(base as usize) / size_of::<abi::RecvWr>();
            (at, self.refused(error.errno()))
        })
    }

    #[cold]
    fn refused(&self, errno: i32) -> Error {
        let why = match errno {
            libc::ENOMEM => "the queue is full",
            _ => "the request does not fit the queue pair or its state",
        };
        let error = std::io::Error::from_raw_os_error(errno);
        Error::new(errno, format!("posting to queue pair {:#x}: {why} ({error})", self.qp_num()))
    }
}
