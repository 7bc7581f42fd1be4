//! What is wrong with a slot, and where.

use crate::Error;
use std::fmt;

/// A part of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first page, with the word.
    Header,
    /// The table of areas.
    Areas,
    /// The table of chunks.
    Pages,
    /// The windows.
    Windows,
    /// The bytes of a chunk.
    Chunk {
        /// The area that it is of.
        area: u32,
        /// Which one of that area, from 0.
        chunk: usize,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Header => f.write_str("the header"),
            Part::Areas => f.write_str("the table of areas"),
            Part::Pages => f.write_str("the page table"),
            Part::Windows => f.write_str("the windows"),
            Part::Chunk { area, chunk } => write!(f, "chunk {chunk} of area {area}"),
        }
    }
}

/// Why a part cannot be used.
#[derive(Clone, Debug)]
pub enum Why {
    /// Its epoch is not complete: the word, and the epoch that the header names.
    Incomplete {
        /// The word.
        word: u64,
        /// What it would have to be.
        epoch: u64,
    },
    /// Its bytes are not those that were written.
    Checksum {
        /// What they have.
        found: u32,
        /// What they should have.
        expected: u32,
    },
    /// It is no such part, or says what cannot be.
    Nonsense(String),
    /// It is not all there.
    Short {
        /// How many bytes it takes, with all before it.
        needs: u64,
        /// How many there are.
        has: u64,
    },
    /// It could not be read.
    Unread(Error),
}

/// A slot of which a part cannot be used.
#[derive(Clone, Debug)]
pub struct Damaged {
    /// Which part.
    pub part: Part,
    /// Where the part begins in the slot, or of a table that entry which is wrong.
    pub offset: u64,
    /// Why.
    pub why: Why,
}

impl Damaged {
    pub(super) fn new(part: Part, offset: usize, why: Why) -> Self {
        Damaged { part, offset: offset as u64, why }
    }

    pub(super) fn nonsense(part: Part, offset: usize, what: impl Into<String>) -> Self {
        Damaged::new(part, offset, Why::Nonsense(what.into()))
    }

    /// Whether there is just no complete epoch, and nothing is known to be broken.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self.why, Why::Incomplete { .. })
    }
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Damaged { part, offset, why } = self;
        match why {
            Why::Incomplete { word: 0, .. } => f.write_str("the slot holds no complete epoch"),
            Why::Incomplete { word, epoch } => {
                write!(f, "the slot's word is {word}, and its header is of epoch {epoch}")
            }
            Why::Checksum { found, expected } => write!(
                f,
                "{part}, at offset {offset:#x} of the slot, has the checksum {found:08x} and not {expected:08x}"
            ),
            Why::Nonsense(what) => write!(f, "{part}, at offset {offset:#x} of the slot: {what}"),
            Why::Short { needs, has } => {
                write!(f, "{part}: the slot takes {needs} bytes, and {has} are there")
            }
            Why::Unread(error) => {
                write!(f, "{part}, at offset {offset:#x} of the slot, could not be read: {error}")
            }
        }
    }
}

impl std::error::Error for Damaged {}

impl From<Damaged> for Error {
    fn from(damaged: Damaged) -> Error {
        let errno = match &damaged.why {
            Why::Incomplete { .. } => libc::ENODATA,
            Why::Unread(error) => error.errno(),
            Why::Checksum { .. } | Why::Nonsense(_) | Why::Short { .. } => libc::EBADMSG,
        };
        Error::new(errno, damaged.to_string())
    }
}
