//! Sojourn.
