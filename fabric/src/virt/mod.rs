//! (virt)
