//! A door: the registration and the queue pairs by which one peer reaches memory of this process.

use crate::Result;
use crate::memory::Mapping;
use sojourn_fabric::abi::{Wc, access, qp_state};
use sojourn_fabric::device::DeviceMr;
use sojourn_fabric::virt::{
    CompletionQueue, ConnectOptions, Context, Endpoint, QpOptions, QueuePair,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a peer may do behind a door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum May {
    /// Read alone.
    Read,
    /// Write, and read back.
    Write,
}

impl May {
    fn access(self) -> u32 {
        match self {
            May::Read => access::REMOTE_READ,
            May::Write => access::LOCAL_WRITE | access::REMOTE_WRITE | access::REMOTE_READ,
        }
    }
}

/// How long a flush may take that a device sends at all. Where it does not come, that the
/// memory is deregistered has to do.
const BARRIER_PATIENCE: Duration = Duration::from_secs(1);

/// An open door, or one that is being shut.
pub(super) struct Door {
    qps: Vec<QueuePair>,
    cq: CompletionQueue,
    /// `None` once it is deregistered.
    mr: Option<Arc<dyn DeviceMr>>,
    rkey: u32,
    memory: Arc<Mapping>,
    /// Since when the queue pairs are in ERR, and how many have not flushed.
    shutting: Option<(Instant, usize)>,
}

impl Door {
    /// A door to `memory` for the queue pairs of `peers`.
    ///
    /// # Errors
    /// Where the device has no more, or cannot reach the peer.
    pub(super) fn open(
        context: &Context,
        memory: &Arc<Mapping>,
        may: May,
        peers: &[Endpoint],
    ) -> Result<Door> {
        let pd = context.alloc_pd()?;
        let cq = context.create_cq(peers.len() as u32)?;
        let (base, device) = (memory.base().as_ptr().cast(), Arc::clone(pd.device()));
        // SAFETY: the mapping is kept beside the registration, beyond its end, and is read by
        // volatile loads alone.
        let mr = unsafe { device.reg_mr(base, memory.length(), may.access()) }?;
        let (rkey, memory) = (mr.rkey(), Arc::clone(memory));
        let mut door = Door { qps: vec![], cq, mr: Some(mr), rkey, memory, shutting: None };
        let access = may.access() & !access::LOCAL_WRITE;
        let options = ConnectOptions { access, ..ConnectOptions::default() };
        for peer in peers {
            let mut shape = QpOptions::rc(&door.cq);
            shape.cap.max_recv_wr = 1;
            let qp = pd.create_qp(&shape)?;
            qp.init(&options)?;
            // Nobody sends here: it stays until its flush says that nothing more can arrive.
            qp.post_recv(0, &[])?;
            qp.connect(peer, &options)?;
            door.qps.push(qp);
        }
        Ok(door)
    }

    /// The key of its memory.
    pub(super) fn rkey(&self) -> u32 {
        self.rkey
    }

    /// Its ends, for the peer to connect to.
    pub(super) fn ends(&self) -> Result<Vec<Vec<u8>>> {
        self.qps.iter().map(|qp| Ok(qp.endpoint()?.to_bytes().to_vec())).collect()
    }

    /// Begins to shut it. Returns at once.
    pub(super) fn shut(&mut self) {
        if self.shutting.is_none() {
            let down = self.qps.iter().filter(|qp| qp.set_state(qp_state::ERR).is_ok()).count();
            self.shutting = Some((Instant::now(), down));
        }
    }

    /// Whether it is shut: nothing that the peer has under way lands any more. False for ever where the
    /// device cannot promise that; then the memory must not be used for anything else.
    pub(super) fn is_shut(&mut self) -> bool {
        let Some((since, left)) = &mut self.shutting else { return false };
        let mut wcs = [Wc::default(); 16];
        while *left > 0 {
            match self.cq.poll(&mut wcs) {
                Ok(0) if since.elapsed() < BARRIER_PATIENCE => return false,
                Ok(0) => {
                    tracing::warn!("{left} queue pairs of a store have not flushed in time");
                    *left = 0;
                }
                Ok(some) => *left = left.saturating_sub(some),
                Err(error) => {
                    tracing::warn!("a completion queue of a store: {error}");
                    *left = 0;
                }
            }
        }
        self.qps.clear();
        if let Some(mr) = &self.mr {
            match mr.dereg() {
                Ok(()) => self.mr = None,
                Err(error) => tracing::warn!("memory of a store stays with its writer: {error}"),
            }
        }
        self.mr.is_none()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shut();
        while !self.is_shut() {
            if self.shutting.is_some_and(|(since, _)| since.elapsed() > 2 * BARRIER_PATIENCE) {
                // A device may still write to it.
                std::mem::forget(Arc::clone(&self.memory));
                return;
            }
            std::thread::yield_now();
        }
    }
}
