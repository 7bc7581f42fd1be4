//! A share of parity on another store.

use super::distant::Distant;
use crate::epoch::{Epoch, Slot};
use crate::image::Source;
use crate::redundancy::share::{Header, Parts, Table};
use crate::{Error, PAGE, Result};
use std::ops::Range;

/// A complete share that was opened.
pub(super) struct Held {
    at: Slot,
    header: Header,
    table: Table,
    parts: Parts,
}

impl Held {
    /// Opens the share of this epoch; `None` where the compartment does not hold it.
    ///
    /// # Errors
    /// The store is gone, or what it has is damaged.
    pub(super) fn open(from: &Distant, epoch: Epoch) -> Result<Option<Held>> {
        let Some(at) = from.slot_of(epoch)? else { return Ok(None) };
        let named = |error: Error| error.context(format_args!("store {}", from.name()));
        let part = from.part(at);
        let mut page = vec![0; PAGE];
        part.read(PAGE, &mut page)?;
        let (header, crc) = Header::decode(&page).map_err(named)?;
        if header.epoch() != epoch.0 {
            let other = Epoch(header.epoch());
            let text = format!("a share of parity of {epoch} is of {other}");
            return Err(named(Error::new(libc::EBADMSG, text)));
        }
        let parts = Parts::new(header.chunks()).map_err(named)?;
        // No more is held than is really there.
        if PAGE + parts.bytes() > part.bytes() {
            let (needs, has) = (PAGE + parts.bytes(), part.bytes());
            let text = format!("a share of parity takes {needs} bytes, and {has} are there");
            return Err(named(Error::new(libc::EBADMSG, text)));
        }
        let mut table = vec![0; parts.table().len()];
        part.read(PAGE + parts.table().start, &mut table)?;
        let table = Table::decode(&header, crc, &table).map_err(named)?;
        Ok(Some(Held { at, header, table, parts }))
    }

    /// What it is of.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Reads chunks of it, and checks each.
    ///
    /// # Errors
    /// The store is gone, or a chunk is damaged.
    pub(super) fn read(&self, from: &Distant, chunks: Range<usize>, into: &mut [u8]) -> Result<()> {
        let bytes = self.parts.chunks(chunks.clone());
        from.part(self.at).read(PAGE + bytes.start, into)?;
        for (chunk, bytes) in chunks.zip(into.chunks(PAGE)) {
            let damaged = |error: Error| error.context(format_args!("store {}", from.name()));
            self.table.check(chunk, bytes).map_err(damaged)?;
        }
        Ok(())
    }
}
