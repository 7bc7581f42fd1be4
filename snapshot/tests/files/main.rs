//! Epochs in a directory: what comes back, what is noticed, and what a killed writer leaves.

mod epochs;
mod world;
