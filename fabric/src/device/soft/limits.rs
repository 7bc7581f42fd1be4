//! What a soft device can hold, each with its reason. `query_device` reports these.

/// QPNs are claimed from the node in blocks of this many: one lock file and one socket look-up
/// serve a thousand queue pairs.
pub(super) const BLOCK_QPNS: u32 = 1024;
/// Blocks that one context may claim: 65,536 queue pairs, as many as an ordinary HCA offers.
pub(super) const MAX_BLOCKS: usize = 64;
/// Blocks on a node: QPNs have 24 bits.
pub(super) const NODE_BLOCKS: u32 = (1 << 24) / BLOCK_QPNS;
/// Queue pairs of one context.
pub(super) const MAX_QP: usize = MAX_BLOCKS * BLOCK_QPNS as usize;
/// Memory regions of one context. A key is `index << 8 | generation`, so 24 bits would fit; the
/// table is sparse shared memory of 64 bytes each, and a quarter of a million is plenty.
pub(super) const MAX_MR: usize = 1 << 18;
/// Completion queues of one context.
pub(super) const MAX_CQ: usize = 1 << 16;
/// Completions in one CQ: what a full flush of the largest QPs may need, many times over.
pub(super) const MAX_CQE: u32 = 1 << 22;
/// Outstanding work requests of one queue.
pub(super) const MAX_WR: u32 = 16384;
/// Gather or scatter elements of one request: what fits a revocable slot of half a kilobyte.
pub(super) const MAX_SGE: usize = 30;
/// Bytes of inline data: they travel in the ring or from a copy, and beyond this a gather list
/// is no dearer.
pub(super) const MAX_INLINE: u32 = 512;
/// Largest message: below what one `process_vm_writev` moves (2 GiB less a page), and as large
/// as an HCA's.
pub(super) const MAX_MESSAGE: u32 = 1 << 30;
/// Outstanding READs and atomics of one QP, each way.
pub(super) const MAX_RD_ATOMIC: u8 = 16;
/// Links (one to each peer context, one from each) of one context.
pub(super) const MAX_LINKS: usize = 4096;
/// With no more links than this a poll looks into each ring; beyond, a bitmap says which are
/// worth it.
pub(super) const DIRECT_LINKS: usize = 8;
/// Largest SEND that travels in the ring: copying it twice costs less than a system call.
pub(super) const RING_SEND_MAX: u32 = 1024;
/// Shared memory for the posted receives of all queue pairs; sparse, so only what is used counts.
pub(super) const ARENA_BYTES: usize = 512 << 20;
/// How long a handshake with a living peer may take.
pub(super) const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(5);
/// How long deregistration or ERR waits for a peer's copy in flight before it gives up by name.
pub(super) const FENCE: std::time::Duration = std::time::Duration::from_secs(5);
