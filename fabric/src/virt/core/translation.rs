//! Translation of names alone, for those who measure it: the very tables that requests go through,
//! with a region of ours and one of a peer in them.

use super::tables::{KeyTable, PeerKeys, key_index};

/// Tables of keys with as many regions in them as asked for. Not part of the API: `compare` holds
/// what a look-up costs against its goal.
#[doc(hidden)]
pub struct Translation {
    own: KeyTable,
    peer: PeerKeys,
}

impl Translation {
    /// Regions `0..n`, of which [`Translation::key`] tells the virtual keys.
    ///
    /// # Panics
    /// Where a process may not have so many.
    #[must_use]
    pub fn new(n: u32) -> Self {
        let translation = Translation { own: KeyTable::new(), peer: PeerKeys::new() };
        for region in 0..n {
            let key = Self::key(region);
            translation.own.set(key, !key);
            assert!(translation.peer.set(key_index(key), key, !key), "region {region} of {n}");
        }
        translation
    }

    /// The virtual key of a region, for both tables.
    #[must_use]
    pub fn key(region: u32) -> u32 {
        (region + 1) << 8 | 1
    }

    /// What the local and the remote key of a request stand for.
    #[inline]
    #[must_use]
    pub fn look_up(&self, lkey: u32, rkey: u32) -> Option<(u32, u32)> {
        Some((self.own.get(lkey)?, self.peer.get(key_index(rkey), rkey)?))
    }
}
