//! Sojourn.

pub mod stream;
