//! Misbehaving on purpose: what shows that this program would notice.
//!
//! Rank 0 commits one such act, once it has sent [`FROM`] messages on some queue pair, and keeps
//! quiet about it; another rank must report it.

/// The act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// A SEND is sent twice.
    Duplicate,
    /// A SEND is never sent.
    Drop,
    /// One bit of a SEND is another.
    Corrupt,
    /// Two SENDs change places.
    Reorder,
    /// A WRITE is executed again after the peer has seen its effect.
    Rewrite,
    /// A FETCH_ADD is executed twice.
    Atomic,
    /// Control messages stop.
    Silence,
}

/// Messages of a stream that are left alone.
pub(crate) const FROM: u64 = 8;

const NAMES: [(&str, Sabotage); 7] = [
    ("duplicate", Sabotage::Duplicate),
    ("drop", Sabotage::Drop),
    ("corrupt", Sabotage::Corrupt),
    ("reorder", Sabotage::Reorder),
    ("rewrite", Sabotage::Rewrite),
    ("atomic", Sabotage::Atomic),
    ("silence", Sabotage::Silence),
];

impl Sabotage {
    /// Reads a name.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, act)| *act).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("there are {}", names.join(", "))
        })
    }
}
