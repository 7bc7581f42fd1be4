//! What a captured context has become.

use super::{
    AddressHandle, CompletionChannel, CompletionQueue, Context, MemoryRegion, ProtectionDomain,
    QueuePair, SharedReceiveQueue,
};
use crate::virt::core::{CapturedRegion, RestoredCore};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;

/// Bytes of the smallest page: where mappings begin.
const PAGE: u64 = 4096;

/// A context that was captured, made anew: from here a program takes its objects again.
///
/// Objects are named as the program knows them: queue pairs and regions by their names, others by their
/// place in the order in which those were made that were there at the capture. They are there as long as
/// somebody has them; those that nobody has taken go with this value.
pub struct Restored {
    core: RestoredCore,
    /// Where each queue pair is.
    qps: HashMap<u32, usize>,
}

impl Restored {
    /// Whoever takes a region out becomes the owner of its memory.
    pub(in crate::virt) fn over(core: RestoredCore) -> Self {
        let qps = core.qps.iter().enumerate().map(|(at, qp)| (qp.qp_num(), at)).collect();
        Restored { core, qps }
    }

    /// The context.
    #[must_use]
    pub fn context(&self) -> Context {
        Context::over(Arc::clone(&self.core.context))
    }

    /// The protection domain that was made as the `index`-th.
    #[must_use]
    pub fn protection_domain(&self, index: usize) -> Option<ProtectionDomain> {
        let pd = self.core.pds.get(index)?;
        Some(ProtectionDomain::over(Arc::clone(pd), self.context()))
    }

    /// The regions that nobody has taken, in the order in which they were registered.
    pub fn regions(&self) -> impl Iterator<Item = &CapturedRegion> {
        self.core.mrs.iter().map(|(region, _)| region)
    }

    /// The region with that key: once. It owns its memory from here on, and unmaps it when it is
    /// dropped. (One that nobody takes is deregistered with this value, and its memory stays.) `None`
    /// where its memory does not begin with a page, so that it was not made by
    /// [`ProtectionDomain::register`]; such a one stays here.
    #[must_use]
    pub fn take_region(&mut self, key: u32) -> Option<MemoryRegion> {
        let at = self.core.mrs.iter().position(|(region, _)| region.key == key)?;
        let base = NonNull::new(self.core.mrs[at].0.addr as *mut u8)?;
        if !self.core.mrs[at].0.addr.is_multiple_of(PAGE) {
            return None;
        }
        let (region, mr) = self.core.mrs.remove(at);
        // SAFETY: whoever restored has promised that the memory of regions is nobody else's; there is one
        // region of this key, and it is taken once.
        Some(unsafe { MemoryRegion::over(mr, base, region.length as usize) })
    }

    /// The completion channel that was made as the `index`-th. Its descriptor is a new one.
    #[must_use]
    pub fn completion_channel(&self, index: usize) -> Option<CompletionChannel> {
        self.core.channels.get(index).map(|it| CompletionChannel::over(Arc::clone(it)))
    }

    /// The completion queue that was made as the `index`-th.
    #[must_use]
    pub fn completion_queue(&self, index: usize) -> Option<CompletionQueue> {
        self.core.cqs.get(index).map(|(_, it)| CompletionQueue::over(Arc::clone(it)))
    }

    /// The first completion queue whose events have that name.
    #[must_use]
    pub fn completion_queue_of(&self, user: u64) -> Option<CompletionQueue> {
        let index = self.core.cqs.iter().position(|(it, _)| *it == user)?;
        self.completion_queue(index)
    }

    /// The shared receive queue that was made as the `index`-th.
    #[must_use]
    pub fn shared_receive_queue(&self, index: usize) -> Option<SharedReceiveQueue> {
        self.core.srqs.get(index).map(|(_, it)| SharedReceiveQueue::over(Arc::clone(it)))
    }

    /// The first shared receive queue whose events have that name.
    #[must_use]
    pub fn shared_receive_queue_of(&self, user: u64) -> Option<SharedReceiveQueue> {
        let index = self.core.srqs.iter().position(|(it, _)| *it == user)?;
        self.shared_receive_queue(index)
    }

    /// The address handle that was made as the `index`-th.
    #[must_use]
    pub fn address_handle(&self, index: usize) -> Option<AddressHandle> {
        self.core.ahs.get(index).map(|it| AddressHandle::over(Arc::clone(it)))
    }

    /// The queue pair of that number.
    #[must_use]
    pub fn queue_pair(&self, qpn: u32) -> Option<QueuePair> {
        let qp = &self.core.qps[*self.qps.get(&qpn)?];
        Some(QueuePair::over(Arc::clone(qp), self.context()))
    }

    /// The numbers of the queue pairs, in the order in which those were made.
    pub fn queue_pairs(&self) -> impl Iterator<Item = u32> {
        self.core.qps.iter().map(|it| it.qp_num())
    }
}
