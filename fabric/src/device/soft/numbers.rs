//! What a context deals out: queue pair numbers, keys, CQ and link numbers, and pieces of the
//! arena. All on the control path, under one lock.
//!
//! A number that was given back is dealt again as late as possible, so that whatever still names
//! the old thing meets nothing rather than a stranger.

use super::limits::{ARENA_BYTES, BLOCK_QPNS, MAX_BLOCKS, MAX_CQ, MAX_LINKS, MAX_MR};
use super::node::{Block, Node};
use super::region::{ARENA_AT, Region};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Numbers from 0 (or another start) upwards, reused first in, first out, and only once this
/// many have been given back.
const QUARANTINE: usize = 64;

struct Dealer {
    next: usize,
    end: usize,
    free: VecDeque<usize>,
}

impl Dealer {
    fn new(start: usize, end: usize) -> Self {
        Dealer { next: start, end, free: VecDeque::new() }
    }

    fn take(&mut self) -> Option<usize> {
        if self.free.len() > QUARANTINE || self.next == self.end {
            return self.free.pop_front();
        }
        self.next += 1;
        Some(self.next - 1)
    }

    fn give(&mut self, number: usize) {
        self.free.push_back(number);
    }
}

/// See the module's documentation.
pub(super) struct Numbers {
    blocks: Vec<Block>,
    qps: Dealer,
    mrs: Dealer,
    generations: Vec<u8>,
    cqs: Dealer,
    links: Dealer,
    next_pd: u32,
    arena: Arena,
}

impl Numbers {
    pub(super) fn new() -> Self {
        Numbers {
            blocks: Vec::new(),
            qps: Dealer::new(0, 0),
            // Key index 0 is never dealt, so that key 0 is never valid.
            mrs: Dealer::new(1, MAX_MR),
            generations: Vec::new(),
            cqs: Dealer::new(0, MAX_CQ),
            links: Dealer::new(0, MAX_LINKS),
            next_pd: 1,
            arena: Arena::default(),
        }
    }

    /// The number of a new queue pair, and its entry's index.
    pub(super) fn qp(
        &mut self,
        node: &Node,
        socket: &Path,
        region: &Region,
    ) -> Result<(u32, usize)> {
        let index = match self.qps.take() {
            Some(index) => index,
            None if self.blocks.len() < MAX_BLOCKS => {
                let block = node.claim(socket)?;
                let slot = self.blocks.len();
                region.header().blocks[slot].store(block.number() + 1, Ordering::Release);
                self.blocks.push(block);
                self.qps.end += BLOCK_QPNS as usize;
                self.qps.take().ok_or_else(|| Error::new(libc::ENOMEM, "no queue pair number"))?
            }
            None => {
                return Err(Error::new(
                    libc::ENOMEM,
                    format!("this context has {} queue pairs, the most it can", self.qps.end),
                ));
            }
        };
        let block = &self.blocks[index / BLOCK_QPNS as usize];
        Ok((block.first_qpn() + (index % BLOCK_QPNS as usize) as u32, index))
    }

    pub(super) fn free_qp(&mut self, index: usize) {
        self.qps.give(index);
    }

    /// A new key.
    pub(super) fn key(&mut self) -> Result<u32> {
        let index = self.mrs.take().ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!("this context has {MAX_MR} memory regions, the most it can"),
            )
        })?;
        if self.generations.len() <= index {
            self.generations.resize(index + 1, 0);
        }
        self.generations[index] = self.generations[index].wrapping_add(1);
        Ok((index as u32) << 8 | u32::from(self.generations[index]))
    }

    pub(super) fn free_key(&mut self, key: u32) {
        self.mrs.give((key >> 8) as usize);
    }

    pub(super) fn cq(&mut self) -> Result<u32> {
        self.cqs.take().map(|n| n as u32).ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!("this context has {MAX_CQ} completion queues, the most it can"),
            )
        })
    }

    pub(super) fn free_cq(&mut self, index: u32) {
        self.cqs.give(index as usize);
    }

    pub(super) fn link(&mut self) -> Result<u32> {
        self.links.take().map(|n| n as u32).ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!("this context has {MAX_LINKS} links to others, the most it can"),
            )
        })
    }

    pub(super) fn free_link(&mut self, number: u32) {
        self.links.give(number as usize);
    }

    pub(super) fn pd(&mut self) -> u32 {
        self.next_pd += 1;
        self.next_pd - 1
    }

    /// `len` bytes of the arena.
    pub(super) fn memory(&mut self, len: usize) -> Result<usize> {
        self.arena.take(len).ok_or_else(|| {
            Error::new(
                libc::ENOMEM,
                format!("the receive queues of this context fill their {ARENA_BYTES} bytes"),
            )
        })
    }

    pub(super) fn free_memory(&mut self, region: &Region, at: usize, len: usize) {
        self.arena.give(region, at, len);
    }
}

/// The smallest piece that the arena deals.
const PIECE: usize = 256;

/// Pieces in powers of two, one list of free ones for each.
#[derive(Default)]
struct Arena {
    used: usize,
    free: [Vec<usize>; 32],
}

impl Arena {
    fn size(len: usize) -> usize {
        len.max(PIECE).next_power_of_two()
    }

    fn take(&mut self, len: usize) -> Option<usize> {
        let size = Self::size(len);
        if let Some(at) = self.free.get_mut(size.trailing_zeros() as usize)?.pop() {
            return Some(at);
        }
        if ARENA_BYTES - self.used < size {
            return None;
        }
        self.used += size;
        Some(ARENA_AT + self.used - size)
    }

    fn give(&mut self, region: &Region, at: usize, len: usize) {
        let size = Self::size(len);
        region.discard(at, size);
        if let Some(list) = self.free.get_mut(size.trailing_zeros() as usize) {
            list.push(at);
        }
    }
}
