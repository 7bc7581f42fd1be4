//! Virtual verbs.

pub mod core;
