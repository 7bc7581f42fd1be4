//! A lost image as a sum of multiples of the shares that are there.
//!
//! A Reed–Solomon code is linear: symbol by symbol, a lost image is a sum of the shares, each times a
//! factor that depends only on which are there. The library's decoder finds out all of that anew in each call,
//! and works on as many shards as the next power of two; so it is asked for the factors alone, once for each
//! set of shares, with a shard that has just one symbol in it. The multiplying is the library's too.

use super::UNIT;
use crate::{Error, Result};
use reed_solomon_simd::ReedSolomonDecoder;
use reed_solomon_simd::engine::{DefaultEngine, Engine, tables};

/// Bytes that are multiplied at a time: they stay in the first-level cache.
const PIECE: usize = 8 << 10;
/// In a unit the low bytes of its symbols come first, then the high ones.
const HIGH: usize = UNIT / 2;

/// Factors for one set of shares, and what is needed to use them.
pub(super) struct Inverse {
    members: usize,
    decoder: ReedSolomonDecoder,
    engine: DefaultEngine,
    /// The shares that are used, by index, and the images that are wanted.
    used: Vec<usize>,
    wanted: Vec<usize>,
    /// For each of those wanted, the logarithm of each used one's factor; none is a factor of zero.
    factors: Vec<Option<u16>>,
    piece: Vec<[u8; UNIT]>,
}

impl Inverse {
    pub(super) fn new(members: usize, parity: usize) -> Result<Self> {
        let decoder = ReedSolomonDecoder::new(members, parity, UNIT).map_err(failed)?;
        Ok(Inverse {
            members,
            decoder,
            engine: DefaultEngine::new(),
            used: Vec::new(),
            wanted: Vec::new(),
            factors: Vec::new(),
            piece: vec![[0; UNIT]; PIECE / UNIT],
        })
    }

    /// Rebuilds a stripe of the images that are wanted of those shares that are there, of which there are
    /// enough. All of them are as long as their check has said.
    pub(super) fn rebuild(
        &mut self,
        shares: &[Option<&[u8]>],
        lost: &mut [(usize, &mut [u8])],
    ) -> Result<()> {
        let there = shares.iter().enumerate().filter(|(_, it)| it.is_some());
        let used = there.map(|(index, _)| index).take(self.members);
        let wanted = lost.iter().map(|(index, _)| *index);
        if !used.clone().eq(self.used.iter().copied())
            || !wanted.clone().eq(self.wanted.iter().copied())
        {
            // Not valid before they are found.
            self.wanted.clear();
            self.used = used.collect();
            let wanted: Vec<usize> = wanted.collect();
            self.find(&wanted)?;
            self.wanted = wanted;
        }
        for (row, (_, bytes)) in lost.iter_mut().enumerate() {
            let factors = &self.factors[row * self.members..(row + 1) * self.members];
            for (at, into) in bytes.chunks_mut(PIECE).enumerate() {
                into.fill(0);
                for (index, factor) in self.used.iter().zip(factors) {
                    let (Some(share), Some(factor)) = (shares[*index], factor) else { continue };
                    let start = (at * PIECE).min(share.len());
                    let from = &share[start..share.len().min(start + into.len())];
                    if from.is_empty() {
                        continue;
                    }
                    let units = &mut self.piece[..from.len().div_ceil(UNIT)];
                    let flat = units.as_flattened_mut();
                    flat[..from.len()].copy_from_slice(from);
                    flat[from.len()..].fill(0);
                    self.engine.mul(units, *factor);
                    let made = units.as_flattened();
                    into.iter_mut().zip(made).for_each(|(into, made)| *into ^= made);
                }
            }
        }
        Ok(())
    }

    /// Finds the factors of the shares that are used.
    fn find(&mut self, wanted: &[usize]) -> Result<()> {
        let tables = tables::get_exp_log();
        let [low, high] = tables.exp[0].to_le_bytes();
        let (zero, mut one) = ([0; UNIT], [0; UNIT]);
        (one[0], one[HIGH]) = (low, high);
        self.factors.clear();
        self.factors.resize(wanted.len() * self.members, None);
        for column in 0..self.used.len() {
            for (i, index) in self.used.iter().enumerate() {
                let shard = if i == column { &one } else { &zero };
                match index.checked_sub(self.members) {
                    None => self.decoder.add_original_shard(*index, shard),
                    Some(parity) => self.decoder.add_recovery_shard(parity, shard),
                }
                .map_err(failed)?;
            }
            let made = self.decoder.decode().map_err(failed)?;
            for (row, index) in wanted.iter().enumerate() {
                let shard = made.restored_original(*index).unwrap_or(&zero);
                let factor = u16::from_le_bytes([shard[0], shard[HIGH]]);
                let log = (factor != 0).then(|| tables.log[usize::from(factor)]);
                self.factors[row * self.members + column] = log;
            }
        }
        Ok(())
    }
}

fn failed(error: reed_solomon_simd::Error) -> Error {
    Error::invalid(format!("rebuilding from parity: {error}"))
}
